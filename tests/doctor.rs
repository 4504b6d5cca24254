//! What `doctor` is for: each fault that it knows is planted, it is found by its check, no other check cries wolf, and the
//! remedy, followed to the letter where it is a command or SQL, mends it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers are the test")]

mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use insta::assert_snapshot;
use process::{Device, output};
use tidewater::doctor::{Check, Doctor, Finding, Mark, Report};
use tidewater::settings::Settings;
use tidewater_actors::core::doctor as evidence;
use tidewater_test_support::{Mode, Postgres, shell};

// ---------------------------------------------------------------------------------------------------------
// Asking, and doing what it says
// ---------------------------------------------------------------------------------------------------------

const TABLE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);";

/// A device that has synced, and whose supervisor has ended.
async fn synced() -> Device {
    let device = Device::new().await;
    shell::sqlite3_shell(device.path(), &format!("{TABLE} INSERT INTO note (body) VALUES ('one'), ('two');"));
    device.proxy.start();
    start_and_stop(&device);
    device
}

/// "Start run_supervisor", and let it do its work.
fn start_and_stop(device: &Device) {
    let supervisor = device.start();
    device.wait_until_flushed();
    supervisor.stop();
}

fn doctor(device: &Device) -> Command {
    let mut command = device.command();
    command.arg("doctor");
    command
}

/// The report of the command; its status says the same, and no secret is in anything it prints.
fn report_of(device: &Device, command: &mut Command) -> Report {
    let told = output(command.arg("--json"));
    let [out, err] = [&told.stdout, &told.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(!out.contains(&device.cloud.password) && !err.contains(&device.cloud.password), "{out}{err}");
    let report: Report = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    assert_eq!(told.status.code(), Some(i32::from(report.red > 0)), "{report:#?}");
    assert_narrow(&report);
    report
}

fn report(device: &Device) -> Report {
    report_of(device, &mut doctor(device))
}

fn assert_narrow(report: &Report) {
    for line in report.page(false).lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

fn reds(report: &Report) -> Vec<Check> {
    report.checks.iter().filter(|finding| finding.mark == Mark::Red).map(|finding| finding.check).collect()
}

/// Exactly this is red, and it says so.
fn only<'a>(report: &'a Report, check: Check, says: &str) -> &'a Finding {
    assert_eq!(reds(report), [check], "{}", report.page(false));
    let finding = report.finding(check).unwrap();
    assert!(finding.finding.contains(says), "{says:?} is not in {finding:#?}");
    assert!(!finding.remedy.as_ref().unwrap().text.is_empty());
    finding
}

fn assert_good(report: &Report) {
    assert!(report.is_good(), "{}", report.page(false));
}

fn not_looked_at(report: &Report) -> Vec<Check> {
    let unseen = report.checks.iter().filter(|finding| finding.mark == Mark::NotLookedAt);
    unseen.map(|finding| finding.check).collect()
}

/// What follows on the first rung that fails.
const BEHIND_LOGIN: [Check; 6] =
    [Check::Identity, Check::Rights, Check::Feed, Check::SchemaDrift, Check::ClockSkew, Check::Versions];

/// Does what the remedy says, as SQL by who may.
async fn follow_sql(device: &Device, finding: &Finding) {
    let sql = finding.remedy.as_ref().unwrap().sql.as_ref().unwrap_or_else(|| panic!("{finding:#?}"));
    let admin = Postgres::shared().connect_as_admin().await;
    // What concerns the database as a whole is done from outside, everything else in it.
    if sql.contains("DATABASE") || sql.contains("ALTER ROLE") {
        admin.batch_execute(sql).await
    } else {
        device.cloud.connect_as_admin().await.batch_execute(sql).await
    }
    .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Does what the remedy says, in a shell that finds the command; the page's own lines do the same.
fn follow_shell(device: &Device, finding: &Finding) {
    let command = finding.remedy.as_ref().unwrap().shell.as_ref().unwrap_or_else(|| panic!("{finding:#?}"));
    let binary = Path::new(env!("CARGO_BIN_EXE_run_supervisor")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(device.folder.path()).env("PATH", path);
    for (name, value) in device.command().get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    let done = output(&mut shell);
    assert!(done.status.success(), "{command}: {done:?}");
}

/// Runs SQL as the superuser, in the device's database.
async fn admin(device: &Device, sql: &str) {
    let client = device.cloud.connect_as_admin().await;
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

// ---------------------------------------------------------------------------------------------------------
// Without a fault
// ---------------------------------------------------------------------------------------------------------

/// A device that is well has nothing red and nothing that could not be looked at, whether its supervisor runs or not; each
/// look is one connection.
#[tokio::test]
async fn a_healthy_device_is_green_from_top_to_bottom() {
    let device = synced().await;
    let before = device.proxy.accepted();
    let alone = report(&device);
    assert_eq!((alone.red, not_looked_at(&alone)), (0, vec![]), "{}", alone.page(false));
    assert_eq!(device.proxy.accepted(), before + 1);

    let supervisor = device.start();
    device.wait_until_flushed();
    let before = device.proxy.accepted();
    let together = report(&device);
    assert_eq!((together.red, not_looked_at(&together)), (0, vec![]), "{}", together.page(false));
    assert_eq!(device.proxy.accepted(), before + 1);
    let lock = &together.finding(Check::Lock).unwrap().finding;
    assert!(lock.contains(&supervisor.id().to_string()), "{lock}");
    supervisor.stop();
}

/// The supervisor looks with its own settings: who asks needs none of them but the file.
#[tokio::test]
async fn the_supervisor_that_runs_answers_for_its_own_settings() {
    let device = synced().await;
    let supervisor = device.start();
    device.wait_until_flushed();
    let mut command = process::command(device.folder.path());
    command.args(["doctor", "--database"]).arg(device.path());
    let report = report_of(&device, &mut command);
    assert_eq!((report.red, not_looked_at(&report)), (0, vec![]), "{}", report.page(false));
    supervisor.stop();
}

/// A file that nobody has told of a cloud is complete as it is.
#[test]
fn without_a_cloud_nothing_is_red() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.db");
    shell::sqlite3_shell(&file, TABLE);
    let mut command = process::command(folder.path());
    // A port on which nobody listens: it was somebody's a moment ago.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    command.env("CLOUD_SQL_PROXY_PORT", port.to_string()).env("TIDEWATER_DATABASE", &file).arg("doctor");
    let told = output(&mut command);
    assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stdout));
}

/// What is beside the file, with everything that tells whether somebody wrote.
fn traces(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let content = fs::read(entry.path()).unwrap();
            (
                entry.file_name().into_string().unwrap(),
                (content, entry.metadata().unwrap().modified().unwrap()),
            )
        })
        .collect()
}

