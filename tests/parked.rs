//! Rows that the cloud refuses: who is parked and who is not, what is known of them, what brings them back, and how they are
//! given up.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::collections::BTreeMap;

use harness::{
    Bench, PATIENCE, here, numbers, run, there, wait_for, wait_until_flushed, wait_until_here,
    wait_until_there,
};
use tidewater::{Database, ParkedRow, Retried, Which};
use tidewater_test_support::{shell, wait};

const PARKED_LINE: &str = "are refused by the cloud and parked";

fn parked(db: &Database) -> Vec<ParkedRow> {
    db.parked(None, 0, 10_000).unwrap().rows
}

/// How many are parked for each reason.
fn reasons(db: &Database) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for row in parked(db) {
        *reasons.entry(row.sqlstate.unwrap_or_else(|| "no fit".into())).or_default() += 1;
    }
    reasons
}

async fn wait_until_parked(db: &Database, count: u64) {
    wait::until("the rows are parked, and nothing else waits", PATIENCE, async || {
        let sync = db.status_summary().await.sync;
        match (sync.parked, sync.pending, sync.state.as_str()) {
            (parked, 0, "idle") if parked == count => Ok(()),
            _ => Err(format!("{count} were expected; {sync:?}; {:#?}", parked(db))),
        }
    })
    .await;
}

async fn go_offline(bench: &Bench, db: &Database) {
    bench.proxy.stop();
    wait_for(db, "offline", |status| status.sync.state == "offline").await;
}

/// A connected device; the tables are made here, the rest in the cloud.
async fn device(tables: &str, in_the_cloud: &str, names: &[&str]) -> (Bench, Database) {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, tables).await;
    bench.proxy.start();
    bench.wait_until_equal(&db, names).await;
    bench.cloud.execute_batch(in_the_cloud).await;
    (bench, db)
}

/// Of 10,000 rows, 13 are refused for seven kinds of reasons: the others arrive, each of the 13 is parked with its own code,
/// is told of once, and is left alone. When the causes are mended in the cloud, all arrive, and nobody has touched a row.
#[actix_rt::test]
async fn thirteen_of_ten_thousand_are_parked_and_arrive_when_their_causes_are_mended() {
    let bench = Bench::new().await;
    bench
        .cloud
        .execute_batch(
            "CREATE TABLE owner (id bigint PRIMARY KEY);
             CREATE TABLE item (id bigint PRIMARY KEY, owner bigint REFERENCES owner (id), n bigint CONSTRAINT lucky CHECK (n <> 13),
                 word varchar(10), address inet, age integer, realm text, mood text);
             ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY;
             CREATE POLICY ours ON item USING (true) WITH CHECK (realm IS DISTINCT FROM 'theirs');
             CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF new.mood = 'bad' THEN RAISE 'not today'; END IF; RETURN new; END $$;
             CREATE TRIGGER judge BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION judge();",
        )
        .await;
    // Without foreign keys, as the shell writes: the two owners are nowhere.
    shell::sqlite3_shell(
        bench.path(),
        "CREATE TABLE owner (id INTEGER PRIMARY KEY);
         CREATE TABLE item (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES owner (id), n INTEGER, word TEXT, address TEXT,
             age INTEGER, realm TEXT, mood TEXT);
         WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
         INSERT INTO item (id, n, word, address, age) SELECT i, 1, 'word', '10.0.0.1', 7 FROM n;
         UPDATE item SET n = 13 WHERE id IN (5, 774, 9999);
         UPDATE item SET owner = id WHERE id IN (1543, 2312);
         UPDATE item SET address = 'nowhere' WHERE id IN (3081, 3850);
         UPDATE item SET age = 3000000000 WHERE id = 4619;
         UPDATE item SET word = 'much too long' WHERE id IN (5388, 6157);
         UPDATE item SET realm = 'theirs' WHERE id IN (6926, 7695);
         UPDATE item SET mood = 'bad' WHERE id = 8464;",
    );
    let db = bench.open().await;
    bench.proxy.start();
    wait_until_parked(&db, 13).await;
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT count(*) FROM item").await, "9987");
    let expected =
        [("22001", 2), ("22P02", 2), ("23503", 2), ("23514", 3), ("42501", 2), ("P0001", 1), ("no fit", 1)];
    assert_eq!(reasons(&db), expected.map(|(code, count)| (code.to_owned(), count)).into());
    let rows = parked(&db);
    let by_id = |id: i64| rows.iter().find(|row| row.key["id"] == id).unwrap();
    assert_eq!(by_id(5).constraint.as_deref(), Some("lucky"));
    assert_eq!(by_id(8464).message, "not today");
    // Which parent is missing.
    assert!(by_id(1543).message.contains("not present in table \"owner\""), "{:?}", by_id(1543));
    assert!(by_id(4619).message.contains("age"), "{:?}", by_id(4619));
    for row in &rows {
        assert_eq!((row.table.as_str(), row.change.as_str(), row.tries), ("item", "insert", 1), "{row:?}");
        assert_eq!(row.values.as_ref().unwrap()["id"], row.key["id"]);
    }
    // Cycles go on; nobody tries again without a reason, and nobody is told twice.
    let lines = bench.log.count(PARKED_LINE);
    for _ in 0..5 {
        db.flush().await.unwrap();
    }
    assert_eq!(parked(&db), rows);
    assert_eq!(bench.log.count(PARKED_LINE), lines);

    for mended in [
        "ALTER TABLE item DROP CONSTRAINT lucky",
        "INSERT INTO owner VALUES (1543), (2312)",
        "ALTER TABLE item ALTER address TYPE text",
        "ALTER TABLE item ALTER age TYPE bigint",
        "ALTER TABLE item ALTER word TYPE text",
        "ALTER POLICY ours ON item WITH CHECK (true)",
        "CREATE OR REPLACE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$",
    ] {
        let before = parked(&db).len();
        client.batch_execute(mended).await.unwrap();
        wait::until(&format!("fewer are parked after {mended}"), PATIENCE, async || {
            let rows = parked(&db);
            let pending = db.status_summary().await.sync.pending;
            if rows.len() < before && pending == 0 { Ok(()) } else { Err(format!("{pending} {rows:#?}")) }
        })
        .await;
    }
    wait_until_parked(&db, 0).await;
    assert_eq!(there(&client, "SELECT count(*) FROM item").await, "10000");
    bench.wait_until_equal(&db, &["owner", "item"]).await;
    assert_eq!(here(&db, "SELECT count(*) FROM _tidewater_refusals"), "0");
    assert_eq!(bench.log.count(PARKED_LINE), lines);
    db.shutdown().await.unwrap();
}

