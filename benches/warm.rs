//! The way home beside its raw twins: a first sync, a slow link, few changes in a large table, how soon a commit is seen, what the
//! feed's triggers cost those who write in the cloud, and reads meanwhile.
//!
//! `make bench` runs it; `cargo bench -p tidewater --bench warm -- delay` runs the parts whose names contain a word.
//! `TIDEWATER_BENCH_ROWS` says how many rows a first sync has (1,000,000 if it does not), `TIDEWATER_BENCH_LARGE` how many the
//! large table (10,000,000), `TIDEWATER_BENCH_ROUNDS` how often each line is run. Every figure stands beside its twin's of the
//! same run, in turns; the ratio is what counts, the machine is not.
//!
//! The server is a throwaway one that does not wait for its disk: as quick as PostgreSQL can be, so that it is our part
//! that shows. Everything, the twin too, goes through the same proxy on a thread of its own. The settings are the product's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use rusqlite::{Connection, TransactionBehavior, params};
use tempfile::TempDir;
use tidewater::settings::Settings;
use tidewater::{Database, ProxyStatus, Statement, Value};
use tidewater_test_support::bench::{Samples, from_environment, turns, verdict, wanted};
use tidewater_test_support::postgres::{self, Options, Postgres};
use tidewater_test_support::{FaultProxy, Mode, wait};
use tokio::runtime::Runtime;
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::Type;

/// Five columns, about a hundred bytes a row.
const HERE: &str =
    "CREATE TABLE note (id INTEGER PRIMARY KEY, author TEXT, body TEXT, rating REAL, created INTEGER)";
const THERE: &str =
    "(id bigint PRIMARY KEY, author text, body text, rating double precision, created bigint)";
const INSERT: &str = "INSERT INTO note VALUES (?1, ?2, ?3, ?4, ?5)";
const BODY: &str = "a note of some eighty characters, as people write them on their way through the day ...";

/// The slow link.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// A whole first sync may take this long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// So many rows are changed in the large table and in the small one.
const CHANGED: usize = 100_000;
const SMALL: usize = 200_000;

fn main() {
    let parts: [(&str, Part); 7] = [
        ("first", first_sync),
        ("delay", slow_link),
        ("reads", reads_during_a_first_sync),
        ("latency", plain_sql_to_here),
        ("devices", device_to_device),
        ("triggers", cost_of_the_feed),
        ("changes", changes_in_a_large_table),
    ];
    let Some(wanted) = wanted(&parts) else { return };
    let ground = Ground::new();
    println!("{} rows of some 100 bytes, {} rounds in turns", ground.rows, ground.rounds);
    for part in wanted {
        part(&ground);
    }
}

type Part = fn(&Ground);

/// What all parts stand on.
struct Ground {
    rows: usize,
    rounds: usize,
    runtime: Runtime,
    server: Postgres,
}

impl Ground {
    fn new() -> Self {
        let rows = from_environment("TIDEWATER_BENCH_ROWS", 1_000_000);
        let rounds = from_environment("TIDEWATER_BENCH_ROUNDS", 5);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = Postgres::start_with(&Options {
            settings: vec![
                "shared_buffers = '1GB'".into(),
                "max_wal_size = '16GB'".into(),
                "checkpoint_timeout = '30min'".into(),
                "autovacuum = off".into(),
            ],
            ..Options::default()
        });
        Self { rows, rounds, runtime, server }
    }

    /// A database with a table of so many rows.
    async fn filled(&self, rows: usize) -> postgres::Database {
        let cloud = self.server.create_database().await;
        cloud.execute_batch(&fill("note", rows)).await;
        cloud.execute_batch("VACUUM ANALYZE note").await;
        cloud
    }
}

fn fill(table: &str, rows: usize) -> String {
    format!(
        "CREATE TABLE {table} {THERE};
         INSERT INTO {table} SELECT g, 'somebody', '{BODY}', 4.5, g FROM generate_series(1, {rows}) AS g"
    )
}

/// A device with a file and a link of its own.
struct Device {
    db: Database,
    proxy: FaultProxy,
    folder: TempDir,
}

impl Device {
    /// One that has the table, and no link yet.
    async fn new(cloud: &postgres::Database) -> Self {
        let proxy = FaultProxy::reserve((std::net::Ipv4Addr::LOCALHOST, cloud.port).into());
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::builder()
            .set("sqlite.path", folder.path().join("device.db").display())
            .set("proxy.port", proxy.port())
            .set("proxy.listen_interval_s", 0.05)
            .set("cloud.database", &cloud.name)
            .set("cloud.user", &cloud.user)
            .set("cloud.password", &cloud.password);
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let db = Database::open(settings.build().unwrap(), log).await.unwrap();
        db.write([Statement::new(HERE)]).await.unwrap();
        Self { db, proxy, folder }
    }

