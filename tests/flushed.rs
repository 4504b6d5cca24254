//! P2 for any schema: after a flush the cloud holds what the file holds, but for what is parked, and nobody is parked who
//! could be there.
//!
//! ```text
//! a history   random schema ─▶ [ units of statements, some by another program ─▶ flush ─▶ compare ] ─▶ mended ─▶ compare
//! compare     every row that is not parked, value by value; nothing pending
//!             no rows among the parked ones, alone or together, that the cloud would take
//! ```
//!
//! One cloud serves many histories: each has a schema of its own in it, and is a device of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use fastrand::Rng;
use harness::{Lines, statement, wait_until_available};
use rusqlite::Connection;
use tempfile::TempDir;
use tidewater::Database;
use tidewater::settings::Settings;
use tidewater_test_support::any_schema::{Kind, Schema, Table};
use tidewater_test_support::shop::Stmt;
use tidewater_test_support::{Postgres, postgres};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A row as texts, `None`: NULL.
type Row = Vec<Option<String>>;

/// A table's rows by key.
type Rows = BTreeMap<Row, Row>;

/// How many flushes a journal may need: what the cloud does by itself is pulled, and may make more of it.
const FLUSHES_MAX: usize = 4;

/// So many parked rows at once are tried on the cloud. Three that hand on a value to each other beside a guilty row may
/// be parked with it.
const TOGETHER_MAX: u32 = 2;

/// Of so many parked rows, every set of this size is tried; of more, each and each pair.
const SUBSETS_MAX: usize = 6;

/// What only the cloud asks of the rows of one table.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Guilt {
    /// A check that refuses [`GUILTY`].
    Check,
    /// A column that refuses NULL.
    NotNull,
    /// A trigger that refuses [`GUILTY`].
    Raise,
    /// A trigger that lets nobody delete the row while it has [`KEPT`].
    KeepsRow,
}

/// The value that a guilty row has.
const GUILTY: i64 = 666;

/// The value of a row that the cloud does not let go.
const KEPT: i64 = 13;

/// A cloud that many histories share.
struct Shared {
    cloud: postgres::Database,
    client: Client,
    histories: u64,
}

impl Shared {
    async fn new() -> Self {
        let cloud = Postgres::shared().create_database().await;
        let client = cloud.connect().await;
        Self { cloud, client, histories: 0 }
    }
}

/// One history.
struct History<'a> {
    shared: &'a Shared,
    schema: Schema,
    name: String,
    db: Database,
    path: PathBuf,
    folder: TempDir,
    log: Lines,
    rng: Rng,
    guilt: Option<(usize, Guilt)>,
    /// The rows as they were before the last flush.
    before: Vec<Rows>,
    /// What was done, for whoever has to understand it.
    story: String,
    seed: u64,
}

impl<'a> History<'a> {
    async fn begin(shared: &'a Shared, seed: u64, by_unique: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let schema = Schema::random(&mut rng, by_unique);
        let name = format!("h{}", shared.histories);
        shared.client.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.db");
        let conn = Connection::open(&path).unwrap();
        let mut story = format!("seed {seed}\n");
        for sql in schema.sql() {
            conn.execute_batch(&sql).unwrap();
            let _ = writeln!(story, "{sql};");
        }
        drop(conn);
        let window = rng.choice([1, 2, 3, 5, 7, 50, 2000]).unwrap();
        let _ = writeln!(story, "-- windows of {window}");
        let settings = Settings::builder()
            .set("sqlite.path", path.display())
            .set("proxy.port", shared.cloud.port)
            .set("cloud.database", &shared.cloud.name)
            .set("cloud.user", &shared.cloud.user)
            .set("cloud.password", &shared.cloud.password)
            .set("cloud.schema", &name)
            .set("sync.window_rows_max", window)
            // Cycles run when they are asked for.
            .set("sync.debounce_ms", 60_000)
            .set("sync.pull_interval_s", 3600)
            .build()
            .unwrap();
        let log = Lines::default();
        let db = Database::open(settings, log.logger()).await.unwrap();
        wait_until_available(&db).await;
        Self { shared, schema, name, db, path, folder, log, rng, guilt: None, before: vec![], story, seed }
    }

