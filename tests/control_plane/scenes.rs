//! What listens, or does not, is never what it should be: status, class, the exact log, and the attempts.
//!
//! The scenes of one test play at the same time, each with a file, a proxy and a cloud of its own.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use tidewater::settings::Sources;
use tidewater::{AvailabilityChanged, Database, ProxyStatus, Statement, StatusSummary};
use tidewater_test_support::{Mode, Postgres, wait};

use crate::harness::{Bench, PATIENCE, twin, wait_for, wait_until_available};
use crate::{
    Heard, MAX_RETRY_S, RETRY_S, TIMEOUT_S, allowed_by_backoff, allowed_when_blocked, class_word, fixed,
    hurried, word,
};

/// How long a scene is watched: the five failures before a pause take 3.45 s.
const WATCHED: Duration = Duration::from_secs(5);

/// A scene on the stage.
struct Scene {
    bench: Bench,
    db: Database,
    heard: Heard,
    began: Instant,
}

/// What came of it.
struct Played {
    /// Status and why, then class, circuit and sync, then the whole log.
    text: String,
    attempts: u64,
    within: Duration,
    heard: Vec<AvailabilityChanged>,
}

impl Scene {
    async fn open(bench: Bench, settings: Sources) -> Self {
        let began = Instant::now();
        let db = bench.open_with(settings).await;
        let heard = Heard::of(&db).await;
        Self { bench, db, heard, began }
    }

    /// Watches for as long as a scene takes, and until this holds.
    async fn until(self, holds: impl Fn(&StatusSummary) -> bool) -> Played {
        actix_rt::time::sleep(WATCHED.saturating_sub(self.began.elapsed())).await;
        let status = wait_for(&self.db, "the scene's end", holds).await;
        let attempts = self.bench.proxy.accepted();
        let within = self.began.elapsed();
        let last = self.heard.last().expect("a subscriber is told at once");
        let pause = if status.proxy.paused { "paused" } else { "goes on" };
        let reason = status.circuit.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        let text = format!(
            "{}: {}\n{}, circuit {}{reason}, sync {}, {pause}\n\n{}",
            word(status.proxy.status),
            status.proxy.detail,
            class_word(last.class),
            status.circuit.state,
            status.sync.state,
            self.log().join("\n"),
        );
        // Between two attempts the circuit lets the next one through before the syncer makes it: it is a matter of the moment.
        let text = text.replace("circuit half_open (credentials)", "circuit open (credentials)");
        let text = fixed(&text, &self.bench);
        let heard = self.heard.all();
        self.db.shutdown().await.unwrap();
        Played { text, attempts, within, heard }
    }

    /// The whole log. Behind a listener the first check ends whenever it does: before or after the file's two lines, which
    /// here always come first.
    fn log(&self) -> Vec<String> {
        let (ready, mut others): (Vec<_>, Vec<_>) = self
            .bench
            .log
            .all()
            .into_iter()
            .partition(|line| line.starts_with("INFO ✅ ") && line.contains("initialized"));
        let start = ["Detector initialized", "Proxy not running", "not detected", "SQLite-only mode"];
        let is_later = |line: &String| !start.iter().any(|part| line.contains(part));
        let at = others.iter().position(is_later).unwrap_or(others.len());
        others.splice(at..at, ready);
        others
    }

    async fn until_paused(self) -> Played {
        self.until(|status| status.proxy.paused).await
    }

    /// As often as would be a pause, and twice more.
    async fn until_persistent(self) -> Played {
        self.until(|status| status.proxy.consecutive_failures >= 7).await
    }

    async fn until_retried(self) -> Played {
        self.until(|status| status.proxy.consecutive_failures >= 2).await
    }
}

impl Played {
    /// It tried again, and not more often than the backoff allows.
    fn assert_in_backoff(&self, what: &str) {
        let most = allowed_by_backoff(self.within, RETRY_S, MAX_RETRY_S);
        self.assert_attempts(what, 2, most);
    }

