-- The second version of the cloud's side: what a trim of the feed needs to know. Comes behind bootstrap.sql, and alone where
-- that was carried out by an older version; by whichever role may create in schema tidewater.

-- How far the feed was trimmed: all entries up to this one may be gone. Whoever trims holds the row alone; whoever says from
-- where a device will read on holds it with others.
CREATE TABLE IF NOT EXISTS tidewater.feed (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    trimmed_xid xid8 NOT NULL DEFAULT '0',
    trimmed_id  bigint NOT NULL DEFAULT 0,
    done_at     timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO tidewater.feed DEFAULT VALUES ON CONFLICT DO NOTHING;

-- From where each device will read on, at the earliest. Without a position: from nowhere, it has to register and to compare
-- first; the feed may have been trimmed beyond it. `session` is the one that this was said for, or that shut the device out.
-- Without a row, or with another session than in the ledger: a version that does not say has settled since.
CREATE TABLE IF NOT EXISTS tidewater.cursors (
    device  uuid PRIMARY KEY,
    xid     xid8,
    id      bigint,
    at      timestamptz NOT NULL,
    session uuid
);

-- Fixes where a device begins to read: at the horizon, and before it reads anything. Nothing where another session has settled.
-- Each statement sees what was committed before it, and so what was trimmed before the lock.
CREATE OR REPLACE FUNCTION tidewater.register(its_id uuid, its_session uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $tidewater_register$
DECLARE
    horizon xid8;
BEGIN
    -- A dump that was put into a younger server: its numbers mean nothing here. Two that had the row with others, and both
    -- wanted to write it, would wait for each other.
    IF EXISTS (SELECT FROM tidewater.feed WHERE trimmed_xid >= pg_snapshot_xmin(pg_current_snapshot())) THEN
        PERFORM FROM tidewater.feed FOR UPDATE;
        UPDATE tidewater.feed SET trimmed_xid = '0', trimmed_id = 0
        WHERE trimmed_xid >= pg_snapshot_xmin(pg_current_snapshot());
    ELSE
        PERFORM FROM tidewater.feed FOR SHARE;
    END IF;
    SELECT pg_snapshot_xmin(pg_current_snapshot()) INTO horizon FROM tidewater.feed;
    UPDATE tidewater.devices SET seen_at = greatest(now(), seen_at + interval '1 microsecond')
    WHERE id = its_id AND session = its_session;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO tidewater.cursors AS c (device, xid, id, at, session)
    VALUES (its_id, horizon, 0, clock_timestamp(), its_session)
    ON CONFLICT (device) DO UPDATE SET xid = excluded.xid, id = excluded.id, at = excluded.at, session = excluded.session;
    RETURN horizon::text;
END $tidewater_register$;

-- Deletes the oldest entries of the feed that nobody needs any more, and the oldest conflicts beyond their number, a bounded
-- number of each. Nothing where that was done a moment ago, or somebody else is at it.
--
-- Needed is what lies at or beyond the cursor of a device that was seen lately, as long as the feed has not more entries than
-- it may, of those that could be read. A device that this goes past is shut out first, in the same transaction, by another
-- session in its ledger row; one whose row is locked is in the middle of a round, and is not gone past.
CREATE OR REPLACE FUNCTION tidewater.trim(pause_s float8, retire_s float8, entries_max bigint, conflicts_max bigint, most bigint,
                                          OUT gone bigint, OUT passed bigint, OUT more boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $tidewater_trim$
DECLARE
    due constant timestamptz := clock_timestamp() - make_interval(secs => pause_s);
    alive constant timestamptz := clock_timestamp() - make_interval(secs => retire_s);
    from_xid xid8; from_id bigint;
    to_xid xid8; to_id bigint;
    cut_xid xid8; cut_id bigint;
    last_xid xid8; last_id bigint;
    oldest bigint; newest bigint;
    horizon xid8;
    slow uuid[];
BEGIN
    gone := 0; passed := 0; more := false;
    IF NOT EXISTS (SELECT FROM tidewater.feed WHERE done_at <= due OR done_at > clock_timestamp()) THEN
        RETURN;
    END IF;
    SELECT f.trimmed_xid, f.trimmed_id INTO from_xid, from_id FROM tidewater.feed f
    WHERE f.done_at <= due OR f.done_at > clock_timestamp() FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT pg_snapshot_xmin(pg_current_snapshot()) INTO horizon FROM tidewater.feed;
    -- Somebody has deleted the device. Who settles writes both, and is waited for.
    DELETE FROM tidewater.cursors c WHERE NOT EXISTS (SELECT FROM tidewater.devices d WHERE d.id = c.device);
    SELECT c.xid, c.id INTO to_xid, to_id FROM tidewater.cursors c JOIN tidewater.devices d ON d.id = c.device
    WHERE c.xid IS NOT NULL AND d.seen_at >= alive ORDER BY c.xid, c.id LIMIT 1;
    -- Where one reads that does not say from where, nobody knows what it needs.
    IF EXISTS (SELECT FROM tidewater.devices d LEFT JOIN tidewater.cursors c ON c.device = d.id
               WHERE d.session IS DISTINCT FROM c.session AND d.seen_at >= alive) THEN
        to_xid := NULL; to_id := NULL;
    END IF;
    -- What lies beyond the horizon nobody could read yet. The numbers of the entries have gaps: they only say whether to count
    -- is worth its time. What is before the mark is gone, and what is before `to` is going.
    SELECT c.id INTO oldest FROM tidewater.changes c
    WHERE (c.xid, c.id) > (from_xid, from_id)
      AND (c.xid, c.id) >= (coalesce(to_xid, from_xid), coalesce(to_id, from_id))
    ORDER BY c.xid, c.id LIMIT 1;
    SELECT c.id INTO newest FROM tidewater.changes c WHERE c.xid < horizon ORDER BY c.xid DESC, c.id DESC LIMIT 1;
    IF newest - oldest >= entries_max THEN
        SELECT c.xid, c.id INTO cut_xid, cut_id
        FROM tidewater.changes c WHERE c.xid < horizon ORDER BY c.xid DESC, c.id DESC OFFSET entries_max LIMIT 1;
        IF cut_xid IS NOT NULL AND (to_xid IS NULL OR (cut_xid, cut_id) > (to_xid, to_id)) THEN
            to_xid := cut_xid; to_id := cut_id;
        END IF;
    END IF;
    -- A cursor of another server, in a dump of its database.
    IF to_xid > horizon THEN
        to_xid := horizon; to_id := 0;
    END IF;

    IF to_xid IS NOT NULL THEN
        SELECT array_agg(locked.id) INTO slow FROM (
            SELECT d.id FROM tidewater.devices d LEFT JOIN tidewater.cursors c ON c.device = d.id
            WHERE d.session IS DISTINCT FROM c.session OR (c.xid, c.id) < (to_xid, to_id)
            FOR UPDATE OF d SKIP LOCKED) AS locked;
        -- It may have come further before it was locked. A version that does not say from where it reads does not ask either
        -- whether that is still there: it finds a round that it does not know, and goes on as a new device, which compares.
        WITH shut AS (
            UPDATE tidewater.devices
            SET session = gen_random_uuid(),
                round = CASE WHEN d.session IS DISTINCT FROM c.session THEN gen_random_uuid() ELSE devices.round END,
                round_number = devices.round_number + (d.session IS DISTINCT FROM c.session)::integer
            FROM tidewater.devices d LEFT JOIN tidewater.cursors c ON c.device = d.id
            WHERE devices.id = d.id AND d.id = ANY (slow)
              AND (d.session IS DISTINCT FROM c.session OR (c.xid, c.id) < (to_xid, to_id))
            RETURNING devices.id, devices.session
        )
        INSERT INTO tidewater.cursors AS c (device, at, session) SELECT shut.id, clock_timestamp(), shut.session FROM shut
        ON CONFLICT (device) DO UPDATE SET xid = NULL, id = NULL, at = excluded.at, session = excluded.session;
        GET DIAGNOSTICS passed = ROW_COUNT;
        IF EXISTS (SELECT FROM tidewater.devices d LEFT JOIN tidewater.cursors c ON c.device = d.id
                   WHERE d.session IS DISTINCT FROM c.session) THEN
            to_xid := NULL;
        END IF;
        SELECT c.xid, c.id INTO cut_xid, cut_id FROM tidewater.cursors c WHERE c.xid IS NOT NULL ORDER BY c.xid, c.id LIMIT 1;
        IF (cut_xid, cut_id) < (to_xid, to_id) THEN
            to_xid := cut_xid; to_id := cut_id;
        END IF;
    END IF;

    IF to_xid IS NOT NULL THEN
        WITH old AS (
            DELETE FROM tidewater.changes WHERE ctid = ANY (ARRAY(
                SELECT c.ctid FROM tidewater.changes c
                WHERE (c.xid, c.id) > (from_xid, from_id) AND (c.xid, c.id) < (to_xid, to_id)
                ORDER BY c.xid, c.id LIMIT most))
            RETURNING xid, id
        )
        SELECT count(*) OVER (), old.xid, old.id INTO gone, last_xid, last_id
        FROM old ORDER BY old.xid DESC, old.id DESC LIMIT 1;
        IF FOUND THEN
            more := gone = most;
            UPDATE tidewater.feed SET trimmed_xid = last_xid, trimmed_id = last_id;
        ELSE
            gone := 0;
        END IF;
    END IF;
    -- Their numbers have gaps, too.
    IF (SELECT max(k.id) - min(k.id) FROM tidewater.conflicts k) >= conflicts_max THEN
        DELETE FROM tidewater.conflicts WHERE id = ANY (ARRAY(
            SELECT k.id FROM tidewater.conflicts k
            WHERE k.id <= (SELECT kept.id FROM tidewater.conflicts kept ORDER BY kept.id DESC OFFSET conflicts_max LIMIT 1)
            ORDER BY k.id LIMIT most));
        more := more OR FOUND;
    END IF;
    IF NOT more THEN
        UPDATE tidewater.feed SET done_at = clock_timestamp();
    END IF;
END $tidewater_trim$;

-- Whoever might use the ledger of an older version may use these as it takes, also where functions are not everybody's by default.
-- From this version on whoever grants the one grants the others.
DO $tidewater_grants$
DECLARE
    ours constant text := 'tidewater.feed, tidewater.cursors';
    calls constant text := 'tidewater.register(uuid, uuid), '
                           'tidewater.trim(float8, float8, bigint, bigint, bigint)';
    ledger pg_class;
    may record;
BEGIN
    IF (SELECT schema_version FROM tidewater.identity) >= 2 THEN
        RETURN;
    END IF;
    SELECT * INTO ledger FROM pg_class WHERE oid = 'tidewater.devices'::regclass;
    FOR may IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS role
        FROM aclexplode(ledger.relacl)
        WHERE privilege_type = 'UPDATE' AND grantee <> ledger.relowner
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE (one) ON tidewater.feed TO %s', may.role);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON tidewater.cursors TO %s', may.role);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', calls, may.role);
    END LOOP;
    IF pg_get_userbyid(ledger.relowner) <> current_user THEN
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I WITH GRANT OPTION',
                       ours, pg_get_userbyid(ledger.relowner));
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I WITH GRANT OPTION', calls, pg_get_userbyid(ledger.relowner));
    END IF;
END $tidewater_grants$;

UPDATE tidewater.identity SET schema_version = 2 WHERE schema_version < 2;
