-- Whether an inserted row is stored as it is sent, as far as the table has a say: no rules, no partitions, no trigger that sees
-- rows before they are stored (row, before, insert), no column that cuts or rounds, and none of a type beside the plain ones
-- (a domain may do either).
SELECT c.relkind = 'r' AND NOT c.relhasrules
       AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgtype & 7 = 7)
       AND NOT EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                         AND (a.atttypmod <> -1 OR a.atttypid <> ALL (ARRAY['int2', 'int4', 'int8', 'float8', 'bool', 'text',
                                                                            'varchar', 'bytea']::regtype[]))) AS plain
FROM pg_class c
WHERE c.oid = $1
