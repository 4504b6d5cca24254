//! Values between the types of both databases: what went up comes back identical, typeof and bytes, or its row is parked
//! with a reason; what comes down goes back as it was, or is set aside with a reason.
//!
//! - [`declared`]: the declared types of SQLite, in tables that Tidewater creates.
//! - [`existing`]: the column types of PostgreSQL, in tables that are there already.
//! - [`notations`]: the same value, written otherwise here than in the cloud.
//! - [`tables`]: keys, generated columns, identity, partitions, row-level security, and columns that come, go and change.
//! - [`documented`]: that the documentation says what the code does.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod harness;

#[path = "types/declared.rs"]
mod declared;
#[path = "types/documented.rs"]
mod documented;
#[path = "types/existing.rs"]
mod existing;
#[path = "types/notations.rs"]
mod notations;
#[path = "types/tables.rs"]
mod tables;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Bench, here, run};
use tidewater::rusqlite::types::ValueRef;
use tidewater::{Database, Statement, Value};
use tidewater_test_support::wait;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The storage class and every byte.
fn shown(value: ValueRef<'_>) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match value {
        ValueRef::Null => "null".into(),
        ValueRef::Integer(i) => format!("integer {i}"),
        ValueRef::Real(r) => format!("real {r:?}"),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("text {text}"),
            Err(_) => format!("malformed text {}", hex(bytes)),
        },
        ValueRef::Blob(bytes) => format!("blob {}", hex(bytes)),
    }
}

/// Not all of a long one.
fn short(text: impl ToString) -> String {
    let text = text.to_string();
    if text.len() < 100 { text } else { format!("{} bytes", text.len()) }
}

/// Column `v` of a table here, by `id`.
fn values_here(db: &Database, table: &str) -> BTreeMap<i64, String> {
    db.read(|conn| {
        let mut statement = conn.prepare(&format!("SELECT id, v FROM {table}"))?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, shown(row.get_ref(1)?))))?;
        rows.collect()
    })
    .unwrap_or_else(|error| panic!("{table}: {error}"))
}

/// The same in the cloud, as text.
async fn values_there(client: &Client, table: &str) -> BTreeMap<i64, String> {
    let sql = format!("SELECT id, v FROM {table}");
    let answers = client.simple_query(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    answers
        .into_iter()
        .filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => {
                Some((row.get(0)?.parse().unwrap(), row.get(1).unwrap_or("NULL").to_owned()))
            }
            _ => None,
        })
        .collect()
}

/// What a side table (`parked`, `aside`) says of a table's rows, by key.
fn said_of(db: &Database, kind: &str, reason: &str, table: &str) -> BTreeMap<i64, String> {
    let id = here(db, &format!("SELECT id FROM _tidewater_tables WHERE name = '{table}'"));
    db.read(|conn| {
        let mut statement = conn.prepare(&format!("SELECT k0, {reason} FROM _tidewater_{kind}_{id}"))?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    })
    .unwrap()
}

fn parked(db: &Database, table: &str) -> BTreeMap<i64, String> {
    said_of(db, "parked", "message", table)
}

fn aside(db: &Database, table: &str) -> BTreeMap<i64, String> {
    said_of(db, "aside", "reason", table)
}

/// What a device is given that has not written the value itself: of a type with notations, the cloud's.
fn arrives(cloud: &str, there: &str) -> Option<String> {
    match (cloud, there) {
        (_, "NULL") => None,
        ("boolean", truth) => Some(format!("integer {}", u8::from(truth == "t"))),
        ("date" | "timestamp without time zone" | "uuid", text) => Some(format!("text {text}")),
        _ => None,
    }
}

/// A number without what does not count: zeros at its end, the sign of a zero.
fn number(text: &str) -> &str {
    match text {
        "-0" => "0",
        _ if text.contains('.') && text.parse::<f64>().is_ok() => {
            text.trim_end_matches('0').trim_end_matches('.')
        }
        _ => text,
    }
}

async fn insert(db: &Database, table: &str, first: i64, values: impl Iterator<Item = Value>) {
    let statements: Vec<Statement> = values
        .zip(first..)
        .map(|(value, id)| {
            Statement::new(format!("INSERT INTO {table} VALUES (?1, ?2)")).bind(id).bind(value)
        })
        .collect();
    db.write(statements).await.unwrap_or_else(|error| panic!("{table}: {error}"));
}

/// A hundred tables at once, on a machine that has other things to do.
const LONG_PATIENCE: Duration = Duration::from_secs(180);

