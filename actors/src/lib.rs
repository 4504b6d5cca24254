//! The machine of tidewater: actors, their messages, and the pure state machines inside them.

pub mod circuit_breaker;
pub mod clock;
pub mod cloud_syncer;
pub mod core;
pub mod endpoint;
mod listeners;
pub mod messages;
pub mod migrations;
pub mod past;
pub mod postgres;
pub mod processes;
pub mod proxy_watcher;
mod sql;
pub mod sqlite;
pub mod sqlite_writer;
pub mod supervision;
pub mod timings;
