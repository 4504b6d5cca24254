//! What this file remembers of the cloud that it belongs to, and what becomes of it when that is another one, or not what it
//! was.
//!
//! Parts: [`Home`], which cloud it is and where; [`Witness`], the proof that nothing is missing there. The decisions are the
//! syncer's (`cloud_syncer/settle.rs`); here each is one transaction, so that a crash leaves the one belonging or the other.

use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};

use super::{CLOCK_OFFSET, Cursor, Result, Store, commit, merge_back, meta, set_meta};
use crate::core::schema::Table;
use crate::sql::capture::{FLIGHT, JOURNAL, PARKED, side_table};
use crate::sql::ident;

/// A cloud, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Its marker, which travels with dumps and clones.
    pub cloud: String,
    /// The server's own number, which does not; a standby has it, too.
    pub system: String,
    /// The database's number there: a clone beside the original has another.
    pub database: String,
    /// Grows with each promotion and each recovery to a point in time.
    pub timeline: i64,
}

/// The cloud's ledger was written at this moment, after everything up to this cursor had been read there. PostgreSQL's log
/// keeps this order: a server that has the one has the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// By the server's clock, in microseconds since 1970.
    pub at: i64,
    /// The cursor.
    pub cursor: Option<Cursor>,
}

impl Store {
    /// Remembers the cloud that this file belongs to from now on, and where it is.
    pub fn remember_cloud(&mut self, home: &Home) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        put_home(&tx, home)?;
        commit(tx)
    }

    /// Remembers a witness.
    pub fn remember_witness(&mut self, witness: &Witness) -> Result<()> {
        let text =
            serde_json::to_string(witness).map_err(|error| super::StoreError::Io(error.to_string()))?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        set_meta(&tx, "witness", text)?;
        commit(tx)
    }

    /// This file belongs to another cloud from now on, as a new device. Nothing of what it knew of the old one, transaction
    /// ids, rounds, tables, means anything there; every table is compared with it. What waits goes on waiting, what only
    /// this file has is sent, and nothing is deleted, here or there, because of this.
    pub fn rehome(&mut self, home: &Home) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for table in &self.tables {
            merge_back(&tx, table)?;
        }
        tx.execute("DELETE FROM _tidewater_round", [])?;
        forget_seen(&tx, &self.tables)?;
        tx.execute("UPDATE _tidewater_tables SET followed = 0", [])?;
        // Another server, another clock.
        let offset: i64 = meta(&tx, CLOCK_OFFSET)?.unwrap_or(0);
        tx.execute("UPDATE _tidewater_clock SET seen = 0, ahead = ?1", [offset])?;
        tx.execute(
            "DELETE FROM _tidewater_meta WHERE key IN ('last_round', 'round_number') \
             OR key GLOB 'trace_*' OR key GLOB 'made_*'",
            [],
        )?;
        keep_leftovers(&tx)?;
        fail::fail_point!("sqlite.rehome");
        set_meta(&tx, "device", uuid::Uuid::new_v4().to_string())?;
        put_home(&tx, home)?;
        commit(tx)
    }

    /// Every table is compared anew, and what the cloud does not show is not deleted here but sent again.
    pub fn compare_keeping(&mut self) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        keep_leftovers(&tx)?;
        commit(tx)
    }
}

fn put_home(conn: &Connection, home: &Home) -> Result<()> {
    set_meta(conn, "cloud", &home.cloud)?;
    set_meta(conn, "system", &home.system)?;
    set_meta(conn, "database", &home.database)?;
    set_meta(conn, "timeline", home.timeline)
}

fn keep_leftovers(conn: &Connection) -> Result<()> {
    conn.execute("UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL", [])?;
    conn.execute(
        "DELETE FROM _tidewater_meta WHERE key IN ('cursor_xid', 'cursor_id', 'cursor_tag', 'witness')",
        [],
    )?;
    conn.execute(
        "INSERT INTO _tidewater_meta SELECT 'keep_' || id, 1 FROM _tidewater_tables WHERE true ON CONFLICT DO NOTHING",
        [],
    )?;
    Ok(())
}

/// Whether rows of this table that the cloud does not show are kept.
pub(super) fn keeps_leftovers(conn: &Connection, table: &Table) -> Result<bool> {
    Ok(meta::<i64>(conn, &format!("keep_{}", table.id))?.is_some())
}

/// The comparison is over: from here on the feed tells what is deleted.
pub(super) fn leftovers_are_done(conn: &Connection, table: &Table) -> Result<()> {
    conn.execute("DELETE FROM _tidewater_meta WHERE key = 'keep_' || ?1", [table.id])?;
    Ok(())
}

/// The numbers of the feed's entries begin anew: an old one would hide what others do from now on.
pub(super) fn forget_seen(conn: &Connection, tables: &[Table]) -> Result<()> {
    for table in tables {
        for kind in [JOURNAL, FLIGHT, PARKED] {
            let name = ident(&side_table(kind, table));
            conn.execute(&format!("UPDATE {name} SET seen = 0 WHERE seen > 0"), [])?;
        }
    }
    Ok(())
}
