//! What supervision does to the process around it: its panic hook, its threads, what it keeps.

#![allow(clippy::unwrap_used, missing_docs)]

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::prelude::{Actor, Handler, Message};
use slog::{Logger, o};
use tidewater_actors::supervision::{ChildSpec, Context, Handle, Intensity, Supervision, Supervisor};

/// The hook and the threads belong to the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

static HEARD: AtomicUsize = AtomicUsize::new(0);

/// The hook that was there first, before any supervision.
fn listen() {
    static LISTENS: std::sync::Once = std::sync::Once::new();
    LISTENS.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            match info.payload().downcast_ref::<&str>() {
                Some(text) if text.starts_with("as the test asks") => {
                    HEARD.fetch_add(1, Ordering::SeqCst);
                }
                _ => before(info),
            }
        }));
    });
}

struct Worker {
    _token: Arc<()>,
}

impl Actor for Worker {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
enum Act {
    Nothing,
    Panic,
    PanicOutside,
    /// Blocks until the other end is dropped.
    Hold(std::sync::mpsc::Receiver<()>),
}

impl Handler<Act> for Worker {
    type Result = ();

    fn handle(&mut self, act: Act, _: &mut Self::Context) {
        match act {
            Act::Nothing => {}
            Act::Panic => panic!("as the test asks: inside"),
            Act::Hold(held) => assert!(held.recv().is_err()),
            Act::PanicOutside => {
                let outside = std::thread::spawn(|| panic!("as the test asks: outside"));
                assert!(outside.join().is_err());
            }
        }
    }
}

async fn supervised(log: Logger) -> (Handle<Worker>, Arc<()>, Supervision) {
    let (handle, token) = (Handle::new("Worker"), Arc::new(()));
    // So short that every restart is the first one in its window, which comes at once.
    let intensity = Intensity { restarts_max: 1, within: Duration::ZERO };
    let given = token.clone();
    let child = ChildSpec::new(&handle, move |_| Ok(Worker { _token: given.clone() }));
    let supervision = Supervisor::new(intensity, log).child(child).launch().await.unwrap();
    (handle, token, supervision)
}

async fn panic_and_recover(handle: &Handle<Worker>) {
    assert!(handle.ask(Act::Panic).await.is_err());
    while handle.ask(Act::Nothing).await.is_err() {
        tokio::task::yield_now().await;
    }
}

fn silent() -> Logger {
    Logger::root(slog::Discard, o!())
}

/// A panic in an actor is the supervisor's affair; any other one reaches the hook that was there before, also when it
/// happens on behalf of an actor.
#[test]
fn other_panics_reach_the_previous_hook() {
    let _alone = alone();
    listen();
    actix_rt::System::new().block_on(async {
        let (handle, _, supervision) = supervised(silent()).await;
        let before = HEARD.load(Ordering::SeqCst);
        panic_and_recover(&handle).await;
        assert_eq!(HEARD.load(Ordering::SeqCst), before);
        handle.ask(Act::PanicOutside).await.unwrap();
        assert_eq!(HEARD.load(Ordering::SeqCst), before + 1);
        assert!(std::thread::spawn(|| panic!("as the test asks: elsewhere")).join().is_err());
        assert_eq!(HEARD.load(Ordering::SeqCst), before + 2);
        supervision.shutdown().await;
    });
}

/// A thousand panics leave nothing behind: no thread, no actor.
#[test]
fn a_thousand_panics_leave_nothing_behind() {
    let _alone = alone();
    listen();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    actix_rt::System::new().block_on(async {
        let (handle, token, supervision) = supervised(silent()).await;
        panic_and_recover(&handle).await;
        let before = (threads(), Arc::strong_count(&token));
        for _ in 0..1000 {
            panic_and_recover(&handle).await;
        }
        assert_eq!((threads(), Arc::strong_count(&token)), before);
        assert_eq!(handle.report().panics, 1001);
        assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
        assert_eq!(before.1, 3, "the test's, the factory's, the living actor's");
        assert_eq!(Arc::strong_count(&token), 1, "the supervisor is gone, and its threads with it");
    });
}

/// A thread that a child blocked ends when the child lets go of it: replacing one does not add up.
#[test]
fn a_blocked_thread_ends_when_it_can() {
    let _alone = alone();
    listen();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    actix_rt::System::new().block_on(async {
        let handle = Handle::new("Worker");
        let child = ChildSpec::new(&handle, |_| Ok(Worker { _token: Arc::default() }))
            .stuck_after(Duration::from_millis(50));
        let supervisor = Supervisor::new(Intensity { restarts_max: 1000, within: Duration::ZERO }, silent());
        let supervision = supervisor.child(child).launch().await.unwrap();
        let before = threads();
        let mut letting_go = vec![];
        for _ in 0..3 {
            let (let_go, held) = std::sync::mpsc::channel();
            letting_go.push(let_go);
            let _ = handle.ask(Act::Hold(held)).await;
            while handle.ask(Act::Nothing).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        assert!(threads() >= before + 3);
        drop(letting_go);
        while threads() > before {
            actix_rt::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(supervision.shutdown().await, Vec::<&str>::new());
    });
}

/// The lines that a drain hears.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(slog::Level, String)>>>);

impl slog::Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push((record.level(), record.msg().to_string()));
        Ok(())
    }
}

/// A panic is one line with actor, place, message and text; the backtrace is for those who debug.
#[test]
fn a_panic_is_one_line() {
    let _alone = alone();
    listen();
    let lines = Lines::default();
    let log = Logger::root(lines.clone(), o!());
    actix_rt::System::new().block_on(async {
        let (handle, _, supervision) = supervised(log).await;
        panic_and_recover(&handle).await;
        supervision.shutdown().await;
    });
    let lines = lines.0.lock().unwrap();
    let errors: Vec<_> = lines.iter().filter(|(level, _)| *level == slog::Level::Error).collect();
    let [(_, line)] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(line.starts_with("Worker panicked at ") && line.contains("tests/panics.rs:"), "{line}");
    assert!(line.ends_with(", handling panics::Act: as the test asks: inside"), "{line}");
    assert!(
        lines.contains(&(
            slog::Level::Warning,
            "Worker ended unexpectedly and is restarted (1 of 1)".to_owned()
        ))
    );
    let debug = lines.iter().find(|(level, _)| *level == slog::Level::Debug);
    assert!(debug.is_some_and(|(_, text)| text.contains("panics::Worker as actix::")), "{debug:?}");
}
