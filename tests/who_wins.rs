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
        "SELECT string_agg(key[at][2] || ':' || round((stamp - {before}) / {HOUR}.0), ' ' ORDER BY key[at][2]) \
         FROM tidewater.changes, generate_subscripts(key, 1) AS at"
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
    let since = format!("{ago} WHERE id > {last} AND key[at][2] <> '3'");
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

// ---------------------------------------------------------------------------------------------------------
// Attacks
// ---------------------------------------------------------------------------------------------------------

/// A key column may be called like a variable of the feed's function: `stamp` and `older` worked before, and `device` never did.
async fn a_key_may_be_called(name: &str) {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, &format!("CREATE TABLE reading ({name} INTEGER PRIMARY KEY, body TEXT)")).await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["reading"]).await;
    // Somebody's plain SQL.
    let client = bench.cloud.connect().await;
    let written = client.batch_execute("INSERT INTO reading VALUES (1, 'theirs')").await;
    assert!(written.is_ok(), "{written:?}");
    run(&db, "INSERT INTO reading VALUES (2, 'ours')").await;
    let _ = db.flush().await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    assert_eq!(there(&client, "SELECT count(*) FROM reading").await, "2");
    db.shutdown().await.unwrap();
}

/// The feed's own words are no reason for a table not to have columns of these names.
#[actix_rt::test]
async fn a_key_may_be_called_stamp() {
    a_key_may_be_called("stamp").await;
}

/// As above.
#[actix_rt::test]
async fn a_key_may_be_called_older() {
    a_key_may_be_called("older").await;
}

/// As above.
#[actix_rt::test]
async fn a_key_may_be_called_device() {
    a_key_may_be_called("device").await;
}

const REBUILD: &str = "CREATE TABLE other (id INTEGER PRIMARY KEY, body TEXT, mood TEXT);
     INSERT INTO other SELECT id, CASE id WHEN 1 THEN upper(body) ELSE body END, mood FROM note;
     DROP TABLE note; ALTER TABLE other RENAME TO note;";

/// Three notes of `a`, and a feed that is kept for a device that sleeps since before they were written.
async fn beside_a_sleeper() -> (Device, Client) {
    let bench = Bench::on(Postgres::shared()).await;
    let sleeper = Device::new(bench.another(), "newest").await;
    sleeper.bench.proxy.start();
    sleeper.bench.wait_until_equal(&sleeper.db, &["note"]).await;
    sleeper.db.shutdown().await.unwrap();
    let a = Device::new(bench, "newest").await;
    run(&a.db, "INSERT INTO note VALUES (1, 'one', 'calm'), (2, 'two', 'calm'), (3, 'three', 'calm')").await;
    a.bench.proxy.start();
    a.bench.wait_until_equal(&a.db, &["note"]).await;
    wait_until_flushed(&a.db).await;
    a.db.flush().await.unwrap();
    let client = a.bench.cloud.connect().await;
    (a, client)
}

/// As `a_rebuilt_table_keeps_what_was_changed_here_…`, on a device that has everything from its first snapshot, and nothing from
/// the feed: nobody has told it the server's time. What the feed still has of those rows is older than that.
#[actix_rt::test]
async fn a_table_is_rebuilt_on_a_device_that_only_took_a_snapshot() {
    let (a, client) = beside_a_sleeper().await;
    let b = Device::new(a.bench.another(), "newest").await;
    b.bench.proxy.start();
    b.bench.wait_until_equal(&b.db, &["note"]).await;
    b.db.flush().await.unwrap();
    let seen = here(&b.db, "SELECT seen FROM _tidewater_clock");
    let path = b.bench.path();
    b.db.shutdown().await.unwrap();
    tidewater_test_support::shell::sqlite3_shell(&path, REBUILD);
    let db = b.bench.open().await;
    wait_for(&db, "connected", |status| status.sync.state == "idle").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let lost = here(&db, LOST_ONLY);
    assert_eq!(there(&client, THEIR_BODIES).await, "ONE,two,three", "seen {seen}; {lost}");
    db.shutdown().await.unwrap();
    a.db.shutdown().await.unwrap();
}

