//! What has passed: the availability and the rows of a day, in a memory that does not grow, for whoever looks only now.
//!
//! ```text
//! AvailabilityChanged, a look at the numbers ─▶ Past ─▶ `/history`: a page that is opened after an outage shows it
//! ```
//!
//! Nothing is noted by a timer of its own: a change is noted when it is announced, the numbers when somebody has looked at
//! them. Of the last hour a point every few seconds is kept, of the rest of the day one every two minutes, each with the most
//! of the time that it stands for, and always the newest. Time that the machine slept was watched by nobody, and says so.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::failure::FailureClass;
use crate::messages::ProxyStatus;

/// A moment, as two clocks have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// How long the machine has slept since some moment before.
    pub asleep: Duration,
}

/// The availability from a moment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Since when, in milliseconds since 1970.
    pub at: u64,
    /// What it was; none where nobody watched.
    pub status: Option<ProxyStatus>,
    /// Why it was not available, in words.
    pub reason: Option<&'static str>,
}

/// The numbers of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rows {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Rows that the cloud has not seen.
    pub pending: u64,
    /// Rows that went to the cloud, since the file was made.
    pub rows_flushed: u64,
    /// Rows that came from it.
    pub rows_warmed: u64,
}

impl Rows {
    /// Stands for a later point as well: what is left out had as much at most, so that no peak is lost.
    fn cover(&mut self, later: Self) {
        self.pending = self.pending.max(later.pending);
        self.rows_flushed = self.rows_flushed.max(later.rows_flushed);
        self.rows_warmed = self.rows_warmed.max(later.rows_warmed);
    }
}

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Between two points of the last hour.
pub const DENSE_MS: u64 = 5_000;

/// Between two points of the time before it.
const SPARSE_MS: u64 = 120_000;

/// Points of the last hour become points of the time before it once in a while.
const THIN_EVERY_MS: u64 = 60_000;

/// Points that are this near to each other: at most so many are kept, some 50 KB.
#[expect(clippy::cast_possible_truncation, reason = "some thousand")]
const ROWS_MAX: usize =
    ((HOUR_MS + THIN_EVERY_MS) / DENSE_MS + (DAY_MS + THIN_EVERY_MS) / SPARSE_MS) as usize + 2;

/// A cloud that comes and goes all day long is remembered for less than one.
const CHANGES_MAX: usize = 1_000;

/// Less may be a reading of the clocks that was interrupted.
const SLEPT_MIN: Duration = Duration::from_secs(5);

/// The memory. See the [module](self).
#[derive(Debug, Default)]
pub struct Past {
    changes: VecDeque<Change>,
    rows: VecDeque<Rows>,
    last: Option<Moment>,
    thinned_ms: u64,
}

impl Past {
    /// The availability is another one from now on.
    pub fn note_change(&mut self, now: Moment, status: ProxyStatus, class: Option<FailureClass>) {
        self.pass(now);
        let reason = class.map(FailureClass::in_words);
        if self.changes.back().is_some_and(|last| last.status == Some(status) && last.reason == reason) {
            return;
        }
        self.changes.push_back(Change { at: now.at_ms, status: Some(status), reason });
        self.forget(now.at_ms);
    }

    /// Somebody has looked at the numbers; the time in them counts for nothing.
    pub fn note_rows(&mut self, now: Moment, rows: Rows) {
        self.pass(now);
        // The newest is kept whatever comes before it; then it has to be far enough from that.
        if let [.., before, last] = self.rows.make_contiguous()
            && last.at < before.at + DENSE_MS
        {
            before.cover(*last);
            self.rows.pop_back();
        }
        self.rows.push_back(Rows { at: now.at_ms, ..rows });
        self.forget(now.at_ms);
    }

    /// Whether the numbers of now are worth a look: they would be another point, or something waits where nothing did.
    pub fn wants_rows(&self, now: Moment) -> bool {
        let far = |last: &Rows| now.at_ms < last.at || now.at_ms >= last.at + DENSE_MS;
        self.rows.back().is_none_or(far) || self.is_settled()
    }

    /// Whether nothing waited when somebody last looked.
    pub fn is_settled(&self) -> bool {
        self.rows.back().is_some_and(|last| last.pending == 0)
    }

    /// Everything that is known, the oldest first.
    pub fn told(&self) -> (Vec<Change>, Vec<Rows>) {
        (self.changes.iter().cloned().collect(), self.rows.iter().copied().collect())
    }

    /// What the clocks say about the time since they were last looked at.
    fn pass(&mut self, now: Moment) {
        let Some(last) = self.last.replace(now) else { return };
        if now.at_ms < last.at_ms {
            // A clock that was set back: nobody could tell what came after what.
            let current = self.changes.pop_back();
            self.changes = current.map(|change| Change { at: now.at_ms, ..change }).into_iter().collect();
            self.rows.clear();
            self.thinned_ms = now.at_ms;
        } else if now.asleep.saturating_sub(last.asleep) >= SLEPT_MIN
            && let Some(current) = self.changes.back().cloned()
        {
            self.changes.push_back(Change { at: last.at_ms, status: None, reason: None });
            self.changes.push_back(Change { at: now.at_ms, ..current });
        }
    }

