//! The watcher: finds out whether Cloud SQL can be reached, and tells everybody when that changes.
//!
//! ```text
//! DetectProxy, ResetDetector, CallFinished ─┐
//! timer ─────────────────────────────────── ├─▶ advance(event) ─▶ core::availability ─▶ effects
//! Probe's answer ───────────────────────────┘                                            │
//!      look and find_process (no connection) · Probe::check (the pool's first connection) · timer ◀───────┤
//!      AvailabilityChanged ─▶ every subscriber · Detection ─▶ whoever asked · log ◀──────┘
//! ```
//!
//! Parts: [`WatcherOptions`], what it is to do; [`Probe`], the check that connects, made elsewhere;
//! [`ProxyWatcher`], the shell. Every decision is in [`Availability`]; here is no `if` about the proxy.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use slog::{Logger, error, info, warn};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::core::availability::{
    Availability, Effect, Environment, Event, Legacy, Level, Listening, Notice, Policy, Times,
};
use crate::core::backoff::Backoff;
use crate::core::failure::CloudFailure;
use crate::endpoint::{Endpoint, Lookout};
use crate::messages::{
    AvailabilityChanged, CallFinished, DetectProxy, Detection, GetProxyReport, ProxyReport, ResetDetector,
    SetTimes, Subscribe,
};
use crate::supervision::Context;

/// So many may wait for one check; who comes after them is told what is known.
const WAITERS_MAX: usize = 1_024;

/// The check that connects: the pool's own first connection, `SELECT 1`, and whether it is ours.
///
/// Shared between the watcher and its successors. The future runs in the watcher and must not block.
pub trait Probe: Send + Sync {
    /// Checks once. `Ok` says who answered. Has timeouts of its own, shorter than
    /// [`WatcherOptions::check_timeout`].
    fn check(&self) -> ProbeFuture;
}

/// What [`Probe::check`] returns.
pub type ProbeFuture = Pin<Box<dyn Future<Output = Result<String, CloudFailure>>>>;

/// What the watcher is to do. Clones go to successors after a restart and share the epochs.
#[derive(Clone)]
pub struct WatcherOptions {
    /// Where the proxy is said to be.
    pub endpoint: Endpoint,
    /// Whether a missing proxy is normal.
    pub environment: Environment,
    /// The proxy is required, in development too.
    pub proxy_required: bool,
    /// `CLOUD_SQL_RETRY_DELAY` and `CLOUD_SQL_MAX_RETRY_DELAY`.
    pub backoff: Backoff,
    /// Failures in a row until the pause, or until the warning where the proxy is expected.
    pub give_up_after: u32,
    /// Time between two checks while available.
    pub health_interval: Duration,
    /// How long a success answers questions that are not forced.
    pub recently_verified: Duration,
    /// Time between two looks for a listener while not available.
    pub listen_interval: Duration,
    /// A check that takes longer counts as not answering.
    pub check_timeout: Duration,
    /// The sentence that names what is missing when there is no probe.
    pub probe_missing: String,
    /// Looks whether something listens, without connecting; cheap, because it runs in the actor. It remembers whom it
    /// saw, also for successors.
    pub look: Arc<dyn Fn() -> Listening + Send + Sync>,
    /// Sees whether a process of the proxy runs, in words. Runs on a thread that may block.
    pub find_process: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// How long the machine was suspended since it started: time that timers do not notice.
    pub asleep: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// A random number from 0 to 1; tests give zero.
    pub jitter: Arc<dyn Fn() -> f64 + Send + Sync>,
    /// Tells of the calls that end; every watcher introduces itself.
    pub gate: Option<crate::circuit_breaker::Gate>,
    /// What a watcher leaves to its successor, and when it was so.
    pub legacy: Arc<Mutex<Option<(Legacy, Instant)>>>,
}

impl WatcherOptions {
    /// The documented defaults for an endpoint, in development.
    pub fn new(endpoint: Endpoint, backoff: Backoff) -> Self {
        let lookout = Lookout::new(endpoint.clone());
        Self {
            endpoint,
            environment: Environment::Development,
            proxy_required: false,
            backoff,
            give_up_after: 5,
            health_interval: Duration::from_secs(10),
            recently_verified: Duration::from_secs(2),
            listen_interval: Duration::from_millis(500),
            check_timeout: Duration::from_secs(10),
            probe_missing:
                "CLOUD_SQL_DATABASE is not set: something listens, but there is nothing to connect to"
                    .to_owned(),
            look: Arc::new(move || lookout.look()),
            find_process: Arc::new(named_process),
            asleep: Arc::new(crate::clock::asleep),
            jitter: Arc::new(random_share),
            gate: None,
            legacy: Arc::default(),
        }
    }

    /// Sets the times that may change while it runs.
    pub fn set_times(&mut self, times: Times) {
        let Times { health_interval, recently_verified, listen_interval } = times;
        self.health_interval = health_interval;
        self.recently_verified = recently_verified;
        self.listen_interval = listen_interval;
    }

