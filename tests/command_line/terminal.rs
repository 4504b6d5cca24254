//! What a terminal of 80 columns shows: with colours, and without them where nobody wants any.

use std::process::{Command, Output};

use tidewater_test_support::{FaultProxy, shell, wait};

use super::said;
use crate::process::{Device, PATIENCE, Process, command, message, output};

/// Runs a command on a terminal of 80 columns by 24 lines; what it shows is the answer's standard output.
fn on_terminal(of: &Command) -> Output {
    let script = "import fcntl, os, pty, struct, sys, termios\n\
                  pid, fd = pty.fork()\n\
                  if pid == 0:\n    \
                      fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))\n    \
                      os.execv(sys.argv[1], sys.argv[1:])\n\
                  while True:\n    \
                      try: seen = os.read(fd, 65536)\n    \
                      except OSError: break\n    \
                      if not seen: break\n    \
                      os.write(1, seen)\n\
                  raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(of.get_program()).args(of.get_args());
    python
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("TERM", "xterm-256color")
        .env_remove("COLUMNS");
    if let Some(folder) = of.get_current_dir() {
        python.current_dir(folder);
    }
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    output(&mut python)
}

/// A terminal ends lines with a carriage return; colours become words, so that a snapshot can be read.
fn readable(text: &str) -> String {
    let mut text = text.replace("\r\n", "\n");
    for (code, word) in [
        ("\u{1b}[0m", "⟨/⟩"),
        ("\u{1b}[1m\u{1b}[31m", "⟨red⟩"),
        ("\u{1b}[31m", "⟨dark red⟩"),
        ("\u{1b}[32m", "⟨green⟩"),
        ("\u{1b}[33m", "⟨yellow⟩"),
        ("\u{1b}[1m\u{1b}[4m", "⟨title⟩"),
        ("\u{1b}[1m", "⟨bold⟩"),
        ("\u{1b}[2m", "⟨dim⟩"),
    ] {
        text = text.replace(code, word);
    }
    text
}

/// Without the words for colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('⟨') {
        plain += before;
        rest = after.split_once('⟩').unwrap().1;
    }
    plain + rest
}

