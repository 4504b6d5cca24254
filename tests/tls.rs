//! The line to the cloud: nothing is said to a server that has not shown who it is, and passwords change while we run (P10).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Bench, PATIENCE, wait_for, wait_until_available, wait_until_flushed};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use tempfile::TempDir;
use tidewater::Statement;
use tidewater::doctor::{Check, Doctor, Mark};
use tidewater_actors::core::failure::{CloudFailure, FailureClass};
use tidewater_actors::postgres::{
    Cloud, CloudOptions, LinkOptions, PasswordCommand, PasswordSource, TlsMode, TlsOptions,
};
use tidewater_test_support::hostile::{Talk, announced, error, message, row};
use tidewater_test_support::{Database, FaultProxy, HostileServer, Postgres, wait};

use FailureClass::{Credentials, NotOurs};

// ---------------------------------------------------------------------------------------------------------
// The bench
// ---------------------------------------------------------------------------------------------------------

const SECRET: &str = "hunter2-very-secret";

/// What asks for TLS before anything else is said: eight bytes, and no name among them.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

fn options(database: &Database, port: u16, tls: TlsOptions) -> CloudOptions {
    CloudOptions {
        host: "127.0.0.1".into(),
        port,
        database: database.name.clone(),
        user: database.user.clone(),
        password: Some(database.password.clone()),
        schema: "public".into(),
        timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(20),
        pool_max: 2,
        application_name: "tidewater-test".into(),
        add_columns: true,
        link: LinkOptions { tls, password: PasswordSource::Fixed, ..LinkOptions::default() },
    }
}

fn required(ca_file: Option<&Path>, server_name: Option<&str>) -> TlsOptions {
    TlsOptions {
        mode: TlsMode::Required,
        ca_file: ca_file.map(Path::to_owned),
        server_name: server_name.map(str::to_owned),
        ..TlsOptions::default()
    }
}

/// What the check says. No word of it is a password.
async fn failure(options: CloudOptions) -> CloudFailure {
    let password = options.password.clone().unwrap_or_else(|| SECRET.to_owned());
    let cloud = Cloud::new(options).unwrap();
    let failure = cloud.check().await.expect_err("nothing that may be synced with is there");
    let shown = format!("{cloud:?} {failure:?} {failure}");
    assert!(!shown.contains(&password) && !shown.contains(SECRET), "{shown}");
    failure
}

async fn succeeds(options: CloudOptions) {
    Cloud::new(options).unwrap().check().await.unwrap_or_else(|failure| panic!("{failure:?}"));
}

struct Made {
    cert: String,
    key: String,
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert: String,
}

fn params(common: &str, alternative: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = alternative
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
}

fn as_ca(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn ended(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 2, 3);
    params
}

impl Ca {
    fn new(name: &str) -> Self {
        let (params, key) = (as_ca(params(name, &[])), KeyPair::generate().unwrap());
        let cert = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), cert }
    }

    fn signs(&self, params: &CertificateParams) -> Made {
        let key = KeyPair::generate().unwrap();
        Made { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn self_signed(params: &CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    Made { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// A file of this test's.
fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A file of the server's, which only it reads.
fn put(server: &Postgres, name: &str, text: &str) {
    let path = server.folder().join("data").join(name);
    fs::write(&path, text).unwrap();
    let owner = server.folder().metadata().unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// From now on it speaks TLS, as this.
fn speak_tls(server: &Postgres, made: &Made) {
    put(server, "server.crt", &made.cert);
    put(server, "server.key", &made.key);
    put(server, "postgresql.auto.conf", "ssl = on\n");
    server.restart();
}

/// An address of this machine's that is not its loopback.
fn own_address() -> IpAddr {
    // Nothing is sent: the system only chooses the address that it would send from.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).expect("a network interface besides loopback");
    let address = socket.local_addr().unwrap().ip();
    assert!(!address.is_loopback() && !address.is_unspecified(), "{address}");
    address
}

/// Somebody between us and a server, who hears all that is said to it.
struct Between {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Between {
    /// Does this with each connection, whose words are kept.
    fn at(address: IpAddr, work: impl Fn(TcpStream, &dyn Fn(&[u8])) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(vec![]));
        let (keep, work) = (heard.clone(), Arc::new(work));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (keep, work, stream) = (keep.clone(), work.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    work(stream, &|bytes| keep.lock().unwrap().extend_from_slice(bytes))
                });
            }
        });
        Self { address, heard }
    }

    /// Passes everything on.
    fn forwarding(address: IpAddr, server: u16) -> Self {
        Self::at(address, move |client, keep| {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
            let (mut back, mut out) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut out);
                let _ = out.shutdown(std::net::Shutdown::Both);
            });
            pass(client, server, keep, false);
        })
    }

    /// Says no to TLS in the server's place, and passes everything else on.
    fn stripping(server: u16) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), move |mut client, keep| {
            let mut request = [0; 8];
            if client.read_exact(&mut request).is_err() {
                return;
            }
            keep(&request);
            client.write_all(b"N").unwrap();
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
            pass(client, server, keep, true);
        })
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

