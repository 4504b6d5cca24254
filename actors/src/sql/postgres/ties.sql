-- By which columns the rows of these tables can stand in each other's way: unique indexes of plain columns, and foreign keys
-- from or to these tables. The primary key is not among them: a row that has another one's key is met otherwise. A unique
-- index is checked at once, row by row, unless its constraint is deferrable; where foreign keys rest on it, its values are not
-- to be touched without need.
SELECT i.indrelid AS tbl, NULL::oid AS parent, NULL::text[] AS parent_columns,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.ord <= i.indnkeyatts ORDER BY k.ord) AS columns,
       i.indimmediate AND NOT EXISTS (SELECT FROM pg_constraint f
                                      WHERE f.contype = 'f' AND f.conindid = i.indexrelid) AS at_once
FROM pg_index i
WHERE i.indrelid = ANY ($1) AND i.indisunique AND NOT i.indisprimary AND i.indexprs IS NULL
UNION ALL
SELECT c.conrelid, c.confrelid,
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(attnum, ord)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum ORDER BY k.ord),
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, ord)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum ORDER BY k.ord),
       false
FROM pg_constraint c
WHERE c.contype = 'f' AND c.conrelid = ANY ($1) AND c.confrelid = ANY ($1)