/// Row 2 is the same before and after the rebuilding. Somebody's edit of it, made before this file last saw the cloud, arrives
/// there after that.
#[actix_rt::test]
async fn a_rebuilt_table_overwrites_nobodys_late_edit() {
    let two = Two::new("newest").await;
    two.b.go_offline().await;
    run(&two.b.db, "UPDATE note SET body = 'of b' WHERE id = 2").await;
    two.client.batch_execute("UPDATE note SET body = 'seen' WHERE id = 3").await.unwrap();
    wait_until_here(&two.a.db, BODIES, "one,two,seen").await;
    two.a.db.flush().await.unwrap();
    let path = two.a.bench.path();
    two.a.db.shutdown().await.unwrap();
    two.b.come_back().await;
    assert_eq!(there(&two.client, THEIR_BODIES).await, "one,of b,seen");
    tidewater_test_support::shell::sqlite3_shell(&path, REBUILD);
    let db = two.a.bench.open().await;
    wait_for(&db, "connected", |status| status.sync.state == "idle").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    assert_eq!(there(&two.client, THEIR_BODIES).await, "ONE,of b,seen");
    db.shutdown().await.unwrap();
    two.b.db.shutdown().await.unwrap();
}

/// The table is emptied there, after an edit here: with `cloud` what is here never wins, with `newest` the earlier does not.
async fn an_emptied_table(policy: &str) {
    let two = Two::new(policy).await;
    two.a.go_offline().await;
    run(&two.a.db, "UPDATE note SET body = 'mine' WHERE id = 1").await;
    two.client.batch_execute("TRUNCATE note").await.unwrap();
    two.a.come_back().await;
    two.a.db.flush().await.unwrap();
    let lost = here(&two.a.db, LOST);
    assert_eq!(there(&two.client, "SELECT count(*) FROM note").await, "0", "{lost}");
    assert_eq!(here(&two.a.db, "SELECT count(*) FROM note"), "0");
    two.end().await;
}

/// As above, for the one policy.
#[actix_rt::test]
async fn an_emptied_table_stays_empty_by_policy_cloud() {
    an_emptied_table("cloud").await;
}

/// And for the other.
#[actix_rt::test]
async fn an_emptied_table_stays_empty_after_earlier_edits() {
    an_emptied_table("newest").await;
}

/// Somebody deletes a row; a file that was rebuilt meanwhile, and did not touch that row, has it still.
#[actix_rt::test]
async fn a_deletion_is_not_undone_in_silence() {
    let two = Two::new("newest").await;
    let path = two.a.bench.path();
    two.a.db.shutdown().await.unwrap();
    two.client.batch_execute("DELETE FROM note WHERE id = 3").await.unwrap();
    tidewater_test_support::shell::sqlite3_shell(&path, REBUILD);
    let db = two.a.bench.open().await;
    wait_until_there(&db, &two.client, "SELECT body FROM note WHERE id = 1", "ONE").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let (bodies, lost) = (there(&two.client, THEIR_BODIES).await, here(&db, LOST));
    assert!(bodies == "ONE,two" || lost.contains("[3]"), "{bodies}; {lost}");
    db.shutdown().await.unwrap();
    two.b.db.shutdown().await.unwrap();
}

