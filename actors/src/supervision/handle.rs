//! What the rest of the program holds of a child: an address that follows restarts.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use actix::dev::{MessageResponse, OneshotSender, Request, ToEnvelope};
use actix::prelude::{Actor, Addr, ArbiterHandle, Handler, Message, Recipient};
use tokio::sync::oneshot;

use super::context::Slip;
use super::life::{Life, Record, lock};
use crate::messages::ActorReport;

/// The address of a child, whichever generation of it is alive. Clones stay valid across restarts.
pub struct Handle<A: Actor> {
    pub(super) slot: Arc<Slot<A>>,
}

pub(super) struct Slot<A: Actor> {
    pub(super) record: Arc<Record>,
    seat: RwLock<Seat<A>>,
    /// Where recipients that follow restarts live, once the child is supervised.
    host: Mutex<Option<ArbiterHandle>>,
    /// One `Recipient<M>` per type, so that whoever compares recipients finds them equal.
    recipients: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
}

struct Seat<A: Actor> {
    /// The generation that may sit down.
    life: Option<Arc<Life>>,
    addr: Option<Addr<A>>,
}

impl<A: Actor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<A: Actor> fmt::Debug for Handle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.slot.record.name)
    }
}

/// A message was not answered: its actor has ended, or is being restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{actor} did not answer: it is being restarted{}", if *delivered { "; what was asked for may have happened" } else { "" })]
pub struct Unanswered {
    /// The actor.
    pub actor: &'static str,
    /// Whether the message may have taken effect. `false` is certain: the actor had not begun with it and never will.
    /// An actor with [`actix::Context`] cannot tell what it had begun with, and says `true` for whatever reached it.
    pub delivered: bool,
}

impl<A: Actor> Handle<A> {
    /// A handle for a child that does not run yet.
    pub fn new(name: &'static str) -> Self {
        let record = Arc::new(Record { name, ..Record::default() });
        let seat = RwLock::new(Seat { life: None, addr: None });
        let (host, recipients) = (Mutex::default(), Mutex::default());
        Self { slot: Arc::new(Slot { record, seat, host, recipients }) }
    }

    /// The address of the living generation.
    pub fn addr(&self) -> Option<Addr<A>> {
        self.slot.tenant().map(|(addr, _)| addr)
    }

    /// Sends a message and waits for its answer. Dropping the future withdraws a message that is not being handled yet.
    ///
    /// # Errors
    /// [`Unanswered`] when the actor ends, or is given up as stuck, before it answered.
    pub async fn ask<M>(&self, message: M) -> Result<M::Result, Unanswered>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        self.send(message).answer().await
    }

    /// Sends a message that carries the sender of its own answer, and waits for that: for an actor that answers several
    /// messages at once, later than at the end of a handler. Unlike with a future that the handler returns, nothing has to
    /// run in between in the actor's runtime. Dropping the future withdraws a message that is not being handled yet.
    ///
    /// # Errors
    /// [`Unanswered`] when the sender is dropped without an answer, as happens when the actor ends, or when the actor is
    /// given up as stuck.
    pub async fn ask_with<M, T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> M) -> Result<T, Unanswered>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let waiting = Waiting::new(self.slot.record.clone());
        let actor = waiting.0.name;
        let (answer, answered) = oneshot::channel();
        let message = message(answer);
        let Some((((), slip), life)) = self.slot.visit(|addr| Slip::with(|| addr.do_send(message))) else {
            return Err(Unanswered { actor, delivered: false });
        };
        let slip = Withdrawing(slip);
        tokio::select! {
            biased;
            answer = answered => if let Ok(answer) = answer { return Ok(answer) },
            () = life.abandoned() => {}
        }
        Err(Unanswered { actor, delivered: !slip.withdraw() })
    }

    fn send<M>(&self, message: M) -> Asking<A, M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let _waiting = Waiting::new(self.slot.record.clone());
        let sent = self.slot.tenant().filter(|(addr, _)| addr.connected()).map(|(addr, life)| {
            let (request, slip) = Slip::with(|| addr.send(message));
            Sent { request, slip, life }
        });
        Asking { sent, _waiting }
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

    /// A recipient of one kind of message that follows restarts as the handle does; `None` before the child is
    /// supervised. What arrives while nobody is there is lost, and a question fails with
    /// [`MailboxError::Closed`](actix::MailboxError::Closed). Every call with the same type of message returns an equal
    /// recipient.
    ///
    /// The living generation alone is `handle.addr().map(Addr::recipient)`.
    pub fn recipient<M>(&self) -> Option<Recipient<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let host = lock(&self.slot.host).clone()?;
        let mut recipients = lock(&self.slot.recipients);
        let known = recipients
            .entry(TypeId::of::<M>())
            .or_insert_with(|| {
                let handle = self.clone();
                let forward = Forward::start_in_arbiter(&host, move |_| Forward(handle));
                Box::new(forward.recipient::<M>())
            })
            .downcast_ref::<Recipient<M>>();
        known.cloned()
    }

    /// For `status`.
    pub fn report(&self) -> ActorReport {
        let running = self.addr().is_some_and(|addr| addr.connected());
        self.slot.record.report(running)
    }
}

