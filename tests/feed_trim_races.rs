//! A trim at the worst moment: a device is held where it has just read what the trim then takes away (P4, P5). A binary of its
//! own, because the points are those of every device in the process.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use fail::FailScenario;
use harness::{Bench, PATIENCE, batch, here, run, there, wait_until_flushed, wait_until_there};
use tidewater::Database;
use tidewater_test_support::wait;
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// Whether a trim went past this device, which has not come back since.
fn passed(db: &Database) -> String {
    let device = here(db, "SELECT value FROM _tidewater_meta WHERE key = 'device'");
    format!("SELECT count(*) FROM tidewater.cursors WHERE xid IS NULL AND device = '{device}'")
}

/// Somebody's thread, held at a point.
#[derive(Clone, Default)]
struct Hold(Arc<AtomicU8>);

const HELD: u8 = 1;
const LET_GO: u8 = 2;

impl Hold {
    /// Whoever comes there first is held.
    fn at(point: &str) -> Self {
        let hold = Self::default();
        let inside = hold.clone();
        fail::cfg_callback(point, move || {
            if inside.0.compare_exchange(0, HELD, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let began = Instant::now();
                while inside.0.load(Ordering::SeqCst) == HELD && began.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        })
        .unwrap();
        hold
    }

    async fn held(&self) {
        wait::until("somebody is held", PATIENCE, async || match self.0.load(Ordering::SeqCst) {
            0 => Err("nobody".to_owned()),
            _ => Ok(()),
        })
        .await;
    }

    fn let_go(&self) {
        assert_eq!(self.0.swap(LET_GO, Ordering::SeqCst), HELD, "it went on by itself");
    }
}

/// `retire` is after how many days this one goes past others; 0.000_012 is a second.
async fn device(bench: &Bench, retire: f64) -> Database {
    let settings = bench
        .settings()
        .set("sync.trim_interval_s", 0.05)
        .set("sync.device_retire_days", retire)
        .set("proxy.timeout_s", 20);
    let db = bench.open_with(settings).await;
    db.write(batch(NOTE)).await.unwrap();
    bench.proxy.start();
    db
}

/// Waits until the feed is trimmed up to what this device has read.
async fn wait_until_trimmed(db: &Database, client: &Client) {
    wait_until_there(db, client, "SELECT count(*) <= 1 FROM tidewater.changes", "true").await;
}

/// A device whose round is about to begin, with an edit of a row that somebody else has changed since it last read, is gone
/// past by a trim that takes the entry away: the other's change is not overwritten, and the edit is on record.
async fn a_round_about_to_begin(bench: &Bench, a: &Database) {
    let other = bench.another();
    let b = device(&other, 30.0).await;
    other.wait_until_equal(&b, &["note"]).await;
    let client = bench.cloud.connect().await;
    let hold = Hold::at("syncer.encoded");
    run(&b, "UPDATE note SET body = 'edited' WHERE id = 1").await;
    hold.held().await;
    client.batch_execute("UPDATE note SET body = 'theirs' WHERE id = 1").await.unwrap();
    wait_until_there(a, &client, &passed(&b), "1").await;
    wait_until_trimmed(a, &client).await;
    hold.let_go();
    fail::remove("syncer.encoded");
    wait_until_flushed(&b).await;
    other.wait_until_equal(&b, &["note"]).await;
    let lost = "SELECT group_concat(key || local || cloud || kept) FROM _tidewater_conflicts";
    assert_eq!(here(&b, lost), "[1]\"edited\"\"theirs\"cloud");
    assert_eq!(there(&client, "SELECT body FROM note WHERE id = 1").await, "theirs");
    b.shutdown().await.unwrap();
}

/// A device that is about to fix its cursor, or to read its first page after it, while others write and trim, misses nothing.
async fn a_first_sync_about_to_begin(bench: &Bench, a: &Database) {
    let client = bench.cloud.connect().await;
    for point in ["syncer.registers", "syncer.registered"] {
        let other = bench.another();
        let hold = Hold::at(point);
        let b = device(&other, 30.0).await;
        hold.held().await;
        client
            .batch_execute(
                "INSERT INTO note SELECT max(id) + 1, 'meanwhile' FROM note; UPDATE note SET body = 'changed' WHERE id = 2;
                 DELETE FROM note WHERE id IN (SELECT min(id) FROM note WHERE id > 2)",
            )
            .await
            .unwrap();
        bench.wait_until_equal(a, &["note"]).await;
        if point == "syncer.registers" {
            wait_until_trimmed(a, &client).await;
        }
        hold.let_go();
        fail::remove(point);
        other.wait_until_equal(&b, &["note"]).await;
        // From there on it reads what comes.
        client.batch_execute("UPDATE note SET body = 'later' WHERE id = 2").await.unwrap();
        other.wait_until_equal(&b, &["note"]).await;
        wait_until_trimmed(a, &client).await;
        b.shutdown().await.unwrap();
    }
}

#[actix_rt::test]
async fn a_trim_at_the_worst_moment_costs_nobody_a_change() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let a = device(&bench, 0.000_012).await;
    for n in 1..=6 {
        let receipt = run(&a, &format!("INSERT INTO note VALUES ({n}, 'a')")).await;
        a.synced(&receipt).await.unwrap();
    }
    a_first_sync_about_to_begin(&bench, &a).await;
    a_round_about_to_begin(&bench, &a).await;
    a.shutdown().await.unwrap();
    scenario.teardown();
}
