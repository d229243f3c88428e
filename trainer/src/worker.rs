//! `asng-trainer serve`: the loop that leases a step, has the engine compute it, and reports it with a request for the next one, through
//! failures of the network, the controller, a disk or a study. What is wrong with one study ends work on that study alone: its step is
//! given back, and the study is set aside for a while.
//!
//! | module | what lives there |
//! | --- | --- |
//! | `controller` | calls of SearchService, repeated until the controller answers |
//! | `describe` | descriptions of spaces for the controller |
//! | `first_step` | studies whose first step may have killed a process |
//! | `open_study` | progress, checkpoint times and summary of the open study |
//! | `service` | TrainerService |
//! | [`serving`] | ports, probes and metrics |
//! | `set_aside` | studies that cannot be worked on for now |
//! | `steps` | the steps in hand, and the calls about them that are on their way |
//! | `state` | the status that TrainerService and the metrics show |
//! | `work_dir` | the work directory: its lock and the trainer's id |
//!
//! Steps may be leased ahead (`--prefetch`): one is computed, others wait, and reports are on their way meanwhile. The future of the loop may be
//! dropped at any point: what is in hand is kept, so that it can be given back.

mod controller;
mod describe;
mod first_step;
mod open_study;
mod service;
pub mod serving;
mod set_aside;
mod state;
mod steps;
mod work_dir;

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use asng_client::{Options, Pace, Prefetch};
use asng_proto::v1::{self, lease_step_response::Next};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant as Deadline, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{Instrument, debug, error, info, info_span, warn};

use self::{
    controller::{Controller, FAREWELL, values},
    first_step::FirstSteps,
    open_study::OpenStudy,
    service::Api,
    serving::Listeners,
    set_aside::SetAside,
    state::{Last, State},
    steps::{Content, Reply, Reported, Steps},
    work_dir::WorkDir,
};
use crate::{
    engine::{self, Engine},
    metrics::{self, Phase},
    study,
    tasks::space::{self, Space},
};

/// The number of processes that the first step of a study may kill in a row before the next process sets the study aside when it starts.
const KILLED: u32 = 2;
/// Time between two looks at whether the last weights are written.
const WRITTEN_EVERY: Duration = Duration::from_secs(1);

/// Settings of the loop.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the controller, TLS and token.
    pub controller: Options,
    /// The study to work on until it ends. Without one, the trainer works on any study of a space that it serves, for ever.
    pub study: Option<String>,
    /// Directory of the trainer's files, which one trainer uses at a time.
    pub work_dir: PathBuf,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Time after which a step counts as stuck and its lease is not extended any more.
    pub step_limit: Duration,
    /// The number of steps leased ahead of the one that is computed.
    pub prefetch: Prefetch,
}

/// Returns a future that completes on SIGINT or SIGTERM.
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

