//! The file as a whole: a copy of it, and whether it is whole.

use std::path::PathBuf;

use tidewater_actors::sqlite::{Copied, IntegrityReport};

use crate::database::Database;
use crate::error::Error;

impl Database {
    /// Copies the database to a file while it is in use: all of it as it is now, with what waits to be sent. Nobody waits for
    /// it; until it is done, the write-ahead log grows with what is written meanwhile. The copy has its name when it is
    /// complete and on the disk, with mode 0600; a file that has the name already is left alone.
    ///
    /// A copy that is put in the database's place goes on as a new device: what the cloud has comes, what was pending stays
    /// pending, and nothing is deleted.
    ///
    /// Dropping the future ends it and leaves nothing behind.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// let copied = db.backup("/var/backups/notes.db").await?;
    /// println!("{} bytes in {}", copied.bytes, copied.path.display());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Copy`](crate::StoreError::Copy) says why not; nothing is there then that was not there before.
    pub async fn backup(&self, path: impl Into<PathBuf>) -> Result<Copied, Error> {
        self.copy_to(path.into(), false).await
    }

    /// As [`backup`](Self::backup), and a file that has the name already is replaced once the copy is complete.
    ///
    /// # Errors
    /// As [`backup`](Self::backup).
    pub async fn backup_over(&self, path: impl Into<PathBuf>) -> Result<Copied, Error> {
        self.copy_to(path.into(), true).await
    }

    pub(crate) async fn copy_to(&self, path: PathBuf, overwrite: bool) -> Result<Copied, Error> {
        self.in_background(move |readers, cancel| readers.copy_to(&path, overwrite, cancel)).await
    }

    /// Looks whether the file is whole (SQLite's `quick_check`), and whether every row that the app's tables refer to is
    /// there. Reads all of the file, on a blocking thread; dropping the future ends it.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// let report = db.check_integrity().await?;
    /// for line in &report.damage {
    ///     eprintln!("damaged: {line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What keeps SQLite from looking at all; damage is what the report is for.
    pub async fn check_integrity(&self) -> Result<IntegrityReport, Error> {
        self.in_background(tidewater_actors::sqlite::Readers::check_integrity).await
    }
}
