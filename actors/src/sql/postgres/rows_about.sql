-- How many rows a table has, about: what was counted last. Nothing where nobody has counted yet.
SELECT c.reltuples::bigint AS rows FROM pg_class c WHERE c.oid = $1 AND c.reltuples > 0
