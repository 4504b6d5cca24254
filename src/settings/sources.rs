//! What is read: [`Sources`], which are also the builder of settings, and the layers that they become.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{Config, FileFormat, Map, Source, Value, ValueKind};

use tidewater_actors::core::dispute::{Decide, Resolver};

use super::tables::{self, Said};
use super::{Settings, SettingsError};

/// The variables that people have in their scripts already, and the keys they set. Names and meaning are fixed.
pub(super) const FIXED_VARIABLES: [(&str, &str); 12] = [
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

/// What settings are read from, and at the same time their builder: each call adds to one layer.
#[derive(Clone, Default)]
pub struct Sources {
    pub(super) config_file: Option<PathBuf>,
    environment: BTreeMap<OsString, OsString>,
    pub(super) flags: Vec<Pair>,
    pub(super) code: Vec<Pair>,
    pub(super) resolver: Option<Resolver>,
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

    /// The app decides conflicts itself: it is asked wherever the same column was changed here and in the cloud, or a row was
    /// deleted on one side and changed on the other. `None` leaves it to the table's policy (`conflicts` of `[tables.NAME]`), and
    /// so does a panic, which is one line in the log per table. What nobody watched (a table that was rebuilt, a file that meets
    /// the cloud for the first time), and a part of a foreign key of several columns, is the policy's in any case.
    ///
    /// Whatever it says, the value that loses is in the log of conflicts, here and in the cloud; of
    /// [`Verdict::Value`](crate::Verdict::Value), both are.
    ///
    /// It has to be a pure function of what it is shown, the same in every version of the app that is in use, or devices disagree
    /// until one of them has sent last. It runs on the thread that writes, within a transaction: it must not wait for anything,
    /// nor use the database. It may be asked more than once about the same.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tidewater::{Dispute, Value, Verdict, settings::Settings};
    ///
    /// let settings = Settings::builder()
    ///     .decide_conflicts(Arc::new(|dispute: &Dispute<'_>| match (dispute.table(), dispute.column()) {
    ///         // Two devices counted: both counts count.
    ///         ("stock", Some("pieces")) => match (dispute.base(), dispute.local(), dispute.cloud()) {
    ///             (Some(Value::Integer(base)), Some(Value::Integer(here)), Some(Value::Integer(there))) => {
    ///                 Some(Verdict::Value(Value::Integer(there.saturating_add(here.saturating_sub(*base)))))
    ///             }
    ///             _ => None,
    ///         },
    ///         // A deletion never wins.
    ///         ("note", None) if dispute.is_deleted_here() => Some(Verdict::Cloud),
    ///         ("note", None) => Some(Verdict::Local),
    ///         _ => None,
    ///     }))
    ///     .build()?;
    /// # Ok::<(), tidewater::settings::SettingsError>(())
    /// ```
    #[must_use]
    pub fn decide_conflicts(mut self, decide: Arc<Decide>) -> Self {
        self.resolver = Some(Resolver::new(decide));
        self
    }

    /// [`Settings::load`].
    ///
    /// # Errors
    /// As there.
    pub fn build(&self) -> Result<Settings, SettingsError> {
        Settings::load(self)
    }

    /// `TIDEWATER_<SECTION>__<KEY>`, `TIDEWATER_TABLES__<NAME>__<KEY>`. Names without the double underscore belong to others.
    pub(super) fn tidewater_variables(&self, known: &BTreeSet<String>) -> Result<Layer, SettingsError> {
        let mut pairs = Vec::new();
        for (name, value) in &self.environment {
            let Some(name) = name.to_str() else { continue };
            let Some((section, key)) = name.strip_prefix("TIDEWATER_").and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let of_table =
                section.eq_ignore_ascii_case(tables::SECTION).then(|| tables::key_of_variable(key));
            let key = of_table.unwrap_or_else(|| format!("{section}.{key}").to_lowercase());
            if !is_known(&key, known) {
                let nearest = suggestion(&key, known).map(|it| match tables::split(&it) {
                    Some((table, key)) => format!("TIDEWATER_TABLES__{table}__{}", key.to_uppercase()),
                    None => format!("TIDEWATER_{}", it.replacen('.', "__", 1).to_uppercase()),
                });
                return Err(SettingsError::UnknownKey { key, origin: name.to_owned(), nearest });
            }
            pairs.extend(Pair::variable(name, &key, value)?);
        }
        Layer::pairs("TIDEWATER_ variables", &pairs, known)
    }

    pub(super) fn fixed_variables(&self) -> Result<Layer, SettingsError> {
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
pub(super) struct Pair {
    key: String,
    value: String,
    origin: String,
}

impl Pair {
    fn new(key: &str, value: impl fmt::Display, origin: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), origin: origin.to_owned() }
    }

    fn value(&self) -> Value {
        Value::new(Some(&self.origin), ValueKind::String(self.value.clone()))
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
        Ok(self.0.iter().map(|pair| (pair.key.clone(), pair.value())).collect())
    }
}

/// One layer, kept apart from the others so that the source of each value can be named.
pub(super) struct Layer {
    pub(super) name: String,
    config: Config,
    /// What it says of single tables, whose names may be anything, dots included.
    pub(super) tables: Vec<Said>,
    /// Whether what it says of a table is meant for every one.
    pub(super) for_every_table: bool,
}

impl Layer {
    fn build(name: &str, source: impl Source + Send + Sync + 'static) -> Result<Self, SettingsError> {
        let config = Config::builder().add_source(source).build();
        let config = config
            .map_err(|error| SettingsError::File { path: name.to_owned(), reason: without_text(&error) })?;
        Ok(Self { name: name.to_owned(), config, tables: vec![], for_every_table: false })
    }

    pub(super) fn toml(name: &str, text: &str) -> Result<Self, SettingsError> {
        let mut layer = Self::build(name, config::File::from_str(text, FileFormat::Toml))?;
        if let ValueKind::Table(root) = &mut layer.config.cache.kind
            && let Some(section) = root.remove(tables::SECTION)
        {
            layer.tables = tables::said(section, name)?;
        }
        Ok(layer)
    }

    /// The weakest layer: it has every key, and what it says of one table is meant for all of them.
    pub(super) fn built_in(name: &str, text: &str) -> Result<Self, SettingsError> {
        Ok(Self { for_every_table: true, ..Self::toml(name, text)? })
    }

    pub(super) fn file(path: &Path, known: &BTreeSet<String>) -> Result<Self, SettingsError> {
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
        for said in &layer.tables {
            require_known(&said.full_key(), &name, known)?;
        }
        tables::require_one_spelling(&layer.tables, &name)?;
        Ok(layer)
    }

    /// Unknown keys are refused before `config` sees them, because it would read `a[0]` as an index.
    pub(super) fn pairs(name: &str, pairs: &[Pair], known: &BTreeSet<String>) -> Result<Self, SettingsError> {
        let (mut plain, mut of_tables) = (vec![], vec![]);
        for pair in pairs {
            require_known(&pair.key, &pair.origin, known)?;
            match tables::split(&pair.key) {
                Some((table, key)) => of_tables.push(Said::new(table, key, pair.value())),
                None => plain.push(pair.clone()),
            }
        }
        Ok(Self { tables: of_tables, ..Self::build(name, Pairs(plain))? })
    }

    /// Every key that it sets, those of tables included.
    pub(super) fn keys(&self) -> BTreeSet<String> {
        let of_tables = self.tables.iter().map(Said::full_key);
        self.leaves().into_iter().map(|(key, _)| key).chain(of_tables).collect()
    }

    /// The keys that this layer sets, but for those of tables. An empty section is among them, so that one that does not exist
    /// is found.
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
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        if let Some((table, key)) = tables::split(key) {
            let of_this = |said: &&Said| {
                said.key == key && (self.for_every_table || said.table.eq_ignore_ascii_case(table))
            };
            // Of what the program says twice, the last holds.
            return self.tables.iter().rfind(of_this).map(|said| &said.value);
        }
        key.split('.').try_fold(&self.config.cache, |value, part| match &value.kind {
            ValueKind::Table(table) => table.get(part),
            _ => None,
        })
    }
}

fn require_known(key: &str, origin: &str, known: &BTreeSet<String>) -> Result<(), SettingsError> {
    if is_known(key, known) {
        return Ok(());
    }
    Err(SettingsError::UnknownKey {
        key: key.to_owned(),
        origin: origin.to_owned(),
        nearest: suggestion(key, known),
    })
}

/// A table's key is known by what it is called for every table.
fn is_known(key: &str, known: &BTreeSet<String>) -> bool {
    match tables::split(key) {
        Some((_, key)) => known.contains(&tables::full_key(tables::ANY, key)),
        None => known.contains(key),
    }
}

/// [`nearest`]; for a key of a table, the nearest that it can have.
fn suggestion(key: &str, known: &BTreeSet<String>) -> Option<String> {
    let Some((table, key)) = tables::split(key) else {
        return nearest(key, known).map(str::to_owned);
    };
    let keys = known.iter().filter_map(|it| tables::split(it)).map(|(_, key)| key.to_owned()).collect();
    nearest(key, &keys).map(|key| tables::full_key(table, key))
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
    // A third of the key: `proxy.timeout` finds `proxy.timeout_s`, `web.address` finds nothing.
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
