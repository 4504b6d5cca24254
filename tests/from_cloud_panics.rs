//! A writer that dies while it makes the cloud's tables: they are made once, or not at all, and then by its successor.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use fail::FailScenario;
use harness::{Bench, here, run, wait_until_flushed, wait_until_here};

/// Wherever the writer dies, its successor finds the tables, or makes them, and their rows come.
#[actix_rt::test]
async fn a_writer_that_dies_makes_no_table_twice() {
    let scenario = FailScenario::setup();
    let bench = Bench::new().await;
    let a = bench.open().await;
    run(
        &a,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nCREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note (id))",
    )
    .await;
    run(&a, "INSERT INTO note VALUES (1, 'a');\nINSERT INTO line VALUES (2, 1)").await;
    bench.proxy.start();
    wait_until_flushed(&a).await;
    a.shutdown().await.unwrap();
    for place in ["writer.call.MakeTables", "writer.called.MakeTables", "writer.called.GetNames"] {
        fail::cfg(place, "1*panic(on purpose)->off").unwrap();
        let other = bench.another();
        let settings =
            other.settings().set("sync.tables_from_cloud", "all").set("supervisor.restarts_max", 1000);
        let b = other.open_with(settings).await;
        other.proxy.start();
        wait_until_here(&b, "SELECT count(*) FROM sqlite_schema WHERE name IN ('note', 'line')", "2").await;
        wait_until_here(
            &b,
            "SELECT body || line.id FROM note JOIN line ON line.note = note.id UNION ALL SELECT '' LIMIT 1",
            "a2",
        )
        .await;
        fail::remove(place);
        assert!(other.log.count("on purpose") > 0, "{place}: {:#?}", other.log.all());
        assert_eq!(here(&b, "SELECT count(*) FROM pragma_foreign_key_list('line')"), "1", "{place}");
        run(&b, "INSERT INTO line VALUES (3, 1);\nDELETE FROM line WHERE id = 3").await;
        wait_until_flushed(&b).await;
        b.shutdown().await.unwrap();
    }
    scenario.teardown();
}
