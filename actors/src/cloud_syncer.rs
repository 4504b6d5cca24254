//! The syncer: takes the journal to the cloud and brings home what others wrote.
//!
//! ```text
//! AvailabilityChanged, JournalGrew, Heard, SyncNow, timer ─▶ core::sync ─▶ Start, Cancel, Wake
//!
//! a cycle   permit ─▶ connect ─▶ settle ─▶ prepare ─▶ pull ─▶ flush ─▶ pull ─▶ permit back
//!   settle    new session; what became of the round in flight; has history changed?
//!   prepare   tables that this file lacks (`tables.rs`); those of the cloud, and their feed
//!   pull      snapshots of new tables; the feed up to the horizon ─▶ ApplyPage ─▶ SqliteWriter
//!   flush     NoteRound ─▶ read and encode ─▶ PostgreSQL ─▶ TakeOut, AcknowledgeRound, ClearRound | ParkRows | PutBackRound
//! ```
//!
//! Parts: [`CloudSyncer`], the shell around the machine in `core::sync`; `Cycle`, one run from connect to release. A
//! cycle may be dropped at any await: what it has done is in SQLite and in the ledger, and the next one settles first.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use slog::{Logger, debug, error, info, warn};
use tokio::sync::{oneshot, watch};

use crate::circuit_breaker::{CircuitOpen, Gate};
use crate::core::circuit::Mode;
use crate::core::failure::{CloudFailure, FailureClass, QUERY_CANCELED, needs_others};
use crate::core::from_cloud::Wanted;
use crate::core::isolation::smaller;
use crate::core::merge::{Change, change};
use crate::core::rules::TableRules;
use crate::core::schema::{CloudColumn, CloudTable, Column, Table};
use crate::core::sync::{Effect, Event, Outcome, Pace, State, Syncing, heard_pause};
use crate::core::value::{
    Affinity, CloudType, CloudValue, Misfit, Value, Wire, alike, as_text_key, computed_there, from_cloud,
    from_cloud_unchanged, from_text, is_kept, json_array, key_to_cloud, to_cloud, to_text,
};
use crate::messages::{
    AcknowledgeRound, ApplyPage, AvailabilityChanged, BeginSnapshot, ClearRound, CompareAnew, CompareKeeping,
    DissolveRound, FixCursor, GetLink, GetSetAside, GetSnapshotLeftovers, GetSnapshotPosition, GetSyncReport,
    GetTables, GrowRound, JournalGrew, NoteRound, ProxyStatus, PutBackRound, RememberCloud,
    RememberCloudTable, RoundSettled, StartOver, Subscribe, SyncError, SyncNow, SyncReport, SyncSoon,
    TakeOut, TrimRound, WaitSynced,
};
use crate::past::Remembered;
use crate::postgres::{
    Cloud, CloudHit, CloudRefusal, CloudSession, ConflictRow, FeedLimits, FeedPage, Judged, Look, Op,
    Prepared, RoundFrame, RoundItem, RoundItems, RoundOutcome, Standing, Waiting,
};
use crate::proxy_watcher::{ProxyWatcher, random_share};
use crate::sqlite::{
    Anew, Applied, CLEARED_AT_ONCE, Cursor, Disputed, Grown, Hit, Home, InFlight, LeftOut, Leftovers, Link,
    Lookup, Mark, Noted, Page, Part, PulledRow, Readers, Refusal, Rest, RoundRow, StoreError,
    TAKEN_OUT_AT_ONCE, Unfit, ledger_name,
};
use crate::sqlite_writer::SqliteWriter;
use crate::supervision::{Context, Handle, Unanswered, is_stale};
use crate::timings::{RoundEnd, RoundTimer, Timings, now_us};

mod history;
mod looks;
mod pace;
mod parked;
mod tables;
mod told;
mod trim;

use history::{CameBack, Evidence};
use looks::{Looks, counted};
use parked::Discards;
use told::Told;

/// How the syncer works.
#[derive(Debug, Clone, Copy)]
pub struct SyncOptions {
    /// The most rows of a round.
    pub window_rows_max: usize,
    /// The most rows of a page.
    pub page_rows_max: usize,
    /// Debounce, pull interval and retries.
    pub pace: Pace,
    /// How much of the change feed is kept.
    pub feed: FeedLimits,
    /// Whoever needs the cloud while it is not available is refused, not kept waiting.
    pub proxy_required: bool,
    /// A first sync, or a flush, that takes longer says how far it is, for the first time after so long.
    pub progress_after: Duration,
}

/// A condition over which PostgreSQL failed.
#[derive(Debug, Clone)]
pub struct FailedFilter {
    /// Until then its table is left alone.
    until: Instant,
    /// How long that is.
    wait: Duration,
    why: String,
}

/// What the syncer works with. All of it outlives the actor.
#[derive(Debug, Clone)]
pub struct SyncParts {
    /// The cloud, unless none is configured.
    pub cloud: Option<Cloud>,
    /// Lets calls through, or not.
    pub gate: Gate,
    /// The one who writes.
    pub writer: Handle<SqliteWriter>,
    /// The one who announces.
    pub watcher: Handle<ProxyWatcher>,
    /// Connections for reading.
    pub readers: Readers,
    /// What is set for single tables.
    pub rules: Arc<TableRules>,
    /// Which of the cloud's tables this file is given, as soon as it has those that its app gives it.
    pub wanted: Arc<OnceLock<Wanted>>,
    /// The tables whose `where` failed on a row, by id.
    pub failed_filters: Arc<Mutex<HashMap<i64, FailedFilter>>>,
    /// What has been said once and need not be said again.
    pub said: Arc<Mutex<HashSet<String>>>,
    /// The tables whose rows wait for something that a person has to do, by id, with what that is.
    pub not_synced: Arc<Mutex<HashMap<i64, String>>>,
    /// Where the durations are counted.
    pub timings: Arc<Timings>,
    /// Where it is noted how much waited, and went.
    pub past: Arc<Remembered>,
}

/// The actor.
#[derive(Debug)]
pub struct CloudSyncer {
    parts: SyncParts,
    options: SyncOptions,
    machine: Syncing,
    memory: Memory,
    windows: Portion,
    pages: Portion,
    within: Within,
    doing: Arc<AtomicU8>,
    told: Told,
    running: Option<SpawnHandle>,
    timer: Option<SpawnHandle>,
    /// Who waits for the end of a cycle, with the number of the first one that counts.
    asked: Vec<(u64, oneshot::Sender<Result<(), SyncError>>)>,
    /// Who waits for what is up to a mark to be in the cloud.
    receipts: Vec<(Mark, oneshot::Sender<Result<(), SyncError>>)>,
    /// When there are so many, those that nobody waits for any more are let go.
    receipts_max: usize,
    /// Parked rows to be given up by the next cycle.
    discards: Discards,
    cycles_begun: u64,
    /// When the last of them did.
    began: Instant,
    /// How long the last one took that ended by itself, in microseconds.
    took_us: Arc<AtomicU64>,
    trouble: Option<String>,
    /// Somebody is making the file belong to another cloud: what the watcher says meanwhile is heard afterwards.
    adopting: Option<Option<AvailabilityChanged>>,
    looks: Looks,
    /// Whether it is known that the cloud announces what other devices commit.
    announced: bool,
    /// Why the cloud is away; nothing as long as nobody has looked, and while it is there.
    offline: Option<Option<FailureClass>>,
    log: Logger,
}

/// What one cycle leaves to the next, as long as none of them was cut off.
#[derive(Debug, Default)]
struct Memory {
    /// The session that settled.
    session: Option<String>,
    /// The tables with their cloud sides, for one generation.
    prepared: Option<(u64, Arc<[ReadyTable]>)>,
    /// Where the session stood when it had prepared them.
    standing: Option<Standing>,
    /// When the cloud's ledger was last written only for being a witness.
    witnessed: Option<Instant>,
    /// When this device was last seen there at the latest.
    seen: Option<Instant>,
    /// When the feed was last trimmed, or did not need it.
    trimmed: Option<Instant>,
    /// Whether others had changed something, or there is more of the feed to trim: the next cycle comes soon.
    news: bool,
    /// The file wants tables that the cloud may have one day: when it is asked again, and how long that wait was.
    lacks_tables: Option<(Instant, Duration)>,
    /// When tables that could not be used are looked at again, and how long that wait was.
    look_again: Option<(Instant, Duration)>,
}

/// How many rows the next window or page may have: halved by each failure under way, so that what is too large for the
/// link or the server's patience becomes small enough, and doubled by success.
#[derive(Debug, Clone)]
struct Portion {
    rows: Arc<AtomicUsize>,
    crowd: Arc<Mutex<Crowd>>,
}

/// How many rows the cloud takes together: a larger portion would be refused, and cost a search, or take too long.
#[derive(Debug, Clone, Copy, Default)]
struct Crowd {
    rows_max: usize,
    /// For so many portions nobody looks whether it takes more by now.
    rounds: u32,
    /// How many these were in the beginning.
    held: u32,
}

/// For so many rounds portions stay small where a larger one took too long.
const SLOW_ROUNDS: u32 = 8;

/// After so many rounds for the first time it is tried whether the cloud takes larger ones, and each time after twice as many: the
/// search that it costs is little beside them.
const CROWD_ROUNDS: std::ops::RangeInclusive<u32> = 16..=1024;

impl Portion {
    fn new(most: usize) -> Self {
        Self { rows: Arc::new(AtomicUsize::new(most)), crowd: Arc::default() }
    }

    fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    fn halve(&self) {
        self.rows.store((self.rows() / 2).max(1), Ordering::Relaxed);
    }

    /// For a while a portion has no more than these, of which it is known that the cloud takes so many.
    fn crowd(&self, rows_max: usize) {
        let rows_max = rows_max.min(self.rows()).max(1);
        self.rows.store(rows_max, Ordering::Relaxed);
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let held = (crowd.held * 2).clamp(*CROWD_ROUNDS.start(), *CROWD_ROUNDS.end());
        *crowd = Crowd { rows_max, rounds: held, held };
    }

    /// So many rows took longer than a statement may: for some rounds a portion has half of them at most. Where one row is the
    /// reason, it is soon alone, and the others are through.
    fn was_slow(&self, rows: usize) {
        let rows_max = (rows.min(self.rows()) / 2).max(1);
        self.rows.store(rows_max, Ordering::Relaxed);
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        *crowd = Crowd { rows_max, rounds: SLOW_ROUNDS, ..*crowd };
    }

    /// The largest that the next one may be, which is one less of those that are held small.
    fn take_most(&self, most: usize) -> usize {
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        if crowd.rounds == 0 {
            return most;
        }
        crowd.rounds -= 1;
        most.min(crowd.rows_max)
    }

    /// After a round that took so long: the next one shall take about [`ROUND_TIME`]. Its bytes are bounded where it is read.
    fn adapt(&self, most: usize, rows: usize, bytes: usize, took: Duration) {
        let bearable = (PORTION_BYTES / (bytes / rows.max(1)).max(1)).max(1);
        // Much of a short round is round trips, which a larger one does not have more of.
        let factor = if took * 3 < ROUND_TIME {
            GROWTH_MAX
        } else {
            (ROUND_TIME.as_secs_f64() / took.as_secs_f64()).clamp(0.5, GROWTH_MAX)
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a number of rows"
        )]
        let wanted = (rows as f64 * factor) as usize;
        // A round that was small because no more waited says nothing against a larger one.
        let wanted = if factor > 1.0 { wanted.max(self.rows()) } else { wanted };
        self.rows.store(wanted.clamp(1, self.take_most(most)).min(bearable), Ordering::Relaxed);
    }

    /// `bytes` is what the last portion weighed: the next one shall not weigh much more than [`PORTION_BYTES`].
    fn grow(&self, most: usize, rows: usize, bytes: usize) {
        let bearable = (PORTION_BYTES / (bytes / rows.max(1)).max(1)).max(1);
        self.rows.store((self.rows() * 2).min(most).min(bearable), Ordering::Relaxed);
    }
}

/// How far the feed's entry behind a cursor was read: many rows that it names may be heavy, and a pull that fails among them goes
/// on there.
#[derive(Debug, Clone, Default)]
struct Within(Arc<Mutex<Option<(Cursor, usize)>>>);

impl Within {
    fn read(&self, behind: &Cursor) -> usize {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().filter(|(cursor, _)| cursor == behind).map_or(0, |(_, texts)| *texts)
    }

    fn note(&self, behind: &Cursor, texts: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((behind.clone(), texts));
    }
}

/// A failure of the link's is the watcher's to tell, unless it is the third in a row while the cloud is called available.
const TOLD_FAILURE: u32 = 3;

/// The fewest receipts that are worth looking through for those that nobody waits for.
const RECEIPTS_MIN: usize = 64;

