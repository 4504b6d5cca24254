//! Rows that PostgreSQL refuses: what is known of each, when they are tried again, and how they are given up.
//!
//! ```text
//! refused ─▶ _tidewater_parked_N (the entry, the reason) + _tidewater_refusals (its number, how often, since when)
//!    ▲          │ edited: goes along with its new entry
//!    │          │ asked for, by number, table or all
//!    │          │ the cloud's table is another one than when it was refused
//!    │          │ its parent, or the one who left its unique value, was accepted or came from the cloud
//!    └── journal ◀ others may be the reason, and something came or went, or it took too long: after a wait that doubles with
//!                  every refusal
//! ```
//!
//! A row keeps its number until the cloud has it, or it is given up.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::{
    FLIGHT, JOURNAL, PARKED, Part, PulledRow, Readers, Refusal, Result, Store, StoreError,
    TransactionBehavior, combine, commit, key_is, merge_entries, put_entry, query, refers, remembered_tables,
    row_is, take_entry, unsigned, values,
};
use crate::core::failure::{NEED_OTHERS, QUERY_CANCELED};
use crate::core::schema::Table;
use crate::core::value::{Value, json_array};
use crate::sql::capture::{key_columns, side_table};
use crate::sql::{all, ident, list};

/// Which of the parked rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// All of them.
    All,
    /// Those of one table.
    Table(String),
    /// Those with these numbers.
    Ids(Vec<i64>),
}

/// What parking came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The id under which the rest of the round goes on.
    pub round: String,
    /// The rows, by their places, that were not refused for the same reason before.
    pub fresh: Vec<usize>,
}

/// What asking for another try came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retried {
    /// The rows that wait to be sent again.
    pub rows: u64,
    /// Numbers under which nothing is parked.
    pub unknown: Vec<i64>,
}

/// A parked row, as people need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedRow {
    /// Its number.
    pub id: i64,
    /// The table.
    pub table: String,
    /// The key, by column.
    pub key: serde_json::Value,
    /// `insert`, `update` or `delete`.
    pub change: String,
    /// PostgreSQL's code; none when the value does not fit its column's type.
    pub sqlstate: Option<String>,
    /// What PostgreSQL said.
    pub message: String,
    /// The constraint's name, if it was one.
    pub constraint: Option<String>,
    /// The values that were refused, by column; none for a deletion.
    pub values: Option<serde_json::Value>,
    /// When it was refused first, in UTC.
    pub first_refused: String,
    /// When it was refused last.
    pub last_refused: String,
    /// How often it was refused.
    pub tries: u64,
    /// Whether it has been edited since, so that it is about to be tried again.
    pub edited: bool,
}

/// Some of the parked rows, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ParkedPage {
    /// All that there are, of the tables asked for.
    pub total: u64,
    /// Some of them.
    pub rows: Vec<ParkedRow>,
}

/// A row that waits to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingRow {
    /// The table.
    pub table: String,
    /// The key, by column.
    pub key: serde_json::Value,
    /// `insert`, `update` or `delete`.
    pub change: String,
    /// The columns that an update changes.
    pub columns: Vec<String>,
    /// `waiting`, `in_flight`, `needs_others` where something was in its way that may be gone later, or `stays_here` in a table
    /// of which nothing is sent.
    pub state: String,
    /// When it was changed last, in microseconds since 1970.
    pub changed_at: i64,
}

/// Some of the rows that wait, by table and key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PendingPage {
    /// All that there are, of the tables asked for.
    pub total: u64,
    /// Some of them.
    pub rows: Vec<PendingRow>,
    /// Where the next page begins, if there is one.
    #[serde(skip)]
    pub next: Option<PendingAfter>,
}

/// The last row of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingAfter {
    table: String,
    key: Vec<Value>,
}

/// Parked rows that are to be given up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Discardable {
    /// Number, table and key of those that can be.
    pub rows: Vec<(i64, i64, Vec<Value>)>,
    /// Number and reason of those that cannot.
    pub refused: Vec<(i64, Kept)>,
}

