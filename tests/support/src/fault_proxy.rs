//! A stand-in for the Cloud SQL Auth Proxy that can be broken on purpose.
//!
//! It forwards a loopback port of its own to a PostgreSQL server, on a thread of its own, so that it goes on
//! whatever the test and the product do with theirs.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::port::Port;

/// What the proxy does with connections. The refusal of connections is [`FaultProxy::stop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes pass as they come.
    Forward,
    /// New connections are accepted and closed at once, as the real proxy does when it cannot reach the
    /// instance. Live ones go on.
    AcceptThenClose,
    /// New connections are accepted and then nothing happens; on live ones nothing passes any more, in either
    /// direction. Nothing is lost: with another mode everything that was held back passes.
    Swallow,
    /// Every byte comes later by half of this round-trip time, in either direction. What is on its way at the
    /// same time travels at the same time.
    Delay(Duration),
    /// So many bytes pass in a second, in either direction; who sends more has to wait, on connections made since.
    Slow(u32),
}

/// The state of a proxy at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Whether it listens.
    pub listening: bool,
    /// Connections accepted since the beginning, in whatever mode.
    pub accepted: u64,
    /// Connections that are open: neither closed by the client nor cut.
    pub live: u64,
    /// Bytes passed on to the server since the beginning.
    pub client_to_server: u64,
    /// Bytes passed on to clients since the beginning.
    pub server_to_client: u64,
    /// How many connections were cut by a hook ([`FaultProxy::cut_client_to_server_after`] and the others).
    pub hooks_triggered: u64,
}

/// The proxy. Dropping it stops it.
pub struct FaultProxy {
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
    port: u16,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy").field("port", &self.port).field("stats", &self.stats()).finish()
    }
}

/// A hook that was set, to wait for its cut.
#[derive(Clone)]
pub struct Trigger {
    shared: Arc<Shared>,
    id: u64,
    what: String,
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trigger").field("what", &self.what).field("triggered", &self.is_triggered()).finish()
    }
}

type Answer = std_mpsc::Sender<io::Result<()>>;

enum Order {
    Start(Answer),
    Stop(Answer),
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Rung at every change, for waiters on a runtime.
    bell: watch::Sender<()>,
    mode: watch::Sender<Mode>,
}

struct State {
    upstream: SocketAddr,
    stats: Stats,
    /// On so many connections, the first ones, nothing passes any more.
    silenced: u64,
    /// Nor on these.
    silenced_alone: Vec<u64>,
    hooks_set: u64,
    /// The hooks that have done what they were set for, by their ids.
    triggered: Vec<u64>,
    /// Those whose bytes may go on their way, and those whose server has taken them and gone.
    delivered: Vec<u64>,
    finished: Vec<u64>,
    /// The first one counts; the others come after it.
    cut_to_server: VecDeque<Budget>,
    cut_to_client: VecDeque<Budget>,
    hold: Option<Hold>,
    recording: Option<Recording>,
}

/// Bytes that may still pass in one direction, and what happens then.
struct Budget {
    left: u64,
    id: u64,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The connection is cut.
    Cut,
    /// Nothing passes on it any more, and nobody is told.
    Silence,
    /// The client loses it, the server does not: what the client had sent waits for [`Trigger::deliver`].
    Part,
}

/// A message of PostgreSQL's protocol that passed; those of a session's start, which have no type, are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// A client's, else a server's.
    pub to_server: bool,
    /// How many bytes had passed in its direction with its last one, over all connections, since the recording began.
    pub end: u64,
    /// Its type.
    pub kind: u8,
}

#[derive(Default)]
struct Recording {
    to_server: u64,
    to_client: u64,
    messages: Vec<Message>,
}

impl Recording {
    /// Adds a chunk, with the messages that end in it: how far into it, and their types.
    fn add(&mut self, direction: Direction, length: u64, ends: &[(u64, u8)]) {
        let to_server = direction == Direction::ToServer;
        let passed = if to_server { &mut self.to_server } else { &mut self.to_client };
        let start = *passed;
        *passed += length;
        let message = |(into, kind): &(u64, u8)| Message { to_server, end: start + into, kind: *kind };
        self.messages.extend(ends.iter().filter(|(into, _)| *into <= length).map(message));
    }
}

struct Hold {
    needle: Vec<u8>,
    id: u64,
}

impl State {
    fn is_silenced(&self, connection: u64) -> bool {
        self.silenced >= connection || self.silenced_alone.contains(&connection)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        self.bell.send_replace(());
        result
    }

    fn trigger(&self, id: u64) {
        self.change(|state| {
            state.triggered.push(id);
            state.stats.hooks_triggered += 1;
        });
    }

    fn wait(&self, what: &str, timeout: Duration, done: impl Fn(&State) -> bool) {
        let (state, result) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        let stats = state.stats;
        drop(state);
        assert!(!result.timed_out(), "waited {timeout:?} for: {what}. Last state: {stats:?}");
    }