/// A look leaves no trace: not at a file that nobody has open, not at one that a crash left with its log, not in the cloud.
#[tokio::test]
async fn a_look_changes_nothing() {
    let device = Device::new().await;
    device.proxy.start();
    shell::sqlite3_shell(device.path(), TABLE);
    let fresh = traces(device.folder.path());
    assert_good(&report(&device));
    assert_eq!(traces(device.folder.path()), fresh);
    let client = device.cloud.connect().await;
    let made = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE n.nspname IN ('public', 'tidewater')";
    assert_eq!(client.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 0);

    let supervisor = device.start();
    device.wait_until_flushed();
    supervisor.kill();
    // Written by somebody who dies before the log is copied into the file.
    let script = "import os\ncon.execute(\"INSERT INTO note (body) VALUES ('late')\")\ncon.commit()\n\
                  sys.stdout.flush()\nos._exit(0)";
    shell::python_sqlite(device.path(), script);
    let crashed = traces(device.folder.path());
    assert!(!crashed["shop.db-wal"].0.is_empty(), "the crash left its log");
    let after = report(&device);
    assert_eq!(traces(device.folder.path()), crashed);
    // What is only in the log is seen.
    assert!(after.finding(Check::Journal).unwrap().finding.contains("1 row waiting"), "{after:#?}");
    let supervisor = &after.finding(Check::Supervisor).unwrap().finding;
    assert!(supervisor.contains("left behind"), "{supervisor}");
    assert_good(&after);

    // The log without its index, as after a copy of both files: only who may write can make one.
    fs::remove_file(beside(&device.path(), "-shm")).unwrap();
    let copied = traces(device.folder.path());
    let finding = report(&device).finding(Check::File).unwrap().clone();
    assert_eq!(traces(device.folder.path()), copied);
    assert!(finding.mark == Mark::Red && finding.finding.contains("its log has no index"), "{finding:#?}");
    assert!(finding.remedy.unwrap().text.contains("start run_supervisor"));

    start_and_stop(&device);
    let supervisor = report(&device).finding(Check::Supervisor).unwrap().finding.clone();
    assert_eq!(supervisor, "none runs");
}

/// An app asks its own database, in its own process, and its locks stay what they were.
#[tokio::test]
async fn an_app_asks_its_own_database() {
    let device = synced().await;
    let settings = Settings::builder()
        .set("sqlite.path", device.path().display())
        .set("proxy.port", device.proxy.port())
        .set("cloud.database", &device.cloud.name)
        .set("cloud.user", &device.cloud.user)
        .set("cloud.password", &device.cloud.password)
        .build()
        .unwrap();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let db = tidewater::Database::open(settings, log).await.unwrap();
    let report = db.doctor().await.unwrap();
    assert_good(&report);
    // The next program to leave would delete the log if our locks on the file had gone.
    shell::sqlite3_shell(device.path(), "INSERT INTO note (body) VALUES ('from outside');");
    assert!(beside(&device.path(), "-wal").exists() && beside(&device.path(), "-shm").exists());
    db.write([tidewater::Statement::new("INSERT INTO note (body) VALUES ('from inside')")]).await.unwrap();
    db.shutdown().await.unwrap();
    assert_eq!(shell::sqlite3_shell(device.path(), "SELECT count(*) FROM note;"), "4\n");
}

// ---------------------------------------------------------------------------------------------------------
// The file
// ---------------------------------------------------------------------------------------------------------

/// A missing file; the supervisor creates it.
#[tokio::test]
async fn a_missing_file() {
    let device = Device::new().await;
    device.proxy.start();
    let found = report(&device);
    only(&found, Check::File, "shop.db is not there");
    for check in [Check::Integrity, Check::Triggers, Check::Journal, Check::Parked, Check::Backlog] {
        assert!(not_looked_at(&found).contains(&check), "{check:?}");
    }
    start_and_stop(&device);
    assert_good(&report(&device));
}

/// A folder, and a file that is something else; both are called by their name, and nothing is asked of them.
#[tokio::test]
async fn a_file_that_is_no_database() {
    let device = Device::new().await;
    device.proxy.start();
    fs::create_dir(device.path()).unwrap();
    let found = report(&device);
    let finding = only(&found, Check::File, "this is a folder");
    assert!(finding.remedy.as_ref().unwrap().text.contains("TIDEWATER_DATABASE"));
    fs::remove_dir(device.path()).unwrap();

    fs::write(device.path(), "Dear diary, ".repeat(1000)).unwrap();
    let found = report(&device);
    only(&found, Check::File, "not a SQLite database");
    // As the remedy says: another file.
    let mut elsewhere = doctor(&device);
    let other = device.folder.path().join("other.db");
    shell::sqlite3_shell(&other, TABLE);
    assert_good(&report_of(&device, elsewhere.env("TIDEWATER_DATABASE", other)));
}

/// A page with other bytes in it is found, and what can be read is saved, triggers and all.
#[tokio::test]
async fn a_damaged_page() {
    let device = synced().await;
    let rows = "WITH n(i) AS (VALUES (10) UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
                INSERT INTO note SELECT i, hex(randomblob(40)) FROM n;";
    shell::sqlite3_shell(device.path(), rows);
    start_and_stop(&device);
    assert_good(&report(&device));
    let page: u64 = shell::sqlite3_shell(
        device.path(),
        "SELECT pageno FROM dbstat WHERE name = 'note' AND pagetype = 'leaf' LIMIT 1 OFFSET 5;",
    )
    .trim()
    .parse()
    .unwrap();
    let mut bytes = fs::read(device.path()).unwrap();
    let size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let start = (usize::try_from(page).unwrap() - 1) * size;
    bytes[start..start + size].fill(0x5a);
    fs::write(device.path(), bytes).unwrap();

    let found = report(&device);
    let finding = only(&found, Check::Integrity, "damaged").clone();
    assert!(!finding.details.is_empty());
    follow_shell(&device, &finding);
    let mended = report(&device);
    assert_eq!(mended.finding(Check::Integrity).unwrap().mark, Mark::Green, "{}", mended.page(false));
    start_and_stop(&device);
    assert_good(&report(&device));
    // What the page had comes back from the cloud.
    device.wait_until_equal(&["note"]).await;
    assert_eq!(shell::sqlite3_shell(device.path(), "SELECT count(*) FROM note;"), "2993\n");
}

