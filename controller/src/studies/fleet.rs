//! The registry of trainers: what each trainer that this controller has heard of last said of itself. It is kept in memory
//! alone, from the controller's start on.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use super::StudyRegistry;
use crate::study::{Now, RecentTrainers, Study, StudyId, TrainerStats};

/// Bounds the memory for what trainers say of themselves, and the size of a list of all of them, which has to fit into one
/// message; beyond it the trainer that has been silent for longest is forgotten.
const MAX_TEXT: usize = 3 << 20;

/// The facts that a trainer reports about itself when it asks for a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Announcement {
    /// Names of the spaces that it serves.
    pub spaces: Vec<String>,
    /// Names of the data sets that it has; empty if it says nothing about data sets.
    pub data_sets: Vec<String>,
    /// Spaces that it implements but cannot serve.
    pub unserved: Vec<Unserved>,
    /// Studies that it cannot work on for now.
    pub set_aside: Vec<SetAside>,
}

/// A space that a trainer implements but cannot serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Unserved {
    /// Name of the space.
    pub space: String,
    /// The reason, for people.
    pub reason: String,
}

/// A study that a trainer cannot work on for now.
#[derive(Clone, Debug, PartialEq)]
pub struct SetAside {
    /// Name of the study.
    pub study: String,
    /// Id of the study, which is what counts.
    pub id: StudyId,
    /// The reason, for people.
    pub reason: String,
    /// Time until the trainer tries the study again, counted from the announcement.
    pub retry_after: Option<Duration>,
}

impl Announcement {
    /// Returns about how many bytes it takes, in memory and in a message.
    fn size(&self) -> usize {
        /// Of an entry, beside its texts.
        const ENTRY: usize = 32;
        let names = self.spaces.iter().chain(&self.data_sets).map(|name| name.len() + ENTRY);
        let unserved = self.unserved.iter().map(|u| u.space.len() + u.reason.len() + ENTRY);
        let set_aside = self.set_aside.iter().map(|s| s.study.len() + s.reason.len() + 2 * ENTRY);
        names.chain(unserved).chain(set_aside).sum()
    }
}

/// A trainer that this controller has heard of.
#[derive(Clone, Debug, Default)]
struct Trainer {
    /// Of its last LeaseStep.
    announcement: Announcement,
    /// Time of that request; none before the first.
    announced: Option<Instant>,
    /// The study whose step it was last handed, until it gives the step back or is told that the study has ended.
    study: Option<StudyId>,
}

/// All trainers that this controller has heard of, up to 1000.
#[derive(Default)]
pub(super) struct Fleet(RecentTrainers<Trainer>);

impl Fleet {
    /// Notes a sign of life.
    pub(super) fn hear(&mut self, trainer: &str, now: Now) {
        self.0.hear(trainer, now);
    }

    /// Notes that a step of `study` was handed to the trainer.
    pub(super) fn handed(&mut self, trainer: &str, study: StudyId) {
        if let Some(trainer) = self.0.get_mut(trainer) {
            trainer.study = Some(study);
        }
    }

    /// Notes that the trainer no longer works on `study`.
    pub(super) fn left(&mut self, trainer: &str, study: StudyId) {
        if let Some(trainer) = self.0.get_mut(trainer) {
            trainer.study.take_if(|current| *current == study);
        }
    }

    /// Notes that the trainer was started anew.
    pub(super) fn started_anew(&mut self, trainer: &str) {
        if let Some(trainer) = self.0.get_mut(trainer) {
            trainer.study = None;
        }
    }

    /// Returns whether the trainer said with its last request for a step that it has set `study` aside.
    pub(super) fn has_set_aside(&self, trainer: &str, study: StudyId) -> bool {
        let trainer = self.0.get(trainer);
        trainer.is_some_and(|trainer| trainer.announcement.set_aside.iter().any(|s| s.id == study))
    }

    fn announce(&mut self, name: &str, announcement: Announcement, now: Now) {
        let trainer = self.0.hear(name, now);
        trainer.study.take_if(|study| announcement.set_aside.iter().any(|s| s.id == *study));
        trainer.announced = Some(now.monotonic);
        if trainer.announcement == announcement {
            return;
        }
        trainer.announcement = announcement;
        let mut size: usize = self.0.iter().map(|(.., trainer)| trainer.announcement.size()).sum();
        while size > MAX_TEXT
            && let Some(forgotten) = self.0.forget_oldest()
        {
            size -= forgotten.announcement.size();
        }
    }
}

