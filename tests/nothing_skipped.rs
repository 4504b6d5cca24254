//! P2: an entry leaves the journal only when the cloud has it or it is visibly parked; never stuck behind another.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use harness::{
    Bench, PATIENCE, here, run, there, wait_for, wait_until_flushed, wait_until_here, wait_until_there,
};
use tidewater::{Database, Statement};
use tidewater_test_support::{Mode, Postgres};

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT UNIQUE, age INTEGER);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customer (id));
CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";
const TABLES: &[&str] = &["customer", "purchase", "note"];

/// A connected device whose shop is in the cloud.
async fn shop() -> (Bench, Database) {
    shop_on(Postgres::shared()).await
}

async fn shop_on(server: &Postgres) -> (Bench, Database) {
    let bench = Bench::on(server).await;
    let db = bench.open().await;
    run(&db, SHOP).await;
    run(&db, "INSERT INTO customer VALUES (1, 'ada', 30)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_flushed(&db).await;
    (bench, db)
}

async fn go_offline(bench: &Bench, db: &Database) {
    bench.proxy.stop();
    wait_for(db, "offline", |status| status.sync.state == "offline").await;
}

async fn assert_clean(db: &Database) {
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts, status.sync.pending), (0, 0, 0), "{status:?}");
}

/// The rounds that this device has noted.
fn rounds(db: &Database) -> i64 {
    here(db, "SELECT value FROM _tidewater_meta WHERE key = 'round_number'").parse().unwrap()
}

/// The rounds that took effect in the cloud.
async fn rounds_there(client: &tokio_postgres::Client) -> i64 {
    there(client, "SELECT max(round_number) FROM tidewater.devices").await.parse().unwrap()
}

/// The SQLSTATEs of the parked rows of a table.
fn parked(db: &Database, table: &str) -> String {
    let id = here(db, &format!("SELECT id FROM _tidewater_tables WHERE name = '{table}'"));
    here(
        db,
        &format!(
            "SELECT coalesce(group_concat(coalesce(sqlstate, 'misfit')), '') FROM _tidewater_parked_{id}"
        ),
    )
}

/// A parent that is refused is parked; its new child and a row that has nothing to do with it arrive, and it ends there.
#[actix_rt::test]
async fn a_refused_parent_holds_up_neither_its_child_nor_anybody_else() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    client.batch_execute("CREATE UNIQUE INDEX only_there ON customer ((lower(email)))").await.unwrap();
    let second = run(&db, "INSERT INTO customer VALUES (2, 'bo', 40)").await;
    db.synced(&second).await.unwrap();
    go_offline(&bench, &db).await;
    let (before, before_there) = (rounds(&db), rounds_there(&client).await);
    let written = run(
        &db,
        "UPDATE customer SET email = 'BO' WHERE id = 1;\nINSERT INTO purchase VALUES (7, 1);\nINSERT INTO note VALUES (1, 'd')",
    )
    .await;
    bench.proxy.start();
    wait_for(&db, "parked and idle", |status| {
        status.sync.parked == 1 && status.sync.pending == 0 && status.sync.state == "idle"
    })
    .await;
    bench.wait_until_equal(&db, &["purchase", "note"]).await;
    assert_eq!(parked(&db, "customer"), "23505");
    assert!(db.synced(&written).await.is_err_and(|error| error.to_string().contains("parked")));
    // Cycles go on, rounds do not.
    let (after, after_there) = (rounds(&db), rounds_there(&client).await);
    assert!(
        after - before <= 6 && after_there - before_there <= 3,
        "{before} {after} {before_there} {after_there}"
    );
    for _ in 0..3 {
        db.flush().await.unwrap();
    }
    assert_eq!((rounds(&db), rounds_there(&client).await), (after, after_there));
    // Mended here, accepted there.
    run(&db, "UPDATE customer SET email = 'ada2' WHERE id = 1").await;
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_flushed(&db).await;
    assert_clean(&db).await;
    db.shutdown().await.unwrap();
}

