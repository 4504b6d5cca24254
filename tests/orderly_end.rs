//! The end in order: whatever hangs in a blocking pool, a request to stop is a success, and the file is free.
//!
//! Faults are injected at named places (the feature `failpoints`), which are the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::sync::{Mutex, mpsc};

use fail::FailScenario;
use harness::Bench;
use tokio::sync::oneshot;

/// What hangs on a thread for blocking work, a search of the process table here, or the system's resolver, is not waited for
/// at the end: the supervisor ends in order, says so, and the file is free.
#[actix_rt::test]
async fn a_search_that_hangs_does_not_hold_up_the_end() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let (begun, searching) = oneshot::channel();
    let (release, held) = mpsc::channel::<()>();
    let (begun, held) = (Mutex::new(Some(begun)), Mutex::new(held));
    fail::cfg_callback("watcher.find_process", move || {
        if let Some(begun) = begun.lock().unwrap().take() {
            begun.send(()).unwrap();
        }
        let _ = held.lock().unwrap().recv();
    })
    .unwrap();
    let settings = bench.settings().set("supervisor.shutdown_s", 4).build().unwrap();
    let ended =
        tidewater::run(settings, bench.log.logger(), None, None, async { searching.await.unwrap() }).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert!(bench.log.all().last().unwrap().ends_with("✅ Stopped"), "{:#?}", bench.log.all());
    bench.open().await.shutdown().await.unwrap();
    drop(release);
    scenario.teardown();
}
