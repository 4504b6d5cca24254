//! When the syncer works, waits, or is quiet: the pure machine behind `CloudSyncer`.
//!
//! Work happens in cycles: settle, pull, flush, pull. At most one cycle is under way.
//!
//! - Y1: no cycle begins while the cloud is not available, and none is left running when it is lost.
//! - Y2: whatever asks for work while a cycle runs is not forgotten: another cycle follows.
//! - Y3: a failed cycle is tried again without anybody writing anything, after a wait that doubles up to a bound; where
//!   a retry cannot help, only at the bound, when asked, or when the cloud comes back.
//! - Y4: the end of an older cycle decides nothing.

use std::time::Duration;

use super::failure::FailureClass;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The cloud is available.
    Available,
    /// It is not.
    Unavailable(Option<FailureClass>),
    /// The journal grew, here or by another program.
    Grew,
    /// Another device may have changed something.
    Heard,
    /// Somebody asked for a cycle.
    Asked,
    /// From now on other times hold.
    Paced(Pace),
    /// The wait that was asked for is over.
    Woke {
        /// The wait's number.
        wait: u64,
    },
    /// A cycle ended.
    Ended {
        /// The cycle's number.
        cycle: u64,
        /// How.
        outcome: Outcome,
        /// How long it took.
        took: Duration,
    },
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that waited when it began is done.
    Done,
    /// The same, and others had changed something, or there is more to tidy up.
    News,
    /// The cloud, or the link to it, failed.
    Failed(FailureClass),
    /// The local side could not go on: a locked file, a full disk, a schema that changed.
    Interrupted,
    /// The circuit is open: nothing was tried, so nothing failed.
    Held,
    /// The circuit has not heard yet what is known here; it will in a moment.
    Early,
}

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Begin a cycle.
    Start {
        /// Its number.
        cycle: u64,
    },
    /// End the cycle that runs, wherever it is.
    Cancel,
    /// Wake the machine; an older wait is void.
    Wake {
        /// The wait's number.
        wait: u64,
        /// How long.
        after: Duration,
    },
}

/// The times that the machine keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From a new entry to the cycle that carries it: what comes within it goes along.
    pub debounce: Duration,
    /// Between two looks at the feed while nothing happens here.
    pub pull_interval: Duration,
    /// The same, at most, for a while after others have changed something.
    pub poll_interval: Duration,
    /// The same right after that, at least.
    pub poll_first: Duration,
    /// The wait after the first failure.
    pub retry_delay: Duration,
    /// The longest wait.
    pub max_retry_delay: Duration,
}

/// For how long, after somebody else's change, the next one is expected.
const LIVELY: Duration = Duration::from_secs(30);

/// The next change is expected soon, or as long after the last one as nothing has come already: a look comes after this part of
/// that time.
const PATIENT_PART: u32 = 8;

/// Nobody looks more often than this many times the time that it takes: a server, or a link, that is slow is asked seldom.
const AT_EASE: u32 = 4;

/// Between two questions to a circuit that has not heard yet; shorter ones would be a busy loop.
const MOMENT: Duration = Duration::from_millis(2);

/// What the machine is doing, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The cloud is not available.
    Offline,
    /// It is reachable, but must not be synced with.
    Blocked,
    /// A cycle runs.
    Working,
    /// Nothing to do.
    Idle,
}

/// The machine.
#[derive(Debug)]
pub struct Syncing {
    pace: Pace,
    available: bool,
    blocked: bool,
    running: Option<u64>,
    again: bool,
    /// A debounce is under way, which further entries do not prolong.
    debouncing: bool,
    failures: u32,
    /// For how long nobody else has changed anything, as long as the next change is expected.
    quiet: Option<Duration>,
    cycles: u64,
    waits: u64,
}