/// Where the first page itself is damaged, nothing but that can be said of the file.
#[tokio::test]
async fn a_damaged_schema() {
    let device = synced().await;
    let mut bytes = fs::read(device.path()).unwrap();
    bytes[100..140].fill(0x5a);
    fs::write(device.path(), bytes).unwrap();
    let found = report(&device);
    only(&found, Check::Integrity, "damaged");
    for check in [Check::Triggers, Check::Journal, Check::Parked, Check::Backlog, Check::SchemaDrift] {
        assert!(not_looked_at(&found).contains(&check), "{check:?}");
    }
    // As the remedy says: a backup.
    fs::remove_file(device.path()).unwrap();
    shell::sqlite3_shell(device.path(), TABLE);
    start_and_stop(&device);
    assert_good(&report(&device));
    device.wait_until_equal(&["note"]).await;
}

/// Rows that refer to nothing are damage of another kind; the command lists them.
#[tokio::test]
async fn a_reference_to_nothing() {
    let device = synced().await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE leaf (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note); INSERT INTO leaf VALUES (1, 777);",
    );
    let found = report(&device);
    let finding = only(&found, Check::Integrity, "not there");
    assert!(finding.details[0].contains("leaf"), "{finding:#?}");
    follow_shell(&device, finding);
    shell::sqlite3_shell(device.path(), "DELETE FROM leaf;");
    assert_good(&report(&device));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Somebody else holds the lock and answers no verb.
#[tokio::test]
async fn a_lock_that_somebody_else_holds() {
    let device = synced().await;
    let script = "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n\
                  print('held', flush=True)\ntime.sleep(600)";
    let mut holder = Command::new("python3");
    holder.args(["-c", script]).arg(beside(&device.path(), ".lock")).stdout(Stdio::piped());
    let mut holder = Killed(holder.spawn().unwrap());
    BufReader::new(holder.0.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let found = report(&device);
    let finding = only(&found, Check::Lock, &holder.0.id().to_string());
    assert!(finding.finding.contains("python3"), "{finding:#?}");
    follow_shell(&device, finding);
    holder.0.wait().unwrap();
    assert_good(&report(&device));
    start_and_stop(&device);
}

/// Something that is no socket has the name of the control socket.
#[tokio::test]
async fn a_file_in_place_of_the_socket() {
    let device = synced().await;
    fs::write(beside(&device.path(), ".sock"), "mine").unwrap();
    let found = report(&device);
    follow_shell(&device, only(&found, Check::Supervisor, "is not a socket"));
    assert_good(&report(&device));
    assert_eq!(fs::read(beside(&device.path(), ".sock.away")).unwrap(), b"mine");
}

/// A supervisor that does not answer is not waited for without end, and everything else is looked at without it.
#[tokio::test]
async fn a_supervisor_that_does_not_answer() {
    let device = synced().await;
    let supervisor = device.start();
    device.wait_until_flushed();
    supervisor.signal("STOP");
    let found = report(&device);
    assert_eq!(reds(&found), [Check::Supervisor], "{}", found.page(false));
    assert_eq!(not_looked_at(&found), []);
    follow_shell(&device, found.finding(Check::Supervisor).unwrap());
    // It ends in good order as soon as it is let.
    supervisor.signal("CONT");
    assert_eq!(supervisor.wait().0.code(), Some(0));
    assert_good(&report(&device));
}

/// A disk with little room, and one that cannot be written. Where none can be mounted, the limit is raised instead.
#[tokio::test]
async fn a_disk_that_is_nearly_full() {
    let device = synced().await;
    let mount = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tidewater-test"])
        .arg(mount.path())
        .output();
    if !mounted.is_ok_and(|it| it.status.success()) {
        eprintln!("a tmpfs cannot be mounted here: the limit is raised instead");
        let found = report_of(&device, doctor(&device).env("TIDEWATER_DOCTOR__DISK_FREE_MIB", "1000000"));
        only(&found, Check::DiskSpace, "free, less than");
        return;
    }
    struct Mount(tempfile::TempDir);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }
    let mount = Mount(mount);
    let remount = |options: &str| {
        assert!(Command::new("mount").args(["-o", options]).arg(mount.0.path()).status().unwrap().success());
    };
    let file = mount.0.path().join("shop.db");
    fs::copy(device.path(), &file).unwrap();
    fs::write(mount.0.path().join("ballast"), vec![0; 6 << 20]).unwrap();
    let there = || {
        let mut command = doctor(&device);
        command.env("TIDEWATER_DATABASE", &file).env("TIDEWATER_DOCTOR__DISK_FREE_MIB", "4");
        report_of(&device, &mut command)
    };
    only(&there(), Check::DiskSpace, "free, less than 4.0 MiB");
    fs::remove_file(mount.0.path().join("ballast")).unwrap();
    assert_good(&there());
    remount("remount,ro");
    only(&there(), Check::DiskSpace, "read-only");
    remount("remount,rw");
    assert_good(&there());
}

// ---------------------------------------------------------------------------------------------------------
// The way to the cloud
// ---------------------------------------------------------------------------------------------------------

/// Nothing listens: nobody is called.
#[tokio::test]
async fn nothing_listens() {
    let device = synced().await;
    device.proxy.stop();
    let before = device.proxy.accepted();
    let found = report(&device);
    assert_eq!(reds(&found)[0], Check::Endpoint, "{}", found.page(false));
    let finding = found.finding(Check::Endpoint).unwrap();
    assert!(finding.finding.contains(&format!("127.0.0.1:{}", device.proxy.port())));
    assert!(finding.remedy.as_ref().unwrap().text.contains("cloud-sql-proxy --port"));
    for check in [Check::Connect, Check::Startup, Check::Login].into_iter().chain(BEHIND_LOGIN) {
        assert!(not_looked_at(&found).contains(&check), "{check:?}");
    }
    // Of the file nothing depends on it.
    assert_eq!(found.finding(Check::Integrity).unwrap().mark, Mark::Green);
    device.proxy.start();
    assert_good(&report(&device));
    assert_eq!(device.proxy.accepted(), before + 1);
}

/// Something that is not PostgreSQL.
#[tokio::test]
async fn something_else_listens() {
    let device = synced().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let found = report_of(&device, doctor(&device).env("CLOUD_SQL_PROXY_PORT", port.to_string()));
    let finding = only(&found, Check::Startup, "not PostgreSQL (\"SSH-2.0-OpenSSH_9.2\")");
    assert!(finding.remedy.as_ref().unwrap().text.contains("CLOUD_SQL_PROXY_PORT"));
    assert_eq!(found.finding(Check::Connect).unwrap().mark, Mark::Green);
    assert!(not_looked_at(&found).contains(&Check::Login));
    // As the remedy says: the port of the proxy.
    assert_good(&report(&device));
}

