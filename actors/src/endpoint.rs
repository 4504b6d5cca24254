//! Where the proxy is said to be, and whether anything listens there: seen in the system's tables, without
//! connecting.
//!
//! ```text
//! Unix socket            ─▶ is the file there?
//! a port of this machine ─▶ is it in the socket table, listening?
//! anything else          ─▶ cannot be seen from here
//! ```
//!
//! No connection and no name resolution: every connection makes the real proxy dial the instance behind it,
//! and a resolver can take seconds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use netstat2::{AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState};

use crate::core::availability::Listening;

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

    /// Whether anything listens there.
    ///
    /// Synchronous: the system lists every TCP socket that it has. Measured (Linux, release build): 0.5 ms, and
    /// 0.7 ms more for every thousand sockets; up to five times that without optimisation.
    pub fn look(&self) -> Listening {
        match self {
            Self::Unix { path } => match path.try_exists() {
                Ok(true) => Listening::Yes,
                Ok(false) => Listening::No,
                Err(_) => Listening::CannotSee,
            },
            Self::Tcp { host, port } => match Local::of(host) {
                Some(local) => look_in_socket_table(&local, *port),
                None => Listening::CannotSee,
            },
        }
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

    /// Whether a listener bound to `bound` answers there. An IPv6 wildcard usually takes IPv4 too; where it
    /// does not, a check is made that would not have been needed, and that is the harmless mistake.
    fn is_served_by(&self, bound: IpAddr) -> bool {
        match (self, bound.to_canonical()) {
            (_, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => true,
            (Self::Name, bound) => bound.is_unspecified() || bound.is_loopback(),
            (Self::Address(IpAddr::V4(_)), IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => true,
            (Self::Address(address), bound) => *address == bound,
        }
    }
}

fn look_in_socket_table(local: &Local, port: u16) -> Listening {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
    use netstat2::iterate_sockets_info_without_pids as sockets;
    // macOS gives the process ids with the table; there is no cheaper way there.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "windows")))]
    use netstat2::iterate_sockets_info as sockets;

    let families = AddressFamilyFlags::IPV4 | AddressFamilyFlags::IPV6;
    let Ok(table) = sockets(families, ProtocolFlags::TCP) else {
        return Listening::CannotSee;
    };
    let mut rows = 0_usize;
    for row in table {
        let Ok(row) = row else {
            return Listening::CannotSee;
        };
        rows += 1;
        if let ProtocolSocketInfo::Tcp(socket) = row.protocol_socket_info
            && socket.state == TcpState::Listen
            && socket.local_port == port
            && local.is_served_by(socket.local_addr)
        {
            return Listening::Yes;
        }
    }
    if rows == 0 && !emptiness_is_believable() {
        return Listening::CannotSee;
    }
    Listening::No
}

/// Where the kernel refuses to list its sockets, the reader reports an empty table and no error. `/proc` tells
/// the two apart: not a socket in the whole machine, or none that we may see.
fn emptiness_is_believable() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    std::fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.lines().count() <= 1)
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

    /// Which bound address answers for which configured host.
    #[test]
    fn addresses_match_as_the_kernel_would() {
        let bound = |text: &str| text.parse::<IpAddr>().unwrap();
        for (host, address, served) in [
            ("127.0.0.1", "::", true),
            ("localhost", "::1", true),
            ("localhost", "127.0.0.1", true),
            ("::1", "::1", true),
            ("::1", "127.0.0.1", false),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("localhost", "10.0.0.1", false),
            ("127.0.0.1", "10.0.0.1", false),
        ] {
            assert_eq!(Local::of(host).unwrap().is_served_by(bound(address)), served, "{host} by {address}");
        }
    }

    /// Other machines, and names that would have to be resolved, are honest blind spots.
    #[test]
    fn what_is_not_this_machine_cannot_be_seen() {
        for host in ["10.0.0.1", "db.example", "cloud-sql-proxy", "::2"] {
            assert_eq!(tcp(host, 5432).look(), Listening::CannotSee, "{host}");
        }
    }

    /// For a Unix socket the file is the evidence.
    #[test]
    fn a_unix_socket_is_seen_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::new(directory.path().to_str().unwrap(), 5432);
        assert_eq!(endpoint.look(), Listening::No);
        let _listener =
            std::os::unix::net::UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
        assert_eq!(endpoint.look(), Listening::Yes);
    }
}
