//! What Tidewater is told: every knob, where its value comes from, and what it may be.
//!
//! Parts: [`Settings`] (the checked result, one struct per section), [`SettingsError`] (names key, source and
//! what is allowed), [`Secret`]; `sources.rs` has [`Sources`] and the layers, `check.rs` goes from text to types
//! and has every bound, `tables.rs` has what is set for single tables, `reload.rs` what becomes of settings that were read
//! again.
//!
//! ```text
//! default.toml ◁ production.toml ◁ --config file ◁ TIDEWATER_… ◁ CLOUD_SQL_…, JARVIS_ENV ◁ flags ◁ code
//!      │             (only when the environment, as the other layers say it, is production)
//!      ▼
//!   Layers ── strongest layer that has the key ─▶ text ── bounds ─▶ typed sections ─▶ Settings
//! ```
//!
//! Loading reads the `--config` file and the password file and nothing else: the environment is an argument,
//! so that a test or an embedding application decides what it is. The keys that exist are the keys of
//! `config/default.toml`; a key without a default cannot exist. Its `[tables.NAME]` stands for any table.

mod check;
mod reload;
mod sources;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::check::Reader;
pub use self::reload::{Change, Reload};
use self::sources::Layer;
pub use self::sources::Sources;
/// `supervisor.environment`, also known as `JARVIS_ENV`.
pub use tidewater_actors::core::availability::Environment;
/// `direction` of `[tables.NAME]`.
pub use tidewater_actors::core::direction::Direction;
use tidewater_actors::core::dispute::Resolver;
use tidewater_actors::core::merge::Policies;
/// `[tables.NAME]`'s `conflicts`.
pub use tidewater_actors::core::merge::Policy;
pub use tidewater_actors::postgres::{LinkOptions, PasswordCommand, PasswordSource, TlsMode, TlsOptions};
pub use tidewater_actors::sqlite::{BacklogLimits, UpkeepOptions};

const DEFAULT_TOML: &str = include_str!("../config/default.toml");
const PRODUCTION_TOML: &str = include_str!("../config/production.toml");

const BUILT_IN: &str = "the built-in default";
const BUILT_IN_FOR_PRODUCTION: &str = "the built-in production overlay";

/// The longest path that the address of a Unix socket holds, without its closing NUL (macOS has 103; there
/// the operating system refuses what lies between).
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

// ---------------------------------------------------------------------------------------------------------
// The checked result
// ---------------------------------------------------------------------------------------------------------

/// Checked settings. They cannot be changed, only loaded anew: what was checked stays true. Clones are cheap.
///
/// The sections are fields: `settings.proxy.port`.
///
/// ```
/// use tidewater::settings::Settings;
///
/// let settings = Settings::builder().set("proxy.port", 5433).set("cloud.database", "orders").build()?;
/// assert_eq!(settings.proxy.endpoint(), "127.0.0.1:5433");
/// # Ok::<(), tidewater::settings::SettingsError>(())
/// ```
#[derive(Clone)]
pub struct Settings {
    sections: Arc<Sections>,
    effective: Arc<[Effective]>,
    resolver: Option<Resolver>,
}

impl Settings {
    /// Starts from the built-in values; nothing of the process is read unless asked for.
    #[must_use]
    pub fn builder() -> Sources {
        Sources::default()
    }

