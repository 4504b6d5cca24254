//! Devices that want the same at the same time: everybody gets on, nobody hears of a deadlock, and all have the same in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Bench, here, run, there, wait_until_flushed};
use tidewater::{Database, Statement};
use tidewater_test_support::{Postgres, wait};

/// Each device's own column is nobody else's business; `last` is everybody's.
const ROWS: &str = "CREATE TABLE tally (id INTEGER PRIMARY KEY, last TEXT, d0 INTEGER, d1 INTEGER, d2 INTEGER, d3 INTEGER, d4 INTEGER)";

/// The rows of the table: of one row, or of so many that rounds overlap in part.
async fn hammer(devices: usize, rows: i64, seconds: u64) {
    let server = Postgres::start();
    let first = Bench::on(&server).await;
    let mut benches: Vec<Bench> = (1..devices).map(|_| first.another()).collect();
    benches.insert(0, first);
    let mut fleet: Vec<Database> = vec![];
    for bench in &benches {
        let db = bench.open().await;
        run(&db, ROWS).await;
        if fleet.is_empty() {
            run(&db, &format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) INSERT INTO tally SELECT i, '', 0, 0, 0, 0, 0 FROM n")).await;
        }
        bench.proxy.start();
        bench.wait_until_equal(&db, &["tally"]).await;
        wait_until_flushed(&db).await;
        db.flush().await.unwrap();
        fleet.push(db);
    }
    for (bench, db) in benches.iter().zip(&fleet) {
        bench.wait_until_equal(db, &["tally"]).await;
    }
    let client = benches[0].cloud.connect().await;
    let rounds = async || -> Vec<i64> {
        let sql = "SELECT round_number FROM tidewater.devices ORDER BY registered_at";
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let before = rounds().await;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let writing = fleet.iter().enumerate().map(async |(n, db)| {
        let mut rng = fastrand::Rng::with_seed(n as u64);
        let mut writes = 0_i64;
        while Instant::now() < until {
            writes += 1;
            // In an order of its own, as transactions come that know nothing of each other.
            let unit = (0..rng.i64(1..=rows.min(8))).map(|_| {
                Statement::new(format!("UPDATE tally SET last = ?1, d{n} = d{n} + 1 WHERE id = ?2"))
                    .bind(format!("{n}:{writes}"))
                    .bind(rng.i64(1..=rows))
            });
            let written = db.write(unit.collect::<Vec<_>>()).await.unwrap();
            // One in ten waits until the cloud has it, as a careful app does.
            if writes % 10 == 0 {
                db.synced(&written.receipt).await.unwrap();
            }
        }
        writes
    });
    // Nobody is kept from his rounds by the others, in no tenth of the time.
    let watching = async {
        let mut marks = vec![before.clone()];
        for tenth in 1..=10 {
            let at = began + Duration::from_millis(seconds * 100 * tenth);
            actix_rt::time::sleep(at.saturating_duration_since(Instant::now())).await;
            marks.push(rounds().await);
        }
        marks
    };
    let (writes, marks) = futures_util::join!(join_all(writing), watching);
    let took = began.elapsed().as_secs_f64();
    let done: Vec<i64> = marks[10].iter().zip(&before).map(|(after, before)| after - before).collect();
    wait::until("everything to be equal", harness::PATIENCE * 2, async || {
        let _ = join_all(fleet.iter().map(Database::flush)).await;
        let mut said = vec![];
        for (bench, db) in benches.iter().zip(&fleet) {
            let sync = db.status_summary().await.sync;
            let differences =
                tidewater_test_support::compare::tables_differ(&bench.path(), &client, "public", &["tally"])
                    .await;
            if sync.pending > 0 || sync.parked > 0 || !differences.is_empty() {
                said.push(format!("{sync:?} {differences:?}"));
            }
        }
        if said.is_empty() { Ok(()) } else { Err(format!("{said:#?}")) }
    })
    .await;
    let conflicts: Vec<String> =
        fleet.iter().map(|db| here(db, "SELECT count(*) FROM _tidewater_conflicts")).collect();
    println!(
        "{devices} devices on {rows} row(s) for {took:.1} s: writes {writes:?}, rounds {done:?} ({:.0}/s), equal {:.2} s \
         later, conflicts on record {conflicts:?}",
        done.iter().sum::<i64>() as f64 / took,
        began.elapsed().as_secs_f64() - took,
    );
    for (n, (one, bench)) in done.iter().zip(&benches).enumerate() {
        assert!(*one > 0, "device {n} sent nothing: {marks:?}");
        let lines = bench.log.all();
        let loud = ["WARN", "ERRO", "CRIT"];
        assert!(!lines.iter().any(|line| loud.iter().any(|level| line.starts_with(level))), "{lines:#?}");
    }
    if seconds >= 10 {
        for pair in marks.windows(2) {
            let stood = pair[0].iter().zip(&pair[1]).any(|(before, after)| before == after);
            assert!(!stood, "somebody stood still for a tenth of the time: {marks:?}");
        }
    }
    assert!(!server.log().contains("deadlock detected"), "{}", server.log());
    // What only one device edits, everybody else's edits of the same rows cannot touch.
    for (n, writes) in writes.iter().enumerate() {
        let sum: i64 = there(&client, &format!("SELECT sum(d{n}) FROM tally")).await.parse().unwrap();
        assert!(sum >= *writes, "device {n} wrote {writes} times, and {sum} are counted");
        let own = here(&fleet[n], &format!("SELECT sum(d{n}) FROM tally"));
        assert_eq!(own, sum.to_string());
    }
    for db in fleet {
        db.shutdown().await.unwrap();
    }
}

/// Two devices, one row, for two seconds.
#[actix_rt::test]
async fn two_devices_that_hammer_one_row_both_get_on() {
    hammer(2, 1, 2).await;
}

/// Five devices, one table, for two seconds.
#[actix_rt::test]
async fn five_devices_that_hammer_one_table_all_get_on() {
    hammer(5, 40, 2).await;
}

/// The same for a minute.
#[actix_rt::test]
#[ignore = "takes a minute: make long"]
async fn two_devices_hammer_one_row_for_a_minute() {
    hammer(2, 1, 60).await;
}

/// The same for a minute.
#[actix_rt::test]
#[ignore = "takes a minute: make long"]
async fn five_devices_hammer_one_table_for_a_minute() {
    hammer(5, 40, 60).await;
}
