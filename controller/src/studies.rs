//! All studies of a controller, and the one thread that owns them and the database.
//!
//! An operation is a closure that the thread runs on [`Shelf`]. Operations that have queued while the last commit ran
//! share the next one, and each is answered only after the commit that made it durable: so what was acknowledged, or
//! even read, survives a crash. When a commit fails, every operation of its batch fails, and the studies are read back
//! from the database, as after a restart.

#[cfg(test)]
mod simulation;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, debug, debug_span, error, info, warn};

use crate::{
    metrics,
    store::{self, Store},
    study::{
        self, Event, Next, Now, Origin, Receipt, Report, Spec, State, Study, StudyId, Violation,
        is_name,
    },
};

/// Operations that may wait for the thread; further callers wait for a place.
const QUEUE: usize = 4096;
/// Operations that share a commit at most.
const BATCH: usize = 1024;

/// Why an operation failed. Nothing has changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No study has this name.
    #[error("there is no study {0:?}")]
    UnknownStudy(String),
    /// A study of this name exists, with another spec.
    #[error("study {0:?} exists, with another spec")]
    Exists(String),
    /// The study itself refuses.
    #[error("study {name:?}: {source}")]
    Refused {
        /// The study.
        name: String,
        /// Why.
        source: Arc<study::Error>,
    },
    /// The request is malformed; every fault is listed.
    #[error("invalid request: {}", .0.first().map_or_else(String::new, ToString::to_string))]
    Invalid(Vec<Violation>),
    /// The database did not take it.
    #[error("the controller's database does not work: {0}")]
    Storage(Arc<store::Error>),
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(Arc<std::io::Error>),
    /// The controller is shutting down.
    #[error("the controller is shutting down")]
    ShuttingDown,
}

/// The handle to all studies: cheap to clone, for any number of callers.
#[derive(Clone)]
pub struct Studies {
    jobs: mpsc::Sender<Job>,
}

/// An operation, and then the answer to its caller, once it is known whether the commit held.
type Job = Box<dyn FnOnce(&mut Shelf, Now) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

impl Studies {
    /// Reads the studies and starts the thread that owns them. The receiver learns when the thread has ended: after
    /// the last handle is gone, or because the database can no longer be read.
    pub fn start(store: Store) -> Result<(Studies, oneshot::Receiver<Result<(), Error>>), Error> {
        let mut shelf = Shelf::load(store).map_err(|error| Error::Storage(Arc::new(error)))?;
        info!(studies = shelf.studies.len(), "studies loaded");
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("studies".into())
            .spawn(move || end.send(shelf.serve(queue)))
            .map_err(|source| Error::Thread(Arc::new(source)))?;
        Ok((Studies { jobs }, ended))
    }

    /// Runs `operation` and returns its result when all that it did is durable.
    pub async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Shelf, Now) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let caller = Span::current();
        let job = Box::new(move |shelf: &mut Shelf, now| {
            let result = operation(shelf, now);
            let waiting = commit_span(&caller);
            let answer = move |committed: Result<(), Error>| {
                drop(waiting);
                // A caller that has gone away needs no answer.
                drop(reply.send(committed.and(result)));
            };
            Box::new(answer) as Answer
        });
        self.jobs.send(job).await.map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Whether the thread that owns the studies has ended.
    pub fn have_ended(&self) -> bool {
        self.jobs.is_closed()
    }
}

/// From an operation's end to that of the commit that it waits for, in the trace of `caller` if there is one.
fn commit_span(caller: &Span) -> Span {
    if caller.is_disabled() { Span::none() } else { debug_span!(parent: caller, "commit") }
}

/// The studies in memory, with their database. Lives on the thread that [`Studies::start`] makes.
pub struct Shelf {
    store: Store,
    studies: BTreeMap<String, Study>,
    /// Studies whose own row has to be saved with the next commit.
    changed: BTreeSet<String>,
    /// What happened since the last commit, to be logged after the next.
    happened: Vec<(String, Event)>,
    /// Set when a write failed: memory is ahead of the database, and the batch must not be committed.
    broken: Option<Error>,
}

