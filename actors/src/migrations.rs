//! The app's own schema as numbered files of SQL: what they are, which one is next, and when that is for a person to say.
//!
//! Parts: [`Migrations`] (the files that the app brings), `Recorded` (what a database remembers of those that it has),
//! [`MigrationError`]. How one is applied is in `sqlite/migrate.rs`.
//!
//! ```text
//! a folder, or include_str! ─▶ Migrations ─┐
//! _tidewater_migrations ─▶ [Recorded] ─────┴─▶ next ─▶ the lowest one that is not recorded
//! ```

use std::collections::{BTreeMap, btree_map};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// Numbered scripts of SQL that bring a database's schema to where the app wants it, each applied once, in order. Clones
/// are cheap.
///
/// ```
/// # use tidewater_actors as tidewater;
/// use tidewater::migrations::Migrations;
///
/// // In an app: `include_str!("../migrations/0001_notes.sql")`.
/// let migrations = Migrations::new([
///     (1, "notes", "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL)"),
///     (2, "stars", "ALTER TABLE note ADD COLUMN stars INTEGER NOT NULL DEFAULT 0"),
/// ])?;
/// assert_eq!(migrations.len(), 2);
/// # Ok::<(), tidewater::migrations::MigrationError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migrations {
    by_number: Arc<BTreeMap<i64, Migration>>,
}

/// One script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Migration {
    pub(crate) number: i64,
    /// What errors call it: the file's name.
    pub(crate) name: String,
    pub(crate) sql: String,
    /// In hexadecimal, of the bytes as they are.
    pub(crate) sha256: String,
}

/// What a database remembers of a migration that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) number: i64,
    pub(crate) name: String,
    pub(crate) sha256: String,
}

/// Why migrations cannot be applied. Nothing is guessed: what is wrong is said, with what a person can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The folder, or a file in it, cannot be read.
    #[error("the migrations in {path} cannot be read: {reason}")]
    Unreadable {
        /// The folder, or the file.
        path: String,
        /// What the operating system said.
        reason: String,
    },
    /// A file's name does not say where it belongs.
    #[error("{file} is not the name of a migration: it has to begin with its number, as in 0001_notes.sql")]
    BadName {
        /// The file.
        file: String,
    },
    /// Two have the same number.
    #[error("{first} and {second} are both migration {number}; give one of them another number")]
    Duplicate {
        /// Their number.
        number: i64,
        /// One of them.
        first: String,
        /// The other one.
        second: String,
    },
    /// One that this database has is not what it was when it was applied.
    #[error(
        "{file} was changed after this database had it; put it back as it was, and make the change in a new migration"
    )]
    Changed {
        /// The file.
        file: String,
    },
    /// This database has one that the app does not bring.
    #[error(
        "this database has migration {number} ({name}), which is not among those given; put the file back, or run the \
         version of the app that brings it"
    )]
    Missing {
        /// Its number.
        number: i64,
        /// Its name when it was applied.
        name: String,
    },
    /// One that this database does not have is numbered below one that it has.
    #[error(
        "{file} is new, and this database has migration {newest} already; give it a number above {newest}, so that every \
         database applies the two in the same order"
    )]
    OutOfOrder {
        /// The file.
        file: String,
        /// The highest number that the database has.
        newest: i64,
    },
    /// It holds a statement that the writer allows nobody.
    #[error(
        "{file}, line {line}: {word} is not allowed in a migration: each is one transaction of the writer's; nothing was \
         applied"
    )]
    Forbidden {
        /// The file.
        file: String,
        /// Where the statement begins.
        line: usize,
        /// Its first word.
        word: String,
    },
    /// SQLite refuses a statement. Nothing of this migration is done.
    #[error("{file}, line {line}: {reason}; nothing of this migration is done")]
    Failed {
        /// The file.
        file: String,
        /// Where the statement begins, or where SQLite points to.
        line: usize,
        /// What SQLite said.
        reason: String,
    },
    /// Rows would be left that refer to rows which are not there. Nothing of this migration is done.
    #[error(
        "{file} leaves {rows} row(s) of {table} that refer to rows of {parent} which are not there; foreign-key actions \
         do not run in a migration: delete or change these rows in it, too; nothing of it is done"
    )]
    Orphans {
        /// The file.
        file: String,
        /// The table that refers.
        table: String,
        /// The table that it refers to.
        parent: String,
        /// How many rows more than before.
        rows: u64,
    },
}

