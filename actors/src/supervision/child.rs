//! What a child is made from, the thread it lives on, and its life as a future.
//!
//! ```text
//! Founder::begin ─▶ (the child's thread) factory ─▶ actor in its context ─▶ Tenure, polled until it ends
//!                        └ Err, panic ─▶ StartFailed          ├ first poll, with `started`: Started
//!                                                             └ stopped, panicked, abandoned, thread gone: Ended
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::dev::ContextFut;
use actix::prelude::{
    Actor, ActorContext, ActorFutureExt, Addr, Arbiter, ArbiterHandle, AsyncContext, Message,
};

use super::Supervisor;
use super::context::SupervisedContext;
use super::handle::{Handle, Slot};
use super::life::{Generation, Life, Panic, Record, lock};
use super::shell::Shell;
use crate::core::restart::{ChildRules, End, Restart};

/// How a child is made, and what is to be done when it ends, is stuck, or has to stop.
///
/// A child that does long work says so, can be interrupted, and asks before it makes something final:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::time::Duration;
///
/// use actix::prelude::{Actor, Handler, Message};
/// use tidewater_actors::supervision::{ChildSpec, Context, Generation, Handle, Thread, progress};
///
/// struct Archivist {
///     generation: Generation,
///     interrupted: Arc<AtomicBool>,
/// }
///
/// impl Actor for Archivist {
///     type Context = Context<Self>;
/// }
///
/// #[derive(Message)]
/// #[rtype(result = "Result<(), &'static str>")]
/// struct Archive(Vec<String>);
///
/// impl Handler<Archive> for Archivist {
///     type Result = Result<(), &'static str>;
///
///     fn handle(&mut self, Archive(lines): Archive, _: &mut Self::Context) -> Self::Result {
///         for _line in lines {
///             // … something slow; then a sign of life:
///             progress();
///             if self.interrupted.load(Ordering::Relaxed) {
///                 return Err("interrupted");
///             }
///         }
///         match self.generation.is_current() {
///             true => Ok(()), // commit
///             false => Err("there is a successor"), // roll back
///         }
///     }
/// }
///
/// let archivist = Handle::new("Archivist");
/// let spec = ChildSpec::new(&archivist, |generation| {
///     let interrupted = Arc::new(AtomicBool::new(false));
///     let interrupt = interrupted.clone();
///     generation.on_abandoned(move || interrupt.store(true, Ordering::Relaxed));
///     Ok(Archivist { generation: generation.clone(), interrupted })
/// })
/// .thread(&Thread::new()) // it blocks, so it lives alone
/// .stuck_after(Duration::from_secs(60))
/// .stop_within(Some(Duration::from_secs(10)));
/// # drop(spec);
/// ```
pub struct ChildSpec {
    pub(super) kind: Kind,
    pub(super) restart: Restart,
    pub(super) stop_within: Option<Duration>,
    pub(super) stuck_after: Duration,
    pub(super) thread: Option<Thread>,
}

pub(super) enum Kind {
    Actor(Box<dyn Founder>),
    Supervisor { record: Arc<Record>, make: Arc<dyn Fn() -> Supervisor + Send + Sync> },
}

impl ChildSpec {
    /// A child that `factory` makes, on the thread where it will live, each time it starts; `handle` follows it.
    ///
    /// A permanent child that may take 5 s to stop, is stuck after 30 s, and lives on the thread that children without
    /// one of their own share.
    pub fn new<A>(
        handle: &Handle<A>,
        factory: impl Fn(&Generation) -> Result<A, String> + Send + Sync + 'static,
    ) -> Self
    where
        A: Actor,
        A::Context: SupervisedContext<A>,
    {
        let founding = Founding { slot: handle.slot.clone(), factory: Arc::new(factory) };
        Self {
            kind: Kind::Actor(Box::new(founding)),
            restart: Restart::Permanent,
            stop_within: Some(Duration::from_secs(5)),
            stuck_after: Duration::from_secs(30),
            thread: None,
        }
    }

