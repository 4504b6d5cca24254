//! Each route from the start through an outage, and where it listens.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewater_test_support::{Browser, shell, wait};

use crate::client::{Answer, Events, ask, get};
use crate::process::{Device, PATIENCE, Process, message, output};
use crate::{alone, serving};

/// Waits until a route answers so.
fn wait_for(address: SocketAddr, path: &str, what: &str, holds: impl Fn(&Answer) -> bool) -> Answer {
    wait::until_blocking(what, PATIENCE, || {
        let answer = get(address, path);
        if holds(&answer) { Ok(answer) } else { Err(format!("{answer:#?}")) }
    })
}

/// Without a cloud, with one, and without one again: each route says how it is, and none says that the process is ill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_follows_the_cloud() {
    let device = Device::new().await;
    let (process, address) = serving(&mut device.command());
    let assert_well = || {
        let health = get(address, "/healthz");
        assert_eq!((health.status, &*health.body), (200, "{\"healthy\":true,\"reasons\":[]}\n"));
        let ready = get(address, "/readyz");
        assert_eq!((ready.status, &*ready.body), (200, "{\"ready\":true,\"reasons\":[]}\n"));
    };
    let mut events = Events::follow(address, "/events");
    let unavailable = events.wait_for("availability", |it| it["status"] == "unavailable");
    events.wait_for("sync", |it| it["state"] == "offline");
    events.wait_for("counts", |it| *it == json!({ "pending": 0, "parked": 0, "conflicts": 0 }));
    assert_well();
    let metrics = get(address, "/metrics");
    assert_eq!(metrics.metric("tidewater_cloud_available"), Some(0.0));
    assert_eq!(metrics.metric("tidewater_proxy_status{status=\"unavailable\"}"), Some(1.0));
    assert_eq!(metrics.metric("tidewater_sync_state{state=\"offline\"}"), Some(1.0));
    assert_eq!(metrics.metric("tidewater_sync_state{state=\"idle\"}"), Some(0.0));

    let sql =
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a'), ('b');";
    shell::sqlite3_shell(device.path(), sql);
    events.wait_for("counts", |it| it["pending"] == 2);
    let metrics = get(address, "/metrics");
    assert_eq!(metrics.metric("tidewater_journal_pending_entries"), Some(2.0));
    assert!(metrics.metric("tidewater_journal_pending_bytes") > Some(2.0), "{}", metrics.body);
    let age = metrics.metric("tidewater_journal_oldest_age_seconds").unwrap();
    assert!(age > 0.0 && age < 60.0, "{age}");

    device.proxy.start();
    let available = events.wait_for("availability", |it| it["status"] == "available");
    assert!(available["epoch"].as_u64() > unavailable["epoch"].as_u64(), "{unavailable} {available}");
    assert_eq!(available["reason"], Value::Null);
    device.wait_until_equal(&["note"]).await;
    events.wait_for("counts", |it| it["pending"] == 0);
    let metrics = wait_for(address, "/metrics", "everything is flushed and the circuit closed", |answer| {
        ["tidewater_sync_state{state=\"idle\"}", "tidewater_circuit_state{state=\"closed\"}"]
            .iter()
            .all(|series| answer.metric(series) == Some(1.0))
    });
    assert_eq!(metrics.metric("tidewater_cloud_available"), Some(1.0));
    assert_eq!(metrics.metric("tidewater_rows_flushed_total"), Some(2.0));
    assert_eq!(metrics.metric("tidewater_journal_pending_bytes"), Some(0.0));
    assert_eq!(metrics.metric("tidewater_journal_oldest_age_seconds"), Some(0.0));
    assert_eq!(metrics.metric("tidewater_propagation_delay_seconds_count"), Some(2.0));
    let rounds = |outcome: &str| {
        metrics.metric(&format!("tidewater_flush_round_duration_seconds_count{{outcome=\"{outcome}\"}}"))
    };
    assert!(rounds("committed") >= Some(1.0));
    assert_eq!((rounds("refused"), rounds("failed")), (Some(0.0), Some(0.0)));
    assert!(metrics.metric("tidewater_sqlite_file_bytes") > Some(0.0));
    assert_well();

    device.proxy.stop();
    let gone = events.wait_for("availability", |it| it["status"] == "unavailable");
    assert!(gone["epoch"].as_u64() > available["epoch"].as_u64(), "{available} {gone}");
    assert!(gone["reason"].is_string(), "{gone}");
    wait_for(address, "/metrics", "the cloud is away", |answer| {
        answer.metric("tidewater_cloud_available") == Some(0.0)
    });
    assert_well();
    process.stop();
    assert!(events.next().is_none(), "whoever follows sees the end");
}

