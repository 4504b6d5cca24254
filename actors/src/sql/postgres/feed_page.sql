-- One page of the feed beyond the cursor and below the horizon. Our own rows are counted, not named. `xid` alone would be
-- the column of the answer, whose order is that of its digits.
SELECT xid::text, id, tag, tbl, CASE WHEN origin = $4 THEN NULL ELSE key END AS key, origin IS NOT DISTINCT FROM $4 AS own
FROM tidewater.changes
WHERE (xid, id) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY changes.xid, changes.id
LIMIT $3
