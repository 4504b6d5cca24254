//! A round that took effect leaves the file in pieces, as it came into it in pieces (`growing.rs`).
//!
//! ```text
//! take_out ─▶ … ─▶ hits merged, and left out put back, piece by piece; the round is in flight without them
//! acknowledge ─▶ it counts as one that the cloud has ─▶ a piece is cleared
//!                       ┌───────────── rows are left ◀───────┤
//!                       └▶ clear_round ─▶ the next piece ─▶ … ─▶ nothing is left: no round in flight
//! ```
//!
//! Each piece is a transaction of its own, so that a write waits for one of them at most; when nobody has written for a while,
//! one piece clears all there is. What decides about single rows is done before: the pieces behind it only forget.
//!
//! The first invariant: **what the cloud did not take of a round leaves it before the round counts as one that the cloud has.** Until
//! then its outcome is open here, as it was before: the ledger has its id, and names what was left out of it. So whatever
//! happens between two pieces of that:
//!
//! - *A crash, or a cycle that is cut off.* The next one finds the round in flight and in the ledger. What is still in flight of
//!   what was left out waits again, as it was, and meets the cloud's row in the next round; what was taken out is not in flight
//!   any more, is decided, and its losses are on record once. Nothing is acknowledged before that.
//! - *The app writes to such a row.* One that was taken out waits in the journal, or is as the cloud has it, as any other row; one
//!   that is still in flight gets an entry in the journal, which is merged along with it.
//! - *The schema changes.* The cloud's rows mean nothing then: what is taken out from then on waits again as it was.
//! - *The cloud is set back, or this file gets another one.* The rest of the round is put back. What was merged was merged with
//!   something that the cloud had, as after any acknowledgement.
//! - *Rows that may have waited for others, the conflicts that the cloud was told of, and the length of the log* are seen to when the
//!   round is acknowledged: by then what is in flight is what the cloud took, and nothing else.
//!
//! The second: **from the first piece that is cleared on, `last_round` and `round_number` are those of the round in flight, and only
//! then is anything of it forgotten.** So whatever happens between two pieces:
//!
//! - *The process, the writer or the syncer dies, or the cycle is cut off.* The writer goes on by itself, also after a start, by a
//!   clock of its own: that needs neither the cloud nor anybody who writes, so that an outage leaves nothing pending that the cloud
//!   has. Where the next cycle is first, it finds the round in flight, and its id in the cloud's ledger: it acknowledges the round
//!   again, and the rest goes.
//! - *The cloud is set back meanwhile, or this file gets another one.* The rest is cleared first: it is what the cloud had, like
//!   all that was cleared before.
//! - *Nothing can put the round back*, or park a row of it: it is not one whose outcome is open.
//! - *The app writes to a row.* One that is still in flight has an entry in the journal since, or gets one, as at any time
//!   after it was noted; one that was cleared gets one as any row does that the cloud has.
//! - *The schema changes.* Whatever is left in flight of a table that is not tracked any more goes, instead of being parked:
//!   the cloud has it.
//! - *The power fails.* The pieces do not wait for the disk. It has the first ones or none: the round is in flight with that
//!   much of it, or as it was.

use super::*;

/// How many rows of a round that the cloud has are cleared in one local transaction as long as somebody writes: half a
/// millisecond, for which a write waits.
pub const CLEARED_AT_ONCE: usize = 500;

/// How many rows that a round took effect without leave it in one local transaction: one or two milliseconds. Each is looked at, so
/// that larger pieces would save next to nothing, and all pieces are that small.
pub const TAKEN_OUT_AT_ONCE: usize = 100;

impl Readers {
    /// The rows in flight that the ledger has under these names, [`ledger_name`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn in_flight_by_name(&self, names: &[String]) -> Result<Vec<LeftOut>> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        if names.is_empty() {
            return Ok(vec![]);
        }
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            let mut found = vec![];
            for table in remembered_tables(&tx)? {
                let keys = list(key_columns(&table), |k| k);
                let sql = format!("SELECT {keys} FROM {}", ident(&side_table(FLIGHT, &table)));
                let flying = query(&tx, &sql, &[], |row| values(row, 0, table.key.len()))?;
                let named =
                    flying.into_iter().filter(|key| names.contains(ledger_name(&table, key).as_str()));
                found.extend(named.map(|key| LeftOut::AsItWas { table: table.id, key }));
            }
            Ok(found)
        })
    }
}

