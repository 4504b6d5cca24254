//! P4: a pulled row never overwrites an unflushed edit silently, and what loses a conflict stays on record.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{
    Bench, PATIENCE, here, run, there, wait_for, wait_until_flushed, wait_until_here, wait_until_there,
};
use tidewater::{Database, Which};
use tidewater_test_support::{Postgres, shell, wait};
use tokio_postgres::Client;

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE);
CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";
const TABLES: &[&str] = &["customer", "purchase", "note"];

/// Two connected devices with the same customer and the same purchase.
struct Two {
    bench: Bench,
    other: Bench,
    a: Database,
    b: Database,
    client: Client,
}

impl Two {
    async fn new() -> Self {
        Self::on(Postgres::shared()).await
    }

    async fn on(server: &Postgres) -> Self {
        let bench = Bench::on(server).await;
        let a = bench.open().await;
        run(&a, SHOP).await;
        run(
            &a,
            "INSERT INTO customer VALUES (1, 'Ada'), (2, 'Bo');\nINSERT INTO purchase VALUES (1, 1), (2, 2)",
        )
        .await;
        bench.proxy.start();
        bench.wait_until_equal(&a, TABLES).await;
        let other = bench.another();
        let b = other.open().await;
        run(&b, SHOP).await;
        other.proxy.start();
        other.wait_until_equal(&b, TABLES).await;
        wait_until_flushed(&a).await;
        let client = bench.cloud.connect().await;
        Self { bench, other, a, b, client }
    }

    /// A is offline and has deleted the customer, who had one purchase.
    async fn a_deletes_the_customer_offline(&self) {
        self.bench.proxy.stop();
        wait_for(&self.a, "offline", |status| status.sync.state == "offline").await;
        run(&self.a, "DELETE FROM customer WHERE id = 1;\nINSERT INTO note VALUES (1, 'unrelated')").await;
        assert_eq!(here(&self.a, "SELECT count(*) FROM purchase"), "1", "cascaded here");
    }

    /// Purchase 9 and its customer are everywhere, and A's deletion is on record.
    async fn the_purchase_survived(self) {
        for (bench, db) in [(&self.bench, &self.a), (&self.other, &self.b)] {
            wait_until_here(db, "SELECT group_concat(id) FROM purchase WHERE id = 9", "9").await;
            wait_until_here(db, "SELECT name FROM customer WHERE id = 1", "Ada").await;
            bench.wait_until_equal(db, TABLES).await;
            wait_until_flushed(db).await;
            assert_eq!(db.status_summary().await.sync.parked, 0);
        }
        let logged =
            "FROM _tidewater_conflicts WHERE table_name = 'customer' AND key = '[1]' AND local IS NULL";
        assert_eq!(here(&self.a, &format!("SELECT group_concat(kept) {logged}")), "cloud");
        self.a.shutdown().await.unwrap();
        self.b.shutdown().await.unwrap();
    }
}

/// A purchase made elsewhere outlives the deletion of its customer by a device that had not seen it.
#[actix_rt::test]
async fn a_child_from_another_device_outlives_the_deletion_of_its_parent_here() {
    let two = Two::new().await;
    two.a_deletes_the_customer_offline().await;
    let written = run(&two.b, "INSERT INTO purchase VALUES (9, 1)").await;
    two.b.synced(&written).await.unwrap();
    two.bench.proxy.start();
    two.the_purchase_survived().await;
}

