-- What lies beyond the cursor and below the horizon: how far nothing but our own rounds reach, and whether there is anything of
-- others'. One look instead of pages of our own echo; it also says whether the feed still has the entry that the cursor
-- stands on (without a tag: whether this server has come as far), whether nothing beyond the cursor was trimmed, whether the
-- cursor's own entry was the last that was, whether nobody is in the middle of something, and what time it is there.
WITH theirs AS MATERIALIZED (
    SELECT xid, id FROM tidewater.changes
    WHERE (xid, id) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
      AND origin IS DISTINCT FROM $4
    ORDER BY xid, id
    LIMIT 1
), ours AS MATERIALIZED (
    SELECT xid::text AS at, id, tag FROM tidewater.changes
    WHERE (xid, id) > ($1::text::xid8, $2)
      -- An entry's own number starts at 1.
      AND (xid, id) < (coalesce((SELECT xid FROM theirs), pg_snapshot_xmin(pg_current_snapshot())),
                       coalesce((SELECT id FROM theirs), 0))
    ORDER BY changes.xid DESC, changes.id DESC
    LIMIT 1
)
SELECT CASE WHEN $3::int4 IS NULL THEN $1::text::xid8 <= pg_snapshot_xmax(pg_current_snapshot())
            ELSE EXISTS (SELECT FROM tidewater.changes WHERE xid = $1::text::xid8 AND id = $2 AND tag = $3) END AS there,
       EXISTS (SELECT FROM theirs) AS news,
       (SELECT (trimmed_xid, trimmed_id) <= ($1::text::xid8, $2) FROM tidewater.feed) AS whole,
       (SELECT (trimmed_xid, trimmed_id) = ($1::text::xid8, $2) FROM tidewater.feed) AS trimmed,
       pg_snapshot_xmin(pg_current_snapshot()) = pg_snapshot_xmax(pg_current_snapshot()) AS settled,
       ours.at, ours.id, ours.tag, (extract(epoch FROM clock_timestamp()) * 1000000)::int8 AS clock
FROM (SELECT) AS one LEFT JOIN ours ON true
