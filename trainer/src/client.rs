//! The trainer's loop: lease a step, have it computed, report it with a request for the next; and what keeps this going
//! when the network, the controller, a person, a disk or a study intervenes. What is wrong with one study ends work on that study
//! alone: its step is given back, and it is set aside for a while.
//!
//! The loop may be dropped at any point. What it had in hand is noted, so that it can be given back.

use std::{
    collections::BTreeMap,
    fs,
    future::{Future, pending},
    io, mem,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use asng_client::{Connection, Options, explain, insist};
use asng_proto::v1::{
    self, describe_space_request::Answer, lease_step_response::Next,
    search_service_client::SearchServiceClient,
};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::{
    describe,
    engine::{self, Engine},
    files,
    first_step::FirstSteps,
    metrics::{self, Phase},
    service::{self, Api},
    serving::{self, Doors},
    set_aside::SetAside,
    state::{self, Last, State},
    study,
    work_dir::WorkDir,
};

/// How long giving back a step may take when the trainer ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// Processes that the first step of a study may kill in a row before the study is set aside at the start of the next one.
const KILLED: u32 = 2;
/// Time between two lines of progress in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// Time between two looks at whether the last weights are written.
const WRITTEN_EVERY: Duration = Duration::from_secs(1);

/// What a person decides about the loop.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the controller is reached.
    pub controller: Options,
    /// The study to work on until it ends; without one, any study of a space that this trainer serves, for ever.
    pub study: Option<String>,
    /// Directory of the trainer's files; one trainer at a time.
    pub work_dir: PathBuf,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Time after which a step counts as stuck.
    pub step_limit: Duration,
}

/// Ready on SIGINT or SIGTERM.
pub fn asked_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => info!("interrupted"),
            _ = terminate.recv() => info!("terminated"),
        }
    })
}

/// Works until the study has ended, `stop` is ready, or somebody asks through `doors` for an end; then finishes and reports the step in
/// hand, so that the weights are those of the steps that were reported, and saves them. Through `doors` it is asked what it does.
pub async fn serve(
    config: Config,
    engine: engine::Config,
    doors: Doors,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let work_dir = WorkDir::open(&config.work_dir)?;
    let trainer_id = work_dir.trainer_id().to_owned();
    let connection = config.controller.connect()?;
    info!(trainer_id, controller = connection.url(), "trainer starts");
    tokio::pin!(stop);
    let device = engine::device_name(engine.device);
    let engine = tokio::select! {
        engine = Engine::start(engine) => engine?,
        () = &mut stop => return Ok(()),
    };
    let state = watch::Sender::new(State {
        trainer_id: trainer_id.clone(),
        controller: connection.url(),
        device,
        spaces: engine.spaces().to_vec(),
        started: Instant::now(),
        draining: false,
        set_aside: SetAside::default(),
        open: None,
        step: None,
        steps: 0,
    });
    let first_steps = FirstSteps::read(&config.work_dir);
    let (drain, end) = (CancellationToken::new(), CancellationToken::new());
    let health = serving::health().await;
    let api = Api { engine: engine.clone(), state: state.subscribe(), drain: drain.clone() };
    let served = tokio::spawn(serving::serve(doors, health.clone(), api, end.clone()));
    let mut trainer = Trainer {
        search: SearchServiceClient::new(connection.clone()),
        run: rand::random(),
        requests: 0,
        hand: Hand::Empty,
        open: None,
        first_steps,
        work_dir,
        stopping: CancellationToken::new(),
        config,
        trainer_id,
        connection,
        engine,
        state,
    };
    trainer.set_aside_killers();
    let (stopping, state) = (trainer.stopping.clone(), trainer.state.clone());
    let result = tokio::select! {
        result = trainer.work() => result,
        () = async {
            tokio::select! {
                () = stop => {}
                () = drain.cancelled() => {}
            }
            info!("draining: the step in hand is finished and reported");
            health.not_serving().await;
            state.send_modify(|state| state.draining = true);
            stopping.cancel();
            pending::<()>().await;
        } => Ok(()),
    };
    trainer.give_back("the trainer ends").await;
    // The weights are worth keeping however the loop ended.
    let closed = trainer.close().await.map_err(Fault::into_inner);
    let written = trainer.engine.finish().await;
    let written =
        written.context("the newest weights are lost, and only older checkpoints are left");
    let result = result.and(closed).and(written);
    end.cancel();
    // Those who asked meanwhile are answered.
    if let Ok(Err(error)) = served.await {
        error!("serving has failed: {error:#}");
    }
    result
}

