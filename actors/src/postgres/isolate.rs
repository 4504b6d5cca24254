//! A round that PostgreSQL refuses is taken in parts: what of it is accepted, and which rows are not.
//!
//! ```text
//! ties (unique indexes, foreign keys) ─▶ who needs whom ─▶ core::isolation ─▶ SAVEPOINT, a part, RELEASE or ROLLBACK TO
//! ```
//!
//! The search is one transaction, that of the round. What it decides, and how many parts it takes, is in `core/isolation.rs`; here
//! one part is one savepoint with the statements of an ordinary round: at most `2 + 3 t + 2 s` of them for t tables and s sets
//! of equal columns; and once more where it has a [`Ring`] in it. A part of rows that are new there as well is one round trip,
//! whether it is accepted or not: what ends the part before goes [ahead](Ahead) of its statements. Rows that are there are locked
//! and looked at first. Who needs whom costs one statement more, and one per table that has ties; the shapes of the tables, and
//! whether they are those that were prepared, are one each. Who needs whom is a hint: it decides what is tried together and in
//! which order, never who is refused.
//!
//! Those that were refused on top of others, and that no others can be the reason for, are asked about once more in a second
//! transaction, with a savepoint for each: a trigger may have something against a number of rows, whichever they are, and then none
//! of them is guilty. One that needs others of its round is asked about with these where something else is said of it alone; a deletion
//! that needs others to be gone is not asked about at all.
//!
//! How long it takes: [`SEARCH_TIME`] or what a statement may take, whichever is less; then as many parts more as it takes to know
//! of one row (I5: 36 for 50,000 rows, while none waits for others), then as long again, or one part, for those that are asked
//! about alone. Until then the rows that were accepted are locked in the cloud, and so are the values that they take in unique
//! indexes. Nobody waits here: the app writes and reads, and what it writes is in a later round.
//!
//! The steps are boxed: they are many inside of each other, and without optimisation each has its own copy of those below it on
//! the stack of the actors' thread.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::cells::Cells as _;
use super::client::Statement;
use super::sending::sets;
use super::stamps::STAMPS;
use super::{
    Ahead, Aside, CloudRefusal, CloudSession, Op, Phase, Result, RoundFrame, RoundItem, RoundOutcome,
    SAME_ROW, Taken, Trouble, in_order, unexpected,
};
use crate::core::failure::needs_others;
use crate::core::isolation::{Isolation, Limits, Verdict, circles};
use crate::core::schema::{CloudTable, Table};
use crate::core::value::{CloudValue, Value, from_cloud};
use crate::sql::cloud;

/// How many rows are found in one transaction, which holds locks meanwhile: the rest is found by the rounds that follow.
const LIMITS: Limits = Limits { guilty: 100, waiting: 100 };

/// After so long, to know of one row is enough.
const SEARCH_TIME: Duration = Duration::from_secs(10);

/// So many rows with the same values in unique columns may be in each other's way; more are outside of a partial index.
const SAME_VALUE_MAX: usize = 4;

/// In the place of an SQLSTATE, inside of a search: a deletion that would take rows along stays behind.
const STAYS: &str = "stays";

/// What goes ahead of a part: of the first one, of one after a part that is kept, and of one after a part that is not. A
/// savepoint is left in the end, which ends with the transaction.
const FIRST: &str = "SAVEPOINT part";
const ACCEPTED: &str = "RELEASE part; SET CONSTRAINTS ALL DEFERRED; SAVEPOINT part";
const REFUSED: &str = "ROLLBACK TO part; SET CONSTRAINTS ALL DEFERRED";

/// Columns by which rows stand in each other's way.
#[derive(Debug)]
struct Tie {
    /// The table's place in the frame, and the columns.
    columns: (usize, Vec<usize>),
    /// The same of the table that they refer to; none for a unique index.
    parent: Option<(usize, Vec<usize>)>,
    /// Whether PostgreSQL checks it row by row.
    at_once: bool,
}

