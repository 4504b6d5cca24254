//! Crashes and cuts: whatever ends when, every row arrives, once (P2, P3), and no edit is lost silently (P4).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod harness;
#[cfg(feature = "failpoints")]
#[path = "crash/parked.rs"]
mod parked;
#[cfg(feature = "failpoints")]
#[path = "crash/points.rs"]
mod points;
mod process;

use std::fmt::Write as _;
use std::time::Duration;

use harness::Bench;
use process::{Device, PATIENCE};
use tidewater::Statement;
use tidewater_test_support::{Mode, shell, wait};
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, n INTEGER);";

/// The owner's own trigger writes down what is done to each row, so that "once" is seen and not assumed.
const AUDIT: &str = "
    CREATE TABLE audit (op text NOT NULL, id bigint NOT NULL);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO audit VALUES (TG_OP, coalesce(NEW.id, OLD.id)); RETURN NULL; END $$;
    CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON note
        FOR EACH ROW EXECUTE FUNCTION audited();";

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn local(device: &Device, sql: &str) -> String {
    shell::sqlite3_shell(device.path(), sql).trim_end().to_owned()
}

fn inserts(ids: std::ops::Range<i64>) -> String {
    let mut sql = String::new();
    for id in ids {
        writeln!(sql, "INSERT INTO note VALUES ({id}, 'größe {id}', {});", id * 7).unwrap();
    }
    sql
}

/// A device whose table `note` is in the cloud, empty, with every change to it written down there.
async fn audited() -> (Device, Client) {
    let device = Device::new().await;
    local(&device, NOTE);
    device.proxy.start();
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    process.stop();
    device.cloud.execute_batch(AUDIT).await;
    let client = device.cloud.connect().await;
    (device, client)
}

/// Killed after the cloud's COMMIT and before anything is known of it here: the next start finds out, sends nothing
/// twice and loses nothing, inserts, updates and deletes alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_commit_and_acknowledgement_every_change_takes_effect_once() {
    let (device, client) = audited().await;
    let (mut next, mut before) = (1, 1..1);
    let mut expected = [0, 0, 0];
    for size in [1, 9, 300, 1_999, 2_500] {
        // A retry before the kill would find out as well, and this is about the successor.
        let mut patient = device.command();
        patient.env("TIDEWATER_SYNC__RETRY_DELAY_S", "50");
        let process = process::Process::ready(&mut patient);
        device.wait_until_flushed();

        // The round waits for this lock, so that the next COMMIT is the round's and not that of a pull.
        let blocker = device.cloud.connect().await;
        blocker.batch_execute("BEGIN; LOCK TABLE note IN SHARE MODE").await.unwrap();
        let ids = next..next + size;
        let third = (before.end - before.start) / 3;
        let (updated, deleted) = (before.start..before.start + third, before.end - third..before.end);
        let script = format!(
            "BEGIN;\n{}UPDATE note SET body = 'anders' WHERE id >= {} AND id < {};\n\
             DELETE FROM note WHERE id >= {} AND id < {};\nCOMMIT;",
            inserts(ids.clone()),
            updated.start,
            updated.end,
            deleted.start,
            deleted.end
        );
        local(&device, &script);
        for (sum, more) in expected.iter_mut().zip([size, third, third]) {
            *sum += more;
        }
        wait::until("the round waits for the lock", PATIENCE, async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                           AND wait_event_type = 'Lock'";
            if count(&client, waiting).await > 0 { Ok(()) } else { Err("nobody waits".to_owned()) }
        })
        .await;
        let committed = count(&client, "SELECT count(*) FROM audit").await;
        let cut = device.proxy.hold_when_client_sends(b"COMMIT");
        blocker.batch_execute("COMMIT").await.unwrap();
        cut.triggered(PATIENCE).await;
        process.kill();
        assert!(count(&client, "SELECT count(*) FROM audit").await > committed, "the round is in the cloud");
        assert_eq!(local(&device, "SELECT count(*) FROM _tidewater_round;"), "1", "and nobody here knows");

        let successor = device.start();
        device.wait_until_equal(&["note"]).await;
        device.wait_until_flushed();
        for (op, expected) in ["INSERT", "UPDATE", "DELETE"].into_iter().zip(expected) {
            let sql = format!("SELECT count(*) FROM audit WHERE op = '{op}'");
            assert_eq!(count(&client, &sql).await, expected, "{op} after {size} rows");
        }
        let twice = "SELECT count(*) FROM (SELECT FROM audit GROUP BY op, id HAVING count(*) > 1) AS twice";
        assert_eq!(count(&client, twice).await, 0);
        successor.stop();
        (next, before) = (ids.end, ids);
    }
}

