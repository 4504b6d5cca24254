//! A round that grows while it is on its way, one that is too heavy, and one that leaves in pieces: whatever happens meanwhile,
//! every row is in exactly one place, and what was written since the round was noted waits for the next.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;
use tempfile::TempDir;
use tidewater_actors::core::value::Value;
use tidewater_actors::messages::{GrowRound, NoteRound, TrimRound};
use tidewater_actors::sqlite::{
    Anew, Grown, Hit, InFlight, LeftOut, Noted, Part, Readers, Refusal, RoundRow, Statement, Store,
    StoreError, StoreOptions, Unit, UpkeepOptions, ledger_name,
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
        // In memory where the system has such a folder: nothing here is about the disk, and each commit waits for it.
        let memory = std::path::Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
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
            self.try_write(statement).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    fn try_write(&mut self, statement: &str) -> Result<(), StoreError> {
        let unit = Unit::new([Statement::new(statement)]);
        self.store.write_group(&[unit]).pop().unwrap().map(drop)
    }

    /// The file, opened anew.
    fn restart(&mut self) {
        let (store, _) = Store::open(&options(&self.folder)).unwrap();
        self.store = store;
    }

    /// Everything that waits is taken for flushed.
    fn settle(&mut self) {
        while let Some(noted) = self.note_any(1000) {
            self.store.acknowledge(&noted.id, usize::MAX).unwrap();
        }
    }

    fn eligible(&mut self) -> (u64, Vec<i64>) {
        let (generation, tables) = self.store.tables().unwrap();
        (generation, tables.iter().map(|table| table.id).collect())
    }

    fn note(&mut self, rows_max: usize) -> Noted {
        self.note_any(rows_max).unwrap()
    }

    fn note_any(&mut self, rows_max: usize) -> Option<Noted> {
        let (generation, eligible) = self.eligible();
        let wanted = NoteRound { rows_max, generation, eligible, upto: None, whole: false, apart: false };
        self.store.note_round(&wanted).unwrap()
    }

    fn grow(&mut self, noted: &Noted, table: i64, rows_max: usize) -> Option<Grown> {
        let (generation, eligible) = self.eligible();
        let (round, upto) = (noted.id.clone(), noted.epoch);
        self.store.grow_round(&GrowRound { round, generation, eligible, table, upto, rows_max }).unwrap()
    }

    fn read(&self, noted: &Noted, part: Part) -> InFlight {
        self.readers.read_part(noted, part, usize::MAX).unwrap()
    }

    /// The round in parts: the first, and then as far as it grows. In between, something happens.
    fn parts(&mut self, noted: &Noted, rows_max: usize, meanwhile: impl FnMut(&mut Self)) -> Vec<InFlight> {
        self.parts_within(noted, rows_max, || usize::MAX, meanwhile)
    }

    /// The same with a bound for each part. As in the flush, the next one is noted before one is read.
    fn parts_within(
        &mut self,
        noted: &Noted,
        rows_max: usize,
        mut bytes_max: impl FnMut() -> usize,
        mut meanwhile: impl FnMut(&mut Self),
    ) -> Vec<InFlight> {
        let first = self.readers.read_part(noted, Part::default(), bytes_max()).unwrap();
        let (first, mut grows) = match first.rest {
            Some(_) => (self.trim(noted, Part::default(), first), None),
            None => (first, noted.grows),
        };
        let mut parts = vec![first];
        let mut ahead = None;
        loop {
            if ahead.is_none() {
                meanwhile(self);
                ahead = grows.take().and_then(|table| self.grow(noted, table, rows_max));
            }
            let Some(Grown { part, grows: further, .. }) = ahead.take() else { return parts };
            meanwhile(self);
            ahead = further.and_then(|table| self.grow(noted, table, rows_max));
            meanwhile(self);
            let read = self.readers.read_part(noted, part, bytes_max()).unwrap();
            if read.rest.is_some() {
                parts.push(self.trim(noted, part, read));
                return parts;
            }
            parts.push(read);
        }
    }

    /// What is left of a part that was read as far as it was not too heavy.
    fn trim(&mut self, noted: &Noted, part: Part, mut read: InFlight) -> InFlight {
        while let Some(rest) = read.rest {
            self.store.trim_round(&TrimRound { round: noted.id.clone(), part, rest }).unwrap();
            read = self.readers.read_part(noted, part, read.bytes).unwrap();
        }
        read
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
    let mut at = noted.grows.unwrap();
    bench.write(
        "UPDATE note SET body = 'later' WHERE id = 2; INSERT INTO note VALUES (0, 'new'), (99, 'new')",
    );
    let mut steps = 0;
    loop {
        let grown = bench.grow(&noted, at, 3).unwrap();
        steps += 1;
        let read = bench.read(&noted, grown.part);
        assert!(rows(&read).iter().all(|row| row.contains("row ")), "{:?}", rows(&read));
        match grown.grows {
            Some(next) => at = next,
            None => break,
        }
    }
    assert_eq!((steps, bench.in_flight(), bench.waiting()), (3, 10, 3));
    let whole = bench.readers.read_round(&noted).unwrap();
    let second = whole[0].iter().find(|row| row.key == [Value::Integer(2)]).unwrap();
    assert_eq!(second.row.as_ref().unwrap()[1], Value::Text("row 2".into()));
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (0, 3));
}

