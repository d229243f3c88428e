//! PostgreSQL: one database for several controllers.
//!
//! Each study has one owner at a time. A controller writes a heartbeat every second; studies whose owner's heartbeat has not
//! changed for [`LEASE`], by the monotonic clock of whoever watches it, go to whoever asks first, with a higher fence: no wall
//! clock decides. Every transaction that writes to a study checks,
//! and locks until it commits, that the fence is still the one under which this controller took the study: an
//! owner that was paused and wakes up cannot write.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    mem,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use sqlx::{
    Connection, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgExecutor, PgPoolOptions, PgRow},
};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tracing::{info, warn};

use super::{
    Changes, Error, Page, PageStart, Tick, architectures,
    rows::{self, OpenRow, PastRow, PointRow, ReportRow, StateRow, StepRow, StudyRow},
};
use crate::{
    asng::Architecture,
    study::{ClosedOutcome, Spec, StepId, Study, StudyId, TracePoint},
};

const VERSION: i64 = 4;
/// From version 1 on, each to the next.
const UPGRADES: [&str; (VERSION - 1) as usize] = [
    "ALTER TABLE states ADD COLUMN selection TEXT; ALTER TABLE history ADD COLUMN costs TEXT;
     UPDATE schema_version SET version = 2;",
    "CREATE TABLE trace (study BIGINT NOT NULL, applied BIGINT NOT NULL, point TEXT NOT NULL,
         PRIMARY KEY (study, applied));
     UPDATE schema_version SET version = 3;",
    "ALTER TABLE states ADD COLUMN elapsed_ms BIGINT;
     ALTER TABLE open_steps ALTER COLUMN train TYPE BYTEA USING convert_to(train, 'UTF8'),
         ALTER COLUMN rank TYPE BYTEA USING convert_to(rank, 'UTF8');
     ALTER TABLE history ALTER COLUMN train TYPE BYTEA USING convert_to(train, 'UTF8'),
         ALTER COLUMN rank TYPE BYTEA USING convert_to(rank, 'UTF8');
     UPDATE schema_version SET version = 4;",
];
const SCHEMA: &str = include_str!("postgres.sql");
/// A controller whose heartbeat has not changed for this long has lost its studies.
const LEASE: Duration = Duration::from_secs(4);
/// Serialises the making of tables ("asng" in ASCII).
const MIGRATION_LOCK: i64 = 0x6173_6e67;
const SWEEP: i64 = 5_000;
/// Texts of 32 bytes that make as much as a large commit writes.
const LARGE_WRITE: i32 = 1 << 15;
/// How long PostgreSQL may take for anything.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The database, open for writing, with a runtime of its own: it is used on a thread that may wait.
pub struct Postgres {
    runtime: Runtime,
    options: PgConnectOptions,
    /// None after an error, until it is next needed.
    connection: Option<PgConnection>,
    id: i64,
    address: String,
    /// Studies that this controller owns, and under which fence.
    fences: HashMap<i64, i64>,
    /// Studies whose history it is importing.
    importing: HashSet<i64>,
    sweeping: bool,
    watch: Watch,
}

/// The heartbeats of other controllers, as this one has seen them.
#[derive(Default)]
struct Watch {
    /// Each with the time since when it has not changed.
    heartbeats: HashMap<i64, (String, Instant)>,
    last: Option<Instant>,
}

impl Watch {
    /// Takes the present heartbeats, and returns those of controllers that are gone. Time in which nobody watched does not
    /// count: those that were kept from the database together with this controller are not gone.
    fn gone(&mut self, found: Vec<(i64, String)>, now: Instant) -> Vec<(i64, String)> {
        let passed = |since: Instant| now.saturating_duration_since(since);
        let unbroken = self.last.replace(now).is_some_and(|last| passed(last) < LEASE / 2);
        let before = mem::take(&mut self.heartbeats);
        let mut gone = Vec::new();
        for (controller, heartbeat) in found {
            let since = match before.get(&controller) {
                Some((known, since)) if unbroken && *known == heartbeat => *since,
                _ => now,
            };
            if passed(since) >= LEASE {
                gone.push((controller, heartbeat.clone()));
            }
            self.heartbeats.insert(controller, (heartbeat, since));
        }
        gone
    }
}

