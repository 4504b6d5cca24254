-- One page of the feed beyond the cursor and below the horizon, a row for each text of a key, without the first $5 of them; an
-- entry has the texts of its keys one after the other. Our own rows are counted, not named: such an entry is one row, as is one
-- that means the whole table. `texts` is how many rows an entry has, and `width` how many of them are one key. `xid` alone would be
-- the column of the answer, whose order is that of its digits. There is a row also where there is no entry: `whole` says
-- whether nothing beyond the cursor was trimmed, in the same snapshot.
SELECT page.xid::text, page.id, page.tag, page.tbl, page.own, page.width, page.texts, page.text,
       (feed.trimmed_xid, feed.trimmed_id) <= ($1::text::xid8, $2) AS whole
FROM tidewater.feed
LEFT JOIN LATERAL (
    SELECT entry.*, generate_series(1, entry.texts) AS place, unnest(entry.named) AS text
    FROM (
        SELECT c.xid, c.id, c.tag, c.tbl, c.origin IS NOT DISTINCT FROM $4 AS own,
               coalesce(array_length(c.key, 2), cardinality(c.key)) AS width, named, cardinality(named) AS texts
        FROM tidewater.changes c
        CROSS JOIN LATERAL (SELECT CASE WHEN c.origin = $4 OR coalesce(cardinality(c.key), 0) = 0 THEN ARRAY[NULL]
                                        ELSE c.key END) AS k(named)
        WHERE (c.xid, c.id) > ($1::text::xid8, $2) AND c.xid < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY c.xid, c.id
        -- Each has one row at least, and the first may be one of which they were all taken.
        LIMIT $3::int8 + 1
    ) AS entry
    ORDER BY entry.xid, entry.id
    OFFSET $5::int8 LIMIT $3::int8
) AS page ON true
ORDER BY page.xid, page.id, page.place
