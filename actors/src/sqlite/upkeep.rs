//! What the file needs besides writes: a short log, and its free pages given back.
//!
//! ```text
//! commit ─▶ pages in the log ─▶ enough ─▶ a thread with a connection of its own: copies them into the file (PASSIVE)
//!                                  └ few are left ─▶ the writer copies those: the log begins anew with the next commit
//! nobody wrote for a while ─▶ free pages go, step by step, on the writer's thread
//!                          └▶ the same thread: copies everything, and empties the -wal file (TRUNCATE)
//! ```
//!
//! SQLite's own automatic checkpoint runs in somebody's COMMIT, who waits for the copying and its fsync. A PASSIVE one
//! waits for nobody and nobody for it, but while others go on writing there is always something left that it did not
//! see, and a log that is never all copied never begins anew. Hence the last step on the writer's thread: the part that
//! is left is small, and so is the stall.
//!
//! The thread sleeps until it is told something. When it is time for the writer to look, the store's watch says
//! (`watch.rs`): as long as something is left to do here, or somebody writes.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::watch::{Bell, Watch};
use super::{Connection, InterruptHandle, Notice, Result, StoreError};

/// How the file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpkeepOptions {
    /// With so many pages the log is copied into the file.
    pub checkpoint_pages: u32,
    /// What the `-wal` file may keep of its size when the log begins anew.
    pub wal_keep_bytes: u64,
    /// A log of this size that cannot be copied is worth a line.
    pub wal_warn_bytes: u64,
    /// The file is at rest when nobody has written for so long.
    pub idle: Duration,
    /// Free pages given back in one step; 0: none ever.
    pub vacuum_step_pages: u32,
}

impl Default for UpkeepOptions {
    fn default() -> Self {
        Self {
            checkpoint_pages: 1000,
            wal_keep_bytes: 16 << 20,
            wal_warn_bytes: 256 << 20,
            idle: Duration::from_secs(2),
            vacuum_step_pages: 256,
        }
    }
}

thread_local! {
    /// The pages in the log after the last commit of this thread's connections.
    static PAGES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a connection tells after each commit.
pub(super) fn committed(pages: i32) {
    PAGES.set(u32::try_from(pages).ok());
}

/// How far a checkpoint came, in pages from the log's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copied {
    log: u32,
    copied: u32,
}

impl Copied {
    fn is_all(self) -> bool {
        self.copied >= self.log
    }
}

#[derive(Debug, Clone, Copy)]
enum Task {
    /// Copy what can be copied.
    Copy,
    /// The same, and empty the `-wal` file.
    Empty,
}

/// What the thread tells the writer.
#[derive(Debug, Default)]
struct Report {
    copied: Option<Copied>,
    emptied: Option<bool>,
    notices: Vec<Notice>,
}

#[derive(Debug, Default)]
struct Shared {
    working: AtomicBool,
    at_rest: AtomicBool,
    report: Mutex<Report>,
}

impl Shared {
    fn report<T>(&self, with: impl FnOnce(&mut Report) -> T) -> T {
        with(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// ---------------------------------------------------------------------------------------------------------
// The writer's side
// ---------------------------------------------------------------------------------------------------------

/// Lives beside the writer's connections. Dropped, it waits for the thread, which empties the log once more.
pub(super) struct Upkeep {
    options: UpkeepOptions,
    log: Log,
    last_write: Instant,
    rest: Rest,
    shared: Arc<Shared>,
    interrupt: Arc<InterruptHandle>,
    tasks: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
    watch: Option<Watch>,
}

impl std::fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upkeep").field("log", &self.log).field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// What is done at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing yet.
    Due,
    /// The thread empties the log.
    Emptying,
    /// Everything.
    Done,
}

impl Upkeep {
    /// `conn` is the thread's own, and waits for no lock.
    pub(super) fn start(conn: Connection, name: String, options: UpkeepOptions) -> Result<Self> {
        let interrupt = Arc::new(conn.get_interrupt_handle());
        let page_size: u64 = conn.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0))?.into();
        let (tasks, told) = sync_channel(1);
        let shared = Arc::<Shared>::default();
        let copier = Copier { conn, name, page_size, options, shared: shared.clone(), warned: false };
        let thread = spawn("tidewater-wal", move || copier.work(&told))?;
        Ok(Self {
            options,
            log: Log::new(options.checkpoint_pages),
            last_write: Instant::now(),
            rest: Rest::Due,
            shared,
            interrupt,
            tasks: Some(tasks),
            thread: Some(thread),
            watch: None,
        })
    }

    /// Begins to look, and to tell.
    pub(super) fn watch(
        &mut self,
        bell: Option<Bell>,
        every: Duration,
        mut is_due: impl FnMut(bool) -> bool + Send + 'static,
        tell: impl Fn() + Send + 'static,
    ) -> Result<()> {
        let shared = self.shared.clone();
        // Both, so that the look is always at what happened since the last one.
        let look = move |whole| is_due(whole) | !shared.at_rest.load(Ordering::Relaxed);
        self.watch = Some(Watch::start(bell, every, look, tell)?);
        Ok(())
    }

