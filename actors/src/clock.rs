//! How long the machine slept: the time that [`Instant`] leaves out.
//!
//! On Linux and on Apple's systems `Instant`, and with it every timer of the process, stands still while the
//! machine is suspended; another clock of the system goes on. Their difference is the sleep.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long the machine has been suspended since this function was first called. Zero where `Instant` does not
/// stop, or where there is no other clock.
///
/// Compare two readings: what one grew by was slept. A reading that was interrupted may be too small by as
/// long as the interruption took, so growth of less than a second means nothing. Never negative.
pub fn asleep() -> Duration {
    static ORIGIN: LazyLock<(Duration, Instant)> = LazyLock::new(|| (with_sleep(), Instant::now()));
    let (start, origin) = *ORIGIN;
    with_sleep().saturating_sub(start).saturating_sub(origin.elapsed())
}

/// A clock that goes on during sleep.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn with_sleep() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // Apple's `CLOCK_MONOTONIC` counts sleep, and `Instant` there is another one, which does not.
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn with_sleep() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that passes while the machine is awake is not sleep. A busy machine may disturb a reading, hence
    /// the attempts; time that is wrongly counted is counted in all of them.
    #[test]
    fn waking_time_does_not_count() {
        let attempt = || {
            let before = asleep();
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            asleep().saturating_sub(before) < started.elapsed() / 2
        };
        assert!((0..200).any(|_| attempt()));
    }

    /// The clock underneath runs: one that stands still would never tell of a sleep.
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    #[test]
    fn the_other_clock_goes_on() {
        let before = with_sleep();
        let started = Instant::now();
        while with_sleep() == before {
            assert!(started.elapsed() < Duration::from_secs(10), "stopped at {before:?}");
        }
    }
}
