//! The local file through bad days: too many writers, a log that grows, space to give back, a full disk, a lock that
//! somebody holds, a file that is gone. No cloud is needed for any of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use futures_util::poll;
use harness::{Lines, PATIENCE, here};
use tempfile::TempDir;
use tidewater::settings::{Settings, Sources};
use tidewater::{Database, Error, Statement, StoreError, rusqlite};
use tidewater_test_support::{shell, wait};

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body)";

/// A file in a folder of its own, and no cloud: nothing listens on port 1.
struct Bench {
    folder: TempDir,
    log: Lines,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), log: Lines::default() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("x.db")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("x.db{suffix}"))
    }

    fn settings(&self) -> Sources {
        Settings::builder().set("sqlite.path", self.path().display()).set("proxy.port", 1)
    }

    async fn open(&self) -> Database {
        self.open_with(self.settings()).await
    }

    async fn open_with(&self, settings: Sources) -> Database {
        Database::open(settings.build().unwrap(), self.log.logger()).await.unwrap()
    }

    fn wal_bytes(&self) -> u64 {
        fs::metadata(self.beside("-wal")).unwrap().len()
    }

    async fn wait_until_wal_is_empty(&self) {
        wait::until("the log is empty", PATIENCE, async || match self.wal_bytes() {
            0 => Ok(()),
            bytes => Err(format!("{bytes} bytes; {:#?}", self.log.all())),
        })
        .await;
    }

    async fn wait_for_line(&self, part: &str) {
        wait::until(part, PATIENCE, async || match self.log.count(part) {
            0 => Err(format!("{:#?}", self.log.all())),
            _ => Ok(()),
        })
        .await;
    }
}

fn insert(body: &str) -> Statement {
    Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body.to_owned())
}

fn fill(rows: u32, bytes: u32) -> Statement {
    Statement::new(format!(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO note (body) SELECT randomblob({bytes}) FROM n"
    ))
}

/// Another program that has the write lock from now on; it lets go a little after it was told to.
struct Locker {
    release: PathBuf,
    thread: std::thread::JoinHandle<String>,
}

