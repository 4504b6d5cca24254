//! What Tidewater is told: every knob, where its value comes from, and what it may be.
//!
//! Parts: [`Sources`] (what to read: a file, variables, flags, code), [`Settings`] (the checked result, one
//! struct per section), [`SettingsError`] (names key, source and what is allowed), [`Secret`].
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
//! `config/default.toml`; a key without a default cannot exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use config::{Config, FileFormat, Map, Source, Value, ValueKind};

const DEFAULT_TOML: &str = include_str!("../config/default.toml");
const PRODUCTION_TOML: &str = include_str!("../config/production.toml");

/// The variables that people have in their scripts already, and the keys they set. Names and meaning are fixed.
const FIXED_VARIABLES: [(&str, &str); 12] = [
    ("CLOUD_SQL_PROXY_HOST", "proxy.host"),
    ("CLOUD_SQL_PROXY_PORT", "proxy.port"),
    ("CLOUD_SQL_PROXY_TIMEOUT", "proxy.timeout_s"),
    ("CLOUD_SQL_RETRY_DELAY", "proxy.retry_delay_s"),
    ("CLOUD_SQL_MAX_RETRY_DELAY", "proxy.max_retry_delay_s"),
    ("CLOUD_SQL_REQUIRE_PROXY", "proxy.require"),
    ("CLOUD_SQL_DATABASE", "cloud.database"),
    ("CLOUD_SQL_USER", "cloud.user"),
    ("CLOUD_SQL_PASSWORD", "cloud.password"),
    ("CLOUD_SQL_PASSWORD_FILE", "cloud.password_file"),
    ("JARVIS_ENV", "supervisor.environment"),
    ("TIDEWATER_DATABASE", "sqlite.path"),
];

/// The shortest duration that is still one; below it a loop would be a busy loop.
const SHORTEST_S: f64 = 0.001;
const HOUR_S: f64 = 3600.0;
const DAY_S: f64 = 86_400.0;

/// A password file is one line; whatever is longer is not a password file.
const PASSWORD_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The longest path that the address of a Unix socket holds, without its closing NUL (macOS has 103; there
/// the operating system refuses what lies between).
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// PostgreSQL cuts longer names off silently (NAMEDATALEN - 1).
const POSTGRES_NAME_BYTES_MAX: usize = 63;

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
        let builtin = Layer::toml("the built-in default", DEFAULT_TOML)?;
        let known: BTreeSet<String> = builtin.leaves().into_iter().map(|(key, _)| key).collect();
        let mut layers = vec![builtin];
        if let Some(path) = &sources.config_file {
            layers.push(Layer::file(path, &known)?);
        }
        layers.push(sources.tidewater_variables(&known)?);
        layers.push(sources.fixed_variables()?);
        layers.push(Layer::pairs("flags", &sources.flags, &known)?);
        layers.push(Layer::pairs("code", &sources.code, &known)?);

        if Reader::new(&layers).environment()? == Environment::Production {
            layers.insert(1, Layer::toml("the built-in production overlay", PRODUCTION_TOML)?);
        }
        let reader = Reader::new(&layers);
        let sections = Sections::read(&reader)?;
        debug_assert_eq!(*reader.asked.borrow(), known, "every key of default.toml is read, and no other");
        let effective = known.iter().map(|key| reader.effective(key)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { sections: Arc::new(sections), effective: effective.into() })
    }

    /// Every key with its value as it was written and where that was, in the order of the keys. Secrets are
    /// left out.
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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    /// `section.key`.
    pub key: String,
    /// As it was written; `(secret)` for a password that is set.
    pub value: String,
    /// A variable's name, a file's path, a flag, or which built-in file.
    pub origin: String,
}

/// The sections of [`Settings`]. Only loading makes one.
#[derive(Debug)]
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
    /// The circuit breaker.
    pub circuit: CircuitSettings,
    /// Restarts, the end, and the environment.
    pub supervisor: SupervisorSettings,
    /// The log.
    pub log: LogSettings,
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

/// `[cloud]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloudSettings {
    /// The PostgreSQL database; see [`missing`](Self::missing).
    pub database: Option<String>,
    /// The PostgreSQL role.
    pub user: Option<String>,
    /// None suits a proxy that logs in with IAM.
    pub password: Option<Secret>,
    /// The schema of the synced tables.
    pub schema: String,
    /// At least 1.
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
        let password = match self.password {
            Some(_) => "",
            None => ", and CLOUD_SQL_PASSWORD or CLOUD_SQL_PASSWORD_FILE",
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
    /// Writes that may wait; at least 1.
    pub queue_max: usize,
    /// Callers in one transaction; at least 1.
    pub group_rows_max: usize,
}

impl SqliteSettings {
    /// The control socket, beside the file.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".sock");
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
    /// Before a round that failed for a passing reason is tried again.
    pub retry_delay: Duration,
    /// How long a flush waits for further writes; may be zero.
    pub debounce: Duration,
    /// Between two looks for writes of other processes.
    pub foreign_poll: Duration,
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
    /// What an orderly end may take.
    pub shutdown: Duration,
    /// Whether the absence of a proxy is normal.
    pub environment: Environment,
}

