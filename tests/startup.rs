//! A start as people see it: the documented lines and nothing else, at once, in any folder, with private files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use process::{Device, Process, READY, command, message, output};
use serde_json::Value;
use tidewater_test_support::{FaultProxy, shell, wait};

/// A port of our own on which nothing listens.
fn nobody() -> FaultProxy {
    FaultProxy::reserve("127.0.0.1:1".parse().unwrap())
}

/// Nothing is configured but the file and the port, and nothing listens there.
fn alone(folder: &Path, port: u16) -> Command {
    let mut command = command(folder);
    command.env("TIDEWATER_DATABASE", "alone.db").env("CLOUD_SQL_PROXY_PORT", port.to_string());
    command
}

/// The log of a start without a proxy, in the documented order.
fn documented(port: u16) -> [String; 7] {
    [
        "🔍 Cloud SQL Proxy Detector initialized".to_owned(),
        format!("ℹ️  Proxy not running on 127.0.0.1:{port}"),
        "   Using SQLite-only mode (Cloud SQL unavailable)".to_owned(),
        "ℹ️  Cloud SQL Proxy not detected in local development environment".to_owned(),
        "   This is normal - using SQLite-only mode".to_owned(),
        "✅ SQLite initialized (WAL mode enabled)".to_owned(),
        READY.to_owned(),
    ]
}

fn assert_documented(lines: &[String], port: u16) {
    let messages: Vec<&str> = lines.iter().map(|line| message(line)).collect();
    assert_eq!(messages, documented(port));
    for line in lines {
        let (time, rest) = line.split_at(8);
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "00:00:00", "{line}");
        assert!(rest.starts_with(" | INFO | "), "{line}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o777
}

/// Without a proxy a start writes the seven documented lines, and after the second and the third failure it has written nothing
/// more. The minutes after that are those of a clock of their own, in the watcher's tests.
#[test]
fn without_a_proxy_the_log_has_seven_lines_and_after_further_failures_still_seven() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let process = Process::ready(&mut alone(folder.path(), port.port()));
    assert!(process.stays_silent(7, Duration::from_secs(35)), "{:#?}", process.lines());
    assert_documented(&process.lines(), port.port());
    let lines = process.stop();
    assert_eq!(lines.len(), 8, "{lines:#?}");
    assert_eq!(message(&lines[7]), "✅ Stopped");
}

/// Either signal ends it within two seconds, with status 0 and one more line.
#[test]
fn a_signal_ends_it_with_one_more_line() {
    for signal in ["TERM", "INT"] {
        let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
        let process = Process::ready(&mut alone(folder.path(), port.port()));
        let asked = Instant::now();
        process.signal(signal);
        let (status, lines) = process.wait();
        let took = asked.elapsed();
        assert_eq!(status.code(), Some(0), "SIG{signal}: {lines:#?}");
        assert!(took < Duration::from_secs(2), "SIG{signal} took {took:?}");
        assert_documented(&lines[..7], port.port());
        assert_eq!(lines[7..].iter().map(|line| message(line)).collect::<Vec<_>>(), ["✅ Stopped"]);
        assert!(!folder.path().join("alone.db.sock").exists(), "the control socket is gone");
    }
}

/// Five failures end in a pause with two lines; a listener that appears ends the pause, and the rows arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_appears_ends_the_pause() {
    let device = Device::new().await;
    let mut quick = device.command();
    // A listener that appears must be what ends the pause: no timer of these could.
    quick.env("CLOUD_SQL_RETRY_DELAY", "0.2").env("CLOUD_SQL_MAX_RETRY_DELAY", "0.2");
    let process = Process::ready(&mut quick);
    process.wait_for_line("Health checks now paused");
    let lines = process.lines();
    assert_documented(&lines[..7], device.proxy.port());
    assert_eq!(
        lines[7..].iter().map(|line| message(line)).collect::<Vec<_>>(),
        ["After 5 failures - assuming local development", "Health checks now paused"]
    );
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a'), ('b');",
    );
    device.wait_for_status("the rows are pending", |status| status["sync"]["pending"] == 2);
    assert_eq!(device.status().unwrap()["proxy"]["paused"], true);
    assert!(process.stays_silent(9, Duration::from_secs(2)), "{:#?}", process.lines());

    let appeared = Instant::now();
    device.proxy.start();
    process.wait_for_line("✅ CloudSQL reconnected - warming cache and syncing");
    eprintln!("noticed {:?} after the listener appeared", appeared.elapsed());
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    let lines = process.stop();
    let later: Vec<&str> = lines[9..].iter().map(|line| message(line)).collect();
    assert_eq!(later, ["✅ CloudSQL reconnected - warming cache and syncing", "✅ Stopped"]);
}