    /// An error says what was done, and what is wrong.
    async fn live(&mut self) -> Result<(), String> {
        // The tables come to be there.
        self.db.flush().await.unwrap();
        if self.rng.u8(0..3) == 0 {
            self.guilt = self.become_picky().await;
        }
        let flushes = self.rng.usize(2..=5);
        for _ in 0..flushes {
            for _ in 0..self.rng.choice([1, 2, 4, 8, 12]).unwrap() {
                self.unit().await;
            }
            if self.guilt.is_some() && self.rng.bool() {
                self.sin().await;
            }
            self.flush().await;
            self.compare().await?;
        }
        self.mend().await
    }

    /// The cloud refuses something that the file does not.
    async fn become_picky(&mut self) -> Option<(usize, Guilt)> {
        let at = self.rng.usize(0..self.schema.tables.len());
        let table = &self.schema.tables[at];
        let (name, v) = (format!("{}.{}", self.name, table.name), &table.columns[table.data[0]].name);
        let guilt = self
            .rng
            .choice([Guilt::Check, Guilt::Check, Guilt::NotNull, Guilt::Raise, Guilt::KeepsRow])
            .unwrap();
        let function = |body: &str| {
            format!(
                "CREATE FUNCTION {name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
                 CREATE TRIGGER picky BEFORE {} ON {name} FOR EACH ROW EXECUTE FUNCTION {name}_f()",
                if guilt == Guilt::KeepsRow { "DELETE" } else { "INSERT OR UPDATE" }
            )
        };
        let sql = match guilt {
            Guilt::Check => format!("ALTER TABLE {name} ADD CHECK ({v} <> {GUILTY})"),
            Guilt::NotNull => format!("ALTER TABLE {name} ALTER {v} SET NOT NULL"),
            Guilt::Raise => {
                function(&format!("IF NEW.{v} = {GUILTY} THEN RAISE 'not this one'; END IF; RETURN NEW;"))
            }
            Guilt::KeepsRow => {
                function(&format!("IF OLD.{v} = {KEPT} THEN RAISE 'it stays'; END IF; RETURN OLD;"))
            }
        };
        let _ = writeln!(self.story, "-- cloud: {sql}");
        self.shared.client.batch_execute(&sql).await.unwrap();
        Some((at, guilt))
    }

    /// Makes a row, or a few, what the cloud refuses.
    async fn sin(&mut self) {
        let Some((at, guilt)) = self.guilt else { return };
        let table = self.schema.tables[at].clone();
        let conn = Connection::open(&self.path).unwrap();
        let keys = table.keys(&conn);
        for _ in 0..self.rng.usize(1..=2) {
            let Some(key) = self.rng.choice(&keys) else { return };
            let value = match guilt {
                Guilt::NotNull => rusqlite::types::Value::Null,
                Guilt::KeepsRow => KEPT.into(),
                _ => GUILTY.into(),
            };
            self.run(vec![table.update("UPDATE", &[(table.data[0], value)], key)]).await;
        }
        self.unit().await;
    }

    /// One unit, by the library or by another program.
    async fn unit(&mut self) {
        let conn = Connection::open(&self.path).unwrap();
        let unit = self.schema.unit(&mut self.rng, &conn);
        drop(conn);
        if self.rng.u8(0..3) > 0 {
            self.run(unit).await;
            return;
        }
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(harness::PATIENCE).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = ON; BEGIN IMMEDIATE").unwrap();
        let run = unit.iter().try_for_each(|statement| statement.execute(&conn).map(drop));
        let done = run.and_then(|()| conn.execute_batch("COMMIT"));
        self.tell("another program", &unit, done.is_ok());
        if done.is_err() && !conn.is_autocommit() {
            conn.execute_batch("ROLLBACK").unwrap();
        }
    }

    /// Whether the file takes it.
    async fn run(&mut self, unit: Vec<Stmt>) -> bool {
        let done = self.db.write(unit.iter().cloned().map(statement)).await;
        self.tell("the library", &unit, done.is_ok());
        done.is_ok()
    }

