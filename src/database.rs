//! The facade: what an app holds.
//!
//! ```text
//! Database::open ─▶ a thread with an actix System of its own
//!                     ├─ Supervisor                                   (an arbiter of its own)
//!                     ├─ ProxyWatcher, CircuitBreaker, CloudSyncer    (an arbiter for the three)
//!                     └─ SqliteWriter                                 (an arbiter of its own)
//! write, synced, subscribe, … ─▶ Handle ─▶ the living actor
//! read ─▶ a read-only connection, on the caller's own thread
//! ```
//!
//! The app's own actix System is not touched: everything here can be awaited in any actix or tokio runtime.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix::prelude::*;
use slog::{Logger, info, o, warn};
use tidewater_actors::circuit_breaker::{CircuitBreaker, Gate};
use tidewater_actors::cloud_syncer::{CloudSyncer, SyncOptions, SyncParts};
use tidewater_actors::core::availability::Times;
use tidewater_actors::core::backoff::Backoff;
use tidewater_actors::core::circuit::CircuitPolicy;
use tidewater_actors::core::dispute::Resolver;
use tidewater_actors::core::from_cloud::Wanted;
use tidewater_actors::core::merge::Policies;
use tidewater_actors::core::sync::Pace;
use tidewater_actors::endpoint::Endpoint;
use tidewater_actors::messages::{
    AvailabilityChanged, DetectProxy, Detection, ForceCircuit, Forced, GetCircuitReport, GetLink,
    GetProxyReport, GetSyncReport, HttpReport, ProxyReport, ProxyStatus, Readiness, ResetCircuit,
    ResetDetector, SetPace, SetRules, SetTimes, SqliteReport, StatusSummary, Stored, Subscribe, SyncNow,
    WaitSynced, Write,
};
use tidewater_actors::migrations::Migrations;
use tidewater_actors::past::Remembered;
use tidewater_actors::postgres::{Cloud, CloudOptions, FeedLimits, TlsMode, is_this_machine};
use tidewater_actors::proxy_watcher::{Probe, ProxyWatcher, WatcherOptions};
use tidewater_actors::sqlite::{
    FileLock, Mark, Readers, Statement, StatementResult, Store, StoreError, StoreOptions, Unit, Withdrawn,
    Written, lock_file,
};
use tidewater_actors::sqlite_writer::{SqliteWriter, WriterOptions, tell};
use tidewater_actors::supervision::{
    ChildSpec, GaveUp, Generation, Handle, Intensity, StartError, Supervisor, Thread, calm,
};
use tidewater_actors::timings::Timings;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};

use crate::error::Error;
use crate::settings::{AddColumns, Reload, Settings, TablesFromCloud};

/// How many writers may die while they have a unit in hand before it is given back: it may be what they die of.
const WRITE_DEATHS_MAX: u32 = 2;

/// `status` asks every actor; one that is stuck is reported, not waited for.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// What waits, and the actors: each may take `supervisor.shutdown_s`.
const SHUTDOWN_PARTS: u32 = 2;

/// Between two looks for the successor of an actor that died.
const RESTART_POLL: Duration = Duration::from_millis(5);

/// A database: SQLite here, synced with Cloud SQL when that is there. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tidewater::{Database, Statement, settings::Settings};
///
/// let settings = Settings::builder().set("sqlite.path", "notes.db").build()?;
/// let log = slog::Logger::root(slog::Discard, slog::o!());
/// let db = Database::open(settings, log).await?;
/// db.write([Statement::new("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body TEXT)")]).await?;
/// let receipt = db.write([Statement::new("INSERT INTO note (body) VALUES (?1)").bind("hello")]).await?.receipt;
/// let notes: i64 = db.read(|conn| conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0)))?;
/// println!("{notes} notes here");
/// db.synced(&receipt).await?; // as long as it takes until the cloud has it
/// db.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

/// Proof of a durable write, and the handle to ask whether the cloud has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    mark: Mark,
}

/// What a write did. It is on the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// For [`Database::synced`].
    pub receipt: Receipt,
    /// One per statement, in order.
    pub results: Vec<StatementResult>,
}

#[derive(Debug)]
struct Inner {
    children: Children,
    queue: Queue,
    readers: Readers,
    sqlite: SqliteReport,
    /// What is known of the proxy without the watcher.
    unasked: ProxyReport,
    given_up: watch::Receiver<Option<GaveUp>>,
    availability: watch::Receiver<AvailabilityChanged>,
    timings: Arc<Timings>,
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only HTTP tells it"))]
    past: Arc<Remembered>,
    /// Where it answers over HTTP, once it does.
    http: OnceLock<SocketAddr>,
    shutdown: Duration,
    log: Logger,
    /// Those that it was opened with.
    settings: Settings,
    /// The same, with what was read again since.
    live: Live,
    runtime: Mutex<Option<Runtime>>,
}

/// The settings in use now. What an actor takes from them is taken anew by each generation of it.
#[derive(Debug, Clone)]
struct Live(Arc<RwLock<Settings>>);

impl Live {
    fn new(settings: Settings) -> Self {
        Self(Arc::new(RwLock::new(settings)))
    }

