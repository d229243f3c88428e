-- One row for each study: everything but its history.
CREATE TABLE studies (
    id          INTEGER PRIMARY KEY,        -- random, part of every lease id
    name        TEXT    NOT NULL UNIQUE,
    spec        TEXT    NOT NULL,           -- JSON, as submitted
    seed        INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,           -- Unix time
    state       TEXT    NOT NULL,           -- JSON
    state_ms    INTEGER NOT NULL,
    variables   TEXT,                       -- JSON, once known
    theta       BLOB,                       -- the optimiser's state, once the variables are known
    progress    TEXT    NOT NULL,           -- JSON
    incumbent   TEXT                        -- JSON
) STRICT;

-- One row for each step ever sampled: handed out, reported, closed. `phase` is live, pending, applied, stale or closed.
CREATE TABLE steps (
    study       INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    phase       TEXT    NOT NULL,
    generation  INTEGER NOT NULL,           -- sampled from
    applied     INTEGER NOT NULL,           -- reports applied when it was sampled
    train       TEXT    NOT NULL,           -- JSON: architectures, integers as their real draws
    rank        TEXT    NOT NULL,
    attempt     INTEGER NOT NULL,           -- how often it has been handed out
    trainer     TEXT,                       -- who holds it, or who reported it
    origin      TEXT,                       -- JSON: the request it answered, while it is held
    staleness   INTEGER,                    -- of the report
    losses      TEXT,                       -- JSON, null for a loss that is not finite
    metrics     TEXT,                       -- JSON
    reported_ms INTEGER,                    -- Unix time
    PRIMARY KEY (study, step)
) STRICT, WITHOUT ROWID;

CREATE INDEX steps_under_way ON steps (study) WHERE phase IN ('live', 'pending');