/// A crash in the middle of a round that grew puts every row back, the ones that were dirtied meanwhile once.
#[test]
fn a_round_that_grew_is_put_back_whole() {
    let mut bench = Bench::with_rows(10);
    let noted = bench.note(4);
    let grown = bench.grow(&noted, noted.grows.unwrap(), 4).unwrap();
    assert!(grown.grows.is_some() && !grown.complete);
    bench.write("UPDATE note SET body = 'later' WHERE id IN (1, 7, 10)");
    bench.restart();
    let (id, _) = bench.store.in_flight().unwrap().unwrap();
    assert_eq!(id, noted.id);
    bench.store.put_back(&id, &[], false).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (0, 10));
    let inserts = bench.count("SELECT count(*) FROM _tidewater_journal_1 WHERE NOT known");
    assert_eq!(inserts, 10);
}

/// What is read of a round stops at its bound, after the first row at the earliest; the rest waits again, under what was
/// dirtied meanwhile, and the next round goes on exactly there.
#[test]
fn a_round_that_is_too_heavy_is_trimmed() {
    let mut bench = Bench::with_rows(10);
    bench.write("UPDATE note SET body = zeroblob(100000) WHERE id IN (4, 5)");
    let noted = bench.note(8);
    let part = Part::default();
    let read = bench.readers.read_part(&noted, part, 50_000).unwrap();
    assert_eq!(rows(&read).len(), 3);
    bench.write("UPDATE note SET body = 'later' WHERE id IN (2, 8)");
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), part, rest: read.rest.unwrap() }).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (3, 8));
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let next = bench.note(2);
    let read = bench.readers.read_part(&next, part, 50_000).unwrap();
    // Heavier than the bound, and alone.
    assert!(read.bytes > 100_000 && rows(&read).len() == 1 && rows(&read)[0].starts_with("[Integer(4)]"));
}

/// All that was read of a round that grew to its end.
fn read_to_the_end(bench: &mut Bench, noted: &Noted, rows_max: usize) -> Vec<String> {
    bench.parts(noted, rows_max, |_| {}).iter().flat_map(rows).collect()
}

/// A round that began where the last one stopped, and went on at the beginning, has rows beyond those by which it could
/// grow: none of them is sent twice.
#[test]
fn a_round_that_went_on_at_the_beginning_has_each_row_once() {
    let mut bench = Bench::with_rows(10);
    let noted = bench.note(7);
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
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
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
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

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        _ => None,
    }
}

/// Rows of a round by table and key, with the part in which they came.
fn by_key<'a>(
    noted: &'a Noted,
    parts: &'a [InFlight],
) -> HashMap<(&'a str, Option<i64>), (usize, &'a RoundRow)> {
    let mut found = HashMap::new();
    for (at, part) in parts.iter().enumerate() {
        for (table, rows) in noted.tables.iter().zip(&part.rows) {
            for row in rows {
                let before = found.insert((table.name.as_str(), number(&row.key[0])), (at, row));
                assert!(before.is_none(), "twice: {} {row:?}", table.name);
            }
        }
    }
    found
}

/// No part has a row that needs one of a later part: a row whose parent is new, or a deletion of a row to which others
/// referred that go or move away. The tables refer to each other by their keys.
fn assert_no_part_needs_a_later_one(noted: &Noted, parts: &[InFlight]) {
    let found = by_key(noted, parts);
    for (table, (part, row)) in found.iter().map(|((table, _), found)| (*table, *found)) {
        let table = noted.tables.iter().find(|known| known.name == table).unwrap();
        for foreign in &table.foreign_keys {
            let column = foreign.columns[0];
            if let Some(values) = &row.row
                && let Some((parent, _)) = found.get(&(foreign.parent.as_str(), number(&values[column])))
            {
                assert!(
                    *parent <= part,
                    "{} {row:?}: its parent comes in part {parent}, it in {part}",
                    table.name
                );
            }
            let left = row.entry.known && row.entry.dirty[column];
            if left
                && let Some((gone, parent)) =
                    found.get(&(foreign.parent.as_str(), number(&row.entry.base[column])))
                // One that the cloud never had is sent nothing of.
                && parent.row.is_none()
                && parent.entry.known
            {
                assert!(
                    part <= *gone,
                    "{} {row:?}: its parent goes in part {gone}, it in {part}",
                    table.name
                );
            }
        }
    }
}

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT); \
    CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customer (id), v INTEGER); \
    CREATE TABLE line (id INTEGER PRIMARY KEY, purchase INTEGER NOT NULL REFERENCES purchase (id), v INTEGER)";

const FOLDERS: &str = "CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); \
    CREATE TABLE page (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), body BLOB)";

/// So many rows numbered from 1 on.
fn numbers(rows: usize) -> String {
    format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})")
}

/// Customers, their purchases and the lines of those, in whichever order of keys: one round grows by all of them, in parts of
/// little more than their size, none of which needs a later one.
#[test]
fn a_round_grows_over_tables_that_refer_to_each_other() {
    for descending in [false, true] {
        let mut bench = Bench::new(SHOP);
        let of = |rows: usize, of: usize| match descending {
            false => format!("(i - 1) * {of} / {rows} + 1"),
            true => format!("{of} - (i - 1) * {of} / {rows}"),
        };
        for sql in [
            format!("{} INSERT INTO customer SELECT i, 'c' FROM n", numbers(40)),
            format!("{} INSERT INTO purchase SELECT i, {}, 0 FROM n", numbers(400), of(400, 40)),
            format!("{} INSERT INTO line SELECT i, {}, 0 FROM n", numbers(4000), of(4000, 400)),
        ] {
            bench.write(&sql);
        }
        // Whichever table it begins with.
        for turn in 0..3 {
            let noted = bench.note(200);
            let parts = bench.parts(&noted, 200, |_| {});
            assert_no_part_needs_a_later_one(&noted, &parts);
            let sizes: Vec<usize> = parts.iter().map(|part| rows(part).len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), 4440, "turn {turn}: {sizes:?}");
            assert!(sizes.iter().all(|size| *size <= 300), "{sizes:?}");
            bench.store.put_back(&noted.id, &[], false).unwrap();
        }
    }
}

