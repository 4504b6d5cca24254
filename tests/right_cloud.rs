//! P10: it never syncs with a database that it cannot recognise.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, PATIENCE, twin, wait_for};
use tidewater::{Database, ProxyStatus, Statement};
use tidewater_test_support::{Postgres, postgres, wait};

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// A file that has synced with its cloud, and the cloud's database.
async fn synced() -> (Bench, Database) {
    let bench = Bench::new().await;
    let db = bench.open().await;
    bench.proxy.start();
    db.write([Statement::new(NOTE)]).await.unwrap();
    let written = db.write([insert("ours")]).await.unwrap();
    db.synced(&written.receipt).await.unwrap();
    (bench, db)
}

fn insert(body: &str) -> Statement {
    Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body)
}

fn bodies(db: &Database) -> Vec<String> {
    db.read(|conn| {
        conn.prepare("SELECT body FROM note ORDER BY id")?.query_map([], |row| row.get(0))?.collect()
    })
    .unwrap()
}

async fn owner(server: &Postgres, of: &postgres::Database) -> tokio_postgres::Client {
    let mut config = of.config();
    config = {
        let mut there = tokio_postgres::Config::new();
        there.host("127.0.0.1").port(server.port()).dbname(&of.name).user(&of.user);
        there.password(config.get_password().unwrap_or_default());
        there
    };
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    actix_rt::spawn(connection);
    client
}