    /// A supervisor with children of its own. When its intensity is exceeded it ends abnormally, and its parent's rules
    /// apply. It may take as long to stop as its children may.
    ///
    /// ```
    /// use tidewater_actors::supervision::{ChildSpec, Intensity, Restart, Supervisor};
    ///
    /// let log = slog::Logger::root(slog::Discard, slog::o!());
    /// let inner = log.clone();
    /// let plugins = ChildSpec::supervisor("Plugins", move || {
    ///     Supervisor::new(Intensity::default(), inner.clone()) // .child(…), made anew each time
    /// })
    /// .restart(Restart::Transient);
    /// let app = Supervisor::new(Intensity::default(), log).child(plugins);
    /// # drop(app);
    /// ```
    pub fn supervisor(name: &'static str, make: impl Fn() -> Supervisor + Send + Sync + 'static) -> Self {
        let record = Arc::new(Record { name, ..Record::default() });
        Self {
            kind: Kind::Supervisor { record, make: Arc::new(make) },
            restart: Restart::Permanent,
            stop_within: None,
            stuck_after: Duration::ZERO,
            thread: None,
        }
    }

    /// When it is started again.
    #[must_use]
    pub fn restart(self, restart: Restart) -> Self {
        Self { restart, ..self }
    }

    /// How long it may take to stop before it is left behind; `None` waits for ever.
    #[must_use]
    pub fn stop_within(self, within: Option<Duration>) -> Self {
        Self { stop_within: within, ..self }
    }

    /// How long it may hold its thread without [`progress`](super::progress) before it is replaced; zero means for ever.
    #[must_use]
    pub fn stuck_after(self, stuck_after: Duration) -> Self {
        Self { stuck_after, ..self }
    }

    /// Where it lives.
    #[must_use]
    pub fn thread(self, thread: &Thread) -> Self {
        Self { thread: Some(thread.clone()), ..self }
    }

    pub(super) fn record(&self) -> &Arc<Record> {
        match &self.kind {
            Kind::Actor(founder) => founder.record(),
            Kind::Supervisor { record, .. } => record,
        }
    }

    pub(super) fn rules(&self) -> ChildRules {
        ChildRules { name: self.record().name, restart: self.restart, stop_within: self.stop_within }
    }
}

/// A thread for the children of one supervisor: those with clones of the same value share it. When a child blocks it,
/// all of them are moved to a new one.
#[derive(Debug, Clone, Default)]
pub struct Thread(Arc<Mutex<Place>>);

#[derive(Debug, Default)]
struct Place {
    own: Option<OwnThread>,
    foreign: Option<ArbiterHandle>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            own.arbiter.stop();
        }
    }
}

/// A thread of a supervisor, whose end never waits for what hangs in its blocking pool, as a resolver does without a
/// network: nobody can interrupt that, and nobody needs its answer any more.
#[derive(Debug)]
pub(super) struct OwnThread {
    arbiter: Arbiter,
    runtime: Unhurried,
}

impl OwnThread {
    pub(super) fn begin() -> io::Result<Self> {
        let runtime = Arc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        let shared = runtime.clone();
        let arbiter = Arbiter::try_with_tokio_rt(move || Ok(shared))?;
        Ok(Self { arbiter, runtime: Unhurried(Some(runtime)) })
    }

    pub(super) fn handle(&self) -> ArbiterHandle {
        self.arbiter.handle()
    }

    /// Returns when the thread has ended; what ran there has been dropped then.
    pub(super) fn join(self) -> std::thread::Result<()> {
        let ended = self.arbiter.join();
        // The last one to hold it: the arbiter's own share would wait.
        drop(self.runtime);
        ended
    }
}

/// A share of a runtime; the last one, when it is this, ends it without waiting.
#[derive(Debug)]
struct Unhurried(Option<Arc<tokio::runtime::Runtime>>);

impl Drop for Unhurried {
    fn drop(&mut self) {
        if let Some(last) = self.0.take().and_then(Arc::into_inner) {
            last.shutdown_background();
        }
    }
}

