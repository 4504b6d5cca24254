//! What `doctor` makes of what it sees: one finding per check, in a fixed order, and the remedy of each red one.
//!
//! ```text
//! Evidence { the file, the lock, the disk, the supervisor, the cloud } ─▶ judge ─▶ [Finding; one per Check]
//! ```
//!
//! The order is that of the evidence: the file and what can be known without opening it, then the way to the cloud rung by
//! rung, then what both sides hold. What an earlier finding makes impossible is *not looked at*, which is neither green nor
//! red: it says which finding to mend first.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::failure::FailureClass;

/// The highest `schema_version` in the cloud that this version knows, and the one that it brings a cloud to.
pub const PROTOCOL: i64 = 3;

/// The highest format of the file that this version knows.
pub const FORMAT: i64 = 1;

/// What is looked at, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// It is there, and it is a SQLite database.
    File,
    /// Nobody holds it who should not.
    Lock,
    /// It is whole.
    Integrity,
    /// There is room for it to grow.
    DiskSpace,
    /// The process that keeps it works.
    Supervisor,
    /// Something listens where the proxy should.
    Endpoint,
    /// A proxy's process runs.
    Process,
    /// A connection is taken.
    Connect,
    /// PostgreSQL answers on it.
    Startup,
    /// It lets this role in.
    Login,
    /// It is the cloud that this file belongs to.
    Identity,
    /// This role may do what a sync needs.
    Rights,
    /// The cloud's triggers that fill the change feed are there.
    Feed,
    /// The file's triggers that fill the journal are there.
    Triggers,
    /// The journal makes sense.
    Journal,
    /// Which tables are synced, and which are not.
    Tables,
    /// No row is refused by the cloud.
    Parked,
    /// Both sides have the same columns.
    SchemaDrift,
    /// Both sides have the same time.
    ClockSkew,
    /// What waits does not wait for long.
    Backlog,
    /// All devices run the same version, and speak the same protocol.
    Versions,
}

impl Check {
    /// Every one, in order.
    pub const ALL: [Self; 21] = [
        Self::File,
        Self::Lock,
        Self::Integrity,
        Self::DiskSpace,
        Self::Supervisor,
        Self::Endpoint,
        Self::Process,
        Self::Connect,
        Self::Startup,
        Self::Login,
        Self::Identity,
        Self::Rights,
        Self::Feed,
        Self::Triggers,
        Self::Journal,
        Self::Tables,
        Self::Parked,
        Self::SchemaDrift,
        Self::ClockSkew,
        Self::Backlog,
        Self::Versions,
    ];

    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Lock => "lock",
            Self::Integrity => "integrity",
            Self::DiskSpace => "disk space",
            Self::Supervisor => "supervisor",
            Self::Endpoint => "endpoint",
            Self::Process => "process",
            Self::Connect => "connect",
            Self::Startup => "startup",
            Self::Login => "login",
            Self::Identity => "identity",
            Self::Rights => "rights",
            Self::Feed => "feed",
            Self::Triggers => "triggers",
            Self::Journal => "journal",
            Self::Tables => "tables",
            Self::Parked => "parked",
            Self::SchemaDrift => "schema drift",
            Self::ClockSkew => "clock skew",
            Self::Backlog => "backlog",
            Self::Versions => "versions",
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// As it should be.
    Green,
    /// Not as it should be; there is a remedy.
    Red,
    /// Something else stands before it, or there is nothing to look at.
    NotLookedAt,
}

/// What a person can do about a red finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    /// In words; before a command or SQL, who runs it.
    pub text: String,
    /// A command for a shell on this machine that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Statements for PostgreSQL that do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
}

impl Remedy {
    fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), shell: None, sql: None }
    }

    fn shell(text: impl Into<String>, command: impl Into<String>) -> Self {
        Self { shell: Some(command.into()), ..Self::words(text) }
    }

    fn sql(text: impl Into<String>, statements: impl Into<String>) -> Self {
        Self { sql: Some(statements.into()), ..Self::words(text) }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub check: Check,
    /// How it ended.
    pub mark: Mark,
    /// What was found, on one line.
    pub finding: String,
    /// More of it, a line each.
    pub details: Vec<String>,
    /// For the red ones.
    pub remedy: Option<Remedy>,
}

/// What to do about a copy of the cloud.
fn adopt_copy(path: &str) -> Remedy {
    Remedy::shell(
        "point the proxy at the original; or, if this copy has taken its place, with the supervisor running:",
        format!("run_supervisor adopt --yes --database {}", quoted(path)),
    )
}

impl Finding {
    fn green(check: Check, finding: impl Into<String>) -> Self {
        Self { check, mark: Mark::Green, finding: finding.into(), details: vec![], remedy: None }
    }

    fn red(check: Check, finding: impl Into<String>, remedy: Remedy) -> Self {
        Self { check, mark: Mark::Red, finding: finding.into(), details: vec![], remedy: Some(remedy) }
    }

    fn unseen(check: Check, why: impl Into<String>) -> Self {
        let finding = format!("not looked at: {}", why.into());
        Self { check, mark: Mark::NotLookedAt, finding, details: vec![], remedy: None }
    }

    fn with_details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }
}

// ---------------------------------------------------------------------------------------------------------
// What was seen
// ---------------------------------------------------------------------------------------------------------

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The SQLite file.
    pub path: String,
    /// What is there.
    pub file: File,
    /// Who holds it.
    pub lock: Lock,
    /// Whether it is whole.
    pub integrity: Integrity,
    /// The disk that it is on.
    pub disk: Disk,
    /// The process that keeps it.
    pub supervisor: Supervisor,
    /// The other side.
    pub cloud: Cloud,
    /// From where on something is red.
    pub limits: Limits,
    /// The time here, in microseconds since 1970.
    pub now_us: i64,
    /// The version of this program.
    pub version: String,
}

