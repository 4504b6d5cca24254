//! The test bench: what Tidewater's integration tests stand on.
//!
//! - [`postgres`]: a throwaway PostgreSQL server that leaves nothing behind, however the tests end.
//! - [`pgbouncer`]: a throwaway connection pooler in front of it.
//! - [`fault_proxy`]: a stand-in for the Cloud SQL Auth Proxy that can be broken on purpose.
//! - [`hostile`]: a server that speaks PostgreSQL's protocol, and means harm.
//! - [`browser`]: Chromium, by its driver.
//! - [`shell`]: foreign writers, SQLite's own shell and Python's `sqlite3`.
//! - [`shop`]: a shop's schema and as much of its data as wanted, the same for the same seed.
//! - [`music`], [`messages`], [`ledger`]: the same for other apps, as data for the shop's generator.
//! - [`any_schema`]: random schemas and histories for them, the same for the same seed.
//! - [`compare`]: whether SQLite and PostgreSQL hold the same, value by value, by code of its own.
//! - [`mod@bench`]: figures for something and its raw twin, taken in turns.
//! - [`wait`]: waiting for a condition, with a deadline and a last state to report.

// A bench that cannot be set up has nobody to hand an error to: it says why and ends the test. What its
// background threads have to say goes to the test's error output.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

pub mod any_schema;
pub mod bench;
pub mod browser;
pub mod compare;
pub mod fault_proxy;
pub mod hostile;
pub mod ledger;
pub mod messages;
pub mod music;
pub mod pgbouncer;
pub mod postgres;
pub mod shell;
pub mod shop;

pub mod wait;

mod port;

pub use browser::Browser;
pub use fault_proxy::{FaultProxy, Message, Mode, Stats, Trigger};
pub use hostile::HostileServer;
pub use pgbouncer::PgBouncer;
pub use postgres::{Database, Postgres};
