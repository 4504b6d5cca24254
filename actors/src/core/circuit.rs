//! The circuit breaker's mind: which calls to the cloud may be made.
//!
//! ```text
//!            threshold failures in a row, or one that a retry cannot help
//!   Closed ───────────────────────────────────────────────▶ Open { until }
//!     ▲  ╲                                                    │        ▲
//!     │   ╲ the watcher says Unavailable                `until` came,  │ the probe
//!     │    ╲                                            or Available   │ failed
//!     │     ▼                                                 ▼        │
//!     │   Offline (open, the watcher decides) ─ Available ─▶ HalfOpen ─┘
//!     └──────────────── enough successes ─────────────────────┘
//! ```
//!
//! Parts: [`Circuit`], the machine, with its one transition function [`Circuit::advance`]; [`Published`], what
//! callers see of it, which the shell (`circuit_breaker`) keeps in an atomic.
//!
//! - **C1** In half-open at most one call is out. The slot itself is in the published word; a success there
//!   gives it back, so that a success threshold above one cannot get stuck.
//! - **C2** Every published state has a higher epoch than the one before; results of older epochs decide nothing.
//! - **C3** Data that PostgreSQL refuses never opens it.
//! - **C4** Offline is left only when the watcher says so, and then at once: the open time follows the watcher.
//! - **C5** It is never open for ever by itself: `Open` has an end, and a wake-up is scheduled for it.
//! - **C6** A circuit that is forced changes by hand only. Underneath, the watcher is still listened to, calls are not:
//!   whoever lets it go finds it offline, or half-open for a probe to decide.
//! - **C7** What a retry cannot help is not tried again before the longest wait is over, whatever comes and goes meanwhile;
//!   only a person's reset ends that earlier.

use std::time::Duration;

use crate::core::backoff::Backoff;
use crate::core::failure::FailureClass;
use crate::messages::{AvailabilityChanged, CallFinished, CircuitReport, Forced, ProxyStatus};

/// When to open, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// Failures in a row that open a closed circuit; zero counts as one.
    pub failure_threshold: u32,
    /// Successes in a row that close a half-open one; zero counts as one.
    pub success_threshold: u32,
    /// How long it stays open after the n-th time in a row without closing in between. A failure that a retry
    /// cannot help takes the longest wait.
    pub open_time: Backoff,
}

/// What callers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Permits carry it; results that carry an older one decide nothing.
    pub epoch: u64,
    /// Who may call.
    pub mode: Mode,
    /// Why it is not closed.
    pub reason: Option<FailureClass>,
    /// A person holds it in this mode.
    pub forced: bool,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everybody.
    Closed,
    /// Nobody, for a while.
    Open,
    /// Nobody, until the watcher sees the cloud.
    Offline,
    /// One at a time.
    HalfOpen,
}

impl Mode {
    /// The word in `status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open | Self::Offline => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The watcher spoke.
    Availability(AvailabilityChanged),
    /// A permitted call ended.
    Call(CallFinished),
    /// A person holds it, or lets it go.
    Force(Option<Forced>),
    /// A person wants everything to be tried anew.
    Reset,
    /// The time of the last [`Effect::ScheduleAt`] has come.
    Woke,
}

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Let callers see this from now on; in half-open the slot is free.
    Publish(Published),
    /// Come back with [`Event::Woke`] at this time; replaces the wake-up before.
    ScheduleAt(Duration),
    /// Log that it opened by its own count: this many failures in a row, the last of this class.
    LogOpened {
        /// Failures in a row.
        failures: u32,
        /// The last one's class.
        class: FailureClass,
    },
    /// Log that a person holds it, or let it go.
    LogForced(Option<Forced>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration },
    Offline,
    HalfOpen { successes: u32 },
}

/// The machine.
#[derive(Debug)]
pub struct Circuit {
    policy: CircuitPolicy,
    state: State,
    epoch: u64,
    reason: Option<FailureClass>,
    /// How often it opened since it was last closed.
    openings: u32,
    availability_epoch: u64,
    forced: Option<Forced>,
    /// Until when a failure counts that a retry cannot help, and which.
    refused: Option<(Duration, FailureClass)>,
}

