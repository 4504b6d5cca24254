//! SIGKILL under load: what was acknowledged is there, with its journal entry, and nothing else is (P1, P2).
//!
//! ```text
//! this test ─▶ itself as a child: 64 writers on one `Database` ─▶ a line in a file after each answer
//!     └ kill ─▶ the file of the database against what the lines say
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Lines, PATIENCE};
use tidewater::settings::Settings;
use tidewater::{Database, Statement, rusqlite};
use tidewater_test_support::wait;

const WRITERS: i64 = 64;

/// The keys of one writer in one life.
const SPAN: i64 = 1_000_000;

/// What a writer does, by its number: rows come, change, and go.
enum Op {
    Insert(i64),
    Update(i64),
    Delete(i64),
}

fn op(n: i64) -> Op {
    match n % 4 {
        2 => Op::Update(n - 1),
        3 => Op::Delete(n - 3),
        _ => Op::Insert(n),
    }
}

/// The rows after a writer's first `done` writes, and every key that it touched.
fn model(first: i64, done: i64) -> (BTreeMap<i64, i64>, BTreeSet<i64>) {
    let (mut rows, mut touched) = (BTreeMap::new(), BTreeSet::new());
    for n in 0..done {
        match op(n) {
            Op::Insert(key) | Op::Update(key) => {
                rows.insert(first + key, n);
                touched.insert(first + key);
            }
            Op::Delete(key) => {
                rows.remove(&(first + key));
            }
        }
    }
    (rows, touched)
}

/// Not a test of its own: what the others kill.
#[actix_rt::test]
#[ignore = "started by the others, in a process of its own"]
async fn child_with_64_writers() {
    let Ok(folder) = std::env::var("KILLED_FOLDER") else { return };
    let (folder, life) = (Path::new(&folder), std::env::var("KILLED_LIFE").unwrap().parse::<i64>().unwrap());
    // So small that kills meet checkpoints on either thread, and the file at rest never.
    let settings = Settings::builder()
        .set("sqlite.path", folder.join("x.db").display())
        .set("sqlite.checkpoint_pages", 40)
        .set("proxy.port", 1);
    let db = Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap();
    let create = "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, n INTEGER, body TEXT)";
    db.write([Statement::new(create)]).await.unwrap();
    let log = OpenOptions::new().append(true).create(true).open(folder.join("acknowledged")).unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let (db, mut log) = (db.clone(), log.try_clone().unwrap());
        async move {
            let first = (life * WRITERS + writer) * SPAN;
            for n in 0.. {
                let statement = match op(n) {
                    Op::Insert(key) => {
                        Statement::new("INSERT INTO note VALUES (?1, ?2, hex(randomblob(200)))")
                            .bind(first + key)
                            .bind(n)
                    }
                    Op::Update(key) => {
                        Statement::new("UPDATE note SET n = ?2 WHERE id = ?1").bind(first + key).bind(n)
                    }
                    Op::Delete(key) => Statement::new("DELETE FROM note WHERE id = ?1").bind(first + key),
                };
                db.write([statement]).await.unwrap();
                // One call of the operating system, which a SIGKILL leaves whole.
                log.write_all(format!("{first} {n}\n").as_bytes()).unwrap();
            }
        }
    });
    futures_util::future::join_all(writers).await;
}

/// Kills the child `times` times at random moments, in lives on one file after each other.
fn killed(times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let acknowledged = folder.path().join("acknowledged");
    File::create(&acknowledged).unwrap();
    let mut known = 0;
    // What earlier lives were found to have left.
    let mut settled: BTreeMap<i64, i64> = BTreeMap::new();
    for life in 0..times {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_with_64_writers"])
            .env("KILLED_FOLDER", folder.path())
            .env("KILLED_LIFE", life.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let random = random_number();
        wait::until_blocking("it writes", PATIENCE, || match fs::metadata(&acknowledged) {
            Ok(file) if file.len() > known + random % 20_000 => Ok(()),
            _ => Err(format!("{:?}", child.try_wait())),
        });
        // Anywhere between two looks.
        std::thread::sleep(Duration::from_micros(random % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = fs::read_to_string(&acknowledged).unwrap();
        known = lines.len() as u64;
        let mut done: BTreeMap<i64, i64> =
            (0..WRITERS).map(|w| ((life.cast_signed() * WRITERS + w) * SPAN, 0)).collect();
        for line in lines.lines() {
            let (first, n) = line.split_once(' ').unwrap();
            if let Some(done) = done.get_mut(&first.parse().unwrap()) {
                *done = n.parse::<i64>().unwrap() + 1;
            }
        }
        check(&path, &done, &mut settled);
    }
    println!(
        "killed {times} times: {} writes acknowledged, all there",
        fs::read_to_string(&acknowledged).unwrap().lines().count()
    );
}

/// Against the file itself, without Tidewater.
fn check(path: &Path, done: &BTreeMap<i64, i64>, settled: &mut BTreeMap<i64, i64>) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let verdict: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let pairs = |sql: &str| -> BTreeMap<i64, i64> {
        let mut statement = conn.prepare(sql).unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    let rows = pairs("SELECT id, n FROM note");
    // Nothing has ever been in a cloud: whatever was touched has an entry, and an entry without its row is a deletion.
    let entries: BTreeSet<i64> = pairs("SELECT k0, 0 FROM _tidewater_journal_1").into_keys().collect();
    for (first, acknowledged) in done {
        let mine = first..&(first + SPAN);
        let here: BTreeMap<i64, i64> = rows.range(*mine.start..*mine.end).map(|(k, v)| (*k, *v)).collect();
        let noted: BTreeSet<i64> = entries.range(*mine.start..*mine.end).copied().collect();
        // The next one may have been committed when the kill came before its answer.
        let possible = [*acknowledged, acknowledged + 1];
        let found = possible.into_iter().find(|done| model(*first, *done) == (here.clone(), noted.clone()));
        let Some(found) = found else {
            panic!("writer {first} with {acknowledged} acknowledged: rows {here:?}, entries {noted:?}");
        };
        settled.insert(*first, found);
    }
    // What earlier lives left is as it was.
    for (first, done) in settled {
        let (expected, _) = model(*first, *done);
        let here: BTreeMap<i64, i64> = rows.range(*first..first + SPAN).map(|(k, v)| (*k, *v)).collect();
        assert_eq!(here, expected, "writer {first}");
    }
}

/// Another number in every call.
fn random_number() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Ten kills at random moments: every acknowledged write is there with its journal entry, every entry has its row or its
/// deletion, and the file is whole.
#[test]
fn killed_under_64_writers_everything_acknowledged_is_there() {
    killed(10);
}

/// The same 200 times, or as `TIDEWATER_HISTORIES` says.
#[test]
#[ignore = "takes minutes"]
fn killed_200_times_under_64_writers_everything_acknowledged_is_there() {
    killed(std::env::var("TIDEWATER_HISTORIES").map_or(200, |times| times.parse().unwrap()));
}