type Result<T> = std::result::Result<T, MigrationError>;

impl Migrations {
    /// Migrations that are compiled in: number, name, SQL. Gaps between the numbers are allowed.
    ///
    /// # Errors
    /// [`MigrationError::Duplicate`].
    pub fn new<Name: Into<String>, Sql: Into<String>>(
        all: impl IntoIterator<Item = (i64, Name, Sql)>,
    ) -> Result<Self> {
        Self::of(all.into_iter().map(|(number, name, sql)| (number, name.into(), sql.into())).collect())
    }

    /// Every `*.sql` file of a folder. Its number is the digits that its name begins with (`0001_notes.sql`); gaps are
    /// allowed. Other files are passed over.
    ///
    /// # Errors
    /// [`Unreadable`](MigrationError::Unreadable), [`BadName`](MigrationError::BadName) and
    /// [`Duplicate`](MigrationError::Duplicate) name the file.
    pub fn from_dir(path: impl AsRef<Path>) -> Result<Self> {
        let unreadable = |path: &Path, reason: &dyn std::fmt::Display| MigrationError::Unreadable {
            path: path.display().to_string(),
            reason: reason.to_string(),
        };
        let folder = path.as_ref();
        let mut numbered = vec![];
        for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
            let path = entry.map_err(|error| unreadable(folder, &error))?.path();
            if path.extension().is_none_or(|extension| extension != "sql") {
                continue;
            }
            let name = path.file_name().unwrap_or_default();
            let bad = || MigrationError::BadName { file: path.display().to_string() };
            let name = name.to_str().ok_or_else(bad)?;
            let digits = name.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let number = digits.parse().map_err(|_| bad())?;
            let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
            let sql = String::from_utf8(bytes).map_err(|_| unreadable(&path, &"it is not UTF-8"))?;
            numbered.push((number, name.to_owned(), sql));
        }
        // Whatever the order of the folder, the same error.
        numbered.sort();
        Self::of(numbered)
    }

    fn of(all: Vec<(i64, String, String)>) -> Result<Self> {
        let mut by_number = BTreeMap::new();
        for (number, name, sql) in all {
            let sha256 = Sha256::digest(&sql).iter().map(|byte| format!("{byte:02x}")).collect();
            match by_number.entry(number) {
                btree_map::Entry::Vacant(place) => {
                    place.insert(Migration { number, name, sql, sha256 });
                }
                btree_map::Entry::Occupied(taken) => {
                    let first = taken.get().name.clone();
                    return Err(MigrationError::Duplicate { number, first, second: name });
                }
            }
        }
        Ok(Self { by_number: Arc::new(by_number) })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// The name of one of them.
    #[must_use]
    pub fn name(&self, number: i64) -> Option<&str> {
        self.by_number.get(&number).map(|migration| migration.name.as_str())
    }

    /// The one that a database needs next, which has these. None when it has all.
    pub(crate) fn next(&self, recorded: &[Recorded]) -> Result<Option<&Migration>> {
        let newest = recorded.iter().map(|recorded| recorded.number).max();
        for Recorded { number, name, sha256 } in recorded {
            let Some(given) = self.by_number.get(number) else {
                return Err(MigrationError::Missing { number: *number, name: name.clone() });
            };
            if given.sha256 != *sha256 {
                return Err(MigrationError::Changed { file: given.name.clone() });
            }
        }
        let next =
            self.by_number.values().find(|given| recorded.iter().all(|known| known.number != given.number));
        match (next, newest) {
            (Some(next), Some(newest)) if next.number < newest => {
                Err(MigrationError::OutOfOrder { file: next.name.clone(), newest })
            }
            (next, _) => Ok(next),
        }
    }

    /// Those above a number.
    pub(crate) fn from(&self, number: i64) -> impl Iterator<Item = &Migration> {
        self.by_number.range(number..).map(|(_, migration)| migration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(numbers: &[i64]) -> Migrations {
        Migrations::new(
            numbers.iter().map(|number| (*number, format!("{number}.sql"), format!("-- {number}"))),
        )
        .unwrap()
    }

    fn recorded(migrations: &Migrations, numbers: &[i64]) -> Vec<Recorded> {
        let some = migrations.from(0).filter(|given| numbers.contains(&given.number)).cloned();
        some.map(|Migration { number, name, sha256, .. }| Recorded { number, name, sha256 }).collect()
    }

    /// The lowest one that is not recorded is next, across gaps, until there is none.
    #[test]
    fn the_lowest_new_one_is_next() {
        let all = given(&[30, 2, 10]);
        for (known, next) in
            [(&[][..], Some(2)), (&[2], Some(10)), (&[2, 10], Some(30)), (&[2, 10, 30], None)]
        {
            let found = all.next(&recorded(&all, known)).unwrap().map(|next| next.number);
            assert_eq!(found, next, "{known:?}");
        }
        assert_eq!(Migrations::default().next(&[]), Ok(None));
    }

    /// A changed one, a missing one and a late one are told apart, by name.
    #[test]
    fn what_is_not_as_it_was_is_named() {
        let all = given(&[1, 2, 3]);
        let known = recorded(&all, &[1, 3]);
        let newest = 3;
        assert_eq!(all.next(&known), Err(MigrationError::OutOfOrder { file: "2.sql".into(), newest }));
        let missing = MigrationError::Missing { number: 3, name: "3.sql".into() };
        assert_eq!(given(&[1, 2]).next(&known), Err(missing));
        let changed = Migrations::new([(1, "1.sql", "-- 1 "), (3, "3.sql", "-- 3")]).unwrap();
        assert_eq!(changed.next(&known), Err(MigrationError::Changed { file: "1.sql".into() }));
    }

    /// The fingerprint is the one that `sha256sum` prints.
    #[test]
    fn the_fingerprint_is_sha256() {
        let one = Migrations::new([(1, "1", "abc")]).unwrap();
        let sums: Vec<_> = one.from(0).map(|one| one.sha256.as_str()).collect();
        assert_eq!(sums, ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]);
    }

    /// A folder's files are found by their leading digits; whatever is not SQL is passed over.
    #[test]
    fn a_folder_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0002_b.sql", "10.sql", "1a.sql", "README.md", "0003_c.sql~"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let all = Migrations::from_dir(folder.path()).unwrap();
        let found: Vec<_> =
            all.from(0).map(|one| (one.number, one.name.as_str(), one.sql.as_str())).collect();
        assert_eq!(
            found,
            [(1, "1a.sql", "1a.sql"), (2, "0002_b.sql", "0002_b.sql"), (10, "10.sql", "10.sql")]
        );
    }

    /// What cannot be understood in a folder is an error that names the file.
    #[test]
    fn a_folder_that_is_not_clear_is_refused() {
        let table: [(&[&str], &str); 4] = [
            (&["notes.sql"], "notes.sql is not the name"),
            (&["99999999999999999999_far.sql"], "99999999999999999999_far.sql is not the name"),
            (&["1_a.sql", "001_b.sql"], "001_b.sql and 1_a.sql are both migration 1"),
            (&[".hidden.sql"], ".hidden.sql is not the name"),
        ];
        for (names, expected) in table {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                fs::write(folder.path().join(name), "").unwrap();
            }
            let error = Migrations::from_dir(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("1.sql"), b"\xff").unwrap();
        let error = Migrations::from_dir(folder.path()).unwrap_err().to_string();
        assert!(error.contains("1.sql cannot be read: it is not UTF-8"), "{error}");
        let missing = folder.path().join("missing");
        let error = Migrations::from_dir(&missing).unwrap_err().to_string();
        assert!(error.contains("missing cannot be read"), "{error}");
    }
}
