//! What systemd is told of `run_supervisor`: ready, a line of status, still alive, stopping.
//!
//! ```text
//! Database::status_summary ─▶ Teller (status_line, healthy) ─▶ sd_notify ─▶ NOTIFY_SOCKET ─▶ `systemctl status`
//! ```
//!
//! Parts: [`ServiceManager`] (the shell: who listens, and the messages of a process's life), `Teller` (what is due after
//! a look), `status_line` and `healthy` (what a look means). Without `NOTIFY_SOCKET` there is no [`ServiceManager`], and
//! nothing in here runs.
//!
//! Alive is not the same as ready: a cloud that is missing, even where it is required, is nothing that a new process
//! would mend. The ping is held back for what it would mend, an actor that is stuck or does not come back: the look asks
//! the watcher, the breaker and the syncer, and waits for their answers. The writer has to run, but is not asked: a long
//! transaction is work, which a new process would only have to begin again.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use slog::{Logger, warn};
use tidewater_actors::messages::{ProxyStatus, StatusSummary};
use tokio::time::Instant;

use crate::cli::on_one_line;

/// Between two looks, and so between two lines of status at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Counting a long journal takes a while: looks leave at least this many times their own duration to others.
pub(crate) const LOOK_PAUSE_FACTOR: u32 = 20;

/// However long a look took, the next one comes within this.
pub(crate) const LOOK_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The service manager drops a message that is too long for its buffer (4096 bytes), and everything in it.
const LINE_CHARS_MAX: usize = 200;

/// An interval of nothing would be a loop without a pause.
const PING_EVERY_MIN: Duration = Duration::from_millis(10);

/// What the process needs for its end beside the database's.
const EXIT_MARGIN: Duration = Duration::from_secs(5);

/// The service manager that started this process and wants to hear from it.
#[derive(Debug)]
pub struct ServiceManager {
    /// It ends a process that is silent for longer.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one of this process's environment (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`); `None` when there is none.
    /// For the binary: an embedding application has its own idea of being ready.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        Some(Self { watchdog: sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()) })
    }

    /// Reads, writes and verbs work from now on. Then tells what changes, for ever; drop it to stop.
    pub(crate) async fn accompany(&self, summary: impl AsyncFn() -> StatusSummary, log: &Logger) {
        let mut complained = false;
        let mut say = |states: &[NotifyState<'_>]| {
            if let Err(error) = sd_notify::notify(states)
                && !std::mem::replace(&mut complained, true)
            {
                warn!(log, "⚠️  The service manager cannot be told how this process is: {error}");
            }
        };
        say(&[NotifyState::Ready]);
        tell(self.watchdog, summary, say).await;
    }

    /// The end begins, for the reason if there is one, and takes at most `within`.
    pub(crate) fn stopping(
        &self,
        within: Duration,
        reason: Option<&dyn std::fmt::Display>,
    ) -> io::Result<()> {
        // The crate's own variant ends at 71 minutes.
        let extend = format!("EXTEND_TIMEOUT_USEC={}", (within + EXIT_MARGIN).as_micros());
        let line =
            reason.map_or_else(|| "stopping".to_owned(), |reason| line(&format!("stopping: {reason}")));
        sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(&line), NotifyState::Custom(&extend)])
    }
}