/// With every delay at its default, a listener that appears is noticed too: this is the documented second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_is_noticed_with_the_default_settings() {
    let device = Device::new().await;
    let mut command = device.command();
    command.env_remove("TIDEWATER_PROXY__LISTEN_INTERVAL_S");
    let process = Process::ready(&mut command);
    let appeared = Instant::now();
    device.proxy.start();
    process.wait_for_line("✅ CloudSQL reconnected - warming cache and syncing");
    let took = appeared.elapsed();
    eprintln!("noticed {took:?} after the listener appeared, with the default interval");
    assert!(took < Duration::from_secs(9), "not by the first retry after 10 s: {took:?}");
    process.stop();
}

/// How long a start takes, for the record: no limit, because the machine may be busy.
#[test]
fn a_start_is_measured() {
    let mut times: Vec<Duration> = (0..10)
        .map(|_| {
            let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
            let process = Process::spawn(&mut alone(folder.path(), port.port()));
            process.wait_for_line(READY)
        })
        .collect();
    times.sort();
    eprintln!("from spawn to ready: median {:?}, all {times:?}", times[times.len() / 2]);
}

/// Whatever the umask, nobody else can read what it creates.
#[test]
fn files_that_it_creates_are_private() {
    for umask in ["022", "0"] {
        let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
        let plain = alone(folder.path(), port.port());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$0\"")]).arg(plain.get_program());
        command.current_dir(folder.path());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let process = Process::ready(&mut command);
        shell::sqlite3_shell(folder.path().join("alone.db"), "CREATE TABLE note (id INTEGER PRIMARY KEY);");
        let socket = folder.path().join("alone.db.sock");
        wait::until_blocking("the socket is there", process::PATIENCE, || {
            socket.exists().then_some(()).ok_or_else(|| "no socket".to_owned())
        });
        for name in ["alone.db", "alone.db-wal", "alone.db-shm", "alone.db.lock", "alone.db.sock"] {
            let mode = mode(&folder.path().join(name));
            assert_eq!(mode, 0o600, "{name} has mode {mode:04o} under umask {umask}");
        }
        assert_eq!(process.stop().len(), 8);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(left.len() <= 2, "an orderly end leaves the file and its lock: {left:?}");
    }
}

/// A file that others can read keeps its mode and is named, once.
#[test]
fn a_file_that_others_can_read_keeps_its_mode_and_is_named_once() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let file = folder.path().join("alone.db");
    shell::sqlite3_shell(&file, "CREATE TABLE note (id INTEGER PRIMARY KEY);");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let lines = Process::ready(&mut alone(folder.path(), port.port())).stop();
    let naming: Vec<_> = lines.iter().filter(|line| line.contains("alone.db")).collect();
    assert_eq!(naming.len(), 1, "{lines:#?}");
    assert!(naming[0].contains("0644") && naming[0].contains("chmod 600"), "{naming:?}");
    assert_eq!(mode(&file), 0o644);
}

/// It needs nothing from the folder it is started in, which may be one that it cannot write to.
#[test]
fn the_current_folder_does_not_matter() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let mut command = alone(Path::new("/proc"), port.port());
    command.env("TIDEWATER_DATABASE", folder.path().join("elsewhere.db"));
    let process = Process::ready(&mut command);
    assert_documented(&process.lines(), port.port());
    process.stop();
    assert!(folder.path().join("elsewhere.db").exists());
}

/// `status` is a page, and `status --json` has every documented key, its states in lower case.
#[test]
fn status_has_every_documented_key() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let process = Process::ready(&mut alone(folder.path(), port.port()));
    let ask = |arguments: &[&str]| {
        wait::until_blocking("status answers", process::PATIENCE, || {
            let output = output(alone(folder.path(), port.port()).args(arguments));
            match output.status.code() {
                Some(0) => Ok(String::from_utf8(output.stdout).unwrap()),
                _ => Err(String::from_utf8(output.stderr).unwrap()),
            }
        })
    };
    let page = ask(&["status"]);
    assert!(page.starts_with("sync     offline  0 pending"), "{page}");
    assert!(page.contains(&format!("127.0.0.1:{}", port.port())) && page.contains("alone.db"), "{page}");

    let status: Value = serde_json::from_str(&ask(&["status", "--json"])).unwrap();
    for (section, keys) in [
        (
            "proxy",
            "status endpoint consecutive_failures current_retry_delay should_retry paused environment \
             proxy_required last_check last_success detail",
        ),
        ("circuit", "state"),
        ("sync", "state pending parked conflicts rows_flushed rows_warmed"),
        ("sqlite", "path journal_mode"),
    ] {
        for key in keys.split_whitespace() {
            assert!(status[section].get(key).is_some(), "{section}.{key} is missing: {status:#}");
        }
    }
    for word in [
        &status["proxy"]["status"],
        &status["proxy"]["environment"],
        &status["circuit"]["state"],
        &status["sync"]["state"],
        &status["sqlite"]["journal_mode"],
    ] {
        let word = word.as_str().unwrap();
        assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
    }
    assert_eq!(status["proxy"]["status"], "unavailable");
    assert_eq!(status["proxy"]["endpoint"], format!("127.0.0.1:{}", port.port()));
    assert_eq!(status["proxy"]["consecutive_failures"], 1);
    assert_eq!(status["proxy"]["current_retry_delay"], 10.0);
    assert_eq!((&status["proxy"]["should_retry"], &status["proxy"]["paused"]), (&true.into(), &false.into()));
    assert_eq!(status["sync"]["state"], "offline");
    let actors = status["actors"].as_array().unwrap();
    assert_eq!(actors.len(), 4, "{status:#}");
    for actor in actors {
        assert!(actor["name"].is_string(), "{actor}");
        assert_eq!((&actor["state"], &actor["restarts"]), (&"running".into(), &0.into()), "{actor}");
    }
    process.stop();
}

