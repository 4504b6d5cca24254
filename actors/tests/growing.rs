//! A round that grows while it is on its way, and one that is too heavy: whatever happens meanwhile, every row is in exactly
//! one place, and what was written since the round was noted waits for the next.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tidewater_actors::core::value::Value;
use tidewater_actors::messages::{GrowRound, NoteRound, TrimRound};
use tidewater_actors::sqlite::{
    Grown, InFlight, Noted, Readers, Statement, Store, StoreError, StoreOptions, Unit, UpkeepOptions,
};

/// A file with its store.
struct Bench {
    folder: TempDir,
    store: Store,
    readers: Readers,
}

fn options(folder: &TempDir) -> StoreOptions {
    let path: PathBuf = folder.path().join("app.db");
    StoreOptions {
        path,
        busy_timeout: Duration::from_secs(10),
        read_pool_max: 2,
        upkeep: UpkeepOptions::default(),
    }
}

impl Bench {
    fn new(schema: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&options(&folder)).unwrap();
        let readers = Readers::open(&options(&folder)).unwrap();
        let mut bench = Self { folder, store, readers };
        bench.write(schema);
        bench
    }

    /// `note` with so many rows, all of them waiting.
    fn with_rows(rows: i64) -> Self {
        let mut bench = Self::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body)");
        bench.write(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT INTO note SELECT i, 'row ' || i FROM n"
        ));
        bench
    }

    fn write(&mut self, sql: &str) {
        for statement in sql.split(';') {
            let unit = Unit::new([Statement::new(statement)]);
            self.store.write_group(&[unit]).pop().unwrap().unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    fn eligible(&mut self) -> (u64, Vec<i64>) {
        let (generation, tables) = self.store.tables().unwrap();
        (generation, tables.iter().map(|table| table.id).collect())
    }

    fn note(&mut self, rows_max: usize) -> Noted {
        let (generation, eligible) = self.eligible();
        let wanted = NoteRound { rows_max, generation, eligible, upto: None, whole: false };
        self.store.note_round(&wanted).unwrap().unwrap()
    }

    fn grow(&mut self, noted: &Noted, (table, after): (i64, Vec<Value>), rows_max: usize) -> Option<Grown> {
        let (generation, eligible) = self.eligible();
        let (round, upto) = (noted.id.clone(), noted.epoch);
        self.store
            .grow_round(&GrowRound { round, generation, eligible, table, after, upto, rows_max })
            .unwrap()
    }

    fn waiting(&self) -> i64 {
        self.count("SELECT count(*) FROM _tidewater_journal_1")
    }

    fn in_flight(&self) -> i64 {
        self.count("SELECT count(*) FROM _tidewater_flight_1")
    }

    fn count(&self, sql: &str) -> i64 {
        self.readers.read(|conn| conn.query_row(sql, [], |row| row.get(0))).unwrap()
    }
}

/// The keys and bodies that were read, as text.
fn rows(read: &InFlight) -> Vec<String> {
    let rows = read.rows.iter().flatten();
    rows.map(|row| format!("{:?} {:?}", row.key, row.row.as_ref().map(|row| row[1].clone()))).collect()
}

/// Grown to its end in steps, a round holds each row once; what is dirtied meanwhile, in rows that are in it already and in
/// rows that are not, waits afterwards as well, and each row is read as it was when it was taken.
#[test]
fn what_is_dirtied_while_a_round_grows_waits_for_the_next() {
    let mut bench = Bench::with_rows(10);
    let noted = bench.note(3);
    let mut at = noted.grows.clone().unwrap();
    bench.write(
        "UPDATE note SET body = 'later' WHERE id = 2; INSERT INTO note VALUES (0, 'new'), (99, 'new')",
    );
    let mut steps = 0;
    loop {
        let grown = bench.grow(&noted, at, 3).unwrap();
        steps += 1;
        let read = bench.readers.read_growth(&noted, &grown, usize::MAX).unwrap();
        assert!(rows(&read).iter().all(|row| row.contains("row ")), "{:?}", rows(&read));
        match grown.grows() {
            Some(next) => at = next,
            None => break,
        }
    }
    assert_eq!((steps, bench.in_flight(), bench.waiting()), (3, 10, 3));
    let whole = bench.readers.read_round(&noted).unwrap();
    let second = whole[0].iter().find(|row| row.key == [Value::Integer(2)]).unwrap();
    assert_eq!(second.row.as_ref().unwrap()[1], Value::Text("row 2".into()));
    bench.store.acknowledge(&noted.id, &[], noted.generation, &[]).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (0, 3));
}

/// A crash in the middle of a round that grew puts every row back, the ones that were dirtied meanwhile once.
#[test]
fn a_round_that_grew_is_put_back_whole() {
    let mut bench = Bench::with_rows(10);
    let noted = bench.note(4);
    let grown = bench.grow(&noted, noted.grows.clone().unwrap(), 4).unwrap();
    assert!(grown.grows().is_some() && !grown.complete);
    bench.write("UPDATE note SET body = 'later' WHERE id IN (1, 7, 10)");
    let (store, _) = {
        let options = options(&bench.folder);
        Store::open(&options).unwrap()
    };
    bench.store = store;
    let (id, _) = bench.store.in_flight().unwrap().unwrap();
    assert_eq!(id, noted.id);
    bench.store.put_back(&id, &[]).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (0, 10));
    let inserts = bench.count("SELECT count(*) FROM _tidewater_journal_1 WHERE NOT known");
    assert_eq!(inserts, 10);
}

