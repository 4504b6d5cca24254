//! The journal of one table, and the triggers that fill it, as SQL text.
//!
//! ```text
//! _tidewater_journal_N   waiting: one entry per dirty row, in the table's own key columns k0, k1, …
//! _tidewater_flight_N    the same entries while a round carries them, with the step in which each came into it
//! _tidewater_parked_N    the same, with PostgreSQL's refusal
//! _tidewater_aside_N     keys whose row came from the cloud and cannot be stored here yet
//! _tidewater_seen_N      during a snapshot only: the keys that the cloud has
//! _tidewater_sent_N      until the next pull has ended: keys of which the cloud has taken a change, and when
//!
//! entry   known 0: the cloud has no such row; 1: it has, and b<id> holds the value before the change
//!         whole 1: columns that the triggers do not know may have changed; with known 0, after a time without
//!                  triggers: the cloud may have the row all the same, so that deleting it here is sent
//!               2: the row was deleted, beyond doubt
//!         d<id> 1: the column with that stable id is dirty
//! ```
//!
//! Rules that the text below keeps (each has a test in `tests/capture.rs`):
//! - `ON CONFLICT DO UPDATE`, never `INSERT OR REPLACE`: an outer `UPDATE OR IGNORE` overrides the latter.
//! - Rows that a `REPLACE` evicts fire no delete trigger, so BEFORE triggers journal every row that collides.
//! - Columns are compared by storage class and bytes, whatever the collation.
//! - No trigger can make the user's write fail, and each runs on the SQLite of any program (3.24 or newer).

use super::{all, ident, list};
use crate::core::merge::Entry;
use crate::core::schema::{Column, Table};

macro_rules! wall {
    () => {
        "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) + 1000 + ahead"
    };
}

/// The stamp of what is written now, in microseconds since 1970: the wall clock, as far off as the server found it to be, and
/// later than whatever this file had seen of the cloud. SQLite's clock shows whole milliseconds: the next one is taken, or what
/// is written after something would be earlier than that. `unixepoch('subsec')` is NULL before SQLite 3.42.
const NOW: &str = concat!("(SELECT max(", wall!(), ", seen + 1) FROM _tidewater_clock)");

/// What the cloud's clock shows now, as far as this machine's tells, where `ahead` is at hand.
const WALL: &str = wall!();

/// The kinds of table that hold keys or entries.
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const FLIGHT: &str = "flight";
pub(crate) const PARKED: &str = "parked";
pub(crate) const ASIDE: &str = "aside";
pub(crate) const SEEN: &str = "seen";
pub(crate) const SENT: &str = "sent";

/// The name of one of a table's own tables.
pub(crate) fn side_table(kind: &str, table: &Table) -> String {
    format!("_tidewater_{kind}_{}", table.id)
}

/// The journal's names of the key columns.
pub(crate) fn key_columns(table: &Table) -> Vec<String> {
    (0..table.key.len()).map(|at| format!("k{at}")).collect()
}

/// Every column of an entry, in one order for all three tables that hold entries.
pub(crate) fn entry_columns(table: &Table) -> Vec<String> {
    let mut columns = key_columns(table);
    columns.extend(["known", "whole", "stamp", "epoch", "seen"].map(String::from));
    for c in table.data_columns() {
        columns.push(format!("d{}", table.columns[c].id));
        columns.push(format!("b{}", table.columns[c].id));
    }
    columns
}

/// Creates a new table's side tables. Where the key is the table's rowid it is the journal's as well, which makes each
/// write of it a good deal cheaper.
pub(crate) fn create_side_tables(table: &Table, by_rowid: bool) -> String {
    let keys = list(key_columns(table), |k| k);
    let mut entry =
        "known INTEGER NOT NULL, whole INTEGER NOT NULL DEFAULT 0, stamp INTEGER, epoch INTEGER, \
                     seen INTEGER NOT NULL DEFAULT 0"
            .to_owned();
    for c in table.data_columns() {
        let id = table.columns[c].id;
        entry += &format!(", d{id} INTEGER NOT NULL DEFAULT 0, b{id}");
    }
    let mut sql = String::new();
    for (kind, extra) in [
        (JOURNAL, ", refused TEXT"),
        (FLIGHT, ", refused TEXT, step INTEGER NOT NULL DEFAULT 0"),
        (
            PARKED,
            ", sqlstate TEXT, message TEXT NOT NULL, \"constraint\" TEXT, row_values TEXT, parked_at TEXT NOT NULL, parking INTEGER NOT NULL DEFAULT 0",
        ),
    ] {
        let name = ident(&side_table(kind, table));
        sql += &match (kind, by_rowid) {
            (JOURNAL, true) => {
                format!("CREATE TABLE IF NOT EXISTS {name} (k0 INTEGER PRIMARY KEY, {entry}{extra});\n")
            }
            _ => format!(
                "CREATE TABLE IF NOT EXISTS {name} ({keys}, {entry}{extra}, PRIMARY KEY ({keys})) WITHOUT ROWID;\n"
            ),
        };
    }
    sql += &index_steps(table);
    let aside = ident(&side_table(ASIDE, table));
    sql += &format!(
        "CREATE TABLE IF NOT EXISTS {aside} ({keys}, reason TEXT NOT NULL, PRIMARY KEY ({keys})) WITHOUT ROWID;\n"
    );
    sql + &create_sent(table)
}

