//! A file that lacks tables gets them from the cloud: as another device made them, or as somebody made them there, with
//! everything that SQLite can have of them, and with their rows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use harness::{
    Bench, PATIENCE, batch, here, run, statement, there, wait_for, wait_until_available, wait_until_flushed,
    wait_until_here, wait_until_there,
};
use rusqlite::Connection;
use rusqlite::types::Value as Stored;
use tidewater::{Database, Statement};
use tidewater_test_support::any_schema::Schema;
use tidewater_test_support::{compare, shell, wait};

/// A device that asks for these tables.
async fn asking(bench: &Bench, tables: &str) -> Database {
    let db = bench.open_with(bench.settings().set("sync.tables_from_cloud", tables)).await;
    bench.proxy.start();
    wait_until_available(&db).await;
    db
}

async fn wait_until_made(db: &Database, table: &str) {
    let sql = format!("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '{table}'");
    wait_until_here(db, &sql, "1").await;
}

/// Every row of a table with the storage class of each value, in the order of the key.
fn rows(path: &Path, table: &str) -> Vec<Vec<Stored>> {
    let conn = Connection::open(path).unwrap();
    let mut columns: Vec<(String, i64)> = conn
        .prepare("SELECT name, pk FROM pragma_table_info(?1) ORDER BY name")
        .unwrap()
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let names = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    columns.retain(|(_, part)| *part > 0);
    columns.sort_by_key(|(_, part)| *part);
    let order = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let quoted = table.replace('"', "\"\"");
    let sql = format!("SELECT {names} FROM \"{quoted}\" ORDER BY {order}");
    let width = conn.prepare(&sql).unwrap().column_count();
    conn.prepare(&sql)
        .unwrap()
        .query_map([], |row| (0..width).map(|at| row.get(at)).collect())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// What SQLite says of a table, as far as it crosses: by column, the type, whether it refuses NULL (a key says nothing of
/// that), its default as a value, its place in the key; unique constraints and foreign keys by their columns.
#[derive(Debug, PartialEq)]
struct Shape {
    columns: BTreeMap<String, (String, Option<bool>, Stored, i64)>,
    uniques: BTreeSet<Vec<String>>,
    foreign_keys: BTreeSet<String>,
}

fn shape(path: &Path, table: &str) -> Shape {
    let conn = Connection::open(path).unwrap();
    let mut columns = BTreeMap::new();
    let mut key = BTreeSet::new();
    {
        let mut ask = conn
            .prepare("SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info(?1)")
            .unwrap();
        let mut found = ask.query([table]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let (name, part): (String, i64) = (row.get(0).unwrap(), row.get(4).unwrap());
            let default: Option<String> = row.get(3).unwrap();
            let default = default.map_or(Stored::Null, |text| {
                conn.query_row(&format!("SELECT {text}"), [], |row| row.get(0)).unwrap()
            });
            let not_null = (part == 0).then(|| row.get(2).unwrap());
            if part > 0 {
                key.insert(name.clone());
            }
            columns.insert(name, (row.get(1).unwrap(), not_null, default, part));
        }
    }
    let texts = |sql: &str, of: &str| -> Vec<String> {
        let mut ask = conn.prepare(sql).unwrap();
        ask.query_map([of], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let uniques = texts("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk'", table)
        .iter()
        .map(|index| texts("SELECT name FROM pragma_index_info(?1) ORDER BY name", index))
        .collect();
    // One that refers to anything but the primary key has no actions in the cloud.
    let foreign_keys = texts(
        "SELECT group_concat(\"from\" || '>' || \"table\" || '.' || \"to\", ',') || CASE WHEN NOT EXISTS \
         (SELECT 1 FROM pragma_foreign_key_list(?1) AS part WHERE part.id = f.id AND part.\"to\" NOT IN \
         (SELECT name FROM pragma_table_info(f.\"table\") WHERE pk > 0)) AND count(*) = (SELECT count(*) FROM \
         pragma_table_info(f.\"table\") WHERE pk > 0) THEN ' ' || on_delete || ' ' || on_update ELSE '' END \
         FROM (SELECT * FROM pragma_foreign_key_list(?1) ORDER BY id, \"from\") AS f GROUP BY id",
        table,
    );
    Shape { columns, uniques, foreign_keys: foreign_keys.into_iter().collect() }
}

/// Every declared type that means a type of its own in the cloud comes to another device as it was, with every value.
#[actix_rt::test]
async fn the_tables_of_one_device_come_to_another_as_they_were() {
    let sql = r#"CREATE TABLE "odd ""name" (id INTEGER PRIMARY KEY, flag BOOLEAN NOT NULL DEFAULT 1, whole INTEGER DEFAULT -5,
    part REAL DEFAULT 1.5, price NUMERIC(10,2) DEFAULT 9.9, free NUMERIC, title TEXT NOT NULL DEFAULT 'it''s', raw BLOB DEFAULT X'00FF',
    day DATE DEFAULT '2024-02-29', moment DATETIME, doc JSON DEFAULT '{"a": 1}', tag UUID);
CREATE TABLE clock (id INTEGER PRIMARY KEY, at DATETIME DEFAULT CURRENT_TIMESTAMP, day DATE DEFAULT CURRENT_DATE,
    text TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE person (first TEXT, last TEXT NOT NULL, code TEXT UNIQUE, PRIMARY KEY (last, first));
CREATE TABLE letter (id TEXT PRIMARY KEY, first TEXT, last TEXT, answers TEXT REFERENCES letter (id) ON DELETE SET NULL,
    UNIQUE (first, id), FOREIGN KEY (last, first) REFERENCES person (last, first) ON DELETE CASCADE ON UPDATE CASCADE)"#;
    let bench = Bench::new().await;
    let a = bench.open().await;
    run(&a, sql).await;
    run(
        &a,
        r#"INSERT INTO "odd ""name" VALUES (1, 0, 7, 0.1, 1.25, 123456789012, 'x', X'01', '2024-01-02', '2024-01-02 03:04:05.25', '[1, 2]', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');
INSERT INTO "odd ""name" (id, free) VALUES (2, 0.5);
INSERT INTO person VALUES ('Ada', 'L', 'al'), ('Bo', 'M', NULL);
INSERT INTO letter VALUES ('a', 'Ada', 'L', NULL), ('b', 'Bo', 'M', 'a');
INSERT INTO clock (id) VALUES (1)"#,
    )
    .await;
    bench.proxy.start();
    wait_until_flushed(&a).await;

    let other = bench.another();
    let b = asking(&other, "all").await;
    let tables = ["odd \"name", "clock", "person", "letter"];
    other.wait_until_equal(&b, &tables).await;
    for table in tables {
        assert_eq!(rows(&other.path(), table), rows(&bench.path(), table), "{table}");
        assert_eq!(shape(&other.path(), table), shape(&bench.path(), table), "{table}");
    }
    assert_eq!(other.log.count("is made as the cloud has it"), 4, "{:#?}", other.log.all());
    assert_eq!(other.log.count("what it does not have here"), 0, "{:#?}", other.log.all());

    // They are as good as any others: numbered, defaulted, sent.
    run(&b, "INSERT INTO clock (text) VALUES ('made')").await;
    run(&b, "INSERT INTO \"odd \"\"name\" (free) VALUES (1)").await;
    run(&b, "DELETE FROM person WHERE first = 'Ada'").await;
    wait_until_flushed(&b).await;
    wait_until_here(
        &a,
        "SELECT group_concat(one) FROM (SELECT id || text AS one FROM clock WHERE length(at) = 19 AND length(day) = 10 ORDER BY id DESC LIMIT 1)",
        "2made",
    )
    .await;
    wait_until_here(&a, "SELECT group_concat(id || coalesce(answers, '-')) FROM letter", "b-").await;
    for table in tables {
        wait::until("both devices to hold the same", PATIENCE, async || {
            let (here, there) = (rows(&other.path(), table), rows(&bench.path(), table));
            if here == there { Ok(()) } else { Err(format!("{here:?} {there:?}")) }
        })
        .await;
    }
    assert_eq!(b.status_summary().await.sync.pending, 0);
}

/// Schemas that nobody thought of: made here, sent, and made on another device from what the cloud has of them.
#[actix_rt::test]
async fn any_schema_comes_to_another_device() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let first = number("TIDEWATER_SEED", 1);
    for seed in first..first + number("TIDEWATER_HISTORIES", 6) {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let schema = Schema::random(&mut rng, true);
        let names: Vec<&str> = schema.tables.iter().map(|table| table.name.as_str()).collect();
        let bench = Bench::new().await;
        let a = bench.open().await;
        a.write(schema.sql().into_iter().map(Statement::new)).await.unwrap();
        for _ in 0..40 {
            let unit = schema.unit(&mut rng, &Connection::open(bench.path()).unwrap());
            // Many are refused by the schema's own constraints.
            let _ = a.write(unit.into_iter().map(statement)).await;
        }
        bench.proxy.start();
        wait_until_flushed(&a).await;
        assert_eq!(a.status_summary().await.sync.parked, 0, "seed {seed}");

        let other = bench.another();
        let b = asking(&other, "all").await;
        other.wait_until_equal(&b, &names).await;
        for table in &names {
            assert_eq!(rows(&other.path(), table), rows(&bench.path(), table), "seed {seed}, {table}");
            let (here, there) = (shape(&other.path(), table), shape(&bench.path(), table));
            assert_eq!(here, there, "seed {seed}, {table}");
        }
        // The other device works on them as the first one did.
        for _ in 0..15 {
            let unit = schema.unit(&mut rng, &Connection::open(other.path()).unwrap());
            let _ = b.write(unit.into_iter().map(statement)).await;
        }
        wait_until_flushed(&b).await;
        assert_eq!(b.status_summary().await.sync.parked, 0, "seed {seed}");
        bench.wait_until_equal(&a, &names).await;
        for (db, bench) in [(&a, &bench), (&b, &other)] {
            let violations = here(db, "SELECT count(*) FROM pragma_foreign_key_check");
            assert_eq!(violations, "0", "seed {seed}, {:#?}", bench.log.all());
        }
        for db in [a, b] {
            db.shutdown().await.unwrap();
        }
    }
}

/// A table that somebody made in the cloud comes as well, when it is named: what SQLite cannot have of it is said in one line,
/// and what is written here is good for it.
#[actix_rt::test]
async fn a_table_of_somebody_s_comes_when_it_is_named() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('glad', 'sad');
             CREATE DOMAIN short AS varchar(20) DEFAULT 'none';
             CREATE TABLE shelf (id serial PRIMARY KEY, code varchar(8) NOT NULL UNIQUE, at timestamptz NOT NULL DEFAULT now());
             CREATE TABLE book (
                 isbn uuid PRIMARY KEY DEFAULT gen_random_uuid(), shelf int REFERENCES shelf (id) ON DELETE SET NULL,
                 by_code varchar(8) REFERENCES shelf (code) ON UPDATE CASCADE,
                 pages smallint NOT NULL DEFAULT 1 CHECK (pages > 0), mood mood DEFAULT 'glad', tags text[] NOT NULL DEFAULT '{}',
                 more jsonb DEFAULT '{\"a\": 1}', label short, twice int GENERATED ALWAYS AS (pages * 2) STORED,
                 price numeric(8,2) DEFAULT 9.99, lent boolean NOT NULL DEFAULT false, span interval);
             CREATE INDEX book_pages ON book (pages, label DESC);
             CREATE UNIQUE INDEX one_label ON book (label) WHERE lent;
             CREATE UNIQUE INDEX book_by_code ON book (by_code, isbn);
             CREATE INDEX book_lower ON book (lower(label));
             CREATE TABLE keyless (a int);
             CREATE TABLE unasked (id int PRIMARY KEY);
             INSERT INTO shelf (code) VALUES ('a1'), ('b2');
             INSERT INTO book (isbn, shelf, by_code, pages, tags, span) VALUES
                 ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1, 'b2', 7, '{x,y}', '1 day')",
        )
        .await
        .unwrap();
    let db = asking(&bench, "Book, shelf, keyless, nowhere").await;
    bench.wait_until_equal(&db, &["shelf"]).await;
    wait_until_here(
        &db,
        "SELECT group_concat(shelf || by_code || pages || mood || tags || more || label || twice || price || lent || span) FROM book",
        "1b27glad[\"x\",\"y\"]{\"a\": 1}none149.9901 day",
    )
    .await;
    let line = bench.log.all().into_iter().find(|line| line.contains("table book is made")).unwrap();
    for part in [
        "the default of isbn",
        "the type mood of mood",
        "the type text[] of tags",
        "the expression of twice",
        "the type interval of span",
        "the unique index one_label",
        "its checks, which are made there",
    ] {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    assert!(!line.contains("foreign key") && !line.contains("book_"), "{line}");
    for (part, times) in [
        ("table keyless of the cloud is not made here: it has no primary key", 1),
        ("the cloud has no table nowhere from which it could be made here", 1),
        ("table shelf is made as the cloud has it", 1),
        ("unasked", 0),
    ] {
        assert_eq!(bench.log.count(part), times, "{part}: {:#?}", bench.log.all());
    }
    let indexes = "SELECT group_concat(name || ':' || \"unique\", ' ') FROM (SELECT * FROM pragma_index_list('book') WHERE origin = 'c' ORDER BY name)";
    assert_eq!(here(&db, indexes), "book_by_code:1 book_pages:0");
    assert_eq!(
        here(
            &db,
            "SELECT group_concat(\"from\" || ' ' || on_delete || ' ' || on_update, ', ') FROM (SELECT * FROM pragma_foreign_key_list('book') ORDER BY \"from\")"
        ),
        "by_code NO ACTION CASCADE, shelf SET NULL NO ACTION"
    );

    run(&db, "INSERT INTO shelf (id, code) VALUES (9, 'c3')").await;
    run(
        &db,
        "INSERT INTO book (isbn, shelf, by_code) VALUES ('b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 9, 'c3')",
    )
    .await;
    run(&db, "DELETE FROM shelf WHERE id = 1").await;
    wait_until_flushed(&db).await;
    assert_eq!(db.status_summary().await.sync.parked, 0, "{:?}", db.status_summary().await);
    let found = "SELECT string_agg(coalesce(shelf::text, '-') || by_code || pages || mood || tags::text || label || twice || price || lent, ' ' ORDER BY isbn) FROM book";
    assert_eq!(there(&client, found).await, "-b27glad{x,y}none149.99false 9c31glad{}none29.99false");
    assert_eq!(
        there(&client, "SELECT now() - at < interval '1 minute' FROM shelf WHERE id = 9").await,
        "true"
    );
    wait_until_here(&db, "SELECT group_concat(twice) FROM book WHERE shelf = 9", "2").await;
}

