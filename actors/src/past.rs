//! [`Past`] for those who note it and those who look at it, with this machine's clocks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::asleep;
use crate::core::past::{Change, Moment, Past, Rows};
use crate::messages::AvailabilityChanged;

/// What has passed since this was made, of a day at most. It outlives the actors that note it.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Past>);

impl Remembered {
    /// The availability is another one from now on.
    pub fn note_change(&self, changed: AvailabilityChanged) {
        self.past().note_change(now(), changed.status, changed.class);
    }

    /// Somebody has looked at the numbers.
    pub fn note_rows(&self, rows: Rows) {
        self.past().note_rows(now(), rows);
    }

    /// Whether the numbers of now are worth a look.
    pub fn wants_rows(&self) -> bool {
        self.past().wants_rows(now())
    }

    /// Whether nothing waited when somebody last looked.
    pub fn is_settled(&self) -> bool {
        self.past().is_settled()
    }

    /// The time of this machine in milliseconds since 1970, and everything that is known, the oldest first.
    pub fn told(&self) -> (u64, Vec<Change>, Vec<Rows>) {
        let (changes, rows) = self.past().told();
        (now().at_ms, changes, rows)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), asleep: asleep() }
}
