//! The same value, written otherwise here than PostgreSQL writes it: it is carried, and each side keeps its own notation.

use fastrand::Rng;
use tidewater::Value;
use tidewater_actors::core::value::{Affinity, CloudType, CloudValue, alike, to_cloud};
use tidewater_test_support::Postgres;

use super::{MARK, parked, pulled, settled};
use crate::harness::{Bench, here, run, there, wait_until_here, wait_until_there};

fn pick<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

fn day(rng: &mut Rng) -> String {
    let year = pick(rng, &["0001", "0004", "0044", "1900", "1999", "2000", "2023", "2024", "9999", "12024"]);
    let (month, day) = match rng.u8(..4) {
        0 => (pick(rng, &["1", "2", "3", "12"]).to_owned(), rng.u8(1..=9).to_string()),
        1 => {
            (pick(rng, &["01", "02", "03", "12"]).to_owned(), pick(rng, &["01", "28", "29", "31"]).to_owned())
        }
        _ => (format!("{:02}", rng.u8(1..=12)), format!("{:02}", rng.u8(1..=30))),
    };
    format!("{year}-{month}-{day}")
}

fn clock(rng: &mut Rng) -> String {
    let minutes = format!("{:02}:{:02}", rng.u8(..24), rng.u8(..60));
    let fraction =
        pick(rng, &["", "", ".5", ".50", ".120", ".000000", ".123456", ".1234560", ".1234567", ".0000001"]);
    if rng.u8(..5) == 0 { minutes } else { format!("{minutes}:{:02}{fraction}", rng.u8(..60)) }
}

fn zone(rng: &mut Rng) -> &'static str {
    pick(
        rng,
        &["Z", "+00", "+00:00", "-00", "+0530", "-05:30", " +02", "+1530", "+16", "-11:59", "+2", "", " CET"],
    )
}

/// A text of this kind, well or nearly well written.
fn text(rng: &mut Rng, kind: &str) -> String {
    let era = if rng.u8(..6) == 0 { " BC" } else { "" };
    let between = pick(rng, &[" ", "T"]);
    let mut text = match kind {
        "date" => day(rng) + era,
        "timestamp" if rng.u8(..6) == 0 => day(rng) + era,
        "timestamp" => day(rng) + between + &clock(rng) + era,
        "timestamptz" => day(rng) + between + &clock(rng) + zone(rng) + era,
        "time" => clock(rng),
        "timetz" => clock(rng) + zone(rng),
        "uuid" => {
            // Few of them, so that there are equal ones.
            let digits = format!("{:032x}", u128::from(rng.u8(10..14)) << 100 | 0xabc);
            let mut text = String::new();
            let hyphens = rng.u8(..3);
            for (at, digit) in digits.chars().enumerate() {
                let is_end = matches!(at, 8 | 12 | 16 | 20);
                if is_end && hyphens > 0 || hyphens == 2 && at > 0 && at % 4 == 0 && rng.bool() {
                    text.push('-');
                }
                text.push(if rng.bool() { digit } else { digit.to_ascii_uppercase() });
            }
            if rng.u8(..4) == 0 {
                format!("{{{}}}", text.replace("--", "-"))
            } else {
                text.replace("--", "-")
            }
        }
        "bool" => {
            pick(rng, &["1", "0", "t", "TRUE", "Yes", "y", "on", "f", "fal", "no", "OFF", "o", "2", ""])
                .to_owned()
        }
        "numeric" => {
            let sign = pick(rng, &["", "", "-", "+"]);
            let mantissa =
                pick(rng, &["0", "1", "1.5", "1.50", "15", "150", "1500.00", ".5", "5.", "0.5", "01", "."]);
            format!("{sign}{mantissa}{}", pick(rng, &["", "", "e0", "e1", "E+2", "e-1", "e"]))
        }
        "inet" => {
            let address = pick(
                rng,
                &[
                    "10.0.0.1",
                    "10.0.0",
                    "010.0.0.1",
                    "::1",
                    "2001:DB8::1",
                    "2001:db8:0:0:0:0:0:1",
                    "1:0:0:2:0:0:0:3",
                    "1:0:2:3:4:5:6:7",
                    "::",
                    "::ffff:1.2.3.4",
                    "::1.2.3.4",
                    "fe80::1%eth0",
                ],
            );
            format!("{address}{}", pick(rng, &["", "", "/32", "/8", "/128", "/64", "/129", "/0", "/"]))
        }
        kind => panic!("{kind}"),
    };
    if rng.u8(..8) == 0 && !text.is_empty() {
        let at = rng.usize(..text.len());
        let other = pick(rng, &["", "0", "9", "-", ":", " ", ".", "T", "+", "B", "a", "e"]);
        text.replace_range(at..=at, other);
    }
    text
}