impl Locker {
    async fn lock(bench: &Bench) -> Self {
        let (held, release) = (bench.beside(".held"), bench.beside(".release"));
        let script = format!(
            "import os, time\ncon.isolation_level = None\ncon.execute('BEGIN EXCLUSIVE')\nopen({held:?}, 'w').close()\n\
             while not os.path.exists({release:?}): time.sleep(0.01)\ntime.sleep(0.3)\ncon.execute('COMMIT')"
        );
        let path = bench.path();
        let thread = std::thread::spawn(move || shell::python_sqlite(path, &script));
        wait::until("the lock is held", PATIENCE, async || {
            if held.exists() { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        Self { release, thread }
    }

    fn release(&self) {
        fs::write(&self.release, "").unwrap();
    }

    fn end(self) {
        self.release();
        self.thread.join().unwrap();
    }
}

// ---------------------------------------------------------------------------------------------------------
// The queue
// ---------------------------------------------------------------------------------------------------------

/// No more writes are under way than allowed: who comes then waits for a turn, in the order of the calls, or is refused
/// at once; whose call is dropped gives its place back.
#[actix_rt::test]
async fn a_full_queue_makes_the_caller_wait_or_fail_as_it_chooses() {
    let bench = Bench::new();
    let db =
        bench.open_with(bench.settings().set("sqlite.queue_max", 2).set("sqlite.busy_timeout_s", 60)).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    let locker = Locker::lock(&bench).await;
    let mut under_way: Vec<_> =
        ["0", "1", "2", "3", "4"].map(|body| Box::pin(db.write([insert(body)]))).into_iter().collect();
    for write in &mut under_way {
        assert!(poll!(write).is_pending());
    }
    let refused = db.try_write([insert("refused")]).await.unwrap_err();
    assert!(matches!(refused, Error::QueueFull(2)) && refused.retry_helps(), "{refused}");
    assert!(refused.to_string().contains("sqlite.queue_max"), "{refused}");
    // Two that wait go away, and the rest moves up.
    drop(under_way.drain(2..4));
    locker.end();
    for write in under_way {
        write.await.unwrap();
    }
    db.try_write([insert("5")]).await.unwrap();
    let bodies = here(&db, "SELECT group_concat(body, ' ') FROM (SELECT body FROM note ORDER BY id)");
    assert_eq!(bodies, "0 1 4 5");
    db.shutdown().await.unwrap();
    assert_eq!(db.try_write([insert("late")]).await.unwrap_err(), Error::ShutDown);
}

/// Whoever waits for a place when the end begins is served before it; who comes later is told of the end.
#[actix_rt::test]
async fn who_waits_for_a_place_is_served_before_the_end() {
    let bench = Bench::new();
    let db = bench.open_with(bench.settings().set("sqlite.queue_max", 1)).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    let mut waiting: Vec<_> = (0..20).map(|n| Box::pin(db.write([insert(&n.to_string())]))).collect();
    for write in &mut waiting {
        assert!(poll!(write).is_pending());
    }
    let (written, ended) = tokio::join!(join_all(waiting), db.shutdown());
    ended.unwrap();
    assert!(written.iter().all(Result::is_ok), "{written:#?}");
    assert_eq!(db.write([insert("late")]).await.unwrap_err(), Error::ShutDown);
    assert_eq!(shell::sqlite3_shell(bench.path(), "SELECT count(*) FROM note;"), "20\n");
}

// ---------------------------------------------------------------------------------------------------------
// The log and free pages
// ---------------------------------------------------------------------------------------------------------

/// The log stays short while writes never pause, and is emptied when they do; nothing of what it held is missing.
#[actix_rt::test]
async fn the_log_stays_short_under_writes_and_is_emptied_at_rest() {
    let bench = Bench::new();
    let settings = bench.settings().set("sqlite.checkpoint_pages", 50).set("sqlite.wal_keep_mib", 0);
    let db = bench.open_with(settings.set("sqlite.idle_s", 0.1)).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    let mut longest = 0;
    for _ in 0..1500 {
        db.write([fill(1, 1000)]).await.unwrap();
        longest = longest.max(bench.wal_bytes());
    }
    // The log of these writes would have thousands of pages.
    println!("the longest log: {} pages", longest / 4096);
    assert!(longest < 16 * 50 * 4096, "{longest} bytes");
    bench.wait_until_wal_is_empty().await;
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "1500");
    db.shutdown().await.unwrap();
    assert!(!bench.beside("-wal").exists());
    assert_eq!(
        shell::sqlite3_shell(bench.path(), "PRAGMA integrity_check; SELECT count(*) FROM note;"),
        "ok\n1500\n"
    );
}

/// A read transaction that stays open keeps the log from shrinking, holds up no write, and is worth one line; when it
/// ends the log is emptied.
#[actix_rt::test]
async fn a_read_transaction_that_stays_open_is_told_once() {
    let bench = Bench::new();
    let settings = bench.settings().set("sqlite.checkpoint_pages", 50).set("sqlite.wal_warn_mib", 1);
    let db = bench.open_with(settings.set("sqlite.idle_s", 0.1)).await;
    db.write([Statement::new(NOTE), fill(10, 10)]).await.unwrap();
    for times in 1..3 {
        let mut reader = rusqlite::Connection::open(bench.path()).unwrap();
        let open = reader.transaction().unwrap();
        let seen: i64 = open.query_row("SELECT count(*) FROM note", [], |row| row.get(0)).unwrap();
        for _ in 0..200 {
            db.write([fill(10, 1000)]).await.unwrap();
        }
        bench.wait_for_line("read transaction").await;
        let now: i64 = open.query_row("SELECT count(*) FROM note", [], |row| row.get(0)).unwrap();
        assert_eq!(now, seen, "it reads what it read");
        drop(open);
        bench.wait_until_wal_is_empty().await;
        assert_eq!(bench.log.count("read transaction"), times, "{:#?}", bench.log.all());
        // As many as before: what was said is said again only for another one.
        db.write([Statement::new("DELETE FROM note WHERE id > 10")]).await.unwrap();
    }
    db.shutdown().await.unwrap();
}

/// Pages that become free go back to the disk at rest, in a file that was created here; a file that somebody else made
/// without that ability is left as it is.
#[actix_rt::test]
async fn free_pages_are_given_back_at_rest() {
    for ours in [true, false] {
        let bench = Bench::new();
        if !ours {
            shell::sqlite3_shell(bench.path(), "CREATE TABLE theirs (id INTEGER PRIMARY KEY);");
        }
        let settings = bench.settings().set("sqlite.idle_s", 0.1).set("sqlite.vacuum_step_pages", 20);
        let db = bench.open_with(settings).await;
        assert_eq!(here(&db, "PRAGMA auto_vacuum"), if ours { "2" } else { "0" });
        // Without a primary key it has no journal, which would take the pages that become free.
        let create = "CREATE TABLE scratch AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE \
                      i < 500) SELECT randomblob(4000) AS body FROM n";
        db.write([Statement::new(create)]).await.unwrap();
        db.write([Statement::new("DELETE FROM scratch")]).await.unwrap();
        // Emptied after the last step.
        bench.wait_until_wal_is_empty().await;
        let free: u32 = here(&db, "PRAGMA freelist_count").parse().unwrap();
        let bytes = fs::metadata(bench.path()).unwrap().len();
        println!("created here: {ours}; {free} free pages in {} of the file", bytes / 4096);
        if ours {
            assert!(free == 0 && bytes < 100 * 4096, "{free} of {bytes} bytes");
        } else {
            assert!(free >= 500, "{free} of {bytes} bytes");
        }
        db.shutdown().await.unwrap();
        assert_eq!(shell::sqlite3_shell(bench.path(), "PRAGMA integrity_check;"), "ok\n");
    }
}

// ---------------------------------------------------------------------------------------------------------
// Other programs
// ---------------------------------------------------------------------------------------------------------

/// A lock of another program that ends within the busy timeout is waited for; one that does not is named, with what
/// helps, and writes go on when it is gone.
#[actix_rt::test]
async fn another_program_s_lock_is_waited_for_or_named() {
    let bench = Bench::new();
    let db = bench.open_with(bench.settings().set("sqlite.busy_timeout_s", 60)).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    let locker = Locker::lock(&bench).await;
    let mut write = Box::pin(db.write([insert("waited")]));
    assert!(poll!(&mut write).is_pending());
    locker.end();
    write.await.unwrap();
    db.shutdown().await.unwrap();
    fs::remove_file(bench.beside(".held")).unwrap();
    fs::remove_file(bench.beside(".release")).unwrap();

    let db = bench.open_with(bench.settings().set("sqlite.busy_timeout_s", 0.2)).await;
    let locker = Locker::lock(&bench).await;
    for answer in join_all((0..5).map(|_| db.write([insert("refused")]))).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Store(StoreError::Busy(_))) && error.retry_helps(), "{error:?}");
        assert!(error.to_string().contains("end the program that holds it"), "{error}");
    }
    locker.end();
    db.write([insert("after")]).await.unwrap();
    assert_eq!(here(&db, "SELECT group_concat(body, ' ') FROM note"), "waited after");
    db.shutdown().await.unwrap();
}

