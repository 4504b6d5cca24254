//! The control socket: how a verb of the command reaches the supervisor that runs.
//!
//! Parts: [`Request`] and [`Response`] (the protocol), [`ControlServer`] (beside the database, owner only),
//! [`ControlClient`] (blocking: a verb has nothing else to do).
//!
//! ```text
//! verb ── {"verb":"status"}\n ─▶ <database>.sock ─▶ handler(Request) ─▶ {"ok":…}\n                    ─▶ verb
//!                                                                       {"error":{"message":…,"retry":…}}\n
//! ```
//!
//! One request and one answer per connection. Nothing here is unbounded: the request in bytes and seconds, the
//! connections in number, the answer in bytes; a handler that never answers holds its connection only as long
//! as its client waits.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slog::{Logger, debug, warn};
use tidewater_actors::messages::{Adopt, Detection, Forced};
use tidewater_actors::sqlite::Which;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::settings::SOCKET_PATH_BYTES_MAX;

/// A request names a verb and perhaps some ids; a list of ids that is longer than this is not typed by hand.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// A client writes its request at once; whoever takes longer is not one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// People and scripts; more than this at once is a script that has gone wrong.
const CONNECTIONS_MAX: usize = 32;
/// A client that does not read its answer is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A list of everything parked is the longest answer there is.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How soon a client that went away is noticed.
const HANGUP_INTERVAL: Duration = Duration::from_secs(1);
/// After a failed `accept`: usually no file descriptor is left, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a verb asks. A new verb is a new line here and an arm in the handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Everything that `status --json` prints.
    Status,
    /// Checks the proxy now; the answer is a [`Checked`].
    Check,
    /// Sets the failure count and the delay back, ends a pause, and checks at once.
    Reset,
    /// Holds the circuit, or lets it decide by itself.
    Circuit {
        /// How it is held.
        forced: Option<Forced>,
    },
    /// Takes what waits to the cloud; the answer is a [`Synced`].
    Flush {
        /// Whether it is answered at the end, or as soon as it has begun.
        #[serde(default)]
        wait: bool,
    },
    /// Brings home what others wrote; the answer is a [`Synced`].
    Warm {
        /// As for a flush.
        #[serde(default)]
        wait: bool,
    },
    /// Tries parked rows again; the answer is a [`Retried`](tidewater_actors::sqlite::Retried).
    RetryParked {
        /// Which of them.
        which: Which,
    },
    /// Gives parked rows up; the answer is a [`Discarded`](tidewater_actors::messages::Discarded).
    DiscardParked {
        /// Their numbers.
        ids: Vec<i64>,
    },
    /// Brings back what lost conflicts; the answer is a [`Restored`](crate::Restored).
    RestoreConflicts {
        /// Their numbers.
        ids: Vec<i64>,
    },
    /// Looks which cloud answers, or makes the file belong to it; the answer is an
    /// [`Adoption`](tidewater_actors::messages::Adoption).
    Adopt {
        /// How sure who asks is.
        how: Adopt,
    },
    /// Copies the database while it is in use; the answer is a [`Copied`](tidewater_actors::sqlite::Copied).
    Backup {
        /// Where to; absolute, because the supervisor is in another folder than who asks.
        path: PathBuf,
        /// Whether a file that is there is replaced.
        overwrite: bool,
    },
    /// What only the supervisor knows for [`doctor`](crate::doctor), with one look at the cloud.
    Doctor,
    /// The settings that it was started with; the answer is a list of [`Effective`](crate::settings::Effective).
    Config,
}

/// The answer to [`Request::Flush`] and [`Request::Warm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Synced {
    /// Whether it is over.
    pub done: bool,
    /// Rows that went to the cloud meanwhile.
    pub rows_flushed: u64,
    /// Rows that came from it.
    pub rows_warmed: u64,
    /// Rows that wait now, parked ones excluded.
    pub pending: u64,
    /// Rows that the cloud refuses.
    pub parked: u64,
}