/// What only grows, and is emptied as a whole, needs no order.
pub(crate) fn create_sent(table: &Table) -> String {
    let (sent, keys) = (ident(&side_table(SENT, table)), list(key_columns(table), |k| k));
    format!("CREATE TABLE IF NOT EXISTS {sent} ({keys}, at INTEGER NOT NULL);\n")
}

/// Of the rows that the cloud has just taken, those that it had before: others may have them as they were. Not one that somebody
/// else has changed beyond what was read: of that one this file does not have everything.
pub(crate) fn note_sent(table: &Table, range: &str) -> String {
    let [sent, flight] = [SENT, FLIGHT].map(|kind| ident(&side_table(kind, table)));
    let keys = list(key_columns(table), |k| k);
    format!(
        "INSERT INTO {sent} ({keys}, at) SELECT {keys}, (SELECT {WALL} FROM _tidewater_clock) FROM {flight} \
         WHERE (known OR whole) AND seen <= 0 AND {range}"
    )
}

/// Rows that are pending because the cloud has lost some of what it had, and that it had taken from here after this file last had
/// everything: they are as they were then.
pub(crate) fn lift_sent(table: &Table) -> String {
    let [journal, sent] = [JOURNAL, SENT].map(|kind| ident(&side_table(kind, table)));
    let keys = list(key_columns(table), |k| k);
    format!(
        "UPDATE {journal} AS j SET stamp = max(j.stamp, s.last) \
         FROM (SELECT {keys}, max(at) AS last FROM {sent} GROUP BY {keys}) AS s WHERE j.whole = 1 AND {}",
        all(key_columns(table), |k| format!("j.{k} = s.{k}")),
    )
}

/// Finds a round's rows by the step in which they came. Those that came last are the first that the others need.
fn index_steps(table: &Table) -> String {
    let (index, flight) =
        (ident(&format!("_tidewater_step_{}", table.id)), ident(&side_table(FLIGHT, table)));
    format!("CREATE INDEX IF NOT EXISTS {index} ON {flight} (step DESC);\n")
}

/// Brings steps to a table that an older version made. What is in flight came in the first one.
pub(crate) fn add_steps(table: &Table) -> String {
    let flight = ident(&side_table(FLIGHT, table));
    format!("ALTER TABLE {flight} ADD COLUMN step INTEGER NOT NULL DEFAULT 0;\n{}", index_steps(table))
}

/// Adds a column's dirty flag and base to the tables that hold entries. Those that are there count the column as
/// changed from its default: they may have collected changes before the triggers knew it.
pub(crate) fn add_column(table: &Table, column: &Column) -> String {
    let id = column.id;
    [JOURNAL, FLIGHT, PARKED]
        .map(|kind| {
            let name = ident(&side_table(kind, table));
            let base = literal_default(column).unwrap_or_else(|| "NULL".into());
            format!(
                "ALTER TABLE {name} ADD COLUMN d{id} INTEGER NOT NULL DEFAULT 0;\nALTER TABLE {name} ADD COLUMN b{id};\n\
                 UPDATE {name} SET d{id} = 1, b{id} = {base} WHERE known OR whole;\n"
            )
        })
        .concat()
}

/// A column's default, if it is a constant. A bare or double-quoted word is a text there, and a column elsewhere.
fn literal_default(column: &Column) -> Option<String> {
    let text = column.default.as_deref()?.trim();
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let upper = text.to_ascii_uppercase();
    if text.starts_with(|c: char| c == '\'' || c == '.' || c == '-' || c == '+' || c.is_ascii_digit())
        || upper.starts_with("X'")
        || ["NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"]
            .contains(&upper.as_str())
    {
        // A comment in it, as `(5 -- usual)` keeps one, would go on behind it.
        return Some(if text.contains("--") { format!("{text}\n") } else { text.to_owned() });
    }
    if let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Some(quoted(&inner.replace("\"\"", "\"")));
    }
    text.chars().all(|c| c.is_alphanumeric() || c == '_').then(|| quoted(text))
}

