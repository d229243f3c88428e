//! SQLite: one file in the state directory, for one controller, kept apart from others by a lock file.

use std::{
    fs::{self, File},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Statement, params,
    types::{FromSql, Type},
};
use serde::de::DeserializeOwned;

use super::{
    Changes, Error, Page, PageStart, architectures,
    journal::Journal,
    rows::{self, OpenRow, PastRow, PointRow, ReportRow, StateRow, StepRow, StudyRow},
};
use crate::{
    asng::Architecture,
    study::{ClosedOutcome, StepId, Study, StudyId, TracePoint},
};

/// Version of the schema, in SQLite's `user_version`.
const VERSION: i64 = 6;
/// The oldest version that can still be read: without the columns for costs and elapsed time, without traces, and with
/// architectures as JSON.
const OLDEST: i64 = 3;
/// From the oldest version on, each to the next.
const UPGRADES: [&str; (VERSION - OLDEST) as usize] = [
    "ALTER TABLE states ADD COLUMN selection TEXT; ALTER TABLE history ADD COLUMN costs TEXT;",
    "CREATE TABLE trace (study INTEGER NOT NULL, applied INTEGER NOT NULL, point TEXT NOT NULL,
         PRIMARY KEY (study, applied)) STRICT, WITHOUT ROWID;",
    // Rows stay as they are: a column of any type may hold text. SQLite has no statement for it, and copying a history
    // could take long; sqlite.org/lang_altertable.html, section 8, has this way.
    "ALTER TABLE states ADD COLUMN elapsed_ms INTEGER;
     PRAGMA writable_schema = ON;
     UPDATE sqlite_schema
         SET sql = replace(replace(sql, 'train       TEXT', 'train       ANY'), 'rank        TEXT', 'rank        ANY')
         WHERE type = 'table' AND name IN ('open_steps', 'history');
     PRAGMA writable_schema = RESET;",
];
const SCHEMA: &str = include_str!("sqlite.sql");
/// Name of the database in the state directory.
const FILE: &str = "asng.db";
/// Pages of the write-ahead log after which it goes into the database: many commits write the same pages.
const CHECKPOINT_PAGES: i64 = 4096;
/// As much as a large commit writes.
const LARGE_WRITE: usize = 1 << 20;
/// Steps of deleted studies that are removed at a time.
const SWEEP: i64 = 5_000;

/// The database, open for writing.
pub struct Sqlite {
    connection: Connection,
    journal: Journal,
    /// True if the history of deleted studies may still be stored.
    sweeping: bool,
    _lock: File,
}

/// Copies the database of a state directory to `file`, while a controller may be using it, and reads the copy again.
/// Returns how many studies are in it.
pub fn back_up(directory: &Path, file: &Path) -> Result<usize, Error> {
    let failed = |cause| Error::Directory { directory: file.into(), cause };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(directory.join(FILE), flags)?;
    let part = file.with_added_extension("part");
    // Left from a backup that was cut short.
    let _ = fs::remove_file(&part);
    source.execute("VACUUM INTO ?1", [part.to_string_lossy()])?;
    let studies = verify(&part)?;
    File::open(&part).and_then(|copy| copy.sync_all()).map_err(failed)?;
    fs::rename(&part, file).map_err(failed)?;
    Ok(studies)
}

/// Makes a backup the database of a state directory that has none. Returns how many studies are in it.
pub fn restore(file: &Path, directory: &Path) -> Result<usize, Error> {
    let failed = |cause| Error::Directory { directory: directory.into(), cause };
    let _lock = lock(directory)?;
    let database = directory.join(FILE);
    if database.exists() {
        return Err(Error::Occupied(directory.into()));
    }
    let studies = verify(file)?;
    let part = database.with_added_extension("part");
    fs::copy(file, &part).map_err(failed)?;
    File::open(&part).and_then(|copy| copy.sync_all()).map_err(failed)?;
    fs::rename(&part, &database).map_err(failed)?;
    Ok(studies)
}

