//! What a supervisor at rest costs, and how soon it notices what another program committed.
//!
//! Both are the binary itself, in a process of its own, with the built-in settings. The kernel counts a thread's time on
//! a processor in nanoseconds (`schedstat`); the ticks of `stat` are too coarse for so little.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;
use tidewater_test_support::{FaultProxy, Postgres, postgres, shell, wait};

const PATIENCE: Duration = Duration::from_secs(60);
/// The file is at rest two seconds after the last write, and a little later its log is empty.
const SETTLES: Duration = Duration::from_secs(8);
const MEASURED: Duration = Duration::from_secs(60);
const TABLE: &str =
    "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'a row');";

struct Supervisor {
    child: Child,
    folder: TempDir,
}

impl Supervisor {
    fn start(cloud: Option<(&postgres::Database, &FaultProxy)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("idle.db");
        shell::sqlite3_shell(&path, TABLE);
        let mut command = Command::new(env!("CARGO_BIN_EXE_run_supervisor"));
        command.current_dir(folder.path()).env("TIDEWATER_DATABASE", &path);
        match cloud {
            Some((cloud, proxy)) => command
                .env("CLOUD_SQL_PROXY_PORT", proxy.port().to_string())
                .env("CLOUD_SQL_DATABASE", &cloud.name)
                .env("CLOUD_SQL_USER", &cloud.user)
                .env("CLOUD_SQL_PASSWORD", &cloud.password),
            // Nothing listens there.
            None => command.env("CLOUD_SQL_PROXY_PORT", "1"),
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let supervisor = Self { child, folder };
        wait::until_blocking("the table is tracked", PATIENCE, || {
            match is_tracked(&supervisor.path(), "note") {
                true => Ok(()),
                false => Err("it is not".to_owned()),
            }
        });
        supervisor
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("idle.db")
    }

    /// Of each thread by its name: the time on a processor, in nanoseconds, and how often it got there.
    fn threads(&self) -> BTreeMap<String, (u64, u64)> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let task = task.unwrap().path();
            // It may have ended meanwhile.
            let (Ok(name), Ok(stat)) =
                (fs::read_to_string(task.join("comm")), fs::read_to_string(task.join("schedstat")))
            else {
                continue;
            };
            let mut numbers = stat.split_whitespace().map(|number| number.parse::<u64>().unwrap());
            let (time, _, times) = (numbers.next().unwrap(), numbers.next(), numbers.next().unwrap());
            let sum: &mut (u64, u64) = threads.entry(name.trim().to_owned()).or_default();
            *sum = (sum.0 + time, sum.1 + times);
        }
        threads
    }

    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tables of the file get their triggers from the supervisor, and from nobody else.
fn is_tracked(path: &Path, table: &str) -> bool {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    tracked(&conn, table)
}

fn tracked(conn: &Connection, table: &str) -> bool {
    let triggers = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1";
    conn.query_row(triggers, [table], |row| row.get::<_, u32>(0)).unwrap() > 0
}

/// The time on a processor and the memory of a supervisor to which nothing happens.
pub(crate) fn at_rest() {
    report("without a cloud", &Supervisor::start(None));
    let cloud = Postgres::shared().create_database_blocking();
    let proxy = FaultProxy::started(Postgres::shared().address());
    report("with a cloud that is there", &Supervisor::start(Some((&cloud, &proxy))));
}

fn report(name: &str, supervisor: &Supervisor) {
    std::thread::sleep(SETTLES);
    let (before, started) = (supervisor.threads(), Instant::now());
    std::thread::sleep(MEASURED);
    let (after, took) = (supervisor.threads(), started.elapsed().as_secs_f64());
    println!("\na supervisor at rest, {name} ({took:.0} s)");
    let (mut time, mut times) = (0, 0);
    for (thread, (time_after, times_after)) in after {
        let (time_before, times_before) = before.get(&thread).copied().unwrap_or_default();
        let here = (time_after.saturating_sub(time_before), times_after.saturating_sub(times_before));
        (time, times) = (time + here.0, times + here.1);
        if here.1 > 0 {
            line(&thread, here, took);
        }
    }
    line("all threads", (time, times), took);
    println!("  resident          {:.1} MiB", supervisor.resident_kib() as f64 / 1024.0);
}

fn line(name: &str, (time, times): (u64, u64), took: f64) {
    let (share, rate) = (time as f64 / took / 1e7, times as f64 / took);
    println!("  {name:16}  {share:.3} % of a core  {rate:5.1} wake-ups/s");
}

/// From a commit of SQLite's shell until the supervisor has done something about it: the triggers of a new table.
pub(crate) fn noticing() {
    let supervisor = Supervisor::start(None);
    let path = supervisor.path();
    let conn = Connection::open(&path).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    let mut took: Vec<Duration> = vec![];
    for n in 0..50_u64 {
        // Half of them meet a file that is at rest, the others one that has just been written.
        std::thread::sleep(Duration::from_millis(if n % 2 == 0 { 6_000 } else { 137 }));
        let table = format!("t{n}");
        let write = format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, body TEXT);");
        let (path, name) = (path.clone(), table.clone());
        let other = std::thread::spawn(move || shell::sqlite3_shell(path, &write));
        let there = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
        let look = || std::thread::sleep(Duration::from_micros(500));
        while conn.query_row(there, [&name], |row| row.get::<_, u32>(0)).unwrap() == 0 {
            look();
        }
        let committed = Instant::now();
        while !tracked(&conn, &table) {
            look();
        }
        took.push(committed.elapsed());
        other.join().unwrap();
    }
    let summary = |what: &str, took: &mut Vec<Duration>| {
        took.sort_unstable();
        let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
        println!("  {what:24} median {median:>8.1?}  max {max:>8.1?}");
    };
    println!("\na commit of SQLite's shell is noticed, and answered with triggers (50 commits)");
    let (mut rest, mut busy): (Vec<_>, Vec<_>) = (vec![], vec![]);
    for (n, took) in took.into_iter().enumerate() {
        if n % 2 == 0 { rest.push(took) } else { busy.push(took) }
    }
    summary("the file was at rest", &mut rest);
    summary("it was just written", &mut busy);
}
