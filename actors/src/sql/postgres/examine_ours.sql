-- Tidewater's own tables, and what a sync does with them that this role may not. Where one column is enough, that is asked for.
SELECT c.relname::text AS name,
       ARRAY(SELECT right_name FROM unnest(needed.rights) AS right_name
             WHERE NOT has_table_privilege(c.oid, right_name)
             UNION ALL
             SELECT 'UPDATE (' || needed.of_column || ')'
             WHERE NOT has_column_privilege(c.oid, needed.of_column, 'UPDATE')) AS lacking
FROM (VALUES ('identity', ARRAY['SELECT'], NULL),
             ('devices', ARRAY['SELECT', 'INSERT', 'UPDATE'], NULL),
             ('changes', ARRAY['SELECT'], 'origin'),
             ('feed', ARRAY['SELECT'], 'one'),
             ('cursors', ARRAY['SELECT', 'INSERT', 'UPDATE'], NULL),
             ('conflicts', ARRAY['INSERT'], NULL)) AS needed(name, rights, of_column)
JOIN pg_class c ON c.relname = needed.name
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'tidewater'
