//! The machine in virtual time: a world that says what listens and who answers, and a log of what came out.

use super::*;

const DEV_LINES: [&str; 5] = [
    "🔍 Cloud SQL Proxy Detector initialized",
    "ℹ️  Proxy not running on 127.0.0.1:5432",
    "   Using SQLite-only mode (Cloud SQL unavailable)",
    "ℹ️  Cloud SQL Proxy not detected in local development environment",
    "   This is normal - using SQLite-only mode",
];

fn policy() -> Policy {
    Policy {
        environment: Environment::Development,
        proxy_required: false,
        backoff: Backoff::try_new(Duration::from_secs(10), Duration::from_secs(600)).unwrap(),
        give_up_after: 5,
        health_interval: Duration::from_secs(10),
        recently_verified: Duration::from_secs(2),
        listen_interval: Duration::from_secs(1),
        check_timeout: Duration::from_secs(10),
        probe_missing: None,
    }
}

fn production() -> Policy {
    Policy { environment: Environment::Production, ..policy() }
}

fn failure(class: FailureClass) -> CloudFailure {
    CloudFailure::new(class, "it said no")
}

/// The world around a machine.
struct World {
    machine: Availability,
    now: Duration,
    armed: Option<Duration>,
    listening: Listening,
    /// What a check finds; `None` leaves it without an answer.
    answer: Option<Result<String, CloudFailure>>,
    /// Somebody answers whom the socket table does not show.
    invisible: bool,
    /// The proxy's process, as far as one runs.
    process: Option<String>,
    jitter: f64,
    out: Option<u64>,
    attempts: Vec<Duration>,
    /// Those that were not refused because nobody was there.
    met: Vec<Duration>,
    looks: usize,
    lines: Vec<(Duration, Level, String)>,
    broadcasts: Vec<AvailabilityChanged>,
    /// A reset since the last broadcast, which allows one without a difference.
    reset: bool,
    answers: Vec<Detection>,
}

impl World {
    fn new(policy: Policy, listening: Listening) -> Self {
        Self {
            machine: Availability::new(policy, "127.0.0.1:5432"),
            now: Duration::ZERO,
            armed: None,
            reset: false,
            listening,
            answer: Some(Ok("PostgreSQL 15".to_owned())),
            invisible: false,
            process: None,
            jitter: 0.0,
            out: None,
            attempts: Vec::new(),
            met: Vec::new(),
            looks: 0,
            lines: Vec::new(),
            broadcasts: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn started(policy: Policy, listening: Listening) -> Self {
        let mut world = Self::new(policy, listening);
        world.feed(Event::Started);
        world
    }

    fn failing(policy: Policy, class: FailureClass) -> Self {
        let mut world = Self::new(policy, Listening::Yes);
        world.answer = Some(Err(failure(class)));
        world.feed(Event::Started);
        world
    }

    fn up() -> Self {
        let world = Self::started(policy(), Listening::Yes);
        assert_eq!(world.machine.status, ProxyStatus::Available);
        world
    }

    fn feed(&mut self, event: Event) {
        self.reset |= matches!(event, Event::Reset);
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.machine.advance(event, self.now, self.jitter) {
                match effect {
                    Effect::Look => {
                        self.looks += 1;
                        events.push_front(Event::Looked(self.listening));
                        if self.listening == Listening::Another {
                            // The next look meets the same one again.
                            self.listening = Listening::Yes;
                        }
                    }
                    Effect::StartCheck { id } => {
                        assert_eq!(self.out, None, "P7.1");
                        self.out = Some(id);
                        self.attempts.push(self.now);
                        let refused = self.listening == Listening::No && !self.invisible;
                        if !refused {
                            self.met.push(self.now);
                        }
                        let refusal = Some(Err(failure(FailureClass::NotRunning)));
                        if let Some(result) = if refused { refusal } else { self.answer.clone() } {
                            events.push_back(Event::CheckEnded { id, result });
                        }
                    }
                    Effect::DropCheck => self.out = None,
                    Effect::FindProcess => events.push_back(Event::ProcessFound(self.process.clone())),
                    Effect::ScheduleAt(at) => self.armed = Some(at),
                    Effect::Broadcast(change) => {
                        if let Some(last) = self.broadcasts.last() {
                            assert!(change.epoch > last.epoch, "W1");
                            let differs = (change.status, change.class) != (last.status, last.class);
                            assert!(differs || self.reset, "W1");
                        }
                        self.reset = false;
                        self.broadcasts.push(change);
                    }
                    Effect::Answer(detection) => self.answers.push(detection),
                    Effect::Log(notice) => self.lines.push((self.now, notice.level(), notice.to_string())),
                }
            }
            // The answer that is fed next belongs to the check that is out until then.
            if let Some(Event::CheckEnded { .. }) = events.front() {
                self.out = None;
            }
        }
        assert!(self.armed.is_some(), "W2");
    }

    fn run_until(&mut self, seconds: f64) {
        let end = Duration::from_secs_f64(seconds);
        while let Some(at) = self.armed.filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.armed = None;
            self.feed(Event::Woke);
        }
        self.now = end;
    }

    fn attempts_s(&self) -> Vec<f64> {
        self.attempts.iter().map(Duration::as_secs_f64).collect()
    }

    fn texts(&self) -> Vec<&str> {
        self.lines.iter().map(|(_, _, text)| text.as_str()).collect()
    }

    fn texts_since(&self, count: usize) -> Vec<&str> {
        self.texts().split_off(count)
    }
}

/// The times at which a machine's failure count grows, with the count.
fn failures_over_time(world: &mut World, until_s: u64) -> Vec<(u64, u32)> {
    let mut seen = vec![(0, world.machine.failures)];
    for second in 1..=until_s {
        world.run_until(second as f64);
        if seen.last().is_some_and(|(_, count)| *count != world.machine.failures) {
            seen.push((second, world.machine.failures));
        }
    }
    seen
}