/// A row goes when somebody asks for it, by number, by table or with all: here for a reason that nothing in the catalogue
/// shows. While it is still refused it keeps its number, counts its tries, and the log has one line for all of them.
#[actix_rt::test]
async fn parked_rows_are_tried_again_when_somebody_asks() {
    let (bench, db) = device(
        "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)",
        "CREATE TABLE mood (good boolean); INSERT INTO mood VALUES (false);
         CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NOT (SELECT good FROM mood) THEN RAISE 'not today'; END IF; RETURN new; END $$;
         CREATE TRIGGER judge BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION judge();",
        &["note"],
    )
    .await;
    run(&db, "INSERT INTO note VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    wait_until_parked(&db, 3).await;
    let ids: Vec<i64> = parked(&db).iter().map(|row| row.id).collect();
    for tries in 2..=4 {
        assert_eq!(db.retry_parked(Which::All).await.unwrap(), Retried { rows: 3, unknown: vec![] });
        wait::until("all were tried", PATIENCE, async || {
            let rows = parked(&db);
            let tried = rows.len() == 3 && rows.iter().all(|row| row.tries == tries);
            if tried { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
    }
    assert_eq!(parked(&db).iter().map(|row| row.id).collect::<Vec<_>>(), ids);
    assert_eq!(bench.log.count(PARKED_LINE), 1, "{:#?}", bench.log.all());

    let client = bench.cloud.connect().await;
    client.batch_execute("UPDATE mood SET good = true").await.unwrap();
    let one = db.retry_parked(Which::Ids(vec![ids[1], 999])).await.unwrap();
    assert_eq!(one, Retried { rows: 1, unknown: vec![999] });
    wait_until_there(&db, &client, "SELECT string_agg(body, '') FROM note", "b").await;
    assert!(
        db.retry_parked(Which::Table("nowhere".into())).await.unwrap_err().to_string().contains("nowhere")
    );
    assert_eq!(db.retry_parked(Which::Table("NOTE".into())).await.unwrap().rows, 2);
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// A parked row that is edited is tried again at once, by itself.
#[actix_rt::test]
async fn a_parked_row_is_tried_again_when_it_is_edited() {
    let (bench, db) = device(
        "CREATE TABLE note (id INTEGER PRIMARY KEY, n INTEGER)",
        "ALTER TABLE note ADD CHECK (n > 0)",
        &["note"],
    )
    .await;
    run(&db, "INSERT INTO note VALUES (1, 0), (2, -2)").await;
    wait_until_parked(&db, 2).await;
    run(&db, "UPDATE note SET n = 1 WHERE id = 1").await;
    wait_until_parked(&db, 1).await;
    assert_eq!((parked(&db)[0].key["id"].clone(), parked(&db)[0].tries), (2.into(), 1));
    run(&db, "DELETE FROM note WHERE id = 2").await;
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// A unique value that a row of the cloud holds parks the row that takes it; it goes as soon as the other one leaves it, by
/// somebody else's hand.
#[actix_rt::test]
async fn a_parked_row_goes_when_the_occupant_leaves_in_the_cloud() {
    for leaves in ["DELETE FROM guest WHERE id = 2", "UPDATE guest SET room = 'attic' WHERE id = 2"] {
        let (bench, db) =
            device("CREATE TABLE guest (id INTEGER PRIMARY KEY, room TEXT UNIQUE)", "", &["guest"]).await;
        go_offline(&bench, &db).await;
        let client = bench.cloud.connect().await;
        client.batch_execute("INSERT INTO guest VALUES (2, 'blue')").await.unwrap();
        run(&db, "INSERT INTO guest VALUES (1, 'blue')").await;
        bench.proxy.start();
        wait_until_parked(&db, 1).await;
        assert_eq!(reasons(&db), [("23505".to_owned(), 1)].into());
        client.batch_execute(leaves).await.unwrap();
        wait_until_parked(&db, 0).await;
        bench.wait_until_equal(&db, &["guest"]).await;
        db.shutdown().await.unwrap();
    }
}

/// The same when the occupant is a row of this file that is parked itself: mended, it takes along who waits for its value.
#[actix_rt::test]
async fn a_parked_row_goes_when_the_occupant_is_accepted() {
    let (bench, db) = device(
        "CREATE TABLE guest (id INTEGER PRIMARY KEY, room TEXT UNIQUE, age INTEGER)",
        "ALTER TABLE guest ADD CONSTRAINT adult CHECK (age >= 18)",
        &["guest"],
    )
    .await;
    run(&db, "INSERT INTO guest VALUES (1, 'blue', 20)").await;
    bench.wait_until_equal(&db, &["guest"]).await;
    run(
        &db,
        "UPDATE guest SET room = 'attic', age = 2 WHERE id = 1;\nINSERT INTO guest VALUES (2, 'blue', 30)",
    )
    .await;
    wait_until_parked(&db, 2).await;
    assert_eq!(reasons(&db), [("23505".to_owned(), 1), ("23514".to_owned(), 1)].into());
    run(&db, "UPDATE guest SET age = 22 WHERE id = 1").await;
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["guest"]).await;
    db.shutdown().await.unwrap();
}

/// A foreign key that only the cloud has: nothing here says which parent is missing, so the row is tried again some time
/// after something came from the cloud.
#[actix_rt::test]
async fn a_constraint_that_only_the_cloud_has_is_tried_again_later() {
    let (bench, db) = device(
        "CREATE TABLE room (id INTEGER PRIMARY KEY);\nCREATE TABLE guest (id INTEGER PRIMARY KEY, room INTEGER)",
        "ALTER TABLE guest ADD FOREIGN KEY (room) REFERENCES room (id)",
        &["room", "guest"],
    )
    .await;
    run(&db, "INSERT INTO guest VALUES (1, 7)").await;
    wait_until_parked(&db, 1).await;
    bench.cloud.execute_batch("INSERT INTO room VALUES (7)").await;
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["room", "guest"]).await;
    assert_eq!(bench.log.count(PARKED_LINE), 1);
    db.shutdown().await.unwrap();
}

/// A row that waits for something which nobody here can see is tried again when its parent comes, but not each time that
/// its parent is changed.
#[actix_rt::test]
async fn a_parent_that_is_changed_all_the_time_causes_no_loop() {
    let (bench, db) = device(
        "CREATE TABLE room (id INTEGER PRIMARY KEY, beds INTEGER);\nCREATE TABLE guest (id INTEGER PRIMARY KEY, room INTEGER REFERENCES room (id), city INTEGER)",
        "CREATE TABLE city (id bigint PRIMARY KEY); ALTER TABLE guest ADD FOREIGN KEY (city) REFERENCES city (id)",
        &["room", "guest"],
    )
    .await;
    run(&db, "INSERT INTO room VALUES (7, 0);\nINSERT INTO guest VALUES (1, 7, 5)").await;
    wait_until_parked(&db, 1).await;
    let client = bench.cloud.connect().await;
    for beds in 1..=20_i64 {
        client.execute("UPDATE room SET beds = $1", &[&beds]).await.unwrap();
        wait_until_here(&db, "SELECT beds FROM room", &beds.to_string()).await;
    }
    assert!(parked(&db)[0].tries <= 4, "{:?}", parked(&db));
    assert_eq!(bench.log.count(PARKED_LINE), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Values that change places among three, five and two hundred rows beside one that is refused for a unique value: only that
/// one is parked.
#[actix_rt::test]
async fn a_rotation_is_not_parked_for_its_neighbour() {
    let (bench, db) =
        device("CREATE TABLE guest (id INTEGER PRIMARY KEY, room TEXT UNIQUE)", "", &["guest"]).await;
    run(&db, "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 210) INSERT INTO guest SELECT i, 'r' || i FROM n")
        .await;
    bench.wait_until_equal(&db, &["guest"]).await;
    go_offline(&bench, &db).await;
    let client = bench.cloud.connect().await;
    client.batch_execute("INSERT INTO guest VALUES (1000, 'taken')").await.unwrap();
    run(
        &db,
        "UPDATE guest SET room = 'x' || id WHERE id <= 208;\n\
         UPDATE guest SET room = 'r' || (id % 3 + 1) WHERE id <= 3;\n\
         UPDATE guest SET room = 'r' || ((id - 3) % 5 + 4) WHERE id BETWEEN 4 AND 8;\n\
         UPDATE guest SET room = 'r' || ((id - 8) % 200 + 9) WHERE id BETWEEN 9 AND 208;\n\
         UPDATE guest SET room = 'taken' WHERE id = 209;\nUPDATE guest SET room = 'r209' WHERE id = 210",
    )
    .await;
    bench.proxy.start();
    wait_until_parked(&db, 2).await;
    // The second one takes what the first cannot leave.
    let mut ids: Vec<_> = parked(&db).iter().map(|row| row.key["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [209, 210]);
    assert_eq!(
        there(&client, "SELECT string_agg(room, ' ' ORDER BY id) FROM guest WHERE id <= 8").await,
        "r2 r3 r1 r5 r6 r7 r8 r4"
    );
    assert_eq!(there(&client, "SELECT room FROM guest WHERE id = 208").await, "r9");
    client.batch_execute("DELETE FROM guest WHERE id = 1000").await.unwrap();
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["guest"]).await;
    db.shutdown().await.unwrap();
}

/// A circle that one of its own rows keeps from closing is parked as a whole, and arrives as a whole when that row is
/// mended, though the others were not touched.
#[actix_rt::test]
async fn a_rotation_arrives_when_its_guilty_row_is_mended() {
    let (bench, db) = device(
        "CREATE TABLE guest (id INTEGER PRIMARY KEY, room TEXT UNIQUE, age INTEGER)",
        "ALTER TABLE guest ADD CONSTRAINT adult CHECK (age >= 18)",
        &["guest"],
    )
    .await;
    run(&db, "INSERT INTO guest VALUES (1, 'a', 20), (2, 'b', 20), (3, 'c', 20), (4, 'd', 20)").await;
    bench.wait_until_equal(&db, &["guest"]).await;
    run(
        &db,
        "UPDATE guest SET room = 'x' || id;\nUPDATE guest SET room = substr('bcda', id, 1);\nUPDATE guest SET age = 2 WHERE id = 3",
    )
    .await;
    wait_until_parked(&db, 4).await;
    run(&db, "UPDATE guest SET age = 33 WHERE id = 3").await;
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["guest"]).await;
    db.shutdown().await.unwrap();
}

/// Whatever is edited, rotated, refused, mended and asked for, in whatever order: no edit is lost on the way in and out of the
/// parked rows. When the cloud accepts everything in the end, both sides are equal.
#[actix_rt::test]
async fn nothing_is_lost_between_parked_and_sent() {
    for seed in 1..=5_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u64| {
            // Xorshift: any numbers will do, the same for the same seed.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (bench, db) = device(
            "CREATE TABLE guest (id INTEGER PRIMARY KEY, room TEXT UNIQUE, age INTEGER)",
            "ALTER TABLE guest ADD CONSTRAINT adult CHECK (age >= 18)",
            &["guest"],
        )
        .await;
        for id in 1..=12 {
            run(&db, &format!("INSERT INTO guest VALUES ({id}, 'r{id}', 20)")).await;
        }
        bench.wait_until_equal(&db, &["guest"]).await;
        for step in 0..30 {
            let id = random(12) + 1;
            match random(8) {
                0..=2 => {
                    // The rooms of some neighbours move on by one.
                    let (first, last) = (id, (id + 1 + random(4)).min(12));
                    let rows = here(
                        &db,
                        &format!(
                            "SELECT group_concat(id || '=' || room) FROM (SELECT id, room FROM guest WHERE id BETWEEN {first} AND {last} ORDER BY id)"
                        ),
                    );
                    let rows: Vec<(&str, &str)> =
                        rows.split(',').filter_map(|row| row.split_once('=')).collect();
                    let mut sql =
                        format!("UPDATE guest SET room = 'x' || id WHERE id BETWEEN {first} AND {last}");
                    for (at, (id, _)) in rows.iter().enumerate() {
                        let (_, room) = rows[(at + 1) % rows.len()];
                        sql += &format!(";\nUPDATE guest SET room = '{room}' WHERE id = {id}");
                    }
                    run(&db, &sql).await;
                }
                3 => drop(run(&db, &format!("UPDATE guest SET age = 2 WHERE id = {id}")).await),
                4 => drop(run(&db, &format!("UPDATE guest SET age = {} WHERE id = {id}", 20 + step)).await),
                5 => {
                    let sql =
                        format!("INSERT OR REPLACE INTO guest VALUES ({id}, 'n{step}', {})", 10 + random(20));
                    run(&db, &sql).await;
                }
                6 => drop(db.retry_parked(Which::All).await.unwrap()),
                _ => db.flush().await.unwrap(),
            }
        }
        assert!(bench.log.count(PARKED_LINE) > 0, "seed {seed} refuses nothing");
        bench.cloud.execute_batch("ALTER TABLE guest DROP CONSTRAINT adult").await;
        wait_until_parked(&db, 0).await;
        bench.wait_until_equal(&db, &["guest"]).await;
        assert_eq!(here(&db, "SELECT count(*) FROM _tidewater_refusals"), "0", "seed {seed}");
        db.shutdown().await.unwrap();
    }
}

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customer (id), n INTEGER)";
const SHOP_RULES: &str = "ALTER TABLE customer ADD CONSTRAINT adult CHECK (age >= 18);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept'; END $$;
CREATE TRIGGER keep BEFORE DELETE ON customer FOR EACH ROW EXECUTE FUNCTION keep();";

/// Discarding adopts what the cloud has: the values of an update, the absence of an insert, the row of a deletion. What was
/// here is in the conflict log, on both sides.
#[actix_rt::test]
async fn discarding_adopts_what_the_cloud_has_and_keeps_a_record() {
    let (bench, db) = device(SHOP, SHOP_RULES, &["customer", "purchase"]).await;
    run(&db, "INSERT INTO customer VALUES (1, 'ada', 30), (2, 'bo', 40)").await;
    bench.wait_until_equal(&db, &["customer"]).await;
    run(
        &db,
        "UPDATE customer SET name = 'eve', age = 3 WHERE id = 1;\nINSERT INTO customer VALUES (3, 'kid', 9);\nDELETE FROM customer WHERE id = 2",
    )
    .await;
    wait_until_parked(&db, 3).await;
    let rows = parked(&db);
    let mut changes: Vec<_> = rows.iter().map(|row| row.change.as_str()).collect();
    changes.sort_unstable();
    assert_eq!(changes, ["delete", "insert", "update"]);
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let discarded = db.discard_parked(ids.clone()).await.unwrap();
    assert_eq!((discarded.ids, discarded.refused), (ids, vec![]));
    assert_eq!(here(&db, "SELECT group_concat(id || name || age) FROM customer"), "1ada30,2bo40");
    assert_eq!(here(&db, "SELECT count(*) FROM _tidewater_refusals"), "0");
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["customer"]).await;
    let record = "SELECT group_concat(line, ' | ') FROM (SELECT key || coalesce(column, '*') || ' ' || coalesce(local, '-') || ' ' || \
                  coalesce(cloud, '-') || ' ' || kept AS line FROM _tidewater_conflicts ORDER BY line)";
    insta::assert_snapshot!(here(&db, record), @r#"[1]age 3 30 cloud | [1]name "eve" "ada" cloud | [2]* - "[2,\"bo\",40]" cloud | [3]* "[3,\"kid\",9]" - cloud"#);
    let client = bench.cloud.connect().await;
    wait_until_there(&db, &client, "SELECT count(*) FROM tidewater.conflicts", "4").await;
    db.shutdown().await.unwrap();
}

/// A row is not given up while others that wait refer to it, nor after it was edited, nor offline, and each time it is said
/// why.
#[actix_rt::test]
async fn discarding_is_refused_with_the_reason() {
    let (bench, db) = device(SHOP, SHOP_RULES, &["customer", "purchase"]).await;
    run(&db, "INSERT INTO customer VALUES (3, 'kid', 9);\nINSERT INTO purchase VALUES (30, 3, 1)").await;
    wait_until_parked(&db, 2).await;
    let rows = parked(&db);
    let id = |table: &str| rows.iter().find(|row| row.table == table).unwrap().id;
    let (customer, purchase) = (id("customer"), id("purchase"));
    let told = db.discard_parked(vec![customer, 999]).await.unwrap();
    assert_eq!(told.ids, Vec::<i64>::new());
    let told: Vec<_> = told.refused.iter().map(|(_, why)| why.as_str()).collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    nothing is parked under this number
    a row that waits refers to it: purchase [30]; discard that one, too
    ");

    go_offline(&bench, &db).await;
    let error = db.discard_parked(vec![purchase]).await.unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"Cloud SQL is not available: the proxy is not running; discarding a row needs it, because the row becomes what it is there");
    assert!(error.retry_helps());
    run(&db, "UPDATE purchase SET n = 2").await;
    bench.proxy.start();
    wait_until_parked(&db, 2).await;
    assert_eq!(here(&db, "SELECT count(*) FROM customer"), "1");

    let discarded = db.discard_parked(vec![customer, purchase]).await.unwrap();
    assert_eq!((discarded.ids.len(), discarded.refused), (2, vec![]));
    assert_eq!(here(&db, "SELECT (SELECT count(*) FROM customer) + (SELECT count(*) FROM purchase)"), "0");
    wait_until_parked(&db, 0).await;
    wait_until_here(&db, "SELECT count(*) FROM _tidewater_conflicts", "2").await;
    db.shutdown().await.unwrap();
}

/// What waits is listed by table and key, page by page, with what it is; parked rows are not among it.
#[actix_rt::test]
async fn what_waits_is_listed_page_by_page() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, SHOP).await;
    run(&db, "INSERT INTO customer VALUES (1, 'ada', 30), (2, 'bo', 40), (3, 'cy', 50)").await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["customer", "purchase"]).await;
    wait_until_flushed(&db).await;
    go_offline(&bench, &db).await;
    run(
        &db,
        "UPDATE customer SET age = 31, name = 'eve' WHERE id = 1;\nDELETE FROM customer WHERE id = 2;\nINSERT INTO purchase VALUES (1, 1, 1), (2, 1, 1)",
    )
    .await;
    let (mut listed, mut after) = (vec![], None);
    loop {
        let page = db.pending(None, after.as_ref(), 1).unwrap();
        assert_eq!(page.total, 4);
        listed.extend(
            page.rows.iter().map(|row| format!("{} {} {} {:?}", row.change, row.table, row.key, row.columns)),
        );
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    insta::assert_snapshot!(listed.join("\n"), @r#"
    update customer {"id":1} ["name", "age"]
    delete customer {"id":2} []
    insert purchase {"id":1} []
    insert purchase {"id":2} []
    "#);
    assert_eq!(db.pending(Some("purchase"), None, 10).unwrap().rows.len(), 2);
    assert!(db.pending(Some("nowhere"), None, 10).is_err());
    db.shutdown().await.unwrap();
}

/// A row that is larger than what any device takes from the cloud does not go there: it would keep all others from syncing.
#[actix_rt::test]
async fn a_row_that_nobody_could_take_from_the_cloud_again_is_parked() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("cloud.message_bytes_max", 1 << 20)).await;
    run(
        &db,
        "CREATE TABLE picture (id INTEGER PRIMARY KEY, content BLOB);\n\
         INSERT INTO picture VALUES (1, zeroblob(1000000)), (2, zeroblob(1100000)), (3, x'01')",
    )
    .await;
    bench.proxy.start();
    wait_until_parked(&db, 1).await;
    let rows = parked(&db);
    assert_eq!(rows[0].key["id"], 2);
    assert_eq!((&rows[0].sqlstate, &rows[0].values), (&None, &None));
    assert!(rows[0].message.contains("cloud.message_bytes_max"), "{}", rows[0].message);
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT string_agg(id::text, '' ORDER BY id) FROM picture").await, "13");
    run(&db, "UPDATE picture SET content = zeroblob(5) WHERE id = 2").await;
    bench.wait_until_equal(&db, &["picture"]).await;
    wait_for(&db, "nothing is parked", |status| status.sync.parked == 0).await;
    db.shutdown().await.unwrap();
}