/// From one to the other, until either ends.
fn pass(mut from: TcpStream, mut to: TcpStream, keep: &dyn Fn(&[u8]), both: bool) {
    if both {
        let (mut back, mut out) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back, &mut out));
    }
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        keep(&bytes[..length]);
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

// ---------------------------------------------------------------------------------------------------------
// Whom it believes
// ---------------------------------------------------------------------------------------------------------

/// A server is taken where its certificate comes from a CA that we trust, has not ended and has the expected name; whatever
/// else it shows has its own words, and none is tried again soon.
#[tokio::test]
async fn a_server_is_taken_for_what_its_certificate_shows() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other, namesake) = (Ca::new("our CA"), Ca::new("another CA"), Ca::new("our CA"));
    let ours = file(&folder, "ours.pem", &ca.cert);
    let theirs = file(&folder, "theirs.pem", &other.cert);
    let same_name = file(&folder, "namesake.pem", &namesake.cert);
    let both = file(&folder, "both.pem", &format!("{}{}", other.cert, ca.cert));
    let server = Postgres::start();
    let database = server.create_database().await;
    let check = async |host: &str, ca_file: Option<&Path>, name: Option<&str>, expected: Result<(), &str>| {
        let mut options = options(&database, database.port, required(ca_file, name));
        options.host = host.into();
        match expected {
            Ok(()) => succeeds(options).await,
            Err(words) => {
                let failure = failure(options).await;
                assert!(failure.detail.contains(words), "{failure:?}");
                assert_eq!(failure.class, NotOurs, "{failure:?}");
                assert!(failure.remedy.is_some(), "{failure:?}");
            }
        }
    };

    speak_tls(&server, &ca.signs(&params("db", &["db.example", "localhost", "127.0.0.1"])));
    check("127.0.0.1", Some(&ours), None, Ok(())).await;
    check("localhost", Some(&ours), None, Ok(())).await;
    check("127.0.0.1", Some(&both), Some("db.example"), Ok(())).await;
    let unknown = Err("signed by our CA, an unknown CA");
    check("127.0.0.1", Some(&theirs), None, unknown).await;
    check("127.0.0.1", Some(&same_name), None, unknown).await;
    // The CAs of this machine.
    check("127.0.0.1", None, None, unknown).await;
    // The common name does not count beside others.
    let names = "is for db.example, localhost, 127.0.0.1, db, not for db2.example";
    check("127.0.0.1", Some(&ours), Some("db2.example"), Err(names)).await;
    check("127.0.0.1", Some(&ours), Some("db"), Err("not for db")).await;

    speak_tls(&server, &ca.signs(&params("Localhost", &[])));
    check("localhost", Some(&ours), None, Ok(())).await;
    check("127.0.0.1", Some(&ours), None, Err("is for Localhost, not for 127.0.0.1")).await;

    speak_tls(&server, &ca.signs(&params("my-project:orders", &["0a1b.c2d3.europe-west1.sql.goog"])));
    check("127.0.0.1", Some(&ours), Some("my-project:orders"), Ok(())).await;
    check("127.0.0.1", Some(&ours), Some("0a1b.c2d3.europe-west1.sql.goog"), Ok(())).await;
    check("127.0.0.1", Some(&ours), Some("my-project:order"), Err("not for my-project:order")).await;
    check("127.0.0.1", Some(&theirs), Some("my-project:orders"), unknown).await;
    check("127.0.0.1", Some(&ours), None, Err("not for 127.0.0.1")).await;

    speak_tls(&server, &ca.signs(&ended(params("db", &["127.0.0.1"]))));
    check("127.0.0.1", Some(&ours), None, Err("its certificate ended on 2021-02-03")).await;

    let mut later = params("db", &["127.0.0.1"]);
    (later.not_before, later.not_after) = (date_time_ymd(3000, 1, 1), date_time_ymd(3001, 1, 1));
    speak_tls(&server, &ca.signs(&later));
    check("127.0.0.1", Some(&ours), None, Err("its certificate begins on 3000-01-01 only")).await;

    // As rcgen makes them, and as `openssl req -x509` does, which calls them a CA's.
    for (at, made) in
        [self_signed(&params("db", &["127.0.0.1"])), self_signed(&as_ca(params("db", &["127.0.0.1"])))]
            .iter()
            .enumerate()
    {
        let listed = file(&folder, &format!("listed-{at}.pem"), &made.cert);
        speak_tls(&server, made);
        check("127.0.0.1", Some(&ours), None, Err("signed by itself")).await;
        check("127.0.0.1", Some(&listed), None, Ok(())).await;
        check("127.0.0.1", Some(&listed), Some("db.example"), Err("not for db.example")).await;
    }
    let old = self_signed(&ended(as_ca(params("db", &["127.0.0.1"]))));
    let listed = file(&folder, "old.pem", &old.cert);
    speak_tls(&server, &old);
    check("127.0.0.1", Some(&listed), None, Err("ended on 2021-02-03")).await;
}

