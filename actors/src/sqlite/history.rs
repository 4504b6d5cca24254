//! What this file remembers of the cloud that it belongs to, and what becomes of it when that is another one, or not what it
//! was.
//!
//! Parts: [`Home`], which cloud it is and where; [`Witness`], the proof that nothing is missing there; [`Anew`], how a file goes on
//! as a new device. The decisions are the
//! syncer's (`cloud_syncer/settle.rs`); here each is one transaction, so that a crash leaves the one belonging or the other.

use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};

use super::{
    CLOCK_OFFSET, Cursor, Result, ServerClock, Store, clearing, commit, log_losses, merge_back, meta, query,
    read_row, set_meta, unsigned, values,
};
use crate::core::merge::{Loss, Side};
use crate::core::schema::Table;
use crate::core::value::{Value, json_array};
use crate::sql::capture::{self, FLIGHT, JOURNAL, PARKED, SENT, Unseen, key_columns, side_table};
use crate::sql::{ident, list};

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

/// How a file goes on as a new device. None of the ways deletes anything by itself, and what is pending stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anew {
    /// This file is behind the cloud: every table is compared with it, and follows it.
    Follow,
    /// The cloud is behind this file: the same, and everything here counts as pending again, as it was when this file last had
    /// everything.
    SendAgain,
    /// Neither is, and the feed is read on from where the old device was: only that one is not known there any more.
    ReadOn,
}

/// What is left when a table's snapshot has shown everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftovers {
    /// Rows here that it did not show and that are not pending. None: it has ended.
    pub keys: Vec<Vec<Value>>,
    /// When it has: how many rows a cloud that was set back lacks, which are sent again.
    pub sent_again: u64,
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
        clearing::finish(&tx, &self.tables)?;
        for table in &self.tables {
            merge_back(&tx, table)?;
        }
        tx.execute("DELETE FROM _tidewater_round", [])?;
        forget_seen(&tx, &self.tables)?;
        // Another server, another clock.
        tx.execute("UPDATE _tidewater_tables SET followed = 0, kept_until = 0", [])?;
        let offset: i64 = meta(&tx, CLOCK_OFFSET)?.unwrap_or(0);
        tx.execute("UPDATE _tidewater_clock SET seen = 0, ahead = ?1", [offset])?;
        forget_sent(&tx, &self.tables, 0)?;
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

    /// The cloud has perhaps lost some of what this file read there: as [`Anew::SendAgain`], as the same device, whose round in
    /// flight stays there until the ledger has told what became of it.
    pub fn compare_keeping(&mut self) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute("DELETE FROM _tidewater_meta WHERE key = 'witness'", [])?;
        send_again(&tx, &self.tables)?;
        commit(tx)
    }
}

/// Every table is compared with the cloud, and everything here is pending again, with its old stamps: what the cloud lacks, or has
/// in an older state, it gets back. What nobody sends from here follows the cloud as it is now.
pub(super) fn send_again(conn: &Connection, tables: &[Table]) -> Result<()> {
    for table in tables.iter().filter(|table| table.rule.direction.sends()) {
        conn.execute(&capture::journal_everything(table, Unseen::Lost), [])?;
        conn.execute(&capture::lift_sent(table), [])?;
    }
    // What the cloud lost, nobody has changed there, unless the feed tells of it since. A table that was still being compared
    // after an earlier loss is as it was before that one.
    conn.execute(
        "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL, \
         kept_until = CASE followed WHEN 1 THEN (SELECT known FROM _tidewater_clock) ELSE kept_until END, \
         followed = CASE WHEN followed THEN 3 ELSE 0 END",
        [],
    )?;
    forget_cursor(conn)?;
    forget_seen(conn, tables)
}

/// How many rows of a table are written down one by one that a cloud which was set back gets again.
const LISTED_MAX: usize = 1000;

/// Puts on record the rows of a table that only this file has after the cloud was set back: it gets them again, and somebody may
/// have deleted one of them since. Answers how many there are.
pub(super) fn list_sent_again(conn: &Connection, table: &Table) -> Result<u64> {
    let was_set_back = "SELECT 1 FROM _tidewater_tables WHERE id = ?1 AND followed = 3";
    if !conn.prepare_cached(was_set_back)?.exists([table.id])? {
        return Ok(0);
    }
    // What was written here since is new there.
    let from = format!(
        "FROM {} WHERE NOT known AND whole = 1 AND stamp <= (SELECT kept_until FROM _tidewater_tables WHERE id = {})",
        ident(&side_table(JOURNAL, table)),
        table.id
    );
    let keys = list(key_columns(table), |k| k);
    let sql = format!("SELECT {keys} {from} LIMIT {LISTED_MAX}");
    let mut listed = 0;
    for key in query(conn, &sql, &[], |row| values(row, 0, table.key.len()))? {
        let Some(row) = read_row(conn, table, &key)? else { continue };
        let local = Some(Value::Text(json_array(&row)));
        let loss = Loss { column: None, base: None, local, cloud: None, kept: Side::Local };
        log_losses(conn, table, &key, &[loss])?;
        listed += 1;
    }
    if listed < LISTED_MAX {
        return Ok(listed as u64);
    }
    Ok(conn.query_row(&format!("SELECT count(*) {from}"), [], unsigned)?)
}

/// How many keys of a table are remembered at most between two pulls. A flush pulls before it has sent so many.
const SENT_MAX: i64 = 400_000;

/// Remembers what the cloud has taken in a round, in a range of its keys: of these rows this file has the youngest state, of
/// others perhaps not.
pub(super) fn note_sent(conn: &Connection, table: &Table, range: &str, params: &[Value]) -> Result<()> {
    let noted = conn
        .prepare_cached(&capture::note_sent(table, range))?
        .execute(rusqlite::params_from_iter(params))?;
    if noted > 0 {
        // Where there is no feed, nothing tells of the end of a pull.
        let sent = ident(&side_table(SENT, table));
        let newest = format!("(SELECT max(rowid) FROM {sent})");
        let older = format!("DELETE FROM {sent} WHERE rowid <= {newest} - {SENT_MAX}");
        conn.prepare_cached(&older)?.execute([])?;
    }
    Ok(())
}

/// This file has all that the cloud had when its clock showed this: the rows that it had sent, and what others did since.
pub(super) fn has_everything(conn: &Connection, tables: &[Table], clock: ServerClock) -> Result<()> {
    forget_sent(conn, tables, clock.now)
}

/// Nothing was sent since the cloud's clock showed this.
fn forget_sent(conn: &Connection, tables: &[Table], known: i64) -> Result<()> {
    conn.execute("UPDATE _tidewater_clock SET known = ?1", [known])?;
    for table in tables {
        conn.prepare_cached(&format!("DELETE FROM {}", ident(&side_table(SENT, table))))?.execute([])?;
    }
    Ok(())
}

pub(super) fn forget_cursor(conn: &Connection) -> Result<()> {
    conn.execute("DELETE FROM _tidewater_meta WHERE key IN ('cursor_xid', 'cursor_id', 'cursor_tag')", [])?;
    Ok(())
}

fn put_home(conn: &Connection, home: &Home) -> Result<()> {
    set_meta(conn, "cloud", &home.cloud)?;
    set_meta(conn, "system", &home.system)?;
    set_meta(conn, "database", &home.database)?;
    set_meta(conn, "timeline", home.timeline)
}

fn keep_leftovers(conn: &Connection) -> Result<()> {
    conn.execute("UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL", [])?;
    conn.execute("DELETE FROM _tidewater_meta WHERE key = 'witness'", [])?;
    forget_cursor(conn)?;
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
