//! How long it takes from a panic until somebody answers again: printed, not judged, for the machine is not ours alone.

use std::time::{Duration, Instant};

use tidewater::Statement;

use crate::load::{Scene, Trap};

/// Deaths per figure.
const TIMES: usize = 50;

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!("{what}: median {median:?}, 95 % within {p95:?}, longest {:?}", times[times.len() - 1]);
}

/// A writer that dies has a successor that answers; so has a syncer, and the cloud is there again. No restart waits for one
/// before it.
#[actix_rt::test]
async fn after_a_panic_somebody_answers_again() {
    let scene = Scene::new().await;
    let db = &scene.db;
    let insert = || [Statement::new("INSERT INTO note (body) VALUES ('timed')")];
    let (mut struck, mut fresh, mut answered, mut synced) = (vec![], vec![], vec![], vec![]);
    for _ in 0..TIMES {
        let trap = Trap::set("writer.group", 1);
        db.write(insert()).await.unwrap();
        struck.push(trap.fired().unwrap().elapsed());
    }
    for _ in 0..TIMES {
        // Whoever comes after it, from the moment on in which there is nobody.
        let trap = Trap::set("writer.look", 1);
        let at = trap.sprung().await;
        db.write(insert()).await.unwrap();
        fresh.push(at.elapsed());
    }
    for _ in 0..TIMES {
        let trap = Trap::set("syncer.asks", 1);
        let at = trap.sprung().await;
        while db.status_summary().await.sync.state.is_empty() {
            tokio::task::yield_now().await;
        }
        answered.push(at.elapsed());
        if answered.len() % 5 != 0 {
            continue;
        }
        let asked = Instant::now();
        while let Err(error) = db.flush().await {
            assert!(asked.elapsed() < crate::harness::PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        synced.push(at.elapsed());
    }
    print("the write that the writer died of is done", struck);
    print("a write after it is done", fresh);
    print("the syncer answers", answered);
    print("the syncer has been through the cloud", synced);
    let reports = scene.reports().await;
    assert_eq!(reports["SqliteWriter"].panics, 100);
    assert_eq!(reports["CloudSyncer"].panics, 50);
    scene.end().await;
}