/// Rows that need each other in a circle (their unique values change places; a parent's successor takes its unique value, to whom its
/// children go, before which it cannot be deleted), while PostgreSQL checks these values row by row: nobody can begin. They are taken
/// out of the unique values first, and then have theirs, or go.
pub(super) struct Ring {
    table: usize,
    /// Those that refer to nobody come first.
    columns: Vec<usize>,
    /// The columns of a row that goes which may have any value meanwhile: nobody refers to them, nor they to anybody.
    free: Vec<usize>,
    items: Rc<HashSet<usize>>,
}

impl Ring {
    fn new(frame: RoundFrame<'_>, tie: &Tie, ties: &[Tie], items: Rc<HashSet<usize>>) -> Self {
        let (table, mut columns) = tie.columns.clone();
        let refers = |column: &usize| {
            let is_child = |tie: &&Tie| tie.parent.is_some() && tie.columns.0 == table;
            ties.iter().filter(is_child).any(|tie| tie.columns.1.contains(column))
        };
        let is_referred_to = |column: &usize| {
            let parents = ties.iter().filter_map(|tie| tie.parent.as_ref());
            parents.filter(|(of, _)| *of == table).any(|(_, columns)| columns.contains(column))
        };
        columns.sort_by_key(refers);
        let is_key = |column: &usize| frame.tables[table].0.is_key(*column);
        let is_free = |column: &&usize| !is_key(column) && !refers(column) && !is_referred_to(column);
        let free =
            if tie.parent.is_none() { columns.iter().filter(is_free).copied().collect() } else { vec![] };
        Self { table, columns, free, items }
    }

    /// How those of the rows that are still in the round are taken out, each by a column that it is given a value in anyway, or that goes
    /// with it.
    pub(super) fn asides<'a>(
        &self,
        frame: RoundFrame<'a>,
        items: &[RoundItem],
        present: &HashSet<usize>,
    ) -> Vec<Aside<'a>> {
        let of = &frame.tables[self.table];
        let ours = |at: &usize| items[*at].table == self.table && present.contains(at);
        let mut left: Vec<usize> = self.items.iter().copied().filter(ours).collect();
        left.sort_unstable();
        let mut asides = vec![];
        for column in &self.columns {
            let Some(sql) = cloud::take_out(&of.0, &of.1, *column) else { continue };
            let leaves = |at: &usize| match &items[*at].op {
                Op::Update(columns) => columns.contains(column),
                Op::Delete => self.free.contains(column),
                Op::Insert => false,
            };
            let (members, others) = left.into_iter().partition(leaves);
            left = others;
            if !Vec::is_empty(&members) {
                asides.push(Aside { table: of, sql, members, in_ring: true });
            }
        }
        asides
    }
}

/// The values of one tie's columns, in a form in which equal ones are equal.
type Values = Vec<String>;

impl CloudSession {
    /// The shape of each of these tables (qualified names), as far as they are there.
    pub(crate) async fn shapes(&self, names: Vec<String>) -> Result<HashMap<String, String>> {
        let rows = self.query(include_str!("../sql/postgres/shape.sql"), &[&names], Phase::Setup).await?;
        rows.iter().map(|row| Ok((row.cell("name")?, row.cell("shape")?))).collect()
    }

    /// Rolls back, and takes the round anew in parts: what was accepted, unless rows are refused on top of all that. Then nothing
    /// took effect.
    pub(super) async fn anew_in_parts(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
    ) -> Result<std::result::Result<Taken, RoundOutcome>> {
        self.rollback(Phase::Pull).await?;
        self.begin_round(frame, items).await?;
        match self.search(frame, items).await {
            Ok(found) => Ok(found),
            Err(Trouble::TooSlow(failure)) => {
                self.rollback(Phase::Pull).await?;
                Ok(Err(RoundOutcome::TooSlow(failure)))
            }
            Err(Trouble::Failed(failure)) => Err(failure),
            Err(Trouble::Refused { sqlstate, .. }) => {
                Err(unexpected(&format!("SQLSTATE {sqlstate} between two parts of a round")))
            }
        }
    }

