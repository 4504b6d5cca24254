//! The numbers that are in the file, for whoever asks how it is.
//!
//! ```text
//! GetSyncReport ─▶ counted ─┬─ short, or quickly counted, or long ago ─▶ the file is looked at, by one at a time
//!                           └─ else ─▶ what the last look found; and that, too, when a look takes long, or fails
//! the end of a cycle ─▶ the looks before it are outdated
//! ```
//!
//! What cannot be counted is never a zero: somebody would take it for a file that is flushed, and a counter for one that began
//! anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::core::past::Rows;
use crate::messages::{BacklogReport, SyncReport};
use crate::past::Remembered;
use crate::sqlite::{Backlog, Counts, Readers, StoreError};

/// A look that takes less is made whenever somebody asks.
const QUICK_LOOK: Duration = Duration::from_millis(20);

/// Fewer entries are counted whenever somebody asks: where that takes long, the machine is slow and not the look.
const FEW_ENTRIES: u64 = 10_000;

/// One at a journal that is long, and takes long, is made so seldom that all of them take a fiftieth of the time at most,
/// however many ask.
const PAUSE_FACTOR: u32 = 50;

/// A look that takes longer goes on without whoever asked for it: `status` asks every actor, and does not wait for longer than
/// twice this before it calls one silent.
const LOOK_WAIT: Duration = Duration::from_secs(1);

/// What a look finds.
#[derive(Debug, Clone, Default)]
struct Numbers {
    counts: Counts,
    backlog: Backlog,
}

impl Numbers {
    fn of(readers: &Readers) -> Result<Self, StoreError> {
        let counts = readers.counts()?;
        let backlog = if counts.pending == 0 { Backlog::default() } else { readers.backlog()? };
        Ok(Self { counts, backlog })
    }

    fn entries(&self) -> u64 {
        self.counts.pending + self.counts.parked + self.counts.conflicts
    }
}

/// The rows that went, in either direction, since the file was made: two rows of the file, whatever waits.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    flushed: u64,
    warmed: u64,
}

impl Totals {
    fn of(readers: &Readers) -> Result<Self, StoreError> {
        Ok(Self { flushed: readers.total("rows_flushed")?, warmed: readers.total("rows_warmed")? })
    }
}

#[derive(Debug)]
struct Look {
    began: Instant,
    took: Duration,
    numbers: Numbers,
}

impl Look {
    /// Whether another one so soon would cost those who write too much.
    fn is_good_enough(&self, outdated: Option<Instant>) -> bool {
        outdated.is_none_or(|at| self.began >= at)
            && self.took >= QUICK_LOOK
            && self.numbers.entries() >= FEW_ENTRIES
            && (self.began + self.took).elapsed() < self.took * PAUSE_FACTOR
    }
}

/// What is known, as of the last looks that came to something.
#[derive(Debug, Default)]
struct Known {
    look: Option<Look>,
    totals: Option<Totals>,
    /// What looked before may have seen what is not there any more.
    outdated: Option<Instant>,
    /// Why the last look came to nothing.
    failed: Option<StoreError>,
}

/// The numbers that are in the file, as of a moment ago. The clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    known: Arc<Mutex<Known>>,
    /// One at a time: the syncer has few connections for reading, and needs them itself.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Where each look is noted.
    past: Arc<Remembered>,
}

impl Looks {
    pub(super) fn new(past: Arc<Remembered>) -> Self {
        Self { past, ..Self::default() }
    }