/// A round does not grow by rows that may need others along: parents that wait, or what is parked. Nor does another round,
/// or one that has ended.
#[test]
fn a_round_grows_only_by_what_needs_nobody() {
    let mut bench = Bench::new(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY); \
         CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent (id))",
    );
    for id in 1..=6 {
        bench.write(&format!("INSERT INTO parent VALUES ({id}); INSERT INTO child VALUES ({id}, {id})"));
    }
    let noted = bench.note(2);
    let (table, after) = noted.grows.clone().unwrap();
    assert!(bench.grow(&noted, (table, after.clone()), 2).is_none());
    let journals =
        "SELECT (SELECT count(*) FROM _tidewater_journal_1) + (SELECT count(*) FROM _tidewater_journal_2)";
    let before = bench.count(journals);
    bench.store.acknowledge(&noted.id, &[], noted.generation, &[]).unwrap();
    assert_eq!(bench.count(journals), before);
    let (generation, eligible) = bench.eligible();
    let (round, upto) = (noted.id, noted.epoch);
    let wanted = GrowRound { round, generation, eligible, table, after, upto, rows_max: 2 };
    assert_eq!(bench.store.grow_round(&wanted), Err(StoreError::NotInFlight));
}

/// What is read of a round stops at its bound, after the first row at the earliest; the rest waits again, under what was
/// dirtied meanwhile, and the next round goes on exactly there.
#[test]
fn a_round_that_is_too_heavy_is_trimmed() {
    let mut bench = Bench::with_rows(10);
    bench.write("UPDATE note SET body = zeroblob(100000) WHERE id IN (4, 5)");
    let noted = bench.note(8);
    let read = bench.readers.read_some(&noted, 50_000).unwrap();
    assert_eq!(rows(&read).len(), 3);
    let (table, after) = read.rest.unwrap();
    assert_eq!(after, Some(vec![Value::Integer(3)]));
    bench.write("UPDATE note SET body = 'later' WHERE id IN (2, 8)");
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), table, after }).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (3, 8));
    bench.store.acknowledge(&noted.id, &[], noted.generation, &[]).unwrap();
    let next = bench.note(2);
    let read = bench.readers.read_some(&next, 50_000).unwrap();
    // Heavier than the bound, and alone.
    assert!(read.bytes > 100_000 && rows(&read).len() == 1 && rows(&read)[0].starts_with("[Integer(4)]"));
}

/// Grows a round to its end and answers with all that was read of it, in order.
fn read_to_the_end(bench: &mut Bench, noted: &Noted, rows_max: usize) -> Vec<String> {
    let mut read = rows(&bench.readers.read_some(noted, usize::MAX).unwrap());
    let mut at = noted.grows.clone();
    while let Some(next) = at.take() {
        let Some(grown) = bench.grow(noted, next, rows_max) else { break };
        read.extend(rows(&bench.readers.read_growth(noted, &grown, usize::MAX).unwrap()));
        at = grown.grows();
    }
    read
}

/// A round that began where the last one stopped, and went on at the beginning, has rows beyond those by which it could
/// grow: none of them is sent twice.
#[test]
fn a_round_that_went_on_at_the_beginning_has_each_row_once() {
    let mut bench = Bench::with_rows(10);
    let noted = bench.note(7);
    bench.store.acknowledge(&noted.id, &[], noted.generation, &[]).unwrap();
    bench.write("UPDATE note SET body = 'row again' WHERE id < 7");
    let noted = bench.note(5);
    let mut read = read_to_the_end(&mut bench, &noted, 100);
    let (all, in_flight) = (read.len(), bench.in_flight());
    read.sort();
    read.dedup();
    assert_eq!((all, in_flight), (read.len(), i64::try_from(read.len()).unwrap()));
}

/// Nor are parents that came along with their children, from wherever they stood.
#[test]
fn parents_that_came_along_are_not_sent_twice() {
    let mut bench = Bench::new(
        "CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent (id)); \
         CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)",
    );
    // The first flush begins with the parents, the second with the children.
    bench.write("INSERT INTO parent VALUES (0, 'parent')");
    let noted = bench.note(4);
    bench.store.acknowledge(&noted.id, &[], noted.generation, &[]).unwrap();
    for id in 1..=10 {
        bench.write(&format!("INSERT INTO parent VALUES ({id}, 'parent')"));
    }
    bench.write("INSERT INTO child VALUES (1, 8)");
    let noted = bench.note(4);
    let mut read = read_to_the_end(&mut bench, &noted, 100);
    let all = read.len();
    read.sort();
    read.dedup();
    assert_eq!(all, read.len(), "{read:?}");
}
