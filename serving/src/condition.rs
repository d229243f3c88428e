//! Conditions that may last, such as a full disk: the log has one line when such a condition begins, one for each further
//! reason, and one when it is over.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use tracing::{error, info};

/// Time without a failure after which [`Condition::record`] takes a condition for over.
const QUIET: Duration = Duration::from_secs(10);
/// Reasons of one condition that are logged.
const MAX_REASONS: usize = 16;

/// A condition that may last.
pub struct Condition {
    name: &'static str,
    /// None while it does not hold.
    holds: Option<Holds>,
}

struct Holds {
    /// Those that have been logged.
    reasons: Vec<String>,
    /// Index of the present reason.
    present: usize,
    since: Instant,
    /// Time of the last failure.
    last: Instant,
}

impl Condition {
    /// Creates a condition that does not hold. `name` says what fails while it holds: "cannot accept connections".
    pub const fn new(name: &'static str) -> Condition {
        Condition { name, holds: None }
    }

    /// Records that the condition holds, for `reason`.
    pub fn begin(&mut self, reason: impl Display) {
        let (name, reason, now) = (self.name, reason.to_string(), Instant::now());
        let holds = self.holds.get_or_insert_with(|| Holds {
            reasons: Vec::new(),
            present: 0,
            since: now,
            last: now,
        });
        holds.last = now;
        match holds.reasons.iter().position(|known| *known == reason) {
            Some(known) => holds.present = known,
            None if holds.reasons.len() < MAX_REASONS => {
                error!("{name}: {reason}");
                holds.present = holds.reasons.len();
                holds.reasons.push(reason);
            }
            None => {}
        }
    }

    /// Records that the condition is over.
    pub fn end(&mut self) {
        if let Some(Holds { since, .. }) = self.holds.take() {
            info!(seconds = since.elapsed().as_secs(), "over: {}", self.name);
        }
    }

    /// Records the result of a try. Successes end the condition when nothing has failed for ten seconds: where some tries
    /// fail and others succeed, the log stays short.
    pub fn record<T>(&mut self, result: Result<T, impl Display>) {
        match result {
            Err(reason) => self.begin(reason),
            Ok(_) if self.holds.as_ref().is_some_and(|holds| holds.last.elapsed() >= QUIET) => {
                self.end();
            }
            Ok(_) => {}
        }
    }

    /// Returns the name and the present reason, while the condition holds.
    pub fn describe(&self) -> Option<String> {
        let Holds { reasons, present, .. } = self.holds.as_ref()?;
        Some(format!("{}: {}", self.name, reasons[*present]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_has_its_last_reason_until_it_is_over() {
        let mut condition = Condition::new("cannot write");
        assert_eq!(condition.describe(), None);
        condition.begin("the disk is full");
        condition.begin("it is read-only");
        assert_eq!(condition.describe().unwrap(), "cannot write: it is read-only");
        condition.begin("the disk is full");
        assert_eq!(condition.describe().unwrap(), "cannot write: the disk is full");
        assert_eq!(condition.holds.as_ref().unwrap().reasons.len(), 2, "each is logged once");
        condition.end();
        assert_eq!(condition.describe(), None);
    }

    #[test]
    fn a_success_between_failures_does_not_end_a_condition() {
        let mut condition = Condition::new("cannot read");
        condition.record(Err::<(), _>("damaged"));
        condition.record(Ok::<_, String>(()));
        assert!(condition.describe().is_some());
        condition.holds.as_mut().unwrap().last = Instant::now() - QUIET;
        condition.record(Ok::<_, String>(()));
        assert_eq!(condition.describe(), None);
    }

    #[test]
    fn reasons_without_end_do_not_fill_memory() {
        let mut condition = Condition::new("cannot read");
        for reason in 0..100 {
            condition.begin(reason);
        }
        assert_eq!(condition.holds.unwrap().reasons.len(), MAX_REASONS);
    }
}
