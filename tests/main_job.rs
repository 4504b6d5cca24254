//! The main job, end to end: written here, arrives there; written there, arrives here.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, batch, statement, wait_until_available, wait_until_flushed};
use tidewater::Statement;
use tidewater_test_support::shop::{self, Generator};
use tidewater_test_support::{Mode, compare, shell};

/// One row from the library to the cloud, with the receipt that says so.
#[actix_rt::test]
async fn a_row_goes_to_the_cloud_and_its_receipt_resolves() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    let written =
        db.write([Statement::new("INSERT INTO note (body) VALUES (?1)").bind("héllo")]).await.unwrap();
    assert_eq!(db.status_summary().await.sync.pending, 1);
    bench.proxy.start();
    db.synced(&written.receipt).await.unwrap();
    let client = bench.cloud.connect().await;
    let row = client.query_one("SELECT id, body FROM note", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (1, "héllo"));
    db.shutdown().await.unwrap();
}

/// The whole round trip on a shop: offline by two writers, online, plain SQL in the cloud, cut in mid-flush.
#[actix_rt::test]
async fn a_shop_is_equal_on_both_sides_whatever_happens_between() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    db.write(batch(shop::SCHEMA)).await.unwrap();

    // Down: half of the rows by the library, half by the sqlite3 shell.
    let mut generator = Generator::new(7);
    let statements: Vec<_> = generator.statements(4_000).collect();
    let (ours, theirs) = statements.split_at(2_000);
    for unit in ours.chunks(200) {
        db.write(unit.iter().cloned().map(statement)).await.unwrap();
    }
    let script: String = theirs.iter().map(|stmt| stmt.to_sql_text() + ";\n").collect();
    shell::sqlite3_shell(bench.path(), &format!("BEGIN;\n{script}COMMIT;"));
    let tracked: u64 = db
        .read(|conn| {
            let mut rows = 0;
            for table in shop::TABLES {
                let sql = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
                rows += conn.query_row(&sql, [], |row| row.get::<_, i64>(0))?.unsigned_abs();
            }
            Ok(rows)
        })
        .unwrap();
    assert!(tracked > 3_500, "{tracked}");
    assert_eq!(db.status_summary().await.sync.pending, tracked);

    // Up: equal, value by value, and nothing is sent twice or comes back.
    bench.proxy.start();
    wait_until_available(&db).await;
    bench.wait_until_equal(shop::TABLES).await;
    wait_until_flushed(&db).await;
    let status = db.status_summary().await;
    assert_eq!((status.sync.rows_flushed, status.sync.rows_warmed), (tracked, 0), "{status:?}");
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0));

    // Plain SQL in the cloud arrives here, and is not sent back.
    let client = bench.cloud.connect().await;
    let changed =
        client.execute("UPDATE customer SET name = name || ' (moved)' WHERE newsletter", &[]).await.unwrap();
    assert!(changed > 0);
    client.execute("DELETE FROM order_line WHERE quantity = 1", &[]).await.unwrap();
    bench.wait_until_equal(shop::TABLES).await;
    let after = db.status_summary().await;
    assert!(after.sync.rows_warmed > 0);
    assert_eq!((after.sync.rows_flushed, after.sync.pending), (tracked, 0), "nothing echoes");

    // Down in mid-flush, and up again.
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    let churn = generator.churn(&connection, 1_500);
    drop(connection);
    bench.proxy.set_mode(Mode::Delay(std::time::Duration::from_millis(4)));
    let cut = bench.proxy.cut_client_to_server_after(60_000);
    for unit in churn.chunks(50) {
        db.write(unit.iter().cloned().map(statement)).await.unwrap();
    }
    cut.triggered(harness::PATIENCE).await;
    bench.proxy.stop();
    bench.proxy.set_mode(Mode::Forward);
    bench.proxy.start();
    bench.wait_until_equal(shop::TABLES).await;
    wait_until_flushed(&db).await;
    let end = db.status_summary().await;
    assert_eq!((end.sync.parked, end.sync.conflicts), (0, 0), "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
    compare::assert_equal(&bench.path(), &client, "public", shop::TABLES).await;
}