/// A file that cannot be used is named, with the reason and without a word of what it holds.
#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Postgres::shared();
    let database = server.create_database().await;
    let nothing = file(&folder, "nothing.pem", SECRET);
    let gone = folder.path().join("gone.pem");
    for (path, reason) in [(&nothing, "it does not hold a certificate in PEM"), (&gone, "No such file")] {
        let failure = failure(options(&database, database.port, required(Some(path), None))).await;
        assert_eq!(failure.class, Credentials);
        let start = format!("cloud.tls_ca_file = {} cannot be used: {reason}", path.display());
        assert!(failure.detail.starts_with(&start), "{failure:?}");
    }
}

/// A server that asks for a client certificate gets the one that the settings name; without it, with a stranger's, with a
/// key that others can read or that belongs to another, it is said what is missing.
#[tokio::test]
async fn a_client_certificate_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new("our CA"), Ca::new("another CA"));
    let ours = file(&folder, "ca.pem", &ca.cert);
    let server = Postgres::start();
    let database = server.create_database().await;
    put(&server, "root.crt", &ca.cert);
    put(&server, "pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n");
    put(&server, "server.crt", "");
    let made = ca.signs(&params("db", &["127.0.0.1"]));
    put(&server, "server.crt", &made.cert);
    put(&server, "server.key", &made.key);
    put(&server, "postgresql.auto.conf", "ssl = on\nssl_ca_file = 'root.crt'\n");
    server.restart();
    let with = |cert: Option<&Path>, key: Option<&Path>| {
        let mut tls = required(Some(&ours), None);
        (tls.cert_file, tls.key_file) = (cert.map(Path::to_owned), key.map(Path::to_owned));
        options(&database, database.port, tls)
    };

    let good = ca.signs(&params("device-7", &[]));
    let (cert, key) = (file(&folder, "client.pem", &good.cert), file(&folder, "client.key", &good.key));
    succeeds(with(Some(&cert), Some(&key))).await;

    let none = failure(with(None, None)).await;
    assert_eq!((none.class, none.sqlstate.as_deref()), (Credentials, Some("28000")));
    assert!(none.remedy.unwrap().ends_with("set cloud.tls_cert_file and cloud.tls_key_file"));

    let stranger = other.signs(&params("device-7", &[]));
    let strange = (file(&folder, "s.pem", &stranger.cert), file(&folder, "s.key", &stranger.key));
    let refused = failure(with(Some(&strange.0), Some(&strange.1))).await;
    assert_eq!(refused.class, Credentials, "{refused:?}");
    assert!(refused.detail.starts_with("the server refuses our client certificate"), "{refused:?}");

    let mixed = failure(with(Some(&cert), Some(&strange.1))).await;
    assert_eq!(mixed.class, Credentials, "{mixed:?}");
    assert!(mixed.detail.contains("cannot be used with the key"), "{mixed:?}");

    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let open = failure(with(Some(&cert), Some(&key))).await;
        assert_eq!(open.class, Credentials, "{open:?}");
        assert!(open.detail.contains(&format!("has mode {mode:04o}: others")), "{open:?}");
        assert_eq!(open.remedy.unwrap(), format!("chmod 600 {}", key.display()));
    }
}

