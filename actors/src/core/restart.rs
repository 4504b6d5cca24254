//! The supervisor's mind: which child starts, stops or starts again, when, and when it is enough.
//!
//! Parts: [`Restarts`], the machine, with its one transition function [`Restarts::advance`]; [`Event`] in, [`Effect`]
//! out; [`ChildRules`], [`Strategy`] and [`Intensity`], what Erlang/OTP calls a child specification and supervisor
//! flags. The shell (`supervision`) performs the effects and feeds what comes of them back:
//!
//! ```text
//! LaunchRequested ─▶ Start ─▶ ChildStarted … in order ─▶ Launched
//!                          └▶ StartFailed ─▶ what was started stops, in reverse ─▶ Ended(StartFailed)
//! ChildEnded ─┬─ within the intensity: (rest_for_one: Stop the later ones, in reverse) ─▶ ScheduleAt ─▶ Start …
//!             └─ beyond it: GaveUp ─▶ Stop all, in reverse ─▶ Ended(GaveUp)
//! ThreadBlocked ─▶ Abandon whoever lives there ─▶ as after ChildEnded
//! ShutdownRequested ─▶ Stop, each within its bound, or Abandon ─▶ Ended(ShutDown)
//! ```
//!
//! Nothing is a script: every child has a state and a wish, and after each event one rule for stopping and one for
//! starting are applied. So an end that comes in the middle of something else needs no case of its own.
//!
//! What holds, and is asserted below on random histories too:
//!
//! - **S1** A child has at most one living generation, and no number is used twice.
//! - **S2** What a dead generation says changes nothing.
//! - **S3** Within any [`Intensity::within`] there are at most [`Intensity::restarts_max`] restarts; one more, and it
//!   gives up, once, and starts nobody ever after.
//! - **S4** A child is told to stop only when no later one lives that has to stop as well.
//! - **S5** In a launch, and always under `rest_for_one`, a child starts only when every earlier one that is wanted is
//!   up, and nobody is stopping.
//! - **S6** A temporary child is started once. A transient one that ended normally comes back only along with an earlier
//!   one under `rest_for_one`.
//! - **S7** It ends when it was asked to, gave up or could not start, and then every child is down or named as left.
//! - **S8** It never sleeps for ever: a child that is wanted and down waits for another one's answer, or a wake-up is
//!   armed. The same goes for a child that has to end in time.
//!
//! One thing is not OTP's: the wait between restarts in a row. The first comes at once, the following ones after
//! [`WAIT`], doubled up to [`WAIT_MAX`].
//!
//! Times are durations since an origin of the shell's choice, so nothing here reads a clock.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// The wait before the second restart in a row; it doubles up to [`WAIT_MAX`]. The first comes at once.
pub const WAIT: Duration = Duration::from_millis(10);
/// The longest wait before a restart.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// When a child that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// When it ended abnormally: by a panic, stuck, with its thread, or in a start that failed.
    Transient,
    /// Never.
    Temporary,
}

/// Who else is restarted along with a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Nobody.
    #[default]
    OneForOne,
    /// Those that were started after it: stopped in reverse order, and started again in order.
    RestForOne,
}

/// More than `restarts_max` restarts within `within`, over all children, and the supervisor gives up. The default is
/// OTP's: one restart in five seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// So many restarts are borne …
    pub restarts_max: u32,
    /// … within this time.
    pub within: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self { restarts_max: 1, within: Duration::from_secs(5) }
    }
}

/// What the machine has to know about a child.
#[derive(Debug, Clone, Copy)]
pub struct ChildRules {
    /// For people.
    pub name: &'static str,
    /// When it is started again.
    pub restart: Restart,
    /// How long it may take to stop; `None` waits for ever, which is for those that are bounded themselves.
    pub stop_within: Option<Duration>,
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It stopped by itself.
    Normal,
    /// Anything else, in words.
    Abnormal(String),
}