    /// One that has everything and is connected.
    async fn synced(cloud: &postgres::Database) -> Self {
        let device = Self::new(cloud).await;
        device.first_sync().await;
        device.db.warm().await.unwrap();
        device
    }

    /// From the first page that is asked for to the end.
    async fn first_sync(&self) -> Duration {
        self.proxy.start();
        self.until("paging").await;
        let started = Instant::now();
        self.until("done").await;
        started.elapsed()
    }

    async fn until(&self, state: &str) {
        while !self.is(state) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn is(&self, state: &str) -> bool {
        let has = |conn: &Connection| {
            conn.prepare_cached("SELECT 1 FROM _tidewater_tables WHERE name = 'note' AND snapshot = ?1")?
                .exists([state])
        };
        self.db.read(has).unwrap()
    }

    fn number(&self, sql: &str) -> i64 {
        self.db.read(|conn| conn.prepare_cached(sql)?.query_row([], |row| row.get(0))).unwrap()
    }

    /// Waits, in steps that are short beside what is measured, until the row is there.
    fn until_seen(&self, id: i64) {
        let sees = |conn: &Connection| conn.prepare_cached("SELECT 1 FROM note WHERE id = ?1")?.exists([id]);
        let started = Instant::now();
        while !self.db.read(sees).unwrap() {
            assert!(started.elapsed() < Duration::from_secs(60), "row {id} does not come");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    async fn end(self) {
        self.db.shutdown().await.unwrap();
        drop(self.folder);
    }
}

/// The twin of a first sync: `COPY` out, and inserts in transactions of as many rows as the product's pages have.
async fn raw(cloud: &postgres::Database, proxy: &FaultProxy, path: &Path) -> Duration {
    proxy.start();
    let client = cloud.connect_via(proxy.port()).await;
    let mut conn = Connection::open(path).unwrap();
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    conn.execute_batch("PRAGMA synchronous = FULL").unwrap();
    conn.execute_batch(HERE).unwrap();
    let started = Instant::now();
    let sql =
        "COPY (SELECT id, author, body, rating, created FROM note ORDER BY id) TO STDOUT (FORMAT binary)";
    let kinds = [Type::INT8, Type::TEXT, Type::TEXT, Type::FLOAT8, Type::INT8];
    let mut rows = pin!(BinaryCopyOutStream::new(client.copy_out(sql).await.unwrap(), &kinds));
    let page = Settings::builder().build().unwrap().sync.page_rows_max;
    let mut next = rows.try_next().await.unwrap();
    while next.is_some() {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let mut insert = tx.prepare_cached(INSERT).unwrap();
        let mut left = page;
        while let (Some(row), true) = (&next, left > 0) {
            insert
                .execute(params![
                    row.get::<i64>(0),
                    row.get::<&str>(1),
                    row.get::<&str>(2),
                    row.get::<f64>(3),
                    row.get::<i64>(4)
                ])
                .unwrap();
            left -= 1;
            next = rows.try_next().await.unwrap();
        }
        drop(insert);
        tx.commit().unwrap();
    }
    let took = started.elapsed();
    drop(client);
    took
}

/// A whole table comes to an empty file.
fn first_sync(ground: &Ground) {
    let (mut twin, mut ours) = (Samples::new("COPY and raw inserts"), Samples::new("first sync"));
    ground.runtime.block_on(async {
        let cloud = ground.filled(ground.rows).await;
        // Whoever comes first makes our side of the cloud.
        Device::synced(&cloud).await.end().await;
        for line in turns(ground.rounds, 2) {
            let device = Device::new(&cloud).await;
            if line == 0 {
                let path: PathBuf = device.folder.path().join("raw.db");
                twin.add(raw(&cloud, &device.proxy, &path).await);
            } else {
                ours.add(device.first_sync().await);
                assert_eq!(device.number("SELECT count(*) FROM note"), i64::try_from(ground.rows).unwrap());
            }
            device.end().await;
        }
    });
    println!("\nfirst sync");
    let (twin, ours) = (twin.rate(ground.rows), ours.rate(ground.rows));
    verdict("ratio", ours / twin, ours / twin >= 0.6, "0.60 or more");
}

/// The same over a link whose round trip takes long.
fn slow_link(ground: &Ground) {
    let (mut near, mut far) = (Samples::new("first sync, 0 ms"), Samples::new("first sync, 50 ms"));
    ground.runtime.block_on(async {
        let cloud = ground.filled(ground.rows).await;
        Device::synced(&cloud).await.end().await;
        for line in turns(ground.rounds, 2) {
            let device = Device::new(&cloud).await;
            if line == 0 {
                near.add(device.first_sync().await);
            } else {
                device.proxy.set_mode(Mode::Delay(ROUND_TRIP));
                far.add(device.first_sync().await);
            }
            device.end().await;
        }
    });
    println!("\nfirst sync, a round trip of 50 ms");
    let (near, far) = (near.rate(ground.rows), far.rate(ground.rows));
    verdict("ratio", far / near, far / near >= 0.8, "0.80 or more");
}

/// The slowest reads of a hundred while nothing happens, and while a first sync runs.
fn reads_during_a_first_sync(ground: &Ground) {
    let (mut idle, mut busy) = (Samples::new("idle"), Samples::new("during a first sync"));
    ground.runtime.block_on(async {
        let cloud = ground.filled(ground.rows).await;
        Device::synced(&cloud).await.end().await;
        for _ in 0..ground.rounds {
            let device = Device::new(&cloud).await;
            device.proxy.start();
            device.until_seen(10_000);
            let mut n = 0_i64;
            let mut read = |samples: &mut Samples| {
                n += 1;
                let id = 1 + n * 7_919 % 10_000;
                let started = Instant::now();
                let body: String = device
                    .db
                    .read(|conn| {
                        conn.prepare_cached("SELECT body FROM note WHERE id = ?1")?
                            .query_row([id], |row| row.get(0))
                    })
                    .unwrap();
                samples.add(started.elapsed());
                assert_eq!(body, BODY);
            };
            let before = busy.count();
            while !device.is("done") {
                (0..200).for_each(|_| read(&mut busy));
            }
            let reads = busy.count() - before;
            device.db.warm().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            (0..reads).for_each(|_| read(&mut idle));
            device.end().await;
        }
    });
    println!("\npoint reads, one after the other ({} and {} of them)", idle.count(), busy.count());
    for samples in [&mut idle, &mut busy] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| samples.at(share) * 1e6);
        println!("  {:28} p50 {p50:>8.1} us  p99 {p99:>8.1} us  max {max:>8.1} us", samples.name());
    }
    let ratio = busy.at(0.99) / idle.at(0.99);
    verdict("p99, ratio", ratio, ratio <= 3.0, "3.00 or less");
}

/// Between two commits whose way is measured: none of them comes at the moment of a look.
fn pause(n: i64) -> Duration {
    Duration::from_millis(40 + (n * 7_919 % 101).unsigned_abs())
}

/// How many commits are followed on their way.
const COMMITS: i64 = 200;

/// From the commit of a plain statement in the cloud until it is visible here.
fn plain_sql_to_here(ground: &Ground) {
    let mut took = Samples::new("plain SQL to here");
    ground.runtime.block_on(async {
        let cloud = ground.filled(1_000).await;
        let device = Device::synced(&cloud).await;
        let client = cloud.connect().await;
        for n in 0..COMMITS + 20 {
            tokio::time::sleep(pause(n)).await;
            let id = 1_000_000 + n;
            let sql = format!("INSERT INTO note VALUES ({id}, 'me', '{BODY}', 4.5, 1)");
            client.batch_execute(&sql).await.unwrap();
            let started = Instant::now();
            device.until_seen(id);
            if n >= 20 {
                took.add(started.elapsed());
            }
        }
        device.end().await;
    });
    println!("\na commit of plain SQL, until it is here ({COMMITS} of them, 40 to 140 ms apart)");
    let p50 = took.time();
    verdict("p50 in ms", p50, p50 < 30.0, "below 30");
}

/// From the commit on one device until it is visible on another.
fn device_to_device(ground: &Ground) {
    let mut took = Samples::new("device to device");
    ground.runtime.block_on(async {
        let cloud = ground.filled(1_000).await;
        let (a, b) = (Device::synced(&cloud).await, Device::synced(&cloud).await);
        for n in 0..COMMITS + 20 {
            tokio::time::sleep(pause(n)).await;
            let id = 1_000_000 + n;
            let row = Statement::new(INSERT).bind(id).bind("me").bind(BODY).bind(Value::Real(4.5)).bind(1);
            a.db.write([row]).await.unwrap();
            let started = Instant::now();
            b.until_seen(id);
            if n >= 20 {
                took.add(started.elapsed());
            }
        }
        a.end().await;
        b.end().await;
    });
    println!("\na commit on one device, until it is on the other ({COMMITS} of them, 40 to 140 ms apart)");
    let p50 = took.time();
    verdict("p50 in ms", p50, p50 < 50.0, "below 50");
}

/// What those who write in the cloud pay for the feed: statements that change many rows, in a table that is synced and in one
/// that is not.
fn cost_of_the_feed(ground: &Ground) {
    let (mut bare, mut fed) = (Samples::new("without the feed"), Samples::new("with the feed"));
    ground.runtime.block_on(async {
        let cloud = ground.filled(SMALL).await;
        Device::synced(&cloud).await.end().await;
        let client = cloud.connect().await;
        client.batch_execute(&fill("bare", SMALL)).await.unwrap();
        for round in 0..=ground.rounds {
            for turn in 0..2 {
                let (table, samples) =
                    if (round + turn) % 2 == 0 { ("bare", &mut bare) } else { ("note", &mut fed) };
                let started = Instant::now();
                update(&client, table, SMALL, round, true).await;
                // The first one warms up.
                if round > 0 {
                    samples.add(started.elapsed());
                }
                client.batch_execute(&format!("VACUUM {table}")).await.unwrap();
                client.batch_execute("TRUNCATE tidewater.changes").await.unwrap();
            }
        }
    });
    println!("\nplain SQL that changes {CHANGED} rows of {SMALL} with one statement");
    let (bare, fed) = (bare.rate(CHANGED), fed.rate(CHANGED));
    verdict("ratio", bare / fed, bare / fed <= 1.6, "1.60 or less");
}

/// Changes so many rows, and says how many: all over the table, or every other one of a stretch in its middle, as in the small table.
async fn update(client: &Client, table: &str, rows: usize, round: usize, all_over: bool) -> i64 {
    let (step, first) = if all_over {
        (rows / CHANGED.min(rows), 0)
    } else {
        (SMALL / CHANGED, (rows - SMALL.min(rows)) / 2)
    };
    let last = if all_over { rows } else { first + SMALL };
    let sql = format!(
        "UPDATE {table} SET rating = rating + 1 WHERE id > {first} AND id <= {last} AND id % {step} = {}",
        round % step
    );
    i64::try_from(client.execute(&sql, &[]).await.unwrap()).unwrap()
}

/// A device that has a table of so many rows.
struct Side {
    rows: usize,
    cloud: postgres::Database,
    device: Device,
}

impl Side {
    async fn new(ground: &Ground, rows: usize) -> Self {
        let cloud = ground.filled(rows).await;
        let device = Device::new(&cloud).await;
        let took = device.first_sync().await;
        println!("\nfirst sync of {rows} rows: {:.0} rows/s", rows as f64 / took.as_secs_f64());
        device.db.warm().await.unwrap();
        Self { rows, cloud, device }
    }

