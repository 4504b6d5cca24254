//! P5: the pull cursor never passes a change that was not applied.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{
    Bench, PATIENCE, batch, here, run, wait_for, wait_until_available, wait_until_flushed, wait_until_here,
    wait_until_there,
};
use tidewater::Database;
use tidewater_test_support::Postgres;
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// A connected device with five notes, equal on both sides.
async fn five_notes() -> (Bench, Database, Client) {
    let bench = Bench::new().await;
    let db = bench.open().await;
    db.write(batch(NOTE)).await.unwrap();
    run(&db, "INSERT INTO note VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e')").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;
    (bench, db, client)
}

async fn unharmed(db: &Database) {
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts, status.sync.pending), (0, 0, 0), "{status:?}");
}

/// A transaction that began first and commits last is not skipped by the one that overtook it.
#[actix_rt::test]
async fn transactions_that_commit_in_another_order_than_they_began_all_arrive() {
    let (bench, db, second) = five_notes().await;
    let first = bench.cloud.connect().await;
    first.batch_execute("BEGIN; INSERT INTO note VALUES (100, 'began first')").await.unwrap();
    second.batch_execute("BEGIN; INSERT INTO note VALUES (101, 'began second')").await.unwrap();
    second.batch_execute("UPDATE note SET body = 'overtaken' WHERE id = 1; COMMIT").await.unwrap();
    // Cycles in between, with a round of our own that is younger than both.
    db.flush().await.unwrap();
    let ours = run(&db, "INSERT INTO note VALUES (102, 'ours')").await;
    db.synced(&ours).await.unwrap();
    db.flush().await.unwrap();
    assert_eq!(here(&db, "SELECT count(*) FROM note WHERE id = 100"), "0");
    first.batch_execute("UPDATE note SET body = body || '!' WHERE id = 2; COMMIT").await.unwrap();
    wait_until_here(&db, "SELECT group_concat(id) FROM note WHERE id >= 100", "100,101,102").await;
    bench.wait_until_equal(&db, &["note"]).await;
    unharmed(&db).await;
    db.shutdown().await.unwrap();
}

/// The feed is in the order of the transactions' numbers, not of their digits: no page ends beyond what it does not have.
#[actix_rt::test]
async fn numbers_of_transactions_may_grow_a_digit_within_a_page() {
    let server = Postgres::start();
    let bench = Bench::on(&server).await;
    let db = bench.open_with(bench.settings().set("sync.page_rows_max", 16)).await;
    bench.proxy.start();
    run(&db, NOTE).await;
    let receipt = run(&db, "INSERT INTO note VALUES (0, 'the first')").await;
    db.synced(&receipt).await.unwrap();
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;

    let client = bench.cloud.connect().await;
    let now: i64 = client.query_one("SELECT pg_current_xact_id()::text::bigint", &[]).await.unwrap().get(0);
    let digit_more = (0..).map(|digits| 10_i64.pow(digits)).find(|power| power - 20 > now).unwrap();
    let script = format!(
        "DO $$ BEGIN
            WHILE pg_current_xact_id()::text::bigint < {digit_more} - 20 LOOP COMMIT; END LOOP;
            FOR i IN 1..60 LOOP INSERT INTO note VALUES (i, 'one of many'); COMMIT; END LOOP;
         END $$"
    );
    client.batch_execute(&script).await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "61");
    unharmed(&db).await;
    db.shutdown().await.unwrap();
}

/// What is changed while the feed's triggers are switched off, or gone, arrives once the product has them back.
#[actix_rt::test]
async fn changes_made_without_the_feed_triggers_arrive_when_they_are_back() {
    let (bench, db, client) = five_notes().await;
    // Connected.
    client
        .batch_execute(
            "BEGIN; DROP TRIGGER tidewater_feed_update ON note; DROP TRIGGER tidewater_feed_delete ON note;
             UPDATE note SET body = 'unseen' WHERE id = 1; DELETE FROM note WHERE id = 2; COMMIT",
        )
        .await
        .unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    client
        .batch_execute(
            "BEGIN; ALTER TABLE note DISABLE TRIGGER tidewater_feed_insert;
             INSERT INTO note VALUES (6, 'unseen too'); COMMIT",
        )
        .await
        .unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    // Disconnected.
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client
        .batch_execute(
            "ALTER TABLE note DISABLE TRIGGER USER; UPDATE note SET body = 'still unseen' WHERE id = 3;
             DELETE FROM note WHERE id = 4; INSERT INTO note VALUES (7, 'x')",
        )
        .await
        .unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    // And the feed is whole again.
    client.batch_execute("UPDATE note SET body = body || '.'").await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(
        here(&db, "SELECT group_concat(id || body) FROM note"),
        "1unseen.,3still unseen.,5e.,6unseen too.,7x."
    );
    unharmed(&db).await;
    db.shutdown().await.unwrap();
}

