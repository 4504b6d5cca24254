//! Through PgBouncer in transaction mode: the next transaction may have another server, on which somebody else has left
//! settings, and nothing that was prepared before is known there.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{
    Bench, Lines, PATIENCE, run, statement, wait_for, wait_until_available, wait_until_flushed,
    wait_until_here, wait_until_there,
};
use tidewater::doctor::{Check, Mark};
use tidewater_test_support::hostile::{Talk, error};
use tidewater_test_support::pgbouncer::Options;
use tidewater_test_support::shop::{self, Generator};
use tidewater_test_support::{Database, FaultProxy, HostileServer, PgBouncer, Postgres, compare, wait};
use tokio::task::JoinHandle;

/// A device whose proxy leads to a pooler. Everything else goes to PostgreSQL itself.
async fn behind_pooler(options: Options) -> (Bench, PgBouncer) {
    let server = Postgres::shared();
    let cloud = server.create_database().await;
    let pooler = PgBouncer::start(server, &cloud, &options);
    let proxy = FaultProxy::reserve(pooler.address());
    (Bench { folder: tempfile::tempdir().unwrap(), cloud, proxy, log: Lines::default() }, pooler)
}

/// Others who use the same servers all the time, and leave settings on them that change what values look like, what names mean
/// and how long a statement may take.
struct Neighbours(Vec<JoinHandle<()>>);

impl Neighbours {
    fn of(cloud: &Database, pooler: &PgBouncer) -> Self {
        let neighbour = |n: usize| {
            let config = cloud.config_via(pooler.port());
            tokio::spawn(async move {
                loop {
                    // Gone with the pooler, and back with it.
                    let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        continue;
                    };
                    let connection = tokio::spawn(connection);
                    let leave = "SET datestyle = 'German, DMY'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Tokyo'; \
                                 SET bytea_output = 'escape'; SET extra_float_digits = -8; SET search_path = pg_catalog; \
                                 SET statement_timeout = '60ms'; SET lock_timeout = '1ms'; SET row_security = off; \
                                 SET default_transaction_isolation = 'serializable'; SET default_transaction_read_only = on";
                    while client.batch_execute(leave).await.is_ok() {
                        let busy = "BEGIN; SELECT pg_sleep(0.002); COMMIT";
                        if client.batch_execute(busy).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(3 + n as u64)).await;
                    }
                    connection.abort();
                }
            })
        };
        Self((0..3).map(neighbour).collect())
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

const POOLER: &str = "a connection pooler lends its servers by the transaction";

/// Ends the servers that the pooler has, in the middle of whatever they do.
const KILL_SERVERS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";

/// A shop goes up and comes back, edits of both sides meet, a row is refused and mended, and in between servers are killed, the
/// pooler is killed and the device starts anew: both sides hold the same, value by value, and no row is lost or refused that
/// should not be.
async fn a_shop(options: Options) {
    let (bench, pooler) = behind_pooler(options).await;
    let neighbours = Neighbours::of(&bench.cloud, &pooler);
    let admin = bench.cloud.connect_as_admin().await;
    let hurried = || bench.settings().set("proxy.retry_delay_s", 0.1).set("proxy.max_retry_delay_s", 0.5);
    let db = bench.open_with(hurried()).await;
    run(&db, shop::SCHEMA).await;
    let mut generator = Generator::new(11);
    let rows: Vec<_> = generator.statements(200).collect();
    for unit in rows.chunks(50) {
        db.write(unit.iter().cloned().map(statement)).await.unwrap();
    }
    bench.proxy.start();
    bench.wait_until_equal(&db, shop::TABLES).await;

    // Changes of both kinds and of others, while servers go.
    for round in 0..4 {
        let connection = rusqlite::Connection::open(bench.path()).unwrap();
        let churn = generator.churn(&connection, 40);
        drop(connection);
        for (n, stmt) in churn.into_iter().enumerate() {
            let _ = db.write([statement(stmt)]).await;
            if round == 1 && n.is_multiple_of(8) {
                admin.query_one(KILL_SERVERS, &[&bench.cloud.user]).await.unwrap();
            }
        }
        bench
            .cloud
            .execute_batch(
                "UPDATE product SET stock = stock + 1, title = title || '!' WHERE weight IS NOT NULL",
            )
            .await;
        if round == 2 {
            pooler.kill();
            pooler.start_again();
        }
    }
    bench.wait_until_equal(&db, shop::TABLES).await;

    // A row that the cloud refuses is parked for that reason, and arrives once the reason is gone.
    bench
        .cloud
        .execute_batch("CREATE TABLE odd (id bigint PRIMARY KEY, n bigint CONSTRAINT small CHECK (n < 10))")
        .await;
    run(&db, "CREATE TABLE odd (id INTEGER PRIMARY KEY, n INTEGER);\nINSERT INTO odd VALUES (1, 1), (2, 20), (3, 3)").await;
    wait_for(&db, "one row is parked", |status| status.sync.parked == 1 && status.sync.pending == 0).await;
    let parked = db.parked(None, 0, 10).unwrap().rows;
    assert_eq!(
        (parked[0].sqlstate.as_deref(), parked[0].constraint.as_deref()),
        (Some("23514"), Some("small"))
    );
    let client = bench.cloud.connect().await;
    wait_until_there(&db, &client, "SELECT count(*) FROM odd", "2").await;
    bench.cloud.execute_batch("ALTER TABLE odd DROP CONSTRAINT small").await;
    wait_until_there(&db, &client, "SELECT count(*) FROM odd", "3").await;

    // The same row in both places, apart: the columns of both survive.
    bench.proxy.stop();
    wait_for(&db, "offline", |status| status.sync.state == "offline").await;
    run(&db, "UPDATE category SET name = 'here' WHERE id = (SELECT min(id) FROM category)").await;
    bench
        .cloud
        .execute_batch("UPDATE category SET position = 4711 WHERE id = (SELECT min(id) FROM category)")
        .await;
    db.shutdown().await.unwrap();
    let db = bench.open_with(hurried()).await;
    bench.proxy.start();
    wait_until_available(&db).await;
    let both = "SELECT name || ' ' || position FROM category ORDER BY id LIMIT 1";
    wait_until_here(&db, both, "here 4711").await;
    wait_until_there(&db, &client, both, "here 4711").await;
    wait_until_flushed(&db).await;
    bench.wait_until_equal(&db, shop::TABLES).await;
    compare::assert_equal(&bench.path(), &client, "public", &["odd"]).await;

    // It is told of once, here and by the doctor, who goes the same way.
    assert_eq!(bench.log.count(POOLER), 2, "once per start: {:#?}", bench.log.all());
    let report = db.doctor().await.unwrap();
    let finding = report.finding(Check::Startup).unwrap();
    assert!(finding.finding.contains("through a connection pooler"), "{finding:#?}");
    let red: Vec<_> = report.checks.iter().filter(|finding| finding.mark == Mark::Red).collect();
    assert!(red.is_empty(), "{red:#?}");

    drop(neighbours);
    db.shutdown().await.unwrap();
}

