//! How long to wait after the n-th failure in a row.
//!
//! ```text
//! n      1        2        3        4            max
//! wait   initial  × 2      × 4      × 8   …      never longer
//! ```

use std::time::Duration;

/// An exponential backoff: the wait after failure n is `initial × 2^(n-1)`, at most `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

/// Why two durations are not a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBackoff {
    /// A wait of zero is a busy loop.
    #[error("the initial delay must be longer than 0 s")]
    ZeroInitial,
    /// The cap would shorten even the first wait.
    #[error("the longest delay ({max:?}) must not be shorter than the initial delay ({initial:?})")]
    MaxBelowInitial {
        /// The wait after the first failure.
        initial: Duration,
        /// The longest wait.
        max: Duration,
    },
}

impl Backoff {
    /// A backoff that starts with `initial` and never waits longer than `max`.
    ///
    /// # Errors
    /// When `initial` is zero or longer than `max`.
    pub fn try_new(initial: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if initial.is_zero() {
            return Err(InvalidBackoff::ZeroInitial);
        }
        if max < initial {
            return Err(InvalidBackoff::MaxBelowInitial { initial, max });
        }
        Ok(Self { initial, max })
    }

    /// The wait after the `failures`-th failure in a row; zero failures count as one.
    pub fn wait(self, failures: u32) -> Duration {
        let factor = 2_u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.initial.checked_mul(factor).map_or(self.max, |wait| wait.min(self.max))
    }

    /// The wait after the first failure.
    pub fn initial(self) -> Duration {
        self.initial
    }

    /// The longest wait.
    pub fn max(self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(backoff: Backoff, failures: impl IntoIterator<Item = u32>) -> Vec<u64> {
        failures.into_iter().map(|n| backoff.wait(n).as_secs()).collect()
    }

    /// The defaults give the waits that the documentation promises.
    #[test]
    fn the_wait_doubles_until_the_cap() {
        let backoff = Backoff::try_new(Duration::from_secs(10), Duration::from_secs(600)).unwrap();
        assert_eq!(seconds(backoff, 1..=9), [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        assert_eq!(seconds(backoff, [0]), [10]);
    }

    /// A watcher that runs for years must not wrap around to a short wait, whatever the two delays are.
    #[test]
    fn a_huge_count_does_not_overflow() {
        let wide = Backoff::try_new(Duration::from_nanos(1), Duration::MAX).unwrap();
        let mut before = Duration::ZERO;
        for failures in (1..200).chain([u32::MAX - 1, u32::MAX]) {
            let wait = wide.wait(failures);
            assert!(wait >= before, "failure {failures}");
            before = wait;
        }
        let long = Backoff::try_new(Duration::MAX, Duration::MAX).unwrap();
        assert_eq!(long.wait(u32::MAX), Duration::MAX);
    }

    /// A backoff that would spin, or whose cap is below its start, cannot be built.
    #[test]
    fn impossible_delays_are_refused() {
        let second = Duration::from_secs(1);
        assert_eq!(Backoff::try_new(Duration::ZERO, second), Err(InvalidBackoff::ZeroInitial));
        assert!(matches!(Backoff::try_new(second * 2, second), Err(InvalidBackoff::MaxBelowInitial { .. })));
    }
}
