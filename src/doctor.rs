//! `doctor`: a look at everything that a sync depends on, one line each, green or red, with the remedy.
//!
//! Parts: [`Doctor`] looks, [`Report`] is what it found; `machine.rs` has what only the operating system knows, `page.rs`
//! what people read. What the findings mean is decided in `tidewater_actors::core::doctor`.
//!
//! ```text
//! the file, read-only ─┐
//! lock, disk ──────────┤
//! control socket ──────┼─▶ Evidence ─▶ judge ─▶ [Finding] ─▶ page, or JSON
//!   └ a supervisor ─▶ its settings, one connection of its own ─▶ what PostgreSQL says
//! nobody there ─────▶ these settings, one connection ──────────▶ what PostgreSQL says
//! ```
//!
//! Nothing is changed: the file is opened so that not even the files beside it appear, the questions to PostgreSQL are asked in
//! a transaction that only reads, and no lock is taken. Every step ends after a time of its own, and what it would have told is
//! then not looked at.

mod machine;
mod page;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidewater_actors::core::availability::Listening;
use tidewater_actors::core::doctor::{
    Cloud as CloudEvidence, Dial, Disk, Evidence, File, Integrity, Limits, Lock, Obstacle, Running, Stage,
    Supervisor, judge,
};
use tidewater_actors::core::failure::FailureClass;
use tidewater_actors::core::progress::FileWork;
use tidewater_actors::endpoint::Endpoint;
use tidewater_actors::messages::StatusSummary;
use tidewater_actors::postgres::{Cloud, Questions};
use tidewater_actors::processes::running_proxies;
use tidewater_actors::sqlite::{self, Canceller, Examined, LookingNow};

pub use tidewater_actors::core::progress::Extent;

pub use tidewater_actors::core::doctor::{Check, Finding, Mark, Remedy, size};

use crate::control::{ControlClient, ControlError, Request};
use crate::database::{Database, cloud_options};
use crate::error::Error;
use crate::long_work::LOOK;
use crate::settings::Settings;

/// What a look at the file's schema, the lock or the disk may take, beyond the wait for another program's lock: a disk that
/// does not answer is found so.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What all questions to PostgreSQL together may take, beyond connecting.
const QUESTIONS_MAX: Duration = Duration::from_secs(30);

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
type Tell = Arc<dyn Fn(Step) + Send + Sync>;

/// What is being done, for who shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// PostgreSQL, or the supervisor that runs, is asked.
    Asking,
    /// A file of so many bytes is looked through, which can take minutes.
    Reading(u64),
    /// It still is, and so far it came; many times a second.
    Looking(Extent),
    /// It was looked through, or there was no more time for it.
    Looked,
}

/// Looks at everything that a sync depends on.
///
/// ```no_run
/// # fn example() -> Result<(), tidewater::settings::SettingsError> {
/// use tidewater::doctor::Doctor;
/// use tidewater::settings::Settings;
///
/// let report = Doctor::new(Settings::from_env()?).examine();
/// print!("{}", report.page(false));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Doctor {
    settings: Settings,
    clock: Clock,
    tell: Tell,
}

impl fmt::Debug for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doctor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What was found. As JSON, which `doctor --json` prints:
///
/// ```json
/// { "red": 1, "green": 19, "not_looked_at": 1,
///   "checks": [ { "check": "rights", "mark": "red",
///                 "finding": "this role may not delete note", "details": [],
///                 "remedy": { "text": "as alice:", "sql": "GRANT DELETE ON \"public\".\"note\" TO \"app\"" } } ] }
/// ```
///
/// `checks` has every check once, in the order in which they build on each other: `file`, `lock`, `integrity`, `disk_space`,
/// `supervisor`, `endpoint`, `process`, `connect`, `startup`, `login`, `identity`, `rights`, `feed`, `triggers`, `journal`,
/// `tables`, `parked`, `schema_drift`, `clock_skew`, `backlog`, `versions`. `mark` is `green`, `red` or `not_looked_at`.
/// `remedy` is null for all but the red ones; it has `shell` or `sql` where a command, or a statement for PostgreSQL, does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many are red.
    pub red: usize,
    /// How many are green.
    pub green: usize,
    /// How many could not be looked at, or had nothing to look at.
    pub not_looked_at: usize,
    /// One per check.
    pub checks: Vec<Finding>,
}

