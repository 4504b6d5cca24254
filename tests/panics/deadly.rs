//! A write that no writer survives, and a budget that is spent.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use fail::FailScenario;
use tidewater::{Database, Error, Statement};
use tidewater_test_support::{shell, wait};

use crate::harness::{Bench, PATIENCE, run, wait_for};
use crate::load::{Scene, hurried, soon};
use crate::process::{Device, Process};

/// Its text is the name of the place where it is run.
const DEADLY: &str = "INSERT INTO note (body) VALUES ('deadly')";

fn insert(body: String) -> [Statement; 1] {
    [Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body)]
}

fn bodies(db: &Database) -> Vec<String> {
    let sql = "SELECT body FROM note ORDER BY body";
    db.read(|conn| conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect()).unwrap()
}

/// The writer dies of a write as often as it is tried. Whoever asked for it is told, after a few deaths; whoever was in the
/// same group is served, once.
#[actix_rt::test]
async fn a_write_that_kills_every_writer_is_given_back_and_takes_nobody_along() {
    const INNOCENT: usize = 12;
    let scene = Scene::new().await;
    // While the writer is held up with the first write, the others become the next group.
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    fail::cfg_callback("writer.group", move || {
        // Errs once nobody holds it any more; from then on groups pass.
        let _ = held.lock().unwrap().recv();
    })
    .unwrap();
    fail::cfg(DEADLY, "panic(deadly)").unwrap();
    let before = scene.reports().await;
    let ask = |statements: [Statement; 1]| {
        let db = scene.db.clone();
        actix_rt::spawn(async move { db.write(statements).await })
    };
    let mut innocent = vec![ask(insert("first".to_owned()))];
    let waiting = async |count: u64| {
        wait_for(&scene.db, "they wait for the writer", |status| {
            status.actors.iter().any(|actor| actor.name == "SqliteWriter" && actor.mailbox >= count)
        })
        .await;
    };
    waiting(1).await;
    innocent.extend((0..INNOCENT / 2).map(|n| ask(insert(format!("before {n}")))));
    let deadly = ask([Statement::new(DEADLY)]);
    innocent.extend((0..INNOCENT / 2).map(|n| ask(insert(format!("after {n}")))));
    waiting(2 + u64::try_from(INNOCENT).unwrap()).await;
    drop(let_go);

    for write in innocent {
        write.await.unwrap().unwrap();
    }
    match deadly.await.unwrap() {
        Err(error @ Error::Unanswered(unanswered)) => {
            assert_eq!((unanswered.actor, unanswered.delivered), ("SqliteWriter", true), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let mut expected = vec!["first".to_owned()];
    expected.extend((0..INNOCENT / 2).flat_map(|n| [format!("before {n}"), format!("after {n}")]));
    expected.sort();
    assert_eq!(bodies(&scene.db), expected);
    let after = scene.reports().await;
    let deaths = after["SqliteWriter"].panics - before["SqliteWriter"].panics;
    println!("{deaths} writers died of it");
    assert_eq!(deaths, 3, "once in the group, twice by itself");
    assert_eq!(after["SqliteWriter"].last_panic.as_ref().unwrap().message, "deadly");
    fail::remove("writer.group");
    scene.works("after a deadly write").await;
    fail::remove(DEADLY);
    scene.db.write([Statement::new(DEADLY)]).await.unwrap();
    scene.end().await;
}

/// The budget is spent: everybody hears who died, how often and of what, the process goes on, the file can be opened again, and
/// holds what was acknowledged and nothing else.
#[actix_rt::test]
async fn a_budget_that_is_spent_leaves_the_file_to_the_next_one() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    bench.proxy.start();
    let budget = hurried(&bench).set("supervisor.restarts_max", 2).set("supervisor.restarts_within_s", 60);
    let db = bench.open_with(budget.clone()).await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    let acked = Rc::<RefCell<Vec<String>>>::default();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (db, acked) = (db.clone(), acked.clone());
            actix_rt::spawn(async move {
                for n in 0.. {
                    let body = format!("{writer}.{n}");
                    match db.write(insert(body.clone())).await {
                        Ok(_) => acked.borrow_mut().push(body),
                        Err(error) => return error,
                    }
                }
                unreachable!()
            })
        })
        .collect();
    soon("everybody writes", || match acked.borrow().len() {
        0..100 => Err(String::new()),
        _ => Ok(()),
    })
    .await;
    fail::cfg(DEADLY, "panic(deadly)").unwrap();
    let refused = db.write([Statement::new(DEADLY)]).await.unwrap_err();
    assert!(matches!(refused, Error::Unanswered(_) | Error::Failed(_)), "{refused:?}");
    let Error::Failed(reason) = db.failed().await else { panic!("it did not fail") };
    let begin = "SqliteWriter ended unexpectedly after 2 restarts within 60 s; supervision gives up. \
                 The last time: it panicked at ";
    assert!(reason.starts_with(begin) && reason.ends_with(": deadly"), "{reason}");
    let failed = Error::Failed(reason);
    for writer in writers {
        assert_eq!(writer.await.unwrap(), failed);
    }
    let receipt_of_nobody = db.write(insert("too late".to_owned())).await.unwrap_err();
    assert_eq!(receipt_of_nobody, failed);
    assert_eq!(db.detect_proxy(true).await.unwrap_err(), failed);
    assert_eq!(db.flush().await.unwrap_err(), failed);
    fail::remove(DEADLY);

    // The old handle is still held.
    let began = Instant::now();
    let again = wait::until("the file is opened again", PATIENCE, async || {
        Database::open(budget.clone().build().unwrap(), bench.log.logger()).await.map_err(|e| e.to_string())
    })
    .await;
    println!("opened again after {:?}", began.elapsed());
    let mut expected = acked.take();
    expected.sort();
    assert_eq!(bodies(&again), expected);
    let receipt = again.write([Statement::new(DEADLY)]).await.unwrap().receipt;
    wait_for(&again, "the cloud is there", |status| status.sync.state == "idle").await;
    again.synced(&receipt).await.unwrap();
    bench.wait_until_equal(&again, &["note"]).await;
    db.shutdown().await.unwrap();
    again.shutdown().await.unwrap();
    scenario.teardown();
}

