-- Which version of Tidewater the device runs, if the ledger has another one. Behind settle.sql, by the same session.
UPDATE tidewater.devices SET version = $3::text WHERE id = $1 AND session = $2 AND version IS DISTINCT FROM $3::text
