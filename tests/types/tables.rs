//! Tables as people have them: keys of every type, columns that the cloud fills or computes, columns that come, go and change,
//! partitions, row-level security.

use tidewater::rusqlite::Connection;
use tidewater::{Database, Statement, Value};
use tidewater_actors::core::value::Affinity;
use tidewater_test_support::{Postgres, wait};
use tokio_postgres::Client;

use super::{MARK, parked, pulled, settled, shown, values_here, values_there};
use crate::harness::{Bench, PATIENCE, here, run, there, wait_for, wait_until_here, wait_until_there};

/// A cloud with these tables, and a connected device with those.
async fn connected(postgres: &str, sqlite: &str) -> (Bench, Client, Database) {
    connected_on(Postgres::shared(), postgres, sqlite).await
}

async fn connected_on(server: &Postgres, postgres: &str, sqlite: &str) -> (Bench, Client, Database) {
    let bench = Bench::on(server).await;
    let client = bench.cloud.connect().await;
    client.batch_execute("CREATE TABLE mark (id bigint PRIMARY KEY)").await.unwrap();
    client.batch_execute(postgres).await.unwrap_or_else(|error| panic!("{postgres}: {error:?}"));
    let db = bench.open().await;
    run(&db, &format!("{MARK};\n{sqlite}")).await;
    bench.proxy.start();
    pulled(&db, &client).await;
    settled(&db).await;
    (bench, client, db)
}

/// What a column stores is what SQLite stores, whatever it is given: comparisons with the file rest on it.
#[test]
fn a_column_is_predicted_as_sqlite_stores_it() {
    let mut given: Vec<Value> = vec![Value::Null, Value::Blob(b"5".to_vec()), Value::Malformed(vec![0xff])];
    given.extend([0, 1, -1, 9_007_199_254_740_993, i64::MAX, i64::MIN].map(Value::Integer));
    given.extend(
        [
            0.0,
            -0.0,
            1.0,
            0.1,
            1e15,
            9e15,
            1e18,
            9.2e18,
            9_223_372_036_854_775_807.0,
            -9_223_372_036_854_775_808.0,
            1e300,
        ]
        .map(Value::Real),
    );
    given.extend([f64::INFINITY, f64::NEG_INFINITY, 5e-324].map(Value::Real));
    for text in [
        "",
        " ",
        "5",
        " 5 ",
        "\x0b5\x0c",
        "+5",
        "-5",
        "--5",
        "+-5",
        "05",
        "5.",
        ".5",
        ".",
        "-.5e-3",
        "5e",
        "5e+",
        "5e1.5",
        "1e3",
        "1e999",
        "0x10",
        "1_000",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "9007199254740993.0",
        "12345678901234567890.5",
        "infinity",
        "inf",
        "nan",
        "NaN",
        "true",
        "2024-02-29",
        "2024",
        "1,5",
        "٣",
        "\u{a0}5",
        "5a",
        "1e5e5",
        "1.5.5",
        "1-1",
    ] {
        given.push(text.into());
    }
    let conn = Connection::open_in_memory().unwrap();
    for declared in [
        "INTEGER",
        "TINYINT(1)",
        "REAL",
        "DOUBLE PRECISION",
        "TEXT",
        "VARCHAR(10)",
        "BLOB",
        "",
        "NUMERIC",
        "DATETIME",
        "JSON",
        "BOOLEAN",
        "STRING",
        "FLOATING POINT",
        "CHARINT",
        "UUID",
    ] {
        conn.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (v {declared})")).unwrap();
        for value in &given {
            conn.execute_batch("DELETE FROM t").unwrap();
            conn.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
            let stored = conn.query_row("SELECT v FROM t", [], |row| Ok(shown(row.get_ref(0)?))).unwrap();
            let predicted = Affinity::of_declared(declared).store(value.clone());
            if matches!((Affinity::of_declared(declared), value), (Affinity::Text, Value::Real(_))) {
                // SQLite writes a real with fifteen digits; Tidewater gives such a column a text that has them all.
                continue;
            }
            let predicted =
                conn.query_row("SELECT ?1", [&predicted], |row| Ok(shown(row.get_ref(0)?))).unwrap();
            assert_eq!(stored, predicted, "{value:?} in {declared}");
        }
    }
}

