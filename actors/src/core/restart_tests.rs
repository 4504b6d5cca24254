//! The machine in virtual time: a world of children that live and die, and a log of what came out.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules(name: &'static str, restart: Restart) -> ChildRules {
    ChildRules { name, restart, stop_within: Some(5 * SECOND) }
}

fn died() -> End {
    End::Abnormal("it died".into())
}

/// The world around a machine: it starts and stops children as it is told, at once unless a child is unwilling.
struct World {
    machine: Restarts,
    now: Duration,
    armed: Option<Duration>,
    /// Answers to starts and stops that have not been given yet.
    unanswered: Vec<Event>,
    /// Whether answers are given at once.
    prompt: bool,
    said: Vec<Effect>,
    /// Starts and stops in order: `+a`, `-a`, `!a` for one that is abandoned.
    steps: Vec<String>,
    names: Vec<&'static str>,
}

impl World {
    fn new(strategy: Strategy, intensity: Intensity, children: &[ChildRules]) -> Self {
        Self {
            machine: Restarts::new(strategy, intensity, children.iter().copied()),
            now: Duration::ZERO,
            armed: None,
            unanswered: vec![],
            prompt: true,
            said: vec![],
            steps: vec![],
            names: children.iter().map(|child| child.name).collect(),
        }
    }

    fn launched(strategy: Strategy, intensity: Intensity, children: &[ChildRules]) -> Self {
        let mut world = Self::new(strategy, intensity, children);
        world.feed(Event::LaunchRequested);
        assert!(world.said.contains(&Effect::Launched));
        world.said.clear();
        world.steps.clear();
        world
    }

    fn feed(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.machine.advance(event, self.now);
        for effect in effects.clone() {
            match effect {
                Effect::Start { child, generation } => {
                    self.steps.push(format!("+{}", self.names[child]));
                    self.unanswered.push(Event::ChildStarted { child, generation });
                }
                Effect::Stop { child, generation } => {
                    self.steps.push(format!("-{}", self.names[child]));
                    self.unanswered.push(Event::ChildEnded { child, generation, end: End::Normal });
                }
                Effect::Abandon { child, .. } => self.steps.push(format!("!{}", self.names[child])),
                Effect::ScheduleAt(at) => self.armed = Some(at),
                _ => {}
            }
            self.said.push(effect);
        }
        while self.prompt && !self.unanswered.is_empty() {
            let answer = self.unanswered.remove(0);
            self.feed(answer);
        }
        effects
    }

    fn ends(&mut self, child: usize, end: End) {
        let generation = self.machine.living(child).expect("it lives");
        self.feed(Event::ChildEnded { child, generation, end });
    }

    /// Lets time pass until the wake-up.
    fn wake(&mut self) {
        self.now = self.armed.take().expect("a wake-up is armed");
        self.feed(Event::Woke);
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.armed.is_some_and(|at| at <= until) {
            self.wake();
        }
        self.now = until;
    }

    fn steps(&mut self) -> String {
        std::mem::take(&mut self.steps).join(" ")
    }

