//! All studies of a controller, and the one thread that owns them.
//!
//! An operation is a closure that the thread runs on [`StudyRegistry`]. Operations that have queued while another batch ran share
//! a commit, which a second thread makes while the next batch runs; each is answered only after its commit: so what was
//! acknowledged, or even read, survives a crash. When a commit fails, every operation of its batch fails, and of those that
//! had already built on it, and the studies are read back from the database, as after a restart.

mod commits;
mod fleet;
#[cfg(test)]
mod simulation;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use asng_serving::{access::Scope, condition::Condition};
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Span, debug_span, error, info, warn};

use self::fleet::Fleet;
pub use self::fleet::{Announcement, FleetTrainer, SetAside, Unserved};
use crate::{
    store::{self, Changes, Location, Store},
    study::{
        self, ClosedStep, Event, LeaseId, NamedMarginal, Next, Now, Origin, Receipt, Record,
        Report, Retention, Spec, Start, State, StepId, Study, StudyId, TracePoint, Violation,
        is_name,
    },
};

/// Operations that may wait for the thread; further callers wait for a place.
const QUEUE: usize = 4096;
/// Operations that share a commit at most.
const BATCH: usize = 1024;
/// How often time is looked at: leases that run out, studies whose time is over, other controllers.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the database's size.
const TICKS_PER_SIZE: u64 = 10;
/// Share of the disk budget above which there are warnings.
const BUDGET_WARNING: f64 = 0.8;
/// Steps after which a history that keeps only its newest is cut again.
const PRUNE_EVERY: u64 = 100;

/// Why an operation failed. Nothing has changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No study has this name.
    #[error("there is no study {0:?}")]
    UnknownStudy(String),
    /// A study of this name exists, and is another.
    #[error("study {0:?} exists, and is another: with another spec, or imported before")]
    Exists(String),
    /// A study of this name exists with another spec, which the caller may see.
    #[error("study {name:?} exists with another spec: {}{hint}", study::summary(.differences))]
    Differs {
        /// Name of the study.
        name: String,
        /// Fields of the spec that differ, with both values.
        differences: Vec<Violation>,
        /// The remedy, with the punctuation before it; may be empty.
        hint: String,
    },
    /// Another controller owns the study.
    #[error("study {name:?} is with another controller, {address:?}")]
    NotOwner {
        /// The study; empty when any of a space was asked for.
        name: String,
        /// Where to ask instead; empty while no controller owns it.
        address: String,
    },
    /// There are as many studies as there may be.
    #[error("there are {0} studies, which is the limit; delete some")]
    TooManyStudies(usize),
    /// The database has reached its budget.
    #[error(
        "the database has reached its budget of {0} bytes; delete studies, or raise --disk-budget"
    )]
    OverBudget(u64),
    /// The study itself refuses.
    #[error("study {name:?}: {source}")]
    Refused {
        /// The study.
        name: String,
        /// Why.
        source: Arc<study::Error>,
    },
    /// The study would be outside what the caller may see and touch.
    #[error("this token is for studies of {0} only")]
    OutOfScope(Scope),
    /// The request is malformed; every fault is listed.
    #[error("invalid request: {}", .0.first().map_or_else(String::new, ToString::to_string))]
    Invalid(Vec<Violation>),
    /// The database did not take it.
    #[error("the controller's database does not work: {0}")]
    Storage(Arc<store::Error>),
    /// The thread that writes has panicked: a fault of this program.
    #[error("the thread that writes to the database has died")]
    Died,
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
    failing_writes: FailingWrites,
}

/// The condition that the database does not take writes.
type FailingWrites = Arc<Mutex<Condition>>;

/// An operation, and then the answer to its caller, once it is known whether the commit held.
type Job = Box<dyn FnOnce(&mut StudyRegistry, Now) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Bounds of a controller.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Studies that there may be.
    pub studies: usize,
    /// Bytes that the database may take. Near it there are warnings; beyond it no study is created and no step handed
    /// out, but reports still count.
    pub disk: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { studies: 10_000, disk: None }
    }
}

