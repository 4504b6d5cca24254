//! What is set for single tables: which way their rows go, which of the cloud's come home, which columns take no part; and that
//! each of it can change from one run to the next.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{
    Bench, PATIENCE, here, run, there, wait_for, wait_until_available, wait_until_flushed, wait_until_here,
    wait_until_there,
};
use tidewater::Database;
use tidewater_test_support::{compare, shell, wait};
use tokio_postgres::Client;

/// `beat` goes both ways: what comes after something else shows that that has been seen.
const TABLES: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY)";

const ALL: &str = "SELECT coalesce(group_concat(id || ':' || coalesce(body, '-'), ' '), '') FROM (SELECT * FROM note ORDER BY id)";
const ALL_THERE: &str =
    "SELECT coalesce(string_agg(id || ':' || coalesce(body, '-'), ' ' ORDER BY id), '') FROM note";

/// A device whose settings for tables change from run to run.
struct Device {
    bench: Bench,
    db: Database,
    beats: u32,
}

impl Device {
    async fn new(bench: Bench, sql: &str, set: &[(&str, &str)]) -> Self {
        let db = open(&bench, set).await;
        run(&db, sql).await;
        bench.proxy.start();
        wait_until_available(&db).await;
        Self { bench, db, beats: 0 }
    }

    /// The next run, with other settings.
    async fn again(self, set: &[(&str, &str)]) -> Self {
        self.db.shutdown().await.unwrap();
        let db = open(&self.bench, set).await;
        wait_until_available(&db).await;
        Self { db, ..self }
    }

    /// Everything that the cloud has now has been seen here, and what waits here has been tried.
    async fn sees_all(&mut self, client: &Client) {
        wait_until_there(&self.db, client, "SELECT to_regclass('beat') IS NOT NULL", "true").await;
        self.beats += 1;
        let beat = format!("{}{:05}", self.bench.proxy.port(), self.beats);
        client.batch_execute(&format!("INSERT INTO beat VALUES ({beat})")).await.unwrap();
        wait_until_here(&self.db, &format!("SELECT count(*) FROM beat WHERE id = {beat}"), "1").await;
        self.db.flush().await.unwrap();
    }

    async fn pending(&self) -> u64 {
        self.db.status_summary().await.sync.pending
    }
}

async fn open(bench: &Bench, set: &[(&str, &str)]) -> Database {
    let settings = set.iter().fold(bench.settings(), |settings, (key, value)| settings.set(key, value));
    bench.open_with(settings).await
}

fn direction(word: &str) -> [(&str, &str); 1] {
    [("tables.note.direction", word)]
}

/// A conflict that the file remembers: the local value, the cloud's, and whose is kept.
const LOST: &str = "SELECT group_concat(local || ' ' || cloud || ' ' || kept) FROM _tidewater_conflicts";

const FEED_TRIGGERS: &str =
    "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'note'::regclass AND tgname LIKE 'tidewater%'";

/// What is written here is there; what others write does not come here, and no trigger of the feed's is asked for. What they
/// did to the same row is found when it is sent.
#[actix_rt::test]
async fn a_table_that_is_pushed_is_not_pulled() {
    let mut a = Device::new(Bench::new().await, TABLES, &direction("push")).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note (id, body) VALUES (1, 'a'), (2, 'b')").await;
    wait_until_there(&a.db, &client, "SELECT to_regclass('note') IS NOT NULL", "true").await;
    wait_until_there(&a.db, &client, ALL_THERE, "1:a 2:b").await;
    client
        .batch_execute("INSERT INTO note VALUES (3, 'plain'); DELETE FROM note WHERE id = 2")
        .await
        .unwrap();
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "1:a 2:b");
    assert_eq!(there(&client, FEED_TRIGGERS).await, "0");

    // Another device takes part in both ways, and brings the feed.
    let mut b = Device::new(a.bench.another(), TABLES, &[]).await;
    wait_until_here(&b.db, ALL, "1:a 3:plain").await;
    assert_eq!(there(&client, FEED_TRIGGERS).await, "4");
    run(&b.db, "UPDATE note SET mood = 'glad' WHERE id = 1;\nUPDATE note SET body = 'b3' WHERE id = 3").await;
    wait_until_flushed(&b.db).await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, "SELECT count(mood) FROM note"), "0");
    run(&a.db, "UPDATE note SET body = 'a2' WHERE id = 1;\nUPDATE note SET body = 'back' WHERE id = 2").await;
    wait_until_flushed(&a.db).await;
    wait_until_here(&b.db, ALL, "1:a2 2:back 3:b3").await;
    assert_eq!(there(&client, "SELECT mood FROM note WHERE id = 1").await, "glad");
    assert_eq!(here(&a.db, ALL), "1:a2 2:back");
    b.sees_all(&client).await;
    assert_eq!((a.pending().await, b.pending().await), (0, 0));
}

