//! P8: a panic in any actor, at any stage, loses no acknowledged data, ends no process, and leaves every handle usable.
//!
//! - [`load`]: writers here and in the cloud, traps on their way, and the count of what arrived on both sides.
//! - [`points`]: every place alone, in pairs, and thousands at random.
//! - [`rare`]: the stages that a row seldom meets.
//! - [`service`]: how long it takes until somebody answers again.
//! - [`stuck`]: an actor that holds its thread, and those that only seem to.
//! - [`deadly`]: a write that no writer survives, and a budget that is spent.
//!
//! Faults are injected at named places (the feature `failpoints`). They are the process's, so the tests take turns.
//!
//! `TIDEWATER_SEED` repeats a run; `TIDEWATER_HISTORIES` says how many pairs, `TIDEWATER_PANICS` how many random panics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;
mod process;

#[path = "panics/deadly.rs"]
mod deadly;
#[path = "panics/load.rs"]
mod load;
#[path = "panics/points.rs"]
mod points;
#[path = "panics/rare.rs"]
mod rare;
#[path = "panics/service.rs"]
mod service;
#[path = "panics/stuck.rs"]
mod stuck;

use std::hash::{BuildHasher as _, Hasher as _};

/// Numbers that a run can be repeated with: the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let fresh = || u32::try_from(std::hash::RandomState::new().build_hasher().finish() >> 32).unwrap();
        let seed = number("TIDEWATER_SEED", fresh().into()) | 1;
        println!("TIDEWATER_SEED={seed}");
        // Far from zero, where the first numbers of a small seed would be alike.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % u64::try_from(bound).unwrap()).unwrap()
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |number| number.parse().unwrap())
}
