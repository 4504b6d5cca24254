//! The way to the server: from a host name to the first bytes that show whether PostgreSQL answers at all.
//!
//! ```text
//! resolve ─▶ connect, address by address ─▶ log in through a `Line`, which reads the first bytes along ─▶ the pool
//! ```
//!
//! The driver would do the same, but for three things: it waits for the rest of whatever the first bytes of an SSH or
//! MySQL server seem to announce, it reports the last address only, and it gives each of them the whole time.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use deadpool_postgres::Connect;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::config::Host;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls};

use crate::core::failure::FailureClass;

type Result<T> = std::result::Result<T, tokio_postgres::Error>;
type Opened = (Client, Connection<Line, NoTlsStream>);

/// Why nobody was met who speaks PostgreSQL. It travels inside of the driver's error: [`Obstacle::of`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    /// The name has no address, or nobody could say.
    #[error("{host} cannot be resolved: {source}")]
    Name { host: String, source: io::Error },
    /// The connection was not made.
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    /// Neither a connection nor an answer on it.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// Something else answers: the beginning of what it says, printable.
    #[error("what answers is not PostgreSQL (\"{0}\")")]
    Foreign(String),
    /// A server that takes our start-up message for the beginning of a TLS handshake.
    #[error("what answers expects TLS")]
    ExpectsTls,
    /// An error in the form of before protocol 3.0, without a code. PostgreSQL still says in it that it cannot
    /// start a process for the connection; old ones said more.
    #[error("{0}")]
    Unversioned(String),
}

impl Obstacle {
    /// What stood in the way, if it was found here.
    pub(super) fn of(error: &tokio_postgres::Error) -> Option<&Self> {
        let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
        source.get_ref()?.downcast_ref()
    }

    /// What it means.
    pub(super) fn class(&self) -> FailureClass {
        match self {
            Self::Name { .. } => FailureClass::CheckFailed,
            Self::Connect { source, .. } => class_of_connect(source),
            Self::Silent(_) => FailureClass::NotAnswering,
            Self::Foreign(_) | Self::ExpectsTls => FailureClass::NotOurs,
            Self::Unversioned(_) => FailureClass::Busy,
        }
    }

    /// What somebody can do about it, where the settings are `host` and `port`.
    pub(super) fn remedy(&self, host: &str, port: u16) -> Option<String> {
        match self {
            Self::Name { .. } => {
                Some(format!("check CLOUD_SQL_PROXY_HOST ({host}) and this machine's name resolution"))
            }
            Self::Connect { source, .. } if class_of_connect(source) == FailureClass::CheckFailed => {
                Some(match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "let this process connect there: a firewall of this machine or the rights of the socket's \
                         folder are in the way"
                            .to_owned()
                    }
                    _ if out_of_files(source) => "let this process open more files (ulimit -n)".to_owned(),
                    _ => format!("check CLOUD_SQL_PROXY_HOST ({host}) and this machine's network"),
                })
            }
            Self::Foreign(_) => Some(point_at_proxy(host, port)),
            Self::ExpectsTls => Some(format!(
                "Tidewater speaks no TLS, the Cloud SQL Auth Proxy does it: {}",
                point_at_proxy(host, port)
            )),
            Self::Connect { .. } | Self::Silent(_) | Self::Unversioned(_) => None,
        }
    }

    /// Which of several addresses has the most to say about what is there.
    fn weight(&self) -> u8 {
        match (self, self.class()) {
            // An address that cannot be used from here, `::1` on a machine without IPv6, leaves it to the others.
            (Self::Connect { source, .. }, _) if elsewhere(source) => 0,
            (_, FailureClass::NotRunning) => 1,
            (_, FailureClass::NotAnswering) => 2,
            // The rest of the addresses was not tried, or something answered.
            _ => 3,
        }
    }
}

impl From<Obstacle> for io::Error {
    fn from(obstacle: Obstacle) -> Self {
        let kind = match &obstacle {
            Obstacle::Connect { source, .. } => source.kind(),
            Obstacle::Silent(_) => io::ErrorKind::TimedOut,
            Obstacle::Name { .. } => io::ErrorKind::Other,
            Obstacle::Foreign(_) | Obstacle::ExpectsTls | Obstacle::Unversioned(_) => {
                io::ErrorKind::InvalidData
            }
        };
        Self::new(kind, obstacle)
    }
}

/// What to set when somebody else answers.
pub(super) fn point_at_proxy(host: &str, port: u16) -> String {
    format!(
        "point CLOUD_SQL_PROXY_HOST ({host}) and CLOUD_SQL_PROXY_PORT ({port}) at the Cloud SQL Auth Proxy"
    )
}

/// What an error of `connect` says about the proxy.
fn class_of_connect(error: &io::Error) -> FailureClass {
    match error.kind() {
        // Somebody had to answer for a refusal: the machine is there, the listener is not. Likewise the folder of a
        // socket, without the socket.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => FailureClass::NotRunning,
        // Nobody took the connection: packets vanish, a router on the way has nobody to hand them to, or the queue of a
        // Unix socket is full, since its owner accepts nothing.
        io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted => FailureClass::NotAnswering,
        // Everything else kept the question from leaving this machine: no route (ENETUNREACH), no address or port to
        // send from (EADDRNOTAVAIL), no file descriptor (EMFILE, ENFILE), no right (EACCES, EPERM), no such family.
        _ => FailureClass::CheckFailed,
    }
}