/// The first page, as long as nobody knows what a row weighs.
const FIRST_PORTION: usize = 64;

/// The first window, as long as nobody knows how quick the cloud is.
const FIRST_WINDOW: usize = 1000;

/// How long a table is read as of one moment: the server keeps for so long what is deleted meanwhile.
const STRETCH: Duration = Duration::from_secs(5);

/// So many pages are on their way at most while one is applied: more than a round trip takes, so that it costs nothing.
const AHEAD_MAX: usize = 16;

/// What the pages may weigh that wait to be applied. With more, the rest is asked for again in smaller pages.
const AHEAD_BYTES: usize = 3 * PORTION_BYTES;

/// What a window or a page should weigh at most: it is in memory here, in the driver, and in the server. A window weighs more
/// only by the one row with which it began, or grew, if that is heavier by itself.
const PORTION_BYTES: usize = 16 << 20;

/// How many rows a round begins with, and by how many times as many it grows: some milliseconds, for which the first one who writes
/// waits; then it goes on in smaller steps.
const NOTED_AT_ONCE: usize = 1000;

/// The largest window has so many such parts at least: one is noted and read while the server is at work on those before it.
const PARTS_MIN: usize = 8;

/// So many parts are one statement: each costs the server a plan and a run of the feed's trigger.
const SENT_AT_ONCE: usize = 4;

/// How long a round should take: much longer than a round trip, and much shorter than anybody's patience with its locks.
const ROUND_TIME: Duration = Duration::from_secs(1);

/// The most by which a window grows from one round to the next.
const GROWTH_MAX: f64 = 8.0;

#[derive(Debug, Clone)]
struct ReadyTable {
    table: Table,
    cloud: CloudTable,
    /// By column: whether rows find each other by it, so that it has to come back byte for byte.
    finds: Vec<bool>,
    /// By column, looked up once and not for each value.
    affinities: Vec<Affinity>,
    /// By column: whether whatever the cloud has in it can be kept here, or never goes back.
    kept: Vec<bool>,
}

const WARMING: u8 = 0;
const FLUSHING: u8 = 1;

impl CloudSyncer {
    /// A syncer that waits for the cloud.
    pub fn new(parts: SyncParts, options: SyncOptions, log: Logger) -> Self {
        Self {
            looks: Looks::new(parts.past.clone()),
            parts,
            options,
            machine: Syncing::new(options.pace),
            memory: Memory::default(),
            windows: Portion::new(options.window_rows_max.min(FIRST_WINDOW)),
            pages: Portion::new(options.page_rows_max.min(FIRST_PORTION)),
            within: Within::default(),
            doing: Arc::default(),
            told: Told::new(options.progress_after),
            running: None,
            timer: None,
            asked: vec![],
            receipts: vec![],
            receipts_max: RECEIPTS_MIN,
            discards: Discards::default(),
            cycles_begun: 0,
            began: Instant::now(),
            took_us: Arc::default(),
            trouble: None,
            adopting: None,
            announced: false,
            offline: None,
            log,
        }
    }

    fn advance(&mut self, event: Event, ctx: &mut Context<Self>) {
        for effect in self.machine.advance(event, random_share()) {
            match effect {
                Effect::Start { cycle } => self.start(cycle, ctx),
                Effect::Cancel => {
                    if let Some(running) = self.running.take() {
                        ctx.cancel_future(running);
                    }
                    self.memory = Memory::default();
                }
                Effect::Wake { wait, after } => {
                    if let Some(timer) = self.timer.take() {
                        ctx.cancel_future(timer);
                    }
                    self.timer = Some(ctx.notify_later(Woke(wait), after));
                }
            }
        }
    }

    fn start(&mut self, number: u64, ctx: &mut Context<Self>) {
        self.cycles_begun = number;
        self.began = Instant::now();
        self.doing.store(WARMING, Ordering::Relaxed);
        let cycle = Cycle {
            parts: self.parts.clone(),
            options: self.options,
            memory: Memory { news: false, ..std::mem::take(&mut self.memory) },
            windows: self.windows.clone(),
            pages: self.pages.clone(),
            within: self.within.clone(),
            doing: self.doing.clone(),
            told: self.told.clone(),
            discards: self.discards.clone(),
            untold: Cell::new(None),
            blamed: RefCell::default(),
            syncer: ctx.address().downgrade(),
            came_back: CameBack::default(),
            log: self.log.clone(),
        };
        let running =
            actix::fut::wrap_future::<_, Self>(cycle.run()).map(move |(memory, ended), syncer, ctx| {
                // A cycle that was cancelled may still be polled once more.
                if syncer.running.is_some() && syncer.cycles_begun == number {
                    syncer.running = None;
                    syncer.ended(number, memory, ended, ctx);
                }
            });
        self.running = Some(ctx.spawn(running));
    }

    fn ended(&mut self, cycle: u64, memory: Memory, ended: Result<(), Trouble>, ctx: &mut Context<Self>) {
        fail::fail_point!("syncer.ended");
        let took_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.took_us.store(took_us, Ordering::Relaxed);
        let outcome = match &ended {
            Ok(()) if memory.news => Outcome::News,
            Ok(()) => Outcome::Done,
            Err(Trouble::Cloud(failure) | Trouble::Announced(failure)) => Outcome::Failed(failure.class),
            // The breaker is about to hear what is known here: that the cloud is there, or how the last cycle ended.
            Err(Trouble::Open(open)) if open.mode != Mode::Open => Outcome::Early,
            Err(Trouble::Open(_)) => Outcome::Held,
            Err(Trouble::Store(_) | Trouble::Unanswered(_)) => Outcome::Interrupted,
        };
        // After trouble the next cycle settles, and looks at the cloud's tables, anew.
        self.memory = if ended.is_ok() { memory } else { Memory::default() };
        self.say(&ended);
        if ended.is_ok() {
            // Who looks after a flush sees what it did, not what was counted before.
            self.looks.outdate();
        }
        if !self.announced && self.parts.cloud.as_ref().is_some_and(Cloud::announces) {
            self.announced = true;
            debug!(
                self.log,
                "what other devices commit is announced: it comes at once, not at the pull interval"
            );
        }
        let answer = match &ended {
            Ok(()) => Ok(()),
            Err(trouble) if matches!(outcome, Outcome::Failed(class) if !class.retry_helps()) => {
                Err(SyncError::Blocked(trouble.to_string()))
            }
            Err(Trouble::Open(open))
                if open.reason.is_some_and(|class| !class.retry_helps()) && !open.forced =>
            {
                let why = open.reason.map_or("see the log", FailureClass::in_words);
                Err(SyncError::Blocked(self.trouble.clone().unwrap_or_else(|| why.to_owned())))
            }
            Err(trouble) => Err(SyncError::Failed(trouble.to_string())),
        };
        for (first, waiting) in std::mem::take(&mut self.asked) {
            if first > cycle || outcome == Outcome::Early {
                self.asked.push((first.max(cycle + 1), waiting));
            } else {
                // Who asked may have gone.
                let _ = waiting.send(answer.clone());
            }
        }
        if outcome != Outcome::Early
            && let Err(error) = answer
        {
            self.discards.refuse(&error);
        }
        let took = self.began.elapsed();
        self.advance(Event::Ended { cycle, outcome, took }, ctx);
        self.settle_receipts();
        self.refuse();
        let came_to_something = outcome == Outcome::News || !self.parts.past.is_settled();
        if came_to_something && matches!(self.machine.state(), State::Idle) {
            self.remember();
        }
    }

    /// One line when trouble begins and one when it ends; nothing while it lasts.
    fn say(&mut self, ended: &Result<(), Trouble>) {
        if let Err(Trouble::Open(_)) = ended {
            // Not a trouble of its own: why the circuit is open has been said.
            return;
        }
        let now = ended.as_ref().err().map(ToString::to_string);
        match (&self.trouble, &now, ended) {
            // The watcher sees no trouble, and yet nothing gets through.
            (_, Some(now), Err(Trouble::Cloud(failure)))
                if failure.class.retry_helps() && self.machine.failures() + 1 == TOLD_FAILURE =>
            {
                let remedy = failure.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
                warn!(self.log, "⚠️  Sync is interrupted: {now}{remedy}");
            }
            (before, Some(now), _) if before.as_ref() == Some(now) => {}
            (_, Some(_), Err(Trouble::Cloud(failure))) if !failure.class.retry_helps() => {
                let remedy = failure.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
                error!(self.log, "❌ Sync is blocked: {failure}{remedy}");
            }
            // The link's own troubles are the watcher's to tell.
            (_, Some(_), Err(Trouble::Announced(_) | Trouble::Cloud(_) | Trouble::Unanswered(_))) => {}
            (_, Some(now), _) => warn!(self.log, "⚠️  Sync is interrupted: {now}"),
            (Some(_), None, _) => debug!(self.log, "sync goes on"),
            (None, None, _) => {}
        }
        self.trouble = now;
    }

    fn settle_receipts(&mut self) {
        self.receipts.retain(|(_, waiting)| !waiting.is_closed());
        let mut known: HashMap<Mark, Option<Result<(), SyncError>>> = HashMap::new();
        for (mark, waiting) in std::mem::take(&mut self.receipts) {
            match known.entry(mark).or_insert_with(|| self.receipt(mark)).clone() {
                None => self.receipts.push((mark, waiting)),
                // Who waited may have gone.
                Some(settled) => drop(waiting.send(settled)),
            }
        }
    }

    /// What became of everything up to an epoch; `None` while some of it is still going to be sent.
    fn receipt(&self, mark: Mark) -> Option<Result<(), SyncError>> {
        let outstanding = match self.parts.readers.outstanding(mark) {
            Ok(outstanding) => outstanding,
            // The next settled round asks again.
            Err(error) if error.retry_helps() => return None,
            Err(error) => return Some(Err(error.into())),
        };
        let not_synced = self.parts.not_synced.lock().unwrap_or_else(PoisonError::into_inner);
        match outstanding.waiting.iter().find(|table| !not_synced.contains_key(table)) {
            Some(_) => None,
            None if outstanding.parked => Some(Err(SyncError::Parked)),
            None => Some(match outstanding.waiting.first().and_then(|table| not_synced.get(table)) {
                Some(reason) => Err(SyncError::Blocked(reason.clone())),
                None => Ok(()),
            }),
        }
    }

    /// Why nothing that needs the cloud can be done now; `None` where it can, and as long as nobody knows.
    fn unavailable(&self) -> Option<SyncError> {
        let why =
            |class: Option<FailureClass>| class.map_or("not checked yet", FailureClass::in_words).to_owned();
        match (self.machine.state(), self.offline) {
            (State::Offline, Some(class)) if self.options.proxy_required => {
                Some(SyncError::ProxyRequired(why(class)))
            }
            (State::Offline, Some(class)) => Some(SyncError::Offline(why(class))),
            (State::Blocked, class) if self.running.is_none() => {
                Some(SyncError::Blocked(self.trouble.clone().unwrap_or_else(|| why(class.flatten()))))
            }
            _ => None,
        }
    }

    /// Answers whoever waits for the cloud while it cannot be used. Receipts outlast an outage, unless there must be none.
    fn refuse(&mut self) {
        let Some(error) = self.unavailable() else { return };
        self.discards.refuse(&error);
        let asked = self.asked.drain(..).map(|(_, waiting)| waiting);
        let receipts = if self.options.proxy_required { self.receipts.len() } else { 0 };
        for waiting in asked.chain(self.receipts.drain(..receipts).map(|(_, waiting)| waiting)) {
            // Who waited may have gone.
            let _ = waiting.send(Err(error.clone()));
        }
    }

    /// What is known without the file.
    /// Looks at the numbers for those who look only later. It happens where something happens anyway: an idle machine is left
    /// alone.
    fn remember(&self) {
        actix_rt::spawn(counted(self.report(), self.parts.readers.clone(), self.looks.clone()));
    }

    fn report(&self) -> SyncReport {
        let state = match self.machine.state() {
            State::Offline => "offline",
            State::Blocked => "blocked",
            State::Idle => "idle",
            State::Working if self.doing.load(Ordering::Relaxed) == FLUSHING => "flushing",
            State::Working => "warming",
        };
        let progress = self.running.as_ref().and_then(|_| self.told.progress());
        SyncReport {
            state: state.to_owned(),
            detail: self.trouble.clone(),
            progress,
            ..SyncReport::default()
        }
    }
}

impl Actor for CloudSyncer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.parts.watcher.hint(Subscribe(ctx.address().recipient()));
        if let Some(cloud) = &self.parts.cloud {
            ctx.spawn(actix::fut::wrap_future(pass_on(
                cloud.heard(),
                self.took_us.clone(),
                ctx.address().downgrade(),
            )));
        }
    }
}

