//! What one device commits, the others have at once, not at the next interval; what is lost of that costs time and no data (P6).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::time::{Duration, Instant};

use harness::{Bench, PATIENCE, batch, here, run, wait_for, wait_until_here};
use tidewater::Database;
use tidewater::settings::Sources;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

const HOUR: u32 = 3600;

/// Nothing is looked for within an hour.
fn patient(bench: &Bench) -> Sources {
    bench
        .settings()
        .set("sync.pull_interval_s", HOUR)
        .set("sync.feed_poll_interval_s", HOUR)
        .set("sync.feed_poll_first_ms", 60_000)
        .set("proxy.timeout_s", 20)
}

/// A device that is connected, and at rest.
async fn device(bench: &Bench, settings: Sources) -> Database {
    let db = bench.open_with(settings).await;
    db.write(batch(NOTE)).await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    wait_for(&db, "idle", |status| status.sync.state == "idle").await;
    db
}

async fn two_devices(settings: impl Fn(&Bench) -> Sources) -> (Bench, Database, Bench, Database) {
    let bench = Bench::new().await;
    let a = device(&bench, settings(&bench)).await;
    let other = bench.another();
    let b = device(&other, settings(&other)).await;
    (bench, a, other, b)
}

async fn end(devices: [Database; 2]) {
    for db in devices {
        db.shutdown().await.unwrap();
    }
}

/// Each hears of the other's commits at once, and both do with the connections that they have.
#[actix_rt::test]
async fn a_commit_is_seen_by_other_devices_at_once() {
    let (bench, a, other, b) = two_devices(patient).await;
    let (mut sent, mut took) = (vec![], vec![]);
    for n in 0..30 {
        let (from, to) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let began = Instant::now();
        let receipt = run(from, &format!("INSERT INTO note VALUES ({n}, 'said')")).await;
        from.synced(&receipt).await.unwrap();
        sent.push(began.elapsed());
        let is_there = format!("SELECT count(*) FROM note WHERE id = {n}");
        while here(to, &is_there) == "0" {
            assert!(
                began.elapsed() < PATIENCE,
                "{n}: {:?} {:#?}",
                to.status_summary().await.sync,
                other.log.all()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.push(began.elapsed());
        // Quiet enough to be heard as one that comes alone.
        wait_for(from, "idle", |status| status.sync.state == "idle").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sent.sort();
    took.sort();
    println!(
        "from one device to the other: p50 {:?}, longest {:?}; p50 to the cloud: {:?}",
        took[15], took[29], sent[15]
    );
    for bench in [&bench, &other] {
        assert!(bench.proxy.live() <= 2 && bench.proxy.accepted() <= 2, "{:?}", bench.proxy.stats());
    }
    end([a, b]).await;
}

/// The connection on which it would have been heard is cut in that moment: the device looks as soon as it is back.
#[actix_rt::test]
async fn what_is_announced_while_the_connection_is_cut_is_found_afterwards() {
    let (_bench, a, other, b) =
        two_devices(|bench| patient(bench).set("proxy.health_interval_s", HOUR)).await;
    for n in 0..3 {
        let cut = other.proxy.cut_server_to_client_after(1);
        run(&a, &format!("INSERT INTO note VALUES ({n}, 'said')")).await;
        cut.triggered(PATIENCE).await;
        wait_until_here(&b, &format!("SELECT count(*) FROM note WHERE id = {n}"), "1").await;
        wait_for(&b, "idle", |status| status.sync.state == "idle").await;
    }
    end([a, b]).await;
}

/// Plain SQL announces nothing: while others are at work, it is found by a look that comes more often.
#[actix_rt::test]
async fn plain_sql_is_found_soon_while_others_are_at_work() {
    let (bench, a, _other, b) =
        two_devices(|bench| patient(bench).set("sync.feed_poll_interval_s", 0.2)).await;
    let client = bench.cloud.connect().await;
    run(&a, "INSERT INTO note VALUES (1, 'said')").await;
    wait_until_here(&b, "SELECT count(*) FROM note", "1").await;
    client.batch_execute("INSERT INTO note VALUES (2, 'not said')").await.unwrap();
    wait_until_here(&b, "SELECT count(*) FROM note", "2").await;
    end([a, b]).await;
}