    fn get(&self) -> Settings {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what can be.
    fn take(&self, read: &Settings) -> Reload {
        let mut settings = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let reload = settings.reload(read);
        settings.clone_from(&reload.settings);
        reload
    }
}

/// What the watcher takes of the settings that can change.
fn times_of(settings: &Settings) -> Times {
    Times {
        health_interval: settings.proxy.health_interval,
        recently_verified: settings.proxy.recently_verified,
        listen_interval: settings.proxy.listen_interval,
    }
}

/// What the syncer takes of them.
fn pace_of(settings: &Settings) -> Pace {
    Pace {
        debounce: settings.sync.debounce,
        pull_interval: settings.sync.pull_interval,
        poll_interval: settings.sync.feed_poll_interval,
        poll_first: settings.sync.feed_poll_first,
        retry_delay: settings.sync.retry_delay,
        max_retry_delay: settings.proxy.max_retry_delay,
    }
}

/// The thread of the actors, which nobody joins: it ends by itself.
#[derive(Debug)]
struct Runtime {
    stop: oneshot::Sender<()>,
    /// The file and its lock are free.
    ended: oneshot::Receiver<()>,
}

/// The writes under way. The writer's mailbox bounds none of them: in actix every clone of an address has a place of its own
/// in it.
#[derive(Debug)]
struct Queue {
    /// Closed after an orderly end.
    places: Arc<Semaphore>,
    max: u32,
}

impl Queue {
    fn new(max: usize) -> Self {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        Self { places: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// A place, in the order in which they were asked for.
    async fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.places.clone().acquire_owned().await.map_err(|_| Error::ShutDown)
    }

    /// A place if there is one and nobody waits for it.
    fn try_enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.places.clone().try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => Error::QueueFull(self.max),
            TryAcquireError::Closed => Error::ShutDown,
        })
    }

    /// Waits until everybody who entered, or waited for it, has an answer.
    async fn emptied(&self) {
        // An error means that this has been waited for before.
        let _ = self.places.acquire_many(self.max).await;
    }
}

/// The addresses of the four actors, and the app's subscribers, who have to be told again when the watcher is new.
#[derive(Debug, Clone)]
struct Children {
    watcher: Handle<ProxyWatcher>,
    breaker: Handle<CircuitBreaker>,
    writer: Handle<SqliteWriter>,
    syncer: Handle<CloudSyncer>,
    subscribers: Subscribers,
}

#[derive(Clone, Default)]
struct Subscribers(Arc<Mutex<Vec<Recipient<AvailabilityChanged>>>>);

impl Subscribers {
    fn add(&self, recipient: Recipient<AvailabilityChanged>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| other.connected() && *other != recipient);
        known.push(recipient);
    }

    fn all(&self) -> Vec<Recipient<AvailabilityChanged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Subscribers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscribers")
    }
}

/// Hears of the cloud for those who are no actors, and for those who look only later.
struct Announcer(watch::Sender<AvailabilityChanged>, Arc<Remembered>);

impl Actor for Announcer {
    type Context = Context<Self>;
}

impl Handler<AvailabilityChanged> for Announcer {
    type Result = ();

    fn handle(&mut self, changed: AvailabilityChanged, _: &mut Self::Context) {
        self.1.note_change(changed);
        self.0.send_replace(changed);
    }
}

/// What the actors are made from, again after each restart.
struct Plan {
    settings: Settings,
    store: StoreOptions,
    watcher: WatcherOptions,
    circuit: CircuitPolicy,
    cloud: Option<Cloud>,
    gate: Gate,
    timings: Arc<Timings>,
    past: Arc<Remembered>,
    wanted: Arc<OnceLock<Wanted>>,
    live: Live,
    log: Logger,
}

impl Database {
    /// Opens the SQLite file, creates it when missing, starts the actors, and applies the migrations of the folder
    /// `sqlite.migrations`, if it is set. Returns as soon as reads and writes work,
    /// which does not depend on any network.
    ///
    /// # Errors
    /// [`Error::Store`] says what is wrong with the file and what helps; [`Error::Settings`] names what cannot be used.
    pub async fn open(settings: Settings, log: Logger) -> Result<Self, Error> {
        Self::open_with(settings, log, Wanted::Nothing).await
    }

