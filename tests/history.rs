//! P10: what happens when the cloud's history, or the file's, is not what it was: which cloud it is gets noticed, each outcome
//! is one line, and no row is lost or doubled.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::collections::BTreeSet;
use std::path::Path;

use harness::{Bench, Lines, PATIENCE, run, there, wait_for, wait_until_available};
use rusqlite::Connection;
use rusqlite::types::Value;
use tidewater::{Adopt, Database, ProxyStatus, Statement, SyncError};
use tidewater_test_support::postgres::CopyOf;
use tidewater_test_support::shop::{self, Generator};
use tidewater_test_support::{Postgres, postgres, wait};

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// The owner's own trigger writes down each insert, so that "once" is seen and not assumed.
const AUDIT: &str = "
    CREATE TABLE audit (id bigint NOT NULL);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NULL; END $$;
    CREATE TRIGGER audited AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION audited();";

const TWICE: &str = "SELECT count(*) FROM (SELECT FROM audit GROUP BY id HAVING count(*) > 1) AS twice";

/// By plain SQL, after the moment to which the cloud will be set back.
const THEIRS_TO_BE_LOST: &str =
    "INSERT INTO note VALUES (3, 'theirs, lost'); UPDATE note SET body = 'ours, edited by them' WHERE id = 1";

const REPLACED: &str = "SELECT coalesce(group_concat(concat, ';'), '') FROM (SELECT key || ' ' || coalesce(local, '-') || ' ' || \
                        coalesce(cloud, '-') || ' ' || kept AS concat FROM _tidewater_conflicts ORDER BY id)";

/// What is on record where those are sent again.
const LOST_AND_FOUND: &str =
    "[1] \"ours, edited by them\" \"ours\" local;[3] \"[3,\\\"theirs, lost\\\"]\" - local";

/// The lines of which each situation has one.
const LINES: [&str; 7] = [
    "was set back (",
    "has deleted this device",
    "was set back or copied",
    "failed over or was recovered",
    "Sync is blocked",
    "change feed begins anew",
    "belongs to another cloud now",
];

/// The situation has this one line and no other.
fn assert_one_line(log: &Lines, line: &str) {
    let told: Vec<_> =
        log.all().into_iter().filter(|told| LINES.iter().any(|line| told.contains(line))).collect();
    assert!(told.len() == 1 && told[0].contains(line), "{line}: {:#?}", log.all());
}

/// A file that has synced with its cloud: `ours` (1) and, by plain SQL, `theirs` (2).
async fn synced(server: &Postgres) -> (Bench, Database) {
    let bench = Bench::on(server).await;
    let db = bench.open().await;
    bench.proxy.start();
    run(&db, NOTE).await;
    bench.wait_until_equal(&db, &["note"]).await;
    bench.cloud.execute_batch(AUDIT).await;
    write(&db, 1, "ours").await;
    bench.cloud.execute_batch("INSERT INTO note VALUES (2, 'theirs')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    proven(&bench, &db).await;
    (bench, db)
}

/// The same with a shop beside it, whose rows nobody touches: [`assert_whole`] expects them everywhere as they are now.
async fn synced_with_a_shop(server: &Postgres) -> (Bench, Database) {
    let (bench, db) = synced(server).await;
    run(&db, shop::SCHEMA).await;
    let rows: Vec<_> = Generator::new(7).statements(80).map(harness::statement).collect();
    for unit in rows.chunks(20) {
        db.write(unit.to_vec()).await.unwrap();
    }
    harness::wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, shop::TABLES).await;
    // Without a key it stays in this file, and goes wherever that is copied.
    db.write([
        Statement::new("CREATE TABLE as_stocked (rows TEXT)"),
        Statement::new("INSERT INTO as_stocked VALUES (?1)").bind(db.read(stock).unwrap()),
    ])
    .await
    .unwrap();
    proven(&bench, &db).await;
    (bench, db)
}

/// Every value of the shop.
fn stock(conn: &Connection) -> rusqlite::Result<String> {
    let mut rows = vec![];
    for table in shop::TABLES {
        let mut all = conn.prepare(&format!("SELECT * FROM \"{table}\""))?;
        let columns = all.column_count();
        let found = all.query_map([], |row| {
            let values: rusqlite::Result<Vec<Value>> = (0..columns).map(|at| row.get(at)).collect();
            Ok(format!("{table} {:?}", values?))
        })?;
        rows.extend(found.collect::<Result<Vec<_>, _>>()?);
    }
    rows.sort();
    Ok(rows.join("\n"))
}

/// Where there is a shop, nothing of it has changed, here or in the cloud.
async fn assert_stocked(bench: &Bench, db: &Database) {
    let is_there = "SELECT count(*) FROM sqlite_schema WHERE name = 'as_stocked'";
    if harness::here(db, is_there) == "0" {
        return;
    }
    bench.wait_until_equal(db, shop::TABLES).await;
    let (before, now) = (harness::here(db, "SELECT rows FROM as_stocked"), db.read(stock).unwrap());
    assert!(before.lines().count() > 50, "{before}");
    assert_eq!(now.lines().collect::<Vec<_>>(), before.lines().collect::<Vec<_>>());
}

/// Writes a row and waits until the cloud has it.
async fn write(db: &Database, id: i64, body: &str) {
    let receipt = run(db, &format!("INSERT INTO note VALUES ({id}, '{body}')")).await;
    db.synced(&receipt).await.unwrap();
}