impl Studies {
    /// Opens the database, reads the studies and starts the thread that owns both. The receiver learns when the thread
    /// has ended: after the last handle is gone, or because the database can no longer be read.
    pub async fn start(
        location: Location,
        limits: Limits,
    ) -> Result<(Studies, oneshot::Receiver<Result<(), Error>>), Error> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let own = move || {
            let registry =
                Store::open(&location).and_then(|store| StudyRegistry::load(store, limits));
            match registry {
                Ok(registry) => {
                    info!(studies = registry.studies.len(), %location, "studies loaded");
                    let _ = ready.send(Ok(registry.failing_writes.clone()));
                    let _ = end.send(registry.serve(queue));
                }
                Err(error) => drop(ready.send(Err(Error::Storage(Arc::new(error))))),
            }
        };
        thread::Builder::new()
            .name("studies".into())
            .spawn(own)
            .map_err(|source| Error::Thread(Arc::new(source)))?;
        let failing_writes = started.await.map_err(|_| Error::ShuttingDown)??;
        tokio::spawn(tick(jobs.downgrade()));
        Ok((Studies { jobs, failing_writes }, ended))
    }

    /// Runs `operation` and returns its result when all that it did is durable.
    pub async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut StudyRegistry, Now) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let caller = Span::current();
        let job = Box::new(move |registry: &mut StudyRegistry, now| {
            // Whoever has gone away while this waited, or no longer waits, does not count on it.
            if reply.is_closed() {
                return Box::new(drop) as Answer;
            }
            let result = operation(registry, now);
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

    /// Fails with a sentence if nothing can be stored: the last write has failed, and since then there was no room for a
    /// large one.
    pub fn check_writes(&self) -> Result<(), String> {
        self.failing_writes.lock().describe().map_or(Ok(()), Err)
    }

    /// Returns true if the thread that owns the studies has ended.
    pub fn have_ended(&self) -> bool {
        self.jobs.is_closed()
    }
}

/// From an operation's end to that of the commit that it waits for, in the trace of `caller` if there is one.
fn commit_span(caller: &Span) -> Span {
    if caller.is_disabled() { Span::none() } else { debug_span!(parent: caller, "commit") }
}

/// Has the thread look at the time, as long as there are handles to it.
async fn tick(jobs: mpsc::WeakSender<Job>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(jobs) = jobs.upgrade() else { return };
        let job: Job = Box::new(|registry, now| {
            registry.tick(now);
            Box::new(|_| {})
        });
        if jobs.send(job).await.is_err() {
            return;
        }
    }
}

/// The studies in memory, with their database. Lives on the thread that [`Studies::start`] makes.
pub struct StudyRegistry {
    /// Locked by the writer while it commits.
    store: Arc<Mutex<Store>>,
    limits: Limits,
    studies: BTreeMap<String, Study>,
    /// Studies outside it do not exist for the operation that runs.
    scope: Scope,
    /// The changes of the next commit, apart from those in `changed`.
    changes: Changes,
    /// Studies whose state has to be saved with the next commit, and their steps that changed.
    changed: BTreeMap<String, Changed>,
    /// The events since the last batch, to be logged after the commit of this one.
    happened: Vec<(String, Event)>,
    /// Wake those who follow a study.
    watchers: HashMap<StudyId, watch::Sender<()>>,
    fleet: Fleet,
    /// Names of the studies of each space that were WAITING at the last tick or came since, the oldest first.
    waiting: HashMap<String, Vec<String>>,
    ticks: u64,
    last_tick: Instant,
    size: u64,
    room: Room,
    failing_writes: FailingWrites,
    failing_reads: Condition,
}

/// The rest of the disk budget.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    Little,
    None,
}

fn storage(error: store::Error) -> Error {
    Error::Storage(Arc::new(error))
}

/// A trainer's request for a step.
pub struct LeaseRequest<'a> {
    /// Name of the study; empty for any study of one of `spaces`.
    pub study: &'a str,
    /// Name of the trainer.
    pub trainer: &'a str,
    /// Names of the spaces that it serves.
    pub spaces: &'a [String],
    /// Names of the data sets that it has; empty: it says nothing about data sets and is offered every study.
    pub data_sets: &'a [String],
    /// Studies that it has set aside: the answer is about none of them.
    pub set_aside: &'a [StudyId],
    /// The request for which the step is handed out.
    pub origin: &'a Origin,
}

/// The changes of a study.
#[derive(Default)]
struct Changed {
    /// True if its variables became known.
    described: bool,
    steps: BTreeSet<StepId>,
}

