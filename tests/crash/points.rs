//! SIGKILL at every fail point on the way of a change, from its note in the journal to its acknowledgement.
//!
//! ```text
//! this test ─▶ itself as a child, one after the other on one file:
//!     open, recover from the last kill, come to rest, examine ─▶ a history, with a kill at a place
//! ```
//!
//! The places are read in the sources, so that a new one is met, or the test fails. Those at which something is done about a row
//! that is parked are in `parked.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidewater::Database;
use tidewater::settings::Settings;
use tidewater_test_support::{Postgres, compare, postgres, wait};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Lines, PATIENCE, here, numbers, run, there};
use crate::process::output;

/// What may be done to each row, and what others did between two histories.
pub(crate) const AUDIT: &str = "
    CREATE TABLE audit (n bigserial PRIMARY KEY, who text NOT NULL, op text NOT NULL, id bigint NOT NULL, body text);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (who, op, id, body) VALUES
            (current_setting('application_name'), TG_OP, coalesce(NEW.id, OLD.id), coalesce(NEW.body, OLD.body));
        RETURN NULL; END $$;
    CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON note FOR EACH ROW EXECUTE FUNCTION audited();
    ALTER TABLE note ADD CHECK (body <> 'refused');";

/// Not between the note and the acknowledgement of a change.
const ELSEWHERE: &[&str] = &[
    "sqlite.migrated",
    "sqlite.rehome",
    "writer.call",
    "writer.called",
    // The first contact with a cloud, a table or a feed, and what is compared anew.
    "syncer.registered",
    "syncer.registers",
    "writer.call.BeginSnapshot",
    "writer.called.BeginSnapshot",
    "writer.call.CompareAnew",
    "writer.called.CompareAnew",
    "writer.call.FixCursor",
    "writer.called.FixCursor",
    "writer.call.GetSnapshotLeftovers",
    "writer.called.GetSnapshotLeftovers",
    "writer.call.RememberCloud",
    "writer.called.RememberCloud",
    "writer.call.GetNames",
    "writer.called.GetNames",
    "writer.call.MakeTables",
    "writer.called.MakeTables",
    "writer.call.CompareKeeping",
    "writer.called.CompareKeeping",
    "writer.call.Rehome",
    "writer.called.Rehome",
    "writer.call.StartOver",
    "writer.called.StartOver",
    // A person's word about parked rows, and a cloud table that was mended: in `parked.rs`.
    "writer.call.GetDiscardable",
    "writer.called.GetDiscardable",
    "writer.call.RetryMended",
    "writer.called.RetryMended",
    "writer.call.RetryParked",
    "writer.called.RetryParked",
];

/// The rows that come and go, those that the cloud refuses, and those that went before anybody saw them.
const FIRST: i64 = 10_000;
pub(crate) const REFUSED: i64 = 20_000;
const BRIEF: i64 = 30_000;

/// Every fail point of the syncer, the cloud and the file.
pub(crate) fn points() -> BTreeSet<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/src");
    let mut files: Vec<_> = ["cloud_syncer.rs", "postgres.rs", "sqlite.rs", "sqlite_writer.rs"]
        .iter()
        .map(|name| sources.join(name))
        .collect();
    for folder in ["cloud_syncer", "postgres", "sqlite", "sqlite_writer"] {
        if let Ok(entries) = std::fs::read_dir(sources.join(folder)) {
            files.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    let mut points = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let messages: Vec<&str> = text
            .split_once("store_calls! {")
            .map(|(_, calls)| calls.split_once("\n}").unwrap().0)
            .into_iter()
            .flat_map(|calls| calls.lines().filter(|line| line.contains(", |store, ")))
            .filter_map(|line| line.trim().split_once(" => "))
            .map(|(message, _)| message)
            .collect();
        for (at, _) in text.match_indices("fail_point!(") {
            let argument = text[at + "fail_point!(".len()..].lines().next().unwrap();
            if let Some(name) = argument.strip_prefix('"') {
                points.insert(name.split_once('"').unwrap().0.to_owned());
            } else if let Some(prefix) = argument.strip_prefix("concat!(\"") {
                let prefix = prefix.split_once('"').unwrap().0;
                points.extend(messages.iter().map(|message| format!("{prefix}{message}")));
            } else {
                // A statement of the app's under its own text.
                assert!(argument.starts_with("sql)"), "{}: {argument}", file.display());
            }
        }
    }
    points
}

