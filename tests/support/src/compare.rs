//! Whether a SQLite file and a PostgreSQL schema hold the same, value by value.
//!
//! An oracle: it shares no code with the product. Both sides' values are brought to one text each, by the
//! PostgreSQL column's type, and the texts must be equal.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::wait;

/// How many differences are listed per table.
const LISTED: usize = 8;

/// The values of a row as texts, `None`: NULL.
type Row = Vec<Option<String>>;

/// A table's rows by key.
type Rows = BTreeMap<Row, Row>;

/// Compares the `tables` of the SQLite file with those of the same names in `pg_schema`.
///
/// # Panics
/// When there is a difference: with the first few of each table (table, key, column, both values).
pub async fn assert_equal(sqlite_path: &Path, pg: &Client, pg_schema: &str, tables: &[&str]) {
    let differences = tables_differ(sqlite_path, pg, pg_schema, tables).await;
    assert!(differences.is_empty(), "SQLite and PostgreSQL differ:\n{}", differences.join("\n"));
}

/// [`assert_equal`] as soon as there is no difference any more.
///
/// # Panics
/// When after `timeout` there still is one.
pub async fn wait_until_equal(
    sqlite_path: &Path,
    pg: &Client,
    pg_schema: &str,
    tables: &[&str],
    timeout: Duration,
) {
    wait::until("SQLite and PostgreSQL to hold the same", timeout, async || {
        let differences = tables_differ(sqlite_path, pg, pg_schema, tables).await;
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    })
    .await;
}

/// The differences between the `tables` of the SQLite file and those of the same names in `pg_schema`, the
/// first few of each table. None means that they hold the same rows with the same values, in whatever order.
/// A column that only PostgreSQL has is not looked at.
///
/// It sets how the session of `pg` writes dates, numbers and bytes, and must not be called within a
/// transaction that has failed.
pub async fn tables_differ(sqlite_path: &Path, pg: &Client, pg_schema: &str, tables: &[&str]) -> Vec<String> {
    let settings = "SET datestyle = 'ISO, YMD'; SET extra_float_digits = 1; SET bytea_output = 'hex'";
    if let Err(error) = pg.batch_execute(settings).await {
        return vec![format!("PostgreSQL: {error:?}")];
    }
    let mut differences = Vec::new();
    for table in tables {
        match table_differs(sqlite_path, pg, pg_schema, table).await {
            Ok(found) => differences.extend(found),
            Err(error) => differences.push(format!("{table}: {error}")),
        }
    }
    differences
}

async fn table_differs(path: &Path, pg: &Client, schema: &str, table: &str) -> Result<Vec<String>, String> {
    let columns = sqlite_columns(path, table).map_err(|error| format!("SQLite: {error}"))?;
    if columns.is_empty() {
        return Err("SQLite does not have this table".to_owned());
    }
    let kinds = postgres_kinds(pg, schema, table).await?;
    if kinds.is_empty() {
        return Err(format!("PostgreSQL does not have this table in the schema {schema}"));
    }
    let mut shared = Vec::new();
    let mut differences = Vec::new();
    for column in &columns {
        match kinds.get(&column.name) {
            Some(kind) => shared.push((column, kind.clone())),
            None => {
                differences.push(format!("{table}: PostgreSQL does not have the column {:?}", column.name))
            }
        }
    }
    if shared.iter().filter(|(column, _)| column.key > 0).count()
        < columns.iter().filter(|column| column.key > 0).count()
    {
        return Ok(differences);
    }
    let theirs = postgres_rows(pg, schema, table, &shared).await?;
    let ours = sqlite_rows(path, table, &shared).map_err(|error| format!("SQLite: {error}"))?;

    let mut found = 0;
    let mut tell = |difference: String| {
        found += 1;
        if found <= LISTED {
            differences.push(difference);
        }
    };
    for (key, our_row) in &ours {
        let at = format!("{table} {}", shown_key(key));
        match theirs.get(key) {
            None => tell(format!("{at}: only in SQLite: {}", shown(our_row))),
            Some(their_row) => {
                for (n, (column, kind)) in shared.iter().enumerate() {
                    if our_row[n] != their_row[n] {
                        let (our, their) = (shown_value(&our_row[n]), shown_value(&their_row[n]));
                        let name = &column.name;
                        tell(format!("{at} {name:?} ({kind:?}): SQLite has {our}, PostgreSQL has {their}"));
                    }
                }
            }
        }
    }
    for (key, row) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
        tell(format!("{table} {}: only in PostgreSQL: {}", shown_key(key), shown(row)));
    }
    if found > LISTED {
        differences.push(format!("{table}: and {} differences more", found - LISTED));
    }
    if found > 0 {
        differences.push(format!("{table}: {} rows in SQLite, {} in PostgreSQL", ours.len(), theirs.len()));
    }
    Ok(differences)
}

