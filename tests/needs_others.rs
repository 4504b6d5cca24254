//! P2 for rows that need each other: what others refer to by a unique value, and what was parked beside a guilty row.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, here, run, there, wait_for, wait_until_flushed, wait_until_here, wait_until_there};
use tidewater::Database;

/// A device whose rows are in the cloud, with windows of this size, and offline.
async fn offline(window: usize, schema: &str, rows: &str, tables: &[&str]) -> (Bench, Database) {
    offline_from(Bench::new().await, window, schema, rows, tables).await
}

/// The same with a cloud that has tables already.
async fn offline_from(
    bench: Bench,
    window: usize,
    schema: &str,
    rows: &str,
    tables: &[&str],
) -> (Bench, Database) {
    let db = bench.open_with(bench.settings().set("sync.window_rows_max", window)).await;
    run(&db, schema).await;
    run(&db, rows).await;
    bench.proxy.start();
    bench.wait_until_equal(&db, tables).await;
    wait_until_flushed(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    (bench, db)
}

async fn assert_equal_and_clean(bench: &Bench, db: &Database, tables: &[&str]) {
    bench.proxy.start();
    wait_until_flushed(db).await;
    bench.wait_until_equal(db, tables).await;
    wait_until_flushed(db).await;
    // Another pull brings nothing that the flush has done besides.
    db.flush().await.unwrap();
    bench.wait_until_equal(db, tables).await;
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0), "{status:?} {:#?}", bench.log.all());
}

const BY_CODE: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, label TEXT);
CREATE TABLE part (id INTEGER PRIMARY KEY, code TEXT NOT NULL REFERENCES item (code) ON DELETE CASCADE ON UPDATE CASCADE)";
const ITEMS: &[&str] = &["item", "part"];

/// A row that takes another key takes those who refer to it by its code along: nothing of them is deleted in the cloud, and
/// then here. (Random history 19.)
#[actix_rt::test]
async fn a_changed_key_deletes_nobody_who_refers_by_a_unique_value() {
    for window in [1, 2000] {
        let rows = "INSERT INTO item VALUES (1, 'a', 'one'), (2, 'b', 'two');\nINSERT INTO part VALUES (10, 'a'), (11, 'b')";
        let (bench, db) = offline(window, BY_CODE, rows, ITEMS).await;
        run(&db, "UPDATE item SET id = id + 20, label = 'moved' WHERE id = 1").await;
        assert_equal_and_clean(&bench, &db, ITEMS).await;
        assert_eq!(
            here(&db, "SELECT group_concat(id || code) FROM (SELECT * FROM part ORDER BY id)"),
            "10a,11b"
        );
        assert_eq!(
            here(&db, "SELECT group_concat(id || code || label) FROM (SELECT * FROM item ORDER BY id)"),
            "2btwo,21amoved"
        );
        db.shutdown().await.unwrap();
    }
}

/// Codes that others refer to, which PostgreSQL checks row by row, go round among three rows, with those who refer to them.
/// (Random history 5.)
#[actix_rt::test]
async fn unique_values_that_others_refer_to_change_places() {
    for window in [2, 2000] {
        let rows = "INSERT INTO item VALUES (1, 'a', ''), (2, 'b', ''), (3, 'c', ''), (4, 'd', '');\n\
                    INSERT INTO part VALUES (10, 'a'), (11, 'b'), (12, 'c'), (13, 'c')";
        let (bench, db) = offline(window, BY_CODE, rows, ITEMS).await;
        run(
            &db,
            "UPDATE item SET code = '-' || code WHERE id < 4;\n\
             UPDATE item SET code = CASE id WHEN 1 THEN 'b' WHEN 2 THEN 'c' ELSE 'a' END WHERE id < 4;\n\
             UPDATE item SET label = 'other' WHERE id = 4",
        )
        .await;
        assert_equal_and_clean(&bench, &db, ITEMS).await;
        assert_eq!(
            here(&db, "SELECT group_concat(id || code) FROM (SELECT * FROM item ORDER BY id)"),
            "1b,2c,3a,4d"
        );
        assert_eq!(
            here(&db, "SELECT group_concat(id || code) FROM (SELECT * FROM part ORDER BY id)"),
            "10b,11c,12a,13a"
        );
        db.shutdown().await.unwrap();
    }
}