/// What other programs commit is noticed after a long rest as well, whichever program it is: a table that one of them
/// creates is watched before anybody asks. How long that takes is printed.
#[actix_rt::test]
async fn commits_of_other_programs_are_noticed() {
    let bench = Bench::new();
    let db = bench.open().await;
    let mut took = vec![];
    for n in 0..12 {
        if n % 4 == 0 {
            // Whatever can be known without asking SQLite says that nothing happens.
            wait::until("the log has not been written for a while", PATIENCE, async || {
                let written = fs::metadata(bench.beside("-wal")).unwrap().modified().unwrap();
                let ago = SystemTime::now().duration_since(written).unwrap_or_default();
                if ago > Duration::from_secs(3) { Ok(()) } else { Err(format!("{ago:?}")) }
            })
            .await;
        }
        let create = format!("CREATE TABLE t{n} (id INTEGER PRIMARY KEY)");
        match n % 2 {
            0 => drop(shell::sqlite3_shell(bench.path(), &format!("{create};"))),
            _ => drop(shell::python_sqlite(bench.path(), &format!("con.execute('{create}')"))),
        }
        let committed = Instant::now();
        let watched =
            format!("SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 't{n}'");
        while here(&db, &watched) == "0" {
            assert!(committed.elapsed() < PATIENCE, "table {n} is not watched");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        took.push(committed.elapsed());
    }
    took.sort();
    println!("noticed after: min {:?}, median {:?}, max {:?}", took[0], took[6], took[11]);
    db.shutdown().await.unwrap();
}

/// A file that is deleted or replaced while it is open takes no more writes: an acknowledgement would be a lie. Whoever
/// writes is told, the log says it once, and the file put back is written again.
#[actix_rt::test]
async fn a_file_that_is_gone_takes_no_writes() {
    for replaced in [false, true] {
        let bench = Bench::new();
        let db = bench.open().await;
        db.write([Statement::new(NOTE), insert("before")]).await.unwrap();
        let aside = bench.beside(".aside");
        fs::rename(bench.path(), &aside).unwrap();
        if replaced {
            fs::write(bench.path(), fs::read(&aside).unwrap()).unwrap();
        }
        for answer in join_all((0..3).map(|_| db.write([insert("lost")]))).await {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::Store(StoreError::ReplacedFile { .. })), "{error:?}");
            assert!(
                !error.retry_helps() && error.to_string().contains("x.db was deleted or replaced"),
                "{error}"
            );
        }
        bench.wait_for_line("was deleted or replaced").await;
        let reasons = db.readiness().await.reasons;
        assert!(reasons.len() == 1 && reasons[0].contains("was deleted or replaced"), "{reasons:?}");
        fs::rename(&aside, bench.path()).unwrap();
        db.write([insert("after")]).await.unwrap();
        assert_eq!(db.readiness().await.reasons, Vec::<String>::new());
        assert_eq!(here(&db, "SELECT group_concat(body, ' ') FROM note"), "before after");
        db.shutdown().await.unwrap();
        assert_eq!(bench.log.count("was deleted or replaced"), 1, "{:#?}", bench.log.all());
    }
}

