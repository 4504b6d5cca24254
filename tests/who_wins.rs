//! P4: where both sides changed the same, the policy of the table decides, whatever the order in which it arrives; what loses
//! is on record on both sides and can be brought back.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, here, run, there, wait_for, wait_until_flushed, wait_until_here, wait_until_there};
use tidewater::Database;
use tidewater_test_support::Postgres;
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, mood TEXT)";
const BODIES: &str =
    "SELECT group_concat(body) FROM (SELECT coalesce(body, '-') AS body FROM note ORDER BY id)";
const THEIR_BODIES: &str = "SELECT string_agg(coalesce(body, '-'), ',' ORDER BY id) FROM note";
const LOST: &str = "SELECT group_concat(k, ' ') FROM (SELECT key || coalesce(column, '*') || kept AS k FROM _tidewater_conflicts ORDER BY key)";

/// Two devices with the same three notes, each behind a proxy of its own.
struct Two {
    a: Device,
    b: Device,
    client: Client,
}

struct Device {
    bench: Bench,
    db: Database,
}

impl Device {
    async fn new(bench: Bench, policy: &str) -> Self {
        let db = bench.open_with(bench.settings().set("tables.NOTE.conflicts", policy)).await;
        run(&db, NOTE).await;
        Self { bench, db }
    }

    async fn go_offline(&self) {
        self.bench.proxy.stop();
        wait_for(&self.db, "offline", |status| status.sync.state == "offline").await;
    }

    /// Comes back, and everything of it has arrived.
    async fn come_back(&self) {
        self.bench.proxy.start();
        wait_for(&self.db, "connected", |status| status.sync.state != "offline").await;
        wait_until_flushed(&self.db).await;
        self.db.flush().await.unwrap();
    }
}

impl Two {
    async fn new(policy: &str) -> Self {
        let bench = Bench::on(Postgres::shared()).await;
        let a = Device::new(bench, policy).await;
        run(&a.db, "INSERT INTO note VALUES (1, 'one', 'calm'), (2, 'two', 'calm'), (3, 'three', 'calm')")
            .await;
        a.bench.proxy.start();
        a.bench.wait_until_equal(&a.db, &["note"]).await;
        let b = Device::new(a.bench.another(), policy).await;
        b.bench.proxy.start();
        b.bench.wait_until_equal(&b.db, &["note"]).await;
        wait_until_flushed(&a.db).await;
        let client = a.bench.cloud.connect().await;
        Self { a, b, client }
    }

    /// Everybody has these bodies in the end.
    async fn all_have(&self, bodies: &str) {
        wait_until_there(&self.a.db, &self.client, THEIR_BODIES, bodies).await;
        for device in [&self.a, &self.b] {
            wait_until_here(&device.db, BODIES, bodies).await;
            wait_until_flushed(&device.db).await;
            device.bench.wait_until_equal(&device.db, &["note"]).await;
        }
    }

    async fn end(self) {
        self.a.db.shutdown().await.unwrap();
        self.b.db.shutdown().await.unwrap();
    }
}

/// Two devices edited the same value while apart: the later edit is everywhere in the end, also where the earlier one arrives
/// last, and the earlier one is on record.
#[actix_rt::test]
async fn the_later_edit_wins_whoever_arrives_first() {
    for later_first in [false, true] {
        let two = Two::new("newest").await;
        two.a.go_offline().await;
        two.b.go_offline().await;
        run(&two.a.db, "UPDATE note SET body = 'earlier';\nUPDATE note SET mood = 'glad' WHERE id = 1").await;
        run(&two.b.db, "UPDATE note SET body = 'later' WHERE id < 3").await;
        let (first, second) = if later_first { (&two.b, &two.a) } else { (&two.a, &two.b) };
        first.come_back().await;
        second.come_back().await;
        two.all_have("later,later,earlier").await;
        // What only one of them edited is nobody's loss.
        assert_eq!(
            there(&two.client, "SELECT string_agg(mood, ',' ORDER BY id) FROM note").await,
            "glad,calm,calm"
        );
        let (log, kept) = if later_first { (&two.a, "cloud") } else { (&two.b, "local") };
        assert_eq!(here(&log.db, LOST), format!("[1]body{kept} [2]body{kept}"));
        let told =
            "SELECT string_agg(concat_ws(' ', local, cloud, kept), ';' ORDER BY id) FROM tidewater.conflicts";
        let line = if later_first { "\"earlier\" \"later\" cloud" } else { "\"later\" \"earlier\" local" };
        wait_until_there(&log.db, &two.client, told, &format!("{line};{line}")).await;
        two.end().await;
    }
}

