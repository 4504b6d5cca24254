//! The load under which things go wrong, and the count of what became of it.
//!
//! ```text
//! Writers ─▶ Database::write { a note, a tally } ─┐
//! Neighbour ─▶ plain SQL in the cloud             ├─▶ file and cloud, where a trigger writes down what is done to each note
//! Askers ─▶ detect_proxy, status, read, synced    ┘
//! Trap ─▶ panics at a place, the n-th time that somebody comes by
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_rt::task::JoinHandle;
use fail::FailScenario;
use tidewater::settings::Sources;
use tidewater::{AvailabilityChanged, Database, ProxyStatus, Receipt, Statement};
use tidewater_actors::messages::ActorReport;
use tidewater_test_support::wait;
use tokio_postgres::Client;

use crate::harness::{Bench, PATIENCE, here, run, there, wait_until_available};

/// How many write at the same time.
const WRITERS: usize = 4;

/// How often a condition is looked at that is expected within milliseconds.
const STEP: Duration = Duration::from_millis(1);

/// Who may die.
pub(crate) const ACTORS: [&str; 4] = ["ProxyWatcher", "CircuitBreaker", "SqliteWriter", "CloudSyncer"];

/// A body is in the file once when there is one row of it: the key is SQLite's to choose.
const TABLES: &str = "
    CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)";

/// The owner's own trigger writes down what is done to each row, so that "once" is seen and not assumed.
const AUDIT: &str = "
    CREATE TABLE audit (op text NOT NULL, body text NOT NULL);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO audit VALUES (TG_OP, coalesce(NEW.body, OLD.body)); RETURN NULL; END $$;
    CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON note
        FOR EACH ROW EXECUTE FUNCTION audited();";

/// A device with both tables in the cloud, and an app that listens. Nobody else has traps while it lives.
pub(crate) struct Scene {
    pub(crate) db: Database,
    pub(crate) bench: Bench,
    cloud: Rc<Client>,
    heard: Arc<Mutex<Vec<ProxyStatus>>>,
    /// Notes in the cloud have negative keys, which SQLite never chooses.
    cloud_key: Rc<Cell<i64>>,
    tallies: Vec<u64>,
    _scenario: FailScenario<'static>,
}

