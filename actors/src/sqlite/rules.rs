//! What is set for single tables, and what becomes of them when that changes from one run to the next.
//!
//! ```text
//! the settings ─▶ `rules` in _tidewater_meta, once per start ─▶ every `Table` that is described
//! `rule_N`, under which a table was tracked last ≠ the one now:
//!   nothing came home, and now it does ─▶ compared with the cloud anew
//!   nothing comes home any more ─▶ the feed is not followed from here on
//!   it is this file's alone ─▶ no triggers; what waits goes on waiting, and flies no more
//!   it was this file's alone ─▶ without triggers it has a gap, like any other table that was not watched
//!   other rows come home ─▶ compared with the cloud anew
//!   a column is left out no more ─▶ what is in it is pending, and compared
//! ```
//!
//! The file keeps them, so that who looks into it without settings (`doctor`, a reader) sees what holds.

use super::*;
use crate::core::direction::Direction;
use crate::core::rules::{TableRule, TableRules};

/// Where the file keeps what is set.
const RULES: &str = "rules";

fn in_words(error: &serde_json::Error) -> StoreError {
    StoreError::Io(error.to_string())
}

/// Takes over what is set now. What differs from before shows when the tables are tracked.
pub(super) fn put(conn: &Connection, rules: &TableRules) -> Result<()> {
    set_meta(conn, RULES, serde_json::to_string(rules).map_err(|error| in_words(&error))?)
}

/// What is set; nothing in a file that Tidewater has never opened.
pub(super) fn get(conn: &Connection) -> Result<TableRules> {
    let ours = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_tidewater_meta'";
    if !conn.prepare_cached(ours)?.exists([])? {
        return Ok(TableRules::default());
    }
    let text: Option<String> = meta(conn, RULES)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Why a table is this file's alone, if it is set so.
pub(super) fn rests(table: &Table) -> Option<String> {
    (table.rule.direction == Direction::None)
        .then(|| format!("tables.{}.direction is {}", table.name, Direction::None.word()))
}

/// A table that is this file's alone is not watched. What waited goes on waiting; what was on its way is perhaps there
/// already, which shows when the table is compared with the cloud.
pub(super) fn rest(tx: &Connection, table: &Table, reason: &str) -> Result<Notice> {
    drop_triggers(tx, &table.name)?;
    merge_back(tx, table)?;
    let sql = format!("SELECT count(*) FROM {}", ident(&side_table(JOURNAL, table)));
    let waiting: u64 = tx.query_row(&sql, [], unsigned)?;
    let waiting = match waiting {
        0 => String::new(),
        rows => format!("; {rows} of its changes that the cloud has not seen go on waiting"),
    };
    Ok(Notice(format!("table {} {STAYS_LOCAL}: {reason}{waiting}", table.name)))
}

/// Brings a table from what was set for it when it was tracked last to what is set now.
pub(super) fn settle(tx: &Connection, table: &Table) -> Result<Option<Notice>> {
    let key = format!("rule_{}", table.id);
    let before: TableRule =
        meta::<String>(tx, &key)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let now = &table.rule;
    if before == *now {
        return Ok(None);
    }
    set_meta(tx, &key, serde_json::to_string(now).map_err(|error| in_words(&error))?)?;
    if before.direction.receives() && !now.direction.receives() {
        // From here on the feed is not followed. When the table is compared again, it is asked what others did since.
        tx.execute(
            "UPDATE _tidewater_tables SET kept_until = CASE followed WHEN 1 THEN (SELECT known FROM _tidewater_clock) \
             ELSE kept_until END, followed = CASE followed WHEN 1 THEN 2 ELSE followed END WHERE id = ?1",
            [table.id],
        )?;
    }
    if now.direction.receives() && (!before.direction.receives() || before.filter != now.filter) {
        compare(tx, table)?;
    }
    let is_back = |name: &str| {
        before.left_out.iter().any(|was| was == name) && !now.left_out.iter().any(|is| is == name)
    };
    let back: Vec<&Column> =
        table.data_columns().map(|c| &table.columns[c]).filter(|c| is_back(&c.name)).collect();
    if now.direction != Direction::None && !back.is_empty() {
        // What was written into it meanwhile is nowhere else.
        for column in back {
            tx.execute(&capture::journal_column(table, column), [])?;
        }
        compare(tx, table)?;
    }
    let said = (before.direction != now.direction && now.direction != Direction::None).then(|| {
        let [before, now] = [before.direction, now.direction].map(Direction::word);
        Notice(format!("table {}: its direction is {now}, and was {before}", table.name))
    });
    Ok(said)
}

/// The table is compared with the cloud anew.
fn compare(tx: &Connection, table: &Table) -> Result<()> {
    tx.execute(
        "UPDATE _tidewater_tables SET snapshot = 'none', snapshot_after = NULL WHERE id = ?1",
        [table.id],
    )?;
    Ok(())
}

/// Whether the entries of the table with this number are going to be sent. Others wait for another setting.
pub(super) fn sends(conn: &Connection, id: i64) -> rusqlite::Result<bool> {
    let text: Option<String> = conn
        .prepare_cached("SELECT value FROM _tidewater_meta WHERE key = 'rule_' || ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let rule: TableRule = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(rule.direction.sends())
}

/// Whether the cloud may have rows of the table, and keep them, that this file never sees.
pub(super) fn keeps_strangers_away(table: &Table) -> bool {
    table.rule.filter.is_some() || !table.rule.direction.receives()
}

/// The page as it is to be applied: a row that does not come home is as good as deleted there, unless something is pending in
/// it. That is merged with the row and sent first.
pub(super) fn without_strangers<'p>(
    tx: &Connection,
    tables: &[Table],
    page: &'p Page,
) -> Result<Cow<'p, Page>> {
    if page.strangers.is_empty() {
        return Ok(Cow::Borrowed(page));
    }
    let mut page = page.clone();
    let mut leaving = HashSet::new();
    for (id, key) in std::mem::take(&mut page.strangers) {
        let table = tables.iter().find(|table| table.id == id).ok_or(StoreError::SchemaChanged)?;
        let mut pending = false;
        for kind in [JOURNAL, PARKED] {
            let sql = format!("SELECT 1 FROM {} WHERE {}", ident(&side_table(kind, table)), key_is(table, 1));
            pending |= tx.prepare_cached(&sql)?.exists(params_from_iter(&key))?;
        }
        if !pending {
            leaving.insert((id, json_array(&key)));
        }
    }
    for (id, key) in &leaving {
        let table = tables.iter().find(|table| table.id == *id).ok_or(StoreError::SchemaChanged)?;
        page.leaving.insert(format!("{}{key}", table.name));
    }
    let leaves = |row: &PulledRow| leaving.contains(&(row.table, json_array(&row.key)));
    let (gone, unfit) = std::mem::take(&mut page.unfit).into_iter().partition(|unfit| leaves(&unfit.row));
    page.unfit = unfit;
    page.rows.extend(Vec::into_iter(gone).map(|unfit: Unfit| unfit.row));
    for row in page.rows.iter_mut().filter(|row| leaves(row)) {
        row.row = None;
    }
    Ok(Cow::Owned(page))
}