/// `supervisor.environment`, also known as `JARVIS_ENV`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// No proxy is normal.
    Development,
    /// The proxy is expected.
    Production,
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Development => "development",
            Self::Production => "production",
        })
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
    /// Both ways to give a password are used, and they may disagree.
    #[error(
        "cloud.password from {password} and cloud.password_file from {password_file} are both set; allowed: one of them"
    )]
    TwoPasswords {
        /// The source of the password.
        password: String,
        /// The source of the file's name.
        password_file: String,
    },
}

// ---------------------------------------------------------------------------------------------------------
// What to read
// ---------------------------------------------------------------------------------------------------------

/// What settings are read from, and at the same time their builder: each call adds to one layer.
#[derive(Clone, Default)]
pub struct Sources {
    config_file: Option<PathBuf>,
    environment: BTreeMap<OsString, OsString>,
    flags: Vec<Pair>,
    code: Vec<Pair>,
}

impl Sources {
    /// A TOML file with the sections of `config/default.toml`.
    #[must_use]
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// Variables, in the shape of [`std::env::vars_os`]; those that are not ours are passed over.
    #[must_use]
    pub fn environment<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// The variables of this process.
    #[must_use]
    pub fn process_environment(self) -> Self {
        self.environment(std::env::vars_os())
    }

    /// A flag of the command, such as `--database`, that sets `key`.
    #[must_use]
    pub fn flag(mut self, flag: &str, key: &str, value: impl fmt::Display) -> Self {
        self.flags.push(Pair::new(key, value, flag));
        self
    }

    /// Sets `section.key` from code; stronger than every other layer.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.code.push(Pair::new(key, value, "the program"));
        self
    }

    /// [`Settings::load`].
    ///
    /// # Errors
    /// As there.
    pub fn build(&self) -> Result<Settings, SettingsError> {
        Settings::load(self)
    }

    /// `TIDEWATER_<SECTION>__<KEY>`. Names without the double underscore belong to others.
    fn tidewater_variables(&self, known: &BTreeSet<String>) -> Result<Layer, SettingsError> {
        let mut pairs = Vec::new();
        for (name, value) in &self.environment {
            let Some(name) = name.to_str() else { continue };
            let Some((section, key)) = name.strip_prefix("TIDEWATER_").and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let key = format!("{section}.{key}").to_lowercase();
            if !known.contains(&key) {
                let nearest = nearest(&key, known)
                    .map(|it| format!("TIDEWATER_{}", it.replacen('.', "__", 1).to_uppercase()));
                return Err(SettingsError::UnknownKey { key, origin: name.to_owned(), nearest });
            }
            pairs.extend(Pair::variable(name, &key, value)?);
        }
        Layer::pairs("TIDEWATER_ variables", &pairs, known)
    }

    fn fixed_variables(&self) -> Result<Layer, SettingsError> {
        let mut pairs = Vec::new();
        for (name, key) in FIXED_VARIABLES {
            if let Some(value) = self.environment.get(std::ffi::OsStr::new(name)) {
                pairs.extend(Pair::variable(name, key, value)?);
            }
        }
        Layer::pairs(
            "fixed variables",
            &pairs,
            &FIXED_VARIABLES.iter().map(|(_, key)| (*key).to_owned()).collect(),
        )
    }
}

impl fmt::Debug for Sources {
    /// Only the names: any value may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |pairs: &[Pair]| pairs.iter().map(|pair| pair.key.clone()).collect::<Vec<_>>();
        f.debug_struct("Sources")
            .field("config_file", &self.config_file)
            .field("environment", &self.environment.len())
            .field("flags", &keys(&self.flags))
            .field("code", &keys(&self.code))
            .finish()
    }
}

// ---------------------------------------------------------------------------------------------------------
// Layers
// ---------------------------------------------------------------------------------------------------------

/// One key set by something that is not a file.
#[derive(Clone)]
struct Pair {
    key: String,
    value: String,
    origin: String,
}

impl Pair {
    fn new(key: &str, value: impl fmt::Display, origin: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), origin: origin.to_owned() }
    }

    /// An empty variable counts as not set: `CLOUD_SQL_USER= run_supervisor` is how a shell unsets one.
    fn variable(name: &str, key: &str, value: &OsString) -> Result<Option<Self>, SettingsError> {
        match value.to_str() {
            Some("") => Ok(None),
            Some(value) => Ok(Some(Self::new(key, value, name))),
            None => Err(SettingsError::BadValue {
                key: key.to_owned(),
                value: "(not shown)".to_owned(),
                origin: name.to_owned(),
                allowed: "text in UTF-8".to_owned(),
            }),
        }
    }
}

/// Pairs as a source of the crate `config`, each value with its own origin.
#[derive(Clone)]
struct Pairs(Vec<Pair>);

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pairs")
    }
}

impl Source for Pairs {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let value = |pair: &Pair| Value::new(Some(&pair.origin), ValueKind::String(pair.value.clone()));
        Ok(self.0.iter().map(|pair| (pair.key.clone(), value(pair))).collect())
    }
}

/// One layer, kept apart from the others so that the source of each value can be named.
struct Layer {
    name: String,
    config: Config,
}

impl Layer {
    fn build(name: &str, source: impl Source + Send + Sync + 'static) -> Result<Self, SettingsError> {
        let config = Config::builder().add_source(source).build();
        let config = config
            .map_err(|error| SettingsError::File { path: name.to_owned(), reason: without_text(&error) })?;
        Ok(Self { name: name.to_owned(), config })
    }