/// A key of any type finds its row in both directions: inserted, changed and deleted here, and there.
#[actix_rt::test]
async fn a_key_of_any_type_names_its_row_on_both_sides() {
    let keys: &[(&str, &str, [&str; 2])] = &[
        ("INTEGER", "bigint", ["9007199254740993", "-5"]),
        ("INTEGER", "smallint", ["7", "-5"]),
        ("TEXT", "text", ["'a ''b''/\\c'", "''"]),
        ("TEXT", "character varying(5)", ["'ab '", "'c'"]),
        ("TEXT", "character(5)", ["'ab'", "'c'"]),
        ("TEXT", "bigint", ["'42'", "'-7'"]),
        (
            "TEXT",
            "uuid",
            ["'6f2c1c2e-3c4b-4f7e-9d35-0242ac120002'", "'00000000-0000-0000-0000-000000000000'"],
        ),
        ("BLOB", "bytea", ["x'00ff'", "x''"]),
        ("REAL", "double precision", ["0.1", "1e300"]),
        ("NUMERIC", "numeric(10,2)", ["12.5", "7"]),
        ("TEXT", "numeric(10,2)", ["'12.50'", "'7.00'"]),
        ("NUMERIC", "numeric", ["0.1", "100000000000000000000"]),
        ("DATE", "date", ["'2024-02-29'", "'infinity'"]),
        ("DATETIME", "timestamp", ["'2024-02-29 01:02:03'", "'2024-02-29 01:02:03.5'"]),
        ("TEXT", "timestamptz", ["'2024-02-29 01:02:03+00'", "'2024-02-29 01:02:03.5+00'"]),
        ("BOOLEAN", "boolean", ["1", "0"]),
        ("TEXT", "inet", ["'10.0.0.1'", "'10.0.0.0/8'"]),
        ("TEXT", "mood", ["'glad'", "'sad'"]),
        ("TEXT", "integer[]", ["'[1,2]'", "'[]'"]),
        ("TEXT", "amount", ["'5'", "'6'"]),
    ];
    let mut postgres = vec![
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN amount AS int CHECK (VALUE > 0)".to_owned(),
    ];
    let mut sqlite = vec![];
    for (at, (here, there, _)) in keys.iter().enumerate() {
        postgres.push(format!("CREATE TABLE k{at} (v {there} PRIMARY KEY, id bigint)"));
        sqlite.push(format!("CREATE TABLE k{at} (v {here} PRIMARY KEY, id INTEGER)"));
    }
    let (_bench, client, db) = connected(&postgres.join(";"), &sqlite.join(";\n")).await;
    for (at, (.., [one, other])) in keys.iter().enumerate() {
        run(&db, &format!("INSERT INTO k{at} VALUES ({one}, 1);\nINSERT INTO k{at} VALUES ({other}, 2)"))
            .await;
    }
    settled(&db).await;
    let mut wrong = vec![];
    let mut check = |what: &str, at: usize, found: String, expected: &str| {
        if found != expected {
            wrong.push(format!("{what}: {:?}: {found}, expected {expected}", keys[at]));
        }
    };
    for at in 0..keys.len() {
        check(
            "inserted here",
            at,
            there(&client, &format!("SELECT string_agg(id::text, ' ' ORDER BY id) FROM k{at}")).await,
            "1 2",
        );
        client.batch_execute(&format!("UPDATE k{at} SET id = 10 WHERE id = 1")).await.unwrap();
    }
    pulled(&db, &client).await;
    for at in 0..keys.len() {
        let found =
            here(&db, &format!("SELECT group_concat(id, ' ') FROM (SELECT id FROM k{at} ORDER BY id)"));
        check("changed there", at, found, "2 10");
        run(&db, &format!("UPDATE k{at} SET id = 20 WHERE id = 2")).await;
    }
    settled(&db).await;
    for at in 0..keys.len() {
        check(
            "changed here",
            at,
            there(&client, &format!("SELECT string_agg(id::text, ' ' ORDER BY id) FROM k{at}")).await,
            "10 20",
        );
        client.batch_execute(&format!("DELETE FROM k{at} WHERE id = 10")).await.unwrap();
    }
    pulled(&db, &client).await;
    for at in 0..keys.len() {
        check("deleted there", at, here(&db, &format!("SELECT group_concat(id, ' ') FROM k{at}")), "20");
        run(&db, &format!("DELETE FROM k{at}")).await;
    }
    settled(&db).await;
    for at in 0..keys.len() {
        check("deleted here", at, there(&client, &format!("SELECT count(*) FROM k{at}")).await, "0");
    }
    assert_eq!(wrong, Vec::<String>::new());
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0));
    db.shutdown().await.unwrap();
}