/// Rows that refer to rows of their own table, and tables that refer to each other in a circle: the same.
#[test]
fn a_round_grows_over_trees_and_circles() {
    let mut bench = Bench::new(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, up INTEGER REFERENCES node (id)); \
         CREATE TABLE left_one (id INTEGER PRIMARY KEY, other INTEGER REFERENCES right_one (id)); \
         CREATE TABLE right_one (id INTEGER PRIMARY KEY, other INTEGER REFERENCES left_one (id))",
    );
    // The parents have the larger keys.
    bench.write(&format!(
        "{} INSERT INTO node SELECT 2001 - i, CASE WHEN i > 1 THEN 2001 - i / 2 END FROM n ORDER BY i",
        numbers(2000)
    ));
    bench.write(&format!("{} INSERT INTO left_one SELECT i, NULL FROM n", numbers(500)));
    bench.write(&format!("{} INSERT INTO right_one SELECT i, 501 - i FROM n", numbers(500)));
    bench.write("UPDATE left_one SET other = id % 7 * 50 + 1 WHERE id % 3 > 0");
    for _ in 0..3 {
        let noted = bench.note(100);
        let parts = bench.parts(&noted, 100, |_| {});
        assert_no_part_needs_a_later_one(&noted, &parts);
        assert_eq!(parts.iter().map(|part| rows(part).len()).sum::<usize>(), 3000);
        assert!(parts.len() > 5, "{}", parts.len());
        bench.store.put_back(&noted.id, &[], false).unwrap();
    }
}

/// Deleted customers with everything that they had: no deletion comes before those of the rows that referred to it, and
/// all of them arrive.
#[test]
fn a_round_grows_by_deletions_behind_those_of_the_children() {
    let mut bench = Bench::new(SHOP);
    bench.write(&format!("{} INSERT INTO customer SELECT i, 'c' FROM n", numbers(50)));
    bench.write(&format!("{} INSERT INTO purchase SELECT i, i % 50 + 1, 0 FROM n", numbers(300)));
    bench.write(&format!("{} INSERT INTO line SELECT i, i % 300 + 1, 0 FROM n", numbers(3000)));
    bench.settle();
    // Some move to those that stay, with what is new for them.
    bench.write(
        "INSERT INTO customer VALUES (99, 'new'); UPDATE purchase SET customer = 99 WHERE id % 10 = 3",
    );
    bench.write("DELETE FROM line WHERE purchase IN (SELECT id FROM purchase WHERE customer < 40)");
    bench.write("DELETE FROM purchase WHERE customer < 40; DELETE FROM customer WHERE id < 40");
    let waiting = |bench: &Bench| {
        [1, 2, 3]
            .map(|id| bench.count(&format!("SELECT count(*) FROM _tidewater_journal_{id}")))
            .iter()
            .sum::<i64>()
    };
    let all = waiting(&bench);
    let (mut carried, mut rounds) = (0, 0);
    while let Some(noted) = bench.note_any(100) {
        let parts = bench.parts(&noted, 100, |_| {});
        assert_no_part_needs_a_later_one(&noted, &parts);
        carried += parts.iter().map(|part| rows(part).len()).sum::<usize>();
        bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
        rounds += 1;
    }
    assert_eq!((i64::try_from(carried).unwrap(), waiting(&bench)), (all, 0));
    assert!(rounds <= 4, "{rounds}");
}

/// What happened since to rows of earlier parts is not lost when rows that need them come: it waits as it did.
#[test]
fn what_is_dirtied_in_a_parent_that_flies_stays() {
    let mut bench = Bench::new(SHOP);
    bench.write("INSERT INTO customer VALUES (1, 'a'), (2, 'b'); INSERT INTO purchase VALUES (1, 1, 0), (2, 1, 0), (3, 2, 0)");
    let noted = bench.note(2);
    let parts = bench.parts(&noted, 1, |bench| {
        bench.write("UPDATE customer SET name = name || '!' WHERE id = 1; UPDATE purchase SET customer = 1 WHERE id = 3");
    });
    assert_no_part_needs_a_later_one(&noted, &parts);
    assert!(parts.len() > 2);
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let next = bench.note(10);
    let names: Vec<String> = rows(&bench.read(&next, Part::default()));
    assert!(names.iter().any(|row| row.contains("a!")), "{names:?}");
}

/// A child was brought to a row by an earlier part, and left it since: that row is not deleted by this round, which would
/// take the child along in the cloud.
#[test]
fn a_deletion_waits_for_a_child_that_an_earlier_part_brought() {
    let mut bench = Bench::new(
        "CREATE TABLE top (id INTEGER PRIMARY KEY, v INTEGER); \
         CREATE TABLE middle (id INTEGER PRIMARY KEY, top INTEGER REFERENCES top (id)); \
         CREATE TABLE leaf (id INTEGER PRIMARY KEY, middle INTEGER REFERENCES middle (id))",
    );
    bench.write("INSERT INTO top VALUES (1, 0), (2, 0); INSERT INTO middle VALUES (1, 1), (2, 2)");
    bench.settle();
    bench.write("INSERT INTO leaf VALUES (1, 1)");
    bench.write("UPDATE top SET v = 1 WHERE id = 1");
    // The first part has the leaf; what it refers to does not wait.
    let noted = loop {
        let noted = bench.note(1);
        if bench.read(&noted, Part::default()).rows.last().unwrap().len() == 1 {
            break noted;
        }
        bench.store.put_back(&noted.id, &[], false).unwrap();
    };
    bench.write("UPDATE leaf SET middle = 2; DELETE FROM middle WHERE id = 1; DELETE FROM top WHERE id = 1");
    let parts = bench.parts(&noted, 10, |_| {});
    assert_eq!(parts.iter().map(|part| rows(part).len()).sum::<usize>(), 1, "{parts:?}");
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let next = bench.note(10);
    let parts = bench.parts(&next, 10, |_| {});
    assert_eq!(parts.iter().map(|part| rows(part).len()).sum::<usize>(), 3);
}

