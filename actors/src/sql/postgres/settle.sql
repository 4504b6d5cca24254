-- A new session: what an older one still has on its way is refused from here on. Says which round took effect last. Waits
-- for an older one's transaction as long as $3 says, and no longer.
INSERT INTO tidewater.devices (id, session)
SELECT $1::uuid, $2::uuid FROM set_config('lock_timeout', $3, true)
ON CONFLICT (id) DO UPDATE SET session = excluded.session, seen_at = greatest(now(), devices.seen_at + interval '1 microsecond')
RETURNING round, round_number, left_out
