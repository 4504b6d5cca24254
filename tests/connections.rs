//! How many connections there are: counted by the proxy, not asked of the product. How often it is knocked at what does not answer is
//! counted in `control_plane`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Bench, run, there, wait_until_available, wait_until_flushed, wait_until_here};
use tidewater::Database;
use tidewater_test_support::Postgres;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// The most connections that were open at the same time while this was done.
async fn most_during(bench: &Arc<Bench>, work: impl Future<Output = ()>) -> u64 {
    let over = Arc::new(AtomicBool::new(false));
    let (watched, until) = (bench.clone(), over.clone());
    let watching = std::thread::spawn(move || {
        let mut most = 0;
        while !until.load(Ordering::Relaxed) {
            most = most.max(watched.proxy.stats().live);
            std::thread::sleep(Duration::from_millis(1));
        }
        most
    });
    work.await;
    over.store(true, Ordering::Relaxed);
    watching.join().unwrap()
}

/// A connection on which nothing comes any more, while another one can be made, as behind a proxy that has lost one of them without
/// a word: it is noticed long before a statement may take that long, and what was on its way takes effect once. A server that works
/// for longer is left to work.
#[actix_rt::test]
async fn a_connection_that_fell_silent_is_given_up_and_a_slow_server_is_not() {
    const WORKING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                           AND wait_event = 'PgSleep'";
    // Of its own: a transaction that is left open holds back everybody's feed.
    let server = Postgres::start();
    let bench = Bench::on(&server).await;
    let db = bench.open_with(bench.settings().set("cloud.silence_s", 0.5)).await;
    run(&db, NOTE).await;
    bench.proxy.start();
    run(&db, "INSERT INTO note VALUES (1, 'one')").await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE TABLE audit (id bigint); CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(3); INSERT INTO audit VALUES (NEW.id); RETURN NULL; END $$; \
             CREATE TRIGGER slow AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await
        .unwrap();
    let working = async || {
        tidewater_test_support::wait::until("the server is at work", harness::PATIENCE, async || {
            let at_work = there(&client, WORKING).await;
            if at_work == "1" { Ok(()) } else { Err(at_work) }
        })
        .await;
    };
    let rounds = "SELECT sum(round_number) FROM tidewater.devices";
    let before: i64 = there(&client, rounds).await.parse().unwrap();
    let accepted = bench.proxy.accepted();
    run(&db, "INSERT INTO note VALUES (2, 'slow')").await;
    working().await;
    wait_until_flushed(&db).await;
    let asked = bench.proxy.accepted() - accepted;
    println!("a slow server: {asked} connection(s) to ask after it");
    assert!(asked <= 1 && there(&client, rounds).await == (before + 1).to_string());

    run(&db, "INSERT INTO note VALUES (3, 'into silence')").await;
    working().await;
    let began = std::time::Instant::now();
    bench.proxy.silence_live();
    wait_until_flushed(&db).await;
    println!("silence: noticed and made good within {:?}", began.elapsed());
    let twice = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM audit";
    assert_eq!(there(&client, twice).await, "2,3");
    db.shutdown().await.unwrap();
}

async fn fill(db: &Database, from: u32) {
    run(
        db,
        &format!(
            "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {from} + 19999) \
             INSERT INTO note SELECT i, hex(randomblob(50)) FROM n"
        ),
    )
    .await;
}

/// Available and at rest there is one connection, the same all the time. Flushing, pulling and checks at once there are two at most,
/// of which the second is closed when it has been idle. An outage costs no more than its own attempts, and afterwards it is one again.
#[actix_rt::test]
async fn there_are_two_connections_at_most_and_one_at_rest() {
    let bench = Arc::new(Bench::new().await);
    let db = bench.open_with(bench.settings().set("cloud.idle_s", 1)).await;
    run(&db, NOTE).await;
    bench.proxy.start();
    wait_until_available(&db).await;
    wait_until_flushed(&db).await;
    let settled = async |what: &str| {
        bench
            .proxy
            .wait_for_async(&format!("one connection {what}"), Duration::from_secs(20), |stats| {
                stats.live == 1
            })
            .await;
    };
    settled("after the first sync").await;

    let before = bench.proxy.accepted();
    let most = most_during(&bench, actix_rt::time::sleep(Duration::from_secs(4))).await;
    println!("at rest: {most} connection(s), {} made in 4 s", bench.proxy.accepted() - before);
    assert_eq!((most, bench.proxy.accepted()), (1, before));

    let flushing = most_during(&bench, async {
        fill(&db, 1).await;
        while db.status_summary().await.sync.pending > 0 {
            db.detect_proxy(true).await.unwrap();
        }
    })
    .await;
    let client = bench.cloud.connect().await;
    let pulling = most_during(&bench, async {
        let sql = "INSERT INTO note SELECT i, md5(i::text) FROM generate_series(20001, 40000) AS i";
        client.batch_execute(sql).await.unwrap();
        for _ in 0..20 {
            db.detect_proxy(true).await.unwrap();
        }
        wait_until_here(&db, "SELECT count(*) FROM note", "40000").await;
    })
    .await;
    println!("flushing: {flushing} at most, pulling: {pulling}, with checks");
    assert!(flushing <= 2 && pulling <= 2);
    settled("after the work").await;

    bench.proxy.stop();
    fill(&db, 40_001).await;
    let before = bench.proxy.accepted();
    bench.proxy.start();
    let returning = most_during(&bench, wait_until_flushed(&db)).await;
    println!("returning: {returning} at most, {} made", bench.proxy.accepted() - before);
    assert!(returning <= 2 && bench.proxy.accepted() - before <= 2);
    settled("after the outage").await;
    db.shutdown().await.unwrap();
}