/// A value of the cloud that does not fit here meets an edit of the same column.
#[actix_rt::test]
async fn what_does_not_fit_here_is_not_overwritten_in_silence() {
    const BIG: &str = "1234567890123456789012345.67";
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE sum (id INTEGER PRIMARY KEY, amount NUMERIC(30,2))").await;
    run(&db, "INSERT INTO sum VALUES (1, 1)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["sum"]).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "UPDATE sum SET amount = 5 WHERE id = 1").await;
    let client = bench.cloud.connect().await;
    client.batch_execute(&format!("UPDATE sum SET amount = {BIG} WHERE id = 1")).await.unwrap();
    bench.proxy.start();
    wait_for(&db, "connected", |status| status.sync.state != "offline").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let amount = there(&client, "SELECT amount FROM sum").await;
    let lost = here(&db, "SELECT count(*) FROM _tidewater_conflicts");
    assert!(amount == BIG || lost != "0", "{amount}: {lost} conflicts; {:?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// A file that comes late, and edits one column of an old row before it meets the cloud.
#[actix_rt::test]
async fn a_late_file_brings_home_only_what_it_edited() {
    let two = Two::new("newest").await;
    let late = two.a.bench.another();
    tidewater_test_support::shell::sqlite3_shell(
        late.path(),
        &format!("{NOTE}; INSERT INTO note VALUES (1, 'stale', 'calm');"),
    );
    let db = late.open().await;
    run(&db, "UPDATE note SET mood = 'glad' WHERE id = 1").await;
    late.proxy.start();
    wait_until_there(&db, &two.client, "SELECT mood FROM note WHERE id = 1", "glad").await;
    wait_until_flushed(&db).await;
    assert_eq!(there(&two.client, THEIR_BODIES).await, "one,two,three");
    db.shutdown().await.unwrap();
    two.end().await;
}

/// Two references share a column. Here only the one is changed; there both, and the column that they share.
#[actix_rt::test]
async fn references_that_share_a_column_stay_whole() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(
        &db,
        "CREATE TABLE a (tenant INTEGER, id INTEGER, PRIMARY KEY (tenant, id));
         CREATE TABLE b (tenant INTEGER, id INTEGER, PRIMARY KEY (tenant, id));
         CREATE TABLE both (id INTEGER PRIMARY KEY, tenant INTEGER, a INTEGER, b INTEGER,
             FOREIGN KEY (tenant, a) REFERENCES a (tenant, id), FOREIGN KEY (tenant, b) REFERENCES b (tenant, id));
         INSERT INTO a VALUES (1, 1), (1, 2), (2, 3);
         INSERT INTO b VALUES (1, 1), (2, 3);
         INSERT INTO both VALUES (1, 1, 1, 1)",
    )
    .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["a", "b", "both"]).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    let client = bench.cloud.connect().await;
    client.batch_execute("UPDATE \"both\" SET tenant = 2, a = 3, b = 3").await.unwrap();
    run(&db, "UPDATE both SET a = 2").await;
    bench.proxy.start();
    wait_for(&db, "connected", |status| status.sync.state != "offline").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let parked = db.status_summary().await.sync.parked;
    let row = here(&db, "SELECT tenant || ' ' || a || ' ' || b FROM both");
    assert_eq!((parked, row.as_str()), (0, "1 2 1"), "{:?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// The same, where the feed still has the rows' history.
#[actix_rt::test]
async fn a_late_file_beside_a_sleeper_brings_home_only_what_it_edited() {
    let (a, client) = beside_a_sleeper().await;
    let late = a.bench.another();
    tidewater_test_support::shell::sqlite3_shell(
        late.path(),
        &format!("{NOTE}; INSERT INTO note VALUES (1, 'stale', 'calm');"),
    );
    let db = late.open().await;
    run(&db, "UPDATE note SET mood = 'glad' WHERE id = 1").await;
    late.proxy.start();
    wait_for(&db, "connected", |status| status.sync.state == "idle").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let row = there(&client, "SELECT concat_ws(' ', body, mood) FROM note WHERE id = 1").await;
    assert_eq!(row, "one glad", "{}", here(&db, LOST_ONLY));
    db.shutdown().await.unwrap();
    a.db.shutdown().await.unwrap();
}

/// Somebody rebuilds the cloud's table by copy, drop and rename, while a device is away that has not heard of the last edit. It
/// has edited nothing itself.
#[actix_rt::test]
async fn a_table_that_was_rebuilt_in_the_cloud_keeps_what_others_edited() {
    let two = Two::new("newest").await;
    two.b.go_offline().await;
    run(&two.a.db, "UPDATE note SET body = 'of a' WHERE id = 1").await;
    wait_until_there(&two.a.db, &two.client, THEIR_BODIES, "of a,two,three").await;
    wait_until_flushed(&two.a.db).await;
    two.client
        .batch_execute(
            "BEGIN; CREATE TABLE other (LIKE note INCLUDING ALL); INSERT INTO other SELECT * FROM note; \
             DROP TABLE note; ALTER TABLE other RENAME TO note; COMMIT",
        )
        .await
        .unwrap();
    two.a.db.flush().await.unwrap();
    two.b.come_back().await;
    two.b.db.flush().await.unwrap();
    let lost = here(&two.b.db, LOST_ONLY);
    assert_eq!(there(&two.client, THEIR_BODIES).await, "of a,two,three", "{lost}");
    two.end().await;
}

/// The cloud makes something else of what is sent, and somebody's long transaction keeps that from coming home: the next edit
/// here meets nobody's change but its own echo.
#[actix_rt::test]
async fn ones_own_echo_wins_nothing_by_policy_cloud() {
    let server = Postgres::start();
    let bench = Bench::on(&server).await;
    let a = Device::new(bench, "cloud").await;
    run(&a.db, "INSERT INTO note VALUES (1, 'one', 'calm')").await;
    a.bench.proxy.start();
    a.bench.wait_until_equal(&a.db, &["note"]).await;
    wait_until_flushed(&a.db).await;
    let client = a.bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.body := upper(NEW.body); RETURN NEW; END$$; \
             CREATE TRIGGER loud BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION loud()",
        )
        .await
        .unwrap();
    let long = a.bench.cloud.connect().await;
    long.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    run(&a.db, "UPDATE note SET body = 'first'").await;
    wait_until_there(&a.db, &client, THEIR_BODIES, "FIRST").await;
    wait_until_flushed(&a.db).await;
    run(&a.db, "UPDATE note SET body = 'second'").await;
    wait_until_flushed(&a.db).await;
    a.db.flush().await.unwrap();
    long.batch_execute("COMMIT").await.unwrap();
    a.db.flush().await.unwrap();
    wait_until_flushed(&a.db).await;
    let found = there(&client, THEIR_BODIES).await;
    assert_eq!(found, "SECOND", "here {}; {}", here(&a.db, BODIES), here(&a.db, LOST_ONLY));
    a.db.shutdown().await.unwrap();
}

/// The feed of the version before this one, in a cloud whose tables belong to somebody else: it still tells of everything.
#[actix_rt::test]
async fn a_role_without_rights_goes_on_with_the_feed_that_is_there() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, NOTE).await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    db.flush().await.unwrap();
    db.shutdown().await.unwrap();
    let admin = bench.cloud.connect_as_admin().await;
    let oid = there(&admin, "SELECT 'note'::regclass::oid").await;
    let user = &bench.cloud.user;
    // As the first version wrote it.
    let body = format!(
        "\nDECLARE device text := nullif(current_setting('tidewater.device', true), '');\n\
         BEGIN\n\
         IF TG_OP = 'INSERT' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT {oid}, ARRAY[\"id\"::text], device FROM new_rows;\n\
         ELSIF TG_OP = 'DELETE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin) SELECT {oid}, ARRAY[\"id\"::text], device FROM old_rows;\n\
         ELSIF TG_OP = 'UPDATE' THEN\n  \
           INSERT INTO tidewater.changes (tbl, key, origin)\n  \
           SELECT {oid}, touched.key, device FROM (SELECT ARRAY[\"id\"::text] AS key FROM new_rows UNION SELECT ARRAY[\"id\"::text] FROM old_rows) AS touched;\n\
         ELSE\n  \
           INSERT INTO tidewater.changes (tbl, origin) VALUES ({oid}, device);\n\
         END IF;\n\
         RETURN NULL;\n\
         END "
    );
    admin
        .batch_execute(&format!(
            "CREATE OR REPLACE FUNCTION tidewater.feed_{oid}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
             SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET timezone = 'UTC' \
             SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $tidewater_feed${body}$tidewater_feed$; \
             ALTER FUNCTION tidewater.feed_{oid}() OWNER TO postgres; ALTER TABLE note OWNER TO postgres; \
             GRANT ALL ON note TO \"{user}\"; GRANT ALL ON ALL TABLES IN SCHEMA tidewater TO postgres"
        ))
        .await
        .unwrap();
    let db = bench.open().await;
    wait_for(&db, "connected", |status| status.sync.state == "idle").await;
    run(&db, "INSERT INTO note VALUES (1, 'ours', 'calm')").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let echo =
        there(&admin, "SELECT count(*) FROM tidewater.changes WHERE origin IS NULL AND key = '{1}'").await;
    let said = bench.log.count("cannot be installed");
    assert_eq!((echo.as_str(), said), ("0", 0), "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// An order is deleted here, and its lines with it; somebody edits the order later. It comes back as a whole, or not at all.
#[actix_rt::test]
async fn what_a_lost_deletion_took_along_comes_back_with_it() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(
        &db,
        "CREATE TABLE sale (id INTEGER PRIMARY KEY, body TEXT);
         CREATE TABLE line (id INTEGER PRIMARY KEY, sale INTEGER REFERENCES sale ON DELETE CASCADE, body TEXT);
         INSERT INTO sale VALUES (1, 'one');
         INSERT INTO line VALUES (1, 1, 'a'), (2, 1, 'b')",
    )
    .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["sale", "line"]).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "DELETE FROM line WHERE sale = 1;\nDELETE FROM sale WHERE id = 1").await;
    let client = bench.cloud.connect().await;
    client.batch_execute("UPDATE sale SET body = 'later' WHERE id = 1").await.unwrap();
    bench.proxy.start();
    wait_for(&db, "connected", |status| status.sync.state != "offline").await;
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let rows =
        there(&client, "SELECT (SELECT count(*) FROM sale) || ' ' || (SELECT count(*) FROM line)").await;
    let lost = here(&db, "SELECT group_concat(table_name || key) FROM _tidewater_conflicts");
    assert!(rows == "1 2" || rows == "0 0" || lost.contains("line"), "{rows}: {lost}");
    db.shutdown().await.unwrap();
}

