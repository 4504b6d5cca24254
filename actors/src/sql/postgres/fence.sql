-- The first statement of a round: our session, and the round before this one, or nothing at all.
UPDATE tidewater.devices
SET round = $1, round_number = round_number + 1, left_out = '{}', seen_at = greatest(now(), seen_at + interval '1 microsecond')
WHERE id = $2 AND session = $3 AND round IS NOT DISTINCT FROM $4
