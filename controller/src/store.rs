//! The only place that touches a database: an SQLite file in a directory, or PostgreSQL by URL.
//!
//! [`Changes`] gathers what happened; [`Store::commit`] makes it durable, all or nothing, and nothing may be acknowledged
//! before it has returned. The cost of a commit does not depend on how much is stored: a study's state is one small
//! row, and its history is only appended to. A store is used by one thread at a time; a [`Reader`] reads beside it.

mod architectures;
mod journal;
mod postgres;
mod rows;
mod sqlite;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Instant};

use asng_serving::condition::Condition;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::rows::{OpenRow, PastRow, PointRow, ReportRow, StateRow, StudyRow};
pub use self::sqlite::{back_up, restore};
use crate::study::{ClosedOutcome, ClosedReport, ClosedStep, StepId, Study, StudyId, TracePoint};

/// Why the database cannot be used. Nothing that was not committed is stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or its lock file cannot be made.
    #[error("cannot use state directory {}: {cause}", .directory.display())]
    Directory {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "state directory {} is in use by another controller; stop that one, or name another directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// The state directory has a database already.
    #[error("state directory {} has a database already; move that away, or name another", .0.display())]
    Occupied(PathBuf),
    /// A check of the whole file found a fault.
    #[error("{} is damaged: {found}", .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// The message of SQLite.
        found: String,
    },
    /// A later release wrote it.
    #[error(
        "database {database} has schema version {found}, this release knows {known}; use the release that wrote it, or a newer one"
    )]
    Newer {
        /// The database.
        database: String,
        /// Its version.
        found: i64,
        /// This release's.
        known: i64,
    },
    /// A development version before the first release wrote it.
    #[error("database {0} was written before the first release and cannot be read; name another")]
    Older(String),
    /// The stored data are inconsistent.
    #[error("database is damaged: study {study}: {what}")]
    Damaged {
        /// The study's row.
        study: i64,
        /// The inconsistency.
        what: String,
    },
    /// Another controller has taken the studies over.
    #[error("another controller owns a study of this commit now")]
    Fenced,
    /// SQLite's own error: a full disk, an I/O error.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL's own error, or the connection's.
    #[error("database: {0}")]
    Postgres(#[from] sqlx::Error),
    /// PostgreSQL did not answer in time.
    #[error("database: PostgreSQL does not answer")]
    TimedOut,
}

impl Error {
    /// Returns true if the database itself does not work, rather than the request that it was given.
    pub fn is_lasting(&self) -> bool {
        match self {
            Error::Fenced => false,
            Error::Postgres(sqlx::Error::Database(error)) => error.constraint().is_none(),
            _ => true,
        }
    }

    /// Returns what is wrong with the database, in words for people who run it.
    pub fn reason(&self) -> String {
        match self {
            Error::Sqlite(error) => match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => "the disk is full".into(),
                _ => error.to_string(),
            },
            Error::Postgres(sqlx::Error::Io(error)) => {
                format!("PostgreSQL cannot be reached: {error}")
            }
            Error::Postgres(sqlx::Error::Database(error)) => error.message().into(),
            Error::Postgres(error) => error.to_string(),
            Error::TimedOut => "PostgreSQL does not answer".into(),
            other => other.to_string(),
        }
    }
}

/// Where the studies are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// SQLite, in this directory.
    Directory(PathBuf),
    /// PostgreSQL, at this URL: shared by several controllers.
    Postgres {
        /// URL of the database, with user and password.
        url: String,
        /// URL under which clients reach this controller. A controller that starts takes over from an earlier one of the
        /// same URL at once.
        advertise: String,
    },
}

impl fmt::Display for Location {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(directory) => directory.display().fmt(f),
            Location::Postgres { url, .. } => match sqlx::postgres::PgConnectOptions::from_str(url)
            {
                Ok(options) => write!(
                    f,
                    "postgres://{}:{}/{}",
                    options.get_host(),
                    options.get_port(),
                    options.get_database().unwrap_or_default()
                ),
                Err(_) => f.write_str("postgres://"),
            },
        }
    }
}

/// The changes that a commit makes durable.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    #[serde(skip)]
    deleted: Vec<i64>,
    /// Studies whose history is being imported.
    #[serde(skip)]
    importing: Vec<i64>,
    /// Studies whose import is complete.
    #[serde(skip)]
    imported: Vec<i64>,
    /// Studies whose import ended early.
    #[serde(skip)]
    abandoned: Vec<i64>,
    #[serde(skip)]
    studies: Vec<StudyRow>,
    states: Vec<StateRow>,
    /// Open steps that are open no longer.
    passed: Vec<(i64, i64)>,
    open: Vec<OpenRow>,
    past: Vec<PastRow>,
    late: Vec<(i64, i64, ReportRow)>,
    /// Studies, and the newest step whose history is dropped with all before it.
    #[serde(skip)]
    pruned: Vec<(i64, i64)>,
    /// Of traces, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    points: Vec<PointRow>,
}