/// As long as something is parked for the sake of others, nothing that a round grew by is refused on top of everything.
#[test]
fn a_round_that_grew_is_not_complete_while_somebody_hopes() {
    let mut bench = Bench::with_rows(4);
    bench.write("CREATE TABLE other (id INTEGER PRIMARY KEY)");
    bench.write("INSERT INTO other VALUES (1)");
    let noted = bench.note(100);
    let refusal = Refusal {
        table: 1,
        key: vec![Value::Integer(4)],
        sqlstate: Some("23505".into()),
        message: "taken".into(),
        constraint: None,
        values: None,
    };
    let parked = bench.store.park(&noted.id, &[refusal], &HashMap::new()).unwrap();
    bench.store.acknowledge(&parked.round, usize::MAX).unwrap();
    bench.write("UPDATE note SET body = 'again' WHERE id < 3");
    let noted = bench.note(1);
    let grown = bench.grow(&noted, noted.grows.unwrap(), 10).unwrap();
    assert_eq!((bench.waiting(), grown.complete), (0, false));
}

/// A later part that is too heavy is trimmed alone, and keeps the rows that the others of it need.
#[test]
fn a_later_part_is_trimmed_alone() {
    let mut bench =
        Bench::new("CREATE TABLE leaf (id INTEGER PRIMARY KEY, up INTEGER REFERENCES leaf (id), body BLOB)");
    bench.write("INSERT INTO leaf VALUES (1, NULL, 'light'), (2, NULL, 'light')");
    // Each refers to the next.
    for id in (3..=20).rev() {
        let up = if id < 20 { (id + 1).to_string() } else { "NULL".into() };
        bench.write(&format!("INSERT INTO leaf VALUES ({id}, {up}, zeroblob(10000))"));
    }
    let noted = bench.note(2);
    let grown = bench.grow(&noted, noted.grows.unwrap(), 4).unwrap();
    let read = bench.readers.read_part(&noted, grown.part, 55_000).unwrap();
    assert_eq!(rows(&read).len(), 5);
    let rest = read.rest.unwrap();
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), part: grown.part, rest }).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (7, 13));
    let kept = bench.read(&noted, grown.part);
    assert_no_part_needs_a_later_one(&noted, &[kept]);
    assert_eq!(bench.count("SELECT min(k0) FROM _tidewater_flight_1 WHERE k0 > 2"), 16);
}

/// What came after a part that is too heavy waits again with its rest, once, and so does what was dirtied meanwhile.
#[test]
fn what_was_noted_ahead_of_a_part_that_is_too_heavy_waits_again() {
    let mut bench = Bench::with_rows(12);
    bench.write("UPDATE note SET body = zeroblob(100000) WHERE id = 6");
    let noted = bench.note(2);
    let part = bench.grow(&noted, noted.grows.unwrap(), 4).unwrap();
    let ahead = bench.grow(&noted, part.grows.unwrap(), 4).unwrap();
    // Of each only what is in it, also when the other has been noted.
    assert_eq!(
        (rows(&bench.read(&noted, part.part)).len(), rows(&bench.read(&noted, ahead.part)).len()),
        (4, 4)
    );
    bench.write("UPDATE note SET body = 'later' WHERE id IN (1, 8)");
    let read = bench.readers.read_part(&noted, part.part, 50_000).unwrap();
    let kept = bench.trim(&noted, part.part, read);
    assert_eq!((rows(&kept).len(), bench.in_flight(), bench.waiting()), (3, 5, 8));
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let noted = bench.note(100);
    let rest = bench.count("SELECT count(*) FROM _tidewater_flight_1 WHERE k0 = 1 OR k0 BETWEEN 6 AND 12");
    assert_eq!((rows(&bench.read(&noted, Part::default())).len(), rest, bench.waiting()), (8, 8, 0));
}

/// Nor does a part keep the deletion of a row whose former children were too heavy for it.
#[test]
fn a_trimmed_part_keeps_no_deletion_whose_children_wait() {
    let mut bench = Bench::new(
        "CREATE TABLE doc (id INTEGER PRIMARY KEY); \
         CREATE TABLE page (id INTEGER PRIMARY KEY, doc INTEGER REFERENCES doc (id), body BLOB)",
    );
    bench.write(
        "INSERT INTO doc VALUES (1), (2); INSERT INTO page VALUES (1, 1, 'a'), (2, 2, zeroblob(50000))",
    );
    bench.settle();
    bench.write("UPDATE page SET doc = NULL WHERE id = 2; DELETE FROM page WHERE id = 1; DELETE FROM doc");
    let noted = bench.note(10);
    let part = Part::default();
    let read = bench.readers.read_part(&noted, part, 20_000).unwrap();
    assert_eq!(rows(&read).len(), 3);
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), part, rest: read.rest.unwrap() }).unwrap();
    let kept = rows(&bench.readers.read_part(&noted, part, 20_000).unwrap());
    assert_eq!(kept, ["[Integer(1)] None", "[Integer(1)] None"]);
}

