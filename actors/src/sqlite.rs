//! The one place that knows SQLite: this file, and its parts in the folder `sqlite`.
//!
//! ```text
//! Store     two connections on the writer's thread
//!           ├─ write   the app's statements, in groups; the rounds' bookkeeping
//!           └─ apply   rows that come from the cloud; triggers and foreign-key actions off
//! Readers   a pool of read-only connections, for the app and for reading a round's rows
//! ```
//!
//! Parts: `migrate.rs` (the app's own schema), `background.rs` (reads on other threads, and how they are ended), `rows.rs`
//! (rows as types), `rules.rs` (what is set for single tables), `from_cloud.rs` (tables made from the cloud's), `backlog.rs` (how much waits, and its limit), `parked.rs` (rows that PostgreSQL refuses), `copy.rs` (a copy of the file while it is in use; whether
//! it is whole), `examine.rs` (a look that changes nothing), `upkeep.rs` (keeps the log short and gives free pages back),
//! `watch.rs` (notices what others do with the file), `growing.rs` and `clearing.rs` (how a round comes, and how it leaves).
//!
//! Invariants:
//! - S1 (P1): nothing is answered before its COMMIT returned, in WAL mode with `synchronous=FULL`.
//! - S2 (P2): a row that differs from what the cloud is known to have has an entry in exactly one of journal or
//!   parked, or in flight, or in flight and journal (dirtied again while under way).
//! - S3: `_tidewater_round` has a row exactly while a flight table may have one.
//! - S4: every change to the files' tables, ours or the app's, is one transaction: a crash leaves the old state or
//!   the new one.
//! - S5: a writer that was given up for stuck commits nothing any more, and a unit that was taken back is committed by
//!   nobody: two writers that hold the file for a while do nothing twice.

mod background;
mod backlog;
mod clearing;
mod conflicts;
mod copy;
mod examine;
mod from_cloud;
mod growing;
mod history;
mod look;
mod migrate;
mod parked;
mod rows;
mod rules;
mod upkeep;
mod watch;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, InterruptHandle, OpenFlags, OptionalExtension as _, Row, ToSql,
    Transaction, TransactionBehavior, params, params_from_iter,
};

use crate::core::direction::Direction;
use crate::core::merge::{Entry, Local, Loss, Merged, Policies, Seen, Side, Theirs, Undecided, merge};
use crate::core::rules::TableRules;
use crate::core::schema::{COLUMNS_MAX, Column, ForeignKey, Table, Unique};
use crate::core::value::{CloudType, Value, alike, json_array};
use crate::messages::NoteRound;
use crate::migrations::MigrationError;
use crate::sql::capture::{
    self, ASIDE, FLIGHT, JOURNAL, PARKED, SEEN, Unseen, entry_columns, key_columns, side_table,
};
use crate::sql::cloud::is_same_default;
use crate::sql::{all, ident, list};
use crate::supervision::{is_stale, patiently, progress};

pub use self::background::{Cancel, Canceller};
use self::backlog::Gauge;
pub use self::backlog::{Backlog, BacklogLimits};
pub use self::clearing::{CLEARED_AT_ONCE, TAKEN_OUT_AT_ONCE};
pub use self::conflicts::{Conflict, ConflictPage, Restores};
pub use self::copy::{Copied, Copying, IntegrityReport, Orphans};
pub use self::examine::{Examined, Syncable, check_integrity, examine, syncable};
pub use self::from_cloud::{MadeTables, Names};
pub use self::growing::{Grown, InFlight, Part, Rest};
pub use self::history::{Anew, Home, Leftovers, Witness};
pub use self::look::LookingNow;
pub use self::parked::{
    Discardable, Kept, Parked, ParkedPage, ParkedRow, PendingAfter, PendingPage, PendingRow, Retried, Which,
};
pub use self::rows::RowError;
use self::upkeep::Upkeep;
pub use self::upkeep::UpkeepOptions;
use self::watch::Bell;

/// Where the file is and how it is used.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The SQLite file; created when missing.
    pub path: PathBuf,
    /// How long a statement waits for another process that holds the file's lock.
    pub busy_timeout: Duration,
    /// The most read connections at once.
    pub read_pool_max: u32,
    /// How the file is kept.
    pub upkeep: UpkeepOptions,
}

/// What went wrong with the SQLite file, and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened as a database.
    #[error("{path}: {reason}; {remedy}")]
    Open {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What a person can do.
        remedy: String,
    },
    /// Another supervisor has this file.
    #[error("{path} is in use by another supervisor; stop that one, or give this one a file of its own")]
    InUse {
        /// The file.
        path: String,
    },
    /// The round that the caller speaks of is not the one in flight.
    #[error("the round is not in flight any more")]
    NotInFlight,
    /// Another process held the file's lock for longer than the busy timeout.
    #[error(
        "the SQLite file is locked by another process: {0}; try again, end the program that holds it, or raise \
         sqlite.busy_timeout_s"
    )]
    Busy(String),
    /// No space is left for the file.
    #[error("the disk is full: {0}; free some space on it and try again")]
    Full(String),
    /// The file or its folder cannot be written.
    #[error(
        "the SQLite file cannot be written: {0}; give this user the right to write it and its folder, and see whether \
         its disk has become read-only"
    )]
    ReadOnly(String),
    /// The file that is open is not the one any more that its name stands for.
    #[error(
        "{path} was deleted or replaced while it was open; nothing is written to it any more: put it back, or restart \
         to go on with what is there now"
    )]
    ReplacedFile {
        /// What is gone: the file, or the `-wal` or `-shm` beside it.
        path: String,
    },
    /// The file's contents are damaged.
    #[error(
        "the SQLite file is damaged: {0}; restore a backup, or recover it with the sqlite3 shell's .recover"
    )]
    Damaged(String),
    /// The statement is of a kind that callers may not run, because it would touch other callers' transaction.
    #[error("{0} is not allowed in a write: the writer owns the transaction and its connection")]
    Forbidden(String),
    /// SQLite refused the statement: a constraint, a syntax error, an unknown table.
    #[error("{0}")]
    Statement(String),
    /// As much waits for the cloud as may, and the write would add to it. Nothing was done.
    #[error(
        "the backlog is full: {entries} rows ({bytes} bytes) wait for the cloud, and {key} is {limit}; try again once the \
         cloud has taken some, or raise it"
    )]
    BacklogFull {
        /// Rows that wait.
        entries: u64,
        /// Bytes of their entries in the file.
        bytes: u64,
        /// The limit that is reached.
        key: &'static str,
        /// Its value.
        limit: u64,
    },
    /// The file has been closed.
    #[error("the SQLite file has been closed")]
    Closed,
    /// Reading or writing the file failed.
    #[error("the SQLite file cannot be accessed: {0}; look after its disk, and try again")]
    Io(String),
    /// The tables are not those any more that the caller speaks of; it has to look again.
    #[error("the schema changed meanwhile")]
    SchemaChanged,
    /// A round is in flight that has to be settled first.
    #[error("another round is in flight")]
    InFlight,
    /// Whoever asked for the write has taken it back.
    #[error("the write was taken back")]
    Withdrawn,
    /// The writer was taken for stuck and has a successor: it commits nothing any more.
    #[error("another writer has taken over")]
    Replaced,
    /// A migration of the app's schema cannot be applied.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A row is not what the caller takes it for.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A copy of the file cannot be made.
    #[error("{path} cannot be written: {reason}")]
    Copy {
        /// Where it was to be.
        path: String,
        /// Why not, and what helps.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same call can succeed later without anything being changed in it.
    pub fn retry_helps(&self) -> bool {
        matches!(
            self,
            Self::Busy(_)
                | Self::Full(_)
                | Self::Io(_)
                | Self::SchemaChanged
                | Self::InFlight
                | Self::NotInFlight
                | Self::BacklogFull { .. }
                | Self::Replaced
        )
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(text),
            Some(ErrorCode::DiskFull) => Self::Full(text),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(text),
            // The words are the same for all of them.
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
                match error.sqlite_extended_error_code() {
                    Some(code) => Self::Io(format!("{text}, SQLite's code {code}")),
                    None => Self::Io(text),
                }
            }
            _ => Self::Statement(text),
        }
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// A statement of the app with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// One SQL statement.
    pub sql: String,
    /// Its parameters, `?1` first.
    pub params: Vec<Value>,
}

impl Statement {
    /// A statement without parameters.
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), params: vec![] }
    }

    /// The same with one more parameter.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.params.push(value.into());
        self
    }
}

/// A moment between rounds. Everything that was dirty then is in the cloud once no entry of this epoch, or of an older one,
/// is left; rows that were parked before do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The flush epoch: how many rounds had been noted.
    pub epoch: i64,
    /// How many rows had been parked.
    pub parkings: i64,
}

/// Statements that are done as one, or not at all, and the note of how far that has come. Clones share the note: who asked
/// for it finds there what a writer that died, or hangs, does not answer any more.
///
/// ```text
/// open ─▶ committing ─▶ committed       by the writer; back to open when the commit failed
///   └───▶ withdrawn                     by who asked: no writer commits it from now on
/// ```
#[derive(Debug, Clone)]
pub struct Unit {
    work: Arc<Work>,
    alone: bool,
}

#[derive(Debug)]
struct Work {
    statements: Vec<Statement>,
    note: Mutex<Progress>,
}

#[derive(Debug)]
enum Progress {
    Open,
    Withdrawn,
    Committing,
    Committed(Written),
}

/// What can still become of a unit whose writer does not answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Withdrawn {
    /// It has not been done, and is not going to be.
    InTime,
    /// It is on the disk.
    TooLate(Written),
    /// Its commit is under way: ask again.
    Undecided,
}

impl Unit {
    /// Statements that have not been done.
    pub fn new(statements: impl IntoIterator<Item = Statement>) -> Self {
        Self { work: Work::new(statements.into_iter().collect()), alone: false }
    }

    /// The same statements to be done anew, and not in a group with others: one of those may be what the last writer died
    /// of. Only for a unit that was withdrawn in time.
    #[must_use]
    pub fn again(self) -> Self {
        Self { work: Work::new(self.work.statements.clone()), alone: true }
    }

    /// Whether it is to be committed by itself.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Takes it back, if that is still possible. Never waits for the disk.
    pub fn withdraw(&self) -> Withdrawn {
        let mut note = self.note();
        match &*note {
            Progress::Open | Progress::Withdrawn => {
                *note = Progress::Withdrawn;
                Withdrawn::InTime
            }
            Progress::Committing => Withdrawn::Undecided,
            Progress::Committed(written) => Withdrawn::TooLate(written.clone()),
        }
    }

    fn note(&self) -> MutexGuard<'_, Progress> {
        // A single assignment is never half done.
        self.work.note.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn new(statements: Vec<Statement>) -> Arc<Self> {
        Arc::new(Self { statements, note: Mutex::new(Progress::Open) })
    }
}

/// Keeps a group's notes while its commit is under way. Dropped without one, they are open again.
struct Committing<'a>(&'a [Unit]);

impl<'a> Committing<'a> {
    /// Unless one of them has been withdrawn.
    fn begin(units: &'a [Unit]) -> Result<Self> {
        let begun = Self(units);
        for unit in units {
            let mut note = unit.note();
            match *note {
                Progress::Open => *note = Progress::Committing,
                _ => return Err(StoreError::Withdrawn),
            }
        }
        Ok(begun)
    }

    /// They are on the disk.
    fn done(self, results: Vec<Option<Written>>) {
        for (unit, written) in self.0.iter().zip(results) {
            // Who was rolled back alone is not asked about: the writer lives and answers.
            *unit.note() = written.map_or(Progress::Open, Progress::Committed);
        }
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        for unit in self.0 {
            let mut note = unit.note();
            if let Progress::Committing = *note {
                *note = Progress::Open;
            }
        }
    }
}

/// What a committed write did.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Where the commit stands among rounds and parkings.
    pub mark: Mark,
    /// One per statement, in order.
    pub results: Vec<StatementResult>,
}

/// What one statement did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StatementResult {
    /// Rows changed.
    pub rows_changed: u64,
    /// The rowid of the connection's last insert.
    pub last_insert_rowid: i64,
    /// The rows of a `RETURNING` clause.
    pub rows: Vec<Vec<Value>>,
}

/// Something to tell the person who runs this, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice(pub String);

/// A round that has been noted: its entries are in flight, durably, under this id.
#[derive(Debug, Clone)]
pub struct Noted {
    /// The random id of the round.
    pub id: String,
    /// The tables as they were when the round was noted.
    pub tables: Vec<Table>,
    /// Their generation.
    pub generation: u64,
    /// The epoch that it closed: every entry that was there when it was noted is of this one or an older one.
    pub epoch: i64,
    /// Whether nothing else waits: what is refused now is refused on top of everything.
    pub complete: bool,
    /// Whether entries are in it that were refused before.
    pub retry: bool,
    /// Whether something that its rows may need had no room in it.
    pub narrow: bool,
    /// Where the round can grow: the table with which that begins.
    pub grows: Option<i64>,
    /// SQLite's number of the schema under which the entries undo what was written since.
    schema_version: i64,
}

/// One row of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundRow {
    /// The primary key.
    pub key: Vec<Value>,
    /// The noted entry.
    pub entry: Entry,
    /// The row as it was when the round was noted.
    pub row: Option<Vec<Value>>,
}

/// A row that PostgreSQL refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The table's id.
    pub table: i64,
    /// The row's key.
    pub key: Vec<Value>,
    /// PostgreSQL's code; none when the value does not fit the column's type.
    pub sqlstate: Option<String>,
    /// What PostgreSQL said.
    pub message: String,
    /// The constraint's name, if it was one.
    pub constraint: Option<String>,
    /// The row's values as JSON.
    pub values: Option<String>,
}

/// A row that left its round because somebody else changed it; the cloud's row as read under its lock.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The table's id.
    pub table: i64,
    /// The row's key.
    pub key: Vec<Value>,
    /// The cloud's row, or none if it is deleted there.
    pub row: Option<Vec<Value>>,
    /// The newest feed entry that this row contains.
    pub seen: i64,
    /// When others changed it last, as the feed knows it.
    pub stamp: Option<i64>,
}

/// A row that is in flight here, and that the cloud's side of the round left out.
#[derive(Debug, Clone, PartialEq)]
pub enum LeftOut {
    /// Others have changed it: it is merged with what the cloud has.
    Hit(Hit),
    /// It waits again as it was.
    AsItWas {
        /// The table's id.
        table: i64,
        /// The row's key.
        key: Vec<Value>,
    },
}

impl LeftOut {
    /// The table's id and the key.
    fn place(&self) -> (i64, &[Value]) {
        match self {
            Self::Hit(hit) => (hit.table, &hit.key),
            Self::AsItWas { table, key } => (*table, key),
        }
    }
}

/// The position in the cloud's change feed up to which everything has been applied.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// The transaction id, in decimal.
    pub xid: String,
    /// The entry id.
    pub id: i64,
    /// The entry's random tag; none where the cursor was fixed at a horizon, not at an entry.
    pub tag: Option<i32>,
}

/// A row from the cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct PulledRow {
    /// The table's id.
    pub table: i64,
    /// The row's key.
    pub key: Vec<Value>,
    /// The row, or none if the cloud does not have it.
    pub row: Option<Vec<Value>>,
    /// The newest feed entry that the row contains, 0 when it was not read because of one.
    pub seen: i64,
}

/// What is applied in one local transaction.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The rows, each key once.
    pub rows: Vec<PulledRow>,
    /// The cursor that the rows bring this file to.
    pub cursor: Option<Cursor>,
    /// The table whose snapshot the page belongs to, and the last key in the cloud's text.
    pub snapshot: Option<(i64, Vec<String>)>,
    /// Look-ups that the cloud answered with nothing, so that they are not asked again.
    pub absent: Vec<Lookup>,
    /// By table: columns that may be written otherwise here than in the cloud, with the cloud's type ([`alike`]).
    pub alike: HashMap<i64, Vec<(usize, CloudType)>>,
    /// Parked rows, by table and key, that are given up: what the page has for them is taken as it is.
    pub discarded: Vec<(i64, Vec<Value>)>,
    /// Rows that the cloud may only hide: they stay here as they are.
    pub hidden: Vec<(i64, Vec<Value>)>,
    /// Rows with a value that cannot be kept here as it is, without their contents, and why. They are set aside.
    pub unfit: Vec<Unfit>,
    /// Rows of the page, by table and key, that do not come home: they leave this file, unless something is pending in them.
    pub strangers: Vec<(i64, Vec<Value>)>,
    /// Those of them that nothing is pending in, by their names ([`ledger_name`]).
    pub leaving: HashSet<String>,
    /// Of rows in dispute, by their names ([`ledger_name`]): when others changed them last, if the feed knows of it.
    pub stamps: HashMap<String, Option<i64>>,
    /// What the server's clock showed before the rows were read.
    pub clock: Option<ServerClock>,
    /// Whether the page ends a pull: with it this file has everything that others had committed when that clock was read.
    pub is_last: bool,
}

/// The server's clock, as this machine saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerClock {
    /// What it showed, in microseconds since 1970.
    pub now: i64,
    /// How far it was ahead of this machine's, in microseconds; 0 as long as that may be the way of the answer.
    pub ahead: i64,
}

impl ServerClock {
    /// Less than this may be the way of the answer.
    const NOTABLE_US: i64 = 1_000_000;

    /// The year 9999.
    const LATEST_US: i64 = 253_370_764_800_000_000;

    /// From what the server said, between these two moments of this machine's clock.
    pub fn read(now: i64, asked: i64, answered: i64) -> Self {
        // A clock that shows no time that there could be is none to go by.
        let now = if (0..Self::LATEST_US).contains(&now) { now } else { answered };
        let ahead = now.saturating_sub(asked.midpoint(answered));
        Self { now, ahead: if ahead.unsigned_abs() < Self::NOTABLE_US.unsigned_abs() { 0 } else { ahead } }
    }

    /// Whether a file that takes the clock to be so far ahead has to be told otherwise.
    pub fn is_news(self, known_ahead: i64) -> bool {
        self.ahead.abs_diff(known_ahead) >= Self::NOTABLE_US.unsigned_abs()
    }
}

impl Page {
    /// Takes a row: to be stored, or, with a reason, to be set aside.
    pub fn put(&mut self, row: std::result::Result<PulledRow, Unfit>) {
        match row {
            Ok(pulled) => self.rows.push(pulled),
            Err(unfit) => self.unfit.push(unfit),
        }
    }

    /// What its rows weigh, in bytes, those with it that cannot be kept here.
    pub fn weight(&self) -> usize {
        let kept = self.rows.iter().flat_map(|row| &row.row).flatten().map(Value::size).sum::<usize>();
        kept + self.unfit.iter().map(|unfit| unfit.texts.len()).sum::<usize>()
    }

    /// Takes a row that does not come home.
    pub fn put_stranger(&mut self, pulled: std::result::Result<PulledRow, Unfit>) {
        let row = pulled.as_ref().unwrap_or_else(|unfit| &unfit.row);
        self.strangers.push((row.table, row.key.clone()));
        self.put(pulled);
    }

    /// Whether a row is on it already, whatever becomes of it.
    pub fn knows(&self, table: i64, key: &[Value]) -> bool {
        let mut rows = self.rows.iter().chain(self.unfit.iter().map(|unfit| &unfit.row));
        rows.any(|row| row.table == table && row.key == key)
            || self.hidden.iter().any(|(hidden, hidden_key)| *hidden == table && hidden_key == key)
    }
}

/// A row with a value that cannot be kept here as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfit {
    /// The row, without its contents.
    pub row: PulledRow,
    /// Why.
    pub why: String,
    /// Its contents as a JSON array, in PostgreSQL's text where they do not fit.
    pub texts: String,
}

/// Rows to fetch from the cloud by the values of some columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// The table's id.
    pub table: i64,
    /// The columns by index.
    pub columns: Vec<usize>,
    /// Their values.
    pub values: Vec<Value>,
}

/// The outcome of applying a page.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// It is committed.
    Done {
        /// Rows that changed here.
        changed: u64,
        /// Values that lost against a pending edit.
        conflicts: u64,
        /// Rows set aside because SQLite cannot store them yet.
        aside: u64,
        /// Rows that had been deleted, and that the cloud has again since it was set back.
        revived: u64,
    },
    /// Nothing was done: foreign keys need these rows in the same page.
    Missing(Vec<Lookup>),
    /// Nothing was done: who wins in these rows depends on when others changed them.
    Undecided(Vec<Disputed>),
}

/// A row of which both sides may have changed the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Disputed {
    /// The row.
    pub row: Lookup,
    /// The changes of it that count.
    pub since: Since,
}

/// Which changes of a row this file does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Since {
    /// Those beyond its cursor.
    Cursor,
    /// All that the feed tells of, with a later stamp than this.
    Stamp(i64),
}

/// What this file remembers of the link to the cloud.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Link {
    /// This file's identity in the cloud's ledger.
    pub device: String,
    /// The cloud that this file belongs to, once it has synced.
    pub cloud: Option<String>,
    /// The server that it ran on.
    pub system: Option<String>,
    /// The database's number on it.
    pub database: Option<String>,
    /// The server's timeline.
    pub timeline: Option<i64>,
    /// What the cloud has to know if nothing was lost there.
    pub witness: Option<Witness>,
    /// The feed's position, once the first sync has fixed it.
    pub cursor: Option<Cursor>,
    /// How far the server's clock was ahead of this machine's, in microseconds.
    pub clock_ahead: i64,
    /// The last round that took effect.
    pub last_round: Option<String>,
    /// How many did.
    pub round_number: i64,
}

/// What of the rows up to an epoch is not in the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outstanding {
    /// The tables with rows that wait, by id.
    pub waiting: Vec<i64>,
    /// Whether some are parked.
    pub parked: bool,
}

/// Numbers for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Rows that the cloud has not seen, parked ones excluded.
    pub pending: u64,
    /// Rows that the cloud refuses.
    pub parked: u64,
    /// Values that lost a conflict.
    pub conflicts: u64,
}

// ---------------------------------------------------------------------------------------------------------
// The store
// ---------------------------------------------------------------------------------------------------------

/// The last key that a round took from each table, by its id, and apart of those that wait for the rest of the journal.
type Sweep = HashMap<(i64, bool), Vec<Value>>;

