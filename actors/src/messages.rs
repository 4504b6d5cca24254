//! The whole protocol of the actors on one page.
//!
//! ```text
//! ProxyWatcher ── AvailabilityChanged ─▶ CircuitBreaker, CloudSyncer, any Recipient of the app
//! app          ── DetectProxy, ResetDetector, Subscribe ─▶ ProxyWatcher
//! app          ── ForceCircuit, ResetCircuit ─▶ CircuitBreaker
//! CloudSyncer  ── CallFinished ─▶ CircuitBreaker, ProxyWatcher      (traffic that succeeded counts as a check)
//! app          ── Write, Migrate ─▶ SqliteWriter ── JournalGrew, RoundSettled (hints) ─▶ CloudSyncer
//! CloudSyncer  ── NoteRound, TakeOut, Acknowledge, PutBack, Park, ApplyPage … ─▶ SqliteWriter
//! app          ── Flush, Warm ─▶ CloudSyncer
//! app          ── SetTimes ─▶ ProxyWatcher; SetPace ─▶ CloudSyncer; SetRules ─▶ SqliteWriter      (settings read again)
//! ```
//!
//! Commands are imperative, facts are in the past tense. Messages are hints (P6): each may be lost at the cost
//! of latency, because whoever starts anew reads SQLite.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::core::availability::Times;
use crate::core::failure::FailureClass;
use crate::core::from_cloud::NewTable;
use crate::core::merge::Policies;
use crate::core::progress::Progress;
use crate::core::schema::Table;
use crate::core::sync::Pace;
use crate::migrations::Migrations;
use crate::sqlite::{
    Anew, Applied, BacklogLimits, Copying, Cursor, Discardable, Grown, Home, LeftOut, Leftovers, Link,
    Lookup, MadeTables, Mark, Names, Noted, Page, Parked, Part, Refusal, Rest, Retried, StoreError, Unit,
    Which, Witness, Written,
};

// ---------------------------------------------------------------------------------------------------------
// Control plane
// ---------------------------------------------------------------------------------------------------------

/// What is known about the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ProxyStatus {
    /// PostgreSQL answered through it, and it is ours.
    Available,
    /// It is not there, or nothing useful answers behind it.
    Unavailable,
    /// No check has ended yet, or the last one says nothing about the proxy.
    #[default]
    Unknown,
}

impl fmt::Display for ProxyStatus {
    /// The word in `status`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "available",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
        })
    }
}

/// The availability changed. Broadcast by the watcher to everybody who subscribed; a late subscriber gets
/// the current state at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct AvailabilityChanged {
    /// Counts the changes. Answers that belong to an older epoch are ignored.
    pub epoch: u64,
    /// What it is now.
    pub status: ProxyStatus,
    /// Why it is not available, where it is not.
    pub class: Option<FailureClass>,
}

/// Sends every [`AvailabilityChanged`] from now on, and the current one at once, to a recipient.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Subscribe(pub Recipient<AvailabilityChanged>);

/// Checks whether the proxy is there and answers with the status and the reason in words. Concurrent calls
/// share one check.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Detection")]
pub struct DetectProxy {
    /// Skips the cache of what was verified within the last seconds.
    pub force: bool,
}

/// The answer to [`DetectProxy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// What the check found.
    pub status: ProxyStatus,
    /// A line of text that says why.
    pub detail: String,
}

/// Sets the failure count and the delay back, ends a pause, and checks at once.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ResetDetector;

/// From now on, other times hold.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct SetTimes(pub Times);

/// From now on, the syncer waits for other times. While it waits for nothing but the next look, it looks soon.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct SetPace(pub Pace);

/// From now on, so much may wait for the cloud, and these decide who wins.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SetRules {
    /// The most that may wait.
    pub backlog: BacklogLimits,
    /// Who wins where a row was changed here and in the cloud.
    pub policies: Policies,
}

/// A guarded cloud call ended. Sent by the permit of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CallFinished {
    /// The circuit's epoch under which the permit was given; an older one decides nothing.
    pub epoch: u64,
    /// How it ended.
    pub outcome: Result<(), FailureClass>,
}

/// Asks an actor what it knows, for `status`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "ProxyReport")]
pub struct GetProxyReport;