/// Values of a table that was there already, and whose unique constraints are checked row by row, are swapped and go round among
/// three, in windows of two rows as well: where NULL may stand in for them, and where not.
#[actix_rt::test]
async fn unique_values_that_are_checked_at_once_change_places() {
    for window in [2, 2000] {
        let bench = Bench::new().await;
        let there = "CREATE TABLE seat (id bigint PRIMARY KEY, a text UNIQUE, b text NOT NULL UNIQUE, c bigint NOT NULL UNIQUE)";
        bench.cloud.execute_batch(there).await;
        let schema = "CREATE TABLE seat (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b TEXT NOT NULL UNIQUE, c INTEGER NOT NULL UNIQUE)";
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) INSERT INTO seat SELECT i, 'a' || i, 'b' || i, i FROM n";
        let (bench, db) = offline_from(bench, window, schema, rows, &["seat"]).await;
        let swapped =
            "CASE id WHEN 1 THEN 9 WHEN 9 THEN 1 WHEN 2 THEN 5 WHEN 5 THEN 8 WHEN 8 THEN 2 ELSE id END";
        run(
            &db,
            &format!(
                "UPDATE seat SET a = '-' || id, b = '-' || id, c = -id;\n\
                 UPDATE seat SET a = 'a' || {swapped}, b = 'b' || {swapped}, c = {swapped}"
            ),
        )
        .await;
        assert_equal_and_clean(&bench, &db, &["seat"]).await;
        assert_eq!(
            here(&db, "SELECT group_concat(a || b || c, ' ') FROM (SELECT * FROM seat ORDER BY id)"),
            "a9b99 a5b55 a3b33 a4b44 a8b88 a6b66 a7b77 a2b22 a1b11"
        );
        db.shutdown().await.unwrap();
    }
}

const RING: &str = "CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT UNIQUE, n INTEGER, next INTEGER REFERENCES node (id) DEFERRABLE INITIALLY DEFERRED)";

/// A row takes another key, its children follow it, and the cloud checks its unique value row by row: the successor needs the old
/// row to be gone, the children need the successor, and the old row needs its children to have left. The old one lets go of its value
/// first; nothing is taken along by its deletion, and nobody else waits.
#[actix_rt::test]
async fn a_changed_key_with_children_passes_a_unique_value_that_is_checked_at_once() {
    let schema = "CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT UNIQUE);
         CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id) ON UPDATE CASCADE ON DELETE CASCADE);
         CREATE TABLE note (id INTEGER PRIMARY KEY)";
    let tables = &["item", "part", "note"];
    let rows = "INSERT INTO item VALUES (1, 'a'), (2, 'b');\nINSERT INTO part VALUES (10, 1), (11, 2)";
    let work = "UPDATE item SET id = 21 WHERE id = 1;\nINSERT INTO note VALUES (1), (2)";
    for window in [1, 2000] {
        let bench = Bench::new().await;
        bench
            .cloud
            .execute_batch(
                "CREATE TABLE item (id bigint PRIMARY KEY, code text UNIQUE);
                 CREATE TABLE part (id bigint PRIMARY KEY,
                     item bigint REFERENCES item (id) ON UPDATE CASCADE ON DELETE CASCADE)",
            )
            .await;
        let (bench, db) = offline_from(bench, window, schema, rows, tables).await;
        run(&db, work).await;
        assert_equal_and_clean(&bench, &db, tables).await;
        assert_eq!(here(&db, "SELECT group_concat(id || '>' || item) FROM part"), "10>21,11>2");
        db.shutdown().await.unwrap();
    }
}

/// The same where a unique value begins with a part of the key: the key stays as it is, or the row would not be found to be deleted.
#[actix_rt::test]
async fn a_row_that_lets_go_of_its_value_keeps_its_key() {
    let schema = "CREATE TABLE item (tenant INTEGER, id INTEGER, name TEXT, PRIMARY KEY (tenant, id), UNIQUE (tenant, name));
         CREATE TABLE part (id INTEGER PRIMARY KEY, tenant INTEGER, item INTEGER,
             FOREIGN KEY (tenant, item) REFERENCES item (tenant, id) ON UPDATE CASCADE)";
    let tables = &["item", "part"];
    let bench = Bench::new().await;
    bench
        .cloud
        .execute_batch(
            "CREATE TABLE item (tenant bigint, id bigint, name text, PRIMARY KEY (tenant, id), UNIQUE (tenant, name));
             CREATE TABLE part (id bigint PRIMARY KEY, tenant bigint, item bigint,
                 FOREIGN KEY (tenant, item) REFERENCES item (tenant, id) DEFERRABLE)",
        )
        .await;
    let rows =
        "INSERT INTO item VALUES (1, 1, 'a'), (1, 2, 'b');\nINSERT INTO part VALUES (10, 1, 1), (11, 1, 2)";
    let (bench, db) = offline_from(bench, 2000, schema, rows, tables).await;
    run(&db, "UPDATE item SET id = 21 WHERE id = 1").await;
    assert_equal_and_clean(&bench, &db, tables).await;
    assert_eq!(
        here(&db, "SELECT group_concat(tenant || '.' || id) FROM (SELECT * FROM item ORDER BY id)"),
        "1.2,1.21"
    );
    db.shutdown().await.unwrap();
}