fn meta(db: &Database, key: &str) -> String {
    harness::here(
        db,
        &format!("SELECT coalesce((SELECT value FROM _tidewater_meta WHERE key = '{key}'), '')"),
    )
}

/// Waits until all that the file has read is proven by a witness in the cloud.
async fn proven(bench: &Bench, db: &Database) {
    wait::until("what was read is proven", PATIENCE, async || {
        let (witness, id) = (meta(db, "witness"), meta(db, "cursor_id"));
        if witness.contains(&format!("\"id\":{id},")) {
            Ok(())
        } else {
            Err(format!("{witness} {id} {:#?}", bench.log.all()))
        }
    })
    .await;
}

fn bodies(db: &Database) -> Vec<String> {
    db.read(|conn| {
        conn.prepare("SELECT id || ' ' || body FROM note ORDER BY id")?
            .query_map([], |row| row.get(0))?
            .collect()
    })
    .unwrap()
}

/// The proxy is away, and the app knows.
async fn cut(bench: &Bench, db: &Database) {
    bench.proxy.stop();
    wait_for(db, "the proxy is gone", |status| status.proxy.status == ProxyStatus::Unavailable).await;
}

/// The proxy leads to another server now.
fn lead_to(bench: &mut Bench, server: &Postgres) {
    bench.cloud.port = server.port();
    bench.proxy.set_upstream(server.address());
    bench.proxy.start();
}

/// The bench's database on another server.
fn on(bench: &Bench, server: &Postgres) -> postgres::Database {
    let mut there = bench.cloud.clone();
    there.port = server.port();
    there
}

/// Both sides hold the same, which is this, and no row came there twice.
async fn assert_whole(bench: &Bench, db: &Database, rows: &[&str]) {
    assert_whole_there(bench, db, rows).await;
    assert_eq!(there(&bench.cloud.connect().await, TWICE).await, "0");
}

/// [`assert_whole`] where nobody writes inserts down.
async fn assert_whole_there(bench: &Bench, db: &Database, rows: &[&str]) {
    // What another device is about to send comes in its own time.
    wait_for(db, "every row is here", |_| bodies(db).len() == rows.len()).await;
    wait_for(db, "nothing is pending", |status| status.sync.pending == 0).await;
    bench.wait_until_equal(db, &["note"]).await;
    assert_eq!(bodies(db), rows);
    assert_stocked(bench, db).await;
}

fn copy_file(from: &Path, to: &Path) {
    for companion in ["-wal", "-shm"] {
        let mut name = to.as_os_str().to_owned();
        name.push(companion);
        let _ = std::fs::remove_file(name);
    }
    std::fs::copy(from, to).unwrap();
}

/// Whatever has happened, it costs a few connections to find out, and to go on.
fn assert_few_connections(bench: &Bench, before: u64, what: &str) {
    let connections = bench.proxy.accepted() - before;
    println!("{what}: {connections} connection(s)");
    assert!(connections <= 4, "{what}: {connections} connections: {:#?}", bench.log.all());
}