/// What happened. A child is named by its place in the order of starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All children shall run.
    LaunchRequested,
    /// It is up.
    ChildStarted {
        /// Which.
        child: usize,
        /// As in [`Effect::Start`].
        generation: u64,
    },
    /// It could not be started.
    StartFailed {
        /// Which.
        child: usize,
        /// As in [`Effect::Start`].
        generation: u64,
        /// Why, in words.
        why: String,
    },
    /// It is no more.
    ChildEnded {
        /// Which.
        child: usize,
        /// As in [`Effect::Start`].
        generation: u64,
        /// How.
        end: End,
    },
    /// A child holds its thread and does not let go of it. Whoever shares the thread is as good as dead.
    ThreadBlocked {
        /// Who blocks.
        child: usize,
        /// As in [`Effect::Start`].
        generation: u64,
        /// What it does, in words.
        why: String,
        /// Who lives there too, with generations. Their fresh start is part of the blocker's restart.
        others: Vec<(usize, u64)>,
    },
    /// The time of the last [`Effect::ScheduleAt`] has come.
    Woke,
    /// All children shall end.
    ShutdownRequested,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make a new generation and come back with [`Event::ChildStarted`] or [`Event::StartFailed`].
    Start {
        /// Which.
        child: usize,
        /// Its number, to be named in every event about it.
        generation: u64,
    },
    /// Ask it to stop and come back with [`Event::ChildEnded`].
    Stop {
        /// Which.
        child: usize,
        /// Its number.
        generation: u64,
    },
    /// It does not end or cannot be reached: cut it off, nothing that it says counts any more.
    Abandon {
        /// Which.
        child: usize,
        /// Its number.
        generation: u64,
    },
    /// Come back with [`Event::Woke`] at this time; replaces the wake-up before.
    ScheduleAt(Duration),
    /// Every child is up for the first time.
    Launched,
    /// The intensity is exceeded. Everything stops now.
    GaveUp(GaveUp),
    /// Nothing is alive, nothing will be.
    Ended {
        /// Why.
        ending: Ending,
        /// Who did not stop in time, by name.
        left: Vec<&'static str>,
    },
    /// Write this line.
    Log(Notice),
}

/// Why a supervisor gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaveUp {
    /// The child that ended once too often.
    pub child: &'static str,
    /// So many restarts, over all children, had been borne …
    pub restarts: u32,
    /// … within this time.
    pub within: Duration,
    /// How the child ended the last time: the text of the panic, or what else it was.
    pub last: String,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { child, restarts, within, last } = self;
        let times = if *restarts == 1 { "restart" } else { "restarts" };
        let within = within.as_secs_f64();
        write!(
            f,
            "{child} ended unexpectedly after {restarts} {times} within {within} s; supervision gives up. "
        )?;
        write!(f, "The last time: {last}")
    }
}

/// Why a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to.
    ShutDown,
    /// The intensity was exceeded.
    GaveUp(GaveUp),
    /// A child could not be started for the first time.
    StartFailed {
        /// Which.
        child: &'static str,
        /// Why, in words.
        why: String,
    },
}

