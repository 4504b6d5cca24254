-- What decides whether tables accept a row, each as one hash: columns and their defaults, types and domains; constraints of
-- their own and those that refer to them; indexes; triggers; policies; the functions that any of these call; rights, and whose
-- rights are ours. By the numbers of the transactions that made the catalogue's rows, so that anything that is replaced
-- counts. The feed's own triggers decide over nothing.
WITH RECURSIVE part AS (
    SELECT t.name, to_regclass(t.name)::oid AS root, coalesce(p.relid::oid, to_regclass(t.name)::oid) AS oid
    FROM unnest($1::text[]) AS t(name)
    LEFT JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS p ON true
),
-- The columns' types, and those that they are made of.
used AS (
    SELECT DISTINCT part.root, a.atttypid AS typ
    FROM part JOIN pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0
    UNION
    SELECT used.root, made.typ
    FROM used JOIN pg_type t ON t.oid = used.typ
    CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS made(typ)
    WHERE made.typ <> 0
),
-- What may call a function.
rule AS (
    SELECT part.root, 'pg_constraint'::regclass AS class, o.oid, o.xmin, 'constraint' AS kind
    FROM part JOIN pg_constraint o ON o.conrelid = part.oid OR o.confrelid = part.oid
    UNION ALL
    SELECT used.root, 'pg_constraint'::regclass, o.oid, o.xmin, 'domain'
    FROM used JOIN pg_constraint o ON o.contypid = used.typ
    UNION ALL
    SELECT part.root, 'pg_attrdef'::regclass, d.oid, d.xmin, 'default'
    FROM part JOIN pg_attrdef d ON d.adrelid = part.oid
    UNION ALL
    SELECT part.root, 'pg_class'::regclass, i.indexrelid, i.xmin, 'index'
    FROM part JOIN pg_index i ON i.indrelid = part.oid
    UNION ALL
    SELECT part.root, 'pg_policy'::regclass, y.oid, y.xmin, 'policy'
    FROM part JOIN pg_policy y ON y.polrelid = part.oid
    UNION ALL
    SELECT part.root, 'pg_trigger'::regclass, g.oid, g.xmin, 'trigger'
    FROM part JOIN pg_trigger g ON g.tgrelid = part.oid
    WHERE NOT g.tgisinternal AND g.tgname NOT LIKE 'tidewater\_feed\_%'
),
fact AS (
    SELECT part.root, concat_ws(' ', 'table', c.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relacl) AS fact
    FROM part JOIN pg_class c ON c.oid = part.oid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'column', a.attrelid, a.attnum, a.atttypid, a.xmin)
    FROM part JOIN pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0
    UNION ALL
    SELECT used.root, concat_ws(' ', 'type', t.oid, t.xmin, e.oid, e.xmin)
    FROM used JOIN pg_type t ON t.oid = used.typ
    LEFT JOIN pg_enum e ON e.enumtypid = t.oid
    WHERE t.typtype IN ('d', 'e')
    UNION ALL
    SELECT rule.root, concat_ws(' ', rule.kind, rule.oid, rule.xmin, f.oid, f.xmin)
    FROM rule
    LEFT JOIN pg_depend d ON d.classid = rule.class AND d.objid = rule.oid AND d.refclassid = 'pg_proc'::regclass
    LEFT JOIN pg_proc f ON f.oid = d.refobjid
    UNION ALL
    SELECT part.root, concat_ws(' ', 'role', r.rolsuper, r.rolbypassrls, m.roleid, m.member, m.xmin)
    FROM (SELECT DISTINCT root FROM part) AS part
    JOIN pg_roles r ON r.rolname = current_user
    LEFT JOIN pg_auth_members m ON pg_has_role(m.member, 'MEMBER')
)
SELECT t.name, encode(sha256(convert_to(string_agg(fact.fact, E'\n' ORDER BY fact.fact COLLATE "C"), 'UTF8')), 'hex') AS shape
FROM (SELECT DISTINCT name, root FROM part) AS t
JOIN fact ON fact.root = t.root
GROUP BY t.name
