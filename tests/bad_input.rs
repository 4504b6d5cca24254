//! Whatever is wrong with a file, a setting or the cloud: one clear line that names it and says what helps, and nothing
//! is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod process;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use process::{Device, PATIENCE, Process, command, command_of, output};
use tidewater_test_support::{shell, wait};

/// A user without rights, for what root is allowed to do anyway.
const NOBODY: u32 = 65_534;

fn assert_no_panic(said: &str) {
    for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
        assert!(!said.contains(word), "{said}");
    }
}

/// It ended with `status` and one line on standard error that contains every part.
fn assert_refused(output: &Output, status: i32, parts: &[&str]) {
    let said = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_no_panic(said);
    assert_eq!((said.lines().count(), &output.stdout[..]), (1, &b""[..]), "{said}");
    assert!(said.starts_with("run_supervisor: "), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
    eprint!("{said}");
}

fn with_file(folder: &Path, file: &Path) -> Command {
    let mut command = command(folder);
    // Nothing listens on port 1; a file that can be opened ends the test by its patience.
    command.env("TIDEWATER_DATABASE", file).env("CLOUD_SQL_PROXY_PORT", "1");
    command
}

/// The command as a user whom file permissions bind, from a place that this user may enter.
fn as_nobody(folder: &Path, file: &Path) -> Command {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return with_file(folder, file);
    }
    let binary = folder.join("run_supervisor");
    if !binary.exists() {
        fs::copy(env!("CARGO_BIN_EXE_run_supervisor"), &binary).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = command_of(&binary, folder);
    command.env("TIDEWATER_DATABASE", file).env("CLOUD_SQL_PROXY_PORT", "1").uid(NOBODY).gid(NOBODY);
    command
}

fn give_to_nobody(path: &Path) {
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A real database with a few pages.
fn database(path: &Path) {
    shell::sqlite3_shell(
        path,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);
         WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO note SELECT i, hex(randomblob(40)) FROM n;",
    );
}

/// A folder in the place of the file is named, with what to do.
#[test]
fn the_database_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("folder.db");
    fs::create_dir(&file).unwrap();
    assert_refused(
        &output(&mut with_file(folder.path(), &file)),
        1,
        &["folder.db", "folder", "TIDEWATER_DATABASE"],
    );
    assert_eq!(fs::read_dir(&file).unwrap().count(), 0);
}