    /// It tried again, once per longest wait.
    fn assert_not_hammering(&self, what: &str) {
        let most = allowed_when_blocked(self.within, MAX_RETRY_S);
        self.assert_attempts(what, 2, most);
    }

    fn assert_attempts(&self, what: &str, least: u64, most: u64) {
        let Self { attempts, within, .. } = self;
        println!("{what}: {attempts} attempts within {within:?}, at most {most}");
        assert!(
            (least..=most).contains(attempts),
            "{what}: {attempts}, not {least} to {most}\n{}",
            self.text
        );
    }

    fn assert_never_available(&self) {
        let available = self.heard.iter().any(|change| change.status == ProxyStatus::Available);
        assert!(!available, "{:#?}\n{}", self.heard, self.text);
    }
}

/// A server that reads what comes first, gives this answer and hangs up; a greeting comes before anything was read.
fn answering(greeting: &'static [u8], answer: &'static [u8]) -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { continue };
            // Whoever hangs up first does not hear the rest.
            let _ = client.write_all(greeting);
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(answer);
        }
    });
    address
}

/// A bench in front of such a server.
async fn in_front_of(server: SocketAddr) -> Bench {
    let bench = Bench::new().await;
    bench.proxy.set_upstream(server);
    bench.proxy.start();
    bench
}

/// A port whose queue of connections is full, so that the system drops whatever arrives, as a firewall does.
struct Filtered {
    port: u16,
    _listener: tokio::net::TcpListener,
    _queued: Vec<tokio::net::TcpStream>,
    seen: Arc<Mutex<HashSet<String>>>,
    ended: Arc<AtomicBool>,
}