/// A key that would come back in other letters, or that another row of the cloud has in other letters, parks, and nothing else
/// does.
#[actix_rt::test]
async fn a_key_that_does_not_come_back_byte_for_byte_parks() {
    let (_bench, client, db) = connected(
        "CREATE EXTENSION citext; CREATE TABLE u (id uuid PRIMARY KEY, v text); CREATE TABLE c (id citext PRIMARY KEY, v text);
         CREATE TABLE n (id numeric(6,2) PRIMARY KEY, v text); CREATE TABLE p (id char(4) PRIMARY KEY, v text)",
        "CREATE TABLE u (id TEXT PRIMARY KEY, v TEXT);\nCREATE TABLE c (id TEXT PRIMARY KEY, v TEXT);\n\
         CREATE TABLE n (id TEXT PRIMARY KEY, v TEXT);\nCREATE TABLE p (id TEXT PRIMARY KEY, v TEXT)",
    )
    .await;
    run(
        &db,
        "INSERT INTO u VALUES ('6F2C1C2E-3C4B-4F7E-9D35-0242AC120002', 'upper'), ('6f2c1c2e-3c4b-4f7e-9d35-0242ac120003', 'lower');\n\
         INSERT INTO c VALUES ('abc', 'first');\nINSERT INTO n VALUES ('1.5', 'short'), ('1.50', 'whole');\n\
         INSERT INTO p VALUES ('ab', 'bare'), ('cd  ', 'padded')",
    )
    .await;
    settled(&db).await;
    run(&db, "INSERT INTO c VALUES ('ABC', 'second')").await;
    settled(&db).await;
    for (table, expected) in [("u", "lower"), ("c", "first"), ("n", "whole"), ("p", "bare")] {
        assert_eq!(
            there(&client, &format!("SELECT string_agg(v, ' ' ORDER BY v) FROM {table}")).await,
            expected
        );
    }
    assert_eq!(db.status_summary().await.sync.parked, 4);
    let reasons: Vec<String> = ["c", "n", "p", "u"]
        .iter()
        .map(|table| {
            let id = here(&db, &format!("SELECT id FROM _tidewater_tables WHERE name = '{table}'"));
            here(&db, &format!("SELECT message FROM _tidewater_parked_{id}"))
        })
        .collect();
    let expected = ["another key counts as the same", "numeric(6,2)", "character(4)", "lower case"];
    for (reason, part) in reasons.iter().zip(expected) {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    db.shutdown().await.unwrap();
}

/// Identity columns take the keys that are made here, and those that the cloud makes arrive; one beside the key that only the
/// cloud may fill refuses a change and is otherwise left alone.
#[actix_rt::test]
async fn identity_columns_take_and_give_their_values() {
    let (_bench, client, db) = connected(
        "CREATE TABLE a (id bigint GENERATED ALWAYS AS IDENTITY (START 100) PRIMARY KEY, v text);
         CREATE TABLE b (id bigint GENERATED BY DEFAULT AS IDENTITY (START 100) PRIMARY KEY, v text);
         CREATE TABLE s (id bigserial PRIMARY KEY, v text);
         CREATE TABLE c (id bigint PRIMARY KEY, v text, nr bigint GENERATED ALWAYS AS IDENTITY (START 100));
         CREATE TABLE d (id bigint PRIMARY KEY, v text, nr bigint GENERATED ALWAYS AS IDENTITY (START 100))",
        "CREATE TABLE a (id INTEGER PRIMARY KEY, v TEXT);\nCREATE TABLE b (id INTEGER PRIMARY KEY, v TEXT);\n\
         CREATE TABLE s (id INTEGER PRIMARY KEY, v TEXT);\nCREATE TABLE c (id INTEGER PRIMARY KEY, v TEXT);\n\
         CREATE TABLE d (id INTEGER PRIMARY KEY, v TEXT, nr INTEGER)",
    )
    .await;
    run(&db, "INSERT INTO a VALUES (7, 'x');\nINSERT INTO b VALUES (7, 'x');\nINSERT INTO s VALUES (7, 'x');\nINSERT INTO c VALUES (7, 'x');\nINSERT INTO d VALUES (7, 'x', 5)").await;
    settled(&db).await;
    for table in ["a", "b", "s"] {
        assert_eq!(there(&client, &format!("SELECT v FROM {table} WHERE id = 7")).await, "x");
        client.batch_execute(&format!("INSERT INTO {table} (v) VALUES ('there')")).await.unwrap();
    }
    client.batch_execute("INSERT INTO d (id, v) VALUES (8, 'there')").await.unwrap();
    pulled(&db, &client).await;
    for (table, id) in [("a", "100"), ("b", "100"), ("s", "1")] {
        assert_eq!(here(&db, &format!("SELECT id FROM {table} WHERE v = 'there'")), id);
    }
    assert_eq!(there(&client, "SELECT nr FROM c").await, "100", "only the cloud has it");
    assert_eq!(there(&client, "SELECT nr FROM d WHERE id = 7").await, "5");
    assert_eq!(here(&db, "SELECT nr FROM d WHERE id = 8"), "100");
    run(&db, "UPDATE d SET v = 'y' WHERE id = 8;\nUPDATE d SET nr = 6 WHERE id = 7").await;
    settled(&db).await;
    assert_eq!(there(&client, "SELECT v FROM d WHERE id = 8").await, "y");
    assert_eq!(
        parked(&db, "d").into_iter().map(|(id, why)| (id, why.contains("nr"))).collect::<Vec<_>>(),
        [(7, true)]
    );
    db.shutdown().await.unwrap();
}

/// A column that the cloud computes is read here and never written: what it comes to arrives, also after an edit here; whoever
/// writes something else into it is told. A column that SQLite computes stays its own.
#[actix_rt::test]
async fn a_column_that_the_cloud_computes_is_only_read() {
    let (_bench, client, db) = connected(
        "CREATE TABLE line (id bigint PRIMARY KEY, price numeric(10,2), n bigint, total numeric(12,2) GENERATED ALWAYS AS (price * n) STORED);
         INSERT INTO line VALUES (1, 2.50, 2)",
        "CREATE TABLE line (id INTEGER PRIMARY KEY, price DECIMAL(10,2), n INTEGER, total DECIMAL(12,2));\n\
         CREATE TABLE own (id INTEGER PRIMARY KEY, price INTEGER, twice INTEGER GENERATED ALWAYS AS (price * 2) STORED, \
         thrice INTEGER AS (price * 3))",
    )
    .await;
    assert_eq!(here(&db, "SELECT total FROM line"), "5");
    run(&db, "UPDATE line SET n = 3 WHERE id = 1;\nINSERT INTO line (id, price, n) VALUES (2, 1.25, 2);\nINSERT INTO own (id, price) VALUES (1, 4)").await;
    settled(&db).await;
    wait_until_here(
        &db,
        "SELECT group_concat(total, ' ') FROM (SELECT total FROM line ORDER BY id)",
        "7.5 2.5",
    )
    .await;
    // The same value is no edit of it, another one is refused.
    run(
        &db,
        "UPDATE line SET n = 4, total = 10 WHERE id = 1;\nUPDATE line SET n = 4, total = 11 WHERE id = 2",
    )
    .await;
    settled(&db).await;
    assert_eq!(there(&client, "SELECT n FROM line WHERE id = 1").await, "4");
    assert_eq!(there(&client, "SELECT n FROM line WHERE id = 2").await, "2");
    run(&db, "UPDATE line SET total = 99 WHERE id = 1").await;
    settled(&db).await;
    let parked: Vec<_> = parked(&db, "line").into_iter().collect();
    assert_eq!(parked.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2], "{parked:?}");
    assert!(
        parked.iter().all(|(_, why)| why.contains("column total") && why.contains("the cloud computes")),
        "{parked:?}"
    );
    // The row moves whole, with what was computed.
    run(&db, "INSERT INTO line VALUES (3, 2, 2, 4);\nUPDATE line SET id = 4 WHERE id = 3").await;
    settled(&db).await;
    assert_eq!(there(&client, "SELECT id || ' ' || total FROM line WHERE id > 2").await, "4 4.00");
    // SQLite's own.
    assert_eq!(
        there(&client, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'own'").await,
        "2"
    );
    client.batch_execute("UPDATE own SET price = 5").await.unwrap();
    wait_until_here(&db, "SELECT twice || ' ' || thrice FROM own", "10 15").await;
    db.shutdown().await.unwrap();
}

/// A column that only the cloud has is no hindrance where it is filled there, and is named where a value is demanded.
#[actix_rt::test]
async fn a_column_that_only_the_cloud_has_is_filled_there_or_named() {
    let (bench, client, db) = connected(
        "CREATE DOMAIN sure AS text NOT NULL DEFAULT 'sure';
         CREATE TABLE filled (id bigint PRIMARY KEY, v text, made timestamptz NOT NULL DEFAULT now(), kind text NOT NULL DEFAULT 'k', more text, s sure);
         CREATE TABLE demanding (id bigint PRIMARY KEY, v text, owner text NOT NULL)",
        "CREATE TABLE filled (id INTEGER PRIMARY KEY, v TEXT);\nCREATE TABLE demanding (id INTEGER PRIMARY KEY, v TEXT)",
    )
    .await;
    run(&db, "INSERT INTO filled VALUES (1, 'a')").await;
    settled(&db).await;
    assert_eq!(
        there(&client, "SELECT concat_ws(' ', v, kind, more, s, made IS NOT NULL) FROM filled").await,
        "a k sure t"
    );
    run(&db, "INSERT INTO demanding VALUES (1, 'a')").await;
    wait::until("the column is named", PATIENCE, async || {
        if bench.log.count("demands a value for owner") == 1 {
            Ok(())
        } else {
            Err(format!("{:#?}", bench.log.all()))
        }
    })
    .await;
    client.batch_execute("ALTER TABLE demanding ALTER owner SET DEFAULT 'nobody'").await.unwrap();
    wait_until_there(&db, &client, "SELECT min(owner) FROM demanding", "nobody").await;
    db.shutdown().await.unwrap();
}

/// A default that means the same in the cloud is there as well, so that plain SQL may leave the column out; one that would mean
/// something else is not, and hinders nothing.
#[actix_rt::test]
async fn defaults_mean_the_same_on_both_sides() {
    let defaults = [
        ("INTEGER", "-5", "-5"),
        ("INTEGER", "'7'", "7"),
        ("INTEGER", "1.5", "NULL"),
        ("REAL", "1", "1"),
        ("REAL", "1.5e3", "1500"),
        ("TEXT", "'it''s'", "it's"),
        ("TEXT", "\"word\"", "word"),
        ("TEXT", "5", "5"),
        ("TEXT", "''", ""),
        ("BLOB", "x'00ff'", "\\x00ff"),
        ("BOOLEAN", "TRUE", "true"),
        ("BOOLEAN", "0", "false"),
        ("BOOLEAN", "2", "NULL"),
        ("DECIMAL(6,2)", "1.5", "1.50"),
        ("DECIMAL(6,2)", "1.255", "NULL"),
        ("DATE", "'2024-02-29'", "2024-02-29"),
        ("DATE", "'2024-2-9'", "2024-02-09"),
        ("DATE", "'9.2.2024'", "NULL"),
        ("JSON", "'{}'", "{}"),
        ("JSON", "''", "NULL"),
        ("DATETIME", "'2024-02-29 01:02:03'", "2024-02-29 01:02:03"),
        ("TEXT", "NULL", "NULL"),
        ("TEXT", "(1 + 1)", "NULL"),
    ];
    let columns: Vec<String> = defaults
        .iter()
        .enumerate()
        .map(|(at, (kind, default, _))| format!("c{at} {kind} DEFAULT {default}"))
        .collect();
    let clocks = "now1 DATETIME DEFAULT CURRENT_TIMESTAMP, now2 TEXT DEFAULT (datetime('now')), day1 DATE DEFAULT CURRENT_DATE, day2 TEXT DEFAULT (date('now')), time TEXT DEFAULT CURRENT_TIME";
    let (_bench, client, db) =
        connected("", &format!("CREATE TABLE t (id INTEGER PRIMARY KEY, {}, {clocks})", columns.join(", ")))
            .await;
    client.batch_execute("INSERT INTO t (id) VALUES (1)").await.unwrap();
    for (at, (kind, default, expected)) in defaults.iter().enumerate() {
        assert_eq!(
            there(&client, &format!("SELECT c{at} FROM t")).await,
            *expected,
            "{kind} DEFAULT {default}"
        );
    }
    pulled(&db, &client).await;
    run(&db, "INSERT INTO t (id) VALUES (2)").await;
    for (at, (kind, default, expected)) in
        // Of the one in a notation of its own, the cloud's rows have the cloud's.
        defaults
            .iter()
            .enumerate()
            .filter(|(_, (.., expected))| !["NULL", "2024-02-09"].contains(expected))
    {
        let both = format!("SELECT count(DISTINCT typeof(c{at}) || quote(c{at})) FROM t");
        assert_eq!(here(&db, &both), "1", "{kind} DEFAULT {default} is {expected}");
    }
    let forms = "SELECT length(now1) || ' ' || length(now2) || ' ' || length(day1) || ' ' || length(day2) || ' ' || length(time) FROM t WHERE id = ";
    assert_eq!(here(&db, &format!("{forms} 1")), "19 19 10 10 8");
    assert_eq!(here(&db, &format!("{forms} 2")), "19 19 10 10 8");
    db.shutdown().await.unwrap();
}

/// A row that was set aside arrives as soon as its value has a place here, and is forgotten when it is deleted.
#[actix_rt::test]
async fn what_was_set_aside_arrives_when_it_fits() {
    let (bench, client, db) = connected(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE k (id text PRIMARY KEY, v text); CREATE TABLE mine (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER);\nCREATE TABLE k (id NUMERIC PRIMARY KEY, v TEXT);\nCREATE TABLE mine (id INTEGER PRIMARY KEY, v TEXT)",
    )
    .await;
    client
        .batch_execute("INSERT INTO t VALUES (1, '5'), (2, '007'), (3, '008'); INSERT INTO k VALUES ('7', 'seven'), ('007', 'agent')")
        .await
        .unwrap();
    pulled(&db, &client).await;
    let aside_of = |table: &str| {
        let id = here(&db, &format!("SELECT id FROM _tidewater_tables WHERE name = '{table}'"));
        here(&db, &format!("SELECT count(*) FROM _tidewater_aside_{id}"))
    };
    assert_eq!(here(&db, "SELECT group_concat(v) FROM t"), "5");
    assert_eq!(here(&db, "SELECT group_concat(v) FROM k"), "seven");
    assert_eq!((aside_of("t").as_str(), aside_of("k").as_str()), ("2", "1"));
    assert!(bench.log.count("the cloud's text of 3 characters") > 0, "{:?}", bench.log.all());
    // It is told once, and it lets everything else through.
    let told = bench.log.count("cannot be stored here");
    for _ in 0..3 {
        db.warm().await.unwrap();
    }
    assert_eq!(bench.log.count("cannot be stored here"), told);
    client
        .batch_execute(
            "UPDATE t SET v = '9' WHERE id = 2; DELETE FROM t WHERE id = 3; DELETE FROM k WHERE id = '007'",
        )
        .await
        .unwrap();
    pulled(&db, &client).await;
    assert_eq!(here(&db, "SELECT group_concat(v) FROM (SELECT v FROM t ORDER BY id)"), "5,9");
    assert_eq!((aside_of("t").as_str(), aside_of("k").as_str()), ("0", "0"));
    // A row that was here stays as it was, while the cloud's is aside; a comparison of the whole table changes nothing about it.
    client.batch_execute("UPDATE t SET v = '010' WHERE id = 1; INSERT INTO tidewater.changes (tbl) VALUES ('t'::regclass::oid)").await.unwrap();
    pulled(&db, &client).await;
    assert_eq!(here(&db, "SELECT v FROM t WHERE id = 1"), "5");
    assert_eq!(aside_of("t"), "1");
    db.shutdown().await.unwrap();
}

/// Keys that only the cloud writes so find their rows as well.
#[actix_rt::test]
async fn a_key_that_the_cloud_made_names_its_row() {
    let keys = [
        ("REAL", "real", "0.1"),
        ("REAL", "double precision", "'NaN'"),
        ("REAL", "double precision", "'-Infinity'"),
        ("TEXT", "numeric", "'12345678901234567890.50'"),
        ("TEXT", "timestamptz", "'2024-01-01 00:00:00+02'"),
        ("TEXT", "bit(3)", "B'011'"),
        ("TEXT", "text[]", "ARRAY['a b', NULL]"),
        ("TEXT", "interval", "'1 day'"),
        ("TEXT", "jsonb", "'{\"b\":1, \"a\":2}'"),
        ("TEXT", "money", "12.5"),
        ("INTEGER", "oid", "5"),
        ("TEXT", "int4range", "'[1,3]'"),
        ("TEXT", "uuid", "'6F2C1C2E-3C4B-4F7E-9D35-0242AC120002'"),
    ];
    let postgres = keys
        .iter()
        .enumerate()
        .map(|(at, (_, kind, _))| format!("CREATE TABLE k{at} (v {kind} PRIMARY KEY, n bigint)"));
    let sqlite = keys
        .iter()
        .enumerate()
        .map(|(at, (kind, ..))| format!("CREATE TABLE k{at} (v {kind} PRIMARY KEY, n INTEGER)"));
    let (_bench, client, db) =
        connected(&postgres.collect::<Vec<_>>().join(";"), &sqlite.collect::<Vec<_>>().join(";\n")).await;
    for (at, (.., key)) in keys.iter().enumerate() {
        client.batch_execute(&format!("INSERT INTO k{at} VALUES ({key}, 1)")).await.unwrap();
    }
    pulled(&db, &client).await;
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(here(&db, &format!("SELECT count(*) FROM k{at}")), "1", "{key:?} arrives");
        run(&db, &format!("UPDATE k{at} SET n = 2")).await;
    }
    settled(&db).await;
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(there(&client, &format!("SELECT sum(n) FROM k{at}")).await, "2", "{key:?} is changed");
        client.batch_execute(&format!("DELETE FROM k{at}")).await.unwrap();
    }
    pulled(&db, &client).await;
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(here(&db, &format!("SELECT count(*) FROM k{at}")), "0", "{key:?} is deleted");
    }
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0));
    db.shutdown().await.unwrap();
}

