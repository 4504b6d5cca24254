//! What becomes of a pending row: what a flush sends of it, and what is left of it when the cloud's row is seen.
//!
//! Invariants:
//! - M1: a column that is not dirty follows the cloud; a dirty one whose cloud value equals its base, or equals
//!   the local value, loses nothing on either side. The columns of one reference are one value: half of one side's and half
//!   of the other's would refer to a row that nobody meant.
//! - M2: whatever else is overwritten, here now or there by the next flush, is a [`Loss`] with both values (P4).
//! - M3: what is still pending afterwards has the cloud's row as its base, so that the same change of the cloud
//!   is never reported twice.
//! - M4: where both sides touched the same, the app's [`Resolver`] decides if there is one, and else the table's [`Policy`],
//!   from nothing but the two stamps. What nobody has
//!   watched here (a table that was rebuilt, a file that meets the cloud for the first time) counts as older than whatever
//!   others changed since.
//!
//! A stamp is a hybrid logical clock in microseconds since 1970 (Kulkarni et al., 2014, with its counter in the low digits): the wall
//! clock, lifted above every stamp that this file has seen, so that what was written with a change before one's eyes is newer
//! than that change, whatever the clocks say. In the cloud it is cut at the server's clock: nobody is ahead of the moment in
//! which it arrives.

use std::collections::BTreeMap;

use super::dispute::{Dispute, Resolver, Verdict};
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
    /// The newest entry of the cloud's feed for this row that this file has already taken into account; or [`Entry::UNMET`].
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
    /// Neither's: the app made a third of them.
    Neither,
}

impl Side {
    /// The word in the log of conflicts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Cloud => "cloud",
            Self::Neither => "neither",
        }
    }
}

/// Who wins where both sides touched the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The larger stamp; the cloud's of two that are equal.
    #[default]
    Newest,
    /// This file's.
    Local,
    /// The cloud's.
    Cloud,
}

/// What is known of the moment in which others changed the cloud's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theirs {
    /// The newest stamp of their changes.
    At(i64),
    /// No other device, and no plain SQL, has changed it since this file saw it: what differs was changed here, or by the cloud
    /// in answer to what this device sent.
    Before,
    /// Nobody is known to have changed it since this file saw it, some time ago: what is here counts, and what it replaces is on
    /// record.
    Untold,
    /// There is no telling: the cloud's row counts.
    Unknown,
    /// Nobody has asked yet.
    Unasked,
}

impl Theirs {
    /// From the newest stamp of others' changes that this file has not read, for a row with this entry. Before the cloud lost some
    /// of what it had, this file had all of it up to `kept_until` (0 where that never was), and the row perhaps as of later: what
    /// somebody sends again from a file that was behind that is older than what is here.
    pub fn of(stamp: i64, entry: &Entry, kept_until: i64) -> Self {
        // Where the row was edited since, the entry's stamp is the edit's.
        let kept_until = if entry.dirty.contains(&true) { kept_until } else { kept_until.max(entry.stamp) };
        if entry.is_unseen() && kept_until > 0 && stamp <= kept_until {
            Self::Untold
        } else {
            Self::At(stamp)
        }
    }
}

/// The row is in dispute, and nobody has asked for the stamp of the cloud's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecided;

/// The policies of a file's tables.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// Of tables that have none of their own.
    pub usual: Policy,
    /// By the table's name, in lower case.
    pub tables: BTreeMap<String, Policy>,
    /// The app, which is asked first.
    pub resolver: Option<Resolver>,
}

/// Who decides in one table.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    policy: Policy,
    resolver: Option<&'a Resolver>,
}

impl From<Policy> for Judge<'_> {
    fn from(policy: Policy) -> Self {
        Self { policy, resolver: None }
    }
}

impl Policies {
    /// Who decides in a table; its name is compared as SQLite does.
    pub fn of(&self, table: &Table) -> Judge<'_> {
        let policy = self.tables.get(&table.name.to_ascii_lowercase()).copied().unwrap_or(self.usual);
        Judge { policy, resolver: self.resolver.as_ref() }
    }
}

impl Policy {
    /// The word in the settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Local => "local",
            Self::Cloud => "cloud",
        }
    }
}

/// Who wins in one row.
#[derive(Debug, Clone, Copy)]
struct Decision<'a> {
    policy: Policy,
    resolver: Option<&'a Resolver>,
    ours: i64,
    theirs: Theirs,
}

