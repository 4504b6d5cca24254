//! Which rows of a round are refused, found by asking PostgreSQL about parts of it.
//!
//! ```text
//! who needs whom ─▶ groups, those that are needed first ─▶ halves of them ─▶ one group ─▶ its rows
//!                                                                                └─ refused alone: guilty, or waiting
//! who needs one that was refused ─▶ waiting, unasked
//! waiting ─▶ once more together, then one by one, as long as that changes anything ─▶ what is left to be halved
//! ```
//!
//! A row *needs* another one that leaves the unique value which it takes, that is its parent, or that is a child which has
//! to go before it. Rows that need each other in a circle (values that change places) are one group: none of them can be
//! accepted without the others, however many there are.
//!
//! Invariants:
//! - I1: a part is asked about on top of everything that was accepted before it, and that never becomes less.
//! - I2: a row is refused only if it was refused alone, or in the company of its whole group, after everything that it is
//!   known to need had been decided. So no row is refused for the sake of one that it does not need.
//! - I3: for r rows of n that are refused when asked alone there are at most `1 + 2 r (⌈log₂ n⌉ + 1)` questions, of which those
//!   that are known to need another one of them cost none; w of them that others may be the reason for cost 1 + w more, and
//!   that again only each time that one of them is accepted after all. Where every need is known, none is.
//! - I4: what was not asked about is neither accepted nor refused, and is named: beyond the limits, or when it takes long, the
//!   search ends early.
//! - I5: once it is in a [`hurry`](Isolation::hurry), a search of n rows of which w wait asks at most
//!   `2 (⌈log₂ n⌉ + 1) + w + 2` questions more, and has then accepted a row, refused one, or found one that stays behind.
//! - I6: whoever takes what was accepted to its end, parks what was refused, and takes a [`smaller`] round where nobody was
//!   guilty alone, has fewer rows left, or smaller rounds, after every search. So no search is repeated for ever, also where nobody
//!   is guilty: where the cloud refuses a number of rows, whichever they are.

use std::collections::{HashMap, HashSet};

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;

/// PostgreSQL's answer to a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<R> {
    /// It holds on top of everything accepted before.
    Accepted,
    /// Nothing of it is done.
    Refused {
        /// Why.
        why: R,
        /// Whether another row may be the reason.
        needs_others: bool,
        /// Whether the search may end with this row neither accepted nor refused.
        stays_behind: bool,
    },
}

/// How much is found in one search, which holds locks meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows that are refused for their own sake.
    pub guilty: usize,
    /// Rows that others may be the reason for.
    pub waiting: usize,
}

/// What a search has found. Everything that is not in here is accepted.
#[derive(Debug)]
pub struct Found<R> {
    /// The rows that are refused, and why.
    pub refused: Vec<(usize, R)>,
    /// Those that stay behind.
    pub behind: Vec<usize>,
    /// Those of which it is not known: the search ended early.
    pub unasked: Vec<usize>,
}

/// How many rows the next round may have after one of `window` rows at most, of which some were refused only together with the
/// `accepted` ones: no more than half, so that an end comes soon, but one at least. In a round of one row, whoever is refused
/// is guilty.
pub fn smaller(window: usize, accepted: usize) -> usize {
    accepted.min(window / 2).max(1)
}

/// The search. Ask about [`next`](Self::next), tell the [`verdict`](Self::verdict), until there is nothing to ask.
#[derive(Debug)]
pub struct Isolation<R> {
    limits: Limits,
    /// Parts that have not been asked about: groups, the next part last.
    parts: Vec<Vec<Vec<usize>>>,
    stage: Stage,
    /// What is asked about now.
    asked: Vec<Vec<usize>>,
    guilty: Vec<(usize, R)>,
    /// With the reason of those that were asked about.
    waiting: Vec<(usize, Option<R>)>,
    behind: Vec<usize>,
    /// Whom each row is known to need.
    needs: HashMap<usize, Vec<usize>>,
    /// All that are not accepted: guilty, waiting, behind.
    refused: HashSet<usize>,
    /// Those that were waiting when the search ended early.
    undecided: Vec<usize>,
    /// Whether anything was accepted.
    accepted: bool,
    /// Whether that is enough.
    in_hurry: bool,
}