/// The watcher's part of `status --json`; the names are fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ProxyReport {
    /// `available`, `unavailable` or `unknown`.
    pub status: ProxyStatus,
    /// `host:port`, or the path of the socket.
    pub endpoint: String,
    /// Failed checks in a row.
    pub consecutive_failures: u32,
    /// Seconds that the wait after the last failure takes; the initial delay when nothing failed.
    pub current_retry_delay: f64,
    /// Whether another check is going to happen by itself.
    pub should_retry: bool,
    /// Whether the checks are paused (development, five failures in a row).
    pub paused: bool,
    /// `development` or `production`.
    pub environment: String,
    /// Whether the proxy is required.
    pub proxy_required: bool,
    /// When the last check ended, seconds since 1970.
    pub last_check: Option<f64>,
    /// When PostgreSQL last answered, seconds since 1970.
    pub last_success: Option<f64>,
    /// Why the status is what it is.
    pub detail: String,
}

/// How a person holds the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forced {
    /// No call to the cloud is made.
    Open,
    /// Calls are made whatever the breaker would count; what it takes to call at all is not changed by it.
    Closed,
}

/// Holds the circuit open or closed, or lets it decide by itself again.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ForceCircuit(pub Option<Forced>);

/// Forgets why the circuit is open, and lets one call try.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ResetCircuit;

/// Asks the breaker what it knows.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "CircuitReport")]
pub struct GetCircuitReport;

/// The breaker's part of `status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct CircuitReport {
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// Failures in a row, as the breaker counts them.
    pub consecutive_failures: u32,
    /// Why it is open, where it is; `forced` while a person holds it.
    pub reason: Option<String>,
}

// ---------------------------------------------------------------------------------------------------------
// Data plane: the writer
// ---------------------------------------------------------------------------------------------------------

/// The writer's answer to most messages.
pub type Stored<T> = Result<T, StoreError>;

/// Runs a unit of statements durably. See [`Handle::ask_with`](crate::supervision::Handle::ask_with).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Write {
    /// What is to be done.
    pub unit: Unit,
    /// Answered after the fsync.
    pub answer: oneshot::Sender<Stored<Written>>,
}

/// Applies the next of the app's migrations that the file does not have, as the unit; see [`Store::migrate`].
///
/// [`Store::migrate`]: crate::sqlite::Store::migrate
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Migrate {
    /// Without statements: the note of how far it has come.
    pub unit: Unit,
    /// All of them.
    pub migrations: Migrations,
    /// Answered after the fsync.
    pub answer: oneshot::Sender<Stored<Written>>,
}

/// The tracked tables and the number of their generation.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<(u64, Vec<Table>)>")]
pub struct GetTables;

/// The names in the file.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<Names>")]
pub struct GetNames;

/// Makes tables as the cloud has them; with `when_empty`, only in a file that has none.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<MadeTables>")]
pub struct MakeTables {
    /// The tables, none of which the file has.
    pub tables: Vec<NewTable>,
    /// Not beside a table that somebody has made meanwhile.
    pub when_empty: bool,
}

/// What the file remembers of the link, and the round whose outcome is not known, by id and number.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<(Link, Option<(String, i64)>)>")]
pub struct GetLink;

/// Moves the next window of the journal in flight.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Option<Noted>>")]
pub struct NoteRound {
    /// The most rows, their pending parents not counted.
    pub rows_max: usize,
    /// The generation of the tables that the sender knows.
    pub generation: u64,
    /// The ids of the tables whose cloud side is ready.
    pub eligible: Vec<i64>,
    /// Only what was dirty in this epoch, or before: whoever writes all the time does not keep the syncer from anything
    /// else.
    pub upto: Option<i64>,
    /// Refused entries too: the rows of this round need others.
    pub whole: bool,
    /// Of one table, and of another one the next time: the rows of one of them take so long that nobody else shall be in a round
    /// with them. Not where refused entries get their chance, which may need each other.
    pub apart: bool,
}

/// Moves more of the journal into the round in flight, closed under foreign keys.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Option<Grown>>")]
pub struct GrowRound {
    /// The round's id; another one is not touched.
    pub round: String,
    /// The generation of the tables that the sender knows.
    pub generation: u64,
    /// The ids of the tables whose cloud side is ready.
    pub eligible: Vec<i64>,
    /// The table with which it goes on.
    pub table: i64,
    /// Only what was dirty in this epoch, or before: what was dirtied since the round was noted is a later one's.
    pub upto: i64,
    /// The most rows, those that have to come along not counted.
    pub rows_max: usize,
}