impl Postgres {
    pub(super) fn open(url: &str, address: &str) -> Result<Postgres, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut postgres = Postgres {
            runtime: runtime.map_err(sqlx::Error::Io)?,
            options: PgConnectOptions::from_str(url)?.application_name("asng-controller"),
            connection: None,
            id: rand::random(),
            address: address.into(),
            fences: HashMap::new(),
            importing: HashSet::new(),
            sweeping: true,
            watch: Watch::default(),
        };
        let database = postgres.options.get_database().unwrap_or_default().to_owned();
        let found = postgres.runtime.block_on(async {
            let connection = PgConnection::connect_with(&postgres.options);
            // Bringing a long history up to date takes its time.
            make_tables(&mut in_time(connection).await??).await
        })?;
        if found > VERSION {
            return Err(Error::Newer { database, found, known: VERSION });
        }
        // There is one process at an address: an earlier one there has ended, and need not be waited for.
        postgres.run(async |connection| {
            sqlx::query("DELETE FROM controllers WHERE address = $1")
                .bind(address)
                .execute(connection)
                .await?;
            Ok(())
        })?;
        Ok(postgres)
    }

    /// Runs `work` on a connection that works, within a time. After an error the next one connects anew, since it is
    /// not known what became of the connection.
    fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Postgres { runtime, options, connection, .. } = self;
        runtime.block_on(async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => in_time(PgConnection::connect_with(options)).await??,
            };
            let result = in_time(work(&mut open)).await?;
            if !matches!(&result, Err(Error::Postgres(_))) {
                *connection = Some(open);
            }
            result
        })
    }

    pub(super) fn load(&mut self, now: Instant) -> Result<Vec<Study>, Error> {
        self.fences.clear();
        Ok(self.tick(now)?.gained)
    }

    pub(super) fn commit(&mut self, changes: &Changes) -> Result<(), Error> {
        let id = self.id;
        let created: Vec<i64> = changes
            .studies
            .iter()
            .map(|row| row.id)
            .filter(|study| !self.fences.contains_key(study))
            .collect();
        let mut owned = BTreeMap::new();
        for study in changes.touched() {
            if !created.contains(&study) && !self.importing.contains(&study) {
                owned.insert(study, *self.fences.get(&study).ok_or(Error::Fenced)?);
            }
        }
        let created = &created;
        self.run(async move |connection| {
            let mut transaction = connection.begin().await?;
            let (ids, fences): (Vec<i64>, Vec<i64>) = owned.into_iter().unzip();
            let held = sqlx::query(
                "SELECT 1 FROM studies JOIN unnest($1::bigint[], $2::bigint[]) AS held (id, fence)
                     ON studies.id = held.id AND studies.fence = held.fence
                 WHERE studies.controller = $3 FOR NO KEY UPDATE OF studies",
            )
            .bind(&ids)
            .bind(&fences)
            .bind(id)
            .fetch_all(&mut *transaction)
            .await?;
            if held.len() < ids.len() {
                return Err(Error::Fenced);
            }
            write(&mut transaction, changes, created, id).await?;
            transaction.commit().await?;
            Ok(())
        })?;
        self.fences.extend(created.iter().map(|study| (*study, 1)));
        self.importing.extend(&changes.importing);
        for study in changes.imported.iter().chain(&changes.abandoned) {
            self.importing.remove(study);
        }
        for study in &changes.deleted {
            self.fences.remove(study);
        }
        self.sweeping |= !changes.deleted.is_empty() || !changes.abandoned.is_empty();
        Ok(())
    }

    pub(super) fn closed(
        &mut self,
        study: StudyId,
        step: StepId,
    ) -> Result<Option<ClosedOutcome>, Error> {
        self.run(async move |connection| {
            let row = sqlx::query(
                "SELECT generation, applied, trainer IS NOT NULL, generation_made FROM history
                 WHERE study = $1 AND step = $2",
            )
            .bind(study.0.cast_signed())
            .bind(step.0.cast_signed())
            .fetch_optional(connection)
            .await?;
            let closed = row.map(|row| {
                let [generation, applied] = [row.try_get(0)?, row.try_get(1)?];
                Ok(rows::closed(generation, applied, row.try_get(2)?, row.try_get(3)?))
            });
            let closed = closed.transpose();
            closed.map_err(Error::Postgres)
        })
    }

    pub(super) fn owner(&mut self, name: &str) -> Result<Option<String>, Error> {
        self.run(async move |connection| {
            let address = sqlx::query_scalar(
                "SELECT coalesce(controllers.address, '') FROM studies
                 LEFT JOIN controllers ON controllers.id = studies.controller WHERE name = $1",
            )
            .bind(name)
            .fetch_optional(connection)
            .await?;
            Ok(address)
        })
    }

    pub(super) fn owner_of_work(
        &mut self,
        spaces: &[String],
        data_sets: &[String],
        set_aside: &[StudyId],
    ) -> Result<Option<String>, Error> {
        let id = self.id;
        let set_aside: Vec<_> = set_aside.iter().map(|study| study.0.cast_signed()).collect();
        self.run(async move |connection| {
            // The setting is read here and not by PostgreSQL, whose JSON refuses what ours takes.
            let mut found = sqlx::query_as::<_, (String, String)>(
                "SELECT address, spec FROM studies JOIN states ON states.study = studies.id
                     JOIN controllers ON controllers.id = studies.controller
                 WHERE controller <> $1 AND space = ANY($2) AND studies.id <> ALL($3)
                     AND state IN ('\"running\"', '\"waiting\"') ORDER BY created_ms",
            )
            .bind(id)
            .bind(spaces)
            .bind(set_aside)
            .fetch(connection);
            while let Some((address, spec)) = found.try_next().await? {
                let spec = serde_json::from_str::<Spec>(&spec);
                if spec.is_ok_and(|spec| spec.is_for(data_sets)) {
                    return Ok(Some(address));
                }
            }
            Ok(None)
        })
    }

    /// Says that this controller lives, takes studies that nobody owns, and compares what it owns with what it thinks. One
    /// that it lost and got back meanwhile is lost this time and gained the next, so that nothing that was built on what
    /// it was can be written under the new fence.
    pub(super) fn tick(&mut self, now: Instant) -> Result<Tick, Error> {
        let (id, address, sweeping) = (self.id, self.address.clone(), self.sweeping);
        let known = self.fences.clone();
        // After an error it begins anew.
        let mut watch = mem::take(&mut self.watch);
        let (owned, gained, removed, watch) = self.run(async move |connection| {
            sqlx::query(
                "INSERT INTO controllers (id, address, heartbeat) VALUES ($1, $2, now())
                 ON CONFLICT (id) DO UPDATE SET heartbeat = now()",
            )
            .bind(id)
            .bind(address)
            .execute(&mut *connection)
            .await?;
            let sql = "SELECT id, heartbeat::text FROM controllers WHERE id <> $1";
            let found = sqlx::query_as(sql).bind(id).fetch_all(&mut *connection).await?;
            let (gone, heartbeats): (Vec<_>, Vec<_>) = watch.gone(found, now).into_iter().unzip();
            // One whose heartbeat changes now is not gone after all.
            sqlx::query(
                "DELETE FROM controllers USING unnest($1::bigint[], $2::text[]) AS gone (id, heartbeat)
                 WHERE controllers.id = gone.id AND controllers.heartbeat::text = gone.heartbeat",
            )
            .bind(gone)
            .bind(heartbeats)
            .execute(&mut *connection)
            .await?;
            sqlx::query(
                "UPDATE studies SET controller = $1, fence = fence + 1
                 WHERE controller IS NULL OR controller NOT IN (SELECT id FROM controllers)",
            )
            .bind(id)
            .execute(&mut *connection)
            .await?;
            let owned: Vec<(i64, i64)> =
                sqlx::query_as("SELECT id, fence FROM studies WHERE controller = $1")
                    .bind(id)
                    .fetch_all(&mut *connection)
                    .await?;
            let owned: HashMap<i64, i64> = owned
                .into_iter()
                .filter(|(study, fence)| known.get(study).is_none_or(|known| known == fence))
                .collect();
            let new: Vec<i64> =
                owned.keys().filter(|study| !known.contains_key(study)).copied().collect();
            let gained = if new.is_empty() {
                Vec::new()
            } else {
                let sql = "SELECT * FROM studies JOIN states ON states.study = studies.id
                           WHERE studies.id = ANY($1)";
                let found = sqlx::query(sql).bind(&new).fetch_all(&mut *connection).await?;
                let open = sqlx::query("SELECT * FROM open_steps WHERE study = ANY($1)")
                    .bind(&new)
                    .fetch_all(&mut *connection)
                    .await?;
                studies(&found, &open, now)?
            };
            let removed = if sweeping { sweep(connection).await? } else { 0 };
            Ok((owned, gained, removed, watch))
        })?;
        self.watch = watch;
        let lost: Vec<StudyId> = self
            .fences
            .keys()
            .filter(|study| !owned.contains_key(study))
            .map(|study| StudyId(study.cast_unsigned()))
            .collect();
        if !gained.is_empty() {
            info!(studies = gained.len(), "studies taken over");
        }
        if !lost.is_empty() {
            warn!(studies = lost.len(), "studies lost to another controller");
        }
        self.fences = owned;
        self.sweeping = removed > 0;
        Ok(Tick { gained, lost })
    }

    pub(super) fn try_large_write(&mut self) -> Result<(), Error> {
        let id = self.id;
        self.run(async move |connection| {
            // Rolled back when it is dropped, also on an error.
            let mut transaction = connection.begin().await?;
            sqlx::query(
                "INSERT INTO history (study, step, generation, applied, train, rank, attempt, metrics)
                 SELECT $1, 0, 0, 0, '', '', 0, string_agg(md5(random()::text), '') FROM generate_series(1, $2)",
            )
            .bind(id)
            .bind(LARGE_WRITE)
            .execute(&mut *transaction)
            .await?;
            transaction.rollback().await?;
            Ok(())
        })
    }

    pub(super) fn leave(&mut self) -> Result<(), Error> {
        self.fences.clear();
        let id = self.id;
        self.run(async move |connection| {
            sqlx::query("UPDATE studies SET controller = NULL WHERE controller = $1")
                .bind(id)
                .execute(&mut *connection)
                .await?;
            sqlx::query("DELETE FROM controllers WHERE id = $1")
                .bind(id)
                .execute(connection)
                .await?;
            Ok(())
        })
    }

    pub(super) fn size(&mut self) -> Result<u64, Error> {
        self.run(async |connection| {
            let bytes: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
                .fetch_one(connection)
                .await?;
            Ok(bytes.unsigned_abs())
        })
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, work).await.map_err(|_| Error::TimedOut)
}