impl Circuit {
    /// Takes over from what callers see now, which outlives a breaker; returns the effects that make it so.
    pub fn take_over(policy: CircuitPolicy, seen: Published, now: Duration) -> (Self, Vec<Effect>) {
        let state = match seen.mode {
            // What was underneath is not known; the watcher says it again to whoever subscribes.
            _ if seen.forced => State::Offline,
            Mode::Closed => State::Closed { failures: 0 },
            Mode::Open => State::Open { until: now + wait_after(&policy, seen.reason, 1) },
            Mode::Offline => State::Offline,
            Mode::HalfOpen => State::HalfOpen { successes: 0 },
        };
        let mut circuit = Self {
            policy,
            state,
            epoch: seen.epoch,
            reason: seen.reason,
            openings: 0,
            availability_epoch: 0,
            // Since when is not known: all of it.
            refused: seen
                .reason
                .filter(|class| !class.retry_helps())
                .map(|class| (now + policy.open_time.max(), class)),
            forced: seen.forced.then_some(if seen.mode == Mode::Closed {
                Forced::Closed
            } else {
                Forced::Open
            }),
        };
        // A new epoch: a probe that was out belongs to the predecessor, and its slot is free again.
        let mut effects = Vec::new();
        circuit.enter(state, seen.reason, &mut effects);
        (circuit, effects)
    }

    /// The transition function.
    pub fn advance(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Availability(change) => self.availability_changed(change, now, &mut effects),
            Event::Call(_) if self.forced.is_some() => {}
            Event::Call(call) => self.call_finished(call, now, &mut effects),
            Event::Force(forced) => self.force(forced, &mut effects),
            Event::Reset => self.reset(&mut effects),
            Event::Woke => self.woke(now, &mut effects),
        }
        effects
    }

    /// What callers see.
    pub fn published(&self) -> Published {
        let mode = match self.state {
            State::Closed { .. } => Mode::Closed,
            State::Open { .. } => Mode::Open,
            State::Offline => Mode::Offline,
            State::HalfOpen { .. } => Mode::HalfOpen,
        };
        let mode = match self.forced {
            Some(Forced::Open) => Mode::Open,
            Some(Forced::Closed) => Mode::Closed,
            None => mode,
        };
        Published { epoch: self.epoch, mode, reason: self.reason, forced: self.forced.is_some() }
    }

    /// What `status` shows.
    pub fn report(&self) -> CircuitReport {
        let published = self.published();
        CircuitReport {
            state: published.mode.word().to_owned(),
            consecutive_failures: match self.state {
                State::Closed { failures } => failures,
                _ => self.openings,
            },
            reason: match published {
                Published { forced: true, .. } => Some("forced".to_owned()),
                Published { mode: Mode::Closed, .. } => None,
                _ => Some(self.reason.map_or("offline", word_of).to_owned()),
            },
        }
    }

    fn availability_changed(
        &mut self,
        change: AvailabilityChanged,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if change.epoch < self.availability_epoch {
            return;
        }
        let heard_before = change.epoch == self.availability_epoch && change.epoch != 0;
        self.availability_epoch = change.epoch;
        match change.status {
            // Repeated to a late subscriber: what was decided since then stands.
            ProxyStatus::Available if heard_before && self.state != State::Offline => {}
            ProxyStatus::Available if matches!(self.state, State::Closed { .. }) => {}
            ProxyStatus::Available => match self.refused {
                Some((until, class)) if now < until => {
                    self.enter(State::Open { until }, Some(class), effects);
                }
                _ => self.enter(State::HalfOpen { successes: 0 }, self.reason, effects),
            },
            ProxyStatus::Unavailable if self.state == State::Offline && self.reason == change.class => {}
            ProxyStatus::Unavailable => self.enter(State::Offline, change.class, effects),
            ProxyStatus::Unknown => {}
        }
    }

    fn call_finished(&mut self, call: CallFinished, now: Duration, effects: &mut Vec<Effect>) {
        if call.epoch != self.epoch {
            return;
        }
        match (&mut self.state, call.outcome) {
            (State::Closed { failures }, Ok(())) => *failures = 0,
            (State::HalfOpen { successes }, Ok(())) => {
                *successes += 1;
                if *successes >= self.policy.success_threshold {
                    self.openings = 0;
                    self.refused = None;
                    self.enter(State::Closed { failures: 0 }, None, effects);
                }
            }
            (_, Err(class)) if !class.opens_circuit() => {}
            (State::Closed { failures }, Err(class)) => {
                *failures = failures.saturating_add(1);
                let failures = *failures;
                if failures >= self.policy.failure_threshold || !class.retry_helps() {
                    effects.push(Effect::LogOpened { failures, class });
                    self.open(class, now, effects);
                }
            }
            (State::HalfOpen { .. }, Err(class)) => self.open(class, now, effects),
            // No permit has these epochs.
            (State::Open { .. } | State::Offline, _) => {}
        }
    }

    fn force(&mut self, forced: Option<Forced>, effects: &mut Vec<Effect>) {
        if forced == self.forced {
            return;
        }
        self.forced = forced;
        effects.push(Effect::LogForced(forced));
        let state = match self.state {
            State::Offline => State::Offline,
            _ => State::HalfOpen { successes: 0 },
        };
        self.enter(state, self.reason, effects);
    }

    fn reset(&mut self, effects: &mut Vec<Effect>) {
        self.openings = 0;
        self.refused = None;
        if let State::Open { .. } = self.state {
            self.enter(State::HalfOpen { successes: 0 }, self.reason, effects);
        }
    }

    fn woke(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let State::Open { until } = self.state {
            if now >= until {
                self.enter(State::HalfOpen { successes: 0 }, self.reason, effects);
            } else {
                effects.push(Effect::ScheduleAt(until));
            }
        }
    }

    fn open(&mut self, class: FailureClass, now: Duration, effects: &mut Vec<Effect>) {
        self.openings = self.openings.saturating_add(1);
        let until = now + wait_after(&self.policy, Some(class), self.openings);
        self.refused = (!class.retry_helps()).then_some((until, class));
        self.enter(State::Open { until }, Some(class), effects);
    }

    fn enter(&mut self, state: State, reason: Option<FailureClass>, effects: &mut Vec<Effect>) {
        self.state = state;
        self.reason = reason;
        self.epoch += 1;
        effects.push(Effect::Publish(self.published()));
        if let State::Open { until } = state {
            effects.push(Effect::ScheduleAt(until));
        }
    }
}

