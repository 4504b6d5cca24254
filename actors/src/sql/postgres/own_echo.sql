-- Whether everything that this transaction caused is exactly what it sent. If not (a cascade, a trigger, a default, a
-- normalised value), its feed entries are treated as somebody else's, so that the device pulls them as well.
UPDATE tidewater.changes SET origin = NULL
WHERE xid = pg_current_xact_id()
  AND ($1 OR (SELECT count(*) FROM tidewater.changes WHERE xid = pg_current_xact_id()) <> $2)
