-- Where this connection ends: server, database, and the timeline that is written. The control file names the timeline of the
-- last checkpoint, which a server that was just promoted has not made yet; the log's file name has the one in use.
SELECT (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT oid::text FROM pg_database WHERE datname = current_database()),
       current_database()::text,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END