impl StudyRegistry {
    fn load(mut store: Store, limits: Limits) -> Result<StudyRegistry, store::Error> {
        let studies = store.load(Instant::now())?;
        let mut registry = StudyRegistry {
            size: store.size()?,
            store: Arc::new(Mutex::new(store)),
            limits,
            studies: studies.into_iter().map(|study| (study.name().into(), study)).collect(),
            scope: Scope::default(),
            changes: Changes::default(),
            changed: BTreeMap::new(),
            happened: Vec::new(),
            watchers: HashMap::new(),
            fleet: Fleet::default(),
            waiting: HashMap::new(),
            ticks: 0,
            last_tick: Instant::now(),
            room: Room::Enough,
            failing_writes: Arc::new(Mutex::new(Condition::new("cannot write to the database"))),
            failing_reads: store::failing_reads(),
        };
        registry.find_waiting();
        Ok(registry)
    }

    /// Does what time asks for.
    fn tick(&mut self, now: Now) {
        self.last_tick = Instant::now();
        match self.tick_store(now) {
            Ok(store::Tick { gained, lost }) => {
                self.studies.retain(|_, study| !lost.contains(&study.id()));
                self.watchers.retain(|study, _| !lost.contains(study));
                for study in gained {
                    self.studies.insert(study.name().into(), study);
                }
            }
            // Nothing is lost by this; what has to be written fails by itself.
            Err(error) => self.failing_writes.lock().begin(error.reason()),
        }
        let names: Vec<_> = self
            .studies
            .values()
            .filter(|study| !study.state().has_ended())
            .map(|study| study.name().to_owned())
            .collect();
        for name in names {
            // Nothing in a tick can be refused.
            let _ = self.change(&name, |study| {
                study.tick(now);
                Ok(())
            });
        }
        self.find_waiting();
        if self.ticks.is_multiple_of(TICKS_PER_SIZE) {
            self.look_at_size();
        }
        self.ticks += 1;
    }

    /// Notes which studies are WAITING.
    fn find_waiting(&mut self) {
        let waiting = self.studies.values().filter(|study| *study.state() == State::Waiting);
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by_key(|study| study.age());
        self.waiting.clear();
        for study in waiting {
            let of_space = self.waiting.entry(study.spec().space.clone()).or_default();
            of_space.push(study.name().into());
        }
    }

    /// Lets the store do what time asks for, which writes a little. Writes that failed are taken for possible again only
    /// when there is room for a large one.
    fn tick_store(&mut self, now: Now) -> Result<store::Tick, store::Error> {
        let mut store = self.store.lock();
        let tick = store.tick(now.monotonic)?;
        let failing = self.failing_writes.lock().describe().is_some();
        if failing {
            match store.try_large_write() {
                Ok(()) => self.failing_writes.lock().end(),
                Err(error) => self.failing_writes.lock().begin(error.reason()),
            }
        }
        Ok(tick)
    }

    /// Reads from the database; the log says when that begins to fail.
    fn read<T>(
        &mut self,
        read: impl FnOnce(&mut Store) -> Result<T, store::Error>,
    ) -> Result<T, Error> {
        let result = read(&mut self.store.lock());
        self.failing_reads.record(result.as_ref().map_err(store::Error::reason));
        result.map_err(storage)
    }

    fn look_at_size(&mut self) {
        // If it fails, the log says so.
        let Ok(size) = self.read(Store::size) else { return };
        self.size = size;
        let Some(budget) = self.limits.disk else { return };
        let room = if size >= budget {
            Room::None
        } else if size as f64 >= BUDGET_WARNING * budget as f64 {
            Room::Little
        } else {
            Room::Enough
        };
        if room == self.room {
            return;
        }
        self.room = room;
        match room {
            Room::None => {
                error!(size, budget, "disk budget reached: no step is handed out any more");
            }
            Room::Little => {
                warn!(size, budget, "disk budget nearly reached; delete studies or raise it");
            }
            Room::Enough => info!(size, budget, "over: disk budget nearly reached"),
        }
    }

    fn over_budget(&self) -> Option<u64> {
        self.limits.disk.filter(|budget| self.size >= *budget)
    }

    /// Bytes that the database took when that was last looked at.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Runs `operation`, for which only the studies within `scope` exist.
    pub fn within<T>(
        &mut self,
        scope: Scope,
        operation: impl FnOnce(&mut StudyRegistry) -> T,
    ) -> T {
        let before = mem::replace(&mut self.scope, scope);
        let result = operation(self);
        self.scope = before;
        result
    }

    fn sees(&self, study: &Study) -> bool {
        self.scope.holds(study.owner(), &study.spec().labels)
    }