/// Killed again and again at arbitrary moments of a flush, while another program writes: equal at the end, and every
/// row was inserted exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_arbitrary_moments_every_row_is_inserted_once() {
    let (device, client) = audited().await;
    device.proxy.set_mode(Mode::Delay(Duration::from_millis(2)));
    let mut random = Random::new();
    let mut next = 1;
    for _ in 0..8 {
        let process = process::Process::ready(device.command().env("TIDEWATER_SYNC__WINDOW_ROWS_MAX", "150"));
        let (path, first) = (device.path(), next);
        let writer = std::thread::spawn(move || {
            for chunk in 0..10 {
                let ids = first + chunk * 100..first + (chunk + 1) * 100;
                shell::sqlite3_shell(&path, &format!("BEGIN;\n{}COMMIT;", inserts(ids)));
            }
        });
        next += 1_000;
        // So many bytes more to the server, and the process is gone: some go to connecting, most are rows.
        let bytes = device.proxy.stats().client_to_server + random.below(90_000);
        device
            .proxy
            .wait_for_async("the flush is under way", PATIENCE, |stats| stats.client_to_server >= bytes)
            .await;
        process.kill();
        writer.join().unwrap();
        let here = local(&device, "SELECT count(*) FROM note;");
        eprintln!(
            "killed with {} of {here} rows in the cloud",
            count(&client, "SELECT count(*) FROM note").await
        );
    }
    device.proxy.set_mode(Mode::Forward);
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    assert_eq!(count(&client, "SELECT count(*) FROM note").await, 8_000);
    assert_eq!(count(&client, "SELECT count(*) FROM audit").await, 8_000);
    assert_eq!(count(&client, "SELECT count(DISTINCT id) FROM audit WHERE op = 'INSERT'").await, 8_000);
    process.stop();
}

/// What was there before the first start, and what was written while no supervisor ran, is pending after a start
/// without a proxy, still pending after the next, and flushed when the proxy is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_changes_survive_restarts() {
    let device = Device::new().await;
    local(&device, &format!("{NOTE} BEGIN; {} COMMIT;", inserts(1..301)));
    let pending = |rows: u64| {
        device.wait_for_status("the rows are pending", |status| status["sync"]["pending"] == rows);
    };
    let process = device.start();
    pending(300);
    process.stop();
    // Only the triggers are there now: no supervisor, no library.
    local(
        &device,
        &format!(
            "BEGIN; {} UPDATE note SET n = -1 WHERE id <= 10; DELETE FROM note WHERE id = 300; COMMIT;",
            inserts(301..401)
        ),
    );
    // A row that came and went is still an entry, until the next round sees that there is nothing to send.
    let process = device.start();
    pending(400);
    process.kill();
    let process = device.start();
    pending(400);
    device.proxy.start();
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    process.stop();

    // The same once more for rows that the cloud knows, deleted and changed while nobody ran.
    local(&device, "UPDATE note SET n = -2 WHERE id = 20; DELETE FROM note WHERE id BETWEEN 30 AND 39;");
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    let status = device.wait_until_flushed();
    assert_eq!(status["sync"]["conflicts"], 0, "{status:#}");
    let client = device.cloud.connect().await;
    assert_eq!(count(&client, "SELECT count(*) FROM note").await, 389);
    assert_eq!(count(&client, "SELECT n FROM note WHERE id = 20").await, -2);
    process.stop();
}

