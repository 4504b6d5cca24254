//! Which SQLite table stands for a table of the cloud: what a file without it is given.
//!
//! ```text
//! what the schema has (Offer) ─ choose ─▶ what this file wants of it, and lacks
//! what the catalogue says of each (Definition) ─ new_tables ─▶ NewTable: columns, key, defaults, constraints, indexes
//!                                                          └▶ one line about what SQLite cannot have of it
//! ```
//!
//! A declared type is the one from which Tidewater would make the cloud's column (`CloudType::for_declared`), so that a table
//! that a device sent there comes to another device as it was. Where no declared type means the cloud's, it is `TEXT`,
//! which keeps everything but bytes as it comes (V2). A default is kept where it means the same here: a constant that the
//! column carries, or the clock.

use std::collections::BTreeSet;

use super::direction::Direction;
use super::rules::TableRules;
use super::schema::{COLUMNS_MAX, Table};
use super::value::{Affinity, CloudType, Value, from_cloud_unchanged, from_text};

/// Which tables a file is given that it does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wanted {
    /// None.
    #[default]
    Nothing,
    /// As all, in a file that has no table at all.
    WhenEmpty,
    /// Those of the schema that some device syncs.
    Synced,
    /// These.
    Named(Vec<String>),
}

/// A table that the cloud's schema has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its name.
    pub name: String,
    /// Whether the change feed covers it: some device syncs it.
    pub synced: bool,
    /// Whether this role may read it.
    pub may_read: bool,
}

/// A table of the cloud, in the terms of its catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<DefinedColumn>,
    /// The columns of its primary key, in order; none where it has none by which rows can be sent.
    pub key: Vec<String>,
    /// Its indexes but that of the primary key.
    pub indexes: Vec<DefinedIndex>,
    /// Its foreign keys.
    pub foreign_keys: Vec<DefinedForeignKey>,
    /// Whether it has CHECK constraints.
    pub checks: bool,
}

/// A column of such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinedColumn {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: CloudType,
    /// PostgreSQL's name of that.
    pub type_name: String,
    /// Whether it refuses NULL.
    pub not_null: bool,
    /// Whether the cloud computes it.
    pub generated: bool,
    /// Whether it numbers its rows itself.
    pub identity: bool,
    /// The expression of its default.
    pub default: Option<String>,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinedIndex {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<String>,
    /// Whether it is unique.
    pub unique: bool,
    /// Whether it is that of a constraint.
    pub constraint: bool,
    /// Whether it is on nothing but columns, and on all rows, as SQLite would have it.
    pub plain: bool,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinedForeignKey {
    /// The child's columns.
    pub columns: Vec<String>,
    /// The parent, if it is in the same schema.
    pub parent: Option<String>,
    /// The parent's columns.
    pub parent_columns: Vec<String>,
    /// `CASCADE`, `SET NULL`, …, as SQLite names them; empty for what it has no name for.
    pub on_delete: String,
    /// The same for a changed parent key.
    pub on_update: String,
    /// Whether it is looked at with the commit.
    pub deferred: bool,
}

/// A table to be made here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<NewColumn>,
    /// The primary key.
    pub key: Vec<String>,
    /// Its unique constraints, by column.
    pub uniques: Vec<Vec<String>>,
    /// Its foreign keys.
    pub foreign_keys: Vec<NewForeignKey>,
    /// Its other indexes.
    pub indexes: Vec<NewIndex>,
}

/// A column of a table to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewColumn {
    /// Its name.
    pub name: String,
    /// The type, as it is declared.
    pub declared: String,
    /// Whether it refuses NULL.
    pub not_null: bool,
    /// Its default, as SQLite writes it.
    pub default: Option<String>,
}

/// A foreign key of a table to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewForeignKey {
    /// The child's columns.
    pub columns: Vec<String>,
    /// The parent, as it is called here.
    pub parent: String,
    /// The parent's columns.
    pub parent_columns: Vec<String>,
    /// What happens with the parent's deletion.
    pub on_delete: String,
    /// What happens with a changed parent key.
    pub on_update: String,
    /// Whether it is looked at with the commit.
    pub deferred: bool,
}

/// An index to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIndex {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// Whether it is unique.
    pub unique: bool,
}