/// Makes the tables if they are not there, and returns the version of those that are.
async fn make_tables(connection: &mut PgConnection) -> Result<i64, Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await?;
    let there: bool = sqlx::query_scalar("SELECT to_regclass('schema_version') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    let version = if there {
        let found: i64 = sqlx::query_scalar("SELECT version FROM schema_version")
            .fetch_one(&mut *transaction)
            .await?;
        for upgrade in UPGRADES.iter().skip(usize::try_from(found - 1).unwrap_or(0)) {
            sqlx::raw_sql(*upgrade).execute(&mut *transaction).await?;
        }
        found
    } else {
        sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
            .bind(VERSION)
            .execute(&mut *transaction)
            .await?;
        VERSION
    };
    transaction.commit().await?;
    Ok(version)
}

/// Removes a part of the history of studies that are not there, and says how much.
async fn sweep(connection: &mut PgConnection) -> Result<u64, Error> {
    sqlx::query(
        "UPDATE absent SET importing = NULL WHERE importing NOT IN (SELECT id FROM controllers)",
    )
    .execute(&mut *connection)
    .await?;
    let removed = sqlx::query(
        "DELETE FROM history WHERE (study, step) IN
             (SELECT study, step FROM history WHERE study IN
                 (SELECT study FROM absent WHERE importing IS NULL) LIMIT $1)",
    )
    .bind(SWEEP)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if removed == 0 {
        sqlx::query(
            "DELETE FROM trace WHERE study IN (SELECT study FROM absent WHERE importing IS NULL)",
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "DELETE FROM absent WHERE importing IS NULL
                 AND NOT EXISTS (SELECT 1 FROM history WHERE study = absent.study)",
        )
        .execute(connection)
        .await?;
    }
    Ok(removed)
}

