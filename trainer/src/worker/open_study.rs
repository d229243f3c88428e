//! The study that the engine has open: its progress in the log, when its next checkpoint is due, and its summary file. The time is an
//! argument.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use tracing::{info, warn};

use crate::files;

/// Time between two lines of progress in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// The study that the engine has open.
pub(super) struct OpenStudy {
    pub(super) name: String,
    pub(super) study_id: String,
    directory: PathBuf,
    opened: Instant,
    logged: Instant,
    saved: Instant,
    summary: Summary,
}

/// The work of this process on a study: the file `trainer.json` of the study's directory.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Summary {
    /// Steps reported.
    steps: u64,
    /// Seconds from the opening of the study to the last acknowledged report.
    seconds: f64,
    /// Of these, seconds in which the engine computed or saved.
    computing_seconds: f64,
}

impl OpenStudy {
    /// Starts counting for a study whose weights are in `directory`.
    pub(super) fn new(name: String, study_id: String, directory: PathBuf, now: Instant) -> Self {
        let summary = Summary::default();
        OpenStudy { name, study_id, directory, opened: now, logged: now, saved: now, summary }
    }

    /// Counts a reported step that took the engine `computing`, and logs the progress when that is due.
    pub(super) fn count(
        &mut self,
        computing: Duration,
        metrics: &BTreeMap<String, f64>,
        now: Instant,
    ) {
        let summary = &mut self.summary;
        summary.steps += 1;
        summary.computing_seconds += computing.as_secs_f64();
        summary.seconds = (now - self.opened).as_secs_f64();
        if now - self.logged >= PROGRESS_EVERY {
            self.logged = now;
            let steps_per_second = summary.steps as f64 / summary.seconds;
            let train_loss = metrics.get("train_loss");
            info!(steps = summary.steps, steps_per_second, train_loss, "progress");
        }
    }

    /// Returns whether the last checkpoint is `every` old.
    pub(super) fn checkpoint_due(&self, every: Duration, now: Instant) -> bool {
        now - self.saved >= every
    }

    /// Counts a checkpoint that was begun at `started`, written or not.
    pub(super) fn saved(&mut self, started: Instant, now: Instant) {
        self.saved = now;
        self.summary.computing_seconds += (now - started).as_secs_f64();
    }

    /// Writes the summary. A failure is only logged.
    pub(super) fn close(self) {
        let file = self.directory.join("trainer.json");
        let text = serde_json::json!(self.summary).to_string();
        if let Err(error) = files::write(&file, text) {
            warn!("{error}");
        }
        info!(study = self.name, steps = self.summary.steps, "weights saved");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_due_after_a_while_and_count_as_computing_in_the_summary() {
        let directory = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let path = directory.path().to_owned();
        let mut study = OpenStudy::new("s".into(), "1".into(), path, start);
        let every = Duration::from_secs(60);
        study.count(Duration::from_secs(40), &BTreeMap::new(), at(59));
        assert!(!study.checkpoint_due(every, at(59)));
        study.count(Duration::from_secs(1), &BTreeMap::new(), at(60));
        assert!(study.checkpoint_due(every, at(60)));
        study.saved(at(60), at(63));
        assert!(!study.checkpoint_due(every, at(122)));
        study.count(Duration::from_secs(2), &BTreeMap::new(), at(70));
        study.close();
        let text = std::fs::read_to_string(directory.path().join("trainer.json")).unwrap();
        assert_eq!(text, r#"{"computing_seconds":46.0,"seconds":70.0,"steps":3}"#);
    }
}
