//! The base of every scenario: the calls of the trainer, and the real answers to them.

use std::time::Duration;

use asng_proto::v1::{
    self, describe_space_request::Answer, lease_step_response::Next,
    search_service_server::SearchService, study_service_server::StudyService,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tonic::{Code, Response, Status};

use super::{
    Asked, Call, Error, Finding, ReportCall, Verdict, by_anybody, invariants::Invariants,
    relay::Relay,
};
use crate::{service::Api, study::RETRY_WHEN_IDLE};

/// The lease that the trainer is told of, in place of its study's: the shortest that a study may have. The real one runs
/// on, so that a step stays with a trainer that is slow.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// The study that no trainer of its space can serve, and how many variables it has in their place.
const UNSERVED: &str = "conformance-unserved";
const UNSERVED_VARIABLES: usize = 5;

/// Why a scenario was not played.
pub(super) const ENDED: &str = "the study had ended: set a higher number of steps";

/// A scenario's verdict, and what was seen.
pub(super) type Played = (Verdict, String);

/// Why a scenario could not be played to its end.
pub(super) enum Over {
    /// The trainer has not done anything for too long.
    Silent,
    /// The trainer was told that the study has ended.
    Ended,
    /// There is no point in going on.
    Broken(Error),
}

/// The last answer to the trainer.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Told {
    Nothing,
    Describe,
    Step,
    /// To ask again after this time, and when it was told so.
    NoWork(Instant, Duration),
    Finished,
}

pub(super) struct Harness {
    api: Api,
    calls: mpsc::Receiver<Call>,
    pub(super) relay: Relay,
    timeout: Duration,
    /// The steps that the trainer has in hand at a time.
    pub(super) in_hand: usize,
    pub(super) told: Told,
    /// The fault that the current scenario has injected.
    fault: Option<String>,
    /// The time at which the trainer last did something useful, or was given something to do.
    busy: Instant,
    asked: Option<v1::LeaseStepRequest>,
    invariants: Invariants,
}

impl Harness {
    pub(super) fn new(
        api: Api,
        calls: mpsc::Receiver<Call>,
        relay: Relay,
        timeout: Duration,
        in_hand: usize,
    ) -> Harness {
        Harness {
            api,
            calls,
            relay,
            timeout,
            in_hand,
            told: Told::Nothing,
            fault: None,
            busy: Instant::now(),
            asked: None,
            invariants: Invariants::default(),
        }
    }

    /// Notes what the scenario has done to the trainer: from now on, its silence is an answer.
    pub(super) fn fault(&mut self, what: impl Into<String>) {
        self.fault = Some(what.into());
        self.busy = Instant::now();
    }

    /// The scenario's verdict: what was done to the trainer, and `what` it did then.
    pub(super) fn verdict(&mut self, passed: bool, what: impl AsRef<str>) -> Played {
        let verdict = if passed { Verdict::Passed } else { Verdict::Failed };
        let fault = self.fault.take().unwrap_or_default();
        (verdict, format!("{fault}; {}", what.as_ref()))
    }

    /// The verdict of a scenario that was not played to its end.
    pub(super) fn cut_short(&mut self, why: &Over) -> Result<Played, Error> {
        let Over::Silent = why else {
            return Ok((Verdict::NotSeen, ENDED.into()));
        };
        if !self.invariants.has_begun() {
            return Err(match self.asked.take() {
                Some(request) => Error::NoStep(self.timeout, request.into()),
                None => Error::NoTrainer(self.timeout),
            });
        }
        let silence = format!("the trainer made no call for {}", seconds(self.timeout));
        if self.fault.is_some() {
            return Ok(self.verdict(false, silence));
        }
        self.invariants.gone(self.timeout);
        Ok((Verdict::NotSeen, silence))
    }

    /// The trainer's next call, also if that rejects a study.
    pub(super) async fn next_of_any_kind(&mut self) -> Result<Call, Over> {
        if self.told == Told::Finished {
            return Err(Over::Ended);
        }
        self.next_until(self.busy + self.timeout).await.ok_or(Over::Silent)
    }

