-- The rows that this transaction changed and of which somebody else's change lies beyond our cursor. Those that it did not
-- send went along with one that it deletes (a cascade), and this file has not seen them.
SELECT DISTINCT mine.tbl, mine.key
FROM tidewater.changes AS mine
JOIN tidewater.changes AS theirs ON theirs.tbl = mine.tbl AND theirs.key = mine.key
WHERE mine.xid = pg_current_xact_id()
  AND theirs.xid <> mine.xid
  AND (theirs.xid, theirs.id) > ($1::text::xid8, $2)
  AND theirs.origin IS DISTINCT FROM $3