/// EMFILE and ENFILE, which have no kind of their own: these are their numbers on every Unix.
fn out_of_files(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

/// Whether this address cannot be used from here while another one may.
fn elsewhere(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    )
}

/// Connects for the pool.
pub(super) struct Dialer {
    /// The longest that all of it may take, over all addresses of the host and the log-in.
    pub(super) limit: Duration,
}

impl Connect for Dialer {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>)>> + Send + '_>> {
        let (config, limit) = (config.clone(), self.limit);
        Box::pin(async move {
            let (client, connection) = dial(&config, limit).await?;
            // The pool aborts this task when it drops the client, and the client learns of its end by itself.
            let task = tokio::spawn(async move { drop(connection.await) });
            Ok((client, task))
        })
    }
}

async fn dial(config: &Config, limit: Duration) -> Result<Opened> {
    let deadline = Instant::now() + limit;
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let addresses = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => {
            let found = timeout_at(deadline, lookup_host((host.as_str(), port))).await;
            match found.unwrap_or_else(|_| Err(Obstacle::Silent(limit).into())) {
                Ok(found) => found.map(Address::Tcp).collect(),
                Err(source) => return fail(config, Obstacle::Name { host: host.clone(), source }).await,
            }
        }
        Some(Host::Unix(folder)) => vec![Address::Unix(folder.join(format!(".s.PGSQL.{port}")))],
        None => vec![],
    };
    dial_each(config, &addresses, limit, deadline).await
}

/// Takes the first address where PostgreSQL answers, be it with a refusal: what it says holds for the others too, and a
/// password that is wrong is not wrong twice. Where there is none, the address that says most stands for all.
async fn dial_each(
    config: &Config,
    addresses: &[Address],
    limit: Duration,
    deadline: Instant,
) -> Result<Opened> {
    let mut worst: Option<(u8, Failed)> = None;
    for (position, address) in addresses.iter().enumerate() {
        // An address that swallows packets leaves time for those behind it. Once connected, the log-in may take it all.
        let share = deadline.saturating_duration_since(Instant::now())
            / u32::try_from(addresses.len() - position).unwrap_or(u32::MAX);
        let failed = match timeout(share, address.connect(config)).await {
            Ok(Ok(socket)) => {
                match timeout_at(deadline, config.connect_raw(Line::new(socket), NoTls)).await {
                    Ok(Err(error)) if may_be_elsewhere(&error) => Failed::Answer(error),
                    Ok(ended) => return ended,
                    Err(_) => Failed::Before(Obstacle::Silent(limit)),
                }
            }
            Ok(Err(source)) => Failed::Before(Obstacle::Connect { address: address.to_string(), source }),
            Err(_) => Failed::Before(Obstacle::Silent(limit)),
        };
        let weight = failed.weight();
        if worst.as_ref().is_none_or(|(before, _)| weight > *before) {
            worst = Some((weight, failed));
        }
        // Without a file descriptor or the right to connect the others fare no better.
        if let Some((_, Failed::Before(obstacle))) = &worst
            && obstacle.class() == FailureClass::CheckFailed
            && obstacle.weight() > 0
        {
            break;
        }
    }
    match worst {
        Some((_, Failed::Answer(error))) => Err(error),
        Some((_, Failed::Before(obstacle))) => fail(config, obstacle).await,
        None => {
            let source = io::Error::new(io::ErrorKind::NotFound, "it has no address");
            fail(config, Obstacle::Name { host: String::from("the host"), source }).await
        }
    }
}

/// One address that did not do.
enum Failed {
    /// There was no connection, or no answer on it.
    Before(Obstacle),
    /// The driver's error.
    Answer(tokio_postgres::Error),
}

impl Failed {
    fn weight(&self) -> u8 {
        match self {
            Self::Before(obstacle) => obstacle.weight(),
            // Without an obstacle: accepted, and closed or reset.
            Self::Answer(error) => Obstacle::of(error).map_or(2, Obstacle::weight),
        }
    }
}

/// Whether this was not PostgreSQL's answer.
fn may_be_elsewhere(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || std::error::Error::source(error).is_some_and(|source| source.is::<io::Error>())
}

/// The driver makes its errors itself, and the pool takes no others: it gets a stream that fails with ours.
async fn fail(config: &Config, obstacle: Obstacle) -> Result<Opened> {
    config.connect_raw(Line::new(Socket::None(Some(obstacle))), NoTls).await
}