/// Somebody who deletes the log, which is full of acknowledged writes, gets none of them: they are brought into the file
/// at once, nothing more is written, and the next start goes on with all of them.
#[actix_rt::test]
async fn a_log_that_is_deleted_takes_nothing_along() {
    let bench = Bench::new();
    let settings = bench.settings().set("sqlite.checkpoint_pages", 100_000).set("sqlite.idle_s", 3600);
    let db = bench.open_with(settings).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    for n in 0..50 {
        db.write([insert(&n.to_string())]).await.unwrap();
    }
    fs::remove_file(bench.beside("-wal")).unwrap();
    let error = db.write([insert("lost")]).await.unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::ReplacedFile { .. })), "{error:?}");
    bench.wait_for_line("x.db-wal was deleted or replaced").await;
    // As it would be after a crash: only the file, copied by somebody else, so that no lock of this process is touched.
    let copy = bench.folder.path().join("copy.db");
    assert!(Command::new("cp").arg(bench.path()).arg(&copy).status().unwrap().success());
    let found = shell::sqlite3_shell(&copy, "PRAGMA integrity_check; SELECT count(*) FROM note;");
    assert_eq!(found, "ok\n50\n");
    db.shutdown().await.unwrap();
    let db = bench.open().await;
    db.write([insert("after")]).await.unwrap();
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "51");
    db.shutdown().await.unwrap();
}

// ---------------------------------------------------------------------------------------------------------
// Disks
// ---------------------------------------------------------------------------------------------------------

/// Every row has its journal entry, as nothing has ever been in a cloud, every entry has its row or is a deletion, and the
/// file is whole.
fn assert_consistent(path: &Path, rows: &BTreeSet<String>) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let one = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(one("PRAGMA integrity_check"), "ok");
    let apart = "SELECT CAST((SELECT count(*) FROM note WHERE id NOT IN (SELECT k0 FROM _tidewater_journal_1)) + \
                 (SELECT count(*) FROM _tidewater_journal_1 WHERE whole <> 2 AND k0 NOT IN (SELECT id FROM note)) \
                 AS TEXT)";
    assert_eq!(one(apart), "0");
    let mut names = conn.prepare("SELECT substr(body, 1, 8) FROM note").unwrap();
    let found: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(found.len(), rows.len(), "no row is there twice");
    assert_eq!(&found.into_iter().collect::<BTreeSet<_>>(), rows);
}

/// A row whose name is its first eight letters.
fn large(n: usize) -> (String, Statement) {
    let name = format!("{n:08}");
    (name.clone(), insert(&format!("{name}{}", "x".repeat(64 << 10))))
}