impl Handler<AvailabilityChanged> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, changed: AvailabilityChanged, ctx: &mut Self::Context) {
        if let Some(later) = &mut self.adopting {
            *later = Some(changed);
            return;
        }
        match changed.status {
            ProxyStatus::Available if self.parts.cloud.is_some() => {
                self.offline = None;
                // How much has come to wait, before it goes.
                self.remember();
                self.advance(Event::Available, ctx);
            }
            // Not checked yet: whoever asks waits for what the first check says.
            ProxyStatus::Unknown if changed.class.is_none() => {}
            _ => {
                self.offline = Some(changed.class);
                self.advance(Event::Unavailable(changed.class), ctx);
                self.refuse();
            }
        }
    }
}

/// Another device may have changed something.
#[derive(Message)]
#[rtype(result = "()")]
struct Heard;

/// The most by which devices that hear the same at the same time come one after the other.
const HEARD_JITTER: Duration = Duration::from_millis(8);

/// Passes on what the cloud announces, many as one. `took_us` is how long the last cycle took, in microseconds.
async fn pass_on(
    mut heard: watch::Receiver<u64>,
    took_us: Arc<AtomicU64>,
    syncer: actix::WeakAddr<CloudSyncer>,
) {
    let mut last: Option<Instant> = None;
    while heard.changed().await.is_ok() {
        let took = Duration::from_micros(took_us.load(Ordering::Relaxed));
        let pause = last.map_or(Duration::ZERO, |last| heard_pause(took).saturating_sub(last.elapsed()));
        actix_rt::time::sleep(pause + HEARD_JITTER.mul_f64(random_share())).await;
        heard.mark_unchanged();
        last = Some(Instant::now());
        let Some(syncer) = syncer.upgrade() else { return };
        syncer.do_send(Heard);
    }
}

impl Handler<Heard> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, _: Heard, ctx: &mut Self::Context) {
        self.advance(Event::Heard, ctx);
    }
}

impl Handler<JournalGrew> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, _: JournalGrew, ctx: &mut Self::Context) {
        self.advance(Event::Grew, ctx);
        if self.parts.past.wants_rows() {
            self.remember();
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Woke(u64);

impl Handler<Woke> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, Woke(wait): Woke, ctx: &mut Self::Context) {
        self.advance(Event::Woke { wait }, ctx);
    }
}

impl Handler<RoundSettled> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, _: RoundSettled, _: &mut Self::Context) {
        fail::fail_point!("syncer.receipts");
        self.settle_receipts();
    }
}

impl Handler<WaitSynced> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, WaitSynced { mark, answer }: WaitSynced, _: &mut Self::Context) {
        if let Some(settled) = self.receipt(mark) {
            // Who waited may have gone.
            let _ = answer.send(settled);
            return;
        }
        self.receipts.push((mark, answer));
        if self.receipts.len() >= self.receipts_max {
            self.receipts.retain(|(_, waiting)| !waiting.is_closed());
            self.receipts_max = (self.receipts.len() * 2).max(RECEIPTS_MIN);
        }
        self.refuse();
    }
}

impl Handler<SyncNow> for CloudSyncer {
    type Result = ResponseFuture<Result<(), SyncError>>;

    fn handle(&mut self, _: SyncNow, ctx: &mut Self::Context) -> Self::Result {
        let (answer, answered) = oneshot::channel();
        // A cycle that runs already may have passed what the asker means: the one after it counts.
        let first = self.cycles_begun + 1;
        if self.memory.look_again.is_some() {
            self.memory.prepared = None;
        }
        if let Some((when, _)) = &mut self.memory.lacks_tables {
            *when = Instant::now();
        }
        self.advance(Event::Asked, ctx);
        if let Some(error) = self.unavailable() {
            return Box::pin(async { Err(error) });
        }
        self.asked.push((first, answer));
        Box::pin(async {
            answered.await.unwrap_or_else(|_| Err(SyncError::Failed("the cycle was cut off".into())))
        })
    }
}

impl Handler<SyncSoon> for CloudSyncer {
    type Result = Result<(), SyncError>;

    fn handle(&mut self, _: SyncSoon, ctx: &mut Self::Context) -> Self::Result {
        self.advance(Event::Asked, ctx);
        self.unavailable().map_or(Ok(()), Err)
    }
}

impl Handler<GetSyncReport> for CloudSyncer {
    type Result = ResponseFuture<SyncReport>;

    fn handle(&mut self, _: GetSyncReport, _: &mut Self::Context) -> Self::Result {
        Box::pin(counted(self.report(), self.parts.readers.clone(), self.looks.clone()))
    }
}

// ---------------------------------------------------------------------------------------------------------
// A cycle
// ---------------------------------------------------------------------------------------------------------

/// Why a cycle ended early.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Cloud(#[from] CloudFailure),
    /// The watcher's check meets the same, and says so.
    #[error(transparent)]
    Announced(CloudFailure),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error("{0}")]
    Open(CircuitOpen),
}

type Step<T> = Result<T, Trouble>;

struct Cycle {
    parts: SyncParts,
    options: SyncOptions,
    memory: Memory,
    windows: Portion,
    pages: Portion,
    within: Within,
    doing: Arc<AtomicU8>,
    told: Told,
    discards: Discards,
    /// How many rows were parked and not told of, once the first ones were.
    untold: Cell<Option<usize>>,
    /// Tables whose condition failed in this cycle.
    blamed: RefCell<HashSet<i64>>,
    syncer: actix::WeakAddr<CloudSyncer>,
    /// Rows that came back from the dead, until somebody was told.
    came_back: CameBack,
    log: Logger,
}

impl Cycle {
    async fn run(mut self) -> (Memory, Step<()>) {
        let gate = self.parts.gate.clone();
        let permit = match gate.permit() {
            Ok(permit) => permit,
            Err(open) => return (self.memory, Err(Trouble::Open(open))),
        };
        fail::fail_point!("syncer.permitted");
        let mut ended = self.steps().await;
        // A table whose condition failed is left alone for the rest of this cycle: whoever waits for the others need not hear of it.
        let mut blamed = 0;
        while ended.is_err() && self.blamed.borrow().len() > blamed {
            blamed = self.blamed.borrow().len();
            self.memory = Memory { news: self.memory.news, ..Memory::default() };
            ended = self.steps().await;
        }
        self.told.end(&self.log);
        self.tell_parked();
        match &ended {
            Ok(()) => permit.finish(Ok(())),
            Err(Trouble::Cloud(failure) | Trouble::Announced(failure)) if failure.concerns_link() => {
                permit.finish(Err(failure.class));
            }
            // Our own troubles, and what the server takes its time for, say nothing about the link.
            Err(_) => drop(permit),
        }
        (self.memory, ended)
    }

    async fn steps(&mut self) -> Step<()> {
        let Some(cloud) = self.parts.cloud.clone() else { return Ok(()) };
        let session = cloud.connect().await?;
        fail::fail_point!("syncer.connected");
        let link = self.settle(&cloud, &session).await?;
        session.listen(&link.device);
        self.prepare(&session, &link).await?;
        self.retry_mended(&session, &link).await?;
        let (mut link, mut look) = self.fix_cursor(&session, link).await?;
        self.discard(&session, &link).await?;
        let mut turn = Turn::default();
        loop {
            self.doing.store(WARMING, Ordering::Relaxed);
            self.pull(&session, &mut link, look.take()).await?;
            self.doing.store(FLUSHING, Ordering::Relaxed);
            // In boxes, as in `postgres/isolate.rs`.
            match Box::pin(self.flush(&session, &mut link, &mut turn)).await? {
                Flushed::Everything => break,
                Flushed::PullFirst => {}
            }
        }
        self.doing.store(WARMING, Ordering::Relaxed);
        self.pull(&session, &mut link, None).await?;
        self.bear_witness(&session, &link).await?;
        self.trim(&session).await?;
        session.release();
        Ok(())
    }

    async fn ask<M, T>(&self, message: M) -> Step<T>
    where
        M: Message<Result = Result<T, StoreError>> + Send + 'static,
        T: Send + 'static,
        SqliteWriter: Handler<M>,
        <SqliteWriter as Actor>::Context: actix::dev::ToEnvelope<SqliteWriter, M>,
    {
        fail::fail_point!("syncer.asks");
        if is_stale() {
            // Its successor has settled, and goes on from what is in the file: whatever was decided here is old.
            return Err(Unanswered { actor: "CloudSyncer", delivered: false }.into());
        }
        let answer = self.parts.writer.ask(message).await??;
        fail::fail_point!("syncer.answered");
        Ok(answer)
    }

    /// Says something once in the life of the process.
    fn once(&self, text: String) {
        if self.is_new(&text) {
            warn!(self.log, "⚠️  {text}");
        }
    }