/// The same when the occupant of the value is in the cloud and the feed does not show it yet.
#[actix_rt::test]
async fn a_parent_refused_for_a_row_that_is_pulled_late_holds_up_nobody() {
    let server = Postgres::start();
    let (bench, db) = shop_on(&server).await;
    let holder = bench.cloud.connect().await;
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let client = bench.cloud.connect().await;
    client.batch_execute("INSERT INTO customer VALUES (2, 'x', 40)").await.unwrap();
    run(
        &db,
        "UPDATE customer SET email = 'x' WHERE id = 1;\nINSERT INTO purchase VALUES (7, 1);\nINSERT INTO note VALUES (1, 'd')",
    )
    .await;
    wait_for(&db, "parked and idle", |status| {
        status.sync.parked == 1 && status.sync.pending == 0 && status.sync.state == "idle"
    })
    .await;
    bench.wait_until_equal(&db, &["purchase", "note"]).await;
    assert_eq!(parked(&db, "customer"), "23505");
    let before = rounds(&db);
    for _ in 0..3 {
        db.flush().await.unwrap();
    }
    assert_eq!(rounds(&db), before);
    // The other customer comes, and has no place here until this one is mended.
    holder.batch_execute("COMMIT").await.unwrap();
    for _ in 0..3 {
        db.flush().await.unwrap();
    }
    assert!(rounds(&db) - before <= 6, "{} rounds", rounds(&db) - before);
    run(&db, "UPDATE customer SET email = 'ada2' WHERE id = 1").await;
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_flushed(&db).await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    db.shutdown().await.unwrap();
}

/// Whoever writes all the time keeps neither pulls nor an asked-for cycle from their end.
#[actix_rt::test]
async fn sustained_writes_do_not_starve_pulls() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    let go_on = Rc::new(Cell::new(true));
    let writer = {
        let (db, go_on) = (db.clone(), go_on.clone());
        actix_rt::spawn(async move {
            let mut written = 0_i64;
            while go_on.get() {
                written += 1;
                db.write([Statement::new("INSERT INTO note (body) VALUES (?1)").bind(written)])
                    .await
                    .unwrap();
            }
            written
        })
    };
    for round in 1..=5 {
        client.execute("UPDATE customer SET age = $1", &[&i64::from(round)]).await.unwrap();
        wait_until_here(&db, "SELECT age FROM customer", &round.to_string()).await;
        tokio::time::timeout(PATIENCE, db.flush()).await.expect("it ends while the writing goes on").unwrap();
    }
    assert!(!writer.is_finished());
    go_on.set(false);
    let written = writer.await.unwrap();
    assert!(written > 50, "{written}");
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_flushed(&db).await;
    assert_clean(&db).await;
    db.shutdown().await.unwrap();
}

/// Children that are refused because their parent is parked go out when the parent is mended.
#[actix_rt::test]
async fn parked_children_follow_their_mended_parent() {
    let (bench, db) = shop().await;
    run(
        &db,
        "INSERT INTO customer VALUES (5, 'eve', 'a misfit');\nINSERT INTO purchase VALUES (51, 5);\nINSERT INTO purchase VALUES (52, 5)",
    )
    .await;
    wait_for(&db, "all three are parked", |status| status.sync.parked == 3 && status.sync.pending == 0).await;
    assert_eq!((parked(&db, "customer"), parked(&db, "purchase")), ("misfit".into(), "23503,23503".into()));
    let mended = run(&db, "UPDATE customer SET age = 5 WHERE id = 5").await;
    wait_for(&db, "nothing is parked", |status| status.sync.parked == 0 && status.sync.pending == 0).await;
    bench.wait_until_equal(&db, TABLES).await;
    db.synced(&mended).await.unwrap();
    assert_clean(&db).await;
    db.shutdown().await.unwrap();
}

