//! P5 under random histories of plain SQL in the cloud: whatever transactions do, at every quiet point the file has it.
//!
//! ```text
//! a seed ─▶ Step, Step, … ─▶ up to six connections and a device that pulls meanwhile ─▶ Quiet: both sides equal?
//!                                 └ not equal: steps are left out as long as it still fails, and the rest is printed
//! ```
//!
//! Any part of a history is one: a statement that fails is part of it, and what is open when it gets quiet is rolled back.
//! `TIDEWATER_SEED` names the first one, `TIDEWATER_HISTORIES` says how many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::fmt;
use std::time::{Duration, Instant};

use harness::{Bench, PATIENCE, batch};
use tidewater::Database;
use tidewater_test_support::postgres::{Options, Postgres};
use tidewater_test_support::{Mode, compare};
use tokio_postgres::Client;

/// What the device has. `thing` takes any key.
const HERE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, n INTEGER);
    CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE item (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES owner (id) ON DELETE CASCADE, body TEXT);
    CREATE TABLE event (id INTEGER, region TEXT, body TEXT, PRIMARY KEY (id, region));
    CREATE TABLE thing (id PRIMARY KEY, body TEXT)";

/// What the cloud has. `event_c` is no partition yet.
const THERE: &str = "
    CREATE TABLE note (id bigint PRIMARY KEY, body text, n bigint);
    CREATE TABLE owner (id bigint PRIMARY KEY, name text);
    CREATE TABLE item (id bigint PRIMARY KEY, owner bigint REFERENCES owner ON DELETE CASCADE, body text);
    CREATE TABLE event (id bigint, region text, body text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE event_a PARTITION OF event FOR VALUES IN ('a');
    CREATE TABLE event_b PARTITION OF event FOR VALUES IN ('b');
    CREATE TABLE event_c (LIKE event INCLUDING ALL);
    CREATE TABLE thing (id bigint PRIMARY KEY, body text);
    INSERT INTO note SELECT g, 'first ' || g, g FROM generate_series(1, 20) AS g;
    INSERT INTO owner SELECT g, 'owner ' || g FROM generate_series(1, 8) AS g;
    INSERT INTO item SELECT g, 1 + g % 8, 'item ' || g FROM generate_series(1, 20) AS g;
    INSERT INTO event SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'event ' || g FROM generate_series(1, 20) AS g;
    INSERT INTO event_c SELECT g, 'c', 'event ' || g FROM generate_series(1, 6) AS g;
    INSERT INTO thing SELECT g, 'thing ' || g FROM generate_series(1, 10) AS g";

const TABLES: [&str; 5] = ["note", "owner", "item", "event", "thing"];

/// The shapes that `thing` comes back in.
const SHAPES: [&str; 5] = [
    "id bigint PRIMARY KEY, body text",
    "id text PRIMARY KEY, body text",
    "id bigint PRIMARY KEY, body text, extra bigint NOT NULL DEFAULT 7",
    "id bigint PRIMARY KEY, other text",
    "body varchar(80), id text PRIMARY KEY",
];

/// One step of a history.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// A statement on one of the connections.
    Sql(usize, String),
    /// The device's link goes, and comes back.
    Down,
    Up,
    /// The device's link is cut after so many bytes.
    Cut(u64),
    /// Nobody writes any more.
    Quiet,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Sql(on, sql) => write!(f, "{on}: {sql}"),
            Step::Down => f.write_str("-- down"),
            Step::Up => f.write_str("-- up"),
            Step::Cut(bytes) => write!(f, "-- cut after {bytes} bytes"),
            Step::Quiet => f.write_str("-- quiet"),
        }
    }
}