impl Thread {
    /// A thread that the supervisor starts when it is needed, and ends.
    pub fn new() -> Self {
        Self::default()
    }

    /// An arbiter that the app runs. It is left alone, even if it is blocked: its children get a new thread then.
    pub fn of(arbiter: ArbiterHandle) -> Self {
        Self(Arc::new(Mutex::new(Place { own: None, foreign: Some(arbiter) })))
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn handle(&self) -> io::Result<ArbiterHandle> {
        let mut place = lock(&self.0);
        let known = place.own.as_ref().map(OwnThread::handle).or_else(|| place.foreign.clone());
        if let Some(handle) = known.filter(ArbiterHandle::alive) {
            return Ok(handle);
        }
        let own = OwnThread::begin()?;
        let handle = own.handle();
        *place = Place { own: Some(own), foreign: None };
        Ok(handle)
    }

    /// Gives the thread up: the next one who needs it gets a new one. It ends when whoever runs there lets go of it; it
    /// is returned if it is ours.
    pub(super) fn leave(&self) -> Option<OwnThread> {
        let mut place = lock(&self.0);
        place.foreign = None;
        let own = place.own.take();
        if let Some(own) = &own {
            own.arbiter.stop();
        }
        own
    }
}

/// What a child says to its supervisor.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Report {
    pub(super) child: usize,
    pub(super) generation: u64,
    pub(super) panics: Vec<Panic>,
    pub(super) what: Said,
}

pub(super) enum Said {
    Started,
    /// The actor caught a panic itself and goes on.
    Survived,
    StartFailed(String),
    Ended(End),
}

/// Where a generation sends its reports.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) child: usize,
    pub(super) generation: u64,
    pub(super) supervisor: Addr<Shell>,
}

impl Reporter {
    pub(super) fn say(&self, what: Said, panics: Vec<Panic>) {
        let Self { child, generation, ref supervisor } = *self;
        supervisor.do_send(Report { child, generation, panics, what });
    }
}

/// Starts the generations of one child, of whatever type.
pub(super) trait Founder: Send {
    fn record(&self) -> &Arc<Record>;
    fn host(&self, host: ArbiterHandle);
    /// Returns whether the thread is alive; what comes of it is reported.
    fn begin(&self, life: &Arc<Life>, thread: &ArbiterHandle, reporter: Reporter) -> bool;
    fn vacate(&self, life: &Arc<Life>);
}

struct Founding<A: Actor, F> {
    slot: Arc<Slot<A>>,
    factory: Arc<F>,
}

impl<A, F> Founder for Founding<A, F>
where
    A: Actor,
    A::Context: SupervisedContext<A>,
    F: Fn(&Generation) -> Result<A, String> + Send + Sync + 'static,
{
    fn record(&self) -> &Arc<Record> {
        &self.slot.record
    }

    fn host(&self, host: ArbiterHandle) {
        self.slot.host(host);
    }

    fn begin(&self, life: &Arc<Life>, thread: &ArbiterHandle, reporter: Reporter) -> bool {
        self.slot.expect(life.clone());
        let (slot, factory, life) = (self.slot.clone(), self.factory.clone(), life.clone());
        thread.spawn_fn(move || {
            // The thread may have been blocked for long.
            if !life.is_current() {
                return;
            }
            let (made, panic) = life.turn(|| factory(&Generation(life.clone())));
            let why = match made {
                Ok(Ok(actor)) => {
                    if let Some(panic) = panic {
                        reporter.say(Said::Survived, vec![panic]);
                    }
                    Tenure::begin(actor, life, slot, reporter);
                    return;
                }
                Ok(Err(reason)) => reason,
                Err(()) => told(panic.as_ref()),
            };
            if let Some(panic) = &panic {
                panic.record(&slot.record);
            }
            reporter.say(Said::StartFailed(why), panic.into_iter().collect());
        })
    }

    fn vacate(&self, life: &Arc<Life>) {
        self.slot.vacate(life);
    }
}

/// The words for an end by panic.
fn told(panic: Option<&Panic>) -> String {
    panic.map_or_else(
        || "it panicked".to_owned(),
        |Panic { report, .. }| format!("it panicked at {}: {}", report.location, report.message),
    )
}

