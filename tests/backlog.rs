//! A limit on what waits for the cloud: it refuses, in words that help, who would add to it, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use futures_util::future::join_all;
use harness::{Bench, here, run, wait_for, wait_until_flushed};
use tidewater::{Database, Error, Statement};
use tidewater_actors::sqlite::StoreError;
use tidewater_test_support::shell;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

async fn insert(db: &Database) -> Result<(), Error> {
    db.write([Statement::new("INSERT INTO note (body) VALUES ('waits')")]).await.map(|_| ())
}

/// The error of who is refused: entries, bytes, and the limit's key and value.
fn refused(result: Result<(), Error>) -> (u64, u64, &'static str, u64) {
    match result {
        Err(Error::Store(StoreError::BacklogFull { entries, bytes, key, limit })) => {
            (entries, bytes, key, limit)
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Offline, at the limit: a new row is refused, with what helps; reads, local tables, rows that wait already and other programs go
/// on. A restart changes nothing of it; once the cloud has taken the rows, writes pass again.
#[actix_rt::test]
async fn a_full_backlog_refuses_what_adds_to_it_until_the_cloud_has_taken_some() {
    let bench = Bench::new().await;
    let settings = || bench.settings().set("sync.backlog_entries_max", 10);
    let db = bench.open_with(settings()).await;
    run(&db, NOTE).await;
    run(&db, "CREATE TABLE scratch (x)").await;
    for _ in 0..10 {
        insert(&db).await.unwrap();
    }
    let error = insert(&db).await.unwrap_err();
    assert!(error.retry_helps());
    let text = error.to_string();
    assert!(
        text.starts_with("the backlog is full: 10 rows (")
            && text.contains("sync.backlog_entries_max is 10; try again once the cloud has taken some"),
        "{text}"
    );
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "10");
    // What adds nothing.
    run(&db, "INSERT INTO scratch VALUES (1)").await;
    run(&db, "UPDATE note SET body = 'again' WHERE id = 1").await;
    run(&db, "DELETE FROM note WHERE id = 2").await;
    // A unit is refused as a whole.
    let both = ["INSERT INTO scratch VALUES (2)", "INSERT INTO note VALUES (99, 'no')"].map(Statement::new);
    refused(db.write(both).await.map(|_| ()));
    assert_eq!(here(&db, "SELECT count(*) FROM scratch"), "1");
    // Nobody can refuse the shell.
    shell::sqlite3_shell(bench.path(), "INSERT INTO note VALUES (50, 'from elsewhere')");
    let status = wait_for(&db, "the other program's row is seen", |status| status.sync.pending == 11).await;
    let backlog = status.sync.backlog;
    assert!(
        backlog.entries == 11 && backlog.bytes > 0 && backlog.oldest_age_s.unwrap() < 60.0,
        "{backlog:?}"
    );

    db.shutdown().await.unwrap();
    let db = bench.open_with(settings()).await;
    let (entries, bytes, key, limit) = refused(insert(&db).await);
    assert_eq!((entries, bytes, key, limit), (11, backlog.bytes, "sync.backlog_entries_max", 10));

    bench.proxy.start();
    wait_until_flushed(&db).await;
    assert_eq!(db.status_summary().await.sync.backlog, Default::default());
    insert(&db).await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// However many write at once, in however many groups and tables, it is the limit's number that gets in.
#[actix_rt::test]
async fn the_limit_is_exact_within_a_group() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("sync.backlog_entries_max", 50)).await;
    run(&db, NOTE).await;
    run(&db, "CREATE TABLE pair (a TEXT, b TEXT, PRIMARY KEY (a, b))").await;
    let writes = (0..120).map(|n| {
        let sql = match n % 2 {
            0 => format!("INSERT INTO note VALUES ({n}, 'x')"),
            _ => format!("INSERT INTO pair VALUES ('{n}', 'x')"),
        };
        db.write([Statement::new(sql)])
    });
    let results = join_all(writes).await;
    let in_time = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(in_time, 50);
    for result in results {
        if let Err(error) = result {
            assert_eq!(refused(Err(error)).0, 50);
        }
    }
    assert_eq!(db.status_summary().await.sync.pending, 50);
    db.shutdown().await.unwrap();
}

/// A limit that is far costs nothing; when the backlog has come near, it is as exact, also for what one write adds at once.
#[actix_rt::test]
async fn a_far_limit_is_met_all_the_same() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("sync.backlog_entries_max", 30_000)).await;
    run(&db, NOTE).await;
    let thousand = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) \
                    INSERT INTO note (body) SELECT 'x' FROM n";
    for _ in 0..30 {
        run(&db, thousand).await;
        // Changes that add nothing do not count.
        run(&db, "UPDATE note SET body = body || 'y' WHERE id <= 500").await;
    }
    for _ in 0..30 {
        insert(&db).await.unwrap();
    }
    assert_eq!(refused(insert(&db).await).0, 30_000);
    assert_eq!(db.status_summary().await.sync.pending, 30_000);
    bench.proxy.start();
    wait_until_flushed(&db).await;
    insert(&db).await.unwrap();
    db.shutdown().await.unwrap();
}

/// Bytes are those of the entries in the file: what is counted as it comes is about what is measured afterwards, and it grows with
/// every entry.
#[actix_rt::test]
async fn bytes_have_a_limit_of_their_own() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let settings = || bench.settings().set("sync.backlog_bytes_max", 50_000);
    let db = bench.open_with(settings()).await;
    run(&db, NOTE).await;
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) \
                INSERT INTO note SELECT i, hex(randomblob(1000)) FROM n";
    run(&db, rows).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    // Each of these entries keeps the two thousand bytes that were there before.
    let mut before = 0;
    let mut changed = 0;
    let (entries, bytes, key, limit) = loop {
        changed += 1;
        let sql = format!("UPDATE note SET body = 'short' WHERE id = {changed}");
        match db.write([Statement::new(sql)]).await.map(|_| ()) {
            Ok(()) => {
                let now = wait_for(&db, "it is counted", |status| status.sync.backlog.bytes > before).await;
                before = now.sync.backlog.bytes;
            }
            refusal => break refused(refusal),
        }
    };
    println!("{entries} entries counted as {bytes} bytes, measured as {before}");
    assert_eq!((entries, key, limit), (changed - 1, "sync.backlog_bytes_max", 50_000));
    assert!((20..=26).contains(&entries), "{entries}");
    assert!(bytes.abs_diff(before) < before / 20, "{bytes} counted, {before} measured");
    db.shutdown().await.unwrap();
}
