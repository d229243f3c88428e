//! Who works on a study: what a controller has seen of each trainer since it took the study up.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use super::{Now, Outcome};

/// Trainers that are known; beyond it the one that has been silent for longest is forgotten.
const MAX_TRAINERS: usize = 1000;

/// A trainer, as a study knows it.
#[derive(Clone, Debug)]
pub struct Trainer {
    heard: Instant,
    /// When it last asked for a step, extended its lease, reported or gave a step back.
    pub last_seen: SystemTime,
    /// Its reports that were applied, or wait for their batch.
    pub applied: u64,
    /// Those that came too late.
    pub stale: u64,
    /// Those that were not the first of their step.
    pub duplicate: u64,
    /// Leases of it that ran out.
    pub expired: u64,
    /// Sum over its first reports.
    staleness: u64,
}

impl Trainer {
    /// Mean staleness of its first reports; 0 before any.
    pub fn mean_staleness(&self) -> f64 {
        self.staleness as f64 / (self.applied + self.stale).max(1) as f64
    }
}

/// Trainers by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Trainers(BTreeMap<String, Trainer>);

impl Trainers {
    /// Notes a sign of life.
    pub(super) fn see(&mut self, name: &str, now: Now) {
        self.note(name, now, |_| {});
    }

    /// Notes the first report of a step.
    pub(super) fn reported(&mut self, name: &str, outcome: Outcome, staleness: u64, now: Now) {
        self.note(name, now, |trainer| {
            match outcome {
                Outcome::Applied | Outcome::Pending => trainer.applied += 1,
                Outcome::Stale => trainer.stale += 1,
            }
            trainer.staleness = trainer.staleness.saturating_add(staleness);
        });
    }

    /// Notes a report of a step that had been reported.
    pub(super) fn repeated(&mut self, name: &str, now: Now) {
        self.note(name, now, |trainer| trainer.duplicate += 1);
    }

    /// Notes that a lease ran out, which is no sign of life.
    pub(super) fn expired(&mut self, name: &str) {
        if let Some(trainer) = self.0.get_mut(name) {
            trainer.expired += 1;
        }
    }

    fn note(&mut self, name: &str, now: Now, note: impl FnOnce(&mut Trainer)) {
        if let Some(trainer) = self.0.get_mut(name) {
            (trainer.heard, trainer.last_seen) = (now.monotonic, now.wall);
            return note(trainer);
        }
        if self.0.len() >= MAX_TRAINERS {
            let silent = self.0.iter().min_by_key(|(_, trainer)| trainer.heard);
            if let Some(silent) = silent.map(|(name, _)| name.clone()) {
                self.0.remove(&silent);
            }
        }
        let mut trainer = Trainer {
            heard: now.monotonic,
            last_seen: now.wall,
            applied: 0,
            stale: 0,
            duplicate: 0,
            expired: 0,
            staleness: 0,
        };
        note(&mut trainer);
        self.0.insert(name.into(), trainer);
    }

    /// All of them, the latest heard of first.
    pub(super) fn latest_first(&self) -> Vec<(&str, &Trainer)> {
        let mut all: Vec<_> = self.0.iter().map(|(name, trainer)| (&**name, trainer)).collect();
        all.sort_by_key(|(_, trainer)| std::cmp::Reverse(trainer.heard));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_trainer_that_has_been_silent_for_longest_is_forgotten_first() {
        let mut trainers = Trainers::default();
        let start = Instant::now();
        let at = |second: usize| Now {
            monotonic: start + Duration::from_secs(second as u64),
            wall: SystemTime::UNIX_EPOCH,
        };
        for i in 0..MAX_TRAINERS {
            trainers.see(&format!("t{i}"), at(i));
        }
        trainers.reported("t0", Outcome::Applied, 3, at(MAX_TRAINERS));
        trainers.expired("nobody");
        trainers.see("new", at(MAX_TRAINERS + 1));
        let names: Vec<_> = trainers.latest_first().into_iter().map(|(name, _)| name).collect();
        assert_eq!((names.len(), &names[..2]), (MAX_TRAINERS, &["new", "t0"][..]));
        assert!(!names.contains(&"t1"));
    }
}
