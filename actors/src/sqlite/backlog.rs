//! How much waits for the cloud, and whether a write may add to it.
//!
//! ```text
//! measure   every entry, from the file's own pages: for `status`, and for the gauge
//! Gauge     far from a limit: measured when so many rows have changed that it might be near
//!           near one: temporary triggers of the writer's connection count each entry that comes, in its own transaction
//!           └─ at the limit: measured anew, if rounds or other programs may have changed it; then a write that adds an
//!              entry is refused, and every other one passes
//! ```
//!
//! Rounds make the backlog smaller, so what is known of it may be too much, never too little: it is measured anew where that
//! would make a difference. What other programs add, whom nobody can refuse, is found within a second of the next write.

use std::time::Instant;

use super::*;

/// The most that may wait for the cloud; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BacklogLimits {
    /// Entries: rows, each once, however often it changed.
    pub entries_max: u64,
    /// Bytes of these entries in the file: the rows' keys, and the values before their change. Not the rows themselves.
    pub bytes_max: u64,
}

/// What waits for the cloud: the journal, and what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Entries: rows, each once, however often it changed.
    pub entries: u64,
    /// Bytes of these entries in the file, without the room that its pages leave free.
    pub bytes: u64,
    /// The oldest stamp, in microseconds since 1970.
    pub oldest_us: Option<i64>,
}

/// Entries and their bytes. SQLite looks at each page of the journals, and at none of the tables'.
fn measured(conn: &Connection) -> rusqlite::Result<Backlog> {
    let mut backlog = Backlog::default();
    for table in journals(conn)? {
        // The text of a name of ours needs no quoting.
        let sql = format!("SELECT count(*) FROM {table}");
        let entries = conn.prepare_cached(&sql)?.query_row([], unsigned)?;
        if entries > 0 {
            backlog.entries += entries;
            let sql = "SELECT coalesce(sum(payload), 0) FROM dbstat WHERE name = ?1 AND aggregate = TRUE";
            backlog.bytes += conn.prepare_cached(sql)?.query_row([&table], unsigned)?;
        }
    }
    Ok(backlog)
}

/// The tables whose entries wait to be sent.
fn journals(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let ids = conn
        .prepare_cached("SELECT id FROM _tidewater_tables")?
        .query_map([], |row| row.get::<_, i64>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut sent = vec![];
    for id in ids {
        if rules::sends(conn, id)? {
            sent.push(id);
        }
    }
    Ok(sent.iter().flat_map(|id| [JOURNAL, FLIGHT].map(|kind| format!("_tidewater_{kind}_{id}"))).collect())
}

impl Readers {
    /// What waits for the cloud. Takes time that grows with it: some 50 ms for a million entries.
    pub fn backlog(&self) -> Result<Backlog> {
        self.read_at_once(|conn| {
            let mut backlog = measured(conn)?;
            for table in journals(conn)? {
                // Without a stamp, nobody knows since when it waits.
                let sql = format!(
                    "SELECT min(stamp) - (SELECT ahead FROM _tidewater_clock) FROM {table} WHERE stamp > 0"
                );
                let oldest: Option<i64> = conn.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
                backlog.oldest_us = match (backlog.oldest_us, oldest) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            Ok(backlog)
        })
    }
}

/// The count of what one connection adds.
pub(super) const GAUGE: &str = "_tidewater_backlog";

/// How long what other programs add may go unseen.
const FOREIGN_UNSEEN: Duration = Duration::from_secs(1);

/// A limit of fewer entries is never far.
const FAR_ENTRIES: u64 = 20_000;

/// The same of bytes: in fewer, the changes that go unseen might have room.
const FAR_BYTES: u64 = 64 << 20;

/// With a limit of bytes, so many changes, and a quarter of the entries, are not looked at one by one.
const CHANGES_UNSEEN: u64 = 1000;

/// What the writer knows of the backlog.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    limits: BacklogLimits,
    /// Near a limit: the tables whose journals are counted, by their generation.
    covers: Option<u64>,
    /// Something may have left the journals since they were measured.
    may_be_less: bool,
    measured: Option<Measured>,
}

#[derive(Debug)]
struct Measured {
    entries: u64,
    at: Instant,
    /// The last commit of others.
    commits: i64,
    /// How many rows this connection had changed.
    changes: u64,
}

impl Gauge {
    pub(super) fn set(&mut self, limits: BacklogLimits) {
        *self = Self { limits, ..Self::default() };
    }

    fn is_on(&self) -> bool {
        self.limits != BacklogLimits::default()
    }

    /// Rounds move entries.
    pub(super) fn moved(&mut self) {
        self.may_be_less = true;
    }

    /// Before a transaction: measures where what is known may be wrong and matters, and counts from then on if that is near a limit.
    pub(super) fn ready(&mut self, conn: &Connection, tables: &[Table], generation: u64) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let commits = conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let changes = conn.total_changes();
        let is_known = match &self.measured {
            None => false,
            Some(then) if then.commits != commits && then.at.elapsed() > FOREIGN_UNSEEN => false,
            Some(then) => match self.covers {
                None => self.is_far_still(then.entries, changes.saturating_sub(then.changes)),
                Some(covered) => {
                    covered == generation && !(self.may_be_less && self.full(count(conn)?).is_some())
                }
            },
        };
        if is_known {
            return Ok(());
        }
        let backlog = measured(conn)?;
        if !self.is_near(backlog) {
            if self.covers.take().is_some() {
                conn.execute_batch(&uncover(conn)?)?;
            }
        } else {
            if self.covers != Some(generation) {
                cover(conn, tables)?;
                self.covers = Some(generation);
            }
            let [entries, bytes] =
                [backlog.entries, backlog.bytes].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            conn.prepare_cached("UPDATE temp._tidewater_backlog SET entries = ?1, bytes = ?2 WHERE one = 1")?
                .execute([entries, bytes])?;
        }
        self.may_be_less = false;
        self.measured = Some(Measured { entries: backlog.entries, at: Instant::now(), commits, changes });
        Ok(())
    }

    /// Whether so many changes after so many entries cannot have come near a limit: each makes one entry at most.
    fn is_far_still(&self, entries: u64, changed: u64) -> bool {
        let BacklogLimits { entries_max, bytes_max } = self.limits;
        (entries_max == 0 || entries + changed < entries_max / 2)
            && (bytes_max == 0 || changed < CHANGES_UNSEEN + entries / 4)
    }

    /// A little earlier than it is asked, so that it is not asked with each write.
    fn is_near(&self, Backlog { entries, bytes, .. }: Backlog) -> bool {
        let BacklogLimits { entries_max, bytes_max } = self.limits;
        entries_max > 0 && (entries_max <= FAR_ENTRIES || entries >= entries_max / 8 * 3)
            || bytes_max > 0 && (bytes_max <= FAR_BYTES || bytes >= bytes_max / 8 * 3)
    }

    /// What is counted, where that has reached a limit: as the error for who would add to it.
    fn full(&self, Backlog { entries, bytes, .. }: Backlog) -> Option<StoreError> {
        let BacklogLimits { entries_max, bytes_max } = self.limits;
        let (key, limit) = match () {
            () if entries_max > 0 && entries >= entries_max => ("sync.backlog_entries_max", entries_max),
            () if bytes_max > 0 && bytes >= bytes_max => ("sync.backlog_bytes_max", bytes_max),
            () => return None,
        };
        Some(StoreError::BacklogFull { entries, bytes, key, limit })
    }

    /// Runs what one caller wants, and refuses it where it adds to what is full. It has to be rolled back then.
    pub(super) fn admit<T>(&self, conn: &Connection, run: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.covers.is_none() {
            return run();
        }
        let before = count(conn)?;
        let done = run()?;
        match self.full(before) {
            Some(full) if count(conn)?.entries > before.entries => Err(full),
            _ => Ok(done),
        }
    }
}

