//! The cloud's change feed stays small, and whoever was away for too long misses nothing all the same (P4, P5).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{
    Bench, PATIENCE, batch, here, run, there, wait_for, wait_until_flushed, wait_until_here, wait_until_there,
};
use tidewater::Database;
use tidewater::settings::Sources;
use tidewater_test_support::{Postgres, wait};
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, x TEXT)";

/// The feed's length.
const ENTRIES: &str = "SELECT count(*) FROM tidewater.changes";

/// How many devices a trim went past that have not come back since.
const PASSED: &str = "SELECT count(*) FROM tidewater.cursors WHERE xid IS NULL";

/// The first version's side of the cloud.
const OLD: &str = include_str!("../actors/src/sql/postgres/bootstrap.sql");

/// Puts the cloud back to the first version.
const DOWNGRADE: &str = "DROP FUNCTION tidewater.trim, tidewater.register; DROP TABLE tidewater.feed, tidewater.cursors; \
                         ALTER TABLE tidewater.devices DROP COLUMN version; \
                         UPDATE tidewater.identity SET schema_version = 1";

/// How many devices have said that they run this version.
const SAID: &str =
    concat!("SELECT count(*) FROM tidewater.devices WHERE version = '", env!("CARGO_PKG_VERSION"), "'");

/// A second, about.
const SOON: f64 = 0.000_012;

fn eager(bench: &Bench) -> Sources {
    // What is slow here says nothing about the feed.
    bench.settings().set("sync.trim_interval_s", 0.05).set("proxy.timeout_s", 20)
}

/// A device that is connected.
async fn device(bench: &Bench, settings: Sources) -> Database {
    let db = bench.open_with(settings).await;
    db.write(batch(NOTE)).await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    db
}

/// Two devices with eight notes, equal on all sides.
async fn two_devices() -> (Bench, Database, Bench, Database, Client) {
    two_devices_with(|settings| settings).await
}

/// The same, where the first one has other settings.
async fn two_devices_with(change: impl Fn(Sources) -> Sources) -> (Bench, Database, Bench, Database, Client) {
    let bench = Bench::new().await;
    let a = device(&bench, change(eager(&bench))).await;
    for n in 1..=8 {
        write(&a, &format!("INSERT INTO note VALUES ({n}, 'a', 'a')")).await;
    }
    let other = bench.another();
    let b = device(&other, eager(&other)).await;
    let client = bench.cloud.connect().await;
    (bench, a, other, b, client)
}

/// Writes, and waits until the cloud has it.
async fn write(db: &Database, sql: &str) {
    let receipt = run(db, sql).await;
    db.synced(&receipt).await.unwrap();
}

async fn offline(bench: &Bench, db: &Database) {
    bench.proxy.stop();
    wait_for(db, "offline", |status| status.sync.state == "offline").await;
}

async fn wait_until_small(db: &Database, client: &Client) {
    wait::until("the feed is small", PATIENCE, async || {
        let entries: usize = there(client, ENTRIES).await.parse().unwrap();
        let state = there(client, "SELECT string_agg(c::text, ' ') FROM tidewater.cursors AS c").await;
        if entries <= 2 {
            Ok(())
        } else {
            Err(format!("{entries} {state} {:?}", db.status_summary().await.sync))
        }
    })
    .await;
}

/// Waits until somebody has looked whether there is anything to trim, after this moment.
async fn wait_until_looked(db: &Database, client: &Client) {
    let now = there(client, "SELECT clock_timestamp()").await;
    wait_until_there(db, client, &format!("SELECT done_at > '{now}' FROM tidewater.feed"), "true").await;
}

fn compared(bench: &Bench) -> usize {
    bench.log.count("compared with it")
}

async fn end(devices: [Database; 2]) {
    for db in devices {
        db.shutdown().await.unwrap();
    }
}

