//! What the control plane costs while nothing happens: asking the circuit breaker, and looking for a listener.
//!
//! `cargo bench -p tidewater-actors --bench control_plane`. Anything else than `cargo bench` gets no figures.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use slog::Logger;
use tidewater_actors::circuit_breaker::{CircuitBreaker, Gate};
use tidewater_actors::core::availability::Listening;
use tidewater_actors::core::backoff::Backoff;
use tidewater_actors::core::circuit::{CircuitPolicy, Mode};
use tidewater_actors::endpoint::Endpoint;
use tidewater_actors::messages::{AvailabilityChanged, GetCircuitReport, ProxyStatus};
use tidewater_actors::processes::running_proxies;
use tidewater_actors::supervision::Context;
use tidewater_test_support::bench::{Comparison, Figure};

const ROUNDS: usize = 101;
const ASKS: u32 = 200_000;
const LOOKS: u32 = 20;
/// Two sockets each.
const CONNECTIONS: usize = 25_000;
/// Outgoing ports are few, about 28,000 for each listener.
const LISTENERS: usize = 10;
const HELPERS: usize = 20;
/// This program as a helper: it opens so many connections and keeps them until its input ends.
const HOLD: &str = "--hold";

fn main() {
    if let Some(wanted) = std::env::args().skip_while(|argument| argument != HOLD).nth(1) {
        return hold(wanted.parse().unwrap());
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    ask_the_breaker();
    look_for_a_listener();
    Comparison::new("processes: not for every second", 11)
        .line("running_proxies()", 1, || drop(black_box(running_proxies())))
        .run();
}

fn ask_the_breaker() {
    let word = AtomicU64::new(1);
    let (open, closed) = (Gate::new(), closed_gate());
    let load = || {
        for _ in 0..ASKS {
            black_box(black_box(&word).load(Ordering::Acquire));
        }
    };
    let ask = |gate: &Gate| {
        for _ in 0..ASKS {
            let _ = black_box(black_box(gate).permit());
        }
    };
    Comparison::new("asking the circuit breaker, one thread", ROUNDS)
        .line("twin: one atomic load", ASKS, load)
        .line("Gate::permit(), open", ASKS, || ask(&open))
        .line("Gate::permit() and drop, closed", ASKS, || ask(&closed))
        .run();
    Comparison::new("asking the circuit breaker, two threads at once", ROUNDS)
        .line("twin: one atomic load", ASKS, || twice(load))
        .line("Gate::permit(), open", ASKS, || twice(|| ask(&open)))
        .line("Gate::permit() and drop, closed", ASKS, || twice(|| ask(&closed)))
        .run();
}

fn twice(work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(&work);
        work();
    });
}

/// Closed by a breaker, which is gone afterwards; the gate stays as it was.
fn closed_gate() -> Gate {
    let gate = Gate::new();
    actix::System::new().block_on(async {
        let second = Duration::from_secs(1);
        let policy = CircuitPolicy {
            failure_threshold: 1,
            success_threshold: 1,
            open_time: Backoff::try_new(second, second).unwrap(),
        };
        let log = Logger::root(slog::Discard, slog::o!());
        let breaker = Context::new().run(CircuitBreaker::new(policy, gate.clone(), None, log));
        let available = AvailabilityChanged { epoch: 1, status: ProxyStatus::Available, class: None };
        breaker.send(available).await.unwrap();
        gate.permit().unwrap().finish(Ok(()));
        breaker.send(GetCircuitReport).await.unwrap();
    });
    assert_eq!(gate.published().mode, Mode::Closed);
    gate
}

fn look_for_a_listener() {
    let listeners = listen();
    look(&listeners[0], "no connections of ours");

    // On the very port that is looked at, and the rest in helpers: files are limited per process.
    let own = connect(&listeners, CONNECTIONS);
    let mut open = own.len();
    let mut helpers = Vec::new();
    while open < CONNECTIONS && helpers.len() < HELPERS {
        let helper = Helper::start(CONNECTIONS - open);
        open += helper.connections;
        helpers.push(helper);
    }
    look(&listeners[0], &format!("{} more sockets open", 2 * open));

    drop(own);
    helpers.into_iter().for_each(Helper::stop);
    look(&listeners[0], "all of them closed, what is left waits in TIME_WAIT");
}

struct Helper {
    process: Child,
    connections: usize,
}

impl Helper {
    fn start(wanted: usize) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([HOLD, &wanted.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { process, connections: line.trim().parse().unwrap() }
    }

    fn stop(mut self) {
        // Closes its input first.
        self.process.wait().unwrap();
    }
}

fn hold(wanted: usize) {
    let listeners = listen();
    let connections = connect(&listeners, wanted);
    println!("{}", connections.len());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn listen() -> Vec<TcpListener> {
    (0..LISTENERS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
}

/// The twin is the cheapest way of finding out by connecting: a connection that is refused.
fn look(listener: &TcpListener, state: &str) {
    let port = listener.local_addr().unwrap().port();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let there = Endpoint::new("127.0.0.1", port);
    let missing = Endpoint::new("127.0.0.1", nobody.port());
    let times = |endpoint: &Endpoint, expected: Listening| {
        for _ in 0..LOOKS {
            assert_eq!(endpoint.look(), expected);
        }
    };
    let refused = || {
        for _ in 0..LOOKS {
            assert_eq!(TcpStream::connect(nobody).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    };
    println!("\n{}", sockets());
    let figures = Comparison::new(&format!("looking for a listener: {state}"), ROUNDS)
        .line("twin: one refused connect()", LOOKS, refused)
        .line("Endpoint::look(), a listener", LOOKS, || times(&there, Listening::Yes))
        .line("Endpoint::look(), none", LOOKS, || times(&missing, Listening::No))
        .run();
    for Figure { name, median, .. } in figures.iter().skip(1) {
        println!("  {name}, once per second: {:.5} % of a core", median / 1e9 * 100.0);
    }
}

/// As many connections as the limit of open files allows.
fn connect(listeners: &[TcpListener], wanted: usize) -> Vec<(TcpStream, TcpStream)> {
    allow_all_files();
    let pairs = listeners.iter().cycle().take(wanted);
    let pairs = pairs.map_while(|listener| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).ok()?;
        Some((client, listener.accept().ok()?.0))
    });
    let mut connections: Vec<_> = pairs.collect();
    if connections.len() < wanted {
        // Whoever goes on needs a few files.
        connections.truncate(connections.len().saturating_sub(20));
    }
    connections
}

fn allow_all_files() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    }
}

/// What the kernel says of its TCP sockets.
fn sockets() -> String {
    let counts = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    counts.lines().find(|line| line.starts_with("TCP:")).unwrap_or("TCP: not counted here").to_owned()
}
