//! The stages that come once in the life of a file or of a table, and those of what is refused, taken back or emptied.

use std::sync::{Mutex, mpsc};

use tidewater_test_support::wait;
use tokio::sync::oneshot;

use crate::Random;
use crate::harness::{Bench, PATIENCE, here, numbers, run, there, wait_for, wait_until_flushed};
use crate::load::{Scene, Trap, hurried};

/// Traps before and after the same call of the writer, one after the other.
fn both(message: &str) -> [String; 2] {
    ["call", "called"].map(|stage| format!("writer.{stage}.{message}"))
}

/// The first meeting with a cloud: who dies in the middle of it is followed by one who goes on.
#[actix_rt::test]
async fn a_panic_in_the_first_sync_of_a_file_costs_nothing() {
    let scenario = fail::FailScenario::setup();
    for point in ["RememberCloud", "FixCursor"].map(both).concat() {
        let bench = Bench::new().await;
        let db = bench.open_with(hurried(&bench)).await;
        run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
        let receipt = run(&db, "INSERT INTO note VALUES (1, 'first')").await;
        let trap = Trap::set(&point, 1);
        bench.proxy.start();
        trap.sprung().await;
        db.synced(&receipt).await.unwrap();
        bench.wait_until_equal(&db, &["note"]).await;
        db.shutdown().await.unwrap();
    }
    scenario.teardown();
}

/// A round of thousands of rows is in the cloud and leaves in pieces, because somebody writes. Between two of them the syncer dies
/// and the cloud goes away: the writer alone clears the rest, nothing of it is pending any more, and who waits for it hears that it
/// is in the cloud. When the cloud is back, nothing of it is sent again.
#[actix_rt::test]
async fn what_the_cloud_has_goes_without_it() {
    let scenario = fail::FailScenario::setup();
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = bench.open_with(hurried(&bench)).await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, n INTEGER)").await;
    let many = format!("{} INSERT INTO note (n) SELECT 0 FROM n", numbers(3000));
    let rounds =
        || here(&db, "SELECT coalesce(max(value), 0) FROM _tidewater_meta WHERE key = 'round_number'");
    let (mut rows, mut in_one) = (0, false);
    while !in_one {
        let before: i64 = rounds().parse().unwrap();
        let receipt = run(&db, &many).await;
        tokio::time::timeout(PATIENCE, db.synced(&receipt)).await.unwrap().unwrap();
        rows += 3000;
        // As large as that, once the cloud has shown how quick it is.
        in_one = rounds() == (before + 1).to_string();
    }
    let client = bench.cloud.connect().await;
    let audit = "CREATE TABLE audit (id bigint NOT NULL); \
                 CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS \
                     $$ BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NULL; END $$; \
                 CREATE TRIGGER audited AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION audited()";
    client.batch_execute(audit).await.unwrap();

    let (reached, between) = oneshot::channel();
    let (let_go, held) = mpsc::channel::<()>();
    let (reached, held) = (Mutex::new(Some(reached)), Mutex::new(held));
    fail::cfg_callback("syncer.cleared", move || {
        if let Some(reached) = reached.lock().unwrap().take() {
            reached.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
            panic!("between two pieces");
        }
    })
    .unwrap();
    let receipt = run(&db, &many).await;
    tokio::time::timeout(PATIENCE, between).await.unwrap().unwrap();
    run(&db, "UPDATE note SET n = 1 WHERE id = 1").await;
    bench.proxy.stop();
    drop(let_go);
    let leaving = || here(&db, "SELECT count(*) FROM _tidewater_round") == "1";
    let writes = async {
        while leaving() {
            run(&db, "UPDATE note SET n = n + 1 WHERE id = 1").await;
        }
    };
    let cleared = tokio::time::timeout(PATIENCE, async { tokio::join!(db.synced(&receipt), writes) });
    cleared.await.expect("it is left as it was, or nobody says that it is gone").0.unwrap();
    assert_eq!(here(&db, "SELECT count(*) FROM _tidewater_flight_1"), "0");
    assert_eq!(here(&db, "SELECT group_concat(k0) FROM _tidewater_journal_1"), "1");
    let status = wait_for(&db, "what was written since waits", |status| status.sync.pending == 1).await;
    assert_eq!(
        (status.sync.state.as_str(), status.sync.rows_flushed),
        ("offline", rows + 3000),
        "{status:?}"
    );

    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(there(&client, "SELECT count(*) FROM audit").await, "3000");
    assert_eq!(bench.log.count("Sync is interrupted"), 0, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
    scenario.teardown();
}

