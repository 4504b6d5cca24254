//! The app's own schema, brought to where the app wants it.

use tidewater_actors::messages::Migrate;
use tidewater_actors::migrations::Migrations;
use tidewater_actors::sqlite::{StoreError, Unit};

use crate::database::Database;
use crate::error::Error;

/// What [`Database::migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migrated {
    /// The numbers of those that were applied now, in order.
    pub applied: Vec<i64>,
}

impl Database {
    /// Applies the migrations that this database does not have, in the order of their numbers. Each is one transaction of
    /// the writer's: it is done and recorded, or nothing of it is. Writes that were sent before come before it, and a table
    /// that it creates or changes is tracked from the same transaction on.
    ///
    /// A migration is a script of SQL, with any number of statements. Within one
    /// - what the writer refuses in a write is refused (`COMMIT`, `ATTACH`, `VACUUM`, `PRAGMA`), before anything is applied;
    /// - foreign keys are not enforced statement by statement and their actions do not run, so that a table can be made anew
    ///   (create, copy, drop, rename) without emptying its children; rows that are left without a parent are refused at the end;
    /// - rows that are inserted, changed or deleted go to the cloud like any others; a table that was made anew is compared
    ///   with the cloud row by row, and what waited to be sent still waits. Rows that the copy leaves out come back from the
    ///   cloud: their absence is not taken for a deletion. Delete them first.
    ///
    /// A writer that dies meanwhile is not the caller's business, as in [`write`](Self::write). Dropping the future leaves the
    /// rest for the next call.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), Box<dyn std::error::Error>> {
    /// use tidewater::Migrations;
    ///
    /// // Compiled in (in an app: `include_str!("../migrations/0001_notes.sql")`) …
    /// let notes = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL)";
    /// db.migrate(&Migrations::new([(1, "0001_notes.sql", notes)])?).await?;
    /// // … or from a folder.
    /// let migrated = db.migrate(&Migrations::from_dir("migrations")?).await?;
    /// println!("{} applied", migrated.applied.len());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Migration`] says which file, where, and what helps; those before it stay applied, and running it again
    /// goes on from there.
    pub async fn migrate(&self, migrations: &Migrations) -> Result<Migrated, Error> {
        let mut migrated = Migrated::default();
        loop {
            let message = |unit, answer| Migrate { unit, migrations: migrations.clone(), answer };
            match self.unit(Unit::new([]), message).await {
                Ok(written) => match written.results.as_slice() {
                    [] => return Ok(migrated),
                    results => {
                        migrated.applied.extend(results.iter().map(|result| result.last_insert_rowid));
                    }
                },
                // Another program has changed something between the look and the lock.
                Err(Error::Store(StoreError::SchemaChanged)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