/// Everything that waits has been sent, or is parked.
async fn settled(db: &Database) {
    wait::until("nothing is pending", LONG_PATIENCE, async || {
        let sync = db.status_summary().await.sync;
        if sync.pending == 0 && sync.state == "idle" { Ok(()) } else { Err(format!("{sync:?}")) }
    })
    .await;
}

/// Everything that the cloud has committed by now has been pulled: a row of its own arrives after it.
async fn pulled(db: &Database, client: &Client) {
    let mark = harness::there(client, "SELECT coalesce(max(id), 0) + 1 FROM mark").await;
    client.batch_execute(&format!("INSERT INTO mark VALUES ({mark})")).await.unwrap();
    wait::until("what was committed there is here", LONG_PATIENCE, async || {
        let found = here(db, &format!("SELECT count(*) FROM mark WHERE id = {mark}"));
        let sync = db.status_summary().await.sync;
        if found == "1" && sync.state == "idle" { Ok(()) } else { Err(format!("{sync:?}")) }
    })
    .await;
}

const MARK: &str = "CREATE TABLE mark (id INTEGER PRIMARY KEY)";

/// Copies of rows, whole, under other keys: their values go back as they came.
const COPIES: i64 = 10_000;
/// Rows that are written here into tables of the cloud.
const EDITS: i64 = 1_000;

