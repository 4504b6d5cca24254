-- The first statement of a round: our session, and the round before this one, or nothing at all. What is sent behind it must
-- not be carried out then: where no row changes, this divides by zero, which ends the transaction.
WITH fenced AS (
    UPDATE tidewater.devices
    SET round = $1, round_number = round_number + 1, left_out = '{}',
        seen_at = greatest(now(), seen_at + interval '1 microsecond')
    WHERE id = $2 AND session = $3 AND round IS NOT DISTINCT FROM $4
    RETURNING id
)
SELECT 1 / count(*) FROM fenced
