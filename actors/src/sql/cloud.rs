//! Statements for PostgreSQL that depend on a table's columns, as SQL text.
//!
//! Rows cross as one array per column, unnested with their position, so that a statement's answer names only
//! the rows that need attention: a round of thousands of good rows is answered with nothing.

use super::{all, ident, list};
use crate::core::schema::{CloudColumn, CloudTable, Column, Table};
use crate::core::value::{
    Affinity, CloudType, CloudValue, Value, Wire, from_text, is_json, to_cloud, to_text,
};

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

/// Whether a round's transaction has begun. Statements are sent behind its BEGIN without waiting for the answer: where that
/// one was cancelled, each of them would otherwise be a transaction of its own, and take effect.
const IN_ROUND: &str = "current_setting('tidewater.device', true) <> ''";

/// `sent`: the given columns of the given rows as a table `c0, c1, …, ord`, cast to the cloud's types without
/// length or precision, so that nothing is rounded before it is compared. What is sent as text is there a second
/// time as it came, `r0, r1, …`: the cast may have changed it. Parameters from `$1` on. Without a round there are no rows,
/// except in a look-up, whose values are sent as text.
fn sent(cloud: &CloudTable, columns: &[usize], as_text: bool, first_parameter: usize) -> String {
    let parameter = |(at, c): (usize, &usize)| {
        let wire = if as_text { Wire::Text } else { cloud.columns[*c].kind.wire() };
        format!("${}::{}", at + first_parameter, array_type(wire))
    };
    format!(
        "sent AS MATERIALIZED (SELECT {}, ord FROM unnest({}) WITH ORDINALITY AS raw({}, ord){})",
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
        if as_text { String::new() } else { format!(" WHERE {IN_ROUND}") },
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

/// A value's text. PostgreSQL's cast of an address appends its length, which its output leaves out.
pub(crate) fn text_of(kind: &CloudType, value: &str) -> String {
    match kind {
        CloudType::Other(name) if name == "inet" => format!("abbrev({value})"),
        _ => format!("{value}::text"),
    }
}

/// Whether a stored value is the one that was sent at this place.
fn is_as_sent(cloud: &CloudTable, column: usize, stored: &str, place: usize, operator: &str) -> String {
    let kind = &cloud.columns[column].kind;
    if is_compared_as_text(kind) {
        format!("{} COLLATE \"C\" {operator} sent.r{place} COLLATE \"C\"", text_of(kind, stored))
    } else {
        format!("{stored} {operator} sent.c{place}")
    }
}

/// Whether two stored values are the same.
fn is_same(cloud: &CloudTable, column: usize, one: &str, other: &str) -> String {
    let kind = &cloud.columns[column].kind;
    if is_compared_as_text(kind) {
        let (one, other) = (text_of(kind, one), text_of(kind, other));
        format!("{one} COLLATE \"C\" IS NOT DISTINCT FROM {other} COLLATE \"C\"")
    } else {
        format!("{one} IS NOT DISTINCT FROM {other}")
    }
}

/// The first of the given columns, by its place, whose type makes something else of what was sent, or whose value the cloud
/// computes and has come to another one. What a trigger made of a value is not meant. Only asked of rows that are not as sent.
fn misfit<'a>(
    cloud: &CloudTable,
    columns: impl IntoIterator<Item = &'a usize>,
    stored: impl Fn(usize) -> String,
) -> String {
    let cases: String = columns
        .into_iter()
        .enumerate()
        .filter_map(|(at, c)| {
            let CloudColumn { kind, cast, exact, generated, .. } = &cloud.columns[*c];
            let when = if *generated {
                let as_sent = is_as_sent(cloud, *c, &stored(*c), at, "IS NOT DISTINCT FROM");
                format!("sent.c{at} IS NOT NULL AND NOT ({as_sent})")
            } else if matches!(kind, CloudType::Jsonb) {
                // It writes everything in a way of its own, and loses nothing.
                return None;
            } else if is_compared_as_text(kind) {
                let made_of_it = text_of(kind, &format!("sent.c{at}::{exact}"));
                format!("{made_of_it} COLLATE \"C\" IS DISTINCT FROM sent.r{at} COLLATE \"C\"")
            } else if *kind == CloudType::Numeric(None) && exact != cast {
                format!("sent.c{at}::{exact} IS DISTINCT FROM sent.c{at}")
            } else {
                return None;
            };
            Some(format!(" WHEN {when} THEN {at}"))
        })
        .collect();
    if cases.is_empty() { "NULL::int4".into() } else { format!("CASE{cases} END") }
}

/// Inserts rows that the cloud should not have, in key order, as locks are taken. Answers with the positions that
/// were not inserted under their key (`done` false) or that are stored other than sent, and with the [`misfit`].
pub(crate) fn insert(table: &Table, cloud: &CloudTable) -> String {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    let written: Vec<usize> = columns.iter().copied().filter(|c| !cloud.columns[*c].generated).collect();
    let key = &table.key;
    format!(
        "WITH {sent}, done AS (INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE \
         SELECT {values} FROM sent ORDER BY {order} ON CONFLICT ({key_names}) DO NOTHING RETURNING {returned}) \
         SELECT sent.ord, done.{first_key} IS NOT NULL AS done, {misfit} AS misfit \
         FROM sent LEFT JOIN done ON {same_key} WHERE done.{first_key} IS NULL OR NOT ({unchanged})",
        sent = sent(cloud, &columns, false, 1),
        misfit = misfit(cloud, &columns, |c| format!("done.c{c}")),
        target = qualified(&cloud.schema, &cloud.name),
        names = list(&written, |c| name(table, *c)),
        values = list(&written, |c| format!("c{c}")),
        order = list(key, |c| format!("c{c}")),
        key_names = list(key, |c| name(table, *c)),
        returned = list(&columns, |c| format!("{} AS c{c}", name(table, *c))),
        first_key = format_args!("c{}", key[0]),
        same_key = all(key, |c| is_as_sent(cloud, *c, &format!("done.c{c}"), *c, "=")),
        unchanged =
            all(&columns, |c| is_as_sent(cloud, *c, &format!("done.c{c}"), *c, "IS NOT DISTINCT FROM")),
    )
}

/// The same for a table that stores what it is sent: all of these rows come, or the statement fails, unless the table has got a
/// trigger or a rule since, which the echo tells. `23505` says that one is there already, perhaps.
pub(crate) fn insert_plain(table: &Table, cloud: &CloudTable) -> String {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    format!(
        "INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM unnest({arrays}) AS raw({raw}) \
         WHERE {IN_ROUND} ORDER BY {order}",
        target = qualified(&cloud.schema, &cloud.name),
        names = list(&columns, |c| name(table, *c)),
        values = list(&columns, |c| format!("c{c}::{}", cloud.columns[*c].cast)),
        arrays = list(&columns, |c| format!("${}::{}", c + 1, array_type(cloud.columns[*c].kind.wire()))),
        raw = list(&columns, |c| format!("c{c}")),
        order = list(&table.key, |c| format!("c{c}")),
    )
}

/// Whether every column of the table has a type whose values are stored, and come back, as they are sent.
pub(crate) fn stores_as_sent(columns: &[CloudColumn]) -> bool {
    let stores = |column: &CloudColumn| {
        !column.generated
            && matches!(
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
         RETURNING sent.ord, {unchanged} AS unchanged, {misfit} AS misfit) \
         SELECT sent.ord, done.ord IS NOT NULL AS done, done.misfit \
         FROM sent LEFT JOIN done ON done.ord = sent.ord WHERE done.ord IS NULL OR NOT done.unchanged",
        sent = sent(cloud, &all_columns, false, 1),
        misfit = misfit(cloud, &all_columns, |c| format!("t.{}", name(table, c))),
        assignments = list(
            columns.iter().enumerate().filter(|(_, c)| !cloud.columns[**c].generated),
            |(at, c)| format!("{} = sent.c{}", name(table, *c), keys + at)
        ),
        same_key = key_is_sent(table, "t"),
    )
}

/// Gives rows, by key, a value in this column that nobody else has, by which others may refer to them. Nothing for types that
/// have none to spare.
pub(crate) fn step_aside(table: &Table, cloud: &CloudTable, column: usize) -> Option<String> {
    let if_nullable = (!table.columns[column].not_null).then_some("NULL");
    spare(&cloud.columns[column].kind).or(if_nullable).map(|value| set_for_now(table, cloud, column, value))
}

/// Takes rows, by key, out of this column's unique values, to which nobody refers. Nothing where there is no way.
pub(crate) fn take_out(table: &Table, cloud: &CloudTable, column: usize) -> Option<String> {
    let CloudColumn { kind, nullable, generated, .. } = &cloud.columns[column];
    let value = if *nullable { Some("NULL") } else { spare(kind) };
    value.filter(|_| !generated).map(|value| set_for_now(table, cloud, column, value))
}

/// A value of a type that nobody has.
fn spare(kind: &CloudType) -> Option<&'static str> {
    Some(match kind {
        CloudType::Int8 => "sent.ord - 4611686018427387904",
        CloudType::Int4 => "sent.ord - 2147483648",
        CloudType::Text => "gen_random_uuid()::text",
        CloudType::Bytea => "convert_to(gen_random_uuid()::text, 'UTF8')",
        CloudType::Uuid => "gen_random_uuid()",
        _ => return None,
    })
}

