//! A server that speaks as much of PostgreSQL's protocol as it takes to get in, and then does what a script says; or a man in
//! the middle in front of a real one.
//!
//! ```text
//! HostileServer: listener on a thread ─▶ per connection a thread with a Talk ─▶ the script of that moment
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is done with each connection. An error ends it, as does the return.
pub type Script = Arc<dyn Fn(&mut Talk) -> io::Result<()> + Send + Sync>;

/// The server. It listens until the process ends.
pub struct HostileServer {
    port: u16,
    accepted: Arc<AtomicU64>,
    script: Arc<Mutex<Script>>,
    live: Arc<Mutex<Vec<TcpStream>>>,
}

impl std::fmt::Debug for HostileServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostileServer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl HostileServer {
    /// Listens on a free port of the loopback, with this script.
    ///
    /// # Panics
    /// Where there is no port.
    pub fn start(script: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Arc::new(script)));
        let server = Self { port, accepted: Arc::default(), script, live: Arc::default() };
        let (accepted, script, live) = (server.accepted.clone(), server.script.clone(), server.live.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                accepted.fetch_add(1, Ordering::SeqCst);
                if let Ok(copy) = stream.try_clone() {
                    live.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                }
                let script = script.lock().unwrap_or_else(PoisonError::into_inner).clone();
                std::thread::spawn(move || {
                    let mut talk = Talk::new(Box::new(stream));
                    // How it ended is the client's business.
                    let _ = script(&mut talk);
                    if let Some(socket) = talk.stream.socket() {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        server
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Another script takes the place, and everybody who is there is thrown out.
    pub fn play(&self, script: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(script);
        for stream in self.live.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What a [`Talk`] runs over.
trait Wire: io::Read + io::Write + Send {
    fn socket(&self) -> Option<&TcpStream>;
}

impl Wire for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// Anything else, encrypted for instance.
struct Other<S>(S);

impl<S: io::Read> io::Read for Other<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<S: io::Write> io::Write for Other<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<S: io::Read + io::Write + Send> Wire for Other<S> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// One connection, from the server's side.
pub struct Talk {
    stream: Box<dyn Wire>,
    /// What the client asked its session to be marked with.
    mark: Vec<u8>,
    /// What it began with, as it was.
    startup: Vec<u8>,
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Talk").finish_non_exhaustive()
    }
}

impl Talk {
    fn new(stream: Box<dyn Wire>) -> Self {
        Self { stream, mark: vec![], startup: vec![] }
    }

    /// Over something else than a socket: what is said there is the same.
    pub fn over(stream: impl io::Read + io::Write + Send + 'static) -> Self {
        Self::new(Box::new(Other(stream)))
    }

    /// Says these bytes, as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// What the client began with.
    pub fn startup(&self) -> &[u8] {
        &self.startup
    }

    /// Says a message.
    pub fn say(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        self.raw(&message(kind, body))
    }

    /// Says these bytes again and again, until nobody listens.
    pub fn forever(&mut self, bytes: &[u8]) -> io::Result<()> {
        let many = bytes.repeat((1 << 16) / bytes.len() + 1);
        loop {
            self.raw(&many)?;
        }
    }

    /// Says these bytes one by one.
    pub fn slowly(&mut self, bytes: &[u8], pause: Duration) -> io::Result<()> {
        if let Some(socket) = self.stream.socket() {
            socket.set_nodelay(true)?;
        }
        for byte in bytes {
            self.raw(&[*byte])?;
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// Says nothing any more, until the other side has gone.
    pub fn hold(&mut self) -> io::Result<()> {
        while self.stream.read(&mut [0; 4096])? > 0 {}
        Ok(())
    }

    /// Hears the start-up message.
    pub fn hear_startup(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let rest = (u32::from_be_bytes(length) as usize).saturating_sub(4).min(1 << 16);
        let mut asked = vec![0; rest];
        self.stream.read_exact(&mut asked)?;
        self.startup = [&length[..], &asked].concat();
        let mark = b"tidewater.link=";
        let at = asked.windows(mark.len()).position(|bytes| bytes == mark);
        let from = at.map_or(asked.len(), |at| at + mark.len());
        self.mark = asked[from..].iter().copied().take_while(|byte| !matches!(byte, 0 | b' ')).collect();
        Ok(())
    }

    /// Hears the question whose session this is, and says that it is the client's own.
    pub fn know_the_client(&mut self) -> io::Result<()> {
        self.hear_request()?;
        let answer = [message(b'T', &description(&[("mark", 25)])), row(&[&self.mark]), complete()].concat();
        self.raw(&answer)
    }

    /// Hears a message.
    pub fn hear(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// Hears messages up to the end of a request.
    pub fn hear_request(&mut self) -> io::Result<()> {
        while !matches!(self.hear()?.0, b'S' | b'Q') {}
        Ok(())
    }

    /// Lets the client in, without a password.
    pub fn log_in(&mut self) -> io::Result<()> {
        self.hear_startup()?;
        self.raw(&logged_in())?;
        self.know_the_client()
    }

    /// Answers the preparation of a statement: these columns will come, by name and type.
    pub fn prepare(&mut self, columns: &[(&str, u32)]) -> io::Result<()> {
        self.hear_request()?;
        self.raw(&prepared(columns))
    }

    /// Hears the statement, and begins its answer.
    pub fn begin_rows(&mut self) -> io::Result<()> {
        self.hear_request()?;
        self.say(b'2', b"")
    }

    /// Passes everything on to a real server and back, what was heard already as well. `alter` sees each of the server's messages,
    /// and says what goes to the client in its place; it may write there by itself, for as long as it likes.
    pub fn relay(
        &mut self,
        server: SocketAddr,
        mut alter: impl FnMut(&mut Talk, u8, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let socket = TcpStream::connect(server)?;
        let (Some(from), mut to) = (self.stream.socket(), socket.try_clone()?) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let mut from = from.try_clone()?;
        let mut upstream = Talk::new(Box::new(socket));
        upstream.raw(&self.startup)?;
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        loop {
            let (kind, body) = upstream.hear()?;
            alter(self, kind, &body)?;
        }
    }

    /// Passes everything on to a real server and back.
    pub fn forward(&mut self, server: SocketAddr) -> io::Result<()> {
        self.relay(server, |talk, kind, body| talk.say(kind, body))
    }
}

/// A message in the protocol's frame.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    announced(kind, i32::try_from(body.len() + 4).unwrap(), body)
}

/// A message that announces another length than it has.
pub fn announced(kind: u8, length: i32, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// Logged in, some parameters, a key, ready.
pub fn logged_in() -> Vec<u8> {
    [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0015.8\0"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'K', &[0; 8]),
        ready(),
    ]
    .concat()
}

/// Ready for the next request.
pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// A statement without parameters was prepared: these columns will come, by name and type.
pub fn prepared(columns: &[(&str, u32)]) -> Vec<u8> {
    [message(b'1', b""), message(b't', &[0, 0]), message(b'T', &description(columns)), ready()].concat()
}

fn description(columns: &[(&str, u32)]) -> Vec<u8> {
    let mut description = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for (name, kind) in columns {
        description.extend_from_slice(name.as_bytes());
        description.extend_from_slice(&[0; 7]);
        description.extend_from_slice(&kind.to_be_bytes());
        description.extend_from_slice(&[0xff; 6]);
        description.extend_from_slice(&[0, 1]);
    }
    description
}

/// A row of these values.
pub fn row(values: &[&[u8]]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value);
    }
    message(b'D', &body)
}

/// The end of an answer.
pub fn complete() -> Vec<u8> {
    [message(b'C', b"SELECT 1\0"), ready()].concat()
}

/// An error, or a notice, with this code and these words.
pub fn error(code: &str, words: &[u8]) -> Vec<u8> {
    [b"SFATAL\0VFATAL\0C", code.as_bytes(), b"\0M", words, b"\0\0"].concat()
}