/// A TRUNCATE empties the table here as well, except for what the cloud had not seen yet.
#[actix_rt::test]
async fn a_truncate_arrives_and_pending_rows_survive_it() {
    let (bench, db, client) = five_notes().await;
    client.batch_execute("TRUNCATE note").await.unwrap();
    wait_until_here(&db, "SELECT count(*) FROM note", "0").await;
    run(&db, "INSERT INTO note VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;

    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client.batch_execute("TRUNCATE note").await.unwrap();
    run(&db, "INSERT INTO note VALUES (9, 'pending');\nUPDATE note SET body = 'edited' WHERE id = 1").await;
    bench.proxy.start();
    wait_until_available(&db).await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_here(&db, "SELECT group_concat(id || body) FROM note", "1edited,9pending").await;
    wait_until_there(
        &db,
        &client,
        "SELECT string_agg(id || body, ',' ORDER BY id) FROM note",
        "1edited,9pending",
    )
    .await;
    wait_until_flushed(&db).await;
    db.shutdown().await.unwrap();
}

/// A column that comes to a file later brings the values that went past it before.
#[actix_rt::test]
async fn a_column_added_later_brings_the_values_that_went_past() {
    let bench = Bench::new().await;
    let a = bench.open().await;
    run(&a, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, x TEXT)").await;
    run(&a, "INSERT INTO note VALUES (1, 'a', 'x1'), (2, 'b', 'x2'), (3, 'c', NULL)").await;
    bench.proxy.start();
    bench.wait_until_equal(&a, &["note"]).await;
    let other = bench.another();
    let b = other.open().await;
    run(&b, NOTE).await;
    other.proxy.start();
    wait_until_here(&b, "SELECT count(*) FROM note", "3").await;
    let written = run(
        &a,
        "UPDATE note SET x = 'later' WHERE id = 3;\nUPDATE note SET x = 'y1', body = 'A' WHERE id = 1",
    )
    .await;
    a.synced(&written).await.unwrap();
    wait_until_here(&b, "SELECT body FROM note WHERE id = 1", "A").await;
    b.flush().await.unwrap();
    run(&b, "ALTER TABLE note ADD COLUMN x TEXT").await;
    wait_until_here(&b, "SELECT group_concat(x) FROM note", "y1,x2,later").await;
    other.wait_until_equal(&b, &["note"]).await;
    bench.wait_until_equal(&a, &["note"]).await;
    unharmed(&a).await;
    unharmed(&b).await;
    a.shutdown().await.unwrap();
    b.shutdown().await.unwrap();
}

/// Two populated sides become their union: equal rows make no conflict, each differing one is told.
#[actix_rt::test]
async fn a_first_sync_of_two_populated_sides_makes_their_union() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text);
             INSERT INTO note SELECT n, 'same ' || n FROM generate_series(1, 10) AS n;
             INSERT INTO note SELECT n, 'there ' || n FROM generate_series(11, 15) AS n;
             INSERT INTO note SELECT n, 'only there' FROM generate_series(21, 25) AS n",
        )
        .await
        .unwrap();
    let mut local = format!("{NOTE};\n");
    for n in 1..=20 {
        let body = match n {
            1..=10 => "same ",
            11..=15 => "here ",
            _ => "only here ",
        };
        local += &format!("INSERT INTO note VALUES ({n}, '{body}{n}');\n");
    }
    tidewater_test_support::shell::sqlite3_shell(bench.path(), &local);
    let db = bench.open().await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "25");
    assert_eq!(here(&db, "SELECT count(*) FROM note WHERE body LIKE 'only%' AND id > 15"), "10");
    let logged = "SELECT group_concat(key) FROM (SELECT key FROM _tidewater_conflicts ORDER BY key)";
    assert_eq!(here(&db, logged), "[11],[12],[13],[14],[15]");
    assert_eq!(db.status_summary().await.sync.parked, 0);
    db.shutdown().await.unwrap();
}

/// A first sync that is cut three times goes on where it was each time.
#[actix_rt::test]
async fn an_interrupted_first_sync_resumes_where_it_was() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text);
             INSERT INTO note SELECT n, 'note ' || n || repeat('.', 60) FROM generate_series(1, 5000) AS n",
        )
        .await
        .unwrap();
    let db =
        bench.open_with(bench.settings().set("sync.page_rows_max", 100).set("circuit.open_s", 0.2)).await;
    run(&db, NOTE).await;
    let position = "SELECT CAST(json_extract(snapshot_after, '$[0]') AS INTEGER) FROM _tidewater_tables WHERE name = 'note'";
    let mut before = 0;
    for _ in 0..3 {
        let cut = bench.proxy.cut_server_to_client_after(130_000);
        bench.proxy.start();
        cut.triggered(PATIENCE).await;
        bench.proxy.stop();
        wait_for(&db, "offline", |status| status.sync.state == "offline").await;
        let reached: i64 = here(&db, position).parse().unwrap();
        assert!(reached > before && reached < 5_000, "{reached} after {before}");
        assert_eq!(here(&db, "SELECT count(*) FROM note"), reached.to_string());
        before = reached;
    }
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "5000");
    // A page may have been applied before the cut, and its acknowledgement is nobody's to lose: none was applied twice.
    assert_eq!(db.status_summary().await.sync.rows_warmed, 5_000);
    unharmed(&db).await;
    db.shutdown().await.unwrap();
}

/// One statement in the cloud touches light rows and, behind them, rows of which two are more than an answer may weigh: they come
/// home a few at a time, also where another table's key has more columns, and the failed attempts set nothing back.
#[actix_rt::test]
async fn heavy_rows_of_one_statement_come_home_a_few_at_a_time() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("sync.retry_delay_s", 0.05)).await;
    run(
        &db,
        "CREATE TABLE doc (id INTEGER PRIMARY KEY, body TEXT);\nCREATE TABLE pair (a INTEGER, b INTEGER, PRIMARY KEY (a, b))",
    )
    .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["doc", "pair"]).await;
    let rows = "INSERT INTO doc SELECT n, repeat('x', CASE WHEN n > 64 THEN 13000000 ELSE 100 END) FROM generate_series(1, 67) AS n";
    bench.cloud.execute_batch(rows).await;
    wait_until_here(&db, "SELECT count(*) FROM doc", "67").await;
    bench.wait_until_equal(&db, &["doc", "pair"]).await;
    db.shutdown().await.unwrap();
}
