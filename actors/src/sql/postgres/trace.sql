-- What the feed's account of a table rests on: the table itself and the triggers on it and its partitions.
SELECT $1::oid::text || ':' || coalesce(string_agg(g.oid::text, ',' ORDER BY g.oid), '')
FROM pg_trigger g
WHERE g.tgrelid IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))
  AND g.tgname LIKE 'tidewater\_feed\_%' AND g.tgenabled = 'A'