/// Whoever raises that limit need do no more: what was parked for it is sent.
#[actix_rt::test]
async fn a_raised_limit_lets_larger_rows_through() {
    let bench = Bench::new().await;
    let limit = |bytes: u32| bench.settings().set("cloud.message_bytes_max", bytes);
    let db = bench.open_with(limit(1 << 20)).await;
    let picture = "CREATE TABLE picture (id INTEGER PRIMARY KEY, content BLOB);\n\
                   INSERT INTO picture VALUES (1, zeroblob(1100000)), (2, x'01')";
    run(&db, picture).await;
    bench.proxy.start();
    wait_until_parked(&db, 1).await;
    db.shutdown().await.unwrap();
    let db = bench.open_with(limit(2 << 20)).await;
    bench.wait_until_equal(&db, &["picture"]).await;
    wait_for(&db, "nothing is parked", |status| status.sync.parked == 0).await;
    db.shutdown().await.unwrap();
}

/// A trigger that has something against a number of rows in a transaction, whichever they are: nobody is guilty alone, so nobody
/// is parked but the one who is. Everything arrives in rounds that are small enough, and one line says why.
#[actix_rt::test]
async fn rows_that_are_refused_only_in_company_arrive_in_smaller_rounds() {
    let (bench, db) = device(
        "CREATE TABLE entry (id INTEGER PRIMARY KEY, n INTEGER);\nCREATE TABLE note (id INTEGER PRIMARY KEY)",
        "CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE so_far integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
         BEGIN
             IF so_far > 40 OR new.n = 13 THEN RAISE 'too many for today'; END IF;
             PERFORM set_config('test.rows', so_far::text, true);
             RETURN new;
         END $$;
         CREATE TRIGGER few BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION few();",
        &["entry", "note"],
    )
    .await;
    go_offline(&bench, &db).await;
    run(
        &db,
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 600)
         INSERT INTO entry SELECT i, CASE i WHEN 333 THEN 13 ELSE 0 END FROM n;\nINSERT INTO note VALUES (1), (2)",
    )
    .await;
    bench.proxy.start();
    wait_until_parked(&db, 1).await;
    assert_eq!(parked(&db)[0].key["id"], 333);
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT count(*) FROM entry").await, "599");
    assert_eq!(there(&client, "SELECT count(*) FROM note").await, "2");
    let line =
        "table entry: the cloud refuses rows together that it takes in smaller numbers (SQLSTATE P0001)";
    assert_eq!(bench.log.count(line), 1, "{:#?}", bench.log.all());
    // What comes afterwards goes as well.
    run(&db, "INSERT INTO entry VALUES (1000, 0);\nUPDATE entry SET n = 1 WHERE id = 333").await;
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["entry", "note"]).await;
    db.shutdown().await.unwrap();
}