    /// Lets readers of the database see all that is committed.
    pub fn settle(&mut self) -> Result<(), Error> {
        let settled = self.store.lock().settle();
        if let Err(error) = &settled {
            self.failing_writes.lock().begin(error.reason());
        }
        settled.map_err(storage)
    }

    /// All studies that are here.
    pub fn all(&self) -> impl Iterator<Item = &Study> {
        self.studies.values().filter(|study| self.sees(study))
    }

    /// The study called `name`.
    pub fn get(&mut self, name: &str) -> Result<&Study, Error> {
        if !self.studies.get(name).is_some_and(|study| self.sees(study)) {
            return Err(self.missing(name));
        }
        Ok(&self.studies[name])
    }

    /// Why there is no study called `name` here.
    fn missing(&mut self, name: &str) -> Error {
        if self.studies.contains_key(name) {
            // It is out of scope.
            return Error::UnknownStudy(name.into());
        }
        match self.read(|store| store.owner(name)) {
            Ok(None) => Error::UnknownStudy(name.into()),
            Ok(Some(address)) => Error::NotOwner { name: name.into(), address },
            Err(error) => error,
        }
    }

    /// Wakes its holder whenever the study called `name` has changed, and fails when it is gone from here.
    pub fn watch(&mut self, name: &str) -> Result<watch::Receiver<()>, Error> {
        let id = self.get(name)?.id();
        Ok(self.watchers.entry(id).or_insert_with(|| watch::channel(()).0).subscribe())
    }

    /// Creates a study, or returns the one of the same name and spec. `creator` owns it if its spec does not say who. With
    /// `replace_failed`, a study of the same name that has FAILED is deleted first, whatever its spec.
    pub fn create(
        &mut self,
        name: &str,
        spec: Spec,
        creator: &str,
        replace_failed: bool,
        now: Now,
    ) -> Result<&Study, Error> {
        let mut replaces = false;
        if let Some(study) = self.studies.get(name) {
            let failed = matches!(study.state(), State::Failed(_));
            if !self.sees(study) {
                return Err(Error::Exists(name.into()));
            }
            replaces = replace_failed && failed;
            if !replaces && *study.spec() == spec {
                return self.get(name);
            }
            if !replaces {
                let differences = study::differences(study.spec(), &spec);
                let hint = if failed {
                    "; it has FAILED, and --replace (replace_failed) replaces it".into()
                } else if replace_failed {
                    format!("; it is {}, and only a FAILED study is replaced", study.state().name())
                } else {
                    String::new()
                };
                return Err(Error::Differs { name: name.into(), differences, hint });
            }
        }
        let mut violations = spec.violations();
        if !is_name(name) {
            violations.insert(0, Violation::new("name", study::NAME_RULE));
        }
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        let owner = if spec.owner.is_empty() { creator } else { &spec.owner }.to_owned();
        self.ensure_in_scope(&owner, &spec)?;
        self.ensure_room(name)?;
        let start = self.start(&spec)?;
        let mut random = rand::rng();
        let id = StudyId(random.next_u64());
        let seed = spec.seed.unwrap_or_else(|| random.next_u64());
        let study = Study::new(id, name, spec, seed, &owner, start, now).map_err(Error::Invalid)?;
        if replaces {
            self.delete(name)?;
        }
        self.insert(study);
        self.get(name)
    }

    /// Fails if whoever asks may not have a study of this owner and spec.
    fn ensure_in_scope(&self, owner: &str, spec: &Spec) -> Result<(), Error> {
        if self.scope.holds(owner, &spec.labels) {
            return Ok(());
        }
        Err(Error::OutOfScope(self.scope.clone()))
    }

    /// Fails if there cannot be another study, or not one called `name`, unless it takes the place of one that is here.
    fn ensure_room(&mut self, name: &str) -> Result<(), Error> {
        match self.missing(name) {
            Error::UnknownStudy(_) => {}
            other => return Err(other),
        }
        if self.studies.len() >= self.limits.studies && !self.studies.contains_key(name) {
            return Err(Error::TooManyStudies(self.limits.studies));
        }
        self.over_budget().map_or(Ok(()), |budget| Err(Error::OverBudget(budget)))
    }

