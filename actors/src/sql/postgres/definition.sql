-- What one table is made of, as JSON, beside its columns' types (columns.sql) and its key (key_columns.sql): the expressions of
-- the defaults, a domain's where the column has none; indexes; foreign keys. What only newer servers know is asked for by name.
SELECT json_build_object(
    'columns', (
        SELECT coalesce(json_agg(json_build_object(
            'name', a.attname,
            'identity', a.attidentity::text <> '',
            'default', coalesce(pg_get_expr(d.adbin, d.adrelid), t.typdefault))), '[]')
        FROM pg_attribute a
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped),
    'indexes', (
        SELECT coalesce(json_agg(json_build_object(
            'name', x.relname,
            'unique', i.indisunique,
            'constraint', EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.contype = 'u'),
            'columns', ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
                             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                             WHERE k.ord <= i.indnkeyatts ORDER BY k.ord),
            'plain', i.indexprs IS NULL AND i.indpred IS NULL AND i.indisvalid AND m.amname = 'btree'
                     AND coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) = false
            ) ORDER BY x.relname), '[]')
        FROM pg_index i
        JOIN pg_class x ON x.oid = i.indexrelid
        JOIN pg_am m ON m.oid = x.relam
        WHERE i.indrelid = $1 AND NOT i.indisprimary),
    'foreign_keys', (
        SELECT coalesce(json_agg(json_build_object(
            'columns', ARRAY(SELECT a.attname::text FROM unnest(o.conkey) WITH ORDINALITY AS k(attnum, ord)
                             JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.attnum ORDER BY k.ord),
            'parent', CASE WHEN p.relnamespace = c.relnamespace THEN p.relname END,
            'parent_columns', ARRAY(SELECT a.attname::text FROM unnest(o.confkey) WITH ORDINALITY AS k(attnum, ord)
                                    JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k.attnum ORDER BY k.ord),
            -- One that empties only some of its columns has no name in SQLite.
            'on_delete', CASE WHEN to_jsonb(o) ->> 'confdelsetcols' IS NULL THEN action.names ->> o.confdeltype::text END,
            'on_update', action.names ->> o.confupdtype::text,
            'deferred', o.condeferrable AND o.condeferred
            ) ORDER BY o.conname), '[]')
        FROM pg_constraint o
        JOIN pg_class c ON c.oid = o.conrelid
        JOIN pg_class p ON p.oid = o.confrelid
        CROSS JOIN (SELECT '{"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}'::jsonb)
            AS action(names)
        WHERE o.conrelid = $1 AND o.contype = 'f' AND o.conparentid = 0),
    'checks', EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = $1 AND o.contype = 'c')
)::text AS definition
