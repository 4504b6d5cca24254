//! The flush beside a raw upsert loop: throughput, a slow link, the latency of one row, memory, and writes meanwhile.
//!
//! `make bench` runs it; `cargo bench -p tidewater --bench flush -- delay` runs the parts whose names contain a word.
//! `TIDEWATER_BENCH_ROWS` says how many rows wait (100,000 if it does not), `TIDEWATER_BENCH_ROUNDS` how often each line
//! is run. Every figure stands beside its twin's of the same run, in turns; the ratio is what counts, the machine is not.
//!
//! The server is a throwaway one that does not wait for its disk: as quick as PostgreSQL can be, so that it is our part
//! that shows. Everything, the twin too, goes through the same proxy on a thread of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, params};
use tempfile::TempDir;
use tidewater::settings::Settings;
use tidewater::{Database, ProxyStatus, Statement, Value};
use tidewater_test_support::bench::{Samples, from_environment, turns, verdict, wanted};
use tidewater_test_support::postgres::{self, Options, Postgres};
use tidewater_test_support::{FaultProxy, Mode, wait};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

/// A table of five columns (a key, two texts, a number, and one that is declared like this), about a hundred bytes a row.
struct Shape {
    name: &'static str,
    columns: [&'static str; 5],
    last: &'static str,
}

const NOTE: Shape =
    Shape { name: "note", columns: ["id", "author", "body", "rating", "created"], last: "INTEGER" };
const PURCHASE: Shape =
    Shape { name: "purchase", columns: ["id", "customer", "remark", "total", "created"], last: "INTEGER" };
const LINE: Shape = Shape {
    name: "line",
    columns: ["id", "article", "remark", "price", "purchase"],
    last: "INTEGER REFERENCES purchase (id)",
};
/// So many lines has each purchase.
const LINES: usize = 10;
const BODY: &str = "a note of some eighty characters, as people write them on their way through the day ...";

impl Shape {
    fn create(&self) -> String {
        let Self { name, columns: [id, text, body, number, last], last: declared } = self;
        format!(
            "CREATE TABLE {name} ({id} INTEGER PRIMARY KEY, {text} TEXT, {body} TEXT, {number} REAL, {last} {declared})"
        )
    }

    fn insert(&self) -> String {
        format!("INSERT INTO {} VALUES (?1, ?2, ?3, ?4, ?5)", self.name)
    }

    fn page(&self) -> String {
        let (id, columns) = (self.columns[0], self.columns.join(", "));
        format!("SELECT {columns} FROM {} WHERE {id} > ?1 ORDER BY {id} LIMIT ?2", self.name)
    }

