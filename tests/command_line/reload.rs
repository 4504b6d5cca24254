//! SIGHUP: the settings are read again, what can be used is used, what cannot is named, and what is wrong changes nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tidewater_test_support::{FaultProxy, shell, wait};

use super::said;
use crate::process::{Device, PATIENCE, Process, command, message, output};

/// Messages behind the first so many lines, until there are `count` of them.
fn next(process: &Process, known: &mut usize, count: usize) -> Vec<String> {
    let lines = wait::until_blocking("the settings are read again", PATIENCE, || {
        let lines = process.lines();
        if lines.len() >= *known + count { Ok(lines) } else { Err(format!("{lines:#?}")) }
    });
    let new = lines[*known..].iter().map(|line| message(line).to_owned()).collect();
    *known = lines.len();
    new
}

/// The value of a key and where it came from, as the one that runs tells it.
fn told(config: &mut Command, key: &str) -> (String, String) {
    let list: Value = serde_json::from_str(&said(&output(config.args(["config", "--json", key]))).0).unwrap();
    let text = |name: &str| list[0][name].as_str().unwrap().to_owned();
    (text("value"), text("origin"))
}

/// Every line of a reload: what is taken, with both values; what takes a restart, by its key; nothing that changed; a file that
/// is wrong, with why, after which everything is as it was. `config` says what is in use, and an actor that is written at
/// another level from then on is heard.
#[test]
fn sighup_takes_what_it_can_and_names_the_rest() {
    let (folder, nobody) =
        (tempfile::tempdir().unwrap(), FaultProxy::reserve("127.0.0.1:1".parse().unwrap()));
    let file = folder.path().join("own.toml");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("[sync]\npull_interval_s = 20\n[cloud]\npassword = \"hunter2\"\n");
    let run = || {
        let mut command = command(folder.path());
        command.env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string()).args(["--config", "own.toml"]);
        command
    };
    let process = Process::ready(&mut run());
    wait::until_blocking("it answers", PATIENCE, || {
        let told = output(run().arg("status"));
        told.status.success().then_some(()).ok_or_else(|| format!("{told:?}"))
    });
    let mut known = process.lines().len();

    process.signal("HUP");
    assert_eq!(next(&process, &mut known, 1), ["🔄 The settings were read again: nothing has changed"]);

    write(
        "[sync]\npull_interval_s = 2\nwindow_rows_max = 7\n[cloud]\npassword = \"hunter3\"\n\
         [log]\nlevels = \"CircuitBreaker=debug\"\n[tables.note]\nconflicts = \"local\"\nwhere = \"id > 3\"\n",
    );
    process.signal("HUP");
    insta::assert_snapshot!(next(&process, &mut known, 6).join("\n"), @r#"
    🔄 log.levels = "CircuitBreaker=debug" from now on, not "" (own.toml)
    🔄 sync.pull_interval_s = "2" from now on, not "20" (own.toml)
    🔄 tables.note.conflicts = "local" from now on, not "newest" (own.toml)
    ⚠️  cloud.password was changed (own.toml): restart to use it
    ⚠️  sync.window_rows_max was changed (own.toml): restart to use it
    ⚠️  tables.note.where was changed (own.toml): restart to use it
    "#);
    let from = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(told(&mut run(), "sync.pull_interval_s"), from("2", "own.toml"));
    assert_eq!(told(&mut run(), "sync.window_rows_max"), from("50000", "the built-in default"));
    assert_eq!(told(&mut run(), "tables.note.where"), from("", "the built-in default"));

    // The breaker says how it is when it is held, and at the debug level more than that.
    assert!(output(run().args(["circuit", "open"])).status.success());
    let lines = next(&process, &mut known, 2);
    assert!(lines.iter().any(|line| line.starts_with("circuit open")), "{lines:#?}");

    for (wrong, why) in [
        (
            "[sync]\npull_interval_s = -1\n",
            "sync.pull_interval_s = \"-1\" from own.toml is not allowed; allowed: seconds from",
        ),
        ("[sync]\npull_intervall_s = 1\n", "did you mean sync.pull_interval_s?"),
        ("[cloud]\npassword = hunter4\n", "the configuration file own.toml cannot be used"),
        (
            "[log]\nlevels = \"Nobody=debug\"\n",
            "the actors are ProxyWatcher, CircuitBreaker, SqliteWriter, CloudSyncer",
        ),
    ] {
        write(wrong);
        process.signal("HUP");
        let line = next(&process, &mut known, 1).concat();
        assert!(line.starts_with("❌ The settings are as they were") && line.contains(why), "{line}");
        assert_eq!(
            told(&mut run_without_file(folder.path(), &nobody), "sync.pull_interval_s"),
            from("2", "own.toml")
        );
    }
    fs::remove_file(&file).unwrap();
    process.signal("HUP");
    assert!(
        next(&process, &mut known, 1)
            .concat()
            .contains("the configuration file own.toml cannot be used: No such file")
    );
    let log = process.stop().join("\n");
    assert!(!log.contains("hunter"), "{log}");
}

