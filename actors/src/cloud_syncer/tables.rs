//! What is set for single tables, as far as it concerns a cycle; and tables that this file gets from the cloud.

use super::*;
use crate::core::direction::Direction;
use crate::core::from_cloud::{Wanted, choose, new_tables};
use crate::messages::{GetNames, MakeTables};
use crate::sqlite::Names;

/// The tables whose rows are not sent, by id, with the reason for whoever waits for one of them.
pub(super) fn not_sent(tables: &[Table]) -> HashMap<i64, String> {
    let direction = |table: &Table| table.rule.direction;
    tables
        .iter()
        .filter(|table| !direction(table).sends())
        .map(|table| {
            let word = direction(table).word();
            (
                table.id,
                format!("table {}: what is written here stays here, its direction is {word}", table.name),
            )
        })
        .collect()
}

impl Cycle {
    /// Makes the tables that this file wants of the cloud and lacks, with the first cycle, and as long as it lacks some at growing
    /// intervals. The first sync of each, which follows, fills it.
    pub(super) async fn make_tables(&mut self, session: &CloudSession) -> Step<()> {
        let last = self.memory.lacks_tables;
        let due = last.map_or(self.memory.prepared.is_none(), |(when, _)| Instant::now() >= when);
        if !due {
            return Ok(());
        }
        let later = Some(again(last, &self.options.pace));
        let Some(wanted) = self.parts.wanted.get().cloned() else {
            self.memory.lacks_tables = later;
            return Ok(());
        };
        self.memory.lacks_tables = None;
        if wanted == Wanted::Nothing {
            return Ok(());
        }
        let Names { tables, taken } = self.ask(GetNames).await?;
        let is_here = |name: &String| tables.iter().any(|table| table.eq_ignore_ascii_case(name));
        match &wanted {
            Wanted::WhenEmpty if !tables.is_empty() => return Ok(()),
            Wanted::Named(names) if names.iter().all(is_here) => return Ok(()),
            _ => {}
        }
        // Some device may bring them there at any time.
        self.memory.lacks_tables = later;
        let offers = session.offers().await?;
        let (chosen, lines) = choose(&wanted, &offers, &tables, &self.parts.rules);
        lines.into_iter().for_each(|line| self.once(line));
        let mut definitions = vec![];
        for offer in &chosen {
            definitions.extend(session.definition(&offer.name).await?);
        }
        let (_, here) = self.ask(GetTables).await?;
        let (new, lines) = new_tables(&definitions, &here, &taken);
        lines.into_iter().for_each(|line| self.once(line));
        if new.is_empty() {
            return Ok(());
        }
        let when_empty = wanted == Wanted::WhenEmpty;
        let tables = new.iter().map(|(table, _)| table.clone()).collect();
        let outcome = self.ask(MakeTables { tables, when_empty }).await?;
        for (table, why) in &outcome.refused {
            self.once(format!("table {table} of the cloud is not made here: {why}"));
        }
        for (table, lacks) in new.iter().filter(|(table, _)| outcome.made.contains(&table.name)) {
            let lacks = match lacks.as_slice() {
                [] => String::new(),
                lacks => format!("; what it does not have here: {}", lacks.join("; ")),
            };
            info!(self.log, "table {} is made as the cloud has it{lacks}", table.name);
        }
        Ok(())
    }

    /// What a query with a table's condition was answered with. Where PostgreSQL fails over the condition, or takes too long over
    /// it, that table is left alone for a while, and the cycle begins again without it.
    pub(super) fn or_blame_filter<T>(
        &self,
        ready: &ReadyTable,
        answer: std::result::Result<T, CloudFailure>,
    ) -> std::result::Result<T, CloudFailure> {
        let Err(failure) = &answer else { return answer };
        let is_its_own = |sqlstate: &str| {
            ["22", "42", "P0"].iter().any(|class| sqlstate.starts_with(class)) || sqlstate == QUERY_CANCELED
        };
        if ready.table.rule.filter.is_some() && failure.sqlstate.as_deref().is_some_and(is_its_own) {
            let mut failed = self.parts.failed_filters.lock().unwrap_or_else(PoisonError::into_inner);
            let last = failed.get(&ready.table.id).map(|last| (last.until, last.wait));
            let (until, wait) = again(last, &self.options.pace);
            let why = format!("tables.{}.where fails on a row: {}", ready.table.name, failure.detail);
            failed.insert(ready.table.id, FailedFilter { until, wait, why });
            self.blamed.borrow_mut().insert(ready.table.id);
        }
        answer
    }

    /// Why a table is left alone for now.
    pub(super) fn failed_filter(&self, table: i64) -> Option<String> {
        let failed = self.parts.failed_filters.lock().unwrap_or_else(PoisonError::into_inner);
        let is_left_alone =
            |failed: &&FailedFilter| Instant::now() < failed.until || self.blamed.borrow().contains(&table);
        failed.get(&table).filter(is_left_alone).map(|failed| failed.why.clone())
    }

    /// The tables that are not this file's alone. Says once what is set for a table that is not there.
    pub(super) fn in_both(&self, mut tables: Vec<Table>) -> Vec<Table> {
        let is_here = |name: &str| tables.iter().any(|table| table.name.eq_ignore_ascii_case(name));
        for name in self.parts.rules.names().filter(|name| !is_here(name)) {
            let text = format!("tables.{name} is set, and no table of that name is synced");
            if self.is_new(&text) {
                info!(self.log, "{text}");
            }
        }
        for table in &tables {
            let set = self.parts.rules.of(&table.name).left_out;
            let is_column = |name: &String| table.rule.left_out.iter().any(|c| c.eq_ignore_ascii_case(name));
            for name in set.iter().filter(|name| !is_column(name)) {
                let table = &table.name;
                self.once(format!("tables.{table}.columns_left_out names {name}, which it does not have"));
            }
        }
        tables.retain(|table| table.rule.direction != Direction::None);
        tables
    }
}

impl ReadyTable {
    /// Whether rows that others wrote come home.
    pub(super) fn receives(&self) -> bool {
        self.table.rule.direction.receives()
    }
}
