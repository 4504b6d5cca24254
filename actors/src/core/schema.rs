//! What a tracked table looks like, as data.

use std::collections::BTreeMap;

use super::rules::TableRule;
use super::value::{Affinity, CloudType};

/// The most columns of a tracked table. A round is read with three columns for each of these, and SQLite's limit is 2,000.
pub const COLUMNS_MAX: usize = 600;

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
    /// A name by which SQLite's own number of a row can be set, where that is not the key: rows evict each other by it.
    pub rowid: Option<String>,
    /// Foreign keys to other tables and to itself.
    pub foreign_keys: Vec<ForeignKey>,
    /// What is set for it.
    pub rule: TableRule,
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

    /// Whether a column may hold any value as far as other rows go: it belongs to no reference, and to nothing unique.
    pub fn is_free(&self, column: usize) -> bool {
        let unique = |unique: &Unique| unique.columns.iter().any(|(c, _)| *c == column);
        !self.is_key(column)
            && !self.uniques.iter().any(unique)
            && !self.foreign_keys.iter().any(|key| key.columns.contains(&column))
    }

    /// The index of a column by its name, compared as SQLite does.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The columns that foreign keys of these tables refer to, each as they name them.
    pub fn referred_to<'a>(&self, by: impl IntoIterator<Item = &'a Table>) -> Vec<Vec<usize>> {
        by.into_iter()
            .flat_map(|child| &child.foreign_keys)
            .filter(|key| key.parent.eq_ignore_ascii_case(&self.name))
            .filter_map(|key| key.parent_columns.iter().map(|name| self.column(name)).collect())
            .collect()
    }

    /// By column, whether rows find each other by it: the primary key, and both ends of foreign keys.
    pub fn finds(&self, tables: &[Table]) -> Vec<bool> {
        let mut finds: Vec<bool> = (0..self.columns.len()).map(|c| self.is_key(c)).collect();
        let referring = self.foreign_keys.iter().map(|key| key.columns.clone());
        for c in referring.chain(self.referred_to(tables)).flatten() {
            finds[c] = true;
        }
        finds
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
    /// Whether rows that it does not show may be there all the same.
    pub hiding: Hiding,
    /// What decides over its rows: columns, constraints, policies, triggers, rights. Another value means that a row which was
    /// refused may be accepted.
    pub shape: String,
    /// Whether an inserted row is stored exactly as it is sent.
    pub plain: bool,
    /// Its columns in the catalogue's terms. Where a round finds another value, it is not the table that was prepared.
    pub definition: String,
    /// One per column of the tracked table, in the same order.
    pub columns: Vec<CloudColumn>,
}

/// What row-level security does to this role in a table of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hiding {
    /// Nothing: a row that is not shown is not there.
    None,
    /// It may hide rows, and the cloud tells whether a row is there.
    Told,
    /// It may hide rows, and nobody tells.
    Untold,
}

impl CloudTable {
    /// Its name with its schema, quoted.
    pub fn qualified(&self) -> String {
        crate::sql::cloud::qualified(&self.schema, &self.name)
    }
}

/// A column of a cloud table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudColumn {
    /// What it can hold.
    pub kind: CloudType,
    /// The type's name without length or precision, for casts that must not round.
    pub cast: String,
    /// The type's name with them, for telling what the column makes of a value.
    pub exact: String,
    /// Whether the cloud computes it: it is read, and never written.
    pub generated: bool,
    /// Whether the cloud takes NULL for it.
    pub nullable: bool,
    /// PostgreSQL's number of the column, which one that is dropped and added again does not keep.
    pub number: i16,
}

/// The positions of the tables so that parents stand before children as far as cycles allow.
///
/// Kahn's algorithm; when only cycles are left, the table goes next that can do best without its unmet parents: its columns
/// may be NULL, or they are few. Self-references do not count.
pub fn parents_first(tables: &[Table]) -> Vec<usize> {
    let position: BTreeMap<String, usize> =
        tables.iter().enumerate().map(|(at, table)| (table.name.to_ascii_lowercase(), at)).collect();
    // By parent, whether a row cannot be without one.
    let mut unmet: BTreeMap<usize, BTreeMap<usize, bool>> = BTreeMap::new();
    for (at, table) in tables.iter().enumerate() {
        let parents = unmet.entry(at).or_default();
        for key in &table.foreign_keys {
            let parent = position.get(&key.parent.to_ascii_lowercase()).copied();
            let demanded = key.columns.iter().all(|c| table.columns[*c].not_null || table.is_key(*c));
            if let Some(parent) = parent.filter(|parent| *parent != at) {
                *parents.entry(parent).or_default() |= demanded;
            }
        }
    }
    let mut order = Vec::with_capacity(tables.len());
    let need = |at: &usize, parents: &BTreeMap<usize, bool>| {
        let demanded = parents.values().filter(|demanded| **demanded).count();
        (!parents.is_empty(), demanded, parents.len(), *at)
    };
    while let Some(next) = unmet.iter().min_by_key(|(at, parents)| need(at, parents)).map(|(at, _)| *at) {
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
            rowid: None,
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
            rule: TableRule::default(),
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

    /// In a circle, whoever may be without its parent goes before whoever may not, whatever the names.
    #[test]
    fn a_circle_begins_where_it_may_be_empty() {
        let refers = |name: &str, parent: &str, not_null: bool| {
            let column =
                Column { id: 1, name: "of".into(), declared: String::new(), not_null, default: None };
            let mut table = table(name, &[parent]);
            table.columns.push(column);
            table.foreign_keys[0].columns = vec![0];
            table
        };
        for (first, second) in [(true, false), (false, true)] {
            let tables = [refers("key", "lock", first), refers("lock", "key", second)];
            assert_eq!(parents_first(&tables), if first { [1, 0] } else { [0, 1] });
        }
    }
}