/// Five hundred sales that come at once are no more than one round.
async fn assert_next_go_in_one_round(bench: &Bench, db: &Database) {
    let client = bench.cloud.connect().await;
    let number = async |sql: &str| there(&client, sql).await.parse::<u64>().unwrap();
    let (sales, rounds) = ("SELECT count(*) FROM sale", "SELECT round_number FROM tidewater.devices");
    let (known, before) = (number(sales).await, number(rounds).await);
    go_offline(bench, db).await;
    run(db, &format!("{} INSERT INTO sale SELECT 100 + i FROM n", numbers(500))).await;
    bench.proxy.start();
    wait_until_there(db, &client, sales, &(known + 500).to_string()).await;
    assert_eq!(number(rounds).await - before, 1, "{:#?}", bench.log.all());
}

/// A bad row beside its new parent is parked in the round that both came in, however often: the parent is there at once, and no round
/// is smaller for it.
#[actix_rt::test]
async fn a_bad_child_of_a_new_parent_makes_no_round_smaller() {
    let (bench, db) = device(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY);
         CREATE TABLE line (id INTEGER PRIMARY KEY, sale INTEGER REFERENCES sale (id), n INTEGER)",
        "ALTER TABLE line ADD CHECK (n <> 13)",
        &["sale", "line"],
    )
    .await;
    for id in 1..=5 {
        run(&db, &format!("INSERT INTO sale VALUES ({id});\nINSERT INTO line VALUES ({id}, {id}, 13)")).await;
        wait_until_parked(&db, id).await;
        wait_until_flushed(&db).await;
    }
    assert_next_go_in_one_round(&bench, &db).await;
    db.shutdown().await.unwrap();
}

