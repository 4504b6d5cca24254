//! Actors that come back: children from factories, restarted when they end, behind handles that follow.
//!
//! ```text
//! Supervisor ── factory ─▶ actor in its arbiter, with a Lifeline in its context
//!      ▲                                     │ the actor stops, or a panic takes it: the lifeline is dropped
//!      └────────────── ChildEnded ◀──────────┘
//!      ├─ within the restart intensity: start again from the factory, after a short wait
//!      └─ beyond it: everything fails, with a reason that names the child
//! Handle ── the current address of a child; empty while it is being restarted
//! ```
//!
//! actix's own `Supervisor` restarts only actors that stop by themselves, and with the same struct; one that panics is
//! gone. What a child knew comes back from SQLite (P6), which is why a fresh one from the factory is enough.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use slog::{Logger, error, warn};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::messages::ActorReport;

/// Erlang/OTP's restart intensity: more than `restarts_max` restarts within `within`, over all children, and the
/// supervisor gives up.
#[derive(Debug, Clone, Copy)]
pub struct Intensity {
    /// So many restarts are borne …
    pub restarts_max: u32,
    /// … within this time.
    pub within: Duration,
}

/// The wait before the second restart in a row; it doubles up to [`WAIT_MAX`]. The first comes at once.
const WAIT: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The address of a child, whichever generation of it is alive. Clones stay valid across restarts.
pub struct Handle<A: Actor> {
    slot: Arc<Slot<A>>,
}

struct Slot<A: Actor> {
    name: &'static str,
    addr: RwLock<Option<Addr<A>>>,
    restarts: Mutex<u32>,
}

impl<A: Actor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<A: Actor> fmt::Debug for Handle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.slot.name)
    }
}

/// A message was not answered: its actor is being restarted. A command may or may not have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{actor} did not answer: it is being restarted")]
pub struct Unanswered {
    /// The actor.
    pub actor: &'static str,
    /// Whether the message had reached the actor's mailbox, so that it may have taken effect.
    pub delivered: bool,
}

impl<A: Actor> Handle<A> {
    /// A handle for a child that does not run yet.
    pub fn new(name: &'static str) -> Self {
        Self { slot: Arc::new(Slot { name, addr: RwLock::default(), restarts: Mutex::default() }) }
    }

    /// The address of the living generation.
    pub fn addr(&self) -> Option<Addr<A>> {
        self.slot.addr.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The living generation as a recipient of one kind of message.
    pub fn recipient<M>(&self) -> Option<Recipient<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        self.addr().map(Addr::recipient)
    }

    /// Sends a message and waits for its answer; waits for a place in the mailbox when that is full. Dropping the
    /// future withdraws a message that is not being handled yet.
    ///
    /// # Errors
    /// [`Unanswered`] when the actor is gone before it answered.
    pub async fn ask<M>(&self, message: M) -> Result<M::Result, Unanswered>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let Some(addr) = self.addr() else {
            return Err(Unanswered { actor: self.slot.name, delivered: false });
        };
        addr.send(message).await.map_err(|_| Unanswered { actor: self.slot.name, delivered: true })
    }

    /// Sends a hint, which may be lost.
    pub fn hint<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        if let Some(addr) = self.addr() {
            addr.do_send(message);
        }
    }

    /// For `status`.
    pub fn report(&self) -> ActorReport {
        let running = self.addr().is_some_and(|addr| addr.connected());
        ActorReport {
            name: self.slot.name.to_owned(),
            state: if running { "running" } else { "restarting" }.to_owned(),
            restarts: *self.slot.restarts.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn set(&self, addr: Option<Addr<A>>) {
        *self.slot.addr.write().unwrap_or_else(PoisonError::into_inner) = addr;
    }
}

/// Why the supervisor gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaveUp {
    /// The child that ended once too often.
    pub child: &'static str,
    /// How many restarts were borne, and within what time.
    pub reason: String,
}