    async fn wait_async(&self, what: &str, timeout: Duration, done: impl Fn(&State) -> bool) {
        let mut bell = self.bell.subscribe();
        let waiting = async {
            loop {
                bell.borrow_and_update();
                if done(&self.lock()) {
                    return;
                }
                if bell.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if tokio::time::timeout(timeout, waiting).await.is_err() {
            panic!("waited {timeout:?} for: {what}. Last state: {:?}", self.lock().stats);
        }
    }
}

impl FaultProxy {
    /// Reserves a port. Nobody listens there until [`FaultProxy::start`]: connects are refused.
    pub fn reserve(upstream: SocketAddr) -> FaultProxy {
        let port = Port::reserve();
        let number = port.number();
        let stats = Stats {
            listening: false,
            accepted: 0,
            live: 0,
            client_to_server: 0,
            server_to_client: 0,
            hooks_triggered: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                upstream,
                stats,
                silenced: 0,
                silenced_alone: Vec::new(),
                hooks_set: 0,
                triggered: Vec::new(),
                delivered: Vec::new(),
                finished: Vec::new(),
                cut_to_server: VecDeque::new(),
                cut_to_client: VecDeque::new(),
                hold: None,
                recording: None,
            }),
            changed: Condvar::new(),
            bell: watch::Sender::new(()),
            mode: watch::Sender::new(Mode::Forward),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fault-proxy".to_owned())
            .spawn(move || runtime.block_on(run(for_thread, port, received)))
            .unwrap();
        FaultProxy { shared, orders, thread: Some(thread), port: number }
    }

    /// [`FaultProxy::reserve`] and [`FaultProxy::start`].
    pub fn started(upstream: SocketAddr) -> FaultProxy {
        let proxy = FaultProxy::reserve(upstream);
        proxy.start();
        proxy
    }

    /// Begins to listen; returns when it does. Without effect while it listens.
    pub fn start(&self) {
        if let Err(error) = self.order(Order::Start) {
            panic!(
                "the proxy cannot listen on 127.0.0.1:{}, somebody else took the port: {error}",
                self.port
            );
        }
    }

    /// Stops to listen and cuts all connections (with a reset); returns when that is done. From then on
    /// connects are refused. Mode and hooks stay as they are. Without effect while it does not listen.
    pub fn stop(&self) {
        self.order(Order::Stop).unwrap();
    }

    fn order(&self, order: fn(Answer) -> Order) -> io::Result<()> {
        let (answer, answered) = std_mpsc::channel();
        self.orders.send(order(answer)).unwrap_or_else(|_| panic!("the proxy's thread has ended"));
        answered.recv().unwrap_or_else(|_| panic!("the proxy's thread has ended"))
    }

    /// The port, the same for the proxy's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of the port.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Sets the mode, for new connections and for live ones.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// On the connections that there are nothing passes any more, in either direction, and nobody tells: what lies behind
    /// them is gone. New ones are not concerned.
    pub fn silence_live(&self) {
        self.shared.change(|state| state.silenced = state.stats.accepted);
    }

    /// Sends new connections elsewhere, as when another instance is behind the same port.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        self.shared.change(|state| state.upstream = upstream);
    }