/// A round is counted however it ends: committed, refused, or cut off while the server was at work on it, with the time that it took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_that_fail_are_counted_as_well() {
    let device = Device::new().await;
    let client = device.cloud.connect().await;
    let rules = "CREATE TABLE note (id bigint PRIMARY KEY, body text);
        CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.body = 'bad' THEN RAISE 'not today'; END IF;
            IF new.body = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN new; END $$;
        CREATE TRIGGER judge BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION judge();";
    client.batch_execute(rules).await.unwrap();
    device.proxy.start();
    let (process, address) = serving(&mut device.command());
    let sql = |sql: &str| shell::sqlite3_shell(device.path(), sql);
    let rounds = |outcome: &'static str, what: &'static str| {
        move |answer: &Answer| {
            let series = format!("tidewater_flush_round_duration_seconds_{what}{{outcome=\"{outcome}\"}}");
            answer.metric(&series).unwrap()
        }
    };
    sql("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('bad');");
    let answer = wait_for(address, "/metrics", "a refused round", |it| rounds("refused", "count")(it) > 0.0);
    assert_eq!(rounds("failed", "count")(&answer), 0.0);

    sql("INSERT INTO note (body) VALUES ('slow');");
    let asleep =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    wait::until("the server is at work on it", PATIENCE, async || {
        let found: i64 = client.query_one(asleep, &[]).await.unwrap().get(0);
        if found > 0 { Ok(()) } else { Err("nobody sleeps".to_owned()) }
    })
    .await;
    device.proxy.stop();
    let answer = wait_for(address, "/metrics", "a failed round", |it| rounds("failed", "count")(it) > 0.0);
    assert!(rounds("failed", "sum")(&answer) > 0.0, "{}", answer.body);
    process.stop();
}

/// An outage and what waited in it are told after it has passed, also when nobody had looked: `/history` looks at nothing itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_passed_is_told_to_whoever_looks_only_now() {
    let device = Device::new().await;
    device.proxy.start();
    let (process, address) = serving(&mut device.command());
    let sql = |sql: &str| shell::sqlite3_shell(device.path(), sql);
    sql("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a');");
    device.wait_until_equal(&["note"]).await;
    let points = |answer: &Answer| -> Vec<(u64, u64)> {
        let rows = answer.json()["rows"].as_array().unwrap().clone();
        rows.iter()
            .map(|it| (it["pending"].as_u64().unwrap(), it["rows_flushed"].as_u64().unwrap()))
            .collect()
    };
    wait_for(address, "/history", "a row went", |answer| points(answer).last() == Some(&(0, 1)));
    device.proxy.stop();
    process.wait_for_line("Proxy not running on");
    sql("INSERT INTO note (body) VALUES ('b'), ('c');");
    wait_for(address, "/history", "two rows wait", |answer| points(answer).last() == Some(&(2, 1)));
    device.proxy.start();
    device.wait_until_equal(&["note"]).await;
    let told =
        wait_for(address, "/history", "three rows went", |answer| points(answer).last() == Some(&(0, 3)));
    let availability = told.json()["availability"].as_array().unwrap().clone();
    let statuses: Vec<_> = availability.iter().map(|it| it["status"].as_str().unwrap()).collect();
    assert!(statuses.ends_with(&["available", "unavailable", "available"]), "{statuses:?}");
    assert!(availability[statuses.len() - 2]["reason"].is_string(), "{availability:#?}");
    let times: Vec<u64> = availability.iter().map(|it| it["at"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times.last() <= told.json()["now"].as_u64().as_ref(), "{told:?}");
    process.stop();
}