/// Which of the offered tables a file with these tables is to be given, and what a person should know about those that it
/// asks for and does not get.
pub fn choose<'a>(
    wanted: &Wanted,
    offers: &'a [Offer],
    here: &[String],
    rules: &TableRules,
) -> (Vec<&'a Offer>, Vec<String>) {
    let is_here = |name: &str| here.iter().any(|table| table.eq_ignore_ascii_case(name));
    let rests = |name: &str| rules.of(name).direction == Direction::None;
    let good =
        |offer: &&Offer| offer.synced && offer.may_read && !is_here(&offer.name) && !rests(&offer.name);
    match wanted {
        Wanted::WhenEmpty if !here.is_empty() => (vec![], vec![]),
        Wanted::Nothing => (vec![], vec![]),
        Wanted::WhenEmpty | Wanted::Synced => (offers.iter().filter(good).collect(), vec![]),
        Wanted::Named(names) => {
            let (mut chosen, mut lines): (Vec<&Offer>, Vec<String>) = (vec![], vec![]);
            for name in names.iter().filter(|name| !is_here(name)) {
                let exact = offers.iter().find(|offer| offer.name == *name);
                let found =
                    exact.or_else(|| offers.iter().find(|offer| offer.name.eq_ignore_ascii_case(name)));
                match found {
                    None => {
                        lines.push(format!("the cloud has no table {name} from which it could be made here"))
                    }
                    Some(offer) if !offer.may_read => {
                        lines.push(format!(
                            "table {name} is not made here: this role may not read it in the cloud"
                        ));
                    }
                    Some(offer) if rests(&offer.name) => lines.push(format!(
                        "table {name} is not made here: tables.{name}.direction is {}",
                        Direction::None.word()
                    )),
                    Some(offer) if chosen.iter().any(|chosen| chosen.name == offer.name) => {}
                    Some(offer) => chosen.push(offer),
                }
            }
            (chosen, lines)
        }
    }
}

/// The SQLite tables for these tables of the cloud, each with what it lacks, and a line about each that cannot be one.
/// `here` are the tables that the file tracks, `taken` all names in it.
pub fn new_tables(
    definitions: &[Definition],
    here: &[Table],
    taken: &[String],
) -> (Vec<(NewTable, Vec<String>)>, Vec<String>) {
    let mut taken: BTreeSet<String> = taken.iter().map(|name| name.to_ascii_lowercase()).collect();
    let (mut made, mut lines) = (vec![], vec![]);
    for definition in definitions {
        let name = &definition.name;
        match new_table(definition) {
            Err(reason) => lines.push(format!("table {name} of the cloud is not made here: {reason}")),
            Ok(_) if !taken.insert(name.to_ascii_lowercase()) => lines
                .push(format!("table {name} of the cloud is not made here: SQLite has another of that name")),
            Ok((table, lacks)) => made.push((definition, table, lacks)),
        }
    }
    let parents: Vec<NewTable> = made.iter().map(|(_, table, _)| table.clone()).collect();
    let tables = made
        .into_iter()
        .map(|(definition, mut table, mut lacks)| {
            for key in &definition.foreign_keys {
                match foreign_key(key, &parents, here) {
                    Some(new) => {
                        if key.on_delete.is_empty() {
                            lacks.push(format!("what a deletion does to {}", key.columns.join(", ")));
                        }
                        table.foreign_keys.push(new);
                    }
                    None => lacks.push(format!("its foreign key by {}", key.columns.join(", "))),
                }
            }
            for index in &mut table.indexes {
                index.name = free_name(&index.name, &mut taken);
            }
            (table, lacks)
        })
        .collect();
    (tables, lines)
}