/// The proxy is up and its instance is not: it accepts and closes, or says nothing.
#[tokio::test]
async fn a_proxy_without_its_instance() {
    let device = synced().await;
    for (mode, says) in
        [(Mode::AcceptThenClose, "ended before PostgreSQL"), (Mode::Swallow, "no answer within")]
    {
        device.proxy.set_mode(mode);
        let found = report_of(&device, doctor(&device).env("CLOUD_SQL_PROXY_TIMEOUT", "0.5"));
        let finding = only(&found, Check::Startup, says);
        assert!(finding.remedy.as_ref().unwrap().text.contains("Cloud SQL Client"), "{finding:#?}");
        for check in [Check::Login].into_iter().chain(BEHIND_LOGIN) {
            assert!(not_looked_at(&found).contains(&check), "{check:?}");
        }
    }
    device.proxy.set_mode(Mode::Forward);
    assert_good(&report(&device));
}

/// A wrong password, no password, and a role that is not there: the first three say which variable is wrong.
#[tokio::test]
async fn a_wrong_password_or_role() {
    let device = synced().await;
    for (variable, value, says) in [
        ("CLOUD_SQL_PASSWORD", "hunter2-hunter2", "28P01"),
        ("CLOUD_SQL_PASSWORD", "", "asks for a password"),
        ("CLOUD_SQL_USER", "nobody_here", "28P01"),
    ] {
        let told = output(doctor(&device).env(variable, value));
        let page = String::from_utf8(told.stdout).unwrap();
        assert!(!page.contains("hunter2") && page.contains("CLOUD_SQL_PASSWORD"), "{page}");
        let found = report_of(&device, doctor(&device).env(variable, value));
        only(&found, Check::Login, says);
        for check in BEHIND_LOGIN {
            assert!(not_looked_at(&found).contains(&check), "{check:?}");
        }
        // With the variable that the remedy names set right.
        assert!(
            only(&found, Check::Login, says).remedy.as_ref().unwrap().text.contains(variable),
            "{found:#?}"
        );
        assert_good(&report(&device));
    }
}

/// Nothing is set to log in with, and something listens.
#[tokio::test]
async fn nothing_to_log_in_with() {
    let device = synced().await;
    let found = report_of(&device, doctor(&device).env_remove("CLOUD_SQL_DATABASE"));
    let finding = only(&found, Check::Login, "nothing to log in with");
    assert!(finding.remedy.as_ref().unwrap().text.contains("CLOUD_SQL_DATABASE"));
    assert_good(&report(&device));
}

/// A role that may not log in, one that may not connect, and a database that is not there.
#[tokio::test]
async fn a_login_that_the_server_refuses() {
    let device = Device::new().await;
    device.proxy.start();
    shell::sqlite3_shell(device.path(), TABLE);
    let user = device.cloud.user.clone();
    admin(&device, &format!("ALTER ROLE {user} NOLOGIN")).await;
    let found = report(&device);
    follow_sql(&device, only(&found, Check::Login, "28000")).await;
    assert_good(&report(&device));

    admin(&device, &format!("REVOKE CONNECT ON DATABASE {} FROM {user}", device.cloud.name)).await;
    let found = report(&device);
    follow_sql(&device, only(&found, Check::Login, "42501")).await;
    assert_good(&report(&device));

    let elsewhere = format!("{}_2", device.cloud.name);
    let there = || report_of(&device, doctor(&device).env("CLOUD_SQL_DATABASE", &elsewhere));
    let found = there();
    follow_sql(&device, only(&found, Check::Login, "3D000")).await;
    assert_good(&there());
}

// ---------------------------------------------------------------------------------------------------------
// The cloud
// ---------------------------------------------------------------------------------------------------------

/// Another cloud than this file's, one without a mark, and a copy of ours.
#[tokio::test]
async fn another_cloud() {
    let device = synced().await;
    let other = Postgres::shared().create_database().await;
    let there = || {
        let mut command = doctor(&device);
        command
            .env("CLOUD_SQL_DATABASE", &other.name)
            .env("CLOUD_SQL_USER", &other.user)
            .env("CLOUD_SQL_PASSWORD", &other.password);
        report_of(&device, &mut command)
    };
    let found = there();
    only(&found, Check::Identity, "has no mark");
    for check in [Check::Rights, Check::Feed, Check::SchemaDrift, Check::Versions] {
        assert!(not_looked_at(&found).contains(&check), "{check:?}");
    }
    other
        .execute_batch(
            "CREATE SCHEMA tidewater; CREATE TABLE tidewater.identity (id uuid, schema_version integer); \
             INSERT INTO tidewater.identity VALUES (gen_random_uuid(), 1)",
        )
        .await;
    only(&there(), Check::Identity, "and this is");
    // As the remedy says: back to the database that the file synced with.
    assert_good(&report(&device));

    shell::sqlite3_shell(device.path(), "UPDATE _tidewater_meta SET value = '1' WHERE key = 'system';");
    let found = report(&device);
    let process = device.start();
    follow_shell(&device, only(&found, Check::Identity, "a copy of this file's cloud"));
    process.stop();
    assert_good(&report(&device));
}

/// Rights that are missing are named with the grant that gives them.
#[tokio::test]
async fn missing_rights() {
    let device = synced().await;
    let user = device.cloud.user.clone();
    for (revoke, says) in [
        ("DELETE ON public.note", "may not delete note"),
        ("SELECT, UPDATE ON tidewater.devices", "may not select, update tidewater.devices"),
        ("USAGE ON SCHEMA tidewater", "may not use schema tidewater"),
    ] {
        admin(&device, &format!("REVOKE {revoke} FROM {user}")).await;
        let found = report(&device);
        follow_sql(&device, only(&found, Check::Rights, says)).await;
        assert_good(&report(&device));
    }
    admin(&device, "REVOKE ALL ON SCHEMA public FROM PUBLIC, pg_database_owner").await;
    let found = report(&device);
    follow_sql(&device, only(&found, Check::Rights, "may not use schema public")).await;
    assert_good(&report(&device));
    start_and_stop(&device);
}

/// Before the first sync: schemas that may not be made, or are not there.
#[tokio::test]
async fn rights_that_the_first_sync_needs() {
    let device = Device::new().await;
    device.proxy.start();
    shell::sqlite3_shell(device.path(), TABLE);
    let user = &device.cloud.user;
    admin(&device, &format!("REVOKE CREATE ON DATABASE {} FROM {user}", device.cloud.name)).await;
    let found = report(&device);
    follow_sql(&device, only(&found, Check::Rights, "may not create Tidewater's schema")).await;
    assert_good(&report(&device));
    let elsewhere = || report_of(&device, doctor(&device).env("TIDEWATER_CLOUD__SCHEMA", "Shop"));
    let found = elsewhere();
    let finding = only(&found, Check::Rights, "schema Shop is not there");
    let sql = finding.remedy.as_ref().unwrap().sql.as_ref().unwrap();
    admin(&device, sql).await;
    assert_good(&elsewhere());
}

