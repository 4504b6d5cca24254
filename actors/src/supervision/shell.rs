//! The supervisor at work: the actor around the machine in `core::restart`.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::{Actor, ActorContext, Addr, Arbiter, AsyncContext, Handler, Message, SpawnHandle};
use slog::{Logger, debug, error, info, warn};
use tokio::sync::{broadcast, oneshot, watch};

use super::child::{ChildSpec, Kind, OwnThread, Report, Reporter, Said, Thread};
use super::life::{Life, NOT_BEGUN, Panic, lock};
use super::{ChildEvent, ChildEventKind, StartError, Supervisor};
use crate::core::restart::{Effect, End, Ending, Event, GaveUp, Notice, Restarts, Watch};

/// The supervisor at work: performs what the machine decides.
pub(super) struct Shell {
    machine: Restarts,
    children: Vec<Child>,
    parent: Parent,
    /// Where children without a thread of their own live.
    common: Thread,
    events: broadcast::Sender<ChildEvent>,
    origin: Instant,
    timer: Option<SpawnHandle>,
    /// Keeps it alive while no child is, whose reporters hold the other addresses.
    me: Option<Addr<Self>>,
    log: Logger,
}

struct Child {
    spec: ChildSpec,
    started_before: bool,
    life: Option<Arc<Life>>,
    nested: Option<Addr<Shell>>,
    watch: Watch,
}

/// Whom to tell.
pub(super) enum Parent {
    App {
        launched: Option<oneshot::Sender<Result<(), StartError>>>,
        outcome: watch::Sender<Option<GaveUp>>,
        end: watch::Sender<Option<Vec<&'static str>>>,
        threads: Arc<Mutex<Vec<OwnThread>>>,
    },
    Supervisor(Reporter),
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Shutdown;

impl Shell {
    pub(super) fn new(supervisor: Supervisor, parent: Parent, events: broadcast::Sender<ChildEvent>) -> Self {
        let Supervisor { strategy, intensity, children, log } = supervisor;
        let machine = Restarts::new(strategy, intensity, children.iter().map(ChildSpec::rules));
        let child =
            |spec| Child { spec, started_before: false, life: None, nested: None, watch: Watch::default() };
        Self {
            machine,
            children: children.into_iter().map(child).collect(),
            parent,
            common: Thread::new(),
            events,
            origin: Instant::now(),
            timer: None,
            me: None,
            log,
        }
    }

    /// Runs the machine and performs its effects, until none of them led to another event.
    fn advance(&mut self, event: Event, ctx: &mut actix::Context<Self>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.machine.advance(event, self.origin.elapsed()) {
                match effect {
                    Effect::Start { child, generation } => {
                        if let Err(why) = self.start(child, generation, ctx) {
                            events.push_back(Event::StartFailed { child, generation, why });
                        }
                    }
                    Effect::Stop { child, .. } => self.stop(child),
                    Effect::Abandon { child, .. } => self.abandon(child),
                    Effect::ScheduleAt(at) => self.schedule(at, ctx),
                    Effect::Launched => {
                        if !self.launched() {
                            events.push_back(Event::ShutdownRequested);
                        }
                    }
                    Effect::GaveUp(gave_up) => {
                        error!(self.log, "{gave_up}");
                        self.tell(gave_up.child, ChildEventKind::GaveUp(gave_up.clone()));
                        if let Parent::App { outcome, .. } = &self.parent {
                            outcome.send_replace(Some(gave_up));
                        }
                    }
                    Effect::Ended { ending, left } => self.end(ending, left, ctx),
                    Effect::Log(notice) => self.write(&notice),
                }
            }
        }
        for (at, child) in self.children.iter().enumerate() {
            child.spec.record().over.store(!self.machine.is_wanted(at), Ordering::Relaxed);
        }
    }

