//! An actor that holds its thread, and those that only seem to.

use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use fail::FailScenario;
use tidewater::{Database, Statement};

use crate::harness::{Bench, PATIENCE, here, run, wait_for, wait_until_available};
use crate::load::{Scene, hurried};

/// A writer that hangs in the middle of somebody's write is replaced: who waited is answered by the successor, and when the
/// old one goes on after all, nothing of it is done.
#[actix_rt::test]
async fn a_writer_that_hangs_is_replaced_and_does_nothing_any_more() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let settings = bench.settings().set("supervisor.stuck_after_s", 0.3).set("sqlite.busy_timeout_s", 0.2);
    let db = bench.open_with(settings.set("supervisor.restarts_max", 1000)).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();

    fail::cfg("writer.group", "1*pause").unwrap();
    let insert = |body: &str| Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body.to_owned());
    let (first, second) = tokio::join!(db.write([insert("hung")]), async {
        wait_for(&db, "the writer is replaced", |status| {
            status
                .actors
                .iter()
                .any(|actor| actor.name == "SqliteWriter" && actor.restarts == 1 && actor.state == "running")
        })
        .await;
        db.write([insert("after")]).await
    });
    first.unwrap();
    second.unwrap();
    assert_eq!(
        here(&db, "SELECT group_concat(body) FROM (SELECT body FROM note ORDER BY body)"),
        "after,hung"
    );
    fail::remove("writer.group");
    wait_for(&db, "nothing waits", |status| status.sync.pending == 2).await;
    db.shutdown().await.unwrap();
    assert_eq!(bench.log.count("stuck"), 1, "{:#?}", bench.log.all());
    scenario.teardown();
}

/// The threads on which actors live.
fn actors_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("actix-rt")).count()
}

/// What a writer has to say after it was replaced is not heard, not even by one who listens so late that the successor has
/// begun: the write is done by that one.
#[actix_rt::test]
async fn a_writer_that_was_replaced_answers_nobody() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let db = impatient(&bench).await;
    let threads = actors_threads();
    let sql = "INSERT INTO note (body) VALUES ('late')";
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    fail::cfg_callback(sql, move || {
        // Errs once nobody holds it any more; from then on it passes.
        let _ = held.lock().unwrap().recv();
    })
    .unwrap();
    let patience = Instant::now();
    let (late, ()) = tokio::join!(db.write([Statement::new(sql)]), async {
        // Nobody listens on this thread while it is blocked.
        let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
            while !holds() {
                assert!(patience.elapsed() < PATIENCE, "{what}: {:#?}", bench.log.all());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for("it is replaced", &|| bench.log.count("SqliteWriter is replaced") == 1);
        drop(let_go);
        wait_for("the old one's thread ends", &|| actors_threads() == threads);
    });
    late.unwrap();
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "1");
    db.shutdown().await.unwrap();
    scenario.teardown();
}

/// A syncer that hangs takes nobody along: watcher and breaker, who share its thread, are moved with it, everything goes on,
/// and when it lets go of the thread it does nothing any more.
#[actix_rt::test]
async fn a_syncer_that_hangs_is_replaced_and_its_neighbours_are_moved() {
    let mut scene = Scene::with(|settings| settings.set("supervisor.stuck_after_s", 1)).await;
    let load = scene.load("hang");
    fail::cfg("syncer.encoded", "1*pause").unwrap();
    wait_for(&scene.db, "the three have new generations", |status| {
        status.actors.iter().all(|actor| {
            actor.state == "running" && actor.restarts == u32::from(actor.name != "SqliteWriter")
        })
    })
    .await;
    let what = "while the old syncer hangs";
    load.goes_on(what).await;
    scene.settle(load, what).await;
    scene.works(what).await;
    scene.still_told(what).await;
    let load = scene.load("free");
    fail::remove("syncer.encoded");
    let what = "after the old syncer let go";
    load.goes_on(what).await;
    scene.settle(load, what).await;
    scene.works(what).await;
    assert_eq!(scene.bench.log.count("stuck"), 1, "{:#?}", scene.bench.log.all());
    assert_eq!(scene.errors(), Vec::<String>::new());
    for report in scene.reports().await.values() {
        assert_eq!(report.restarts, u32::from(report.name != "SqliteWriter"), "{report:?}");
    }
    scene.end().await;
}

/// The writer is stuck after this time, with the waits for another's lock: 0.2 s and twice 0.1 s.
const STUCK_AFTER_S: f64 = 0.4;

async fn impatient(bench: &Bench) -> Database {
    let settings = hurried(bench).set("supervisor.stuck_after_s", 0.2).set("sqlite.busy_timeout_s", 0.1);
    let db = bench.open_with(settings).await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    db
}

async fn nobody_was_replaced(bench: &Bench, db: &Database) {
    for actor in db.status_summary().await.actors {
        assert_eq!((actor.restarts, actor.state.as_str()), (0, "running"), "{actor:?}");
    }
    assert_eq!(bench.log.count("stuck"), 0, "{:#?}", bench.log.all());
}

/// A statement that takes many times as long as a writer may be silent, and works all the while, is not taken for stuck.
#[actix_rt::test]
async fn a_statement_that_takes_long_is_not_stuck() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = impatient(&bench).await;
    wait_until_available(&db).await;
    let count = "INSERT INTO note (body)
                 WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?1) SELECT max(x) FROM c";
    let mut steps = 4_000_000_i64;
    loop {
        let began = Instant::now();
        db.write([Statement::new(count).bind(steps)]).await.unwrap();
        assert_eq!(here(&db, "SELECT body FROM note ORDER BY id DESC LIMIT 1"), steps.to_string());
        println!("{steps} steps: {:?}", began.elapsed());
        if began.elapsed().as_secs_f64() > 3.0 * STUCK_AFTER_S {
            break;
        }
        steps *= 2;
    }
    nobody_was_replaced(&bench, &db).await;
    db.shutdown().await.unwrap();
    scenario.teardown();
}

/// A disk that takes its time for a commit is not a writer that is stuck.
#[actix_rt::test]
async fn a_commit_that_takes_long_is_not_stuck() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = impatient(&bench).await;
    wait_until_available(&db).await;
    fail::cfg("sqlite.sync", "1*sleep(2000)").unwrap();
    let began = Instant::now();
    let mut receipt = None;
    // The syncer may come first.
    while began.elapsed().as_secs_f64() < 5.0 * STUCK_AFTER_S {
        let insert = Statement::new("INSERT INTO note (body) VALUES ('slow')");
        receipt = Some(db.write([insert]).await.unwrap().receipt);
    }
    nobody_was_replaced(&bench, &db).await;
    db.synced(&receipt.unwrap()).await.unwrap();
    db.shutdown().await.unwrap();
    scenario.teardown();
}