    /// The trainer's next call.
    pub(super) async fn next(&mut self) -> Result<Call, Over> {
        let call = self.next_of_any_kind().await?;
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
        let call = loop {
            let call = timeout_at(end, self.calls.recv()).await.ok()??;
            if !call.is_abandoned() {
                break call;
            }
        };
        self.invariants.watch(&call);
        match &call {
            Call::Lease(asked) => self.asked = Some(asked.request.clone()),
            Call::Report(asked) if !self.fits(&asked.request) => {}
            _ => self.busy = Instant::now(),
        }
        Some(call)
    }

    /// The trainer's next report that can count. Other calls get their answers.
    pub(super) async fn report(&mut self) -> Result<ReportCall, Over> {
        loop {
            match self.next().await? {
                Call::Report(asked) if self.fits(&asked.request) => return Ok(asked),
                other => drop(self.answer(other).await),
            }
        }
    }

    /// The trainer's next report that can count, and the controller's answer to it. A report that arrived before its turn is refused,
    /// and comes again.
    pub(super) async fn stored_report(
        &mut self,
    ) -> Result<(ReportCall, Result<v1::ReportStepResponse, Status>), Over> {
        loop {
            let asked = self.report().await?;
            match self.really_report(asked.request.clone()).await {
                Err(status) if status.code() == Code::Unavailable => {
                    self.give(asked.reply, Err(status));
                }
                answer => return Ok((asked, answer)),
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
                let answer = self.really_lease(request).await;
                let next = answer.as_ref().ok().and_then(|answer| answer.next.clone());
                // If the trainer has hung up, it does not know.
                reply.send(answer).ok()?;
                self.invariants.answered(id);
                self.tell(next?)
            }
            Call::Report(asked) => {
                let answer = self.really_report(asked.request.clone()).await;
                self.give(asked.reply, answer)
            }
            Call::Describe(Asked { request, reply }) => {
                // Whoever no longer waits needs no answer; so below.
                let _ = reply.send(self.really_describe(request).await);
                None
            }
            Call::Extend(Asked { request, reply }) => {
                let answer = self.api.extend_lease(by_anybody(request)).await;
                let shortened = v1::ExtendLeaseResponse { lease: LEASE.try_into().ok() };
                let _ = reply.send(self.noted("ExtendLease", answer).map(|_| shortened));
                None
            }
            Call::Release(Asked { request, reply }) => {
                let answer = self.api.release_step(by_anybody(request)).await;
                let _ = reply.send(self.noted("ReleaseStep", answer));
                None
            }
        }
    }

    /// Answers a request for a step of any study with one that no trainer of its space can work on. A request that names a study
    /// gets no answer, so that it comes again.
    pub(super) async fn hand_out_unserved(
        &mut self,
        mut asked: Asked<v1::LeaseStepRequest, v1::LeaseStepResponse>,
    ) -> Result<Option<v1::Step>, Over> {
        let space = asked.request.spaces.first().filter(|_| asked.request.study.is_empty());
        let Some(space) = space.cloned() else { return Ok(None) };
        let variable = |i: usize| {
            let choices = vec!["a".into(), "b".into()];
            let kind = v1::variable::Kind::Categorical(v1::Categorical { choices });
            v1::Variable { name: format!("unserved {i}"), kind: Some(kind) }
        };
        let spec = v1::StudySpec {
            space,
            variables: (0..UNSERVED_VARIABLES).map(variable).collect(),
            stop: Some(v1::StopRules { max_steps: 1, ..Default::default() }),
            ..Default::default()
        };
        let request = v1::CreateStudyRequest {
            name: UNSERVED.into(),
            spec: Some(spec),
            replace_failed: false,
        };
        let created = self.api.create_study(by_anybody(request)).await;
        created.map_err(|status| Over::Broken(Error::Offer(status.into())))?;
        asked.request.study = UNSERVED.into();
        Ok(self.answer(Call::Lease(asked)).await)
    }

