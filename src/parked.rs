//! Rows that wait, rows that the cloud refuses, and what can be done about them.

use std::path::Path;

use tidewater_actors::messages::{DiscardParked, Discarded, RetryParked, SyncError, SyncSoon};
use tidewater_actors::sqlite::{
    ParkedPage, ParkedRow, PendingAfter, PendingPage, Readers, Retried, StoreError, StoreOptions, Which,
};

use crate::control::Synced;
use crate::database::{Database, of_reader};
use crate::error::Error;
use crate::settings::Settings;

impl Database {
    /// Rows that wait to be sent, at most `limit`, in the order of table and key; of one table, or of all. `after` is the
    /// [`next`](PendingPage::next) of another page.
    ///
    /// # Errors
    /// [`Error::Store`] for a table that is not synced; [`Error::ShutDown`].
    pub fn pending(
        &self,
        table: Option<&str>,
        after: Option<&PendingAfter>,
        limit: usize,
    ) -> Result<PendingPage, Error> {
        self.readers().pending(table, after, limit).map_err(of_reader)
    }

    /// Rows that the cloud refuses, at most `limit`, in the order of their numbers; of one table, or of all. `after` is the
    /// number of the last one of another page, or 0.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// for row in db.parked(None, 0, 100)?.rows {
    ///     println!("{} {} {}: {}", row.id, row.table, row.key, row.message);
    /// }
    /// db.retry_parked(tidewater::Which::All).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`pending`](Self::pending).
    pub fn parked(&self, table: Option<&str>, after: i64, limit: usize) -> Result<ParkedPage, Error> {
        self.readers().parked(table, after, limit).map_err(of_reader)
    }

    /// The row that is parked under a number. A row keeps its number until the cloud has it, or it is discarded.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::ShutDown`].
    pub fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>, Error> {
        self.readers().parked_row(id).map_err(of_reader)
    }

    /// Parked rows wait again, and are tried as soon as the cloud is there. Those that it still refuses are parked again.
    ///
    /// # Errors
    /// [`Error::Store`] for a table that is not synced.
    pub async fn retry_parked(&self, which: Which) -> Result<Retried, Error> {
        let retried = self.writer()?.ask(RetryParked(which)).await??;
        // They are in the journal: whatever becomes of this hint, they are sent.
        let _ = self.sync_soon().await;
        Ok(retried)
    }

    /// Gives parked rows up, by their numbers: each becomes what it is in the cloud, or goes where the cloud has none. What
    /// is lost by it is in the conflict log. A row that others wait for, or that has been edited since, is not given up; the
    /// answer says which, and why.
    ///
    /// A receipt of such a row counts as settled from then on.
    ///
    /// # Errors
    /// [`SyncError::Offline`](crate::SyncError::Offline) at once while the proxy is not available: nobody knows then what the
    /// cloud has. Nothing is given up in that case.
    pub async fn discard_parked(&self, ids: Vec<i64>) -> Result<Discarded, Error> {
        let syncer = self.syncer()?;
        let answer = syncer.ask_with(|answer| DiscardParked { ids: ids.clone(), answer }).await;
        match answer? {
            Err(SyncError::Offline(why)) => Err(SyncError::Offline(format!(
                "{why}; discarding a row needs it, because the row becomes what it is there"
            ))
            .into()),
            answer => Ok(answer?),
        }
    }

    /// Begins to take what waits to the cloud, and to bring home what others wrote, and returns at once.
    ///
    /// # Errors
    /// As [`flush`](Self::flush), as far as it is known at once.
    pub async fn sync_soon(&self) -> Result<(), Error> {
        Ok(self.syncer()?.ask(SyncSoon).await??)
    }

    /// One cycle, and what it came to.
    pub(crate) async fn sync_counted(&self, wait: bool) -> Result<Synced, Error> {
        let before = self.totals().await?;
        if wait {
            self.flush().await?;
        } else {
            self.sync_soon().await?;
        }
        let after = self.totals().await?;
        // What cannot be counted is an error, and not a file in which nothing waits.
        let counts = self.in_background(|readers, _| readers.counts()).await?;
        Ok(Synced {
            done: wait,
            rows_flushed: after[0].saturating_sub(before[0]),
            rows_warmed: after[1].saturating_sub(before[1]),
            pending: counts.pending,
            parked: counts.parked,
        })
    }

    /// The rows that went to the cloud, and those that came from it, since the file was made.
    async fn totals(&self) -> Result<[u64; 2], Error> {
        self.in_background(|readers, _| Ok([readers.total("rows_flushed")?, readers.total("rows_warmed")?]))
            .await
    }
}

/// The SQLite file of a supervisor, which may or may not run: for looking, not for writing.
#[derive(Debug)]
pub struct LocalFile(Readers);

/// That it is there, and that this user may read it: SQLite would only say that it cannot be opened, and that late. It is not
/// opened for that, because closing it again would take the locks away that this process may have on it.
pub(crate) fn require_readable(path: &Path) -> Result<(), StoreError> {
    let unusable = |reason: String, remedy: &str| StoreError::Open {
        path: path.display().to_string(),
        reason,
        remedy: remedy.into(),
    };
    if !path.exists() {
        let remedy = "name the file with --database or TIDEWATER_DATABASE";
        return Err(unusable("there is no such file".into(), remedy));
    }
    rustix::fs::access(path, rustix::fs::Access::READ_OK).map_err(|error| {
        let remedy = "give this user the right to read it, or ask as the user that the supervisor runs as";
        unusable(std::io::Error::from(error).to_string(), remedy)
    })
}

impl LocalFile {
    /// The file of these settings.
    ///
    /// # Errors
    /// [`Error::Store`] when there is none, or when no supervisor has ever opened it.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let sqlite = &settings.sqlite;
        let broken = |reason: &str, remedy: &str| StoreError::Open {
            path: sqlite.path.display().to_string(),
            reason: reason.into(),
            remedy: remedy.into(),
        };
        require_readable(&sqlite.path)?;
        let readers = Readers::open(&StoreOptions {
            path: sqlite.path.clone(),
            busy_timeout: sqlite.busy_timeout,
            read_pool_max: 1,
            upkeep: sqlite.upkeep,
        })?;
        if !readers.is_tracked()? {
            let remedy = "start run_supervisor on it once";
            return Err(broken("no supervisor of this version has opened it yet", remedy).into());
        }
        Ok(Self(readers))
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.0
    }

    /// As [`Database::pending`].
    ///
    /// # Errors
    /// As there.
    pub fn pending(
        &self,
        table: Option<&str>,
        after: Option<&PendingAfter>,
        limit: usize,
    ) -> Result<PendingPage, Error> {
        Ok(self.0.pending(table, after, limit)?)
    }

    /// As [`Database::parked`].
    ///
    /// # Errors
    /// As there.
    pub fn parked(&self, table: Option<&str>, after: i64, limit: usize) -> Result<ParkedPage, Error> {
        Ok(self.0.parked(table, after, limit)?)
    }

    /// As [`Database::parked_row`].
    ///
    /// # Errors
    /// As there.
    pub fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>, Error> {
        Ok(self.0.parked_row(id)?)
    }
}
