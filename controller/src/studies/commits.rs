//! How what operations did becomes durable: batch by batch, written by a thread of its own while the next batch runs.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc as sync,
    },
    thread,
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use super::{Answer, BATCH, Error, Job, Shelf, TICK, lock, now, storage};
use crate::{
    metrics,
    store::{self, Changes, Store},
    study::{Event, State},
};

/// What a number of operations did, on its way into the database.
pub(super) struct Batch {
    changes: Changes,
    happened: Vec<(String, Event)>,
    watchers: Vec<watch::Sender<()>>,
    answers: Vec<Answer>,
}

impl Batch {
    /// Makes it durable, and tells those who wait for it.
    pub(super) fn commit(self, store: &Mutex<Store>) -> Result<(), Error> {
        let started = Instant::now();
        let stores = !self.changes.is_empty();
        let committed = lock(store).commit(self.changes).map_err(storage);
        match &committed {
            Ok(()) if stores => metrics::committed(started.elapsed(), self.answers.len()),
            Ok(()) => {}
            Err(_) => metrics::commit_failed(),
        }
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
        committed
    }

    /// Tells those who wait for it that it cannot be.
    fn fail(self, error: &Error) {
        for answer in self.answers {
            answer(Err(error.clone()));
        }
    }
}

/// What the writer is given.
enum Work {
    Commit(Box<Batch>),
    /// Memory has gone back to what is stored, and what follows builds on that.
    GoOn,
}

/// Commits batches in their order. After one has failed, those that follow fail as well until memory has gone back.
fn write(store: &Mutex<Store>, work: &sync::Receiver<Work>, failed: &AtomicBool) {
    let mut fault: Option<Error> = None;
    while let Ok(work) = work.recv() {
        match (work, &fault) {
            (Work::GoOn, _) => fault = None,
            (Work::Commit(batch), Some(error)) => batch.fail(error),
            (Work::Commit(batch), None) => {
                if let Err(error) = batch.commit(store) {
                    error!(%error, "commit failed; going back to what is stored");
                    failed.store(true, Ordering::SeqCst);
                    fault = Some(error);
                }
            }
        }
    }
}

impl Shelf {
    /// Runs operations until the last handle is gone.
    pub(super) fn serve(mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), Error> {
        // A batch waits until the one before it is written, and what comes meanwhile shares the next.
        let (writer, work) = sync::sync_channel(0);
        let failed = Arc::new(AtomicBool::new(false));
        let writing = {
            let (store, failed) = (self.store.clone(), failed.clone());
            let write = move || write(&store, &work, &failed);
            let thread = thread::Builder::new().name("commits".into()).spawn(write);
            thread.map_err(|source| Error::Thread(Arc::new(source)))?
        };
        while let Some(job) = jobs.blocking_recv() {
            if failed.swap(false, Ordering::SeqCst) {
                self.go_back()?;
                writer.send(Work::GoOn).map_err(|_| Error::Died)?;
            }
            // After a pause of the whole process, others may own the studies.
            if self.last_tick.elapsed() > 2 * TICK {
                self.tick(now());
            }
            let mut answers = vec![job(&mut self, now())];
            while answers.len() < BATCH
                && let Ok(job) = jobs.try_recv()
            {
                answers.push(job(&mut self, now()));
            }
            let batch = Box::new(self.batch(answers));
            writer.send(Work::Commit(batch)).map_err(|_| Error::Died)?;
        }
        drop(writer);
        writing.join().map_err(|_| Error::Died)?;
        lock(&self.store).leave().map_err(storage)
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
        Batch { changes, happened, watchers, answers }
    }

    fn go_back(&mut self) -> Result<(), Error> {
        self.changes = Changes::default();
        self.changed.clear();
        self.happened.clear();
        // Where the database is elsewhere, it may take a while until it can be reached again.
        let studies = loop {
            match lock(&self.store).load(Instant::now()) {
                Ok(studies) => break studies,
                Err(error @ (store::Error::Postgres(_) | store::Error::TimedOut)) => {
                    warn!(%error, "waiting for the database");
                    thread::sleep(TICK);
                }
                Err(error) => return Err(storage(error)),
            }
        };
        self.studies = studies.into_iter().map(|study| (study.name().into(), study)).collect();
        Ok(())
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
        Event::StateChanged(state) => info!(study, state = state.name(), "state changed"),
        Event::Sampled(step) => debug!(study, step = step.0, "step handed out"),
        Event::LeasedAgain(step) => info!(study, step = step.0, "step handed out again"),
        Event::Expired(step) => warn!(study, step = step.0, "lease ran out"),
        Event::Released(step) => info!(study, step = step.0, "step given back"),
        Event::Reported { step, trainer, outcome, staleness } => {
            debug!(study, step = step.0, trainer, ?outcome, staleness, "step reported");
        }
        Event::Passed(past) => match &past.report {
            None => info!(study, step = past.step.id.0, "step closed unreported"),
            Some(report) => {
                debug!(study, step = past.step.id.0, update = report.update, "step done");
            }
        },
        Event::ReportedLate(step, report) => {
            debug!(study, step = step.0, trainer = report.trainer, "closed step reported late");
        }
    }
}