    async fn search(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
    ) -> std::result::Result<std::result::Result<Taken, RoundOutcome>, Trouble> {
        let began = Instant::now();
        let search_time = SEARCH_TIME.min(self.cloud.options.statement_timeout);
        let order = in_order(items, |_| true);
        // Before anything is refused: what changes after this is a reason to try again.
        let names: HashSet<String> =
            items.iter().map(|item| frame.tables[item.table].1.qualified()).collect();
        let shapes = self.shapes(names.into_iter().collect()).await?;
        // What the columns refuse because they are other ones by now is nobody's guilt.
        self.mark_echo(frame, items, &Taken::default()).await?;
        let (needs, rings) = self.needs(frame, items, &order).await?;
        let mut search = Isolation::new(order.len(), &needs, LIMITS);
        let mut taken = Taken::default();
        let mut done = HashSet::new();
        self.batch(FIRST, Phase::Pull).await?;
        let (prepared, sql) = match self.prepare_sets(frame, items, &order).await {
            Ok(prepared) => (prepared, ""),
            // The part that it belongs to meets it again.
            Err(Trouble::Refused { .. }) => (HashMap::new(), REFUSED),
            Err(trouble) => return Err(trouble),
        };
        let mut ahead = Ahead { sql, prepared: Some(&prepared) };
        while let Some(part) = search.next() {
            let part: HashSet<usize> = part.into_iter().map(|place| order[place]).collect();
            let members = in_order(items, |item| part.contains(&item));
            let tried =
                Box::pin(self.try_part(frame, items, &members, &rings, (&done, &taken), &mut ahead)).await?;
            search.verdict(match tried {
                Ok(part) => {
                    done.extend(members);
                    taken.add(part);
                    Verdict::Accepted
                }
                Err(refusal) => Verdict::Refused {
                    needs_others: needs_others(&refusal.sqlstate),
                    stays_behind: refusal.sqlstate == STAYS,
                    why: refusal,
                },
            });
            if began.elapsed() > search_time {
                search.hurry();
            }
        }
        let found = search.done();
        let item = |place: usize| order[place];
        taken.staying.extend(found.behind.into_iter().map(item));
        if found.refused.is_empty() {
            self.send_ahead(&mut ahead).await?;
            taken.unasked = found.unasked.into_iter().map(item).collect();
            return Ok(Ok(taken));
        }
        let unfinished = !found.unasked.is_empty();
        let refused = found.refused.into_iter().map(|(place, refusal)| {
            let item = order[place];
            let name = frame.tables[items[item].table].1.qualified();
            CloudRefusal { item, shape: shapes.get(&name).cloned().unwrap_or_default(), ..refusal }
        });
        let mut refused: Vec<CloudRefusal> = refused.collect();
        let accepted = items.len() - refused.len() - taken.staying.len() - found.unasked.len();
        self.rollback(Phase::Pull).await?;
        let mut early = vec![];
        let (rows, crowded, unfinished) = if accepted == 0 {
            (refused, vec![], unfinished)
        } else {
            // With those that have to be gone before it may be one too many, and without them it takes them along.
            let needy: HashSet<usize> = needs.iter().map(|(one, _)| order[*one]).collect();
            let is_early = |it: &CloudRefusal| items[it.item].op == Op::Delete && needy.contains(&it.item);
            (early, refused) =
                refused.into_iter().partition(|it| !needs_others(&it.sqlstate) && is_early(it));
            let beside = Beside { needed: needed_by_item(&needs, &order), rings: &rings };
            let (rows, crowded, all) =
                Box::pin(self.ask_alone(frame, items, refused, &beside, &prepared, search_time)).await?;
            (rows, crowded, unfinished || !all)
        };
        Ok(Err(RoundOutcome::Refused { rows, crowded, early, accepted, unfinished }))
    }