/// `/status` is what `status --json` prints, byte by byte, and says where it listens; so does the page of `status`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_is_what_the_command_prints() {
    let device = Device::new().await;
    let (process, address) = serving(&mut device.command());
    wait::until_blocking("both say the same", PATIENCE, || {
        let printed = output(device.command().args(["status", "--json"]));
        let printed = String::from_utf8(printed.stdout).unwrap();
        let answer = get(address, "/status");
        assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/json")));
        assert_eq!(answer.json()["http"]["listen"], address.to_string());
        // A check may have ended in between.
        if printed == answer.body { Ok(()) } else { Err(format!("{printed}\n{}", answer.body)) }
    });
    let page = String::from_utf8(output(device.command().arg("status")).stdout).unwrap();
    assert!(page.contains(&format!("http     {address}\n")), "{page}");
    process.stop();
}

/// Where the proxy is required, readiness is red without it, green with it, and red where the login is refused; the process is
/// well all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_red_where_the_cloud_is_required_and_away() {
    let device = Device::new().await;
    let (process, address) = serving(device.command().env("CLOUD_SQL_REQUIRE_PROXY", "true"));
    let port = device.proxy.port();
    let red = get(address, "/readyz");
    assert_eq!((red.status, red.header("Content-Type")), (503, Some("application/json")));
    let reason = format!("Cloud SQL is required and not available: Proxy not running on 127.0.0.1:{port}");
    assert_eq!(red.json(), json!({ "ready": false, "reasons": [reason] }));
    assert_eq!(get(address, "/metrics").metric("tidewater_ready"), Some(0.0));
    assert_eq!(get(address, "/healthz").status, 200);
    device.proxy.start();
    wait_for(address, "/readyz", "it is ready", |answer| answer.status == 200);
    assert_eq!(get(address, "/metrics").metric("tidewater_ready"), Some(1.0));
    process.stop();

    let mut wrong = device.command();
    wrong.env("CLOUD_SQL_REQUIRE_PROXY", "true").env("CLOUD_SQL_PASSWORD", "wrong");
    let (process, address) = serving(&mut wrong);
    let red = wait_for(address, "/readyz", "the login is refused", |answer| {
        answer.status == 503 && answer.body.contains("password")
    });
    assert!(red.body.contains("Cloud SQL is required"), "{red:?}");
    assert_eq!(get(address, "/healthz").status, 200);
    process.stop();
}

/// Somebody's disk writes over a page of what waits. The numbers stay those of before, and nothing says that nothing waits: the
/// process is not ready, with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_counted_is_not_told_as_nothing() {
    let device = Device::new().await;
    let (process, address) = serving(&mut device.command());
    let sql = |sql: &str| shell::sqlite3_shell(device.path(), sql);
    sql(
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a'), ('b');",
    );
    wait_for(address, "/status", "two rows wait", |answer| answer.json()["sync"]["pending"] == 2);
    assert_eq!(get(address, "/readyz").status, 200);
    let page = "SELECT max(rootpage) FROM sqlite_schema WHERE name LIKE '\\_tidewater\\_journal\\_%' ESCAPE '\\' AND type = 'table';";
    let page: u64 = sql(page).trim().parse().unwrap();
    let size: u64 = sql("PRAGMA page_size;").trim().parse().unwrap();
    // Everything is in the file itself, and what the supervisor has read of it before is read again.
    wait::until_blocking("the log is folded in", PATIENCE, || {
        let folded = sql("PRAGMA wal_checkpoint(TRUNCATE);");
        if folded.trim() == "0|0|0" { Ok(()) } else { Err(folded) }
    });
    let file = std::fs::File::options().write(true).open(device.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(
        &file,
        &vec![0xff; usize::try_from(size).unwrap()],
        (page - 1) * size,
    )
    .unwrap();
    sql("PRAGMA user_version = 7;");
    let red = wait_for(address, "/readyz", "it is not ready", |answer| answer.status == 503);
    assert!(red.body.contains("the SQLite file is damaged"), "{red:?}");
    let status = get(address, "/status").json();
    assert_eq!(
        (&status["sync"]["state"], &status["sync"]["pending"]),
        (&json!("offline"), &json!(2)),
        "{status:#}"
    );
    assert!(status["sync"]["detail"].as_str().unwrap().contains("damaged"), "{status:#}");
    let metrics = get(address, "/metrics");
    assert_eq!(metrics.metric("tidewater_journal_pending_entries"), Some(2.0));
    assert_eq!(metrics.metric("tidewater_rows_flushed_total"), Some(0.0));
    process.kill();
}

