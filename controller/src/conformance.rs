//! A controller that misbehaves on purpose, to see whether a trainer copes: what `asngctl conformance` runs.
//!
//! The studies are real ones, in a directory that is deleted afterwards. Between them and the trainer stands an
//! `Interposer`, which hands every call of SearchService to a script of scenarios (`scenarios`), one after the other; each plays one fault
//! and judges one rule by what the trainer does next. What must hold all the time is in `invariants`. Only what crosses
//! the wire is judged: not whether losses are any good, nor what a trainer does with its weights.

mod harness;
mod invariants;
mod relay;
mod scenarios;

use std::{io, time::Duration};

use asng_proto::v1::{
    self,
    search_service_server::{self, SearchService, SearchServiceServer},
    study_service_server::{self, StudyService, StudyServiceServer},
};
use asng_serving::{Health, Services, access::Identity, limits::Limits};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Request, Response, Status, service::Routes};

use self::{
    harness::{ENDED, Harness, Over},
    relay::Relay,
    scenarios::{FINISHED, QUEUE_RELEASED, SCENES, Scenario, WARM_UP},
};
use crate::{
    service::{self, Api},
    store::{self, Location, Reader},
    studies::{self, Studies},
};

const LIMITS: Limits = Limits {
    max_message_size: 4 << 20,
    max_connections: 256,
    max_streams: 100,
    request_timeout: Duration::from_secs(60),
    rate_limit: None,
};
/// How long the database may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// The study that is offered, and how it is tested.
pub struct Config {
    /// Name and spec of the study that waits for the trainer. One that creates a study of its own is judged by that.
    pub offer: v1::CreateStudyRequest,
    /// How long a trainer may take for a step before it counts as gone.
    pub timeout: Duration,
    /// Names of the scenarios to play, as [`scenarios`] has them; empty: all but that of the queue that is given back, which the trainer does
    /// not survive. The end of the study is always played, or that one in its place.
    pub scenarios: Vec<String>,
    /// The steps that the trainer has in hand at a time, from 1.
    pub in_hand: usize,
}

/// The verdict on a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The trainer did what it must.
    Passed,
    /// The trainer broke the rule.
    Failed,
    /// There was no occasion to see it.
    NotSeen,
}

/// A rule, and how the trainer kept it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// The behaviour that the rule expects of a trainer.
    pub expected: &'static str,
    /// The verdict on the trainer.
    pub verdict: Verdict,
    /// The fault that was injected, and the reaction of the trainer.
    pub seen: String,
}

/// Why nothing can be said of a trainer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody did anything.
    #[error("no trainer has called within {0:?}; start one against this address")]
    NoTrainer(Duration),
    /// Somebody asked for steps, but there were none for it.
    #[error(
        "the trainer has not taken a step in {0:?}: it asks for study {study:?} and serves the spaces {spaces:?}. Offer a study \
         that it can work on, or have it create one", study = .1.study, spaces = .1.spaces
    )]
    NoStep(Duration, Box<v1::LeaseStepRequest>),
    /// The trainer cannot serve what is offered.
    #[error("the trainer rejects the settings of the study: {0}")]
    Rejected(String),
    /// The study that is to be offered is none.
    #[error("the offered study is invalid: {}", .0.message())]
    Offer(Box<Status>),
    /// The system gives no directory, or no address.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The studies cannot be kept.
    #[error(transparent)]
    Studies(#[from] studies::Error),
    /// Their history cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The scenarios that can be played, in their order: the rule that each judges, and what it expects.
pub fn scenarios() -> impl Iterator<Item = (&'static str, &'static str)> {
    SCENES.iter().chain([&QUEUE_RELEASED]).map(|scenario| (scenario.rule, scenario.expected))
}

/// Plays the scenarios with the trainer that connects to `listener`, calls `say` with each finding as soon as it is there, and
/// returns when the study has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    mut say: impl FnMut(Finding),
) -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let location = Location::Directory(directory.path().into());
    let (studies, ended) = Studies::start(location.clone(), studies::Limits::default()).await?;
    let (_open, closing) = watch::channel(false);
    let api = Api::new(studies, Reader::new(&location)?, closing);
    let wanted =
        |rule: &str| config.scenarios.is_empty() || config.scenarios.iter().any(|s| s == rule);
    let mut offer = config.offer;
    if wanted(WARM_UP) {
        let spec = offer.spec.get_or_insert_default();
        spec.algorithm.get_or_insert_default().warmup_steps = Some(1);
    }
    api.create_study(by_anybody(offer)).await.map_err(|status| Error::Offer(status.into()))?;
    let (calls, script) = mpsc::channel(64);
    let inner = TcpListener::bind("127.0.0.1:0").await?;
    let relay = Relay::open(listener, inner.local_addr()?)?;
    let server = serve(api.clone(), Interposer { calls }, inner).await;
    let mut harness = Harness::new(api, script, relay, config.timeout, config.in_hand);

    let queue_is_wanted = config.scenarios.iter().any(|scenario| scenario == QUEUE_RELEASED.rule);
    let last = if queue_is_wanted { &QUEUE_RELEASED } else { &FINISHED };
    let mut over = None;
    for scenario in SCENES.iter().filter(|scenario| wanted(scenario.rule)).chain([last]) {
        let (verdict, seen) = match &over {
            Some(Over::Silent) => (Verdict::NotSeen, "the trainer had stopped calling".into()),
            Some(Over::Ended) if scenario.rule != FINISHED.rule => (Verdict::NotSeen, ENDED.into()),
            _ => match (scenario.play)(&mut harness).await {
                Ok(played) => played,
                Err(Over::Broken(error)) => return Err(error),
                Err(why) => {
                    let played = harness.cut_short(&why)?;
                    over = Some(why);
                    played
                }
            },
        };
        let Scenario { rule, expected, .. } = *scenario;
        say(Finding { rule, expected, verdict, seen });
    }
    harness.findings().for_each(say);
    server.abort();
    // Its files go with the directory, whether it has let go of them or not.
    let _ = timeout(GRACE, ended).await;
    Ok(())
}

