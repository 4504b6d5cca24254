//! The numbers that are in the file, for whoever asks how it is.
//!
//! ```text
//! GetSyncReport ─▶ counted ─┬─ short, or quickly counted, or long ago ─▶ the file is looked at
//!                           └─ else ─▶ what the last look found
//! the end of a cycle ─▶ the looks before it are forgotten
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::messages::{BacklogReport, SyncReport};
use crate::sqlite::{Backlog, Counts, Readers};

/// What a look at the file found. One at a journal that is long, and takes long, is made so seldom that all of them take a
/// fiftieth of the time at most, however many ask.
#[derive(Debug)]
struct Looked<T>(Arc<Mutex<Option<(Instant, Duration, T)>>>);

/// A look that takes less is made whenever somebody asks.
const QUICK_LOOK: Duration = Duration::from_millis(20);

/// Fewer entries are counted whenever somebody asks: where that takes long, the machine is slow and not the look.
const FEW_ENTRIES: u64 = 10_000;

impl<T> Default for Looked<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Looked<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Looked<T> {
    fn at(&self, look: impl FnOnce() -> T, entries: impl FnOnce(&T) -> u64) -> T {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, took, found)) = &*last
            && *took >= QUICK_LOOK
            && entries(found) >= FEW_ENTRIES
            && when.elapsed() < *took * 50
        {
            return found.clone();
        }
        let began = Instant::now();
        let found = look();
        *last = Some((Instant::now(), began.elapsed(), found.clone()));
        found
    }
}

/// The numbers that are in the file, as of a moment ago.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    counts: Looked<Counts>,
    backlog: Looked<Backlog>,
}

impl Looks {
    fn backlog(&self, readers: &Readers, entries: u64) -> BacklogReport {
        if entries == 0 {
            return BacklogReport::default();
        }
        let backlog = self.backlog.at(|| readers.backlog().unwrap_or_default(), |_| entries);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = |stamp: i64| {
            now.saturating_sub(Duration::from_micros(u64::try_from(stamp).unwrap_or(0))).as_secs_f64()
        };
        BacklogReport { entries, bytes: backlog.bytes, oldest_age_s: backlog.oldest_us.map(age) }
    }
}

/// Adds the numbers that are in the file.
pub(super) fn counted(report: SyncReport, readers: &Readers, looks: &Looks) -> SyncReport {
    let counts = looks.counts.at(
        || readers.counts().unwrap_or_default(),
        |counts| counts.pending + counts.parked + counts.conflicts,
    );
    let total = |name| readers.total(name).unwrap_or_default();
    SyncReport {
        pending: counts.pending,
        parked: counts.parked,
        conflicts: counts.conflicts,
        rows_flushed: total("rows_flushed"),
        rows_warmed: total("rows_warmed"),
        backlog: looks.backlog(readers, counts.pending),
        ..report
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// How many of two askers, one right after the other, had the file looked at.
    fn looks(takes: Duration, entries: u64) -> u64 {
        let (looked, mut made) = (Looked::default(), 0);
        for _ in 0..2 {
            looked.at(
                || {
                    made += 1;
                    std::thread::sleep(takes);
                },
                |()| entries,
            );
        }
        made
    }

    /// Only a long journal whose count takes long is not counted for everybody who asks.
    #[test]
    fn few_entries_are_counted_anew_however_slow_the_machine() {
        assert_eq!(looks(QUICK_LOOK, FEW_ENTRIES), 1);
        assert_eq!(looks(QUICK_LOOK, FEW_ENTRIES - 1), 2);
        assert_eq!(looks(Duration::ZERO, u64::MAX), 2);
    }
}