impl Applier<'_> {
    /// What a row has here in the columns that are left out; nothing where there is no row.
    pub(super) fn left_out(&self, table: &Table, key: &[Value]) -> Result<Vec<Value>> {
        let names = &table.rule.left_out;
        if names.is_empty() {
            return Ok(vec![]);
        }
        let sql = format!(
            "SELECT {} FROM {} AS t WHERE {}",
            list(names, |name| format!("t.{}", ident(name))),
            ident(&table.name),
            row_is(table, "t", param)
        );
        let mut rows = query(self.tx, &sql, key, |row| values(row, 0, names.len()))?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// What a row that goes had in the columns that are left out is nowhere else: it goes on record.
    pub(super) fn log_left_out(&self, table: &Table, key: &[Value]) -> Result<()> {
        for (name, value) in table.rule.left_out.iter().zip(self.left_out(table, key)?) {
            if value != Value::Null {
                self.tx
                    .prepare_cached(
                        "INSERT INTO _tidewater_conflicts (table_name, key, column, local, kept) \
                         VALUES (?1, ?2, ?3, ?4, 'cloud')",
                    )?
                    .execute(params![table.name, json_array(key), name, value.to_json().to_string()])?;
            }
        }
        Ok(())
    }

    /// In a table whose rows only come home, the cloud's row takes the place of what was edited here; the edit is on record.
    /// True: nothing is pending in the row any more.
    pub(super) fn give_way(
        &mut self,
        table: &Table,
        pulled: &PulledRow,
        local: Option<&[Value]>,
    ) -> Result<bool> {
        let Some(entry) = self.take_pending(table, &pulled.key)? else { return Ok(true) };
        if pulled.row.is_none() && !entry.known && local.is_some() {
            // Nobody but this file has ever had it.
            put_entry(self.tx, table, JOURNAL, &pulled.key, &entry)?;
            return Ok(false);
        }
        let row = self.as_written_here(pulled, local, None);
        let was_edited = |c: usize, local: &[Value]| {
            !entry.known || entry.whole || entry.dirty[c] && !entry.base[c].identical(&local[c])
        };
        let whole = |row: &[Value]| Some(Value::Text(json_array(row)));
        let loss = |column, base, local, cloud| Loss { column, base, local, cloud, kept: Side::Cloud };
        let losses: Vec<Loss> = match (local, row.as_deref()) {
            (Some(local), Some(cloud)) => table
                .data_columns()
                .filter(|c| !local[*c].identical(&cloud[*c]) && was_edited(*c, local))
                .map(|c| {
                    let base = (entry.known && entry.dirty[c]).then(|| entry.base[c].clone());
                    loss(Some(c), base, Some(local[c].clone()), Some(cloud[c].clone()))
                })
                .collect(),
            (Some(local), None) if table.data_columns().any(|c| was_edited(c, local)) => {
                vec![loss(None, None, whole(local), None)]
            }
            (None, Some(cloud)) => vec![loss(None, None, None, whole(cloud))],
            _ => vec![],
        };
        self.conflicts += u64::from(!losses.is_empty());
        log_losses(self.tx, table, &pulled.key, &losses)?;
        parked::forget_refusal(self.tx, table, &pulled.key)?;
        Ok(true)
    }
}
