//! P7 for many: a fleet that loses the cloud at the same moment, and gets it back at the same moment, does not crowd it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Bench, Lines, here, run, there};
use tidewater::Database;
use tidewater::settings::Settings;
use tidewater_test_support::postgres::Options;
use tidewater_test_support::{FaultProxy, Mode, Postgres, wait};
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE note (id TEXT PRIMARY KEY, body TEXT)";

/// Hundreds of devices on two cores take their time.
const PATIENCE: Duration = Duration::from_secs(600);

/// The second connection is closed when it was idle for so long, and may be made again.
const IDLE_S: u64 = 5;

/// Between two samples of what is open.
const SAMPLE: Duration = Duration::from_millis(50);

struct Fleet {
    devices: Vec<Database>,
    bench: Bench,
    /// All of them come through this one.
    proxy: Arc<FaultProxy>,
    /// The superuser, who sees everybody's connections, directly.
    admin: Client,
    log: Lines,
    written: usize,
}

/// What was seen of the connections while something went on.
#[derive(Debug)]
struct Seen {
    took: Duration,
    /// Dials in all, and the most within a second.
    dials: u64,
    dials_per_s: u64,
    /// The most that the server had open at a time.
    open: i64,
}

impl Fleet {
    async fn new(server: &Postgres, devices: usize) -> Self {
        let bench = Bench::on(server).await;
        let proxy = Arc::new(FaultProxy::started(server.address()));
        let (log, mut open) = (Lines::default(), vec![]);
        for n in 0..devices {
            let settings = Settings::builder()
                .set("sqlite.path", bench.folder.path().join(format!("device-{n}.db")).display())
                .set("sqlite.read_pool_max", 1)
                .set("proxy.port", proxy.port())
                // As in production, but for the waits, which are a tenth.
                .set("supervisor.environment", "production")
                // Hundreds of devices on one machine with their server: that a log-in takes seconds says nothing.
                .set("proxy.timeout_s", 60)
                .set("proxy.retry_delay_s", 1)
                .set("proxy.max_retry_delay_s", 60)
                .set("cloud.idle_s", IDLE_S)
                .set("cloud.database", &bench.cloud.name)
                .set("cloud.user", &bench.cloud.user)
                .set("cloud.password", &bench.cloud.password)
                .build()
                .unwrap();
            let db = Database::open(settings, log.logger()).await.unwrap();
            run(&db, NOTE).await;
            open.push(db);
        }
        let admin = server.connect_as_admin().await;
        let mut fleet = Self { devices: open, bench, proxy, admin, log, written: 0 };
        fleet.write(1).await;
        fleet.converge().await;
        fleet
    }

    /// So many rows on each device.
    async fn write(&mut self, rows: usize) {
        let first = self.written;
        self.written += rows;
        let last = self.written;
        join_all(self.devices.iter().enumerate().map(async |(n, db)| {
            for row in first..last {
                run(db, &format!("INSERT INTO note VALUES ('{n}-{row}', 'of device {n}')")).await;
            }
        }))
        .await;
    }

    /// Everybody has everybody's rows, and nothing waits.
    async fn converge(&self) {
        let rows = (self.devices.len() * self.written).to_string();
        let client = self.bench.cloud.connect().await;
        let pending = "SELECT count(*) FROM _tidewater_journal_1";
        // Device by device: to ask all of them again and again would cost more than what is watched.
        for (n, db) in self.devices.iter().enumerate() {
            wait::until(&format!("device {n} to have everything"), PATIENCE, async || {
                let (found, waiting) = (here(db, "SELECT count(*) FROM note"), here(db, pending));
                match found == rows && waiting == "0" {
                    true => Ok(()),
                    false => {
                        let status = db.status_summary().await;
                        Err(format!("{found} of {rows}, {waiting} wait\n{status:#?}\n{:#?}", self.log.all()))
                    }
                }
            })
            .await;
        }
        let sum = "SELECT count(*) || ' ' || sum(length(id || body)) FROM note";
        let all = there(&client, sum).await;
        for (n, db) in self.devices.iter().enumerate() {
            assert_eq!(here(db, sum), all, "device {n}");
        }
    }

    async fn open(admin: &Client, user: &str) -> i64 {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND application_name = 'tidewater'";
        admin.query_one(sql, &[&user]).await.unwrap().get(0)
    }

