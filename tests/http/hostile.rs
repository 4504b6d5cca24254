//! Who is refused, and what is bounded.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tidewater_test_support::{shell, wait};

use crate::client::{Events, answer_of, ask, connect, exchange, get};
use crate::process::{Device, PATIENCE, Process};
use crate::{alone, serving};

const ROUTES: [&str; 7] = ["/", "/healthz", "/readyz", "/metrics", "/status", "/events", "/elsewhere"];

/// A web page that makes a browser ask, by a name of its own that leads here, is refused on every route; so is who names
/// nobody, or two.
#[test]
fn only_who_means_loopback_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    let port = address.port();
    for path in ROUTES {
        for (head, status) in [
            (format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n"), 421),
            (format!("GET {path} HTTP/1.1\r\nHost: evil.example:{port}\r\n"), 421),
            (format!("GET {path} HTTP/1.1\r\nHost: localhost.evil.example\r\n"), 421),
            (format!("GET {path} HTTP/1.1\r\nHost: 0.0.0.0:{port}\r\n"), 421),
            (format!("GET {path} HTTP/1.1\r\nHost:\r\n"), 421),
            (format!("GET http://evil.example{path} HTTP/1.1\r\nHost: localhost\r\n"), 421),
            (format!("GET http://localhost{path} HTTP/1.1\r\nHost: evil.example\r\n"), 421),
            (format!("GET {path} HTTP/1.1\r\n"), 400),
            (format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"), 400),
            (format!("GET {path} HTTP/1.0\r\n"), 400),
            (format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n"), 421),
            (format!("POST {path} HTTP/1.1\r\nHost: evil.example\r\n"), 421),
        ] {
            let answer = exchange(address, format!("{head}\r\n").as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{head}{answer:?}");
            assert!(!answer.body.contains("pending") && !answer.body.contains("ready"), "{head}{answer:?}");
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:8432", "[::1]:9"] {
        let answer = exchange(address, format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        assert_eq!(answer.unwrap().status, 200, "{host}");
    }
    let old = exchange(address, b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(old.status, 200, "HTTP/1.0 is no reason");
    let absolute = format!("GET http://localhost:{port}/readyz HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
    assert_eq!(exchange(address, absolute.as_bytes()).unwrap().status, 200);
    process.stop();
}

/// Nothing but GET and HEAD, nothing with a body; every answer tells browsers to keep, guess and frame nothing.
#[test]
fn only_reading_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    for path in ROUTES {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"] {
            let answer = ask(address, method, path, "");
            // `CONNECT` names an address and no path.
            let expected = if method == "CONNECT" { [400, 405, 421] } else { [405; 3] };
            assert!(expected.contains(&answer.status), "{method} {path}: {answer:?}");
            assert!(answer.status != 405 || answer.header("Allow") == Some("GET, HEAD"), "{answer:?}");
        }
        for headers in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
            let answer = ask(address, "GET", path, headers);
            assert_eq!(answer.status, 413, "{path} {headers}: {answer:?}");
        }
        let head = ask(address, "HEAD", path, "");
        assert_eq!(head.body, "", "{path}");
        let expected = if path == "/elsewhere" { 404 } else { 200 };
        assert_eq!(head.status, expected, "{path}: {head:?}");
    }
    let answers = [get(address, "/status"), get(address, "/elsewhere"), ask(address, "POST", "/status", "")];
    for answer in answers {
        for (name, value) in [
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
            ("Referrer-Policy", "no-referrer"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
        assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
    }
    process.stop();
}

/// There are no files to be had, whatever the path is dressed up as.
#[test]
fn no_path_leads_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    for path in [
        "/../etc/passwd",
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%252e%252e/etc/passwd",
        "/metrics/../../etc/passwd",
        "/metrics/%2e%2e/status",
        "/./status",
        "//status",
        "//",
        "///etc/passwd",
        "//evil.example/status",
        "/status/",
        "/status/alone.db",
        "/alone.db",
        "/%00",
        "/status%00",
        "/\\..\\etc",
        "/..;/status",
        "*",
    ] {
        let answer = ask(address, "GET", path, "");
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
        assert!(!answer.body.contains("root:"), "{path}: {answer:?}");
    }
    assert_eq!(get(address, "/status?whatever=../../x").status, 200, "a query changes nothing");
    process.stop();
}

/// How many files the process has open.
fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count()
}

/// What the process has in memory at most, in KiB.
fn peak_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A connection that is begun and not waited for.
fn begin(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    // It is under way, or waits for a place in the system's queue.
    let _ = socket.connect(&address.into());
    socket
}

/// Whoever asks byte by byte is given the time of one request, whoever sends megabytes is not read, and a thousand that say
/// nothing have a few places; the sync goes on meanwhile, and afterwards everybody is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_hostile_costs_little_and_stops_nothing() {
    let device = Device::new().await;
    device.proxy.start();
    let (process, address) = serving(
        device
            .command()
            .env("TIDEWATER_HTTP__REQUEST_TIMEOUT_S", "1")
            .env("TIDEWATER_HTTP__CONNECTIONS_MAX", "32"),
    );
    shell::sqlite3_shell(device.path(), "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);");
    device.wait_until_equal(&["note"]).await;
    let (files, peak) = (open_files(&process), peak_kib(&process));

    // A byte at a time.
    let slow = Instant::now();
    let mut stream = connect(address);
    let dripping = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().chain([b'a'; 400].iter());
    for byte in dripping {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = answer_of(&mut stream);
    assert!(answer.is_none_or(|answer| answer.status == 408), "it was answered");
    assert!(slow.elapsed() < Duration::from_secs(8), "{:?}", slow.elapsed());

    // A good request, and then a byte at a time: the connection is for one request.
    let mut stream = connect(address);
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTT").unwrap();
    let asked = Instant::now();
    let answer = answer_of(&mut stream).unwrap();
    assert!(
        answer.status == 200 && asked.elapsed() < Duration::from_secs(8),
        "{answer:?} {:?}",
        asked.elapsed()
    );

    // A body that is announced and does not come, and a protocol that is not spoken here.
    for headers in [
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Expect: 100-continue\r\nContent-Length: 5\r\n",
    ] {
        let asked = Instant::now();
        let answer = ask(address, "GET", "/healthz", headers);
        // Who asks whether to go on is told to, and then what comes of it.
        assert!([100, 200, 413].contains(&answer.status), "{headers}: {answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(8), "{headers}: {:?}", asked.elapsed());
    }

    // Ten mebibytes, as a head and as a body.
    let large = "a".repeat(10 << 20);
    for request in [
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {large}\r\n\r\n"),
        format!("GET /{large} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{large}", large.len()),
        format!(
            "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{large}",
            large.len()
        ),
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(1000)),
        large.clone(),
    ] {
        let asked = Instant::now();
        // A connection that is cut while it sends may not see the answer.
        if let Some(answer) = exchange(address, request.as_bytes()) {
            assert!([400, 405, 413, 414, 431].contains(&answer.status), "{}: {answer:?}", &request[..40]);
        }
        assert!(asked.elapsed() < Duration::from_secs(8), "{}: {:?}", &request[..40], asked.elapsed());
    }

    // A thousand that say nothing.
    let idle: Vec<Socket> = (0..1000).map(|_| begin(address)).collect();
    let began = Instant::now();
    shell::sqlite3_shell(device.path(), "INSERT INTO note (body) VALUES ('meanwhile');");
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    let took = began.elapsed();
    let more = open_files(&process).saturating_sub(files);
    assert!(more <= 32 + 8, "{more} more files are open");
    drop(idle);
    wait::until_blocking("it answers again", PATIENCE, || {
        let answer = get(address, "/healthz");
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let grown = peak_kib(&process).saturating_sub(peak);
    assert!(grown < 32 << 10, "{grown} KiB more at the peak");
    let lines = process.stop();
    println!("the row took {took:?} through a thousand connections; {more} files, {grown} KiB more");
    assert!(!lines.iter().any(|line| line.contains("WARNING") || line.contains("ERROR")), "{lines:#?}");
}

/// So many follow the events and no more; a place that becomes free is given again, that of somebody who reads nothing too;
/// meanwhile he hinders nobody, and nobody hinders the end.
#[test]
fn subscribers_have_a_number_of_places() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    command.env("TIDEWATER_HTTP__SUBSCRIBERS_MAX", "2").env("TIDEWATER_HTTP__REQUEST_TIMEOUT_S", "1");
    let (process, address) = serving(&mut command);
    // Little fits between the two.
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    deaf.set_recv_buffer_size(1).unwrap();
    deaf.connect(&address.into()).unwrap();
    let mut deaf = std::net::TcpStream::from(deaf);
    deaf.write_all(format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
    let mut reader = Events::follow(address, "/events");
    reader.wait_for("counts", |_| true);
    let full = get(address, "/events");
    assert_eq!(full.status, 503, "{full:?}");
    assert!(full.body.contains("http.subscribers_max") && full.header("Retry-After").is_some(), "{full:?}");
    assert_eq!(get(address, "/healthz").status, 200);

    let sql = |sql: &str| shell::sqlite3_shell(folder.path().join("alone.db"), sql);
    sql("CREATE TABLE note (id INTEGER PRIMARY KEY);");
    let (deafened, mut told) = (Instant::now(), 0);
    let follow = || Events::try_follow(address, "/events");
    while follow().is_err() {
        assert!(deafened.elapsed() < PATIENCE, "whoever reads nothing keeps the place after {told} events");
        told += 1;
        sql("INSERT INTO note DEFAULT VALUES;");
        reader.wait_for("counts", |it| it["pending"] == told);
    }
    println!("the place of somebody deaf was free after {told} events, {:?}", deafened.elapsed());
    let second = wait::until_blocking("there is a place", PATIENCE, follow);
    let third = follow().err();
    assert_eq!(third.as_deref(), Some("HTTP/1.1 503 Service Unavailable"), "both are taken");
    drop(reader);
    wait::until_blocking("a place is free", PATIENCE, || follow().map(drop));
    let asked = Instant::now();
    process.stop();
    assert!(asked.elapsed() < Duration::from_secs(5), "the end took {:?}", asked.elapsed());
    drop((deaf, second));
}
