//! Tables that the file gets from the cloud's definitions.

use super::*;
use crate::core::from_cloud::NewTable;
use crate::sql::made;

/// The names in a file, by which it is known what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Its tables, tracked or not, and its views: what a table of that name would stand in the way of.
    pub tables: Vec<String>,
    /// These, and its indexes.
    pub taken: Vec<String>,
}

/// What became of tables that were to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MadeTables {
    /// Those that were.
    pub made: Vec<String>,
    /// Those that SQLite refuses, with its words.
    pub refused: Vec<(String, String)>,
}

impl Store {
    /// The names in the file that are not Tidewater's.
    pub fn names(&mut self) -> Result<Names> {
        self.look()?;
        names(&self.write)
    }

    /// Makes tables, in one transaction. Those whose names somebody else has taken meanwhile are left to him; with
    /// `when_empty`, none is made beside a table that somebody made meanwhile.
    pub fn make_tables(&mut self, tables: &[NewTable], when_empty: bool) -> Result<MadeTables> {
        self.look()?;
        let tx = self.write.transaction_with_behavior(TransactionBehavior::Immediate)?;
        same_schema(&tx, self.schema_version)?;
        let Names { tables: there, taken } = names(&tx)?;
        if when_empty && !there.is_empty() {
            return Ok(MadeTables::default());
        }
        let is_free = |table: &&NewTable| !taken.iter().any(|name| name.eq_ignore_ascii_case(&table.name));
        let mut outcome = MadeTables::default();
        for table in tables.iter().filter(is_free) {
            tx.execute_batch("SAVEPOINT tidewater_make")?;
            match make(&tx, table) {
                Ok(()) => outcome.made.push(table.name.clone()),
                Err(StoreError::Statement(why)) => {
                    tx.execute_batch("ROLLBACK TO tidewater_make")?;
                    outcome.refused.push((table.name.clone(), why));
                }
                Err(error) => return Err(error),
            }
            tx.execute_batch("RELEASE tidewater_make")?;
        }
        // Their journal is there before their first row.
        let (tables, notices) = track(&tx, Missing::IsGap)?;
        let version = schema_version(&tx)?;
        commit(tx)?;
        self.remember(tables, version);
        self.untold.extend(notices);
        Ok(outcome)
    }
}

fn make(tx: &Connection, table: &NewTable) -> Result<()> {
    tx.execute_batch(&made::create_table(table))?;
    for index in &table.indexes {
        tx.execute_batch(&made::create_index(table, index))?;
    }
    Ok(())
}

fn names(conn: &Connection) -> Result<Names> {
    let found = query(
        conn,
        "SELECT name, type IN ('table', 'view') FROM sqlite_schema WHERE type IN ('table', 'view', 'index') \
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_tidewater\\_%' ESCAPE '\\' ORDER BY name",
        &[],
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)),
    )?;
    let tables = found.iter().filter(|(_, is_table)| *is_table).map(|(name, _)| name.clone()).collect();
    Ok(Names { tables, taken: found.into_iter().map(|(name, _)| name).collect() })
}
