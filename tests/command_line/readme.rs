//! Every command of the README, run as it stands there, in its order: the tour, and what follows it.
//!
//! What the test puts in the place of something is in [`substituted`]: the ports, because tests run side by side, and the binary
//! of this build in the place of the release's. `make run` and `make test` are those two commands of which the tests
//! themselves are a part; in the tour the supervisor is what `make run` would start.

use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use tidewater_test_support::{FaultProxy, wait};

use super::said;
use crate::process::{PATIENCE, Process, output};

const README: &str = include_str!("../../README.md");

/// Commands that build and run everything; this test is a part of the second.
const EXEMPT: [&str; 2] = ["make run", "make test"];

/// The commands of the README's blocks for a shell, in order, without their comments. One that goes on in the next line is one.
fn commands() -> Vec<String> {
    let mut all: Vec<String> = vec![];
    let (mut inside, mut goes_on) = (false, false);
    for line in README.lines() {
        match line {
            "```sh" => inside = true,
            line if line.starts_with("```") => inside = false,
            line if inside => {
                let line = line.split("  #").next().unwrap().trim();
                if goes_on {
                    let last = all.last_mut().unwrap();
                    *last = format!("{last} {line}");
                } else if !line.is_empty() {
                    all.push(line.to_owned());
                }
                goes_on = line.ends_with('|') || line.ends_with('\\');
            }
            _ => {}
        }
    }
    all
}

/// Where the README's reader is: a folder with the repository's examples and the binary where a release build has it.
struct Desk {
    folder: tempfile::TempDir,
    /// Held, so that nobody else takes it while PostgreSQL is not there yet.
    postgres: FaultProxy,
    http: u16,
    left: Vec<String>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let release = folder.path().join("target/release");
        fs::create_dir_all(&release).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (there, name) in [
            (PathBuf::from(env!("CARGO_BIN_EXE_run_supervisor")), release.join("run_supervisor")),
            (here.join("examples"), folder.path().join("examples")),
        ] {
            std::os::unix::fs::symlink(there, name).unwrap();
        }
        let left = commands().into_iter().filter(|line| !EXEMPT.contains(&line.as_str())).collect();
        let postgres = FaultProxy::reserve("127.0.0.1:1".parse().unwrap());
        Self { folder, postgres, http: 0, left }
    }

    /// Takes the next command of the README, which has to be this one.
    fn take(&mut self, begins: &str) -> String {
        assert!(!self.left.is_empty(), "the README has no command any more that begins with {begins:?}");
        let command = self.left.remove(0);
        assert!(
            command.starts_with(begins),
            "the README says {command:?}, and no step of this test covers it"
        );
        command
    }

    fn substituted(&self, command: &str) -> String {
        let script = "sh examples/throwaway-postgres.sh";
        command
            // Whoever runs the tests in the background ignores Ctrl-C, and a shell that was started so cannot but do the same.
            .replace(script, &format!("exec env --default-signal=INT {script} {}", self.postgres.port()))
            .replace("127.0.0.1:8432", &format!("127.0.0.1:{}", self.http))
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = crate::process::command_of(Path::new("/bin/sh"), self.folder.path());
        let release = self.folder.path().join("target/release");
        let path = format!("{}:{}", release.display(), std::env::var("PATH").unwrap());
        shell.args(["-c", &self.substituted(command)]).env("PATH", path);
        // The reader waits up to 10 s for what plain SQL changes; the test has less patience.
        shell.env("TIDEWATER_SYNC__PULL_INTERVAL_S", "1");
        // What `export` in the tour sets, and where PostgreSQL listens instead of on 5432.
        for name in ["CLOUD_SQL_DATABASE", "CLOUD_SQL_USER", "CLOUD_SQL_PASSWORD"] {
            shell.env(name, "tour");
        }
        let port = self.postgres.port().to_string();
        shell.env("CLOUD_SQL_PROXY_PORT", &port).env("PGPORT", &port);
        shell
    }

    /// Runs the next command as it stands, and hands back what it says.
    fn run(&mut self, begins: &str) -> String {
        let command = self.take(begins);
        let told = output(&mut self.shell(&command));
        let (out, err) = said(&told);
        assert!(told.status.success(), "{command}: {out}{err}");
        out
    }
}

/// The throwaway PostgreSQL, with whoever sits in front of it.
struct Server {
    script: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start(shell: &mut Command) -> Self {
        let mut script =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(script.stdout.take().unwrap()).lines();
        let mut server = Self { script, said };
        server.hear("PostgreSQL listens on 127.0.0.1:");
        server
    }