/// What a part keeps when it is trimmed is kept as it was noted: a row that was edited since is in flight with its first
/// change, and waits with its second one.
#[test]
fn a_trimmed_part_keeps_what_was_edited_since() {
    let mut bench = Bench::new(FOLDERS);
    bench.write(
        "INSERT INTO folder VALUES (1, 'a'), (2, 'b'); \
         INSERT INTO page VALUES (1, NULL, 'light'), (2, 1, zeroblob(50000))",
    );
    bench.settle();
    bench.write("UPDATE page SET body = 'edited' WHERE id = 1; DELETE FROM page WHERE id = 2");
    bench.write("DELETE FROM folder WHERE id = 1; UPDATE folder SET name = 'renamed' WHERE id = 2");
    let noted = bench.note(10);
    let part = Part::default();
    let read = bench.readers.read_part(&noted, part, 20_000).unwrap();
    assert_eq!(rows(&read).len(), 3);
    bench.write("UPDATE folder SET name = 'once more' WHERE id = 2");
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), part, rest: read.rest.unwrap() }).unwrap();
    let kept = rows(&bench.readers.read_part(&noted, part, 20_000).unwrap());
    assert_eq!(kept, ["[Integer(2)] Some(Text(\"renamed\"))", "[Integer(1)] Some(Null)"]);
    assert_eq!(bench.count("SELECT count(*) FROM _tidewater_journal_1"), 2);
}

/// A row that was deleted after its change was noted is no deletion of this round: trimmed, the part keeps the change.
#[test]
fn a_trimmed_part_keeps_the_change_of_a_row_that_was_deleted_since() {
    let mut bench = Bench::new(FOLDERS);
    bench.write("INSERT INTO folder VALUES (1, 'a'); INSERT INTO page VALUES (1, 1, zeroblob(50000))");
    bench.settle();
    bench.write("UPDATE folder SET name = 'renamed'; UPDATE page SET folder = NULL");
    let noted = bench.note(10);
    let part = Part::default();
    let read = bench.readers.read_part(&noted, part, 20_000).unwrap();
    assert_eq!(rows(&read).len(), 1);
    bench.write("DELETE FROM folder");
    bench.store.trim_round(&TrimRound { round: noted.id.clone(), part, rest: read.rest.unwrap() }).unwrap();
    let kept = rows(&bench.readers.read_part(&noted, part, 20_000).unwrap());
    assert_eq!(kept, ["[Integer(1)] Some(Text(\"renamed\"))"]);
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let next = bench.note(10);
    assert_eq!(rows(&bench.read(&next, part)), ["[Integer(1)] None", "[Integer(1)] Some(Null)"]);
}

/// A row that an earlier part deletes was inserted anew: whoever was moved to it since comes with it, in the next round.
#[test]
fn a_child_of_a_row_inserted_anew_waits_for_it() {
    let mut bench = Bench::new(FOLDERS);
    bench.write("INSERT INTO folder VALUES (1, 'a'); INSERT INTO page VALUES (7, NULL, 'light')");
    bench.settle();
    bench.write("DELETE FROM folder; UPDATE page SET body = 'edited'");
    // The first part has the deletion.
    let noted = loop {
        let noted = bench.note(1);
        if bench.read(&noted, Part::default()).rows[0].len() == 1 {
            break noted;
        }
        bench.store.put_back(&noted.id, &[], false).unwrap();
    };
    bench.write("INSERT INTO folder VALUES (1, 'anew'); UPDATE page SET folder = 1");
    assert_eq!(bench.parts(&noted, 10, |_| {}).len(), 1);
    bench.store.acknowledge(&noted.id, usize::MAX).unwrap();
    let next = bench.note(10);
    let kept = rows(&bench.read(&next, Part::default()));
    assert_eq!(kept, ["[Integer(1)] Some(Text(\"anew\"))", "[Integer(7)] Some(Integer(1))"]);
}

/// A parked row that comes along, for it holds a value that another takes, comes with what was edited in it: a round
/// that grows as far as its key does not meet it again.
#[test]
fn a_parked_row_that_comes_along_comes_with_its_edits() {
    let mut bench = Bench::new("CREATE TABLE seat (id INTEGER PRIMARY KEY, place TEXT UNIQUE, v INTEGER)");
    bench.write("INSERT INTO seat VALUES (1, 'a', 0), (2, 'x', 0), (9, 'b', 0)");
    bench.settle();
    bench.write("UPDATE seat SET place = 'c' WHERE id = 9");
    let noted = bench.note(10);
    let refusal = Refusal {
        table: 1,
        key: vec![Value::Integer(9)],
        sqlstate: Some("23505".into()),
        message: "taken".into(),
        constraint: None,
        values: None,
    };
    let parked = bench.store.park(&noted.id, &[refusal], &HashMap::new()).unwrap();
    bench.store.acknowledge(&parked.round, usize::MAX).unwrap();
    bench.write("UPDATE seat SET v = 1 WHERE id = 9; UPDATE seat SET place = 'b' WHERE id = 1");
    bench.write("UPDATE seat SET v = 1 WHERE id = 2");
    let noted = loop {
        let noted = bench.note(1);
        if bench.count("SELECT count(*) FROM _tidewater_flight_1 WHERE k0 = 1") == 1 {
            break noted;
        }
        bench.store.put_back(&noted.id, &[], false).unwrap();
    };
    assert_eq!(bench.count("SELECT count(*) FROM _tidewater_parked_1"), 0);
    bench.parts(&noted, 10, |_| {});
    assert_eq!((bench.in_flight(), bench.waiting()), (3, 0));
    let all = bench.readers.read_round(&noted).unwrap();
    let ninth = all[0].iter().find(|row| row.key == [Value::Integer(9)]).unwrap();
    assert!(ninth.entry.dirty[1] && ninth.entry.dirty[2], "{ninth:?}");
}