/// What is known here about notations is what PostgreSQL makes of them: of texts that are understood at all, those of equal
/// values are alike and no others, and each is sent as PostgreSQL writes it.
#[actix_rt::test]
async fn texts_are_alike_where_postgresql_casts_them_to_equal_values() {
    let cloud = Postgres::shared().create_database().await;
    let client = cloud.connect().await;
    client
        .batch_execute(
            "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC';
             CREATE FUNCTION shown(v text, kind text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE shown text; BEGIN
                 EXECUTE format(CASE kind WHEN 'numeric' THEN 'SELECT trim_scale(%L::numeric)::text'
                                WHEN 'inet' THEN 'SELECT abbrev(%L::inet)' ELSE 'SELECT %L::' || kind || '::text' END, v) INTO shown;
                 RETURN shown;
             EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
        )
        .await
        .unwrap();
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let mut wrong = vec![];
    for (kind, of) in [
        ("date", CloudType::Date),
        ("timestamp", CloudType::Timestamp),
        ("timestamptz", CloudType::TimestampTz),
        ("time", CloudType::Other("time without time zone".into())),
        ("timetz", CloudType::Other("time with time zone".into())),
        ("uuid", CloudType::Uuid),
        ("bool", CloudType::Bool),
        ("numeric", CloudType::Numeric(None)),
        ("inet", CloudType::Other("inet".into())),
    ] {
        let texts: Vec<String> = (0..400).map(|_| text(&mut rng, kind)).collect();
        let rows = client
            .query(
                "SELECT shown(v, $2) FROM unnest($1::text[]) WITH ORDINALITY AS t(v, n) ORDER BY n",
                &[&texts, &kind],
            )
            .await
            .unwrap();
        let of_texts = texts.into_iter().zip(rows.iter().map(|row| row.get::<_, Option<String>>(0)));
        let value = |text: &str| Value::Text(text.into());
        let understood: Vec<(String, Option<String>)> =
            of_texts.filter(|(text, _)| alike(&of, &value(text), &value(text))).collect();
        assert!(understood.len() > 80, "{kind}: only {} of them", understood.len());
        for (one, shown) in &understood {
            let Some(shown) = shown else {
                wrong.push(format!("{kind}: PostgreSQL does not take '{one}'"));
                continue;
            };
            if !alike(&of, &value(one), &value(shown)) {
                wrong.push(format!("{kind}: '{one}' is not alike '{shown}', as PostgreSQL writes it"));
            }
            match to_cloud(&value(one), Affinity::Text, &of) {
                Ok(CloudValue::Text(sent)) if sent == *shown || kind == "numeric" => {}
                Ok(CloudValue::Bool(sent)) if sent.to_string() == *shown => {}
                sent => {
                    wrong.push(format!("{kind}: '{one}' is sent as {sent:?}, and comes back as '{shown}'"))
                }
            }
            for (other, other_shown) in &understood {
                let are_equal = Some(shown) == other_shown.as_ref();
                if alike(&of, &value(one), &value(other)) != are_equal {
                    wrong.push(format!("{kind}: '{one}' and '{other}': equal there {are_equal}"));
                }
            }
        }
    }
    wrong.truncate(20);
    assert_eq!(wrong, Vec::<String>::new(), "seed {seed}");
}

const SCHEMA: &str =
    "CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, who UUID, done BOOLEAN, day DATE, note TEXT)";
const ALL: &str = "SELECT concat_ws('|', at, who, done, day, note) FROM t WHERE id = 1";

/// The device that wrote a value keeps its text, whatever comes home beside it; another has the cloud's; nothing is sent or
/// pulled for the sake of a notation, and only an edit is a conflict.
#[actix_rt::test]
async fn each_side_keeps_its_own_notation() {
    let bench = Bench::new().await;
    let other = bench.another();
    let (db, second) = (bench.open().await, other.open().await);
    let client = bench.cloud.connect().await;
    for device in [&db, &second] {
        run(device, &format!("{MARK};\n{SCHEMA}")).await;
    }
    run(
        &db,
        "INSERT INTO t VALUES (1, '2024-05-01T10:00:00.120000', '6F2C1C2E-3C4B-4F7E-9D35-0242AC120002', 'yes', '2024-5-1', 'a')",
    )
    .await;
    bench.proxy.start();
    other.proxy.start();
    settled(&db).await;
    pulled(&db, &client).await;
    pulled(&second, &client).await;
    let written = "2024-05-01T10:00:00.120000|6F2C1C2E-3C4B-4F7E-9D35-0242AC120002|yes|2024-5-1";
    let there_it_is = "2024-05-01 10:00:00.12|6f2c1c2e-3c4b-4f7e-9d35-0242ac120002|1|2024-05-01";
    assert_eq!(here(&db, ALL), format!("{written}|a"));
    assert_eq!(here(&second, ALL), format!("{there_it_is}|a"));
    // The round's own entries are its own.
    let entries = "SELECT count(*) FROM tidewater.changes WHERE tbl = 't'::regclass::oid";
    assert_eq!(there(&client, entries).await, "1");
    assert_eq!(there(&client, &format!("{entries} AND origin IS NULL")).await, "0");
    // Others' edits come home beside it, the whole table is compared, and an edit here goes up beside it.
    run(&second, "UPDATE t SET note = 'b'").await;
    wait_until_here(&db, "SELECT note FROM t", "b").await;
    client.batch_execute("INSERT INTO tidewater.changes (tbl) VALUES ('t'::regclass::oid)").await.unwrap();
    pulled(&db, &client).await;
    assert_eq!(here(&db, ALL), format!("{written}|b"));
    run(&db, "UPDATE t SET note = 'c'").await;
    wait_until_here(&second, "SELECT note FROM t", "c").await;
    // The same in yet another notation, while the other device edits something else.
    bench.proxy.stop();
    run(&db, "UPDATE t SET at = '2024-05-01 10:00:00.1200', done = 't'").await;
    run(&second, "UPDATE t SET day = '2024-06-01'").await;
    wait_until_there(&second, &client, "SELECT day FROM t", "2024-06-01").await;
    bench.proxy.start();
    wait_until_here(&db, "SELECT day FROM t", "2024-06-01").await;
    settled(&db).await;
    assert_eq!(here(&db, "SELECT at || done FROM t"), "2024-05-01 10:00:00.1200t");
    pulled(&second, &client).await;
    for device in [&db, &second] {
        let sync = device.status_summary().await.sync;
        assert_eq!((sync.conflicts, sync.parked, sync.pending), (0, 0, 0), "{sync:?}");
    }
    // Another value is an edit.
    client.batch_execute("UPDATE t SET at = '2024-05-01 10:00:00.13'").await.unwrap();
    wait_until_here(&db, "SELECT at FROM t", "2024-05-01 10:00:00.13").await;
    let count = there(&client, entries).await;
    pulled(&db, &client).await;
    pulled(&second, &client).await;
    assert_eq!(there(&client, entries).await, count, "nothing goes round");
    db.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

/// What rows find each other by, keys and both ends of foreign keys, has no notations: such a row is parked.
#[actix_rt::test]
async fn what_rows_find_each_other_by_has_one_notation() {
    let bench = Bench::new().await;
    let client = bench.cloud.connect().await;
    let db = bench.open().await;
    run(
        &db,
        &format!(
            "{MARK};\nCREATE TABLE p (id INTEGER PRIMARY KEY, code UUID UNIQUE, other UUID);\n\
             CREATE TABLE c (id INTEGER PRIMARY KEY, code UUID REFERENCES p (code))"
        ),
    )
    .await;
    let (upper, lower) = ("6F2C1C2E-3C4B-4F7E-9D35-0242AC120002", "6f2c1c2e-3c4b-4f7e-9d35-0242ac120003");
    run(
        &db,
        &format!(
            "INSERT INTO p VALUES (1, '{upper}', NULL), (2, '{lower}', '{upper}');\n\
             INSERT INTO c VALUES (1, '{upper}'), (2, '{lower}')"
        ),
    )
    .await;
    bench.proxy.start();
    settled(&db).await;
    assert_eq!(parked(&db, "p").into_keys().collect::<Vec<_>>(), [1]);
    assert_eq!(parked(&db, "c").into_keys().collect::<Vec<_>>(), [1]);
    let sent = "SELECT string_agg(id || ' ' || coalesce(other::text, ''), ',') FROM p";
    assert_eq!(there(&client, sent).await, format!("2 {}", upper.to_lowercase()));
    db.shutdown().await.unwrap();
}
