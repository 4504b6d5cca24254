//! Each verb that clap knows: what it says without a supervisor, beside a socket that one left behind, to a peer that means
//! harm, as another user, and in a crowd; and what its help promises of it.
//!
//! The list of verbs is clap's own. One that is not in [`VERBS`] fails the tests until somebody says what it needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use clap::CommandFactory as _;
use serde_json::Value;
use tidewater::cli::Cli;
use tidewater_test_support::{shell, wait};

use super::said;
use crate::process::{Device, PATIENCE, command, command_of, output};

/// What a verb cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// A supervisor that answers.
    Supervisor,
    /// The file, which it reads itself.
    File,
    /// Nothing: it says what it finds, and asks the supervisor if there is one.
    Either,
    /// Nothing, and it asks nobody.
    Nothing,
}

/// Each verb as it can be called, and what it needs.
const VERBS: [(&str, Needs); 20] = [
    ("status", Needs::Supervisor),
    ("check", Needs::Supervisor),
    ("reset", Needs::Supervisor),
    ("circuit auto", Needs::Supervisor),
    ("flush", Needs::Supervisor),
    ("warm", Needs::Supervisor),
    ("adopt", Needs::Supervisor),
    ("backup copy.db", Needs::Supervisor),
    ("parked retry", Needs::Supervisor),
    ("parked discard 1", Needs::Supervisor),
    ("conflicts restore 1", Needs::Supervisor),
    ("pending", Needs::File),
    ("parked", Needs::File),
    ("parked show 1", Needs::File),
    ("conflicts", Needs::File),
    ("conflicts show 1", Needs::File),
    ("cloud-sql --role app", Needs::File),
    ("doctor", Needs::Either),
    ("config", Needs::Either),
    ("completions bash", Needs::Nothing),
];

/// The same under another name, or what cannot be told apart from it here.
const ALIKE: [(&str, Needs); 5] = [
    ("parked list", Needs::File),
    ("conflicts list", Needs::File),
    ("flush --wait", Needs::Supervisor),
    ("warm --wait", Needs::Supervisor),
    ("man", Needs::Nothing),
];

pub(super) fn verbs() -> impl Iterator<Item = (Vec<&'static str>, Needs)> {
    VERBS.iter().chain(&ALIKE).map(|(line, needs)| (line.split(' ').collect(), *needs))
}

/// Every verb of clap's that does something, as a path.
fn known_to_clap() -> BTreeSet<String> {
    fn walk(command: &clap::Command, path: &str, all: &mut BTreeSet<String>) {
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let path = format!("{path} {}", verb.get_name()).trim().to_owned();
            walk(verb, &path, all);
            all.insert(path);
        }
    }
    let mut all = BTreeSet::new();
    walk(&Cli::command(), "", &mut all);
    all
}

