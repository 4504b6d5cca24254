//! A look at the file that changes nothing, whether a supervisor has it open, or a crash left it, or nobody.
//!
//! SQLite's read-only mode is not enough for that: it creates the `-wal` and `-shm` files where they are missing, and nobody
//! takes them away. So, by what is beside the file:
//!
//! ```text
//! -shm ─────────────────────▶ the index is read as it is (`readonly_shm`): shared with whoever has the file open; after a
//!                             crash SQLite makes one of its own in memory
//! no -shm, no log ──────────▶ nobody has it open: the file alone is all there is (`immutable`), and no lock is taken
//! no -shm, but a log ───────▶ cannot be read without making an index: not looked at
//! ```
//!
//! Somebody may begin to write meanwhile, who is not seen without a lock: then what was found is thrown away, and the look is
//! taken once more.
//!
//! The file itself is never opened but by SQLite: a process that closes a file gives up every lock that it has on it, also
//! those of its other connections.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use super::copy::integrity;
use super::*;
use crate::core::doctor::{self, Inside, Ours};

/// What a look at the file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What `doctor` makes its findings from.
    pub file: doctor::File,
    /// The tracked tables, to be compared with the cloud's.
    pub tables: Vec<Table>,
}

impl Examined {
    /// The name of this device in the cloud's ledger, if it has one.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        match &self.file {
            doctor::File::Opened(inside) => inside.ours.as_ref()?.device.as_deref(),
            _ => None,
        }
    }
}

/// Looks at the file without changing anything.
#[must_use]
pub fn examine(path: &Path, busy_timeout: Duration) -> Examined {
    let nothing = |file| Examined { file, tables: vec![] };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_missing(&error) => return nothing(doctor::File::Missing),
        Err(error) => return nothing(unusable(open_error(path, &error))),
    };
    if !metadata.is_file() {
        let (reason, remedy) = match metadata.is_dir() {
            true => ("this is a folder", "name a file in it with TIDEWATER_DATABASE"),
            false => ("this is not an ordinary file", "name another one with TIDEWATER_DATABASE"),
        };
        return nothing(doctor::File::Unusable { reason: reason.into(), remedy: remedy.into() });
    }
    let mut inside = Inside {
        bytes: metadata.len(),
        log_bytes: std::fs::metadata(Beside::of(path).log).map_or(0, |log| log.len()),
        open_to_others: open_to_others(path, &metadata).pop().map(|Notice(text)| text),
        ..Inside::default()
    };
    let looked = looking(path, busy_timeout, &Cancel::never(), |conn| {
        // The first page shows whether it is a database at all; what is wrong with others is for the integrity check.
        conn.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        let state = conn.unchecked_transaction()?;
        Ok(look_inside(&state))
    });
    let tables = match looked {
        Ok(Ok(Some((ours, tables)))) => {
            inside.ours = Some(ours);
            tables
        }
        Ok(Ok(None)) => vec![],
        Ok(Err(error)) => {
            inside.unreadable = Some(error.to_string());
            vec![]
        }
        Err(error) => return nothing(unusable(error)),
    };
    Examined { file: doctor::File::Opened(Box::new(inside)), tables }
}

/// The tables that can be synced, whether Tidewater has opened the file before or not, and why the others cannot, by what is
/// set for them. Changes nothing.
///
/// # Errors
/// When the file is not there, or cannot be read.
pub fn syncable(path: &Path, busy_timeout: Duration, rules: &TableRules) -> Result<Syncable> {
    let metadata = std::fs::metadata(path).map_err(|error| open_error(path, &error))?;
    if !metadata.is_file() {
        return Err(StoreError::Open {
            path: path.display().to_string(),
            reason: "this is not an ordinary file".into(),
            remedy: "name another one with TIDEWATER_DATABASE".into(),
        });
    }
    looking(path, busy_timeout, &Cancel::never(), |conn| {
        let state = conn.unchecked_transaction()?;
        describe_syncable(&state, rules)
    })
}

/// Tables, and why some are none.
pub type Syncable = (Vec<Table>, Vec<(String, String)>);

fn describe_syncable(conn: &Connection, rules: &TableRules) -> Result<Syncable> {
    let (mut tables, mut local) = (vec![], vec![]);
    for (name, described) in describe_all(conn, rules)? {
        match described.and_then(|table| rules::rests(&table).map_or(Ok(table), Err)) {
            Ok(table) => tables.push(table),
            Err(reason) => local.push((name, reason)),
        }
    }
    resolve_parents(&mut tables);
    Ok((tables, local))
}

/// As [`Readers::check_integrity`], without changing anything.
///
/// # Errors
/// As there.
pub fn check_integrity(
    path: &Path,
    busy_timeout: Duration,
    cancel: &Cancel,
    now: &LookingNow,
) -> Result<IntegrityReport> {
    looking(path, busy_timeout, cancel, |conn| integrity(conn, cancel, now))
}