    /// From now on exactly `bytes` bytes, over all connections, reach the server. The connection whose byte
    /// would be the next is cut in both directions; after that everything passes again. Replaces an earlier
    /// hook of this kind.
    pub fn cut_client_to_server_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the cut after {bytes} bytes to the server"), |state, id| {
            state.cut_to_server = [Budget { left: bytes, id, then: Then::Cut }].into();
        })
    }

    /// From now on exactly `bytes` bytes, over all connections, reach clients. The connection whose byte would
    /// be the next is cut in both directions; after that everything passes again. Replaces an earlier hook of
    /// this kind.
    pub fn cut_server_to_client_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the cut after {bytes} bytes to the client"), |state, id| {
            state.cut_to_client = [Budget { left: bytes, id, then: Then::Cut }].into();
        })
    }

    /// One cut more in this direction: its bytes are counted from the one before it, from now on where there is none.
    pub fn cut_client_to_server_again_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the next cut after {bytes} bytes to the server"), |state, id| {
            state.cut_to_server.push_back(Budget { left: bytes, id, then: Then::Cut });
        })
    }

    /// One cut more in this direction: its bytes are counted from the one before it, from now on where there is none.
    pub fn cut_server_to_client_again_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the next cut after {bytes} bytes to the client"), |state, id| {
            state.cut_to_client.push_back(Budget { left: bytes, id, then: Then::Cut });
        })
    }

    /// As [`FaultProxy::cut_client_to_server_after`], but nobody is told: both ends stay open, and nothing passes between
    /// them any more. In the place of a cut in this direction.
    pub fn silence_client_to_server_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the silence after {bytes} bytes to the server"), |state, id| {
            state.cut_to_server = [Budget { left: bytes, id, then: Then::Silence }].into();
        })
    }

    /// As [`FaultProxy::cut_server_to_client_after`], but nobody is told: both ends stay open, and nothing passes between
    /// them any more. In the place of a cut in this direction.
    pub fn silence_server_to_client_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the silence after {bytes} bytes to the client"), |state, id| {
            state.cut_to_client = [Budget { left: bytes, id, then: Then::Silence }].into();
        })
    }

    /// As [`FaultProxy::cut_client_to_server_after`], but only the client learns of it. The server's side stays open, and
    /// whatever the client had sent beyond those bytes lies here until [`Trigger::deliver`]. Triggered when the client has
    /// gone. In the place of a cut in this direction.
    pub fn part_client_from_server_after(&self, bytes: u64) -> Trigger {
        self.hook(format!("the parting after {bytes} bytes to the server"), |state, id| {
            state.cut_to_server = [Budget { left: bytes, id, then: Then::Part }].into();
        })
    }

    /// Begins to write down the messages that pass, anew.
    pub fn record(&self) {
        self.shared.change(|state| state.recording = Some(Recording::default()));
    }

    /// What has passed since [`FaultProxy::record`].
    pub fn recorded(&self) -> Vec<Message> {
        self.shared.lock().recording.as_ref().map_or(vec![], |recording| recording.messages.clone())
    }

    /// The next time that a client sends `needle`, for instance `b"COMMIT"`, the server gets it and carries it
    /// out, and then the connection is cut (with a reset): its answer, and every other from then on, does not
    /// reach the client. Once; replaces an earlier hook of this kind.
    ///
    /// Carried out means: the server has said "ready for query" after the message that contains the needle,
    /// or after the next one that asks for this. `needle` is looked for in the bytes that a client sends, over
    /// the borders of packets.
    pub fn hold_when_client_sends(&self, needle: &[u8]) -> Trigger {
        assert!(!needle.is_empty(), "the needle is empty");
        let what = format!("the cut after a client's {:?}", String::from_utf8_lossy(needle));
        self.hook(what, |state, id| state.hold = Some(Hold { needle: needle.to_vec(), id }))
    }

    /// Takes all hooks that have not cut yet away.
    pub fn clear_hooks(&self) {
        self.shared.change(|state| {
            state.cut_to_server.clear();
            state.cut_to_client.clear();
            state.hold = None;
        });
    }

    fn hook(&self, what: String, set: impl FnOnce(&mut State, u64)) -> Trigger {
        let id = self.shared.change(|state| {
            state.hooks_set += 1;
            set(state, state.hooks_set);
            state.hooks_set
        });
        Trigger { shared: Arc::clone(&self.shared), id, what }
    }

    /// The state at this moment.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats
    }

    /// Connections accepted since the beginning.
    pub fn accepted(&self) -> u64 {
        self.stats().accepted
    }

    /// Connections that are open: neither closed by the client nor cut.
    pub fn live(&self) -> u64 {
        self.stats().live
    }

    /// Blocks the thread until `condition` holds.
    ///
    /// # Panics
    /// When `timeout` is over, with `what` was waited for and the last state.
    pub fn wait_for(&self, what: &str, timeout: Duration, condition: impl Fn(&Stats) -> bool) {
        self.shared.wait(what, timeout, |state| condition(&state.stats));
    }

    /// [`FaultProxy::wait_for`] that leaves the thread to others.
    pub async fn wait_for_async(&self, what: &str, timeout: Duration, condition: impl Fn(&Stats) -> bool) {
        self.shared.wait_async(what, timeout, |state| condition(&state.stats)).await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The thread ends when nobody can order it any more.
        self.orders = mpsc::unbounded_channel().0;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the proxy's thread has panicked");
        }
    }
}

impl Trigger {
    /// Whether the hook has cut a connection.
    pub fn is_triggered(&self) -> bool {
        self.shared.lock().triggered.contains(&self.id)
    }

    /// Blocks the thread until the hook has cut a connection.
    ///
    /// # Panics
    /// When `timeout` is over.
    pub fn wait_until_triggered(&self, timeout: Duration) {
        self.shared.wait(&self.what, timeout, |state| state.triggered.contains(&self.id));
    }

    /// [`Trigger::wait_until_triggered`] that leaves the thread to others.
    pub async fn triggered(&self, timeout: Duration) {
        self.shared.wait_async(&self.what, timeout, |state| state.triggered.contains(&self.id)).await;
    }

    /// Whether the server of a parted connection has gone.
    pub fn is_server_gone(&self) -> bool {
        self.shared.lock().finished.contains(&self.id)
    }

    /// Lets the server have what its client had sent, and then the client's end; returns when the server has gone, too.
    ///
    /// # Panics
    /// When `timeout` is over.
    pub async fn deliver(&self, timeout: Duration) {
        self.shared.change(|state| state.delivered.push(self.id));
        let what = format!("the delivery after {}", self.what);
        self.shared.wait_async(&what, timeout, |state| state.finished.contains(&self.id)).await;
    }
}

