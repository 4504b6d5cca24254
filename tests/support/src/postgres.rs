//! A throwaway PostgreSQL server.
//!
//! A guard process stands between the test process and the server: a small shell script whose standard input
//! is a pipe that only the test process holds. It sets the server up, starts and stops it on request, and
//! when the pipe closes, however the test process ended (normally, by a panic, `abort`, SIGKILL), it
//! stops the server, its own child, and removes the folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use crate::port::Port;

/// `$1`: where the programs are, `$2`: the folder. Requests come line by line, each is answered by one line.
///
/// The server is a child of this shell, and no other program is run in the foreground while it lives, so
/// that the process id stays the server's until `wait` has taken it.
const GUARD: &str = r#"
trap '' HUP INT TERM PIPE
bin=$1 dir=$2 pid=
cd "$dir" || exit 1

halt() {
    [ -n "$pid" ] || return 0
    kill -s "$1" "$pid" 2>/dev/null
    kill -s CONT "$pid" 2>/dev/null
    # In its very first moments the server does not listen to signals yet: ask again until it is gone.
    ( while sleep 1; do kill -s "$2" "$pid" 2>/dev/null || exit 0; done ) </dev/null >/dev/null 2>&1 &
    again=$!
    wait "$pid"
    kill -s KILL "$again" 2>/dev/null
    wait "$again"
    pid=
}

init() {
    ( trap - HUP INT TERM PIPE
      exec "$bin/initdb" -D "$dir/data" --no-sync --encoding=UTF8 --locale="$1" --username=postgres \
          --pwfile="$dir/password" --auth=scram-sha-256 ) </dev/null >"$dir/initdb.log" 2>&1
}

# The port and the password of the server that is copied, and the file that tells the copy how to begin.
copy() {
    ( trap - HUP INT TERM PIPE
      PGPASSWORD=$2 exec "$bin/pg_basebackup" -D "$dir/data" -h 127.0.0.1 -p "$1" -U postgres -c fast -X stream \
          --no-sync ) </dev/null >"$dir/initdb.log" 2>&1 || return 1
    [ -z "$3" ] || : >"$dir/data/$3"
}

start() {
    ( trap - HUP INT TERM PIPE
      exec "$bin/postgres" -D "$dir/data" -p "$1" ) </dev/null >>"$dir/server.log" 2>&1 &
    pid=$!
    looks=0
    while [ "$looks" -lt 3000 ]; do
        # The eighth line of this file is the server's own word for its state. A standby that lets nobody in
        # gets no further than that; any other server passes through it.
        if { read -r first && [ "$first" = "$pid" ] && read -r _ && read -r _ && read -r _ && read -r _ &&
             read -r _ && read -r _ && read -r state; } 2>/dev/null <"$dir/data/postmaster.pid" &&
           { [ "${state%% *}" = ready ] || { [ "${state%% *}" = standby ] && [ -e data/standby.signal ]; }; }; then
            return 0
        fi
        sleep 0.02
        kill -0 "$pid" 2>/dev/null || { pid=; return 1; }
        looks=$((looks + 1))
    done
    return 1
}

while read -r request argument; do
    case $request in
    init) { init "$argument" && echo done; } || { rm -rf "$dir/data"; echo failed; } ;;
    copy) { copy $argument && echo done; } || { rm -rf "$dir/data"; echo failed; } ;;
    start) { start "$argument" && echo "$pid"; } || { halt QUIT QUIT; echo failed; } ;;
    fast) halt INT INT; echo done ;;
    immediate) halt QUIT QUIT; echo done ;;
    esac
done
halt QUIT QUIT
cd /
rm -rf "$dir"
"#;

const MISSING: &str = "PostgreSQL's server programs were not found: run `make test`, which installs them, or \
                       `apt-get install postgresql`";

/// How a server is to be set up. [`Default`] is quick and not safe against a power cut.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether the server keeps its log, so that a copy of it can be recovered to a point in time.
    pub archive: bool,
    /// Whether the server waits for the disk (`fsync`, `synchronous_commit`, `full_page_writes`).
    pub fsync: bool,
    /// Lines added to `postgresql.conf`, for instance `max_wal_senders = 0`.
    pub settings: Vec<String>,
}

