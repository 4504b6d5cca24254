-- The tables of a schema, partitions left out: whether the change feed covers each, which says that some device syncs it, and
-- whether this role may read it.
SELECT c.relname::text AS name,
       EXISTS (SELECT FROM pg_trigger g
               WHERE g.tgrelid = c.oid AND g.tgname LIKE 'tidewater\_feed\_%' AND g.tgenabled = 'A') AS synced,
       has_table_privilege(c.oid, 'SELECT') AS may_read
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY c.relname
