use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::{Domain, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// How the log-in of these tests ends.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("PostgreSQL answers")]
    Answered,
    #[error("broken")]
    Broken(#[from] io::Error),
}

/// Says something, and is content with as much as an answer's beginning.
async fn log_in(mut line: Line) -> Result<(), Ended> {
    line.write_all(b"start-up message").await?;
    let mut head = [0; 9];
    line.read_exact(&mut head).await?;
    Err(Ended::Answered)
}

fn says(error: &Ended) -> bool {
    matches!(error, Ended::Answered)
}

fn dialer(limit: Duration) -> Dialer {
    Dialer { host: "localhost".into(), port: 5432, silence: Duration::from_secs(11), limit }
}

const STARTING: &[u8] = b"E\0\0\0\x23SFATAL\0VFATAL\0C57P03\0Mnot now\0\0";

/// An address, and what lets it go on.
struct Place {
    address: SocketAddr,
    dialled: Arc<AtomicUsize>,
    _held: Vec<Box<dyn Send>>,
}

fn place(address: SocketAddr, held: Vec<Box<dyn Send>>) -> Place {
    Place { address, dialled: Arc::default(), _held: held }
}

fn bound() -> socket2::Socket {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket
}

fn address_of(socket: &socket2::Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// Bound and not listening.
fn refusing() -> Place {
    let socket = bound();
    place(address_of(&socket), vec![Box::new(socket)])
}

/// Listening with a full queue: packets vanish.
fn swallowing() -> Place {
    let socket = bound();
    socket.listen(0).unwrap();
    let address = address_of(&socket);
    let mut held: Vec<Box<dyn Send>> = vec![Box::new(socket)];
    while let Ok(waiting) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(Box::new(waiting));
    }
    place(address, held)
}

/// A group of machines, which TCP does not reach.
fn unreachable() -> Place {
    place((Ipv4Addr::new(224, 0, 0, 1), 5432).into(), vec![])
}

fn answering(answer: &'static [u8]) -> Place {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let place = place(listener.local_addr().unwrap(), vec![]);
    let dialled = place.dialled.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            dialled.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
        }
    });
    place
}

/// Takes connections, reads nothing and says nothing.
fn mute() -> Place {
    let socket = bound();
    socket.listen(10).unwrap();
    place(address_of(&socket), vec![Box::new(socket)])
}

async fn dialled(places: &[&Place]) -> Ended {
    let addresses: Vec<_> = places.iter().map(|place| Address::Tcp(place.address)).collect();
    let limit = Duration::from_secs(2);
    dialer(limit).dial_each(&addresses, Instant::now() + limit, log_in, says).await.unwrap_err()
}

/// Of several addresses the first where PostgreSQL answers is taken, whatever is at those before it.
#[tokio::test]
async fn the_first_postgresql_is_taken() {
    let (refusing, swallowing, unreachable) = (refusing(), swallowing(), unreachable());
    let (foreign, closing, mute) = (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), answering(b""), mute());
    for before in [&refusing, &swallowing, &unreachable, &foreign, &closing, &mute] {
        let server = answering(STARTING);
        let ended = dialled(&[before, &server]).await;
        assert!(says(&ended), "after {}: {ended:?}", before.address);
        assert_eq!(server.dialled.load(Ordering::SeqCst), 1);
    }
}

/// What PostgreSQL says is not asked again at the next address: a wrong password there would count twice.
#[tokio::test]
async fn an_answer_of_postgresql_ends_the_search() {
    let (one, two) = (answering(STARTING), answering(STARTING));
    assert!(says(&dialled(&[&one, &two]).await));
    assert_eq!(two.dialled.load(Ordering::SeqCst), 0);
}

/// Where no address has a PostgreSQL, the one that says most stands for all: not running is said only where all that
/// can be used from here refuse.
#[tokio::test]
async fn the_address_that_says_most_stands_for_all() {
    use FailureClass::{CheckFailed, NotAnswering, NotOurs, NotRunning};
    let (refusing, swallowing, unreachable) = (refusing(), swallowing(), unreachable());
    let foreign = answering(b"220 mail.example ESMTP ready\r\n");
    for (places, class) in [
        (vec![&refusing, &refusing], NotRunning),
        (vec![&unreachable, &refusing], NotRunning),
        (vec![&refusing, &unreachable], NotRunning),
        (vec![&unreachable, &unreachable], CheckFailed),
        (vec![&refusing, &swallowing], NotAnswering),
        (vec![&swallowing, &refusing], NotAnswering),
        (vec![&foreign, &refusing], NotOurs),
        (vec![&swallowing, &foreign, &refusing], NotOurs),
    ] {
        let error = dialled(&places).await;
        let obstacle = Obstacle::of(&error).unwrap();
        assert_eq!(obstacle.class(), class, "{obstacle:?}");
    }
}

/// A host that is known by another address family only, as `localhost` may be, is reached.
#[tokio::test]
async fn families_take_turns() {
    let server = answering(STARTING);
    let other = place((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), server.address.port()).into(), vec![]);
    assert!(says(&dialled(&[&other, &server]).await));
}