/// A value that lost here is brought back by hand: as an edit of now, it wins.
#[actix_rt::test]
async fn what_lost_here_is_brought_back() {
    let two = Two::new("newest").await;
    two.a.go_offline().await;
    run(&two.a.db, "UPDATE note SET body = 'mine' WHERE id = 1;\nDELETE FROM note WHERE id = 2;\nUPDATE note SET body = 'gone' WHERE id = 3").await;
    two.client
        .batch_execute("UPDATE note SET body = 'theirs' WHERE id < 3; DELETE FROM note WHERE id = 3")
        .await
        .unwrap();
    two.a.come_back().await;
    two.all_have("theirs,theirs").await;
    assert_eq!(here(&two.a.db, LOST), "[1]bodycloud [2]*cloud [3]*cloud");
    let page = two.a.db.conflicts(None, None, 10).unwrap();
    let ids: Vec<i64> = page.rows.iter().map(|conflict| conflict.id).collect();
    let restored = two.a.db.restore_conflicts(&ids).await.unwrap();
    assert_eq!((restored.ids.len(), restored.refused), (3, vec![]));
    two.all_have("mine,gone").await;
    two.end().await;
}

/// A deletion and an edit of the same row: the later one is what happened.
#[actix_rt::test]
async fn the_later_of_a_deletion_and_an_edit_wins() {
    let two = Two::new("newest").await;
    two.a.go_offline().await;
    two.b.go_offline().await;
    run(&two.a.db, "DELETE FROM note WHERE id = 1;\nUPDATE note SET body = 'earlier' WHERE id = 2").await;
    run(&two.b.db, "UPDATE note SET body = 'later' WHERE id = 1;\nDELETE FROM note WHERE id = 2").await;
    two.b.come_back().await;
    two.a.come_back().await;
    two.all_have("later,three").await;
    assert_eq!(here(&two.a.db, LOST), "[1]*cloud [2]*cloud");
    two.end().await;
}

/// With a policy of its own a table asks no clock: what is here always wins, or never does.
#[actix_rt::test]
async fn a_table_may_have_another_policy() {
    for (policy, bodies) in [("local", "mine,two,three"), ("cloud", "theirs,two,three")] {
        let two = Two::new(policy).await;
        for ours_is_later in [false, true] {
            two.a.go_offline().await;
            let ours = || async { run(&two.a.db, "UPDATE note SET body = 'mine' WHERE id = 1").await };
            if !ours_is_later {
                ours().await;
            }
            two.client.batch_execute("UPDATE note SET body = 'theirs' WHERE id = 1").await.unwrap();
            if ours_is_later {
                ours().await;
            }
            two.a.come_back().await;
            two.all_have(bodies).await;
            run(&two.a.db, "UPDATE note SET body = 'one' WHERE id = 1").await;
            two.all_have("one,two,three").await;
        }
        two.end().await;
    }
}

