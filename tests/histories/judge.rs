//! What must hold when all is quiet, from what was written down of every write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::ops::{AddAssign, Range};

use crate::plan::Writer;

/// Both data columns.
pub(crate) type Row = [Option<i64>; 2];

/// A write as the owner's own trigger saw it.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) writer: Writer,
    pub(crate) id: i64,
    pub(crate) op: String,
    pub(crate) old: Row,
    pub(crate) new: Row,
}

/// A record of a conflict, as its log has it.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "the story of a history that fails shows all of it")]
pub(crate) struct Lost {
    pub(crate) log: String,
    pub(crate) key: String,
    pub(crate) column: Option<String>,
    pub(crate) local: Option<String>,
    pub(crate) cloud: Option<String>,
    pub(crate) kept: String,
}

impl Lost {
    fn id(&self) -> i64 {
        self.key.trim_matches(['[', ']', ' ']).parse().unwrap()
    }

    fn is_of_deletion(&self) -> bool {
        self.local.is_none() || self.cloud.is_none()
    }

    /// The values that are in it: they have ten digits, and nothing else has.
    fn values(&self) -> impl Iterator<Item = i64> {
        let texts = [&self.local, &self.cloud].into_iter().flatten();
        texts
            .flat_map(|text| text.split(|c: char| !c.is_ascii_digit()))
            .filter_map(|digits| if digits.len() == 10 { digits.parse().ok() } else { None })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Of the cloud, and, once they are equal, of everybody.
    pub(crate) rows: BTreeMap<i64, Row>,
    pub(crate) noted: Vec<Noted>,
    pub(crate) lost: Vec<Lost>,
}

impl Evidence {
    pub(crate) fn story(&self, ids: Range<i64>) -> String {
        let mut story = String::new();
        for noted in self.noted.iter().filter(|noted| ids.contains(&noted.id)) {
            writeln!(story, "  {noted:?}").unwrap();
        }
        for lost in self.lost.iter().filter(|lost| ids.contains(&lost.id())) {
            writeln!(story, "  {lost:?}").unwrap();
        }
        for id in ids {
            writeln!(story, "  in the end {id}: {:?}", self.rows.get(&id)).unwrap();
        }
        story
    }
}

/// What was met.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) writes: usize,
    pub(crate) deletions: usize,
    /// Keys that several wrote.
    pub(crate) shared: usize,
    /// Keys of which something is on record.
    pub(crate) disputed: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.deletions += other.deletions;
        self.shared += other.shared;
        self.disputed += other.disputed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, deletions, shared, disputed } = self;
        write!(
            f,
            "{writes} writes that changed something ({deletions} deletions), {shared} rows with several writers, \
             {disputed} with a conflict on record"
        )
    }
}

/// What is wrong, by key.
pub(crate) fn judge(evidence: &Evidence, base: i64) -> (Vec<(i64, String)>, Tally) {
    let mut by_id: BTreeMap<i64, (Vec<&Noted>, Vec<&Lost>)> = BTreeMap::new();
    for noted in &evidence.noted {
        by_id.entry(noted.id).or_default().0.push(noted);
    }
    for lost in evidence.lost.iter().filter(|lost| lost.id() >= base) {
        by_id.entry(lost.id()).or_default().1.push(lost);
    }
    let (mut wrong, mut tally) = (vec![], Tally::default());
    for (id, (noted, lost)) in by_id {
        let row = evidence.rows.get(&id);
        tally.writes += noted.len();
        tally.deletions += noted.iter().filter(|noted| noted.op == "DELETE").count();
        tally.disputed += usize::from(!lost.is_empty());
        let writers: BTreeSet<Writer> = noted.iter().map(|noted| noted.writer).collect();
        tally.shared += usize::from(writers.len() > 1);
        wrong.extend(of_row(&noted, &lost, row, writers.len()).map(|what| (id, what)));
    }
    (wrong, tally)
}

fn of_row(noted: &[&Noted], lost: &[&Lost], row: Option<&Row>, writers: usize) -> Option<String> {
    let on_record: BTreeSet<i64> = lost.iter().flat_map(|lost| lost.values()).collect();
    for (c, column) in ["a", "b"].into_iter().enumerate() {
        // A value is there, or somebody who had it before him replaced it, or it is on record.
        for write in noted {
            let Some(value) = write.new[c].filter(|_| write.new[c] != write.old[c]) else { continue };
            let is_there = row.is_some_and(|row| row[c] == Some(value));
            let is_replaced =
                noted.iter().any(|other| other.old[c] == Some(value) && other.new[c] != Some(value));
            if !is_there && !is_replaced && !on_record.contains(&value) {
                return Some(format!(
                    "{value} of {:?} in column {column} is lost without a record",
                    write.writer
                ));
            }
        }
        // What only one writer edits, of a row that nobody deletes or makes, is as he left it.
        let edits: Vec<&&Noted> = noted.iter().filter(|write| write.new[c] != write.old[c]).collect();
        let is_one = edits.windows(2).all(|pair| pair[0].writer == pair[1].writer);
        if let (true, Some(last)) = (is_one, edits.last())
            && noted.iter().all(|write| write.op == "UPDATE")
            && row.is_none_or(|row| row[c] != last.new[c])
        {
            return Some(format!(
                "{:?} alone edited column {column}, last to {:?}, and it is {:?}",
                last.writer,
                last.new[c],
                row.map(|row| row[c])
            ));
        }
    }
    let deleted = noted.iter().filter(|write| write.op == "DELETE").count();
    let made = noted.iter().any(|write| write.op == "INSERT");
    if row.is_some() && deleted > 0 && !made && !lost.iter().any(|lost| lost.is_of_deletion()) {
        return Some("a deletion is lost without a record".to_owned());
    }
    if row.is_none() && deleted == 0 {
        let was_there = noted.iter().any(|write| write.op == "UPDATE") || made;
        if was_there {
            return Some("nobody deleted it, and it is gone".to_owned());
        }
    }
    // Whoever is alone with a row is in conflict with nobody.
    if writers <= 1 && !lost.is_empty() {
        return Some(format!("a conflict where there is one writer: {:?}", lost[0]));
    }
    None
}