/// Not a test of its own: a full disk, seen from inside a mount namespace.
#[actix_rt::test]
#[ignore = "started by the next one, on a small disk"]
async fn child_on_a_small_disk() {
    let Ok(disk) = std::env::var("SMALL_DISK") else { return };
    let (disk, log) = (PathBuf::from(disk), Lines::default());
    let settings = Settings::builder().set("sqlite.path", disk.join("x.db").display()).set("proxy.port", 1);
    let db = Database::open(settings.build().unwrap(), log.logger()).await.unwrap();
    db.write([Statement::new(NOTE)]).await.unwrap();
    let mut rows = BTreeSet::new();
    let mut next = 0;
    for _ in 0..3 {
        let filler = disk.join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        // Room for a few of them, and not for the group.
        file.set_len(file.metadata().unwrap().len() - (300 << 10)).unwrap();
        drop(file);
        let writes: Vec<_> = (next..next + 24).map(large).collect();
        next += 24;
        let answers = join_all(writes.iter().map(|(_, write)| db.write([write.clone()]))).await;
        let mut refused = 0;
        for ((name, _), answer) in writes.into_iter().zip(answers) {
            match answer {
                Ok(_) => drop(rows.insert(name)),
                Err(error) => {
                    assert!(matches!(error, Error::Store(StoreError::Full(_))), "{error:?}");
                    assert!(error.retry_helps() && error.to_string().contains("free some space"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "the disk was full");
        println!("{refused} of 24 refused, {} rows", rows.len());
        let here: usize = here(&db, "SELECT count(*) FROM note").parse().unwrap();
        assert_eq!(here, rows.len(), "acknowledged is what is there");
        fs::remove_file(&filler).unwrap();
        let (name, write) = large(next);
        next += 1;
        db.write([write]).await.unwrap();
        rows.insert(name);
        // So that there is room for the next time.
        db.write([Statement::new("DELETE FROM note WHERE id % 2 = 0")]).await.unwrap();
        let kept: String = self::here(&db, "SELECT group_concat(substr(body, 1, 8), ' ') FROM note");
        rows = kept.split(' ').map(str::to_owned).collect();
    }
    db.shutdown().await.unwrap();
    assert_consistent(&disk.join("x.db"), &rows);
    println!("the small disk has been tried");
}

/// A disk that becomes full under a group of writes: each is answered with what helps or is there whole, with its
/// journal entry, and with space everything goes on.
#[test]
fn a_full_disk_tears_nothing_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    // The namespace makes this possible without being root.
    let script = "mount -t tmpfs -o size=3m tidewater-test \"$SMALL_DISK\" || exit 77\nexec \"$@\"";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_on_a_small_disk", "--nocapture"])
        .env("SMALL_DISK", folder.path())
        .stdin(Stdio::null())
        .output();
    let Some(output) = output.ok().filter(|output| ![Some(77), Some(126)].contains(&output.status.code()))
    else {
        println!("not tried, no disk can be mounted here (unshare -rm)");
        return;
    };
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    if said.contains("unshare: ") {
        println!("not tried, no disk can be mounted here: {said}");
        return;
    }
    assert!(output.status.success() && said.contains("the small disk has been tried"), "{said}");
    print!("{said}");
}

/// A file system of its own in an ordinary file, which the kernel makes read-only as after an error of the disk. `None`
/// where that needs rights that nobody has here.
struct Ext4 {
    folder: TempDir,
    device: String,
}

impl Ext4 {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let script = "truncate -s 16M image && mkfs.ext4 -q image && mkdir disk && \
                      mount -o loop,errors=remount-ro image disk && findmnt -no SOURCE disk";
        let output = Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().unwrap();
        if !output.status.success() {
            println!("not tried, no ext4 can be mounted here: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let device = String::from_utf8(output.stdout).unwrap().trim().trim_start_matches("/dev/").to_owned();
        Some(Self { folder, device })
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn fail(&self) {
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", self.device), "1").unwrap();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.disk()).status();
    }
}

/// A disk that the kernel makes read-only under the open file: every write is refused with what is wrong, reads go on,
/// and what was acknowledged is there when the disk is writable again.
#[actix_rt::test]
async fn a_disk_that_becomes_read_only_refuses_writes_by_name() {
    let Some(ext4) = Ext4::mount() else { return };
    let log = Lines::default();
    let path = ext4.disk().join("x.db");
    let settings = Settings::builder().set("sqlite.path", path.display()).set("proxy.port", 1);
    let db = Database::open(settings.build().unwrap(), log.logger()).await.unwrap();
    db.write([Statement::new(NOTE), insert("00000000")]).await.unwrap();
    ext4.fail();
    for answer in join_all((0..5).map(|_| db.write([insert("lost")]))).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Store(StoreError::ReadOnly(_))), "{error:?}");
        assert!(!error.retry_helps() && error.to_string().contains("disk has become read-only"), "{error}");
    }
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "1");
    db.shutdown().await.unwrap();
    drop(db);
    let repair = "umount disk; e2fsck -fy image >fsck 2>&1; mount -o loop,errors=remount-ro image disk";
    assert!(
        Command::new("sh").args(["-c", repair]).current_dir(ext4.folder.path()).status().unwrap().success()
    );
    assert!(fs::metadata(&path).unwrap().size() > 0);
    let db = Database::open(
        Settings::builder().set("sqlite.path", path.display()).set("proxy.port", 1).build().unwrap(),
        log.logger(),
    )
    .await
    .unwrap();
    db.write([insert("00000001")]).await.unwrap();
    db.shutdown().await.unwrap();
    assert_consistent(&path, &["00000000", "00000001"].map(str::to_owned).into());
}
