//! The circuit breaker: the actor that decides, and the gate that everybody asks.
//!
//! ```text
//! caller ── gate.permit() ─▶ Permit ── finish(outcome) ─▶ CallFinished ─▶ CircuitBreaker, ProxyWatcher
//!              │ one atomic load                                            │ core::circuit
//!              └────────────────── the published word ◀────── Publish ──────┘
//! ProxyWatcher ── AvailabilityChanged ─▶ CircuitBreaker
//! ```
//!
//! Parts: [`Gate`], an atomic word that outlives the actor; [`Permit`], one call's right to be made;
//! [`CircuitBreaker`], the shell around [`Circuit`]. Asking never sends a message and never waits. While a
//! breaker is being rebuilt the gate stays as it was; the successor takes over from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::WeakRecipient;
use actix::prelude::*;
use slog::{Logger, debug, info, warn};
use tokio::time::Instant;

use crate::core::circuit::{Circuit, CircuitPolicy, Effect, Event, Mode, Published, word_of};
use crate::core::failure::FailureClass;
use crate::messages::{
    AvailabilityChanged, CallFinished, CircuitReport, ForceCircuit, Forced, GetCircuitReport, ResetCircuit,
    Subscribe,
};
use crate::supervision::Context;

/// What guards the calls to the cloud. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    word: AtomicU64,
    /// Weak, or the gate, which everybody holds, would keep stopped actors alive.
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    breaker: Option<WeakRecipient<CallFinished>>,
    watcher: Option<WeakRecipient<CallFinished>>,
}

impl Default for Shared {
    fn default() -> Self {
        // Nobody has seen the cloud yet.
        let word = encode(Published { epoch: 0, mode: Mode::Offline, reason: None, forced: false });
        Self { word: AtomicU64::new(word), listeners: Mutex::default() }
    }
}

/// The right to make one call. Dropped without an outcome it says nothing about the cloud, and gives a
/// half-open circuit's slot back.
#[derive(Debug)]
#[must_use = "a dropped permit reports nothing"]
pub struct Permit<'gate> {
    /// Borrowed: asking writes to no memory that others ask through.
    gate: &'gate Gate,
    epoch: u64,
    /// The word that this permit wrote when it took the slot of a half-open circuit.
    slot: Option<u64>,
}

/// No call may be made now. A retry helps once the circuit is not open any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no calls to Cloud SQL at the moment: {}", self.why())]
pub struct CircuitOpen {
    /// Why, where that is known.
    pub reason: Option<FailureClass>,
    /// [`Mode::Offline`] also as long as the breaker has not heard what its caller may know; [`Mode::HalfOpen`] when another
    /// call is out that tries whether it works again.
    pub mode: Mode,
    /// Because a person holds the circuit open.
    pub forced: bool,
}

impl CircuitOpen {
    fn why(&self) -> &'static str {
        match self {
            Self { forced: true, .. } => "the circuit is held open by hand",
            Self { reason, .. } => reason.map_or("not available", word_of),
        }
    }
}