    fn is_new(&self, text: &str) -> bool {
        self.parts.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned())
    }

    // -----------------------------------------------------------------------------------------------------
    // Settle and prepare
    // -----------------------------------------------------------------------------------------------------

    /// Finds out what became of the round in flight, if any. A cycle that finds everything where the last one left it, the
    /// cloud's identity included, has nothing to settle: a proxy may lead somewhere else from one second to the next.
    async fn settle(&mut self, cloud: &Cloud, session: &CloudSession) -> Step<Link> {
        let (mut link, in_flight) = self.ask(GetLink).await?;
        cloud.expect_identity(link.cloud.clone());
        if let (Some(id), Some(standing), None) = (&self.memory.session, &self.memory.standing, &in_flight) {
            let now = session.standing(&link.device, id, self.cloud_tables()).await?;
            if now.as_ref() == Some(standing) {
                return Ok(link);
            }
        }
        self.memory = Memory::default();
        let identity = session.bootstrap().await.map_err(|failure| match failure.class {
            FailureClass::NotOurs => Trouble::Announced(failure),
            _ => failure.into(),
        })?;
        let home = Home {
            cloud: identity.id.clone(),
            system: identity.system.clone(),
            database: identity.database.clone(),
            timeline: identity.timeline,
        };
        let known = self.require_original(&link, &home).await?;
        session.upgrade(&identity).await?;
        if !known {
            self.ask(RememberCloud { home: home.clone() }).await?;
            cloud.expect_identity(Some(home.cloud.clone()));
        }
        // Before the settling, which writes over it: a crash in between must find it again.
        let seen = session.last_seen(&link.device).await?;
        let found = self.look_for_evidence(session, &link, seen).await?;
        let is_new_device = matches!(found, Evidence::Lost | Evidence::Struck);
        if found == Evidence::Lost {
            self.start_over_behind(seen.map_or(0, |seen| seen.number), link.round_number).await?;
        } else if found == Evidence::Struck {
            self.go_on_unknown().await?;
        }
        if is_new_device {
            (link, _) = self.ask(GetLink).await?;
        }
        if found != Evidence::Lost && known && link.timeline.is_some_and(|before| before != home.timeline) {
            self.passed_on(&link, &home, found).await?;
        }
        if known && (link.timeline, link.database.as_ref()) != (Some(home.timeline), Some(&home.database)) {
            self.ask(RememberCloud { home }).await?;
        }
        let in_flight = if is_new_device { None } else { in_flight };
        let id = uuid::Uuid::new_v4().to_string();
        let ledger = session.settle(&link.device, &id, link.cursor.as_ref()).await?;
        let flying = in_flight.map(|(id, _)| id);
        if flying.is_some() && ledger.round == flying {
            let round = flying.unwrap_or_default();
            let readers = self.parts.readers.clone();
            let left = actix_rt::task::spawn_blocking(move || readers.in_flight_by_name(&ledger.left_out));
            let left = left.await.map_err(|error| StoreError::Io(error.to_string()))??;
            self.acknowledge(round, left, 0).await?;
        } else if ledger.round == link.last_round {
            if let Some(round) = flying {
                self.ask(PutBackRound { round, refused: vec![], others_first: false }).await?;
            }
        } else {
            // The ledger knows neither round: the counter tells who is ahead.
            let cloud_lost_rounds = ledger.number < link.round_number;
            if cloud_lost_rounds {
                self.start_over_behind(ledger.number, link.round_number).await?;
            } else {
                warn!(
                    self.log,
                    "⚠️  This file was set back or copied ({} of {} rounds): it goes on as a new device",
                    link.round_number,
                    ledger.number
                );
                self.ask(StartOver(Anew::Follow)).await?;
            }
            (link, _) = self.ask(GetLink).await?;
            session.settle(&link.device, &id, link.cursor.as_ref()).await?;
        }
        self.memory.session = Some(id);
        self.memory.seen = Some(Instant::now());
        self.memory.witnessed = None;
        (link, _) = self.ask(GetLink).await?;
        self.tell_receipts();
        Ok(link)
    }

    fn cloud_tables(&self) -> impl Iterator<Item = &CloudTable> + Clone {
        self.memory.prepared.iter().flat_map(|(_, ready)| ready.iter()).map(|ready| &ready.cloud)
    }

    /// Looks at the cloud's side of every table, once per connection and per change of the schema here; and again, at growing
    /// intervals, while one of them cannot be used: somebody may have mended it, or given its lock back.
    async fn prepare(&mut self, session: &CloudSession, link: &Link) -> Step<()> {
        let due = self.memory.look_again.is_some_and(|(when, _)| Instant::now() >= when);
        self.make_tables(session).await?;
        let (generation, tables) = self.ask(GetTables).await?;
        if !due && self.memory.prepared.as_ref().is_some_and(|(known, _)| *known == generation) {
            return Ok(());
        }
        let pooler =
            "a connection pooler lends its servers by the transaction: each brings its settings along";
        if session.is_shared() && self.is_new(pooler) {
            info!(self.log, "{pooler}");
        }
        let mut not_synced = tables::not_sent(&tables);
        let tables = self.in_both(tables);
        let (prepared, notes) = session.prepare(&tables).await?;
        for note in notes {
            self.once(note);
        }
        let mut ready = vec![];
        let mut not_yet = false;
        let finds: Vec<Vec<bool>> = tables.iter().map(|table| table.finds(&tables)).collect();
        for ((table, finds), prepared) in tables.into_iter().zip(finds).zip(prepared) {
            let trace = match &prepared {
                // Without a feed nobody tells of others' changes: when it comes, the table is compared anew.
                Prepared::Ready(cloud) if cloud.feed => Some(cloud.trace.clone()),
                _ => None,
            };
            let made = match &prepared {
                Prepared::Ready(cloud) => Some((cloud.oid, cloud.columns.iter().map(|c| c.number).collect())),
                Prepared::NotYet(_) => None,
            };
            self.ask(RememberCloudTable { table: table.id, trace, made }).await?;
            let failed = self.failed_filter(table.id);
            let prepared = match failed {
                Some(reason) if matches!(prepared, Prepared::Ready(_)) => {
                    // The feed is read past it meanwhile.
                    self.ask(CompareAnew(table.id)).await?;
                    Prepared::NotYet(reason)
                }
                _ => prepared,
            };
            match prepared {
                Prepared::Ready(cloud) => ready.push(ReadyTable::new(table, cloud, finds)),
                Prepared::NotYet(reason) => {
                    not_yet = true;
                    not_synced.insert(table.id, format!("table {}: {reason}", table.name));
                    self.once(format!("table {} is not synced, its rows stay pending: {reason}", table.name));
                }
            }
        }
        let one_way = ready.iter().any(|ready| ready.receives() && !ready.cloud.feed);
        let pace = self.options.pace;
        self.memory.look_again = (one_way || not_yet).then(|| again(self.memory.look_again, &pace));
        *self.parts.not_synced.lock().unwrap_or_else(PoisonError::into_inner) = not_synced;
        self.memory.prepared = Some((generation, ready.into()));
        let id = self.memory.session.clone().unwrap_or_default();
        self.memory.standing = session.standing(&link.device, &id, self.cloud_tables()).await?;
        Ok(())
    }

    fn prepared(&self) -> Step<(u64, Arc<[ReadyTable]>)> {
        self.memory.prepared.clone().ok_or(Trouble::Store(StoreError::SchemaChanged))
    }

    /// A cursor is fixed at the horizon before the first page is read, so that what is committed meanwhile is in the
    /// feed beyond it.
    async fn fix_cursor(&mut self, session: &CloudSession, mut link: Link) -> Step<(Link, Option<Look>)> {
        if let Some(cursor) = &link.cursor {
            let look = session.look(cursor, &link.device).await?;
            if look.there && look.whole {
                return Ok((link, Some(look)));
            }
            if look.whole && !look.ends_at_cursor {
                warn!(
                    self.log,
                    "⚠️  The cloud's change feed begins anew, so that it was set back: everything here is compared with it, and \
                     what it lacks is sent again"
                );
                self.ask(CompareKeeping).await?;
            } else {
                warn!(
                    self.log,
                    "⚠️  The cloud's change feed does not reach back to when this device was last there: every table is \
                     compared with it"
                );
                self.ask(FixCursor(None)).await?;
            }
        }
        fail::fail_point!("syncer.registers");
        // In the cloud first: from here on the feed is kept for this device.
        let session_id = self.memory.session.clone().unwrap_or_default();
        let horizon = session.register(&link.device, &session_id).await?;
        self.ask(FixCursor(Some(horizon.clone()))).await?;
        self.within.note(&horizon, 0);
        link.cursor = Some(horizon);
        fail::fail_point!("syncer.registered");
        Ok((link, None))
    }

    // -----------------------------------------------------------------------------------------------------
    // Pull
    // -----------------------------------------------------------------------------------------------------

    async fn pull(&mut self, session: &CloudSession, link: &mut Link, look: Option<Look>) -> Step<()> {
        let mut pulled = self.pull_pages(session, link, look).await;
        if let Err(Trouble::Cloud(failure)) = &mut pulled {
            // What does not fit may do so with fewer rows, at once.
            if failure.class == FailureClass::DataRefused && self.pages.rows() > 1 {
                failure.class = FailureClass::Transient;
            }
            self.pages.halve();
        }
        pulled
    }

    /// `look` is what the feed had a moment ago, if somebody has looked.
    async fn pull_pages(&mut self, session: &CloudSession, link: &mut Link, look: Option<Look>) -> Step<()> {
        let (generation, tables) = self.prepared()?;
        let Some(cursor) = link.cursor.clone() else { return Ok(()) };
        let mut from = Asking { device: link.device.clone(), cursor: cursor.clone() };
        self.retry_set_aside(session, generation, &tables, &from).await?;
        let is_compared = self.snapshots(session, generation, &tables, &from).await?;
        let look = match look {
            Some(look) => look,
            None => session.look(&cursor, &link.device).await?,
        };
        look.require_whole()?;
        let clock = Some(look.clock);
        if is_compared || look.clock.is_news(link.clock_ahead) {
            let is_last = look.settled && !look.news && look.ours.is_none();
            let page = Page { cursor: Some(cursor), clock, is_last, ..Page::default() };
            self.apply(session, generation, &tables, page, &from).await?;
            link.clock_ahead = look.clock.ahead;
        }
        // Our own echo is not taken home page by page.
        if let Some(ours) = look.ours {
            let is_last = look.settled && !look.news;
            let page = Page { cursor: Some(ours.clone()), clock, is_last, ..Page::default() };
            self.apply(session, generation, &tables, page, &from).await?;
            link.cursor = Some(ours);
        }
        if !look.news {
            return Ok(());
        }
        self.memory.news = true;
        // Tables of which the feed names keys that PostgreSQL cannot read as such.
        let mut unreadable = HashSet::new();
        let key_width = tables.iter().map(|ready| ready.table.key.len()).max().unwrap_or(1);
        loop {
            let Some(cursor) = link.cursor.clone() else { return Ok(()) };
            session.begin_read().await?;
            let (read, most) = (self.within.read(&cursor), (self.pages.rows(), key_width));
            let FeedPage { entries, reached, texts, is_last } =
                session.feed_page(&cursor, read, most, &link.device).await?;
            fail::fail_point!("syncer.pulled");
            if entries.is_empty() {
                session.end_read().await?;
                return Ok(());
            }
            let mut wanted: BTreeMap<usize, HashMap<Vec<String>, i64>> = BTreeMap::new();
            let mut emptied = HashSet::new();
            for entry in entries.into_iter().filter(|entry| !entry.own) {
                // A table that is not tracked here, or not yet: its snapshot will show it.
                let Some(at) = tables.iter().position(|t| t.cloud.oid == entry.table_oid) else { continue };
                if !tables[at].receives() {
                    continue;
                }
                match entry.keys {
                    Some(keys)
                        if keys.iter().all(|key| tables[at].has_key_like(key))
                            && !unreadable.contains(&at) =>
                    {
                        let wanted = wanted.entry(at).or_default();
                        for key in keys {
                            let newest = wanted.entry(key).or_default();
                            *newest = (*newest).max(entry.cursor.id);
                        }
                    }
                    // The whole table; or some of its rows, by the keys of before it got another one, or by somebody's nonsense.
                    _ => drop(emptied.insert(at)),
                }
            }
            let has_everything = look.settled && is_last;
            let mut page =
                Page { cursor: reached.clone(), clock, is_last: has_everything, ..Page::default() };
            let mut failed = None;
            for (at, keys) in wanted {
                let read = self.current_rows(session, &tables[at], keys, &mut page).await;
                if let Err(Trouble::Cloud(failure)) = &read
                    && failure.is_about_a_value()
                    && tables[at].table.rule.filter.is_none()
                    && unreadable.insert(at)
                {
                    failed = Some(at);
                    break;
                }
                read?;
            }
            if failed.is_some() {
                // Once more, without these keys.
                session.end_read().await?;
                continue;
            }
            unreadable.clear();
            for at in &emptied {
                self.ask(CompareAnew(tables[*at].table.id)).await?;
            }
            from.cursor = cursor;
            self.apply(session, generation, &tables, page, &from).await?;
            session.end_read().await?;
            if let Some(reached) = reached {
                link.cursor = Some(reached.clone());
                from.cursor = reached;
            }
            self.within.note(&from.cursor, texts);
            self.snapshots(session, generation, &tables, &from).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// The rows that the feed names, as they are now: the feed says which, not what.
    async fn current_rows(
        &self,
        session: &CloudSession,
        ready: &ReadyTable,
        keys: HashMap<Vec<String>, i64>,
        page: &mut Page,
    ) -> Step<()> {
        // Neighbours in the table are neighbours on its pages, on both sides: shorter numbers are smaller ones.
        let mut keys: Vec<(Vec<String>, i64)> = keys.into_iter().collect();
        keys.sort_unstable_by(|(a, _), (b, _)| {
            let parts = a.iter().zip(b).map(|(a, b)| (a.len(), a).cmp(&(b.len(), b)));
            parts.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
        });
        let (texts, seen): (Vec<Vec<String>>, Vec<i64>) = keys.into_iter().unzip();
        let found = session.fetch(&ready.table, &ready.cloud, &ready.table.key, &texts).await;
        let found = self.or_blame_filter(ready, found)?;
        let mut present = HashSet::new();
        for (at, row) in found {
            present.insert(at);
            page.put(ready.pulled(row, seen[at]));
        }
        let mut absent: Vec<usize> = (0..texts.len()).filter(|at| !present.contains(at)).collect();
        let mut keys: Vec<Vec<String>> = absent.iter().map(|at| texts[*at].clone()).collect();
        if ready.table.rule.filter.is_some() && !keys.is_empty() {
            for (place, row) in session.fetch_any(&ready.table, &ready.cloud, &ready.table.key, &keys).await?
            {
                present.insert(absent[place]);
                page.put_stranger(ready.pulled(row, seen[absent[place]]));
            }
            absent.retain(|at| !present.contains(at));
            keys = absent.iter().map(|at| texts[*at].clone()).collect();
        }
        let hidden = session.hidden(&ready.cloud, &keys).await?;
        for (place, at) in absent.into_iter().enumerate() {
            let Some(key) = ready.local_key(&texts[at]) else { continue };
            if hidden.contains(&place) {
                page.hidden.push((ready.table.id, key));
            } else {
                page.rows.push(PulledRow { table: ready.table.id, key, row: None, seen: seen[at] });
            }
        }
        Ok(())
    }

    /// Applies a page; what its foreign keys miss is fetched in the same snapshot of the cloud, until they hold.
    async fn apply(
        &self,
        session: &CloudSession,
        generation: u64,
        tables: &[ReadyTable],
        page: Page,
        from: &Asking,
    ) -> Step<()> {
        let rows = page.rows.len() + page.unfit.len();
        if rows > 0 {
            self.pages.grow(self.options.page_rows_max, rows, page.weight());
        }
        let mut page = page;
        page.alike = tables
            .iter()
            .map(|ready| (ready.table.id, ready.alike()))
            .filter(|(_, c)| !c.is_empty())
            .collect();
        let mut page = Arc::new(page);
        loop {
            match self.ask(ApplyPage { page: page.clone(), generation }).await? {
                Applied::Done { conflicts, aside, revived, .. } => {
                    self.came_back.add(revived, 0);
                    if conflicts > 0 {
                        info!(
                            self.log,
                            "conflicts: {conflicts} row(s) were changed here and in the cloud; see the conflict log"
                        );
                    }
                    if aside > 0 {
                        let first = page
                            .unfit
                            .first()
                            .map_or(String::new(), |unfit| format!("; first: {}", unfit.why));
                        warn!(
                            self.log,
                            "⚠️  {aside} row(s) of the cloud cannot be stored here yet; tried again with every pull{first}"
                        );
                    }
                    return Ok(());
                }
                Applied::Missing(lookups) => {
                    self.look_up(session, tables, lookups, Arc::make_mut(&mut page)).await?;
                }
                Applied::Undecided(rows) => {
                    self.ask_stamps(session, tables, &rows, Arc::make_mut(&mut page), from).await?;
                }
            }
        }
    }

    /// Asks when others changed the rows that are in dispute, in the same snapshot of the cloud: what is not in the feed yet for
    /// somebody's long transaction is told as well.
    async fn ask_stamps(
        &self,
        session: &CloudSession,
        tables: &[ReadyTable],
        rows: &[Disputed],
        page: &mut Page,
        from: &Asking,
    ) -> Step<()> {
        for ready in tables {
            let mut of = rows.iter().filter(|disputed| disputed.row.table == ready.table.id).peekable();
            let Some(Disputed { since, .. }) = of.peek().copied() else { continue };
            let (mut names, mut keys) = (vec![], vec![]);
            for Disputed { row, .. } in of {
                let name = ledger_name(&ready.table, &row.values);
                // What the cloud's type cannot even name nobody has changed there.
                page.stamps.insert(name.clone(), None);
                if let Some(key) = ready.key_texts(&row.columns, &row.values) {
                    names.push(name);
                    keys.push(key);
                }
            }
            if keys.is_empty() {
                continue;
            }
            let Asking { cursor, device } = from;
            let found =
                session.last_changed(&ready.table, &ready.cloud, &keys, cursor, *since, device).await?;
            for (at, stamp) in found {
                page.stamps.insert(names[at].clone(), Some(stamp));
            }
        }
        Ok(())
    }

    /// Fetches rows by what is known of them, each table's by one statement per set of columns. What is not found is absent.
    async fn look_up(
        &self,
        session: &CloudSession,
        tables: &[ReadyTable],
        lookups: Vec<Lookup>,
        page: &mut Page,
    ) -> Step<()> {
        let mut sets: BTreeMap<(usize, Vec<usize>), Vec<Lookup>> = BTreeMap::new();
        for lookup in lookups {
            match tables.iter().position(|ready| ready.table.id == lookup.table) {
                Some(at) => sets.entry((at, lookup.columns.clone())).or_default().push(lookup),
                None => page.absent.push(lookup),
            }
        }
        for ((at, columns), lookups) in sets {
            self.look_up_set(session, &tables[at], &columns, lookups, page).await?;
        }
        Ok(())
    }

    async fn look_up_set(
        &self,
        session: &CloudSession,
        ready: &ReadyTable,
        columns: &[usize],
        lookups: Vec<Lookup>,
        page: &mut Page,
    ) -> Step<()> {
        let table = ready.table.id;
        let by_key = columns == ready.table.key;
        let name = |key: &[Value]| ledger_name(&ready.table, key);
        let rows = page.rows.iter().chain(page.unfit.iter().map(|unfit| &unfit.row));
        let keys = rows.map(|row| (row.table, &row.key)).chain(page.hidden.iter().map(|(t, key)| (*t, key)));
        let mut known: HashSet<String> =
            keys.filter(|(of, _)| *of == table).map(|(_, key)| name(key)).collect();
        // What the cloud's type cannot even name is not there.
        let (texts, asked): (Vec<Vec<String>>, Vec<usize>) = lookups
            .iter()
            .enumerate()
            .filter_map(|(at, lookup)| Some((ready.key_texts(columns, &lookup.values)?, at)))
            .unzip();
        let (mut new, mut is_hidden) = (vec![false; lookups.len()], vec![false; lookups.len()]);
        let mut missing: Vec<usize> = (0..texts.len()).collect();
        if !texts.is_empty() {
            let mut found = vec![false; texts.len()];
            let rows = session.fetch(&ready.table, &ready.cloud, columns, &texts).await;
            for (at, row) in self.or_blame_filter(ready, rows)? {
                found[at] = true;
                let pulled = ready.pulled(row, 0);
                let key = pulled.as_ref().map_or_else(|unfit| &unfit.row.key, |row| &row.key);
                if known.insert(name(key)) {
                    new[asked[at]] = true;
                    page.put(pulled);
                }
            }
            missing.retain(|at| !found[*at]);
            if ready.table.rule.filter.is_some() && !missing.is_empty() {
                let texts: Vec<Vec<String>> = missing.iter().map(|at| texts[*at].clone()).collect();
                for (place, row) in session.fetch_any(&ready.table, &ready.cloud, columns, &texts).await? {
                    let at = missing[place];
                    found[at] = true;
                    let pulled = ready.pulled(row, 0);
                    let key = pulled.as_ref().map_or_else(|unfit| &unfit.row.key, |row| &row.key);
                    if known.insert(name(key)) {
                        new[asked[at]] = true;
                        page.put_stranger(pulled);
                    }
                }
                missing.retain(|at| !found[*at]);
            }
        }
        if by_key {
            let keys: Vec<Vec<String>> = missing.iter().map(|at| texts[*at].clone()).collect();
            for at in session.hidden(&ready.cloud, &keys).await? {
                is_hidden[asked[missing[at]]] = true;
            }
        }
        for ((lookup, new), is_hidden) in lookups.into_iter().zip(new).zip(is_hidden) {
            if new {
                continue;
            }
            let is_known = by_key && !known.insert(name(&lookup.values));
            if by_key && !is_known && is_hidden {
                page.hidden.push((table, lookup.values.clone()));
            } else if by_key && !is_known {
                // Known by its key, and not there: deleted in the cloud as well.
                let key = lookup.values.clone();
                page.rows.push(PulledRow { table, key, row: None, seen: 0 });
            }
            page.absent.push(lookup);
        }
        Ok(())
    }

    async fn retry_set_aside(
        &self,
        session: &CloudSession,
        generation: u64,
        tables: &[ReadyTable],
        from: &Asking,
    ) -> Step<()> {
        let mut lookups = self.ask(GetSetAside).await?;
        lookups.retain(|lookup| tables.iter().any(|t| t.table.id == lookup.table && t.receives()));
        if lookups.is_empty() {
            return Ok(());
        }
        session.begin_read().await?;
        let mut page = Page::default();
        self.look_up(session, tables, lookups, &mut page).await?;
        page.absent.clear();
        self.apply(session, generation, tables, page, from).await?;
        session.end_read().await?;
        Ok(())
    }

    /// Takes the tables that have not been compared with the cloud yet through it, page by page, in key order. Answers whether there were any.
    async fn snapshots(
        &self,
        session: &CloudSession,
        generation: u64,
        tables: &[ReadyTable],
        from: &Asking,
    ) -> Step<bool> {
        let mut any = false;
        for ready in tables.iter().filter(|ready| ready.receives()) {
            let table = ready.table.id;
            let Some(mut after) = self.ask(GetSnapshotPosition(table)).await? else { continue };
            any = true;
            self.tell_first_sync(ready);
            if after.is_none() {
                self.ask(BeginSnapshot(table)).await?;
            }
            while !self.stretch(session, generation, tables, ready, &mut after, from).await? {}
            loop {
                let left = self.ask(GetSnapshotLeftovers { table, limit: self.pages.rows() }).await?;
                let Leftovers { keys, sent_again } = left;
                if keys.is_empty() {
                    self.came_back.add(0, sent_again);
                    break;
                }
                session.begin_read().await?;
                let mut page = Page::default();
                let columns = &ready.table.key;
                let lookups =
                    keys.into_iter().map(|values| Lookup { table, columns: columns.clone(), values });
                self.look_up(session, tables, lookups.collect(), &mut page).await?;
                page.absent.clear();
                self.apply(session, generation, tables, page, from).await?;
                session.end_read().await?;
            }
            self.told.end(&self.log);
        }
        self.say_what_came_back();
        Ok(any)
    }

    /// Takes a table's rows home, page by page, as of one moment: until it is through, which is the answer, or for a while. The next
    /// pages are on their way, and are read, while one is applied: there are no more of them than memory bears.
    async fn stretch(
        &self,
        session: &CloudSession,
        generation: u64,
        tables: &[ReadyTable],
        ready: &ReadyTable,
        after: &mut Option<Vec<String>>,
        from: &Asking,
    ) -> Step<bool> {
        let table = ready.table.id;
        let began = session.begin_pages(&ready.table, &ready.cloud, after.as_deref()).await;
        self.or_blame_filter(ready, began)?;
        let until = Instant::now() + STRETCH;
        let next = async |limit: usize| {
            let found = session.next_page(&ready.cloud, limit).await;
            let found = self.or_blame_filter(ready, found)?;
            let (rows, is_last) = (found.len(), found.len() < limit);
            let key = |row: &Vec<CloudValue>| -> Vec<String> {
                ready.table.key.iter().map(|c| to_text(&row[*c]).unwrap_or_default()).collect()
            };
            let last = found.last().map(key);
            let mut page = Page { snapshot: last.clone().map(|last| (table, last)), ..Page::default() };
            found.into_iter().for_each(|row| page.put(ready.pulled(row, 0)));
            let weight = page.weight();
            Ok::<_, Trouble>((page, weight, last, rows, is_last))
        };
        let (mut flying, mut here) = (FuturesOrdered::new(), VecDeque::new());
        // Until one was here nobody knows what they weigh.
        let (mut ahead, mut through, mut lost) = (1, false, None);
        loop {
            while !through && lost.is_none() && Instant::now() < until && flying.len() + here.len() < ahead {
                flying.push_back(next(self.pages.rows()));
            }
            let arrived = match here.pop_front() {
                Some(arrived) => Ok(arrived),
                None if lost.is_some() => break,
                None => match flying.next().await {
                    Some(arrived) => arrived,
                    None => break,
                },
            };
            let (page, weight, last, rows, is_last) = match arrived {
                Ok(arrived) => arrived,
                Err(trouble) => {
                    lost = Some(trouble);
                    break;
                }
            };
            through |= is_last;
            let Some(last) = last else { continue };
            // Where few fulfil a condition the server may look for long.
            let few = if ready.table.rule.filter.is_none() { AHEAD_MAX } else { 1 };
            ahead = (PORTION_BYTES / weight.max(1)).clamp(1, few);
            let mut applied = pin!(self.apply(session, generation, tables, page, from));
            loop {
                tokio::select! {
                    biased;
                    applied = &mut applied => break applied?,
                    // What waits for its turn is read meanwhile: the server is not kept waiting, nor an answer behind it.
                    Some(arrived) = flying.next(), if lost.is_none() && !flying.is_empty() => match arrived {
                        Ok(arrived) => {
                            here.push_back(arrived);
                            // Those that were asked for when rows were light, and are not.
                            if here.iter().map(|(_, weight, ..)| weight).sum::<usize>() > AHEAD_BYTES {
                                let what = "the rows further on are much heavier than those before them";
                                lost = Some(CloudFailure::new(FailureClass::Transient, what).into());
                            }
                        }
                        // What is here is here, and need not come again.
                        Err(trouble) => lost = Some(trouble),
                    },
                }
            }
            *after = Some(last);
            // A question of its own would wait behind the pages that are on their way.
            self.tell_page(session, ready, rows, !is_last && flying.is_empty()).await?;
        }
        if let Some(trouble) = lost {
            return Err(trouble);
        }
        drop(flying);
        session.end_read().await?;
        Ok(through)
    }

    // -----------------------------------------------------------------------------------------------------
    // Flush
    // -----------------------------------------------------------------------------------------------------

    /// Flushes what was dirty when the cycle began. What comes meanwhile is the next cycle's, unless this one takes long over the
    /// rows of one table.
    async fn flush(&mut self, session: &CloudSession, link: &mut Link, turn: &mut Turn) -> Step<Flushed> {
        let (generation, tables) = self.prepared()?;
        let sends = |ready: &&ReadyTable| ready.table.rule.direction.sends();
        let eligible: Vec<i64> = tables.iter().filter(sends).map(|ready| ready.table.id).collect();
        let pairs: Vec<(Table, CloudTable)> =
            tables.iter().map(|ready| (ready.table.clone(), ready.cloud.clone())).collect();
        let mut width = 1;
        let mut unpulled = 0;
        loop {
            let (eligible, whole) = (eligible.clone(), width > 1);
            let window = self.windows.rows();
            let Turn { upto, apart, .. } = *turn;
            let room = Room { eligible: eligible.clone(), upto, rows_max: window };
            let rows_max =
                if whole { window.min(WIDE_WINDOW) * width } else { window.min(self.noted_at_once()) };
            let note = NoteRound { rows_max, generation, eligible, upto, whole, apart };
            let Some(noted) = self.ask(note).await? else { return Ok(Flushed::Everything) };
            turn.upto.get_or_insert(noted.epoch);
            let may_widen = width < WIDTH_MAX && !turn.narrow;
            let timer = RoundTimer::begin(self.parts.timings.clone());
            let round = RoundUnderWay {
                session,
                tables: &tables,
                pairs: &pairs,
                noted,
                room,
                is_smallest: window == 1 && !whole,
                narrow: turn.narrow,
                window: Window::default(),
                conflicts: vec![],
                carried: Carried::new(timer),
            };
            let carried = Box::pin(self.carry(round, link, may_widen)).await;
            if let Err(Trouble::Cloud(_)) = &carried {
                self.windows.halve();
            }
            let carried = carried?;
            let took = carried.timer.elapsed();
            // Counted without what is told of it.
            drop(carried.timer);
            turn.apart |= carried.slowly || carried.crowded.is_some();
            if carried.slowly {
                turn.upto = None;
            }
            turn.too_slow = if carried.too_slow.is_some() && !carried.parked { turn.too_slow + 1 } else { 0 };
            let others_first = carried.others_first;
            if let Some((rows, failure)) = carried.too_slow {
                self.windows.was_slow(rows);
                turn.narrow |= whole;
                turn.too_slow_in_all += 1;
                if turn.too_slow >= TOO_SLOW_MAX || turn.too_slow_in_all >= TOO_SLOW_IN_ALL_MAX {
                    return Err(Trouble::Cloud(failure));
                }
            } else if let Some(accepted) = carried.crowded {
                self.windows.crowd(smaller(window, accepted));
            } else if !carried.slowly {
                self.windows.adapt(self.options.window_rows_max, carried.rows, carried.bytes, took);
            } else if self.windows.rows() > FIRST_PORTION {
                self.windows.halve();
            }
            if carried.committed {
                turn.in_vain = 0;
            } else if others_first {
                turn.in_vain += 1;
                turn.narrow |= whole;
                if turn.in_vain >= IN_VAIN_MAX {
                    return Ok(Flushed::Everything);
                }
            }
            self.tell_flush();
            self.tell_round(carried.rows).await;
            // Each look at a receipt is one at the journals: not with every round of a long flush, in which most wait for its end.
            if carried.rows < window || carried.then != Then::GoOn || carried.parked {
                self.tell_receipts();
            }
            unpulled += carried.rows;
            match carried.then {
                Then::GoOn if unpulled >= UNPULLED_MAX => return Ok(Flushed::PullFirst),
                Then::GoOn => width = 1,
                Then::Widen => width = (width * 4).min(WIDTH_MAX),
                Then::PullFirst => return Ok(Flushed::PullFirst),
                // Tried again by the next cycle, when more may have come to help.
                Then::Later => return Ok(Flushed::Everything),
            }
        }
    }

    /// The most rows of a part.
    fn noted_at_once(&self) -> usize {
        NOTED_AT_ONCE.min(self.options.window_rows_max.div_ceil(PARTS_MIN))
    }

    /// Reads a part of what is in flight, as far as it is not too heavy, and encodes it.
    async fn read_part(
        &self,
        tables: &Arc<[ReadyTable]>,
        noted: Noted,
        part: Part,
        bytes_max: usize,
    ) -> Step<Read> {
        let (readers, tables, row_bytes_max) =
            (self.parts.readers.clone(), tables.clone(), self.row_bytes_max());
        let read = actix_rt::task::spawn_blocking(move || {
            let InFlight { rows, bytes, rest } = readers.read_part(&noted, part, bytes_max)?;
            let count = rows.iter().map(Vec::len).sum();
            let window = Window::encode(&tables, &noted, rows, row_bytes_max);
            Ok::<_, StoreError>(Read { window, rows: count, bytes, rest })
        });
        Ok(read.await.map_err(|error| StoreError::Io(error.to_string()))??)
    }

    /// Where a part was too heavy to be read as a whole, the rest waits again, with all that came after the part.
    async fn lighten(
        &self,
        tables: &Arc<[ReadyTable]>,
        noted: &mut Noted,
        part: Part,
        bytes_max: usize,
        mut read: Read,
    ) -> Step<Read> {
        while let Some(rest) = read.rest {
            // The row that is heavy may be in it, and is not in memory twice.
            drop(read.window);
            self.ask(TrimRound { round: noted.id.clone(), part, rest }).await?;
            (noted.complete, noted.narrow, noted.grows) = (false, true, None);
            read = self.read_part(tables, noted.clone(), part, bytes_max).await?;
        }
        Ok(read)
    }

    /// Notes the next rows of a round that can grow. Nothing where it cannot, or has to wait for others.
    async fn grow(&self, noted: &mut Noted, room: &Room, rows_max: usize) -> Step<Option<Part>> {
        if rows_max == 0 {
            return Ok(None);
        }
        let Some(table) = noted.grows.take() else { return Ok(None) };
        let grow = GrowRound {
            round: noted.id.clone(),
            generation: noted.generation,
            eligible: room.eligible.clone(),
            table,
            upto: room.upto.unwrap_or(noted.epoch),
            rows_max,
        };
        let Some(Grown { part, grows, complete }) = self.ask(grow).await? else { return Ok(None) };
        fail::fail_point!("syncer.grown");
        (noted.complete, noted.grows) = (complete, grows);
        Ok(Some(part))
    }

    fn row_bytes_max(&self) -> usize {
        self.parts.cloud.as_ref().map_or(usize::MAX, Cloud::message_bytes_max)
    }

    /// The row of each of these once more, as it was sent: a round keeps no more of its rows than what most of them need.
    async fn read_again(
        &self,
        round: &RoundUnderWay<'_>,
        items: impl Iterator<Item = usize>,
    ) -> Step<Vec<Option<RoundRow>>> {
        let wanted: Vec<_> = items.map(|item| round.window.origin(round.pairs, item)).collect();
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let (readers, of) = (self.parts.readers.clone(), round.noted.clone());
        let read = actix_rt::task::spawn_blocking(move || readers.read_again(&of, &wanted));
        Ok(read.await.map_err(|error| StoreError::Io(error.to_string()))??)
    }

    /// Sends a round while it grows: while the server is at work on one part of it, the next is read and sent, and the one
    /// behind that is noted. Ends when the window is full, or with rows that cannot be sent as they are: the round has not been
    /// judged then. Either way **all that is in flight is in the window**: what was noted ahead is read before it ends, or waits
    /// again.
    async fn send_growing(
        &self,
        frame: RoundFrame<'_>,
        round: &mut RoundUnderWay<'_>,
    ) -> Step<Option<Judged>> {
        let RoundUnderWay { session, tables, noted, room, window, conflicts, carried, .. } = round;
        let mut open = session.open_round(frame).await?;
        let mut sent = vec![Arc::new(std::mem::take(&mut window.items).into_whole())];
        open.send(sent[0].clone()).await;
        // In growing statements, so that the server has something to do from the beginning.
        let statement = |number: usize| number.min(SENT_AT_ONCE) * self.noted_at_once();
        // What becomes one statement comes in one local transaction: each costs an fsync.
        let wanted = |sent: usize, held: usize, rows: usize| {
            let full = if held < statement(sent) { statement(sent) - held } else { statement(sent + 1) };
            full.min(room.rows_max.saturating_sub(rows))
        };
        let mut good = true;
        let mut held = vec![];
        // What was noted and not read yet, and how many rows that was to be.
        let mut ahead = None;
        loop {
            let may_grow = good && carried.bytes < PORTION_BYTES;
            if ahead.is_none() && may_grow {
                let rows_max = wanted(sent.len(), held.len(), carried.rows);
                ahead = self.grow(noted, room, rows_max).await?.map(|part| (part, rows_max));
            }
            let Some((part, expected)) = ahead.take() else { break };
            let bytes_max = PORTION_BYTES.saturating_sub(carried.bytes);
            let next = wanted(sent.len(), held.len() + expected, carried.rows + expected);
            let next = if may_grow { next } else { 0 };
            let reading = self.read_part(tables, noted.clone(), part, bytes_max);
            let (read, grown) = futures_util::future::join(reading, self.grow(noted, room, next)).await;
            let (read, grown) = (read?, grown?);
            ahead = grown.filter(|_| read.rest.is_none()).map(|part| (part, next));
            let read = self.lighten(tables, noted, part, bytes_max, read).await?;
            carried.add(&read);
            good &= read.window.refusals.is_empty();
            held.append(&mut read.window.items.into_whole());
            window.refusals.extend(read.window.refusals);
            if good && held.len() >= statement(sent.len()) {
                sent.push(Arc::new(std::mem::take(&mut held)));
                open.send(sent[sent.len() - 1].clone()).await;
            }
        }
        if !held.is_empty() {
            sent.push(Arc::new(held));
            if good {
                open.send(sent[sent.len() - 1].clone()).await;
            }
        }
        fail::fail_point!("syncer.sent");
        let judged = if good { Some(open.judge(conflicts).await) } else { None };
        // Nobody else has them any more.
        window.items = sent.into();
        Ok(judged)
    }

    /// Takes one noted round to its end: acknowledged, or put back, with the guilty rows parked. Answers what became of it.
    async fn carry(&self, mut round: RoundUnderWay<'_>, link: &mut Link, may_widen: bool) -> Step<Carried> {
        let readers = self.parts.readers.clone();
        let conflicts = actix_rt::task::spawn_blocking(move || readers.read_conflicts());
        let first = Part::default();
        let read = self.read_part(round.tables, round.noted.clone(), first, PORTION_BYTES).await?;
        let read = self.lighten(round.tables, &mut round.noted, first, PORTION_BYTES, read).await?;
        let conflicts = conflicts.await.map_err(|error| StoreError::Io(error.to_string()))??;
        round.conflicts = conflicts.into_iter().map(|fields| ConflictRow { fields }).collect();
        round.carried.add(&read);
        round.window = read.window;
        // What had to be left behind may be what the others wait for; it cannot come along, however often it is tried.
        let too_heavy = round.noted.retry && round.noted.narrow;
        fail::fail_point!("syncer.encoded");
        let waiting = WaitingIn { readers: self.parts.readers.clone(), noted: Arc::new(round.noted.clone()) };
        let mut may_grow = true;
        loop {
            if !round.window.refusals.is_empty() {
                // What does not fit was compared with the columns as they were prepared.
                let shape = |ready: &ReadyTable| (ready.table.id, ready.cloud.shape.clone());
                let shapes = round.tables.iter().map(shape).collect();
                let refusals = std::mem::take(&mut round.window.refusals);
                self.park_of(&mut round, refusals, shapes).await?;
                may_grow = false;
            }
            if round.window.items.is_empty() && round.conflicts.is_empty() {
                // The cloud has all of it, but for what is parked.
                let end = if round.carried.parked { RoundEnd::Refused } else { RoundEnd::Committed };
                round.carried.timer.ends(end);
                self.ask(DissolveRound { round: round.noted.id.clone() }).await?;
                return Ok(round.carried);
            }
            if !std::mem::take(&mut may_grow) {
                round.noted.grows = None;
            }
            let (id, default_cursor) = (round.noted.id.clone(), Cursor::default());
            let frame = RoundFrame {
                device: &link.device,
                session: self.memory.session.as_deref().unwrap_or_default(),
                id: &id,
                previous: link.last_round.as_deref(),
                cursor: link.cursor.as_ref().unwrap_or(&default_cursor),
                tables: round.pairs,
                waiting: &waiting,
            };
            let session = round.session;
            let Some(judged) = Box::pin(self.send_growing(frame, &mut round)).await? else {
                session.give_up_round().await?;
                continue;
            };
            let may_widen = may_widen && !round.noted.complete;
            let outcome =
                Box::pin(session.conclude(frame, &round.window.items, &round.conflicts, may_widen, judged))
                    .await?;
            match outcome {
                RoundOutcome::Committed { hits, staying, unasked, caused_more } => {
                    if caused_more {
                        round.carried.then = Then::PullFirst;
                    }
                    return self.committed(round, link, hits, staying, unasked).await;
                }
                RoundOutcome::TooNarrow => {
                    round.carried.then = Then::Widen;
                    return self.put_back(round, vec![], RoundEnd::Refused).await;
                }
                RoundOutcome::TakesAlong => {
                    // The deletions wait; everything else goes on. Somebody's long transaction may hold back for hours what
                    // the feed has to show first.
                    let items = 0..round.window.items.len();
                    let deletions = items.filter(|item| round.window.items[*item].op == Op::Delete);
                    let wait = deletions.map(|item| round.takes_along(item)).collect();
                    round.carried.then = if round.noted.retry { Then::Later } else { Then::PullFirst };
                    return self.put_back(round, wait, RoundEnd::Refused).await;
                }
                RoundOutcome::TooSlow(failure) => {
                    let rows = round.window.items.len();
                    let mut wait = vec![];
                    // No round is smaller than this one, whatever had to come along.
                    if rows == 1 || rows > 0 && round.is_smallest {
                        wait = (0..rows).map(|item| round.too_slow(item, &failure)).collect();
                    } else {
                        self.say_rounds_are_too_slow();
                    }
                    // A row that took too long alone, when everybody else had had his turn, is its own reason.
                    if round.noted.retry {
                        self.park_refused(&mut round, &std::mem::take(&mut wait)).await?;
                    }
                    round.carried.too_slow = Some((rows, failure));
                    (round.carried.slowly, round.carried.then) = (true, Then::PullFirst);
                    return self.put_back(round, wait, RoundEnd::Failed).await;
                }
                RoundOutcome::Refused { rows: refused, mut crowded, mut early, accepted, unfinished } => {
                    // Who stands in the way of a unique value, or is somebody's missing parent, may still be in the
                    // journal: these wait for the rest of it before they are parked, as far as the cloud takes so much.
                    round.carried.others_first = !crowded.is_empty() || !early.is_empty();
                    let is_too_much = !crowded.is_empty() || !early.is_empty() && round.noted.retry;
                    round.carried.crowded = Some(accepted).filter(|_| is_too_much);
                    let decides = round.noted.complete || round.narrow && round.noted.retry;
                    let is_last = decides && !round.carried.others_first || too_heavy;
                    let (park, mut wait): (Vec<_>, Vec<_>) =
                        refused.into_iter().partition(|it| is_last || !needs_others(&it.sqlstate));
                    self.park_refused(&mut round, &park).await?;
                    if too_heavy && !park.is_empty() {
                        // The rest would bring along again what was parked for it: not more than once per cycle.
                        round.carried.then = Then::Later;
                    }
                    if let Some(first) = crowded.first() {
                        self.say_numbers_are_refused(&round, first);
                    }
                    wait.append(&mut crowded);
                    wait.append(&mut early);
                    // Everybody else's rows, and what others wrote, come before the search goes on among these; where there is
                    // nothing else, it goes on at once.
                    round.carried.slowly = unfinished && !is_last && !round.noted.retry;
                    if wait.is_empty() && !round.carried.slowly {
                        round.window.remove(&park);
                        continue;
                    }
                    if round.carried.slowly {
                        round.carried.then = Then::PullFirst;
                    } else if round.noted.retry && !round.carried.others_first {
                        round.carried.then = Then::Later;
                    }
                    return self.put_back(round, wait, RoundEnd::Refused).await;
                }
            }
        }
    }

    /// A round took effect, but for these rows.
    async fn committed(
        &self,
        round: RoundUnderWay<'_>,
        link: &mut Link,
        hits: Vec<CloudHit>,
        staying: Vec<usize>,
        unasked: Vec<usize>,
    ) -> Step<Carried> {
        let sent = self.read_again(&round, hits.iter().map(|hit| hit.item)).await?;
        let RoundUnderWay { tables, pairs, noted, window, mut carried, .. } = round;
        carried.timer.ends(RoundEnd::Committed);
        carried.committed = true;
        if !unasked.is_empty() {
            carried.rows -= unasked.len();
            self.say_the_search_takes_long();
            // What others wrote, and other tables, come before the rest of these.
            (carried.slowly, carried.then) = (true, Then::PullFirst);
        }
        let stay: Vec<usize> = staying.into_iter().chain(unasked).collect();
        let left: HashSet<usize> = hits.iter().map(|hit| hit.item).chain(stay.iter().copied()).collect();
        let hits = hits.into_iter().zip(sent).map(|(hit, sent)| {
            let (table, key) = window.origin(pairs, hit.item);
            let ready = &tables[window.items[hit.item].table];
            let row = hit.row.map(|cloud| ready.as_written(ready.local_row(cloud), sent.as_ref()));
            LeftOut::Hit(Hit { table, key, row, seen: hit.seen, stamp: hit.stamp })
        });
        let as_they_were = stay.into_iter().map(|item| {
            let (table, key) = window.origin(pairs, item);
            LeftOut::AsItWas { table, key }
        });
        let left_out: Vec<LeftOut> = hits.chain(as_they_were).collect();
        self.count_propagated(&window, &left, link.clock_ahead);
        // So many small pieces of memory take a while to be let go, and the next round waits for this one.
        drop(actix_rt::task::spawn_blocking(move || drop(window)));
        self.acknowledge(noted.id.clone(), left_out, noted.generation).await?;
        link.last_round = Some(noted.id);
        Ok(carried)
    }

    /// Nothing took effect: the round waits again, these rows of it until the rest of the journal has been tried, to which the others of
    /// it belong from now on where the cloud took them.
    async fn put_back(
        &self,
        round: RoundUnderWay<'_>,
        wait: Vec<CloudRefusal>,
        end: RoundEnd,
    ) -> Step<Carried> {
        let refused = wait.iter().map(|refusal| round.refusal(refusal, None)).collect();
        let RoundUnderWay { noted, mut carried, .. } = round;
        carried.timer.ends(end);
        self.ask(PutBackRound { round: noted.id, refused, others_first: carried.others_first }).await?;
        Ok(carried)
    }

    /// Parks rows of a round that PostgreSQL refuses, with what was sent of them.
    async fn park_refused(&self, round: &mut RoundUnderWay<'_>, refused: &[CloudRefusal]) -> Step<()> {
        if refused.is_empty() {
            return Ok(());
        }
        let sent = self.read_again(round, refused.iter().map(|refusal| refusal.item)).await?;
        let refusals = refused.iter().zip(sent).map(|(refusal, sent)| {
            let ready = &round.tables[round.window.items[refusal.item].table];
            let values = sent.and_then(|sent| sent.row).map(|values| ready.row_json(&values));
            round.refusal(refusal, values)
        });
        let refusals = refusals.collect();
        let shape = |refusal: &CloudRefusal| {
            (round.window.origin(round.pairs, refusal.item).0, refusal.shape.clone())
        };
        let shapes = refused.iter().map(shape).collect();
        self.park_of(round, refusals, shapes).await
    }

    /// Parks rows of a round; what is left of it goes on under another id.
    async fn park_of(
        &self,
        round: &mut RoundUnderWay<'_>,
        refusals: Vec<Refusal>,
        shapes: HashMap<i64, String>,
    ) -> Step<()> {
        let id = std::mem::take(&mut round.noted.id);
        round.noted.id = self.park(round.tables, id, refusals, shapes).await?;
        round.carried.parked = true;
        Ok(())
    }

    /// The cloud has the round, but for some of its rows, which leave it first: it leaves the file, in as many pieces as those who
    /// write meanwhile need.
    async fn acknowledge(&self, round: String, left_out: Vec<LeftOut>, generation: u64) -> Step<()> {
        let mut left_out = left_out.into_iter();
        loop {
            let rows: Vec<LeftOut> = left_out.by_ref().take(TAKEN_OUT_AT_ONCE).collect();
            if rows.is_empty() {
                break;
            }
            self.ask(TakeOut { round: round.clone(), rows, generation }).await?;
            fail::fail_point!("syncer.taken_out");
        }
        let clear = ClearRound { round: round.clone(), rows_max: CLEARED_AT_ONCE };
        let mut cleared = self.ask(AcknowledgeRound { round, rows_max: CLEARED_AT_ONCE }).await?;
        while !cleared {
            fail::fail_point!("syncer.cleared");
            cleared = self.ask(clear.clone()).await?;
        }
        Ok(())
    }

    /// Once for each table and code. What PostgreSQL said may have values in it, which the log never has.
    fn say_numbers_are_refused(&self, round: &RoundUnderWay<'_>, refusal: &CloudRefusal) {
        let table = &round.pairs[round.window.items[refusal.item].table].0.name;
        self.once(format!(
            "table {table}: the cloud refuses rows together that it takes in smaller numbers (SQLSTATE {}); they go in smaller \
             rounds, which takes longer: is there a trigger that has something against a number of rows?",
            refusal.sqlstate
        ));
    }

    /// For whoever wonders why a backlog shrinks slowly, and nothing is parked.
    fn say_the_search_takes_long(&self) {
        self.once(
            "the cloud refuses rows of a round, and it takes long to find out which: what it accepts arrives meanwhile, the rest in \
             later rounds"
                .to_owned(),
        );
    }

    fn say_rounds_are_too_slow(&self) {
        self.once(
            "the cloud takes longer for a round than cloud.statement_timeout_s allows: rounds become smaller; a row that takes too \
             long alone waits, and everything else goes on"
                .to_owned(),
        );
    }

    /// The rows of a round that the cloud has now, but for those that left it.
    fn count_propagated(&self, window: &Window, left: &HashSet<usize>, clock_ahead: i64) {
        let now = now_us() + clock_ahead;
        window.items.for_each(|at, item| {
            // Without a stamp, nobody knows when it was written.
            if item.stamp > 0 && !left.contains(&at) {
                self.parts.timings.propagation.observe_since(item.stamp, now);
            }
        });
    }

    fn tell_receipts(&self) {
        if let Some(syncer) = self.syncer.upgrade() {
            syncer.do_send(RoundSettled);
        }
    }
}

/// Who asks the feed about rows in dispute, and from where on it does not know them.
struct Asking {
    device: String,
    cursor: Cursor,
}

/// After so many rows a flush pulls: the check of each round looks at the feed beyond the cursor, our own entries included. And it
/// is remembered of no more rows than that and one round's that they were sent (`SENT_MAX`).
const UNPULLED_MAX: usize = 300_000;

/// How many windows a round takes at most when its rows need others.
const WIDTH_MAX: usize = 16;

/// The window that is taken so many times: such a round is noted, and read, as a whole.
const WIDE_WINDOW: usize = 2000;

/// When to look again for what a look did not find: after a wait that doubles.
fn again(last: Option<(Instant, Duration)>, pace: &Pace) -> (Instant, Duration) {
    let doubled = last.map_or(pace.pull_interval, |(_, last)| last * 2);
    let wait = doubled.min(pace.max_retry_delay);
    (Instant::now() + wait, wait)
}

/// What a cycle flushes.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    /// What was dirty in this epoch, or before.
    upto: Option<i64>,
    /// Whether the rows of one table hold it up, so that the others go in rounds of their own.
    apart: bool,
    /// Whether a round that was widened took longer than a statement may, or was too large a number of rows: none is widened any more.
    narrow: bool,
    /// How many rounds came to nothing since the last that took effect, but that others of them go first.
    in_vain: u32,
    /// How many rounds in a row took longer than a statement may, and parked nobody for it.
    too_slow: u32,
    /// How many did in all.
    too_slow_in_all: u32,
}