    fn tell(&mut self, who: &str, unit: &[Stmt], done: bool) {
        if done {
            let _ = writeln!(self.story, "-- {who}:");
            for statement in unit {
                let _ = writeln!(self.story, "{}", statement.to_sql_text());
            }
        }
    }

    async fn flush(&mut self) {
        let _ = writeln!(self.story, "-- flush");
        self.before = self.here(&Connection::open(&self.path).unwrap());
        for _ in 0..FLUSHES_MAX {
            self.db.flush().await.unwrap();
            if self.db.status_summary().await.sync.pending == 0 {
                return;
            }
        }
    }

    /// Nothing waits, everything is there but what is parked, and that has to be.
    async fn compare(&self) -> Result<(), String> {
        let conn = Connection::open(&self.path).unwrap();
        let (pending, parked) = (self.waiting(&conn, "journal"), self.waiting(&conn, "parked"));
        let mut wrong = vec![];
        if !pending.is_empty() {
            wrong.push(format!("still pending: {pending:?}"));
        }
        let (here, there) = (self.here(&conn), self.there().await);
        // Nobody else writes: what a flush takes away, or brings, is this file's own.
        for (at, (rows, before)) in here.iter().zip(&self.before).enumerate() {
            let keys: BTreeSet<&Row> = rows.keys().chain(before.keys()).collect();
            for key in keys.into_iter().filter(|key| rows.get(*key) != before.get(*key)) {
                wrong.push(format!("t{at} {key:?}: was {:?}, is {:?}", before.get(key), rows.get(key)));
            }
        }
        let mut expected = there.clone();
        for (at, rows) in here.iter().enumerate() {
            let keys: BTreeSet<&Row> = rows.keys().chain(there[at].keys()).collect();
            for key in keys.into_iter().filter(|key| !parked.contains(&(at, (*key).clone()))) {
                let (ours, theirs) = (rows.get(key), there[at].get(key));
                if ours != theirs {
                    wrong.push(format!("t{at} {key:?}: here {ours:?}, there {theirs:?}"));
                }
                match ours {
                    Some(row) => drop(expected[at].insert(key.clone(), row.clone())),
                    None => drop(expected[at].remove(key)),
                }
            }
        }
        if !parked.is_empty() && self.guilt.is_none() && is_whole(&conn) {
            wrong.push(format!("parked, though the cloud asks for nothing of its own: {parked:?}"));
        } else if wrong.is_empty() {
            for innocent in subsets(&parked) {
                if self.would_be_taken(&innocent, &here, &there).await {
                    wrong.push(format!("parked, and the cloud would take it: {innocent:?} of {parked:?}"));
                    break;
                }
            }
        }
        let conflicts = self.db.status_summary().await.sync.conflicts;
        if conflicts > 0 && self.guilt.is_none() {
            wrong.push(format!("{conflicts} conflicts of a device that is alone"));
        }
        if wrong.is_empty() { Ok(()) } else { self.wrong(&wrong) }
    }

    fn wrong(&self, wrong: &[String]) -> Result<(), String> {
        Err(format!("{}\n{:#?}\n{wrong:#?}\nseed {}", self.story, self.log.all(), self.seed))
    }

    /// The rows of a side table, by table and key.
    fn waiting(&self, conn: &Connection, kind: &str) -> BTreeSet<(usize, Row)> {
        let mut waiting = BTreeSet::new();
        for (at, table) in self.schema.tables.iter().enumerate() {
            let sql = "SELECT id FROM _tidewater_tables WHERE name = ?1";
            let id: i64 = conn.query_row(sql, [&table.name], |row| row.get(0)).unwrap();
            let texts = |n: usize| here_as_text(&format!("k{n}"), table.columns[table.key[n]].kind);
            let columns: Vec<String> = (0..table.key.len()).map(texts).collect();
            let sql = format!("SELECT {} FROM _tidewater_{kind}_{id}", columns.join(", "));
            let found = read(conn, &sql, table.key.len());
            waiting.extend(found.into_iter().map(|key| (at, key)));
        }
        waiting
    }

