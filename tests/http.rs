//! HTTP as a browser, a probe, Prometheus and somebody hostile meet it: the real process, asked over plain sockets.
//!
//! - [`client`]: requests byte by byte, and what comes back.
//! - [`routes`]: each route from the start through an outage, and where it listens.
//! - [`hostile`]: who is refused, and what is bounded.
//! - [`actions`]: what the verbs do, for whoever has the token and nobody else.
//! - [`page`]: the page in a browser.
//! - [`watching`]: the dashboard and the alerts of `examples/`.
//! - [`library`]: the same routes in a server of the app's own.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;
mod process;

#[path = "http/actions.rs"]
mod actions;
#[path = "http/client.rs"]
mod client;
#[path = "http/hostile.rs"]
mod hostile;
#[path = "http/library.rs"]
mod library;
#[path = "http/page.rs"]
mod page;
#[path = "http/routes.rs"]
mod routes;
#[path = "http/watching.rs"]
mod watching;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use process::{Process, command, message};
use tidewater_test_support::FaultProxy;

/// What the line says where the system chose the port.
const LISTENS: &str = "HTTP on ";

/// Starts it with HTTP on a port of the system's choice, and says where that is.
fn serving(command: &mut Command) -> (Process, SocketAddr) {
    let process = Process::ready(command.env("TIDEWATER_HTTP__LISTEN", "127.0.0.1:0"));
    process.wait_for_line(LISTENS);
    let lines = process.lines();
    let line = lines.iter().map(|line| message(line)).find_map(|line| line.strip_prefix(LISTENS));
    let address = line.unwrap().parse().unwrap();
    (process, address)
}

/// Nothing is configured but the file and the proxy's port, on which nothing listens.
fn alone(folder: &Path) -> (Command, FaultProxy) {
    let nobody = FaultProxy::reserve("127.0.0.1:1".parse().unwrap());
    let mut command = command(folder);
    command.env("TIDEWATER_DATABASE", "alone.db").env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string());
    (command, nobody)
}
