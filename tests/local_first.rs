//! P9: no local read or write ever waits for the network or for a flush.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, PATIENCE, wait_for};
use tidewater::{Error, Forced, ProxyStatus, Statement, SyncError};
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

/// Where the proxy is required nobody is kept waiting for it: whoever needs the cloud is refused at once with an error of
/// its own, whoever waits already is refused when it goes, readiness is red, and local work goes on all the same.
#[actix_rt::test]
async fn a_required_proxy_fails_hard_for_whoever_asks() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("proxy.require", true)).await;
    let required = |error: &Error| matches!(error, Error::Sync(SyncError::ProxyRequired(_)));
    let create = Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)");
    let receipt = db.write([create]).await.unwrap().receipt;
    let insert = || Statement::new("INSERT INTO note (body) VALUES ('here')");
    let receipts = [receipt, db.write([insert()]).await.unwrap().receipt];
    for answer in [db.flush().await, db.warm().await, db.synced(&receipts[1]).await] {
        let error = answer.unwrap_err();
        assert!(required(&error) && error.retry_helps(), "{error}");
        assert!(error.to_string().ends_with("the proxy is not running"), "{error}");
    }
    let readiness = db.readiness().await;
    assert!(!readiness.ready && readiness.reasons[0].contains("Cloud SQL is required"), "{readiness:?}");

    bench.proxy.start();
    wait_for(&db, "it is ready", |status| status.readiness.ready).await;
    db.synced(&receipts[1]).await.unwrap();
    bench.proxy.set_mode(Mode::Swallow);
    let receipt = db.write([insert()]).await.unwrap().receipt;
    let waiting = db.synced(&receipt);
    let (error, ()) = tokio::join!(waiting, async {
        bench.proxy.stop();
    });
    assert!(required(&error.unwrap_err()));
    wait_for(&db, "it is not ready", |status| !status.readiness.ready).await;
    db.shutdown().await.unwrap();
}

/// A circuit that is held open keeps the cloud untouched while the watcher sees it; let go, everything that waited goes.
#[actix_rt::test]
async fn a_circuit_held_open_holds_the_sync_until_it_is_let_go() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = bench.open().await;
    let create = Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)");
    let insert = Statement::new("INSERT INTO note (body) VALUES ('here')");
    let receipt = db.write([create, insert.clone()]).await.unwrap().receipt;
    db.synced(&receipt).await.unwrap();
    wait_for(&db, "the circuit is closed", |status| status.circuit.state == "closed").await;

    db.force_circuit(Some(Forced::Open)).await.unwrap();
    let receipt = db.write([insert]).await.unwrap().receipt;
    let error = db.flush().await.unwrap_err();
    assert!(
        matches!(error, Error::Sync(SyncError::Failed(_))) && error.to_string().contains("by hand"),
        "{error}"
    );
    let status = db.status_summary().await;
    assert_eq!((status.circuit.state.as_str(), status.circuit.reason.as_deref()), ("open", Some("forced")));
    assert_eq!((status.proxy.status, status.sync.pending), (ProxyStatus::Available, 1));

    db.force_circuit(None).await.unwrap();
    db.synced(&receipt).await.unwrap();
    assert_eq!(bench.log.count("Circuit held open by hand"), 1);
    assert_eq!(bench.log.count("Circuit decides by itself again"), 1);
    db.shutdown().await.unwrap();
}

/// Who asks for the cloud before anybody has looked for it waits for that first look, and no longer: neither a cloud that is
/// there nor one that is not needs a second call.
#[actix_rt::test]
async fn the_first_check_is_waited_for() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = bench.open_with(bench.settings().set("proxy.require", true)).await;
    db.warm().await.unwrap();
    let create = Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)");
    let insert = Statement::new("INSERT INTO note (body) VALUES ('here')");
    let receipt = db.write([create, insert]).await.unwrap().receipt;
    db.synced(&receipt).await.unwrap();
    db.shutdown().await.unwrap();

    bench.proxy.stop();
    let db = bench.open().await;
    assert!(matches!(db.warm().await, Err(Error::Sync(SyncError::Offline(_)))));
    db.shutdown().await.unwrap();
}

/// A cloud that answers and lets nothing be synced is a fault where it is required: whoever waits is told, each time and with
/// the word that waiting does not help, and readiness is red.
#[actix_rt::test]
async fn a_required_cloud_that_blocks_is_told_to_whoever_waits() {
    let bench = Bench::new().await;
    let admin = bench.cloud.connect_as_admin().await;
    let only_reads = format!("ALTER ROLE {} SET default_transaction_read_only = on", bench.cloud.user);
    admin.batch_execute(&only_reads).await.unwrap();
    bench.proxy.start();
    let db = bench.open_with(bench.settings().set("proxy.require", true)).await;
    let create = Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)");
    let insert = Statement::new("INSERT INTO note (body) VALUES ('here')");
    let receipt = db.write([create, insert]).await.unwrap().receipt;
    for answer in [db.synced(&receipt).await, db.synced(&receipt).await, db.flush().await, db.flush().await] {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Sync(SyncError::Blocked(_))) && !error.retry_helps(), "{error:?}");
    }
    let status = db.status_summary().await;
    assert_eq!(status.proxy.status, ProxyStatus::Available);
    assert!(
        !status.readiness.ready && status.readiness.reasons[0].contains("blocked"),
        "{:?}",
        status.readiness
    );
    db.shutdown().await.unwrap();
}
