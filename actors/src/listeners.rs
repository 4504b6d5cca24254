//! The listening TCP sockets of this machine that have a given port, as the system lists them.
//!
//! ```text
//! Linux     ─▶ sock_diag: "TCP, LISTEN, this port", once for IPv4 and once for IPv6 ─▶ only those rows
//! elsewhere ─▶ the whole TCP table ─▶ filtered here
//! ```
//!
//! An error is never an empty list: who may not look does not say that nothing is there.

use std::io;
use std::net::IpAddr;

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listener {
    /// What it is bound to.
    pub(crate) bound: IpAddr,
    /// An IPv6 socket that takes no IPv4. Where the system does not tell: false.
    pub(crate) v6_only: bool,
    /// Which socket it is, for as long as it exists. Where the system does not tell: none.
    pub(crate) inode: Option<u32>,
}

/// Every listener on `port`, of this network namespace.
///
/// # Errors
/// When the system does not list its sockets, to us or at all.
pub(crate) fn on_port(port: u16) -> io::Result<Vec<Listener>> {
    system::on_port(port)
}

#[cfg(target_os = "linux")]
mod system {
    use super::{Listener, io};

    use netlink_packet_core::{
        NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload as Payload,
    };
    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
    use netlink_packet_sock_diag::inet::nlas::Nla;
    use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
    use netlink_packet_sock_diag::message::SockDiagMessage;
    use netlink_sys::Socket;
    use netlink_sys::protocols::NETLINK_SOCK_DIAG;

    /// The kernel's datagrams are as large as the reader's buffer was, and the first one is 8 KiB at most.
    const DATAGRAM: usize = 8 * 1024;

    pub(super) fn on_port(port: u16) -> io::Result<Vec<Listener>> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        let mut listeners = list(&socket, listening(AF_INET, SocketId::new_v4(), port))?;
        match list(&socket, listening(AF_INET6, SocketId::new_v6(), port)) {
            Ok(more) => listeners.extend(more),
            // A kernel that lists IPv4 and knows no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(listeners)
    }

    /// The kernel filters by state and by port: it walks its listeners, never its connections.
    pub(super) fn listening(family: u8, any: SocketId, port: u16) -> InetRequest {
        InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: SocketId { source_port: port, ..any },
        }
    }

    /// One dump. Never waits: the kernel works while the request is sent and while the answer is read, so what
    /// is not there at once never comes.
    pub(super) fn list(socket: &Socket, request: InetRequest) -> io::Result<Vec<Listener>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut message =
            NetlinkMessage::new(header, Payload::InnerMessage(SockDiagMessage::InetRequest(request)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        socket.send(&bytes, 0)?;

        let mut listeners = Vec::new();
        let mut buffer = [0; DATAGRAM];
        loop {
            let length = socket.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT | libc::MSG_TRUNC)?;
            let datagram = buffer.get(..length).ok_or_else(|| unusable("longer than announced"))?;
            if read(datagram, &mut listeners)? {
                return Ok(listeners);
            }
        }
    }

    /// Appends the rows of one datagram; true when it was the last one.
    pub(super) fn read(mut datagram: &[u8], listeners: &mut Vec<Listener>) -> io::Result<bool> {
        while !datagram.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(datagram).map_err(unusable)?;
            match message.payload {
                Payload::InnerMessage(SockDiagMessage::InetResponse(row)) => listeners.push(listener(&row)),
                Payload::Done(done) if done.code == 0 => return Ok(true),
                Payload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.saturating_abs())),
                Payload::Error(error) => return Err(error.to_io()),
                Payload::Noop => {}
                _ => return Err(unusable("not an answer to the question")),
            }
            let next = (message.header.length as usize).next_multiple_of(4);
            datagram = datagram.get(next..).unwrap_or_default();
        }
        Ok(false)
    }

    fn listener(row: &InetResponse) -> Listener {
        let v6_only = row.nlas.iter().any(|attribute| matches!(attribute, Nla::SkV6Only(true)));
        Listener { bound: row.header.socket_id.source_address, v6_only, inode: Some(row.header.inode) }
    }

    fn unusable(why: impl ToString) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("the list of sockets: {}", why.to_string()))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Listener, io};

    use netstat2::{AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState, iterate_sockets_info};

    pub(super) fn on_port(port: u16) -> io::Result<Vec<Listener>> {
        let families = AddressFamilyFlags::IPV4 | AddressFamilyFlags::IPV6;
        let mut listeners = Vec::new();
        for row in iterate_sockets_info(families, ProtocolFlags::TCP).map_err(io::Error::other)? {
            if let ProtocolSocketInfo::Tcp(socket) = row.map_err(io::Error::other)?.protocol_socket_info
                && socket.state == TcpState::Listen
                && socket.local_port == port
            {
                listeners.push(Listener { bound: socket.local_addr, v6_only: false, inode: None });
            }
        }
        Ok(listeners)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    use netlink_packet_sock_diag::constants::AF_INET;
    use netlink_packet_sock_diag::inet::SocketId;
    use netlink_sys::Socket;
    use netlink_sys::protocols::NETLINK_SOCK_DIAG;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    /// The kernel hands over the listener alone, however many connections there are on its port.
    #[test]
    fn connections_on_the_port_are_not_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Vec<_> =
            (0..200).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0)).collect();
        let socket = std::fs::File::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        let inode = u32::try_from(socket.metadata().unwrap().ino()).unwrap();
        let expected = Listener { bound: Ipv4Addr::LOCALHOST.into(), v6_only: false, inode: Some(inode) };
        assert_eq!(on_port(address.port()).unwrap(), [expected]);
        drop(connections);
        assert_eq!(on_port(address.port()).unwrap(), [expected], "nor when they are closed");
    }

    /// More listeners than fit into one datagram arrive all the same.
    #[test]
    fn a_long_answer_is_read_to_its_end() {
        let first = TcpListener::bind("127.1.0.0:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others: Vec<_> = (1..=150)
            .map(|last| TcpListener::bind((Ipv4Addr::new(127, 1, 0, last), port)).unwrap())
            .collect();
        assert_eq!(on_port(port).unwrap().len(), 1 + others.len());
    }

    /// A kernel that cannot list what was asked for says so, and that is not an empty list.
    #[test]
    fn a_refusal_is_an_error() {
        let socket = Socket::new(NETLINK_SOCK_DIAG).unwrap();
        let mut request = system::listening(AF_INET, SocketId::new_v4(), 1);
        // A protocol without a list of sockets.
        request.protocol = 254;
        assert_eq!(system::list(&socket, request).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// An answer that is cut off, or no answer at all, is not an empty list either.
    #[test]
    fn a_damaged_answer_is_an_error() {
        let message = |length: u32, kind: u16, body: i32| {
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body.to_ne_bytes()].concat()
        };
        let mut rows = Vec::new();
        let mut problem = |bytes: &[u8]| system::read(bytes, &mut rows).unwrap_err().kind();
        let longer_than_it_is = message(100, 20, 0);
        assert_eq!(problem(&longer_than_it_is), io::ErrorKind::InvalidData);
        assert_eq!(problem(&longer_than_it_is[..10]), io::ErrorKind::InvalidData);
        let ended_by_eperm = message(20, 3, -1);
        assert_eq!(problem(&ended_by_eperm), io::ErrorKind::PermissionDenied);
        assert_eq!(rows, []);
    }
}