/// Why a row cannot be given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Kept {
    /// It is not there, or not any more.
    #[error("nothing is parked under this number")]
    Unknown,
    /// It is in the journal.
    #[error("it has been edited since, or asked for, and is tried again")]
    TriedAgain,
    /// Its cloud table cannot be used.
    #[error("its table is not synced, see the log")]
    NotSynced,
    /// A row that waits, named here, refers to it.
    #[error("a row that waits refers to it: {0}; discard that one, too")]
    Needed(String),
}

/// Seconds, in SQL. The wait after the first refusal that others may be the reason for, and the longest.
const NOW: &str = "CAST(strftime('%s', 'now') AS INTEGER)";
const WAIT_S: i64 = 10;
const WAIT_MAX_S: i64 = 600;

/// How many rows are tried again at once without anybody asking.
const DUE_MAX: usize = 500;

// ---------------------------------------------------------------------------------------------------------
// Refusals
// ---------------------------------------------------------------------------------------------------------

/// Remembers that a row was refused, and answers whether that is news.
pub(super) fn note_refusal(
    conn: &Connection,
    refusal: &Refusal,
    parking: i64,
    shape: Option<&str>,
) -> Result<bool> {
    let key = json_array(&refusal.key);
    // Perhaps only somebody's lock stood in the way, and nobody tells when that goes.
    let again = i64::from(refusal.sqlstate.as_deref() == Some(QUERY_CANCELED));
    let known: Option<(Option<String>, Option<String>)> = conn
        .prepare_cached(
            "SELECT sqlstate, constraint_name FROM _tidewater_refusals WHERE table_id = ?1 AND key = ?2",
        )?
        .query_row(params![refusal.table, key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    conn.prepare_cached(&format!(
        "INSERT INTO _tidewater_refusals (table_id, key, parking, sqlstate, constraint_name, shape, due, again) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, {NOW} + {WAIT_S}, {again}) ON CONFLICT (table_id, key) DO UPDATE SET \
         parking = excluded.parking, sqlstate = excluded.sqlstate, constraint_name = excluded.constraint_name, \
         shape = excluded.shape, last_at = excluded.last_at, again = {again}, \
         due = {NOW} + min({WAIT_MAX_S}, {WAIT_S} * (1 << min(tries, 6))), tries = tries + 1"
    ))?
    .execute(params![refusal.table, key, parking, refusal.sqlstate, refusal.constraint, shape])?;
    Ok(known.is_none_or(|(sqlstate, constraint)| {
        (sqlstate, constraint) != (refusal.sqlstate.clone(), refusal.constraint.clone())
    }))
}

/// A row that the cloud has, or that was given up, is no refused one any more.
pub(super) fn forget_refusal(conn: &Connection, table: &Table, key: &[Value]) -> Result<()> {
    conn.prepare_cached("DELETE FROM _tidewater_refusals WHERE table_id = ?1 AND key = ?2")?
        .execute(params![table.id, json_array(key)])?;
    Ok(())
}

/// The same for a range of the keys in flight.
pub(super) fn forget_refusals_in_flight(
    conn: &Connection,
    table: &Table,
    range: &str,
    params: &[Value],
) -> Result<()> {
    let any = "SELECT 1 FROM _tidewater_refusals WHERE table_id = ?1 LIMIT 1";
    if !conn.prepare_cached(any)?.exists([table.id])? {
        return Ok(());
    }
    let keys = list(key_columns(table), |k| k);
    let sql = format!("SELECT {keys} FROM {} WHERE {range}", ident(&side_table(FLIGHT, table)));
    for key in query(conn, &sql, params, |row| values(row, 0, table.key.len()))? {
        forget_refusal(conn, table, &key)?;
    }
    Ok(())
}

/// Gives a number to every parked row that has none: those of tables that are not synced any more, and those of files that
/// an older version wrote.
pub(super) fn number_parked(conn: &Connection) -> Result<()> {
    let ids = query(conn, "SELECT id, key FROM _tidewater_tables", &[], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    for (id, names) in ids {
        let width = serde_json::from_str::<Vec<String>>(&names).map_or(0, |names| names.len());
        let keys = list(0..width, |at| format!("k{at}"));
        let parked = ident(&format!("_tidewater_{PARKED}_{id}"));
        let sql = format!(
            "SELECT {keys}, p.parking, p.sqlstate, p.\"constraint\", p.parked_at FROM {parked} AS p \
             WHERE p.parking NOT IN (SELECT r.parking FROM _tidewater_refusals AS r WHERE r.table_id = {id})"
        );
        let unnumbered = query(conn, &sql, &[], |row| {
            let more = (row.get(width)?, row.get(width + 1)?, row.get(width + 2)?, row.get(width + 3)?);
            Ok((values(row, 0, width)?, more))
        })?;
        for (key, more) in unnumbered {
            let (parking, sqlstate, constraint, at): (i64, Option<String>, Option<String>, String) = more;
            conn.execute(
                "INSERT INTO _tidewater_refusals (table_id, key, parking, sqlstate, constraint_name, first_at, last_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (table_id, key) DO UPDATE SET parking = excluded.parking",
                params![id, json_array(&key), parking, sqlstate, constraint, at],
            )?;
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------
// Trying again
// ---------------------------------------------------------------------------------------------------------

impl Store {
    /// The parked rows wait again, and are sent with the next round.
    ///
    /// # Errors
    /// [`StoreError::Statement`] for a table that is not synced.
    pub fn retry_parked(&mut self, which: &Which) -> Result<Retried> {
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut retried = Retried::default();
        let mut chosen: Vec<(&Table, String)> = vec![];
        match which {
            Which::All => chosen.extend(self.tables.iter().map(|table| (table, "true".to_owned()))),
            Which::Table(name) => {
                let table = self.tables.iter().find(|table| table.name.eq_ignore_ascii_case(name));
                let table =
                    table.ok_or_else(|| StoreError::Statement(format!("no table {name} is synced")))?;
                chosen.push((table, "true".to_owned()));
            }
            Which::Ids(ids) => {
                for id in ids {
                    match parked_as(&tx, &self.tables, *id)? {
                        Some((table, _, parking)) => chosen.push((table, format!("parking = {parking}"))),
                        None => retried.unknown.push(*id),
                    }
                }
            }
        }
        for (table, which) in chosen {
            retried.rows += merge_entries(&tx, table, PARKED, JOURNAL, &which)? as u64;
        }
        commit(tx)?;
        Ok(retried)
    }

    /// The cloud's table is not what it was when some of its rows were refused: those wait again. The answer is how many.
    pub fn retry_mended(&mut self, table: i64, shape: &str) -> Result<usize> {
        self.look()?;
        let Some(table) = self.tables.iter().find(|t| t.id == table) else { return Ok(0) };
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let shape = shape.replace('\'', "''");
        let which = format!(
            "parking IN (SELECT parking FROM _tidewater_refusals WHERE table_id = {} AND shape IS NOT '{shape}')",
            table.id
        );
        let rows = merge_entries(&tx, table, PARKED, JOURNAL, &which)?;
        commit(tx)?;
        Ok(rows)
    }

    /// What is known of parked rows that are to be given up, and whether they can be.
    pub fn discardable(&mut self, ids: &[i64]) -> Result<Discardable> {
        self.look()?;
        let tx = self.write.transaction()?;
        let mut found = Discardable::default();
        let mut asked = HashSet::new();
        for id in ids.iter().filter(|id| asked.insert(**id)) {
            let Some((table, key, _)) = parked_as(&tx, &self.tables, *id)? else {
                let sql = "SELECT 1 FROM _tidewater_refusals WHERE id = ?1";
                let is_known = tx.prepare_cached(sql)?.exists([id])?;
                found.refused.push((*id, if is_known { Kept::TriedAgain } else { Kept::Unknown }));
                continue;
            };
            if is_in(&tx, table, JOURNAL, &key)? {
                found.refused.push((*id, Kept::TriedAgain));
            } else {
                found.rows.push((*id, table.id, key));
            }
        }
        // One that stays keeps what it refers to, which was mostly refused, and asked about, before it.
        let mut going: Going = found.rows.iter().map(|(_, table, key)| (*table, json_array(key))).collect();
        loop {
            let before = found.rows.len();
            let mut staying = vec![];
            for (id, of, key) in std::mem::take(&mut found.rows).into_iter().rev() {
                let table = self.tables.iter().find(|t| t.id == of);
                let child = table.map(|table| pending_child(&tx, &self.tables, table, &key, &going));
                match child.transpose()?.flatten() {
                    Some(child) => {
                        going.remove(&(of, json_array(&key)));
                        found.refused.push((id, Kept::Needed(child)));
                    }
                    None => staying.push((id, of, key)),
                }
            }
            staying.reverse();
            found.rows = staying;
            if found.rows.len() == before {
                return Ok(found);
            }
        }
    }
}

/// Table, key and parking of the row that is parked under a number.
fn parked_as<'t>(
    conn: &Connection,
    tables: &'t [Table],
    id: i64,
) -> Result<Option<(&'t Table, Vec<Value>, i64)>> {
    let known: Option<(i64, i64)> = conn
        .prepare_cached("SELECT table_id, parking FROM _tidewater_refusals WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((table, parking)) = known else { return Ok(None) };
    let Some(table) = tables.iter().find(|t| t.id == table) else { return Ok(None) };
    let keys = list(key_columns(table), |k| k);
    let sql = format!("SELECT {keys} FROM {} WHERE parking = ?1", ident(&side_table(PARKED, table)));
    let mut found = query(conn, &sql, &[parking.into()], |row| values(row, 0, table.key.len()))?;
    Ok(found.pop().map(|key| (table, key, parking)))
}

fn is_in(conn: &Connection, table: &Table, kind: &str, key: &[Value]) -> Result<bool> {
    let sql = format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(kind, table)), key_is(table, 1));
    Ok(conn.prepare_cached(&sql)?.exists(rusqlite::params_from_iter(key))?)
}

/// Rows that are to be given up, by table and key.
type Going = HashSet<(i64, String)>;

/// A row that waits, or is parked and stays so, and refers to this one.
fn pending_child(
    conn: &Connection,
    tables: &[Table],
    parent: &Table,
    key: &[Value],
    going: &Going,
) -> Result<Option<String>> {
    for child in tables {
        for foreign in child.foreign_keys.iter().filter(|f| f.parent.eq_ignore_ascii_case(&parent.name)) {
            let sql = format!(
                "SELECT {} FROM {} AS p JOIN {} AS c ON {} WHERE {}",
                list(child.key_names(), |k| format!("c.{}", ident(k))),
                ident(&parent.name),
                ident(&child.name),
                refers(child, foreign, "c", "p"),
                row_is(parent, "p", |at| format!("?{}", at + 1)),
            );
            for child_key in query(conn, &sql, key, |row| values(row, 0, child.key.len()))? {
                let is_itself = child.id == parent.id && child_key == key;
                if is_itself || going.contains(&(child.id, json_array(&child_key))) {
                    continue;
                }
                for kind in [JOURNAL, FLIGHT, PARKED] {
                    if is_in(conn, child, kind, &child_key)? {
                        return Ok(Some(format!("{} {}", child.name, json_array(&child_key))));
                    }
                }
            }
        }
    }
    Ok(None)
}

/// One parked row waits again, with what was dirtied since.
fn unpark(conn: &Connection, table: &Table, key: &[Value], refused: Option<&str>) -> Result<()> {
    let Some(parked) = take_entry(conn, table, PARKED, key)? else { return Ok(()) };
    let (entry, refused) = match take_entry(conn, table, JOURNAL, key)? {
        // Edited since it was refused: tried like any other.
        Some(fresh) => (combine(parked, fresh), None),
        None => (parked, refused),
    };
    put_entry(conn, table, JOURNAL, key, &entry)?;
    if let Some(sqlstate) = refused {
        let sql = format!(
            "UPDATE {} SET refused = ?1 WHERE {}",
            ident(&side_table(JOURNAL, table)),
            key_is(table, 2)
        );
        let values = std::iter::once(Value::from(sqlstate)).chain(key.iter().cloned());
        conn.prepare_cached(&sql)?.execute(rusqlite::params_from_iter(values))?;
    }
    Ok(())
}

fn some_parked(conn: &Connection, table: &Table, sqlstate: &str) -> Result<bool> {
    let parked = ident(&side_table(PARKED, table));
    let sql = format!("SELECT 1 FROM {parked} WHERE sqlstate = '{sqlstate}' LIMIT 1");
    Ok(conn.prepare_cached(&sql)?.exists([])?)
}

/// Something was accepted, or came from the cloud: whoever may have waited for it is tried again when its wait is over.
pub(super) fn others_moved(conn: &Connection) -> Result<()> {
    let codes = list(NEED_OTHERS, |code| format!("'{code}'"));
    let sql = format!("UPDATE _tidewater_refusals SET again = 1 WHERE NOT again AND sqlstate IN ({codes})");
    conn.prepare_cached(&sql)?.execute([])?;
    Ok(())
}

/// Rows whose wait is over are tried once nothing else waits.
pub(super) fn unpark_due(conn: &Connection, tables: &[&Table]) -> Result<()> {
    let sql = format!(
        "SELECT table_id, parking, sqlstate FROM _tidewater_refusals WHERE again AND due <= {NOW} LIMIT {DUE_MAX}"
    );
    let due = query(conn, &sql, &[], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?))
    })?;
    for (table, parking, sqlstate) in due {
        conn.prepare_cached("UPDATE _tidewater_refusals SET again = 0 WHERE table_id = ?1 AND parking = ?2")?
            .execute(params![table, parking])?;
        let Some(table) = tables.iter().find(|t| t.id == table) else { continue };
        let keys = list(key_columns(table), |k| k);
        let sql = format!("SELECT {keys} FROM {} WHERE parking = ?1", ident(&side_table(PARKED, table)));
        for key in query(conn, &sql, &[parking.into()], |row| values(row, 0, table.key.len()))? {
            unpark(conn, table, &key, sqlstate.as_deref())?;
        }
    }
    Ok(())
}

/// A column of a unique index as the cloud has it: an entry's base, or the row's own value where it was not changed.
fn held(table: &Table, entry: &str, row: &str, c: usize) -> String {
    match table.key.iter().position(|k| *k == c) {
        Some(part) => format!("{entry}.k{part}"),
        None => {
            let (id, name) = (table.columns[c].id, ident(&table.columns[c].name));
            format!("CASE WHEN {entry}.d{id} THEN {entry}.b{id} ELSE {row}.{name} END")
        }
    }
}

/// Parked rows that hold a unique value which a row of this part takes come along, to any length: values that change
/// places in a circle, one of whose rows has been mended, arrive together or not at all.
pub(super) fn absorb_holders(conn: &Connection, tables: &[&Table], part: Part) -> Result<()> {
    for table in tables {
        if table.uniques.is_empty() || !some_parked(conn, table, "23505")? {
            continue;
        }
        let flight = ident(&side_table(FLIGHT, table));
        loop {
            let mut came = vec![];
            for unique in &table.uniques {
                let sql = format!(
                    "SELECT {} FROM {} AS e LEFT JOIN {rows} AS r ON {} WHERE e.sqlstate = '23505' AND e.known \
                     AND ({}) IN (SELECT {} FROM {flight} AS f CROSS JOIN {rows} AS t ON {} WHERE f.step >= ?1)",
                    list(key_columns(table), |k| format!("e.{k}")),
                    ident(&side_table(PARKED, table)),
                    row_is(table, "r", |at| format!("e.k{at}")),
                    list(&unique.columns, |(c, _)| held(table, "e", "r", *c)),
                    list(&unique.columns, |(c, _)| format!("t.{}", ident(&table.columns[*c].name))),
                    row_is(table, "t", |at| format!("f.k{at}")),
                    rows = ident(&table.name),
                );
                came.extend(query(conn, &sql, &[part.first.into()], |row| values(row, 0, table.key.len()))?);
            }
            if came.is_empty() {
                break;
            }
            for key in came {
                // Twice in the list, if it holds two of the values.
                let Some(parked) = take_entry(conn, table, PARKED, &key)? else { continue };
                // What waits of it goes along. If it flies already, that came since, and waits for the next round.
                let fresher = match take_entry(conn, table, FLIGHT, &key)? {
                    Some(flying) => Some(flying),
                    None => take_entry(conn, table, JOURNAL, &key)?,
                };
                let entry = match fresher {
                    Some(fresher) => combine(parked, fresher),
                    None => parked,
                };
                put_entry(conn, table, FLIGHT, &key, &entry)?;
                let of_this_part =
                    format!("UPDATE {flight} SET step = ?{} WHERE {}", key.len() + 1, key_is(table, 1));
                let step = Value::Integer(part.first);
                conn.prepare_cached(&of_this_part)?.execute(params_from_iter(key.iter().chain([&step])))?;
            }
        }
    }
    Ok(())
}

/// Rows that came from the cloud: children that were refused for want of them get another chance. At once the first time;
/// then something else may be missing, and a parent that is changed all the time is no reason to try all the time.
pub(super) fn unpark_children_of(conn: &Connection, tables: &[Table], pulled: &[PulledRow]) -> Result<()> {
    for child in tables {
        if child.foreign_keys.is_empty() || !some_parked(conn, child, "23503")? {
            continue;
        }
        for foreign in &child.foreign_keys {
            let parent = tables.iter().find(|t| t.name.eq_ignore_ascii_case(&foreign.parent));
            let Some(parent) = parent else { continue };
            let referred: Option<Vec<usize>> =
                foreign.parent_columns.iter().map(|name| parent.column(name)).collect();
            let Some(referred) = referred else { continue };
            let sql = format!(
                "SELECT {} FROM {} AS p JOIN {} AS c ON {} JOIN _tidewater_refusals AS r ON r.table_id = {} \
                 AND r.parking = p.parking WHERE p.sqlstate = '23503' AND (r.tries = 1 OR r.due <= {NOW}) AND {}",
                list(key_columns(child), |k| format!("p.{k}")),
                ident(&side_table(PARKED, child)),
                ident(&child.name),
                row_is(child, "c", |at| format!("p.k{at}")),
                child.id,
                all(foreign.columns.iter().enumerate(), |(at, c)| format!(
                    "c.{} = ?{}",
                    ident(&child.columns[*c].name),
                    at + 1
                )),
            );
            for row in pulled.iter().filter(|row| row.table == parent.id).filter_map(|row| row.row.as_ref()) {
                let wanted: Vec<Value> = referred.iter().map(|c| row[*c].clone()).collect();
                for key in query(conn, &sql, &wanted, |row| values(row, 0, child.key.len()))? {
                    unpark(conn, child, &key, None)?;
                }
            }
        }
    }
    Ok(())
}

/// A row of the cloud that had no place here has one, or is gone: whoever was refused for its unique value gets another
/// chance.
pub(super) fn unpark_rivals(conn: &Connection, table: &Table) -> Result<()> {
    merge_entries(conn, table, PARKED, JOURNAL, "sqlstate = '23505'")?;
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------
// Reading
// ---------------------------------------------------------------------------------------------------------

impl Readers {
    /// Whether a supervisor of this version has opened the file.
    pub fn is_tracked(&self) -> Result<bool> {
        self.read(|conn| {
            conn.prepare_cached("SELECT 1 FROM sqlite_schema WHERE name = '_tidewater_refusals'")?.exists([])
        })
    }

    /// Parked rows with numbers above `after`, at most `limit`; of one table, or of all.
    ///
    /// # Errors
    /// [`StoreError::Statement`] for a table that was never synced.
    pub fn parked(&self, table: Option<&str>, after: i64, limit: usize) -> Result<ParkedPage> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            let tables = numbered_tables(&tx, table)?;
            let mut page = ParkedPage::default();
            for (id, name, key) in &tables {
                page.total += count(&tx, PARKED, *id)?;
                let more = format!("r.id > {after} ORDER BY r.id LIMIT {limit}");
                page.rows.extend(parked_rows(&tx, *id, name, key, &more)?);
            }
            page.rows.sort_by_key(|row| row.id);
            page.rows.truncate(limit);
            Ok(page)
        })
    }

    /// The row that is parked under a number.
    pub fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            for (table, name, key) in numbered_tables(&tx, None)? {
                if let Some(row) = parked_rows(&tx, table, &name, &key, &format!("r.id = {id}"))?.pop() {
                    return Ok(Some(row));
                }
            }
            Ok(None)
        })
    }

    /// The tables with parked rows, each with the shapes that its cloud table had when they were refused.
    pub fn parked_shapes(&self) -> Result<HashMap<i64, Vec<Option<String>>>> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            let mut shapes = HashMap::new();
            // Every cycle asks, and nearly every answer is this one.
            if !tx.prepare_cached("SELECT 1 FROM _tidewater_refusals LIMIT 1")?.exists([])? {
                return Ok(shapes);
            }
            for (id, ..) in numbered_tables(&tx, None)? {
                let sql = format!(
                    "SELECT DISTINCT r.shape FROM {} AS p JOIN _tidewater_refusals AS r \
                     ON r.table_id = {id} AND r.parking = p.parking",
                    ident(&format!("_tidewater_{PARKED}_{id}"))
                );
                let found = query(&tx, &sql, &[], |row| row.get(0))?;
                if !found.is_empty() {
                    shapes.insert(id, found);
                }
            }
            Ok(shapes)
        })
    }

    /// Rows that wait to be sent, those in flight included, in the order of table and key, at most `limit`; of one table, or
    /// of all, behind the end of another page.
    ///
    /// # Errors
    /// [`StoreError::Statement`] for a table that is not synced.
    pub fn pending(
        &self,
        table: Option<&str>,
        after: Option<&PendingAfter>,
        limit: usize,
    ) -> Result<PendingPage> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            numbered_tables(&tx, table)?;
            let mut tables = remembered_tables(&tx)?;
            tables.sort_by(|a, b| a.name.cmp(&b.name));
            let mut page = PendingPage::default();
            let mut last = None;
            for mut tracked in tables {
                if table.is_some_and(|name| !tracked.name.eq_ignore_ascii_case(name)) {
                    continue;
                }
                number_columns(&tx, &mut tracked)?;
                page.total += count(&tx, JOURNAL, tracked.id)? + count(&tx, FLIGHT, tracked.id)?;
                let behind = match after {
                    Some(after) if tracked.name < after.table => continue,
                    Some(after) if tracked.name == after.table => Some(after.key.as_slice()),
                    _ => None,
                };
                if page.next.is_none() {
                    let left = limit - page.rows.len();
                    let found = pending_rows(&tx, &tracked, behind, left + 1)?;
                    let more = found.len() > left;
                    for (row, key) in found.into_iter().take(left) {
                        last = Some(PendingAfter { table: tracked.name.clone(), key });
                        page.rows.push(row);
                    }
                    if more {
                        page.next.clone_from(&last);
                    }
                }
            }
            Ok(page)
        })
    }
}