/// When rows were written that nobody has seen coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// Just now, in a table that is new.
    Now,
    /// At any time before anybody watched.
    Ever,
    /// Perhaps never, perhaps while nobody watched: the cloud may have these rows, whatever the columns that changed.
    Gap,
    /// They were in the cloud, which has lost some of them: as this file had them when it last had everything.
    Lost,
}

/// Every present row becomes pending, as if it had been inserted.
pub(crate) fn journal_everything(table: &Table, unseen: Unseen) -> String {
    let name = ident(&side_table(JOURNAL, table));
    let keys = list(key_columns(table), |k| k);
    let own = list(table.key_names(), ident);
    let present = all(table.key_names(), |k| format!("{} IS NOT NULL", ident(k)));
    let epoch = EPOCH;
    let lost = format!(
        "(SELECT CASE t.followed WHEN 1 THEN c.known WHEN 2 THEN t.kept_until ELSE 0 END \
         FROM _tidewater_tables AS t, _tidewater_clock AS c WHERE t.id = {})",
        table.id
    );
    let (whole, stamp, seen) = match unseen {
        Unseen::Now => (0, NOW, 0),
        Unseen::Ever => (0, "0", Entry::UNMET),
        Unseen::Gap => (1, "0", 0),
        Unseen::Lost => (1, lost.as_str(), 0),
    };
    // A row that waits for an older edit has the newest of the others' as well.
    let lifted = match unseen {
        Unseen::Lost => ", stamp = max(coalesce(stamp, 0), excluded.stamp)",
        Unseen::Now | Unseen::Ever | Unseen::Gap => "",
    };
    format!(
        "INSERT INTO {name} ({keys}, known, whole, stamp, epoch, seen) SELECT {own}, 0, {whole}, {stamp}, {epoch}, {seen} FROM {} \
         WHERE {present} ON CONFLICT DO UPDATE SET whole = max(whole, excluded.whole){lifted}",
        ident(&table.name),
    )
}

/// Rows that the cloud did not show become pending; `left` is the rest of the query that finds them, after their `own` keys.
pub(crate) fn journal_left(table: &Table, own: &str, left: &str) -> String {
    let name = ident(&side_table(JOURNAL, table));
    let keys = list(key_columns(table), |k| k);
    format!("INSERT INTO {name} ({keys}, known, whole, stamp, epoch) SELECT {own}, 0, 1, 0, {EPOCH} {left}")
}

/// A column's values become pending, because the cloud has lost them: it has nothing in their place.
pub(crate) fn journal_column(table: &Table, column: &Column) -> String {
    let name = ident(&side_table(JOURNAL, table));
    let keys = list(key_columns(table), |k| k);
    let own = list(table.key_names(), ident);
    let present = all(table.key_names(), |k| format!("{} IS NOT NULL", ident(k)));
    let (id, stored) = (column.id, ident(&column.name));
    format!(
        "INSERT INTO {name} ({keys}, known, d{id}, stamp, epoch) SELECT {own}, 1, 1, 0, {EPOCH} FROM {} \
         WHERE {present} AND {stored} IS NOT NULL ON CONFLICT DO UPDATE SET d{id} = 1, b{id} = NULL",
        ident(&table.name),
    )
}

const EPOCH: &str = "(SELECT epoch FROM _tidewater_clock)";