/// An actor that holds its thread is named within a bounded time, and no route waits for it for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_names_an_actor_that_is_stuck() {
    let device = Device::new().await;
    let mut command = device.command();
    command.env("FAILPOINTS", "syncer.permitted=pause").env("TIDEWATER_SUPERVISOR__STUCK_AFTER_S", "0");
    let (process, address) = serving(&mut command);
    assert_eq!(get(address, "/healthz").status, 200);
    device.proxy.start();
    let red = wait_for(address, "/healthz", "an actor is stuck", |answer| answer.status == 503);
    let asked = Instant::now();
    for path in ["/healthz", "/readyz", "/status", "/metrics"] {
        get(address, path);
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    let health = red.json();
    let reasons: Vec<&str> = health["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(reasons.contains(&"CloudSyncer is silent"), "{red:?}");
    assert!(!reasons.iter().any(|reason| reason.starts_with("SqliteWriter")), "{red:?}");
    let metrics = get(address, "/metrics");
    assert_eq!(metrics.metric("tidewater_actor_running{actor=\"CloudSyncer\"}"), Some(0.0));
    assert_eq!(metrics.metric("tidewater_actor_running{actor=\"SqliteWriter\"}"), Some(1.0));
    for (actor, state) in [("CloudSyncer", "silent"), ("SqliteWriter", "running")] {
        for known in ["running", "silent", "restarting", "ended"] {
            let series = format!("tidewater_actor_state{{actor=\"{actor}\",state=\"{known}\"}}");
            assert_eq!(metrics.metric(&series), Some(f64::from(u8::from(known == state))), "{series}");
        }
    }
    // The watcher shares the thread: what it does not say is not said for it.
    for series in ["cloud_available", "proxy_checks_paused", "proxy_consecutive_failures"] {
        assert_eq!(metrics.metric(&format!("tidewater_{series}")), None);
    }
    assert_eq!(
        metrics.metric("tidewater_rows_flushed_total"),
        None,
        "nobody knows, and a zero would be wrong"
    );
    let page = String::from_utf8(output(device.command().arg("status")).stdout).unwrap();
    assert!(page.contains("sync     -\n") && !page.contains("pending"), "{page}");
    // The page in a browser does not say so either, and says what it is that does not answer.
    let browser = Browser::start();
    browser.open(&format!("http://{address}/"));
    browser.wait_for_text("#actors", "CloudSyncer ✕ silent");
    browser.wait_for_text("#sync", "nobody answers");
    browser.wait_for_text("#parked-title", "Parked rows (–)");
    browser.wait_for_text("#conflicts-title", "Conflicts (–)");
    assert!(browser.script("return document.title").as_str().unwrap().ends_with(", – pending"));
    assert!(browser.text("#pending").contains("Pending: –"), "{}", browser.text("#pending"));
    process.kill();
}

/// The Python that has a module: the system's, where another one comes first.
pub(crate) fn python_with(module: &str, package: &str) -> Command {
    let has_it = |python: &str| {
        let import = format!("import {module}");
        Command::new(python).args(["-c", &import]).output().is_ok_and(|it| it.status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| has_it(python));
    Command::new(found.unwrap_or_else(|| panic!("Python's {module} is missing: `apt-get install {package}`")))
}

/// What a parser of Prometheus' makes of a page: by family, its type, help and samples.
fn parsed(body: &str, parser: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("metrics");
    std::fs::write(&file, body).unwrap();
    let script = format!(
        "import json, sys\nfrom prometheus_client.{parser} import text_string_to_metric_families as parse\n\
         print(json.dumps({{f.name: [f.type, f.documentation, [[s.name, s.labels, s.value] for s in f.samples]]\n\
         for f in parse(open(sys.argv[1]).read())}}))"
    );
    let mut python = python_with("prometheus_client.openmetrics.parser", "python3-prometheus-client");
    let done = output(python.args(["-c", &script]).arg(&file));
    assert!(done.status.success(), "{}\n{body}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Prometheus' own parsers read both forms; every family has a help text and its type, and both say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_both_forms() {
    let device = Device::new().await;
    device.proxy.start();
    let (process, address) = serving(&mut device.command());
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a');",
    );
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    // As Prometheus asks.
    let accept = "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                  text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";
    let open = ask(address, "GET", "/metrics", accept);
    let open_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((open.status, open.header("Content-Type")), (200, Some(open_type)));
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    let open = parsed(&open.body, "openmetrics.parser");
    for headers in ["", "Accept: */*\r\n", "Accept: text/plain\r\n", "Accept: text/html,nonsense\r\n"] {
        let text = ask(address, "GET", "/metrics", headers);
        assert_eq!(
            text.header("Content-Type"),
            Some("text/plain; version=0.0.4; charset=utf-8"),
            "{headers}"
        );
        let text = parsed(&text.body, "parser");
        // `build_info` is a type of its own in one and a gauge in the other.
        let families = |parsed: &Value| -> Vec<String> {
            let names =
                parsed.as_object().unwrap().keys().map(|name| name.trim_end_matches("_info").to_owned());
            names.collect()
        };
        assert_eq!(families(&text), families(&open));
    }
    let expected = [
        ("tidewater_build", "info"),
        ("tidewater_ready", "gauge"),
        ("tidewater_cloud_available", "gauge"),
        ("tidewater_cloud_required", "gauge"),
        ("tidewater_proxy_status", "gauge"),
        ("tidewater_proxy_checks_paused", "gauge"),
        ("tidewater_proxy_consecutive_failures", "gauge"),
        ("tidewater_proxy_last_success_timestamp_seconds", "gauge"),
        ("tidewater_circuit_state", "gauge"),
        ("tidewater_sync_state", "gauge"),
        ("tidewater_journal_pending_entries", "gauge"),
        ("tidewater_journal_pending_bytes", "gauge"),
        ("tidewater_journal_oldest_age_seconds", "gauge"),
        ("tidewater_parked_rows", "gauge"),
        ("tidewater_conflicts", "gauge"),
        ("tidewater_rows_flushed", "counter"),
        ("tidewater_rows_warmed", "counter"),
        ("tidewater_actor_running", "gauge"),
        ("tidewater_actor_state", "gauge"),
        ("tidewater_actor_restarts", "counter"),
        ("tidewater_actor_panics", "counter"),
        ("tidewater_sqlite_file_bytes", "gauge"),
        ("tidewater_sqlite_wal_bytes", "gauge"),
        ("tidewater_write_duration_seconds", "histogram"),
        ("tidewater_read_duration_seconds", "histogram"),
        ("tidewater_flush_round_duration_seconds", "histogram"),
        ("tidewater_propagation_delay_seconds", "histogram"),
    ];
    for (name, kind) in expected {
        assert_eq!(open[name][0], kind, "{name}: {:#}", open[name]);
        assert!(open[name][1].as_str().is_some_and(|help| help.len() > 10), "{name}: {:#}", open[name]);
        assert!(!open[name][2].as_array().unwrap().is_empty(), "{name}: {:#}", open[name]);
    }
    assert_eq!(open.as_object().unwrap().len(), expected.len(), "{:?}", open.as_object().unwrap().keys());
    process.stop();
}

/// A port that somebody else has is one warning that names the key; everything else works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_one_warning() {
    let device = Device::new().await;
    device.proxy.start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let process = Process::ready(device.command().env("TIDEWATER_HTTP__LISTEN", &address));
    process.wait_for_line(&format!("No HTTP on {address} (http.listen)"));
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('a');",
    );
    device.wait_until_equal(&["note"]).await;
    let status = device.wait_until_flushed();
    assert_eq!((&status["http"]["listen"], &status["readiness"]["ready"]), (&Value::Null, &true.into()));
    let lines = process.stop();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains(" | WARNING | ")).collect();
    assert_eq!(warnings.len(), 1, "{lines:#?}");
}