impl Shelf {
    fn load(store: Store) -> Result<Shelf, store::Error> {
        let studies = store.load(Instant::now())?;
        Ok(Shelf {
            store,
            studies: studies.into_iter().map(|study| (study.name().into(), study)).collect(),
            changed: BTreeSet::new(),
            happened: Vec::new(),
            broken: None,
        })
    }

    fn serve(&mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), Error> {
        while let Some(job) = jobs.blocking_recv() {
            let mut answers = vec![job(self, now())];
            while answers.len() < BATCH
                && self.broken.is_none()
                && let Ok(job) = jobs.try_recv()
            {
                answers.push(job(self, now()));
            }
            let (started, stores) = (Instant::now(), !self.happened.is_empty());
            let committed = self.commit();
            if stores && committed.is_ok() {
                metrics::committed(started.elapsed(), answers.len());
            }
            for answer in answers {
                answer(committed.clone());
            }
            if let Err(error) = committed {
                error!(%error, "commit failed; going back to what is stored");
                metrics::commit_failed();
                self.go_back()?;
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        for name in mem::take(&mut self.changed) {
            if let Some(study) = self.studies.get(&name) {
                self.store.save(study).map_err(|error| Error::Storage(Arc::new(error)))?;
            }
        }
        self.store.commit().map_err(|error| Error::Storage(Arc::new(error)))?;
        for (study, event) in self.happened.drain(..) {
            log(&study, &event);
        }
        Ok(())
    }

    fn go_back(&mut self) -> Result<(), Error> {
        self.changed.clear();
        self.happened.clear();
        let studies = self.store.roll_back().and_then(|()| self.store.load(Instant::now()));
        let studies = studies.map_err(|error| Error::Storage(Arc::new(error)))?;
        self.studies = studies.into_iter().map(|study| (study.name().into(), study)).collect();
        Ok(())
    }

    /// Notes that a write failed, so that the whole batch fails.
    fn fail(&mut self, error: store::Error) -> Error {
        let error = Error::Storage(Arc::new(error));
        self.broken = Some(error.clone());
        error
    }

    /// All studies, oldest first.
    pub fn all(&self) -> Vec<&Study> {
        let mut studies: Vec<_> = self.studies.values().collect();
        studies.sort_by_key(|study| study.age());
        studies
    }

    /// Size of the database in bytes. Fails if the database does not answer.
    pub fn store_size(&self) -> Result<u64, Error> {
        self.store.size().map_err(|error| Error::Storage(Arc::new(error)))
    }

    /// The study called `name`.
    pub fn get(&self, name: &str) -> Result<&Study, Error> {
        self.studies.get(name).ok_or_else(|| Error::UnknownStudy(name.into()))
    }

    /// Creates a study, or returns the one of the same name and spec.
    pub fn create(&mut self, name: &str, spec: Spec, now: Now) -> Result<&Study, Error> {
        if let Some(study) = self.studies.get(name) {
            return if *study.spec() == spec {
                self.get(name)
            } else {
                Err(Error::Exists(name.into()))
            };
        }
        let mut violations = spec.violations();
        if !is_name(name) {
            violations.insert(0, Violation::new("name", study::NAME_RULE));
        }
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        let mut random = rand::rng();
        let id = StudyId(random.next_u64());
        let seed = spec.seed.unwrap_or_else(|| random.next_u64());
        let mut study = Study::new(id, name, spec, seed, now);
        self.store.insert(&study).map_err(|error| self.fail(error))?;
        let events = study.take_events();
        self.happened.extend(events.into_iter().map(|event| (name.into(), event)));
        self.studies.insert(name.into(), study);
        self.get(name)
    }

    /// Removes a study and its history.
    pub fn delete(&mut self, name: &str) -> Result<(), Error> {
        let id = self.get(name)?.id();
        self.store.delete(id).map_err(|error| self.fail(error))?;
        self.studies.remove(name);
        self.happened.push((name.into(), Event::Deleted));
        Ok(())
    }

    /// Lets a study change, and stores what happened to it.
    pub fn change<T>(
        &mut self,
        name: &str,
        now: Now,
        change: impl FnOnce(&mut Study) -> Result<T, study::Error>,
    ) -> Result<T, Error> {
        let study = self.studies.get_mut(name).ok_or_else(|| Error::UnknownStudy(name.into()))?;
        let result = change(study);
        let events = study.take_events();
        for event in &events {
            if let Err(error) = self.store.append(study, event, now) {
                return Err(self.fail(error));
            }
        }
        if !events.is_empty() {
            self.changed.insert(name.into());
            self.happened.extend(events.into_iter().map(|event| (name.into(), event)));
        }
        result.map_err(|source| Error::Refused { name: name.into(), source: Arc::new(source) })
    }

    /// Hands out a step of the study `name`, or of any study of one of `spaces` when that is empty. Returns the name of
    /// the study that the answer is about; none when no study needs this trainer.
    pub fn lease(
        &mut self,
        name: &str,
        spaces: &[String],
        trainer: &str,
        origin: &Origin,
        now: Now,
    ) -> Result<(Next, Option<String>), Error> {
        if !name.is_empty() {
            let next = self.change(name, now, |study| study.lease(trainer, spaces, origin, now))?;
            return Ok((next, Some(name.into())));
        }
        // Studies that wait for a description first, so that their creators soon learn whether they can run; then the
        // oldest, so that a fleet ends one study after the other.
        let mut candidates: Vec<_> = self
            .studies
            .values()
            .filter(|study| matches!(study.state(), State::Waiting | State::Running))
            .filter(|study| spaces.contains(&study.spec().space))
            .map(|study| (*study.state() == State::Running, study.age(), study.name().to_string()))
            .collect();
        candidates.sort();
        let mut retry_after = study::RETRY_WHEN_IDLE;
        for (.., name) in candidates {
            match self.change(&name, now, |study| study.lease(trainer, spaces, origin, now))? {
                Next::NoWork(after) => retry_after = retry_after.min(after),
                next => return Ok((next, Some(name))),
            }
        }
        Ok((Next::NoWork(retry_after), None))
    }

    /// Puts back every step that `trainer` held before it was started again.
    pub fn forget_trainer(&mut self, trainer: &str, now: Now) -> Result<(), Error> {
        let names: Vec<_> = self.studies.keys().cloned().collect();
        for name in names {
            self.change(&name, now, |study| {
                study.forget_trainer(trainer);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes a report of the study `name`.
    pub fn report(&mut self, name: &str, report: Report, now: Now) -> Result<Receipt, Error> {
        let study = self.get(name)?;
        let step = report.lease.step;
        let closed = if study.is_closed(step) {
            self.store.closed(study.id(), step).map_err(|error| self.fail(error))?
        } else {
            None
        };
        self.change(name, now, |study| study.report(report, closed, now))
    }
}

/// The time; of the wall clock the whole milliseconds, which is what the database keeps.
fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = Duration::from_millis(since.as_millis() as u64);
    Now { monotonic: Instant::now(), wall: UNIX_EPOCH + millis }
}

fn log(study: &str, event: &Event) {
    match event {
        Event::Created => info!(study, "study created"),
        Event::Deleted => info!(study, "study deleted"),
        Event::Described => info!(study, "variables are known"),
        Event::StateChanged(state) => info!(study, state = state.name(), "state changed"),
        Event::Sampled(step) => debug!(study, step = step.0, "step handed out"),
        Event::LeasedAgain(step) => info!(study, step = step.0, "step handed out again"),
        Event::Expired(step) => warn!(study, step = step.0, "lease ran out"),
        Event::Released(step) => info!(study, step = step.0, "step given back"),
        Event::Closed(step) => info!(study, step = step.0, "step closed unreported"),
        Event::Reported { step, report, outcome, staleness } => {
            debug!(
                study,
                step = step.0,
                trainer = report.trainer,
                ?outcome,
                staleness,
                "step reported"
            );
        }
        Event::Applied(steps) => debug!(study, steps = steps.len(), "pending reports applied"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::study::{Kind, Outcome, StepId, Variable};

    fn spec() -> Spec {
        let choices = ["a", "b", "c"].map(String::from).to_vec();
        let variable = |i: usize| Variable {
            name: format!("v{i}"),
            kind: Kind::Categorical { choices: choices.clone() },
        };
        Spec { variables: (0..10).map(variable).collect(), max_steps: 100_000, ..Spec::default() }
    }

    fn start(directory: &Path) -> Studies {
        Studies::start(Store::open(directory).unwrap()).unwrap().0
    }

    /// Leases and reports a step; returns its number once both are durable.
    async fn search(studies: &Studies) -> Result<StepId, Error> {
        let lease = studies
            .run(|shelf, now| {
                let origin = Origin::Request("r".into());
                let (next, _) = shelf.lease("s", &[], "t", &origin, now)?;
                let Next::Step(id) = next else { panic!("{next:?}") };
                let study = shelf.get("s")?;
                Ok(study.lease_id(study.step(id).unwrap()))
            })
            .await?;
        let report = Report {
            lease,
            trainer: "t".into(),
            losses: vec![f64::NAN, 0.1 + 0.2],
            metrics: BTreeMap::new(),
        };
        let receipt = studies.run(|shelf, now| shelf.report("s", report, now)).await?;
        assert_eq!((receipt.outcome, receipt.duplicate), (Outcome::Applied, false));
        Ok(lease.step)
    }

    fn description(study: &Study) -> String {
        format!("{:?} {:?} {:?}", study.progress(), study.asng(), study.incumbent())
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_what_was_acknowledged_stays() {
        let directory = tempfile::tempdir().unwrap();
        let studies = start(directory.path());
        studies.run(|shelf, now| shelf.create("s", spec(), now).map(drop)).await.unwrap();
        search(&studies).await.unwrap();
        studies
            .run(|shelf, _| {
                shelf.store.fill_disk();
                Ok(())
            })
            .await
            .unwrap();
        let mut acknowledged = 1;
        let error = loop {
            match search(&studies).await {
                Ok(step) => acknowledged = step.0,
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, Error::Storage(_)), "{error}");
        assert!(error.to_string().contains("full"), "{error}");
        let before = studies.run(|shelf, _| Ok(description(shelf.get("s")?))).await.unwrap();
        assert!(before.contains(&format!("applied: {acknowledged},")), "{before}");
        drop(studies);
        let after = reopened(directory.path()).await;
        let after = after.run(|shelf, _| Ok(description(shelf.get("s")?))).await.unwrap();
        assert_eq!(before, after, "memory had gone back to what was stored");
    }

    /// Opens a state directory whose last owner is about to end.
    async fn reopened(directory: &Path) -> Studies {
        loop {
            match Store::open(directory) {
                Ok(store) => return Studies::start(store).unwrap().0,
                Err(store::Error::InUse(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn everything_about_a_study_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let studies = start(directory.path());
        studies.run(|shelf, now| shelf.create("s", spec(), now).map(drop)).await.unwrap();
        for _ in 0..20 {
            search(&studies).await.unwrap();
        }
        let describe = |shelf: &mut Shelf, _| {
            let study = shelf.get("s")?;
            Ok((description(study), study.spec().clone(), study.seed(), study.id()))
        };
        let before = studies.run(describe).await.unwrap();
        drop(studies);
        let studies = reopened(directory.path()).await;
        assert_eq!(studies.run(describe).await.unwrap(), before);
        let again = studies.run(|shelf, now| shelf.create("s", spec(), now).map(drop)).await;
        again.expect("the same spec is the same study");
        let other = Spec { max_steps: 5, ..spec() };
        let other = studies.run(|shelf, now| shelf.create("s", other, now).map(drop)).await;
        assert!(matches!(other, Err(Error::Exists(_))));
    }
}