/// The cloud's rows come home. What is written here stays here and waits; the cloud's next word on a row takes its place, and
/// what was written is on record.
#[actix_rt::test]
async fn a_table_that_is_pulled_is_not_pushed() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute("CREATE TABLE note (id bigint PRIMARY KEY, body text, mood text, extra int NOT NULL)")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO note VALUES (1, 'a', NULL, 0), (2, 'b', NULL, 0)").await.unwrap();
    let mut a = Device::new(bench, TABLES, &direction("pull")).await;
    wait_until_here(&a.db, ALL, "1:a 2:b").await;

    let receipt =
        run(&a.db, "UPDATE note SET body = 'mine' WHERE id = 1;\nINSERT INTO note VALUES (9, 'own', '')")
            .await;
    let refused = a.db.synced(&receipt).await.unwrap_err().to_string();
    assert!(refused.contains("table note: what is written here stays here"), "{refused}");
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "1:mine 2:b 9:own");
    assert_eq!(there(&client, ALL_THERE).await, "1:a 2:b");
    assert_eq!(a.pending().await, 2);
    assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_conflicts"), "0");

    client
        .batch_execute("UPDATE note SET body = 'theirs' WHERE id = 1; DELETE FROM note WHERE id = 2")
        .await
        .unwrap();
    wait_until_here(&a.db, ALL, "1:theirs 9:own").await;
    assert_eq!(here(&a.db, LOST), "\"mine\" \"theirs\" cloud");
    assert_eq!(a.pending().await, 1);

    // A row that is deleted here comes back with the cloud's next word, and one that was edited here goes with it.
    run(&a.db, "DELETE FROM note WHERE id = 1").await;
    client
        .batch_execute(
            "UPDATE note SET mood = 'calm' WHERE id = 1; INSERT INTO note VALUES (3, 'c', NULL, 0)",
        )
        .await
        .unwrap();
    wait_until_here(&a.db, ALL, "1:theirs 3:c 9:own").await;
    run(&a.db, "UPDATE note SET body = 'c2' WHERE id = 3").await;
    client.batch_execute("DELETE FROM note WHERE id = 3").await.unwrap();
    wait_until_here(&a.db, ALL, "1:theirs 9:own").await;
    assert_eq!(
        here(&a.db, "SELECT count(*) FROM _tidewater_conflicts WHERE column IS NULL AND kept = 'cloud'"),
        "2"
    );
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:theirs");
    wait_until_there(&a.db, &client, "SELECT count(*) FROM tidewater.conflicts", "3").await;
}

/// A table that is only pulled is made nowhere, and comes when somebody else has made it.
#[actix_rt::test]
async fn a_table_that_is_pulled_is_not_made_in_the_cloud() {
    let mut a = Device::new(Bench::new().await, TABLES, &direction("pull")).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'own', NULL)").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, "SELECT to_regclass('note') IS NULL").await, "true");
    assert_eq!(a.bench.log.count("the cloud has no such table, and its direction is pull"), 1);
    let b = Device::new(a.bench.another(), TABLES, &[]).await;
    run(&b.db, "INSERT INTO note VALUES (2, 'b', NULL)").await;
    wait_until_flushed(&b.db).await;
    a.db.flush().await.unwrap();
    wait_until_here(&a.db, ALL, "1:own 2:b").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "2:b");
}

/// A table that is this file's alone is not watched, not made in the cloud, and not compared; it is said once, and what
/// refers to it does so here only.
#[actix_rt::test]
async fn a_table_that_stays_local_is_nobody_else_s() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note (id))";
    let bench = Bench::new().await;
    shell::sqlite3_shell(bench.path(), &format!("{sql};\n"));
    let mut a = Device::new(bench, "SELECT 1", &direction("none")).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'own', NULL);\nINSERT INTO line VALUES (5, 1)").await;
    a.sees_all(&client).await;
    wait_until_there(&a.db, &client, "SELECT string_agg(id || '>' || note, ' ') FROM line", "5>1").await;
    assert_eq!(there(&client, "SELECT to_regclass('note') IS NULL").await, "true");
    assert_eq!(a.pending().await, 0);
    assert_eq!(
        here(&a.db, "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'note'"),
        "0"
    );
    run(&a.db, "CREATE TABLE later (id INTEGER PRIMARY KEY)").await;
    a.sees_all(&client).await;
    assert_eq!(a.bench.log.count("table note stays local: tables.note.direction is none"), 1);
}

