-- Ends whoever holds this device's row of the ledger: only a session of its own writes to it, and this is a later one.
SELECT pg_terminate_backend(l.pid)
FROM tidewater.devices d
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = d.xmax AND l.granted
WHERE d.id = $1 AND l.pid <> pg_backend_pid()