    /// The built-in values under the variables of this process.
    ///
    /// # Errors
    /// [`SettingsError`] when a variable has a value that is not allowed, or an unknown `TIDEWATER_…` key.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::builder().process_environment().build()
    }

    /// Reads and checks every layer of `sources`.
    ///
    /// # Errors
    /// [`SettingsError`]: the first thing wrong, with its key, its source and what is allowed.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        let builtin = Layer::built_in(BUILT_IN, DEFAULT_TOML)?;
        let known = builtin.keys();
        let mut layers = vec![builtin];
        if let Some(path) = &sources.config_file {
            layers.push(Layer::file(path, &known)?);
        }
        layers.push(sources.tidewater_variables(&known)?);
        layers.push(sources.fixed_variables()?);
        layers.push(Layer::pairs("flags", &sources.flags, &known)?);
        layers.push(Layer::pairs("code", &sources.code, &known)?);

        if Reader::new(&layers).environment()? == Environment::Production {
            layers.insert(1, Layer::toml(BUILT_IN_FOR_PRODUCTION, PRODUCTION_TOML)?);
        }
        let reader = Reader::new(&layers);
        let sections = Sections::read(&reader)?;
        let asked: BTreeSet<String> = reader.asked.borrow().keys().cloned().collect();
        debug_assert!(
            asked.is_superset(&known) && asked.difference(&known).all(|key| tables::split(key).is_some()),
            "every key of default.toml is read, and no other but those of tables that were named"
        );
        let effective = asked.iter().map(|key| reader.effective(key)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            sections: Arc::new(sections),
            effective: effective.into(),
            resolver: sources.resolver.clone(),
        })
    }

    /// Who is asked before the policies are.
    pub(crate) fn resolver(&self) -> Option<Resolver> {
        self.resolver.clone()
    }

    /// Every key with its value as it was written and where that was, in the order of the keys. Secrets are
    /// left out. `tables.NAME.…` is what holds for tables that are not named.
    #[must_use]
    pub fn effective(&self) -> &[Effective] {
        &self.effective
    }
}

impl Deref for Settings {
    type Target = Sections;

    fn deref(&self) -> &Sections {
        &self.sections
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.fmt(f)
    }
}

/// One key, the value that won, and its source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Effective {
    /// `section.key`.
    pub key: String,
    /// As it was written; `(secret)` for a password that is set.
    pub value: String,
    /// A variable's name, a file's path, a flag, or which built-in file.
    pub origin: String,
    /// In words.
    pub allowed: String,
}

impl Effective {
    /// Whether nobody set it.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        [BUILT_IN, BUILT_IN_FOR_PRODUCTION].contains(&self.origin.as_str())
    }
}

/// The sections of [`Settings`]. Only loading makes one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sections {
    /// How to find the proxy.
    pub proxy: ProxySettings,
    /// What is behind the proxy.
    pub cloud: CloudSettings,
    /// The local file.
    pub sqlite: SqliteSettings,
    /// Rounds and pages.
    pub sync: SyncSettings,
    /// What is set for single tables.
    pub tables: TablesSettings,
    /// The circuit breaker.
    pub circuit: CircuitSettings,
    /// Restarts, the end, and the environment.
    pub supervisor: SupervisorSettings,
    /// What a browser, a probe and Prometheus are told.
    pub http: HttpSettings,
    /// The log.
    pub log: LogSettings,
    /// From where on `doctor` finds something red.
    pub doctor: DoctorSettings,
}

impl Sections {
    /// How much longer a connection may take on account of its password.
    pub(crate) fn password_patience(&self) -> Duration {
        self.cloud.link.password.patience(self.proxy.timeout)
    }

    /// [`ProxySettings::check_timeout`], with the time that a password may take.
    #[must_use]
    pub fn check_timeout(&self) -> Duration {
        self.proxy.check_timeout() + self.password_patience()
    }
}

/// `[proxy]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxySettings {
    /// Where it listens.
    pub host: Host,
    /// Never 0. With a socket directory it is part of the socket's name.
    pub port: u16,
    /// Bounds connecting and PostgreSQL's answer to the startup.
    pub timeout: Duration,
    /// The wait after the first failure; never longer than `max_retry_delay`.
    pub retry_delay: Duration,
    /// What the doubling of the wait stops at.
    pub max_retry_delay: Duration,
    /// Never give up, and fail whoever needs the cloud while it is away.
    pub require: bool,
    /// Between two health checks while available.
    pub health_interval: Duration,
    /// How long a good check answers for the next; zero: not at all.
    pub recently_verified: Duration,
    /// Between two looks at what listens.
    pub listen_interval: Duration,
}