    /// Where `spec` lets theta start.
    fn start(&mut self, spec: &Spec) -> Result<Vec<NamedMarginal>, Error> {
        let refused = |text: String| Error::Invalid(vec![Violation::new("spec.start.study", text)]);
        match &spec.start {
            None => Ok(Vec::new()),
            Some(Start::Distribution(marginals)) => Ok(marginals.clone()),
            Some(Start::Study(source)) => {
                let study = self.get(source).map_err(|error| refused(error.to_string()))?;
                let marginals = study.marginals();
                if marginals.is_empty() {
                    return Err(refused(format!(
                        "the variables of study {source:?} are not known"
                    )));
                }
                Ok(marginals)
            }
        }
    }

    /// Adds a new study to the registry.
    fn insert(&mut self, mut study: Study) {
        let name = study.name().to_owned();
        self.note(&name, study.id(), study.spec().retention, study.take_events());
        self.changed.entry(name.clone()).or_default().described = true;
        if *study.state() == State::Waiting {
            self.waiting.entry(study.spec().space.clone()).or_default().push(name.clone());
        }
        self.studies.insert(name, study);
    }

    /// Removes a study and its history.
    pub fn delete(&mut self, name: &str) -> Result<(), Error> {
        let id = self.get(name)?.id();
        self.changes.delete(id);
        self.studies.remove(name);
        self.watchers.remove(&id);
        self.happened.push((name.into(), Event::Deleted));
        Ok(())
    }

    /// Makes room for the history of a study that is to be imported.
    pub fn begin_import(&mut self, name: &str, id: StudyId) -> Result<(), Error> {
        if self.studies.contains_key(name) {
            return Err(Error::Exists(name.into()));
        }
        self.ensure_room(name)?;
        self.changes.begin_import(id);
        Ok(())
    }

    /// Stores a part of the history of a study that is being imported.
    pub fn import_history(&mut self, id: StudyId, history: &[ClosedStep]) {
        for past in history {
            self.changes.past(id, past);
        }
    }

    /// Stores a part of the trace of a study that is being imported.
    pub fn import_trace(&mut self, id: StudyId, points: &[TracePoint]) {
        for point in points {
            self.changes.trace(id, point, false);
        }
    }

    /// Forgets a study that was to be imported.
    pub fn abandon_import(&mut self, id: StudyId) {
        self.changes.abandon_import(id);
    }

    /// Adds an imported study to the registry, while its history is stored.
    pub fn end_import(&mut self, record: Record) -> Result<&Study, Error> {
        let name = record.name.clone();
        if self.studies.contains_key(&name) {
            return Err(Error::Exists(name));
        }
        self.ensure_in_scope(&record.owner, &record.spec)?;
        self.ensure_room(&name)?;
        let steps = record.live.iter().chain(record.pending.iter().map(|pending| &pending.step));
        let steps = steps.map(|step| step.id).collect();
        let study = Study::restore(record)
            .map_err(|what| Error::Invalid(vec![Violation::new("part.archive", what)]))?;
        self.changes.end_import(study.id());
        self.insert(study);
        self.changed.entry(name.clone()).or_default().steps = steps;
        self.happened.push((name.clone(), Event::Created));
        self.get(&name)
    }