/// Reads all of a database that nobody is using, and counts its studies.
fn verify(file: &Path) -> Result<usize, Error> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    check_version(&connection, file)?;
    let found: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Error::Corrupt { file: file.into(), found });
    }
    Ok(load(&connection, &read_journal(&connection)?, Instant::now())?.len())
}

fn lock(directory: &Path) -> Result<File, Error> {
    let failed = |cause| Error::Directory { directory: directory.into(), cause };
    fs::create_dir_all(directory).map_err(failed)?;
    let lock = File::create(directory.join("lock")).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => Error::InUse(directory.into()),
        fs::TryLockError::Error(source) => failed(source),
    })?;
    Ok(lock)
}

/// Returns the version of the schema; 0 in a new database.
fn check_version(connection: &Connection, file: &Path) -> Result<i64, Error> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let database = file.display().to_string();
    match found {
        0 | OLDEST..=VERSION => Ok(found),
        1..OLDEST => Err(Error::Older(database)),
        _ => Err(Error::Newer { database, found, known: VERSION }),
    }
}

impl Sqlite {
    pub(super) fn open(directory: &Path) -> Result<Sqlite, Error> {
        let lock = lock(directory)?;
        let file = directory.join(FILE);
        let connection = Connection::open(&file)?;
        let found = check_version(&connection, &file)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.set_prepared_statement_cache_capacity(32);
        let steps = match usize::try_from(found - OLDEST) {
            Ok(version) => UPGRADES[version..].concat(),
            Err(_) => SCHEMA.to_owned(),
        };
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;"
        ))?;
        connection.execute("UPDATE absent SET importing = NULL", [])?;
        let journal = read_journal(&connection)?;
        Ok(Sqlite { connection, journal, sweeping: true, _lock: lock })
    }

    pub(super) fn load(&self, now: Instant) -> Result<Vec<Study>, Error> {
        load(&self.connection, &self.journal, now)
    }

    pub(super) fn commit(&mut self, mut changes: Changes) -> Result<(), Error> {
        self.sweeping |= !changes.deleted.is_empty() || !changes.abandoned.is_empty();
        let Some(entry) = self.journal.entry(&mut changes) else { return self.settle(changes) };
        self.connection
            .prepare_cached("INSERT INTO journal (entry) VALUES (?1)")?
            .execute([entry])?;
        self.journal.add(self.connection.last_insert_rowid(), changes);
        Ok(())
    }

    /// Writes all that is in the journal to the tables, and then `changes`.
    pub(super) fn settle(&mut self, changes: Changes) -> Result<(), Error> {
        if self.journal.is_empty() && changes.is_empty() {
            return Ok(());
        }
        let parts = mem::take(&mut self.journal).into_changes().chain([changes]);
        self.write(parts, Some(i64::MAX))
    }

    /// Writes a part of what is in the journal to the tables, if enough has gathered or it is wanted `soon`.
    pub(super) fn work_off(&mut self, soon: bool) -> Result<(), Error> {
        let Some(part) = self.journal.part(soon) else { return Ok(()) };
        // A power cut may undo it: then it is in the journal again.
        self.without_sync(|sqlite| sqlite.write([part.changes], part.done))
    }

    /// Lets `write` return before the disk has it.
    fn without_sync<T>(
        &mut self,
        write: impl FnOnce(&mut Sqlite) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        let written = write(self);
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        written
    }

    /// Writes `parts` to the tables. The journal up to its row `done` is not needed any more.
    fn write(
        &mut self,
        parts: impl IntoIterator<Item = Changes>,
        done: Option<i64>,
    ) -> Result<(), Error> {
        let written = self.transact(parts, done);
        if written.is_err() {
            self.journal = read_journal(&self.connection)?;
        }
        written
    }

    fn transact(
        &mut self,
        parts: impl IntoIterator<Item = Changes>,
        done: Option<i64>,
    ) -> Result<(), Error> {
        // Dropped on an error, it rolls back.
        let transaction = self.connection.transaction()?;
        for part in parts {
            write(&transaction, &part)?;
        }
        if let Some(done) = done {
            transaction.prepare_cached("DELETE FROM journal WHERE id <= ?1")?.execute([done])?;
        }
        Ok(transaction.commit()?)
    }

    pub(super) fn closed(
        &self,
        study: StudyId,
        step: StepId,
    ) -> Result<Option<ClosedOutcome>, Error> {
        let key = (study.0.cast_signed(), step.0.cast_signed());
        if let Some(closed) = self.journal.closed(key) {
            return Ok(Some(closed));
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT generation, applied, trainer IS NOT NULL, generation_made FROM history
             WHERE study = ?1 AND step = ?2",
        )?;
        let late = self.journal.is_late(key);
        let row = statement.query_row([key.0, key.1], |row| {
            Ok(rows::closed(row.get(0)?, row.get(1)?, late || row.get(2)?, row.get(3)?))
        });
        Ok(row.optional()?)
    }

    /// Works off, writes a page, and removes a part of the history of studies that are not there.
    pub(super) fn tick(&mut self) -> Result<(), Error> {
        self.work_off(true)?;
        // Is written although it does not change.
        self.without_sync(|sqlite| {
            Ok(sqlite.connection.pragma_update(None, "user_version", VERSION)?)
        })?;
        if !self.sweeping {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        let removed = transaction
            .prepare_cached(
                "DELETE FROM history WHERE (study, step) IN
                     (SELECT study, step FROM history WHERE study IN
                         (SELECT study FROM absent WHERE importing IS NULL) LIMIT ?1)",
            )?
            .execute([SWEEP])?;
        if removed == 0 {
            transaction.execute(
                "DELETE FROM trace WHERE study IN
                     (SELECT study FROM absent WHERE importing IS NULL)",
                [],
            )?;
            transaction.execute("DELETE FROM absent WHERE importing IS NULL", [])?;
        }
        transaction.commit()?;
        self.sweeping = removed > 0;
        Ok(())
    }

    pub(super) fn try_large_write(&mut self) -> Result<(), Error> {
        // The first is left over if the process ended between the others.
        Ok(self.connection.execute_batch(&format!(
            "DROP TABLE IF EXISTS large_write;
             CREATE TABLE large_write AS SELECT zeroblob({LARGE_WRITE}) AS bytes;
             DROP TABLE large_write;"
        ))?)
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get(0));
        let (pages, unused, bytes): (i64, i64, i64) =
            (pragma("page_count")?, pragma("freelist_count")?, pragma("page_size")?);
        Ok(((pages - unused) * bytes).unsigned_abs())
    }
}