/// From where on something is red.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Less free space than this, in bytes.
    pub disk_free_bytes: u64,
    /// Clocks that are further apart than this, in seconds.
    pub clock_skew_s: f64,
    /// A row that has waited longer than this, in seconds.
    pub backlog_age_s: f64,
}

/// What is there under the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// Nothing.
    Missing,
    /// Something that cannot be used.
    Unusable {
        /// Why not.
        reason: String,
        /// What helps.
        remedy: String,
    },
    /// A SQLite database.
    Opened(Box<Inside>),
}

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inside {
    /// Its size.
    pub bytes: u64,
    /// The size of the log beside it.
    pub log_bytes: u64,
    /// That others can read it, in words.
    pub open_to_others: Option<String>,
    /// Tidewater's part of it; none where Tidewater has never opened the file, or where that part cannot be read.
    pub ours: Option<Ours>,
    /// Why that part cannot be read.
    pub unreadable: Option<String>,
}

/// Tidewater's part of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ours {
    /// The format of that part.
    pub format: i64,
    /// The tables that are synced.
    pub tracked: Vec<String>,
    /// Those that the next start begins to sync.
    pub new: Vec<String>,
    /// Those that stay local, and why.
    pub local: Vec<(String, String)>,
    /// What is wrong with the capture triggers, a table each.
    pub triggers: Vec<String>,
    /// What does not make sense in the journal.
    pub journal: Vec<String>,
    /// Rows that wait.
    pub pending: u64,
    /// Those of them that are under way.
    pub in_flight: u64,
    /// Rows that the cloud refuses.
    pub parked: u64,
    /// When the row that has waited longest was written, in microseconds since 1970.
    pub oldest_us: Option<i64>,
    /// The cloud that the file belongs to.
    pub cloud: Option<String>,
    /// The server that it was on.
    pub system: Option<String>,
    /// The database's number there.
    pub database: Option<String>,
    /// The name of this device in the cloud's ledger.
    pub device: Option<String>,
}

/// Who holds the lock beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Free,
    /// This process, by its number and name.
    Held {
        /// Its number.
        pid: u32,
        /// Its name, where that can be seen.
        name: Option<String>,
    },
    /// It cannot be seen here.
    CannotSee,
}

/// What a look through the whole file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Integrity {
    /// What is damaged, in SQLite's words, and rows without the rows that they refer to.
    Looked {
        /// Damage.
        damage: Vec<String>,
        /// Rows without their parents, a sentence each.
        orphans: Vec<String>,
    },
    /// It was not looked through, and why.
    NotLooked(String),
}

/// The disk that the file is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// As the system says.
    Seen {
        /// What this user may still use.
        free_bytes: u64,
        /// Whether it can be written at all.
        read_only: bool,
    },
    /// Why the system does not say.
    CannotSee(String),
}

/// The process that keeps the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supervisor {
    /// None runs.
    NotRunning {
        /// A control socket of one that ended without removing it.
        stale_socket: bool,
    },
    /// Something else has the name of its socket.
    NotASocket(String),
    /// It listens and does not answer as it should.
    Silent(String),
    /// It belongs to another user, who alone may ask it.
    NotAllowed(String),
    /// It answers.
    Runs(Box<Running>),
}

/// What the process that runs says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Running {
    /// Its version.
    pub version: String,
    /// How many actors it has.
    pub actors: usize,
    /// Those that are not well, and what else keeps it from working, a sentence each.
    pub unwell: Vec<String>,
    /// `available`, `unavailable` or `unknown`.
    pub proxy: String,
    /// Why.
    pub proxy_detail: String,
    /// Whether its checks are paused, or it waits for the next one.
    pub waits: bool,
    /// How the circuit is held, if somebody holds it.
    pub circuit_held: Option<String>,
    /// `offline`, `blocked`, `warming`, `flushing` or `idle`.
    pub sync: String,
    /// Why.
    pub sync_detail: Option<String>,
}

/// What was seen of the cloud.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// Where the proxy should listen.
    pub endpoint: String,
    /// The port of it.
    pub port: u16,
    /// Whether something listens; `None` where that cannot be seen.
    pub listening: Option<bool>,
    /// The proxies that run on this machine.
    pub proxies: Vec<String>,
    /// Whether its absence is a fault by the settings.
    pub required: bool,
    /// What is not set that a log-in needs, as a sentence.
    pub missing: Option<String>,
    /// The database by its name.
    pub database: String,
    /// The role.
    pub user: String,
    /// What came of one attempt; none where there was none.
    pub dial: Option<Dial>,
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dial {
    /// Nobody let this role in.
    Failed(Obstacle),
    /// PostgreSQL did, and this is what it says.
    Answered(Box<Answers>),
}

/// How far the attempt came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There was no connection.
    Connect,
    /// There was no answer of PostgreSQL's on it.
    Startup,
    /// There was, and it was a refusal.
    Login,
}

/// What stood in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// Of which stage.
    pub stage: Stage,
    /// What the failure asks for.
    pub class: FailureClass,
    /// PostgreSQL's code.
    pub sqlstate: Option<String>,
    /// What happened.
    pub detail: String,
    /// What helps, where the failure itself says so.
    pub remedy: Option<String>,
}