    fn toml(name: &str, text: &str) -> Result<Self, SettingsError> {
        Self::build(name, config::File::from_str(text, FileFormat::Toml))
    }

    fn file(path: &Path, known: &BTreeSet<String>) -> Result<Self, SettingsError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::File { path: name.clone(), reason: error.to_string() })?;
        let layer = Self::toml(&name, &text)?;
        for (key, value) in layer.leaves() {
            let section = matches!(value.kind, ValueKind::Table(_))
                && known.iter().any(|it| it.split_once('.').is_some_and(|(section, _)| section == key));
            if !section {
                require_known(&key, &name, known)?;
            }
        }
        Ok(layer)
    }

    /// Unknown keys are refused before `config` sees them, because it would read `a[0]` as an index.
    fn pairs(name: &str, pairs: &[Pair], known: &BTreeSet<String>) -> Result<Self, SettingsError> {
        for pair in pairs {
            require_known(&pair.key, &pair.origin, known)?;
        }
        Self::build(name, Pairs(pairs.to_vec()))
    }

    /// The keys that this layer sets. An empty section is among them, so that one that does not exist is found.
    fn leaves(&self) -> Vec<(String, Value)> {
        fn walk(prefix: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
            match &value.kind {
                ValueKind::Table(table) if !table.is_empty() || prefix.is_empty() => {
                    for (key, value) in table {
                        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                        walk(&key, value, leaves);
                    }
                }
                _ => leaves.push((prefix.to_owned(), value.clone())),
            }
        }
        let mut leaves = Vec::new();
        walk("", &self.config.cache, &mut leaves);
        leaves
    }

    /// `Config::get` would lose the origin.
    fn get(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.config.cache, |value, part| match &value.kind {
            ValueKind::Table(table) => table.get(part),
            _ => None,
        })
    }
}

fn require_known(key: &str, origin: &str, known: &BTreeSet<String>) -> Result<(), SettingsError> {
    if known.contains(key) {
        return Ok(());
    }
    Err(SettingsError::UnknownKey {
        key: key.to_owned(),
        origin: origin.to_owned(),
        nearest: nearest(key, known).map(str::to_owned),
    })
}

/// What the parser said, without the lines of the file that it quotes: one of them may hold the password.
fn without_text(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim);
    let quoted = |line: &str| {
        line.split_once('|').is_some_and(|(left, _)| left.trim().bytes().all(|b| b.is_ascii_digit()))
    };
    lines.filter(|line| !line.is_empty() && !quoted(line)).collect::<Vec<_>>().join(": ")
}

/// The known key that takes the fewest edits, if it takes few enough to be a slip.
fn nearest<'a>(key: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|it| (edit_distance(key, it), it)).min()?;
    // A third of the key: `proxy.timeout` finds `proxy.timeout_s`, `http.listen` finds nothing.
    (distance * 3 <= key.chars().count()).then_some(best.as_str())
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

// ---------------------------------------------------------------------------------------------------------
// From text to types
// ---------------------------------------------------------------------------------------------------------

/// Finds the strongest layer that has a key, and checks what it says.
struct Reader<'a> {
    layers: &'a [Layer],
    /// What was asked for: compared with the keys that exist, so that no knob is without effect.
    asked: std::cell::RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    fn new(layers: &'a [Layer]) -> Self {
        Self { layers, asked: std::cell::RefCell::default() }
    }

    /// The value and its origin.
    fn find(&self, key: &str) -> Result<(Value, String), SettingsError> {
        self.asked.borrow_mut().insert(key.to_owned());
        let found = self.layers.iter().rev().find_map(|layer| Some((layer.get(key)?, &layer.name)));
        let Some((value, layer)) = found else {
            // Only a slip in this file comes here: default.toml has every key.
            return Err(SettingsError::UnknownKey {
                key: key.to_owned(),
                origin: "the built-in default".to_owned(),
                nearest: None,
            });
        };
        let origin = value.origin().unwrap_or(layer).to_owned();
        Ok((value.clone(), origin))
    }

    /// Reads a scalar as text and parses it; `None` from `parse` means that it is not allowed.
    fn parse<T>(
        &self,
        key: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingsError> {
        let (value, origin) = self.find(key)?;
        let parsed = scalar(&value).and_then(|text| parse(text.trim()));
        parsed.ok_or_else(|| bad(key, &value, origin, allowed))
    }

    /// Text as it is, without trimming; empty is `None`. A number in a file is refused: `1e3` as a password
    /// would not be what it looks like.
    fn text(&self, key: &str, allowed: &str) -> Result<Option<(String, String)>, SettingsError> {
        let (value, origin) = self.find(key)?;
        match &value.kind {
            ValueKind::String(text) if text.is_empty() => Ok(None),
            ValueKind::String(text) if !text.contains('\0') => Ok(Some((text.clone(), origin))),
            _ => Err(bad(key, &value, origin, allowed)),
        }
    }

    /// Text that may not be empty and must satisfy `good`.
    fn name(
        &self,
        key: &str,
        allowed: &str,
        good: impl FnOnce(&str) -> bool,
    ) -> Result<String, SettingsError> {
        match self.text(key, allowed)? {
            Some((text, _)) if good(&text) => Ok(text),
            _ => {
                let (value, origin) = self.find(key)?;
                Err(bad(key, &value, origin, allowed))
            }
        }
    }

    fn seconds(&self, key: &str, least: f64, most: f64) -> Result<Duration, SettingsError> {
        self.parse(key, &format!("seconds from {least} to {most}"), |text| {
            let seconds = f64::from_str(text).ok()?;
            (least..=most).contains(&seconds).then_some(seconds)
        })
        .map(Duration::from_secs_f64)
    }

    fn whole<T: TryFrom<u64>>(
        &self,
        key: &str,
        unit: &str,
        least: u64,
        most: u64,
    ) -> Result<T, SettingsError> {
        self.parse(key, &format!("{unit} from {least} to {most}"), |text| {
            let number = u64::from_str(text).ok()?;
            (least..=most).contains(&number).then(|| T::try_from(number).ok())?
        })
    }

    fn count<T: TryFrom<u64>>(&self, key: &str, least: u64, most: u64) -> Result<T, SettingsError> {
        self.whole(key, "a whole number", least, most)
    }

    fn millis(&self, key: &str, least: u64, most: u64) -> Result<Duration, SettingsError> {
        self.whole(key, "whole milliseconds", least, most).map(Duration::from_millis)
    }

    fn boolean(&self, key: &str) -> Result<bool, SettingsError> {
        self.word(
            key,
            &[("true", true), ("false", false), ("1", true), ("0", false), ("yes", true), ("no", false)],
        )
    }

    /// One of a few words, in any case.
    fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<T, SettingsError> {
        let allowed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.parse(key, &allowed, |text| {
            words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
        })
    }

    fn environment(&self) -> Result<Environment, SettingsError> {
        use Environment::{Development, Production};
        self.word(
            "supervisor.environment",
            &[
                ("development", Development),
                ("production", Production),
                ("dev", Development),
                ("prod", Production),
            ],
        )
    }

    fn effective(&self, key: &str) -> Result<Effective, SettingsError> {
        let (value, origin) = self.find(key)?;
        Ok(Effective { key: key.to_owned(), value: shown(key, &value), origin })
    }
}