impl Changes {
    /// A study goes, with all its steps and its history.
    pub fn delete(&mut self, study: StudyId) {
        let id = study.0.cast_signed();
        self.past.retain(|past| past.step.study != id);
        self.late.retain(|(study, ..)| *study != id);
        self.pruned.retain(|(study, _)| *study != id);
        self.points.retain(|point| point.study != id);
        self.deleted.push(id);
    }

    /// The history of a study is going to be written before the study itself. If the controller ends meanwhile, it is
    /// removed again.
    pub fn begin_import(&mut self, study: StudyId) {
        self.importing.push(study.0.cast_signed());
    }

    /// The history of an imported study is complete; the study itself is in the same commit.
    pub fn end_import(&mut self, study: StudyId) {
        self.imported.push(study.0.cast_signed());
    }

    /// The history of a study that was to be imported is removed.
    pub fn abandon_import(&mut self, study: StudyId) {
        self.abandoned.push(study.0.cast_signed());
    }

    /// A study is new, or its variables became known.
    pub fn study(&mut self, study: &Study) {
        self.studies.push(StudyRow::new(study));
    }

    /// A study's state, theta, counters or incumbent changed.
    pub fn state(&mut self, study: &Study) {
        self.states.push(StateRow::new(study));
    }

    /// A step was handed out, came back, was reported or closed.
    pub fn step(&mut self, study: &Study, step: StepId) {
        let id = study.id();
        if let Some(step) = study.step(step) {
            self.open.push(OpenRow::live(id, step));
        } else if let Some(pending) = study.pending_step(step) {
            self.open.push(OpenRow::pending(id, pending));
        } else {
            self.passed.push((id.0.cast_signed(), step.0.cast_signed()));
        }
    }

    /// A step went into the history.
    pub fn past(&mut self, study: StudyId, past: &ClosedStep) {
        self.past.push(PastRow::new(study, past, false));
    }

    /// A step has passed that the history does not keep. Until theta is stored, it follows from its report too.
    pub fn drop_past(&mut self, study: StudyId, past: &ClosedStep) {
        self.past.push(PastRow::new(study, past, true));
    }

    /// A step that the history has as closed was reported after all.
    pub fn late(&mut self, study: StudyId, step: StepId, report: &ClosedReport) {
        let row = ReportRow::new(report);
        self.late.push((study.0.cast_signed(), step.0.cast_signed(), row));
    }

    /// Returns the outcome of a step, if these changes put it into the history.
    pub fn closed(&self, study: StudyId, step: StepId) -> Option<ClosedOutcome> {
        let key = (study.0.cast_signed(), step.0.cast_signed());
        self.past.iter().rev().find(|row| row.step.key() == key).map(PastRow::closed)
    }

    /// The history of this step and all before it is dropped.
    pub fn prune(&mut self, study: StudyId, step: StepId) {
        self.pruned.push((study.0.cast_signed(), step.0.cast_signed()));
    }

    /// A window of the search has ended. Where its trace is full by that, it is thinned.
    pub fn trace(&mut self, study: StudyId, point: &TracePoint, full: bool) {
        self.points.push(PointRow::new(study, point, full));
    }

    /// Returns true if there is nothing to make durable.
    pub(crate) fn is_empty(&self) -> bool {
        self.deleted.is_empty()
            && self.importing.is_empty()
            && self.imported.is_empty()
            && self.abandoned.is_empty()
            && self.studies.is_empty()
            && self.states.is_empty()
            && self.passed.is_empty()
            && self.open.is_empty()
            && self.past.is_empty()
            && self.late.is_empty()
            && self.pruned.is_empty()
            && self.points.is_empty()
    }

    /// The studies that are written to, but for those that are being imported: they must be this controller's.
    fn touched(&self) -> impl Iterator<Item = i64> {
        let ids = self.deleted.iter().chain(&self.imported).copied();
        let rows = self.studies.iter().map(|row| row.id);
        let states = self.states.iter().map(|row| row.study);
        let open = self.open.iter().map(|row| row.step.study);
        let past = self.past.iter().map(|row| row.step.study);
        let late = self.late.iter().map(|(study, ..)| *study);
        let keys = self.passed.iter().chain(&self.pruned).map(|(study, _)| *study);
        let points = self.points.iter().map(|row| row.study);
        ids.chain(rows).chain(states).chain(open).chain(past).chain(late).chain(keys).chain(points)
    }
}