async fn serve(
    api: Api,
    interposer: Interposer,
    listener: TcpListener,
) -> JoinHandle<Result<(), asng_serving::Error>> {
    let routes =
        Routes::new(StudyServiceServer::new(api)).add_service(SearchServiceServer::new(interposer));
    let health =
        Health::new(&[study_service_server::SERVICE_NAME, search_service_server::SERVICE_NAME])
            .await;
    let config = asng_serving::Config {
        tls: None,
        tokens: None,
        limits: LIMITS,
        grace: Duration::ZERO,
        reload: Default::default(),
    };
    let services = Services { routes, health, gate: config.gate(service::RULES) };
    tokio::spawn(asng_serving::run(config, services, listener, std::future::pending()))
}

/// A request to the real services.
fn by_anybody<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Identity::anybody());
    request
}

/// A request of the trainer, and where its answer goes. Dropped unanswered, the reply is lost: UNAVAILABLE.
struct Asked<Q, A> {
    request: Q,
    reply: oneshot::Sender<Result<A, Status>>,
}

type ReportCall = Asked<v1::ReportStepRequest, v1::ReportStepResponse>;

/// A call of the trainer.
enum Call {
    Lease(Asked<v1::LeaseStepRequest, v1::LeaseStepResponse>),
    Describe(Asked<v1::DescribeSpaceRequest, v1::DescribeSpaceResponse>),
    Report(ReportCall),
    Extend(Asked<v1::ExtendLeaseRequest, v1::ExtendLeaseResponse>),
    Release(Asked<v1::ReleaseStepRequest, v1::ReleaseStepResponse>),
}

impl Call {
    /// Returns true if nobody waits for the answer any more: the connection was cut.
    fn is_abandoned(&self) -> bool {
        match self {
            Call::Lease(asked) => asked.reply.is_closed(),
            Call::Describe(asked) => asked.reply.is_closed(),
            Call::Report(asked) => asked.reply.is_closed(),
            Call::Extend(asked) => asked.reply.is_closed(),
            Call::Release(asked) => asked.reply.is_closed(),
        }
    }
}

/// SearchService, as the script has it.
struct Interposer {
    calls: mpsc::Sender<Call>,
}

impl Interposer {
    async fn ask<Q, A>(
        &self,
        request: Request<Q>,
        call: impl FnOnce(Asked<Q, A>) -> Call,
    ) -> Result<Response<A>, Status> {
        let (reply, answer) = oneshot::channel();
        let lost = || Status::unavailable("the response is lost (fault injected by the test)");
        let call = call(Asked { request: request.into_inner(), reply });
        self.calls.send(call).await.map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?.map(Response::new)
    }
}

#[tonic::async_trait]
impl SearchService for Interposer {
    async fn lease_step(
        &self,
        request: Request<v1::LeaseStepRequest>,
    ) -> Result<Response<v1::LeaseStepResponse>, Status> {
        self.ask(request, Call::Lease).await
    }

    async fn describe_space(
        &self,
        request: Request<v1::DescribeSpaceRequest>,
    ) -> Result<Response<v1::DescribeSpaceResponse>, Status> {
        self.ask(request, Call::Describe).await
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        self.ask(request, Call::Report).await
    }

    async fn extend_lease(
        &self,
        request: Request<v1::ExtendLeaseRequest>,
    ) -> Result<Response<v1::ExtendLeaseResponse>, Status> {
        self.ask(request, Call::Extend).await
    }

    async fn release_step(
        &self,
        request: Request<v1::ReleaseStepRequest>,
    ) -> Result<Response<v1::ReleaseStepResponse>, Status> {
        self.ask(request, Call::Release).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_documented() {
        let document = include_str!("../../docs/conformance.md");
        for (rule, _) in scenarios().chain(invariants::RULES).chain([(FINISHED.rule, "")]) {
            assert!(document.contains(&format!("`{rule}`")), "{rule}");
        }
    }
}
