//! What a server may say: a stream that follows the messages of the protocol, and ends where one of them, or an answer as a
//! whole, is more than anybody has asked for.
//!
//! ```text
//! socket, or TLS over it ─▶ Guard ─▶ the driver, which keeps whatever it is sent until somebody reads it
//! ```
//!
//! What nobody here listens to (notices, reports of parameters) ends at the guard: the driver would keep some of it, log some of
//! it, and count none of it. Notifications are handed on as they come, and kept by nobody (`ears.rs`).
//!
//! - G1: no message of more than `message_bytes_max` is waited for, however slowly it comes.
//! - G2: an answer of more than one row is kept only up to [`ANSWER_BYTES_MAX`].
//! - G3: a password is not sent in the clear unless that was allowed.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// What the rows of one answer may weigh together, where it is more than one: half as much again as a page or a window is meant
/// to weigh. Who asked for too many asks for fewer.
const ANSWER_BYTES_MAX: u64 = 24 << 20;

/// What a row costs in memory besides its bytes, about; and what any other message costs, in work.
const ROW_OVERHEAD: u64 = 256;
const MESSAGE_OVERHEAD: u64 = 64;

/// What a server may say besides rows until an answer is complete: notices, and an error, which may quote a value.
const TALK_BYTES_MAX: u64 = ANSWER_BYTES_MAX;

/// What a server may not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    /// One message that is longer than allowed.
    #[error("it announces a message of {bytes} bytes (type {kind}), more than {max}")]
    Message { kind: Kind, bytes: u64, max: u64 },
    /// A length that no message has.
    #[error("it announces a message of {0} bytes")]
    Length(i32),
    /// More rows than fit.
    #[error("its answer is larger than {} MiB", ANSWER_BYTES_MAX >> 20)]
    Answer,
    /// It does not stop talking.
    #[error("it says more than {} MiB besides its answer", TALK_BYTES_MAX >> 20)]
    Talk,
    /// It wants the password in the clear, on a line where others may listen.
    #[error("it asks for the password in the clear")]
    ClearPassword,
}

/// The type of a message, fit to be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl Excess {
    /// What the guard found, if it did.
    pub(super) fn of(error: &dyn std::error::Error) -> Option<&Self> {
        error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
    }

    /// Whether it may be only that there is much, or one row that is large: fewer rows, or another bound, may help.
    pub(super) fn is_size(&self) -> bool {
        matches!(self, Self::Message { kind: Kind(b'D'), .. } | Self::Answer)
    }
}

impl From<Excess> for io::Error {
    fn from(excess: Excess) -> Self {
        Self::new(io::ErrorKind::InvalidData, excess)
    }
}

/// What is allowed on a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) message_bytes_max: u64,
    pub(super) clear_password: bool,
}

/// Where in the stream of messages we are.
struct Frames {
    bounds: Bounds,
    /// The beginning of a message, as far as it is known: its type, its length, and of an authentication its kind.
    head: [u8; 9],
    known: usize,
    /// How much of a message is still to come behind that.
    left: u64,
    /// Of the answer that is under way: its rows, what they weigh, and what everything else does.
    rows: u64,
    answer: u64,
    talk: u64,
}

impl Frames {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, head: [0; 9], known: 0, left: 0, rows: 0, answer: 0, talk: 0 }
    }

    /// Looks at what has come, and moves what is for the driver to its beginning. Answers how much that is.
    fn pass(&mut self, bytes: &mut [u8]) -> Result<usize, Excess> {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let end = match self.left {
                0 => {
                    self.head[self.known] = bytes[at];
                    self.known += 1;
                    at + 1
                }
                left => at + usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at),
            };
            if !self.is_talk() {
                bytes.copy_within(at..end, kept);
                kept += end - at;
            }
            match self.left {
                0 => self.begin()?,
                _ => self.left -= (end - at) as u64,
            }
            if self.left == 0 && self.known >= self.head_length() {
                self.known = 0;
            }
            at = end;
        }
        Ok(kept)
    }

    fn is_talk(&self) -> bool {
        matches!(self.head[0], b'N' | b'S')
    }

    fn length(&self) -> i32 {
        i32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]])
    }

    fn head_length(&self) -> usize {
        if self.known >= 5 && self.head[0] == b'R' && self.length() >= 8 { 9 } else { 5 }
    }

    /// Judges a message by its beginning, as soon as that is there.
    fn begin(&mut self) -> Result<(), Excess> {
        if self.known < self.head_length() {
            return Ok(());
        }
        let length = self.length();
        let bytes = u64::try_from(length).ok().filter(|bytes| *bytes >= 4).ok_or(Excess::Length(length))?;
        self.left = (bytes + 1).saturating_sub(self.known as u64);
        let max = match self.head[0] {
            b'D' => self.bounds.message_bytes_max,
            _ => TALK_BYTES_MAX.min(self.bounds.message_bytes_max),
        };
        if bytes > max {
            return Err(Excess::Message { kind: Kind(self.head[0]), bytes, max });
        }
        match self.head[0] {
            b'D' => {
                self.rows += 1;
                self.answer += bytes + ROW_OVERHEAD;
                if self.rows > 1 && self.answer > ANSWER_BYTES_MAX {
                    return Err(Excess::Answer);
                }
            }
            b'Z' => (self.rows, self.answer, self.talk) = (0, 0, 0),
            b'R' if self.head[5..] == [0, 0, 0, 3] && !self.bounds.clear_password => {
                return Err(Excess::ClearPassword);
            }
            _ => {
                self.talk += bytes + MESSAGE_OVERHEAD;
                if self.talk > TALK_BYTES_MAX {
                    return Err(Excess::Talk);
                }
            }
        }
        Ok(())
    }
}

/// How many bytes a pool's connections have taken and brought: whether something that takes long is still on its way.
#[derive(Debug, Clone, Default)]
pub(super) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A stream from a server, watched.
pub(super) struct Guard<S> {
    stream: S,
    frames: Frames,
    moved: Moved,
}

impl<S> Guard<S> {
    pub(super) fn new(stream: S, bounds: Bounds, moved: Moved) -> Self {
        Self { stream, frames: Frames::new(bounds), moved }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        let before = buf.filled().len();
        loop {
            ready!(Pin::new(&mut guard.stream).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            guard.moved.add(buf.filled().len() - before);
            let kept = guard.frames.pass(&mut buf.filled_mut()[before..])?;
            buf.set_filled(before + kept);
            // Nothing for the driver, for which that would mean the end. The sockets give way to others now and then.
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.moved.add(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Guard<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// TLS, watched inside of it.
pub(super) struct GuardedTls<C> {
    pub(super) connector: C,
    pub(super) bounds: Bounds,
    pub(super) moved: Moved,
}

impl<S, C: TlsConnect<S>> TlsConnect<S> for GuardedTls<C>
where
    C::Future: Send + 'static,
{
    type Stream = Guard<C::Stream>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let Self { connector, bounds, moved } = self;
        let connecting = connector.connect(stream);
        Box::pin(async move { Ok(Guard::new(connecting.await?, bounds, moved)) })
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
