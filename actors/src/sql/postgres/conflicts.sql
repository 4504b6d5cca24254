-- The conflicts that this device has logged since it last told: what lost stays on record at this end too. Nothing where the
-- round's transaction, which sets the device, did not begin.
INSERT INTO tidewater.conflicts (device, tbl, key, col, base, local, cloud, kept)
SELECT $1::uuid, c.tbl, c.key::json, c.col, c.base::json, c.local::json, c.cloud::json, c.kept
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
     AS c(tbl, key, col, base, local, cloud, kept)
WHERE current_setting('tidewater.device', true) = $1::uuid::text