/// After so many of them the cycle ends, with whatever is left: every window was tried by then.
const IN_VAIN_MAX: u32 = 64;

/// After so many of them in a row it is the cloud as a whole that is slow, or locked: that is waited for, as after any failure.
const TOO_SLOW_MAX: u32 = 5;

/// And after so many, whatever was between them: rows that are parked for it are due again before very many others were tried.
const TOO_SLOW_IN_ALL_MAX: u32 = 16;

/// How far a flush came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flushed {
    /// Nothing waits any more, or only what waits for others.
    Everything,
    /// The cloud did more than it was told: that has to be pulled before anything is built on it. Or it is time to.
    PullFirst,
}

/// What has to follow a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next one.
    GoOn,
    /// The same rows with more around them.
    Widen,
    /// A pull.
    PullFirst,
    /// Nothing in this cycle: what is left was tried with everything that there is.
    Later,
}

/// A round on its way to its end.
struct RoundUnderWay<'a> {
    session: &'a CloudSession,
    tables: &'a Arc<[ReadyTable]>,
    pairs: &'a [(Table, CloudTable)],
    noted: Noted,
    room: Room,
    /// No round has fewer rows, but for what they need.
    is_smallest: bool,
    /// Wider rounds are not taken.
    narrow: bool,
    window: Window,
    /// What the cloud is told of besides.
    conflicts: Vec<ConflictRow>,
    carried: Carried,
}