/// The answer to [`Request::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// What the check found, and why.
    #[serde(flatten)]
    pub detection: Detection,
    /// Whether a cloud that is not available is a fault here.
    pub proxy_required: bool,
}

/// The answer, on the wire `{"ok":…}` or `{"error":{"message":…,"retry":…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done; what there is to tell.
    Ok(Value),
    /// It was not done.
    Error(Failure),
}

impl Response {
    /// An answer that says what went wrong and whether asking again can help.
    #[must_use]
    pub fn failure(message: impl Into<String>, retry: bool) -> Self {
        Self::Error(Failure { message: message.into(), retry })
    }

    /// The value as an answer; a value that is no JSON (a map with strange keys) is a failure.
    #[must_use]
    pub fn of(value: &impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::failure(format!("the answer is not JSON: {error}"), false),
        }
    }
}

/// Why a verb was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub message: String,
    /// Whether the same request can succeed later without anybody changing anything.
    pub retry: bool,
}

/// Answers requests. It runs on the thread that serves, so it need not be `Send`. It bounds its own work: the
/// server drops its future only when the client goes away.
pub type Handler = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, Response>>;

/// What goes wrong with the control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No supervisor listens there.
    #[error("not running: no supervisor listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error(
        "not allowed: the control socket {} belongs to another user; ask as the user that the supervisor runs as", .0.display()
    )]
    NotAllowed(PathBuf),
    /// A supervisor listens there already.
    #[error("a supervisor listens on {} already", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has this name; it is left alone.
    #[error("{} is there and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The name does not fit into the address of a socket. The supervisor works without one.
    #[error("the control socket's path is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's address holds: {}", .0.display())]
    PathTooLong(PathBuf),
    /// No answer in time.
    #[error("the supervisor did not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The supervisor answered that it could not.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The answer is not one.
    #[error("the supervisor's answer cannot be understood: {0}")]
    Protocol(String),
    /// The operating system refused.
    #[error("the control socket {} failed: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl ControlError {
    /// Whether the same call can succeed later without anybody changing anything.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Refused(failure) => failure.retry,
            _ => false,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

// ---------------------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------------------

/// The listening end. Dropping it removes the socket, unless another one has taken the name.
pub struct ControlServer {
    listener: StdListener,
    name: SocketName,
    log: Logger,
}

impl ControlServer {
    /// Listens on `path`, with mode 0600 from the first moment. A socket that nobody listens on is replaced:
    /// whoever calls this holds the lock on the database, so nobody else is about to take it.
    ///
    /// # Errors
    /// [`ControlError::InUse`], [`NotASocket`](ControlError::NotASocket),
    /// [`PathTooLong`](ControlError::PathTooLong), or [`Io`](ControlError::Io).
    pub fn bind(path: impl Into<PathBuf>, log: Logger) -> Result<Self, ControlError> {
        let path = path.into();
        require_short(&path)?;
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ControlError::io(&path)(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NotASocket(path)),
            Ok(_) => match StdStream::connect(&path) {
                Ok(_) => return Err(ControlError::InUse(path)),
                Err(error) if nobody_listens(&error) => {
                    debug!(log, "replacing a control socket nobody listens on")
                }
                Err(error) => return Err(ControlError::io(&path)(error)),
            },
        }
        // A socket gets its mode from the umask when it is bound. It is bound where only this user can reach
        // it and moved when its mode is right, so that nobody else can connect in between.
        let nursery = Nursery::beside(&path).map_err(ControlError::io(&path))?;
        let newborn = nursery.0.join("s");
        require_short(&newborn)?;
        let listen = || {
            let listener = StdListener::bind(&newborn)?;
            fs::set_permissions(&newborn, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let inode = fs::symlink_metadata(&newborn)?.ino();
            fs::rename(&newborn, &path)?;
            Ok((listener, inode))
        };
        let (listener, inode) = listen().map_err(ControlError::io(&path))?;
        Ok(Self { listener, name: SocketName { path, inode }, log })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// Serves for ever, on a tokio runtime of any kind, inside actix or not. Whoever drops the future ends the
    /// connections, too.
    ///
    /// # Errors
    /// [`ControlError::Io`] when the runtime cannot watch the socket; nothing that a client does is an error.
    pub async fn serve(self, handler: Handler) -> Result<(), ControlError> {
        let Self { listener, name, log } = self;
        let listener = UnixListener::from_std(listener).map_err(ControlError::io(&name.path))?;
        let mut connections = FuturesUnordered::new();
        // One line when `accept` begins to fail, not one per second.
        let mut failing = false;
        loop {
            tokio::select! {
                Some(()) = connections.next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                        failing = false;
                        connections.push(converse(stream, Rc::clone(&handler), log.clone()).boxed_local());
                    }
                    Ok((stream, _)) => turn_away(&stream),
                    Err(error) => {
                        if !failing {
                            warn!(log, "the control socket cannot accept: {error}");
                        }
                        failing = true;
                        connections.push(sleep(ACCEPT_PAUSE).boxed_local());
                        // The connections go on meanwhile; one of them ending may be what is waited for.
                        connections.next().await;
                    }
                },
            }
        }
    }
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlServer").field(&self.name.path).finish()
    }
}

