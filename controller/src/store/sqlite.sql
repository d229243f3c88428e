-- One row for each study: what seldom changes.
CREATE TABLE studies (
    id          INTEGER PRIMARY KEY,        -- random, part of every lease id
    name        TEXT    NOT NULL UNIQUE,
    owner       TEXT    NOT NULL,
    spec        TEXT    NOT NULL,           -- JSON, as submitted
    seed        INTEGER NOT NULL,
    start       TEXT    NOT NULL,           -- JSON: where theta starts
    created_ms  INTEGER NOT NULL,           -- Unix time
    variables   TEXT                        -- JSON, once known
) STRICT;

-- One row for each study: what every report changes. Small, since it is written with every commit.
CREATE TABLE states (
    study       INTEGER PRIMARY KEY,
    state       TEXT    NOT NULL,           -- JSON
    state_ms    INTEGER NOT NULL,
    started_ms  INTEGER,                    -- when the variables became known
    theta       BLOB,                       -- the optimiser's state, once the variables are known
    progress    TEXT    NOT NULL,           -- JSON: counters
    incumbent   TEXT,                       -- JSON
    selection   TEXT,                       -- JSON: what is remembered of evaluated architectures for their costs
    elapsed_ms  INTEGER                     -- time since then in which a controller had it; null until it is first written
) STRICT;

-- Steps that are handed out, or to be handed out again, or whose report waits for its batch.
CREATE TABLE open_steps (
    study       INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    generation  INTEGER NOT NULL,           -- sampled from
    applied     INTEGER NOT NULL,           -- reports applied when it was sampled
    train       ANY     NOT NULL,           -- architectures, integers as their real draws: see architectures.rs
    rank        ANY     NOT NULL,
    attempt     INTEGER NOT NULL,           -- how often it has been handed out
    trainer     TEXT,                       -- who holds it
    origin      TEXT,                       -- JSON: the request it answered
    report      TEXT,                       -- JSON, of a report that waits
    PRIMARY KEY (study, step)
) STRICT, WITHOUT ROWID;

-- The history: a row is appended when a step is applied, stale or closed unreported.
CREATE TABLE history (
    study       INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    applied     INTEGER NOT NULL,
    train       ANY     NOT NULL,
    rank        ANY     NOT NULL,
    attempt     INTEGER NOT NULL,
    trainer     TEXT,                       -- who reported; this and what follows is null in a step closed unreported
    losses      TEXT,                       -- JSON, null for a loss that is not finite
    metrics     TEXT,                       -- JSON
    staleness   INTEGER,
    reported_ms INTEGER,
    generation_made INTEGER,                -- by the update it entered; null in a stale one
    costs       TEXT,                       -- JSON; null if none were reported
    PRIMARY KEY (study, step)
) STRICT, WITHOUT ROWID;

-- How each search went: a row for a stretch of it, up to 256 for a study.
CREATE TABLE trace (
    study       INTEGER NOT NULL,
    applied     INTEGER NOT NULL,           -- reports, at the end of the stretch
    point       TEXT    NOT NULL,           -- JSON
    PRIMARY KEY (study, applied)
) STRICT, WITHOUT ROWID;

-- Studies that are not there: deleted, and their history is removed a part at a time; or still being imported.
CREATE TABLE absent (
    study       INTEGER PRIMARY KEY,
    importing   INTEGER                     -- null: to be removed
) STRICT;

-- What has been committed and is not in the other tables yet: a row for each commit.
CREATE TABLE journal (
    id          INTEGER PRIMARY KEY,
    entry       BLOB    NOT NULL            -- MessagePack
) STRICT;