impl Decision<'_> {
    /// Where one side deleted what the other changed.
    fn of_deletion(self, dispute: Dispute<'_>) -> Result<Side, Undecided> {
        match self.resolver.and_then(|resolver| resolver.decide(&dispute)) {
            Some(Verdict::Local) => Ok(Side::Local),
            Some(Verdict::Cloud) => Ok(Side::Cloud),
            Some(Verdict::Value(_)) | None => self.of_edit(),
        }
    }

    /// Where both changed the same column: whose it is, and the value if it is neither's.
    fn of_column(self, dispute: Dispute<'_>, c: usize) -> Result<(Side, Option<Value>), Undecided> {
        let table = dispute.table;
        // A reference is one value, however many columns it has; nobody is asked about a part of it.
        let is_part = table.foreign_keys.iter().any(|key| key.columns.len() > 1 && key.columns.contains(&c));
        let resolver = self.resolver.filter(|_| !is_part);
        let (Some(local), Some(cloud)) = (dispute.local(), dispute.cloud()) else {
            return Ok((self.of_edit()?, None));
        };
        match resolver.and_then(|resolver| resolver.decide(&dispute)) {
            Some(Verdict::Local) => Ok((Side::Local, None)),
            Some(Verdict::Cloud) => Ok((Side::Cloud, None)),
            Some(Verdict::Value(value)) if value.identical(local) => Ok((Side::Local, None)),
            Some(Verdict::Value(value)) if value.identical(cloud) => Ok((Side::Cloud, None)),
            Some(Verdict::Value(value)) if table.is_free(c) => Ok((Side::Neither, Some(value))),
            Some(Verdict::Value(_)) | None => Ok((self.of_edit()?, None)),
        }
    }

    /// Where what was changed here was changed at the entry's stamp.
    fn of_edit(self) -> Result<Side, Undecided> {
        self.by_stamps(|theirs| self.ours > theirs)
    }

    /// Where it was changed at some time, if at all: whoever has changed it since this file saw it knows better.
    fn of_unseen(self) -> Result<Side, Undecided> {
        self.by_stamps(|_| false)
    }

    fn by_stamps(self, is_ours_newer: impl Fn(i64) -> bool) -> Result<Side, Undecided> {
        let is_ours = match (self.policy, self.theirs) {
            (Policy::Local, _) => true,
            (_, Theirs::Unasked) => return Err(Undecided),
            (_, Theirs::Before | Theirs::Untold) => true,
            (Policy::Cloud, _) | (_, Theirs::Unknown) => false,
            (Policy::Newest, Theirs::At(theirs)) => is_ours_newer(theirs),
        };
        Ok(if is_ours { Side::Local } else { Side::Cloud })
    }

    /// Whether nobody has changed the row in the cloud since this file saw it.
    fn is_unchanged_there(self) -> bool {
        self.theirs == Theirs::Before
    }
}

/// The outcome of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// What is still pending, if anything.
    pub entry: Option<Entry>,
    /// What happens to the local row.
    pub local: Local,
    /// What is lost: here now, or in the cloud with the next flush.
    pub losses: Vec<Loss>,
    /// By column index: values that neither side had, which the row takes here. They are pending.
    pub values: Vec<(usize, Value)>,
}

/// The cloud's row, as it meets a pending one.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The row, or none where it is deleted.
    pub row: Option<&'a [Value]>,
    /// The newest feed entry that it contains.
    pub newest: i64,
    /// When others changed it.
    pub theirs: Theirs,
}