/// A verb of which the file of the one that runs is no business.
fn run_without_file(folder: &Path, nobody: &FaultProxy) -> Command {
    let mut command = command(folder);
    command.env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string());
    command
}

/// Another pull interval is in use at once: what plain SQL changes in the cloud comes home although the interval of the start
/// is a day; an actor that is restarted keeps it; and another password in the same file is tried at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_interval_and_another_password_are_used_at_once() {
    let device = Device::new().await;
    let own = device.folder.path().join("own.toml");
    let password = device.folder.path().join("password");
    fs::write(&own, "[sync]\npull_interval_s = 86400\nfeed_poll_interval_s = 86400\n").unwrap();
    fs::write(&password, &device.cloud.password).unwrap();
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'one');",
    );
    device.proxy.start();
    let mut command = device.command();
    command
        .env_remove("TIDEWATER_SYNC__PULL_INTERVAL_S")
        .env_remove("CLOUD_SQL_PASSWORD")
        .env("CLOUD_SQL_PASSWORD_FILE", &password)
        .arg("--config")
        .arg(&own);
    let process = Process::ready(&mut command);
    device.wait_until_flushed();
    let mut known = process.lines().len();
    fs::write(&own, "[sync]\npull_interval_s = 0.1\nfeed_poll_interval_s = 0.1\n").unwrap();
    process.signal("HUP");
    assert_eq!(next(&process, &mut known, 2).len(), 2);
    for n in 0..3 {
        device.cloud.execute_batch(&format!("UPDATE note SET body = 'there {n}' WHERE id = 1")).await;
        device.wait_until_equal(&["note"]).await;
    }

    fs::write(&password, format!("{}\n", device.cloud.password)).unwrap();
    process.signal("HUP");
    assert_eq!(
        next(&process, &mut known, 1),
        ["🔄 The settings were read again: nothing has changed"],
        "a newline"
    );
    fs::write(&password, "not the password").unwrap();
    process.signal("HUP");
    process.wait_for_line("🔄 The password file has another password: the cloud is checked with it");
    let log = process.stop().join("\n");
    assert!(!log.contains("not the password") && !log.contains(&device.cloud.password), "{log}");
}

/// A terminal that goes away takes the supervisor with it, in good order; a supervisor without one goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_that_goes_away_ends_it_in_good_order() {
    let (folder, nobody) =
        (tempfile::tempdir().unwrap(), FaultProxy::reserve("127.0.0.1:1".parse().unwrap()));
    // A terminal of its own, which is closed when the supervisor is ready; its status is what is printed.
    let script = "import os, pty, sys\n\
                  pid, fd = pty.fork()\n\
                  if pid == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
                  seen = b''\n\
                  while 'Hybrid sync initialized'.encode() not in seen: seen += os.read(fd, 1024)\n\
                  os.close(fd)\n\
                  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let mut python = Command::new("python3");
    python.args(["-c", script, env!("CARGO_BIN_EXE_run_supervisor")]).current_dir(folder.path());
    python.env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string()).env("TIDEWATER_HTTP__LISTEN", "off");
    let told = output(&mut python);
    assert_eq!(said(&told).0, "0\n", "{told:?}");
    assert!(!folder.path().join("tidewater.db.sock").exists(), "it took its socket away");
}