/// While everybody reads, the feed holds no more than where they are, however many rounds there were.
#[actix_rt::test]
async fn the_feed_stays_small_while_everybody_reads() {
    let (bench, a, other, b, client) = two_devices().await;
    for n in 0..20 {
        write(&a, &format!("INSERT INTO note VALUES ({}, 'a', NULL)", 100 + 2 * n)).await;
        write(&b, &format!("INSERT INTO note VALUES ({}, 'b', NULL)", 101 + 2 * n)).await;
        if n == 10 {
            wait_until_small(&a, &client).await;
        }
    }
    bench.wait_until_equal(&a, &["note"]).await;
    other.wait_until_equal(&b, &["note"]).await;
    wait_until_small(&a, &client).await;
    wait_until_there(&a, &client, SAID, "2").await;
    assert_eq!((compared(&bench), compared(&other)), (0, 0));
    end([a, b]).await;
}

/// The version that came before this one has everything that a sync needs: where somebody is in the way of the upgrade, nobody
/// waits for it for long, and the next settlement does it. Who did not do it says its version as well.
#[actix_rt::test]
async fn an_upgrade_that_somebody_is_in_the_way_of_comes_later() {
    let (bench, a, other, b, client) = two_devices().await;
    for (bench, db) in [(&bench, &a), (&other, &b)] {
        bench.wait_until_equal(db, &["note"]).await;
        offline(bench, db).await;
    }
    client
        .batch_execute(
            "ALTER TABLE tidewater.devices DROP COLUMN version; UPDATE tidewater.identity SET schema_version = 2",
        )
        .await
        .unwrap();
    let blocker = bench.cloud.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE tidewater.devices IN ROW SHARE MODE").await.unwrap();
    let a = {
        a.shutdown().await.unwrap();
        bench.open_with(eager(&bench).set("proxy.timeout_s", 1)).await
    };
    for (bench, db, id) in [(&bench, &a, 20), (&other, &b, 21)] {
        bench.proxy.start();
        write(db, &format!("INSERT INTO note VALUES ({id}, 'in the meantime', NULL)")).await;
    }
    assert_eq!(there(&client, "SELECT schema_version FROM tidewater.identity").await, "2");
    blocker.batch_execute("COMMIT").await.unwrap();
    a.shutdown().await.unwrap();
    let a = bench.open_with(eager(&bench)).await;
    wait_until_there(&a, &client, "SELECT schema_version FROM tidewater.identity", "3").await;
    wait_until_there(&a, &client, SAID, "2").await;
    bench.wait_until_equal(&a, &["note"]).await;
    other.wait_until_equal(&b, &["note"]).await;
    end([a, b]).await;
}

/// What a sleeping device has not read stays for it, and it goes on where it was.
#[actix_rt::test]
async fn a_sleeping_device_holds_the_feed() {
    let (bench, a, other, b, client) = two_devices().await;
    wait_until_small(&a, &client).await;
    offline(&other, &b).await;
    for n in 0..20 {
        write(&a, &format!("INSERT INTO note VALUES ({}, 'a', NULL)", 100 + n)).await;
    }
    wait_until_looked(&a, &client).await;
    let entries: usize = there(&client, ENTRIES).await.parse().unwrap();
    assert!(entries >= 20, "{entries}");
    other.proxy.start();
    other.wait_until_equal(&b, &["note"]).await;
    wait_until_small(&a, &client).await;
    assert_eq!((compared(&bench), compared(&other), there(&client, PASSED).await.as_str()), (0, 0, "0"));
    end([a, b]).await;
}

