//! Reads on a thread that is not the caller's, and how one is ended before its time.
//!
//! ```text
//! caller ── Canceller ─▶ dropped, or cancel() ─▶ the flag, and SQLite's interrupt while the connection is ours
//! thread ── Cancel ────▶ Readers::read_until ─▶ the flag is asked every few thousand of SQLite's instructions
//! ```
//!
//! Both ways are needed. SQLite's interrupt reaches every loop of it, but only the statement that runs: the next one of the
//! same read would begin as if nothing were. The flag reaches each statement, but not the loops that count whole tables.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, InterruptHandle, OpenFlags};

use super::{Readers, Result, StoreError};

/// After so many of SQLite's instructions, some tens of microseconds, the flag is asked.
const FLAG_OPS: i32 = 5_000;

/// The end of a read before its time; it comes with the drop of this.
#[derive(Debug)]
pub struct Canceller(Arc<State>);

/// The other side: where a read looks whether it is wanted.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    /// There exactly while the connection is in use by this read: it is somebody else's afterwards.
    running: Mutex<Option<InterruptHandle>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl Canceller {
    /// Both sides.
    #[must_use]
    pub fn new() -> (Self, Cancel) {
        let state = Arc::new(State::default());
        (Self(Arc::clone(&state)), Cancel(state))
    }

    /// Ends the read, if it goes on: what it runs returns with an error soon, and so does whatever it would run then.
    pub fn cancel(&self) {
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.cancelled.store(true, Ordering::Relaxed);
        if let Some(handle) = &*running {
            handle.interrupt();
        }
    }
}

impl Drop for Canceller {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Cancel {
    /// Of a read that nobody ends before its time.
    #[must_use]
    pub fn never() -> Self {
        Self(Arc::default())
    }

    /// Whether nobody wants it any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    /// Does work with a connection, of which the other side can end what runs.
    pub(super) fn watch<T>(&self, conn: &Connection, work: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Also when the work panics: the connection goes back into the pool.
        struct Watched<'a>(&'a State, &'a Connection);
        impl Drop for Watched<'_> {
            fn drop(&mut self) {
                self.0.running.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Only a connection that is borrowed elsewhere refuses, and none is.
                let _ = self.1.progress_handler(0, None::<fn() -> bool>);
            }
        }
        {
            let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_cancelled() {
                return Err(StoreError::Withdrawn);
            }
            *running = Some(conn.get_interrupt_handle());
        }
        let _watched = Watched(&self.0, conn);
        let state = Arc::clone(&self.0);
        let unwanted = move || state.cancelled.load(Ordering::Relaxed);
        conn.progress_handler(FLAG_OPS, Some(unwanted))?;
        work()
    }
}

impl Readers {
    /// As [`read`](Self::read), until it is cancelled.
    ///
    /// # Errors
    /// As [`read`](Self::read), and whatever the work makes of being ended; nobody waits for it.
    pub fn read_until<T>(
        &self,
        cancel: &Cancel,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.with(|conn| cancel.watch(conn, || Ok(work(conn)?)))
    }

    /// A connection that nobody else waits for.
    ///
    /// # Errors
    /// [`StoreError::Closed`], and whatever SQLite says. What it opened may be another file; that is to be asked when
    /// something has been read.
    pub(super) fn beside_the_pool(&self) -> Result<Connection> {
        if self.pool.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(StoreError::Closed);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.options.path, flags)?;
        conn.busy_timeout(self.options.busy_timeout)?;
        Ok(conn)
    }
}