/// No verb is left out of the tests below, and none is in them that there is not.
#[test]
fn every_verb_is_in_the_table() {
    let known = known_to_clap();
    let is_called = |path: &String| {
        verbs().any(|(words, _)| words.join(" ") == *path || words.join(" ").starts_with(&format!("{path} ")))
    };
    let left_out: Vec<_> = known.iter().filter(|path| !is_called(path)).collect();
    assert!(left_out.is_empty(), "say in VERBS how these are called, and what they need: {left_out:?}");
    for (words, _) in verbs() {
        assert!(known.contains(words[0]), "{words:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------
// Help
// ---------------------------------------------------------------------------------------------------------

fn help(words: &[&str]) -> String {
    let told = output(command(Path::new("/")).args(words).arg("--help").env("COLUMNS", "200"));
    assert_eq!(told.status.code(), Some(0));
    said(&told).0
}

/// What people see who ask for help: examples, exit statuses, and what --json prints, for every verb that has it.
#[test]
fn every_verb_has_examples_and_says_what_it_prints() {
    let page = help(&[]);
    assert!(page.contains("\nExamples:\n") && page.contains("\nExit status: "), "{page}");
    for path in known_to_clap() {
        let page = help(&path.split(' ').collect::<Vec<_>>());
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    }
    for verb in Cli::command().get_subcommands().filter(|verb| verb.get_name() != "help") {
        let page = help(&[verb.get_name()]);
        assert!(page.contains("\nExamples"), "{page}");
        assert!(page.contains(&format!("run_supervisor {}", verb.get_name())), "{page}");
        let prints_json = page.contains("--json ");
        assert_eq!(prints_json, !["completions", "man"].contains(&verb.get_name()), "{page}");
        if prints_json {
            assert!(page.contains("--json prints ") && page.contains("\nExit status: "), "{page}");
        }
    }
    // All of them in one manual page, too.
    let told = said(&output(command(Path::new("/")).arg("man"))).0;
    assert!(told.contains("Exit status"), "{told}");
}

/// The names in the first braces behind a word, without those in brackets within.
fn promised(page: &str, behind: &str) -> BTreeSet<String> {
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, rest) = page.split_once(behind).unwrap_or_else(|| panic!("{behind:?} is not in {page}"));
    let (mut depth, mut names) = (0, String::new());
    for c in rest[rest.find('{').unwrap()..].chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            c if depth == 1 => names.push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.split(',').map(|name| name.trim().split(':').next().unwrap().to_owned()).collect()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().cloned().collect()
}

/// Where the JSON of each verb is promised in its help.
const PROMISES: [(&str, &str); 20] = [
    ("status", "--json prints"),
    ("check", "--json prints"),
    ("reset", "--json prints"),
    ("circuit auto", "--json prints"),
    ("flush", "--json prints"),
    ("warm --wait", "--json prints"),
    ("adopt", "--json prints"),
    ("backup copy.db", "--json prints"),
    ("pending", "--json prints"),
    ("parked", "--json prints"),
    ("parked show 1", "show: one of the rows"),
    ("conflicts", "--json prints"),
    ("conflicts show 1", "show: one of the rows"),
    ("cloud-sql --role app", "--json prints"),
    ("doctor", "--json prints"),
    ("config", "--json prints"),
    ("parked retry", "retry:"),
    ("parked discard 1", "discard:"),
    ("conflicts restore 1", "restore:"),
    ("pending", "a row is"),
];

/// What `--json` prints is what the help of the verb says, name by name, whatever else is going on; and in words every verb
/// keeps within 80 columns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_what_the_help_says() {
    for (words, _) in VERBS.iter().filter(|(_, needs)| *needs != Needs::Nothing) {
        assert!(PROMISES.iter().any(|(promise, _)| promise.starts_with(words)), "{words}: promised nowhere");
    }
    let device = Device::new().await;
    device
        .cloud
        .execute_batch("CREATE TABLE note (id bigint PRIMARY KEY, body text CHECK (body <> 'refused'))")
        .await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'one');",
    );
    device.proxy.start();
    let supervisor = device.start();
    device.wait_until_flushed();
    device.proxy.stop();
    device.wait_for_status("it is offline", |status| status["sync"]["state"] == "offline");
    device.cloud.execute_batch("UPDATE note SET body = 'there' WHERE id = 1").await;
    shell::sqlite3_shell(
        device.path(),
        "UPDATE note SET body = 'here' WHERE id = 1; INSERT INTO note VALUES (2, 'refused');",
    );
    device.proxy.start();
    device.wait_for_status("a conflict and a parked row", |status| {
        (&status["sync"]["conflicts"], &status["sync"]["parked"]) == (&1.into(), &1.into())
    });
    for (line, behind) in PROMISES {
        let words: Vec<&str> = line.split(' ').collect();
        if behind == "a row is" {
            device.proxy.stop();
            device.wait_for_status("it is offline", |status| status["sync"]["state"] == "offline");
            shell::sqlite3_shell(device.path(), "INSERT INTO note VALUES (3, 'waits');");
        }
        if line == "parked discard 1" {
            // It was to be sent again.
            device.wait_for_status("it is parked again", |status| {
                (&status["sync"]["pending"], &status["sync"]["parked"]) == (&0.into(), &1.into())
            });
        }
        let page = help(&words[..1]);
        let told = output(device.command().args(&words).arg("--json"));
        let (json, errors) = said(&told);
        // A parked row is red.
        let status = i32::from(line == "doctor");
        assert_eq!((told.status.code(), errors.as_str()), (Some(status), ""), "{line}: {json}");
        let value: Value = serde_json::from_str(&json).unwrap();
        let first = match (line, behind) {
            ("config", _) => &value[0],
            (_, "a row is") => &value["rows"][0],
            _ => &value,
        };
        assert_eq!(keys(first), promised(&page, behind), "{line}: {page}");
        if line == "backup copy.db" {
            fs::remove_file(device.folder.path().join("copy.db")).unwrap();
        }
        // The widths of the others are looked at elsewhere, or are those of one short line.
        let pages =
            ["status", "check", "adopt", "backup copy.db", "pending", "parked", "parked show 1", "conflicts"];
        if pages.contains(&line) || line == "conflicts show 1" {
            let told = said(&output(device.command().args(&words))).0;
            assert!(told.lines().all(|line| line.chars().count() <= 80), "{line}: {told}");
            let _ = fs::remove_file(device.folder.path().join("copy.db"));
        }
    }
    supervisor.stop();
}

