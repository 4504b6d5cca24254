//! From text to types: the strongest layer that has a key, and every bound.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Value, ValueKind};

use super::sources::Layer;
use super::{
    ACTORS, AddColumns, BacklogLimits, CircuitSettings, CloudSettings, DoctorSettings, Effective,
    Environment, Host, HttpSettings, LinkOptions, LogFormat, LogLevel, LogSettings, PasswordCommand,
    PasswordSource, ProxySettings, SOCKET_PATH_BYTES_MAX, Secret, Sections, SettingsError, SqliteSettings,
    SupervisorSettings, SyncSettings, TablesFromCloud, TablesSettings, TlsMode, TlsOptions, UpkeepOptions,
    socket_path,
};

/// The shortest duration that is still one; below it a loop would be a busy loop.
const SHORTEST_S: f64 = 0.001;
const HOUR_S: f64 = 3600.0;
const DAY_S: f64 = 86_400.0;

/// A hundred years: more than any clock that lost its battery is off by.
const CLOCK_OFFSET_S_MAX: u32 = 3_155_760_000;

/// PostgreSQL cuts longer names off silently (NAMEDATALEN - 1).
const POSTGRES_NAME_BYTES_MAX: usize = 63;

/// Finds the strongest layer that has a key, and checks what it says.
pub(super) struct Reader<'a> {
    layers: &'a [Layer],
    /// What was asked for, with what is allowed there: compared with the keys that exist, so that no knob is without effect.
    pub(super) asked: RefCell<BTreeMap<String, String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a [Layer]) -> Self {
        Self { layers, asked: RefCell::default() }
    }

    /// The value and its origin, where so much is allowed.
    fn ask(&self, key: &str, allowed: &str) -> Result<(Value, String), SettingsError> {
        self.asked.borrow_mut().insert(key.to_owned(), allowed.to_owned());
        self.find(key)
    }

    /// The value and its origin.
    fn find(&self, key: &str) -> Result<(Value, String), SettingsError> {
        let found = self.layers.iter().rev().find_map(|layer| Some((layer.get(key)?, &layer.name)));
        let Some((value, layer)) = found else {
            // Only a slip in this file comes here: default.toml has every key.
            return Err(SettingsError::UnknownKey {
                key: key.to_owned(),
                origin: super::BUILT_IN.to_owned(),
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
        let (value, origin) = self.ask(key, allowed)?;
        let parsed = scalar(&value).and_then(|text| parse(text.trim()));
        parsed.ok_or_else(|| bad(key, &value, origin, allowed))
    }

    /// Text as it is, without trimming; empty is `None`. A number in a file is refused: `1e3` as a password
    /// would not be what it looks like.
    pub(super) fn text(&self, key: &str, allowed: &str) -> Result<Option<(String, String)>, SettingsError> {
        let (value, origin) = self.ask(key, allowed)?;
        match &value.kind {
            ValueKind::String(text) if text.is_empty() => Ok(None),
            ValueKind::String(text) if !text.contains('\0') => Ok(Some((text.clone(), origin))),
            _ => Err(bad(key, &value, origin, allowed)),
        }
    }

    /// Names as an array, or as one text with commas; none where there is nothing.
    pub(super) fn names(&self, key: &str, allowed: &str) -> Result<Vec<String>, SettingsError> {
        let (value, origin) = self.ask(key, allowed)?;
        let names = match &value.kind {
            ValueKind::String(text) if text.trim().is_empty() => Some(vec![]),
            ValueKind::String(text) => Some(text.split(',').map(|name| name.trim().to_owned()).collect()),
            _ => texts(&value),
        };
        let is_good = |names: &Vec<String>| names.iter().all(|it| !it.is_empty() && !it.contains('\0'));
        names.filter(is_good).ok_or_else(|| bad(key, &value, origin, allowed))
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

    /// As whole microseconds, which may be negative.
    fn offset_us(&self, key: &str, most: u32) -> Result<i64, SettingsError> {
        self.parse(key, &format!("seconds from -{most} to {most}"), |text| {
            let seconds = f64::from_str(text).ok()?;
            let most = f64::from(most);
            #[expect(clippy::cast_possible_truncation, reason = "bounded")]
            (-most..=most).contains(&seconds).then_some((seconds * 1e6).round() as i64)
        })
    }

    fn days(&self, key: &str, least: f64, most: f64) -> Result<Duration, SettingsError> {
        self.parse(key, &format!("days from {least} to {most}"), |text| {
            let days = f64::from_str(text).ok()?;
            (least..=most).contains(&days).then_some(days * DAY_S)
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

    /// As bytes.
    fn mebibytes(&self, key: &str) -> Result<u64, SettingsError> {
        self.whole(key, "whole mebibytes", 0, 1 << 20).map(|mebibytes: u64| mebibytes << 20)
    }

    fn boolean(&self, key: &str) -> Result<bool, SettingsError> {
        self.word(
            key,
            &[("true", true), ("false", false), ("1", true), ("0", false), ("yes", true), ("no", false)],
        )
    }

    /// One of a few words, in any case.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<T, SettingsError> {
        let allowed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.parse(key, &allowed, |text| {
            words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
        })
    }

    pub(super) fn environment(&self) -> Result<Environment, SettingsError> {
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

    pub(super) fn effective(&self, key: &str) -> Result<Effective, SettingsError> {
        let (value, origin) = self.find(key)?;
        let allowed = self.asked.borrow().get(key).cloned().unwrap_or_default();
        Ok(Effective { key: key.to_owned(), value: shown(key, &value), origin, allowed })
    }
}

/// What may be an array of texts, or one text with commas.
const LISTS: [&str; 3] = ["http.hosts", "log.levels", "sync.tables_from_cloud"];

/// How a value is shown to people.
fn shown(key: &str, value: &Value) -> String {
    if key == "cloud.password_command" {
        // Without its arguments, one of which may be a secret.
        return match words(value).as_deref() {
            None => "(not a command)".to_owned(),
            Some([]) => String::new(),
            Some([program]) => program.clone(),
            Some([program, ..]) => format!("{program} …"),
        };
    }
    let is_list =
        LISTS.contains(&key) || super::tables::split(key).is_some_and(|(_, key)| key == "columns_left_out");
    if is_list && let Some(hosts) = texts(value) {
        return hosts.join(", ");
    }
    match scalar(value) {
        Some(text) if key == "cloud.password" && !text.is_empty() => "(secret)".to_owned(),
        Some(text) => text,
        None => "(not a single value)".to_owned(),
    }
}

/// A command, as one text or word by word.
fn words(value: &Value) -> Option<Vec<String>> {
    let words = match &value.kind {
        ValueKind::String(text) => shlex::split(text)?,
        _ => texts(value)?,
    };
    let good = words.iter().all(|word| !word.contains('\0')) && words.first().is_none_or(|it| !it.is_empty());
    good.then_some(words)
}

/// An array of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    let ValueKind::Array(items) = &value.kind else { return None };
    let text = |item: &Value| match &item.kind {
        ValueKind::String(text) => Some(text.clone()),
        _ => None,
    };
    items.iter().map(text).collect()
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
    pub(super) fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let sqlite = SqliteSettings::read(reader)?;
        Ok(Self {
            proxy: ProxySettings::read(reader)?,
            cloud: CloudSettings::read(reader)?,
            sync: SyncSettings {
                // A round is held in memory and in one transaction on either side: hence the upper bounds.
                window_rows_max: reader.count("sync.window_rows_max", 1, 100_000)?,
                page_rows_max: reader.count("sync.page_rows_max", 1, 100_000)?,
                pull_interval: reader.seconds("sync.pull_interval_s", SHORTEST_S, DAY_S)?,
                feed_poll_interval: reader.seconds("sync.feed_poll_interval_s", SHORTEST_S, DAY_S)?,
                feed_poll_first: reader.millis("sync.feed_poll_first_ms", 1, 60_000)?,
                retry_delay: reader.seconds("sync.retry_delay_s", SHORTEST_S, HOUR_S)?,
                debounce: reader.millis("sync.debounce_ms", 0, 60_000)?,
                foreign_poll: reader.millis("sync.foreign_poll_ms", 1, 60_000)?,
                backlog: BacklogLimits {
                    entries_max: reader.count("sync.backlog_entries_max", 0, 1 << 40)?,
                    bytes_max: reader.count("sync.backlog_bytes_max", 0, 1 << 50)?,
                },
                trim_interval: reader.seconds("sync.trim_interval_s", SHORTEST_S, DAY_S)?,
                device_retire: reader.days("sync.device_retire_days", 0.000_01, 3650.0)?,
                feed_entries_max: reader.count("sync.feed_entries_max", 10, 1_000_000_000_000)?,
                conflicts_max: reader.count("sync.conflicts_max", 10, 1_000_000_000)?,
                local_conflicts_max: reader.count("sync.local_conflicts_max", 10, 1_000_000_000)?,
                clock_offset_us: reader.offset_us("sync.clock_offset_s", CLOCK_OFFSET_S_MAX)?,
                tables_from_cloud: read_tables_from_cloud(reader)?,
            },
            circuit: CircuitSettings {
                failure_threshold: reader.count("circuit.failure_threshold", 1, 1000)?,
                success_threshold: reader.count("circuit.success_threshold", 1, 1000)?,
                open: reader.seconds("circuit.open_s", SHORTEST_S, DAY_S)?,
            },
            supervisor: SupervisorSettings {
                restarts_max: reader.count("supervisor.restarts_max", 0, 100_000)?,
                restarts_within: reader.seconds("supervisor.restarts_within_s", SHORTEST_S, DAY_S)?,
                stuck_after: reader.seconds("supervisor.stuck_after_s", 0.0, DAY_S)?,
                shutdown: reader.seconds("supervisor.shutdown_s", SHORTEST_S, HOUR_S)?,
                environment: reader.environment()?,
            },
            http: HttpSettings::read(reader, &sqlite)?,
            sqlite,
            log: LogSettings {
                format: reader.word("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?,
                level: reader.word("log.level", &LEVELS)?,
                levels: read_levels(reader)?,
                progress_after: reader.seconds("log.progress_after_s", SHORTEST_S, DAY_S)?,
            },
            tables: TablesSettings::read(reader.layers, reader)?,
            doctor: DoctorSettings {
                disk_free_bytes: reader.mebibytes("doctor.disk_free_mib")?,
                clock_skew: reader.seconds("doctor.clock_skew_s", 0.0, DAY_S)?,
                // Thirty days: devices sleep.
                backlog_age: reader.seconds("doctor.backlog_age_s", 0.0, 30.0 * DAY_S)?,
                integrity: reader.seconds("doctor.integrity_s", SHORTEST_S, DAY_S)?,
            },
        })
    }
}

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warning", LogLevel::Warning),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("warn", LogLevel::Warning),
];

/// `CloudSyncer=debug`, one or more; of an actor that is named twice, the last one holds.
fn read_levels(reader: &Reader<'_>) -> Result<BTreeMap<&'static str, LogLevel>, SettingsError> {
    let key = "log.levels";
    let allowed = format!(
        "ACTOR=LEVEL, with commas or as an array; the actors are {}, the levels error, warning, info, debug",
        ACTORS.join(", ")
    );
    let level = |text: &String| {
        let (actor, level) = text.split_once('=')?;
        let actor = ACTORS.iter().find(|name| name.eq_ignore_ascii_case(actor.trim()))?;
        let (_, level) = LEVELS.iter().find(|(word, _)| word.eq_ignore_ascii_case(level.trim()))?;
        Some((*actor, *level))
    };
    match reader.names(key, &allowed)?.iter().map(level).collect() {
        Some(levels) => Ok(levels),
        None => {
            let (value, origin) = reader.find(key)?;
            Err(bad(key, &value, origin, &allowed))
        }
    }
}

fn read_tables_from_cloud(reader: &Reader<'_>) -> Result<TablesFromCloud, SettingsError> {
    let key = "sync.tables_from_cloud";
    let allowed = "auto, none, all, or the names of tables";
    let (value, _) = reader.ask(key, allowed)?;
    let word = match &value.kind {
        ValueKind::String(text) => text.trim().to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "auto" => Ok(TablesFromCloud::Auto),
        "none" => Ok(TablesFromCloud::None),
        "all" => Ok(TablesFromCloud::All),
        _ => reader.names(key, allowed).map(TablesFromCloud::Named),
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

impl HttpSettings {
    fn read(reader: &Reader<'_>, sqlite: &SqliteSettings) -> Result<Self, SettingsError> {
        let remote = reader.boolean("http.allow_remote")?;
        let listen = reader.parse(
            "http.listen",
            "off, or a loopback address with its port, such as 127.0.0.1:8432; any other address only with http.allow_remote = true",
            |text| match text {
                _ if text.eq_ignore_ascii_case("off") => Some(None),
                _ => {
                    let loopback = |rest: &str| {
                        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, rest.strip_prefix(':')?.parse().ok()?)))
                    };
                    let named = text.strip_prefix("localhost").and_then(loopback);
                    let address = named.or_else(|| text.parse().ok())?;
                    (remote || address.ip().to_canonical().is_loopback()).then_some(Some(address))
                }
            },
        )?;
        let key = "http.token_file";
        let allowed = "the path of a file, or off where http.listen is a loopback address";
        let token_file = match reader.text(key, allowed)? {
            None => Some(sqlite.beside(".token")),
            Some((text, _)) if text.eq_ignore_ascii_case("off") => None,
            Some((path, _)) => Some(path.into()),
        };
        let settings = Self {
            listen,
            token_file,
            hosts: read_hosts(reader)?,
            connections_max: reader.count("http.connections_max", 1, 10_000)?,
            subscribers_max: reader.count("http.subscribers_max", 0, 10_000)?,
            request_timeout: reader.seconds("http.request_timeout_s", SHORTEST_S, HOUR_S)?,
        };
        if settings.is_remote() && settings.token_file.is_none() {
            // Nobody could prove that he may ask.
            let (value, origin) = reader.find(key)?;
            return Err(bad(key, &value, origin, allowed));
        }
        Ok(settings)
    }
}

/// Names without ports, as one text or as an array.
fn read_hosts(reader: &Reader<'_>) -> Result<Vec<String>, SettingsError> {
    let key = "http.hosts";
    let allowed = "host names and addresses without ports, as one text with commas or as an array";
    let (value, origin) = reader.ask(key, allowed)?;
    let given = match &value.kind {
        ValueKind::String(text) => Some(text.split(',').map(str::to_owned).collect()),
        _ => texts(&value),
    };
    let named = given.and_then(|hosts| {
        let hosts = hosts.iter().map(|host| host.trim()).filter(|host| !host.is_empty());
        hosts.map(parse_served_host).collect::<Option<Vec<_>>>()
    });
    named.ok_or_else(|| bad(key, &value, origin, allowed))
}

/// As the header is compared with it.
fn parse_served_host(text: &str) -> Option<String> {
    match parse_host(text, 0)? {
        Host::Address(address) => Some(IpAddr::to_string(&address)),
        Host::Name(name) => Some(name.to_ascii_lowercase()),
        Host::SocketDirectory(_) => None,
    }
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
        let (password, source) = read_password(reader)?;
        Ok(Self {
            database: optional("cloud.database")?,
            user: optional("cloud.user")?,
            password,
            link: LinkOptions {
                tls: read_tls(reader)?,
                password: source,
                password_in_clear: reader.boolean("cloud.password_in_clear")?,
                idle: reader.seconds("cloud.idle_s", SHORTEST_S, DAY_S)?,
                silence: reader.seconds("cloud.silence_s", SHORTEST_S, DAY_S)?,
                // Less than a page of ordinary rows is no bound but a fault; more than this, PostgreSQL does not send.
                message_bytes_max: reader.count("cloud.message_bytes_max", 1 << 20, (1 << 31) - 1)?,
            },
            schema: reader.name(
                "cloud.schema",
                "a PostgreSQL name of at most 63 bytes, but not tidewater, information_schema or pg_…",
                |text| {
                    text.len() <= POSTGRES_NAME_BYTES_MAX
                        && !["tidewater", "information_schema"].contains(&text)
                        && !text.starts_with("pg_")
                },
            )?,
            pool_max: reader.count("cloud.pool_max", 2, 100)?,
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

/// What there is now, and where later ones come from.
fn read_password(reader: &Reader<'_>) -> Result<(Option<Secret>, PasswordSource), SettingsError> {
    let password = reader.text("cloud.password", "text")?;
    let file = reader.text("cloud.password_file", "the path of a file")?;
    let (command, command_origin) = read_command(reader)?;
    let given = [
        ("cloud.password", password.as_ref().map(|(_, origin)| origin)),
        ("cloud.password_file", file.as_ref().map(|(_, origin)| origin)),
        ("cloud.password_command", command.as_ref().map(|_| &command_origin)),
    ];
    let given: Vec<_> = given.into_iter().filter_map(|(key, origin)| Some((key, origin?.clone()))).collect();
    if let [(first, first_origin), (second, second_origin), ..] = given.as_slice() {
        let (first_origin, second_origin) = (first_origin.clone(), second_origin.clone());
        return Err(SettingsError::TwoPasswords { first, first_origin, second, second_origin });
    }
    match (password, file, command) {
        (Some((password, _)), ..) => Ok((Some(Secret::new(password)), PasswordSource::Fixed)),
        (None, Some((path, origin)), _) => match tidewater_actors::postgres::password_in(Path::new(&path)) {
            Ok(password) => Ok((Some(Secret::new(password)), PasswordSource::File(path.into()))),
            Err(reason) => Err(SettingsError::PasswordFile { path, origin, reason }),
        },
        (None, None, Some(command)) => Ok((None, PasswordSource::Command(command))),
        (None, None, None) => Ok((None, PasswordSource::Fixed)),
    }
}

/// The command for the password, and where it was set.
fn read_command(reader: &Reader<'_>) -> Result<(Option<PasswordCommand>, String), SettingsError> {
    let key = "cloud.password_command";
    let timeout = reader.seconds("cloud.password_command_timeout_s", SHORTEST_S, HOUR_S)?;
    let ttl = reader.seconds("cloud.password_ttl_s", SHORTEST_S, 30.0 * DAY_S)?;
    let allowed = "a program and its arguments, as one text or as an array of texts";
    let (value, origin) = reader.ask(key, allowed)?;
    match words(&value) {
        Some(argv) if argv.is_empty() => Ok((None, origin)),
        Some(argv) => Ok((Some(PasswordCommand { argv, timeout, ttl }), origin)),
        None => Err(bad(key, &value, origin, allowed)),
    }
}

fn read_tls(reader: &Reader<'_>) -> Result<TlsOptions, SettingsError> {
    let path = |key| Ok(reader.text(key, "the path of a file")?.map(|(path, _)| PathBuf::from(path)));
    let name = "a host name, an address, or the project:instance of Cloud SQL";
    let server_name = match reader.text("cloud.tls_server_name", name)? {
        Some((text, origin)) if text.contains(char::is_whitespace) || text.chars().any(char::is_control) => {
            return Err(bad("cloud.tls_server_name", &Value::new(None, text), origin, name));
        }
        found => found.map(|(text, _)| text),
    };
    let tls = TlsOptions {
        mode: reader.word(
            "cloud.tls",
            &[("auto", TlsMode::Auto), ("required", TlsMode::Required), ("off", TlsMode::Off)],
        )?,
        ca_file: path("cloud.tls_ca_file")?,
        server_name,
        cert_file: path("cloud.tls_cert_file")?,
        key_file: path("cloud.tls_key_file")?,
    };
    for (key, there, other, other_there) in [
        ("cloud.tls_cert_file", tls.cert_file.is_some(), "cloud.tls_key_file", tls.key_file.is_some()),
        ("cloud.tls_key_file", tls.key_file.is_some(), "cloud.tls_cert_file", tls.cert_file.is_some()),
    ] {
        if there && !other_there {
            let (value, origin) = reader.find(key)?;
            return Err(bad(key, &value, origin, &format!("together with {other}, or not at all")));
        }
    }
    Ok(tls)
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
            migrations: reader
                .text("sqlite.migrations", "the path of a folder")?
                .map(|(path, _)| path.into()),
            upkeep: UpkeepOptions {
                checkpoint_pages: reader.count("sqlite.checkpoint_pages", 1, 1_000_000)?,
                wal_keep_bytes: reader.mebibytes("sqlite.wal_keep_mib")?,
                wal_warn_bytes: reader.mebibytes("sqlite.wal_warn_mib")?,
                idle: reader.seconds("sqlite.idle_s", SHORTEST_S, DAY_S)?,
                vacuum_step_pages: reader.count("sqlite.vacuum_step_pages", 0, 1_000_000)?,
            },
        })
    }
}
