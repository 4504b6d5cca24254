//! The password is looked for in everything that can be read from outside: each verb in words and as JSON, the log in both
//! looks, HTTP's routes, what stands in the process table, and what is on the disk.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use tidewater_test_support::shell;

use super::verbs;
use crate::process::{Device, Process, output};

/// The routes that need no token; the others need one, and answer without it as well.
const ROUTES: [&str; 9] =
    ["/", "/healthz", "/readyz", "/metrics", "/status", "/events", "/parked", "/conflicts", "/nothing-here"];

/// What a route answers, as far as it comes within a moment; `/events` never ends.
fn answer(address: &str, route: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let request = format!(
        "GET {route} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = vec![];
    // An end by the timeout is one as well.
    let _ = stream.read_to_end(&mut bytes);
    assert!(bytes.starts_with(b"HTTP/1.1 "), "{route}");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What others can see of a process, and of the files that it keeps.
fn surroundings(process: u32, folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = ["cmdline", "comm", "status"]
        .iter()
        .map(|name| (format!("/proc/{name}"), fs::read(format!("/proc/{process}/{name}")).unwrap()))
        .collect();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            all.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap()));
        }
    }
    all
}

/// A right password, which a command prints, and a wrong one in a variable (files are in the test of SIGHUP): in no output that there is does it appear, at the debug
/// level, while everything goes well and while nothing does.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_in_no_output_that_there_is() {
    for (way, format, is_right) in [("command", "json", true), ("variable", "text", false)] {
        let device = Device::new().await;
        let secret = if is_right { device.cloud.password.clone() } else { "hunter2-is-it-not".to_owned() };
        shell::sqlite3_shell(
            device.path(),
            "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'one');",
        );
        let command = || {
            let mut command = device.command();
            command.env_remove("CLOUD_SQL_PASSWORD").env("TIDEWATER_LOG__LEVEL", "debug");
            match way {
                "variable" => command.env("CLOUD_SQL_PASSWORD", &secret),
                // The shell's own words are an argument of it.
                _ => command.env("TIDEWATER_CLOUD__PASSWORD_COMMAND", format!("printf %s {secret}")),
            };
            command.args(["--log-format", format]);
            command
        };
        let mut outputs: Vec<(String, Vec<u8>)> = vec![];
        let mut tell = |what: String, told: std::process::Output| {
            outputs.push((format!("{what}, standard output"), told.stdout));
            outputs.push((format!("{what}, standard error"), told.stderr));
        };
        // A start that fails says why.
        for variable in
            ["CLOUD_SQL_PROXY_PORT", "TIDEWATER_CLOUD__PASSWORT", "TIDEWATER_SYNC__PULL_INTERVAL_S"]
        {
            let told = output(command().env(variable, "?"));
            assert_eq!(told.status.code(), Some(2), "{told:?}");
            tell(format!("{variable}=?"), told);
        }
        device.proxy.start();
        let process = Process::ready(command().env("TIDEWATER_HTTP__LISTEN", "127.0.0.1:0"));
        let state = if is_right { "idle" } else { "blocked" };
        device.wait_for_status(state, |status| status["sync"]["state"] == state);
        for json in [false, true] {
            // All at once, because one that waits costs nothing but its time; no more than find a place on the socket.
            let told: Vec<_> = thread::scope(|scope| {
                let run = |(words, _): (Vec<&str>, _)| {
                    let mut verb = command();
                    verb.args(&words).args(json.then_some("--json"));
                    let what = format!("{words:?}");
                    scope.spawn(move || (what, output(&mut verb)))
                };
                let running: Vec<_> = verbs::verbs().map(run).collect();
                running.into_iter().map(|verb| verb.join().unwrap()).collect()
            });
            for (what, told) in told {
                assert!(!String::from_utf8_lossy(&told.stderr).contains("busy"), "{what}: {told:?}");
                tell(what, told);
            }
        }
        process.signal("HUP");
        process.wait_for_line("The settings were read again");
        let lines = process.lines();
        let address = lines.iter().find_map(|line| line.split_once("HTTP on ")).unwrap().1;
        let address =
            address.trim_end_matches(|c: char| !c.is_ascii_digit()).split('"').next().unwrap().to_owned();
        let token = fs::read_to_string(device.folder.path().join("shop.db.token")).unwrap();
        for route in ROUTES {
            for token in [token.trim(), "wrong"] {
                outputs.push((route.to_owned(), answer(&address, route, token).into_bytes()));
            }
        }
        outputs.extend(surroundings(process.id(), device.folder.path()));
        outputs.push(("the log".to_owned(), process.stop().join("\n").into_bytes()));
        // Every verb's two streams, every route twice.
        assert!(outputs.len() > 2 * (verbs::verbs().count() + ROUTES.len()), "{}", outputs.len());
        for (what, text) in outputs {
            let found = text.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{way}: the password is in {what}: {}", String::from_utf8_lossy(&text));
        }
    }
}