fn set_for_now(table: &Table, cloud: &CloudTable, column: usize, value: &str) -> String {
    format!(
        "WITH {} UPDATE {} AS t SET {} = {value} FROM sent WHERE {}",
        sent(cloud, &table.key, false, 1),
        qualified(&cloud.schema, &cloud.name),
        name(table, column),
        key_is_sent(table, "t"),
    )
}

/// Empties a column of rows, by key.
pub(crate) fn let_go(table: &Table, cloud: &CloudTable, column: usize) -> String {
    format!(
        "WITH {} UPDATE {} AS t SET {name} = NULL FROM sent WHERE {} AND t.{name} IS NOT NULL",
        sent(cloud, &table.key, false, 1),
        qualified(&cloud.schema, &cloud.name),
        key_is_sent(table, "t"),
        name = name(table, column),
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

/// Whether somebody else's feed entries beyond our cursor touch these rows: their positions, the newest such entry, and the
/// newest stamp. Parameters: the key's columns; then what each row has already taken into account, the cursor's
/// transaction id and entry id, and our device. Its own statement, after the locks: it must see what
/// was committed before them.
pub(crate) fn touched(table: &Table, cloud: &CloudTable) -> String {
    let keys = table.key.len();
    format!(
        "WITH {sent}, seen AS (SELECT seen, ord FROM unnest(${seen}::int8[]) WITH ORDINALITY AS raw(seen, ord)), \
         ours AS MATERIALIZED (SELECT {key} AS key, seen, sent.ord FROM sent JOIN seen ON seen.ord = sent.ord), {by_others}",
        sent = sent(cloud, &table.key, false, 1),
        seen = keys + 1,
        key = feed_key(table, cloud),
        by_others = changed_by_others(table, cloud, keys + 2),
    )
}

/// The newest stamps of these rows' changes by others, by position. Parameters: the key's columns as text; then as for
/// [`touched`] from the cursor on.
pub(crate) fn last_changed(table: &Table, cloud: &CloudTable) -> String {
    format!(
        "WITH {sent}, ours AS MATERIALIZED (SELECT {key} AS key, 0::int8 AS seen, ord FROM sent), {by_others}",
        sent = sent(cloud, &table.key, true, 1),
        key = feed_key(table, cloud),
        by_others = changed_by_others(table, cloud, table.key.len() + 1),
    )
}

/// A sent key as the feed's trigger writes it: with the column's own scale, where a number has one.
fn feed_key(table: &Table, cloud: &CloudTable) -> String {
    let key_text = list(table.key.iter().enumerate(), |(at, c)| match &cloud.columns[*c].kind {
        kind @ CloudType::Numeric(_) => format!("sent.c{at}::{}::text", kind.sql()),
        kind => text_of(kind, &format!("sent.c{at}")),
    });
    format!("ARRAY[{key_text}]")
}

/// The entries of others, for the rows `ours` (key, seen, ord). What followed from this device's own rounds (own_echo.sql) is
/// somebody's whom it has to hear, and nobody's with whom it is in dispute: it has no stamp. An entry whose keys are none of
/// this table's may mean any row. Two branches, because an OR would compare every row with every entry.
fn changed_by_others(table: &Table, cloud: &CloudTable, first_parameter: usize) -> String {
    // One text after the other is a key; an entry of an earlier version has the texts of one. Each is the only one in its place:
    // to say so costs less than to sort them.
    let keys = match table.key.len() {
        1 => "SELECT ARRAY[part] FROM unnest(entry.key) AS part".to_owned(),
        width => format!(
            "SELECT ARRAY[{}] FROM unnest(entry.key) WITH ORDINALITY AS parts(part, ord) GROUP BY (ord - 1) / {width}",
            list(0..width, |at| format!("min(part) FILTER (WHERE (ord - 1) % {width} = {at})"))
        ),
    };
    format!(
        "change AS MATERIALIZED (SELECT one.key, entry.id, \
         CASE WHEN entry.origin IS DISTINCT FROM ${device} || '~' THEN entry.stamp END AS stamp \
         FROM tidewater.changes AS entry LEFT JOIN LATERAL ({keys}) AS one(key) \
         ON coalesce(array_length(entry.key, 2), cardinality(entry.key)) = {width} \
         WHERE entry.tbl = {oid} AND (entry.xid, entry.id) > (${xid}::text::xid8, ${id}) \
         AND entry.origin IS DISTINCT FROM ${device} AND (one.key IS NULL OR one.key IN (SELECT key FROM ours))) \
         SELECT ord, max(id) AS newest, max(stamp) AS stamp FROM ( \
         SELECT ours.ord, change.id, stamp FROM ours JOIN change ON change.key = ours.key WHERE change.id > ours.seen \
         UNION ALL \
         SELECT ours.ord, whole.id, stamp FROM ours JOIN (SELECT max(id) AS id, max(stamp) AS stamp FROM change \
         WHERE key IS NULL) AS whole ON whole.id > ours.seen) AS hit GROUP BY ord",
        width = table.key.len(),
        oid = cloud.oid,
        xid = first_parameter,
        id = first_parameter + 1,
        device = first_parameter + 2,
    )
}

/// Which rows of a table are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Those that come home.
    Wanted,
    /// Whatever is there.
    Any,
    /// The same, to be locked.
    Locked,
}

/// The rows that come home of a table, as if it had no others.
pub(crate) fn wanted(table: &Table, cloud: &CloudTable) -> String {
    let target = qualified(&cloud.schema, &cloud.name);
    match &table.rule.filter {
        // A comment in it ends with its line.
        Some(filter) => format!("(SELECT * FROM {target} WHERE ({filter}\n))"),
        None => target,
    }
}

/// The rows whose given columns have the given values, sent as text; with their position first.
pub(crate) fn fetch(table: &Table, cloud: &CloudTable, by: &[usize], rows: Rows) -> String {
    format!(
        "WITH {} SELECT sent.ord, {} FROM sent JOIN {} AS t ON {}{}",
        sent(cloud, by, true, 1),
        selected(table, cloud),
        if rows == Rows::Wanted { wanted(table, cloud) } else { qualified(&cloud.schema, &cloud.name) },
        all(by.iter().enumerate(), |(at, c)| format!("t.{} = sent.c{at}", name(table, *c))),
        if rows == Rows::Locked { " FOR UPDATE OF t" } else { "" },
    )
}

/// A cursor over the table in key order. Parameters, unless it begins with the first row: the key after which it does, as text.
///
/// Planned for its first rows: in the order of an index, never by sorting all that is left before the first of them comes.
pub(crate) fn open_pages(table: &Table, cloud: &CloudTable, first: bool) -> String {
    let key = list(&table.key, |c| format!("t.{}", name(table, *c)));
    let after = if first {
        String::new()
    } else {
        let last = list(table.key.iter().enumerate(), |(at, c)| {
            format!("${}::text::{}", at + 1, cloud.columns[*c].cast)
        });
        format!("WHERE ({key}) > ({last})")
    };
    format!(
        "DECLARE tidewater_pages NO SCROLL CURSOR FOR SELECT 0::int8, {} FROM {} AS t {after} ORDER BY {key}",
        selected(table, cloud),
        wanted(table, cloud),
    )
}

/// So many of its next rows.
pub(crate) fn next_page(rows: usize) -> String {
    format!("FETCH FORWARD {rows} FROM tidewater_pages")
}

fn selected(table: &Table, cloud: &CloudTable) -> String {
    list(0..table.columns.len(), |c| {
        let (kind, column) = (&cloud.columns[c].kind, format!("t.{}", name(table, c)));
        match kind.wire() {
            Wire::Int8 => format!("{column}::int8"),
            Wire::Float8 => format!("{column}::float8"),
            Wire::Bool => format!("{column}::bool"),
            Wire::Text => text_of(kind, &column),
            Wire::Bytea => format!("{column}::bytea"),
        }
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
    let default = column.default.as_deref().and_then(|text| default(text, column.affinity(), &kind));
    let default = default.map_or(String::new(), |text| format!(" DEFAULT {text}"));
    format!("{} {}{not_null}{default}", ident(&column.name), kind.sql())
}

/// Whether rows that are there already have the same in a new column on both sides.
pub(crate) fn is_same_default(column: &Column) -> bool {
    let kind = CloudType::for_declared(&column.declared);
    column.default.as_deref().is_none_or(|text| {
        text.trim().eq_ignore_ascii_case("NULL") || default(text, column.affinity(), &kind).is_some()
    })
}

/// SQLite's default in PostgreSQL's words, where it has the same meaning: literals that the column carries, and the clock.
fn default(text: &str, affinity: Affinity, kind: &CloudType) -> Option<String> {
    let text = text.trim();
    let (moment, day) = ("YYYY-MM-DD HH24:MI:SS", "YYYY-MM-DD");
    let now = |form: &str| format!("to_char(now() AT TIME ZONE 'utc', '{form}')");
    match (text.to_ascii_uppercase().as_str(), kind) {
        ("CURRENT_TIMESTAMP" | "DATETIME('NOW')", CloudType::Timestamp) => {
            return Some("date_trunc('second', now() AT TIME ZONE 'utc')".into());
        }
        ("CURRENT_TIMESTAMP" | "DATETIME('NOW')", CloudType::Text) => return Some(now(moment)),
        ("CURRENT_DATE" | "DATE('NOW')", CloudType::Date) => {
            return Some("(now() AT TIME ZONE 'utc')::date".into());
        }
        ("CURRENT_DATE" | "DATE('NOW')", CloudType::Text) => return Some(now(day)),
        ("CURRENT_TIME" | "TIME('NOW')", CloudType::Text) => return Some(now("HH24:MI:SS")),
        _ => {}
    }
    let stored = affinity.store(literal(text)?);
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    match to_cloud(&stored, affinity, kind).ok()? {
        // PostgreSQL looks at it when the table is created.
        CloudValue::Text(text) if *kind == CloudType::Json && !is_json(&text) => None,
        CloudValue::Text(text) => Some(quoted(&text)),
        CloudValue::Null => None,
        carried => {
            let text = to_text(&carried)?;
            let is_bare = matches!(carried, CloudValue::Int(_) | CloudValue::Bool(_))
                || matches!(carried, CloudValue::Float(real) if real.is_finite());
            Some(if is_bare { text } else { quoted(&text) })
        }
    }
}

/// The value of a literal of SQLite's.
fn literal(text: &str) -> Option<Value> {
    let within = |quote: char| {
        let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
        let doubled = format!("{quote}{quote}");
        (!inside.replace(&doubled, "").contains(quote)).then(|| inside.replace(&doubled, &quote.to_string()))
    };
    if let Some(inside) = within('\'').or_else(|| within('"')) {
        return Some(Value::Text(inside));
    }
    match text.to_ascii_uppercase().as_str() {
        "TRUE" => return Some(Value::Integer(1)),
        "FALSE" => return Some(Value::Integer(0)),
        upper => {
            if let Some(digits) = upper.strip_prefix("X'").and_then(|rest| rest.strip_suffix('\'')) {
                return match from_text(&format!("\\x{digits}"), &CloudType::Bytea) {
                    Some(CloudValue::Bytes(bytes)) => Some(Value::Blob(bytes)),
                    _ => None,
                };
            }
        }
    }
    match text.parse::<i64>() {
        Ok(integer) => Some(Value::Integer(integer)),
        Err(_) => text.parse::<f64>().ok().filter(|real| real.is_finite()).map(Value::Real),
    }
}

/// The foreign keys of a tracked table that can exist in the cloud: those whose parent is tracked as well.
///
/// One that refers to a unique constraint, not to the primary key, has no actions there. Rows are told apart by their
/// primary keys, so that two that changed them look like two that changed the other value, and the cloud would hand the
/// children of the one to the other. What the actions did here is sent like anything else.
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
            let by_key =
                parent_columns.len() == parent.key.len() && parent_columns.iter().all(|c| parent.is_key(*c));
            Some(format!(
                "ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({}){}{} DEFERRABLE",
                qualified(schema, &table.name),
                list(&key.columns, |c| name(table, *c)),
                qualified(schema, &parent.name),
                list(&parent_columns, |c| name(parent, *c)),
                if by_key { action("DELETE", &key.on_delete) } else { String::new() },
                if by_key { action("UPDATE", &key.on_update) } else { String::new() },
            ))
        })
        .collect()
}