// ---------------------------------------------------------------------------------------------------------
// What is sent, and to whom
// ---------------------------------------------------------------------------------------------------------

/// A server without TLS, and somebody on the way who says no in the place of one that has it, get the question for TLS and
/// not a byte more.
#[tokio::test]
async fn who_says_no_to_tls_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("our CA");
    let ours = file(&folder, "ca.pem", &ca.cert);
    let server = Postgres::start();
    let database = server.create_database().await;
    let plain = Between::forwarding(Ipv4Addr::LOCALHOST.into(), server.port());
    let without = failure(options(&database, plain.address.port(), required(Some(&ours), None))).await;
    speak_tls(&server, &ca.signs(&params("db", &["127.0.0.1"])));
    succeeds(options(&database, server.port(), required(Some(&ours), None))).await;
    let stripping = Between::stripping(server.port());
    let stripped = failure(options(&database, stripping.address.port(), required(Some(&ours), None))).await;
    for failure in [&without, &stripped] {
        assert_eq!(failure.class, NotOurs);
        assert_eq!(failure.detail, "what answers speaks no TLS, and nothing goes there unencrypted");
        assert!(failure.remedy.as_ref().unwrap().contains("somebody on the way says no"));
    }
    assert_eq!(plain.heard(), SSL_REQUEST);
    assert_eq!(stripping.heard(), SSL_REQUEST);
}

/// Who answers the question for TLS with anything but yes or no is no PostgreSQL; an error in that place is not repeated,
/// because anybody may have written it.
#[tokio::test]
async fn an_answer_that_is_neither_yes_nor_no_has_its_class() {
    let database = Postgres::shared().create_database().await;
    for (answer, class, detail) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            NotOurs,
            "what answers is not PostgreSQL (\"HTTP/1.1 400 Bad Request\")",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotOurs, "what answers agrees to TLS and does not speak it"),
        (
            b"Eplease send me the password\n\0",
            FailureClass::Busy,
            "what answers has an error in the place of TLS",
        ),
        (
            b"E\0\0\0\x23SFATAL\0VFATAL\0C57P03\0Mnot now\0\0",
            FailureClass::Busy,
            "what answers has an error in the place of TLS",
        ),
        (b"", FailureClass::NotAnswering, "the connection ended before"),
    ] {
        let there = Between::at(Ipv4Addr::LOCALHOST.into(), move |mut stream, _| {
            let mut request = [0; 8];
            if stream.read_exact(&mut request).is_ok() {
                let _ = stream.write_all(answer);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut vec![]);
            }
        });
        let failure = failure(options(&database, there.address.port(), required(None, None))).await;
        assert_eq!(failure.class, class, "{failure:?}");
        assert!(failure.detail.starts_with(detail), "{failure:?}");
    }
}

/// By default another machine gets nothing in the open, this one needs no TLS, and only the setting that says so sends the
/// password unencrypted.
#[tokio::test]
async fn another_machine_gets_nothing_in_the_open() {
    let server = Postgres::shared();
    let database = server.create_database().await;
    let there = Between::forwarding(own_address(), server.port());
    let remote = |mode| {
        let mut options =
            options(&database, there.address.port(), TlsOptions { mode, ..TlsOptions::default() });
        options.host = there.address.ip().to_string();
        options
    };
    let refused = failure(remote(TlsMode::Auto)).await;
    assert_eq!(refused.class, NotOurs);
    assert_eq!(refused.detail, "what answers speaks no TLS, and nothing goes there unencrypted");
    assert_eq!(there.heard(), SSL_REQUEST);
    succeeds(remote(TlsMode::Off)).await;
    assert!(there.heard().windows(database.user.len()).any(|part| part == database.user.as_bytes()));
    for host in ["127.0.0.1", "localhost"] {
        let mut local = options(&database, database.port, TlsOptions::default());
        local.host = host.into();
        succeeds(local).await;
    }
}

