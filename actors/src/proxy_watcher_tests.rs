//! The actor on a paused clock, with a scripted look and a scripted probe, and a log that is captured.

use super::*;
use crate::core::failure::FailureClass;
use crate::messages::ProxyStatus;
use std::collections::VecDeque;
use std::sync::Mutex;

type Lines = Arc<Mutex<Vec<(slog::Level, String)>>>;

/// Keeps the level and the message of every record.
struct Capture(Lines);

impl slog::Drain for Capture {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push((record.level(), record.msg().to_string()));
        Ok(())
    }
}

/// Answers as told; without an answer it is silent for ever.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Result<String, CloudFailure>>>,
    otherwise: Mutex<Option<Result<String, CloudFailure>>>,
    /// Where nothing listens, a connection is refused.
    listening: Mutex<Option<Arc<Mutex<Listening>>>>,
    started: Mutex<Vec<Instant>>,
}

impl Probe for Script {
    fn check(&self) -> ProbeFuture {
        self.started.lock().unwrap().push(Instant::now());
        let next = self.answers.lock().unwrap().pop_front();
        let answer = next.or_else(|| self.otherwise.lock().unwrap().clone());
        let listening = self.listening.lock().unwrap().as_ref().map(|listening| *listening.lock().unwrap());
        let refusal = CloudFailure::new(FailureClass::NotRunning, "refused");
        let answer = if listening == Some(Listening::No) { Some(Err(refusal)) } else { answer };
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

/// A watcher and the strings that move its world.
struct Stage {
    watcher: Addr<ProxyWatcher>,
    listening: Arc<Mutex<Listening>>,
    probe: Arc<Script>,
    lines: Lines,
    origin: Instant,
}

fn options(listening: &Arc<Mutex<Listening>>) -> WatcherOptions {
    let seen = listening.clone();
    let backoff = Backoff::try_new(Duration::from_secs(10), Duration::from_secs(600)).unwrap();
    WatcherOptions {
        look: Arc::new(move || *seen.lock().unwrap()),
        jitter: Arc::new(|| 0.0),
        find_process: Arc::new(|| None),
        asleep: Arc::new(|| Duration::ZERO),
        ..WatcherOptions::new(Endpoint::new("127.0.0.1", 5432), backoff)
    }
}

impl Stage {
    fn new(change: impl FnOnce(&mut WatcherOptions), listening: Listening) -> Self {
        Self::with(change, listening, Script::default(), Vec::new())
    }

    fn with(
        change: impl FnOnce(&mut WatcherOptions),
        listening: Listening,
        probe: Script,
        subscribers: Vec<Recipient<AvailabilityChanged>>,
    ) -> Self {
        tokio::time::pause();
        let listening = Arc::new(Mutex::new(listening));
        let mut options = options(&listening);
        change(&mut options);
        let lines = Lines::default();
        let log = Logger::root(Capture(lines.clone()), slog::o!());
        *probe.listening.lock().unwrap() = Some(listening.clone());
        let probe = Arc::new(probe);
        let watcher = Context::new().run(ProxyWatcher::new(options, Some(probe.clone()), subscribers, log));
        Self { watcher, listening, probe, lines, origin: Instant::now() }
    }

    /// Lets virtual time pass until so many seconds after the start, and everything that is due with it.
    async fn at(&self, seconds: f64) {
        let until = self.origin + Duration::from_secs_f64(seconds);
        tokio::time::sleep_until(until).await;
        self.report().await;
    }

    async fn report(&self) -> ProxyReport {
        self.watcher.send(GetProxyReport).await.unwrap()
    }

    fn listen(&self, listening: Listening) {
        *self.listening.lock().unwrap() = listening;
    }

    fn answer(&self, answer: Result<&str, FailureClass>) {
        let answer = answer.map(str::to_owned).map_err(|class| CloudFailure::new(class, "it said no"));
        *self.probe.otherwise.lock().unwrap() = Some(answer);
    }

    fn checks(&self) -> usize {
        self.probe.started.lock().unwrap().len()
    }

    fn texts(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|(_, text)| text.clone()).collect()
    }
}

/// Keeps what it is told.
#[derive(Default)]
struct Listener(Arc<Mutex<Vec<AvailabilityChanged>>>);

impl Actor for Listener {
    type Context = actix::Context<Self>;
}

impl Handler<AvailabilityChanged> for Listener {
    type Result = ();