impl ProxySettings {
    /// As people write it: `host:port`, or the path of the socket.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            Host::Address(address) => format!("{address}:{}", self.port),
            Host::Name(name) => format!("{name}:{}", self.port),
            Host::SocketDirectory(directory) => socket_path(directory, self.port).display().to_string(),
        }
    }

    /// A check that has not ended after this is given up: the wait for a connection, an idle one that is silent, connecting,
    /// and the answers, each within the timeout, and a second more, so that their own bounds come first.
    #[must_use]
    pub fn check_timeout(&self) -> Duration {
        self.timeout * 4 + Duration::from_secs(1)
    }
}

/// Where a proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A numeric address.
    Address(IpAddr),
    /// A name that has to be resolved.
    Name(String),
    /// The absolute directory that holds the socket `.s.PGSQL.<port>`.
    SocketDirectory(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::SocketDirectory(directory) => directory.display().fmt(f),
        }
    }
}

/// The name that PostgreSQL and the proxy give to a socket.
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// `[cloud]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloudSettings {
    /// The PostgreSQL database; see [`missing`](Self::missing).
    pub database: Option<String>,
    /// The PostgreSQL role.
    pub user: Option<String>,
    /// As the settings, or the password file, had it when they were read. None suits a proxy that logs in with IAM, and is what
    /// a command leaves here.
    pub password: Option<Secret>,
    /// TLS, and where the password of a new connection comes from.
    pub link: LinkOptions,
    /// The schema of the synced tables.
    pub schema: String,
    /// At least 2: one for rounds, and one for what must not wait for them.
    pub pool_max: usize,
    /// PostgreSQL ends a longer statement.
    pub statement_timeout: Duration,
    /// What happens to columns that were added locally.
    pub add_columns: AddColumns,
    /// The name in `pg_stat_activity`.
    pub application_name: String,
}

impl CloudSettings {
    /// Why nothing can be synced, as a sentence for the log; `None` when database and user are set.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let (names, verb, object) = match (&self.database, &self.user) {
            (Some(_), Some(_)) => return None,
            (None, None) => ("CLOUD_SQL_DATABASE and CLOUD_SQL_USER", "are", "them"),
            (None, Some(_)) => ("CLOUD_SQL_DATABASE", "is", "it"),
            (Some(_), None) => ("CLOUD_SQL_USER", "is", "it"),
        };
        let password = match (&self.password, &self.link.password) {
            (None, PasswordSource::Fixed) => ", and CLOUD_SQL_PASSWORD or CLOUD_SQL_PASSWORD_FILE",
            _ => "",
        };
        Some(format!("{names} {verb} not set, so nothing can be synced; set {object}{password}"))
    }
}

/// `cloud.add_columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddColumns {
    /// The cloud table gets them by itself.
    Auto,
    /// They wait until somebody asks.
    Manual,
}

/// `[sqlite]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteSettings {
    /// The file; a relative path counts from the current folder.
    pub path: PathBuf,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
    /// At least 1.
    pub read_pool_max: usize,
    /// Writes under way at once; at least 1.
    pub queue_max: usize,
    /// Callers in one transaction; at least 1.
    pub group_rows_max: usize,
    /// The folder with the migrations that are applied when it is opened.
    pub migrations: Option<PathBuf>,
    /// Checkpoints, and space given back.
    pub upkeep: UpkeepOptions,
}

impl SqliteSettings {
    /// The control socket, beside the file.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.beside(".sock")
    }

    /// The file's name with this at its end.
    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(end);
        path.into()
    }
}

