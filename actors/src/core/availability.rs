//! The watcher's mind: from evidence about the proxy to a status, a next step, and what people are told.
//!
//! Parts: [`Availability`], the machine, with its one transition function [`Availability::advance`];
//! [`Event`] in, [`Effect`] out; [`Policy`], what it may do; [`Notice`], the log lines as data. The shell
//! (`proxy_watcher`) performs the effects and feeds what comes of them back as events:
//!
//! ```text
//! Woke, Asked, Reset ─▶ Look ─▶ Looked ─┬─ nothing listens, for the first time ─▶ failure, no attempt made
//!                                       └─ StartCheck ─▶ CheckEnded ─┬─ Ok  ─▶ Available
//!                                                                    └─ Err ─▶ backoff, or later a pause
//! a failure ─▶ FindProcess ─▶ ProcessFound    explains it, and changes nothing else
//! ScheduleAt ─▶ Woke          the only clock: at any time one wake-up is armed
//! Broadcast, Answer, Log      leave the machine and do not come back
//! ```
//!
//! What holds, and is asserted below on long random histories too (P7 is DESIGN's promise, the rest makes it
//! checkable):
//!
//! - **P7.1** At most one check is out, however many ask.
//! - **P7.2** While paused and able to see that nothing listens, no connection is attempted; where
//!   something listens or that cannot be seen, at most one per `max_retry_delay`.
//! - **P7.3** While down, an attempt comes at most once per backoff step; the exceptions are a listener that
//!   appears ([`FREE_APPEARANCES`], then with a backoff of their own) and a person (a forced check, a reset).
//! - **P7.4** A retry that cannot help (wrong credentials, not ours) comes once per `max_retry_delay`.
//! - **P7.5** A status or a class is logged when it changes, not when it is confirmed.
//! - **W1** Every broadcast has a higher epoch than the one before, and differs from it, unless a reset came between.
//! - **W2** It never sleeps for ever: whatever happened, a wake-up is armed.
//! - **W3** An answer to a check that is not the one that is out changes nothing.
//! - **W4** `Available` is only ever the result of a check that succeeded, never of an open port.
//! - **W5** A table in which nothing listens is no proof: what a firewall rule, a container's runtime or another
//!   operating system forwards is in none. So the steps of the backoff connect all the same, and once somebody
//!   answered whom the table does not show, it is not believed any more.
//! - **W6** A link that keeps coming and going is followed with a backoff too: after [`FREE_APPEARANCES`] short ups
//!   in a row each further one is waited for longer, whatever its cause, so that neither the log nor the proxy
//!   has to bear every one of them.
//! - **W7** A successor of a watcher that died goes on where that one was: it announces nothing, tries nothing before its
//!   time, and does not wait longer either.
//!
//! Times are durations since an origin of the shell's choice, so nothing here reads a clock. Time in which the
//! machine was suspended counts: what fell due meanwhile is due when it wakes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::backoff::Backoff;
use crate::core::failure::{CloudFailure, FailureClass};
use crate::messages::{AvailabilityChanged, Detection, ProxyReport, ProxyStatus};

/// How often a listener that appears may cause a check at once before one of the checks succeeds. A proxy
/// that is started, corrected and started again is seen at once each time; one that crashes in a loop is not
/// dialled once a second.
pub const FREE_APPEARANCES: u32 = 3;

/// The most that a reconnect is held back when the listener came back, so that the processes of a machine do
/// not all dial in the same instant.
pub const RECONNECT_JITTER_MAX: Duration = Duration::from_millis(250);

/// The share of a backoff wait that jitter may add once the proxy was up.
const BACKOFF_JITTER_SHARE: f64 = 0.1;

/// Who asks is answered after so long at the latest without the process that might explain the answer.
const PROCESS_PATIENCE: Duration = Duration::from_secs(1);

/// Having been up for so many health intervals ends a row of short ups.
const STABLE_AFTER_CHECKS: u32 = 6;

/// Shorter intervals than this are lifted to it: they would be a busy loop.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Details come from servers; a log line does not get longer than this many characters of one.
const DETAIL_CHARS_MAX: usize = 400;

/// Where the process runs: decides whether a missing proxy is normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// A missing proxy is normal; after some failures the checks pause.
    #[default]
    Development,
    /// A missing proxy is a fault; the checks go on for ever.
    Production,
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Development => "development",
            Self::Production => "production",
        })
    }
}

/// Whether anything listens on the endpoint, found out without connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// Something does.
    Yes,
    /// Something does that did not when it was last looked: it *appeared*, however short the gap was.
    Another,
    /// Nothing does.
    No,
    /// Cannot be seen from here: a remote host, or the system does not show its sockets.
    CannotSee,
}

/// What the watcher may do, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Decides whether it pauses, and in which words and levels it speaks.
    pub environment: Environment,
    /// Never pauses, and a missing proxy is a fault, in development too.
    pub proxy_required: bool,
    /// The waits between failed checks.
    pub backoff: Backoff,
    /// This many failures in a row mean local development, or deserve a warning where the proxy is expected.
    pub give_up_after: u32,
    /// Time between two checks while available.
    pub health_interval: Duration,
    /// A question that is not forced is answered from a success that is not older than this.
    pub recently_verified: Duration,
    /// Time between two looks for a listener while not available.
    pub listen_interval: Duration,
    /// A check that has not ended after this counts as not answering; longer than its own timeouts.
    pub check_timeout: Duration,
    /// The sentence that names what is missing for connecting at all; `None` when nothing is.
    pub probe_missing: Option<String>,
}