/// How a value is shown to people.
fn shown(key: &str, value: &Value) -> String {
    match scalar(value) {
        Some(text) if key == "cloud.password" && !text.is_empty() => "(secret)".to_owned(),
        Some(text) => text,
        None => "(not a single value)".to_owned(),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::Boolean(it) => Some(it.to_string()),
        ValueKind::I64(it) => Some(it.to_string()),
        ValueKind::I128(it) => Some(it.to_string()),
        ValueKind::U64(it) => Some(it.to_string()),
        ValueKind::U128(it) => Some(it.to_string()),
        ValueKind::Float(it) => Some(it.to_string()),
        ValueKind::Nil | ValueKind::Table(_) | ValueKind::Array(_) => None,
    }
}

fn bad(key: &str, value: &Value, origin: String, allowed: &str) -> SettingsError {
    let value = format!("\"{}\"", shown(key, value).escape_debug());
    SettingsError::BadValue { key: key.to_owned(), value, origin, allowed: allowed.to_owned() }
}

impl Sections {
    fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        Ok(Self {
            proxy: ProxySettings::read(reader)?,
            cloud: CloudSettings::read(reader)?,
            sqlite: SqliteSettings::read(reader)?,
            sync: SyncSettings {
                // A round is held in memory and in one transaction on either side: hence the upper bounds.
                window_rows_max: reader.count("sync.window_rows_max", 1, 100_000)?,
                page_rows_max: reader.count("sync.page_rows_max", 1, 100_000)?,
                pull_interval: reader.seconds("sync.pull_interval_s", SHORTEST_S, DAY_S)?,
                retry_delay: reader.seconds("sync.retry_delay_s", SHORTEST_S, HOUR_S)?,
                debounce: reader.millis("sync.debounce_ms", 0, 60_000)?,
                foreign_poll: reader.millis("sync.foreign_poll_ms", 1, 60_000)?,
            },
            circuit: CircuitSettings {
                failure_threshold: reader.count("circuit.failure_threshold", 1, 1000)?,
                success_threshold: reader.count("circuit.success_threshold", 1, 1000)?,
                open: reader.seconds("circuit.open_s", SHORTEST_S, DAY_S)?,
            },
            supervisor: SupervisorSettings {
                restarts_max: reader.count("supervisor.restarts_max", 0, 100_000)?,
                restarts_within: reader.seconds("supervisor.restarts_within_s", SHORTEST_S, DAY_S)?,
                shutdown: reader.seconds("supervisor.shutdown_s", SHORTEST_S, HOUR_S)?,
                environment: reader.environment()?,
            },
            log: LogSettings {
                format: reader.word("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?,
                level: reader.word(
                    "log.level",
                    &[
                        ("error", LogLevel::Error),
                        ("warning", LogLevel::Warning),
                        ("info", LogLevel::Info),
                        ("debug", LogLevel::Debug),
                        ("warn", LogLevel::Warning),
                    ],
                )?,
            },
        })
    }
}