/// Without a running supervisor, and with a socket left behind by one that was killed, a verb says "not running".
#[test]
fn a_killed_supervisor_is_not_running_and_does_not_block_the_next_one() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let assert_not_running = || {
        let output = output(alone(folder.path(), port.port()).arg("status"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("not running") && output.stdout.is_empty(), "{said}");
    };
    assert_not_running();
    let socket = folder.path().join("alone.db.sock");
    let process = Process::ready(&mut alone(folder.path(), port.port()));
    wait::until_blocking("the socket is there", process::PATIENCE, || {
        socket.exists().then_some(()).ok_or_else(|| "no socket".to_owned())
    });
    process.kill();
    assert!(socket.exists(), "nobody removed it");
    assert_not_running();

    let process = Process::ready(&mut alone(folder.path(), port.port()));
    wait::until_blocking("status answers", process::PATIENCE, || {
        let output = output(alone(folder.path(), port.port()).arg("status"));
        output.status.success().then_some(()).ok_or_else(|| format!("{output:?}"))
    });
    assert_documented(&process.lines(), port.port());
    process.stop();
    assert_not_running();
}

/// A second supervisor on the same file ends with a line that names the file; the first one does not notice.
#[test]
fn a_second_supervisor_on_the_same_file_is_refused() {
    let (folder, port) = (tempfile::tempdir().unwrap(), nobody());
    let first = Process::ready(&mut alone(folder.path(), port.port()));
    let second = output(&mut alone(folder.path(), port.port()));
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("run_supervisor: ") && said.contains("alone.db"), "{said}");
    wait::until_blocking("the first one answers", process::PATIENCE, || {
        let output = output(alone(folder.path(), port.port()).arg("status"));
        output.status.success().then_some(()).ok_or_else(|| format!("{output:?}"))
    });
    assert_documented(&first.lines(), port.port());
    assert_eq!(first.stop().len(), 8);
}

/// `check`, `reset` and `circuit` do by hand what the library does: in words, as JSON, and by their exit status.
#[tokio::test]
async fn the_verbs_of_the_control_plane_act_on_the_one_that_runs() {
    let device = Device::new().await;
    let process = Process::ready(device.command().env("CLOUD_SQL_REQUIRE_PROXY", "true"));
    let run = |arguments: &[&str]| {
        let output = output(device.command().args(arguments));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        (output.status.code().unwrap(), text)
    };
    let port = device.proxy.port();
    // The control socket comes last.
    device.wait_for_status("it answers", |_| true);
    let (status, text) = run(&["check"]);
    assert_eq!((status, &*text), (1, &*format!("unavailable: Proxy not running on 127.0.0.1:{port}\n")));
    let (status, json) = run(&["check", "--json"]);
    let checked: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (status, &checked["status"], &checked["proxy_required"]),
        (1, &"unavailable".into(), &true.into())
    );

    device.proxy.start();
    device.wait_for_status("it is available", |status| status["proxy"]["status"] == "available");
    let (status, text) = run(&["check"]);
    assert!(status == 0 && text.starts_with("available: PostgreSQL answers as database"), "{text}");

    for hold in ["open", "closed"] {
        assert_eq!(run(&["circuit", hold]), (0, format!("the circuit is held {hold}\n")));
        let circuit = &device.status().unwrap()["circuit"];
        assert_eq!((&circuit["state"], &circuit["reason"]), (&hold.into(), &"forced".into()));
    }
    assert_eq!(run(&["circuit", "auto"]).1, "the circuit decides by itself\n");
    device.wait_for_status("the circuit is closed", |status| {
        status["circuit"]["state"] == "closed" && status["circuit"]["reason"] == Value::Null
    });

    assert_eq!(run(&["reset"]).0, 0);
    process.wait_for_line("🔄 Proxy detector reset");
    process.stop();
}