    /// Lets a study change, and notes what happened to it.
    pub fn change<T>(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Study) -> Result<T, study::Error>,
    ) -> Result<T, Error> {
        let scope = &self.scope;
        let seen = |study: &&mut Study| scope.holds(study.owner(), &study.spec().labels);
        let Some(study) = self.studies.get_mut(name).filter(seen) else {
            return Err(self.missing(name));
        };
        let result = change(study);
        let events = study.take_events();
        if !events.is_empty() {
            let (id, retention) = (study.id(), study.spec().retention);
            self.note(name, id, retention, events);
        }
        result.map_err(|source| Error::Refused { name: name.into(), source: Arc::new(source) })
    }

    /// Notes what the next commit has to make durable.
    fn note(&mut self, name: &str, id: StudyId, retention: Option<Retention>, events: Vec<Event>) {
        if !self.changed.contains_key(name) {
            self.changed.insert(name.into(), Changed::default());
        }
        // Unwrap safety: it has just been inserted.
        let changed = self.changed.get_mut(name).unwrap();
        for event in events {
            match &event {
                Event::Created | Event::Deleted | Event::StateChanged(_) | Event::TimePassed => {}
                Event::Described => changed.described = true,
                Event::Sampled(step) => {
                    changed.steps.insert(*step);
                    if let Some(Retention::Last(last)) = retention
                        && step.0.is_multiple_of(PRUNE_EVERY)
                        && step.0 > last
                    {
                        self.changes.prune(id, StepId(step.0 - last));
                    }
                }
                Event::LeasedAgain(step)
                | Event::Expired(step)
                | Event::Released(step)
                | Event::Reported { step, .. } => {
                    changed.steps.insert(*step);
                }
                Event::StepClosed(past) => {
                    changed.steps.insert(past.step.id);
                    let kept = match retention {
                        Some(Retention::Every(every)) => past.step.id.0.is_multiple_of(every),
                        Some(Retention::Last(_)) | None => true,
                    };
                    // A step that was closed unreported is always kept, so that its late report is known for one.
                    if kept || past.report.is_none() {
                        self.changes.past(id, past);
                    } else {
                        self.changes.drop_past(id, past);
                    }
                }
                Event::ReportedLate(step, report) => self.changes.late(id, *step, report),
                Event::Traced { point, full } => self.changes.trace(id, point, *full),
            }
            self.happened.push((name.into(), event));
        }
    }

    /// Hands out a step. Returns the name of the study that the answer is about; none when no study needs this trainer.
    pub fn lease(
        &mut self,
        request: &LeaseRequest<'_>,
        now: Now,
    ) -> Result<(Next, Option<String>), Error> {
        let (next, about) = self.find_step(request, now)?;
        if let Some(study) = about.as_ref().and_then(|name| self.studies.get(name)) {
            match next {
                Next::Step(_) => self.fleet.handed(request.trainer, study.id()),
                Next::Finished => self.fleet.left(request.trainer, study.id()),
                Next::NoWork(_) | Next::Describe => {}
            }
        }
        Ok((next, about))
    }

    fn find_step(
        &mut self,
        request: &LeaseRequest<'_>,
        now: Now,
    ) -> Result<(Next, Option<String>), Error> {
        let &LeaseRequest { study: name, trainer, spaces, data_sets, set_aside, origin } = request;
        // A study that has ended says so all the same.
        if self.over_budget().is_some() && (name.is_empty() || !self.get(name)?.state().has_ended())
        {
            return Ok((Next::NoWork(study::RETRY_WHEN_IDLE), None));
        }
        if !name.is_empty() {
            let study = self.get(name)?;
            let lacks_data = !study.spec().is_for(data_sets) && !study.state().has_ended();
            if lacks_data || set_aside.contains(&study.id()) {
                return Ok((Next::NoWork(study::RETRY_WHEN_IDLE), None));
            }
            let next = self.change(name, |study| study.lease(trainer, spaces, origin, now))?;
            return Ok((next, Some(name.into())));
        }
        // Studies that wait for a description first, so that their creators soon learn whether they can run; then the
        // oldest, so that a fleet ends one study after the other.
        let mut candidates: Vec<_> = self
            .studies
            .values()
            .filter(|study| matches!(study.state(), State::Waiting | State::Running))
            .filter(|study| spaces.contains(&study.spec().space) && self.sees(study))
            .filter(|study| !set_aside.contains(&study.id()) && study.spec().is_for(data_sets))
            .map(|study| (*study.state() == State::Running, study.age(), study.name().to_string()))
            .collect();
        candidates.sort();
        let mut retry_after = study::RETRY_WHEN_IDLE;
        for (.., name) in candidates {
            match self.change(&name, |study| study.lease(trainer, spaces, origin, now))? {
                Next::NoWork(after) => retry_after = retry_after.min(after),
                next => return Ok((next, Some(name))),
            }
        }
        if retry_after == study::RETRY_WHEN_IDLE
            && let Some(address) =
                self.read(|store| store.owner_of_work(spaces, data_sets, set_aside))?
        {
            return Err(Error::NotOwner { name: String::new(), address });
        }
        Ok((Next::NoWork(retry_after), None))
    }

    /// Puts back every step that `trainer` held before it was started again.
    pub fn forget_trainer(&mut self, trainer: &str) -> Result<(), Error> {
        self.fleet.started_anew(trainer);
        let names: Vec<_> = self.all().map(|study| study.name().to_owned()).collect();
        for name in names {
            self.change(&name, |study| {
                study.forget_trainer(trainer);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Returns the oldest study of one of `spaces` that waits for a description, that the trainer has not set aside and whose data
    /// set is one of `data_sets`, if there are any. Looks at no study that was not WAITING at the last tick.
    pub fn find_undescribed(
        &self,
        trainer: &str,
        spaces: &[String],
        data_sets: &[String],
    ) -> Option<&Study> {
        if self.waiting.is_empty() || self.over_budget().is_some() {
            return None;
        }
        let wanted = |study: &&Study| {
            *study.state() == State::Waiting
                && self.sees(study)
                && !self.fleet.has_set_aside(trainer, study.id())
                && study.spec().is_for(data_sets)
        };
        let oldest = |space: &String| {
            let mut waiting = self.waiting.get(space)?.iter();
            waiting.find_map(|name| {
                // The name may be of another study by now.
                let study = self.studies.get(name).filter(|study| study.spec().space == *space);
                study.filter(wanted)
            })
        };
        spaces.iter().filter_map(oldest).min_by_key(|study| study.age())
    }

    /// Starts the time of a lease of the study `name` anew.
    pub fn extend(&mut self, name: &str, lease: LeaseId, now: Now) -> Result<Duration, Error> {
        let left = self.change(name, |study| study.extend(lease, now))?;
        if let Some(trainer) = self.studies.get(name).and_then(|study| study.holder(lease)) {
            self.fleet.hear(trainer, now);
        }
        Ok(left)
    }

    /// Takes a step of the study `name` back unreported.
    pub fn release(&mut self, name: &str, lease: LeaseId, now: Now) -> Result<(), Error> {
        let study = self.get(name)?;
        if let Some(trainer) = study.holder(lease).map(ToOwned::to_owned) {
            let id = study.id();
            self.fleet.hear(&trainer, now);
            self.fleet.left(&trainer, id);
        }
        self.change(name, |study| study.release(lease, now))
    }

    /// Takes a report of the study `name`.
    pub fn report(&mut self, name: &str, report: Report, now: Now) -> Result<Receipt, Error> {
        self.fleet.hear(&report.trainer, now);
        let study = self.get(name)?;
        let step = report.lease.step;
        let id = study.id();
        let closed = if study.is_closed(step) {
            // It may have passed within this very batch.
            match self.changes.closed(id, step) {
                None => self.read(|store| store.closed(id, step))?,
                closed => closed,
            }
        } else {
            None
        };
        self.change(name, |study| study.report(report, closed, now))
    }
}

/// The time; of the wall clock the whole milliseconds, which is what the database keeps.
fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = Duration::from_millis(since.as_millis() as u64);
    Now { monotonic: Instant::now(), wall: UNIX_EPOCH + millis }
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

    /// A request of the trainer "t" for a step of one study.
    fn request<'a>(study: &'a str, origin: &'a Origin) -> LeaseRequest<'a> {
        LeaseRequest { study, trainer: "t", spaces: &[], data_sets: &[], set_aside: &[], origin }
    }

    async fn start(directory: &Path) -> Studies {
        let location = Location::Directory(directory.into());
        loop {
            match Studies::start(location.clone(), Limits::default()).await {
                Ok((studies, _)) => return studies,
                // The last owner is about to end.
                Err(Error::Storage(error)) if matches!(*error, store::Error::InUse(_)) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Leases and reports a step; returns its number once both are durable.
    async fn search(studies: &Studies) -> Result<StepId, Error> {
        let lease = studies
            .run(|registry, now| {
                let origin = Origin::Request("r".into());
                let (next, _) = registry.lease(&request("s", &origin), now)?;
                let Next::Step(id) = next else { panic!("{next:?}") };
                let study = registry.get("s")?;
                Ok(study.lease_id(study.step(id).unwrap()))
            })
            .await?;
        let report = Report {
            lease,
            trainer: "t".into(),
            losses: vec![f64::NAN, 0.1 + 0.2],
            costs: Vec::new(),
            metrics: BTreeMap::new(),
        };
        let receipt = studies.run(|registry, now| registry.report("s", report, now)).await?;
        assert_eq!((receipt.outcome, receipt.duplicate), (Some(Outcome::Applied), false));
        Ok(lease.step)
    }

    fn description(study: &Study) -> String {
        format!("{:?} {:?} {:?}", study.progress(), study.asng(), study.incumbent())
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_what_was_acknowledged_stays() {
        let directory = tempfile::tempdir().unwrap();
        let studies = start(directory.path()).await;
        studies
            .run(|registry, now| registry.create("s", spec(), "", false, now).map(drop))
            .await
            .unwrap();
        search(&studies).await.unwrap();
        studies
            .run(|registry, _| {
                match &*registry.store.lock() {
                    Store::Sqlite(sqlite) => sqlite.fill_disk(),
                    Store::Postgres(_) => unreachable!("a directory was opened"),
                }
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
        let describe = |registry: &mut StudyRegistry, _| Ok(description(registry.get("s")?));
        let before = loop {
            match studies.run(describe).await {
                Ok(description) => break description,
                // It came before memory had gone back.
                Err(error) => assert!(matches!(&error, Error::Storage(_)), "{error}"),
            }
        };
        assert!(before.contains(&format!("applied: {acknowledged},")), "{before}");
        drop(studies);
        let after = start(directory.path()).await;
        let after = after.run(describe).await.unwrap();
        assert_eq!(before, after, "memory had gone back to what was stored");
    }

    #[tokio::test]
    async fn an_operation_whose_caller_has_gone_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let studies = start(directory.path()).await;
        let (started, has_started) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let handle = studies.clone();
        let busy = tokio::spawn(async move {
            let wait = move |_: &mut StudyRegistry, _| {
                started.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            };
            handle.run(wait).await
        });
        has_started.await.unwrap();
        tokio::select! {
            biased;
            result = studies.run(|registry, now| registry.create("s", spec(), "", false, now).map(drop)) => {
                panic!("{result:?}")
            }
            () = std::future::ready(()) => {}
        }
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
        let result = studies.run(|registry, _| registry.get("s").map(drop)).await;
        assert!(matches!(result, Err(Error::UnknownStudy(_))), "{result:?}");
    }

    #[tokio::test]
    async fn over_the_disk_budget_nothing_is_begun_but_reports_count_and_ends_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let studies = start(directory.path()).await;
        let lease = |registry: &mut StudyRegistry, name: &str, id: &str, now| {
            let origin = Origin::Request(id.into());
            Ok(registry.lease(&request(name, &origin), now)?.0)
        };
        let lease_id = studies
            .run(move |registry, now| {
                registry.create("s", spec(), "", false, now)?;
                registry.create("ended", spec(), "", false, now)?;
                registry.change("ended", |study| {
                    study.stop(now);
                    Ok(())
                })?;
                let Next::Step(id) = lease(registry, "s", "1", now)? else { panic!("no step") };
                let study = registry.get("s")?;
                Ok(study.lease_id(study.step(id).unwrap()))
            })
            .await
            .unwrap();
        drop(studies);
        let store = loop {
            match Store::open(&location) {
                Err(store::Error::InUse(_)) => tokio::task::yield_now().await,
                store => break store.unwrap(),
            }
        };
        let mut registry =
            StudyRegistry::load(store, Limits { disk: Some(1), ..Limits::default() }).unwrap();
        let now = now();
        assert!(matches!(
            registry.create("new", spec(), "", false, now),
            Err(Error::OverBudget(1))
        ));
        assert!(matches!(lease(&mut registry, "s", "2", now), Ok(Next::NoWork(_))));
        assert!(matches!(lease(&mut registry, "ended", "2", now), Ok(Next::Finished)));
        let (losses, costs, metrics) = (vec![1.0, 2.0], Vec::new(), BTreeMap::new());
        let report = Report { lease: lease_id, trainer: "t".into(), losses, costs, metrics };
        let receipt = registry.report("s", report, now).unwrap();
        assert_eq!(receipt.outcome, Some(Outcome::Applied));
    }

    #[tokio::test]
    async fn everything_about_a_study_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let studies = start(directory.path()).await;
        studies
            .run(|registry, now| registry.create("s", spec(), "", false, now).map(drop))
            .await
            .unwrap();
        for _ in 0..20 {
            search(&studies).await.unwrap();
        }
        let describe = |registry: &mut StudyRegistry, _| {
            let study = registry.get("s")?;
            Ok((description(study), study.spec().clone(), study.seed(), study.id()))
        };
        let before = studies.run(describe).await.unwrap();
        drop(studies);
        let studies = start(directory.path()).await;
        assert_eq!(studies.run(describe).await.unwrap(), before);
        let again = studies
            .run(|registry, now| registry.create("s", spec(), "", false, now).map(drop))
            .await;
        again.expect("the same spec is the same study");
        let other = Spec { max_steps: 5, ..spec() };
        let other = studies
            .run(|registry, now| registry.create("s", other, "", false, now).map(drop))
            .await;
        let expected =
            "study \"s\" exists with another spec: stop.max_steps is 100000 there and 5 here";
        assert_eq!(other.unwrap_err().to_string(), expected);
    }
}