    /// Which of these rows are refused alone as well, and which are not, and whether there was time for all. Not asked about are
    /// those that another row is known to be the reason for, or may be: what is to be done about these is known. Nothing
    /// takes effect.
    async fn ask_alone(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        refused: Vec<CloudRefusal>,
        beside: &Beside<'_>,
        prepared: &HashMap<String, Statement>,
        time: Duration,
    ) -> std::result::Result<(Vec<CloudRefusal>, Vec<CloudRefusal>, bool), Trouble> {
        // Whoever is needed is told of first, as he was found.
        let place: HashMap<usize, usize> =
            refused.iter().enumerate().map(|(at, refusal)| (refusal.item, at)).collect();
        let (mut guilty, asked): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|it| needs_others(&it.sqlstate) || it.sqlstate == SAME_ROW);
        if asked.is_empty() {
            return Ok((guilty, vec![], true));
        }
        let began = Instant::now();
        self.begin_round(frame, items).await?;
        let mut crowded = vec![];
        let mut ahead = Ahead { sql: FIRST, prepared: Some(prepared) };
        let mut left = asked.into_iter();
        for refusal in left.by_ref() {
            match Box::pin(self.guilt(frame, items, &refusal, beside, &mut ahead)).await? {
                None => crowded.push(refusal),
                Some(said) => guilty.push(said),
            }
            if began.elapsed() > time {
                break;
            }
        }
        self.rollback(Phase::Pull).await?;
        guilty.sort_by_key(|refusal| place.get(&refusal.item).copied());
        Ok((guilty, crowded, left.next().is_none()))
    }

    /// What is said of a row alone, if it is refused alone. That its others are missing says nothing: then what is said with these
    /// counts, unless they are refused by themselves.
    async fn guilt(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        refusal: &CloudRefusal,
        beside: &Beside<'_>,
        ahead: &mut Ahead<'_>,
    ) -> std::result::Result<Option<CloudRefusal>, Trouble> {
        let mut ask = async |members: &[usize]| {
            let tried = Box::pin(self.take_or_open(frame, items, members, beside.rings, ahead)).await;
            ahead.sql = REFUSED;
            match tried {
                Ok(_) => Ok(None),
                Err(Trouble::Refused { sqlstate, message, constraint }) => {
                    Ok(Some(CloudRefusal { sqlstate, message, constraint, ..refusal.clone() }))
                }
                Err(trouble) => Err(trouble),
            }
        };
        let item = refusal.item;
        let mut all = beside.with_needed(item);
        let needs_some = all.len() > 1;
        match ask(&[item]).await? {
            Some(said) if needs_some && said.sqlstate != refusal.sqlstate => {}
            decided => return Ok(decided),
        }
        let members = in_order(items, |item| all.contains(&item));
        let said = match ask(&members).await? {
            None => return Ok(None),
            // They do not go as one part: what was said on top of them is about the row.
            Some(said) if needs_others(&said.sqlstate) => return Ok(Some(refusal.clone())),
            Some(said) => said,
        };
        all.remove(&item);
        let members = in_order(items, |item| all.contains(&item));
        Ok(if ask(&members).await?.is_some() { None } else { Some(said) })
    }

    /// Takes a part; where unique values of it are in each other's way, once more with these out of the way first.
    async fn take_or_open(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        members: &[usize],
        rings: &[Ring],
        ahead: &mut Ahead<'_>,
    ) -> std::result::Result<Taken, Trouble> {
        let tried = Box::pin(self.take(frame, items, members, &[], *ahead)).await;
        let has_rings = || rings.iter().any(|ring| members.iter().any(|item| ring.items.contains(item)));
        if matches!(&tried, Err(Trouble::Refused { sqlstate, .. }) if sqlstate == "23505") && has_rings() {
            ahead.sql = REFUSED;
            match Box::pin(self.take(frame, items, members, rings, *ahead)).await {
                // What was said first says more.
                Err(Trouble::Refused { .. }) => {}
                again => return again,
            }
        }
        tried
    }

    /// What the parts consist of, told to this connection while nothing has failed.
    async fn prepare_sets(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        order: &[usize],
    ) -> std::result::Result<HashMap<String, Statement>, Trouble> {
        let mut prepared = HashMap::new();
        let kinds = sets(frame, items, order).map(|set| set.sql).chain([STAMPS.to_owned()]);
        for sql in kinds.collect::<HashSet<String>>() {
            let statement = self.attempt(self.client.statement(&sql)).await?;
            prepared.insert(sql, statement);
        }
        Ok(prepared)
    }

    async fn try_part(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        members: &[usize],
        rings: &[Ring],
        (done, taken): (&HashSet<usize>, &Taken),
        ahead: &mut Ahead<'_>,
    ) -> std::result::Result<std::result::Result<Taken, CloudRefusal>, Trouble> {
        let mut tried = Box::pin(self.take_or_open(frame, items, members, rings, ahead)).await;
        if let Ok(part) = &tried
            && members.iter().any(|at| items[*at].op == Op::Delete)
        {
            // Those whose turn has not come are no more to be taken along than those that have left.
            let mut waiting: HashSet<usize> = (0..items.len()).filter(|at| !done.contains(at)).collect();
            for at in members {
                waiting.remove(at);
            }
            if self.took_along(frame, items, &(&waiting | &taken.left()) | &part.left()).await? {
                tried = Err(Trouble::Refused {
                    sqlstate: STAYS.into(),
                    message: String::new(),
                    constraint: None,
                });
            }
        }
        match tried {
            Ok(part) => {
                ahead.sql = ACCEPTED;
                Ok(Ok(part))
            }
            Err(Trouble::Refused { sqlstate, message, constraint }) => {
                ahead.sql = REFUSED;
                let item = members.first().copied().unwrap_or_default();
                Ok(Err(CloudRefusal { item, sqlstate, message, constraint, shape: String::new() }))
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Which rows need which others, by their places in the order, and which of them are rings. None where PostgreSQL does not
    /// answer: then the search finds out by trying.
    async fn needs(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        order: &[usize],
    ) -> Result<(Vec<(usize, usize)>, Vec<Ring>)> {
        self.batch("SAVEPOINT needs", Phase::Pull).await?;
        match self.read_needs(frame, items).await {
            Ok((needs, rings)) => {
                self.batch("RELEASE needs", Phase::Pull).await?;
                let mut places = vec![0; items.len()];
                order.iter().enumerate().for_each(|(place, item)| places[*item] = place);
                let needs = needs.into_iter().map(|(one, other)| (places[one], places[other])).collect();
                Ok((needs, rings))
            }
            // A key that the cloud's type does not know, a table that cannot be read: the search meets it and says so.
            Err(failure) if failure.sqlstate.is_some() => {
                self.batch("ROLLBACK TO needs; RELEASE needs", Phase::Pull).await?;
                Ok((vec![], vec![]))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Who needs whom, by item, and the rings.
    async fn read_needs(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
    ) -> Result<(Vec<(usize, usize)>, Vec<Ring>)> {
        let ties = self.ties(frame, items).await?;
        if ties.is_empty() {
            return Ok((vec![], vec![]));
        }
        let round = Round { frame, items, stored: self.stored(frame, items, &ties).await? };
        let by_tie: Vec<_> = ties.iter().map(|tie| round.needs(tie)).collect();
        let needs = by_tie.concat();
        let circles: Vec<Rc<HashSet<usize>>> = circles(items.len(), &needs)
            .into_iter()
            .map(|circle| Rc::new(HashSet::from_iter(circle)))
            .collect();
        let mut circle_of = vec![None; items.len()];
        for (at, circle) in circles.iter().enumerate() {
            circle.iter().for_each(|item| circle_of[*item] = Some(at));
        }
        let mut rings = vec![];
        for (tie, needs) in ties.iter().zip(&by_tie).filter(|(tie, _)| tie.at_once) {
            let within = needs.iter().filter(|(one, other)| circle_of[*one] == circle_of[*other]);
            let passed: BTreeSet<usize> = within.filter_map(|(one, _)| circle_of[*one]).collect();
            rings.extend(passed.into_iter().map(|at| Ring::new(frame, tie, &ties, Rc::clone(&circles[at]))));
        }
        Ok((needs, rings))
    }

    async fn ties(&self, frame: RoundFrame<'_>, items: &[RoundItem]) -> Result<Vec<Tie>> {
        let used: HashSet<usize> = items.iter().map(|item| item.table).collect();
        let oids: Vec<u32> = used.iter().map(|at| frame.tables[*at].1.oid).collect();
        let rows = self.query(include_str!("../sql/postgres/ties.sql"), &[&oids], Phase::Pull).await?;
        let columns = |oid: u32, names: Vec<String>| {
            let at = frame.tables.iter().position(|(_, cloud)| cloud.oid == oid)?;
            let table = &frame.tables[at].0;
            // A column that only the cloud has ties nothing that is sent.
            let columns: Option<Vec<usize>> =
                names.iter().map(|name| table.columns.iter().position(|c| c.name == *name)).collect();
            Some((at, columns?))
        };
        let tie = |row: &_| read_tie(row, columns);
        rows.iter().filter_map(|row| tie(row).transpose()).collect()
    }

    /// The rows that are changed or deleted in tied columns, as the cloud has them, by item: only these columns.
    async fn stored(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        ties: &[Tie],
    ) -> Result<HashMap<usize, BTreeMap<usize, CloudValue>>> {
        let mut tied: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, columns) in ties.iter().flat_map(|tie| tie.parent.iter().chain([&tie.columns])) {
            tied.entry(*at).or_default().extend(columns);
        }
        let mut stored: HashMap<usize, BTreeMap<usize, CloudValue>> = HashMap::new();
        for (at, columns) in tied {
            let is_tied = |item: &RoundItem| match &item.op {
                Op::Insert => false,
                Op::Update(changed) => changed.iter().any(|c| columns.contains(c)),
                Op::Delete => true,
            };
            let members: Vec<usize> =
                (0..items.len()).filter(|i| items[*i].table == at && is_tied(&items[*i])).collect();
            if members.is_empty() {
                continue;
            }
            let (table, cloud_table) = &frame.tables[at];
            let kept: Vec<usize> =
                (0..table.columns.len()).filter(|c| table.is_key(*c) || columns.contains(c)).collect();
            let (narrow, narrow_cloud) = narrowed(table, cloud_table, &kept);
            let keys: Vec<Vec<String>> = members.iter().map(|i| super::key_text(&items[*i].key)).collect();
            for (place, row) in self.fetch_any(&narrow, &narrow_cloud, &narrow.key, &keys).await? {
                stored.insert(members[place], kept.iter().copied().zip(row).collect());
            }
        }
        Ok(stored)
    }
}

/// What is known of the rows that a row has beside it in its round.
struct Beside<'a> {
    /// Whom each row needs, by item.
    needed: HashMap<usize, Vec<usize>>,
    rings: &'a [Ring],
}

impl Beside<'_> {
    /// A row, whom it needs, whom these need, and so on.
    fn with_needed(&self, item: usize) -> HashSet<usize> {
        let mut all = HashSet::from([item]);
        let mut next = vec![item];
        while let Some(item) = next.pop() {
            let more = self.needed.get(&item).into_iter().flatten().copied();
            next.extend(more.filter(|other| all.insert(*other)));
        }
        all
    }
}

fn needed_by_item(needs: &[(usize, usize)], order: &[usize]) -> HashMap<usize, Vec<usize>> {
    let mut needed: HashMap<usize, Vec<usize>> = HashMap::new();
    for (one, other) in needs {
        needed.entry(order[*one]).or_default().push(order[*other]);
    }
    needed
}

/// The table as if it had only these columns.
fn narrowed(table: &Table, cloud_table: &CloudTable, kept: &[usize]) -> (Table, CloudTable) {
    let narrow = Table {
        columns: kept.iter().map(|c| table.columns[*c].clone()).collect(),
        key: table.key.iter().filter_map(|k| kept.iter().position(|c| c == k)).collect(),
        uniques: vec![],
        foreign_keys: vec![],
        ..table.clone()
    };
    let columns = kept.iter().map(|c| cloud_table.columns[*c].clone()).collect();
    (narrow, CloudTable { columns, ..cloud_table.clone() })
}

/// The rows of a round, as they are sent and as the cloud has them.
struct Round<'a> {
    frame: RoundFrame<'a>,
    items: &'a [RoundItem],
    stored: HashMap<usize, BTreeMap<usize, CloudValue>>,
}

impl Round<'_> {
    fn needs(&self, tie: &Tie) -> Vec<(usize, usize)> {
        match &tie.parent {
            // Who takes a unique value needs the one who leaves it.
            None => {
                let mut left = self.left(&tie.columns);
                // Beside a partial index values repeat, and whoever needs all of those needs none.
                left.retain(|_, items| items.len() <= SAME_VALUE_MAX);
                pairs(self.taken(&tie.columns), &left)
            }
            Some(parent) => {
                // A child needs the parent that comes; a parent that goes needs its children to be gone.
                let mut needs = pairs(self.taken(&tie.columns), &by_values(self.taken(parent)));
                let gone = self.left(parent).into_iter();
                let gone = gone
                    .flat_map(|(values, items)| items.into_iter().map(move |item| (item, values.clone())));
                needs.extend(pairs(gone.collect(), &self.left(&tie.columns)));
                needs
            }
        }
    }

    /// Rows that come to new values in these columns, with them.
    fn taken(&self, (table, columns): &(usize, Vec<usize>)) -> Vec<(usize, Values)> {
        let changes = |item: &RoundItem| match &item.op {
            Op::Insert => true,
            Op::Update(changed) => columns.iter().any(|c| changed.contains(c)),
            Op::Delete => false,
        };
        let members =
            (0..self.items.len()).filter(|i| self.items[*i].table == *table && changes(&self.items[*i]));
        members.filter_map(|i| Some((i, self.values(i, columns, true)?))).collect()
    }

    /// Rows that have had other values in these columns until now, by these.
    fn left(&self, (table, columns): &(usize, Vec<usize>)) -> HashMap<Values, Vec<usize>> {
        let members = self.stored.keys().copied().filter(|i| self.items[*i].table == *table);
        let left = members.filter_map(|i| {
            let before = self.values(i, columns, false)?;
            let stays =
                self.items[i].op != Op::Delete && self.values(i, columns, true).as_ref() == Some(&before);
            (!stays).then_some((i, before))
        });
        by_values(left.collect())
    }

    /// The values of some columns, as sent or as stored. None where one of them is NULL, which ties nothing, or not known.
    fn values(&self, item: usize, columns: &[usize], sent: bool) -> Option<Values> {
        let RoundItem { table, key, values, op, .. } = &self.items[item];
        let (table, cloud_table) = &self.frame.tables[*table];
        columns
            .iter()
            .map(|c| {
                let is_sent = sent
                    && match op {
                        Op::Insert => true,
                        Op::Update(changed) => changed.contains(c),
                        Op::Delete => false,
                    };
                let value = match table.key.iter().position(|k| k == c) {
                    Some(part) => &key[part],
                    None if is_sent => &values[*c],
                    None => self.stored.get(&item)?.get(c)?,
                };
                comparable(from_cloud(
                    value.clone(),
                    table.columns[*c].affinity(),
                    &cloud_table.columns[*c].kind,
                ))
            })
            .collect()
    }
}