/// The writer's side of the file. Lives on the writer's thread; every method is one transaction.
#[derive(Debug)]
pub struct Store {
    // The first to be dropped: the last connection that is closed folds the log into the file.
    upkeep: Upkeep,
    place: Place,
    write: Connection,
    apply: Connection,
    tables: Vec<Table>,
    /// Counts the changes of `tables`: rows are lists of values, which mean nothing under other columns.
    generation: u64,
    schema_version: i64,
    data_version: i64,
    /// So that every entry has its turn.
    sweep: Sweep,
    /// The table with which the next round begins, for the same reason.
    first_table: usize,
    /// Somebody wrote not long ago.
    considerate: Considerate,
    /// Whether there may be more of a round that the cloud has.
    leaving: bool,
    /// Found while somebody's write was tracked, for the next caller of [`Store::track`].
    untold: Vec<Notice>,
    /// What has been said is not said again.
    told: HashSet<String>,
    gauge: Gauge,
    policies: Policies,
    conflicts_max: i64,
}

/// How many of the next steps keep out of the way of somebody who wrote, and perhaps goes on.
#[derive(Debug, Clone, Copy, Default)]
struct Considerate {
    growth: u8,
    clearing: u8,
}

/// So many small steps follow a write before there is a large one: they take some ten milliseconds, and who writes more often
/// than that meets no large one.
const SMALL_STEPS: u8 = 10;

/// Counts a step: whether it is one of the small ones.
fn is_small(steps: &mut u8) -> bool {
    let small = *steps > 0;
    *steps = steps.saturating_sub(1);
    small
}

/// Keeps other supervisors away from the file for as long as it lives.
#[derive(Debug)]
pub struct FileLock {
    // The lock is the open file's; the operating system releases it with the process, however that ends.
    _file: File,
}

/// Locks a SQLite file for this supervisor. Other programs may read and write the file meanwhile.
pub fn lock_file(path: &Path) -> Result<FileLock> {
    let lock_path = lock_path(path);
    let file = private_file(&lock_path).map_err(|error| open_error(&lock_path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(FileLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(open_error(&lock_path, &error)),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Opens a file for writing, created with mode 0600 where it is missing.
fn private_file(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn open_error(path: &Path, error: &std::io::Error) -> StoreError {
    use std::io::ErrorKind;
    let remedy = match error.kind() {
        ErrorKind::NotFound => "create its folder, or name another file with TIDEWATER_DATABASE",
        ErrorKind::PermissionDenied => "give this user the right to read and write it and its folder",
        ErrorKind::ReadOnlyFilesystem => {
            "the disk is read-only: name a file elsewhere with TIDEWATER_DATABASE"
        }
        ErrorKind::StorageFull => "free some space on this disk",
        _ => "name another file with TIDEWATER_DATABASE",
    };
    StoreError::Open { path: path.display().to_string(), reason: error.to_string(), remedy: remedy.into() }
}

impl Store {
    /// Opens the file, creates it when missing, and brings journal and triggers up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`] says what is wrong with the file and what helps; the file is not touched then.
    pub fn open(options: &StoreOptions) -> Result<(Self, Vec<Notice>)> {
        Self::open_with(options, &TableRules::default())
    }

    /// The same where something is set for single tables.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(options: &StoreOptions, rules: &TableRules) -> Result<(Self, Vec<Notice>)> {
        fail::fail_point!("sqlite.open");
        let mut notices = check_file(&options.path)?;
        let path = &options.path;
        let name = |error: StoreError| {
            match error {
            StoreError::Full(reason) => {
                StoreError::Full(format!("{}: {reason}", path.display()))
            }
            StoreError::Busy(reason) => StoreError::Busy(format!("{}: {reason}", path.display())),
            StoreError::Damaged(reason) => StoreError::Open {
                path: path.display().to_string(),
                reason,
                remedy: "this is not a usable SQLite database; restore a backup or name another file".into(),
            },
            StoreError::ReadOnly(reason) | StoreError::Io(reason) => StoreError::Open {
                path: path.display().to_string(),
                reason,
                remedy: "give this user the right to read and write it and its folder, where SQLite keeps its -wal \
                         and -shm companions"
                    .into(),
            },
            other => other,
        }
        };
        let explain = |error: rusqlite::Error| name(error.into());
        let write = connect(options).map_err(explain)?;
        write.pragma_update(None, "foreign_keys", true).map_err(explain)?;
        let encoding: String =
            write.pragma_query_value(None, "encoding", |row| row.get(0)).map_err(explain)?;
        if encoding != "UTF-8" {
            notices.push(Notice(format!(
                "{} is encoded in {encoding}; it works, a little slower",
                path.display()
            )));
        }
        let apply = connect(options).map_err(explain)?;
        apply.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map_err(explain)?;
        apply.pragma_update(None, "foreign_keys", false).map_err(explain)?;
        let spare = connect(options).map_err(explain)?;
        spare.busy_timeout(Duration::ZERO).map_err(explain)?;
        let upkeep = Upkeep::start(spare, path.display().to_string(), options.upkeep)?;
        let mut store = Self {
            upkeep,
            place: Place::default(),
            write,
            apply,
            tables: vec![],
            generation: next_generation(),
            schema_version: -1,
            data_version: -1,
            sweep: HashMap::new(),
            first_table: 0,
            considerate: Considerate::default(),
            // Until somebody has looked.
            leaving: true,
            untold: vec![],
            told: HashSet::new(),
            gauge: Gauge::default(),
            policies: Policies::default(),
            conflicts_max: i64::MAX,
        };
        let tx = store.write.transaction_with_behavior(TransactionBehavior::Immediate).map_err(explain)?;
        tx.execute_batch(include_str!("sql/sqlite/meta.sql")).map_err(explain)?;
        bring_up_to_date(&tx).map_err(name)?;
        let device = uuid::Uuid::new_v4().to_string();
        tx.execute("INSERT OR IGNORE INTO _tidewater_meta VALUES ('format', 1), ('device', ?1)", [device])
            .map_err(explain)?;
        parked::number_parked(&tx).map_err(name)?;
        rules::put(&tx, rules).map_err(name)?;
        commit(tx).map_err(name)?;
        // Only now are the log and its index certainly there.
        store.place = Place::of(path);
        notices.extend(store.track().map_err(name)?);
        store.foreign_commit().map_err(name)?;
        Ok((store, notices))
    }

    /// From now on, a write that would add to a backlog of this size is refused.
    pub fn limit_backlog(&mut self, limits: BacklogLimits) {
        self.gauge.set(limits);
    }

    /// From now on, these decide who wins where both sides touched the same. Until then, the newest does. The app's own
    /// function stays where no other one comes.
    pub fn decide_by(&mut self, policies: Policies) {
        let resolver = policies.resolver.clone().or_else(|| self.policies.resolver.take());
        self.policies = Policies { resolver, ..policies };
    }

    /// From now on, the log of conflicts keeps so many; the oldest go first.
    pub fn bound_conflicts(&mut self, most: i64) {
        self.conflicts_max = most;
    }

    /// The oldest conflicts went. Told once.
    fn say_log_is_full(&mut self) {
        let notice = format!(
            "the log of conflicts is full: it keeps {} (sync.local_conflicts_max), and the oldest go from now on",
            self.conflicts_max
        );
        if self.told.insert(notice.clone()) {
            self.untold.push(Notice(notice));
        }
    }

    /// From now on, edits are dated by a clock that is so many microseconds ahead of this machine's, until the server's shows what
    /// the time is. The file remembers it: what other programs write is dated by the same clock.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn go_by_clock(&mut self, offset_us: i64) -> Result<()> {
        let before: i64 = meta(&self.write, CLOCK_OFFSET)?.unwrap_or(0);
        if offset_us == before {
            return Ok(());
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Until the server shows what the time is; what it has shown of this machine's clock stays where the app takes its word back.
        tx.execute(
            "UPDATE _tidewater_clock SET ahead = CASE WHEN ?1 <> 0 OR seen = 0 THEN ?1 ELSE ahead END",
            [offset_us],
        )?;
        set_meta(&tx, CLOCK_OFFSET, offset_us)?;
        commit(tx)?;
        Ok(())
    }

    /// After anything that may have taken entries from the journals.
    pub fn backlog_moved(&mut self) {
        self.gauge.moved();
    }

    /// The tracked tables, parents first, and the number of their generation.
    pub fn tables(&mut self) -> Result<(u64, Vec<Table>)> {
        self.look()?;
        Ok((self.generation, self.tables.clone()))
    }

    /// Runs several callers' units in one transaction, each in a savepoint of its own, and answers each after the
    /// commit. One caller's error rolls that caller back alone.
    pub fn write_group(&mut self, callers: &[Unit]) -> Vec<Result<Written>> {
        self.considerate = Considerate { growth: SMALL_STEPS, clearing: SMALL_STEPS };
        let group = self.try_group(callers).map_err(|error| self.place.explain(error));
        match group {
            Ok(results) => results,
            // Somebody ended everybody's transaction (`INSERT OR ROLLBACK`, a deferred foreign key at COMMIT, a
            // full disk): one by one, so that only the guilty one fails.
            Err(error) if callers.len() == 1 => vec![Err(error)],
            // Nobody is guilty of another process's lock, for which each would wait again, nor of the disk.
            Err(
                error @ (StoreError::Busy(_) | StoreError::ReadOnly(_) | StoreError::ReplacedFile { .. }),
            ) => callers.iter().map(|_| Err(error.clone())).collect(),
            Err(_) => callers
                .iter()
                .map(|caller| {
                    self.try_group(std::slice::from_ref(caller))
                        .and_then(|mut one| one.pop().unwrap_or(Err(lost())))
                        .map_err(|error| self.place.explain(error))
                })
                .collect(),
        }
    }

    fn try_group(&mut self, callers: &[Unit]) -> Result<Vec<Result<Written>>> {
        self.place.check()?;
        self.gauge.ready(&self.write, &self.tables, self.generation)?;
        fail::fail_point!("sqlite.begin");
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        fail::fail_point!("sqlite.begun");
        // Not before: whoever held the lock until now may have made a table anew, which has no triggers yet.
        let earlier = match schema_version(&tx)? == self.schema_version {
            true => vec![],
            false => track(&tx, Missing::IsGap)?.1,
        };
        let mut results = Vec::with_capacity(callers.len());
        let mut runner = Runner { conn: &tx, last: None, made: false };
        let mut savepoint = tx.prepare_cached("SAVEPOINT tidewater_caller")?;
        let mut release = tx.prepare_cached("RELEASE tidewater_caller")?;
        for caller in callers {
            // Who is alone is rolled back with the transaction.
            let shared = callers.len() > 1;
            if shared {
                savepoint.execute([])?;
            }
            progress();
            let outcome = self.gauge.admit(&tx, || runner.run_all(&caller.work.statements));
            match &outcome {
                Err(error) if !shared || tx.is_autocommit() => return Err(error.clone()),
                _ if tx.is_autocommit() => return Err(lost()),
                Err(_) => tx.execute_batch("ROLLBACK TO tidewater_caller")?,
                Ok(_) => {}
            }
            if shared {
                release.execute([])?;
            }
            results.push(outcome);
        }
        drop((runner, savepoint, release));
        let mark = Mark { epoch: epoch(&tx)?, parkings: meta(&tx, "parkings")?.unwrap_or(0) };
        // New tables get their journal in the transaction that creates them: no row of theirs escapes it.
        let changed = schema_version(&tx)? != self.schema_version;
        let tracked = if changed { Some(track(&tx, Missing::IsGap)?) } else { None };
        // Inside the transaction: what somebody else changes right after it has to be noticed.
        let version = schema_version(&tx)?;
        let results: Vec<Result<Written>> =
            results.into_iter().map(|result| Ok(Written { mark, results: result? })).collect();
        let notes = results.iter().map(|result| result.as_ref().ok().cloned()).collect::<Vec<_>>();
        fail::fail_point!("sqlite.written");
        let committing = Committing::begin(callers)?;
        commit(tx)?;
        // Nothing that can fail or panic stands between the commit and the notes of it.
        committing.done(notes);
        fail::fail_point!("sqlite.noted");
        // What was committed to a file without a name is not on the disk for long.
        self.place.check()?;
        if let Some((tables, notices)) = tracked {
            self.remember(tables, version);
            self.untold.extend(earlier.into_iter().chain(notices));
        }
        Ok(results)
    }

    /// Makes the statement that runs return with an error, from any thread.
    pub fn interrupt(&self) -> impl Fn() + Send + Sync + 'static {
        let handles = [&self.write, &self.apply].map(Connection::get_interrupt_handle);
        let upkeep = self.upkeep.interrupt();
        move || {
            handles.iter().for_each(InterruptHandle::interrupt);
            upkeep.interrupt();
        }
    }

    /// After commits, when who waited for them has been answered: keeps the log short.
    pub fn tend(&mut self) {
        self.upkeep.tend(&self.write);
    }

    /// Watches the file from a thread of its own, without SQLite, and tells when it is time for
    /// [`foreign_commit`](Self::foreign_commit) and [`tick`](Self::tick): soon after a commit, and every few seconds at
    /// rest. Where the system does not tell of writes, which is worth a notice, a look `every` so often finds them.
    ///
    /// # Errors
    /// [`StoreError::Io`] when there is no thread to be had.
    pub fn watch(&mut self, every: Duration, tell: impl Fn() + Send + 'static) -> Result<Option<Notice>> {
        let mut place = self.place.clone();
        let (bell, notice) = match place.bell() {
            Ok(bell) => (Some(bell), None),
            Err(error) => {
                let log = place.log.display();
                let text =
                    format!("nobody tells when {log} is written ({error}): it is looked at every {every:?}");
                (None, Some(Notice(text)))
            }
        };
        // Each write looks where the file is; this is for the time without writes, and may take a moment.
        let is_due = move |whole| place.log_was_written() || whole && place.check().is_err();
        self.upkeep.watch(bell, every, is_due, tell)?;
        Ok(notice)
    }

    /// When nobody writes, does a little of what is left to do then. What a person should know of it comes
    /// back, once.
    pub fn tick(&mut self) -> Vec<Notice> {
        let mut notices = self.upkeep.tick(&self.write);
        notices.extend(self.untold());
        notices
    }

    fn untold(&mut self) -> Vec<Notice> {
        let mut notices = std::mem::take(&mut self.untold);
        // A table that stays local does so after every change of the schema; what happened may happen again.
        notices.retain(|notice| !notice.0.contains(STAYS_LOCAL) || self.told.insert(notice.0.clone()));
        notices
    }

    /// Brings journals and triggers up to date with the schema, if it changed.
    pub fn track(&mut self) -> Result<Vec<Notice>> {
        self.look()?;
        Ok(self.untold())
    }

    fn look(&mut self) -> Result<()> {
        self.place.check()?;
        if schema_version(&self.write)? == self.schema_version {
            return Ok(());
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let missing = if self.schema_version < 0 { Missing::Unwatched } else { Missing::IsGap };
        let (tables, notices) = track(&tx, missing)?;
        let version = schema_version(&tx)?;
        commit(tx)?;
        self.remember(tables, version);
        self.untold.extend(notices);
        Ok(())
    }

    fn remember(&mut self, tables: Vec<Table>, version: i64) {
        self.schema_version = version;
        if self.tables != tables {
            self.generation = next_generation();
            self.tables = tables;
        }
    }

    /// Whether another connection committed since the last call.
    ///
    /// # Errors
    /// [`StoreError::ReplacedFile`], and whatever SQLite says.
    pub fn foreign_commit(&mut self) -> Result<bool> {
        if let Err(error) = self.place.check() {
            if self.place.has_lost_its_log() {
                // It is still open here, with everything in it that the file does not have yet, until this process ends.
                self.upkeep.save(&self.write);
            }
            return Err(error);
        }
        let foreign = self.was_changed()?;
        if foreign {
            self.upkeep.disturbed();
        }
        Ok(foreign)
    }

    fn was_changed(&mut self) -> Result<bool> {
        let mut ask = self.write.prepare_cached("PRAGMA data_version")?;
        let version = ask.query_row([], |row| row.get(0))?;
        Ok(std::mem::replace(&mut self.data_version, version) != version)
    }

    // -----------------------------------------------------------------------------------------------------
    // Rounds
    // -----------------------------------------------------------------------------------------------------

    /// Moves the next window of the journal in flight, closed under foreign keys. `None` when nothing waits.
    ///
    /// Entries that were refused wait until nothing else does: who occupies a unique value may leave it in a
    /// later window. With `upto`, entries of newer epochs are left alone.
    ///
    /// # Errors
    /// [`StoreError::SchemaChanged`] when the tables are no longer those of `generation`.
    pub fn note_round(&mut self, wanted: &NoteRound) -> Result<Option<Noted>> {
        let NoteRound { rows_max, generation, ref eligible, upto, whole, apart } = *wanted;
        self.look()?;
        if generation != self.generation {
            return Err(StoreError::SchemaChanged);
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        if round(&tx)?.is_some() {
            return Err(StoreError::InFlight);
        }
        let tables: Vec<&Table> = self.tables.iter().filter(|table| eligible.contains(&table.id)).collect();
        parked::unpark_due(&tx, &tables)?;
        let mut sweep = self.sweep.clone();
        let mut taken = 0;
        let closed = epoch(&tx)?;
        let begins = upto.is_none();
        let upto = upto.unwrap_or(closed);
        let first = Part::default();
        let mut retry = false;
        let mut grows = None;
        let mut first_table = self.first_table;
        // First what was never refused. When nothing of that is left, the refused ones get their chance, together with
        // everything that came since: it may be what they wait for.
        let passes: &[(bool, bool, i64)] = match whole {
            false => &[(false, false, upto), (true, true, i64::MAX), (true, false, i64::MAX)],
            true => &[(true, true, i64::MAX), (true, false, i64::MAX)],
        };
        for (is_retry, refused, upto) in passes.iter().copied() {
            let before = taken;
            // What is tried again does not grow.
            let at_once =
                if is_retry { rows_max } else { growing::at_once(rows_max, self.considerate.growth > 0) };
            let (came, stopped) = if apart && !is_retry {
                let found = take_from_one(&tx, &tables, first_table, at_once, upto, &mut sweep)?;
                first_table = found.map_or(first_table, |(at, _)| at + 1);
                (found.map_or(0, |(_, came)| came), None)
            } else {
                let begin = self.first_table;
                take_in_turn(&tx, &tables, begin, at_once - taken, (refused, upto), first, &mut sweep)?
            };
            taken += came;
            grows = stopped.filter(|_| !is_retry && !whole);
            retry |= is_retry && refused && taken > before;
            if !whole && (taken > 0 && !is_retry || is_retry && taken == 0) {
                break;
            }
        }
        // Conflicts that the cloud has not heard of are reason enough for a round.
        if taken == 0 && !conflicts_wait(&tx)? {
            return Ok(None);
        }
        if retry || whole {
            // What was mended may need what was refused with it, and the other way round.
            unpark_dependents(&tx, &tables, FLIGHT)?;
        }
        // A deletion with very many former children lets them go first, in rounds of their own; where that leaves nothing of
        // this one (a long chain, of which each needs the next), it takes them all.
        tx.execute_batch("SAVEPOINT tidewater_close")?;
        let last_chance = retry || whole;
        let mut room = if last_chance { ALONG_MAX } else { rows_max };
        close_under_foreign_keys(&tx, &tables, last_chance, first, &mut room)?;
        let narrow = last_chance && room == 0;
        if room == 0 && !anything_flies(&tx, &tables, first)? {
            tx.execute_batch("ROLLBACK TO tidewater_close")?;
            room = usize::MAX;
            close_under_foreign_keys(&tx, &tables, false, first, &mut room)?;
        }
        tx.execute_batch("RELEASE tidewater_close")?;
        let complete = is_all_there_is(&tx, &tables, last_chance)?;
        absorb_parked(&tx, &tables, first)?;
        let id = uuid::Uuid::new_v4().to_string();
        let number = meta::<i64>(&tx, "round_number")?.unwrap_or(0) + 1;
        // The conflicts that the round tells the cloud of: those that it has not heard of, in order, a bounded number.
        tx.execute(
            "INSERT INTO _tidewater_round (one, id, number, conflicts_upto) SELECT 1, ?1, ?2, max(id) FROM \
             (SELECT id FROM _tidewater_conflicts WHERE id > coalesce((SELECT value FROM _tidewater_meta \
             WHERE key = 'conflicts_told'), 0) ORDER BY id LIMIT 500)",
            params![id, number],
        )?;
        tx.execute("UPDATE _tidewater_clock SET epoch = epoch + 1", [])?;
        commit(tx)?;
        self.sweep = sweep;
        self.first_table = first_table;
        if begins && !apart {
            // Each flush begins with another table; one that goes on takes table by table, parents first.
            self.first_table = self.first_table.wrapping_add(1);
        }
        Ok(Some(Noted {
            id,
            tables: self.tables.clone(),
            generation: self.generation,
            epoch: closed,
            complete,
            retry,
            narrow,
            grows,
            schema_version: self.schema_version,
        }))
    }

    /// The round whose outcome is not known yet.
    pub fn in_flight(&self) -> Result<Option<(String, i64)>> {
        round(&self.write)
    }

    /// The round did not take effect: its entries wait again, under what was dirtied meanwhile. Rows named here
    /// wait until the rest of the journal has been tried; with `others_first` that is all others of the round, also those
    /// that waited for it.
    pub fn put_back(&mut self, id: &str, refused: &[Refusal], others_first: bool) -> Result<()> {
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, id)?;
        for table in &self.tables {
            if others_first {
                let flight = ident(&side_table(FLIGHT, table));
                tx.execute(&format!("UPDATE {flight} SET refused = NULL WHERE refused IS NOT NULL"), [])?;
            }
            for refusal in refused.iter().filter(|refusal| refusal.table == table.id) {
                let sql = format!(
                    "UPDATE {} SET refused = ?1 WHERE {}",
                    ident(&side_table(FLIGHT, table)),
                    key_is(table, 2)
                );
                let mut values = vec![Value::from(refusal.sqlstate.clone().unwrap_or_default())];
                values.extend(refusal.key.iter().cloned());
                tx.prepare_cached(&sql)?.execute(params_from_iter(&values))?;
            }
            merge_back(&tx, table)?;
        }
        tx.execute("DELETE FROM _tidewater_round", [])?;
        commit(tx)?;
        Ok(())
    }

    /// Nothing of the round differs from what the cloud has: it ends without having been one.
    pub fn dissolve(&mut self, id: &str) -> Result<()> {
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, id)?;
        for table in &self.tables {
            parked::forget_refusals_in_flight(&tx, table, "true", &[])?;
            tx.execute(&format!("DELETE FROM {}", ident(&side_table(FLIGHT, table))), [])?;
        }
        tx.execute("DELETE FROM _tidewater_round", [])?;
        commit(tx)?;
        Ok(())
    }

    /// Parks refused rows, durably; the rest of the round goes on under an id of its own. `shapes` are those of the cloud's
    /// tables, by table, from before anything was refused: whatever changes later is a reason to try again.
    pub fn park(&mut self, id: &str, refusals: &[Refusal], shapes: &HashMap<i64, String>) -> Result<Parked> {
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, id)?;
        let mut parkings: i64 = meta(&tx, "parkings")?.unwrap_or(0);
        let mut fresh = vec![];
        for (at, refusal) in refusals.iter().enumerate() {
            parkings += 1;
            let Some(table) = self.tables.iter().find(|table| table.id == refusal.table) else { continue };
            let Some(entry) = take_entry(&tx, table, FLIGHT, &refusal.key)? else { continue };
            let shape = shapes.get(&table.id).map(String::as_str);
            if park_entry(&tx, table, &entry, refusal, parkings, shape)? {
                fresh.push(at);
            }
        }
        set_meta(&tx, "parkings", parkings)?;
        let id = uuid::Uuid::new_v4().to_string();
        tx.execute("UPDATE _tidewater_round SET id = ?1", [&id])?;
        commit(tx)?;
        Ok(Parked { round: id, fresh })
    }

    // -----------------------------------------------------------------------------------------------------
    // Rows from the cloud
    // -----------------------------------------------------------------------------------------------------

    /// Applies a page in one transaction with its cursor, without journaling what it writes.
    ///
    /// # Errors
    /// Nothing of the page is applied then, and the cursor stays.
    pub fn apply(&mut self, page: &Page, generation: u64) -> Result<Applied> {
        self.place.check()?;
        if generation != self.generation {
            return Err(StoreError::SchemaChanged);
        }
        let foreign = self.was_changed()?;
        let outcome = self.try_apply(page);
        // Our own commit is not somebody else's; what came before it is told by the next look.
        self.was_changed()?;
        if foreign {
            self.data_version = -1;
        }
        outcome
    }

    fn try_apply(&mut self, page: &Page) -> Result<Applied> {
        let tx = self.apply.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        let page = &*rules::without_strangers(&tx, &self.tables, page)?;
        let mut applier = Applier {
            tx: &tx,
            tables: &self.tables,
            policies: &self.policies,
            page,
            changed: 0,
            conflicts: 0,
            aside: 0,
            revived: 0,
            were_aside: HashSet::new(),
        };
        if let Some(not_yet) = applier.run()? {
            return Ok(not_yet);
        }
        let Applier { changed, conflicts, aside, revived, .. } = applier;
        if let Some(clock) = page.clock {
            set_clock(&tx, clock)?;
            if page.is_last {
                history::has_everything(&tx, &self.tables, clock)?;
            }
        }
        if let Some(cursor) = &page.cursor {
            set_cursor(&tx, cursor)?;
        }
        if let Some((table, last)) = &page.snapshot {
            let last = serde_json::Value::from(last.clone()).to_string();
            let known = tx.execute(
                "UPDATE _tidewater_tables SET snapshot_after = ?1 WHERE id = ?2 AND snapshot = 'paging'",
                params![last, table],
            )?;
            if known == 0 {
                // It has to begin anew since.
                return Err(StoreError::SchemaChanged);
            }
        }
        let total =
            meta::<i64>(&tx, "rows_warmed")?.unwrap_or(0) + i64::try_from(changed).unwrap_or(i64::MAX);
        set_meta(&tx, "rows_warmed", total)?;
        commit(tx)?;
        Ok(Applied::Done { changed, conflicts, aside, revived })
    }

    /// How far a table's snapshot has come: `None` before its first page, the last key's text after one.
    /// The outer `None`: it is complete.
    pub fn snapshot_position(&self, table: i64) -> Result<Option<Option<Vec<String>>>> {
        let (state, after): (String, Option<String>) = self.write.query_row(
            "SELECT snapshot, snapshot_after FROM _tidewater_tables WHERE id = ?1",
            [table],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if state == "done" {
            return Ok(None);
        }
        Ok(Some(after.and_then(|text| serde_json::from_str(&text).ok())))
    }

    /// Begins a table's snapshot anew: the keys that the cloud shows from now on are remembered.
    pub fn begin_snapshot(&mut self, table: i64) -> Result<()> {
        let Some(table) = self.tables.iter().find(|t| t.id == table) else {
            return Err(StoreError::SchemaChanged);
        };
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        let seen = ident(&side_table(SEEN, table));
        let keys = list(key_columns(table), |k| k);
        tx.execute_batch(&format!("DROP TABLE IF EXISTS {seen}"))?;
        // What comes later comes from the cloud, or is pending: nothing can be left over.
        let any = format!("SELECT 1 FROM {} LIMIT 1", ident(&table.name));
        if tx.prepare(&any)?.exists([])? {
            tx.execute_batch(&format!("CREATE TABLE {seen} ({keys}, PRIMARY KEY ({keys})) WITHOUT ROWID"))?;
        }
        tx.execute(
            "UPDATE _tidewater_tables SET snapshot = 'paging', snapshot_after = NULL WHERE id = ?1",
            [table.id],
        )?;
        let version = schema_version(&tx)?;
        commit(tx)?;
        self.schema_version = version;
        Ok(())
    }

    /// Rows here that the snapshot did not show and that are not pending: candidates for deletion, to be looked up
    /// once more. Ends the snapshot when there are none.
    ///
    /// Where the cloud was set back, the rows that go there again are put on record then, and counted.
    pub fn snapshot_leftovers(&mut self, table: i64, limit: usize) -> Result<Leftovers> {
        let Some(table) = self.tables.iter().find(|t| t.id == table) else {
            return Err(StoreError::SchemaChanged);
        };
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        let keeps = history::keeps_leftovers(&tx, table)?;
        let compares = remembers_seen(&tx, table)?;
        // What is pending on top of a row that the cloud had and does not show any more is for the merge.
        let in_side = |kind: &str| {
            let keys = all(table.key_names().iter().enumerate(), |(at, k)| side_key("s", at, "t", k));
            let new = if matches!(kind, JOURNAL | PARKED) && !keeps { " AND NOT s.known" } else { "" };
            format!("NOT EXISTS (SELECT 1 FROM {} AS s WHERE {keys}{new})", ident(&side_table(kind, table)))
        };
        let own = list(table.key_names(), |k| format!("t.{}", ident(k)));
        let left = format!(
            "FROM {} AS t WHERE {} AND {}",
            ident(&table.name),
            all(table.key_names(), |k| format!("t.{} IS NOT NULL", ident(k))),
            all([SEEN, JOURNAL, FLIGHT, PARKED], in_side),
        );
        if keeps && compares {
            // Whether they were deleted there or never came there, nobody can tell: they are not lost.
            tx.execute(&capture::journal_left(table, &own, &left), [])?;
        }
        let keys = if compares {
            let sql = format!("SELECT {own} {left} LIMIT {limit}");
            query(&tx, &sql, &[], |row| values(row, 0, table.key.len()))?
        } else {
            vec![]
        };
        let mut sent_again = 0;
        if keys.is_empty() {
            sent_again = history::list_sent_again(&tx, table)?;
            let known = tx.execute(
                "UPDATE _tidewater_tables SET snapshot = 'done', snapshot_after = NULL, followed = 1 \
                 WHERE id = ?1 AND snapshot = 'paging'",
                [table.id],
            )?;
            if known == 0 {
                return Err(StoreError::SchemaChanged);
            }
            tx.execute_batch(&format!("DROP TABLE IF EXISTS {}", ident(&side_table(SEEN, table))))?;
            history::leftovers_are_done(&tx, table)?;
            let version = schema_version(&tx)?;
            commit(tx)?;
            self.schema_version = version;
        }
        Ok(Leftovers { keys, sent_again })
    }

    /// The keys whose rows came from the cloud and could not be stored here, to be tried again.
    pub fn set_aside(&self) -> Result<Vec<Lookup>> {
        let mut lookups = vec![];
        for table in &self.tables {
            let sql = format!(
                "SELECT {} FROM {}",
                list(key_columns(table), |k| k),
                ident(&side_table(ASIDE, table))
            );
            let keys = query(&self.write, &sql, &[], |row| values(row, 0, table.key.len()))?;
            let table = (table.id, &table.key);
            lookups.extend(keys.into_iter().map(|values| Lookup {
                table: table.0,
                columns: table.1.clone(),
                values,
            }));
        }
        Ok(lookups)
    }

    // -----------------------------------------------------------------------------------------------------
    // The link
    // -----------------------------------------------------------------------------------------------------

    /// What this file remembers of the link.
    pub fn link(&self) -> Result<Link> {
        let conn = &self.write;
        let cursor = match meta::<String>(conn, "cursor_xid")? {
            Some(xid) => Some(Cursor {
                xid,
                id: meta(conn, "cursor_id")?.unwrap_or(0),
                tag: meta::<i64>(conn, "cursor_tag")?.and_then(|tag| i32::try_from(tag).ok()),
            }),
            None => None,
        };
        Ok(Link {
            device: meta(conn, "device")?.unwrap_or_default(),
            cloud: meta(conn, "cloud")?,
            system: meta(conn, "system")?,
            database: meta(conn, "database")?,
            timeline: meta(conn, "timeline")?,
            witness: meta::<String>(conn, "witness")?.and_then(|text| serde_json::from_str(&text).ok()),
            cursor,
            clock_ahead: conn.query_row("SELECT ahead FROM _tidewater_clock", [], |row| row.get(0))?,
            last_round: meta(conn, "last_round")?,
            round_number: meta(conn, "round_number")?.unwrap_or(0),
        })
    }

    /// Fixes the feed's cursor.
    pub fn fix_cursor(&mut self, cursor: &Cursor) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        set_cursor(&tx, cursor)?;
        commit(tx)?;
        Ok(())
    }

    /// The feed's history is not the one any more that the cursor belongs to: every table is compared anew.
    pub fn forget_cursor(&mut self) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute(
            "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL, followed = 0",
            [],
        )?;
        history::forget_cursor(&tx)?;
        commit(tx)?;
        Ok(())
    }

    /// Remembers what the feed's account of a table rests on. Where that is not what it was (the table was made anew, its
    /// triggers were away, it was out of reach), the feed cannot tell what happened, and the table is compared anew.
    ///
    /// What the cloud lost as a whole, the table or a column, this file still has: it is pending again, and nothing is
    /// deleted here because of it.
    pub fn remember_cloud_table(
        &mut self,
        table: i64,
        trace: Option<&str>,
        made: Option<&(u32, Vec<i16>)>,
    ) -> Result<()> {
        let key = format!("trace_{table}");
        let made_key = format!("made_{table}");
        let known_trace = meta::<String>(&self.write, &key)?;
        let same_trace = is_same_trace(known_trace.as_deref(), trace);
        let tracked = self.tables.iter().find(|t| t.id == table);
        let now = tracked.zip(made).map(|(tracked, (oid, numbers))| Made::new(tracked, *oid, numbers));
        let before: Option<Made> =
            meta::<String>(&self.write, &made_key)?.and_then(|text| serde_json::from_str(&text).ok());
        if known_trace.as_deref() == trace && (now.is_none() || now == before) {
            return Ok(());
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let (Some(tracked), Some(now)) = (tracked, &now) {
            match &before {
                Some(before) if before.oid != now.oid => {
                    tx.execute(&capture::journal_everything(tracked, Unseen::Gap), [])?;
                }
                Some(before) => {
                    for c in tracked.data_columns() {
                        let column = &tracked.columns[c];
                        let send = match before.columns.get(&column.name) {
                            Some(number) => now.columns.get(&column.name) != Some(number),
                            // New: what its default means here, it may not mean there.
                            None => !is_same_default(column),
                        };
                        if send {
                            tx.execute(&capture::journal_column(tracked, column), [])?;
                        }
                    }
                }
                None => {}
            }
            let text = serde_json::to_string(now).map_err(|error| StoreError::Io(error.to_string()))?;
            set_meta(&tx, &made_key, text)?;
        }
        set_meta(&tx, &key, trace)?;
        if !same_trace {
            tx.execute(
                "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL, followed = 0 WHERE id = ?1",
                [table],
            )?;
        }
        commit(tx)?;
        Ok(())
    }

    /// Compares one table with the cloud anew: it was emptied there, which the cursor passes.
    pub fn compare_anew(&mut self, table: i64) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute(
            "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL, followed = 0 WHERE id = ?1",
            [table],
        )?;
        commit(tx)
    }

    /// History changed under this file. It goes on as a new device.
    pub fn start_over(&mut self, how: Anew) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        clearing::finish(&tx, &self.tables)?;
        for table in &self.tables {
            merge_back(&tx, table)?;
        }
        tx.execute("DELETE FROM _tidewater_round", [])?;
        tx.execute("DELETE FROM _tidewater_meta WHERE key IN ('last_round', 'round_number', 'witness')", [])?;
        match how {
            Anew::SendAgain => history::send_again(&tx, &self.tables)?,
            Anew::Follow => {
                tx.execute(
                    "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL, followed = 0",
                    [],
                )?;
                history::forget_cursor(&tx)?;
                history::forget_seen(&tx, &self.tables)?;
            }
            Anew::ReadOn => {}
        }
        set_meta(&tx, "device", uuid::Uuid::new_v4().to_string())?;
        commit(tx)?;
        Ok(())
    }
}