/// The library gives a file nothing that it was not asked for, and what is there already stays as it is.
#[actix_rt::test]
async fn the_library_makes_no_table_unasked() {
    let bench = Bench::new().await;
    let a = bench.open().await;
    run(
        &a,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nCREATE TABLE tag (id INTEGER PRIMARY KEY)",
    )
    .await;
    run(&a, "INSERT INTO note VALUES (1, 'a')").await;
    bench.proxy.start();
    wait_until_flushed(&a).await;

    let other = bench.another();
    let b = other.open().await;
    other.proxy.start();
    wait_until_available(&b).await;
    b.warm().await.unwrap();
    assert_eq!(here(&b, "SELECT count(*) FROM sqlite_schema WHERE name IN ('note', 'tag')"), "0");
    b.shutdown().await.unwrap();

    shell::sqlite3_shell(
        other.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, own TEXT DEFAULT 'mine');\n",
    );
    let b = other
        .open_with(other.settings().set("sync.tables_from_cloud", "all").set("tables.tag.direction", "none"))
        .await;
    wait_until_here(&b, "SELECT group_concat(body) FROM note", "a").await;
    b.warm().await.unwrap();
    assert_eq!(here(&b, "SELECT count(*) FROM pragma_table_info('note')"), "3");
    assert_eq!(here(&b, "SELECT count(*) FROM sqlite_schema WHERE name = 'tag'"), "0");
    assert_eq!(other.log.count("is made as the cloud has it"), 0);
}

