//! Long work, for people: how far it is, how fast it goes, how long it may still take, and when a line about that is due.
//!
//! - G1: work that is done within the first wait (`log.progress_after_s`) has no line.
//! - G2: the wait between two lines doubles up to [`LINES_APART_MAX`]: with a first one of ten seconds an hour has some fifteen
//!   of them, a day three hundred.
//!
//! Parts: [`Pace`] says when, [`Course`] is work that goes by rows, [`FileCourse`] such that goes through a file.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::doctor::size;

/// Who looks into a log later still sees that it went on.
pub const LINES_APART_MAX: Duration = Duration::from_secs(300);

/// When the lines about some work are due. Times count from any origin.
#[derive(Debug, Clone)]
pub struct Pace {
    next_line: Duration,
    wait: Duration,
    lines: u32,
}

impl Pace {
    /// Of work that begins now and is nobody's business before the first wait is over.
    #[must_use]
    pub fn new(now: Duration, first_wait: Duration) -> Self {
        Self { next_line: now + first_wait, wait: first_wait, lines: 0 }
    }

    /// Whether a line is due, which is then taken to be said.
    pub fn is_due(&mut self, now: Duration) -> bool {
        if now < self.next_line {
            return false;
        }
        self.wait = (self.wait * 2).min(LINES_APART_MAX);
        self.next_line = now + self.wait;
        self.lines += 1;
        true
    }

    /// Whether there was a line, so that the end of the work is news as well.
    #[must_use]
    pub fn was_told(&self) -> bool {
        self.lines > 0
    }
}

/// Long work that is under way. Times count from any origin.
#[derive(Debug, Clone)]
pub struct Course {
    work: Work,
    began: Duration,
    pace: Pace,
    rows: u64,
    rows_left: Option<u64>,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "snake_case")]
pub enum Work {
    /// A table is compared with the cloud, row by row.
    FirstSync {
        /// Its name.
        table: String,
    },
    /// What waits goes to the cloud.
    Flush,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is done.
    #[serde(flatten)]
    pub work: Work,
    /// Rows that are done.
    pub rows: u64,
    /// Rows that are left, about, where that is known.
    pub rows_left: Option<u64>,
    /// In a second, since it began.
    pub rows_per_s: f64,
    /// How long it may still take, in seconds, where that is known.
    pub left_s: Option<f64>,
}

impl Course {
    /// Work that begins now, with the wait before its first line.
    #[must_use]
    pub fn new(work: Work, now: Duration, first_wait: Duration) -> Self {
        Self { work, began: now, pace: Pace::new(now, first_wait), rows: 0, rows_left: None }
    }

    /// So many rows more are done. Answers whether a line is due.
    pub fn advance(&mut self, rows: u64, now: Duration) -> bool {
        self.rows += rows;
        self.rows_left = self.rows_left.map(|left| left.saturating_sub(rows));
        self.pace.is_due(now)
    }

    /// So many are left.
    pub fn expect(&mut self, rows_left: u64) {
        self.rows_left = Some(rows_left);
    }