impl ProxySettings {
    fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let port = reader.count("proxy.port", 1, u64::from(u16::MAX))?;
        let settings = Self {
            host: reader.parse(
                "proxy.host",
                "a host name or address without a port, or the absolute directory of a Unix socket (its path at most 107 bytes)",
                |text| parse_host(text, port),
            )?,
            port,
            timeout: reader.seconds("proxy.timeout_s", SHORTEST_S, HOUR_S)?,
            retry_delay: reader.seconds("proxy.retry_delay_s", SHORTEST_S, DAY_S)?,
            max_retry_delay: reader.seconds("proxy.max_retry_delay_s", SHORTEST_S, DAY_S)?,
            require: reader.boolean("proxy.require")?,
            health_interval: reader.seconds("proxy.health_interval_s", SHORTEST_S, DAY_S)?,
            recently_verified: reader.seconds("proxy.recently_verified_s", 0.0, HOUR_S)?,
            listen_interval: reader.seconds("proxy.listen_interval_s", SHORTEST_S, HOUR_S)?,
        };
        if settings.retry_delay > settings.max_retry_delay {
            let (most, most_origin) = reader.find("proxy.max_retry_delay_s")?;
            let (value, origin) = reader.find("proxy.retry_delay_s")?;
            let most = shown("proxy.max_retry_delay_s", &most);
            let allowed = format!("at most proxy.max_retry_delay_s, which is {most} from {most_origin}");
            return Err(bad("proxy.retry_delay_s", &value, origin, &allowed));
        }
        Ok(settings)
    }
}

fn parse_host(text: &str, port: u16) -> Option<Host> {
    if text.starts_with('/') {
        let directory = PathBuf::from(text);
        let fits = socket_path(&directory, port).as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
        return fits.then_some(Host::SocketDirectory(directory));
    }
    let unbracketed = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = unbracketed.parse() {
        return Some(Host::Address(address));
    }
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    // 253: the longest name that DNS knows.
    let name = !text.is_empty() && text.len() <= 253 && text.chars().all(good);
    name.then(|| Host::Name(text.to_owned()))
}

/// The name that PostgreSQL and the proxy give to a socket.
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

impl CloudSettings {
    fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let name = "a PostgreSQL name of at most 63 bytes";
        let optional = |key| match reader.text(key, name)? {
            Some((text, origin)) if text.len() > POSTGRES_NAME_BYTES_MAX => {
                Err(bad(key, &Value::new(None, text), origin, name))
            }
            found => Ok(found.map(|(text, _)| text)),
        };
        Ok(Self {
            database: optional("cloud.database")?,
            user: optional("cloud.user")?,
            password: read_password(reader)?,
            schema: reader.name(
                "cloud.schema",
                "a PostgreSQL name of at most 63 bytes, but not tidewater, information_schema or pg_…",
                |text| {
                    text.len() <= POSTGRES_NAME_BYTES_MAX
                        && !["tidewater", "information_schema"].contains(&text)
                        && !text.starts_with("pg_")
                },
            )?,
            pool_max: reader.count("cloud.pool_max", 1, 100)?,
            statement_timeout: reader.seconds("cloud.statement_timeout_s", SHORTEST_S, DAY_S)?,
            add_columns: reader
                .word("cloud.add_columns", &[("auto", AddColumns::Auto), ("manual", AddColumns::Manual)])?,
            application_name: reader.name(
                "cloud.application_name",
                "1 to 63 printable ASCII characters",
                |text| {
                    text.len() <= POSTGRES_NAME_BYTES_MAX && text.bytes().all(|b| (b' '..=b'~').contains(&b))
                },
            )?,
        })
    }
}

fn read_password(reader: &Reader<'_>) -> Result<Option<Secret>, SettingsError> {
    let password = reader.text("cloud.password", "text")?;
    let file = reader.text("cloud.password_file", "the path of a file")?;
    match (password, file) {
        (Some((_, password)), Some((_, password_file))) => {
            Err(SettingsError::TwoPasswords { password, password_file })
        }
        (Some((password, _)), None) => Ok(Some(Secret::new(password))),
        (None, Some((path, origin))) => match password_in(&path) {
            Ok(secret) => Ok(Some(secret)),
            Err(reason) => Err(SettingsError::PasswordFile { path, origin, reason }),
        },
        (None, None) => Ok(None),
    }
}

