//! How what operations did becomes durable: batch by batch, written by another thread while the next batch gathers.

use std::{
    mem,
    sync::{Arc, mpsc as sync},
    thread,
    time::Instant,
};

use parking_lot::{ArcMutexGuard, RawMutex};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::{Answer, BATCH, Error, FailingWrites, Job, StudyRegistry, TICK, now, storage};
use crate::{
    metrics,
    store::{self, Changes, Store},
    study::{Event, State},
};

/// The changes of several operations, on their way into the database.
pub(super) struct Batch {
    changes: Changes,
    happened: Vec<(String, Event)>,
    watchers: Vec<watch::Sender<()>>,
    answers: Vec<Answer>,
    failing_writes: FailingWrites,
}

impl Batch {
    /// Makes it durable, and tells `written` and then those who wait for it.
    pub(super) fn commit(self, store: &mut Store, written: impl FnOnce(Result<(), Error>)) {
        let started = Instant::now();
        let stores = !self.changes.is_empty();
        let committed = store.commit(self.changes);
        match &committed {
            Ok(()) if stores => metrics::committed(started.elapsed(), self.answers.len()),
            Ok(()) => {}
            Err(error) => {
                metrics::commit_failed();
                if error.is_lasting() {
                    self.failing_writes.lock().begin(error.reason());
                } else {
                    warn!(%error, "commit refused; going back to what is stored");
                }
            }
        }
        let committed = committed.map_err(storage);
        written(committed.clone());
        if committed.is_ok() {
            for (study, event) in &self.happened {
                log(study, event);
            }
            for watcher in self.watchers {
                watcher.send_replace(());
            }
        }
        for answer in self.answers {
            answer(committed.clone());
        }
        if let Err(error) = store.work_off() {
            // The part stays in the journal.
            self.failing_writes.lock().begin(error.reason());
        }
    }
}

/// A batch for the thread that writes, with the store: locked before anything else happens, so that no operation misses there
/// what is on its way.
struct Write {
    batch: Batch,
    store: ArcMutexGuard<RawMutex, Store>,
    written: oneshot::Sender<Result<(), Error>>,
}

fn write(work: &sync::Receiver<Write>) {
    while let Ok(Write { batch, mut store, written }) = work.recv() {
        // Whoever waits for this fails only by a panic.
        batch.commit(&mut store, |result| drop(written.send(result)));
    }
}

impl StudyRegistry {
    /// Runs operations until the last handle is gone.
    pub(super) fn serve(mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), Error> {
        let (writer, work) = sync::channel();
        let thread = thread::Builder::new().name("commits".into()).spawn(move || write(&work));
        let thread = thread.map_err(|source| Error::Thread(Arc::new(source)))?;
        let mut writing: Option<oneshot::Receiver<Result<(), Error>>> = None;
        loop {
            let mut answers = Vec::new();
            if writing.is_none() {
                let Some(job) = jobs.blocking_recv() else { break };
                answers.push(self.run(job));
            }
            self.run_waiting(&mut jobs, &mut answers);
            if let Some(writing) = writing.take() {
                if let Err(error) = writing.blocking_recv().map_err(|_| Error::Died)? {
                    // These have built on it.
                    for answer in answers {
                        answer(Err(error.clone()));
                    }
                    self.go_back(&mut jobs)?;
                    continue;
                }
                // What has come while it was written shares the next one.
                self.run_waiting(&mut jobs, &mut answers);
            }
            if !answers.is_empty() {
                let (written, waiting) = oneshot::channel();
                let work =
                    Write { batch: self.batch(answers), store: self.store.lock_arc(), written };
                writer.send(work).map_err(|_| Error::Died)?;
                writing = Some(waiting);
            }
        }
        drop(writer);
        thread.join().map_err(|_| Error::Died)?;
        self.store.lock().leave().map_err(storage)
    }