/// A table without its foreign keys, and what it lacks; or why there can be none.
fn new_table(definition: &Definition) -> Result<(NewTable, Vec<String>), String> {
    let Definition { name, columns, key, indexes, checks, .. } = definition;
    let folded = |name: &str| name.to_ascii_lowercase();
    if folded(name).starts_with("sqlite_") || folded(name).starts_with("_tidewater_") {
        return Err("SQLite does not allow its name".into());
    }
    if key.is_empty() {
        return Err("it has no primary key, by which its rows could be told apart".into());
    }
    if columns.len() > COLUMNS_MAX {
        return Err(format!("it has more than {COLUMNS_MAX} columns"));
    }
    let names: BTreeSet<String> = columns.iter().map(|column| folded(&column.name)).collect();
    if names.len() < columns.len() {
        return Err("two of its columns have one name for SQLite, which knows no case".into());
    }
    let in_key = |column: &DefinedColumn| key.contains(&column.name);
    if let Some(column) = columns.iter().find(|column| column.generated && in_key(column)) {
        return Err(format!("its key has the column {}, which the cloud computes", column.name));
    }
    let mut lacks = vec![];
    let by_rowid = |column: &DefinedColumn| {
        key.len() == 1
            && in_key(column)
            && matches!(column.kind, CloudType::Int2 | CloudType::Int4 | CloudType::Int8)
    };
    let new = columns.iter().map(|column| {
        let (declared, same) = declared(&column.kind);
        if !same {
            lacks.push(format!("the type {} of {}", column.type_name, column.name));
        }
        let mut default = None;
        if column.generated {
            lacks.push(format!("the expression of {}", column.name));
        } else if let Some(text) = &column.default {
            default = here(text, &column.kind, Affinity::of_declared(&declared));
            // A key that is a row's number is given by SQLite as well.
            if default.is_none() && !is_null(text) && !(by_rowid(column) && is_serial(text)) {
                lacks.push(format!("the default of {}", column.name));
            }
        } else if column.identity && !by_rowid(column) {
            lacks.push(format!("the numbering of {}", column.name));
        }
        NewColumn {
            name: column.name.clone(),
            declared,
            // Only the cloud can give a computed one its value; SQLite gives one to the row's number.
            not_null: column.not_null && !column.generated && !by_rowid(column),
            default,
        }
    });
    let new: Vec<NewColumn> = new.collect();
    let mut table = NewTable { name: name.clone(), columns: new, key: key.clone(), ..NewTable::default() };
    for index in indexes {
        match (index.plain && !index.columns.is_empty(), index.unique, index.constraint) {
            (true, true, true) => table.uniques.push(index.columns.clone()),
            (true, unique, _) => table.indexes.push(NewIndex {
                name: index.name.clone(),
                columns: index.columns.clone(),
                unique,
            }),
            (false, true, _) => lacks.push(format!("the unique index {}", index.name)),
            // Its absence changes nothing but the time that a query takes.
            (false, false, _) => {}
        }
    }
    if *checks {
        lacks.push("its checks, which are made there".into());
    }
    Ok((table, lacks))
}

/// The declared type for what a column of the cloud holds, and whether it says all of it.
fn declared(kind: &CloudType) -> (String, bool) {
    let declared = match kind {
        CloudType::Int2 | CloudType::Int4 | CloudType::Int8 => "INTEGER",
        CloudType::Float4 | CloudType::Float8 => "REAL",
        CloudType::Bool => "BOOLEAN",
        CloudType::Bytea => "BLOB",
        CloudType::Numeric(None) => "NUMERIC",
        CloudType::Numeric(Some((precision, scale))) => {
            return (format!("NUMERIC({precision},{scale})"), true);
        }
        CloudType::Date => "DATE",
        CloudType::Timestamp => "DATETIME",
        CloudType::Json => "JSON",
        CloudType::Uuid => "UUID",
        CloudType::Text | CloudType::TimestampTz | CloudType::Jsonb => "TEXT",
        CloudType::Array(..) | CloudType::Other(_) => return ("TEXT".into(), false),
    };
    (declared.into(), true)
}

/// A foreign key, if its parent is, or is going to be, here with a key or a unique constraint on these columns.
fn foreign_key(key: &DefinedForeignKey, made: &[NewTable], here: &[Table]) -> Option<NewForeignKey> {
    let parent = key.parent.as_ref()?;
    let folded = |names: &[String]| names.iter().map(|n| n.to_ascii_lowercase()).collect::<BTreeSet<_>>();
    let referred = folded(&key.parent_columns);
    let new = |parent: String| NewForeignKey {
        columns: key.columns.clone(),
        parent,
        parent_columns: key.parent_columns.clone(),
        on_delete: key.on_delete.clone(),
        on_update: key.on_update.clone(),
        deferred: key.deferred,
    };
    if let Some(table) = made.iter().find(|table| table.name == *parent) {
        let by_index = table.indexes.iter().filter(|index| index.unique).map(|index| &index.columns);
        let mut sets = table.uniques.iter().chain(by_index).chain([&table.key]);
        return sets.any(|set| folded(set) == referred).then(|| new(table.name.clone()));
    }
    let table = here.iter().find(|table| table.name.eq_ignore_ascii_case(parent))?;
    let names = |columns: &mut dyn Iterator<Item = usize>| {
        columns.map(|c| table.columns[c].name.to_ascii_lowercase()).collect::<BTreeSet<_>>()
    };
    let is_key = names(&mut table.key.iter().copied()) == referred;
    let is_unique = |columns: &[(usize, String)]| {
        columns.iter().all(|(_, collation)| collation.eq_ignore_ascii_case("BINARY"))
            && names(&mut columns.iter().map(|(c, _)| *c)) == referred
    };
    (is_key || table.uniques.iter().any(|unique| is_unique(&unique.columns))).then(|| new(table.name.clone()))
}

