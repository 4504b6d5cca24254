//! Whether the cloud that answers is the one that this file belongs to, whether it still has what this file knows of it, and
//! what is done where it is not or has not.
//!
//! ```text
//! server, database   as before? ── no ─▶ a copy: nothing is sent or fetched until somebody says `adopt`
//! ledger, witness    younger than what is remembered? ── no ─▶ set back: everything here is compared and sent again
//! timeline           as before? ── no ─▶ is the witness there? ── yes ─▶ go on
//!                                                            └── no ──▶ the same, as the device that it was
//! cursor     its entry there, or trimmed? ── no ─▶ the same
//! device     in the ledger?      ── no, and the cursor's entry is there ─▶ a new device, which reads on from there
//! ```
//!
//! A witness is the moment at which the ledger was last written after everything up to a cursor had been read. PostgreSQL's
//! log is one sequence, and a standby or a restore has a beginning of it: whoever has the witness has all of that. The cursor's
//! own entry proves less, because what was read below it may have been committed after it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use actix::prelude::*;
use slog::{info, warn};

use super::{CloudSyncer, Cycle, Step, Trouble};
use crate::core::failure::{CloudFailure, FailureClass};
use crate::core::sync::Event;
use crate::messages::{
    Adopt, AdoptCloud, Adoption, CompareKeeping, FixCursor, GetLink, Rehome, RememberWitness, Residence,
    StartOver, SyncError,
};
use crate::postgres::{Cloud, CloudSession, LastSeen};
use crate::sqlite::{Anew, Home, Link, Witness};
use crate::supervision::{Context, Unanswered};

/// A device that is there says so at least so often.
const SEEN_WITHIN: Duration = Duration::from_secs(3600);

/// What the ledger says about the history that this file knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The cloud has all of it.
    Whole,
    /// The cloud has lost some of it.
    Lost,
    /// It says nothing.
    Unknown,
    /// It does not know this device any more, and the feed has what this file read last: somebody has deleted the device.
    Struck,
}

/// How many rows came back from the dead, here and there, because the cloud was set back.
#[derive(Debug, Default)]
pub(super) struct CameBack {
    here: Cell<u64>,
    there: Cell<u64>,
}

impl CameBack {
    pub(super) fn add(&self, here: u64, there: u64) {
        self.here.set(self.here.get() + here);
        self.there.set(self.there.get() + there);
    }
}

/// What can be told from the ledger, as it is before the session settles; and from the feed, of which it is asked whether it has
/// the entry that the cursor stands on.
pub(super) fn evidence(link: &Link, seen: Option<LastSeen>, is_entry_there: bool) -> Evidence {
    if is_entry_there && is_missing(link, seen) {
        return Evidence::Struck;
    }
    match (&link.witness, seen) {
        (None, _) => Evidence::Unknown,
        (Some(witness), Some(seen)) if seen.at >= witness.at => {
            if witness.cursor == link.cursor {
                Evidence::Whole
            } else {
                Evidence::Unknown
            }
        }
        (Some(_), _) => Evidence::Lost,
    }
}

/// Whether the ledger lacks a device that it had.
fn is_missing(link: &Link, seen: Option<LastSeen>) -> bool {
    seen.is_none() && (link.witness.is_some() || link.last_round.is_some())
}

impl Cycle {
    /// Looks for what the ledger says, and, where it says nothing of this device any more, the feed.
    pub(super) async fn look_for_evidence(
        &self,
        session: &CloudSession,
        link: &Link,
        seen: Option<LastSeen>,
    ) -> Step<Evidence> {
        let is_entry_there = match &link.cursor {
            // Without a tag it stands on no entry.
            Some(cursor) if cursor.tag.is_some() && is_missing(link, seen) => {
                session.look(cursor, &link.device).await?.there
            }
            _ => false,
        };
        Ok(evidence(link, seen, is_entry_there))
    }

    /// After the tables were compared with a cloud that was set back.
    pub(super) fn say_what_came_back(&self) {
        let (here, there) = (self.came_back.here.take(), self.came_back.there.take());
        if here + there > 0 {
            warn!(
                self.log,
                "⚠️  Compared with the cloud as it is now: {here} row(s) that were deleted are back here, {there} row(s) that it lacks \
                 are sent again; see the conflict log"
            );
        }
    }