/// A server that only reads.
#[tokio::test]
async fn a_server_that_only_reads() {
    let device = synced().await;
    let (database, user) = (&device.cloud.name, &device.cloud.user);
    for whom in [
        format!("DATABASE {database}"),
        format!("ROLE {user}"),
        format!("ROLE {user} IN DATABASE {database}"),
    ] {
        admin(&device, &format!("ALTER {whom} SET default_transaction_read_only = on")).await;
        let found = report(&device);
        let finding = only(&found, Check::Rights, "only read").clone();
        // Not from within: there it would only read.
        follow_sql(&device, &finding).await;
        assert_good(&report(&device));
    }
}

/// Triggers of the feed that are gone, or switched off, are installed anew by the supervisor.
#[tokio::test]
async fn a_feed_without_its_triggers() {
    let device = synced().await;
    for damage in [
        "DROP TRIGGER tidewater_feed_update ON note",
        "ALTER TABLE note DISABLE TRIGGER tidewater_feed_delete",
        "ALTER TABLE note ENABLE TRIGGER tidewater_feed_insert",
        "DROP FUNCTION tidewater.feed_of_note CASCADE",
    ] {
        let function = "SELECT DISTINCT 'feed_' || tbl FROM tidewater.changes";
        let client = device.cloud.connect().await;
        let name: String = client.query_one(function, &[]).await.unwrap().get(0);
        admin(&device, &damage.replace("feed_of_note", &name)).await;
        let found = report(&device);
        let finding = only(&found, Check::Feed, "note");
        assert!(finding.remedy.as_ref().unwrap().text.contains("start run_supervisor"), "{finding:#?}");
        start_and_stop(&device);
        assert_good(&report(&device));
    }
}

/// A table that belongs to somebody else: its feed cannot be installed by this role, and who may is told how to let it.
#[tokio::test]
async fn a_feed_that_this_role_may_not_install() {
    let device = synced().await;
    let user = device.cloud.user.clone();
    admin(
        &device,
        &format!(
            "DROP TRIGGER tidewater_feed_update ON note; ALTER TABLE note OWNER TO postgres; GRANT ALL ON note TO {user}"
        ),
    )
    .await;
    let found = report(&device);
    follow_sql(&device, only(&found, Check::Feed, "note")).await;
    start_and_stop(&device);
    assert_good(&report(&device));
}

/// Columns that drifted apart, with the statement that brings them together again.
#[tokio::test]
async fn columns_that_drifted_apart() {
    let device = synced().await;
    for (damage, says) in [
        ("ALTER TABLE note DROP COLUMN body", "no column body"),
        ("ALTER TABLE note ALTER COLUMN body TYPE bigint USING 7", "body is TEXT here and bigint there"),
        (
            "ALTER TABLE note ADD COLUMN owner text NOT NULL DEFAULT ''; ALTER TABLE note ALTER COLUMN owner DROP DEFAULT",
            "demands a value for owner",
        ),
    ] {
        admin(&device, damage).await;
        let found = report(&device);
        follow_sql(&device, only(&found, Check::SchemaDrift, says)).await;
        assert_good(&report(&device));
    }
    admin(&device, "ALTER TABLE note DROP CONSTRAINT note_pkey, ADD PRIMARY KEY (id, owner)").await;
    only(&report(&device), Check::SchemaDrift, "primary key is (id, owner) there and (id) here");
}

/// A clock that is wrong, in either direction.
#[tokio::test]
async fn a_clock_that_is_wrong() {
    let device = synced().await;
    let settings = Settings::builder()
        .set("sqlite.path", device.path().display())
        .set("proxy.port", device.proxy.port())
        .set("cloud.database", &device.cloud.name)
        .set("cloud.user", &device.cloud.user)
        .set("cloud.password", &device.cloud.password)
        .build()
        .unwrap();
    let with = move |clock: fn() -> SystemTime| {
        let doctor = Doctor::new(settings.clone()).with_clock(clock);
        std::thread::spawn(move || doctor.examine()).join().unwrap()
    };
    let behind = with(|| SystemTime::now() - Duration::from_secs(3600));
    only(&behind, Check::ClockSkew, "60 min behind the server");
    let ahead = with(|| SystemTime::now() + Duration::from_secs(30));
    let finding = only(&ahead, Check::ClockSkew, "30 s ahead of the server");
    assert_eq!(finding.remedy.as_ref().unwrap().shell.as_deref(), Some("timedatectl set-ntp true"));
    assert_good(&with(SystemTime::now));
}

/// Another device has brought the cloud, or the file, to a version that this one does not know.
#[tokio::test]
async fn a_newer_version() {
    let device = synced().await;
    admin(&device, "UPDATE tidewater.identity SET schema_version = 4").await;
    let found = report(&device);
    let finding = only(&found, Check::Versions, "protocol 4, and this one knows 3");
    assert!(finding.remedy.as_ref().unwrap().text.contains("update Tidewater"));
    admin(&device, "UPDATE tidewater.identity SET schema_version = 3").await;
    shell::sqlite3_shell(device.path(), "UPDATE _tidewater_meta SET value = 7 WHERE key = 'format';");
    only(&report(&device), Check::Versions, "format is 7");
}

