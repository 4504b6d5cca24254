//! What is set for single tables, beside what they are: `[tables.NAME]` of the settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::direction::Direction;

/// What is set for one table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TableRule {
    /// Which way its rows go.
    pub direction: Direction,
    /// Which of the cloud's rows come home: a condition on the cloud's columns, in PostgreSQL's words. None: all of them.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// Columns that are neither sent nor pulled.
    pub left_out: Vec<String>,
}

/// What is set for single tables. Names are compared as SQLite does, whatever the case of ASCII's letters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRules(BTreeMap<String, TableRule>);

impl TableRules {
    /// What holds for a table, whether something is set for it or not.
    pub fn of(&self, table: &str) -> TableRule {
        self.0.get(&table.to_ascii_lowercase()).cloned().unwrap_or_default()
    }

    /// The tables for which something is set, in lower case.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, TableRule)> for TableRules {
    fn from_iter<I: IntoIterator<Item = (String, TableRule)>>(rules: I) -> Self {
        Self(rules.into_iter().map(|(table, rule)| (table.to_ascii_lowercase(), rule)).collect())
    }
}