fn load(connection: &Connection, journal: &Journal, now: Instant) -> Result<Vec<Study>, Error> {
    let mut open = connection.prepare("SELECT * FROM open_steps WHERE study = ?1")?;
    let mut statement =
        connection.prepare("SELECT * FROM studies JOIN states ON states.study = studies.id")?;
    let mut studies = Vec::new();
    for found in statement.query_map([], study_row)? {
        let (study, state) = found?;
        let open: Result<Vec<_>, _> = open.query_map([study.id], open_row)?.collect();
        let (state, open) = journal.overlay(study.id, state, open?);
        studies.push(rows::study(study, state, open, now)?);
    }
    Ok(studies)
}

/// Reads the journal that another process has left.
fn read_journal(connection: &Connection) -> Result<Journal, Error> {
    let mut journal = Journal::default();
    let mut entries = connection.prepare("SELECT id, entry FROM journal ORDER BY id")?;
    for found in entries.query_map([], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))? {
        let damaged = |error| Error::Damaged { study: 0, what: format!("journal: {error}") };
        let (id, entry) = found?;
        journal.read(id, &entry).map_err(damaged)?;
    }
    let mut one = connection.prepare(
        "SELECT * FROM studies JOIN states ON states.study = studies.id WHERE studies.id = ?1",
    )?;
    for study in journal.studies() {
        if let Some((study, state)) = one.query_row([study], study_row).optional()? {
            journal.find_learnt(&study, &state)?;
        }
    }
    Ok(journal)
}