/// What cannot be opened, in the words that the supervisor would use.
fn unusable(error: StoreError) -> doctor::File {
    let (reason, remedy) = match error {
        StoreError::Open { reason, remedy, .. } => (reason, remedy),
        StoreError::Damaged(_) => (
            "this is not a SQLite database".to_owned(),
            "restore a backup, or name another file with TIDEWATER_DATABASE".to_owned(),
        ),
        StoreError::Io(reason) | StoreError::ReadOnly(reason) => {
            (reason, "give this user the right to read it and its folder".to_owned())
        }
        error => (error.to_string(), "try again; or name another file with TIDEWATER_DATABASE".to_owned()),
    };
    doctor::File::Unusable { reason, remedy }
}

// ---------------------------------------------------------------------------------------------------------
// A connection that changes nothing
// ---------------------------------------------------------------------------------------------------------

/// What is beside the file itself, wherever the path leads.
struct Beside {
    file: PathBuf,
    log: PathBuf,
    index: PathBuf,
    journal: PathBuf,
}

impl Beside {
    fn of(path: &Path) -> Self {
        let file = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let [log, index, journal] = ["-wal", "-shm", "-journal"].map(|suffix| {
            let mut name = file.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        });
        Self { file, log, index, journal }
    }

    fn has(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// How SQLite has to open the file.
    fn mode(&self) -> Result<&'static str> {
        match (self.index.exists() && self.log.exists(), Self::has(&self.log)) {
            (true, _) => Ok("mode=ro&readonly_shm=1"),
            (false, true) => Err(StoreError::Open {
                path: self.file.display().to_string(),
                reason: "its log has no index (-shm), and only who may write can make one".into(),
                remedy: "start run_supervisor, which brings file and log together".into(),
            }),
            // SQLite looks by itself whether the journal of a program that is gone has to be played back.
            (false, false) if Self::has(&self.journal) => Ok("mode=ro"),
            (false, false) => Ok("mode=ro&immutable=1"),
        }
    }

    /// What another one is as soon as somebody writes to a file without a log.
    fn trace(&self) -> Option<(i64, i64, u64)> {
        let file = std::fs::metadata(&self.file).ok()?;
        Some((file.mtime(), file.mtime_nsec(), file.len()))
    }

    fn address(&self, mode: &str) -> String {
        let mut address = "file:".to_owned();
        for byte in self.file.as_os_str().as_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                    address.push(char::from(*byte));
                }
                byte => address += &format!("%{byte:02X}"),
            }
        }
        format!("{address}?{mode}")
    }
}

/// How often a look is taken anew because somebody began to write.
const LOOKS: usize = 5;

fn looking<T>(
    path: &Path,
    busy_timeout: Duration,
    cancel: &Cancel,
    look: impl Fn(&Connection) -> Result<T>,
) -> Result<T> {
    let beside = Beside::of(path);
    let mut looked = Err(StoreError::Busy("somebody else begins and ends to use it all the time".into()));
    for _ in 0..LOOKS {
        let mode = beside.mode()?;
        let before = beside.trace();
        looked = open(&beside.address(mode), busy_timeout).and_then(|conn| look(&conn));
        let alone = mode.contains("immutable");
        let disturbed = alone && (beside.index.exists() || beside.trace() != before)
            // It was there, and went before it could be opened.
            || !alone && !beside.index.exists() && looked.is_err();
        if !disturbed || cancel.is_cancelled() {
            break;
        }
    }
    looked
}

fn open(address: &str, busy_timeout: Duration) -> Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(address, flags)?;
    conn.busy_timeout(busy_timeout)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

// ---------------------------------------------------------------------------------------------------------
// Tidewater's part
// ---------------------------------------------------------------------------------------------------------

/// Tidewater's part, with the tracked tables; none where Tidewater has never opened the file.
fn look_inside(conn: &Connection) -> Result<Option<(Ours, Vec<Table>)>> {
    let is_there = |name: &str| -> Result<bool> {
        Ok(conn
            .prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1")?
            .exists([name])?)
    };
    if !is_there("_tidewater_meta")? {
        return Ok(None);
    }
    let mut ours = Ours {
        format: meta(conn, "format")?.unwrap_or(0),
        cloud: meta(conn, "cloud")?,
        system: meta(conn, "system")?,
        database: meta(conn, "database")?,
        device: meta(conn, "device")?,
        ..Ours::default()
    };
    let (found, local) = describe_syncable(conn, &rules::get(conn)?)?;
    ours.local = local;
    let flying = round(conn)?;
    let mut tracked = vec![];
    for mut table in found {
        let key = serde_json::Value::from(
            table.key_names().iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        );
        let id: Option<i64> = conn
            .prepare_cached("SELECT id FROM _tidewater_tables WHERE name = ?1 AND key = ?2")?
            .query_row(params![table.name, key.to_string()], |row| row.get(0))
            .optional()?;
        let Some(id) = id else {
            ours.new.push(table.name);
            continue;
        };
        table.id = id;
        let numbered = number_columns(conn, &mut table)?;
        let mut side_tables = true;
        for kind in [JOURNAL, FLIGHT, PARKED, ASIDE] {
            let name = side_table(kind, &table);
            if !is_there(&name)? {
                side_tables = false;
                ours.journal.push(format!("the table {name} is missing, which belongs to {}", table.name));
            }
        }
        // A column that nobody has numbered yet came since the last look, which makes the triggers anew.
        match trigger_state(conn, &table)? {
            Triggers::Gap => {
                ours.triggers.push(format!("table {} is without some of its triggers", table.name))
            }
            Triggers::Outdated if numbered => {
                ours.triggers.push(format!("the triggers of table {} are not as they should be", table.name));
            }
            _ => {}
        }
        if side_tables {
            look_at_entries(conn, &table, flying.is_some(), &mut ours)?;
        }
        ours.tracked.push(table.name.clone());
        tracked.push(table);
    }
    look_for_strays(conn, &mut ours)?;
    Ok(Some((ours, tracked)))
}

