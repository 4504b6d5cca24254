//! P4, P5 and "whatever the histories, all converge", on thousands of small random histories.
//!
//! ```text
//! a seed ─▶ Plan: phases ─▶ what happens to the devices (partition, crash, another clock, a panic, a cut, a transaction that
//!                           commits late), and each history's own writes, on its own three keys
//! Fleet: five devices, plain SQL ─▶ real files, real rounds, one real PostgreSQL ─▶ quiet ─▶ judge: by what triggers of the app
//!                                                                                          wrote down of each write
//! ```
//!
//! Some hundred histories run side by side over the same devices, so that one cycle serves all of them. One that fails is run
//! again alone, with steps left out for as long as it fails, and printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

#[path = "histories/fleet.rs"]
mod fleet;
mod harness;
#[path = "histories/judge.rs"]
mod judge;
#[path = "histories/plan.rs"]
mod plan;

use std::time::{Duration, Instant};

use fleet::Fleet;
use plan::Plan;

/// Histories that run side by side: with more, the writes take longer than the cycles that they are to meet.
const ABREAST: usize = 1_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs histories for so long; `TIDEWATER_SEED` names the first seed, `TIDEWATER_HISTORIES_S` how many seconds.
async fn histories_for(seconds: u64) {
    let (first, within) = (number("TIDEWATER_SEED"), number("TIDEWATER_HISTORIES_S").unwrap_or(seconds));
    let first = first.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut fleet = Fleet::new().await;
    let began = Instant::now();
    let (mut seed, mut done, mut tally) = (first, 0, judge::Tally::default());
    while began.elapsed() < Duration::from_secs(within) {
        let plan = Plan::random(seed, ABREAST);
        let wrong = match fleet.run(&plan, fleet::PATIENCE).await {
            Ok(counted) => {
                tally += counted;
                vec![]
            }
            Err(wrong) => wrong,
        };
        if let Some((history, what)) = wrong.first() {
            eprintln!("seed {seed}: {} histories fail; history {history}: {what}", wrong.len());
            eprintln!("{}", fleet.story(*history));
            eprintln!("as planned:\n{}", plan.alone(*history));
            let shortest = fleet.shrink(&plan, *history).await;
            panic!(
                "seed {seed}, history {history}: {what}\nthe shortest that failed again:\n{shortest}\nTIDEWATER_SEED={seed} runs it first"
            );
        }
        (seed, done) = (seed + 1, done + ABREAST);
    }
    eprintln!("{done} histories in {:.1} s, seeds {first}..{seed}: {tally}", began.elapsed().as_secs_f64());
    // Otherwise nothing was met.
    assert!(tally.disputed > 0 && tally.writes > 0 && tally.deletions > 0, "{tally}");
    fleet.end().await;
}

/// As many as fit into a quarter of a minute.
#[actix_rt::test]
async fn whatever_the_histories_all_devices_and_the_cloud_converge_and_nothing_is_lost() {
    histories_for(15).await;
}

/// The judge of the histories finds what it is there for: without the record of what lost, the histories that were good are not any
/// more; and a cloud that swallows some of the devices' updates, as a careless trigger does, loses what nobody replaced.
#[actix_rt::test]
async fn a_loss_is_found_by_the_judge() {
    let mut fleet = Fleet::new().await;
    let plan = Plan::random(1, 200);
    fleet.run(&plan, fleet::PATIENCE).await.unwrap();
    let unrecorded = fleet.judged_without_records();
    assert!(unrecorded.iter().any(|what| what.contains("lost without a record")), "{unrecorded:?}");
    fleet.swallow_updates().await;
    let wrong = fleet.run(&plan, fleet::PATIENCE).await.unwrap_err();
    assert!(wrong.iter().any(|(_, what)| what.contains("lost without a record")), "{wrong:?}");
    fleet.end().await;
}

/// The same for ten minutes.
#[actix_rt::test]
#[ignore = "takes ten minutes: make long"]
async fn however_many_the_histories_they_converge() {
    histories_for(600).await;
}
