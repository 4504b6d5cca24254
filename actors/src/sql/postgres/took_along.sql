-- The rows that this transaction changed and of which somebody else's change lies beyond our cursor. Those that it did not
-- send went along with one that it deletes (a cascade), and this file has not seen them. An entry has the texts of its keys one
-- after the other.
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
SELECT DISTINCT mine.tbl, mine.key
FROM changed AS mine
JOIN changed AS theirs ON theirs.tbl = mine.tbl AND theirs.key = mine.key
WHERE mine.ours AND NOT theirs.ours