    fn upsert(&self) -> String {
        let (id, columns) = (self.columns[0], self.columns.join(", "));
        let set: Vec<_> =
            self.columns[1..].iter().map(|column| format!("{column} = excluded.{column}")).collect();
        format!(
            "INSERT INTO {} ({columns}) SELECT * FROM unnest($1::int8[], $2::text[], $3::text[], $4::float8[], $5::int8[]) \
             ON CONFLICT ({id}) DO UPDATE SET {}",
            self.name,
            set.join(", ")
        )
    }
}

/// A file in which so many rows of each table wait, parents first.
struct Backlog {
    tables: Vec<(Shape, usize)>,
    template: PathBuf,
}

/// The slow link.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// A whole flush may take this long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Set for the process whose memory is measured: the file, and where the cloud is.
const CHILD: &str = "TIDEWATER_BENCH_CHILD";

fn main() {
    if let Ok(child) = std::env::var(CHILD) {
        return memory_of_this_process(&child);
    }
    let parts: [(&str, Part); 7] = [
        ("rows", backlog_of_inserts),
        ("relatives", backlog_of_relatives),
        ("updates", backlog_of_updates),
        ("delay", slow_link),
        ("latency", one_row),
        ("memory", memory),
        ("writes", writes_during_a_flush),
    ];
    let Some(wanted) = wanted(&parts) else { return };
    let ground = Ground::new();
    println!("{} pending rows of some 100 bytes, {} rounds in turns", ground.rows, ground.rounds);
    for part in wanted {
        part(&ground);
    }
}

type Part = fn(&Ground);

/// What all parts stand on: a server, and a file in which every row waits.
struct Ground {
    rows: usize,
    rounds: usize,
    runtime: Runtime,
    server: Postgres,
    folder: TempDir,
    notes: Backlog,
}

impl Ground {
    fn new() -> Self {
        let rows = from_environment("TIDEWATER_BENCH_ROWS", 100_000);
        let rounds = from_environment("TIDEWATER_BENCH_ROUNDS", 5);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = Postgres::start_with(&Options {
            settings: vec![
                "shared_buffers = '256MB'".into(),
                "max_wal_size = '8GB'".into(),
                "checkpoint_timeout = '30min'".into(),
                "autovacuum = off".into(),
            ],
            ..Options::default()
        });
        let folder = tempfile::tempdir().unwrap();
        let notes = Backlog::new(&runtime, &folder, vec![(NOTE, rows)]);
        Self { rows, rounds, runtime, server, folder, notes }
    }
}

impl Backlog {
    fn new(runtime: &Runtime, folder: &TempDir, tables: Vec<(Shape, usize)>) -> Self {
        let template = folder.path().join(format!("{}.db", tables[0].0.name));
        runtime.block_on(async {
            let db = open(&template, 1, None).await;
            for (table, _) in &tables {
                db.write([Statement::new(table.create())]).await.unwrap();
            }
            db.shutdown().await.unwrap();
        });
        // As any other program would, with the journal's triggers.
        let mut conn = Connection::open(&template).unwrap();
        let tx = conn.transaction().unwrap();
        for (table, rows) in &tables {
            let mut insert = tx.prepare(&table.insert()).unwrap();
            for id in 0..i64::try_from(*rows).unwrap() {
                // Of a line, the purchase.
                insert.execute(params![id, "somebody", BODY, 4.5, id / LINES as i64]).unwrap();
            }
        }
        tx.commit().unwrap();
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        Self { tables, template }
    }
}

async fn open(path: &Path, port: u16, cloud: Option<&postgres::Database>) -> Database {
    let mut settings = Settings::builder()
        .set("sqlite.path", path.display())
        .set("proxy.port", port)
        .set("proxy.listen_interval_s", 0.05);
    if let Some(cloud) = cloud {
        settings = settings
            .set("cloud.database", &cloud.name)
            .set("cloud.user", &cloud.user)
            .set("cloud.password", &cloud.password);
    }
    Database::open(settings.build().unwrap(), slog::Logger::root(slog::Discard, slog::o!())).await.unwrap()
}

/// A copy of a backlog's file, and its empty tables in a database of their own, with the feed's triggers on them.
struct Run<'g> {
    backlog: &'g Backlog,
    cloud: postgres::Database,
    proxy: FaultProxy,
    folder: TempDir,
}

impl<'g> Run<'g> {
    async fn new(ground: &'g Ground) -> Self {
        Self::of(ground, &ground.notes).await
    }