/// The times of a [`Policy`] that may change while the watcher runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// As in [`Policy::health_interval`].
    pub health_interval: Duration,
    /// As in [`Policy::recently_verified`].
    pub recently_verified: Duration,
    /// As in [`Policy::listen_interval`].
    pub listen_interval: Duration,
}

impl Policy {
    /// Where the proxy is expected its absence is a fault, and the watcher never gives up.
    fn proxy_expected(&self) -> bool {
        self.proxy_required || self.environment == Environment::Production
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The watcher started.
    Started,
    /// The answer to [`Effect::Look`].
    Looked(Listening),
    /// The time of the last [`Effect::ScheduleAt`] has come.
    Woke,
    /// The answer to [`Effect::StartCheck`]: who answered, or why nobody useful did.
    CheckEnded {
        /// The check's id.
        id: u64,
        /// How it ended.
        result: Result<String, CloudFailure>,
    },
    /// Somebody wants to know; [`Effect::Answer`] follows, at once or when a check ends.
    Asked {
        /// What was verified a moment ago does not do.
        force: bool,
    },
    /// Somebody wants it to start over.
    Reset,
    /// From now on other times hold.
    Retimed(Times),
    /// A real call ended.
    TrafficEnded(Result<(), FailureClass>),
    /// The answer to [`Effect::FindProcess`]: the proxy's process in words, where there is one.
    ProcessFound(Option<String>),
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Look whether anything listens and come back with [`Event::Looked`] before any other event.
    Look,
    /// Start a check (a real connection), come back with [`Event::CheckEnded`]. Drops one that is still running.
    StartCheck {
        /// To be named in the answer.
        id: u64,
    },
    /// The check took too long: drop it, its answer is not awaited any more.
    DropCheck,
    /// Come back with [`Event::Woke`] at this time; replaces the wake-up before.
    ScheduleAt(Duration),
    /// See whether a process of the proxy runs and come back with [`Event::ProcessFound`], whatever happens; never
    /// asked for again before that.
    FindProcess,
    /// Tell every subscriber.
    Broadcast(AvailabilityChanged),
    /// Tell everybody who asked.
    Answer(Detection),
    /// Write this line.
    Log(Notice),
}

/// What a check was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Its time had come.
    Schedule,
    /// A listener appeared.
    Appearance,
    /// Somebody insisted: outside of the timeline, which it does not move when it fails.
    Demand,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Idle,
    /// Looking, to check if it makes sense (`Some`), or only to see what is there.
    Looking(Option<Cause>),
    Checking {
        id: u64,
        cause: Cause,
        deadline: Duration,
        /// Begun before a reset: what it failed of may be what the person has mended.
        is_old: bool,
    },
}

/// What a watcher leaves to its successor: as little as keeps P7 and the subscribers' peace.
#[derive(Debug, Clone, PartialEq)]
pub struct Legacy {
    /// The last broadcast.
    pub last: AvailabilityChanged,
    detail: String,
    failures: u32,
    absences: u32,
    paused: bool,
    last_seen: Option<Listening>,
    /// For how long it is not to try.
    wait: Option<Duration>,
    /// For how long the last refusal counts.
    refused_for: Duration,
}