/// What PostgreSQL says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Its version.
    pub server: String,
    /// Whether a connection pooler lends its servers by the transaction.
    #[serde(default)]
    pub pooler: bool,
    /// The mark, if there is one that this role may read.
    pub identity: Option<String>,
    /// The server's own number.
    pub system: Option<String>,
    /// The database's number on it.
    #[serde(default)]
    pub database: Option<String>,
    /// The version of Tidewater's part of the cloud.
    pub protocol: Option<i64>,
    /// How many devices are registered.
    pub devices: Option<u64>,
    /// Which versions the others run that were seen lately; none where the ledger does not say.
    #[serde(default)]
    pub versions: Option<Vec<Others>>,
    /// The server's time less this machine's, in seconds.
    pub clock_ahead_s: f64,
    /// How far that can be off: half of what the question took.
    pub clock_within_s: f64,
    /// What this role may not do.
    pub rights: Vec<Lack>,
    /// The tracked tables, as they are there.
    pub tables: Vec<CloudSide>,
    /// A question that was not answered.
    pub unanswered: Option<String>,
}

/// Other devices that run the same version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Others {
    /// Which; none where they do not say.
    pub version: Option<String>,
    /// How many.
    pub devices: u64,
    /// Some of them, by their names in the ledger.
    pub some: Vec<String>,
}

/// Something that is missing, and the SQL that helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What is missing.
    pub what: String,
    /// Who runs the SQL, or what else helps.
    pub who: String,
    /// The SQL.
    pub sql: Option<String>,
}

/// One tracked table in the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloudSide {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub there: bool,
    /// Whether the feed covers it.
    pub feed: bool,
    /// Whether this role may install the feed.
    pub may_install: bool,
    /// The SQL that lets it.
    pub let_install: String,
    /// How its columns differ.
    pub drift: Vec<Lack>,
}

// ---------------------------------------------------------------------------------------------------------
// What it means
// ---------------------------------------------------------------------------------------------------------

/// One finding per check, in the order of [`Check::ALL`].
#[must_use]
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    Check::ALL.into_iter().map(|check| evidence.judge(check)).collect()
}

impl Evidence {
    fn judge(&self, check: Check) -> Finding {
        match check {
            Check::File => self.file(),
            Check::Lock => self.lock(),
            Check::Integrity => self.integrity(),
            Check::DiskSpace => self.disk_space(),
            Check::Supervisor => self.supervisor(),
            Check::Endpoint => self.endpoint(),
            Check::Process => self.process(),
            Check::Connect | Check::Startup | Check::Login => self.rung(check),
            Check::Identity => self.identity(),
            Check::Rights => self.rights(),
            Check::Feed => self.feed(),
            Check::Triggers => self.triggers(),
            Check::Journal => self.journal(),
            Check::Tables => self.tables(),
            Check::Parked => self.parked(),
            Check::SchemaDrift => self.schema_drift(),
            Check::ClockSkew => self.clock_skew(),
            Check::Backlog => self.backlog(),
            Check::Versions => self.versions(),
        }
    }

    fn runs(&self) -> Option<&Running> {
        match &self.supervisor {
            Supervisor::Runs(running) => Some(running),
            _ => None,
        }
    }

    /// Something that a supervisor mends by itself.
    fn mended_by_supervisor(&self, what: &str) -> Remedy {
        match self.runs() {
            Some(_) => {
                Remedy::shell(format!("the supervisor {what} when it looks again:"), "run_supervisor reset")
            }
            None => Remedy::words(format!("start run_supervisor: it {what}")),
        }
    }

    fn file(&self) -> Finding {
        let path = &self.path;
        match &self.file {
            File::Missing => Finding::red(
                Check::File,
                format!("{path} is not there"),
                Remedy::words(
                    "start run_supervisor, which creates it, or name another file with TIDEWATER_DATABASE",
                ),
            ),
            File::Unusable { reason, remedy } => {
                Finding::red(Check::File, format!("{path}: {reason}"), Remedy::words(remedy.as_str()))
            }
            File::Opened(inside) => {
                let log = match inside.log_bytes {
                    0 => String::new(),
                    bytes => format!(", {} in its log", size(bytes)),
                };
                Finding::green(Check::File, format!("{path}, {}{log}", size(inside.bytes)))
                    .with_details(inside.open_to_others.clone())
            }
        }
    }

    fn lock(&self) -> Finding {
        match (&self.lock, &self.supervisor) {
            (Lock::Held { pid, .. }, Supervisor::Runs(_)) => {
                Finding::green(Check::Lock, format!("held by the supervisor that runs, process {pid}"))
            }
            // Which is red itself.
            (Lock::Held { pid, .. }, Supervisor::Silent(_)) => Finding::green(
                Check::Lock,
                format!("held by process {pid}, the supervisor that does not answer"),
            ),
            (Lock::Held { pid, .. }, Supervisor::NotAllowed(_)) => {
                Finding::green(Check::Lock, format!("held by process {pid}, another user's supervisor"))
            }
            (Lock::Held { pid, name }, _) => {
                let name = name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
                Finding::red(
                    Check::Lock,
                    format!("process {pid}{name} holds it and answers no verb"),
                    Remedy::shell("let that program end in good order:", format!("kill {pid}")),
                )
            }
            // One in another container holds it unseen.
            (Lock::Free | Lock::CannotSee, Supervisor::Runs(_)) => {
                Finding::green(Check::Lock, "held by the supervisor that runs")
            }
            (Lock::Free, _) => Finding::green(Check::Lock, "free"),
            (Lock::CannotSee, _) => {
                Finding::unseen(Check::Lock, "this system does not tell who holds a lock")
            }
        }
    }

    /// Why nothing in the file can be looked at.
    fn closed(&self) -> Option<String> {
        match &self.file {
            File::Missing => Some("there is no file".into()),
            File::Unusable { .. } => Some("the file cannot be read".into()),
            File::Opened(_) => None,
        }
    }

    fn inside(&self) -> Result<&Inside, String> {
        match &self.file {
            File::Opened(inside) => Ok(inside),
            _ => Err(self.closed().unwrap_or_default()),
        }
    }