    fn here(&self, conn: &Connection) -> Vec<Rows> {
        let rows = |table: &Table| {
            let columns: Vec<String> =
                table.columns.iter().map(|column| here_as_text(&column.name, column.kind)).collect();
            let sql = format!("SELECT {} FROM {}", columns.join(", "), table.name);
            by_key(table, read(conn, &sql, table.columns.len()))
        };
        self.schema.tables.iter().map(rows).collect()
    }

    async fn there(&self) -> Vec<Rows> {
        let mut tables = vec![];
        for table in &self.schema.tables {
            let columns: Vec<String> = table
                .columns
                .iter()
                .map(|column| match column.kind {
                    Kind::Blob => format!("encode({}, 'hex')", column.name),
                    _ => format!("{}::text", column.name),
                })
                .collect();
            let sql = format!("SELECT {} FROM {}.{}", columns.join(", "), self.name, table.name);
            let messages = self.shared.client.simple_query(&sql).await.unwrap();
            let rows = messages.into_iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
                }
                _ => None,
            });
            tables.push(by_key(table, rows.collect()));
        }
        tables
    }

    /// Whether the cloud would be as the file is in these rows, and as it was in all others, if somebody just did it.
    async fn would_be_taken(&self, rows: &[(usize, Row)], here: &[Rows], there: &[Rows]) -> bool {
        let mut expected = there.to_vec();
        let (mut comes, mut goes) = (vec![], vec![]);
        for (at, key) in rows {
            let table = &self.schema.tables[*at];
            let name = format!("{}.{}", self.name, table.name);
            let literal = |c: usize, value: &Option<String>| match (value, table.columns[c].kind) {
                (None, _) => "NULL".to_owned(),
                (Some(text), Kind::Int) => text.clone(),
                (Some(text), Kind::Text) => format!("'{}'", text.replace('\'', "''")),
                (Some(text), Kind::Blob) => format!("'\\x{text}'"),
            };
            let key_is: Vec<String> = table
                .key
                .iter()
                .zip(key)
                .map(|(c, value)| format!("{} = {}", table.columns[*c].name, literal(*c, value)))
                .collect();
            match (here[*at].get(key), there[*at].contains_key(key)) {
                (Some(row), true) => {
                    let sets: Vec<String> = row
                        .iter()
                        .enumerate()
                        .map(|(c, value)| format!("{} = {}", table.columns[c].name, literal(c, value)))
                        .collect();
                    comes.push(format!(
                        "UPDATE {name} SET {} WHERE {}",
                        sets.join(", "),
                        key_is.join(" AND ")
                    ));
                }
                (Some(row), false) => {
                    let values: Vec<String> =
                        row.iter().enumerate().map(|(c, value)| literal(c, value)).collect();
                    comes.push(format!("INSERT INTO {name} VALUES ({})", values.join(", ")));
                }
                (None, _) => goes.push(format!("DELETE FROM {name} WHERE {}", key_is.join(" AND "))),
            }
            match here[*at].get(key) {
                Some(row) => drop(expected[*at].insert(key.clone(), row.clone())),
                None => drop(expected[*at].remove(key)),
            }
        }
        let client = &self.shared.client;
        let orders = [[comes.as_slice(), goes.as_slice()], [goes.as_slice(), comes.as_slice()]];
        for order in orders {
            client.batch_execute("BEGIN; SET CONSTRAINTS ALL DEFERRED").await.unwrap();
            let sql = format!("{}; SET CONSTRAINTS ALL IMMEDIATE", order.concat().join("; "));
            let taken = client.batch_execute(&sql).await.is_ok() && self.there().await == expected;
            client.batch_execute("ROLLBACK").await.unwrap();
            if taken {
                return true;
            }
        }
        false
    }

    /// Guilty rows become good ones, and then nothing is parked.
    async fn mend(&mut self) -> Result<(), String> {
        let Some((at, guilt)) = self.guilt else { return Ok(()) };
        let table = &self.schema.tables[at];
        let (name, v) = (&table.name, &table.columns[table.data[0]].name);
        let sql = match guilt {
            Guilt::NotNull => format!("UPDATE {name} SET {v} = 70 WHERE {v} IS NULL"),
            Guilt::Check | Guilt::Raise => format!("UPDATE {name} SET {v} = 70 WHERE {v} = {GUILTY}"),
            Guilt::KeepsRow => return Ok(()),
        };
        if !self.run(vec![Stmt { sql, params: vec![] }]).await {
            return Ok(());
        }
        self.flush().await;
        self.compare().await?;
        let conn = Connection::open(&self.path).unwrap();
        let parked = self.waiting(&conn, "parked");
        if parked.is_empty() || !is_whole(&conn) {
            return Ok(());
        }
        self.wrong(&[format!("parked, though nobody is guilty any more: {parked:?}")])
    }

    async fn end(self) {
        self.db.shutdown().await.unwrap();
        let sql = format!("DROP SCHEMA {} CASCADE", self.name);
        self.shared.client.batch_execute(&sql).await.unwrap();
        drop(self.folder);
    }
}

