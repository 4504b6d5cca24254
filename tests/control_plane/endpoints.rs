//! Where the proxy is said to be: the folder of a socket, a name, a name that nobody knows.

use std::net::ToSocketAddrs as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use tidewater::{ProxyStatus, Statement};
use tidewater_test_support::Postgres;

use crate::harness::{Bench, wait_for, wait_until_available};
use crate::{Heard, MAX_RETRY_S, RETRY_S, allowed_by_backoff, class_word, fixed, hurried};

/// The socket's folder as host: not running while the file is missing, and synced as soon as it is there.
#[actix_rt::test]
async fn a_socket_that_appears_is_noticed() {
    let bench = Bench::new().await;
    let server = Postgres::shared();
    let folder = tempfile::tempdir().unwrap();
    let name = format!(".s.PGSQL.{}", bench.proxy.port());
    // No timer of these could pass for the look.
    let settings = hurried(&bench)
        .set("proxy.host", folder.path().display())
        .set("proxy.retry_delay_s", 3600)
        .set("proxy.max_retry_delay_s", 3600);
    let db = bench.open_with(settings).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    db.write([Statement::new("INSERT INTO note (body) VALUES ('a')")]).await.unwrap();
    let status = db.status_summary().await;
    assert_eq!(status.proxy.endpoint, folder.path().join(&name).display().to_string());
    assert_eq!(status.proxy.status, ProxyStatus::Unavailable);

    std::os::unix::fs::symlink(
        server.folder().join(format!(".s.PGSQL.{}", server.port())),
        folder.path().join(&name),
    )
    .unwrap();
    bench.wait_until_equal(&db, &["note"]).await;
    let log = bench.log.all().join("\n").replace(&folder.path().display().to_string(), "SOCKETS");
    assert_snapshot!(log.replace(&bench.proxy.port().to_string(), "PORT"), @"
    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ℹ️  Proxy not running on SOCKETS/.s.PGSQL.PORT
    INFO    Using SQLite-only mode (Cloud SQL unavailable)
    INFO ℹ️  Cloud SQL Proxy not detected in local development environment
    INFO    This is normal - using SQLite-only mode
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ✅ CloudSQL reconnected - warming cache and syncing
    ");
    db.shutdown().await.unwrap();
}

/// A socket file that a dead proxy left behind: not running, in the documented words, in backoff; and the next proxy, which
/// makes the file anew, is found.
#[actix_rt::test]
async fn a_socket_file_left_behind_is_nobody() {
    let bench = Bench::new().await;
    let server = Postgres::shared();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(format!(".s.PGSQL.{}", bench.proxy.port()));
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "dropping a listener leaves its file");
    let db = bench.open_with(hurried(&bench).set("proxy.host", folder.path().display())).await;
    let heard = Heard::of(&db).await;
    wait_for(&db, "it has tried again", |status| status.proxy.consecutive_failures >= 2).await;
    let last = heard.last().unwrap();
    assert_eq!((last.status, class_word(last.class)), (ProxyStatus::Unavailable, "NotRunning".to_owned()));
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(server.folder().join(format!(".s.PGSQL.{}", server.port())), &socket).unwrap();
    wait_until_available(&db).await;
    let log = bench.log.all().join("\n").replace(&folder.path().display().to_string(), "SOCKETS");
    assert_snapshot!(log.replace(&bench.proxy.port().to_string(), "PORT"), @"
    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ℹ️  Proxy not running on SOCKETS/.s.PGSQL.PORT
    INFO    Using SQLite-only mode (Cloud SQL unavailable)
    INFO ℹ️  Cloud SQL Proxy not detected in local development environment
    INFO    This is normal - using SQLite-only mode
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ✅ CloudSQL reconnected - warming cache and syncing
    ");
    db.shutdown().await.unwrap();
}

/// The machine's own name for itself: seen without connecting, and connected to.
#[actix_rt::test]
async fn localhost_is_this_machine() {
    let bench = Bench::new().await;
    let settings = hurried(&bench).set("proxy.host", "localhost").set("proxy.max_retry_delay_s", 3600);
    let db = bench.open_with(settings.set("proxy.retry_delay_s", 3600)).await;
    db.write([Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")]).await.unwrap();
    db.write([Statement::new("INSERT INTO note (body) VALUES ('a')")]).await.unwrap();
    assert_eq!(db.status_summary().await.proxy.status, ProxyStatus::Unavailable);
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    let log = fixed(&bench.log.all().join("\n"), &bench);
    assert_snapshot!(log, @"
    INFO 🔍 Cloud SQL Proxy Detector initialized
    INFO ℹ️  Proxy not running on localhost:PORT
    INFO    Using SQLite-only mode (Cloud SQL unavailable)
    INFO ℹ️  Cloud SQL Proxy not detected in local development environment
    INFO    This is normal - using SQLite-only mode
    INFO ✅ SQLite initialized (WAL mode enabled)
    INFO ✅ Hybrid sync initialized
    INFO ✅ CloudSQL reconnected - warming cache and syncing
    ");
    db.shutdown().await.unwrap();
}

/// A name that cannot be resolved says nothing about the proxy: unknown, one warning, tried again in backoff, and never a pause.
#[actix_rt::test]
async fn a_name_that_nobody_knows_is_no_answer() {
    let asked = Instant::now();
    assert!(("nowhere.invalid", 5432).to_socket_addrs().is_err(), "this name is reserved for nobody");
    let bench = Bench::new().await;
    // A resolver without a network may take long to say so.
    let patient = asked.elapsed().as_secs_f64() * 4.0 + 10.0;
    let settings = hurried(&bench).set("proxy.host", "nowhere.invalid").set("proxy.timeout_s", patient);
    let began = Instant::now();
    let db = bench.open_with(settings).await;
    let heard = Heard::of(&db).await;
    let status =
        wait_for(&db, "more failures than a pause takes", |status| status.proxy.consecutive_failures > 5)
            .await;
    let most = allowed_by_backoff(began.elapsed() + Duration::from_millis(1), RETRY_S, MAX_RETRY_S);
    assert!(u64::from(status.proxy.consecutive_failures) <= most, "{status:?}");
    assert_eq!((status.proxy.status, status.proxy.paused), (ProxyStatus::Unknown, false), "{status:?}");
    assert!(status.proxy.should_retry && status.proxy.detail.contains("lookup"), "{status:?}");
    let last = heard.last().unwrap();
    assert_eq!((last.status, class_word(last.class)), (ProxyStatus::Unknown, "CheckFailed".to_owned()));
    let warnings: Vec<_> = bench.log.all().into_iter().filter(|line| line.starts_with("WARN")).collect();
    assert!(
        matches!(&warnings[..], [only] if only.contains("Cannot check the proxy on nowhere.invalid")),
        "{warnings:#?}"
    );
    assert_eq!(bench.log.all().len(), 4, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}
