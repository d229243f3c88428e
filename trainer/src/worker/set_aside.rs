//! Studies that this trainer cannot work on for now. Pure: the time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use asng_proto::v1;

/// Pause after the first failure of a study; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The number of studies that a request for a step may name.
const MAX_NAMED: usize = 100;
/// The number of characters of a reason.
const MAX_REASON: usize = 1000;

/// Failed studies by id, each with its present pause.
#[derive(Clone, Debug, Default)]
pub(super) struct SetAside(BTreeMap<String, Failures>);

#[derive(Clone, Debug)]
struct Failures {
    study: String,
    reason: String,
    pause: Duration,
    /// Time at which the study is tried again.
    until: Instant,
}

impl SetAside {
    /// Sets a study aside, for longer with each failure in a row. Returns the pause.
    pub(super) fn add(
        &mut self,
        study: &str,
        study_id: &str,
        reason: &str,
        now: Instant,
    ) -> Duration {
        // Studies that have long not failed again, most of them gone.
        self.0.retain(|_, failures| now < failures.until + LONGEST_PAUSE);
        let before = self.0.get(study_id).map(|failures| failures.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| LONGEST_PAUSE.min(2 * pause));
        let reason = reason.chars().take(MAX_REASON).collect();
        let failures = Failures { study: study.into(), reason, pause, until: now + pause };
        self.0.insert(study_id.into(), failures);
        pause
    }

    /// Forgets the failures of a study, which works.
    pub(super) fn clear(&mut self, study_id: &str) {
        self.0.remove(study_id);
    }

    /// Returns the studies that are set aside at `now`, longest remaining pause first, as many as a request may name.
    pub(super) fn at(&self, now: Instant) -> Vec<v1::SetAsideStudy> {
        let mut all: Vec<_> = self.0.iter().filter(|(_, failures)| now < failures.until).collect();
        all.sort_by_key(|(_, failures)| std::cmp::Reverse(failures.until));
        let message = |(study_id, failures): (&String, &Failures)| v1::SetAsideStudy {
            study: failures.study.clone(),
            study_id: study_id.clone(),
            reason: failures.reason.clone(),
            retry_after: (failures.until - now).try_into().ok(),
        };
        all.into_iter().take(MAX_NAMED).map(message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(set_aside: &SetAside, now: Instant) -> Vec<String> {
        set_aside.at(now).into_iter().map(|study| study.study).collect()
    }

    #[test]
    fn a_study_is_tried_again_after_pauses_that_grow_until_it_works() {
        let mut set_aside = SetAside::default();
        let mut now = Instant::now();
        for seconds in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            let pause = set_aside.add("s", "1", "its checkpoints are damaged", now);
            assert_eq!(pause, Duration::from_secs(seconds));
            assert_eq!(names(&set_aside, now + pause - Duration::from_millis(1)), ["s"]);
            now += pause;
            assert!(names(&set_aside, now).is_empty());
        }
        set_aside.clear("1");
        assert_eq!(set_aside.add("s", "1", "again", now), FIRST_PAUSE);
        let listed = &set_aside.at(now)[0];
        assert_eq!((&*listed.study_id, &*listed.reason), ("1", "again"));
        assert_eq!(listed.retry_after.unwrap().seconds, 5);
    }

    #[test]
    fn a_request_names_those_that_are_set_aside_for_longest() {
        let mut set_aside = SetAside::default();
        let now = Instant::now();
        set_aside.add("often", "often", "x", now);
        set_aside.add("often", "often", &"x".repeat(5000), now);
        for i in 0..200 {
            set_aside.add(&format!("s{i}"), &format!("{i}"), "x", now);
        }
        let listed = set_aside.at(now);
        assert_eq!((listed.len(), &*listed[0].study), (MAX_NAMED, "often"));
        assert_eq!(listed[0].reason.len(), MAX_REASON);
        set_aside.add("later", "later", "x", now + 2 * LONGEST_PAUSE);
        assert_eq!(set_aside.0.len(), 1, "what has not failed for long is forgotten");
    }
}