#[derive(Debug)]
enum Stage {
    /// What has not been asked about.
    Halving,
    /// The waiting ones as a whole.
    Together,
    /// The waiting ones, the next one last; whether any was accepted since they were asked about together.
    OneByOne { left: Vec<usize>, progress: bool },
    /// Nothing is left to ask.
    Over,
}

impl<R> Isolation<R> {
    /// A search among `rows` rows in their order, of which the first of each pair needs the second.
    pub fn new(rows: usize, needs: &[(usize, usize)], limits: Limits) -> Self {
        let mut needs_of: HashMap<usize, Vec<usize>> = HashMap::new();
        for (one, other) in needs {
            needs_of.entry(*one).or_default().push(*other);
        }
        Self {
            limits,
            parts: vec![groups(rows, needs)],
            stage: Stage::Halving,
            asked: vec![],
            guilty: vec![],
            waiting: vec![],
            behind: vec![],
            needs: needs_of,
            refused: HashSet::new(),
            undecided: vec![],
            accepted: false,
            in_hurry: false,
        }
    }

    /// The part to ask about.
    #[expect(clippy::should_implement_trait, reason = "each one has to be answered before the next")]
    pub fn next(&mut self) -> Option<Vec<usize>> {
        let is_enough = self.accepted || !self.behind.is_empty();
        if self.guilty.len() >= self.limits.guilty || self.in_hurry && is_enough {
            // Whether the others are, only what has not been asked yet could tell.
            self.undecided.extend(self.waiting.drain(..).map(|(row, _)| row));
            return None;
        }
        loop {
            match &mut self.stage {
                Stage::Halving if self.waiting.len() >= self.limits.waiting => self.stage = Stage::Together,
                Stage::Halving => match self.parts.pop() {
                    Some(part) => {
                        self.asked = self.hopeful(part);
                        if !self.asked.is_empty() {
                            break;
                        }
                    }
                    None => self.stage = Stage::Together,
                },
                Stage::Together if self.waiting.is_empty() => self.go_on(),
                Stage::Together => {
                    self.asked = vec![self.waiting.iter().map(|(row, _)| *row).collect()];
                    break;
                }
                Stage::OneByOne { left, progress } => match left.pop() {
                    Some(row) => {
                        self.asked = vec![vec![row]];
                        break;
                    }
                    None if *progress => self.stage = Stage::Together,
                    None => self.go_on(),
                },
                Stage::Over => return None,
            }
        }
        Some(self.asked.concat())
    }

    /// The groups of a part that need nobody who was refused, and circles, as far as the others may wait: else nothing, and the
    /// part is left for later.
    fn hopeful(&mut self, part: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let mut hopeful = vec![];
        let mut groups = part.into_iter();
        while let Some(group) = groups.next() {
            let mut needs = group.iter().filter_map(|row| self.needs.get(row)).flatten();
            if group.len() > 1 || !needs.any(|other| self.refused.contains(other)) {
                hopeful.push(group);
            } else if self.waiting.len() < self.limits.waiting {
                self.refused.extend(&group);
                self.waiting.extend(group.into_iter().map(|row| (row, None)));
            } else {
                hopeful.push(group);
                hopeful.extend(groups);
                self.parts.push(hopeful);
                return vec![];
            }
        }
        hopeful
    }

    /// Nothing can be done for those that wait now. With the rest, where so many of them were accepted after all that it pays
    /// to begin with others.
    fn go_on(&mut self) {
        let goes_on = self.waiting.len() <= self.limits.waiting / 2 && !self.parts.is_empty();
        self.stage = if goes_on { Stage::Halving } else { Stage::Over };
    }

    /// It takes long: one row is enough now, accepted or not (I5).
    pub fn hurry(&mut self) {
        self.limits = Limits { guilty: 1, waiting: 1 };
        self.in_hurry = true;
    }