// ---------------------------------------------------------------------------------------------------------
// Without a supervisor
// ---------------------------------------------------------------------------------------------------------

/// One line on standard error, without anything that a terminal would obey, and nothing on standard output.
fn one_line(words: &[&str], told: &Output, status: i32) -> String {
    let (out, err) = said(told);
    assert_eq!(told.status.code(), Some(status), "{words:?}: {out}{err}");
    assert_eq!((out.as_str(), err.lines().count()), ("", 1), "{words:?}: {err:?}");
    assert!(
        err.starts_with("run_supervisor: ") && !err.trim_end().contains(char::is_control),
        "{words:?}: {err:?}"
    );
    err
}

/// Whether it runs on `file`, without a supervisor or anything else that it could ask.
fn alone(folder: &Path) -> Command {
    let mut command = command(folder);
    // Nothing listens on port 1.
    command.env("CLOUD_SQL_PROXY_PORT", "1");
    command
}

/// What each verb says where no supervisor runs: those that need one say so and what to do, the others do what they can.
fn assert_alone(folder: &Path, file_is_there: bool) {
    for (words, needs) in verbs() {
        let told = output(alone(folder).args(&words));
        match needs {
            Needs::Supervisor => {
                let line = one_line(&words, &told, 3);
                assert!(line.contains("not running: no supervisor listens on tidewater.db.sock"), "{line}");
                assert!(line.contains("start `run_supervisor` on this database"), "{line}");
            }
            Needs::File if file_is_there && words.contains(&"1") => {
                assert!(one_line(&words, &told, 1).contains('1'));
            }
            Needs::File if file_is_there => assert_eq!(said(&told).1, "", "{words:?}"),
            Needs::File => assert!(one_line(&words, &told, 1).contains("tidewater.db"), "{words:?}"),
            Needs::Either => {
                let (out, err) = said(&told);
                assert!(out.lines().count() > 20 && err.lines().count() <= 1, "{words:?}: {out}{err}");
            }
            Needs::Nothing => assert_eq!((told.status.code(), said(&told).1.as_str()), (Some(0), "")),
        }
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// In an empty folder nothing is left behind; beside the socket of a supervisor that was killed, every verb says the same, and
/// the socket stays as it is.
#[test]
fn without_a_supervisor_every_verb_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    assert_alone(folder.path(), false);
    assert_eq!(names(folder.path()), BTreeSet::new());

    let supervisor = crate::process::Process::ready(&mut alone(folder.path()));
    let socket = folder.path().join("tidewater.db.sock");
    wait::until_blocking("the socket is there", PATIENCE, || {
        socket.exists().then_some(()).ok_or_else(|| "no socket".to_owned())
    });
    supervisor.kill();
    let (before, inode) = (names(folder.path()), fs::symlink_metadata(&socket).unwrap().ino());
    assert_alone(folder.path(), true);
    assert_eq!(names(folder.path()), before);
    assert_eq!(fs::symlink_metadata(&socket).unwrap().ino(), inode);
}

// ---------------------------------------------------------------------------------------------------------
// Somebody else listens
// ---------------------------------------------------------------------------------------------------------

/// What a peer that is no supervisor does with a connection.
type Answer = fn(&mut UnixStream);

/// It listens in the place of the supervisor for as long as the test runs.
fn listening(folder: &Path, answer: Answer) {
    let listener = UnixListener::bind(folder.join("tidewater.db.sock")).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || answer(&mut stream));
        }
    });
}