impl Report {
    /// What the evidence means.
    #[must_use]
    pub fn of(evidence: &Evidence) -> Self {
        let checks = judge(evidence);
        let count = |mark| checks.iter().filter(|finding| finding.mark == mark).count();
        Self {
            red: count(Mark::Red),
            green: count(Mark::Green),
            not_looked_at: count(Mark::NotLookedAt),
            checks,
        }
    }

    /// Whether nothing is red.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.red == 0
    }

    /// The finding of one check.
    #[must_use]
    pub fn finding(&self, check: Check) -> Option<&Finding> {
        self.checks.iter().find(|finding| finding.check == check)
    }

    /// A line per check, at most 80 columns wide, with the remedies below the red ones.
    #[must_use]
    pub fn page(&self, coloured: bool) -> String {
        page::render(self, coloured)
    }
}

/// What a supervisor answers to [`Request::Doctor`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) running: Running,
    pub(crate) cloud: CloudEvidence,
}

impl Doctor {
    /// With this machine's clock, and nobody who is told meanwhile.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, clock: Arc::new(SystemTime::now), tell: Arc::new(|_| ()) }
    }

    /// With another clock, which a test has set.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Tells what it is doing, from the thread that looks.
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(Step) + Send + Sync + 'static) -> Self {
        self.tell = Arc::new(tell);
        self
    }

    /// Looks, with the help of the supervisor that runs, if there is one. Blocks, in a program that has an async runtime:
    /// `spawn_blocking`, or [`Database::doctor`].
    #[must_use]
    pub fn examine(&self) -> Report {
        let examined = self.look_at_file();
        (self.tell)(Step::Asking);
        let (supervisor, cloud) = self.ask_supervisor();
        let cloud = cloud.unwrap_or_else(|| self.look_at_cloud(&examined));
        self.report(examined, supervisor, cloud)
    }

    fn report(&self, examined: Examined, supervisor: Supervisor, cloud: CloudEvidence) -> Report {
        let settings = &self.settings.doctor;
        let path = self.settings.sqlite.path.clone();
        let lock = within(LOOK_MAX, {
            let path = path.clone();
            move || machine::lock_holder(&path)
        });
        let disk = within(LOOK_MAX, {
            let path = path.clone();
            move || machine::disk(&path)
        });
        let integrity = match &examined.file {
            File::Opened(inside) => {
                (self.tell)(Step::Reading(inside.bytes));
                let found = self.look_through();
                (self.tell)(Step::Looked);
                found
            }
            _ => Integrity::NotLooked("there is no file to look through".into()),
        };
        let now = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        Report::of(&Evidence {
            path: path.display().to_string(),
            file: examined.file,
            lock: lock.unwrap_or(Lock::CannotSee),
            integrity,
            disk: disk.unwrap_or_else(|| Disk::CannotSee(slow(LOOK_MAX))),
            supervisor,
            cloud,
            limits: Limits {
                disk_free_bytes: settings.disk_free_bytes,
                clock_skew_s: settings.clock_skew.as_secs_f64(),
                backlog_age_s: settings.backlog_age.as_secs_f64(),
            },
            now_us: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn look_at_file(&self) -> Examined {
        let (path, busy) = (self.settings.sqlite.path.clone(), self.settings.sqlite.busy_timeout);
        let limit = LOOK_MAX + busy;
        within(limit, move || sqlite::examine(&path, busy)).unwrap_or_else(|| Examined {
            file: File::Unusable {
                reason: slow(limit),
                remedy: "look after the disk that it is on, and end programs that keep it busy".into(),
            },
            tables: vec![],
        })
    }

    fn look_through(&self) -> Integrity {
        let (path, busy) = (self.settings.sqlite.path.clone(), self.settings.sqlite.busy_timeout);
        let limit = self.settings.doctor.integrity;
        // Dropped at the end, which ends a check that takes too long.
        let (_canceller, cancel) = Canceller::new();
        let now = Arc::<LookingNow>::default();
        let looking = now.clone();
        let look = move || sqlite::check_integrity(&path, busy, &cancel, &looking);
        match within_watched(limit, look, || (self.tell)(Step::Looking(now.extent()))) {
            Some(Ok(report)) => Integrity::Looked {
                damage: report.damage.iter().map(|line| crate::cli::on_one_line(line)).collect(),
                orphans: report
                    .orphans
                    .iter()
                    .map(|it| {
                        format!("{} rows of {} refer to rows that {} has not", it.rows, it.table, it.parent)
                    })
                    .collect(),
            },
            Some(Err(error)) => Integrity::NotLooked(error.to_string()),
            None => Integrity::NotLooked(format!(
                "it was not done within {} s (doctor.integrity_s)",
                limit.as_secs_f64()
            )),
        }
    }

    /// The supervisor, and what it saw of the cloud, if it answers.
    fn ask_supervisor(&self) -> (Supervisor, Option<CloudEvidence>) {
        let socket = self.settings.sqlite.control_socket();
        let found = std::fs::symlink_metadata(&socket);
        if found.as_ref().is_ok_and(|found| !machine::is_socket(found)) {
            return (Supervisor::NotASocket(socket.display().to_string()), None);
        }
        // One that is stuck does not answer the simplest question either, and is not waited for as long as a look may take.
        let answer = ControlClient::call(&socket, &Request::Status, LOOK_MAX)
            .and_then(|_| ControlClient::call(&socket, &Request::Doctor, self.cloud_limit() + LOOK_MAX * 2));
        match answer.and_then(|answer| {
            Told::deserialize(&answer).map_err(|error| ControlError::Protocol(error.to_string()))
        }) {
            Ok(told) => (Supervisor::Runs(Box::new(told.running)), Some(told.cloud)),
            Err(ControlError::NotRunning(_) | ControlError::PathTooLong(_)) => {
                (Supervisor::NotRunning { stale_socket: found.is_ok() }, None)
            }
            Err(error @ ControlError::NotAllowed(_)) => (Supervisor::NotAllowed(error.to_string()), None),
            Err(error) => (Supervisor::Silent(crate::cli::on_one_line(&error.to_string())), None),
        }
    }

    fn cloud_limit(&self) -> Duration {
        self.settings.proxy.timeout * 3 + self.settings.password_patience() + QUESTIONS_MAX
    }

    /// The way to the cloud, with one attempt where there may be somebody, and what PostgreSQL says.
    pub(crate) fn look_at_cloud(&self, examined: &Examined) -> CloudEvidence {
        let (proxy, cloud) = (&self.settings.proxy, &self.settings.cloud);
        let endpoint = Endpoint::new(&proxy.host.to_string(), proxy.port);
        let looked = within(LOOK_MAX, move || {
            let proxies = running_proxies();
            let names = proxies.iter().map(|proxy| format!("{} (process {})", proxy.name, proxy.pid));
            (endpoint.look(), names.collect())
        });
        let (listening, proxies): (_, Vec<String>) = looked.unwrap_or((Listening::CannotSee, vec![]));
        let listening = match listening {
            Listening::Yes | Listening::Another => Some(true),
            Listening::No => Some(false),
            Listening::CannotSee => None,
        };
        let mut evidence = CloudEvidence {
            endpoint: proxy.endpoint(),
            port: proxy.port,
            listening,
            proxies,
            required: proxy.require,
            missing: cloud.missing(),
            database: cloud.database.clone().unwrap_or_default(),
            user: cloud.user.clone().unwrap_or_default(),
            dial: None,
        };
        if let (Some(options), Some(true) | None) = (cloud_options(&self.settings), listening) {
            let questions = Questions {
                tables: examined.tables.clone(),
                device: examined.device().map(str::to_owned),
                retire_after: self.settings.sync.device_retire,
            };
            let (clock, limit) = (self.clock.clone(), self.cloud_limit());
            let dial = within(limit, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
                let dial = runtime.block_on(Cloud::examine(options, &questions, &*clock));
                // A resolver that hangs has a thread that nobody waits for.
                runtime.shutdown_background();
                Some(dial)
            });
            evidence.dial = dial.unwrap_or_else(|| {
                Some(Dial::Failed(Obstacle {
                    stage: Stage::Startup,
                    class: FailureClass::NotAnswering,
                    sqlstate: None,
                    detail: slow(limit),
                    remedy: None,
                }))
            });
        }
        evidence
    }
}

impl Database {
    /// What [`Doctor::examine`] finds, with what this process knows of itself. Looks through the whole file, on blocking
    /// threads; nothing is changed, and PostgreSQL is called once, on a connection of its own.
    ///
    /// # Errors
    /// [`Error::Thread`] when the runtime is being shut down.
    ///
    /// # Panics
    /// Outside of a tokio or actix runtime.
    pub async fn doctor(&self) -> Result<Report, Error> {
        let running = Running::of(&self.status_summary().await);
        let work = self.long_work(FileWork::Check);
        let doctor = Doctor::new(self.settings_now()).telling(move |step| match step {
            Step::Looking(extent) => work.see(extent),
            Step::Looked => work.end::<Error>(Ok(None)),
            Step::Asking | Step::Reading(_) => {}
        });
        blocking(move || {
            let examined = doctor.look_at_file();
            let cloud = doctor.look_at_cloud(&examined);
            doctor.report(examined, Supervisor::Runs(Box::new(running)), cloud)
        })
        .await
    }

    /// What only this process knows, for a `doctor` in another one.
    pub(crate) async fn tell_doctor(&self) -> Result<Told, Error> {
        let running = Running::of(&self.status_summary().await);
        let doctor = Doctor::new(self.settings_now());
        blocking(move || Told { running, cloud: doctor.look_at_cloud(&doctor.look_at_file()) }).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|ended| Error::Thread(ended.to_string()))
}

trait OfStatus {
    fn of(status: &StatusSummary) -> Self;
}

impl OfStatus for Running {
    fn of(status: &StatusSummary) -> Self {
        let away = status.actors.iter().filter(|actor| actor.state != "running");
        let away = away.map(|actor| format!("{} is {}", actor.name, actor.state));
        let held = status.circuit.reason.as_deref() == Some("forced");
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            actors: status.actors.len(),
            unwell: status.sqlite.problem.clone().into_iter().chain(away).collect(),
            proxy: status.proxy.status.to_string(),
            proxy_detail: status.proxy.detail.clone(),
            waits: status.proxy.paused || status.proxy.consecutive_failures > 0,
            circuit_held: held.then(|| status.circuit.state.clone()),
            sync: status.sync.state.clone(),
            sync_detail: status.sync.detail.clone(),
        }
    }
}

/// Does it on a thread of its own, and goes on without it after a while: what hangs in the operating system cannot be ended.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    within_watched(limit, work, || ())
}

/// The same; while it works, somebody watches.
fn within_watched<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    watch: impl Fn(),
) -> Option<T> {
    let (done, answer) = channel();
    let thread = std::thread::Builder::new().name("doctor".into()).spawn(move || {
        // Nobody may wait any more.
        let _ = done.send(work());
    });
    thread.ok()?;
    let began = Instant::now();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        match answer.recv_timeout(left.min(LOOK)) {
            Err(RecvTimeoutError::Timeout) if left > LOOK => watch(),
            answer => return answer.ok(),
        }
    }
}

fn slow(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f64())
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