    /// The answer to what was asked last.
    pub fn verdict(&mut self, verdict: Verdict<R>) {
        let mut asked = std::mem::take(&mut self.asked);
        let Verdict::Refused { why, needs_others, stays_behind } = verdict else {
            self.accepted = true;
            match &mut self.stage {
                Stage::Halving | Stage::Over => {}
                Stage::Together => {
                    for (row, _) in self.waiting.drain(..) {
                        self.refused.remove(&row);
                    }
                }
                Stage::OneByOne { progress, .. } => {
                    *progress = true;
                    let row = asked[0][0];
                    self.waiting.retain(|(waiting, _)| *waiting != row);
                    self.refused.remove(&row);
                }
            }
            return;
        };
        match &mut self.stage {
            Stage::Halving => {
                if asked.len() == 1 && asked[0].len() > 1 {
                    // A circle that one of its own rows keeps from closing.
                    asked = asked[0].iter().map(|row| vec![*row]).collect();
                }
                if asked.len() > 1 {
                    let right = asked.split_off(asked.len() / 2);
                    self.parts.push(right);
                    self.parts.push(asked);
                    return;
                }
                let row = asked[0][0];
                self.refused.insert(row);
                if stays_behind {
                    self.behind.push(row);
                } else if needs_others {
                    self.waiting.push((row, Some(why)));
                } else {
                    self.guilty.push((row, why));
                }
            }
            Stage::Together if self.waiting.len() == 1 && stays_behind => {
                self.behind.extend(self.waiting.pop().map(|(row, _)| row));
                self.go_on();
            }
            Stage::Together if self.waiting.len() == 1 => {
                self.waiting[0].1 = Some(why);
                self.go_on();
            }
            // The order alternates, because chains have one.
            Stage::Together => {
                self.waiting.reverse();
                let left = self.waiting.iter().rev().map(|(row, _)| *row).collect();
                self.stage = Stage::OneByOne { left, progress: false };
            }
            Stage::OneByOne { .. } if stays_behind => {
                self.waiting.retain(|(row, _)| *row != asked[0][0]);
                self.behind.push(asked[0][0]);
            }
            Stage::OneByOne { .. } => {
                if let Some(known) = self.waiting.iter_mut().find(|(row, _)| *row == asked[0][0]) {
                    known.1 = Some(why);
                }
            }
            Stage::Over => {}
        }
    }

    /// What was found (I4).
    pub fn done(mut self) -> Found<R> {
        for (row, why) in self.waiting {
            match why {
                Some(why) => self.guilty.push((row, why)),
                None => self.undecided.push(row),
            }
        }
        let mut unasked = self.undecided;
        unasked.extend(self.parts.into_iter().flatten().flatten());
        Found { refused: self.guilty, behind: self.behind, unasked }
    }
}

/// The groups of more than one: rows that need each other in a circle.
pub fn circles(rows: usize, needs: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut circles = groups(rows, needs);
    circles.retain(|group| group.len() > 1);
    circles
}