    fn start(&mut self, at: usize, generation: u64, ctx: &mut actix::Context<Self>) -> Result<(), String> {
        let reporter = Reporter { child: at, generation, supervisor: ctx.address() };
        let child = &mut self.children[at];
        let record = child.spec.record().clone();
        if std::mem::replace(&mut child.started_before, true) {
            record.restarts.fetch_add(1, Ordering::Relaxed);
        }
        let life = Life::new(record, generation);
        child.watch = Watch::default();
        match &child.spec.kind {
            Kind::Actor(founder) => {
                let thread = child.spec.thread.as_ref().unwrap_or(&self.common);
                let thread = thread.handle().map_err(|error| format!("no thread: {error}"))?;
                founder.host(Arbiter::current());
                child.life = Some(life.clone());
                match founder.begin(&life, &thread, reporter) {
                    true => Ok(()),
                    false => Err("its thread has ended".to_owned()),
                }
            }
            Kind::Supervisor { make, .. } => {
                let (made, panic) = life.turn(|| make());
                let events = self.events.clone();
                match made {
                    Ok(supervisor) => {
                        let shell = Self::new(supervisor, Parent::Supervisor(reporter), events);
                        child.nested = Some(shell.start());
                        Ok(())
                    }
                    Err(()) => {
                        let name = child.spec.record().name;
                        panic.iter().for_each(|panic| self.panicked(name, panic));
                        Err("it panicked".to_owned())
                    }
                }
            }
        }
    }

    fn stop(&self, at: usize) {
        if let Some(life) = &self.children[at].life {
            life.stop();
        }
        if let Some(nested) = &self.children[at].nested {
            nested.do_send(Shutdown);
        }
    }

    fn abandon(&mut self, at: usize) {
        let child = &mut self.children[at];
        if let (Some(life), Kind::Actor(founder)) = (child.life.take(), &child.spec.kind) {
            founder.vacate(&life);
            life.abandon();
        }
    }

    fn schedule(&mut self, at: Duration, ctx: &mut actix::Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let wait = at.saturating_sub(self.origin.elapsed());
        self.timer = Some(ctx.run_later(wait, |shell, ctx| {
            shell.timer = None;
            shell.advance(Event::Woke, ctx);
        }));
    }

    /// Returns whether anybody still wants it: who does not wait for the launch has no way to end it.
    fn launched(&mut self) -> bool {
        match &mut self.parent {
            Parent::App { launched, .. } => {
                launched.take().is_none_or(|launched| launched.send(Ok(())).is_ok())
            }
            Parent::Supervisor(reporter) => {
                reporter.say(Said::Started, vec![]);
                true
            }
        }
    }

    fn end(&mut self, ending: Ending, left: Vec<&'static str>, ctx: &mut actix::Context<Self>) {
        self.me = None;
        ctx.stop();
        let left_there = |thread: &Thread| {
            self.children.iter().any(|child| {
                left.contains(&child.spec.record().name)
                    && child.spec.thread.as_ref().unwrap_or(&self.common).is(thread)
            })
        };
        let threads = self.children.iter().filter_map(|child| child.spec.thread.as_ref());
        let ended = threads.chain([&self.common]).filter_map(|thread| {
            let waited_for = !left_there(thread);
            thread.leave().filter(|_| waited_for)
        });
        match &mut self.parent {
            Parent::App { launched, end, threads, .. } => {
                lock(threads).extend(ended);
                if let (Ending::StartFailed { child, why }, Some(launched)) = (&ending, launched.take()) {
                    let _ = launched.send(Err(StartError::Child { child, why: why.clone() }));
                }
                end.send_replace(Some(left));
                Arbiter::current().stop();
            }
            Parent::Supervisor(reporter) => {
                ended.for_each(drop);
                let said = match ending {
                    Ending::ShutDown => Said::Ended(End::Normal),
                    Ending::GaveUp(gave_up) => Said::Ended(End::Abnormal(gave_up.to_string())),
                    Ending::StartFailed { child, why } => {
                        Said::StartFailed(format!("{child} cannot be started: {why}"))
                    }
                };
                reporter.say(said, vec![]);
            }
        }
    }

    /// Looks whether anybody is stuck, and looks again.
    fn look(&mut self, every: Duration, ctx: &mut actix::Context<Self>) {
        ctx.run_later(every, move |shell, ctx| shell.look(every, ctx));
        let now = self.origin.elapsed();
        let mut stuck = vec![];
        for (at, Child { spec, life, watch, .. }) in self.children.iter_mut().enumerate() {
            if let Some(life) = life
                && self.machine.living(at) == Some(life.number)
                && !spec.stuck_after.is_zero()
                && let Some(silence) = watch.look(life.beat(), now, spec.stuck_after)
            {
                stuck.push((at, silence, life.clone()));
            }
        }
        // Who could not even begin is not to blame, unless nobody else is.
        stuck.sort_by_key(|(_, _, life)| life.beat() == NOT_BEGUN);
        for (at, silence, life) in stuck {
            // It may have been moved along with another one meanwhile.
            if self.machine.living(at) == Some(life.number) {
                self.replace(at, silence, &life, ctx);
            }
        }
    }