/// Other devices of the same cloud that run another version, in either direction, or one that does not say; each says its version
/// when it settles, so that an update mends it. What this device said last, and who was not seen for long, do not count.
#[tokio::test]
async fn devices_of_other_versions() {
    let this = env!("CARGO_PKG_VERSION");
    let device = synced().await;
    let alone = report(&device).finding(Check::Versions).unwrap().finding.clone();
    assert_eq!(alone, format!("protocol 3, 1 device, {this}"));
    let other = device.another();
    shell::sqlite3_shell(other.path(), TABLE);
    other.proxy.start();
    start_and_stop(&other);
    let line = || {
        let found = report(&device);
        assert_good(&found);
        found.finding(Check::Versions).unwrap().finding.clone()
    };
    let all = format!("protocol 3, 2 devices, {this} on all seen lately");
    assert_eq!(line(), all);
    let name = |device: &Device| {
        let name = "SELECT value FROM _tidewater_meta WHERE key = 'device';";
        shell::sqlite3_shell(device.path(), name).trim().to_owned()
    };
    let (its, mine) = (name(&other), name(&device));
    let say = async |id: &str, version: &str| {
        admin(&device, &format!("UPDATE tidewater.devices SET version = {version} WHERE id = '{id}'")).await;
    };
    for (version, says, remedy) in [
        (
            "'0.0.1'",
            format!("{this} here, 0.0.1 on 1"),
            "update Tidewater on the device with an older version",
        ),
        ("'99.0.0'", format!("{this} here, 99.0.0 on 1"), "update Tidewater on this device"),
        (
            "NULL",
            format!("{this} here, 1 device says not"),
            "update Tidewater on the device with an older version",
        ),
    ] {
        say(&its, version).await;
        let found = report(&device);
        let finding = only(&found, Check::Versions, &format!("versions differ: {says}"));
        assert!(finding.remedy.as_ref().unwrap().text.contains(remedy), "{finding:#?}");
        assert!(finding.details[0].ends_with(&its[..8]), "{finding:#?}");
        // Both devices have this one's version now.
        start_and_stop(&other);
        assert_eq!(line(), all);
    }
    say(&mine, "'0.0.1'").await;
    assert_eq!(line(), all);
    // A device that is gone for ever, as the remedy says; and one that was not seen for so long that nobody counts it.
    let gone = "INSERT INTO tidewater.devices (id, session, version) VALUES (gen_random_uuid(), gen_random_uuid(), '0.0.1')";
    admin(&device, gone).await;
    let found = report(&device);
    let finding = only(&found, Check::Versions, &format!("{this} here and on 1, 0.0.1 on 1"));
    assert!(finding.remedy.as_ref().unwrap().text.contains("DELETE FROM tidewater.devices WHERE id ="));
    admin(&device, "DELETE FROM tidewater.devices WHERE version = '0.0.1' AND round IS NULL").await;
    assert_eq!(line(), all);
    admin(&device, gone).await;
    let long_ago =
        "UPDATE tidewater.devices SET seen_at = now() - interval '31 days' WHERE version = '0.0.1'";
    admin(&device, long_ago).await;
    assert_eq!(line(), format!("protocol 3, 3 devices, {this} on all seen lately"));
}

/// A cloud that nobody has brought to this version's protocol yet is no fault, and says nothing of versions; this device's next
/// sync brings it there.
#[tokio::test]
async fn a_cloud_of_an_older_protocol() {
    let device = synced().await;
    admin(
        &device,
        "ALTER TABLE tidewater.devices DROP COLUMN version; UPDATE tidewater.identity SET schema_version = 2",
    )
    .await;
    let found = report(&device);
    assert_good(&found);
    let finding = found.finding(Check::Versions).unwrap();
    assert_eq!(finding.finding, "protocol 2, 1 device");
    assert!(finding.details[0].contains("from protocol 3 on"), "{finding:#?}");
    start_and_stop(&device);
    let finding = report(&device).finding(Check::Versions).unwrap().finding.clone();
    assert_eq!(finding, format!("protocol 3, 1 device, {}", env!("CARGO_PKG_VERSION")));
}

// ---------------------------------------------------------------------------------------------------------
// What the file holds for the cloud
// ---------------------------------------------------------------------------------------------------------

/// Capture triggers that somebody dropped, or made otherwise, are made anew by the supervisor.
#[tokio::test]
async fn capture_triggers_that_are_gone() {
    let device = synced().await;
    for damage in [
        "DROP TRIGGER _tidewater_1_update;",
        "DROP TRIGGER _tidewater_1_delete; \
         CREATE TRIGGER _tidewater_1_delete AFTER DELETE ON note BEGIN SELECT 1; END;",
        "CREATE TRIGGER later BEFORE INSERT ON note WHEN NEW.body = 'secret' BEGIN SELECT RAISE(IGNORE); END;",
    ] {
        shell::sqlite3_shell(device.path(), damage);
        let found = report(&device);
        let finding = only(&found, Check::Triggers, "note");
        assert!(finding.remedy.as_ref().unwrap().text.contains("start run_supervisor"), "{finding:#?}");
        start_and_stop(&device);
        assert_good(&report(&device));
    }
}

/// Rows that have waited for long go out as soon as a supervisor runs.
#[tokio::test]
async fn an_old_backlog() {
    let device = synced().await;
    shell::sqlite3_shell(
        device.path(),
        "INSERT INTO note (body) VALUES ('old'); UPDATE _tidewater_journal_1 SET stamp = stamp - 3 * 3600000000;",
    );
    let found = report(&device);
    let finding = only(&found, Check::Backlog, "1 row waits, the oldest for 3 h");
    assert!(finding.remedy.as_ref().unwrap().text.contains("start run_supervisor"));
    // Without a cloud to send it to, that comes first.
    device.proxy.stop();
    assert!(reds(&report(&device)).ends_with(&[Check::Backlog]));
    device.proxy.start();
    start_and_stop(&device);
    assert_good(&report(&device));
}

/// A row that the cloud refuses.
#[tokio::test]
async fn a_parked_row() {
    let device = synced().await;
    admin(&device, "ALTER TABLE note ADD CONSTRAINT short CHECK (length(body) < 5)").await;
    let supervisor = device.start();
    shell::sqlite3_shell(device.path(), "INSERT INTO note (body) VALUES ('far too long');");
    device.wait_for_status("the row is parked", |status| status["sync"]["parked"] == 1);
    let found = report(&device);
    let finding = only(&found, Check::Parked, "refuses 1 row");
    assert_eq!(finding.remedy.as_ref().unwrap().shell.as_deref(), Some("run_supervisor parked list"));
    // "Change the rows": it is tried again by itself.
    shell::sqlite3_shell(device.path(), "UPDATE note SET body = 'ok' WHERE body = 'far too long';");
    device.wait_for_status("the row got through", |status| {
        status["sync"]["parked"] == 0 && status["sync"]["pending"] == 0
    });
    assert_good(&report(&device));
    supervisor.stop();
}

/// What makes no sense in the journal is told line by line.
#[tokio::test]
async fn a_journal_that_makes_no_sense() {
    let device = synced().await;
    for (damage, undo, says) in [
        (
            "INSERT INTO _tidewater_journal_1 (k0, known, whole, stamp, epoch) VALUES (1, 1, 2, 1, 1);",
            "DELETE FROM _tidewater_journal_1;",
            "1 noted as deleted",
        ),
        (
            "INSERT INTO _tidewater_flight_1 (k0, known, stamp, epoch) VALUES (1, 1, 1, 1);",
            "DELETE FROM _tidewater_flight_1;",
            "under way without a round",
        ),
        (
            "INSERT INTO _tidewater_journal_1 (k0, known, stamp, epoch) VALUES (1, 1, 1, 1 << 40);",
            "DELETE FROM _tidewater_journal_1;",
            "1 of rounds to come",
        ),
    ] {
        shell::sqlite3_shell(device.path(), damage);
        let found = report_of(&device, doctor(&device).env("TIDEWATER_DOCTOR__BACKLOG_AGE_S", "2592000"));
        let finding = found.finding(Check::Journal).unwrap();
        assert!(reds(&found).contains(&Check::Journal) && finding.finding.contains(says), "{finding:#?}");
        shell::sqlite3_shell(device.path(), undo);
        assert_good(&report(&device));
    }
}