/// Where the child finds its file and its cloud.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    cloud: postgres::Database,
    /// The test that is the child.
    child: &'static str,
}

impl Place {
    pub(crate) async fn new(child: &'static str) -> Self {
        let cloud = Postgres::shared().create_database().await;
        Self { folder: tempfile::tempdir().unwrap(), cloud, child }
    }

    /// One life of the child; whether it was killed where it should be. Armed at once, or after it has come to rest.
    pub(crate) fn life(&self, history: i64, point: &str, hit: u32, at_once: bool) -> bool {
        let output = output(
            Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", self.child, "--nocapture"])
                .env("CRASH_FOLDER", self.folder.path())
                .env("CRASH_PORT", self.cloud.port.to_string())
                .env("CRASH_DATABASE", &self.cloud.name)
                .env("CRASH_USER", &self.cloud.user)
                .env("CRASH_PASSWORD", &self.cloud.password)
                .env("CRASH_HISTORY", history.to_string())
                .env("CRASH_POINT", point)
                .env("CRASH_HIT", hit.to_string())
                .env("CRASH_AT_ONCE", if at_once { "yes" } else { "no" }),
        );
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        match (output.status.signal(), output.status.code()) {
            (Some(9), _) => true,
            (None, Some(0)) => false,
            _ => panic!(
                "history {history}, {point} the {hit}. time, at once: {at_once}: {}\n{}",
                output.status,
                said.join("\n")
            ),
        }
    }
}

/// Kills this process the n-th time that somebody comes by.
pub(crate) fn arm(point: &str, hit: u32) {
    let seen = AtomicU32::new(0);
    fail::cfg_callback(point, move || {
        if seen.fetch_add(1, Ordering::Relaxed) + 1 == hit {
            let id = std::process::id().to_string();
            Command::new("kill").args(["-KILL", &id]).status().unwrap();
            // Nobody passes here any more.
            loop {
                std::thread::park();
            }
        }
    })
    .unwrap();
}

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// The child's cloud, as somebody who is not Tidewater.
async fn connect() -> Client {
    let (client, connection) = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(variable("CRASH_PORT").parse().unwrap())
        .dbname(variable("CRASH_DATABASE"))
        .user(variable("CRASH_USER"))
        .password(variable("CRASH_PASSWORD"))
        .connect(NoTls)
        .await
        .unwrap();
    actix_rt::spawn(connection);
    client
}

/// What a child has before it: nothing in it happens by the clock, so that what happens is what was asked for.
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) db: Database,
    pub(crate) log: Lines,
    /// As somebody who is not Tidewater.
    pub(crate) cloud: Client,
}

impl Opened {
    pub(crate) async fn new(folder: &str) -> Self {
        let path = Path::new(folder).join("x.db");
        let settings = Settings::builder()
            .set("sqlite.path", path.display())
            .set("proxy.port", variable("CRASH_PORT"))
            .set("proxy.health_interval_s", 3600)
            .set("cloud.database", variable("CRASH_DATABASE"))
            .set("cloud.user", variable("CRASH_USER"))
            .set("cloud.password", variable("CRASH_PASSWORD"))
            .set("sync.pull_interval_s", if is_proof(&variable("CRASH_POINT")) { 0.02 } else { 3600.0 })
            .set("sync.feed_poll_interval_s", 3600)
            .set("sync.feed_poll_first_ms", 60_000)
            .set("sync.retry_delay_s", 0.01)
            .set("sync.debounce_ms", 0)
            .set("sync.foreign_poll_ms", 10);
        let log = Lines::default();
        let db = Database::open(settings.build().unwrap(), log.logger()).await.unwrap();
        let cloud = connect().await;
        Self { path, db, log, cloud }
    }
}

