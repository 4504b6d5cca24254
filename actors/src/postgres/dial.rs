//! The way to the server: from a host name to the first bytes that show whether PostgreSQL answers at all.
//!
//! ```text
//! resolve ─▶ connect, address by address ─▶ log in through a `Line`, which reads the first bytes along
//! ```
//!
//! The driver, which logs in, would do the rest as well, but for three things: it waits for the rest of whatever the
//! first bytes of an SSH or MySQL server seem to announce, it reports the last address only, and it gives each of them
//! the whole time. Nothing here knows the driver.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::guard::Excess;
use super::tls::fault_of;
use crate::core::failure::{CloudFailure, FailureClass};

/// Why nobody was met who speaks PostgreSQL. It travels inside of the error of who logs in: [`Obstacle::of`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    /// The name has no address, or nobody could say.
    #[error("{host} cannot be resolved: {source}")]
    Name { host: String, source: io::Error },
    /// The connection was not made.
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    /// No connection within the time.
    #[error("no connection within {} s", .0.as_secs_f64())]
    Unreached(Duration),
    /// No answer on the connection within the time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// Something else answers: the beginning of what it says, printable.
    #[error("what answers is not PostgreSQL (\"{0}\")")]
    Foreign(String),
    /// A server that takes our start-up message for the beginning of a TLS handshake.
    #[error("what answers expects TLS")]
    ExpectsTls,
    /// Whoever answers says no to TLS, be it the server or somebody on the way.
    #[error("what answers speaks no TLS, and nothing goes there unencrypted")]
    NoTls,
    /// An error in the place of a yes or no to TLS. What it says is not passed on: anybody on the way may have written it.
    #[error("what answers has an error in the place of TLS")]
    ErrorBeforeTls,
    /// Nothing that happened on the way: something is missing on this side.
    #[error("{0}")]
    Ours(Box<CloudFailure>),
    /// An error in the form of before protocol 3.0, without a code. PostgreSQL still says in it that it cannot
    /// start a process for the connection; old ones said more.
    #[error("{0}")]
    Unversioned(String),
}

impl Obstacle {
    /// What stood in the way, if it was found here.
    pub(super) fn of(error: &dyn Error) -> Option<&Self> {
        error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
    }

    /// What it means.
    pub(super) fn class(&self) -> FailureClass {
        match self {
            Self::Name { .. } => FailureClass::CheckFailed,
            Self::Connect { source, .. } => class_of_connect(source),
            Self::Unreached(_) | Self::Silent(_) => FailureClass::NotAnswering,
            Self::Foreign(_) | Self::ExpectsTls | Self::NoTls => FailureClass::NotOurs,
            Self::Unversioned(_) | Self::ErrorBeforeTls => FailureClass::Busy,
            Self::Ours(failure) => failure.class,
        }
    }

    /// Whether somebody had taken the connection.
    pub(super) fn accepted(&self) -> bool {
        !matches!(self, Self::Name { .. } | Self::Connect { .. } | Self::Unreached(_))
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
                "PostgreSQL agrees on TLS before it speaks it, port 3307 of Cloud SQL is for the Auth Proxy alone: {}",
                point_at_proxy(host, port)
            )),
            Self::NoTls => Some(
                "let the server speak TLS (ssl = on in postgresql.conf), or go through the Cloud SQL Auth Proxy on this \
                 machine; if the server does speak it, somebody on the way says no in its place; cloud.tls = \"off\" sends \
                 the password and every row in the open"
                    .to_owned(),
            ),
            Self::Ours(failure) => failure.remedy.clone(),
            Self::Connect { .. }
            | Self::Unreached(_)
            | Self::Silent(_)
            | Self::Unversioned(_)
            | Self::ErrorBeforeTls => None,
        }
    }

    /// Which of several addresses has the most to say about what is there.
    fn weight(&self) -> u8 {
        match (self, self.class()) {
            // An address that cannot be used from here, `::1` on a machine without IPv6, leaves it to the others.
            (Self::Connect { source, .. }, _) if elsewhere(source) => 0,
            (_, FailureClass::NotRunning) => 1,
            (_, FailureClass::NotAnswering) => 2,
            // This process cannot connect, or something answered.
            _ => 3,
        }
    }
}

