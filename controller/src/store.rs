//! The only place that touches a database: one SQLite file in the state directory.
//!
//! Writes gather in a transaction that the caller commits; nothing is durable, and nothing may be acknowledged, before
//! [`Store::commit`] has returned. A store belongs to one thread and one process: a lock file keeps others out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    asng,
    study::{Closed, Event, Lease, Now, Outcome, Pending, Record, Step, StepId, Study, StudyId},
};

/// Version of the schema, in SQLite's `user_version`.
const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("store/schema.sql");

/// Why the database cannot be used. Nothing that was not committed is stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or its lock file cannot be made.
    #[error("cannot use state directory {}: {source}", .directory.display())]
    Directory {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "state directory {} is in use by another controller; stop that one, or name another directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// A later release wrote it.
    #[error(
        "database {} has schema version {found}, this release knows {VERSION}; use the release that wrote it, or a newer one",
        .file.display()
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
    },
    /// What is stored makes no sense.
    #[error("database is damaged: study {study}: {what}")]
    Damaged {
        /// The study's row.
        study: i64,
        /// What is wrong.
        what: String,
    },
    /// SQLite's own error: a full disk, an I/O error.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// The database of one controller.
pub struct Store {
    connection: Connection,
    in_transaction: bool,
    _lock: File,
}

