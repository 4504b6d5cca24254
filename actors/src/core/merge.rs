//! What becomes of a pending row: what a flush sends of it, and what is left of it when the cloud's row is seen.
//!
//! Invariants:
//! - M1: a column that is not dirty follows the cloud; a dirty one whose cloud value equals its base, or equals
//!   the local value, loses nothing on either side. The columns of one reference are one value: half of one side's and half
//!   of the other's would refer to a row that nobody meant.
//! - M2: whatever else is overwritten, here now or there by the next flush, is a [`Loss`] with both values (P4).
//! - M3: what is still pending afterwards has the cloud's row as its base, so that the same change of the cloud
//!   is never reported twice.
//!
//! The policy is "last to arrive": where both sides touched a column, the local value stays and is sent.

use super::schema::Table;
use super::value::{Value, json_array};

/// A journal entry: which row is dirty, in which columns, and what the cloud held before.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Whether the cloud had this row, as far as this file knew. If not, the entry is an insert and has no base.
    pub known: bool,
    /// Whether columns that the triggers did not know may have changed as well.
    pub whole: bool,
    /// When the row was last changed here: a hybrid logical clock in microseconds since 1970.
    pub stamp: i64,
    /// The flush epoch in which the row became dirty; receipts compare it.
    pub epoch: i64,
    /// The newest entry of the cloud's feed for this row that this file has already taken into account.
    pub seen: i64,
    /// By column index: changed here.
    pub dirty: Vec<bool>,
    /// By column index: the value before the change, where `dirty`.
    pub base: Vec<Value>,
}

/// What a flush has to do in the cloud for one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The row is as the cloud knows it.
    Nothing,
    /// The cloud does not know the row.
    Insert,
    /// These columns changed, by column index.
    Update(Vec<bool>),
    /// The row is gone.
    Delete,
}

/// The change that an entry stands for, given the row as it was when the round was noted.
pub fn change(table: &Table, entry: &Entry, row: Option<&[Value]>) -> Change {
    match (entry.known, row) {
        (false, Some(_)) => Change::Insert,
        (false, None) => Change::Nothing,
        (true, None) => Change::Delete,
        (true, Some(row)) => {
            let changed: Vec<bool> = (0..table.columns.len())
                .map(|c| {
                    !table.is_key(c)
                        && if entry.dirty[c] { !entry.base[c].identical(&row[c]) } else { entry.whole }
                })
                .collect();
            if changed.contains(&true) { Change::Update(changed) } else { Change::Nothing }
        }
    }
}

/// What has to happen to the local row.
#[derive(Debug, Clone, PartialEq)]
pub enum Local {
    /// Nothing.
    Keep,
    /// These columns take the cloud's values.
    Set(Vec<usize>),
    /// The row goes.
    Delete,
    /// The cloud's row comes.
    Insert,
}

/// A value that loses.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The column; none where the row as a whole is meant, whose values are a JSON array then.
    pub column: Option<usize>,
    /// What both sides started from, where that is known.
    pub base: Option<Value>,
    /// The local value; `None` when the row is deleted here.
    pub local: Option<Value>,
    /// The cloud's value; `None` when the row is deleted there.
    pub cloud: Option<Value>,
    /// Whose is kept.
    pub kept: Side,
}

/// One side of a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This file's.
    Local,
    /// The cloud's.
    Cloud,
}

/// The outcome of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// What is still pending, if anything.
    pub entry: Option<Entry>,
    /// What happens to the local row.
    pub local: Local,
    /// What the cloud loses with the next flush.
    pub losses: Vec<Loss>,
}

