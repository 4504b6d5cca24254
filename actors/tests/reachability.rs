//! What answers where the cloud should be, or does not: each by its class, and in the words that users read.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tidewater_actors::core::failure::{CloudFailure, FailureClass};
use tidewater_actors::postgres::{Cloud, CloudOptions, CloudSession, LinkOptions};
use tidewater_test_support::postgres::Options;
use tidewater_test_support::{Database, FaultProxy, Mode, Postgres, wait};

use FailureClass::{Busy, CheckFailed, Credentials, NotAnswering, NotOurs, NotRunning};

// ---------------------------------------------------------------------------------------------------------
// The bench
// ---------------------------------------------------------------------------------------------------------

const SECRET: &str = "hunter2-very-secret";

/// With a timeout that a server which is there keeps, also on a busy machine.
fn options(database: &Database, port: u16) -> CloudOptions {
    CloudOptions {
        host: "127.0.0.1".into(),
        port,
        database: database.name.clone(),
        user: database.user.clone(),
        password: Some(database.password.clone()),
        schema: "public".into(),
        timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(20),
        pool_max: 4,
        application_name: "tidewater-test".into(),
        add_columns: true,
        link: LinkOptions::default(),
    }
}

fn cloud(database: &Database) -> Cloud {
    Cloud::new(options(database, database.port)).unwrap()
}

/// A cloud where nobody is, or somebody else.
fn nobody(host: &str, port: u16) -> Cloud {
    Cloud::new(CloudOptions {
        host: host.into(),
        port,
        database: "shop".into(),
        user: "till".into(),
        password: Some(SECRET.into()),
        schema: "public".into(),
        timeout: Duration::from_millis(400),
        statement_timeout: Duration::from_secs(20),
        pool_max: 4,
        application_name: "tidewater-test".into(),
        add_columns: true,
        link: LinkOptions::default(),
    })
    .unwrap()
}

/// What the check says. No word of it is a password.
async fn failure(cloud: &Cloud) -> CloudFailure {
    let failure = cloud.check().await.expect_err("nothing that could be synced with is there");
    let shown = format!("{cloud:?} {failure:?} {failure}");
    assert!(!shown.contains(SECRET) && !shown.contains("pw_"), "{shown}");
    failure
}

fn expected(class: FailureClass, code: Option<&str>, detail: &str, remedy: Option<&str>) -> CloudFailure {
    CloudFailure {
        class,
        sqlstate: code.map(str::to_owned),
        detail: detail.to_owned(),
        remedy: remedy.map(str::to_owned),
        // These words are said before anybody has taken the connection.
        accepted: !["cannot connect", "no connection", "cannot be resolved"]
            .iter()
            .any(|words| detail.contains(words)),
    }
}

/// Does this with each connection, on a thread of its own, and keeps it open as long as that says so.
fn serving(work: impl Fn(&mut TcpStream) -> bool + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = vec![];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if work(&mut stream) {
                kept.push(stream);
            }
        }
    });
    port
}

fn hear(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 1024]);
}

/// Listens, and its queue is full: whoever comes now gets neither in nor refused.
fn full_queue() -> (u16, Socket, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = vec![];
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (address.port(), socket, waiting)
}

// ---------------------------------------------------------------------------------------------------------
// Nobody
// ---------------------------------------------------------------------------------------------------------

/// A refusal says that the proxy is not running; packets that vanish, a connection that is closed or left without an
/// answer say that the instance is not reachable, within the timeout.
#[tokio::test]
async fn silence_has_its_class() {
    let database = Postgres::shared().create_database().await;
    let proxy = FaultProxy::reserve(Postgres::shared().address());
    let port = proxy.port();
    let there =
        Cloud::new(CloudOptions { timeout: Duration::from_millis(400), ..options(&database, port) }).unwrap();
    let refused = expected(
        NotRunning,
        None,
        &format!("cannot connect to 127.0.0.1:{port}: Connection refused (os error 111)"),
        None,
    );
    let silent = expected(NotAnswering, None, "no answer within 0.4 s", None);
    assert_eq!(failure(&there).await, refused);
    proxy.start();
    proxy.set_mode(Mode::AcceptThenClose);
    let closed = failure(&there).await;
    assert_eq!((closed.class, closed.remedy), (NotAnswering, None));
    // Whether the end or the reset comes first is a matter of luck.
    assert!(
        closed.detail.starts_with("the connection ended before PostgreSQL had answered ("),
        "{}",
        closed.detail
    );
    proxy.set_mode(Mode::Swallow);
    assert_eq!(failure(&there).await, silent);
    proxy.set_mode(Mode::Forward);
    wait::until("the way to be free", Duration::from_secs(10), async || {
        there.check().await.map(|_| ()).map_err(|failure| failure.to_string())
    })
    .await;
    // A live pooled connection that falls silent is found out as well.
    proxy.set_mode(Mode::Swallow);
    let fallen = failure(&there).await;
    assert!(fallen.class == NotAnswering && fallen.detail.starts_with("no answer within 0."), "{fallen:?}");
    proxy.stop();
    assert_eq!(failure(&there).await, refused);
    let (port, _listener, _waiting) = full_queue();
    let unreached = expected(NotAnswering, None, "no connection within 0.4 s", None);
    assert_eq!(failure(&nobody("127.0.0.1", port)).await, unreached);
}

