//! The stored state of a study, without its history.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Costs, NamedMarginal, Selection, Spec, Step, StepId, StudyId, Variable, Violation};
use crate::asng::{self, Architecture};

/// All of a study that a database keeps, but for its history.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which study.
    pub id: StudyId,
    /// Name.
    pub name: String,
    /// As submitted.
    pub spec: Spec,
    /// In use.
    pub seed: u64,
    /// Whose it is.
    pub owner: String,
    /// Where theta is to start, once the variables are known.
    pub start: Vec<NamedMarginal>,
    /// The time of its creation.
    pub created: SystemTime,
    /// State.
    pub state: State,
    /// The time of the last change of state.
    pub state_since: SystemTime,
    /// The time at which the variables became known.
    pub started: Option<SystemTime>,
    /// Time since then in which a controller had it.
    pub elapsed: Duration,
    /// The variables, once known.
    pub variables: Option<Vec<Variable>>,
    /// Theta and its companions, once the variables are known.
    pub asng: Option<asng::State>,
    /// Counters.
    pub progress: Progress,
    /// Best so far.
    pub incumbent: Option<Incumbent>,
    /// The evaluated architectures that are kept for their costs.
    pub selection: Arc<Selection>,
    /// Steps handed out, or to be handed out again.
    pub live: Vec<Step>,
    /// Reports that wait for their batch.
    pub pending: Vec<Pending>,
}

/// Elapsed time of a study that was stored without it, by the wall clock: the best that is known.
pub fn elapsed_since(started: Option<SystemTime>) -> Duration {
    started.and_then(|started| started.elapsed().ok()).unwrap_or_default()
}

/// Where a study is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for a trainer to describe its variables.
    Waiting,
    /// Hands out steps.
    Running,
    /// Hands out nothing; reports count.
    Paused,
    /// A stop rule held.
    Finished(StopRule),
    /// Ended by a person.
    Stopped,
    /// A trainer rejected its settings.
    Failed(Vec<Violation>),
}

impl State {
    /// Returns true if the study has ended for good.
    pub fn has_ended(&self) -> bool {
        matches!(self, State::Finished(_) | State::Stopped | State::Failed(_))
    }

    /// One word for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "WAITING",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Finished(_) => "FINISHED",
            State::Stopped => "STOPPED",
            State::Failed(_) => "FAILED",
        }
    }
}

/// A rule that can finish a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRule {
    /// Reports applied.
    MaxSteps,
    /// Time since the variables became known in which a controller had the study.
    MaxDuration,
    /// Convergence of theta.
    Convergence,
    /// A figure of a report.
    Target,
}

/// Counters that are stored with the study.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Batches of reports applied to theta, also those that left it where it was.
    pub generation: u64,
    /// Reports that entered an update.
    pub applied: u64,
    /// Reports that came too late.
    pub stale: u64,
    /// Repeated reports of a step already reported.
    pub duplicate: u64,
    /// Losses that were not finite, in reports that counted.
    pub diverged: u64,
    /// Architectures over a limit, with finite losses, in reports that counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over_limit: u64,
    /// Leases that ran out.
    pub expired: u64,
    /// Steps sampled so far; the next one has this number plus 1.
    pub sampled: u64,
}

fn is_zero(counter: &u64) -> bool {
    *counter == 0
}

/// The best architecture evaluated so far, of those within the limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incumbent {
    /// The evaluated architecture.
    pub architecture: Architecture,
    /// The best finite loss reported; where costs have weights, that of what ranks first by both.
    pub loss: f64,
    /// The step whose report carried it.
    pub step: StepId,
    /// The costs reported with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub costs: Costs,
}

/// A report that waits for its batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The step.
    pub step: Step,
    /// The trainer that reported.
    pub trainer: String,
    /// Losses of the step's `rank` architectures.
    pub losses: Vec<f64>,
    /// Their costs; empty for none.
    pub costs: Vec<Costs>,
    /// Further figures.
    pub metrics: BTreeMap<String, f64>,
    /// Generation of the study when it arrived, minus the step's.
    pub staleness: u64,
    /// The time of its arrival.
    pub at: SystemTime,
}

/// A step of the past, as the history keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// The step; nobody holds it.
    pub step: Step,
    /// Its report; none if it was closed unreported.
    pub report: Option<PastReport>,
}

/// A report of the past.
#[derive(Clone, Debug, PartialEq)]
pub struct PastReport {
    /// The trainer that reported.
    pub trainer: String,
    /// Losses of the step's `rank` architectures; NaN for whatever was not finite.
    pub losses: Vec<f64>,
    /// Their costs; empty for none.
    pub costs: Vec<Costs>,
    /// Further figures.
    pub metrics: BTreeMap<String, f64>,
    /// Generation of the study when it arrived, minus the step's.
    pub staleness: u64,
    /// The time of its arrival.
    pub at: SystemTime,
    /// The generation that its update made; none if it was stale.
    pub update: Option<u64>,
}
