//! Applies a migration: one script, one transaction, once.
//!
//! ```text
//! what is recorded ─▶ the next one ─▶ no forbidden word in it, or in those after it
//!   ─▶ foreign keys off ─▶ BEGIN IMMEDIATE ─▶ statement after statement, as SQLite's own parser finds them
//!   ─▶ tracked ─▶ no new orphans ─▶ recorded ─▶ COMMIT ─▶ foreign keys on
//! ```
//!
//! Foreign keys are off because SQLite's way to change a table is to make it anew, and `DROP TABLE` of a parent would run
//! the actions of its children: `ON DELETE CASCADE` would empty them. What a script leaves without its parent is found
//! before the commit instead, and refused.

use std::collections::BTreeMap;

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::{Batch, Connection, TransactionBehavior, params};

use super::{
    Committing, Mark, Missing, Result, StatementResult, Store, StoreError, Unit, Written, commit, epoch,
    forbidden, lost, meta, query, refuse_temporary, schema_version, track, with_triggers,
};
use crate::migrations::{Migration, MigrationError, Migrations, Recorded};
use crate::supervision::progress;

impl Store {
    /// Applies the next of the migrations that this file does not have, as the unit; the answer's one result has its
    /// number as the rowid. No result: it has all of them.
    ///
    /// # Errors
    /// [`StoreError::Migration`]; the file is as it was.
    pub fn migrate(&mut self, unit: &Unit, migrations: &Migrations) -> Result<Written> {
        self.look()?;
        let recorded = recorded(&self.write)?;
        let Some(next) = migrations.next(&recorded)? else {
            return Ok(Written { mark: mark(&self.write)?, results: vec![] });
        };
        // Before anything is applied, also of those before a bad one.
        for migration in migrations.from(next.number) {
            refuse_forbidden(migration)?;
        }
        // Not a statement: it has no effect inside a transaction, and cannot be interrupted.
        self.write.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        let outcome = self.apply_migration(unit, next, &recorded);
        self.write.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
        outcome
    }

    fn apply_migration(&mut self, unit: &Unit, next: &Migration, known: &[Recorded]) -> Result<Written> {
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if recorded(&tx)? != known || schema_version(&tx)? != self.schema_version {
            // Another program was quicker. A table that it made anew has no triggers yet.
            return Err(StoreError::SchemaChanged);
        }
        run_script(&tx, next)?;
        if tx.is_autocommit() {
            return Err(lost());
        }
        refuse_temporary(&tx)?;
        let mark = mark(&tx)?;
        let (tables, notices) = track(&tx, Missing::IsGap)?;
        refuse_orphans(&tx, &self.apply, next)?;
        tx.execute(
            "INSERT INTO _tidewater_migrations (number, name, sha256) VALUES (?1, ?2, ?3)",
            params![next.number, next.name, next.sha256],
        )?;
        let version = schema_version(&tx)?;
        let result = StatementResult { rows_changed: 1, last_insert_rowid: next.number, rows: vec![] };
        let written = Written { mark, results: vec![result] };
        let note = written.clone();
        fail::fail_point!("sqlite.migrated");
        let committing = Committing::begin(std::slice::from_ref(unit))?;
        commit(tx)?;
        committing.done(vec![Some(note)]);
        fail::fail_point!("sqlite.noted");
        self.remember(tables, version);
        self.untold.extend(notices);
        Ok(written)
    }
}

fn mark(conn: &Connection) -> Result<Mark> {
    Ok(Mark { epoch: epoch(conn)?, parkings: meta(conn, "parkings")?.unwrap_or(0) })
}

fn recorded(conn: &Connection) -> Result<Vec<Recorded>> {
    query(conn, "SELECT number, name, sha256 FROM _tidewater_migrations ORDER BY number", &[], |row| {
        Ok(Recorded { number: row.get(0)?, name: row.get(1)?, sha256: row.get(2)? })
    })
}

/// Runs a script, statement after statement. What they answer is not looked at.
fn run_script(conn: &Connection, migration: &Migration) -> Result<()> {
    let script = migration.sql.as_str();
    let mut at = 0;
    loop {
        at += blank(&script[at..]);
        if at == script.len() {
            return Ok(());
        }
        progress();
        at += run_one(conn, migration, at)?;
    }
}

