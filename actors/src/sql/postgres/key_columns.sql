-- The columns of a table's primary key, in key order. A deferrable one does not count: ON CONFLICT cannot use it.
SELECT a.attname::text
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = $1 AND i.indisprimary AND i.indimmediate
ORDER BY k.ord
