//! P2 for schemas as apps have them: a shop, a music library, a message log, a ledger. Whatever was done to the file, by the
//! library and by SQLite's shell, while the cloud was there and while it was not, is in the cloud after a flush, and on
//! another device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use harness::{Bench, batch, run, statement, wait_for, wait_until_available, wait_until_flushed};
use tidewater::Database;
use tidewater_test_support::shop::{Design, Generator};
use tidewater_test_support::{compare, ledger, messages, music, shell, shop};

/// How many rows a file begins with.
const ROWS: usize = 160;

/// How many units are done to it at a time.
const UNITS: usize = 25;

struct Device {
    bench: Bench,
    db: Database,
    generator: Generator,
    design: &'static Design,
}

impl Device {
    async fn new(bench: Bench, design: &'static Design, window: usize, seed: u64) -> Self {
        let db = bench.open_with(bench.settings().set("sync.window_rows_max", window)).await;
        db.write(batch(design.schema)).await.unwrap();
        Self { bench, db, generator: Generator::of(design, seed), design }
    }

    /// The first rows: half by the library, half by the shell.
    async fn fill(&mut self) {
        let rows: Vec<_> = self.generator.statements(ROWS).collect();
        let (ours, theirs) = rows.split_at(ROWS / 2);
        for unit in ours.chunks(20) {
            self.db.write(unit.iter().cloned().map(statement)).await.unwrap();
        }
        let sql: Vec<String> = theirs.iter().map(shop::Stmt::to_sql_text).collect();
        self.shell(&sql);
    }

    /// Works on the file as it is: the library and the shell in turns.
    async fn work(&mut self) {
        let connection = rusqlite::Connection::open(self.bench.path()).unwrap();
        let units = self.generator.units(&connection, UNITS);
        drop(connection);
        for (n, some) in units.chunks(5).enumerate() {
            if n % 2 == 1 {
                let sql: Vec<String> = some
                    .iter()
                    .flat_map(|unit| {
                        let statements = unit.iter().map(shop::Stmt::to_sql_text);
                        ["BEGIN IMMEDIATE;".to_owned()]
                            .into_iter()
                            .chain(statements)
                            .chain(["COMMIT;".to_owned()])
                    })
                    .collect();
                self.shell(&sql);
                continue;
            }
            for unit in some {
                let done = self.db.write(unit.iter().cloned().map(statement)).await;
                done.unwrap_or_else(|error| panic!("{unit:#?}: {error}"));
            }
        }
    }

    fn shell(&self, sql: &[String]) {
        shell::sqlite3_shell(self.bench.path(), &format!("PRAGMA foreign_keys = ON;\n{}\n", sql.join("\n")));
    }

    async fn go_offline(&self) {
        self.bench.proxy.stop();
        wait_for(&self.db, "offline", |status| status.sync.state == "offline").await;
    }

    async fn go_online(&self) {
        self.bench.proxy.start();
        wait_until_available(&self.db).await;
    }

    /// Everything is there, and nothing on the way.
    async fn assert_in_the_cloud(&self) {
        wait_until_flushed(&self.db).await;
        self.bench.wait_until_equal(&self.db, self.design.synced).await;
        wait_until_flushed(&self.db).await;
        let status = self.db.status_summary().await;
        assert_eq!(
            (status.sync.parked, status.sync.conflicts),
            (0, 0),
            "{status:?} {:#?}",
            self.bench.log.all()
        );
        let violations = "SELECT count(*) FROM pragma_foreign_key_check";
        assert_eq!(harness::here(&self.db, violations), "0");
    }
}

/// A device with these windows, and another that begins when much has happened.
async fn history(design: &'static Design, window: usize, seed: u64) {
    let mut first = Device::new(Bench::new().await, design, window, 2 * seed).await;
    first.fill().await;
    first.go_online().await;
    first.assert_in_the_cloud().await;
    for _ in 0..2 {
        first.work().await;
        first.assert_in_the_cloud().await;
        first.go_offline().await;
        first.work().await;
        first.work().await;
        first.go_online().await;
        first.assert_in_the_cloud().await;
    }
    let another = first.bench.another();
    another.proxy.start();
    let mut second = Device::new(another, design, window, 2 * seed + 1).await;
    second.assert_in_the_cloud().await;
    let client = first.bench.cloud.connect().await;
    compare::assert_equal(&first.bench.path(), &client, "public", design.synced).await;
    // What an app's triggers keep beside its tables is its own: they do not run for what comes from the cloud.
    if std::ptr::eq(design, &messages::DESIGN) {
        run(
            &second.db,
            "DELETE FROM message_text;\nINSERT INTO message_text (rowid, body) SELECT id, body FROM message",
        )
        .await;
    }
    second.go_offline().await;
    second.work().await;
    second.go_online().await;
    second.assert_in_the_cloud().await;
    first.assert_in_the_cloud().await;
    for device in [first, second] {
        device.db.shutdown().await.unwrap();
    }
}