/// Merges the cloud's row into a pending one. `seen` is the newest feed entry that the cloud's row contains.
pub fn merge(
    table: &Table,
    mut entry: Entry,
    local: Option<&[Value]>,
    cloud: Option<&[Value]>,
    seen: i64,
) -> Merged {
    entry.seen = entry.seen.max(seen);
    match (local, cloud) {
        (Some(local), Some(cloud)) => merge_rows(table, entry, local, cloud),
        (Some(local), None) if entry.known => match change(table, &entry, Some(local)) {
            Change::Update(dirty) => {
                // Deleted there, edited here: the edit comes back as an insert, the deletion is on record.
                let losses = columns(&dirty)
                    .map(|c| Loss {
                        column: Some(c),
                        base: entry.dirty[c].then(|| entry.base[c].clone()),
                        local: Some(local[c].clone()),
                        cloud: None,
                        kept: Side::Local,
                    })
                    .collect();
                entry.known = false;
                Merged { entry: Some(entry), local: Local::Keep, losses }
            }
            _ => Merged { entry: None, local: Local::Delete, losses: vec![] },
        },
        (Some(_), None) => Merged { entry: Some(entry), local: Local::Keep, losses: vec![] },
        (None, Some(cloud)) if entry.known => {
            let touched = |c: usize| !(entry.dirty[c] && entry.base[c].identical(&cloud[c]));
            // As a whole: with less than that nobody could bring it back.
            let whole = || Some(Value::Text(json_array(cloud)));
            let loss = || Loss { column: None, base: None, local: None, cloud: whole(), kept: Side::Local };
            let losses = if table.data_columns().any(touched) { vec![loss()] } else { vec![] };
            entry.rebase_all(table, cloud);
            Merged { entry: Some(entry), local: Local::Keep, losses }
        }
        // Deleted here before it was known whether the cloud had it; the cloud has it, and that it was deleted is on
        // record.
        (None, Some(cloud)) => {
            let row = Value::Text(json_array(cloud));
            let loss = Loss { column: None, base: None, local: None, cloud: Some(row), kept: Side::Cloud };
            Merged { entry: None, local: Local::Insert, losses: vec![loss] }
        }
        (None, None) => Merged { entry: None, local: Local::Keep, losses: vec![] },
    }
}

fn merge_rows(table: &Table, mut entry: Entry, local: &[Value], cloud: &[Value]) -> Merged {
    let mut losses = vec![];
    let mut follow = vec![];
    let refers_anew = half_changed_references(table, &entry, local);
    for c in table.data_columns() {
        let beside = refers_anew.contains(&c);
        if beside && entry.known && !entry.whole && !local[c].identical(&cloud[c]) {
            let base = Some(local[c].clone());
            let (local, cloud_value) = (base.clone(), Some(cloud[c].clone()));
            losses.push(Loss { column: Some(c), base, local, cloud: cloud_value, kept: Side::Local });
            entry.dirty[c] = true;
            entry.base[c] = cloud[c].clone();
            continue;
        }
        let ours = !entry.known || entry.dirty[c] || entry.whole;
        let base = (entry.known && entry.dirty[c]).then(|| entry.base[c].clone());
        let unchanged_here = base.as_ref().is_some_and(|base| base.identical(&local[c]));
        let unchanged_there = base.as_ref().is_some_and(|base| base.identical(&cloud[c]));
        entry.dirty[c] = false;
        if local[c].identical(&cloud[c]) {
            continue;
        }
        if !ours || unchanged_here {
            follow.push(c);
            continue;
        }
        if !unchanged_there {
            losses.push(Loss {
                column: Some(c),
                base,
                local: Some(local[c].clone()),
                cloud: Some(cloud[c].clone()),
                kept: Side::Local,
            });
        }
        entry.dirty[c] = true;
        entry.base[c] = cloud[c].clone();
    }
    entry.known = true;
    entry.whole = false;
    let pending = entry.dirty.contains(&true);
    let local = if follow.is_empty() { Local::Keep } else { Local::Set(follow) };
    Merged { entry: pending.then_some(entry), local, losses }
}

/// The columns that did not change here beside others of the same reference that did.
fn half_changed_references(table: &Table, entry: &Entry, local: &[Value]) -> Vec<usize> {
    let changed = |c: &usize| entry.dirty[*c] && !entry.base[*c].identical(&local[*c]);
    table
        .foreign_keys
        .iter()
        .filter(|key| key.columns.iter().any(changed))
        .flat_map(|key| key.columns.iter().copied())
        .filter(|c| !changed(c))
        .collect()
}