/// The server's clock was a day ahead when this file looked, for a moment. Its earlier edit does not win for that.
#[actix_rt::test]
async fn a_clock_that_was_wrong_for_a_moment_is_forgotten() {
    let two = Two::new("newest").await;
    // As a page of that moment leaves it.
    tidewater_test_support::shell::sqlite3_shell(
        two.a.bench.path(),
        "UPDATE _tidewater_clock SET seen = seen + 86400000000, ahead = 0",
    );
    // Both look, at the right time, again.
    two.client.batch_execute("UPDATE note SET body = 'seen' WHERE id = 3").await.unwrap();
    for device in [&two.a, &two.b] {
        wait_until_here(&device.db, "SELECT body FROM note WHERE id = 3", "seen").await;
        device.db.flush().await.unwrap();
    }
    two.a.go_offline().await;
    run(&two.a.db, "UPDATE note SET body = 'earlier' WHERE id = 1").await;
    run(&two.b.db, "UPDATE note SET body = 'later' WHERE id = 1").await;
    wait_until_flushed(&two.b.db).await;
    two.a.come_back().await;
    let lost = here(&two.a.db, LOST_ONLY);
    assert_eq!(there(&two.client, THEIR_BODIES).await, "later,two,seen", "{lost}");
    two.end().await;
}