/// Looks and says what is due, for ever. A look that does not come back says nothing, and that is the point.
async fn tell(
    watchdog: Option<Duration>,
    summary: impl AsyncFn() -> StatusSummary,
    mut say: impl FnMut(&[NotifyState<'_>]),
) {
    let origin = Instant::now();
    let mut teller = Teller::new(watchdog);
    loop {
        let asked = origin.elapsed();
        let summary = summary().await;
        let now = origin.elapsed();
        let Due { status, ping } = teller.due(now, &summary);
        let status = status.as_deref().map(NotifyState::Status);
        let states: Vec<_> = status.into_iter().chain(ping.then_some(NotifyState::Watchdog)).collect();
        if !states.is_empty() {
            say(&states);
        }
        tokio::time::sleep_until(origin + teller.next_look(now, now - asked)).await;
    }
}

/// Decides what is said when. Times count from any origin.
#[derive(Debug)]
struct Teller {
    /// Between two pings: half of what the watchdog allows.
    ping_every: Option<Duration>,
    said: Option<(Duration, String)>,
    pinged: Option<Duration>,
    healthy: bool,
}

/// What is to be said now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    status: Option<String>,
    ping: bool,
}

impl Teller {
    fn new(watchdog: Option<Duration>) -> Self {
        let ping_every = watchdog.map(|interval| (interval / 2).max(PING_EVERY_MIN));
        Self { ping_every, said: None, pinged: None, healthy: true }
    }

    fn due(&mut self, now: Duration, summary: &StatusSummary) -> Due {
        let mut due = Due::default();
        let line = status_line(summary);
        let news = self.said.as_ref().is_none_or(|(at, said)| *said != line && now >= *at + LOOK_EVERY);
        if news {
            self.said = Some((now, line.clone()));
            due.status = Some(line);
        }
        self.healthy = healthy(summary);
        if let Some(every) = self.ping_every
            && self.healthy
            && self.pinged.is_none_or(|at| now >= at + every)
        {
            self.pinged = Some(now);
            due.ping = true;
        }
        due
    }

    /// When to look again, after a look that took this long.
    fn next_look(&self, now: Duration, took: Duration) -> Duration {
        let leisurely = now + took.saturating_mul(LOOK_PAUSE_FACTOR).clamp(LOOK_EVERY, LOOK_PAUSE_MAX);
        let ping = match (self.ping_every, self.pinged) {
            (Some(every), Some(pinged)) if self.healthy => Some(pinged + every),
            // Overdue, perhaps: as soon as it is healthy again.
            (Some(every), _) => Some(now + every / 2),
            (None, _) => None,
        };
        ping.map_or(leisurely, |ping| leisurely.min(ping))
    }
}

/// Whether a new process would not be better off: every actor runs.
pub(crate) fn healthy(summary: &StatusSummary) -> bool {
    !summary.actors.is_empty() && summary.actors.iter().all(|actor| actor.state == "running")
}

/// The line in `systemctl status`: what stands against it, or how it is with the cloud, and what waits.
fn status_line(summary: &StatusSummary) -> String {
    let StatusSummary { readiness, proxy, circuit, sync, .. } = summary;
    let held_open = circuit.state == "open" && circuit.reason.as_deref() == Some("forced");
    let mut parts = match proxy.status {
        _ if !readiness.reasons.is_empty() => readiness.reasons.clone(),
        ProxyStatus::Available if sync.state == "blocked" => {
            vec![explained("sync blocked", sync.detail.as_deref().unwrap_or_default())]
        }
        ProxyStatus::Available if held_open => vec!["cloud available, circuit held open".to_owned()],
        ProxyStatus::Available => vec!["cloud available".to_owned()],
        ProxyStatus::Unavailable | ProxyStatus::Unknown => vec![explained("SQLite only", &proxy.detail)],
    };
    if sync.pending > 0 || (parts == ["cloud available"] && !sync.state.is_empty()) {
        parts.push(format!("{} pending", sync.pending));
    }
    if sync.parked > 0 {
        parts.push(format!("{} parked", sync.parked));
    }
    line(&parts.join(", "))
}

fn explained(what: &str, why: &str) -> String {
    if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") }
}

/// On one line, because each line of a message is an assignment of its own; and not too long for one.
fn line(text: &str) -> String {
    on_one_line(text).chars().take(LINE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use tidewater_actors::messages::ActorReport;

    use super::*;

    fn offline() -> StatusSummary {
        let actor = |name: &str| ActorReport {
            name: name.to_owned(),
            state: "running".to_owned(),
            ..ActorReport::default()
        };
        let mut summary = StatusSummary {
            actors: ["ProxyWatcher", "CircuitBreaker", "SqliteWriter", "CloudSyncer"].map(actor).into(),
            ..StatusSummary::default()
        };
        summary.proxy.status = ProxyStatus::Unavailable;
        summary.proxy.detail = "Proxy not running on 127.0.0.1:5432".to_owned();
        summary.sync.state = "offline".to_owned();
        summary.judged()
    }

    fn available(pending: u64) -> StatusSummary {
        let mut summary = offline();
        summary.proxy.status = ProxyStatus::Available;
        summary.sync.state = "idle".to_owned();
        summary.sync.pending = pending;
        summary.judged()
    }

    fn restarting() -> StatusSummary {
        let mut summary = available(12);
        summary.actors[3].state = "restarting".to_owned();
        summary.judged()
    }

    /// The line says first what matters most, and what waits.
    #[test]
    fn the_status_is_one_short_line() {
        assert_eq!(status_line(&available(0)), "cloud available, 0 pending");
        assert_eq!(status_line(&available(12)), "cloud available, 12 pending");
        let mut uncounted = available(0);
        uncounted.sync.state.clear();
        assert_eq!(status_line(&uncounted), "cloud available");
        let mut summary = offline();
        assert_eq!(status_line(&summary), "SQLite only: Proxy not running on 127.0.0.1:5432");
        (summary.sync.pending, summary.sync.parked) = (3, 2);
        assert_eq!(
            status_line(&summary),
            "SQLite only: Proxy not running on 127.0.0.1:5432, 3 pending, 2 parked"
        );
        summary.proxy.proxy_required = true;
        assert_eq!(
            status_line(&summary.judged()),
            "Cloud SQL is required and not available: Proxy not running on 127.0.0.1:5432, 3 pending, 2 parked"
        );
        assert_eq!(status_line(&restarting()), "CloudSyncer is restarting, 12 pending");
        assert_eq!(status_line(&StatusSummary::default()), "SQLite only", "before anything is known");

        let mut summary = available(12);
        summary.sync.state = "blocked".to_owned();
        summary.sync.detail = Some("another cloud".to_owned());
        assert_eq!(status_line(&summary), "sync blocked: another cloud, 12 pending");
        let mut summary = available(12);
        (summary.circuit.state, summary.circuit.reason) = ("open".to_owned(), Some("forced".to_owned()));
        assert_eq!(status_line(&summary), "cloud available, circuit held open, 12 pending");
    }

    /// Whatever a detail holds, it is neither a second assignment nor too long for a message.
    #[test]
    fn a_detail_cannot_assign_anything() {
        let mut summary = offline();
        summary.proxy.detail = format!("no\nWATCHDOG=trigger\n{}", "ü".repeat(5000));
        let line = status_line(&summary);
        assert!(line.starts_with("SQLite only: no WATCHDOG=trigger ü") && !line.contains('\n'), "{line}");
        assert_eq!(line.chars().count(), LINE_CHARS_MAX);
    }

    /// A missing cloud is no reason to be ended, required or not; an actor that does not run is.
    #[test]
    fn a_missing_cloud_is_healthy_and_a_missing_actor_is_not() {
        assert!(healthy(&offline()) && healthy(&available(0)));
        let mut required = offline();
        required.proxy.proxy_required = true;
        let required = required.judged();
        assert!(!required.readiness.ready && healthy(&required));
        assert!(!healthy(&restarting()));
        assert!(!healthy(&StatusSummary::default()), "nobody answered");
    }

    /// A line is said when it is another one, and never within a second of the last.
    #[test]
    fn the_status_is_said_on_change_and_at_most_once_a_second() {
        let mut teller = Teller::new(None);
        let mut said = |ms, pending| teller.due(Duration::from_millis(ms), &available(pending)).status;
        assert!(said(0, 1).is_some());
        assert_eq!(said(500, 2), None, "too soon");
        assert_eq!(said(999, 3), None, "too soon");
        assert_eq!(said(1000, 4).as_deref(), Some("cloud available, 4 pending"));
        assert_eq!(said(1500, 5), None, "too soon");
        assert_eq!(said(9000, 4), None, "said already");
        assert!(said(9001, 5).is_some());
    }

    /// Pings come at half of the interval; they stop while an actor is away and go on as soon as it is back.
    #[test]
    fn pings_stop_while_an_actor_is_away() {
        let mut teller = Teller::new(Some(Duration::from_secs(60)));
        let (mut now, mut pings) = (Duration::ZERO, vec![]);
        while now < Duration::from_secs(200) {
            let away = (50..130).contains(&now.as_secs());
            let summary = if away { restarting() } else { offline() };
            if teller.due(now, &summary).ping {
                pings.push(now.as_secs());
            }
            now = teller.next_look(now, Duration::ZERO);
        }
        assert_eq!(pings, [0, 30, 130, 160, 190]);
    }

    /// Looks that take long come less often, but never so rarely that a ping would be late.
    #[test]
    fn a_slow_look_is_repeated_less_often_but_pings_stay_in_time() {
        let next = |watchdog_s: Option<u64>, took_ms| {
            let mut teller = Teller::new(watchdog_s.map(Duration::from_secs));
            teller.due(Duration::ZERO, &offline());
            teller.next_look(Duration::ZERO, Duration::from_millis(took_ms))
        };
        let seconds = Duration::from_secs;
        assert_eq!(
            [next(None, 0), next(None, 100), next(None, 60_000)],
            [seconds(1), seconds(2), seconds(10)]
        );
        assert_eq!(
            [next(Some(90), 0), next(Some(90), 60_000), next(Some(6), 60_000)],
            [seconds(1), seconds(10), seconds(3)]
        );
    }

    /// An actor that is stuck answers no look, so nothing is said for as long as that lasts.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_said_while_a_look_does_not_come_back() {
        let (stuck, said) = (Cell::new(false), RefCell::new(Vec::<String>::new()));
        let summary = async || {
            if stuck.get() {
                std::future::pending::<()>().await;
            }
            available(0)
        };
        let say =
            |states: &[NotifyState<'_>]| said.borrow_mut().extend(states.iter().map(ToString::to_string));
        let telling = tell(Some(Duration::from_secs(4)), summary, say);
        let passing = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            stuck.set(true);
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        tokio::select! {
            () = telling => unreachable!("it tells for ever"),
            () = passing => {}
        }
        assert_eq!(*said.borrow(), ["STATUS=cloud available, 0 pending", "WATCHDOG=1", "WATCHDOG=1"]);
    }
}