    fn run_waiting(&mut self, jobs: &mut mpsc::Receiver<Job>, answers: &mut Vec<Answer>) {
        while answers.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            answers.push(self.run(job));
        }
    }

    fn run(&mut self, job: Job) -> Answer {
        // After a pause of the whole process, others may own the studies.
        if self.last_tick.elapsed() > 2 * TICK {
            self.tick(now());
        }
        job(self, now())
    }

    /// Takes what the operations did that are to be answered by `answers`.
    pub(super) fn batch(&mut self, answers: Vec<Answer>) -> Batch {
        self.watchers.retain(|_, watcher| watcher.receiver_count() > 0);
        let mut watchers = Vec::new();
        for (name, changed) in mem::take(&mut self.changed) {
            let Some(study) = self.studies.get(&name) else { continue };
            if changed.described {
                self.changes.study(study);
            }
            self.changes.state(study);
            for step in changed.steps {
                self.changes.step(study, step);
            }
            watchers.extend(self.watchers.get(&study.id()).cloned());
        }
        let (changes, happened) = (mem::take(&mut self.changes), mem::take(&mut self.happened));
        let failing_writes = self.failing_writes.clone();
        Batch { changes, happened, watchers, answers, failing_writes }
    }

    /// Reads the studies back from the database.
    fn go_back(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Result<(), Error> {
        // Where the database is elsewhere, it may take a while until it can be reached again.
        let studies = loop {
            let loaded = self.store.lock().load(Instant::now());
            match loaded {
                Ok(studies) => break studies,
                Err(error @ (store::Error::Postgres(_) | store::Error::TimedOut)) => {
                    self.failing_writes.lock().begin(error.reason());
                    self.refuse(jobs, &storage(error));
                    thread::sleep(TICK);
                }
                Err(error) => return Err(storage(error)),
            }
        };
        self.studies = studies.into_iter().map(|study| (study.name().into(), study)).collect();
        self.changes = Changes::default();
        self.changed.clear();
        self.happened.clear();
        self.find_waiting();
        Ok(())
    }

    /// Answers the operations that wait with `error`, so that nobody waits for the database. What they do to the studies
    /// in memory is undone with the rest.
    fn refuse(&mut self, jobs: &mut mpsc::Receiver<Job>, error: &Error) {
        while let Ok(job) = jobs.try_recv() {
            let answer = job(self, now());
            answer(Err(error.clone()));
        }
    }
}

fn log(study: &str, event: &Event) {
    match event {
        Event::Created => info!(study, "study created"),
        Event::Deleted => info!(study, "study deleted"),
        Event::Described => info!(study, "variables are known"),
        Event::StateChanged(State::Finished(rule)) => {
            info!(study, state = "FINISHED", ?rule, "state changed");
        }
        Event::StateChanged(State::Failed(violations)) => {
            let reasons = violations.iter().map(|v| format!("{}: {}", v.field, v.description));
            let reason = reasons.collect::<Vec<_>>().join("; ");
            warn!(study, state = "FAILED", reason, "state changed");
        }
        Event::StateChanged(state) => info!(study, state = state.name(), "state changed"),
        Event::Sampled(step) => debug!(study, step = step.0, "step handed out"),
        Event::LeasedAgain(step) => info!(study, step = step.0, "step handed out again"),
        Event::Expired(step) => warn!(study, step = step.0, "lease ran out"),
        Event::Released(step) => info!(study, step = step.0, "step given back"),
        Event::Reported { step, trainer, outcome, staleness } => {
            debug!(study, step = step.0, trainer, ?outcome, staleness, "step reported");
        }
        Event::StepClosed(past) => match &past.report {
            None => info!(study, step = past.step.id.0, "step closed unreported"),
            Some(report) => {
                debug!(study, step = past.step.id.0, update = report.update, "step done");
            }
        },
        Event::TimePassed | Event::Traced { .. } => {}
        Event::ReportedLate(step, report) => {
            debug!(study, step = step.0, trainer = report.trainer, "closed step reported late");
        }
    }
}