    /// Somebody has deleted this device from the ledger, as one does with devices that are gone for good.
    pub(super) async fn go_on_unknown(&self) -> Step<()> {
        warn!(
            self.log,
            "⚠️  Somebody has deleted this device from the cloud's ledger (tidewater.devices): it goes on as a new one"
        );
        self.ask(StartOver(Anew::ReadOn)).await
    }

    /// Whether the file has synced before. A copy of its cloud is refused.
    pub(super) async fn require_original(&self, link: &Link, home: &Home) -> Step<bool> {
        let Some(_) = &link.cloud else { return Ok(false) };
        let elsewhere = match (&link.system, &link.database) {
            (Some(system), _) if *system != home.system => {
                format!("server {}, not {system}", home.system)
            }
            (Some(_), Some(database)) if *database != home.database => {
                format!("database {} of its server, not {database}", home.database)
            }
            (Some(_), _) => return Ok(true),
            (None, _) => {
                // Transaction ids mean nothing on another server.
                self.ask(FixCursor(None)).await?;
                return Ok(false);
            }
        };
        Err(Trouble::Cloud(
            CloudFailure::new(
                FailureClass::NotOurs,
                format!("a copy of this file's cloud answers: {elsewhere}"),
            )
            .with_remedy(
                "point the proxy at the original; or, if this copy has taken its place: run_supervisor adopt",
            ),
        ))
    }

    /// The cloud lacks what it had acknowledged, or shown.
    pub(super) async fn start_over_behind(&self, there: i64, here: i64) -> Step<()> {
        warn!(
            self.log,
            "⚠️  The cloud was set back ({there} of {here} rounds): everything here is compared with it and sent again"
        );
        self.ask(StartOver(Anew::SendAgain)).await
    }

    /// The same cloud on another timeline: a standby was promoted, or the server was recovered to a point in time.
    pub(super) async fn passed_on(&self, link: &Link, home: &Home, found: Evidence) -> Step<()> {
        let before = link.timeline.unwrap_or_default();
        if found == Evidence::Whole {
            info!(
                self.log,
                "The cloud failed over or was recovered (timeline {before} to {}), and has all that this file knows of: the sync goes on",
                home.timeline
            );
            return Ok(());
        }
        warn!(
            self.log,
            "⚠️  The cloud failed over or was recovered (timeline {before} to {}), and may have lost changes: everything \
             here is compared with it, and what it lacks is sent again",
            home.timeline
        );
        self.ask(CompareKeeping).await
    }

    /// Makes what was read provable, unless it is already, or was a moment ago: who is busy has another cycle soon. The feed
    /// need not be kept any more for this device up to there. Where nothing is to be read for long, it still says that it is
    /// there, so that it is waited for.
    pub(super) async fn bear_witness(&mut self, session: &CloudSession, link: &Link) -> Step<()> {
        let (known, _) = self.ask(GetLink).await?;
        let within = |when: Option<Instant>, limit| when.is_some_and(|when| when.elapsed() < limit);
        let seen = within(self.memory.seen, SEEN_WITHIN.min(self.options.feed.retire_after / 4));
        if within(self.memory.witnessed, self.options.pace.pull_interval)
            || seen && known.witness.is_some_and(|witness| witness.cursor == link.cursor)
        {
            return Ok(());
        }
        let Some(id) = self.memory.session.clone() else { return Ok(()) };
        if let Some((at, is_known)) = session.bear_witness(&link.device, &id, link.cursor.as_ref()).await? {
            self.ask(RememberWitness(Witness { at, cursor: link.cursor.clone() })).await?;
            self.memory.witnessed = Some(Instant::now());
            self.memory.seen = self.memory.witnessed;
            if !is_known {
                // Somebody has deleted what holds the feed for us. The next cycle settles anew.
                self.memory.standing = None;
            }
        }
        Ok(())
    }
}

impl Handler<AdoptCloud> for CloudSyncer {
    type Result = ResponseActFuture<Self, Result<Adoption, SyncError>>;