/// A file that was there before its tables were in the cloud gets them when another device has brought them there.
#[actix_rt::test]
async fn tables_that_are_not_there_yet_come_later() {
    let other = Bench::new().await;
    let b = asking(&other, "note").await;
    wait_for(&b, "it is idle", |status| status.sync.state == "idle").await;
    b.warm().await.unwrap();
    assert_eq!(other.log.count("the cloud has no table note"), 1);
    let bench = other.another();
    let a = bench.open().await;
    run(&a, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'a')").await;
    bench.proxy.start();
    wait_until_flushed(&a).await;
    wait_until_made(&b, "note").await;
    wait_until_here(&b, "SELECT group_concat(body) FROM note", "a").await;
    run(&b, "UPDATE note SET body = 'b'").await;
    wait_until_here(&a, "SELECT group_concat(body) FROM note", "b").await;
    assert_eq!(other.log.count("the cloud has no table note"), 1);
}

/// Migrations come first: they make their tables themselves, whatever is asked of the cloud.
#[actix_rt::test]
async fn migrations_make_their_tables_first() {
    let bench = Bench::new().await;
    let a = bench.open().await;
    run(
        &a,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nCREATE TABLE tag (id INTEGER PRIMARY KEY)",
    )
    .await;
    run(&a, "INSERT INTO note VALUES (1, 'a')").await;
    bench.proxy.start();
    wait_until_flushed(&a).await;
    let other = bench.another();
    let folder = other.folder.path().join("migrations");
    std::fs::create_dir(&folder).unwrap();
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, own TEXT);";
    std::fs::write(folder.join("0001_note.sql"), sql).unwrap();
    // The cloud is there before the file is.
    other.proxy.start();
    let settings = other.settings().set("sqlite.migrations", folder.display());
    let b = other.open_with(settings.set("sync.tables_from_cloud", "all")).await;
    wait_until_made(&b, "tag").await;
    wait_until_here(&b, "SELECT group_concat(body) FROM note", "a").await;
    assert_eq!(here(&b, "SELECT count(*) FROM pragma_table_info('note')"), "3");
}

