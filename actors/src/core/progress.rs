//! Long work, for people: how far it is, how fast it goes, how long it may still take, and when a line about that is due.
//!
//! - G1: work that is done within [`FIRST_LINE`] has no line.
//! - G2: the wait between two lines doubles up to [`LINES_APART_MAX`]: an hour has some fifteen of them, a day three hundred.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// After so much work people want to know.
pub const FIRST_LINE: Duration = Duration::from_secs(10);

/// Who looks into a log later still sees that it went on.
pub const LINES_APART_MAX: Duration = Duration::from_secs(300);

/// Long work that is under way. Times count from any origin.
#[derive(Debug, Clone)]
pub struct Course {
    work: Work,
    began: Duration,
    next_line: Duration,
    wait: Duration,
    rows: u64,
    rows_left: Option<u64>,
    lines: u32,
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
    /// Work that begins now.
    #[must_use]
    pub fn new(work: Work, now: Duration) -> Self {
        Self {
            work,
            began: now,
            next_line: now + FIRST_LINE,
            wait: FIRST_LINE,
            rows: 0,
            rows_left: None,
            lines: 0,
        }
    }

    /// So many rows more are done. Answers whether a line is due.
    pub fn advance(&mut self, rows: u64, now: Duration) -> bool {
        self.rows += rows;
        self.rows_left = self.rows_left.map(|left| left.saturating_sub(rows));
        if now < self.next_line {
            return false;
        }
        self.wait = (self.wait * 2).min(LINES_APART_MAX);
        self.next_line = now + self.wait;
        self.lines += 1;
        true
    }

    /// So many are left.
    pub fn expect(&mut self, rows_left: u64) {
        self.rows_left = Some(rows_left);
    }

    /// Whether there was a line, so that its end is news as well.
    #[must_use]
    pub fn was_told(&self) -> bool {
        self.lines > 0
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

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// G1: what is done soon is nobody's business, however many rows it has.
    #[test]
    fn quick_work_has_no_line() {
        let mut course = Course::new(Work::Flush, at(100));
        assert!(!course.advance(1_000_000, at(109)));
        assert!(!course.was_told());
    }

    /// G2: in a day of steady work the lines come ever more rarely, and not more than one in five minutes.
    #[test]
    fn the_lines_come_at_a_calm_pace() {
        let mut course = Course::new(Work::Flush, at(0));
        let lines: Vec<u64> = (1..86_400).filter(|second| course.advance(1, at(*second))).collect();
        assert_eq!(lines[..7], [10, 30, 70, 150, 310, 610, 910]);
        assert!(lines.windows(2).skip(4).all(|pair| pair[1] - pair[0] == 300), "{lines:?}");
        assert_eq!(lines.len(), 291);
    }

    /// The line has what is known: the rate always, the rest where somebody knows how much there is.
    #[test]
    fn the_line_says_what_is_known() {
        let mut course = Course::new(Work::FirstSync { table: "note".into() }, at(0));
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
}
