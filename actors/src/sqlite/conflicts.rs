//! The conflict log as people read it, and how a value that lost is brought back.
//!
//! ```text
//! merge, discard ─▶ _tidewater_conflicts ─▶ the next round tells the cloud (tidewater.conflicts)
//!                          └▶ conflicts, conflict ─▶ a person ─▶ restoring ─▶ a statement: an edit like any other
//! ```

use rusqlite::{Connection, Row};
use serde::{Deserialize, Serialize};

use super::{Readers, Result, Statement, StoreError, query, remembered_tables, row_is, unsigned};
use crate::core::schema::Table;
use crate::core::value::Value;
use crate::sql::{ident, list};

/// A value, or a whole row, that lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    /// Its number.
    pub id: i64,
    /// When it was decided, in UTC.
    pub at: String,
    /// The table.
    pub table: String,
    /// The key, by column as long as the table is synced.
    pub key: serde_json::Value,
    /// The column; none where the row as a whole is meant, whose values are an array then.
    pub column: Option<String>,
    /// The names of the columns of such an array, as long as the table has as many.
    pub columns: Option<Vec<String>>,
    /// What both sides started from, where that is known.
    pub base: Option<serde_json::Value>,
    /// What was here; none: deleted. In JSON that is `null`, as a column's NULL is: `restores` tells them apart.
    pub local: Option<serde_json::Value>,
    /// What was in the cloud; none: deleted.
    pub cloud: Option<serde_json::Value>,
    /// Whose was kept: `local` or `cloud`.
    pub kept: String,
    /// What lost, and so what bringing it back does.
    pub restores: Restores,
}

/// What comes back when a conflict's loser is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restores {
    /// The value of a column, which may be NULL.
    Value,
    /// A row that is not there any more.
    Row,
    /// A deletion: the row goes, whichever column the conflict is about, with every row that goes along with it.
    Deletion,
}

/// Some of the conflicts, the newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ConflictPage {
    /// How many there are, of the table that was asked for or of all.
    pub total: u64,
    /// The conflicts.
    pub rows: Vec<Conflict>,
}

const COLUMNS: &str = "id, at, table_name, key, column, base, local, cloud, kept";

impl Readers {
    /// The newest conflicts, at most `limit`, of one table or of all; only such as are older than the number `before`.
    pub fn conflicts(&self, table: Option<&str>, before: Option<i64>, limit: usize) -> Result<ConflictPage> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            let tables = remembered_tables(&tx)?;
            let which = "(?1 IS NULL OR table_name = ?1 COLLATE NOCASE)";
            let wanted = table.map_or(Value::Null, |table| Value::Text(table.to_owned()));
            let total = tx
                .prepare_cached(&format!("SELECT count(*) FROM _tidewater_conflicts WHERE {which}"))?
                .query_row([&wanted], unsigned)?;
            let sql = format!(
                "SELECT {COLUMNS} FROM _tidewater_conflicts WHERE {which} AND id < ?2 ORDER BY id DESC LIMIT {limit}"
            );
            let before = Value::Integer(before.unwrap_or(i64::MAX));
            let rows = query(&tx, &sql, &[wanted, before], |row| conflict(row, &tables))?;
            Ok(ConflictPage { total, rows })
        })
    }

    /// The conflict of a number.
    pub fn conflict(&self, id: i64) -> Result<Option<Conflict>> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            found(&tx, id, &remembered_tables(&tx)?)
        })
    }

    /// What brings the value back that lost: it sets the column, deletes the row or inserts it again. Where it changes no row,
    /// there is none any more that it could change.
    ///
    /// # Errors
    /// [`StoreError::Statement`] when there is no such conflict, or its table is not the one any more that it was about.
    pub fn restoring(&self, id: i64) -> Result<Statement> {
        self.with(|conn| {
            let tx = conn.unchecked_transaction()?;
            let tables = remembered_tables(&tx)?;
            let conflict = found(&tx, id, &tables)?
                .ok_or_else(|| StoreError::Statement("there is no conflict of this number".to_owned()))?;
            statement(&conflict, &tables).map_err(StoreError::Statement)
        })
    }
}