/// What waits when a table becomes this file's alone goes on waiting, and is sent when it is everybody's again; what happened
/// meanwhile on either side is found by comparing.
#[actix_rt::test]
async fn a_table_can_be_taken_out_and_put_back() {
    let mut a = Device::new(Bench::new().await, TABLES, &[]).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note (id, body) VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')").await;
    wait_until_flushed(&a.db).await;
    a.bench.proxy.stop();
    wait_for(&a.db, "offline", |status| status.sync.state == "offline").await;
    run(&a.db, "UPDATE note SET body = 'a2' WHERE id = 1;\nDELETE FROM note WHERE id = 4").await;
    assert_eq!(a.pending().await, 2);

    a.bench.proxy.start();
    a = a.again(&direction("none")).await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:a 2:b 3:c 4:d");
    assert_eq!(a.pending().await, 2);
    assert_eq!(a.bench.log.count("2 of its changes that the cloud has not seen go on waiting"), 1);
    assert_eq!(a.db.status_summary().await.sync.parked, 0);
    run(&a.db, "UPDATE note SET body = 'b2' WHERE id = 2;\nINSERT INTO note VALUES (7, 'new', NULL)").await;
    client
        .batch_execute("UPDATE note SET mood = 'theirs' WHERE id = 1; UPDATE note SET body = 'c2' WHERE id = 3; INSERT INTO note VALUES (8, 'plain')")
        .await
        .unwrap();
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "1:a2 2:b2 3:c 7:new");

    a = a.again(&direction("both")).await;
    wait_until_flushed(&a.db).await;
    a.sees_all(&client).await;
    a.bench.wait_until_equal(&a.db, &["note"]).await;
    // Of rows that nobody watched, whoever else has changed one since knows better, and what was here is on record.
    assert_eq!(here(&a.db, ALL), "1:a2 2:b2 3:c2 7:new 8:plain");
    let lost =
        "SELECT group_concat(local) FROM _tidewater_conflicts WHERE kept = 'cloud' AND cloud = '\"c2\"'";
    assert_eq!(here(&a.db, lost), "\"c\"");
    assert_eq!(a.pending().await, 0);
}

/// A table that was only pushed is compared when its rows come home again: whatever others wrote meanwhile is here then.
#[actix_rt::test]
async fn what_others_wrote_to_a_pushed_table_comes_when_it_is_pulled_again() {
    let mut a = Device::new(Bench::new().await, TABLES, &[]).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note (id, body) VALUES (1, 'a'), (2, 'b')").await;
    wait_until_flushed(&a.db).await;
    a = a.again(&direction("push")).await;
    a.sees_all(&client).await;
    client.batch_execute("UPDATE note SET body = 'a2' WHERE id = 1; DELETE FROM note WHERE id = 2; INSERT INTO note VALUES (3, 'c')").await.unwrap();
    run(&a.db, "INSERT INTO note VALUES (4, 'd', NULL)").await;
    wait_until_flushed(&a.db).await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "1:a 2:b 4:d");
    for (word, expected) in [("pull", "1:a2 3:c 4:d"), ("push", "1:a2 3:c 4:d"), ("both", "1:a2 3:c 4:d")] {
        a = a.again(&direction(word)).await;
        wait_until_here(&a.db, ALL, expected).await;
        a.sees_all(&client).await;
        assert_eq!(here(&a.db, ALL), expected, "{word}");
    }
    assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_conflicts"), "0");
    assert_eq!(there(&client, ALL_THERE).await, "1:a2 3:c 4:d");
}

/// What was written into a table that is only pulled is sent as soon as it may be.
#[actix_rt::test]
async fn what_waits_in_a_pulled_table_is_sent_when_it_is_pushed() {
    let mut a = Device::new(Bench::new().await, TABLES, &[]).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note (id, body) VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    wait_until_flushed(&a.db).await;
    a = a.again(&direction("pull")).await;
    let sql = "UPDATE note SET body = 'a2' WHERE id = 1;\nDELETE FROM note WHERE id = 2;\nINSERT INTO note VALUES (4, 'd', NULL)";
    run(&a.db, sql).await;
    client.batch_execute("UPDATE note SET mood = 'theirs' WHERE id = 3").await.unwrap();
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:a 2:b 3:c");
    for word in ["push", "both"] {
        a = a.again(&direction(word)).await;
        wait_until_flushed(&a.db).await;
        assert_eq!(there(&client, ALL_THERE).await, "1:a2 3:c 4:d", "{word}");
    }
    a.bench.wait_until_equal(&a.db, &["note"]).await;
    assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_conflicts"), "0");
}

/// A table that was there before Tidewater, and is only pulled, follows the cloud: what was in it otherwise is on record.
#[actix_rt::test]
async fn a_pulled_table_that_was_there_before_follows_the_cloud() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client.batch_execute("CREATE TABLE note (id bigint PRIMARY KEY, body text, mood text)").await.unwrap();
    client.batch_execute("INSERT INTO note VALUES (1, 'a'), (2, 'b')").await.unwrap();
    shell::sqlite3_shell(
        bench.path(),
        &format!("{TABLES};\nINSERT INTO note VALUES (1, 'a', NULL), (2, 'old', NULL), (3, 'own', NULL);\n"),
    );
    let mut a = Device::new(bench, "SELECT 1", &direction("pull")).await;
    wait_until_here(&a.db, ALL, "1:a 2:b 3:own").await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, LOST), "\"old\" \"b\" cloud");
    assert_eq!((a.pending().await, there(&client, ALL_THERE).await.as_str()), (1, "1:a 2:b"));
}