/// A file in a folder that does not exist is not created somewhere else.
#[test]
fn the_folder_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("missing/x.db");
    assert_refused(&output(&mut with_file(folder.path(), &file)), 1, &["missing/x.db", "create its folder"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A file that this user may not read is refused with the right that is missing.
#[test]
fn the_file_is_not_readable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret.db");
    database(&file);
    let before = fs::read(&file).unwrap();
    // The folder may be written to, so that it is about the file.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = as_nobody(folder.path(), &file);
    give_to_nobody(folder.path());
    assert_refused(&output(&mut command), 1, &["secret.db", "right to read and write"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// A folder that this user may not write to is refused, whether the file is there or not.
#[test]
fn the_folder_is_not_writable() {
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let file = closed.join("x.db");
    database(&file);
    let before = fs::read(&file).unwrap();
    give_to_nobody(&file);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    for name in ["x.db", "new.db"] {
        let file = closed.join(name);
        let mut command = as_nobody(folder.path(), &file);
        assert_refused(&output(&mut command), 1, &[name, "ermission denied", "its folder"]);
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 1);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A text file and a database with a broken header are refused, and not a byte of them changes.
#[test]
fn the_file_is_not_a_database() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.db");
    database(&good);
    let mut header = fs::read(&good).unwrap();
    header[..16].copy_from_slice(b"SQLite format 9\0");
    let mut truncated = fs::read(&good).unwrap();
    truncated.truncate(300);
    let text = b"Dear diary,\ntoday I was opened as a database.\n".repeat(40);
    for (name, bytes) in [("text.db", text), ("header.db", header), ("truncated.db", truncated)] {
        let file = folder.path().join(name);
        fs::write(&file, &bytes).unwrap();
        assert_refused(&output(&mut with_file(folder.path(), &file)), 1, &[name, "restore a backup"]);
        assert_eq!(fs::read(&file).unwrap(), bytes, "{name}");
    }
}

/// A damaged page of the schema is found at the start; the rest of the file is not touched.
#[test]
fn a_page_of_the_file_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.db");
    database(&file);
    let mut bytes = fs::read(&file).unwrap();
    // The first page after its header: the schema's b-tree.
    bytes[100..200].fill(0xA5);
    fs::write(&file, &bytes).unwrap();
    assert_refused(&output(&mut with_file(folder.path(), &file)), 1, &["damaged.db", "restore a backup"]);
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

/// An empty file is a new database.
#[test]
fn an_empty_file_is_a_new_database() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.db");
    fs::write(&file, b"").unwrap();
    let process = Process::ready(&mut with_file(folder.path(), &file));
    shell::sqlite3_shell(&file, "CREATE TABLE note (id INTEGER PRIMARY KEY);");
    process.stop();
    assert!(fs::read(&file).unwrap().starts_with(b"SQLite format 3\0"));
}

/// A file system of its own, gone when dropped. `None` where it cannot be mounted: not root, or a container.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tidewater-test"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                eprintln!("not tried, a tmpfs cannot be mounted here: {other:?}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", options]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: it goes even if somebody still has a file of it open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A read-only disk is called by its name.
#[test]
fn the_disk_is_read_only() {
    let elsewhere = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let file = mount.0.path().join("x.db");
    database(&file);
    let before = fs::read(&file).unwrap();
    mount.remount("remount,ro");
    for name in ["x.db", "new.db"] {
        let file = mount.0.path().join(name);
        assert_refused(
            &output(&mut with_file(elsewhere.path(), &file)),
            1,
            &[name, "read-only", "TIDEWATER_DATABASE"],
        );
    }
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// A full disk is called by its name, and the file is as it was.
#[test]
fn the_disk_is_full() {
    let elsewhere = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::tmpfs("size=512k") else { return };
    let file = mount.0.path().join("x.db");
    shell::sqlite3_shell(&file, "CREATE TABLE note (id INTEGER PRIMARY KEY); INSERT INTO note VALUES (7);");
    let mut filler = fs::File::create(mount.0.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
    drop(filler);
    let output = output(&mut with_file(elsewhere.path(), &file));
    assert_refused(&output, 1, &["x.db", "the disk is full", "free some space"]);
    fs::remove_file(mount.0.path().join("filler")).unwrap();
    assert_eq!(shell::sqlite3_shell(&file, "PRAGMA integrity_check; SELECT id FROM note;"), "ok\n7\n");
    // With space it works, without anybody repairing anything.
    Process::ready(&mut with_file(elsewhere.path(), &file)).stop();
}

/// A bad value of any documented variable ends with status 2, the variable's name, the value, and what is allowed.
#[test]
fn bad_values_of_the_variables_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value, allowed) in [
        ("CLOUD_SQL_PROXY_PORT", "0", "1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "70000", "1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "abc", "1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "-5432", "1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "5432.5", "1 to 65535"),
        ("CLOUD_SQL_PROXY_HOST", "relative/folder", ""),
        ("CLOUD_SQL_PROXY_HOST", "two words", ""),
        ("CLOUD_SQL_PROXY_TIMEOUT", "-1", "seconds"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "NaN", "seconds"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "inf", "seconds"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "0", "seconds"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "soon", "seconds"),
        ("CLOUD_SQL_RETRY_DELAY", "-0.1", "seconds"),
        ("CLOUD_SQL_RETRY_DELAY", "1e300", "seconds"),
        ("CLOUD_SQL_MAX_RETRY_DELAY", "NaN", "seconds"),
        // Less than the first delay.
        ("CLOUD_SQL_MAX_RETRY_DELAY", "1", "retry_delay"),
        ("JARVIS_ENV", "staging", "production"),
        ("CLOUD_SQL_REQUIRE_PROXY", "maybe", "true"),
        ("CLOUD_SQL_PASSWORD_FILE", "/missing/password", ""),
        ("TIDEWATER_DATABASE", ":memory:", ""),
        ("TIDEWATER_SYNC__WINDOW_ROWS_MAX", "0", ""),
        ("TIDEWATER_LOG__LEVEL", "loud", "debug"),
    ] {
        let output = output(command(folder.path()).env(name, value));
        assert_refused(&output, 2, &[name, value, allowed]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a bad setting leaves nothing behind");
}

/// A variable with a mistake in its name is not passed over: the name that was meant is suggested.
#[test]
fn an_unknown_variable_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(command(folder.path()).env("TIDEWATER_SYNC__WINDOW_ROW_MAX", "10"));
    assert_refused(&output, 2, &["TIDEWATER_SYNC__WINDOW_ROW_MAX", "TIDEWATER_SYNC__WINDOW_ROWS_MAX"]);
}

/// Unknown flags and verbs end with status 2 and their name.
#[test]
fn unknown_flags_and_verbs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for argument in ["--frobnicate", "explode"] {
        let output = output(command(folder.path()).arg(argument));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(argument), "{said}");
        assert_no_panic(&said);
    }
}

/// A password file that cannot be read is named, and so is what it was for; a password is never shown.
#[test]
fn an_unreadable_password_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "hunter2\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o000)).unwrap();
    let mut unreadable = as_nobody(folder.path(), &folder.path().join("x.db"));
    let refused = output(unreadable.env("CLOUD_SQL_PASSWORD_FILE", &password));
    assert_refused(&refused, 2, &["CLOUD_SQL_PASSWORD_FILE", "password", "ermission denied"]);
    let mut both = command(folder.path());
    both.env("CLOUD_SQL_PASSWORD_FILE", &password).env("CLOUD_SQL_PASSWORD", "hunter2");
    let refused = output(&mut both);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("hunter2"));
    assert_refused(&refused, 2, &["CLOUD_SQL_PASSWORD"]);
}