    fn hear(&mut self, begins: &str) {
        let line = self.said.next().unwrap().unwrap();
        assert!(line.starts_with(begins), "{line}");
    }

    fn press_ctrl_c(&self) {
        let interrupt = format!("kill -INT {}", self.script.id());
        assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    }

    fn press_enter(&mut self) {
        self.script.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its input is over, so that it ends, and its data goes.
        drop(self.script.stdin.take());
        self.press_ctrl_c();
        let _ = self.script.wait();
    }
}

/// The five minutes, and the commands of the later sections, on the same desk.
#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let mut desk = Desk::new();
    // 1. `make run` is exempt; what it starts is not.
    let export = desk.take("export ");
    for name in ["CLOUD_SQL_DATABASE=tour", "CLOUD_SQL_USER=tour", "CLOUD_SQL_PASSWORD=tour"] {
        assert!(export.contains(name), "{export}");
    }
    let supervisor =
        Process::spawn(desk.shell("exec run_supervisor").env("TIDEWATER_HTTP__LISTEN", "127.0.0.1:0"));
    supervisor.wait_for_line(crate::process::READY);
    supervisor.wait_for_line("HTTP on ");
    let line = supervisor.lines().into_iter().find(|line| line.contains("HTTP on ")).unwrap();
    desk.http = line.rsplit(':').next().unwrap().trim().parse().unwrap();
    for line in README
        .lines()
        .skip_while(|line| !line.contains("Proxy Detector initialized"))
        .take_while(|line| *line != "```")
    {
        let message = crate::process::message(line).replace("5432", &desk.postgres.port().to_string());
        supervisor.wait_for_line(&message);
    }

    // 2. Write with anything.
    desk.run("sqlite3 -cmd \".timeout 5000\" tidewater.db \"CREATE TABLE note");
    desk.run("sqlite3 -cmd \".timeout 5000\" tidewater.db \"INSERT INTO note");
    let status = desk.take("target/release/run_supervisor status");
    wait::until_blocking("status says so", PATIENCE, || {
        let told = said(&output(&mut desk.shell(&status))).0;
        if told.contains("1 pending") { Ok(()) } else { Err(told) }
    });

    // 3. Start PostgreSQL.
    let start = desk.take("sh examples/throwaway-postgres.sh");
    let mut server = Server::start(&mut desk.shell(&start));
    supervisor.wait_for_line("✅ CloudSQL reconnected - warming cache and syncing");
    let select = desk.take("PGPASSWORD=tour psql -h 127.0.0.1 -U tour tour -c \"SELECT");
    wait::until_blocking("the row is there", PATIENCE, || {
        let (out, err) = said(&output(&mut desk.shell(&select)));
        if out.contains("written offline") { Ok(()) } else { Err(out + &err) }
    });

    // 4. The other way.
    assert_eq!(desk.run("PGPASSWORD=tour psql -h 127.0.0.1 -U tour tour -c \"UPDATE"), "UPDATE 1\n");
    let select = desk.take("sqlite3 tidewater.db \"SELECT");
    wait::until_blocking("the change comes home", PATIENCE, || {
        let out = said(&output(&mut desk.shell(&select))).0;
        if out.contains("edited in the cloud") { Ok(()) } else { Err(out) }
    });

    // 5. A conflict: the commands as they stand, in one shell.
    let steps = [
        "export PGPASSWORD=tour; run=",
        "sqlite3 -cmd \".timeout 5000\" tidewater.db \"CREATE TABLE stock",
        "$run flush --wait",
        "$run circuit open",
        "sqlite3 -cmd \".timeout 5000\" tidewater.db \"UPDATE stock",
        "psql -h 127.0.0.1 -U tour tour -c \"UPDATE stock",
        "$run circuit auto",
        "sqlite3 tidewater.db \"SELECT pieces",
        "$run conflicts",
        "$run conflicts restore 1",
    ];
    let conflict = steps.map(|begins| desk.take(begins)).join("\n");
    let told = output(&mut desk.shell(&format!("set -e\n{conflict}")));
    let (out, err) = said(&told);
    assert!(told.status.success() && out.contains("\n15\n"), "{out}{err}");
    let restored = "PGPASSWORD=tour psql -h 127.0.0.1 -U tour tour -Atc 'SELECT pieces FROM stock'";
    wait::until_blocking("what lost is everywhere again", PATIENCE, || {
        let (out, err) = said(&output(&mut desk.shell(restored)));
        if out == "7\n" { Ok(()) } else { Err(out + &err) }
    });

    // 6. Break it: in words there, and so here.
    server.press_ctrl_c();
    server.hear("It is stopped.");
    let write = "sqlite3 -cmd '.timeout 5000' tidewater.db \"INSERT INTO note (body) VALUES ('while it was broken')\"";
    assert!(output(&mut desk.shell(write)).status.success());
    supervisor.kill();
    server.press_enter();
    server.hear("PostgreSQL listens on 127.0.0.1:");
    let http = format!("127.0.0.1:{}", desk.http);
    let supervisor = Process::ready(desk.shell("exec run_supervisor").env("TIDEWATER_HTTP__LISTEN", http));
    let count = "PGPASSWORD=tour psql -h 127.0.0.1 -U tour tour -Atc \"SELECT count(*), count(DISTINCT body) FROM note\"";
    wait::until_blocking("once each", PATIENCE, || {
        let (out, err) = said(&output(&mut desk.shell(count)));
        if out == "2|2\n" { Ok(()) } else { Err(format!("{out}{err}{:#?}", supervisor.lines())) }
    });

    // HTTP.
    let flushed: serde_json::Value =
        serde_json::from_str(&desk.run("printf 'Authorization: Bearer")).unwrap();
    assert_eq!((&flushed["done"], &flushed["pending"]), (&true.into(), &0.into()));

    // What an administrator runs, as one.
    let admin = |shell: &mut Command| {
        shell.env("PGHOST", "127.0.0.1").env("PGUSER", "postgres").env_remove("PGPASSWORD");
        let told: Output = output(shell);
        assert!(told.status.success(), "{told:?}");
    };
    admin(&mut desk.shell("psql -d postgres -c 'CREATE DATABASE orders' -c 'CREATE ROLE app LOGIN'"));
    let command = desk.take("run_supervisor cloud-sql --role app | psql -v ON_ERROR_STOP=1 -d orders");
    admin(&mut desk.shell(&command));
    admin(&mut desk.shell(
        "psql -d orders -v ON_ERROR_STOP=1 -c 'SELECT id, body FROM note; SELECT * FROM tidewater.devices'",
    ));

    assert_eq!(desk.left, Vec::<String>::new(), "no step of this test covers these commands of the README");
    supervisor.stop();
    drop(server);
}

