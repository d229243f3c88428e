//! The steps that the trainer holds: the one that is computed, those that wait, and the calls that bring further ones.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    time::{Duration, Instant},
};

use asng_client::Pace;
use asng_proto::v1::{self, lease_step_response::Next};
use tokio::{
    task::JoinSet,
    time::{Instant as Deadline, timeout, timeout_at},
};
use tonic::Status;
use tracing::{Instrument, Span, debug, warn};

use super::controller::{Controller, FAREWELL};

/// Pause after a request for a further step that has failed. The calls that do not run beside a step show the reason.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The steps in hand.
pub(super) struct Steps {
    /// The step that is computed, or whose report was refused.
    pub(super) computing: Option<v1::Step>,
    /// Measured times, from which follows how many steps wait.
    pub(super) pace: Pace,
    controller: Controller,
    /// The time for which the lease of a step that waits is extended.
    limit: Duration,
    /// By study and number: a step that came back has a smaller number than those that were leased after it.
    waiting: BTreeMap<(String, u64), Waiting>,
    calls: JoinSet<Reply>,
    /// The number of calls on their way that ask for a step.
    asking: usize,
    /// True if one of them is a LeaseStep: there is at most one at a time.
    leasing: bool,
    /// The study and number of the step that was reported last, as long as its report is not answered.
    unanswered: Option<(String, u64)>,
    /// The time before which the controller is not asked for further steps.
    ask_again: Instant,
}

/// A step that waits to be computed. Its lease is extended until this is dropped.
struct Waiting {
    step: v1::Step,
    _extending: JoinSet<()>,
}

/// The reply to a call.
pub(super) struct Reply {
    pub(super) content: Content,
    /// The span of the step that the call is about.
    pub(super) span: Span,
    /// The step that it brings.
    step: Option<Waiting>,
}

/// The content of a reply.
pub(super) enum Content {
    Lease(Box<Result<Option<Next>, Status>>),
    Report(Box<Reported>),
}

/// The answer to a report.
pub(super) struct Reported {
    pub(super) request: v1::ReportStepRequest,
    pub(super) study_id: String,
    /// The time for which the engine computed the step.
    pub(super) computing: Duration,
    /// The time from the report to the answer.
    pub(super) took: Duration,
    pub(super) answer: Result<v1::ReportStepResponse, Status>,
}

impl Reply {
    /// Returns what the reply says of the next step.
    pub(super) fn next(&self) -> Option<&Next> {
        match &self.content {
            Content::Lease(answer) => (**answer).as_ref().ok()?.as_ref(),
            Content::Report(reported) => {
                reported.answer.as_ref().ok()?.next.as_ref()?.next.as_ref()
            }
        }
    }
}

impl Steps {
    pub(super) fn new(controller: Controller, limit: Duration, pace: Pace) -> Steps {
        Steps {
            computing: None,
            pace,
            controller,
            limit,
            waiting: BTreeMap::new(),
            calls: JoinSet::new(),
            asking: 0,
            leasing: false,
            unanswered: None,
            ask_again: Instant::now(),
        }
    }

    /// Takes a step that waits.
    pub(super) fn take(&mut self) -> Option<v1::Step> {
        self.waiting.pop_first().map(|(_, waiting)| waiting.step)
    }

    /// Forgets the steps of a study that has ended.
    pub(super) fn forget(&mut self, study: &str) {
        self.waiting.retain(|(of, _), _| of != study);
    }

    /// Asks for a further step of the study whose step is computed, if fewer wait than should.
    pub(super) fn ask_ahead(&mut self, study: &str, set_aside: Vec<v1::SetAsideStudy>) {
        let ahead = self.waiting.len() + self.asking;
        if ahead >= self.pace.ahead() || self.leasing || Instant::now() < self.ask_again {
            return;
        }
        let request = self.controller.lease_request(study.into(), set_aside);
        let controller = self.controller.clone();
        self.call(async move { Content::Lease(Box::new(controller.lease(&request).await)) });
        self.asking += 1;
        self.leasing = true;
    }