/// Rows reach a cloud on another machine through TLS and SCRAM, and a server that is not the right one stops the sync with
/// one line that says why.
#[actix_rt::test]
async fn rows_travel_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("our CA");
    let ours = file(&folder, "ca.pem", &ca.cert);
    let server = Postgres::start();
    let bench = Bench::on(&server).await;
    let here = own_address();
    speak_tls(&server, &ca.signs(&params("db", &[&here.to_string()])));
    let there = Between::forwarding(here, server.port());
    let settings = || {
        let settings = bench.settings().set("proxy.host", here).set("proxy.port", there.address.port());
        settings.set("cloud.tls_ca_file", ours.display())
    };
    let db = bench.open_with(settings()).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    let written = db.write([Statement::new("INSERT INTO note (body) VALUES ('over TLS')")]).await.unwrap();
    db.synced(&written.receipt).await.unwrap();
    let admin = bench.cloud.connect_as_admin().await;
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'tidewater'";
    assert_eq!(admin.query_one(encrypted, &[]).await.unwrap().get::<_, Option<bool>>(0), Some(true));
    let heard = there.heard();
    assert!(heard.starts_with(&SSL_REQUEST));
    for word in [bench.cloud.user.as_bytes(), b"over TLS", b"SCRAM"] {
        assert!(!heard.windows(word.len()).any(|part| part == word), "{}", word.escape_ascii());
    }
    let login = db.doctor().await.unwrap().finding(Check::Login).unwrap().mark;
    assert_eq!(login, Mark::Green);
    db.shutdown().await.unwrap();

    // Another server in its place.
    speak_tls(&server, &Ca::new("a stranger").signs(&params("db", &[&here.to_string()])));
    let db = bench.open_with(settings()).await;
    wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    let line = "what answers is not trusted: its certificate is signed by a stranger, an unknown CA";
    wait_for(&db, "the log says why", |_| bench.log.count(line) > 0).await;
    assert_eq!(bench.log.count(line), 1, "{:#?}", bench.log.all());
    let page = db.doctor().await.unwrap().page(false);
    assert!(page.contains("what answers is not trusted: its certificate"), "{page}");
    db.shutdown().await.unwrap();
}

/// What is sent in the open because the settings say so is said once, at the start.
#[actix_rt::test]
async fn an_unprotected_line_is_said_once() {
    let bench = Bench::new().await;
    let here = own_address();
    let there = Between::forwarding(here, bench.cloud.port);
    let settings = bench.settings().set("proxy.host", here).set("proxy.port", there.address.port());
    let db = bench.open_with(settings.set("cloud.tls", "off")).await;
    wait_until_available(&db).await;
    let line = format!("cloud.tls is off: the password and every row travel to {here} unencrypted");
    assert_eq!(bench.log.count(&line), 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// The log-in is bound to the server's certificate where the server offers that, so that nobody can pass it on.
#[tokio::test]
async fn the_log_in_is_bound_to_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("our CA");
    let ours = file(&folder, "ca.pem", &ca.cert);
    let made = ca.signs(&params("db", &["127.0.0.1"]));
    let server = tls_server(&made);
    let database = Postgres::shared().create_database().await;
    let there = Between::at(Ipv4Addr::LOCALHOST.into(), move |mut stream, keep| {
        let mut request = [0; 8];
        if stream.read_exact(&mut request).is_err() {
            return;
        }
        stream.write_all(b"S").unwrap();
        let session = rustls::ServerConnection::new(server.clone()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, stream);
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4]).unwrap();
        let mechanisms = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let mut message = vec![b'R'];
        message.extend(u32::try_from(mechanisms.len() + 4).unwrap().to_be_bytes());
        message.extend(mechanisms);
        stream.write_all(&message).unwrap();
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        keep(&answer[..length]);
    });
    failure(options(&database, there.address.port(), required(Some(&ours), None))).await;
    let heard = there.heard();
    assert_eq!(&heard[..1], b"p");
    assert!(heard[5..].starts_with(b"SCRAM-SHA-256-PLUS\0"), "{}", heard.escape_ascii());
    assert!(heard.windows(22).any(|part| part == b"p=tls-server-end-point"), "{}", heard.escape_ascii());
}