/// The body of the feed's trigger function of one table. It names the table by number, because a partition's
/// trigger fires for the whole.
pub(crate) fn feed_body(table: &Table, cloud: &CloudTable) -> String {
    let key = list(&table.key, |c| text_of(&cloud.columns[*c].kind, &name(table, *c)));
    let same = all(&table.key, |c| {
        let is_its_text = matches!(
            cloud.columns[*c].kind,
            CloudType::Int2 | CloudType::Int4 | CloudType::Int8 | CloudType::Uuid
        );
        key_is_kept(&name(table, *c), is_its_text)
    });
    feed_body_of(&cloud.oid.to_string(), &key, &same)
}

/// Whether a changed row (`o`) and what a statement made of rows (`n`) have the same value in a column of the key. With
/// `is_its_text`, values that are equal have the same text.
pub(crate) fn key_is_kept(column: &str, is_its_text: bool) -> String {
    let text = if is_its_text { "" } else { "::text COLLATE \"C\"" };
    format!("n.{column}{text} = o.{column}{text}")
}

/// How many keys one entry of the feed has at most: as numbers they fit into a row that PostgreSQL stores as it is, and what each
/// entry costs is spread over many.
const KEYS_AT_ONCE: usize = 128;

/// The same for a table's number, the texts of its key, and [`key_is_kept`] of all of it. What a round says of stamps: `postgres/stamps.rs`.
/// One entry has many of the keys that a statement touched, as far as their stamps are the same. The user's columns
/// may have any name: these are theirs where a variable has the same. Each change of the text is another version of it, which
/// devices of earlier ones leave as it is.
pub(crate) fn feed_body_of(oid: &str, key: &str, same: &str) -> String {
    let key = format!("ARRAY[{key}]");
    let append = |rows: &str| {
        let insert = |stamp: &str, keys: &str| {
            format!(
                "INSERT INTO tidewater.changes (tbl, key, origin, stamp)\n    \
                 SELECT {oid}, array_agg(one.key), its_device, {stamp}\n    \
                 FROM (SELECT touched.key, (row_number() OVER () - 1) / {KEYS_AT_ONCE} AS part{keys}\n    \
                 FROM ({rows}) AS touched) AS one GROUP BY one.part"
            )
        };
        let alike = insert("its_stamp", "");
        let by_stamp = insert(
            "one.stamp",
            ",\n    least(coalesce((its_older ->> array_to_string(touched.key, chr(31)))::bigint, its_stamp), its_stamp) AS stamp",
        );
        format!("IF its_older IS NULL THEN\n    {alike};\n  ELSE\n    {by_stamp}, one.stamp;\n  END IF;\n")
    };
    format!(
        "\n-- version 4\n#variable_conflict use_column\n\
         DECLARE\n  its_device text := nullif(current_setting('tidewater.device', true), '');\n  \
           its_stamp bigint := least(nullif(current_setting('tidewater.stamp', true), '')::bigint,\n                            \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);\n  \
           its_older jsonb := nullif(current_setting('tidewater.stamps', true), '')::jsonb;\n\
         BEGIN\n\
         IF TG_OP = 'INSERT' THEN\n  {inserted}\
         ELSIF TG_OP = 'DELETE' THEN\n  {deleted}\
         ELSIF TG_OP = 'UPDATE' THEN\n  {updated}\
         ELSE\n  \
           INSERT INTO tidewater.changes (tbl, origin, stamp) VALUES ({oid}, its_device, its_stamp);\n\
         END IF;\n\
         RETURN NULL;\n\
         END ",
        inserted = append(&format!("SELECT {key} AS key FROM new_rows")),
        deleted = append(&format!("SELECT {key} AS key FROM old_rows")),
        // Most changes leave the key as it is: what it was is named only where no row has it now.
        updated = append(&format!(
            "SELECT {key} AS key FROM new_rows UNION ALL SELECT {key} FROM old_rows AS o \
             WHERE NOT EXISTS (SELECT FROM new_rows AS n WHERE {same})"
        )),
    )
}

