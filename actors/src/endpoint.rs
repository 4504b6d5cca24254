//! Where the proxy is said to be, and whether anything listens there: seen in the system's tables, without
//! connecting.
//!
//! ```text
//! Unix socket            ─▶ is the file there, and which?
//! a port of this machine ─▶ is it in the socket table, listening, and which socket is it?
//! anything else          ─▶ cannot be seen from here
//! ```
//!
//! Parts: [`Endpoint`], which looks once; [`Lookout`], which looks again and again and sees when the listener is another
//! one, however short the time was in which there was none.
//!
//! No connection and no name resolution: every connection makes the real proxy dial the instance behind it,
//! and a resolver can take seconds.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::core::availability::Listening;
use crate::listeners::{self, Listener};

/// Where the proxy listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host (a name or an address) and a port.
    Tcp {
        /// As configured; a name is not resolved here.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// The socket file itself.
    Unix {
        /// `DIR/.s.PGSQL.PORT`.
        path: PathBuf,
    },
}

impl Endpoint {
    /// From the two settings. A host that is an absolute directory means the Unix socket in it, as PostgreSQL
    /// and the proxy name it.
    pub fn new(host: &str, port: u16) -> Self {
        let directory = Path::new(host);
        if directory.is_absolute() {
            return Self::Unix { path: directory.join(format!(".s.PGSQL.{port}")) };
        }
        Self::Tcp { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port }
    }

    /// Whether anything listens there. Synchronous, and never waits for anybody.
    ///
    /// On Linux it costs the same with no connection and with tens of thousands. Measured (release build): 20 us;
    /// 60 us when a second lies between two looks, because nothing is cached then. The bench is `control_plane`.
    /// Elsewhere the system lists every TCP socket that it has.
    ///
    /// A Unix socket's file stays when its listener dies, and then this says [`Listening::Yes`]: one check is
    /// refused per step of the backoff; its successor's file is seen by [`Lookout`]. The kernel's list of Unix sockets cannot correct that: it leaves out
    /// listeners of other network namespaces, which a path shared between containers reaches all the same.
    pub fn look(&self) -> Listening {
        match self.listeners() {
            Some(listeners) if listeners.is_empty() => Listening::No,
            Some(_) => Listening::Yes,
            None => Listening::CannotSee,
        }
    }

    /// Which ones; `None` when that cannot be seen.
    fn listeners(&self) -> Option<Vec<Identity>> {
        match self {
            Self::Unix { path } => match path.metadata() {
                Ok(file) => Some(vec![Identity::of(&file)]),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(vec![]),
                Err(_) => None,
            },
            Self::Tcp { host, port } => {
                let local = Local::of(host)?;
                let found = listeners::on_port(*port).ok()?;
                let serving = found.iter().filter(|listener| local.is_served_by(listener));
                Some(serving.map(|listener| Identity::Socket(listener.inode)).collect())
            }
        }
    }
}

/// What makes a listener the same one as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// The number of a file alone does not do: the next file may get it.
    File { device: u64, inode: u64, changed: (i64, i64) },
    /// Without a number, as from systems that tell none, all are the same.
    Socket(Option<u32>),
}