    fn handle(&mut self, change: AvailabilityChanged, _: &mut Self::Context) {
        self.0.lock().unwrap().push(change);
    }
}

/// The whole documented run in development, lines and all: an attempt at each step after the first, and for hours of a
/// pause not one.
#[actix::test]
async fn without_a_proxy_the_documented_lines_come_out_and_a_pause_is_one() {
    let stage = Stage::new(|_| {}, Listening::No);
    stage.report().await;
    let first = [
        "🔍 Cloud SQL Proxy Detector initialized",
        "ℹ️  Proxy not running on 127.0.0.1:5432",
        "   Using SQLite-only mode (Cloud SQL unavailable)",
        "ℹ️  Cloud SQL Proxy not detected in local development environment",
        "   This is normal - using SQLite-only mode",
    ];
    assert_eq!(stage.texts(), first, "before any time has passed");
    for (seconds, failures) in [(9.9, 1), (10.1, 2), (30.1, 3), (70.1, 4), (150.1, 5), (309.9, 5)] {
        stage.at(seconds).await;
        assert_eq!(stage.report().await.consecutive_failures, failures, "after {seconds} s");
    }
    assert_eq!(stage.texts(), first);
    stage.at(310.1).await;
    let pause = ["After 5 failures - assuming local development", "Health checks now paused"];
    assert_eq!(stage.texts()[5..], pause);
    stage.at(20_000.0).await;
    assert_eq!((stage.texts().len(), stage.checks()), (7, 4));
    assert!(stage.lines.lock().unwrap().iter().all(|(level, _)| *level == slog::Level::Info));
    let report = stage.report().await;
    assert!(report.paused && !report.should_retry && report.last_success.is_none());
    assert_eq!((report.endpoint.as_str(), report.environment.as_str()), ("127.0.0.1:5432", "development"));
}

/// A proxy that starts during the pause is in use a second later.
#[actix::test]
async fn a_proxy_that_starts_during_the_pause_is_found_within_a_second() {
    let stage = Stage::new(|_| {}, Listening::No);
    stage.answer(Ok("PostgreSQL 15"));
    stage.at(500.5).await;
    stage.listen(Listening::Yes);
    stage.at(501.6).await;
    let report = stage.report().await;
    assert_eq!((report.status, report.detail.as_str()), (ProxyStatus::Available, "PostgreSQL 15"));
    assert!(report.last_success.is_some());
    assert_eq!(stage.texts()[7..], ["✅ CloudSQL reconnected - warming cache and syncing"]);
}

/// Production warns, and its fifth failure has one line.
#[actix::test]
async fn production_warns_and_goes_on() {
    let stage = Stage::new(|options| options.environment = Environment::Production, Listening::No);
    stage.at(700.0).await;
    let lines = stage.lines.lock().unwrap().clone();
    assert_eq!(lines[3..], [(slog::Level::Warning, "⚠️  Proxy unavailable after 5 attempts".to_owned())]);
    assert!(lines[1..3].iter().all(|(level, _)| *level == slog::Level::Warning));
    assert_eq!(stage.report().await.consecutive_failures, 7);
}

/// While it is available, health is one check every ten seconds, and traffic makes even these unnecessary.
#[actix::test]
async fn health_is_checked_every_ten_seconds_unless_there_is_traffic() {
    let stage = Stage::new(|_| {}, Listening::Yes);
    stage.answer(Ok("PostgreSQL 15"));
    stage.at(100.5).await;
    assert_eq!(stage.checks(), 11);
    for second in 101..200 {
        stage.at(f64::from(second)).await;
        stage.watcher.do_send(CallFinished { epoch: 1, outcome: Ok(()) });
    }
    stage.at(200.0).await;
    assert_eq!(stage.checks(), 11);
    stage.answer(Err(FailureClass::NotRunning));
    stage.watcher.do_send(CallFinished { epoch: 1, outcome: Err(FailureClass::NotRunning) });
    stage.at(200.1).await;
    assert_eq!(stage.report().await.status, ProxyStatus::Unavailable, "without waiting for the ten seconds");
}

/// The file of a proxy that was killed stays, and so it is there before and after the next proxy makes its own: that is
/// seen with the next look all the same.
#[actix::test]
async fn a_proxy_that_replaces_the_file_of_a_dead_one_is_noticed_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".s.PGSQL.5432");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let endpoint = Endpoint::Unix { path: path.clone() };
    let stage = Stage::new(
        |options| options.look = WatcherOptions::new(endpoint, options.backoff).look,
        Listening::Yes,
    );
    stage.answer(Err(FailureClass::NotRunning));
    stage.at(400.0).await;
    assert!(stage.report().await.paused);
    stage.answer(Ok("PostgreSQL 15"));
    std::fs::remove_file(&path).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    stage.at(400.6).await;
    assert_eq!(stage.report().await.status, ProxyStatus::Available);
}

