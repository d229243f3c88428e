//! What every scene stands on: the calls of the trainer, the real answers to them, and what is watched all the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use asng_proto::v1::{
    self, describe_space_request::Answer, lease_step_response::Next,
    search_service_server::SearchService, study_service_server::StudyService,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tonic::{Response, Status};

use super::{Asked, Call, Error, Finding, Verdict, by_anybody, door::Door};
use crate::{service::Api, study::RETRY_WHEN_IDLE};

/// A scene's verdict, and what was seen.
pub(super) type Played = (Verdict, String);

/// Why a scene could not be played to its end.
pub(super) enum Over {
    /// The trainer has not done anything for too long.
    Silent,
    /// The trainer was told that the study has ended.
    Ended,
    /// There is no point in going on.
    Broken(Error),
}

/// What the trainer was told last.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Told {
    Nothing,
    Describe,
    Step,
    /// To ask again after this time, and when it was told so.
    NoWork(Instant, Duration),
    Finished,
}

pub(super) struct Stage {
    api: Api,
    calls: mpsc::Receiver<Call>,
    pub(super) door: Door,
    timeout: Duration,
    /// In place of the real one, the lease that the trainer is told of.
    pub(super) lease: Option<Duration>,
    pub(super) told: Told,
    /// What the present scene has done to the trainer.
    fault: Option<String>,
    /// When the trainer last did anything of use, or was given something to do.
    busy: Instant,
    asked: Option<v1::LeaseStepRequest>,
    conduct: Conduct,
}

/// What is watched all the time.
#[derive(Default)]
struct Conduct {
    trainer_id: Option<String>,
    other_trainer: Option<String>,
    /// Ids of the requests whose answers have arrived.
    answered: BTreeSet<String>,
    asked_again: Option<String>,
    /// Steps handed out, by study and number.
    steps: BTreeMap<(String, u64), Handed>,
    wrong_losses: Option<String>,
    diverged: Option<String>,
    survived: bool,
    /// It was told that a study has ended.
    ended: bool,
    /// It fell silent, and nothing had been done to it.
    gone: bool,
}

struct Handed {
    ranked: usize,
    done: bool,
}

impl Stage {
    pub(super) fn new(
        api: Api,
        calls: mpsc::Receiver<Call>,
        door: Door,
        timeout: Duration,
    ) -> Stage {
        Stage {
            api,
            calls,
            door,
            timeout,
            lease: None,
            told: Told::Nothing,
            fault: None,
            busy: Instant::now(),
            asked: None,
            conduct: Conduct::default(),
        }
    }

    /// Notes what the scene has done to the trainer: from now on, its silence is an answer.
    pub(super) fn fault(&mut self, what: impl Into<String>) {
        self.fault = Some(what.into());
        self.busy = Instant::now();
    }

    /// The scene's verdict: what was done to the trainer, and `what` it did then.
    pub(super) fn verdict(&mut self, passed: bool, what: impl AsRef<str>) -> Played {
        let verdict = if passed { Verdict::Passed } else { Verdict::Failed };
        let fault = self.fault.take().unwrap_or_default();
        (verdict, format!("{fault}; {}", what.as_ref()))
    }

    /// The verdict of a scene that was not played to its end.
    pub(super) fn cut_short(&mut self, why: &Over) -> Result<Played, Error> {
        let Over::Silent = why else {
            return Ok((Verdict::NotSeen, "the study had ended: give it more steps".into()));
        };
        if self.conduct.steps.is_empty() {
            return Err(match self.asked.take() {
                Some(request) => Error::NoStep(self.timeout, request.into()),
                None => Error::NoTrainer(self.timeout),
            });
        }
        let silence = format!("nothing came of the trainer for {}", seconds(self.timeout));
        if self.fault.is_some() {
            return Ok(self.verdict(false, silence));
        }
        self.conduct.gone = true;
        Ok((Verdict::NotSeen, silence))
    }

    /// The trainer's next call.
    pub(super) async fn next(&mut self) -> Result<Call, Over> {
        if self.told == Told::Finished {
            return Err(Over::Ended);
        }
        let Some(call) = self.next_until(self.busy + self.timeout).await else {
            return Err(Over::Silent);
        };
        if let Call::Describe(Asked { request, .. }) = &call
            && let Some(Answer::Rejection(v1::Rejection { violations })) = &request.answer
        {
            let reasons = violations.iter().map(|v| format!("{}: {}", v.field, v.description));
            let reasons = reasons.collect::<Vec<_>>().join("; ");
            return Err(Over::Broken(Error::Rejected(reasons)));
        }
        Ok(call)
    }

    /// The trainer's next call, if it comes before `end`.
    pub(super) async fn next_until(&mut self, end: Instant) -> Option<Call> {
        let call = timeout_at(end, self.calls.recv()).await.ok()??;
        self.watch(&call);
        Some(call)
    }