/// A forbidden deletion of a parent, whose children are deleted in the same round, is parked when they are gone, and no round is smaller
/// for it.
#[actix_rt::test]
async fn a_forbidden_deletion_of_a_parent_makes_no_round_smaller() {
    let (bench, db) = device(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY);
         CREATE TABLE line (id INTEGER PRIMARY KEY, sale INTEGER REFERENCES sale (id) ON DELETE CASCADE)",
        "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'sales stay'; END $$;
         CREATE TRIGGER stay BEFORE DELETE ON sale FOR EACH ROW EXECUTE FUNCTION stay();",
        &["sale", "line"],
    )
    .await;
    run(&db, &format!("{} INSERT INTO sale SELECT i FROM n", numbers(5))).await;
    run(&db, &format!("{} INSERT INTO line SELECT i, (i + 2) / 3 FROM n", numbers(15))).await;
    bench.wait_until_equal(&db, &["sale", "line"]).await;
    for id in 1..=5 {
        run(&db, &format!("DELETE FROM sale WHERE id = {id}")).await;
        wait_until_parked(&db, id).await;
        wait_until_flushed(&db).await;
    }
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT count(*) FROM line").await, "0");
    assert_next_go_in_one_round(&bench, &db).await;
    assert_eq!(bench.log.count("smaller"), 0, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// The same among rows that need others of their round: a child is refused without its parent for another reason, and a parent's
/// deletion takes more along than its own row while its children are there. None of them is guilty; all of it arrives.
#[actix_rt::test]
async fn relatives_that_are_refused_only_in_company_arrive_in_smaller_rounds() {
    let (bench, db) = device(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY);
         CREATE TABLE line (id INTEGER PRIMARY KEY, sale INTEGER REFERENCES sale (id) ON DELETE CASCADE)",
        "CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE so_far integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
         BEGIN
             IF so_far > 40 THEN RAISE 'too many for today'; END IF;
             PERFORM set_config('test.rows', so_far::text, true);
             RETURN coalesce(new, old);
         END $$;
         CREATE TRIGGER few BEFORE INSERT OR DELETE ON line FOR EACH ROW EXECUTE FUNCTION few();",
        &["sale", "line"],
    )
    .await;
    let sales = format!("{} INSERT INTO sale SELECT i FROM n", numbers(30));
    let lines = format!("{} INSERT INTO line SELECT i, (i + 2) / 3 FROM n", numbers(90));
    for work in [format!("{sales};\n{lines}"), "DELETE FROM sale WHERE id <= 20".to_owned()] {
        go_offline(&bench, &db).await;
        run(&db, &work).await;
        bench.proxy.start();
        wait_until_flushed(&db).await;
        bench.wait_until_equal(&db, &["sale", "line"]).await;
        let parkings = here(&db, "SELECT count(*) FROM _tidewater_meta WHERE key = 'parkings'");
        assert_eq!(parkings, "0", "{:#?}", bench.log.all());
    }
    db.shutdown().await.unwrap();
}