// ---------------------------------------------------------------------------------------------------------
// The cloud
// ---------------------------------------------------------------------------------------------------------

const NOTE: &str =
    "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'a'), (2, 'b');";

fn errors(process: &Process) -> Vec<String> {
    process.lines().into_iter().filter(|line| line.contains(" | ERROR | ")).collect()
}

fn assert_said_once(process: &Process, part: &str) {
    let lines = process.lines();
    assert_eq!(lines.iter().filter(|line| line.contains(part)).count(), 1, "{part:?}: {lines:#?}");
    assert_no_panic(&lines.join("\n"));
}

/// A table without a primary key is named once and stays here; the others are synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_primary_key_stays_local() {
    let device = Device::new().await;
    shell::sqlite3_shell(
        device.path(),
        &format!("{NOTE} CREATE TABLE scratch (x TEXT); INSERT INTO scratch VALUES ('here');"),
    );
    device.proxy.start();
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    let status = device.wait_until_flushed();
    assert_eq!(status["sync"]["parked"], 0);
    // A change of the schema is no reason to say it again.
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE more (id INTEGER PRIMARY KEY); INSERT INTO more VALUES (1);",
    );
    device.wait_until_equal(&["more"]).await;
    assert_said_once(&process, "scratch");
    let client = device.cloud.connect().await;
    assert!(client.query("SELECT * FROM scratch", &[]).await.is_err(), "it is not in the cloud");
    process.stop();
}

/// A role that may create nothing blocks the sync: one line with the grant, and after it everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_rights_is_told_which_grant_helps() {
    let device = Device::new().await;
    let admin = device.cloud.connect_as_admin().await;
    let (name, user) = (&device.cloud.name, &device.cloud.user);
    admin
        .batch_execute(&format!(
            "ALTER DATABASE {name} OWNER TO postgres; REVOKE ALL ON DATABASE {name} FROM {user}; \
             GRANT CONNECT ON DATABASE {name} TO {user}; REVOKE CREATE ON SCHEMA public FROM PUBLIC, {user};"
        ))
        .await
        .unwrap();
    shell::sqlite3_shell(device.path(), NOTE);
    device.proxy.start();
    let process = device.start();
    let status = device.wait_for_status("blocked", |status| status["sync"]["state"] == "blocked");
    assert_eq!(status["sync"]["pending"], 2, "{status:#}");
    let said = errors(&process);
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("CREATE ON DATABASE") && said[0].contains(user.as_str()), "{said:#?}");
    let lines = process.stop();
    assert_no_panic(&lines.join("\n"));

    // One right of two: the other one is asked for, by its name.
    admin.batch_execute(&format!("GRANT CREATE ON DATABASE {name} TO {user}")).await.unwrap();
    let process = device.start();
    wait::until("the schema's grant is named", PATIENCE, async || {
        let lines = process.lines();
        let named = lines.iter().any(|line| line.contains("GRANT") && line.contains("ON SCHEMA"));
        if named { Ok(()) } else { Err(format!("{lines:#?}")) }
    })
    .await;
    assert_eq!(device.status().unwrap()["sync"]["pending"], 2);
    process.stop();

    admin.batch_execute(&format!("GRANT CREATE, USAGE ON SCHEMA public TO {user}")).await.unwrap();
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    assert_eq!(errors(&process), Vec::<String>::new());
    process.stop();
}