    /// Has the controller take a report, and returns its answer.
    pub(super) async fn really_report(
        &mut self,
        request: v1::ReportStepRequest,
    ) -> Result<v1::ReportStepResponse, Status> {
        let answer = self.api.report_step(by_anybody(request)).await;
        let mut answer = self.noted("ReportStep", answer)?;
        answer.next.as_mut().map(shorten);
        Ok(answer)
    }

    /// Has the controller take a report that is not this trainer's; whether it did.
    pub(super) async fn taken_from_another(&self, request: v1::ReportStepRequest) -> bool {
        self.api.report_step(by_anybody(request)).await.is_ok()
    }

    /// Has the controller lease a step, and returns its answer.
    pub(super) async fn really_lease(
        &mut self,
        request: v1::LeaseStepRequest,
    ) -> Result<v1::LeaseStepResponse, Status> {
        let answer = self.api.lease_step(by_anybody(request)).await;
        let mut answer = self.noted("LeaseStep", answer)?;
        shorten(&mut answer);
        Ok(answer)
    }

    /// Has the controller take a description, and returns its answer.
    pub(super) async fn really_describe(
        &mut self,
        request: v1::DescribeSpaceRequest,
    ) -> Result<v1::DescribeSpaceResponse, Status> {
        let answer = self.api.describe_space(by_anybody(request)).await;
        self.noted("DescribeSpace", answer)
    }

    fn noted<T>(&mut self, call: &str, answer: Result<Response<T>, Status>) -> Result<T, Status> {
        answer.map(Response::into_inner).inspect_err(|status| self.invariants.refused(call, status))
    }

    /// Gives the trainer the answer to a report. Returns the step that is handed out by this, if any.
    pub(super) fn give(
        &mut self,
        reply: oneshot::Sender<Result<v1::ReportStepResponse, Status>>,
        answer: Result<v1::ReportStepResponse, Status>,
    ) -> Option<v1::Step> {
        let next = answer.as_ref().ok().and_then(|answer| answer.next.clone());
        reply.send(answer).ok()?;
        self.tell(next?.next?)
    }

    pub(super) async fn pause(&self, study: &str) {
        let request = v1::PauseStudyRequest { name: study.into() };
        // A study that has ended says so to the trainer itself; so below.
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

    /// Notes what the trainer is told to do next. Returns the step, if it is one.
    fn tell(&mut self, next: Next) -> Option<v1::Step> {
        self.invariants.told(&next);
        match next {
            Next::Step(step) => {
                self.told = Told::Step;
                self.busy = Instant::now();
                return Some(step);
            }
            Next::Describe(_) => self.told = Told::Describe,
            Next::Finished(_) => self.told = Told::Finished,
            Next::NoWork(v1::NoWork { retry_after }) => {
                let wait = retry_after.and_then(|wait| wait.try_into().ok());
                self.told = Told::NoWork(Instant::now(), wait.unwrap_or(RETRY_WHEN_IDLE));
            }
        }
        None
    }

    /// Numbers of the steps that are neither reported nor given back.
    pub(super) fn held(&self) -> Vec<u64> {
        self.invariants.held()
    }

    /// A step in the trainer's hands that has no architectures to be ranked.
    pub(super) fn unranked(&self) -> Option<v1::Step> {
        self.invariants.unranked()
    }

    /// Returns true if a report is of a step that was handed out, and has the right number of losses.
    fn fits(&self, report: &v1::ReportStepRequest) -> bool {
        self.invariants.ranked(&report.study, report.step_id) == Some(report.losses.len())
    }

    /// Returns the findings about the trainer as a whole.
    pub(super) fn findings(self) -> impl Iterator<Item = Finding> {
        self.invariants.findings()
    }
}

/// Puts the short lease in place of the study's.
fn shorten(answer: &mut v1::LeaseStepResponse) {
    if let Some(Next::Step(step)) = &mut answer.next {
        step.lease = LEASE.try_into().ok();
    }
}

/// A time in words.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