/// Values of one column of many rows: one statement writes them all.
macro_rules! column {
    ($rows:expr, $row:pat => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>()
    };
}

async fn write(
    connection: &mut PgConnection,
    changes: &Changes,
    created: &[i64],
    id: i64,
) -> Result<(), Error> {
    if !changes.deleted.is_empty() {
        for sql in [
            "DELETE FROM studies WHERE id = ANY($1)",
            "DELETE FROM states WHERE study = ANY($1)",
            "DELETE FROM open_steps WHERE study = ANY($1)",
        ] {
            sqlx::query(sql).bind(&changes.deleted).execute(&mut *connection).await?;
        }
    }
    for study in changes.deleted.iter().chain(&changes.abandoned) {
        sqlx::query(
            "INSERT INTO absent (study) VALUES ($1) ON CONFLICT (study) DO UPDATE SET importing = NULL",
        )
        .bind(study)
        .execute(&mut *connection)
        .await?;
    }
    for study in &changes.importing {
        sqlx::query("INSERT INTO absent (study, importing) VALUES ($1, $2)")
            .bind(study)
            .bind(id)
            .execute(&mut *connection)
            .await?;
        // Of a study of that id which is being removed.
        delete_trace(connection, *study).await?;
    }
    for study in &changes.imported {
        sqlx::query("DELETE FROM absent WHERE study = $1")
            .bind(study)
            .execute(&mut *connection)
            .await?;
    }
    for row in &changes.studies {
        if !created.contains(&row.id) {
            sqlx::query("UPDATE studies SET variables = $2 WHERE id = $1")
                .bind(row.id)
                .bind(&row.variables)
                .execute(&mut *connection)
                .await?;
            continue;
        }
        sqlx::query(
            "INSERT INTO studies
                 (id, name, owner, space, spec, seed, start, created_ms, variables, controller, fence)
             VALUES ($1, $2, $3, $4::json ->> 'space', $4, $5, $6, $7, $8, $9, 1)",
        )
        .bind(row.id)
        .bind(&row.name)
        .bind(&row.owner)
        .bind(&row.spec)
        .bind(row.seed)
        .bind(&row.start)
        .bind(row.created_ms)
        .bind(&row.variables)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    }
    let states = &changes.states;
    if !states.is_empty() {
        sqlx::query(
            "INSERT INTO states
                 (study, state, state_ms, started_ms, theta, progress, incumbent, selection, elapsed_ms)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[],
                 $6::text[], $7::text[], $8::text[], $9::bigint[])
             ON CONFLICT (study) DO UPDATE SET state = excluded.state, state_ms = excluded.state_ms,
                 started_ms = excluded.started_ms, theta = excluded.theta, progress = excluded.progress,
                 incumbent = excluded.incumbent, selection = excluded.selection,
                 elapsed_ms = excluded.elapsed_ms",
        )
        .bind(column!(states, row => row.study))
        .bind(column!(states, row => row.state.as_str()))
        .bind(column!(states, row => row.state_ms))
        .bind(column!(states, row => row.started_ms))
        .bind(column!(states, row => row.theta.as_deref()))
        .bind(column!(states, row => row.progress.as_str()))
        .bind(column!(states, row => row.incumbent.as_deref()))
        .bind(column!(states, row => row.selection.as_deref().map(rows::json)))
        .bind(column!(states, row => row.elapsed_ms))
        .execute(&mut *connection)
        .await?;
    }
    if !changes.passed.is_empty() {
        sqlx::query(
            "DELETE FROM open_steps USING unnest($1::bigint[], $2::bigint[]) AS passed (study, step)
             WHERE open_steps.study = passed.study AND open_steps.step = passed.step",
        )
        .bind(column!(changes.passed, key => key.0))
        .bind(column!(changes.passed, key => key.1))
        .execute(&mut *connection)
        .await?;
    }
    let open = &changes.open;
    if !open.is_empty() {
        sqlx::query(
            "INSERT INTO open_steps
                 (study, step, generation, applied, train, rank, attempt, trainer, origin, report)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[],
                 $7::bigint[], $8::text[], $9::text[], $10::text[])
             ON CONFLICT (study, step) DO UPDATE SET attempt = excluded.attempt, trainer = excluded.trainer,
                 origin = excluded.origin, report = excluded.report",
        )
        .bind(column!(open, row => row.step.study))
        .bind(column!(open, row => row.step.step))
        .bind(column!(open, row => row.step.generation))
        .bind(column!(open, row => row.step.applied))
        .bind(column!(open, row => architectures::encode(&row.step.train)))
        .bind(column!(open, row => architectures::encode(&row.step.rank)))
        .bind(column!(open, row => row.step.attempt))
        .bind(column!(open, row => row.trainer.as_deref()))
        .bind(column!(open, row => row.origin.as_deref()))
        .bind(column!(open, row => row.report.as_deref()))
        .execute(&mut *connection)
        .await?;
    }
    let past: Vec<_> = changes.past.iter().filter(|past| !past.dropped).collect();
    if !past.is_empty() {
        let report = |row: &PastRow, value: fn(&ReportRow) -> i64| row.report.as_ref().map(value);
        fn text(row: &PastRow, value: fn(&ReportRow) -> &str) -> Option<&str> {
            row.report.as_ref().map(value)
        }
        sqlx::query(
            "INSERT INTO history
                 (study, step, generation, applied, train, rank, attempt, trainer, losses, metrics, staleness,
                  reported_ms, generation_made, costs)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[],
                 $7::bigint[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[],
                 $14::text[])
             ON CONFLICT DO NOTHING",
        )
        .bind(column!(past, row => row.step.study))
        .bind(column!(past, row => row.step.step))
        .bind(column!(past, row => row.step.generation))
        .bind(column!(past, row => row.step.applied))
        .bind(column!(past, row => architectures::encode(&row.step.train)))
        .bind(column!(past, row => architectures::encode(&row.step.rank)))
        .bind(column!(past, row => row.step.attempt))
        .bind(column!(past, row => text(row, |report| &report.trainer)))
        .bind(column!(past, row => text(row, |report| &report.losses)))
        .bind(column!(past, row => text(row, |report| &report.metrics)))
        .bind(column!(past, row => report(row, |report| report.staleness)))
        .bind(column!(past, row => report(row, |report| report.reported_ms)))
        .bind(column!(past, row => row.report.as_ref().and_then(|report| report.generation_made)))
        .bind(column!(past, row => row.report.as_ref().and_then(|report| report.costs.as_deref())))
        .execute(&mut *connection)
        .await?;
    }
    for (study, step, report) in &changes.late {
        sqlx::query(
            "UPDATE history SET trainer = $3, losses = $4, metrics = $5, staleness = $6,
                 reported_ms = $7, costs = $8 WHERE study = $1 AND step = $2",
        )
        .bind(study)
        .bind(step)
        .bind(&report.trainer)
        .bind(&report.losses)
        .bind(&report.metrics)
        .bind(report.staleness)
        .bind(report.reported_ms)
        .bind(&report.costs)
        .execute(&mut *connection)
        .await?;
    }
    for (study, step) in &changes.pruned {
        sqlx::query("DELETE FROM history WHERE study = $1 AND step <= $2")
            .bind(study)
            .bind(step)
            .execute(&mut *connection)
            .await?;
    }
    if !changes.points.is_empty() {
        write_points(connection, &changes.points).await?;
    }
    for PointRow { study, .. } in changes.points.iter().filter(|row| row.full) {
        let points = points(&mut *connection, *study).await?;
        delete_trace(connection, *study).await?;
        write_points(connection, &rows::thinned(*study, &points)?).await?;
    }
    Ok(())
}