    /// What ends a checkpoint that is under way.
    pub(super) fn interrupt(&self) -> Arc<InterruptHandle> {
        self.interrupt.clone()
    }

    /// Somebody wrote.
    pub(super) fn disturbed(&mut self) {
        self.last_write = Instant::now();
        self.rest(Rest::Due);
    }

    fn rest(&mut self, rest: Rest) {
        self.rest = rest;
        self.shared.at_rest.store(rest == Rest::Done, Ordering::Relaxed);
    }

    /// After commits on this thread.
    pub(super) fn tend(&mut self, conn: &Connection) {
        if PAGES.get().is_some() {
            self.disturbed();
            self.keep_short(conn);
        }
    }

    fn keep_short(&mut self, conn: &Connection) {
        let Some(pages) = PAGES.take() else { return };
        if !self.log.grew(pages) || self.shared.working.load(Ordering::Acquire) {
            return;
        }
        match self.log.next(self.shared.report(|report| report.copied.take())) {
            Next::Ask => self.tell(Task::Copy),
            // What goes wrong here goes wrong in the thread as well, which tells it.
            Next::Finish => drop(checkpoint(conn, "PASSIVE")),
        }
    }

    fn tell(&self, task: Task) {
        self.shared.working.store(true, Ordering::Release);
        let told = self.tasks.as_ref().is_some_and(|tasks| tasks.try_send(task).is_ok());
        if !told {
            self.shared.working.store(false, Ordering::Release);
        }
    }

    /// On a timer of the writer's: does a little of what is due, when nobody writes.
    pub(super) fn tick(&mut self, conn: &Connection) -> Vec<Notice> {
        if self.rest == Rest::Done {
            return vec![];
        }
        let notices = self.shared.report(|report| std::mem::take(&mut report.notices));
        if self.last_write.elapsed() < self.options.idle {
            return notices;
        }
        match self.rest {
            Rest::Due => {
                if !self.give_back(conn) && !self.shared.working.load(Ordering::Acquire) {
                    self.rest(Rest::Emptying);
                    self.tell(Task::Empty);
                }
            }
            Rest::Emptying => match self.shared.report(|report| report.emptied.take()) {
                Some(true) => self.rest(Rest::Done),
                // Somebody reads from it, or writes: later.
                Some(false) => self.disturbed(),
                None => {}
            },
            Rest::Done => {}
        }
        notices
    }

    /// Copies what can be copied, now.
    pub(super) fn save(&self, conn: &Connection) {
        // Who asks for it has an error already, and asks again.
        drop(checkpoint(conn, "PASSIVE"));
    }

    /// Gives a few free pages back to the disk, where the file is made for that. Whether there may be more.
    fn give_back(&mut self, conn: &Connection) -> bool {
        let step = self.options.vacuum_step_pages;
        if step == 0 {
            return false;
        }
        let number = |pragma: &str| conn.pragma_query_value(None, pragma, |row| row.get::<_, u32>(0));
        if !matches!((number("auto_vacuum"), number("freelist_count")), (Ok(INCREMENTAL), Ok(1..))) {
            return false;
        }
        // One step of the statement gives one page back.
        let vacuum = || {
            let mut vacuum = conn.prepare(&format!("PRAGMA incremental_vacuum({step})"))?;
            let mut pages = vacuum.query([])?;
            while pages.next()?.is_some() {}
            Ok::<_, StoreError>(())
        };
        let given = vacuum().is_ok();
        // This was no write of anybody's: the rest goes on.
        self.keep_short(conn);
        given
    }
}

pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| StoreError::Io(format!("a thread cannot be started: {error}")))
}

/// SQLite's number for it.
pub(super) const INCREMENTAL: u32 = 2;

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tasks.take();
        self.watch.take();
        if let Some(thread) = self.thread.take() {
            // It ends with its last task; a panic of its own is not this one's.
            let _ = thread.join();
        }
    }
}

/// When the log is to be copied, and by whom.
#[derive(Debug)]
struct Log {
    checkpoint_pages: u32,
    pages: u32,
    /// Nothing is to be done before it has so many pages.
    due: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The thread copies.
    Ask,
    /// The writer copies what is left.
    Finish,
}

impl Log {
    fn new(checkpoint_pages: u32) -> Self {
        Self { checkpoint_pages, pages: 0, due: checkpoint_pages }
    }

    /// After a commit: whether something is to be done.
    fn grew(&mut self, pages: u32) -> bool {
        if pages < self.pages {
            // It began anew.
            self.due = self.checkpoint_pages;
        }
        self.pages = pages;
        pages >= self.due
    }

