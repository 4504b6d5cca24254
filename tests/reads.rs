//! Reads: what was acknowledged is seen, rows come as the caller's types, and a query that nobody waits for ends.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use harness::{Lines, PATIENCE};
use serde::Deserialize;
use tidewater::settings::Settings;
use tidewater::{Database, Error, RowError, Statement, StoreError};
use tidewater_test_support::wait;

async fn open(folder: &Path) -> Database {
    let settings = Settings::builder()
        .set("sqlite.path", folder.join("app.db").display())
        .set("proxy.port", 1)
        .set("sqlite.read_pool_max", 3);
    let db = Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap();
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    db
}

/// A query that would run for hours.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000000) SELECT count(*) FROM n";

fn insert(id: i64) -> Statement {
    Statement::new("INSERT INTO note VALUES (?1, 'x')").bind(id)
}

/// Whatever connection of the pool a read gets, it sees what was acknowledged before: with a busy writer, with transactions
/// that readers leave open, and with readers that panic in one.
#[actix_rt::test]
async fn every_acknowledged_write_is_seen_by_the_next_read() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let writers = (0..4).map(|writer| {
        let db = db.clone();
        async move {
            for n in 0..60 {
                let id = writer * 1000 + n;
                db.write([insert(id)]).await.unwrap();
                let seen = move |conn: &rusqlite::Connection| {
                    conn.prepare_cached("SELECT 1 FROM note WHERE id = ?1")?.exists([id])
                };
                // Every connection of the pool, one inside of the other.
                let all = db.read(|conn| {
                    let first = seen(conn)?;
                    let rest = db.read(|conn| Ok((seen(conn)?, db.read(seen).unwrap()))).unwrap();
                    Ok((first, rest))
                });
                assert_eq!(all.unwrap(), (true, (true, true)));
                assert!(db.read_in_background(seen).await.unwrap());
                assert_eq!(db.query_as::<i64>("SELECT id FROM note WHERE id = ?1", [id]).unwrap(), [id]);
                // A reader that leaves its transaction open.
                db.read(|conn| conn.execute_batch("BEGIN; SELECT * FROM note")).unwrap();
                if n % 20 == 0 {
                    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        db.read(|conn| -> rusqlite::Result<()> {
                            conn.execute_batch("BEGIN; SELECT * FROM note")?;
                            panic!("on purpose")
                        })
                    }));
                    assert!(panicked.is_err());
                }
            }
        }
    });
    join_all(writers).await;
    assert_eq!(db.query_as::<u64>("SELECT count(*) FROM note", []).unwrap(), [240]);
    db.shutdown().await.unwrap();
}

/// A future that is dropped ends its query, and what the same closure would run after it; the connection serves the next
/// reader as if nothing had been.
#[actix_rt::test]
async fn a_dropped_read_ends_its_query() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    // More than the pool has connections, so that one that did not come back would be missed.
    for _ in 0..5 {
        let began = Arc::new(AtomicBool::new(false));
        let errors = Arc::new(Mutex::new(vec![]));
        let (beginning, ending) = (Arc::clone(&began), Arc::clone(&errors));
        let mut read = Box::pin(db.read_in_background(move |conn| {
            beginning.store(true, Ordering::SeqCst);
            for _ in 0..2 {
                let ended = conn.query_row(ENDLESS, [], |row| row.get::<_, i64>(0)).unwrap_err();
                ending.lock().unwrap().push(ended.sqlite_error_code());
            }
            Ok(())
        }));
        wait::until("the query to begin", PATIENCE, async || {
            let turn = futures_util::poll!(&mut read);
            assert!(turn.is_pending());
            if began.load(Ordering::SeqCst) { Ok(()) } else { Err(String::from("not yet")) }
        })
        .await;
        drop(read);
        let interrupted = Some(rusqlite::ErrorCode::OperationInterrupted);
        wait::until("both queries to end", PATIENCE, async || {
            let errors = errors.lock().unwrap().clone();
            if errors == [interrupted; 2] { Ok(()) } else { Err(format!("{errors:?}")) }
        })
        .await;
        let long = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT count(*) FROM n";
        assert_eq!(db.query_as::<i64>(long, []).unwrap(), [100_000]);
    }
    db.shutdown().await.unwrap();
}

/// Background reads work in a plain tokio runtime of either kind, and a panic is the caller's.
#[test]
fn background_reads_work_in_any_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let mut builders =
        [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()];
    for builder in &mut builders {
        builder.enable_all().build().unwrap().block_on(async {
            let settings = Settings::builder()
                .set("sqlite.path", folder.path().join("app.db").display())
                .set("proxy.port", 1);
            let db = Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap();
            let one =
                db.read_in_background(|conn| conn.query_row("SELECT 1", [], |row| row.get::<_, i64>(0)));
            assert_eq!(one.await.unwrap(), 1);
            let panicking = tokio::task::LocalSet::new();
            let inner = db.clone();
            let panicked = panicking
                .run_until(async move {
                    let read = async move {
                        inner.read_in_background(|_| -> rusqlite::Result<()> { panic!("on purpose") }).await
                    };
                    tokio::task::spawn_local(read).await
                })
                .await;
            assert!(panicked.unwrap_err().is_panic());
            db.shutdown().await.unwrap();
            let closed = db.read_in_background(|_| Ok(())).await;
            assert_eq!(closed, Err(Error::ShutDown));
        });
    }
}

/// Rows come as structs, tuples and scalars; what does not fit is an error that names its column.
#[actix_rt::test]
async fn rows_come_as_the_callers_types() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Note {
        id: i64,
        body: Option<String>,
    }
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    db.write([insert(7), Statement::new("INSERT INTO note (id) VALUES (8)")]).await.unwrap();
    let notes = db.query_as::<Note>("SELECT body, id FROM note WHERE id >= ?1 ORDER BY id", [7]).unwrap();
    assert_eq!(notes, [Note { id: 7, body: Some("x".into()) }, Note { id: 8, body: None }]);
    let pairs = db.query_as::<(i64, String)>("SELECT id, body FROM note WHERE id = :id", &[(":id", &7)]);
    assert_eq!(pairs.unwrap(), [(7, "x".to_owned())]);

    let row = |error: Error| match error {
        Error::Store(StoreError::Row(error)) => error,
        other => panic!("{other}"),
    };
    let missing = db.query_as::<Note>("SELECT body FROM note", []).unwrap_err();
    assert_eq!(row(missing), RowError::MissingColumn("id".into()));
    let wrong = db.query_as::<(i64, String)>("SELECT id, body FROM note", []).unwrap_err();
    let expected = RowError::WrongType { column: "body".into(), reason: "NULL, expected a string".into() };
    assert_eq!(row(wrong), expected);
    let refused = db.query_as::<i64>("DELETE FROM note RETURNING id", []).unwrap_err();
    assert!(matches!(refused, Error::Store(StoreError::ReadOnly(_))), "{refused}");
    db.shutdown().await.unwrap();
}
