//! Stamps, with which conflicts are decided: written into the feed by a round, and asked for where a row is in dispute.
//!
//! ```text
//! a round  STAMPS ─▶ tidewater.stamp, tidewater.stamps ─▶ the rows' statement ─▶ the feed's trigger ─▶ tidewater.changes.stamp
//! a pull   a row is in dispute ─▶ last_changed ─▶ its newest stamp of others
//! ```
//!
//! The trigger takes the stamp of a row from what the round says, and cuts it at the server's clock; what nobody says anything
//! about, plain SQL above all, happens at the server's now.

use super::*;

/// Goes ahead of each statement that changes rows: the newest stamp of the rows, and those that are notably older, by key.
pub(super) const STAMPS: &str =
    "SELECT set_config('tidewater.stamp', $1, true), set_config('tidewater.stamps', $2, true)";

/// Clocks of different machines do not agree to within so many microseconds: rows that are no further apart go by the newest
/// of them.
const TOGETHER_US: i64 = 10_000;

/// The same for a statement of more than [`FEW`] rows, which is a backlog: to name them costs the server a seventh of its time,
/// and a difference of its clock below a second is not made good either.
const TOGETHER_IN_BULK_US: i64 = 1_000_000;

/// So many rows are named one by one.
const FEW: usize = 500;

/// What stands between the parts of a key, in the trigger as well.
const BETWEEN: &str = "\u{1f}";

/// The stamps of the rows that one statement changes, as the trigger reads them.
pub(super) struct Stamps {
    newest: String,
    older: String,
}

impl Stamps {
    pub(super) fn of<'a>(items: impl Iterator<Item = &'a RoundItem> + Clone) -> Self {
        let newest = items.clone().map(|item| item.stamp).max().unwrap_or_default();
        let together = if items.clone().nth(FEW).is_some() { TOGETHER_IN_BULK_US } else { TOGETHER_US };
        // A key that the server writes otherwise than this program (a number's scale) goes by the newest.
        let older: serde_json::Map<String, serde_json::Value> = items
            .filter(|item| newest - item.stamp > together)
            .map(|item| (key_text(&item.key).join(BETWEEN), item.stamp.into()))
            .collect();
        let older =
            if older.is_empty() { String::new() } else { serde_json::Value::Object(older).to_string() };
        Self { newest: newest.to_string(), older }
    }

    pub(super) fn params(&self) -> [&dyn Param; 2] {
        [&self.newest, &self.older]
    }
}

impl CloudSession {
    /// When others changed these rows last (keys in PostgreSQL's text), by position, as far as the feed tells: beyond the cursor,
    /// or, from its beginning, with later stamps than one.
    ///
    /// # Errors
    /// When the link, or the server, fails.
    pub async fn last_changed(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        keys: &[Vec<String>],
        cursor: &Cursor,
        since: Since,
        device: &str,
    ) -> Result<Vec<(usize, i64)>> {
        let start = Cursor { xid: "0".to_owned(), ..Cursor::default() };
        let (cursor, later_than) = match since {
            Since::Cursor => (cursor, i64::MIN),
            Since::Stamp(stamp) => (&start, stamp),
        };
        let arrays: Vec<Vec<&str>> =
            (0..table.key.len()).map(|part| keys.iter().map(|key| key[part].as_str()).collect()).collect();
        let mut params: Vec<&dyn Param> = arrays.iter().map(|array| array as _).collect();
        params.extend([&cursor.xid as &dyn Param, &cursor.id, &device]);
        let rows = self.query(&cloud::last_changed(table, cloud_table), &params, Phase::Pull).await?;
        let mut changed = vec![];
        for row in &rows {
            // Nothing but what followed from this device's own rounds.
            let Some(stamp) = row.cell::<Option<i64>>("stamp")? else { continue };
            if stamp > later_than {
                changed.push((position(row, keys.len())?, stamp));
            }
        }
        Ok(changed)
    }
}
