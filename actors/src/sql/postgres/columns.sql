-- The columns of one table: name, type, what a cast may say, what a modifier says, whether it can be written, and all of that
-- as the catalogue has it (own_echo.sql looks whether it is still so). A domain is the type that it is of, to any depth.
WITH RECURSIVE typed AS (
    SELECT a.attname, a.attnum, a.attrelid, a.atttypid AS type, a.atttypmod AS modifier, a.attnotnull AS not_null,
           a.atthasdef OR a.attidentity::text <> '' OR a.attgenerated::text <> '' AS given,
           a.attgenerated::text <> '' AS generated,
           concat_ws('.', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull, a.atthasdef,
                     a.attidentity, a.attgenerated) AS definition
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT attname, attnum, attrelid, d.typbasetype, d.typtypmod, not_null OR d.typnotnull,
           given OR d.typdefault IS NOT NULL, generated, definition
    FROM typed
    JOIN pg_type d ON d.oid = typed.type AND d.typtype = 'd'
)
SELECT a.attname::text                       AS name,
       CASE WHEN e.oid IS NOT NULL THEN 'array' WHEN t.typtype = 'b' THEN t.typname::text ELSE 'other' END AS kind,
       -- What JSON makes of an array's elements.
       CASE WHEN e.typname IN ('int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'oid') THEN 'number'
            WHEN e.typname = 'bool' THEN 'bool' ELSE 'text' END AS element,
       format_type(a.type, -1)               AS cast_name,
       format_type(a.type, a.modifier)       AS exact,
       a.modifier                            AS modifier,
       NOT a.not_null                        AS nullable,
       a.generated                           AS generated,
       -- Nothing but the writer gives it a value: no default, and no trigger before the insert (row, before, insert).
       a.not_null AND NOT a.given
           AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = a.attrelid AND g.tgtype & 7 = 7) AS demanded,
       a.attnum                              AS number,
       a.definition                          AS definition,
       a.attrelid                            AS table_oid
FROM typed a
JOIN pg_type t ON t.oid = a.type AND t.typtype <> 'd'
-- A real array, not a vector by another name, whose elements are separated as JSON does it.
LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid AND e.typdelim = ','
ORDER BY a.attnum
