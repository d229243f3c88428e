//! The trainer's loop: lease a step, have it computed, report it with a request for the next; and what keeps this going
//! when the network, the controller or a person intervenes.
//!
//! The loop may be dropped at any point. What it had in hand is noted, so that it can be given back.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    future::{Future, pending},
    io, mem,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
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
    engine::{self, Engine},
    metrics::{self, Phase},
    service::Api,
    serving::{self, Doors},
    space::{Decision, IntegerVariable, Space, Variable},
    state::{self, Last, State},
    study,
};

/// How long giving back a step may take when the trainer ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time between two lines of progress in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

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
    let _lock = lock(&config.work_dir)?;
    let trainer_id = trainer_id(&config.work_dir)?;
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
        open: None,
        step: None,
        steps: 0,
    });
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
        stopping: CancellationToken::new(),
        config,
        trainer_id,
        connection,
        engine,
        state,
    };
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
    trainer.drain().await;
    // The weights are worth keeping however the loop ended.
    let result = result.and(trainer.close().await);
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
                let span = info_span!("step", study = step.study, step = step.step_id);
                next = self.step(step).instrument(span).await?;
            }
            match next {
                Some(Next::Finished(finished)) => {
                    let study = finished.study.unwrap_or_default();
                    let state = study.state().as_str_name();
                    info!(study = study.name, state, "study has ended");
                    self.close().await?;
                    if self.config.study.is_some() {
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
            spaces: self.engine.spaces().iter().copied().map(String::from).collect(),
            request_id: format!("{:016x}-{}", self.run, self.requests),
            fresh_start: self.requests == 1,
            ..Default::default()
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
                self.close().await?;
                Ok(None)
            }
            Err(status) => bail!("the controller gives no step: {}", self.explain(&status)),
        }
    }

    /// Computes and reports a step. Returns what is next, if the controller has said so.
    async fn step(&mut self, step: v1::Step) -> anyhow::Result<Option<Next>> {
        self.hand = Hand::Computing(step.clone());
        self.state.send_modify(|state| state.take(step.step_id));
        self.open_study(&step).await?;
        let outcome = self.compute(&step).await.context("a step could not be computed")?;
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
            losses: outcome.losses,
            costs: outcome.costs.iter().map(costs).collect(),
            metrics: outcome.metrics,
            lease_next: !self.stopping.is_cancelled(),
            ..Default::default()
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
            Err(status) => bail!("the controller refuses a report: {}", self.explain(&status)),
        };
        metrics::phase(Phase::Report, started.elapsed());
        metrics::reported(answer.outcome());
        self.state.send_modify(|state| state.steps += 1);
        debug!(outcome = answer.outcome().as_str_name(), losses = ?request.losses, "step reported");
        let next = answer.next.and_then(|next| next.next);
        if let Some(Next::Step(step)) = &next {
            self.hand = Hand::Computing(step.clone());
        }
        self.count(outcome.computing, &request.metrics).await?;
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
    async fn describe(&self, describe: v1::Describe) -> anyhow::Result<()> {
        let Some(space) = Space::parse(&describe.space, &describe.settings) else {
            bail!("the controller wants space {:?} described", describe.space);
        };
        let answer = match space {
            Ok(space) => {
                let variables = space.variables().into_iter().map(|decision| {
                    let (name, kind) = match decision {
                        Decision::Categorical(Variable { name, choices }) => {
                            (name, v1::variable::Kind::Categorical(v1::Categorical { choices }))
                        }
                        Decision::Integer(IntegerVariable { name, low, high }) => {
                            (name, v1::variable::Kind::Integer(v1::Integer { low, high }))
                        }
                    };
                    v1::Variable { name, kind: Some(kind) }
                });
                Answer::Description(v1::SpaceDescription {
                    variables: variables.collect(),
                    costs: None,
                })
            }
            Err(violations) => {
                let violations = violations.into_iter().map(|violation| v1::FieldViolation {
                    field: violation.field,
                    description: violation.description,
                });
                Answer::Rejection(v1::Rejection { violations: violations.collect() })
            }
        };
        let rejected = matches!(answer, Answer::Rejection(_));
        let request = v1::DescribeSpaceRequest {
            study: describe.study,
            trainer_id: self.trainer_id.clone(),
            answer: Some(answer),
        };
        match insist(&request, |request| {
            let mut search = self.search.clone();
            async move { counted(search.describe_space(request).await) }
        })
        .await
        {
            Ok(_) => info!(study = request.study, rejected, "study described"),
            Err(status)
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) =>
            {
                bail!("the controller takes no description: {}", self.explain(&status))
            }
            Err(status) => {
                // Another trainer was faster, or a person has stopped or deleted the study.
                warn!(study = request.study, reason = status.message(), "description refused");
                sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    }

    /// Has the engine open the study of a step.
    async fn open_study(&mut self, step: &v1::Step) -> anyhow::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.study_id == step.study_id) {
            return Ok(());
        }
        self.close().await?;
        let study = study::get(&self.connection, &step.study).await?;
        let space = study::space(&study)?;
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
        Ok(())
    }

    /// Counts a reported step, and saves the weights when it is time to.
    async fn count(
        &mut self,
        computing: Duration,
        metrics: &BTreeMap<String, f64>,
    ) -> anyhow::Result<()> {
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
            self.engine.checkpoint().await?;
            open.saved = Instant::now();
            summary.computing_seconds += started.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Saves the open study and lets go of it.
    async fn close(&mut self) -> anyhow::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.state.send_modify(|state| state.open = None);
        self.engine.close().await?;
        let file = open.directory.join("trainer.json");
        let summary = serde_json::to_string(&open.summary)?;
        fs::write(&file, summary).with_context(|| format!("cannot write {}", file.display()))?;
        info!(study = open.name, steps = open.summary.steps, "weights saved");
        Ok(())
    }

    fn explain(&self, status: &Status) -> String {
        explain(status, &self.connection.url())
    }

    /// Gives back what is in hand, if the controller can be reached in a short time.
    async fn drain(&mut self) {
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
                reason: "the trainer ends".into(),
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

/// Keeps a second trainer out of the directory, as long as the file is open.
fn lock(work_dir: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot use {}", work_dir.display());
    fs::create_dir_all(work_dir).with_context(failed)?;
    let file = File::create(work_dir.join("lock")).with_context(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "{} is in use by another trainer; stop that one, or give --work-dir",
            work_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

/// The id by which the controller knows this trainer, kept in its directory: the same after a restart.
fn trainer_id(work_dir: &Path) -> anyhow::Result<String> {
    let file = work_dir.join("trainer-id");
    let failed = || format!("cannot use {}", file.display());
    if let Ok(id) = fs::read_to_string(&file)
        && !id.trim().is_empty()
    {
        return Ok(id.trim().into());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "trainer" } else { host };
    let id = format!("{host}-{:08x}", rand::random::<u32>());
    fs::write(&file, &id).with_context(failed)?;
    Ok(id)
}