/// Switched off it listens nowhere, and nothing is said of it. Chosen by the system, a port is named once; a fixed one is not.
#[test]
fn off_is_off_and_only_a_port_that_nobody_knows_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let process = Process::ready(&mut command);
    let status = status(folder.path(), &process);
    assert_eq!(status["http"]["listen"], Value::Null);
    let lines = process.stop();
    assert!(!lines.iter().any(|line| line.contains("HTTP")), "{lines:#?}");

    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    assert_eq!(get(address, "/healthz").status, 200);
    let lines = process.stop();
    assert_eq!(lines.iter().filter(|line| line.contains("HTTP")).count(), 1, "{lines:#?}");

    // An address of this test's own, so that nobody else has the port.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let address = SocketAddr::from(([127, a.max(1), b, c.clamp(1, 254)], 8432));
    let (mut command, _nobody) = alone(folder.path());
    let process = Process::ready(command.env("TIDEWATER_HTTP__LISTEN", address.to_string()));
    wait::until_blocking("it answers", PATIENCE, || match std::net::TcpStream::connect(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    assert_eq!(get(address, "/healthz").status, 200);
    let lines = process.stop();
    assert_eq!(lines.len(), 8, "{lines:#?}");
    assert_eq!(message(&lines[7]), "✅ Stopped");
}

/// `status --json` of the one that runs without a cloud.
fn status(folder: &std::path::Path, process: &Process) -> Value {
    wait::until_blocking("status answers", PATIENCE, || {
        let (mut command, _nobody) = alone(folder);
        let output = output(command.args(["status", "--json"]));
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {:#?}", process.lines()))
    })
}

/// An address that others could reach needs a word of its own, which the error names.
#[test]
fn another_address_than_loopback_needs_a_word() {
    let folder = tempfile::tempdir().unwrap();
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let (mut command, _nobody) = alone(folder.path());
        let said = output(command.env("TIDEWATER_HTTP__LISTEN", listen));
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(2), "{text}");
        assert!(text.contains("http.listen") && text.contains("http.allow_remote"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let (mut command, _nobody) = alone(folder.path());
    command.env("TIDEWATER_HTTP__LISTEN", "0.0.0.0:0").env("TIDEWATER_HTTP__ALLOW_REMOTE", "true");
    let process = Process::ready(command.env("TIDEWATER_HTTP__HOSTS", "DB.example, 10.0.0.7"));
    process.wait_for_line(crate::LISTENS);
    let status = status(folder.path(), &process);
    let listens: SocketAddr = status["http"]["listen"].as_str().unwrap().parse().unwrap();
    assert!(listens.ip().is_unspecified());
    let address = SocketAddr::from(([127, 0, 0, 1], listens.port()));
    for (host, status) in
        [("db.example:1", 200), ("10.0.0.7", 200), ("127.0.0.1", 200), ("evil.example", 421)]
    {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = crate::client::exchange(address, request.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{host}");
    }
    process.stop();
}