impl Filtered {
    async fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = vec![];
        while let Ok(stream) =
            actix_rt::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
        {
            queued.push(stream.unwrap());
            assert!(queued.len() < 100, "the queue does not fill");
        }
        let (seen, ended) = (Arc::<Mutex<HashSet<String>>>::default(), Arc::<AtomicBool>::default());
        let (seeing, ending, port) = (seen.clone(), ended.clone(), address.port());
        // An attempt stays visible for as long as it is waited for, which is many looks.
        std::thread::spawn(move || {
            let remote = format!(":{port:04X}");
            while !ending.load(Ordering::Relaxed) {
                let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
                for row in table.lines() {
                    let fields: Vec<_> = row.split_whitespace().collect();
                    if let [_, local, to, "02", ..] = fields[..]
                        && to.ends_with(&remote)
                    {
                        seeing.lock().unwrap().insert(local.to_owned());
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { port, _listener: listener, _queued: queued, seen, ended }
    }

    /// Attempts, told apart by the ports that they come from.
    fn attempts(&self) -> u64 {
        self.seen.lock().unwrap().len() as u64
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Nobody, or somebody who never says a word: in development five failures, then a pause; one line per transition. An open
/// port alone is never called available, not for a moment.
#[actix_rt::test]
async fn nobody_answers() {
    let refused = async {
        let bench = Bench::new().await;
        let settings = hurried(&bench);
        Scene::open(bench, settings).await.until_paused().await
    };
    let expected = async {
        let bench = Bench::new().await;
        let settings = hurried(&bench).set("supervisor.environment", "production");
        let mut played =
            Scene::open(bench, settings).await.until(|status| status.proxy.consecutive_failures >= 5).await;
        // The first of these comes with the fifth failure, the others once per longest wait.
        let still = "WARN ⚠️  Proxy unavailable after ";
        let (others, first) = (played.text.matches(still).count() - 1, played.text.find(still).unwrap());
        assert!(others as u64 <= allowed_when_blocked(played.within, MAX_RETRY_S), "{}", played.text);
        let end = played.text[first..].find('\n').map_or(played.text.len(), |at| first + at);
        assert_eq!(played.text[end..].matches('\n').count(), others, "nothing else: {}", played.text);
        played.text.truncate(end);
        played
    };
    let filtered = async {
        let (bench, port) = (Bench::new().await, Filtered::new().await);
        let before = port.attempts();
        let settings = hurried(&bench).set("proxy.port", port.port).set("proxy.timeout_s", TIMEOUT_S);
        let mut played = Scene::open(bench, settings).await.until_paused().await;
        played.attempts = port.attempts() - before;
        played.text = played.text.replace(&format!(":{}", port.port), ":PORT");
        // Two bounds of the same length: either may be over first.
        let other = "error connecting to server: connection timed out";
        played.text = played.text.replace(other, &format!("no answer within {TIMEOUT_S} s"));
        played
    };
    let closing = async {
        let bench = Bench::new().await;
        bench.proxy.set_mode(Mode::AcceptThenClose);
        bench.proxy.start();
        let settings = hurried(&bench);
        let mut played = Scene::open(bench, settings).await.until_paused().await;
        // It depends on who is faster.
        for end in [
            "connection closed",
            "error communicating with the server: Connection reset by peer (os error 104)",
            "error communicating with the server: Broken pipe (os error 32)",
        ] {
            played.text = played.text.replace(end, "CLOSED");
        }
        played
    };
    let silent = async {
        let bench = Bench::new().await;
        bench.proxy.set_mode(Mode::Swallow);
        bench.proxy.start();
        let settings = hurried(&bench).set("proxy.timeout_s", TIMEOUT_S);
        Scene::open(bench, settings).await.until_paused().await
    };
    let (refused, expected, filtered, closing, silent) =
        tokio::join!(refused, expected, filtered, closing, silent);

    assert_snapshot!(refused.text, @"
    unavailable: Proxy not running on 127.0.0.1:PORT
    NotRunning, circuit open (not_running), sync offline, paused

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ℹ️  Proxy not running on 127.0.0.1:PORT
    INFO    Using SQLite-only mode (Cloud SQL unavailable)
    INFO ℹ️  Cloud SQL Proxy not detected in local development environment
    INFO    This is normal - using SQLite-only mode
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO After 5 failures - assuming local development
    INFO Health checks now paused
    ");
    assert_snapshot!(expected.text, @"
    unavailable: Proxy not running on 127.0.0.1:PORT
    NotRunning, circuit open (not_running), sync offline, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    WARN ℹ️  Proxy not running on 127.0.0.1:PORT
    WARN    Using SQLite-only mode (Cloud SQL unavailable)
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    WARN ⚠️  Proxy unavailable after 5 attempts
    ");
    assert_snapshot!(filtered.text, @"
    unavailable: no connection within 0.5 s
    NotAnswering, circuit open (not_answering), sync offline, paused

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    WARN ⚠️  Nobody takes a connection on 127.0.0.1:PORT (no connection within 0.5 s)
    INFO After 5 failures - assuming local development
    INFO Health checks now paused
    ");
    assert_snapshot!(closing.text, @"
    unavailable: the connection ended before PostgreSQL had answered (CLOSED)
    NotAnswering, circuit open (not_answering), sync offline, paused

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    WARN ⚠️  Proxy is up on 127.0.0.1:PORT but the Cloud SQL instance does not answer (the connection ended before PostgreSQL had answered (CLOSED))
    INFO After 5 failures - assuming local development
    INFO Health checks now paused
    ");
    assert_snapshot!(silent.text, @"
    unavailable: no answer within 0.5 s
    NotAnswering, circuit open (not_answering), sync offline, paused

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    WARN ⚠️  Proxy is up on 127.0.0.1:PORT but the Cloud SQL instance does not answer (no answer within 0.5 s)
    INFO After 5 failures - assuming local development
    INFO Health checks now paused
    ");
    for (what, played) in [("filtered", &filtered), ("closing", &closing), ("silent", &silent)] {
        played.assert_in_backoff(what);
    }
    for played in [refused, expected, filtered, closing, silent] {
        played.assert_never_available();
    }
}

/// Something else than PostgreSQL, or another PostgreSQL: one error line, asked again once per longest wait, never synced with.
#[actix_rt::test]
async fn a_stranger_answers() {
    let other = Postgres::start();
    let bytes = in_front_of(answering(b"", b"\x00\x01\x02\x03 what is this?\r\n")).await;
    let ssh = in_front_of(answering(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"")).await;
    let http = in_front_of(answering(
        b"",
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request",
    ))
    .await;
    // A fatal alert, handshake failure: all that such a server has for whoever does not speak TLS.
    let tls = in_front_of(answering(b"", b"\x15\x03\x03\x00\x02\x02\x28")).await;
    let play = async |bench: Bench| {
        let settings = hurried(&bench);
        Scene::open(bench, settings).await.until_retried().await
    };
    let another = async {
        let bench = Bench::new().await;
        bench.proxy.start();
        let db = bench.open_with(hurried(&bench)).await;
        db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
        let written = db.write([Statement::new("INSERT INTO note (body) VALUES ('ours')")]).await.unwrap();
        db.synced(&written.receipt).await.unwrap();
        db.shutdown().await.unwrap();
        twin(&other, &bench.cloud).await;
        bench.proxy.stop();
        bench.proxy.set_upstream(other.address());
        bench.proxy.start();
        let before = bench.proxy.accepted();
        let bench = Bench { log: Default::default(), ..bench };
        let settings = hurried(&bench);
        let scene = Scene::open(bench, settings).await;
        scene.db.write([Statement::new("INSERT INTO note (body) VALUES ('later')")]).await.unwrap();
        let mut played = scene.until_retried().await;
        played.attempts -= before;
        played
    };
    let replaced = async {
        let bench = Bench::new().await;
        bench.proxy.start();
        let settings = hurried(&bench);
        let scene = Scene::open(bench, settings).await;
        scene
            .db
            .write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")])
            .await
            .unwrap();
        let insert = || scene.db.write([Statement::new("INSERT INTO note (body) VALUES ('ours')")]);
        scene.db.synced(&insert().await.unwrap().receipt).await.unwrap();
        twin(&other, &scene.bench.cloud).await;
        let before = scene.bench.proxy.accepted();
        scene.bench.proxy.stop();
        scene.heard.wait_for(ProxyStatus::Unavailable, 0, &scene.bench.log).await;
        scene.bench.proxy.set_upstream(other.address());
        let scene = Scene { began: Instant::now(), ..scene };
        scene.bench.proxy.start();
        scene.db.write([Statement::new("INSERT INTO note (body) VALUES ('later')")]).await.unwrap();
        let mut played = scene.until_retried().await;
        played.attempts -= before;
        played
    };
    let (bytes, ssh, http, tls, another, replaced) =
        tokio::join!(play(bytes), play(ssh), play(http), play(tls), another, replaced);

    assert_snapshot!(bytes.text, @r#"
    unavailable: what answers is not PostgreSQL ("\x00\x01\x02\x03 what is this?\r\n") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: what answers is not PostgreSQL ("\x00\x01\x02\x03 what is this?\r\n") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    "#);
    assert_snapshot!(ssh.text, @r#"
    unavailable: what answers is not PostgreSQL ("SSH-2.0-OpenSSH_9.2p1 Debian-2") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: what answers is not PostgreSQL ("SSH-2.0-OpenSSH_9.2p1 Debian-2") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    "#);
    assert_snapshot!(http.text, @r#"
    unavailable: what answers is not PostgreSQL ("HTTP/1.1 400 Bad Request") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: what answers is not PostgreSQL ("HTTP/1.1 400 Bad Request") - point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    "#);
    assert_snapshot!(tls.text, @"
    unavailable: what answers expects TLS - PostgreSQL agrees on TLS before it speaks it, port 3307 of Cloud SQL is for the Auth Proxy alone: point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: what answers expects TLS - PostgreSQL agrees on TLS before it speaks it, port 3307 of Cloud SQL is for the Auth Proxy alone: point CLOUD_SQL_PROXY_HOST (127.0.0.1) and CLOUD_SQL_PROXY_PORT (PORT) at the Cloud SQL Auth Proxy
    ");
    assert_snapshot!(replaced.text, @"
    unavailable: another database answers: this file belongs to UUID, it has no mark of Tidewater's - point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take its place: run_supervisor adopt
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ✅ CloudSQL reconnected - warming cache and syncing
    INFO ℹ️  Proxy not running on 127.0.0.1:PORT
    INFO    Using SQLite-only mode (Cloud SQL unavailable)
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: another database answers: this file belongs to UUID, it has no mark of Tidewater's - point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take its place: run_supervisor adopt
    ");
    assert_snapshot!(another.text, @"
    unavailable: another database answers: this file belongs to UUID, it has no mark of Tidewater's - point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take its place: run_supervisor adopt
    NotOurs, circuit open (not_ours), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Not syncing with what answers on 127.0.0.1:PORT: another database answers: this file belongs to UUID, it has no mark of Tidewater's - point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take its place: run_supervisor adopt
    ");
    replaced.assert_not_hammering("replaced");
    for (what, played) in
        [("bytes", bytes), ("SSH", ssh), ("HTTP", http), ("TLS", tls), ("another PostgreSQL", another)]
    {
        played.assert_not_hammering(what);
        played.assert_never_available();
    }
}

/// PostgreSQL itself says no. For good (password, database, rights): one error line with the remedy, asked again once per longest
/// wait. For now (full, starting, stopping): one line, in backoff.
#[actix_rt::test]
async fn postgresql_refuses_us() {
    let password = async {
        let bench = Bench::new().await;
        bench.proxy.start();
        let settings = hurried(&bench).set("cloud.password", "a wrong one");
        Scene::open(bench, settings).await.until_retried().await
    };
    let database = async {
        let bench = Bench::new().await;
        bench.proxy.start();
        let settings = hurried(&bench).set("cloud.database", "nowhere");
        Scene::open(bench, settings).await.until_retried().await
    };
    let reading = async {
        let bench = Bench::new().await;
        let admin = bench.cloud.connect_as_admin().await;
        let only_reads = format!("ALTER ROLE {} SET default_transaction_read_only = on", bench.cloud.user);
        admin.batch_execute(&only_reads).await.unwrap();
        bench.proxy.start();
        let settings = hurried(&bench);
        let scene = Scene::open(bench, settings).await;
        wait_until_available(&scene.db).await;
        scene
            .db
            .write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")])
            .await
            .unwrap();
        scene.db.write([Statement::new("INSERT INTO note (body) VALUES ('ours')")]).await.unwrap();
        scene.until(|status| status.sync.state == "blocked").await
    };
    let full = async {
        let bench = Bench::new().await;
        let admin = bench.cloud.connect_as_admin().await;
        let one = format!("ALTER ROLE {} CONNECTION LIMIT 1", bench.cloud.user);
        admin.batch_execute(&one).await.unwrap();
        let _the_one = bench.cloud.connect().await;
        bench.proxy.start();
        let settings = hurried(&bench);
        Scene::open(bench, settings).await.until_persistent().await
    };
    let standby = Postgres::start();
    let starting = Bench::on(&standby).await;
    standby.stop();
    std::fs::write(standby.folder().join("data/standby.signal"), "").unwrap();
    let mut configuration =
        std::fs::OpenOptions::new().append(true).open(standby.folder().join("data/postgresql.conf")).unwrap();
    configuration.write_all(b"hot_standby = off\n").unwrap();
    standby.start_again();
    let ending = Postgres::start();
    let stopping = Bench::on(&ending).await;
    let session = ending.connect_as_admin().await;
    // A smart shutdown: sessions may stay as long as they like, new ones are refused.
    let terminate = format!("kill -TERM {}", ending.pid().unwrap());
    assert!(Command::new("sh").args(["-c", &terminate]).status().unwrap().success());
    wait::until("the server is shutting down", PATIENCE, async || {
        match stopping.cloud.config().connect(tokio_postgres::NoTls).await {
            Err(error) if error.code().is_some_and(|code| code.code() == "57P03") => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("it lets us in".to_owned()),
        }
    })
    .await;
    let play = async |bench: Bench| {
        bench.proxy.start();
        let settings = hurried(&bench);
        Scene::open(bench, settings).await.until_persistent().await
    };
    let (password, database, reading, full, starting, stopping) =
        tokio::join!(password, database, reading, full, play(starting), play(stopping));
    assert!(!session.is_closed(), "the session held the shutdown up");

    assert_snapshot!(password.text, @r#"
    unavailable: password authentication failed for user "ROLE" (SQLSTATE 28P01) - check CLOUD_SQL_USER (ROLE) and CLOUD_SQL_PASSWORD
    Credentials, circuit open (credentials), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Cloud SQL behind 127.0.0.1:PORT refuses us: password authentication failed for user "ROLE" (SQLSTATE 28P01) - check CLOUD_SQL_USER (ROLE) and CLOUD_SQL_PASSWORD
    "#);
    assert_snapshot!(database.text, @r#"
    unavailable: database "nowhere" does not exist (SQLSTATE 3D000) - create database nowhere, or check CLOUD_SQL_DATABASE
    Credentials, circuit open (credentials), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    ERRO ❌ Cloud SQL behind 127.0.0.1:PORT refuses us: database "nowhere" does not exist (SQLSTATE 3D000) - create database nowhere, or check CLOUD_SQL_DATABASE
    "#);
    assert_snapshot!(reading.text, @r#"
    available: PostgreSQL answers as database "DATABASE"
    none, circuit open (credentials), sync blocked, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ✅ CloudSQL reconnected - warming cache and syncing
    ERRO ❌ Sync is blocked: cannot execute CREATE SCHEMA in a read-only transaction (SQLSTATE 25006); this server or role only reads: point the proxy at the primary, or set default_transaction_read_only to off
    "#);
    assert!(!password.text.contains("a wrong one"), "a password is in the log: {}", password.text);
    for (what, played) in [("password", password), ("database", database)] {
        played.assert_not_hammering(what);
        played.assert_never_available();
    }
    // The check may read, and keeps its connection; a cycle that fails closes its own.
    let most = 1 + allowed_when_blocked(reading.within, MAX_RETRY_S);
    reading.assert_attempts("reading only", 1, most);

    assert_snapshot!(full.text, @r#"
    unavailable: too many connections for role "ROLE" (SQLSTATE 53300)
    Busy, circuit open (busy), sync offline, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ℹ️  Cloud SQL behind 127.0.0.1:PORT takes no connections right now (too many connections for role "ROLE" (SQLSTATE 53300))
    "#);
    assert_snapshot!(starting.text, @"
    unavailable: the database system is not accepting connections (SQLSTATE 57P03)
    Busy, circuit open (busy), sync offline, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ℹ️  Cloud SQL behind 127.0.0.1:PORT takes no connections right now (the database system is not accepting connections (SQLSTATE 57P03))
    ");
    assert_snapshot!(stopping.text, @"
    unavailable: the database system is shutting down (SQLSTATE 57P03)
    Busy, circuit open (busy), sync offline, goes on

    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ℹ️  Cloud SQL behind 127.0.0.1:PORT takes no connections right now (the database system is shutting down (SQLSTATE 57P03))
    ");
    for (what, played) in [("full", full), ("starting", starting), ("stopping", stopping)] {
        played.assert_in_backoff(what);
        played.assert_never_available();
    }
}
