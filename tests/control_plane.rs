//! The control plane through the public library and real sockets: what it says, what it concludes, and how often it knocks.
//!
//! - [`scenes`]: one proxy or server after the other that is not as it should be, each with its whole log beside it.
//! - [`pause`]: not an attempt while paused, and how soon a listener that appears is noticed.
//! - [`traps`]: what the predecessor fell into, and a link that comes and goes.
//! - [`endpoints`]: sockets and names; [`subscribers`]: who is told.
//!
//! Waits are scaled down and their proportions kept. The bound on attempts is computed from the time that a scene really
//! took, so that a loaded machine makes it wider and never narrower.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;
mod process;

#[path = "control_plane/endpoints.rs"]
mod endpoints;
#[path = "control_plane/pause.rs"]
mod pause;
#[path = "control_plane/scenes.rs"]
mod scenes;
#[path = "control_plane/subscribers.rs"]
mod subscribers;
#[path = "control_plane/traps.rs"]
mod traps;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use harness::{Bench, Lines, PATIENCE};
use tidewater::settings::{Settings, Sources};
use tidewater::{AvailabilityChanged, Database, ProxyStatus};
use tidewater_actors::core::failure::FailureClass;
use tidewater_test_support::wait;

/// The waits of a scene, in seconds: the documented ones (10, 600, 2, 10, 1), shortened.
const RETRY_S: f64 = 0.15;
const MAX_RETRY_S: f64 = 1.2;
/// Only where something is silent: PostgreSQL itself may need longer, on a loaded machine.
const TIMEOUT_S: f64 = 0.5;
const HEALTH_S: f64 = 0.5;

/// The file, the endpoint and the login; every delay as documented.
fn unhurried(bench: &Bench) -> Sources {
    Settings::builder()
        .set("sqlite.path", bench.path().display())
        .set("proxy.port", bench.proxy.port())
        .set("cloud.database", &bench.cloud.name)
        .set("cloud.user", &bench.cloud.user)
        .set("cloud.password", &bench.cloud.password)
}

/// [`unhurried`] with the waits of a scene.
fn hurried(bench: &Bench) -> Sources {
    bench
        .settings()
        .set("proxy.retry_delay_s", RETRY_S)
        .set("proxy.max_retry_delay_s", MAX_RETRY_S)
        .set("proxy.timeout_s", 10)
        .set("proxy.health_interval_s", HEALTH_S)
        .set("circuit.open_s", RETRY_S)
}

/// How many attempts the backoff allows within a time: one at the start, one after each wait.
fn allowed_by_backoff(within: Duration, retry_s: f64, max_retry_s: f64) -> u64 {
    let (mut attempts, mut wait, mut at) = (1, retry_s, retry_s);
    while at <= within.as_secs_f64() {
        attempts += 1;
        wait = (wait * 2.0).min(max_retry_s);
        at += wait;
    }
    attempts
}

/// How many attempts are allowed where a retry cannot help.
fn allowed_when_blocked(within: Duration, max_retry_s: f64) -> u64 {
    allowed_by_backoff(within, max_retry_s, max_retry_s)
}

/// A subscriber that keeps what it is told, with the time.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<(Instant, AvailabilityChanged)>>>);

struct Ear(Heard);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<AvailabilityChanged> for Ear {
    type Result = ();

    fn handle(&mut self, change: AvailabilityChanged, _: &mut Self::Context) {
        self.0.note(change);
    }
}

impl Heard {
    /// A subscriber of this database from now on.
    async fn of(db: &Database) -> Self {
        let heard = Self::default();
        db.subscribe(Ear(heard.clone()).start().recipient()).await.unwrap();
        heard
    }

    fn note(&self, change: AvailabilityChanged) {
        self.0.lock().unwrap().push((Instant::now(), change));
    }

    fn all(&self) -> Vec<AvailabilityChanged> {
        self.0.lock().unwrap().iter().map(|(_, change)| *change).collect()
    }

    fn last(&self) -> Option<AvailabilityChanged> {
        self.all().last().copied()
    }

    fn count(&self, status: ProxyStatus) -> usize {
        self.all().iter().filter(|change| change.status == status).count()
    }

    /// Waits until it is told this status, and says when that was; only what comes after the first `known` counts.
    async fn wait_for(&self, status: ProxyStatus, known: usize, log: &Lines) -> Instant {
        wait::until(&format!("{status:?} is told"), PATIENCE, async || {
            let heard = self.0.lock().unwrap().clone();
            let told = heard.iter().skip(known).find(|(_, change)| change.status == status);
            told.map(|(at, _)| *at).ok_or_else(|| format!("{heard:#?}\n{:#?}", log.all()))
        })
        .await
    }
}

/// The documented word.
fn word(status: ProxyStatus) -> &'static str {
    match status {
        ProxyStatus::Available => "available",
        ProxyStatus::Unavailable => "unavailable",
        ProxyStatus::Unknown => "unknown",
    }
}

fn class_word(class: Option<FailureClass>) -> String {
    class.map_or("none".to_owned(), |class| format!("{class:?}"))
}

/// Ports, names and numbers that differ from run to run, under fixed words.
fn fixed(text: &str, bench: &Bench) -> String {
    let mut text = text.to_owned();
    for (varying, word) in [
        (bench.cloud.name.as_str(), "DATABASE"),
        (&bench.cloud.user, "ROLE"),
        (&format!(":{}", bench.proxy.port()), ":PORT"),
        (&format!("({})", bench.proxy.port()), "(PORT)"),
        (&bench.folder.path().display().to_string(), "FOLDER"),
    ] {
        text = text.replace(varying, word);
    }
    let is_uuid = |part: &str| {
        part.len() == 36
            && part.char_indices().all(|(at, c)| match at {
                8 | 13 | 18 | 23 => c == '-',
                _ => c.is_ascii_hexdigit(),
            })
    };
    let mut at = 0;
    while at < text.len() {
        if text.get(at..at + 36).is_some_and(is_uuid) {
            text.replace_range(at..at + 36, "UUID");
        }
        at += 1;
    }
    text
}
