-- A table and its partitions, each with how many of the feed's triggers it has as they should be: they call a function with this
-- text, or that of a later version. And with how many there are that call an earlier one's.
WITH trigger AS (
    SELECT g.tgrelid AS on_oid, p.prosrc = $3 AS same,
           p.pronamespace = to_regnamespace('tidewater') AND p.proname = 'feed_' || $1::oid AS ours,
           coalesce(substring(p.prosrc FROM '-- version ([0-9]{1,4})\y')::integer, 1)
             - substring($3 FROM '-- version ([0-9]{1,4})\y')::integer AS later
    FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
    WHERE g.tgname = ANY ($2) AND g.tgenabled = 'A'
)
SELECT n.nspname::text AS schema, c.relname::text AS name,
       (SELECT count(*) FROM trigger WHERE on_oid = c.oid AND (same OR ours AND later > 0)) AS covered,
       (SELECT count(*) FROM trigger WHERE on_oid = c.oid AND ours AND later < 0) AS older
FROM (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid)) AS part
JOIN pg_class c ON c.oid = part.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