/// The same while somebody's transaction in another database keeps the purchase out of the feed: the deletion waits, and
/// nothing else waits with it.
#[actix_rt::test]
async fn a_child_that_the_feed_does_not_show_yet_is_not_cascaded_away() {
    let server = Postgres::start();
    let two = Two::on(&server).await;
    let elsewhere = server.create_database().await;
    let holder = elsewhere.connect().await;
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    two.a_deletes_the_customer_offline().await;
    run(&two.a, "DELETE FROM customer WHERE id = 2").await;
    let written = run(&two.b, "INSERT INTO purchase VALUES (9, 1)").await;
    two.b.synced(&written).await.unwrap();
    two.bench.proxy.start();
    wait_until_there(&two.a, &two.client, "SELECT count(*) FROM customer WHERE id = 2", "0").await;
    wait_until_there(&two.a, &two.client, "SELECT count(*) FROM note", "1").await;
    // Further cycles change nothing about it, and fail for nobody.
    for _ in 0..3 {
        two.a.flush().await.unwrap();
    }
    assert!(two.a.status_summary().await.sync.pending > 0, "the deletion waits");
    assert_eq!(there(&two.client, "SELECT count(*) FROM purchase WHERE id = 9").await, "1");
    holder.batch_execute("COMMIT").await.unwrap();
    two.the_purchase_survived().await;
}

/// The same when the purchase is committed by plain SQL while the deletion already waits for its lock.
#[actix_rt::test]
async fn a_child_committed_between_the_pull_and_the_flush_is_not_cascaded_away() {
    let two = Two::new().await;
    two.a_deletes_the_customer_offline().await;
    let plain = two.bench.cloud.connect().await;
    plain.batch_execute("BEGIN; INSERT INTO purchase VALUES (9, 1)").await.unwrap();
    two.bench.proxy.start();
    wait::until("the deletion waits for the lock", PATIENCE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = there(&two.client, sql).await;
        if waiting == "0" { Err(format!("{:?}", two.a.status_summary().await.sync)) } else { Ok(()) }
    })
    .await;
    plain.batch_execute("COMMIT").await.unwrap();
    two.the_purchase_survived().await;
}

/// Unique values that the cloud swapped arrive in a row with an edit of another column, and the edit stays.
#[actix_rt::test]
async fn a_pulled_swap_of_unique_values_keeps_the_edit_beside_it() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, label TEXT)").await;
    run(&db, "INSERT INTO item VALUES (1, 'a', 'one'), (2, 'b', 'two'), (3, 'c', 'three')").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["item"]).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "UPDATE item SET label = 'mine' WHERE id = 1").await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute("UPDATE item SET code = CASE id WHEN 1 THEN 'b' WHEN 2 THEN 'c' ELSE 'a' END")
        .await
        .unwrap();
    bench.proxy.start();
    let rows = "SELECT group_concat(id || code || label) FROM item";
    wait_until_here(&db, rows, "1bmine,2ctwo,3athree").await;
    bench.wait_until_equal(&db, &["item"]).await;
    wait_until_flushed(&db).await;
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0), "{status:?}");
    db.shutdown().await.unwrap();
}

/// A row that was deleted here before it was ever synced, and that the cloud has, comes back and is told.
#[actix_rt::test]
async fn a_row_deleted_before_the_first_sync_comes_back_and_is_told() {
    let bench = Bench::new().await;
    shell::sqlite3_shell(
        bench.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);
         INSERT INTO note VALUES (1, 'kept there'), (2, 'both');",
    );
    let db = bench.open().await;
    run(&db, "DELETE FROM note WHERE id = 1").await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text);
             INSERT INTO note VALUES (1, 'kept there'), (2, 'both')",
        )
        .await
        .unwrap();
    bench.proxy.start();
    wait_until_here(&db, "SELECT group_concat(id || body) FROM note", "1kept there,2both").await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    assert_eq!(here(&db, "SELECT group_concat(key || kept) FROM _tidewater_conflicts"), "[1]cloud");
    // In the cloud as well, though nothing else is left to be sent.
    wait_until_there(
        &db,
        &client,
        "SELECT string_agg(key || kept, ',') FROM tidewater.conflicts",
        "[1]cloud",
    )
    .await;
    db.shutdown().await.unwrap();
}

