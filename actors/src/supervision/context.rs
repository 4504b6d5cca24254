//! The context of a supervised actor: actix's own, plus the name of the message at hand.
//!
//! ```text
//! ask ─▶ pack: a labelled envelope with the asker's slip ─▶ mailbox ─▶ slip begun ─▶ label set ─▶ Handler::handle
//! ```

use std::any::type_name;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use actix::dev::{
    AsyncContextParts, ContextFut, ContextParts, Envelope, EnvelopeProxy, Mailbox, MessageResponse,
    OneshotSender, ToEnvelope,
};
use actix::prelude::{
    Actor, ActorContext, ActorFuture, ActorFutureExt, ActorState, Addr, AsyncContext, Handler, Message,
    SpawnHandle,
};

use super::life::{handling, is_stale};

/// An actor's context with which a panic, or a turn that does not end, is told with the type of the message.
///
/// It is used as [`actix::Context`] is, which works for supervised actors as well, only without the message's type.
///
/// ```
/// use actix::prelude::{Actor, Handler, Message};
/// use tidewater_actors::supervision::Context;
///
/// struct Counter(u64);
///
/// impl Actor for Counter {
///     type Context = Context<Self>;
/// }
///
/// #[derive(Message)]
/// #[rtype(result = "u64")]
/// struct Count;
///
/// impl Handler<Count> for Counter {
///     type Result = u64;
///     fn handle(&mut self, _: Count, _: &mut Self::Context) -> u64 {
///         self.0 += 1;
///         self.0
///     }
/// }
/// ```
pub struct Context<A: Actor<Context = Self>> {
    parts: ContextParts<A>,
    /// Until the actor starts.
    mailbox: Option<Mailbox<A>>,
}

/// The contexts that a supervised actor may have: [`Context`] and [`actix::Context`].
pub trait SupervisedContext<A: Actor<Context = Self>>: AsyncContextParts<A> + Unpin + sealed::Sealed {
    /// A context with an empty mailbox.
    #[doc(hidden)]
    fn fresh() -> Self;

    /// The future that is the actor's life.
    #[doc(hidden)]
    fn live(self, actor: A) -> ContextFut<A, Self>;
}

mod sealed {
    pub trait Sealed {}
}

impl<A: Actor<Context = Self>> sealed::Sealed for Context<A> {}
impl<A: Actor<Context = Self>> sealed::Sealed for actix::Context<A> {}

impl<A: Actor<Context = Self>> SupervisedContext<A> for Context<A> {
    fn fresh() -> Self {
        Self::new()
    }

    fn live(self, actor: A) -> ContextFut<A, Self> {
        self.into_future(actor)
    }
}

impl<A: Actor<Context = Self>> SupervisedContext<A> for actix::Context<A> {
    fn fresh() -> Self {
        Self::new()
    }

    fn live(self, actor: A) -> ContextFut<A, Self> {
        self.into_future(actor)
    }
}

impl<A: Actor<Context = Self>> Context<A> {
    /// A context whose actor has not started.
    pub fn new() -> Self {
        let mailbox = Mailbox::default();
        Self { parts: ContextParts::new(mailbox.sender_producer()), mailbox: Some(mailbox) }
    }

    /// Starts an actor here, unsupervised.
    pub fn run(self, actor: A) -> Addr<A> {
        let life = self.into_future(actor);
        let addr = life.address();
        actix_rt::spawn(life);
        addr
    }

    /// The actor's life, to be polled by whoever wants to.
    pub fn into_future(mut self, actor: A) -> ContextFut<A, Self> {
        let mailbox = self.mailbox.take().unwrap_or_default();
        ContextFut::new(self, actor, mailbox)
    }

    /// The handle of the future that runs now.
    pub fn handle(&self) -> SpawnHandle {
        self.parts.curr_handle()
    }

    /// How many messages wait before senders do; 16 unless set.
    pub fn set_mailbox_capacity(&mut self, capacity: usize) {
        self.parts.set_mailbox_capacity(capacity);
    }

    /// Whether anybody has an address.
    pub fn connected(&self) -> bool {
        self.parts.connected()
    }
}

impl<A: Actor<Context = Self>> Default for Context<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Actor<Context = Self>> fmt::Debug for Context<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl<A: Actor<Context = Self>> AsyncContextParts<A> for Context<A> {
    fn parts(&mut self) -> &mut ContextParts<A> {
        &mut self.parts
    }
}

