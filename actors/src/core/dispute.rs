//! A conflict as the app sees it that decides conflicts itself.
//!
//! ```text
//! merge: both sides changed the same ─▶ Dispute ─▶ the app's function ─┬─ Some(Verdict) ─▶ so it is
//!                                                                      └─ None, a panic ─▶ the table's policy
//! ```

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::merge::Entry;
use super::schema::Table;
use super::value::Value;

/// What both sides made of a value that they had in common, or of a row that one of them deleted.
#[derive(Debug, Clone, Copy)]
pub struct Dispute<'a> {
    pub(super) table: &'a Table,
    pub(super) column: Option<usize>,
    pub(super) entry: &'a Entry,
    pub(super) local: Option<&'a [Value]>,
    pub(super) cloud: Option<&'a [Value]>,
}

impl<'a> Dispute<'a> {
    /// About a row as a whole, which is deleted on one side.
    pub(super) fn of_row(
        table: &'a Table,
        entry: &'a Entry,
        local: Option<&'a [Value]>,
        cloud: Option<&'a [Value]>,
    ) -> Self {
        Self { table, column: None, entry, local, cloud }
    }

    /// The table, as this file calls it.
    #[must_use]
    pub fn table(&self) -> &'a str {
        &self.table.name
    }

    /// The column that both sides changed; `None` where one side deleted the row that the other changed.
    #[must_use]
    pub fn column(&self) -> Option<&'a str> {
        self.column.map(|c| self.table.columns[c].name.as_str())
    }

    /// Whether the row is deleted here.
    #[must_use]
    pub fn is_deleted_here(&self) -> bool {
        self.local.is_none()
    }

    /// Whether the row is deleted in the cloud.
    #[must_use]
    pub fn is_deleted_there(&self) -> bool {
        self.cloud.is_none()
    }

    /// What the disputed column was when both sides had the same; `None` where nobody knows (both made the row), and where
    /// there is no column.
    #[must_use]
    pub fn base(&self) -> Option<&'a Value> {
        let c = self.column?;
        (self.entry.known && self.entry.dirty[c]).then(|| &self.entry.base[c])
    }

    /// The disputed column's value here.
    #[must_use]
    pub fn local(&self) -> Option<&'a Value> {
        Some(&self.local?[self.column?])
    }

    /// The disputed column's value in the cloud.
    #[must_use]
    pub fn cloud(&self) -> Option<&'a Value> {
        Some(&self.cloud?[self.column?])
    }

    /// Any column of the row as it is here, the key's included; its name is compared as SQLite does.
    #[must_use]
    pub fn here(&self, column: &str) -> Option<&'a Value> {
        Some(&self.local?[self.table.column(column)?])
    }

    /// Any column of the row as it is in the cloud.
    #[must_use]
    pub fn there(&self, column: &str) -> Option<&'a Value> {
        Some(&self.cloud?[self.table.column(column)?])
    }
}

/// How the app decides.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// What is here stays, and is sent.
    Local,
    /// What is in the cloud comes here.
    Cloud,
    /// The column is this from now on, here and, with the next round, there; both values are on record. Where the column belongs
    /// to a foreign key or a unique index, and of a deleted row, this is no verdict.
    Value(Value),
}

/// The app's function: a verdict, or none, about what both sides have.
pub type Decide = dyn Fn(&Dispute<'_>) -> Option<Verdict> + Send + Sync;

type Panicked = dyn Fn(&str) + Send + Sync;

/// The app's function, which is asked before a table's policy is.
#[derive(Clone)]
pub struct Resolver {
    decide: Arc<Decide>,
    panicked: Option<Arc<Panicked>>,
}

impl Resolver {
    /// From a pure function of what both sides have: it is asked again wherever the same is met again, on the thread that writes,
    /// within a transaction.
    #[must_use]
    pub fn new(decide: Arc<Decide>) -> Self {
        Self { decide, panicked: None }
    }

    /// The same; who is told of a table's name when the function panics.
    #[must_use]
    pub fn telling(self, panicked: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { panicked: Some(Arc::new(panicked)), ..self }
    }

    /// A panic is no verdict.
    pub(super) fn decide(&self, dispute: &Dispute<'_>) -> Option<Verdict> {
        // It sees values and changes nothing of ours; what it breaks of its own is its own.
        match catch_unwind(AssertUnwindSafe(|| (self.decide)(dispute))) {
            Ok(verdict) => verdict,
            Err(_) => {
                if let Some(tell) = &self.panicked {
                    tell(dispute.table());
                }
                None
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}