/// A row that comes home brings what it refers to, also from a table whose rows do not come home by themselves.
#[actix_rt::test]
async fn a_pulled_row_brings_its_parent_from_a_pushed_table() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note (id) ON DELETE CASCADE)";
    let mut a = Device::new(Bench::new().await, sql, &direction("push")).await;
    let client = a.bench.cloud.connect().await;
    a.sees_all(&client).await;
    client
        .batch_execute("INSERT INTO note VALUES (1, 'one'), (2, 'two'); INSERT INTO line VALUES (7, 2)")
        .await
        .unwrap();
    wait_until_here(&a.db, "SELECT group_concat(id) FROM line", "7").await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "2:two");
    assert_eq!(here(&a.db, "SELECT count(*) FROM pragma_foreign_key_check"), "0");
    client.batch_execute("DELETE FROM note WHERE id = 2").await.unwrap();
    wait_until_here(&a.db, "SELECT count(*) FROM line", "0").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:one");
}

/// Whatever was set from run to run, on two devices that write and delete all the time: as soon as nothing is set any more, all
/// sides hold the same, and nothing waits.
#[actix_rt::test]
async fn settings_that_change_end_in_the_same_rows() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let first = number("TIDEWATER_SEED", 1);
    for seed in first..first + number("TIDEWATER_HISTORIES", 2) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note (id) ON DELETE CASCADE, body TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY)";
        let bench = Bench::new().await;
        let client = bench.cloud.connect().await;
        let other = bench.another();
        let mut devices =
            vec![Some(Device::new(bench, sql, &[]).await), Some(Device::new(other, sql, &[]).await)];
        for _ in 0..5 {
            for place in &mut devices {
                let note = *rng.choice(&["both", "both", "push", "pull", "none"]).unwrap();
                // What refers to a row that others delete goes with it only where it is synced.
                let line = *rng.choice(&["both", "both", "push", "pull"]).unwrap();
                let mut set = vec![("tables.note.direction", note), ("tables.LINE.direction", line)];
                for more in [
                    ("tables.note.where", "id % 2 = 0"),
                    ("tables.line.where", "note < 5"),
                    ("tables.note.columns_left_out", "mood"),
                    ("tables.line.columns_left_out", "body"),
                ] {
                    if rng.u8(0..4) == 0 {
                        set.push(more);
                    }
                }
                let mut device = place.take().unwrap().again(&set).await;
                for _ in 0..12 {
                    let (id, note, text) = (rng.u8(1..9), rng.u8(1..9), rng.u16(..));
                    let sql = match rng.u8(0..6) {
                        0 | 1 => format!("INSERT OR REPLACE INTO note (id, body) VALUES ({id}, '{text}')"),
                        2 => format!("INSERT OR IGNORE INTO line VALUES ({id}, {note}, '{text}')"),
                        3 => format!("UPDATE line SET body = '{text}' WHERE id = {id}"),
                        4 => format!("UPDATE note SET mood = '{text}' WHERE id = {id}"),
                        _ => format!("DELETE FROM {} WHERE id = {id}", rng.choice(["note", "line"]).unwrap()),
                    };
                    // Without its parent a line is refused: the app would hear of it.
                    let _ = device.db.write([tidewater::Statement::new(sql)]).await;
                }
                if rng.bool() {
                    device.sees_all(&client).await;
                }
                *place = Some(device);
            }
        }
        let mut ended = vec![];
        for device in devices {
            ended.push(device.unwrap().again(&[]).await);
        }
        wait::until(&format!("everything to be equal, seed {seed}"), PATIENCE * 2, async || {
            let mut said = vec![];
            for device in &ended {
                let sync = device.db.status_summary().await.sync;
                let tables = ["note", "line"];
                let differences =
                    compare::tables_differ(&device.bench.path(), &client, "public", &tables).await;
                if sync.pending > 0 || sync.parked > 0 || !differences.is_empty() {
                    said.push(format!("{sync:?} {differences:#?} {:#?}", device.bench.log.all()));
                }
            }
            if said.is_empty() { Ok(()) } else { Err(said.join("\n")) }
        })
        .await;
        for device in ended {
            assert_eq!(here(&device.db, "SELECT count(*) FROM pragma_foreign_key_check"), "0", "seed {seed}");
            device.db.shutdown().await.unwrap();
        }
    }
}