/// The triggers of a table: their names and the exact text under which SQLite remembers them.
pub(crate) fn triggers(table: &Table) -> Vec<(String, String)> {
    let name = |kind: &str| format!("_tidewater_{}_{kind}", table.id);
    let on = ident(&table.name);
    let mut triggers = vec![];
    let mut trigger = |kind: &str, event: &str, when: &str, body: &str| {
        let name = name(kind);
        let sql = format!("CREATE TRIGGER {} {event} ON {on} {when}\nBEGIN\n{body}\nEND", ident(&name));
        triggers.push((name, sql));
    };
    let key_is_set = |row: &str| all(table.key_names(), |k| format!("{row}.{} IS NOT NULL", ident(k)));
    let keys = list(key_columns(table), |k| k);
    let same_key = all(table.key_names(), |k| same(&ident(k)));
    let data: Vec<&Column> = table.data_columns().map(|c| &table.columns[c]).collect();

    // Asked first, because the statements would open the journal for writing only to find nothing.
    let evicts = collisions(table, false)
        .iter()
        .map(|rows| format!("EXISTS (SELECT 1 {rows})"))
        .collect::<Vec<_>>()
        .join(" OR ");
    trigger("evict_insert", "BEFORE INSERT", &format!("WHEN {evicts}"), &colliding_rows(table, false));
    // What leaves its key and what comes to another is journaled before foreign-key actions reach the row, which they
    // do before any AFTER trigger; the AFTER triggers below make it certain.
    let leaves = whole_row(table, "OLD", &format!("WHERE {} AND NOT ({same_key})", key_is_set("OLD")), 0);
    let comes = format!(
        "INSERT INTO {} ({keys}, known, stamp, epoch) SELECT {}, 0, {NOW}, {EPOCH} WHERE {} AND NOT ({same_key})\n  \
         ON CONFLICT ({keys}) DO UPDATE SET known = known;\n",
        ident(&side_table(JOURNAL, table)),
        list(table.key_names(), |k| format!("NEW.{}", ident(k))),
        key_is_set("NEW"),
    );
    let evicted = colliding_rows(table, true);
    // Not `UPDATE OF`, which does not see a key that is set by its other name, rowid.
    let moves = unique_columns(table)
        .iter()
        .map(|c| same(&ident(&table.columns[*c].name)))
        .chain(table.rowid.iter().map(|rowid| format!("OLD.{0} IS NEW.{0}", ident(rowid))))
        .collect::<Vec<_>>();
    trigger(
        "evict_update",
        "BEFORE UPDATE",
        &format!("WHEN NOT ({})", moves.join(" AND ")),
        &format!("{leaves}{evicted}{comes}"),
    );

    let new_entry =
        format!("{}, 0, {NOW}, {EPOCH}", list(table.key_names(), |k| format!("NEW.{}", ident(k))));
    let inserted = |source: &str| {
        let updates = [LIFTED.to_owned(), "whole = CASE whole WHEN 2 THEN known ELSE whole END".to_owned()]
            .into_iter()
            .chain(data.iter().map(|c| format!("d{} = 1", c.id)));
        format!(
            "INSERT INTO {} ({keys}, known, stamp, epoch) {source}\n  ON CONFLICT ({keys}) DO UPDATE SET {};\n",
            ident(&side_table(JOURNAL, table)),
            list(updates, |s| s),
        )
    };
    let deleted = whole_row(table, "OLD", &format!("WHERE {}", key_is_set("OLD")), 2);
    let when = format!("WHEN {}", key_is_set("NEW"));
    trigger("insert", "AFTER INSERT", &when, &inserted(&format!("VALUES ({new_entry})")));
    trigger("delete", "AFTER DELETE", "", &deleted);
    let inserted = inserted(&format!("SELECT {new_entry} WHERE {}", key_is_set("NEW")));
    trigger("rekey", "AFTER UPDATE", &format!("WHEN NOT ({same_key})"), &format!("{deleted}{inserted}"));

    let changed = |c: &Column| differs(&ident(&c.name));
    let any = if data.is_empty() {
        "0".to_owned()
    } else {
        data.iter().map(|c| changed(c)).collect::<Vec<_>>().join(" OR ")
    };
    // What is left out explains a change, and is none for the cloud.
    let explained = table
        .rule
        .left_out
        .iter()
        .fold(any.clone(), |explained, name| format!("{explained} OR {}", differs(&ident(name))));
    let unexplained = whole_row(table, "OLD", "WHERE true", 1);
    let when = |what: &str| format!("WHEN {} AND {same_key} AND {what}", key_is_set("NEW"));
    // Before, for the same reason: a foreign-key action that comes back to the row must not pass for its first change.
    trigger("unexplained", "BEFORE UPDATE", &when(&format!("NOT ({explained})")), &unexplained);
    if data.is_empty() {
        // For its name: a table without it has a gap.
        trigger("update", "BEFORE UPDATE", "WHEN 0", "SELECT 0;");
    } else {
        let updated = format!(
            "INSERT INTO {} ({keys}, known, stamp, epoch, {}) SELECT {}, 1, {NOW}, {EPOCH}, {} WHERE true\n  \
             ON CONFLICT ({keys}) DO UPDATE SET {};\n",
            ident(&side_table(JOURNAL, table)),
            list(&data, |c| format!("d{0}, b{0}", c.id)),
            list(table.key_names(), |k| format!("OLD.{}", ident(k))),
            list(&data, |c| {
                let changed = changed(c);
                format!("{changed}, CASE WHEN {changed} THEN OLD.{} END", ident(&c.name))
            }),
            list(std::iter::once(LIFTED.to_owned()).chain(data.iter().map(|c| first_base_wins(c))), |s| s),
        );
        trigger("update", "BEFORE UPDATE", &when(&format!("({any})")), &updated);
    }
    triggers
}

