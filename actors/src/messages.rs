//! The whole protocol of the actors on one page.
//!
//! ```text
//! ProxyWatcher ── AvailabilityChanged ─▶ CircuitBreaker, CloudSyncer, any Recipient of the app
//! app          ── DetectProxy, ResetDetector, Subscribe ─▶ ProxyWatcher
//! CloudSyncer  ── CallFinished ─▶ CircuitBreaker, ProxyWatcher      (traffic that succeeded counts as a check)
//! app          ── Write ─▶ SqliteWriter ── JournalGrew (a hint) ─▶ CloudSyncer
//! CloudSyncer  ── NoteRound, Acknowledge, PutBack, Park, ApplyPage … ─▶ SqliteWriter
//! app          ── Flush, Warm ─▶ CloudSyncer
//! ```
//!
//! Commands are imperative, facts are in the past tense. Messages are hints (P6): each may be lost at the cost
//! of latency, because whoever starts anew reads SQLite.

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use crate::core::failure::FailureClass;

// ---------------------------------------------------------------------------------------------------------
// Control plane
// ---------------------------------------------------------------------------------------------------------

/// What is known about the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ProxyStatus {
    /// PostgreSQL answered through it, and it is ours.
    Available,
    /// It is not there, or nothing useful answers behind it.
    Unavailable,
    /// No check has ended yet, or the last one says nothing about the proxy.
    #[default]
    Unknown,
}

/// The availability changed. Broadcast by the watcher to everybody who subscribed; a late subscriber gets
/// the current state at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct AvailabilityChanged {
    /// Counts the changes. Answers that belong to an older epoch are ignored.
    pub epoch: u64,
    /// What it is now.
    pub status: ProxyStatus,
    /// Why it is not available, where it is not.
    pub class: Option<FailureClass>,
}

/// Sends every [`AvailabilityChanged`] from now on, and the current one at once, to a recipient.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Subscribe(pub Recipient<AvailabilityChanged>);

/// Checks whether the proxy is there and answers with the status and the reason in words. Concurrent calls
/// share one check.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Detection")]
pub struct DetectProxy {
    /// Skips the cache of what was verified within the last seconds.
    pub force: bool,
}

/// The answer to [`DetectProxy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// What the check found.
    pub status: ProxyStatus,
    /// A line of text that says why.
    pub detail: String,
}

/// Sets the failure count and the delay back, ends a pause, and checks at once.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ResetDetector;

/// A guarded cloud call ended. Sent by the permit of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CallFinished {
    /// The circuit's epoch under which the permit was given; an older one decides nothing.
    pub epoch: u64,
    /// How it ended.
    pub outcome: Result<(), FailureClass>,
}

/// Asks an actor what it knows, for `status`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "ProxyReport")]
pub struct GetProxyReport;

/// The watcher's part of `status --json`; the names are fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ProxyReport {
    /// `available`, `unavailable` or `unknown`.
    pub status: ProxyStatus,
    /// `host:port`, or the path of the socket.
    pub endpoint: String,
    /// Failed checks in a row.
    pub consecutive_failures: u32,
    /// Seconds that the wait after the last failure takes; the initial delay when nothing failed.
    pub current_retry_delay: f64,
    /// Whether another check is going to happen by itself.
    pub should_retry: bool,
    /// Whether the checks are paused (development, five failures in a row).
    pub paused: bool,
    /// `development` or `production`.
    pub environment: String,
    /// Whether the proxy is required.
    pub proxy_required: bool,
    /// When the last check ended, seconds since 1970.
    pub last_check: Option<f64>,
    /// When PostgreSQL last answered, seconds since 1970.
    pub last_success: Option<f64>,
    /// Why the status is what it is.
    pub detail: String,
}

/// Asks the breaker what it knows.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "CircuitReport")]
pub struct GetCircuitReport;

/// The breaker's part of `status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct CircuitReport {
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// Failures in a row, as the breaker counts them.
    pub consecutive_failures: u32,
    /// Why it is open, where it is.
    pub reason: Option<String>,
}
