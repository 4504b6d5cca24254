-- One table that is there: what this role may not do with it, and whether it could install the feed's triggers.
SELECT ARRAY(SELECT right_name FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_name
             WHERE NOT has_table_privilege($1::oid, right_name)) AS lacking,
       pg_has_role(c.relowner, 'USAGE')      AS owns,
       pg_get_userbyid(c.relowner)::text     AS owner
FROM pg_class c
WHERE c.oid = $1
