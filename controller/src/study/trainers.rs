//! Trainers that were heard of recently, and what a study knows of each since its controller took it up.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use super::{Now, Outcome};

/// Trainers that are known; beyond it the one that has been silent for longest is forgotten.
const MAX_TRAINERS: usize = 1000;

/// A value for each of the trainers that were heard of most recently, by name.
#[derive(Clone, Debug, Default)]
pub struct RecentTrainers<T>(BTreeMap<String, (Now, T)>);

impl<T: Default> RecentTrainers<T> {
    /// Notes a sign of life of a trainer, and returns its value. Allocates nothing for a trainer that is known.
    pub fn hear(&mut self, name: &str, now: Now) -> &mut T {
        if !self.0.contains_key(name) {
            if self.0.len() >= MAX_TRAINERS {
                self.forget_oldest();
            }
            self.0.insert(name.into(), (now, T::default()));
        }
        // Unwrap safety: it is known, or has just been inserted.
        let (heard, value) = self.0.get_mut(name).unwrap();
        *heard = now;
        value
    }

    /// Forgets the trainer that has been silent for longest, and returns its value.
    pub fn forget_oldest(&mut self) -> Option<T> {
        let oldest = self.0.iter().min_by_key(|(_, (heard, _))| heard.monotonic);
        let name = oldest.map(|(name, _)| name.clone())?;
        self.0.remove(&name).map(|(_, value)| value)
    }

    /// Returns the value of a trainer, if it is known.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.get(name).map(|(_, value)| value)
    }

    /// Returns the value of a trainer, if it is known. This is no sign of life.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.0.get_mut(name).map(|(_, value)| value)
    }

    /// Iterates over names, times of the last sign of life and values, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, SystemTime, &T)> {
        self.0.iter().map(|(name, (heard, value))| (&**name, heard.wall, value))
    }

    /// Returns names, times of the last sign of life and values, the latest heard of first.
    pub fn latest_first(&self) -> Vec<(&str, SystemTime, &T)> {
        let mut all: Vec<(Instant, _)> = self
            .0
            .iter()
            .map(|(name, (heard, value))| (heard.monotonic, (&**name, heard.wall, value)))
            .collect();
        all.sort_by_key(|(heard, _)| std::cmp::Reverse(*heard));
        all.into_iter().map(|(_, trainer)| trainer).collect()
    }
}

/// Counters of what a trainer did for a study, or for several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainerStats {
    /// Its reports that were applied, or wait for their batch.
    pub applied: u64,
    /// Its reports that came too late.
    pub stale: u64,
    /// Its reports that were not the first of their step.
    pub duplicate: u64,
    /// Its leases that ran out.
    pub expired: u64,
    /// Sum of the staleness of its first reports.
    staleness: u64,
}

impl TrainerStats {
    /// Returns the mean staleness of its first reports; 0 before any.
    pub fn mean_staleness(&self) -> f64 {
        self.staleness as f64 / (self.applied + self.stale).max(1) as f64
    }

    /// Adds what it did for another study.
    pub fn add(&mut self, other: &TrainerStats) {
        self.applied += other.applied;
        self.stale += other.stale;
        self.duplicate += other.duplicate;
        self.expired += other.expired;
        self.staleness = self.staleness.saturating_add(other.staleness);
    }

    /// Counts the first report of a step.
    pub(super) fn reported(&mut self, outcome: Outcome, staleness: u64) {
        match outcome {
            Outcome::Applied | Outcome::Pending => self.applied += 1,
            Outcome::Stale => self.stale += 1,
        }
        self.staleness = self.staleness.saturating_add(staleness);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_trainer_that_has_been_silent_for_longest_is_forgotten_first() {
        let mut trainers = RecentTrainers::<TrainerStats>::default();
        let start = Instant::now();
        let at = |second: usize| Now {
            monotonic: start + Duration::from_secs(second as u64),
            wall: SystemTime::UNIX_EPOCH,
        };
        for i in 0..MAX_TRAINERS {
            trainers.hear(&format!("t{i}"), at(i));
        }
        trainers.hear("t0", at(MAX_TRAINERS)).reported(Outcome::Applied, 3);
        assert!(trainers.get_mut("nobody").is_none());
        trainers.hear("new", at(MAX_TRAINERS + 1));
        let names: Vec<_> = trainers.latest_first().into_iter().map(|(name, ..)| name).collect();
        assert_eq!((names.len(), &names[..2]), (MAX_TRAINERS, &["new", "t0"][..]));
        assert!(!names.contains(&"t1"));
        assert_eq!(trainers.get("t0").unwrap().mean_staleness(), 3.0);
    }
}
