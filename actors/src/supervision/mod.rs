//! Actors that come back: children from factories, restarted as Erlang/OTP does, behind handles that follow.
//!
//! ```text
//! Supervisor ── launch ─▶ Shell, on a thread of its own, around the machine in core::restart
//!   Start     ─▶ the child's thread: factory(&Generation) ─▶ actor in its context ─▶ Tenure, which polls it
//!   Stop      ─▶ a future in the child's context ─▶ ctx.stop()
//!   Abandon   ─▶ Generation::is_current is false, the interrupt is called, who waits for an answer gets an error
//!      ▲
//!      └── Started, StartFailed, Ended ◀── Tenure: stopped, panicked (caught, noted, counted), its thread gone
//!      └── a beat that stands still    ◀── Life: the turn does not end
//! Handle      the current address of a child; empty while it is being restarted
//! Supervision what the app holds: events, reports, shutdown
//! ```
//!
//! Parts: this page, the builder and what the app holds; `shell`, the supervisor at work; `child`, what a child is made from and its life as a future; `life`, one
//! generation, its turns and its panics; `context`, the context that knows which message it handles; `handle`.
//!
//! actix's own `Supervisor` restarts only actors that stop by themselves, and with the same struct; one that panics is
//! gone. What a child knew comes back from where it is kept (P6), which is why a fresh one from the factory is enough.
//!
//! # Panics
//! A panic ends one generation: in a handler, a timer, a future of its context, `started`, `stopping`, the factory, or
//! while it is dropped. A panicked actor is not polled again, so neither `stopping` nor `stopped` sees a half-changed
//! state. The supervisor writes one line with actor, message, place and text; the backtrace goes to the debug level. All
//! other panics of the process reach the hook that was there before. Futures that leave the actor ([`actix_rt::spawn`],
//! and what a handler returns as `ResponseFuture`) are not part of it: their panics end them alone.
//!
//! # Stuck
//! A turn, the time between being polled and returning, that lasts longer than [`ChildSpec::stuck_after`] without
//! [`progress`] is taken for stuck. A thread cannot be killed, so this happens, in this order:
//!
//! 1. [`Generation::is_current`] becomes false, for the child and for those that share its thread.
//! 2. What was given to [`Generation::on_abandoned`] is called, so that a blocking call may return.
//! 3. Whoever waits for an answer gets [`Unanswered`]; `delivered` is false only for messages that were not begun, and
//!    those never will be.
//! 4. Successors start on a new thread; for the budget that is one restart.
//! 5. When the old one lets go of its thread, it is dropped without another turn, and its thread ends.
//!
//! So for a while two of them exist. One that writes a file asks `is_current` before each commit, rolls back when the
//! answer is no, and opens the file in the factory: between the question and the end of the commit the answer can change,
//! so the file's own lock has to make the successor wait. Who asked for such a commit hears that it may have happened,
//! which is true.
//!
//! Code that blocks a thread outside of any turn, such as a future that was spawned there with [`actix_rt::spawn`], is
//! not seen.

mod child;
mod context;
mod handle;
mod life;
mod shell;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::{Actor, Addr, System};
use slog::{Drain, Logger};
use tokio::sync::{broadcast, oneshot, watch};

use crate::messages::PanicReport;

pub use self::child::{ChildSpec, Thread};
pub use self::context::{Context, SupervisedContext};
pub use self::handle::{Handle, Unanswered};
pub(crate) use self::life::is_stale;
pub use self::life::{Generation, patiently, progress};
pub use crate::core::restart::{GaveUp, Intensity, Restart, Strategy};

use self::child::OwnThread;
use self::life::lock;
use self::shell::{Parent, Shell, Shutdown};

/// How many events a subscriber may be behind.
const EVENTS_MAX: usize = 256;

/// What the threads of children that have ended may take to end as well.
const THREADS_END_WITHIN: Duration = Duration::from_secs(5);

