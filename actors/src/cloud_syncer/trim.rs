//! When the syncer trims the cloud's change feed: after everything else, and for a moment.

use std::time::{Duration, Instant};

use slog::{debug, info};

use super::{Cycle, Step};
use crate::postgres::CloudSession;

/// How long one cycle trims.
const TRIM_TIME: Duration = Duration::from_millis(100);

impl Cycle {
    /// Deletes what no device needs any more, a little with each cycle. Whoever comes first does it for all.
    pub(super) async fn trim(&mut self, session: &CloudSession) -> Step<()> {
        let limits = self.options.feed;
        if self.memory.trimmed.is_some_and(|when| when.elapsed() < limits.pause) {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            let trimmed = match session.trim(&limits).await {
                Ok(trimmed) => trimmed,
                // Another one may be let, or may have the time; nothing here depends on it.
                Err(failure)
                    if !failure.concerns_link()
                        || failure.sqlstate.as_deref().is_some_and(|code| code.starts_with("42")) =>
                {
                    self.once(format!("the cloud's change feed is not trimmed by this device: {failure}"));
                    break;
                }
                Err(failure) => return Err(failure.into()),
            };
            if trimmed.gone > 0 {
                debug!(self.log, "{} entries of the change feed were trimmed", trimmed.gone);
            }
            if trimmed.passed > 0 {
                info!(
                    self.log,
                    "{} device(s) that were away for too long do not hold the cloud's change feed back any more",
                    trimmed.passed
                );
            }
            if !trimmed.more {
                break;
            }
            if began.elapsed() >= TRIM_TIME {
                // The next cycle goes on with it, soon.
                self.memory.news = true;
                return Ok(());
            }
        }
        self.memory.trimmed = Some(Instant::now());
        Ok(())
    }
}
