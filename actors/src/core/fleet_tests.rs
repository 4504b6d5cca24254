//! A hundred thousand devices after an outage of the cloud, in virtual time: the watcher's, the circuit's and the syncer's real
//! machines, one of each per device, and a count of how often the cloud is dialled in each second.
//!
//! ```text
//! Cloud { up or down, so many log-ins a second } ◀─ dials ─ Device { Availability, Circuit, Syncing, what is due when }
//! ```
//!
//! It is the worst case on purpose: every link breaks in the same instant, everybody notices at once, everybody has rows that
//! wait, and nobody sees a listener (the cloud is remote, or behind proxies that stay up).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::availability::{self, Availability, Environment, Listening, Policy};
use super::backoff::Backoff;
use super::circuit::{self, Circuit, CircuitPolicy, Mode, Published};
use super::failure::{CloudFailure, FailureClass};
use super::sync::{self, Outcome, Pace, Syncing};
use crate::messages::{CallFinished, ProxyStatus};

const DEVICES: usize = 100_000;

const SECOND: Duration = Duration::from_secs(1);

/// From a dial to the answer that somebody is there, or nobody.
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// A cycle with a few rows.
const CYCLE: Duration = Duration::from_millis(200);

/// As `config/default.toml` has them.
fn policies() -> (Policy, CircuitPolicy, Pace) {
    let backoff = Backoff::try_new(10 * SECOND, 600 * SECOND).unwrap();
    let watcher = Policy {
        environment: Environment::Production,
        proxy_required: false,
        backoff,
        give_up_after: 5,
        health_interval: 10 * SECOND,
        recently_verified: 2 * SECOND,
        listen_interval: SECOND / 2,
        check_timeout: 9 * SECOND,
        probe_missing: None,
    };
    let circuit = CircuitPolicy { failure_threshold: 5, success_threshold: 2, open_time: backoff };
    let pace = Pace {
        debounce: Duration::from_millis(2),
        pull_interval: 10 * SECOND,
        poll_first: Duration::from_millis(20),
        poll_interval: SECOND,
        retry_delay: SECOND,
        max_retry_delay: 600 * SECOND,
    };
    (watcher, circuit, pace)
}

/// The server: away until a moment, and then it lets in so many in each second; the rest is told that it is full.
struct Cloud {
    back_at: Duration,
    log_ins_max: usize,
    /// By second: dials, and log-ins.
    dials: Vec<usize>,
    log_ins: Vec<usize>,
}

impl Cloud {
    fn new(back_at: Duration, log_ins_max: usize) -> Self {
        Self { back_at, log_ins_max, dials: vec![], log_ins: vec![] }
    }

    fn is_up(&self, at: Duration) -> bool {
        at >= self.back_at
    }