/// What the triggers have counted.
fn count(conn: &Connection) -> Result<Backlog> {
    let mut ask = conn.prepare_cached("SELECT entries, bytes FROM temp._tidewater_backlog WHERE one = 1")?;
    let read = |row: &Row<'_>| {
        Ok(Backlog { entries: unsigned(row)?, bytes: row.get::<_, i64>(1)?.unsigned_abs(), oldest_us: None })
    };
    Ok(ask.query_row([], read)?)
}

/// Puts a trigger on each journal. An entry that is there already is not one more: `DO UPDATE` is no insert.
fn cover(conn: &Connection, tables: &[Table]) -> Result<()> {
    let mut sql = format!(
        "CREATE TEMP TABLE IF NOT EXISTS {GAUGE} (one INTEGER PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL);\n\
         INSERT OR IGNORE INTO temp.{GAUGE} VALUES (1, 0, 0);\n{}",
        uncover(conn)?
    );
    for table in tables.iter().filter(|table| table.rule.direction.sends()) {
        let columns = entry_columns(table);
        let values: String =
            columns.iter().map(|column| format!(" + ifnull(octet_length(NEW.{column}), 0)")).collect();
        sql += &format!(
            "CREATE TEMP TRIGGER {GAUGE}_{} AFTER INSERT ON main.{}\nBEGIN\n\
             UPDATE {GAUGE} SET entries = entries + 1, bytes = bytes + {}{values} WHERE one = 1;\nEND;\n",
            table.id,
            ident(&side_table(JOURNAL, table)),
            columns.len(),
        );
    }
    conn.execute_batch(&format!("SAVEPOINT {GAUGE};\n{sql}RELEASE {GAUGE};"))?;
    Ok(())
}

/// The statements that take them away.
fn uncover(conn: &Connection) -> Result<String> {
    let there = conn
        .prepare("SELECT name FROM sqlite_temp_schema WHERE type = 'trigger' AND substr(name, 1, 18) = ?1")?
        .query_map([GAUGE], |row| row.get::<_, String>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(there.iter().map(|trigger| format!("DROP TRIGGER temp.{};\n", ident(trigger))).collect())
}