/// A device that was away for too long comes back with edits of its own: it compares, all sides are equal at the end, and
/// every edit is there or in the log of conflicts.
#[actix_rt::test]
async fn a_retired_device_comes_back_with_pending_edits() {
    let (bench, a, other, b, client) =
        two_devices_with(|settings| settings.set("sync.device_retire_days", SOON)).await;
    offline(&other, &b).await;
    for sql in [
        "UPDATE note SET body = 'from a' WHERE id IN (1, 2, 4)",
        "DELETE FROM note WHERE id IN (3, 5)",
        "INSERT INTO note VALUES (200, 'from a', NULL)",
    ] {
        write(&a, sql).await;
    }
    client.batch_execute("UPDATE note SET body = 'plain SQL' WHERE id = 6").await.unwrap();
    run(
        &b,
        "UPDATE note SET body = 'from b' WHERE id IN (1, 3);\nUPDATE note SET x = 'from b' WHERE id = 2;\n\
         DELETE FROM note WHERE id = 4;\nINSERT INTO note VALUES (100, 'from b', NULL)",
    )
    .await;
    wait_until_there(&a, &client, PASSED, "1").await;
    wait_until_small(&a, &client).await;
    // From here on it is waited for.
    a.shutdown().await.unwrap();
    let a = bench.open_with(eager(&bench)).await;
    other.proxy.start();
    wait_until_flushed(&b).await;
    other.wait_until_equal(&b, &["note"]).await;
    bench.wait_until_equal(&a, &["note"]).await;
    assert_eq!((compared(&bench), compared(&other)), (0, 1), "{:#?}", other.log.all());
    let row = |id: i64| {
        here(
            &b,
            &format!(
                "SELECT coalesce((SELECT body || '/' || coalesce(x, '-') FROM note WHERE id = {id}), 'gone')"
            ),
        )
    };
    assert_eq!(
        [2, 5, 6, 7, 100, 200].map(row),
        ["from a/from b", "gone", "plain SQL/a", "a/a", "from b/-", "from a/-"]
    );
    // Where both changed the same, one side stays and the other is on record.
    for (id, ours) in [(1, "from b/a"), (3, "from b/a"), (4, "gone")] {
        let logged = here(&b, &format!("SELECT count(*) FROM _tidewater_conflicts WHERE key = '[{id}]'"));
        assert!(row(id) == ours || logged != "0", "{id}: {}", row(id));
        assert_eq!(logged, "1", "{id}");
    }
    // It counts again, and reads on from the feed.
    write(&a, "INSERT INTO note VALUES (300, 'later', NULL)").await;
    wait_until_here(&b, "SELECT count(*) FROM note WHERE body = 'later'", "1").await;
    wait_until_small(&a, &client).await;
    assert_eq!((compared(&other), there(&client, PASSED).await.as_str()), (1, "0"));
    end([a, b]).await;
}

/// A device whose sync is under way all the time, and that is gone past in between, notices with the next thing that it does.
#[actix_rt::test]
async fn a_connected_device_that_is_gone_past_notices() {
    let (bench, a, other, b, client) =
        two_devices_with(|settings| settings.set("sync.feed_entries_max", 10)).await;
    write(&a, "INSERT INTO note VALUES (100, 'a', 'a')").await;
    for n in 0..10 {
        for _ in 0..3 {
            client
                .batch_execute(&format!("UPDATE note SET body = 'plain {n}' WHERE id < 100"))
                .await
                .unwrap();
        }
        run(&b, &format!("UPDATE note SET x = 'b{n}' WHERE id = 1")).await;
        write(&a, &format!("UPDATE note SET body = 'a{n}' WHERE id = 100")).await;
    }
    wait_until_flushed(&b).await;
    bench.wait_until_equal(&a, &["note"]).await;
    other.wait_until_equal(&b, &["note"]).await;
    assert_eq!(here(&a, "SELECT group_concat(body || x) FROM note WHERE id IN (1, 100)"), "plain 9b9,a9a");
    end([a, b]).await;
}