    /// Sends a report, which asks for the next step unless `is_last` or enough of them wait.
    pub(super) fn report(
        &mut self,
        mut request: v1::ReportStepRequest,
        study_id: String,
        computing: Duration,
        is_last: bool,
    ) {
        request.lease_next = !is_last && self.waiting.len() + self.asking <= self.pace.ahead();
        let before = self.unanswered.replace((request.study.clone(), request.step_id));
        let before = before.filter(|(study, _)| *study == request.study);
        request.after = before.map_or(0, |(_, step)| step);
        self.asking += usize::from(request.lease_next);
        let controller = self.controller.clone();
        self.call(async move {
            let started = Instant::now();
            let answer = controller.report(&request).await;
            let took = started.elapsed();
            Content::Report(Box::new(Reported { request, study_id, computing, took, answer }))
        });
    }

    fn call(&mut self, call: impl Future<Output = Content> + Send + 'static) {
        let (controller, limit, span) = (self.controller.clone(), self.limit, Span::current());
        let call = async move {
            let mut reply = Reply { content: call.await, span: Span::current(), step: None };
            if let Some(Next::Step(step)) = reply.next() {
                reply.step = Some(Waiting::new(step.clone(), controller, limit));
            }
            reply
        };
        self.calls.spawn(call.instrument(span));
    }

    /// Returns true if a call has no reply yet.
    pub(super) fn is_calling(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Returns a reply that is here.
    pub(super) fn try_reply(&mut self) -> Option<Reply> {
        let reply = self.calls.try_join_next()?;
        Some(self.arrived(reply.expect("a call does not panic, and is not cancelled")))
    }

    /// Waits for a reply; none if no call is on its way. The future may be dropped.
    pub(super) async fn reply(&mut self) -> Option<Reply> {
        let reply = self.calls.join_next().await?;
        Some(self.arrived(reply.expect("a call does not panic, and is not cancelled")))
    }

    /// Waits for a reply until `end`.
    pub(super) async fn reply_until(&mut self, end: Deadline) -> Option<Reply> {
        timeout_at(end, self.reply()).await.ok()?
    }

    fn arrived(&mut self, mut reply: Reply) -> Reply {
        match &reply.content {
            Content::Report(reported) => {
                self.asking -= usize::from(reported.request.lease_next);
                self.pace.answered(reported.took);
                let v1::ReportStepRequest { study, step_id, .. } = &reported.request;
                self.unanswered.take_if(|last| (&last.0, &last.1) == (study, step_id));
            }
            Content::Lease(answer) => {
                self.asking -= 1;
                self.leasing = false;
                if let Err(status) = &**answer {
                    debug!(reason = status.message(), "no further step is leased ahead");
                    self.ask_again = Instant::now() + AFTER_FAILURE;
                }
            }
        }
        if let Some(waiting) = reply.step.take() {
            self.waiting.insert((waiting.step.study.clone(), waiting.step.step_id), waiting);
        }
        if let Some(Next::NoWork(no_work)) = reply.next() {
            self.ask_later(no_work);
        }
        reply
    }

    /// Records that there is no work for a while.
    pub(super) fn ask_later(&mut self, no_work: &v1::NoWork) {
        let wait = no_work.retry_after.and_then(|wait| Duration::try_from(wait).ok());
        self.ask_again = Instant::now() + wait.unwrap_or(Duration::from_secs(1));
    }

    /// Returns the time until the controller may be asked for a step.
    pub(super) fn pause(&self) -> Duration {
        self.ask_again.saturating_duration_since(Instant::now())
    }

    /// Gives back all steps, also those that calls on their way bring, as far as the controller answers within [`FAREWELL`].
    pub(super) async fn give_back(&mut self, reason: &str) {
        let end = Deadline::now() + FAREWELL;
        let mut releases = JoinSet::new();
        loop {
            while let Some(step) = self.computing.take().or_else(|| self.take()) {
                let (controller, reason) = (self.controller.clone(), reason.to_owned());
                releases.spawn(async move { controller.release(step, &reason, end).await });
            }
            if self.reply_until(end).await.is_none() {
                break;
            }
        }
        releases.join_all().await;
        if self.is_calling() {
            warn!(
                "the controller does not answer: steps may stay with this trainer until their leases run out"
            );
        }
        self.calls = JoinSet::new();
        (self.asking, self.leasing, self.unanswered) = (0, false, None);
    }
}

impl Waiting {
    fn new(step: v1::Step, controller: Controller, limit: Duration) -> Waiting {
        let mut extending = JoinSet::new();
        let held = step.clone();
        extending.spawn(async move {
            let extend = controller.keep_lease(&held, Duration::MAX, pending::<()>());
            // A step that waits for so long is left to another trainer.
            let _ = timeout(limit, extend).await;
        });
        Waiting { step, _extending: extending }
    }
}
