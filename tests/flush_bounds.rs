//! What a flush holds at once is bounded in bytes, whatever the rows weigh and however many wait: by what is in the cloud's
//! transactions, and by what the process has in memory, which is one of its own for that:
//!
//! ```text
//! this test ─▶ itself as a child: one device, with a backlog ─▶ the proxy ─▶ PostgreSQL
//!     └ /proc/PID/status: how much memory the child had before it opened the file, and at most while it flushed
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Bench, Lines, run, there, told_to_child, wait_for, wait_until_flushed};
use tidewater::{Database, rusqlite};
use tidewater_test_support::{Mode, wait};
use tokio_postgres::Client;

/// Twenty heavy rows and one that is heavier than a round may be, among thousands of light ones: every round weighs at most
/// its bound and one row, all of them arrive, and rounds of light rows stay large.
#[actix_rt::test]
async fn heavy_rows_among_light_ones_make_no_heavy_round() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE doc (id INTEGER PRIMARY KEY, body BLOB)").await;
    run(
        &db,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO doc SELECT i, CASE WHEN i = 700 THEN zeroblob(20 << 20) WHEN i <= 500 AND i % 25 = 0
         THEN zeroblob(2 << 20) ELSE zeroblob(10) END FROM n",
    )
    .await;
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["doc"]).await;
    let client = bench.cloud.connect().await;
    // By the transaction that inserted them.
    let rounds = "SELECT count(*) AS rows, sum(octet_length(body)) AS bytes FROM doc GROUP BY xmin::text";
    let heaviest = there(&client, &format!("SELECT max(bytes) FROM ({rounds}) AS r")).await;
    let most: usize = heaviest.parse().unwrap();
    // The heaviest row, alone or on top of light ones.
    assert!((20 << 20..(20 << 20) + (17 << 20)).contains(&most), "{most}");
    let without = there(
        &client,
        &format!("SELECT max(bytes) FROM ({rounds} HAVING max(octet_length(body)) < 20 << 20) AS r"),
    )
    .await;
    assert!(without.parse::<usize>().unwrap() <= (16 << 20) + (2 << 20), "{without}");
    let largest = there(&client, &format!("SELECT max(rows) FROM ({rounds}) AS r")).await;
    assert!(largest.parse::<usize>().unwrap() >= 1000, "{largest}");
    db.shutdown().await.unwrap();
}