/// How the ledger names a row that left its round.
pub fn ledger_name(table: &Table, key: &[Value]) -> String {
    format!("{}{}", table.name, json_array(key))
}

/// PostgreSQL's numbers of a cloud table and of its columns: other ones are another table, another column.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Made {
    oid: u32,
    columns: BTreeMap<String, i16>,
}

impl Made {
    fn new(table: &Table, oid: u32, numbers: &[i16]) -> Self {
        let names = table.columns.iter().map(|column| column.name.clone());
        Self { oid, columns: names.zip(numbers.iter().copied()).collect() }
    }
}

/// Never the same twice in a process: a store that is opened anew must not be taken for the one before it.
/// Whether the feed's account goes on: the table and its triggers are the same, and so are the types of the columns that were
/// known before. `triggers|number=type;…`; what older versions remembered has no types.
fn is_same_trace(before: Option<&str>, now: Option<&str>) -> bool {
    let (Some(before), Some(now)) = (before, now) else { return before == now };
    let (before, types_before) = before.split_once('|').unwrap_or((before, ""));
    let (now, types_now) = now.split_once('|').unwrap_or((now, ""));
    let types_now: BTreeMap<&str, &str> =
        types_now.split(';').filter_map(|one| one.split_once('=')).collect();
    before == now
        && types_before
            .split(';')
            .filter_map(|one| one.split_once('='))
            .all(|(number, kind)| types_now.get(number).is_none_or(|now| *now == kind))
}

fn next_generation() -> u64 {
    static GENERATIONS: AtomicU64 = AtomicU64::new(1);
    GENERATIONS.fetch_add(1, Ordering::Relaxed)
}

fn lost() -> StoreError {
    StoreError::Statement("the transaction was ended by another statement in it".into())
}

// ---------------------------------------------------------------------------------------------------------
// Readers
// ---------------------------------------------------------------------------------------------------------

/// Read-only connections to the file. Cheap to clone; readers never wait for the writer.
#[derive(Debug, Clone)]
pub struct Readers {
    /// Empty once it is closed: for all clones at once, so that the writer is the last to close the file and SQLite
    /// folds the write-ahead log into it.
    pool: Arc<RwLock<Option<r2d2::Pool<SqliteConnectionManager>>>>,
    /// For a connection beside the pool.
    options: Arc<StoreOptions>,
    place: Arc<Place>,
    copying: Arc<copy::CopyingNow>,
}

impl Readers {
    /// A pool for a file that exists.
    pub fn open(options: &StoreOptions) -> Result<Self> {
        let busy = options.busy_timeout;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let place = Arc::new(Place::of_file(&options.path));
        let same = place.clone();
        let manager = SqliteConnectionManager::file(&options.path).with_flags(flags).with_init(move |conn| {
            if let Err(error) = same.check() {
                let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
                return Err(rusqlite::Error::SqliteFailure(code, Some(error.to_string())));
            }
            conn.busy_timeout(busy)?;
            conn.set_prepared_statement_cache_capacity(128);
            // Not only the app's files are read-only here: `ATTACH` would open others for writing.
            conn.pragma_update(None, "query_only", true)
        });
        let pool = r2d2::Pool::builder()
            .max_size(options.read_pool_max.max(1))
            .min_idle(Some(0))
            .test_on_check_out(false)
            .connection_timeout(busy.max(Duration::from_secs(1)))
            .build(manager)
            .map_err(|error| StoreError::Io(error.to_string()))?;
        Ok(Self {
            pool: Arc::new(RwLock::new(Some(pool))),
            options: Arc::new(options.clone()),
            place,
            copying: Arc::default(),
        })
    }

    /// Whether the file that is open is still the one that its name stands for.
    ///
    /// # Errors
    /// [`StoreError::ReplacedFile`] when it is not.
    pub fn same_file(&self) -> Result<()> {
        self.place.check()
    }

    /// Closes the idle connections; those in use close when they are given back.
    pub fn close(&self) {
        self.pool.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn get(&self) -> Result<r2d2::PooledConnection<SqliteConnectionManager>> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let pool = pool.ok_or(StoreError::Closed)?;
        if let Some(idle) = pool.try_get() {
            return Ok(idle);
        }
        // One more would be of another file, and is not waited for.
        self.same_file()?;
        pool.get().map_err(|error| StoreError::Busy(error.to_string()))
    }

    /// Runs a closure with a read-only connection, on the caller's thread.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when every connection is in use for longer than the busy timeout,
    /// [`StoreError::ReplacedFile`] when one more is needed and the file is not there any more, and whatever SQLite says.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.with(|conn| Ok(work(conn)?))
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        /// A transaction that is left open would show the next reader an old state, also when its reader panicked.
        struct Closed(r2d2::PooledConnection<SqliteConnectionManager>);
        impl Drop for Closed {
            fn drop(&mut self) {
                if !self.0.is_autocommit() {
                    // It cannot fail: there is nothing to undo.
                    let _ = self.0.execute_batch("ROLLBACK");
                }
            }
        }
        let conn = Closed(self.get()?);
        work(&conn.0)
    }

    /// The rows of the round in flight, each as it was when the round was noted.
    ///
    /// What was written since is undone by its own journal entry, whose bases are exactly the noted values; so the
    /// writer never waits for this.
    ///
    /// # Errors
    /// [`StoreError::SchemaChanged`] when somebody changed the schema since: triggers may have been missing for a
    /// while, so that nobody knows what the rows were.
    pub fn read_round(&self, noted: &Noted) -> Result<Vec<Vec<RoundRow>>> {
        Ok(self.read_part(noted, Part::default(), usize::MAX)?.rows)
    }

    /// [`read_round`](Self::read_round) for a part of the round, as far as the rows fit so many bytes; the first one always
    /// does. The round may grow meanwhile.
    ///
    /// # Errors
    /// As there.
    pub fn read_part(&self, noted: &Noted, part: Part, bytes_max: usize) -> Result<InFlight> {
        let conn = self.get()?;
        let tx = conn.unchecked_transaction()?;
        same_schema(&tx, noted.schema_version)?;
        let mut read = InFlight { rows: vec![], bytes: 0, rest: None };
        for table in &noted.tables {
            if read.rest.is_none() {
                read_flight(&tx, table, part, bytes_max, &mut read)?;
            } else {
                read.rows.push(vec![]);
            }
        }
        Ok(read)
    }

    /// Some rows of the round in flight once more, by table and key, as they were noted. In their order; nothing for one that
    /// is not in flight.
    ///
    /// # Errors
    /// [`StoreError::SchemaChanged`] when the tables are no longer those of the round.
    pub fn read_again(&self, noted: &Noted, wanted: &[(i64, Vec<Value>)]) -> Result<Vec<Option<RoundRow>>> {
        let conn = self.get()?;
        let tx = conn.unchecked_transaction()?;
        same_schema(&tx, noted.schema_version)?;
        let mut rows = vec![];
        for (id, key) in wanted {
            let table = noted.tables.iter().find(|table| table.id == *id).ok_or(StoreError::SchemaChanged)?;
            let sql = in_flight(table, &all(0..key.len(), |at| format!("f.k{at} = ?{}", at + 1)));
            let mut statement = tx.prepare_cached(&sql)?;
            let mut found = statement.query(params_from_iter(key))?;
            rows.push(match found.next()? {
                Some(row) => Some(row_in_flight(table, row)?.1),
                None => None,
            });
        }
        Ok(rows)
    }

    /// Whether one of these rows, by table and key, waits to be sent, or is parked. What is never sent waits for nothing.
    ///
    /// # Errors
    /// [`StoreError::SchemaChanged`] when these are not the tables any more.
    pub fn any_waits(&self, noted: &Noted, rows: &[(i64, Vec<Value>)]) -> Result<bool> {
        let conn = self.get()?;
        let tx = conn.unchecked_transaction()?;
        same_schema(&tx, noted.schema_version)?;
        for (id, key) in rows {
            let table = noted.tables.iter().find(|table| table.id == *id).ok_or(StoreError::SchemaChanged)?;
            if !table.rule.direction.sends() {
                continue;
            }
            for kind in [JOURNAL, PARKED] {
                let sql =
                    format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(kind, table)), key_is(table, 1));
                if tx.prepare_cached(&sql)?.exists(params_from_iter(key))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The conflicts that the round in flight tells the cloud of: table, key, column, base, local, cloud, kept.
    pub fn read_conflicts(&self) -> Result<Vec<[Option<String>; 7]>> {
        self.read(|conn| {
            conn.prepare_cached(
                "SELECT table_name, key, column, base, local, cloud, kept FROM _tidewater_conflicts WHERE id > \
                 coalesce((SELECT value FROM _tidewater_meta WHERE key = 'conflicts_told'), 0) \
                 AND id <= (SELECT conflicts_upto FROM _tidewater_round) ORDER BY id",
            )?
            .query_map([], |row| {
                let mut fields: [Option<String>; 7] = Default::default();
                for (at, field) in fields.iter_mut().enumerate() {
                    *field = row.get(at)?;
                }
                Ok(fields)
            })?
            .collect()
        })
    }

    /// Numbers for `status`.
    pub fn counts(&self) -> Result<Counts> {
        self.read_at_once(|conn| {
            let ids: Vec<i64> = conn
                .prepare_cached("SELECT id FROM _tidewater_tables")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let count = |table: &str| -> rusqlite::Result<u64> {
                conn.prepare_cached(&format!("SELECT count(*) FROM {table}"))?.query_row([], unsigned)
            };
            let mut counts = Counts { conflicts: count("_tidewater_conflicts")?, ..Counts::default() };
            for id in ids {
                counts.pending += count(&format!("_tidewater_journal_{id}"))?;
                counts.pending += count(&format!("_tidewater_flight_{id}"))?;
                counts.parked += count(&format!("_tidewater_parked_{id}"))?;
            }
            Ok(counts)
        })
    }

    /// What of the rows that were dirty at this mark, or before, is not in the cloud.
    pub fn outstanding(&self, mark: Mark) -> Result<Outstanding> {
        self.read_at_once(|conn| {
            let ids: Vec<i64> = conn
                .prepare_cached("SELECT id FROM _tidewater_tables")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut outstanding = Outstanding::default();
            for id in ids {
                let any = |kind: &str, which: &str| {
                    // What is never sent concerns whoever has just written it, and nobody later.
                    let up_to = if rules::sends(conn, id)? { "<=" } else { "=" };
                    let sql = format!(
                        "SELECT 1 FROM _tidewater_{kind}_{id} WHERE epoch {up_to} ?1 {which} LIMIT 1"
                    );
                    conn.prepare_cached(&sql)?.exists([mark.epoch])
                };
                if any(JOURNAL, "")? || any(FLIGHT, "")? {
                    outstanding.waiting.push(id);
                }
                outstanding.parked |= any(PARKED, &format!("AND parking > {}", mark.parkings))?;
            }
            Ok(outstanding)
        })
    }

    /// Several statements that see one state of the file: an entry on its way from one table to another is in
    /// exactly one of them.
    fn read_at_once<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.read(|conn| {
            let tx = conn.unchecked_transaction()?;
            let result = work(&tx)?;
            tx.finish()?;
            Ok(result)
        })
    }

    /// A number that this file keeps: `rows_flushed` or `rows_warmed`.
    pub fn total(&self, name: &str) -> Result<u64> {
        self.read(|conn| {
            conn.prepare_cached("SELECT value FROM _tidewater_meta WHERE key = ?1")?
                .query_row([name], unsigned)
                .optional()
                .map(|total| total.unwrap_or(0))
        })
    }
}

