//! Statements for PostgreSQL that depend on a table's columns, as SQL text.
//!
//! Rows cross as one array per column, unnested with their position, so that a statement's answer names only
//! the rows that need attention: a round of thousands of good rows is answered with nothing.

use super::{all, ident, list};
use crate::core::schema::{CloudTable, Table};
use crate::core::value::{CloudType, Wire};

/// The qualified, quoted name.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

fn array_type(wire: Wire) -> &'static str {
    match wire {
        Wire::Int8 => "int8[]",
        Wire::Float8 => "float8[]",
        Wire::Bool => "bool[]",
        Wire::Text => "text[]",
        Wire::Bytea => "bytea[]",
    }
}

/// `sent`: the given columns of the given rows as a table `c0, c1, …, ord`, cast to the cloud's types without
/// length or precision, so that nothing is rounded before it is compared. Parameters from `$1` on.
fn sent(cloud: &CloudTable, columns: &[usize], as_text: bool, first_parameter: usize) -> String {
    let parameter = |(at, c): (usize, &usize)| {
        let wire = if as_text { Wire::Text } else { cloud.columns[*c].kind.wire() };
        format!("${}::{}", at + first_parameter, array_type(wire))
    };
    format!(
        "sent AS MATERIALIZED (SELECT {}, ord FROM unnest({}) WITH ORDINALITY AS raw({}, ord))",
        list(columns.iter().enumerate(), |(at, c)| format!("c{at}::{} AS c{at}", cloud.columns[*c].cast)),
        list(columns.iter().enumerate(), parameter),
        list(0..columns.len(), |at| format!("c{at}")),
    )
}

fn name(table: &Table, column: usize) -> String {
    ident(&table.columns[column].name)
}

/// Whether a stored value is the one that was sent. `json` and friends have no equality but their text's.
fn unchanged(cloud: &CloudTable, column: usize, stored: &str, sent: &str) -> String {
    match cloud.columns[column].kind {
        CloudType::Json | CloudType::Other(_) => format!("{stored}::text IS NOT DISTINCT FROM {sent}::text"),
        _ => format!("{stored} IS NOT DISTINCT FROM {sent}"),
    }
}

/// Inserts rows that the cloud should not have. Answers with the positions that are there already (`done`
/// false) or that are stored other than sent.
pub(crate) fn insert(table: &Table, cloud: &CloudTable) -> String {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    let key = &table.key;
    format!(
        "WITH {sent}, done AS (INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE \
         SELECT {values} FROM sent ORDER BY ord ON CONFLICT ({key_names}) DO NOTHING RETURNING {returned}) \
         SELECT sent.ord, done.{first_key} IS NOT NULL AS done \
         FROM sent LEFT JOIN done ON {same_key} WHERE done.{first_key} IS NULL OR NOT ({unchanged})",
        sent = sent(cloud, &columns, false, 1),
        target = qualified(&cloud.schema, &cloud.name),
        names = list(&columns, |c| name(table, *c)),
        values = list(&columns, |c| format!("c{c}")),
        key_names = list(key, |c| name(table, *c)),
        returned = list(&columns, |c| format!("{} AS c{c}", name(table, *c))),
        first_key = format_args!("c{}", key[0]),
        same_key = all(key, |c| format!("done.c{c} = sent.c{c}")),
        unchanged = all(&columns, |c| unchanged(cloud, *c, &format!("done.c{c}"), &format!("sent.c{c}"))),
    )
}

/// Updates the given data columns of rows that the cloud has. Parameters: the key's columns, then these.
/// Answers like [`insert`].
pub(crate) fn update(table: &Table, cloud: &CloudTable, columns: &[usize]) -> String {
    let keys = table.key.len();
    let all_columns: Vec<usize> = table.key.iter().chain(columns).copied().collect();
    format!(
        "WITH {sent}, done AS (UPDATE {target} AS t SET {assignments} FROM sent WHERE {same_key} \
         RETURNING sent.ord, {unchanged} AS unchanged) \
         SELECT sent.ord, done.ord IS NOT NULL AS done \
         FROM sent LEFT JOIN done ON done.ord = sent.ord WHERE done.ord IS NULL OR NOT done.unchanged",
        sent = sent(cloud, &all_columns, false, 1),
        target = qualified(&cloud.schema, &cloud.name),
        assignments =
            list(columns.iter().enumerate(), |(at, c)| format!("{} = sent.c{}", name(table, *c), keys + at)),
        same_key = key_is_sent(table),
        unchanged = all(columns.iter().enumerate(), |(at, c)| unchanged(
            cloud,
            *c,
            &format!("t.{}", name(table, *c)),
            &format!("sent.c{}", keys + at)
        )),
    )
}

/// Deletes rows by key; rows that are gone already are no error.
pub(crate) fn delete(table: &Table, cloud: &CloudTable) -> String {
    format!(
        "WITH {} DELETE FROM {} AS t USING sent WHERE {}",
        sent(cloud, &table.key, false, 1),
        qualified(&cloud.schema, &cloud.name),
        key_is_sent(table),
    )
}