/// Connections that the pool kept while what lay behind them went away are no outage where a new one is answered, however
/// many there are: they cost the time of one.
#[tokio::test]
async fn silent_connections_of_the_pool_are_replaced_within_one_check() {
    let database = Postgres::shared().create_database().await;
    let proxy = FaultProxy::started(Postgres::shared().address());
    let cloud =
        Cloud::new(CloudOptions { timeout: Duration::from_secs(2), ..options(&database, proxy.port()) })
            .unwrap();
    let mut sessions = vec![];
    for _ in 0..3 {
        sessions.push(cloud.connect().await.unwrap());
    }
    sessions.into_iter().for_each(CloudSession::release);
    cloud.check().await.unwrap();
    assert_eq!(proxy.accepted(), 3);
    proxy.silence_live();
    cloud.check().await.unwrap();
    assert_eq!(proxy.accepted(), 4);
    proxy
        .wait_for_async("the silent ones to be closed", Duration::from_secs(10), |stats| stats.live == 1)
        .await;
}

/// An answer that is cut in its middle was PostgreSQL's all the same: the instance is out of reach, it is not another
/// server.
#[tokio::test]
async fn an_answer_that_is_cut_is_no_strangers() {
    let database = Postgres::shared().create_database().await;
    for bytes in [1, 3, 5, 6, 10, 20] {
        let proxy = FaultProxy::started(Postgres::shared().address());
        let cut = proxy.cut_server_to_client_after(bytes);
        let failure = failure(&Cloud::new(options(&database, proxy.port())).unwrap()).await;
        cut.wait_until_triggered(Duration::from_secs(5));
        assert_eq!(failure.class, NotAnswering, "after {bytes} bytes: {failure:?}");
    }
}

/// A Unix socket is a way like any other: PostgreSQL behind it, no socket there, one that nobody listens on, and one
/// whose owner accepts nothing.
#[tokio::test]
async fn unix_sockets_have_the_same_classes() {
    let database = Postgres::shared().create_database().await;
    let folder = Postgres::shared().folder().to_str().unwrap().to_owned();
    let there = CloudOptions { host: folder, ..options(&database, database.port) };
    assert_eq!(
        Cloud::new(there.clone()).unwrap().check().await.unwrap(),
        format!("PostgreSQL answers as database \"{}\"", database.name)
    );
    let wrong = CloudOptions { password: Some(SECRET.into()), ..there };
    assert_eq!(failure(&Cloud::new(wrong).unwrap()).await.class, Credentials);

    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().to_str().unwrap();
    let path = folder.path().join(".s.PGSQL.5432");
    let text = |why: &str| format!("cannot connect to {}: {why}", path.display());
    let missing = failure(&nobody(host, 5432)).await;
    assert_eq!(missing, expected(NotRunning, None, &text("No such file or directory (os error 2)"), None));

    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    let refused = failure(&nobody(host, 5432)).await;
    assert_eq!(refused, expected(NotRunning, None, &text("Connection refused (os error 111)"), None));

    socket.listen(0).unwrap();
    let mut waiting = vec![];
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        if client.connect(&SockAddr::unix(&path).unwrap()).is_err() {
            break;
        }
        waiting.push(client);
    }
    let full = failure(&nobody(host, 5432)).await;
    assert_eq!(
        full,
        expected(NotAnswering, None, &text("Resource temporarily unavailable (os error 11)"), None)
    );
}

