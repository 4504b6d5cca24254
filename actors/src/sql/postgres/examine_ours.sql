-- Tidewater's own tables, and what a sync does with them that this role may not.
SELECT c.relname::text AS name,
       ARRAY(SELECT right_name FROM unnest(needed.rights) AS right_name
             WHERE NOT has_table_privilege(c.oid, right_name)) AS lacking
FROM (VALUES ('identity', ARRAY['SELECT']),
             ('devices', ARRAY['SELECT', 'INSERT', 'UPDATE']),
             ('changes', ARRAY['SELECT', 'UPDATE']),
             ('feed', ARRAY['SELECT', 'UPDATE']),
             ('cursors', ARRAY['SELECT', 'INSERT', 'UPDATE']),
             ('conflicts', ARRAY['INSERT'])) AS needed(name, rights)
JOIN pg_class c ON c.relname = needed.name
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'tidewater'