/// While somebody writes, a round that the cloud has leaves in pieces. In between it is still in flight, whatever was written
/// since waits for the next, and nobody can put it back; after a crash it is acknowledged again.
#[test]
fn a_round_that_the_cloud_has_leaves_in_pieces_while_somebody_writes() {
    let mut bench = Bench::with_rows(10);
    bench.settle();
    bench.write("UPDATE note SET body = 'first'");
    let noted = bench.note(10);
    assert_eq!(
        bench.store.clear_round(&noted.id, 3),
        Err(StoreError::NotInFlight),
        "nobody says that it is there"
    );
    bench.write("UPDATE note SET body = 'second' WHERE id IN (2, 9)");
    let acknowledge = |bench: &mut Bench| bench.store.acknowledge(&noted.id, 3).unwrap();
    assert!(!acknowledge(&mut bench));
    assert_eq!((bench.in_flight(), bench.waiting()), (7, 2));
    assert_eq!(bench.store.put_back(&noted.id, &[], false), Err(StoreError::NotInFlight));
    assert_eq!(bench.store.dissolve(&noted.id), Err(StoreError::NotInFlight));
    // One that is gone from the round, and one that is not yet.
    bench.write("UPDATE note SET body = 'third' WHERE id IN (1, 10)");
    assert!(!bench.store.clear_round(&noted.id, 3).unwrap());
    assert_eq!((bench.in_flight(), bench.waiting()), (4, 4));
    bench.restart();
    bench.write("UPDATE note SET body = 'fourth' WHERE id = 3");
    assert!(!acknowledge(&mut bench));
    // Nobody writes any more: everything at once.
    assert!(bench.store.clear_round(&noted.id, 1).unwrap());
    assert_eq!((bench.in_flight(), bench.store.in_flight().unwrap()), (0, None));
    assert_eq!(bench.count("SELECT value FROM _tidewater_meta WHERE key = 'rows_flushed'"), 20);
    assert_eq!(bench.count("SELECT count(*) FROM _tidewater_sent_1"), 10, "each once");
    let next = bench.note(20);
    let left = rows(&bench.read(&next, Part::default()));
    let expected = [(1, "third"), (2, "second"), (3, "fourth"), (9, "second"), (10, "third")]
        .map(|(id, body)| format!("[Integer({id})] Some(Text(\"{body}\"))"));
    assert_eq!(left, expected);
}

/// Some small pieces follow a write; then, when nobody writes any more, all that is left goes at once.
#[test]
fn what_is_left_of_a_round_goes_at_once_when_nobody_writes() {
    let mut bench = Bench::with_rows(100);
    let noted = bench.note(100);
    let mut cleared = bench.store.acknowledge(&noted.id, 1).unwrap();
    let mut left = vec![];
    while !cleared {
        left.push(bench.in_flight());
        cleared = bench.store.clear_round(&noted.id, 1).unwrap();
    }
    assert_eq!(left, (90..100).rev().collect::<Vec<i64>>());
    assert_eq!(bench.in_flight(), 0);
}

/// A table that is not tracked any more, in the middle of a round's leaving: what the cloud has of it is not parked as if it had
/// not.
#[test]
fn what_the_cloud_has_is_not_parked_when_its_table_goes() {
    let mut bench = Bench::with_rows(5);
    let noted = bench.note(10);
    bench.write("INSERT INTO note VALUES (6, 'waits')");
    assert!(!bench.store.acknowledge(&noted.id, 2).unwrap());
    bench.write("ALTER TABLE note RENAME TO other");
    let parked = "SELECT count(*) FROM _tidewater_parked_1";
    assert_eq!((bench.in_flight(), bench.count(parked)), (0, 1));
    assert!(bench.store.clear_round(&noted.id, 2).unwrap());
}

/// A round of which the cloud has everything is cut off in the middle of its leaving. The writer goes on by itself; and where this
/// file becomes another device first, nothing of it is put back: what was deleted since is a deletion of something that the cloud has.
#[test]
fn what_the_cloud_has_is_not_put_back_whatever_becomes_of_the_cloud() {
    for how in [Some(Anew::Follow), Some(Anew::ReadOn), Some(Anew::SendAgain), None] {
        let mut bench = Bench::with_rows(10);
        let noted = bench.note(10);
        assert!(!bench.store.acknowledge(&noted.id, 3).unwrap());
        bench.write("DELETE FROM note WHERE id = 9");
        match how {
            Some(how) => bench.store.start_over(how).unwrap(),
            None => while bench.store.go_on_clearing(3).unwrap() {},
        }
        assert_eq!((bench.in_flight(), bench.store.in_flight().unwrap()), (0, None), "{how:?}");
        let deletion = "SELECT count(*) FROM _tidewater_journal_1 WHERE k0 = 9 AND known";
        assert_eq!(bench.count(deletion), 1, "{how:?}");
        // The cycle that was cut off may still ask, and the next one may have seen it in flight.
        if how.is_none() {
            assert!(bench.store.clear_round(&noted.id, 3).unwrap());
            assert!(bench.store.acknowledge(&noted.id, 3).unwrap());
            assert_eq!(bench.count("SELECT value FROM _tidewater_meta WHERE key = 'rows_flushed'"), 10);
        }
    }
}