/// Rows whose values change places, two by two, and a cloud that takes few rows at once, whatever the window is: nobody is parked for
/// good, and nobody spins.
#[actix_rt::test]
async fn values_that_change_places_pass_a_cloud_that_takes_few_rows_at_once() {
    for (unique, window) in [("UNIQUE", 2000), ("UNIQUE DEFERRABLE INITIALLY DEFERRED", 2000), ("UNIQUE", 1)]
    {
        let bench = Bench::new().await;
        bench
            .cloud
            .execute_batch(&format!(
                "CREATE TABLE seat (id bigint PRIMARY KEY, place text {unique});
                 CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$
                 DECLARE so_far integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
                 BEGIN
                     IF so_far > 8 THEN RAISE 'too many for today'; END IF;
                     PERFORM set_config('test.rows', so_far::text, true);
                     RETURN new;
                 END $$;
                 CREATE TRIGGER few BEFORE UPDATE ON seat FOR EACH ROW EXECUTE FUNCTION few();"
            ))
            .await;
        let settings = bench.settings().set("sync.window_rows_max", window).set("sync.pull_interval_s", 0.2);
        let db = bench.open_with(settings).await;
        run(&db, "CREATE TABLE seat (id INTEGER PRIMARY KEY, place TEXT UNIQUE)").await;
        run(&db, &format!("{} INSERT INTO seat SELECT i, 'p' || i FROM n", numbers(20))).await;
        bench.proxy.start();
        bench.wait_until_equal(&db, &["seat"]).await;
        go_offline(&bench, &db).await;
        run(
            &db,
            "UPDATE seat SET place = 'x' || id;\nUPDATE seat SET place = 'p' || (id + 2 * (id % 2) - 1)",
        )
        .await;
        bench.proxy.start();
        bench.wait_until_equal(&db, &["seat"]).await;
        wait_until_parked(&db, 0).await;
        db.shutdown().await.unwrap();
    }
}

