//! What is done with the file as a whole while it is in use: a copy of it, and a look whether it is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::background::Cancel;
use super::look::LookingNow;
use super::migrate::orphans_telling;
use super::{Readers, Result, StoreError, query};

/// One megabyte of pages of the usual size, and a pause in which the disk belongs to the writer.
const PAGES_AT_ONCE: i32 = 256;
const PAUSE: Duration = Duration::from_millis(2);

/// So many are brought to the disk together: all at the end would hold up the writer's own fsync.
const BATCHES_SYNCED: u32 = 8;

/// A copy of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A copy that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// Bytes that are copied.
    pub bytes: u64,
    /// Bytes that the copy will have.
    pub of_bytes: u64,
}

/// How far the copy is that is being made; of several, the one that moved last.
#[derive(Debug, Default)]
pub(super) struct CopyingNow(Mutex<Option<Copying>>);

impl CopyingNow {
    fn set(&self, copying: Option<Copying>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = copying;
    }
}

/// What a check of the file found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntegrityReport {
    /// Damage, in SQLite's words; at most 100 lines.
    pub damage: Vec<String>,
    /// Rows of the app's tables that refer to rows which are not there.
    pub orphans: Vec<Orphans>,
}

/// Rows of one table without their parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphans {
    /// The table that refers.
    pub table: String,
    /// The table that it refers to; where SQLite cannot look for the rows at all, why not.
    pub parent: String,
    /// How many rows.
    pub rows: u64,
}

impl IntegrityReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.orphans.is_empty()
    }
}