/// The studies that this controller owns from now on, and those that it lost to another.
#[derive(Default)]
pub struct Tick {
    /// As they are stored; one that was known before is to be replaced.
    pub gained: Vec<Study>,
    /// No longer this controller's.
    pub lost: Vec<StudyId>,
}

/// The database of one controller.
pub enum Store {
    /// A file.
    Sqlite(Box<sqlite::Sqlite>),
    /// A server.
    Postgres(Box<postgres::Postgres>),
}

impl Store {
    /// Opens the database; makes its tables, and an SQLite database's directory, if they are not there. Not to be called
    /// on a thread of an asynchronous runtime.
    pub fn open(location: &Location) -> Result<Store, Error> {
        Ok(match location {
            Location::Directory(directory) => {
                Store::Sqlite(Box::new(sqlite::Sqlite::open(directory)?))
            }
            Location::Postgres { url, advertise } => {
                Store::Postgres(Box::new(postgres::Postgres::open(url, advertise)?))
            }
        })
    }

    /// Reads every study that this controller owns. Leases run their full time from `now`.
    pub fn load(&mut self, now: Instant) -> Result<Vec<Study>, Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.load(now),
            Store::Postgres(postgres) => postgres.load(now),
        }
    }

    /// Makes all of `changes` durable, or none.
    pub fn commit(&mut self, changes: Changes) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        match self {
            Store::Sqlite(sqlite) => sqlite.commit(changes),
            Store::Postgres(postgres) => postgres.commit(&changes),
        }
    }

    /// Does a part of the work that commits have left for later. To be called after each, when it has been acknowledged.
    pub fn work_off(&mut self) -> Result<(), Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.work_off(false),
            Store::Postgres(_) => Ok(()),
        }
    }

    /// Lets a [`Reader`] see all that is committed.
    pub fn settle(&mut self) -> Result<(), Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.settle(Changes::default()),
            Store::Postgres(_) => Ok(()),
        }
    }

    /// Returns the outcome of a step in the history.
    pub fn closed(&mut self, study: StudyId, step: StepId) -> Result<Option<ClosedOutcome>, Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.closed(study, step),
            Store::Postgres(postgres) => postgres.closed(study, step),
        }
    }

    /// Of a study that is not this controller's: where to ask for it. None if there is no such study.
    pub fn owner(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self {
            Store::Sqlite(_) => Ok(None),
            Store::Postgres(postgres) => postgres.owner(name),
        }
    }

    /// Returns where to ask for work on a study of one of `spaces` that is not this controller's, not in `set_aside` and about one
    /// of `data_sets`, if there are any; none if there is none.
    pub fn owner_of_work(
        &mut self,
        spaces: &[String],
        data_sets: &[String],
        set_aside: &[StudyId],
    ) -> Result<Option<String>, Error> {
        match self {
            Store::Sqlite(_) => Ok(None),
            Store::Postgres(postgres) => postgres.owner_of_work(spaces, data_sets, set_aside),
        }
    }

    /// To be called every second or so: removes a part of what was deleted, and keeps up with other controllers. Always
    /// writes a little, so that an error says that nothing can be written.
    pub fn tick(&mut self, now: Instant) -> Result<Tick, Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.tick().map(|()| Tick::default()),
            Store::Postgres(postgres) => postgres.tick(now),
        }
    }

    /// Writes as much as a large commit, and removes it: an error says that there is no room for one. Where a little can be
    /// written and much cannot, [`tick`](Store::tick) alone would not tell.
    pub fn try_large_write(&mut self) -> Result<(), Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.try_large_write(),
            Store::Postgres(postgres) => postgres.try_large_write(),
        }
    }

    /// Lets others take over at once. Called last.
    pub fn leave(&mut self) -> Result<(), Error> {
        match self {
            Store::Sqlite(_) => Ok(()),
            Store::Postgres(postgres) => postgres.leave(),
        }
    }

    /// Bytes on disk.
    pub fn size(&mut self) -> Result<u64, Error> {
        match self {
            Store::Sqlite(sqlite) => sqlite.size(),
            Store::Postgres(postgres) => postgres.size(),
        }
    }
}

/// Reads what is durable and settled, beside the [`Store`]; cheap to clone.
#[derive(Clone)]
pub struct Reader {
    source: Source,
    failing: Arc<Mutex<Condition>>,
}

#[derive(Clone)]
enum Source {
    Sqlite(sqlite::Reader),
    Postgres(postgres::Reader),
}

/// The condition that the database cannot be read.
pub(crate) fn failing_reads() -> Condition {
    Condition::new("cannot read the database")
}

