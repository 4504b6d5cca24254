//! A writer that dies in the middle of a migration: done once, or not at all, and who waits hears which.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use fail::FailScenario;
use harness::{Lines, here};
use tidewater::settings::Settings;
use tidewater::{Database, Error, Migrations};

/// Wherever the writer dies, its successor finishes the migration, and each statement has happened once.
#[actix_rt::test]
async fn a_writer_that_dies_does_not_apply_one_twice() {
    let scenario = FailScenario::setup();
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::builder()
        .set("sqlite.path", folder.path().join("app.db").display())
        .set("proxy.port", 1)
        .set("supervisor.restarts_max", 1000);
    let db = Database::open(settings.build().unwrap(), Lines::default().logger()).await.unwrap();
    let mut all = vec![(1, "1", "CREATE TABLE note (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT)")];
    db.migrate(&Migrations::new(all.clone()).unwrap()).await.unwrap();
    let places = ["writer.call", "sqlite.migrated", "sqlite.commit", "sqlite.noted", "writer.called"];
    for (number, place) in (2..).zip(places) {
        all.push((number, place, "INSERT INTO note (at) VALUES (1)"));
        fail::cfg(place, "1*panic(on purpose)->off").unwrap();
        let migrated = db.migrate(&Migrations::new(all.clone()).unwrap()).await.unwrap();
        fail::remove(place);
        assert_eq!(migrated.applied, [number], "{place}");
        assert_eq!(here(&db, "SELECT count(*) FROM note"), (number - 1).to_string(), "{place}");
    }
    // What every writer dies of is given back, and not done.
    all.push((9, "deadly", "INSERT INTO note (at) VALUES (1)"));
    fail::cfg("sqlite.migrated", "panic(on purpose)").unwrap();
    let error = db.migrate(&Migrations::new(all.clone()).unwrap()).await.unwrap_err();
    fail::remove("sqlite.migrated");
    assert!(matches!(error, Error::Unanswered(_)), "{error}");
    assert_eq!(here(&db, "SELECT count(*) FROM note"), places.len().to_string());
    assert_eq!(db.migrate(&Migrations::new(all).unwrap()).await.unwrap().applied, [9]);
    db.shutdown().await.unwrap();
    scenario.teardown();
}
