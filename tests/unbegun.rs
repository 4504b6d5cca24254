//! P3 where a round's transaction did not begin.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, run, there, wait_until_flushed};

/// A BEGIN that the server was told to cancel: what was sent behind it takes no effect by itself, a new row, a changed and a
/// deleted one and the record of a conflict alike, and the next attempt takes all of it to the cloud, once.
#[actix_rt::test]
async fn what_is_sent_behind_a_begin_that_was_cancelled_takes_no_effect() {
    let scenario = fail::FailScenario::setup();
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT);\nCREATE TABLE day (id INTEGER PRIMARY KEY, v DATE)").await;
    run(&db, "INSERT INTO note VALUES (1, 'one'), (2, 'two'), (3, 'three');\nINSERT INTO day VALUES (1, '2024-02-29')").await;
    bench.proxy.start();
    wait_until_flushed(&db).await;
    client
        .batch_execute(
            "CREATE TABLE seen (n bigserial, op text);
             CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO seen (op) VALUES (TG_OP || ' ' || coalesce(new.id, old.id)); RETURN NULL; END $$;
             CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON note FOR EACH ROW EXECUTE FUNCTION seen()",
        )
        .await
        .unwrap();
    bench.proxy.stop();
    harness::wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    client.batch_execute("UPDATE note SET v = 'there' WHERE id = 1").await.unwrap();
    run(
        &db,
        "INSERT INTO note VALUES (4, 'four');\nUPDATE note SET v = 'deux' WHERE id = 2;\nDELETE FROM note WHERE id = 3;\n\
         UPDATE note SET v = 'here' WHERE id = 1;\nINSERT INTO day VALUES (2, '2024-03-01')",
    )
    .await;
    // Three rounds do not begin.
    fail::cfg("cloud.begin", "3*return->off").unwrap();
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["note", "day"]).await;
    assert_eq!(
        there(&client, "SELECT string_agg(op, ', ' ORDER BY op) FROM seen").await,
        "DELETE 3, INSERT 4, UPDATE 1, UPDATE 1, UPDATE 2"
    );
    assert_eq!(there(&client, "SELECT count(*) FROM tidewater.conflicts").await, "1");
    // Of this device's changes none came without its name.
    let nameless = "SELECT count(*) FROM tidewater.changes WHERE origin IS NULL AND '1' <> ALL (key)";
    assert_eq!(there(&client, nameless).await, "0");
    db.shutdown().await.unwrap();
    scenario.teardown();
}
