//! P8: a panic in any actor, at any stage, loses no acknowledged data, ends no process, and leaves every handle usable.
//!
//! Faults are injected at named places (the feature `failpoints`). They are the process's, so the tests take turns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use fail::FailScenario;
use harness::{Bench, here, wait_for};
use tidewater::Statement;

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
