//! Every place where an actor can die on the way of a row: alone, in pairs, and at random in great number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use tidewater_actors::messages::ActorReport;
use tidewater_test_support::wait;

use crate::harness::PATIENCE;
use crate::load::{ACTORS, Scene, Trap, actor_at};
use crate::{Random, number};

/// The stages of a write, a flush, an acknowledgement, a pull, and of whoever watches over them.
const POINTS: &[&str] = &[
    "writer.write",
    "writer.group",
    "sqlite.begun",
    "sqlite.written",
    "sqlite.commit",
    "sqlite.sync",
    "sqlite.noted",
    "writer.done",
    "writer.answer",
    "writer.look",
    "writer.call.GetLink",
    "writer.call.NoteRound",
    "writer.called.NoteRound",
    "writer.call.AcknowledgeRound",
    "writer.called.AcknowledgeRound",
    "writer.call.ApplyPage",
    "writer.called.ApplyPage",
    "syncer.permitted",
    "syncer.connected",
    "syncer.asks",
    "syncer.answered",
    "syncer.pulled",
    "syncer.encoded",
    "cloud.begun",
    "cloud.commit",
    "cloud.committed",
    "syncer.receipts",
    "syncer.ended",
    "watcher.advance",
    "watcher.tell",
    "breaker.advance",
    "breaker.advanced",
];

/// When somebody comes by for the n-th time, a round or a page may have been half done by others.
const LATER: [u32; 3] = [2, 3, 5];

/// Only who is restarted comes by here.
const REOPEN: &str = "sqlite.open";

/// What the actor was handling, as its type's name ends; `None` where it may be several.
fn message(point: &str) -> Option<&str> {
    match point {
        "writer.write" => Some("::Write"),
        "writer.look" => Some("sqlite_writer::Look"),
        "syncer.receipts" => Some("::RoundSettled"),
        _ => point.strip_prefix("writer.call.").or(point.strip_prefix("writer.called.")),
    }
}

/// Springs one set of traps after the other under load, and looks at what is left.
async fn strike(scene: &mut Scene, tag: &str, strikes: &[&[(&str, u32)]]) {
    let before = scene.reports().await;
    let known = scene.errors().len();
    let load = scene.load(tag);
    let mut deaths: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut sum, mut what) = (0, String::new());
    for strike in strikes {
        let traps: Vec<_> = strike.iter().map(|(point, hit)| Trap::set(point, *hit)).collect();
        what = traps.iter().map(|trap| trap.text.as_str()).collect::<Vec<_>>().join(" and ");
        for trap in &traps {
            trap.sprung().await;
            *deaths.entry(actor_at(&trap.point)).or_default() += 1;
            sum += 1;
        }
        let restarted = |reports: &BTreeMap<String, ActorReport>| {
            reports.iter().all(|(name, now)| {
                let expected = deaths.get(name.as_str()).unwrap_or(&0);
                now.panics == before[name].panics + expected
                    && now.restarts == before[name].restarts + expected
                    && now.state == "running"
            })
        };
        let reports = wait::until(&format!("{what}: the dead run again"), PATIENCE, async || {
            let reports = scene.reports().await;
            if restarted(&reports) { Ok(reports) } else { Err(format!("{before:#?}\n{reports:#?}")) }
        })
        .await;
        for (name, report) in &reports {
            let own = traps.iter().filter(|trap| actor_at(&trap.point) == name);
            if let Some(last) = own.max_by_key(|trap| trap.fired()) {
                told(last, report, &scene.errors()[known..]);
            }
        }
        // No write meets more than these.
        load.goes_on(&what).await;
    }
    scene.settle(load, &what).await;
    scene.works(&what).await;
    let errors = scene.errors().split_off(known);
    assert_eq!(errors.len(), sum, "{what}: one line each: {errors:#?}");
}

/// Who died, where, of what and in the middle of which message is in the status and in the log.
fn told(trap: &Trap, report: &ActorReport, errors: &[String]) {
    let panic = report.last_panic.as_ref().unwrap();
    assert_eq!(panic.message, trap.text, "{report:?}");
    assert!(panic.location.starts_with("tests/panics/load.rs:"), "{panic:?}");
    if let Some(message) = message(&trap.point) {
        assert!(panic.message_type.as_ref().is_some_and(|it| it.ends_with(message)), "{panic:?}");
    }
    let line = format!("ERRO {} panicked at {}, handling ", report.name, panic.location);
    let written = errors.iter().filter(|error| error.starts_with(&line) && error.ends_with(&trap.text));
    assert!(written.count() >= 1, "{trap:?}: {errors:#?}");
}

async fn strike_each(hits: impl Fn() -> Vec<u32>) {
    let mut scene = Scene::new().await;
    for (at, point) in POINTS.iter().enumerate() {
        let places: Vec<[(&str, u32); 1]> = hits().into_iter().map(|hit| [(*point, hit)]).collect();
        let strikes: Vec<&[(&str, u32)]> = places.iter().map(|place| &place[..]).collect();
        strike(&mut scene, &at.to_string(), &strikes).await;
        if at % 4 == 3 {
            scene.still_told(point).await;
        }
    }
    scene.end().await;
}

