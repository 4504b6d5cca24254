-- Whether an inserted row is stored as it is sent, as far as the table has a say: no rules, no partitions, no trigger that sees
-- rows before they are stored (row, before, insert), no column that cuts or rounds.
SELECT c.relkind = 'r' AND NOT c.relhasrules
       AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgtype & 7 = 7)
       AND NOT EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypmod <> -1) AS plain
FROM pg_class c
WHERE c.oid = $1
