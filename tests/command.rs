//! What people and scripts rely on when they run `run_supervisor`: statuses, streams, one clear line.

#![allow(clippy::unwrap_used, reason = "a test's helpers are the test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use slog::{Discard, Logger, o};
use tidewater::control::{ControlServer, Response};

/// The command in a folder of its own, without any of our variables.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_run_supervisor"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLOUD_SQL_")
            || name.to_string_lossy().starts_with("TIDEWATER_")
        {
            command.env_remove(name);
        }
    }
    command.env_remove("JARVIS_ENV");
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// It failed with `status` and said one line, on standard error only.
fn assert_one_line(output: &Output, status: i32) -> &str {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{line}");
    assert_eq!(text(&output.stdout), "");
    assert!(line.starts_with("run_supervisor: ") && line.lines().count() == 1, "{line:?}");
    line
}

/// A verb without a supervisor says so on standard error and exits with 3.
#[test]
fn a_verb_without_a_supervisor_says_not_running() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["status"][..], &["status", "--json"], &["check"], &["reset"], &["circuit", "open"]] {
        let output = command(folder.path(), arguments).output().unwrap();
        let line = assert_one_line(&output, 3);
        assert!(line.contains("not running"), "{line}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "asking leaves nothing behind");
}

/// Where no socket can be, nobody knows whether a supervisor runs: the verb failed, and says why.
#[test]
fn a_path_too_long_for_a_socket_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}.db", "x".repeat(120));
    let output = command(folder.path(), &["status", "--database", &long]).output().unwrap();
    assert!(assert_one_line(&output, 1).contains("107 bytes"));
}

/// A bad setting exits with 2 and one line that names key, source and what is allowed.
#[test]
fn a_bad_setting_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["status"]] {
        let output = command(folder.path(), arguments).env("CLOUD_SQL_PROXY_PORT", "99999").output().unwrap();
        let line = assert_one_line(&output, 2);
        assert!(line.contains("proxy.port = \"99999\" from CLOUD_SQL_PROXY_PORT"), "{line}");
        assert!(line.contains("from 1 to 65535"), "{line}");
    }
    let output = command(folder.path(), &["--config", "missing.toml"]).output().unwrap();
    assert!(assert_one_line(&output, 2).contains("missing.toml"));
}

/// Unknown flags and verbs exit with 2; help and version are successes on standard output.
#[test]
fn usage_errors_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--frobnicate"][..], &["explode"], &["status", "--frobnicate"]] {
        let output = command(folder.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(arguments[arguments.len() - 1]));
    }
    for argument in ["--help", "--version"] {
        let output = command(folder.path(), &[argument]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("run_supervisor"));
    }
}

/// `status` prints the answer of the supervisor beside the database: as a page, or as the JSON itself.
#[test]
fn status_prints_what_the_supervisor_answers() {
    let folder = tempfile::tempdir().unwrap();
    let answer = serde_json::json!({"sync": {"state": "idle", "pending": 0, "parked": 0, "conflicts": 0}});
    let server = ControlServer::bind(folder.path().join("x.db.sock"), Logger::root(Discard, o!())).unwrap();
    let answering = answer.clone();
    let run = |arguments: &[&str]| command(folder.path(), arguments);
    let (mut page, mut json) =
        (run(&["--database", "x.db", "status"]), run(&["--database", "x.db", "status", "--json"]));
    let (page, json) = actix_rt::System::new().block_on(async move {
        let serving = actix_rt::spawn(server.serve(Rc::new(move |_| {
            let answer = answering.clone();
            async { Response::Ok(answer) }.boxed_local()
        })));
        let asked = actix_rt::task::spawn_blocking(move || (page.output().unwrap(), json.output().unwrap()));
        let outputs = asked.await.unwrap();
        serving.abort();
        outputs
    });
    assert_eq!((page.status.code(), json.status.code()), (Some(0), Some(0)));
    assert_eq!(text(&page.stdout), "sync     idle  0 pending  0 parked  0 conflicts\n");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&json.stdout).unwrap(), answer);
}

/// SIGTERM and SIGINT are orderly ends: status 0.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_is_an_orderly_end() {
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let folder = tempfile::tempdir().unwrap();
        let mut child =
            command(folder.path(), &["--database", "x.db"]).stderr(Stdio::piped()).spawn().unwrap();
        wait_until_caught(child.id(), number);
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "SIG{signal}");
    }
}

/// Waits until the process has taken over the signal: before that, it would simply die of it.
#[cfg(target_os = "linux")]
fn wait_until_caught(process: u32, signal: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (signal - 1)) != 0 {
            return;
        }
        assert!(Instant::now() < deadline, "the signal is never caught");
        std::thread::yield_now();
    }
}