/// An edit made offline is not overwritten by the cloud's row: different columns both survive, the same column is a
/// conflict whose losing value is kept on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offline_edit_is_merged_and_what_loses_is_kept() {
    let device = Device::new().await;
    local(
        &device,
        "CREATE TABLE item (id INTEGER PRIMARY KEY, a TEXT, b TEXT);
         INSERT INTO item VALUES (1, 'a', 'b'), (2, 'a', 'b'), (3, 'a', 'b'), (4, 'a', 'b'), (5, 'a', 'b');",
    );
    device.proxy.start();
    let process = device.start();
    device.wait_until_equal(&["item"]).await;
    device.wait_until_flushed();

    device.proxy.stop();
    device.wait_for_status("offline", |status| status["sync"]["state"] == "offline");
    local(
        &device,
        "UPDATE item SET a = 'local a' WHERE id IN (1, 2, 4); DELETE FROM item WHERE id = 3;
         UPDATE item SET a = 'same' WHERE id = 5;",
    );
    device
        .cloud
        .execute_batch(
            "UPDATE item SET b = 'cloud b' WHERE id = 1; UPDATE item SET a = 'cloud a' WHERE id = 2;
             UPDATE item SET b = 'cloud b' WHERE id = 3; DELETE FROM item WHERE id = 4;
             UPDATE item SET a = 'same' WHERE id = 5;",
        )
        .await;
    device.proxy.start();
    device.wait_for_status("reconnected", |status| status["proxy"]["status"] == "available");
    device.wait_until_flushed();
    device.wait_until_equal(&["item"]).await;

    let merged = local(&device, "SELECT a || ', ' || b FROM item WHERE id = 1;");
    assert_eq!(merged, "local a, cloud b");
    let client = device.cloud.connect().await;
    let row = client.query_one("SELECT a, b FROM item WHERE id = 1", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("local a", "cloud b"));

    // The same column: either may win, both are in the log.
    let winner = local(&device, "SELECT a FROM item WHERE id = 2;");
    assert!(["local a", "cloud a"].contains(&winner.as_str()), "{winner}");
    let here = local(
        &device,
        "SELECT column, local, cloud, kept FROM _tidewater_conflicts WHERE table_name = 'item' AND key = '[2]';",
    );
    assert_eq!(here, format!("a|\"local a\"|\"cloud a\"|{}", winner.trim_end_matches(" a")));
    // A deletion against an edit is a conflict, too, in both directions.
    for (id, column) in [(3, "local IS NULL"), (4, "cloud IS NULL")] {
        let found = local(
            &device,
            &format!("SELECT count(*) FROM _tidewater_conflicts WHERE key = '[{id}]' AND {column};"),
        );
        assert_eq!(found, "1", "{}", local(&device, "SELECT * FROM _tidewater_conflicts;"));
    }
    // The same value on both sides is none, and neither are different columns.
    assert_eq!(local(&device, "SELECT count(*) FROM _tidewater_conflicts WHERE key IN ('[1]', '[5]');"), "0");

    wait::until("the cloud has the conflicts as well", PATIENCE, async || {
        let sql = "SELECT local::text, cloud::text, kept FROM tidewater.conflicts WHERE key::text = '[2]'";
        let rows = client.query(sql, &[]).await.unwrap();
        let all = count(&client, "SELECT count(*) FROM tidewater.conflicts").await;
        match &rows[..] {
            [row] if all == 3 => {
                assert_eq!((row.get(0), row.get(1)), ("\"local a\"", "\"cloud a\""));
                Ok(())
            }
            _ => Err(format!("{} of {all} conflicts", rows.len())),
        }
    })
    .await;
    process.stop();
}

/// Wherever the connection is cut within a small round, nothing counts as synced that the cloud does not have, and it
/// arrives afterwards.
#[actix_rt::test]
async fn nothing_counts_as_synced_before_the_cloud_has_it() {
    let bench = Bench::new().await;
    // The cuts follow each other closely.
    let hurried = bench.settings().set("proxy.retry_delay_s", 0.1).set("proxy.max_retry_delay_s", 0.5);
    let db = bench.open_with(hurried).await;
    bench.proxy.start();
    let create = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";
    let created = db.write([Statement::new(create)]).await.unwrap();
    db.synced(&created.receipt).await.unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    let client = bench.cloud.connect().await;

    let (mut cuts, mut id) = (0, 0_i64);
    for bytes in (0..2_400).step_by(60) {
        id += 1;
        let cut = bench.proxy.cut_client_to_server_after(bytes);
        let written =
            db.write([Statement::new("INSERT INTO note VALUES (?1, 'cut')").bind(id)]).await.unwrap();
        wait::until("the row arrives", PATIENCE, async || {
            // In this order: what is not pending now must be there at any later time.
            let pending = db.status_summary().await.sync.pending;
            let found: i64 =
                client.query_one("SELECT count(*) FROM note WHERE id = $1", &[&id]).await.unwrap().get(0);
            assert!(pending > 0 || found == 1, "cut after {bytes} bytes: not pending and not there");
            if pending == 0 {
                Ok(())
            } else {
                let (status, log) = (db.status_summary().await, bench.log.all());
                Err(format!("cut after {bytes} bytes ({cut:?}): {found} there, {status:?}, {log:#?}"))
            }
        })
        .await;
        db.synced(&written.receipt).await.unwrap();
        cuts += u32::from(cut.is_triggered());
        bench.proxy.clear_hooks();
    }
    assert!(cuts > 10, "{cuts} cuts");
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(db.status_summary().await.sync.rows_flushed, id.unsigned_abs());
    db.shutdown().await.unwrap();
}

/// Different numbers in every run; what matters is written to the test's output.
struct Random(u64);

impl Random {
    fn new() -> Self {
        use std::hash::{BuildHasher as _, Hasher as _};
        Self(std::hash::RandomState::new().build_hasher().finish() | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