/// Columns come and go on both sides while everything runs: one that is new here is added there, one that was dropped there
/// comes back with its values, and one whose type changed there is read anew.
#[actix_rt::test]
async fn columns_that_come_go_and_change_are_followed() {
    let (_bench, client, db) = connected(
        "CREATE TABLE t (id bigint PRIMARY KEY, v bigint, w text); INSERT INTO t VALUES (1, 10, 'one'), (2, 20, 'two')",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v, w TEXT)",
    )
    .await;
    run(
        &db,
        "ALTER TABLE t ADD COLUMN extra DECIMAL(8,2) DEFAULT 1.5;\nUPDATE t SET extra = 2.25 WHERE id = 2",
    )
    .await;
    settled(&db).await;
    assert_eq!(there(&client, "SELECT string_agg(extra::text, ' ' ORDER BY id) FROM t").await, "1.50 2.25");
    client.batch_execute("ALTER TABLE t DROP COLUMN w").await.unwrap();
    wait_until_there(&db, &client, "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'w' AND NOT attisdropped", "1").await;
    wait_until_there(&db, &client, "SELECT string_agg(w, ' ' ORDER BY id) FROM t", "one two").await;
    // The rows change with the type, and no trigger tells.
    client.batch_execute("ALTER TABLE t ALTER v TYPE text USING 'n' || v").await.unwrap();
    wait_until_here(&db, "SELECT group_concat(v, ' ') FROM (SELECT v FROM t ORDER BY id)", "n10 n20").await;
    run(&db, "UPDATE t SET v = 'free' WHERE id = 1").await;
    settled(&db).await;
    assert_eq!(there(&client, "SELECT v FROM t WHERE id = 1").await, "free");
    let status = db.status_summary().await;
    assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0));
    db.shutdown().await.unwrap();
}

