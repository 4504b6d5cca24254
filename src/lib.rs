//! Tidewater: SQLite first, Cloud SQL for PostgreSQL when it is there.
//!
//! This crate is the door. The machine behind it, actors and pure state machines, is `tidewater-actors`.
//!
//! # Layout
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | every knob, its layers, its bounds; `config/*.toml` are compiled in |
//! | [`Database`] | the facade: open, migrate, write, read, synced, subscribe, pending, parked, conflicts, backup, shutdown |
//! | [`run`](run()) | the same as a process, with the control socket |
//! | [`supervision`] | actors that come back after a panic: Tidewater's own, and those of the app |
//! | [`Error`] | what can go wrong, and whether a retry helps |
//! | [`cli`] | flags, verbs, exit statuses, the status page |
//! | [`control`] | the Unix socket beside the database, over which a verb reaches the supervisor |
//! | [`doctor`] | what is wrong with the file, the way to the cloud and the cloud, and what helps |
//! | `http` | the page `/`, `/healthz`, `/readyz`, `/metrics`, `/status`, `/events`, and the verbs for whoever has the token; with the feature `http`, a default one |
//! | [`service`] | what systemd is told, for the binary |
//! | [`signals`] | SIGINT, SIGTERM and SIGHUP, for the binary |
//! | [`telemetry`] | the log on standard error: the documented look, or JSON |
//!
//! The binary `run_supervisor` is thin: it parses, loads [`settings`], and calls this crate.

mod adopt;
pub mod cli;
mod conflicts;
pub mod control;
mod database;
pub mod doctor;
mod error;
#[cfg(feature = "http")]
pub mod http;
mod long_work;
mod migrations;
mod parked;
mod reads;
mod run;
pub mod service;
pub mod settings;
pub mod signals;
pub mod telemetry;
mod upkeep;

pub use conflicts::Restored;
pub use database::{Committed, Database, Receipt};
pub use error::Error;
pub use migrations::Migrated;
pub use parked::LocalFile;
pub use run::{Reloading, run};
/// The `Connection` that [`Database::read`] hands out is this version's.
pub use rusqlite;
pub use tidewater_actors::core::dispute::{Decide, Dispute, Verdict};
pub use tidewater_actors::core::value::Value;
pub use tidewater_actors::messages::{
    Adopt, Adoption, AvailabilityChanged, Detection, Discarded, Forced, ProxyStatus, Readiness, Residence,
    StatusSummary, SyncError,
};
pub use tidewater_actors::migrations::{MigrationError, Migrations};
pub use tidewater_actors::sqlite::{
    Conflict, ConflictPage, Copied, IntegrityReport, Orphans, ParkedPage, ParkedRow, PendingAfter,
    PendingPage, PendingRow, Restores, Retried, RowError, Statement, StatementResult, StoreError, Which,
};
pub use tidewater_actors::supervision;