/// Where the question does not get out of this machine, the check failed, and nothing is said about the proxy.
#[tokio::test]
async fn a_check_that_cannot_be_made_says_nothing_about_the_proxy() {
    let unresolved = failure(&nobody("nowhere.invalid", 5432)).await;
    // Why is the system's word, which differs.
    assert!(unresolved.detail.starts_with("nowhere.invalid cannot be resolved: "), "{unresolved:?}");
    let remedy = "check CLOUD_SQL_PROXY_HOST (nowhere.invalid) and this machine's name resolution";
    assert_eq!(unresolved, expected(CheckFailed, None, &unresolved.detail, Some(remedy)));

    // There is no TCP with a group of machines.
    assert_eq!(
        failure(&nobody("224.0.0.1", 5432)).await,
        expected(
            CheckFailed,
            None,
            "cannot connect to 224.0.0.1:5432: Network is unreachable (os error 101)",
            Some("check CLOUD_SQL_PROXY_HOST (224.0.0.1) and this machine's network")
        )
    );

    let long = format!("/{}", "x".repeat(200));
    assert_eq!(failure(&nobody(&long, 5432)).await.class, CheckFailed);
}

/// A name is as good as an address: `localhost`, whatever addresses it has.
#[tokio::test]
async fn a_name_is_resolved() {
    let database = Postgres::shared().create_database().await;
    let by_name = CloudOptions { host: "localhost".into(), ..options(&database, database.port) };
    Cloud::new(by_name).unwrap().check().await.unwrap();
    let proxy = FaultProxy::reserve(Postgres::shared().address());
    let failure = failure(&nobody("localhost", proxy.port())).await;
    assert_eq!(failure.class, NotRunning, "{failure:?}");
}

const WITHOUT_FILES: &str = "TIDEWATER_TEST_WITHOUT_FILES";

/// Not a test by itself: run by the one below, in a process of its own that may open few files.
#[test]
fn without_files_as_told() {
    if std::env::var_os(WITHOUT_FILES).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let failure = runtime.block_on(async {
        let mut files = vec![];
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        let failure = failure(&nobody("127.0.0.1", 9)).await;
        drop(files);
        failure
    });
    assert_eq!(
        failure,
        expected(
            CheckFailed,
            None,
            "cannot connect to 127.0.0.1:9: Too many open files (os error 24)",
            Some("let this process open more files (ulimit -n)")
        )
    );
    println!("\nwithout files: as told");
}

/// A process that may not open another file cannot check, and says so.
#[test]
fn without_file_descriptors_nothing_is_said_about_the_proxy() {
    let output = Command::new("/bin/sh")
        .args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "without_files_as_told", "--nocapture", "--test-threads=1"])
        .env(WITHOUT_FILES, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("without files: as told"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

// ---------------------------------------------------------------------------------------------------------
// Somebody else
// ---------------------------------------------------------------------------------------------------------

/// Whatever else answers is told by its first bytes, whether it waits for ours or not, and whether it closes or waits
/// for more; the excerpt is printable and short.
#[tokio::test]
async fn what_is_not_postgresql_is_told_at_once() {
    let mysql = b"\x4a\0\0\0\x0a8.0.36-0ubuntu0.22.04.1\0\x0b\0\0\0dK~P\x1d\"xS\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0";
    // A version of this length makes the greeting begin as an authentication request does.
    let mysql_r = b"\x52\0\0\0\x0a8.0.36\0\x0b\0\0\0dK~P\x1d\"xS\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0";
    let mysql_e = b"\x45\0\0\0\x0a8.0.36\0\x0b\0\0\0dK~P\x1d\"xS\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0";
    for (bytes, excerpt) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "SSH-2.0-OpenSSH_9.2"),
        (mysql, r"J\x00\x00\x00\n8.0.36-0ubuntu0.22.04.1…"),
        (mysql_r, r"R\x00\x00\x00\n8.0.36\x00\x0b\x00\x00…"),
        (mysql_e, r"E\x00\x00\x00\n8.0.36\x00\x0b\x00\x00…"),
        (b"220 mail.example ESMTP ready\r\n", "220 mail.example ESMTP ready"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"-ERR unknown command\r\n", "-ERR unknown command"),
        (b"ERROR unknown command\r\n", "ERROR unknown command"),
        (b"RFB 003.008\n", "RFB 003.008"),
        (b"\0\0\0\0garbage of the binary kind", r"\x00\x00\x00\x00garbage of the binary k…"),
        (b"\r\n\r\n", r"\r\n\r\n"),
        (b"N", "N"),
        (b"S", "S"),
        (b"\xff", r"\xff"),
    ] {
        for (first, closes) in [(false, false), (false, true), (true, false)] {
            let port = serving(move |stream| {
                if first {
                    stream.write_all(bytes).unwrap();
                    hear(stream);
                } else {
                    hear(stream);
                    stream.write_all(bytes).unwrap();
                }
                !closes
            });
            let remedy = format!(
                "point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT ({port}) at the Cloud SQL Auth \
                 Proxy"
            );
            let detail = format!("what answers is not PostgreSQL (\"{excerpt}\")");
            assert_eq!(
                failure(&nobody("127.0.0.1", port)).await,
                expected(NotOurs, None, &detail, Some(&remedy))
            );
        }
    }
}