/// An edit of a document that the cloud writes in other words is no conflict with itself, whatever was written in between.
#[actix_rt::test]
async fn the_clouds_own_notation_is_nobodys_edit() {
    let (bench, client, db) = connected(
        "CREATE TABLE doc (id bigint PRIMARY KEY, v jsonb, n numeric(10,2), a int[], o text)",
        "CREATE TABLE doc (id INTEGER PRIMARY KEY, v JSON, n TEXT, a JSON, o TEXT)",
    )
    .await;
    run(&db, "INSERT INTO doc VALUES (1, '{\"b\":1,\"a\":2}', '1.5', '[1, 2]', 'x')").await;
    settled(&db).await;
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "UPDATE doc SET v = '{\"b\":1,\"a\":3}', n = '2.5', a = '[1, 3]'").await;
    client.batch_execute("UPDATE doc SET o = 'y'").await.unwrap();
    bench.proxy.start();
    settled(&db).await;
    pulled(&db, &client).await;
    assert_eq!(here(&db, "SELECT concat_ws('|', v, n, a, o) FROM doc"), "{\"b\":1,\"a\":3}|2.5|[1, 3]|y");
    assert_eq!(
        there(&client, "SELECT concat_ws('|', v, n, a, o) FROM doc").await,
        "{\"a\": 3, \"b\": 1}|2.50|{1,3}|y"
    );
    assert_eq!(db.status_summary().await.sync.conflicts, 0);
    // What somebody else really changed arrives, in the cloud's words.
    client.batch_execute("UPDATE doc SET v = v || '{\"c\": 4}', n = 7, a = a || 9").await.unwrap();
    wait_until_here(
        &db,
        "SELECT concat_ws('|', v, n, a, o) FROM doc",
        "{\"a\": 3, \"b\": 1, \"c\": 4}|7.00|[1,3,9]|y",
    )
    .await;
    db.shutdown().await.unwrap();
}