impl Record {
    fn report(&self, running: bool) -> ActorReport {
        let state = match running {
            true => "running",
            false if self.over.load(Ordering::Relaxed) => "ended",
            false => "restarting",
        };
        ActorReport {
            name: self.name.to_owned(),
            state: state.to_owned(),
            restarts: self.restarts.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            mailbox: u64::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u64::MAX),
            last_panic: lock(&self.last_panic).clone(),
        }
    }
}

/// A question under way.
struct Asking<A, M>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    sent: Option<Sent<A, M>>,
    _waiting: Waiting,
}

struct Sent<A, M>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    request: Request<A, M>,
    slip: Option<Arc<Slip>>,
    life: Arc<Life>,
}

impl<A, M> Asking<A, M>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    async fn answer(self) -> Result<M::Result, Unanswered> {
        let actor = self._waiting.0.name;
        let Some(Sent { request, slip, life }) = self.sent else {
            return Err(Unanswered { actor, delivered: false });
        };
        tokio::select! {
            biased;
            answer = request => if let Ok(answer) = answer { return Ok(answer) },
            // It may hold its thread, and the question, for ever.
            () = life.abandoned() => {}
        }
        Err(Unanswered { actor, delivered: !slip.is_some_and(|slip| slip.withdraw()) })
    }
}

/// The slip of a question that nobody waits for any more once this is dropped. actix does not see that by itself where
/// the answer does not go through it.
struct Withdrawing(Option<Arc<Slip>>);

impl Withdrawing {
    fn withdraw(&self) -> bool {
        self.0.as_ref().is_some_and(|slip| slip.withdraw())
    }
}

impl Drop for Withdrawing {
    fn drop(&mut self) {
        // Whatever comes of it.
        let _ = self.withdraw();
    }
}

struct Waiting(Arc<Record>);

impl Waiting {
    fn new(record: Arc<Record>) -> Self {
        record.waiting.fetch_add(1, Ordering::Relaxed);
        Self(record)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<A: Actor> Slot<A> {
    fn tenant(&self) -> Option<(Addr<A>, Arc<Life>)> {
        let seat = self.seat.read().unwrap_or_else(PoisonError::into_inner);
        seat.addr.clone().zip(seat.life.clone())
    }

    /// Does something with the address that is over in a moment, which is cheaper than having one of one's own.
    fn visit<T>(&self, work: impl FnOnce(&Addr<A>) -> T) -> Option<(T, Arc<Life>)> {
        let seat = self.seat.read().unwrap_or_else(PoisonError::into_inner);
        let addr = seat.addr.as_ref().filter(|addr| addr.connected())?;
        let life = seat.life.clone()?;
        Some((work(addr), life))
    }

    /// From now on only this generation may sit down.
    pub(super) fn expect(&self, life: Arc<Life>) {
        self.change(|seat| *seat = Seat { life: Some(life), addr: None });
    }

    /// Sits down, unless it is too late.
    pub(super) fn fill(&self, life: &Arc<Life>, addr: Addr<A>) -> bool {
        self.change(|seat| {
            let in_time = seat.is_of(life) && life.is_current();
            if in_time {
                seat.addr = Some(addr);
            }
            in_time
        })
    }

    pub(super) fn vacate(&self, life: &Arc<Life>) {
        self.change(|seat| {
            if seat.is_of(life) {
                seat.addr = None;
            }
        });
    }

    pub(super) fn host(&self, host: ArbiterHandle) {
        let before = lock(&self.host).replace(host);
        if before.is_some_and(|host| !host.alive()) {
            lock(&self.recipients).clear();
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seat<A>) -> T) -> T {
        change(&mut self.seat.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<A: Actor> Seat<A> {
    fn is_of(&self, life: &Arc<Life>) -> bool {
        self.life.as_ref().is_some_and(|expected| Arc::ptr_eq(expected, life))
    }
}

/// Passes messages on to whichever generation is alive.
struct Forward<A: Actor>(Handle<A>);

impl<A: Actor> Actor for Forward<A> {
    type Context = actix::Context<Self>;
}

impl<A, M> Handler<M> for Forward<A>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    type Result = Forwarded<A, M>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> Self::Result {
        Forwarded(self.0.clone(), message)
    }
}

struct Forwarded<A: Actor, M>(Handle<A>, M);

impl<A, M> MessageResponse<Forward<A>, M> for Forwarded<A, M>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn handle(self, _: &mut actix::Context<Forward<A>>, answer: Option<OneshotSender<M::Result>>) {
        let Self(handle, message) = self;
        let Some(answer) = answer else { return handle.hint(message) };
        // Sent here and now, so that messages stay in order; only the answer is waited for.
        let asking = handle.send(message);
        actix_rt::spawn(async move {
            if let Ok(answered) = asking.answer().await {
                // Who asked may have gone.
                let _ = answer.send(answered);
            }
        });
    }
}
