-- Whether everything that this transaction caused is exactly what it sent. If not (a cascade, a trigger, a default, a
-- normalised value), its feed entries are treated as somebody else's, so that the device pulls them as well; by the mark one
-- sees all the same whose round it was. Tables of which it was taken for granted that they store what they are sent have got
-- no trigger and no rule since that changes it: none can come any more until this transaction ends. Where that is broken, nothing
-- of it may be committed.
--
-- And how many of the tables that it wrote to are not the ones any more that were prepared: their columns are as columns.sql
-- had them, or what was sent was cast to another type than the column has. The rows' own statements hold locks on the tables,
-- so that they stay as they are seen here until this transaction ends.
--
-- With $6 it is that, or nothing: what ends the transaction is on its way behind this, and nobody looks at anything before. Where
-- anything else was caused, or nothing at all, this divides by zero.
WITH caused AS (
    -- What is told of other tables was not sent, however much is missing of these.
    SELECT coalesce(sum(CASE array_ndims(key) WHEN 2 THEN array_length(key, 1) ELSE 1 END), 0) <> $2
           OR coalesce(bool_or(tbl <> ALL ($4::oid[])), false) AS more
    FROM tidewater.changes WHERE xid = pg_current_xact_id()
), granted AS (
    SELECT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = ANY ($3::oid[]) AND g.tgtype & 7 = 7)
           OR EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY ($3) AND (c.relhasrules OR c.relkind <> 'r')) AS broken
), prepared AS (
    SELECT count(*) AS altered FROM unnest($4, $5::text[]) AS prepared(tbl, definition)
    WHERE definition IS DISTINCT FROM
          (SELECT string_agg(concat_ws('.', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
                                       a.atthasdef, a.attidentity, a.attgenerated), ',' ORDER BY a.attnum)
           FROM pg_attribute a WHERE a.attrelid = tbl AND a.attnum > 0 AND NOT a.attisdropped)
), marked AS (
    UPDATE tidewater.changes SET origin = origin || '~'
    WHERE xid = pg_current_xact_id()
      AND ($1 OR (SELECT more FROM caused))
    RETURNING 1
)
SELECT (SELECT count(*) FROM marked) AS marked, altered, broken,
       1 / CASE WHEN $6 AND (more OR broken OR altered > 0) THEN 0 ELSE 1 END AS good
FROM caused, granted, prepared