/// What of the round's last part is too heavy waits again.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct TrimRound {
    /// The round's id; another one is not touched.
    pub round: String,
    /// The part.
    pub part: Part,
    /// Where it was not read any further.
    pub rest: Rest,
}

/// Some of the rows of a round that took effect without them. The round is acknowledged when all of them are out of it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct TakeOut {
    /// The round's id; another one is not touched.
    pub round: String,
    /// The rows; one that is not in flight any more is left alone.
    pub rows: Vec<LeftOut>,
    /// The generation of the tables that the hits' rows belong to.
    pub generation: u64,
}

/// The round took effect, with all that is in flight of it. Answers whether nothing of it is left to be cleared.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<bool>")]
pub struct AcknowledgeRound {
    /// The round's id; another one is not touched.
    pub round: String,
    /// The most rows that are cleared at once while somebody writes.
    pub rows_max: usize,
}

/// Clears the next piece of a round that was acknowledged. Answers whether it was the last.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<bool>")]
pub struct ClearRound {
    /// The round's id; another one is not touched.
    pub round: String,
    /// The most rows that are cleared at once while somebody writes.
    pub rows_max: usize,
}

/// The round did not take effect.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct PutBackRound {
    /// The round's id.
    pub round: String,
    /// Rows that wait until the rest of the journal has been tried.
    pub refused: Vec<Refusal>,
    /// Whether all others of the round belong to that rest, also those that waited for it.
    pub others_first: bool,
}

/// Nothing of the round has to be sent.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct DissolveRound {
    /// The round's id.
    pub round: String,
}

/// Parks refused rows; the rest of the round goes on under the id in the answer.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Parked>")]
pub struct ParkRows {
    /// The round's id until now.
    pub round: String,
    /// The rows.
    pub refusals: Vec<Refusal>,
    /// The shapes of the cloud's tables, by table, from before anything was refused.
    pub shapes: HashMap<i64, String>,
}

/// Parked rows wait again.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Retried>")]
pub struct RetryParked(pub Which);

/// The cloud's table has another shape now: its rows that were refused under another one wait again.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<usize>")]
pub struct RetryMended {
    /// The table's id.
    pub table: i64,
    /// Its shape.
    pub shape: String,
}

/// What is known of parked rows that are to be given up.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Discardable>")]
pub struct GetDiscardable(pub Vec<i64>);

/// Applies a page of the cloud's rows, with its cursor, in one transaction.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<Applied>")]
pub struct ApplyPage {
    /// The page.
    pub page: Arc<Page>,
    /// The generation of the tables that its rows belong to.
    pub generation: u64,
}

/// How far a table's snapshot has come; `None` when it is complete.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<Option<Option<Vec<String>>>>")]
pub struct GetSnapshotPosition(pub i64);

/// Begins a table's snapshot.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<()>")]
pub struct BeginSnapshot(pub i64);

/// Rows that a table's snapshot did not show; none ends it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<Leftovers>")]
pub struct GetSnapshotLeftovers {
    /// The table's id.
    pub table: i64,
    /// The most rows.
    pub limit: usize,
}

/// Remembers the cloud table of a tracked one, or that there is none that can be used; where it is another one than
/// before, the table is compared anew.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct RememberCloudTable {
    /// The table's id.
    pub table: i64,
    /// What the feed's account of the cloud table rests on; nothing where there is no feed to trust.
    pub trace: Option<String>,
    /// PostgreSQL's numbers of the cloud table and of its columns, in the order of the tracked table's; nothing where it
    /// cannot be used.
    pub made: Option<(u32, Vec<i16>)>,
}

/// The cloud table was emptied, or changed in a way that the feed cannot tell: it is compared anew.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<()>")]
pub struct CompareAnew(pub i64);

/// Rows of the cloud that could not be stored yet.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<Vec<Lookup>>")]
pub struct GetSetAside;

/// The cloud that this file belongs to from now on, and the server that it runs on.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct RememberCloud {
    /// Where it is.
    pub home: Home,
}

/// Remembers what the cloud was told last, with the cursor that this proves.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct RememberWitness(pub Witness);

/// The file belongs to another cloud from now on.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct Rehome(pub Home);