impl RoundUnderWay<'_> {
    fn refusal(&self, refused: &CloudRefusal, values: Option<String>) -> Refusal {
        let (table, key) = self.window.origin(self.pairs, refused.item);
        Refusal {
            table,
            key,
            sqlstate: Some(refused.sqlstate.clone()),
            message: refused.message.clone(),
            constraint: refused.constraint.clone(),
            values,
        }
    }

    /// A row of a round that cannot be smaller took the cloud too long.
    fn too_slow(&self, item: usize, failure: &CloudFailure) -> CloudRefusal {
        CloudRefusal {
            item,
            sqlstate: QUERY_CANCELED.to_owned(),
            message: failure.detail.clone(),
            constraint: None,
            shape: self.tables[self.window.items[item].table].cloud.shape.clone(),
        }
    }

    /// A deletion that waits, because it would take rows along. Nobody is told of it.
    fn takes_along(&self, item: usize) -> CloudRefusal {
        let nothing = String::new;
        CloudRefusal { item, sqlstate: nothing(), message: nothing(), constraint: None, shape: nothing() }
    }
}

/// What became of one round.
struct Carried {
    rows: usize,
    bytes: usize,
    parked: bool,
    /// Whether the rows of its table go on in several rounds, between which everybody else has his turn: the search among them
    /// takes long, or the cloud takes too long over them.
    slowly: bool,
    /// Where rows were refused only together with others: how many of these were accepted.
    crowded: Option<usize>,
    /// Whether rows were refused beside others that were accepted, and that go before them.
    others_first: bool,
    committed: bool,
    /// Where a statement took longer than it may: how many rows there were, and what the server said.
    too_slow: Option<(usize, CloudFailure)>,
    timer: RoundTimer,
    then: Then,
}