fn write(connection: &Connection, changes: &Changes) -> Result<(), Error> {
    for id in &changes.deleted {
        for sql in [
            "DELETE FROM studies WHERE id = ?1",
            "DELETE FROM states WHERE study = ?1",
            "DELETE FROM open_steps WHERE study = ?1",
        ] {
            connection.prepare_cached(sql)?.execute([id])?;
        }
    }
    for id in changes.deleted.iter().chain(&changes.abandoned) {
        connection
            .prepare_cached("INSERT OR REPLACE INTO absent (study, importing) VALUES (?1, NULL)")?
            .execute([id])?;
    }
    for id in &changes.importing {
        connection
            .prepare_cached("INSERT OR REPLACE INTO absent (study, importing) VALUES (?1, 1)")?
            .execute([id])?;
        // Of a study of that id which is being removed.
        connection.prepare_cached("DELETE FROM trace WHERE study = ?1")?.execute([id])?;
    }
    for id in &changes.imported {
        connection.prepare_cached("DELETE FROM absent WHERE study = ?1")?.execute([id])?;
    }
    for row in &changes.studies {
        connection
            .prepare_cached(
                "INSERT INTO studies (id, name, owner, spec, seed, start, created_ms, variables)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET variables = excluded.variables",
            )?
            .execute(params![
                row.id,
                row.name,
                row.owner,
                row.spec,
                row.seed,
                row.start,
                row.created_ms,
                row.variables
            ])?;
    }
    for row in &changes.states {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO states
                     (study, state, state_ms, started_ms, theta, progress, incumbent, selection,
                      elapsed_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                row.study,
                row.state,
                row.state_ms,
                row.started_ms,
                row.theta,
                row.progress,
                row.incumbent,
                row.selection.as_deref().map(rows::json),
                row.elapsed_ms
            ])?;
    }
    for key in &changes.passed {
        connection
            .prepare_cached("DELETE FROM open_steps WHERE study = ?1 AND step = ?2")?
            .execute(*key)?;
    }
    for OpenRow { step, trainer, origin, report } in &changes.open {
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO open_steps
                 (study, step, generation, applied, train, rank, attempt, trainer, origin, report)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        bind_step(&mut statement, step)?;
        statement.raw_bind_parameter(8, trainer)?;
        statement.raw_bind_parameter(9, origin)?;
        statement.raw_bind_parameter(10, report)?;
        statement.raw_execute()?;
    }
    for PastRow { step, report, .. } in changes.past.iter().filter(|past| !past.dropped) {
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO history
                 (study, step, generation, applied, train, rank, attempt,
                  trainer, losses, metrics, staleness, reported_ms, generation_made, costs)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?;
        bind_step(&mut statement, step)?;
        let report = report.as_ref();
        statement.raw_bind_parameter(8, report.map(|report| &report.trainer))?;
        statement.raw_bind_parameter(9, report.map(|report| &report.losses))?;
        statement.raw_bind_parameter(10, report.map(|report| &report.metrics))?;
        statement.raw_bind_parameter(11, report.map(|report| report.staleness))?;
        statement.raw_bind_parameter(12, report.map(|report| report.reported_ms))?;
        statement.raw_bind_parameter(13, report.and_then(|report| report.generation_made))?;
        statement.raw_bind_parameter(14, report.and_then(|report| report.costs.as_deref()))?;
        statement.raw_execute()?;
    }
    for (study, step, report) in &changes.late {
        connection
            .prepare_cached(
                "UPDATE history SET trainer = ?3, losses = ?4, metrics = ?5, staleness = ?6,
                     reported_ms = ?7, costs = ?8 WHERE study = ?1 AND step = ?2",
            )?
            .execute(params![
                study,
                step,
                report.trainer,
                report.losses,
                report.metrics,
                report.staleness,
                report.reported_ms,
                report.costs
            ])?;
    }
    for key in &changes.pruned {
        connection
            .prepare_cached("DELETE FROM history WHERE study = ?1 AND step <= ?2")?
            .execute(*key)?;
    }
    for row in &changes.points {
        write_point(connection, row)?;
        if row.full {
            let points = points(connection, row.study)?;
            connection.execute("DELETE FROM trace WHERE study = ?1", [row.study])?;
            for row in rows::thinned(row.study, &points)? {
                write_point(connection, &row)?;
            }
        }
    }
    Ok(())
}

