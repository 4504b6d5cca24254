-- Where this connection stands: the cloud's identity and whereabouts (as in whose.sql), the version of its side, whether our session is the last one that settled, how many of the
-- prepared tables are still the ones that were prepared, and the feed's triggers, the columns, the partitions and the row-level
-- security on them.
SELECT (SELECT id::text FROM tidewater.identity) AS identity,
       (SELECT schema_version::int8 FROM tidewater.identity) AS version,
       EXISTS (SELECT 1 FROM tidewater.devices WHERE id = $1 AND session = $2) AS settled,
       (SELECT count(*) FROM unnest($3::text[], $4::oid[]) AS t(name, oid)
        WHERE to_regclass(t.name)::oid = t.oid) AS tables,
       (SELECT coalesce(string_agg(g.oid::text, ',' ORDER BY g.oid), '') FROM pg_trigger g
        WHERE g.tgrelid = ANY ($4) AND g.tgname LIKE 'tidewater\_feed\_%' AND g.tgenabled = 'A')
       || (SELECT coalesce(string_agg(concat_ws('.', a.attrelid, a.attnum, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef,
                                                a.attidentity, a.attgenerated), ',' ORDER BY a.attrelid, a.attnum), '')
           FROM pg_attribute a
           WHERE a.attrelid = ANY ($4) AND a.attnum > 0 AND NOT a.attisdropped)
       || (SELECT coalesce(string_agg(concat_ws('.', c.oid, c.relrowsecurity, row_security_active(c.oid),
                                                to_regprocedure('tidewater.there_' || c.oid || '(jsonb)')::oid, (SELECT string_agg(p.relid::oid::text, '/' ORDER BY p.relid::oid)
                                                FROM pg_partition_tree(c.oid) p)), ',' ORDER BY c.oid), '')
           FROM pg_class c WHERE c.oid = ANY ($4)) AS triggers,
       (SELECT concat_ws('.', system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),
                         CASE WHEN pg_is_in_recovery() THEN 'replica'
                              ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END)
        FROM pg_control_system()) AS whereabouts