/// An empty database in the place of ours gets neither rows nor marks, and the file stays as it is.
#[actix_rt::test]
async fn an_empty_database_in_its_place_gets_nothing() {
    let (bench, db) = synced().await;
    let other = Postgres::start();
    twin(&other, &bench.cloud).await;
    bench.proxy.stop();
    bench.proxy.set_upstream(other.address());
    bench.proxy.start();
    db.write([insert("written meanwhile")]).await.unwrap();
    let status = wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    assert_eq!(status.sync.pending, 1);
    wait_for(&db, "the watcher says why", |_| bench.log.count("another database answers") > 0).await;
    assert_eq!(bench.log.count("another database answers"), 1, "{:#?}", bench.log.all());
    let there = owner(&other, &bench.cloud).await;
    let marks = "SELECT count(*) FROM pg_class WHERE relname IN ('note', 'devices', 'identity')";
    assert_eq!(there.query_one(marks, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(bodies(&db), ["ours", "written meanwhile"]);
    // Back where it belongs, it goes on, at a word: what cannot help is not tried again by itself for long.
    bench.proxy.set_upstream(Postgres::shared().address());
    db.reset().await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// Somebody else's Tidewater database in its place: nothing is merged with strangers, in either direction, also when the
/// connection was replaced in silence between two cycles.
#[actix_rt::test]
async fn a_strangers_database_is_not_merged_with() {
    let (bench, db) = synced().await;
    let other = Postgres::start();
    twin(&other, &bench.cloud).await;
    // A stranger's file makes the other database its cloud.
    let stranger = Bench::new().await;
    let theirs = stranger
        .open_with(
            stranger
                .settings()
                .set("proxy.port", other.port())
                .set("cloud.database", &bench.cloud.name)
                .set("cloud.user", &bench.cloud.user)
                .set("cloud.password", &bench.cloud.password),
        )
        .await;
    theirs.write([Statement::new(NOTE)]).await.unwrap();
    let written = theirs.write([insert("a stranger's"), insert("another one")]).await.unwrap();
    theirs.synced(&written.receipt).await.unwrap();
    theirs.shutdown().await.unwrap();

    bench.proxy.set_upstream(other.address());
    let before = bench.proxy.accepted();
    bench.proxy.stop();
    bench.proxy.start();
    bench.proxy.wait_for_async("a new connection", PATIENCE, |stats| stats.accepted > before).await;
    db.write([insert("written meanwhile")]).await.unwrap();
    wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    assert_eq!(bodies(&db), ["ours", "written meanwhile"]);
    let there = owner(&other, &bench.cloud).await;
    let count = there.query_one("SELECT count(*) FROM note", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 2);
    db.shutdown().await.unwrap();
}

/// A copy of its cloud (a dump restored elsewhere, a staging clone) has the same mark and another server: it is not synced
/// with until a person says so; then every table is compared, because transaction ids mean nothing there.
#[actix_rt::test]
async fn a_copy_of_its_cloud_waits_for_a_word() {
    let (bench, db) = synced().await;
    let other = Postgres::start();
    twin(&other, &bench.cloud).await;
    // As a dump would bring it: the same identity and ledger, the same rows.
    let from = bench.cloud.connect().await;
    let to = owner(&other, &bench.cloud).await;
    let identity: String =
        from.query_one("SELECT id::text FROM tidewater.identity", &[]).await.unwrap().get(0);
    let device = from
        .query_one("SELECT id::text, session::text, round::text, round_number FROM tidewater.devices", &[])
        .await
        .unwrap();
    to.batch_execute(include_str!("../actors/src/sql/postgres/bootstrap.sql")).await.unwrap();
    to.batch_execute(&format!(
        "UPDATE tidewater.identity SET id = '{identity}';
         INSERT INTO tidewater.devices (id, session, round, round_number)
         VALUES ('{}', '{}', '{}', {});
         CREATE TABLE note (id bigint PRIMARY KEY, body text);
         INSERT INTO note VALUES (1, 'ours'), (77, 'added on the copy')",
        device.get::<_, String>(0),
        device.get::<_, String>(1),
        device.get::<_, String>(2),
        device.get::<_, i64>(3),
    ))
    .await
    .unwrap();
    bench.proxy.stop();
    bench.proxy.set_upstream(other.address());
    bench.proxy.start();
    wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    assert_eq!(bodies(&db), ["ours"]);
    assert_eq!(bench.log.count("a copy of this file's cloud answers"), 1, "{:#?}", bench.log.all());
    // The remedy of the log line.
    assert!(db.adopt(tidewater::Adopt::Whoever).await.unwrap().adopted);
    db.write([insert("written afterwards")]).await.unwrap();
    wait::until("the copy and the file to be one", PATIENCE, async || {
        let rows = to.query("SELECT body FROM note ORDER BY id", &[]).await.unwrap();
        let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let here = bodies(&db);
        if there == here && there.len() == 3 { Ok(()) } else { Err(format!("{there:?} {here:?}")) }
    })
    .await;
    db.shutdown().await.unwrap();
}

/// An old copy of the file put back goes on as a new device: what the cloud has comes, what was pending stays pending,
/// and nothing is deleted.
#[actix_rt::test]
async fn an_old_copy_of_the_file_goes_on_as_a_new_device() {
    let (bench, db) = synced().await;
    db.shutdown().await.unwrap();
    let copy = bench.folder.path().join("backup.db");
    std::fs::copy(bench.path(), &copy).unwrap();
    let db = bench.open().await;
    let written = db.write([insert("after the backup")]).await.unwrap();
    db.synced(&written.receipt).await.unwrap();
    db.shutdown().await.unwrap();
    for companion in ["-wal", "-shm"] {
        let mut name = bench.path().into_os_string();
        name.push(companion);
        let _ = std::fs::remove_file(name);
    }
    std::fs::copy(&copy, bench.path()).unwrap();

    let db = bench.open().await;
    db.write([Statement::new("INSERT INTO note VALUES (50, 'on the old copy')")]).await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(bodies(&db), ["ours", "after the backup", "on the old copy"]);
    assert_eq!(bench.log.count("set back or copied"), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// A cloud that was set back to an earlier moment gets everything again that it had acknowledged.
#[actix_rt::test]
async fn a_cloud_that_was_set_back_gets_its_rows_again() {
    let (bench, db) = synced().await;
    let written = db.write([insert("lost by the restore")]).await.unwrap();
    db.synced(&written.receipt).await.unwrap();
    bench.proxy.stop();
    wait_for(&db, "the proxy is gone", |status| status.proxy.status == ProxyStatus::Unavailable).await;
    // What a restore to the moment before the second round leaves.
    let client = bench.cloud.connect_as_admin().await;
    client
        .batch_execute(
            "DELETE FROM note WHERE body = 'lost by the restore';
             UPDATE tidewater.devices SET round = gen_random_uuid(), round_number = round_number - 1;
             DELETE FROM tidewater.changes",
        )
        .await
        .unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(bodies(&db), ["ours", "lost by the restore"]);
    assert_eq!(bench.log.count("The cloud was set back"), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}