/// The loop's state.
struct Trainer {
    config: Config,
    trainer_id: String,
    connection: Connection,
    search: SearchServiceClient<Connection>,
    engine: Engine,
    /// Makes the request ids of this process its own.
    run: u64,
    requests: u64,
    hand: Hand,
    open: Option<Open>,
    first_steps: FirstSteps,
    work_dir: WorkDir,
    stopping: CancellationToken,
    /// What others see of it.
    state: watch::Sender<State>,
}

/// What the controller is waiting for from this trainer.
enum Hand {
    Empty,
    Computing(v1::Step),
    /// The reply may bring, or may already have brought, the next step.
    Reporting(v1::ReportStepRequest),
}

/// The reason why a step is not reported.
enum Fault {
    /// The fault is the study's: other studies can be worked on.
    Study(anyhow::Error),
    /// The trainer cannot go on.
    Trainer(anyhow::Error),
}

impl Fault {
    fn into_inner(self) -> anyhow::Error {
        match self {
            Fault::Study(error) | Fault::Trainer(error) => error,
        }
    }
}

impl From<engine::Error> for Fault {
    fn from(error: engine::Error) -> Fault {
        if error.is_fatal() { Fault::Trainer(error.into()) } else { Fault::Study(error.into()) }
    }
}

/// The study that the engine has open.
struct Open {
    name: String,
    study_id: String,
    directory: PathBuf,
    started: Instant,
    logged: Instant,
    saved: Instant,
    summary: Summary,
}

/// What this process did for a study, in the file `trainer.json` of the study's directory.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Summary {
    /// Steps reported.
    steps: u64,
    /// Seconds from the first step in hand to the last report acknowledged.
    seconds: f64,
    /// Of these, seconds in which the engine computed or saved.
    computing_seconds: f64,
}