impl Reader {
    /// A reader of a database that a [`Store`] has opened.
    pub fn new(location: &Location) -> Result<Reader, Error> {
        let source = match location {
            Location::Directory(directory) => Source::Sqlite(sqlite::Reader::new(directory)),
            Location::Postgres { url, .. } => Source::Postgres(postgres::Reader::new(url)?),
        };
        Ok(Reader { source, failing: Arc::new(Mutex::new(failing_reads())) })
    }

    /// Logs when reads begin to fail, and when that is over.
    fn record<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        self.failing.lock().record(result.as_ref().map_err(Error::reason));
        result
    }

    /// A part of a study's history: `limit` steps at most, and fewer where they are large.
    pub async fn history(
        &self,
        study: StudyId,
        start: PageStart,
        limit: usize,
    ) -> Result<Page, Error> {
        self.record(match &self.source {
            Source::Sqlite(sqlite) => sqlite.history(study, start, limit).await,
            Source::Postgres(postgres) => postgres.history(study, start, limit).await,
        })
    }

    /// The windows of a study's search that have ended, oldest first.
    pub async fn trace(&self, study: StudyId) -> Result<Vec<TracePoint>, Error> {
        self.record(match &self.source {
            Source::Sqlite(sqlite) => sqlite.trace(study).await,
            Source::Postgres(postgres) => postgres.trace(study).await,
        })
    }

    /// Studies of any controller on this database: the one of this name, or all. An SQLite database has one
    /// controller, which knows its studies itself: then there are none here.
    pub async fn studies(&self, name: Option<&str>) -> Result<Vec<Study>, Error> {
        match &self.source {
            Source::Sqlite(_) => Ok(Vec::new()),
            Source::Postgres(postgres) => self.record(postgres.studies(name).await),
        }
    }

    /// Checks that the database answers.
    pub async fn check(&self) -> Result<(), Error> {
        match &self.source {
            Source::Sqlite(sqlite) => sqlite.check().await,
            Source::Postgres(postgres) => postgres.check().await,
        }
    }
}

/// Bytes of rows after which a page of a history ends. The reply then stays below the 4 MiB that gRPC's libraries take by default,
/// unless a single report is larger.
const PAGE_BYTES: usize = 1 << 20;

/// Where a part of a history starts, and which way it goes.
#[derive(Clone, Copy, Debug)]
pub enum PageStart {
    /// With the next step after this one, upwards.
    After(StepId),
    /// With the last step before this one, downwards.
    Before(StepId),
}

/// A part of a history.
pub struct Page {
    /// Steps of the past, in its direction.
    pub steps: Vec<ClosedStep>,
    /// True if there are more after these.
    pub more: bool,
    limit: usize,
    bytes: usize,
}

impl Page {
    fn new(limit: usize) -> Page {
        Page { steps: Vec::new(), more: false, limit, bytes: 0 }
    }

    /// Rows to ask the database for: one more than there is room for.
    fn rows(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// Adds a row if there is room, and says whether there was.
    fn push(&mut self, row: &PastRow) -> Result<bool, Error> {
        self.more = self.steps.len() >= self.limit || self.bytes >= PAGE_BYTES;
        if !self.more {
            self.bytes += row.bytes();
            self.steps.push(row.past()?);
        }
        Ok(!self.more)
    }
}

/// Lets every controller on a database count as gone.
#[cfg(test)]
pub(crate) use self::postgres::forget_controllers;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        asng::{Architecture, Value},
        study::{Kind, Now, Spec, Step, Variable},
    };

    /// The changes that a new study makes.
    pub(super) fn changes(name: &str, id: u64) -> Changes {
        let choices = ["a", "b"].map(String::from).to_vec();
        let variables = vec![Variable { name: "v".into(), kind: Kind::Categorical { choices } }];
        let spec = Spec { variables, max_steps: 10, ..Spec::default() };
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let study = Study::new(StudyId(id), name, spec, 1, "", Vec::new(), now).unwrap();
        let mut changes = Changes::default();
        changes.study(&study);
        changes.state(&study);
        changes
    }

    /// A step that was closed unreported, of the study of [`changes`].
    pub(super) fn past(step: u64) -> ClosedStep {
        let architectures = |choices: [u32; 2]| {
            choices.map(|choice| Architecture([Value::Choice(choice)].into())).into()
        };
        let step = Step {
            id: StepId(step),
            generation: 0,
            applied: 0,
            train: architectures([1, 0]),
            rank: architectures([0, 1]),
            attempt: 1,
            lease: None,
        };
        ClosedStep { step, report: None }
    }

    #[test]
    fn a_location_is_shown_without_its_password() {
        let url = "postgres://user:secret@db:5433/asng".to_owned();
        let location = Location::Postgres { url, advertise: String::new() };
        assert_eq!(location.to_string(), "postgres://db:5433/asng");
    }
}
