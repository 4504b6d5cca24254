-- What decides whether tables accept a row, each as one hash: columns and their defaults, types and domains; constraints of
-- their own and those that refer to them; unique indexes; triggers with their functions; policies; rights. By the numbers of
-- the transactions that made the catalogue's rows, so that anything that is replaced counts. The feed's own triggers decide
-- over nothing.
WITH part AS (
    SELECT t.name, to_regclass(t.name)::oid AS root, coalesce(p.relid::oid, to_regclass(t.name)::oid) AS oid
    FROM unnest($1::text[]) AS t(name)
    LEFT JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS p ON true
),
fact AS (
    SELECT part.root, concat_ws(' ', 'table', c.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relacl) AS fact
    FROM part JOIN pg_class c ON c.oid = part.oid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'column', a.attrelid, a.attnum, a.atttypid, a.xmin)
    FROM part JOIN pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0
    UNION ALL
    SELECT part.root, concat_ws(' ', 'default', d.oid, d.xmin)
    FROM part JOIN pg_attrdef d ON d.adrelid = part.oid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'domain', d.oid, d.xmin)
    FROM part JOIN pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0
    JOIN pg_constraint d ON d.contypid = a.atttypid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'enum', e.oid, e.xmin)
    FROM part JOIN pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0
    JOIN pg_enum e ON e.enumtypid = a.atttypid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'constraint', o.oid, o.xmin)
    FROM part JOIN pg_constraint o ON o.conrelid = part.oid OR o.confrelid = part.oid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'index', i.indexrelid, i.xmin)
    FROM part JOIN pg_index i ON i.indrelid = part.oid AND i.indisunique
    UNION ALL
    SELECT part.root, concat_ws(' ', 'trigger', g.oid, g.xmin, f.xmin)
    FROM part JOIN pg_trigger g ON g.tgrelid = part.oid
    JOIN pg_proc f ON f.oid = g.tgfoid
    WHERE NOT g.tgisinternal AND g.tgname NOT LIKE 'tidewater\_feed\_%'
    UNION ALL
    SELECT part.root, concat_ws(' ', 'policy', y.oid, y.xmin)
    FROM part JOIN pg_policy y ON y.polrelid = part.oid
)
SELECT t.name, encode(sha256(convert_to(string_agg(fact.fact, E'\n' ORDER BY fact.fact COLLATE "C"), 'UTF8')), 'hex') AS shape
FROM (SELECT DISTINCT name, root FROM part) AS t
JOIN fact ON fact.root = t.root
GROUP BY t.name