    fn ours(&self) -> Result<&Ours, String> {
        let inside = self.inside()?;
        match (&inside.ours, &inside.unreadable) {
            (Some(ours), _) => Ok(ours),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Err("Tidewater has not used this file yet".into()),
        }
    }

    fn integrity(&self) -> Finding {
        if let Some(why) = self.closed() {
            return Finding::unseen(Check::Integrity, why);
        }
        match &self.integrity {
            Integrity::NotLooked(why) => Finding::unseen(Check::Integrity, why.as_str()),
            Integrity::Looked { damage, orphans } if damage.is_empty() && orphans.is_empty() => {
                Finding::green(Check::Integrity, "the file is whole, and every reference has its row")
            }
            Integrity::Looked { damage, orphans } if damage.is_empty() => Finding::red(
                Check::Integrity,
                format!(
                    "rows refer to rows that are not there, in {}",
                    count(orphans.len(), "place", "places")
                ),
                Remedy::shell(
                    "add the rows that they refer to, or delete them; this lists them:",
                    format!("sqlite3 {} 'PRAGMA foreign_key_check'", quoted(&self.path)),
                ),
            )
            .with_details(some(orphans)),
            Integrity::Looked { damage, .. } => {
                let remedy = Remedy::shell(
                    "end every program that has it open, and restore a backup; or save what can be read, which is then \
                     compared with the cloud:",
                    self.salvage(),
                );
                Finding::red(
                    Check::Integrity,
                    format!("the file is damaged, in {}", count(damage.len(), "place", "places")),
                    remedy,
                )
                .with_details(some(damage))
            }
        }
    }

    /// What can be read goes into a new file. Not with the shell's `.recover`: that of Debian lacks what it needs, and answers
    /// with an empty database. Without the capture triggers, so that the supervisor finds a gap and looks in the cloud for
    /// what could not be read. No log may be left that would be taken for the new file's.
    fn salvage(&self) -> String {
        format!(
            "f={}; sqlite3 \"$f\" .dump | sed 's/^ROLLBACK; -- due to errors$/COMMIT;/' | sqlite3 \"$f.saved\" && \
             sqlite3 \"$f.saved\" \"PRAGMA writable_schema = 1; DELETE FROM sqlite_schema WHERE type = 'trigger' AND \
             name GLOB '_tidewater_*'\" && test -s \"$f.saved\" && chmod 600 \"$f.saved\" && \
             mv \"$f\" \"$f.damaged\" && rm -f \"$f-wal\" \"$f-shm\" && mv \"$f.saved\" \"$f\"",
            quoted(&self.path)
        )
    }

    fn disk_space(&self) -> Finding {
        match &self.disk {
            Disk::CannotSee(why) => Finding::unseen(Check::DiskSpace, why.as_str()),
            Disk::Seen { read_only: true, .. } => Finding::red(
                Check::DiskSpace,
                "the disk is read-only",
                Remedy::words("make it writable again, or name a file elsewhere with TIDEWATER_DATABASE"),
            ),
            Disk::Seen { free_bytes, .. } if *free_bytes < self.limits.disk_free_bytes => Finding::red(
                Check::DiskSpace,
                format!("{} free, less than {}", size(*free_bytes), size(self.limits.disk_free_bytes)),
                Remedy::words("free some space on this disk; doctor.disk_free_mib says how much is enough"),
            ),
            Disk::Seen { free_bytes, .. } => {
                Finding::green(Check::DiskSpace, format!("{} free", size(*free_bytes)))
            }
        }
    }

    fn supervisor(&self) -> Finding {
        let check = Check::Supervisor;
        let running = match &self.supervisor {
            Supervisor::NotRunning { stale_socket: false } => return Finding::green(check, "none runs"),
            Supervisor::NotRunning { stale_socket: true } => {
                return Finding::green(
                    check,
                    "none runs; the next one replaces the socket that one left behind",
                );
            }
            Supervisor::NotASocket(path) => {
                let away = format!("mv {} {}", quoted(path), quoted(&format!("{path}.away")));
                return Finding::red(
                    check,
                    format!("{path} is not a socket, so that no verb reaches one"),
                    Remedy::shell("move it out of the way:", away),
                );
            }
            Supervisor::Silent(why) => {
                let remedy = match &self.lock {
                    Lock::Held { pid, .. } => {
                        Remedy::shell("end it and start it again:", format!("kill {pid}"))
                    }
                    _ => Remedy::words("end it and start it again"),
                };
                return Finding::red(check, why.as_str(), remedy);
            }
            Supervisor::NotAllowed(why) => {
                let remedy = Remedy::words("run doctor as the user that the supervisor runs as");
                return Finding::red(check, why.as_str(), remedy);
            }
            Supervisor::Runs(running) => running,
        };
        if let Some(first) = running.unwell.first() {
            return Finding::red(
                check,
                first.as_str(),
                Remedy::words("its log says why; if it does not come back by itself, restart run_supervisor"),
            )
            .with_details(running.unwell.iter().skip(1).cloned());
        }
        if let Some(held) = &running.circuit_held {
            return Finding::red(
                check,
                format!("the circuit is held {held}"),
                Remedy::shell("let it decide by itself again:", "run_supervisor circuit auto"),
            );
        }
        let answered = matches!(self.cloud.dial, Some(Dial::Answered(_)));
        if running.proxy != "available" && answered && running.waits {
            return Finding::red(
                check,
                format!("it waits, though the cloud answers: {}", running.proxy_detail),
                Remedy::shell("let it check at once:", "run_supervisor reset"),
            );
        }
        if running.sync == "blocked" && answered {
            let why = running.sync_detail.as_deref().unwrap_or("its log says why");
            return Finding::red(
                check,
                format!("the sync is blocked: {why}"),
                Remedy::shell("mend what is red below, then let it check at once:", "run_supervisor reset"),
            );
        }
        Finding::green(
            check,
            format!(
                "{}, proxy {}, sync {}",
                count(running.actors, "actor runs", "actors run"),
                running.proxy,
                running.sync
            ),
        )
    }