/// Creates the feed's trigger function of one table, and its triggers on the table and each of its partitions,
/// which are the targets: a statement fires those of the table that it names.
///
/// `SECURITY DEFINER`, because plain writers have no rights on our schema; every setting that shapes a key's
/// text is fixed; one trigger per event, because transition tables allow no more.
pub(crate) fn feed(table: &Table, cloud: &CloudTable, targets: &[String]) -> String {
    let oid = cloud.oid.to_string();
    let triggers = targets.iter().map(|target| feed_triggers(&oid, target));
    feed_function(&oid, &feed_body(table, cloud)) + &triggers.collect::<String>()
}

/// The function alone, of the table with this number. A plan that was made for a statement of one row is kept for one of a million:
/// hence no nested loops, and no sorting.
pub(crate) fn feed_function(oid: &str, body: &str) -> String {
    let function = format!("tidewater.feed_{oid}");
    format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'\n\
         SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' SET enable_nestloop = off SET enable_sort = off\n\
         AS $tidewater_feed${body}$tidewater_feed$;\n\
         REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;\n"
    )
}

/// The triggers alone, on the table with this number or on one of its partitions.
pub(crate) fn feed_triggers(oid: &str, target: &str) -> String {
    let made = |(event, tables): (&str, &str)| {
        let trigger = feed_trigger(event);
        format!(
            "DROP TRIGGER IF EXISTS {trigger} ON {target};\n\
             CREATE TRIGGER {trigger} AFTER {event} ON {target}{tables} FOR EACH STATEMENT EXECUTE FUNCTION tidewater.feed_{oid}();\n\
             ALTER TABLE ONLY {target} ENABLE ALWAYS TRIGGER {trigger};\n"
        )
    };
    [
        ("INSERT", " REFERENCING NEW TABLE AS new_rows"),
        ("UPDATE", " REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows"),
        ("DELETE", " REFERENCING OLD TABLE AS old_rows"),
        ("TRUNCATE", ""),
    ]
    .map(made)
    .concat()
}