/// What a copy of a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOf {
    /// It follows the original until it is promoted.
    Standby,
    /// A backup that is recovered to the moment of its making: a new timeline.
    Recovered,
    /// A snapshot of the disk: it begins where it was, on the same timeline.
    Snapshot,
    /// A backup that is recovered to [`Postgres::restore_point`], from the log of a server with [`Options::archive`].
    AtPoint,
}

/// What the point in time is called.
const POINT: &str = "the point";

/// A PostgreSQL server of the tests' own, on a loopback port of its own. It is stopped and its folder removed
/// when this value is dropped or the test process ends, whichever comes first and however it ends.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    port: Port,
    password: String,
    shared: bool,
    guard: Mutex<Guard>,
}

/// The process that stands between the tests and a server: it stops the server and removes its folder when it is dropped, or when
/// the test process ends.
#[derive(Debug)]
pub(crate) struct Guard {
    process: Child,
    /// `None` once closed, which is the word to stop and clean up.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    server: Option<u32>,
}

impl Postgres {
    /// The server that all tests of this test binary share, started by the first that asks. Tests keep apart
    /// by a database each: [`Postgres::create_database`].
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| {
            let mut server = Postgres::start();
            server.shared = true;
            server
        })
    }

    /// A server of one's own, for tests that stop it or configure it.
    pub fn start() -> Postgres {
        Postgres::start_with(&Options::default())
    }

    /// [`Postgres::start`], set up otherwise.
    pub fn start_with(options: &Options) -> Postgres {
        let programs = programs().unwrap_or_else(|| panic!("{MISSING}"));
        let account = Account::of_server();
        let folder = account.create_folder();
        let password = random_name("pw");
        fs::write(folder.join("password"), &password).unwrap();
        if let Some(account) = &account.other {
            chown(folder.join("password"), Some(account.0), Some(account.1)).unwrap();
        }
        let guard = Guard::spawn(GUARD, &programs, &folder, &account);
        let mut server =
            Postgres { folder, port: Port::reserve(), password, shared: false, guard: Mutex::new(guard) };
        server.initialise(options);
        for attempt in 1.. {
            match server.try_start() {
                Ok(()) => break,
                Err(log) if attempt < 10 && log.contains("could not create any TCP/IP sockets") => {
                    server.port = Port::reserve();
                }
                Err(log) => panic!("PostgreSQL did not start:\n{log}"),
            }
        }
        server
    }

    /// A copy of this server as it is now, with its system identifier, its roles and its passwords. A standby is running, the
    /// others begin with [`Postgres::start_again`].
    pub fn copy(&self, of: CopyOf) -> Postgres {
        let programs = programs().unwrap_or_else(|| panic!("{MISSING}"));
        let account = Account::of_server();
        let folder = account.create_folder();
        let guard = Guard::spawn(GUARD, &programs, &folder, &account);
        let copy = Postgres {
            folder,
            port: Port::reserve(),
            password: self.password.clone(),
            shared: false,
            guard: Mutex::new(guard),
        };
        let (signal, settings) = match of {
            CopyOf::Standby => (
                "standby.signal",
                format!(
                    "primary_conninfo = 'host=127.0.0.1 port={} user=postgres password={}'\n",
                    self.port(),
                    self.password
                ),
            ),
            CopyOf::Recovered => (
                "recovery.signal",
                "restore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n"
                    .to_owned(),
            ),
            CopyOf::Snapshot => ("", String::new()),
            CopyOf::AtPoint => (
                "recovery.signal",
                format!(
                    "archive_mode = off\nrestore_command = 'cp {}/%f %p'\nrecovery_target_name = '{POINT}'\n\
                     recovery_target_action = 'promote'\n",
                    self.archive().display()
                ),
            ),
        };
        if copy.ask(&format!("copy {} {} {signal}", self.port(), self.password)) == "failed" {
            panic!("pg_basebackup failed:\n{}", tail(&copy.folder.join("initdb.log")));
        }
        let settings = format!("\nunix_socket_directories = '{}'\n{settings}", copy.folder.display());
        let file = copy.folder.join("data/postgresql.conf");
        fs::OpenOptions::new().append(true).open(file).unwrap().write_all(settings.as_bytes()).unwrap();
        if of == CopyOf::Standby {
            copy.start_again();
        }
        copy
    }

    /// Where a server with [`Options::archive`] keeps its log.
    fn archive(&self) -> PathBuf {
        self.folder.join("archive")
    }

    /// This is the moment to which a [`CopyOf::AtPoint`] that was made before is going to be recovered. Its log is kept when this
    /// returns, and must be there as long as the copy needs it.
    pub async fn restore_point(&self) {
        let admin = self.connect_as_admin().await;
        let sql = format!("SELECT pg_walfile_name(pg_create_restore_point('{POINT}'))");
        let file: String = admin.query_one(&sql, &[]).await.unwrap().get(0);
        admin.query_one("SELECT pg_switch_wal()", &[]).await.unwrap();
        let kept = self.archive().join(file);
        crate::wait::until("the log is kept", std::time::Duration::from_secs(60), async || {
            if kept.exists() { Ok(()) } else { Err(self.log()) }
        })
        .await;
    }

    /// Waits until a copy that is recovered can be written to: before that it answers as a replica does.
    pub async fn recovered(&self) {
        let admin = self.connect_as_admin().await;
        crate::wait::until("the recovery to end", Duration::from_secs(30), async || {
            let row = admin
                .query_one("SELECT pg_is_in_recovery()", &[])
                .await
                .map_err(|error| error.to_string())?;
            if row.get(0) { Err("it goes on".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// Makes a standby a server that can be written to.
    pub async fn promote(&self) {
        let admin = self.connect_as_admin().await;
        let promoted = admin.query_one("SELECT pg_promote()", &[]).await.unwrap();
        assert!(promoted.get::<_, bool>(0), "{}", self.log());
    }

    /// A database as the statements that make it again.
    pub fn dump(&self, database: &Database) -> String {
        let program = programs().unwrap_or_else(|| panic!("{MISSING}")).join("pg_dump");
        let port = self.port().to_string();
        let output = Command::new(program)
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--inserts", &database.name])
            .env("PGPASSWORD", &self.password)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Later versions have commands of psql's in it. A value's own ends of lines stay as they are.
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_inclusive('\n').filter(|line| !line.starts_with('\\')).collect()
    }

    fn initialise(&self, options: &Options) {
        // Some systems do not know C.UTF-8; C sorts the same.
        if !["C.UTF-8", "C"].iter().any(|locale| self.ask(&format!("init {locale}")) != "failed") {
            panic!("PostgreSQL's initdb failed:\n{}", tail(&self.folder.join("initdb.log")));
        }
        let mut settings = format!(
            "\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nmax_connections = 100\n\
             max_prepared_transactions = 10\npassword_encryption = 'scram-sha-256'\nssl = off\n\
             timezone = 'UTC'\nlog_timezone = 'UTC'\ndatestyle = 'ISO, MDY'\nshared_buffers = '32MB'\n\
             autovacuum_naptime = '1min'\n",
            self.folder.display()
        );
        if !options.fsync {
            settings += "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n";
        }
        if options.archive {
            let archive = self.archive();
            let archive = archive.display();
            settings += &format!(
                "archive_mode = on\narchive_command = 'mkdir -p {archive} && cp %p {archive}/.%f && mv {archive}/.%f {archive}/%f'\n"
            );
        }
        for line in &options.settings {
            settings += line;
            settings.push('\n');
        }
        let file = self.folder.join("data/postgresql.conf");
        fs::OpenOptions::new().append(true).open(file).unwrap().write_all(settings.as_bytes()).unwrap();
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()))
    }

    /// The port on 127.0.0.1 where the server listens. It stays the same over [`Postgres::restart`].
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The password of the superuser `postgres`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The server's process id, or `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.guard().server
    }

    /// The folder that holds everything of this server and that goes with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.folder.join("server.log"))
            .map_or_else(|_| String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// Connects the superuser to the database `postgres`.
    pub async fn connect_as_admin(&self) -> Client {
        connect(&self.config("postgres", &self.password, "postgres")).await
    }

    /// A fresh database with a fresh owner who is no superuser.
    pub async fn create_database(&self) -> Database {
        let database = Database {
            name: random_name("db"),
            user: random_name("user"),
            password: random_name("pw"),
            port: self.port(),
            admin_password: self.password.clone(),
        };
        let Database { name, user, password, .. } = &database;
        let admin = self.connect_as_admin().await;
        for statement in [
            format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'"),
            format!("CREATE DATABASE {name} OWNER {user} TEMPLATE template0 ENCODING 'UTF8'"),
            format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"),
        ] {
            admin.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        database
    }

    /// [`Postgres::create_database`] for tests without a runtime.
    pub fn create_database_blocking(&self) -> Database {
        // On a thread of its own, so that it works within a runtime as well.
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(self.create_database())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Stops the server in good order: sessions are ended, what was committed is on disk.
    pub fn stop(&self) {
        self.halt("fast");
    }

    /// Stops the server as a crash does: sessions are cut, the next start recovers from the log.
    pub fn crash(&self) {
        self.halt("immediate");
    }

    fn halt(&self, how: &str) {
        assert!(
            !self.shared,
            "the shared server is for all tests: stop one of your own, `Postgres::start()`"
        );
        self.ask(how);
        self.guard().server = None;
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::crash`], on the same port with the
    /// same data.
    pub fn start_again(&self) {
        assert!(self.pid().is_none(), "the server is running");
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL did not start again on port {}:\n{log}", self.port());
        }
    }

    /// [`Postgres::stop`] and [`Postgres::start_again`].
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    fn try_start(&self) -> Result<(), String> {
        let answer = self.ask(&format!("start {}", self.port()));
        match answer.parse() {
            Ok(pid) => {
                self.guard().server = Some(pid);
                Ok(())
            }
            Err(_) => Err(tail(&self.folder.join("server.log"))),
        }
    }

    fn config(&self, user: &str, password: &str, database: &str) -> Config {
        config(self.port(), user, password, database)
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: &str) -> String {
        self.guard().ask(request)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Err(error) = self.process.wait() {
            eprintln!("a server's guard process could not be waited for: {error}");
        }
    }
}

impl Guard {
    /// `script` has two arguments: the program, or where the programs are, and the folder.
    pub(crate) fn spawn(script: &str, programs: &Path, folder: &Path, account: &Account) -> Guard {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script, "tidewater-test-server"])
            .args([programs, folder])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal ends the tests, and by that the server, but not this process.
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some((uid, gid)) = account.other {
            command.uid(uid).gid(gid);
        }
        let mut process = command.spawn().unwrap_or_else(|error| panic!("/bin/sh could not be run: {error}"));
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Guard { process, requests, answers, server: None }
    }

    /// One request, and its answer.
    pub(crate) fn ask(&mut self, request: &str) -> String {
        let requests = self.requests.as_mut().expect("the guard is asked only while it lives");
        writeln!(requests, "{request}").expect("a server's guard process has ended");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "a server's guard process has ended on the request: {request}");
        answer.trim().to_owned()
    }
}

/// Who runs a server. It refuses to be run by root.
pub(crate) struct Account {
    /// User and group to change to, `None`: as we are.
    other: Option<(u32, u32)>,
}

impl Account {
    pub(crate) fn of_server() -> Account {
        // A file that we create belongs to our effective user.
        let ours = tempfile::tempfile().unwrap().metadata().unwrap().uid();
        if ours != 0 {
            return Account { other: None };
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let found = ["postgres", "nobody"].iter().find_map(|name| {
            users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
                if fields.first() != Some(name) {
                    return None;
                }
                Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
            })
        });
        let other =
            found.expect("PostgreSQL must not be run by root: a user `postgres` or `nobody` is needed");
        Account { other: Some(other) }
    }

    /// A folder of the server's user, at a path that this user may walk and that leaves room for a socket's
    /// name (107 bytes at most).
    pub(crate) fn create_folder(&self) -> PathBuf {
        let base = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
            .into_iter()
            .filter_map(|base| base.canonicalize().ok())
            .find(|base| {
                base.as_os_str().len() < 60
                    && (self.other.is_none()
                        || base
                            .ancestors()
                            .all(|part| part.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 != 0)))
            })
            .expect("a folder for temporary files that the server's user may enter");
        let folder = tempfile::Builder::new().prefix("tidewater-pg-").tempdir_in(base).unwrap();
        if let Some((uid, gid)) = self.other {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        // From here on the guard removes it.
        folder.keep()
    }
}

/// The folder with `initdb` and `postgres`.
fn programs() -> Option<PathBuf> {
    let complete = |folder: &Path| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file());
    // A link on the path leads to the folder that has all of them.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .filter_map(|folder| folder.join("postgres").canonicalize().ok())
        .filter_map(|program| program.parent().map(Path::to_owned));
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    installed.sort();
    on_path.chain(installed.into_iter().rev().map(|(_, folder)| folder)).find(|folder| complete(folder))
}

/// A database of one test's own, and who may use it.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name, good without quoting.
    pub name: String,
    /// The role that owns it, good without quoting.
    pub user: String,
    /// The owner's password.
    pub password: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    admin_password: String,
}

impl Database {
    /// What the owner connects with.
    pub fn config(&self) -> Config {
        self.config_via(self.port)
    }

    /// What the owner connects with through another port on 127.0.0.1, for instance a proxy's.
    pub fn config_via(&self, port: u16) -> Config {
        config(port, &self.user, &self.password, &self.name)
    }

    /// Connects as the owner. The connection's task runs on the current runtime.
    pub async fn connect(&self) -> Client {
        connect(&self.config()).await
    }

    /// Connects as the owner through another port on 127.0.0.1.
    pub async fn connect_via(&self, port: u16) -> Client {
        connect(&self.config_via(port)).await
    }

    /// Connects as the superuser, to this database.
    pub async fn connect_as_admin(&self) -> Client {
        connect(&config(self.port, "postgres", &self.admin_password, &self.name)).await
    }

    /// Runs statements as the owner, on a connection of its own.
    ///
    /// # Panics
    /// When one of them fails.
    pub async fn execute_batch(&self, sql: &str) {
        let client = self.connect().await;
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

fn config(port: u16, user: &str, password: &str, database: &str) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(user).password(password).dbname(database);
    config
}

async fn connect(config: &Config) -> Client {
    let (client, connection) =
        config.connect(NoTls).await.unwrap_or_else(|error| panic!("connecting with {config:?}: {error:?}"));
    tokio::spawn(async move {
        // The client learns of its end by itself.
        let _ = connection.await;
    });
    client
}

fn random_name(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

pub(crate) fn tail(log: &Path) -> String {
    let text =
        fs::read(log).map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use tokio_postgres::error::SqlState;

    use super::*;
    use crate::wait;

    #[tokio::test]
    async fn a_database_each_with_an_owner_of_its_own() {
        let server = Postgres::shared();
        let (one, two) = (server.create_database().await, server.create_database().await);
        one.execute_batch("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
        assert_eq!(one.connect().await.query_one("SELECT a FROM t", &[]).await.unwrap().get::<_, i32>(0), 1);
        let error = two.connect().await.query("SELECT a FROM t", &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE));
        let row = one
            .connect_as_admin()
            .await
            .query_one("SELECT rolsuper, current_database() FROM pg_roles WHERE rolname = $1", &[&one.user])
            .await
            .unwrap();
        assert_eq!((row.get::<_, bool>(0), row.get::<_, String>(1)), (false, one.name.clone()));
        // One may not use the other's.
        let error = one.config().dbname(&two.name).connect(NoTls).await.err().unwrap();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    }

    #[tokio::test]
    async fn the_password_is_checked() {
        let database = Postgres::shared().create_database().await;
        let error = database.config().password("wrong").connect(NoTls).await.err().unwrap();
        assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD));
    }

    #[tokio::test]
    async fn what_was_committed_survives_stop_and_crash_and_dropping_leaves_nothing() {
        let server = Postgres::start_with(&Options {
            fsync: true,
            settings: vec!["work_mem = '5MB'".into()],
            ..Options::default()
        });
        let database = server.create_database().await;
        database.execute_batch("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
        let client = database.connect().await;
        let (port, first) = (server.port(), server.pid().unwrap());
        server.restart();
        assert!(client.query("SELECT 1", &[]).await.is_err());
        assert_ne!(server.pid(), Some(first));
        server.crash();
        assert!(database.config().connect(NoTls).await.is_err());
        server.start_again();
        assert!(server.log().contains("automatic recovery"), "{}", server.log());
        let client = database.connect().await;
        assert_eq!(client.query_one("SELECT sum(a) FROM t", &[]).await.unwrap().get::<_, i64>(0), 1);
        assert_eq!(client.query_one("SHOW fsync", &[]).await.unwrap().get::<_, String>(0), "on");
        assert_eq!(client.query_one("SHOW work_mem", &[]).await.unwrap().get::<_, String>(0), "5MB");
        let (folder, pid) = (server.folder().to_owned(), server.pid().unwrap());
        assert_eq!(server.port(), port);
        drop(server);
        assert!(!folder.exists() && !running(pid));
    }

    #[test]
    fn a_database_without_a_runtime() {
        let database = Postgres::shared().create_database_blocking();
        assert_eq!(database.port, Postgres::shared().port());
    }

    const HOW: &str = "TIDEWATER_TEST_SUPPORT_END";

    /// Not a test by itself: run by the ones below, in a process of its own that ends in the way asked for.
    #[test]
    #[expect(clippy::zombie_processes, reason = "the child is meant to outlive this process")]
    fn ends_as_told() {
        let Ok(how) = std::env::var(HOW) else { return };
        let server = if how == "during-setup" { None } else { Some(Postgres::shared()) };
        if let Some(server) = server {
            server.create_database_blocking();
            // Children of the test process must not keep the guard's pipe open.
            Command::new("sleep").arg("15").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            println!("\nserver {} {}", server.pid().unwrap(), server.folder().display());
        }
        match how.as_str() {
            "normal" => {}
            "panic" => panic!("as told"),
            "abort" => std::process::abort(),
            "during-setup" => {
                std::thread::spawn(Postgres::start);
                // The guard writes that.
                let is_filled = |folder: fs::DirEntry| folder.path().join("initdb.log").exists();
                while !fs::read_dir(std::env::temp_dir()).unwrap().flatten().any(is_filled) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::process::abort();
            }
            _ => loop {
                std::thread::park();
            },
        }
    }

    fn running(pid: u32) -> bool {
        // A process that has ended and was not waited for is a zombie, not running.
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn run_and_end(how: &str) -> std::process::ExitStatus {
        let base = tempfile::Builder::new().prefix("tw-").tempdir().unwrap();
        fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "postgres::tests::ends_as_told", "--nocapture", "--test-threads=1"])
            .env(HOW, how)
            .env("TMPDIR", base.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut found = None;
        if how != "during-setup" {
            let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
            found = lines.find_map(|line| {
                let line = line.unwrap();
                let mut words = line.strip_prefix("server ")?.split(' ').map(str::to_owned);
                Some((words.next()?.parse::<u32>().unwrap(), PathBuf::from(words.next()?)))
            });
            let (pid, folder) = found.as_ref().unwrap();
            assert!(how != "sigkill" || (running(*pid) && folder.exists()));
            if how == "sigkill" {
                process.kill().unwrap();
            }
            // Its output is read to the end: with a closed pipe it would end otherwise than told.
            lines.for_each(drop);
        }
        let status = process.wait().unwrap();
        wait::until_blocking("the server and its folder to be gone", Duration::from_secs(60), || {
            let left: Vec<_> =
                fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            let alive = found.as_ref().is_some_and(|(pid, _)| running(*pid));
            if left.is_empty() && !alive {
                Ok(())
            } else {
                Err(format!("{how}: running: {alive}, left: {left:?}"))
            }
        });
        status
    }

    #[test]
    fn nothing_is_left_behind_however_the_process_ends() {
        std::thread::scope(|scope| {
            for how in ["normal", "panic", "abort", "sigkill", "during-setup"] {
                scope.spawn(move || {
                    let status = run_and_end(how);
                    match how {
                        "normal" => assert_eq!(status.code(), Some(0)),
                        "panic" => assert_eq!(status.code(), Some(101)),
                        "sigkill" => assert_eq!(status.signal(), Some(9)),
                        _ => assert_eq!(status.signal(), Some(6)),
                    }
                });
            }
        });
    }
}
