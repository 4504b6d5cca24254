//! P9: no local read or write ever waits for the network or for a flush.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, PATIENCE, wait_for};
use tidewater::{Error, Statement, SyncError};
use tidewater_test_support::Mode;

/// In the middle of a flush the link goes silent: writes are durable and reads answer while nothing comes back from there,
/// which would take longer than this test waits; when the link is back, everything goes on.
#[actix_rt::test]
async fn a_silent_link_holds_up_nobody() {
    let bench = Bench::new().await;
    // A silent statement is given up after a minute; an answer to a check after as long: nothing ends the silence early.
    let patient = bench.settings().set("cloud.statement_timeout_s", 120).set("proxy.timeout_s", 60);
    let db = bench.open_with(patient).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    bench.proxy.start();
    let first = db.write([Statement::new("INSERT INTO note (body) VALUES ('first')")]).await.unwrap();
    db.synced(&first.receipt).await.unwrap();

    bench.proxy.set_mode(Mode::Swallow);
    db.write([Statement::new("INSERT INTO note (body) VALUES ('into the silence')")]).await.unwrap();
    wait_for(&db, "a cycle is under way", |status| status.sync.state != "idle").await;
    let local = async {
        for n in 0..200 {
            let insert = Statement::new("INSERT INTO note (body) VALUES (?1)").bind(format!("note {n}"));
            db.write([insert]).await.unwrap();
            let count: i64 =
                db.read(|conn| conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0))).unwrap();
            assert_eq!(count, n + 3, "an acknowledged write is seen by the next read");
        }
    };
    tokio::time::timeout(PATIENCE, local).await.expect("local work went on");
    let status = db.status_summary().await;
    assert_ne!(status.sync.state, "idle", "the silence lasted: {:?}", status.sync);
    bench.proxy.set_mode(Mode::Forward);
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// What needs the cloud says at once that it is not there, and that trying later helps; afterwards the end is an end.
#[actix_rt::test]
async fn what_needs_the_cloud_says_so_at_once() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    for answer in [db.flush().await, db.warm().await] {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Sync(SyncError::Offline(_))) && error.retry_helps(), "{error}");
    }
    db.shutdown().await.unwrap();
    db.shutdown().await.unwrap();
    assert_eq!(db.write([Statement::new("SELECT 1")]).await.unwrap_err(), Error::ShutDown);
    assert_eq!(db.read(|_| Ok(())).unwrap_err(), Error::ShutDown);
    assert_eq!(db.flush().await.unwrap_err(), Error::ShutDown);
}
