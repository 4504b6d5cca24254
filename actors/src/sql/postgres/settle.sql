-- A new session: what an older one still has on its way is refused from here on. Says which round took effect last.
INSERT INTO tidewater.devices (id, session) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE SET session = excluded.session, seen_at = now()
RETURNING round, round_number, left_out