/// The app's recipient of changes.
struct Ear(Arc<Mutex<Vec<ProxyStatus>>>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<AvailabilityChanged> for Ear {
    type Result = ();

    fn handle(&mut self, change: AvailabilityChanged, _: &mut Self::Context) {
        self.0.lock().unwrap().push(change.status);
    }
}

/// Restarts without a wait and without an end, and a hurry in every timer.
pub(crate) fn hurried(bench: &Bench) -> Sources {
    bench
        .settings()
        .set("proxy.health_interval_s", 0.05)
        .set("proxy.recently_verified_s", 0)
        .set("sync.pull_interval_s", 0.02)
        .set("sync.retry_delay_s", 0.02)
        .set("sync.foreign_poll_ms", 10)
        .set("supervisor.restarts_max", 100_000)
        .set("supervisor.restarts_within_s", 0.001)
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    pub(crate) async fn with(change: impl FnOnce(Sources) -> Sources) -> Self {
        let scenario = FailScenario::setup();
        let bench = Bench::new().await;
        bench.proxy.start();
        let db = bench.open_with(change(hurried(&bench))).await;
        run(&db, TABLES).await;
        let tallies = (0..WRITERS).map(|writer| format!("INSERT INTO tally VALUES ({writer}, 0);\n"));
        let receipt = run(&db, &tallies.collect::<String>()).await;
        wait_until_available(&db).await;
        db.synced(&receipt).await.unwrap();
        bench.cloud.execute_batch(AUDIT).await;
        let cloud = Rc::new(bench.cloud.connect().await);
        let heard = Arc::<Mutex<Vec<ProxyStatus>>>::default();
        db.subscribe(Ear(heard.clone()).start().recipient()).await.unwrap();
        let cloud_key = Rc::default();
        Self { db, bench, cloud, heard, cloud_key, tallies: vec![0; WRITERS], _scenario: scenario }
    }

    /// Begins to write everywhere; every body begins with the tag.
    pub(crate) fn load(&self, tag: &str) -> Load {
        let progress = Rc::new(Progress::default());
        let mut tasks = vec![];
        for writer in 0..WRITERS {
            tasks.push(actix_rt::spawn(write(self.db.clone(), tag.to_owned(), writer, progress.clone())));
        }
        tasks.push(actix_rt::spawn(neighbour(
            self.cloud.clone(),
            tag.to_owned(),
            self.cloud_key.clone(),
            progress.clone(),
        )));
        tasks.push(actix_rt::spawn(ask(self.db.clone(), progress.clone())));
        tasks.push(actix_rt::spawn(follow(self.db.clone(), progress.clone())));
        Load { tag: tag.to_owned(), progress, tasks }
    }

    /// Waits until both sides are at rest, and counts. Every write was acknowledged, and each is there once.
    pub(crate) async fn settle(&mut self, load: Load, what: &str) {
        let Load { tag, progress, tasks } = load;
        progress.stop.set(true);
        for task in tasks {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            ended.unwrap_or_else(|_| panic!("{what}: somebody waits for ever")).unwrap();
        }
        assert_eq!(*progress.errors.borrow(), Vec::<String>::new(), "{what}");

        let receipt = progress.receipt.get().unwrap();
        match tokio::time::timeout(PATIENCE, self.db.synced(&receipt)).await {
            Ok(synced) => synced.unwrap_or_else(|error| panic!("{what}: synced: {error}")),
            Err(_) => panic!("{what}: not synced\n{}", self.state().await),
        }
        let from_cloud = progress.in_cloud.get();
        wait::until(&format!("{what}: the notes of the cloud are here"), PATIENCE, async || {
            let found = self.found(&format!("{tag}.c"));
            let missing: Vec<_> = (1..=from_cloud)
                .map(|n| format!("{tag}.c.{n}"))
                .filter(|body| !found.contains(body))
                .collect();
            match missing.is_empty() {
                true => Ok(()),
                false => Err(format!("{missing:?} of {from_cloud}\n{}", self.state().await)),
            }
        })
        .await;

        let mut expected: Vec<String> = (1..=from_cloud).map(|n| format!("{tag}.c.{n}")).collect();
        for (writer, acked) in progress.acked.borrow().iter().enumerate() {
            expected.extend((1..=*acked).map(|n| format!("{tag}.{writer}.{n}")));
            self.tallies[writer] += *acked;
        }
        expected.sort();
        let mut found = self.found(&tag);
        found.sort();
        assert!(found == expected, "{what}: the file has {}", difference(&found, &expected));
        let sql = "SELECT op || ' ' || body FROM audit WHERE starts_with(body, $1)";
        let rows = self.cloud.query(sql, &[&format!("{tag}.")]).await.unwrap();
        let mut done: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        done.sort();
        let mut expected: Vec<String> = expected.into_iter().map(|body| format!("INSERT {body}")).collect();
        expected.sort();
        assert!(done == expected, "{what}: done in the cloud: {}", difference(&done, &expected));
        for (writer, n) in self.tallies.iter().enumerate() {
            let sql = format!("SELECT n FROM tally WHERE id = {writer}");
            assert_eq!(here(&self.db, &sql), n.to_string(), "{what}: done here as often as acknowledged");
            assert_eq!(there(&self.cloud, &sql).await, n.to_string(), "{what}: the same in the cloud");
        }
    }

    /// The bodies in the file that begin with a tag.
    fn found(&self, tag: &str) -> Vec<String> {
        self.db
            .read(|conn| {
                conn.prepare("SELECT body FROM note WHERE body GLOB ?1 || '.*'")?
                    .query_map([&tag], |row| row.get::<_, String>(0))?
                    .collect::<Result<Vec<_>, _>>()
            })
            .unwrap()
    }

    /// Who waits for what, for the message of a test that fails.
    async fn state(&self) -> String {
        let activity = "SELECT string_agg(concat_ws(' | ', pid, state, wait_event, backend_xid, backend_xmin,
                               now() - xact_start, now() - state_change, left(query, 200)), E'\n')
                        FROM pg_stat_activity WHERE datname = current_database()";
        let activity = there(&self.cloud, activity).await;
        let cursor = here(&self.db, "SELECT group_concat(key || '=' || value, ' ') FROM _tidewater_meta");
        let feed = there(
            &self.cloud,
            "SELECT string_agg(c::text, E'\n') FROM (SELECT c FROM tidewater.changes AS c ORDER BY id DESC LIMIT 12) AS c",
        )
        .await;
        let horizon = there(&self.cloud, "SELECT pg_current_snapshot()").await;
        let log = self.bench.log.all();
        let last = &log[log.len().saturating_sub(40)..];
        format!("{:#?}\n{activity}\n{cursor}\n{feed}\n{horizon}\n{last:#?}", self.db.status_summary().await)
    }

    /// Every actor runs, and every call of the library works.
    pub(crate) async fn works(&self, what: &str) {
        let db = &self.db;
        let insert = Statement::new("INSERT INTO note (body) VALUES ('works') RETURNING id");
        let written = db.write([insert]).await.unwrap_or_else(|error| panic!("{what}: write: {error}"));
        db.read(|conn| conn.query_row("SELECT count(*) FROM note", [], |row| row.get::<_, i64>(0))).unwrap();
        db.synced(&written.receipt).await.unwrap_or_else(|error| panic!("{what}: synced: {error}"));
        let found =
            db.detect_proxy(true).await.unwrap_or_else(|error| panic!("{what}: detect_proxy: {error}"));
        assert_eq!(found.status, ProxyStatus::Available, "{what}: {found:?}");
        db.force_circuit(None).await.unwrap_or_else(|error| panic!("{what}: force_circuit: {error}"));
        db.flush().await.unwrap_or_else(|error| panic!("{what}: flush: {error}"));
        for actor in &db.status_summary().await.actors {
            assert_eq!(actor.state, "running", "{what}: {actor:?}");
        }
    }

    /// What the app subscribed to once still reaches it.
    pub(crate) async fn still_told(&self, what: &str) {
        for status in [ProxyStatus::Unavailable, ProxyStatus::Available] {
            let known = self.heard.lock().unwrap().len();
            match status {
                ProxyStatus::Available => self.bench.proxy.start(),
                _ => self.bench.proxy.stop(),
            }
            wait::until(&format!("{what}: {status} is told"), PATIENCE, async || {
                let heard = self.heard.lock().unwrap()[known..].to_vec();
                if heard.contains(&status) { Ok(()) } else { Err(format!("{heard:?}")) }
            })
            .await;
        }
    }

    /// Error lines so far.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.bench.log.all().into_iter().filter(|line| line.starts_with("ERRO")).collect()
    }

    pub(crate) async fn reports(&self) -> BTreeMap<String, ActorReport> {
        let actors = self.db.status_summary().await.actors;
        let reports: BTreeMap<_, _> = actors.into_iter().map(|actor| (actor.name.clone(), actor)).collect();
        assert!(ACTORS.iter().all(|name| reports.contains_key(*name)), "{reports:?}");
        reports
    }

    pub(crate) async fn end(self) {
        self.bench.wait_until_equal(&self.db, &["note", "tally"]).await;
        self.db.shutdown().await.unwrap();
    }
}

