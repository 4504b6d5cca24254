//! The conflict log, and what lost brought back.

use serde::{Deserialize, Serialize};
use tidewater_actors::sqlite::{Conflict, ConflictPage, StoreError};

use crate::database::{Database, of_reader};
use crate::error::Error;
use crate::parked::LocalFile;

/// What bringing back came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Restored {
    /// The numbers of the conflicts whose losers are here again.
    pub ids: Vec<i64>,
    /// The numbers of the others, with the reason.
    pub refused: Vec<(i64, String)>,
}

impl Database {
    /// What lost a conflict, the newest first, at most `limit`; of one table, or of all. `before` is the number of the last
    /// one of another page.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::ShutDown`].
    pub fn conflicts(
        &self,
        table: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<ConflictPage, Error> {
        self.readers().conflicts(table, before, limit).map_err(of_reader)
    }

    /// The conflict of a number.
    ///
    /// # Errors
    /// As [`conflicts`](Self::conflicts).
    pub fn conflict(&self, id: i64) -> Result<Option<Conflict>, Error> {
        self.readers().conflict(id).map_err(of_reader)
    }

    /// Brings back what lost, conflict by conflict: each is an edit of now like any other, which is sent to the cloud, and what
    /// it replaces was kept by the conflict. A row that is gone gets no values, and one that is there is not inserted again:
    /// the answer says which were refused, and why. Where a [deletion](crate::Restores::Deletion) lost,
    /// bringing it back deletes the whole row, and no log keeps the columns that were not in dispute.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// for conflict in db.conflicts(Some("note"), None, 100)?.rows {
    ///     if conflict.kept == "local" {
    ///         db.restore_conflicts(&[conflict.id]).await?; // what the cloud had
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`write`](Self::write), unless it is about one of the rows.
    pub async fn restore_conflicts(&self, ids: &[i64]) -> Result<Restored, Error> {
        let mut restored = Restored::default();
        for id in ids.iter().copied() {
            let statement = match self.in_background(move |readers, _| readers.restoring(id)).await {
                Err(Error::Store(StoreError::Statement(why))) => {
                    restored.refused.push((id, why));
                    continue;
                }
                statement => statement?,
            };
            match self.write([statement]).await {
                Ok(written) if written.results.iter().all(|done| done.rows_changed == 0) => {
                    restored.refused.push((id, "the row is not there any more".to_owned()));
                }
                Ok(_) => restored.ids.push(id),
                Err(Error::Store(StoreError::Statement(why))) => restored.refused.push((id, why)),
                Err(error) => return Err(error),
            }
        }
        Ok(restored)
    }
}

impl LocalFile {
    /// As [`Database::conflicts`].
    ///
    /// # Errors
    /// As there.
    pub fn conflicts(
        &self,
        table: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<ConflictPage, Error> {
        Ok(self.readers().conflicts(table, before, limit)?)
    }

    /// As [`Database::conflict`].
    ///
    /// # Errors
    /// As there.
    pub fn conflict(&self, id: i64) -> Result<Option<Conflict>, Error> {
        Ok(self.readers().conflict(id)?)
    }
}
