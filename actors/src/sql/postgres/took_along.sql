-- The rows that this transaction changed, and whether somebody else's change of them lies beyond our cursor. Those that it did not
-- send went along with one that it deletes (a cascade). An entry has the texts of its keys one after the other.
WITH changed AS MATERIALIZED (
    SELECT entry.tbl, entry.xid = pg_current_xact_id() AS ours, one.key
    FROM tidewater.changes AS entry
    CROSS JOIN LATERAL (
        SELECT array_agg(part ORDER BY ord) AS key
        FROM unnest(entry.key) WITH ORDINALITY AS parts(part, ord)
        GROUP BY (ord - 1) / coalesce(array_length(entry.key, 2), cardinality(entry.key))
    ) AS one
    WHERE (entry.xid, entry.id) > ($1::text::xid8, $2)
      AND (entry.xid = pg_current_xact_id() OR entry.origin IS DISTINCT FROM $3)
)
SELECT tbl, key, bool_or(NOT ours) AS theirs FROM changed GROUP BY tbl, key HAVING bool_or(ours)