/// A file that an older version left with a round in flight: what flies is put back, or acknowledged, and rounds grow.
#[test]
fn a_file_of_an_older_version_goes_on() {
    for lost in [true, false] {
        let mut bench = Bench::with_rows(10);
        let noted = bench.note(4);
        let conn = Connection::open(bench.folder.path().join("app.db")).unwrap();
        conn.execute_batch(
            "DROP INDEX _tidewater_step_1; ALTER TABLE _tidewater_flight_1 DROP COLUMN step; \
             UPDATE note SET body = 'later' WHERE id = 1",
        )
        .unwrap();
        drop(conn);
        bench.restart();
        let (id, _) = bench.store.in_flight().unwrap().unwrap();
        assert_eq!((bench.in_flight(), &id), (4, &noted.id));
        if lost {
            bench.store.put_back(&id, &[], false).unwrap();
        } else {
            bench.store.acknowledge(&id, usize::MAX).unwrap();
        }
        let noted = bench.note(2);
        let read = read_to_the_end(&mut bench, &noted, 3);
        assert_eq!(read.len(), if lost { 10 } else { 7 }, "{read:?}");
    }
}

/// Whatever happens while rounds grow, the cloud has what the file has once nothing waits any more.
#[test]
fn whatever_happens_meanwhile_nothing_is_lost() {
    let count = std::env::var("TIDEWATER_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let first = std::env::var("TIDEWATER_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1_u64);
    for seed in first..first + count {
        let mut rng = Rng::with_seed(seed);
        // The cloud of every other history leaves out rows of a round.
        let leaves = seed % 2 == 0;
        let mut bench = Bench::new(
            "CREATE TABLE node (id INTEGER PRIMARY KEY, up INTEGER REFERENCES node (id) ON DELETE SET NULL, \
             item INTEGER REFERENCES item (id), v INTEGER); \
             CREATE TABLE item (id INTEGER PRIMARY KEY, node INTEGER REFERENCES node (id) ON DELETE CASCADE, v INTEGER)",
        );
        let mut cloud: BTreeMap<(String, i64), Vec<Value>> = BTreeMap::new();
        for _ in 0..8 {
            some_writes(&mut bench, &mut rng, 12);
            let Some(noted) = bench.note_any(rng.usize(1..6)) else { continue };
            let (rows_max, mut heavy) = (rng.usize(1..6), Rng::with_seed(rng.u64(..)));
            let bytes_max = || if heavy.u8(0..6) == 0 { heavy.usize(1..1000) } else { usize::MAX };
            let writes = |bench: &mut Bench| some_writes(bench, &mut rng, 4);
            let parts = bench.parts_within(&noted, rows_max, bytes_max, writes);
            end(&mut bench, &mut rng, &noted, &parts, &mut cloud, (3, leaves));
        }
        // Nobody writes any more.
        bench.restart();
        while let Some(noted) = bench.note_any(3) {
            let parts = bench.parts(&noted, 2, |_| {});
            assert_no_part_needs_a_later_one(&noted, &parts);
            end(&mut bench, &mut rng, &noted, &parts, &mut cloud, (0, leaves));
        }
        let mut file = BTreeMap::new();
        for table in ["node", "item"] {
            let sql = format!("SELECT * FROM {table}");
            let found: Vec<(i64, Vec<Value>)> = bench
                .readers
                .read(|conn| {
                    let mut all = conn.prepare(&sql)?;
                    let width = all.column_count();
                    let value = |row: &rusqlite::Row<'_>, at| {
                        Ok(row.get::<_, Option<i64>>(at)?.map_or(Value::Null, Value::Integer))
                    };
                    all.query_map([], |row| {
                        Ok((
                            row.get(0)?,
                            (0..width).map(|at| value(row, at)).collect::<rusqlite::Result<_>>()?,
                        ))
                    })?
                    .collect()
                })
                .unwrap();
            file.extend(found.into_iter().map(|(id, row)| ((table.to_owned(), id), row)));
        }
        assert_eq!(cloud, file, "seed {seed}");
    }
}

fn some_writes(bench: &mut Bench, rng: &mut Rng, most: usize) {
    for _ in 0..rng.usize(0..=most) {
        let mut id = || rng.i64(1..=12);
        let (one, other, third) = (id(), id(), id());
        let sql = match rng.u8(0..8) {
            0 => format!("INSERT INTO node VALUES ({one}, NULL, NULL, 0)"),
            1 => format!("INSERT INTO node VALUES ({one}, {other}, {third}, 0)"),
            2 => format!("INSERT INTO item VALUES ({one}, {other}, 0)"),
            3 => format!("UPDATE node SET v = v + 1, up = {other} WHERE id = {one}"),
            4 => format!("UPDATE node SET item = {other} WHERE id = {one}"),
            5 => format!("UPDATE item SET node = {other} WHERE id = {one}"),
            6 => format!("DELETE FROM node WHERE id = {one}"),
            _ => format!("DELETE FROM item WHERE id = {one}"),
        };
        // The file may refuse it, for its own foreign keys.
        let _ = bench.try_write(&sql);
    }
}