/// The sets of parked rows that are tried on the cloud.
fn subsets(parked: &BTreeSet<(usize, Row)>) -> Vec<Vec<(usize, Row)>> {
    let parked: Vec<&(usize, Row)> = parked.iter().collect();
    let pick = |which: &[usize]| which.iter().map(|n| parked[*n].clone()).collect::<Vec<_>>();
    let count = parked.len();
    if count == 0 {
        return vec![];
    }
    if count <= SUBSETS_MAX {
        return (1_usize..1 << count)
            .filter(|set| set.count_ones() <= TOGETHER_MAX)
            .map(|set| pick(&(0..count).filter(|n| set >> n & 1 == 1).collect::<Vec<_>>()))
            .collect();
    }
    let mut subsets: Vec<_> = (0..count).map(|n| pick(&[n])).collect();
    subsets.extend((0..count).flat_map(|a| (a + 1..count).map(move |b| [a, b])).map(|pair| pick(&pair)));
    subsets
}

/// Whether the file keeps its own foreign keys. After a REPLACE of a row that refers to itself by what it loses, SQLite
/// does not.
fn is_whole(conn: &Connection) -> bool {
    !conn.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap()
}

fn here_as_text(column: &str, kind: Kind) -> String {
    match kind {
        Kind::Blob => format!("CASE WHEN {column} IS NOT NULL THEN lower(hex({column})) END"),
        _ => format!("CAST({column} AS TEXT)"),
    }
}

fn read(conn: &Connection, sql: &str, columns: usize) -> Vec<Row> {
    let mut statement = conn.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = statement.query_map([], |row| (0..columns).map(|n| row.get(n)).collect()).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn by_key(table: &Table, rows: Vec<Row>) -> Rows {
    rows.into_iter().map(|row| (table.key.iter().map(|c| row[*c].clone()).collect(), row)).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// As many histories, from this seed on. Tells of each that ends otherwise than it should.
async fn histories(first: u64, count: u64, by_unique: bool) {
    let mut shared = Shared::new().await;
    let mut wrong = vec![];
    for seed in first..first + count {
        let mut history = History::begin(&shared, seed, by_unique).await;
        if let Err(story) = history.live().await {
            println!("{story}\n");
            wrong.push(seed);
        }
        history.end().await;
        shared.histories += 1;
        if shared.histories.is_multiple_of(200) {
            shared = Shared::new().await;
        }
    }
    assert!(
        wrong.is_empty(),
        "of the histories {first} to {}, these went wrong: {wrong:?}",
        first + count - 1
    );
}

/// Random schemas and histories; `TIDEWATER_SEED` names one, `TIDEWATER_HISTORIES` how many.
#[actix_rt::test]
async fn whatever_the_schema_the_cloud_holds_what_the_file_holds() {
    histories(number("TIDEWATER_SEED", 1), number("TIDEWATER_HISTORIES", 80), false).await;
}

/// The same where foreign keys refer to unique constraints as well, which the cloud checks row by row.
#[actix_rt::test]
async fn the_same_where_rows_refer_to_unique_values() {
    histories(number("TIDEWATER_SEED", 1), number("TIDEWATER_HISTORIES", 30), true).await;
}
