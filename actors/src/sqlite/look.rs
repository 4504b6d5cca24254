//! How far a look through the file is, for other threads than the one that looks.
//!
//! SQLite says nothing while it checks a file. Its progress callback counts instructions, and the pages of trees but not those that
//! long values go on in; nobody knows the sum of either. One table after the other (`quick_check(table)`), with sizes that are
//! known, would be less of a check: that a page belongs to two tables, or to none, is found only where all of them are looked at
//! together. So SQLite looks at all of it, and what is counted are the bytes that the looking thread reads, as the system keeps
//! them for each thread of its own.
//!
//! Where that ends is known as a bound. Every page that is in use is read once for the trees, and those of tables once more for
//! their rows: twice the pages at most, and the sooner it is over the more of them belong to indexes and long values.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use crate::core::progress::Extent;

/// A look through the file that may be under way.
#[derive(Debug, Default)]
pub struct LookingNow(Mutex<Part>);

#[derive(Debug, Default)]
enum Part {
    #[default]
    NotYet,
    Pages {
        counted: Option<Counted>,
        at_most: u64,
    },
    References {
        done: u64,
        of: u64,
    },
}

impl LookingNow {
    /// How far it is.
    #[must_use]
    pub fn extent(&self) -> Extent {
        match &*self.part() {
            Part::NotYet => Extent::Unknown,
            Part::References { done, of } => Extent::References { done: *done, of: *of },
            Part::Pages { counted, at_most } => match counted.as_ref().and_then(Counted::bytes) {
                Some(done) => Extent::AtMost { done, of: *at_most },
                None => Extent::Unknown,
            },
        }
    }

    fn part(&self) -> std::sync::MutexGuard<'_, Part> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread begins to look at the pages. What they are cannot be told of a file whose first page is damaged.
    pub(super) fn at_pages(&self, conn: &Connection) {
        let ask = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let in_use = ask("page_count").and_then(|all| Ok((all - ask("freelist_count")?) * ask("page_size")?));
        *self.part() = match in_use {
            Ok(bytes) => Part::Pages { counted: Counted::begin(), at_most: bytes.max(0).unsigned_abs() * 2 },
            Err(_) => Part::NotYet,
        };
    }

    /// It looks for rows without their parents, in so many tables of so many so far.
    pub(super) fn at_references(&self, done: usize, of: usize) {
        let amount = |tables| u64::try_from(tables).unwrap_or(u64::MAX);
        *self.part() = Part::References { done: amount(done), of: amount(of) };
    }
}

/// What a thread reads.
#[derive(Debug)]
struct Counted {
    of_thread: File,
    before: u64,
}

impl Counted {
    /// From now on, by this thread; none where the system does not count that. It goes on meaning this thread, whoever asks.
    fn begin() -> Option<Self> {
        let of_thread = File::open("/proc/thread-self/io").ok()?;
        let before = read_by(&of_thread)?;
        Some(Self { of_thread, before })
    }

    /// None where the thread has ended.
    fn bytes(&self) -> Option<u64> {
        Some(read_by(&self.of_thread)?.saturating_sub(self.before))
    }
}

/// `rchar`: what was asked of the system, wherever it had it from. A few hundred bytes.
fn read_by(of_thread: &File) -> Option<u64> {
    let mut text = [0; 512];
    let length = of_thread.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar:")?.trim().parse().ok())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Another thread sees how far the look is: nothing before it begins, then bytes up to the bound, and tables at the end.
    #[test]
    fn another_thread_sees_how_far_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(
            "CREATE TABLE t (a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
             INSERT INTO t SELECT randomblob(1000) FROM n",
        )
        .unwrap();
        drop(conn);
        let bytes = std::fs::metadata(&path).unwrap().len();
        let now = LookingNow::default();
        let seen = || std::thread::scope(|scope| scope.spawn(|| now.extent()).join().unwrap());
        assert_eq!(seen(), Extent::Unknown);
        let conn = Connection::open(&path).unwrap();
        now.at_pages(&conn);
        let Extent::AtMost { done, of } = seen() else { panic!("{now:?}") };
        assert!(done < bytes && of == bytes * 2, "{done} of {of}");
        let verdict: String = conn.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        let Extent::AtMost { done, of } = seen() else { panic!("{now:?}") };
        // All pages for the trees; nearly all again for the rows, but for what the cache still had.
        assert!((bytes..=of).contains(&done), "{done} of {of}, the file has {bytes}");
        now.at_references(1, 2);
        assert_eq!(seen(), Extent::References { done: 1, of: 2 });
    }

    /// A file of which nobody knows how many pages it has is looked at without a measure.
    #[test]
    fn what_is_no_database_has_no_measure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        std::fs::write(&path, "Dear diary, ".repeat(1000)).unwrap();
        let now = LookingNow::default();
        now.at_pages(&Connection::open(&path).unwrap());
        assert_eq!(now.extent(), Extent::Unknown);
    }
}