/// Gives the columns their numbers; whether all have one.
fn number_columns(conn: &Connection, table: &mut Table) -> Result<bool> {
    let mut all = true;
    for column in &mut table.columns {
        let id: Option<i64> = conn
            .prepare_cached(
                "SELECT id FROM _tidewater_columns WHERE table_id = ?1 AND name = ?2 AND NOT gone",
            )?
            .query_row(params![table.id, column.name], |row| row.get(0))
            .optional()?;
        all &= id.is_some();
        column.id = id.unwrap_or(0);
    }
    Ok(all)
}

/// What waits in one table, and what of it makes no sense.
fn look_at_entries(conn: &Connection, table: &Table, is_flying: bool, ours: &mut Ours) -> Result<()> {
    let amount = |kind: &str| -> Result<u64> {
        let sql = format!("SELECT count(*) FROM {}", ident(&side_table(kind, table)));
        Ok(conn.query_row(&sql, [], unsigned)?)
    };
    let (journal, flight) = (amount(JOURNAL)?, amount(FLIGHT)?);
    ours.pending += journal + flight;
    ours.in_flight += flight;
    ours.parked += amount(PARKED)?;
    for kind in [JOURNAL, FLIGHT] {
        // Without a stamp, nobody knows since when it waits.
        let sql = format!("SELECT min(stamp) FROM {} WHERE stamp > 0", ident(&side_table(kind, table)));
        let oldest: Option<i64> = conn.query_row(&sql, [], |row| row.get(0))?;
        // What is not sent waits for nothing.
        let oldest = oldest.filter(|_| table.rule.direction.sends());
        ours.oldest_us = match (ours.oldest_us, oldest) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    // S3.
    if flight > 0 && !is_flying {
        ours.journal.push(format!("table {}: {flight} under way without a round", table.name));
    }
    // Whoever says that a row was deleted is told of its return by the same triggers. An entry without a row needs no such
    // mark: it may have been evicted by a REPLACE.
    let sql = format!(
        "SELECT count(*) FROM {} AS e WHERE whole = 2 AND EXISTS (SELECT 1 FROM {} AS t WHERE {})",
        ident(&side_table(JOURNAL, table)),
        ident(&table.name),
        row_is(table, "t", |at| format!("e.k{at}")),
    );
    let returned: u64 = conn.query_row(&sql, [], unsigned)?;
    if returned > 0 {
        ours.journal.push(format!("table {}: {returned} noted as deleted, and there", table.name));
    }
    let sql = format!(
        "SELECT count(*) FROM {} WHERE epoch > (SELECT epoch FROM _tidewater_clock)",
        ident(&side_table(JOURNAL, table))
    );
    let early: u64 = conn.query_row(&sql, [], unsigned)?;
    if early > 0 {
        ours.journal.push(format!("table {}: {early} of rounds to come", table.name));
    }
    Ok(())
}

/// What waits under the numbers of tables that are not synced any more is parked; what else is there is without an owner.
fn look_for_strays(conn: &Connection, ours: &mut Ours) -> Result<()> {
    let known = query(conn, "SELECT id, name FROM _tidewater_tables", &[], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    for (id, name) in known {
        if ours.tracked.iter().any(|tracked| tracked.eq_ignore_ascii_case(&name)) {
            continue;
        }
        let parked: rusqlite::Result<u64> =
            conn.query_row(&format!("SELECT count(*) FROM _tidewater_{PARKED}_{id}"), [], unsigned);
        ours.parked += parked.unwrap_or(0);
    }
    for (name, _) in &ours.local {
        if has_triggers(conn, name)? {
            ours.triggers.push(format!("table {name} has capture triggers, and is not synced"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of any bytes is one address for SQLite, and the file that it names.
    #[test]
    fn any_path_is_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a file?mode=rwc&x=1 #é%41.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let examined = examine(&path, Duration::from_secs(1));
        assert!(matches!(examined.file, doctor::File::Opened(_)), "{examined:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