impl Syncing {
    /// A machine that waits for the cloud.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            available: false,
            blocked: false,
            running: None,
            again: false,
            debouncing: false,
            failures: 0,
            quiet: None,
            cycles: 0,
            waits: 0,
        }
    }

    /// Whether it was told that the cloud is there.
    pub fn is_available(&self) -> bool {
        self.available
    }

    /// How many cycles in a row have failed since the cloud came.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match (self.blocked, self.available, self.running) {
            (true, ..) => State::Blocked,
            (_, false, _) => State::Offline,
            (_, _, Some(_)) => State::Working,
            _ => State::Idle,
        }
    }

    /// The one transition function.
    pub fn advance(&mut self, event: Event) -> Vec<Effect> {
        let effects = match event {
            Event::Available => {
                self.available = true;
                self.blocked = false;
                self.failures = 0;
                self.start_or_remember()
            }
            Event::Unavailable(class) => {
                self.available = false;
                self.again = false;
                self.debouncing = false;
                self.waits += 1;
                self.blocked = matches!(class, Some(FailureClass::Credentials | FailureClass::NotOurs));
                match self.running.take() {
                    Some(_) => vec![Effect::Cancel],
                    None => vec![],
                }
            }
            Event::Heard => {
                self.expect_more();
                self.soon()
            }
            Event::Grew => self.soon(),
            Event::Paced(pace) => {
                self.pace = pace;
                // The look that is under way, or that comes now, is followed by a wait of the new length.
                if self.running.is_some() { vec![] } else { self.soon() }
            }
            Event::Asked if self.available => self.start_or_remember(),
            Event::Asked => vec![],
            Event::Woke { wait } if wait == self.waits && self.available && self.running.is_none() => {
                self.start_or_remember()
            }
            Event::Woke { .. } => vec![],
            Event::Ended { cycle, outcome, took } if self.running == Some(cycle) => {
                self.running = None;
                self.ended(outcome, took)
            }
            Event::Ended { .. } => vec![],
        };
        debug_assert!(self.available || self.running.is_none(), "Y1");
        effects
    }

    fn soon(&mut self) -> Vec<Effect> {
        match (self.available, self.running) {
            (true, Some(_)) => {
                self.again = true;
                vec![]
            }
            // A failure's wait is not cut short by new entries: they change nothing about its cause.
            (true, None) if self.failures == 0 && !self.debouncing => {
                self.debouncing = true;
                vec![self.wake(self.pace.debounce)]
            }
            _ => vec![],
        }
    }

    fn expect_more(&mut self) {
        self.quiet = Some(Duration::ZERO);
    }

    /// How long until the next look at the feed.
    fn until_next_look(&mut self, took: Duration) -> Duration {
        let Pace { pull_interval, poll_interval, poll_first, .. } = self.pace;
        let Some(quiet) = &mut self.quiet else { return pull_interval };
        let wait = poll_first.max(*quiet / PATIENT_PART).max(took * AT_EASE).min(poll_interval);
        *quiet += took + wait;
        if *quiet > LIVELY {
            self.quiet = None;
        }
        wait.min(pull_interval)
    }

    fn ended(&mut self, outcome: Outcome, took: Duration) -> Vec<Effect> {
        match outcome {
            Outcome::Done | Outcome::News => {
                self.failures = 0;
                self.blocked = false;
                if outcome == Outcome::News {
                    self.expect_more();
                }
                if std::mem::take(&mut self.again) {
                    return self.start_or_remember();
                }
                let after = self.until_next_look(took);
                vec![self.wake(after)]
            }
            Outcome::Failed(class) if !class.retry_helps() => {
                self.blocked = true;
                self.failures += 1;
                vec![self.wake(self.pace.max_retry_delay)]
            }
            // Asking the gate again costs an atomic load and no connection. Doubling here would add its own wait to
            // the circuit's.
            Outcome::Held => vec![self.wake(self.pace.retry_delay)],
            Outcome::Early => vec![self.wake(self.pace.debounce.max(MOMENT))],
            Outcome::Failed(_) | Outcome::Interrupted => {
                self.blocked = false;
                let doubled = 2u32.saturating_pow(self.failures.min(20));
                self.failures += 1;
                let after = self.pace.retry_delay.saturating_mul(doubled).min(self.pace.max_retry_delay);
                vec![self.wake(after)]
            }
        }
    }

    fn start_or_remember(&mut self) -> Vec<Effect> {
        self.debouncing = false;
        if self.running.is_some() {
            self.again = true;
            return vec![];
        }
        self.cycles += 1;
        self.waits += 1;
        self.running = Some(self.cycles);
        vec![Effect::Start { cycle: self.cycles }]
    }

    fn wake(&mut self, after: Duration) -> Effect {
        self.waits += 1;
        Effect::Wake { wait: self.waits, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        debounce: Duration::from_millis(5),
        pull_interval: Duration::from_secs(10),
        poll_interval: Duration::from_secs(1),
        poll_first: Duration::from_millis(20),
        retry_delay: Duration::from_secs(1),
        max_retry_delay: Duration::from_secs(60),
    };

    const TOOK: Duration = Duration::from_millis(2);

    fn started(effects: &[Effect]) -> Option<u64> {
        effects.iter().find_map(|effect| match effect {
            Effect::Start { cycle } => Some(*cycle),
            _ => None,
        })
    }

    fn wake(effects: &[Effect]) -> Option<(u64, Duration)> {
        effects.iter().find_map(|effect| match effect {
            Effect::Wake { wait, after } => Some((*wait, *after)),
            _ => None,
        })
    }

    /// While the circuit is open it is asked again at a steady pace, however often the answer was no.
    #[test]
    fn an_open_circuit_does_not_double_the_wait() {
        let mut machine = Syncing::new(PACE);
        let mut cycle = started(&machine.advance(Event::Available)).unwrap();
        for _ in 0..20 {
            let (wait, after) =
                wake(&machine.advance(Event::Ended { cycle, outcome: Outcome::Held, took: TOOK })).unwrap();
            assert_eq!(after, PACE.retry_delay);
            cycle = started(&machine.advance(Event::Woke { wait })).unwrap();
        }
    }

    /// After somebody else's change the feed is looked at at once again and again, then less and less often, and after half a
    /// minute as before.
    #[test]
    fn one_change_makes_the_next_one_likely() {
        let mut machine = Syncing::new(PACE);
        let mut cycle = started(&machine.advance(Event::Available)).unwrap();
        let mut outcome = Outcome::News;
        let mut waits = vec![];
        for _ in 0..100 {
            let (wait, after) = wake(&machine.advance(Event::Ended { cycle, outcome, took: TOOK })).unwrap();
            waits.push(after);
            outcome = Outcome::Done;
            cycle = started(&machine.advance(Event::Woke { wait })).unwrap();
        }
        assert_eq!((waits[0], waits[5]), (PACE.poll_first, PACE.poll_first));
        let lively = waits.iter().take_while(|wait| **wait < PACE.pull_interval).count();
        assert!(waits[..lively].is_sorted() && lively < 70, "{waits:?}");
        assert_eq!(waits[lively - 1], PACE.poll_interval);
        let in_all: Duration = waits[..lively].iter().sum();
        assert!(
            in_all > LIVELY - PACE.poll_interval * 2 && in_all <= LIVELY + PACE.poll_interval,
            "{in_all:?}"
        );
        assert!(waits[lively..].iter().all(|wait| *wait == PACE.pull_interval));
    }

    /// Who takes long to answer is asked seldom, however much is going on there.
    #[test]
    fn a_slow_server_is_asked_seldom() {
        let mut machine = Syncing::new(PACE);
        let cycle = started(&machine.advance(Event::Available)).unwrap();
        let took = Duration::from_millis(100);
        let (wait, after) =
            wake(&machine.advance(Event::Ended { cycle, outcome: Outcome::News, took })).unwrap();
        assert_eq!(after, took * AT_EASE);
        let cycle = started(&machine.advance(Event::Woke { wait })).unwrap();
        let took = Duration::from_secs(9);
        let (_, after) =
            wake(&machine.advance(Event::Ended { cycle, outcome: Outcome::News, took })).unwrap();
        assert_eq!(after, PACE.poll_interval);
    }

    /// Another pull interval holds from now on: a syncer that only waits looks soon, and then at the new interval; one that
    /// works finishes first; the wait after a failure stays as long as it was, and nobody who is offline is woken.
    #[test]
    fn another_pace_holds_from_now_on() {
        let faster = Pace { pull_interval: Duration::from_secs(2), ..PACE };
        let mut machine = Syncing::new(PACE);
        assert_eq!(machine.advance(Event::Paced(PACE)), vec![], "offline");
        let cycle = started(&machine.advance(Event::Available)).unwrap();
        assert_eq!(machine.advance(Event::Paced(faster)), vec![], "it works");
        let (_, after) = wake(&machine.advance(Event::Ended { cycle, outcome: Outcome::Done, took: TOOK })).unwrap();
        assert_eq!(after, faster.pull_interval);
        let (wait, after) = wake(&machine.advance(Event::Paced(PACE))).unwrap();
        assert_eq!(after, PACE.debounce);
        let cycle = started(&machine.advance(Event::Woke { wait })).unwrap();
        let (_, after) = wake(&machine.advance(Event::Ended { cycle, outcome: Outcome::Done, took: TOOK })).unwrap();
        assert_eq!(after, PACE.pull_interval);
        let cycle = started(&machine.advance(Event::Asked)).unwrap();
        let refused = Outcome::Failed(FailureClass::Credentials);
        machine.advance(Event::Ended { cycle, outcome: refused, took: TOOK });
        assert_eq!(machine.advance(Event::Paced(faster)), vec![], "a failure's wait");
    }

    /// Entries that come during a cycle are carried by the next one, at once.
    #[test]
    fn work_that_comes_meanwhile_is_not_forgotten() {
        let mut machine = Syncing::new(PACE);
        let cycle = started(&machine.advance(Event::Available)).unwrap();
        assert_eq!(machine.advance(Event::Grew), vec![]);
        assert!(
            started(&machine.advance(Event::Ended { cycle, outcome: Outcome::Done, took: TOOK })).is_some()
        );
    }

    /// A failed round is tried again although nobody writes anything, and the wait doubles up to its bound.
    #[test]
    fn a_failed_cycle_is_tried_again_by_itself() {
        let mut machine = Syncing::new(PACE);
        let mut cycle = started(&machine.advance(Event::Available)).unwrap();
        let mut waits = vec![];
        for _ in 0..8 {
            let outcome = Outcome::Failed(FailureClass::Transient);
            let (wait, after) = wake(&machine.advance(Event::Ended { cycle, outcome, took: TOOK })).unwrap();
            waits.push(after.as_secs());
            assert_eq!(machine.advance(Event::Grew), vec![], "new entries do not cut the wait short");
            cycle = started(&machine.advance(Event::Woke { wait })).unwrap();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    /// Wrong credentials are tried again only at the bound, or when the cloud comes back.
    #[test]
    fn what_a_retry_cannot_help_is_not_hammered() {
        let mut machine = Syncing::new(PACE);
        let cycle = started(&machine.advance(Event::Available)).unwrap();
        let outcome = Outcome::Failed(FailureClass::Credentials);
        let (_, after) = wake(&machine.advance(Event::Ended { cycle, outcome, took: TOOK })).unwrap();
        assert_eq!((after, machine.state()), (PACE.max_retry_delay, State::Blocked));
        assert!(started(&machine.advance(Event::Available)).is_some());
    }

    /// The outage cancels the cycle, and neither its late end nor an old wait starts anything.
    #[test]
    fn late_answers_decide_nothing() {
        let mut machine = Syncing::new(PACE);
        let cycle = started(&machine.advance(Event::Available)).unwrap();
        assert_eq!(machine.advance(Event::Unavailable(Some(FailureClass::NotRunning))), vec![Effect::Cancel]);
        assert_eq!(machine.advance(Event::Ended { cycle, outcome: Outcome::Done, took: TOOK }), vec![]);
        let next = started(&machine.advance(Event::Available)).unwrap();
        assert_ne!(next, cycle);
        assert_eq!(machine.advance(Event::Woke { wait: 0 }), vec![]);
    }

    /// Y1 and Y2 over random sequences, late and repeated answers included.
    #[test]
    fn the_invariants_hold_in_random_histories() {
        for seed in 1..=2_000u64 {
            let mut state = seed;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut machine = Syncing::new(PACE);
            let (mut running, mut available, mut owed) = (None, false, false);
            let mut waits: Vec<u64> = vec![0];
            for _ in 0..60 {
                let event = match random(8) {
                    0 => Event::Available,
                    1 => Event::Unavailable(None),
                    2 | 3 => Event::Grew,
                    4 => Event::Asked,
                    5 => Event::Woke { wait: waits[usize::try_from(random(waits.len() as u64)).unwrap()] },
                    6 => Event::Ended { cycle: random(20), outcome: Outcome::Done, took: TOOK },
                    _ => match running {
                        Some(cycle) => Event::Ended { cycle, outcome: Outcome::Done, took: TOOK },
                        None => Event::Grew,
                    },
                };
                if event == Event::Available {
                    available = true;
                }
                owed = owed || available && matches!(event, Event::Grew | Event::Asked);
                if let Event::Unavailable(_) = event {
                    (available, running, owed) = (false, None, false);
                }
                let ended = matches!(event, Event::Ended { cycle, .. } if running == Some(cycle));
                if ended {
                    running = None;
                }
                let effects = machine.advance(event);
                if let Some(cycle) = started(&effects) {
                    assert!(available, "Y1, seed {seed}");
                    assert!(running.is_none(), "one cycle at a time, seed {seed}");
                    running = Some(cycle);
                    owed = false;
                }
                waits.extend(wake(&effects).map(|(wait, _)| wait));
                if ended && available && running.is_none() {
                    assert!(!owed && wake(&effects).is_some(), "Y2, seed {seed}");
                }
            }
        }
    }
}
