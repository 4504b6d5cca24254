//! Who is told of the availability: everybody, each at its own pace.

use std::sync::mpsc;

use actix::prelude::*;
use tidewater::{AvailabilityChanged, ProxyStatus};
use tidewater_test_support::wait;

use crate::harness::{Bench, PATIENCE};
use crate::{Ear, Heard, hurried};

/// A subscriber with room for one message that blocks its thread at the first one, until it is let go.
struct Stuck {
    heard: Heard,
    let_go: mpsc::Receiver<()>,
}

impl Actor for Stuck {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1);
    }
}

impl Handler<AvailabilityChanged> for Stuck {
    type Result = ();

    fn handle(&mut self, change: AvailabilityChanged, _: &mut Self::Context) {
        self.heard.note(change);
        // It errs once nobody holds it any more; from then on messages pass.
        let _ = self.let_go.recv();
    }
}

/// A subscriber that does not survive being told.
struct Fragile;

impl Actor for Fragile {
    type Context = Context<Self>;
}

impl Handler<AvailabilityChanged> for Fragile {
    type Result = ();

    fn handle(&mut self, _: AvailabilityChanged, _: &mut Self::Context) {
        panic!("a subscriber's own panic, expected by its test");
    }
}

/// One subscriber blocks, one is dead, one dies of what it is told: the next one hears every change. A late one hears at once how
/// things are, and so does the blocked one when it moves again.
#[actix_rt::test]
async fn a_slow_or_dead_subscriber_holds_up_nobody() {
    let bench = Bench::new().await;
    let db = bench.open_with(hurried(&bench).set("proxy.max_retry_delay_s", 3600)).await;
    let (hold, let_go) = mpsc::channel();
    let (slow, arbiter, other) = (Heard::default(), Arbiter::new(), Arbiter::new());
    let heard = slow.clone();
    let stuck = Stuck::start_in_arbiter(&arbiter.handle(), |_| Stuck { heard, let_go });
    let dead = Ear(Heard::default()).start();
    let gone = dead.clone().recipient();
    drop(dead);
    let fragile = Fragile::start_in_arbiter(&other.handle(), |_| Fragile);
    for recipient in [stuck.recipient(), gone, fragile.recipient()] {
        db.subscribe(recipient).await.unwrap();
    }
    let prompt = Heard::of(&db).await;

    for _ in 0..4 {
        let known = prompt.all().len();
        bench.proxy.start();
        prompt.wait_for(ProxyStatus::Available, known, &bench.log).await;
        let known = prompt.all().len();
        bench.proxy.stop();
        prompt.wait_for(ProxyStatus::Unavailable, known, &bench.log).await;
    }
    assert_eq!(slow.all().len(), 1, "it is still in its first message");

    let known = prompt.all().len();
    bench.proxy.start();
    prompt.wait_for(ProxyStatus::Available, known, &bench.log).await;
    let late = Heard::of(&db).await;
    wait::until("the late one is told", PATIENCE, async || late.last().ok_or("nothing".to_owned())).await;
    assert_eq!(late.all()[0], prompt.last().unwrap());

    drop(hold);
    wait::until("the slow one is told how things are", PATIENCE, async || {
        let (told, now) = (slow.last(), prompt.last());
        if told == now { Ok(()) } else { Err(format!("{told:?}, not {now:?}")) }
    })
    .await;
    for heard in [&prompt, &slow, &late] {
        let epochs: Vec<_> = heard.all().iter().map(|change| change.epoch).collect();
        assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
    }
    assert!(slow.all().len() < prompt.all().len(), "what is over is not told late");
    db.shutdown().await.unwrap();
    arbiter.stop();
    other.stop();
}