    /// Watches the connections while something is done.
    async fn watch(&self, work: impl Future<Output = ()>) -> Seen {
        let over = Arc::new(AtomicBool::new(false));
        let (proxy, until) = (self.proxy.clone(), over.clone());
        let began = Instant::now();
        let before = proxy.accepted();
        // On a thread of its own: the test's has hundreds of devices to look after.
        let watching = std::thread::spawn(move || {
            let mut marks = vec![(began, before)];
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(SAMPLE);
                marks.push((Instant::now(), proxy.accepted()));
            }
            marks
        });
        let (admin, user) = (&self.admin, &self.bench.cloud.user);
        let mut open = 0;
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                () = &mut work => break,
                now = async {
                    actix_rt::time::sleep(SAMPLE).await;
                    Self::open(admin, user).await
                } => open = open.max(now),
            }
        }
        let took = began.elapsed();
        over.store(true, Ordering::Relaxed);
        let marks = watching.join().unwrap();
        let dials_per_s = marks
            .iter()
            .map(|(at, count)| {
                let since = marks.iter().rfind(|(then, _)| *at - *then >= Duration::from_secs(1));
                count - since.map_or(before, |(_, count)| *count)
            })
            .max()
            .unwrap_or(0);
        Seen { took, dials: self.proxy.accepted() - before, dials_per_s, open }
    }

    async fn all_are(&self, what: &str, holds: impl Fn(&str) -> bool) {
        wait::until(&format!("everybody to be {what}"), PATIENCE, async || {
            let states =
                join_all(self.devices.iter().map(async |db| db.status_summary().await.sync.state)).await;
            let others: Vec<_> = states.iter().filter(|state| !holds(state)).collect();
            if others.is_empty() { Ok(()) } else { Err(format!("{} are not: {others:?}", others.len())) }
        })
        .await;
    }
}

/// One outage of all at once, each with rows that wait, and then another behind a proxy that stays up.
async fn fleet_of(devices: usize) {
    let options =
        Options { settings: vec![format!("max_connections = {}", 2 * devices + 20)], ..Options::default() };
    let server = Postgres::start_with(&options);
    let began = Instant::now();
    let mut fleet = Fleet::new(&server, devices).await;
    println!("{devices} devices opened and in step after {:.1} s", began.elapsed().as_secs_f64());
    let count = devices as u64;

    // The proxy goes, and comes back: everybody sees that without dialling.
    fleet.proxy.stop();
    let away = fleet.watch(fleet.all_are("offline", |state| state == "offline")).await;
    fleet.write(3).await;
    let proxy = fleet.proxy.clone();
    let back = fleet
        .watch(async {
            proxy.start();
            fleet.converge().await;
        })
        .await;
    println!("the proxy went: {away:?}\nthe proxy came back: {back:?}");
    // One connection each, the second for what is done beside it, and that again where it had become idle.
    let twice = |took: Duration| (2 + took.as_secs() / IDLE_S) * count;
    assert!(back.dials <= twice(back.took), "more than the two connections of each: {back:?}");
    assert!(back.dials_per_s <= 2 * count && back.open <= 2 * devices as i64, "{back:?}");

    // At rest there is one each, and nobody dials.
    let (admin, user) = (&fleet.admin, &fleet.bench.cloud.user);
    wait::until("one connection each", PATIENCE, async || {
        let open = Fleet::open(admin, user).await;
        if open == devices as i64 { Ok(()) } else { Err(format!("{open} are open")) }
    })
    .await;
    let rest = fleet.watch(actix_rt::time::sleep(Duration::from_secs(3))).await;
    println!("at rest: {rest:?}");
    assert!(rest.open <= devices as i64 && rest.dials == 0, "{rest:?}");

    // The instance goes behind a proxy that stays up: each dial reaches the proxy, and comes at most once per step.
    fleet.proxy.set_mode(Mode::AcceptThenClose);
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1 AND application_name = 'tidewater'";
    let hidden = fleet
        .watch(async {
            fleet.admin.execute(cut, &[&fleet.bench.cloud.user]).await.unwrap();
            fleet.all_are("offline", |state| state == "offline").await;
            actix_rt::time::sleep(Duration::from_secs(6)).await;
        })
        .await;
    fleet.write(2).await;
    let proxy = fleet.proxy.clone();
    let found = fleet
        .watch(async {
            proxy.set_mode(Mode::Forward);
            fleet.converge().await;
        })
        .await;
    println!("the instance went: {hidden:?}\nthe instance came back: {found:?}");
    // Within a second: the check, and the second one where a connection was only stale.
    assert!(hidden.dials_per_s <= 3 * count, "{hidden:?}");
    // At 0, 1, 3 and 7 s, each time whoever checks and nobody else; the second look at a connection that broke; and what the
    // rounds found out before the watcher had told them.
    let steps = 2 + hidden.took.as_secs().ilog2() as u64 + 2;
    assert!(hidden.dials <= steps * count, "{hidden:?}");
    assert!(found.dials <= twice(found.took) && found.dials_per_s <= count, "{found:?}");

    let lines = fleet.log.all();
    let loud: Vec<_> = lines.iter().filter(|line| line.starts_with("ERRO")).collect();
    assert!(loud.is_empty(), "{loud:#?}");
    let ends = join_all(fleet.devices.iter().map(Database::shutdown)).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
}

/// A small fleet.
#[actix_rt::test]
async fn a_fleet_of_twelve_comes_back_without_crowding_the_cloud() {
    fleet_of(12).await;
}

/// A large one.
#[actix_rt::test]
#[ignore = "takes minutes: make fleet"]
async fn a_fleet_of_two_hundred_comes_back_without_crowding_the_cloud() {
    fleet_of(std::env::var("TIDEWATER_FLEET").ok().and_then(|it| it.parse().ok()).unwrap_or(200)).await;
}