/// An app that knows the time better than its machine says by how much: edits are dated by that, another program's as well, until
/// the server's clock is known. Set back, it dates nothing before what was seen.
#[actix_rt::test]
async fn edits_are_dated_by_the_clock_that_the_app_names() {
    const DAY_US: i64 = 86_400_000_000;
    let bench = Bench::new().await;
    let off_by = |db: &Database, id: i64| -> i64 {
        let now = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)";
        here(db, &format!("SELECT stamp - {now} FROM _tidewater_journal_1 WHERE k0 = {id}")).parse().unwrap()
    };
    let is_about = |off: i64, days: i64| (off - days * DAY_US).abs() < DAY_US / 100;
    let db = bench.open_with(bench.settings().set("sync.clock_offset_s", 3 * 86_400)).await;
    run(&db, NOTE).await;
    run(&db, "INSERT INTO note VALUES (1, 'one', 'calm')").await;
    assert!(is_about(off_by(&db, 1), 3), "{}", off_by(&db, 1));
    let insert = "INSERT INTO note VALUES (2, 'two', 'calm')";
    tidewater_test_support::shell::sqlite3_shell(bench.path(), insert);
    assert!(is_about(off_by(&db, 2), 3), "{}", off_by(&db, 2));
    bench.proxy.start();
    wait_until_flushed(&db).await;
    db.flush().await.unwrap();
    let client = bench.cloud.connect().await;
    // There, nothing comes from the future.
    let ahead = "SELECT max(stamp) > extract(epoch FROM clock_timestamp()) * 1000000 FROM tidewater.changes";
    assert_eq!(there(&client, ahead).await, "false");
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "UPDATE note SET body = 'ONE' WHERE id = 1").await;
    assert!(is_about(off_by(&db, 1), 0), "{}", off_by(&db, 1));
    db.shutdown().await.unwrap();
    let db = bench.open_with(bench.settings().set("sync.clock_offset_s", -86_400)).await;
    run(&db, "UPDATE note SET body = 'TWO' WHERE id = 2").await;
    let seen = "SELECT min(stamp) > (SELECT seen FROM _tidewater_clock) FROM _tidewater_journal_1";
    assert_eq!(here(&db, seen), "1");
    bench.proxy.start();
    wait_until_there(&db, &client, THEIR_BODIES, "ONE,TWO").await;
    db.shutdown().await.unwrap();
}