    fn forget(&mut self, now_ms: u64) {
        let (day_ago, hour_ago) = (now_ms.saturating_sub(DAY_MS), now_ms.saturating_sub(HOUR_MS));
        // The one that held when the day began stays.
        while self.changes.len() > CHANGES_MAX || self.changes.get(1).is_some_and(|next| next.at <= day_ago) {
            self.changes.pop_front();
        }
        if now_ms < self.thinned_ms + THIN_EVERY_MS {
            return;
        }
        self.thinned_ms = now_ms;
        let mut kept: VecDeque<Rows> = VecDeque::with_capacity(self.rows.len());
        for point in self.rows.drain(..).filter(|point| point.at >= day_ago) {
            match kept.back_mut() {
                Some(last) if point.at < hour_ago && point.at < last.at + SPARSE_MS => last.cover(point),
                _ => kept.push_back(point),
            }
        }
        self.rows = kept;
        while self.rows.len() > ROWS_MAX {
            self.rows.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: u64 = 1_800_000_000_000;

    fn at(ms: u64) -> Moment {
        Moment { at_ms: START_MS + ms, asleep: Duration::ZERO }
    }

    fn rows(pending: u64) -> Rows {
        Rows { pending, ..Rows::default() }
    }

    /// A look each second for three days takes no more memory than a day's, holds the newest point, the last hour in steps of
    /// seconds and the day before it in steps of minutes.
    #[test]
    fn a_day_is_kept_in_a_memory_that_does_not_grow() {
        let mut past = Past::default();
        let end = 3 * 24 * 3600;
        for second in 0..=end {
            past.note_rows(at(second * 1000), rows(second));
            assert!(past.rows.len() <= ROWS_MAX);
        }
        let (_, kept) = past.told();
        assert_eq!(kept.last().unwrap().pending, end);
        let age = |point: &Rows| START_MS + end * 1000 - point.at;
        assert!(age(&kept[0]) <= DAY_MS + THIN_EVERY_MS && age(&kept[0]) > DAY_MS - 2 * SPARSE_MS);
        for pair in kept.windows(2) {
            let apart = pair[1].at - pair[0].at;
            let most = if age(&pair[0]) > HOUR_MS { 2 * SPARSE_MS } else { 2 * DENSE_MS };
            assert!(apart > 0 && apart <= most, "{apart} ms, {} ms ago", age(&pair[0]));
        }
        assert!(!past.wants_rows(at(end * 1000 + 1)) && past.wants_rows(at(end * 1000 + DENSE_MS)));
    }

    /// A peak between two points is not lost, neither in seconds nor in minutes.
    #[test]
    fn a_peak_between_two_points_is_kept() {
        let mut past = Past::default();
        past.note_rows(at(0), rows(0));
        past.note_rows(at(1_000), rows(7));
        for minute in 0..90 {
            past.note_rows(at(2_000 + minute * 60_000), rows(0));
            assert_eq!(past.told().1.iter().map(|it| it.pending).max(), Some(7), "{minute}");
        }
    }

    /// A change is noted once, and the one that held when the day began is not forgotten; many are bounded.
    #[test]
    fn changes_of_a_day_are_kept() {
        let mut past = Past::default();
        past.note_change(at(0), ProxyStatus::Available, None);
        past.note_change(at(1), ProxyStatus::Available, None);
        past.note_change(at(2), ProxyStatus::Unavailable, None);
        past.note_change(at(DAY_MS + 1), ProxyStatus::Available, None);
        let told: Vec<_> = past.told().0.iter().map(|it| (it.at - START_MS, it.status.unwrap())).collect();
        let expected = [
            (0, ProxyStatus::Available),
            (2, ProxyStatus::Unavailable),
            (DAY_MS + 1, ProxyStatus::Available),
        ];
        assert_eq!(told, expected);
        for n in 0..2 * CHANGES_MAX as u64 {
            let status = [ProxyStatus::Unavailable, ProxyStatus::Available][(n % 2) as usize];
            past.note_change(at(DAY_MS + 10 + n), status, None);
        }
        assert_eq!(past.told().0.len(), CHANGES_MAX);
    }

    /// Nobody has watched what passed while the machine slept, and a clock that was set back begins anew with what holds.
    #[test]
    fn sleep_and_a_clock_that_is_set_back_are_not_claimed() {
        let mut past = Past::default();
        past.note_change(at(0), ProxyStatus::Available, None);
        past.note_rows(at(1_000), rows(1));
        let woken = Moment { asleep: Duration::from_secs(3600), ..at(3_700_000) };
        past.note_rows(woken, rows(1));
        let told: Vec<_> = past.told().0.iter().map(|it| (it.at - START_MS, it.status)).collect();
        let available = Some(ProxyStatus::Available);
        assert_eq!(told, [(0, available), (1_000, None), (3_700_000, available)]);

        let earlier = Moment { at_ms: START_MS - 5, asleep: woken.asleep };
        assert!(past.wants_rows(earlier));
        past.note_rows(earlier, rows(2));
        let (changes, kept) = past.told();
        assert_eq!((changes.len(), changes[0].at, changes[0].status), (1, START_MS - 5, available));
        assert_eq!((kept.len(), kept[0].pending), (1, 2));
        assert!(!past.is_settled());
    }
}