/// Runs the statement that begins at a place of the script, and says how long it is.
fn run_one(conn: &Connection, migration: &Migration, at: usize) -> Result<usize> {
    let script = &migration.sql[at..];
    if let Some(word) = forbidden(script) {
        return Err(refused(migration, at, word));
    }
    let run = || -> rusqlite::Result<usize> {
        // SQLite copies all that it is given, which adds up in a long script: it gets one statement, as far as that can be
        // told without it. Where it does not agree, it gets the rest.
        let one = &script[..statement_length(script)];
        let prepared = match Batch::new(conn, one).next() {
            Err(rusqlite::Error::SqlInputError { msg, .. }) if msg == "incomplete input" => {
                Batch::new(conn, script).next()
            }
            prepared => prepared,
        };
        let Some(mut statement) = prepared? else { return Ok(one.len()) };
        // Without parameters that is the text itself, up to the end of the statement.
        let length = statement.expanded_sql().map_or(one.len(), |sql| sql.len());
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(length)
    };
    let run = || run().map_err(|error| located(error, migration, at));
    with_triggers(conn, script, run)
}

/// An error of SQLite's with the place where it happened. A full disk, or another program's lock, stays what it is.
fn located(error: rusqlite::Error, migration: &Migration, at: usize) -> StoreError {
    let (reason, at) = match &error {
        rusqlite::Error::SqlInputError { msg, offset, .. } => {
            (msg.clone(), at + usize::try_from(*offset).unwrap_or(0))
        }
        error => (error.to_string(), at),
    };
    match StoreError::from(error) {
        StoreError::Statement(_) => {
            let line = line_of(&migration.sql, at);
            MigrationError::Failed { file: migration.name.clone(), line, reason }.into()
        }
        other => other,
    }
}

fn refused(migration: &Migration, at: usize, word: String) -> StoreError {
    let line = line_of(&migration.sql, at);
    MigrationError::Forbidden { file: migration.name.clone(), line, word }.into()
}

