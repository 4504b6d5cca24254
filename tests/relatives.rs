//! Rows that refer to each other go in few rounds: a round grows by them as by any others, and nobody is refused for the way
//! in which they were put together.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, here, numbers, run, there, wait_for, wait_until_flushed};
use tidewater::Database;

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customer (id), v INTEGER);
CREATE TABLE line (id INTEGER PRIMARY KEY, purchase INTEGER NOT NULL REFERENCES purchase (id), v INTEGER)";
const TABLES: &[&str] = &["customer", "purchase", "line"];

/// A shop of so many rows, most of them lines; with `crossed`, who has the larger key has the smaller parent.
async fn fill_shop(db: &Database, rows: usize, crossed: bool) {
    let (customers, purchases) = (rows.div_ceil(40), rows / 8);
    let lines = rows - customers - purchases;
    let parent = |of: usize, parents: usize| match crossed {
        false => format!("(i - 1) * {parents} / {of} + 1"),
        true => format!("{parents} - (i - 1) * {parents} / {of}"),
    };
    let sql = [
        format!("{} INSERT INTO customer SELECT i, 'c' || i FROM n", numbers(customers)),
        format!(
            "{} INSERT INTO purchase SELECT i, {}, i FROM n",
            numbers(purchases),
            parent(purchases, customers)
        ),
        format!("{} INSERT INTO line SELECT i, {}, i FROM n", numbers(lines), parent(lines, purchases)),
    ];
    run(db, &sql.join(";\n")).await;
}

/// How many rounds the cloud's ledger knows of.
async fn rounds(bench: &Bench) -> usize {
    there(&bench.cloud.connect().await, "SELECT sum(round_number) FROM tidewater.devices")
        .await
        .parse()
        .unwrap()
}

/// Everything arrives, and nobody is parked or in conflict with himself. Answers with the rounds that it took.
async fn flushed(bench: &Bench, db: &Database, tables: &[&str]) -> usize {
    let before = match here(db, "SELECT count(*) FROM _tidewater_meta WHERE key = 'last_round'").as_str() {
        "0" => 0,
        _ => rounds(bench).await,
    };
    bench.proxy.start();
    wait_until_flushed(db).await;
    bench.wait_until_equal(db, tables).await;
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0), "{status:?} {:#?}", bench.log.all());
    rounds(bench).await - before
}

async fn offline(bench: &Bench, db: &Database) {
    bench.proxy.stop();
    wait_for(db, "offline", |status| status.sync.state == "offline").await;
}

/// A device with windows of this size, and these tables.
async fn device(bench: &Bench, window: usize, schema: &str) -> Database {
    let db = bench.open_with(bench.settings().set("sync.window_rows_max", window)).await;
    run(&db, schema).await;
    db
}

/// 4,000 rows of a shop take some windows of 1,000 rows, each of them in eight parts; so does deleting them all.
#[actix_rt::test]
async fn a_shop_goes_in_few_rounds() {
    for crossed in [false, true] {
        let bench = Bench::new().await;
        let db = device(&bench, 1000, SHOP).await;
        fill_shop(&db, 4_000, crossed).await;
        let inserts = flushed(&bench, &db, TABLES).await;
        assert!(inserts <= 16, "{inserts} rounds");
        offline(&bench, &db).await;
        // Without them, the server reads all lines for each purchase that goes.
        let indexes = "CREATE INDEX ON line (purchase); CREATE INDEX ON purchase (customer)";
        bench.cloud.connect().await.batch_execute(indexes).await.unwrap();
        run(&db, "DELETE FROM line;\nDELETE FROM purchase;\nDELETE FROM customer").await;
        let deletions = flushed(&bench, &db, TABLES).await;
        assert!(deletions <= 20, "{deletions} rounds");
        eprintln!("crossed {crossed}: {inserts} rounds of inserts, {deletions} of deletions");
        db.shutdown().await.unwrap();
    }
}