fn write_point(connection: &Connection, row: &PointRow) -> rusqlite::Result<usize> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO trace (study, applied, point) VALUES (?1, ?2, ?3)")?
        .execute(params![row.study, row.applied, row.point])
}

/// The points of a trace, oldest first.
fn points(connection: &Connection, study: i64) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT point FROM trace WHERE study = ?1 ORDER BY applied";
    connection.prepare(sql)?.query_map([study], |row| row.get(0))?.collect()
}

fn bind_step(statement: &mut Statement<'_>, row: &StepRow) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(1, row.study)?;
    statement.raw_bind_parameter(2, row.step)?;
    statement.raw_bind_parameter(3, row.generation)?;
    statement.raw_bind_parameter(4, row.applied)?;
    statement.raw_bind_parameter(5, architectures::encode(&row.train))?;
    statement.raw_bind_parameter(6, architectures::encode(&row.rank))?;
    statement.raw_bind_parameter(7, row.attempt)
}

fn study_row(row: &Row<'_>) -> rusqlite::Result<(StudyRow, StateRow)> {
    let study = StudyRow {
        id: row.get("id")?,
        name: row.get("name")?,
        owner: row.get("owner")?,
        spec: row.get("spec")?,
        seed: row.get("seed")?,
        start: row.get("start")?,
        created_ms: row.get("created_ms")?,
        variables: row.get("variables")?,
    };
    let state = StateRow {
        study: study.id,
        state: row.get("state")?,
        state_ms: row.get("state_ms")?,
        started_ms: row.get("started_ms")?,
        theta: row.get("theta")?,
        progress: row.get("progress")?,
        incumbent: row.get("incumbent")?,
        selection: newer(row, "selection")?.map(|text: String| parse(&text)).transpose()?,
        elapsed_ms: newer(row, "elapsed_ms")?,
    };
    Ok((study, state))
}

/// The value of a column that backups of earlier versions do not have.
fn newer<T: FromSql>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    match row.get(column) {
        Err(rusqlite::Error::InvalidColumnName(_)) => Ok(None),
        found => found,
    }
}

fn step_row(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    Ok(StepRow {
        study: row.get("study")?,
        step: row.get("step")?,
        generation: row.get("generation")?,
        applied: row.get("applied")?,
        train: step_architectures(row, "train")?,
        rank: step_architectures(row, "rank")?,
        attempt: row.get("attempt")?,
    })
}

/// Text or bytes.
fn step_architectures(row: &Row<'_>, column: &str) -> rusqlite::Result<Arc<[Architecture]>> {
    let damaged = |what: String| {
        let what = format!("{column}: {what}").into();
        rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, what)
    };
    let bytes = row.get_ref(column)?.as_bytes().map_err(|error| damaged(error.to_string()))?;
    architectures::decode(bytes).map_err(damaged)
}

fn parse<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn open_row(row: &Row<'_>) -> rusqlite::Result<OpenRow> {
    Ok(OpenRow {
        step: step_row(row)?,
        trainer: row.get("trainer")?,
        origin: row.get("origin")?,
        report: row.get("report")?,
    })
}

fn past_row(row: &Row<'_>) -> rusqlite::Result<PastRow> {
    let trainer: Option<String> = row.get("trainer")?;
    let report = trainer.map(|trainer| {
        Ok::<_, rusqlite::Error>(ReportRow {
            trainer,
            losses: row.get("losses")?,
            metrics: row.get("metrics")?,
            staleness: row.get("staleness")?,
            reported_ms: row.get("reported_ms")?,
            generation_made: row.get("generation_made")?,
            costs: row.get("costs")?,
        })
    });
    Ok(PastRow { step: step_row(row)?, report: report.transpose()?, dropped: false })
}

/// Reads the file through connections of its own.
#[derive(Clone)]
pub(super) struct Reader {
    file: PathBuf,
}

impl Reader {
    pub(super) fn new(directory: &Path) -> Reader {
        Reader { file: directory.join(FILE) }
    }