    fn policy(&self, has_probe: bool) -> Policy {
        Policy {
            environment: self.environment,
            proxy_required: self.proxy_required,
            backoff: self.backoff,
            give_up_after: self.give_up_after,
            health_interval: self.health_interval,
            recently_verified: self.recently_verified,
            listen_interval: self.listen_interval,
            check_timeout: self.check_timeout,
            probe_missing: (!has_probe).then(|| self.probe_missing.clone()),
        }
    }
}

impl fmt::Debug for WatcherOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatcherOptions")
            .field("endpoint", &self.endpoint)
            .field("policy", &self.policy(true))
            .finish_non_exhaustive()
    }
}

/// The actor. One per process.
pub struct ProxyWatcher {
    options: WatcherOptions,
    probe: Option<Arc<dyn Probe>>,
    machine: Availability,
    subscribers: Vec<Subscriber>,
    waiters: Vec<oneshot::Sender<Detection>>,
    origin: Instant,
    asleep_before: Duration,
    timer: Option<SpawnHandle>,
    check: Option<SpawnHandle>,
    log: Logger,
}

struct Subscriber {
    recipient: Recipient<AvailabilityChanged>,
    /// The epoch that it was told last; one with a full mailbox is told the current one later.
    told: Option<u64>,
}

impl ProxyWatcher {
    /// A watcher; `None` for `probe` when there is nothing to connect to. `subscribers` hear every change.
    pub fn new(
        options: WatcherOptions,
        probe: Option<Arc<dyn Probe>>,
        subscribers: Vec<Recipient<AvailabilityChanged>>,
        log: Logger,
    ) -> Self {
        let policy = options.policy(probe.is_some());
        let endpoint = options.endpoint.to_string();
        let legacy = options.legacy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let machine = match legacy {
            Some((legacy, since)) => Availability::succeed(policy, endpoint, legacy.after(since.elapsed())),
            None => Availability::new(policy, endpoint),
        };
        // They know the state in which everything starts. What a predecessor said last may not have reached everybody.
        let told = (machine.current().epoch == 0).then_some(0);
        let subscribers = subscribers.into_iter().map(|recipient| Subscriber { recipient, told }).collect();
        Self {
            asleep_before: (options.asleep)(),
            options,
            probe,
            machine,
            subscribers,
            waiters: Vec::new(),
            origin: Instant::now(),
            timer: None,
            check: None,
            log,
        }
    }

