-- The third version of the cloud's side: which version of Tidewater a device runs. Comes behind feed.sql, and alone where that
-- was carried out by an older version; by the owner of tidewater.devices, who alone may add a column.

-- What the device said when it settled last; `seen_at` says when it was there last. NULL: it runs a version that does not say,
-- or has not settled since, or its role has no right on this column. One that goes back to a version that does not say leaves here
-- what it said before. Asked for first: to alter a table locks it.
DO $tidewater_version$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'tidewater.devices'::regclass AND attname = 'version' AND NOT attisdropped) THEN
        IF NOT (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'tidewater.devices'::regclass) THEN
            RAISE WARNING 'tidewater.devices belongs to somebody else, who alone can add a column: no device says its version';
            RETURN;
        END IF;
        ALTER TABLE tidewater.devices ADD COLUMN version text;
    END IF;
    UPDATE tidewater.identity SET schema_version = 3 WHERE schema_version < 3;
END $tidewater_version$;