impl Carried {
    fn new(timer: RoundTimer) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            parked: false,
            slowly: false,
            crowded: None,
            others_first: false,
            too_slow: None,
            committed: false,
            timer,
            then: Then::GoOn,
        }
    }

    fn add(&mut self, read: &Read) {
        self.rows += read.rows;
        self.bytes += read.bytes;
    }
}

/// A part of a round, read and encoded.
struct Read {
    window: Window,
    rows: usize,
    bytes: usize,
    /// What was too heavy, if anything.
    rest: Option<Rest>,
}

/// What waits in the file of a round.
#[derive(Debug)]
struct WaitingIn {
    readers: Readers,
    noted: Arc<Noted>,
}

impl Waiting for WaitingIn {
    fn waits(&self, rows: Vec<(i64, Vec<Value>)>) -> BoxFuture<'_, Result<bool, CloudFailure>> {
        let (readers, noted) = (self.readers.clone(), self.noted.clone());
        let asked = actix_rt::task::spawn_blocking(move || readers.any_waits(&noted, &rows));
        Box::pin(async move {
            // Whatever is the matter with the file, the next cycle finds it.
            let failed = |error: &dyn std::fmt::Display| {
                CloudFailure::new(FailureClass::Transient, format!("the round stops: {error}"))
            };
            asked.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
        })
    }
}