/// Who throws us out before we have said a word is understood all the same.
#[tokio::test]
async fn a_word_before_the_door_is_shut_is_heard() {
    let port = serving(|stream| {
        stream.write_all(b"Host is blocked because of many connection errors\n").unwrap();
        false
    });
    let failure = failure(&nobody("127.0.0.1", port)).await;
    assert_eq!(
        failure.detail,
        "what answers is not PostgreSQL (\"Host is blocked because of many connect…\")"
    );
}

/// A server that answers with a TLS alert is told apart: there the remedy is the proxy.
#[tokio::test]
async fn a_tls_server_is_named() {
    let port = serving(|stream| {
        hear(stream);
        stream.write_all(b"\x15\x03\x01\0\x02\x02\x46").unwrap();
        false
    });
    let remedy = format!(
        "PostgreSQL agrees on TLS before it speaks it, port 3307 of Cloud SQL is for the Auth Proxy alone: point \
         CLOUD_SQL_PROXY_HOST (127.0.0.1) and \
         CLOUD_SQL_PROXY_PORT ({port}) at the Cloud SQL Auth Proxy"
    );
    assert_eq!(
        failure(&nobody("127.0.0.1", port)).await,
        expected(NotOurs, None, "what answers expects TLS", Some(&remedy))
    );
}

/// PostgreSQL that cannot start a process for the connection says so in the form of before protocol 3.0.
#[tokio::test]
async fn an_error_of_the_old_form_is_read() {
    let port = serving(|stream| {
        hear(stream);
        stream.write_all(b"Ecould not fork new process for connection: Cannot allocate memory\n\0").unwrap();
        false
    });
    let detail = "could not fork new process for connection: Cannot allocate memory";
    assert_eq!(failure(&nobody("127.0.0.1", port)).await, expected(Busy, None, detail, None));
}

/// Bytes without end, one byte and no more, and a server that begins as PostgreSQL does and never comes to the point:
/// none of them holds the check up for longer than its timeout.
#[tokio::test]
async fn nobody_holds_the_check_up() {
    let endless = |bytes: &'static [u8]| {
        serving(move |stream| {
            hear(stream);
            while stream.write_all(bytes).is_ok() {}
            false
        })
    };
    let silent = expected(NotAnswering, None, "no answer within 0.4 s", None);
    let noise = failure(&nobody("127.0.0.1", endless(&[b'z'; 4096]))).await;
    assert_eq!(noise.class, NotOurs);
    assert_eq!(noise.detail, format!("what answers is not PostgreSQL (\"{}…\")", "z".repeat(39)));
    // "Logged in", again and again.
    let again = failure(&nobody("127.0.0.1", endless(b"R\0\0\0\x08\0\0\0\0"))).await;
    assert_eq!(again.class, NotOurs);
    assert_eq!(
        again.detail,
        "what answers does not go on as PostgreSQL does (unexpected message from server)"
    );
    // Logged in, and parameters without end: more of them than anybody listens to, or for longer.
    let port = serving(|stream| {
        hear(stream);
        let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\0");
        while stream.write_all(b"S\0\0\0\x0bname\0v\0").is_ok() {}
        false
    });
    let endless = failure(&nobody("127.0.0.1", port)).await;
    let talks =
        "what answers does not go on as PostgreSQL does (it says more than 24 MiB besides its answer)";
    assert!(endless == silent || endless.class == NotOurs && endless.detail == talks, "{endless:?}");
    for beginning in [&b"R"[..], b"E\0\0", b"R\0\0\0\x17\0\0", b"E\0\0\0\x50SFATAL\0"] {
        let port = serving(move |stream| {
            hear(stream);
            stream.write_all(beginning).unwrap();
            true
        });
        assert_eq!(failure(&nobody("127.0.0.1", port)).await, silent);
    }
}