    fn ended(&self) -> Option<(&Ending, &[&'static str])> {
        self.said.iter().find_map(|effect| match effect {
            Effect::Ended { ending, left } => Some((ending, left.as_slice())),
            _ => None,
        })
    }
}

fn three(restart: Restart) -> [ChildRules; 3] {
    [rules("a", restart), rules("b", restart), rules("c", restart)]
}

const GENEROUS: Intensity = Intensity { restarts_max: 1000, within: Duration::from_secs(5) };

/// Children start one after the other, each when the one before is up.
#[test]
fn a_launch_is_in_order() {
    let mut world = World::new(Strategy::OneForOne, Intensity::default(), &three(Restart::Permanent));
    world.prompt = false;
    world.feed(Event::LaunchRequested);
    for steps in ["+a", "+b", "+c"] {
        assert_eq!(world.steps(), steps);
        let up = world.unanswered.remove(0);
        world.feed(up);
    }
    assert_eq!(world.said.last(), Some(&Effect::Launched));
}

/// OTP: "If the start of a child fails, the supervisor terminates all already started children, in reverse, and ends".
#[test]
fn a_failed_first_start_stops_what_was_started() {
    let mut world = World::new(Strategy::OneForOne, GENEROUS, &three(Restart::Permanent));
    world.prompt = false;
    world.feed(Event::LaunchRequested);
    for _ in 0..2 {
        let up = world.unanswered.remove(0);
        world.feed(up);
    }
    let generation = world.machine.living(2).unwrap();
    world.unanswered.clear();
    world.prompt = true;
    world.feed(Event::StartFailed { child: 2, generation, why: "no port".into() });
    assert_eq!(world.steps(), "+a +b +c -b -a");
    let failed = Ending::StartFailed { child: "c", why: "no port".into() };
    assert_eq!(world.ended(), Some((&failed, [].as_slice())));
}

/// OTP's defaults: intensity 1, period 5. One restart is borne, a second one within five seconds is not.
#[test]
fn the_default_intensity_is_one_in_five_seconds() {
    let launch = || World::launched(Strategy::OneForOne, Intensity::default(), &three(Restart::Permanent));

    let mut world = launch();
    world.ends(0, died());
    world.now += 5 * SECOND;
    world.ends(1, End::Abnormal("the last straw".into()));
    assert_eq!(world.steps(), "+a -c -a", "exactly five seconds later still counts");
    let gave_up = GaveUp { child: "b", restarts: 1, within: 5 * SECOND, last: "the last straw".into() };
    assert!(world.said.contains(&Effect::GaveUp(gave_up.clone())));
    assert_eq!(
        gave_up.to_string(),
        "b ended unexpectedly after 1 restart within 5 s; supervision gives up. The last time: the last straw"
    );
    assert_eq!(world.ended(), Some((&Ending::GaveUp(gave_up), [].as_slice())));

    let mut world = launch();
    for _ in 0..10 {
        world.ends(0, died());
        world.now += 5 * SECOND + Duration::from_millis(1);
    }
    assert_eq!(world.steps(), "+a ".repeat(10).trim_end());
    assert_eq!(world.ended(), None);
}

/// An intensity of 0 means that the first end is the last one.
#[test]
fn an_intensity_of_zero_bears_nothing() {
    let none = Intensity { restarts_max: 0, within: 5 * SECOND };
    let mut world = World::launched(Strategy::OneForOne, none, &three(Restart::Permanent));
    world.ends(2, End::Normal);
    assert_eq!(world.steps(), "-b -a");
}

/// one_for_one: only the one that ended is restarted.
#[test]
fn one_for_one_restarts_one() {
    let mut world = World::launched(Strategy::OneForOne, GENEROUS, &three(Restart::Permanent));
    world.ends(0, died());
    assert_eq!(world.steps(), "+a");
}

/// rest_for_one: those started after it stop in reverse order, then it and they start in order; those before it stay.
#[test]
fn rest_for_one_restarts_the_rest() {
    let children = [
        rules("a", Restart::Permanent),
        rules("b", Restart::Permanent),
        rules("c", Restart::Permanent),
        rules("d", Restart::Permanent),
    ];
    let mut world = World::launched(Strategy::RestForOne, GENEROUS, &children);
    world.ends(1, died());
    assert_eq!(world.steps(), "-d -c +b +c +d");
    world.ends(3, died());
    world.wake();
    assert_eq!(world.steps(), "+d");
}

/// One that fails while it is restarted in a group is restarted with its own rest; the earlier ones stay up.
#[test]
fn a_start_that_fails_within_a_group_is_another_restart() {
    let mut world = World::launched(Strategy::RestForOne, GENEROUS, &three(Restart::Permanent));
    world.prompt = false;
    world.ends(0, died());
    while world.machine.living(1).is_none_or(|generation| generation < 5) {
        let answer = world.unanswered.remove(0);
        world.feed(answer);
    }
    assert_eq!(world.steps(), "-c -b +a +b");
    world.unanswered.clear();
    world.prompt = true;
    world.feed(Event::StartFailed { child: 1, generation: 5, why: "not yet".into() });
    assert_eq!(world.armed, Some(WAIT), "the second restart in a row waits");
    world.wake();
    assert_eq!(world.steps(), "+b +c");
}

/// A start that fails again and again uses up the intensity like ends do.
#[test]
fn starts_that_fail_are_counted() {
    let mut world = World::launched(
        Strategy::OneForOne,
        Intensity { restarts_max: 3, within: 60 * SECOND },
        &[rules("a", Restart::Permanent)],
    );
    world.prompt = false;
    world.ends(0, died());
    for failures in 1..=3 {
        let generation = world.machine.living(0).unwrap();
        world.feed(Event::StartFailed { child: 0, generation, why: format!("failure {failures}") });
        if failures < 3 {
            world.wake();
        }
    }
    assert!(matches!(world.ended(), Some((Ending::GaveUp(gave_up), _)) if gave_up.last == "failure 3"));
}

/// A transient child is restarted after a panic, not after a normal end.
#[test]
fn a_transient_child_may_end_normally() {
    let mut world = World::launched(Strategy::OneForOne, GENEROUS, &three(Restart::Transient));
    world.ends(0, died());
    world.ends(1, End::Normal);
    assert_eq!(world.steps(), "+a");
    assert!(!world.machine.is_wanted(1));
    world.feed(Event::ShutdownRequested);
    assert_eq!(world.steps(), "-c -a");
}

/// A temporary child is never restarted, not even along with others; its end restarts nobody else.
#[test]
fn a_temporary_child_is_never_restarted() {
    let children =
        [rules("a", Restart::Permanent), rules("b", Restart::Temporary), rules("c", Restart::Transient)];
    let mut world = World::launched(Strategy::RestForOne, GENEROUS, &children);
    world.ends(1, died());
    assert_eq!(world.steps(), "");

    let mut world = World::launched(Strategy::RestForOne, GENEROUS, &children);
    world.ends(2, End::Normal);
    world.ends(0, died());
    assert_eq!(world.steps(), "-b +a +c", "the transient one belongs to the group again");
}

/// The first restart comes at once, the following ones after 10 ms, 20 ms, … 1 s.
#[test]
fn restarts_in_a_row_wait_longer_and_longer() {
    let mut world = World::launched(
        Strategy::OneForOne,
        Intensity { restarts_max: 100, within: 3600 * SECOND },
        &[rules("a", Restart::Permanent)],
    );
    let mut waits = vec![];
    for _ in 0..10 {
        let before = world.now;
        world.ends(0, died());
        if world.machine.living(0).is_none() {
            world.wake();
        }
        waits.push((world.now - before).as_millis());
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

/// Shutdown goes in reverse order, and who does not stop within the bound is left behind and named.
#[test]
fn a_shutdown_is_ordered_and_bounded() {
    let mut world = World::launched(Strategy::OneForOne, GENEROUS, &three(Restart::Permanent));
    world.prompt = false;
    world.feed(Event::ShutdownRequested);
    let c_ended = world.unanswered.remove(0);
    world.feed(c_ended);
    let b_ended = world.unanswered.remove(0);
    assert_eq!((world.steps().as_str(), world.armed), ("-c -b", Some(5 * SECOND)));
    world.pass(6 * SECOND);
    assert_eq!(world.steps(), "!b -a");
    assert_eq!(world.feed(b_ended), [], "too late");
    let a_ended = world.unanswered.remove(0);
    world.feed(a_ended);
    assert_eq!(world.ended(), Some((&Ending::ShutDown, ["b"].as_slice())));
}

/// Who lives on a blocked thread is moved with the one who blocks it; that is one restart.
#[test]
fn a_blocked_thread_costs_one_restart() {
    let intensity = Intensity { restarts_max: 1, within: 5 * SECOND };
    let mut world = World::launched(Strategy::OneForOne, intensity, &three(Restart::Permanent));
    let generation = |world: &World, child| world.machine.living(child).unwrap();
    let blocked = Event::ThreadBlocked {
        child: 1,
        generation: generation(&world, 1),
        why: "stuck".into(),
        others: vec![(0, generation(&world, 0)), (2, 77)],
    };
    let stale = world.machine.living(1).unwrap();
    world.feed(blocked);
    assert_eq!(world.steps(), "!a !b +a +b", "generation 77 does not live");
    assert_eq!(world.feed(Event::ChildEnded { child: 1, generation: stale, end: died() }), []);
    assert_eq!(world.ended(), None);
}

/// Under rest_for_one, who was started after anybody that is moved is restarted too: it may rest on it.
#[test]
fn a_blocked_thread_takes_the_rest_along() {
    let permanent = |name| rules(name, Restart::Permanent);
    let children = [permanent("a"), permanent("b"), permanent("c"), permanent("d")];
    let mut world = World::launched(Strategy::RestForOne, GENEROUS, &children);
    let generation = |child| world.machine.living(child).unwrap();
    let others = vec![(0, generation(0))];
    let blocked = Event::ThreadBlocked { child: 2, generation: generation(2), why: "stuck".into(), others };
    world.feed(blocked);
    assert_eq!(world.steps(), "!a !c -d -b +a +b +c +d");
}

/// A child that was up and ends while later ones still start for the first time is restarted; only a first start that
/// fails ends a launch.
#[test]
fn a_launch_survives_a_restart() {
    let mut world = World::new(Strategy::OneForOne, GENEROUS, &three(Restart::Permanent));
    world.prompt = false;
    world.feed(Event::LaunchRequested);
    let a_up = world.unanswered.remove(0);
    world.feed(a_up);
    world.ends(0, died());
    world.prompt = true;
    let b_up = world.unanswered.remove(0);
    world.feed(b_up);
    assert_eq!(world.steps(), "+a +b +a +c");
    assert!(world.said.contains(&Effect::Launched));
}

/// Who is asked to end while it gives up still says that it gave up.
#[test]
fn the_first_reason_to_end_stands() {
    let none = Intensity { restarts_max: 0, within: SECOND };
    let mut world = World::launched(Strategy::OneForOne, none, &three(Restart::Permanent));
    world.prompt = false;
    world.ends(1, died());
    world.feed(Event::ShutdownRequested);
    world.prompt = true;
    let c_ended = world.unanswered.remove(0);
    world.feed(c_ended);
    assert!(matches!(world.ended(), Some((Ending::GaveUp(GaveUp { child: "b", .. }), []))));
}

/// A timer may be early: the wake-up is armed again.
#[test]
fn an_early_wake_up_is_not_the_last() {
    let mut world = World::launched(Strategy::OneForOne, GENEROUS, &three(Restart::Permanent));
    world.ends(0, died());
    world.ends(0, died());
    assert_eq!(world.armed.take(), Some(WAIT));
    world.now += WAIT / 2;
    world.feed(Event::Woke);
    assert_eq!(world.armed, Some(WAIT));
}

/// A beat that stands still is suspicious only while the child holds its thread, and only for as long as somebody looked.
#[test]
fn only_a_child_that_holds_its_thread_can_be_stuck() {
    let mut watch = Watch::default();
    let mut look = |beat, at: u32| watch.look(beat, at * SECOND, 30 * SECOND);
    for at in (0..100).step_by(10) {
        assert_eq!(look(4, at), None, "it waits for something to do");
    }
    assert_eq!((look(5, 100), look(5, 110), look(5, 120)), (None, None, None), "not long enough");
    assert_eq!((look(7, 130), look(7, 140), look(7, 150)), (None, None, None), "it ticked in between");
    assert_eq!(look(7, 160), Some(30 * SECOND));
    assert_eq!((look(9, 170), look(9, 1000)), (None, None), "the whole process slept");
    assert_eq!(look(10, 1010), None);
}

/// What must hold after every step of a history.
struct Checker {
    living: Vec<Option<u64>>,
    up: Vec<bool>,
    stopping: Vec<bool>,
    starts: Vec<u32>,
    highest: u64,
    restarts: Vec<Duration>,
    gave_up: bool,
    launched: bool,
    ended: bool,
    armed: Option<Duration>,
    left: Vec<&'static str>,
}

impl Checker {
    fn check(
        &mut self,
        effects: &[Effect],
        machine: &Restarts,
        children: &[ChildRules],
        strategy: Strategy,
        intensity: Intensity,
        now: Duration,
    ) {
        assert!(!self.ended || effects.is_empty(), "S7: {effects:?} after the end");
        for effect in effects {
            match effect {
                Effect::Start { child, generation } => {
                    assert_eq!(self.living[*child], None, "S1");
                    assert!(*generation > self.highest, "S1");
                    assert!(!self.gave_up, "S3");
                    if strategy == Strategy::RestForOne || !self.launched {
                        for earlier in 0..*child {
                            assert!(
                                !machine.is_wanted(earlier) || self.up[earlier],
                                "S5: {earlier}, {child}"
                            );
                        }
                        assert!(!self.stopping.contains(&true), "S5");
                    }
                    self.highest = *generation;
                    self.living[*child] = Some(*generation);
                    self.starts[*child] += 1;
                    if children[*child].restart == Restart::Temporary {
                        // A blocked thread or a panic in the middle of a launch does not bring it back either.
                        assert_eq!(self.starts[*child], 1, "S6");
                    }
                }
                Effect::Stop { child, generation } => {
                    assert_eq!(self.living[*child], Some(*generation), "S4");
                    for later in *child + 1..children.len() {
                        assert!(!self.stopping[later], "S4");
                        assert!(machine.is_wanted(later) || self.living[later].is_none(), "S4");
                    }
                    self.stopping[*child] = true;
                }
                Effect::Abandon { child, generation } => {
                    assert_eq!(self.living[*child], Some(*generation), "S1");
                    if self.stopping[*child] {
                        self.left.push(children[*child].name);
                    }
                    self.down(*child);
                }
                Effect::ScheduleAt(at) => self.armed = Some(*at),
                Effect::Launched => self.launched = true,
                Effect::GaveUp(_) => {
                    assert!(!self.gave_up, "S3");
                    self.gave_up = true;
                    let recent = self.restarts.iter().filter(|at| now - **at <= intensity.within).count();
                    assert_eq!(recent, intensity.restarts_max as usize, "S3");
                }
                Effect::Log(Notice::Restarted { .. }) => {
                    self.restarts.push(now);
                    let recent = self.restarts.iter().filter(|at| now - **at <= intensity.within).count();
                    assert!(recent <= intensity.restarts_max as usize, "S3");
                }
                Effect::Ended { left, .. } => {
                    self.ended = true;
                    assert!(self.living.iter().all(Option::is_none), "S7");
                    assert!(
                        self.left.iter().all(|name| left.contains(name)),
                        "S7: {left:?}, {:?}",
                        self.left
                    );
                }
                Effect::Log(_) => {}
            }
        }
        for (child, rules) in children.iter().enumerate() {
            assert_eq!(machine.living(child), self.living[child], "S1, S2");
            let waits_for_others =
                self.living.iter().zip(&self.up).any(|(living, up)| living.is_some() && !up)
                    || self.stopping.contains(&true);
            if !self.ended && machine.is_wanted(child) && self.living[child].is_none() {
                assert!(waits_for_others || self.armed.is_some(), "S8: {child}");
            }
            if self.stopping[child] && rules.stop_within.is_some() {
                assert!(self.armed.is_some(), "S8: {child} stops");
            }
        }
    }

    fn down(&mut self, child: usize) {
        self.living[child] = None;
        self.up[child] = false;
        self.stopping[child] = false;
    }
}

/// Any history of ends, failures, blocked threads, stale words and shutdowns keeps S1 to S8.
#[test]
fn random_histories_keep_the_invariants() {
    for seed in 0..4000_u64 {
        let mut random = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let kinds = [Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary];
        let names = ["a", "b", "c", "d", "e"];
        let children: Vec<_> = names[..=below(5) as usize]
            .iter()
            .map(|name| ChildRules {
                name,
                restart: kinds[below(4) as usize],
                stop_within: (below(2) == 0).then(|| Duration::from_millis(1 + below(49))),
            })
            .collect();
        let strategy = if below(2) == 0 { Strategy::OneForOne } else { Strategy::RestForOne };
        let intensity =
            Intensity { restarts_max: below(12) as u32, within: Duration::from_millis(below(2000)) };
        let count = children.len();
        let mut machine = Restarts::new(strategy, intensity, children.iter().copied());
        let mut checker = Checker {
            living: vec![None; count],
            up: vec![false; count],
            stopping: vec![false; count],
            starts: vec![0; count],
            highest: 0,
            restarts: vec![],
            gave_up: false,
            launched: false,
            ended: false,
            armed: None,
            left: vec![],
        };
        let mut now = Duration::ZERO;
        let mut asked_to_end = false;
        let effects = machine.advance(Event::LaunchRequested, now);
        checker.check(&effects, &machine, &children, strategy, intensity, now);
        for _ in 0..200 {
            now += Duration::from_micros(below(5000));
            let child = below(count as u64) as usize;
            let generation = match below(8) {
                0 => below(checker.highest + 2),
                _ => checker.living[child].unwrap_or_default(),
            };
            let current = checker.living[child] == Some(generation);
            let end = if below(2) == 0 { End::Normal } else { died() };
            let event = match below(20) {
                0..8 => Event::ChildStarted { child, generation },
                8 => Event::StartFailed { child, generation, why: "no".into() },
                9..12 => Event::ChildEnded { child, generation, end },
                // Who was told to stop does so, mostly.
                12..15 if checker.stopping[child] => {
                    Event::ChildEnded { child, generation, end: End::Normal }
                }
                15 => {
                    let others: Vec<_> = (0..count)
                        .filter_map(|other| Some((other, checker.living[other]?)))
                        .filter(|_| below(2) == 0)
                        .collect();
                    Event::ThreadBlocked { child, generation, why: "stuck".into(), others }
                }
                16 if below(20) == 0 => {
                    asked_to_end = true;
                    Event::ShutdownRequested
                }
                _ => match checker.armed {
                    Some(at) => {
                        now = now.max(at);
                        checker.armed = None;
                        Event::Woke
                    }
                    None => continue,
                },
            };
            match &event {
                Event::ChildStarted { .. } if current => checker.up[child] = true,
                Event::ChildEnded { .. } | Event::StartFailed { .. } if current => checker.down(child),
                _ => {}
            }
            let effects = machine.advance(event.clone(), now);
            let stale = !current
                && matches!(
                    event,
                    Event::ChildStarted { .. }
                        | Event::ChildEnded { .. }
                        | Event::StartFailed { .. }
                        | Event::ThreadBlocked { .. }
                );
            assert!(!stale || effects.is_empty(), "S2: seed {seed}: {event:?} led to {effects:?}");
            checker.check(&effects, &machine, &children, strategy, intensity, now);
        }
        // Whatever happened, who is asked to end does, as long as children answer or their time runs out.
        if !checker.ended {
            asked_to_end = true;
            let effects = machine.advance(Event::ShutdownRequested, now);
            checker.check(&effects, &machine, &children, strategy, intensity, now);
        }
        for child in (0..count).rev() {
            if let Some(generation) = checker.living[child] {
                checker.down(child);
                let effects = machine.advance(Event::ChildEnded { child, generation, end: End::Normal }, now);
                checker.check(&effects, &machine, &children, strategy, intensity, now);
            }
        }
        assert!(checker.ended && (asked_to_end || checker.gave_up || !checker.launched), "S7: seed {seed}");
    }
}