/// Into a table of somebody else, where no trigger may be created, rows still go; why none come back is said once, and
/// nothing of what others did meanwhile is missing afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_create_triggers_push_still_works() {
    let device = Device::new().await;
    let admin = device.cloud.connect_as_admin().await;
    let user = &device.cloud.user;
    admin
        .batch_execute(&format!(
            "CREATE TABLE public.note (id bigint PRIMARY KEY, body text); \
             GRANT SELECT, INSERT, UPDATE, DELETE ON public.note TO {user};"
        ))
        .await
        .unwrap();
    shell::sqlite3_shell(device.path(), NOTE);
    device.proxy.start();
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    shell::sqlite3_shell(
        device.path(),
        "UPDATE note SET body = 'c' WHERE id = 1; DELETE FROM note WHERE id = 2;",
    );
    device.wait_until_equal(&["note"]).await;
    assert_said_once(&process, "ALTER TABLE \"public\".\"note\" OWNER TO");
    assert_eq!(errors(&process), Vec::<String>::new());
    process.stop();

    // What it asks for is enough, and then what others did meanwhile comes, too.
    let owned =
        format!("INSERT INTO public.note VALUES (9, 'unseen'); ALTER TABLE public.note OWNER TO {user}");
    admin.batch_execute(&owned).await.unwrap();
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    admin.batch_execute("INSERT INTO public.note VALUES (10, 'seen')").await.unwrap();
    device.wait_until_equal(&["note"]).await;
    assert_eq!(process.count("OWNER TO"), 0, "{:#?}", process.lines());
    process.stop();
}

/// A refused login blocks, is said once with the remedy, and is not tried again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_said_once_and_not_hammered() {
    for (variable, value, parts) in [
        ("CLOUD_SQL_PASSWORD", "wrong", ["password", "CLOUD_SQL_PASSWORD"]),
        ("CLOUD_SQL_DATABASE", "no_such_database", ["no_such_database", "CLOUD_SQL_DATABASE"]),
    ] {
        let device = Device::new().await;
        shell::sqlite3_shell(device.path(), NOTE);
        device.proxy.start();
        let process = Process::ready(device.command().env(variable, value));
        device.wait_for_status("blocked", |status| status["sync"]["state"] == "blocked");
        let known = process.lines().len();
        // Ten seconds are what this is about: nothing is tried and nothing said within them.
        assert!(process.stays_silent(known, Duration::from_secs(10)), "{:#?}", process.lines());
        assert_eq!(device.proxy.accepted(), 1, "{variable}: {:#?}", process.lines());
        let said = errors(&process);
        assert_eq!(said.len(), 1, "{said:#?}");
        for part in parts {
            assert!(said[0].contains(part), "{part:?} is missing: {said:#?}");
        }
        eprintln!("{}", said[0]);
        let status = device.status().unwrap();
        assert_eq!(status["sync"]["pending"], 2, "{status:#}");
        let lines = process.stop();
        assert_no_panic(&lines.join("\n"));
        assert!(!lines.join("\n").contains(&device.cloud.password));

        // The right value, and everything goes on.
        let process = device.start();
        device.wait_until_equal(&["note"]).await;
        process.stop();
    }
}

/// A value that does not fit its column parks its row, visibly, and every other row arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_does_not_fit_parks_its_row_only() {
    let device = Device::new().await;
    device
        .cloud
        .execute_batch(
            "CREATE TABLE item (id bigint PRIMARY KEY, n integer, word varchar(5), CHECK (n IS DISTINCT FROM 13))",
        )
        .await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE item (id INTEGER PRIMARY KEY, n, word);
         INSERT INTO item VALUES (1, 1, 'a'), (2, 'many', 'b'), (3, 3, 'too long'), (4, 3000000000, 'd'),
             (5, 13, 'e'), (6, 6, 'f'), (7, 7, 'nul' || char(0)), (8, NULL, NULL);",
    );
    device.proxy.start();
    let process = device.start();
    let status = device.wait_for_status("the rows are parked", |status| {
        status["sync"]["pending"] == 0 && status["sync"]["state"] == "idle" && status["sync"]["parked"] == 5
    });
    assert_eq!(status["sync"]["rows_flushed"], 3, "{status:#}");
    let client = device.cloud.connect().await;
    let ids: Vec<i64> = client
        .query("SELECT id FROM item ORDER BY id", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(ids, [1, 6, 8]);
    let kept = shell::sqlite3_shell(device.path(), "SELECT count(*) FROM item;");
    assert_eq!(kept, "8\n", "parked is not lost");

    // Repaired here, each goes by itself.
    shell::sqlite3_shell(device.path(), "UPDATE item SET n = 4, word = 'ok' WHERE id IN (2, 3, 4, 5, 7);");
    device.wait_until_equal(&["item"]).await;
    device.wait_for_status("nothing is parked", |status| status["sync"]["parked"] == 0);
    assert_eq!(errors(&process), Vec::<String>::new());
    assert_no_panic(&process.stop().join("\n"));
}
