//! One generation of a child: its turns on a thread, what it says about itself, and how its panics are caught.
//!
//! ```text
//! turn ── remembers on this thread who runs ─▶ the actor's code ─┬─ returns
//!   │                                                            └─ panics ─▶ the hook notes text, place, backtrace
//!   └─ catch_unwind ◀────────────────────────────────────────────────────────── unwinding
//! beat ── odd during a turn, even between two; `progress` adds two; the supervisor reads it
//! ```

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::messages::PanicReport;

/// A panic's text can be anything; what is kept of it does not get longer than this many characters.
const TEXT_CHARS_MAX: usize = 1000;

/// What is known about a child across its generations.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) name: &'static str,
    pub(crate) restarts: AtomicU32,
    pub(crate) panics: AtomicU32,
    /// Callers that wait for an answer.
    pub(crate) waiting: AtomicUsize,
    /// It will not come back.
    pub(crate) over: AtomicBool,
    pub(crate) last_panic: Mutex<Option<PanicReport>>,
}

/// A generation, as the actor that is one sees it: whether it is still the one that counts.
///
/// A child that is stuck gets a successor while it may still hold its thread. Before it does something that must not
/// be done by two, such as the commit of a transaction, it asks [`is_current`](Self::is_current).
#[derive(Debug, Clone)]
pub struct Generation(pub(crate) Arc<Life>);

impl Generation {
    /// Its number: unique among the children of a supervisor, and growing.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Whether this generation is the living one. Once false, false for ever.
    pub fn is_current(&self) -> bool {
        self.0.is_current()
    }

    /// Registers what the supervisor calls, from its own thread, when it gives this generation up: something that makes
    /// the blocked call return, such as SQLite's interrupt. It must not block. A second one replaces the first.
    pub fn on_abandoned(&self, interrupt: impl Fn() + Send + Sync + 'static) {
        *lock(&self.0.interrupt) = Some(Interrupt(Box::new(interrupt)));
    }
}

struct Interrupt(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupt")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Run,
    Stop,
    Abandon,
}

/// A generation, as the runtime sees it.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) record: Arc<Record>,
    pub(crate) number: u64,
    current: AtomicBool,
    beat: AtomicU64,
    message: Mutex<Option<&'static str>>,
    signal: watch::Sender<Signal>,
    interrupt: Mutex<Option<Interrupt>>,
}

/// A panic that was caught.
#[derive(Debug)]
pub(crate) struct Panic {
    pub(crate) report: PanicReport,
    /// Not resolved yet: that costs milliseconds, and is worth it only if somebody reads it.
    pub(crate) backtrace: Option<Backtrace>,
}

/// Who runs on this thread now.
struct Turn {
    life: Arc<Life>,
    panic: Option<Panic>,
}

