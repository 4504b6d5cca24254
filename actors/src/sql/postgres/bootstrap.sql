-- The cloud's side of the protocol, created once, under an advisory lock (concurrent CREATE … IF NOT EXISTS
-- raises 23505).
CREATE SCHEMA IF NOT EXISTS tidewater;

-- Which cloud this is: one row, made by whoever comes first.
CREATE TABLE IF NOT EXISTS tidewater.identity (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    id             uuid NOT NULL DEFAULT gen_random_uuid(),
    schema_version integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tidewater.identity DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The ledger and the fence. `session` changes with each settlement: statements of an older session that still
-- sit in somebody's buffers find no row to update. `round` is the last round that took effect, `left_out` the rows
-- that it did not carry, because somebody else had changed them.
CREATE TABLE IF NOT EXISTS tidewater.devices (
    id            uuid PRIMARY KEY,
    session       uuid NOT NULL,
    round         uuid,
    round_number  bigint NOT NULL DEFAULT 0,
    left_out      text[] NOT NULL DEFAULT '{}',
    registered_at timestamptz NOT NULL DEFAULT now(),
    seen_at       timestamptz NOT NULL DEFAULT now()
);

-- The change feed: which keys of which table, written by triggers, append-only. A key is its columns' texts; an entry has one
-- (one dimension) or, since version 4 of the triggers' function, as many as one statement touched, up to 128 (two dimensions). A NULL
-- key means the whole table. `origin` is the device whose round wrote the row, where the row is as that device sent it.
CREATE TABLE IF NOT EXISTS tidewater.changes (
    xid    xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id     bigint GENERATED ALWAYS AS IDENTITY,
    tag    integer NOT NULL DEFAULT (random() * 2147483647)::integer,
    tbl    oid NOT NULL,
    key    text[],
    origin text,
    stamp  bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000000)::bigint,
    PRIMARY KEY (xid, id)
);

-- Values that lost, for the people at the cloud's end.
CREATE TABLE IF NOT EXISTS tidewater.conflicts (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    device uuid NOT NULL,
    tbl    text NOT NULL,
    key    json NOT NULL,
    col    text,
    base   json,
    local  json,
    cloud  json,
    kept   text NOT NULL
);