/// The same where the round itself meets the cloud's row, because the feed does not show yet who changed it.
#[actix_rt::test]
async fn the_clouds_own_notation_is_no_conflict_in_a_round() {
    let server = Postgres::start();
    let (_bench, client, db) = connected_on(
        &server,
        "CREATE TABLE doc (id bigint PRIMARY KEY, v jsonb, o text)",
        "CREATE TABLE doc (id INTEGER PRIMARY KEY, v JSON, o TEXT)",
    )
    .await;
    run(&db, "INSERT INTO doc VALUES (1, '{\"b\":1,\"a\":2}', 'x')").await;
    settled(&db).await;
    pulled(&db, &client).await;
    let elsewhere = server.create_database().await;
    let holder = elsewhere.connect().await;
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    client.batch_execute("UPDATE doc SET o = 'y'").await.unwrap();
    run(&db, "UPDATE doc SET v = '{\"b\":1,\"a\":3}'").await;
    wait_until_there(&db, &client, "SELECT v::text || o FROM doc", "{\"a\": 3, \"b\": 1}y").await;
    holder.batch_execute("COMMIT").await.unwrap();
    pulled(&db, &client).await;
    assert_eq!(here(&db, "SELECT v || o FROM doc"), "{\"b\":1,\"a\":3}y");
    assert_eq!(db.status_summary().await.sync.conflicts, 0);
    db.shutdown().await.unwrap();
}

/// STRICT tables are carried as declared, and what such a column does not take from the cloud is set aside.
#[actix_rt::test]
async fn strict_tables_are_carried() {
    let (_bench, client, db) = connected(
        "CREATE TABLE given (id bigint PRIMARY KEY, v double precision)",
        "CREATE TABLE s (id INTEGER PRIMARY KEY, i INT, r REAL, t TEXT, b BLOB, a ANY) STRICT;\n\
         CREATE TABLE given (id INTEGER PRIMARY KEY, v REAL) STRICT",
    )
    .await;
    run(&db, "INSERT INTO s VALUES (1, 5, 5, '5', x'05', '5')").await;
    client.batch_execute("INSERT INTO given VALUES (1, 0.5), (2, 'NaN')").await.unwrap();
    settled(&db).await;
    pulled(&db, &client).await;
    assert_eq!(there(&client, "SELECT concat_ws('|', i, r, t, b, a) FROM s").await, "5|5|5|\\x05|5");
    client.batch_execute("UPDATE s SET a = '007', i = 6").await.unwrap();
    wait_until_here(&db, "SELECT typeof(a) || a || i FROM s", "text0076").await;
    assert_eq!(values_here(&db, "given").into_values().collect::<Vec<_>>(), ["real 0.5"]);
    assert_eq!(super::aside(&db, "given").len(), 1);
    db.shutdown().await.unwrap();
}