impl Store {
    /// These rows are not among those that took effect with the round: they leave it, each merged with the cloud's, or as it was.
    /// Those that are not in flight (any more) are left alone. All of them have to be out before the round is acknowledged.
    ///
    /// Does not wait for the disk: what a power cut takes is found out again from the ledger.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round, and for one that was acknowledged.
    pub fn take_out(&mut self, id: &str, rows: &[LeftOut], generation: u64) -> Result<()> {
        self.look()?;
        self.without_the_disk(|store| store.try_take_out(id, rows, generation))
    }

    /// The round took effect, with all that is in flight of it: that is cleared. Answers whether that is all: otherwise
    /// [`clear_round`](Self::clear_round) has to follow. While somebody writes, no more than `rows_max` rows are cleared at once.
    ///
    /// Does not wait for the disk: the next commit does, for both. An acknowledgement that a power cut takes is made again
    /// from the ledger.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round.
    pub fn acknowledge(&mut self, id: &str, rows_max: usize) -> Result<bool> {
        self.look()?;
        let cleared = self.without_the_disk(|store| store.try_acknowledge(id, rows_max))?;
        self.leaving = !cleared;
        Ok(cleared)
    }

    /// Clears more of a round that was acknowledged, while somebody writes no more than so many rows. Answers whether nothing is
    /// left of it.
    ///
    /// # Errors
    /// [`StoreError::NotInFlight`] for another round, and for one that was not acknowledged.
    pub fn clear_round(&mut self, id: &str, rows_max: usize) -> Result<bool> {
        self.look()?;
        self.without_the_disk(|store| {
            let rows_max = store.piece(rows_max);
            let tx = store.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let cleared = match round(&tx)? {
                Some((flying, _)) if flying == id && is_acknowledged(&tx)? => {
                    clear(&tx, &store.tables, rows_max)?
                }
                // The writer was first.
                None if meta::<String>(&tx, "last_round")?.as_deref() == Some(id) => true,
                _ => return Err(StoreError::NotInFlight),
            };
            commit(tx)?;
            store.leaving = !cleared;
            Ok(cleared)
        })
    }

    /// The same for whatever round that is. Answers whether there was one.
    ///
    /// # Errors
    /// When the file cannot be written now.
    pub fn go_on_clearing(&mut self, rows_max: usize) -> Result<bool> {
        match round(&self.write)? {
            Some((id, _)) if is_acknowledged(&self.write)? => {
                self.clear_round(&id, rows_max)?;
                Ok(true)
            }
            _ => {
                self.leaving = false;
                Ok(false)
            }
        }
    }

