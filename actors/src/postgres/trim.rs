//! The feed's trim: what nobody needs any more goes, and nobody misses anything unknowingly.
//!
//! ```text
//! register, settle   the device reads on from its cursor ─▶ tidewater.cursors
//! bear_witness       it has come further
//! trim               entries before the slowest cursor go; a device that this goes past is shut out first
//! ```
//!
//! C5. Entries are deleted in order, and `tidewater.feed` says up to which, in the same transaction. Nothing beyond a cursor
//! that is not before that mark was trimmed. So whoever reads the feed asks for both in one snapshot: a page, or a look, that
//! comes from behind the mark is refused, and the device compares every table.
//!
//! A round looks at the feed more than once, each time in another snapshot. It is kept whole by its fence, which finds the
//! device registered at or before the round's cursor and locks its row of the ledger until the round ends:
//! - Only a session that is in that row moves the device's cursor; forward, to what it has durably, or, when it settles, to
//!   exactly what its file says: also where that is an older file.
//! - Who settles or registers waits for whoever trims, who reads the cursors after that: none is moved back behind its back.
//! - Whoever trims past a cursor first puts another session into the device's row, where that is not locked. Where it is, the
//!   trim stops before that cursor.
//! - A device whose session in the ledger is not the one beside its cursor has settled with a version that does not say where it
//!   reads, nor asks. Whoever trims past it puts a round into its row, too, that its file does not know: it comes back as a new device.

use std::time::Duration;

use super::cells::{Cells as _, first};
use super::{CloudSession, Param, Phase, Result, fenced_out, parse_uuid, unexpected};
use crate::core::failure::{CloudFailure, FailureClass};
use crate::sqlite::Cursor;

/// How much of the feed is kept, for whom, and how often that is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedLimits {
    /// Between two trims, of all devices together.
    pub pause: Duration,
    /// A device that was not seen for so long is not waited for.
    pub retire_after: Duration,
    /// A feed of more entries than this is trimmed past whoever it is.
    pub entries_max: i64,
    /// So many conflicts are kept in the cloud.
    pub conflicts_max: i64,
}

/// What a trim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trimmed {
    /// Entries of the feed that are gone.
    pub gone: i64,
    /// Devices that it went past.
    pub passed: i64,
    /// Whether there is more to do.
    pub more: bool,
}

/// So many entries go in one transaction: some ten milliseconds.
const TRIMMED_AT_ONCE: i64 = 5000;

pub(super) fn passed_over() -> CloudFailure {
    CloudFailure::new(FailureClass::Transient, "the change feed was trimmed beyond this device's cursor")
}

impl CloudSession {
    /// Fixes where the device begins to read: at the feed's horizon, below which everything has committed or never will. What
    /// is read after this, and the feed from there on, are the whole.
    ///
    /// # Errors
    /// Where another session of the device has settled, too.
    pub async fn register(&self, device: &str, session: &str) -> Result<Cursor> {
        let sql = "SELECT tidewater.register($1, $2)";
        let rows = self.query(sql, &[&parse_uuid(device)?, &parse_uuid(session)?], Phase::Setup).await?;
        let xid: Option<Option<String>> = first(&rows)?;
        let xid = xid.ok_or_else(|| unexpected("no horizon"))?;
        // An entry's own number starts at 1.
        Ok(Cursor { xid: xid.ok_or_else(fenced_out)?, id: 0, tag: None })
    }

    /// Deletes a bounded number of entries that nobody needs any more, unless somebody did so a moment ago or is about to.
    pub async fn trim(&self, limits: &FeedLimits) -> Result<Trimmed> {
        let (pause, retire) = (limits.pause.as_secs_f64(), limits.retire_after.as_secs_f64());
        let params: [&dyn Param; 5] =
            [&pause, &retire, &limits.entries_max, &limits.conflicts_max, &TRIMMED_AT_ONCE];
        let sql = "SELECT gone, passed, more FROM tidewater.trim($1, $2, $3, $4, $5)";
        let rows = self.query(sql, &params, Phase::Pull).await?;
        let row = rows.first().ok_or_else(|| unexpected("the trim did not answer"))?;
        Ok(Trimmed { gone: row.cell(0)?, passed: row.cell(1)?, more: row.cell(2)? })
    }
}