/// The documented run in development: five failures, each wait twice the last, an attempt at each but the first, then
/// a pause without a single one; four lines at the first failure, two at the pause, nothing in between.
#[test]
fn development_without_a_proxy_follows_the_documented_timeline() {
    let mut world = World::started(policy(), Listening::No);
    assert_eq!(world.texts(), DEV_LINES, "at once");
    assert_eq!(failures_over_time(&mut world, 309), [(0, 1), (10, 2), (30, 3), (70, 4), (150, 5)]);
    assert_eq!(world.texts(), DEV_LINES);
    world.run_until(310.0);
    assert_eq!(
        world.texts_since(5),
        ["After 5 failures - assuming local development", "Health checks now paused"]
    );
    world.run_until(100_000.0);
    assert_eq!(world.lines.len(), 7);
    assert_eq!(world.attempts_s(), [10.0, 30.0, 70.0, 150.0]);
    assert!(world.lines.iter().all(|(_, level, _)| *level == Level::Info));
    assert_eq!(world.broadcasts.len(), 1);
    let report = world.machine.report();
    assert!(report.paused && !report.should_retry);
    assert_eq!((report.consecutive_failures, report.current_retry_delay), (5, 160.0));
}

/// Production, and a required proxy anywhere, never gives up; it warns at the fifth failure and then at most
/// once per longest delay.
#[test]
fn where_the_proxy_is_expected_it_never_gives_up() {
    for policy in [production(), Policy { proxy_required: true, ..policy() }] {
        let mut world = World::started(policy, Listening::No);
        assert_eq!(world.texts(), DEV_LINES[..3]);
        assert!(world.lines[1..].iter().all(|(_, level, _)| *level == Level::Warning));
        let timeline = failures_over_time(&mut world, 1_900);
        assert_eq!(
            timeline,
            [(0, 1), (10, 2), (30, 3), (70, 4), (150, 5), (310, 6), (630, 7), (1230, 8), (1830, 9)]
        );
        let warnings: Vec<_> = world.lines[3..].iter().map(|(at, _, text)| (at.as_secs(), &**text)).collect();
        assert_eq!(
            warnings,
            [
                (150, "⚠️  Proxy unavailable after 5 attempts"),
                (1230, "⚠️  Proxy unavailable after 8 attempts"),
                (1830, "⚠️  Proxy unavailable after 9 attempts")
            ]
        );
        assert_eq!(world.attempts_s(), [10.0, 30.0, 70.0, 150.0, 310.0, 630.0, 1_230.0, 1_830.0]);
        assert!(!world.machine.report().paused);
    }
}

/// A listener that appears ends a pause within a second, and everything resumes by itself.
#[test]
fn a_listener_that_appears_ends_a_pause() {
    let mut world = World::started(policy(), Listening::No);
    world.run_until(1_000.5);
    world.listening = Listening::Yes;
    world.run_until(1_001.5);
    assert_eq!(world.attempts_s()[4..], [1_001.0]);
    assert_eq!(world.machine.status, ProxyStatus::Available);
    assert_eq!(world.texts_since(7), ["✅ CloudSQL reconnected - warming cache and syncing"]);
    assert!(!world.machine.report().paused);
}

