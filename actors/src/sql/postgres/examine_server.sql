-- Who answers, and whether anything can be written there at all. Names are looked up in the catalogue: the functions that
-- resolve them fail where this role may not use the schema.
SELECT current_setting('server_version')                                     AS version,
       pg_is_in_recovery()                                                   AS replica,
       current_setting('default_transaction_read_only') = 'on'               AS reads_only,
       (SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only') AS reads_only_by,
       has_database_privilege(current_database(), 'CREATE')                  AS may_create_schema,
       pg_get_userbyid((SELECT datdba FROM pg_database WHERE datname = current_database()))::text AS owner,
       (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'tidewater') AS may_use_ours,
       (SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'tidewater') AS owner_of_ours,
       (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1) AS may_use,
       (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1) AS may_create,
       (SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = $1) AS owner_of_schema