    fn handle(&mut self, AdoptCloud(how): AdoptCloud, ctx: &mut Context<Self>) -> Self::Result {
        let Some(cloud) = self.parts.cloud.clone() else {
            let why = "no database and role are set to log in with".to_owned();
            return Box::pin(actix::fut::ready(Err(SyncError::Blocked(why))));
        };
        let changes = how != Adopt::Look;
        let was_available = self.machine.is_available();
        if changes {
            if self.adopting.is_some() {
                let why = "somebody else is doing the same".to_owned();
                return Box::pin(actix::fut::ready(Err(SyncError::Failed(why))));
            }
            // No cycle runs from here on, and none begins: each would go on from what it knows of the other cloud.
            self.advance(Event::Unavailable(None), ctx);
            self.adopting = Some(None);
        }
        let unanswered = |error: Unanswered| SyncError::Failed(error.to_string());
        let (writer, readers) = (self.parts.writer.clone(), self.parts.readers.clone());
        let work = async move {
            let (link, _) = writer.ask(GetLink).await.map_err(unanswered)??;
            let adopted = adopt(&cloud, &link, how).await;
            // Nobody but us is in between: the next check is against what the file says.
            let home = match &adopted {
                Ok((_, Some(home))) => Some(home.clone()),
                _ => None,
            };
            let pending = readers.counts().map(|counts| counts.pending).unwrap_or_default();
            if let Some(home) = home {
                writer.ask(Rehome(home)).await.map_err(unanswered)??;
            }
            let (link, _) = writer.ask(GetLink).await.map_err(unanswered)??;
            cloud.expect_identity(link.cloud);
            let (mut adoption, home) = adopted?;
            adoption.adopted = home.is_some();
            adoption.pending = pending;
            Ok(adoption)
        };
        Box::pin(actix::fut::wrap_future::<_, Self>(work).map(move |outcome, syncer, ctx| {
            if changes {
                let heard = syncer.adopting.take().flatten();
                if let Ok(Adoption { adopted: true, answers, pending, .. }) = &outcome {
                    let name = answers.name.as_deref().unwrap_or("?");
                    let id = answers.identity.as_deref().unwrap_or("?");
                    warn!(
                        syncer.log,
                        "⚠️  This file belongs to another cloud now, {id} in database {name}: every table is compared with it, \
                         {pending} row(s) are pending as before"
                    );
                }
                // What was heard is that the cloud is there, or is not; having heard nothing means that nothing changed.
                match heard {
                    Some(changed) => syncer.handle(changed, ctx),
                    None if was_available => syncer.advance(Event::Available, ctx),
                    None => {}
                }
            }
            outcome
        }))
    }
}

/// Looks who answers; with the word for it, makes its marks there and says what the file shall belong to.
async fn adopt(cloud: &Cloud, link: &Link, how: Adopt) -> Result<(Adoption, Option<Home>), SyncError> {
    let failed = |failure: CloudFailure| {
        let remedy = failure.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
        match failure.class.retry_helps() {
            true => SyncError::Offline(format!("{failure}{remedy}")),
            false => SyncError::Blocked(format!("{failure}{remedy}")),
        }
    };
    let session = cloud.connect().await.map_err(failed)?;
    let (there, timeline) = session.writable_whereabouts().await.map_err(failed)?;
    let mut mark = session.mark().await.map_err(failed)?;
    match &how {
        Adopt::Identity(wanted) if mark.as_ref() != Some(wanted) => {
            let found = mark.unwrap_or_else(|| "without a mark of Tidewater's".to_owned());
            return Err(SyncError::Blocked(format!("another cloud answers, {found}: nothing is adopted")));
        }
        Adopt::Look => {}
        Adopt::Whoever | Adopt::Identity(_) => {
            cloud.expect_identity(None);
            mark = Some(session.bootstrap().await.map_err(failed)?.id);
        }
    }
    session.release();
    let belongs = link.cloud.as_ref().map(|id| Residence {
        identity: Some(id.clone()),
        system: link.system.clone(),
        database: link.database.clone(),
        name: None,
    });
    let is_home = (&link.cloud, &link.system) == (&mark, &Some(there.system.clone()))
        && link.database.as_ref().is_none_or(|known| *known == there.database);
    let home = match (&how, &mark) {
        (Adopt::Look, _) | (_, None) => None,
        // It is at home already.
        (_, Some(_)) if is_home => None,
        (_, Some(id)) => Some(Home {
            cloud: id.clone(),
            system: there.system.clone(),
            database: there.database.clone(),
            timeline,
        }),
    };
    let answers = Residence {
        identity: mark,
        system: Some(there.system),
        database: Some(there.database),
        name: Some(there.name),
    };
    Ok((Adoption { belongs, answers, adopted: false, pending: 0 }, home))
}
