//! The writer: the one actor that writes the SQLite file, alone on its thread.
//!
//! ```text
//! Write ─▶ the group that is forming ─▶ (mailbox empty, or the group full) ─▶ one transaction, one fsync ─▶ answers
//!                                                                                     └─ JournalGrew ─▶ CloudSyncer
//! NoteRound, AcknowledgeRound, ApplyPage … ─▶ one transaction each
//! Look, from the store's watch ─▶ has another program committed? ─▶ JournalGrew
//!                             └▶ does nobody write? ─▶ the file's upkeep, step by step
//! a round that is leaving, at the start or after any of these ─▶ ClearPiece, after a pause ─▶ a piece of it ─▶ … ─▶ RoundSettled ─▶ CloudSyncer
//! ```
//!
//! SQLite blocks, and may: nothing else lives in this arbiter. actix hands over the whole mailbox before it runs what
//! an actor notified itself of, so the messages that wait while one group commits are the next group, without any
//! timer (P1, and N callers cost one fsync).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::prelude::*;
use slog::{Logger, debug, error, info, warn};
use tokio::sync::oneshot;

use crate::core::merge::Policies;
use crate::messages::{
    AcknowledgeRound, ApplyPage, BeginSnapshot, ClearRound, CompareAnew, CompareKeeping, DissolveRound,
    FixCursor, GetDiscardable, GetLink, GetNames, GetSetAside, GetSnapshotLeftovers, GetSnapshotPosition,
    GetTables, GrowRound, JournalGrew, MakeTables, Migrate, NoteRound, ParkRows, PutBackRound, Rehome,
    RememberCloud, RememberCloudTable, RememberWitness, RetryMended, RetryParked, RoundSettled, SetRules,
    StartOver, Stored, TakeOut, TrimRound, Write,
};
use crate::migrations::Migrations;
use crate::sqlite::{BacklogLimits, CLEARED_AT_ONCE, Notice, Store, StoreError, Unit, Written};
use crate::supervision::{Context, Handle, is_stale};

/// How the writer works.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// The most messages that wait in the mailbox, besides one of each sender: what bounds the writes is the facade.
    pub queue_max: usize,
    /// The most callers in one transaction.
    pub group_max: usize,
    /// Between two looks for other programs' commits, where the system does not tell of them.
    pub foreign_poll: Duration,
    /// The most that may wait for the cloud.
    pub backlog: BacklogLimits,
    /// Who wins where a row was changed here and in the cloud.
    pub policies: Policies,
    /// The most conflicts that the file keeps.
    pub conflicts_max: i64,
}

/// The actor.
#[derive(Debug)]
pub struct SqliteWriter {
    store: Store,
    options: WriterOptions,
    /// The units of the group that is forming, and who waits for each.
    group: Vec<Unit>,
    answers: Vec<oneshot::Sender<Stored<Written>>>,
    /// The group is going to be committed once the mailbox is empty.
    commit_is_due: bool,
    grew: Box<dyn Hint>,
    /// What the last look for others met: it is said once, not with every look.
    trouble: Option<StoreError>,
    /// What the last piece of a round met that was to go.
    obstacle: Option<StoreError>,
    /// The next piece of it has been asked for.
    piece_is_due: bool,
    /// A look is under way to the mailbox.
    asked: Arc<AtomicBool>,
    log: Logger,
}

/// Whom to tell what became of the journal. Each hint may be lost.
pub trait Hint: Send + std::fmt::Debug {
    /// It grew.
    fn journal_grew(&self);

    /// The last of a round that the cloud has is gone, without the syncer.
    fn round_settled(&self);
}

impl<A> Hint for Handle<A>
where
    A: Actor + Handler<JournalGrew> + Handler<RoundSettled>,
    A::Context: actix::dev::ToEnvelope<A, JournalGrew> + actix::dev::ToEnvelope<A, RoundSettled>,
{
    fn journal_grew(&self) {
        self.hint(JournalGrew);
    }

    fn round_settled(&self) {
        self.hint(RoundSettled);
    }
}

/// Between two pieces of a round that leaves without the syncer: longer than the syncer takes for one, which mostly is first.
const PIECE_PAUSE: Duration = Duration::from_millis(20);

/// The same after a piece that could not go.
const OBSTACLE_PAUSE: Duration = Duration::from_secs(1);

impl SqliteWriter {
    /// A writer for a store that is open.
    pub fn new(mut store: Store, options: WriterOptions, grew: Box<dyn Hint>, log: Logger) -> Self {
        store.limit_backlog(options.backlog);
        store.decide_by(options.policies.clone());
        store.bound_conflicts(options.conflicts_max);
        Self {
            store,
            options,
            group: vec![],
            answers: vec![],
            commit_is_due: false,
            grew,
            trouble: None,
            obstacle: None,
            piece_is_due: false,
            asked: Arc::default(),
            log,
        }
    }

