-- A new session: what an older one still has on its way is refused from here on. Says which round took effect last. Waits
-- for an older one's transaction as long as $3 says, and no longer. From here on nothing beyond the cursor is trimmed without
-- another session's mark: whoever trims is waited for first. Without a cursor, or where that went past it, there is none to
-- read on from, and nothing is kept for this device. Whether the device may say its version is answered and not tried: a cloud
-- of the second version has no column for it, and a role may have no right on it.
WITH trimmed AS MATERIALIZED (
    SELECT feed.trimmed_xid, feed.trimmed_id FROM set_config('lock_timeout', $3, true) AS limited, tidewater.feed FOR SHARE OF feed
), settled AS (
    INSERT INTO tidewater.devices (id, session)
    SELECT $1::uuid, $2::uuid FROM trimmed
    ON CONFLICT (id) DO UPDATE
    SET session = excluded.session, seen_at = greatest(now(), devices.seen_at + interval '1 microsecond')
    RETURNING id, round, round_number, left_out
), registered AS (
    INSERT INTO tidewater.cursors (device, xid, id, at, session)
    SELECT settled.id, CASE WHEN is_whole THEN $4::text::xid8 END, CASE WHEN is_whole THEN $5::bigint END,
           clock_timestamp(), $2::uuid
    FROM settled, trimmed, LATERAL (SELECT ($4::text::xid8, $5::bigint) >= (trimmed.trimmed_xid, trimmed.trimmed_id)) AS w(is_whole)
    ON CONFLICT (device) DO UPDATE SET xid = excluded.xid, id = excluded.id, at = excluded.at, session = excluded.session
)
SELECT round, round_number, left_out,
       EXISTS (SELECT FROM pg_attribute a
               WHERE a.attrelid = 'tidewater.devices'::regclass AND a.attname = 'version' AND NOT a.attisdropped
                 AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
                 AND has_column_privilege(a.attrelid, a.attnum, 'UPDATE')) AS says_version
FROM settled
