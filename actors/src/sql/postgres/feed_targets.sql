-- A table and its partitions, each with how many of the feed's triggers it has as they should be.
SELECT n.nspname::text AS schema, c.relname::text AS name,
       (SELECT count(*) FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
        WHERE g.tgrelid = c.oid AND g.tgname = ANY ($2) AND g.tgenabled = 'A' AND p.prosrc = $3) AS covered
FROM (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid)) AS part
JOIN pg_class c ON c.oid = part.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