/// A conflict is on record in the cloud once, though the round that tells it is
/// cut after its COMMIT.
#[actix_rt::test]
async fn a_conflict_is_told_to_the_cloud_exactly_once() {
    let bench = Bench::new().await;
    // The cut is a failure right after a reconnection, which the circuit answers with a pause.
    let db = bench.open_with(bench.settings().set("circuit.open_s", 0.2)).await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    run(&db, "INSERT INTO note VALUES (1, 'base'), (2, 'base')").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;

    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client.batch_execute("UPDATE note SET body = 'there' WHERE id = 1").await.unwrap();
    run(&db, "UPDATE note SET body = 'here' WHERE id = 1").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    let told =
        "SELECT string_agg(concat_ws(' ', key, col, local, kept), ';' ORDER BY id) FROM tidewater.conflicts";
    wait_until_there(&db, &client, told, "[1] body \"here\" local").await;

    // The round that tells of the second is cut after its COMMIT.
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client.batch_execute("UPDATE note SET body = 'there too' WHERE id = 2").await.unwrap();
    run(&db, "UPDATE note SET body = 'here too' WHERE id = 2;\nINSERT INTO note VALUES (3, 'along')").await;
    let blocker = bench.cloud.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE note IN SHARE MODE").await.unwrap();
    bench.proxy.start();
    wait::until("the round waits for the lock", PATIENCE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = there(&client, sql).await;
        if waiting == "0" { Err(format!("{:?}", db.status_summary().await.sync)) } else { Ok(()) }
    })
    .await;
    let cut = bench.proxy.hold_when_client_sends(b"COMMIT");
    blocker.batch_execute("COMMIT").await.unwrap();
    cut.triggered(PATIENCE).await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    let more = run(&db, "INSERT INTO note VALUES (4, 'later')").await;
    db.synced(&more).await.unwrap();
    db.flush().await.unwrap();
    assert_eq!(there(&client, told).await, "[1] body \"here\" local;[2] body \"here too\" local");
    assert_eq!(here(&db, "SELECT group_concat(key || kept) FROM _tidewater_conflicts"), "[1]local,[2]local");
    db.shutdown().await.unwrap();
}

/// A deletion whose cascade in the cloud would take along a row that is parked here, with all that hangs on that, waits until it has
/// arrived where it moved to: what nobody deleted is there in the end.
#[actix_rt::test]
async fn a_deletion_takes_along_no_row_that_is_parked() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(
        &db,
        "CREATE TABLE shelf (id INTEGER PRIMARY KEY);
         CREATE TABLE box (id INTEGER PRIMARY KEY, shelf INTEGER REFERENCES shelf (id) ON DELETE CASCADE, n INTEGER);
         CREATE TABLE thing (id INTEGER PRIMARY KEY, box INTEGER REFERENCES box (id) ON DELETE CASCADE)",
    )
    .await;
    run(
        &db,
        "INSERT INTO shelf VALUES (1), (2);\nINSERT INTO box VALUES (1, 1, 0);\nINSERT INTO thing VALUES (1, 1), (2, 1)",
    )
    .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["shelf", "box", "thing"]).await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;
    client.batch_execute("ALTER TABLE box ADD CONSTRAINT light CHECK (n < 100)").await.unwrap();
    run(&db, "UPDATE box SET shelf = 2, n = 500 WHERE id = 1;\nDELETE FROM shelf WHERE id = 1").await;
    wait_for(&db, "parked", |status| status.sync.parked == 1 && status.sync.state == "idle").await;
    db.flush().await.unwrap();
    let there_are = "SELECT (SELECT count(*) FROM shelf) || ' ' || (SELECT count(*) FROM box) || ' ' || (SELECT count(*) FROM thing)";
    assert_eq!(there(&client, there_are).await, "2 1 2");
    assert_eq!(here(&db, there_are), "1 1 2");
    client.batch_execute("ALTER TABLE box DROP CONSTRAINT light").await.unwrap();
    db.retry_parked(Which::All).await.unwrap();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["shelf", "box", "thing"]).await;
    assert_eq!(there(&client, there_are).await, "1 1 2");
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0), "{status:?}");
    db.shutdown().await.unwrap();
}