/// The feed has of every row when it was changed, not when it was sent, and nothing from the future.
#[actix_rt::test]
async fn the_feed_tells_when_a_row_was_changed() {
    const PAIR: &str = "CREATE TABLE pair (a TEXT, b INTEGER, body TEXT, PRIMARY KEY (a, b))";
    let bench = Bench::new().await;
    let sleeper = bench.another();
    let asleep = sleeper.open().await;
    run(&asleep, PAIR).await;
    sleeper.proxy.start();
    sleeper.wait_until_equal(&asleep, &["pair"]).await;
    // The feed is kept for it.
    asleep.shutdown().await.unwrap();
    let db = bench.open().await;
    run(&db, PAIR).await;
    run(&db, "INSERT INTO pair VALUES ('x', 1, 'old'), ('a \"b\", c', 2, 'old'), ('x', 3, 'now'), ('x', 4, 'ahead')").await;
    // As if the first two had been written an hour apart, long ago, and the last in a year.
    const HOUR: i64 = 3_600_000_000;
    let stamps = "UPDATE _tidewater_journal_1 SET stamp = stamp + CASE k1 WHEN 1 THEN -20 WHEN 2 THEN -19 WHEN 3 THEN 0 ELSE 8760 END * ";
    let before: i64 = here(&db, "SELECT max(stamp) FROM _tidewater_journal_1").parse().unwrap();
    tidewater_test_support::shell::sqlite3_shell(bench.path(), &format!("{stamps}{HOUR}"));
    bench.proxy.start();
    bench.wait_until_equal(&db, &["pair"]).await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;
    let ago = format!(
        "SELECT string_agg(key[2] || ':' || round((stamp - {before}) / {HOUR}.0), ' ' ORDER BY key[2]) FROM tidewater.changes"
    );
    assert_eq!(there(&client, &ago).await, "1:-20 2:-19 3:0 4:0");
    // The same step by step, beside a row that somebody else has changed.
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client
        .batch_execute("TRUNCATE tidewater.conflicts; UPDATE pair SET body = 'theirs' WHERE b = 3")
        .await
        .unwrap();
    run(&db, "UPDATE pair SET body = 'ours'").await;
    tidewater_test_support::shell::sqlite3_shell(bench.path(), &format!("{stamps}{HOUR} WHERE k1 < 3"));
    let last: i64 = there(&client, "SELECT max(id) FROM tidewater.changes").await.parse().unwrap();
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["pair"]).await;
    let since = format!("{ago} WHERE id > {last} AND key[2] <> '3'");
    assert_eq!(there(&client, &since).await, "1:-20 2:-19 4:0");
    db.shutdown().await.unwrap();
}

/// A table that was rebuilt while nobody watched is compared with the cloud: what the rebuilding changed stays, unless somebody
/// has changed the row in the cloud since this file saw it.
#[actix_rt::test]
async fn a_rebuilt_table_keeps_what_was_changed_here_and_takes_what_is_newer_there() {
    let two = Two::new("newest").await;
    let (path, policy) = (two.a.bench.path().to_owned(), "newest");
    two.a.db.shutdown().await.unwrap();
    tidewater_test_support::shell::sqlite3_shell(
        &path,
        "CREATE TABLE other (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
         INSERT INTO other SELECT id, upper(body), mood FROM note;
         DROP TABLE note; ALTER TABLE other RENAME TO note;",
    );
    two.client.batch_execute("UPDATE note SET body = 'theirs' WHERE id = 2").await.unwrap();
    let db = two.a.bench.open_with(two.a.bench.settings().set("tables.note.conflicts", policy)).await;
    wait_until_here(&db, BODIES, "ONE,theirs,THREE").await;
    wait_until_there(&db, &two.client, THEIR_BODIES, "ONE,theirs,THREE").await;
    wait_until_flushed(&db).await;
    assert_eq!(here(&db, &format!("{LOST_ONLY} WHERE key = '[2]'")), "\"TWO\" \"theirs\" cloud");
    db.shutdown().await.unwrap();
    two.b.db.shutdown().await.unwrap();
}

const LOST_ONLY: &str = "SELECT group_concat(local || ' ' || cloud || ' ' || kept) FROM _tidewater_conflicts";

/// A file that was in use before it met the cloud follows the cloud where both have a row, and its own values are on record.
#[actix_rt::test]
async fn a_file_that_comes_late_does_not_overwrite_what_everybody_has() {
    let two = Two::new("newest").await;
    let late = two.a.bench.another();
    tidewater_test_support::shell::sqlite3_shell(
        late.path(),
        &format!("{NOTE}; INSERT INTO note VALUES (1, 'stale', 'calm'), (4, 'four', 'calm');"),
    );
    let db = late.open().await;
    late.proxy.start();
    wait_until_here(&db, BODIES, "one,two,three,four").await;
    wait_until_flushed(&db).await;
    two.all_have("one,two,three,four").await;
    assert_eq!(here(&db, LOST_ONLY), "\"stale\" \"one\" cloud");
    db.shutdown().await.unwrap();
    two.end().await;
}
