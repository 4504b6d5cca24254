//! Comparing something with its raw twin: in one process, in turns, by the median.
//!
//! ```text
//! round 1   twin  a  b        (not counted)
//! round 2   a  b  twin        every line is run once per round, and every round begins with another one:
//! round 3   b  twin  a        what disturbs the machine disturbs all of them
//! ```
//!
//! Parts: [`Comparison`], the lines and their rounds; [`Figure`], what one line took. Where each run needs a ground of its own:
//! [`Samples`], what was measured by hand; [`verdict`], a figure beside its target.

// Whoever runs a benchmark wants to read the figures.
#![allow(clippy::print_stdout)]

use std::fmt;
use std::time::{Duration, Instant};

/// What one line took per operation, in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The name of the line.
    pub name: String,
    /// The middle one of all rounds.
    pub median: f64,
    /// The quickest round.
    pub min: f64,
    /// The slowest round.
    pub max: f64,
}

/// Lines that are run in turns. The first one is the twin, with which the others are compared.
pub struct Comparison<'run> {
    title: String,
    rounds: usize,
    lines: Vec<Line<'run>>,
}

struct Line<'run> {
    name: String,
    operations: u32,
    run: Box<dyn FnMut() + 'run>,
    took: Vec<f64>,
}

impl fmt::Debug for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparison").field("title", &self.title).finish_non_exhaustive()
    }
}

impl<'run> Comparison<'run> {
    /// A comparison without lines, of so many counted rounds.
    pub fn new(title: &str, rounds: usize) -> Self {
        Self { title: title.to_owned(), rounds, lines: Vec::new() }
    }

    /// Adds a line; the first one is the twin. `run` does `operations` operations each time it is called.
    #[must_use]
    pub fn line(mut self, name: &str, operations: u32, run: impl FnMut() + 'run) -> Self {
        self.lines.push(Line { name: name.to_owned(), operations, run: Box::new(run), took: Vec::new() });
        self
    }

    /// Runs all rounds, prints the table, and hands back the figures in the order of the lines.
    pub fn run(mut self) -> Vec<Figure> {
        let lines = self.lines.len();
        for (run, line) in turns(self.rounds + 1, lines).enumerate() {
            let line = &mut self.lines[line];
            let started = Instant::now();
            (line.run)();
            let took = started.elapsed();
            // The first round warms up.
            if run >= lines {
                line.took.push(nanoseconds(took) / f64::from(line.operations.max(1)));
            }
        }
        let figures: Vec<Figure> = self.lines.into_iter().map(|line| figure(line.name, line.took)).collect();
        print!("{}", table(&self.title, self.rounds, &figures));
        figures
    }
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn figure(name: String, mut took: Vec<f64>) -> Figure {
    took.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| took.get(index).copied().unwrap_or(f64::NAN);
    Figure { name, median: at(took.len() / 2), min: at(0), max: at(took.len().saturating_sub(1)) }
}

fn table(title: &str, rounds: usize, figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("\n{title} ({rounds} rounds in turns)\n");
    text += &format!("  {:width$}  {:>10}  {:>10}  {:>10}  {:>7}\n", "", "median", "min", "max", "ratio");
    for figure in figures {
        let [median, min, max] = [figure.median, figure.min, figure.max].map(readable);
        let ratio = figures.first().map_or(f64::NAN, |twin| figure.median / twin.median);
        let name = &figure.name;
        text += &format!("  {name:width$}  {median:>10}  {min:>10}  {max:>10}  {ratio:>6.2}x\n");
    }
    text
}

/// Nanoseconds in the unit in which they can be read.
fn readable(nanoseconds: f64) -> String {
    match nanoseconds {
        small if small < 1e3 => format!("{small:.1} ns"),
        middle if middle < 1e6 => format!("{:.1} us", middle / 1e3),
        large => format!("{:.2} ms", large / 1e6),
    }
}

/// A number that an environment variable may set.
///
/// # Panics
/// When it is set to something else.
pub fn from_environment(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// The parts of a benchmark whose names contain the word on the command line, all of them without one. Nothing without `--bench`:
/// that is a test run, which has nothing to wait for.
pub fn wanted<T: Copy>(parts: &[(&str, T)]) -> Option<Vec<T>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let word = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let named = parts.iter().filter(|(name, _)| name.contains(word)).map(|(_, part)| *part);
    arguments.iter().any(|argument| argument == "--bench").then(|| named.collect())
}

/// Which of so many lines is run next, in so many rounds, each of which begins with another one.
pub fn turns(rounds: usize, lines: usize) -> impl Iterator<Item = usize> {
    (0..rounds).flat_map(move |round| (0..lines).map(move |turn| (round + turn) % lines))
}

/// What one thing took each time, in seconds: the middle one, and the figures around it.
#[derive(Debug, Clone)]
pub struct Samples {
    name: &'static str,
    took: Vec<f64>,
}

impl Samples {
    /// None yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, took: vec![] }
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.took.len()
    }