/// The socket's name in the file system, removed when dropped.
struct SocketName {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketName {
    fn drop(&mut self) {
        // Another supervisor may have taken the name; its socket is not ours to remove.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A folder that only this user can enter, gone when dropped.
struct Nursery(PathBuf);

impl Nursery {
    fn beside(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Short, because it counts towards the address. What exists already was left by a crash in the past
        // or belongs to somebody else: neither is used.
        for n in 0..1000_u32 {
            let nursery = folder.join(format!(".t{:x}", n.wrapping_add(std::process::id())));
            match fs::DirBuilder::new().mode(0o700).create(&nursery) {
                Ok(()) => return Ok(Self(nursery)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.join("s"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn require_short(path: &Path) -> Result<(), ControlError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ControlError::PathTooLong(path.to_owned()));
    }
    Ok(())
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// One connection, from the request to the answer.
async fn converse(mut stream: UnixStream, handler: Handler, log: Logger) {
    let answer = match timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await {
        Err(_) => Response::failure("no request within 5 s", true),
        Ok(Err(message)) => Response::failure(message, false),
        Ok(Ok(request)) => {
            // `async` around the call itself: a handler may panic before it returns its future.
            let handled = AssertUnwindSafe(async { handler(request).await }).catch_unwind();
            tokio::select! {
                handled = handled => handled.unwrap_or_else(|_| {
                    warn!(log, "the handler of a control request panicked");
                    Response::failure("the supervisor failed while it handled this request", true)
                }),
                () = hung_up(&stream) => return,
            }
        }
    };
    // A client that has gone needs no answer, and nobody else does.
    let _ = timeout(ANSWER_TIMEOUT, stream.write_all(&line_of(&answer))).await;
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, String> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(REQUEST_BYTES_MAX));
    reader
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| format!("the request cannot be read: {error}"))?;
    if line.last() != Some(&b'\n') && line.len() as u64 == REQUEST_BYTES_MAX {
        return Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes"));
    }
    serde_json::from_slice(&line).map_err(|error| format!("the request cannot be understood: {error}"))
}

/// Resolves when the client has closed its end. A client that only finished writing still waits.
async fn hung_up(stream: &UnixStream) {
    loop {
        sleep(HANGUP_INTERVAL).await;
        match stream.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => {}
            _ => return,
        }
    }
}

/// Answers at once instead of letting the client wait for a place. Nothing was written to this connection
/// yet, so the answer fits and writing cannot block.
fn turn_away(stream: &UnixStream) {
    let answer = Response::failure(format!("busy: {CONNECTIONS_MAX} requests are being answered"), true);
    let _ = stream.try_write(&line_of(&answer));
}

fn line_of(answer: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer)
        .unwrap_or_else(|_| br#"{"error":{"message":"the answer is not JSON","retry":false}}"#.to_vec());
    line.push(b'\n');
    line
}

// ---------------------------------------------------------------------------------------------------------
// The client
// ---------------------------------------------------------------------------------------------------------

/// The asking end.
#[derive(Debug)]
pub struct ControlClient;

impl ControlClient {
    /// Asks the supervisor that listens on `path` and waits, at most `wait` in all.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] when the socket is missing or nobody listens on it;
    /// [`Refused`](ControlError::Refused) with the supervisor's own words;
    /// [`Timeout`](ControlError::Timeout), [`Protocol`](ControlError::Protocol), [`Io`](ControlError::Io).
    pub fn call(path: &Path, request: &Request, wait: Duration) -> Result<Value, ControlError> {
        // Nobody can listen on a name that no socket can have.
        require_short(path)?;
        let deadline = Instant::now() + wait;
        let mut stream = StdStream::connect(path).map_err(|error| match error.kind() {
            _ if nobody_listens(&error) => ControlError::NotRunning(path.to_owned()),
            io::ErrorKind::PermissionDenied => ControlError::NotAllowed(path.to_owned()),
            _ => ControlError::io(path)(error),
        })?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Timeout(wait),
            _ => ControlError::io(path)(error),
        };
        let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());

        let mut line =
            serde_json::to_vec(request).map_err(|error| ControlError::Protocol(error.to_string()))?;
        line.push(b'\n');
        stream.set_write_timeout(Some(left().ok_or(ControlError::Timeout(wait))?)).map_err(failed)?;
        match stream.write_all(&line) {
            // Turned away before the request was read: the reason can still be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(failed)?,
        }

        let mut answer = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while answer.last() != Some(&b'\n') {
            stream.set_read_timeout(Some(left().ok_or(ControlError::Timeout(wait))?)).map_err(failed)?;
            match stream.read(&mut chunk) {
                Ok(0) => return Err(ControlError::Protocol("it ended before its end".to_owned())),
                Ok(read) => answer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(ControlError::Protocol(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        match serde_json::from_slice(&answer) {
            Ok(Response::Ok(value)) => Ok(value),
            Ok(Response::Error(failure)) => Err(ControlError::Refused(failure)),
            Err(error) => Err(ControlError::Protocol(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use slog::{Discard, o};

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);

    fn bind(path: &Path) -> Result<ControlServer, ControlError> {
        ControlServer::bind(path, Logger::root(Discard, o!()))
    }

    fn answering(answer: fn() -> LocalBoxFuture<'static, Response>) -> Handler {
        Rc::new(move |_| answer())
    }

    fn ok() -> LocalBoxFuture<'static, Response> {
        async { Response::Ok(serde_json::json!({"sync": {"state": "idle"}})) }.boxed_local()
    }

    /// Runs a server on the test's thread while `client` runs on another.
    fn served<T: Send + 'static>(
        path: &Path,
        handler: Handler,
        client: impl FnOnce(PathBuf) -> T + Send + 'static,
    ) -> T {
        let server = bind(path).unwrap();
        let path = path.to_owned();
        actix_rt::System::new().block_on(async move {
            let serving = actix_rt::spawn(server.serve(handler));
            let answer = actix_rt::task::spawn_blocking(move || client(path)).await.unwrap();
            serving.abort();
            answer
        })
    }

    /// Sends raw bytes and returns what comes back until the end.
    fn raw(path: &Path, bytes: &[u8]) -> String {
        let mut stream = StdStream::connect(path).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        // The server may have answered and closed before everything was written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db.sock");
        (folder, path)
    }

    /// What the handler returns is what the client gets.
    #[test]
    fn a_request_is_answered() {
        let (_folder, path) = socket();
        let answer = served(&path, answering(ok), |path| ControlClient::call(&path, &Request::Status, WAIT));
        assert_eq!(answer.unwrap()["sync"]["state"], "idle");
    }

    /// The protocol is one line of JSON each way, with the documented names.
    #[test]
    fn the_wire_has_the_documented_names() {
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"verb":"status"}"#);
        let (_folder, path) = socket();
        let answer = served(&path, answering(ok), |path| raw(&path, b"{\"verb\":\"status\"}\n"));
        assert_eq!(answer, "{\"ok\":{\"sync\":{\"state\":\"idle\"}}}\n");
        let failure = Response::failure("no", true);
        assert_eq!(serde_json::to_string(&failure).unwrap(), r#"{"error":{"message":"no","retry":true}}"#);
    }

    /// A failure keeps its words and whether a retry helps.
    #[test]
    fn a_failure_keeps_its_words() {
        let (_folder, path) = socket();
        let fail: fn() -> _ = || async { Response::failure("Cloud SQL is away", true) }.boxed_local();
        let error = served(&path, answering(fail), |path| ControlClient::call(&path, &Request::Status, WAIT));
        let error = error.unwrap_err();
        assert!(error.retry());
        assert_eq!(error.to_string(), "Cloud SQL is away");
    }

    /// Only the owner can connect, and no trace of the making is left.
    #[test]
    fn the_socket_belongs_to_its_owner_alone() {
        let (folder, path) = socket();
        let server = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(server);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Nonsense gets an error for an answer, and the server lives on.
    #[test]
    fn nonsense_is_answered_with_an_error() {
        let (_folder, path) = socket();
        served(&path, answering(ok), |path| {
            let deep = format!("{}\n", "[".repeat(50_000));
            let table: [&[u8]; 7] = [
                b"\n",
                b"GET / HTTP/1.1\r\n\r\n",
                b"{\"verb\":\"explode\"}\n",
                b"{\"verb\":7}\n",
                b"\xff\xfe\x00\n",
                b"{\"verb\":\"status\"} trailing\n",
                deep.as_bytes(),
            ];
            for bytes in table {
                let answer = raw(&path, bytes);
                assert!(answer.starts_with("{\"error\":{\"message\":\"the request cannot be"), "{answer}");
                assert!(answer.ends_with("\"retry\":false}}\n"), "{answer}");
            }
            ControlClient::call(&path, &Request::Status, WAIT).unwrap();
        });
    }

    /// A request without an end is cut off at its bound.
    #[test]
    fn an_oversized_request_is_cut_off() {
        let (_folder, path) = socket();
        served(&path, answering(ok), |path| {
            let answer = raw(&path, &vec![b'x'; 200 * 1024]);
            assert!(answer.contains("longer than 65536 bytes"), "{answer}");
            ControlClient::call(&path, &Request::Status, WAIT).unwrap();
        });
    }

    /// A client that says nothing is told so after five seconds, on a clock that waits for nobody.
    #[test]
    fn silence_ends_after_five_seconds() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            ours.set_nonblocking(true).unwrap();
            let stream = UnixStream::from_std(ours).unwrap();
            tokio::time::pause();
            let began = tokio::time::Instant::now();
            converse(stream, answering(ok), Logger::root(Discard, o!())).await;
            assert_eq!(began.elapsed().as_secs(), 5);
        });
        let mut answer = String::new();
        (&theirs).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("no request within 5 s"), "{answer}");
    }

    /// A client that goes away takes its request with it; one that only finished writing does not.
    #[test]
    fn a_request_ends_with_its_client() {
        let never: fn() -> _ = || futures_util::future::pending().boxed_local();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ours, theirs) = StdStream::pair().unwrap();
        runtime.block_on(async {
            ours.set_nonblocking(true).unwrap();
            let stream = UnixStream::from_std(ours).unwrap();
            (&theirs).write_all(b"{\"verb\":\"status\"}\n").unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            tokio::time::pause();
            let mut conversation =
                std::pin::pin!(converse(stream, answering(never), Logger::root(Discard, o!())));
            let waited = timeout(Duration::from_millis(1500), &mut conversation).await;
            assert!(waited.is_err(), "half-closed is still there");
            drop(theirs);
            timeout(WAIT, conversation).await.unwrap();
        });
    }

    /// More clients than places: all are answered, the surplus with "busy".
    #[test]
    fn clients_beyond_the_bound_are_turned_away() {
        let (_folder, path) = socket();
        let (busy, answered) = served(&path, answering(ok), |path| {
            // Each takes a place and says nothing yet.
            let mut places: Vec<_> =
                (0..CONNECTIONS_MAX).map(|_| StdStream::connect(&path).unwrap()).collect();
            let busy = ControlClient::call(&path, &Request::Status, WAIT).unwrap_err();
            for place in &mut places {
                place.write_all(b"{\"verb\":\"status\"}\n").unwrap();
            }
            let answered = places.iter_mut().filter_map(|place| {
                let mut answer = String::new();
                place.read_to_string(&mut answer).ok()?;
                answer.starts_with("{\"ok\"").then_some(())
            });
            (busy, answered.count())
        });
        assert!(busy.retry() && busy.to_string().starts_with("busy"), "{busy}");
        assert_eq!(answered, CONNECTIONS_MAX);
    }

    /// Requests do not wait for one another.
    #[test]
    fn requests_are_answered_side_by_side() {
        let (_folder, path) = socket();
        // Each handler waits until all eight are there.
        let here = Rc::new((Cell::new(0), tokio::sync::Notify::new()));
        let handler: Handler = Rc::new(move |_| {
            let here = Rc::clone(&here);
            async move {
                here.0.set(here.0.get() + 1);
                let mut all = std::pin::pin!(here.1.notified());
                all.as_mut().enable();
                match here.0.get() {
                    8 => here.1.notify_waiters(),
                    _ => all.await,
                }
                Response::Ok(Value::Null)
            }
            .boxed_local()
        });
        served(&path, handler, |path| {
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || ControlClient::call(&path, &Request::Status, WAIT))
                })
                .collect();
            for call in calls {
                call.join().unwrap().unwrap();
            }
        });
    }