/// The process ends with the status that stands for a spent budget and says last who died, how often and of what. The next one
/// goes on where it stood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_budget_is_spent_says_why_in_its_last_line() {
    let device = Device::new().await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note (body) VALUES ('one'), ('two');",
    );
    device.proxy.start();
    let mut command = device.command();
    command.env("FAILPOINTS", "writer.call.NoteRound=panic(of a round)");
    command.env("TIDEWATER_SUPERVISOR__RESTARTS_MAX", "2");
    let (status, lines) = Process::spawn(&mut command).wait();
    assert_eq!(status.code(), Some(4), "{lines:#?}");
    let last = lines.last().unwrap();
    let begin = "run_supervisor: SqliteWriter ended unexpectedly after 2 restarts within 60 s; supervision gives up. \
                 The last time: it panicked at ";
    assert!(last.starts_with(begin) && last.ends_with(": of a round"), "{lines:#?}");
    assert_eq!(
        lines.iter().filter(|line| line.contains("panicked at") && line.contains("NoteRound")).count(),
        3
    );

    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    process.stop();
}

/// The same for one that hangs each time, and holds its thread to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_actors_hang_ends_as_well() {
    let device = Device::new().await;
    let table = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO note VALUES (1, 'one');";
    shell::sqlite3_shell(device.path(), table);
    device.proxy.start();
    let mut command = device.command();
    command.env("FAILPOINTS", "syncer.encoded=pause");
    command.env("TIDEWATER_SUPERVISOR__RESTARTS_MAX", "1").env("TIDEWATER_SUPERVISOR__STUCK_AFTER_S", "1");
    let (status, lines) = Process::spawn(&mut command).wait();
    assert_eq!(status.code(), Some(4), "{lines:#?}");
    let begin = "run_supervisor: CloudSyncer ended unexpectedly after 1 restart within 60 s; supervision gives up. \
                 The last time: it was stuck for ";
    assert!(lines.last().unwrap().starts_with(begin), "{lines:#?}");
}

/// A log that fails, and panics for it as slog's `fuse` does, takes nobody along: neither the supervisor, which writes a line
/// for every end, nor whoever waits for a write.
#[actix_rt::test]
async fn a_log_that_cannot_be_written_ends_nobody() {
    struct Full;
    impl slog::Drain for Full {
        type Ok = ();
        type Err = String;
        fn log(&self, _: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), String> {
            Err("no space left on device".to_owned())
        }
    }
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let log = slog::Logger::root(slog::Drain::fuse(Full), slog::o!());
    let db = tidewater::Database::open(bench.settings().build().unwrap(), log).await.unwrap();
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY)")]).await.unwrap();
    fail::cfg("writer.group", "1*panic(as the test asks)").unwrap();
    let insert = db.write([Statement::new("INSERT INTO note VALUES (1)")]);
    tokio::time::timeout(PATIENCE, insert).await.expect("it is answered").unwrap();
    db.shutdown().await.unwrap();
    scenario.teardown();
}

/// A writer that dies after the file was taken away does not come back with another one, while everybody still reads what
/// was in the first: nothing is made in its place, and supervision ends with the reason. A file put there by somebody else is
/// not taken either.
#[actix_rt::test]
async fn a_successor_does_not_go_on_with_another_file() {
    for replaced in [false, true] {
        let scenario = FailScenario::setup();
        let bench = Bench::new().await;
        let budget =
            hurried(&bench).set("supervisor.restarts_max", 2).set("supervisor.restarts_within_s", 60);
        let db = bench.open_with(budget).await;
        db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY)")]).await.unwrap();
        std::fs::rename(bench.path(), bench.path().with_extension("aside")).unwrap();
        if replaced {
            shell::sqlite3_shell(bench.path(), "CREATE TABLE other (id INTEGER PRIMARY KEY);");
        }
        fail::cfg("writer.group", "1*panic(as the test asks)").unwrap();
        let refused = db.write([Statement::new("INSERT INTO note VALUES (1)")]).await.unwrap_err();
        let Error::Failed(reason) = db.failed().await else { panic!("it did not fail") };
        assert!(reason.contains("was deleted or replaced while it was open"), "{reason}");
        assert!(matches!(refused, Error::Unanswered(_) | Error::Failed(_)), "{refused:?}");
        if replaced {
            assert_eq!(shell::sqlite3_shell(bench.path(), "SELECT name FROM sqlite_schema;"), "other\n");
        } else {
            assert!(!bench.path().exists(), "no file is made in its place");
        }
        drop(db);
        scenario.teardown();
    }
}