/// Each verb that the README's table names is one, and each that there is is named.
#[test]
fn the_readme_names_every_verb() {
    use clap::CommandFactory as _;
    let command = tidewater::cli::Cli::command();
    let known: Vec<&str> =
        command.get_subcommands().map(|verb| verb.get_name()).filter(|name| *name != "help").collect();
    let table: Vec<&str> = README
        .lines()
        .skip_while(|line| !line.starts_with("| verb | what it does |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(table.len() > 10, "{table:#?}");
    // The first column has the verb, and others that are called alike.
    let mut named: Vec<&str> = table
        .iter()
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`'))
        .filter_map(|code| code.trim_start_matches("run_supervisor ").split(' ').next())
        .filter(|word| !word.is_empty() && *word != ",")
        .collect();
    named.sort_unstable();
    let mut known = known.clone();
    known.sort_unstable();
    assert_eq!(named, known);
}

/// The examples that the README says to run end by themselves, with what they are about in their log.
#[test]
fn the_examples_of_the_readme_run() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = FaultProxy::reserve("127.0.0.1:1".parse().unwrap());
    let says = [
        ("embed -- notes.db", "1 notes in the file, 1 row(s) pending"),
        ("supervised", "1 restart, 1 panic"),
    ];
    let named: Vec<&str> =
        README.split('`').filter_map(|code| code.strip_prefix("cargo run --example ")).collect();
    assert_eq!(named, says.map(|(command, _)| command), "no step of this test covers these");
    for (command, says) in says {
        let (name, arguments) = command.split_once(" -- ").unwrap_or((command, ""));
        let binary =
            Path::new(env!("CARGO_BIN_EXE_run_supervisor")).parent().unwrap().join("examples").join(name);
        if !binary.exists() {
            #[allow(clippy::print_stderr, reason = "so that nobody takes this for a run")]
            {
                eprintln!(
                    "{name} is not built here: cargo builds the examples when it is not told which tests to build"
                );
            }
            continue;
        }
        let mut example = crate::process::command_of(&binary, folder.path());
        example.args(arguments.split_whitespace()).env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string());
        let told = output(&mut example);
        let (_, log) = said(&told);
        assert!(told.status.success() && log.contains(says), "{command}: {log}");
    }
}