/// A device that has nothing to read is seen all the same, so that it does not have to compare because of a quiet month.
#[actix_rt::test]
async fn a_device_that_only_waits_is_seen() {
    let bench = Bench::new().await;
    let db = device(&bench, bench.settings().set("sync.device_retire_days", SOON)).await;
    let client = bench.cloud.connect().await;
    wait_for(&db, "idle", |status| status.sync.state == "idle").await;
    for _ in 0..3 {
        let seen = there(&client, "SELECT seen_at FROM tidewater.devices").await;
        wait_until_there(&db, &client, &format!("SELECT seen_at > '{seen}' FROM tidewater.devices"), "true")
            .await;
    }
    db.shutdown().await.unwrap();
}

/// A device of a version that says nothing of its cursor comes back after it was gone past, with an edit: it compares, and
/// misses nothing.
#[actix_rt::test]
async fn a_device_that_does_not_say_where_it_reads_comes_back_as_a_new_one() {
    let (bench, a, other, b, client) =
        two_devices_with(|settings| settings.set("sync.device_retire_days", SOON)).await;
    other.wait_until_equal(&b, &["note"]).await;
    offline(&other, &b).await;
    let device = here(&b, "SELECT value FROM _tidewater_meta WHERE key = 'device'");
    client.batch_execute(&format!("DELETE FROM tidewater.cursors WHERE device = '{device}'")).await.unwrap();
    write(&a, "UPDATE note SET body = 'from a' WHERE id = 1").await;
    write(&a, "DELETE FROM note WHERE id = 2").await;
    run(&b, "UPDATE note SET x = 'from b' WHERE id IN (1, 3)").await;
    wait_until_there(&a, &client, PASSED, "1").await;
    wait_until_small(&a, &client).await;
    other.proxy.start();
    wait_until_flushed(&b).await;
    other.wait_until_equal(&b, &["note"]).await;
    bench.wait_until_equal(&a, &["note"]).await;
    assert_eq!(other.log.count("goes on as a new device"), 1, "{:#?}", other.log.all());
    assert_eq!(
        here(&b, "SELECT group_concat(id || body || x) FROM note WHERE id <= 3"),
        "1from afrom b,3afrom b"
    );
    end([a, b]).await;
}

/// The conflicts in the cloud are as many as they may be, also where their numbers have gaps.
#[actix_rt::test]
async fn the_conflicts_in_the_cloud_are_bounded() {
    let bench = Bench::new().await;
    let db = device(&bench, eager(&bench).set("sync.conflicts_max", 10)).await;
    let client = bench.cloud.connect().await;
    let sql = "INSERT INTO tidewater.conflicts (device, tbl, key, kept) \
               SELECT gen_random_uuid(), 'note', to_json(n), 'local' FROM generate_series(1, 60) AS n; \
               DELETE FROM tidewater.conflicts WHERE id % 3 <> 0";
    client.batch_execute(sql).await.unwrap();
    wait_until_there(
        &db,
        &client,
        "SELECT string_agg(key::text, ',' ORDER BY id) FROM tidewater.conflicts",
        "33,36,39,42,45,48,51,54,57,60",
    )
    .await;
    db.shutdown().await.unwrap();
}

