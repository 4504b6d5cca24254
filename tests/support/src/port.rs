//! Ports of our own on the loopback address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Below the range that the system hands out for outgoing connections (Linux: 32768 and up), so that no
/// client's port can be in the way, not even while the server is down.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port that stays ours while nobody listens on it.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// Bound and never listening: Linux then lets another socket with `SO_REUSEADDR` listen, connects are
    /// refused while none does, and nobody is handed the number. Elsewhere two sockets may not share it.
    _held: Option<Socket>,
}

impl Port {
    /// Finds a free port and keeps it.
    pub(crate) fn reserve() -> Port {
        let mut last = None;
        for _ in 0..200 {
            let number = fastrand::u16(RANGE);
            // Listening shows what a bare bind does not: that somebody else listens there already.
            match listen(number).and_then(|probe| {
                drop(probe);
                bind(number)
            }) {
                Ok(held) => {
                    return Port { number, _held: cfg!(target_os = "linux").then_some(held) };
                }
                Err(error) => last = Some(error),
            }
        }
        panic!("no free port on 127.0.0.1 in {RANGE:?}, the last attempt said: {last:?}");
    }

    /// The number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// A socket that listens on it.
    pub(crate) fn listen(&self) -> io::Result<std::net::TcpListener> {
        let socket = listen(self.number)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

fn bind(number: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
    Ok(socket)
}

fn listen(number: u16) -> io::Result<Socket> {
    let socket = bind(number)?;
    socket.listen(128)?;
    Ok(socket)
}
