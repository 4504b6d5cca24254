-- What Tidewater remembers in the SQLite file, beside the tables per tracked table (see sql/capture.rs). No STRICT: a
-- program with a SQLite before 3.37 could not open the file any more.
CREATE TABLE IF NOT EXISTS _tidewater_meta (
    key   TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;

-- The flush epoch: counts the rounds that were noted. Triggers stamp it into entries, receipts compare it. And what makes
-- stamps of different devices comparable: how far the server's clock is ahead of this machine's, and what it showed when this
-- file last saw the cloud; `known`, which may be earlier, is what it showed when this file had last read all that there was.
CREATE TABLE IF NOT EXISTS _tidewater_clock (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    ahead INTEGER NOT NULL DEFAULT 0,             -- microseconds
    seen  INTEGER NOT NULL DEFAULT 0,             -- microseconds since 1970
    known INTEGER NOT NULL DEFAULT 0              -- the same
);
INSERT OR IGNORE INTO _tidewater_clock (one, epoch) VALUES (1, 1);

-- AUTOINCREMENT: the number is in the names of journals and triggers and must not come back.
CREATE TABLE IF NOT EXISTS _tidewater_tables (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    name           TEXT NOT NULL UNIQUE COLLATE NOCASE,
    key            TEXT NOT NULL,                 -- JSON array of the primary key's columns
    snapshot       TEXT NOT NULL DEFAULT 'none',  -- none, paging, done
    snapshot_after TEXT,                          -- JSON: the last key of the last page, in the cloud's text
    -- 1: this file has seen what the cloud had of it, and heard of every change since: what differs without a word of the feed
    -- beyond the cursor was changed here. 2: so it was until the cloud lost some of it, when its clock showed `kept_until`: what
    -- differs without a later word of the feed was lost there.
    followed       INTEGER NOT NULL DEFAULT 0,
    kept_until     INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS _tidewater_columns (
    table_id INTEGER NOT NULL,
    id       INTEGER NOT NULL,
    name     TEXT NOT NULL COLLATE NOCASE,
    gone     INTEGER NOT NULL DEFAULT 0,          -- 1: dropped or renamed; the number is not used again
    PRIMARY KEY (table_id, id)
) WITHOUT ROWID;

-- The round in flight: there is a row exactly while its outcome is not known.
CREATE TABLE IF NOT EXISTS _tidewater_round (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    id             TEXT NOT NULL,
    number         INTEGER NOT NULL,
    conflicts_upto INTEGER  -- the last of the conflicts that the round tells the cloud of
);

-- Values that lost, with the values that won.
CREATE TABLE IF NOT EXISTS _tidewater_conflicts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    table_name TEXT NOT NULL,
    key        TEXT NOT NULL,  -- JSON array
    column     TEXT,           -- NULL: the row as a whole
    base       TEXT,           -- JSON
    local      TEXT,           -- JSON; NULL: deleted here
    cloud      TEXT,           -- JSON; NULL: deleted there
    kept       TEXT NOT NULL   -- local, cloud
);

-- The migrations of the app's own schema that this file has.
CREATE TABLE IF NOT EXISTS _tidewater_migrations (
    number     INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

-- What is known of rows that PostgreSQL refuses, from the first refusal until the cloud has them or they are given up.
CREATE TABLE IF NOT EXISTS _tidewater_refusals (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,  -- what people call the row by
    table_id        INTEGER NOT NULL,
    key             TEXT NOT NULL,                      -- JSON array
    parking         INTEGER NOT NULL,                   -- of the parked row; another one while it is tried again
    tries           INTEGER NOT NULL DEFAULT 1,
    first_at        TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    last_at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    sqlstate        TEXT,
    constraint_name TEXT,
    shape           TEXT,                               -- of the cloud's table, before it was refused
    again           INTEGER NOT NULL DEFAULT 0,         -- 1: something came or went that it may have waited for
    due             INTEGER NOT NULL DEFAULT 0,         -- seconds since 1970: not tried for that reason before
    UNIQUE (table_id, key)
);
CREATE INDEX IF NOT EXISTS _tidewater_refusals_parking ON _tidewater_refusals (parking);