    /// `last` is how far the thread came since it was asked, if it was.
    fn next(&mut self, last: Option<Copied>) -> Next {
        let few = (self.checkpoint_pages / 4).max(1);
        match last {
            // A reader is in the way: for the writer as well.
            Some(last) if !last.is_all() => {
                self.due = self.pages.saturating_add(self.checkpoint_pages);
                Next::Ask
            }
            // Where the writer is faster than the thread, the log would grow without end: then it waits.
            Some(last)
                if self.pages.saturating_sub(last.copied) <= few
                    || self.pages >= self.checkpoint_pages.saturating_mul(8) =>
            {
                self.due = self.pages.saturating_add(few);
                Next::Finish
            }
            _ => {
                self.due = self.pages;
                Next::Ask
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// The thread
// ---------------------------------------------------------------------------------------------------------

struct Copier {
    conn: Connection,
    name: String,
    page_size: u64,
    options: UpkeepOptions,
    shared: Arc<Shared>,
    warned: bool,
}

impl Copier {
    fn work(mut self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            let outcome = match task {
                Task::Copy => checkpoint(&self.conn, "PASSIVE"),
                Task::Empty => self.empty(),
            };
            let notice = self.judge(&outcome);
            let copied = outcome.ok();
            self.shared.report(|report| {
                report.copied = copied;
                if let Task::Empty = task {
                    report.emptied = Some(copied.is_some_and(Copied::is_all));
                }
                report.notices.extend(notice);
            });
            self.shared.working.store(false, Ordering::Release);
        }
        // The file is about to be closed; where another program has it open, SQLite would leave the log as it is.
        let _ = self.empty();
    }

    /// Copies everything first, which holds up nobody: TRUNCATE has the write lock, and what is left for it is short.
    fn empty(&self) -> Result<Copied> {
        let copied = checkpoint(&self.conn, "PASSIVE")?;
        if copied.log == 0 || !copied.is_all() {
            return Ok(copied);
        }
        checkpoint(&self.conn, "TRUNCATE")
    }

    /// What a person should know of it, once.
    fn judge(&mut self, outcome: &Result<Copied>) -> Option<Notice> {
        let text = match outcome {
            Ok(Copied { log, .. }) if u64::from(*log) * self.page_size < self.options.wal_warn_bytes => {
                self.warned = false;
                return None;
            }
            Ok(copied) if copied.is_all() => return None,
            Ok(Copied { log, .. }) => format!(
                "the write-ahead log {}-wal has grown to {} MiB: somebody has kept a read transaction open, a \
                 `Database::read` that does not return or another program; the log shrinks when that ends",
                self.name,
                (u64::from(*log) * self.page_size) >> 20
            ),
            // They pass, and the next time is soon.
            Err(StoreError::Busy(_) | StoreError::Statement(_)) => return None,
            Err(error) => {
                format!("the write-ahead log {}-wal cannot be copied into the file: {error}", self.name)
            }
        };
        (!std::mem::replace(&mut self.warned, true)).then_some(Notice(text))
    }
}

/// One checkpoint. PASSIVE waits for nobody; TRUNCATE empties the `-wal` file, if nobody is in the way.
fn checkpoint(conn: &Connection, mode: &str) -> Result<Copied> {
    let mut statement = conn.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    let (busy, log, copied) = statement
        .query_row([], |row| Ok((row.get::<_, bool>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
    // Both are -1 when another checkpoint is under way.
    if busy && log < 0 {
        return Err(StoreError::Busy("another checkpoint is under way".into()));
    }
    let pages = |count: i64| u32::try_from(count).unwrap_or(0);
    let copied = Copied { log: pages(log), copied: pages(copied) };
    // TRUNCATE that met somebody has copied, and emptied nothing.
    Ok(if busy && copied.is_all() {
        Copied { copied: copied.log.saturating_sub(1), ..copied }
    } else {
        copied
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pages: u32) -> Option<Copied> {
        Some(Copied { log: pages, copied: pages })
    }

    /// Nothing is done for a short log; then the thread copies, as often as it takes until little is left, and that is
    /// the writer's part, after which the log begins anew.
    #[test]
    fn the_thread_copies_and_the_writer_finishes() {
        let mut log = Log::new(1000);
        assert!(!log.grew(999));
        assert!(log.grew(1000));
        assert_eq!(log.next(None), Next::Ask);
        assert!(log.grew(1700));
        assert_eq!(log.next(all(1000)), Next::Ask, "700 are too many to wait for");
        assert!(log.grew(1900));
        assert_eq!(log.next(all(1700)), Next::Finish);
        assert!(!log.grew(3), "it began anew");
        assert!(log.grew(1000));
    }

    /// Where a reader is in the way nobody waits for it, and it is not tried again with every commit.
    #[test]
    fn a_reader_in_the_way_is_not_tried_again_at_once() {
        let mut log = Log::new(1000);
        assert!(log.grew(1000));
        assert_eq!(log.next(None), Next::Ask);
        assert!(log.grew(1001));
        assert_eq!(log.next(Some(Copied { log: 1000, copied: 10 })), Next::Ask);
        assert!(!log.grew(2000));
        assert!(log.grew(2001));
    }

    /// A writer that is faster than the copying waits for it in the end: the log does not grow for ever.
    #[test]
    fn a_writer_that_is_too_fast_finishes_by_itself() {
        let mut log = Log::new(1000);
        let mut pages = 1000;
        assert!(log.grew(pages));
        while log.next(all(pages - 900)) == Next::Ask {
            pages += 1000;
            assert!(log.grew(pages));
        }
        assert_eq!(pages, 8000);
    }
}