/// Trees, whose parents have the larger keys, and circles of tables: the same.
#[actix_rt::test]
async fn trees_and_circles_go_in_few_rounds() {
    let bench = Bench::new().await;
    let schema = "CREATE TABLE node (id INTEGER PRIMARY KEY, up INTEGER REFERENCES node (id));
CREATE TABLE one (id INTEGER PRIMARY KEY, other INTEGER REFERENCES two (id));
CREATE TABLE two (id INTEGER PRIMARY KEY, other INTEGER REFERENCES one (id))";
    let tables = &["node", "one", "two"];
    let db = device(&bench, 800, schema).await;
    let rows = [
        format!(
            "{} INSERT INTO node SELECT 3001 - i, CASE WHEN i > 1 THEN 3001 - i / 2 END FROM n ORDER BY i",
            numbers(3000)
        ),
        format!("{} INSERT INTO one SELECT i, NULL FROM n", numbers(500)),
        format!("{} INSERT INTO two SELECT i, 501 - i FROM n", numbers(500)),
        "UPDATE one SET other = id % 7 * 50 + 1 WHERE id % 3 > 0".into(),
    ];
    run(&db, &rows.join(";\n")).await;
    let inserts = flushed(&bench, &db, tables).await;
    assert!(inserts <= 16, "{inserts} rounds");
    offline(&bench, &db).await;
    run(&db, "UPDATE one SET other = NULL;\nDELETE FROM two;\nDELETE FROM one;\nDELETE FROM node").await;
    flushed(&bench, &db, tables).await;
    db.shutdown().await.unwrap();
}

/// Tables that somebody made in the cloud with foreign keys that are checked at once, and do not wait for the end: no part of
/// a round comes before what it needs, whether rows come or go.
#[actix_rt::test]
async fn foreign_keys_that_are_checked_at_once_are_kept_by_every_part() {
    for (window, action) in [(1, "NO ACTION"), (24, "RESTRICT"), (24, "CASCADE"), (400, "NO ACTION")] {
        let bench = Bench::new().await;
        let client = bench.cloud.connect().await;
        let there_first =
            SHOP.replace("INTEGER", "bigint").replace("(id)", &format!("(id) ON DELETE {action}"));
        client.batch_execute(&there_first).await.unwrap();
        let db = device(&bench, window, SHOP).await;
        let rows = if window == 1 { 50 } else { 400 };
        fill_shop(&db, rows, true).await;
        flushed(&bench, &db, TABLES).await;
        offline(&bench, &db).await;
        // Some go, with all that they had; some of that moves to others; and others come.
        let sql = "INSERT INTO customer SELECT id + 1000, name FROM customer WHERE id % 3 = 0;
UPDATE purchase SET customer = customer + 1000, v = v + 1 WHERE customer % 3 = 0;
DELETE FROM line WHERE purchase IN (SELECT id FROM purchase WHERE customer % 3 = 1);
DELETE FROM purchase WHERE customer % 3 = 1;
DELETE FROM customer WHERE id % 3 < 2 AND id < 1000 AND id NOT IN (SELECT customer FROM purchase);
INSERT INTO purchase SELECT id + 10000, customer, v FROM purchase WHERE id % 5 = 0";
        run(&db, sql).await;
        flushed(&bench, &db, TABLES).await;
        db.shutdown().await.unwrap();
    }
}

/// A value that a row of an early part takes is freed by one of a late part, in a table whose unique values are checked at
/// once: both arrive, and nobody is parked meanwhile.
#[actix_rt::test]
async fn a_value_that_a_later_part_frees_arrives() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TABLE shelf (id bigint PRIMARY KEY);
             CREATE TABLE item (id bigint PRIMARY KEY, shelf bigint REFERENCES shelf (id), code bigint UNIQUE)",
        )
        .await
        .unwrap();
    let schema = "CREATE TABLE shelf (id INTEGER PRIMARY KEY);