    // -----------------------------------------------------------------------------------------------------
    // The way to the cloud
    // -----------------------------------------------------------------------------------------------------

    fn start_proxy(&self) -> Remedy {
        let port = self.cloud.port;
        Remedy::words(format!(
            "start the Cloud SQL Auth Proxy (cloud-sql-proxy --port {port} PROJECT:REGION:INSTANCE), or set \
             CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT to where it listens"
        ))
    }

    fn endpoint(&self) -> Finding {
        let at = &self.cloud.endpoint;
        match self.cloud.listening {
            Some(true) => Finding::green(Check::Endpoint, format!("something listens on {at}")),
            None => Finding::green(Check::Endpoint, format!("{at}, which cannot be seen from here")),
            Some(false) if self.cloud.missing.is_some() && !self.cloud.required => {
                Finding::unseen(Check::Endpoint, "nothing listens there, and no cloud is set")
            }
            Some(false) => {
                Finding::red(Check::Endpoint, format!("nothing listens on {at}"), self.start_proxy())
            }
        }
    }

    fn process(&self) -> Finding {
        let cloud = &self.cloud;
        let running = cloud.proxies.join(", ");
        match (cloud.proxies.is_empty(), cloud.listening) {
            (false, Some(false)) if cloud.missing.is_none() => Finding::red(
                Check::Process,
                format!("{running} runs, and does not listen on {}", cloud.endpoint),
                Remedy::words(format!(
                    "give it --port {}, or set CLOUD_SQL_PROXY_PORT to the port that it has",
                    cloud.port
                )),
            ),
            (false, _) => Finding::green(Check::Process, format!("{running} runs")),
            (true, Some(false)) => Finding::unseen(Check::Process, "no Cloud SQL Auth Proxy runs here"),
            (true, _) => Finding::green(
                Check::Process,
                "no Cloud SQL Auth Proxy runs here; what listens is something else",
            ),
        }
    }

    /// Why there was no attempt.
    fn not_dialled(&self) -> String {
        match (&self.cloud.missing, self.cloud.listening) {
            (_, Some(false)) => "nothing listens".into(),
            (Some(_), _) => "there is nothing to log in with".into(),
            (None, _) => "nobody was called".into(),
        }
    }

    fn rung(&self, check: Check) -> Finding {
        let this = match check {
            Check::Connect => Stage::Connect,
            Check::Startup => Stage::Startup,
            _ => Stage::Login,
        };
        match &self.cloud.dial {
            None => match &self.cloud.missing {
                Some(missing) if this == Stage::Login && self.cloud.listening != Some(false) => {
                    Finding::red(check, "there is nothing to log in with", Remedy::words(missing.as_str()))
                }
                _ => Finding::unseen(check, self.not_dialled()),
            },
            Some(Dial::Failed(obstacle)) if obstacle.stage < this => {
                let before = if obstacle.stage == Stage::Connect { Check::Connect } else { Check::Startup };
                Finding::unseen(check, format!("see {}", before.name()))
            }
            Some(Dial::Failed(obstacle)) if obstacle.stage == this => {
                Finding::red(check, obstacle.detail.as_str(), self.past(obstacle))
            }
            Some(Dial::Failed(_)) => Finding::green(check, passed(this)),
            Some(Dial::Answered(answers)) => Finding::green(
                check,
                match this {
                    Stage::Startup => {
                        let pooler = if answers.pooler { ", through a connection pooler" } else { "" };
                        format!("PostgreSQL {} answers{pooler}", answers.server)
                    }
                    Stage::Login => format!("role {}, database {}", self.cloud.user, self.cloud.database),
                    Stage::Connect => passed(this).into(),
                },
            ),
        }
    }

    /// How to get past what stands in the way.
    fn past(&self, obstacle: &Obstacle) -> Remedy {
        let (user, database) = (ident(&self.cloud.user), ident(&self.cloud.database));
        let text = obstacle.remedy.as_deref();
        match (obstacle.sqlstate.as_deref(), text) {
            (Some("3D000"), _) => Remedy::sql(
                "check CLOUD_SQL_DATABASE; or, as an administrator:",
                format!("CREATE DATABASE {database} OWNER {user}"),
            ),
            (Some("28000"), text) if !text.is_some_and(|text| text.contains("pg_hba.conf")) => Remedy::sql(
                "check CLOUD_SQL_USER; or, as an administrator:",
                format!("ALTER ROLE {user} LOGIN"),
            ),
            (Some("42501"), _) => Remedy::sql(
                "as the owner of the database:",
                format!("GRANT CONNECT, CREATE ON DATABASE {database} TO {user}"),
            ),
            (Some("53300"), _) => {
                Remedy::words("end connections that nobody needs, or raise max_connections")
            }
            (_, Some(text)) => Remedy::words(text),
            (_, None) => match obstacle.class {
                FailureClass::NotRunning => self.start_proxy(),
                FailureClass::NotAnswering => Remedy::words(
                    "the log of the Cloud SQL Auth Proxy says why: is the instance running, is its name right, and has \
                     the proxy's account the role Cloud SQL Client?",
                ),
                FailureClass::Busy => Remedy::words("wait until the server has started, and ask again"),
                _ => Remedy::words("ask again; if it stays so, the server's log says more"),
            },
        }
    }

    fn answers(&self) -> Result<&Answers, String> {
        match &self.cloud.dial {
            Some(Dial::Answered(answers)) => Ok(answers),
            Some(Dial::Failed(obstacle)) => Err(match obstacle.stage {
                Stage::Connect => "see connect".into(),
                Stage::Startup => "see startup".into(),
                Stage::Login => "see login".into(),
            }),
            None => Err(self.not_dialled()),
        }
    }