/// A table that the cloud side makes unusable answers its receipts with the reason; the other tables go on.
#[actix_rt::test]
async fn a_table_that_cannot_be_synced_says_so_to_its_receipts() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client.batch_execute("CREATE TABLE odd (id bigint, other bigint PRIMARY KEY)").await.unwrap();
    let db = bench.open().await;
    run(&db, "CREATE TABLE odd (id INTEGER PRIMARY KEY, other INTEGER);\nCREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")
        .await;
    let odd = run(&db, "INSERT INTO odd VALUES (1, 2)").await;
    bench.proxy.start();
    let told = tokio::time::timeout(PATIENCE, db.synced(&odd)).await.expect("an answer").unwrap_err();
    assert!(told.to_string().contains("odd") && told.to_string().contains("primary key"), "{told}");
    run(&db, "INSERT INTO note VALUES (1, 'arrives')").await;
    bench.wait_until_equal(&db, &["note"]).await;
    // Later ones, too.
    let later = run(&db, "INSERT INTO odd VALUES (2, 3)").await;
    let told = tokio::time::timeout(PATIENCE, db.synced(&later)).await.expect("an answer").unwrap_err();
    assert!(told.to_string().contains("primary key"), "{told}");
    assert_eq!(db.status_summary().await.sync.parked, 0);
    // Mended there, it goes on.
    client
        .batch_execute(
            "ALTER TABLE odd DROP CONSTRAINT odd_pkey, ALTER other DROP NOT NULL, ADD PRIMARY KEY (id)",
        )
        .await
        .unwrap();
    bench.wait_until_equal(&db, &["odd", "note"]).await;
    db.synced(&later).await.unwrap();
    db.shutdown().await.unwrap();
}

/// A cloud table that is dropped and made anew, or loses a column, while rows are on their way: no row is to blame, and
/// the file brings back what went.
#[actix_rt::test]
async fn a_cloud_table_made_anew_is_filled_from_the_file() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    run(&db, "INSERT INTO note VALUES (1, 'one'), (2, 'two'), (3, 'three')").await;
    bench.wait_until_equal(&db, TABLES).await;
    client
        .batch_execute("DROP TABLE note; CREATE TABLE note (id bigint PRIMARY KEY, body text)")
        .await
        .unwrap();
    run(&db, "INSERT INTO note VALUES (4, 'four')").await;
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_here(&db, "SELECT count(*) FROM note", "4").await;
    client.batch_execute("DROP TABLE note").await.unwrap();
    run(&db, "INSERT INTO note VALUES (5, 'five')").await;
    bench.wait_until_equal(&db, TABLES).await;
    wait_until_here(&db, "SELECT count(*) FROM note", "5").await;
    wait_until_flushed(&db).await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    db.shutdown().await.unwrap();
}

/// A column that the cloud table loses comes back, with the file's values.
#[actix_rt::test]
async fn a_column_lost_in_the_cloud_is_brought_back_from_the_file() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    run(&db, "INSERT INTO note VALUES (1, 'one'), (2, 'two'), (3, 'three')").await;
    bench.wait_until_equal(&db, TABLES).await;
    client.batch_execute("ALTER TABLE note DROP COLUMN body").await.unwrap();
    run(&db, "UPDATE note SET body = 'new' WHERE id = 1;\nINSERT INTO note VALUES (4, 'four')").await;
    wait_until_there(&db, &client, "SELECT count(*) FROM note WHERE id = 4", "1").await;
    wait_until_flushed(&db).await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    bench.wait_until_equal(&db, TABLES).await;
    assert_eq!(here(&db, "SELECT group_concat(body) FROM note"), "new,two,three,four");
    db.shutdown().await.unwrap();
}

/// Unique values that wander through many rows, freed values, changed keys and what cascades from them arrive in windows
/// of two and three rows.
#[actix_rt::test]
async fn swapped_values_and_keys_arrive_across_small_windows() {
    for window in [2, 3] {
        let bench = Bench::new().await;
        let db = bench.open_with(bench.settings().set("sync.window_rows_max", window)).await;
        run(
            &db,
            "CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT UNIQUE);\n\
             CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item (id) ON UPDATE CASCADE ON DELETE CASCADE)",
        )
        .await;
        for n in 1..=10 {
            run(&db, &format!("INSERT INTO item VALUES ({n}, 'c{n}');\nINSERT INTO part VALUES ({n}, {n})"))
                .await;
        }
        bench.proxy.start();
        bench.wait_until_equal(&db, &["item", "part"]).await;
        wait_until_flushed(&db).await;
        go_offline(&bench, &db).await;
        // Every value moves on by one row.
        run(&db, "UPDATE item SET code = 'x' || id").await;
        run(&db, "UPDATE item SET code = 'c' || (id % 10 + 1)").await;
        // A freed value is taken at once, a key moves with its part, a deletion cascades.
        run(&db, "DELETE FROM item WHERE id = 4;\nINSERT INTO item VALUES (20, 'c5')").await;
        run(&db, "UPDATE item SET id = 30 WHERE id = 7;\nUPDATE item SET id = 7 WHERE id = 8").await;
        run(&db, "INSERT INTO part VALUES (40, 7);\nINSERT INTO part VALUES (41, 20)").await;
        bench.proxy.start();
        bench.wait_until_equal(&db, &["item", "part"]).await;
        wait_until_flushed(&db).await;
        assert_clean(&db).await;
        assert_eq!(
            here(&db, "SELECT group_concat(id || code) FROM item WHERE id IN (7, 20, 30)"),
            "7c9,20c5,30c8"
        );
        db.shutdown().await.unwrap();
    }
}