/// A log line as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A restart.
    Restarted {
        /// Who.
        child: &'static str,
        /// How it ended.
        end: End,
        /// The how many-th restart within the window.
        count: u32,
        /// How many are borne.
        restarts_max: u32,
    },
    /// It ended, and that is that.
    NotRestarted {
        /// Who.
        child: &'static str,
        /// How it ended.
        end: End,
    },
    /// It was abandoned.
    NotStopped {
        /// Who.
        child: &'static str,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Why has a line of its own, with more in it.
            Self::Restarted { child, count, restarts_max, .. } => {
                write!(f, "{child} ended unexpectedly and is restarted ({count} of {restarts_max})")
            }
            Self::NotRestarted { child, end: End::Normal } => write!(f, "{child} is done"),
            Self::NotRestarted { child, end: End::Abnormal(why) } => write!(f, "{child} ended: {why}"),
            Self::NotStopped { child } => write!(f, "{child} did not stop in time and is left behind"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Starting,
    Up,
    Stopping { deadline: Option<Duration> },
}

#[derive(Debug)]
struct Child {
    rules: ChildRules,
    state: State,
    generation: u64,
    /// It shall run.
    wanted: bool,
    /// It has to stop before it may run again, because an earlier one is restarted.
    doomed: bool,
    /// It was up once.
    born: bool,
    not_before: Duration,
}

impl Child {
    fn alive(&self) -> bool {
        self.state != State::Down
    }

    fn must_stop(&self) -> bool {
        self.alive() && (self.doomed || !self.wanted)
    }

    /// Its turn comes along with an earlier one's restart. Temporary children do not come again.
    fn renew(&mut self) {
        self.wanted = self.rules.restart != Restart::Temporary;
        self.doomed = self.alive();
    }
}

/// The machine.
#[derive(Debug)]
pub struct Restarts {
    strategy: Strategy,
    intensity: Intensity,
    children: Vec<Child>,
    generations: u64,
    recent: VecDeque<Duration>,
    launching: bool,
    ending: Option<Ending>,
    over: bool,
    left: Vec<&'static str>,
    armed: Option<Duration>,
}

impl Restarts {
    /// A machine for these children, in the order of starting. It does nothing before [`Event::LaunchRequested`].
    pub fn new(
        strategy: Strategy,
        intensity: Intensity,
        children: impl IntoIterator<Item = ChildRules>,
    ) -> Self {
        let child = |rules| Child {
            rules,
            state: State::Down,
            generation: 0,
            wanted: false,
            doomed: false,
            born: false,
            not_before: Duration::ZERO,
        };
        Self {
            strategy,
            intensity,
            children: children.into_iter().map(child).collect(),
            generations: 0,
            recent: VecDeque::new(),
            launching: false,
            ending: None,
            over: false,
            left: vec![],
            armed: None,
        }
    }

    /// The living generation of a child.
    pub fn living(&self, child: usize) -> Option<u64> {
        self.children.get(child).filter(|child| child.alive()).map(|child| child.generation)
    }

    /// Whether a child runs or is going to.
    pub fn is_wanted(&self, child: usize) -> bool {
        self.children.get(child).is_some_and(|child| child.wanted)
    }

    /// The one transition function: time never runs backwards.
    pub fn advance(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = vec![];
        if self.over {
            return effects;
        }
        match event {
            Event::LaunchRequested => {
                self.launching = true;
                self.children.iter_mut().for_each(|child| child.wanted = true);
            }
            Event::ChildStarted { child, generation } if self.living(child) == Some(generation) => {
                let child = &mut self.children[child];
                child.born = true;
                if child.state == State::Starting {
                    child.state = State::Up;
                }
            }
            Event::StartFailed { child, generation, why } if self.living(child) == Some(generation) => {
                self.ended(child, End::Abnormal(why), now, &mut effects);
            }
            Event::ChildEnded { child, generation, end } if self.living(child) == Some(generation) => {
                self.ended(child, end, now, &mut effects);
            }
            Event::ThreadBlocked { child, generation, why, others }
                if self.living(child) == Some(generation) =>
            {
                self.thread_blocked(child, why, &others, now, &mut effects);
            }
            // From a dead generation.
            Event::ChildStarted { .. }
            | Event::StartFailed { .. }
            | Event::ChildEnded { .. }
            | Event::ThreadBlocked { .. } => return effects,
            Event::Woke => self.armed = None,
            Event::ShutdownRequested => self.end(Ending::ShutDown),
        }
        self.settle(now, &mut effects);
        effects
    }

    fn ended(&mut self, at: usize, end: End, now: Duration, effects: &mut Vec<Effect>) {
        let child = &mut self.children[at];
        let expected = child.must_stop();
        let initial = !child.born;
        child.state = State::Down;
        child.doomed = false;
        if expected {
            return;
        }
        let name = child.rules.name;
        match (child.rules.restart, end) {
            (_, End::Abnormal(why)) if self.launching && initial => {
                self.end(Ending::StartFailed { child: name, why });
            }
            (Restart::Temporary, end) | (Restart::Transient, end @ End::Normal) => {
                child.wanted = false;
                effects.push(Effect::Log(Notice::NotRestarted { child: name, end }));
            }
            (_, end) => self.restart(at, end, now, effects),
        }
    }

    fn thread_blocked(
        &mut self,
        at: usize,
        why: String,
        others: &[(usize, u64)],
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let mut first = at;
        for (other, generation) in others.iter().copied() {
            if other == at || self.living(other) != Some(generation) {
                continue;
            }
            let expected = self.children[other].must_stop();
            self.abandon(other, effects);
            if !expected {
                first = first.min(other);
                self.children[other].renew();
            }
        }
        let expected = self.children[at].must_stop();
        self.abandon(at, effects);
        if !expected {
            self.ended(at, End::Abnormal(why), now, effects);
        }
        if self.ending.is_none() && self.strategy == Strategy::RestForOne {
            self.children.iter_mut().skip(first + 1).filter(|child| child.alive()).for_each(Child::renew);
        }
    }

    /// Its end is not awaited any more.
    fn abandon(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let child = &mut self.children[at];
        if child.must_stop() {
            self.left.push(child.rules.name);
            effects.push(Effect::Log(Notice::NotStopped { child: child.rules.name }));
        }
        child.state = State::Down;
        child.doomed = false;
        effects.push(Effect::Abandon { child: at, generation: child.generation });
    }

    fn restart(&mut self, at: usize, end: End, now: Duration, effects: &mut Vec<Effect>) {
        let Intensity { restarts_max, within } = self.intensity;
        // As in OTP, a restart exactly `within` ago still counts.
        while self.recent.front().is_some_and(|first| now.saturating_sub(*first) > within) {
            self.recent.pop_front();
        }
        let before = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        let child = self.children[at].rules.name;
        if before >= restarts_max {
            let last = match end {
                End::Normal => "it stopped by itself".to_owned(),
                End::Abnormal(why) => why,
            };
            let gave_up = GaveUp { child, restarts: before, within, last };
            effects.push(Effect::GaveUp(gave_up.clone()));
            self.end(Ending::GaveUp(gave_up));
            return;
        }
        self.recent.push_back(now);
        effects.push(Effect::Log(Notice::Restarted { child, end, count: before + 1, restarts_max }));
        self.children[at].not_before = now + wait_after(before);
        if self.strategy == Strategy::RestForOne {
            self.children.iter_mut().skip(at + 1).for_each(Child::renew);
        }
    }

    fn end(&mut self, ending: Ending) {
        self.launching = false;
        if self.ending.is_none() {
            self.ending = Some(ending);
        }
        self.children.iter_mut().for_each(|child| child.wanted = false);
    }

    /// Applies the rules until they say nothing new.
    fn settle(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        for at in (0..self.children.len()).rev() {
            if matches!(self.children[at].state, State::Stopping { deadline: Some(deadline) } if deadline <= now)
            {
                self.abandon(at, effects);
            }
        }
        // S4: one at a time, the last one first.
        if let Some(at) = self.children.iter().rposition(Child::must_stop) {
            let child = &mut self.children[at];
            if !matches!(child.state, State::Stopping { .. }) {
                let deadline = child.rules.stop_within.map(|within| now + within);
                child.state = State::Stopping { deadline };
                effects.push(Effect::Stop { child: at, generation: child.generation });
            }
        }
        let ordered = self.launching || self.strategy == Strategy::RestForOne;
        if !(ordered && self.children.iter().any(Child::must_stop)) {
            for at in 0..self.children.len() {
                let child = &mut self.children[at];
                if child.wanted && !child.alive() && child.not_before <= now {
                    self.generations += 1;
                    child.generation = self.generations;
                    child.state = State::Starting;
                    effects.push(Effect::Start { child: at, generation: self.generations });
                }
                // S5: the later ones wait until this one is up.
                if ordered && self.children[at].wanted && self.children[at].state != State::Up {
                    break;
                }
            }
        }
        if self.launching && self.children.iter().all(|child| !child.wanted || child.state == State::Up) {
            self.launching = false;
            effects.push(Effect::Launched);
        }
        if let Some(ending) = &self.ending
            && !self.children.iter().any(Child::alive)
        {
            self.over = true;
            effects.push(Effect::Ended { ending: ending.clone(), left: std::mem::take(&mut self.left) });
            return;
        }
        self.arm(now, effects);
    }

    fn arm(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let due = |child: &Child| match child.state {
            State::Stopping { deadline } => deadline,
            State::Down if child.wanted => Some(child.not_before).filter(|at| *at > now),
            _ => None,
        };
        let next = self.children.iter().filter_map(due).min();
        if let Some(at) = next
            && self.armed != next
        {
            effects.push(Effect::ScheduleAt(at));
        }
        self.armed = next;
    }
}

/// The wait before a restart that so many others precede in the window.
fn wait_after(before: u32) -> Duration {
    match before {
        0 => Duration::ZERO,
        n => WAIT.saturating_mul(2_u32.saturating_pow(n - 1)).min(WAIT_MAX),
    }
}

/// Whether a child gets on: what a watchdog remembers between two looks at a child's beat.
///
/// A beat is a number that grows with every sign of life. It is odd while the child holds its thread, even while it
/// waits for something to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch {
    /// The beat at the last look, when that was, and how long it has stood still.
    seen: Option<(u64, Duration, Duration)>,
}

impl Watch {
    /// Looks, which shall happen several times within `stuck_after`, and says for how long the child has held its
    /// thread without a sign of life, when that is `stuck_after` or more.
    ///
    /// No pause between two looks counts for more than a third of it: when the whole process was stopped, the child gets
    /// its chance first.
    pub fn look(&mut self, beat: u64, now: Duration, stuck_after: Duration) -> Option<Duration> {
        let silence = match self.seen {
            Some((seen, last, silence)) if seen == beat && beat % 2 == 1 => {
                silence + now.saturating_sub(last).min(stuck_after / 3)
            }
            _ => Duration::ZERO,
        };
        self.seen = Some((beat, now, silence));
        (silence >= stuck_after).then_some(silence)
    }
}

#[cfg(test)]
#[path = "restart_tests.rs"]
mod tests;
