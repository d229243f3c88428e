//! What the trainer is doing, as plain values that can be read without asking the engine or waiting for a step. The loop writes
//! them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use crate::set_aside::SetAside;

/// What the trainer is doing.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) trainer_id: String,
    /// URL of the controller it talks to.
    pub(crate) controller: String,
    /// What computes.
    pub(crate) device: String,
    pub(crate) spaces: Vec<&'static str>,
    pub(crate) started: Instant,
    /// Whether it was asked to end.
    pub(crate) draining: bool,
    /// Studies that it cannot work on for now.
    pub(crate) set_aside: SetAside,
    pub(crate) open: Option<Open>,
    /// The step in hand.
    pub(crate) step: Option<Step>,
    /// Steps reported.
    pub(crate) steps: u64,
}

/// The study that is open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) study: String,
    pub(crate) study_id: String,
    /// Of its checkpoints.
    pub(crate) directory: PathBuf,
    /// The smallest loss since it was opened.
    pub(crate) best_loss: Option<f64>,
    /// What the last step gave.
    pub(crate) last: Option<Last>,
}

/// A step in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) id: u64,
    pub(crate) since: SystemTime,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    pub(crate) losses: Vec<f64>,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) images_per_second: f64,
}

impl State {
    /// Notes that a step is in hand.
    pub(crate) fn take(&mut self, id: u64) {
        self.step = Some(Step { id, since: SystemTime::now() });
    }

    /// Notes what a step of the open study gave.
    pub(crate) fn computed(&mut self, last: Last) {
        let Some(open) = &mut self.open else { return };
        let losses = last.losses.iter().chain(&open.best_loss).copied();
        open.best_loss = losses.filter(|loss| loss.is_finite()).reduce(f64::min);
        open.last = Some(last);
    }
}
