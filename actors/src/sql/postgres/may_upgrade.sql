-- Whether this role may bring the ledger to another version. Asked for first: one that may not would leave an error in the
-- server's log with each settlement.
SELECT pg_has_role(c.relowner, 'USAGE') AND has_table_privilege('tidewater.identity', 'UPDATE')
FROM pg_class c WHERE c.oid = 'tidewater.devices'::regclass
