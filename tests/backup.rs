//! A copy of the database while it is in use: whole, complete or not there, and good for going on with.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Bench, Lines, PATIENCE, here, wait_until_available};
use tidewater::settings::Settings;
use tidewater::{Database, Error, Orphans, Statement, StoreError};
use tidewater_test_support::wait;

async fn open(folder: &Path) -> Database {
    let settings = Settings::builder()
        .set("sqlite.path", folder.join("app.db").display())
        .set("proxy.port", 1)
        .set("sqlite.read_pool_max", 1);
    Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

fn insert(body: &str) -> Statement {
    Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body)
}

/// While writers go on, the copy is one state of the file: everything acknowledged before it began is in it, and every unit is
/// in it whole or not at all. Writes are acknowledged while it is made.
#[actix_rt::test]
async fn a_copy_is_one_state_of_the_file_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    db.write([
        Statement::new(NOTE),
        Statement::new("CREATE TABLE twin (id INTEGER PRIMARY KEY, body TEXT)"),
        // Several batches of pages.
        Statement::new(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
             INSERT INTO note (body) SELECT hex(randomblob(2000)) FROM n",
        ),
    ])
    .await
    .unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let writing = async {
        let mut during = 0;
        while !done.load(Ordering::SeqCst) {
            db.write([insert("x"), Statement::new("INSERT INTO twin (body) VALUES ('x')")]).await.unwrap();
            during += 1;
        }
        during
    };
    let copies = folder.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let copying = async {
        let copied = db.backup(copies.join("copy.db")).await.unwrap();
        done.store(true, Ordering::SeqCst);
        copied
    };
    let (during, copied) = tokio::join!(writing, copying);
    assert!(during > 0);
    assert_eq!(names(&copies), ["copy.db"]);
    let metadata = std::fs::metadata(&copied.path).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (copied.bytes, 0o600));
    let copy = rusqlite::Connection::open(&copied.path).unwrap();
    let one = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(one("PRAGMA integrity_check"), "ok");
    assert_eq!(one("SELECT ((SELECT count(*) FROM note) - (SELECT count(*) FROM twin)) || ''"), "3000");
    // Each row waits to be sent there as it does here.
    let waiting = "SELECT ((SELECT count(*) FROM _tidewater_journal_1) = (SELECT count(*) FROM note)) || ''";
    assert_eq!(one(waiting), "1");
    db.shutdown().await.unwrap();
}

