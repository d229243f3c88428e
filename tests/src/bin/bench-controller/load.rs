//! The load: trainers that compute nothing and report at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use asng_proto::v1::{
    self, lease_step_response::Next, search_service_client::SearchServiceClient,
    study_service_client::StudyServiceClient,
};
use asng_tests::{categoricals, report};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 8;

/// How long a phase goes on.
#[derive(Clone, Copy)]
pub(crate) enum Length {
    For(Duration),
    Reports(u64),
}

/// The result of a phase.
pub(crate) struct Phase {
    reports: u64,
    elapsed: Duration,
    micros: Histogram<u64>,
}

impl Phase {
    pub(crate) fn per_second(&self) -> f64 {
        self.reports as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency that `percent` of the requests did not exceed.
    pub(crate) fn millis(&self, percent: f64) -> f64 {
        self.micros.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// A number of clients, each with a step in its hands.
pub(crate) struct Load(Vec<Client>);

struct Client {
    search: SearchServiceClient<Channel>,
    trainer_id: String,
    step: v1::Step,
}

impl Load {
    /// Connects a client for each of `studies`, which may repeat, and leases its first step.
    pub(crate) async fn start(address: SocketAddr, studies: &[String]) -> anyhow::Result<Load> {
        let mut clients = Vec::new();
        let mut channel = None;
        for (i, study) in studies.iter().enumerate() {
            if i % CLIENTS_PER_CONNECTION == 0 {
                channel = Some(connect(address).await?);
            }
            // Unwrap safety: the first client has just set it.
            let mut search = SearchServiceClient::new(channel.clone().unwrap());
            let trainer_id = format!("trainer-{i}");
            let request = v1::LeaseStepRequest {
                study: study.clone(),
                trainer_id: trainer_id.clone(),
                ..Default::default()
            };
            let Some(Next::Step(step)) = search.lease_step(request).await?.into_inner().next else {
                bail!("study {study} gives no step");
            };
            clients.push(Client { search, trainer_id, step });
        }
        Ok(Load(clients))
    }

    /// Reports as fast as each client gets its answers.
    pub(crate) async fn run(&mut self, length: Length) -> anyhow::Result<Phase> {
        let (end, reports) = match length {
            Length::For(time) => (Some(Instant::now() + time), u64::MAX),
            Length::Reports(reports) => (None, reports),
        };
        let left = Arc::new(AtomicU64::new(reports));
        let start = Instant::now();
        let mut running = JoinSet::new();
        for mut client in self.0.drain(..) {
            let left = left.clone();
            let go_on = move || {
                end.is_none_or(|end| Instant::now() < end)
                    && left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
            };
            running.spawn(async move {
                let mut micros = histogram()?;
                while go_on() {
                    let sent = Instant::now();
                    client.report().await?;
                    micros.record(sent.elapsed().as_micros() as u64)?;
                }
                anyhow::Ok((client, micros))
            });
        }
        let mut phase = Phase { reports: 0, elapsed: Duration::ZERO, micros: histogram()? };
        while let Some(ended) = running.join_next().await {
            let (client, micros) = ended??;
            self.0.push(client);
            phase.micros.add(micros)?;
        }
        phase.elapsed = start.elapsed();
        phase.reports = phase.micros.len();
        Ok(phase)
    }
}

impl Client {
    async fn report(&mut self) -> anyhow::Result<v1::ReportStepResponse> {
        let request = report(&self.step, &self.trainer_id);
        let mut answer = self.search.report_step(request).await?.into_inner();
        ensure!(answer.outcome() == v1::ReportOutcome::Applied, "{:?}", answer.outcome());
        match answer.next.take().and_then(|next| next.next) {
            Some(Next::Step(step)) => self.step = step,
            other => bail!("no step, but {other:?}"),
        }
        Ok(answer)
    }
}

/// A reply to a report as the controller at `address` gives it, with the next step.
pub(crate) async fn a_reply(
    address: SocketAddr,
    study: &str,
) -> anyhow::Result<v1::ReportStepResponse> {
    let mut load = Load::start(address, &[study.into()]).await?;
    let client = load.0.first_mut().context("one client")?;
    let answer = client.report().await?;
    let next = v1::LeaseStepResponse { next: Some(Next::Step(client.step.clone())) };
    Ok(v1::ReportStepResponse { next: Some(next), ..answer })
}

/// Creates a study of the paper's size: 40 variables of 5 choices.
pub(crate) async fn create(
    studies: &mut StudyServiceClient<Channel>,
    name: &str,
) -> anyhow::Result<()> {
    create_of(studies, name, categoricals(40)).await
}

/// Creates a study of these variables.
pub(crate) async fn create_of(
    studies: &mut StudyServiceClient<Channel>,
    name: &str,
    variables: Vec<v1::Variable>,
) -> anyhow::Result<()> {
    let spec = v1::StudySpec {
        variables,
        algorithm: Some(v1::AlgorithmSettings {
            seed: Some(1),
            // So that every report counts, however long its client was not scheduled.
            max_staleness: Some(1000),
            ..Default::default()
        }),
        stop: Some(v1::StopRules { max_steps: 1_000_000_000, ..Default::default() }),
        lease: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    let request =
        v1::CreateStudyRequest { name: name.into(), spec: Some(spec), ..Default::default() };
    studies.create_study(request).await?;
    Ok(())
}

/// A connection, made now.
pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("cannot connect to {address}"))
}

/// Of microseconds, up to a minute, to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}