/// Where to connect.
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// With the options that the driver would set.
    async fn connect(&self, config: &Config) -> io::Result<Socket> {
        let address = match self {
            Self::Tcp(address) => address,
            Self::Unix(path) => return Ok(Socket::Unix(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        #[cfg(target_os = "linux")]
        if let Some(limit) = config.get_tcp_user_timeout() {
            socket.set_tcp_user_timeout(Some(*limit))?;
        }
        if config.get_keepalives() {
            let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
            if let Some(interval) = config.get_keepalives_interval() {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(retries) = config.get_keepalives_retries() {
                keepalive = keepalive.with_retries(retries);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        Ok(Socket::Tcp(stream))
    }
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// There is none: the first use says why.
    None(Option<Obstacle>),
}

/// How much of the beginning is looked at. An error of the old form is longer than that only in theory.
const HEAD_MAX: usize = 1024;

/// A socket that fails as soon as the first bytes from the other side cannot be PostgreSQL's.
pub(super) struct Line {
    socket: Socket,
    /// What came so far, until that is known.
    head: Option<Vec<u8>>,
}

impl Line {
    fn new(socket: Socket) -> Self {
        Self { socket, head: Some(Vec::new()) }
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        let before = buf.filled().len();
        ready!(match &mut line.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::None(why) => Poll::Ready(Err(gone(why))),
        })?;
        if let Some(head) = &mut line.head {
            let new = &buf.filled()[before..];
            head.extend_from_slice(&new[..new.len().min(HEAD_MAX - head.len())]);
            match judge(head) {
                Verdict::Unclear => {}
                Verdict::Postgres => line.head = None,
                Verdict::Not(obstacle) => return Poll::Ready(Err(obstacle.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        let written = ready!(match &mut line.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::None(why) => Poll::Ready(Err(gone(why))),
        });
        Poll::Ready(match written {
            // Who closes at once may have said why: that is read first. libpq does the same (`write_failed`).
            Err(error)
                if line.head.is_some()
                    && matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(buf.len())
            }
            written => written,
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::None(why) => Poll::Ready(Err(gone(why))),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::None(_) => Poll::Ready(Ok(())),
        }
    }
}

fn gone(why: &mut Option<Obstacle>) -> io::Error {
    why.take().map_or_else(|| io::ErrorKind::NotConnected.into(), Into::into)
}

enum Verdict {
    Unclear,
    Postgres,
    Not(Obstacle),
}

/// Whose first bytes these are.
///
/// The rules are libpq's (`PQconnectPoll` in fe-connect.c, where it waits for the answer to the start-up message): first
/// comes an authentication request of 8 to 2,000 bytes or an error of 8 to 30,000. One that seems longer is text, in the
/// form of before protocol 3.0. libpq takes a negotiation of the version as well, which nobody answers to the 3.0 that
/// the driver asks for. Two more looks, at the method and at the code of the error's first field, tell a MySQL greeting
/// apart, whose length may happen to be our letter.
fn judge(head: &[u8]) -> Verdict {
    let foreign = || Verdict::Not(Obstacle::Foreign(excerpt(head)));
    let (tag, length) = match head {
        [] | [b'R' | b'E'] | [b'R' | b'E', _] | [b'R' | b'E', _, _] | [b'R' | b'E', _, _, _] => {
            return Verdict::Unclear;
        }
        [tag @ (b'R' | b'E'), a, b, c, d, ..] => (*tag, u32::from_be_bytes([*a, *b, *c, *d])),
        // An alert, of whichever version.
        [0x15] | [0x15, 3, ..] => return Verdict::Not(Obstacle::ExpectsTls),
        _ => return foreign(),
    };
    match (tag, length, &head[5..]) {
        // From 0, "logged in", to 12, the end of SASL.
        (b'R', 8..=2000, [0, 0, 0, 0..=12, ..]) => Verdict::Postgres,
        (b'R', 8..=2000, [] | [0] | [0, 0] | [0, 0, 0]) => Verdict::Unclear,
        (b'E', 8..=30_000, [b'A'..=b'Z', ..]) => Verdict::Postgres,
        (b'E', 8..=30_000, []) => Verdict::Unclear,
        // Sent in one piece: where its end is missing, it is not one.
        (b'E', 30_001.., _) => match head[1..].iter().position(|byte| *byte == 0) {
            Some(end @ 1..) if head[1..=end].iter().all(|byte| is_text(*byte)) => {
                let text = String::from_utf8_lossy(&head[1..=end]);
                Verdict::Not(Obstacle::Unversioned(text.trim().to_owned()))
            }
            _ => foreign(),
        },
        _ => foreign(),
    }
}

fn is_text(byte: u8) -> bool {
    byte >= b' ' || byte.is_ascii_whitespace()
}

/// The longest excerpt, in characters, with the sign that more came.
const EXCERPT_MAX: usize = 40;

/// The first line, or the beginning of what is no text, fit to be printed.
fn excerpt(head: &[u8]) -> String {
    let line = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
    let shown = line.filter(|line| line.iter().all(|byte| is_text(*byte))).unwrap_or(head);
    let mut text = String::new();
    for byte in shown {
        let escaped = byte.escape_ascii();
        if text.len() + escaped.len() >= EXCERPT_MAX {
            text.push('…');
            break;
        }
        text.extend(escaped.map(char::from));
    }
    text
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
