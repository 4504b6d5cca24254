//! P4: an app may decide conflicts itself. What loses is on record as ever, and what it does wrong costs nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::sync::Arc;

use harness::{Bench, here, run, wait_for, wait_until_flushed, wait_until_here, wait_until_there};
use tidewater::{Database, Dispute, Value, Verdict};
use tidewater_test_support::Postgres;
use tokio_postgres::Client;

const STOCK: &str = "CREATE TABLE stock (id INTEGER PRIMARY KEY, pieces INTEGER CHECK (pieces < 1000), place TEXT UNIQUE, note TEXT)";
const ROWS: &str = "SELECT group_concat(id || ':' || pieces || ' ' || place || ' ' || note, ';') FROM (SELECT * FROM stock ORDER BY id)";
const THEIR_ROWS: &str =
    "SELECT string_agg(id || ':' || pieces || ' ' || place || ' ' || note, ';' ORDER BY id) FROM stock";
const LOST: &str = "SELECT group_concat(concat, ';') FROM (SELECT key || coalesce(column, '*') || ' ' || coalesce(local, '-') \
                    || ' ' || coalesce(cloud, '-') || ' ' || kept AS concat FROM _tidewater_conflicts ORDER BY key, column DESC)";

/// Counts add up; a note is asked about and not decided; a place is made of both, which a unique column cannot be; a deletion
/// never wins.
fn decide(dispute: &Dispute<'_>) -> Option<Verdict> {
    assert_eq!(dispute.table(), "stock");
    match (dispute.column(), dispute.base(), dispute.local(), dispute.cloud()) {
        (
            Some("pieces"),
            Some(Value::Integer(base)),
            Some(Value::Integer(here)),
            Some(Value::Integer(there)),
        ) => Some(Verdict::Value(Value::Integer(here + there - base))),
        (Some("place"), ..) => Some(Verdict::Value(Value::Text("both".to_owned()))),
        (None, ..) if dispute.is_deleted_here() => {
            assert!(dispute.there("note").is_some() && dispute.here("note").is_none());
            Some(Verdict::Cloud)
        }
        (None, ..) => {
            assert!(dispute.is_deleted_there() && dispute.here("NOTE").is_some());
            Some(Verdict::Local)
        }
        _ => None,
    }
}