    /// Who looks from now on sees what a cycle did, not what was counted before.
    pub(super) fn outdate(&self) {
        self.known().outdated = Some(Instant::now());
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, if it is worth it.
    fn look(&self, readers: &Readers) {
        self.learn(|| Totals::of(readers), || Numbers::of(readers));
    }

    fn learn(
        &self,
        totals: impl FnOnce() -> Result<Totals, StoreError>,
        numbers: impl FnOnce() -> Result<Numbers, StoreError>,
    ) {
        let outdated = self.known().outdated;
        let is_known = self.known().look.as_ref().is_some_and(|look| look.is_good_enough(outdated));
        let began = Instant::now();
        // Nobody waits for the lock while the file is looked at.
        let found = totals().and_then(|totals| Ok((totals, if is_known { None } else { Some(numbers()?) })));
        let mut known = self.known();
        match found {
            Ok((totals, numbers)) => {
                known.totals = Some(totals);
                if let Some(numbers) = numbers {
                    self.past.note_rows(Rows {
                        pending: numbers.counts.pending,
                        rows_flushed: totals.flushed,
                        rows_warmed: totals.warmed,
                        ..Rows::default()
                    });
                    known.look = Some(Look { began, took: began.elapsed(), numbers });
                }
                known.failed = None;
            }
            Err(error) => known.failed = Some(error),
        }
    }

    /// Adds what is known.
    fn added_to(&self, report: SyncReport) -> SyncReport {
        let known = self.known();
        // That every connection is in use passes by itself, and is not worth a word while something is known.
        let lasts = |error: &&StoreError| !matches!(error, StoreError::Busy(_));
        let uncounted = known.failed.as_ref().filter(lasts).map(ToString::to_string);
        let (Some(look), Some(totals)) = (&known.look, known.totals) else {
            let why = known.failed.as_ref().map(ToString::to_string);
            let detail =
                Some(why.unwrap_or_else(|| "what waits in the file is still being counted".to_owned()));
            return SyncReport { state: String::new(), detail, uncounted, ..SyncReport::default() };
        };
        let Numbers { counts, backlog } = &look.numbers;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = |stamp: i64| {
            now.saturating_sub(Duration::from_micros(u64::try_from(stamp).unwrap_or(0))).as_secs_f64()
        };
        SyncReport {
            detail: report.detail.or_else(|| uncounted.clone()),
            pending: counts.pending,
            parked: counts.parked,
            conflicts: counts.conflicts,
            rows_flushed: totals.flushed,
            rows_warmed: totals.warmed,
            backlog: BacklogReport {
                entries: counts.pending,
                bytes: backlog.bytes,
                oldest_age_s: backlog.oldest_us.map(age),
            },
            uncounted,
            ..report
        }
    }
}

/// Adds the numbers that are in the file, within [`LOOK_WAIT`].
pub(super) async fn counted(report: SyncReport, readers: Readers, looks: Looks) -> SyncReport {
    let looking = async {
        let turn = looks.turn.clone().lock_owned().await;
        let own = looks.clone();
        // Counting a long journal takes a while, and this thread is the watcher's and the breaker's, too.
        let counting = actix_rt::task::spawn_blocking(move || {
            let _turn = turn;
            own.look(&readers);
        });
        // Whatever came of it, what is known is known.
        let _ = counting.await;
    };
    // One that takes longer goes on, for whoever asks next.
    let _ = tokio::time::timeout(LOOK_WAIT, looking).await;
    looks.added_to(report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::sqlite::{StoreOptions, UpkeepOptions};

    fn numbers(pending: u64) -> Numbers {
        Numbers { counts: Counts { pending, ..Counts::default() }, ..Numbers::default() }
    }

    fn idle() -> SyncReport {
        SyncReport { state: "idle".to_owned(), ..SyncReport::default() }
    }

    /// Learns a count that takes a while.
    fn learn(looks: &Looks, pending: u64, takes: Duration) {
        let count = || {
            std::thread::sleep(takes);
            Ok(numbers(pending))
        };
        looks.learn(|| Ok(Totals::default()), count);
    }

    /// Whether the second of two askers, one right after the other, had the file looked at again.
    fn looks_again(takes: Duration, entries: u64, between: impl FnOnce(&Looks)) -> bool {
        let looks = Looks::default();
        learn(&looks, entries, takes);
        between(&looks);
        learn(&looks, entries + 1, takes);
        looks.added_to(idle()).pending == entries + 1
    }

    /// Only a long journal whose count takes long is not counted for everybody who asks, and after a cycle that is, too.
    #[test]
    fn few_entries_are_counted_anew_however_slow_the_machine() {
        assert!(!looks_again(QUICK_LOOK, FEW_ENTRIES, |_| {}));
        assert!(looks_again(QUICK_LOOK, FEW_ENTRIES, Looks::outdate));
        assert!(looks_again(QUICK_LOOK, FEW_ENTRIES - 1, |_| {}));
        assert!(looks_again(Duration::ZERO, FEW_ENTRIES * FEW_ENTRIES, |_| {}));
    }

    /// A look that fails makes no zeros: what was known stays, with the reason where it lasts; what never was known has no
    /// state, and says why.
    #[test]
    fn what_cannot_be_counted_is_no_zero() {
        let damaged = || Err(StoreError::Damaged("page 7".to_owned()));
        let busy = || Err(StoreError::Busy("every connection is in use".to_owned()));
        let looks = Looks::default();
        let unknown = looks.added_to(idle());
        assert_eq!((&*unknown.state, unknown.uncounted), ("", None));
        assert!(unknown.detail.unwrap().contains("being counted"));
        looks.learn(busy, || Ok(numbers(1)));
        let unknown = looks.added_to(idle());
        assert_eq!((&*unknown.state, unknown.uncounted), ("", None));
        assert!(unknown.detail.unwrap().contains("every connection"));

        looks.learn(|| Ok(Totals { flushed: 5, warmed: 7 }), || Ok(numbers(3)));
        looks.learn(busy, || Ok(numbers(1)));
        let known = looks.added_to(idle());
        assert_eq!((&*known.state, known.pending, known.rows_flushed, known.rows_warmed), ("idle", 3, 5, 7));
        assert_eq!((known.uncounted, known.detail), (None, None));
        looks.learn(|| Ok(Totals { flushed: 6, warmed: 7 }), || damaged().map(|()| numbers(1)));
        let known = looks.added_to(idle());
        assert_eq!((&*known.state, known.pending, known.rows_flushed), ("idle", 3, 5));
        assert!(known.uncounted.unwrap().contains("page 7") && known.detail.unwrap().contains("page 7"));
        learn(&looks, 4, Duration::ZERO);
        let known = looks.added_to(idle());
        assert_eq!((known.pending, known.uncounted, known.detail), (4, None, None));
    }

    /// While a look takes long, whoever else asks is answered with what is known, and the look serves those who come after it.
    #[tokio::test(start_paused = true)]
    async fn a_long_look_makes_nobody_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        rusqlite::Connection::open(&path).unwrap();
        let options = StoreOptions {
            path,
            busy_timeout: Duration::from_secs(5),
            read_pool_max: 1,
            upkeep: UpkeepOptions::default(),
        };
        let readers = Readers::open(&options).unwrap();
        let looks = Looks::default();
        learn(&looks, 3, Duration::ZERO);
        let turn = looks.turn.clone().lock_owned().await;
        let answers =
            futures_util::future::join_all((0..4).map(|_| counted(idle(), readers.clone(), looks.clone())));
        for answer in answers.await {
            assert_eq!((&*answer.state, answer.pending, answer.uncounted), ("idle", 3, None));
        }
        drop(turn);
        // This file is nobody's, so that a look of its own fails.
        assert!(counted(idle(), readers, looks).await.uncounted.is_some());
    }
}