/// The cloud may have lost something of what this file has: every table is compared with it, and what it lacks, or has in an older
/// state, is sent again.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<()>")]
pub struct CompareKeeping;

/// Fixes the feed's cursor, or forgets it: then every table is compared anew.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Stored<()>")]
pub struct FixCursor(pub Option<Cursor>);

/// History changed under this file: it goes on as a new device.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Stored<()>")]
pub struct StartOver(pub Anew);

// ---------------------------------------------------------------------------------------------------------
// Data plane: the syncer
// ---------------------------------------------------------------------------------------------------------

/// There are new entries in the journal. A hint.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct JournalGrew;

/// A round is in the cloud, and nothing of it is left here: receipts may have become due. A hint.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct RoundSettled;

/// Waits until everything that was dirty at a mark, or before, is in the cloud. The answer comes apart, so that the syncer
/// sees when nobody waits for it any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct WaitSynced {
    /// What is waited for.
    pub mark: Mark,
    /// Who waits; dropped without an answer when the syncer is.
    pub answer: oneshot::Sender<Result<(), SyncError>>,
}

/// Runs a cycle now and answers when it ended.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), SyncError>")]
pub struct SyncNow;

/// Runs a cycle soon, and answers at once.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), SyncError>")]
pub struct SyncSoon;

/// Gives parked rows up, by their numbers: each becomes what it is in the cloud. The answer comes apart, after the cycle that
/// does it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DiscardParked {
    /// The numbers.
    pub ids: Vec<i64>,
    /// Who waits.
    pub answer: oneshot::Sender<Result<Discarded, SyncError>>,
}

/// The answer to [`DiscardParked`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Discarded {
    /// The numbers of the rows that are given up.
    pub ids: Vec<i64>,
    /// The numbers of those that are not, with the reason.
    pub refused: Vec<(i64, String)>,
}

/// Why something that needs the cloud did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The cloud is not available now. What was written is safe and goes out by itself later.
    #[error("Cloud SQL is not available: {0}")]
    Offline(String),
    /// The proxy is required and not available: whoever asked is not kept waiting.
    #[error("Cloud SQL is required (CLOUD_SQL_REQUIRE_PROXY) and not available: {0}")]
    ProxyRequired(String),
    /// The cloud is reachable, but must not be synced with.
    #[error("the sync is blocked: {0}")]
    Blocked(String),
    /// A row of the write is refused by PostgreSQL and parked.
    #[error("a row of this write, or of one before it, is refused by PostgreSQL and parked")]
    Parked,
    /// The cycle failed; the next one follows by itself.
    #[error("the sync failed: {0}")]
    Failed(String),
    /// The local file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SyncError {
    /// Whether waiting and asking again can help.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Offline(_) | Self::ProxyRequired(_) | Self::Failed(_) => true,
            Self::Blocked(_) | Self::Parked => false,
            Self::Store(error) => error.retry_helps(),
        }
    }
}

/// How sure somebody is that a file shall belong to the cloud that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adopt {
    /// Not at all: it is only looked who answers.
    Look,
    /// Whoever it is.
    Whoever,
    /// If it has this identity.
    Identity(String),
}

/// Looks who answers and, if told so, makes the file belong to that cloud.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Adoption, SyncError>")]
pub struct AdoptCloud(pub Adopt);

/// The answer to [`AdoptCloud`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The cloud that the file belonged to, if any.
    pub belongs: Option<Residence>,
    /// The one that answers.
    pub answers: Residence,
    /// Whether the file belongs to it now.
    pub adopted: bool,
    /// Rows that waited when it was asked, parked ones excluded.
    pub pending: u64,
}

/// A cloud, as far as its name goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residence {
    /// Its marker; none where there is none yet.
    pub identity: Option<String>,
    /// The server's own number.
    pub system: Option<String>,
    /// The database's number on it.
    pub database: Option<String>,
    /// The database's name, of the one that answers.
    pub name: Option<String>,
}

/// Asks the syncer what it is doing.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "SyncReport")]
pub struct GetSyncReport;

// ---------------------------------------------------------------------------------------------------------
// `status --json`
// ---------------------------------------------------------------------------------------------------------

