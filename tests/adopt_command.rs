//! `run_supervisor adopt`: what people see, what it takes, and what is left when it dies in the middle.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;
mod process;

use process::{Device, PATIENCE, output};
use tidewater_test_support::{Postgres, postgres, shell, wait};

fn adopt(device: &Device, arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = output(device.command().arg("adopt").args(arguments));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

/// It shows who answers and what the file belongs to, changes nothing without a word, takes `--yes` or the right identity, and
/// says when there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_cloud_is_shown_and_then_adopted() {
    let device = Device::new().await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'ours');",
    );
    assert_eq!(adopt(&device, &[]).0, Some(3), "nobody runs");
    device.proxy.start();
    let running = device.start();
    device.wait_until_equal(&["note"]).await;
    let (status, text, _) = adopt(&device, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("nothing to do"), "{text}");
    running.stop();

    let other: postgres::Database = Postgres::shared().create_database().await;
    let mut command = device.command();
    command
        .env("CLOUD_SQL_DATABASE", &other.name)
        .env("CLOUD_SQL_USER", &other.user)
        .env("CLOUD_SQL_PASSWORD", &other.password);
    let running = process::Process::ready(&mut command);
    running.wait_for_line("another database answers");
    assert_eq!(running.count("run_supervisor adopt"), 1, "{:#?}", running.lines());
    let (status, text, _) = adopt(&device, &[]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("without a mark") && text.contains(&other.name), "{text}");
    assert!(text.contains("run_supervisor adopt --yes"), "{text}");
    let (status, _, complaint) = adopt(&device, &["0c2f6f0e-0000-4000-8000-000000000000"]);
    assert_eq!(status, Some(1));
    assert!(complaint.contains("another cloud answers") && complaint.lines().count() == 1, "{complaint}");
    let (status, text, complaint) = adopt(&device, &["--yes"]);
    assert_eq!(status, Some(0), "{text}{complaint}");
    assert!(text.contains("adopted:"), "{text}");
    let there = other.connect().await;
    wait::until("it has the row", PATIENCE, async || {
        let rows = there.query("SELECT body FROM note", &[]).await.map_err(|error| error.to_string())?;
        if rows.len() == 1 { Ok(()) } else { Err(rows.len().to_string()) }
    })
    .await;
    let json = adopt(&device, &["--json"]).1;
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(answer["belongs"]["identity"], answer["answers"]["identity"], "{json}");
    running.stop();
}

#[cfg(feature = "failpoints")]
const KEYS: [&str; 4] = ["cloud", "system", "device", "last_round"];

/// Whatever dies while a cloud is adopted, the file belongs to the old one or to the new one, whole; and asked again, it goes on.
#[cfg(feature = "failpoints")]
#[actix_rt::test]
async fn a_panic_while_a_cloud_is_adopted_leaves_one_belonging_or_the_other() {
    let scenario = fail::FailScenario::setup();
    for (point, moved) in
        [("writer.call.Rehome", false), ("sqlite.rehome", false), ("writer.called.Rehome", true)]
    {
        let mut bench = harness::Bench::new().await;
        let db = bench.open().await;
        harness::run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
        harness::run(&db, "INSERT INTO note VALUES (1, 'ours')").await;
        bench.proxy.start();
        bench.wait_until_equal(&db, &["note"]).await;
        harness::wait_until_flushed(&db).await;
        let other = Postgres::start();
        harness::twin(&other, &bench.cloud).await;
        bench.proxy.stop();
        harness::wait_for(&db, "the proxy is gone", |status| {
            status.proxy.status == tidewater::ProxyStatus::Unavailable
        })
        .await;
        harness::run(&db, "INSERT INTO note VALUES (2, 'meanwhile')").await;
        bench.cloud.port = other.port();
        bench.proxy.set_upstream(other.address());
        bench.proxy.start();
        harness::wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
        let whole = || {
            KEYS.map(|key| {
                let one = format!("SELECT value FROM _tidewater_meta WHERE key = '{key}'");
                harness::here(&db, &format!("SELECT coalesce(({one}), '')"))
            })
        };
        let before = whole();
        fail::cfg(point, "1*panic(as told)").unwrap();
        let answer = db.adopt(tidewater::Adopt::Whoever).await;
        fail::remove(point);
        assert!(answer.is_err(), "{answer:?}");
        let after = whole();
        let changed = KEYS.iter().zip(before.iter().zip(&after)).filter(|(_, (b, a))| b != a).count();
        assert_eq!(changed, if moved { KEYS.len() } else { 0 }, "{point}: {before:?} {after:?}");
        wait::until("it is adopted", PATIENCE, async || {
            db.adopt(tidewater::Adopt::Whoever).await.map_err(|error| error.to_string())
        })
        .await;
        db.reset().await.unwrap();
        bench.wait_until_equal(&db, &["note"]).await;
        harness::wait_until_flushed(&db).await;
        assert_eq!(harness::here(&db, "SELECT group_concat(body) FROM note"), "ours,meanwhile");
        db.shutdown().await.unwrap();
    }
    scenario.teardown();
}

/// Killed in the middle of the transaction, it belongs to the old cloud and goes on there.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_the_file_belongs_where_it_belonged() {
    let device = Device::new().await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'ours');",
    );
    device.proxy.start();
    let running = device.start();
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    running.stop();
    let all = "SELECT key, value FROM _tidewater_meta WHERE key IN ('cloud', 'system', 'database', 'device', 'last_round') \
               ORDER BY key;";
    let before = shell::sqlite3_shell(device.path(), all);
    let other = Postgres::shared().create_database().await;
    let mut command = device.command();
    command
        .env("CLOUD_SQL_DATABASE", &other.name)
        .env("CLOUD_SQL_USER", &other.user)
        .env("CLOUD_SQL_PASSWORD", &other.password)
        .env("FAILPOINTS", "sqlite.rehome=pause");
    let running = process::Process::ready(&mut command);
    let mut asking = device.command().args(["adopt", "--yes"]).spawn().unwrap();
    wait::until_blocking("the file is being written", PATIENCE, || {
        let other = rusqlite::Connection::open(device.path()).unwrap();
        other.busy_timeout(std::time::Duration::ZERO).unwrap();
        match other.execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
            Ok(()) => Err("nobody writes".to_owned()),
            Err(_) => Ok(()),
        }
    });
    running.kill();
    asking.wait().unwrap();
    assert_eq!(shell::sqlite3_shell(device.path(), all), before);
    shell::sqlite3_shell(device.path(), "INSERT INTO note VALUES (2, 'afterwards');");
    let successor = device.start();
    device.wait_until_equal(&["note"]).await;
    successor.stop();
}