    /// A handler that panics costs its own request and nothing else.
    #[test]
    fn a_panicking_handler_costs_its_request_only() {
        let (_folder, path) = socket();
        let handler: Handler = Rc::new(|_| panic!("on purpose"));
        served(&path, handler, |path| {
            for _ in 0..2 {
                let error = ControlClient::call(&path, &Request::Status, WAIT).unwrap_err();
                assert!(matches!(error, ControlError::Refused(_)), "{error}");
            }
        });
    }

    /// What a crash left behind is replaced; a socket that somebody listens on is not.
    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (_folder, path) = socket();
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a crash would");
        let server = bind(&path).unwrap();
        assert!(matches!(bind(&path).unwrap_err(), ControlError::InUse(_)));
        drop(server);
        assert!(!path.exists());
    }

    /// A file that is not a socket is somebody's data.
    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let (_folder, path) = socket();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).unwrap_err(), ControlError::NotASocket(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// A server that ends late does not take its successor's socket away.
    #[test]
    fn a_late_end_leaves_the_successor_alone() {
        let (_folder, path) = socket();
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    /// A path that no socket can have is an error of its own, so that the caller can go on without.
    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(120));
        assert!(matches!(bind(&path).unwrap_err(), ControlError::PathTooLong(_)));
        let error = ControlClient::call(&path, &Request::Status, WAIT).unwrap_err();
        assert!(matches!(error, ControlError::PathTooLong(_)));
    }

    /// Without a supervisor the answer is "not running", whether the socket is missing or dead.
    #[test]
    fn without_a_supervisor_it_is_not_running() {
        let (_folder, path) = socket();
        let error = ControlClient::call(&path, &Request::Status, WAIT).unwrap_err();
        assert!(matches!(error, ControlError::NotRunning(_)) && error.to_string().starts_with("not running"));
        drop(StdListener::bind(&path).unwrap());
        let error = ControlClient::call(&path, &Request::Status, WAIT).unwrap_err();
        assert!(matches!(error, ControlError::NotRunning(_)));
    }

    /// A supervisor that does not answer costs a client no more than its own patience.
    #[test]
    fn a_client_waits_no_longer_than_it_said() {
        let (_folder, path) = socket();
        let _deaf = StdListener::bind(&path).unwrap();
        let error = ControlClient::call(&path, &Request::Status, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ControlError::Timeout(_)) && error.retry(), "{error}");
    }
}