/// Tables that stay local are no fault, and are named with the reason.
#[tokio::test]
async fn tables_that_stay_local() {
    let device = synced().await;
    shell::sqlite3_shell(device.path(), "CREATE TABLE scratch (a, b);");
    let found = report(&device);
    assert_good(&found);
    let finding = found.finding(Check::Tables).unwrap();
    assert_eq!(finding.finding, "1 synced, 1 local only");
    assert!(finding.details[0].starts_with("scratch stays local: it has no primary key"), "{finding:#?}");
}

/// A file that was replaced under the supervisor that has it open.
#[tokio::test]
async fn a_file_that_was_replaced() {
    let device = synced().await;
    let supervisor = device.start();
    device.wait_until_flushed();
    let copy = beside(&device.path(), ".copy");
    assert!(output(device.command().arg("backup").arg(&copy)).status.success());
    fs::rename(&copy, device.path()).unwrap();
    let found = report(&device);
    let finding = found.finding(Check::Supervisor).unwrap();
    assert!(finding.mark == Mark::Red && finding.finding.contains("deleted or replaced"), "{finding:#?}");
    assert!(finding.remedy.as_ref().unwrap().text.contains("restart run_supervisor"));
    supervisor.stop();
    start_and_stop(&device);
    assert_good(&report(&device));
}

/// A circuit that somebody held, and forgot.
#[tokio::test]
async fn a_circuit_that_is_held() {
    let device = synced().await;
    let supervisor = device.start();
    device.wait_until_flushed();
    assert!(output(device.command().args(["circuit", "open"])).status.success());
    let found = report(&device);
    follow_shell(&device, only(&found, Check::Supervisor, "held open"));
    assert_good(&report(&device));
    supervisor.stop();
}

// ---------------------------------------------------------------------------------------------------------
// The page
// ---------------------------------------------------------------------------------------------------------

fn healthy() -> evidence::Evidence {
    let note = evidence::CloudSide {
        name: "note".into(),
        there: true,
        feed: true,
        may_install: true,
        ..evidence::CloudSide::default()
    };
    let id = "6f1c2e5a-0d35-4b0e-9a55-1d9d2f1c7b11";
    evidence::Evidence {
        path: "/home/ann/tidewater.db".into(),
        file: evidence::File::Opened(Box::new(evidence::Inside {
            bytes: 5 << 20,
            log_bytes: 1 << 15,
            ours: Some(evidence::Ours {
                format: 1,
                tracked: vec!["note".into()],
                local: vec![(
                    "log".into(),
                    "it has no primary key, by which its rows could be told apart".into(),
                )],
                pending: 3,
                oldest_us: Some(1_700_000_000_000_000),
                cloud: Some(id.into()),
                system: Some("71".into()),
                ..evidence::Ours::default()
            }),
            ..evidence::Inside::default()
        })),
        lock: evidence::Lock::Held { pid: 4711, name: Some("run_supervisor".into()) },
        integrity: evidence::Integrity::Looked { damage: vec![], orphans: vec![] },
        disk: evidence::Disk::Seen { free_bytes: 40 << 30, read_only: false },
        supervisor: evidence::Supervisor::Runs(Box::new(evidence::Running {
            version: "0.1.0".into(),
            actors: 4,
            proxy: "available".into(),
            sync: "idle".into(),
            ..evidence::Running::default()
        })),
        cloud: evidence::Cloud {
            endpoint: "127.0.0.1:5432".into(),
            port: 5432,
            listening: Some(true),
            proxies: vec!["cloud-sql-proxy (process 812)".into()],
            required: false,
            missing: None,
            database: "notes".into(),
            user: "app".into(),
            dial: Some(evidence::Dial::Answered(Box::new(evidence::Answers {
                server: "15.8".into(),
                identity: Some(id.into()),
                system: Some("71".into()),
                protocol: Some(3),
                devices: Some(2),
                versions: Some(vec![evidence::Others {
                    version: Some("0.1.0".into()),
                    devices: 1,
                    some: vec!["0b7a9c1e-3b1f-4a53-8a0e-4df7a1a5c0de".into()],
                }]),
                clock_ahead_s: 0.3,
                clock_within_s: 0.012,
                tables: vec![note],
                ..evidence::Answers::default()
            }))),
        },
        limits: evidence::Limits { disk_free_bytes: 256 << 20, clock_skew_s: 10.0, backlog_age_s: 3600.0 },
        now_us: 1_700_000_060_000_000,
        version: "0.1.0".into(),
    }
}

fn faulty() -> evidence::Evidence {
    let mut evidence = healthy();
    evidence.path = format!("/srv/{}tidewater.db", "a-long-name-of-a-folder/".repeat(3));
    evidence.integrity = evidence::Integrity::Looked {
        damage: vec!["Tree 5 page 9: btreeInitPage() returns error code 11".into()],
        orphans: vec![],
    };
    evidence.supervisor = evidence::Supervisor::NotRunning { stale_socket: true };
    evidence.now_us += 5 * 3_600_000_000;
    if let Some(evidence::Dial::Answered(answers)) = &mut evidence.cloud.dial {
        answers.rights = vec![evidence::Lack {
            what: "this role may not insert, update, delete note".into(),
            who: "as alice:".into(),
            sql: Some("GRANT INSERT, UPDATE, DELETE ON \"public\".\"note\" TO \"app\"".into()),
        }];
        answers.clock_ahead_s = -200.0;
        answers.tables[0].feed = false;
    }
    evidence
}