/// Reads the request, as a supervisor would.
fn request(stream: &mut UnixStream) {
    let mut line = String::new();
    let _ = BufReader::new(&mut *stream).read_line(&mut line);
}

/// All verbs at once, because one that waits costs nothing but its time.
fn each_verb(run: impl Fn(&[&str]) -> Output + Sync, judge: impl Fn(&[&str], Needs, &Output)) {
    let verbs: Vec<_> = verbs().collect();
    let outputs: Vec<Output> = thread::scope(|scope| {
        let running: Vec<_> = verbs.iter().map(|(words, _)| scope.spawn(|| run(words))).collect();
        running.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for ((words, needs), output) in verbs.iter().zip(&outputs) {
        judge(words, *needs, output);
    }
}

/// Whoever listens there: garbage, silence, an end before the answer, ten megabytes without an end, JSON that is no answer,
/// and an answer that would clear the screen. Each verb that asks ends with status 1 and one harmless line; `doctor` goes on
/// without an answer and marks the supervisor; the others do not care.
#[test]
fn a_hostile_peer_is_one_line_for_every_verb() {
    let peers: [(&str, Answer); 7] = [
        ("cannot be understood", |stream| {
            request(stream);
            let _ = stream.write_all(b"\x00\xff\x1b[2J is what I am\n");
        }),
        ("did not answer within 10 s", |stream| {
            // Until the other side has had enough.
            let _ = stream.read_to_end(&mut vec![]);
        }),
        ("ended before its end", |stream| request(stream)),
        ("ended before its end", |stream| {
            request(stream);
            let _ = stream.write_all(&vec![b'['; 10 << 20]);
        }),
        ("cannot be understood", |stream| {
            request(stream);
            let _ = stream.write_all(&[vec![b'['; 10 << 20], b"\n".to_vec()].concat());
        }),
        ("cannot be understood", |stream| {
            request(stream);
            let _ = stream.write_all(b"{\"fine\":{\"sync\":{}}}\n");
        }),
        ("second line", |stream| {
            request(stream);
            let text = "{\"error\":{\"message\":\"\\u001b[2J\\u001b]0;mine\\u0007\\nsecond line\",\"retry\":false}}\n";
            let _ = stream.write_all(text.as_bytes());
        }),
    ];
    thread::scope(|scope| {
        for (says, peer) in peers {
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                listening(folder.path(), peer);
                each_verb(
                    |words| output(alone(folder.path()).args(words)),
                    |words, needs, told| match (needs, words[0]) {
                        (Needs::Supervisor, _) | (_, "config") => {
                            let line = one_line(words, told, 1);
                            assert!(line.contains(says), "{words:?}: {says:?} is not in {line}");
                        }
                        (Needs::File, _) => drop(one_line(words, told, 1)),
                        (Needs::Either, _) => {
                            let (out, err) = said(told);
                            let line =
                                out.lines().find(|line| line.contains(" supervisor ")).unwrap().to_owned();
                            assert!(line.starts_with("✗ supervisor") && err.is_empty(), "{out}{err}");
                            assert!(!out.replace('\n', "").contains(char::is_control), "{out:?}");
                        }
                        (Needs::Nothing, _) => assert_eq!(told.status.code(), Some(0)),
                    },
                );
                assert_eq!(names(folder.path()), BTreeSet::from(["tidewater.db.sock".to_owned()]));
            });
        }
    });
}