/// The same where the old row has no value to let go of its own for: it stays, so that it takes nobody along, those in the circle are
/// parked, and everybody else goes.
#[actix_rt::test]
async fn a_circle_that_cannot_be_opened_is_parked_and_holds_nobody_up() {
    let schema = "CREATE TABLE item (id INTEGER PRIMARY KEY, price REAL NOT NULL UNIQUE);
         CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id) ON UPDATE CASCADE ON DELETE CASCADE);
         CREATE TABLE note (id INTEGER PRIMARY KEY)";
    let tables = &["item", "part", "note"];
    for window in [1, 2000] {
        let bench = Bench::new().await;
        bench
            .cloud
            .execute_batch(
                "CREATE TABLE item (id bigint PRIMARY KEY, price double precision NOT NULL UNIQUE);
                 CREATE TABLE part (id bigint PRIMARY KEY,
                     item bigint REFERENCES item (id) ON UPDATE CASCADE ON DELETE CASCADE)",
            )
            .await;
        let rows = "INSERT INTO item VALUES (1, 1.5), (2, 2.5);\nINSERT INTO part VALUES (10, 1), (11, 2)";
        let (bench, db) = offline_from(bench, window, schema, rows, tables).await;
        run(&db, "UPDATE item SET id = 21 WHERE id = 1;\nINSERT INTO note VALUES (1), (2)").await;
        bench.proxy.start();
        // The old row is tried with every cycle, and those that need it with it.
        wait_until_here(&db, "SELECT count(*) FROM _tidewater_refusals", "2").await;
        let client = bench.cloud.connect().await;
        wait_until_there(&db, &client, "SELECT count(*) FROM note", "2").await;
        assert_eq!(
            there(&client, "SELECT string_agg(id || '>' || item, ',' ORDER BY id) FROM part").await,
            "10>1,11>2"
        );
        // Another value is no circle any more.
        run(&db, "UPDATE item SET price = 3.5 WHERE id = 21").await;
        assert_equal_and_clean(&bench, &db, tables).await;
        assert_eq!(here(&db, "SELECT group_concat(id || '>' || item) FROM part"), "10>21,11>2");
        db.shutdown().await.unwrap();
    }
}

/// The cloud takes no `n` of 666.
async fn picky(bench: &Bench) {
    bench.cloud.execute_batch("ALTER TABLE node ADD CHECK (n <> 666)").await;
}

async fn parked(db: &Database, count: u64) {
    wait_for(db, "parked", |status| status.sync.parked == count && status.sync.pending == 0).await;
}

/// Rows that refer to each other, one of them guilty, are parked together; when that one is mended, all of them go. (Random
/// history 1174.)
#[actix_rt::test]
async fn a_mended_row_brings_along_those_that_it_needs_itself() {
    let (bench, db) = offline(2000, RING, "INSERT INTO node VALUES (1, 'a', 1, NULL)", &["node"]).await;
    picky(&bench).await;
    run(&db, "INSERT INTO node VALUES (5, 'e', 666, 6), (6, 'f', 1, 7), (7, 'g', 1, 5)").await;
    bench.proxy.start();
    parked(&db, 3).await;
    run(&db, "UPDATE node SET n = 5 WHERE id = 5").await;
    assert_equal_and_clean(&bench, &db, &["node"]).await;
    db.shutdown().await.unwrap();
}

/// A row that waits for a unique value goes when the guilty one that has it there is mended and lets go. (Random history 198.)
#[actix_rt::test]
async fn a_row_that_waits_for_a_unique_value_goes_when_it_is_free() {
    let (bench, db) = offline(2000, RING, "INSERT INTO node VALUES (1, 'a', 1, NULL)", &["node"]).await;
    picky(&bench).await;
    run(&db, "UPDATE node SET name = 'z', n = 666 WHERE id = 1;\nINSERT INTO node VALUES (2, 'a', 1, NULL)")
        .await;
    bench.proxy.start();
    parked(&db, 2).await;
    run(&db, "UPDATE node SET n = 1 WHERE id = 1").await;
    assert_equal_and_clean(&bench, &db, &["node"]).await;
    db.shutdown().await.unwrap();
}

/// A deletion that was refused, because a guilty row refers to what goes, follows when that one is mended. (Random history
/// 105.)
#[actix_rt::test]
async fn a_deletion_that_was_in_the_way_follows_the_mended_row() {
    let rows = "INSERT INTO node VALUES (1, 'a', 1, NULL), (2, 'b', 1, 1), (3, 'c', 1, NULL)";
    let (bench, db) = offline(2000, RING, rows, &["node"]).await;
    picky(&bench).await;
    run(&db, "UPDATE node SET next = 3, n = 666 WHERE id = 2;\nDELETE FROM node WHERE id = 1").await;
    bench.proxy.start();
    parked(&db, 2).await;
    run(&db, "UPDATE node SET n = 1 WHERE id = 2").await;
    assert_equal_and_clean(&bench, &db, &["node"]).await;
    db.shutdown().await.unwrap();
}