/// A cloud of the first version is brought to this one in place, under devices that are connected and such that are not:
/// they go on where they were, and the feed that had grown is trimmed.
#[actix_rt::test]
async fn a_cloud_of_the_first_version_is_upgraded_in_place() {
    let (bench, a, other, b, client) = two_devices().await;
    for (bench, db) in [(&bench, &a), (&other, &b)] {
        bench.wait_until_equal(db, &["note"]).await;
        offline(bench, db).await;
    }
    let filler = "INSERT INTO tidewater.changes (tbl, key) SELECT 1, ARRAY[n::text] FROM generate_series(1, 6000) AS n";
    client.batch_execute(&format!("{DOWNGRADE}; {filler}")).await.unwrap();
    client.batch_execute("UPDATE note SET body = 'meanwhile' WHERE id = 1").await.unwrap();
    bench.proxy.start();
    bench.wait_until_equal(&a, &["note"]).await;
    wait_until_there(&a, &client, "SELECT schema_version FROM tidewater.identity", "3").await;
    wait_until_looked(&a, &client).await;
    let entries: usize = there(&client, ENTRIES).await.parse().unwrap();
    assert!(entries > 6_000, "nobody knows how far the other one is: {entries}");
    run(&b, "UPDATE note SET x = 'b' WHERE id = 1").await;
    other.proxy.start();
    wait_until_flushed(&b).await;
    other.wait_until_equal(&b, &["note"]).await;
    wait_until_small(&a, &client).await;
    // And under devices that are connected.
    client.batch_execute(DOWNGRADE).await.unwrap();
    write(&a, "INSERT INTO note VALUES (100, 'a', NULL)").await;
    write(&b, "INSERT INTO note VALUES (101, 'b', NULL)").await;
    bench.wait_until_equal(&a, &["note"]).await;
    other.wait_until_equal(&b, &["note"]).await;
    wait_until_small(&a, &client).await;
    assert_eq!((compared(&bench), compared(&other)), (0, 0));
    end([a, b]).await;
}

/// Two roles share a cloud of the first version, with the documented grants; whoever of them comes first makes what a sync
/// needs, the owner also what comes beyond that, and both go on.
#[actix_rt::test]
async fn whichever_role_comes_first_upgrades_the_cloud() {
    for owner_first in [true, false] {
        let bench = Bench::new().await;
        let admin = bench.cloud.connect_as_admin().await;
        bench.cloud.execute_batch(OLD).await;
        let mut other = bench.another();
        other.cloud.user = format!("second_{}", bench.cloud.name);
        let (owner, role, password) = (&bench.cloud.user, &other.cloud.user, &other.cloud.password);
        for sql in [
            format!("CREATE ROLE {role} LOGIN PASSWORD '{password}'"),
            format!("GRANT CONNECT ON DATABASE {} TO {role}", bench.cloud.name),
            format!("GRANT USAGE, CREATE ON SCHEMA public, tidewater TO {owner}, {role}"),
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tidewater TO {role}"),
        ] {
            admin.batch_execute(&sql).await.unwrap();
        }
        let (first, second) = if owner_first { (&bench, &other) } else { (&other, &bench) };
        let a = device(first, eager(first)).await;
        let version = there(&admin, "SELECT schema_version FROM tidewater.identity").await;
        assert_eq!(version, if owner_first { "3" } else { "2" });
        admin.batch_execute(&format!("GRANT ALL ON note TO {}", second.cloud.user)).await.unwrap();
        let b = device(second, eager(second)).await;
        for n in 0..5 {
            write(&a, &format!("INSERT INTO note VALUES ({}, 'a', NULL)", 100 + n)).await;
            write(&b, &format!("INSERT INTO note VALUES ({}, 'b', NULL)", 200 + n)).await;
        }
        first.wait_until_equal(&a, &["note"]).await;
        second.wait_until_equal(&b, &["note"]).await;
        wait_until_small(&a, &admin).await;
        assert_eq!(there(&admin, "SELECT schema_version FROM tidewater.identity").await, "3");
        wait_until_there(&a, &admin, SAID, "2").await;
        for bench in [first, second] {
            assert_eq!(bench.log.count("is not trimmed by this device"), 0, "{:#?}", bench.log.all());
        }
        // Each of them alone does it as well.
        for (db, id) in [(&a, 300), (&b, 301)] {
            write(db, &format!("INSERT INTO note VALUES ({id}, 'alone', NULL)")).await;
            wait_until_small(db, &admin).await;
        }
        end([a, b]).await;
    }
}

// ---------------------------------------------------------------------------------------------------------
// Random histories
// ---------------------------------------------------------------------------------------------------------

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Somebody at the cloud with a transaction, perhaps an open one.
struct Writer {
    client: Client,
    is_open: bool,
}