/// A row takes much longer to send than an answer may take, and than the server waits for a client that has begun something:
/// it arrives, at the first attempt, because it is on its way all the time.
#[actix_rt::test]
async fn a_row_that_takes_long_over_a_slow_link_arrives() {
    let bench = Bench::new().await;
    let patience = bench.settings().set("cloud.statement_timeout_s", 1).set("proxy.timeout_s", 2);
    let db = bench.open_with(patience).await;
    run(&db, "CREATE TABLE photo (id INTEGER PRIMARY KEY, content BLOB)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["photo"]).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "INSERT INTO photo VALUES (1, randomblob(7000000))").await;
    bench.proxy.set_mode(Mode::Slow(1_000_000));
    bench.proxy.start();
    let accepted = bench.proxy.accepted();
    wait_until_flushed(&db).await;
    // The watcher's, the round's, and those that ask whether it is still worked for.
    assert!(bench.proxy.accepted() <= accepted + 4, "{} more", bench.proxy.accepted() - accepted);
    bench.proxy.set_mode(Mode::Forward);
    bench.wait_until_equal(&db, &["photo"]).await;
    db.shutdown().await.unwrap();
}

/// What the child is told, line by line.
const DEVICE: &str = "FLUSH_BOUNDS_DEVICE";

/// For ten million rows, in a build that is made for tests.
const LONG: Duration = Duration::from_secs(3600);

/// Not a test of its own: the device, in a process whose memory is measured. It says a word at each of its stages, and goes on
/// when it is told to.
#[actix_rt::test]
#[ignore = "started by the others, in a process of its own"]
async fn child_that_flushes() {
    let Ok(told) = std::env::var(DEVICE) else { return };
    let (settings, rows) = told_to_child(&told);
    let (settings, rows): (_, u64) = (settings.build().unwrap(), rows.parse().unwrap());
    let go_on = || std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    println!("begun");
    go_on();
    let db = Database::open(settings, Lines::default().logger()).await.unwrap();
    let pending = async |expected: u64| {
        wait::until(&format!("{expected} rows wait"), LONG, async || {
            let sync = db.status_summary().await.sync;
            let parked = sync.parked;
            assert_eq!(parked, 0, "{sync:?}");
            if sync.pending == expected { Ok(()) } else { Err(format!("{sync:?}")) }
        })
        .await;
    };
    pending(rows).await;
    println!("ready");
    go_on();
    pending(0).await;
    println!("flushed");
    go_on();
    db.shutdown().await.unwrap();
}

/// The device.
struct Device {
    child: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Device {
    fn start(bench: &Bench, rows: u64) -> Self {
        let told = bench.tell_child(rows);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "child_that_flushes"])
            .env(DEVICE, told)
            // glibc keeps freed blocks of up to 32 MiB, by thread: these are not what the device holds.
            .env("MALLOC_MMAP_THRESHOLD_", "1048576")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (says, hears) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        Self { child, says, hears }
    }

    /// Waits for the word.
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "the device ended before it was {word}");
        }
    }

    fn go_on(&mut self) {
        self.hears.write_all(b"\n").unwrap();
    }

    /// In bytes: `VmRSS`, what it has in memory, or `VmHWM`, the most so far.
    fn memory(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':')).unwrap();
        kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The most so far is what it has now.
    fn forget_the_most(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both sides row by row, in key order, and the heavy one byte by byte.
async fn assert_equal(bench: &Bench, client: &Client, rows: u64, heavy: i64) {
    let here = rusqlite::Connection::open(bench.path()).unwrap();
    let (mut after, mut compared) = (0_i64, 0);
    loop {
        let there = "SELECT id, word, body IS NULL FROM doc WHERE id > $1 ORDER BY id LIMIT 50000";
        let there = client.query(there, &[&after]).await.unwrap();
        let mut here = here
            .prepare_cached("SELECT id, word, body IS NULL FROM doc WHERE id > ?1 ORDER BY id LIMIT 50000")
            .unwrap();
        let here: Vec<(i64, String, bool)> = here
            .query_map([after], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let there: Vec<(i64, String, bool)> =
            there.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        assert_eq!(here, there, "after {after}");
        let Some(last) = here.last() else { break };
        (after, compared) = (last.0, compared + here.len() as u64);
    }
    assert_eq!(compared, rows);
    let blob: Vec<u8> =
        here.query_row("SELECT body FROM doc WHERE id = ?1", [heavy], |row| row.get(0)).unwrap();
    let row = client.query_one("SELECT body FROM doc WHERE id = $1", &[&heavy]).await.unwrap();
    assert!(blob == row.get::<_, &[u8]>(0), "the heavy row is another one there");
}

/// So many light rows with a heavy one among them, in a file that was never synced: all of them arrive, and memory stays within
/// what `ARCHITECTURE.md` says.
async fn one_heavy_row_among(light: u64, heavy_bytes: u64) {
    let bench = Bench::new().await;
    let (rows, heavy) = (light + 1, i64::try_from(light / 3).unwrap());
    let sql = format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE doc (id INTEGER PRIMARY KEY, word TEXT NOT NULL, body BLOB);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO doc SELECT i, 'word ' || i * 7919 % 104729, CASE i WHEN {heavy} THEN randomblob({heavy_bytes}) END FROM n;"
    );
    rusqlite::Connection::open(bench.path()).unwrap().execute_batch(&sql).unwrap();
    let mut device = Device::start(&bench, rows);
    device.wait_for("begun");
    let before = device.memory("VmRSS");
    device.go_on();
    device.wait_for("ready");
    let ready = device.memory("VmRSS");
    device.forget_the_most();
    let began = Instant::now();
    bench.proxy.start();
    device.go_on();
    device.wait_for("flushed");
    let took = began.elapsed();
    let most = device.memory("VmHWM");
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{light} light rows and one of {} MiB: flushed in {took:?}; the device had {} MiB before it opened the file, {} MiB \
         when all of that waited, and at most {} MiB while it was flushed",
        mib(heavy_bytes),
        mib(before),
        mib(ready),
        mib(most),
    );
    let client = bench.cloud.connect().await;
    assert_equal(&bench, &client, rows, heavy).await;
    assert_eq!(there(&client, "SELECT sum(octet_length(body)) FROM doc").await, heavy_bytes.to_string());
    let bound = BASE + light.min(WINDOW_ROWS_MAX) * LIGHT_ROW + COPIES * heavy_bytes.max(16 << 20);
    assert!(most - before <= bound, "{} MiB more, {} are the bound", mib(most - before), mib(bound));
    device.go_on();
    assert!(device.child.wait().unwrap().success());
}

/// What a device takes whatever it flushes, in bytes.
const BASE: u64 = 32 << 20;

/// What a row of a round takes besides its values, in bytes: twice, for while one round is sent the one before it is let go.
const LIGHT_ROW: u64 = 2 * 400;

/// The default of `sync.window_rows_max`.
const WINDOW_ROWS_MAX: u64 = 50_000;

/// How often the values of a round, or of the one row that is heavier, are in memory at once: as rows, as the message that is
/// made of them, and as what of it waits in the socket.
const COPIES: u64 = 3;

/// A heavy row among twenty thousand light ones.
#[actix_rt::test]
async fn a_heavy_row_among_very_many_light_ones_takes_no_more_than_its_own_memory() {
    one_heavy_row_among(20_000, 40 << 20).await;
}

/// The same with 100 MiB among ten million (`TIDEWATER_HEAVY_MIB` and `TIDEWATER_LIGHT_ROWS` say how much).
#[actix_rt::test]
#[ignore = "takes minutes, and gigabytes of disk"]
async fn a_hundred_mebibytes_among_ten_million_rows() {
    let set = |name: &str, usual: u64| std::env::var(name).map_or(usual, |value| value.parse().unwrap());
    one_heavy_row_among(set("TIDEWATER_LIGHT_ROWS", 10_000_000), set("TIDEWATER_HEAVY_MIB", 100) << 20).await;
}
