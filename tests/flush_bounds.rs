//! What a flush holds at once is bounded in bytes, whatever the rows weigh and however many wait.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, run, there, wait_until_flushed};

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