/// Not a test of its own: what the others kill.
#[actix_rt::test]
#[ignore = "started by the others, in a process of its own"]
async fn child_that_is_killed() {
    let Ok(folder) = std::env::var("CRASH_FOLDER") else { return };
    let history: i64 = variable("CRASH_HISTORY").parse().unwrap();
    let at_once = variable("CRASH_AT_ONCE") == "yes";
    let (point, hit) = (variable("CRASH_POINT"), variable("CRASH_HIT").parse().unwrap());
    let _scenario = fail::FailScenario::setup();
    if at_once {
        arm(&point, hit);
    }
    let Opened { path, db, log, cloud } = Opened::new(&folder).await;
    if history == 0 {
        run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
        run(&db, "CREATE TABLE bulk (id INTEGER PRIMARY KEY, load BLOB)").await;
        let first = format!("INSERT INTO note VALUES (1, 'a'), (2, 'a'), (3, 'a'), ({FIRST}, 'a')");
        let receipt = run(&db, &first).await;
        db.synced(&receipt).await.unwrap();
        cloud.batch_execute(AUDIT).await.unwrap();
        return;
    }
    at_rest(&db, &log).await;
    if at_once {
        // Recovered, and examined by the next one.
        return;
    }
    if history > 1 {
        has_read_everything(&db, &cloud).await;
        examine(&db, &cloud, &path, history - 1).await;
        run(&db, "DELETE FROM bulk").await;
        at_rest(&db, &log).await;
    }

    let hits = hits(&point);
    if hits > 0 {
        let rows = numbers(hits);
        run(&db, &format!("{rows} INSERT INTO bulk SELECT {} + i, x'00' FROM n", history * BULK)).await;
        at_rest(&db, &log).await;
    }
    // Nothing of what others do from here on is to be read before this file has changed the same, or even before a round meets it.
    let holder = connect().await;
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let mark = format!(
        "INSERT INTO audit (who, op, id) SELECT 'mark', 'mark', id FROM note WHERE id BETWEEN {FIRST} AND {REFUSED}; \
         UPDATE note SET body = 'c{history}' WHERE id = 3; UPDATE bulk SET load = decode('{history:08}', 'hex')"
    );
    cloud.batch_execute(&mark).await.unwrap();
    let cursor = here(&db, CURSOR);
    arm(&point, hit);
    let write = format!(
        "DELETE FROM note WHERE id BETWEEN {FIRST} AND {BRIEF};\nINSERT INTO note VALUES ({}, 'l{history}');\n\
         UPDATE note SET body = 'l{history}' WHERE id IN (2, 3);\nINSERT INTO note VALUES ({}, 'refused')",
        FIRST + history,
        REFUSED + history
    );
    if let Some((rows, bytes)) = bulk(&point) {
        let rows = numbers(rows);
        run(&db, &format!("{rows} INSERT INTO bulk SELECT i, zeroblob({bytes}) FROM n")).await;
    }
    if hits > 0 {
        run(&db, &format!("UPDATE bulk SET load = x'ff' WHERE id > {BULK}")).await;
    }
    run(&db, &write).await;
    let holder = (hits > 0).then_some(holder);
    at_rest(&db, &log).await;
    // A round in which nothing is to be sent.
    let brief = BRIEF + history;
    run(&db, &format!("INSERT INTO note VALUES ({brief}, 'brief');\nDELETE FROM note WHERE id = {brief}"))
        .await;
    at_rest(&db, &log).await;
    drop(holder);
    has_read_everything(&db, &cloud).await;
    if is_proof(&point) {
        has_proof_beyond(&db, &cursor).await;
    }
}

/// Where the file has read the feed up to, and where that is proven.
const CURSOR: &str = "SELECT group_concat(value, ' ') FROM (SELECT value FROM _tidewater_meta WHERE key IN \
                      ('cursor_xid', 'cursor_id') ORDER BY key DESC)";
const PROVEN: &str = "SELECT (value ->> '$.cursor.xid') || ' ' || (value ->> '$.cursor.id') FROM _tidewater_meta \
                      WHERE key = 'witness'";

/// Waits until the feed was read to its end. What a transaction put into it is read only once none is open any more that is older,
/// in any database of the server, and other tests have theirs open: what a cycle does not find for that, nobody looks for before the
/// pull interval, unless somebody asks.
async fn has_read_everything(db: &Database, cloud: &Client) {
    wait::until("the feed is read to its end", PATIENCE, async || {
        let cursor = here(db, CURSOR);
        let (xid, id) = cursor.split_once(' ').unwrap();
        let unread =
            format!("SELECT count(*) FROM tidewater.changes WHERE (xid, id) > ('{xid}'::xid8, {id})");
        let unread = there(cloud, &unread).await;
        if unread == "0" {
            return Ok(());
        }
        db.warm().await.unwrap();
        Err(format!("{unread} entries are beyond {cursor}"))
    })
    .await;
}

