//! The studies in `/metrics`: copied in one pass on the thread that owns them, written out elsewhere.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    studies::{Error, StudyRegistry},
    study::{Now, Progress, State, Study},
};

/// The studies at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    studies: Vec<Figures>,
    store_bytes: u64,
}

/// The metrics of a study.
#[derive(Debug)]
struct Figures {
    name: String,
    state: &'static str,
    progress: Progress,
    pending: usize,
    outstanding: usize,
    max_steps: u64,
    /// Convergence and Delta, once the variables are known.
    asng: Option<(f64, f64)>,
    oldest_lease_age: Option<f64>,
}

/// Copies what is told.
pub(super) fn snapshot(registry: &mut StudyRegistry, now: Now) -> Result<Snapshot, Error> {
    let studies = registry.all().map(|study| Figures::new(study, now)).collect();
    Ok(Snapshot { studies, store_bytes: registry.size() })
}

impl Figures {
    fn new(study: &Study, now: Now) -> Figures {
        Figures {
            name: study.name().into(),
            state: match study.state() {
                State::Waiting => "waiting",
                State::Running => "running",
                State::Paused => "paused",
                State::Finished(_) => "finished",
                State::Stopped => "stopped",
                State::Failed(_) => "failed",
            },
            progress: *study.progress(),
            pending: study.pending(),
            outstanding: study.outstanding(),
            max_steps: study.spec().max_steps,
            asng: study.asng().map(|asng| (asng.convergence(), asng.state().snr_factor)),
            oldest_lease_age: study.oldest_lease_age(now).map(|age| age.as_secs_f64()),
        }
    }
}

impl Snapshot {
    /// Writes a gauge with a value for each study that has one.
    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Figures) -> Option<f64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for study in &self.studies {
            if let Some(value) = value(study) {
                let labels = [("study", study.name.as_str())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// Writes a counter with a value for each study.
    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Figures) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for study in &self.studies {
            let labels = [("study", study.name.as_str())];
            ConstCounter::new(value(study)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        let help = "Updates of theta.";
        self.gauge(to, "asng_study_generation", help, |study| {
            Some(study.progress.generation as f64)
        })?;
        let help = "Convergence of theta, from 0 to 1.";
        self.gauge(to, "asng_study_convergence", help, |study| study.asng.map(|asng| asng.0))?;
        let help = "The paper's Delta (step size = delta_init / Delta).";
        self.gauge(to, "asng_study_delta", help, |study| study.asng.map(|asng| asng.1))?;
        let help = "Reports that wait until steps_per_update of them have arrived.";
        self.gauge(to, "asng_study_pending_reports", help, |study| Some(study.pending as f64))?;
        let help = "Steps in progress: leased, or waiting to be leased again.";
        self.gauge(to, "asng_study_outstanding_steps", help, |study| {
            Some(study.outstanding as f64)
        })?;
        let help = "Time since the oldest lease was given or extended, in seconds.";
        self.gauge(to, "asng_study_oldest_lease_age_seconds", help, |study| {
            study.oldest_lease_age
        })?;
        let help = "Number of applied reports after which the study is finished.";
        self.gauge(to, "asng_study_max_steps", help, |study| Some(study.max_steps as f64))?;
        let help = "Leases that expired.";
        self.counter(to, "asng_study_leases_expired", help, |study| study.progress.expired)?;
        let help = "Losses that were not finite, in reports that counted.";
        self.counter(to, "asng_study_diverged_losses", help, |study| study.progress.diverged)?;
        let help = "Architectures over a limit on costs, in reports that counted.";
        self.counter(to, "asng_study_over_limit", help, |study| study.progress.over_limit)?;

        let help = "Reports by outcome.";
        let name = "asng_study_reports";
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for study in &self.studies {
            for (outcome, count) in [
                ("applied", study.progress.applied),
                ("stale", study.progress.stale),
                ("duplicate", study.progress.duplicate),
            ] {
                let labels = [("study", study.name.as_str()), ("outcome", outcome)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }

        let help = "1 for the state that the study is in; other states have no sample.";
        let mut family = to.encode_descriptor("asng_study_state", help, None, MetricType::Gauge)?;
        for study in &self.studies {
            let labels = [("study", study.name.as_str()), ("state", study.state)];
            ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        }

        let bytes = Some(&Unit::Bytes);
        let help = "Size of the database.";
        let size = to.encode_descriptor("asng_store_size", help, bytes, MetricType::Gauge)?;
        ConstGauge::new(self.store_bytes).encode(size)
    }
}