thread_local! {
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// The beat of a generation whose start has not begun: odd, because a start that never begins is stuck as well.
pub(crate) const NOT_BEGUN: u64 = 1;

impl Life {
    pub(crate) fn new(record: Arc<Record>, number: u64) -> Arc<Self> {
        Arc::new(Self {
            record,
            number,
            current: AtomicBool::new(true),
            beat: AtomicU64::new(NOT_BEGUN),
            message: Mutex::default(),
            signal: watch::Sender::new(Signal::Run),
            interrupt: Mutex::default(),
        })
    }

    pub(crate) fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    pub(crate) fn beat(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// What it is handling.
    pub(crate) fn message(&self) -> Option<&'static str> {
        *lock(&self.message)
    }

    /// Asks it to stop.
    pub(crate) fn stop(&self) {
        self.signal
            .send_if_modified(|signal| std::mem::replace(signal, Signal::Stop.max(*signal)) < Signal::Stop);
    }

    /// It does not count any more: whatever it holds is to be let go of.
    pub(crate) fn abandon(&self) {
        self.current.store(false, Ordering::Release);
        let interrupt = lock(&self.interrupt).take();
        if let Some(Interrupt(interrupt)) = interrupt {
            // Somebody else's code, on the supervisor's thread.
            let _ = catch_unwind(AssertUnwindSafe(interrupt));
        }
        self.signal.send_replace(Signal::Abandon);
    }

    /// Nothing is left that could be interrupted. What was registered may hold the generation itself.
    pub(crate) fn over(&self) {
        let interrupt = lock(&self.interrupt).take();
        drop(interrupt);
    }

    /// Resolves when it was asked to stop.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Signal::Stop)
    }

    /// Resolves when it was abandoned.
    pub(crate) fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Signal::Abandon)
    }

    fn reached(&self, wanted: Signal) -> impl Future<Output = ()> + Send + use<> {
        let mut signal = self.signal.subscribe();
        async move {
            if signal.wait_for(|signal| *signal >= wanted).await.is_err() {
                // The generation is gone, and with it whoever could have said so.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs a piece of the child's own code on this thread.
    pub(crate) fn turn<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> (Result<T, ()>, Option<Panic>) {
        // The next odd number.
        self.beat.store((self.beat() + 1) | 1, Ordering::Relaxed);
        let before = TURN.try_with(|turn| turn.replace(Some(Turn { life: self.clone(), panic: None })));
        let result = catch_unwind(AssertUnwindSafe(work));
        let noted = TURN
            .try_with(|turn| turn.replace(before.unwrap_or_default()))
            .ok()
            .flatten()
            .and_then(|turn| turn.panic);
        *lock(&self.message) = None;
        self.beat.store((self.beat() | 1) + 1, Ordering::Relaxed);
        match result {
            Ok(value) => (Ok(value), noted),
            // Nothing is noted when somebody replaced the hook without calling ours.
            Err(payload) => {
                let panic = noted.unwrap_or_else(|| Panic::new(text_of(&*payload), None, None, None));
                // What a panic was made of may panic when it is dropped.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                (Err(()), Some(panic))
            }
        }
    }
}

/// A sign of life from the middle of a long turn. Cheap enough for an inner loop; without a child on this thread it does
/// nothing.
///
/// A turn that lasts longer than its child's [`stuck_after`](super::ChildSpec::stuck_after) without one is taken for
/// stuck.
pub fn progress() {
    let _ = TURN.try_with(|turn| {
        if let Ok(turn) = turn.try_borrow()
            && let Some(Turn { life, .. }) = &*turn
        {
            // No other thread writes it.
            life.beat.store(life.beat() + 2, Ordering::Relaxed);
        }
    });
}

/// Runs what can neither show progress nor be interrupted, such as the fsync of a commit: however long it takes, the child
/// is not taken for stuck meanwhile. Without a child on this thread it only runs it.
pub fn patiently<T>(work: impl FnOnce() -> T) -> T {
    // Even, as between two turns; odd again afterwards. A panic in between ends the turn, which is even as well.
    with_life(|life| life.beat.store((life.beat() | 1) + 1, Ordering::Relaxed));
    let done = work();
    with_life(|life| life.beat.store(life.beat() | 1, Ordering::Relaxed));
    done
}

/// Runs something whose panic is nobody's business, and leaves no note of it.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let note = |panic: Option<Panic>| {
        let swap = |turn: &RefCell<Option<Turn>>| {
            Some(std::mem::replace(&mut turn.try_borrow_mut().ok()?.as_mut()?.panic, panic))
        };
        TURN.try_with(swap).ok().flatten().flatten()
    };
    let before = note(None);
    let done = catch_unwind(AssertUnwindSafe(work));
    note(before);
    done.ok()
}

/// Whether the child on this thread has a successor.
pub(crate) fn is_stale() -> bool {
    with_life(|life| !life.is_current()).unwrap_or(false)
}

/// Says what the child on this thread handles, until the guard is dropped.
pub(crate) fn handling(message: &'static str) -> Handling {
    Handling(with_life(|life| lock(&life.message).replace(message)).flatten())
}

pub(crate) struct Handling(Option<&'static str>);

impl Drop for Handling {
    fn drop(&mut self) {
        with_life(|life| *lock(&life.message) = self.0);
    }
}

fn with_life<T>(work: impl FnOnce(&Life) -> T) -> Option<T> {
    let work = |turn: &RefCell<Option<Turn>>| Some(work(&turn.try_borrow().ok()?.as_ref()?.life));
    TURN.try_with(work).ok().flatten()
}

impl Panic {
    fn new(
        text: String,
        location: Option<String>,
        message_type: Option<&'static str>,
        backtrace: Option<Backtrace>,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let report = PanicReport {
            message: text,
            location: location.unwrap_or_else(|| "an unknown place".to_owned()),
            message_type: message_type.map(str::to_owned),
            at: now.as_secs(),
        };
        Self { report, backtrace }
    }

    /// Counts it and keeps it for `status`.
    pub(crate) fn record(&self, record: &Record) {
        record.panics.fetch_add(1, Ordering::Relaxed);
        *lock(&record.last_panic) = Some(self.report.clone());
    }
}

/// Installs, once per process, the hook that notes the panics of actors and hands every other one on.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !note(info) {
                previous(info);
            }
        }));
    });
}

/// Runs where the panic is, before unwinding. Returns whether it was an actor's.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let note = |turn: &RefCell<Option<Turn>>| {
        let Ok(mut turn) = turn.try_borrow_mut() else { return false };
        let Some(turn) = &mut *turn else { return false };
        if let Some(Panic { report, .. }) = &turn.panic {
            // A second one while the first unwinds ends the process before anybody could be told of either.
            let _ = writeln!(std::io::stderr(), "panicked at {}: {}", report.location, report.message);
            return false;
        }
        let location = info.location().map(ToString::to_string);
        let text = text_of(info.payload());
        turn.panic = Some(Panic::new(text, location, turn.life.message(), Some(Backtrace::force_capture())));
        true
    };
    TURN.try_with(note).unwrap_or(false)
}

/// The text of a panic on one line.
fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "a panic without a text",
    };
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ").chars().take(TEXT_CHARS_MAX).collect()
}

/// A lock whose holder panicked is as good as any: what it guards is replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