/// Two rows traded a unique value and one of them is guilty: mended, they go together, though the cloud would take neither
/// alone.
#[actix_rt::test]
async fn a_trade_goes_through_when_the_guilty_one_is_mended() {
    let rows = "INSERT INTO node VALUES (1, 'a', 1, NULL), (2, 'b', 1, NULL)";
    let (bench, db) = offline(2000, RING, rows, &["node"]).await;
    picky(&bench).await;
    run(
        &db,
        "UPDATE node SET name = NULL, n = 666 WHERE id = 1;\nUPDATE node SET name = 'a' WHERE id = 2;\n\
         UPDATE node SET name = 'b' WHERE id = 1",
    )
    .await;
    bench.proxy.start();
    parked(&db, 2).await;
    run(&db, "UPDATE node SET n = 1 WHERE id = 1").await;
    assert_equal_and_clean(&bench, &db, &["node"]).await;
    db.shutdown().await.unwrap();
}

/// Two rows that refer to each other, and that nobody may delete as long as somebody refers to them: here one let go first,
/// and what is left for the cloud is that both went.
#[actix_rt::test]
async fn rows_that_protect_each_other_go_together() {
    let schema = "CREATE TABLE lock (id INTEGER PRIMARY KEY, key INTEGER REFERENCES key (id) ON DELETE RESTRICT);\n\
                  CREATE TABLE key (id INTEGER PRIMARY KEY, lock INTEGER NOT NULL REFERENCES lock (id) ON DELETE RESTRICT)";
    let rows = "INSERT INTO lock VALUES (1, NULL), (2, NULL);\nINSERT INTO key VALUES (1, 1), (2, 2);\nUPDATE lock SET key = id";
    let tables = &["lock", "key"];
    let (bench, db) = offline(2000, schema, rows, tables).await;
    run(&db, "UPDATE lock SET key = NULL WHERE id = 1;\nDELETE FROM key WHERE id = 1;\nDELETE FROM lock WHERE id = 1").await;
    assert_equal_and_clean(&bench, &db, tables).await;
    assert_eq!(here(&db, "SELECT group_concat(id) FROM lock"), "2");
    db.shutdown().await.unwrap();
}

/// Rows that wait for a parked one are parked as well, however much they weigh together: they do not go up with every pull.
#[actix_rt::test]
async fn heavy_rows_that_wait_for_a_parked_one_are_parked_too() {
    let schema = "CREATE TABLE album (id INTEGER PRIMARY KEY, n INTEGER);\n\
                  CREATE TABLE photo (id INTEGER PRIMARY KEY, album INTEGER REFERENCES album (id), data BLOB)";
    let (bench, db) = offline(2000, schema, "INSERT INTO album VALUES (1, 1)", &["album", "photo"]).await;
    bench.cloud.execute_batch("ALTER TABLE album ADD CHECK (n <> 666)").await;
    run(&db, "INSERT INTO album VALUES (2, 666)").await;
    for id in 1..=20 {
        run(&db, &format!("INSERT INTO photo VALUES ({id}, 2, zeroblob(1000000))")).await;
    }
    bench.proxy.start();
    parked(&db, 21).await;
    run(&db, "UPDATE album SET n = 2 WHERE id = 2").await;
    assert_equal_and_clean(&bench, &db, &["album", "photo"]).await;
    db.shutdown().await.unwrap();
}

/// Very many rows make room for each other by a rule that only the cloud has, which nobody here knows of: more wait for each
/// other than one search keeps in mind, and every one of them arrives.
#[actix_rt::test]
async fn more_rows_than_one_search_keeps_in_mind_make_room_for_each_other() {
    let bench = Bench::new().await;
    let there =
        "CREATE TABLE item (id bigint PRIMARY KEY, name text); CREATE UNIQUE INDEX ON item (lower(name))";
    bench.cloud.execute_batch(there).await;
    let schema = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)";
    let rows = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 359) \
                INSERT INTO item SELECT i, 'name ' || i FROM n";
    let (bench, db) = offline_from(bench, 2000, schema, rows, &["item"]).await;
    // Of each three the first takes the second's name, the second a new one, the third the first's.
    let renamed = "UPDATE item SET name = CASE id % 3 WHEN 0 THEN 'name ' || (id + 1) WHEN 1 THEN 'new ' || id \
                   ELSE 'name ' || (id - 2) END";
    run(&db, renamed).await;
    assert_equal_and_clean(&bench, &db, &["item"]).await;
    assert_eq!(here(&db, "SELECT count(*) FROM item WHERE name LIKE 'new %'"), "120");
    db.shutdown().await.unwrap();
}
