//! Statements for PostgreSQL that depend on a table's columns, as SQL text.
//!
//! Rows cross as one array per column, unnested with their position, so that a statement's answer names only
//! the rows that need attention: a round of thousands of good rows is answered with nothing.

use super::{all, ident, list};
use crate::core::schema::{CloudColumn, CloudTable, Table};
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
/// length or precision, so that nothing is rounded before it is compared. What is sent as text is there a second
/// time as it came, `r0, r1, …`: the cast may have changed it. Parameters from `$1` on.
fn sent(cloud: &CloudTable, columns: &[usize], as_text: bool, first_parameter: usize) -> String {
    let parameter = |(at, c): (usize, &usize)| {
        let wire = if as_text { Wire::Text } else { cloud.columns[*c].kind.wire() };
        format!("${}::{}", at + first_parameter, array_type(wire))
    };
    format!(
        "sent AS MATERIALIZED (SELECT {}, ord FROM unnest({}) WITH ORDINALITY AS raw({}, ord))",
        list(columns.iter().enumerate(), |(at, c)| {
            let CloudColumn { kind, cast, .. } = &cloud.columns[*c];
            let raw = if !as_text && is_compared_as_text(kind) {
                format!(", c{at} AS r{at}")
            } else {
                String::new()
            };
            format!("c{at}::{cast} AS c{at}{raw}")
        }),
        list(columns.iter().enumerate(), parameter),
        list(0..columns.len(), |at| format!("c{at}")),
    )
}

fn name(table: &Table, column: usize) -> String {
    ident(&table.columns[column].name)
}

/// Whether values of this type are compared by their text: it is what comes back to the device, and `=` may be
/// more generous (`jsonb`, `char(n)`, collations that ignore case) or missing (`json`). A `numeric` has more than
/// one text for the same number.
fn is_compared_as_text(kind: &CloudType) -> bool {
    kind.wire() == Wire::Text && !matches!(kind, CloudType::Numeric(_))
}

/// Whether a stored value is the one that was sent at this place.
fn is_as_sent(cloud: &CloudTable, column: usize, stored: &str, place: usize, operator: &str) -> String {
    if is_compared_as_text(&cloud.columns[column].kind) {
        format!("{stored}::text COLLATE \"C\" {operator} sent.r{place} COLLATE \"C\"")
    } else {
        format!("{stored} {operator} sent.c{place}")
    }
}

/// Whether two stored values are the same.
fn is_same(cloud: &CloudTable, column: usize, one: &str, other: &str) -> String {
    if is_compared_as_text(&cloud.columns[column].kind) {
        format!("{one}::text COLLATE \"C\" IS NOT DISTINCT FROM {other}::text COLLATE \"C\"")
    } else {
        format!("{one} IS NOT DISTINCT FROM {other}")
    }
}

/// Inserts rows that the cloud should not have, in key order, as locks are taken. Answers with the positions that
/// were not inserted under their key (`done` false) or that are stored other than sent.
pub(crate) fn insert(table: &Table, cloud: &CloudTable) -> String {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    let key = &table.key;
    format!(
        "WITH {sent}, done AS (INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE \
         SELECT {values} FROM sent ORDER BY {order} ON CONFLICT ({key_names}) DO NOTHING RETURNING {returned}) \
         SELECT sent.ord, done.{first_key} IS NOT NULL AS done \
         FROM sent LEFT JOIN done ON {same_key} WHERE done.{first_key} IS NULL OR NOT ({unchanged})",
        sent = sent(cloud, &columns, false, 1),
        target = qualified(&cloud.schema, &cloud.name),
        names = list(&columns, |c| name(table, *c)),
        values = list(&columns, |c| format!("c{c}")),
        order = list(key, |c| format!("c{c}")),
        key_names = list(key, |c| name(table, *c)),
        returned = list(&columns, |c| format!("{} AS c{c}", name(table, *c))),
        first_key = format_args!("c{}", key[0]),
        same_key = all(key, |c| is_as_sent(cloud, *c, &format!("done.c{c}"), *c, "=")),
        unchanged =
            all(&columns, |c| is_as_sent(cloud, *c, &format!("done.c{c}"), *c, "IS NOT DISTINCT FROM")),
    )
}