/// The supervisor of one system of actors. Itself an actor, so that its children's ends arrive one by one.
pub struct Supervisor {
    children: Vec<Child>,
    intensity: Intensity,
    recent: VecDeque<Instant>,
    outcome: watch::Sender<Option<GaveUp>>,
    /// Keeps it alive while no child is, whose lifelines hold the other addresses.
    me: Option<Addr<Supervisor>>,
    log: Logger,
}

struct Child {
    name: &'static str,
    start: Box<dyn FnMut(Lifeline) -> Result<(), String>>,
    gone: Box<dyn Fn()>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.children.iter().map(|child| child.name).collect();
        f.debug_struct("Supervisor").field("children", &names).finish_non_exhaustive()
    }
}

/// Lies in a child's context and says so when it is dropped.
struct Lifeline {
    child: usize,
    supervisor: Addr<Supervisor>,
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.supervisor.do_send(ChildEnded(self.child));
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct ChildEnded(usize);

#[derive(Message)]
#[rtype(result = "()")]
struct StartChild(usize);

#[derive(Message)]
#[rtype(result = "()")]
struct Launched;

impl Handler<Launched> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Launched, _: &mut Self::Context) {}
}

impl Supervisor {
    /// A supervisor without children, and the word that it has given up, once it has.
    pub fn new(intensity: Intensity, log: Logger) -> (Self, watch::Receiver<Option<GaveUp>>) {
        let (outcome, given_up) = watch::channel(None);
        (Self { children: vec![], intensity, recent: VecDeque::new(), outcome, me: None, log }, given_up)
    }

    /// Adds a child: `factory` makes an actor, here, for the arbiter that it will live in. Children start in the order
    /// in which they were added, when the supervisor starts.
    pub fn add<A>(
        &mut self,
        handle: &Handle<A>,
        arbiter: ArbiterHandle,
        mut factory: impl FnMut() -> Result<A, String> + 'static,
    ) where
        A: Actor<Context = Context<A>> + Send,
    {
        let gone = handle.clone();
        let handle = handle.clone();
        self.children.push(Child {
            name: handle.slot.name,
            start: Box::new(move |lifeline| {
                let actor = factory()?;
                let addr = A::start_in_arbiter(&arbiter, move |ctx| {
                    ctx.spawn(actix::fut::wrap_future(async move {
                        let _lifeline = lifeline;
                        std::future::pending::<()>().await;
                    }));
                    actor
                });
                handle.set(Some(addr));
                Ok(())
            }),
            gone: Box::new(move || {
                gone.set(None);
                *gone.slot.restarts.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }),
        });
    }

    /// Starts every child, in order, in the current arbiter's supervisor, and returns when their handles are filled.
    pub async fn launch(self) {
        let addr = self.start();
        // Its mailbox is read after `started` has run; an error would mean that this arbiter is ending.
        let _ = addr.send(Launched).await;
    }

    fn start_child(&mut self, at: usize, ctx: &mut Context<Self>) {
        let lifeline = Lifeline { child: at, supervisor: ctx.address() };
        let child = &mut self.children[at];
        // A factory that fails drops the lifeline, which counts as an end like any other.
        if let Err(reason) = (child.start)(lifeline) {
            error!(self.log, "{} cannot be started: {reason}", child.name);
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.me = Some(ctx.address());
        for at in 0..self.children.len() {
            self.start_child(at, ctx);
        }
    }
}

impl Handler<ChildEnded> for Supervisor {
    type Result = ();

    fn handle(&mut self, ChildEnded(at): ChildEnded, ctx: &mut Self::Context) {
        if self.outcome.borrow().is_some() {
            return;
        }
        let now = Instant::now();
        let Intensity { restarts_max, within } = self.intensity;
        (self.children[at].gone)();
        while self.recent.front().is_some_and(|first| now.duration_since(*first) >= within) {
            self.recent.pop_front();
        }
        let name = self.children[at].name;
        let recent = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if recent >= restarts_max {
            let reason = format!(
                "{name} ended unexpectedly after {recent} restarts within {} s; supervision gives up",
                within.as_secs_f64()
            );
            error!(self.log, "{reason}");
            self.outcome.send_replace(Some(GaveUp { child: name, reason }));
            return;
        }
        self.recent.push_back(now);
        warn!(self.log, "{name} ended unexpectedly and is restarted ({} of {restarts_max})", recent + 1);
        let wait = match recent {
            0 => Duration::ZERO,
            n => WAIT.saturating_mul(2u32.saturating_pow(n - 1)).min(WAIT_MAX),
        };
        ctx.notify_later(StartChild(at), wait);
    }
}

impl Handler<StartChild> for Supervisor {
    type Result = ();

