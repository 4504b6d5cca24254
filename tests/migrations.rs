//! The app's own schema: each migration is done once, or not at all, and what it makes is synced like everything else.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::path::Path;

use harness::{Bench, Lines, here, there, wait_until_available};
use tidewater::settings::{Settings, Sources};
use tidewater::{Database, Error, MigrationError, Migrations, Statement, StoreError};

/// Nothing listens on port 1: a database without a cloud.
fn alone(folder: &Path) -> Sources {
    Settings::builder().set("sqlite.path", folder.join("app.db").display()).set("proxy.port", 1)
}

async fn open(folder: &Path) -> Database {
    Database::open(alone(folder).build().unwrap(), Lines::default().logger()).await.unwrap()
}

fn numbered<const N: usize>(all: [(i64, &str); N]) -> Migrations {
    Migrations::new(all.map(|(number, sql)| (number, format!("{number:04}.sql"), sql))).unwrap()
}

fn why(error: Error) -> MigrationError {
    match error {
        Error::Store(StoreError::Migration(why)) => why,
        other => panic!("{other}"),
    }
}

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL);";

/// They are applied in the order of their numbers, across gaps, and each once: also after a restart, with more of them.
#[actix_rt::test]
async fn each_is_applied_once_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let first = [(20, "INSERT INTO note (body) VALUES ('twenty')"), (3, NOTE)];
    assert_eq!(db.migrate(&numbered(first)).await.unwrap().applied, [3, 20]);
    assert_eq!(db.migrate(&numbered(first)).await.unwrap().applied, [0_i64; 0]);
    db.shutdown().await.unwrap();

    let db = open(folder.path()).await;
    let [twenty, three] = first;
    let more = numbered([twenty, three, (21, "INSERT INTO note (body) VALUES ('twenty-one')")]);
    assert_eq!(db.migrate(&more).await.unwrap().applied, [21]);
    assert_eq!(here(&db, "SELECT group_concat(body) FROM note"), "twenty,twenty-one");
    let recorded = "SELECT group_concat(number || name || length(sha256)) FROM _tidewater_migrations \
                    WHERE applied_at > '2020'";
    assert_eq!(here(&db, recorded), "30003.sql64,200020.sql64,210021.sql64");
    db.shutdown().await.unwrap();
}

/// A script is what SQLite's parser takes it for: semicolons in strings, comments and triggers, queries, no last semicolon.
#[actix_rt::test]
async fn a_script_is_parsed_by_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let script = "\u{feff}-- a; comment\n;;
        CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT DEFAULT 'a;b'); /* ; */
        CREATE TRIGGER shout AFTER INSERT ON note WHEN NEW.body GLOB '*;*' BEGIN
            UPDATE note SET body = CASE WHEN 1 THEN upper(NEW.body) END WHERE id = NEW.id;
            SELECT 1; -- END;
        END;
        INSERT INTO note DEFAULT VALUES; SELECT * FROM note;
        ; -- the end";
    db.migrate(&numbered([(1, script), (2, " -- nothing at all")])).await.unwrap();
    assert_eq!(here(&db, "SELECT body FROM note"), "A;B");
    db.shutdown().await.unwrap();
}

/// A statement that fails names file, line and reason; nothing of its file is done, those before it stay, and a corrected file
/// goes on from there.
#[actix_rt::test]
async fn a_file_that_fails_is_not_half_applied() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let table = [
        ("INSERT INTO note VALUES (1, 'x');\n\n  INSERT INTO note\n  VALUES (1, 'y');", 3, "UNIQUE"),
        ("INSERT INTO note VALUES (1, 'x');\nINSERT INTO nowhere VALUES (1);", 2, "no such table: nowhere"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY);\nSELECT\n  FRM t;", 3, "no such column: FRM"),
        ("DROP TABLE note;\n/* two\nlines */ SELECT ?1", 3, "parameter"),
        ("DROP TABLE note;\nSELECT 'open", 2, "unrecognized token"),
        ("DELETE FROM note;\nINSERT OR ROLLBACK INTO note VALUES (1, 'a'), (1, 'b');", 2, "UNIQUE"),
    ];
    for (sql, expected_line, part) in table {
        match why(db.migrate(&numbered([(1, NOTE), (2, sql)])).await.unwrap_err()) {
            MigrationError::Failed { file, line, reason } => {
                assert_eq!((file.as_str(), line), ("0002.sql", expected_line), "{sql}: {reason}");
                assert!(reason.contains(part) && reason.lines().count() == 1, "{reason}");
            }
            other => panic!("{sql}: {other}"),
        }
        assert_eq!(here(&db, "SELECT count(*) FROM note"), "0", "{sql}");
        assert_eq!(here(&db, "SELECT group_concat(number) FROM _tidewater_migrations"), "1", "{sql}");
    }
    let corrected = numbered([(1, NOTE), (2, "INSERT INTO note VALUES (1, 'x')")]);
    assert_eq!(db.migrate(&corrected).await.unwrap().applied, [2]);
    db.shutdown().await.unwrap();
}

