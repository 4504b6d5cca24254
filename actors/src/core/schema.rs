//! What a tracked table looks like, as data.

use std::collections::{BTreeMap, BTreeSet};

use super::value::{Affinity, CloudType};

/// A tracked table of the SQLite file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The number in the names of this table's journal and triggers; never used twice in a file.
    pub id: i64,
    /// Its name, in both databases.
    pub name: String,
    /// The stored columns, generated ones left out: they follow from the others.
    pub columns: Vec<Column>,
    /// Indexes into `columns`: the primary key, in key order.
    pub key: Vec<usize>,
    /// Every unique index but the primary key, as its columns.
    pub uniques: Vec<Unique>,
    /// Foreign keys to other tables and to itself.
    pub foreign_keys: Vec<ForeignKey>,
}

/// A column of a tracked table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The number in the names of the journal's columns; stable when other columns come and go.
    pub id: i64,
    /// Its name, in both databases.
    pub name: String,
    /// The type as declared, possibly empty.
    pub declared: String,
    /// Whether it refuses NULL; a primary-key column always counts so in the cloud.
    pub not_null: bool,
    /// The text of its default, as SQLite keeps it.
    pub default: Option<String>,
}

/// A unique index other than the primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unique {
    /// Indexes into the table's columns, each with its collation.
    pub columns: Vec<(usize, String)>,
    /// Whether it comes from a `UNIQUE` in the table's definition (and so exists in the cloud as well).
    pub declared: bool,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Indexes into the child's columns.
    pub columns: Vec<usize>,
    /// The parent table.
    pub parent: String,
    /// The parent's columns by name.
    pub parent_columns: Vec<String>,
    /// `CASCADE`, `SET NULL`, …, as SQLite names them.
    pub on_delete: String,
    /// The same for a changed parent key.
    pub on_update: String,
}

impl Column {
    /// What the column makes of what it is given.
    pub fn affinity(&self) -> Affinity {
        Affinity::of_declared(&self.declared)
    }
}

impl Table {
    /// Whether the column at this index belongs to the primary key.
    pub fn is_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// The indexes of the columns outside the primary key.
    pub fn data_columns(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.columns.len()).filter(|index| !self.is_key(*index))
    }

    /// The index of a column by its name, compared as SQLite does.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The names of the primary key's columns, in key order.
    pub fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|index| self.columns[*index].name.as_str()).collect()
    }
}

/// A table of the cloud, as far as it matters for one tracked table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudTable {
    /// The schema that it lives in.
    pub schema: String,
    /// Its name, which is the tracked table's.
    pub name: String,
    /// PostgreSQL's number of the table: the feed names tables by it.
    pub oid: u32,
    /// Whether the change feed covers it.
    pub feed: bool,
    /// What the feed's account of it rests on: the table and its triggers, by number. Another value means that something
    /// may have happened unseen.
    pub trace: String,
    /// Whether an inserted row is stored exactly as it is sent.
    pub plain: bool,
    /// One per column of the tracked table, in the same order.
    pub columns: Vec<CloudColumn>,
}

/// A column of a cloud table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudColumn {
    /// What it can hold.
    pub kind: CloudType,
    /// The type's name without length or precision, for casts that must not round.
    pub cast: String,
    /// PostgreSQL's number of the column, which one that is dropped and added again does not keep.
    pub number: i16,
}

/// The positions of the tables so that parents stand before children as far as cycles allow.
///
/// Kahn's algorithm; when only cycles are left, the table with the fewest unmet parents goes next.
/// Self-references do not count.
pub fn parents_first(tables: &[Table]) -> Vec<usize> {
    let position: BTreeMap<String, usize> =
        tables.iter().enumerate().map(|(at, table)| (table.name.to_ascii_lowercase(), at)).collect();
    let mut unmet: BTreeMap<usize, BTreeSet<usize>> = tables
        .iter()
        .enumerate()
        .map(|(at, table)| {
            let parents = table
                .foreign_keys
                .iter()
                .filter_map(|key| position.get(&key.parent.to_ascii_lowercase()).copied())
                .filter(|parent| *parent != at)
                .collect();
            (at, parents)
        })
        .collect();
    let mut order = Vec::with_capacity(tables.len());
    while let Some(next) = unmet.iter().min_by_key(|(at, parents)| (parents.len(), **at)).map(|(at, _)| *at) {
        unmet.remove(&next);
        for parents in unmet.values_mut() {
            parents.remove(&next);
        }
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, parents: &[&str]) -> Table {
        Table {
            id: 0,
            name: name.into(),
            columns: vec![],
            key: vec![],
            uniques: vec![],
            foreign_keys: parents
                .iter()
                .map(|parent| ForeignKey {
                    columns: vec![],
                    parent: (*parent).into(),
                    parent_columns: vec![],
                    on_delete: String::new(),
                    on_update: String::new(),
                })
                .collect(),
        }
    }

    /// Parents precede their children, self-references and cycles end nothing.
    #[test]
    fn parents_come_before_children() {
        let tables = [
            table("line", &["purchase", "Product"]),
            table("purchase", &["customer"]),
            table("product", &["product"]),
            table("customer", &[]),
            table("hen", &["egg"]),
            table("egg", &["hen"]),
        ];
        let order = parents_first(&tables);
        let at = |name: &str| order.iter().position(|i| tables[*i].name == name).unwrap();
        assert_eq!(order.len(), tables.len());
        assert!(at("customer") < at("purchase"));
        assert!(at("purchase") < at("line"));
        assert!(at("product") < at("line"));
    }
}
