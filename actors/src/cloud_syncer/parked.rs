//! What the syncer does about rows that the cloud refuses: parks them, notices that the cloud's side of them was mended, and
//! gives them up when somebody asks.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use actix::prelude::*;
use slog::{info, warn};
use tokio::sync::oneshot;

use super::{Asking, CloudSyncer, Cycle, ReadyTable, Step};
use crate::core::sync::Event;
use crate::messages::{DiscardParked, Discarded, GetDiscardable, ParkRows, RetryMended, SyncError};
use crate::postgres::CloudSession;
use crate::sqlite::{Kept, Link, Lookup, Page, PulledRow, Refusal, StoreError};
use crate::supervision::Context;

/// Parked rows that are to be given up, and who waits for that. Shared with the cycle that is under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Discards(Arc<Mutex<Vec<Discard>>>);

type Discard = (Vec<i64>, oneshot::Sender<Result<Discarded, SyncError>>);

impl Discards {
    fn add(&self, discard: Discard) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(discard);
    }

    fn take(&self) -> Vec<Discard> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells everybody who waits why it is not done.
    pub(super) fn refuse(&self, error: &SyncError) {
        for (_, answer) in self.take() {
            // Who waited may have gone.
            let _ = answer.send(Err(error.clone()));
        }
    }
}

impl Handler<DiscardParked> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, DiscardParked { ids, answer }: DiscardParked, ctx: &mut Context<Self>) {
        self.discards.add((ids, answer));
        self.advance(Event::Asked, ctx);
        self.refuse();
    }
}

impl Cycle {
    /// Parks rows, and says so unless each was refused for the same reason before: at once of the first ones of a cycle, at its
    /// end of all others. What PostgreSQL said may quote a value, which is nobody's business in a log.
    pub(super) async fn park(
        &self,
        tables: &[ReadyTable],
        round: String,
        refusals: Vec<Refusal>,
        shapes: HashMap<i64, String>,
    ) -> Step<String> {
        let said: Vec<String> = refusals
            .iter()
            .map(|refusal| {
                let ready = tables.iter().find(|ready| ready.table.id == refusal.table);
                let table = ready.map_or("?", |ready| ready.table.name.as_str());
                match (&refusal.sqlstate, &refusal.constraint) {
                    (None, _) => format!("table {table}: {}", refusal.message),
                    (Some(sqlstate), None) => format!("table {table}: SQLSTATE {sqlstate}"),
                    (Some(sqlstate), Some(constraint)) => {
                        format!("table {table}: SQLSTATE {sqlstate}, constraint {constraint}")
                    }
                }
            })
            .collect();
        let shapes = shapes.into_iter().map(|(table, shape)| (table, self.with_limit(&shape))).collect();
        let parked = self.ask(ParkRows { round, refusals, shapes }).await?;
        if let Some(first) = parked.fresh.first() {
            let fresh = parked.fresh.len();
            match self.untold.get() {
                Some(untold) => self.untold.set(Some(untold + fresh)),
                None => {
                    self.untold.set(Some(0));
                    warn!(
                        self.log,
                        "⚠️  {fresh} row(s) are refused by the cloud and parked, everything else goes on; first: {} \
                         (run_supervisor parked says more)",
                        said[*first]
                    );
                }
            }
        }
        Ok(parked.round)
    }

    /// For whoever reads the log after a long backlog: how many were parked besides the first ones.
    pub(super) fn tell_parked(&self) {
        if let Some(untold @ 1..) = self.untold.take() {
            warn!(self.log, "⚠️  {untold} more row(s) are refused by the cloud and parked");
        }
    }

    /// What has to change for a refused row to be tried again by itself: the cloud's table, or how large a row may be.
    fn with_limit(&self, shape: &str) -> String {
        format!("{shape} {}", self.row_bytes_max())
    }

