//! The local data plane beside raw SQLite doing the same work: writes, group commit, reads, and opening. And what a
//! supervisor costs that has nothing to do (`local/idle.rs`), and being watched (`local/watched.rs`).
//!
//! Every figure stands beside its raw twin's of the same run, in turns; the ratio is what counts, the machine is not.
//! `make bench` runs it; `cargo bench --bench local -- write` runs the parts whose names contain a word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

#[cfg(target_os = "linux")]
#[path = "local/idle.rs"]
mod idle;
#[cfg(all(feature = "http", target_os = "linux"))]
#[path = "local/watched.rs"]
mod watched;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior, params};
use tempfile::TempDir;
use tidewater::settings::Settings;
use tidewater::{Database, Statement, Value};
use tidewater_test_support::bench::Comparison;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Five columns, about a hundred bytes a row.
const TABLE: &str =
    "CREATE TABLE note (id INTEGER PRIMARY KEY, author TEXT, body TEXT, rating REAL, created INTEGER)";
const INSERT: &str = "INSERT INTO note VALUES (?1, ?2, ?3, ?4, ?5)";
const READ: &str = "SELECT author, body, rating FROM note WHERE id = ?1";
const BODY: &str = "a note of some eighty characters, as people write them on their way through the day ...";

fn main() {
    // Without `--bench` this is a test run, which has nothing to wait for.
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    let parts: &[(&str, fn())] = &[
        ("write-one", one_row_writes),
        ("write-64", sixty_four_writers),
        ("write-1000", thousand_row_writes),
        ("read", point_reads),
        ("read-under-write", reads_while_writing),
        ("open", opening),
        #[cfg(target_os = "linux")]
        ("idle", idle::at_rest),
        #[cfg(target_os = "linux")]
        ("notice", idle::noticing),
        #[cfg(all(feature = "http", target_os = "linux"))]
        ("watched", watched::scraped),
    ];
    for (name, part) in parts {
        if name.contains(&wanted) {
            part();
        }
    }
}

/// Ours, in a folder of its own, without a cloud.
struct Ours {
    runtime: Runtime,
    db: Database,
    folder: TempDir,
    next: Arc<AtomicI64>,
}

impl Ours {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let db = runtime.block_on(open(&folder.path().join("ours.db")));
        runtime.block_on(db.write([Statement::new(TABLE)])).unwrap();
        Self { runtime, db, folder, next: Arc::default() }
    }

    fn row(&self) -> Statement {
        row(&self.next)
    }
}

fn row(next: &AtomicI64) -> Statement {
    let id = next.fetch_add(1, Ordering::Relaxed);
    Statement::new(INSERT).bind(id).bind("somebody").bind(BODY).bind(Value::Real(4.5)).bind(id * 1000)
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.runtime.block_on(self.db.shutdown()).unwrap();
    }
}

async fn open(path: &Path) -> Database {
    // A port on which nothing listens, of a machine without a proxy.
    let settings =
        Settings::builder().set("sqlite.path", path.display()).set("proxy.port", 1).build().unwrap();
    Database::open(settings, slog::Logger::root(slog::Discard, slog::o!())).await.unwrap()
}

/// What SQLite can do, with the same durability.
struct Raw {
    conn: Connection,
    _folder: TempDir,
    next: i64,
}

impl Raw {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let conn = connect(&folder.path().join("raw.db"));
        conn.execute_batch(TABLE).unwrap();
        Self { conn, _folder: folder, next: 0 }
    }

    fn transaction(&mut self, rows: i64) {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        {
            let mut insert = tx.prepare_cached(INSERT).unwrap();
            for id in self.next..self.next + rows {
                insert.execute(params![id, "somebody", BODY, 4.5, id * 1000]).unwrap();
            }
        }
        tx.commit().unwrap();
        self.next += rows;
    }
}

fn connect(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY").unwrap();
    conn
}

/// One writer that awaits each write: the median of single writes.
fn one_row_writes() {
    let ours = Ours::new();
    let mut raw = Raw::new();
    Comparison::new("one row, one durable write (p50)", 3_000)
        .line("raw commit", 1, || raw.transaction(1))
        .line("Database::write", 1, || drop(ours.runtime.block_on(ours.db.write([ours.row()])).unwrap()))
        .run();
}