fn password_in(path: &str) -> Result<Secret, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(PASSWORD_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > PASSWORD_FILE_BYTES_MAX {
        return Err(format!("it is longer than {PASSWORD_FILE_BYTES_MAX} bytes"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line {
        "" => Err("it is empty".to_owned()),
        line if line.contains('\0') => Err("it contains a NUL".to_owned()),
        line => Ok(Secret::new(line)),
    }
}

impl SqliteSettings {
    fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let allowed = "the path of a file (not :memory: and not a file: address)";
        let good = |text: &str| text != ":memory:" && !text.starts_with("file:") && !text.ends_with('/');
        Ok(Self {
            path: reader.name("sqlite.path", allowed, good)?.into(),
            busy_timeout: reader.seconds("sqlite.busy_timeout_s", SHORTEST_S, HOUR_S)?,
            read_pool_max: reader.count("sqlite.read_pool_max", 1, 128)?,
            queue_max: reader.count("sqlite.queue_max", 1, 1_000_000)?,
            group_rows_max: reader.count("sqlite.group_rows_max", 1, 1_000_000)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::builder().environment(variables.iter().copied()).build()
    }

    /// Without anything set, the values are those of the documentation.
    #[test]
    fn the_built_in_values_are_the_documented_ones() {
        let settings = Settings::builder().build().unwrap();
        assert_eq!(settings.proxy.endpoint(), "127.0.0.1:5432");
        assert_eq!(settings.proxy.timeout, Duration::from_secs(2));
        assert_eq!(settings.proxy.retry_delay, Duration::from_secs(10));
        assert_eq!(settings.proxy.max_retry_delay, Duration::from_secs(600));
        assert!(!settings.proxy.require);
        assert_eq!(settings.supervisor.environment, Environment::Development);
        assert_eq!(settings.sqlite.path, Path::new("tidewater.db"));
        assert_eq!(settings.sqlite.control_socket(), Path::new("tidewater.db.sock"));
        assert_eq!(settings.cloud.add_columns, AddColumns::Auto);
        assert_eq!(settings.sync.debounce, Duration::from_millis(5));
        assert_eq!(settings.log, LogSettings { format: LogFormat::Text, level: LogLevel::Info });
        assert!(settings.effective().iter().all(|it| it.origin == "the built-in default"));
    }

    /// Each layer wins over the one below it, and the source that won is named.
    #[test]
    fn each_layer_wins_over_the_one_below() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, "[proxy]\nport = 2\n[sqlite]\nread_pool_max = 9\n").unwrap();
        let origin = |settings: &Settings, key: &str| {
            settings.effective().iter().find(|it| it.key == key).unwrap().origin.clone()
        };

        let mut sources = Settings::builder().config_file(&file);
        let mut steps = vec![(2, file.display().to_string())];
        let settings = sources.build().unwrap();
        assert_eq!((u64::from(settings.proxy.port), origin(&settings, "proxy.port")), steps.remove(0));
        assert_eq!(settings.sqlite.read_pool_max, 9);

        sources = sources.environment([("TIDEWATER_PROXY__PORT", "3")]);
        let settings = sources.build().unwrap();
        assert_eq!(
            (settings.proxy.port, origin(&settings, "proxy.port").as_str()),
            (3, "TIDEWATER_PROXY__PORT")
        );

        sources = sources.environment([("CLOUD_SQL_PROXY_PORT", "4")]);
        let settings = sources.build().unwrap();
        assert_eq!(
            (settings.proxy.port, origin(&settings, "proxy.port").as_str()),
            (4, "CLOUD_SQL_PROXY_PORT")
        );

        sources = sources.flag("--port", "proxy.port", 5);
        let settings = sources.build().unwrap();
        assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (5, "--port"));

        let settings = sources.set("proxy.port", 6).build().unwrap();
        assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (6, "the program"));
    }

    /// The production overlay lies under everything that a user sets, wherever production is declared.
    #[test]
    fn production_has_its_overlay_under_what_the_user_sets() {
        let settings = with(&[("JARVIS_ENV", "Production")]).unwrap();
        assert_eq!(settings.supervisor.environment, Environment::Production);
        assert_eq!(settings.cloud.add_columns, AddColumns::Manual);
        let settings = with(&[("TIDEWATER_SUPERVISOR__ENVIRONMENT", "prod")]).unwrap();
        assert_eq!(settings.cloud.add_columns, AddColumns::Manual);
        let settings = with(&[("JARVIS_ENV", "prod"), ("TIDEWATER_CLOUD__ADD_COLUMNS", "auto")]).unwrap();
        assert_eq!(settings.cloud.add_columns, AddColumns::Auto);
        let settings = with(&[("JARVIS_ENV", "dev")]).unwrap();
        assert_eq!(settings.supervisor.environment, Environment::Development);
    }

    /// Every variable of the documentation reaches its key.
    #[test]
    fn every_documented_variable_reaches_its_key() {
        let values = [
            ("CLOUD_SQL_PROXY_HOST", "db.example"),
            ("CLOUD_SQL_PROXY_PORT", "5433"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "5.0"),
            ("CLOUD_SQL_RETRY_DELAY", "30"),
            ("CLOUD_SQL_MAX_RETRY_DELAY", "3600.0"),
            ("CLOUD_SQL_REQUIRE_PROXY", "YES"),
            ("CLOUD_SQL_DATABASE", "orders"),
            ("CLOUD_SQL_USER", "ann"),
            ("CLOUD_SQL_PASSWORD", " spaces stay "),
            ("CLOUD_SQL_PASSWORD_FILE", ""),
            ("JARVIS_ENV", "production"),
            ("TIDEWATER_DATABASE", "/var/lib/x.db"),
        ];
        assert_eq!(values.map(|(name, _)| name).into_iter().collect::<BTreeSet<_>>(), {
            FIXED_VARIABLES.iter().map(|(name, _)| *name).collect()
        });
        let settings = with(&values).unwrap();
        assert_eq!(settings.proxy.endpoint(), "db.example:5433");
        assert_eq!(settings.proxy.timeout, Duration::from_secs(5));
        assert_eq!(settings.proxy.retry_delay, Duration::from_secs(30));
        assert_eq!(settings.proxy.max_retry_delay, Duration::from_secs(3600));
        assert!(settings.proxy.require);
        assert_eq!(settings.cloud.database.as_deref(), Some("orders"));
        assert_eq!(settings.cloud.user.as_deref(), Some("ann"));
        assert_eq!(settings.cloud.password.as_ref().unwrap().expose(), " spaces stay ");
        assert_eq!(settings.sqlite.path, Path::new("/var/lib/x.db"));
    }

    /// An empty variable is a variable that is not set, also where empty would not be allowed.
    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let settings =
            with(&[("CLOUD_SQL_PROXY_PORT", ""), ("JARVIS_ENV", ""), ("TIDEWATER_LOG__LEVEL", "")]).unwrap();
        assert_eq!(settings.proxy.port, 5432);
        assert_eq!(settings.supervisor.environment, Environment::Development);
    }

    /// A bad value's message names the key, the variable and what is allowed.
    #[test]
    fn a_bad_variable_names_its_key_its_source_and_what_is_allowed() {
        let table = [
            ("CLOUD_SQL_PROXY_PORT", "0", "proxy.port", "from 1 to 65535"),
            ("CLOUD_SQL_PROXY_PORT", "65536", "proxy.port", "from 1 to 65535"),
            ("CLOUD_SQL_PROXY_PORT", "http", "proxy.port", "a whole number"),
            ("CLOUD_SQL_PROXY_PORT", "-1", "proxy.port", "a whole number"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "0", "proxy.timeout_s", "seconds from 0.001 to 3600"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "-2", "proxy.timeout_s", "seconds from"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "NaN", "proxy.timeout_s", "seconds from"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "inf", "proxy.timeout_s", "seconds from"),
            ("CLOUD_SQL_PROXY_TIMEOUT", "2s", "proxy.timeout_s", "seconds from"),
            (
                "CLOUD_SQL_RETRY_DELAY",
                "601",
                "proxy.retry_delay_s",
                "at most proxy.max_retry_delay_s, which is 600",
            ),
            ("CLOUD_SQL_MAX_RETRY_DELAY", "1e9", "proxy.max_retry_delay_s", "to 86400"),
            ("CLOUD_SQL_REQUIRE_PROXY", "maybe", "proxy.require", "true, false, 1, 0, yes, no"),
            ("CLOUD_SQL_PROXY_HOST", "127.0.0.1:5432", "proxy.host", "without a port"),
            ("CLOUD_SQL_PROXY_HOST", "a b", "proxy.host", "a host name"),
            ("CLOUD_SQL_PROXY_HOST", "./socket", "proxy.host", "absolute directory"),
            ("JARVIS_ENV", "staging", "supervisor.environment", "development, production, dev, prod"),
            ("TIDEWATER_DATABASE", ":memory:", "sqlite.path", "the path of a file"),
            ("TIDEWATER_CLOUD__SCHEMA", "tidewater", "cloud.schema", "not tidewater"),
            ("TIDEWATER_CLOUD__POOL_MAX", "0", "cloud.pool_max", "from 1 to"),
            ("TIDEWATER_CLOUD__ADD_COLUMNS", "never", "cloud.add_columns", "auto, manual"),
            ("TIDEWATER_SQLITE__READ_POOL_MAX", "0", "sqlite.read_pool_max", "from 1 to"),
            ("TIDEWATER_SYNC__DEBOUNCE_MS", "1.5", "sync.debounce_ms", "whole milliseconds"),
            ("TIDEWATER_CIRCUIT__FAILURE_THRESHOLD", "0", "circuit.failure_threshold", "from 1 to"),
            ("TIDEWATER_LOG__LEVEL", "loud", "log.level", "error, warning, info, debug"),
        ];
        for (variable, value, key, allowed) in table {
            let message = with(&[(variable, value)]).unwrap_err().to_string();
            for part in [key, variable, allowed, value] {
                assert!(message.contains(part), "{variable}={value}: {message:?} lacks {part:?}");
            }
        }
    }

    /// A file is treated like a variable: bad values, wrong types and unknown keys name the file.
    #[test]
    fn a_bad_file_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let table = [
            ("[proxy]\nport = 0", "proxy.port", "from 1 to 65535"),
            ("[proxy]\nport = [1, 2]", "proxy.port", "(not a single value)"),
            ("[proxy]\nprot = 1", "proxy.prot", "did you mean proxy.port?"),
            ("[proxy]\ntimeout = 1", "proxy.timeout", "did you mean proxy.timeout_s?"),
            ("[Proxy]\nport = 1", "Proxy.port", "did you mean proxy.port?"),
            ("[proxy.port]\nx = 1", "proxy.port.x", "not a known key"),
            ("proxy = 1", "proxy", "not a known key"),
            ("[nonsense]\nx = 1", "nonsense.x", "not a known key"),
            ("[proxy]\n[nonsense]", "nonsense", "not a known key"),
            ("[cloud]\nuser = 5", "cloud.user", "a PostgreSQL name"),
            ("[cloud]\nschema = ''", "cloud.schema", "a PostgreSQL name"),
        ];
        for (text, key, part) in table {
            std::fs::write(&file, text).unwrap();
            let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
            for part in [key, part, &file.display().to_string()] {
                assert!(message.contains(part), "{text}: {message:?} lacks {part:?}");
            }
        }
    }

    /// A file that is missing or is not TOML is named; the text of the file is not repeated.
    #[test]
    fn a_broken_file_is_named_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
        assert!(message.contains("mine.toml") && message.contains("No such file"), "{message}");
        std::fs::write(&file, "[cloud]\npassword = \"hunter2\n").unwrap();
        let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
        assert!(message.contains("mine.toml") && message.contains("line 2"), "{message}");
        assert!(!message.contains("hunter2") && !message.contains('\n'), "{message}");
    }

    /// An unknown key is refused wherever it stands; other programs' variables are left alone.
    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let message = with(&[("TIDEWATER_PROXY__PROT", "1")]).unwrap_err().to_string();
        assert!(message.contains("TIDEWATER_PROXY__PROT"), "{message}");
        assert!(message.ends_with("did you mean TIDEWATER_PROXY__PORT?"), "{message}");
        let message = Settings::builder().set("proxy.prot", 1).build().unwrap_err().to_string();
        assert!(
            message.contains("the program") && message.ends_with("did you mean proxy.port?"),
            "{message}"
        );
        let message = Settings::builder().set("proxy[0]", 1).build().unwrap_err().to_string();
        assert!(message.contains("not a known key"), "{message}");
        with(&[("TIDEWATER_TEST", "1"), ("CLOUD_SQL_CONNECTION_NAME", "p:r:i"), ("PATH", "/bin")]).unwrap();
    }

    /// A variable that is not UTF-8 is refused by name; one that is not ours does not matter.
    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf_8_is_refused_only_if_it_is_ours() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![0xff]);
        let message =
            Settings::builder().environment([("CLOUD_SQL_USER", broken())]).build().unwrap_err().to_string();
        assert!(message.contains("CLOUD_SQL_USER") && message.contains("UTF-8"), "{message}");
        Settings::builder().environment([("SOMETHING", broken())]).build().unwrap();
    }

    /// No way of printing settings or their errors shows the password.
    #[test]
    fn the_password_is_never_printed() {
        let sources = Settings::builder().environment([("CLOUD_SQL_PASSWORD", "hunter2")]);
        let settings = sources.build().unwrap();
        let password = settings.cloud.password.as_ref().unwrap();
        assert_eq!(password.expose(), "hunter2");
        let effective = format!("{:?}", settings.effective());
        let printed = format!("{sources:?} {settings:?} {settings:#?} {effective} {password} {password:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(effective.contains("(secret)"));
        let error = with(&[("CLOUD_SQL_PASSWORD", "hunter2\0")]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    /// The password file's last newline is not part of the password; everything else is.
    #[test]
    fn the_password_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let load = || Settings::builder().set("cloud.password_file", file.display()).build();
        for (text, expected) in [("a b \n", "a b "), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a")] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(load().unwrap().cloud.password.as_ref().unwrap().expose(), expected);
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(load().unwrap_err().to_string().contains("it is empty"));
        std::fs::remove_file(&file).unwrap();
        let message = load().unwrap_err().to_string();
        for part in ["cloud.password_file", &file.display().to_string(), "the program", "No such file"] {
            assert!(message.contains(part), "{message}");
        }
    }

    /// Two passwords may disagree, so both sources are named and nothing is guessed.
    #[test]
    fn a_password_and_a_password_file_together_are_refused() {
        let message =
            with(&[("CLOUD_SQL_PASSWORD", "x"), ("TIDEWATER_CLOUD__PASSWORD_FILE", "/y")]).unwrap_err();
        let message = message.to_string();
        assert!(message.contains("CLOUD_SQL_PASSWORD and"), "{message}");
        assert!(message.contains("TIDEWATER_CLOUD__PASSWORD_FILE"), "{message}");
    }

    /// What is missing for syncing is said in one sentence that names the variables to set.
    #[test]
    fn what_is_missing_for_syncing_is_said_in_a_sentence() {
        let missing = |variables: &[(&str, &str)]| with(variables).unwrap().cloud.missing();
        assert_eq!(
            missing(&[]).unwrap(),
            "CLOUD_SQL_DATABASE and CLOUD_SQL_USER are not set, so nothing can be synced; set them, and \
             CLOUD_SQL_PASSWORD or CLOUD_SQL_PASSWORD_FILE"
        );
        assert_eq!(
            missing(&[("CLOUD_SQL_DATABASE", "d"), ("CLOUD_SQL_PASSWORD", "p")]).unwrap(),
            "CLOUD_SQL_USER is not set, so nothing can be synced; set it"
        );
        assert_eq!(missing(&[("CLOUD_SQL_DATABASE", "d"), ("CLOUD_SQL_USER", "u")]), None);
    }

    /// Addresses, names and socket directories are told apart and written as people write them.
    #[test]
    fn hosts_are_told_apart() {
        let endpoint =
            |host: &str| Settings::builder().set("proxy.host", host).build().unwrap().proxy.endpoint();
        assert_eq!(endpoint("localhost"), "localhost:5432");
        assert_eq!(endpoint("10.0.0.7"), "10.0.0.7:5432");
        assert_eq!(endpoint("::1"), "[::1]:5432");
        assert_eq!(endpoint("[::1]"), "[::1]:5432");
        assert_eq!(endpoint("/cloudsql/p:r:i"), "/cloudsql/p:r:i/.s.PGSQL.5432");
        let long = format!("/{}", "x".repeat(100));
        assert!(Settings::builder().set("proxy.host", long).build().is_err());
    }

    /// Every boolean spelling of the documentation is understood, in any case.
    #[test]
    fn booleans_are_understood_in_every_spelling() {
        for (text, expected) in
            [("true", true), ("1", true), ("Yes", true), ("FALSE", false), ("0", false), ("no", false)]
        {
            assert_eq!(with(&[("CLOUD_SQL_REQUIRE_PROXY", text)]).unwrap().proxy.require, expected);
        }
    }
}