    /// The same; `by_default` says which tables the file gets from the cloud where the settings leave that open.
    pub(crate) async fn open_with(
        settings: Settings,
        log: Logger,
        by_default: Wanted,
    ) -> Result<Self, Error> {
        let log = calm(log);
        let folder = settings.sqlite.migrations.as_ref();
        // Before anything is touched: a folder that cannot be read is no half start.
        let migrations = folder.map(Migrations::from_dir).transpose().map_err(StoreError::from)?;
        if let Some(warning) = unprotected(&settings) {
            warn!(log, "{}", warning);
        }
        let wanted = match &settings.sync.tables_from_cloud {
            TablesFromCloud::Auto => by_default,
            TablesFromCloud::None => Wanted::Nothing,
            TablesFromCloud::All => Wanted::Synced,
            TablesFromCloud::Named(names) => Wanted::Named(names.clone()),
        };
        let plan = Plan::new(settings, log.clone())?;
        let told = plan.wanted.clone();
        // Which tables the file lacks is known when the migrations have made theirs.
        let want = move || drop(told.set(wanted.clone()));
        if migrations.is_none() {
            want();
        }
        let (opened, open) = oneshot::channel();
        let (over, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("tidewater".into())
            .spawn(move || {
                // A panic in here would end the thread; `open` and the handles then answer with errors.
                let system = System::new();
                system.block_on(plan.live(opened));
                // Told before the system is dropped, which may wait for what is blocked in it. Who asked may have gone.
                let _ = over.send(());
            })
            .map_err(|error| Error::Thread(error.to_string()))?;
        match open.await {
            Ok(Ok((mut inner, stop))) => {
                inner.runtime = Mutex::new(Some(Runtime { stop, ended }));
                let db = Self { inner: Arc::new(inner) };
                if let Some(migrations) = migrations
                    && let Err(error) = db.migrate(&migrations).await
                {
                    // The first error is the one that helps.
                    let _ = db.shutdown().await;
                    return Err(error);
                }
                want();
                info!(log, "✅ Hybrid sync initialized");
                Ok(db)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Thread("it ended before it had begun".into())),
        }
    }

    /// Runs statements as one unit and returns when they are on the disk. While `sqlite.queue_max` writes are under way
    /// it waits for its turn, in the order of the calls; [`try_write`](Self::try_write) fails instead. It never waits for
    /// the network.
    ///
    /// A writer that dies meanwhile is not the caller's business: what it had committed is answered as committed, and what it
    /// had not is done by its successor.
    ///
    /// Dropping the future withdraws the write if it has not begun; otherwise its outcome is not known.
    ///
    /// # Errors
    /// [`Error::Store`] when SQLite refuses; nothing of the unit is done then. [`Error::Unanswered`] when one writer after
    /// the other died of it; it is not done then either.
    pub async fn write(&self, statements: impl IntoIterator<Item = Statement>) -> Result<Committed, Error> {
        self.alive()?;
        let asked = Instant::now();
        let place = self.inner.queue.enter().await?;
        self.write_in(place, asked, Unit::new(statements)).await
    }

    /// The same, but fails at once while `sqlite.queue_max` writes are under way.
    ///
    /// # Errors
    /// [`Error::QueueFull`] then; nothing is done, and trying again helps. Otherwise those of [`write`](Self::write).
    pub async fn try_write(
        &self,
        statements: impl IntoIterator<Item = Statement>,
    ) -> Result<Committed, Error> {
        self.alive()?;
        let asked = Instant::now();
        let place = self.inner.queue.try_enter()?;
        self.write_in(place, asked, Unit::new(statements)).await
    }

    /// The place is held until the answer is there.
    async fn write_in(
        &self,
        _place: OwnedSemaphorePermit,
        asked: Instant,
        unit: Unit,
    ) -> Result<Committed, Error> {
        let written = self.unit(unit, |unit, answer| Write { unit, answer }).await?;
        self.inner.timings.write.observe(asked.elapsed());
        Ok(Committed { receipt: Receipt { mark: written.mark }, results: written.results })
    }

    /// Has the writer do a unit, and its successors if it dies meanwhile: once, or not at all. It is done also when the end
    /// has begun meanwhile.
    pub(crate) async fn unit<M>(
        &self,
        mut unit: Unit,
        message: impl Fn(Unit, oneshot::Sender<Stored<Written>>) -> M,
    ) -> Result<Written, Error>
    where
        M: Message<Result = ()> + Send + 'static,
        SqliteWriter: Handler<M>,
    {
        let mut deaths = 0;
        loop {
            let asked = |answer| message(unit.clone(), answer);
            match self.inner.children.writer.ask_with(asked).await {
                Ok(written) => return Ok(written?),
                Err(unanswered) => {
                    if let Some(written) = self.taken_back(&unit).await? {
                        return Ok(written);
                    }
                    // By itself from now on: what the writer died of may have been another one of the group.
                    deaths += u32::from(unanswered.delivered);
                    if deaths > WRITE_DEATHS_MAX {
                        return Err(unanswered.into());
                    }
                    self.alive()?;
                    unit = unit.again();
                    tokio::time::sleep(RESTART_POLL).await;
                }
            }
        }
    }

    /// Takes a unit back from a writer that does not answer, or tells what it did. While its commit is under way, on a
    /// thread that hangs, nobody else can write the file either: that is waited out.
    async fn taken_back(&self, unit: &Unit) -> Result<Option<Written>, Error> {
        loop {
            match unit.withdraw() {
                Withdrawn::InTime => return Ok(None),
                Withdrawn::TooLate(written) => return Ok(Some(written)),
                Withdrawn::Undecided => {
                    self.alive()?;
                    tokio::time::sleep(RESTART_POLL).await;
                }
            }
        }
    }

    /// Reads on the caller's own thread, with a read-only connection; sees every acknowledged write.
    ///
    /// # Errors
    /// [`Error::Store`] with what SQLite says, or when every connection is in use for too long; [`Error::ShutDown`].
    pub fn read<T>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.timed_read(|readers| readers.read(work))
    }

    /// A read on the caller's own thread. How long it took is counted, whatever came of it.
    pub(crate) fn timed_read<T>(
        &self,
        read: impl FnOnce(&Readers) -> Result<T, StoreError>,
    ) -> Result<T, Error> {
        let asked = Instant::now();
        let outcome = read(self.readers());
        self.inner.timings.read.observe(asked.elapsed());
        outcome.map_err(of_reader)
    }