/// Whoever dies, wherever it stands, at the first time or later: what was acknowledged is here once and there once,
/// who was waiting is answered, and everything goes on.
#[actix_rt::test]
async fn a_panic_at_any_point_costs_nothing() {
    let random = RefCell::new(Random::new());
    strike_each(|| vec![1, LATER[random.borrow_mut().below(LATER.len())]]).await;
}

/// The same with every later time there is.
#[actix_rt::test]
#[ignore = "minutes: make long"]
async fn a_panic_at_any_point_and_any_time_costs_nothing() {
    strike_each(|| [&[1], &LATER[..]].concat()).await;
}

/// Every pair, in an order that the seed decides.
fn pairs(random: &mut Random) -> Vec<(&'static str, &'static str)> {
    let mut pairs = vec![];
    for (at, one) in POINTS.iter().enumerate() {
        pairs.extend(POINTS[at + 1..].iter().map(|other| (*one, *other)));
        if one.starts_with("writer") || one.starts_with("sqlite") {
            pairs.push((one, REOPEN));
        }
    }
    for at in (1..pairs.len()).rev() {
        pairs.swap(at, random.below(at + 1));
    }
    pairs
}

async fn strike_pairs(count: u64) {
    let mut random = Random::new();
    let mut pairs = pairs(&mut random);
    pairs.truncate(usize::try_from(count).unwrap());
    let mut scene = Scene::new().await;
    for (at, (one, other)) in pairs.iter().enumerate() {
        let places = [*one, *other].map(|point| {
            let hit = if point == REOPEN { 1 } else { [1, 2, 3, 5][random.below(4)] };
            (point, hit)
        });
        strike(&mut scene, &at.to_string(), &[&places]).await;
    }
    println!("{} pairs", pairs.len());
    scene.end().await;
}

/// Two deaths at about the same time, of two actors or of one and its successor: the same holds.
#[actix_rt::test]
async fn two_panics_at_any_two_points_cost_nothing() {
    strike_pairs(number("TIDEWATER_HISTORIES", 8)).await;
}

/// Every pair of points there is.
#[actix_rt::test]
#[ignore = "minutes: make long"]
async fn two_panics_at_every_two_points_cost_nothing() {
    strike_pairs(u64::from(u32::MAX)).await;
}

/// What the process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    resident_kib: usize,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

/// Descriptors and threads that come and go by themselves: a connection more in a pool, a blocking thread more or less.
const SLACK: usize = 4;

/// What the log of the test and what SQLite and the allocator keep may grow by.
const RESIDENT_SLACK_KIB: usize = 64 * 1024;

/// After so many, everything is counted.
const PHASE: u32 = 250;

async fn strike_at_random(count: u64) {
    let mut random = Random::new();
    let mut scene = Scene::new().await;
    let (began, mut deaths, mut warm) = (Instant::now(), 0, None);
    let before: u32 = scene.reports().await.values().map(|report| report.panics).sum();
    while u64::from(deaths) < count {
        let tag = format!("after {deaths}");
        let load = scene.load(&tag);
        let phase_ends = deaths + PHASE.min(u32::try_from(count / 8).unwrap());
        while deaths < phase_ends {
            // One for each actor. Now and then the writer's successor dies as well, in its birth.
            let mut traps: Vec<_> = ACTORS
                .iter()
                .map(|actor| {
                    let own: Vec<_> = POINTS.iter().filter(|point| actor_at(point) == *actor).collect();
                    Trap::set(own[random.below(own.len())], u32::try_from(random.below(2)).unwrap() + 1)
                })
                .collect();
            if random.below(4) == 0 {
                traps.push(Trap::set(REOPEN, 1));
            }
            for trap in &traps {
                trap.sprung().await;
                deaths += 1;
            }
            // No write meets more of them: then none may fail.
            load.goes_on(&format!("{traps:?}")).await;
        }
        scene.settle(load, &tag).await;
        scene.works(&tag).await;
        let panics: u32 = scene.reports().await.values().map(|report| report.panics).sum();
        assert_eq!((panics - before, scene.errors().len()), (deaths, usize::try_from(deaths).unwrap()));
        let warm = *warm.get_or_insert_with(Held::now);
        let held = wait::until("what the dead held is given back", PATIENCE, async || {
            let held = Held::now();
            let flat = held.descriptors <= warm.descriptors + SLACK && held.threads <= warm.threads + SLACK;
            if flat { Ok(held) } else { Err(format!("{warm:?}, {held:?}")) }
        })
        .await;
        println!("{deaths} panics, {:?}: {held:?}", began.elapsed());
        assert!(held.resident_kib <= warm.resident_kib + RESIDENT_SLACK_KIB, "{warm:?}, {held:?}");
    }
    scene.end().await;
}

/// Panics at random, of all actors, while everybody writes: at the end the file, the cloud and what was acknowledged are
/// the same, and nothing of the dead is left.
#[actix_rt::test]
async fn many_random_panics_leave_nothing_behind() {
    strike_at_random(number("TIDEWATER_PANICS", 90)).await;
}

/// The same for as long as it takes.
#[actix_rt::test]
#[ignore = "minutes: make long"]
async fn ten_thousand_random_panics_leave_nothing_behind() {
    strike_at_random(number("TIDEWATER_PANICS", 10_000)).await;
}
