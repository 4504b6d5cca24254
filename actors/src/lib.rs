//! The machine of tidewater: actors, their messages, and the pure state machines inside them.

pub mod core;
pub mod messages;
mod sql;
pub mod postgres;
pub mod sqlite;