/// Another PostgreSQL than the one that the file synced with is not ours, and without our mark neither.
#[tokio::test]
async fn another_postgresql_is_not_ours() {
    let database = Postgres::shared().create_database().await;
    let cloud = cloud(&database);
    cloud.expect_identity(Some("4d1f".into()));
    let remedy = Some(
        "point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take \
         its place: run_supervisor adopt",
    );
    let detail = "another database answers: this file belongs to 4d1f, it has no mark of Tidewater's";
    assert_eq!(failure(&cloud).await, expected(NotOurs, None, detail, remedy));
    let other = cloud.connect().await.unwrap().bootstrap().await;
    assert_eq!(other.unwrap_err().class, NotOurs);
    cloud.expect_identity(None);
    let identity = cloud.connect().await.unwrap().bootstrap().await.unwrap().id;
    cloud.expect_identity(Some("4d1f".into()));
    let detail = format!("another database answers: this file belongs to 4d1f, it is {identity}");
    assert_eq!(failure(&cloud).await, expected(NotOurs, None, &detail, remedy));
}

// ---------------------------------------------------------------------------------------------------------
// PostgreSQL, with its own words
// ---------------------------------------------------------------------------------------------------------

/// A role of its own that may connect to the database.
async fn other_role(database: &Database) -> Database {
    let mut other = database.clone();
    other.user = format!("other_{}", uuid::Uuid::new_v4().simple());
    database
        .connect_as_admin()
        .await
        .batch_execute(&format!(
            "CREATE ROLE {} LOGIN PASSWORD '{}'; GRANT CONNECT ON DATABASE {} TO {0}",
            other.user, other.password, database.name
        ))
        .await
        .unwrap();
    other
}

/// What PostgreSQL refuses at the door has its class, its code, and a remedy where one helps.
#[tokio::test]
async fn each_refusal_at_the_door_has_its_class() {
    let database = Postgres::shared().create_database().await;
    let at = |change: &dyn Fn(&mut CloudOptions)| {
        let mut options = options(&database, database.port);
        change(&mut options);
        Cloud::new(options).unwrap()
    };
    let admin = database.connect_as_admin().await;
    let (barred, stranger, full) =
        (other_role(&database).await, other_role(&database).await, other_role(&database).await);
    admin
        .batch_execute(&format!(
            "ALTER ROLE {} NOLOGIN; REVOKE CONNECT ON DATABASE {} FROM {}; ALTER ROLE {} CONNECTION LIMIT 1",
            barred.user, database.name, stranger.user, full.user
        ))
        .await
        .unwrap();
    let _only = full.connect().await;
    let (name, user) = (&database.name, &database.user);
    for (cloud, class, code, detail, remedy) in [
        (
            at(&|o| o.password = Some(SECRET.into())),
            Credentials,
            Some("28P01"),
            format!("password authentication failed for user \"{user}\" (SQLSTATE 28P01)"),
            Some(format!("check CLOUD_SQL_USER ({user}) and CLOUD_SQL_PASSWORD")),
        ),
        (
            at(&|o| o.password = None),
            Credentials,
            None,
            "PostgreSQL asks for a password, and none is set".into(),
            Some(
                "set CLOUD_SQL_PASSWORD, CLOUD_SQL_PASSWORD_FILE or cloud.password_command, for this role"
                    .into(),
            ),
        ),
        (
            at(&|o| o.database = "nowhere".into()),
            Credentials,
            Some("3D000"),
            "database \"nowhere\" does not exist (SQLSTATE 3D000)".into(),
            Some("create database nowhere, or check CLOUD_SQL_DATABASE".into()),
        ),
        (
            at(&|o| o.user = barred.user.clone()),
            Credentials,
            Some("28000"),
            format!("role \"{}\" is not permitted to log in (SQLSTATE 28000)", barred.user),
            Some(format!(
                "let role {0} log in (ALTER ROLE \"{0}\" LOGIN), or check CLOUD_SQL_USER",
                barred.user
            )),
        ),
        (
            at(&|o| o.user = stranger.user.clone()),
            Credentials,
            Some("42501"),
            format!("permission denied for database \"{name}\" (SQLSTATE 42501)"),
            Some(format!("GRANT CONNECT, CREATE ON DATABASE \"{name}\" TO \"{}\"", stranger.user)),
        ),
        (
            at(&|o| o.user = full.user.clone()),
            Busy,
            Some("53300"),
            format!("too many connections for role \"{}\" (SQLSTATE 53300)", full.user),
            None,
        ),
    ] {
        assert_eq!(failure(&cloud).await, expected(class, code, &detail, remedy.as_deref()));
    }
}