/// How values of a PostgreSQL type are compared.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Integer,
    Double,
    Single,
    Bytes,
    Boolean,
    Decimal,
    /// A point in time: compared in UTC.
    Instant,
    /// Any other, by its text.
    Text(String),
}

impl Kind {
    fn of(type_name: &str) -> Kind {
        match type_name {
            "int2" | "int4" | "int8" | "oid" => Kind::Integer,
            "float8" => Kind::Double,
            "float4" => Kind::Single,
            "bytea" => Kind::Bytes,
            "bool" => Kind::Boolean,
            "numeric" => Kind::Decimal,
            "timestamptz" => Kind::Instant,
            other => Kind::Text(other.to_owned()),
        }
    }

    fn of_postgres(&self, text: &str) -> String {
        match self {
            Kind::Double => text.parse().map_or_else(|_| unfit("text", text), double),
            Kind::Single => text.parse().map_or_else(|_| unfit("text", text), single),
            Kind::Bytes => text.trim_start_matches("\\x").to_owned(),
            Kind::Boolean => if text == "t" { "1" } else { "0" }.to_owned(),
            Kind::Decimal => decimal(text).unwrap_or_else(|| unfit("text", text)),
            Kind::Integer | Kind::Instant | Kind::Text(_) => text.to_owned(),
        }
    }