/// A partitioned table is one table here: rows go to their partition and move between them, and what is written straight into a
/// partition is seen, in one that comes while everything runs as well.
#[actix_rt::test]
async fn partitions_are_one_table_also_those_that_come_later() {
    let (_bench, client, db) = connected(
        "CREATE TABLE log (id bigint, place bigint, v text, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
         CREATE TABLE log_1 PARTITION OF log FOR VALUES IN (1); CREATE TABLE log_2 PARTITION OF log FOR VALUES IN (2)",
        "CREATE TABLE log (id INTEGER, place INTEGER, v TEXT, PRIMARY KEY (id, place))",
    )
    .await;
    run(&db, "INSERT INTO log VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'nowhere')").await;
    settled(&db).await;
    assert_eq!(
        parked(&db, "log")
            .into_iter()
            .map(|(id, why)| (id, why.contains("no partition")))
            .collect::<Vec<_>>(),
        [(3, true)]
    );
    run(&db, "UPDATE log SET place = 2 WHERE id = 1").await;
    settled(&db).await;
    assert_eq!(values_there(&client, "log_2").await.len(), 2);
    client
        .batch_execute("INSERT INTO log_2 VALUES (5, 2, 'straight'); UPDATE log_2 SET v = 'c' WHERE id = 2")
        .await
        .unwrap();
    pulled(&db, &client).await;
    assert_eq!(
        here(&db, "SELECT group_concat(v, ' ') FROM (SELECT v FROM log WHERE place = 2 ORDER BY id)"),
        "a c straight"
    );
    client
        .batch_execute("CREATE TABLE log_4 (id bigint, place bigint, v text, PRIMARY KEY (id, place)); INSERT INTO log_4 VALUES (6, 4, 'before')")
        .await
        .unwrap();
    client.batch_execute("ALTER TABLE log ATTACH PARTITION log_4 FOR VALUES IN (4)").await.unwrap();
    client.batch_execute("INSERT INTO log_4 VALUES (7, 4, 'straight')").await.unwrap();
    wait_until_here(
        &db,
        "SELECT group_concat(v, ' ') FROM (SELECT v FROM log WHERE place = 4 ORDER BY id)",
        "before straight",
    )
    .await;
    client.batch_execute("DELETE FROM log_4 WHERE id = 6").await.unwrap();
    wait_until_here(&db, "SELECT group_concat(v, ' ') FROM log WHERE place = 4", "straight").await;
    client.batch_execute("DROP TABLE log_4").await.unwrap();
    wait_until_here(&db, "SELECT count(*) FROM log WHERE place = 4", "0").await;
    db.shutdown().await.unwrap();
}

/// Row-level security: what it refuses is parked, what it hides stays here as it was, and is not taken for deleted; what others
/// really delete goes.
#[actix_rt::test]
async fn rows_that_security_hides_are_not_taken_for_deleted() {
    let (bench, client, db) = connected(
        "CREATE TABLE note (id bigint PRIMARY KEY, owner text, v text)",
        "CREATE TABLE note (id INTEGER PRIMARY KEY, owner TEXT, v TEXT)",
    )
    .await;
    let mut other = bench.another();
    other.cloud.user = format!("limited_{}", bench.cloud.user);
    let (role, owner) = (other.cloud.user.clone(), bench.cloud.user.clone());
    let admin = bench.cloud.connect_as_admin().await;
    admin
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{}'; GRANT CONNECT ON DATABASE {} TO {role}",
            other.cloud.password, other.cloud.name
        ))
        .await
        .unwrap();
    client
        .batch_execute(&format!(
            "GRANT USAGE, CREATE ON SCHEMA tidewater TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA tidewater TO {role};
             GRANT ALL ON note, mark TO {role}; ALTER TABLE note ENABLE ROW LEVEL SECURITY;
             CREATE POLICY own ON note USING (owner = current_user);
             INSERT INTO note SELECT id, '{role}', 'mine' FROM generate_series(1, 5) AS id; INSERT INTO note VALUES (9, '{owner}', 'not mine')"
        ))
        .await
        .unwrap();
    // The owner's device makes the cloud tell the others what is there.
    wait_until_there(&db, &client, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'there\\_%'", "1").await;
    let limited = other.open().await;
    run(&limited, &format!("{MARK};\nCREATE TABLE note (id INTEGER PRIMARY KEY, owner TEXT, v TEXT)")).await;
    other.proxy.start();
    pulled(&limited, &client).await;
    assert_eq!(here(&limited, "SELECT count(*) FROM note"), "5");
    assert_eq!(other.log.count("row-level security is in force"), 1);
    // Hidden, changed while hidden, and deleted.
    client
        .batch_execute(&format!(
            "UPDATE note SET owner = '{owner}' WHERE id IN (1, 5); UPDATE note SET v = 'changed' WHERE id = 1;
             DELETE FROM note WHERE id = 2; UPDATE note SET v = 'seen' WHERE id = 3"
        ))
        .await
        .unwrap();
    pulled(&limited, &client).await;
    let all = "SELECT group_concat(id || v, ' ') FROM (SELECT id, v FROM note ORDER BY id)";
    assert_eq!(here(&limited, all), "1mine 3seen 4mine 5mine");
    // The table is compared as a whole: what is hidden stays, what is gone goes.
    client.batch_execute("ALTER TABLE note DISABLE TRIGGER tidewater_feed_delete; DELETE FROM note WHERE id = 4; ALTER TABLE note ENABLE ALWAYS TRIGGER tidewater_feed_delete").await.unwrap();
    client.batch_execute("INSERT INTO tidewater.changes (tbl) VALUES ('note'::regclass::oid)").await.unwrap();
    wait_until_here(&limited, all, "1mine 3seen 5mine").await;
    // Refused, and an edit of what is hidden.
    let rows = format!(
        "INSERT INTO note VALUES (20, '{owner}', 'for another'), (21, '{role}', 'for me'), (9, '{role}', 'taken')"
    );
    limited
        .write([
            Statement::new(rows),
            Statement::new("UPDATE note SET v = 'edited' WHERE id = 1"),
            Statement::new("DELETE FROM note WHERE id = 5"),
        ])
        .await
        .unwrap();
    settled(&limited).await;
    let parked = parked(&limited, "note");
    assert_eq!(parked.keys().copied().collect::<Vec<_>>(), [1, 5, 9, 20], "{parked:?}");
    assert!(parked.values().all(|why| why.contains("row-level security")), "{parked:?}");
    assert_eq!(
        there(&client, "SELECT string_agg(id || v, ' ' ORDER BY id) FROM note").await,
        "1changed 3seen 5mine 9not mine 21for me"
    );
    assert_eq!(here(&limited, "SELECT v FROM note WHERE id = 1"), "edited");
    assert_eq!(limited.status_summary().await.sync.conflicts, 0, "nobody deleted it");
    limited.shutdown().await.unwrap();
    db.shutdown().await.unwrap();
}