    pub(super) async fn history(
        &self,
        study: StudyId,
        start: PageStart,
        limit: usize,
    ) -> Result<Page, Error> {
        self.read(move |connection| {
            let (StepId(step), sql) = match start {
                PageStart::After(step) => (
                    step,
                    "SELECT * FROM history WHERE study = ?1 AND step > ?2 ORDER BY step LIMIT ?3",
                ),
                PageStart::Before(step) => (
                    step,
                    "SELECT * FROM history WHERE study = ?1 AND step < ?2
                     ORDER BY step DESC LIMIT ?3",
                ),
            };
            let mut statement = connection.prepare(sql)?;
            let mut page = Page::new(limit);
            let key = (study.0.cast_signed(), step.cast_signed(), page.rows());
            for row in statement.query_map(key, past_row)? {
                if !page.push(&row?)? {
                    break;
                }
            }
            Ok(page)
        })
        .await
    }

    pub(super) async fn trace(&self, study: StudyId) -> Result<Vec<TracePoint>, Error> {
        self.read(move |connection| rows::trace(study, &points(connection, study.0.cast_signed())?))
            .await
    }

    pub(super) async fn check(&self) -> Result<(), Error> {
        self.read(|connection| {
            Ok(connection.query_row("SELECT count(*) FROM absent", [], |_| Ok(()))?)
        })
        .await
    }