/// A trainer of the registry, as far as whoever asks may see it.
pub struct FleetTrainer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Time of its last request.
    pub last_seen: SystemTime,
    /// Names of the spaces that it serves.
    pub spaces: &'a [String],
    /// Names of the data sets that it has; empty if it says nothing about data sets.
    pub data_sets: &'a [String],
    /// Spaces that it implements but cannot serve.
    pub unserved: &'a [Unserved],
    /// Studies that it has set aside, and the time from now until it tries each again.
    pub set_aside: Vec<(&'a SetAside, Option<Duration>)>,
    /// Name of the study whose step it was last handed and has not given back or seen end.
    pub study: Option<&'a str>,
}

impl StudyRegistry {
    /// Notes what a trainer says of itself.
    pub fn announce(&mut self, trainer: &str, announcement: Announcement, now: Now) {
        self.fleet.announce(trainer, announcement, now);
    }

    /// Notes a sign of life of a trainer.
    pub fn hear(&mut self, trainer: &str, now: Now) {
        self.fleet.hear(trainer, now);
    }

    /// Returns all trainers of the registry, the latest heard of first. Only studies in scope are named; a caller who may
    /// see all studies is also told of those set aside that this controller does not have.
    pub fn fleet(&self, now: Now) -> Vec<FleetTrainer<'_>> {
        let studies: HashMap<_, &Study> = self.all().map(|study| (study.id(), study)).collect();
        let sees_all = self.scope == Default::default();
        let seen = |(name, last_seen, trainer)| {
            let (name, last_seen, trainer): (_, _, &Trainer) = (name, last_seen, trainer);
            let Announcement { spaces, data_sets, unserved, set_aside } = &trainer.announcement;
            let passed = trainer.announced.map_or(Duration::ZERO, |announced| {
                now.monotonic.saturating_duration_since(announced)
            });
            let set_aside = set_aside.iter().filter(|s| sees_all || studies.contains_key(&s.id));
            let left = |s: &SetAside| s.retry_after.map(|after| after.saturating_sub(passed));
            let study = trainer.study.and_then(|id| studies.get(&id));
            FleetTrainer {
                name,
                last_seen,
                spaces,
                data_sets,
                unserved,
                set_aside: set_aside.map(|s| (s, left(s))).collect(),
                study: study.filter(|study| !study.state().has_ended()).map(|study| study.name()),
            }
        };
        self.fleet.0.latest_first().into_iter().map(seen).collect()
    }

    /// Returns what each trainer did, summed over the studies in scope that know it.
    pub fn trainer_stats(&self) -> BTreeMap<&str, TrainerStats> {
        let mut sums = BTreeMap::<_, TrainerStats>::new();
        for (name, stats) in self.all().flat_map(Study::trainer_stats) {
            sums.entry(name).or_default().add(stats);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainers_that_say_much_are_forgotten_before_memory_grows() {
        let mut fleet = Fleet::default();
        let start = Instant::now();
        let at = |second| Now {
            monotonic: start + Duration::from_secs(second),
            wall: SystemTime::UNIX_EPOCH,
        };
        let unserved = Unserved { space: "photos".into(), reason: "x".repeat(1000) };
        let talks = Announcement { unserved: vec![unserved; 100], ..Announcement::default() };
        fleet.hear("quiet", at(0));
        for i in 1..=40 {
            fleet.announce(&i.to_string(), talks.clone(), at(i));
        }
        let names: Vec<_> = fleet.0.latest_first().into_iter().map(|(name, ..)| name).collect();
        let kept = MAX_TEXT / talks.size();
        assert_eq!((names.len(), names[0], names[kept - 1]), (kept, "40", "11"));
        // Repeated and withdrawn reasons take no further room.
        for second in 41..60 {
            fleet.announce("40", talks.clone(), at(second));
        }
        fleet.announce("40", Announcement::default(), at(60));
        fleet.announce("new", talks, at(61));
        assert_eq!(fleet.0.latest_first().len(), kept + 1);
    }
}