/// A supervisor that does not run yet: its children, in the order in which they start, and its rules.
///
/// ```
/// use actix::prelude::*;
/// use tidewater_actors::supervision::{self, ChildSpec, Handle, Intensity, Restart, Supervisor};
///
/// struct Counter(u64);
///
/// impl Actor for Counter {
///     type Context = supervision::Context<Self>;
/// }
///
/// #[derive(Message)]
/// #[rtype(result = "u64")]
/// struct Add(u64);
///
/// impl Handler<Add> for Counter {
///     type Result = u64;
///     fn handle(&mut self, Add(n): Add, _: &mut Self::Context) -> u64 {
///         self.0 = self.0.checked_add(n).expect("small numbers");
///         self.0
///     }
/// }
///
/// # #[actix_rt::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let log = slog::Logger::root(slog::Discard, slog::o!());
/// let counter = Handle::new("Counter");
/// let supervision = Supervisor::new(Intensity::default(), log)
///     .child(ChildSpec::new(&counter, |_| Ok(Counter(40))).restart(Restart::Transient))
///     .launch()
///     .await?;
///
/// assert_eq!(counter.ask(Add(2)).await?, 42);
/// assert!(counter.ask(Add(u64::MAX)).await.is_err(), "it panics");
/// while counter.ask(Add(0)).await.is_err() {
///     tokio::task::yield_now().await; // its successor starts
/// }
/// assert_eq!(counter.ask(Add(2)).await?, 42, "from the factory");
/// assert!(counter.report().last_panic.is_some_and(|panic| panic.message.starts_with("small numbers")));
/// assert!(supervision.shutdown().await.is_empty(), "everybody ended in time");
/// # Ok(()) }
/// ```
pub struct Supervisor {
    strategy: Strategy,
    intensity: Intensity,
    children: Vec<ChildSpec>,
    log: Logger,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.children.iter().map(|child| child.record().name).collect();
        f.debug_struct("Supervisor").field("children", &names).finish_non_exhaustive()
    }
}

/// Why a supervisor did not start. Nothing of it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program was compiled so that a panic ends the process.
    #[error(
        "supervision needs panic = \"unwind\": with panic = \"abort\" the first panic of any actor ends the process"
    )]
    PanicsAbort,
    /// There is no actix system on this thread.
    #[error("supervision needs an actix System on the thread that launches it")]
    NoSystem,
    /// The operating system refused a thread.
    #[error("a thread cannot be started: {0}")]
    Thread(String),
    /// A child could not be started. Those before it have been stopped again.
    #[error("{child} cannot be started: {why}")]
    Child {
        /// Which.
        child: &'static str,
        /// Why, in words.
        why: String,
    },
}

/// What happened to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildEvent {
    /// Its name; the name of the child that ended for [`ChildEventKind::GaveUp`].
    pub child: &'static str,
    /// What.
    pub kind: ChildEventKind,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChildEventKind {
    /// It is up.
    Started,
    /// It panicked.
    Panicked(PanicReport),
    /// It held its thread for too long.
    Stuck {
        /// What it was handling, where that is known.
        message_type: Option<&'static str>,
        /// For how long it showed no sign of life.
        silence: Duration,
    },
    /// It ended and is going to be started again.
    Restarting,
    /// It ended and will not be started again.
    Ended,
    /// It did not stop in time.
    NotStopped,
    /// Its supervisor gave up and ends.
    GaveUp(GaveUp),
}

/// A running supervisor, as the app holds it. Cheap to clone; children go on when it is dropped.
#[derive(Debug, Clone)]
pub struct Supervision {
    root: Addr<Shell>,
    given_up: watch::Receiver<Option<GaveUp>>,
    ended: watch::Receiver<Option<Vec<&'static str>>>,
    events: Arc<broadcast::Receiver<ChildEvent>>,
    /// To be waited for.
    threads: Arc<Mutex<Vec<OwnThread>>>,
}