/// Only the rows that fit come home; one that does not fit any more goes away here and nowhere else, and what is written here is
/// sent whether it fits or not. Another condition is another comparison.
#[actix_rt::test]
async fn rows_that_do_not_fit_stay_in_the_cloud() {
    let mut b = Device::new(Bench::new().await, TABLES, &[]).await;
    let client = b.bench.cloud.connect().await;
    run(&b.db, "INSERT INTO note VALUES (1, 'a', 'glad'), (2, 'b', 'sad'), (3, 'c', 'glad'), (4, 'd', NULL)")
        .await;
    wait_until_flushed(&b.db).await;
    let glad = [("tables.note.where", "mood = 'glad' -- or not")];
    let mut a = Device::new(b.bench.another(), TABLES, &glad).await;
    wait_until_here(&a.db, ALL, "1:a 3:c").await;

    client
        .batch_execute(
            "UPDATE note SET mood = 'sad' WHERE id = 1; UPDATE note SET mood = 'glad' WHERE id = 2;
             UPDATE note SET body = 'unseen' WHERE id = 4; INSERT INTO note VALUES (5, 'e', 'glad'), (6, 'f', 'sad')",
        )
        .await
        .unwrap();
    wait_until_here(&a.db, ALL, "2:b 3:c 5:e").await;
    run(&a.db, "INSERT INTO note VALUES (7, 'mine', 'sad');\nUPDATE note SET mood = 'sad', body = 'c2' WHERE id = 3;\nDELETE FROM note WHERE id = 5").await;
    wait_until_flushed(&a.db).await;
    let all = "1:a 2:b 3:c2 4:unseen 6:f 7:mine";
    assert_eq!(there(&client, ALL_THERE).await, all);
    wait_until_here(&b.db, ALL, all).await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_conflicts"), "0");

    a = a.again(&[("tables.note.where", "mood = 'sad' OR id = 4")]).await;
    wait_until_here(&a.db, ALL, "1:a 3:c2 4:unseen 6:f 7:mine").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, all);
    a = a.again(&[]).await;
    a.bench.wait_until_equal(&a.db, &["note"]).await;
    assert_eq!((a.pending().await, there(&client, ALL_THERE).await.as_str()), (0, all));
    b.sees_all(&client).await;
}

/// An edit that waits while its row leaves the condition is sent, and not lost.
#[actix_rt::test]
async fn an_edit_of_a_row_that_leaves_the_condition_is_sent() {
    let glad = [("tables.note.where", "mood = 'glad'")];
    let mut a = Device::new(Bench::new().await, TABLES, &glad).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'a', 'glad')").await;
    wait_until_flushed(&a.db).await;
    a.bench.proxy.stop();
    wait_for(&a.db, "offline", |status| status.sync.state == "offline").await;
    run(&a.db, "UPDATE note SET body = 'edited' WHERE id = 1").await;
    client.batch_execute("UPDATE note SET mood = 'sad' WHERE id = 1").await.unwrap();
    a.bench.proxy.start();
    wait_until_flushed(&a.db).await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, "SELECT body || mood FROM note").await, "editedsad");
    let sync = a.db.status_summary().await.sync;
    assert_eq!((sync.parked, sync.conflicts), (0, 0));
}

/// A child whose parent does not fit waits until it does, and goes away with it.
#[actix_rt::test]
async fn a_child_waits_for_a_parent_that_fits() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note (id) ON DELETE CASCADE)";
    let mut b = Device::new(Bench::new().await, sql, &[]).await;
    let client = b.bench.cloud.connect().await;
    run(&b.db, "INSERT INTO note VALUES (1, 'a', 'glad'), (2, 'b', 'sad');\nINSERT INTO line VALUES (11, 1), (12, 2)").await;
    wait_until_flushed(&b.db).await;
    let mut a = Device::new(b.bench.another(), sql, &[("tables.note.where", "mood = 'glad'")]).await;
    let lines = "SELECT coalesce(group_concat(id), '') FROM (SELECT id FROM line ORDER BY id)";
    a.sees_all(&client).await;
    assert_eq!((here(&a.db, ALL).as_str(), here(&a.db, lines).as_str()), ("1:a", "11"));
    client.batch_execute("UPDATE note SET mood = 'glad' WHERE id = 2").await.unwrap();
    wait_until_here(&a.db, lines, "11,12").await;
    client.batch_execute("UPDATE note SET mood = 'sad' WHERE id = 1").await.unwrap();
    wait_until_here(&a.db, lines, "12").await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "2:b");
    assert_eq!(here(&a.db, "SELECT count(*) FROM pragma_foreign_key_check"), "0");
    assert_eq!(there(&client, "SELECT count(*) FROM line").await, "2");
    b.sees_all(&client).await;
    assert_eq!(here(&b.db, lines), "11,12");
}

/// A condition that PostgreSQL does not understand concerns its table alone, and is said once, with the reason.
#[actix_rt::test]
async fn a_condition_that_is_none_is_said() {
    for (condition, reason) in [
        ("moood = 'glad'", "moood"),
        ("id", "must be type boolean"),
        ("true) OR (true; DROP TABLE beat", "syntax error"),
    ] {
        let mut a = Device::new(Bench::new().await, TABLES, &[("tables.note.where", condition)]).await;
        let client = a.bench.cloud.connect().await;
        run(&a.db, "INSERT INTO note VALUES (1, 'a', NULL)").await;
        a.sees_all(&client).await;
        let lines = a.bench.log.all();
        let line = lines.iter().find(|line| line.contains("tables.note.where cannot be used")).unwrap();
        assert!(line.contains(reason), "{line}");
        a.db.flush().await.unwrap();
        assert_eq!(a.bench.log.count("tables.note.where cannot be used"), 1);
        assert_eq!((a.pending().await, there(&client, "SELECT count(*) FROM note").await.as_str()), (1, "0"));
    }
}