/// What a round may grow to.
struct Room {
    eligible: Vec<i64>,
    upto: Option<i64>,
    rows_max: usize,
}

/// What a value of a row takes in a message besides its bytes, where it is a number in PostgreSQL's text.
const CELL_BYTES: usize = 32;

/// A round's rows in wire form.
#[derive(Default)]
struct Window {
    items: RoundItems,
    /// Rows with a value that does not fit its column.
    refusals: Vec<Refusal>,
}

impl Window {
    /// A row of more bytes than `row_bytes_max` is refused here: no device would take it from the cloud again.
    fn encode(tables: &[ReadyTable], noted: &Noted, rows: Vec<Vec<RoundRow>>, row_bytes_max: usize) -> Self {
        let (mut items, mut refusals) = (vec![], vec![]);
        for (table, rows) in noted.tables.iter().zip(rows) {
            let Some(at) = tables.iter().position(|ready| ready.table.id == table.id) else { continue };
            for row in rows {
                let bytes = tables[at].weighs_there(row.row.as_deref().unwrap_or(&[]));
                match tables[at].item(at, &row) {
                    Ok(Some(_)) if bytes > row_bytes_max => refusals.push(Refusal {
                        table: table.id,
                        sqlstate: None,
                        message: format!("its {bytes} bytes are more than cloud.message_bytes_max allows"),
                        constraint: None,
                        // Nobody reads that much.
                        values: None,
                        key: row.key,
                    }),
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => {}
                    Err(misfit) => refusals.push(Refusal {
                        table: table.id,
                        sqlstate: None,
                        message: misfit.to_string(),
                        constraint: None,
                        values: row.row.as_deref().map(|values| tables[at].row_json(values)),
                        key: row.key,
                    }),
                }
            }
        }
        Self { items: items.into(), refusals }
    }

    /// The table and the key by which SQLite knows a row.
    fn origin(&self, pairs: &[(Table, CloudTable)], item: usize) -> (i64, Vec<Value>) {
        let item = &self.items[item];
        let pair = &pairs[item.table];
        (pair.0.id, item.local_key(pair))
    }

    fn remove(&mut self, refused: &[CloudRefusal]) {
        let gone: HashSet<usize> = refused.iter().map(|refusal| refusal.item).collect();
        let kept = |at: &mut std::ops::Range<usize>| at.next().is_some_and(|at| !gone.contains(&at));
        let mut items = std::mem::take(&mut self.items).into_whole();
        let mut at = 0..items.len();
        items.retain(|_| kept(&mut at));
        self.items = items.into();
    }
}

impl ReadyTable {
    fn new(table: Table, cloud: CloudTable, finds: Vec<bool>) -> Self {
        let affinities: Vec<Affinity> = table.columns.iter().map(Column::affinity).collect();
        let kept = affinities.iter().zip(&cloud.columns);
        let kept =
            kept.map(|(affinity, column)| column.generated || is_kept(*affinity, &column.kind)).collect();
        Self { table, cloud, finds, affinities, kept }
    }

    fn carried(&self, column: usize, value: &Value) -> Result<CloudValue, Misfit> {
        let (affinity, kind) = (self.affinities[column], &self.cloud.columns[column].kind);
        if self.finds[column] { key_to_cloud(value, affinity, kind) } else { to_cloud(value, affinity, kind) }
    }

    /// What a row takes in a message from the cloud, at most: PostgreSQL writes some values with blanks between their parts.
    fn weighs_there(&self, row: &[Value]) -> usize {
        let weighs = |(value, column): (&Value, &CloudColumn)| match (column.kind.wire(), &column.kind) {
            (Wire::Text, CloudType::Text) => value.size(),
            (Wire::Text, _) => value.size() * 3 / 2,
            _ => value.size(),
        };
        row.iter().zip(&self.cloud.columns).map(|cell| CELL_BYTES + weighs(cell)).sum()
    }

    /// The values of some columns in PostgreSQL's text; nothing where the cloud's type cannot name one.
    fn key_texts(&self, columns: &[usize], values: &[Value]) -> Option<Vec<String>> {
        let text = |(c, value): (&usize, &Value)| {
            let carried = self.carried(*c, value).ok().and_then(|v| to_text(&v));
            // A key that cannot be kept here as it is was set aside in the cloud's text.
            carried.or_else(|| as_text_key(value, &self.cloud.columns[*c].kind))
        };
        columns.iter().zip(values).map(text).collect()
    }

    /// The columns that may be written otherwise here than in the cloud.
    fn alike(&self) -> Vec<(usize, CloudType)> {
        (0..self.table.columns.len())
            .filter(|c| !self.finds[*c] && self.cloud.columns[*c].kind.has_notations())
            .map(|c| (c, self.cloud.columns[c].kind.clone()))
            .collect()
    }

    /// The cloud's row in the words of this file, where it says the same as what was sent, or what that was before.
    fn as_written(&self, mut cloud: Vec<Value>, sent: Option<&RoundRow>) -> Vec<Value> {
        let Some(RoundRow { entry, row: local, .. }) = sent else { return cloud };
        let local = local.as_deref();
        for (c, kind) in self.alike() {
            if local.is_some_and(|local| local[c].identical(&cloud[c])) {
                continue;
            }
            let known =
                [local.map(|local| &local[c]), (entry.known && entry.dirty[c]).then(|| &entry.base[c])];
            if let Some(known) = known.into_iter().flatten().find(|known| alike(&kind, known, &cloud[c])) {
                cloud[c].clone_from(known);
            }
        }
        cloud
    }

    /// A row of the cloud as it will be here, or its key and why it cannot be.
    fn pulled(&self, row: Vec<CloudValue>, seen: i64) -> Result<PulledRow, Unfit> {
        let table = self.table.id;
        let mut unfit = None;
        let row: Vec<Value> = row
            .into_iter()
            .enumerate()
            .map(|(c, value)| {
                let (affinity, kind) = (self.affinities[c], &self.cloud.columns[c].kind);
                if self.kept[c] {
                    return from_cloud(value, affinity, kind);
                }
                // As it is there, for a key that does not fit, and for the log of what is overwritten unread.
                let text = self.table.is_key(c) || kind.wire() == Wire::Text && *kind != CloudType::Text;
                let text = text.then(|| to_text(&value)).flatten();
                from_cloud_unchanged(value, affinity, kind).unwrap_or_else(|(stored, misfit)| {
                    let (table, column) = (&self.table.name, &self.table.columns[c].name);
                    unfit.get_or_insert_with(|| format!("table {table}, column {column}: {misfit}"));
                    text.map_or(stored, Value::Text)
                })
            })
            .collect();
        let key = self.key_of(&row);
        match unfit {
            None => Ok(PulledRow { table, key, row: Some(row), seen }),
            Some(why) => {
                let texts = json_array(&row);
                Err(Unfit { row: PulledRow { table, key, row: None, seen }, why, texts })
            }
        }
    }

    fn stored(&self, column: usize, value: CloudValue) -> Value {
        from_cloud(value, self.affinities[column], &self.cloud.columns[column].kind)
    }

    /// The row in wire form, nothing if the cloud has it already, or what does not fit.
    fn item(&self, at: usize, row: &RoundRow) -> Result<Option<RoundItem>, NamedMisfit> {
        let change = change(&self.table, &row.entry, row.row.as_deref());
        let stored = row.row.as_deref().unwrap_or(&[]);
        let carried = |c: usize, value: &Value| {
            self.carried(c, value)
                .map_err(|misfit| NamedMisfit { column: self.table.columns[c].name.clone(), misfit })
        };
        let mut values = vec![CloudValue::Null; self.table.columns.len()];
        let op = match change {
            Change::Nothing => return Ok(None),
            Change::Insert => {
                for (c, value) in stored.iter().enumerate() {
                    values[c] = carried(c, value)?;
                }
                Op::Insert
            }
            Change::Update(changed) => {
                let columns: Vec<usize> = (0..changed.len()).filter(|c| changed[*c]).collect();
                // A column that the cloud computes goes along, to be compared. Alone it has nothing to go with.
                if columns.iter().all(|c| self.cloud.columns[*c].generated) {
                    let Some(c) = columns.iter().find(|c| row.entry.dirty[**c]) else { return Ok(None) };
                    let (column, kind) = (self.table.columns[*c].name.clone(), &self.cloud.columns[*c].kind);
                    return Err(NamedMisfit { column, misfit: computed_there(&stored[*c], kind) });
                }
                for c in &columns {
                    values[*c] = carried(*c, &stored[*c])?;
                }
                Op::Update(columns)
            }
            Change::Delete => Op::Delete,
        };
        let key = self
            .table
            .key
            .iter()
            .zip(&row.key)
            .map(|(c, value)| carried(*c, value))
            .collect::<Result<_, _>>()?;
        let (seen, stamp) = (row.entry.seen, row.entry.stamp);
        Ok(Some(RoundItem { table: at, key, values, op, seen, stamp }))
    }

    fn local_row(&self, row: Vec<CloudValue>) -> Vec<Value> {
        row.into_iter().enumerate().map(|(c, value)| self.stored(c, value)).collect()
    }

    fn key_of(&self, row: &[Value]) -> Vec<Value> {
        self.table.key.iter().map(|c| row[*c].clone()).collect()
    }

    /// Whether this may be one of the table's keys.
    fn has_key_like(&self, text: &[String]) -> bool {
        text.len() == self.table.key.len()
    }

    fn local_key(&self, text: &[String]) -> Option<Vec<Value>> {
        if !self.has_key_like(text) {
            return None;
        }
        let parts = self.table.key.iter().zip(text);
        parts
            .map(|(c, text)| {
                from_text(text, &self.cloud.columns[*c].kind).map(|value| self.stored(*c, value))
            })
            .collect()
    }

    fn row_json(&self, row: &[Value]) -> String {
        let fields =
            self.table.columns.iter().zip(row).map(|(column, value)| (column.name.clone(), value.to_json()));
        serde_json::Value::Object(fields.collect()).to_string()
    }
}

/// A value that does not fit, with its column's name.
#[derive(Debug, thiserror::Error)]
#[error("column {column}: {misfit}")]
struct NamedMisfit {
    column: String,
    misfit: Misfit,
}