fn line_of(script: &str, at: usize) -> usize {
    1 + script.as_bytes()[..at.min(script.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// More rows without their parents than before are refused. What is counted is committed by nobody yet: the other
/// connection sees the file as it was.
fn refuse_orphans(tx: &Connection, before: &Connection, migration: &Migration) -> Result<()> {
    let now = orphans(tx)?;
    if now.is_empty() {
        return Ok(());
    }
    let before = orphans(before)?;
    for ((table, parent), rows) in now {
        let more = rows.saturating_sub(before.get(&(table.clone(), parent.clone())).copied().unwrap_or(0));
        if more > 0 {
            let file = migration.name.clone();
            return Err(MigrationError::Orphans { file, table, parent, rows: more }.into());
        }
    }
    Ok(())
}

/// How many rows of a table refer to rows of another one that are not there.
pub(super) fn orphans(conn: &Connection) -> Result<BTreeMap<(String, String), u64>> {
    orphans_telling(conn, |_, _| ())
}

/// The same; tells before each table how many are done of how many.
pub(super) fn orphans_telling(
    conn: &Connection,
    tell: impl Fn(usize, usize),
) -> Result<BTreeMap<(String, String), u64>> {
    let tables = query(
        conn,
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name",
        &[],
        |row| row.get::<_, String>(0),
    )?;
    let mut orphans = BTreeMap::new();
    let of = tables.len();
    for (done, table) in tables.into_iter().enumerate() {
        progress();
        tell(done, of);
        let found = query(
            conn,
            "SELECT parent, count(*) FROM pragma_foreign_key_check(?1) GROUP BY parent",
            &[table.as_str().into()],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.unsigned_abs())),
        );
        match found {
            Ok(found) => {
                orphans.extend(found.into_iter().map(|(parent, rows)| ((table.clone(), parent), rows)));
            }
            // The parent has no such key ("foreign key mismatch"): no row of the table can have one.
            Err(StoreError::Statement(why)) => {
                orphans.insert((table, why), 1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(orphans)
}

// ---------------------------------------------------------------------------------------------------------
// A look at a script before it is run
// ---------------------------------------------------------------------------------------------------------

/// Finds words that no migration may have, without a schema to parse against: as SQLite's `sqlite3_complete` tells
/// statements apart, which knows that those inside a trigger are none of their own. What it might miss is refused when its
/// turn comes, and rolls its migration back.
fn refuse_forbidden(migration: &Migration) -> Result<()> {
    let script = migration.sql.as_str();
    let mut at = 0;
    loop {
        at += blank(&script[at..]);
        if at == script.len() {
            return Ok(());
        }
        if let Some(word) = forbidden(&script[at..]) {
            return Err(refused(migration, at, word));
        }
        at += statement_length(&script[at..]);
    }
}

/// Spaces, comments and empty statements.
fn blank(script: &str) -> usize {
    let mut at = 0;
    while let Some(token) = token(&script[at..]) {
        if !matches!(token.kind, Kind::Blank | Kind::Semicolon) {
            break;
        }
        at += token.length;
    }
    at
}

/// Up to its semicolon, that included.
fn statement_length(script: &str) -> usize {
    /// What is known of the statement: the states of `sqlite3_complete`.
    #[derive(PartialEq)]
    enum Seen {
        Nothing,
        Explain,
        Create,
        Other,
        Trigger,
        TriggerSemicolon,
        TriggerEnd,
    }
    let (mut at, mut seen) = (0, Seen::Nothing);
    while let Some(Token { kind, length }) = token(&script[at..]) {
        let word = script[at..at + length].to_ascii_uppercase();
        at += length;
        seen = match (seen, kind) {
            (seen, Kind::Blank) => seen,
            (Seen::Trigger | Seen::TriggerSemicolon, Kind::Semicolon) => Seen::TriggerSemicolon,
            (_, Kind::Semicolon) => return at,
            (Seen::TriggerSemicolon, Kind::Other) if word == "END" => Seen::TriggerEnd,
            (Seen::Trigger | Seen::TriggerSemicolon | Seen::TriggerEnd, Kind::Other) => Seen::Trigger,
            (Seen::Nothing, Kind::Other) if word == "EXPLAIN" => Seen::Explain,
            (Seen::Explain, Kind::Other) if word == "QUERY" || word == "PLAN" => Seen::Explain,
            (Seen::Nothing | Seen::Explain, Kind::Other) if word == "CREATE" => Seen::Create,
            (Seen::Create, Kind::Other) if word == "TEMP" || word == "TEMPORARY" => Seen::Create,
            (Seen::Create, Kind::Other) if word == "TRIGGER" => Seen::Trigger,
            _ => Seen::Other,
        };
    }
    at
}

struct Token {
    kind: Kind,
    length: usize,
}

enum Kind {
    /// Spaces and comments.
    Blank,
    Semicolon,
    /// A word, a string, a quoted name, any other sign.
    Other,
}

fn token(script: &str) -> Option<Token> {
    let first = script.chars().next()?;
    let until =
        |from: usize, end: &str| script[from..].find(end).map_or(script.len(), |at| from + at + end.len());
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let (kind, length) = match first {
        ';' => (Kind::Semicolon, 1),
        '\u{feff}' | ' ' | '\t' | '\n' | '\r' | '\x0c' => (Kind::Blank, first.len_utf8()),
        '-' if script.starts_with("--") => (Kind::Blank, until(2, "\n")),
        '/' if script.starts_with("/*") => (Kind::Blank, until(2, "*/")),
        // A doubled quote inside is the end of one and the beginning of another, which comes to the same.
        '\'' | '"' | '`' => (Kind::Other, until(1, first.encode_utf8(&mut [0; 4]))),
        '[' => (Kind::Other, until(1, "]")),
        c if is_word(c) => (Kind::Other, script.find(|c| !is_word(c)).unwrap_or(script.len())),
        c => (Kind::Other, c.len_utf8()),
    };
    Some(Token { kind, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(script: &str) -> Vec<&str> {
        let (mut found, mut at) = (vec![], 0);
        loop {
            at += blank(&script[at..]);
            if at == script.len() {
                return found;
            }
            let length = statement_length(&script[at..]);
            found.push(&script[at..at + length]);
            at += length;
        }
    }

    /// Semicolons in strings, names, comments and triggers end no statement.
    #[test]
    fn statements_are_told_apart_as_sqlite_does() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN SELECT CASE WHEN 1 THEN 2 END; DELETE FROM b; END;";
        let explained = trigger.replace("CREATE TEMP", "EXPLAIN QUERY PLAN CREATE");
        let odd = "INSERT INTO \"a;b\" VALUES ('it''s; one', [x;y], `z;`) -- no; end\n /* nor; here */ ;";
        let script = format!("\u{feff};; -- COMMIT;\n{trigger}\n{odd}{explained} SELECT 1");
        assert_eq!(statements(&script), [trigger, odd, explained.as_str(), "SELECT 1"]);
        for open in ["SELECT 'open;", "SELECT 1 /* open;", "SELECT 1 -- open;"] {
            assert_eq!(statements(open), [open]);
        }
        assert_eq!(statements(" -- nothing\n;/**/"), [""; 0]);
    }

    /// Signs of more than one byte, and those that are none, are passed over whole.
    #[test]
    fn any_text_is_looked_at_without_harm() {
        assert_eq!(statements("é;ü"), ["é;", "ü"]);
        assert_eq!(statements("SELECT '\u{1F600}';\0;€uro"), ["SELECT '\u{1F600}';", "\0;", "€uro"]);
        assert_eq!(statements("/*é"), [""; 0]);
    }
}