/// A file that has the name is left alone unless it is asked for; the database itself, a folder, a missing folder and another
/// database's log are refused, and nothing is left behind.
#[actix_rt::test]
async fn what_is_there_is_not_overwritten_by_accident() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    db.write([Statement::new(NOTE), insert("x")]).await.unwrap();
    let copies = folder.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let (taken, logged) = (copies.join("taken"), copies.join("logged"));
    std::fs::write(&taken, "precious").unwrap();
    std::fs::write(copies.join("logged-wal"), "a log").unwrap();
    let before = names(&copies);
    let table = [
        (taken.clone(), false, "it is there already"),
        (copies.clone(), true, "it is a folder"),
        (folder.path().join("app.db"), true, "the database itself"),
        (copies.join("../app.db"), true, "the database itself"),
        (logged, true, "logged-wal is beside it"),
        (copies.join("missing/copy.db"), false, "No such file"),
    ];
    for (path, overwrite, part) in table {
        let refused = if overwrite { db.backup_over(&path).await } else { db.backup(&path).await };
        match refused.unwrap_err() {
            Error::Store(error @ StoreError::Copy { .. }) => {
                assert!(error.to_string().contains(part), "{error}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "precious");
    assert_eq!(names(&copies), before);
    db.backup_over(&taken).await.unwrap();
    let copy = rusqlite::Connection::open(&taken).unwrap();
    assert_eq!(copy.query_row("SELECT body FROM note", [], |row| row.get::<_, String>(0)).unwrap(), "x");
    db.shutdown().await.unwrap();
    assert_eq!(db.backup(copies.join("late")).await, Err(Error::ShutDown));
}

/// Where somebody has put another database in the place of the one that is open, that one is not copied in its stead.
#[actix_rt::test]
async fn another_database_in_its_place_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    db.write([Statement::new(NOTE), insert("mine")]).await.unwrap();
    assert_eq!(here(&db, "SELECT body FROM note"), "mine");
    let (path, aside) = (folder.path().join("app.db"), folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let copy = folder.path().join("copy.db");
    let answer = db.backup(&copy).await;
    assert!(answer.is_err() && !copy.exists(), "{answer:?}");
    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
    std::fs::rename(&other, &path).unwrap();
    let answer = db.backup(&copy).await;
    assert!(matches!(answer, Err(Error::Store(StoreError::ReplacedFile { .. }))), "{answer:?}");
    assert!(!copy.exists());
    std::fs::rename(&aside, &path).unwrap();
    db.backup(&copy).await.unwrap();
    db.shutdown().await.unwrap();
}

/// A copy that is put in the database's place goes on as a new device: what the cloud has comes, what was pending when it was
/// made is sent, and nothing is deleted, here or there.
#[actix_rt::test]
async fn a_copy_put_back_goes_on_as_a_new_device() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    db.write([Statement::new(NOTE), insert("synced")]).await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    bench.proxy.stop();
    db.write([Statement::new("INSERT INTO note VALUES (40, 'pending in the copy')")]).await.unwrap();
    let copy = bench.folder.path().join("copy.db");
    db.backup(&copy).await.unwrap();
    let after = db.write([Statement::new("INSERT INTO note VALUES (50, 'after the copy')")]).await.unwrap();
    bench.proxy.start();
    wait_until_available(&db).await;
    db.synced(&after.receipt).await.unwrap();
    db.shutdown().await.unwrap();
    let device = |path: &Path| {
        let conn = rusqlite::Connection::open(path).unwrap();
        let sql = "SELECT value FROM _tidewater_meta WHERE key = 'device'";
        conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    let old = device(&copy);
    for companion in ["", "-wal", "-shm"] {
        let mut name = bench.path().into_os_string();
        name.push(companion);
        let _ = std::fs::remove_file(name);
    }
    std::fs::rename(&copy, bench.path()).unwrap();

    let db = bench.open().await;
    db.write([Statement::new("INSERT INTO note VALUES (60, 'on the copy')")]).await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    let all = "SELECT group_concat(body) FROM (SELECT body FROM note ORDER BY id)";
    assert_eq!(here(&db, all), "synced,pending in the copy,after the copy,on the copy");
    assert_eq!(bench.log.count("set back or copied"), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
    assert_ne!(device(&bench.path()), old);
}

/// A copy, and a look through the file, that take long say in the log how far they are, at an ever calmer pace, and that they are
/// done; those that do not take long say nothing.
#[actix_rt::test]
async fn long_work_on_the_file_says_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |after: f64| {
        Settings::builder()
            .set("sqlite.path", folder.path().join("app.db").display())
            .set("proxy.port", 1)
            .set("log.progress_after_s", after)
            .build()
            .unwrap()
    };
    let lines = Lines::default();
    let db = Database::open(settings(0.01), lines.logger()).await.unwrap();
    db.write([Statement::new(NOTE)]).await.unwrap();
    let said = |part: &str| lines.all().into_iter().filter(|line| line.contains(part)).collect::<Vec<_>>();
    // Until there is so much of it that it takes longer than a look at the clock, however quick this machine is.
    let mut rows = 50_000;
    let measured = |line: &String| line.contains("B of at most ") && line.contains("B/s, at most ");
    while !said("looking through the file: ").iter().any(measured) {
        assert!(rows < 50_000 << 6, "{:#?}", lines.all());
        let more = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                    INSERT INTO note (body) SELECT hex(randomblob(60)) FROM n";
        db.write([Statement::new(more).bind(rows)]).await.unwrap();
        rows *= 2;
        assert!(db.check_integrity().await.unwrap().is_whole());
    }
    let copied = db.backup(folder.path().join("copy.db")).await.unwrap();
    let check = said("looking through the file: ");
    assert!(check[check.len() - 1].contains("looking through the file: done in "), "{check:#?}");
    let copy = said("copying the file: ");
    assert!(copy[0].contains("B of ") && copy[0].contains("B/s, some "), "{copy:#?}");
    assert!(copy[copy.len() - 1].contains("copying the file: done in "), "{copy:#?}");
    // The waits double: in so many batches, each of which takes two milliseconds at least, few have a line.
    let batches = usize::try_from(copied.bytes >> 20).unwrap();
    assert!(copy.len() < 2 + batches / 2, "{batches} {copy:#?}");
    db.shutdown().await.unwrap();

    let calm = Lines::default();
    let db = Database::open(settings(600.0), calm.logger()).await.unwrap();
    assert!(db.check_integrity().await.unwrap().is_whole());
    db.backup(folder.path().join("second.db")).await.unwrap();
    assert_eq!(calm.count("the file: "), 0, "{:#?}", calm.all());
    db.shutdown().await.unwrap();
}

/// A copy that nobody waits for any more, once there was a line about it, is not left open in the log.
#[actix_rt::test]
async fn a_copy_that_is_given_up_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::builder()
        .set("sqlite.path", folder.path().join("app.db").display())
        .set("proxy.port", 1)
        .set("log.progress_after_s", 0.001);
    let lines = Lines::default();
    let db = Database::open(settings.build().unwrap(), lines.logger()).await.unwrap();
    db.write([
        Statement::new(NOTE),
        Statement::new(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120) \
             INSERT INTO note (body) SELECT zeroblob(1000000) FROM n",
        ),
    ])
    .await
    .unwrap();
    let told = wait::until("it has a line", PATIENCE, async || match lines.count("copying the file: ") {
        0 => Err(format!("{:#?}", lines.all())),
        _ => Ok(()),
    });
    let copying = db.backup(folder.path().join("copy.db"));
    tokio::select! {
        () = told => {}
        copied = copying => panic!("it is done before anybody looked: {copied:?}"),
    }
    wait::until("its end is told", PATIENCE, async || match lines.count("copying the file: not done") {
        0 => Err(format!("{:#?}", lines.all())),
        _ => Ok(()),
    })
    .await;
    assert!(!folder.path().join("copy.db").exists());
    db.shutdown().await.unwrap();
}

/// A sound file is whole; rows without parents, and damage, are told.
#[actix_rt::test]
async fn a_check_tells_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    db.write([
        Statement::new(NOTE),
        Statement::new("CREATE TABLE star (id INTEGER PRIMARY KEY, note_id INTEGER REFERENCES note)"),
        Statement::new("CREATE INDEX by_body ON note (body)"),
        insert("a"),
    ])
    .await
    .unwrap();
    let report = db.check_integrity().await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    let other = rusqlite::Connection::open(folder.path().join("app.db")).unwrap();
    other.execute_batch("PRAGMA foreign_keys = off; INSERT INTO star VALUES (1, 7), (2, 8), (3, 1)").unwrap();
    let orphans = [Orphans { table: "star".into(), parent: "note".into(), rows: 2 }];
    let report = db.check_integrity().await.unwrap();
    assert_eq!(
        (report.is_whole(), report.damage.as_slice(), report.orphans.as_slice()),
        (false, &[][..], &orphans[..])
    );
    drop(other);
    db.shutdown().await.unwrap();

    // The root page of the table becomes noise.
    let path = folder.path().join("app.db");
    let conn = rusqlite::Connection::open(&path).unwrap();
    let (root, size): (u64, u64) = conn
        .query_row("SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'note'", [], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs()))
        })
        .unwrap();
    drop(conn);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = usize::try_from((root - 1) * size).unwrap();
    bytes[at..at + 64].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let db = open(folder.path()).await;
    let report = db.check_integrity().await.unwrap();
    assert!(!report.damage.is_empty(), "{report:?}");
    db.shutdown().await.unwrap();
}