    /// Those that it was opened with: what takes a restart to change.
    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.inner.log
    }

    /// Those in use now.
    pub(crate) fn settings_now(&self) -> Settings {
        self.inner.live.get()
    }

    /// Uses other settings from now on, as far as that needs no restart: what was taken and what has to wait is in the
    /// answer, and the same settings as before change nothing. The log's levels are the caller's business.
    ///
    /// A password file with another password in it makes the cloud be checked at once, as [`reset`](Self::reset) does.
    /// Dropping the future after it was polled leaves that out, and nothing else.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), Box<dyn std::error::Error>> {
    /// use tidewater::settings::Settings;
    ///
    /// let reload = db.reload(&Settings::builder().process_environment().config_file("notes.toml").build()?).await?;
    /// for change in &reload.waiting {
    ///     println!("{} takes a restart", change.key);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::ShutDown`], or [`Error::Failed`] when supervision gave up: nothing is changed then. [`Error::Unanswered`] when
    /// only the check was not begun.
    pub async fn reload(&self, settings: &Settings) -> Result<Reload, Error> {
        self.alive()?;
        let reload = self.inner.live.take(settings);
        let now = &reload.settings;
        let children = &self.inner.children;
        // Who is being restarted takes them from where they are kept.
        children.watcher.hint(SetTimes(times_of(now)));
        children.syncer.hint(SetPace(pace_of(now)));
        let policies = now.tables.policies();
        children.writer.hint(SetRules { backlog: now.sync.backlog, policies });
        if reload.password_changed {
            self.reset().await?;
        }
        Ok(reload)
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.inner.readers
    }

    /// Resolves when the cloud has what the receipt stands for, however long that takes. Waits across outages and
    /// restarts of actors; drop it to stop waiting.
    ///
    /// # Errors
    /// [`SyncError::Parked`](crate::SyncError::Parked) when PostgreSQL refuses a row of it; [`SyncError::ProxyRequired`](crate::SyncError::ProxyRequired) at once where the proxy is
    /// required and not available, and when it goes away meanwhile; [`Error::Failed`] when supervision gave up.
    pub async fn synced(&self, receipt: &Receipt) -> Result<(), Error> {
        let mut given_up = self.inner.given_up.clone();
        loop {
            self.alive()?;
            let syncer = &self.inner.children.syncer;
            let waiting = syncer.ask_with(|answer| WaitSynced { mark: receipt.mark, answer });
            tokio::select! {
                answer = waiting => match answer {
                    Ok(answer) => return Ok(answer?),
                    // The syncer was restarted: its successor is asked, when it is there.
                    Err(_) => tokio::time::sleep(RESTART_POLL).await,
                },
                changed = given_up.changed() => {
                    if changed.is_err() {
                        return Err(Error::ShutDown);
                    }
                }
            }
        }
    }

    /// Sends every change of the availability to a recipient, the current state first.
    pub async fn subscribe(&self, recipient: Recipient<AvailabilityChanged>) -> Result<(), Error> {
        self.inner.children.subscribers.add(recipient.clone());
        loop {
            self.alive()?;
            match self.inner.children.watcher.ask(Subscribe(recipient.clone())).await {
                Ok(()) => return Ok(()),
                // Its successor may have been made before the recipient was known.
                Err(_) => tokio::time::sleep(RESTART_POLL).await,
            }
        }
    }

    /// The availability for those who are no actors: what it is now, and a sign when it changes. Who looks rarely sees the last
    /// change only; the epoch says how many there were.
    #[must_use]
    pub fn availability(&self) -> watch::Receiver<AvailabilityChanged> {
        self.inner.availability.clone()
    }

    /// Whether the proxy is there, with the reason in words. `force` skips what was verified within the last seconds.
    pub async fn detect_proxy(&self, force: bool) -> Result<Detection, Error> {
        self.alive()?;
        Ok(self.inner.children.watcher.ask(DetectProxy { force }).await?)
    }

    /// Sets the failure count and the delay back, ends a pause, and checks at once.
    pub async fn reset(&self) -> Result<(), Error> {
        self.alive()?;
        // First, so that what the check finds meets a circuit that remembers nothing.
        self.inner.children.breaker.ask(ResetCircuit).await?;
        Ok(self.inner.children.watcher.ask(ResetDetector).await?)
    }

    /// Holds the circuit breaker open (no call to the cloud is made), closed (calls are made whatever it would count), or
    /// lets it decide by itself again, which is where every process starts. Holding it closed makes no call possible that
    /// the availability does not: a cloud that is not there is not dialled.
    pub async fn force_circuit(&self, forced: Option<Forced>) -> Result<(), Error> {
        self.alive()?;
        Ok(self.inner.children.breaker.ask(ForceCircuit(forced)).await?)
    }

    /// Takes what waits to the cloud now, and returns when that is done. Rows written meanwhile may or may not go along.
    ///
    /// # Errors
    /// [`SyncError::Offline`](crate::SyncError::Offline) at once while the proxy is not available, [`SyncError::ProxyRequired`](crate::SyncError::ProxyRequired) where it is required.
    pub async fn flush(&self) -> Result<(), Error> {
        self.sync_now().await
    }

    /// Brings home what others wrote, now, and returns when that is done.
    ///
    /// # Errors
    /// [`SyncError::Offline`](crate::SyncError::Offline) at once while the proxy is not available, [`SyncError::ProxyRequired`](crate::SyncError::ProxyRequired) where it is required.
    pub async fn warm(&self) -> Result<(), Error> {
        self.sync_now().await
    }

    /// A cycle goes both ways: nothing is flushed on top of rows that have not been seen, and nothing is pulled over rows
    /// that wait.
    async fn sync_now(&self) -> Result<(), Error> {
        self.alive()?;
        Ok(self.inner.children.syncer.ask(SyncNow).await??)
    }

    /// Everything that `run_supervisor status --json` says, within two seconds. An actor that is being restarted, or does not
    /// answer in time, has empty entries.
    pub async fn status_summary(&self) -> StatusSummary {
        let children = &self.inner.children;
        // Before they are asked: one that is being restarted may be back when the others have answered.
        let mut actors = vec![
            children.watcher.report(),
            children.breaker.report(),
            children.writer.report(),
            children.syncer.report(),
        ];
        let (proxy, circuit, sync) = tokio::join!(
            tokio::time::timeout(STATUS_WAIT, children.watcher.ask(GetProxyReport)),
            tokio::time::timeout(STATUS_WAIT, children.breaker.ask(GetCircuitReport)),
            tokio::time::timeout(STATUS_WAIT, children.syncer.ask(GetSyncReport)),
        );
        let answered = [
            ("ProxyWatcher", matches!(proxy, Ok(Ok(_)))),
            ("CircuitBreaker", matches!(circuit, Ok(Ok(_)))),
            ("CloudSyncer", matches!(sync, Ok(Ok(_)))),
        ];
        for actor in &mut actors {
            if actor.state == "running" && answered.contains(&(actor.name.as_str(), false)) {
                actor.state = "silent".to_owned();
            }
        }
        let unasked = || ProxyReport {
            detail: match actors.iter().find(|actor| actor.name == "ProxyWatcher") {
                Some(actor) if actor.state == "silent" => "the watcher does not answer".to_owned(),
                _ => "the watcher is being restarted".to_owned(),
            },
            ..self.inner.unasked.clone()
        };
        let sync = sync.ok().and_then(Result::ok).unwrap_or_default();
        let replaced = self.inner.readers.same_file().err().map(|error| error.to_string());
        let status = StatusSummary {
            proxy: proxy.ok().and_then(Result::ok).unwrap_or_else(unasked),
            circuit: circuit.ok().and_then(Result::ok).unwrap_or_default(),
            sqlite: SqliteReport {
                problem: replaced.or_else(|| sync.uncounted.clone()),
                copying: self.inner.readers.copying(),
                ..self.inner.sqlite.clone()
            },
            sync,
            http: HttpReport { listen: self.inner.http.get().map(ToString::to_string) },
            actors,
            ..StatusSummary::default()
        };
        status.judged()
    }

    /// Whether somebody may rely on this process now: every actor runs, the file is in its place and, where the proxy is
    /// required, the cloud is available. The same as in [`Database::status_summary`].
    pub async fn readiness(&self) -> Readiness {
        self.status_summary().await.readiness
    }

    /// Resolves when supervision has given up, with the reason.
    pub async fn failed(&self) -> Error {
        let mut given_up = self.inner.given_up.clone();
        loop {
            if let Some(gave_up) = given_up.borrow_and_update().clone() {
                return Error::Failed(gave_up.to_string());
            }
            if given_up.changed().await.is_err() {
                return Error::ShutDown;
            }
        }
    }

    /// Ends in order: what waits is committed, what a few seconds allow is flushed, the actors stop in the reverse of the
    /// order in which they started, the file is closed. Afterwards every clone of this handle answers with
    /// [`Error::ShutDown`]. Calling it again does nothing.
    ///
    /// Takes at most twice `supervisor.shutdown_s`, whatever the cloud and the actors do:
    ///
    /// 1. `shutdown_s` for what waits: the writer commits it, and a last cycle takes it to the cloud. What a silent cloud
    ///    does not take in this time stays pending in the file, for the next start.
    /// 2. `shutdown_s` for the actors' end. In there the syncer, the breaker and the watcher have 5 s each, the writer as
    ///    long as its transaction takes, and their threads 5 s together; whatever that adds up to, it is not waited for
    ///    any longer. What hangs in a blocking pool, a resolver for instance, is not waited for at all.
    ///
    /// # Errors
    /// [`Error::StillBusy`] when the second part was not enough: the actors still hold the file, until they are done or the
    /// process ends.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let runtime = self.inner.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Runtime { stop, ended }) = runtime else { return Ok(()) };
        let children = &self.inner.children;
        let within = self.inner.shutdown;
        let queue = &self.inner.queue;
        let orderly = async {
            // Writes that nobody polls any more keep their places; the last flush shall have its time all the same.
            let _ = tokio::time::timeout(within / 2, queue.emptied()).await;
            // The writer's mailbox is first in, first out: its answer means that what waited before has been committed.
            let _ = children.writer.ask(GetLink).await;
            // A cloud that is not there, or that nobody has looked for yet, is not waited for.
            let sync = children.syncer.ask(GetSyncReport).await;
            if sync.is_ok_and(|sync| !["offline", "blocked"].contains(&sync.state.as_str())) {
                let _ = children.syncer.ask(SyncNow).await;
            }
        };
        let _ = tokio::time::timeout(within, orderly).await;
        queue.places.close();
        self.inner.readers.close();
        // The thread may have ended by itself.
        let _ = stop.send(());
        // A thread that panicked has ended as well.
        match tokio::time::timeout(within, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::StillBusy(within.as_secs_f64())),
        }
    }

    /// The longest that [`shutdown`](Self::shutdown) takes.
    pub(crate) fn shutdown_bound(&self) -> Duration {
        self.inner.shutdown * SHUTDOWN_PARTS
    }

    /// How long things took, since it was opened.
    #[cfg(feature = "http")]
    pub(crate) fn timings(&self) -> &Timings {
        &self.inner.timings
    }

    /// What has passed since it was opened, of a day at most.
    #[cfg(feature = "http")]
    pub(crate) fn past(&self) -> &Remembered {
        &self.inner.past
    }

    /// From now on the status says where it answers over HTTP.
    #[cfg(feature = "http")]
    pub(crate) fn answers_on(&self, address: SocketAddr) {
        // There is one process, which listens once.
        let _ = self.inner.http.set(address);
    }

    pub(crate) fn writer(&self) -> Result<&Handle<SqliteWriter>, Error> {
        self.alive().map(|()| &self.inner.children.writer)
    }

    pub(crate) fn syncer(&self) -> Result<&Handle<CloudSyncer>, Error> {
        self.alive().map(|()| &self.inner.children.syncer)
    }

    fn alive(&self) -> Result<(), Error> {
        if let Some(gave_up) = self.inner.given_up.borrow().as_ref() {
            return Err(Error::Failed(gave_up.to_string()));
        }
        if self.inner.given_up.has_changed().is_err() {
            // Nobody is left who could start an actor again.
            return Err(Error::ShutDown);
        }
        match *self.inner.runtime.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => Ok(()),
            None => Err(Error::ShutDown),
        }
    }
}

