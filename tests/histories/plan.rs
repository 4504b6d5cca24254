//! What happens, from a seed.

use std::fmt;

use fastrand::Rng;

/// Devices of the fleet. A history uses two to five of them.
pub(crate) const DEVICES: usize = 5;

/// Keys of one history: two have a row from the start, the third has none.
pub(crate) const KEYS: i64 = 3;

/// Where something can go wrong by a panic, once.
const POINTS: [&str; 14] = [
    "cloud.begun",
    "cloud.commit",
    "cloud.committed",
    "sqlite.begun",
    "sqlite.commit",
    "sqlite.noted",
    "syncer.answered",
    "syncer.connected",
    "syncer.encoded",
    "syncer.ended",
    "syncer.pulled",
    "syncer.sent",
    "writer.done",
    "writer.group",
];

/// By how many seconds a device's clock may be off.
const CLOCKS_S: [i64; 7] = [0, 0, 3_600, -3_600, 259_200, -259_200, 34_560_000];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writer {
    Device(usize),
    Sql,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    A,
    B,
    Both,
    Put,
    Delete,
}

/// What happens to the fleet, whose histories share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Leave(usize),
    Return(usize),
    /// The device's database is dropped, in the middle of whatever it does, and opened again with this clock.
    Crash(usize, i64),
    /// The same with an orderly end.
    Restart(usize, i64),
    /// The link is cut when it has sent so many more bytes.
    Cut(usize, u64),
    /// Whoever comes by next, on whichever device, panics.
    Panic(&'static str),
    /// Plain SQL begins a transaction, in which it writes from now on.
    Begin,
    /// And commits it.
    Commit,
    /// A whole cycle of this device.
    Sync(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) history: usize,
    pub(crate) writer: Writer,
    pub(crate) key: i64,
    pub(crate) op: Op,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) events: Vec<Event>,
    pub(crate) writes: Vec<Write>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) histories: usize,
    pub(crate) phases: Vec<Phase>,
}

impl Plan {
    pub(crate) fn random(seed: u64, histories: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut away = [false; DEVICES];
        let mut open = false;
        let mut phases = vec![];
        for _ in 0..rng.usize(3..=6) {
            let mut events = vec![];
            for (device, away) in away.iter_mut().enumerate() {
                match rng.u8(..20) {
                    0..=5 if *away => {
                        *away = false;
                        events.push(Event::Return(device));
                    }
                    0..=7 if !*away => {
                        *away = true;
                        events.push(Event::Leave(device));
                    }
                    8..=9 => events.push(Event::Crash(device, CLOCKS_S[rng.usize(..CLOCKS_S.len())])),
                    10 => events.push(Event::Restart(device, CLOCKS_S[rng.usize(..CLOCKS_S.len())])),
                    11..=12 if !*away => events.push(Event::Cut(device, rng.u64(50..30_000))),
                    13..=15 if !*away && !open => events.push(Event::Sync(device)),
                    16 => events.push(Event::Panic(POINTS[rng.usize(..POINTS.len())])),
                    _ => {}
                }
            }
            match (open, rng.u8(..3)) {
                (false, 0) => events.push(Event::Begin),
                (true, 0..=1) => events.push(Event::Commit),
                _ => rng.shuffle(&mut events),
            }
            open = match events.last() {
                Some(Event::Begin) => true,
                Some(Event::Commit) => false,
                _ => open,
            };
            phases.push(Phase { events, writes: vec![] });
        }
        for history in 0..histories {
            let devices = rng.usize(2..=DEVICES);
            let first = rng.usize(..DEVICES);
            // Few keys where much is to be met, and a writer who is alone with a column now and then.
            let keys = rng.i64(1..=KEYS);
            for phase in &mut phases {
                for _ in 0..rng.usize(0..=3) {
                    let writer = match rng.usize(..=devices) {
                        0 => Writer::Sql,
                        n => Writer::Device((first + n) % DEVICES),
                    };
                    let op = match rng.u8(..16) {
                        0..=5 => Op::A,
                        6..=10 => Op::B,
                        11..=12 => Op::Both,
                        13..=14 => Op::Put,
                        _ => Op::Delete,
                    };
                    phase.writes.push(Write { history, writer, key: rng.i64(0..keys), op });
                }
            }
        }
        Self { histories, phases }
    }

    /// What one history consists of.
    pub(crate) fn alone(&self, history: usize) -> Self {
        let mut plan = self.clone();
        for phase in &mut plan.phases {
            phase.writes.retain(|write| write.history == history);
        }
        plan
    }

    /// The number of its steps, and the plan without the n-th.
    pub(crate) fn steps(&self) -> usize {
        self.phases.iter().map(|phase| phase.events.len() + phase.writes.len()).sum()
    }

    pub(crate) fn without(&self, mut step: usize) -> Self {
        let mut plan = self.clone();
        for phase in &mut plan.phases {
            if step < phase.events.len() {
                phase.events.remove(step);
                break;
            }
            step -= phase.events.len();
            if step < phase.writes.len() {
                phase.writes.remove(step);
                break;
            }
            step -= phase.writes.len();
        }
        plan.phases.retain(|phase| !phase.events.is_empty() || !phase.writes.is_empty());
        plan
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, phase) in self.phases.iter().enumerate() {
            writeln!(f, "  phase {at}: {:?}", phase.events)?;
            for Write { writer, key, op, .. } in &phase.writes {
                writeln!(f, "    {writer:?} key {key} {op:?}")?;
            }
        }
        Ok(())
    }
}
