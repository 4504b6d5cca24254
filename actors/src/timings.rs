//! How long things take, counted where they happen: a few atomic additions, some ten nanoseconds.
//!
//! Parts: [`Timings`], what is measured; [`Rounds`], one histogram for each way in which a flush round ends, and
//! [`RoundTimer`], which counts each of them once, those as well that are cut off; [`Histogram`], durations in buckets, never
//! reset; [`Snapshot`], what a reader makes of one. Whoever measures adds and nobody waits; who reads may see an observation's count a moment before its sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What is measured in one database.
#[derive(Debug)]
pub struct Timings {
    /// A write, from the call to the answer that it is on the disk; only those that are.
    pub write: Histogram,
    /// A read on the caller's own thread.
    pub read: Histogram,
    /// A flush round, from the noted window to its end.
    pub round: Rounds,
    /// A row, from the local write to the acknowledgement that the cloud has it.
    pub propagation: Histogram,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            write: Histogram::new(&LOCAL_S),
            read: Histogram::new(&LOCAL_S),
            round: Rounds::default(),
            propagation: Histogram::new(&PROPAGATION_S),
        }
    }
}

/// From a point read to a disk that stalls.
const LOCAL_S: [f64; 18] = [
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5,
    1.0, 5.0,
];

/// A round takes about a second where much waits, and some round trips where little does.
const ROUND_S: [f64; 14] =
    [1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From the next round to an outage of days.
const PROPAGATION_S: [f64; 17] = [
    5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 21600.0,
    86400.0,
];

/// How a flush round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundEnd {
    /// The cloud has it, or had it already; some rows were left out perhaps.
    Committed,
    /// Nothing took effect: PostgreSQL refuses some of it, which is parked or tried again with others.
    Refused,
    /// Nothing is known to have taken effect: the link or the server failed, a statement took longer than it may, or nobody waited
    /// for the end any more.
    Failed,
}

impl RoundEnd {
    /// All of them, in the order of their histograms.
    pub const ALL: [Self; 3] = [Self::Committed, Self::Refused, Self::Failed];

    /// The word for people and machines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Flush rounds by their ends.
#[derive(Debug)]
pub struct Rounds([Histogram; 3]);

impl Default for Rounds {
    fn default() -> Self {
        Self(RoundEnd::ALL.map(|_| Histogram::new(&ROUND_S)))
    }
}

impl Rounds {
    /// Those that ended so.
    #[must_use]
    pub fn of(&self, end: RoundEnd) -> &Histogram {
        &self.0[end as usize]
    }
}

/// A round under way: counted when this is dropped, as [`RoundEnd::Failed`] unless another [end](Self::ends) was said.
#[derive(Debug)]
pub struct RoundTimer {
    timings: Arc<Timings>,
    began: Instant,
    end: RoundEnd,
}

impl RoundTimer {
    /// It begins now.
    #[must_use]
    pub fn begin(timings: Arc<Timings>) -> Self {
        Self { timings, began: Instant::now(), end: RoundEnd::Failed }
    }

    /// How it ends.
    pub fn ends(&mut self, end: RoundEnd) {
        self.end = end;
    }

    /// How long it has taken.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for RoundTimer {
    fn drop(&mut self) {
        self.timings.round.of(self.end).observe(self.began.elapsed());
    }
}

/// Durations, counted in buckets.
#[derive(Debug)]
pub struct Histogram {
    /// The upper bounds of all buckets but the last, in seconds, and the same in nanoseconds.
    bounds_s: &'static [f64],
    bounds_ns: Box<[u64]>,
    counts: Box<[AtomicU64]>,
    /// The sum in two parts: nanoseconds alone would overflow with some billions of rows that waited for a day.
    whole_s: AtomicU64,
    rest_ns: AtomicU64,
}

/// What a [`Histogram`] holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// By bucket: its upper bound in seconds, and how many fell into it and into none below. The last has no bound.
    pub buckets: Vec<(f64, u64)>,
    /// How many there are.
    pub count: u64,
    /// How long all of them took, in seconds.
    pub sum_s: f64,
}

impl Histogram {
    /// An empty one; the bounds rise.
    fn new(bounds_s: &'static [f64]) -> Self {
        let nanos =
            |bound: &f64| u64::try_from(Duration::from_secs_f64(*bound).as_nanos()).unwrap_or(u64::MAX);
        Self {
            bounds_s,
            bounds_ns: bounds_s.iter().map(nanos).collect(),
            counts: (0..=bounds_s.len()).map(|_| AtomicU64::new(0)).collect(),
            whole_s: AtomicU64::new(0),
            rest_ns: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds_ns.partition_point(|bound| *bound < nanos);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        if took.as_secs() > 0 {
            self.whole_s.fetch_add(took.as_secs(), Ordering::Relaxed);
        }
        self.rest_ns.fetch_add(u64::from(took.subsec_nanos()), Ordering::Relaxed);
    }

    /// Counts one that began at this time of the wall clock, in microseconds since 1970. A clock that was set back since makes
    /// it nothing.
    pub fn observe_since(&self, began_us: i64, now_us: i64) {
        let took_us = now_us.saturating_sub(began_us).max(0);
        self.observe(Duration::from_micros(took_us.unsigned_abs()));
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let bounds = self.bounds_s.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let sum_s =
            self.whole_s.load(Ordering::Relaxed) as f64 + self.rest_ns.load(Ordering::Relaxed) as f64 / 1e9;
        Snapshot { buckets, count, sum_s }
    }
}

/// The wall clock, in microseconds since 1970.
#[must_use]
pub fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each duration is in the first bucket that holds it, its bound included, and in the sum.
    #[test]
    fn durations_are_counted_in_buckets() {
        let histogram = Histogram::new(&[0.001, 0.1, 10.0]);
        for took in [0, 1_000, 1_001, 100_000, 5_000_000, 3_600_000_000] {
            histogram.observe(Duration::from_micros(took));
        }
        histogram.observe_since(1_000_000, 1_050_000);
        histogram.observe_since(2_000_000, 1_000_000);
        let Snapshot { buckets, count, sum_s } = histogram.snapshot();
        assert_eq!(buckets, [(0.001, 3), (0.1, 3), (10.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(count, 8);
        assert!((sum_s - 3_605.152_001).abs() < 1e-6, "{sum_s}");
    }

    /// Every round that begins is counted once, by its end; one that nobody waits for any more has failed.
    #[test]
    fn a_round_is_counted_however_it_ends() {
        let timings = Arc::new(Timings::default());
        for end in RoundEnd::ALL {
            RoundTimer::begin(timings.clone()).ends(end);
        }
        drop(RoundTimer::begin(timings.clone()));
        let counts = RoundEnd::ALL.map(|end| (end.as_str(), timings.round.of(end).snapshot().count));
        assert_eq!(counts, [("committed", 1), ("refused", 1), ("failed", 2)]);
    }

    /// Bounds rise, so that the search finds the bucket.
    #[test]
    fn the_bounds_rise() {
        for bounds in [&LOCAL_S[..], &ROUND_S, &PROPAGATION_S] {
            assert!(bounds.is_sorted() && bounds[0] > 0.0, "{bounds:?}");
        }
    }
}