    /// Runs `work` on a connection, on a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let file = self.file.clone();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let read =
            tokio::task::spawn_blocking(move || work(&Connection::open_with_flags(file, flags)?));
        match read.await {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

#[cfg(test)]
impl Sqlite {
    /// Makes the disk full: the database file may not grow beyond its present size.
    pub(crate) fn fill_disk(&self) {
        let pages: i64 =
            self.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        self.connection.pragma_update(None, "max_page_count", pages).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{changes, past},
        *,
    };

    #[test]
    fn a_second_process_is_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let first = Sqlite::open(directory.path()).unwrap();
        assert!(matches!(Sqlite::open(directory.path()), Err(Error::InUse(_))));
        drop(first);
        // A child that another test is starting has the lock's file open until it runs its own program.
        while let Err(error) = Sqlite::open(directory.path()) {
            assert!(matches!(error, Error::InUse(_)), "{error}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_database_of_a_newer_release_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::open(directory.path()).unwrap();
        store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        let Err(error) = Sqlite::open(directory.path()) else { panic!("opened") };
        assert!(error.to_string().contains("schema version 7, this release knows 6"), "{error}");
    }

    #[test]
    fn a_database_of_the_oldest_version_and_its_backup_are_read_and_brought_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let (state, restored) = (directory.path().join("state"), directory.path().join("restored"));
        let backup = directory.path().join("backup.db");
        let mut store = Sqlite::open(&state).unwrap();
        store.settle(changes("s", 7)).unwrap();
        // As the first version that can be read made it.
        let downgrade = "ALTER TABLE states DROP COLUMN selection; ALTER TABLE states DROP COLUMN elapsed_ms;
             DROP TABLE trace; DROP TABLE history; DROP TABLE open_steps;
             CREATE TABLE open_steps (
                 study       INTEGER NOT NULL,
                 step        INTEGER NOT NULL,
                 generation  INTEGER NOT NULL,           -- sampled from
                 applied     INTEGER NOT NULL,           -- reports applied when it was sampled
                 train       TEXT    NOT NULL,           -- JSON: architectures, integers as their real draws
                 rank        TEXT    NOT NULL,
                 attempt     INTEGER NOT NULL,           -- how often it has been handed out
                 trainer     TEXT,                       -- who holds it
                 origin      TEXT,                       -- JSON: the request it answered
                 report      TEXT,                       -- JSON, of a report that waits
                 PRIMARY KEY (study, step)
             ) STRICT, WITHOUT ROWID;
             CREATE TABLE history (
                 study       INTEGER NOT NULL,
                 step        INTEGER NOT NULL,
                 generation  INTEGER NOT NULL,
                 applied     INTEGER NOT NULL,
                 train       TEXT    NOT NULL,
                 rank        TEXT    NOT NULL,
                 attempt     INTEGER NOT NULL,
                 trainer     TEXT,                       -- who reported; this and what follows is null in a step closed unreported
                 losses      TEXT,                       -- JSON, null for a loss that is not finite
                 metrics     TEXT,                       -- JSON
                 staleness   INTEGER,
                 reported_ms INTEGER,
                 generation_made INTEGER,                -- by the update it entered; null in a stale one
                 PRIMARY KEY (study, step)
             ) STRICT, WITHOUT ROWID;
             INSERT INTO history (study, step, generation, applied, train, rank, attempt)
                 VALUES (7, 1, 0, 0, '[[1],[0]]', '[[0],[1]]', 1);
             INSERT INTO open_steps (study, step, generation, applied, train, rank, attempt)
                 VALUES (7, 2, 0, 0, '[[1],[0]]', '[[0],[1]]', 1);
             UPDATE states SET started_ms = (unixepoch() - 3600) * 1000,
                 progress = json_set(progress, '$.sampled', 2);
             PRAGMA user_version = 3;";
        store.connection.execute_batch(downgrade).unwrap();
        drop(store);
        assert_eq!(back_up(&state, &backup).unwrap(), 1);
        assert_eq!(restore(&backup, &restored).unwrap(), 1);
        for directory in [state, restored] {
            let mut store = Sqlite::open(&directory).unwrap();
            let studies = store.load(Instant::now()).unwrap();
            assert_eq!(studies.len(), 1);
            assert_eq!(studies[0].elapsed().as_secs() / 60, 60, "by the wall clock");
            assert_eq!(studies[0].step(StepId(2)), Some(&past(2).step));
            store.settle(changes("later", 8)).unwrap();
            let mut added = Changes::default();
            added.past(StudyId(7), &past(3));
            store.settle(added).unwrap();
            let sql = "SELECT *, typeof(train) AS type FROM history ORDER BY step";
            let mut statement = store.connection.prepare(sql).unwrap();
            let rows = statement.query_map([], |row| Ok((past_row(row)?, row.get("type")?)));
            let rows: Vec<(PastRow, String)> = rows.unwrap().map(Result::unwrap).collect();
            let rows = rows.iter().map(|(row, kind)| (row.past().unwrap(), kind.as_str()));
            assert_eq!(rows.collect::<Vec<_>>(), [(past(1), "text"), (past(3), "blob")]);
            drop(statement);
            let check = "PRAGMA integrity_check";
            let found: String = store.connection.query_row(check, [], |row| row.get(0)).unwrap();
            assert_eq!(found, "ok");
            let version = check_version(&store.connection, &directory).unwrap();
            assert_eq!((version, store.load(Instant::now()).unwrap().len()), (VERSION, 2));
        }
    }

    #[test]
    fn a_backup_is_made_while_the_database_is_in_use_and_can_be_restored() {
        let directory = tempfile::tempdir().unwrap();
        let (state, restored) = (directory.path().join("state"), directory.path().join("restored"));
        let backup = directory.path().join("backup.db");
        let mut in_use = Sqlite::open(&state).unwrap();
        in_use.commit(changes("s", 7)).unwrap();
        assert_eq!(back_up(&state, &backup).unwrap(), 1);
        in_use.commit(changes("later", 8)).unwrap();
        assert_eq!(restore(&backup, &restored).unwrap(), 1);
        let studies = Sqlite::open(&restored).unwrap().load(Instant::now()).unwrap();
        assert_eq!(studies.iter().map(Study::name).collect::<Vec<_>>(), ["s"]);
        assert!(matches!(restore(&backup, &state), Err(Error::InUse(_))));
        drop(in_use);
        assert!(matches!(restore(&backup, &state), Err(Error::Occupied(_))));

        let mut bytes = fs::read(&backup).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..].fill(7);
        fs::write(&backup, bytes).unwrap();
        assert!(restore(&backup, &directory.path().join("other")).is_err(), "damaged");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), [7; 4096]).unwrap();
        assert!(matches!(Sqlite::open(directory.path()), Err(Error::Sqlite(_))));
    }
}