/// What a row is counted for beside its values: a round of light rows has a bound as well, also where very many have to come
/// along. It takes some three times as much in memory while its round is on its way.
const ROW_WEIGHT: usize = 128;

/// Reads what a part of the round has of a table, up to so many bytes in all.
fn read_flight(
    conn: &Connection,
    table: &Table,
    part: Part,
    bytes_max: usize,
    read: &mut InFlight,
) -> Result<()> {
    // Exactly the index's order: sorted in any other, the rows would be in memory before the first is looked at.
    let order = list(key_columns(table), |k| format!("f.{k}"));
    let sql = in_flight(table, &format!("f.step BETWEEN ?1 AND ?2 ORDER BY f.step DESC, {order}"));
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query([part.first, part.last])?;
    let mut rows: Vec<RoundRow> = vec![];
    let mut last_step = 0;
    let is_first = read.bytes == 0;
    while let Some(row) = found.next()? {
        let (step, row) = row_in_flight(table, row)?;
        let values = row.key.iter().chain(row.row.iter().flatten()).chain(&row.entry.base);
        let bytes = ROW_WEIGHT + values.map(Value::size).sum::<usize>();
        if read.bytes + bytes > bytes_max && !(is_first && rows.is_empty()) {
            read.rest =
                Some(Rest { table: table.id, after: rows.last().map(|row| (last_step, row.key.clone())) });
            break;
        }
        last_step = step;
        read.bytes += bytes;
        rows.push(row);
    }
    read.rows.push(rows);
    Ok(())
}

/// Rows of the round in flight, with what was written since undone. That is done in SQL: SQLite allows 2,000 columns in an
/// answer, not more.
fn in_flight(table: &Table, which: &str) -> String {
    let keys = table.key.len();
    let as_noted = |c: usize| match table.key.iter().position(|k| *k == c) {
        Some(at) => format!("f.k{at}"),
        None => {
            let (id, name) = (table.columns[c].id, ident(&table.columns[c].name));
            format!("CASE WHEN j.d{id} THEN j.b{id} ELSE t.{name} END")
        }
    };
    format!(
        "SELECT {}, coalesce(j.known, t.{} IS NOT NULL), {}, f.step FROM {} AS f LEFT JOIN {} AS t ON {} \
         LEFT JOIN {} AS j ON {} WHERE {which}",
        list(&entry_columns(table), |c| format!("f.{c}")),
        ident(table.key_names()[0]),
        list(0..table.columns.len(), as_noted),
        ident(&side_table(FLIGHT, table)),
        ident(&table.name),
        row_is(table, "t", |at| format!("f.k{at}")),
        ident(&side_table(JOURNAL, table)),
        all(0..keys, |at| format!("j.k{at} = f.k{at}")),
    )
}

/// One of them, and the step in which it came.
fn row_in_flight(table: &Table, row: &rusqlite::Row<'_>) -> Result<(i64, RoundRow)> {
    let (keys, columns) = (table.key.len(), table.columns.len());
    let entry = row.as_ref().column_count() - columns - 2;
    let was_there: bool = row.get(entry)?;
    let stored = values(row, entry + 1, columns)?;
    let step = row.get(entry + 1 + columns)?;
    let (key, entry) = (values(row, 0, keys)?, entry_from(table, row, keys)?);
    Ok((step, RoundRow { key, entry, row: was_there.then_some(stored) }))
}

// ---------------------------------------------------------------------------------------------------------
// Connections and values
// ---------------------------------------------------------------------------------------------------------

/// Looks at the file before SQLite does, because SQLite's words for these cases help nobody. Creates it with
/// mode 0600 when it is missing; its companions inherit the mode.
fn check_file(path: &Path) -> Result<Vec<Notice>> {
    let broken = |reason: &str, remedy: &str| StoreError::Open {
        path: path.display().to_string(),
        reason: reason.into(),
        remedy: remedy.into(),
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(broken("this is a folder", "name a file in it with TIDEWATER_DATABASE"))
        }
        Ok(metadata) if !metadata.is_file() => {
            Err(broken("this is not an ordinary file", "name another one with TIDEWATER_DATABASE"))
        }
        // An existing file is not opened here: closing it again would take away the locks of every connection that this
        // process has to it, and the next program to leave would delete the log under them.
        Ok(metadata) => Ok(open_to_others(path, &metadata)),
        Err(_) => {
            private_file(path).map_err(|error| open_error(path, &error))?;
            Ok(vec![])
        }
    }
}

#[cfg(unix)]
fn open_to_others(path: &Path, metadata: &std::fs::Metadata) -> Vec<Notice> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    if mode & 0o077 == 0 {
        return vec![];
    }
    vec![Notice(format!(
        "{} can be read by others (mode {mode:04o}); it keeps its mode, `chmod 600` closes it",
        path.display()
    ))]
}

#[cfg(not(unix))]
fn open_to_others(_path: &Path, _metadata: &std::fs::Metadata) -> Vec<Notice> {
    vec![]
}

/// Where the open file is, so that it is noticed when somebody deletes or replaces it. SQLite does not care, and a file
/// that has lost its name takes writes until it is closed, which is when they are gone.
#[derive(Debug, Default, Clone)]
struct Place {
    known: Vec<(PathBuf, FileId)>,
    log: PathBuf,
    /// The log as it was at the last look.
    seen: Option<(SystemTime, u64)>,
}

/// A log that was written more recently than this may be written again without its time being another one: file systems
/// count in ticks of some milliseconds, some in whole seconds.
const COARSEST_TIME: Duration = Duration::from_secs(2);

#[cfg(unix)]
type FileId = (u64, u64);

#[cfg(not(unix))]
type FileId = ();

impl Place {
    /// The file alone: its companions go when the last of some connections does.
    fn of_file(path: &Path) -> Self {
        let named = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let known = file_id(&named).ok().map(|id| (named, id)).into_iter().collect();
        Self { known, ..Self::default() }
    }

    /// The file and its companions, which are beside the file itself, wherever the path leads.
    fn of(path: &Path) -> Self {
        let file = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let named = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let [log, index] = ["-wal", "-shm"].map(|suffix| {
            let mut name = file.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        });
        let all = [named, log.clone(), index];
        // What cannot be asked now cannot be missed later.
        let known = all.into_iter().filter_map(|path| file_id(&path).ok().map(|id| (path, id))).collect();
        Self { known, log, seen: None }
    }

    /// # Errors
    /// [`StoreError::ReplacedFile`]. A folder that cannot be looked into for the moment is no proof of that.
    fn check(&self) -> Result<()> {
        let moved = |path: &Path, id: FileId| match file_id(path) {
            Ok(found) => found != id,
            Err(error) => is_missing(&error),
        };
        match self.known.iter().find(|(path, id)| moved(path, *id)) {
            Some((path, _)) => Err(StoreError::ReplacedFile { path: path.display().to_string() }),
            None => Ok(()),
        }
    }

    /// A disk that the kernel has made read-only, as after an error of its own, is an input or output error for SQLite as
    /// many others.
    fn explain(&self, error: StoreError) -> StoreError {
        let StoreError::Io(text) = error else { return error };
        let Some((path, _)) = self.known.first() else { return StoreError::Io(text) };
        // Not the file itself: closing it would take away the locks of our connections.
        let probe = || {
            let lock = OpenOptions::new().write(true).open(lock_path(path))?;
            lock.set_len(lock.metadata()?.len())
        };
        match probe() {
            Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::ReadOnly(text)
            }
            _ => StoreError::Io(text),
        }
    }

    /// Whether only the log has been deleted, and nobody has begun another one.
    fn has_lost_its_log(&self) -> bool {
        let in_place = |(path, id): &(PathBuf, FileId)| {
            if *path == self.log {
                file_id(path).is_err_and(|error| is_missing(&error))
            } else {
                file_id(path).is_ok_and(|found| found == *id)
            }
        };
        self.known.iter().all(in_place)
    }

    /// Rings when the log is written, or any of the files is not where it was.
    fn bell(&self) -> std::io::Result<Bell> {
        Bell::new(&self.log, self.known.iter().map(|(path, _)| &**path))
    }

    /// Whether somebody may have committed since the last call: this asks the file system, which is far cheaper than
    /// asking SQLite.
    fn log_was_written(&mut self) -> bool {
        let metadata = std::fs::metadata(&self.log).ok();
        let now = metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        let same = now.is_some_and(|(written, _)| {
            self.seen == now && written.elapsed().is_ok_and(|ago| ago > COARSEST_TIME)
        });
        self.seen = now;
        !same
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

#[cfg(unix)]
fn file_id(path: &Path) -> std::io::Result<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> std::io::Result<FileId> {
    std::fs::metadata(path).map(|_| ())
}

/// After so many of SQLite's instructions, some milliseconds, a statement shows a sign of life.
const PROGRESS_OPS: i32 = 100_000;

fn connect(options: &StoreOptions) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&options.path, flags)?;
    conn.busy_timeout(options.busy_timeout)?;
    conn.set_prepared_statement_cache_capacity(256);
    // Only the first one of a file that is empty can say so; later a whole VACUUM would be needed, which nobody asked for.
    if conn.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))? == 0 {
        conn.pragma_update(None, "auto_vacuum", upkeep::INCREMENTAL)?;
    }
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
            Some(format!("write-ahead logging is not possible here (journal mode stays {mode})")),
        ));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Takes the place of SQLite's automatic checkpoint.
    conn.wal_hook(Some(|_, pages| {
        upkeep::committed(pages);
        Ok(())
    }));
    let keep = i64::try_from(options.upkeep.wal_keep_bytes).unwrap_or(i64::MAX);
    conn.pragma_update_and_check(None, "journal_size_limit", keep, |_| Ok(()))?;
    // A statement that takes long is not one that hangs.
    conn.progress_handler(
        PROGRESS_OPS,
        Some(|| {
            progress();
            false
        }),
    )?;
    Ok(conn)
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(i) => ValueRef::Integer(*i),
            Value::Real(r) => ValueRef::Real(*r),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Malformed(bytes) => ValueRef::Text(bytes),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn value(stored: ValueRef<'_>) -> Value {
    match stored {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Malformed(bytes.to_vec()),
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn values(row: &Row<'_>, first: usize, count: usize) -> rusqlite::Result<Vec<Value>> {
    (first..first + count).map(|at| row.get_ref(at).map(value)).collect()
}

fn unsigned(row: &Row<'_>) -> rusqlite::Result<u64> {
    // Counts and totals are never negative.
    Ok(row.get::<_, i64>(0)?.unsigned_abs())
}

fn query<T>(
    conn: &Connection,
    sql: &str,
    params: &[Value],
    each: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params_from_iter(params), each)?.collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

/// Runs the callers' statements. One that comes again right away is neither judged nor looked up again.
struct Runner<'a> {
    conn: &'a Connection,
    last: Option<(&'a str, CachedStatement<'a>)>,
    /// Whether one of them made something, that may be temporary.
    made: bool,
}

impl<'a> Runner<'a> {
    fn run_all(&mut self, statements: &'a [Statement]) -> Result<Vec<StatementResult>> {
        let results = statements.iter().map(|statement| self.run(statement)).collect::<Result<Vec<_>>>()?;
        if self.made {
            refuse_temporary(self.conn)?;
        }
        Ok(results)
    }

    fn run(&mut self, statement: &'a Statement) -> Result<StatementResult> {
        let sql = statement.sql.as_str();
        // One that ends whoever runs it: its own text is the name of the place.
        fail::fail_point!(sql);
        let prepared = match &mut self.last {
            Some((known, prepared)) if *known == sql => prepared,
            last => {
                *last = None;
                if let Some(word) = forbidden(sql) {
                    return Err(StoreError::Forbidden(word));
                }
                self.made |= first_word(sql) == "CREATE";
                if ["ALTER", "CREATE"].contains(&first_word(sql).as_str()) {
                    return with_triggers(self.conn, sql, || {
                        execute(self.conn, &mut *self.conn.prepare_cached(sql)?, &statement.params)
                    });
                }
                let prepared = self.conn.prepare_cached(sql)?;
                &mut last.insert((sql, prepared)).1
            }
        };
        execute(self.conn, prepared, &statement.params)
    }
}

/// Runs a statement that may change the schema so that our triggers are as they should be for the next one of the same
/// transaction.
fn with_triggers<T>(conn: &Connection, sql: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let (first, rest) = word(sql);
    match first.as_str() {
        "ALTER" => aside(conn, run),
        "CREATE" if ["UNIQUE", "TRIGGER"].contains(&word(rest).0.as_str()) => renewed(conn, run),
        _ => run(),
    }
}

/// A new unique index evicts rows that our triggers of before do not look for, and a new trigger runs before them.
fn renewed<T>(conn: &Connection, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let behind = || -> Result<Vec<Table>> {
        let mut behind = vec![];
        for table in remembered_tables(conn)? {
            let present = present_triggers(conn, &table)?;
            if !newer_than_ours(&present).is_empty() || !see_all_evictions(&present, &table) {
                behind.push(table);
            }
        }
        Ok(behind)
    };
    // What somebody else did to them is for the end of the transaction, as is who has no triggers.
    let before = behind()?;
    let result = run()?;
    for mut table in behind()? {
        if before.iter().all(|known| known.id != table.id) {
            drop_triggers(conn, &table.name)?;
            equip(conn, &mut table, Missing::IsOurDoing)?;
        }
    }
    Ok(result)
}

/// SQLite does not drop a column that a trigger reads. Ours step aside meanwhile; no row changes.
///
/// A table that is made anew passes through states in which it is not there, or is an unknown one: whoever has no triggers
/// is left alone until the transaction ends, except when this gives it the name of one that was tracked.
fn aside<T>(conn: &Connection, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut before = HashMap::new();
    for table in &remembered_tables(conn)? {
        let dressed = has_triggers(conn, &table.name)?;
        let missing = match dressed {
            false => None,
            true if trigger_state(conn, table)? >= Triggers::Narrow => Some(Missing::IsGap),
            true => Some(Missing::IsOurDoing),
        };
        before.insert(table.id, missing);
        if dressed {
            doubt_what_came_late(conn, table)?;
            drop_triggers(conn, &table.name)?;
        }
    }
    let result = run()?;
    for table in &mut remembered_tables(conn)? {
        if let Some(missing) = before.get(&table.id).copied().unwrap_or(Some(Missing::IsGap)) {
            equip(conn, table, missing)?;
        }
    }
    Ok(result)
}

/// The one way in which a transaction of the writer's becomes durable. A writer that has a successor ends none any more
/// (S5): of two that hold the file for a while only one goes on.
fn commit(tx: Transaction<'_>) -> Result<()> {
    fail::fail_point!("sqlite.commit");
    if is_stale() {
        return Err(StoreError::Replaced);
    }
    let mut commit = tx.prepare_cached("COMMIT")?;
    // However long the disk takes for it, that is not a writer that hangs. Without success, the transaction is rolled back
    // when it is dropped.
    patiently(|| {
        fail::fail_point!("sqlite.sync");
        commit.execute([])
    })?;
    Ok(())
}

fn execute(
    conn: &Connection,
    prepared: &mut rusqlite::Statement<'_>,
    params: &[Value],
) -> Result<StatementResult> {
    let before = conn.total_changes();
    let mut rows = vec![];
    if prepared.column_count() > 0 {
        let mut found = prepared.query(params_from_iter(params))?;
        while let Some(row) = found.next()? {
            // Asked of the row: SQLite prepares anew with the first step where the schema has changed since.
            rows.push(values(row, 0, row.as_ref().column_count())?);
        }
        drop(found);
    } else {
        prepared.execute(params_from_iter(params))?;
    }
    let rows_changed = if conn.total_changes() == before { 0 } else { conn.changes() };
    Ok(StatementResult { rows_changed, last_insert_rowid: conn.last_insert_rowid(), rows })
}

/// The first word of a statement, if it is one that would end or leave the shared transaction, or change the
/// connection under everybody.
fn forbidden(sql: &str) -> Option<String> {
    const WORDS: [&str; 10] = [
        "BEGIN",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "ATTACH",
        "DETACH",
        "VACUUM",
        "PRAGMA",
    ];
    let word = first_word(sql);
    WORDS.contains(&word.as_str()).then_some(word)
}

/// What is temporary is the connection's, and goes with it: left behind, a table would take the rows that others mean for the
/// one of its name, and a trigger theirs away.
fn refuse_temporary(conn: &Connection) -> Result<()> {
    let sql = "SELECT type || ' ' || name FROM sqlite_temp_schema WHERE substr(name, 1, 18) <> ?1 LIMIT 1";
    let left: Option<String> =
        conn.prepare_cached(sql)?.query_row([backlog::GAUGE], |row| row.get(0)).optional()?;
    match left {
        Some(what) => Err(StoreError::Forbidden(format!("the temporary {what}, left behind,"))),
        None => Ok(()),
    }
}

/// The first word of a statement in capitals, after comments and empty statements.
fn first_word(sql: &str) -> String {
    word(sql).0
}

/// The same, and what comes after it.
fn word(sql: &str) -> (String, &str) {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == '\u{feff}');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return (rest[..end].to_ascii_uppercase(), &rest[end..]);
        }
    }
}

/// The name of what [`Store::go_by_clock`] was told last.
const CLOCK_OFFSET: &str = "clock_offset";

fn meta<T: rusqlite::types::FromSql>(conn: &Connection, key: &str) -> Result<Option<T>> {
    Ok(conn
        .prepare_cached("SELECT value FROM _tidewater_meta WHERE key = ?1")?
        .query_row([key], |row| row.get::<_, Option<T>>(0))
        .optional()?
        .flatten())
}

fn set_meta(conn: &Connection, key: &str, value: impl ToSql) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO _tidewater_meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
    )?
    .execute(params![key, value])?;
    Ok(())
}

fn set_cursor(conn: &Connection, cursor: &Cursor) -> Result<()> {
    set_meta(conn, "cursor_xid", &cursor.xid)?;
    set_meta(conn, "cursor_id", cursor.id)?;
    set_meta(conn, "cursor_tag", cursor.tag)
}

fn epoch(conn: &Connection) -> Result<i64> {
    Ok(conn.prepare_cached("SELECT epoch FROM _tidewater_clock")?.query_row([], |row| row.get(0))?)
}