/// A check that never answers ends as not answering, and its connection is dropped.
#[actix::test]
async fn a_silent_check_ends_after_its_time() {
    let stage = Stage::new(|_| {}, Listening::Yes);
    stage.at(9.9).await;
    assert_eq!((stage.checks(), stage.report().await.status), (1, ProxyStatus::Unknown));
    stage.at(10.1).await;
    assert_eq!(stage.report().await.status, ProxyStatus::Unavailable);
    assert_eq!(
        stage.texts()[1],
        "⚠️  Proxy is up on 127.0.0.1:5432 but the Cloud SQL instance does not answer (no answer within 10 s)"
    );
}

/// Everybody who asks at the same time gets the answer of the same check.
#[actix::test]
async fn concurrent_questions_share_one_check() {
    let stage = Stage::new(|_| {}, Listening::Yes);
    let ask = || stage.watcher.send(DetectProxy { force: true });
    let (first, second, third, _) = tokio::join!(ask(), ask(), ask(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(stage.checks(), 1);
    });
    let first = first.unwrap();
    assert_eq!(first.status, ProxyStatus::Unavailable);
    assert_eq!([second.unwrap(), third.unwrap()], [first.clone(), first]);
    assert_eq!(stage.checks(), 1);
}

/// A forced question connects even where nothing seems to listen: who insists may know better than the socket table.
#[actix::test]
async fn a_forced_question_connects_also_where_nothing_seems_to_listen() {
    let stage = Stage::new(|_| {}, Listening::No);
    let detection = stage.watcher.send(DetectProxy { force: true }).await.unwrap();
    let expected = "Proxy not running on 127.0.0.1:5432".to_owned();
    assert_eq!(detection, Detection { status: ProxyStatus::Unavailable, detail: expected });
    assert_eq!(stage.checks(), 1);
}

/// Time in which the machine was suspended counts as waited: the check that fell due comes with the next look.
#[actix::test]
async fn a_machine_that_wakes_up_checks_what_fell_due() {
    let asleep = Arc::new(Mutex::new(Duration::from_secs(5)));
    let seen = asleep.clone();
    let stage = Stage::new(
        |options| {
            options.environment = Environment::Production;
            options.asleep = Arc::new(move || *seen.lock().unwrap());
        },
        Listening::No,
    );
    stage.at(700.0).await;
    let checks = stage.checks();
    *asleep.lock().unwrap() += Duration::from_secs(3_600);
    stage.at(701.5).await;
    assert_eq!(stage.checks(), checks + 1);
}

/// What explains a failure is in the answer and in the log; the search runs beside the actor.
#[actix::test]
async fn a_process_that_runs_elsewhere_is_named() {
    let process = "cloud-sql-proxy (process 4711)";
    let stage =
        Stage::new(|options| options.find_process = Arc::new(|| Some(process.to_owned())), Listening::No);
    let detection = stage.watcher.send(DetectProxy { force: false }).await.unwrap();
    assert!(detection.detail.contains(process), "{detection:?}");
    assert_eq!(stage.texts().iter().filter(|text| text.contains(process)).count(), 1);
}

/// Reset says so, and looks at once.
#[actix::test]
async fn reset_checks_at_once() {
    let stage = Stage::new(|_| {}, Listening::Yes);
    stage.answer(Err(FailureClass::Credentials));
    stage.at(100.0).await;
    assert_eq!(stage.checks(), 1);
    stage.answer(Ok("PostgreSQL 15"));
    stage.watcher.send(ResetDetector).await.unwrap();
    stage.at(100.1).await;
    assert_eq!(stage.report().await.status, ProxyStatus::Available);
    let last = ["🔄 Proxy detector reset", "✅ CloudSQL reconnected - warming cache and syncing"];
    assert_eq!(stage.texts()[2..], last);
}