/// Xorshift: the same seed, the same history.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Small seeds have few bits: the first numbers of their neighbours would be alike.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn id(&mut self) -> u64 {
        1 + self.below(40)
    }

    fn text(&mut self) -> String {
        match self.below(12) {
            0 => "NULL".into(),
            1 => "''".into(),
            2 => "'it''s \"ä\" ✓'".into(),
            3 => format!("repeat('long {} ', 300)", self.below(9)),
            _ => format!("'t{}'", self.below(1000)),
        }
    }
}

/// What a connection is in the middle of.
#[derive(Default)]
struct Open {
    is_open: bool,
    savepoints: Vec<u64>,
}

fn write(random: &mut Random) -> String {
    match random.below(100) {
        0..40 => write_note(random),
        40..58 => write_relatives(random),
        58..84 => write_event(random),
        _ => write_thing(random),
    }
}

fn write_note(random: &mut Random) -> String {
    let (id, text) = (random.id(), random.text());
    match random.below(20) {
        0..4 => format!(
            "INSERT INTO note VALUES ({id}, {text}, 0) ON CONFLICT (id) DO UPDATE SET body = excluded.body, n = note.n + 1"
        ),
        4 => format!("INSERT INTO note VALUES ({id}, {text}, 1)"),
        5..8 => format!("UPDATE note SET body = {text} WHERE id = {id}"),
        8 => format!("UPDATE note SET id = id + 40 WHERE id = {id}"),
        9 => "UPDATE note SET id = id - 40 WHERE id BETWEEN 41 AND 80".into(),
        10 | 11 => format!("DELETE FROM note WHERE id = {id}"),
        12 => format!(
            "INSERT INTO note SELECT g, 'bulk ' || g, g FROM generate_series({id}, {}) AS g ON CONFLICT DO NOTHING",
            id + 60
        ),
        13 => format!(
            "INSERT INTO note SELECT g, {text}, g FROM generate_series({id}, {}) AS g \
             ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            id + 20
        ),
        14 => format!("UPDATE note SET n = coalesce(n, 0) + 1 WHERE id % 3 = {}", random.below(3)),
        15 => format!("DELETE FROM note WHERE id > {}", 30 + random.below(60)),
        16 => format!("UPDATE note SET id = -id WHERE id BETWEEN {id} AND {}", id + 5),
        17 => format!(
            "WITH gone AS (DELETE FROM note WHERE id % 5 = {} RETURNING *) \
             INSERT INTO note SELECT id + 1000, body, n FROM gone ON CONFLICT DO NOTHING",
            random.below(5)
        ),
        18 => format!(
            "MERGE INTO note USING (SELECT g FROM generate_series({id}, {}) AS g) AS s ON note.id = s.g \
             WHEN MATCHED AND g % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET body = {text} \
             WHEN NOT MATCHED THEN INSERT VALUES (g, 'merged', 0)",
            id + 9
        ),
        _ => "TRUNCATE note".into(),
    }
}

