//! Tidewater: SQLite first, Cloud SQL for PostgreSQL when it is there.
//!
//! This crate is the door. The machine behind it, actors and pure state machines, is `tidewater-actors`.
//!
//! # Layout
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | every knob, its layers, its bounds; `config/*.toml` are compiled in |
//! | [`control`] | the Unix socket beside the database, over which a verb reaches the supervisor |
//! | [`telemetry`] | the log on standard error: the documented look, or JSON |
//!
//! The binary `run_supervisor` is thin: it parses, loads [`settings`], and calls this crate.

pub mod control;
pub mod settings;
pub mod telemetry;
