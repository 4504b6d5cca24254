//! Real actors, real threads, real panics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, OnceLock, Weak};

use actix::MailboxError;
use actix::prelude::{ActorContext, Arbiter, AsyncContext, Handler, Message, Running};

use super::life::Life;
use super::*;

/// Does what messages say, in its own context or in actix's.
struct Worker<C = Own> {
    generation: Generation,
    panics_when: PanicsWhen,
    calls: u64,
    context: std::marker::PhantomData<C>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum PanicsWhen {
    #[default]
    Never,
    Started,
    Stopping,
    Dropped,
}

struct Own;
struct Actix;

macro_rules! worker {
    ($kind:ident, $context:ident) => {
        impl Actor for Worker<$kind> {
            type Context = $context<Self>;

            fn started(&mut self, _: &mut Self::Context) {
                assert_ne!(self.panics_when, PanicsWhen::Started, "as the test asks: started");
            }

            fn stopping(&mut self, _: &mut Self::Context) -> Running {
                assert_ne!(self.panics_when, PanicsWhen::Stopping, "as the test asks: stopping");
                Running::Stop
            }
        }

        impl Handler<Act> for Worker<$kind> {
            type Result = ();

            fn handle(&mut self, act: Act, ctx: &mut Self::Context) {
                match act {
                    Act::Panic => panic!("as the test asks:\n  two lines"),
                    Act::Stop => ctx.stop(),
                    Act::Terminate => ctx.terminate(),
                    Act::PanicInTimer => {
                        ctx.run_later(Duration::ZERO, |_, _| panic!("as the test asks: timer"));
                    }
                    Act::PanicInFuture => {
                        ctx.spawn(actix::fut::wrap_future(async { panic!("as the test asks: future") }));
                    }
                    Act::PanicInNotice => ctx.notify(Act::Panic),
                    Act::PanicTwice => {
                        self.panics_when = PanicsWhen::Dropped;
                        panic!("as the test asks: first");
                    }
                    Act::CatchPanic => {
                        let caught = std::panic::catch_unwind(|| panic!("as the test asks: caught"));
                        assert!(caught.is_err());
                    }
                    Act::Block(gate) => gate.pass(),
                    Act::PanicLater(when) => {
                        self.panics_when = when;
                        ctx.stop();
                    }
                }
            }
        }

        impl Handler<Ask> for Worker<$kind> {
            type Result = u64;

            fn handle(&mut self, _: Ask, _: &mut Self::Context) -> u64 {
                self.calls += 1;
                self.generation.number()
            }
        }
    };
}

type ActixContext<A> = actix::Context<A>;
worker!(Own, Context);
worker!(Actix, ActixContext);

impl<C> Drop for Worker<C> {
    fn drop(&mut self) {
        if self.panics_when == PanicsWhen::Dropped && !std::thread::panicking() {
            panic!("as the test asks: dropped");
        }
    }
}

impl<C> Worker<C> {
    fn new(generation: &Generation) -> Self {
        let generation = generation.clone();
        Self { generation, panics_when: PanicsWhen::Never, calls: 0, context: std::marker::PhantomData }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
enum Act {
    Panic,
    Stop,
    Terminate,
    PanicInTimer,
    PanicInFuture,
    PanicInNotice,
    PanicTwice,
    CatchPanic,
    Block(Arc<Gate>),
    PanicLater(PanicsWhen),
}

/// The number of the generation that answers.
#[derive(Message)]
#[rtype(result = "u64")]
struct Ask;

/// Carries the sender of its own answer, which comes after the handler has ended.
#[derive(Message)]
#[rtype(result = "()")]
struct Later {
    answer: oneshot::Sender<u64>,
    panics: bool,
}

impl Later {
    fn new(answer: oneshot::Sender<u64>) -> Self {
        Self { answer, panics: false }
    }
}

impl Handler<Later> for Worker {
    type Result = ();

    fn handle(&mut self, Later { answer, panics }: Later, ctx: &mut Self::Context) {
        assert!(!panics, "as the test asks: with an answer in hand");
        self.calls += 1;
        let calls = self.calls;
        ctx.run_later(Duration::ZERO, move |_, _| assert!(answer.send(calls).is_ok(), "the test waits"));
    }
}

/// A place where a thread blocks until the test opens it.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    reached: AtomicBool,
    passed: AtomicBool,
}

impl Gate {
    fn pass(&self) {
        self.reached.store(true, Ordering::SeqCst);
        drop(self.changed.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        self.passed.store(true, Ordering::SeqCst);
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

fn silent() -> Logger {
    Logger::root(slog::Discard, slog::o!())
}

const GENEROUS: Intensity = Intensity { restarts_max: 1000, within: Duration::from_millis(1) };

fn worker(handle: &Handle<Worker>) -> ChildSpec {
    ChildSpec::new(handle, |generation| Ok(Worker::new(generation)))
}

async fn supervised(spec: ChildSpec) -> Supervision {
    Supervisor::new(GENEROUS, silent()).child(spec).launch().await.unwrap()
}

/// Asks until a living generation answers.
async fn answer(handle: &Handle<Worker>) -> u64 {
    loop {
        match handle.ask(Ask).await {
            Ok(generation) => return generation,
            Err(Unanswered { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Waits for an event that the closure likes.
async fn event(
    events: &mut broadcast::Receiver<ChildEvent>,
    mut wanted: impl FnMut(&ChildEventKind) -> bool,
) -> ChildEvent {
    loop {
        let event = events.recv().await.expect("the supervisor runs");
        if wanted(&event.kind) {
            return event;
        }
    }
}

/// Collects what it is told, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().unwrap()).join(" ")
    }
}

/// Writes down when it comes and goes.
struct Scribe(&'static str, Diary);

impl Actor for Scribe {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.1.write(format!("+{}", self.0));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.1.write(format!("-{}", self.0));
    }
}

impl Handler<Act> for Scribe {
    type Result = ();

    fn handle(&mut self, act: Act, ctx: &mut Self::Context) {
        match act {
            Act::Stop => ctx.stop(),
            Act::Block(gate) => gate.pass(),
            _ => panic!("as the test asks"),
        }
    }
}

fn scribe(name: &'static str, diary: &Diary) -> (Handle<Scribe>, ChildSpec) {
    let (handle, diary) = (Handle::new(name), diary.clone());
    let spec = ChildSpec::new(&handle, move |_| Ok(Scribe(name, diary.clone())));
    (handle, spec)
}

/// A panic ends one generation; clones of the handle reach the next one, and who was asking hears that it may have
/// happened.
#[actix_rt::test]
async fn a_handle_survives_the_panic_of_its_actor() {
    let handle = Handle::new("Worker");
    let supervision = supervised(worker(&handle)).await;
    let clone = handle.clone();
    let first = handle.ask(Ask).await.unwrap();
    assert_eq!(handle.ask(Act::Panic).await, Err(Unanswered { actor: "Worker", delivered: true }));
    assert!(answer(&clone).await > first);
    let report = handle.report();
    assert_eq!((report.state.as_str(), report.restarts, report.panics, report.mailbox), ("running", 1, 1, 0));
    assert_eq!(*supervision.given_up().borrow(), None);
    assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
}

/// Wherever a child panics, its successor comes, and the report names the text, the place and, where there is one, the
/// message.
#[actix_rt::test]
async fn a_panic_is_survived_wherever_it_happens() {
    let handle = Handle::new("Worker");
    let supervision = supervised(worker(&handle)).await;
    let act = std::any::type_name::<Act>();
    let mut last = answer(&handle).await;
    for (act, text, message) in [
        (Act::Panic, "as the test asks: two lines", Some(act)),
        (Act::PanicInTimer, "as the test asks: timer", Some("a timer")),
        (Act::PanicInFuture, "as the test asks: future", None),
        (Act::PanicInNotice, "as the test asks: two lines", Some(act)),
        (Act::PanicLater(PanicsWhen::Stopping), "assertion `left != right` failed", None),
        (Act::PanicLater(PanicsWhen::Dropped), "as the test asks: dropped", None),
    ] {
        let mut events = supervision.subscribe();
        handle.hint(act);
        let told = event(&mut events, |kind| matches!(kind, ChildEventKind::Panicked(_))).await;
        let ChildEventKind::Panicked(report) = told.kind else { unreachable!() };
        assert!(report.message.starts_with(text), "{report:?}");
        assert!(report.location.contains("supervision/tests.rs:"), "{report:?}");
        assert_eq!(report.message_type.as_deref(), message, "{report:?}");
        let next = answer(&handle).await;
        assert!(next > last, "{text}");
        last = next;
        assert_eq!(handle.report().last_panic, Some(report));
    }
    assert_eq!(handle.report().panics, 6);
    supervision.shutdown().await;
}

/// A second panic, while a panicked actor is dropped, changes nothing.
#[actix_rt::test]
async fn a_panic_on_top_of_a_panic_is_survived() {
    let handle = Handle::new("Worker");
    let supervision = supervised(worker(&handle)).await;
    let mut events = supervision.subscribe();
    handle.hint(Act::PanicTwice);
    for text in ["as the test asks: first", "as the test asks: dropped"] {
        let told = event(&mut events, |kind| matches!(kind, ChildEventKind::Panicked(_))).await;
        let ChildEventKind::Panicked(report) = told.kind else { unreachable!() };
        assert_eq!(report.message, text);
    }
    answer(&handle).await;
    assert_eq!(handle.report().restarts, 1);
    supervision.shutdown().await;
}

/// What hangs in the blocking pool of a child's thread, such as the system's resolver, keeps neither that thread nor those
/// who wait for its end.
#[actix_rt::test]
async fn a_blocking_call_that_hangs_keeps_no_thread() {
    thread_local!(static THREAD: std::cell::Cell<Option<Arc<()>>> = const { std::cell::Cell::new(None) });
    let (handle, gate, thread) = (Handle::new("Worker"), Arc::new(Gate::default()), Arc::new(()));
    let (inner, weak, thread) = (gate.clone(), Arc::downgrade(&thread), Mutex::new(Some(thread)));
    let hanging = ChildSpec::new(&handle, move |generation| {
        THREAD.set(thread.lock().unwrap().take());
        let inner = inner.clone();
        drop(actix_rt::task::spawn_blocking(move || inner.pass()));
        Ok::<Worker, _>(Worker::new(generation))
    });
    let supervision = supervised(hanging).await;
    while !gate.reached.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
    assert!(weak.upgrade().is_none(), "the thread has ended");
    assert!(!gate.passed.load(Ordering::SeqCst));
    gate.open();
}

/// A child whose thread ends under it, because it belongs to somebody else, goes on with a thread of the supervisor.
#[actix_rt::test]
async fn a_child_survives_its_thread() {
    let handle = Handle::new("Worker");
    let arbiter = Arbiter::new();
    let thread = Thread::of(arbiter.handle());
    let supervision = supervised(worker(&handle).thread(&thread)).await;
    let first = answer(&handle).await;
    arbiter.stop();
    arbiter.join().unwrap();
    assert!(answer(&handle).await > first);
    supervision.shutdown().await;
}

/// Whoever stops waiting for a launch leaves nothing running.
#[actix_rt::test]
async fn a_launch_that_nobody_waits_for_ends() {
    let gate = Arc::new(Gate::default());
    let (handle, inner) = (Handle::new("Worker"), gate.clone());
    let slow = ChildSpec::new(&handle, move |generation| {
        inner.pass();
        Ok::<Worker, _>(Worker::new(generation))
    });
    let launch = Supervisor::new(GENEROUS, silent()).child(slow).launch();
    let reached = async {
        while !gate.reached.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = launch => panic!("the factory waits"),
        () = reached => {}
    }
    gate.open();
    let weak = Arc::downgrade(&gate);
    drop(gate);
    gone(&weak).await;
    assert_eq!(handle.ask(Ask).await, Err(Unanswered { actor: "Worker", delivered: false }));
}

/// An actor with actix's own context is supervised all the same; only the type of its message is not known.
#[actix_rt::test]
async fn actix_contexts_work_too() {
    let handle = Handle::<Worker<Actix>>::new("Worker");
    let supervision = supervised(ChildSpec::new(&handle, |generation| Ok(Worker::new(generation)))).await;
    assert_eq!(handle.ask(Act::Panic).await, Err(Unanswered { actor: "Worker", delivered: true }));
    while handle.ask(Ask).await.is_err() {
        tokio::task::yield_now().await;
    }
    let report = handle.report().last_panic.expect("it has a successor");
    assert_eq!((report.message.as_str(), report.message_type), ("as the test asks: two lines", None));
    supervision.shutdown().await;
}

/// A panic in a start, in `started` or in the factory, counts as a restart that failed; the next one may succeed.
#[actix_rt::test]
async fn starts_that_fail_are_tried_again() {
    let handle = Handle::new("Worker");
    let starts = AtomicU64::new(0);
    let supervision = supervised(ChildSpec::new(&handle, move |generation| {
        let mut worker = Worker::new(generation);
        match starts.fetch_add(1, Ordering::Relaxed) {
            1 => worker.panics_when = PanicsWhen::Started,
            2 => panic!("as the test asks: factory"),
            3 => return Err("as the test asks".into()),
            _ => {}
        }
        Ok(worker)
    }))
    .await;
    for act in [Act::Stop, Act::Terminate] {
        let before = answer(&handle).await;
        let _ = handle.ask(act).await;
        while answer(&handle).await == before {}
    }
    let report = handle.report();
    assert_eq!((report.restarts, report.panics), (5, 2));
    assert_eq!(report.last_panic.unwrap().message, "as the test asks: factory");
    supervision.shutdown().await;
}

/// A first start that fails stops what was started before, in reverse order, and says which child it was and why.
#[actix_rt::test]
async fn a_first_start_that_fails_is_an_error() {
    let diary = Diary::default();
    let (_, a) = scribe("a", &diary);
    let (_, b) = scribe("b", &diary);
    let failing = ChildSpec::new(&Handle::<Worker>::new("Failing"), |_| Err("no such file".into()));
    let started = Supervisor::new(GENEROUS, silent()).child(a).child(b).child(failing).launch().await;
    let failed = StartError::Child { child: "Failing", why: "no such file".into() };
    assert_eq!(started.err(), Some(failed));
    assert_eq!(diary.take(), "+a +b -b -a");
}

/// Without an actix System nothing is started, and the reason is said.
#[test]
fn without_a_system_it_refuses() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let started = runtime.block_on(Supervisor::new(GENEROUS, silent()).launch());
    assert_eq!(started.err(), Some(StartError::NoSystem));
}

/// Beyond the intensity everything stops, and the reason names the child, the count and the last panic.
#[actix_rt::test]
async fn the_budget_is_not_overdrawn() {
    let (handle, diary) = (Handle::new("Worker"), Diary::default());
    let (_, other) = scribe("other", &diary);
    let intensity = Intensity { restarts_max: 2, within: Duration::from_secs(60) };
    let supervisor = Supervisor::new(intensity, silent()).child(other).child(worker(&handle));
    let supervision = supervisor.launch().await.unwrap();
    for _ in 0..3 {
        answer(&handle).await;
        let _ = handle.ask(Act::Panic).await;
    }
    let gave_up = supervision.given_up().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!((gave_up.child, gave_up.restarts), ("Worker", 2));
    assert!(gave_up.to_string().contains("after 2 restarts within 60 s"), "{gave_up}");
    assert!(gave_up.to_string().ends_with("as the test asks: two lines"), "{gave_up}");
    assert_eq!(supervision.ended().await, Vec::<&str>::new());
    assert_eq!(handle.ask(Ask).await, Err(Unanswered { actor: "Worker", delivered: false }));
    assert_eq!(handle.report().state, "ended");
    assert_eq!(diary.take(), "+other -other");
}

/// Messages that a dead generation had not begun never happen, and who asked is told so.
#[actix_rt::test]
async fn what_was_not_begun_never_happens() {
    let handle = Handle::new("Worker");
    let gate = Arc::new(Gate::default());
    let supervision = supervised(worker(&handle)).await;
    handle.hint(Act::Block(gate.clone()));
    let panics = handle.ask(Act::Panic);
    let waits = handle.ask(Ask);
    let opened = async {
        assert_eq!(handle.report().mailbox, 2);
        gate.open();
    };
    let (panics, waits, ()) = tokio::join!(biased; panics, waits, opened);
    assert_eq!(panics, Err(Unanswered { actor: "Worker", delivered: true }));
    assert_eq!(waits, Err(Unanswered { actor: "Worker", delivered: false }));
    supervision.shutdown().await;
}

/// The same for messages that carry their answer: it may come later than the handler ends, who stops waiting withdraws what
/// was not begun, and an answer that is lost with its actor is an end.
#[actix_rt::test]
async fn answers_that_come_later() {
    let handle = Handle::new("Worker");
    assert_eq!(handle.ask_with(Later::new).await, Err(Unanswered { actor: "Worker", delivered: false }));
    let supervision = supervised(worker(&handle)).await;
    assert_eq!(handle.ask_with(Later::new).await, Ok(1));

    let gate = Arc::new(Gate::default());
    handle.hint(Act::Block(gate.clone()));
    tokio::select! {
        biased;
        _ = handle.ask_with(Later::new) => unreachable!("the worker is blocked"),
        () = std::future::ready(()) => {}
    }
    let waits = handle.ask_with(Later::new);
    let (second, ()) = tokio::join!(biased; waits, async { gate.open() });
    assert_eq!(second, Ok(2), "the one in between was withdrawn");

    let gate = Arc::new(Gate::default());
    handle.hint(Act::Block(gate.clone()));
    let panics = handle.ask_with(|answer| Later { answer, panics: true });
    let waits = handle.ask_with(Later::new);
    let opened = async {
        assert_eq!(handle.report().mailbox, 2);
        gate.open();
    };
    let (panics, waits, ()) = tokio::join!(biased; panics, waits, opened);
    assert_eq!(panics, Err(Unanswered { actor: "Worker", delivered: true }));
    assert_eq!(waits, Err(Unanswered { actor: "Worker", delivered: false }));
    supervision.shutdown().await;
}

/// A child that holds its thread is replaced, on another one, along with those that share it. Who asked it hears of it,
/// its interrupt is called, and nothing that the old one says later counts.
#[actix_rt::test]
async fn a_stuck_child_is_replaced() {
    let (blocker, neighbour) = (Handle::new("Blocker"), Handle::new("Neighbour"));
    let gate = Arc::new(Gate::default());
    let interrupted = Arc::new(AtomicU64::new(0));
    let first = Arc::new(OnceLock::<Weak<Life>>::new());
    let (interrupt, known) = (interrupted.clone(), first.clone());
    let blocks = ChildSpec::new(&blocker, move |generation| {
        let interrupt = interrupt.clone();
        generation.on_abandoned(move || {
            interrupt.fetch_add(1, Ordering::SeqCst);
        });
        let _ = known.set(Arc::downgrade(&generation.0));
        Ok(Worker::new(generation))
    })
    .stuck_after(Duration::from_millis(200));
    let supervisor = Supervisor::new(GENEROUS, silent());
    let neighbours = worker(&neighbour).stuck_after(Duration::ZERO);
    let supervision = supervisor.child(neighbours).child(blocks).launch().await.unwrap();
    let mut events = supervision.subscribe();
    let before = (answer(&neighbour).await, answer(&blocker).await);

    let stuck = blocker.ask(Act::Block(gate.clone()));
    let behind = blocker.ask(Ask);
    let aside = neighbour.ask(Ask);
    let too_late = Arc::new(Gate::default());
    let hint = async { blocker.hint(Act::Block(too_late.clone())) };
    let (stuck, behind, aside, ()) = tokio::join!(biased; stuck, behind, aside, hint);
    assert_eq!(stuck, Err(Unanswered { actor: "Blocker", delivered: true }));
    assert_eq!(behind, Err(Unanswered { actor: "Blocker", delivered: false }));
    assert_eq!(aside, Err(Unanswered { actor: "Neighbour", delivered: false }));
    let told = event(&mut events, |kind| matches!(kind, ChildEventKind::Stuck { .. })).await;
    assert_eq!(told.child, "Blocker");
    let ChildEventKind::Stuck { message_type, .. } = told.kind else { unreachable!() };
    assert_eq!(message_type, Some(std::any::type_name::<Act>()));

    assert!(answer(&neighbour).await > before.0);
    assert!(answer(&blocker).await > before.1);
    assert!(interrupted.load(Ordering::SeqCst) >= 1);
    let old = first.get().unwrap();
    assert!(!old.upgrade().unwrap().is_current());
    let living = answer(&blocker).await;

    gate.open();
    // Its actor and its mailbox go, and nothing else held it.
    gone(old).await;
    assert!(gate.passed.load(Ordering::SeqCst));
    assert!(!too_late.reached.load(Ordering::SeqCst), "what lay in its mailbox was not handled");
    assert_eq!(answer(&blocker).await, living);
    supervision.shutdown().await;
}

/// Resolves when nobody holds it any more.
async fn gone<T>(weak: &Weak<T>) {
    while weak.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A long turn that shows signs of life is not stuck.
#[actix_rt::test]
async fn progress_keeps_a_long_turn_alive() {
    struct Patient(Arc<Gate>);
    impl Actor for Patient {
        type Context = Context<Self>;
    }
    impl Handler<Ask> for Patient {
        type Result = u64;
        fn handle(&mut self, _: Ask, _: &mut Self::Context) -> u64 {
            self.0.reached.store(true, Ordering::SeqCst);
            while !*self.0.open.lock().unwrap() {
                progress();
                std::thread::yield_now();
            }
            7
        }
    }
    let (patient, blocker) = (Handle::new("Patient"), Handle::new("Blocker"));
    let (gate, blocked) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let inner = gate.clone();
    // The blocker is the clock: it is found stuck after three times what the patient may be silent.
    let patience = ChildSpec::new(&patient, move |_| Ok(Patient(inner.clone())))
        .thread(&Thread::new())
        .stuck_after(Duration::from_millis(300));
    let clock = worker(&blocker).thread(&Thread::new()).stuck_after(Duration::from_millis(900));
    let supervision =
        Supervisor::new(GENEROUS, silent()).child(patience).child(clock).launch().await.unwrap();
    let mut events = supervision.subscribe();
    let asked = patient.ask(Ask);
    let waited = async {
        while !gate.reached.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        blocker.hint(Act::Block(blocked.clone()));
        let told = event(&mut events, |kind| matches!(kind, ChildEventKind::Stuck { .. })).await;
        assert_eq!(told.child, "Blocker");
        gate.open();
        blocked.open();
    };
    assert_eq!(tokio::join!(asked, waited).0, Ok(7));
    assert_eq!(patient.report().restarts, 0);
    supervision.shutdown().await;
}

/// rest_for_one: those started after the one that failed stop in reverse order and start again in order.
#[actix_rt::test]
async fn rest_for_one_is_in_order() {
    let diary = Diary::default();
    let (_, a) = scribe("a", &diary);
    let (b_handle, b) = scribe("b", &diary);
    let (_, c) = scribe("c", &diary);
    let (_, d) = scribe("d", &diary);
    let supervisor = Supervisor::new(GENEROUS, silent()).strategy(Strategy::RestForOne);
    let supervision =
        supervisor.child(a).child(b.thread(&Thread::new())).child(c).child(d).launch().await.unwrap();
    assert_eq!(diary.take(), "+a +b +c +d");
    let mut events = supervision.subscribe();
    b_handle.hint(Act::Panic);
    event(&mut events, |kind| *kind == ChildEventKind::Started).await;
    event(&mut events, |kind| *kind == ChildEventKind::Started).await;
    event(&mut events, |kind| *kind == ChildEventKind::Started).await;
    assert_eq!(diary.take(), "-d -c +b +c +d", "b panicked: it was not asked to stop");
    assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
    assert_eq!(diary.take(), "-d -c -b -a");
}

/// A nested supervisor that spends its budget ends its children and is restarted by its parent, with fresh children; the
/// handle follows.
#[actix_rt::test]
async fn a_nested_supervisor_is_a_child() {
    let (handle, diary) = (Handle::new("Worker"), Diary::default());
    let (inner, log) = (handle.clone(), diary.clone());
    let nested = ChildSpec::supervisor("Nested", move || {
        let (_, scribe) = scribe("inner", &log);
        let none = Intensity { restarts_max: 0, within: Duration::from_secs(5) };
        Supervisor::new(none, silent()).child(scribe).child(worker(&inner))
    });
    let (_, outer) = scribe("outer", &diary);
    let supervision = Supervisor::new(GENEROUS, silent()).child(nested).child(outer).launch().await.unwrap();
    let mut events = supervision.subscribe();
    assert_eq!(diary.take(), "+inner +outer", "the nested one was up before the next child started");
    answer(&handle).await;
    let _ = handle.ask(Act::Panic).await;
    let told = event(&mut events, |kind| matches!(kind, ChildEventKind::GaveUp(_))).await;
    assert_eq!(told.child, "Worker");
    event(&mut events, |kind| *kind == ChildEventKind::Restarting).await;
    answer(&handle).await;
    assert_eq!(diary.take(), "-inner +inner");
    assert_eq!(*supervision.given_up().borrow(), None);
    assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
    assert_eq!(diary.take(), "-outer -inner");
}

/// A child that does not stop in time is named, does not hold up the others, and is dropped once it lets go.
#[actix_rt::test]
async fn a_shutdown_is_bounded() {
    let diary = Diary::default();
    let (_, a) = scribe("a", &diary);
    let (b_handle, b) = scribe("b", &diary);
    let (_, c) = scribe("c", &diary);
    let gate = Arc::new(Gate::default());
    let b = b.thread(&Thread::new()).stop_within(Some(Duration::from_millis(20)));
    let supervision = Supervisor::new(GENEROUS, silent()).child(a).child(b).child(c).launch().await.unwrap();
    b_handle.hint(Act::Block(gate.clone()));
    while !gate.reached.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    assert_eq!(supervision.shutdown().await, ["b"]);
    assert_eq!(diary.take(), "+a +b +c -c -a");
    gate.open();
    let weak = Arc::downgrade(&gate);
    drop(gate);
    gone(&weak).await;
}

/// A temporary child is not restarted, a transient one only after a panic.
#[actix_rt::test]
async fn not_every_end_is_followed_by_a_start() {
    let (temporary, transient) = (Handle::new("Temporary"), Handle::new("Transient"));
    let supervision = Supervisor::new(GENEROUS, silent())
        .child(worker(&temporary).restart(Restart::Temporary))
        .child(worker(&transient).restart(Restart::Transient))
        .launch()
        .await
        .unwrap();
    let mut events = supervision.subscribe();
    temporary.hint(Act::Panic);
    event(&mut events, |kind| *kind == ChildEventKind::Ended).await;
    transient.hint(Act::Panic);
    event(&mut events, |kind| *kind == ChildEventKind::Started).await;
    transient.hint(Act::Stop);
    event(&mut events, |kind| *kind == ChildEventKind::Ended).await;
    for handle in [&temporary, &transient] {
        assert_eq!(
            handle.ask(Ask).await,
            Err(Unanswered { actor: handle.slot.record.name, delivered: false })
        );
    }
    assert_eq!(transient.report().restarts, 1);
    supervision.shutdown().await;
    assert_eq!((temporary.report().state.as_str(), transient.report().state.as_str()), ("ended", "ended"));
}

/// A recipient follows restarts as the handle does, and two for the same message are equal.
#[actix_rt::test]
async fn a_recipient_follows_restarts() {
    let handle = Handle::new("Worker");
    assert!(handle.recipient::<Ask>().is_none(), "nobody supervises it");
    let supervision = supervised(worker(&handle)).await;
    let recipient = handle.recipient::<Ask>().unwrap();
    assert!(recipient == handle.clone().recipient().unwrap());
    let first = recipient.send(Ask).await.unwrap();
    let acts = handle.recipient::<Act>().unwrap();
    assert_eq!(acts.send(Act::Panic).await, Err(MailboxError::Closed));
    while recipient.send(Ask).await.is_ok_and(|generation| generation == first) {}
    assert!(answer(&handle).await > first);
    assert!(recipient.send(Ask).await.unwrap() > first);
    acts.do_send(Act::CatchPanic);
    let living = answer(&handle).await;
    assert_eq!(recipient.send(Ask).await, Ok(living), "a panic that an actor catches itself does not end it");
    supervision.shutdown().await;
}