impl Gate {
    /// A gate that lets nobody through until a breaker says otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for one call. Costs an atomic load; in half-open, a compare-and-swap more.
    ///
    /// # Errors
    /// When the circuit is open, or half-open with another call out.
    pub fn permit(&self) -> Result<Permit<'_>, CircuitOpen> {
        let mut word = self.shared.word.load(Ordering::Acquire);
        loop {
            let Published { epoch, mode, reason, forced } = decode(word);
            match mode {
                Mode::Closed => return Ok(Permit { gate: self, epoch, slot: None }),
                Mode::Open | Mode::Offline => return Err(CircuitOpen { reason, mode, forced }),
                Mode::HalfOpen if word & SLOT_TAKEN != 0 => {
                    return Err(CircuitOpen { reason, mode, forced });
                }
                Mode::HalfOpen => {
                    let taken = word | SLOT_TAKEN;
                    match self.shared.word.compare_exchange(word, taken, Ordering::AcqRel, Ordering::Acquire)
                    {
                        Ok(_) => return Ok(Permit { gate: self, epoch, slot: Some(taken) }),
                        Err(current) => word = current,
                    }
                }
            }
        }
    }

    /// What callers see now.
    pub fn published(&self) -> Published {
        decode(self.shared.word.load(Ordering::Acquire))
    }

    /// From now on the outcomes of calls go to this watcher too: traffic that succeeded counts as a check.
    /// Called again after every restart of the watcher.
    pub fn tell_watcher(&self, watcher: &Recipient<CallFinished>) {
        self.listeners().watcher = Some(watcher.downgrade());
    }

    fn tell_breaker(&self, breaker: &Recipient<CallFinished>) {
        self.listeners().breaker = Some(breaker.downgrade());
    }

    fn publish(&self, published: Published) {
        self.shared.word.store(encode(published), Ordering::Release);
    }

    /// True when a breaker is there that will act on it.
    fn report(&self, call: CallFinished) -> bool {
        let listeners = self.listeners();
        let send = |to: &Option<WeakRecipient<CallFinished>>| {
            let to = to.as_ref().and_then(WeakRecipient::upgrade).filter(Recipient::connected);
            to.map(|to| to.do_send(call)).is_some()
        };
        send(&listeners.watcher);
        send(&listeners.breaker)
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Listeners> {
        // Two options are never half-changed.
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// Reports how the call ended.
    pub fn finish(mut self, outcome: Result<(), FailureClass>) {
        let heard = self.gate.report(CallFinished { epoch: self.epoch, outcome });
        if heard && outcome.is_err_and(FailureClass::opens_circuit) {
            // The breaker is about to open: nobody may slip through before it does. Should it die first, its
            // successor publishes a new word.
            self.slot = None;
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.slot {
            // Fails when the circuit has moved on: then there is no slot to give back.
            let free = taken & !SLOT_TAKEN;
            let _ = self.gate.shared.word.compare_exchange(taken, free, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// The actor that decides. Its state that matters is in the gate, so a successor goes on where it was.
pub struct CircuitBreaker {
    gate: Gate,
    policy: CircuitPolicy,
    watcher: Option<Recipient<Subscribe>>,
    circuit: Option<Circuit>,
    origin: Instant,
    timer: Option<SpawnHandle>,
    log: Logger,
}

impl CircuitBreaker {
    /// A breaker that decides for `gate`. It subscribes to `watcher` whenever it starts; `None` leaves that to
    /// whoever wires it.
    pub fn new(
        policy: CircuitPolicy,
        gate: Gate,
        watcher: Option<Recipient<Subscribe>>,
        log: Logger,
    ) -> Self {
        Self { gate, policy, watcher, circuit: None, origin: Instant::now(), timer: None, log }
    }

    fn advance(&mut self, event: Event, ctx: &mut Context<Self>) {
        fail::fail_point!("breaker.advance");
        let now = self.origin.elapsed();
        if let Some(circuit) = &mut self.circuit {
            let effects = circuit.advance(event, now);
            self.perform(effects, ctx);
        }
        fail::fail_point!("breaker.advanced");
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Publish(published) => {
                    self.gate.publish(published);
                    debug!(self.log, "circuit {}", published.mode.word(); "epoch" => published.epoch);
                }
                Effect::ScheduleAt(at) => self.schedule(at, ctx),
                Effect::LogOpened { failures, class } => {
                    warn!(self.log, "Circuit open"; "failures" => failures, "reason" => word_of(class));
                }
                // For whoever wonders later why nothing is synced, or why nothing is held back.
                Effect::LogForced(Some(Forced::Open)) => warn!(self.log, "Circuit held open by hand"),
                Effect::LogForced(Some(Forced::Closed)) => warn!(self.log, "Circuit held closed by hand"),
                Effect::LogForced(None) => info!(self.log, "Circuit decides by itself again"),
            }
        }
    }

    fn schedule(&mut self, at: Duration, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let wait = at.saturating_sub(self.origin.elapsed());
        self.timer = Some(ctx.run_later(wait, |breaker, ctx| {
            breaker.timer = None;
            breaker.advance(Event::Woke, ctx);
        }));
    }
}

impl Actor for CircuitBreaker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let seen = self.gate.published();
        let (circuit, effects) = Circuit::take_over(self.policy, seen, self.origin.elapsed());
        self.circuit = Some(circuit);
        self.perform(effects, ctx);
        self.gate.tell_breaker(&ctx.address().recipient());
        if let Some(watcher) = &self.watcher {
            watcher.do_send(Subscribe(ctx.address().recipient()));
        }
    }
}

impl Handler<AvailabilityChanged> for CircuitBreaker {
    type Result = ();

    fn handle(&mut self, change: AvailabilityChanged, ctx: &mut Self::Context) {
        self.advance(Event::Availability(change), ctx);
    }
}

impl Handler<CallFinished> for CircuitBreaker {
    type Result = ();

    fn handle(&mut self, call: CallFinished, ctx: &mut Self::Context) {
        self.advance(Event::Call(call), ctx);
    }
}

impl Handler<ResetCircuit> for CircuitBreaker {
    type Result = ();

    fn handle(&mut self, _: ResetCircuit, ctx: &mut Self::Context) {
        self.advance(Event::Reset, ctx);
    }
}

impl Handler<ForceCircuit> for CircuitBreaker {
    type Result = ();

    fn handle(&mut self, ForceCircuit(forced): ForceCircuit, ctx: &mut Self::Context) {
        self.advance(Event::Force(forced), ctx);
    }
}

impl Handler<GetCircuitReport> for CircuitBreaker {
    type Result = MessageResult<GetCircuitReport>;

    fn handle(&mut self, _: GetCircuitReport, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.circuit.as_ref().map_or_else(CircuitReport::default, Circuit::report))
    }
}

// --- the word: epoch, reason, forced, mode, slot -------------------------------------------------------------------

const SLOT_TAKEN: u64 = 1;
const MODE_SHIFT: u32 = 1;
const FORCED: u64 = 1 << 3;
const REASON_SHIFT: u32 = 4;
const EPOCH_SHIFT: u32 = 8;

const MODES: [Mode; 4] = [Mode::Closed, Mode::Open, Mode::Offline, Mode::HalfOpen];
const REASONS: [FailureClass; 8] = [
    FailureClass::NotRunning,
    FailureClass::NotAnswering,
    FailureClass::Busy,
    FailureClass::Credentials,
    FailureClass::NotOurs,
    FailureClass::DataRefused,
    FailureClass::Transient,
    FailureClass::CheckFailed,
];

/// With a free slot.
fn encode(published: Published) -> u64 {
    let mode = MODES.iter().position(|mode| *mode == published.mode).unwrap_or_default() as u64;
    let reason = published.reason.and_then(|reason| REASONS.iter().position(|known| *known == reason));
    let reason = reason.map_or(0, |index| index as u64 + 1);
    let forced = if published.forced { FORCED } else { 0 };
    published.epoch << EPOCH_SHIFT | reason << REASON_SHIFT | forced | mode << MODE_SHIFT
}

fn decode(word: u64) -> Published {
    let mode = MODES[(word >> MODE_SHIFT & 0b11) as usize];
    let reason = (word >> REASON_SHIFT & 0b1111).checked_sub(1);
    let reason = reason.and_then(|index| REASONS.get(index as usize)).copied();
    Published { epoch: word >> EPOCH_SHIFT, mode, reason, forced: word & FORCED != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backoff::Backoff;
    use crate::messages::ProxyStatus;

    fn policy() -> CircuitPolicy {
        CircuitPolicy {
            failure_threshold: 2,
            success_threshold: 2,
            open_time: Backoff::try_new(Duration::from_secs(10), Duration::from_secs(600)).unwrap(),
        }
    }

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    fn breaker(gate: &Gate) -> Addr<CircuitBreaker> {
        Context::new().run(CircuitBreaker::new(policy(), gate.clone(), None, log()))
    }

    async fn tell(breaker: &Addr<CircuitBreaker>, epoch: u64, status: ProxyStatus) {
        breaker.send(AvailabilityChanged { epoch, status, class: None }).await.unwrap();
    }

    /// Everything sent to the breaker before this is done when it returns.
    async fn state(breaker: &Addr<CircuitBreaker>) -> String {
        breaker.send(GetCircuitReport).await.unwrap().state
    }

    /// Whatever is published comes back from the word unchanged.
    #[test]
    fn the_word_keeps_everything() {
        for mode in MODES {
            for reason in REASONS.map(Some).into_iter().chain([None]) {
                for (epoch, forced) in [(0, false), (1, true), (12_345, false), ((1 << 56) - 1, true)] {
                    let published = Published { epoch, mode, reason, forced };
                    assert_eq!(decode(encode(published)), published);
                    assert_eq!(decode(encode(published) | SLOT_TAKEN), published);
                }
            }
        }
    }

    /// C1: many ask, one gets through, and its success lets the next one ask.
    #[actix::test]
    async fn in_half_open_one_call_is_out_at_a_time_and_a_success_returns_the_slot() {
        let gate = Gate::new();
        let breaker = breaker(&gate);
        assert_eq!(
            gate.permit().unwrap_err(),
            CircuitOpen { reason: None, mode: Mode::Offline, forced: false }
        );
        tell(&breaker, 1, ProxyStatus::Available).await;

        let first = gate.permit().unwrap();
        for _ in 0..100 {
            assert_eq!(gate.permit().unwrap_err().mode, Mode::HalfOpen);
        }
        first.finish(Ok(()));
        let second = gate.permit().unwrap();
        assert!(gate.permit().is_err());
        second.finish(Ok(()));
        assert_eq!(state(&breaker).await, "closed");
        let both = (gate.permit().unwrap(), gate.permit().unwrap());
        drop(both);
    }

    /// A caller that gives up, or panics, does not keep the slot.
    #[actix::test]
    async fn a_dropped_permit_frees_the_slot() {
        let gate = Gate::new();
        let breaker = breaker(&gate);
        tell(&breaker, 1, ProxyStatus::Available).await;
        drop(gate.permit().unwrap());
        gate.permit().unwrap().finish(Err(FailureClass::DataRefused));
        assert!(gate.permit().is_ok());
    }

    /// Nobody slips through between a failed probe and the breaker's reaction to it.
    #[actix::test]
    async fn a_failed_probe_keeps_the_slot_until_the_breaker_opens() {
        let gate = Gate::new();
        let breaker = breaker(&gate);
        tell(&breaker, 1, ProxyStatus::Available).await;
        gate.permit().unwrap().finish(Err(FailureClass::Busy));
        assert!(gate.permit().is_err());
        assert_eq!(state(&breaker).await, "open");
        assert_eq!(
            gate.permit().unwrap_err(),
            CircuitOpen { reason: Some(FailureClass::Busy), mode: Mode::Open, forced: false }
        );
    }

    /// The open time passes on the paused clock, and then one probe may go.
    #[actix::test]
    async fn the_open_time_ends_in_half_open() {
        tokio::time::pause();
        let gate = Gate::new();
        let breaker = breaker(&gate);
        tell(&breaker, 1, ProxyStatus::Available).await;
        gate.permit().unwrap().finish(Err(FailureClass::Busy));
        assert_eq!(state(&breaker).await, "open");
        tokio::time::sleep(Duration::from_millis(9_990)).await;
        assert_eq!(state(&breaker).await, "open");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(state(&breaker).await, "half_open");
    }

    /// A permit of before an outage is worth nothing after it.
    #[actix::test]
    async fn a_slot_of_an_older_epoch_is_not_given_back_twice() {
        let gate = Gate::new();
        let breaker = breaker(&gate);
        tell(&breaker, 1, ProxyStatus::Available).await;
        let old = gate.permit().unwrap();
        tell(&breaker, 2, ProxyStatus::Unavailable).await;
        tell(&breaker, 3, ProxyStatus::Available).await;
        let new = gate.permit().unwrap();
        drop(old);
        assert_eq!(gate.permit().unwrap_err().mode, Mode::HalfOpen, "the new probe is still out");
        drop(new);
        assert!(gate.permit().is_ok());
    }

    /// P8: the handles of the app stay usable while the breaker is gone, and its successor goes on.
    #[actix::test]
    async fn the_gate_outlives_the_breaker() {
        let gate = Gate::new();
        let first = breaker(&gate);
        tell(&first, 1, ProxyStatus::Available).await;
        let lost = gate.permit().unwrap();
        drop(first);
        tokio::task::yield_now().await;

        let second = breaker(&gate);
        assert_eq!(state(&second).await, "half_open");
        let probe = gate.permit().unwrap();
        drop(lost);
        assert!(gate.permit().is_err());
        probe.finish(Ok(()));
        gate.permit().unwrap().finish(Ok(()));
        assert_eq!(state(&second).await, "closed");
    }

    /// C1 under real contention: threads that fight for the slot never hold it together.
    #[test]
    fn threads_never_share_the_slot() {
        let gate = Gate::new();
        gate.publish(Published { epoch: 1, mode: Mode::HalfOpen, reason: None, forced: false });
        let holders = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Ok(permit) = gate.permit() {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
    }
}