/// Every declared type gets the column that is documented; a value of it is in the cloud as it is here, comes back identical to
/// this device and to another, where that one has a notation of its own in that, and goes up from there again; what cannot is
/// parked, and says why.
#[actix_rt::test]
async fn a_declared_type_carries_its_values_unchanged_or_parks_them() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    let mut all = vec![];
    for declared in declared::all() {
        for name in declared.names {
            all.push((format!("d{}", all.len()), *name, declared.cloud, declared.values.clone()));
        }
    }
    let schema: Vec<String> = std::iter::once(MARK.to_owned())
        .chain(
            all.iter()
                .map(|(table, name, ..)| format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, v {name})")),
        )
        .collect();
    run(&db, &schema.join(";\n")).await;
    for (table, _, _, values) in &all {
        insert(&db, table, 0, values.iter().map(|(value, _)| value.clone())).await;
    }
    let written: Vec<BTreeMap<i64, String>> = all.iter().map(|(table, ..)| values_here(&db, table)).collect();
    bench.proxy.start();
    settled(&db).await;
    let client = bench.cloud.connect().await;
    let mut wrong = vec![];
    for (table, name, cloud, values) in &all {
        let kind = harness::there(
            &client,
            &format!("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = 'v'"),
        )
        .await;
        if kind != *cloud {
            wrong.push(format!("{name} became {kind}"));
        }
        let (there, parked) = (values_there(&client, table).await, parked(&db, table));
        for (id, (value, expected)) in (0..).zip(values) {
            let what = || format!("{} in {name}", short(format!("{value:?}")));
            match (there.get(&id), parked.get(&id), expected) {
                (Some(found), None, Some(expected)) if found == expected => {}
                (None, Some(reason), None)
                    if reason.contains("column v") || reason.contains("invalid input") => {}
                (found, parked, expected) => wrong.push(format!(
                    "{}: {:?}, parked {parked:?}, expected {:?}",
                    what(),
                    found.map(short),
                    expected.map(short)
                )),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // Back on this device, and down to another.
    for (table, ..) in &all {
        client.batch_execute(&format!("UPDATE {table} SET id = id")).await.unwrap();
    }
    pulled(&db, &client).await;
    let other = bench.another();
    let second = other.open().await;
    run(&second, &schema.join(";\n")).await;
    other.proxy.start();
    pulled(&second, &client).await;
    for ((table, name, cloud, _), written) in all.iter().zip(&written) {
        let (now, parked, second) =
            (values_here(&db, table), parked(&db, table), values_here(&second, table));
        let there = values_there(&client, table).await;
        for (id, value) in written {
            if now.get(id) != Some(value) {
                wrong.push(format!("{name}: {} has become {:?}", short(value), now.get(id).map(short)));
            }
            let there = there.get(id).map(|there| arrives(cloud, there).unwrap_or_else(|| value.clone()));
            let expected = if parked.contains_key(id) { None } else { there };
            if second.get(id) != expected.as_ref() {
                wrong.push(format!("{name}: {} arrives as {:?}", short(value), second.get(id).map(short)));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // Up again from there.
    for (table, ..) in &all {
        run(&second, &format!("INSERT INTO {table} SELECT id + {COPIES}, v FROM {table}")).await;
    }
    settled(&second).await;
    for (table, name, ..) in &all {
        let there = values_there(&client, table).await;
        for (id, value) in there.iter().filter(|(id, _)| **id < COPIES) {
            if there.get(&(id + COPIES)) != Some(value) {
                wrong.push(format!(
                    "{name}: {} goes back as {:?}",
                    short(value),
                    there.get(&(id + COPIES)).map(short)
                ));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(second.status_summary().await.sync.parked, 0);
    for db in [&db, &second] {
        assert_eq!(db.status_summary().await.sync.conflicts, 0);
        db.shutdown().await.unwrap();
    }
}

/// Every column type of an existing table has a form here that goes back as it was, or is set aside; what is written here is
/// stored as it is here and stays so when the row comes back, or is parked, and says why.
#[actix_rt::test]
async fn an_existing_column_gives_and_takes_its_values_unchanged() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    let all: Vec<(String, existing::Existing)> =
        existing::all().into_iter().enumerate().map(|(at, existing)| (format!("e{at}"), existing)).collect();
    client.batch_execute("CREATE TABLE mark (id bigint PRIMARY KEY)").await.unwrap();
    for (table, existing) in &all {
        let rows = existing
            .values
            .iter()
            .zip(0..)
            .map(|((sql, _), id)| format!("INSERT INTO {table} VALUES ({id}, {sql})"));
        let rows: Vec<String> = rows.collect();
        let sql = format!(
            "{};CREATE TABLE {table} (id bigint PRIMARY KEY, v {});{}",
            existing.setup,
            existing.cloud,
            rows.join(";")
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", existing.cloud));
    }
    let schema: Vec<String> = std::iter::once(MARK.to_owned())
        .chain(
            all.iter()
                .map(|(table, e)| format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, v {})", e.here)),
        )
        .collect();
    let db = bench.open().await;
    run(&db, &schema.join(";\n")).await;
    bench.proxy.start();
    pulled(&db, &client).await;
    let mut wrong = vec![];
    for (table, existing) in &all {
        let (here, aside) = (values_here(&db, table), aside(&db, table));
        let what = format!("{} as {}", existing.cloud, existing.here);
        for (id, (sql, expected)) in (0..).zip(existing.values) {
            match (here.get(&id), aside.get(&id), expected) {
                (Some(found), None, Some(expected)) if found == expected => {}
                (None, Some(reason), None)
                    if reason.contains("column v") && reason.contains("TEXT would do") => {}
                found => wrong.push(format!("{what}: {sql} is {found:?}")),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // What came goes back as it was; and what is written here.
    for (table, existing) in &all {
        run(&db, &format!("INSERT INTO {table} SELECT id + {COPIES}, v FROM {table}")).await;
        insert(&db, table, EDITS, existing.edits.iter().map(|(value, _)| value.clone())).await;
    }
    let written: Vec<BTreeMap<i64, String>> = all.iter().map(|(table, _)| values_here(&db, table)).collect();
    settled(&db).await;
    for (table, existing) in &all {
        let (there, parked) = (values_there(&client, table).await, parked(&db, table));
        let what = format!("{} as {}", existing.cloud, existing.here);
        for (id, value) in values_here(&db, table).iter().filter(|(id, _)| **id < EDITS) {
            let back = there.get(&(id + COPIES));
            if back.map(String::as_str).map(number) != there.get(id).map(String::as_str).map(number) {
                wrong.push(format!(
                    "{what}: {value} goes back as {back:?}, parked {:?}",
                    parked.get(&(id + COPIES))
                ));
            }
        }
        for (id, (value, expected)) in (EDITS..).zip(&existing.edits) {
            match (there.get(&id), parked.get(&id), expected) {
                (Some(found), None, Some(expected)) if found == expected => {}
                (None, Some(reason), None) if !reason.is_empty() => {}
                found => wrong.push(format!("{what}: {value:?} is {found:?}")),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // The rows come back, and an edit beside them is merged.
    for (table, _) in &all {
        client.batch_execute(&format!("UPDATE {table} SET id = id")).await.unwrap();
    }
    pulled(&db, &client).await;
    for ((table, existing), written) in all.iter().zip(&written) {
        let now = values_here(&db, table);
        for (id, value) in written {
            if now.get(id) != Some(value) {
                wrong.push(format!(
                    "{} as {}: {value} has become {:?}",
                    existing.cloud,
                    existing.here,
                    now.get(id)
                ));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(db.status_summary().await.sync.conflicts, 0);
    db.shutdown().await.unwrap();
}