    fn handle(&mut self, StartChild(at): StartChild, ctx: &mut Self::Context) {
        self.start_child(at, ctx);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts its generations and ends as it is told.
    struct Worker {
        generation: u32,
    }

    impl Actor for Worker {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Generation;

    #[derive(Message)]
    #[rtype(result = "()")]
    enum End {
        Panic,
        Stop,
    }

    impl Handler<Generation> for Worker {
        type Result = u32;
        fn handle(&mut self, _: Generation, _: &mut Self::Context) -> u32 {
            self.generation
        }
    }

    impl Handler<End> for Worker {
        type Result = ();
        fn handle(&mut self, end: End, ctx: &mut Self::Context) {
            match end {
                End::Panic => panic!("as the test asks"),
                End::Stop => ctx.stop(),
            }
        }
    }

    async fn supervised(
        restarts_max: u32,
        fails_at: Option<u32>,
    ) -> (Handle<Worker>, watch::Receiver<Option<GaveUp>>) {
        let intensity = Intensity { restarts_max, within: Duration::from_secs(60) };
        let (mut supervisor, given_up) = Supervisor::new(intensity, Logger::root(slog::Discard, slog::o!()));
        let handle = Handle::new("Worker");
        let generations = AtomicU32::new(0);
        supervisor.add(&handle, Arbiter::current(), move || {
            let generation = generations.fetch_add(1, Ordering::Relaxed);
            if fails_at == Some(generation) {
                Err("as the test asks".into())
            } else {
                Ok(Worker { generation })
            }
        });
        supervisor.launch().await;
        (handle, given_up)
    }

    /// Asks until a living generation answers; every try is a turn of the arbiter.
    async fn answers(handle: &Handle<Worker>) -> u32 {
        loop {
            match handle.ask(Generation).await {
                Ok(generation) => return generation,
                Err(Unanswered { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// A panic ends one generation; clones of the handle reach the next one, and who was asking hears that it may have
    /// happened.
    #[actix_rt::test]
    async fn a_handle_survives_the_panic_of_its_actor() {
        let (handle, given_up) = supervised(10, None).await;
        let clone = handle.clone();
        assert_eq!(handle.ask(Generation).await, Ok(0));
        assert_eq!(handle.ask(End::Panic).await, Err(Unanswered { actor: "Worker", delivered: true }));
        assert_eq!(answers(&clone).await, 1);
        assert_eq!(handle.report().restarts, 1);
        assert_eq!(*given_up.borrow(), None);
    }

    /// An actor that stops is replaced like one that panics, and so is one whose factory failed.
    #[actix_rt::test]
    async fn whatever_ends_a_child_another_one_comes() {
        let (handle, _given_up) = supervised(10, Some(1)).await;
        handle.hint(End::Stop);
        while handle.ask(Generation).await == Ok(0) {
            tokio::task::yield_now().await;
        }
        assert_eq!(answers(&handle).await, 2);
        assert_eq!(handle.report().restarts, 2);
    }

    /// Beyond the restart intensity nothing is restarted any more, and the reason names the child.
    #[actix_rt::test]
    async fn the_budget_is_not_overdrawn() {
        let (handle, mut given_up) = supervised(2, None).await;
        for generation in 0..3 {
            assert_eq!(answers(&handle).await, generation);
            let _ = handle.ask(End::Panic).await;
        }
        let gave_up = given_up.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(gave_up.child, "Worker");
        assert!(gave_up.reason.contains("after 2 restarts within 60 s"), "{}", gave_up.reason);
        assert_eq!(handle.ask(Generation).await, Err(Unanswered { actor: "Worker", delivered: false }));
    }
}
