//! `[tables.NAME]`: what is set for single tables.
//!
//! Their names may be anything that SQLite takes, so they are kept apart from the other keys: `tables.NAME.KEY` begins
//! with its section and ends with its key, and what is between the first dot and the last is the name. The keys that exist,
//! and their values, are those that `config/default.toml` has for the table [`ANY`].

use std::collections::BTreeMap;

use config::{Value, ValueKind};
use tidewater_actors::core::rules::{TableRule, TableRules};

use super::check::Reader;
use super::sources::Layer;
use super::{Direction, Policy, SettingsError, TableSettings, TablesSettings};

/// The section.
pub(super) const SECTION: &str = "tables";

/// How the built-in file calls the table that stands for every one.
pub(super) const ANY: &str = "NAME";

/// One key of one table, as a layer has it.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) value: Value,
}

impl Said {
    pub(super) fn new(table: &str, key: &str, value: Value) -> Self {
        Self { table: table.to_owned(), key: key.to_owned(), value }
    }

    pub(super) fn full_key(&self) -> String {
        full_key(&self.table, &self.key)
    }
}

/// `tables.NAME.KEY`.
pub(super) fn full_key(table: &str, key: &str) -> String {
    format!("{SECTION}.{table}.{key}")
}

/// Name and key of `tables.NAME.KEY`.
pub(super) fn split(key: &str) -> Option<(&str, &str)> {
    let (table, key) = key.strip_prefix(SECTION)?.strip_prefix('.')?.rsplit_once('.')?;
    (!table.is_empty()).then_some((table, key))
}

/// The key that `TIDEWATER_TABLES__<rest>` means. The name stays as it is, because SQLite knows only ASCII's upper case.
pub(super) fn key_of_variable(rest: &str) -> String {
    match rest.rsplit_once("__") {
        Some((table, key)) => full_key(table, &key.to_lowercase()),
        None => format!("{SECTION}.{rest}"),
    }
}

/// What a file's section says. A table of which nothing is said is none.
pub(super) fn said(section: Value, origin: &str) -> Result<Vec<Said>, SettingsError> {
    let unknown = |key: String| SettingsError::UnknownKey { key, origin: origin.to_owned(), nearest: None };
    let ValueKind::Table(tables) = section.kind else { return Err(unknown(SECTION.to_owned())) };
    let mut all = vec![];
    for (table, value) in tables {
        match value.kind {
            // A dot in a key would make it another table's.
            ValueKind::Table(keys) if !table.is_empty() && !keys.keys().any(|key| key.contains('.')) => {
                all.extend(keys.into_iter().map(|(key, value)| Said { table: table.clone(), key, value }));
            }
            _ => return Err(unknown(format!("{SECTION}.{table}"))),
        }
    }
    // The parser's order is none.
    all.sort_by(|a, b| (&a.table, &a.key).cmp(&(&b.table, &b.key)));
    Ok(all)
}

/// One file that calls a table in two ways may mean two things by it.
pub(super) fn require_one_spelling(said: &[Said], origin: &str) -> Result<(), SettingsError> {
    let mut spellings: BTreeMap<String, &str> = BTreeMap::new();
    for Said { table, .. } in said {
        let first = *spellings.entry(table.to_ascii_lowercase()).or_insert(table);
        if first != table {
            return Err(SettingsError::OneTableTwice {
                first: first.to_owned(),
                second: table.clone(),
                origin: origin.to_owned(),
            });
        }
    }
    Ok(())
}

impl TablesSettings {
    pub(super) fn read(layers: &[Layer], reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for said in layers.iter().filter(|layer| !layer.for_every_table).flat_map(|layer| &layer.tables) {
            // As the strongest that names it writes it.
            names.insert(said.table.to_ascii_lowercase(), said.table.clone());
        }
        // Somebody's table may really be called as the one that stands for all.
        let built_in = Reader::new(layers.get(..1).unwrap_or_default());
        let others = TableSettings::read(&built_in, ANY)?;
        reader.asked.borrow_mut().extend(built_in.asked.into_inner());
        let named = names
            .into_iter()
            .map(|(folded, name)| Ok((folded, TableSettings::read(reader, &name)?)))
            .collect::<Result<_, SettingsError>>()?;
        Ok(Self { named, others })
    }

    /// Who wins where, as others say it; nothing else of theirs.
    pub(super) fn take_policies(&mut self, others: &Self) {
        let names = others.named.iter().map(|(folded, table)| (folded.clone(), table.name.clone()));
        for (folded, name) in names.collect::<Vec<_>>() {
            self.named.entry(folded).or_insert_with(|| TableSettings { name, ..self.others.clone() });
        }
        for (folded, table) in &mut self.named {
            table.conflicts = others.of(folded).conflicts;
        }
        self.others.conflicts = others.others.conflicts;
    }

    /// As the actors take them.
    pub(crate) fn rules(&self) -> TableRules {
        self.named.iter().map(|(name, table)| (name.clone(), table.rule())).collect()
    }
}

impl TableSettings {
    fn rule(&self) -> TableRule {
        TableRule {
            direction: self.direction,
            filter: self.filter.clone(),
            left_out: self.columns_left_out.clone(),
        }
    }

    fn read(reader: &Reader<'_>, name: &str) -> Result<Self, SettingsError> {
        let directions =
            [Direction::Both, Direction::Push, Direction::Pull, Direction::None].map(|it| (it.word(), it));
        let policies = [Policy::Newest, Policy::Local, Policy::Cloud].map(|it| (it.word(), it));
        Ok(Self {
            name: name.to_owned(),
            direction: reader.word(&full_key(name, "direction"), &directions)?,
            filter: reader
                .text(&full_key(name, "where"), "a condition in PostgreSQL's words, or nothing")?
                .map(|(text, _)| text)
                .filter(|text| !text.trim().is_empty()),
            columns_left_out: reader.names(&full_key(name, "columns_left_out"), "the names of columns")?,
            conflicts: reader.word(&full_key(name, "conflicts"), &policies)?,
        })
    }
}