impl Legacy {
    /// The same, so much later.
    #[must_use]
    pub fn after(self, passed: Duration) -> Self {
        Self {
            wait: self.wait.map(|wait| wait.saturating_sub(passed)),
            refused_for: self.refused_for.saturating_sub(passed),
            ..self
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Availability {
    policy: Policy,
    endpoint: String,

    status: ProxyStatus,
    class: Option<FailureClass>,
    detail: String,
    epoch: u64,
    failures: u32,
    /// Those in a row that can mean that there is no proxy to expect here.
    absences: u32,
    paused: bool,
    activity: Activity,
    check_id: u64,

    listening: Listening,
    /// The last evidence that was evidence; a listener *appears* when this was `No`, or when it is another one.
    last_seen: Option<Listening>,
    /// Somebody answered although nothing seemed to listen: the next look tells chance from blindness.
    sight_in_doubt: bool,
    /// Who answered was not to be seen (W5).
    sight_lies: bool,
    appeared_at: Option<Duration>,
    /// The process that explains the failure, as of the last check.
    process: Option<String>,
    finding_process: bool,
    /// Whoever asks waits so long for a search to end.
    found_by: Duration,
    said_process: bool,
    /// Checks because of appearances that failed, since the last success or reset.
    appearances_failed: u32,
    appearance_failed_at: Duration,
    available_since: Duration,
    /// How often in a row it was up for a short time only.
    short_ups: u32,
    /// Until when the last refusal counts: remembered also while nobody is there to refuse, or nobody answers.
    refused_until: Option<Duration>,
    /// One failed check of the transient kind while available: asked again before an outage is announced.
    in_doubt: bool,
    /// The next success is announced although nothing changed: somebody asked for a fresh start.
    announce: bool,
    was_up: bool,
    explained: bool,
    said_blind: bool,
    /// Since the last change: a pause that was tried to end in vain is not told again.
    said_pause: bool,
    warned_at: Option<Duration>,
    suspected_at: Option<Duration>,
    someone_asked: bool,

    next_check: Option<Duration>,
    next_cause: Cause,
    next_look: Option<Duration>,
    armed: Option<Duration>,

    last_check: Option<Duration>,
    last_success: Option<Duration>,

    now: Duration,
    jitter: f64,
    out: Vec<Effect>,
}

impl Availability {
    /// A machine that goes on where its predecessor was (W7).
    pub fn succeed(policy: Policy, endpoint: impl Into<String>, legacy: Legacy) -> Self {
        let AvailabilityChanged { epoch, status, class } = legacy.last;
        let was_up = status == ProxyStatus::Available;
        Self {
            epoch,
            status,
            class,
            detail: legacy.detail,
            failures: legacy.failures,
            absences: legacy.absences,
            paused: legacy.paused,
            last_seen: legacy.last_seen,
            explained: true,
            said_pause: legacy.paused,
            was_up,
            // A healthy link is looked at soon; everything else has its time.
            next_check: if was_up { Some(Duration::ZERO) } else { legacy.wait },
            refused_until: (!legacy.refused_for.is_zero()).then_some(legacy.refused_for),
            ..Self::new(policy, endpoint)
        }
    }

    /// What a successor has to know.
    pub fn legacy(&self) -> Legacy {
        Legacy {
            last: self.current(),
            detail: self.detail.clone(),
            failures: self.failures,
            absences: self.absences,
            paused: self.paused,
            last_seen: self.last_seen,
            wait: self.next_check.map(|at| at.saturating_sub(self.now)),
            refused_for: self.left_of_refusal(),
        }
    }

    /// A machine that knows nothing yet. `endpoint` is how log lines name it.
    pub fn new(policy: Policy, endpoint: impl Into<String>) -> Self {
        Self {
            policy,
            endpoint: endpoint.into(),
            status: ProxyStatus::Unknown,
            class: None,
            detail: "not checked yet".to_owned(),
            epoch: 0,
            failures: 0,
            absences: 0,
            paused: false,
            activity: Activity::Idle,
            check_id: 0,
            listening: Listening::CannotSee,
            last_seen: None,
            sight_in_doubt: false,
            sight_lies: false,
            appeared_at: None,
            process: None,
            finding_process: false,
            found_by: Duration::ZERO,
            said_process: false,
            appearances_failed: 0,
            appearance_failed_at: Duration::ZERO,
            available_since: Duration::ZERO,
            short_ups: 0,
            refused_until: None,
            in_doubt: false,
            announce: false,
            was_up: false,
            explained: false,
            said_blind: false,
            said_pause: false,
            warned_at: None,
            suspected_at: None,
            someone_asked: false,
            next_check: None,
            next_cause: Cause::Schedule,
            next_look: None,
            armed: None,
            last_check: None,
            last_success: None,
            now: Duration::ZERO,
            jitter: 0.0,
            out: Vec::new(),
        }
    }

    /// The transition function: what happened, when, and a random number from 0 to 1 that spreads a fleet.
    pub fn advance(&mut self, event: Event, now: Duration, jitter: f64) -> Vec<Effect> {
        self.now = now.max(self.now);
        self.jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };

        match event {
            Event::Started => self.started(),
            Event::Looked(listening) => self.looked(listening),
            Event::Woke => self.woke(),
            Event::CheckEnded { id, result } => self.check_ended(id, result),
            Event::Asked { force } => self.asked(force),
            Event::Reset => self.reset(),
            Event::Retimed(times) => self.retimed(times),
            Event::TrafficEnded(outcome) => self.traffic_ended(outcome),
            Event::ProcessFound(process) => self.process_found(process),
        }

        self.answer();
        self.arm();
        std::mem::take(&mut self.out)
    }

    /// What the last broadcast said; what a late subscriber is told.
    pub fn current(&self) -> AvailabilityChanged {
        AvailabilityChanged { epoch: self.epoch, status: self.status, class: self.class }
    }

    /// The status and the reason in words.
    pub fn detection(&self) -> Detection {
        let mut detail = self.explained_detail();
        let left = self.left_of_refusal().as_secs_f64().ceil();
        if self.class.is_some_and(is_refusal) && left > 0.0 {
            detail += &format!(" (asked again in {left} s, or at once by a reset)");
        }
        Detection { status: self.status, detail }
    }

    /// What `status` shows; the two times of day are the shell's to fill in.
    pub fn report(&self) -> ProxyReport {
        ProxyReport {
            status: self.status,
            endpoint: self.endpoint.clone(),
            consecutive_failures: self.failures,
            current_retry_delay: self.wait().as_secs_f64(),
            should_retry: !self.paused || self.next_check.is_some(),
            paused: self.paused,
            environment: self.policy.environment.to_string(),
            proxy_required: self.policy.proxy_required,
            last_check: None,
            last_success: None,
            detail: self.explained_detail(),
        }
    }

    /// When the last check ended.
    pub fn last_check(&self) -> Option<Duration> {
        self.last_check
    }

    /// When PostgreSQL last answered.
    pub fn last_success(&self) -> Option<Duration> {
        self.last_success
    }

    // --- events ------------------------------------------------------------------------------------------

    fn started(&mut self) {
        if self.epoch > 0 {
            match self.status {
                ProxyStatus::Available => self.start_check(Cause::Schedule),
                _ => self.look(None),
            }
            return;
        }
        self.log(Notice::Initialized);
        self.look(Some(Cause::Schedule));
    }

    fn looked(&mut self, listening: Listening) {
        let Activity::Looking(purpose) = self.activity else { return };
        self.activity = Activity::Idle;
        let listening = self.believe(listening);
        let (listening, appeared) = match listening {
            Listening::Another => (Listening::Yes, self.last_seen.is_some()),
            seen => (seen, seen == Listening::Yes && self.last_seen == Some(Listening::No)),
        };
        self.listening = listening;
        if listening != Listening::CannotSee {
            self.last_seen = Some(listening);
        }
        if self.status != ProxyStatus::Available {
            self.next_look = Some(self.now + self.look_interval());
        }
        let appeared_before = self.appeared_at;
        if appeared {
            self.appeared_at = Some(self.now);
        }

        match purpose {
            Some(cause) => {
                if appeared && self.appearances_failed < self.free_appearances() && self.flaps() == 0 {
                    self.start_over();
                }
                let cause = if appeared { Cause::Appearance } else { cause };
                if listening == Listening::No && !self.connects_unseen(cause) {
                    let detail = self.not_running();
                    self.failed(cause, false, CloudFailure::new(FailureClass::NotRunning, detail));
                } else {
                    self.start_or_refuse(cause);
                }
            }
            None if appeared && self.status != ProxyStatus::Available => {
                self.listener_appeared(appeared_before)
            }
            None => {}
        }

        if self.paused && self.next_check.is_none() && self.listening != Listening::No {
            self.next_check = Some(self.now + self.policy.backoff.max());
        }
    }

    fn woke(&mut self) {
        self.armed = None;
        match self.activity {
            Activity::Checking { cause, deadline, is_old, .. } if self.now >= deadline => {
                self.activity = Activity::Idle;
                self.out.push(Effect::DropCheck);
                if is_old {
                    self.start_check(cause);
                    return;
                }
                let detail = format!("no answer within {} s", self.policy.check_timeout.as_secs_f64());
                self.failed(cause, true, CloudFailure::new(FailureClass::NotAnswering, detail));
            }
            Activity::Checking { .. } | Activity::Looking(_) => {}
            Activity::Idle if self.next_check.is_some_and(|at| self.now >= at) => self.check_is_due(),
            Activity::Idle if self.next_look.is_some_and(|at| self.now >= at) => self.look(None),
            Activity::Idle => {}
        }
    }

    fn check_ended(&mut self, id: u64, result: Result<String, CloudFailure>) {
        match self.activity {
            Activity::Checking { id: out, cause, is_old: true, .. } if out == id && result.is_err() => {
                self.start_check(cause);
            }
            Activity::Checking { id: out, cause, .. } if out == id => {
                self.activity = Activity::Idle;
                // Nothing else than a refusal comes from a port of this machine where nothing listens.
                let nobody = result.as_ref().is_err_and(|failure| {
                    matches!(failure.class, FailureClass::NotRunning | FailureClass::CheckFailed)
                });
                let unseen = self.status != ProxyStatus::Available && self.listening == Listening::No;
                match result {
                    Ok(who) => self.succeeded(who),
                    Err(failure) => self.failed(cause, true, failure),
                }
                if unseen && !nobody && self.activity == Activity::Idle {
                    self.sight_in_doubt = true;
                    self.look(None);
                }
            }
            _ => {}
        }
    }

    fn process_found(&mut self, process: Option<String>) {
        self.finding_process = false;
        if self.status == ProxyStatus::Available {
            return;
        }
        self.process = process;
        if self.class == Some(FailureClass::NotRunning)
            && let Some(process) = self.process.clone()
            && !self.said_process
        {
            self.said_process = true;
            let endpoint = self.endpoint.clone();
            self.log(Notice::RunsElsewhere { process, endpoint });
        }
    }

    fn asked(&mut self, force: bool) {
        self.someone_asked = true;
        if self.activity != Activity::Idle {
            return;
        }
        let verified_recently =
            self.last_success.is_some_and(|at| self.now - at <= self.policy.recently_verified);
        match self.status {
            ProxyStatus::Available if verified_recently && !force => {}
            ProxyStatus::Available => self.start_check(Cause::Schedule),
            // Not even a person may hammer a login that was refused: accounts get locked. `reset` is the way.
            _ if self.is_blocked() && self.policy.probe_missing.is_none() => {}
            _ if force => self.look(Some(Cause::Demand)),
            // The schedule decides when to connect; looking costs nothing and may find that the wait is over.
            _ => self.look(None),
        }
    }

    fn reset(&mut self) {
        self.log(Notice::Reset);
        self.announce = true;
        self.start_over();
        self.appearances_failed = 0;
        self.short_ups = 0;
        self.sight_lies = false;
        self.said_process = false;
        self.said_pause = false;
        self.refused_until = None;
        self.next_check = Some(self.now);
        self.next_cause = Cause::Schedule;
        match &mut self.activity {
            Activity::Checking { cause, is_old, .. } => (*cause, *is_old) = (Cause::Schedule, true),
            Activity::Looking(purpose) => *purpose = Some(Cause::Schedule),
            Activity::Idle => self.check_is_due(),
        }
    }

    /// What was going to happen later than the new times allow happens by then; no check is put off, and none is made for it.
    fn retimed(&mut self, times: Times) {
        let Times { health_interval, recently_verified, listen_interval } = times;
        self.policy.health_interval = health_interval;
        self.policy.recently_verified = recently_verified;
        self.policy.listen_interval = listen_interval;
        if self.status == ProxyStatus::Available {
            let by = self.now + at_least_min(health_interval);
            self.next_check = self.next_check.map(|at| at.min(by));
        }
        let by = self.now + self.look_interval();
        self.next_look = self.next_look.map(|at| at.min(by));
    }

    fn traffic_ended(&mut self, outcome: Result<(), FailureClass>) {
        // A call that ends after the outage was announced began before it: it says nothing about now.
        if self.status != ProxyStatus::Available {
            return;
        }
        match outcome {
            Ok(()) => {
                self.last_success = Some(self.now);
                self.in_doubt = false;
                self.next_check = Some(self.now + self.policy.health_interval);
            }
            Err(class) if class.concerns_link() && self.activity == Activity::Idle => {
                // At once, but a burst of failed calls is one suspicion, and so are serialization failures.
                let spacing = at_least_min(self.policy.listen_interval);
                let at = self.suspected_at.map_or(self.now, |before| self.now.max(before + spacing));
                self.next_check = Some(self.next_check.map_or(at, |next| next.min(at)));
                if at <= self.now {
                    self.suspected_at = Some(self.now);
                    self.check_is_due();
                }
            }
            Err(_) => {}
        }
    }

    // --- steps -------------------------------------------------------------------------------------------

    /// W5: what a look shows, as far as looks can be trusted here.
    fn believe(&mut self, listening: Listening) -> Listening {
        if std::mem::take(&mut self.sight_in_doubt) && listening == Listening::No {
            self.sight_lies = true;
            if self.status != ProxyStatus::Available {
                self.say_blind();
            }
        }
        if self.sight_lies && listening == Listening::No { Listening::CannotSee } else { listening }
    }

    /// Whether a check is worth making although nothing seems to listen: refused, it costs one packet and disturbs
    /// nobody. The first look of a run is believed, so that its lines wait for nothing; a pause is one, except for a person.
    fn connects_unseen(&self, cause: Cause) -> bool {
        let paused = self.paused && cause != Cause::Demand;
        self.policy.probe_missing.is_none() && self.last_check.is_some() && !paused
    }

    fn check_is_due(&mut self) {
        if self.status == ProxyStatus::Available {
            // The pool's own connection is better evidence than the socket table.
            self.start_check(Cause::Schedule);
        } else if self.may_pause() && !self.listener_is_new() {
            self.pause();
        } else {
            self.look(Some(self.next_cause));
        }
    }

    fn may_pause(&self) -> bool {
        !self.policy.proxy_expected() && !self.paused && self.absences >= self.policy.give_up_after
    }

    /// Whether a listener appeared that has not been asked yet.
    fn listener_is_new(&self) -> bool {
        self.next_cause == Cause::Appearance || self.appeared_at > self.last_check
    }

    fn pause(&mut self) {
        self.paused = true;
        if !self.said_pause {
            self.said_pause = true;
            self.log(Notice::AssumingDevelopment { failures: self.failures });
            self.log(Notice::Paused);
        }
        self.next_look = Some(self.now + self.look_interval());
        self.next_check = self.next_check_while_paused();
    }

    fn next_check_while_paused(&self) -> Option<Duration> {
        // A pause is not blindness: only where a listener would be seen to appear is looking enough. Behind
        // a listener that does not answer, as behind no sight at all, recovery shows only to who connects.
        (self.listening != Listening::No).then(|| self.now + self.policy.backoff.max())
    }

    fn listener_appeared(&mut self, appeared_before: Option<Duration>) {
        let max = self.policy.backoff.max();
        // Forgiven once it has stayed as it was for long, not because it was not dialled for long.
        if appeared_before.is_none_or(|at| self.now.saturating_sub(at) >= max) {
            self.appearances_failed = 0;
            self.short_ups = 0;
        }
        let earliest = match self.appearances_failed.checked_sub(self.free_appearances()) {
            None if self.flaps() > 0 => self.last_check.unwrap_or_default() + self.jittered_wait(),
            None => {
                self.start_over();
                let spread = if self.was_up { self.jitter } else { 0.0 };
                self.now + RECONNECT_JITTER_MAX.mul_f64(spread)
            }
            // It flaps: neither at once nor from the beginning of the timeline.
            Some(_) if self.is_blocked() => self.refused_until.unwrap_or(self.appearance_failed_at + max),
            Some(beyond) => self.appearance_failed_at + self.policy.backoff.wait(beyond + 1),
        };
        let at = earliest.max(self.now);
        if self.next_check.is_none_or(|next| at < next) {
            self.next_check = Some(at);
            self.next_cause = Cause::Appearance;
        }
        if at <= self.now {
            self.start_or_refuse(Cause::Appearance);
        }
    }

    /// Who refused us once may be another server now, but is not asked again and again.
    fn free_appearances(&self) -> u32 {
        if self.is_blocked() { 1 } else { FREE_APPEARANCES }
    }

    /// After evidence that is fresh already: no second look.
    fn start_or_refuse(&mut self, cause: Cause) {
        match self.policy.probe_missing.clone() {
            Some(missing) => {
                self.failed(cause, false, CloudFailure::new(FailureClass::Credentials, missing));
            }
            None => self.start_check(cause),
        }
    }

    fn start_over(&mut self) {
        self.failures = 0;
        self.absences = 0;
        self.paused = false;
    }

    /// The short ups in a row that are beyond what is followed at once (W6).
    fn flaps(&self) -> u32 {
        self.short_ups.saturating_sub(FREE_APPEARANCES)
    }

    fn find_process(&mut self) {
        if !self.finding_process {
            self.finding_process = true;
            self.found_by = self.now + PROCESS_PATIENCE;
            self.out.push(Effect::FindProcess);
        }
    }

    fn look(&mut self, purpose: Option<Cause>) {
        self.activity = Activity::Looking(purpose);
        self.out.push(Effect::Look);
    }

    fn start_check(&mut self, cause: Cause) {
        self.check_id += 1;
        let deadline = self.now + at_least_min(self.policy.check_timeout);
        self.activity = Activity::Checking { id: self.check_id, cause, deadline, is_old: false };
        self.out.push(Effect::StartCheck { id: self.check_id });
    }

    fn succeeded(&mut self, who: String) {
        self.start_over();
        self.appearances_failed = 0;
        self.refused_until = None;
        self.in_doubt = false;
        self.was_up = true;
        self.warned_at = None;
        self.last_check = Some(self.now);
        self.last_success = Some(self.now);
        self.next_check = Some(self.now + at_least_min(self.policy.health_interval));
        self.next_cause = Cause::Schedule;
        self.next_look = None;
        self.process = None;
        self.said_process = false;
        self.detail = one_line(&who);
        if self.change_to(ProxyStatus::Available, None) {
            self.available_since = self.now;
            self.log(Notice::Reconnected);
        } else if self.announce {
            // Whoever gave up for another reason is to try again as well.
            self.epoch += 1;
            self.out.push(Effect::Broadcast(self.current()));
        }
        self.announce = false;
    }

    fn failed(&mut self, cause: Cause, attempted: bool, failure: CloudFailure) {
        let was_available = self.status == ProxyStatus::Available;
        if was_available && failure.class == FailureClass::Transient && !self.in_doubt {
            // A pooled connection that had gone stale is not an outage: a second one decides.
            self.in_doubt = true;
            self.start_check(cause);
            return;
        }
        self.in_doubt = false;
        self.last_check = Some(self.now);

        let class = match failure.class {
            // Whatever went wrong with a check behind an open port: no useful answer came.
            FailureClass::Transient | FailureClass::DataRefused => FailureClass::NotAnswering,
            class => class,
        };
        if was_available {
            let stable = at_least_min(self.policy.health_interval) * STABLE_AFTER_CHECKS;
            let short = self.now - self.available_since < stable;
            self.short_ups = if short { self.short_ups.saturating_add(1) } else { 0 };
            // What is seen next is compared with this: a proxy that is back a moment later has appeared.
            let seen = if class == FailureClass::NotRunning { Listening::No } else { Listening::Yes };
            self.last_seen = Some(seen);
            if self.listening != Listening::CannotSee {
                self.listening = seen;
            }
            self.next_look = Some(self.now + self.look_interval());
        }
        if attempted && is_refusal(class) {
            self.refused_until = Some(self.now + self.policy.backoff.max());
        }
        if cause == Cause::Appearance && attempted {
            self.appearances_failed = self.appearances_failed.saturating_add(1);
            self.appearance_failed_at = self.now;
        }

        let same_kind = self.class.is_none_or(|before| is_refusal(before) == is_refusal(class));
        let timeline_stands = cause == Cause::Demand
            && same_kind
            && !was_available
            && self.next_check.map_or(self.paused, |at| at > self.now);
        if !timeline_stands {
            // Whoever paused and hears from a server after all begins anew.
            let goes_on = same_kind && (!self.paused || suggests_absence(class));
            self.failures = if goes_on { self.failures.saturating_add(1) } else { 1 };
            self.absences = if suggests_absence(class) { self.absences.saturating_add(1) } else { 0 };
        }
        self.detail = self.detail_of(class, &failure);
        let changed = self.change_to(status_of(class), Some(class));
        self.paused &= suggests_absence(class);
        if !timeline_stands {
            self.next_cause = Cause::Schedule;
            self.next_check = if self.paused {
                self.next_check_while_paused()
            } else {
                Some(self.now + self.jittered_wait())
            };
        }

        if changed {
            self.explain(class, &failure);
        }
        self.warn_of_long_absence(class);
        if was_available && self.flaps() == 1 {
            let endpoint = self.endpoint.clone();
            self.log(Notice::ComesAndGoes { endpoint });
        }
        match class {
            FailureClass::NotRunning | FailureClass::NotAnswering => self.find_process(),
            _ => self.process = None,
        }
    }

    /// Makes it the current state; false when it was already. Every change is broadcast under a new epoch.
    fn change_to(&mut self, status: ProxyStatus, class: Option<FailureClass>) -> bool {
        if (self.status, self.class) == (status, class) {
            return false;
        }
        self.status = status;
        self.class = class;
        self.said_pause = false;
        self.epoch += 1;
        self.out.push(Effect::Broadcast(self.current()));
        true
    }

    // --- words -------------------------------------------------------------------------------------------

    fn explain(&mut self, class: FailureClass, failure: &CloudFailure) {
        let endpoint = self.endpoint.clone();
        let detail = one_line(&failure.detail);
        let remedy = failure.remedy.as_deref().map(one_line);
        match class {
            FailureClass::NotRunning => {
                let expected = self.policy.proxy_expected();
                self.log(Notice::NotRunning { endpoint, expected });
                self.log(Notice::SqliteOnly { expected });
                if !expected && !self.explained && !self.was_up {
                    self.log(Notice::NotDetected);
                    self.log(Notice::ThisIsNormal);
                }
                self.explained = true;
            }
            FailureClass::Credentials if self.policy.probe_missing.is_some() => {
                self.log(Notice::SettingsMissing { detail });
            }
            FailureClass::Credentials => self.log(Notice::Refused { endpoint, detail, remedy }),
            FailureClass::NotOurs => self.log(Notice::NotOurs { endpoint, detail, remedy }),
            FailureClass::Busy => self.log(Notice::Busy { endpoint, detail }),
            FailureClass::CheckFailed => self.log(Notice::CheckFailed { endpoint, detail }),
            FailureClass::NotAnswering if !failure.accepted => {
                self.log(Notice::NotReached { endpoint, detail });
            }
            FailureClass::NotAnswering | FailureClass::Transient | FailureClass::DataRefused => {
                self.log(Notice::NotAnswering { endpoint, detail });
            }
        }
        if self.listening == Listening::CannotSee && suggests_absence(class) {
            self.say_blind();
        }
    }

    fn say_blind(&mut self) {
        if !self.said_blind {
            self.said_blind = true;
            let endpoint = self.endpoint.clone();
            self.log(Notice::CannotSee { endpoint, probe_interval_max: self.policy.backoff.max() });
        }
    }

    fn warn_of_long_absence(&mut self, class: FailureClass) {
        let due = self.warned_at.is_none_or(|at| self.now - at >= self.policy.backoff.max());
        if self.policy.proxy_expected()
            && !is_refusal(class)
            && self.failures >= self.policy.give_up_after
            && due
        {
            self.warned_at = Some(self.now);
            self.log(Notice::StillUnavailable { attempts: self.failures });
        }
    }

    fn detail_of(&self, class: FailureClass, failure: &CloudFailure) -> String {
        let detail = match class {
            FailureClass::NotRunning => self.not_running(),
            _ => one_line(&failure.detail),
        };
        match &failure.remedy {
            Some(remedy) => format!("{detail} - {}", one_line(remedy)),
            None => detail,
        }
    }

    fn not_running(&self) -> String {
        format!("Proxy not running on {}", self.endpoint)
    }

    /// The reason in words, with the process that explains it. It explains a status; it never makes one.
    fn explained_detail(&self) -> String {
        match (&self.process, self.class) {
            (Some(process), Some(FailureClass::NotRunning)) => {
                format!("{} - {}", self.detail, elsewhere(process))
            }
            (Some(process), Some(FailureClass::NotAnswering)) => format!("{} - {process} runs", self.detail),
            _ => self.detail.clone(),
        }
    }

    fn log(&mut self, notice: Notice) {
        self.out.push(Effect::Log(notice));
    }

    // --- time --------------------------------------------------------------------------------------------

    /// The wait after the failures so far.
    fn wait(&self) -> Duration {
        if self.class.is_some_and(is_refusal) {
            return self.policy.backoff.max();
        }
        self.policy.backoff.wait(self.failures.max(self.flaps())).max(self.left_of_refusal())
    }

    /// How long the last refusal still counts, although nobody may be there any more: a proxy that flaps in front of a wrong
    /// password is not another one each time that it comes back.
    fn left_of_refusal(&self) -> Duration {
        self.refused_until.map_or(Duration::ZERO, |until| until.saturating_sub(self.now))
    }

    /// Never before the proxy was up once: the documented start-up timeline holds to the second.
    fn jittered_wait(&self) -> Duration {
        let wait = self.wait();
        let spread =
            if self.was_up { wait.mul_f64(BACKOFF_JITTER_SHARE * self.jitter) } else { Duration::ZERO };
        match wait < self.policy.backoff.max() {
            true => (wait + spread).min(self.policy.backoff.max()),
            // Refusals come at most once per longest wait, everything else at least.
            false if self.is_blocked() => wait + spread,
            false => wait - spread,
        }
    }

    /// Without sight a look only finds out whether sight is back.
    fn look_interval(&self) -> Duration {
        at_least_min(match self.listening {
            Listening::CannotSee => self.policy.backoff.initial(),
            Listening::Yes | Listening::Another | Listening::No => self.policy.listen_interval,
        })
    }

    fn is_blocked(&self) -> bool {
        self.class.is_some_and(is_refusal) || !self.left_of_refusal().is_zero()
    }

    fn answer(&mut self) {
        if self.someone_asked && self.activity == Activity::Idle && !self.explanation_is_due() {
            self.someone_asked = false;
            self.out.push(Effect::Answer(self.detection()));
        }
    }

    /// Whether a search for a process may still say why it is as it is. One that hangs keeps nobody waiting.
    fn explanation_is_due(&self) -> bool {
        self.finding_process && self.status != ProxyStatus::Available && self.now < self.found_by
    }

    /// Arms the earliest wake-up. One that is armed too early stays: waking up for nothing is cheaper than
    /// re-arming a timer with every successful call.
    fn arm(&mut self) {
        let wake = match self.activity {
            Activity::Looking(_) => return,
            Activity::Checking { deadline, .. } => Some(deadline),
            Activity::Idle => {
                let found_by = (self.someone_asked && self.explanation_is_due()).then_some(self.found_by);
                [self.next_check, self.next_look, found_by].into_iter().flatten().min()
            }
        };
        if let Some(at) = wake
            && self.armed.is_none_or(|armed| at < armed)
        {
            self.armed = Some(at);
            self.out.push(Effect::ScheduleAt(at));
        }
    }
}

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// How things are.
    Info,
    /// Somebody may want to act.
    Warning,
    /// Nothing gets better unless somebody acts.
    Error,
}

/// A log line. Its `Display` is the whole text; users grep for these, so the text is fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the line that `Display` gives for it")]
pub enum Notice {
    Initialized,
    NotRunning { endpoint: String, expected: bool },
    SqliteOnly { expected: bool },
    NotDetected,
    ThisIsNormal,
    AssumingDevelopment { failures: u32 },
    Paused,
    StillUnavailable { attempts: u32 },
    Reconnected,
    Reset,
    NotAnswering { endpoint: String, detail: String },
    NotReached { endpoint: String, detail: String },
    Busy { endpoint: String, detail: String },
    Refused { endpoint: String, detail: String, remedy: Option<String> },
    NotOurs { endpoint: String, detail: String, remedy: Option<String> },
    SettingsMissing { detail: String },
    CheckFailed { endpoint: String, detail: String },
    CannotSee { endpoint: String, probe_interval_max: Duration },
    RunsElsewhere { process: String, endpoint: String },
    ComesAndGoes { endpoint: String },
}

impl Notice {
    /// How loud the line is.
    pub fn level(&self) -> Level {
        match self {
            Self::NotRunning { expected: true, .. } | Self::SqliteOnly { expected: true } => Level::Warning,
            Self::Initialized
            | Self::NotRunning { .. }
            | Self::SqliteOnly { .. }
            | Self::NotDetected
            | Self::ThisIsNormal
            | Self::AssumingDevelopment { .. }
            | Self::Paused
            | Self::Reconnected
            | Self::Reset
            | Self::Busy { .. }
            | Self::CannotSee { .. }
            | Self::RunsElsewhere { .. } => Level::Info,
            Self::StillUnavailable { .. }
            | Self::NotAnswering { .. }
            | Self::NotReached { .. }
            | Self::SettingsMissing { .. }
            | Self::CheckFailed { .. }
            | Self::ComesAndGoes { .. } => Level::Warning,
            Self::Refused { .. } | Self::NotOurs { .. } => Level::Error,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initialized => f.write_str("🔍 Cloud SQL Proxy Detector initialized"),
            Self::NotRunning { endpoint, .. } => write!(f, "ℹ️  Proxy not running on {endpoint}"),
            Self::SqliteOnly { .. } => f.write_str("   Using SQLite-only mode (Cloud SQL unavailable)"),
            Self::NotDetected => {
                f.write_str("ℹ️  Cloud SQL Proxy not detected in local development environment")
            }
            Self::ThisIsNormal => f.write_str("   This is normal - using SQLite-only mode"),
            Self::AssumingDevelopment { failures } => {
                write!(f, "After {failures} failures - assuming local development")
            }
            Self::Paused => f.write_str("Health checks now paused"),
            Self::StillUnavailable { attempts } => {
                write!(f, "⚠️  Proxy unavailable after {attempts} attempts")
            }
            Self::Reconnected => f.write_str("✅ CloudSQL reconnected - warming cache and syncing"),
            Self::Reset => f.write_str("🔄 Proxy detector reset"),
            Self::NotAnswering { endpoint, detail } => {
                write!(
                    f,
                    "⚠️  Proxy is up on {endpoint} but the Cloud SQL instance does not answer ({detail})"
                )
            }
            Self::NotReached { endpoint, detail } => {
                write!(f, "⚠️  Nobody takes a connection on {endpoint} ({detail})")
            }
            Self::Busy { endpoint, detail } => {
                write!(f, "ℹ️  Cloud SQL behind {endpoint} takes no connections right now ({detail})")
            }
            Self::Refused { endpoint, detail, remedy } => {
                write!(f, "❌ Cloud SQL behind {endpoint} refuses us: {detail}")?;
                remedy.iter().try_for_each(|remedy| write!(f, " - {remedy}"))
            }
            Self::NotOurs { endpoint, detail, remedy } => {
                write!(f, "❌ Not syncing with what answers on {endpoint}: {detail}")?;
                remedy.iter().try_for_each(|remedy| write!(f, " - {remedy}"))
            }
            Self::SettingsMissing { detail } => write!(f, "⚠️  {detail}"),
            Self::CheckFailed { endpoint, detail } => {
                write!(f, "⚠️  Cannot check the proxy on {endpoint} ({detail})")
            }
            Self::CannotSee { endpoint, probe_interval_max } => write!(
                f,
                "ℹ️  Cannot see from here whether anything listens on {endpoint} - a proxy that starts is noticed \
                 at the next check, at most {} s later",
                probe_interval_max.as_secs_f64()
            ),
            Self::ComesAndGoes { endpoint } => {
                write!(f, "⚠️  Proxy on {endpoint} keeps coming and going - reconnecting less and less often")
            }
            Self::RunsElsewhere { process, endpoint } => {
                write!(f, "   Nothing listens on {endpoint}, but {}", elsewhere(process))
            }
        }
    }
}

/// Nothing gets better by asking again.
fn is_refusal(class: FailureClass) -> bool {
    matches!(class, FailureClass::Credentials | FailureClass::NotOurs)
}

/// Whether such failures in a row mean local development. A refused login, a check that could not even be made, or a
/// server that says that it is full or not up yet, is no sign of a machine without one.
fn suggests_absence(class: FailureClass) -> bool {
    matches!(class, FailureClass::NotRunning | FailureClass::NotAnswering)
}

fn status_of(class: FailureClass) -> ProxyStatus {
    if class == FailureClass::CheckFailed { ProxyStatus::Unknown } else { ProxyStatus::Unavailable }
}

fn elsewhere(process: &str) -> String {
    format!("{process} runs: compare its address and port with CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT")
}

fn at_least_min(interval: Duration) -> Duration {
    interval.max(INTERVAL_MIN)
}

/// A server's words on one line of bounded length.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
#[path = "availability_tests.rs"]
mod tests;