/// The life of one generation: polls the actor, and ends for good when it stops, panics or is abandoned.
struct Tenure<A>
where
    A: Actor,
    A::Context: SupervisedContext<A>,
{
    actor: Option<Box<ContextFut<A, A::Context>>>,
    life: Arc<Life>,
    slot: Arc<Slot<A>>,
    reporter: Reporter,
    started: bool,
    abandoned: Pin<Box<dyn Future<Output = ()>>>,
    /// That ended it.
    panics: Vec<Panic>,
}

impl<A> Tenure<A>
where
    A: Actor,
    A::Context: SupervisedContext<A>,
{
    fn begin(actor: A, life: Arc<Life>, slot: Arc<Slot<A>>, reporter: Reporter) {
        let mut ctx = A::Context::fresh();
        ctx.spawn(
            actix::fut::wrap_future::<_, A>(life.stopping()).map(|(), _, ctx: &mut A::Context| ctx.stop()),
        );
        let addr = ctx.address();
        let tenure = Self {
            actor: Some(Box::new(ctx.live(actor))),
            abandoned: Box::pin(life.abandoned()),
            started: false,
            panics: vec![],
            life,
            slot,
            reporter,
        };
        // When it is too late already, the first poll finds that it is abandoned.
        tenure.slot.fill(&tenure.life, addr);
        actix_rt::spawn(tenure);
    }

    fn turn<T>(&mut self, work: impl FnOnce() -> T) -> Result<T, String> {
        let (result, panic) = self.life.turn(work);
        let result = result.map_err(|()| told(panic.as_ref()));
        if let Some(panic) = panic {
            match &result {
                Ok(_) => self.reporter.say(Said::Survived, vec![panic]),
                Err(_) => {
                    panic.record(&self.slot.record);
                    self.panics.push(panic);
                }
            }
        }
        result
    }

    fn say_started(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.reporter.say(Said::Started, vec![]);
        }
    }

    /// Nobody finds it any more; then it is dropped, and whoever waits for an answer hears that none will come.
    /// An actor that is `spent` is not asked what it thinks of stopping: its state may be half-changed.
    fn close(&mut self, end: End, spent: bool) {
        let Some(mut actor) = self.actor.take() else { return };
        self.slot.vacate(&self.life);
        if spent {
            use actix::dev::AsyncContextParts;
            actor.ctx().parts().terminate();
        }
        let life = self.life.clone();
        let dropped = self.turn(move || {
            // First, because it may hold what is being closed: nothing is left that an interrupt could help.
            life.over();
            drop(actor);
        });
        let end = match (end, dropped) {
            (End::Normal, Err(why)) => End::Abnormal(why),
            (end, _) => end,
        };
        self.reporter.say(Said::Ended(end), std::mem::take(&mut self.panics));
    }
}

impl<A> Future for Tenure<A>
where
    A: Actor,
    A::Context: SupervisedContext<A>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        let abandoned = this.abandoned.as_mut().poll(task).is_ready() || !this.life.is_current();
        if abandoned {
            this.close(End::Normal, true);
        }
        let Some(mut actor) = this.actor.take() else { return Poll::Ready(()) };
        let polled = this.turn(|| Pin::new(&mut *actor).poll(task));
        this.actor = Some(actor);
        match polled {
            Ok(Poll::Pending) if this.life.is_current() => {
                this.say_started();
                return Poll::Pending;
            }
            Ok(Poll::Pending) => this.close(End::Normal, true),
            Ok(Poll::Ready(())) => {
                this.say_started();
                this.close(End::Normal, true);
            }
            Err(why) => this.close(End::Abnormal(why), true),
        }
        Poll::Ready(())
    }
}

/// The thread's runtime ends.
impl<A> Drop for Tenure<A>
where
    A: Actor,
    A::Context: SupervisedContext<A>,
{
    fn drop(&mut self) {
        self.close(End::Abnormal("its thread ended".to_owned()), false);
    }
}
