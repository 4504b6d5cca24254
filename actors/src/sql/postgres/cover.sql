-- Installs the feed of one table where it is not all there as it should be, as a device that may does it. The texts are those of
-- the feed, with <oid>, <key>, <same>, <body> and <target> in the place of what only this database knows: the table's number, its key
-- as text (`as_address` is how a column is written out that is an inet), whether two rows have the same one (`as_is` where values that
-- are equal have the same text), and the names of the table and its partitions.
CREATE OR REPLACE FUNCTION pg_temp.tidewater_cover(
    in_schema text, in_table text, key text[], as_text text[], as_address text[], as_is text[], by_text text[],
    triggers text[],
    find_columns text, find_targets text, body text, make_function text, make_triggers text
) RETURNS void LANGUAGE plpgsql AS $tidewater_cover$
DECLARE
    tbl     oid := format('%I.%I', in_schema, in_table)::regclass;
    written text := '';
    same    text := '';
    one     record;
    made    boolean := false;
BEGIN
    FOR part IN 1 .. cardinality(key) LOOP
        EXECUTE 'SELECT cast_name FROM (' || find_columns || ') AS c WHERE c.name = $3' INTO STRICT one USING in_schema, in_table, key[part];
        written := concat_ws(', ', nullif(written, ''), CASE WHEN one.cast_name = 'inet' THEN as_address[part] ELSE as_text[part] END);
        same := concat_ws(' AND ', nullif(same, ''),
                          CASE WHEN one.cast_name IN ('smallint', 'integer', 'bigint', 'uuid') THEN as_is[part] ELSE by_text[part] END);
    END LOOP;
    body := replace(replace(replace(body, '<oid>', tbl::text), '<key>', written), '<same>', same);
    FOR one IN EXECUTE find_targets USING tbl, triggers, body LOOP
        CONTINUE WHEN one.covered = cardinality(triggers);
        IF NOT made THEN
            EXECUTE replace(replace(make_function, '<oid>', tbl::text), '<body>', body);
            made := true;
        END IF;
        EXECUTE replace(replace(make_triggers, '<oid>', tbl::text), '<target>', format('%I.%I', one.schema, one.name));
    END LOOP;
END $tidewater_cover$;