/// The round took effect, but for some of its rows, and the cloud is now as it says; or it did not, and a crash may be the reason.
/// So many writes come between two pieces of its end, at most.
fn end(
    bench: &mut Bench,
    rng: &mut Rng,
    noted: &Noted,
    parts: &[InFlight],
    cloud: &mut BTreeMap<(String, i64), Vec<Value>>,
    (writes, leaves): (usize, bool),
) {
    let found = by_key(noted, parts);
    if rng.u8(0..4) == 0 {
        bench.restart();
        bench.store.put_back(&noted.id, &[], false).unwrap();
        return;
    }
    let before = cloud.clone();
    let (mut left_out, mut names) = (vec![], vec![]);
    for ((table, id), (_, row)) in found {
        let (place, of) = ((table.to_owned(), id.unwrap()), noted.tables.iter().find(|it| it.name == table));
        let (of, key) = (of.unwrap(), row.key.clone());
        if leaves && rng.u8(0..4) == 0 {
            // Others have touched it, and left it as it was.
            let hit = Hit {
                table: of.id,
                key: key.clone(),
                row: cloud.get(&place).cloned(),
                seen: 1,
                stamp: Some(0),
            };
            names.push(ledger_name(of, &key));
            left_out.push(if rng.bool() {
                LeftOut::Hit(hit)
            } else {
                LeftOut::AsItWas { table: of.id, key }
            });
            continue;
        }
        match &row.row {
            Some(values) => drop(cloud.insert(place, values.clone())),
            None => drop(cloud.remove(&place)),
        }
    }
    // What the cloud left out goes first, in pieces.
    while !left_out.is_empty() {
        let piece: Vec<LeftOut> = left_out.drain(..rng.usize(1..3).min(left_out.len())).collect();
        bench.store.take_out(&noted.id, &piece, noted.generation).unwrap();
        some_writes(bench, rng, writes);
        match rng.u8(0..12) {
            // A crash: the ledger has the names of all of them.
            0 => {
                bench.restart();
                left_out = bench.readers.in_flight_by_name(&names).unwrap();
            }
            // The cloud is set back to before the round.
            1 => {
                bench.store.put_back(&noted.id, &[], false).unwrap();
                *cloud = before;
                return;
            }
            _ => {}
        }
    }
    assert_eq!(bench.readers.in_flight_by_name(&names).unwrap(), []);
    // In pieces, as long as somebody writes between them. After a crash the ledger says it once more.
    while !bench.store.acknowledge(&noted.id, rng.usize(1..4)).unwrap() {
        let late = LeftOut::AsItWas { table: noted.tables[0].id, key: vec![Value::Integer(1)] };
        let taken_out = bench.store.take_out(&noted.id, &[late], noted.generation);
        assert_eq!(taken_out, Err(StoreError::NotInFlight), "the cloud has what is left");
        let mut cleared = false;
        while !cleared && rng.u8(0..3) > 0 {
            some_writes(bench, rng, writes);
            cleared = bench.store.clear_round(&noted.id, rng.usize(1..4)).unwrap();
        }
        if cleared {
            break;
        }
        bench.restart();
        assert_eq!(bench.store.in_flight().unwrap().unwrap().0, noted.id);
    }
}

/// What others have changed meanwhile leaves a round in pieces before it is acknowledged. After each piece a write is merged like any
/// other; a crash in between puts back as it was what is still in flight of it, by its names in the ledger, and nothing is decided twice.
#[test]
fn what_the_cloud_left_out_leaves_in_pieces_before_anything_is_acknowledged() {
    let mut bench = Bench::with_rows(10);
    bench.settle();
    bench.write("UPDATE note SET body = 'mine'");
    let noted = bench.note(10);
    let table = &noted.tables[0];
    let hit = |id: i64| {
        let (key, row) = (vec![Value::Integer(id)], Some(vec![Value::Integer(id), "theirs".into()]));
        LeftOut::Hit(Hit { table: table.id, key, row, seen: 7, stamp: Some(1) })
    };
    bench.store.take_out(&noted.id, &[hit(1), hit(2)], noted.generation).unwrap();
    assert_eq!((bench.in_flight(), bench.waiting()), (8, 2));
    // Of each kind: taken out, to be, to be and not a hit, and not among them.
    bench.write("UPDATE note SET body = 'later' WHERE id IN (2, 4, 5, 6)");
    bench.store.take_out(&noted.id, &[hit(2), hit(4)], noted.generation).unwrap();
    let losses = "SELECT count(*) FROM _tidewater_conflicts";
    assert_eq!(
        (bench.in_flight(), bench.waiting(), bench.count(losses)),
        (7, 5, 3),
        "the second is out already"
    );
    assert_eq!(
        bench.count("SELECT count(*) FROM _tidewater_meta WHERE key = 'rows_flushed' AND value > 10"),
        0
    );

    bench.restart();
    assert_eq!(bench.store.in_flight().unwrap().unwrap().0, noted.id);
    let names: Vec<String> = [1, 2, 3, 4, 5].map(|id| ledger_name(table, &[Value::Integer(id)])).into();
    let left = bench.readers.in_flight_by_name(&names).unwrap();
    let as_it_was = |id| LeftOut::AsItWas { table: table.id, key: vec![Value::Integer(id)] };
    assert_eq!(left, [as_it_was(3), as_it_was(5)]);
    bench.store.take_out(&noted.id, &left, 0).unwrap();
    assert!(bench.store.acknowledge(&noted.id, 500).unwrap());
    assert_eq!(bench.count("SELECT value FROM _tidewater_meta WHERE key = 'rows_flushed'"), 15);
    assert_eq!(bench.count(losses), 3);
    let next = bench.note(10);
    let expected = [(1, "mine"), (2, "later"), (3, "mine"), (4, "later"), (5, "later"), (6, "later")];
    let expected = expected.map(|(id, body)| format!("[Integer({id})] Some(Text(\"{body}\"))"));
    let read = bench.read(&next, Part::default());
    assert_eq!(rows(&read), expected);
    let base = |at: usize| read.rows[0][at].entry.base[1].clone();
    assert_eq!(base(0), Value::from("theirs"), "merged");
    assert_eq!(base(2), Value::from("row 3"), "as it was");
}