    /// Runs the machine and performs its effects; a look is answered within the same turn.
    fn advance(&mut self, event: Event, ctx: &mut Context<Self>) {
        fail::fail_point!("watcher.advance");
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let jitter = (self.options.jitter)();
            for effect in self.machine.advance(event, self.now(), jitter) {
                match effect {
                    Effect::Look => next = Some(Event::Looked((self.options.look)())),
                    Effect::StartCheck { id } => self.start_check(id, ctx),
                    Effect::DropCheck => self.drop_check(ctx),
                    Effect::FindProcess => self.find_process(ctx),
                    Effect::ScheduleAt(at) => self.schedule(at, ctx),
                    // Told at the end of the turn.
                    Effect::Broadcast(_) => {}
                    Effect::Answer(detection) => self.answer(&detection),
                    Effect::Log(notice) => self.write(&notice),
                }
            }
        }
        fail::fail_point!("watcher.tell");
        self.tell_subscribers();
        let legacy = (self.machine.legacy(), Instant::now());
        *self.options.legacy.lock().unwrap_or_else(PoisonError::into_inner) = Some(legacy);
    }

    fn start_check(&mut self, id: u64, ctx: &mut Context<Self>) {
        self.drop_check(ctx);
        // Without a probe the machine never asks for a check.
        let Some(probe) = &self.probe else { return };
        let check = probe.check().into_actor(self).map(move |result, watcher, ctx| {
            watcher.check = None;
            watcher.advance(Event::CheckEnded { id, result }, ctx);
        });
        self.check = Some(ctx.spawn(check));
    }

    fn drop_check(&mut self, ctx: &mut Context<Self>) {
        if let Some(check) = self.check.take() {
            ctx.cancel_future(check);
        }
    }

    /// Since it started, suspended or not.
    fn now(&self) -> Duration {
        self.origin.elapsed() + (self.options.asleep)().saturating_sub(self.asleep_before)
    }

    fn find_process(&self, ctx: &mut Context<Self>) {
        let find = self.options.find_process.clone();
        let found = actix_rt::task::spawn_blocking(move || {
            fail::fail_point!("watcher.find_process");
            find()
        });
        let found = found.into_actor(self);
        ctx.spawn(found.map(|found, watcher, ctx| {
            // A search that failed explains nothing.
            watcher.advance(Event::ProcessFound(found.unwrap_or_default()), ctx);
        }));
    }

    fn schedule(&mut self, at: Duration, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let wait = at.saturating_sub(self.now());
        self.timer = Some(ctx.run_later(wait, |watcher, ctx| {
            watcher.timer = None;
            watcher.advance(Event::Woke, ctx);
        }));
    }

    /// Tells what holds at the end of a turn. Never waits for anybody: a full mailbox is tried again at the
    /// next turn, at the latest with the next wake-up, and then gets the state of that time; a closed one is
    /// forgotten.
    fn tell_subscribers(&mut self) {
        let current = self.machine.current();
        self.subscribers.retain_mut(|subscriber| {
            if subscriber.told == Some(current.epoch) {
                return true;
            }
            match subscriber.recipient.try_send(current) {
                Ok(()) => subscriber.told = Some(current.epoch),
                Err(SendError::Full(_)) => {}
                Err(SendError::Closed(_)) => return false,
            }
            true
        });
    }

    fn subscribe(&mut self, recipient: Recipient<AvailabilityChanged>) {
        match self.subscribers.iter_mut().find(|known| known.recipient == recipient) {
            Some(known) => known.told = None,
            None => self.subscribers.push(Subscriber { recipient, told: None }),
        }
        self.tell_subscribers();
    }

    fn detect(&mut self, force: bool, ctx: &mut Context<Self>) -> ResponseFuture<Detection> {
        if self.waiters.len() >= WAITERS_MAX {
            let known = self.machine.detection();
            return Box::pin(async move { known });
        }
        let (waiter, answer) = oneshot::channel();
        self.waiters.push(waiter);
        self.advance(Event::Asked { force }, ctx);
        let given_up = Detection { detail: "the watcher stopped".to_owned(), ..self.machine.detection() };
        Box::pin(async move { answer.await.unwrap_or(given_up) })
    }

    fn answer(&mut self, detection: &Detection) {
        for waiter in self.waiters.drain(..) {
            // Who does not wait any more does not want to know.
            let _ = waiter.send(detection.clone());
        }
    }

    /// The text is the whole message: users grep for it.
    fn write(&self, notice: &Notice) {
        match notice.level() {
            Level::Info => info!(self.log, "{}", notice),
            Level::Warning => warn!(self.log, "{}", notice),
            Level::Error => error!(self.log, "{}", notice),
        }
    }

    fn report(&self) -> ProxyReport {
        let now = self.now();
        let time_of_day = |at: Duration| {
            let then = SystemTime::now().checked_sub(now.saturating_sub(at))?;
            Some(then.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
        };
        ProxyReport {
            last_check: self.machine.last_check().and_then(time_of_day),
            last_success: self.machine.last_success().and_then(time_of_day),
            ..self.machine.report()
        }
    }
}

impl Actor for ProxyWatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(gate) = &self.options.gate {
            gate.tell_watcher(&ctx.address().recipient());
        }
        self.advance(Event::Started, ctx);
    }
}

impl Handler<Subscribe> for ProxyWatcher {
    type Result = ();

    fn handle(&mut self, Subscribe(recipient): Subscribe, _: &mut Self::Context) {
        self.subscribe(recipient);
    }
}

impl Handler<DetectProxy> for ProxyWatcher {
    type Result = ResponseFuture<Detection>;

    fn handle(&mut self, DetectProxy { force }: DetectProxy, ctx: &mut Self::Context) -> Self::Result {
        self.detect(force, ctx)
    }
}

impl Handler<ResetDetector> for ProxyWatcher {
    type Result = ();

    fn handle(&mut self, _: ResetDetector, ctx: &mut Self::Context) {
        self.advance(Event::Reset, ctx);
    }
}

impl Handler<SetTimes> for ProxyWatcher {
    type Result = ();

    fn handle(&mut self, SetTimes(times): SetTimes, ctx: &mut Self::Context) {
        self.advance(Event::Retimed(times), ctx);
    }
}

impl Handler<CallFinished> for ProxyWatcher {
    type Result = ();

    fn handle(&mut self, call: CallFinished, ctx: &mut Self::Context) {
        self.advance(Event::TrafficEnded(call.outcome), ctx);
    }
}

impl Handler<GetProxyReport> for ProxyWatcher {
    type Result = MessageResult<GetProxyReport>;

    fn handle(&mut self, _: GetProxyReport, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.report())
    }
}

/// The proxy's process as people look for it; with several, the first.
fn named_process() -> Option<String> {
    crate::processes::running_proxies().first().map(|proxy| format!("{} (process {})", proxy.name, proxy.pid))
}

/// From 0 to 1. The standard library seeds every hasher differently, which is random enough to spread a fleet.
pub(crate) fn random_share() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
#[path = "proxy_watcher_tests.rs"]
mod tests;

impl Probe for crate::postgres::Cloud {
    fn check(&self) -> ProbeFuture {
        let cloud = self.clone();
        Box::pin(async move { crate::postgres::Cloud::check(&cloud).await })
    }
}