/// Who shows the right certificate may mean harm all the same: what comes through TLS is bounded as what comes in the open, before
/// the log-in and after it.
#[tokio::test]
async fn a_hostile_server_within_tls_is_bounded_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("our CA");
    let ours = file(&folder, "ca.pem", &ca.cert);
    let server = tls_server(&ca.signs(&params("db", &["127.0.0.1"])));
    let database = Postgres::shared().create_database().await;
    type Step = fn(&mut Talk) -> std::io::Result<()>;
    let notices: Step = |talk| {
        talk.hear_startup()?;
        talk.raw(&message(b'R', &[0; 4]))?;
        talk.forever(&message(b'N', &error("00000", &[b'x'; 1000])))
    };
    let rows: Step = |talk| {
        talk.log_in()?;
        talk.prepare(&[("there", 16)])?;
        talk.begin_rows()?;
        talk.forever(&row(&[b"\x01"]))
    };
    let huge: Step = |talk| {
        talk.log_in()?;
        talk.hear_request()?;
        talk.raw(&announced(b'D', i32::MAX, b""))?;
        talk.forever(&[0; 1000])
    };
    let garbage: Step = |talk| {
        talk.hear_startup()?;
        talk.forever(b"\xff\x00\x1b[2J")
    };
    for (what, script) in [("notices", notices), ("rows", rows), ("huge", huge), ("garbage", garbage)] {
        let server = server.clone();
        let there = Between::at(Ipv4Addr::LOCALHOST.into(), move |mut stream, _| {
            let mut request = [0; 8];
            if stream.read_exact(&mut request).is_err() {
                return;
            }
            stream.write_all(b"S").unwrap();
            let session = rustls::ServerConnection::new(server.clone()).unwrap();
            // How it ended is the client's business.
            let _ = script(&mut Talk::over(rustls::StreamOwned::new(session, stream)));
        });
        let mut options = options(&database, there.address.port(), required(Some(&ours), None));
        options.link.message_bytes_max = 1 << 20;
        let failed = failure(options).await;
        assert_eq!(failed.class, NotOurs, "{what}: {failed:?}");
        assert!(
            failed.detail.contains("as PostgreSQL does") || failed.detail.contains("is not PostgreSQL"),
            "{what}: {failed:?}"
        );
    }
}

fn tls_server(made: &Made) -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(made.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

// ---------------------------------------------------------------------------------------------------------
// The password
// ---------------------------------------------------------------------------------------------------------

async fn set_password(database: &Database, password: &str) {
    let admin = database.connect_as_admin().await;
    admin.batch_execute(&format!("ALTER ROLE {} PASSWORD '{password}'", database.user)).await.unwrap();
}

/// How often the server refused a password of this role.
fn refusals(server: &Postgres, database: &Database) -> usize {
    server.log().matches(&format!("password authentication failed for user \"{}\"", database.user)).count()
}

/// A password that changes in its file works while running: the next connection has it, also where the file is empty for a
/// moment.
#[actix_rt::test]
async fn a_password_file_may_change_while_running() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let file = bench.folder.path().join("password");
    fs::write(&file, format!("{}\n", bench.cloud.password)).unwrap();
    let settings = bench.settings().set("cloud.password", "").set("cloud.password_file", file.display());
    let db = bench.open_with(settings).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    for (round, password) in ["second-password", "third-password"].into_iter().enumerate() {
        wait_until_available(&db).await;
        bench.proxy.stop();
        wait_for(&db, "the proxy is gone", |status| {
            status.proxy.status == tidewater::ProxyStatus::Unavailable
        })
        .await;
        let insert = Statement::new("INSERT INTO note (body) VALUES (?1)").bind(password);
        db.write([insert]).await.unwrap();
        if round == 0 {
            // Emptied, and written a moment later: the old password is still good.
            fs::write(&file, "").unwrap();
            bench.proxy.start();
            wait_until_flushed(&db).await;
            bench.proxy.stop();
        }
        fs::write(&file, format!("{password}\n")).unwrap();
        set_password(&bench.cloud, password).await;
        bench.proxy.start();
        let written = db.write([Statement::new("INSERT INTO note (body) VALUES ('after')")]).await.unwrap();
        db.reset().await.unwrap();
        db.synced(&written.receipt).await.unwrap();
    }
    assert_eq!(refusals(Postgres::shared(), &bench.cloud), 0);
    db.shutdown().await.unwrap();
}

fn command(argv: &[&str], timeout: Duration, ttl: Duration) -> PasswordSource {
    PasswordSource::Command(PasswordCommand {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        timeout,
        ttl,
    })
}

fn by_command(database: &Database, source: PasswordSource) -> CloudOptions {
    let mut options = options(database, database.port, TlsOptions::default());
    options.password = None;
    options.link.password = source;
    options
}

const HOUR: Duration = Duration::from_secs(3600);

