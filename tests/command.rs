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
    // Tests run side by side, and one port is for one of them.
    command.env("TIDEWATER_HTTP__LISTEN", "off");
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
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["check"],
        &["reset"],
        &["circuit", "open"],
        &["backup", "copy.db"],
    ] {
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

/// `--migrations` applies a folder at the start; one that fails ends the start with status 1 and one line that names file,
/// line and reason.
#[test]
fn a_migration_that_fails_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("migrations");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(
        files.join("0001_note.sql"),
        "CREATE TABLE note (id INTEGER PRIMARY KEY);\nDROP TABLE nowhere",
    )
    .unwrap();
    let by_flag =
        command(folder.path(), &["--database", "x.db", "--migrations", "migrations"]).output().unwrap();
    let mut by_variable = command(folder.path(), &["--database", "x.db"]);
    let by_variable = by_variable.env("TIDEWATER_SQLITE__MIGRATIONS", "migrations").output().unwrap();
    for output in [by_flag, by_variable] {
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let ours: Vec<_> = log.lines().filter(|line| line.starts_with("run_supervisor: ")).collect();
        let said = "run_supervisor: 0001_note.sql, line 2: no such table: nowhere; nothing of this migration is done";
        assert_eq!(ours, [said], "{log}");
        assert!(!log.contains("Hybrid sync initialized"), "{log}");
    }
}

/// `backup` copies the database of the supervisor that runs, to a path that counts from the verb's folder; a file that is
/// there is replaced only when that is asked for.
#[cfg(target_os = "linux")]
#[test]
fn backup_copies_the_running_database() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut child = command(folder.path(), &["--database", "x.db"]).stderr(Stdio::null()).spawn().unwrap();
    let database = folder.path().join("x.db");
    let database = database.to_str().unwrap();
    let backup = |more: &[&str]| {
        let arguments = [&["--database", database, "backup", "copy.db"], more].concat();
        command(elsewhere.path(), &arguments).output().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let first = loop {
        let output = backup(&[]);
        if output.status.code() != Some(3) {
            break output;
        }
        assert!(Instant::now() < deadline, "it never runs");
    };
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let path = elsewhere.path().join("copy.db");
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert_eq!(text(&first.stdout), format!("{bytes} bytes are in {}\n", path.display()));
    let again = backup(&[]);
    assert!(assert_one_line(&again, 1).contains("it is there already"));
    let json = backup(&["--overwrite", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["path"], path.to_str().unwrap());
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
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

/// `config` prints every key with its value, its source and what is allowed, at most 80 columns wide but for values; where
/// nobody runs it says whose settings these are, and no password is among them.
#[test]
fn config_says_where_every_value_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let config = |arguments: &[&str]| {
        command(folder.path(), &[&["config"], arguments].concat())
            .env("CLOUD_SQL_PROXY_PORT", "6543")
            .env("CLOUD_SQL_PASSWORD", "hunter2")
            .output()
            .unwrap()
    };
    let all = config(&[]);
    assert_eq!(all.status.code(), Some(0), "{}", text(&all.stderr));
    assert!(text(&all.stderr).contains("not running") && text(&all.stderr).lines().count() == 1);
    let page = text(&all.stdout);
    assert!(
        page.contains("proxy.port = 6543\n    CLOUD_SQL_PROXY_PORT; a whole number from 1 to 65535\n"),
        "{page}"
    );
    assert!(page.contains("cloud.password = (secret)\n"), "{page}");
    assert!(!page.contains("hunter2") && !page.contains('\x1b'), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    let keys = |output: &Output| {
        let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        list.iter().map(|it| it["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let settings = tidewater::settings::Settings::builder().build().unwrap();
    let every: Vec<_> = settings.effective().iter().map(|it| it.key.clone()).collect();
    assert_eq!(keys(&config(&["--json"])), every);
    assert!(settings.effective().iter().all(|it| !it.allowed.is_empty()), "{:?}", settings.effective());
    assert_eq!(keys(&config(&["--changed", "--json"])), ["cloud.password", "http.listen", "proxy.port"]);
    assert_eq!(
        keys(&config(&["--json", "proxy.port", "log"])),
        ["log.format", "log.level", "log.levels", "log.progress_after_s", "proxy.port"]
    );
    let unknown = config(&["proxy.prot"]);
    assert!(assert_one_line(&unknown, 2).contains("proxy.prot"));
}

/// A shell's completions, and the manual page of the command and of each verb, name every verb and every flag there is.
#[test]
fn completions_and_manual_pages_know_every_verb() {
    use clap::CommandFactory as _;
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = command(folder.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let verbs: Vec<String> =
        tidewater::cli::Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let (script, page) = (run(&["completions", "bash"]), run(&["man"]).replace("\\-", "-"));
    for verb in &verbs {
        assert!(script.contains(&format!("run_supervisor,{verb})")), "{verb}");
        assert!(page.contains(verb.as_str()), "{verb}");
        assert!(run(&["man", verb]).contains("\\-\\-database"), "{verb}");
    }
    let bash = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
    assert!(bash.status.success(), "{}", text(&bash.stderr));
    let unknown = command(folder.path(), &["man", "explode"]).output().unwrap();
    assert!(assert_one_line(&unknown, 2).contains("explode"));
}

/// `status --watch` prints again what has changed, outlives the supervisor, and finds the next one.
#[cfg(target_os = "linux")]
#[test]
fn status_watch_finds_the_next_supervisor() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().unwrap();
    let supervisor = || {
        let mut run = command(folder.path(), &["--database", "x.db"]);
        run.env("CLOUD_SQL_PROXY_PORT", "1").stderr(Stdio::null()).spawn().unwrap()
    };
    let mut watching = command(folder.path(), &["--database", "x.db", "status", "--watch", "--json"]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut said = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    assert!(said.next().unwrap()["error"].as_str().unwrap().contains("not running"));
    for _ in 0..2 {
        let mut running = supervisor();
        assert!(said.any(|status| status["sync"]["state"] == "offline"));
        let kill = format!("kill -TERM {}", running.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(running.wait().unwrap().code(), Some(0));
        assert!(said.any(|status| status["error"].is_string()));
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
}