    fn commit(&mut self) {
        self.commit_is_due = false;
        if self.group.is_empty() {
            return;
        }
        fail::fail_point!("writer.group");
        let results = self.store.write_group(&std::mem::take(&mut self.group));
        fail::fail_point!("writer.done");
        if is_stale() {
            // Who asked looks at what became of it, and asks the successor if nothing did.
            self.answers.clear();
            return;
        }
        self.grew.journal_grew();
        for (answer, result) in std::mem::take(&mut self.answers).into_iter().zip(results) {
            fail::fail_point!("writer.answer");
            // A caller that has gone meanwhile does not want to know.
            let _ = answer.send(result);
        }
        self.store.tend();
    }

    fn look(&mut self) {
        fail::fail_point!("writer.look");
        let looked = self.store.foreign_commit().and_then(|foreign| {
            if foreign {
                self.grew.journal_grew();
                tell(&self.log, self.store.track()?);
            }
            Ok(())
        });
        say_once(&self.log, &mut self.trouble, looked.err());
        for Notice(text) in self.store.tick() {
            warn!(self.log, "⚠️  {text}");
        }
    }

    /// A round that is leaving goes to its end whatever becomes of the cycle that began it, and of the cloud.
    fn clear_soon(&mut self, ctx: &mut Context<Self>) {
        if self.store.is_leaving() && !std::mem::replace(&mut self.piece_is_due, true) {
            let pause = if self.obstacle.is_some() { OBSTACLE_PAUSE } else { PIECE_PAUSE };
            ctx.notify_later(ClearPiece, pause);
        }
    }

    fn clear_piece(&mut self) {
        let gone = self.store.go_on_clearing(CLEARED_AT_ONCE);
        if let Ok(true) = gone {
            self.store.tend();
            self.store.backlog_moved();
            if !self.store.is_leaving() {
                self.grew.round_settled();
            }
        }
        say_once(&self.log, &mut self.obstacle, gone.err());
    }
}

/// One line when a trouble begins, and none while it lasts. That another program holds the lock passes by itself.
fn say_once(log: &Logger, known: &mut Option<StoreError>, met: Option<StoreError>) {
    match &met {
        Some(StoreError::Busy(_)) if known.is_some() => return,
        Some(error) if !matches!(error, StoreError::Busy(_)) && met != *known => error!(log, "❌ {error}"),
        _ => {}
    }
    *known = met;
}

/// Says what a person should know about the tables, each once per change of the schema.
pub fn tell(log: &Logger, notices: Vec<Notice>) {
    for Notice(text) in notices {
        info!(log, "{text}");
    }
}

impl Actor for SqliteWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.options.queue_max);
        // Without a strong address: this is no reason to live on.
        let (me, asked) = (ctx.address().downgrade(), self.asked.clone());
        let tell = move || {
            // One that waits in the mailbox is enough, however long the writer is busy.
            if let Some(me) = me.upgrade()
                && !asked.swap(true, Ordering::Relaxed)
            {
                me.do_send(Look);
            }
        };
        match self.store.watch(self.options.foreign_poll, tell) {
            Ok(notice) => notice.into_iter().for_each(|Notice(text)| debug!(self.log, "{text}")),
            Err(error) => error!(self.log, "❌ Other programs' writes are not noticed: {error}"),
        }
        self.clear_soon(ctx);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct ClearPiece;

impl Handler<ClearPiece> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, _: ClearPiece, ctx: &mut Self::Context) {
        self.piece_is_due = false;
        self.clear_piece();
        self.clear_soon(ctx);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Look;

impl Handler<Look> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, _: Look, _: &mut Self::Context) {
        self.asked.store(false, Ordering::Relaxed);
        self.look();
    }
}

impl Handler<Write> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, Write { unit, answer }: Write, ctx: &mut Self::Context) {
        fail::fail_point!("writer.write");
        let alone = unit.is_alone();
        if alone {
            self.commit();
        }
        self.group.push(unit);
        self.answers.push(answer);
        if alone || self.group.len() >= self.options.group_max {
            self.commit();
        } else if !self.commit_is_due {
            self.commit_is_due = true;
            ctx.notify(Commit);
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Commit;

impl Handler<Commit> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, _: Commit, _: &mut Self::Context) {
        self.commit();
    }
}

impl Handler<Migrate> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, Migrate { unit, migrations, answer }: Migrate, _: &mut Self::Context) {
        // They came first.
        self.commit();
        let migrated = self.migrate(&unit, &migrations);
        // Who asked a writer that was replaced asks its successor. Who asked may have gone.
        if !is_stale() {
            let _ = answer.send(migrated);
        }
    }
}

