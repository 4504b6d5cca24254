-- One page of the feed beyond the cursor and below the horizon. Our own rows are counted, not named; nor is a row by what cannot
-- be a key. `xid` alone would be
-- the column of the answer, whose order is that of its digits. There is a row also where there is no entry: `whole` says
-- whether nothing beyond the cursor was trimmed, in the same snapshot.
SELECT page.xid::text, page.id, page.tag, page.tbl, CASE WHEN page.origin = $4 OR array_ndims(page.key) <> 1 OR array_position(page.key, NULL) > 0 THEN NULL ELSE page.key END AS key,
       page.origin IS NOT DISTINCT FROM $4 AS own, (feed.trimmed_xid, feed.trimmed_id) <= ($1::text::xid8, $2) AS whole
FROM tidewater.feed
LEFT JOIN LATERAL (
    SELECT * FROM tidewater.changes
    WHERE (xid, id) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY changes.xid, changes.id
    LIMIT $3
) AS page ON true
ORDER BY page.xid, page.id