impl Writer {
    async fn step(&mut self, random: &mut Random) {
        let id = random.below(12);
        let sql = match random.below(6) {
            0 if self.is_open => "COMMIT".to_owned(),
            0 => "BEGIN".to_owned(),
            1 => format!("INSERT INTO note VALUES ({id}, 'sql', 'sql') ON CONFLICT DO NOTHING"),
            2 => format!("DELETE FROM note WHERE id = {id}"),
            3 => format!("UPDATE note SET id = {} WHERE id = {id}", 20 + random.below(12)),
            _ => {
                format!("UPDATE note SET body = 'sql {}' WHERE id >= {id} AND id < {id} + 3", random.0 % 1000)
            }
        };
        // Somebody else may hold the row for as long as this script does not go on.
        let sql = format!("SET lock_timeout = 50; {sql}");
        match self.client.batch_execute(&sql).await {
            Ok(()) if sql.ends_with("BEGIN") => self.is_open = true,
            Ok(()) if sql.ends_with("COMMIT") => self.is_open = false,
            Ok(()) => {}
            Err(_) => self.end("ROLLBACK").await,
        }
    }

    async fn end(&mut self, how: &str) {
        if std::mem::take(&mut self.is_open) {
            self.client.batch_execute(how).await.unwrap();
        }
    }
}

/// Three devices that come and go, are forgotten and are gone past; writers whose transactions overlap; one that stays open.
async fn history(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let server = Postgres::start();
    let first = Bench::on(&server).await;
    let (entries_max, retire) = (10 + 10 * random.below(3), [SOON, 30.0][usize::from(random.below(2) == 0)]);
    let mut benches = vec![first];
    benches.extend([0, 1].map(|_| benches[0].another()));
    let mut devices = vec![];
    for bench in &benches {
        let settings = bench
            .settings()
            .set("sync.trim_interval_s", 0.01)
            .set("proxy.timeout_s", 20)
            .set("sync.pull_interval_s", 0.02)
            .set("sync.retry_delay_s", 0.02)
            .set("sync.feed_entries_max", entries_max)
            .set("sync.device_retire_days", retire)
            .set("sync.page_rows_max", 3);
        devices.push(device(bench, settings).await);
    }
    let mut writers = vec![];
    for _ in 0..3 {
        writers.push(Writer { client: benches[0].cloud.connect().await, is_open: false });
    }
    for _ in 0..150 {
        let at = usize::try_from(random.below(3)).unwrap();
        match random.below(10) {
            0 => benches[at].proxy.stop(),
            1..=3 => benches[at].proxy.start(),
            4..=6 => writers[at].step(&mut random).await,
            _ => {
                let id = random.below(12);
                let sql = match random.below(4) {
                    0 => format!("INSERT OR IGNORE INTO note VALUES ({id}, 'new', 'new')"),
                    1 => format!("DELETE FROM note WHERE id = {id}"),
                    2 => format!("UPDATE note SET x = 'x{}' WHERE id = {id}", random.0 % 1000),
                    _ => format!("UPDATE note SET body = 'b{}' WHERE id >= {id}", random.0 % 1000),
                };
                run(&devices[at], &sql).await;
            }
        }
    }
    for writer in &mut writers {
        writer.end("COMMIT").await;
    }
    for bench in &benches {
        bench.proxy.start();
    }
    for db in &devices {
        wait_until_flushed(db).await;
    }
    for (bench, db) in benches.iter().zip(&devices) {
        bench.wait_until_equal(db, &["note"]).await;
    }
    for db in devices {
        db.shutdown().await.unwrap();
    }
}

/// P5 under trims: a few histories in every run; `TIDEWATER_SEED` names one, `TIDEWATER_HISTORIES` how many.
#[actix_rt::test]
async fn nobody_misses_anything_while_the_feed_is_trimmed() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let first = number("TIDEWATER_SEED", 1);
    for seed in first..first + number("TIDEWATER_HISTORIES", 3) {
        history(seed).await;
    }
}