/// Who has hung up before we could say a word is listened to all the same, if there was a last one.
#[tokio::test]
async fn the_last_word_is_read_although_ours_does_not_arrive() {
    for (word, said) in [(&b"Host is blocked\n"[..], true), (b"", false)] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(word).await.unwrap();
        drop(theirs);
        let ended = log_in(Line::new(Socket::Unix(ours))).await.unwrap_err();
        assert_eq!(matches!(Obstacle::of(&ended), Some(Obstacle::Foreign(_))), said, "{ended:?}");
    }
}

/// The system asks after a silent other side by itself, and sends what is written at once.
#[tokio::test]
async fn the_socket_is_kept_alive() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let Socket::Tcp(stream) = address.connect(Duration::from_secs(12)).await.unwrap() else {
        panic!("another socket")
    };
    let socket = SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(12));
    #[cfg(target_os = "linux")]
    {
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(4));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(24)));
    }
}

/// What the system says about a connection that was not made, by what it says about the proxy.
#[test]
fn each_error_of_the_system_has_its_class() {
    use io::ErrorKind::*;
    for (kind, class) in [
        (ConnectionRefused, FailureClass::NotRunning),
        (NotFound, FailureClass::NotRunning),
        (io::ErrorKind::TimedOut, FailureClass::NotAnswering),
        (HostUnreachable, FailureClass::NotAnswering),
        (WouldBlock, FailureClass::NotAnswering),
        (NetworkUnreachable, FailureClass::CheckFailed),
        (AddrNotAvailable, FailureClass::CheckFailed),
        (PermissionDenied, FailureClass::CheckFailed),
        (InvalidInput, FailureClass::CheckFailed),
    ] {
        assert_eq!(class_of_connect(&kind.into()), class, "{kind}");
    }
    for (number, remedy) in [
        (23, "let this process open more files (ulimit -n)"),
        (24, "let this process open more files (ulimit -n)"),
        (
            number_of(PermissionDenied),
            "let this process connect there: a firewall of this machine or the rights of the socket's folder are in \
             the way",
        ),
    ] {
        let source = io::Error::from_raw_os_error(number);
        let obstacle = Obstacle::Connect { address: "127.0.0.1:5432".into(), source };
        assert_eq!(obstacle.class(), FailureClass::CheckFailed, "{obstacle}");
        assert_eq!(obstacle.remedy("127.0.0.1", 5432).as_deref(), Some(remedy));
    }
}

/// The system's number for a kind of error.
fn number_of(kind: io::ErrorKind) -> i32 {
    (1..200).find(|number| io::Error::from_raw_os_error(*number).kind() == kind).unwrap()
}

/// However the first bytes are cut into pieces, the verdict is the same, and nothing that PostgreSQL sends first is
/// ever taken for another's.
#[test]
fn postgresql_is_known_in_pieces() {
    let sasl = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
    let md5 = b"R\0\0\0\x0c\0\0\0\x05salt";
    let longest = b"E\0\0\x75\x30SFATAL\0";
    for message in [&sasl[..], md5, STARTING, longest, b"R\0\0\0\x08\0\0\0\0", b"R\0\0\x07\xd0\0\0\0\x0a"] {
        let verdicts: Vec<_> = (0..=message.len()).map(|length| judge(&message[..length])).collect();
        assert!(!verdicts.iter().any(|verdict| matches!(verdict, Verdict::Not(_))));
        assert!(matches!(verdicts.last(), Some(Verdict::Postgres)));
        assert!(verdicts[..5].iter().all(|verdict| matches!(verdict, Verdict::Unclear)));
    }
}

/// Lengths and methods that libpq does not take are not taken here.
#[test]
fn what_libpq_does_not_take_is_foreign() {
    for message in [
        &b"R\0\0\0\x07\0\0\0"[..],
        b"R\0\0\x07\xd1\0\0\0\x0a",
        b"R\0\0\0\x08\0\0\0\x0d",
        b"R\xff\xff\xff\xff\0\0\0\0",
        b"E\0\0\0\x04",
        b"E\0\0\x75\x31SFATAL",
        b"E\0\0\0\x40\xff\x6a\x04",
        b"EHLO there\r\n",
        b"v\0\0\0\x0c\0\0\0\0\0\0\0\0",
        b"Z\0\0\0\x05I",
    ] {
        assert!(matches!(judge(message), Verdict::Not(Obstacle::Foreign(_))), "{}", message.escape_ascii());
    }
}

/// The excerpt is a line or the beginning of it, never longer than its bound, and holds nothing that a terminal obeys.
#[test]
fn an_excerpt_is_short_and_printable() {
    let long = [b'x'; 1000];
    let bells = [7; 1000];
    for (head, text) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\nmore"[..], "SSH-2.0-OpenSSH_9.2".to_owned()),
        (b"\n\n  hello \n", "hello".to_owned()),
        (b"say \"no\"\x1b[2J", r#"say \"no\"\x1b[2J"#.to_owned()),
        (&long, format!("{}…", "x".repeat(39))),
        (&bells, format!("{}…", r"\x07".repeat(9))),
        ("größer".as_bytes(), r"gr\xc3\xb6\xc3\x9fer".to_owned()),
        (b"\n", r"\n".to_owned()),
    ] {
        assert_eq!(excerpt(head), text);
        assert!(excerpt(head).chars().count() <= EXCERPT_MAX);
    }
}