/// A file that is closed was closed by [`Database::shutdown`].
pub(crate) fn of_reader(error: StoreError) -> Error {
    match error {
        StoreError::Closed => Error::ShutDown,
        error => error.into(),
    }
}

/// What is said once where somebody has allowed that everything is sent in the open.
fn unprotected(settings: &Settings) -> Option<String> {
    let host = settings.proxy.host.to_string();
    let open = settings.cloud.link.tls.mode == TlsMode::Off
        && settings.cloud.missing().is_none()
        && !is_this_machine(&host);
    open.then(|| {
        format!("⚠️  cloud.tls is off: the password and every row travel to {host} unencrypted, as the settings say")
    })
}

/// How the cloud is reached; none when there is nothing to log in with.
pub(crate) fn cloud_options(settings: &Settings) -> Option<CloudOptions> {
    let (proxy, cloud) = (&settings.proxy, &settings.cloud);
    let (Some(database), Some(user)) = (&cloud.database, &cloud.user) else { return None };
    Some(CloudOptions {
        host: proxy.host.to_string(),
        port: proxy.port,
        database: database.clone(),
        user: user.clone(),
        password: cloud.password.as_ref().map(|password| password.expose().to_owned()),
        schema: cloud.schema.clone(),
        timeout: proxy.timeout,
        statement_timeout: cloud.statement_timeout,
        pool_max: cloud.pool_max,
        application_name: cloud.application_name.clone(),
        add_columns: cloud.add_columns == AddColumns::Auto,
        link: cloud.link.clone(),
    })
}

