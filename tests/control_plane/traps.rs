//! What the predecessor fell into, each as a test: half open for ever, hammering with a wrong password, a stall that is noticed
//! after a minute. And a proxy that is restarted, or comes and goes, under live connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tidewater::{Database, Error, ProxyStatus, Statement, SyncError};
use tidewater_test_support::{FaultProxy, Mode, Postgres, wait};

use crate::harness::{Bench, PATIENCE, wait_for, wait_until_available};
use crate::{
    HEALTH_S, Heard, MAX_RETRY_S, RETRY_S, TIMEOUT_S, allowed_by_backoff, allowed_when_blocked, hurried,
};

const NOTE: &str = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)";

/// The lines of a start without a proxy.
const START_LINES: usize = 7;

async fn insert(db: &Database) -> tidewater::Receipt {
    db.write([Statement::new("INSERT INTO note (body) VALUES (hex(randomblob(8)))")]).await.unwrap().receipt
}

/// Writes until this future has ended.
async fn writing_during<T>(db: &Database, other: impl Future<Output = T>) -> T {
    let writes = async {
        loop {
            insert(db).await;
            actix_rt::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = other => result,
        () = writes => unreachable!("it never ends"),
    }
}

async fn pause(millis: u64) {
    actix_rt::time::sleep(Duration::from_millis(millis)).await;
}

/// A file with a table, in front of a cloud that has it.
async fn synced(bench: &Bench) -> Database {
    bench.proxy.start();
    let db = bench.open_with(hurried(bench).set("proxy.timeout_s", TIMEOUT_S)).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    let receipt = insert(&db).await;
    db.synced(&receipt).await.unwrap();
    db
}

/// Half open for ever: a proxy that flaps, or goes silent again and again, and then works, ends with everything synced and a
/// closed circuit.
#[actix_rt::test]
async fn after_flapping_everything_syncs_and_the_circuit_is_closed() {
    let after = async |how: &str| {
        let bench = Bench::new().await;
        let db = synced(&bench).await;
        writing_during(&db, async {
            for _ in 0..4 {
                match how {
                    "gone" => bench.proxy.stop(),
                    "silent" => bench.proxy.set_mode(Mode::Swallow),
                    _ => {
                        bench.proxy.set_mode(Mode::AcceptThenClose);
                        bench.proxy.stop();
                        bench.proxy.start();
                    }
                }
                pause(if how == "silent" { 1600 } else { 600 }).await;
                bench.proxy.set_mode(Mode::Forward);
                bench.proxy.start();
                pause(300).await;
            }
        })
        .await;
        bench.wait_until_equal(&db, &["note"]).await;
        let status = wait_for(&db, "it is closed", |status| status.circuit.state == "closed").await;
        assert_eq!(status.proxy.status, ProxyStatus::Available, "{how}: {status:?}");
        let receipt = insert(&db).await;
        db.synced(&receipt).await.unwrap();
        println!("{how}: {} lines, {} connections", bench.log.all().len(), bench.proxy.accepted());
        assert_eq!(bench.log.count("Attempting"), 0);
        db.shutdown().await.unwrap();
    };
    tokio::join!(after("gone"), after("silent"), after("closing"));
}

/// A wrong password, however long: one error line, one attempt per longest wait, whoever asks or writes meanwhile. Once the role
/// has that password, it goes on by itself.
#[actix_rt::test]
async fn a_wrong_password_is_one_line_and_no_hammering() {
    const LONGEST_S: f64 = 0.5;
    let bench = Bench::new().await;
    bench.proxy.start();
    let settings = hurried(&bench)
        .set("cloud.password", "set later")
        .set("proxy.retry_delay_s", 0.1)
        .set("proxy.max_retry_delay_s", LONGEST_S);
    let began = Instant::now();
    let db = bench.open_with(settings).await;
    wait_for(&db, "it is refused", |status| status.sync.state == "blocked").await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    for n in 0..45 {
        insert(&db).await;
        if n % 4 == 0 {
            let said = db.detect_proxy(true).await.unwrap();
            assert!(said.status == ProxyStatus::Unavailable && said.detail.contains("28P01"), "{said:?}");
            let error = db.flush().await.unwrap_err();
            let at_once = matches!(error, Error::Sync(SyncError::Offline(_) | SyncError::Blocked(_)));
            assert!(at_once, "{error:?}");
        }
        pause(100).await;
    }
    let attempts = bench.proxy.accepted();
    let most = allowed_when_blocked(began.elapsed(), LONGEST_S);
    println!("wrong password: {attempts} attempts in {:?}, at most {most}", began.elapsed());
    assert!((2..=most).contains(&attempts), "{attempts}, at most {most}");
    let lines = bench.log.all();
    assert_eq!(lines.iter().filter(|line| line.starts_with("ERRO")).count(), 1, "{lines:#?}");
    assert!(lines.iter().all(|line| !line.starts_with("WARN")), "{lines:#?}");

    let admin = bench.cloud.connect_as_admin().await;
    let set = format!("ALTER ROLE {} PASSWORD 'set later'", bench.cloud.user);
    admin.batch_execute(&set).await.unwrap();
    wait_until_available(&db).await;
    let receipt = insert(&db).await;
    db.synced(&receipt).await.unwrap();
    assert_eq!(bench.log.all().len(), lines.len() + 1, "{:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// However many ask at the same time, with force, it is one check, and its outcome is everybody's.
#[actix_rt::test]
async fn those_who_ask_at_the_same_time_share_one_check() {
    let bench = Bench::new().await;
    bench.proxy.set_mode(Mode::Swallow);
    bench.proxy.start();
    let settings = hurried(&bench).set("proxy.retry_delay_s", 3600).set("proxy.max_retry_delay_s", 3600);
    let db = bench.open_with(settings.set("proxy.timeout_s", 1)).await;
    wait_for(&db, "the first check is over", |status| status.proxy.consecutive_failures == 1).await;
    assert_eq!(bench.proxy.accepted(), 1);
    // All of them ask before the answer can have come: it takes a second.
    let answers = join_all((0..100).map(|_| db.detect_proxy(true))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().status, ProxyStatus::Unavailable);
    }
    assert_eq!(bench.proxy.accepted(), 2, "{:#?}", bench.log.all());
    assert_eq!(db.status_summary().await.proxy.consecutive_failures, 1, "the timeline is not moved");
    db.shutdown().await.unwrap();
}

/// A link that goes silent under live connections is known to be dead after a health interval and two timeouts, whether nobody
/// uses it or everybody does, not when a statement's minute is over; what was written arrives when it speaks again.
///
/// The bound allows three seconds more for a machine that does other work; what is measured is printed.
#[actix_rt::test]
async fn a_stalled_connection_is_noticed() {
    let documented = Duration::from_secs_f64(HEALTH_S + 2.0 * TIMEOUT_S);
    let stall = async |busy: bool| {
        let bench = Bench::new().await;
        let db = synced(&bench).await;
        let heard = Heard::of(&db).await;
        wait::until("it is told", PATIENCE, async || heard.last().ok_or("nothing".to_owned())).await;
        assert!(bench.proxy.live() > 0, "connections are live");
        let (known, warned) = (heard.all().len(), bench.log.count("does not answer"));
        let stalled = Instant::now();
        bench.proxy.set_mode(Mode::Swallow);
        let noticed = heard.wait_for(ProxyStatus::Unavailable, known, &bench.log);
        let took = match busy {
            true => writing_during(&db, noticed).await,
            false => noticed.await,
        } - stalled;
        println!("a stall is noticed after {took:?}, documented {documented:?}, busy: {busy}");
        assert!(
            took <= documented + Duration::from_secs(3),
            "busy: {busy}, {took:?}: {:#?}",
            bench.log.all()
        );
        let warnings = bench.log.count("does not answer");
        assert_eq!(warnings, warned + 1, "busy: {busy}, {:#?}", bench.log.all());
        bench.proxy.set_mode(Mode::Forward);
        bench.wait_until_equal(&db, &["note"]).await;
        db.shutdown().await.unwrap();
    };
    tokio::join!(stall(false), stall(true));
}

/// The proxy is restarted within a second, under live connections and in the middle of writes: service resumes by itself, and
/// every row is on both sides.
#[actix_rt::test]
async fn a_restart_under_live_connections_loses_nothing() {
    let restart = async |away: u64| {
        let bench = Bench::new().await;
        let db = synced(&bench).await;
        let heard = Heard::of(&db).await;
        writing_during(&db, async {
            for _ in 0..3 {
                pause(400).await;
                bench.proxy.stop();
                pause(away).await;
                bench.proxy.start();
            }
            pause(400).await;
        })
        .await;
        bench.wait_until_equal(&db, &["note"]).await;
        let status = wait_for(&db, "it is closed", |status| status.circuit.state == "closed").await;
        assert_eq!(status.proxy.status, ProxyStatus::Available);
        assert_eq!((status.sync.parked, status.sync.conflicts), (0, 0), "{:#?}", bench.log.all());
        println!("away for {away} ms: {} changes, {} lines", heard.all().len(), bench.log.all().len());
        db.shutdown().await.unwrap();
    };
    tokio::join!(restart(0), restart(50), restart(800));
}

/// The server itself is stopped and crashes, behind a proxy that stays: no listener appears then, and service resumes in backoff.
/// What the crash took along (this server does not wait for its disk) is sent again.
#[actix_rt::test]
async fn a_restart_of_the_instance_loses_nothing() {
    let server = Arc::new(Postgres::start());
    let bench = Bench::on(&server).await;
    let db = synced(&bench).await;
    for how in [Postgres::stop, Postgres::crash] {
        let restarted = server.clone();
        writing_during(&db, async {
            pause(200).await;
            let restart = move || {
                how(&restarted);
                restarted.start_again();
            };
            actix_rt::task::spawn_blocking(restart).await.unwrap();
            pause(200).await;
        })
        .await;
        bench.wait_until_equal(&db, &["note"]).await;
    }
    let status = wait_for(&db, "it is closed", |status| status.circuit.state == "closed").await;
    assert_eq!(status.proxy.status, ProxyStatus::Available);
    assert_eq!(status.sync.parked, 0, "{:#?}", bench.log.all());
    // On record is what had to be sent again, where the crash took something along.
    let was_set_back = bench.log.count("The cloud was set back") > 0;
    assert!(was_set_back || status.sync.conflicts == 0, "{:#?}", bench.log.all());
    assert_eq!(bench.log.count("ERRO"), 0, "nobody has to act: {:#?}", bench.log.all());
    db.shutdown().await.unwrap();
}

/// Up and down for ten seconds, with a proxy that works each time and with one that does not.
#[actix_rt::test]
async fn flapping_is_not_shouted_about() {
    tokio::join!(
        a_working_proxy_that_flaps(),
        a_proxy_that_crashes_in_a_loop(),
        a_proxy_that_flaps_in_front_of_a_refusal()
    );
}

/// Every 300 ms: at most two lines per transition, and a handful of connections each time that it is up; what was written arrives.
async fn a_working_proxy_that_flaps() {
    const TIMES: usize = 17;
    let bench = Bench::new().await;
    let db = bench.open_with(hurried(&bench)).await;
    let heard = Heard::of(&db).await;
    db.write([Statement::new(NOTE)]).await.unwrap();
    writing_during(&db, flap(&bench.proxy, TIMES, 300)).await;
    let (lines, told, attempts) = (bench.log.all(), heard.all(), bench.proxy.accepted());
    println!(
        "up and down {TIMES} times: {} lines, {} changes, {attempts} connections",
        lines.len(),
        told.len()
    );
    assert!(heard.count(ProxyStatus::Available) > 0, "{told:#?}");
    assert!(told.len() <= 2 * TIMES + 1, "{told:#?}");
    assert!(lines.len() <= START_LINES + 2 * told.len(), "{} changes: {lines:#?}", told.len());
    // The two of the pool, and one in doubt.
    assert!(attempts <= 3 * TIMES as u64, "{attempts}: {lines:#?}");
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();
}

/// It comes, closes whatever connects, and goes, every 100 ms: not dialled each time. Three appearances are dialled at once, and
/// each begins the backoff anew; after that there is the backoff of the appearances beside the other one. It is never called
/// available.
async fn a_proxy_that_crashes_in_a_loop() {
    const TIMES: usize = 50;
    let bench = Bench::new().await;
    bench.proxy.set_mode(Mode::AcceptThenClose);
    let began = Instant::now();
    // No timer is long enough for the appearances to be forgotten.
    let db = bench.open_with(hurried(&bench).set("proxy.max_retry_delay_s", 3600)).await;
    let heard = Heard::of(&db).await;
    flap(&bench.proxy, TIMES, 100).await;
    let (lines, told, attempts) = (bench.log.all(), heard.all(), bench.proxy.accepted());
    let most = 3 * 2 + 2 * allowed_by_backoff(began.elapsed(), RETRY_S, 3600.0);
    println!("a crash loop: {} lines, {} changes, {attempts} attempts of {most}", lines.len(), told.len());
    assert!((1..=most).contains(&attempts), "{attempts}, at most {most}: {lines:#?}");
    assert_eq!(heard.count(ProxyStatus::Available), 0, "{told:#?}");
    assert!(lines.len() <= START_LINES + 2 * told.len(), "{} changes: {lines:#?}", told.len());
    db.shutdown().await.unwrap();
}

/// Every 300 ms, in front of a server that refuses the password: one appearance is dialled at once, because somebody else may be
/// there now, and after that it is one login per longest wait, as the server counts them: accounts get locked. Whoever was cut
/// off before the answer says nothing, and may be asked again in backoff.
async fn a_proxy_that_flaps_in_front_of_a_refusal() {
    const TIMES: usize = 17;
    let bench = Bench::new().await;
    let began = Instant::now();
    let db = bench.open_with(hurried(&bench).set("cloud.password", "a wrong one")).await;
    flap(&bench.proxy, TIMES, 300).await;
    let (lines, attempts) = (bench.log.all(), bench.proxy.accepted());
    let failed_login = format!("password authentication failed for user \"{}\"", bench.cloud.user);
    let refused = Postgres::shared().log().matches(&failed_login).count() as u64;
    let most = 1 + allowed_when_blocked(began.elapsed(), MAX_RETRY_S) + attempts.saturating_sub(refused);
    println!("flapping in front of a refusal: {attempts} attempts, {refused} failed logins of {most}");
    assert!((1..=most).contains(&refused), "{refused} of {attempts}, at most {most}: {lines:#?}");
    db.shutdown().await.unwrap();
}

async fn flap(proxy: &FaultProxy, times: usize, millis: u64) {
    for _ in 0..times {
        proxy.start();
        pause(millis).await;
        proxy.stop();
        pause(millis).await;
    }
}