/// The function that tells which rows are there, whatever row-level security shows: the positions of those of the given keys,
/// which are arrays of PostgreSQL's texts. Where its owner sees no more than anybody else, every row may be there.
///
/// What it tells, the feed tells as well: that a key exists.
pub(crate) fn there(table: &Table, cloud: &CloudTable) -> String {
    let function = there_function(cloud);
    let same_key = all(table.key.iter().enumerate(), |(at, c)| {
        let CloudColumn { kind, cast, .. } = &cloud.columns[*c];
        let column = format!("t.{}", name(table, *c));
        match kind {
            // A type of somebody's own has no name on the function's search path.
            CloudType::Other(_) | CloudType::Array(..) => {
                format!("{} COLLATE \"C\" = (wanted.key->>{at}) COLLATE \"C\"", text_of(kind, &column))
            }
            _ => format!("{column} = (wanted.key->>{at})::{cast}"),
        }
    });
    format!(
        "CREATE OR REPLACE FUNCTION {function}(keys jsonb) RETURNS SETOF int8 LANGUAGE sql STABLE SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC'\n\
         SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $tidewater_there$\n\
         SELECT wanted.ord FROM jsonb_array_elements(keys) WITH ORDINALITY AS wanted(key, ord)\n\
         WHERE row_security_active({oid}::oid) OR EXISTS (SELECT FROM {target} AS t WHERE {same_key})\n\
         $tidewater_there$",
        oid = cloud.oid,
        target = qualified(&cloud.schema, &cloud.name),
    )
}

/// The name of that function.
pub(crate) fn there_function(cloud: &CloudTable) -> String {
    format!("tidewater.there_{}", cloud.oid)
}

/// The name of the feed's trigger for an event.
pub(crate) fn feed_trigger(event: &str) -> String {
    format!("tidewater_feed_{}", event.to_ascii_lowercase())
}