    /// The answers of the cloud that this file belongs to.
    fn own_answers(&self) -> Result<&Answers, String> {
        let answers = self.answers()?;
        match self.stranger(answers) {
            Some(_) => Err("see identity".into()),
            None => Ok(answers),
        }
    }

    /// What is wrong with who answers.
    fn stranger(&self, answers: &Answers) -> Option<(String, Remedy)> {
        let ours = self.ours().ok()?;
        let expected = ours.cloud.as_ref()?;
        let elsewhere = "point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one \
                         shall take its place, with the supervisor running: run_supervisor adopt";
        match &answers.identity {
            Some(found) if found != expected => Some((
                format!("this file belongs to cloud {}, and this is {}", short(expected), short(found)),
                Remedy::words(elsewhere),
            )),
            // What this role may not read is a matter of its rights.
            None if answers.rights.is_empty() => Some((
                format!("this file belongs to cloud {}, and this one has no mark", short(expected)),
                Remedy::words(elsewhere),
            )),
            _ => match (&ours.system, &answers.system) {
                (Some(known), Some(found)) if known != found => Some((
                    format!("a copy of this file's cloud answers: server {found}, not {known}"),
                    adopt_copy(&self.path),
                )),
                _ => match (&ours.database, &answers.database) {
                    (Some(known), Some(found)) if known != found => Some((
                        format!(
                            "a copy of this file's cloud answers: database {found} of its server, not {known}"
                        ),
                        adopt_copy(&self.path),
                    )),
                    _ => None,
                },
            },
        }
    }

    fn identity(&self) -> Finding {
        let answers = match self.answers() {
            Ok(answers) => answers,
            Err(why) => return Finding::unseen(Check::Identity, why),
        };
        if let Some((what, remedy)) = self.stranger(answers) {
            return Finding::red(Check::Identity, what, remedy);
        }
        let belongs = self.ours().ok().and_then(|ours| ours.cloud.as_ref()).is_some();
        Finding::green(
            Check::Identity,
            match (&answers.identity, belongs) {
                (Some(id), true) => format!("cloud {}, to which this file belongs", short(id)),
                (Some(id), false) => {
                    format!("cloud {}, which this file joins with its first sync", short(id))
                }
                (None, _) => "not marked yet; the first sync does that".to_owned(),
            },
        )
    }

    fn rights(&self) -> Finding {
        let answers = match self.own_answers() {
            Ok(answers) => answers,
            Err(why) => return Finding::unseen(Check::Rights, why),
        };
        if let (Some(why), true) = (&answers.unanswered, answers.rights.is_empty()) {
            return Finding::unseen(Check::Rights, why.as_str());
        }
        lacking(Check::Rights, &answers.rights)
            .unwrap_or_else(|| Finding::green(Check::Rights, "this role may do all that a sync needs"))
    }

    fn feed(&self) -> Finding {
        let tables = match self.cloud_tables() {
            Ok(tables) => tables,
            Err(why) => return Finding::unseen(Check::Feed, why),
        };
        let there = tables.iter().filter(|table| table.there).count();
        if there == 0 {
            return Finding::unseen(Check::Feed, "no table is in the cloud yet");
        }
        let bare: Vec<_> = tables.iter().filter(|table| table.there && !table.feed).collect();
        let Some(first) = bare.first() else {
            return Finding::green(Check::Feed, format!("{} in it", count(there, "table", "tables")));
        };
        let names = names(bare.iter().map(|table| table.name.as_str()));
        let remedy = match bare.iter().find(|table| !table.may_install) {
            Some(table) => {
                Remedy::sql("this role may not install them; as the owner:", table.let_install.as_str())
            }
            None => self.mended_by_supervisor(&format!(
                "installs them, and compares {} with the cloud",
                if bare.len() == 1 { first.name.as_str() } else { "the tables" }
            )),
        };
        Finding::red(Check::Feed, format!("its triggers are missing or disabled: {names}"), remedy)
    }

    fn cloud_tables(&self) -> Result<&[CloudSide], String> {
        let answers = self.own_answers()?;
        self.ours()?;
        match &answers.unanswered {
            Some(why) => Err(why.clone()),
            None => Ok(&answers.tables),
        }
    }

    // -----------------------------------------------------------------------------------------------------
    // What both sides hold
    // -----------------------------------------------------------------------------------------------------

    fn triggers(&self) -> Finding {
        let ours = match self.ours() {
            Ok(ours) => ours,
            Err(why) => return Finding::unseen(Check::Triggers, why),
        };
        match ours.triggers.first() {
            None => Finding::green(
                Check::Triggers,
                format!("{} with all of them", count(ours.tracked.len(), "table", "tables")),
            ),
            Some(first) => Finding::red(
                Check::Triggers,
                first.as_str(),
                self.mended_by_supervisor(
                    "makes them anew, and compares the table with the cloud row by row",
                ),
            )
            .with_details(ours.triggers.iter().skip(1).cloned()),
        }
    }

    fn journal(&self) -> Finding {
        let ours = match self.ours() {
            Ok(ours) => ours,
            Err(why) => return Finding::unseen(Check::Journal, why),
        };
        match ours.journal.first() {
            None => {
                let flight = match ours.in_flight {
                    0 => String::new(),
                    rows => format!(", {rows} of them under way"),
                };
                Finding::green(Check::Journal, format!("{} waiting{flight}", count(ours.pending, "row", "rows")))
            }
            Some(first) => Finding::red(
                Check::Journal,
                first.as_str(),
                Remedy::words(
                    "this comes from a program that writes Tidewater's own tables, or from a fault in Tidewater: restore a \
                     backup, and report it with a copy of this file",
                ),
            )
            .with_details(ours.journal.iter().skip(1).cloned()),
        }
    }