impl Identity {
    fn of(file: &std::fs::Metadata) -> Self {
        Self::File { device: file.dev(), inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// Looks at an endpoint again and again.
///
/// A proxy that is replaced between two looks leaves its file, or a listener on its port, for either of them to see:
/// only who remembers which one it was sees that it is new.
#[derive(Debug)]
pub struct Lookout {
    endpoint: Endpoint,
    /// Those of the last look that saw any.
    known: Mutex<Option<Vec<Identity>>>,
}

impl Lookout {
    /// One that has not looked yet: the first it sees is nobody else.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, known: Mutex::new(None) }
    }

    /// As [`Endpoint::look`]; [`Listening::Another`] when one is there that was not when somebody was last seen.
    /// One of several that is gone makes nobody new.
    pub fn look(&self) -> Listening {
        let Some(found) = self.endpoint.listeners() else { return Listening::CannotSee };
        if found.is_empty() {
            return Listening::No;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = known.as_ref().is_some_and(|known| found.iter().any(|one| !known.contains(one)));
        *known = Some(found);
        if new { Listening::Another } else { Listening::Yes }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

/// A host that can only mean this machine.
#[derive(Debug, PartialEq, Eq)]
enum Local {
    Address(IpAddr),
    /// `localhost`: either family.
    Name,
}

impl Local {
    fn of(host: &str) -> Option<Self> {
        if host.eq_ignore_ascii_case("localhost") {
            return Some(Self::Name);
        }
        let address = host.parse::<IpAddr>().ok()?.to_canonical();
        // Whoever connects to the wildcard address reaches this machine.
        let address = match address {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        };
        address.is_loopback().then_some(Self::Address(address))
    }

    /// Whether this listener answers there. An IPv6 wildcard usually takes IPv4 too; where the system does not
    /// tell that it does not, a check is made that would not have been needed: the harmless mistake.
    fn is_served_by(&self, listener: &Listener) -> bool {
        match (self, listener.bound.to_canonical()) {
            (Self::Address(IpAddr::V4(_)), IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => !listener.v6_only,
            (_, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => true,
            (Self::Name, bound) => bound.is_unspecified() || bound.is_loopback(),
            (Self::Address(IpAddr::V4(_)), IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => true,
            (Self::Address(address), bound) => *address == bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::new(host, port)
    }

    /// What people read in the log and in `status`.
    #[test]
    fn an_endpoint_is_written_as_people_configure_it() {
        assert_eq!(tcp("127.0.0.1", 5432).to_string(), "127.0.0.1:5432");
        assert_eq!(tcp("[::1]", 5432).to_string(), "[::1]:5432");
        assert_eq!(tcp("db.example", 1).to_string(), "db.example:1");
        assert_eq!(tcp("/cloudsql/p:r:i", 5432).to_string(), "/cloudsql/p:r:i/.s.PGSQL.5432");
    }

    /// A listener is seen without connecting to it, and so is its end.
    #[test]
    fn a_listener_of_this_machine_is_seen_to_come_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        for host in ["127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert_eq!(tcp(host, port).look(), Listening::Yes, "{host}");
        }
        assert_eq!(tcp("127.0.0.2", port).look(), Listening::No, "another address of this machine");
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody connected");
        drop(listener);
        assert_eq!(tcp("127.0.0.1", port).look(), Listening::No);
    }

    /// A connection that merely uses the port number is not a listener.
    #[test]
    fn an_established_connection_is_not_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(tcp("127.0.0.1", port).look(), Listening::No);
    }

    /// A wildcard listener serves every address of the machine.
    #[test]
    fn a_wildcard_listener_counts() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "127.9.9.9", "localhost"] {
            assert_eq!(tcp(host, port).look(), Listening::Yes, "{host}");
        }
        assert_eq!(tcp("::1", port).look(), Listening::No, "an IPv4 wildcard takes no IPv6");
    }

    /// An IPv6 wildcard serves IPv4 too, unless it was told not to.
    #[test]
    fn an_ipv6_wildcard_counts_for_what_it_takes() {
        for v6_only in [false, true] {
            let Some((_listener, port)) = listen_on_ipv6("[::]:0", v6_only) else { return };
            assert_eq!(tcp("::1", port).look(), Listening::Yes);
            assert_eq!(tcp("localhost", port).look(), Listening::Yes);
            // Other systems do not tell: there a check too many is made.
            if cfg!(target_os = "linux") {
                let ipv4 = if v6_only { Listening::No } else { Listening::Yes };
                assert_eq!(tcp("127.0.0.1", port).look(), ipv4, "v6_only: {v6_only}");
            }
        }
    }

    /// A listener on IPv6's loopback is no listener on IPv4's.
    #[test]
    fn a_listener_on_ipv6_loopback_serves_that_alone() {
        let Some((_listener, port)) = listen_on_ipv6("[::1]:0", true) else { return };
        assert_eq!(tcp("[::1]", port).look(), Listening::Yes);
        assert_eq!(tcp("::", port).look(), Listening::Yes);
        assert_eq!(tcp("localhost", port).look(), Listening::Yes);
        assert_eq!(tcp("127.0.0.1", port).look(), Listening::No);
    }

    /// `None` on a machine without IPv6; whatever else goes wrong fails the test.
    fn listen_on_ipv6(address: &str, v6_only: bool) -> Option<(socket2::Socket, u16)> {
        use socket2::{Domain, Socket, Type};
        let missing = [std::io::ErrorKind::AddrNotAvailable, std::io::ErrorKind::Unsupported];
        let bound = Socket::new(Domain::IPV6, Type::STREAM, None).and_then(|socket| {
            socket.set_only_v6(v6_only)?;
            socket.bind(&address.parse::<std::net::SocketAddr>().unwrap().into())?;
            socket.listen(1)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => {
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                Some((socket, port))
            }
            Err(error) if missing.contains(&error.kind()) => None,
            Err(error) => panic!("{address}: {error}"),
        }
    }

    /// Which bound address answers for which configured host.
    #[test]
    fn addresses_match_as_the_kernel_would() {
        for (host, address, v6_only, served) in [
            ("127.0.0.1", "::", false, true),
            ("127.0.0.1", "::", true, false),
            ("localhost", "::", true, true),
            ("::1", "::", true, true),
            ("localhost", "::1", false, true),
            ("localhost", "127.0.0.1", false, true),
            ("::1", "::1", false, true),
            ("::1", "127.0.0.1", false, false),
            ("127.0.0.1", "::ffff:127.0.0.1", false, true),
            ("localhost", "10.0.0.1", false, false),
            ("127.0.0.1", "10.0.0.1", false, false),
        ] {
            let listener = Listener { bound: address.parse().unwrap(), v6_only, inode: None };
            assert_eq!(Local::of(host).unwrap().is_served_by(&listener), served, "{host} by {listener:?}");
        }
    }

    /// Other machines, and names that would have to be resolved, are honest blind spots.
    #[test]
    fn what_is_not_this_machine_cannot_be_seen() {
        for host in ["10.0.0.1", "db.example", "cloud-sql-proxy", "::2"] {
            assert_eq!(tcp(host, 5432).look(), Listening::CannotSee, "{host}");
        }
    }

    /// A proxy that is gone and back between two looks is another one; the first that is seen is not, nor is one that
    /// stays.
    #[test]
    fn a_listener_that_was_replaced_between_two_looks_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".s.PGSQL.5432");
        let file = || -> Box<dyn Send> {
            let _ = std::fs::remove_file(&path);
            Box::new(std::os::unix::net::UnixListener::bind(&path).unwrap())
        };
        let lookout = Lookout::new(Endpoint::Unix { path: path.clone() });
        drop(seen_replaced(&lookout, &file));
        assert_eq!(lookout.look(), Listening::Yes, "the file of a dead one is no new one");

        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        drop(first);
        let lookout = Lookout::new(tcp("localhost", address.port()));
        // Other systems do not tell one socket from another.
        if cfg!(target_os = "linux") {
            let last = seen_replaced(&lookout, &|| Box::new(TcpListener::bind(address).unwrap()));
            let Some((second, _)) = listen_on_ipv6(&format!("[::1]:{}", address.port()), true) else {
                return;
            };
            assert_eq!(lookout.look(), Listening::Another, "a second one besides");
            assert_eq!(lookout.look(), Listening::Yes);
            drop(second);
            assert_eq!(lookout.look(), Listening::Yes, "the first one stayed");
            drop(last);
            assert_eq!(lookout.look(), Listening::No);
        }
    }

    /// Two listeners, one after the other; returns the second.
    fn seen_replaced(lookout: &Lookout, bind: &dyn Fn() -> Box<dyn Send>) -> Box<dyn Send> {
        assert_eq!(lookout.look(), Listening::No);
        let first = bind();
        assert_eq!(lookout.look(), Listening::Yes, "the first one");
        assert_eq!(lookout.look(), Listening::Yes, "it stays");
        drop(first);
        let second = bind();
        assert_eq!(lookout.look(), Listening::Another);
        assert_eq!(lookout.look(), Listening::Yes, "it stays");
        second
    }

    /// For a Unix socket the file is the evidence.
    #[test]
    fn a_unix_socket_is_seen_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::new(directory.path().to_str().unwrap(), 5432);
        assert_eq!(endpoint.look(), Listening::No);
        let path = directory.path().join(".s.PGSQL.5432");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(endpoint.look(), Listening::Yes);
        drop(listener);
        assert_eq!(endpoint.look(), Listening::Yes, "a file without its listener is still there");
        std::fs::remove_file(path).unwrap();
        assert_eq!(endpoint.look(), Listening::No);
    }
}