/// `[sync]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncSettings {
    /// Rows in one flush round; at least 1.
    pub window_rows_max: usize,
    /// Rows in one page of the feed; at least 1.
    pub page_rows_max: usize,
    /// Between two looks at the feed.
    pub pull_interval: Duration,
    /// The same, at most, for half a minute after others have changed something.
    pub feed_poll_interval: Duration,
    /// The same right after that, at least.
    pub feed_poll_first: Duration,
    /// Before a round that failed for a passing reason is tried again.
    pub retry_delay: Duration,
    /// How long a flush waits for further writes; may be zero.
    pub debounce: Duration,
    /// Between two looks for writes of other processes, where the system does not tell of them.
    pub foreign_poll: Duration,
    /// The most that may wait for the cloud.
    pub backlog: BacklogLimits,
    /// Between two trims of the cloud's change feed, of all devices together.
    pub trim_interval: Duration,
    /// A device that the cloud has not seen for so long does not hold the trim back.
    pub device_retire: Duration,
    /// A change feed with more entries, each of which names up to 128 rows of one statement, is trimmed past slow devices, too;
    /// at least 10.
    pub feed_entries_max: i64,
    /// Conflicts that the cloud's log keeps; at least 10.
    pub conflicts_max: i64,
    /// Conflicts that this file's log keeps; at least 10.
    pub local_conflicts_max: i64,
    /// How far the clock by which edits are dated is ahead of this machine's, in microseconds; negative: behind.
    pub clock_offset_us: i64,
    /// Which of the cloud's tables this file is given, where it does not have them.
    pub tables_from_cloud: TablesFromCloud,
}

/// `sync.tables_from_cloud`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablesFromCloud {
    /// The process gives a file without any table all of them; the library, whose app makes its own, none.
    Auto,
    /// None.
    None,
    /// Those that some device syncs.
    All,
    /// These; none where the list is empty.
    Named(Vec<String>),
}

/// `[tables]`: what is set for single tables. Names are compared as SQLite does, whatever the case of ASCII's letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablesSettings {
    named: BTreeMap<String, TableSettings>,
    others: TableSettings,
}

impl TablesSettings {
    /// What holds for a table, named or not.
    #[must_use]
    pub fn of(&self, table: &str) -> &TableSettings {
        self.named.get(&table.to_ascii_lowercase()).unwrap_or(&self.others)
    }

    /// Who wins in which table.
    pub(crate) fn policies(&self) -> Policies {
        let own = |(folded, table): (&String, &TableSettings)| (folded.clone(), table.conflicts);
        let tables = self.named.iter().map(own).collect();
        Policies { usual: self.others.conflicts, tables, resolver: None }
    }

    /// The tables that are named.
    pub fn named(&self) -> impl Iterator<Item = &TableSettings> {
        self.named.values()
    }
}

/// `[tables.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableSettings {
    /// The table, as the settings call it.
    pub name: String,
    /// Which way its rows go.
    pub direction: Direction,
    /// Which of the cloud's rows come here: a condition in PostgreSQL's words. None: all.
    pub filter: Option<String>,
    /// Columns that are neither sent nor pulled.
    pub columns_left_out: Vec<String>,
    /// Who wins where this device and the cloud changed the same.
    pub conflicts: Policy,
}

/// `[circuit]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitSettings {
    /// Failures in a row that open it; at least 1.
    pub failure_threshold: u32,
    /// Successes in a row that close it; at least 1.
    pub success_threshold: u32,
    /// How long it stays open at least.
    pub open: Duration,
}

/// `[supervisor]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupervisorSettings {
    /// Restarts within `restarts_within`; 0 forbids any.
    pub restarts_max: u32,
    /// The time over which restarts are counted.
    pub restarts_within: Duration,
    /// How long an actor may hold its thread without a sign of life; zero: for ever.
    pub stuck_after: Duration,
    /// What the last flush may take at an orderly end, and then the actors once more.
    pub shutdown: Duration,
    /// Whether the absence of a proxy is normal.
    pub environment: Environment,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpSettings {
    /// Where the process answers; `None`: nowhere. Loopback, unless another address was allowed.
    pub listen: Option<SocketAddr>,
    /// The file with the token for actions and rows; `None`: there are none over HTTP.
    pub token_file: Option<PathBuf>,
    /// The names and addresses besides those of loopback by which it may be asked for, in lower case.
    pub hosts: Vec<String>,
    /// Connections at once; at least 1.
    pub connections_max: usize,
    /// Those that follow `/events`, at once.
    pub subscribers_max: usize,
    /// The longest that a client may take to ask, and to read nothing of what it is told.
    pub request_timeout: Duration,
}