/// The same for a table that stores what it is sent: how many rows came is all that has to be known, and the statement's tag
/// says it.
pub(crate) fn insert_plain(table: &Table, cloud: &CloudTable) -> String {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    format!(
        "INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM unnest({arrays}) AS raw({raw}) \
         ORDER BY {order} ON CONFLICT ({key_names}) DO NOTHING",
        target = qualified(&cloud.schema, &cloud.name),
        names = list(&columns, |c| name(table, *c)),
        values = list(&columns, |c| format!("c{c}::{}", cloud.columns[*c].cast)),
        arrays = list(&columns, |c| format!("${}::{}", c + 1, array_type(cloud.columns[*c].kind.wire()))),
        raw = list(&columns, |c| format!("c{c}")),
        order = list(&table.key, |c| format!("c{c}")),
        key_names = list(&table.key, |c| name(table, *c)),
    )
}

/// Whether every column of the table has a type whose values are stored, and come back, as they are sent.
pub(crate) fn stores_as_sent(columns: &[CloudColumn]) -> bool {
    let stores = |column: &CloudColumn| {
        matches!(
            column.kind,
            CloudType::Int2
                | CloudType::Int4
                | CloudType::Int8
                | CloudType::Float8
                | CloudType::Bool
                | CloudType::Text
                | CloudType::Bytea
        )
    };
    columns.iter().all(stores)
}

/// Updates the given data columns of rows that the cloud has, which are locked. Parameters: the key's columns,
/// then these. Answers like [`insert`]; a column that was not sent and changed all the same (a trigger that
/// keeps the time of the last change, for one) counts as stored other than sent.
pub(crate) fn update(table: &Table, cloud: &CloudTable, columns: &[usize]) -> String {
    let keys = table.key.len();
    let all_columns: Vec<usize> = table.key.iter().chain(columns).copied().collect();
    let others: Vec<usize> = table.data_columns().filter(|c| !columns.contains(c)).collect();
    let target = qualified(&cloud.schema, &cloud.name);
    let mut unchanged = all(columns.iter().enumerate(), |(at, c)| {
        is_as_sent(cloud, *c, &format!("t.{}", name(table, *c)), keys + at, "IS NOT DISTINCT FROM")
    });
    let mut before = String::new();
    if !others.is_empty() {
        before = format!(" JOIN {target} AS old ON {}", key_is_sent(table, "old"));
        let kept = all(&others, |c| {
            is_same(cloud, *c, &format!("t.{}", name(table, *c)), &format!("old.{}", name(table, *c)))
        });
        unchanged = format!("{unchanged} AND {kept}");
    }
    format!(
        "WITH {sent}, done AS (UPDATE {target} AS t SET {assignments} FROM sent{before} WHERE {same_key} \
         RETURNING sent.ord, {unchanged} AS unchanged) \
         SELECT sent.ord, done.ord IS NOT NULL AS done \
         FROM sent LEFT JOIN done ON done.ord = sent.ord WHERE done.ord IS NULL OR NOT done.unchanged",
        sent = sent(cloud, &all_columns, false, 1),
        assignments =
            list(columns.iter().enumerate(), |(at, c)| format!("{} = sent.c{}", name(table, *c), keys + at)),
        same_key = key_is_sent(table, "t"),
    )
}

/// Deletes rows by key; rows that are gone already are no error. Answers with how many went, and with the positions
/// of those that were there and did not go.
pub(crate) fn delete(table: &Table, cloud: &CloudTable) -> String {
    let target = qualified(&cloud.schema, &cloud.name);
    let same_key = key_is_sent(table, "t");
    format!(
        "WITH {}, done AS (DELETE FROM {target} AS t USING sent WHERE {same_key} RETURNING sent.ord) \
         SELECT (SELECT count(*) FROM done) AS gone, ARRAY(SELECT sent.ord FROM sent JOIN {target} AS t ON {same_key} \
         WHERE sent.ord NOT IN (SELECT done.ord FROM done)) AS kept",
        sent(cloud, &table.key, false, 1),
    )
}