    /// Parked rows whose cloud table, or whose limit, is not what it was when they were refused wait again. Asks the cloud only
    /// while something is parked.
    pub(super) async fn retry_mended(&mut self, session: &CloudSession, link: &Link) -> Step<()> {
        let readers = self.parts.readers.clone();
        let parked = actix_rt::task::spawn_blocking(move || readers.parked_shapes())
            .await
            .map_err(|error| StoreError::Io(error.to_string()))??;
        if parked.is_empty() {
            return Ok(());
        }
        let (_, tables) = self.prepared()?;
        let names =
            tables.iter().filter(|ready| parked.contains_key(&ready.table.id)).map(ReadyTable::target);
        let now = session.shapes(names.collect()).await?;
        let shape = |ready: &ReadyTable| now.get(&ready.target()).cloned().unwrap_or_default();
        if tables
            .iter()
            .any(|ready| parked.contains_key(&ready.table.id) && ready.cloud.shape != shape(ready))
        {
            // Its columns may have other types, too.
            self.memory.prepared = None;
            self.prepare(session, link).await?;
        }
        for ready in tables.iter() {
            let Some(before) = parked.get(&ready.table.id) else { continue };
            let shape = self.with_limit(&shape(ready));
            if before.iter().any(|before| before.as_ref() != Some(&shape)) {
                self.ask(RetryMended { table: ready.table.id, shape }).await?;
            }
        }
        Ok(())
    }

    /// Gives up the parked rows that somebody asked for: each becomes what it is in the cloud, as a pull of its key.
    pub(super) async fn discard(&self, session: &CloudSession, link: &Link) -> Step<()> {
        let (generation, tables) = self.prepared()?;
        let from = Asking { device: link.device.clone(), cursor: link.cursor.clone().unwrap_or_default() };
        for (ids, answer) in self.discards.take() {
            let discarded = self.discard_these(session, generation, &tables, &ids, &from).await;
            match discarded {
                // Who waited may have gone.
                Ok(discarded) => drop(answer.send(Ok(discarded))),
                Err(trouble) => {
                    let _ = answer.send(Err(SyncError::Failed(trouble.to_string())));
                    return Err(trouble);
                }
            }
        }
        Ok(())
    }

    async fn discard_these(
        &self,
        session: &CloudSession,
        generation: u64,
        tables: &[ReadyTable],
        ids: &[i64],
        from: &Asking,
    ) -> Step<Discarded> {
        let mut found = self.ask(GetDiscardable(ids.to_vec())).await?;
        let synced: HashSet<i64> = tables.iter().map(|ready| ready.table.id).collect();
        found.rows.retain(|(id, table, _)| {
            let ready = synced.contains(table);
            if !ready {
                found.refused.push((*id, Kept::NotSynced));
            }
            ready
        });
        let mut ids: Vec<i64> = found.rows.iter().map(|(id, ..)| *id).collect();
        if !ids.is_empty() {
            let mut page = Page::default();
            session.begin_read().await?;
            let key_of = |table: i64| {
                let ready = tables.iter().find(|ready| ready.table.id == table);
                ready.map_or_else(Vec::new, |ready| ready.table.key.clone())
            };
            let lookups = found.rows.iter().map(|(_, table, values)| Lookup {
                table: *table,
                columns: key_of(*table),
                values: values.clone(),
            });
            self.look_up(session, tables, lookups.collect(), &mut page).await?;
            for (_, table, values) in found.rows {
                // What counts as the same key there may be another one here.
                if !page.rows.iter().any(|row| row.table == table && row.key == values) {
                    page.rows.push(PulledRow { table, key: values.clone(), row: None, seen: 0 });
                }
                page.discarded.push((table, values));
            }
            page.absent.clear();
            self.apply(session, generation, tables, page, from).await?;
            session.end_read().await?;
            // Who was edited in between is tried again instead.
            let after = self.ask(GetDiscardable(ids.clone())).await?;
            let kept = after.refused.into_iter().filter(|(_, why)| *why != Kept::Unknown);
            found.refused.extend(kept);
            ids.retain(|id| !found.refused.iter().any(|(kept, _)| kept == id));
            info!(
                self.log,
                "{} parked row(s) were discarded; what they held is in the conflict log",
                ids.len()
            );
            self.tell_receipts();
        }
        let refused = found.refused.into_iter().map(|(id, why)| (id, why.to_string())).collect();
        Ok(Discarded { ids, refused })
    }
}

impl ReadyTable {
    /// The cloud table's qualified name.
    fn target(&self) -> String {
        self.cloud.qualified()
    }
}