/// A command that does not print one line and end well is a failure that names the command and nothing that it printed, on
/// whichever output.
#[tokio::test]
async fn a_command_that_prints_no_password_is_named_without_its_output() {
    let database = Postgres::shared().create_database().await;
    let tell = format!("echo {SECRET}; echo {SECRET} >&2; ");
    for (script, words) in [
        (format!("{tell} exit 3"), "failed (exit status: 3)"),
        (format!("{tell} kill -9 $$"), "failed (signal: 9 (SIGKILL))"),
        (format!("{tell} echo more"), "prints more than one line"),
        (format!("{tell} echo"), "prints more than one line"),
        (format!("echo {SECRET} >&2"), "prints nothing"),
        ("echo".to_owned(), "prints nothing"),
        (format!("while :; do echo {SECRET}; done"), "prints more than 65536 bytes"),
        (format!("printf '{SECRET}\\377'"), "prints what is not text in UTF-8"),
        (format!("printf '{SECRET}\\000'"), "prints a NUL"),
    ] {
        let source = command(&["sh", "-c", &script], Duration::from_secs(20), HOUR);
        let failure = failure(by_command(&database, source)).await;
        assert_eq!(failure.class, Credentials, "{failure:?}");
        assert_eq!(failure.detail, format!("cloud.password_command (sh) {words}"));
        assert!(failure.remedy.is_some());
    }
    let source = command(&["/nowhere/gcloud", SECRET], Duration::from_secs(20), HOUR);
    let missing = failure(by_command(&database, source)).await;
    assert_eq!(missing.class, Credentials);
    assert!(
        missing.detail.starts_with("cloud.password_command (/nowhere/gcloud) cannot be run: No such file")
    );
}

/// A command that hangs is ended after its time with what it started, whether or not it has said everything.
#[tokio::test]
async fn a_command_that_hangs_is_ended() {
    let database = Postgres::shared().create_database().await;
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    for begin in ["", "exec 1>&-;"] {
        let script = format!("echo {SECRET}; {begin} sleep 1000 & echo $$ $! >{}; wait", pids.display());
        let source = command(&["sh", "-c", &script], Duration::from_millis(700), HOUR);
        let failure = failure(by_command(&database, source)).await;
        assert_eq!(failure.class, Credentials);
        assert_eq!(failure.detail, "cloud.password_command (sh) did not end within 0.7 s");
        let text = fs::read_to_string(&pids).unwrap();
        wait::until("both processes to be gone", PATIENCE, async || {
            let alive = |pid: &str| {
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
            };
            match text.split_whitespace().filter(|pid| alive(pid)).count() {
                0 => Ok(()),
                count => Err(format!("{count} of {text}")),
            }
        })
        .await;
    }
}

/// A program that counts how often it was run, and prints what a file has.
fn counting(folder: &TempDir, password: &str) -> (PathBuf, PathBuf, String) {
    let (runs, says) = (folder.path().join("runs"), folder.path().join("says"));
    fs::write(&runs, "").unwrap();
    fs::write(&says, password).unwrap();
    let script = format!("echo run >>{}; cat {}; echo", runs.display(), says.display());
    (runs, says, script)
}

fn count(runs: &Path) -> usize {
    fs::read_to_string(runs).unwrap().lines().count()
}

/// What a command printed is kept for later connections, asked for anew before its time is over, and anew when the server
/// refuses it: then the check that met the refusal succeeds.
#[tokio::test]
async fn what_a_command_printed_is_kept_and_renewed() {
    let server = Postgres::shared();
    let database = server.create_database().await;
    let folder = tempfile::tempdir().unwrap();
    let (runs, says, script) = counting(&folder, &database.password);
    let argv = ["sh", "-c", script.as_str()];
    let cloud = Cloud::new(by_command(&database, command(&argv, Duration::from_secs(20), HOUR))).unwrap();
    // Several at once share one run.
    let (one, two) = tokio::join!(cloud.check(), cloud.check());
    one.and(two).unwrap();
    for _ in 0..3 {
        // The next one is a new connection.
        cloud.leave_thread();
        cloud.check().await.unwrap();
    }
    assert_eq!(count(&runs), 1);

    fs::write(&says, "rotated").unwrap();
    set_password(&database, "rotated").await;
    cloud.leave_thread();
    cloud.check().await.unwrap();
    assert_eq!((count(&runs), refusals(server, &database)), (2, 1));

    // Its time is over at once: each connection has a password of its own.
    let short = command(&argv, Duration::from_secs(20), Duration::from_millis(1));
    let cloud = Cloud::new(by_command(&database, short)).unwrap();
    for _ in 0..2 {
        cloud.leave_thread();
        cloud.check().await.unwrap();
    }
    assert_eq!(count(&runs), 4);
}