/// Columns that are left out are not made in the cloud, not sent and not pulled; what is in them here stays, whatever happens to
/// the rest of the row.
#[actix_rt::test]
async fn columns_that_are_left_out_stay_as_they_are() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT UNIQUE, mood TEXT, draft TEXT NOT NULL DEFAULT 'none');
CREATE TABLE beat (id INTEGER PRIMARY KEY)";
    let left_out = [("tables.note.columns_left_out", "MOOD, draft, nowhere")];
    let mut a = Device::new(Bench::new().await, sql, &left_out).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'a', 'glad', 'd1'), (2, 'b', 'sad', 'd2')").await;
    wait_until_there(&a.db, &client, "SELECT to_regclass('note') IS NOT NULL", "true").await;
    wait_until_there(&a.db, &client, ALL_THERE, "1:a 2:b").await;
    assert_eq!(
        there(&client, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0")
            .await,
        "2"
    );
    assert_eq!(a.bench.log.count("columns_left_out names nowhere, which it does not have"), 1);

    // An edit of theirs is nobody's business.
    run(&a.db, "UPDATE note SET draft = 'd1b', mood = NULL WHERE id = 1").await;
    assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_journal_2"), "0");
    // Values that change places take a row away for a moment.
    client
        .batch_execute(
            "UPDATE note SET body = 'x' WHERE id = 1; UPDATE note SET body = 'a' WHERE id = 2;
             UPDATE note SET body = 'b' WHERE id = 1; INSERT INTO note VALUES (3, 'c')",
        )
        .await
        .unwrap();
    wait_until_here(&a.db, ALL, "1:b 2:a 3:c").await;
    assert_eq!(
        here(
            &a.db,
            "SELECT group_concat(coalesce(mood, '-') || draft) FROM (SELECT * FROM note ORDER BY id)"
        ),
        "-d1b,sadd2,-none"
    );
    run(&a.db, "UPDATE note SET body = 'c2', draft = 'd3' WHERE id = 3").await;
    wait_until_flushed(&a.db).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:b 2:a 3:c2");

    // Back in, what is in them here is sent, and what others wrote into them meanwhile is on record.
    client
        .batch_execute(
            "ALTER TABLE note ADD draft text, ADD mood text; UPDATE note SET draft = 'theirs' WHERE id = 2",
        )
        .await
        .unwrap();
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, "SELECT draft FROM note WHERE id = 2"), "d2");
    a = a.again(&[("tables.note.columns_left_out", "mood")]).await;
    wait_until_there(&a.db, &client, "SELECT string_agg(draft, ' ' ORDER BY id) FROM note", "d1b d2 d3")
        .await;
    wait_until_flushed(&a.db).await;
    assert_eq!(there(&client, "SELECT count(mood) FROM note").await, "0");
    assert_eq!(
        here(
            &a.db,
            "SELECT group_concat(local || cloud || kept) FROM _tidewater_conflicts WHERE cloud = '\"theirs\"'"
        ),
        "\"d2\"\"theirs\"local"
    );
    a = a.again(&[]).await;
    wait_until_there(&a.db, &client, "SELECT string_agg(mood, ' ' ORDER BY id) FROM note", "sad").await;
    wait_until_flushed(&a.db).await;
    a.bench.wait_until_equal(&a.db, &["note"]).await;
}

/// A column by which rows are told apart cannot be left out: the table stays local, with the reason.
#[actix_rt::test]
async fn a_key_cannot_be_left_out() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT UNIQUE);
CREATE TABLE other (id INTEGER PRIMARY KEY);
CREATE TABLE beat (id INTEGER PRIMARY KEY)";
    let left_out = [("tables.note.columns_left_out", "mood"), ("tables.other.columns_left_out", "id")];
    let bench = Bench::new().await;
    shell::sqlite3_shell(bench.path(), &format!("{sql};\n"));
    let mut a = Device::new(bench, "SELECT 1", &left_out).await;
    let client = a.bench.cloud.connect().await;
    a.sees_all(&client).await;
    assert_eq!(
        a.bench
            .log
            .count("table other stays local: tables.other.columns_left_out names id, of its primary key"),
        1
    );
    assert_eq!(a.bench.log.count("table note stays local: its unique index"), 1);
    assert_eq!(
        there(&client, "SELECT to_regclass('note') IS NULL AND to_regclass('other') IS NULL").await,
        "true"
    );
}