/// Who must not be synced with is found out with a few connections, and then left alone, whatever is written meanwhile.
async fn is_blocked_and_left_alone(bench: &Bench, db: &Database, before: u64) {
    wait_for(db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    let until_then = bench.proxy.accepted() - before;
    let pending = db.status_summary().await.sync.pending;
    for body in ["body || '!'", "rtrim(body, '!')"].repeat(3) {
        run(db, &format!("UPDATE note SET body = {body} WHERE id = (SELECT max(id) FROM note)")).await;
    }
    wait_for(db, "it still waits", |status| {
        (status.sync.pending, &*status.sync.state) == (pending, "blocked")
    })
    .await;
    println!("blocked after {until_then} connection(s)");
    assert_few_connections(bench, before, "blocked");
}

/// A failover to a standby that has everything is no reason to compare anything: not a row is read again.
#[actix_rt::test]
async fn a_failover_that_lost_nothing_goes_on() {
    let server = Postgres::start();
    let (mut bench, db) = synced(&server).await;
    let standby = server.copy(CopyOf::Standby);
    cut(&bench, &db).await;
    server.stop();
    standby.promote().await;
    // A row that the feed does not know would be met by a comparison only.
    let admin = on(&bench, &standby).connect_as_admin().await;
    admin
        .batch_execute(
            "BEGIN; INSERT INTO note VALUES (9, 'unseen'); \
             DELETE FROM tidewater.changes WHERE xid = pg_current_xact_id(); COMMIT",
        )
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let warmed = db.status_summary().await.sync.rows_warmed;
    run(&db, "INSERT INTO note VALUES (3, 'meanwhile')").await;
    let before = bench.proxy.accepted();
    lead_to(&mut bench, &standby);
    wait_for(&db, "it is sent", |status| status.sync.pending == 0).await;
    db.warm().await.unwrap();
    assert_eq!(db.status_summary().await.sync.rows_warmed, warmed);
    assert_eq!(bodies(&db), ["1 ours", "2 theirs", "3 meanwhile"]);
    assert_few_connections(&bench, before, "failed over");
    assert_one_line(&bench.log, "and has all that this file knows of");
    db.shutdown().await.unwrap();
}

/// A standby that misses the last commits, ours and others': all of it comes back from the file, and edits made since stay.
#[actix_rt::test]
async fn a_failover_that_lost_commits_gets_them_again() {
    let server = Postgres::start();
    let (mut bench, db) = synced_with_a_shop(&server).await;
    let standby = server.copy(CopyOf::Standby);
    standby.stop();
    write(&db, 3, "ours, lost").await;
    bench.cloud.execute_batch("INSERT INTO note VALUES (4, 'theirs, lost')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    cut(&bench, &db).await;
    server.stop();
    standby.start_again();
    standby.promote().await;
    run(&db, "INSERT INTO note VALUES (5, 'meanwhile')").await;
    let before = bench.proxy.accepted();
    lead_to(&mut bench, &standby);
    bench.cloud.execute_batch("INSERT INTO note VALUES (6, 'since')").await;
    assert_whole(
        &bench,
        &db,
        &["1 ours", "2 theirs", "3 ours, lost", "4 theirs, lost", "5 meanwhile", "6 since"],
    )
    .await;
    assert_few_connections(&bench, before, "failed over with a loss");
    assert_one_line(&bench.log, "The cloud was set back (");
    db.shutdown().await.unwrap();
}

/// What is lost may be only others' rows, which this file has read, while the feed's entry that the cursor stands on is
/// there: transactions commit in another order than they begin.
#[actix_rt::test]
async fn a_lost_commit_below_the_cursor_is_noticed() {
    let server = Postgres::start();
    let (mut bench, db) = synced(&server).await;
    let standby = server.copy(CopyOf::Standby);
    let (early, late) = (bench.cloud.connect().await, bench.cloud.connect().await);
    early.batch_execute("BEGIN; INSERT INTO note VALUES (3, 'begun first')").await.unwrap();
    late.batch_execute("INSERT INTO note VALUES (4, 'committed first')").await.unwrap();
    wait::until("the standby has it", PATIENCE, async || {
        let there = on(&bench, &standby).connect().await;
        let rows: i64 = there.query_one("SELECT count(*) FROM note", &[]).await.unwrap().get(0);
        if rows == 3 { Ok(()) } else { Err(rows.to_string()) }
    })
    .await;
    standby.stop();
    early.batch_execute("COMMIT").await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    proven(&bench, &db).await;
    cut(&bench, &db).await;
    server.stop();
    standby.start_again();
    standby.promote().await;
    lead_to(&mut bench, &standby);
    assert_whole(&bench, &db, &["1 ours", "2 theirs", "3 begun first", "4 committed first"]).await;
    assert_one_line(&bench.log, "The cloud was set back (");
    db.shutdown().await.unwrap();
}

/// Where nothing proves that all is there, everything is compared; what the cloud does not show is sent again, not deleted.
#[actix_rt::test]
async fn a_failover_without_proof_costs_a_comparison_and_no_row() {
    let server = Postgres::start();
    let (mut bench, db) = synced(&server).await;
    let standby = server.copy(CopyOf::Standby);
    standby.stop();
    bench.cloud.execute_batch(THEIRS_TO_BE_LOST).await;
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
    let file = rusqlite::Connection::open(bench.path()).unwrap();
    file.execute("DELETE FROM _tidewater_meta WHERE key = 'witness'", []).unwrap();
    drop(file);
    server.stop();
    standby.start_again();
    standby.promote().await;
    bench.proxy.stop();
    lead_to(&mut bench, &standby);
    let db = bench.open().await;
    assert_whole(&bench, &db, &["1 ours, edited by them", "2 theirs", "3 theirs, lost"]).await;
    assert_one_line(&bench.log, "and may have lost changes");
    // What the cloud had instead is on record.
    assert_eq!(harness::here(&db, REPLACED), LOST_AND_FOUND);
    // From then on, what is deleted there is deleted here.
    bench.cloud.execute_batch("DELETE FROM note WHERE id = 3").await;
    assert_whole(&bench, &db, &["1 ours, edited by them", "2 theirs"]).await;
    db.shutdown().await.unwrap();
}

/// The feed does not know the entry any more up to which this file has read it, and was not trimmed: the cloud was set back, and
/// nothing but that tells of it. What was read since is in the file, and goes back.
#[actix_rt::test]
async fn a_feed_that_begins_anew_gets_everything_again() {
    let server = Postgres::start();
    let (mut bench, db) = synced(&server).await;
    let witness = meta(&db, "witness");
    let earlier = server.copy(CopyOf::Snapshot);
    bench.cloud.execute_batch(THEIRS_TO_BE_LOST).await;
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
    // As if this had been read a moment ago.
    let file = rusqlite::Connection::open(bench.path()).unwrap();
    file.execute("UPDATE _tidewater_meta SET value = ?1 WHERE key = 'witness'", [witness]).unwrap();
    drop(file);
    server.stop();
    earlier.start_again();
    bench.proxy.stop();
    lead_to(&mut bench, &earlier);
    let db = bench.open().await;
    assert_whole(&bench, &db, &["1 ours, edited by them", "2 theirs", "3 theirs, lost"]).await;
    assert_one_line(&bench.log, "change feed begins anew");
    assert_eq!(harness::here(&db, REPLACED), LOST_AND_FOUND);
    bench
        .cloud
        .execute_batch("DELETE FROM note WHERE id = 3; UPDATE note SET body = 'on' WHERE id = 1")
        .await;
    assert_whole(&bench, &db, &["1 on", "2 theirs"]).await;
    db.shutdown().await.unwrap();
}

/// A feed that was trimmed just up to where this file has read it lacks the same entry, and nothing is lost: what was deleted
/// since stays deleted.
#[actix_rt::test]
async fn a_feed_that_was_trimmed_up_to_the_cursor_is_no_loss() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    bench.proxy.start();
    run(&db, NOTE).await;
    run(&db, "INSERT INTO note VALUES (1, 'ours'), (2, 'theirs')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    bench.cloud.execute_batch("UPDATE note SET body = 'edited' WHERE id = 1").await;
    bench.wait_until_equal(&db, &["note"]).await;
    proven(&bench, &db).await;
    let (xid, id) = (meta(&db, "cursor_xid"), meta(&db, "cursor_id"));
    db.shutdown().await.unwrap();
    let trimmed = format!(
        "DELETE FROM note WHERE id = 2; DELETE FROM tidewater.changes WHERE id <= {id}; \
         UPDATE tidewater.feed SET trimmed_xid = '{xid}', trimmed_id = {id}"
    );
    bench.cloud.execute_batch(&trimmed).await;
    let db = bench.open().await;
    wait_for(&db, "the deletion is here", |_| bodies(&db) == ["1 edited"]).await;
    assert_whole_there(&bench, &db, &["1 edited"]).await;
    assert_eq!(there(&bench.cloud.connect().await, "SELECT count(*) FROM note").await, "1");
    assert_eq!(bench.log.count("change feed begins anew"), 0, "{:#?}", bench.log.all());
    assert_eq!(bench.log.count("does not reach back"), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Recovered to a point in time, and a snapshot of the disk put back: the server and its mark are the same, and what came
/// after is in the file.
#[actix_rt::test]
async fn a_cloud_that_is_recovered_gets_everything_again() {
    for how in [CopyOf::Recovered, CopyOf::Snapshot] {
        let server = Postgres::start();
        let (mut bench, db) = synced_with_a_shop(&server).await;
        let earlier = server.copy(how);
        write(&db, 3, "after the backup").await;
        run(&db, "UPDATE note SET body = 'edited' WHERE id = 1").await;
        bench.cloud.execute_batch("INSERT INTO note VALUES (4, 'theirs, after')").await;
        bench.wait_until_equal(&db, &["note"]).await;
        cut(&bench, &db).await;
        server.stop();
        earlier.start_again();
        earlier.recovered().await;
        let before = bench.proxy.accepted();
        lead_to(&mut bench, &earlier);
        assert_whole(&bench, &db, &["1 edited", "2 theirs", "3 after the backup", "4 theirs, after"]).await;
        assert_few_connections(&bench, before, "recovered");
        assert_one_line(&bench.log, "The cloud was set back (");
        db.shutdown().await.unwrap();
    }
}

/// Edits of the shop that have no say in what a row is called: nothing that comes back stands in the way of what is there.
fn edits(round: usize) -> String {
    format!(
        "UPDATE product SET stock = 10 * {round}, title = title || ' {round}', weight = NULL WHERE rowid % 3 = {round} % 3;\n\
         UPDATE customer SET credit = {round}.25, newsletter = 1 - newsletter WHERE rowid % 2 = {round} % 2;\n\
         UPDATE measurement SET raw = randomblob(20), value = value / 3 WHERE id % 2 = {round} % 2;\n\
         DELETE FROM review WHERE rowid IN (SELECT rowid FROM review ORDER BY rowid LIMIT 2);\n\
         DELETE FROM product_image WHERE rowid IN (SELECT rowid FROM product_image ORDER BY rowid LIMIT 1)"
    )
}

/// A shop on two devices and a server, which changes on all sides, by plain SQL as well; some of it is lost by the server, and one
/// of the devices was away before that. What came of it, value by value: both devices and the cloud hold the same, which is the last
/// that the younger device had, but for what was changed since and what was deleted and is back. That is on record.
async fn a_shop_after(how: CopyOf) {
    let server =
        Postgres::start_with(&postgres::Options { archive: how == CopyOf::AtPoint, ..Default::default() });
    let mut bench = Bench::on(&server).await;
    let one = bench.open().await;
    run(&one, shop::SCHEMA).await;
    let mut generator = Generator::new(23);
    let fill = async |generator: &mut Generator, db: &Database| {
        let rows: Vec<_> = generator.statements(30).collect();
        for unit in rows.chunks(10) {
            db.write(unit.iter().cloned().map(harness::statement)).await.unwrap();
        }
    };
    fill(&mut generator, &one).await;
    bench.proxy.start();
    bench.wait_until_equal(&one, shop::TABLES).await;
    let mut second = bench.another();
    let two = second.open().await;
    run(&two, shop::SCHEMA).await;
    second.proxy.start();
    second.wait_until_equal(&two, shop::TABLES).await;
    let all_equal = async |bench: &Bench, second: &Bench| {
        bench.wait_until_equal(&one, shop::TABLES).await;
        second.wait_until_equal(&two, shop::TABLES).await;
        for db in [&one, &two] {
            harness::wait_until_flushed(db).await;
        }
    };
    all_equal(&bench, &second).await;
    let early = how == CopyOf::AtPoint;
    let mut earlier = early.then(|| server.copy(how));
    run(&one, &edits(1)).await;
    fill(&mut generator, &two).await;
    bench.cloud.execute_batch("UPDATE category SET position = 7").await;
    all_equal(&bench, &second).await;
    match how {
        CopyOf::AtPoint => server.restore_point().await,
        _ => earlier = Some(server.copy(how)),
    }
    let earlier = earlier.unwrap();
    if how == CopyOf::Standby {
        earlier.stop();
    }
    // This is lost.
    fill(&mut generator, &one).await;
    bench.cloud.execute_batch("UPDATE stock_place SET quantity = 11").await;
    run(&two, &edits(2)).await;
    all_equal(&bench, &second).await;
    cut(&bench, &one).await;
    run(&two, &edits(3)).await;
    fill(&mut generator, &two).await;
    second.cloud.execute_batch("UPDATE category SET name = name || '!'").await;
    second.wait_until_equal(&two, shop::TABLES).await;
    harness::wait_until_flushed(&two).await;
    run(&one, "INSERT INTO \"SETTING\" VALUES ('pending', 'while it was away')").await;
    let before = second.folder.path().join("before.db");
    two.backup(&before).await.unwrap();
    cut(&second, &two).await;
    server.stop();
    earlier.start_again();
    match how {
        CopyOf::Standby => earlier.promote().await,
        _ => earlier.recovered().await,
    }
    let there_since = on(&bench, &earlier);
    there_since
        .execute_batch(
            "UPDATE measurement SET sensor = 'since the loss' WHERE id = (SELECT min(id) FROM measurement)",
        )
        .await;
    lead_to(&mut bench, &earlier);
    lead_to(&mut second, &earlier);
    wait_for(&one, "connected", |status| status.sync.state != "offline").await;
    wait_for(&two, "connected", |status| status.sync.state != "offline").await;
    harness::wait_until_here(&two, "SELECT count(*) FROM \"SETTING\" WHERE \"KEY\" = 'pending'", "1").await;
    harness::wait_until_here(&one, "SELECT count(*) FROM measurement WHERE sensor = 'since the loss'", "1")
        .await;
    wait::until("both devices to have the last state", PATIENCE, async || {
        let (here, back, listed) = compared(&second.path(), &before, &bench.path());
        if here.is_empty() && back == listed {
            Ok(())
        } else {
            Err(format!(
                "{here:#?}, {back:?} back, {listed:?} listed, {:#?} {:#?}",
                bench.log.all(),
                second.log.all()
            ))
        }
    })
    .await;
    all_equal(&bench, &second).await;
    let (here, back, listed) = compared(&second.path(), &before, &bench.path());
    assert_eq!((here, &back), (vec![], &listed));
    assert!(!back.is_empty(), "what was deleted after the loss is back");
    for (bench, db) in [(&bench, &one), (&second, &two)] {
        assert_one_line(&bench.log, "The cloud was set back (");
        assert_eq!(bench.log.count("Compared with the cloud as it is now"), 1, "{:#?}", bench.log.all());
        assert_eq!(db.status_summary().await.sync.parked, 0);
    }
    for db in [one, two] {
        db.shutdown().await.unwrap();
    }
}

/// Of two files: what the later one lacks of the earlier one, but for what was changed since; the rows that it has besides, by
/// table and key, and those of them that are on record as a whole: here as deleted, or in the other device's file as sent again.
fn compared(now: &Path, before: &Path, other: &Path) -> (Vec<String>, BTreeSet<String>, BTreeSet<String>) {
    let file = rusqlite::Connection::open(now).unwrap();
    for (path, name) in [(before, "before"), (other, "other")] {
        file.execute(&format!("ATTACH ?1 AS {name}"), [path.to_str().unwrap()]).unwrap();
    }
    let mut lacking = vec![];
    let mut back = BTreeSet::new();
    for table in shop::TABLES {
        let one = |sql: &str| -> Vec<String> {
            let mut statement = file.prepare(sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let keys: Vec<String> =
            one(&format!("SELECT name FROM pragma_table_info('{table}') WHERE pk > 0 ORDER BY pk"));
        let key = keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
        let json = format!("json_array({key})");
        lacking.extend(one(&format!(
            "SELECT '{table} ' || {json} FROM (SELECT * FROM before.\"{table}\" EXCEPT SELECT * FROM main.\"{table}\") AS t"
        )));
        back.extend(one(&format!(
            "SELECT '{table} ' || {json} FROM (SELECT {key} FROM main.\"{table}\" EXCEPT SELECT {key} FROM before.\"{table}\") AS t \
             WHERE {json} <> '[\"pending\"]'"
        )));
    }
    // One measurement was taken since.
    let since =
        "SELECT 'measurement ' || json_array(id) FROM main.measurement WHERE sensor = 'since the loss'";
    let since: String = file.query_row(since, [], |row| row.get(0)).unwrap_or_default();
    lacking.retain(|row| *row != since);
    let listed = "SELECT table_name || ' ' || key FROM main._tidewater_conflicts WHERE column IS NULL \
                  UNION SELECT table_name || ' ' || key FROM other._tidewater_conflicts WHERE column IS NULL";
    let mut statement = file.prepare(listed).unwrap();
    let listed: BTreeSet<String> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    (lacking, back.clone(), listed.intersection(&back).cloned().collect())
}

/// Recovered to a point in time, by the server's log.
#[actix_rt::test]
async fn a_shop_on_two_devices_outlives_a_recovery_to_a_point_in_time() {
    a_shop_after(CopyOf::AtPoint).await;
}

/// The other ways in which a server loses what it had.
#[actix_rt::test]
#[ignore = "takes a minute"]
async fn a_shop_on_two_devices_outlives_every_loss() {
    for how in [CopyOf::Snapshot, CopyOf::Recovered, CopyOf::Standby] {
        a_shop_after(how).await;
    }
}

/// After a cloud was set back, several files bring back what it lost. The youngest value of each row is everywhere in the end,
/// whichever of them comes first: a file that was away for longer has older ones. That holds, too, for what a file had sent when it
/// was cut off, before it could read anything more.
#[actix_rt::test]
async fn the_youngest_file_brings_back_each_row_whoever_comes_first() {
    for (order, is_cut_off) in [(&[0, 1][..], true), (&[1, 0], false), (&[], true)] {
        let server = Postgres::start();
        let (bench, one) = synced(&server).await;
        let second = bench.another();
        let mut two = second.open().await;
        run(&two, NOTE).await;
        second.proxy.start();
        second.wait_until_equal(&two, &["note"]).await;
        let earlier = server.copy(CopyOf::Snapshot);
        run(&one, "UPDATE note SET body = 'old' WHERE id = 1").await;
        write(&one, 3, "old").await;
        second.wait_until_equal(&two, &["note"]).await;
        read_all(&one).await;
        proven(&bench, &one).await;
        cut(&bench, &one).await;
        // The first device never hears of these.
        run(&two, "UPDATE note SET body = 'young' WHERE id IN (1, 3)").await;
        write(&two, 4, "young").await;
        read_all(&two).await;
        proven(&second, &two).await;
        cut(&second, &two).await;
        if is_cut_off {
            two.shutdown().await.unwrap();
            let last = harness::here(&one, "SELECT known FROM _tidewater_clock");
            let file = rusqlite::Connection::open(second.path()).unwrap();
            let as_if = format!(
                "INSERT INTO _tidewater_sent_1 (k0, at) SELECT id, known FROM note, _tidewater_clock WHERE body = 'young'; \
                 UPDATE _tidewater_clock SET known = {last} - 1"
            );
            file.execute_batch(&as_if).unwrap();
            drop(file);
            two = second.open().await;
        }
        server.stop();
        earlier.start_again();
        let mut devices = [(bench, one), (second, two)];
        for at in order {
            let (bench, db) = &mut devices[*at];
            lead_to(bench, &earlier);
            wait_for(db, "connected", |status| status.sync.state != "offline").await;
            wait_for(db, "nothing is pending", |status| status.sync.pending == 0).await;
            bench.wait_until_equal(db, &["note"]).await;
        }
        if order.is_empty() {
            devices.iter_mut().for_each(|(bench, _)| lead_to(bench, &earlier));
        }
        for (bench, db) in &devices {
            assert_whole(bench, db, &["1 young", "2 theirs", "3 young", "4 young"]).await;
            assert_one_line(&bench.log, "The cloud was set back (");
        }
        for (_, db) in devices {
            db.shutdown().await.unwrap();
        }
    }
}

/// Waits until this file knows that it has all that the cloud has.
async fn read_all(db: &Database) {
    harness::wait_until_here(db, "SELECT count(*) FROM _tidewater_sent_1", "0").await;
}

/// Somebody deletes a device from the ledger, as one does with those that are gone, and it was not gone. Nothing is lost there, so
/// nothing is sent again, and what others deleted meanwhile stays deleted; what waited is sent, once.
#[actix_rt::test]
async fn a_device_that_was_deleted_from_the_ledger_goes_on_as_a_new_one() {
    let server = Postgres::start();
    let (bench, db) = synced(&server).await;
    let device = meta(&db, "device");
    cut(&bench, &db).await;
    run(&db, "INSERT INTO note VALUES (3, 'meanwhile')").await;
    bench
        .cloud
        .execute_batch(&format!(
            "DELETE FROM tidewater.devices WHERE id = '{device}'; DELETE FROM note WHERE id = 1; \
             UPDATE note SET body = 'edited' WHERE id = 2"
        ))
        .await;
    bench.proxy.start();
    wait_for(&db, "the deletion is here", |_| bodies(&db) == ["2 edited", "3 meanwhile"]).await;
    assert_whole(&bench, &db, &["2 edited", "3 meanwhile"]).await;
    assert_one_line(&bench.log, "has deleted this device");
    assert_ne!(meta(&db, "device"), device);
    // While it is connected, and the trim had taken what held the feed for it, too.
    let device = meta(&db, "device");
    let struck = format!(
        "DELETE FROM tidewater.devices WHERE id = '{device}'; DELETE FROM tidewater.cursors WHERE device = '{device}'; \
         DELETE FROM note WHERE id = 2"
    );
    bench.cloud.execute_batch(&struck).await;
    write(&db, 4, "and on").await;
    assert_whole(&bench, &db, &["3 meanwhile", "4 and on"]).await;
    assert_eq!(bench.log.count("has deleted this device"), 2, "{:#?}", bench.log.all());
    assert_eq!(harness::here(&db, REPLACED), "");
    db.shutdown().await.unwrap();
}

/// A device that only reads has no rounds: the witness alone tells it that the cloud was set back.
#[actix_rt::test]
async fn a_device_that_only_reads_notices_a_recovery() {
    let server = Postgres::start();
    let (bench, db) = synced(&server).await;
    db.shutdown().await.unwrap();
    let mut reader = bench.another();
    let db = reader.open().await;
    run(&db, NOTE).await;
    reader.proxy.start();
    reader.wait_until_equal(&db, &["note"]).await;
    proven(&reader, &db).await;
    let earlier = server.copy(CopyOf::Snapshot);
    reader.cloud.execute_batch("INSERT INTO note VALUES (3, 'read here only')").await;
    reader.wait_until_equal(&db, &["note"]).await;
    proven(&reader, &db).await;
    cut(&reader, &db).await;
    server.stop();
    earlier.start_again();
    lead_to(&mut reader, &earlier);
    assert_whole(&reader, &db, &["1 ours", "2 theirs", "3 read here only"]).await;
    assert_one_line(&reader.log, "The cloud was set back (");
    db.shutdown().await.unwrap();
}

/// A dump put into the same database, by whoever dropped what was there: what the dump lacks comes back from the file.
#[actix_rt::test]
async fn a_dump_restored_into_the_same_database_gets_the_rest_again() {
    let server = Postgres::start();
    let (bench, db) = synced_with_a_shop(&server).await;
    let dump = server.dump(&bench.cloud);
    write(&db, 3, "after the dump").await;
    cut(&bench, &db).await;
    let admin = bench.cloud.connect_as_admin().await;
    admin
        .batch_execute("DROP SCHEMA tidewater CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner")
        .await
        .unwrap();
    admin.batch_execute(&dump).await.unwrap_or_else(|error| panic!("{error:?}"));
    let before = bench.proxy.accepted();
    bench.proxy.start();
    assert_whole(&bench, &db, &["1 ours", "2 theirs", "3 after the dump"]).await;
    assert_few_connections(&bench, before, "a dump in its place");
    assert_one_line(&bench.log, "The cloud was set back (");
    db.shutdown().await.unwrap();
}

/// A dump put into a new database is a copy, beside the original or in its place: nothing is sent or fetched until somebody
/// says that this is the one.
#[actix_rt::test]
async fn a_dump_restored_into_a_new_database_waits_for_a_word() {
    let server = Postgres::start();
    let (bench, db) = synced_with_a_shop(&server).await;
    let dump = server.dump(&bench.cloud);
    write(&db, 3, "after the dump").await;
    cut(&bench, &db).await;
    let (name, user) = (&bench.cloud.name, &bench.cloud.user);
    let admin = server.connect_as_admin().await;
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name} OWNER {user} TEMPLATE template0")).await.unwrap();
    let restored = bench.cloud.connect_as_admin().await;
    restored.batch_execute(&dump).await.unwrap_or_else(|error| panic!("{error:?}"));
    run(&db, "INSERT INTO note VALUES (4, 'meanwhile')").await;
    let before = bench.proxy.accepted();
    bench.proxy.start();
    is_blocked_and_left_alone(&bench, &db, before).await;
    assert_eq!(there(&bench.cloud.connect().await, "SELECT count(*) FROM note").await, "2");
    assert_one_line(&bench.log, "a copy of this file's cloud answers: database ");
    assert!(db.adopt(Adopt::Whoever).await.unwrap().adopted);
    assert_whole(&bench, &db, &["1 ours", "2 theirs", "3 after the dump", "4 meanwhile"]).await;
    assert_eq!(bench.log.count("belongs to another cloud now"), 1);
    db.shutdown().await.unwrap();
}

/// A staging clone on the same server has the same mark, server and timeline: it gets nothing. The original goes on.
#[actix_rt::test]
async fn a_clone_beside_the_original_gets_nothing() {
    let server = Postgres::start();
    let (bench, db) = synced_with_a_shop(&server).await;
    db.shutdown().await.unwrap();
    bench.proxy.stop();
    let (name, user) = (&bench.cloud.name, &bench.cloud.user);
    let admin = server.connect_as_admin().await;
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    admin
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            &[name],
        )
        .await
        .unwrap();
    wait::until("the clone is made", PATIENCE, async || {
        let made =
            admin.batch_execute(&format!("CREATE DATABASE staging TEMPLATE {name} OWNER {user}")).await;
        made.map_err(|error| error.to_string())
    })
    .await;
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
    let mut staging = bench.cloud.clone();
    staging.name = "staging".into();
    bench.proxy.start();
    let before = bench.proxy.accepted();
    let db = bench.open_with(bench.settings().set("cloud.database", "staging")).await;
    run(&db, "INSERT INTO note VALUES (3, 'for production')").await;
    is_blocked_and_left_alone(&bench, &db, before).await;
    assert_one_line(&bench.log, "a copy of this file's cloud answers: database ");
    db.shutdown().await.unwrap();
    let db = bench.open().await;
    assert_whole(&bench, &db, &["1 ours", "2 theirs", "3 for production"]).await;
    assert_eq!(there(&staging.connect().await, "SELECT count(*) FROM note").await, "2");
    db.shutdown().await.unwrap();
}

/// A file that is copied to a second machine, where both go on: one of them becomes a new device, and both converge.
#[actix_rt::test]
async fn a_copied_file_and_the_original_both_go_on() {
    let server = Postgres::start();
    let (bench, db) = synced_with_a_shop(&server).await;
    cut(&bench, &db).await;
    run(&db, "INSERT INTO note VALUES (3, 'pending in both')").await;
    db.shutdown().await.unwrap();
    let second = bench.another();
    copy_file(&bench.path(), &second.path());
    let (one, two) = (bench.open().await, second.open().await);
    run(&one, "INSERT INTO note VALUES (10, 'on the first')").await;
    run(&two, "INSERT INTO note VALUES (20, 'on the second')").await;
    let before = [&bench, &second].map(|bench| bench.proxy.accepted());
    bench.proxy.start();
    second.proxy.start();
    let rows = ["1 ours", "2 theirs", "3 pending in both", "10 on the first", "20 on the second"];
    assert_whole(&bench, &one, &rows).await;
    assert_whole(&second, &two, &rows).await;
    write(&one, 11, "and on").await;
    write(&two, 21, "and on").await;
    let rows = [&rows[..4], &["11 and on", "20 on the second", "21 and on"]].concat();
    assert_whole(&bench, &one, &rows).await;
    assert_whole(&second, &two, &rows).await;
    assert_few_connections(&bench, before[0], "the original");
    assert_few_connections(&second, before[1], "the copy");
    assert_ne!(meta(&one, "device"), meta(&two, "device"));
    let told = bench.log.count("was set back or copied") + second.log.count("was set back or copied");
    assert_eq!(told, 1, "{:#?} {:#?}", bench.log.all(), second.log.all());
    one.shutdown().await.unwrap();
    two.shutdown().await.unwrap();
}

/// An old backup of the file put back: what was pending in it is sent, once; what came after is in the cloud and comes.
#[actix_rt::test]
async fn an_old_backup_of_the_file_catches_up() {
    let server = Postgres::start();
    let (bench, db) = synced_with_a_shop(&server).await;
    cut(&bench, &db).await;
    run(&db, "INSERT INTO note VALUES (3, 'pending in the backup')").await;
    let backup = bench.folder.path().join("backup.db");
    db.backup(&backup).await.unwrap();
    bench.proxy.start();
    wait_until_available(&db).await;
    write(&db, 4, "after the backup").await;
    bench
        .cloud
        .execute_batch("DELETE FROM note WHERE id = 2; UPDATE note SET body = 'edited' WHERE id = 1")
        .await;
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
    copy_file(&backup, &bench.path());
    let before = bench.proxy.accepted();
    let db = bench.open().await;
    assert_whole(&bench, &db, &["1 edited", "3 pending in the backup", "4 after the backup"]).await;
    assert_few_connections(&bench, before, "an old backup");
    assert_one_line(&bench.log, "was set back or copied");
    db.shutdown().await.unwrap();
}

/// A replica answers: nothing is parked and nothing is lost, one line says what to do, and when the primary is back it goes on.
#[actix_rt::test]
async fn a_read_only_replica_is_refused() {
    let server = Postgres::start();
    let (mut bench, db) = synced_with_a_shop(&server).await;
    let standby = server.copy(CopyOf::Standby);
    cut(&bench, &db).await;
    run(&db, "INSERT INTO note VALUES (3, 'meanwhile')").await;
    let before = bench.proxy.accepted();
    lead_to(&mut bench, &standby);
    is_blocked_and_left_alone(&bench, &db, before).await;
    let refused = db.adopt(Adopt::Whoever).await.unwrap_err();
    assert!(refused.to_string().contains("a read-only replica answers"), "{refused}");
    let status = db.status_summary().await;
    assert_eq!((status.sync.pending, status.sync.parked), (1, 0));
    assert_one_line(&bench.log, "a read-only replica answers");
    bench.proxy.stop();
    lead_to(&mut bench, &server);
    db.reset().await.unwrap();
    assert_whole(&bench, &db, &["1 ours", "2 theirs", "3 meanwhile"]).await;
    db.shutdown().await.unwrap();
}

/// The proxy leads to another instance, with an empty database of that name: it gets nothing, until it is adopted; then it
/// gets everything, what was pending included.
#[actix_rt::test]
async fn an_empty_database_gets_everything_once_it_is_adopted() {
    let server = Postgres::start();
    let (mut bench, db) = synced_with_a_shop(&server).await;
    let other = Postgres::start();
    harness::twin(&other, &bench.cloud).await;
    cut(&bench, &db).await;
    run(&db, "UPDATE note SET body = 'edited' WHERE id = 1;\nDELETE FROM note WHERE id = 2").await;
    run(&db, "INSERT INTO note VALUES (3, 'meanwhile')").await;
    let before = bench.proxy.accepted();
    lead_to(&mut bench, &other);
    is_blocked_and_left_alone(&bench, &db, before).await;
    let found = db.adopt(Adopt::Look).await.unwrap();
    assert_eq!((found.adopted, found.answers.identity, found.pending), (false, None, 3));
    assert!(matches!(
        db.adopt(Adopt::Identity("another".into())).await,
        Err(tidewater::Error::Sync(SyncError::Blocked(_)))
    ));
    let marks = "SELECT count(*) FROM pg_class WHERE relname IN ('note', 'devices', 'identity')";
    assert_eq!(there(&bench.cloud.connect().await, marks).await, "0");
    let before = bench.proxy.accepted();
    let adopted = db.adopt(Adopt::Whoever).await.unwrap();
    assert!(adopted.adopted && adopted.answers.identity == Some(meta(&db, "cloud")), "{adopted:?}");
    assert_whole_there(&bench, &db, &["1 edited", "3 meanwhile"]).await;
    assert_few_connections(&bench, before, "adopted");
    assert_eq!(bench.log.count("belongs to another cloud now"), 1, "{:#?}", bench.log.all());
    assert!(!db.adopt(Adopt::Whoever).await.unwrap().adopted, "it is at home");
    db.shutdown().await.unwrap();
}