    fn dial(&mut self, at: Duration) -> Result<String, CloudFailure> {
        let second = usize::try_from(at.as_secs()).unwrap();
        if self.dials.len() <= second {
            self.dials.resize(second + 1, 0);
            self.log_ins.resize(second + 1, 0);
        }
        self.dials[second] += 1;
        if !self.is_up(at) {
            return Err(CloudFailure::new(FailureClass::NotAnswering, "closed without an answer"));
        }
        if self.log_ins[second] >= self.log_ins_max {
            return Err(CloudFailure::new(FailureClass::Busy, "53300: too many connections"));
        }
        self.log_ins[second] += 1;
        Ok("PostgreSQL".to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    WatcherWoke,
    CircuitWoke,
    SyncWoke(u64),
    Check(u64),
    Cycle(u64),
}

struct Device {
    watcher: Availability,
    circuit: Circuit,
    sync: Syncing,
    /// The only probe of a half-open circuit is out.
    slot_taken: bool,
    /// Its links to the cloud: the checks', and the rounds'.
    links: [bool; 2],
    check: Option<(u64, Result<String, CloudFailure>)>,
    cycle: Option<(u64, Result<(), FailureClass>)>,
    watcher_wakes: Option<Duration>,
    circuit_wakes: Option<Duration>,
    /// When its rows had arrived.
    flushed: Option<Duration>,
    random: u64,
    /// 1; with 0 nothing is left to chance.
    spread: f64,
}

impl Device {
    /// One that is connected and idle.
    fn connected(n: usize, spread: f64, due: &mut Vec<(Duration, Due)>) -> Self {
        let (watcher, circuit, pace) = policies();
        let seen = Published { epoch: 1, mode: Mode::Closed, reason: None, forced: false };
        let mut device = Self {
            watcher: Availability::new(watcher, "db.example:5432"),
            circuit: Circuit::take_over(circuit, seen, Duration::ZERO).0,
            sync: Syncing::new(pace),
            slot_taken: false,
            links: [true, true],
            check: None,
            cycle: None,
            watcher_wakes: None,
            circuit_wakes: None,
            flushed: None,
            random: (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            spread,
        };
        let (now, mut cloud) = (Duration::ZERO, Cloud::new(Duration::ZERO, usize::MAX));
        device.tell_watcher(availability::Event::Started, now, &mut cloud, due);
        let (_, result) = device.check.take().unwrap();
        device.tell_watcher(availability::Event::CheckEnded { id: 1, result }, now, &mut cloud, due);
        let (cycle, _) = device.cycle.unwrap();
        device.end_cycle(cycle, Ok(()), now, &mut cloud, due);
        assert_eq!(device.sync.state(), sync::State::Idle);
        device.flushed = None;
        device
    }

    fn share(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.spread * (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn tell_watcher(
        &mut self,
        event: availability::Event,
        now: Duration,
        cloud: &mut Cloud,
        due: &mut Vec<(Duration, Due)>,
    ) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let share = self.share();
            for effect in self.watcher.advance(event, now, share) {
                match effect {
                    availability::Effect::Look => {
                        events.push_front(availability::Event::Looked(Listening::CannotSee));
                    }
                    availability::Effect::StartCheck { id } => {
                        self.check = Some((id, self.connect(0, now, cloud)));
                        due.push((now + ROUND_TRIP, Due::Check(id)));
                    }
                    availability::Effect::ScheduleAt(at) => {
                        self.watcher_wakes = Some(at);
                        due.push((at, Due::WatcherWoke));
                    }
                    availability::Effect::Broadcast(change) => {
                        self.tell_circuit(circuit::Event::Availability(change), now, due);
                        let event = match change.status {
                            ProxyStatus::Available => sync::Event::Available,
                            _ => sync::Event::Unavailable(change.class),
                        };
                        self.tell_sync(event, now, cloud, due);
                    }
                    // None is found on another machine.
                    availability::Effect::FindProcess => {
                        events.push_back(availability::Event::ProcessFound(None));
                    }
                    availability::Effect::DropCheck
                    | availability::Effect::Answer(_)
                    | availability::Effect::Log(_) => {}
                }
            }
        }
    }

    fn tell_circuit(&mut self, event: circuit::Event, now: Duration, due: &mut Vec<(Duration, Due)>) {
        for effect in self.circuit.advance(event, now) {
            match effect {
                circuit::Effect::Publish(_) => self.slot_taken = false,
                circuit::Effect::ScheduleAt(at) => {
                    self.circuit_wakes = Some(at);
                    due.push((at, Due::CircuitWoke));
                }
                circuit::Effect::LogOpened { .. } | circuit::Effect::LogForced(_) => {}
            }
        }
    }

    fn tell_sync(
        &mut self,
        event: sync::Event,
        now: Duration,
        cloud: &mut Cloud,
        due: &mut Vec<(Duration, Due)>,
    ) {
        let share = self.share();
        for effect in self.sync.advance(event, share) {
            match effect {
                sync::Effect::Wake { wait, after } => due.push((now + after, Due::SyncWoke(wait))),
                sync::Effect::Cancel => self.cycle = None,
                sync::Effect::Start { cycle } => self.start_cycle(cycle, now, cloud, due),
            }
        }
    }

    fn start_cycle(&mut self, cycle: u64, now: Duration, cloud: &mut Cloud, due: &mut Vec<(Duration, Due)>) {
        let mode = self.circuit.published().mode;
        let outcome = match mode {
            Mode::Open => Err(Outcome::Held),
            Mode::Offline => Err(Outcome::Early),
            Mode::HalfOpen if self.slot_taken => Err(Outcome::Early),
            _ => Ok(self.connect(1, now, cloud).map(drop).map_err(|failure| failure.class)),
        };
        match outcome {
            Ok(result) => {
                self.slot_taken = mode == Mode::HalfOpen;
                self.cycle = Some((cycle, result));
                let took = if result.is_ok() { CYCLE } else { ROUND_TRIP };
                due.push((now + took, Due::Cycle(cycle)));
            }
            Err(outcome) => {
                self.tell_sync(sync::Event::Ended { cycle, outcome, took: CYCLE }, now, cloud, due)
            }
        }
    }

    fn end_cycle(
        &mut self,
        cycle: u64,
        result: Result<(), FailureClass>,
        now: Duration,
        cloud: &mut Cloud,
        due: &mut Vec<(Duration, Due)>,
    ) {
        self.cycle = None;
        self.slot_taken = false;
        let call = CallFinished { epoch: self.circuit.published().epoch, outcome: result };
        self.tell_circuit(circuit::Event::Call(call), now, due);
        self.tell_watcher(availability::Event::TrafficEnded(result), now, cloud, due);
        if result.is_ok() {
            self.flushed.get_or_insert(now);
        }
        let outcome = result.map_or_else(Outcome::Failed, |()| Outcome::Done);
        self.tell_sync(sync::Event::Ended { cycle, outcome, took: CYCLE }, now, cloud, due);
    }

    /// Over the link that is there, or over a new one.
    fn connect(&mut self, link: usize, now: Duration, cloud: &mut Cloud) -> Result<String, CloudFailure> {
        if self.links[link] {
            return Ok("PostgreSQL".to_owned());
        }
        let result = cloud.dial(now);
        self.links[link] = result.is_ok();
        result
    }

    /// Every link breaks, and everybody notices.
    fn lose(&mut self, now: Duration, cloud: &mut Cloud, due: &mut Vec<(Duration, Due)>) {
        self.links = [false, false];
        self.tell_sync(sync::Event::Grew, now, cloud, due);
        let broke = availability::Event::TrafficEnded(Err(FailureClass::Transient));
        self.tell_watcher(broke, now, cloud, due);
    }

    fn is_due(&mut self, what: Due, now: Duration, cloud: &mut Cloud, due: &mut Vec<(Duration, Due)>) {
        match what {
            Due::WatcherWoke if self.watcher_wakes == Some(now) => {
                self.watcher_wakes = None;
                self.tell_watcher(availability::Event::Woke, now, cloud, due);
            }
            Due::CircuitWoke if self.circuit_wakes == Some(now) => {
                self.circuit_wakes = None;
                self.tell_circuit(circuit::Event::Woke, now, due);
            }
            Due::SyncWoke(wait) => self.tell_sync(sync::Event::Woke { wait }, now, cloud, due),
            Due::Check(id) => {
                if let Some((_, result)) = self.check.take_if(|(running, _)| *running == id) {
                    self.tell_watcher(availability::Event::CheckEnded { id, result }, now, cloud, due);
                }
            }
            Due::Cycle(cycle) => {
                if let Some((running, result)) = self.cycle
                    && running == cycle
                {
                    self.end_cycle(cycle, result, now, cloud, due);
                }
            }
            Due::WatcherWoke | Due::CircuitWoke => {}
        }
    }
}

/// What an outage came to.
#[derive(Debug)]
struct Comeback {
    /// In the second in which the links broke, per device.
    at_once: f64,
    /// The most in any second afterwards.
    dials_peak: usize,
    /// From the cloud's return until nine of ten, and all, had sent what waited.
    most_after: Duration,
    all_after: Duration,
}

fn outage(devices: usize, spread: f64, back_at: Duration, log_ins_max: usize) -> Comeback {
    let mut cloud = Cloud::new(back_at, log_ins_max);
    let mut queue: BinaryHeap<Reverse<(Duration, usize, Due)>> = BinaryHeap::new();
    let mut due = vec![];
    let mut fleet = Vec::with_capacity(devices);
    for n in 0..devices {
        let mut device = Device::connected(n, spread, &mut due);
        device.lose(Duration::ZERO, &mut cloud, &mut due);
        queue.extend(due.drain(..).map(|(at, what)| Reverse((at, n, what))));
        fleet.push(device);
    }
    let mut waiting = devices;
    while let Some(Reverse((now, n, what))) = queue.pop() {
        let device = &mut fleet[n];
        let had = device.flushed.is_some();
        device.is_due(what, now, &mut cloud, &mut due);
        if !had && device.flushed.is_some() {
            waiting -= 1;
        }
        // What a connected device does from now on dials nobody.
        if device.flushed.is_none() {
            queue.extend(due.drain(..).map(|(at, what)| Reverse((at, n, what))));
        } else {
            due.clear();
        }
        assert!(now < back_at + Duration::from_secs(7200), "{waiting} of {devices} did not come back");
    }
    assert_eq!(waiting, 0, "nobody is left behind");
    let mut flushed: Vec<Duration> = fleet.iter().filter_map(|device| device.flushed).collect();
    flushed.sort_unstable();
    let after = |share: usize| flushed[(devices * share / 100).min(devices - 1)].saturating_sub(back_at);
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let at_once = cloud.dials[0] as f64 / devices as f64;
    Comeback {
        at_once,
        dials_peak: cloud.dials[1..].iter().copied().max().unwrap_or(0),
        most_after: after(90),
        all_after: after(100),
    }
}

/// Tells what came of it, and that it stays within bounds: everybody notices with two dials; afterwards no second sees more than
/// a quarter of the fleet, and all are back within `within`.
fn expect(devices: usize, away: Duration, log_ins_max: usize, within: Duration) {
    let comeback = outage(devices, 1.0, away, log_ins_max);
    let Comeback { at_once, dials_peak, most_after, all_after } = comeback;
    println!(
        "{devices} devices, the cloud away for {away:?}: {at_once:.1} dials each in the first second, then {dials_peak} in a second \
         at most; 90 % are back after {most_after:.1?}, all after {all_after:.1?}"
    );
    assert!(at_once <= 2.0, "{at_once}");
    assert!(dials_peak <= devices / 4, "{dials_peak} dials in one second");
    assert!(all_after <= within, "{all_after:?}");
}

/// 100,000 devices that lost the cloud in the same instant do not come back in the same second.
#[test]
fn a_fleet_comes_back_spread_over_time() {
    // As they would if nothing were left to chance.
    assert_eq!(outage(1_000, 0.0, 5 * SECOND, usize::MAX).dials_peak, 2_000);
    expect(DEVICES, 5 * SECOND, usize::MAX, 20 * SECOND);
    expect(DEVICES / 10, 60 * SECOND, usize::MAX, 120 * SECOND);
}

/// A server that lets in so many a second, and tells the others that it is full, is not held up by those whom it sends away.
#[test]
fn a_server_that_is_full_gets_everybody_in() {
    expect(DEVICES / 20, 30 * SECOND, 100, 1_200 * SECOND);
}

/// The same at length.
#[test]
#[ignore = "takes minutes: make fleet"]
fn a_fleet_comes_back_after_any_outage() {
    for away_s in [1, 5, 60, 300, 1800] {
        expect(DEVICES, Duration::from_secs(away_s), usize::MAX, 700 * SECOND);
    }
    expect(DEVICES, 60 * SECOND, 2_000, 1_800 * SECOND);
}