/// A round that was on its way when a table became this file's alone takes effect once, whether it had arrived or not.
#[actix_rt::test]
async fn a_round_on_its_way_takes_effect_once_when_its_table_is_taken_out() {
    for arrives in [false, true] {
        let mut a = Device::new(Bench::new().await, TABLES, &[]).await;
        let client = a.bench.cloud.connect().await;
        run(&a.db, "INSERT INTO note VALUES (1, 'a', NULL), (2, 'b', NULL)").await;
        wait_until_flushed(&a.db).await;
        a.bench.proxy.stop();
        wait_for(&a.db, "offline", |status| status.sync.state == "offline").await;
        run(
            &a.db,
            "UPDATE note SET body = 'a2' WHERE id = 1;\nDELETE FROM note WHERE id = 2;\nINSERT INTO note VALUES (3, 'c', NULL)",
        )
        .await;
        let device = here(&a.db, "SELECT value FROM _tidewater_meta WHERE key = 'device'");
        a.db.shutdown().await.unwrap();
        // As a kill leaves it that comes when the round has been noted, and when it has been committed there.
        let round = "11111111-2222-4333-8444-555555555555";
        let entry = "k0, known, whole, stamp, epoch, seen, d2, b2, d3, b3";
        let noted = format!(
            "INSERT INTO _tidewater_flight_2 ({entry}) SELECT {entry} FROM _tidewater_journal_2; DELETE FROM _tidewater_journal_2;
             INSERT INTO _tidewater_round (one, id, number) SELECT 1, '{round}', value + 1 FROM _tidewater_meta WHERE key = 'round_number';\n"
        );
        shell::sqlite3_shell(a.bench.path(), &noted);
        if arrives {
            client
                .batch_execute(&format!(
                    "SET tidewater.device = '{device}'; UPDATE note SET body = 'a2' WHERE id = 1; DELETE FROM note WHERE id = 2;
                     INSERT INTO note VALUES (3, 'c'); RESET tidewater.device;
                     UPDATE tidewater.devices SET round = '{round}', round_number = round_number + 1 WHERE id = '{device}'"
                ))
                .await
                .unwrap();
        }
        a.bench.proxy.start();
        a.db = open(&a.bench, &direction("none")).await;
        wait_until_available(&a.db).await;
        a.sees_all(&client).await;
        assert_eq!(here(&a.db, "SELECT count(*) FROM _tidewater_round"), "0");
        assert_eq!(a.pending().await, 3, "{arrives}");
        run(&a.db, "INSERT INTO note VALUES (4, 'd', NULL)").await;
        a = a.again(&[]).await;
        wait_until_flushed(&a.db).await;
        a.bench.wait_until_equal(&a.db, &["note"]).await;
        assert_eq!(there(&client, ALL_THERE).await, "1:a2 3:c 4:d", "{arrives}");
        let conflicts = "SELECT group_concat(key || ifnull(column, '') || ifnull(local, '') || ifnull(cloud, '') || kept) FROM _tidewater_conflicts";
        assert_eq!(here(&a.db, conflicts), "NULL", "{arrives}");
    }
}

/// A row that is deleted in the cloud goes, also where a child refers to it whose table cannot be synced any more.
#[actix_rt::test]
async fn a_parent_goes_when_its_child_s_table_cannot_be_synced() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note (id))";
    let mut a = Device::new(Bench::new().await, sql, &[]).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'a', NULL);\nINSERT INTO line VALUES (7, 1)").await;
    wait_until_flushed(&a.db).await;
    client
        .batch_execute(
            "ALTER TABLE line DROP CONSTRAINT line_note_fkey; ALTER TABLE line ADD owed int NOT NULL DEFAULT 0;
             ALTER TABLE line ALTER owed DROP DEFAULT",
        )
        .await
        .unwrap();
    a.sees_all(&client).await;
    assert_eq!(a.bench.log.count("table line is not synced"), 1, "{:#?}", a.bench.log.all());
    client.batch_execute("DELETE FROM note").await.unwrap();
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "");
    assert_eq!(here(&a.db, "SELECT count(*) FROM line"), "1");
}

/// A new row whose key the cloud has already, in a row that does not come here, is parked: nobody meant to change that row.
#[actix_rt::test]
async fn a_new_row_does_not_overwrite_one_that_does_not_come_here() {
    for (key, value) in [("tables.note.where", "mood = 'glad'"), ("tables.note.direction", "push")] {
        let mut b = Device::new(Bench::new().await, TABLES, &[]).await;
        let client = b.bench.cloud.connect().await;
        run(&b.db, "INSERT INTO note VALUES (1, 'a', 'glad'), (2, 'b', 'sad')").await;
        wait_until_flushed(&b.db).await;
        let mut a = Device::new(b.bench.another(), TABLES, &[(key, value)]).await;
        a.sees_all(&client).await;
        run(&a.db, "INSERT INTO note VALUES (2, 'mine', 'glad'), (3, 'c', 'glad')").await;
        wait_for(&a.db, "it is parked", |status| status.sync.parked == 1).await;
        wait_until_there(&a.db, &client, ALL_THERE, "1:a 2:b 3:c").await;
        assert_eq!(here(&a.db, "SELECT body FROM note WHERE id = 2"), "mine");
        b.sees_all(&client).await;
        assert_eq!(here(&b.db, ALL), "1:a 2:b 3:c");
    }
}