impl Handler<SetRules> for SqliteWriter {
    type Result = ();

    fn handle(&mut self, SetRules { backlog, policies }: SetRules, _: &mut Self::Context) {
        // What was asked for before is done by the rules of that time.
        self.commit();
        self.store.limit_backlog(backlog);
        self.store.decide_by(policies);
    }
}

impl SqliteWriter {
    fn migrate(&mut self, unit: &Unit, migrations: &Migrations) -> Stored<Written> {
        fail::fail_point!("writer.call");
        let written = self.store.migrate(unit, migrations)?;
        fail::fail_point!("writer.called");
        if let [applied] = written.results.as_slice() {
            let number = applied.last_insert_rowid;
            info!(self.log, "Migration applied: {}", migrations.name(number).unwrap_or_default());
            if let Ok(notices) = self.store.track() {
                tell(&self.log, notices);
            }
            self.grew.journal_grew();
        }
        Ok(written)
    }
}

/// Messages that are one call of the store. Writes that wait are committed first: they came first.
macro_rules! store_calls {
    ($($message:ty => $answer:ty, |$store:ident, $m:pat_param| $call:expr;)*) => {$(
        impl Handler<$message> for SqliteWriter {
            type Result = Stored<$answer>;

            fn handle(&mut self, $m: $message, ctx: &mut Self::Context) -> Self::Result {
                self.commit();
                fail::fail_point!(concat!("writer.call.", stringify!($message)));
                let $store = &mut self.store;
                let result: Stored<$answer> = $call;
                $store.tend();
                $store.backlog_moved();
                self.clear_soon(ctx);
                fail::fail_point!(concat!("writer.called.", stringify!($message)));
                if let Err(error @ (StoreError::Full(_) | StoreError::ReadOnly(_) | StoreError::Damaged(_))) = &result {
                    warn!(self.log, "{error}");
                }
                result
            }
        }
    )*};
}

store_calls! {
    GetTables => (u64, Vec<crate::core::schema::Table>), |store, _| store.tables();
    GetNames => crate::sqlite::Names, |store, _| store.names();
    MakeTables => crate::sqlite::MadeTables, |store, m| store.make_tables(&m.tables, m.when_empty);
    GetLink => (crate::sqlite::Link, Option<(String, i64)>), |store, _| Ok((store.link()?, store.in_flight()?));
    NoteRound => Option<crate::sqlite::Noted>, |store, m| store.note_round(&m);
    GrowRound => Option<crate::sqlite::Grown>, |store, m| store.grow_round(&m);
    TrimRound => (), |store, m| store.trim_round(&m);
    TakeOut => (), |store, m| store.take_out(&m.round, &m.rows, m.generation);
    AcknowledgeRound => bool, |store, m| store.acknowledge(&m.round, m.rows_max);
    ClearRound => bool, |store, m| store.clear_round(&m.round, m.rows_max);
    PutBackRound => (), |store, m| store.put_back(&m.round, &m.refused, m.others_first);
    DissolveRound => (), |store, m| store.dissolve(&m.round);
    ParkRows => crate::sqlite::Parked, |store, m| store.park(&m.round, &m.refusals, &m.shapes);
    RetryParked => crate::sqlite::Retried, |store, m| store.retry_parked(&m.0);
    RetryMended => usize, |store, m| store.retry_mended(m.table, &m.shape);
    GetDiscardable => crate::sqlite::Discardable, |store, m| store.discardable(&m.0);
    ApplyPage => crate::sqlite::Applied, |store, m| store.apply(&m.page, m.generation);
    GetSnapshotPosition => Option<Option<Vec<String>>>, |store, m| store.snapshot_position(m.0);
    BeginSnapshot => (), |store, m| store.begin_snapshot(m.0);
    GetSnapshotLeftovers => crate::sqlite::Leftovers, |store, m| store.snapshot_leftovers(m.table, m.limit);
    RememberCloudTable => (), |store, m| store.remember_cloud_table(m.table, m.trace.as_deref(), m.made.as_ref());
    CompareAnew => (), |store, m| store.compare_anew(m.0);
    GetSetAside => Vec<crate::sqlite::Lookup>, |store, _| store.set_aside();
    RememberCloud => (), |store, m| store.remember_cloud(&m.home);
    RememberWitness => (), |store, m| store.remember_witness(&m.0);
    Rehome => (), |store, m| store.rehome(&m.0);
    CompareKeeping => (), |store, _| store.compare_keeping();
    FixCursor => (), |store, m| match &m.0 {
        Some(cursor) => store.fix_cursor(cursor),
        None => store.forget_cursor(),
    };
    StartOver => (), |store, m| store.start_over(m.0);
}
