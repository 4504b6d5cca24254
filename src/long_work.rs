//! What the log says of work on the file while it goes on, at the pace of `core/progress.rs`: nothing where it is soon over.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use slog::{Logger, info};
use tidewater_actors::core::progress::{Extent, FileCourse, FileWork};

/// How often somebody looks how far it is: often enough for a bar, at the price of one small read.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Work that begins now.
pub(crate) struct LongWork {
    what: FileWork,
    began: Instant,
    course: Mutex<FileCourse>,
    log: Logger,
}

impl LongWork {
    pub(crate) fn begin(what: FileWork, after: Duration, log: &Logger) -> Self {
        let course = Mutex::new(FileCourse::new(what, Duration::ZERO, after));
        Self { what, began: Instant::now(), course, log: log.clone() }
    }

    fn course(&self) -> std::sync::MutexGuard<'_, FileCourse> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So far it is now.
    pub(crate) fn see(&self, extent: Extent) {
        if let Some(line) = self.course().see(extent, self.began.elapsed()) {
            info!(self.log, "{line}");
        }
    }

    /// It is over, which is news where there was a line about it; with so many bytes, where that is known.
    pub(crate) fn end<E: std::fmt::Display>(&self, outcome: Result<Option<u64>, &E>) {
        let bytes = outcome.as_ref().ok().copied().flatten();
        let Some(line) = self.course().end(bytes, self.began.elapsed()) else { return };
        match outcome {
            Ok(_) => info!(self.log, "{line}"),
            Err(why) => info!(self.log, "{}: not done: {why}", self.what),
        }
    }
}

/// Works on this thread, while another one looks every now and then.
pub(crate) fn looked_at<T>(look: impl Fn() + Send, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (working, over) = channel::<()>();
        let looking = move || {
            while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                look();
            }
        };
        // Where there is no thread for it, nobody looks; the work is done all the same.
        let _ = std::thread::Builder::new().name("progress".into()).spawn_scoped(scope, looking);
        let done = work();
        drop(working);
        done
    })
}