    /// One more.
    pub fn add(&mut self, took: Duration) {
        self.took.push(took.as_secs_f64());
    }

    /// The one below which this share of them lies: 0.5 is the median, 1.0 the slowest. Not a number where there is none.
    pub fn at(&mut self, share: f64) -> f64 {
        self.took.sort_unstable_by(f64::total_cmp);
        let last = self.took.len().saturating_sub(1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let at = ((self.took.len() as f64 * share) as usize).min(last);
        self.took.get(at).copied().unwrap_or(f64::NAN)
    }

    /// Prints rows per second, and hands back the median's.
    pub fn rate(&mut self, rows: usize) -> f64 {
        let [median, slowest, quickest] = [0.5, 1.0, 0.0].map(|share| rows as f64 / self.at(share));
        println!("  {:28} {median:>10.0} rows/s  ({slowest:.0} to {quickest:.0})", self.name);
        median
    }

    /// Prints the median and what lies around it, in milliseconds, and hands back the median.
    pub fn time(&mut self) -> f64 {
        let [median, p99, quickest, slowest] = [0.5, 0.99, 0.0, 1.0].map(|share| self.at(share) * 1e3);
        println!("  {:28} {median:>10.2} ms  ({quickest:.2} to {slowest:.2}, p99 {p99:.2})", self.name);
        median
    }
}

/// Prints a figure beside its target.
pub fn verdict(what: &str, figure: f64, holds: bool, target: &str) {
    println!("  {what:28} {figure:>10.2}         target {target}: {}", if holds { "met" } else { "MISSED" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Nobody is always first, and the round that warms up is not counted.
    #[test]
    fn the_lines_take_turns() {
        let order = RefCell::new(String::new());
        let figures = Comparison::new("order", 2)
            .line("twin", 1, || order.borrow_mut().push('t'))
            .line("a", 1, || order.borrow_mut().push('a'))
            .line("b", 1, || order.borrow_mut().push('b'))
            .run();
        assert_eq!(*order.borrow(), "tababtbta");
        assert_eq!(figures.iter().map(|figure| &*figure.name).collect::<Vec<_>>(), ["twin", "a", "b"]);
    }

    /// The median is not moved by one bad round; the table says how many times the twin's it is.
    #[test]
    fn the_median_and_the_ratio_are_what_is_read() {
        let twin = figure("twin".to_owned(), vec![10.0, 1_000_000.0, 11.0]);
        assert_eq!((twin.median, twin.min, twin.max), (11.0, 10.0, 1_000_000.0));
        let line = figure("ours".to_owned(), vec![22.0; 3]);
        let table = table("title", 3, &[twin, line]);
        assert!(table.contains("22.0 ns     22.0 ns     22.0 ns    2.00x"), "{table}");
        assert!(table.contains("1.00 ms"), "{table}");
    }
}
