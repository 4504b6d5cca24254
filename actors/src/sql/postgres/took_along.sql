-- Whether this transaction changed rows beyond those that it sent (a cascade) of which somebody else's change lies beyond
-- our cursor: rows that this file has not seen must not go with one that it deletes.
SELECT EXISTS (
    SELECT 1
    FROM tidewater.changes AS mine
    JOIN tidewater.changes AS theirs ON theirs.tbl = mine.tbl AND theirs.key = mine.key
    WHERE mine.xid = pg_current_xact_id()
      AND theirs.xid <> mine.xid
      AND (theirs.xid, theirs.id) > ($1::text::xid8, $2)
      AND theirs.origin IS DISTINCT FROM $3
      AND NOT EXISTS (SELECT 1 FROM unnest($4::oid[], $5::text[]) AS sent(tbl, key)
                      WHERE sent.tbl = mine.tbl AND sent.key = array_to_string(mine.key, E'\x01'))
)