/// Sixty-four writers at once, one row each time. The twin does what group commit takes: a thread that drains a queue,
/// one transaction, one answer each.
fn sixty_four_writers() {
    const WRITERS: i64 = 64;
    const EACH: i64 = 40;
    let ours = Ours::new();
    let mut single = Raw::new();
    let raw = Raw::new();
    let (queue, waiting) = mpsc::channel::<(i64, oneshot::Sender<()>)>();
    let group = std::thread::spawn(move || commit_in_groups(raw.conn, &waiting));
    let next = Arc::new(AtomicI64::new(0));
    // The same runtime as ours: how its threads sleep, and are woken, is a part of the figure.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    Comparison::new("64 writers, one row each (per row)", 25)
        .line("raw group commit", (WRITERS * EACH) as u32, || {
            runtime.block_on(async {
                let writers = (0..WRITERS).map(|_| {
                    let (queue, next) = (queue.clone(), next.clone());
                    tokio::spawn(async move {
                        for _ in 0..EACH {
                            let (answer, answered) = oneshot::channel();
                            queue.send((next.fetch_add(1, Ordering::Relaxed), answer)).unwrap();
                            answered.await.unwrap();
                        }
                    })
                });
                for writer in writers.collect::<Vec<_>>() {
                    writer.await.unwrap();
                }
            });
        })
        .line("Database::write", (WRITERS * EACH) as u32, || {
            ours.runtime.block_on(async {
                let writers = (0..WRITERS).map(|_| {
                    let (db, next) = (ours.db.clone(), ours.next.clone());
                    tokio::spawn(async move {
                        for _ in 0..EACH {
                            // Counted now, as the twin does: neighbours in a group are neighbours in the table.
                            db.write([row(&next)]).await.unwrap();
                        }
                    })
                });
                for writer in writers.collect::<Vec<_>>() {
                    writer.await.unwrap();
                }
            });
        })
        .line("raw, one row per commit", 64, || (0..64).for_each(|_| single.transaction(1)))
        .run();
    drop(queue);
    group.join().unwrap();
}

fn commit_in_groups(mut conn: Connection, waiting: &mpsc::Receiver<(i64, oneshot::Sender<()>)>) {
    let (mut groups, mut rows) = (0_u32, 0_u32);
    while let Ok(first) = waiting.recv() {
        let group: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
        groups += 1;
        rows += group.len() as u32;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        for (id, _) in &group {
            tx.execute_batch("SAVEPOINT one").unwrap();
            let mut insert = tx.prepare_cached(INSERT).unwrap();
            insert.execute(params![id, "somebody", BODY, 4.5, id * 1000]).unwrap();
            tx.execute_batch("RELEASE one").unwrap();
        }
        tx.commit().unwrap();
        for (_, answer) in group {
            let _ = answer.send(());
        }
    }
    println!("  rows per raw group: {:.1}", f64::from(rows) / f64::from(groups));
}

/// A thousand rows as one unit, the journal included.
fn thousand_row_writes() {
    let ours = Ours::new();
    let mut raw = Raw::new();
    // What the triggers cost whoever writes, without the library around them.
    let captured = Ours::new();
    let conn = connect(&captured.folder.path().join("ours.db"));
    let mut foreign = Raw { conn, _folder: tempfile::tempdir().unwrap(), next: 0 };
    Comparison::new("1,000 rows as one write (per row)", 60)
        .line("raw, no journal", 1000, || raw.transaction(1000))
        .line("raw, with the journal's triggers", 1000, || foreign.transaction(1000))
        .line("Database::write", 1000, || {
            let rows: Vec<_> = (0..1000).map(|_| ours.row()).collect();
            drop(ours.runtime.block_on(ours.db.write(rows)).unwrap());
        })
        .run();
}