fn round(conn: &Connection) -> Result<Option<(String, i64)>> {
    Ok(conn
        .query_row("SELECT id, number FROM _tidewater_round", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

/// This is the round in flight, and nobody has acknowledged it.
fn the_round(conn: &Connection, id: &str) -> Result<()> {
    match round(conn)? {
        Some((flying, _)) if flying == id && !clearing::is_acknowledged(conn)? => Ok(()),
        _ => Err(StoreError::NotInFlight),
    }
}

/// The schema is the one that the caller knows, inside its transaction.
fn same_schema(conn: &Connection, known: i64) -> Result<()> {
    if schema_version(conn)? == known { Ok(()) } else { Err(StoreError::SchemaChanged) }
}

fn schema_version(conn: &Connection) -> Result<i64> {
    Ok(conn.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?)
}

// ---------------------------------------------------------------------------------------------------------
// Entries
// ---------------------------------------------------------------------------------------------------------

/// `k0 = ?n AND k1 = ?n+1 …` in a side table.
fn key_is(table: &Table, first_parameter: usize) -> String {
    all(0..table.key.len(), |at| format!("k{at} = ?{}", at + first_parameter))
}

/// A side table's key against the table's own, so that the side table's index serves: its columns have no affinity, and
/// the `+` keeps the other operand's from being applied to them (<https://www.sqlite.org/datatype3.html>, section 4.2).
fn side_key(side: &str, at: usize, row: &str, key: &str) -> String {
    format!("{side}.k{at} = +{row}.{}", ident(key))
}

/// The table's row with exactly this key: found by its index, whose collation may be laxer, then compared by bytes.
fn row_is(table: &Table, row: &str, key: impl Fn(usize) -> String) -> String {
    all(table.key_names().iter().enumerate(), |(at, name)| {
        let (name, key) = (ident(name), key(at));
        format!("{row}.{name} = {key} AND {key} = {row}.{name} COLLATE BINARY")
    })
}

fn entry_from(table: &Table, row: &Row<'_>, first: usize) -> rusqlite::Result<Entry> {
    let width = table.columns.len();
    let mut entry = Entry {
        known: row.get(first)?,
        // A deletion says nothing about a row that the cloud never had.
        whole: row.get::<_, i64>(first + 1)? == 1 || row.get(first)? && row.get(first + 1)?,
        stamp: row.get::<_, Option<i64>>(first + 2)?.unwrap_or(0),
        epoch: row.get::<_, Option<i64>>(first + 3)?.unwrap_or(0),
        seen: row.get(first + 4)?,
        dirty: vec![false; width],
        base: vec![Value::Null; width],
    };
    for (at, c) in table.data_columns().enumerate() {
        entry.dirty[c] = row.get(first + 5 + 2 * at)?;
        entry.base[c] = value(row.get_ref(first + 6 + 2 * at)?);
    }
    Ok(entry)
}

/// Takes an entry out of one of the tables that hold entries.
fn take_entry(conn: &Connection, table: &Table, kind: &str, key: &[Value]) -> Result<Option<Entry>> {
    let sql = format!(
        "DELETE FROM {} WHERE {} RETURNING {}",
        ident(&side_table(kind, table)),
        key_is(table, 1),
        list(entry_columns(table), |c| c)
    );
    let mut found = query(conn, &sql, key, |row| entry_from(table, row, table.key.len()))?;
    Ok(found.pop())
}

/// Takes an entry out of the round, with what was dirtied since.
fn take_from_flight(conn: &Connection, table: &Table, key: &[Value]) -> Result<Option<Entry>> {
    let Some(flight) = take_entry(conn, table, FLIGHT, key)? else { return Ok(None) };
    Ok(Some(match take_entry(conn, table, JOURNAL, key)? {
        Some(fresh) => combine(flight, fresh),
        None => flight,
    }))
}

/// Puts an entry where none is.
fn put_entry(conn: &Connection, table: &Table, kind: &str, key: &[Value], entry: &Entry) -> Result<()> {
    let columns = entry_columns(table);
    let mut values = key.to_vec();
    values.extend([
        entry.known.into(),
        entry.whole.into(),
        Value::Integer(entry.stamp),
        Value::Integer(entry.epoch),
        Value::Integer(entry.seen),
    ]);
    for c in table.data_columns() {
        values.push(entry.dirty[c].into());
        values.push(if entry.dirty[c] { entry.base[c].clone() } else { Value::Null });
    }
    let parked = kind == PARKED;
    let sql = format!(
        "INSERT INTO {} ({}{}) VALUES ({}{})",
        ident(&side_table(kind, table)),
        list(&columns, |c| c.clone()),
        if parked { ", message, parked_at" } else { "" },
        list(0..columns.len(), |at| format!("?{}", at + 1)),
        if parked { ", '', ''" } else { "" },
    );
    conn.prepare_cached(&sql)?.execute(params_from_iter(&values))?;
    Ok(())
}

/// Parks an entry that is in none of the tables. Whether that is news.
fn park_entry(
    conn: &Connection,
    table: &Table,
    entry: &Entry,
    refusal: &Refusal,
    parking: i64,
    shape: Option<&str>,
) -> Result<bool> {
    put_entry(conn, table, PARKED, &refusal.key, entry)?;
    let sql = format!(
        "UPDATE {} SET sqlstate = ?1, message = ?2, \"constraint\" = ?3, row_values = ?4, \
         parked_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), parking = ?5 WHERE {}",
        ident(&side_table(PARKED, table)),
        key_is(table, 6)
    );
    let mut values: Vec<Value> = vec![
        refusal.sqlstate.clone().into(),
        refusal.message.clone().into(),
        refusal.constraint.clone().into(),
        refusal.values.clone().into(),
        parking.into(),
    ];
    values.extend(refusal.key.iter().cloned());
    conn.prepare_cached(&sql)?.execute(params_from_iter(&values))?;
    parked::note_refusal(conn, refusal, parking, shape)
}

/// One entry from an older and a fresher one for the same row: the older base, the union of the columns.
fn combine(older: Entry, fresher: Entry) -> Entry {
    let mut both = older;
    // What the cloud has perhaps is known since.
    if both.known {
        both.whole |= fresher.whole;
    } else {
        both.known = both.whole && fresher.known;
    }
    both.stamp = both.stamp.max(fresher.stamp);
    both.epoch = both.epoch.min(fresher.epoch);
    both.seen = both.seen.max(fresher.seen);
    for c in 0..both.dirty.len() {
        if fresher.dirty[c] && !both.dirty[c] {
            both.dirty[c] = true;
            both.base[c] = fresher.base[c].clone();
        }
    }
    both
}

/// [`combine`] for a whole table, in SQL: the older entries of `from` go into `into`, and are gone from `from`.
fn merge_entries(
    conn: &Connection,
    table: &Table,
    from: &str,
    into: &str,
    where_clause: &str,
) -> Result<usize> {
    merge_some(conn, table, [from, into], where_clause, &[])
}

/// [`merge_entries`], with parameters of the clause.
fn merge_some(
    conn: &Connection,
    table: &Table,
    [from, into]: [&str; 2],
    where_clause: &str,
    params: &[Value],
) -> Result<usize> {
    let columns = entry_columns(table);
    let refused = if from == FLIGHT && into == JOURNAL { ", refused" } else { "" };
    let mut updates = vec![
        // What the cloud has perhaps is known since.
        "known = max(excluded.known, excluded.whole = 1 AND known)".to_owned(),
        "whole = CASE WHEN whole = 2 THEN 2 WHEN excluded.known THEN max(whole, min(excluded.whole, 1)) \
         ELSE excluded.whole = 1 END"
            .into(),
        "stamp = max(stamp, excluded.stamp)".into(),
        "epoch = min(epoch, excluded.epoch)".into(),
        "seen = max(seen, excluded.seen)".into(),
    ];
    for c in table.data_columns() {
        let id = table.columns[c].id;
        updates.push(format!("b{id} = CASE WHEN excluded.d{id} THEN excluded.b{id} ELSE b{id} END"));
        updates.push(format!("d{id} = max(d{id}, excluded.d{id})"));
    }
    if into == JOURNAL {
        // Changed since it was refused, or asked for: it is tried like any other.
        updates.push("refused = NULL".into());
    }
    let names = list(&columns, |c| c.clone());
    let (from, into) = (ident(&side_table(from, table)), ident(&side_table(into, table)));
    let keys = list(key_columns(table), |k| k);
    let moved = conn
        .prepare_cached(&format!(
            "INSERT INTO {into} ({names}{refused}) SELECT {names}{refused} FROM {from} WHERE {where_clause} \
             ON CONFLICT ({keys}) DO UPDATE SET {}",
            list(updates, |u| u)
        ))?
        .execute(params_from_iter(params))?;
    conn.prepare_cached(&format!("DELETE FROM {from} WHERE {where_clause}"))?
        .execute(params_from_iter(params))?;
    Ok(moved)
}

fn merge_back(conn: &Connection, table: &Table) -> Result<()> {
    merge_entries(conn, table, FLIGHT, JOURNAL, "true")?;
    Ok(())
}

/// Whether the cloud has not heard of all conflicts.
fn conflicts_wait(conn: &Connection) -> Result<bool> {
    let sql = "SELECT coalesce((SELECT max(id) FROM _tidewater_conflicts), 0) \
               > coalesce((SELECT value FROM _tidewater_meta WHERE key = 'conflicts_told'), 0)";
    Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Rows that were refused for what another row was, or was not yet, get another chance when that row moves: it is in flight,
/// or gets its chance with them. They go from where they are parked to `into`.
///
/// - a row refused for want of a parent, and the parent
/// - a row refused for a unique value, and the row that leaves it, in either direction
/// - a row that could not leave the place where others refer to it, and those that referred to it
fn unpark_dependents(conn: &Connection, tables: &[&Table], into: &str) -> Result<()> {
    const CHANCE: &str = "another chance";
    let mut hopeful = vec![];
    for table in tables.iter().copied() {
        if is_hopeful(conn, table)? {
            hopeful.push(table);
        }
    }
    if hopeful.is_empty() {
        return Ok(());
    }
    // Very many rows may be parked: they are looked at for the sake of what moves, and not with every round.
    let mut moves: HashSet<i64> = HashSet::new();
    for table in tables {
        if anything_flies(conn, &[table], Part::default())? {
            moves.insert(table.id);
        }
    }
    let moving = |table: &Table| {
        let columns = list(entry_columns(table), |c| c);
        let (flight, parked) = (ident(&side_table(FLIGHT, table)), ident(&side_table(PARKED, table)));
        format!(
            "(SELECT {columns} FROM {flight} UNION ALL SELECT {columns} FROM {parked} WHERE sqlstate = '{CHANCE}')"
        )
    };
    loop {
        let mut found = 0;
        for table in hopeful.iter().copied() {
            let own = format!(
                "SELECT 1 FROM {} AS t WHERE {}",
                ident(&table.name),
                row_is(table, "t", |at| { format!("q.k{at}") })
            );
            let mut reasons = vec![];
            for key in &table.foreign_keys {
                let parent = tables.iter().copied().find(|t| t.name.eq_ignore_ascii_case(&key.parent));
                let Some(parent) = parent.filter(|parent| moves.contains(&parent.id)) else { continue };
                reasons.push(format!(
                    "EXISTS ({own} AND ({}) IN (SELECT {} FROM {} AS m JOIN {} AS p ON {}))",
                    list(&key.columns, |c| format!("t.{}", ident(&table.columns[*c].name))),
                    list(&key.parent_columns, |c| format!("p.{}", ident(c))),
                    moving(parent),
                    ident(&parent.name),
                    row_is(parent, "p", |at| format!("m.k{at}")),
                ));
            }
            for unique in table.uniques.iter().filter(|_| moves.contains(&table.id)) {
                reasons.push(format!(
                    "EXISTS ({own} AND ({}) IN (SELECT {} FROM {} AS m WHERE m.known))",
                    list(&unique.columns, |(c, _)| format!("t.{}", ident(&table.columns[*c].name))),
                    list(&unique.columns, |(c, _)| was(table, "m", *c)),
                    moving(table),
                ));
                reasons.push(format!(
                    "q.known AND ({}) IN (SELECT {} FROM {} AS m JOIN {} AS n ON {})",
                    list(&unique.columns, |(c, _)| was(table, "q", *c)),
                    list(&unique.columns, |(c, _)| format!("n.{}", ident(&table.columns[*c].name))),
                    moving(table),
                    ident(&table.name),
                    row_is(table, "n", |at| format!("m.k{at}")),
                ));
            }
            for child in tables.iter().copied().filter(|child| moves.contains(&child.id)) {
                for key in child.foreign_keys.iter().filter(|k| k.parent.eq_ignore_ascii_case(&table.name)) {
                    let referred: Option<Vec<usize>> =
                        key.parent_columns.iter().map(|name| table.column(name)).collect();
                    let Some(referred) = referred else { continue };
                    reasons.push(format!(
                        "q.known AND ({}) IN (SELECT {} FROM {} AS m WHERE m.known)",
                        list(&referred, |c| was(table, "q", *c)),
                        list(&key.columns, |c| was(child, "m", *c)),
                        moving(child),
                    ));
                }
            }
            if !reasons.is_empty() {
                let parked = ident(&side_table(PARKED, table));
                let reasons = reasons.join(" OR ");
                let sql =
                    format!("UPDATE {parked} AS q SET sqlstate = '{CHANCE}' WHERE {HOPEFUL} AND ({reasons})");
                let chances = conn.prepare_cached(&sql)?.execute([])?;
                if chances > 0 {
                    moves.insert(table.id);
                }
                found += chances;
            }
        }
        if found == 0 {
            break;
        }
    }
    for table in hopeful {
        merge_entries(conn, table, PARKED, into, &format!("sqlstate = '{CHANCE}'"))?;
    }
    Ok(())
}

/// The codes of refusals for which another row may be the reason.
const HOPEFUL: &str = "sqlstate IN ('23001', '23503', '23505')";

/// Whether rows of the table are parked for what other rows are.
fn is_hopeful(conn: &Connection, table: &Table) -> Result<bool> {
    let parked = ident(&side_table(PARKED, table));
    Ok(conn.prepare_cached(&format!("SELECT 1 FROM {parked} WHERE {HOPEFUL} LIMIT 1"))?.exists([])?)
}

/// A column as it was before the changes that an entry collects: its key's, the base, or, where it did not change, the row's.
fn was(table: &Table, entry: &str, column: usize) -> String {
    if let Some(part) = table.key.iter().position(|k| *k == column) {
        return format!("{entry}.k{part}");
    }
    let Column { id, name, .. } = &table.columns[column];
    format!(
        "CASE WHEN {entry}.d{id} THEN {entry}.b{id} ELSE (SELECT now.{} FROM {} AS now WHERE {}) END",
        ident(name),
        ident(&table.name),
        row_is(table, "now", |at| format!("{entry}.k{at}")),
    )
}

/// Parked rows that were edited go along with their part, with their older bases, and so do those that hold a value which a row
/// of it takes.
fn absorb_parked(conn: &Connection, tables: &[&Table], part: Part) -> Result<()> {
    for table in tables {
        let keys = list(key_columns(table), |k| k);
        let flight = ident(&side_table(FLIGHT, table));
        let which = format!("({keys}) IN (SELECT {keys} FROM {flight} WHERE step >= ?1)");
        merge_some(conn, table, [PARKED, FLIGHT], &which, &[Value::Integer(part.first)])?;
    }
    parked::absorb_holders(conn, tables, part)
}

/// Moves up to `limit` entries of the tables in flight, one table after the other from the given place on, and answers with
/// their number and, if there were so many, the table at which that was.
fn take_in_turn(
    conn: &Connection,
    tables: &[&Table],
    begin: usize,
    limit: usize,
    (refused, upto): (bool, i64),
    part: Part,
    sweep: &mut Sweep,
) -> Result<(usize, Option<i64>)> {
    let (mut taken, mut stopped) = (0, None);
    for at in 0..tables.len() {
        if taken >= limit {
            break;
        }
        let table = tables[(begin + at) % tables.len()];
        taken += take(conn, table, limit - taken, refused, upto, part, sweep)?;
        stopped = (taken >= limit).then_some(table.id);
    }
    Ok((taken, stopped))
}

/// The same of the first table, beginning with the given one, that has any that were not refused: its place, and how many came.
fn take_from_one(
    conn: &Connection,
    tables: &[&Table],
    begin: usize,
    limit: usize,
    upto: i64,
    sweep: &mut Sweep,
) -> Result<Option<(usize, usize)>> {
    for at in (0..tables.len()).map(|at| (begin + at) % tables.len()) {
        let came = take(conn, tables[at], limit, false, upto, Part::default(), sweep)?;
        if came > 0 {
            return Ok(Some((at, came)));
        }
    }
    Ok(None)
}

/// Moves up to `limit` entries of one table from the journal in flight, going on where the last one stopped.
fn take(
    conn: &Connection,
    table: &Table,
    limit: usize,
    refused: bool,
    upto: i64,
    part: Part,
    sweep: &mut Sweep,
) -> Result<usize> {
    let place = (table.id, refused);
    let refused = if refused { "NOT NULL" } else { "NULL" };
    let which = format!("refused IS {refused} AND coalesce(epoch, 0) <= {upto}");
    let mut taken = 0;
    let mut after = sweep.remove(&place);
    loop {
        let (moved, until) = take_next(conn, table, &which, after.as_deref(), limit - taken, part)?;
        taken += moved;
        if let Some(last) = until {
            sweep.insert(place, last);
            return Ok(taken);
        }
        // The end of the journal: once more from its beginning, if this one did not start there.
        if after.take().is_none() {
            return Ok(taken);
        }
    }
}

/// Moves the next so many entries in flight, and answers with their number and, if there were so many, the last key.
/// Exactly what is moved is deleted: what was dirtied since may have the same key.
fn take_next(
    conn: &Connection,
    table: &Table,
    which: &str,
    after: Option<&[Value]>,
    limit: usize,
    part: Part,
) -> Result<(usize, Option<Vec<Value>>)> {
    let keys = list(key_columns(table), |k| k);
    let columns = list(entry_columns(table), |c| c);
    let journal = ident(&side_table(JOURNAL, table));
    let flight = ident(&side_table(FLIGHT, table));
    let until = last_of_next(conn, table, JOURNAL, which, after, limit)?;
    let (range, params) = key_range(table, after, until.as_deref());
    let step = Value::Integer(part.first);
    let moved = conn
        .prepare_cached(&format!(
            "INSERT INTO {flight} ({columns}, refused, step) SELECT {columns}, refused, ?{} FROM {journal} \
             WHERE {which} AND {range} ORDER BY {keys}",
            params.len() + 1
        ))?
        .execute(params_from_iter(params.iter().chain([&step])))?;
    if moved > 0 {
        conn.prepare_cached(&format!("DELETE FROM {journal} WHERE {which} AND {range}"))?
            .execute(params_from_iter(&params))?;
    }
    Ok((moved, until))
}

/// The last key of the next so many entries, if there are so many.
fn last_of_next(
    conn: &Connection,
    table: &Table,
    kind: &str,
    which: &str,
    after: Option<&[Value]>,
    count: usize,
) -> Result<Option<Vec<Value>>> {
    let keys = list(key_columns(table), |k| k);
    let (range, params) = key_range(table, after, None);
    let skipped = count.saturating_sub(1);
    let sql = format!(
        "SELECT {keys} FROM {} WHERE {which} AND {range} ORDER BY {keys} LIMIT 1 OFFSET {skipped}",
        ident(&side_table(kind, table))
    );
    Ok(query(conn, &sql, &params, |row| values(row, 0, table.key.len()))?.pop())
}

/// The keys of a side table beyond one and up to another, with its parameters.
fn key_range(table: &Table, after: Option<&[Value]>, until: Option<&[Value]>) -> (String, Vec<Value>) {
    let keys = list(key_columns(table), |k| k);
    let mut params: Vec<Value> = vec![];
    let mut bounds = vec![];
    for (operator, key) in [(">", after), ("<=", until)] {
        let Some(key) = key else { continue };
        let first = params.len() + 1;
        bounds.push(format!("({keys}) {operator} ({})", list(0..key.len(), |at| format!("?{}", at + first))));
        params.extend_from_slice(key);
    }
    (if bounds.is_empty() { "true".to_owned() } else { bounds.join(" AND ") }, params)
}

/// Whether nothing waits in the journals of these tables.
fn is_complete<'a>(conn: &Connection, tables: impl Iterator<Item = &'a Table>) -> Result<bool> {
    for table in tables {
        let sql = format!("SELECT 1 FROM {} LIMIT 1", ident(&side_table(JOURNAL, table)));
        if conn.prepare_cached(&sql)?.exists([])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether nothing waits but what is in the round: what is parked for the sake of others comes along only with a last chance.
fn is_all_there_is(conn: &Connection, tables: &[&Table], last_chance: bool) -> Result<bool> {
    let mut all = is_complete(conn, tables.iter().copied())?;
    for table in tables {
        all &= last_chance || !is_hopeful(conn, table)?;
    }
    Ok(all)
}

/// So many former children of deleted rows come along with a round that has its last chance: fewer than it can weigh, each of
/// them [`ROW_WEIGHT`] at least. Its parents have no such bound: without them it would be refused for certain.
const ALONG_MAX: usize = 40_000;

/// Pending parents of a part's rows come along, to any depth, unless they are in the round already: each time those of the
/// rows that came in the step before.
///
/// A parent that was refused comes along only when it has its last chance: it would be refused again, and take
/// the window with it.
///
/// With them come the former children of deleted parents, up to `room`.
fn close_under_foreign_keys(
    conn: &Connection,
    tables: &[&Table],
    last_chance: bool,
    part: Part,
    room: &mut usize,
) -> Result<()> {
    let which = if last_chance { "true" } else { "j.refused IS NULL" };
    let mut step = part.first;
    loop {
        let since = step;
        step += 1;
        let mut moved = 0;
        for child in tables.iter().copied() {
            for key in &child.foreign_keys {
                let parent = tables.iter().copied().find(|t| t.name.eq_ignore_ascii_case(&key.parent));
                let Some(parent) = parent else { continue };
                if is_complete(conn, std::iter::once(parent))? {
                    continue;
                }
                let columns = entry_columns(parent);
                let sql = format!(
                    "INSERT INTO {flight} ({names}, refused, step) SELECT DISTINCT {from_journal}, j.refused, ?1 \
                     {waiting} WHERE {which} AND f.step >= ?2 ON CONFLICT DO NOTHING",
                    flight = ident(&side_table(FLIGHT, parent)),
                    names = list(&columns, |c| c.clone()),
                    from_journal = list(&columns, |c| format!("j.{c}")),
                    waiting = waiting_parents(child, key, parent),
                );
                moved += came_along(conn, parent, step, conn.prepare_cached(&sql)?.execute([step, since])?)?;
            }
        }
        moved += take_children_of_deleted(conn, tables, which, part, step, room)?;
        if moved == 0 {
            return Ok(());
        }
    }
}

/// `FROM` the entries of a table in flight, `f`, to the entries `j` in the journal of those to whom their rows refer.
fn waiting_parents(child: &Table, key: &ForeignKey, parent: &Table) -> String {
    format!(
        "FROM {child_flight} AS f CROSS JOIN {child_table} AS c ON {child_row} \
         CROSS JOIN {parent_table} AS p ON {refers} CROSS JOIN {journal} AS j ON {parent_row}",
        child_flight = ident(&side_table(FLIGHT, child)),
        child_table = ident(&child.name),
        child_row = all(child.key_names().iter().enumerate(), |(at, k)| format!("c.{} = f.k{at}", ident(k))),
        parent_table = ident(&parent.name),
        refers = refers(child, key, "c", "p"),
        journal = ident(&side_table(JOURNAL, parent)),
        parent_row = all(parent.key_names().iter().enumerate(), |(at, k)| side_key("j", at, "p", k)),
    )
}

/// Whether a row of this part refers to one that an earlier part has as it was before: deleted, or with other values where it
/// refers to it. What it needs cannot come along, since it flies already; and if the cloud took the rows of the round in
/// another order, the deletion would act on the child.
fn refers_to_what_came_since(conn: &Connection, tables: &[&Table], part: Part) -> Result<bool> {
    for child in tables.iter().copied() {
        for key in &child.foreign_keys {
            let parent = tables.iter().copied().find(|t| t.name.eq_ignore_ascii_case(&key.parent));
            let Some(parent) = parent else { continue };
            if is_complete(conn, std::iter::once(parent))? {
                continue;
            }
            let referred = key.parent_columns.iter().filter_map(|name| parent.column(name));
            let changed: String = referred
                .filter(|c| !parent.is_key(*c))
                .map(|c| format!(" OR j.d{}", parent.columns[c].id))
                .collect();
            let sql = format!(
                "SELECT 1 {} CROSS JOIN {} AS o ON {} \
                 WHERE f.step >= ?1 AND o.step < ?1 AND (NOT j.known{changed}) LIMIT 1",
                waiting_parents(child, key, parent),
                ident(&side_table(FLIGHT, parent)),
                all(0..parent.key.len(), |at| format!("o.k{at} = j.k{at}")),
            );
            if conn.prepare_cached(&sql)?.exists([part.first])? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// So many entries were copied in flight in this step: they wait no more. Whoever was in the round before has an entry of his
/// own in the journal, of what happened since, which stays.
fn came_along(conn: &Connection, table: &Table, step: i64, came: usize) -> Result<usize> {
    if came > 0 {
        let (keys, flight) = (list(key_columns(table), |k| k), ident(&side_table(FLIGHT, table)));
        let sql = format!(
            "DELETE FROM {} WHERE ({keys}) IN (SELECT {keys} FROM {flight} WHERE step = ?1)",
            ident(&side_table(JOURNAL, table))
        );
        conn.prepare_cached(&sql)?.execute([step])?;
    }
    Ok(came)
}

/// Children that were moved away from a deleted parent, or deleted with it, go along: the cloud would refuse the deletion,
/// or let it act on them, as long as they are there as they were. They are told by the values that they had before: a
/// scan of the children's journal, only in rounds that delete parents.
///
/// When there is no `room` for all of them, the parent waits: it goes when they have gone. So does the parent of a child that left
/// it after an earlier part had brought it there: that part's rows are on their way.
fn take_children_of_deleted(
    conn: &Connection,
    tables: &[&Table],
    which: &str,
    part: Part,
    step: i64,
    room: &mut usize,
) -> Result<usize> {
    let mut moved = 0;
    // Children first: who has to wait for his own children shall not take others' room.
    for parent in tables.iter().rev().copied() {
        let mut children = tables.iter().copied().filter(|child| refers_to(child, parent));
        if children.all(|child| is_complete(conn, std::iter::once(child)).unwrap_or(false)) {
            continue;
        }
        // As it was noted: what was dirtied since says whether the row was there.
        let gone = format!(
            "SELECT f.* FROM {} AS f LEFT JOIN {} AS p ON {} LEFT JOIN {} AS j ON {} \
             WHERE f.step >= ?1 AND NOT coalesce(j.known, p.{} IS NOT NULL) AND f.known",
            ident(&side_table(FLIGHT, parent)),
            ident(&parent.name),
            row_is(parent, "p", |at| format!("f.k{at}")),
            ident(&side_table(JOURNAL, parent)),
            all(0..parent.key.len(), |at| format!("j.k{at} = f.k{at}")),
            ident(parent.key_names()[0]),
        );
        if !conn.prepare_cached(&format!("{gone} LIMIT 1"))?.exists([part.first])? {
            continue;
        }
        for child in tables.iter().copied() {
            for key in child.foreign_keys.iter().filter(|key| key.parent.eq_ignore_ascii_case(&parent.name)) {
                let referred: Option<Vec<usize>> =
                    key.parent_columns.iter().map(|name| parent.column(name)).collect();
                let Some(referred) = referred else { continue };
                let journal = ident(&side_table(JOURNAL, child));
                let flight = ident(&side_table(FLIGHT, child));
                let names = list(entry_columns(child), |c| c);
                // Who did not move refers to it no more than before; a key is left by going.
                let moved_away = list(&key.columns, |c| match child.is_key(*c) {
                    true => "1".to_owned(),
                    false => format!("j.d{}", child.columns[*c].id),
                });
                let those = format!(
                    "{which} AND 1 IN ({moved_away}) AND ({}) IN (SELECT {} FROM ({gone}) AS g)",
                    list(&key.columns, |c| was(child, "j", *c)),
                    list(&referred, |c| was(parent, "g", *c)),
                );
                let limit = i64::try_from(*room).unwrap_or(i64::MAX);
                let came = conn
                    .prepare_cached(&format!(
                        "INSERT INTO {flight} ({names}, refused, step) SELECT {names}, refused, ?2 FROM {journal} AS j \
                         WHERE {those} LIMIT ?3 ON CONFLICT DO NOTHING",
                    ))?
                    .execute([part.first, step, limit])?;
                moved += came_along(conn, child, step, came)?;
                *room -= came;
                if *room == 0 || part != Part::default() {
                    let left = list(&key.columns, |c| was(child, "j", *c));
                    let still = format!("SELECT {left} FROM {journal} AS j WHERE {those}");
                    let waiting = let_wait(conn, parent, &referred, part, &gone, &still)?;
                    if waiting > 0 {
                        // Who needs him in turn shall not call him again.
                        *room = 0;
                    }
                    moved += waiting;
                }
            }
        }
    }
    Ok(moved)
}

/// Puts those of the deleted rows back to which somebody in the journal still refers, as the cloud has him. Exactly these:
/// others of the part may have entries in the journal too, of what was dirtied since it was noted.
fn let_wait(
    conn: &Connection,
    table: &Table,
    referred: &[usize],
    part: Part,
    gone: &str,
    still: &str,
) -> Result<usize> {
    let sql = format!(
        "SELECT {} FROM ({gone}) AS g WHERE ({}) IN ({still})",
        list(key_columns(table), |k| k),
        list(referred, |c| was(table, "g", *c)),
    );
    let put_back = query(conn, &sql, &[part.first.into()], |row| values(row, 0, table.key.len()))?;
    for key in &put_back {
        merge_some(conn, table, [FLIGHT, JOURNAL], &key_is(table, 1), key)?;
    }
    Ok(put_back.len())
}

/// Whether the part has any rows.
fn anything_flies(conn: &Connection, tables: &[&Table], part: Part) -> Result<bool> {
    for table in tables {
        let flight = ident(&side_table(FLIGHT, table));
        let sql = format!("SELECT 1 FROM {flight} WHERE step >= ?1 LIMIT 1");
        if conn.prepare_cached(&sql)?.exists([part.first])? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refers_to(child: &Table, parent: &Table) -> bool {
    child.foreign_keys.iter().any(|key| key.parent.eq_ignore_ascii_case(&parent.name))
}

/// `parent.x = child.y AND …` for a foreign key.
fn refers(child: &Table, key: &ForeignKey, child_row: &str, parent_row: &str) -> String {
    all(key.columns.iter().zip(&key.parent_columns), |(c, p)| {
        format!("{parent_row}.{} = {child_row}.{}", ident(p), ident(&child.columns[*c].name))
    })
}

/// Sets columns of a row that is pending as it is: no trigger has to write that down. What the table itself refuses is not set,
/// and what was here stays pending.
fn set_unwatched(conn: &Connection, table: &Table, key: &[Value], values: &[(usize, Value)]) -> Result<()> {
    let columns: Vec<usize> = values.iter().map(|(c, _)| *c).collect();
    let sql = set_columns(table, &columns);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    // A statement that was prepared while there were triggers is prepared anew.
    let set = conn.execute(&sql, params_from_iter(key.iter().chain(values.iter().map(|(_, value)| value))));
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
    match set {
        Ok(_) => Ok(()),
        Err(error) if is_refused(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets these columns of one row: the key's values come first.
fn set_columns(table: &Table, columns: &[usize]) -> String {
    let keys = table.key.len();
    let set = list(columns.iter().enumerate(), |(at, c)| {
        format!("{} = ?{}", ident(&table.columns[*c].name), keys + at + 1)
    });
    format!("UPDATE {} AS t SET {set} WHERE {}", ident(&table.name), row_is(table, "t", param))
}

fn log_losses(conn: &Connection, table: &Table, key: &[Value], losses: &[Loss]) -> Result<()> {
    let json = |value: &Option<Value>| value.as_ref().map(|value| value.to_json().to_string());
    for loss in losses {
        conn.prepare_cached(
            "INSERT INTO _tidewater_conflicts (table_name, key, column, base, local, cloud, kept) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            table.name,
            json_array(key),
            loss.column.map(|c| &table.columns[c].name),
            json(&loss.base),
            json(&loss.local),
            json(&loss.cloud),
            loss.kept.word(),
        ])?;
    }
    Ok(())
}

fn read_row(conn: &Connection, table: &Table, key: &[Value]) -> Result<Option<Vec<Value>>> {
    let mut rows = query(conn, &select_row(table), key, |row| values(row, 0, table.columns.len()))?;
    Ok(rows.pop())
}

fn select_row(table: &Table) -> String {
    format!(
        "SELECT {} FROM {} AS t WHERE {}",
        list(&table.columns, |c| format!("t.{}", ident(&c.name))),
        ident(&table.name),
        row_is(table, "t", param)
    )
}

/// Inserts a row, with what it had in the columns that are left out, if it had anything.
fn insert(conn: &Connection, table: &Table, row: &[Value], left_out: &[Value]) -> rusqlite::Result<usize> {
    let names = table.columns.iter().map(|column| &column.name);
    let sql = format!(
        "INSERT INTO {} ({}) VALUES ({})",
        ident(&table.name),
        list(names.chain(&table.rule.left_out).take(row.len() + left_out.len()), |name| ident(name)),
        list(0..row.len() + left_out.len(), param)
    );
    conn.prepare_cached(&sql)?.execute(params_from_iter(row.iter().chain(left_out)))
}

/// Whether the keys that the comparison of a table has shown are remembered: not where nothing was here when it began, so that
/// nothing can be left over.
fn remembers_seen(conn: &Connection, table: &Table) -> Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    Ok(conn.prepare_cached(sql)?.exists([side_table(SEEN, table)])?)
}

// ---------------------------------------------------------------------------------------------------------
// Applying
// ---------------------------------------------------------------------------------------------------------

/// The statements for one table's rows, kept at hand: a page has thousands of rows of the same table.
struct Hands<'a> {
    tx: &'a Connection,
    table: &'a Table,
    /// Whether any row of the table is set aside.
    aside: bool,
    /// Whether anything is pending in the table.
    pending: bool,
    /// Whether the next row is probably not here: that is what the last one was. A guess, which costs time where it is wrong.
    expects_none: bool,
    put: Option<CachedStatement<'a>>,
    read: Option<CachedStatement<'a>>,
    set: Option<(Vec<usize>, CachedStatement<'a>)>,
}

impl Hands<'_> {
    /// Inserts a row. False: it is here already, or a unique value is in its way, or the table does not take it.
    fn put(&mut self, row: &[Value]) -> rusqlite::Result<bool> {
        let table = self.table;
        if self.put.is_none() {
            let sql = format!(
                "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
                ident(&table.name),
                list(&table.columns, |column| ident(&column.name)),
                list(0..table.columns.len(), param)
            );
            self.put = Some(self.tx.prepare_cached(&sql)?);
        }
        let Some(put) = &mut self.put else { return Ok(false) };
        match put.execute(params_from_iter(row)) {
            Ok(rows) => Ok(rows > 0),
            Err(error) if is_refused(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The row with this key, as it is here.
    fn read(&mut self, key: &[Value]) -> Result<Option<Vec<Value>>> {
        let table = self.table;
        if self.read.is_none() {
            self.read = Some(self.tx.prepare_cached(&select_row(table))?);
        }
        let Some(read) = &mut self.read else { return Ok(None) };
        let mut rows = read.query(params_from_iter(key))?;
        let row = rows.next()?.map(|row| values(row, 0, table.columns.len())).transpose()?;
        Ok(row)
    }

    /// Stores a row as it should be.
    fn perform(&mut self, key: &[Value], action: &Local, target: &[Value]) -> rusqlite::Result<usize> {
        let table = self.table;
        let Local::Set(columns) = action else { return insert(self.tx, table, target, &[]) };
        if self.set.as_ref().is_none_or(|(of, _)| of != columns) {
            let assigned = list(columns.iter().enumerate(), |(at, c)| {
                format!("{} = ?{}", ident(&table.columns[*c].name), table.key.len() + at + 1)
            });
            let target = ident(&table.name);
            let sql = format!("UPDATE {target} AS t SET {assigned} WHERE {}", row_is(table, "t", param));
            self.set = Some((columns.clone(), self.tx.prepare_cached(&sql)?));
        }
        let Some((_, set)) = &mut self.set else { return Ok(0) };
        set.execute(params_from_iter(key.iter().chain(columns.iter().map(|c| &target[*c]))))
    }
}

/// Applies one page inside its transaction.
struct Applier<'a> {
    tx: &'a Connection,
    tables: &'a [Table],
    policies: &'a Policies,
    page: &'a Page,
    changed: u64,
    conflicts: u64,
    /// Rows set aside that were not so before: each is told of once.
    aside: u64,
    /// Rows that were deleted, and come back from a cloud that was set back.
    revived: u64,
    /// Rows that were set aside when the page came, by their names.
    were_aside: HashSet<String>,
}

impl<'a> Applier<'a> {
    /// Answers with what is missing before the page can hold under foreign keys, or be decided.
    fn run(&mut self) -> Result<Option<Applied>> {
        let mut followed: HashMap<i64, Since> = HashMap::new();
        let mut kept_until: HashMap<i64, i64> = HashMap::new();
        for (id, state, until) in
            query(self.tx, "SELECT id, followed, kept_until FROM _tidewater_tables", &[], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
        {
            kept_until.insert(id, until);
            match state {
                0 => None,
                // Up to then: since nothing comes home any more, or since the cloud was set back.
                2 | 3 => followed.insert(id, Since::Stamp(until)),
                _ => followed.insert(id, Since::Cursor),
            };
        }
        let mut undecided = vec![];
        let paging = self.remember_seen()?;
        let mut missing: Vec<Lookup> = vec![];
        let mut collided = vec![];
        let mut deleted = vec![];
        let mut revived = vec![];
        let mut hands: Option<Hands<'a>> = None;
        for pulled in &self.page.rows {
            let hands = match &mut hands {
                Some(hands) if hands.table.id == pulled.table => hands,
                other => other.insert(self.hands(pulled.table)?),
            };
            let table = hands.table;
            if hands.aside {
                self.forget_aside(table, &pulled.key)?;
            }
            if pulled.row.is_some() && paging.contains(&table.id) {
                self.mark_seen(table, &pulled.key)?;
            }
            // Where a row may have come back from the dead, each is asked about.
            let may_come_back = matches!(followed.get(&table.id), Some(Since::Stamp(_)));
            let is_plain = !hands.pending && hands.expects_none && !may_come_back;
            if let (Some(row), true) = (&pulled.row, is_plain) {
                if hands.put(row)? {
                    self.changed += 1;
                    continue;
                }
                // It is here, or something is in its way.
                hands.expects_none = false;
            }
            let local = hands.read(&pulled.key)?;
            hands.expects_none = local.is_none();
            let pending = if !hands.pending || self.discard(table, pulled, local.as_deref())? {
                None
            } else {
                self.take_pending(table, &pulled.key)?
            };
            let row = self.as_written_here(pulled, local.as_deref(), pending.as_ref());
            let was_pending = pending.is_some();
            let mut made = vec![];
            let action = match pending {
                None => match (&local, &row) {
                    (Some(local), Some(cloud)) => differing(table, local, cloud),
                    (Some(_), None) => Local::Delete,
                    (None, Some(cloud)) => match self.comes_back(table, pulled, followed.get(&table.id)) {
                        Ok(is_back) => {
                            if is_back {
                                let cloud = Some(Value::Text(json_array(cloud)));
                                let loss =
                                    Loss { column: None, base: None, local: None, cloud, kept: Side::Cloud };
                                self.revived += 1;
                                log_losses(self.tx, table, &pulled.key, &[loss])?;
                            }
                            Local::Insert
                        }
                        Err(disputed) => {
                            undecided.push(disputed);
                            continue;
                        }
                    },
                    (None, None) => Local::Keep,
                },
                Some(entry) => {
                    let theirs = match self.page.stamps.get(&ledger_name(table, &pulled.key)) {
                        None => Theirs::Unasked,
                        Some(Some(stamp)) => {
                            let kept_until = kept_until.get(&table.id).copied().unwrap_or(0);
                            Theirs::of(*stamp, &entry, kept_until)
                        }
                        Some(None) => match followed.get(&table.id) {
                            Some(Since::Cursor) => Theirs::Before,
                            Some(Since::Stamp(_)) => Theirs::Untold,
                            None => Theirs::Unknown,
                        },
                    };
                    let seen = Seen { row: row.as_deref(), newest: pulled.seen, theirs };
                    let merged = match merge(table, self.policies.of(table), entry, local.as_deref(), seen) {
                        Ok(merged) => merged,
                        Err(Undecided) => {
                            let (columns, values) = (table.key.clone(), pulled.key.clone());
                            let row = Lookup { table: table.id, columns, values };
                            let since = followed.get(&table.id).copied().unwrap_or(Since::Stamp(0));
                            undecided.push(Disputed { row, since });
                            continue;
                        }
                    };
                    match merged.entry {
                        Some(entry) => put_entry(self.tx, table, JOURNAL, &pulled.key, &entry)?,
                        None => parked::forget_refusal(self.tx, table, &pulled.key)?,
                    }
                    self.conflicts += u64::from(!merged.losses.is_empty());
                    log_losses(self.tx, table, &pulled.key, &merged.losses)?;
                    made = merged.values;
                    match merged.local {
                        Local::Keep if !made.is_empty() => Local::Set(vec![]),
                        local => local,
                    }
                }
            };
            // What the app made of both sides' values comes with the cloud's.
            let action = match action {
                Local::Set(mut columns) => {
                    columns.extend(made.iter().map(|(c, _)| *c));
                    Local::Set(columns)
                }
                action => action,
            };
            // The row as it should be here: what is pending in it stays.
            let target = match (&action, local, &row) {
                (Local::Delete, Some(local), _) => {
                    deleted.push((pulled, local));
                    continue;
                }
                (Local::Set(columns), Some(mut row), Some(cloud)) => {
                    columns.iter().for_each(|c| row[*c].clone_from(&cloud[*c]));
                    made.into_iter().for_each(|(c, value)| row[c] = value);
                    row
                }
                (Local::Insert, _, Some(cloud)) => {
                    if was_pending {
                        revived.push((table, cloud.to_vec()));
                    }
                    cloud.to_vec()
                }
                _ => continue,
            };
            match hands.perform(&pulled.key, &action, &target) {
                Ok(_) => self.changed += 1,
                Err(error) if is_refused(&error) => collided.push((pulled, target)),
                Err(error) => return Err(error.into()),
            }
        }
        if !undecided.is_empty() {
            return Ok(Some(Applied::Undecided(undecided)));
        }
        self.revive_children(revived, &mut missing)?;
        self.delete(deleted, &mut missing)?;
        self.untangle(&collided)?;
        for pulled in &self.page.rows {
            self.check_parents(pulled, &mut missing)?;
        }
        for (table, key) in &self.page.hidden {
            let table = self.table(*table)?;
            self.forget_aside(table, key)?;
            if paging.contains(&table.id) {
                self.mark_seen(table, key)?;
            }
        }
        for Unfit { row: pulled, why, texts } in &self.page.unfit {
            let table = self.table(pulled.table)?;
            self.forget_aside(table, &pulled.key)?;
            if paging.contains(&table.id) {
                self.mark_seen(table, &pulled.key)?;
            }
            self.put_aside(pulled, why)?;
            // What is pending here is going to overwrite what nobody here could read.
            let is_new = !self.were_aside.contains(&ledger_name(table, &pulled.key));
            if is_new && self.is_pending(table, &pulled.key)? {
                let local = read_row(self.tx, table, &pulled.key)?;
                let local = local.map(|row| Value::Text(json_array(&row)));
                let cloud = Some(Value::Text(texts.clone()));
                let loss = Loss { column: None, base: None, local, cloud, kept: Side::Local };
                self.conflicts += 1;
                log_losses(self.tx, table, &pulled.key, &[loss])?;
            }
        }
        if !missing.is_empty() {
            return Ok(Some(Applied::Missing(missing)));
        }
        self.retry_parked()?;
        Ok(None)
    }

    /// Whether a row that is not here was here, or was not to come here any more, before the cloud was set back: nobody has changed
    /// it there since this file had everything. Where that has not been asked, it has to be.
    fn comes_back(
        &self,
        table: &Table,
        pulled: &PulledRow,
        since: Option<&Since>,
    ) -> std::result::Result<bool, Disputed> {
        match (since, self.page.stamps.get(&ledger_name(table, &pulled.key))) {
            (Some(since @ Since::Stamp(_)), None) => {
                let (columns, values) = (table.key.clone(), pulled.key.clone());
                Err(Disputed { row: Lookup { table: table.id, columns, values }, since: *since })
            }
            (Some(Since::Stamp(_)), Some(None)) => Ok(true),
            (Some(Since::Stamp(_)), Some(Some(_))) | (Some(Since::Cursor) | None, _) => Ok(false),
        }
    }

    /// The tables that are being compared, of which the keys that were shown are remembered.
    fn remember_seen(&self) -> Result<HashSet<i64>> {
        let sql = "SELECT id FROM _tidewater_tables WHERE snapshot = 'paging'";
        let paging: Vec<i64> = query(self.tx, sql, &[], |row| row.get(0))?;
        let mut remembered = HashSet::new();
        for table in self.tables.iter().filter(|table| paging.contains(&table.id)) {
            if remembers_seen(self.tx, table)? {
                remembered.insert(table.id);
            }
        }
        Ok(remembered)
    }

    /// What the rows of one table need, looked up once for those of a page that stand together. What the page itself makes pending
    /// or sets aside it does after the last of them.
    fn hands(&self, table: i64) -> Result<Hands<'a>> {
        let table = self.table(table)?;
        let any = |kind: &str| -> Result<bool> {
            let sql = format!("SELECT 1 FROM {} LIMIT 1", ident(&side_table(kind, table)));
            Ok(self.tx.prepare_cached(&sql)?.exists([])?)
        };
        Ok(Hands {
            tx: self.tx,
            table,
            aside: any(ASIDE)?,
            pending: any(JOURNAL)? || any(PARKED)?,
            expects_none: self.page.snapshot.is_some(),
            put: None,
            read: None,
            set: None,
        })
    }

    /// The snapshot has shown this row.
    fn mark_seen(&self, table: &Table, key: &[Value]) -> Result<()> {
        let sql = format!(
            "INSERT OR IGNORE INTO {} VALUES ({})",
            ident(&side_table(SEEN, table)),
            list(0..table.key.len(), param)
        );
        self.tx.prepare_cached(&sql)?.execute(params_from_iter(key))?;
        Ok(())
    }

    /// The cloud's row, in the words of this file where it says the same: of its row, or of what that was before the edit
    /// that is pending.
    fn as_written_here<'r>(
        &self,
        pulled: &'r PulledRow,
        local: Option<&[Value]>,
        pending: Option<&Entry>,
    ) -> Option<Cow<'r, [Value]>> {
        let mut row = Cow::Borrowed(pulled.row.as_deref()?);
        for (c, kind) in self.page.alike.get(&pulled.table).into_iter().flatten() {
            if local.is_some_and(|local| local[*c].identical(&row[*c])) {
                continue;
            }
            let base = pending.filter(|entry| entry.known && entry.dirty[*c]).map(|entry| &entry.base[*c]);
            let known = [local.map(|local| &local[*c]), base];
            if let Some(known) = known.into_iter().flatten().find(|known| alike(kind, known, &row[*c])) {
                row.to_mut()[*c].clone_from(known);
            }
        }
        Some(row)
    }

    /// Takes a parked row out that is given up. What was here, or was to be deleted there, is on record. False: it is not one
    /// of those, or has been edited since. Where nothing is sent, whatever is pending gives way.
    fn discard(&mut self, table: &Table, pulled: &PulledRow, local: Option<&[Value]>) -> Result<bool> {
        let is_meant = |(id, key): &(i64, Vec<Value>)| *id == table.id && *key == pulled.key;
        if !self.page.discarded.iter().any(is_meant) {
            return match table.rule.direction {
                Direction::Pull => self.give_way(table, pulled, local),
                _ => Ok(false),
            };
        }
        let edited =
            format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(JOURNAL, table)), key_is(table, 1));
        if self.tx.prepare_cached(&edited)?.exists(params_from_iter(&pulled.key))? {
            return Ok(false);
        }
        let Some(entry) = take_entry(self.tx, table, PARKED, &pulled.key)? else { return Ok(false) };
        let whole = |row: &[Value]| Some(Value::Text(json_array(row)));
        let loss = |column, base, local, cloud| Loss { column, base, local, cloud, kept: Side::Cloud };
        let losses = match (local, pulled.row.as_deref()) {
            (Some(local), Some(cloud)) => table
                .data_columns()
                .filter(|c| !local[*c].identical(&cloud[*c]))
                .map(|c| {
                    let base = entry.dirty[c].then(|| entry.base[c].clone());
                    loss(Some(c), base, Some(local[c].clone()), Some(cloud[c].clone()))
                })
                .collect(),
            (Some(local), None) => vec![loss(None, None, whole(local), None)],
            (None, Some(cloud)) => vec![loss(None, None, None, whole(cloud))],
            (None, None) => vec![],
        };
        log_losses(self.tx, table, &pulled.key, &losses)?;
        parked::forget_refusal(self.tx, table, &pulled.key)?;
        Ok(true)
    }

    /// Parked rows that what came was missing for, or in the way of, are tried again.
    fn retry_parked(&self) -> Result<()> {
        if self.changed > 0 {
            parked::others_moved(self.tx)?;
            parked::unpark_children_of(self.tx, self.tables, &self.page.rows)?;
        }
        for table in self.tables.iter().filter(|_| !self.were_aside.is_empty()) {
            let settled = |pulled: &&PulledRow| {
                pulled.table == table.id && self.were_aside.contains(&ledger_name(table, &pulled.key))
            };
            for pulled in self.page.rows.iter().filter(settled) {
                let sql =
                    format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(ASIDE, table)), key_is(table, 1));
                if !self.tx.prepare_cached(&sql)?.exists(params_from_iter(&pulled.key))? {
                    parked::unpark_rivals(self.tx, table)?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn table(&self, id: i64) -> Result<&'a Table> {
        self.tables.iter().find(|table| table.id == id).ok_or(StoreError::SchemaChanged)
    }

    /// The pending entry of a row, wherever it waits. A parked row that the cloud changed is tried again.
    fn take_pending(&self, table: &Table, key: &[Value]) -> Result<Option<Entry>> {
        let parked = take_entry(self.tx, table, PARKED, key)?;
        let journal = take_entry(self.tx, table, JOURNAL, key)?;
        Ok(match (parked, journal) {
            (Some(parked), Some(journal)) => Some(combine(parked, journal)),
            (parked, journal) => parked.or(journal),
        })
    }

    /// What was deleted here along with rows whose deletion has lost comes back with them, to any depth: a parent without its
    /// children is what nobody wanted.
    fn revive_children(
        &mut self,
        mut parents: Vec<(&'a Table, Vec<Value>)>,
        missing: &mut Vec<Lookup>,
    ) -> Result<()> {
        while let Some((parent, row)) = parents.pop() {
            for child in self.tables {
                for foreign in
                    child.foreign_keys.iter().filter(|f| f.parent.eq_ignore_ascii_case(&parent.name))
                {
                    let referred: Option<Vec<Value>> = foreign
                        .parent_columns
                        .iter()
                        .map(|name| parent.column(name).map(|c| row[c].clone()))
                        .collect();
                    let Some(referred) = referred else { continue };
                    // A key's columns are its own in an entry; of the others there is the base.
                    let stored = |c: &usize| match child.key.iter().position(|k| k == c) {
                        Some(part) => format!("j.k{part}"),
                        None => format!("j.b{}", child.columns[*c].id),
                    };
                    let sql = format!(
                        "SELECT {} FROM {} AS j WHERE j.known AND {} AND NOT EXISTS (SELECT 1 FROM {} AS t WHERE {})",
                        list(key_columns(child), |k| format!("j.{k}")),
                        ident(&side_table(JOURNAL, child)),
                        all(foreign.columns.iter().enumerate(), |(at, c)| format!(
                            "{} = ?{}",
                            stored(c),
                            at + 1
                        )),
                        ident(&child.name),
                        row_is(child, "t", |at| format!("j.k{at}")),
                    );
                    for key in query(self.tx, &sql, &referred, |row| values(row, 0, child.key.len()))? {
                        let mut rows = self.page.rows.iter();
                        let Some(pulled) = rows.find(|p| p.table == child.id && p.key == key) else {
                            let is_known = self.page.knows(child.id, &key);
                            let lookup = Lookup { table: child.id, columns: child.key.clone(), values: key };
                            // Its table may be one that is not synced, so that nobody can say what became of it.
                            if !is_known && !self.page.absent.contains(&lookup) {
                                missing.push(lookup);
                            }
                            continue;
                        };
                        let Some(row) = &pulled.row else { continue };
                        match self.insert(child, row) {
                            Ok(_) => {}
                            // Something else has taken its place: it stays deleted.
                            Err(error) if is_refused(&error) => continue,
                            Err(error) => return Err(error.into()),
                        }
                        self.take_pending(child, &key)?;
                        self.changed += 1;
                        let cloud = Some(Value::Text(json_array(row)));
                        let loss = Loss { column: None, base: None, local: None, cloud, kept: Side::Cloud };
                        log_losses(self.tx, child, &key, &[loss])?;
                        parents.push((child, row.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes what the cloud deleted, after everything else of the page is in its place. A row that stays because
    /// something pending refers to it keeps what it refers to itself, to any depth.
    fn delete(&mut self, mut rows: Vec<(&PulledRow, Vec<Value>)>, missing: &mut Vec<Lookup>) -> Result<()> {
        loop {
            let before = rows.len();
            let mut looked_up = vec![];
            let mut going = vec![];
            for (pulled, local) in rows {
                let table = self.table(pulled.table)?;
                if self.children_allow_delete(table, &pulled.key, &local, &mut looked_up)? {
                    going.push((pulled, local));
                } else if self.remember_seen()?.contains(&table.id) {
                    // Else a comparison would find it left over, again and again.
                    self.mark_seen(table, &pulled.key)?;
                }
            }
            rows = going;
            if rows.len() == before {
                missing.extend(looked_up);
                break;
            }
        }
        for (pulled, _) in rows {
            let table = self.table(pulled.table)?;
            self.log_left_out(table, &pulled.key)?;
            let sql = format!("DELETE FROM {} AS t WHERE {}", ident(&table.name), row_is(table, "t", param));
            self.tx.prepare_cached(&sql)?.execute(params_from_iter(&pulled.key))?;
            self.changed += 1;
        }
        Ok(())
    }

    fn insert(&self, table: &Table, row: &[Value]) -> rusqlite::Result<usize> {
        insert(self.tx, table, row, &[])
    }

    /// Rows that trade unique values with each other: all leave, then all come back. What still cannot be stored is
    /// set aside, with its reason, and tried again with every pull.
    fn untangle(&mut self, collided: &[(&PulledRow, Vec<Value>)]) -> Result<()> {
        if collided.is_empty() {
            return Ok(());
        }
        self.tx.execute_batch("SAVEPOINT tidewater_untangle")?;
        let mut outcome = Ok(());
        let mut kept = Vec::with_capacity(collided.len());
        for (pulled, _) in collided {
            let table = self.table(pulled.table)?;
            kept.push(self.left_out(table, &pulled.key)?);
            let sql = format!("DELETE FROM {} AS t WHERE {}", ident(&table.name), row_is(table, "t", param));
            self.tx.prepare_cached(&sql)?.execute(params_from_iter(&pulled.key))?;
        }
        for ((pulled, target), kept) in collided.iter().zip(&kept) {
            if outcome.is_ok() {
                outcome = insert(self.tx, self.table(pulled.table)?, target, kept).map(|_| ());
            }
        }
        match outcome {
            Ok(()) => {
                self.tx.execute_batch("RELEASE tidewater_untangle")?;
                self.changed += collided.len() as u64;
                Ok(())
            }
            Err(error) if is_refused(&error) => {
                self.tx.execute_batch("ROLLBACK TO tidewater_untangle; RELEASE tidewater_untangle")?;
                if collided.len() == 1 {
                    return self.put_aside(collided[0].0, &error.to_string());
                }
                // One of them is the culprit; the others may be stored without it.
                for one in collided {
                    self.untangle(std::slice::from_ref(one))?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn put_aside(&mut self, pulled: &PulledRow, reason: &str) -> Result<()> {
        let table = self.table(pulled.table)?;
        let sql = format!(
            "INSERT INTO {0} VALUES ({1}, ?{2}) ON CONFLICT DO UPDATE SET reason = excluded.reason",
            ident(&side_table(ASIDE, table)),
            list(0..table.key.len(), param),
            table.key.len() + 1
        );
        let mut values = pulled.key.clone();
        values.push(reason.into());
        self.tx.prepare_cached(&sql)?.execute(params_from_iter(&values))?;
        self.aside += u64::from(!self.were_aside.contains(&ledger_name(table, &pulled.key)));
        Ok(())
    }

    fn forget_aside(&mut self, table: &Table, key: &[Value]) -> Result<()> {
        let sql = format!("DELETE FROM {} WHERE {}", ident(&side_table(ASIDE, table)), key_is(table, 1));
        if self.tx.prepare_cached(&sql)?.execute(params_from_iter(key))? > 0 {
            self.were_aside.insert(ledger_name(table, key));
        }
        Ok(())
    }

    /// Whether a row that the cloud deleted may go here. A child that is not pending is looked up in the cloud,
    /// which has deleted or moved it as well. A pending child keeps its parent: the parent is sent again, and that
    /// is on record.
    fn children_allow_delete(
        &mut self,
        parent: &Table,
        key: &[Value],
        local: &[Value],
        missing: &mut Vec<Lookup>,
    ) -> Result<bool> {
        for child in self.tables {
            for foreign in child.foreign_keys.iter().filter(|f| f.parent.eq_ignore_ascii_case(&parent.name)) {
                let referred: Option<Vec<Value>> = foreign
                    .parent_columns
                    .iter()
                    .map(|name| parent.column(name).map(|c| local[c].clone()))
                    .collect();
                let Some(referred) = referred else { continue };
                let sql = format!(
                    "SELECT {} FROM {} AS t WHERE {}",
                    list(child.key_names(), |k| format!("t.{}", ident(k))),
                    ident(&child.name),
                    all(foreign.columns.iter().enumerate(), |(at, c)| format!(
                        "t.{} = ?{}",
                        ident(&child.columns[*c].name),
                        at + 1
                    ))
                );
                for child_key in query(self.tx, &sql, &referred, |row| values(row, 0, child.key.len()))? {
                    if child.id == parent.id && child_key == key {
                        continue;
                    }
                    let in_page = self.page.rows.iter().any(|p| p.table == child.id && p.key == child_key);
                    if self.is_pending(child, &child_key)? {
                        // A row that only does not come here any more, or whose child is never sent, is nobody's to send again.
                        let name = ledger_name(parent, key);
                        if child.rule.direction.sends() && !self.page.leaving.contains(&name) {
                            self.resurrect(parent, key, local)?;
                        }
                        return Ok(false);
                    }
                    let lookup = Lookup { table: child.id, columns: child.key.clone(), values: child_key };
                    // Its table may be one that is not synced, so that nobody can say what became of it.
                    if !in_page && !self.page.absent.contains(&lookup) {
                        missing.push(lookup);
                    }
                }
            }
        }
        Ok(true)
    }

    fn is_pending(&self, table: &Table, key: &[Value]) -> Result<bool> {
        for kind in [JOURNAL, PARKED] {
            let sql = format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(kind, table)), key_is(table, 1));
            if self.tx.prepare_cached(&sql)?.exists(params_from_iter(key))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn resurrect(&mut self, table: &Table, key: &[Value], local: &[Value]) -> Result<()> {
        let width = table.columns.len();
        let entry = Entry {
            known: false,
            whole: false,
            stamp: 0,
            epoch: epoch(self.tx)?,
            seen: 0,
            dirty: vec![false; width],
            base: vec![Value::Null; width],
        };
        put_entry(self.tx, table, JOURNAL, key, &entry)?;
        self.conflicts += 1;
        let row = Value::Text(json_array(local));
        log_losses(
            self.tx,
            table,
            key,
            &[Loss { column: None, base: None, local: Some(row), cloud: None, kept: Side::Local }],
        )
    }

    /// A parent that is deleted here, while somebody else gave it a child that this file had not seen, comes back: the
    /// deletion would take the child along. That is on record.
    fn undelete(
        &mut self,
        parent: &Table,
        columns: &[String],
        values: &[Value],
        missing: &mut Vec<Lookup>,
    ) -> Result<bool> {
        let page = self.page;
        let wanted = page.rows.iter().find(|pulled| {
            pulled.table == parent.id
                && pulled.row.as_ref().is_some_and(|row| {
                    columns
                        .iter()
                        .zip(values)
                        .all(|(name, value)| parent.column(name).is_some_and(|c| row[c].identical(value)))
                })
        });
        let Some((pulled, row)) = wanted.and_then(|pulled| Some((pulled, pulled.row.as_ref()?))) else {
            return Ok(false);
        };
        if !self.is_pending(parent, &pulled.key)? || read_row(self.tx, parent, &pulled.key)?.is_some() {
            return Ok(false);
        }
        match self.insert(parent, row) {
            Ok(_) => {}
            // A pending row has taken its place: the child is set aside until that is settled.
            Err(error) if is_refused(&error) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        self.take_pending(parent, &pulled.key)?;
        self.changed += 1;
        self.conflicts += 1;
        let cloud = Value::Text(json_array(row));
        let loss = Loss { column: None, base: None, local: None, cloud: Some(cloud), kept: Side::Cloud };
        log_losses(self.tx, parent, &pulled.key, &[loss])?;
        self.check_parents(pulled, missing)?;
        Ok(true)
    }

    /// Every parent of an applied row is here, or is asked for, or is known to be nowhere: then the row is set
    /// aside, because SQLite would hold it without its parent.
    fn check_parents(&mut self, pulled: &PulledRow, missing: &mut Vec<Lookup>) -> Result<()> {
        let tables = self.tables;
        let table = tables.iter().find(|table| table.id == pulled.table).ok_or(StoreError::SchemaChanged)?;
        if table.foreign_keys.is_empty() || pulled.row.is_none() {
            return Ok(());
        }
        let Some(row) = read_row(self.tx, table, &pulled.key)? else { return Ok(()) };
        for foreign in &table.foreign_keys {
            let values: Vec<Value> = foreign.columns.iter().map(|c| row[*c].clone()).collect();
            if values.contains(&Value::Null) {
                continue;
            }
            let sql = format!(
                "SELECT 1 FROM {} AS t WHERE {}",
                ident(&foreign.parent),
                all(foreign.parent_columns.iter().enumerate(), |(at, p)| format!(
                    "t.{} = ?{}",
                    ident(p),
                    at + 1
                ))
            );
            if self.tx.prepare_cached(&sql)?.exists(params_from_iter(&values))? {
                continue;
            }
            let parent = tables.iter().find(|t| t.name.eq_ignore_ascii_case(&foreign.parent));
            if let Some(parent) = parent
                && self.undelete(parent, &foreign.parent_columns, &values, missing)?
            {
                continue;
            }
            let lookup = parent.and_then(|parent| {
                let columns =
                    foreign.parent_columns.iter().map(|p| parent.column(p)).collect::<Option<_>>()?;
                Some(Lookup { table: parent.id, columns, values })
            });
            match lookup {
                Some(lookup) if !self.page.absent.contains(&lookup) => missing.push(lookup),
                _ => {
                    self.log_left_out(table, &pulled.key)?;
                    let sql = format!(
                        "DELETE FROM {} AS t WHERE {}",
                        ident(&table.name),
                        row_is(table, "t", param)
                    );
                    if !self.is_pending(table, &pulled.key)? {
                        self.tx.prepare_cached(&sql)?.execute(params_from_iter(&pulled.key))?;
                        self.put_aside(pulled, &format!("its parent in {} is nowhere", foreign.parent))?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Whether SQLite cannot store a row beside those that are here, or at all: a key that is no integer where the key is one.
fn is_refused(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch))
}

fn param(at: usize) -> String {
    format!("?{}", at + 1)
}

/// What it takes to make a local row, that nobody edited here, the cloud's.
fn differing(table: &Table, local: &[Value], cloud: &[Value]) -> Local {
    let columns: Vec<usize> = table.data_columns().filter(|c| !local[*c].identical(&cloud[*c])).collect();
    if columns.is_empty() { Local::Keep } else { Local::Set(columns) }
}

// ---------------------------------------------------------------------------------------------------------
// Tracking
// ---------------------------------------------------------------------------------------------------------

/// What it means that a table is without its triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Rows may have changed unseen, and nobody was there to see when a new table came.
    Unwatched,
    /// Rows may have changed unseen.
    IsGap,
    /// Nothing: they were taken off within this transaction, and no row changed since.
    IsOurDoing,
}

/// Reads the schema and gives every table that can be tracked its journal and its triggers.
fn track(tx: &Connection, missing: Missing) -> Result<(Vec<Table>, Vec<Notice>)> {
    let mut notices = vec![];
    let mut tables = vec![];
    for (name, described) in describe_all(tx, &rules::get(tx)?)? {
        match described {
            Ok(table) => tables.push(table),
            Err(reason) => {
                // Triggers of a table that was tracked once would go on filling a journal that nobody reads.
                drop_triggers(tx, &name)?;
                notices.push(Notice(format!("table {name} {STAYS_LOCAL}: {reason}")));
            }
        }
    }
    resolve_parents(&mut tables);
    for table in &mut tables {
        notices.extend(equip(tx, table, missing)?);
    }
    notices.extend(park_untracked(tx, &tables)?);
    // The order in which rounds take and send them.
    let order = crate::core::schema::parents_first(&tables);
    Ok((order.into_iter().map(|at| tables[at].clone()).collect(), notices))
}

/// The tables that are there and have a number, as they are now; their columns have none yet.
fn remembered_tables(tx: &Connection) -> Result<Vec<Table>> {
    let mut tables: Vec<Table> =
        describe_all(tx, &rules::get(tx)?)?.into_iter().filter_map(|(_, described)| described.ok()).collect();
    resolve_parents(&mut tables);
    let mut remembered = vec![];
    for mut table in tables {
        let id = tx
            .prepare_cached("SELECT id FROM _tidewater_tables WHERE name = ?1")?
            .query_row([&table.name], |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            table.id = id;
            remembered.push(table);
        }
    }
    Ok(remembered)
}

/// Every table of the app's, as it is tracked, or why it cannot be.
fn describe_all(
    tx: &Connection,
    rules: &TableRules,
) -> Result<Vec<(String, std::result::Result<Table, String>)>> {
    let names = query(
        tx,
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' \
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_tidewater\\_%' ESCAPE '\\' ORDER BY name",
        &[],
        |row| row.get::<_, String>(0),
    )?;
    names.into_iter().map(|name| Ok((name.clone(), describe(tx, &name, rules)?))).collect()
}

/// A table as it is tracked, or why it cannot be.
fn describe(tx: &Connection, name: &str, rules: &TableRules) -> Result<std::result::Result<Table, String>> {
    struct Found {
        name: String,
        declared: String,
        not_null: bool,
        default: Option<String>,
        key_place: i64,
        generated: bool,
    }
    let found = query(
        tx,
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1)",
        &[name.into()],
        |row| {
            Ok(Found {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                default: row.get(3)?,
                key_place: row.get(4)?,
                generated: row.get::<_, i64>(5)? != 0,
            })
        },
    )?;
    let mut rule = rules.of(name);
    let named = std::mem::take(&mut rule.left_out);
    let is_left_out = |column: &str| named.iter().any(|name| name.eq_ignore_ascii_case(column));
    let left_out = found.iter().filter(|column| !column.generated && is_left_out(&column.name));
    rule.left_out = left_out.map(|column| column.name.clone()).collect();
    if let Some(column) = found.iter().find(|column| column.key_place > 0 && is_left_out(&column.name)) {
        return Ok(Err(format!("tables.{name}.columns_left_out names {}, of its primary key", column.name)));
    }
    let stored: Vec<&Found> =
        found.iter().filter(|column| !column.generated && !is_left_out(&column.name)).collect();
    let collate_as_declared = |columns: &[(usize, String)]| -> Result<bool> {
        for (column, collation) in columns {
            let (_, declared, ..) = tx.column_metadata(Some("main"), name, stored[*column].name.as_str())?;
            let declared = declared.map_or("BINARY".into(), std::ffi::CStr::to_string_lossy);
            if !declared.eq_ignore_ascii_case(collation) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let mut key: Vec<usize> = (0..stored.len()).filter(|at| stored[*at].key_place > 0).collect();
    key.sort_by_key(|at| stored[*at].key_place);
    if key.is_empty() {
        return Ok(Err("it has no primary key, by which its rows could be told apart in the cloud".into()));
    }
    if stored.len() > COLUMNS_MAX {
        return Ok(Err(format!("it has more than {COLUMNS_MAX} columns")));
    }
    let column_at = |column: &str| stored.iter().position(|c| c.name.eq_ignore_ascii_case(column));
    let mut uniques = vec![];
    let indexes = query(
        tx,
        "SELECT name, origin FROM pragma_index_list(?1) WHERE \"unique\" = 1 ",
        &[name.into()],
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
    )?;
    for (index, origin) in indexes {
        let parts = query(
            tx,
            "SELECT name, coll FROM pragma_index_xinfo(?1) WHERE key = 1 ORDER BY seqno",
            &[index.as_str().into()],
            |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?)),
        )?;
        if parts.iter().any(|(column, _)| column.as_deref().is_some_and(is_left_out)) {
            return Ok(Err(format!("its unique index {index} has a column that is left out")));
        }
        let columns: Option<Vec<(usize, String)>> = parts
            .into_iter()
            .map(|(column, collation)| column.and_then(|c| column_at(&c)).map(|at| (at, collation)))
            .collect();
        match columns {
            // The primary key's index is of interest only where it compares otherwise than its columns do.
            Some(columns) if origin == "pk" && collate_as_declared(&columns)? => {}
            None if origin == "pk" => {}
            Some(columns) => uniques.push(Unique { columns, declared: origin == "u" }),
            None => return Ok(Err(format!("its unique index {index} is on an expression"))),
        }
    }
    let mut foreign_keys: BTreeMap<i64, ForeignKey> = BTreeMap::new();
    let parts = query(
        tx,
        "SELECT id, \"table\", \"from\", \"to\", on_delete, on_update FROM pragma_foreign_key_list(?1) ORDER BY id, seq",
        &[name.into()],
        |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, Option<String>>(3)?,
                row.get::<_, String>(4)?,
                row.get::<_, String>(5)?,
            ))
        },
    )?;
    let of_left_out: HashSet<i64> =
        parts.iter().filter(|(_, _, from, ..)| is_left_out(from)).map(|(id, ..)| *id).collect();
    for (id, parent, from, to, on_delete, on_update) in parts {
        let Some(column) = column_at(&from).filter(|_| !of_left_out.contains(&id)) else { continue };
        let key = foreign_keys.entry(id).or_insert_with(|| ForeignKey {
            columns: vec![],
            parent,
            parent_columns: vec![],
            on_delete,
            on_update,
        });
        key.columns.push(column);
        // Without a name it is the parent's primary key, which `resolve_parents` fills in.
        key.parent_columns.extend(to);
    }
    let columns = stored
        .iter()
        .map(|c| Column {
            id: 0,
            name: c.name.clone(),
            declared: c.declared.clone(),
            not_null: c.not_null,
            default: c.default.clone(),
        })
        .collect();
    let foreign_keys = foreign_keys.into_values().collect();
    let is_column = |rowid: &&str| found.iter().any(|column| column.name.eq_ignore_ascii_case(rowid));
    let rowid = match is_by_rowid(tx, name)? || is_without_rowid(tx, name)? {
        true => None,
        // A column takes the name; with all three taken nobody can set it.
        false => ["rowid", "_rowid_", "oid"].into_iter().find(|rowid| !is_column(rowid)).map(str::to_owned),
    };
    Ok(Ok(Table { id: 0, name: name.into(), columns, key, uniques, rowid, foreign_keys, rule }))
}

/// Foreign keys that name no parent columns mean the parent's primary key; those whose parent is not tracked, or has
/// no such columns, are left to SQLite, and so are those of a table that is this file's alone.
fn resolve_parents(tables: &mut [Table]) {
    let keys: HashMap<String, Vec<String>> = tables
        .iter()
        .filter(|table| rules::rests(table).is_none())
        .map(|t| (t.name.to_ascii_lowercase(), t.key_names().iter().map(|k| (*k).to_owned()).collect()))
        .collect();
    for table in tables.iter_mut() {
        if rules::rests(table).is_some() {
            table.foreign_keys.clear();
        }
        table.foreign_keys.retain_mut(|key| {
            let Some(parent_key) = keys.get(&key.parent.to_ascii_lowercase()) else { return false };
            if key.parent_columns.is_empty() {
                key.parent_columns.clone_from(parent_key);
            }
            key.parent_columns.len() == key.columns.len()
        });
    }
}

/// Gives a table its number, its journal and its triggers, and finds out whether it was ever without them.
fn equip(tx: &Connection, table: &mut Table, missing: Missing) -> Result<Vec<Notice>> {
    let key_json =
        serde_json::Value::from(table.key_names().iter().map(|k| (*k).to_owned()).collect::<Vec<_>>());
    let key_json = key_json.to_string();
    let remembered: Option<(i64, String)> = tx
        .query_row("SELECT id, key FROM _tidewater_tables WHERE name = ?1", [&table.name], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let mut new = true;
    if let Some((id, key)) = remembered {
        if key == key_json {
            table.id = id;
            new = false;
        } else {
            // Another primary key is another journal, in which every row is about to be pending. What waits under the
            // old key can only be a deletion now: that is for a person to decide.
            drop_triggers(tx, &table.name)?;
            let journal = ident(&format!("_tidewater_{JOURNAL}_{id}"));
            let flight = ident(&format!("_tidewater_{FLIGHT}_{id}"));
            tx.execute_batch(&format!(
                "DELETE FROM {journal} WHERE whole < 2; DELETE FROM {flight} WHERE whole < 2;"
            ))?;
            park_all(tx, id, "the table has another primary key since")?;
            tx.execute("UPDATE _tidewater_tables SET name = name || '#' || id WHERE id = ?1", [id])?;
        }
    }
    if new {
        tx.execute(
            "INSERT INTO _tidewater_tables (name, key) VALUES (?1, ?2)",
            params![table.name, key_json],
        )?;
        table.id = tx.last_insert_rowid();
    }
    let renamed = forget_columns(tx, table)?;
    let mut grown = false;
    for at in 0..table.columns.len() {
        let id: Option<i64> = tx
            .query_row(
                "SELECT id FROM _tidewater_columns WHERE table_id = ?1 AND name = ?2 AND NOT gone",
                params![table.id, table.columns[at].name],
                |row| row.get(0),
            )
            .optional()?;
        table.columns[at].id = match id {
            Some(id) => id,
            None => {
                let id: i64 = tx.query_row(
                    "INSERT INTO _tidewater_columns (table_id, id, name) SELECT ?1, coalesce(max(id), 0) + 1, ?2 \
                     FROM _tidewater_columns WHERE table_id = ?1 RETURNING id",
                    params![table.id, table.columns[at].name],
                    |row| row.get(0),
                )?;
                table.columns[at].id = id;
                if !new && !table.is_key(at) {
                    grown = true;
                    tx.execute_batch(&capture::add_column(table, &table.columns[at]))?;
                }
                id
            }
        };
    }
    if new {
        // With all their columns at once: adding them one by one takes seconds for hundreds.
        tx.execute_batch(&capture::create_side_tables(table, is_by_rowid(tx, &table.name)?))?;
    } else {
        number_steps(tx, table)?;
        widen_journal(tx, table)?;
    }
    let mut notices: Vec<Notice> = rules::settle(tx, table)?.into_iter().collect();
    if let Some(reason) = rules::rests(table) {
        notices.push(rules::rest(tx, table, &reason)?);
        return Ok(notices);
    }
    let state = match (trigger_state(tx, table)?, missing) {
        (Triggers::Gap, Missing::IsOurDoing) => Triggers::Outdated,
        (state, _) => state,
    };
    if state != Triggers::Ours {
        doubt_what_came_late(tx, table)?;
        drop_triggers(tx, &table.name)?;
        for (_, sql) in capture::triggers(table) {
            tx.execute_batch(&sql)?;
        }
    }
    if !new && state == Triggers::Gap {
        restore_parked(tx, table)?;
        forget_vanished_rows(tx, table)?;
    }
    if new || renamed || state == Triggers::Gap {
        // Rows that were there before, and whatever happened while nobody looked: all of it is compared with the
        // cloud, row by row. Rows that are missing here come back; they are never guessed to be deletions. A renamed
        // column is one that the cloud does not have, whatever is in it.
        let unseen = match missing {
            _ if !new => Unseen::Gap,
            Missing::Unwatched => Unseen::Ever,
            Missing::IsGap | Missing::IsOurDoing => Unseen::Now,
        };
        tx.execute(&capture::journal_everything(table, unseen), [])?;
        tx.execute(
            "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL WHERE id = ?1",
            [table.id],
        )?;
    }
    if grown || state == Triggers::Narrow {
        // The cloud may have had the column, and values in it, for long. It still has what was evicted, and shows it.
        tx.execute(
            "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL WHERE id = ?1",
            [table.id],
        )?;
    }
    if !new && state >= Triggers::Narrow {
        notices.push(Notice(format!(
            "table {} was changed while it was not watched; it is compared with the cloud row by row",
            table.name
        )));
    }
    Ok(notices)
}

/// Columns that are not there any more free their names. Whether one may have been renamed: some came as well. Another
/// case is another name, as it is in the cloud.
fn forget_columns(tx: &Connection, table: &Table) -> Result<bool> {
    let remembered = query(
        tx,
        "SELECT id, name FROM _tidewater_columns WHERE table_id = ?1 AND NOT gone",
        &[table.id.into()],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)),
    )?;
    let is_here = |name: &String| table.columns.iter().any(|column| column.name == *name);
    let gone: Vec<i64> = remembered.iter().filter(|(_, name)| !is_here(name)).map(|(id, _)| *id).collect();
    for id in &gone {
        tx.execute(
            "UPDATE _tidewater_columns SET gone = 1 WHERE table_id = ?1 AND id = ?2",
            params![table.id, id],
        )?;
    }
    let came = table.columns.iter().any(|c| !remembered.iter().any(|(_, name)| *name == c.name));
    let is_left_out = |name: &String| table.rule.left_out.iter().any(|left| left.eq_ignore_ascii_case(name));
    let is_really_gone = remembered.iter().any(|(_, name)| !is_here(name) && !is_left_out(name));
    Ok(is_really_gone && came)
}

/// Rows that went while nobody watched take their pending edits with them: only what the triggers saw being deleted is
/// a deletion.
fn forget_vanished_rows(tx: &Connection, table: &Table) -> Result<()> {
    for kind in [JOURNAL, FLIGHT] {
        tx.execute(
            &format!(
                "DELETE FROM {} AS e WHERE whole < 2 AND NOT EXISTS (SELECT 1 FROM {} AS t WHERE {})",
                ident(&side_table(kind, table)),
                ident(&table.name),
                row_is(table, "t", |at| format!("e.k{at}")),
            ),
            [],
        )?;
    }
    Ok(())
}

/// Whether a table's primary key is its rowid, which holds nothing but integers.
fn is_by_rowid(tx: &Connection, table: &str) -> Result<bool> {
    // Any other primary key has an index, which is the table itself where that is `WITHOUT ROWID`.
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk')";
    Ok(tx.prepare_cached(sql)?.query_row([table], |row| row.get(0))?)
}

fn is_without_rowid(tx: &Connection, table: &str) -> Result<bool> {
    let sql = "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([table], |row| row.get(0))?)
}

/// A file of an older version gets the columns that meta.sql gives a new one.
fn bring_up_to_date(tx: &Connection) -> Result<()> {
    for (table, column) in [
        ("_tidewater_clock", "ahead"),
        ("_tidewater_clock", "seen"),
        ("_tidewater_clock", "known"),
        ("_tidewater_tables", "kept_until"),
        ("_tidewater_tables", "followed"),
    ] {
        if !has_column(tx, table, column)? {
            tx.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"))?;
            if column == "known" {
                tx.execute("UPDATE _tidewater_clock SET known = seen", [])?;
            }
            if column == "followed" {
                // What it was compared with, it has followed.
                tx.execute("UPDATE _tidewater_tables SET followed = 1 WHERE snapshot = 'done'", [])?;
            }
        }
    }
    Ok(())
}

fn has_column(tx: &Connection, table: &str, column: &str) -> Result<bool> {
    let sql = "SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2";
    Ok(tx.prepare_cached(sql)?.exists([table, column])?)
}

fn set_clock(tx: &Connection, clock: ServerClock) -> Result<()> {
    // A server whose clock was put right stamps by that from then on.
    tx.prepare_cached(
        "UPDATE _tidewater_clock SET ahead = ?2, seen = CASE WHEN seen - ?1 > ?3 THEN ?1 ELSE max(seen, ?1) END",
    )?
    .execute([clock.now, clock.ahead, ServerClock::NOTABLE_US])?;
    Ok(())
}

/// Up to when, by the cloud's clock, this file had what was in the cloud before that lost some of it; 0 where it never did.
fn kept_until(tx: &Connection, table: &Table) -> Result<i64> {
    let sql = "SELECT kept_until FROM _tidewater_tables WHERE id = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([table.id], |row| row.get(0))?)
}

/// Rounds of older versions had no steps, and what they sent was not remembered.
fn number_steps(tx: &Connection, table: &Table) -> Result<()> {
    tx.execute_batch(&capture::create_sent(table))?;
    if !has_column(tx, &side_table(FLIGHT, table), "step")? {
        tx.execute_batch(&capture::add_steps(table))?;
    }
    Ok(())
}

/// A table that was rebuilt with a key of another type under the same name needs a journal that takes any key. One that
/// does stays as it is: it may hold keys that are no integers.
fn widen_journal(tx: &Connection, table: &Table) -> Result<()> {
    let journal = side_table(JOURNAL, table);
    if !is_by_rowid(tx, &journal)? || is_by_rowid(tx, &table.name)? {
        return Ok(());
    }
    let (journal, columns) = (ident(&journal), list(entry_columns(table), |c| c) + ", refused");
    // Not by renaming, which would rewrite the triggers.
    tx.execute_batch(&format!(
        "CREATE TABLE _tidewater_narrow AS SELECT * FROM {journal};\nDROP TABLE {journal};\n{}\
         INSERT INTO {journal} ({columns}) SELECT {columns} FROM _tidewater_narrow;\nDROP TABLE _tidewater_narrow;",
        capture::create_side_tables(table, false),
    ))?;
    Ok(())
}

/// What waits for a table that is not tracked any more is parked, where people see it, until the table is back.
fn park_untracked(tx: &Connection, tables: &[Table]) -> Result<Vec<Notice>> {
    let mut notices = vec![];
    let remembered = query(tx, "SELECT id, name FROM _tidewater_tables", &[], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    for (id, name) in remembered {
        if tables.iter().any(|table| table.id == id) {
            continue;
        }
        let parked = park_all(tx, id, UNTRACKED)?;
        if parked > 0 {
            notices.push(Notice(format!(
                "table {name} is not synced any more; {parked} of its changes that the cloud has not seen are parked"
            )));
        }
    }
    Ok(notices)
}

const STAYS_LOCAL: &str = "stays local";

const UNTRACKED: &str = "the table is not synced any more";

/// Parks everything that waits under a table's number.
fn park_all(tx: &Connection, id: i64, message: &str) -> Result<usize> {
    let mut parked = 0;
    let mut parkings: i64 = meta(tx, "parkings")?.unwrap_or(0);
    let into = ident(&format!("_tidewater_{PARKED}_{id}"));
    for kind in [FLIGHT, JOURNAL] {
        let from = ident(&format!("_tidewater_{kind}_{id}"));
        if kind == FLIGHT && clearing::is_acknowledged(tx)? {
            // The cloud has it.
            tx.execute(&format!("DELETE FROM {from}"), [])?;
            continue;
        }
        let columns = query(
            tx,
            "SELECT name FROM pragma_table_info(?1) WHERE name NOT IN ('refused', 'step')",
            &[format!("_tidewater_{kind}_{id}").into()],
            |row| row.get::<_, String>(0),
        )?;
        let columns = list(columns, |c| c);
        // Where an older entry is parked already it has the older bases, and all of the row is sent with it.
        parked += tx.execute(
            &format!(
                "INSERT INTO {into} ({columns}, message, parked_at, parking) \
                 SELECT {columns}, ?1, strftime('%Y-%m-%d %H:%M:%f', 'now'), ?2 + row_number() OVER () FROM {from} WHERE true \
                 ON CONFLICT DO UPDATE SET whole = max(whole, excluded.whole, 1), parking = excluded.parking"
            ),
            params![message, parkings],
        )?;
        parkings += i64::try_from(tx.execute(&format!("DELETE FROM {from}"), [])?).unwrap_or(i64::MAX);
    }
    set_meta(tx, "parkings", parkings)?;
    parked::number_parked(tx)?;
    Ok(parked)
}

/// The opposite, when the table is back.
fn restore_parked(tx: &Connection, table: &Table) -> Result<()> {
    merge_entries(tx, table, PARKED, JOURNAL, &format!("message = '{UNTRACKED}'"))?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq, PartialOrd)]
enum Triggers {
    /// Exactly as they should be, and newer than anybody else's.
    Ours,
    /// There, but of another shape, or with somebody's newer trigger before them.
    Outdated,
    /// Without an eye for one of the unique indexes: rows that it evicted went unseen.
    Narrow,
    /// Not all there: rows may have changed unseen.
    Gap,
}

/// A trigger of a table's: its place in the schema, its name, its text.
type Present = (i64, String, String);

fn present_triggers(tx: &Connection, table: &Table) -> Result<Vec<Present>> {
    query(
        tx,
        "SELECT rowid, name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE",
        &[table.name.as_str().into()],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

fn is_ours(name: &str) -> bool {
    name.starts_with("_tidewater_")
}

/// Those that run before ours.
fn newer_than_ours(present: &[Present]) -> Vec<&Present> {
    let oldest_of_ours = present.iter().filter(|(_, name, _)| is_ours(name)).map(|(rowid, ..)| *rowid).min();
    let is_newer = |rowid: i64| oldest_of_ours.is_some_and(|ours| rowid > ours);
    present.iter().filter(|(rowid, name, _)| !is_ours(name) && is_newer(*rowid)).collect()
}

/// Whether they look for the rows that each of the table's unique indexes evicts.
fn see_all_evictions(present: &[Present], table: &Table) -> bool {
    let is_seen = |rows: &String| present.iter().any(|(_, name, sql)| is_ours(name) && sql.contains(rows));
    capture::collisions(table, false).iter().all(is_seen)
}

/// Somebody's newer trigger may have changed a row that was just inserted, before ours saw it come: then its entry takes it
/// for one that the cloud has, as it is. Nobody can tell which those are.
fn doubt_what_came_late(tx: &Connection, table: &Table) -> Result<()> {
    let present = present_triggers(tx, table)?;
    if newer_than_ours(&present).iter().any(|(_, _, sql)| sql.to_ascii_uppercase().contains("INSERT")) {
        tx.execute(
            &format!(
                "UPDATE {} AS e SET known = 0, whole = 1 WHERE known AND whole < 2 AND EXISTS \
                 (SELECT 1 FROM {} AS t WHERE {})",
                ident(&side_table(JOURNAL, table)),
                ident(&table.name),
                row_is(table, "t", |at| format!("e.k{at}")),
            ),
            [],
        )?;
    }
    Ok(())
}

fn trigger_state(tx: &Connection, table: &Table) -> Result<Triggers> {
    let present = present_triggers(tx, table)?;
    let expected = capture::triggers(table);
    let newer = newer_than_ours(&present);
    let all_there = expected.iter().all(|(name, _)| present.iter().any(|(_, present, _)| present == name));
    // A trigger created after ours runs before them, and RAISE(IGNORE) in it would have hidden rows.
    let hides = newer.iter().any(|(_, _, sql)| sql.to_ascii_uppercase().contains("IGNORE"));
    if !all_there || hides {
        return Ok(Triggers::Gap);
    }
    if !see_all_evictions(&present, table) {
        return Ok(Triggers::Narrow);
    }
    let exact = expected.iter().all(|(name, sql)| present.iter().any(|(_, n, s)| n == name && s == sql));
    Ok(if exact && newer.is_empty() { Triggers::Ours } else { Triggers::Outdated })
}

fn has_triggers(tx: &Connection, table: &str) -> Result<bool> {
    Ok(!our_triggers(tx, table)?.is_empty())
}

fn our_triggers(tx: &Connection, table: &str) -> Result<Vec<String>> {
    query(
        tx,
        "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
         AND name LIKE '\\_tidewater\\_%' ESCAPE '\\'",
        &[table.into()],
        |row| row.get::<_, String>(0),
    )
}

fn drop_triggers(tx: &Connection, table: &str) -> Result<()> {
    for name in our_triggers(tx, table)? {
        tx.execute_batch(&format!("DROP TRIGGER {}", ident(&name)))?;
    }
    Ok(())
}