/// Without anything to connect to, detection runs all the same, and one line names what is missing.
#[actix::test]
async fn without_a_database_a_listener_is_one_warning() {
    tokio::time::pause();
    let listening = Arc::new(Mutex::new(Listening::Yes));
    let lines = Lines::default();
    let log = Logger::root(Capture(lines.clone()), slog::o!());
    let options =
        WatcherOptions { probe_missing: "CLOUD_SQL_DATABASE is not set".to_owned(), ..options(&listening) };
    let watcher = Context::new().run(ProxyWatcher::new(options, None, Vec::new(), log));
    tokio::time::sleep(Duration::from_secs(5_000)).await;
    assert_eq!(watcher.send(GetProxyReport).await.unwrap().status, ProxyStatus::Unavailable);
    let lines = lines.lock().unwrap().clone();
    assert_eq!(lines[1..], [(slog::Level::Warning, "⚠️  CLOUD_SQL_DATABASE is not set".to_owned())]);
}

/// Early and late subscribers hear the same, a dead one is forgotten, and nobody waits for anybody.
#[actix::test]
async fn subscribers_hear_every_change_and_late_ones_the_current_state() {
    let early = Arc::new(Mutex::new(Vec::new()));
    let late = Arc::new(Mutex::new(Vec::new()));
    let dead = Listener::default().start().recipient();
    let dead_too = {
        let arbiter = Arbiter::new();
        let listener = Listener::start_in_arbiter(&arbiter.handle(), |_| Listener::default());
        arbiter.stop();
        let _ = arbiter.join();
        listener.recipient()
    };
    let alive = Listener(early.clone()).start().recipient();
    let stage = Stage::with(|_| {}, Listening::No, Script::default(), vec![dead_too, dead, alive]);
    stage.answer(Ok("PostgreSQL 15"));
    stage.at(5.0).await;
    let late_listener = Listener(late.clone()).start();
    stage.watcher.send(Subscribe(late_listener.recipient())).await.unwrap();
    stage.listen(Listening::Yes);
    stage.at(7.0).await;
    let down = AvailabilityChanged {
        epoch: 1,
        status: ProxyStatus::Unavailable,
        class: Some(FailureClass::NotRunning),
    };
    let up = AvailabilityChanged { epoch: 2, status: ProxyStatus::Available, class: None };
    assert_eq!(*early.lock().unwrap(), [down, up]);
    assert_eq!(*late.lock().unwrap(), [down, up]);
}

/// A subscriber whose mailbox is full is told the state of later, and holds nobody up meanwhile.
#[actix::test]
async fn a_full_subscriber_is_told_later() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let stuffed = Listener(told.clone()).start();
    let filler = AvailabilityChanged { epoch: 0, status: ProxyStatus::Unknown, class: None };
    let stage = Stage::with(|_| {}, Listening::No, Script::default(), vec![stuffed.clone().recipient()]);
    for _ in 0..100 {
        stuffed.do_send(filler);
    }
    stage.at(2.0).await;
    let told = told.lock().unwrap();
    assert_eq!(told.iter().filter(|change| change.epoch == 1).count(), 1);
    assert!(told.len() == 101);
}

/// W7: a successor of a watcher that died tells nobody anything new and tries nothing before its time; who may not have
/// heard the last word hears it again.
#[actix::test]
async fn a_successor_goes_on_where_its_predecessor_was() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Listener(told.clone()).start();
    let legacy = Arc::default();
    for generation in 0..3 {
        let shared = Arc::clone(&legacy);
        let subscribers = vec![listener.clone().recipient()];
        let script = Script::default();
        *script.otherwise.lock().unwrap() =
            Some(Err(CloudFailure::new(FailureClass::Credentials, "it said no")));
        let stage = Stage::with(|options| options.legacy = shared, Listening::Yes, script, subscribers);
        stage.at(1.0).await;
        assert_eq!(stage.checks(), usize::from(generation == 0));
        assert_eq!(stage.texts().len(), if generation == 0 { 2 } else { 0 });
        tokio::time::resume();
    }
    let told: Vec<_> = told.lock().unwrap().iter().map(|change| (change.epoch, change.status)).collect();
    assert_eq!(told, [(1, ProxyStatus::Unavailable); 3]);
}