fn read_tie(
    row: &super::Row,
    columns: impl Fn(u32, Vec<String>) -> Option<(usize, Vec<usize>)>,
) -> Result<Option<Tie>> {
    let parent = match row.cell("parent")? {
        Some(oid) => match columns(oid, row.cell("parent_columns")?) {
            None => return Ok(None),
            parent => parent,
        },
        None => None,
    };
    let (columns, at_once) = (columns(row.cell("tbl")?, row.cell("columns")?), row.cell("at_once")?);
    Ok(columns.map(|columns| Tie { columns, parent, at_once }))
}

fn by_values(rows: Vec<(usize, Values)>) -> HashMap<Values, Vec<usize>> {
    let mut by_values: HashMap<Values, Vec<usize>> = HashMap::new();
    for (item, values) in rows {
        by_values.entry(values).or_default().push(item);
    }
    by_values
}

/// Each row with those that are found under its values.
fn pairs(rows: Vec<(usize, Values)>, found: &HashMap<Values, Vec<usize>>) -> Vec<(usize, usize)> {
    let others = |(one, values): (usize, Values)| {
        let others = found.get(&values).into_iter().flatten().copied();
        others.filter(move |other| *other != one).map(move |other| (one, other)).collect::<Vec<_>>()
    };
    rows.into_iter().flat_map(others).collect()
}

/// Child and parent may have different types for the same number.
fn comparable(value: Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Integer(i) => i.to_string(),
        Value::Real(r) => r.to_string(),
        other => other.to_json().to_string(),
    })
}