    /// The trainer's next report that can count. Other calls get their answers.
    pub(super) async fn report(
        &mut self,
    ) -> Result<Asked<v1::ReportStepRequest, v1::ReportStepResponse>, Over> {
        loop {
            match self.next().await? {
                Call::Report(asked) if self.fits(&asked.request) => return Ok(asked),
                other => drop(self.answer(other).await),
            }
        }
    }

    /// The next step that is handed out.
    pub(super) async fn handed(&mut self) -> Result<v1::Step, Over> {
        loop {
            let call = self.next().await?;
            if let Some(step) = self.answer(call).await {
                return Ok(step);
            }
        }
    }

    /// Answers a call as the controller does. Returns the step that is handed out by this, if any.
    pub(super) async fn answer(&mut self, call: Call) -> Option<v1::Step> {
        match call {
            Call::Lease(Asked { request, reply }) => {
                let id = request.request_id.clone();
                let answer = self.store_lease(request).await;
                let next = answer.as_ref().ok().and_then(|answer| answer.next.clone());
                if reply.send(answer).is_err() {
                    return None;
                }
                self.conduct.answered.insert(id);
                self.tell(next)
            }
            Call::Report(asked) => {
                let answer = self.store(asked.request.clone()).await;
                self.give(asked.reply, answer)
            }
            Call::Describe(Asked { request, reply }) => {
                // Whoever no longer waits needs no answer.
                let _ = reply.send(self.store_description(request).await);
                None
            }
            Call::Extend(Asked { request, reply }) => {
                let answer = plain(self.api.extend_lease(by_anybody(request)).await);
                let lease = self.lease.and_then(|lease| lease.try_into().ok());
                let _ = reply.send(
                    answer.map(|answer| v1::ExtendLeaseResponse { lease: lease.or(answer.lease) }),
                );
                None
            }
            Call::Release(Asked { request, reply }) => {
                let _ = reply.send(plain(self.api.release_step(by_anybody(request)).await));
                None
            }
        }
    }

    /// Has the controller take a report, and returns its answer.
    pub(super) async fn store(
        &mut self,
        request: v1::ReportStepRequest,
    ) -> Result<v1::ReportStepResponse, Status> {
        let mut answer = plain(self.api.report_step(by_anybody(request)).await)?;
        if let Some(v1::LeaseStepResponse { next: Some(next) }) = &mut answer.next {
            self.shorten(next);
        }
        Ok(answer)
    }

    /// Has the controller lease a step, and returns its answer.
    pub(super) async fn store_lease(
        &mut self,
        request: v1::LeaseStepRequest,
    ) -> Result<v1::LeaseStepResponse, Status> {
        let mut answer = plain(self.api.lease_step(by_anybody(request)).await)?;
        if let Some(next) = &mut answer.next {
            self.shorten(next);
        }
        Ok(answer)
    }

    /// Has the controller take a description, and returns its answer.
    pub(super) async fn store_description(
        &mut self,
        request: v1::DescribeSpaceRequest,
    ) -> Result<v1::DescribeSpaceResponse, Status> {
        plain(self.api.describe_space(by_anybody(request)).await)
    }

    /// Gives the trainer the answer to a report. Returns the step that is handed out by this, if any.
    pub(super) fn give(
        &mut self,
        reply: oneshot::Sender<Result<v1::ReportStepResponse, Status>>,
        answer: Result<v1::ReportStepResponse, Status>,
    ) -> Option<v1::Step> {
        let next = answer.as_ref().ok().and_then(|answer| answer.next.clone());
        // If the trainer has hung up, it does not know.
        reply.send(answer).ok()?;
        self.tell(next?.next)
    }

    pub(super) async fn pause(&self, study: &str) {
        let request = v1::PauseStudyRequest { name: study.into() };
        // One that has ended says so to the trainer itself; so below.
        let _ = self.api.pause_study(by_anybody(request)).await;
    }

    pub(super) async fn resume(&self, study: &str) {
        let request = v1::ResumeStudyRequest { name: study.into() };
        let _ = self.api.resume_study(by_anybody(request)).await;
    }

    pub(super) async fn stop(&self, study: &str) {
        let request = v1::StopStudyRequest { name: study.into() };
        let _ = self.api.stop_study(by_anybody(request)).await;
    }

    fn shorten(&self, next: &mut Next) {
        if let (Next::Step(step), Some(lease)) = (next, self.lease) {
            step.lease = lease.try_into().ok();
        }
    }

    /// Notes what the trainer is told to do next.
    fn tell(&mut self, next: Option<Next>) -> Option<v1::Step> {
        self.conduct.ended |= matches!(&next, Some(Next::Finished(_)));
        self.told = match &next {
            None => return None,
            Some(Next::Step(_)) => Told::Step,
            Some(Next::Describe(_)) => Told::Describe,
            Some(Next::Finished(_)) => Told::Finished,
            Some(Next::NoWork(no_work)) => {
                let wait = no_work.retry_after.and_then(|wait| wait.try_into().ok());
                Told::NoWork(Instant::now(), wait.unwrap_or(RETRY_WHEN_IDLE))
            }
        };
        let Some(Next::Step(step)) = next else { return None };
        self.busy = Instant::now();
        let handed = Handed { ranked: step.rank.len(), done: false };
        self.conduct.steps.entry((step.study.clone(), step.step_id)).or_insert(handed);
        Some(step)
    }