    fn of_sqlite(&self, value: ValueRef<'_>) -> Option<String> {
        Some(match (self, value) {
            (_, ValueRef::Null) => return None,
            (Kind::Integer | Kind::Decimal, ValueRef::Integer(number)) => number.to_string(),
            (Kind::Boolean, ValueRef::Integer(number @ (0 | 1))) => number.to_string(),
            (Kind::Double, ValueRef::Real(number)) => double(number),
            // Without an exponent, and as short as the number can be told by.
            (Kind::Decimal, ValueRef::Real(number)) => {
                decimal(&number.to_string()).unwrap_or_else(|| unfit("real", &number.to_string()))
            }
            #[expect(clippy::cast_possible_truncation, reason = "single precision is what the column holds")]
            (Kind::Single, ValueRef::Real(number)) => single(number as f32),
            // Whole numbers in a column without an affinity for REAL.
            #[expect(clippy::cast_precision_loss, reason = "a difference by it is a difference")]
            (Kind::Double, ValueRef::Integer(number)) if number as f64 as i64 == number => {
                double(number as f64)
            }
            (Kind::Bytes, ValueRef::Blob(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            (_, ValueRef::Text(bytes)) => {
                let text = String::from_utf8_lossy(bytes);
                match self {
                    Kind::Text(_) => text.into_owned(),
                    Kind::Decimal => decimal(&text).unwrap_or_else(|| unfit("text", &text)),
                    Kind::Instant => {
                        let zone = ["Z", "+00:00", "+00"].iter().find_map(|zone| text.strip_suffix(zone));
                        zone.unwrap_or(&text).to_owned()
                    }
                    _ => unfit("text", &text),
                }
            }
            (_, ValueRef::Integer(number)) => unfit("integer", &number.to_string()),
            (_, ValueRef::Real(number)) => unfit("real", &format!("{number:?}")),
            (_, ValueRef::Blob(bytes)) => unfit("blob", &format!("{bytes:02x?}")),
        })
    }
}

/// A text that no value of the column's type is brought to.
fn unfit(class: &str, value: &str) -> String {
    format!("({class}, which does not fit) {value}")
}

/// Equal for equal numbers, and different for any others, however close.
fn double(number: f64) -> String {
    // Minus zero is zero: SQLite does not keep it.
    format!("{:e}", number + 0.0)
}

fn single(number: f32) -> String {
    format!("{:e}", number + 0.0)
}

/// A decimal number without a sign for zero, leading zeros and zeros at its end. `None`: it is not one.
fn decimal(text: &str) -> Option<String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let sign = if negative && !(whole.is_empty() && fraction.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

struct Column {
    name: String,
    /// Its place in the primary key from 1 on, 0: it does not belong to it.
    key: u32,
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    Ok(conn)
}

fn sqlite_columns(path: &Path, table: &str) -> rusqlite::Result<Vec<Column>> {
    let conn = open(path)?;
    let mut statement = conn.prepare("SELECT name, pk FROM pragma_table_info(?1) ORDER BY cid")?;
    statement.query_map([table], |row| Ok(Column { name: row.get(0)?, key: row.get(1)? }))?.collect()
}

fn sqlite_rows(path: &Path, table: &str, columns: &[(&Column, Kind)]) -> rusqlite::Result<Rows> {
    let conn = open(path)?;
    let names: Vec<String> = columns.iter().map(|(column, _)| quoted(&column.name)).collect();
    let mut statement = conn.prepare(&format!("SELECT {} FROM {}", names.join(", "), quoted(table)))?;
    let mut found = statement.query([])?;
    let mut rows = Rows::new();
    while let Some(row) = found.next()? {
        let mut values = Row::new();
        for (n, (_, kind)) in columns.iter().enumerate() {
            values.push(kind.of_sqlite(row.get_ref(n)?));
        }
        add(&mut rows, columns, values);
    }
    Ok(rows)
}

async fn postgres_kinds(pg: &Client, schema: &str, table: &str) -> Result<BTreeMap<String, Kind>, String> {
    let sql = "SELECT a.attname::text, coalesce(b.typname, t.typname)::text
               FROM pg_attribute a
               JOIN pg_class c ON c.oid = a.attrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_type t ON t.oid = a.atttypid
               LEFT JOIN pg_type b ON b.oid = t.typbasetype
               WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = pg.query(sql, &[&schema, &table]).await.map_err(|error| format!("PostgreSQL: {error:?}"))?;
    Ok(rows.iter().map(|row| (row.get(0), Kind::of(row.get(1)))).collect())
}

async fn postgres_rows(
    pg: &Client,
    schema: &str,
    table: &str,
    columns: &[(&Column, Kind)],
) -> Result<Rows, String> {
    let names: Vec<String> = columns
        .iter()
        .map(|(column, kind)| match kind {
            Kind::Instant => format!("{} AT TIME ZONE 'UTC'", quoted(&column.name)),
            _ => quoted(&column.name),
        })
        .collect();
    let sql = format!("SELECT {} FROM {}.{}", names.join(", "), quoted(schema), quoted(table));
    let messages = pg.simple_query(&sql).await.map_err(|error| format!("PostgreSQL: {error:?}"))?;
    let mut rows = Rows::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let values = columns
                .iter()
                .enumerate()
                .map(|(n, (_, kind))| row.get(n).map(|text| kind.of_postgres(text)));
            add(&mut rows, columns, values.collect());
        }
    }
    Ok(rows)
}

/// Adds a row by its primary key; without one by all its values and a number for rows that are the same.
fn add(rows: &mut Rows, columns: &[(&Column, Kind)], values: Row) {
    let mut parts: Vec<(u32, usize)> = columns
        .iter()
        .enumerate()
        .map(|(n, (column, _))| (column.key, n))
        .filter(|(key, _)| *key > 0)
        .collect();
    parts.sort_unstable();
    let mut key: Row = if parts.is_empty() {
        values.clone()
    } else {
        parts.into_iter().map(|(_, n)| values[n].clone()).collect()
    };
    let mut number = 1;
    while rows.contains_key(&key) {
        number += 1;
        if number > 2 {
            key.pop();
        }
        key.push(Some(format!("(number {number} of this)")));
    }
    rows.insert(key, values);
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn shown_value(value: &Option<String>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some(text) if text.chars().count() > 120 => {
            let start: String = text.chars().take(120).collect();
            format!("{start:?}… ({} bytes)", text.len())
        }
        Some(text) => format!("{text:?}"),
    }
}

fn shown(row: &[Option<String>]) -> String {
    row.iter().map(shown_value).collect::<Vec<_>>().join(", ")
}

fn shown_key(key: &Row) -> String {
    format!("({})", shown(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shop::{self, Generator};
    use crate::{Database, Postgres};
    use rusqlite::types::Value;

    /// The shop's schema as a PostgreSQL one, by replacing words.
    fn schema_for_postgres() -> String {
        let strict = shop::SCHEMA.replace(") STRICT", ")").replace(") WITHOUT ROWID", ")");
        let lines = strict.lines().map(|line| {
            let keys = line.replace("INTEGER PRIMARY KEY AUTOINCREMENT", "INTEGER PRIMARY KEY");
            keys.replace(" INTEGER", " bigint")
                .replace(" REAL", " double precision")
                .replace(" DOUBLE,", " double precision,")
                .replace(" BLOB", " bytea")
                .replace(" DATETIME", " timestamp")
                .replace("BOOLEAN NOT NULL DEFAULT 1", "boolean NOT NULL DEFAULT true")
                .replace("BOOLEAN NOT NULL DEFAULT 0", "boolean NOT NULL DEFAULT false")
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn pg_literal(value: &Value, kind: &Kind) -> String {
        match (value, kind) {
            (Value::Null, _) => "NULL".to_owned(),
            (Value::Integer(number), Kind::Boolean) => (*number == 1).to_string(),
            (Value::Integer(number), _) => number.to_string(),
            (Value::Real(number), _) => format!("{number:?}"),
            (Value::Text(text), _) => format!("'{}'", text.replace('\'', "''")),
            (Value::Blob(bytes), _) => {
                format!("'\\x{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
        }
    }

    /// A shop of 800 rows after 100 changes, in a file and copied to PostgreSQL by hand.
    async fn two_shops(file: &Path) -> (Connection, Client, Database) {
        let conn = Connection::open(file).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch(shop::SCHEMA).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = ON; BEGIN").unwrap();
        let mut generator = Generator::new(5);
        generator.statements(800).for_each(|statement| assert_eq!(statement.execute(&conn), Ok(1)));
        for statement in generator.churn(&conn, 100) {
            statement.execute(&conn).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
        let database = Postgres::shared().create_database().await;
        database.execute_batch(&schema_for_postgres()).await;
        let pg = database.connect_as_admin().await;
        // Rows come in any order.
        let mut batch = "SET session_replication_role = replica; BEGIN;".to_owned();
        for table in shop::TABLES {
            let kinds = postgres_kinds(&pg, "public", table).await.unwrap();
            let columns = sqlite_columns(file, table).unwrap();
            let mut statement = conn.prepare(&format!("SELECT * FROM {}", quoted(table))).unwrap();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let values: Vec<String> = columns
                    .iter()
                    .enumerate()
                    .map(|(n, column)| pg_literal(&row.get::<_, Value>(n).unwrap(), &kinds[&column.name]))
                    .collect();
                batch += &format!("INSERT INTO {} VALUES ({});\n", quoted(table), values.join(", "));
            }
        }
        pg.batch_execute(&(batch + "COMMIT; SET session_replication_role = origin")).await.unwrap();
        (conn, pg, database)
    }

    #[tokio::test]
    async fn finds_nothing_between_equals_and_every_planted_difference() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.db");
        let (conn, pg, database) = two_shops(&file).await;
        assert_equal(&file, &pg, "public", shop::TABLES).await;

        let last = "(SELECT max(id) FROM measurement)";
        let changes = [
            ("measurement", format!("UPDATE measurement SET value = 0.30000000000000004 WHERE id = {last}")),
            ("measurement", format!("UPDATE measurement SET total = 9007199254740993 WHERE id = {last}")),
            ("measurement", format!("UPDATE measurement SET raw = '\\x00' WHERE id = {last}")),
            ("measurement", format!("DELETE FROM measurement WHERE id = {last}")),
            ("measurement", "INSERT INTO measurement VALUES (-77, 'more', NULL, NULL, NULL)".to_owned()),
            ("SETTING", r#"UPDATE "SETTING" SET "KEY" = "KEY" || ' ' WHERE "KEY" = (SELECT max("KEY") FROM "SETTING")"#.to_owned()),
            ("customer", "UPDATE customer SET credit = credit + 0.01 WHERE id = (SELECT id FROM customer ORDER BY id LIMIT 1)".to_owned()),
            ("customer", "UPDATE customer SET newsletter = NOT newsletter".to_owned()),
            ("customer", "UPDATE customer SET preferences = '{ }'".to_owned()),
            ("customer", "UPDATE customer SET created_at = created_at + interval '1 microsecond' WHERE id = (SELECT id FROM customer ORDER BY id LIMIT 1)".to_owned()),
            ("customer", "UPDATE customer SET born = born + 1".to_owned()),
            ("order", r#"UPDATE "order" SET "say ""hi""" = '' WHERE "say ""hi""" IS NULL"#.to_owned()),
            ("order", r#"ALTER TABLE "order" DROP COLUMN "ship to""#.to_owned()),
            ("returned", "DROP TABLE returned".to_owned()),
        ];
        for (table, change) in changes {
            pg.batch_execute(&format!("BEGIN; {change}")).await.unwrap();
            let found = tables_differ(&file, &pg, "public", shop::TABLES).await;
            pg.batch_execute("ROLLBACK").await.unwrap();
            assert!(!found.is_empty(), "not found: {change}");
            assert!(found.iter().all(|line| line.starts_with(table)), "{change}: {found:#?}");
        }
        // Nothing stays of what was rolled back.
        assert_equal(&file, &pg, "public", shop::TABLES).await;

        // Seen from the other side, by a change in SQLite that another connection makes up for later.
        conn.execute("INSERT INTO \"SETTING\" VALUES ('neu', NULL)", []).unwrap();
        let found = tables_differ(&file, &pg, "public", shop::TABLES).await;
        assert!(found[0].contains("(\"neu\"): only in SQLite"), "{found:?}");
        let writer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            database.execute_batch("INSERT INTO \"SETTING\" VALUES ('neu', NULL)").await;
        });
        wait_until_equal(&file, &pg, "public", shop::TABLES, Duration::from_secs(5)).await;
        writer.await.unwrap();
    }

    #[tokio::test]
    #[should_panic(expected = "t (\"1\") \"a\" (Text(\"text\")): SQLite has \"one\", PostgreSQL has NULL")]
    async fn says_where_and_what() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.db");
        let table = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES";
        Connection::open(&file).unwrap().execute_batch(&format!("{table} (1, 'one')")).unwrap();
        let database = Postgres::shared().create_database().await;
        database.execute_batch(&format!("{table} (1, NULL)")).await;
        assert_equal(&file, &database.connect().await, "public", &["t"]).await;
    }

    #[tokio::test]
    async fn without_a_primary_key_rows_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.db");
        let table = "CREATE TABLE t (a TEXT, b INTEGER); INSERT INTO t VALUES ('x', 1), ('x', 1), ('x', 1)";
        Connection::open(&file).unwrap().execute_batch(table).unwrap();
        let database = Postgres::shared().create_database().await;
        database.execute_batch(table).await;
        let pg = database.connect().await;
        assert_equal(&file, &pg, "public", &["t"]).await;
        database.execute_batch("INSERT INTO t VALUES ('x', 1)").await;
        assert!(!tables_differ(&file, &pg, "public", &["t"]).await.is_empty());
    }

    #[test]
    fn decimals_are_equal_as_numbers() {
        for (text, expected) in [
            ("0", "0"),
            ("-0.00", "0"),
            ("12.50", "12.5"),
            ("007", "7"),
            ("-.5", ""),
            ("1e5", ""),
            ("100", "100"),
        ] {
            assert_eq!(decimal(text).unwrap_or_default(), expected, "{text}");
        }
        assert_eq!(Kind::Decimal.of_sqlite(ValueRef::Real(99_999_999.99)).unwrap(), "99999999.99");
        assert_ne!(Kind::Boolean.of_sqlite(ValueRef::Integer(2)).unwrap(), "1");
        assert_ne!(Kind::Integer.of_sqlite(ValueRef::Text(b"1")).unwrap(), "1");
    }
}