/// Locks rows in key order and answers with the positions of those that exist.
pub(crate) fn lock(table: &Table, cloud: &CloudTable) -> String {
    format!(
        "WITH {} SELECT sent.ord FROM {} AS t JOIN sent ON {} ORDER BY {} FOR UPDATE OF t",
        sent(cloud, &table.key, false, 1),
        qualified(&cloud.schema, &cloud.name),
        key_is_sent(table, "t"),
        list(&table.key, |c| format!("t.{}", name(table, *c))),
    )
}

/// Whether somebody else's feed entries beyond our cursor touch these rows: their positions, and the newest such
/// entry. Parameters: the key's columns; then what each row has already taken into account, the cursor's
/// transaction id and entry id, and our device. Its own statement, after the locks: it must see what
/// was committed before them.
pub(crate) fn touched(table: &Table, cloud: &CloudTable) -> String {
    let keys = table.key.len();
    // As the feed's trigger writes it: with the column's own scale, where a number has one.
    let key_text = list(table.key.iter().enumerate(), |(at, c)| match &cloud.columns[*c].kind {
        kind @ CloudType::Numeric(_) => format!("sent.c{at}::{}::text", kind.sql()),
        _ => format!("sent.c{at}::text"),
    });
    // Two branches, because an OR would compare every row with every entry.
    format!(
        "WITH {sent}, seen AS (SELECT seen, ord FROM unnest(${seen}::int8[]) WITH ORDINALITY AS raw(seen, ord)), \
         ours AS MATERIALIZED (SELECT ARRAY[{key_text}] AS key, seen, sent.ord FROM sent JOIN seen ON seen.ord = sent.ord), \
         change AS MATERIALIZED (SELECT key, id FROM tidewater.changes WHERE tbl = {oid} \
         AND (xid, id) > (${xid}::text::xid8, ${id}) AND origin IS DISTINCT FROM ${device}) \
         SELECT ord, max(id) AS newest FROM ( \
         SELECT ours.ord, change.id FROM ours JOIN change ON change.key = ours.key WHERE change.id > ours.seen \
         UNION ALL \
         SELECT ours.ord, whole.id FROM ours JOIN (SELECT max(id) AS id FROM change WHERE key IS NULL) AS whole \
         ON whole.id > ours.seen) AS hit GROUP BY ord",
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

fn key_is_sent(table: &Table, of: &str) -> String {
    all(table.key.iter().enumerate(), |(at, c)| format!("{of}.{} = sent.c{at}", name(table, *c)))
}

/// Creates the cloud's table of a tracked one, without its foreign keys.
///
/// Unique constraints are deferrable, so that values can change places within a round, except where a foreign
/// key refers to them, which PostgreSQL does not allow.
pub(crate) fn create_table(table: &Table, schema: &str, referenced: &[Vec<usize>]) -> String {
    let mut parts: Vec<String> =
        (0..table.columns.len()).map(|c| column_definition(table, c, true)).collect();
    parts.push(format!("PRIMARY KEY ({})", list(&table.key, |c| name(table, *c))));
    for unique in table.uniques.iter().filter(|unique| unique.declared) {
        let columns: Vec<usize> = unique.columns.iter().map(|(c, _)| *c).collect();
        // A foreign key may name the columns in another order.
        let is_referenced = referenced
            .iter()
            .any(|key| key.len() == columns.len() && key.iter().all(|c| columns.contains(c)));
        let deferrable = if is_referenced { "" } else { " DEFERRABLE" };
        parts.push(format!("UNIQUE ({}){deferrable}", list(&columns, |c| name(table, *c))));
    }
    format!("CREATE TABLE {} ({})", qualified(schema, &table.name), parts.join(", "))
}

/// A column as a table that Tidewater creates, or extends, has it; only a new table can demand a value.
pub(crate) fn column_definition(table: &Table, c: usize, in_new_table: bool) -> String {
    let column = &table.columns[c];
    let kind = CloudType::for_declared(&column.declared);
    let not_null = if in_new_table && (column.not_null || table.is_key(c)) { " NOT NULL" } else { "" };
    let default = column.default.as_deref().and_then(|text| default(text, &kind));
    let default = default.map_or(String::new(), |text| format!(" DEFAULT {text}"));
    format!("{} {}{not_null}{default}", ident(&column.name), kind.sql())
}

/// SQLite's default in PostgreSQL's words, where it has the same meaning: plain literals and the clock.
fn default(text: &str, kind: &CloudType) -> Option<String> {
    let text = text.trim();
    let is_number = text.parse::<f64>().is_ok_and(f64::is_finite);
    let inside = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    let is_string = inside.is_some_and(|inside| !inside.replace("''", "").contains('\''));
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
        .filter_map(|key| {
            // The parent's own spelling: SQLite's names ignore case, quoted ones of PostgreSQL do not.
            let parent = tracked.iter().find(|parent| parent.name.eq_ignore_ascii_case(&key.parent))?;
            let parent_columns: Vec<usize> =
                key.parent_columns.iter().map(|name| parent.column(name)).collect::<Option<_>>()?;
            Some(format!(
                "ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({}){}{} DEFERRABLE",
                qualified(schema, &table.name),
                list(&key.columns, |c| name(table, *c)),
                qualified(schema, &parent.name),
                list(&parent_columns, |c| name(parent, *c)),
                action("DELETE", &key.on_delete),
                action("UPDATE", &key.on_update),
            ))
        })
        .collect()
}

/// The body of the feed's trigger function of one table. It names the table by number, because a partition's
/// trigger fires for the whole.
pub(crate) fn feed_body(table: &Table, cloud: &CloudTable) -> String {
    let key = format!("ARRAY[{}]", list(&table.key, |c| format!("{}::text", name(table, *c))));
    let oid = cloud.oid;
    format!(
        "\nDECLARE device text := nullif(current_setting('tidewater.device', true), '');\n\
         BEGIN\n\
         IF TG_OP = 'INSERT' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT {oid}, {key}, device FROM new_rows;\n\
         ELSIF TG_OP = 'DELETE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT {oid}, {key}, device FROM old_rows;\n\
         ELSIF TG_OP = 'UPDATE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin)\n  \
           SELECT {oid}, touched.key, device FROM (SELECT {key} AS key FROM new_rows UNION SELECT {key} FROM old_rows) AS touched;\n\
         ELSE\n  \
           INSERT INTO tidewater.changes (tbl, origin) VALUES ({oid}, device);\n\
         END IF;\n\
         RETURN NULL;\n\
         END "
    )
}

/// Creates the feed's trigger function of one table, and its triggers on the table and each of its partitions,
/// which are the targets: a statement fires those of the table that it names.
///
/// `SECURITY DEFINER`, because plain writers have no rights on our schema; every setting that shapes a key's
/// text is fixed; one trigger per event, because transition tables allow no more.
pub(crate) fn feed(table: &Table, cloud: &CloudTable, targets: &[String]) -> String {
    let function = format!("tidewater.feed_{}", cloud.oid);
    let mut sql = format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'\n\
         SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $tidewater_feed${}$tidewater_feed$;\n\
         REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;\n",
        feed_body(table, cloud)
    );
    for target in targets {
        for (event, tables) in [
            ("INSERT", " REFERENCING NEW TABLE AS new_rows"),
            ("UPDATE", " REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows"),
            ("DELETE", " REFERENCING OLD TABLE AS old_rows"),
            ("TRUNCATE", ""),
        ] {
            let trigger = feed_trigger(event);
            sql += &format!(
                "DROP TRIGGER IF EXISTS {trigger} ON {target};\n\
                 CREATE TRIGGER {trigger} AFTER {event} ON {target}{tables} FOR EACH STATEMENT EXECUTE FUNCTION {function}();\n\
                 ALTER TABLE ONLY {target} ENABLE ALWAYS TRIGGER {trigger};\n"
            );
        }
    }
    sql
}

/// The name of the feed's trigger for an event.
pub(crate) fn feed_trigger(event: &str) -> String {
    format!("tidewater_feed_{}", event.to_ascii_lowercase())
}