/// `TIDEWATER_SEED` names the first history, `TIDEWATER_HISTORIES` says how many; each with small windows and with large ones.
async fn histories(design: &'static Design) {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let first = number("TIDEWATER_SEED", 1);
    for seed in first..first + number("TIDEWATER_HISTORIES", 1) {
        for window in [7, 2000] {
            println!("seed {seed}, windows of {window}");
            history(design, window, seed).await;
        }
    }
}

/// Orders, stock, prices: what `main_job.rs` shows, by two programs and twice over.
#[actix_rt::test]
async fn a_shop_arrives() {
    histories(&shop::DESIGN).await;
}

/// Albums and tracks that refer to each other, playlists whose keys are positions, counters that triggers keep.
#[actix_rt::test]
async fn a_music_library_arrives() {
    histories(&music::DESIGN).await;
}

/// Threads within threads, attachments, and a full-text table beside them.
#[actix_rt::test]
async fn a_message_log_arrives() {
    histories(&messages::DESIGN).await;
}

/// Double entry: composite keys, deferred ones, generated columns, balances, renumbered accounts.
#[actix_rt::test]
async fn a_ledger_arrives() {
    histories(&ledger::DESIGN).await;
}

/// The feed names rows by the key that a table had, and it has got another one since, on both sides: the table keeps its number
/// in the cloud, and the entries of before are no keys of it any more. The table is compared as a whole.
#[actix_rt::test]
async fn a_feed_of_before_the_table_got_another_key_is_read() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    bench.proxy.start();
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, region TEXT NOT NULL, body TEXT)").await;
    run(&db, "INSERT INTO note VALUES (1, 'eu', 'one'), (2, 'us', 'two')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    db.shutdown().await.unwrap();
    bench
        .cloud
        .execute_batch(
            "UPDATE note SET region = 'x', body = body || ', moved'; \
             ALTER TABLE note DROP CONSTRAINT note_pkey, ADD PRIMARY KEY (id, region); \
             INSERT INTO note VALUES (2, 'y', 'a second two')",
        )
        .await;
    let file = rusqlite::Connection::open(bench.path()).unwrap();
    file.execute_batch(
        "BEGIN; CREATE TABLE wider (id INTEGER NOT NULL, region TEXT NOT NULL, body TEXT, PRIMARY KEY (id, region)); \
         INSERT INTO wider SELECT id, 'x', body FROM note; DROP TABLE note; ALTER TABLE wider RENAME TO note; COMMIT",
    )
    .unwrap();
    drop(file);
    let db = bench.open().await;
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    bench.cloud.execute_batch("UPDATE note SET body = 'on' WHERE region = 'y'").await;
    bench.wait_until_equal(&db, &["note"]).await;
    let bodies = "SELECT group_concat(body, ';') FROM (SELECT body FROM note ORDER BY id, region)";
    assert_eq!(harness::here(&db, bodies), "one, moved;two, moved;on");
    let actors = db.status_summary().await.actors;
    assert!(actors.iter().all(|actor| actor.restarts == 0), "{actors:?} {:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Whatever somebody with a right on the feed writes into it in the place of a key, it ends no device, and nothing is missed.
#[actix_rt::test]
async fn nonsense_in_the_feed_in_the_place_of_a_key_costs_a_comparison() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    bench.proxy.start();
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    run(&db, "INSERT INTO note VALUES (1, 'one'), (2, 'two'), (3, 'three')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    for (at, key) in [
        "{}",
        "{1,2}",
        "{NULL}",
        "{{1},{NULL}}",
        "{{1,2}}",
        "{{{1}},{{2}}}",
        "{abc}",
        "{99999999999999999999}",
    ]
    .iter()
    .enumerate()
    {
        let nonsense = format!(
            "UPDATE note SET body = 'seen {at}' WHERE id = 1; DELETE FROM note WHERE id = 2; \
             INSERT INTO note VALUES (2, 'again {at}'); \
             UPDATE tidewater.changes SET key = '{key}' WHERE xid = pg_current_xact_id()"
        );
        bench.cloud.execute_batch(&nonsense).await;
        bench.wait_until_equal(&db, &["note"]).await;
        assert_eq!(harness::here(&db, "SELECT body FROM note WHERE id = 1"), format!("seen {at}"));
    }
    wait_until_flushed(&db).await;
    let actors = db.status_summary().await.actors;
    assert!(actors.iter().all(|actor| actor.restarts == 0), "{actors:?} {:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}