type Decide = fn(&Dispute<'_>) -> Option<Verdict>;

/// A device with three rows of stock, and the cloud behind it.
struct Shop {
    bench: Bench,
    db: Database,
    client: Client,
}

impl Shop {
    async fn new(server: &Postgres, decide: Decide) -> Self {
        let bench = Bench::on(server).await;
        let db = bench.open_with(bench.settings().decide_conflicts(Arc::new(decide))).await;
        run(&db, STOCK).await;
        run(&db, "INSERT INTO stock VALUES (1, 10, 'a', 'n'), (2, 10, 'b', 'n'), (3, 10, 'c', 'n')").await;
        bench.proxy.start();
        bench.wait_until_equal(&db, &["stock"]).await;
        wait_until_flushed(&db).await;
        db.flush().await.unwrap();
        let client = bench.cloud.connect().await;
        Self { bench, db, client }
    }

    /// What is done on either side while they are apart, and then they meet.
    async fn apart(&self, here: &str, there: &str) {
        self.bench.proxy.stop();
        wait_for(&self.db, "offline", |status| status.sync.state == "offline").await;
        run(&self.db, here).await;
        self.client.batch_execute(there).await.unwrap();
        self.bench.proxy.start();
        wait_for(&self.db, "connected", |status| status.sync.state != "offline").await;
        wait_until_flushed(&self.db).await;
        self.db.flush().await.unwrap();
    }

    async fn both_have(&self, rows: &str) {
        wait_until_there(&self.db, &self.client, THEIR_ROWS, rows).await;
        wait_until_here(&self.db, ROWS, rows).await;
        self.bench.wait_until_equal(&self.db, &["stock"]).await;
    }
}

/// Two counts become their sum, on both sides, and both are on record; what the app leaves open, the policy decides.
#[actix_rt::test]
async fn the_app_makes_one_value_of_two() {
    let shop = Shop::new(Postgres::shared(), decide).await;
    shop.apart(
        "UPDATE stock SET pieces = 7, note = 'here' WHERE id = 1",
        "UPDATE stock SET pieces = 15, note = 'there' WHERE id = 1",
    )
    .await;
    shop.both_have("1:12 a there;2:10 b n;3:10 c n").await;
    let lost = "[1]pieces 7 15 neither;[1]note \"here\" \"there\" cloud";
    assert_eq!(here(&shop.db, LOST), lost);
    wait_until_there(&shop.db, &shop.client, "SELECT count(*) FROM tidewater.conflicts", "2").await;
    // What was here is brought back as what it is: a value.
    let id = shop.db.conflicts(None, None, 10).unwrap().rows[1].id;
    shop.db.restore_conflicts(&[id]).await.unwrap();
    shop.both_have("1:7 a there;2:10 b n;3:10 c n").await;
    shop.db.shutdown().await.unwrap();
}

/// The same where the round meets the cloud's change before the feed shows it, and while the app goes on editing.
#[actix_rt::test]
async fn counts_add_up_where_the_feed_is_held_back() {
    let server = Postgres::start();
    let shop = Shop::new(&server, decide).await;
    let holder = shop.bench.cloud.connect().await;
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    for _ in 0..5 {
        shop.client.batch_execute("UPDATE stock SET pieces = pieces + 1 WHERE id < 3").await.unwrap();
        run(&shop.db, "UPDATE stock SET pieces = pieces + 100 WHERE id = 2;\nUPDATE stock SET pieces = pieces + 10 WHERE id = 1").await;
        wait_until_flushed(&shop.db).await;
    }
    wait_until_there(&shop.db, &shop.client, THEIR_ROWS, "1:65 a n;2:515 b n;3:10 c n").await;
    holder.batch_execute("COMMIT").await.unwrap();
    shop.both_have("1:65 a n;2:515 b n;3:10 c n").await;
    shop.db.shutdown().await.unwrap();
}

/// A deletion loses against whatever the other side did, although it came later.
#[actix_rt::test]
async fn the_app_decides_about_deletions() {
    let shop = Shop::new(Postgres::shared(), decide).await;
    shop.client.batch_execute("UPDATE stock SET note = 'x'").await.unwrap();
    wait_until_here(&shop.db, "SELECT count(*) FROM stock WHERE note = 'x'", "3").await;
    shop.apart(
        "UPDATE stock SET note = 'edited' WHERE id = 1;\nDELETE FROM stock WHERE id = 2",
        "DELETE FROM stock WHERE id = 1; UPDATE stock SET note = 'kept' WHERE id = 2",
    )
    .await;
    shop.both_have("1:10 a edited;2:10 b kept;3:10 c x").await;
    let lost = here(
        &shop.db,
        "SELECT group_concat(k) FROM (SELECT key || kept AS k FROM _tidewater_conflicts ORDER BY key)",
    );
    assert_eq!(lost, "[1]local,[2]cloud");
    shop.db.shutdown().await.unwrap();
}

/// What cannot be set is no verdict: a value of a unique column is the policy's, and one that the table refuses leaves what was
/// here, which is sent as an edit of ours. Both values are on record.
#[actix_rt::test]
async fn what_cannot_be_so_is_no_verdict() {
    let shop = Shop::new(Postgres::shared(), decide).await;
    shop.apart(
        "UPDATE stock SET place = 'here' WHERE id = 1;\nUPDATE stock SET pieces = 600 WHERE id = 2",
        "UPDATE stock SET place = 'there' WHERE id = 1; UPDATE stock SET pieces = 700 WHERE id = 2",
    )
    .await;
    shop.both_have("1:10 there n;2:600 b n;3:10 c n").await;
    assert_eq!(here(&shop.db, LOST), "[1]place \"here\" \"there\" cloud;[2]pieces 600 700 neither");
    shop.db.shutdown().await.unwrap();
}

/// An app whose function panics loses nothing by it: the policy decides, everything arrives, and the log has one line.
#[actix_rt::test]
async fn a_panic_is_no_verdict() {
    let shop =
        Shop::new(Postgres::shared(), |_| std::panic::resume_unwind(Box::new("a fault of the app"))).await;
    for n in 0..3 {
        shop.apart(
            &format!("UPDATE stock SET note = 'here {n}';\nDELETE FROM stock WHERE id = 3"),
            &format!("UPDATE stock SET note = 'there {n}'"),
        )
        .await;
        let rest = format!(";3:10 c there {n}");
        shop.both_have(&format!("1:10 a there {n};2:10 b there {n}{rest}")).await;
    }
    let status = shop.db.status_summary().await;
    assert!(status.actors.iter().all(|actor| actor.restarts == 0), "{status:?}");
    assert_eq!(shop.bench.log.count("function for conflicts panicked"), 1, "{:?}", shop.bench.log.all());
    assert_eq!(here(&shop.db, "SELECT count(*) FROM _tidewater_conflicts WHERE kept = 'cloud'"), "9");
    shop.db.shutdown().await.unwrap();
}