/// What a write may not do is refused in any of the files before the first is applied; the same words inside a trigger,
/// a name or a string are none.
#[actix_rt::test]
async fn what_is_forbidden_is_refused_before_anything_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    for word in [
        "COMMIT",
        "BEGIN",
        "ROLLBACK",
        "SAVEPOINT a",
        "ATTACH 'x' AS x",
        "VACUUM",
        "PRAGMA foreign_keys = off",
    ] {
        let bad = format!("CREATE TABLE a (id INTEGER PRIMARY KEY);\n/* ; */ {};", word.to_lowercase());
        let both = Migrations::new([(1, "1.sql", NOTE), (2, "2.sql", bad.as_str())]).unwrap();
        let first = word.split(' ').next().unwrap();
        let expected = MigrationError::Forbidden { file: "2.sql".into(), line: 2, word: first.into() };
        assert_eq!(why(db.migrate(&both).await.unwrap_err()), expected);
        assert_eq!(here(&db, "SELECT count(*) FROM sqlite_schema WHERE name IN ('note', 'a')"), "0");
    }
    let fine = "CREATE TABLE \"commit\" (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO \"commit\" VALUES (1, '; COMMIT;')";
    db.migrate(&numbered([(1, fine)])).await.unwrap();
    db.shutdown().await.unwrap();
}

/// A changed file, a missing one and a late one are refused by name; the database stays as it is.
#[actix_rt::test]
async fn what_was_applied_is_not_guessed_about() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let four = (4, "INSERT INTO note (body) VALUES ('four')");
    db.migrate(&numbered([(2, NOTE), four])).await.unwrap();
    let changed = format!("{NOTE} -- a comment");
    let changed = Migrations::new([(2, "two", changed.as_str()), (4, "four", four.1)]).unwrap();
    let table = [
        (changed, MigrationError::Changed { file: "two".into() }),
        (numbered([(2, NOTE)]), MigrationError::Missing { number: 4, name: "0004.sql".into() }),
        (Migrations::default(), MigrationError::Missing { number: 2, name: "0002.sql".into() }),
        (
            numbered([(2, NOTE), (3, "DROP TABLE note"), four]),
            MigrationError::OutOfOrder { file: "0003.sql".into(), newest: 4 },
        ),
    ];
    for (given, expected) in table {
        let error = db.migrate(&given).await.unwrap_err();
        assert!(!error.retry_helps());
        assert_eq!(why(error), expected);
    }
    assert_eq!(here(&db, "SELECT body FROM note"), "four");
    db.shutdown().await.unwrap();
}

/// A parent that is made anew keeps its children; rows that a script leaves without a parent are refused, those that were
/// without one before are not its fault.
#[actix_rt::test]
async fn a_parent_that_is_made_anew_keeps_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let schema = "CREATE TABLE list (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE item (id INTEGER PRIMARY KEY, list_id INTEGER REFERENCES list ON DELETE CASCADE);
        INSERT INTO list VALUES (1, 'a'), (2, 'b'); INSERT INTO item VALUES (10, 1), (20, 2), (99, 7);";
    let error = why(db.migrate(&numbered([(1, schema)])).await.unwrap_err());
    assert!(
        matches!(&error, MigrationError::Orphans { table, parent, rows: 1, .. }
        if table == "item" && parent == "list"),
        "{error}"
    );
    let schema = schema.replace(", (99, 7)", "");
    let rebuild = "CREATE TABLE new_list (id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT '', color TEXT);
        INSERT INTO new_list (id, name) SELECT id, name FROM list;
        DROP TABLE list; ALTER TABLE new_list RENAME TO list; ALTER TABLE item ADD COLUMN done INTEGER;
        ALTER TABLE list DROP COLUMN color;";
    let both = numbered([(1, schema.as_str()), (2, rebuild)]);
    db.migrate(&both).await.unwrap();
    assert_eq!(here(&db, "SELECT group_concat(id || '-' || list_id) FROM item"), "10-1,20-2");
    // By another program, without foreign keys.
    let other = rusqlite::Connection::open(folder.path().join("app.db")).unwrap();
    other.execute_batch("PRAGMA foreign_keys = off; INSERT INTO item VALUES (99, 7, 0)").unwrap();
    let three = |sql| numbered([(1, schema.as_str()), (2, rebuild), (3, sql)]);
    let orphans = why(db.migrate(&three("DELETE FROM list WHERE id = 2")).await.unwrap_err());
    assert!(matches!(orphans, MigrationError::Orphans { rows: 1, .. }), "{orphans}");
    db.migrate(&three("DELETE FROM item WHERE list_id = 2; DELETE FROM list WHERE id = 2")).await.unwrap();
    // Foreign keys are on again.
    let refused = db.write([Statement::new("INSERT INTO item VALUES (11, 8, 0)")]).await.unwrap_err();
    assert!(refused.to_string().contains("FOREIGN KEY"), "{refused}");
    db.write([Statement::new("DELETE FROM list WHERE id = 1")]).await.unwrap();
    assert_eq!(here(&db, "SELECT group_concat(id) FROM item"), "99");
    db.shutdown().await.unwrap();
}