CREATE TABLE item (id INTEGER PRIMARY KEY, shelf INTEGER REFERENCES shelf (id), code INTEGER UNIQUE)";
    let db = device(&bench, 100, schema).await;
    let rows = [
        format!("{} INSERT INTO shelf SELECT i FROM n", numbers(30)),
        format!("{} INSERT INTO item SELECT i, i % 30 + 1, i FROM n", numbers(300)),
    ];
    run(&db, &rows.join(";\n")).await;
    flushed(&bench, &db, &["shelf", "item"]).await;
    offline(&bench, &db).await;
    // The first takes the value of the last of a hundred; a new one takes that of the last of all.
    let sql = "INSERT INTO shelf VALUES (99);
UPDATE item SET code = 1001 WHERE id = 95;
UPDATE item SET code = 95, shelf = 99 WHERE id = 1;
UPDATE item SET shelf = 99 WHERE id BETWEEN 2 AND 94;
UPDATE item SET code = 1000 WHERE id = 300;
INSERT INTO item VALUES (0, 99, 300)";
    run(&db, sql).await;
    flushed(&bench, &db, &["shelf", "item"]).await;
    assert_eq!(bench.log.count("parked"), 0, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Light documents with heavy pages: no round weighs more than its bound and one row, and all of them arrive; and go.
#[actix_rt::test]
async fn parts_that_are_too_heavy_wait_for_the_next_round() {
    let bench = Bench::new().await;
    let schema = "CREATE TABLE doc (id INTEGER PRIMARY KEY, title TEXT);
CREATE TABLE page (id INTEGER PRIMARY KEY, doc INTEGER NOT NULL REFERENCES doc (id), body BLOB)";
    let tables = &["doc", "page"];
    // Parts of three rows.
    let db = device(&bench, 24, schema).await;
    let rows = [
        format!("{} INSERT INTO doc SELECT i, 'title' FROM n", numbers(12)),
        format!("{} INSERT INTO page SELECT i, 13 - (i + 1) / 2, zeroblob(1 << 20) FROM n", numbers(24)),
    ];
    run(&db, &rows.join(";\n")).await;
    flushed(&bench, &db, tables).await;
    // By the transaction that inserted them.
    let heaviest =
        "SELECT max(bytes) FROM (SELECT sum(octet_length(body)) AS bytes FROM page GROUP BY xmin::text) AS r";
    let heaviest: usize = there(&bench.cloud.connect().await, heaviest).await.parse().unwrap();
    assert!((2 << 20..=17 << 20).contains(&heaviest), "{heaviest}");
    offline(&bench, &db).await;
    run(&db, "DELETE FROM page;\nDELETE FROM doc").await;
    flushed(&bench, &db, tables).await;
    db.shutdown().await.unwrap();
}

/// Two devices that change the same rows of related tables, and begin with different ones, get through: who waits for the
/// other's locks is let go by the server, and tries again.
#[actix_rt::test]
async fn two_devices_over_the_same_rows_get_through() {
    let bench = Bench::new().await;
    let db = device(&bench, 400, SHOP).await;
    fill_shop(&db, 1200, false).await;
    flushed(&bench, &db, TABLES).await;
    let other_bench = bench.another();
    other_bench.proxy.start();
    let other = device(&other_bench, 400, SHOP).await;
    other_bench.wait_until_equal(&other, TABLES).await;
    for turn in 0..6 {
        run(&db, "UPDATE line SET v = v + 1;\nUPDATE purchase SET v = v + 1;\nUPDATE customer SET name = name || 'a'").await;
        run(&other, "UPDATE customer SET name = name || 'b';\nUPDATE purchase SET v = v + 2").await;
        if turn % 2 == 0 {
            run(&other, "UPDATE line SET v = v + 2").await;
        }
    }
    wait_until_flushed(&db).await;
    wait_until_flushed(&other).await;
    bench.wait_until_equal(&db, TABLES).await;
    other_bench.wait_until_equal(&other, TABLES).await;
    for (db, bench) in [(&db, &bench), (&other, &other_bench)] {
        let status = db.status_summary().await;
        assert_eq!(status.sync.parked, 0, "{status:?} {:#?}", bench.log.all());
    }
    db.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}
