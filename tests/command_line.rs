//! The command line as people, scripts and somebody hostile meet it: the real binary, every verb of it.
//!
//! - [`verbs`]: each verb that clap knows, with and without a supervisor, with a hostile one, and as the wrong user.
//! - [`reload`]: settings that are read again.
//! - [`readme`]: every command of the README.
//! - [`secrets`]: the password, looked for in every output that there is.
//! - [`terminal`]: what a terminal of 80 columns shows, with and without colours.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod process;

#[path = "command_line/readme.rs"]
mod readme;
#[path = "command_line/reload.rs"]
mod reload;
#[path = "command_line/secrets.rs"]
mod secrets;
#[path = "command_line/terminal.rs"]
mod terminal;
#[path = "command_line/verbs.rs"]
mod verbs;

use std::process::Output;

/// What it said on standard output, and on standard error.
fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}