/// The page of a healthy device, as people see it.
#[test]
fn the_page_of_a_healthy_device() {
    assert_snapshot!(Report::of(&healthy()).page(false), @r#"
    ✓ file         /home/ann/tidewater.db, 5.0 MiB, 32.0 KiB in its log
    ✓ lock         held by the supervisor that runs, process 4711
    ✓ integrity    the file is whole, and every reference has its row
    ✓ disk space   40.0 GiB free
    ✓ supervisor   4 actors run, proxy available, sync idle
    ✓ endpoint     something listens on 127.0.0.1:5432
    ✓ process      cloud-sql-proxy (process 812) runs
    ✓ connect      taken
    ✓ startup      PostgreSQL 15.8 answers
    ✓ login        role app, database notes
    ✓ identity     cloud 6f1c2e5a, to which this file belongs
    ✓ rights       this role may do all that a sync needs
    ✓ feed         1 table in it
    ✓ triggers     1 table with all of them
    ✓ journal      3 rows waiting
    ✓ tables       1 synced, 1 local only
        log stays local: it has no primary key, by which its rows could be told
        apart
    ✓ parked       none
    ✓ schema drift 1 table the same on both sides
    ✓ clock skew   300 ms, to within 12 ms
    ✓ backlog      3 rows wait, the oldest for 60 s
    ✓ versions     protocol 3, 2 devices, 0.1.0 on all seen lately
    0 red, 21 green, 0 not looked at
    "#);
}

/// The page of one with faults: what cannot be seen on one line is below it, commands can be taken as they stand.
#[test]
fn the_page_with_faults() {
    let report = Report::of(&faulty());
    assert_narrow(&report);
    assert_snapshot!(report.page(false), @r#"
    ✓ file         /srv/a-long-name-of-a-folder/a-long-name-of-a-folder/a-long-name…
    ✗ lock         process 4711 (run_supervisor) holds it and answers no verb
        → let that program end in good order:
          kill 4711
    ✗ integrity    the file is damaged, in 1 place
        Tree 5 page 9: btreeInitPage() returns error code 11
        → end every program that has it open, and restore a backup; or save what can
        be read, which is then compared with the cloud:
          f=/srv/a-long-name-of-a-folder/a-long-name-of-a-folder/a-long-name-of-a\
    -folder/tidewater.db; sqlite3 "$f" .dump | sed \
          's/^ROLLBACK; -- due to errors$/COMMIT;/' | sqlite3 "$f.saved" && \
          sqlite3 "$f.saved" \
          "PRAGMA writable_schema = 1; DELETE FROM sqlite_schema WHERE type = 'tr\
    igger' AND name GLOB '_tidewater_*'" && test -s "$f.saved" && chmod 600 \
          "$f.saved" && mv "$f" "$f.damaged" && rm -f "$f-wal" "$f-shm" && mv \
          "$f.saved" "$f"
    ✓ disk space   40.0 GiB free
    ✓ supervisor   none runs; the next one replaces the socket that one left behind
    ✓ endpoint     something listens on 127.0.0.1:5432
    ✓ process      cloud-sql-proxy (process 812) runs
    ✓ connect      taken
    ✓ startup      PostgreSQL 15.8 answers
    ✓ login        role app, database notes
    ✓ identity     cloud 6f1c2e5a, to which this file belongs
    ✗ rights       this role may not insert, update, delete note
        → as alice:
          GRANT INSERT, UPDATE, DELETE ON "public"."note" TO "app";
    ✗ feed         its triggers are missing or disabled: note
        → start run_supervisor: it installs them, and compares note with the cloud
    ✓ triggers     1 table with all of them
    ✓ journal      3 rows waiting
    ✓ tables       1 synced, 1 local only
        log stays local: it has no primary key, by which its rows could be told
        apart
    ✓ parked       none
    ✓ schema drift 1 table the same on both sides
    ✗ clock skew   this machine is 3 min ahead of the server
        → set this machine's clock, and keep it set:
          timedatectl set-ntp true
    ✗ backlog      3 rows wait, the oldest for 5 h
        → start run_supervisor: it sends them
    ✓ versions     protocol 3, 2 devices, 0.1.0 on all seen lately
    6 red, 15 green, 0 not looked at
    "#);
}

/// Colours are on the marks and on the last line, and nowhere else.
#[test]
fn the_page_in_colour() {
    let [healthy, faulty] = [healthy(), faulty()].map(|evidence| Report::of(&evidence));
    assert_snapshot!(healthy.page(true).escape_debug().to_string().replace("\\n", "\n"), @r#"
    \u{1b}[32m✓\u{1b}[0m file         /home/ann/tidewater.db, 5.0 MiB, 32.0 KiB in its log
    \u{1b}[32m✓\u{1b}[0m lock         held by the supervisor that runs, process 4711
    \u{1b}[32m✓\u{1b}[0m integrity    the file is whole, and every reference has its row
    \u{1b}[32m✓\u{1b}[0m disk space   40.0 GiB free
    \u{1b}[32m✓\u{1b}[0m supervisor   4 actors run, proxy available, sync idle
    \u{1b}[32m✓\u{1b}[0m endpoint     something listens on 127.0.0.1:5432
    \u{1b}[32m✓\u{1b}[0m process      cloud-sql-proxy (process 812) runs
    \u{1b}[32m✓\u{1b}[0m connect      taken
    \u{1b}[32m✓\u{1b}[0m startup      PostgreSQL 15.8 answers
    \u{1b}[32m✓\u{1b}[0m login        role app, database notes
    \u{1b}[32m✓\u{1b}[0m identity     cloud 6f1c2e5a, to which this file belongs
    \u{1b}[32m✓\u{1b}[0m rights       this role may do all that a sync needs
    \u{1b}[32m✓\u{1b}[0m feed         1 table in it
    \u{1b}[32m✓\u{1b}[0m triggers     1 table with all of them
    \u{1b}[32m✓\u{1b}[0m journal      3 rows waiting
    \u{1b}[32m✓\u{1b}[0m tables       1 synced, 1 local only
        log stays local: it has no primary key, by which its rows could be told
        apart
    \u{1b}[32m✓\u{1b}[0m parked       none
    \u{1b}[32m✓\u{1b}[0m schema drift 1 table the same on both sides
    \u{1b}[32m✓\u{1b}[0m clock skew   300 ms, to within 12 ms
    \u{1b}[32m✓\u{1b}[0m backlog      3 rows wait, the oldest for 60 s
    \u{1b}[32m✓\u{1b}[0m versions     protocol 3, 2 devices, 0.1.0 on all seen lately
    \u{1b}[32m0 red, 21 green, 0 not looked at\u{1b}[0m
    "#);
    for report in [healthy, faulty] {
        let page = report.page(true);
        let mut plain = page.clone();
        for code in ["\u{1b}[32m", "\u{1b}[1m", "\u{1b}[31m", "\u{1b}[2m", "\u{1b}[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, report.page(false));
    }
}

/// The command prints colours to terminals only, and not even there where NO_COLOR is set; CLICOLOR_FORCE insists.
#[test]
fn the_command_prints_colours_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let coloured = |variables: &[(&str, &str)]| {
        let mut command = process::command(folder.path());
        command.arg("doctor").env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.envs(variables.iter().copied());
        let told = output(&mut command);
        assert_eq!(told.status.code(), Some(1));
        assert!(told.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&told.stderr));
        told.stdout.contains(&0x1b)
    };
    assert!(!coloured(&[]));
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("NO_COLOR", "1")]));
}

/// A bad setting is status 2, as with every verb.
#[test]
fn a_bad_setting_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let told =
        output(process::command(folder.path()).arg("doctor").env("TIDEWATER_DOCTOR__CLOCK_SKEW_S", "soon"));
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stderr).contains("doctor.clock_skew_s"));
}
