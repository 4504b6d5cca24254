//! A first sync that is interrupted again and again, while the cloud goes on, ends where an uninterrupted one does, and never
//! begins anew (P5).
//!
//! ```text
//! this test ─▶ itself as a child: one device ─▶ the proxy ─▶ PostgreSQL
//!     ├ cuts the link after so many bytes, or silences it and kills the child
//!     ├ changes rows before, behind and at the place that the device has reached, and trims the feed
//!     └ reads from the file how far it is
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Bench, Lines, batch, there, told_to_child};
use tidewater::{Database, rusqlite};
use tidewater_test_support::postgres::{Options, Postgres};
use tidewater_test_support::{compare, wait};
use tokio_postgres::Client;

const NOTE: &str = "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body TEXT, n INTEGER)";

/// For one state of the million.
const LONG: Duration = Duration::from_secs(300);

/// What the child is told, line by line.
const DEVICE: &str = "FIRST_SYNC_DEVICE";

/// Not a test of its own: the device, in a process that is killed.
#[actix_rt::test]
#[ignore = "started by the others, in a process of its own"]
async fn child_that_syncs() {
    let Ok(told) = std::env::var(DEVICE) else { return };
    let (settings, page) = told_to_child(&told);
    let settings = settings
        .set("sync.page_rows_max", page)
        .set("sync.pull_interval_s", 0.1)
        .set("sync.retry_delay_s", 0.05)
        .set("circuit.open_s", 0.1);
    let db = Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap();
    db.write(batch(NOTE)).await.unwrap();
    std::future::pending::<()>().await;
}

struct Device {
    path: PathBuf,
    told: String,
    child: Child,
    /// The farthest place that was seen.
    reached: i64,
    looks: u64,
}