/// Works until the study has ended, `stop` completes, or a client of TrainerService asks for a drain; then finishes and reports the step
/// that is computed, so that the weights are those of the reported steps, and saves them. TrainerService, probes and metrics are served on
/// `listeners` meanwhile.
pub async fn serve(
    config: Config,
    engine: engine::Config,
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let work_dir = WorkDir::open(&config.work_dir)?;
    let trainer_id = work_dir.trainer_id().to_owned();
    let connection = config.controller.connect()?;
    info!(trainer_id, controller = connection.url(), "trainer starts");
    let device = engine::device_name(engine.device);
    let measure_latency = engine.measure_latency;
    let engine = Engine::start(engine)?;
    let spaces: Vec<_> = engine.spaces().iter().copied().map(String::from).collect();
    let unserved: Vec<_> = engine.unserved().iter().map(unserved_space).collect();
    let data_sets = engine.data_sets().to_vec();
    let state = watch::Sender::new(State {
        trainer_id: trainer_id.clone(),
        controller: connection.url(),
        device,
        spaces: spaces.clone(),
        unserved: unserved.clone(),
        data_sets: data_sets.clone(),
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
    let served = tokio::spawn(serving::serve(listeners, health.clone(), api, end.clone()));
    let controller = Controller::new(connection, trainer_id, spaces, unserved, data_sets);
    let mut worker = Worker {
        steps: Steps::new(controller.clone(), config.step_limit, Pace::new(config.prefetch)),
        controller,
        open: None,
        first_steps,
        work_dir,
        stopping: CancellationToken::new(),
        config,
        engine,
        measure_latency,
        state,
    };
    worker.set_aside_killers();
    let (stopping, state) = (worker.stopping.clone(), worker.state.clone());
    let result = tokio::select! {
        result = worker.work() => result,
        () = async {
            tokio::select! {
                () = stop => {}
                () = drain.cancelled() => {}
            }
            info!("draining: the current step is finished and reported, those that wait are given back");
            health.not_serving().await;
            state.send_modify(|state| state.draining = true);
            stopping.cancel();
            pending::<()>().await;
        } => Ok(()),
    };
    worker.give_back("the trainer ends").await;
    // The weights are worth keeping however the loop ended.
    let closed = worker.close().await.map_err(Fault::into_inner);
    let written = worker.engine.finish().await;
    let written =
        written.context("the newest weights are lost, and only older checkpoints are left");
    let result = result.and(closed).and(written);
    end.cancel();
    // Requests that arrived meanwhile are answered.
    if let Ok(Err(error)) = served.await {
        error!("serving has failed: {error:#}");
    }
    result
}

/// Returns the message for a space that the trainer implements but does not serve, and the reason.
fn unserved_space((space, reason): &(&str, String)) -> v1::UnservedSpace {
    let reason = reason.chars().take(1000).collect();
    v1::UnservedSpace { space: (*space).into(), reason }
}

/// The state of the loop.
struct Worker {
    config: Config,
    controller: Controller,
    engine: Engine,
    measure_latency: bool,
    steps: Steps,
    open: Option<OpenStudy>,
    first_steps: FirstSteps,
    work_dir: WorkDir,
    stopping: CancellationToken,
    /// The status that others see.
    state: watch::Sender<State>,
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

impl Worker {
    /// Leases and computes steps until the study that was named has ended, or `stopping` is cancelled. A step that is being computed is
    /// never interrupted.
    async fn work(&mut self) -> anyhow::Result<()> {
        let stopping = self.stopping.clone();
        while !stopping.is_cancelled() {
            match self.next().await? {
                Some(Next::Step(step)) => {
                    let (study, study_id) = (step.study.clone(), step.study_id.clone());
                    let span = info_span!("step", study, step = step.step_id);
                    let computed = self.step(step).instrument(span).await;
                    self.contain(&study, &study_id, computed).await?;
                }
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
                Some(Next::NoWork(no_work)) => self.steps.ask_later(&no_work),
                None => {}
            }
        }
        let end = Deadline::now() + FAREWELL;
        while let Some(reply) = self.steps.reply_until(end).await {
            self.settle(reply).await?;
        }
        Ok(())
    }

    /// Takes in the replies that are here, and returns a step that waits. Without one, waits for a reply or asks the controller. Returns none
    /// if there is nothing to do yet, or when the trainer is to end.
    async fn next(&mut self) -> anyhow::Result<Option<Next>> {
        let stopping = self.stopping.clone();
        let mut next = None;
        while let Some(reply) = self.steps.try_reply() {
            next = self.settle(reply).await?;
        }
        if let Some(step) = self.steps.take() {
            return Ok(Some(Next::Step(step)));
        }
        if self.steps.is_calling() {
            return match stopping.run_until_cancelled(self.steps.reply()).await.flatten() {
                Some(reply) => self.settle(reply).await,
                None => Ok(None),
            };
        }
        if next.is_some() {
            return Ok(next);
        }
        let lease = async {
            sleep(self.steps.pause()).await;
            self.lease().await
        };
        stopping.run_until_cancelled(lease).await.unwrap_or(Ok(None))
    }

    /// Sets the study aside if it is at fault.
    async fn contain(
        &mut self,
        study: &str,
        study_id: &str,
        result: Result<(), Fault>,
    ) -> anyhow::Result<()> {
        match result {
            Err(Fault::Study(error)) if self.config.study.is_none() => {
                self.abandon(study, study_id, &error).await
            }
            result => result.map_err(Fault::into_inner),
        }
    }

    /// Takes in a reply. Returns what it says of the study: that it has ended, if no other call is on its way.
    async fn settle(&mut self, reply: Reply) -> anyhow::Result<Option<Next>> {
        let next = reply.next().filter(|next| matches!(next, Next::Finished(_))).cloned();
        let Reply { content, span, .. } = reply;
        if let Content::Report(reported) = content {
            let (study, study_id) = (reported.request.study.clone(), reported.study_id.clone());
            let taken = self.reported(*reported).instrument(span).await;
            self.contain(&study, &study_id, taken).await?;
        }
        if let Some(Next::Finished(v1::StudyFinished { study: Some(study) })) = &next {
            self.steps.forget(&study.name);
        }
        // The replies to other calls say the same.
        Ok(next.filter(|_| !self.steps.is_calling()))
    }

    /// Asks for a step of the open study, whose weights are loaded, or else of the study that was named, if any.
    async fn lease(&mut self) -> anyhow::Result<Option<Next>> {
        let open = self.open.as_ref().map(|open| &open.name);
        let study = open.or(self.config.study.as_ref()).cloned().unwrap_or_default();
        let set_aside = self.state.borrow().set_aside.at(Instant::now());
        let request = self.controller.lease_request(study.clone(), set_aside);
        match self.controller.lease(&request).await {
            Ok(next) => Ok(next),
            Err(status) if status.code() == Code::NotFound && self.open.is_some() => {
                warn!(study, "study is gone");
                self.close().await.map_err(Fault::into_inner)?;
                Ok(None)
            }
            Err(status) => {
                let explanation = self.controller.explain(&status);
                let error = anyhow!("the controller gives no step: {explanation}");
                match &self.open {
                    Some(open)
                        if self.config.study.is_none()
                            && status.code() != Code::Unauthenticated =>
                    {
                        let (study, study_id) = (open.name.clone(), open.study_id.clone());
                        self.abandon(&study, &study_id, &error).await?;
                        Ok(None)
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// Sets a study aside, gives its steps back, and saves and closes it.
    async fn abandon(
        &mut self,
        study: &str,
        study_id: &str,
        error: &anyhow::Error,
    ) -> anyhow::Result<()> {
        let reason = format!("{error:#}");
        self.set_aside(study, study_id, &reason);
        self.first_steps.survived(study_id);
        self.give_back(&reason).await;
        self.close().await.map_err(Fault::into_inner)
    }

    /// Records that a study cannot be worked on for a while.
    fn set_aside(&mut self, study: &str, study_id: &str, reason: &str) {
        let mut pause = Duration::ZERO;
        self.state.send_modify(|state| {
            pause = state.set_aside.add(study, study_id, reason, Instant::now());
        });
        warn!(study, ?pause, "study is set aside: {reason}");
    }

    /// Sets aside the studies whose first step has killed several processes in a row, for longer the more there were.
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
            self.set_aside(&study, &study_id, &reason);
        }
    }

    /// Waits until all weights are written.
    async fn written(&self) {
        while !self.engine.checkpoint_problems().is_empty() {
            sleep(WRITTEN_EVERY).await;
        }
    }

    /// Computes a step, and sends its report on its way.
    async fn step(&mut self, step: v1::Step) -> Result<(), Fault> {
        let begun = Instant::now();
        self.steps.computing = Some(step.clone());
        self.state.send_modify(|state| state.take(step.step_id));
        // Images may have to be decoded first, which takes minutes for a large data set.
        let controller = self.controller.clone();
        let limit = self.config.step_limit;
        if !controller.keep_lease(&step, limit, self.open_study(&step)).await? {
            self.give_back("the study is rejected").await;
            return Ok(());
        }
        if !self.stopping.is_cancelled() {
            let set_aside = self.state.borrow().set_aside.at(Instant::now());
            self.steps.ask_ahead(&step.study, set_aside);
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
        self.steps.computing = None;
        self.steps.pace.computed(begun.elapsed());
        let (computing, study_id) = (outcome.computing, step.study_id.clone());
        let request = self.controller.report_of(step, outcome);
        self.steps.report(request, study_id, computing, self.stopping.is_cancelled());
        Ok(())
    }

    /// Takes in the answer to a report.
    async fn reported(&mut self, reported: Reported) -> Result<(), Fault> {
        let Reported { request, study_id, computing, took, answer } = reported;
        self.state.send_modify(|state| state.step = None);
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::NotFound => {
                warn!(reason = status.message(), "the step of a report is gone");
                self.steps.forget(&request.study);
                return self.close().await;
            }
            Err(status) => {
                let v1::ReportStepRequest { study, step_id, lease_id, .. } = request;
                let step = v1::Step { study, step_id, lease_id, study_id, ..Default::default() };
                self.steps.computing = Some(step);
                let explanation = self.controller.explain(&status);
                let error = anyhow!("the controller refuses a report: {explanation}");
                return Err(match status.code() {
                    Code::Unauthenticated => Fault::Trainer(error),
                    _ => Fault::Study(error),
                });
            }
        };
        metrics::phase(Phase::Report, took);
        metrics::reported(answer.outcome());
        self.state.send_modify(|state| state.steps += 1);
        debug!(outcome = answer.outcome().as_str_name(), losses = ?request.losses, "step reported");
        if let Some(open) = &self.open {
            self.state.send_modify(|state| state.set_aside.clear(&open.study_id));
            self.first_steps.survived(&open.study_id);
        }
        self.work_dir.keep().map_err(Fault::Trainer)?;
        self.count(computing, &request.metrics).await?;
        if let Some(describe) = answer.describe {
            let stopping = self.stopping.clone();
            let described = stopping.run_until_cancelled(self.describe(describe)).await;
            described.transpose().map_err(Fault::Trainer)?;
        }
        Ok(())
    }

    /// Has the engine compute a step.
    async fn compute(&self, step: &v1::Step) -> Result<engine::Outcome, engine::Error> {
        let work = self.engine.step(engine::Step {
            batch: step.step_id.saturating_sub(1),
            train: values(&step.train),
            rank: values(&step.rank),
            progress: step.applied as f64 / step.max_steps.max(1) as f64,
        });
        self.controller.keep_lease(step, self.config.step_limit, work).await
    }

    /// Describes a study to the controller, or rejects its settings.
    async fn describe(&mut self, describe: v1::Describe) -> anyhow::Result<()> {
        let direction = describe.direction();
        let v1::Describe {
            study,
            space: name,
            space_definition: definition,
            settings,
            study_id,
            ..
        } = describe;
        let space = Space { name, definition, settings };
        if !space::names().contains(&&*space.name) {
            let reason = format!("this trainer does not know the space {:?}", space.name);
            self.set_aside(&study, &study_id, &reason);
            return Ok(());
        }
        // A study whose images are elsewhere waits for a trainer that has them.
        if let Ok(task) = space.task()
            && let Err(error) = self.engine.has_images(&*task)
        {
            self.set_aside(&study, &study_id, &error.to_string());
            return Ok(());
        }
        let answer = describe::describe(&space, direction, self.measure_latency);
        match self.controller.describe(&study, answer).await {
            Ok(()) => Ok(()),
            Err(status)
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) =>
            {
                bail!("the controller takes no description: {}", self.controller.explain(&status))
            }
            // Another trainer was faster, a person has stopped or deleted the study, or the controller cannot use it.
            Err(status) => {
                let reason = format!("description refused: {}", self.controller.explain(&status));
                self.set_aside(&study, &study_id, &reason);
                Ok(())
            }
        }
    }

    /// Has the engine open the study of a step. Returns false if the study does not fit its space and was rejected.
    async fn open_study(&mut self, step: &v1::Step) -> Result<bool, Fault> {
        if self.open.as_ref().is_some_and(|open| open.study_id == step.study_id) {
            return Ok(true);
        }
        self.close().await?;
        let study =
            study::get(&self.controller.connection, &step.study).await.map_err(Fault::Study)?;
        let task = study::task(&study::space(&study)).map_err(Fault::Study)?;
        let differences = describe::differences(&study, &*task, self.measure_latency);
        if let Some(first) = differences.first() {
            let reason = format!("{}: {}", first.field, first.description);
            let rejection = describe::rejection(differences);
            let rejected = self.controller.describe(&study.name, rejection).await;
            return match rejected {
                Ok(()) => Ok(false),
                // Other trainers have worked on it.
                Err(_) => Err(Fault::Study(anyhow!(reason))),
            };
        }
        self.first_steps.begin(&study.name, &study.study_id);
        let directory = study::directory(&self.config.work_dir, &study);
        let continued = self.engine.open(task, directory.clone()).await?;
        info!(study = study.name, directory = %directory.display(), continued, "study opened");
        let v1::Study { name, study_id, .. } = study;
        let opened = state::Open {
            study: name.clone(),
            study_id: study_id.clone(),
            directory: directory.clone(),
            best_loss: None,
            last: None,
        };
        self.state.send_modify(|state| state.open = Some(opened));
        self.open = Some(OpenStudy::new(name, study_id, directory, Instant::now()));
        Ok(true)
    }

    /// Counts a reported step, and saves the weights when it is time to.
    async fn count(
        &mut self,
        computing: Duration,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), Fault> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let started = Instant::now();
        open.count(computing, metrics, started);
        if open.checkpoint_due(self.config.checkpoint_every, started) {
            match self.engine.checkpoint().await {
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => warn!(%error, "checkpoint failed: repeated after --checkpoint-every"),
                Ok(()) => {}
            }
            open.saved(started, Instant::now());
        }
        Ok(())
    }

    /// Saves and closes the open study. Weights that cannot be written are kept in memory and tried again.
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
        open.close();
        Ok(())
    }

    /// Gives back the steps in hand, if the controller can be reached in a short time.
    async fn give_back(&mut self, reason: &str) {
        self.state.send_modify(|state| state.step = None);
        self.steps.give_back(reason).await;
    }
}