async fn write_points(connection: &mut PgConnection, points: &[PointRow]) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO trace (study, applied, point)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[])
         ON CONFLICT (study, applied) DO UPDATE SET point = excluded.point",
    )
    .bind(column!(points, row => row.study))
    .bind(column!(points, row => row.applied))
    .bind(column!(points, row => row.point.as_str()))
    .execute(connection)
    .await?;
    Ok(())
}

async fn delete_trace(connection: &mut PgConnection, study: i64) -> Result<(), Error> {
    sqlx::query("DELETE FROM trace WHERE study = $1").bind(study).execute(connection).await?;
    Ok(())
}

/// The points of a trace, oldest first.
async fn points(executor: impl PgExecutor<'_>, study: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT point FROM trace WHERE study = $1 ORDER BY applied")
        .bind(study)
        .fetch_all(executor)
        .await
}

fn studies(found: &[PgRow], open: &[PgRow], now: Instant) -> Result<Vec<Study>, Error> {
    let mut open_steps: BTreeMap<i64, Vec<OpenRow>> = BTreeMap::new();
    for row in open {
        open_steps.entry(row.try_get("study")?).or_default().push(OpenRow {
            step: step_row(row)?,
            trainer: row.try_get("trainer")?,
            origin: row.try_get("origin")?,
            report: row.try_get("report")?,
        });
    }
    let mut studies = Vec::new();
    for row in found {
        let study = StudyRow {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            owner: row.try_get("owner")?,
            spec: row.try_get("spec")?,
            seed: row.try_get("seed")?,
            start: row.try_get("start")?,
            created_ms: row.try_get("created_ms")?,
            variables: row.try_get("variables")?,
        };
        let state = StateRow {
            study: study.id,
            state: row.try_get("state")?,
            state_ms: row.try_get("state_ms")?,
            started_ms: row.try_get("started_ms")?,
            theta: row.try_get("theta")?,
            progress: row.try_get("progress")?,
            incumbent: row.try_get("incumbent")?,
            selection: json(row, "selection")?,
            elapsed_ms: row.try_get("elapsed_ms")?,
        };
        let open = open_steps.remove(&study.id).unwrap_or_default();
        studies.push(rows::study(study, state, open, now)?);
    }
    Ok(studies)
}