/// Where the owner itself is limited, nobody can tell what is hidden from what is deleted: it is said, and nothing goes here.
#[actix_rt::test]
async fn where_nobody_tells_what_is_hidden_nothing_is_deleted() {
    let (bench, client, db) = connected(
        "CREATE TABLE note (id bigint PRIMARY KEY, v text); ALTER TABLE note ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY shown ON note USING (v <> 'hidden'); INSERT INTO note VALUES (1, 'one'), (2, 'two'), (3, 'three')",
        "CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)",
    )
    .await;
    assert_eq!(bench.log.count("whether others deleted a row cannot be told"), 1, "{:#?}", bench.log.all());
    let admin = bench.cloud.connect_as_admin().await;
    admin.batch_execute("UPDATE note SET v = 'hidden' WHERE id = 1; DELETE FROM note WHERE id = 2; UPDATE note SET v = 'seen' WHERE id = 3").await.unwrap();
    pulled(&db, &client).await;
    assert_eq!(
        here(&db, "SELECT group_concat(v, ' ') FROM (SELECT v FROM note ORDER BY id)"),
        "one two seen"
    );
    db.shutdown().await.unwrap();
}

/// A column gets another type in the middle of a long flush: no round stores what the new type makes of the values that were
/// encoded for the old one. What is sent afterwards is there as it is here, or is parked.
#[actix_rt::test]
async fn a_type_that_changes_during_a_flush_rounds_nothing_in_silence() {
    const ROWS: usize = 6000;
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    client
        .batch_execute("CREATE TABLE mark (id bigint PRIMARY KEY); CREATE TABLE m (id bigint PRIMARY KEY, v double precision)")
        .await
        .unwrap();
    let db = bench.open_with(bench.settings().set("sync.window_rows_max", 100)).await;
    run(&db, &format!("{MARK};\nCREATE TABLE m (id INTEGER PRIMARY KEY, v REAL)")).await;
    // Every other one has a fraction.
    run(
        &db,
        &format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
             INSERT INTO m SELECT i, i + 0.5 * (i % 2) FROM n"
        ),
    )
    .await;
    bench.proxy.start();
    wait_until_there(&db, &client, "SELECT count(*) >= 300 FROM m", "true").await;
    client.batch_execute("BEGIN; LOCK TABLE m").await.unwrap();
    let rounded: usize = there(&client, "SELECT count(*) FROM m WHERE v <> floor(v)").await.parse().unwrap();
    client.batch_execute("ALTER TABLE m ALTER v TYPE bigint USING round(v); COMMIT").await.unwrap();
    settled(&db).await;
    pulled(&db, &client).await;
    let parked = parked(&db, "m");
    assert_eq!(parked.len(), ROWS / 2 - rounded, "of those with a fraction, all that came later");
    assert!(!parked.is_empty(), "it changed too late");
    let here = values_here(&db, "m");
    let there = values_there(&client, "m").await;
    assert_eq!(here.len(), ROWS);
    for (id, value) in here {
        match (parked.contains_key(&id), there.get(&id)) {
            (true, None) => assert!(value.ends_with(".5"), "{id}: {value}"),
            (false, Some(there)) => assert_eq!(value, format!("real {there}.0"), "{id}"),
            other => panic!("{id}: {value}, {other:?}"),
        }
    }
    db.shutdown().await.unwrap();
}

/// A column that is new here and has been in the cloud brings its values; one whose default only SQLite can hold parks its rows.
#[actix_rt::test]
async fn a_new_column_brings_the_values_that_are_there() {
    let (_bench, client, db) = connected(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text, w text DEFAULT 'there'); INSERT INTO t VALUES (1, 'a', 'one'), (2, 'b', NULL)",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)",
    )
    .await;
    run(&db, "ALTER TABLE t ADD COLUMN w TEXT DEFAULT 'here'").await;
    wait_until_here(
        &db,
        "SELECT group_concat(coalesce(w, 'NULL'), ' ') FROM (SELECT w FROM t ORDER BY id)",
        "one NULL",
    )
    .await;
    run(&db, "ALTER TABLE t ADD COLUMN n INTEGER DEFAULT 1.5").await;
    wait_until_there(
        &db,
        &client,
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'n'",
        "1",
    )
    .await;
    settled(&db).await;
    client.batch_execute("UPDATE t SET v = v || '!'").await.unwrap();
    pulled(&db, &client).await;
    assert_eq!(
        here(
            &db,
            "SELECT group_concat(v || ' ' || coalesce(n, 'NULL'), ' ') FROM (SELECT v, n FROM t ORDER BY id)"
        ),
        "a! 1.5 b! 1.5"
    );
    assert_eq!(parked(&db, "t").len(), 2);
    db.shutdown().await.unwrap();
}
