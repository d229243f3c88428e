//! What a database keeps of a study, but for its history.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{Spec, Step, StepId, StudyId, Variable, Violation};
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
    /// When it was created.
    pub created: SystemTime,
    /// State.
    pub state: State,
    /// When it last changed.
    pub state_since: SystemTime,
    /// The variables, once known.
    pub variables: Option<Vec<Variable>>,
    /// Theta and its companions, once the variables are known.
    pub asng: Option<asng::State>,
    /// Counters.
    pub progress: Progress,
    /// Best so far.
    pub incumbent: Option<Incumbent>,
    /// Steps handed out, or to be handed out again.
    pub live: Vec<Step>,
    /// Reports that wait for their batch.
    pub pending: BTreeMap<StepId, Pending>,
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
    Finished,
    /// Ended by a person.
    Stopped,
    /// A trainer rejected its settings.
    Failed(Vec<Violation>),
}

impl State {
    /// Whether the study has ended for good.
    pub fn has_ended(&self) -> bool {
        matches!(self, State::Finished | State::Stopped | State::Failed(_))
    }

    /// One word for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "WAITING",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Finished => "FINISHED",
            State::Stopped => "STOPPED",
            State::Failed(_) => "FAILED",
        }
    }
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
    /// Losses that were not finite, in reports that counted.
    pub diverged: u64,
    /// Leases that ran out.
    pub expired: u64,
    /// Steps sampled so far; the next one has this number plus 1.
    pub sampled: u64,
}

/// The best architecture evaluated so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incumbent {
    /// What was evaluated.
    pub architecture: Architecture,
    /// The smallest finite loss reported.
    pub loss: f64,
    /// The step whose report carried it.
    pub step: StepId,
}

/// A report that waits for its batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The step's ranked architectures.
    pub architectures: Vec<Architecture>,
    /// Their losses.
    pub losses: Vec<f64>,
}