/// What a migration makes and changes goes to the cloud, and a table that is made anew takes along what was pending.
#[actix_rt::test]
async fn what_a_migration_does_is_synced() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    let first = (
        1,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    );
    db.migrate(&numbered([first])).await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    bench.proxy.stop();
    for sql in ["UPDATE note SET body = 'edited' WHERE id = 1", "DELETE FROM note WHERE id = 2"] {
        db.write([Statement::new(sql)]).await.unwrap();
    }
    let rebuild = "CREATE TABLE new_note (id INTEGER PRIMARY KEY, body TEXT NOT NULL, stars INTEGER NOT NULL DEFAULT 0);
        INSERT INTO new_note (id, body) SELECT id, body FROM note;
        DROP TABLE note;
        ALTER TABLE new_note RENAME TO note;
        UPDATE note SET stars = 5 WHERE id = 3; INSERT INTO note VALUES (4, 'd', 1)";
    db.migrate(&numbered([first, (2, rebuild)])).await.unwrap();
    bench.proxy.start();
    wait_until_available(&db).await;
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(here(&db, "SELECT group_concat(id || body || stars) FROM note"), "1edited0,3c5,4d1");
    let client = bench.cloud.connect().await;
    let all = "SELECT string_agg(id || body || stars, ',' ORDER BY id) FROM note";
    assert_eq!(there(&client, all).await, "1edited0,3c5,4d1");
    assert_eq!(there(&client, "SELECT count(*) FROM pg_class WHERE relname = 'new_note'").await, "0");
    let status = db.status_summary().await.sync;
    assert_eq!((status.parked, status.pending), (0, 0), "{status:?}");
    db.shutdown().await.unwrap();
}

/// A write that was sent before a migration comes before it, and one that is sent after it comes after.
#[actix_rt::test]
async fn migrations_keep_their_place_in_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path()).await;
    let one = (1, "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)");
    db.migrate(&numbered([one])).await.unwrap();
    let two = numbered([one, (2, "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN b TEXT")]);
    let (before, migrated, after) = tokio::join!(
        db.write([Statement::new("INSERT INTO t (a) VALUES ('x')")]),
        db.migrate(&two),
        db.write([Statement::new("INSERT INTO t (b) VALUES ('y')")]),
    );
    before.unwrap();
    assert_eq!(migrated.unwrap().applied, [2]);
    after.unwrap();
    db.shutdown().await.unwrap();
}

/// `sqlite.migrations` names a folder whose files are applied by the time that the database is open; when one of them cannot
/// be, it does not open, and the file is free.
#[actix_rt::test]
async fn a_folder_is_applied_when_the_database_opens() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("migrations");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("0001_note.sql"), NOTE).unwrap();
    let log = Lines::default();
    let settings = || alone(folder.path()).set("sqlite.migrations", files.display()).build().unwrap();
    let db = Database::open(settings(), log.logger()).await.unwrap();
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "0");
    let lines = log.all();
    let at = |part: &str| lines.iter().position(|line| line.contains(part)).unwrap();
    assert!(at("Migration applied: 0001_note.sql") < at("✅ Hybrid sync initialized"), "{lines:#?}");
    db.shutdown().await.unwrap();

    std::fs::write(files.join("0002_bad.sql"), "SELEC 1").unwrap();
    for _ in 0..2 {
        let log = Lines::default();
        let error = Database::open(settings(), log.logger()).await.unwrap_err().to_string();
        assert!(error.contains("0002_bad.sql, line 1: near \"SELEC\": syntax error"), "{error}");
        assert_eq!(log.count("Hybrid sync initialized"), 0);
    }
    std::fs::remove_dir_all(&files).unwrap();
    let error = Database::open(settings(), Lines::default().logger()).await.unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}