    /// Whether a report is of a step that was handed out, and has as many losses as it must.
    fn fits(&self, request: &v1::ReportStepRequest) -> bool {
        let step = self.conduct.steps.get(&(request.study.clone(), request.step_id));
        step.is_some_and(|step| step.ranked == request.losses.len())
    }

    fn watch(&mut self, call: &Call) {
        let trainer = match call {
            Call::Lease(Asked { request, .. }) => &request.trainer_id,
            Call::Describe(Asked { request, .. }) => &request.trainer_id,
            Call::Report(Asked { request, .. }) => &request.trainer_id,
            Call::Extend(_) | Call::Release(_) => "",
        };
        let conduct = &mut self.conduct;
        if !trainer.is_empty() {
            let first = conduct.trainer_id.get_or_insert_with(|| trainer.into());
            if first != trainer {
                conduct.other_trainer = Some(trainer.into());
            }
        }
        conduct.survived |= conduct.diverged.is_some();
        match call {
            Call::Lease(Asked { request, .. }) => {
                if conduct.answered.contains(&request.request_id) {
                    conduct.asked_again = Some(request.request_id.clone());
                }
                self.asked = Some(request.clone());
                return;
            }
            Call::Report(Asked { request, .. }) => {
                let step = conduct.steps.get_mut(&(request.study.clone(), request.step_id));
                let Some(step) = step else { return };
                step.done = true;
                let (losses, expected) = (request.losses.len(), step.ranked);
                if losses != expected {
                    conduct.wrong_losses = Some(format!(
                        "step {} came with {losses} losses for {expected} architectures",
                        request.step_id
                    ));
                    return;
                }
                if request.losses.iter().any(|loss| !loss.is_finite()) {
                    conduct.diverged = Some(format!("step {} had such a loss", request.step_id));
                }
            }
            Call::Release(Asked { request, .. }) => {
                let step = conduct.steps.get_mut(&(request.study.clone(), request.step_id));
                if let Some(step) = step {
                    step.done = true;
                }
            }
            Call::Describe(_) | Call::Extend(_) => {}
        }
        self.busy = Instant::now();
    }

    /// What was found by watching.
    pub(super) fn conduct(&self) -> Vec<Finding> {
        let conduct = &self.conduct;
        let finding = |rule, expected, fault: Option<String>, seen: Option<String>| {
            let (verdict, seen) = match (fault, seen) {
                (Some(fault), _) => (Verdict::Failed, fault),
                (None, Some(seen)) => (Verdict::Passed, seen),
                (None, None) => (Verdict::NotSeen, "there was no occasion".into()),
            };
            Finding { rule, expected, verdict, seen }
        };
        let steps = &conduct.steps;
        let last = steps.iter().filter(|(_, step)| step.done).map(|(key, _)| key).next_back();
        let lost = steps.iter().find(|(key, step)| !step.done && Some(*key) < last);
        let done = steps.values().filter(|step| step.done).count();
        let done = (done > 0).then(|| format!("{done} of {} steps came back", steps.len()));
        vec![
            finding(
                "losses",
                "a report has one loss for each `rank` architecture of its step",
                conduct.wrong_losses.clone(),
                done.clone(),
            ),
            finding(
                "trainer-id",
                "a trainer gives the same trainer_id with every call",
                conduct
                    .other_trainer
                    .as_ref()
                    .map(|other| format!("{:?}, then {other:?}", conduct.trainer_id)),
                conduct.trainer_id.clone(),
            ),
            finding(
                "request-id",
                "each new LeaseStep has a request_id of its own",
                conduct
                    .asked_again
                    .as_ref()
                    .map(|id| format!("{id:?} was sent again after it had been answered")),
                (!conduct.answered.is_empty())
                    .then(|| format!("{} answered", conduct.answered.len())),
            ),
            finding(
                "every-step",
                "each step that is handed out is reported or released, also one that comes in the reply to a report",
                lost.map(|((_, id), _)| format!("step {id} was neither, and later ones were")),
                done.clone(),
            ),
            finding(
                "diverged",
                "an architecture that diverged is reported with a loss that is NaN or infinite, and the trainer goes on",
                None,
                conduct.diverged.clone().filter(|_| conduct.survived),
            ),
            finding(
                "endurance",
                "a trainer works on until the study has ended",
                conduct
                    .gone
                    .then(|| format!("nothing came of the trainer for {}", seconds(self.timeout))),
                conduct.ended.then(|| "it was there at the end".into()),
            ),
        ]
    }
}

fn plain<T>(answer: Result<Response<T>, Status>) -> Result<T, Status> {
    answer.map(Response::into_inner)
}

/// A time in words.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
