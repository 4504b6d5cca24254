//! What a flush holds at once is bounded in bytes, whatever the rows weigh and however many wait.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, run, there, wait_for, wait_until_flushed};
use tidewater_test_support::Mode;

/// Twenty heavy rows and one that is heavier than a round may be, among thousands of light ones: every round weighs at most
/// its bound and one row, all of them arrive, and rounds of light rows stay large.
#[actix_rt::test]
async fn heavy_rows_among_light_ones_make_no_heavy_round() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE doc (id INTEGER PRIMARY KEY, body BLOB)").await;
    run(
        &db,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO doc SELECT i, CASE WHEN i = 700 THEN zeroblob(20 << 20) WHEN i <= 500 AND i % 25 = 0
         THEN zeroblob(2 << 20) ELSE zeroblob(10) END FROM n",
    )
    .await;
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["doc"]).await;
    let client = bench.cloud.connect().await;
    // By the transaction that inserted them.
    let rounds = "SELECT count(*) AS rows, sum(octet_length(body)) AS bytes FROM doc GROUP BY xmin::text";
    let heaviest = there(&client, &format!("SELECT max(bytes) FROM ({rounds}) AS r")).await;
    let most: usize = heaviest.parse().unwrap();
    // The heaviest row, alone or on top of light ones.
    assert!((20 << 20..(20 << 20) + (17 << 20)).contains(&most), "{most}");
    let without = there(
        &client,
        &format!("SELECT max(bytes) FROM ({rounds} HAVING max(octet_length(body)) < 20 << 20) AS r"),
    )
    .await;
    assert!(without.parse::<usize>().unwrap() <= (16 << 20) + (2 << 20), "{without}");
    let largest = there(&client, &format!("SELECT max(rows) FROM ({rounds}) AS r")).await;
    assert!(largest.parse::<usize>().unwrap() >= 1000, "{largest}");
    db.shutdown().await.unwrap();
}

/// A row takes much longer to send than an answer may take, and than the server waits for a client that has begun something:
/// it arrives, at the first attempt, because it is on its way all the time.
#[actix_rt::test]
async fn a_row_that_takes_long_over_a_slow_link_arrives() {
    let bench = Bench::new().await;
    let patience = bench.settings().set("cloud.statement_timeout_s", 1).set("proxy.timeout_s", 2);
    let db = bench.open_with(patience).await;
    run(&db, "CREATE TABLE photo (id INTEGER PRIMARY KEY, content BLOB)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["photo"]).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "INSERT INTO photo VALUES (1, randomblob(7000000))").await;
    bench.proxy.set_mode(Mode::Slow(1_000_000));
    bench.proxy.start();
    let accepted = bench.proxy.accepted();
    wait_until_flushed(&db).await;
    // The watcher's, the round's, and those that ask whether it is still worked for.
    assert!(bench.proxy.accepted() <= accepted + 4, "{} more", bench.proxy.accepted() - accepted);
    bench.proxy.set_mode(Mode::Forward);
    bench.wait_until_equal(&db, &["photo"]).await;
    db.shutdown().await.unwrap();
}