    /// What was changed while the link was away comes with the first cycle: from its first page to its last.
    async fn bring_home(&self, round: usize, all_over: bool) -> Duration {
        let device = &self.device;
        device.proxy.stop();
        wait::until("offline", PATIENCE, async || {
            let status = device.db.status_summary().await.proxy.status;
            if status == ProxyStatus::Unavailable { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        let client = self.cloud.connect().await;
        let expected = update(&client, "note", self.rows, round, all_over).await;
        client.batch_execute("VACUUM note").await.unwrap();
        let warmed = || device.number("SELECT value FROM _tidewater_meta WHERE key = 'rows_warmed'");
        let before = warmed();
        device.proxy.start();
        while warmed() == before {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let (started, already) = (Instant::now(), warmed() - before);
        while warmed() - before < expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = started.elapsed();
        device.db.warm().await.unwrap();
        // Scaled to all of them: the first page was here when the clock began.
        took.mul_f64(expected as f64 / (expected - already).max(1) as f64)
    }
}

/// A hundred thousand changed rows come home: of a small table, and of a large one, where they lie as close together as in the
/// small one, or all over it. What is all over a file of a gigabyte costs SQLite a page each, whoever writes it.
fn changes_in_a_large_table(ground: &Ground) {
    let large = from_environment("TIDEWATER_BENCH_LARGE", 10_000_000);
    let mut samples =
        ["of the small table", "of the large table", "all over the large table"].map(Samples::new);
    ground.runtime.block_on(async {
        let sides = [Side::new(ground, SMALL).await, Side::new(ground, large).await];
        for round in 0..=ground.rounds {
            for turn in 0..3 {
                let at = (round + turn) % 3;
                let took = sides[at.min(1)].bring_home(round, at == 2).await;
                // The first one warms up.
                if round > 0 {
                    samples[at].add(took);
                }
            }
        }
        for side in sides {
            side.device.end().await;
        }
    });
    println!("\n{CHANGED} changed rows come home, of a table of {SMALL} and of one of {large}");
    let [small, large, all_over] = samples.each_mut().map(|samples| samples.rate(CHANGED));
    verdict("time, ratio", small / large, small / large <= 1.3, "1.30 or less");
    println!("  {:28} {:>10.2}", "time, ratio, all over", small / all_over);
}