    /// Whether there was a line, so that its end is news as well.
    #[must_use]
    pub fn was_told(&self) -> bool {
        self.pace.was_told()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
        let (rows, left) = (self.rows as f64, self.rows_left.map(|left| left as f64));
        let seconds = now.saturating_sub(self.began).as_secs_f64();
        let rate = if seconds > 0.0 { rows / seconds } else { 0.0 };
        Progress {
            work: self.work.clone(),
            rows: self.rows,
            rows_left: self.rows_left,
            rows_per_s: rate,
            left_s: left.filter(|_| rate > 0.0).map(|left| left / rate),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Through a file
// ---------------------------------------------------------------------------------------------------------

/// What goes through a file from one end to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileWork {
    /// It is copied.
    Copy,
    /// It is looked through for damage.
    Check,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many bytes of so many.
    Bytes {
        /// Done.
        done: u64,
        /// All.
        of: u64,
    },
    /// So many bytes, and not more than so many.
    AtMost {
        /// Done.
        done: u64,
        /// Where it ends at the latest.
        of: u64,
    },
    /// A part of it without a measure in bytes: so many tables of so many are looked at for rows without their parents.
    References {
        /// Done.
        done: u64,
        /// All.
        of: u64,
    },
    /// Nobody counts.
    Unknown,
}

/// Work on a file that is under way. Times count from any origin.
#[derive(Debug, Clone)]
pub struct FileCourse {
    work: FileWork,
    began: Duration,
    pace: Pace,
    extent: Extent,
    /// What was done when the last measure in bytes was taken, and when that was.
    bytes: Option<(u64, Duration)>,
}

impl FileCourse {
    /// Work that begins now, with the wait before its first line.
    #[must_use]
    pub fn new(work: FileWork, now: Duration, first_wait: Duration) -> Self {
        let pace = Pace::new(now, first_wait);
        Self { work, began: now, pace, extent: Extent::Unknown, bytes: None }
    }

    /// So far it is now. Answers with the line that is due, if one is.
    pub fn see(&mut self, extent: Extent, now: Duration) -> Option<String> {
        if let Extent::Bytes { done, .. } | Extent::AtMost { done, .. } = extent {
            self.bytes = Some((done, now));
        }
        self.extent = extent;
        self.pace.is_due(now).then(|| self.line(now))
    }

    /// It is over, with so many bytes in all where that is known. Answers with a line about that where there was one before.
    #[must_use]
    pub fn end(&self, bytes: Option<u64>, now: Duration) -> Option<String> {
        if !self.pace.was_told() {
            return None;
        }
        let (work, took) = (self.work, now.saturating_sub(self.began));
        let amount = match bytes.zip(bytes.and_then(|bytes| per_second(bytes, took))) {
            Some((bytes, rate)) => format!(", {}, {}/s", size(bytes), size(rate)),
            None => String::new(),
        };
        Some(format!("{work}: done in {}{amount}", seconds(took)))
    }

    fn line(&self, now: Duration) -> String {
        let work = self.work;
        let rate = || self.rate().map_or(String::new(), |rate| format!(", {}/s", size(rate)));
        match self.extent {
            Extent::Bytes { done, of } => {
                format!("{work}: {} of {}{}{}", size(done), size(of), rate(), self.left("some", done, of))
            }
            Extent::AtMost { done, of } => format!(
                "{work}: {} of at most {}{}{}",
                size(done),
                size(of.max(done)),
                rate(),
                self.left("at most", done, of)
            ),
            Extent::References { done, of } => format!(
                "{work}: {done} of {of} tables looked at for rows without their parents, {} so far",
                seconds(now.saturating_sub(self.began))
            ),
            Extent::Unknown => format!("{work}: {} so far", seconds(now.saturating_sub(self.began))),
        }
    }

    /// In bytes per second, over all of it so far that has a measure.
    fn rate(&self) -> Option<u64> {
        let (bytes, at) = self.bytes?;
        per_second(bytes, at.saturating_sub(self.began))
    }

    fn left(&self, how: &str, done: u64, of: u64) -> String {
        match self.rate().filter(|rate| *rate > 0) {
            Some(rate) => {
                format!(
                    ", {how} {} left",
                    seconds(Duration::from_secs(of.saturating_sub(done).div_ceil(rate)))
                )
            }
            None => String::new(),
        }
    }
}

fn per_second(amount: u64, time: Duration) -> Option<u64> {
    let nanos = time.as_nanos();
    (nanos > 0).then(|| u64::try_from(u128::from(amount) * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

/// As exact as people care.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        ..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

impl fmt::Display for FileWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copying the file",
            Self::Check => "looking through the file",
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstSync { table } => write!(f, "comparing {table}"),
            Self::Flush => f.write_str("flushing"),
        }
    }
}

impl fmt::Display for Progress {
    /// `flushing: 120000 rows, 4000/s, some 95 s for about 380000 more`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {:.0}/s", self.work, self.rows, self.rows_per_s)?;
        match self.left_s {
            Some(seconds) if seconds < 120.0 => write!(f, ", some {seconds:.0} s")?,
            Some(seconds) => write!(f, ", some {:.0} min", seconds / 60.0)?,
            None => {}
        }
        match (self.rows_left, self.left_s) {
            (Some(left), Some(_)) => write!(f, " for about {left} more"),
            (Some(left), None) => write!(f, ", about {left} more"),
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `log.progress_after_s`, as it is by itself.
    const FIRST: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// G1: what is done soon is nobody's business, however many rows it has.
    #[test]
    fn quick_work_has_no_line() {
        let mut course = Course::new(Work::Flush, at(100), FIRST);
        assert!(!course.advance(1_000_000, at(109)));
        assert!(!course.was_told());
    }

    /// G2: in a day of steady work the lines come ever more rarely, and not more than one in five minutes.
    #[test]
    fn the_lines_come_at_a_calm_pace() {
        let mut course = Course::new(Work::Flush, at(0), FIRST);
        let lines: Vec<u64> = (1..86_400).filter(|second| course.advance(1, at(*second))).collect();
        assert_eq!(lines[..7], [10, 30, 70, 150, 310, 610, 910]);
        assert!(lines.windows(2).skip(4).all(|pair| pair[1] - pair[0] == 300), "{lines:?}");
        assert_eq!(lines.len(), 291);
    }

    /// The line has what is known: the rate always, the rest where somebody knows how much there is.
    #[test]
    fn the_line_says_what_is_known() {
        let mut course = Course::new(Work::FirstSync { table: "note".into() }, at(0), FIRST);
        assert_eq!(course.progress(at(0)).to_string(), "comparing note: 0 rows, 0/s");
        course.advance(120_000, at(30));
        assert_eq!(course.progress(at(30)).to_string(), "comparing note: 120000 rows, 4000/s");
        course.expect(380_000);
        let said = course.progress(at(30)).to_string();
        assert_eq!(said, "comparing note: 120000 rows, 4000/s, some 95 s for about 380000 more");
        course.advance(1000, at(31));
        assert_eq!(course.progress(at(31)).rows_left, Some(379_000));
        // More than was expected is no reason to fall below nothing.
        course.advance(1_000_000, at(40));
        assert_eq!((course.progress(at(40)).rows_left, course.progress(at(40)).left_s), (Some(0), Some(0.0)));
        let slow = Progress { left_s: Some(7200.0), ..course.progress(at(40)) };
        assert!(slow.to_string().ends_with(", some 120 min for about 0 more"), "{slow}");
    }

    /// G1, G2: a file is gone through without a line where that is quick, and at the same pace as everything else where not; the
    /// end is told where the middle was.
    #[test]
    fn a_file_is_gone_through_at_the_same_pace() {
        let mut quick = FileCourse::new(FileWork::Copy, at(5), FIRST);
        assert_eq!(quick.see(Extent::Bytes { done: 1 << 30, of: 2 << 30 }, at(14)), None);
        assert_eq!(quick.end(Some(2 << 30), at(14)), None);
        let mut long = FileCourse::new(FileWork::Check, at(0), FIRST);
        let lines: Vec<u64> = (1..1000)
            .filter(|second| long.see(Extent::AtMost { done: *second, of: 1000 }, at(*second)).is_some())
            .collect();
        assert_eq!(lines, [10, 30, 70, 150, 310, 610, 910]);
        assert!(long.end(None, at(1000)).is_some());
    }

    /// The line has the amounts, the rate and what is left, as far as each is known; what is only known not to be more says so.
    #[test]
    fn a_line_about_a_file_says_what_is_known() {
        let line = |work, extents: &[(Extent, u64)]| {
            let mut course = FileCourse::new(work, at(0), at(0));
            extents
                .iter()
                .map(|(extent, second)| course.see(*extent, at(*second)).unwrap())
                .next_back()
                .unwrap()
        };
        let (mib, gib) = (1_u64 << 20, 1_u64 << 30);
        let copied = Extent::Bytes { done: 512 * mib, of: 2 * gib };
        assert_eq!(
            line(FileWork::Copy, &[(copied, 16)]),
            "copying the file: 512.0 MiB of 2.0 GiB, 32.0 MiB/s, some 48 s left"
        );
        let read = Extent::AtMost { done: gib, of: 40 * gib };
        assert_eq!(
            line(FileWork::Check, &[(read, 32)]),
            "looking through the file: 1.0 GiB of at most 40.0 GiB, 32.0 MiB/s, at most 21 min left"
        );
        // More than anybody expected.
        let more = Extent::AtMost { done: 3 * gib, of: 2 * gib };
        assert_eq!(
            line(FileWork::Check, &[(more, 96)]),
            "looking through the file: 3.0 GiB of at most 3.0 GiB, 32.0 MiB/s, at most 0.0 s left"
        );
        assert_eq!(
            line(FileWork::Check, &[(Extent::Unknown, 400)]),
            "looking through the file: 7 min so far"
        );
        let references = Extent::References { done: 3, of: 12 };
        assert_eq!(
            line(FileWork::Check, &[(references, 50)]),
            "looking through the file: 3 of 12 tables looked at for rows without their parents, 50 s so far"
        );
        // At the very beginning there is no rate.
        assert_eq!(line(FileWork::Copy, &[(copied, 0)]), "copying the file: 512.0 MiB of 2.0 GiB");
    }

    /// The end says how long it took, and how fast it went where all of it was counted.
    #[test]
    fn the_end_of_a_file_says_how_fast_it_went() {
        let mut copy = FileCourse::new(FileWork::Copy, at(0), at(1));
        copy.see(Extent::Bytes { done: 64 << 20, of: 128 << 20 }, at(32)).unwrap();
        assert_eq!(
            copy.end(Some(128 << 20), at(64)).unwrap(),
            "copying the file: done in 64 s, 128.0 MiB, 2.0 MiB/s"
        );
        let mut check = FileCourse::new(FileWork::Check, at(0), at(1));
        check.see(Extent::AtMost { done: 64 << 20, of: 128 << 20 }, at(2)).unwrap();
        assert_eq!(check.end(None, at(3)).unwrap(), "looking through the file: done in 3.0 s");
    }
}