/// A logger that does not panic. slog's usual `fuse()` does when a line cannot be written, on a full disk or into a closed
/// pipe; supervision must not end for that, and neither must an actor.
pub fn calm(log: Logger) -> Logger {
    Logger::root(Calm(log), slog::o!())
}

struct Calm(Logger);

impl Drain for Calm {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, values: &slog::OwnedKVList) -> Result<(), slog::Never> {
        // Whoever cannot write a line cannot be told so either.
        let _ = life::caught(|| Drain::log(&self.0, record, values));
        Ok(())
    }

    fn is_enabled(&self, level: slog::Level) -> bool {
        Drain::is_enabled(&self.0, level)
    }
}

impl Supervisor {
    /// A supervisor without children.
    pub fn new(intensity: Intensity, log: Logger) -> Self {
        Self { strategy: Strategy::default(), intensity, children: vec![], log: calm(log) }
    }

    /// Who is restarted along with a child; nobody unless set.
    #[must_use]
    pub fn strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// Adds a child. Children start in the order in which they were added and stop in reverse.
    #[must_use]
    pub fn child(mut self, child: ChildSpec) -> Self {
        self.children.push(child);
        self
    }

    /// Starts every child, in order, and returns when the last one is up.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn launch(self) -> Result<Supervision, StartError> {
        if cfg!(panic = "abort") {
            return Err(StartError::PanicsAbort);
        }
        if System::try_current().is_none() {
            return Err(StartError::NoSystem);
        }
        life::install_hook();
        let thread = |error: &dyn fmt::Display| StartError::Thread(error.to_string());
        let own = OwnThread::begin().map_err(|error| thread(&error))?;
        let (launched, answer) = oneshot::channel();
        let (outcome, given_up) = watch::channel(None);
        let (end, ended) = watch::channel(None);
        let (events, received) = broadcast::channel(EVENTS_MAX);
        let threads = Arc::new(Mutex::new(vec![]));
        let parent = Parent::App { launched: Some(launched), outcome, end, threads: threads.clone() };
        let root = Shell::start_in_arbiter(&own.handle(), move |_| Shell::new(self, parent, events));
        lock(&threads).push(own);
        let supervision = Supervision { root, given_up, ended, events: Arc::new(received), threads };
        match answer.await {
            Ok(Ok(())) => Ok(supervision),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(thread(&"the supervisor's own ended")),
        }
    }
}

impl Supervision {
    /// Says why the supervisor gave up, once it has.
    pub fn given_up(&self) -> watch::Receiver<Option<GaveUp>> {
        self.given_up.clone()
    }

    /// What happens to children from now on, those of nested supervisors included.
    pub fn subscribe(&self) -> broadcast::Receiver<ChildEvent> {
        self.events.resubscribe()
    }

    /// Resolves when nothing runs any more, with the names of those that did not end in time.
    pub async fn ended(&self) -> Vec<&'static str> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(left) => left.clone().unwrap_or_default(),
            // The System ended, and everything with it.
            Err(_) => vec![],
        }
    }

    /// Stops every child, in reverse order, each within its bound, and returns the names of those that did not end in
    /// time. They hold their threads, and are dropped when they let go of them. What hangs in a blocking pool there
    /// (`spawn_blocking`, a resolver) is left behind.
    pub async fn shutdown(&self) -> Vec<&'static str> {
        self.root.do_send(Shutdown);
        let left = self.ended().await;
        let threads = std::mem::take(&mut *lock(&self.threads));
        let (joined, all) = oneshot::channel();
        let join = move || {
            for thread in threads {
                // A panic in there has been told already.
                let _ = thread.join();
            }
            // Who waited may have gone.
            let _ = joined.send(());
        };
        if std::thread::Builder::new().name("supervision-end".into()).spawn(join).is_ok() {
            let _ = tokio::time::timeout(THREADS_END_WITHIN, all).await;
        }
        left
    }
}

#[cfg(test)]
mod tests;