impl Trainer {
    /// Until there is nothing to do any more, or it is to stop. Computing is never interrupted.
    async fn work(&mut self) -> anyhow::Result<()> {
        let stopping = self.stopping.clone();
        while let Some(next) = stopping.run_until_cancelled(self.lease()).await {
            let mut next = next?;
            while let Some(Next::Step(step)) = next {
                if stopping.is_cancelled() {
                    return Ok(());
                }
                let (study, study_id) = (step.study.clone(), step.study_id.clone());
                let span = info_span!("step", study, step = step.step_id);
                next = match self.step(step).instrument(span).await {
                    Ok(next) => next,
                    Err(Fault::Study(error)) if self.config.study.is_none() => {
                        self.put_aside(&study, &study_id, &error).await?;
                        None
                    }
                    Err(fault) => return Err(fault.into_inner()),
                };
            }
            match next {
                Some(Next::Finished(finished)) => {
                    let study = finished.study.unwrap_or_default();
                    let state = study.state().as_str_name();
                    info!(study = study.name, state, "study has ended");
                    self.close().await.map_err(Fault::into_inner)?;
                    if self.config.study.is_some() {
                        stopping.run_until_cancelled(self.written()).await;
                        return Ok(());
                    }
                }
                Some(Next::Describe(describe)) => {
                    stopping.run_until_cancelled(self.describe(describe)).await.transpose()?;
                }
                Some(Next::NoWork(v1::NoWork { retry_after })) => {
                    let wait = retry_after.and_then(|wait| Duration::try_from(wait).ok());
                    let wait = sleep(wait.unwrap_or(Duration::from_secs(1)));
                    stopping.run_until_cancelled(wait).await;
                }
                Some(Next::Step(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Asks for a step: of the study that is open, so that its weights are of use, or else of the one that was named.
    async fn lease(&mut self) -> anyhow::Result<Option<Next>> {
        self.requests += 1;
        let open = self.open.as_ref().map(|open| &open.name);
        let request = v1::LeaseStepRequest {
            study: open.or(self.config.study.as_ref()).cloned().unwrap_or_default(),
            trainer_id: self.trainer_id.clone(),
            spaces: self.spaces(),
            request_id: format!("{:016x}-{}", self.run, self.requests),
            fresh_start: self.requests == 1,
            set_aside: self.state.borrow().set_aside.at(Instant::now()),
            unserved: service::unserved(&self.engine),
            data_sets: Vec::new(),
        };
        let search = &self.search;
        match insist(&request, |request| {
            let mut search = search.clone();
            async move { counted(search.lease_step(request).await) }
        })
        .await
        {
            Ok(answer) => Ok(answer.next),
            Err(status) if status.code() == Code::NotFound && open.is_some() => {
                warn!(study = request.study, "study is gone");
                self.close().await.map_err(Fault::into_inner)?;
                Ok(None)
            }
            Err(status) => {
                let error = anyhow!("the controller gives no step: {}", self.explain(&status));
                match &self.open {
                    Some(open)
                        if self.config.study.is_none()
                            && status.code() != Code::Unauthenticated =>
                    {
                        let (study, study_id) = (open.name.clone(), open.study_id.clone());
                        self.put_aside(&study, &study_id, &error).await?;
                        Ok(None)
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// Sets a study aside: gives its step back, saves and closes it.
    async fn put_aside(
        &mut self,
        study: &str,
        study_id: &str,
        error: &anyhow::Error,
    ) -> anyhow::Result<()> {
        let reason = format!("{error:#}");
        self.failed(study, study_id, &reason);
        self.first_steps.survived(study_id);
        self.give_back(&reason).await;
        self.close().await.map_err(Fault::into_inner)
    }

    /// Notes that a study cannot be worked on for a while.
    fn failed(&mut self, study: &str, study_id: &str, reason: &str) {
        let mut pause = Duration::ZERO;
        self.state.send_modify(|state| {
            pause = state.set_aside.add(study, study_id, reason, Instant::now());
        });
        warn!(study, ?pause, "study is set aside: {reason}");
    }

    /// Sets the studies aside whose first step has killed process after process, for longer the more there were.
    fn set_aside_killers(&mut self) {
        if self.config.study.is_some() {
            return;
        }
        for (study_id, begun) in self.first_steps.studies().clone() {
            let (study, times) = (begun.study, begun.times);
            if times < KILLED {
                continue;
            }
            let reason = format!(
                "{times} processes of this trainer ended in its first step, which may need more memory than there is"
            );
            self.state.send_modify(|state| {
                for _ in KILLED..times {
                    state.set_aside.add(&study, &study_id, &reason, Instant::now());
                }
            });
            self.failed(&study, &study_id, &reason);
        }
    }

    /// Waits until no weights are left in memory alone.
    async fn written(&self) {
        while !self.engine.checkpoint_problems().is_empty() {
            sleep(WRITTEN_EVERY).await;
        }
    }

    /// Computes and reports a step. Returns what is next, if the controller has said so.
    async fn step(&mut self, step: v1::Step) -> Result<Option<Next>, Fault> {
        self.hand = Hand::Computing(step.clone());
        self.state.send_modify(|state| state.take(step.step_id));
        if !self.open_study(&step).await? {
            self.give_back("the study is rejected").await;
            return Ok(None);
        }
        let outcome = self.compute(&step).await?;
        metrics::images(outcome.images);
        self.state.send_modify(|state| {
            state.computed(Last {
                losses: outcome.losses.clone(),
                metrics: outcome.metrics.clone(),
                images_per_second: outcome.images as f64
                    / outcome.computing.as_secs_f64().max(f64::MIN_POSITIVE),
            });
        });
        let request = v1::ReportStepRequest {
            study: step.study,
            step_id: step.step_id,
            lease_id: step.lease_id,
            trainer_id: self.trainer_id.clone(),
            spaces: self.spaces(),
            data_sets: Vec::new(),
            losses: outcome.losses,
            costs: outcome.costs.iter().map(costs).collect(),
            metrics: outcome.metrics,
            lease_next: !self.stopping.is_cancelled(),
        };
        self.hand = Hand::Reporting(request.clone());
        let (search, started) = (&self.search, Instant::now());
        let report = insist(&request, |request| {
            let mut search = search.clone();
            async move { counted(search.report_step(request).await) }
        });
        let stopping = &self.stopping;
        let patience = async {
            stopping.cancelled().await;
            sleep(FAREWELL).await;
        };
        let answer = tokio::select! {
            answer = report => answer,
            () = patience => return Ok(None),
        };
        self.hand = Hand::Empty;
        self.state.send_modify(|state| state.step = None);
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::NotFound => {
                warn!(reason = status.message(), "report is of no use any more");
                self.close().await?;
                return Ok(None);
            }
            Err(status) => {
                let v1::ReportStepRequest { study, step_id, lease_id, .. } = request;
                self.hand =
                    Hand::Computing(v1::Step { study, step_id, lease_id, ..Default::default() });
                let error = anyhow!("the controller refuses a report: {}", self.explain(&status));
                return Err(match status.code() {
                    Code::Unauthenticated => Fault::Trainer(error),
                    _ => Fault::Study(error),
                });
            }
        };
        metrics::phase(Phase::Report, started.elapsed());
        metrics::reported(answer.outcome());
        self.state.send_modify(|state| state.steps += 1);
        debug!(outcome = answer.outcome().as_str_name(), losses = ?request.losses, "step reported");
        let next = answer.next.and_then(|next| next.next);
        if let Some(Next::Step(step)) = &next {
            self.hand = Hand::Computing(step.clone());
        }
        if let Some(open) = &self.open {
            self.state.send_modify(|state| state.set_aside.clear(&open.study_id));
            self.first_steps.survived(&open.study_id);
        }
        self.work_dir.keep().map_err(Fault::Trainer)?;
        self.count(outcome.computing, &request.metrics).await?;
        if let Some(describe) = answer.describe {
            let stopping = self.stopping.clone();
            let described = stopping.run_until_cancelled(self.describe(describe)).await;
            described.transpose().map_err(Fault::Trainer)?;
        }
        Ok(next)
    }

    /// Has the engine compute a step, and keeps its lease alive meanwhile.
    async fn compute(&self, step: &v1::Step) -> Result<engine::Outcome, engine::Error> {
        let values = |architectures: &[v1::Architecture]| {
            architectures.iter().map(|architecture| architecture.values.clone()).collect()
        };
        let work = self.engine.step(engine::Step {
            batch: step.step_id.saturating_sub(1),
            train: values(&step.train),
            rank: values(&step.rank),
            progress: step.applied as f64 / step.max_steps.max(1) as f64,
        });
        let lease = step.lease.and_then(|lease| Duration::try_from(lease).ok());
        let period = lease.unwrap_or(Duration::from_secs(60)).max(Duration::from_millis(3)) / 3;
        let mut search = self.search.clone();
        let mut extend = interval_at(tokio::time::Instant::now() + period, period);
        let limit = sleep(self.config.step_limit);
        tokio::pin!(work, limit);
        let mut stuck = false;
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = &mut limit, if !stuck => {
                    stuck = true;
                    let architectures = (values(&step.train), values(&step.rank));
                    error!(?architectures, limit = ?self.config.step_limit, "step is stuck: its lease runs out, for another trainer");
                }
                _ = extend.tick(), if !stuck => {
                    let request = v1::ExtendLeaseRequest {
                        study: step.study.clone(),
                        step_id: step.step_id,
                        lease_id: step.lease_id.clone(),
                    };
                    let extended = timeout(period, search.extend_lease(request)).await;
                    // The report still counts if it is the first.
                    if let Ok(Err(status)) = extended.map(counted) {
                        warn!(reason = status.message(), "lease cannot be extended");
                    }
                }
            }
        }
    }

    /// Answers what a study's variables are, or why its settings cannot be served.
    async fn describe(&mut self, describe: v1::Describe) -> anyhow::Result<()> {
        let v1::Describe { study, space, settings, study_id, .. } = describe;
        let Some(answer) = describe::describe(&space, &settings) else {
            self.failed(
                &study,
                &study_id,
                &format!("this trainer does not know the space {space:?}"),
            );
            return Ok(());
        };
        match self.send_description(&study, answer).await {
            Ok(()) => Ok(()),
            Err(status)
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) =>
            {
                bail!("the controller takes no description: {}", self.explain(&status))
            }
            // Another trainer was faster, a person has stopped or deleted the study, or the controller cannot use it.
            Err(status) => {
                let reason = format!("description refused: {}", self.explain(&status));
                self.failed(&study, &study_id, &reason);
                Ok(())
            }
        }
    }

    /// Describes or rejects a study.
    async fn send_description(&self, study: &str, answer: Answer) -> Result<(), Status> {
        let request = v1::DescribeSpaceRequest {
            study: study.into(),
            trainer_id: self.trainer_id.clone(),
            answer: Some(answer),
        };
        let reply = insist(&request, |request| {
            let mut search = self.search.clone();
            async move { counted(search.describe_space(request).await) }
        })
        .await?;
        let described = reply.study.unwrap_or_default();
        // Rejected by this trainer, or by the controller for what its rules need.
        if described.state() == v1::StudyState::Failed {
            let reasons =
                described.failure.iter().map(|v| format!("{}: {}", v.field, v.description));
            let reason = reasons.collect::<Vec<_>>().join("; ");
            warn!(study, reason, "study rejected");
        } else {
            info!(study, "study described");
        }
        Ok(())
    }

    /// Has the engine open the study of a step. Returns false if the study is not what its space is, and is rejected.
    async fn open_study(&mut self, step: &v1::Step) -> Result<bool, Fault> {
        if self.open.as_ref().is_some_and(|open| open.study_id == step.study_id) {
            return Ok(true);
        }
        self.close().await?;
        let study = study::get(&self.connection, &step.study).await.map_err(Fault::Study)?;
        let space = study::space(&study).map_err(Fault::Study)?;
        let differences = describe::differences(&study, &space);
        if let Some(first) = differences.first() {
            let reason = format!("{}: {}", first.field, first.description);
            let rejection = describe::rejection(differences);
            let rejected = self.send_description(&study.name, rejection).await;
            return match rejected {
                Ok(()) => Ok(false),
                // Others have worked on it.
                Err(_) => Err(Fault::Study(anyhow!(reason))),
            };
        }
        self.first_steps.begin(&study.name, &study.study_id);
        let directory = study::directory(&self.config.work_dir, &study);
        let continued = self.engine.open(space, directory.clone()).await?;
        info!(study = study.name, directory = %directory.display(), continued, "study opened");
        let (v1::Study { name, study_id, .. }, now) = (study, Instant::now());
        let opened = state::Open {
            study: name.clone(),
            study_id: study_id.clone(),
            directory: directory.clone(),
            best_loss: None,
            last: None,
        };
        self.state.send_modify(|state| state.open = Some(opened));
        let summary = Summary::default();
        self.open = Some(Open {
            name,
            study_id,
            directory,
            started: now,
            logged: now,
            saved: now,
            summary,
        });
        Ok(true)
    }

    /// Counts a reported step, and saves the weights when it is time to.
    async fn count(
        &mut self,
        computing: Duration,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), Fault> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let summary = &mut open.summary;
        summary.steps += 1;
        summary.computing_seconds += computing.as_secs_f64();
        summary.seconds = open.started.elapsed().as_secs_f64();
        if open.logged.elapsed() >= PROGRESS_EVERY {
            open.logged = Instant::now();
            let steps_per_second = summary.steps as f64 / summary.seconds;
            let train_loss = metrics.get("train_loss");
            info!(steps = summary.steps, steps_per_second, train_loss, "progress");
        }
        if open.saved.elapsed() >= self.config.checkpoint_every {
            let started = Instant::now();
            match self.engine.checkpoint().await {
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => warn!(%error, "no checkpoint: tried again after --checkpoint-every"),
                Ok(()) => {}
            }
            open.saved = Instant::now();
            summary.computing_seconds += started.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Saves the open study and lets go of it. Weights that cannot be written are kept in memory, and are tried again.
    async fn close(&mut self) -> Result<(), Fault> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.first_steps.survived(&open.study_id);
        self.state.send_modify(|state| state.open = None);
        match self.engine.close().await {
            Ok(()) => {}
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => {
                warn!(study = open.name, %error, "weights are not saved yet");
                return Ok(());
            }
        }
        let file = open.directory.join("trainer.json");
        let written = files::replace(&file, |temporary| {
            fs::write(temporary, serde_json::to_vec(&open.summary)?)
        });
        if let Err(error) = written.map_err(files::Error::cannot("write", &file)) {
            warn!("{error}");
        }
        info!(study = open.name, steps = open.summary.steps, "weights saved");
        Ok(())
    }

    fn spaces(&self) -> Vec<String> {
        self.engine.spaces().iter().copied().map(String::from).collect()
    }

    fn explain(&self, status: &Status) -> String {
        explain(status, &self.connection.url())
    }

    /// Gives back what is in hand, if the controller can be reached in a short time.
    async fn give_back(&mut self, reason: &str) {
        self.state.send_modify(|state| state.step = None);
        let farewell = async {
            let step = match mem::replace(&mut self.hand, Hand::Empty) {
                Hand::Empty => return Ok(()),
                Hand::Computing(step) => step,
                // Sent again it counts once, and brings the same next step.
                Hand::Reporting(request) => {
                    let answer = self.search.report_step(request).await?.into_inner();
                    match answer.next.and_then(|next| next.next) {
                        Some(Next::Step(step)) => step,
                        _ => return Ok(()),
                    }
                }
            };
            let request = v1::ReleaseStepRequest {
                study: step.study,
                step_id: step.step_id,
                lease_id: step.lease_id,
                reason: reason.chars().take(1000).collect(),
            };
            self.search.release_step(request).await?;
            info!(step = step.step_id, "step given back");
            Ok::<(), Status>(())
        };
        match timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => warn!(reason = status.message(), "step not given back"),
            Err(_) => warn!("step not given back: the controller does not answer"),
        }
    }
}

/// The names of costs, for a study's rules.
fn costs(&engine::Costs { parameters, macs }: &engine::Costs) -> v1::Costs {
    let figures = [("parameters", parameters), ("macs", macs)];
    v1::Costs { figures: figures.map(|(name, cost)| (name.into(), cost as f64)).into() }
}

/// Counts a call to the controller if it has failed.
fn counted<T>(answer: Result<T, Status>) -> Result<T, Status> {
    answer.inspect_err(|status| metrics::controller_failed(status.code()))
}