impl Entry {
    /// Every data column is dirty, on top of the cloud's row.
    fn rebase_all(&mut self, table: &Table, cloud: &[Value]) {
        for c in table.data_columns() {
            self.dirty[c] = true;
            self.base[c] = cloud[c].clone();
        }
    }
}

fn columns(set: &[bool]) -> impl Iterator<Item = usize> + '_ {
    set.iter().enumerate().filter(|(_, is_set)| **is_set).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::schema::{Column, ForeignKey};

    fn table() -> Table {
        let column = |id: i64, name: &str| Column {
            id,
            name: name.into(),
            declared: "INTEGER".into(),
            not_null: false,
            default: None,
        };
        Table {
            id: 1,
            name: "t".into(),
            columns: vec![column(1, "k"), column(2, "a"), column(3, "b")],
            key: vec![0],
            uniques: vec![],
            rowid: None,
            foreign_keys: vec![],
            rule: crate::core::rules::TableRule::default(),
        }
    }

    fn row(a: i64, b: i64) -> Vec<Value> {
        vec![Value::Integer(7), Value::Integer(a), Value::Integer(b)]
    }

    /// An entry whose dirty columns are those with a base.
    fn entry(known: bool, bases: [Option<i64>; 2]) -> Entry {
        let base = bases.map(|b| b.map_or(Value::Null, Value::Integer));
        Entry {
            known,
            whole: false,
            stamp: 1,
            epoch: 1,
            seen: 0,
            dirty: vec![false, bases[0].is_some(), bases[1].is_some()],
            base: vec![Value::Null, base[0].clone(), base[1].clone()],
        }
    }

    /// Edits of different columns both survive, and nothing is lost.
    #[test]
    fn edits_of_different_columns_both_survive() {
        let merged = merge(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&row(1, 20)), 5);
        assert_eq!(merged.local, Local::Set(vec![2]));
        assert_eq!(merged.losses, vec![]);
        let left = merged.entry.unwrap();
        assert_eq!((left.dirty[1], left.dirty[2], left.seen), (true, false, 5));
    }

    /// Of a reference of two columns one was changed here, and the cloud emptied both when the row went that it referred to:
    /// the reference stays whole, is sent whole, and what it replaces there is on record. Reported once.
    #[test]
    fn a_reference_is_not_taken_apart() {
        let mut table = table();
        table.foreign_keys = vec![ForeignKey {
            columns: vec![1, 2],
            parent: "p".into(),
            parent_columns: vec!["a".into(), "b".into()],
            on_delete: "SET NULL".into(),
            on_update: "CASCADE".into(),
        }];
        let cloud = vec![Value::Integer(7), Value::Null, Value::Null];
        let merged = merge(&table, entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&cloud), 5);
        assert_eq!(merged.local, Local::Keep);
        assert_eq!(merged.losses.iter().map(|loss| loss.column).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let left = merged.entry.unwrap();
        assert_eq!(change(&table, &left, Some(&row(10, 2))), Change::Update(vec![false, true, true]));
        assert_eq!(merge(&table, left, Some(&row(10, 2)), Some(&cloud), 5).losses, vec![]);
        // Where nothing of it was changed here, it follows.
        let untouched = merge(&table, entry(true, [Some(10), None]), Some(&row(10, 2)), Some(&cloud), 5);
        assert_eq!((untouched.entry, untouched.local), (None, Local::Set(vec![1, 2])));
    }

    /// The same column on both sides: ours is sent, theirs is on record, and the next look reports nothing.
    #[test]
    fn a_conflict_is_reported_once() {
        let merged = merge(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&row(11, 2)), 5);
        assert_eq!(merged.losses.len(), 1);
        assert_eq!(merged.losses[0].cloud, Some(Value::Integer(11)));
        let again = merge(&table(), merged.entry.unwrap(), Some(&row(10, 2)), Some(&row(11, 2)), 5);
        assert_eq!(again.losses, vec![]);
        assert!(again.entry.is_some());
    }

    /// Two inserts of the same row are no conflict.
    #[test]
    fn equal_inserts_dissolve() {
        let merged = merge(&table(), entry(false, [None, None]), Some(&row(1, 2)), Some(&row(1, 2)), 5);
        assert_eq!(merged, Merged { entry: None, local: Local::Keep, losses: vec![] });
    }

    /// An edit against a deletion comes back as an insert; an entry without an edit gives way to it.
    #[test]
    fn an_edit_outlives_a_deletion() {
        let merged = merge(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), None, 5);
        assert!(!merged.entry.unwrap().known);
        assert_eq!(merged.losses.len(), 1);
        let merged = merge(&table(), entry(true, [Some(1), None]), Some(&row(1, 2)), None, 5);
        assert_eq!(merged, Merged { entry: None, local: Local::Delete, losses: vec![] });
    }

    /// M1 to M3 over every small case: two values per place, every dirty set, presence on either side.
    #[test]
    fn the_invariants_hold_in_every_small_case() {
        let table = table();
        let values = [1, 2];
        let bases = [None, Some(1), Some(2)];
        let rows: Vec<Option<Vec<Value>>> = std::iter::once(None)
            .chain(values.iter().flat_map(|a| values.map(|b| Some(row(*a, b)))))
            .collect();
        for known in [false, true] {
            for (a, b) in bases.iter().flat_map(|a| bases.map(|b| (*a, b))) {
                for (local, cloud) in rows.iter().flat_map(|l| rows.iter().map(move |c| (l, c))) {
                    let entry = entry(known, [a, b]);
                    let case = format!("{entry:?} local {local:?} cloud {cloud:?}");
                    let merged = merge(&table, entry.clone(), local.as_deref(), cloud.as_deref(), 9);
                    let after = match (&merged.local, local, cloud) {
                        (Local::Keep, local, _) => local.clone(),
                        (Local::Set(columns), Some(local), Some(cloud)) => {
                            let mut row = local.clone();
                            columns.iter().for_each(|c| row[*c] = cloud[*c].clone());
                            Some(row)
                        }
                        (Local::Delete, ..) => None,
                        (Local::Insert, _, cloud) => cloud.clone(),
                        (Local::Set(_), ..) => panic!("sets columns of no row: {case}"),
                    };
                    // What the next flush makes of the cloud is what is here: nothing differs in silence.
                    let sent = merged.entry.as_ref().map(|e| change(&table, e, after.as_deref()));
                    let there = match (sent, &after) {
                        (Some(Change::Insert | Change::Delete), after) => after.clone(),
                        (Some(Change::Update(set)), Some(after)) => {
                            let mut row = cloud.clone().expect("an update of a row that is there");
                            columns(&set).for_each(|c| row[c] = after[c].clone());
                            Some(row)
                        }
                        _ => cloud.clone(),
                    };
                    assert_eq!(there, after, "{case}");
                    // M3: the same look again reports nothing new.
                    if let Some(entry) = merged.entry {
                        let again = merge(&table, entry, after.as_deref(), cloud.as_deref(), 9);
                        let deleted_there = cloud.is_none();
                        assert!(again.losses.is_empty() || deleted_there && !known, "{case}");
                    }
                    // M2: a cloud value that goes was either nobody's edit or is on record.
                    if let (Some(cloud), true) = (cloud, known) {
                        for (c, base) in [(1, a), (2, b)] {
                            let goes = there.as_ref().is_none_or(|there| there[c] != cloud[c]);
                            let edited_there = base.is_none_or(|base| cloud[c] != Value::Integer(base));
                            let on_record =
                                merged.losses.iter().any(|loss| loss.column.is_none_or(|at| at == c));
                            assert!(!(goes && edited_there) || on_record, "{case}");
                        }
                    }
                }
            }
        }
    }
}