fn step_row(row: &PgRow) -> Result<StepRow, sqlx::Error> {
    Ok(StepRow {
        study: row.try_get("study")?,
        step: row.try_get("step")?,
        generation: row.try_get("generation")?,
        applied: row.try_get("applied")?,
        train: step_architectures(row, "train")?,
        rank: step_architectures(row, "rank")?,
        attempt: row.try_get("attempt")?,
    })
}

fn step_architectures(row: &PgRow, column: &str) -> Result<Arc<[Architecture]>, sqlx::Error> {
    architectures::decode(row.try_get(column)?)
        .map_err(|what| sqlx::Error::ColumnDecode { index: column.into(), source: what.into() })
}

/// Returns the JSON of a column; null is JSON's null.
fn json<T: DeserializeOwned>(row: &PgRow, column: &str) -> Result<T, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    serde_json::from_str(text.as_deref().unwrap_or("null"))
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.into(), source: error.into() })
}

fn past_row(row: &PgRow) -> Result<PastRow, sqlx::Error> {
    let trainer: Option<String> = row.try_get("trainer")?;
    let report = trainer.map(|trainer| {
        Ok::<_, sqlx::Error>(ReportRow {
            trainer,
            losses: row.try_get("losses")?,
            metrics: row.try_get("metrics")?,
            staleness: row.try_get("staleness")?,
            reported_ms: row.try_get("reported_ms")?,
            generation_made: row.try_get("generation_made")?,
            costs: row.try_get("costs")?,
        })
    });
    Ok(PastRow { step: step_row(row)?, report: report.transpose()?, dropped: false })
}