/// One server for everybody, at a pooler that takes no settings at the log-in.
#[actix_rt::test]
async fn with_one_server_for_everybody() {
    a_shop(Options { servers: 1, drops_options: false, ..Options::default() }).await;
}

/// Two servers that change hands, at a pooler that drops the settings of the log-in without a word.
#[actix_rt::test]
async fn with_two_servers_that_change_hands() {
    a_shop(Options { servers: 2, drops_options: true, ..Options::default() }).await;
}

/// Whatever a pooler's version says where it does not take the settings of a log-in: from then on they go with each transaction. This
/// is what PgBouncer says since 1.20, and before.
#[actix_rt::test]
async fn a_log_in_that_is_refused_for_its_settings_is_tried_without() {
    for words in
        ["unsupported startup parameter in options: datestyle", "unsupported startup parameter: options"]
    {
        let bench = Bench::new().await;
        let postgresql = (std::net::Ipv4Addr::LOCALHOST, bench.cloud.port).into();
        let server = HostileServer::start(move |talk: &mut Talk| {
            talk.hear_startup()?;
            let has = |name: &[u8]| talk.startup().windows(name.len()).any(|part| part == name);
            match has(b"\0options\0") {
                true => talk.say(b'E', &error("08P01", words.as_bytes())),
                false => talk.forward(postgresql),
            }
        });
        let db = bench.open_with(bench.settings().set("proxy.port", server.port())).await;
        run(
            &db,
            "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'one')",
        )
        .await;
        wait_until_flushed(&db).await;
        bench.wait_until_equal(&db, &["note"]).await;
        assert_eq!(bench.log.count(POOLER), 1, "{:#?}", bench.log.all());
        assert!(!bench.log.all().iter().any(|line| line.contains(words)), "{:#?}", bench.log.all());
        db.shutdown().await.unwrap();
    }
}

/// A pooler that lends servers by the session and refuses the settings is as good; one that lends them by the statement cannot
/// carry a transaction: nothing is sent, and what has to be set is said once.
#[actix_rt::test]
async fn by_the_session_it_works_and_by_the_statement_it_is_said_what_to_set() {
    let table = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'one')";
    let (bench, _pooler) = behind_pooler(Options { mode: "session", ..Options::default() }).await;
    let db = bench.open().await;
    run(&db, table).await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    db.shutdown().await.unwrap();

    let (bench, _pooler) = behind_pooler(Options { mode: "statement", ..Options::default() }).await;
    let db = bench.open().await;
    run(&db, table).await;
    bench.proxy.start();
    wait::until("it is said what to set", PATIENCE, async || {
        let found = bench.log.count("set the pooler's pool_mode to transaction or session");
        if found > 0 { Ok(()) } else { Err(format!("{:#?}", bench.log.all())) }
    })
    .await;
    assert_eq!(db.status_summary().await.sync.pending, 1);
    db.shutdown().await.unwrap();
}

/// Without a pooler, or through one that passes the settings on to a session of one's own, statements are prepared as ever.
#[actix_rt::test]
async fn without_a_pooler_statements_are_prepared() {
    let bench = Bench::new().await;
    let db = bench.open().await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'one')")
        .await;
    bench.proxy.start();
    bench.wait_until_equal(&db, &["note"]).await;
    assert_eq!(bench.log.count(POOLER), 0);
    db.shutdown().await.unwrap();
}