/// How long it stays open after so many openings in a row, the last for this reason.
fn wait_after(policy: &CircuitPolicy, reason: Option<FailureClass>, openings: u32) -> Duration {
    match reason {
        Some(class) if !class.retry_helps() => policy.open_time.max(),
        _ => policy.open_time.wait(openings),
    }
}

/// The word for a class in `status`, the same as in its serialized form.
pub fn word_of(class: FailureClass) -> &'static str {
    match class {
        FailureClass::NotRunning => "not_running",
        FailureClass::NotAnswering => "not_answering",
        FailureClass::Busy => "busy",
        FailureClass::Credentials => "credentials",
        FailureClass::NotOurs => "not_ours",
        FailureClass::DataRefused => "data_refused",
        FailureClass::Transient => "transient",
        FailureClass::CheckFailed => "check_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> CircuitPolicy {
        CircuitPolicy {
            failure_threshold: 3,
            success_threshold: 2,
            open_time: Backoff::try_new(10 * SECOND, 600 * SECOND).unwrap(),
        }
    }

    fn offline() -> Circuit {
        let seen = Published { epoch: 0, mode: Mode::Offline, reason: None, forced: false };
        Circuit::take_over(policy(), seen, Duration::ZERO).0
    }

    fn available(circuit: &mut Circuit, epoch: u64) {
        let change = AvailabilityChanged { epoch, status: ProxyStatus::Available, class: None };
        circuit.advance(Event::Availability(change), Duration::ZERO);
    }

    fn unavailable(circuit: &mut Circuit, epoch: u64) {
        let class = Some(FailureClass::NotRunning);
        let change = AvailabilityChanged { epoch, status: ProxyStatus::Unavailable, class };
        circuit.advance(Event::Availability(change), Duration::ZERO);
    }

    fn call(circuit: &mut Circuit, outcome: Result<(), FailureClass>, now: Duration) -> Vec<Effect> {
        let epoch = circuit.published().epoch;
        circuit.advance(Event::Call(CallFinished { epoch, outcome }), now)
    }

    fn closed() -> Circuit {
        let mut circuit = offline();
        available(&mut circuit, 1);
        call(&mut circuit, Ok(()), Duration::ZERO);
        call(&mut circuit, Ok(()), Duration::ZERO);
        assert_eq!(circuit.published().mode, Mode::Closed);
        circuit
    }

    /// The predecessor let one probe through and then waited for two successes for ever.
    #[test]
    fn two_successes_in_half_open_close_it_one_after_the_other() {
        let mut circuit = offline();
        available(&mut circuit, 1);
        let epoch = circuit.published().epoch;
        call(&mut circuit, Ok(()), SECOND);
        assert_eq!(
            circuit.published(),
            Published { epoch, mode: Mode::HalfOpen, reason: None, forced: false }
        );
        call(&mut circuit, Ok(()), SECOND);
        assert_eq!(circuit.published().mode, Mode::Closed);
    }

    /// Only failures in a row count; a success in between starts the count anew.
    #[test]
    fn it_opens_at_the_threshold_of_failures_in_a_row() {
        let mut circuit = closed();
        for outcome in [
            Err(FailureClass::NotRunning),
            Err(FailureClass::Busy),
            Ok(()),
            Err(FailureClass::NotRunning),
            Err(FailureClass::NotAnswering),
        ] {
            call(&mut circuit, outcome, SECOND);
            assert_eq!(circuit.published().mode, Mode::Closed);
        }
        let effects = call(&mut circuit, Err(FailureClass::Busy), SECOND);
        assert_eq!(circuit.published().mode, Mode::Open);
        assert!(effects.contains(&Effect::ScheduleAt(11 * SECOND)));
    }

    /// C3: a poisoned row is the row's problem, however often it is refused, and so is a deadlock the round's.
    #[test]
    fn neither_refused_data_nor_a_deadlock_opens_it() {
        let mut circuit = closed();
        for _ in 0..100 {
            call(&mut circuit, Err(FailureClass::DataRefused), SECOND);
            call(&mut circuit, Err(FailureClass::Transient), SECOND);
        }
        assert_eq!(circuit.published().mode, Mode::Closed);
        assert_eq!(circuit.report().consecutive_failures, 0);
    }

    /// A wrong password is not tried twice before the longest wait is over.
    #[test]
    fn refused_credentials_open_it_at_once_and_for_the_longest_time() {
        for class in [FailureClass::Credentials, FailureClass::NotOurs] {
            let mut circuit = closed();
            let effects = call(&mut circuit, Err(class), SECOND);
            assert_eq!(circuit.published().mode, Mode::Open);
            assert!(effects.contains(&Effect::ScheduleAt(601 * SECOND)));
        }
    }

    /// C2: what was asked before the circuit changed says nothing about after.
    #[test]
    fn results_of_an_older_epoch_decide_nothing() {
        let mut circuit = closed();
        let old = circuit.published().epoch;
        unavailable(&mut circuit, 2);
        available(&mut circuit, 3);
        for outcome in [Ok(()), Ok(()), Err(FailureClass::Credentials)] {
            let effects = circuit.advance(Event::Call(CallFinished { epoch: old, outcome }), SECOND);
            assert_eq!(effects, []);
        }
        assert_eq!(circuit.published().mode, Mode::HalfOpen);
    }

    /// C4: while the watcher sees nothing, no timer lets anybody through; when it sees it again, no timer is
    /// waited for.
    #[test]
    fn it_follows_the_watcher() {
        let mut circuit = closed();
        unavailable(&mut circuit, 2);
        assert_eq!(circuit.advance(Event::Woke, 10_000 * SECOND), []);
        assert_eq!(circuit.published().mode, Mode::Offline);
        assert_eq!(circuit.report().state, "open");
        assert_eq!(circuit.report().reason.as_deref(), Some("not_running"));
        available(&mut circuit, 3);
        assert_eq!(circuit.published().mode, Mode::HalfOpen);

        let mut circuit = closed();
        for _ in 0..3 {
            call(&mut circuit, Err(FailureClass::Busy), SECOND);
        }
        assert_eq!(circuit.published().mode, Mode::Open);
        available(&mut circuit, 3);
        assert_eq!(circuit.published().mode, Mode::HalfOpen, "although it had 10 s to go");
    }

    /// C7: a link that comes and goes in front of a missing right is no reason to ask for it again; a person's reset is.
    #[test]
    fn a_refusal_counts_while_the_link_comes_and_goes() {
        let mut circuit = closed();
        call(&mut circuit, Err(FailureClass::Credentials), SECOND);
        for epoch in 1..100 {
            unavailable(&mut circuit, 2 * epoch);
            available(&mut circuit, 2 * epoch + 1);
            assert_eq!(circuit.published().mode, Mode::Open);
        }
        let (mut successor, effects) = Circuit::take_over(policy(), circuit.published(), 5 * SECOND);
        assert!(effects.contains(&Effect::ScheduleAt(605 * SECOND)), "{effects:?}");
        successor.advance(Event::Woke, 605 * SECOND);
        assert_eq!(successor.published().mode, Mode::HalfOpen);
        circuit.advance(Event::Reset, 6 * SECOND);
        assert_eq!(circuit.published().mode, Mode::HalfOpen);
    }

    /// An old message that was overtaken, or one that is repeated to a late subscriber, does not undo what is known.
    #[test]
    fn late_and_repeated_news_of_the_watcher_change_nothing() {
        let mut circuit = closed();
        unavailable(&mut circuit, 5);
        available(&mut circuit, 4);
        assert_eq!(circuit.published().mode, Mode::Offline);
        available(&mut circuit, 6);
        call(&mut circuit, Err(FailureClass::Busy), SECOND);
        available(&mut circuit, 6);
        assert_eq!(circuit.published().mode, Mode::Open);
    }

    /// The waits grow while probes keep failing, and start anew once it was closed.
    #[test]
    fn each_failed_probe_doubles_the_wait() {
        let mut circuit = offline();
        available(&mut circuit, 1);
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let effects = call(&mut circuit, Err(FailureClass::Busy), now);
            let Some(Effect::ScheduleAt(until)) = effects.last().copied() else { panic!("not scheduled") };
            waits.push((until - now).as_secs());
            now = until;
            circuit.advance(Event::Woke, now);
            assert_eq!(circuit.published().mode, Mode::HalfOpen);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
        call(&mut circuit, Ok(()), now);
        call(&mut circuit, Ok(()), now);
        let effects = call(&mut circuit, Err(FailureClass::NotOurs), now);
        assert!(!effects.is_empty());
        assert_eq!(circuit.report().consecutive_failures, 1);
    }

    /// C5: a breaker that is rebuilt goes on where callers left off, and whatever was out is forgotten.
    #[test]
    fn a_successor_takes_over() {
        for (mode, scheduled) in
            [(Mode::Closed, false), (Mode::Open, true), (Mode::Offline, false), (Mode::HalfOpen, false)]
        {
            let seen = Published { epoch: 7, mode, reason: Some(FailureClass::Busy), forced: false };
            let (circuit, effects) = Circuit::take_over(policy(), seen, SECOND);
            assert_eq!(circuit.published(), Published { epoch: 8, ..seen });
            assert_eq!(effects.contains(&Effect::ScheduleAt(11 * SECOND)), scheduled);
        }
    }

    /// C6: an operator's word stands against everything that is counted and seen, and once it is taken back one probe
    /// decides.
    #[test]
    fn a_forced_circuit_changes_by_hand_only() {
        let mut circuit = closed();
        let effects = circuit.advance(Event::Force(Some(Forced::Open)), SECOND);
        assert!(effects.contains(&Effect::LogForced(Some(Forced::Open))));
        assert_eq!((circuit.report().state, circuit.report().reason), ("open".into(), Some("forced".into())));
        available(&mut circuit, 2);
        assert_eq!(circuit.published().mode, Mode::Open);
        assert_eq!(circuit.advance(Event::Woke, 10_000 * SECOND), []);
        assert_eq!(circuit.advance(Event::Force(Some(Forced::Open)), SECOND), [], "said twice is said once");

        circuit.advance(Event::Force(Some(Forced::Closed)), SECOND);
        for _ in 0..10 {
            call(&mut circuit, Err(FailureClass::Credentials), SECOND);
        }
        unavailable(&mut circuit, 3);
        assert_eq!(circuit.published().mode, Mode::Closed);
        circuit.advance(Event::Force(None), SECOND);
        assert_eq!(circuit.published().mode, Mode::Offline, "what the watcher said meanwhile holds");

        available(&mut circuit, 4);
        circuit.advance(Event::Force(Some(Forced::Closed)), SECOND);
        let (mut circuit, _) = Circuit::take_over(policy(), circuit.published(), SECOND);
        assert_eq!(circuit.published().mode, Mode::Closed, "a successor keeps the operator's word");
        available(&mut circuit, 4);
        circuit.advance(Event::Force(None), SECOND);
        assert_eq!(circuit.published().mode, Mode::HalfOpen);
    }

    /// C2, C5 and C6 on random histories.
    #[test]
    fn random_histories_keep_the_invariants() {
        use crate::core::failure::FailureClass::*;
        for seed in 1..=200_u64 {
            println!("seed {seed}");
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut next = |bound: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % bound
            };
            let mut circuit = offline();
            let (mut now, mut armed, mut epoch) = (Duration::ZERO, None::<Duration>, 0);
            for _ in 0..400 {
                now += Duration::from_millis(next(20_000));
                let before = circuit.published();
                let classes = [
                    NotRunning,
                    NotAnswering,
                    Busy,
                    Credentials,
                    NotOurs,
                    DataRefused,
                    Transient,
                    CheckFailed,
                ];
                let event = match next(9) {
                    8 => {
                        Event::Force([None, None, Some(Forced::Open), Some(Forced::Closed)][next(4) as usize])
                    }
                    0 => {
                        epoch += next(2);
                        let status = [ProxyStatus::Available, ProxyStatus::Unavailable, ProxyStatus::Unknown];
                        let status = status[next(3) as usize];
                        Event::Availability(AvailabilityChanged { epoch, status, class: None })
                    }
                    1 => Event::Woke,
                    _ => {
                        let outcome = if next(2) == 0 { Ok(()) } else { Err(classes[next(8) as usize]) };
                        Event::Call(CallFinished { epoch: before.epoch - next(2).min(before.epoch), outcome })
                    }
                };
                let effects = circuit.advance(event, now);
                for effect in &effects {
                    match effect {
                        Effect::ScheduleAt(at) => armed = Some(*at),
                        Effect::Publish(published) => assert!(published.epoch > before.epoch, "C2"),
                        Effect::LogOpened { .. } => {
                            assert_eq!(
                                circuit.published(),
                                Published { mode: Mode::Open, forced: false, ..circuit.published() }
                            );
                        }
                        Effect::LogForced(_) => assert!(matches!(event, Event::Force(_)), "C6"),
                    }
                }
                assert_eq!(
                    effects.iter().any(|e| matches!(e, Effect::Publish(_))),
                    circuit.published() != before
                );
                if before.forced && !matches!(event, Event::Force(_)) {
                    let now = circuit.published();
                    assert_eq!((now.mode, now.forced), (before.mode, true), "C6");
                }
                if circuit.published().mode == Mode::Open && !circuit.published().forced {
                    assert!(armed.is_some(), "C5");
                    if event == Event::Woke {
                        assert!(armed.is_some_and(|at| at > now), "C5: armed again when woken too early");
                    }
                }
            }
        }
    }
}
