//! The file as a whole: a copy of it, and whether it is whole.

use std::path::PathBuf;

use tidewater_actors::core::progress::{Extent, FileWork};
use tidewater_actors::sqlite::{Copied, Copying, IntegrityReport, LookingNow};

use crate::database::Database;
use crate::error::Error;
use crate::long_work::{LongWork, looked_at};

impl Database {
    /// Copies the database to a file while it is in use: all of it as it is now, with what waits to be sent. Nobody waits for
    /// it; until it is done, the write-ahead log grows with what is written meanwhile. The copy has its name when it is
    /// complete and on the disk, with mode 0600; a file that has the name already is left alone. Where it takes longer than
    /// `log.progress_after_s`, the log says how far it is.
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
        let work = self.long_work(FileWork::Copy);
        self.in_background(move |readers, cancel| {
            let see = |Copying { bytes, of_bytes }| work.see(Extent::Bytes { done: bytes, of: of_bytes });
            let copied = readers.copy_to(&path, overwrite, cancel, see);
            work.end(copied.as_ref().map(|copied| Some(copied.bytes)));
            copied
        })
        .await
    }

    /// Looks whether the file is whole (SQLite's `quick_check`), and whether every row that the app's tables refer to is
    /// there. Reads all of the file, on a blocking thread; dropping the future ends it. Where it takes longer than
    /// `log.progress_after_s`, the log says how far it is.
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
        let work = self.long_work(FileWork::Check);
        self.in_background(move |readers, cancel| {
            let now = LookingNow::default();
            let report = looked_at(|| work.see(now.extent()), || readers.check_integrity(cancel, &now));
            work.end(report.as_ref().map(|_| None));
            report
        })
        .await
    }

    pub(crate) fn long_work(&self, what: FileWork) -> LongWork {
        LongWork::begin(what, self.settings().log.progress_after, self.log())
    }
}