fn write_relatives(random: &mut Random) -> String {
    let (id, text, owner) = (random.id(), random.text(), 1 + random.below(10));
    match random.below(14) {
        0..3 => format!(
            "INSERT INTO owner VALUES ({owner}, {text}) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        ),
        3..7 => format!(
            "INSERT INTO item SELECT {id}, (SELECT id FROM owner WHERE id >= {owner} ORDER BY id LIMIT 1), {text} \
             ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, body = excluded.body"
        ),
        7 => format!("UPDATE item SET owner = NULL WHERE id % 4 = {}", random.below(4)),
        8 => format!("DELETE FROM item WHERE id = {id}"),
        9 | 10 => format!("DELETE FROM owner WHERE id = {owner}"),
        11 => format!(
            "WITH new AS (INSERT INTO owner SELECT coalesce(max(id), 0) + 1, {text} FROM owner RETURNING id) \
             UPDATE item SET body = {text} WHERE id < {id}"
        ),
        12 => "TRUNCATE item".into(),
        _ => "TRUNCATE owner CASCADE".into(),
    }
}

fn write_event(random: &mut Random) -> String {
    let (id, text, region) = (random.id(), random.text(), *random.pick(&["a", "b", "c"]));
    match random.below(24) {
        0..4 => format!(
            "INSERT INTO event VALUES ({id}, '{region}', {text}) ON CONFLICT (id, region) DO UPDATE SET body = excluded.body"
        ),
        4..8 => format!(
            "INSERT INTO event_{region} VALUES ({id}, '{region}', {text}) ON CONFLICT (id, region) DO UPDATE SET body = {text}"
        ),
        8 | 9 => format!("UPDATE event_{region} SET body = {text} WHERE id % 4 = {}", random.below(4)),
        10 => format!("UPDATE event SET body = {text} WHERE id < {id}"),
        11 | 12 => format!("DELETE FROM event_{region} WHERE id = {id}"),
        13 => format!("DELETE FROM event WHERE id = {id}"),
        14..17 => format!(
            "UPDATE event SET region = CASE region WHEN 'a' THEN 'b' WHEN 'b' THEN 'a' ELSE region END WHERE id % 5 = {}",
            random.below(5)
        ),
        17 => format!("UPDATE event SET id = id + 100, region = '{region}' WHERE id = {id}"),
        18 => format!(
            "INSERT INTO event SELECT g, 'a', 'bulk' FROM generate_series({id}, {}) AS g ON CONFLICT DO NOTHING",
            id + 30
        ),
        19 => format!("TRUNCATE event_{region}"),
        20 => "TRUNCATE event".into(),
        21 | 22 => "ALTER TABLE event ATTACH PARTITION event_c FOR VALUES IN ('c')".into(),
        _ => "ALTER TABLE event DETACH PARTITION event_c".into(),
    }
}

fn write_thing(random: &mut Random) -> String {
    let (id, text) = (random.id(), random.text());
    match random.below(12) {
        0..4 => format!(
            "INSERT INTO thing (id, body) VALUES ('{id}', {text}) ON CONFLICT (id) DO UPDATE SET body = excluded.body"
        ),
        4..6 => format!("UPDATE thing SET body = {text} WHERE id::text = '{id}'"),
        6 | 7 => format!("DELETE FROM thing WHERE id::text = '{id}'"),
        8 => "TRUNCATE thing".into(),
        _ => {
            // A table that comes back empty may get its rows from whoever has them: these are all taken over.
            let shape = random.pick(&SHAPES);
            format!(
                "DROP TABLE thing; CREATE TABLE thing ({shape}); \
                 INSERT INTO thing (id) SELECT g FROM generate_series({id}, {}) AS g",
                id + random.below(12)
            )
        }
    }
}

/// The history of a seed: so many stretches, each with an end at which nothing is open.
fn history(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let connections = usize::try_from(3 + random.below(4)).unwrap();
    let mut open: Vec<Open> = (0..connections).map(|_| Open::default()).collect();
    let mut steps = vec![];
    let (mut prepared, mut names, mut is_down) = (vec![], 0_u64, false);
    for _ in 0..3 {
        for _ in 0..12 + random.below(25) {
            if random.chance(5) {
                is_down = !is_down;
                steps.push(if is_down { Step::Down } else { Step::Up });
            }
            if random.chance(4) {
                steps.push(Step::Cut(random.below(30_000)));
            }
            let on = usize::try_from(random.below(connections as u64)).unwrap();
            let now = &mut open[on];
            let sql = match random.below(100) {
                _ if !now.is_open => match random.below(10) {
                    0..2 if !prepared.is_empty() => {
                        let at = usize::try_from(random.below(prepared.len() as u64)).unwrap();
                        settled(&mut random, prepared.swap_remove(at))
                    }
                    0..4 => write(&mut random),
                    _ => {
                        now.is_open = true;
                        (*random.pick(&["BEGIN", "BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE"]))
                            .to_owned()
                    }
                },
                0..8 => {
                    names += 1;
                    now.savepoints.push(names);
                    format!("SAVEPOINT s{names}")
                }
                8..15 if !now.savepoints.is_empty() => {
                    let name = *random.pick(&now.savepoints);
                    now.savepoints.retain(|later| *later <= name);
                    format!("ROLLBACK TO s{name}")
                }
                15..17 if !now.savepoints.is_empty() => format!("RELEASE s{}", now.savepoints.pop().unwrap()),
                17..36 => {
                    *now = Open::default();
                    match random.below(10) {
                        0..2 => "ROLLBACK".into(),
                        2..5 => {
                            names += 1;
                            prepared.push(names);
                            format!("PREPARE TRANSACTION '$p{names}'")
                        }
                        _ => "COMMIT".into(),
                    }
                }
                _ => write(&mut random),
            };
            steps.push(Step::Sql(on, sql));
        }
        for (on, now) in open.iter_mut().enumerate().filter(|(_, now)| now.is_open) {
            *now = Open::default();
            let sql = if random.chance(80) { "COMMIT" } else { "ROLLBACK" };
            steps.push(Step::Sql(on, sql.to_owned()));
        }
        for name in prepared.drain(..) {
            let sql = settled(&mut random, name);
            steps.push(Step::Sql(0, sql));
        }
        if std::mem::take(&mut is_down) {
            steps.push(Step::Up);
        }
        steps.push(Step::Quiet);
    }
    steps
}

fn settled(random: &mut Random, name: u64) -> String {
    format!("{} PREPARED '$p{name}'", if random.chance(75) { "COMMIT" } else { "ROLLBACK" })
}

/// Prepared transactions are the server's: their names have to be a history's own.
fn named(sql: &str, database: &str) -> String {
    sql.replace('$', database)
}

/// What a history came to.
#[derive(Debug, Default)]
struct Played {
    statements: usize,
    refused: usize,
    /// How long the statements took, and how long it took until both sides were equal, in all.
    wrote: Duration,
    waited: Duration,
}

/// Plays a history against a database of its own, and says what is not as it should be.
async fn play(server: &Postgres, seed: u64, steps: &[Step], patience: Duration) -> Result<Played, String> {
    let bench = Bench::on(server).await;
    bench.cloud.execute_batch(THERE).await;
    let page = [1, 2, 5, 64, 2000][usize::try_from(seed % 5).unwrap()];
    let settings = bench
        .settings()
        .set("sync.page_rows_max", page)
        .set("sync.pull_interval_s", 0.03)
        .set("sync.feed_poll_interval_s", 0.03)
        .set("circuit.open_s", 0.1);
    let db = bench.open_with(settings).await;
    db.write(batch(HERE)).await.unwrap();
    bench.proxy.start();
    let connections =
        1 + steps.iter().map(|step| if let Step::Sql(on, _) = step { *on } else { 0 }).max().unwrap_or(0);
    let mut clients = vec![];
    for _ in 0..connections {
        let client = bench.cloud.connect().await;
        // Who waits longer than this waits for another connection of the same history.
        client.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
        clients.push(client);
    }
    let mut ended = Ok(());
    let mut played = Played::default();
    for step in steps {
        match step {
            // What is refused is rolled back, which is as good a history as any.
            Step::Sql(on, sql) => {
                let began = Instant::now();
                let done = clients[*on].batch_execute(&named(sql, &bench.cloud.name)).await;
                played.statements += 1;
                played.refused += usize::from(done.is_err());
                played.wrote += began.elapsed();
            }
            Step::Down => bench.proxy.stop(),
            Step::Up => bench.proxy.start(),
            Step::Cut(bytes) => {
                bench.proxy.cut_server_to_client_after(*bytes);
            }
            Step::Quiet => {
                quiet(&bench, &clients).await;
                let began = Instant::now();
                ended = equal(&bench, &db, &clients[0], patience).await;
                played.waited += began.elapsed();
            }
        }
        if ended.is_err() {
            break;
        }
    }
    quiet(&bench, &clients).await;
    db.shutdown().await.map_err(|error| error.to_string()).and(ended).map(|()| played)
}

/// Nothing is open any more, and the device's link is whole.
async fn quiet(bench: &Bench, clients: &[Client]) {
    for client in clients {
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    let left = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    for row in clients[0].query(left, &[]).await.unwrap() {
        let sql = format!("ROLLBACK PREPARED '{}'", row.get::<_, String>(0));
        clients[0].batch_execute(&sql).await.unwrap();
    }
    bench.proxy.clear_hooks();
    bench.proxy.set_mode(Mode::Forward);
    bench.proxy.start();
}

/// Waits until both sides hold the same, value by value, and nothing of it is told to be in the way. Rows of a table that came back
/// with keys of another type have no place there: a person gives them up.
async fn equal(bench: &Bench, db: &Database, client: &Client, patience: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let differences = compare::tables_differ(&bench.path(), client, "public", &TABLES).await;
        let sync = db.status_summary().await.sync;
        if differences.is_empty() && sync.pending == 0 && sync.parked == 0 {
            return Ok(());
        }
        if sync.parked > 0 {
            let parked = db.parked(Some("thing"), 0, 1000).unwrap();
            // Not while the link is gone, or a row was edited meanwhile: then the next time.
            let _ = db.discard_parked(parked.rows.iter().map(|row| row.id).collect()).await;
        }
        if began.elapsed() > patience {
            return Err(format!("{differences:#?}\n{sync:?}\n{:#?}", bench.log.all()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long a history is made smaller.
const SHRINKING: Duration = Duration::from_secs(300);

/// Leaves out steps as long as it still fails.
async fn shrunk(server: &Postgres, seed: u64, mut steps: Vec<Step>) -> Vec<Step> {
    let until = Instant::now() + SHRINKING;
    let mut part = steps.len().div_ceil(2);
    loop {
        let before = steps.len();
        let mut at = 0;
        while at < steps.len() {
            if Instant::now() > until {
                return steps;
            }
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            let fails = fewer.contains(&Step::Quiet)
                && play(server, seed, &fewer, Duration::from_secs(4)).await.is_err();
            if fails {
                steps = fewer;
            } else {
                at += part;
            }
        }
        if part == 1 && steps.len() == before {
            return steps;
        }
        part = part.div_ceil(2);
    }
}

async fn histories(first: u64, how_many: u64) {
    // A server of its own: what is open there holds back everybody's feed.
    let server = Postgres::start_with(&Options {
        settings: vec!["max_prepared_transactions = 64".into()],
        ..Options::default()
    });
    for seed in first..first + how_many {
        let steps = history(seed);
        let began = Instant::now();
        let played = play(&server, seed, &steps, PATIENCE).await;
        if let Err(why) = &played {
            println!("seed {seed} fails:\n{why}\n{} steps, which are made fewer", steps.len());
            let steps = shrunk(&server, seed, steps).await;
            let listed: Vec<String> = steps.iter().map(|step| format!("  {step}")).collect();
            panic!("seed {seed}: the file is not as the cloud:\n{why}\n{}", listed.join("\n"));
        }
        println!("seed {seed}: {played:?}, {:?}", began.elapsed());
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A few histories in every run.
#[actix_rt::test]
async fn whatever_plain_sql_does_arrives() {
    histories(number("TIDEWATER_SEED", 1), number("TIDEWATER_HISTORIES", 3)).await;
}

/// Many: 200, or as `TIDEWATER_HISTORIES` says.
#[actix_rt::test]
#[ignore = "takes minutes"]
async fn whatever_plain_sql_does_arrives_in_many_histories() {
    histories(number("TIDEWATER_SEED", 1_000), number("TIDEWATER_HISTORIES", 200)).await;
}
