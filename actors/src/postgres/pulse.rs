//! Whether a connection that does not answer is still being worked for.
//!
//! ```text
//! no answer for `silence` ─▶ another connection: what does its process do? ─▶ it works ─▶ wait on
//!                                                 │                           └─ it is gone ─▶ given up
//!                                                 └─ it waits, as it did a `silence` ago; or nobody answers, again ─▶ given up
//! ```
//!
//! TCP knows only as far as the next program: a proxy that has lost its instance, without a word, keeps its end open. A server
//! that works on a long statement is silent as well, and a request that is still on its way finds it waiting.

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::client::word;
use super::{CloudFailure, CloudSession, MOVES_AT_LEAST, silent, time_for};

/// What was found when somebody looked last. The statements that a connection waits for share one look.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<Look>>);

#[derive(Debug)]
struct Look {
    at: Instant,
    found: Found,
    /// Whether it was the same, and no work, the time before.
    is_again: bool,
}

#[derive(Debug, PartialEq)]
enum Found {
    /// The process works.
    Working,
    /// It waits, since this moment by its clock.
    Waiting(String),
    /// There is no such process.
    Gone,
    /// Nobody answers.
    Nobody,
}

impl CloudSession {
    /// Ends when nobody works for this connection any more, and never while somebody does, or while `heavy` bytes, or what has
    /// moved meanwhile, may be on their way.
    pub(super) async fn silence(&self, heavy: usize) -> CloudFailure {
        let Some(pid) = self.client.pid() else { return std::future::pending().await };
        let (began, at_first) = (Instant::now(), self.cloud.moved.bytes());
        let silence = self.cloud.options.link.silence;
        loop {
            let before = self.cloud.moved.bytes();
            sleep(silence).await;
            let now = self.cloud.moved.bytes();
            let on_its_way = time_for(usize::try_from(now - at_first).unwrap_or(0).max(heavy));
            if now - before >= MOVES_AT_LEAST || began.elapsed() < on_its_way {
                // Much is on its way, or a proxy has it and sends it on: that is no silence.
                continue;
            }
            let mut last = self.pulse.0.lock().await;
            if last.as_ref().is_none_or(|look| look.at.elapsed() >= silence) {
                let found = self.look_after(pid).await;
                let is_again = found != Found::Working
                    && last.take().is_some_and(|last| last.at >= began && last.found == found);
                *last = Some(Look { at: Instant::now(), found, is_again });
            }
            let is_over = last.as_ref().is_some_and(|look| look.is_again || look.found == Found::Gone);
            drop(last);
            if is_over {
                // What has been answered meanwhile is about to be read.
                sleep(silence.min(self.cloud.options.timeout) / 4).await;
                return silent(began.elapsed());
            }
        }
    }

    /// What the process does, asked on another connection.
    async fn look_after(&self, pid: i32) -> Found {
        let sql = format!("SELECT coalesce(state, ''), state_change FROM pg_stat_activity WHERE pid = {pid}");
        let asked = async {
            let other = match self.cloud.connect().await {
                Ok(other) => other,
                // There is no room for another one, or no leave: of this one that says nothing.
                Err(failure) if failure.sqlstate.is_some() => return Some(Found::Working),
                Err(_) => return None,
            };
            let answer = other.client.simple_query(&sql).await.ok()?;
            other.release();
            Some(match word(&answer, 0) {
                // Where nobody records it, nobody can tell.
                Some("active" | "disabled" | "") => Found::Working,
                Some(_) => Found::Waiting(word(&answer, 1).unwrap_or_default().to_owned()),
                None => Found::Gone,
            })
        };
        let limit = self.cloud.options.longest_connect() + self.cloud.options.timeout;
        let found = timeout(limit, asked).await;
        found.ok().flatten().unwrap_or(Found::Nobody)
    }
}
