-- Tables as in sqlite.sql, where their columns are explained. What is added is who owns a study.
CREATE TABLE controllers (
    id          BIGINT PRIMARY KEY,             -- drawn by each process when it starts
    address     TEXT NOT NULL,                  -- where clients reach it
    heartbeat   TIMESTAMPTZ NOT NULL
);

CREATE TABLE studies (
    id          BIGINT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    owner       TEXT NOT NULL,
    space       TEXT NOT NULL,                  -- of the spec
    spec        TEXT NOT NULL,
    seed        BIGINT NOT NULL,
    start       TEXT NOT NULL,
    created_ms  BIGINT NOT NULL,
    variables   TEXT,
    controller  BIGINT,                         -- which one owns it; null: none
    fence       BIGINT NOT NULL                 -- raised whenever the owner changes; every write checks it
);

CREATE TABLE states (
    study       BIGINT PRIMARY KEY,
    state       TEXT NOT NULL,
    state_ms    BIGINT NOT NULL,
    started_ms  BIGINT,
    theta       BYTEA,
    progress    TEXT NOT NULL,
    incumbent   TEXT,
    selection   TEXT,
    elapsed_ms  BIGINT
) WITH (fillfactor = 50);

CREATE TABLE open_steps (
    study       BIGINT NOT NULL,
    step        BIGINT NOT NULL,
    generation  BIGINT NOT NULL,
    applied     BIGINT NOT NULL,
    train       BYTEA NOT NULL,
    rank        BYTEA NOT NULL,
    attempt     BIGINT NOT NULL,
    trainer     TEXT,
    origin      TEXT,
    report      TEXT,
    PRIMARY KEY (study, step)
);

CREATE TABLE history (
    study       BIGINT NOT NULL,
    step        BIGINT NOT NULL,
    generation  BIGINT NOT NULL,
    applied     BIGINT NOT NULL,
    train       BYTEA NOT NULL,
    rank        BYTEA NOT NULL,
    attempt     BIGINT NOT NULL,
    trainer     TEXT,
    losses      TEXT,
    metrics     TEXT,
    staleness   BIGINT,
    reported_ms BIGINT,
    generation_made BIGINT,
    costs       TEXT,
    PRIMARY KEY (study, step)
);

CREATE TABLE trace (
    study       BIGINT NOT NULL,
    applied     BIGINT NOT NULL,
    point       TEXT NOT NULL,
    PRIMARY KEY (study, applied)
);

CREATE TABLE absent (
    study       BIGINT PRIMARY KEY,
    importing   BIGINT                          -- by which controller
);

CREATE TABLE schema_version (version BIGINT NOT NULL);
