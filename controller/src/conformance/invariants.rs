//! The rules that hold in every scenario.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use asng_proto::v1::{Step, lease_step_response::Next};
use tonic::{Code, Status};

use super::{Asked, Call, Finding, Verdict, harness::seconds};

const LOSSES: &str = "losses";
const VALID: &str = "valid";
const TRAINER_ID: &str = "trainer-id";
const REQUEST_ID: &str = "request-id";
const EVERY_STEP: &str = "every-step";
const DIVERGED: &str = "diverged";
const ENDURANCE: &str = "endurance";

/// The rules, and what they expect.
pub(super) const RULES: [(&str, &str); 7] = [
    (LOSSES, "a report has one loss for each `rank` architecture of its step"),
    (VALID, "no request is refused as INVALID_ARGUMENT"),
    (TRAINER_ID, "the trainer sends the same trainer_id with every call"),
    (REQUEST_ID, "each new LeaseStep has a new request_id"),
    (
        EVERY_STEP,
        "the trainer reports or releases every step that it gets, also one in the response to a report",
    ),
    (DIVERGED, "the trainer continues after a loss that is NaN or infinite"),
    (ENDURANCE, "the trainer continues until the study has ended"),
];

/// The behaviour of a trainer so far.
#[derive(Default)]
pub(super) struct Invariants {
    /// How it broke a rule, for the first time.
    faults: BTreeMap<&'static str, String>,
    trainer_id: Option<String>,
    /// Ids of the requests whose answers have arrived.
    answered: BTreeSet<String>,
    /// By study and number.
    steps: BTreeMap<(String, u64), Handed>,
    /// The step whose report had a loss that is not finite.
    diverged: Option<u64>,
    /// True if any call came after that.
    survived: bool,
    ended: bool,
}

/// A step that was handed out.
struct Handed {
    step: Step,
    /// True if it was reported or released.
    back: bool,
}

impl Invariants {
    fn fault(&mut self, rule: &'static str, how: String) {
        self.faults.entry(rule).or_insert(how);
    }

    /// Watches a call.
    pub(super) fn watch(&mut self, call: &Call) {
        self.survived |= self.diverged.is_some();
        match call {
            Call::Lease(Asked { request, .. }) => {
                self.hear_of(&request.trainer_id);
                if self.answered.contains(&request.request_id) {
                    let id = &request.request_id;
                    self.fault(
                        REQUEST_ID,
                        format!("the request_id {id:?} was used again after its response"),
                    );
                }
            }
            Call::Describe(Asked { request, .. }) => self.hear_of(&request.trainer_id),
            Call::Report(Asked { request, .. }) => {
                self.hear_of(&request.trainer_id);
                let id = request.step_id;
                let Some(step) = self.steps.get_mut(&(request.study.clone(), id)) else { return };
                step.back = true;
                let (losses, ranked) = (request.losses.len(), step.step.rank.len());
                if losses != ranked {
                    let how = format!(
                        "the report of step {id} had {losses} losses for {ranked} architectures"
                    );
                    self.fault(LOSSES, how);
                } else if request.losses.iter().any(|loss| !loss.is_finite()) {
                    self.diverged = Some(id);
                }
            }
            Call::Release(Asked { request, .. }) => {
                let step = self.steps.get_mut(&(request.study.clone(), request.step_id));
                if let Some(step) = step {
                    step.back = true;
                }
            }
            Call::Extend(_) => {}
        }
    }

    fn hear_of(&mut self, trainer_id: &str) {
        let first = self.trainer_id.get_or_insert_with(|| trainer_id.into());
        if first != trainer_id {
            let how = format!("the trainer_id was {first:?}, then {trainer_id:?}");
            self.fault(TRAINER_ID, how);
        }
    }

    /// Notes that a request was refused.
    pub(super) fn refused(&mut self, call: &str, status: &Status) {
        // A wrong number of losses is a rule of its own.
        if status.code() == Code::InvalidArgument && !self.faults.contains_key(LOSSES) {
            self.fault(VALID, format!("{call}: {}", status.message()));
        }
    }

    /// Notes that the answer to this request has arrived.
    pub(super) fn answered(&mut self, request_id: String) {
        self.answered.insert(request_id);
    }

    /// Notes what the trainer is told to do next.
    pub(super) fn told(&mut self, next: &Next) {
        match next {
            Next::Step(step) => {
                let handed = Handed { step: step.clone(), back: false };
                self.steps.entry((step.study.clone(), step.step_id)).or_insert(handed);
            }
            Next::Finished(_) => self.ended = true,
            Next::NoWork(_) | Next::Describe(_) => {}
        }
    }

    /// Notes that the trainer fell silent, when nothing had been done to it.
    pub(super) fn gone(&mut self, timeout: Duration) {
        self.fault(ENDURANCE, format!("the trainer made no call for {}", seconds(timeout)));
    }

    /// Returns true if a step was handed out.
    pub(super) fn has_begun(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Numbers of the steps that are neither reported nor given back.
    pub(super) fn held(&self) -> Vec<u64> {
        let held = self.steps.values().filter(|handed| !handed.back);
        held.map(|handed| handed.step.step_id).collect()
    }

    /// The first step with no architectures to be ranked that is neither reported nor released.
    pub(super) fn unranked(&self) -> Option<Step> {
        let mut out = self.steps.values().filter(|handed| !handed.back).map(|handed| &handed.step);
        out.find(|step| step.rank.is_empty()).cloned()
    }

    /// How many architectures of a step were to be ranked, if it was handed out.
    pub(super) fn ranked(&self, study: &str, step: u64) -> Option<usize> {
        self.steps.get(&(study.into(), step)).map(|handed| handed.step.rank.len())
    }

    /// Returns the findings at the end.
    pub(super) fn findings(mut self) -> impl Iterator<Item = Finding> {
        let count = self.steps.values().filter(|step| step.back).count();
        let last = self.steps.iter().rfind(|(_, step)| step.back).map(|(key, _)| key);
        let lost = self.steps.iter().find(|(key, step)| !step.back && Some(*key) < last);
        if let Some(((_, id), _)) = lost {
            let how = format!("step {id} was neither reported nor released, but later steps were");
            self.fault(EVERY_STEP, how);
        }
        let came_back = (count > 0).then(|| format!("{count} of {} steps", self.steps.len()));
        RULES.into_iter().map(move |(rule, expected)| {
            let kept = match rule {
                LOSSES | EVERY_STEP => came_back.clone(),
                VALID => self.trainer_id.as_ref().map(|_| "no request was refused".into()),
                TRAINER_ID => self.trainer_id.clone(),
                REQUEST_ID => {
                    let count = self.answered.len();
                    (count > 0).then(|| format!("{count} requests were answered"))
                }
                DIVERGED => {
                    let step = self.diverged.filter(|_| self.survived);
                    step.map(|step| format!("step {step} had such a loss"))
                }
                _ => self.ended.then(|| "the trainer worked until the end".into()),
            };
            let (verdict, seen) = match (self.faults.remove(rule), kept) {
                (Some(how), _) => (Verdict::Failed, how),
                (None, Some(kept)) => (Verdict::Passed, kept),
                (None, None) => (Verdict::NotSeen, "the situation did not occur".into()),
            };
            Finding { rule, expected, verdict, seen }
        })
    }
}
