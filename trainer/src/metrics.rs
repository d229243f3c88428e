//! The trainer's metrics, counted where they happen, for `/metrics`.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use asng_proto::v1::ReportOutcome;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tonic::Code;

/// A part of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Images are chosen and augmented.
    Data,
    /// The weights move.
    Train,
    /// Architectures are measured, and the losses read off the device.
    Rank,
    /// The controller takes the report.
    Report,
}

type Label = [(&'static str, String); 1];

/// Upper bounds of the buckets of a step's phases, in seconds.
const STEP_BUCKETS: [f64; 14] =
    [1e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

type Histograms = Family<Label, Histogram, fn() -> Histogram>;

static PHASES: LazyLock<Histograms> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)));
static IMAGES: LazyLock<Counter> = LazyLock::new(Counter::default);
static STEPS: LazyLock<Family<Label, Counter>> = LazyLock::new(Family::default);
static CONTROLLER_ERRORS: LazyLock<Family<Label, Counter>> = LazyLock::new(Family::default);
static CHECKPOINT_SECONDS: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0]));
static CHECKPOINT_TIME: LazyLock<Gauge> = LazyLock::new(Gauge::default);
static CHECKPOINT_FAILURES: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts a phase of a step.
pub(crate) fn phase(phase: Phase, duration: Duration) {
    let name = match phase {
        Phase::Data => "data",
        Phase::Train => "train",
        Phase::Rank => "rank",
        Phase::Report => "report",
    };
    PHASES.get_or_create_owned(&[("phase", name.into())]).observe(duration.as_secs_f64());
}

/// Counts images that have passed through a network.
pub(crate) fn images(count: u64) {
    IMAGES.inc_by(count);
}

/// Counts a step by what became of its report.
pub(crate) fn reported(outcome: ReportOutcome) {
    let outcome = outcome.as_str_name().trim_start_matches("REPORT_OUTCOME_").to_lowercase();
    STEPS.get_or_create_owned(&[("outcome", outcome)]).inc();
}

/// Counts a call to the controller that failed.
pub(crate) fn controller_failed(code: Code) {
    CONTROLLER_ERRORS.get_or_create_owned(&[("code", asng_serving::code_name(code).into())]).inc();
}

/// Counts a checkpoint that took this long.
pub(crate) fn checkpoint_written(duration: Duration) {
    CHECKPOINT_SECONDS.observe(duration.as_secs_f64());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CHECKPOINT_TIME.set(since.as_secs() as i64);
}

/// Counts an attempt to write a checkpoint that failed.
pub(crate) fn checkpoint_failed() {
    CHECKPOINT_FAILURES.inc();
}

/// Everything here, and what every program tells.
pub(crate) fn registry() -> Registry {
    let mut registry = asng_serving::registry();
    registry.register_with_unit(
        "asng_trainer_step",
        "Time of the phases of a step",
        Unit::Seconds,
        PHASES.clone(),
    );
    registry.register(
        "asng_trainer_images",
        "Images that have passed through the network, once for each architecture",
        IMAGES.clone(),
    );
    registry.register(
        "asng_trainer_steps",
        "Steps reported, by what became of the report",
        STEPS.clone(),
    );
    registry.register(
        "asng_trainer_controller_errors",
        "Calls to the controller that failed, repeated ones included",
        CONTROLLER_ERRORS.clone(),
    );
    registry.register_with_unit(
        "asng_trainer_checkpoint",
        "Time to write a checkpoint, beside the steps",
        Unit::Seconds,
        CHECKPOINT_SECONDS.clone(),
    );
    registry.register_with_unit(
        "asng_trainer_checkpoint_time",
        "When the last checkpoint of this process was written, since the Unix epoch",
        Unit::Seconds,
        CHECKPOINT_TIME.clone(),
    );
    registry.register(
        "asng_trainer_checkpoint_failures",
        "Attempts to write a checkpoint that failed",
        CHECKPOINT_FAILURES.clone(),
    );
    registry
}