/// Locks rows in key order and answers with the positions of those that exist.
pub(crate) fn lock(table: &Table, cloud: &CloudTable) -> String {
    format!(
        "WITH {} SELECT sent.ord FROM {} AS t JOIN sent ON {} ORDER BY {} FOR UPDATE OF t",
        sent(cloud, &table.key, false, 1),
        qualified(&cloud.schema, &cloud.name),
        key_is_sent(table),
        list(&table.key, |c| format!("t.{}", name(table, *c))),
    )
}

/// Whether somebody else's feed entries beyond our cursor touch these rows: their positions, and the newest such
/// entry. Parameters: the key's columns; then what each row has already taken into account, the cursor's
/// transaction id and entry id, and our device. Its own statement, after the locks: it must see what
/// was committed before them.
pub(crate) fn touched(table: &Table, cloud: &CloudTable) -> String {
    let keys = table.key.len();
    let key_text = list(0..keys, |at| format!("sent.c{at}::text"));
    format!(
        "WITH {sent}, seen AS (SELECT seen, ord FROM unnest(${seen}::int8[]) WITH ORDINALITY AS raw(seen, ord)) \
         SELECT sent.ord, max(change.id) AS newest FROM sent JOIN seen ON seen.ord = sent.ord \
         JOIN tidewater.changes AS change ON change.tbl = {oid} AND (change.key IS NULL OR change.key = ARRAY[{key_text}]) \
         WHERE (change.xid, change.id) > (${xid}::text::xid8, ${id}) AND change.id > seen.seen \
         AND change.origin IS DISTINCT FROM ${device} GROUP BY sent.ord",
        sent = sent(cloud, &table.key, false, 1),
        seen = keys + 1,
        xid = keys + 2,
        id = keys + 3,
        device = keys + 4,
        oid = cloud.oid,
    )
}

/// The rows whose given columns have the given values, sent as text; with their position first.
pub(crate) fn fetch(table: &Table, cloud: &CloudTable, by: &[usize], lock: bool) -> String {
    format!(
        "WITH {} SELECT sent.ord, {} FROM sent JOIN {} AS t ON {}{}",
        sent(cloud, by, true, 1),
        selected(table, cloud),
        qualified(&cloud.schema, &cloud.name),
        all(by.iter().enumerate(), |(at, c)| format!("t.{} = sent.c{at}", name(table, *c))),
        if lock { " FOR UPDATE OF t" } else { "" },
    )
}

/// One page of the table in key order. Parameters: the page's length, then, unless it is the first, the last
/// key of the page before, as text.
pub(crate) fn page(table: &Table, cloud: &CloudTable, first: bool) -> String {
    let key = list(&table.key, |c| format!("t.{}", name(table, *c)));
    let after = if first {
        String::new()
    } else {
        let last = list(table.key.iter().enumerate(), |(at, c)| {
            format!("${}::text::{}", at + 2, cloud.columns[*c].cast)
        });
        format!("WHERE ({key}) > ({last})")
    };
    format!(
        "SELECT 0::int8, {} FROM {} AS t {after} ORDER BY {key} LIMIT $1",
        selected(table, cloud),
        qualified(&cloud.schema, &cloud.name),
    )
}

fn selected(table: &Table, cloud: &CloudTable) -> String {
    list(0..table.columns.len(), |c| {
        let cast = match cloud.columns[c].kind.wire() {
            Wire::Int8 => "int8",
            Wire::Float8 => "float8",
            Wire::Bool => "bool",
            Wire::Text => "text",
            Wire::Bytea => "bytea",
        };
        format!("t.{}::{cast}", name(table, c))
    })
}

fn key_is_sent(table: &Table) -> String {
    all(table.key.iter().enumerate(), |(at, c)| format!("t.{} = sent.c{at}", name(table, *c)))
}

/// Creates the cloud's table of a tracked one, without its foreign keys.
///
/// Unique constraints are deferrable, so that values can change places within a round, except where a foreign
/// key refers to them, which PostgreSQL does not allow.
pub(crate) fn create_table(table: &Table, schema: &str, referenced: &[Vec<usize>]) -> String {
    let mut parts: Vec<String> = (0..table.columns.len()).map(|c| column_definition(table, c)).collect();
    parts.push(format!("PRIMARY KEY ({})", list(&table.key, |c| name(table, *c))));
    for unique in table.uniques.iter().filter(|unique| unique.declared) {
        let columns: Vec<usize> = unique.columns.iter().map(|(c, _)| *c).collect();
        let deferrable = if referenced.contains(&columns) { "" } else { " DEFERRABLE" };
        parts.push(format!("UNIQUE ({}){deferrable}", list(&columns, |c| name(table, *c))));
    }
    format!("CREATE TABLE IF NOT EXISTS {} ({})", qualified(schema, &table.name), parts.join(", "))
}