impl From<Obstacle> for io::Error {
    fn from(obstacle: Obstacle) -> Self {
        let kind = match &obstacle {
            Obstacle::Connect { source, .. } => source.kind(),
            Obstacle::Unreached(_) | Obstacle::Silent(_) => io::ErrorKind::TimedOut,
            Obstacle::Name { .. } | Obstacle::Ours(_) => io::ErrorKind::Other,
            Obstacle::Foreign(_)
            | Obstacle::ExpectsTls
            | Obstacle::NoTls
            | Obstacle::ErrorBeforeTls
            | Obstacle::Unversioned(_) => io::ErrorKind::InvalidData,
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

/// Who is called, and for how long at most.
pub(super) struct Dialer {
    /// Host name, address, or the absolute folder of a Unix socket.
    pub(super) host: String,
    pub(super) port: u16,
    /// How long the other side may be silent before the system asks whether it is still there; after the same time again without
    /// an answer, to that or to what was sent, it is not.
    pub(super) silence: Duration,
    /// The longest that all of it may take, over all addresses of the host, with the log-in.
    pub(super) limit: Duration,
}

impl Dialer {
    /// Takes the first address where PostgreSQL answers, be it with a refusal. `log_in` is called for each that can be
    /// connected, and `says` tells of its errors whether PostgreSQL itself said so: that holds for the other addresses
    /// too, and a password that is wrong is not wrong twice. Where there is none, the address that has most to say stands
    /// for all.
    pub(super) async fn dial<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
        &self,
        log_in: impl Fn(Line) -> F,
        says: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let deadline = Instant::now() + self.limit;
        let addresses = match self.addresses(deadline).await {
            Ok(addresses) => addresses,
            Err(source) => {
                let obstacle = Obstacle::Name { host: self.host.clone(), source };
                return log_in(Line::new(Socket::None(Some(obstacle)))).await;
            }
        };
        self.dial_each(&addresses, deadline, log_in, says).await
    }

    /// At least one.
    async fn addresses(&self, deadline: Instant) -> io::Result<Vec<Address>> {
        if self.host.starts_with('/') {
            return Ok(vec![Address::Unix(Path::new(&self.host).join(format!(".s.PGSQL.{}", self.port)))]);
        }
        let found = timeout_at(deadline, lookup_host((self.host.as_str(), self.port))).await;
        let found: Vec<_> = found.map_err(|_| Obstacle::Silent(self.limit))??.map(Address::Tcp).collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
        }
        Ok(found)
    }

    async fn dial_each<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
        &self,
        addresses: &[Address],
        deadline: Instant,
        log_in: impl Fn(Line) -> F,
        says: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let mut worst = Failed::Before(Obstacle::Unreached(self.limit));
        for (position, address) in addresses.iter().enumerate() {
            // An address that swallows packets, or takes a connection and says nothing, leaves time for those behind it;
            // the last one has all that is left.
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now)
                / u32::try_from(addresses.len() - position).unwrap_or(u32::MAX);
            let until = now + share;
            let failed = match timeout_at(until, address.connect(self.silence)).await {
                Ok(Ok(socket)) => match timeout_at(until, log_in(Line::new(socket))).await {
                    Ok(Err(error)) if !says(&error) => Failed::LogIn(error),
                    Ok(ended) => return ended,
                    Err(_) => Failed::Before(Obstacle::Silent(self.limit)),
                },
                Ok(Err(source)) => Failed::Before(Obstacle::Connect { address: address.to_string(), source }),
                Err(_) => Failed::Before(Obstacle::Unreached(self.limit)),
            };
            // Without a file descriptor or the right to connect the others fare no better.
            let last = failed.is_ours();
            if position == 0 || failed.weight() > worst.weight() {
                worst = failed;
            }
            if last {
                break;
            }
        }
        match worst {
            Failed::LogIn(error) => Err(error),
            // Who logs in makes the errors: it gets a stream that fails with this.
            Failed::Before(obstacle) => log_in(Line::new(Socket::None(Some(obstacle)))).await,
        }
    }
}

/// One address that did not do.
enum Failed<E> {
    /// There was no connection, or no answer on it.
    Before(Obstacle),
    /// What came was not PostgreSQL's.
    LogIn(E),
}