/// Merges the cloud's row into a pending one.
///
/// # Errors
/// [`Undecided`], where the outcome depends on a stamp that nobody has asked for.
pub fn merge<'a>(
    table: &Table,
    judge: impl Into<Judge<'a>>,
    mut entry: Entry,
    local: Option<&[Value]>,
    cloud: Seen<'_>,
) -> Result<Merged, Undecided> {
    let Judge { policy, resolver } = judge.into();
    let decision = Decision { policy, resolver, ours: entry.stamp, theirs: cloud.theirs };
    // As a whole: with less than that nobody could bring it back.
    let whole = |row: &[Value]| Some(Value::Text(json_array(row)));
    let loss = |local, cloud, kept| Loss { column: None, base: None, local, cloud, kept };
    let newest = cloud.newest;
    let (here, there) = (local, cloud.row);
    let mut merged = match (local, cloud.row) {
        (Some(local), Some(cloud)) => merge_rows(table, entry, local, cloud, decision)?,
        (Some(local), None) if entry.known => match change(table, &entry, Some(local)) {
            Change::Update(dirty) => {
                match decision.of_deletion(Dispute::of_row(table, &entry, here, there))? {
                    Side::Local | Side::Neither => {
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
                        Merged { entry: Some(entry), local: Local::Keep, losses, values: vec![] }
                    }
                    Side::Cloud => {
                        let losses = vec![loss(whole(local), None, Side::Cloud)];
                        Merged { entry: None, local: Local::Delete, losses, values: vec![] }
                    }
                }
            }
            _ => Merged { entry: None, local: Local::Delete, losses: vec![], values: vec![] },
        },
        (Some(local), None) if entry.whole => {
            // The cloud had it perhaps. Only somebody's deletion says that it did: what is missing is not guessed to be one.
            let is_wanted = matches!(cloud.theirs, Theirs::Before | Theirs::Untold | Theirs::Unknown)
                || (if entry.dirty.contains(&true) { decision.of_edit()? } else { decision.of_unseen()? })
                    == Side::Local;
            if is_wanted {
                let is_deleted = matches!(cloud.theirs, Theirs::At(_));
                let losses = if is_deleted { vec![loss(whole(local), None, Side::Local)] } else { vec![] };
                Merged { entry: Some(entry), local: Local::Keep, losses, values: vec![] }
            } else {
                Merged {
                    entry: None,
                    local: Local::Delete,
                    losses: vec![loss(whole(local), None, Side::Cloud)],
                    values: vec![],
                }
            }
        }
        (Some(_), None) => Merged { entry: Some(entry), local: Local::Keep, losses: vec![], values: vec![] },
        (None, Some(cloud)) if entry.known => {
            let touched = |c: usize| !(entry.dirty[c] && entry.base[c].identical(&cloud[c]));
            let is_disputed = table.data_columns().any(touched);
            if is_disputed
                && decision.of_deletion(Dispute::of_row(table, &entry, here, there))? == Side::Cloud
            {
                let losses = vec![loss(None, whole(cloud), Side::Cloud)];
                return Ok(Merged { entry: None, local: Local::Insert, losses, values: vec![] });
            }
            let losses = if is_disputed { vec![loss(None, whole(cloud), Side::Local)] } else { vec![] };
            entry.rebase_all(table, cloud);
            Merged { entry: Some(entry), local: Local::Keep, losses, values: vec![] }
        }
        // Deleted here before it was known whether the cloud had it; the cloud has it, and that it was deleted is on
        // record.
        (None, Some(cloud)) => {
            let losses = vec![loss(None, whole(cloud), Side::Cloud)];
            Merged { entry: None, local: Local::Insert, losses, values: vec![] }
        }
        (None, None) => Merged { entry: None, local: Local::Keep, losses: vec![], values: vec![] },
    };
    if let Some(entry) = &mut merged.entry {
        entry.seen = entry.seen.max(newest);
    }
    Ok(merged)
}

/// What became of a column that differs, since both sides had the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Only the cloud changed it.
    Follow,
    /// Only this file changed it.
    Ours,
    /// Both did.
    Disputed,
    /// Nobody has watched it here: this file changed it at some time, unless others did.
    Unseen,
}

fn merge_rows(
    table: &Table,
    mut entry: Entry,
    local: &[Value],
    cloud: &[Value],
    decision: Decision<'_>,
) -> Result<Merged, Undecided> {
    let is_unseen = entry.is_unseen();
    let fate = |c: usize| {
        let base = ((entry.known || is_unseen) && entry.dirty[c]).then(|| &entry.base[c]);
        let is_changed_here = !entry.known || entry.dirty[c] || entry.whole;
        match base {
            None if is_unseen => Fate::Unseen,
            Some(base) if base.identical(&local[c]) => {
                if is_unseen {
                    Fate::Unseen
                } else {
                    Fate::Follow
                }
            }
            _ if !is_changed_here => Fate::Follow,
            Some(base) if base.identical(&cloud[c]) => Fate::Ours,
            _ => Fate::Disputed,
        }
    };
    let differs = |c: &usize| !local[*c].identical(&cloud[*c]);
    let fates: BTreeMap<usize, Fate> = table.data_columns().filter(differs).map(|c| (c, fate(c))).collect();
    // By column that differs: whether what is here stays.
    let mut stays = BTreeMap::new();
    let mut values = vec![];
    for (c, fate) in &fates {
        stays.insert(
            *c,
            match fate {
                Fate::Follow => false,
                Fate::Ours => true,
                Fate::Disputed => {
                    let (local, cloud) = (Some(local), Some(cloud));
                    let dispute = Dispute { table, column: Some(*c), entry: &entry, local, cloud };
                    let (side, value) = decision.of_column(dispute, *c)?;
                    values.extend(value.map(|value| (*c, value)));
                    side != Side::Cloud
                }
                Fate::Unseen => decision.of_unseen()? == Side::Local,
            },
        );
    }
    // A reference of which a part would stay and a part follow is one side's as a whole. What this moves, it moves to the
    // winner's side, and so it ends.
    while let Some(key) = table.foreign_keys.iter().find(|key| {
        let mut of = key.columns.iter().filter_map(|c| stays.get(c));
        of.next().is_some_and(|first| of.any(|other| other != first))
    }) {
        let is_ours = decision.of_edit()? == Side::Local;
        for c in &key.columns {
            stays.entry(*c).and_modify(|stays| *stays = is_ours);
        }
    }
    let (mut losses, mut follow) = (vec![], vec![]);
    for c in table.data_columns() {
        let Some(fate) = fates.get(&c) else {
            entry.dirty[c] = false;
            continue;
        };
        let base = match fate {
            Fate::Follow => Some(local[c].clone()),
            _ => ((entry.known || is_unseen) && entry.dirty[c]).then(|| entry.base[c].clone()),
        };
        let is_lost = match (fate, stays[&c]) {
            (Fate::Disputed, _) | (Fate::Follow, true) | (Fate::Ours, false) => true,
            // That what was here when this file saw it last is still there is no loss.
            (Fate::Unseen, stays) => !stays || !decision.is_unchanged_there(),
            (Fate::Follow, false) | (Fate::Ours, true) => false,
        };
        if is_lost {
            let kept = match stays[&c] {
                _ if values.iter().any(|(made, _)| *made == c) => Side::Neither,
                true => Side::Local,
                false => Side::Cloud,
            };
            let (local, cloud) = (Some(local[c].clone()), Some(cloud[c].clone()));
            losses.push(Loss { column: Some(c), base, local, cloud, kept });
        }
        entry.dirty[c] = stays[&c];
        if stays[&c] {
            entry.base[c] = cloud[c].clone();
        } else {
            follow.push(c);
        }
    }
    entry.known = true;
    entry.whole = false;
    if let (false, Theirs::At(theirs)) = (values.is_empty(), decision.theirs) {
        // Made of both, and so later than both.
        entry.stamp = entry.stamp.max(theirs.saturating_add(1));
    }
    let pending = entry.dirty.contains(&true);
    let local = if follow.is_empty() { Local::Keep } else { Local::Set(follow) };
    Ok(Merged { entry: pending.then_some(entry), local, losses, values })
}

