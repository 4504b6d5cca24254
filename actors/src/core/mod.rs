//! The pure middle: every decision, as state machines and functions of their arguments.
//!
//! Nothing here does I/O, reads a clock, draws a random number, or names actix, tokio, rusqlite or
//! PostgreSQL's driver; `tests/architecture.rs` greps for it.

pub mod availability;
pub mod backoff;
pub mod circuit;
pub mod direction;
pub mod doctor;
pub mod failure;
pub mod from_cloud;
pub mod isolation;
pub mod merge;
pub mod past;
pub mod progress;
pub mod restart;
pub mod rules;
pub mod schema;
pub mod sync;
pub mod value;