/// The file's own log of conflicts keeps as many as it may; the oldest go, and the log says so, once.
#[actix_rt::test]
async fn the_log_of_conflicts_here_is_bounded() {
    let bench = Bench::new().await;
    let db = bench
        .open_with(bench.settings().set("sync.local_conflicts_max", 10).set("tables.NOTE.conflicts", "local"))
        .await;
    run(&db, NOTE).await;
    run(&db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8) INSERT INTO note SELECT i, 'x', 'y' FROM n").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    wait_until_flushed(&db).await;
    let client = bench.cloud.connect().await;
    for n in 0..3 {
        bench.proxy.stop();
        wait_for(&db, "offline", |status| status.sync.state == "offline").await;
        run(&db, &format!("UPDATE note SET body = 'here {n}'")).await;
        client.batch_execute(&format!("UPDATE note SET body = 'there {n}'")).await.unwrap();
        bench.proxy.start();
        wait_until_there(&db, &client, "SELECT count(*) FROM note WHERE body LIKE 'here%'", "8").await;
        wait_until_flushed(&db).await;
    }
    let kept = "SELECT count(*) || ' ' || (max(id) - min(id)) || ' ' || max(id) FROM _tidewater_conflicts";
    assert_eq!(here(&db, kept), "10 9 24");
    db.flush().await.unwrap();
    tidewater_test_support::wait::until("the log to say so", harness::PATIENCE, async || {
        let lines = bench.log.count("the log of conflicts is full");
        if lines == 1 { Ok(()) } else { Err(format!("{lines} lines: {:#?}", bench.log.all())) }
    })
    .await;
    db.shutdown().await.unwrap();
}
