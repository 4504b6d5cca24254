//! Looks at the state: one for all who ask at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewater_actors::messages::StatusSummary;
use tokio::sync::Mutex;

use crate::database::Database;

/// Looks one at a time, however many ask: each look serves everybody who asked before it began.
pub(super) struct Looks {
    db: Database,
    /// The last one, with the time at which it began.
    last: Mutex<Option<(Instant, Arc<StatusSummary>)>>,
}

impl Looks {
    pub(super) fn new(db: Database) -> Self {
        Self { db, last: Mutex::new(None) }
    }

    /// How it is now. Takes two looks at most, each of which is bounded.
    pub(super) async fn fresh(&self) -> Arc<StatusSummary> {
        self.within(Duration::ZERO).await
    }

    /// How it was this long ago, or later.
    pub(super) async fn within(&self, age: Duration) -> Arc<StatusSummary> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((began, summary)) = &*last
            && *began + age >= asked
        {
            return summary.clone();
        }
        let began = Instant::now();
        let summary = Arc::new(self.db.status_summary().await);
        *last = Some((began, summary.clone()));
        summary
    }
}