impl Entry {
    /// What `seen` is of a row that was there before anybody watched, until it has met the cloud's.
    pub const UNMET: i64 = -1;

    /// Whether columns that are not dirty may have been changed at any time.
    fn is_unseen(&self) -> bool {
        !self.known && (self.whole || self.seen == Self::UNMET)
    }

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

    /// What somebody sends again, as it was before this file had it last, is no change since; what is younger is one. A row that
    /// was sent later than that is younger itself, unless it was edited since, which says nothing of its other columns.
    #[test]
    fn what_is_sent_again_is_as_old_as_the_file_that_sends_it() {
        let mut entry = Entry {
            known: false,
            whole: true,
            stamp: 0,
            epoch: 0,
            seen: 0,
            dirty: vec![false; 3],
            base: vec![Value::Null; 3],
        };
        assert_eq!(Theirs::of(5, &entry, 0), Theirs::At(5));
        assert_eq!([5, 6].map(|stamp| Theirs::of(stamp, &entry, 5)), [Theirs::Untold, Theirs::At(6)]);
        entry.stamp = 7;
        assert_eq!([7, 8].map(|stamp| Theirs::of(stamp, &entry, 5)), [Theirs::Untold, Theirs::At(8)]);
        entry.dirty[1] = true;
        assert_eq!([5, 6].map(|stamp| Theirs::of(stamp, &entry, 5)), [Theirs::Untold, Theirs::At(6)]);
        entry.known = true;
        assert_eq!(Theirs::of(5, &entry, 5), Theirs::At(5));
    }

    fn row(a: i64, b: i64) -> Vec<Value> {
        vec![Value::Integer(7), Value::Integer(a), Value::Integer(b)]
    }

    /// Who wins is settled beforehand: in a dispute this side does.
    fn won_by(
        winner: Side,
        table: &Table,
        entry: Entry,
        local: Option<&[Value]>,
        cloud: Option<&[Value]>,
    ) -> Merged {
        let theirs = match winner {
            Side::Local => Theirs::Before,
            Side::Cloud | Side::Neither => Theirs::Unknown,
        };
        merge(table, Policy::Newest, entry, local, Seen { row: cloud, newest: 5, theirs }).unwrap()
    }

    /// This file wins.
    fn ours(table: &Table, entry: Entry, local: Option<&[Value]>, cloud: Option<&[Value]>) -> Merged {
        won_by(Side::Local, table, entry, local, cloud)
    }