fn found(conn: &Connection, id: i64, tables: &[Table]) -> Result<Option<Conflict>> {
    let sql = format!("SELECT {COLUMNS} FROM _tidewater_conflicts WHERE id = ?1");
    Ok(query(conn, &sql, &[id.into()], |row| conflict(row, tables))?.pop())
}

fn conflict(row: &Row<'_>, tables: &[Table]) -> rusqlite::Result<Conflict> {
    let json = |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
    let value = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(at)?.map(json));
    let column: Option<String> = row.get(4)?;
    // A whole row stands there as an array within a text.
    let whole = |value: Option<serde_json::Value>| match (&column, value) {
        (None, Some(serde_json::Value::String(row))) => Some(json(row)),
        (_, value) => value,
    };
    let table: String = row.get(2)?;
    let known = tables.iter().find(|known| known.name.eq_ignore_ascii_case(&table));
    let key = match (json(row.get(3)?), known) {
        (serde_json::Value::Array(parts), Some(known)) if parts.len() == known.key.len() => {
            let names = known.key_names().into_iter().map(str::to_owned);
            serde_json::Value::Object(names.zip(parts).collect())
        }
        (key, _) => key,
    };
    let (local, cloud, kept): (_, _, String) = (whole(value(6)?), whole(value(7)?), row.get(8)?);
    let lost = if kept == "cloud" { &local } else { &cloud };
    let restores = match (&column, lost) {
        (_, None) => Restores::Deletion,
        (Some(_), Some(_)) => Restores::Value,
        (None, Some(_)) => Restores::Row,
    };
    let width = |side: &Option<serde_json::Value>| side.as_ref()?.as_array().map(Vec::len);
    let columns = known
        .filter(|known| column.is_none() && width(&local).or(width(&cloud)) == Some(known.columns.len()))
        .map(|known| known.columns.iter().map(|column| column.name.clone()).collect());
    Ok(Conflict {
        id: row.get(0)?,
        at: row.get(1)?,
        key,
        base: whole(value(5)?),
        local,
        cloud,
        kept,
        restores,
        table,
        column,
        columns,
    })
}

/// The error is for people.
fn statement(conflict: &Conflict, tables: &[Table]) -> std::result::Result<Statement, String> {
    let name = &conflict.table;
    let table = tables
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("the table {name} is not synced any more"))?;
    let changed = || format!("the columns of {name} are not those any more that the conflict was about");
    let part = |name: &str| Value::from_json(conflict.key.get(name)?);
    let key: Vec<Value> =
        table.key_names().into_iter().map(part).collect::<Option<_>>().ok_or_else(changed)?;
    let lost = if conflict.kept == "cloud" { &conflict.local } else { &conflict.cloud };
    let target = ident(&table.name);
    let (sql, params) = match (&conflict.column, lost) {
        (_, None) => (
            format!("DELETE FROM {target} AS t WHERE {}", row_is(table, "t", |at| format!("?{}", at + 1))),
            key,
        ),
        (Some(column), Some(value)) => {
            let column = table.column(column).ok_or_else(changed)?;
            let set = ident(&table.columns[column].name);
            let mut params = vec![Value::from_json(value).ok_or_else(changed)?];
            params.extend(key);
            let which = row_is(table, "t", |at| format!("?{}", at + 2));
            (format!("UPDATE {target} AS t SET {set} = ?1 WHERE {which}"), params)
        }
        (None, Some(row)) => {
            let row: Option<Vec<Value>> =
                row.as_array().and_then(|row| row.iter().map(Value::from_json).collect());
            let row = row.filter(|row| row.len() == table.columns.len()).ok_or_else(changed)?;
            let columns = list(&table.columns, |column| ident(&column.name));
            let places = list(0..row.len(), |at| format!("?{}", at + 1));
            (format!("INSERT INTO {target} ({columns}) VALUES ({places})"), row)
        }
    };
    Ok(Statement { sql, params })
}
