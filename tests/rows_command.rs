//! The verbs about rows, as people and scripts see them: `flush`, `warm`, `pending`, `parked`, `conflicts`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod process;

use std::process::Output;

use process::{Device, command, output};
use serde_json::Value;
use tidewater_test_support::shell;

/// A verb's run on a device's database.
fn verb(device: &Device, arguments: &[&str]) -> Output {
    output(device.command().args(arguments))
}

/// What it says on standard output, where it succeeds; times are left out.
fn says(device: &Device, arguments: &[&str]) -> String {
    let output = verb(device, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    assert_eq!(output.stderr, b"", "{arguments:?}");
    timeless(&String::from_utf8(output.stdout).unwrap())
}

fn json(device: &Device, arguments: &[&str]) -> Value {
    serde_json::from_str(&says(device, &[arguments, &["--json"]].concat())).unwrap()
}

/// Status and standard error where it fails.
fn fails(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The text with TIME in the place of `2025-01-31 23:59:59`.
fn timeless(text: &str) -> String {
    let is_time = |at: usize| {
        let shape = "dddd-dd-dd dd:dd:dd";
        text.get(at..at + shape.len()).is_some_and(|part| {
            part.chars().zip(shape.chars()).all(|(c, s)| if s == 'd' { c.is_ascii_digit() } else { c == s })
        })
    };
    let (mut out, mut at) = (String::new(), 0);
    while let Some(next) = text[at..].chars().next() {
        if is_time(at) {
            out += "TIME";
            at += 19;
        } else {
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

/// Verbs that change something need a supervisor, and say so with status 3; those that look need a file that one has opened.
/// Neither leaves anything behind.
#[test]
fn without_a_supervisor_or_a_file_it_is_said_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| fails(output(command(folder.path()).args(arguments)));
    for arguments in [
        &["flush"][..],
        &["flush", "--wait"],
        &["warm", "--wait", "--json"],
        &["parked", "retry"],
        &["parked", "retry", "--table", "note"],
        &["parked", "discard", "1"],
    ] {
        let (status, line) = run(arguments);
        assert_eq!(status, Some(3), "{line}");
        assert!(line.starts_with("run_supervisor: not running: ") && line.lines().count() == 1, "{line}");
        assert!(line.ends_with("start `run_supervisor` on this database, and ask again\n"), "{line}");
    }
    for arguments in [&["pending"][..], &["parked"], &["parked", "list", "--json"], &["parked", "show", "1"]]
    {
        let (status, line) = run(arguments);
        assert_eq!(status, Some(1), "{line}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(line, @"run_supervisor: tidewater.db: there is no such file; name the file with --database or TIDEWATER_DATABASE");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "asking leaves nothing behind");
    shell::sqlite3_shell(folder.path().join("tidewater.db"), "CREATE TABLE t (id INTEGER PRIMARY KEY);");
    let (status, line) = run(&["pending"]);
    assert_eq!(status, Some(1));
    insta::assert_snapshot!(line, @"run_supervisor: tidewater.db: no supervisor of this version has opened it yet; start run_supervisor on it once");
    // What cannot be meant is a usage error.
    for arguments in [
        &["parked", "discard"][..],
        &["parked", "retry", "1", "--table", "note"],
        &["pending", "--limit", "0"],
        &["parked", "show", "x"],
    ] {
        assert_eq!(run(arguments).0, Some(2), "{arguments:?}");
    }
}

/// A day with refused rows: they wait, are sent, are refused, are looked at, asked for again, given up. Each verb as people see
/// it, and its JSON; the ones that look say the same when no supervisor runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_refused_rows() {
    let device = Device::new().await;
    device
        .cloud
        .execute_batch(
            "CREATE TABLE customer (id bigint PRIMARY KEY, name text, age bigint CONSTRAINT adult CHECK (age >= 18));
             CREATE TABLE purchase (id bigint PRIMARY KEY, customer bigint REFERENCES customer (id), word varchar(8));",
        )
        .await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
         CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customer (id), word TEXT);
         INSERT INTO customer VALUES (1, 'ada', 30);",
    );
    let process = device.start();
    // Offline: what waits is listed; what needs the cloud says so.
    shell::sqlite3_shell(
        device.path(),
        "INSERT INTO customer VALUES (2, 'a name that goes on and on, beyond what a terminal of eighty columns can show', 3);
         INSERT INTO purchase VALUES (1, 2, 'mine'), (2, 1, 'much too long'), (3, 1, 'good');",
    );
    device.wait_for_status("all wait", |status| status["sync"]["pending"] == 5);
    insta::assert_snapshot!(says(&device, &["pending"]), @r"
    5 rows wait to be sent
    insert customer id=1
    insert customer id=2
    insert purchase id=1
    insert purchase id=2
    insert purchase id=3
    ");
    insta::assert_snapshot!(says(&device, &["pending", "purchase", "--limit", "1"]), @r"
    3 rows wait to be sent
    insert purchase id=1
    and 2 more
    ");
    insta::assert_snapshot!(says(&device, &["parked"]), @"nothing is parked");
    let refused = ["flush", "flush --wait", "warm", "parked discard 1"].map(|line| {
        let (status, said) = fails(verb(&device, &line.split(' ').collect::<Vec<_>>()));
        assert_eq!(status, Some(1));
        said
    });
    insta::assert_snapshot!(refused.concat(), @r#"
    run_supervisor: Cloud SQL is not available: the proxy is not running
    run_supervisor: Cloud SQL is not available: the proxy is not running
    run_supervisor: Cloud SQL is not available: the proxy is not running
    run_supervisor: Cloud SQL is not available: the proxy is not running; discarding a row needs it, because the row becomes what it is there
    "#);

    device.proxy.start();
    device
        .wait_for_status("refused", |status| status["sync"]["parked"] == 3 && status["sync"]["pending"] == 0);
    insta::assert_snapshot!(says(&device, &["pending"]), @"nothing is pending");
    insta::assert_snapshot!(says(&device, &["parked"]), @r#"
    3 rows are parked
        1  insert customer id=2
           23514  new row for relation "customer" violates check constraint "adult"
           refused once since TIME UTC
        2  insert purchase id=2
           22001  value too long for type character varying(8)
           refused once since TIME UTC
        3  insert purchase id=1
           23503  insert or update on table "purchase" violates foreign key constra…
           refused once since TIME UTC
    "#);
    for arguments in [&["parked"][..], &["parked", "show", "1"]] {
        assert!(says(&device, arguments).lines().all(|line| line.chars().count() <= 80));
    }
    insta::assert_snapshot!(says(&device, &["parked", "list", "purchase", "--limit", "1"]), @r#"
    2 rows are parked
        2  insert purchase id=2
           22001  value too long for type character varying(8)
           refused once since TIME UTC
    and 1 more
    "#);
    let customer = json(&device, &["parked", "list", "customer"])["rows"][0].clone();
    assert_eq!((&customer["sqlstate"], &customer["constraint"]), (&"23514".into(), &"adult".into()));
    let number = customer["id"].to_string();
    insta::assert_snapshot!(says(&device, &["parked", "show", &number]), @r#"
    number      1
    table       customer
    key         id=2
    change      insert
    sqlstate    23514
    message     new row for relation "customer" violates check constraint "adult"
    constraint  adult
    refused     once
    first       TIME UTC
    last        TIME UTC
    values      age = 3
                id = 2
                name = a name that goes on and on, beyond what a terminal of eighty
                columns can show
    "#);
    assert_eq!(json(&device, &["parked", "show", &number]), customer);
    let (status, said) = fails(verb(&device, &["parked", "show", "99"]));
    assert_eq!(status, Some(1));
    insta::assert_snapshot!(said, @"run_supervisor: nothing is parked under the number 99");
    let (status, said) = fails(verb(&device, &["parked", "list", "nowhere"]));
    assert_eq!(status, Some(1));
    insta::assert_snapshot!(said, @"run_supervisor: no table nowhere is synced");

    // Sent again, in vain; then one is mended and goes, with the child that waited for it.
    insta::assert_snapshot!(says(&device, &["parked", "retry", "--table", "customer"]), @"1 row waits to be sent again");
    device.wait_for_status("refused again", |status| {
        status["sync"]["parked"] == 3 && status["sync"]["pending"] == 0
    });
    let unknown = verb(&device, &["parked", "retry", &number, "99"]);
    assert_eq!(unknown.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8(unknown.stdout).unwrap(), @r"
    1 row waits to be sent again
    99: nothing is parked under this number
    ");
    device.wait_for_status("refused again", |status| {
        status["sync"]["parked"] == 3 && status["sync"]["pending"] == 0
    });
    let tries = json(&device, &["parked", "show", &number])["tries"].as_u64().unwrap();
    assert_eq!(tries, 3);
    shell::sqlite3_shell(device.path(), "UPDATE customer SET age = 33 WHERE id = 2;");
    device.wait_for_status("two have gone", |status| {
        status["sync"]["parked"] == 1 && status["sync"]["pending"] == 0
    });
    insta::assert_snapshot!(says(&device, &["flush", "--wait"]), @r"
    0 rows went to the cloud; 0 pending, 1 parked
    `run_supervisor parked` says which rows the cloud refuses, and why
    ");
    insta::assert_snapshot!(says(&device, &["flush"]), @r"
    the flush has begun; 0 pending, 1 parked
    `run_supervisor parked` says which rows the cloud refuses, and why
    ");

    // Given up.
    let left = json(&device, &["parked"])["rows"][0]["id"].to_string();
    let discarded = verb(&device, &["parked", "discard", &left, "99"]);
    assert_eq!(discarded.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8(discarded.stdout).unwrap(), @r"
    1 row is what the cloud has
    99: nothing is parked under this number
    ");
    assert_eq!(shell::sqlite3_shell(device.path(), "SELECT group_concat(id) FROM purchase;"), "1,3\n");
    insta::assert_snapshot!(says(&device, &["warm", "--wait"]), @"0 rows came from the cloud; 0 pending, 0 parked");
    let synced = json(&device, &["warm", "--wait"]);
    assert_eq!((&synced["done"], &synced["pending"]), (&true.into(), &0.into()));
    device.wait_until_equal(&["customer", "purchase"]).await;

    // Without the supervisor, the file says the same.
    shell::sqlite3_shell(
        device.path(),
        "INSERT INTO purchase VALUES (4, 1, 'far too long'), (5, 1, 'longer and longer');",
    );
    device
        .wait_for_status("refused", |status| status["sync"]["parked"] == 2 && status["sync"]["pending"] == 0);
    let running = says(&device, &["parked"]);
    process.stop();
    assert_eq!(says(&device, &["parked", "list"]), running);
    shell::sqlite3_shell(
        device.path(),
        "UPDATE purchase SET word = 'short' WHERE id = 4; UPDATE customer SET name = 'eve', age = 31 WHERE id = 1;",
    );
    insta::assert_snapshot!(says(&device, &["parked"]), @r#"
    2 rows are parked
        6  insert purchase id=4
           22001  value too long for type character varying(8)
           refused once since TIME UTC, edited since
        7  insert purchase id=5
           22001  value too long for type character varying(8)
           refused once since TIME UTC
    "#);
    insta::assert_snapshot!(says(&device, &["pending"]), @r#"
    2 rows wait to be sent
    update customer id=1  name, age
    update purchase id=4  word
    "#);
}

/// A day with conflicts: an edit against an edit, a deletion against an edit and the other way round. What lost is listed, looked
/// at and brought back as an edit of now, which the cloud gets; what there is nothing to be done about says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lost_a_conflict_is_brought_back() {
    let device = Device::new().await;
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE item (z INTEGER, a INTEGER, body TEXT, data BLOB, x REAL, PRIMARY KEY (z, a));
         INSERT INTO item VALUES (1, 10, 'one', NULL, 0.1), (2, 20, 'two', x'00ff', 1.0), (3, 30, 'three', NULL, 9e999);",
    );
    device.proxy.start();
    let process = device.start();
    device.wait_until_equal(&["item"]).await;
    device.wait_until_flushed();
    assert_eq!(says(&device, &["conflicts"]), "no conflicts\n");
    device.proxy.stop();
    device.wait_for_status("offline", |status| status["sync"]["state"] == "offline");
    device
        .cloud
        .execute_batch(
            "UPDATE item SET body = 'there' WHERE z = 1; UPDATE item SET body = 'too' WHERE z = 2; DELETE FROM item WHERE z = 3;",
        )
        .await;
    // Later than that.
    shell::sqlite3_shell(
        device.path(),
        "UPDATE item SET body = 'here' WHERE z = 1; DELETE FROM item WHERE z = 2; UPDATE item SET body = 'kept' WHERE z = 3;",
    );
    device.proxy.start();
    device.wait_for_status("three conflicts", |status| status["sync"]["conflicts"] == 3);
    device.wait_until_flushed();
    // In which order they were found is chance.
    let list = says(&device, &["conflicts"]);
    for said in [
        "3 conflicts\n    3  item a=",
        "item a=30 z=3  body\n       kept here: kept, lost the cloud's: deleted\n       TIME UTC\n",
        "item a=10 z=1  body\n       kept here: here, lost the cloud's: there\n       TIME UTC\n",
    ] {
        assert!(list.contains(said), "{list}");
    }
    let older = says(&device, &["conflicts", "list", "ITEM", "--limit", "1", "--before", "3"]);
    assert!(older.starts_with("3 conflicts\n    2  item a=") && older.ends_with("\nand 2 more\n"), "{older}");
    let all = json(&device, &["conflicts"]);
    let number = |z: i64| {
        let rows = all["rows"].as_array().unwrap();
        rows.iter().find(|row| row["key"]["z"] == z).unwrap()["id"].to_string()
    };
    let (n, row) = (number(2), r#"[2,20,"too",{"blob":"00ff"},1.0]"#);
    let expected = format!(
        "number      {n}\ntable       item\nkey         a=20 z=2\ncolumn      the whole row\nkept        here: deleted\n\
         lost        the cloud's: {row}\nwhen        TIME UTC\nrestore     run_supervisor conflicts restore {n}\n"
    );
    assert_eq!(says(&device, &["conflicts", "show", &n]), expected);
    assert_eq!(json(&device, &["conflicts", "show", &number(1)])["cloud"], "there");
    // What lost, and so what restoring does, is told apart: a value, a row, and a deletion, which takes a whole row along.
    for (z, restores) in [(1, "value"), (2, "row"), (3, "deletion")] {
        assert_eq!(json(&device, &["conflicts", "show", &number(z)])["restores"], restores);
        let warns = says(&device, &["conflicts", "show", &number(z)]).contains("deletes the whole row");
        assert_eq!(warns, restores == "deletion");
    }
    let names = serde_json::json!(["z", "a", "body", "data", "x"]);
    assert_eq!(json(&device, &["conflicts", "show", &n])["columns"], names);

    let restored = json(&device, &["conflicts", "restore", &number(1), &number(2), &number(3)]);
    assert_eq!(restored["refused"], serde_json::json!([]));
    device.wait_until_flushed();
    device.wait_until_equal(&["item"]).await;
    let rows = shell::sqlite3_shell(
        device.path(),
        "SELECT group_concat(z || a || body || coalesce(hex(data), '') || x, ' ') FROM item;",
    );
    assert_eq!(rows.trim(), "110there0.1 220too00FF1.0");
    // The row is there again, and another one is gone.
    let (status, said) = fails(verb(&device, &["conflicts", "restore", "99"]));
    assert_eq!((status, said.as_str()), (Some(1), ""));
    let again = verb(&device, &["conflicts", "restore", &number(2), "99"]);
    assert_eq!(again.status.code(), Some(1));
    let expected = format!(
        "0 are restored, as edits of now\n{n}: UNIQUE constraint failed: item.z, item.a\n99: there is no conflict of this number\n"
    );
    assert_eq!(String::from_utf8(again.stdout).unwrap(), expected);
    process.stop();
    // Looking works without a supervisor; bringing back does not.
    assert_eq!(json(&device, &["conflicts"])["total"], 3);
    assert_eq!(fails(verb(&device, &["conflicts", "restore", "1"])).0, Some(3));
}