    async fn of(ground: &Ground, backlog: &'g Backlog) -> Self {
        let cloud = ground.server.create_database().await;
        let proxy = FaultProxy::started(ground.server.address());
        let folder = tempfile::tempdir().unwrap();
        // Whoever comes first makes the tables; the runs are about rows.
        let first = open(&folder.path().join("first.db"), proxy.port(), Some(&cloud)).await;
        for (table, _) in &backlog.tables {
            first.write([Statement::new(table.create())]).await.unwrap();
            let row =
                Statement::new(table.insert()).bind(-1).bind(Value::Null).bind(Value::Null).bind(Value::Null);
            let written = first.write([row.bind(Value::Null)]).await.unwrap();
            first.synced(&written.receipt).await.unwrap();
        }
        first.shutdown().await.unwrap();
        proxy.stop();
        let admin = cloud.connect().await;
        for (table, _) in backlog.tables.iter().rev() {
            admin.batch_execute(&format!("DELETE FROM {}", table.name)).await.unwrap();
            admin.batch_execute(&format!("VACUUM {}", table.name)).await.unwrap();
        }
        admin.batch_execute("TRUNCATE tidewater.changes").await.unwrap();
        std::fs::copy(&backlog.template, folder.path().join("ours.db")).unwrap();
        // Otherwise the first fsync of somebody's write brings the whole copy to the disk.
        std::fs::File::open(folder.path().join("ours.db")).unwrap().sync_all().unwrap();
        Self { backlog, cloud, proxy, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ours.db")
    }

    /// From the first round that is noted to the last that is acknowledged.
    async fn flush(&self) -> Duration {
        let db = open(&self.path(), self.proxy.port(), Some(&self.cloud)).await;
        let took = self.flush_of(&db).await;
        // One more than waited: in the first table.
        let mut more = 1;
        for (table, rows) in &self.backlog.tables {
            let count = format!("SELECT count(*) FROM {}", table.name);
            let there = self.cloud.connect().await.query_one(&count, &[]).await.unwrap();
            assert_eq!(usize::try_from(there.get::<_, i64>(0)).unwrap(), rows + std::mem::take(&mut more));
        }
        db.shutdown().await.unwrap();
        took
    }

    async fn flush_of(&self, db: &Database) -> Duration {
        let insert = self.backlog.tables[0].0.insert();
        let row = Statement::new(insert).bind(-7).bind("last").bind(BODY).bind(Value::Real(0.5)).bind(7);
        let written = db.write([row]).await.unwrap();
        self.proxy.start();
        let noted = |conn: &Connection| conn.prepare_cached("SELECT 1 FROM _tidewater_round")?.exists([]);
        while !db.read(noted).unwrap() {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let started = Instant::now();
        db.synced(&written.receipt).await.unwrap();
        started.elapsed()
    }

    /// The twin: the same rows from the same file in key order, so many at once, each time one transaction.
    async fn raw(&self, batch: usize) -> Duration {
        self.proxy.start();
        let client = self.cloud.connect_via(self.proxy.port()).await;
        let mut took = Duration::ZERO;
        for (table, _) in &self.backlog.tables {
            took += upsert_all(&client, &self.path(), table, batch).await;
        }
        took
    }
}

async fn upsert_all(client: &Client, path: &Path, table: &Shape, batch: usize) -> Duration {
    let upsert = client.prepare(&table.upsert()).await.unwrap();
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut page = conn.prepare(&table.page()).unwrap();
    let started = Instant::now();
    let mut last = -1_i64;
    loop {
        let (mut ids, mut authors, mut bodies, mut ratings, mut created) =
            (vec![], vec![], vec![], vec![], vec![]);
        let mut rows = page.query(params![last, i64::try_from(batch).unwrap()]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            ids.push(row.get::<_, i64>(0).unwrap());
            authors.push(row.get::<_, Option<String>>(1).unwrap());
            bodies.push(row.get::<_, Option<String>>(2).unwrap());
            ratings.push(row.get::<_, Option<f64>>(3).unwrap());
            created.push(row.get::<_, Option<i64>>(4).unwrap());
        }
        let Some(newest) = ids.last() else { return started.elapsed() };
        last = *newest;
        client.batch_execute("BEGIN").await.unwrap();
        client.execute(&upsert, &[&ids, &authors, &bodies, &ratings, &created]).await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
    }
}

/// The batch with which the raw loop is quickest.
fn best_batch(ground: &Ground) -> usize {
    let tried = [500, 2_000, 8_000, 32_000].map(|batch| {
        let took = ground.runtime.block_on(async { Run::new(ground).await.raw(batch).await });
        (took, batch)
    });
    tried.into_iter().min().unwrap().1
}

/// Rows that are new to an empty table.
fn backlog_of_inserts(ground: &Ground) {
    let batch = best_batch(ground);
    let (mut raw, mut ours) = (Samples::new("raw upsert loop"), Samples::new("flush"));
    for line in turns(ground.rounds, 2) {
        ground.runtime.block_on(async {
            let run = Run::new(ground).await;
            if line == 0 {
                raw.add(run.raw(batch).await);
            } else {
                ours.add(run.flush().await);
            }
        });
    }
    println!("\nnew rows to an empty table (the raw loop with {batch} rows a statement)");
    let (raw, ours) = (raw.rate(ground.rows), ours.rate(ground.rows));
    verdict("ratio", ours / raw, ours / raw >= 0.8, "0.80 or more");
}

/// New purchases with their lines, parents first in both loops, near and over a link whose round trip takes long.
fn backlog_of_relatives(ground: &Ground) {
    let batch = best_batch(ground);
    let purchases = ground.rows / (LINES + 1);
    let tables = vec![(PURCHASE, purchases), (LINE, purchases * LINES)];
    let backlog = Backlog::new(&ground.runtime, &ground.folder, tables);
    for (link, delay) in [("0 ms", None), ("50 ms", Some(ROUND_TRIP))] {
        let (mut raw, mut ours) = (Samples::new("raw upsert loop"), Samples::new("flush"));
        for line in turns(ground.rounds, 2) {
            ground.runtime.block_on(async {
                let run = Run::of(ground, &backlog).await;
                if let Some(delay) = delay {
                    run.proxy.set_mode(Mode::Delay(delay));
                }
                if line == 0 {
                    raw.add(run.raw(batch).await);
                } else {
                    ours.add(run.flush().await);
                }
            });
        }
        println!(
            "\npurchases with {LINES} lines each, a round trip of {link} (the raw loop with {batch} rows a statement)"
        );
        let rows = purchases * (LINES + 1);
        let (raw, ours) = (raw.rate(rows), ours.rate(rows));
        println!("  {:28} {:>10.2}", "ratio", ours / raw);
    }
}

/// One column of every row is changed after it was flushed; the twin sends the whole rows once more.
fn backlog_of_updates(ground: &Ground) {
    let batch = best_batch(ground);
    let (mut raw, mut ours) = (Samples::new("raw upsert loop"), Samples::new("flush"));
    for line in turns(ground.rounds, 2) {
        ground.runtime.block_on(async {
            let run = Run::new(ground).await;
            let db = open(&run.path(), run.proxy.port(), Some(&run.cloud)).await;
            run.flush_of(&db).await;
            db.flush().await.unwrap();
            run.proxy.stop();
            wait::until("offline", PATIENCE, async || {
                let status = db.status_summary().await.proxy.status;
                if status == ProxyStatus::Unavailable { Ok(()) } else { Err(format!("{status:?}")) }
            })
            .await;
            let set = "UPDATE note SET rating = rating + 1, created = created + 1";
            let written = db.write([Statement::new(set)]).await.unwrap();
            if line == 0 {
                db.shutdown().await.unwrap();
                raw.add(run.raw(batch).await);
            } else {
                run.proxy.start();
                let noted =
                    |conn: &Connection| conn.prepare_cached("SELECT 1 FROM _tidewater_round")?.exists([]);
                while !db.read(noted).unwrap() {
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
                let started = Instant::now();
                db.synced(&written.receipt).await.unwrap();
                ours.add(started.elapsed());
                db.shutdown().await.unwrap();
            }
        });
    }
    println!("\ntwo columns of every row (the raw loop with {batch} rows a statement)");
    let (raw, ours) = (raw.rate(ground.rows), ours.rate(ground.rows));
    println!("  {:28} {:>10.2}", "ratio", ours / raw);
}

/// The same flush over a link whose round trip takes long.
fn slow_link(ground: &Ground) {
    let (mut near, mut far) = (Samples::new("flush, 0 ms"), Samples::new("flush, 50 ms"));
    for line in turns(ground.rounds, 2) {
        ground.runtime.block_on(async {
            let run = Run::new(ground).await;
            if line == 0 {
                near.add(run.flush().await);
            } else {
                run.proxy.set_mode(Mode::Delay(ROUND_TRIP));
                far.add(run.flush().await);
            }
        });
    }
    println!("\na round trip of 50 ms");
    let (near, far) = (near.rate(ground.rows), far.rate(ground.rows));
    verdict("ratio", far / near, far / near >= 0.7, "0.70 or more");
}

/// One row, from the local commit to its acknowledgement here, which is after the commit there.
fn one_row(ground: &Ground) {
    let mut took = Samples::new("one row");
    ground.runtime.block_on(async {
        let run = Run::new(ground).await;
        let db = open(&run.folder.path().join("small.db"), run.proxy.port(), Some(&run.cloud)).await;
        db.write([Statement::new(NOTE.create())]).await.unwrap();
        run.proxy.start();
        for id in 0..320 {
            let row =
                Statement::new(NOTE.insert()).bind(id).bind("one").bind(BODY).bind(Value::Real(4.5)).bind(id);
            let written = db.write([row]).await.unwrap();
            let started = Instant::now();
            db.synced(&written.receipt).await.unwrap();
            if id >= 20 {
                took.add(started.elapsed());
            }
            // Each alone: after the cycle of the one before.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        db.shutdown().await.unwrap();
    });
    println!("\none row, from the local commit until the cloud has it (300 rows, one by one)");
    let [p50, p99] = [0.5, 0.99].map(|share| took.at(share) * 1e3);
    println!("  {:28} {p99:>10.2} ms", "p99");
    verdict("p50 in ms", p50, p50 < 10.0, "below 10");
}

/// What the flush of the whole backlog adds to the memory of a process that does nothing else.
fn memory(ground: &Ground) {
    println!("\nmemory, {} pending rows", ground.rows);
    let run = ground.runtime.block_on(Run::new(ground));
    run.proxy.start();
    let cloud = &run.cloud;
    let told = format!(
        "{}\n{}\n{}\n{}\n{}",
        run.path().display(),
        run.proxy.port(),
        cloud.name,
        cloud.user,
        cloud.password
    );
    let status = Command::new(std::env::current_exe().unwrap()).env(CHILD, told).status().unwrap();
    assert!(status.success());
}

fn memory_of_this_process(told: &str) {
    let [path, port, name, user, password] = told.lines().collect::<Vec<_>>().try_into().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let offline = Settings::builder().set("sqlite.path", path).set("proxy.port", 1);
        let log = || slog::Logger::root(slog::Discard, slog::o!());
        let db = Database::open(offline.build().unwrap(), log()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let idle = resident();
        db.shutdown().await.unwrap();
        let online = Settings::builder()
            .set("sqlite.path", path)
            .set("proxy.port", port)
            .set("cloud.database", name)
            .set("cloud.user", user)
            .set("cloud.password", password);
        let most = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let looking = std::thread::spawn({
            let (most, done) = (most.clone(), done.clone());
            move || {
                while !done.load(Ordering::Relaxed) {
                    most.fetch_max(resident(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let db = Database::open(online.build().unwrap(), log()).await.unwrap();
        let row =
            Statement::new(NOTE.insert()).bind(-7).bind("last").bind(BODY).bind(Value::Real(0.5)).bind(7);
        let written = db.write([row]).await.unwrap();
        db.synced(&written.receipt).await.unwrap();
        done.store(true, Ordering::Relaxed);
        looking.join().unwrap();
        db.shutdown().await.unwrap();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!("  {:28} {:>10.1} MiB", "idle", mib(idle));
        let growth = mib(most.load(Ordering::Relaxed).saturating_sub(idle));
        verdict("growth at most, in MiB", growth, growth < 64.0, "below 64");
    });
}

/// This process's resident memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// The slowest writes of a hundred while nothing is flushed, and while everything is.
fn writes_during_a_flush(ground: &Ground) {
    let (mut idle, mut busy) = (Samples::new("idle"), Samples::new("during a flush"));
    for _ in 0..ground.rounds {
        ground.runtime.block_on(async {
            let run = Run::new(ground).await;
            let db = open(&run.path(), run.proxy.port(), Some(&run.cloud)).await;
            let mut id = 1_000_000_000;
            let mut write = async |samples: &mut Samples| {
                id += 1;
                let row = Statement::new(NOTE.insert())
                    .bind(id)
                    .bind("me")
                    .bind(BODY)
                    .bind(Value::Real(4.5))
                    .bind(id);
                let started = Instant::now();
                db.write([row]).await.unwrap();
                samples.add(started.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            for _ in 0..500 {
                write(&mut idle).await;
            }
            run.proxy.start();
            let noted = |conn: &Connection| conn.prepare_cached("SELECT 1 FROM _tidewater_round")?.exists([]);
            while !db.read(noted).unwrap() {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            let waiting = |conn: &Connection| {
                conn.prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM _tidewater_journal_1 WHERE k0 < 1000000000)",
                )?
                .query_row([], |row| row.get::<_, bool>(0))
            };
            while db.read(waiting).unwrap() {
                write(&mut busy).await;
            }
            db.shutdown().await.unwrap();
        });
    }
    println!("\nwrites, one each 2 ms ({} and {} of them)", idle.count(), busy.count());
    for samples in [&mut idle, &mut busy] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| samples.at(share) * 1e3);
        println!("  {:28} p50 {p50:>8.2} ms  p99 {p99:>8.2} ms  max {max:>8.2} ms", samples.name());
    }
    let ratio = busy.at(0.99) / idle.at(0.99);
    verdict("p99, ratio", ratio, ratio <= 2.0, "2.00 or less");
}