impl Readers {
    /// Copies the file, as it is at the beginning, while others go on writing it. The copy has its name when it is complete
    /// and on the disk, with mode 0600. How far it is is told after each batch of pages.
    ///
    /// # Errors
    /// [`StoreError::Copy`]: a file of this name is there and `overwrite` is not set, it is this very file, another
    /// database's log is beside it, or it cannot be written. [`StoreError::ReplacedFile`]: the file is not the one any more
    /// that its name stands for.
    pub fn copy_to(
        &self,
        path: &Path,
        overwrite: bool,
        cancel: &Cancel,
        tell: impl Fn(Copying),
    ) -> Result<Copied> {
        // Closed like all the others, once the database is.
        let _open = self.get()?;
        // The name may stand for another file by now, which has no business with this one's log.
        self.same_file()?;
        self.refuse_target(path, overwrite)?;
        let failed = |reason: &dyn std::fmt::Display| StoreError::Copy {
            path: path.display().to_string(),
            reason: reason.to_string(),
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // With mode 0600 from the first moment, and gone when this ends early.
        let partial = tempfile::Builder::new()
            .prefix(".tidewater-")
            .suffix(".partial")
            .tempfile_in(folder)
            .map_err(|error| failed(&error))?;
        self.copy_pages(&partial, cancel, tell)?;
        partial.as_file().sync_all().map_err(|error| failed(&error))?;
        let bytes = partial.as_file().metadata().map_err(|error| failed(&error))?.len();
        let named = if overwrite { partial.persist(path) } else { partial.persist_noclobber(path) };
        named.map_err(|error| failed(&error.error))?;
        // The name, too, has to outlast a power cut.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed(&error))?;
        Ok(Copied { path: path.to_owned(), bytes })
    }

    /// How far the copy is that is being made, if one is.
    #[must_use]
    pub fn copying(&self) -> Option<Copying> {
        *self.copying.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse_target(&self, path: &Path, overwrite: bool) -> Result<()> {
        let refuse = |reason: &str| {
            Err(StoreError::Copy { path: path.display().to_string(), reason: reason.to_owned() })
        };
        if let (Ok(own), Ok(target)) = (fs::canonicalize(&self.options.path), fs::canonicalize(path))
            && own == target
        {
            return refuse("it is the database itself; name another file");
        }
        match fs::metadata(path) {
            Ok(target) if target.is_dir() => return refuse("it is a folder; name a file in it"),
            Ok(_) if !overwrite => {
                return refuse("it is there already; name another file, or ask for it to be overwritten");
            }
            _ => {}
        }
        // SQLite would take another database's log for the copy's.
        for companion in ["-wal", "-journal"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(companion);
            if fs::metadata(&beside).is_ok_and(|log| log.len() > 0) {
                let beside = Path::new(&beside).display();
                return refuse(&format!(
                    "{beside} is beside it, so that a database of this name is in use, or was not closed; name another file"
                ));
            }
        }
        Ok(())
    }

    fn copy_pages(&self, partial: &NamedTempFile, cancel: &Cancel, tell: impl Fn(Copying)) -> Result<()> {
        let from = self.beside_the_pool()?;
        // One state of the file. Otherwise every commit of another connection would make the copy begin anew.
        let state = from.unchecked_transaction()?;
        state.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        // What has just been opened.
        self.same_file()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut to = Connection::open_with_flags(partial.path(), flags)?;
        // Nobody looks at it before it is complete, and then it is brought to the disk as a whole.
        to.pragma_update(None, "journal_mode", "off")?;
        to.pragma_update(None, "synchronous", "off")?;
        /// However it ends.
        struct Over<'a>(&'a CopyingNow);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.set(None);
            }
        }
        let page_bytes: u32 = state.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let _over = Over(&self.copying);
        let copy = Backup::new(&state, &mut to)?;
        for batch in 1_u32.. {
            if cancel.is_cancelled() {
                return Err(StoreError::Withdrawn);
            }
            if copy.step(PAGES_AT_ONCE)? == StepResult::Done {
                break;
            }
            let progress = copy.progress();
            let bytes = |pages| u64::try_from(pages).unwrap_or(0) * u64::from(page_bytes);
            let (left, of_bytes) = (bytes(progress.remaining), bytes(progress.pagecount));
            let copying = Copying { bytes: of_bytes.saturating_sub(left), of_bytes };
            self.copying.set(Some(copying));
            tell(copying);
            if batch.is_multiple_of(BATCHES_SYNCED) {
                partial.as_file().sync_data().map_err(|error| StoreError::Io(error.to_string()))?;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Looks whether the file is whole, and whether the app's tables have every row that they refer to.
    ///
    /// # Errors
    /// What keeps SQLite from looking at all; damage is what the report is for.
    pub fn check_integrity(&self, cancel: &Cancel, now: &LookingNow) -> Result<IntegrityReport> {
        self.with(|conn| integrity(conn, cancel, now))
    }
}

/// [`Readers::check_integrity`] on a connection.
pub(super) fn integrity(conn: &Connection, cancel: &Cancel, now: &LookingNow) -> Result<IntegrityReport> {
    cancel.watch(conn, || {
        // Both of one state.
        let state = conn.unchecked_transaction()?;
        now.at_pages(&state);
        // It tells at most 100 things by itself.
        let check = "SELECT quick_check FROM pragma_quick_check";
        let mut damage = match query(&state, check, &[], |row| row.get::<_, String>(0)) {
            Ok(lines) => lines,
            Err(StoreError::Damaged(why)) => vec![why],
            Err(error) => return Err(error),
        };
        damage.retain(|line| line != "ok");
        let orphans = match orphans_telling(&state, |done, of| now.at_references(done, of)) {
            Ok(found) => found,
            Err(StoreError::Damaged(why)) => {
                damage.push(why);
                Default::default()
            }
            Err(error) => return Err(error),
        };
        let orphans =
            orphans.into_iter().map(|((table, parent), rows)| Orphans { table, parent, rows }).collect();
        Ok(IntegrityReport { damage, orphans })
    })
}

#[cfg(test)]
mod tests {
    use super::super::background::Canceller;
    use super::super::{StoreOptions, UpkeepOptions};
    use super::*;

    /// A copy that nobody waits for any more ends, and leaves nothing behind.
    #[test]
    fn a_cancelled_copy_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let readers = Readers::open(&StoreOptions {
            path,
            busy_timeout: Duration::from_secs(1),
            read_pool_max: 1,
            upkeep: UpkeepOptions::default(),
        })
        .unwrap();
        let target = folder.path().join("copy.db");
        let (canceller, cancel) = Canceller::new();
        drop(canceller);
        assert_eq!(readers.copy_to(&target, false, &cancel, |_| ()), Err(StoreError::Withdrawn));
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["app.db"]);
        let (_canceller, cancel) = Canceller::new();
        assert_eq!(readers.copy_to(&target, false, &cancel, |_| ()).unwrap().path, target);
    }
}
