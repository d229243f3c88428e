//! Steps, leases and reports: the units of work and the ids by which they are known.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::Costs;
use crate::asng::Architecture;

/// Which study, drawn at random when it is created: 16 hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StudyId(pub u64);

impl fmt::Display for StudyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not the id of a study.
#[derive(Debug, thiserror::Error)]
#[error("not a study id")]
pub struct NotAStudyId;

impl FromStr for StudyId {
    type Err = NotAStudyId;

    fn from_str(text: &str) -> Result<StudyId, NotAStudyId> {
        u64::from_str_radix(text, 16).map(StudyId).map_err(|_| NotAStudyId)
    }
}

/// Number of a step within its study, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u64);

impl StepId {
    /// Beyond every step.
    pub const LAST: StepId = StepId(i64::MAX as u64);
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Proof that a step was handed out: which study's, which step, and the how-manieth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LeaseId {
    /// The study.
    pub study: StudyId,
    /// The step.
    pub step: StepId,
    /// 1 for the first trainer that got the step, 2 for the next, …
    pub attempt: u32,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.study, self.step, self.attempt)
    }
}

/// A text that no controller has given out as a lease id.
#[derive(Debug, thiserror::Error)]
#[error("not a lease id")]
pub struct NotALeaseId;

impl FromStr for LeaseId {
    type Err = NotALeaseId;

    fn from_str(text: &str) -> Result<LeaseId, NotALeaseId> {
        let mut parts = text.splitn(3, '-');
        let mut next = || parts.next().ok_or(NotALeaseId);
        let study = next()?.parse().map_err(|_| NotALeaseId)?;
        let step = StepId(next()?.parse().map_err(|_| NotALeaseId)?);
        let attempt = next()?.parse().map_err(|_| NotALeaseId)?;
        Ok(LeaseId { study, step, attempt })
    }
}

impl From<LeaseId> for String {
    fn from(id: LeaseId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for LeaseId {
    type Error = NotALeaseId;

    fn try_from(text: String) -> Result<LeaseId, NotALeaseId> {
        text.parse()
    }
}

/// The request that a step was handed out for: the same one, sent again, gets the same step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A LeaseStep request with this id.
    Request(String),
    /// A report of the step held under this lease, which asked for the next.
    Report(LeaseId),
}

/// A step that is not reported yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its number.
    pub id: StepId,
    /// Generation it was sampled from.
    pub generation: u64,
    /// Reports that had entered an update when it was sampled.
    pub applied: u64,
    /// Architectures for the weights.
    pub train: Arc<[Architecture]>,
    /// Architectures to be ranked.
    pub rank: Arc<[Architecture]>,
    /// How often it has been handed out.
    pub attempt: u32,
    /// In whose hands it is; nobody's after a lease ran out or was given back.
    pub lease: Option<Lease>,
}

/// A step in a trainer's hands.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Whose.
    pub trainer: String,
    /// The request it answered.
    pub origin: Origin,
    /// Until when.
    pub until: Instant,
}

/// A trainer's report of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The lease under which it had the step.
    pub lease: LeaseId,
    /// The trainer that reports.
    pub trainer: String,
    /// Losses of the step's `rank` architectures, in order.
    pub losses: Vec<f64>,
    /// Their costs; empty for none.
    pub costs: Vec<Costs>,
    /// Further figures, for people.
    pub metrics: BTreeMap<String, f64>,
}

/// The outcome of a step's first report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The report is part of an update of theta.
    Applied,
    /// The report waits for its batch to fill.
    Pending,
    /// The report came too late and changed nothing.
    Stale,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_survive_the_wire_and_nothing_else_parses() {
        let id = LeaseId { study: StudyId(0xbeef), step: StepId(12), attempt: 3 };
        assert_eq!(id.to_string(), "000000000000beef-12-3");
        assert_eq!(id.to_string().parse::<LeaseId>().unwrap(), id);
        for text in ["", "-", "--", "beef", "beef-1", "beef-1-", "beef-1-2-3", "xyz-1-1", "0-1--1"]
        {
            assert!(text.parse::<LeaseId>().is_err(), "{text}");
        }
    }
}