async fn run(shared: Arc<Shared>, port: Port, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => match order {
                None => break,
                Some(Order::Start(answer)) => {
                    let result = match listener {
                        Some(_) => Ok(()),
                        None => port.listen().and_then(TcpListener::from_std).map(|new| listener = Some(new)),
                    };
                    shared.change(|state| state.stats.listening = listener.is_some());
                    let _ = answer.send(result);
                }
                Some(Order::Stop(answer)) => {
                    listener = None;
                    connections.shutdown().await;
                    shared.change(|state| state.stats.listening = false);
                    let _ = answer.send(Ok(()));
                }
            },
            accepted = accept => match accepted {
                Ok((client, _)) => {
                    let number = shared.change(|state| {
                        state.stats.accepted += 1;
                        state.stats.live += 1;
                        state.stats.accepted
                    });
                    let client = End::new(client);
                    let live = Live { shared: Arc::clone(&shared), counted: Mutex::new(true) };
                    connections.spawn(serve(Arc::clone(&shared), number, client, live));
                }
                Err(error) => eprintln!("the proxy could not accept a connection: {error}"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

/// Counts a connection as live, until the client closes it or it is cut.
struct Live {
    shared: Arc<Shared>,
    counted: Mutex<bool>,
}

impl Live {
    fn end(&self) {
        let counted = std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        if counted {
            self.shared.change(|state| state.stats.live -= 1);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end();
    }
}

/// One end of a connection. Dropped before its good end, the other side gets a reset.
struct End {
    stream: TcpStream,
    reset: Mutex<bool>,
}

impl End {
    fn new(stream: TcpStream) -> End {
        // Without effect on a connection that has failed meanwhile, which the first read will say.
        let _ = stream.set_nodelay(true);
        End { stream, reset: Mutex::new(true) }
    }

    /// What was written arrives before the end does.
    fn no_reset(&self) {
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(written) => bytes = &bytes[written..],
            }
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if *self.reset.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Bytes and when they may be delivered; no bytes: the end.
type Chunk = (Instant, Vec<u8>);

/// A connection's end before its good end, and the hook that asked for it.
struct Cut(Option<u64>);

async fn serve(shared: Arc<Shared>, number: u64, client: End, live: Live) {
    let mut mode = shared.mode.subscribe();
    if *mode.borrow_and_update() == Mode::AcceptThenClose {
        client.no_reset();
        return;
    }
    if let Mode::Slow(_) = *mode.borrow() {
        // Otherwise the system takes megabytes at once. Without effect on a connection that has failed meanwhile.
        let _ = SockRef::from(&client.stream).set_recv_buffer_size(64 << 10);
    }
    let wire = Mutex::new(Wire::default());
    let (to_server, for_server) = mpsc::channel(1024);
    let (to_client, for_client) = mpsc::channel(1024);
    let from_client = async {
        read_all(&shared, &client, to_server).await;
        live.end();
        Ok(())
    };
    let beyond = async {
        let server = {
            if mode.wait_for(|mode| *mode != Mode::Swallow).await.is_err() {
                return Err(Cut(None));
            }
            let upstream = shared.lock().upstream;
            match TcpStream::connect(upstream).await {
                Ok(stream) => End::new(stream),
                Err(_) => {
                    client.no_reset();
                    return Err(Cut(None));
                }
            }
        };
        let from_server = async {
            read_all(&shared, &server, to_client).await;
            Ok(())
        };
        let ended = tokio::try_join!(
            from_server,
            write_all(&shared, number, &wire, Direction::ToServer, for_server, &server, &client),
            write_all(&shared, number, &wire, Direction::ToClient, for_client, &client, &server),
        );
        // What the server has got, it carries out, cut or not.
        server.no_reset();
        ended.map(|_| ())
    };
    let ended = tokio::try_join!(from_client, beyond);
    if ended.is_ok() {
        client.no_reset();
    }
    // Both ends are closed before anybody is told.
    drop(client);
    live.end();
    if let Err(Cut(Some(hook))) = ended {
        shared.trigger(hook);
    }
}

async fn read_all(shared: &Shared, from: &End, queue: mpsc::Sender<Chunk>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // A connection that broke has ended, too.
        let length = from.read(&mut buffer).await.unwrap_or(0);
        let mode = *shared.mode.borrow();
        let delay = match mode {
            Mode::Delay(round_trip) => round_trip / 2,
            _ => Duration::ZERO,
        };
        if let Mode::Slow(bytes_per_s) = mode {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / f64::from(bytes_per_s))).await;
        }
        let sent = queue.send((Instant::now() + delay, buffer[..length].to_vec())).await;
        if length == 0 || sent.is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

async fn write_all(
    shared: &Shared,
    number: u64,
    wire: &Mutex<Wire>,
    direction: Direction,
    mut queue: mpsc::Receiver<Chunk>,
    to: &End,
    from: &End,
) -> Result<(), Cut> {
    let mut mode = shared.mode.subscribe();
    while let Some((due, bytes)) = queue.recv().await {
        // A sleep of no time takes a millisecond: the runtime's timers do not know less.
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        if mode.wait_for(|mode| *mode != Mode::Swallow).await.is_err() {
            return Err(Cut(None));
        }
        if shared.lock().is_silenced(number) {
            std::future::pending::<()>().await;
        }
        let (held, parted) = {
            let wire = wire.lock().unwrap_or_else(PoisonError::into_inner);
            (wire.held, wire.parted)
        };
        if let (Direction::ToClient, Some(id)) = (direction, parted) {
            if bytes.is_empty() {
                shared.change(|state| state.finished.push(id));
                return Ok(());
            }
            continue;
        }
        if bytes.is_empty() {
            if let (Direction::ToClient, Some(id)) = (direction, held) {
                return Err(Cut(Some(id)));
            }
            // The other side may have ended as well.
            let _ = SockRef::from(&to.stream).shutdown(Shutdown::Write);
            return Ok(());
        }
        let length = bytes.len() as u64;
        let (allowed, cut) = {
            let mut state = shared.lock();
            let mut wire = wire.lock().unwrap_or_else(PoisonError::into_inner);
            let mut ends = vec![];
            let (allowed, cut) = match direction {
                Direction::ToServer => {
                    let (allowed, cut) = spend(&mut state.cut_to_server, length);
                    let passing = &bytes[..allowed as usize];
                    if wire.held.is_none() && wire.finds(passing, state.hold.as_ref()) {
                        wire.held = state.hold.take().map(|hold| hold.id);
                    }
                    wire.client_sends(passing, &mut ends);
                    (allowed, cut)
                }
                Direction::ToClient => {
                    let carried_out = wire.server_sends(&bytes, &mut ends);
                    match wire.held {
                        Some(id) => (0, carried_out.then_some((id, Then::Cut))),
                        None => spend(&mut state.cut_to_client, length),
                    }
                }
            };
            if let Some(recording) = &mut state.recording {
                recording.add(direction, allowed, &ends);
            }
            match cut {
                Some((_, Then::Silence)) => state.silenced_alone.push(number),
                Some((id, Then::Part)) => wire.parted = Some(id),
                Some((_, Then::Cut)) | None => {}
            }
            (allowed, cut)
        };
        // Counted before, so that whoever has received bytes finds them counted.
        shared.change(|state| match direction {
            Direction::ToServer => state.stats.client_to_server += allowed,
            Direction::ToClient => state.stats.server_to_client += allowed,
        });
        to.write(&bytes[..allowed as usize]).await.map_err(|_| Cut(None))?;
        match cut {
            None => {}
            Some((id, Then::Cut)) => {
                if allowed > 0 {
                    to.no_reset();
                }
                return Err(Cut(Some(id)));
            }
            Some((id, Then::Silence)) => {
                shared.trigger(id);
                std::future::pending::<()>().await;
            }
            Some((id, Then::Part)) => {
                let late =
                    sent_before_the_end(shared, id, bytes[allowed as usize..].to_vec(), &mut queue, from)
                        .await;
                // The server may have given up meanwhile.
                let _ = to.write(&late).await;
                let _ = SockRef::from(&to.stream).shutdown(Shutdown::Write);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Lets the client see the end of its connection, gathers what it had sent until it saw it, and waits for the order to deliver
/// that.
async fn sent_before_the_end(
    shared: &Shared,
    id: u64,
    mut late: Vec<u8>,
    queue: &mut mpsc::Receiver<Chunk>,
    client: &End,
) -> Vec<u8> {
    // It may have gone by itself.
    let _ = SockRef::from(&client.stream).shutdown(Shutdown::Write);
    while let Some((_, bytes)) = queue.recv().await {
        if bytes.is_empty() {
            break;
        }
        late.extend(bytes);
    }
    shared.trigger(id);
    let mut bell = shared.bell.subscribe();
    loop {
        bell.borrow_and_update();
        if shared.lock().delivered.contains(&id) || bell.changed().await.is_err() {
            return late;
        }
    }
}

/// How many of `length` bytes may pass, and the hook that acts after them.
fn spend(budgets: &mut VecDeque<Budget>, length: u64) -> (u64, Option<(u64, Then)>) {
    match budgets.front_mut() {
        Some(Budget { left, .. }) if *left >= length => {
            *left -= length;
            (length, None)
        }
        _ => match budgets.pop_front() {
            Some(Budget { left, id, then }) => (left, Some((id, then))),
            None => (length, None),
        },
    }
}

/// What is known of one connection's conversation: as much of PostgreSQL's protocol as it takes to tell when
/// the server has carried out what a client sent. Every `Query`, `Sync` and `FunctionCall` is answered by one
/// `ReadyForQuery`, in their order.
#[derive(Default)]
struct Wire {
    client: Frames,
    server: Frames,
    /// Asked for and not yet answered: where the message ended in the client's stream, and its type.
    asked: VecDeque<(u64, u8)>,
    /// The last bytes of the client, in which the next ones may complete the needle.
    recent: Vec<u8>,
    /// Where the needle ended in the client's stream.
    needle_end: u64,
    /// The hook that holds the server's answers back.
    held: Option<u64>,
    /// The hook that took the client away from its server.
    parted: Option<u64>,
}

impl Wire {
    /// Whether the client's next `bytes` complete the hook's needle.
    fn finds(&mut self, bytes: &[u8], hold: Option<&Hold>) -> bool {
        /// As long as needles may be.
        const REMEMBERED: usize = 1024;
        let before = self.recent.len();
        self.recent.extend_from_slice(bytes);
        let found = hold.and_then(|hold| {
            let needle = &hold.needle[..];
            // A needle that was complete before the hook was set does not count.
            let from = (before + 1).saturating_sub(needle.len());
            let start = self.recent[from..].windows(needle.len()).position(|window| window == needle)?;
            Some(from + start + needle.len() - before)
        });
        if let Some(length) = found {
            self.needle_end = self.client.offset + length as u64;
        }
        self.recent.drain(..self.recent.len().saturating_sub(REMEMBERED));
        found.is_some()
    }

    fn client_sends(&mut self, bytes: &[u8], ends: &mut Vec<(u64, u8)>) {
        let (asked, start) = (&mut self.asked, self.client.offset);
        self.client.advance(bytes, true, |end, kind| {
            ends.push((end - start, kind));
            if matches!(kind, b'Q' | b'S' | b'F') {
                asked.push_back((end, kind));
            }
        });
    }

    /// Whether with these bytes the server has carried out what contained the needle.
    fn server_sends(&mut self, bytes: &[u8], ends: &mut Vec<(u64, u8)>) -> bool {
        let (asked, needle_end, start) = (&mut self.asked, self.needle_end, self.server.offset);
        let mut carried_out = false;
        let mut greeted = self.server.greeted;
        self.server.advance(bytes, false, |end, kind| {
            ends.push((end - start, kind));
            match kind {
                // The first one greets the client, nobody asked for it.
                b'Z' if !greeted => greeted = true,
                b'Z' => carried_out |= asked.pop_front().is_some_and(|(end, _)| end >= needle_end),
                // While it copies in, the server ignores the `Sync` that came with the start of it.
                b'G' if asked.front().is_some_and(|(_, kind)| *kind == b'S') => drop(asked.pop_front()),
                _ => {}
            }
        });
        self.server.greeted = greeted;
        carried_out
    }
}

/// Finds the messages in one direction of a connection.
#[derive(Default)]
struct Frames {
    /// How many bytes have passed.
    offset: u64,
    /// The message's first bytes: type and length.
    header: Vec<u8>,
    /// Bytes of the message's body to come.
    body: u64,
    /// Client: past the messages without a type. Server: past the first `ReadyForQuery`.
    greeted: bool,
    /// Client: the code that tells requests for encryption from the start of a session.
    code: Vec<u8>,
}

impl Frames {
    fn advance(&mut self, bytes: &[u8], client: bool, mut message: impl FnMut(u64, u8)) {
        /// The protocol's first messages start with a length and one of these codes, or a version.
        const SSL_REQUEST: u32 = 80_877_103;
        const GSS_REQUEST: u32 = 80_877_104;
        for &byte in bytes {
            self.offset += 1;
            let untyped = client && !self.greeted;
            let header = if untyped { 4 } else { 5 };
            if self.header.len() < header {
                self.header.push(byte);
                // A server refuses encryption by a single byte; the tests' server always does.
                if !client && !self.greeted && self.header[0] == b'N' && self.offset <= 2 {
                    self.header.clear();
                    continue;
                }
                if self.header.len() < header {
                    continue;
                }
                let length =
                    self.header[header - 4..].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
                self.body = length.saturating_sub(4);
            } else {
                self.body -= 1;
                if untyped && self.code.len() < 4 {
                    self.code.push(byte);
                }
            }
            if self.body == 0 {
                if untyped {
                    let code = self.code.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
                    self.greeted = !matches!(code, SSL_REQUEST | GSS_REQUEST);
                    self.code.clear();
                } else {
                    message(self.offset, self.header[0]);
                }
                self.header.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use tokio_postgres::{Client, NoTls};

    use super::*;
    use crate::{Database, Postgres};

    const SOON: Duration = Duration::from_secs(5);

    async fn bench() -> (FaultProxy, Database) {
        let server = Postgres::shared();
        let database = server.create_database().await;
        database.execute_batch("CREATE TABLE t (a int)").await;
        (FaultProxy::started(server.address()), database)
    }

    async fn rows(database: &Database) -> i64 {
        database.connect().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }

    async fn works(client: &Client) -> bool {
        client.query_one("SELECT 1", &[]).await.is_ok()
    }

    #[tokio::test]
    async fn forwards_counts_and_refuses_when_stopped() {
        let (proxy, database) = bench().await;
        proxy.stop();
        let error = std::net::TcpStream::connect(proxy.address()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        proxy.start();
        proxy.start();
        let client = database.connect_via(proxy.port()).await;
        let other = database.connect_via(proxy.port()).await;
        let long: String = client.query_one("SELECT repeat('x', 3000000)", &[]).await.unwrap().get(0);
        assert_eq!(long.len(), 3_000_000);
        let stats = proxy.stats();
        assert!(
            stats.listening && stats.server_to_client > 3_000_000 && stats.client_to_server > 100,
            "{stats:?}"
        );
        assert_eq!((stats.accepted, stats.live), (2, 2));
        drop(other);
        proxy.wait_for_async("one live connection", SOON, |stats| stats.live == 1).await;
        assert!(works(&client).await);
        proxy.stop();
        assert!(!works(&client).await);
        assert_eq!((proxy.accepted(), proxy.live(), proxy.stats().listening), (2, 0, false));
        for _ in 0..5 {
            assert!(database.config_via(proxy.port()).connect(NoTls).await.is_err());
            proxy.start();
            assert!(works(&database.connect_via(proxy.port()).await).await);
            proxy.stop();
        }
    }

    #[test]
    fn the_reserved_port_is_nobody_else_s() {
        let proxy = FaultProxy::reserve(([127, 0, 0, 1], 1).into());
        let taken = bind_as_a_stranger(proxy.address());
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(std::net::TcpStream::connect(proxy.address()).is_err());
        // Nobody is there to forward to: accepted and closed, as by the real one.
        proxy.start();
        let mut stream = std::net::TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }

    fn bind_as_a_stranger(address: SocketAddr) -> io::Result<()> {
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?.bind(&address.into())
    }

    #[tokio::test]
    async fn accepts_and_closes_while_live_connections_go_on() {
        let (proxy, database) = bench().await;
        let client = database.connect_via(proxy.port()).await;
        proxy.set_mode(Mode::AcceptThenClose);
        assert!(database.config_via(proxy.port()).connect(NoTls).await.is_err());
        assert_eq!(proxy.accepted(), 2);
        assert!(works(&client).await);
        proxy.set_mode(Mode::Forward);
        assert!(works(&database.connect_via(proxy.port()).await).await);
    }

    #[tokio::test]
    async fn swallows_on_new_and_live_connections_and_loses_nothing() {
        let (proxy, database) = bench().await;
        let client = database.connect_via(proxy.port()).await;
        proxy.set_mode(Mode::Swallow);
        let (port, config) = (proxy.port(), database.config_via(proxy.port()));
        let new = tokio::spawn(async move { config.connect(NoTls).await.map(|_| ()) });
        let mut query = std::pin::pin!(client.execute("INSERT INTO t VALUES (1)", &[]));
        let silent = Duration::from_millis(300);
        assert!(tokio::time::timeout(silent, &mut query).await.is_err());
        assert!(!new.is_finished());
        assert_eq!(rows(&database).await, 0);
        // Who gives up is not counted any more.
        let impatient = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        proxy.wait_for("three connections", SOON, |stats| stats.live == 3);
        drop(impatient);
        proxy.wait_for("the impatient one to be gone", SOON, |stats| stats.live == 2);
        proxy.set_mode(Mode::Forward);
        assert_eq!(query.await.unwrap(), 1);
        new.await.unwrap().unwrap();
        assert_eq!(rows(&database).await, 1);
    }

    #[tokio::test]
    async fn silences_the_connections_that_there_are() {
        let (proxy, database) = bench().await;
        let old = database.connect_via(proxy.port()).await;
        proxy.silence_live();
        let new = database.connect_via(proxy.port()).await;
        assert!(works(&new).await);
        let silent = Duration::from_millis(300);
        assert!(tokio::time::timeout(silent, works(&old)).await.is_err());
        assert!(works(&new).await);
    }

    #[tokio::test]
    async fn delays_a_round_trip_and_not_throughput() {
        let (proxy, database) = bench().await;
        let client = database.connect_via(proxy.port()).await;
        proxy.set_mode(Mode::Delay(Duration::from_millis(200)));
        let started = Instant::now();
        client.simple_query("SELECT 1").await.unwrap();
        let one = started.elapsed();
        assert!(one >= Duration::from_millis(200) && one < Duration::from_millis(2000), "{one:?}");
        // Twenty at once, and 4 MB, take about as long as one: one after the other it would be 4 s.
        let started = Instant::now();
        let mut pending = Vec::new();
        let client = Arc::new(client);
        for _ in 0..20 {
            let client = Arc::clone(&client);
            pending.push(tokio::spawn(async move {
                client.simple_query("SELECT repeat('x', 200000)").await.unwrap();
            }));
        }
        for query in pending {
            query.await.unwrap();
        }
        let all = started.elapsed();
        assert!(all >= Duration::from_millis(200) && all < Duration::from_millis(3000), "{all:?}");
    }

    #[tokio::test]
    async fn the_cloud_can_be_another_one() {
        let (proxy, _) = bench().await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        proxy.set_upstream(listener.local_addr().unwrap());
        let mut client = std::net::TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        server.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        // The end of one direction leaves the other open.
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut read).unwrap(), 0);
        server.write_all(b"bye").unwrap();
        drop(server);
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "bye");
    }

    #[test]
    fn cuts_at_the_byte_in_either_direction() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = FaultProxy::started(listener.local_addr().unwrap());
        for to_server in [true, false] {
            for bytes in [0, 1, 7, 99_999] {
                let client = std::net::TcpStream::connect(proxy.address()).unwrap();
                let (server, _) = listener.accept().unwrap();
                let (mut from, mut to) = if to_server { (client, server) } else { (server, client) };
                let trigger = if to_server {
                    proxy.cut_client_to_server_after(bytes)
                } else {
                    proxy.cut_server_to_client_after(bytes)
                };
                from.write_all(&vec![b'x'; bytes as usize]).unwrap();
                let mut arrived = vec![0; bytes as usize];
                to.read_exact(&mut arrived).unwrap();
                assert!(!trigger.is_triggered());
                from.write_all(b"y").unwrap();
                trigger.wait_until_triggered(SOON);
                let mut rest = Vec::new();
                let _ = to.read_to_end(&mut rest);
                assert!(rest.is_empty(), "{rest:?}");
                assert!(!matches!(from.read(&mut [0; 1]), Ok(1..)));
                assert_eq!(proxy.live(), 0);
            }
        }
        assert_eq!(proxy.stats().hooks_triggered, 8);
    }

    /// The client is told, the server is not, and what the client had sent is carried out whenever it is delivered.
    #[tokio::test]
    async fn bytes_of_a_client_that_has_gone_are_delivered_late() {
        let (proxy, database) = bench().await;
        for bytes in [0, 3] {
            // A client that is dropped says good-bye a little later, which counts as bytes.
            proxy.wait_for_async("the one before to have gone", SOON, |stats| stats.live == 0).await;
            let client = database.connect_via(proxy.port()).await;
            let parting = proxy.part_client_from_server_after(bytes);
            let before = rows(&database).await;
            assert!(client.batch_execute("INSERT INTO t VALUES (1)").await.is_err());
            parting.triggered(SOON).await;
            assert_eq!((rows(&database).await, proxy.live()), (before, 0));
            assert!(!parting.is_server_gone());
            parting.deliver(SOON).await;
            assert!(parting.is_server_gone());
            assert_eq!(rows(&database).await, before + 1);
            assert!(works(&database.connect_via(proxy.port()).await).await);
        }
    }

    /// From the byte on nobody hears anything, and others do.
    #[tokio::test]
    async fn one_connection_falls_silent_at_the_byte() {
        let (proxy, database) = bench().await;
        for to_server in [true, false] {
            let client = database.connect_via(proxy.port()).await;
            client.batch_execute("SELECT").await.unwrap();
            let silence = if to_server {
                proxy.silence_client_to_server_after(4)
            } else {
                proxy.silence_server_to_client_after(4)
            };
            let before = rows(&database).await;
            let insert = client.batch_execute("INSERT INTO t VALUES (1)");
            assert!(tokio::time::timeout(Duration::from_millis(300), insert).await.is_err());
            assert!(silence.is_triggered());
            assert_eq!(rows(&database).await, before + i64::from(!to_server));
            assert!(works(&database.connect_via(proxy.port()).await).await);
        }
    }

    /// A recorded message ends where it ends: cut there, it has passed, and one byte earlier it has not.
    #[tokio::test]
    async fn records_where_messages_end() {
        let (proxy, database) = bench().await;
        let client = database.connect_via(proxy.port()).await;
        proxy.record();
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        let messages = proxy.recorded();
        let kinds = |to_server| -> Vec<u8> {
            messages.iter().filter(|m| m.to_server == to_server).map(|m| m.kind).collect()
        };
        assert_eq!((kinds(true), kinds(false)), (b"Q".to_vec(), b"CZ".to_vec()));
        let query = messages.iter().find(|message| message.to_server).unwrap().end;
        for (bytes, arrives) in [(query - 1, 0), (query, 1)] {
            let client = database.connect_via(proxy.port()).await;
            let before = rows(&database).await;
            let cut = proxy.cut_client_to_server_after(bytes);
            assert_eq!(client.batch_execute("INSERT INTO t VALUES (1)").await.is_ok(), arrives == 1);
            let _ = client.batch_execute("SELECT").await;
            cut.triggered(SOON).await;
            assert_eq!(rows(&database).await, before + arrives);
        }
    }

    /// The bytes of a second cut are counted from the first.
    #[tokio::test]
    async fn one_cut_follows_the_other() {
        let (proxy, database) = bench().await;
        let mut clients = vec![];
        for _ in 0..3 {
            clients.push(database.connect_via(proxy.port()).await);
        }
        let cuts = [proxy.cut_client_to_server_after(4), proxy.cut_client_to_server_again_after(0)];
        for (at, client) in clients.iter().enumerate() {
            assert_eq!(client.batch_execute("INSERT INTO t VALUES (1)").await.is_ok(), at == 2);
            if let Some(cut) = cuts.get(at) {
                // Its client may hear of it first.
                cut.triggered(SOON).await;
            }
            assert_eq!(cuts.iter().filter(|cut| cut.is_triggered()).count(), (at + 1).min(2));
        }
        assert_eq!(rows(&database).await, 1);
    }

    #[tokio::test]
    async fn a_commit_that_does_not_reach_the_server_is_none() {
        let (proxy, database) = bench().await;
        let client = database.connect_via(proxy.port()).await;
        client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
        let trigger = proxy.cut_client_to_server_after(4);
        assert!(client.batch_execute("COMMIT").await.is_err());
        trigger.triggered(SOON).await;
        assert_eq!(rows(&database).await, 0);
    }

    #[tokio::test]
    async fn committed_there_and_not_acknowledged_here() {
        let (proxy, database) = bench().await;
        for round in 1..=8 {
            let mut client = database.connect_via(proxy.port()).await;
            let trigger = proxy.hold_when_client_sends(b"COMMIT");
            let transaction = client.transaction().await.unwrap();
            transaction.execute("INSERT INTO t VALUES ($1)", &[&round]).await.unwrap();
            assert!(!trigger.is_triggered());
            assert!(transaction.commit().await.is_err());
            trigger.triggered(SOON).await;
            assert_eq!(rows(&database).await, i64::from(round));
            assert!(!works(&client).await);
        }
        // Once set, once cut.
        assert!(database.connect_via(proxy.port()).await.batch_execute("BEGIN; COMMIT").await.is_ok());
    }

    #[tokio::test]
    async fn the_answer_waited_for_is_that_of_the_message_with_the_needle() {
        let (proxy, database) = bench().await;
        for copies in [false, true] {
            let client = database.connect_via(proxy.port()).await;
            if copies {
                let sink = client.copy_in::<_, &[u8]>("COPY t FROM STDIN").await.unwrap();
                assert_eq!(std::pin::pin!(sink).finish().await.unwrap(), 0);
            }
            let trigger = proxy.hold_when_client_sends(b"VALUES (77)");
            // Sent together: the server answers the first long before it has carried out the last.
            let (_, slow, held) = tokio::join!(
                client.query("SELECT 1", &[]),
                client.batch_execute("SELECT pg_sleep(0.1)"),
                client.batch_execute("SELECT pg_sleep(0.1); INSERT INTO t VALUES (77)"),
            );
            assert!(slow.is_err() && held.is_err());
            trigger.triggered(SOON).await;
            assert_eq!(rows(&database).await, 1 + i64::from(copies));
        }
        // With a prepared statement the needle is in its parameters.
        let client = database.connect_via(proxy.port()).await;
        let statement = client.prepare("INSERT INTO t SELECT length($1)").await.unwrap();
        let trigger = proxy.hold_when_client_sends("Nadel im Heuhaufen".as_bytes());
        let hay = format!("{}Nadel im Heuhaufen{}", "x".repeat(200_000), "y".repeat(200_000));
        assert!(client.execute(&statement, &[&hay]).await.is_err());
        trigger.triggered(SOON).await;
        assert_eq!(rows(&database).await, 3);
    }
}