fn start(told: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_that_syncs"])
        .env(DEVICE, told)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Device {
    fn new(bench: &Bench, page: usize) -> Self {
        let (path, told) = (bench.path(), bench.tell_child(page));
        Self { child: start(&told), path, told, reached: 0, looks: 0 }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What the file records: whether the table is through, and the last key of the last page that is applied. It never goes
    /// back: neither to before the first page, nor to an earlier one.
    fn look(&mut self) -> (bool, i64) {
        let Some((state, after)) = progress(&self.path) else { return (false, self.reached) };
        self.looks += 1;
        if state == "done" {
            return (true, self.reached);
        }
        let after = after.unwrap_or(0);
        assert!(after >= self.reached, "it was at {} and is at {after} ({state})", self.reached);
        self.reached = after;
        (false, after)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state of the table's snapshot and its place, as soon as there is a file with the table.
fn progress(path: &Path) -> Option<(String, Option<i64>)> {
    let conn =
        rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    conn.busy_timeout(Duration::from_secs(5)).ok()?;
    let sql = "SELECT snapshot, CAST(json_extract(snapshot_after, '$[0]') AS INTEGER) FROM _tidewater_tables \
               WHERE name = 'note'";
    conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()
}

/// What others do meanwhile: on both sides of the place that the device has reached, and there. Then the feed is trimmed as any
/// device would do it.
async fn go_on(client: &Client, rows: i64, at: i64, n: i64) {
    let sql = format!(
        "UPDATE note SET body = 'changed ' || {n}, n = n + 1 WHERE id IN (SELECT {at} - 40 + g * 4 FROM generate_series(1, 20) AS g);
         UPDATE note SET n = -1 WHERE id % {step} = {n};
         DELETE FROM note WHERE id % {step} = {n} + 20;
         INSERT INTO note SELECT -{n} * 1000 - g, 'before the first', g FROM generate_series(1, 10) AS g;
         INSERT INTO note SELECT {rows} + {n} * 1000 + g, 'behind the last', g FROM generate_series(1, 10) AS g;
         UPDATE note SET id = {rows} * 2 + id WHERE id = {n} * 7",
        step = rows / 100,
    );
    client.batch_execute(&sql).await.unwrap();
    if there(client, "SELECT to_regclass('tidewater.feed') IS NOT NULL").await == "true" {
        client.batch_execute("SELECT tidewater.trim(0, 86400, 10000000, 100000, 10000)").await.unwrap();
    }
}

/// The places from which the server was asked for the table's rows, in their order; nothing for its beginning.
fn asked(log: &str) -> Vec<Option<i64>> {
    let mut lines = log.lines().peekable();
    let mut asked = vec![];
    while let Some(line) = lines.next() {
        if !line.contains("DECLARE tidewater_pages") || !line.contains("execute") {
            continue;
        }
        let parameters = lines.next_if(|line| line.contains("parameters: $1 = '"));
        let place = parameters.map(|line| {
            let (_, rest) = line.split_once("$1 = '").unwrap();
            rest.split_once('\'').unwrap().0.parse().unwrap()
        });
        asked.push(place);
    }
    asked
}

async fn interrupted(rows: i64, page: usize, times: i64) {
    // Of its own, which writes down what it is asked.
    let server = Postgres::start_with(&Options {
        settings: vec!["log_statement = 'all'".into()],
        ..Options::default()
    });
    let bench = Bench::on(&server).await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(&format!(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text, n bigint);
             INSERT INTO note SELECT g, 'note ' || g || repeat('.', 60), 0 FROM generate_series(1, {rows}) AS g"
        ))
        .await
        .unwrap();
    let mut device = Device::new(&bench, page);
    // A row is some hundred bytes on its way, and to begin with takes some more: each time about one in so many gets through before
    // the next interruption, but all of them together not all.
    let share = u64::try_from(rows / (times + 1)).unwrap() * 100 + 60_000;
    let (mut began_at, mut asked_before) = (vec![], vec![]);
    for n in 0..times {
        if n % 2 == 0 {
            let cut = bench.proxy.cut_server_to_client_after(share);
            bench.proxy.start();
            cut.triggered(LONG).await;
        } else {
            let silence = bench.proxy.silence_server_to_client_after(share);
            silence.triggered(LONG).await;
            device.kill();
            device.child = start(&device.told);
        }
        let (done, at) = device.look();
        assert!(!done, "it was interrupted after its end: {began_at:?}");
        began_at.push(at);
        asked_before.push(asked(&server.log()).len());
        go_on(&client, rows, at, n).await;
    }
    let started = Instant::now();
    while !device.look().0 {
        assert!(started.elapsed() < LONG, "{:?} {began_at:?}", progress(&device.path));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("interrupted at {began_at:?}, {} looks", device.looks);
    // It got on between any three of them: a byte budget may end in the first page after one.
    assert!(began_at.windows(3).all(|three| three[0] < three[2]), "{began_at:?}");
    client.batch_execute("INSERT INTO note VALUES (0, 'the last', 0)").await.unwrap();
    wait::until("the last row is here", LONG, async || {
        let conn = rusqlite::Connection::open(&device.path).unwrap();
        match conn.query_row("SELECT body FROM note WHERE id = 0", [], |row| row.get::<_, String>(0)) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}")),
        }
    })
    .await;
    device.kill();
    // Wherever it was interrupted, it asked for what lay behind the last page that it had applied, and for nothing before it.
    let asked = asked(&server.log());
    println!("asked from {asked:?}; {:?}", bench.proxy.stats());
    assert!(asked.is_sorted(), "{asked:?}");
    for (reached, before) in began_at.iter().zip(asked_before) {
        let since = &asked[before..];
        assert!(since.iter().all(|place| place.unwrap_or(0) >= *reached), "{since:?} after {reached}");
    }
    compare::assert_equal(&device.path, &client, "public", &["note"]).await;
    assert_eq!(check(&device.path), "ok");
}

fn check(path: &Path) -> String {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// 20,000 rows, five cuts and five kills.
#[actix_rt::test]
async fn a_first_sync_interrupted_ten_times_goes_on_each_time() {
    interrupted(20_000, 200, 10).await;
}

/// The same with a million, or as `TIDEWATER_ROWS` says.
#[actix_rt::test]
#[ignore = "takes a minute"]
async fn a_first_sync_of_a_million_rows_interrupted_ten_times_goes_on_each_time() {
    let rows = std::env::var("TIDEWATER_ROWS").map_or(1_000_000, |rows| rows.parse().unwrap());
    interrupted(rows, 2_000, 10).await;
}