/// The app's own function for conflicts; that it panics is told once per table.
fn resolver(settings: &Settings, log: &Logger) -> Option<Resolver> {
    let (log, told) = (log.clone(), Mutex::new(BTreeSet::new()));
    settings.resolver().map(|resolver| {
        resolver.telling(move |table| {
            if told.lock().unwrap_or_else(PoisonError::into_inner).insert(table.to_owned()) {
                warn!(
                    log,
                    "⚠️  The app's function for conflicts panicked on table {table}: its policy decides instead"
                );
            }
        })
    })
}

impl Plan {
    fn new(settings: Settings, log: Logger) -> Result<Self, Error> {
        let bad = |error: &dyn std::fmt::Display| Error::Settings(error.to_string());
        let proxy = &settings.proxy;
        let host = proxy.host.to_string();
        let endpoint = Endpoint::new(&host, proxy.port);
        let backoff =
            Backoff::try_new(proxy.retry_delay, proxy.max_retry_delay).map_err(|error| bad(&error))?;
        let open_time =
            Backoff::try_new(settings.circuit.open, proxy.max_retry_delay.max(settings.circuit.open))
                .map_err(|error| bad(&error))?;
        let cloud = &settings.cloud;
        let cloud_options = cloud_options(&settings);
        let mut watcher = WatcherOptions::new(endpoint, backoff);
        watcher.environment = settings.supervisor.environment;
        watcher.proxy_required = proxy.require;
        watcher.health_interval = proxy.health_interval;
        watcher.recently_verified = proxy.recently_verified;
        watcher.listen_interval = proxy.listen_interval;
        watcher.check_timeout = settings.check_timeout();
        watcher.probe_missing = cloud.missing().unwrap_or_default();
        let gate = Gate::new();
        watcher.gate = Some(gate.clone());
        Ok(Self {
            store: StoreOptions {
                path: settings.sqlite.path.clone(),
                busy_timeout: settings.sqlite.busy_timeout,
                read_pool_max: u32::try_from(settings.sqlite.read_pool_max).unwrap_or(u32::MAX),
                upkeep: settings.sqlite.upkeep,
            },
            watcher,
            circuit: CircuitPolicy {
                failure_threshold: settings.circuit.failure_threshold,
                success_threshold: settings.circuit.success_threshold,
                open_time,
            },
            cloud: cloud_options.map(Cloud::new).transpose().map_err(|error| bad(&error))?,
            gate,
            timings: Arc::default(),
            past: Arc::default(),
            wanted: Arc::default(),
            live: Live::new(settings.clone()),
            settings,
            log,
        })
    }