/// The same of a table that refers to itself, so that the children are no other table's turn.
#[actix_rt::test]
async fn a_parent_with_more_children_of_its_own_table_than_the_cloud_takes_at_once_is_deleted() {
    let (bench, db) = device(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES node (id) ON DELETE CASCADE)",
        "CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE so_far integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
         BEGIN
             IF so_far > 20 THEN RAISE 'too many for today'; END IF;
             PERFORM set_config('test.rows', so_far::text, true);
             RETURN old;
         END $$;
         CREATE TRIGGER few BEFORE DELETE ON node FOR EACH ROW EXECUTE FUNCTION few();",
        &["node"],
    )
    .await;
    run(
        &db,
        &format!("{} INSERT INTO node SELECT i, CASE i WHEN 1 THEN NULL ELSE 1 END FROM n", numbers(41)),
    )
    .await;
    bench.wait_until_equal(&db, &["node"]).await;
    go_offline(&bench, &db).await;
    run(&db, "DELETE FROM node").await;
    bench.proxy.start();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["node"]).await;
    assert_eq!(here(&db, "SELECT count(*) FROM _tidewater_meta WHERE key = 'parkings'"), "0");
    db.shutdown().await.unwrap();
}

/// A deletion that is told to take its children along here, and more of them than the cloud takes at once, where the cloud knows of no
/// relation: the children that it takes go first.
#[actix_rt::test]
async fn a_deletion_with_more_children_than_the_cloud_takes_at_once_goes_in_turns() {
    let bench = Bench::new().await;
    bench
        .cloud
        .execute_batch(
            "CREATE TABLE sale (id bigint PRIMARY KEY);
             CREATE TABLE line (id bigint PRIMARY KEY, sale bigint);
             CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$
             DECLARE so_far integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
             BEGIN
                 IF so_far > 20 THEN RAISE 'too many for today'; END IF;
                 PERFORM set_config('test.rows', so_far::text, true);
                 RETURN old;
             END $$;
             CREATE TRIGGER few BEFORE DELETE ON sale FOR EACH ROW EXECUTE FUNCTION few();
             CREATE TRIGGER few BEFORE DELETE ON line FOR EACH ROW EXECUTE FUNCTION few();",
        )
        .await;
    let db = bench.open_with(bench.settings().set("sync.pull_interval_s", 0.2)).await;
    let schema = "CREATE TABLE sale (id INTEGER PRIMARY KEY);
         CREATE TABLE line (id INTEGER PRIMARY KEY, sale INTEGER REFERENCES sale (id) ON DELETE CASCADE);
         CREATE TABLE note (id INTEGER PRIMARY KEY)";
    run(&db, schema).await;
    run(&db, &format!("INSERT INTO sale VALUES (1);\n{} INSERT INTO line SELECT i, 1 FROM n", numbers(40)))
        .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["sale", "line"]).await;
    go_offline(&bench, &db).await;
    run(&db, "DELETE FROM sale").await;
    bench.proxy.start();
    wait_for(&db, "the first of them are gone", |status| status.sync.pending < 41).await;
    let written = run(&db, "INSERT INTO note VALUES (1)").await;
    db.synced(&written).await.unwrap();
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["sale", "line", "note"]).await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    db.shutdown().await.unwrap();
}

/// Two rows of a round of which the cloud takes either, and not both, with a trigger that has no code of its own: the first one
/// arrives with all the others, the second one is parked for the reason that it is refused for beside the first.
#[actix_rt::test]
async fn of_two_rows_that_exclude_each_other_one_is_parked() {
    let (bench, db) = device(
        "CREATE TABLE address (id INTEGER PRIMARY KEY, main INTEGER)",
        "CREATE FUNCTION one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF new.main = 1 AND EXISTS (SELECT FROM address WHERE main = 1) THEN RAISE 'there is one already'; END IF;
             RETURN new; END $$;
         CREATE TRIGGER one BEFORE INSERT ON address FOR EACH ROW EXECUTE FUNCTION one();",
        &["address"],
    )
    .await;
    go_offline(&bench, &db).await;
    run(
        &db,
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO address SELECT i, i IN (100, 200) FROM n",
    )
    .await;
    bench.proxy.start();
    wait_until_parked(&db, 1).await;
    let rows = parked(&db);
    assert_eq!((rows[0].message.as_str(), rows[0].tries), ("there is one already", 1));
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT count(*) FROM address").await, "299");
    assert_eq!(there(&client, "SELECT count(*) FROM address WHERE main = 1").await, "1");
    db.shutdown().await.unwrap();
}