/// A session that an administrator ends while it waits for an answer hears so.
#[tokio::test]
async fn an_administrator_that_ends_the_session_is_named() {
    let database = Postgres::shared().create_database().await;
    let cloud = cloud(&database);
    cloud.connect().await.unwrap().bootstrap().await.unwrap();
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE tidewater.identity IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let admin = database.connect_as_admin().await;
    let ending = wait::until("the check to wait and be ended", Duration::from_secs(8), async || {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE wait_event_type = 'Lock' AND datname = current_database()";
        match admin.query_opt(sql, &[]).await.unwrap() {
            Some(_) => Ok(()),
            None => Err("it does not wait".into()),
        }
    });
    let (failure, ()) = tokio::join!(failure(&cloud), ending);
    let detail = "terminating connection due to administrator command (SQLSTATE 57P01)";
    assert_eq!(failure, expected(Busy, Some("57P01"), detail, None));
}

/// A server that is full, one that takes encrypted connections only, one that is not up yet and one that is about to
/// stop, each in its own words.
#[tokio::test]
async fn a_server_says_why_it_takes_nobody() {
    let server = Postgres::start_with(&Options {
        settings: vec![
            "max_connections = 6".into(),
            "max_wal_senders = 0".into(),
            "superuser_reserved_connections = 1".into(),
            "hot_standby = off".into(),
        ],
        ..Options::default()
    });
    let database = server.create_database().await;
    let cloud = || cloud(&database);

    let mut config = database.config();
    config.user("postgres").password(server.password());
    let mut sessions = vec![];
    let full = wait::until("the server to be full", Duration::from_secs(20), async || {
        while let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            sessions.push(client);
        }
        // One that was just ending may have left room.
        cloud().check().await.err().ok_or_else(|| "there was room".to_owned())
    })
    .await;
    let detail = "sorry, too many clients already (SQLSTATE 53300)";
    assert_eq!(full, expected(Busy, Some("53300"), detail, None));
    drop(sessions);

    server.stop();
    let rules = server.folder().join("data/pg_hba.conf");
    let before = std::fs::read(&rules).unwrap();
    std::fs::write(&rules, "hostssl all all all scram-sha-256\n").unwrap();
    server.start_again();
    let detail = format!(
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"{}\", database \"{}\", no encryption (SQLSTATE 28000)",
        database.user, database.name
    );
    let remedy = "let pg_hba.conf take this role and host without encryption; or encrypt: cloud.tls = \"required\", \
                  or the Cloud SQL Auth Proxy at CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT";
    assert_eq!(failure(&cloud()).await, expected(Credentials, Some("28000"), &detail, Some(remedy)));

    // A standby without readers is, to its clients, a server that never gets through with its recovery.
    server.stop();
    std::fs::write(&rules, before).unwrap();
    let standby = server.folder().join("data/standby.signal");
    std::fs::write(&standby, "").unwrap();
    server.start_again();
    let detail = "the database system is not accepting connections (SQLSTATE 57P03)";
    assert_eq!(failure(&cloud()).await, expected(Busy, Some("57P03"), detail, None));

    // A session that is open holds up the end of a server that is to stop when all have left.
    server.stop();
    std::fs::remove_file(&standby).unwrap();
    server.start_again();
    let session = database.connect().await;
    let pid = server.pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let stopping = wait::until("the server to stop", Duration::from_secs(20), async || {
        cloud().check().await.err().ok_or_else(|| "it goes on".to_owned())
    })
    .await;
    let detail = "the database system is shutting down (SQLSTATE 57P03)";
    assert_eq!(stopping, expected(Busy, Some("57P03"), detail, None));
    assert_eq!(session.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}
