-- The columns of one table: name, type, what a cast may say, what a modifier says, whether it can be written.
SELECT a.attname::text                       AS name,
       CASE t.typtype WHEN 'b' THEN t.typname::text ELSE 'other' END AS kind,
       format_type(a.atttypid, -1)           AS cast_name,
       a.atttypmod                           AS modifier,
       a.attgenerated::text <> ''            AS generated,
       -- Nothing but the writer gives it a value: no default, and no trigger before the insert (row, before, insert).
       a.attnotnull AND NOT a.atthasdef AND a.attidentity::text = '' AND a.attgenerated::text = ''
           AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgtype & 7 = 7) AS demanded,
       a.attnum                              AS number,
       c.oid                                 AS table_oid
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
ORDER BY a.attnum