impl Store {
    /// Opens the database in `directory`, which is made if it is not there.
    pub fn open(directory: &Path) -> Result<Store, Error> {
        let failed = |source| Error::Directory { directory: directory.into(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let lock = File::create(directory.join("lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => Error::InUse(directory.into()),
            fs::TryLockError::Error(source) => failed(source),
        })?;
        let file = directory.join("asng.db");
        let connection = Connection::open(&file)?;
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > VERSION {
            return Err(Error::Newer { file, found });
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.set_prepared_statement_cache_capacity(32);
        if found == 0 {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
            ))?;
        }
        Ok(Store { connection, in_transaction: false, _lock: lock })
    }

    /// Makes everything written since the last commit durable, all or nothing.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.in_transaction {
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Forgets everything written since the last commit.
    pub fn roll_back(&mut self) -> Result<(), Error> {
        self.in_transaction = false;
        // SQLite has rolled back by itself after some errors, a full disk among them.
        if !self.connection.is_autocommit() {
            self.connection.execute("ROLLBACK", [])?;
        }
        Ok(())
    }

    /// Size of the database in bytes, without the log of what was written last.
    pub fn size(&self) -> Result<u64, Error> {
        let query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let size: i64 = self.connection.prepare_cached(query)?.query_row([], |row| row.get(0))?;
        Ok(size.cast_unsigned())
    }

    fn begin(&mut self) -> Result<(), Error> {
        if !self.in_transaction {
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Stores a new study, which has no steps yet.
    pub fn insert(&mut self, study: &Study) -> Result<(), Error> {
        self.begin()?;
        self.connection
            .prepare_cached(
                "INSERT INTO studies (id, name, spec, seed, created_ms, variables, state, state_ms, theta,
                     progress, incumbent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                study.id().0.cast_signed(),
                study.name(),
                json(study.spec()),
                study.seed().cast_signed(),
                to_ms(study.created()),
                study.variables().map(json),
                json(study.state()),
                to_ms(study.state_since()),
                study.asng().map(|asng| asng.state().to_bytes()),
                json(study.progress()),
                study.incumbent().map(json),
            ])?;
        Ok(())
    }

    /// Stores what may change in a study's own row, but for its variables.
    pub fn save(&mut self, study: &Study) -> Result<(), Error> {
        self.begin()?;
        self.connection
            .prepare_cached(
                "UPDATE studies SET state = ?2, state_ms = ?3, theta = ?4, progress = ?5, incumbent = ?6
                 WHERE id = ?1",
            )?
            .execute(params![
                study.id().0.cast_signed(),
                json(study.state()),
                to_ms(study.state_since()),
                study.asng().map(|asng| asng.state().to_bytes()),
                json(study.progress()),
                study.incumbent().map(json),
            ])?;
        Ok(())
    }

    /// Stores what happened to a study's steps. The study's own row is [`save`](Store::save)d apart, once a commit.
    pub fn append(&mut self, study: &Study, event: &Event, now: Now) -> Result<(), Error> {
        self.begin()?;
        let id = study.id().0.cast_signed();
        let connection = &self.connection;
        let set_phase = |step: StepId, phase: &str| {
            connection
                .prepare_cached("UPDATE steps SET phase = ?3 WHERE study = ?1 AND step = ?2")?
                .execute(params![id, step.0.cast_signed(), phase])
        };
        match event {
            Event::Created | Event::Deleted | Event::StateChanged(_) => {}
            Event::Described => {
                connection
                    .prepare_cached("UPDATE studies SET variables = ?2 WHERE id = ?1")?
                    .execute(params![id, study.variables().map(json)])?;
            }
            Event::Sampled(step) => {
                if let Some(step) = study.step(*step) {
                    let lease = step.lease.as_ref();
                    connection
                        .prepare_cached(
                            "INSERT INTO steps (study, step, phase, generation, applied, train, rank,
                                 attempt, trainer, origin)
                             VALUES (?1, ?2, 'live', ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                        )?
                        .execute(params![
                            id,
                            step.id.0.cast_signed(),
                            step.generation.cast_signed(),
                            step.applied.cast_signed(),
                            json(&step.train),
                            json(&step.rank),
                            step.attempt,
                            lease.map(|lease| &lease.trainer),
                            lease.map(|lease| json(&lease.origin)),
                        ])?;
                }
            }
            Event::LeasedAgain(step) => {
                if let Some(step) = study.step(*step) {
                    let lease = step.lease.as_ref();
                    connection
                        .prepare_cached(
                            "UPDATE steps SET attempt = ?3, trainer = ?4, origin = ?5
                             WHERE study = ?1 AND step = ?2",
                        )?
                        .execute(params![
                            id,
                            step.id.0.cast_signed(),
                            step.attempt,
                            lease.map(|lease| &lease.trainer),
                            lease.map(|lease| json(&lease.origin)),
                        ])?;
                }
            }
            Event::Expired(step) | Event::Released(step) => {
                connection
                    .prepare_cached(
                        "UPDATE steps SET trainer = NULL, origin = NULL WHERE study = ?1 AND step = ?2",
                    )?
                    .execute(params![id, step.0.cast_signed()])?;
            }
            Event::Closed(step) => {
                set_phase(*step, "closed")?;
            }
            Event::Reported { step, report, outcome, staleness } => {
                connection
                    .prepare_cached(
                        "UPDATE steps SET phase = ?3, trainer = ?4, origin = NULL, staleness = ?5,
                             losses = ?6, metrics = ?7, reported_ms = ?8
                         WHERE study = ?1 AND step = ?2",
                    )?
                    .execute(params![
                        id,
                        step.0.cast_signed(),
                        phase_of(*outcome),
                        report.trainer,
                        staleness.cast_signed(),
                        json(&report.losses),
                        json(&report.metrics),
                        to_ms(now.wall),
                    ])?;
            }
            Event::Applied(steps) => {
                for step in steps {
                    set_phase(*step, "applied")?;
                }
            }
        }
        Ok(())
    }

    /// Removes a study and its history.
    pub fn delete(&mut self, study: StudyId) -> Result<(), Error> {
        self.begin()?;
        self.connection.execute("DELETE FROM steps WHERE study = ?1", [study.0.cast_signed()])?;
        self.connection.execute("DELETE FROM studies WHERE id = ?1", [study.0.cast_signed()])?;
        Ok(())
    }

    /// What became of a step that is no longer live.
    pub fn closed(&self, study: StudyId, step: StepId) -> Result<Option<Closed>, Error> {
        let row: Option<(String, i64, String)> = self
            .connection
            .prepare_cached(
                "SELECT phase, generation, rank FROM steps WHERE study = ?1 AND step = ?2",
            )?
            .query_row(params![study.0.cast_signed(), step.0.cast_signed()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        row.map(|(phase, generation, rank)| {
            let outcome = match phase.as_str() {
                "applied" => Some(Outcome::Applied),
                "pending" => Some(Outcome::Pending),
                "stale" => Some(Outcome::Stale),
                _ => None,
            };
            let rank: Vec<asng::Architecture> = parse(study.0.cast_signed(), "rank", &rank)?;
            let generation = generation.cast_unsigned();
            Ok(Closed { outcome, generation, lambda_theta: rank.len() })
        })
        .transpose()
    }

    /// Reads every study, oldest first. Leases run their full time from `now`.
    pub fn load(&self, now: Instant) -> Result<Vec<Study>, Error> {
        let mut statement =
            self.connection.prepare("SELECT * FROM studies ORDER BY created_ms, id")?;
        let mut rows = statement.query([])?;
        let mut studies = Vec::new();
        while let Some(row) = rows.next()? {
            studies.push(self.load_study(row, now)?);
        }
        Ok(studies)
    }

    fn load_study(&self, row: &Row<'_>, now: Instant) -> Result<Study, Error> {
        let id: i64 = row.get("id")?;
        let damaged = |what: String| Error::Damaged { study: id, what };
        let theta: Option<Vec<u8>> = row.get("theta")?;
        let mut record = Record {
            id: StudyId(id.cast_unsigned()),
            name: row.get("name")?,
            spec: parse(id, "spec", &row.get::<_, String>("spec")?)?,
            seed: row.get::<_, i64>("seed")?.cast_unsigned(),
            created: from_ms(row.get("created_ms")?),
            state: parse(id, "state", &row.get::<_, String>("state")?)?,
            state_since: from_ms(row.get("state_ms")?),
            variables: parse_optional(id, "variables", row.get("variables")?)?,
            asng: theta
                .map(|bytes| asng::State::from_bytes(&bytes))
                .transpose()
                .map_err(|error| damaged(error.to_string()))?,
            progress: parse(id, "progress", &row.get::<_, String>("progress")?)?,
            incumbent: parse_optional(id, "incumbent", row.get("incumbent")?)?,
            live: Vec::new(),
            pending: BTreeMap::new(),
        };
        let until = now + record.spec.lease();
        let mut statement = self.connection.prepare_cached(
            "SELECT * FROM steps WHERE study = ?1 AND phase IN ('live', 'pending')",
        )?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            let step = StepId(row.get::<_, i64>("step")?.cast_unsigned());
            let rank = parse(id, "rank", &row.get::<_, String>("rank")?)?;
            if row.get_ref("phase")?.as_str().map_err(rusqlite::Error::from)? == "pending" {
                let losses: Vec<Option<f64>> =
                    parse(id, "losses", &row.get::<_, String>("losses")?)?;
                let losses = losses.into_iter().map(|loss| loss.unwrap_or(f64::NAN)).collect();
                record.pending.insert(step, Pending { architectures: rank, losses });
                continue;
            }
            let trainer: Option<String> = row.get("trainer")?;
            let origin = parse_optional(id, "origin", row.get("origin")?)?;
            record.live.push(Step {
                id: step,
                generation: row.get::<_, i64>("generation")?.cast_unsigned(),
                applied: row.get::<_, i64>("applied")?.cast_unsigned(),
                train: parse(id, "train", &row.get::<_, String>("train")?)?,
                rank,
                attempt: row.get("attempt")?,
                lease: trainer.zip(origin).map(|(trainer, origin)| Lease {
                    trainer,
                    origin,
                    until,
                }),
            });
        }
        Study::restore(record).map_err(damaged)
    }
}

fn phase_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Applied => "applied",
        Outcome::Pending => "pending",
        Outcome::Stale => "stale",
    }
}

/// JSON for people who look into the database. Numbers keep all their bits; a loss that is not finite becomes null.
fn json(value: &(impl Serialize + ?Sized)) -> String {
    // Unwrap safety: the types stored here have text keys and no failing serializers.
    serde_json::to_string(value).unwrap()
}

fn parse<T: DeserializeOwned>(study: i64, column: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::Damaged { study, what: format!("{column}: {error}") })
}

fn parse_optional<T: DeserializeOwned>(
    study: i64,
    column: &str,
    text: Option<String>,
) -> Result<Option<T>, Error> {
    text.map(|text| parse(study, column, &text)).transpose()
}

/// Unix time in milliseconds; a clock set before 1970 counts as 1970.
fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
impl Store {
    /// Makes the disk full: the database file may not grow beyond its present size.
    pub(crate) fn fill_disk(&self) {
        let pages: i64 =
            self.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        self.connection.pragma_update(None, "max_page_count", pages).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let first = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(Error::InUse(_))));
        drop(first);
        Store::open(directory.path()).unwrap();
    }

    #[test]
    fn a_database_of_a_newer_release_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        let Err(error) = Store::open(directory.path()) else { panic!("opened") };
        assert!(error.to_string().contains("schema version 2, this release knows 1"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("asng.db"), [7; 4096]).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(Error::Sqlite(_))));
    }
}