/// A condition over which PostgreSQL fails on some row concerns its table alone, and goes on when the row is mended.
#[actix_rt::test]
async fn a_condition_that_fails_on_a_row_stops_its_table_alone() {
    let mut b = Device::new(Bench::new().await, TABLES, &[]).await;
    let client = b.bench.cloud.connect().await;
    run(&b.db, "INSERT INTO note VALUES (1, '5', 'glad'), (2, '7', 'sad')").await;
    wait_until_flushed(&b.db).await;
    let set = [
        ("tables.note.where", "body::int > 5"),
        ("sync.pull_interval_s", "0.3"),
        ("proxy.retry_delay_s", "0.5"),
        ("proxy.max_retry_delay_s", "1"),
    ];
    let mut a = Device::new(b.bench.another(), TABLES, &set).await;
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "2:7");
    client.batch_execute("INSERT INTO note VALUES (3, 'many', 'glad')").await.unwrap();
    wait_for(&a.db, "it is said", |_| a.bench.log.count("tables.note.where fails on a row") == 1).await;
    // Everything else goes on, both ways.
    a.sees_all(&client).await;
    run(&a.db, "INSERT INTO beat VALUES (7)").await;
    wait_until_there(&a.db, &client, "SELECT count(*) FROM beat WHERE id = 7", "1").await;
    client.batch_execute("UPDATE note SET body = '9' WHERE id = 3").await.unwrap();
    wait_until_here(&a.db, ALL, "2:7 3:9").await;
    b.sees_all(&client).await;
}

/// A parent that leaves the condition while a child of it waits is nobody's to send again: what others made of it stays.
#[actix_rt::test]
async fn a_parent_that_leaves_under_a_waiting_child_is_not_set_back() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note (id) ON DELETE CASCADE)";
    let b = Device::new(Bench::new().await, sql, &[]).await;
    let client = b.bench.cloud.connect().await;
    run(&b.db, "INSERT INTO note VALUES (1, 'a', 'glad')").await;
    wait_until_flushed(&b.db).await;
    let mut a = Device::new(b.bench.another(), sql, &[("tables.note.where", "mood = 'glad'")]).await;
    a.sees_all(&client).await;
    a.bench.proxy.stop();
    wait_for(&a.db, "offline", |status| status.sync.state == "offline").await;
    run(&a.db, "INSERT INTO line VALUES (11, 1)").await;
    client.batch_execute("UPDATE note SET mood = 'sad', body = 'theirs' WHERE id = 1").await.unwrap();
    a.bench.proxy.start();
    wait_until_there(&a.db, &client, "SELECT count(*) FROM line", "1").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:theirs");
}

/// Whoever waits for what was written later, to another table, is not told of what is never sent.
#[actix_rt::test]
async fn an_edit_that_stays_here_concerns_nobody_later() {
    let a = Device::new(Bench::new().await, TABLES, &[("tables.note.direction", "pull")]).await;
    run(&a.db, "INSERT INTO note VALUES (1, 'mine', 'glad')").await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO beat VALUES (7)").await;
    wait_until_there(&a.db, &client, "SELECT to_regclass('beat') IS NOT NULL", "true").await;
    wait_until_there(&a.db, &client, "SELECT count(*) FROM beat", "1").await;
    let other = run(&a.db, "INSERT INTO beat VALUES (8)").await;
    a.db.synced(&other).await.unwrap();
}

/// What a row that goes had in the columns that are left out is nowhere else: it is on record.
#[actix_rt::test]
async fn what_is_left_out_is_on_record_when_its_row_goes() {
    let set = [("tables.note.columns_left_out", "mood")];
    let mut a = Device::new(Bench::new().await, TABLES, &set).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'a', 'glad'), (2, 'b', NULL)").await;
    wait_until_flushed(&a.db).await;
    client.batch_execute("DELETE FROM note").await.unwrap();
    a.sees_all(&client).await;
    assert_eq!(here(&a.db, ALL), "");
    let log = "SELECT group_concat(key || column || local || kept) FROM _tidewater_conflicts";
    assert_eq!(here(&a.db, log), "[1]mood\"glad\"cloud");
}

/// A row whose deletion here has lost comes back, also where what was deleted with it stands in a table that cannot be synced.
#[actix_rt::test]
async fn a_parent_comes_back_when_its_child_s_table_cannot_be_synced() {
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
CREATE TABLE beat (id INTEGER PRIMARY KEY);
CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note (id) ON DELETE CASCADE)";
    let mut a = Device::new(Bench::new().await, sql, &[]).await;
    let client = a.bench.cloud.connect().await;
    run(&a.db, "INSERT INTO note VALUES (1, 'a', NULL);\nINSERT INTO line VALUES (7, 1)").await;
    wait_until_flushed(&a.db).await;
    client
        .batch_execute(
            "ALTER TABLE line DROP CONSTRAINT line_note_fkey; ALTER TABLE line ADD owed int NOT NULL DEFAULT 0;
             ALTER TABLE line ALTER owed DROP DEFAULT",
        )
        .await
        .unwrap();
    a.sees_all(&client).await;
    a.bench.proxy.stop();
    wait_for(&a.db, "offline", |status| status.sync.state == "offline").await;
    run(&a.db, "DELETE FROM note WHERE id = 1").await;
    client.batch_execute("UPDATE note SET body = 'later' WHERE id = 1").await.unwrap();
    a.bench.proxy.start();
    wait_until_here(&a.db, ALL, "1:later").await;
    a.sees_all(&client).await;
    assert_eq!(there(&client, ALL_THERE).await, "1:later");
}
