//! What the tests of the real binary share: a supervisor in a process of its own, with its log line by line.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses the parts it needs, by `mod process`")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tidewater_test_support::{FaultProxy, Mode, Postgres, compare, postgres, shell, wait};

/// Long enough for a loaded machine; a wait ends when its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The line after which reads, writes and verbs work.
pub const READY: &str = "✅ Hybrid sync initialized";

/// The command in a folder, without any of our variables, and with every reason to print a backtrace.
pub fn command(folder: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_run_supervisor")), folder)
}

/// [`command`] for a copy of the binary that is elsewhere.
pub fn command_of(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(folder).stdin(Stdio::null()).env("RUST_BACKTRACE", "1");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        let ours = ["CLOUD_SQL_", "TIDEWATER_", "JARVIS_"];
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // Tests run side by side, and one port is for one of them.
    command.env("TIDEWATER_HTTP__LISTEN", "off");
    command
}

/// A supervisor that runs. It is killed and reaped when this is dropped, whatever the reason.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grew: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    all: Vec<(Duration, String)>,
    ended: bool,
}

impl Process {
    /// Starts the command, with its standard error read line by line.
    pub fn spawn(command: &mut Command) -> Self {
        let started = Instant::now();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary cannot be started");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let log = Arc::<Log>::default();
        let filling = log.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.lines() {
                let Ok(line) = line else { break };
                filling.lines.lock().unwrap().all.push((started.elapsed(), line));
                filling.grew.notify_all();
            }
            filling.lines.lock().unwrap().ended = true;
            filling.grew.notify_all();
        });
        Self { child, started, log, reader: Some(reader) }
    }

    /// [`spawn`](Self::spawn), and waits until it works.
    pub fn ready(command: &mut Command) -> Self {
        let process = Self::spawn(command);
        process.wait_for_line(READY);
        process
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().all.iter().map(|(_, line)| line.clone()).collect()
    }

    /// How many lines contain the text.
    pub fn count(&self, part: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(part)).count()
    }

    /// Waits for a line that contains the text, and says how long after the start it came.
    pub fn wait_for_line(&self, part: &str) -> Duration {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some((at, _)) = lines.all.iter().find(|(_, line)| line.contains(part)) {
                return *at;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !lines.ended, "no line says {part:?}: {:#?}", lines.all);
            (lines, _) = self.log.grew.wait_timeout(lines, left).unwrap();
        }
    }

    /// Waits until there is a line more than `known`, or the time is over: then there is none, and that is `true`.
    pub fn stays_silent(&self, known: usize, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.all.len() > known || lines.ended {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            (lines, _) = self.log.grew.wait_timeout(lines, left).unwrap();
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end, and returns its status with everything that it wrote.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = wait::until_blocking("the process ends", PATIENCE, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("it runs: {:#?}", self.lines())),
            Err(error) => Err(error.to_string()),
        });
        self.reader.take().unwrap().join().unwrap();
        (status, self.lines())
    }

    /// An orderly end; returns the log.
    pub fn stop(self) -> Vec<String> {
        self.signal("TERM");
        let (status, lines) = self.wait();
        assert_eq!(status.code(), Some(0), "{lines:#?}");
        lines
    }

    /// What no program can resist, at once; returns the log.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.wait().1
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What follows the time and the level of a line.
pub fn message(line: &str) -> &str {
    line.splitn(3, " | ").nth(2).unwrap_or_else(|| panic!("not a line of the log: {line:?}"))
}

/// A run that ends by itself.
pub fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Kept(Some(child)).output()
}

/// A child that is not expected to stay; killed when it does.
struct Kept(Option<Child>);

impl Kept {
    fn output(mut self) -> Output {
        let child = self.0.as_mut().unwrap();
        wait::until_blocking("the command ends", PATIENCE, || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A device in front of a database of its own, with a proxy that is not running yet.
pub struct Device {
    pub folder: TempDir,
    pub cloud: postgres::Database,
    pub proxy: FaultProxy,
}

impl Device {
    pub async fn new() -> Self {
        let server = Postgres::shared();
        let cloud = server.create_database().await;
        let proxy = FaultProxy::reserve(server.address());
        Self { folder: tempfile::tempdir().unwrap(), cloud, proxy }
    }

    /// Another device in front of the same database.
    pub fn another(&self) -> Self {
        let proxy = FaultProxy::reserve(Postgres::shared().address());
        Self { folder: tempfile::tempdir().unwrap(), cloud: self.cloud.clone(), proxy }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("shop.db")
    }

    /// The supervisor of this device, in a hurry.
    pub fn command(&self) -> Command {
        let mut command = command(self.folder.path());
        command
            .env("TIDEWATER_DATABASE", self.path())
            .env("CLOUD_SQL_PROXY_PORT", self.proxy.port().to_string())
            .env("CLOUD_SQL_DATABASE", &self.cloud.name)
            .env("CLOUD_SQL_USER", &self.cloud.user)
            .env("CLOUD_SQL_PASSWORD", &self.cloud.password)
            .env("TIDEWATER_PROXY__LISTEN_INTERVAL_S", "0.05")
            .env("TIDEWATER_PROXY__HEALTH_INTERVAL_S", "1")
            .env("TIDEWATER_SYNC__PULL_INTERVAL_S", "0.1")
            .env("TIDEWATER_SYNC__RETRY_DELAY_S", "0.1");
        command
    }

    /// A running supervisor whose cloud went silent with a row still pending. Nothing but a signal, or what an orderly end
    /// may take, ends that silence: every timeout of the network is longer than the test's patience.
    pub async fn start_silenced(&self, command: &mut Command) -> Process {
        shell::sqlite3_shell(self.path(), "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);");
        self.proxy.start();
        command.env("TIDEWATER_CLOUD__STATEMENT_TIMEOUT_S", "600").env("CLOUD_SQL_PROXY_TIMEOUT", "60");
        let process = Process::ready(command);
        self.wait_until_equal(&["note"]).await;
        self.wait_until_flushed();
        self.proxy.set_mode(Mode::Swallow);
        shell::sqlite3_shell(self.path(), "INSERT INTO note (body) VALUES ('into the silence');");
        self.wait_for_status("a flush is under way", |status| {
            status["sync"]["pending"] == 1 && status["sync"]["state"] != "idle"
        });
        process
    }

    /// Waits until the one that runs has begun to end: its control socket goes first.
    pub fn wait_until_ending(&self) {
        let socket = self.folder.path().join("shop.db.sock");
        wait::until_blocking("the control socket is gone", PATIENCE, || match socket.exists() {
            true => Err("it is there".to_owned()),
            false => Ok(()),
        });
    }

    pub fn start(&self) -> Process {
        Process::ready(&mut self.command())
    }

    /// `status --json` of the one that runs.
    pub fn status(&self) -> Result<Value, String> {
        let output = output(self.command().args(["status", "--json"]));
        match output.status.code() {
            Some(0) => serde_json::from_slice(&output.stdout).map_err(|error| error.to_string()),
            _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Waits for a status.
    pub fn wait_for_status(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait::until_blocking(what, PATIENCE, || {
            let status = self.status()?;
            if holds(&status) { Ok(status) } else { Err(format!("{status:#}")) }
        })
    }

    pub fn wait_until_flushed(&self) -> Value {
        self.wait_for_status("everything is flushed", |status| {
            status["sync"]["pending"] == 0 && status["sync"]["state"] == "idle"
        })
    }

    pub async fn wait_until_equal(&self, tables: &[&str]) {
        let client = self.cloud.connect().await;
        compare::wait_until_equal(&self.path(), &client, "public", tables, PATIENCE).await;
    }
}