    /// The life of the actors' thread: open, start, wait for the end.
    async fn live(self, opened: oneshot::Sender<Result<(Inner, oneshot::Sender<()>), Error>>) {
        let (store, readers, own_readers, lock) = match self.open_file() {
            Ok(open) => open,
            Err(error) => {
                // Who asked may have gone.
                let _ = opened.send(Err(error));
                return;
            }
        };
        let sqlite = SqliteReport {
            path: self.store.path.display().to_string(),
            journal_mode: "wal".to_owned(),
            problem: None,
            copying: None,
        };
        let shutdown = self.settings.supervisor.shutdown;
        let (settings, live) = (self.settings.clone(), self.live.clone());
        let queue_max = self.settings.sqlite.queue_max;
        let unasked = ProxyReport {
            endpoint: self.settings.proxy.endpoint(),
            environment: self.settings.supervisor.environment.to_string(),
            proxy_required: self.settings.proxy.require,
            ..ProxyReport::default()
        };
        let log = self.log.clone();
        let (timings, past) = (self.timings.clone(), self.past.clone());
        let unheard = AvailabilityChanged { epoch: 0, status: ProxyStatus::Unknown, class: None };
        let (heard, availability) = watch::channel(unheard);
        let (children, supervisor) = self.children(store, own_readers.clone());
        // Before there is a watcher, which has to know it.
        past.note_change(unheard);
        children.subscribers.add(Announcer(heard, past.clone()).start().recipient());
        let supervision = match supervisor.launch().await {
            Ok(supervision) => supervision,
            Err(error) => {
                let error = match error {
                    StartError::Thread(why) => Error::Thread(why),
                    error => Error::Failed(error.to_string()),
                };
                let _ = opened.send(Err(error));
                return;
            }
        };
        let given_up = supervision.given_up();
        // The watcher's answer comes after its first look, so that the log tells things in the documented order.
        let _ = children.watcher.ask(GetProxyReport).await;
        info!(log, "✅ SQLite initialized (WAL mode enabled)");
        let (stop, stopped) = oneshot::channel();
        let queue = Queue::new(queue_max);
        let runtime = Mutex::new(None);
        let inner = Inner {
            children,
            queue,
            readers,
            sqlite,
            unasked,
            given_up,
            availability,
            timings,
            past,
            http: OnceLock::new(),
            shutdown,
            log: log.clone(),
            settings,
            live,
            runtime,
        };
        if opened.send(Ok((inner, stop))).is_ok() {
            tokio::select! {
                // An error means that every handle is gone, which is an end as well.
                _ = stopped => {}
                // Supervision gave up: the file is free for another try.
                _ = supervision.ended() => {}
            }
        }
        own_readers.close();
        for name in supervision.shutdown().await {
            warn!(log, "{name} did not end in time");
        }
        drop(lock);
    }

    fn open_file(&self) -> Result<(Store, Readers, Readers, FileLock), Error> {
        let lock = lock_file(&self.store.path)?;
        let (mut store, notices) = Store::open_with(&self.store, &self.settings.tables.rules())?;
        store.go_by_clock(self.settings.sync.clock_offset_us)?;
        if let Some(cloud) = &self.cloud {
            // From the first check on, only the cloud that this file belongs to is ours.
            cloud.expect_identity(store.link()?.cloud);
        }
        let readers = Readers::open(&self.store)?;
        // The syncer never waits for a connection that the app holds.
        let own_readers = Readers::open(&StoreOptions { read_pool_max: 2, ..self.store.clone() })?;
        tell(&self.log, notices);
        Ok((store, readers, own_readers, lock))
    }