/// What is missing, and what is too much.
fn difference(found: &[String], expected: &[String]) -> String {
    let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
    for one in found {
        *counts.entry(one).or_default() += 1;
    }
    for one in expected {
        *counts.entry(one).or_default() -= 1;
    }
    counts.retain(|_, count| *count != 0);
    format!("{counts:?} (more or less than it should be)")
}

/// What has been done under load, by everybody.
#[derive(Default)]
pub(crate) struct Progress {
    stop: Cell<bool>,
    acked: RefCell<[u64; WRITERS]>,
    in_cloud: Cell<u64>,
    receipt: Cell<Option<Receipt>>,
    errors: RefCell<Vec<String>>,
}

/// The load while it lasts.
pub(crate) struct Load {
    tag: String,
    progress: Rc<Progress>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Waits until everybody has begun and ended a write from now on.
    pub(crate) async fn goes_on(&self, what: &str) {
        let known = *self.progress.acked.borrow();
        soon(&format!("{what}: everybody writes again"), || {
            let acked = self.progress.acked.borrow();
            // The first of them may have been under way.
            let all = acked.iter().zip(known).all(|(now, then)| *now >= then + 2);
            if all {
                Ok(())
            } else {
                Err(format!("{known:?}, {acked:?}, {:?}", self.progress.errors.borrow()))
            }
        })
        .await;
    }
}

/// Waits for something that is expected within milliseconds.
pub(crate) async fn soon(what: &str, holds: impl Fn() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(state) = holds() {
        assert!(Instant::now() < deadline, "{what}: {state}");
        tokio::time::sleep(STEP).await;
    }
}

