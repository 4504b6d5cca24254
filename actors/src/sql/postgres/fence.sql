-- The first statement of a round: our session, and the round before this one, or nothing at all. What is sent behind it must
-- not be carried out then: where no row changes, this divides by zero, which ends the transaction. The device is set by the
-- statement that begins it, until it ends: where that one was cancelled, and nothing began, this must not take effect alone.
--
-- The device is registered at or before the round's cursor, and nobody can shut it out while this holds its row: until the
-- round ends, nothing beyond the cursor is trimmed, and the round's look at the feed misses nothing.
WITH fenced AS (
    UPDATE tidewater.devices
    SET round = $1, round_number = round_number + 1, left_out = '{}',
        seen_at = greatest(now(), seen_at + interval '1 microsecond')
    WHERE id = $2 AND session = $3 AND round IS NOT DISTINCT FROM $4
      AND id::text = current_setting('tidewater.device', true)
      AND EXISTS (SELECT FROM tidewater.cursors WHERE device = $2 AND (xid, cursors.id) <= ($5::text::xid8, $6::bigint))
    RETURNING id
)
-- Whoever listens hears of it when the round commits.
SELECT 1 / count(*), pg_notify('tidewater', $2::text) FROM fenced
