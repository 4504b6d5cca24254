//! Reads beyond the caller's own thread and SQLite's own types.

use serde::de::DeserializeOwned;
use tidewater_actors::sqlite::{Cancel, Canceller, Readers, StoreError};
use tokio::task::AbortHandle;

use crate::database::{Database, of_reader};
use crate::error::Error;

impl Database {
    /// The rows of a query as the caller's type: a struct by the columns' names, a tuple by their order, a scalar from the
    /// only column. Runs on the caller's own thread, as [`read`](Self::read), and sees what that sees. The statement is
    /// prepared once per connection.
    ///
    /// ```no_run
    /// # fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// #[derive(serde::Deserialize)]
    /// struct Note {
    ///     id: i64,
    ///     body: Option<String>,
    /// }
    ///
    /// let notes = db.query_as::<Note>("SELECT id, body FROM note WHERE id > ?1", [100])?;
    /// let pairs = db.query_as::<(i64, String)>("SELECT id, body FROM note WHERE body IS NOT NULL", [])?;
    /// let count = db.query_as::<u64>("SELECT count(*) FROM note", [])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Row`] names the column that is missing or does not fit; otherwise as [`read`](Self::read).
    pub fn query_as<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<T>, Error> {
        self.timed_read(|readers| readers.query_as(sql, params))
    }

    /// Reads on a blocking thread of the caller's runtime: for queries that would hold up an actor. Waits there for a
    /// connection, too. Sees every write that was acknowledged before it was called.
    ///
    /// Dropping the future ends the query: SQLite is interrupted, later statements of the same closure return with an error at
    /// once, and one that has not begun does not begin. What the closure does besides SQLite is not ended, but finished on its
    /// thread.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// let words: i64 = db
    ///     .read_in_background(|conn| {
    ///         conn.query_row("SELECT sum(length(body)) FROM note WHERE body LIKE '%tide%'", [], |row| row.get(0))
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// Outside of a tokio or actix runtime. A panic of the closure is the caller's.
    pub async fn read_in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.in_background(move |readers, cancel| readers.read_until(cancel, work)).await
    }

    /// Work on a blocking thread, which is told when nobody waits for it any more.
    pub(crate) async fn in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Readers, &Cancel) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        /// Aborted before it begins, when this is dropped first.
        struct Waiting(AbortHandle);
        impl Drop for Waiting {
            fn drop(&mut self) {
                self.0.abort();
            }
        }
        let readers = self.readers().clone();
        let (_canceller, cancel) = Canceller::new();
        let working = tokio::task::spawn_blocking(move || work(&readers, &cancel));
        let _waiting = Waiting(working.abort_handle());
        match working.await {
            Ok(done) => done.map_err(of_reader),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down under its caller.
                Err(ended) => Err(Error::Thread(ended.to_string())),
            },
        }
    }
}