    /// The four actors as the supervisor's children, in the order in which they start.
    fn children(self, store: Store, readers: Readers) -> (Children, Supervisor) {
        let Self {
            settings,
            store: store_options,
            watcher: watcher_options,
            circuit,
            cloud,
            gate,
            timings,
            past,
            wanted,
            live,
            log,
        } = self;
        let children = Children {
            watcher: Handle::new("ProxyWatcher"),
            breaker: Handle::new("CircuitBreaker"),
            writer: Handle::new("SqliteWriter"),
            syncer: Handle::new("CloudSyncer"),
            subscribers: Subscribers::default(),
        };
        let child_log = |name: &'static str| log.new(o!("actor" => name));
        let intensity = Intensity {
            restarts_max: settings.supervisor.restarts_max,
            within: settings.supervisor.restarts_within,
        };
        let probe = cloud.clone().map(|cloud| Arc::new(cloud) as Arc<dyn Probe>);
        let left = cloud.clone();
        let leave = move |generation: &Generation| {
            if let Some(cloud) = left.clone() {
                generation.on_abandoned(move || cloud.leave_thread());
            }
        };
        let (on_watcher_left, on_syncer_left) = (leave.clone(), leave);
        let (family, watcher_log, now) = (children.clone(), child_log("ProxyWatcher"), live.clone());
        let watcher = ChildSpec::new(&children.watcher, move |generation| {
            on_watcher_left(generation);
            // Their living generations: a successor subscribes by itself.
            let breaker = family.breaker.addr().map(Addr::recipient);
            let syncer = family.syncer.addr().map(Addr::recipient);
            let subscribers = breaker.into_iter().chain(syncer).chain(family.subscribers.all()).collect();
            let mut options = watcher_options.clone();
            options.set_times(times_of(&now.get()));
            Ok(ProxyWatcher::new(options, probe.clone(), subscribers, watcher_log.clone()))
        });

        let (family, breaker_gate, breaker_log) =
            (children.clone(), gate.clone(), child_log("CircuitBreaker"));
        let breaker = ChildSpec::new(&children.breaker, move |_| {
            let subscribe = family.watcher.addr().map(Addr::recipient);
            Ok(CircuitBreaker::new(circuit, breaker_gate.clone(), subscribe, breaker_log.clone()))
        });

        let options = WriterOptions {
            queue_max: settings.sqlite.queue_max,
            group_max: settings.sqlite.group_rows_max,
            foreign_poll: settings.sync.foreign_poll,
            backlog: settings.sync.backlog,
            policies: Policies { resolver: resolver(&settings, &log), ..settings.tables.policies() },
            conflicts_max: settings.sync.local_conflicts_max,
        };
        let (syncer, writer_log, now) = (children.syncer.clone(), child_log("SqliteWriter"), live.clone());
        let same_file = readers.clone();
        let rules = Arc::new(settings.tables.rules());
        let kept = rules.clone();
        let first = Mutex::new(Some(store));
        let busy_timeout = settings.sqlite.busy_timeout;
        let writer = ChildSpec::new(&children.writer, move |generation| {
            let store = match first.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(store) => store,
                None => {
                    // Not another file, nor a new one in its place, while everybody else reads the one that was opened.
                    let opened = same_file
                        .same_file()
                        .and_then(|()| Store::open_with(&store_options, &kept))
                        .and_then(|opened| same_file.same_file().map(|()| opened));
                    let (store, notices) = opened.map_err(|error| error.to_string())?;
                    tell(&writer_log, notices);
                    store
                }
            };
            generation.on_abandoned(store.interrupt());
            let settings = now.get();
            let (backlog, policies) = (settings.sync.backlog, settings.tables.policies());
            let policies = Policies { resolver: options.policies.resolver.clone(), ..policies };
            let options = WriterOptions { backlog, policies, ..options.clone() };
            Ok(SqliteWriter::new(store, options, Box::new(syncer.clone()), writer_log.clone()))
        });

        let parts = SyncParts {
            cloud,
            gate,
            writer: children.writer.clone(),
            watcher: children.watcher.clone(),
            readers,
            rules,
            wanted,
            failed_filters: Arc::default(),
            said: Arc::default(),
            not_synced: Arc::default(),
            timings,
            past,
        };
        let options = SyncOptions {
            window_rows_max: settings.sync.window_rows_max,
            page_rows_max: settings.sync.page_rows_max,
            pace: pace_of(&settings),
            feed: FeedLimits {
                pause: settings.sync.trim_interval,
                retire_after: settings.sync.device_retire,
                entries_max: settings.sync.feed_entries_max,
                conflicts_max: settings.sync.conflicts_max,
            },
            proxy_required: settings.proxy.require,
            progress_after: settings.log.progress_after,
        };
        let syncer_log = child_log("CloudSyncer");
        let syncer = ChildSpec::new(&children.syncer, move |generation| {
            on_syncer_left(generation);
            let options = SyncOptions { pace: pace_of(&live.get()), ..options };
            Ok(CloudSyncer::new(parts.clone(), options, syncer_log.clone()))
        });
        let stuck_after = settings.supervisor.stuck_after;
        // Waiting for another process's lock is not being stuck.
        let writer_stuck_after =
            if stuck_after.is_zero() { stuck_after } else { stuck_after + 2 * busy_timeout };
        let supervisor = Supervisor::new(intensity, log)
            .child(watcher.stuck_after(stuck_after))
            .child(breaker.stuck_after(stuck_after))
            // The file is not free before the writer is done with it, however long that takes. SQLite blocks, so it has a
            // thread to itself.
            .child(writer.thread(&Thread::new()).stop_within(None).stuck_after(writer_stuck_after))
            .child(syncer.stuck_after(stuck_after));
        (children, supervisor)
    }
}
