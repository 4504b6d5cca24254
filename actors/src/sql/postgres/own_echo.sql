-- Whether everything that this transaction caused is exactly what it sent. If not (a cascade, a trigger, a default, a
-- normalised value), its feed entries are treated as somebody else's, so that the device pulls them as well. Tables of
-- which it was taken for granted that they store what they are sent have got no trigger since that changes it: none can
-- come any more until this transaction ends.
UPDATE tidewater.changes SET origin = NULL
WHERE xid = pg_current_xact_id()
  AND ($1 OR (SELECT count(*) FROM tidewater.changes WHERE xid = pg_current_xact_id()) <> $2
       OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = ANY ($3::oid[]) AND g.tgtype & 7 = 7))