    fn tables(&self) -> Finding {
        let ours = match self.ours() {
            Ok(ours) => ours,
            Err(why) => return Finding::unseen(Check::Tables, why),
        };
        let mut parts = vec![format!("{} synced", ours.tracked.len())];
        if !ours.new.is_empty() {
            parts.push(format!("{} new since the last look", ours.new.len()));
        }
        if !ours.local.is_empty() {
            parts.push(format!("{} local only", ours.local.len()));
        }
        Finding::green(Check::Tables, parts.join(", "))
            .with_details(ours.local.iter().map(|(name, why)| format!("{name} stays local: {why}")))
    }

    fn parked(&self) -> Finding {
        match self.ours() {
            Err(why) => Finding::unseen(Check::Parked, why),
            Ok(Ours { parked: 0, .. }) => Finding::green(Check::Parked, "none"),
            Ok(ours) => Finding::red(
                Check::Parked,
                format!("the cloud refuses {}", count(ours.parked, "row", "rows")),
                Remedy::shell(
                    "see why, then change the rows, or retry or discard them:",
                    "run_supervisor parked list",
                ),
            ),
        }
    }

    fn schema_drift(&self) -> Finding {
        let tables = match self.cloud_tables() {
            Ok(tables) => tables,
            Err(why) => return Finding::unseen(Check::SchemaDrift, why),
        };
        let drift: Vec<Lack> = tables.iter().flat_map(|table| table.drift.iter().cloned()).collect();
        if let Some(finding) = lacking(Check::SchemaDrift, &drift) {
            return finding;
        }
        let missing: Vec<_> = tables.iter().filter(|table| !table.there).collect();
        let there = tables.len() - missing.len();
        let mut finding = Finding::green(
            Check::SchemaDrift,
            format!("{} the same on both sides", count(there, "table", "tables")),
        );
        if !missing.is_empty() {
            let names = names(missing.iter().map(|table| table.name.as_str()));
            finding.details.push(format!("the next sync creates in the cloud: {names}"));
        }
        finding
    }

    fn clock_skew(&self) -> Finding {
        let answers = match self.answers() {
            Ok(answers) => answers,
            Err(why) => return Finding::unseen(Check::ClockSkew, why),
        };
        let apart = answers.clock_ahead_s.abs();
        let within = answers.clock_within_s;
        if apart - within <= self.limits.clock_skew_s {
            let apart = if apart <= within { "no difference to be seen".to_owned() } else { in_words(apart) };
            return Finding::green(Check::ClockSkew, format!("{apart}, to within {}", in_words(within)));
        }
        let direction = if answers.clock_ahead_s > 0.0 { "behind" } else { "ahead of" };
        Finding::red(
            Check::ClockSkew,
            format!("this machine is {} {direction} the server", in_words(apart)),
            Remedy::shell("set this machine's clock, and keep it set:", "timedatectl set-ntp true"),
        )
    }

    fn backlog(&self) -> Finding {
        let ours = match self.ours() {
            Ok(ours) => ours,
            Err(why) => return Finding::unseen(Check::Backlog, why),
        };
        let Some(oldest) = ours.oldest_us.filter(|_| ours.pending > 0) else {
            return Finding::green(Check::Backlog, "nothing waits");
        };
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds, for people")]
        let age = (self.now_us.saturating_sub(oldest).max(0) as f64) / 1e6;
        let what =
            format!("{}, the oldest for {}", count(ours.pending, "row waits", "rows wait"), in_words(age));
        if self.cloud.missing.is_some() && !self.cloud.required {
            return Finding::unseen(Check::Backlog, format!("no cloud is set; {what}"));
        }
        if age <= self.limits.backlog_age_s {
            return Finding::green(Check::Backlog, what);
        }
        let remedy = match (self.own_answers(), self.runs()) {
            (Err(_), _) => Remedy::words("mend what is red above: it goes out by itself then"),
            (Ok(_), None) => Remedy::words("start run_supervisor: it sends them"),
            (Ok(_), Some(_)) => Remedy::shell(
                "mend what is red above; then it goes out by itself, and at once with:",
                "run_supervisor reset",
            ),
        };
        Finding::red(Check::Backlog, what, remedy)
    }

    fn versions(&self) -> Finding {
        let check = Check::Versions;
        let update = || Remedy::words(format!("update Tidewater on this device, which has {}", self.version));
        let format = self.ours().map_or(0, |ours| ours.format);
        if format > FORMAT {
            return Finding::red(
                check,
                format!(
                    "a newer version made this file: its format is {format}, and this one knows {FORMAT}"
                ),
                update(),
            );
        }
        if let Some(running) = self.runs()
            && running.version != self.version
        {
            return Finding::red(
                check,
                format!(
                    "the supervisor that runs is version {}, and this is {}",
                    running.version, self.version
                ),
                Remedy::words("restart the supervisor with the version that is installed"),
            );
        }
        let answers = match self.own_answers() {
            Ok(answers) => answers,
            Err(why) => return Finding::unseen(check, why),
        };
        match answers.protocol {
            Some(protocol) if protocol > PROTOCOL => Finding::red(
                check,
                format!(
                    "another device has brought the cloud to protocol {protocol}, and this one knows {PROTOCOL}"
                ),
                update(),
            ),
            Some(protocol) => self.skew(protocol, answers),
            None => Finding::unseen(check, "no device has synced with this cloud yet"),
        }
    }