    fn replace(&mut self, at: usize, silence: Duration, life: &Life, ctx: &mut actix::Context<Self>) {
        let thread = self.thread_of(at).clone();
        let name = life.record.name;
        let message_type = life.message();
        let doing = message_type.unwrap_or(match life.beat() {
            NOT_BEGUN => "its start",
            _ => "something that is not a message",
        });
        let why = format!("it was stuck for {:.1} s in {doing}", silence.as_secs_f64());
        warn!(self.log, "{name} is replaced, on a new thread: {why}");
        self.tell(name, ChildEventKind::Stuck { message_type, silence });
        let others = (0..self.children.len())
            .filter(|other| *other != at && self.thread_of(*other).is(&thread))
            .filter_map(|other| Some((other, self.children[other].life.as_ref()?.number)))
            .collect();
        // It cannot be joined: nobody knows when it ends.
        drop(thread.leave());
        self.advance(Event::ThreadBlocked { child: at, generation: life.number, why, others }, ctx);
    }

    fn thread_of(&self, at: usize) -> &Thread {
        self.children[at].spec.thread.as_ref().unwrap_or(&self.common)
    }

    fn panicked(&self, name: &'static str, Panic { report, backtrace }: &Panic) {
        let message_type = report.message_type.as_deref().unwrap_or("no message that is known");
        error!(
            self.log,
            "{name} panicked at {}, handling {message_type}: {}", report.location, report.message
        );
        if let Some(backtrace) = backtrace {
            debug!(self.log, "{name} panicked there:\n{backtrace}");
        }
        self.tell(name, ChildEventKind::Panicked(report.clone()));
    }

    fn write(&self, notice: &Notice) {
        match notice {
            Notice::Restarted { child, .. } => {
                warn!(self.log, "{notice}");
                self.tell(child, ChildEventKind::Restarting);
            }
            Notice::NotRestarted { child, end } => {
                match end {
                    End::Normal => info!(self.log, "{notice}"),
                    End::Abnormal(_) => error!(self.log, "{notice}"),
                }
                self.tell(child, ChildEventKind::Ended);
            }
            Notice::NotStopped { child } => {
                warn!(self.log, "{notice}");
                self.tell(child, ChildEventKind::NotStopped);
            }
        }
    }

    fn tell(&self, child: &'static str, kind: ChildEventKind) {
        // Nobody may listen.
        let _ = self.events.send(ChildEvent { child, kind });
    }
}

impl Actor for Shell {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.me = Some(ctx.address());
        let shortest =
            self.children.iter().map(|child| child.spec.stuck_after).filter(|after| !after.is_zero());
        if let Some(shortest) = shortest.min() {
            // Four looks find it at the latest a quarter later than promised.
            let every = (shortest / 4).max(Duration::from_millis(1));
            ctx.run_later(every, move |shell, ctx| shell.look(every, ctx));
        }
        self.advance(Event::LaunchRequested, ctx);
    }
}

impl Handler<Report> for Shell {
    type Result = ();

    fn handle(&mut self, report: Report, ctx: &mut Self::Context) {
        let Report { child, generation, panics, what } = report;
        // What a dead generation says does not count; the machine would say so as well.
        if self.machine.living(child) != Some(generation) {
            return;
        }
        let name = self.children[child].spec.record().name;
        if let Said::Survived = what {
            for Panic { report, .. } in &panics {
                warn!(self.log, "{name} caught a panic at {}: {}", report.location, report.message);
            }
            return;
        }
        panics.iter().for_each(|panic| self.panicked(name, panic));
        let event = match what {
            Said::Started | Said::Survived => {
                self.tell(name, ChildEventKind::Started);
                Event::ChildStarted { child, generation }
            }
            Said::StartFailed(why) => {
                if panics.is_empty() {
                    error!(self.log, "{name} cannot be started: {why}");
                }
                Event::StartFailed { child, generation, why }
            }
            Said::Ended(end) => {
                if let (End::Abnormal(why), true) = (&end, panics.is_empty()) {
                    error!(self.log, "{name} ended: {why}");
                }
                Event::ChildEnded { child, generation, end }
            }
        };
        if !matches!(event, Event::ChildStarted { .. }) {
            self.children[child].life = None;
            self.children[child].nested = None;
        }
        self.advance(event, ctx);
    }
}

impl Handler<Shutdown> for Shell {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.advance(Event::ShutdownRequested, ctx);
    }
}