/// Rows of megabytes in a cloud that is slow per row, with little patience per statement: windows become small enough.
#[actix_rt::test]
async fn large_rows_over_a_slow_link_arrive_in_smaller_windows() {
    let bench = Bench::new().await;
    let db = bench
        .open_with(bench.settings().set("cloud.statement_timeout_s", 1).set("sync.window_rows_max", 4))
        .await;
    run(&db, "CREATE TABLE photo (id INTEGER PRIMARY KEY, data BLOB)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["photo"]).await;
    bench
        .cloud
        .execute_batch(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    go_offline(&bench, &db).await;
    bench.proxy.set_mode(Mode::Delay(Duration::from_millis(20)));
    for id in 1..=6_i64 {
        db.write([Statement::new("INSERT INTO photo VALUES (?1, randomblob(2000000))").bind(id)])
            .await
            .unwrap();
    }
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["photo"]).await;
    assert_clean(&db).await;
    db.shutdown().await.unwrap();
}

/// What the cloud makes of new rows after they came is heard, with every round.
#[actix_rt::test]
async fn what_the_cloud_makes_of_new_rows_comes_home() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE note SET body = upper(body) WHERE id IN (SELECT id FROM fresh);
                 RETURN NULL; END $$;
             CREATE TRIGGER louder AFTER INSERT ON note REFERENCING NEW TABLE AS fresh
                 FOR EACH STATEMENT EXECUTE FUNCTION louder()",
        )
        .await
        .unwrap();
    for id in 1..=3 {
        let written = run(&db, &format!("INSERT INTO note VALUES ({id}, 'quiet')")).await;
        db.synced(&written).await.unwrap();
        wait_until_here(&db, &format!("SELECT body FROM note WHERE id = {id}"), "QUIET").await;
    }
    bench.wait_until_equal(&db, TABLES).await;
    assert_clean(&db).await;
}

/// A new row whose key somebody else took meanwhile is met, and not taken for one that has arrived, also where the cloud adds as many
/// rows of its own as are missing.
#[actix_rt::test]
async fn a_new_row_that_is_there_already_is_met_whatever_comes_along() {
    let (bench, db) = shop().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE FUNCTION greet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.id = 3 THEN INSERT INTO customer VALUES (99, 'greeted', 1); END IF;
                 RETURN NULL; END $$;
             CREATE TRIGGER greet AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION greet()",
        )
        .await
        .unwrap();
    go_offline(&bench, &db).await;
    client.batch_execute("INSERT INTO note VALUES (2, 'theirs')").await.unwrap();
    run(&db, "INSERT INTO note VALUES (1, 'ours'), (2, 'ours'), (3, 'ours')").await;
    bench.proxy.start();
    // The later one wins, and what lost is on record.
    wait_until_there(&db, &client, "SELECT body FROM note WHERE id = 2", "ours").await;
    bench.wait_until_equal(&db, TABLES).await;
    assert_eq!(here(&db, "SELECT email FROM customer WHERE id = 99"), "greeted");
    assert_eq!(here(&db, "SELECT group_concat(cloud) FROM _tidewater_conflicts"), "\"theirs\"");
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.pending), (0, 0), "{status:?}");
}