/// Rows for the reads, the same in both.
fn filled() -> (Ours, Connection, r2d2::Pool<r2d2_sqlite::SqliteConnectionManager>) {
    let ours = Ours::new();
    let rows: Vec<_> = (0..10_000).map(|_| ours.row()).collect();
    ours.runtime.block_on(ours.db.write(rows)).unwrap();
    let path = ours.folder.path().join("ours.db");
    let conn = Connection::open(&path).unwrap();
    let pool =
        r2d2::Pool::builder().max_size(4).build(r2d2_sqlite::SqliteConnectionManager::file(&path)).unwrap();
    (ours, conn, pool)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, String, f64)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// A point read through the public API.
fn point_reads() {
    let (ours, conn, pool) = filled();
    let mut statement = conn.prepare(READ).unwrap();
    let ids = || (0..200_i64).map(|n| n * 7_919 % 10_000);
    Comparison::new("point read", 500)
        .line("raw, prepared, own connection", 200, || {
            ids().for_each(|id| drop(statement.query_row([id], read).unwrap()));
        })
        .line("r2d2 and prepare_cached", 200, || {
            ids().for_each(|id| {
                let conn = pool.get().unwrap();
                drop(conn.prepare_cached(READ).unwrap().query_row([id], read).unwrap());
            });
        })
        .line("Database::read", 200, || {
            ids().for_each(|id| {
                drop(ours.db.read(|conn| conn.prepare_cached(READ)?.query_row([id], read)).unwrap());
            });
        })
        .run();
}

/// The slowest reads of a hundred while nothing is written, and while sixty-four writers write.
fn reads_while_writing() {
    let (ours, _, _) = filled();
    let mut samples = [vec![], vec![]];
    for round in 0..20 {
        let writing = round % 2;
        let stop = Arc::new(AtomicBool::new(writing == 0));
        let writers: Vec<_> = (0..64)
            .map(|_| {
                let (db, stop) = (ours.db.clone(), stop.clone());
                let rows: Vec<_> = (0..10_000).map(|_| ours.row()).collect();
                ours.runtime.spawn(async move {
                    for row in rows {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        db.write([row]).await.unwrap();
                    }
                })
            })
            .collect();
        for n in 0..5_000_i64 {
            let id = n * 7_919 % 10_000;
            let started = Instant::now();
            drop(ours.db.read(|conn| conn.prepare_cached(READ)?.query_row([id], read)).unwrap());
            samples[writing].push(started.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        ours.runtime.block_on(async {
            for writer in writers {
                writer.await.unwrap();
            }
        });
    }
    println!("\nreads while 64 writers write (10 rounds of 5,000 reads each, in turns)");
    let [idle, busy] = samples.map(|mut sample| {
        sample.sort_unstable();
        let at = |share: f64| sample[(sample.len() as f64 * share) as usize];
        [at(0.5), at(0.99)]
    });
    for (name, [p50, p99]) in [("idle", idle), ("64 writers", busy)] {
        println!("  {name:12} p50 {p50:>10.1?}  p99 {p99:>10.1?}");
    }
    println!("  p99 ratio    {:.2}x", busy[1].as_secs_f64() / idle[1].as_secs_f64());
}

/// From `open` to the first write that is possible, with a file of 1 GiB.
fn opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.db");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let db = open(&path).await;
        db.write([Statement::new("CREATE TABLE large (id INTEGER PRIMARY KEY, body BLOB)")]).await.unwrap();
        for _ in 0..64 {
            db.write((0..16).map(|_| Statement::new("INSERT INTO large (body) VALUES (zeroblob(1048576))")))
                .await
                .unwrap();
        }
        db.shutdown().await.unwrap();
    });
    println!("\nopening {} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    let mut took: Vec<Duration> = vec![];
    for _ in 0..15 {
        runtime.block_on(async {
            let started = Instant::now();
            let db = open(&path).await;
            db.write([Statement::new("INSERT INTO large (body) VALUES (x'00')")]).await.unwrap();
            took.push(started.elapsed());
            db.shutdown().await.unwrap();
        });
    }
    took.sort_unstable();
    println!("  open and first write: median {:.1?}, min {:.1?}, max {:.1?}", took[7], took[0], took[14]);
}