/// A name that nothing in the file has.
fn free_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let reserved = name.to_ascii_lowercase().starts_with("sqlite_");
    let name = if reserved { format!("idx_{name}") } else { name.to_owned() };
    let mut free = name.clone();
    let mut n = 1;
    while !taken.insert(free.to_ascii_lowercase()) {
        n += 1;
        free = format!("{name}_{n}");
    }
    free
}

// ---------------------------------------------------------------------------------------------------------
// Defaults
// ---------------------------------------------------------------------------------------------------------

/// A default of the cloud's in SQLite's words, where it means the same here.
fn here(text: &str, kind: &CloudType, affinity: Affinity) -> Option<String> {
    if let Some(clock) = clock(text, kind) {
        return Some(clock.into());
    }
    let carried = from_text(&constant(text)?, kind)?;
    let stored = from_cloud_unchanged(carried, affinity, kind).ok()?;
    Some(match stored {
        Value::Null | Value::Malformed(_) => return None,
        Value::Integer(integer) => integer.to_string(),
        // With a point or an exponent, so that it stays a real.
        Value::Real(real) if real.is_finite() => format!("{real:?}"),
        Value::Real(real) => (if real > 0.0 { "9e999" } else { "-9e999" }).into(),
        Value::Text(text) if text.contains('\0') => return None,
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => {
            format!("X'{}'", bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>())
        }
    })
}

/// The time of the statement, in UTC, as SQLite writes it.
fn clock(text: &str, kind: &CloudType) -> Option<&'static str> {
    let squeezed = text.to_ascii_lowercase().replace("::text", "");
    let squeezed: String =
        squeezed.chars().filter(|c| !c.is_whitespace() && !matches!(c, '(' | ')')).collect();
    // As older servers write it.
    let squeezed = squeezed.replace("timezone'utc',now", "nowattimezone'utc'");
    let in_utc = squeezed.replace("nowattimezone'utc'", "utc");
    Some(match (kind, in_utc.as_str()) {
        (
            CloudType::Timestamp,
            "utc"
            | "date_trunc'second',utc"
            | "now"
            | "current_timestamp"
            | "localtimestamp"
            | "transaction_timestamp",
        ) => "CURRENT_TIMESTAMP",
        // What SQLite's word gives says nothing of a zone, which such a column demands.
        (CloudType::TimestampTz, "now" | "current_timestamp" | "transaction_timestamp") => {
            "(strftime('%Y-%m-%d %H:%M:%S+00', 'now'))"
        }
        (CloudType::Date, "utc::date" | "current_date" | "now::date" | "current_timestamp::date") => {
            "CURRENT_DATE"
        }
        (CloudType::Text, "to_charutc,'yyyy-mm-ddhh24:mi:ss'") => "CURRENT_TIMESTAMP",
        (CloudType::Text, "to_charutc,'yyyy-mm-dd'") => "CURRENT_DATE",
        (CloudType::Text, "to_charutc,'hh24:mi:ss'") => "CURRENT_TIME",
        _ => return None,
    })
}

/// Whether the default is a sequence's next number.
fn is_serial(text: &str) -> bool {
    text.starts_with("nextval(")
}

fn is_null(text: &str) -> bool {
    text.split_once("::").map_or(text, |(value, _)| value).trim().eq_ignore_ascii_case("null")
}

/// PostgreSQL's text of a constant: `5`, `'five'::text`, `(5)::numeric`, `'-5'::integer`, `true`. Casts that may change a
/// value, by a length or a precision, make none of it.
fn constant(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(quoted) = text.strip_prefix('\'') {
        let end = end_of_literal(quoted)?;
        return is_cast(&quoted[end + 1..]).then(|| quoted[..end].replace("''", "'"));
    }
    if let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        return constant(inner);
    }
    if let Some((value, cast)) = text.split_once("::") {
        return is_cast(&format!("::{cast}")).then(|| constant(value))?;
    }
    let is_number = text.parse::<f64>().is_ok_and(f64::is_finite)
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    (is_number || matches!(text, "true" | "false")).then(|| text.to_owned())
}

/// Where a literal ends whose first quote is gone: at a quote that is not doubled.
fn end_of_literal(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        at += text.get(at..)?.find('\'')?;
        if bytes.get(at + 1) != Some(&b'\'') {
            return Some(at);
        }
        at += 2;
    }
}

/// Nothing, or casts by names alone.
fn is_cast(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ' ' | '"' | '.' | '[' | ']'))
    };
    text.is_empty() || text.strip_prefix("::").is_some_and(|casts| casts.split("::").all(is_name))
}

#[cfg(test)]
#[path = "from_cloud_tests.rs"]
mod tests;