/// What a hundred thousand devices are in the cloud, and that each query of a cycle finds its own by an index then.
#[actix_rt::test]
async fn a_hundred_thousand_devices_are_a_small_table() {
    let devices = 100_000;
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, NOTE).await;
    run(&db, "INSERT INTO note VALUES ('a', 'b')").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    db.flush().await.unwrap();
    let client = bench.cloud.connect().await;
    let settle = include_str!("../actors/src/sql/postgres/settle.sql");
    let witness = include_str!("../actors/src/sql/postgres/bear_witness.sql");
    let say = include_str!("../actors/src/sql/postgres/say_version.sql");
    // The rows that the statements of a registration leave (settle.sql, say_version.sql, tidewater.register), all at once.
    client
        .batch_execute(&format!(
            "INSERT INTO tidewater.devices (id, session, version)
             SELECT gen_random_uuid(), gen_random_uuid(), '{}' FROM generate_series(1, {devices});
             INSERT INTO tidewater.cursors (device, xid, id, at, session)
             SELECT d.id, pg_snapshot_xmin(pg_current_snapshot()), 0, clock_timestamp(), d.session FROM tidewater.devices d
             ON CONFLICT DO NOTHING",
            env!("CARGO_PKG_VERSION")
        ))
        .await
        .unwrap();
    client.batch_execute("VACUUM ANALYZE tidewater.devices, tidewater.cursors").await.unwrap();
    // After a round and a look of everybody, in which their rows found new places.
    client
        .batch_execute(
            "UPDATE tidewater.devices SET seen_at = now(), round = gen_random_uuid(), round_number = 1;
             UPDATE tidewater.cursors SET at = now(), id = id + 1",
        )
        .await
        .unwrap();
    client.batch_execute("VACUUM ANALYZE tidewater.devices, tidewater.cursors").await.unwrap();
    let known: i64 = there(&client, "SELECT count(*) FROM tidewater.devices").await.parse().unwrap();
    assert_eq!(known, devices + 1);
    for relation in ["devices", "cursors"] {
        let size = |what: &str| format!("SELECT {what}('tidewater.{relation}') / {known}");
        let (table, indexes) =
            (there(&client, &size("pg_table_size")).await, there(&client, &size("pg_indexes_size")).await);
        println!(
            "{known} devices: {table} bytes in tidewater.{relation} and {indexes} in its index, per device"
        );
        // What a device is in the cloud must not depend on how many there are.
        let whole = table.parse::<i64>().unwrap() + indexes.parse::<i64>().unwrap();
        assert!(whole < 1000, "{relation}: {whole} bytes per device");
    }
    // Each query of a cycle finds its rows by an index.
    let fence = include_str!("../actors/src/sql/postgres/fence.sql");
    let look = include_str!("../actors/src/sql/postgres/look.sql");
    let page = include_str!("../actors/src/sql/postgres/feed_page.sql");
    let standing = include_str!("../actors/src/sql/postgres/standing.sql");
    let its = "(SELECT id FROM tidewater.devices LIMIT 1)";
    let id: String = there(&client, its).await;
    client
        .batch_execute(
            "INSERT INTO tidewater.changes (tbl, key) SELECT 'note'::regclass, ARRAY[n::text] FROM generate_series(1, 20000) n; \
             ANALYZE tidewater.changes",
        )
        .await
        .unwrap();
    let (uuid, cursor) = (format!("'{id}'::uuid"), "'1', 1::int8");
    for (name, types, sql, values) in [
        ("settle", "uuid, uuid, text, text, int8", settle, format!("{uuid}, {uuid}, '1000', {cursor}")),
        ("say", "uuid, uuid, text", say, format!("{uuid}, {uuid}, '9.9.9'")),
        (
            "fence",
            "uuid, uuid, uuid, uuid, text, int8",
            fence,
            format!("{uuid}, {uuid}, {uuid}, {uuid}, {cursor}"),
        ),
        ("witness", "uuid, uuid, text, int8", witness, format!("{uuid}, {uuid}, {cursor}")),
        ("look", "text, int8, int4, text", look, format!("{cursor}, 1, '{id}'")),
        ("page", "text, int8, int8, text, int8", page, format!("{cursor}, 100, '{id}', 0")),
        (
            "standing",
            "uuid, uuid, text[], oid[]",
            standing,
            format!("{uuid}, {uuid}, '{{note}}', ARRAY['note'::regclass::oid]"),
        ),
    ] {
        client.batch_execute(&format!("PREPARE {name} ({types}) AS {sql}")).await.unwrap();
        let plan = client.query(&format!("EXPLAIN EXECUTE {name} ({values})"), &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        for table in ["devices", "cursors", "changes"] {
            let scan = format!("Seq Scan on {table}");
            assert!(!plan.iter().any(|line| line.contains(&scan)), "{name}: {plan:#?}");
        }
    }
    db.shutdown().await.unwrap();
}