/// The syncer's part of `status --json`. A count that takes longer than a second is answered with the last one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct SyncReport {
    /// `offline`, `blocked`, `warming`, `flushing` or `idle`; empty as long as nobody has answered, or counted. No number means
    /// anything then.
    pub state: String,
    /// Why, where it is blocked or the last cycle failed; or why nothing is known.
    pub detail: Option<String>,
    /// Rows that the cloud has not seen, parked ones excluded.
    pub pending: u64,
    /// Rows that the cloud refuses.
    pub parked: u64,
    /// Values that lost a conflict.
    pub conflicts: u64,
    /// Rows that went to the cloud, since the file was made.
    pub rows_flushed: u64,
    /// Rows that came from it.
    pub rows_warmed: u64,
    /// What waits.
    #[serde(default)]
    pub backlog: BacklogReport,
    /// Why the file cannot be counted any more: the numbers are those of the last time that it could.
    #[serde(default)]
    pub uncounted: Option<String>,
    /// How far the work is that is under way, where it comes in many parts.
    #[serde(default)]
    pub progress: Option<Progress>,
}

/// What waits for the cloud, in the syncer's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct BacklogReport {
    /// Rows, as `pending` counts them.
    pub entries: u64,
    /// What their entries take in the file besides the rows themselves, in bytes.
    pub bytes: u64,
    /// For how many seconds the oldest has waited since it last changed; none where nothing waits.
    pub oldest_age_s: Option<f64>,
}

/// The file's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct SqliteReport {
    /// Where it is.
    pub path: String,
    /// `wal`.
    pub journal_mode: String,
    /// Why nothing can be written to it, or why it cannot be counted, where that is known without trying.
    #[serde(default)]
    pub problem: Option<String>,
    /// How far the copy is that is being made of it.
    #[serde(default)]
    pub copying: Option<Copying>,
}

/// The HTTP side's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct HttpReport {
    /// The address and port that it listens on; none where it does not.
    pub listen: Option<String>,
}

/// One actor's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ActorReport {
    /// Its name.
    pub name: String,
    /// `running`, `silent` when it runs but does not answer, `restarting`, or `ended` when it does not come back.
    pub state: String,
    /// How often it was restarted.
    pub restarts: u32,
    /// How often it panicked.
    #[serde(default)]
    pub panics: u32,
    /// How many callers wait for an answer.
    #[serde(default)]
    pub mailbox: u64,
    /// The last panic.
    #[serde(default)]
    pub last_panic: Option<PanicReport>,
}

/// A panic, as people are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PanicReport {
    /// Its text, on one line.
    pub message: String,
    /// File, line and column.
    pub location: String,
    /// The type of the message that was being handled; `None` for anything else, and for actors with actix's own context.
    pub message_type: Option<String>,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// Whether somebody may rely on this process now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Readiness {
    /// Nothing stands against it.
    pub ready: bool,
    /// What stands against it, a sentence each.
    pub reasons: Vec<String>,
}

/// Everything: `status --json`, and `Database::status_summary`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct StatusSummary {
    /// Derived from the rest.
    pub readiness: Readiness,
    /// The watcher's.
    pub proxy: ProxyReport,
    /// The breaker's.
    pub circuit: CircuitReport,
    /// The syncer's.
    pub sync: SyncReport,
    /// The file's.
    pub sqlite: SqliteReport,
    /// Where the same can be seen with a browser.
    #[serde(default)]
    pub http: HttpReport,
    /// The actors'.
    pub actors: Vec<ActorReport>,
}

impl StatusSummary {
    /// The actors that do not run, a sentence each.
    #[must_use]
    pub fn missing_actors(&self) -> Vec<String> {
        let missing = self.actors.iter().filter(|actor| actor.state != "running");
        missing.map(|actor| format!("{} is {}", actor.name, actor.state)).collect()
    }

    /// Ready is who has every actor running, a file that can be written and, where the proxy is required, a cloud. Without the
    /// requirement no cloud is needed: that is what the local file is for.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let mut reasons = self.missing_actors();
        reasons.extend(self.sqlite.problem.clone());
        if self.proxy.proxy_required {
            if self.proxy.status != ProxyStatus::Available {
                reasons.push(format!("Cloud SQL is required and not available: {}", self.proxy.detail));
            } else if self.sync.state == "blocked" {
                let why = self.sync.detail.as_deref().unwrap_or("see the log");
                reasons.push(format!("Cloud SQL is required and the sync is blocked: {why}"));
            }
        }
        self.readiness = Readiness { ready: reasons.is_empty(), reasons };
        self
    }
}