/// The rows in groups that need each other, what is needed before what needs it; otherwise in their order.
fn groups(rows: usize, needs: &[(usize, usize)]) -> Vec<Vec<usize>> {
    if needs.is_empty() {
        return (0..rows).map(|row| vec![row]).collect();
    }
    let edges = needs
        .iter()
        .filter_map(|(one, other)| Some((u32::try_from(*one).ok()?, u32::try_from(*other).ok()?)));
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(rows, needs.len());
    for _ in 0..rows {
        graph.add_node(());
    }
    graph.extend_with_edges(edges);
    // Whoever is needed comes first.
    let mut groups: Vec<Vec<usize>> = tarjan_scc(&graph)
        .into_iter()
        .map(|group| group.into_iter().map(|node| node.index()).collect())
        .collect();
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const LIMITS: Limits = Limits { guilty: usize::MAX, waiting: usize::MAX };

    /// A cloud that knows who is guilty and who needs whom, and counts the questions.
    struct Cloud<'a> {
        guilty: &'a [usize],
        needs: &'a [(usize, usize)],
        accepted: HashSet<usize>,
        questions: usize,
    }

    impl Cloud<'_> {
        fn ask(&mut self, part: &[usize]) -> Verdict<()> {
            self.questions += 1;
            let there = |row: &usize| part.contains(row) || self.accepted.contains(row);
            let refused = |needs_others| Verdict::Refused { why: (), needs_others, stays_behind: false };
            if part.iter().any(|row| self.guilty.contains(row)) {
                return refused(false);
            }
            if self.needs.iter().any(|(one, other)| part.contains(one) && !there(other)) {
                return refused(true);
            }
            self.accepted.extend(part);
            Verdict::Accepted
        }
    }

    /// The refused rows and the number of questions.
    fn search(
        rows: usize,
        guilty: &[usize],
        needs: &[(usize, usize)],
        known: &[(usize, usize)],
    ) -> (Vec<usize>, usize) {
        let mut cloud = Cloud { guilty, needs, accepted: HashSet::new(), questions: 0 };
        let mut isolation = Isolation::new(rows, known, LIMITS);
        while let Some(part) = isolation.next() {
            assert!(part.iter().all(|row| !cloud.accepted.contains(row)), "asked twice");
            let verdict = cloud.ask(&part);
            isolation.verdict(verdict);
        }
        let mut refused: Vec<usize> = isolation.done().refused.into_iter().map(|(row, ())| row).collect();
        refused.sort_unstable();
        assert_eq!(refused.len() + cloud.accepted.len(), rows, "every row is one or the other");
        (refused, cloud.questions)
    }

    /// What no cloud could accept: the guilty, and who needs one of those.
    fn hopeless(guilty: &[usize], needs: &[(usize, usize)]) -> Vec<usize> {
        let mut hopeless = guilty.to_vec();
        loop {
            let more = needs.iter().find(|(one, other)| hopeless.contains(other) && !hopeless.contains(one));
            let Some((one, _)) = more else { break };
            hopeless.push(*one);
        }
        hopeless.sort_unstable();
        hopeless.dedup();
        hopeless
    }

    fn bound(rows: usize, refused: usize) -> usize {
        1 + 2 * refused * (rows.next_power_of_two().trailing_zeros() as usize + 1)
    }

    /// Whatever rows need of each other, circles, chains and both: exactly those are refused that nothing could help, within
    /// the stated number of questions.
    #[test]
    fn exactly_the_hopeless_are_refused_within_the_bound() {
        let mut random = fastrand::Rng::with_seed(7);
        for case in 0..3000 {
            let rows = random.usize(1..60);
            let guilty: Vec<usize> = (0..rows).filter(|_| random.usize(0..12) == 0).collect();
            let mut needs: Vec<(usize, usize)> = vec![];
            for _ in 0..random.usize(0..6) {
                // A circle, or a chain that stays open.
                let mut members: Vec<usize> = (0..rows).collect();
                random.shuffle(&mut members);
                members.truncate(random.usize(1..=rows.min(9)));
                needs.extend(members.windows(2).map(|pair| (pair[0], pair[1])));
                if random.bool() {
                    needs.push((members[members.len() - 1], members[0]));
                }
            }
            needs.retain(|(one, other)| one != other);
            let (refused, questions) = search(rows, &guilty, &needs, &needs);
            assert_eq!(refused, hopeless(&guilty, &needs), "case {case}: {guilty:?} {needs:?}");
            let most = bound(rows, refused.len()) + 1 + refused.len();
            assert!(questions <= most, "case {case}: {questions} questions, {most} are the bound");
        }
    }

    /// A circle of any length beside a guilty row that waits as well is accepted, and found in one piece.
    #[test]
    fn a_long_circle_is_not_blamed_for_its_neighbour() {
        let rows = 1000;
        let mut needs: Vec<(usize, usize)> = (0..rows - 1).map(|row| (row, (row + 1) % (rows - 1))).collect();
        // It waits for somebody who is not here.
        let guilty = [rows - 1];
        needs.retain(|(one, _)| *one != rows - 1);
        let (refused, questions) = search(rows, &guilty, &needs, &needs);
        assert_eq!(refused, guilty);
        assert!(questions <= 3, "{questions}");
    }

    /// Of a chain, only what comes after its guilty row goes with it.
    #[test]
    fn a_chain_breaks_behind_its_guilty_row() {
        let needs: Vec<(usize, usize)> = (1..100).map(|row| (row, row - 1)).collect();
        let (refused, _) = search(100, &[60], &needs, &needs);
        assert_eq!(refused, (60..100).collect::<Vec<_>>());
    }

    /// Needs that nobody knows of cost more questions; chains in either direction are still accepted.
    #[test]
    fn chains_that_nobody_knows_of_are_accepted() {
        let forwards: Vec<(usize, usize)> = (1..30).map(|row| (row, row - 1)).collect();
        let backwards: Vec<(usize, usize)> = (1..30).map(|row| (row - 1, row)).collect();
        for needs in [forwards, backwards] {
            assert_eq!(search(31, &[30], &needs, &[]).0, [30]);
        }
    }

    /// Beyond its limits it ends, and refuses nobody whom it has not asked about.
    #[test]
    fn beyond_its_limits_it_refuses_no_more() {
        let guilty: Vec<usize> = (0..50).collect();
        let mut cloud = Cloud { guilty: &guilty, needs: &[], accepted: HashSet::new(), questions: 0 };
        let mut isolation = Isolation::new(100, &[], Limits { guilty: 10, waiting: 10 });
        while let Some(part) = isolation.next() {
            let verdict = cloud.ask(&part);
            isolation.verdict(verdict);
        }
        let found = isolation.done();
        let refused: Vec<usize> = found.refused.into_iter().map(|(row, ())| row).collect();
        assert_eq!(refused, (0..10).collect::<Vec<_>>());
        assert_eq!(found.unasked.len(), 100 - 10 - cloud.accepted.len());
    }

    /// Where very many wait and are accepted after all, those that were not asked about before are, too: nobody is taken for
    /// accepted whom nobody asked about. Needs that nobody knows of, with and without guilty rows, around the limits.
    #[test]
    fn beyond_its_limits_everybody_is_accepted_refused_or_known_to_be_unasked() {
        let mut random = fastrand::Rng::with_seed(11);
        for case in 0..3000 {
            let rows = random.usize(1..80);
            let guilty: Vec<usize> = (0..rows).filter(|_| random.usize(0..40) == 0).collect();
            let needs: Vec<(usize, usize)> = (0..random.usize(0..rows))
                .map(|_| (random.usize(0..rows), random.usize(0..rows)))
                .filter(|(one, other)| one != other)
                .collect();
            let mut cloud = Cloud { guilty: &guilty, needs: &needs, accepted: HashSet::new(), questions: 0 };
            let limits = Limits { guilty: random.usize(1..4), waiting: random.usize(1..12) };
            let mut isolation = Isolation::new(rows, &[], limits);
            while let Some(part) = isolation.next() {
                assert!(part.iter().all(|row| !cloud.accepted.contains(row)), "case {case}: asked twice");
                let verdict = cloud.ask(&part);
                isolation.verdict(verdict);
            }
            let found = isolation.done();
            let known = found.refused.len() + cloud.accepted.len();
            assert_eq!(known + found.unasked.len(), rows, "case {case}: {known} of {rows}");
            assert!(found.unasked.is_empty() || !found.refused.is_empty(), "case {case}");
            assert!(cloud.questions <= 40 * rows, "case {case}: {} questions for {rows}", cloud.questions);
        }
    }

    /// Triples of which the second has to go before the first, and nobody knows: the limit is reached, all of them are accepted.
    #[test]
    fn many_that_waited_for_each_other_are_all_asked_about() {
        let rows = 300;
        let needs: Vec<(usize, usize)> =
            (0..rows / 3).flat_map(|t| [(3 * t, 3 * t + 1), (3 * t + 2, 3 * t)]).collect();
        let mut cloud = Cloud { guilty: &[], needs: &needs, accepted: HashSet::new(), questions: 0 };
        let mut isolation = Isolation::new(rows, &[], Limits { guilty: 10, waiting: 20 });
        // As a whole nothing is accepted: PostgreSQL checks row by row.
        isolation.next();
        isolation.verdict(Verdict::Refused { why: (), needs_others: true, stays_behind: false });
        while let Some(part) = isolation.next() {
            let first_before_second = part.windows(2).any(|pair| pair[0] % 3 == 0 && pair[1] == pair[0] + 1);
            let verdict = if first_before_second {
                Verdict::Refused { why: (), needs_others: true, stays_behind: false }
            } else {
                cloud.ask(&part)
            };
            isolation.verdict(verdict);
        }
        let found = isolation.done();
        assert_eq!((found.refused.len(), cloud.accepted.len(), found.unasked.len()), (0, rows, 0));
    }

    /// The children of a refused parent are asked about once each, and not with everybody else.
    #[test]
    fn children_of_a_refused_parent_cost_one_question_each() {
        let rows = 1000;
        let needs: Vec<(usize, usize)> = (501..541).map(|child| (child, 500)).collect();
        let (refused, questions) = search(rows, &[500], &needs, &needs);
        assert_eq!(refused, (500..541).collect::<Vec<_>>());
        assert!(questions <= bound(rows, 1) + 1 + 40, "{questions}");
    }

    /// Who stays behind keeps those behind that need it, and nobody is refused for that.
    #[test]
    fn who_needs_one_that_stays_behind_stays_behind() {
        let mut isolation: Isolation<()> = Isolation::new(2, &[(0, 1)], LIMITS);
        while isolation.next().is_some() {
            isolation.verdict(Verdict::Refused { why: (), needs_others: false, stays_behind: true });
        }
        let mut found = isolation.done();
        found.behind.sort_unstable();
        assert_eq!((found.refused.len(), found.behind, found.unasked), (0, vec![0, 1], vec![]));
    }

    /// A cloud that has something against numbers: of rows in a statement, and of rows in a transaction. It is the same for each of
    /// them, so nobody is guilty alone but those that are.
    struct Crowded {
        guilty: HashSet<usize>,
        at_once: usize,
        in_all: usize,
        accepted: HashSet<usize>,
    }

    impl Crowded {
        fn takes(&self, part: &[usize]) -> bool {
            let crowd = part.len() > self.at_once || part.len() + self.accepted.len() > self.in_all;
            !crowd && !part.iter().any(|row| self.guilty.contains(row))
        }

        fn ask(&mut self, part: &[usize]) -> Verdict<()> {
            if !self.takes(part) {
                return Verdict::Refused { why: (), needs_others: false, stays_behind: false };
            }
            self.accepted.extend(part);
            Verdict::Accepted
        }
    }

    /// Whatever number the cloud refuses, of rows in a statement or in a transaction, and after however few questions there is no
    /// time left: each search ends soon after that, after each of them fewer rows are left or rounds are smaller, and in
    /// the end exactly the guilty are parked.
    #[test]
    fn rounds_that_are_refused_for_their_number_come_to_an_end() {
        let mut random = fastrand::Rng::with_seed(13);
        for case in 0..1000 {
            let rows = random.usize(1..200);
            let guilty: HashSet<usize> = (0..rows).filter(|_| random.usize(0..20) == 0).collect();
            let (at_once, in_all) = (random.usize(1..40), random.usize(1..40));
            let mut left: Vec<usize> = (0..rows).collect();
            let mut window = random.usize(1..250);
            let mut parked = HashSet::new();
            while !left.is_empty() {
                let before = (left.len(), window);
                let round: Vec<usize> = left.iter().copied().take(window).collect();
                let mut cloud = Crowded { guilty: guilty.clone(), at_once, in_all, accepted: HashSet::new() };
                let limits = Limits { guilty: random.usize(1..10), waiting: 10 };
                let mut isolation = Isolation::new(round.len(), &[], limits);
                let (in_time, mut questions) = (random.usize(0..40), 0);
                while let Some(part) = isolation.next() {
                    let part: Vec<usize> = part.into_iter().map(|place| round[place]).collect();
                    let verdict = cloud.ask(&part);
                    isolation.verdict(verdict);
                    questions += 1;
                    if questions >= in_time {
                        isolation.hurry();
                    }
                }
                let levels = round.len().next_power_of_two().trailing_zeros() as usize + 1;
                let found = isolation.done();
                let known = found.refused.len() + cloud.accepted.len();
                assert_eq!(known + found.unasked.len(), round.len(), "case {case}: everybody is named");
                if !found.unasked.is_empty() && !found.refused.is_empty() {
                    assert!(found.refused.len() <= limits.guilty, "case {case}");
                } else if !found.unasked.is_empty() {
                    assert!(questions <= in_time.max(1) + 2 * levels + 2, "case {case}: {questions}");
                }
                let refused: Vec<usize> = found.refused.iter().map(|(place, ())| round[*place]).collect();
                let accepted = std::mem::take(&mut cloud.accepted);
                let (alone, crowded): (Vec<usize>, Vec<usize>) =
                    refused.into_iter().partition(|row| accepted.is_empty() || !cloud.takes(&[*row]));
                if !alone.is_empty() {
                    parked.extend(alone);
                } else if !crowded.is_empty() {
                    window = smaller(window, accepted.len());
                } else {
                    left.retain(|row| !accepted.contains(row));
                }
                left.retain(|row| !parked.contains(row));
                let after = (left.len(), window);
                assert!(after < before, "case {case}: {before:?} became {after:?}");
            }
            assert_eq!(parked, guilty, "case {case}");
        }
    }

    /// Short of time, a search of 50,000 rows asks no more than some thirty questions, whoever is guilty, and knows of one row then.
    #[test]
    fn who_is_in_a_hurry_knows_of_one_row_soon() {
        let rows = 50_000;
        for (at_once, guilty) in [(1, 0), (1, rows), (rows / 2, 0), (rows, 1)] {
            let guilty = (0..guilty).collect();
            let mut cloud = Crowded { guilty, at_once, in_all: rows, accepted: HashSet::new() };
            let mut isolation = Isolation::new(rows, &[], Limits { guilty: 100, waiting: 100 });
            isolation.hurry();
            let mut questions = 0;
            while let Some(part) = isolation.next() {
                let verdict = cloud.ask(&part);
                isolation.verdict(verdict);
                questions += 1;
            }
            let found = isolation.done();
            assert!(found.refused.len() + cloud.accepted.len() >= 1, "{at_once}");
            assert!(questions <= 2 * 17 + 2, "{questions}");
        }
    }

    /// Those that wait for others are put to the question once more, each of them, and no others.
    #[test]
    fn who_is_in_a_hurry_decides_about_those_that_wait() {
        let needs: Vec<(usize, usize)> = (0..40).map(|row| (row, 1000)).collect();
        let mut cloud = Cloud { guilty: &[], needs: &needs, accepted: HashSet::new(), questions: 0 };
        let mut isolation = Isolation::new(1000, &[], Limits { guilty: 100, waiting: 100 });
        let mut since = 0;
        while let Some(part) = isolation.next() {
            let verdict = cloud.ask(&part);
            isolation.verdict(verdict);
            if isolation.waiting.len() >= 20 {
                isolation.hurry();
                since += 1;
            }
        }
        let found = isolation.done();
        assert!(since <= 1 + 20 + 2, "{since}");
        assert_eq!((found.refused.len(), found.unasked.len()), (20, 980));
    }

    /// The figure of the main case: 13 of 10,000.
    #[test]
    fn thirteen_of_ten_thousand_take_a_few_hundred_questions() {
        let guilty: Vec<usize> = (0..13).map(|at| at * 769 + 5).collect();
        let (refused, questions) = search(10_000, &guilty, &[], &[]);
        assert_eq!(refused, guilty);
        assert_eq!((questions, bound(10_000, 13)), (277, 391));
    }
}