impl<A: Actor<Context = Self>> ActorContext for Context<A> {
    fn stop(&mut self) {
        self.parts.stop();
    }

    fn terminate(&mut self) {
        self.parts.terminate();
    }

    fn state(&self) -> ActorState {
        self.parts.state()
    }
}

impl<A: Actor<Context = Self>> AsyncContext<A> for Context<A> {
    fn address(&self) -> Addr<A> {
        self.parts.address()
    }

    fn spawn<F: ActorFuture<A, Output = ()> + 'static>(&mut self, future: F) -> SpawnHandle {
        self.parts.spawn(future)
    }

    fn wait<F: ActorFuture<A, Output = ()> + 'static>(&mut self, future: F) {
        self.parts.wait(future);
    }

    fn waiting(&self) -> bool {
        self.parts.waiting()
    }

    fn cancel_future(&mut self, handle: SpawnHandle) -> bool {
        self.parts.cancel_future(handle)
    }

    fn notify<M>(&mut self, message: M)
    where
        A: Handler<M>,
        M: Message + 'static,
    {
        self.spawn(handled(actix::fut::ready(()), message));
    }

    fn notify_later<M>(&mut self, message: M, after: Duration) -> SpawnHandle
    where
        A: Handler<M>,
        M: Message + 'static,
    {
        self.spawn(handled(actix::fut::wrap_future(actix_rt::time::sleep(after)), message))
    }

    fn run_later<F>(&mut self, after: Duration, work: F) -> SpawnHandle
    where
        F: FnOnce(&mut A, &mut A::Context) + 'static,
    {
        let elapsed = actix::fut::wrap_future::<_, A>(actix_rt::time::sleep(after));
        self.spawn(elapsed.map(move |(), actor, ctx| {
            let _label = handling("a timer");
            work(actor, ctx);
        }))
    }
}

/// What an actor tells itself carries its label as well.
fn handled<A, M>(
    when: impl ActorFuture<A, Output = ()> + 'static,
    message: M,
) -> impl ActorFuture<A, Output = ()> + 'static
where
    A: Actor + Handler<M>,
    A::Context: AsyncContext<A>,
    M: Message + 'static,
{
    when.map(move |(), actor: &mut A, ctx: &mut A::Context| {
        let _label = handling(type_name::<M>());
        actor.handle(message, ctx).handle(ctx, None);
    })
}

impl<A, M> ToEnvelope<A, M> for Context<A>
where
    A: Actor<Context = Self> + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn pack(message: M, answer: Option<OneshotSender<M::Result>>) -> Envelope<A> {
        Envelope::with_proxy(Box::new(Labelled { content: Some((message, answer)), slip: SLIP.take() }))
    }
}

struct Labelled<M: Message> {
    content: Option<(M, Option<OneshotSender<M::Result>>)>,
    slip: Option<Arc<Slip>>,
}

impl<A, M> EnvelopeProxy<A> for Labelled<M>
where
    A: Actor + Handler<M>,
    A::Context: AsyncContext<A>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn handle(&mut self, actor: &mut A, ctx: &mut A::Context) {
        let Some((message, answer)) = self.content.take() else { return };
        // Whoever asked has gone, or the actor's successor is to be asked, or the asker has been told that nothing happened.
        let withdrawn = answer.as_ref().is_some_and(OneshotSender::is_closed)
            || is_stale()
            || self.slip.as_ref().is_some_and(|slip| !slip.begin());
        if withdrawn {
            return;
        }
        let _label = handling(type_name::<M>());
        Handler::handle(actor, message, ctx).handle(ctx, answer);
    }
}

/// Goes along with a message and says whether the actor has begun with it. Either the actor begins or the asker
/// withdraws: never both.
#[derive(Debug, Default)]
pub(super) struct Slip(AtomicU8);

const WAITS: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

thread_local! {
    /// From `ask` to `pack`, which actix calls in between, on the same thread.
    static SLIP: Cell<Option<Arc<Slip>>> = const { Cell::new(None) };
}

impl Slip {
    /// Sends a message along with a slip; `None` when its envelope is not one of ours.
    pub(super) fn with<T>(send: impl FnOnce() -> T) -> (T, Option<Arc<Self>>) {
        let slip = Arc::new(Self::default());
        SLIP.set(Some(slip.clone()));
        let sent = send();
        (sent, SLIP.take().is_none().then_some(slip))
    }

    fn begin(&self) -> bool {
        self.0.compare_exchange(WAITS, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Returns whether the actor had not begun, and now never will.
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITS, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