/// A user that is not the supervisor's can neither ask it nor read the file: each verb says so, in one line.
#[test]
fn another_user_is_told_so_by_every_verb() {
    const NOBODY: u32 = 65_534;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        #[allow(clippy::print_stderr, reason = "so that nobody takes this for a test that ran")]
        {
            eprintln!("not run: only root can be another user");
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary: PathBuf = folder.path().join("run_supervisor");
    fs::copy(env!("CARGO_BIN_EXE_run_supervisor"), &binary).unwrap();
    let supervisor = crate::process::Process::ready(&mut alone(folder.path()));
    wait::until_blocking("it answers", PATIENCE, || {
        let told = output(alone(folder.path()).arg("status"));
        told.status.success().then_some(()).ok_or_else(|| format!("{told:?}"))
    });
    let before = (names(folder.path()), supervisor.lines());
    each_verb(
        |words| {
            let mut command = command_of(&binary, folder.path());
            output(command.env("CLOUD_SQL_PROXY_PORT", "1").args(words).uid(NOBODY).gid(NOBODY))
        },
        |words, needs, told| match (needs, words[0]) {
            (Needs::Supervisor, _) | (_, "config") => {
                let line = one_line(words, told, 1);
                assert!(
                    line.contains("not allowed: ")
                        && line.contains("as the user that the supervisor runs as"),
                    "{line}"
                );
            }
            (Needs::File, _) => assert!(one_line(words, told, 1).contains("Permission denied"), "{words:?}"),
            (Needs::Either, _) => {
                let (out, err) = said(told);
                assert!(
                    out.contains("✗ file") && out.contains("✗ supervisor") && err.is_empty(),
                    "{out}{err}"
                );
            }
            (Needs::Nothing, _) => assert_eq!(told.status.code(), Some(0)),
        },
    );
    assert_eq!((names(folder.path()), supervisor.lines()), before, "the supervisor does not notice");
    supervisor.stop();
}

// ---------------------------------------------------------------------------------------------------------
// A crowd
// ---------------------------------------------------------------------------------------------------------

/// A thousand connections that say nothing, held by a process of their own.
struct Crowd(Child);

impl Crowd {
    fn on(socket: &Path) -> Self {
        let script = "import resource, socket, sys, time\n\
                      hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
                      resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))\n\
                      held = []\n\
                      for _ in range(1000):\n    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n\
                      print('held', flush=True)\ntime.sleep(600)";
        let mut python = Command::new("python3");
        let mut child = python.args(["-c", script]).arg(socket).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(child)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// A thousand idle connections, and clients that talk nonsense: each verb either gets its answer or hears "busy", rows go on to
/// the cloud, the log says nothing of it, and afterwards everything is as it was, down to the open files.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_are_not_noticed() {
    let device = Device::new().await;
    shell::sqlite3_shell(device.path(), "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);");
    device.proxy.start();
    // A second connection to the cloud does not stay for long; a second one to the file, which two reads at once would open, would.
    let supervisor = crate::process::Process::ready(
        device.command().env("TIDEWATER_CLOUD__IDLE_S", "0.2").env("TIDEWATER_SQLITE__READ_POOL_MAX", "1"),
    );
    device.wait_until_flushed();
    assert!(output(device.command().arg("pending")).status.success());
    let socket = device.folder.path().join("shop.db.sock");
    let (files, lines) = (open_files(supervisor.id()), supervisor.lines().len());

    let crowd = Crowd::on(&socket);
    shell::sqlite3_shell(device.path(), "INSERT INTO note (body) VALUES ('in the crowd');");
    device.wait_until_equal(&["note"]).await;
    each_verb(
        |words| output(device.command().args(words)),
        |words, needs, told| {
            let (out, err) = said(told);
            let busy = err.contains("busy") || out.contains("busy");
            match needs {
                // Who came to a place, or found that what was asked for is not there.
                Needs::Supervisor | Needs::Either => {
                    assert!(busy || told.status.success() || words.contains(&"1"), "{words:?}: {out}{err}");
                }
                Needs::File | Needs::Nothing => assert!(!busy, "{words:?}: {out}{err}"),
            }
            assert!(err.lines().count() <= 1, "{words:?}: {err}");
        },
    );
    for nonsense in [&b"\x00\xff\n"[..], b"{\"verb\":\"explode\"}\n", &vec![b'x'; 10 << 20]] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may be turned away before all of this is written.
        let _ = stream.write_all(nonsense);
    }
    drop(crowd);
    wait::until_blocking("every connection is gone", PATIENCE, || {
        let now = open_files(supervisor.id());
        if now <= files { Ok(()) } else { Err(format!("{now} files are open, {files} were")) }
    });
    assert!(device.status().is_ok());
    // What verbs that found a place have done is all that there is.
    let log = supervisor.lines().split_off(lines);
    let by_verbs = ["Proxy detector reset", "Circuit decides by itself again"];
    assert!(log.iter().all(|line| by_verbs.iter().any(|verb| line.contains(verb))), "{log:#?}");
    supervisor.stop();
}
