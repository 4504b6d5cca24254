//! A round that grows while it is already on its way, and one that turns out too heavy.
//!
//! ```text
//! note_round ─▶ rows, read, sent ─▶ grow_round ─▶ more rows, read, sent ─▶ … ─▶ acknowledge
//!                    │                  └▶ meanwhile grow_round: the part behind it
//!                    └▶ more bytes than a round may weigh ─▶ trim_round: the rest waits again
//! ```
//!
//! Each entry in flight has the number of the step in which it came. A part begins with a step of its own: the next entries,
//! of the table at which the last part stopped and then of those behind it. In the steps after that comes whatever these need,
//! so that no part needs a row of a later one.
//!
//! Each part is a local transaction of its own, short enough for those who write meanwhile, and durable before what it
//! moved is sent. A row that was dirtied since its round was noted has an entry of a later epoch: it is not taken, unless
//! others cannot do without it.

use super::*;
use crate::messages::{GrowRound, TrimRound};

/// While somebody writes, and for some steps after that, a round begins with, and grows by, no more rows at a time: a write waits for one growth and its fsync,
/// which takes a millisecond then. Smaller ones cost the flush more fsyncs than the writer is spared.
const GROWN_BESIDE_WRITES: usize = 300;

/// How many rows come at a time.
pub(super) fn at_once(rows_max: usize, beside_writes: bool) -> usize {
    if beside_writes { rows_max.min(GROWN_BESIDE_WRITES) } else { rows_max }
}

/// A part of the round in flight, by its steps. While it is being noted, all that came since its first step is of it. The
/// default is all of the round, which is its first part as long as it has not grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Default for Part {
    fn default() -> Self {
        Self { first: 0, last: i64::MAX }
    }
}

/// What the round in flight grew by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// The rows.
    pub part: Part,
    /// Where the round can grow further: the table with which that begins.
    pub grows: Option<i64>,
    /// Whether nothing else waits now.
    pub complete: bool,
}

/// Rows of the round in flight, as far as they were read.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
    /// By table of the noted ones.
    pub rows: Vec<Vec<RoundRow>>,
    /// What they weigh.
    pub bytes: usize,
    /// What was too heavy, if anything.
    pub rest: Option<Rest>,
}

/// Where the reading of a part stopped. It goes table by table; within one, what came last is first: the others need it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rest {
    /// The table. Nothing of those behind it was read.
    pub table: i64,
    /// The last of its rows that was read, if any was: its step and its key.
    pub(super) after: Option<(i64, Vec<Value>)>,
}

impl Store {
    /// Moves further entries into the round in flight, and with them whatever they need. `None` when there are none, or when
    /// they have to wait for others.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round, [`StoreError::SchemaChanged`] for other tables.
    pub fn grow_round(&mut self, wanted: &GrowRound) -> Result<Option<Grown>> {
        let GrowRound { ref round, generation, ref eligible, table, upto, rows_max } = *wanted;
        let rows_max = at_once(rows_max, is_small(&mut self.considerate.growth));
        self.look()?;
        if generation != self.generation {
            return Err(StoreError::SchemaChanged);
        }
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        the_round(&tx, round)?;
        let tables: Vec<&Table> = self.tables.iter().filter(|table| eligible.contains(&table.id)).collect();
        let Some(begin) = tables.iter().position(|known| known.id == table) else { return Ok(None) };
        let part = Part { first: last_step(&tx, &self.tables)? + 1, ..Part::default() };
        let mut sweep = self.sweep.clone();
        let (taken, grows) = take_in_turn(&tx, &tables, begin, rows_max, (false, upto), part, &mut sweep)?;
        if taken == 0 {
            return Ok(None);
        }
        let mut room = rows_max;
        close_under_foreign_keys(&tx, &tables, false, part, &mut room)?;
        if !anything_flies(&tx, &tables, part)? {
            return Ok(None);
        }
        let complete = is_all_there_is(&tx, &tables, false)?;
        absorb_parked(&tx, &tables, part)?;
        if refers_to_what_came_since(&tx, &tables, part)? {
            return Ok(None);
        }
        let part = Part { last: last_step(&tx, &self.tables)?, ..part };
        commit(tx)?;
        self.sweep = sweep;
        Ok(Some(Grown { part, grows, complete }))
    }

    /// What of a part of the round in flight was too heavy waits again: the entries of one table behind a place, and those of
    /// the tables behind it; and deletions of rows whose former children are among them, unless that is all there is. What is
    /// left has to be read once more. What came after the part waits again as a whole.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round.
    pub fn trim_round(&mut self, wanted: &TrimRound) -> Result<()> {
        let TrimRound { round, part, rest } = wanted;
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, round)?;
        let Some(begin) = self.tables.iter().position(|known| known.id == rest.table) else { return Ok(()) };
        for table in &self.tables {
            merge_some(&tx, table, [FLIGHT, JOURNAL], "step > ?1", &[Value::Integer(part.last)])?;
        }
        let mut behind = rest.after.as_ref();
        for table in &self.tables[begin..] {
            let mut which = "step >= ?1".to_owned();
            let mut params = vec![Value::Integer(part.first)];
            match behind.take() {
                Some((step, key)) => {
                    let (keys, last) =
                        (list(key_columns(table), |k| k), list(0..key.len(), |at| format!("?{}", at + 3)));
                    which += &format!(" AND (step < ?2 OR step = ?2 AND ({keys}) > ({last}))");
                    params.push(Value::Integer(*step));
                    params.extend_from_slice(key);
                    // The next round goes on there.
                    self.sweep.extend([false, true].map(|refused| ((table.id, refused), key.clone())));
                }
                None => self.sweep.retain(|(id, _), _| *id != table.id),
            }
            merge_some(&tx, table, [FLIGHT, JOURNAL], &which, &params)?;
        }
        tx.execute_batch("SAVEPOINT tidewater_close")?;
        let tables: Vec<&Table> = self.tables.iter().collect();
        let mut no_room = 0;
        while take_children_of_deleted(&tx, &tables, "true", *part, part.first, &mut no_room)? > 0 {}
        if !anything_flies(&tx, &tables, Part::default())? {
            tx.execute_batch("ROLLBACK TO tidewater_close")?;
        }
        tx.execute_batch("RELEASE tidewater_close")?;
        commit(tx)?;
        Ok(())
    }
}

/// The last step in which anything came into the round in flight.
fn last_step(conn: &Connection, tables: &[Table]) -> Result<i64> {
    let mut last = 0;
    for table in tables {
        let sql = format!("SELECT coalesce(max(step), 0) FROM {}", ident(&side_table(FLIGHT, table)));
        last = last.max(conn.prepare_cached(&sql)?.query_row([], |row| row.get(0))?);
    }
    Ok(last)
}