/// The process gives a file without any table those of its cloud, and does not add to one that has any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_fills_an_empty_file() {
    let device = process::Device::new().await;
    let client = device.cloud.connect().await;
    let bench = Bench {
        folder: tempfile::tempdir().unwrap(),
        cloud: device.cloud.clone(),
        proxy: tidewater_test_support::FaultProxy::reserve(
            (std::net::Ipv4Addr::LOCALHOST, device.cloud.port).into(),
        ),
        log: harness::Lines::default(),
    };
    let a = bench.open().await;
    a.write(batch(
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'a')",
    ))
    .await
    .unwrap();
    bench.proxy.start();
    wait_until_there(
        &a,
        &client,
        "SELECT count(*) FROM pg_trigger WHERE tgname = 'tidewater_feed_insert'",
        "1",
    )
    .await;
    wait_until_flushed(&a).await;
    client.batch_execute("CREATE TABLE plain (id int PRIMARY KEY)").await.unwrap();

    device.proxy.start();
    let process = device.start();
    process.wait_for_line("table note is made as the cloud has it");
    compare::wait_until_equal(&device.path(), &client, "public", &["note"], PATIENCE).await;
    let status = device.wait_until_flushed();
    assert_eq!(status["sync"]["pending"], 0);
    assert_eq!(process.count("plain"), 0);
    process.stop();
    run(&a, "CREATE TABLE later (id INTEGER PRIMARY KEY);\nINSERT INTO later VALUES (1)").await;
    wait_until_flushed(&a).await;
    let process = device.start();
    device.wait_for_status("it is idle", |status| status["sync"]["state"] == "idle");
    compare::wait_until_equal(&device.path(), &client, "public", &["note"], PATIENCE).await;
    process.stop();
    let conn = Connection::open(device.path()).unwrap();
    let tables: String = conn
        .query_row("SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_tide%' ESCAPE '\\' AND name NOT LIKE 'sqlite%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, "note");
}