/// Whether this is where it is remembered that the cloud has all that was read: after a cycle that has read something, unless one
/// did so within the pull interval. Which life, and whether it is armed by then, depends on what holds the feed back, as above. So
/// cycles follow each other there, and it is waited for: it has to come, after whatever is read.
fn is_proof(point: &str) -> bool {
    point.ends_with(".RememberWitness")
}

/// Waits until the feed was read beyond there, and that is proven.
async fn has_proof_beyond(db: &Database, before: &str) {
    wait::until("what was read is proven", PATIENCE, async || {
        let (read, proven) = (here(db, CURSOR), here(db, PROVEN));
        if read != before && read == proven { Ok(()) } else { Err(format!("{before}, {read}, {proven}")) }
    })
    .await;
}

/// How many rows of how many bytes it takes that somebody comes by: for a round that grows while it is on its way, for one that
/// leaves in pieces because somebody wrote, and for one that is too heavy.
fn bulk(point: &str) -> Option<(u32, u32)> {
    match point.rsplit('.').next() {
        Some("GrowRound" | "grown") => Some((3_000, 1)),
        Some("ClearRound" | "cleared") => Some((900, 1)),
        Some("TrimRound") => Some((20, 1 << 20)),
        _ => None,
    }
}

/// How many rows of `bulk` others change as well, so that they leave the round: more than leave it at once; and some of which it is
/// only known from the ledger that they left.
fn hits(point: &str) -> u32 {
    match point.rsplit('.').next() {
        Some("TakeOut" | "taken_out") => 250,
        Some("committed") => 3,
        _ => 0,
    }
}

/// Their numbers begin behind this, times the history's.
const BULK: i64 = 1_000_000;