/// Reads through a few connections of its own.
#[derive(Clone)]
pub(super) struct Reader {
    pool: PgPool,
}

impl Reader {
    pub(super) fn new(url: &str) -> Result<Reader, Error> {
        let options = PgConnectOptions::from_str(url)?.application_name("asng-controller reader");
        let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(TIMEOUT);
        Ok(Reader { pool: pool.connect_lazy_with(options) })
    }

    pub(super) async fn history(
        &self,
        study: StudyId,
        start: PageStart,
        limit: usize,
    ) -> Result<Page, Error> {
        let (StepId(step), sql) = match start {
            PageStart::After(step) => (
                step,
                "SELECT * FROM history WHERE study = $1 AND step > $2 ORDER BY step LIMIT $3",
            ),
            PageStart::Before(step) => (
                step,
                "SELECT * FROM history WHERE study = $1 AND step < $2 ORDER BY step DESC LIMIT $3",
            ),
        };
        let mut page = Page::new(limit);
        let mut rows = sqlx::query(sql)
            .bind(study.0.cast_signed())
            .bind(step.cast_signed())
            .bind(page.rows())
            .fetch(&self.pool);
        while let Some(row) = rows.next().await {
            if !page.push(&past_row(&row?)?)? {
                break;
            }
        }
        drop(rows);
        Ok(page)
    }

    pub(super) async fn trace(&self, study: StudyId) -> Result<Vec<TracePoint>, Error> {
        rows::trace(study, &points(&self.pool, study.0.cast_signed()).await?)
    }

    pub(super) async fn studies(&self, name: Option<&str>) -> Result<Vec<Study>, Error> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .execute(&mut *transaction)
            .await?;
        let sql = "SELECT * FROM studies JOIN states ON states.study = studies.id
                   WHERE $1::text IS NULL OR name = $1 ORDER BY created_ms, id";
        let found = sqlx::query(sql).bind(name).fetch_all(&mut *transaction).await?;
        let ids: Vec<i64> = found.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
        let open = sqlx::query("SELECT * FROM open_steps WHERE study = ANY($1)")
            .bind(ids)
            .fetch_all(&mut *transaction)
            .await?;
        studies(&found, &open, Instant::now())
    }

    pub(super) async fn check(&self) -> Result<(), Error> {
        sqlx::query("SELECT 1 FROM schema_version").execute(&self.pool).await?;
        Ok(())
    }
}