/// What differs from one run to the next.
fn settled(text: &str, port: u16) -> String {
    let text = text.replace(&port.to_string(), "PORT");
    let lines = text.lines().map(|line| match line.split_once("last check ") {
        Some((before, _)) => format!("{before}last check A MOMENT ago"),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The pages as people see them, offline on a laptop: in colour on a terminal, the same without colours into a pipe, and on a
/// terminal where NO_COLOR is set. None is wider than 80 columns.
#[test]
fn pages_in_colour_and_without() {
    let (folder, nobody) =
        (tempfile::tempdir().unwrap(), FaultProxy::reserve("127.0.0.1:1".parse().unwrap()));
    let run = |arguments: &[&str]| {
        let mut command = command(folder.path());
        command.env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string()).env("TIDEWATER_DATABASE", "notes.db");
        // No second check comes in between.
        command.env("CLOUD_SQL_RETRY_DELAY", "600").args(arguments);
        command
    };
    shell::sqlite3_shell(
        folder.path().join("notes.db"),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('one'), ('two');",
    );
    let process = Process::ready(&mut run(&[]));
    wait::until_blocking("both wait", PATIENCE, || {
        let told = said(&output(&mut run(&["pending"])));
        if told.0.starts_with("2 rows") { Ok(()) } else { Err(format!("{told:?}")) }
    });
    wait::until_blocking("it answers", PATIENCE, || {
        let told = output(&mut run(&["status"]));
        told.status.success().then_some(()).ok_or_else(|| format!("{told:?}"))
    });
    let see = |arguments: &[&str]| {
        let coloured = readable(&said(&on_terminal(&run(arguments))).0);
        let piped = said(&output(&mut run(arguments))).0;
        let refused = said(&on_terminal(run(arguments).env("NO_COLOR", "1"))).0.replace("\r\n", "\n");
        assert!(!piped.contains('\u{1b}') && !refused.contains('\u{1b}'), "{piped}{refused}");
        let settle = |text: &str| settled(text, nobody.port());
        assert_eq!(settle(&plain(&coloured)), settle(&piped));
        assert_eq!(settle(&refused), settle(&piped));
        assert!(piped.lines().all(|line| line.chars().count() <= 80), "{piped}");
        settle(&coloured)
    };
    insta::assert_snapshot!(see(&["status"]), @r#"
    sync     ⟨yellow⟩offline⟨/⟩  2 pending  0 parked  0 conflicts
             0 rows flushed  0 rows warmed
             22 bytes of journal
    proxy    ⟨yellow⟩unavailable⟨/⟩  127.0.0.1:PORT  development
             Proxy not running on 127.0.0.1:PORT
             1 failure, retry delay 10 min
             last check A MOMENT ago
    circuit  ⟨yellow⟩open⟨/⟩  not_running
    sqlite   notes.db  wal mode
    actors   ProxyWatcher      ⟨green⟩running⟨/⟩
             CircuitBreaker    ⟨green⟩running⟨/⟩
             SqliteWriter      ⟨green⟩running⟨/⟩
             CloudSyncer       ⟨green⟩running⟨/⟩
    "#);
    insta::assert_snapshot!(see(&["pending"]), @r#"
    2 rows wait to be sent
    insert note id=1
    insert note id=2
    "#);
    insta::assert_snapshot!(see(&["check"]), @"unavailable: Proxy not running on 127.0.0.1:PORT");
    insta::assert_snapshot!(see(&["config", "sync.pull_interval_s", "proxy.port"]), @r#"
    ⟨bold⟩proxy.port = PORT⟨/⟩
        CLOUD_SQL_PROXY_PORT; a whole number from 1 to 65535
    sync.pull_interval_s = 10
        the built-in default; seconds from 0.001 to 86400
    "#);
    process.stop();
}

/// Help, on a terminal: titles and names stand out, and nothing is wider than 80 columns however wide the terminal is.
#[test]
fn help_on_a_terminal() {
    let told = readable(&said(&on_terminal(command(std::path::Path::new("/")).args(["flush", "--help"]))).0);
    insta::assert_snapshot!(told, @r#"
    Take what waits to the cloud now

    ⟨title⟩Usage:⟨/⟩ ⟨bold⟩run_supervisor flush⟨/⟩ [OPTIONS]

    ⟨title⟩Options:⟨/⟩
          ⟨bold⟩--config⟨/⟩ <FILE>        A TOML file with settings, over the built-in ones
                                 and under the environment
          ⟨bold⟩--wait⟨/⟩                 Wait until it is done; with a bar on a terminal
          ⟨bold⟩--database⟨/⟩ <FILE>      The SQLite file [TIDEWATER_DATABASE, default
                                 tidewater.db]
          ⟨bold⟩--json⟨/⟩                 As JSON
          ⟨bold⟩--migrations⟨/⟩ <DIR>     A folder of numbered .sql files to apply at the
                                 start [TIDEWATER_SQLITE__MIGRATIONS, default none]
          ⟨bold⟩--log-format⟨/⟩ <FORMAT>  How the log looks [possible values: text, json]
      ⟨bold⟩-h⟨/⟩, ⟨bold⟩--help⟨/⟩                 Print help

    Examples:
      run_supervisor flush
      run_supervisor flush --wait && echo everything is in the cloud
      run_supervisor warm --wait --json | jq .rows_warmed

    --json prints {done, rows_flushed, rows_warmed, pending, parked}.
    Exit status: 0 begun, or with --wait done, 1 failed, 2 usage, 3 not running.
    "#);
}

/// The log of a start on a terminal: the levels are in colour, the words are the documented ones.
#[test]
fn the_log_in_colour() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = command(folder.path());
    run.env("CLOUD_SQL_PROXY_PORT", "1").env("CLOUD_SQL_REQUIRE_PROXY", "true");
    let script = folder.path().join("once.sh");
    let binary = env!("CARGO_BIN_EXE_run_supervisor");
    std::fs::write(
        &script,
        format!("{binary} & child=$!\nuntil {binary} status >/dev/null 2>&1; do sleep 0.05; done\nkill $child; wait $child\n"),
    )
    .unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.arg(&script).current_dir(folder.path());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let told = readable(&said(&on_terminal(&shell)).0);
    let lines: Vec<&str> =
        told.lines().map(|line| line.split_once(" | ").map_or(line, |(_, rest)| rest)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    INFO | 🔍 Cloud SQL Proxy Detector initialized
    ⟨yellow⟩WARNING⟨/⟩ | ℹ️  Proxy not running on 127.0.0.1:1
    ⟨yellow⟩WARNING⟨/⟩ |    Using SQLite-only mode (Cloud SQL unavailable)
    INFO | ✅ SQLite initialized (WAL mode enabled)
    INFO | ✅ Hybrid sync initialized
    INFO | ✅ Stopped
    "#);
}

/// A copy shows how far it is on a terminal, in bytes, and nothing of that anywhere else; what it says at the end is the same. The
/// supervisor, who makes it, says in its log how far it is, now and then.
#[test]
fn a_copy_shows_how_far_it_is() {
    let (folder, nobody) =
        (tempfile::tempdir().unwrap(), FaultProxy::reserve("127.0.0.1:1".parse().unwrap()));
    let run = |arguments: &[&str]| {
        let mut command = command(folder.path());
        command.env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string()).env("TIDEWATER_DATABASE", "notes.db");
        command.args(arguments);
        command
    };
    // Enough pages for some looks: the writer's disk is left to itself between two batches of them.
    shell::sqlite3_shell(
        folder.path().join("notes.db"),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body BLOB);
         WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 30)
         INSERT INTO note SELECT i, zeroblob(4000000) FROM n;",
    );
    let process = Process::ready(run(&[]).env("TIDEWATER_LOG__PROGRESS_AFTER_S", "0.02"));
    wait::until_blocking("it answers", PATIENCE, || {
        let told = output(&mut run(&["status"]));
        told.status.success().then_some(()).ok_or_else(|| format!("{told:?}"))
    });
    let seen = said(&on_terminal(&run(&["backup", "one.db"]))).0;
    assert!(
        seen.contains("copying ")
            && seen.contains("MiB of ")
            && seen.contains("/s, ")
            && seen.contains(" left"),
        "{seen:?}"
    );
    let last = seen.trim_end().rsplit(['\r', '\n']).next().unwrap();
    assert!(last.contains(" bytes are in ") && last.ends_with("one.db"), "{seen:?}");
    let piped = said(&output(&mut run(&["backup", "two.db"])));
    assert!(piped.0.ends_with("two.db\n") && piped.0.lines().count() == 1 && piped.1.is_empty(), "{piped:?}");
    let log = process.stop();
    let copies: Vec<&str> =
        log.iter().filter(|line| line.contains("copying")).map(|line| message(line)).collect();
    let done = copies.iter().filter(|line| line.starts_with("copying the file: done in ")).count();
    let under_way =
        copies.iter().filter(|line| line.contains(" MiB of 11") && line.contains("iB/s, some ")).count();
    assert!(done == 2 && under_way >= 2 && under_way + done == copies.len(), "{copies:#?}");
}

/// The look through the file: on a terminal a bar with the rate and a bound, gone at the end; elsewhere a line now and then on
/// standard error, and none where it is soon over. The report is the same.
#[test]
fn a_look_through_the_file_shows_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    shell::sqlite3_shell(&path, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);");
    let run = || {
        let mut command = command(folder.path());
        command.env("CLOUD_SQL_PROXY_PORT", "1").env("TIDEWATER_DATABASE", &path).arg("doctor");
        command
    };
    // Until there is so much of it that it takes a while both times, however quick this machine is.
    let mut rows = 100_000;
    let (lines, seen) = loop {
        assert!(rows < 100_000 << 5, "no line, or no bar");
        let more = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO note (body) SELECT hex(randomblob(60)) FROM n;"
        );
        shell::sqlite3_shell(&path, &more);
        rows *= 2;
        let told = said(&output(run().env("TIDEWATER_LOG__PROGRESS_AFTER_S", "0.05")));
        assert!(told.0.contains("integrity    the file is whole"), "{told:?}");
        if !told.1.contains("B of at most ") || !told.1.contains("B/s, at most ") {
            continue;
        }
        let seen = said(&on_terminal(&run())).0;
        if ["checking ", " of at most ", "/s, at most ", " left"].iter().all(|part| seen.contains(part)) {
            break (told.1, seen);
        }
    };
    let about = "run_supervisor: looking through the file: ";
    assert!(lines.lines().all(|line| line.starts_with(about)), "{lines}");
    assert!(lines.lines().next_back().unwrap().starts_with(&format!("{about}done in ")), "{lines}");
    let quiet = said(&output(&mut run()));
    assert_eq!(quiet.1, "");
    let page = plain(readable(&seen).rsplit('\r').next().unwrap());
    assert!(page.contains("✓ integrity    the file is whole") && !page.contains("checking"), "{page:?}");
}

/// A flush that takes its time: on a terminal a bar with the rate and an estimate, gone at the end; into a file nothing but the
/// outcome. The log of the supervisor says now and then how far it is, and that it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bar_has_rate_and_estimate() {
    let device = Device::new().await;
    device
        .cloud
        .execute_batch(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text);
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION slow();",
        )
        .await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);
         WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
         INSERT INTO note SELECT i, 'body' FROM n;",
    );
    device.proxy.start();
    let process = Process::ready(
        device
            .command()
            .env("TIDEWATER_SYNC__WINDOW_ROWS_MAX", "20")
            .env("TIDEWATER_LOG__PROGRESS_AFTER_S", "0.3"),
    );
    device.wait_for_status("it flushes", |status| status["sync"]["state"] == "flushing");
    device.wait_for_status("a round is done", |status| {
        let progress = &status["sync"]["progress"];
        progress["work"] == "flush" && progress["rows"].as_u64() > Some(0)
    });
    let seen = on_terminal(device.command().args(["flush", "--wait"]));
    let text = said(&seen).0;
    assert_eq!(seen.status.code(), Some(0), "{text}");
    assert!(
        text.contains("flushing")
            && text.contains("rows, ")
            && text.contains("/s, ")
            && text.contains(" left"),
        "{text:?}"
    );
    let last = text.trim_end().rsplit(['\r', '\n']).next().unwrap();
    assert!(last.contains("rows went to the cloud; 0 pending, 0 parked"), "{text:?}");
    // Ten rounds of a fifth of a second each.
    let log = process.stop();
    let lines: Vec<&str> =
        log.iter().filter(|line| line.contains("flushing: ")).map(|line| message(line)).collect();
    let (done, under_way) = lines.split_last().unwrap();
    assert!(done.starts_with("flushing: done, 200 rows, "), "{lines:#?}");
    assert!((1..10).contains(&under_way.len()), "{lines:#?}");
    assert!(
        under_way
            .iter()
            .all(|line| line.contains(" rows, ") && line.contains("/s, some ") && line.ends_with(" more")),
        "{lines:#?}"
    );
}

