//! A round that grows while it is already on its way, and one that turns out too heavy.
//!
//! ```text
//! note_round ─▶ rows, read, sent ─▶ grow_round ─▶ more rows of the same table, read, sent ─▶ … ─▶ acknowledge
//!                    └▶ more bytes than a round may weigh ─▶ trim_round: the rest waits again
//! ```
//!
//! Each step is a local transaction of its own, short enough for those who write meanwhile, and durable before what it
//! moved is sent. A row that was dirtied since its round was noted has an entry of a later epoch, which is not taken.

use super::*;
use crate::messages::{GrowRound, TrimRound};

/// As long as somebody writes meanwhile, a round grows by no more rows at a time: a write waits for one growth and its fsync,
/// which takes a millisecond then. Smaller ones cost the flush more fsyncs than the writer is spared.
const GROWN_BESIDE_WRITES: usize = 300;

/// What the round in flight grew by: one table's entries beyond one key and up to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Grown {
    /// The table.
    pub table: i64,
    after: Vec<Value>,
    until: Option<Vec<Value>>,
    /// Whether nothing else waits now.
    pub complete: bool,
}

impl Grown {
    /// Where it can grow further.
    pub fn grows(&self) -> Option<(i64, Vec<Value>)> {
        self.until.clone().map(|last| (self.table, last))
    }

    /// The entries, in a side table, with the parameters.
    pub(super) fn range(&self, of: &str, table: &Table) -> (String, Vec<Value>) {
        key_range(table, of, Some(&self.after), self.until.as_deref())
    }
}

/// Rows of the round in flight, as far as they were read.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
    /// By table of the noted ones.
    pub rows: Vec<Vec<RoundRow>>,
    /// What they weigh.
    pub bytes: usize,
    /// What was too heavy, if anything: the table, and the last of its keys that was read. Nothing of the tables behind it
    /// was.
    pub rest: Option<(i64, Option<Vec<Value>>)>,
}

impl Store {
    /// Moves further entries of one table into the round in flight: only such as need nobody else along. `None` when there
    /// are none of that kind, when others may have to come with them, or when what came could not be told from what is there.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round, [`StoreError::SchemaChanged`] for other tables.
    pub fn grow_round(&mut self, wanted: &GrowRound) -> Result<Option<Grown>> {
        let GrowRound { ref round, generation, ref eligible, table, ref after, upto, rows_max } = *wanted;
        let rows_max =
            if std::mem::take(&mut self.written) { rows_max.min(GROWN_BESIDE_WRITES) } else { rows_max };
        self.look()?;
        if generation != self.generation {
            return Err(StoreError::SchemaChanged);
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        the_round(&tx, round)?;
        let Some(table) = self.tables.iter().find(|known| known.id == table) else { return Ok(None) };
        if needs_company(&tx, table, &self.tables)? || flies_beyond(&tx, table, after)? {
            return Ok(None);
        }
        let which = format!("refused IS NULL AND coalesce(epoch, 0) <= {upto}");
        let (taken, until) = take_next(&tx, table, &which, Some(after), rows_max)?;
        if taken == 0 {
            return Ok(None);
        }
        let complete = is_complete(&tx, self.tables.iter().filter(|table| eligible.contains(&table.id)))?;
        commit(tx)?;
        match &until {
            Some(last) => drop(self.sweep.insert(table.id, last.clone())),
            None => drop(self.sweep.remove(&table.id)),
        }
        Ok(Some(Grown { table: table.id, after: after.clone(), until, complete }))
    }

    /// What of the round in flight was too heavy waits again: the entries of one table beyond a key, and those of the tables
    /// behind it.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round.
    pub fn trim_round(&mut self, wanted: &TrimRound) -> Result<()> {
        let TrimRound { round, table, after } = wanted;
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, round)?;
        let Some(first) = self.tables.iter().position(|known| known.id == *table) else { return Ok(()) };
        for (at, table) in self.tables.iter().enumerate().skip(first) {
            match after {
                Some(key) if at == first => {
                    let keys = list(key_columns(table), |k| k);
                    let beyond = list(0..key.len(), |at| format!("?{}", at + 1));
                    merge_some(&tx, table, [FLIGHT, JOURNAL], &format!("({keys}) > ({beyond})"), key)?;
                    // The next round goes on there.
                    self.sweep.insert(table.id, key.clone());
                }
                _ => {
                    merge_back(&tx, table)?;
                    self.sweep.remove(&table.id);
                }
            }
        }
        commit(tx)?;
        Ok(())
    }
}

/// Whether entries of this table may have to take others along: pending parents, the pending children of deleted rows, or
/// what is parked under the same key.
fn needs_company(conn: &Connection, table: &Table, tables: &[Table]) -> Result<bool> {
    let relatives = tables.iter().filter(|other| refers_to(table, other) || refers_to(other, table));
    if !is_complete(conn, relatives)? {
        return Ok(true);
    }
    let parked = format!("SELECT 1 FROM {} LIMIT 1", ident(&side_table(PARKED, table)));
    Ok(conn.prepare_cached(&parked)?.exists([])?)
}

/// Whether the round has rows of this table beyond a key: it went on at the journal's beginning, or parents came along from
/// wherever they stood. What a growth moved is told by its range alone, and these would be sent, or put back, with it.
fn flies_beyond(conn: &Connection, table: &Table, after: &[Value]) -> Result<bool> {
    let (range, params) = key_range(table, "", Some(after), None);
    let sql = format!("SELECT 1 FROM {} WHERE {range} LIMIT 1", ident(&side_table(FLIGHT, table)));
    Ok(conn.prepare_cached(&sql)?.exists(params_from_iter(&params))?)
}