/// The stamp of an entry that is there already only grows.
const LIFTED: &str = "stamp = max(stamp + 1, excluded.stamp)";

/// The base of a column is its value before the first of the changes that one entry collects.
fn first_base_wins(column: &Column) -> String {
    let id = column.id;
    format!("b{id} = CASE WHEN d{id} THEN b{id} ELSE excluded.b{id} END, d{id} = max(d{id}, excluded.d{id})")
}

/// Journals whole rows as known to the cloud: their present values become the bases.
fn whole_row(table: &Table, row: &str, source: &str, whole: u8) -> String {
    let data: Vec<&Column> = table.data_columns().map(|c| &table.columns[c]).collect();
    let mut columns = key_columns(table);
    columns.extend(["known", "whole", "stamp", "epoch"].map(String::from));
    let mut values: Vec<String> = table.key_names().iter().map(|k| format!("{row}.{}", ident(k))).collect();
    values.extend(["1".into(), whole.to_string(), NOW.into(), EPOCH.into()]);
    let mut updates = vec![LIFTED.to_owned()];
    if whole == 1 {
        updates.push("whole = CASE WHEN known THEN max(whole, 1) ELSE whole END".to_owned());
    } else {
        updates.extend([
            "known = max(known, whole = 1)".to_owned(),
            "whole = max(whole, excluded.whole)".to_owned(),
        ]);
    }
    for column in data {
        columns.extend([format!("d{}", column.id), format!("b{}", column.id)]);
        values.extend(["1".into(), format!("{row}.{}", ident(&column.name))]);
        updates.push(first_base_wins(column));
    }
    format!(
        "INSERT INTO {} ({}) SELECT {} {source}\n  ON CONFLICT ({}) DO UPDATE SET {};\n",
        ident(&side_table(JOURNAL, table)),
        list(columns, |c| c),
        list(values, |v| v),
        list(key_columns(table), |k| k),
        list(updates, |u| u),
    )
}

/// One statement per unique index that journals the rows which the new row would evict.
fn colliding_rows(table: &Table, update: bool) -> String {
    collisions(table, update).iter().map(|rows| whole_row(table, "evicted", rows, 0)).collect()
}

/// The rows which the new row would evict: per unique index, the primary key first, and the rowid last. Of the last, a row
/// that does not say it has -1 before it is inserted, and whoever really has that is journaled without a change.
pub(crate) fn collisions(table: &Table, update: bool) -> Vec<String> {
    let mut sets: Vec<Vec<(usize, Option<&str>)>> = vec![table.key.iter().map(|c| (*c, None)).collect()];
    sets.extend(
        table
            .uniques
            .iter()
            .map(|u| u.columns.iter().map(|(c, collation)| (*c, Some(collation.as_str()))).collect()),
    );
    let by_rowid = table.rowid.iter().map(|rowid| format!("evicted.{0} = NEW.{0}", ident(rowid)));
    sets.into_iter()
        .map(|set| {
            all(set, |(c, collation)| {
                let column = &table.columns[c];
                let name = ident(&column.name);
                let collate =
                    collation.map_or(String::new(), |collation| format!(" COLLATE {}", ident(collation)));
                // `REPLACE` puts a default where a column refuses NULL, after this trigger.
                match literal_default(column) {
                    Some(default) if column.not_null => {
                        format!("evicted.{name}{collate} = coalesce(NEW.{name}, {default})")
                    }
                    _ => format!("evicted.{name}{collate} = NEW.{name}"),
                }
            })
        })
        .chain(by_rowid)
        .map(|collides| {
            let present = all(table.key_names(), |k| format!("evicted.{} IS NOT NULL", ident(k)));
            let other = if update {
                format!(
                    " AND NOT ({})",
                    all(table.key_names(), |k| format!("evicted.{0} IS OLD.{0}", ident(k)))
                )
            } else {
                String::new()
            };
            format!("FROM {} AS evicted WHERE {collides} AND {present}{other}", ident(&table.name))
        })
        .collect()
}

fn unique_columns(table: &Table) -> Vec<usize> {
    let mut columns = table.key.clone();
    columns.extend(table.uniques.iter().flat_map(|u| u.columns.iter().map(|(c, _)| *c)));
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn differs(column: &str) -> String {
    format!(
        "(OLD.{column} IS NOT NEW.{column} COLLATE BINARY OR typeof(OLD.{column}) <> typeof(NEW.{column}))"
    )
}

fn same(column: &str) -> String {
    format!("(OLD.{column} IS NEW.{column} COLLATE BINARY AND typeof(OLD.{column}) = typeof(NEW.{column}))")
}
