-- This session was here, and the device has all that lies up to the cursor: whoever trims need not keep it for it.
-- Says, too, whether it is still on record there that this session reads on from somewhere.
WITH here AS (
    UPDATE tidewater.devices SET seen_at = greatest(clock_timestamp(), seen_at + interval '1 microsecond')
    WHERE id = $1 AND session = $2
    RETURNING id, seen_at
), reached AS (
    UPDATE tidewater.cursors SET xid = $3::text::xid8, id = $4, at = clock_timestamp()
    FROM here WHERE cursors.device = here.id AND cursors.xid IS NOT NULL AND $3::text IS NOT NULL
)
SELECT (extract(epoch FROM seen_at) * 1000000)::bigint,
       EXISTS (SELECT FROM tidewater.cursors WHERE device = $1 AND session = $2)
FROM here