    /// The cloud wins.
    fn theirs(table: &Table, entry: Entry, local: Option<&[Value]>, cloud: Option<&[Value]>) -> Merged {
        won_by(Side::Cloud, table, entry, local, cloud)
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
        let merged = ours(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&row(1, 20)));
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
        let merged = ours(&table, entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&cloud));
        assert_eq!(merged.local, Local::Keep);
        assert_eq!(merged.losses.iter().map(|loss| loss.column).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let left = merged.entry.unwrap();
        assert_eq!(change(&table, &left, Some(&row(10, 2))), Change::Update(vec![false, true, true]));
        assert_eq!(ours(&table, left, Some(&row(10, 2)), Some(&cloud)).losses, vec![]);
        // Where nothing of it was changed here, it follows.
        let untouched = ours(&table, entry(true, [Some(10), None]), Some(&row(10, 2)), Some(&cloud));
        assert_eq!((untouched.entry, untouched.local), (None, Local::Set(vec![1, 2])));
    }

    /// The same column on both sides: ours is sent, theirs is on record, and the next look reports nothing.
    #[test]
    fn a_conflict_is_reported_once() {
        let merged = ours(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&row(11, 2)));
        assert_eq!(merged.losses.len(), 1);
        assert_eq!(merged.losses[0].cloud, Some(Value::Integer(11)));
        let again = ours(&table(), merged.entry.unwrap(), Some(&row(10, 2)), Some(&row(11, 2)));
        assert_eq!(again.losses, vec![]);
        assert!(again.entry.is_some());
    }

    /// Two inserts of the same row are no conflict.
    #[test]
    fn equal_inserts_dissolve() {
        let merged = ours(&table(), entry(false, [None, None]), Some(&row(1, 2)), Some(&row(1, 2)));
        assert_eq!(merged, Merged { entry: None, local: Local::Keep, losses: vec![], values: vec![] });
    }

    /// An edit against a deletion comes back as an insert; an entry without an edit gives way to it.
    #[test]
    fn an_edit_outlives_a_deletion() {
        let merged = ours(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), None);
        assert!(!merged.entry.unwrap().known);
        assert_eq!(merged.losses.len(), 1);
        let merged = ours(&table(), entry(true, [Some(1), None]), Some(&row(1, 2)), None);
        assert_eq!(merged, Merged { entry: None, local: Local::Delete, losses: vec![], values: vec![] });
    }

    /// The same column on both sides, and the cloud's is newer: it comes here, and what was here is on record. Edits of
    /// other columns stay.
    #[test]
    fn what_the_cloud_wins_comes_here_and_ours_is_on_record() {
        let merged = theirs(&table(), entry(true, [Some(1), Some(2)]), Some(&row(10, 20)), Some(&row(11, 2)));
        assert_eq!(merged.local, Local::Set(vec![1]));
        assert_eq!((&merged.losses[..], merged.losses[0].kept), (&merged.losses[..1], Side::Cloud));
        assert_eq!(merged.losses[0].local, Some(Value::Integer(10)));
        assert_eq!(merged.entry.unwrap().dirty, [false, false, true]);
        // A deletion there takes the whole row along, a deletion here brings it back.
        let gone = theirs(&table(), entry(true, [Some(1), None]), Some(&row(10, 2)), None);
        assert_eq!((gone.entry, gone.local, gone.losses.len()), (None, Local::Delete, 1));
        let back = theirs(&table(), entry(true, [Some(1), Some(2)]), None, Some(&row(11, 2)));
        assert_eq!((back.entry, back.local, back.losses.len()), (None, Local::Insert, 1));
    }

    /// A reference that both sides changed in part goes over to the cloud's as a whole.
    #[test]
    fn a_lost_reference_is_lost_as_a_whole() {
        let mut table = table();
        table.foreign_keys = vec![ForeignKey {
            columns: vec![1, 2],
            parent: "p".into(),
            parent_columns: vec!["a".into(), "b".into()],
            on_delete: "NO ACTION".into(),
            on_update: "NO ACTION".into(),
        }];
        // Here the first was changed, there the second.
        let merged = theirs(&table, entry(true, [Some(1), None]), Some(&row(10, 2)), Some(&row(1, 20)));
        assert_eq!((merged.entry, merged.local), (None, Local::Set(vec![1, 2])));
        assert_eq!(merged.losses.iter().map(|loss| loss.column).collect::<Vec<_>>(), [Some(1)]);
    }

    /// What nobody watched replaces the cloud's in silence only where it is certain that nobody has changed that.
    #[test]
    fn what_was_not_watched_replaces_only_what_was_seen_in_silence() {
        let merged = |theirs| {
            let entry = Entry { whole: true, ..entry(false, [None, None]) };
            let seen = Seen { row: Some(&row(11, 2)), newest: 5, theirs };
            merge(&table(), Policy::Newest, entry, Some(&row(10, 2)), seen).unwrap()
        };
        let kept = |theirs| merged(theirs).losses.iter().map(|loss| loss.kept).collect::<Vec<_>>();
        assert_eq!(kept(Theirs::Before), []);
        assert_eq!(kept(Theirs::Untold), [Side::Local]);
        assert_eq!(kept(Theirs::Unknown), [Side::Cloud]);
        // Whoever has changed it since knows better, whenever that was.
        assert_eq!(kept(Theirs::At(-1)), [Side::Cloud]);
        assert_eq!(merged(Theirs::Untold).local, Local::Keep);
        assert!(merged(Theirs::Untold).entry.is_some());
    }

    /// The larger stamp wins, the cloud's of two that are equal; the other policies ask no clock; and without an answer
    /// nothing is decided, unless there is nothing to decide.
    #[test]
    fn the_policy_decides_by_the_stamps_alone() {
        let decided = |policy, at| {
            let seen = Seen { row: Some(&row(11, 2)), newest: 5, theirs: at };
            merge(
                &table(),
                policy,
                Entry { stamp: 100, ..entry(true, [Some(1), None]) },
                Some(&row(10, 2)),
                seen,
            )
            .map(|merged| merged.losses[0].kept)
        };
        assert_eq!(decided(Policy::Newest, Theirs::At(99)), Ok(Side::Local));
        assert_eq!(decided(Policy::Newest, Theirs::At(100)), Ok(Side::Cloud));
        assert_eq!(decided(Policy::Newest, Theirs::Before), Ok(Side::Local));
        assert_eq!(decided(Policy::Newest, Theirs::Untold), Ok(Side::Local));
        assert_eq!(decided(Policy::Newest, Theirs::Unknown), Ok(Side::Cloud));
        assert_eq!(decided(Policy::Newest, Theirs::Unasked), Err(Undecided));
        assert_eq!(decided(Policy::Local, Theirs::At(101)), Ok(Side::Local));
        assert_eq!(decided(Policy::Cloud, Theirs::At(99)), Ok(Side::Cloud));
    }

    /// What has to come of a column, said once more in other words.
    #[derive(Debug, PartialEq)]
    struct Fair {
        kept: i64,
        pending: bool,
        lost: Option<Side>,
    }

    /// Every case of two columns with three values on each side, so that all three may differ: every base, stamp, policy and way
    /// of knowing. Whoever reads the table below has the rules; the merge must come to the same.
    #[test]
    fn who_wins_in_every_small_case() {
        let table = table();
        let whens =
            [Theirs::At(0), Theirs::At(1), Theirs::At(2), Theirs::Before, Theirs::Untold, Theirs::Unknown];
        let bases = [None, Some(1), Some(2), Some(3)];
        let pairs: Vec<(i64, i64)> = (1..=3).flat_map(|a| (1..=3).map(move |b| (a, b))).collect();
        // How the entry came about: an edit of a row that the cloud has, the same with columns that nobody knew, an insert, and
        // two kinds of rows that nobody watched.
        let kinds = [
            (true, false, 0),
            (true, true, 0),
            (false, false, 0),
            (false, true, 0),
            (false, false, Entry::UNMET),
        ];
        let mut cases = 0;
        for policy in [Policy::Newest, Policy::Local, Policy::Cloud] {
            for theirs in whens {
                let edit_wins = match (policy, theirs) {
                    (Policy::Local, _) | (_, Theirs::Before | Theirs::Untold) => true,
                    (Policy::Cloud, _) | (_, Theirs::Unknown) => false,
                    (Policy::Newest, Theirs::At(at)) => 1 > at,
                    (_, Theirs::Unasked) => unreachable!(),
                };
                let unseen_wins = edit_wins && (policy == Policy::Local || !matches!(theirs, Theirs::At(_)));
                for (known, whole, seen) in kinds {
                    let unseen = !known && (whole || seen == Entry::UNMET);
                    let fair = |base: Option<i64>, here: i64, there: i64| {
                        let lost = |wins: bool| Some(if wins { Side::Local } else { Side::Cloud });
                        let of = |wins: bool, lost| Fair {
                            kept: if wins { here } else { there },
                            pending: wins,
                            lost,
                        };
                        let base = base.filter(|_| known || unseen);
                        let edited = base.is_some_and(|base| base != here);
                        match base {
                            _ if here == there => Fair { kept: here, pending: false, lost: None },
                            // Nobody watched.
                            _ if unseen && !edited => {
                                let is_silent = unseen_wins && theirs == Theirs::Before;
                                of(unseen_wins, lost(unseen_wins).filter(|_| !is_silent))
                            }
                            // Changed and changed back.
                            Some(_) if !edited => of(false, None),
                            Some(base) if base == there => of(true, None),
                            None if known && !whole => of(false, None),
                            _ => of(edit_wins, lost(edit_wins)),
                        }
                    };
                    for (a, b) in bases.iter().flat_map(|a| bases.map(|b| (*a, b))) {
                        for ((here_a, here_b), (there_a, there_b)) in
                            pairs.iter().flat_map(|here| pairs.iter().map(move |there| (*here, *there)))
                        {
                            cases += 1;
                            let entry = Entry { whole, seen, ..entry(known, [a, b]) };
                            let (local, cloud) = (row(here_a, here_b), row(there_a, there_b));
                            let case = format!("{policy:?} {theirs:?} {entry:?} {local:?} {cloud:?}");
                            let look = Seen { row: Some(&cloud), newest: 5, theirs };
                            let merged = merge(&table, policy, entry, Some(&local), look).unwrap();
                            let mut after = local.clone();
                            if let Local::Set(columns) = &merged.local {
                                columns.iter().for_each(|c| after[*c] = cloud[*c].clone());
                            }
                            for (c, expected) in
                                [(1, fair(a, here_a, there_a)), (2, fair(b, here_b, there_b))]
                            {
                                let lost: Vec<&Loss> =
                                    merged.losses.iter().filter(|loss| loss.column == Some(c)).collect();
                                assert!(lost.len() <= 1, "{case}");
                                let found = Fair {
                                    kept: match after[c] {
                                        Value::Integer(value) => value,
                                        ref other => panic!("{other:?}: {case}"),
                                    },
                                    pending: merged.entry.as_ref().is_some_and(|left| left.dirty[c]),
                                    lost: lost.first().map(|loss| loss.kept),
                                };
                                assert_eq!(found, expected, "column {c}: {case}");
                                // A record has both values as they were.
                                assert!(lost.iter().all(|loss| {
                                    (loss.local.as_ref(), loss.cloud.as_ref())
                                        == (Some(&local[c]), Some(&cloud[c]))
                                }));
                            }
                            assert!(merged.losses.iter().all(|loss| loss.column.is_some()), "{case}");
                        }
                    }
                }
            }
        }
        assert_eq!(cases, 3 * 6 * 5 * 16 * 81);
    }

    /// The app is asked first, in what is disputed and nothing else; what it makes of both is pending, later than both, and met
    /// once. Where it says nothing, the policy decides as ever.
    #[test]
    fn the_app_is_asked_where_there_is_something_to_decide() {
        use crate::core::schema::Unique;
        use std::sync::{Arc, Mutex};
        let asked = Arc::new(Mutex::new(vec![]));
        let (tell, base, local, cloud) = (asked.clone(), row(1, 1), row(10, 2), row(11, 3));
        let policies = |verdict: Option<Verdict>| {
            let tell = tell.clone();
            let resolver = Resolver::new(Arc::new(move |dispute: &Dispute<'_>| {
                let column = dispute.column().map(str::to_owned);
                tell.lock().unwrap().push((column, dispute.base().cloned(), dispute.here("k").is_some()));
                verdict.clone()
            }));
            Policies { resolver: Some(resolver), ..Policies::default() }
        };
        fn seen(row: Option<&[Value]>) -> Seen<'_> {
            Seen { row, newest: 5, theirs: Theirs::At(100) }
        }
        let mut table = table();
        let edit = entry(true, [Some(1), None]);
        let verdicts = |table: &Table, verdict| {
            let policies = policies(verdict);
            merge(table, policies.of(table), edit.clone(), Some(&local), seen(Some(&cloud))).unwrap()
        };
        let made = verdicts(&table, Some(Verdict::Value(Value::Integer(20))));
        assert_eq!(*asked.lock().unwrap(), [(Some("a".to_owned()), Some(base[1].clone()), true)]);
        assert_eq!((&made.values[..], &made.local), (&[(1, Value::Integer(20))][..], &Local::Set(vec![2])));
        assert_eq!((made.losses.len(), made.losses[0].kept), (1, Side::Neither));
        let left = made.entry.unwrap();
        assert_eq!((left.stamp, &left.base[1], left.dirty[1]), (101, &cloud[1], true));
        let after = row(20, 3);
        let none = policies(None);
        let again = merge(&table, none.of(&table), left, Some(&after), seen(Some(&cloud))).unwrap();
        assert_eq!((again.losses, again.values, asked.lock().unwrap().len()), (vec![], vec![], 1));
        // The policy says the cloud's, which is later.
        let kept = |merged: Merged| merged.losses[0].kept;
        assert_eq!(kept(verdicts(&table, None)), Side::Cloud);
        assert_eq!(kept(verdicts(&table, Some(Verdict::Local))), Side::Local);
        assert_eq!(kept(verdicts(&table, Some(Verdict::Value(local[1].clone())))), Side::Local);
        // A third value of what has to be the only one is no verdict.
        table.uniques = vec![Unique { columns: vec![(1, "BINARY".into())], declared: true }];
        assert_eq!(kept(verdicts(&table, Some(Verdict::Value(Value::Integer(20))))), Side::Cloud);
        // Deletions on either side.
        let deleted = |verdict, local: Option<&[Value]>, cloud: Option<&[Value]>| {
            let policies = policies(verdict);
            let edit = entry(true, [Some(1), Some(1)]);
            kept(merge(&table, policies.of(&table), edit, local, seen(cloud)).unwrap())
        };
        assert_eq!(deleted(Some(Verdict::Local), Some(&local), None), Side::Local);
        assert_eq!(deleted(Some(Verdict::Local), None, Some(&cloud)), Side::Local);
        assert_eq!(deleted(Some(Verdict::Value(Value::Null)), None, Some(&cloud)), Side::Cloud);
        assert_eq!(deleted(None, Some(&local), None), Side::Cloud);
        let last = asked.lock().unwrap().last().cloned();
        assert_eq!(last, Some((None, None, true)));
    }

    /// A panic of the app's is no verdict, and is told of.
    #[test]
    fn a_panic_of_the_app_leaves_the_policy() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};
        let told = Arc::new(AtomicU32::new(0));
        let tell = told.clone();
        let resolver = Resolver::new(Arc::new(|_: &Dispute<'_>| std::panic::resume_unwind(Box::new("app"))));
        let resolver = resolver.telling(move |table| {
            assert_eq!(table, "t");
            tell.fetch_add(1, Ordering::Relaxed);
        });
        let policies = Policies { resolver: Some(resolver), usual: Policy::Local, ..Policies::default() };
        let table = table();
        let seen = Seen { row: Some(&row(11, 2)), newest: 5, theirs: Theirs::Unasked };
        let merged =
            merge(&table, policies.of(&table), entry(true, [Some(1), None]), Some(&row(10, 2)), seen)
                .unwrap();
        assert_eq!((merged.losses[0].kept, told.load(Ordering::Relaxed)), (Side::Local, 1));
    }

    /// M1 to M4 over every small case: two values per place, every dirty set, presence on either side, either winner.
    #[test]
    fn the_invariants_hold_in_every_small_case() {
        let table = table();
        let values = [1, 2];
        let bases = [None, Some(1), Some(2)];
        let rows: Vec<Option<Vec<Value>>> = std::iter::once(None)
            .chain(values.iter().flat_map(|a| values.map(|b| Some(row(*a, b)))))
            .collect();
        for (known, winner) in [false, true].into_iter().flat_map(|k| [(k, Side::Local), (k, Side::Cloud)]) {
            for (a, b) in bases.iter().flat_map(|a| bases.map(|b| (*a, b))) {
                for whole in [false, !known] {
                    for (local, cloud) in rows.iter().flat_map(|l| rows.iter().map(move |c| (l, c))) {
                        let entry = Entry { whole, ..entry(known, [a, b]) };
                        let case = format!("{entry:?} local {local:?} cloud {cloud:?} {winner:?}");
                        let merged =
                            won_by(winner, &table, entry.clone(), local.as_deref(), cloud.as_deref());
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
                            let again = won_by(winner, &table, entry, after.as_deref(), cloud.as_deref());
                            let deleted_there = cloud.is_none();
                            assert!(again.losses.is_empty() || deleted_there && !known, "{case}");
                        }
                        // M2: a value that goes, there or here, was either nobody's edit or is on record.
                        for (c, base) in [(1, a), (2, b)] {
                            let goes = |side: &Option<Vec<Value>>, kept: &Option<Vec<Value>>| {
                                side.as_ref()
                                    .is_some_and(|row| kept.as_ref().is_none_or(|kept| kept[c] != row[c]))
                            };
                            let edited = |side: &Option<Vec<Value>>| {
                                let same = |row: &Vec<Value>| {
                                    base.is_some_and(|base| row[c] == Value::Integer(base))
                                };
                                !side.as_ref().is_some_and(same)
                            };
                            let on_record = |kept| {
                                merged
                                    .losses
                                    .iter()
                                    .any(|l| l.column.is_none_or(|at| at == c) && l.kept == kept)
                            };
                            let lost_there = known && goes(cloud, &there) && edited(cloud);
                            assert!(!lost_there || on_record(Side::Local), "{case}");
                            let lost_here =
                                (!known || base.is_some()) && goes(local, &after) && edited(local);
                            assert!(!lost_here || on_record(Side::Cloud), "{case}");
                        }
                        // M4: one winner, and only where there is something to win.
                        let is_undecidable = !known && local.is_none();
                        assert!(
                            is_undecidable || merged.losses.iter().all(|loss| loss.kept == winner),
                            "{case}"
                        );
                        let unasked = Seen { row: cloud.as_deref(), newest: 5, theirs: Theirs::Unasked };
                        let asks = merge(&table, Policy::Newest, entry, local.as_deref(), unasked).is_err();
                        let has_lost = !is_undecidable && !merged.losses.is_empty();
                        assert!(asks == has_lost || asks && whole, "{case}");
                    }
                }
            }
        }
    }
}