/// A first sync that takes its time: how many rows there are is known, about, because the cloud has counted them; so the bar has
/// an estimate, and `status` says how far it is; the log does now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sync_has_rate_and_estimate() {
    let device = Device::new().await;
    device
        .cloud
        .execute_batch(
            "CREATE TABLE note (id bigint PRIMARY KEY, body text);
             INSERT INTO note SELECT n, 'body' FROM generate_series(1, 300) AS n; ANALYZE note;",
        )
        .await;
    shell::sqlite3_shell(device.path(), "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);");
    device.proxy.start();
    let mut run = device.command();
    // Each row costs the server a moment.
    run.env("TIDEWATER_TABLES__NOTE__WHERE", "pg_sleep(0.01)::text = ''")
        .env("TIDEWATER_SYNC__PAGE_ROWS_MAX", "10")
        .env("TIDEWATER_LOG__PROGRESS_AFTER_S", "0.15");
    let process = Process::ready(&mut run);
    device.wait_for_status("it is under way", |status| {
        let progress = &status["sync"]["progress"];
        let (rows, left) = (progress["rows"].as_u64(), progress["rows_left"].as_u64());
        (&progress["work"], &progress["table"]) == (&"first_sync".into(), &"note".into())
            && rows.zip(left).is_some_and(|(rows, left)| rows > 0 && rows + left == 300)
    });
    let page = said(&output(device.command().arg("status"))).0;
    assert!(page.contains("comparing note: ") || page.contains(" 300 rows warmed"), "{page}");
    let seen = on_terminal(device.command().args(["warm", "--wait"]));
    let text = said(&seen).0;
    assert_eq!(seen.status.code(), Some(0), "{text}");
    assert!(text.contains("warming") && text.contains("/s, ") && text.contains(" left"), "{text:?}");
    device.wait_until_equal(&["note"]).await;
    // Thirty pages of a tenth of a second each.
    let log = process.stop();
    let lines: Vec<&str> =
        log.iter().filter(|line| line.contains("comparing note: ")).map(|line| message(line)).collect();
    let (done, under_way) = lines.split_last().unwrap();
    assert!(done.starts_with("comparing note: done, 300 rows, "), "{lines:#?}");
    assert!((1..30).contains(&under_way.len()), "{lines:#?}");
    assert!(under_way.iter().all(|line| line.contains(" rows, ") && line.contains("/s")), "{lines:#?}");
}