impl HttpSettings {
    /// Whether others than this machine's may ask. Then the state needs the token as well.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.listen.is_some_and(|address| !address.ip().to_canonical().is_loopback())
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSettings {
    /// How a line looks.
    pub format: LogFormat,
    /// The least important level that is still written.
    pub level: LogLevel,
    /// The same for single actors, by the names that `status` has for them.
    pub levels: BTreeMap<&'static str, LogLevel>,
    /// Work that takes longer says how far it is, for the first time after so long.
    pub progress_after: Duration,
}

/// The actors that `log.levels` can name, as `status` does.
pub const ACTORS: [&str; 4] = ["ProxyWatcher", "CircuitBreaker", "SqliteWriter", "CloudSyncer"];

/// `[doctor]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoctorSettings {
    /// Less space on the file's disk than this is red.
    pub disk_free_bytes: u64,
    /// A clock that is further from the server's than this is red.
    pub clock_skew: Duration,
    /// A row that has waited longer than this is red.
    pub backlog_age: Duration,
    /// The longest that it looks through the file.
    pub integrity: Duration,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `HH:MM:SS | LEVEL | message`.
    Text,
    /// One JSON object per line.
    Json,
}

/// `log.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// And warnings.
    Warning,
    /// And what a user wants to know.
    Info,
    /// Everything.
    Debug,
}

/// A value that is never printed: neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value`.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for whoever logs in with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

// ---------------------------------------------------------------------------------------------------------
// What can be wrong
// ---------------------------------------------------------------------------------------------------------

/// Why settings could not be loaded. Trying again without changing something never helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The value is not one of those allowed.
    #[error("{key} = {value} from {origin} is not allowed; allowed: {allowed}")]
    BadValue {
        /// `section.key`.
        key: String,
        /// Quoted; `(secret)` where it must not be shown.
        value: String,
        /// The variable, the file, the flag.
        origin: String,
        /// In words.
        allowed: String,
    },
    /// There is no such key.
    #[error("{key} from {origin} is not a known key{}", nearest.as_ref().map(|it| format!("; did you mean {it}?")).unwrap_or_default())]
    UnknownKey {
        /// As it was written.
        key: String,
        /// The variable, the file, the flag.
        origin: String,
        /// A known key that looks much the same.
        nearest: Option<String>,
    },
    /// The `--config` file cannot be read, or is not TOML.
    #[error("the configuration file {path} cannot be used: {reason}")]
    File {
        /// As it was given.
        path: String,
        /// What the operating system or the parser said, without the text of the file.
        reason: String,
    },
    /// The password file cannot be read, or holds no password.
    #[error(
        "cloud.password_file = {path} from {origin} cannot be used: {reason}; allowed: a readable file that holds the password"
    )]
    PasswordFile {
        /// As it was given.
        path: String,
        /// The variable, the file, the flag.
        origin: String,
        /// What the operating system said.
        reason: String,
    },
    /// One file has two sections for what is one table.
    #[error(
        "{origin} has both tables.{first} and tables.{second}, which are one table to SQLite; allowed: one of them"
    )]
    OneTableTwice {
        /// One spelling.
        first: String,
        /// The other.
        second: String,
        /// The file.
        origin: String,
    },
    /// Two ways to give a password are used, and they may disagree.
    #[error(
        "{first} from {first_origin} and {second} from {second_origin} are both set; allowed: one of them"
    )]
    TwoPasswords {
        /// The key of one.
        first: &'static str,
        /// Its source.
        first_origin: String,
        /// The key of the other.
        second: &'static str,
        /// Its source.
        second_origin: String,
    },
}