impl<E: Error + 'static> Failed<E> {
    fn weight(&self) -> u8 {
        match self {
            Self::Before(obstacle) => obstacle.weight(),
            Self::LogIn(error) if fault_of(error).is_some() || Excess::of(error).is_some() => 3,
            // Without an obstacle: accepted, and closed or reset.
            Self::LogIn(error) => Obstacle::of(error).map_or(2, Obstacle::weight),
        }
    }

    /// Whether it is this process that cannot connect, to whomever.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Before(Obstacle::Connect { source, .. })
            if class_of_connect(source) == FailureClass::CheckFailed && !elsewhere(source))
    }
}

/// Where to connect.
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// With the options that the driver would set.
    async fn connect(&self, silence: Duration) -> io::Result<Socket> {
        let address = match self {
            Self::Tcp(address) => address,
            Self::Unix(path) => return Ok(Socket::Unix(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // Whole seconds.
        let second = Duration::from_secs(1);
        let asking = TcpKeepalive::new().with_time(silence.max(second));
        #[cfg(not(windows))]
        let asking = asking.with_interval((silence / KEEPALIVES).max(second)).with_retries(KEEPALIVES);
        socket.set_tcp_keepalive(&asking)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.set_tcp_user_timeout(Some(silence.saturating_mul(2)))?;
        // What the system has taken counts as moved: of what has not left yet it takes no more than a slow link takes soon.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Socket::Tcp(stream))
    }
}

/// How often the system asks before it gives up.
const KEEPALIVES: u32 = 3;

/// What waits in the system to leave, of what is sent.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT_BYTES_MAX: u32 = 512 << 10;

/// What a [`Line`] runs over.
pub(super) enum Socket {
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
    /// Whether the first word is a question for TLS.
    asks_for_tls: bool,
}

impl Line {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, head: Some(Vec::new()), asks_for_tls: false }
    }

    /// One whose first use says why there is none.
    pub(super) fn nowhere(why: Obstacle) -> Self {
        Self::new(Socket::None(Some(why)))
    }

    pub(super) fn is_nowhere(&self) -> bool {
        matches!(self.socket, Socket::None(_))
    }

    /// Whether the other side is on this machine, and what is said stays on it. Of an address of this machine's that others
    /// can reach as well, that is not known: something that forwards may listen there.
    pub(super) fn is_local(&self) -> bool {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.peer_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
            }
            Socket::Unix(_) | Socket::None(_) => true,
        }
    }

    pub(super) fn is_unix(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// The first word is not the start-up message but a question, which is answered by one byte.
    pub(super) fn asking_for_tls(self) -> Self {
        Self { asks_for_tls: true, ..self }
    }

    /// What has come as well, without a wait.
    fn more(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_MAX];
        let read = match &self.socket {
            Socket::Tcp(stream) => stream.try_read(&mut bytes),
            Socket::Unix(stream) => stream.try_read(&mut bytes),
            Socket::None(_) => Ok(0),
        };
        bytes.truncate(read.unwrap_or(0));
        bytes
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
        if let Some(mut head) = line.head.take() {
            let new = &buf.filled()[before..];
            head.extend_from_slice(&new[..new.len().min(HEAD_MAX - head.len())]);
            let verdict = if line.asks_for_tls { judge_answer(&head, || line.more()) } else { judge(&head) };
            match verdict {
                Verdict::Unclear => line.head = Some(head),
                Verdict::Postgres => {}
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
            // Who closes at once may have said why: that is read first. libpq does the same (`write_failed`). Within TLS a
            // client's certificate is refused after the client has gone on, so it holds for as long as that is spoken.
            Err(error)
                if (line.head.is_some() || line.asks_for_tls)
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

/// What the answer to a question for TLS is: a yes or no of one byte. `more` has what came behind it.
fn judge_answer(head: &[u8], more: impl FnOnce() -> Vec<u8>) -> Verdict {
    match head {
        [] => Verdict::Unclear,
        [b'S', ..] => Verdict::Postgres,
        [b'N'] => Verdict::Not(Obstacle::NoTls),
        _ => {
            let head = [head, &more()].concat();
            match judge(&head) {
                Verdict::Not(Obstacle::Unversioned(_)) => Verdict::Not(Obstacle::ErrorBeforeTls),
                Verdict::Not(obstacle) => Verdict::Not(obstacle),
                Verdict::Unclear | Verdict::Postgres if head[0] == b'E' => {
                    Verdict::Not(Obstacle::ErrorBeforeTls)
                }
                Verdict::Unclear | Verdict::Postgres => Verdict::Not(Obstacle::Foreign(excerpt(&head))),
            }
        }
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