/// Waits until nothing is left to do, which nobody asks for.
pub(crate) async fn at_rest(db: &Database, log: &Lines) {
    let waits = "SELECT (SELECT count(*) FROM _tidewater_journal_1) + (SELECT count(*) FROM _tidewater_flight_1) \
                 + (SELECT count(*) FROM _tidewater_round) + (SELECT count(*) FROM _tidewater_conflicts WHERE id > \
                 coalesce((SELECT value FROM _tidewater_meta WHERE key = 'conflicts_told'), 0))";
    let started = Instant::now();
    loop {
        let (waits, status) = (here(db, waits), db.status_summary().await);
        if waits == "0" && status.sync.pending == 0 && status.sync.state == "idle" {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "it stalls: {waits} wait, {status:?}, {:#?}", log.all());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A write was made, or it was not; if it was, the cloud was told of each change once.
async fn examine(db: &Database, cloud: &Client, path: &Path, history: i64) {
    let (new, refused) = (FIRST + history, REFUSED + history);
    let told = "SELECT string_agg(concat_ws(' ', op, id, body), ', ' ORDER BY id, n) FROM audit \
                WHERE who = 'tidewater' AND n > (SELECT max(n) FROM audit WHERE who = 'mark')";
    let gone = "SELECT string_agg(concat_ws(' ', 'DELETE', id, (SELECT max(body) FROM audit a WHERE a.id = m.id)), ', ') \
                FROM audit m WHERE who = 'mark' AND n = (SELECT max(n) FROM audit WHERE who = 'mark')";
    let written = here(db, &format!("SELECT count(*) FROM note WHERE id = {new}")) == "1";
    let mut expected = "NULL".to_owned();
    if written {
        let gone = there(cloud, gone).await;
        expected = format!("UPDATE 2 l{history}, UPDATE 3 l{history}, {gone}, INSERT {new} l{history}");
    }
    assert_eq!(there(cloud, told).await, expected, "what the cloud was told");

    let lost = format!("[3] \"l{history}\" \"c{history}\" local");
    let conflict = format!("cloud = '\"c{history}\"'");
    let local = format!(
        "SELECT group_concat(key || ' ' || local || ' ' || cloud || ' ' || kept) FROM _tidewater_conflicts WHERE {conflict}"
    );
    let in_cloud = format!(
        "SELECT string_agg(key || ' ' || local || ' ' || cloud || ' ' || kept, ',') FROM tidewater.conflicts WHERE cloud::text = '\"c{history}\"'"
    );
    let expected = if written { lost } else { "NULL".to_owned() };
    assert_eq!(here(db, &local), expected, "the conflict here");
    assert_eq!(there(cloud, &in_cloud).await, expected, "the conflict there");

    // Each that both sides changed, once.
    let hits = here(db, &format!("SELECT count(*) FROM bulk WHERE id > {BULK} AND load = x'ff'"));
    let lost = format!(
        "SELECT count(*) || ' of ' || count(DISTINCT key) FROM _tidewater_conflicts \
         WHERE table_name = 'bulk' AND CAST(substr(key, 2) AS INTEGER) / {BULK} = {history}"
    );
    assert_eq!(here(db, &lost), format!("{hits} of {hits}"), "the conflicts of many rows");

    let parked = here(db, "SELECT group_concat(k0) FROM _tidewater_parked_1");
    assert_eq!(
        parked,
        if written { refused.to_string() } else { parked.clone() },
        "what is refused is parked"
    );
    let ledger = "SELECT string_agg(id || ' ' || round || ' ' || round_number, ', ') FROM tidewater.devices";
    let link = "SELECT group_concat(value, ' ') FROM (SELECT value FROM _tidewater_meta WHERE key IN \
                ('device', 'last_round', 'round_number') ORDER BY key)";
    assert_eq!(there(cloud, ledger).await, here(db, link), "the ledger");
    let differences = compare::tables_differ(path, cloud, "public", &["note", "bulk"]).await;
    // What is parked is here alone, and makes one row more.
    let known = |line: &&String| {
        line.contains("only in SQLite") && line.contains("refused") || line.contains(" rows in ")
    };
    let unexpected: Vec<_> = differences.iter().filter(|line| !known(line)).collect();
    assert!(unexpected.is_empty(), "{differences:#?}");
}

/// Kills at every place of one half, each time that somebody comes by, or the first time and one of the others.
async fn kill(half: usize, every_time: bool) {
    let place = Place::new("points::child_that_is_killed").await;
    assert!(!place.life(0, "", 0, false));
    let mut history = 0;
    let all = points();
    let gone: Vec<_> = ELSEWHERE.iter().filter(|point| !all.contains(**point)).collect();
    assert!(gone.is_empty(), "there are no such places any more: {gone:?}");
    let on_the_way = all.into_iter().filter(|point| !ELSEWHERE.contains(&point.as_str()));
    let mut kills: BTreeMap<String, u32> = on_the_way.skip(half).step_by(2).map(|point| (point, 0)).collect();
    let points: Vec<String> = kills.keys().cloned().collect();
    for point in &points {
        let mut hit = 1;
        loop {
            history += 1;
            if !place.life(history, point, hit, false) {
                break;
            }
            *kills.get_mut(point).unwrap() += 1;
            match every_time {
                true => hit += 1,
                false if hit > 1 => break,
                false => hit = 2 + u32::try_from(crate::Random::new().below(8)).unwrap(),
            }
        }
        // The same while it finds out what became of a round that was committed, or not.
        let before = ["cloud.committed", "cloud.commit"];
        let one = usize::try_from(crate::Random::new().below(2)).unwrap();
        // Some places are on only one of these ways.
        let both = every_time || kills[point] == 0;
        for before in if both { &before[..] } else { &before[one..=one] } {
            let mut hit = 1;
            loop {
                history += 1;
                assert!(place.life(history, before, 1, false), "{before}");
                // Each successor is killed as well.
                if !place.life(history, point, hit, true) {
                    break;
                }
                *kills.get_mut(point).unwrap() += 1;
                hit += 1;
                if !every_time {
                    break;
                }
            }
        }
    }
    // The last one is examined, too.
    history += 1;
    assert!(!place.life(history, "nowhere", 1, false));
    let mut told = String::new();
    for (point, kills) in &kills {
        write!(told, " {point} {kills},").unwrap();
    }
    eprintln!("{history} histories, {} kills:{told}", kills.values().sum::<u32>());
    let never: Vec<_> = kills.iter().filter(|(_, kills)| **kills == 0).collect();
    assert!(never.is_empty(), "nobody came by: {never:?}");
}

/// Killed at any place between the note of a change and its acknowledgement, and while it recovers from that, it goes on
/// by itself, and every change takes effect once. (Half of the places each, side by side.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_fail_point_every_change_takes_effect_once() {
    kill(0, false).await;
}

/// At the other places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_other_fail_point_every_change_takes_effect_once() {
    kill(1, false).await;
}

/// The same each time that somebody comes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn killed_each_time_at_every_fail_point_every_change_takes_effect_once() {
    kill(0, true).await;
    kill(1, true).await;
}