async fn write(db: Database, tag: String, writer: usize, progress: Rc<Progress>) {
    for n in 1.. {
        if progress.stop.get() {
            break;
        }
        let note = Statement::new("INSERT INTO note (body) VALUES (?1)").bind(format!("{tag}.{writer}.{n}"));
        let tally =
            Statement::new("UPDATE tally SET n = n + 1 WHERE id = ?1").bind(i64::try_from(writer).unwrap());
        match db.write([note, tally]).await {
            Ok(done) => {
                progress.acked.borrow_mut()[writer] = n;
                progress.receipt.set(Some(done.receipt));
                tokio::time::sleep(STEP).await;
            }
            Err(error) => {
                progress.errors.borrow_mut().push(format!("{tag}.{writer}.{n}: {error:?}"));
                break;
            }
        }
    }
}

/// Somebody with plain SQL, so that there is something to pull.
async fn neighbour(client: Rc<Client>, tag: String, key: Rc<Cell<i64>>, progress: Rc<Progress>) {
    for n in 1.. {
        if progress.stop.get() {
            break;
        }
        key.set(key.get() - 1);
        let sql = "INSERT INTO note VALUES ($1, $2)";
        client.execute(sql, &[&key.get(), &format!("{tag}.c.{n}")]).await.unwrap();
        progress.in_cloud.set(n);
        tokio::time::sleep(STEP * 4).await;
    }
}

/// Whoever is being restarted may refuse an answer; reading never fails.
async fn ask(db: Database, progress: Rc<Progress>) {
    while !progress.stop.get() {
        let _ = db.detect_proxy(true).await;
        let _ = db.force_circuit(None).await;
        let _ = db.status_summary().await;
        if let Err(error) =
            db.read(|conn| conn.query_row("SELECT max(id) FROM note", [], |row| row.get::<_, Option<i64>>(0)))
        {
            progress.errors.borrow_mut().push(format!("read: {error:?}"));
        }
        tokio::time::sleep(STEP * 4).await;
    }
}

/// Waits for one receipt after the other.
async fn follow(db: Database, progress: Rc<Progress>) {
    while !progress.stop.get() {
        match progress.receipt.get() {
            Some(receipt) => {
                if let Err(error) = db.synced(&receipt).await {
                    progress.errors.borrow_mut().push(format!("synced: {error:?}"));
                }
            }
            None => tokio::time::sleep(STEP).await,
        }
    }
}

/// Panics at a place, once: when somebody comes by for the n-th time. Taken away when it is dropped.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) point: String,
    pub(crate) text: String,
    fired: Arc<Mutex<Option<Instant>>>,
    hits: Arc<AtomicU32>,
}

impl Trap {
    pub(crate) fn set(point: &str, at: u32) -> Self {
        let text = format!("trap {at} of {point}");
        let (fired, hits) = (Arc::<Mutex<Option<Instant>>>::default(), Arc::<AtomicU32>::default());
        let (said, noted, counted) = (text.clone(), fired.clone(), hits.clone());
        fail::cfg_callback(point, move || {
            if counted.fetch_add(1, Ordering::Relaxed) + 1 == at {
                *noted.lock().unwrap() = Some(Instant::now());
                panic!("{said}");
            }
        })
        .unwrap();
        Self { point: point.to_owned(), text, fired, hits }
    }

    pub(crate) fn fired(&self) -> Option<Instant> {
        *self.fired.lock().unwrap()
    }

    /// Waits until it has done its work.
    pub(crate) async fn sprung(&self) -> Instant {
        soon(&self.text, || match self.fired() {
            Some(_) => Ok(()),
            None => Err(format!("{} came by", self.hits.load(Ordering::Relaxed))),
        })
        .await;
        self.fired().unwrap()
    }
}

/// Whose place it is.
pub(crate) fn actor_at(point: &str) -> &'static str {
    match point.split_once('.').map(|(owner, _)| owner) {
        Some("watcher") => "ProxyWatcher",
        Some("breaker") => "CircuitBreaker",
        Some("writer" | "sqlite") => "SqliteWriter",
        Some("syncer" | "cloud") => "CloudSyncer",
        _ => panic!("whose is {point}?"),
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        fail::remove(&self.point);
    }
}