    /// Whether the other devices that were seen lately run this version. What this device said last does not count: it says
    /// it again when it settles.
    fn skew(&self, protocol: i64, answers: &Answers) -> Finding {
        let check = Check::Versions;
        let devices =
            answers.devices.map_or(String::new(), |n| format!(", {}", count(n, "device", "devices")));
        let spoken = format!("protocol {protocol}{devices}");
        let Some(others) = &answers.versions else {
            let mut finding = Finding::green(check, spoken);
            if protocol < PROTOCOL {
                finding.details.push(format!(
                    "which versions they run is said from protocol {PROTOCOL} on: a device whose role owns tidewater.devices \
                     brings the cloud there when it syncs, or its owner by what run_supervisor cloud-sql prints"
                ));
            }
            return finding;
        };
        let of = |age: Age| {
            others.iter().filter(move |others| Age::of(others.version.as_deref(), &self.version) == age)
        };
        let number = |age: Age| of(age).map(|others| others.devices).sum::<u64>();
        let [older, silent, newer] = [Age::Older, Age::Silent, Age::Newer].map(number);
        if older + silent + newer == 0 {
            let all = if others.is_empty() { "" } else { " on all seen lately" };
            return Finding::green(check, format!("{spoken}, {}{all}", self.version));
        }
        let here = match number(Age::Same) {
            0 => format!("{} here", self.version),
            same => format!("{} here and on {same}", self.version),
        };
        let differing =
            || [Age::Newer, Age::Older].into_iter().flat_map(of).map(|others| (others, said(others)));
        let mut parts: Vec<String> =
            differing().map(|(others, version)| format!("{version} on {}", others.devices)).collect();
        if silent > 0 {
            parts.push(format!("{} not", count(silent, "device says", "devices say")));
        }
        let what = format!("versions differ: {here}, {}", names(parts.iter().map(String::as_str)));
        let mut remedies = vec![];
        if newer > 0 {
            remedies.push(format!("update Tidewater on this device, which has {}", self.version));
        }
        if older + silent > 0 {
            remedies.push(format!(
                "update Tidewater on {} with an older version; where one is gone for ever, DELETE FROM tidewater.devices WHERE \
                 id = its id",
                if older + silent == 1 { "the device" } else { "the devices" }
            ));
        }
        let mut details: Vec<String> =
            differing().map(|(others, version)| listed(&version, others)).collect();
        details.extend(of(Age::Silent).map(|others| {
            listed("no version said (an older one, or without UPDATE on tidewater.devices.version)", others)
        }));
        Finding::red(check, what, Remedy::words(remedies.join("; "))).with_details(some(&details))
    }
}

/// Of another device's version, seen from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Older,
    Same,
    Newer,
    /// It does not say, or not in the way that versions are said.
    Silent,
}

impl Age {
    fn of(version: Option<&str>, this: &str) -> Self {
        let parse = |version: &str| semver::Version::parse(version).ok();
        match (version, version.and_then(parse), parse(this)) {
            (Some(version), ..) if version == this => Self::Same,
            (_, Some(version), Some(this)) => match version.cmp_precedence(&this) {
                Ordering::Less => Self::Older,
                Ordering::Equal => Self::Same,
                Ordering::Greater => Self::Newer,
            },
            _ => Self::Silent,
        }
    }
}

fn said(others: &Others) -> String {
    others.version.clone().unwrap_or_default()
}

/// Some of the devices, by the beginnings of their names.
fn listed(version: &str, others: &Others) -> String {
    let shown: Vec<&str> = others.some.iter().take(DETAILS_MAX).map(|id| short(id)).collect();
    let shown_count = u64::try_from(shown.len()).unwrap_or(u64::MAX);
    let more = match others.devices.saturating_sub(shown_count) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{version}: {}{more}", shown.join(", "))
}

fn passed(stage: Stage) -> &'static str {
    match stage {
        Stage::Connect => "taken",
        Stage::Startup => "PostgreSQL answers",
        Stage::Login => "let in",
    }
}

/// The first of what is missing as the finding, the others as details, and the SQL for all.
fn lacking(check: Check, lacks: &[Lack]) -> Option<Finding> {
    let first = lacks.first()?;
    let statements: Vec<&str> = lacks.iter().filter_map(|lack| lack.sql.as_deref()).collect();
    let mut remedy = Remedy::words(first.who.as_str());
    if !statements.is_empty() {
        // Where one has SQL and the first has not, the words belong to the one that has.
        let with_sql = lacks.iter().find(|lack| lack.sql.is_some()).unwrap_or(first);
        remedy = Remedy::sql(with_sql.who.as_str(), statements.join("; "));
    }
    Some(
        Finding::red(check, first.what.as_str(), remedy)
            .with_details(lacks.iter().skip(1).take(DETAILS_MAX).map(|lack| lack.what.clone())),
    )
}

/// How many lines say the same of other places.
const DETAILS_MAX: usize = 5;

fn some(lines: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = lines.iter().take(DETAILS_MAX).cloned().collect();
    if lines.len() > DETAILS_MAX {
        shown.push(format!("and {} more", lines.len() - DETAILS_MAX));
    }
    shown
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = all.collect();
    match all.len() {
        0..=DETAILS_MAX => all.join(", "),
        more => format!("{} and {} more", all[..DETAILS_MAX].join(", "), more - DETAILS_MAX),
    }
}

fn count(n: impl TryInto<u64>, one: &str, many: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A uuid by its first block, which tells two of them apart on one line.
fn short(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

/// An amount of memory as people say it.
#[must_use]
pub fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let amount = bytes as f64;
    for (unit, factor) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor {
            #[expect(clippy::cast_precision_loss, reason = "a power of two")]
            return format!("{:.1} {unit}", amount / factor as f64);
        }
    }
    format!("{bytes} bytes")
}

/// Seconds as people say them.
fn in_words(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", (s * 1e3).ceil()),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// A word for the shell, quoted where it has to be.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A name for PostgreSQL, quoted where it has to be.
fn ident(name: &str) -> String {
    crate::sql::ident(name)
}

#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