/// The same password is not shown to a server twice that has refused it: that is what locks accounts.
#[tokio::test]
async fn a_refused_password_is_not_shown_again() {
    let server = Postgres::shared();
    let database = server.create_database().await;
    let folder = tempfile::tempdir().unwrap();
    let (runs, _, script) = counting(&folder, SECRET);
    let source = command(&["sh", "-c", &script], Duration::from_secs(20), HOUR);
    let refused = failure(by_command(&database, source)).await;
    assert_eq!((refused.class, refused.sqlstate.as_deref()), (Credentials, Some("28P01")));
    assert!(refused.remedy.unwrap().contains("what cloud.password_command prints"));
    assert_eq!((count(&runs), refusals(server, &database)), (2, 1));
}

/// A server may answer with what it was told before: an older password is no more for the log than the newest, and a short one no
/// more than a long one, where it stands alone.
#[tokio::test]
async fn no_password_that_a_server_was_told_comes_back_in_its_words() {
    let database = Postgres::shared().create_database().await;
    let folder = tempfile::tempdir().unwrap();
    let server = HostileServer::start(|_: &mut Talk| Ok(()));
    let echo = || {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        move |talk: &mut Talk| {
            talk.hear_startup()?;
            talk.say(b'R', &[0, 0, 0, 3])?;
            let (_, password) = talk.hear()?;
            let password = String::from_utf8_lossy(&password).trim_end_matches('\0').to_owned();
            let mut told = told.lock().unwrap();
            told.push(password);
            talk.say(b'E', &error("28P01", format!("none is right: {}", told.join(", ")).as_bytes()))
        }
    };
    let runs = folder.path().join("runs");
    let script = format!("echo run >>{0}; echo token-number-$(wc -l <{0})", runs.display());
    let by_command = by_command(&database, command(&["sh", "-c", &script], Duration::from_secs(20), HOUR));
    let mut fixed = by_command.clone();
    fixed.password = Some("s3cr".to_owned());
    fixed.link.password = PasswordSource::Fixed;
    fixed.link.password_in_clear = true;
    for (mut options, shown) in [(by_command, "none is right: ***, ***"), (fixed, "none is right: ***")] {
        server.play(echo());
        options.port = server.port();
        let refused = failure(options).await;
        assert_eq!(refused.detail, format!("{shown} (SQLSTATE 28P01)"));
    }
    assert_eq!(count(&runs), 2);
}

/// Whatever a command prints, and wherever, neither the log nor the status nor `doctor` has a word of it, and the program
/// goes on without the cloud.
#[actix_rt::test]
async fn no_output_of_a_command_is_ever_seen() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let script = format!("sh -c 'echo {SECRET}; echo {SECRET}; echo {SECRET} >&2'");
    let settings = bench.settings().set("cloud.password", "").set("cloud.password_command", script);
    let settings = settings.build().unwrap();
    let shown = format!("{settings:?} {:?}", settings.effective());
    let db = tidewater::Database::open(settings.clone(), bench.log.logger()).await.unwrap();
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    let status = wait_for(&db, "the sync is blocked", |status| status.sync.state == "blocked").await;
    let page = db.doctor().await.unwrap().page(false);
    db.shutdown().await.unwrap();
    let alone =
        tokio::task::spawn_blocking(move || Doctor::new(settings).examine().page(false)).await.unwrap();
    let log = bench.log.all().join("\n");
    assert!(log.contains("cloud.password_command (sh) prints more than one line"), "{log}");
    for text in [shown, format!("{status:?} {db:?}"), page, alone, log] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

/// Where nobody is, no command is run for a password, and its failure is not what is told in the place of that.
#[actix_rt::test]
async fn nobody_there_asks_for_no_password() {
    let bench = Bench::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (runs, _, script) = counting(&folder, &bench.cloud.password);
    let settings = bench.settings().set("cloud.password", "");
    let db = bench.open_with(settings.set("cloud.password_command", format!("sh -c '{script}'"))).await;
    db.detect_proxy(true).await.unwrap();
    assert_eq!(count(&runs), 0);
    bench.proxy.start();
    wait_until_available(&db).await;
    assert_eq!(count(&runs), 1);
    db.shutdown().await.unwrap();
}

/// The Auth Proxy on this machine, which speaks no TLS to its clients, is not asked for it.
#[tokio::test]
async fn the_auth_proxy_is_spoken_to_as_ever() {
    let database = Postgres::shared().create_database().await;
    let proxy = FaultProxy::started(Postgres::shared().address());
    succeeds(options(&database, proxy.port(), TlsOptions::default())).await;
}