/// A table's first sync, with rows on both sides of which one is refused; rows that are gone before they are sent; a table
/// that is emptied in the cloud; a round that is put back, and one that leaves in pieces: the same with a panic before or after each call of the writer.
#[actix_rt::test]
async fn a_panic_at_a_rare_stage_costs_nothing() {
    let mut random = Random::new();
    rare_stages(|message| vec![both(message)[random.below(2)].clone()]).await;
}

/// The same with a panic before each call and one after it.
#[actix_rt::test]
#[ignore = "minutes: make long"]
async fn a_panic_on_either_side_of_a_rare_stage_costs_nothing() {
    rare_stages(|message| both(message).to_vec()).await;
}

async fn rare_stages(mut points: impl FnMut(&str) -> Vec<String>) {
    let scene = Scene::new().await;
    let mut deaths = 0;
    let (db, client) = (&scene.db, scene.bench.cloud.connect().await);
    let first_sync = [
        "GetTables",
        "RememberCloudTable",
        "GetSnapshotPosition",
        "BeginSnapshot",
        "GetSnapshotLeftovers",
        "GetSetAside",
        "ParkRows",
    ];
    for (parked, point) in (1..).zip(&first_sync.map(&mut points).concat()) {
        let table = format!("extra{parked}");
        let columns = "(id bigint PRIMARY KEY, body text CHECK (body <> 'refused'))";
        let theirs = format!("INSERT INTO {table} VALUES (1, 'theirs'), (2, 'theirs')");
        client.batch_execute(&format!("CREATE TABLE {table} {columns}; {theirs}")).await.unwrap();
        let trap = Trap::set(point, 1);
        let ours = format!("INSERT INTO {table} VALUES (3, 'ours'), (4, 'refused'), (5, 'ours')");
        run(db, &format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, body TEXT);\n{ours}")).await;
        trap.sprung().await;
        deaths += 1;
        wait_for(db, point, |status| status.sync.parked == parked && status.sync.pending == 0).await;
        let ids = format!("(SELECT id FROM {table} ORDER BY id) AS ids");
        assert_eq!(here(db, &format!("SELECT group_concat(id) FROM {ids}")), "1,2,3,4,5", "{point}");
        let there = there(&client, &format!("SELECT string_agg(id::text, ',') FROM {ids}")).await;
        assert_eq!(there, "1,2,3,5", "{point}");
    }
    for point in points("DissolveRound") {
        let trap = Trap::set(&point, 1);
        run(db, "INSERT INTO note VALUES (1000000, 'gone');\nDELETE FROM note WHERE id = 1000000").await;
        trap.sprung().await;
        deaths += 1;
        wait_for(db, &point, |status| status.sync.pending == 0).await;
    }
    for point in points("PutBackRound") {
        let (fails, trap) = (Trap::set("cloud.commit", 1), Trap::set(&point, 1));
        let body = point.to_owned();
        let receipt = run(db, &format!("INSERT INTO note (body) VALUES ('{body}')")).await;
        fails.sprung().await;
        trap.sprung().await;
        deaths += 1;
        db.synced(&receipt).await.unwrap();
        let inserts = format!("SELECT count(*) FROM audit WHERE body = '{body}'");
        assert_eq!(there(&client, &inserts).await, "1", "{point}");
    }
    // So many in one write that they leave in pieces.
    let many = numbers(900);
    for point in [points("ClearRound"), vec!["syncer.cleared".into()]].concat() {
        let trap = Trap::set(&point, 1);
        let receipt = run(db, &format!("{many} INSERT INTO note (body) SELECT '{point}' FROM n")).await;
        trap.sprung().await;
        deaths += u32::from(point.starts_with("writer"));
        db.synced(&receipt).await.unwrap();
        let inserts = format!("SELECT count(*) FROM audit WHERE body = '{point}'");
        assert_eq!(there(&client, &inserts).await, "900", "{point}");
        wait_for(db, &point, |status| status.sync.pending == 0).await;
    }
    for (point, table) in points("CompareAnew").iter().zip(["extra1", "extra2"]) {
        let trap = Trap::set(point, 1);
        client
            .batch_execute(&format!("TRUNCATE {table}; INSERT INTO {table} VALUES (9, 'new')"))
            .await
            .unwrap();
        trap.sprung().await;
        deaths += 1;
        wait::until(point, PATIENCE, async || {
            let found = here(db, &format!("SELECT group_concat(id) FROM {table}"));
            // What is parked is still ours.
            if found == "4,9" { Ok(()) } else { Err(found) }
        })
        .await;
    }
    assert_eq!(scene.reports().await["SqliteWriter"].panics, deaths);
    scene.works("after the rare stages").await;
    scene.end().await;
}
