//! Tidewater: SQLite first, Cloud SQL for PostgreSQL when it is there.
//!
//! This crate is the door. The machine behind it, actors and pure state machines, is `tidewater-actors`.
//!
//! # Layout
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | every knob, its layers, its bounds; `config/*.toml` are compiled in |
//! | [`cli`] | flags, verbs, exit statuses, the status page |
//! | [`control`] | the Unix socket beside the database, over which a verb reaches the supervisor |
//! | [`signals`] | SIGINT and SIGTERM, for the binary |
//! | [`telemetry`] | the log on standard error: the documented look, or JSON |
//!
//! The binary `run_supervisor` is thin: it parses, loads [`settings`], and calls this crate.

pub mod cli;
pub mod control;
pub mod settings;
pub mod signals;
pub mod telemetry;