/// Id, name and key columns of the tables that have a number: those that are not synced any more have parked rows, too.
fn numbered_tables(conn: &Connection, wanted: Option<&str>) -> Result<Vec<(i64, String, Vec<String>)>> {
    let known = query(conn, "SELECT id, name, key FROM _tidewater_tables ORDER BY id", &[], |row| {
        let key: String = row.get(2)?;
        Ok((row.get(0)?, row.get::<_, String>(1)?, serde_json::from_str(&key).unwrap_or_default()))
    });
    let mut tables: Vec<(i64, String, Vec<String>)> = known?;
    if let Some(wanted) = wanted {
        tables.retain(|(_, name, _)| name.eq_ignore_ascii_case(wanted));
        if tables.is_empty() {
            return Err(StoreError::Statement(format!("no table {wanted} is synced")));
        }
    }
    Ok(tables)
}

fn number_columns(conn: &Connection, table: &mut Table) -> Result<()> {
    let sql = "SELECT name, id FROM _tidewater_columns WHERE table_id = ?1 AND NOT gone";
    let known: Vec<(String, i64)> =
        query(conn, sql, &[table.id.into()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for column in &mut table.columns {
        column.id =
            known.iter().find(|(name, _)| name.eq_ignore_ascii_case(&column.name)).map_or(0, |(_, id)| *id);
    }
    Ok(())
}

fn count(conn: &Connection, kind: &str, id: i64) -> Result<u64> {
    let sql = format!("SELECT count(*) FROM {}", ident(&format!("_tidewater_{kind}_{id}")));
    Ok(conn.prepare_cached(&sql)?.query_row([], unsigned)?)
}

fn named(names: &[String], key: &[Value]) -> serde_json::Value {
    serde_json::Value::Object(names.iter().cloned().zip(key.iter().map(Value::to_json)).collect())
}

fn parked_rows(
    conn: &Connection,
    id: i64,
    table: &str,
    names: &[String],
    which: &str,
) -> Result<Vec<ParkedRow>> {
    let width = names.len();
    let side = |kind: &str| ident(&format!("_tidewater_{kind}_{id}"));
    let sql = format!(
        "SELECT {}, r.id, p.known, p.row_values, p.sqlstate, p.message, p.\"constraint\", r.first_at, r.last_at, r.tries, \
         EXISTS (SELECT 1 FROM {} AS j WHERE {}) FROM {} AS p JOIN _tidewater_refusals AS r \
         ON r.table_id = {id} AND r.parking = p.parking WHERE {which}",
        list(0..width, |at| format!("p.k{at}")),
        side(JOURNAL),
        all(0..width, |at| format!("j.k{at} = p.k{at}")),
        side(PARKED),
    );
    query(conn, &sql, &[], |row| {
        let stored: Option<String> = row.get(width + 2)?;
        let change = match (row.get(width + 1)?, &stored) {
            (_, None) => "delete",
            (true, Some(_)) => "update",
            (false, Some(_)) => "insert",
        };
        Ok(ParkedRow {
            id: row.get(width)?,
            table: table.to_owned(),
            key: named(names, &values(row, 0, width)?),
            change: change.to_owned(),
            values: stored.map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
            sqlstate: row.get(width + 3)?,
            message: row.get(width + 4)?,
            constraint: row.get(width + 5)?,
            first_refused: row.get(width + 6)?,
            last_refused: row.get(width + 7)?,
            tries: row.get::<_, i64>(width + 8)?.unsigned_abs(),
            edited: row.get(width + 9)?,
        })
    })
}

/// The next pending rows of one table, with their keys.
fn pending_rows(
    conn: &Connection,
    table: &Table,
    after: Option<&[Value]>,
    limit: usize,
) -> Result<Vec<(PendingRow, Vec<Value>)>> {
    let width = table.key.len();
    let keys = list(key_columns(table), |k| k);
    // A column that came since the supervisor last ran is in no entry.
    let data: Vec<usize> = table.data_columns().filter(|c| table.columns[*c].id > 0).collect();
    let behind = match after {
        Some(_) => format!("({keys}) > ({})", list(0..width, |at| format!("?{}", at + 1))),
        None => "true".into(),
    };
    let part = |kind: &str, in_flight: u8| {
        format!(
            "SELECT {keys}, known, whole, stamp, refused, {in_flight} AS flies{} FROM {} WHERE {behind}",
            data.iter().map(|c| format!(", d{}", table.columns[*c].id)).collect::<String>(),
            ident(&side_table(kind, table)),
        )
    };
    let sql = format!(
        "SELECT e.*, t.{} IS NOT NULL FROM ({} UNION ALL {} ORDER BY {keys}, flies DESC LIMIT {limit}) AS e LEFT JOIN {} AS t ON {}",
        ident(table.key_names()[0]),
        part(FLIGHT, 1),
        part(JOURNAL, 0),
        ident(&table.name),
        row_is(table, "t", |at| format!("e.k{at}")),
    );
    let names: Vec<String> = table.key_names().iter().map(|name| (*name).to_owned()).collect();
    query(conn, &sql, after.unwrap_or(&[]), |row| {
        let key = values(row, 0, width)?;
        let (known, whole): (bool, i64) = (row.get(width)?, row.get(width + 1)?);
        let refused: Option<String> = row.get(width + 3)?;
        let here: bool = row.get(width + 5 + data.len())?;
        let mut columns = vec![];
        for (at, c) in data.iter().enumerate() {
            if known && here && (whole == 1 || row.get(width + 5 + at)?) {
                columns.push(table.columns[*c].name.clone());
            }
        }
        let pending = PendingRow {
            table: table.name.clone(),
            key: named(&names, &key),
            change: match (here, known) {
                (false, _) => "delete",
                (true, true) => "update",
                (true, false) => "insert",
            }
            .into(),
            columns,
            state: match (row.get(width + 4)?, refused) {
                (true, _) => "in_flight",
                _ if !table.rule.direction.sends() => "stays_here",
                (false, Some(_)) => "needs_others",
                (false, None) => "waiting",
            }
            .into(),
            changed_at: row.get::<_, Option<i64>>(width + 2)?.unwrap_or(0),
        };
        Ok((pending, key))
    })
}
