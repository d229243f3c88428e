//! The status of the trainer: plain values that the loop writes and that can be read without waiting for a step.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use asng_proto::v1;

use super::set_aside::SetAside;

/// The status of the trainer.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) trainer_id: String,
    /// URL of the controller.
    pub(super) controller: String,
    /// Name of the device that computes.
    pub(super) device: String,
    pub(super) spaces: Vec<String>,
    /// Spaces that the trainer implements but does not serve.
    pub(super) unserved: Vec<v1::UnservedSpace>,
    pub(super) data_sets: Vec<String>,
    pub(super) started: Instant,
    /// True if the trainer was asked to end.
    pub(super) draining: bool,
    /// Studies that the trainer cannot work on for now.
    pub(super) set_aside: SetAside,
    pub(super) open: Option<Open>,
    /// The step that is computed or reported.
    pub(super) step: Option<Step>,
    /// Steps reported.
    pub(super) steps: u64,
}

/// The study that is open.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) study: String,
    pub(super) study_id: String,
    /// Directory of its checkpoints.
    pub(super) directory: PathBuf,
    /// The smallest loss since the study was opened.
    pub(super) best_loss: Option<f64>,
    /// The results of the last step.
    pub(super) last: Option<Last>,
}

/// A step that is computed or reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) id: u64,
    pub(super) since: SystemTime,
}

/// The results of a step.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub(super) losses: Vec<f64>,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) images_per_second: f64,
}

impl State {
    /// Records that a step is begun.
    pub(super) fn take(&mut self, id: u64) {
        self.step = Some(Step { id, since: SystemTime::now() });
    }

    /// Records the results of a step of the open study.
    pub(super) fn computed(&mut self, last: Last) {
        let Some(open) = &mut self.open else { return };
        let losses = last.losses.iter().chain(&open.best_loss).copied();
        open.best_loss = losses.filter(|loss| loss.is_finite()).reduce(f64::min);
        open.last = Some(last);
    }
}