/// A cloud that takes one row per statement, and takes its time for it: the search for a guilty row, of which there is none,
/// ends when its time is over, and what it has accepted by then is there. Other tables, and what others write, do not wait for
/// the rest; all of it arrives, nothing is parked, and one line says what is the matter.
#[actix_rt::test]
async fn a_search_in_which_nobody_is_guilty_holds_nobody_up() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("cloud.statement_timeout_s", 1)).await;
    run(&db, "CREATE TABLE entry (id INTEGER PRIMARY KEY);\nCREATE TABLE note (id INTEGER PRIMARY KEY)")
        .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["entry", "note"]).await;
    bench
        .cloud
        .execute_batch(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF (SELECT count(*) FROM fresh) > 1 THEN RAISE 'one at a time'; END IF;
                 PERFORM pg_sleep(0.04); RETURN NULL; END $$;
             CREATE TRIGGER slowly AFTER INSERT ON entry REFERENCING NEW TABLE AS fresh
                 FOR EACH STATEMENT EXECUTE FUNCTION slowly();",
        )
        .await;
    go_offline(&bench, &db).await;
    run(
        &db,
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 80) INSERT INTO entry SELECT i FROM n",
    )
    .await;
    let client = bench.cloud.connect().await;
    bench.proxy.start();
    let there_are = async || there(&client, "SELECT count(*) FROM entry").await.parse::<u64>().unwrap();
    wait::until("the first of them are there", PATIENCE, async || {
        let some = there_are().await;
        if some > 0 { Ok(()) } else { Err(format!("{:?}", db.status_summary().await.sync)) }
    })
    .await;
    run(&db, "INSERT INTO note VALUES (1)").await;
    client.execute("INSERT INTO note VALUES (2)", &[]).await.unwrap();
    wait_until_there(&db, &client, "SELECT count(*) FROM note", "2").await;
    wait_until_here(&db, "SELECT count(*) FROM note", "2").await;
    let so_far = there_are().await;
    assert!(so_far < 80, "the other table waited for all of them");
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, &["entry", "note"]).await;
    assert_eq!(db.status_summary().await.sync.parked, 0);
    assert_eq!(bench.log.count("it takes long to find out which"), 1, "{:#?}", bench.log.all());
    assert_eq!(bench.log.count("SQLSTATE"), 0, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Two rows take the cloud longer than a statement may, whatever round they are in: each is soon alone, everything else arrives, and
/// they are parked for that. They are tried again by themselves after a wait, and when somebody asks.
#[actix_rt::test]
async fn rows_that_take_the_cloud_too_long_hold_nobody_up() {
    let bench = Bench::new().await;
    let db = bench.open_with(bench.settings().set("cloud.statement_timeout_s", 0.5)).await;
    run(
        &db,
        "CREATE TABLE entry (id INTEGER PRIMARY KEY, n INTEGER);\nCREATE TABLE note (id INTEGER PRIMARY KEY)",
    )
    .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["entry", "note"]).await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF new.n = 13 THEN PERFORM pg_sleep(60); END IF; RETURN new; END $$;
             CREATE TRIGGER slowly BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION slowly();",
        )
        .await
        .unwrap();
    go_offline(&bench, &db).await;
    run(
        &db,
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO entry SELECT i, CASE WHEN i IN (300, 400) THEN 13 ELSE 0 END FROM n;\nINSERT INTO note VALUES (1)",
    )
    .await;
    bench.proxy.start();
    wait_until_parked(&db, 2).await;
    let rows: Vec<_> = parked(&db).into_iter().map(|row| (row.key["id"].as_i64(), row.sqlstate)).collect();
    let slow = |id| (Some(id), Some("57014".to_owned()));
    assert!(rows.contains(&slow(300)) && rows.contains(&slow(400)), "{rows:?}");
    assert_eq!(there(&client, "SELECT count(*) FROM entry").await, "498");
    assert_eq!(there(&client, "SELECT count(*) FROM note").await, "1");
    assert_eq!(bench.log.count("longer for a round than cloud.statement_timeout_s allows"), 1);
    assert_eq!(bench.log.count("Sync is interrupted"), 0, "{:#?}", bench.log.all());
    client.batch_execute("ALTER TABLE entry DISABLE TRIGGER slowly").await.unwrap();
    db.retry_parked(Which::All).await.unwrap();
    wait_until_parked(&db, 0).await;
    bench.wait_until_equal(&db, &["entry", "note"]).await;
    db.shutdown().await.unwrap();
}

/// A row that may need others, and one that takes the cloud too long: a round in which the first one is tried with others is too slow.
/// The two are parked, each for its own reason, and no other row is.
#[actix_rt::test]
async fn a_slow_row_beside_one_that_needs_others_is_the_only_other_one_that_is_parked() {
    let bench = Bench::new().await;
    bench
        .cloud
        .execute_batch(
            "CREATE TABLE owner (id bigint PRIMARY KEY);
             CREATE TABLE entry (id bigint PRIMARY KEY, owner bigint REFERENCES owner (id), n bigint);
             CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF new.n = 13 THEN PERFORM pg_sleep(60); END IF; RETURN new; END $$;
             CREATE TRIGGER slowly BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION slowly();",
        )
        .await;
    let settings = bench.settings().set("cloud.statement_timeout_s", 0.5).set("sync.window_rows_max", 1);
    let db = bench.open_with(settings).await;
    run(&db, "CREATE TABLE entry (id INTEGER PRIMARY KEY, owner INTEGER, n INTEGER)").await;
    let rows = format!(
        "{} INSERT INTO entry SELECT i, CASE i WHEN 1 THEN 99 END, CASE i WHEN 3 THEN 13 ELSE 0 END FROM n",
        numbers(20)
    );
    run(&db, &rows).await;
    bench.proxy.start();
    wait_until_parked(&db, 2).await;
    let mut rows: Vec<_> =
        parked(&db).into_iter().map(|row| (row.key["id"].as_i64(), row.sqlstate)).collect();
    rows.sort();
    let of = |id, code: &str| (Some(id), Some(code.to_owned()));
    assert_eq!(rows, [of(1, "23503"), of(3, "57014")]);
    let client = bench.cloud.connect().await;
    assert_eq!(there(&client, "SELECT count(*) FROM entry").await, "18");
    let parkings = here(&db, "SELECT value FROM _tidewater_meta WHERE key = 'parkings'");
    assert_eq!(parkings, "2", "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}