    /// Whether [`go_on_clearing`](Self::go_on_clearing) may find something.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn without_the_disk<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.write.pragma_update(None, "synchronous", "NORMAL")?;
        let done = work(self);
        self.write.pragma_update(None, "synchronous", "FULL")?;
        done
    }

    /// How many rows leave now.
    fn piece(&mut self, rows_max: usize) -> usize {
        if is_small(&mut self.considerate.clearing) { rows_max.max(1) } else { usize::MAX }
    }

    fn try_take_out(&mut self, id: &str, rows: &[LeftOut], generation: u64) -> Result<()> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        the_round(&tx, id)?;
        for row in rows {
            let (of, key) = row.place();
            let Some(table) = self.tables.iter().find(|table| table.id == of) else { continue };
            let Some(entry) = take_from_flight(&tx, table, key)? else { continue };
            let hit = match row {
                // Otherwise the cloud's row is a list of values under columns that are not ours any more: the next round meets
                // it again.
                LeftOut::Hit(hit) if generation == self.generation => hit,
                _ => {
                    put_entry(&tx, table, JOURNAL, key, &entry)?;
                    continue;
                }
            };
            let local = read_row(&tx, table, &hit.key)?;
            // What the cloud has changed, or wins, comes with the feed entry that made this a hit. Where there is none, nobody
            // tells of others' changes, and nothing of them would ever come.
            let kept_until = kept_until(&tx, table)?;
            let theirs = hit.stamp.map_or(Theirs::Before, |stamp| Theirs::of(stamp, &entry, kept_until));
            let seen = Seen { row: hit.row.as_deref(), newest: hit.seen, theirs };
            let judge = self.policies.of(table);
            let Ok(Merged { entry: left, losses, values: made, .. }) =
                merge(table, judge, entry.clone(), local.as_deref(), seen)
            else {
                // It has been asked.
                put_entry(&tx, table, JOURNAL, &hit.key, &entry)?;
                continue;
            };
            let is_own_insert = !entry.known && !entry.whole;
            if is_own_insert && !losses.is_empty() && rules::keeps_strangers_away(table) {
                // A row that this file could not know of: nobody meant to change that.
                let message = "the cloud has another row under this key, which does not come here".to_owned();
                let values = local.as_deref().map(json_array);
                let (id, key) = (table.id, hit.key.clone());
                let refusal = Refusal { table: id, key, sqlstate: None, message, constraint: None, values };
                let parkings = meta::<i64>(&tx, "parkings")?.unwrap_or(0) + 1;
                set_meta(&tx, "parkings", parkings)?;
                park_entry(&tx, table, &entry, &refusal, parkings, None)?;
                continue;
            }
            match left {
                Some(entry) => put_entry(&tx, table, JOURNAL, &hit.key, &entry)?,
                None => parked::forget_refusal(&tx, table, &hit.key)?,
            }
            if !made.is_empty() {
                set_unwatched(&tx, table, &hit.key, &made)?;
            }
            log_losses(&tx, table, &hit.key, &losses)?;
        }
        commit(tx)
    }

    fn try_acknowledge(&mut self, id: &str, rows_max: usize) -> Result<bool> {
        let rows_max = self.piece(rows_max);
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let number = match round(&tx)? {
            Some((flying, number)) if flying == id => number,
            // It was acknowledged before, and the writer was first to clear it.
            None if meta::<String>(&tx, "last_round")?.as_deref() == Some(id) => return Ok(true),
            _ => return Err(StoreError::NotInFlight),
        };
        let tables: Vec<&Table> = self.tables.iter().collect();
        unpark_dependents(&tx, &tables, JOURNAL)?;
        if anything_flies(&tx, &tables, Part::default())? {
            parked::others_moved(&tx)?;
        }
        tx.execute(
            "INSERT INTO _tidewater_meta SELECT 'conflicts_told', conflicts_upto FROM _tidewater_round \
             WHERE conflicts_upto IS NOT NULL ON CONFLICT DO UPDATE SET value = excluded.value",
            [],
        )?;
        let trimmed = conflicts::trim(&tx, self.conflicts_max)?;
        set_meta(&tx, "last_round", id)?;
        set_meta(&tx, "round_number", number)?;
        let cleared = clear(&tx, &self.tables, rows_max)?;
        commit(tx)?;
        if trimmed > 0 {
            self.say_log_is_full();
        }
        Ok(cleared)
    }
}

/// What the cloud has of the round in flight is not put back, whatever becomes of the cloud.
pub(super) fn finish(conn: &Connection, tables: &[Table]) -> Result<()> {
    if is_acknowledged(conn)? {
        clear(conn, tables, usize::MAX)?;
    }
    Ok(())
}

/// Whether the cloud is known here to have the round in flight.
pub(super) fn is_acknowledged(conn: &Connection) -> Result<bool> {
    let sql = "SELECT 1 FROM _tidewater_round WHERE id = \
               (SELECT value FROM _tidewater_meta WHERE key = 'last_round')";
    Ok(conn.prepare_cached(sql)?.exists([])?)
}

/// The cloud has these: up to so many rows leave, and with the last of them the round. Answers whether it did.
fn clear(conn: &Connection, tables: &[Table], rows_max: usize) -> Result<bool> {
    let mut room = rows_max;
    let mut flushed = 0;
    for table in tables {
        if !anything_flies(conn, &[table], Part::default())? {
            continue;
        }
        if room == 0 {
            break;
        }
        // As a whole, its pages go and no row is looked for: a tenth of the work.
        let until = if rows_max == usize::MAX {
            None
        } else {
            last_of_next(conn, table, FLIGHT, "true", None, room)?
        };
        let (range, params) = key_range(table, None, until.as_deref());
        parked::forget_refusals_in_flight(conn, table, &range, &params)?;
        history::note_sent(conn, table, &range, &params)?;
        let mut sql = format!("DELETE FROM {}", ident(&side_table(FLIGHT, table)));
        if until.is_some() {
            sql += &format!(" WHERE {range}");
        }
        let gone = conn.prepare_cached(&sql)?.execute(params_from_iter(&params))?;
        room = room.saturating_sub(gone);
        flushed += gone;
    }
    let total = meta::<i64>(conn, "rows_flushed")?.unwrap_or(0) + i64::try_from(flushed).unwrap_or(i64::MAX);
    set_meta(conn, "rows_flushed", total)?;
    let left: Vec<&Table> = tables.iter().collect();
    if anything_flies(conn, &left, Part::default())? {
        return Ok(false);
    }
    conn.execute("DELETE FROM _tidewater_round", [])?;
    Ok(true)
}
