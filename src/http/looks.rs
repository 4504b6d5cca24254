//! Looks at the state: one for all who ask at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewater_actors::messages::StatusSummary;
use tokio::sync::Mutex;

use crate::database::Database;
use crate::service::{LOOK_PAUSE_FACTOR, LOOK_PAUSE_MAX};

/// Looks one at a time, however many ask: each look serves everybody who asked before it began.
pub(super) struct Looks {
    db: Database,
    last: Mutex<Option<Look>>,
}

struct Look {
    began: Instant,
    took: Duration,
    seen: Arc<StatusSummary>,
}

impl Looks {
    pub(super) fn new(db: Database) -> Self {
        Self { db, last: Mutex::new(None) }
    }

    /// How it is now. Takes two looks at most, each of which is bounded.
    pub(super) async fn fresh(&self) -> Arc<StatusSummary> {
        self.look(|_| Duration::ZERO).await
    }

    /// How it was this long ago, or later, for those who look again and again: while a long journal makes a look long, there
    /// are fewer of them.
    pub(super) async fn leisurely(&self, age: Duration) -> Arc<StatusSummary> {
        self.look(|took| age.max(took.saturating_mul(LOOK_PAUSE_FACTOR).min(LOOK_PAUSE_MAX))).await
    }

    /// `age` is the oldest look that is good enough, by how long the last one took.
    async fn look(&self, age: impl Fn(Duration) -> Duration) -> Arc<StatusSummary> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(Look { began, took, seen }) = &*last
            && *began + age(*took) >= asked
        {
            return seen.clone();
        }
        let began = Instant::now();
        let seen = Arc::new(self.db.status_summary().await);
        *last = Some(Look { began, took: began.elapsed(), seen: seen.clone() });
        seen
    }
}