/// The same in the middle of a wait, which would have gone on for more than a minute.
#[test]
fn a_listener_that_appears_ends_a_backoff_wait() {
    let mut world = World::started(production(), Listening::No);
    world.run_until(80.2);
    world.listening = Listening::Yes;
    world.run_until(81.2);
    assert_eq!(world.attempts_s(), [10.0, 30.0, 70.0, 81.0]);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// An open port is not an answer (W4), and it is not asked more often than the backoff says.
#[test]
fn a_listener_that_does_not_answer_is_unavailable() {
    let mut world = World::failing(production(), FailureClass::NotAnswering);
    world.run_until(1_300.0);
    assert_eq!(world.attempts_s(), [0.0, 10.0, 30.0, 70.0, 150.0, 310.0, 630.0, 1_230.0]);
    assert_eq!(
        world.texts()[1],
        "⚠️  Proxy is up on 127.0.0.1:5432 but the Cloud SQL instance does not answer (it said no)"
    );
    assert_eq!(world.lines.iter().filter(|(_, _, text)| text.contains("does not answer")).count(), 1);
    assert!(world.broadcasts.iter().all(|change| change.status == ProxyStatus::Unavailable));
}

/// In development behind a listener that stays, nothing would ever *appear*: the pause is one probe per longest
/// delay, so that an instance that comes back is noticed.
#[test]
fn a_pause_behind_a_silent_listener_still_notices_the_instance() {
    let mut world = World::failing(policy(), FailureClass::NotAnswering);
    world.run_until(2_000.0);
    assert_eq!(world.attempts_s(), [0.0, 10.0, 30.0, 70.0, 150.0, 910.0, 1_510.0]);
    assert!(world.machine.report().paused && world.machine.report().should_retry);
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(2_110.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// Where nothing can be seen, that is said once, and a pause is one probe per longest delay.
#[test]
fn a_blind_pause_probes_once_per_longest_delay() {
    let mut world = World::new(policy(), Listening::CannotSee);
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.feed(Event::Started);
    world.run_until(3_000.0);
    assert_eq!(world.attempts_s(), [0.0, 10.0, 30.0, 70.0, 150.0, 910.0, 1_510.0, 2_110.0, 2_710.0]);
    assert_eq!(world.lines.iter().filter(|(_, _, text)| text.contains("Cannot see")).count(), 1);
    assert_eq!(world.texts()[..5], DEV_LINES);
}

/// Sight that is lost during a pause turns it into a slow probe; it does not sleep for ever.
#[test]
fn losing_sight_during_a_pause_does_not_end_all_checks() {
    let mut world = World::started(policy(), Listening::No);
    world.run_until(400.0);
    let before = world.attempts.len();
    assert_eq!(world.machine.next_check, None);
    world.listening = Listening::CannotSee;
    world.run_until(402.0);
    assert!(world.machine.next_check.is_some());
    world.run_until(1_010.0);
    assert_eq!(world.attempts.len(), before + 1);
}

/// An outage is announced once with its own words; five failures later development pauses again.
#[test]
fn an_outage_prints_two_lines_and_pauses_after_five_failures() {
    let mut world = World::up();
    world.run_until(100.0);
    let checks = world.attempts.len();
    assert_eq!(checks, 11, "every ten seconds");
    world.listening = Listening::No;
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.run_until(110.0 + 309.0);
    assert_eq!(world.attempts.len(), checks + 5, "the one that found it out, and one per step");
    assert_eq!(world.texts_since(2), DEV_LINES[1..3]);
    world.run_until(110.0 + 310.0);
    assert_eq!(world.texts_since(4).len(), 2);
    assert!(world.machine.paused);
}

/// W5: a proxy that no table shows (a forwarded port) is found by the first step of the backoff, and from then on the
/// table is not believed: not even the next pause is for ever.
#[test]
fn a_proxy_that_cannot_be_seen_is_found_and_found_again() {
    let mut world = World::new(policy(), Listening::No);
    world.invisible = true;
    world.feed(Event::Started);
    assert_eq!(world.texts()[1], DEV_LINES[1], "the first look is believed");
    world.run_until(10.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.run_until(1_000.0);
    assert!(world.machine.paused);
    let blind: Vec<_> = world.texts().into_iter().filter(|text| text.contains("Cannot see")).collect();
    assert_eq!(blind.len(), 1);
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(1_700.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// The same behind a port that is forwarded to an instance that does not answer yet.
#[test]
fn silence_from_a_port_where_nothing_seems_to_listen_is_not_blindly_paused() {
    let mut world = World::new(policy(), Listening::No);
    world.invisible = true;
    world.answer = Some(Err(failure(FailureClass::NotAnswering)));
    world.feed(Event::Started);
    world.run_until(2_000.0);
    assert!(world.machine.paused && world.machine.next_check.is_some());
}

/// A proxy that starts between a look and the check that follows it is no reason to distrust looks.
#[test]
fn a_listener_that_was_only_late_does_not_make_looks_untrusted() {
    let mut world = World::started(production(), Listening::No);
    world.run_until(9.0);
    world.answer = None;
    world.invisible = true;
    world.run_until(10.0);
    world.listening = Listening::Yes;
    let id = world.out.take().unwrap();
    world.feed(Event::CheckEnded { id, result: Ok("PostgreSQL".to_owned()) });
    assert!(world.machine.status == ProxyStatus::Available && !world.machine.sight_lies);
}

/// A process that runs explains the failure, once in the log and in every answer, and makes no status of its own.
#[test]
fn a_process_explains_a_failure_and_changes_nothing() {
    let mut world = World::new(policy(), Listening::No);
    world.process = Some("cloud-sql-proxy (process 4711)".to_owned());
    world.feed(Event::Started);
    let line = "   Nothing listens on 127.0.0.1:5432, but cloud-sql-proxy (process 4711) runs: compare its address \
                and port with CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT";
    assert_eq!(world.texts_since(5), [line]);
    assert_eq!(world.machine.status, ProxyStatus::Unavailable);
    let detail = "Proxy not running on 127.0.0.1:5432 - cloud-sql-proxy (process 4711) runs: compare its address and \
                  port with CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT";
    assert_eq!(world.machine.report().detail, detail);
    world.process = None;
    world.feed(Event::Asked { force: true });
    assert_eq!(world.answers[0].detail, "Proxy not running on 127.0.0.1:5432", "as of the last check");
    world.run_until(309.0);
    assert_eq!(world.lines.len(), 6);
}

/// Who asks is answered after the search for a process has ended, so that the answer holds what it found.
#[test]
fn an_answer_waits_for_its_explanation() {
    let mut machine = Availability::new(policy(), "127.0.0.1:5432");
    machine.advance(Event::Started, Duration::ZERO, 0.0);
    let effects = machine.advance(Event::Looked(Listening::No), Duration::ZERO, 0.0);
    assert!(effects.contains(&Effect::FindProcess));
    let effects = machine.advance(Event::Asked { force: false }, Duration::ZERO, 0.0);
    assert_eq!(effects, [Effect::Look]);
    let effects = machine.advance(Event::Looked(Listening::No), Duration::ZERO, 0.0);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Answer(_))));
    let effects = machine.advance(Event::ProcessFound(None), Duration::ZERO, 0.0);
    assert!(matches!(effects[..], [Effect::Answer(_)]), "{effects:?}");
}

/// After hours of suspension what fell due is done at once, and nothing is made up for.
#[test]
fn what_fell_due_while_the_machine_slept_is_done_when_it_wakes() {
    let mut up = World::up();
    up.run_until(25.0);
    let mut down = World::started(production(), Listening::No);
    down.run_until(2_000.0);
    let mut paused = World::started(policy(), Listening::No);
    paused.run_until(2_000.0);
    for (world, checks) in [(&mut up, 1), (&mut down, 1), (&mut paused, 0)] {
        let (attempts, lines) = (world.attempts.len(), world.lines.len());
        world.now += Duration::from_secs(8 * 3_600);
        world.armed = None;
        world.feed(Event::Woke);
        assert_eq!(world.attempts.len(), attempts + checks);
        let allowed: &[&str] = &["⚠️  Proxy unavailable after 10 attempts"];
        assert!(
            world.texts_since(lines).iter().all(|text| allowed.contains(text)),
            "{:?}",
            world.texts_since(lines)
        );
    }
}

/// W6: a proxy that works each time, but never for long, costs a bounded number of lines and attempts an hour; one that
/// stays is back to normal.
#[test]
fn a_link_that_keeps_coming_and_going_is_followed_less_and_less_often() {
    let mut world = World::started(production(), Listening::Yes);
    for second in 1..=3_600 {
        let up = second % 2 == 0;
        world.listening = if up { Listening::Yes } else { Listening::No };
        world.answer =
            Some(if up { Ok("PostgreSQL".to_owned()) } else { Err(failure(FailureClass::NotRunning)) });
        world.run_until(f64::from(second) + 0.2);
        if !up {
            // Whoever uses the link finds it out at once.
            world.feed(Event::TrafficEnded(Err(FailureClass::NotRunning)));
        }
    }
    let reconnects = world.texts().iter().filter(|text| text.contains("reconnected")).count();
    let said = world.texts().iter().filter(|text| text.contains("keeps coming and going")).count();
    println!("{} lines, {} attempts, {reconnects} reconnects", world.lines.len(), world.attempts.len());
    assert_eq!(said, 1);
    assert!(reconnects <= 16 && world.lines.len() <= 50, "{:#?}", world.lines);
    assert!(world.attempts.len() <= 60, "{:?}", world.attempts_s());

    world.listening = Listening::Yes;
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(4_300.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.listening = Listening::No;
    world.run_until(4_311.0);
    assert_eq!(world.machine.short_ups, 0);
}

/// Behind a listener that did not answer, or a file that its owner left, another one has appeared, although no look was
/// without any; what the first look meets has not.
#[test]
fn a_listener_in_the_place_of_another_one_has_appeared() {
    for class in [FailureClass::NotAnswering, FailureClass::NotRunning] {
        let mut world = World::failing(policy(), class);
        world.run_until(400.0);
        assert!(world.machine.paused);
        world.answer = Some(Ok("PostgreSQL".to_owned()));
        world.listening = Listening::Another;
        world.run_until(401.0);
        assert_eq!(world.machine.status, ProxyStatus::Available, "{class:?}");
    }
    let mut world = World::new(policy(), Listening::Another);
    world.answer = Some(Err(failure(FailureClass::NotAnswering)));
    world.feed(Event::Started);
    assert_eq!((world.attempts.len(), world.machine.appearances_failed), (1, 0));
}

/// A proxy that is restarted between two looks has appeared all the same.
#[test]
fn a_quick_restart_of_the_proxy_is_seen() {
    let mut world = World::up();
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.run_until(5.0);
    world.feed(Event::TrafficEnded(Err(FailureClass::NotRunning)));
    assert_eq!(world.machine.status, ProxyStatus::Unavailable);
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(6.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// A proxy that crashes in a loop is dialled a few times at once, then with a backoff, and logged as little.
#[test]
fn a_flapping_listener_does_not_cause_a_flood() {
    let mut world = World::started(production(), Listening::No);
    world.answer = Some(Err(failure(FailureClass::NotAnswering)));
    for second in 1..=3_600 {
        world.listening = if second % 2 == 0 { Listening::Yes } else { Listening::No };
        world.run_until(f64::from(second) + 0.5);
    }
    assert!(world.attempts.len() <= 40, "{} attempts: {:?}", world.attempts.len(), world.attempts_s());
    assert!(world.attempts.len() >= 5);
    let per_minute = world.lines.len() as f64 / 60.0;
    assert!(per_minute < 1.0, "{per_minute} lines a minute");
}

/// One line per transition when the proxy really goes up and down.
#[test]
fn every_transition_has_its_line_and_no_more() {
    let mut world = World::up();
    for round in 1..=50_u32 {
        let from = f64::from(round) * 100.0;
        world.listening = Listening::No;
        world.answer = Some(Err(failure(FailureClass::NotRunning)));
        world.run_until(from);
        world.listening = Listening::Yes;
        world.answer = Some(Ok("PostgreSQL".to_owned()));
        world.run_until(from + 80.0);
        assert_eq!(world.machine.status, ProxyStatus::Available);
    }
    assert_eq!(world.lines.len(), 2 + 50 * 3);
    assert_eq!(world.broadcasts.len(), 1 + 50 * 2);
}

/// A wrong password is tried once per longest delay, whatever people ask; only a reset asks at once.
#[test]
fn refused_credentials_are_never_hammered() {
    for class in [FailureClass::Credentials, FailureClass::NotOurs] {
        let mut world = World::failing(policy(), class);
        for second in 1..=1_250 {
            world.run_until(f64::from(second));
            world.feed(Event::Asked { force: second % 2 == 0 });
        }
        assert_eq!(world.attempts_s(), [0.0, 600.0, 1_200.0]);
        assert_eq!(world.answers.len(), 1_250);
        assert_eq!(world.lines.len(), 2);
        assert_eq!(world.lines[1].1, Level::Error);
        assert!(!world.machine.report().paused);
        world.feed(Event::Reset);
        assert_eq!(world.attempts.len(), 4);
    }
}

/// A proxy that flaps in front of a wrong password does not get the account locked either, whatever the times at which it is down.
#[test]
fn a_flapping_listener_does_not_hammer_refused_credentials() {
    for class in [FailureClass::Credentials, FailureClass::NotOurs] {
        for period in [1, 2, 7, 45, 130, 400] {
            let mut world = World::failing(production(), class);
            for second in 1..=3_600 {
                let down = (second / period) % 2 == 0;
                world.listening = if down { Listening::No } else { Listening::Yes };
                world.run_until(f64::from(second) + 0.5);
            }
            // At the start, at the first appearance, and then once per longest delay.
            let met = &world.met;
            assert!(met.len() <= 2 + 6, "every {period} s: {met:?}");
            let spacing = met.windows(2).skip(1).map(|pair| pair[1] - pair[0]).min();
            assert!(spacing >= Some(Duration::from_secs(600)), "every {period} s: {met:?}");
        }
    }
}

/// A check that says nothing about the proxy makes the status unknown, warns once, and never pauses.
#[test]
fn a_check_that_itself_fails_says_nothing_about_the_proxy() {
    let mut world = World::failing(policy(), FailureClass::CheckFailed);
    world.run_until(5_000.0);
    assert_eq!(world.machine.status, ProxyStatus::Unknown);
    assert_eq!(world.lines.len(), 2);
    assert!(!world.machine.paused);
    assert!(world.attempts.len() < 20);
}

/// A server that is starting is waited for with one line, however long, and in development too: it is no sign of a machine
/// without one.
#[test]
fn a_busy_server_is_waited_for() {
    let mut world = World::failing(policy(), FailureClass::Busy);
    world.run_until(5_000.0);
    assert!(!world.machine.paused);
    assert_eq!((world.lines.len(), world.lines[1].1), (2, Level::Info));
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(5_600.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// A pause that a listener ended in vain comes back without telling it all again.
#[test]
fn a_pause_is_told_once_as_long_as_nothing_changes() {
    let mut world = World::failing(policy(), FailureClass::NotAnswering);
    world.run_until(400.0);
    let told = world.lines.len();
    world.listening = Listening::No;
    world.run_until(402.0);
    world.listening = Listening::Yes;
    world.run_until(404.0);
    assert!(!world.machine.paused, "the listener ended it");
    world.run_until(2_000.0);
    assert!(world.machine.paused);
    assert_eq!(world.texts_since(told), [""; 0]);
}

/// Packets that vanish are not a proxy that is up.
#[test]
fn a_connection_that_nobody_takes_is_not_called_a_proxy() {
    let mut world = World::new(policy(), Listening::CannotSee);
    world.answer = Some(Err(CloudFailure { accepted: false, ..failure(FailureClass::NotAnswering) }));
    world.feed(Event::Started);
    assert_eq!(world.texts()[1], "⚠️  Nobody takes a connection on 127.0.0.1:5432 (it said no)");
}

/// Without a database nothing is dialled; when something listens, one line names what is missing.
#[test]
fn without_a_database_one_line_names_what_is_missing() {
    let missing = Some("CLOUD_SQL_DATABASE is not set".to_owned());
    let mut world = World::started(Policy { probe_missing: missing.clone(), ..policy() }, Listening::No);
    world.run_until(1_000.0);
    assert_eq!(world.lines.len(), 7, "as documented");
    world.listening = Listening::Yes;
    world.run_until(10_000.0);
    assert_eq!(world.texts_since(7), ["⚠️  CLOUD_SQL_DATABASE is not set"]);
    assert_eq!(world.lines[7].1, Level::Warning);
    assert_eq!(world.machine.class, Some(FailureClass::Credentials));
    assert!(world.attempts.is_empty());

    let world = World::started(Policy { probe_missing: missing, ..policy() }, Listening::Yes);
    assert_eq!(world.texts(), [DEV_LINES[0], "⚠️  CLOUD_SQL_DATABASE is not set"]);
}

/// Reset forgets the failures and checks at once; the documented timeline starts again.
#[test]
fn reset_starts_over() {
    let mut world = World::started(policy(), Listening::No);
    world.run_until(1_000.0);
    world.feed(Event::Reset);
    assert_eq!(world.texts_since(7), ["🔄 Proxy detector reset"]);
    let report = world.machine.report();
    assert_eq!((report.consecutive_failures, report.current_retry_delay, report.paused), (1, 10.0, false));
    world.run_until(1_000.0 + 309.0);
    assert!(!world.machine.paused);
    world.run_until(1_000.0 + 310.0);
    assert!(world.machine.paused);
}

/// A check that began before a reset, and fails, is no answer to it: whoever resets has just mended something. Another one
/// follows at once, whether the old one fails or hangs, and only that one counts; there is never more than one at a time.
#[test]
fn a_reset_is_not_answered_by_an_older_check() {
    for hangs in [false, true] {
        let mut world = World::up();
        world.answer = None;
        world.feed(Event::Asked { force: true });
        let id = world.out.take().unwrap();
        world.feed(Event::Reset);
        world.feed(Event::Reset);
        assert_eq!(world.attempts.len(), 2);
        if hangs {
            world.run_until(world.now.as_secs_f64() + 10.0);
        } else {
            world.feed(Event::CheckEnded { id, result: Err(failure(FailureClass::NotOurs)) });
        }
        assert_eq!(world.machine.report().consecutive_failures, 0);
        assert_eq!((world.machine.report().status, world.attempts.len()), (ProxyStatus::Available, 3));
        let id = world.out.take().unwrap();
        world.feed(Event::CheckEnded { id, result: Ok("mended".to_owned()) });
        assert_eq!(world.answers.last().unwrap().detail, "mended");
    }
}

/// However many ask, one check is out, and all get its answer.
#[test]
fn forced_checks_share_one_check() {
    let mut world = World::up();
    world.answer = None;
    world.feed(Event::Asked { force: true });
    let id = world.out.unwrap();
    for _ in 0..10 {
        world.feed(Event::Asked { force: true });
        world.feed(Event::Reset);
    }
    assert_eq!((world.attempts.len(), world.answers.len()), (2, 0));
    world.out = None;
    world.feed(Event::CheckEnded { id, result: Ok("again".to_owned()) });
    let expected = Detection { status: ProxyStatus::Available, detail: "again".to_owned() };
    assert_eq!(world.answers, [expected]);
}

/// What was verified a moment ago is not verified again, unless somebody insists.
#[test]
fn a_recent_success_answers_at_once() {
    let mut world = World::up();
    world.run_until(2.0);
    world.feed(Event::Asked { force: false });
    assert_eq!((world.attempts.len(), world.answers.len()), (1, 1));
    world.feed(Event::Asked { force: true });
    assert_eq!((world.attempts.len(), world.answers.len()), (2, 2));
    world.run_until(4.1);
    world.feed(Event::Asked { force: false });
    assert_eq!((world.attempts.len(), world.answers.len()), (3, 3));
}

/// Questions do not connect while it is down (P7.3), a forced one does and leaves the timeline alone.
#[test]
fn questions_do_not_disturb_the_timeline() {
    let mut world = World::failing(policy(), FailureClass::NotAnswering);
    for second in 1..=9 {
        world.run_until(f64::from(second));
        world.feed(Event::Asked { force: false });
    }
    assert_eq!((world.attempts.len(), world.answers.len()), (1, 9));
    world.feed(Event::Asked { force: true });
    assert_eq!((world.attempts.len(), world.machine.failures), (2, 1));
    world.run_until(30.0);
    assert_eq!(world.attempts_s(), [0.0, 9.0, 10.0, 30.0]);
    assert_eq!(world.machine.failures, 3);
}

/// W3: the answer to a check that timed out, and answers to nothing at all, change nothing.
#[test]
fn stale_answers_are_ignored() {
    let mut world = World::new(policy(), Listening::Yes);
    world.answer = None;
    world.feed(Event::Started);
    let late = world.out.unwrap();
    world.run_until(10.0);
    assert_eq!(world.machine.class, Some(FailureClass::NotAnswering));
    let before = (world.broadcasts.len(), world.lines.len());
    for id in [late, late + 1, 0, u64::MAX] {
        world.feed(Event::CheckEnded { id, result: Ok("too late".to_owned()) });
    }
    world.feed(Event::TrafficEnded(Ok(())));
    assert_eq!(world.machine.status, ProxyStatus::Unavailable);
    assert_eq!((world.broadcasts.len(), world.lines.len()), before);
}

/// Traffic that succeeds is a check; a link failure asks at once, but a burst of them asks once.
#[test]
fn traffic_counts() {
    let mut world = World::up();
    for tenth in 1..1_000_u32 {
        world.run_until(f64::from(tenth) / 10.0);
        world.feed(Event::TrafficEnded(Ok(())));
    }
    assert_eq!(world.attempts.len(), 1);
    for hundredth in 0..100_u32 {
        world.run_until(100.0 + f64::from(hundredth) / 100.0);
        world.feed(Event::TrafficEnded(Err(FailureClass::Transient)));
        world.feed(Event::TrafficEnded(Err(FailureClass::DataRefused)));
    }
    assert_eq!(world.attempts_s(), [0.0, 100.0]);
}

/// Other times hold from now on: what was to happen later happens by then, nothing is put off, and no check is made for it.
#[test]
fn other_times_hold_from_now_on() {
    let times = |health_s| Times {
        health_interval: Duration::from_secs(health_s),
        recently_verified: Duration::from_secs(2),
        listen_interval: Duration::from_secs(1),
    };
    let mut world = World::up();
    world.run_until(4.0);
    world.feed(Event::Retimed(times(3)));
    world.run_until(13.5);
    assert_eq!(world.attempts_s(), [0.0, 7.0, 10.0, 13.0]);
    world.feed(Event::Retimed(times(100)));
    world.run_until(200.0);
    assert_eq!(world.attempts_s(), [0.0, 7.0, 10.0, 13.0, 16.0, 116.0]);
}

/// While nobody is there, a shorter interval between looks finds a listener sooner.
#[test]
fn a_shorter_look_interval_finds_a_listener_sooner() {
    let mut world =
        World::new(Policy { listen_interval: Duration::from_secs(60), ..policy() }, Listening::No);
    world.feed(Event::Started);
    world.run_until(1.0);
    let looks = world.looks;
    world.feed(Event::Retimed(Times {
        health_interval: Duration::from_secs(10),
        recently_verified: Duration::from_secs(2),
        listen_interval: Duration::from_secs(1),
    }));
    world.run_until(5.0);
    assert!(world.looks >= looks + 3, "{} after {looks}", world.looks);
    world.listening = Listening::Yes;
    world.run_until(6.5);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// One stale pooled connection is not an outage; two failures are.
#[test]
fn a_broken_pooled_connection_is_asked_twice() {
    let mut world = World::up();
    world.answer = None;
    world.run_until(10.0);
    let first = world.out.take().unwrap();
    world.feed(Event::CheckEnded { id: first, result: Err(failure(FailureClass::Transient)) });
    let second = world.out.take().unwrap();
    assert_eq!(world.machine.status, ProxyStatus::Available);
    world.feed(Event::CheckEnded { id: second, result: Err(failure(FailureClass::Transient)) });
    assert_eq!(world.machine.class, Some(FailureClass::NotAnswering));
}

/// Jitter never touches the start-up timeline; once the proxy was up it spreads the waits, and a reconnect
/// by a quarter of a second at most.
#[test]
fn jitter_comes_only_after_the_proxy_was_up() {
    let mut world = World::new(policy(), Listening::No);
    world.jitter = 1.0;
    world.feed(Event::Started);
    assert_eq!(failures_over_time(&mut world, 309), [(0, 1), (10, 2), (30, 3), (70, 4), (150, 5)]);
    world.listening = Listening::Yes;
    world.run_until(311.0);
    assert_eq!(world.attempts_s()[4..], [311.0]);

    world.listening = Listening::No;
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.run_until(321.0);
    assert_eq!(world.machine.next_check, Some(Duration::from_secs(332)));
    world.listening = Listening::Yes;
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(322.25);
    assert_eq!(world.attempts_s().last(), Some(&322.25));
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// W7: a successor announces nothing, keeps to its predecessor's times, and its changes are newer.
#[test]
fn a_successor_goes_on_where_its_predecessor_was() {
    let hour = Duration::from_secs(3_600);
    let succeed = |world: &World, after: Duration| {
        let mut next = World::new(world.machine.policy.clone(), world.listening);
        next.machine = Availability::succeed(
            next.machine.policy.clone(),
            "127.0.0.1:5432",
            world.machine.legacy().after(after),
        );
        next.answer = world.answer.clone();
        next.feed(Event::Started);
        next
    };
    // A refused login is not tried before its time, however often the watcher dies.
    let mut world = World::failing(production(), FailureClass::Credentials);
    world.run_until(100.0);
    for _ in 0..5 {
        world = succeed(&world, Duration::ZERO);
        world.run_until(1.0);
        assert_eq!((world.attempts.len(), world.lines.len(), world.broadcasts.len()), (0, 0, 0));
    }
    world.run_until(494.0);
    assert_eq!(world.attempts.len(), 0);
    world.run_until(496.0);
    assert_eq!(world.attempts.len(), 1);
    assert_eq!(succeed(&world, hour).attempts.len(), 0, "the look comes first");

    // A pause stays one, without a word; a listener that appears ends it.
    let mut world = World::started(policy(), Listening::No);
    world.run_until(400.0);
    let mut world = succeed(&world, hour);
    world.run_until(5_000.0);
    assert!(world.machine.paused && world.attempts.is_empty() && world.lines.is_empty());
    world.listening = Listening::Yes;
    world.run_until(5_001.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
    assert_eq!(world.broadcasts[0].epoch, 2);

    // A healthy link is looked at, and nobody hears of it while that goes well.
    let mut world = succeed(&world, Duration::ZERO);
    assert_eq!((world.attempts.len(), world.broadcasts.len(), world.lines.len()), (1, 0, 0));
    world.answer = Some(Err(failure(FailureClass::NotRunning)));
    world.listening = Listening::No;
    let world = succeed(&world, Duration::ZERO);
    assert_eq!((world.broadcasts[0].epoch, world.broadcasts[0].status), (3, ProxyStatus::Unavailable));
}

/// A listener that came back while a wait was running is asked before anybody thinks of a pause.
#[test]
fn nobody_pauses_in_front_of_a_listener_that_was_not_asked() {
    let mut world = World::up();
    let step = |world: &mut World, seconds: f64| world.run_until(world.now.as_secs_f64() + seconds);
    for _ in 0..5 {
        world.listening = Listening::No;
        step(&mut world, 11.0);
        world.listening = Listening::Yes;
        while world.machine.status != ProxyStatus::Available {
            step(&mut world, 1.0);
        }
    }
    world.listening = Listening::No;
    while world.machine.failures < 5 {
        step(&mut world, 1.0);
    }
    world.listening = Listening::Yes;
    step(&mut world, 200.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
    assert!(!world.texts().contains(&"Health checks now paused"));
}

/// A failure of another kind does not begin the backoff anew: names that come and go, with a container that crashes in a
/// loop, cost what any outage costs.
#[test]
fn the_backoff_grows_whatever_the_failures_are_called() {
    use FailureClass::*;
    for pair in [[CheckFailed, NotRunning], [NotAnswering, Busy], [CheckFailed, Busy]] {
        let mut world = World::new(production(), Listening::CannotSee);
        world.answer = Some(Err(failure(pair[0])));
        world.feed(Event::Started);
        for second in 1..=86_400 {
            world.answer = Some(Err(failure(pair[world.attempts.len() % 2])));
            world.run_until(f64::from(second));
        }
        assert!(world.attempts.len() <= 160, "{pair:?}: {} attempts a day", world.attempts.len());
        assert!(world.lines.len() <= 600, "{pair:?}: {} lines a day", world.lines.len());
    }
}

/// A pause in which a server says that it is starting is over: it is asked again soon, not after the longest wait.
#[test]
fn a_server_that_is_starting_ends_a_pause() {
    let mut world = World::failing(policy(), FailureClass::NotAnswering);
    world.run_until(400.0);
    assert!(world.machine.paused);
    world.answer = Some(Err(failure(FailureClass::Busy)));
    world.run_until(911.0);
    assert!(!world.machine.paused);
    world.answer = Some(Ok("PostgreSQL".to_owned()));
    world.run_until(921.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// Yesterday's flapping is forgiven: a link that was away for long is followed at once again.
#[test]
fn old_flapping_is_forgiven() {
    let mut world = World::started(production(), Listening::Yes);
    world.machine.short_ups = 10;
    world.listening = Listening::No;
    world.run_until(43_000.0);
    world.listening = Listening::Yes;
    world.run_until(43_001.0);
    assert_eq!(world.machine.status, ProxyStatus::Available);
}

/// Who asks over a refusal hears that nothing was tried, when it is going to be, and what helps at once.
#[test]
fn an_answer_from_memory_says_so() {
    let mut world = World::failing(production(), FailureClass::Credentials);
    world.run_until(100.0);
    world.feed(Event::Asked { force: true });
    assert_eq!(world.answers[0].detail, "it said no (asked again in 500 s, or at once by a reset)");
    assert_eq!(world.attempts.len(), 1);
}

/// A search for a process that hangs keeps nobody waiting for longer than its patience, and is not started twice.
#[test]
fn a_search_that_hangs_keeps_nobody_waiting() {
    let mut machine = Availability::new(policy(), "127.0.0.1:5432");
    let at = Duration::from_secs;
    machine.advance(Event::Started, at(0), 0.0);
    machine.advance(Event::Looked(Listening::No), at(0), 0.0);
    machine.advance(Event::Asked { force: false }, at(0), 0.0);
    let effects = machine.advance(Event::Looked(Listening::No), at(0), 0.0);
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Answer(_))),
        "the search may still say why"
    );
    machine.advance(Event::Woke, at(1), 0.0);
    let effects = machine.advance(Event::Looked(Listening::No), at(1), 0.0);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer(_))), "{effects:?}");
    let effects = machine.advance(Event::Reset, at(2), 0.0);
    assert!(effects.contains(&Effect::Look));
    let effects = machine.advance(Event::Looked(Listening::No), at(2), 0.0);
    assert!(!effects.contains(&Effect::FindProcess), "{effects:?}");
}

/// A server's words never break the log into lines.
#[test]
fn details_stay_on_one_line() {
    let mut world = World::new(policy(), Listening::Yes);
    world.answer = Some(Err(
        CloudFailure::new(FailureClass::Credentials, "a\nb\r\n c".repeat(1_000)).with_remedy("do\nthis")
    ));
    world.feed(Event::Started);
    assert!(!world.texts()[1].contains('\n') && world.texts()[1].chars().count() < 600);
}

/// All invariants, on long random histories of everything that can happen.
#[test]
fn random_histories_keep_the_invariants() {
    use FailureClass::*;
    let classes = [NotRunning, NotAnswering, Busy, Credentials, NotOurs, DataRefused, Transient, CheckFailed];
    for seed in 1..=300_u64 {
        println!("seed {seed}");
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let policy = match next(4) {
            0 => production(),
            1 => Policy { proxy_required: true, ..policy() },
            2 => Policy { probe_missing: Some("no database".to_owned()), ..policy() },
            _ => policy(),
        };
        let has_probe = policy.probe_missing.is_none();
        let mut world = World::new(policy, Listening::No);
        let mut lived = Duration::ZERO;
        world.process = (next(2) == 0).then(|| "cloud-sql-proxy (process 1)".to_owned());
        world.feed(Event::Started);
        for _ in 0..600 {
            world.jitter = next(101) as f64 / 100.0;
            let attempts = world.attempts.len();
            let changes = world.broadcasts.len();
            let lines = world.lines.len();
            let mut person = false;
            match next(13) {
                12 if next(8) == 0 => {
                    person = true;
                    let legacy = world.machine.legacy().after(Duration::from_millis(next(2_000)));
                    let policy = world.machine.policy.clone();
                    world.machine = Availability::succeed(policy, "127.0.0.1:5432", legacy);
                    lived += world.now;
                    (world.now, world.armed, world.out) = (Duration::ZERO, None, None);
                    world.feed(Event::Started);
                }
                12 => world.invisible = next(4) == 0,
                0..=2 => {
                    let seen = [Listening::Yes, Listening::No, Listening::CannotSee, Listening::Another];
                    world.listening = seen[next(4) as usize];
                }
                3 | 4 => {
                    world.answer = match next(4) {
                        0 => Some(Ok("PostgreSQL".to_owned())),
                        1 => None,
                        _ => Some(Err(failure(classes[next(8) as usize]))),
                    }
                }
                5 => {
                    let outcome = if next(2) == 0 { Ok(()) } else { Err(classes[next(8) as usize]) };
                    world.feed(Event::TrafficEnded(outcome));
                }
                6 if next(4) == 0 => {
                    person = true;
                    world.feed(Event::Reset);
                }
                7 => {
                    person = true;
                    world.feed(Event::Asked { force: next(2) == 0 });
                }
                8 => {
                    let id = if next(2) == 0 { world.out.take().unwrap_or(u64::MAX) } else { next(50) };
                    // Either the check that is out, or a stale answer that must change nothing.
                    if world.machine.activity_id() == Some(id) {
                        world.out = None;
                    }
                    let status = world.machine.status;
                    let stale = world.machine.activity_id() != Some(id);
                    world.feed(Event::CheckEnded { id, result: Ok("PostgreSQL".to_owned()) });
                    assert!(!stale || world.machine.status == status, "W3");
                }
                _ => {
                    let seconds = world.now.as_secs_f64() + next(40_000) as f64 / 1_000.0;
                    let quiet = world.machine.paused && world.listening == Listening::No;
                    let silent = quiet && world.machine.listening == Listening::No && world.out.is_none();
                    let due = world.machine.next_check;
                    world.run_until(seconds);
                    assert!(!silent || due.is_some() || world.attempts.len() == attempts, "P7.2");
                }
            }
            assert!(has_probe || world.attempts.is_empty(), "nothing to connect to");
            assert!(world.armed.is_some(), "W2");
            if world.broadcasts.len() == changes && !person {
                let noise = world.lines.len() - lines;
                assert!(noise <= 2, "P7.5: {:?}", world.texts_since(lines));
            }
            assert_eq!(world.machine.current().status, world.machine.status);
            assert!(!(world.machine.paused && world.machine.status == ProxyStatus::Available));
            assert!(world.machine.failures == 0 || world.machine.status != ProxyStatus::Available);
        }
        // P7.3: the whole history, people and traffic included, stays far below one attempt per second.
        let rate = world.attempts.len() as f64 / (world.now + lived).as_secs_f64();
        assert!(rate < 0.5, "{rate} attempts a second");

        // Whatever happened: with a proxy that answers it finds its way back within one wait, at most the longest, and
        // one longest delay, when a pause comes in between.
        world.listening = Listening::Yes;
        world.answer = Some(Ok("PostgreSQL".to_owned()));
        world.run_until(world.now.as_secs_f64() + 1_210.0);
        assert_eq!(
            world.machine.status == ProxyStatus::Available,
            has_probe,
            "never stuck: {:#?}",
            world.machine
        );
    }
}

impl Availability {
    fn activity_id(&self) -> Option<u64> {
        match self.activity {
            Activity::Checking { id, .. } => Some(id),
            _ => None,
        }
    }
}