/// A column as a table that Tidewater creates, or extends, has it.
pub(crate) fn column_definition(table: &Table, c: usize) -> String {
    let column = &table.columns[c];
    let kind = CloudType::for_declared(&column.declared);
    let not_null = if column.not_null || table.is_key(c) { " NOT NULL" } else { "" };
    let default = column.default.as_deref().and_then(|text| default(text, &kind));
    let default = default.map_or(String::new(), |text| format!(" DEFAULT {text}"));
    format!("{} {}{not_null}{default}", ident(&column.name), kind.sql())
}

/// SQLite's default in PostgreSQL's words, where it has the same meaning: plain literals and the clock.
fn default(text: &str, kind: &CloudType) -> Option<String> {
    let text = text.trim();
    let is_number = text.parse::<f64>().is_ok_and(f64::is_finite);
    let is_string = text.len() >= 2 && text.starts_with('\'') && text.ends_with('\'');
    match (text.to_ascii_uppercase().as_str(), kind) {
        ("0" | "FALSE", CloudType::Bool) => Some("false".into()),
        ("1" | "TRUE", CloudType::Bool) => Some("true".into()),
        ("CURRENT_TIMESTAMP", CloudType::Timestamp) => {
            Some("date_trunc('second', now() AT TIME ZONE 'utc')".into())
        }
        ("CURRENT_TIMESTAMP", CloudType::Text) => {
            Some("to_char(now() AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS')".into())
        }
        ("CURRENT_DATE", CloudType::Date) => Some("(now() AT TIME ZONE 'utc')::date".into()),
        (_, CloudType::Int8 | CloudType::Float8 | CloudType::Numeric(_)) if is_number => Some(text.into()),
        (_, CloudType::Text | CloudType::Json) if is_string => Some(text.into()),
        _ => None,
    }
}

/// The foreign keys of a tracked table that can exist in the cloud: those whose parent is tracked as well.
pub(crate) fn foreign_keys(table: &Table, tracked: &[Table], schema: &str) -> Vec<String> {
    let action = |event: &str, action: &str| match action {
        "CASCADE" | "SET NULL" | "SET DEFAULT" | "RESTRICT" => format!(" ON {event} {action}"),
        _ => String::new(),
    };
    table
        .foreign_keys
        .iter()
        .filter(|key| tracked.iter().any(|parent| parent.name.eq_ignore_ascii_case(&key.parent)))
        .map(|key| {
            format!(
                "ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({}){}{} DEFERRABLE",
                qualified(schema, &table.name),
                list(&key.columns, |c| name(table, *c)),
                qualified(schema, &key.parent),
                list(&key.parent_columns, |c| ident(c)),
                action("DELETE", &key.on_delete),
                action("UPDATE", &key.on_update),
            )
        })
        .collect()
}

/// The feed's trigger function and triggers of one table; each is created only where it is missing.
///
/// `SECURITY DEFINER`, because plain writers have no rights on our schema; every setting that shapes a key's
/// text is fixed; one trigger per event, because transition tables allow no more.
pub(crate) fn feed(table: &Table, cloud: &CloudTable) -> String {
    let function = format!("tidewater.feed_{}", cloud.oid);
    let target = qualified(&cloud.schema, &cloud.name);
    let key = format!("ARRAY[{}]", list(&table.key, |c| format!("{}::text", name(table, *c))));
    let mut sql = format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'\n\
         SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $feed$\n\
         DECLARE device text := nullif(current_setting('tidewater.device', true), '');\n\
         BEGIN\n\
         IF TG_OP = 'INSERT' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT TG_RELID, {key}, device FROM new_rows;\n\
         ELSIF TG_OP = 'DELETE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT TG_RELID, {key}, device FROM old_rows;\n\
         ELSIF TG_OP = 'UPDATE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin)\n  \
           SELECT TG_RELID, keys.key, device FROM (SELECT {key} AS key FROM new_rows UNION SELECT {key} FROM old_rows) AS keys;\n\
         ELSE\n  \
           INSERT INTO tidewater.changes (tbl, origin) VALUES (TG_RELID, device);\n\
         END IF;\n\
         RETURN NULL;\n\
         END $feed$;\n\
         REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;\n"
    );
    for (event, tables) in [
        ("INSERT", " REFERENCING NEW TABLE AS new_rows"),
        ("UPDATE", " REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows"),
        ("DELETE", " REFERENCING OLD TABLE AS old_rows"),
        ("TRUNCATE", ""),
    ] {
        let trigger = feed_trigger(event);
        sql += &format!(
            "CREATE TRIGGER {trigger} AFTER {event} ON {target}{tables} FOR EACH STATEMENT EXECUTE FUNCTION {function}();\n\
             ALTER TABLE {target} ENABLE ALWAYS TRIGGER {trigger};\n"
        );
    }
    sql
}

/// The name of the feed's trigger for an event.
pub(crate) fn feed_trigger(event: &str) -> String {
    format!("tidewater_feed_{}", event.to_ascii_lowercase())
}