/// Lets every controller on this database count as gone.
#[cfg(test)]
pub(crate) fn forget_controllers(url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await.unwrap();
        // The tables may not be there yet.
        let _ = sqlx::query("DELETE FROM controllers").execute(&mut connection).await;
    });
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{changes, past},
        *,
    };

    #[test]
    fn a_database_of_version_1_is_brought_up_to_date() {
        let Some(server) = crate::postgres::Postgres::start() else { return };
        let url = server.url("upgrade");
        let mut store = Postgres::open(&url, "http://here").unwrap();
        store.commit(&changes("s", 7)).unwrap();
        let downgrade = "ALTER TABLE states DROP COLUMN selection, DROP COLUMN elapsed_ms;
             ALTER TABLE history DROP COLUMN costs; DROP TABLE trace;
             ALTER TABLE open_steps ALTER COLUMN train TYPE TEXT USING '', ALTER COLUMN rank TYPE TEXT USING '';
             ALTER TABLE history ALTER COLUMN train TYPE TEXT USING '', ALTER COLUMN rank TYPE TEXT USING '';
             INSERT INTO history (study, step, generation, applied, train, rank, attempt)
                 VALUES (7, 1, 0, 0, '[[1],[0]]', '[[0],[1]]', 1);
             UPDATE states SET started_ms = (extract(epoch FROM now())::bigint - 3601) * 1000;
             UPDATE schema_version SET version = 1;";
        store
            .run(async |connection| Ok(sqlx::raw_sql(downgrade).execute(connection).await?))
            .unwrap();
        drop(store);
        let mut store = Postgres::open(&url, "http://here").unwrap();
        let studies = store.load(Instant::now()).unwrap();
        assert_eq!(
            studies.iter().map(|study| study.elapsed().as_secs() / 60).collect::<Vec<_>>(),
            [60]
        );
        let row = store.run(async |connection| {
            let row = sqlx::query("SELECT * FROM history").fetch_one(connection).await?;
            Ok(past_row(&row)?)
        });
        assert_eq!(row.unwrap().past().unwrap(), past(1));
        let mut added = Changes::default();
        added.past(StudyId(7), &past(2));
        store.commit(&added).unwrap();
        store.commit(&changes("later", 8)).unwrap();
        assert_eq!(store.run(async |connection| make_tables(connection).await).unwrap(), VERSION);
    }

    /// Lets the clock of the database jump, as its heartbeats show it.
    fn jump(store: &mut Postgres, hours: i32) {
        let sql = "UPDATE controllers SET heartbeat = heartbeat + $1 * interval '1 hour'";
        store
            .run(async |connection| {
                sqlx::query(sql).bind(hours).execute(connection).await?;
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn who_is_gone_does_not_depend_on_the_clock_of_the_database() {
        let Some(server) = crate::postgres::Postgres::start() else { return };
        let url = server.url("clock");
        let mut now = Instant::now();
        let open = |address| {
            let mut store = Postgres::open(&url, address).unwrap();
            store.load(now).unwrap();
            store
        };
        let (mut first, mut second) = (open("http://first"), open("http://second"));
        first.commit(&changes("s", 7)).unwrap();
        for hours in [-2, 2, -2] {
            // The clock jumps between two heartbeats of one that lives.
            jump(&mut second, hours);
            for _ in 0..10 {
                now += Duration::from_secs(1);
                assert_eq!(second.tick(now).unwrap().gained.len(), 0, "the first lives");
                first.tick(now).unwrap();
            }
        }
        // Nobody could reach the database for a while, or the second was paused.
        now += Duration::from_secs(60);
        assert_eq!(second.tick(now).unwrap().gained.len(), 0, "the first had no chance");
        // The first is gone, with a heartbeat that lies in the future.
        jump(&mut second, 2);
        let taken_after = (0..10).position(|_| {
            now += Duration::from_secs(1);
            !second.tick(now).unwrap().gained.is_empty()
        });
        assert_eq!(taken_after, Some(4));
        assert!(matches!(first.commit(&changes("s", 7)), Err(Error::Fenced)));
    }

    #[test]
    fn a_study_has_one_owner_and_one_that_lost_it_cannot_write() {
        let Some(server) = crate::postgres::Postgres::start() else { return };
        let url = server.url("fencing");
        let open = |address| {
            let mut store = Postgres::open(&url, address).unwrap();
            let loaded = store.load(Instant::now()).unwrap();
            (store, loaded.len())
        };
        let (mut first, loaded) = open("http://first");
        assert_eq!(loaded, 0);
        first.commit(&changes("s", 7)).unwrap();
        let (mut second, loaded) = open("http://second");
        assert_eq!(loaded, 0, "the first lives");
        assert_eq!(second.owner("s").unwrap().as_deref(), Some("http://first"));
        assert!(second.commit(&changes("s", 8)).is_err(), "the name is taken");
        assert!(second.commit(&changes("s", 7)).is_err(), "it is not the second's");

        // The first is paused, as far as the second can see.
        forget_controllers(&url);
        let gained = second.tick(Instant::now()).unwrap().gained;
        assert_eq!(gained.iter().map(Study::name).collect::<Vec<_>>(), ["s"]);
        assert!(matches!(first.commit(&changes("s", 7)), Err(Error::Fenced)));
        let tick = first.tick(Instant::now()).unwrap();
        assert_eq!((tick.gained.len(), tick.lost), (0, vec![StudyId(7)]));
        second.commit(&changes("s", 7)).unwrap();

        second.leave().unwrap();
        assert_eq!(first.tick(Instant::now()).unwrap().gained.len(), 1, "at once");

        // Lost and got back between two looks: what was built before is not to be written under the new fence.
        forget_controllers(&url);
        assert_eq!(second.tick(Instant::now()).unwrap().gained.len(), 1);
        second.leave().unwrap();
        let tick = first.tick(Instant::now()).unwrap();
        assert_eq!((tick.gained.len(), tick.lost), (0, vec![StudyId(7)]));
        let mut stray = Changes::default();
        stray.prune(StudyId(7), StepId(1));
        assert!(matches!(first.commit(&stray), Err(Error::Fenced)), "a step alone is checked too");
        assert_eq!(first.tick(Instant::now()).unwrap().gained.len(), 1);
    }
}
