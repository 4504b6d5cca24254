//! What the tests by promise share: an app with its file, a PostgreSQL of its own database, and the proxy between them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses the parts it needs, by `mod harness`")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use slog::{Drain, Logger, OwnedKVList, Record, o};
use tempfile::TempDir;
use tidewater::settings::{Settings, Sources};
use tidewater::{Database, ProxyStatus, Receipt, Statement, StatusSummary, Value};
use tidewater_test_support::shop::Stmt;
use tidewater_test_support::{FaultProxy, Postgres, compare, postgres, wait};
use tokio_postgres::Client;

/// Long enough for a loaded machine; a wait ends when its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One device in front of a database of its own.
pub struct Bench {
    pub folder: TempDir,
    pub cloud: postgres::Database,
    pub proxy: FaultProxy,
    pub log: Lines,
}

/// The settings of a process that was told by [`Bench::tell_child`], and the word more.
pub fn told_to_child(told: &str) -> (Sources, &str) {
    let [path, port, name, user, password, more] = told.lines().collect::<Vec<_>>().try_into().unwrap();
    let settings = Settings::builder()
        .set("sqlite.path", path)
        .set("proxy.port", port)
        .set("proxy.listen_interval_s", 0.05)
        .set("cloud.database", name)
        .set("cloud.user", user)
        .set("cloud.password", password);
    (settings, more)
}

impl Bench {
    /// A fresh database behind a proxy that is not running.
    pub async fn new() -> Self {
        Self::on(Postgres::shared()).await
    }

    /// On a server of its own: a transaction that stays open holds back everybody's feed.
    pub async fn on(server: &Postgres) -> Self {
        let cloud = server.create_database().await;
        let proxy = FaultProxy::reserve(server.address());
        Self { folder: tempfile::tempdir().unwrap(), cloud, proxy, log: Lines::default() }
    }

    /// Another device on the same cloud: a file and a proxy of its own.
    pub fn another(&self) -> Self {
        let proxy = FaultProxy::reserve((std::net::Ipv4Addr::LOCALHOST, self.cloud.port).into());
        let folder = tempfile::tempdir().unwrap();
        Self { folder, cloud: self.cloud.clone(), proxy, log: Lines::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("shop.db")
    }

    /// What a process of its own has to be told to be this device ([`told_to_child`]), and one word more.
    pub fn tell_child(&self, more: impl std::fmt::Display) -> String {
        let (path, port, cloud) = (self.path(), self.proxy.port(), &self.cloud);
        let (name, user, password) = (&cloud.name, &cloud.user, &cloud.password);
        format!("{}\n{port}\n{name}\n{user}\n{password}\n{more}", path.display())
    }

    /// Settings with the production's protocol and a hurry in the timers.
    pub fn settings(&self) -> Sources {
        Settings::builder()
            .set("sqlite.path", self.path().display())
            .set("proxy.port", self.proxy.port())
            .set("proxy.listen_interval_s", 0.05)
            .set("proxy.health_interval_s", 1)
            .set("cloud.database", &self.cloud.name)
            .set("cloud.user", &self.cloud.user)
            .set("cloud.password", &self.cloud.password)
            .set("sync.pull_interval_s", 0.1)
            .set("sync.retry_delay_s", 0.1)
    }

    pub async fn open(&self) -> Database {
        self.open_with(self.settings()).await
    }

    pub async fn open_with(&self, settings: Sources) -> Database {
        Database::open(settings.build().unwrap(), self.log.logger()).await.unwrap()
    }

    /// Waits until both sides are equal in the given tables, value by value; says what the sync thinks of it if not.
    pub async fn wait_until_equal(&self, db: &Database, tables: &[&str]) {
        let client = self.cloud.connect().await;
        wait::until("both sides to hold the same", PATIENCE, async || {
            let differences = compare::tables_differ(&self.path(), &client, "public", tables).await;
            if differences.is_empty() {
                return Ok(());
            }
            let some: Vec<_> = differences.iter().take(8).collect();
            Err(format!("{:?}\n{:#?}\n{some:#?}", db.status_summary().await.sync, self.log.all()))
        })
        .await;
    }
}

/// The same role and database on another server, so that only what is in it tells the difference.
pub async fn twin(server: &Postgres, of: &postgres::Database) {
    let admin = server.connect_as_admin().await;
    for statement in [
        format!("CREATE ROLE \"{}\" LOGIN PASSWORD '{}'", of.user, of.password),
        format!("CREATE DATABASE \"{}\" OWNER \"{}\"", of.name, of.user),
    ] {
        admin.batch_execute(&statement).await.unwrap();
    }
}

/// Waits for a status.
pub async fn wait_for(db: &Database, what: &str, holds: impl Fn(&StatusSummary) -> bool) -> StatusSummary {
    wait::until(what, PATIENCE, async || {
        let status = db.status_summary().await;
        if holds(&status) { Ok(status) } else { Err(format!("{status:?}")) }
    })
    .await
}

pub async fn wait_until_available(db: &Database) {
    wait_for(db, "the proxy is available", |status| status.proxy.status == ProxyStatus::Available).await;
}

pub async fn wait_until_flushed(db: &Database) {
    wait_for(db, "nothing is pending", |status| status.sync.pending == 0).await;
}

/// Runs a batch as one unit here.
pub async fn run(db: &Database, sql: &str) -> Receipt {
    db.write(batch(sql)).await.unwrap_or_else(|error| panic!("{sql}: {error}")).receipt
}

/// A table `n` of the numbers `i` from 1 on, for a statement that needs so many rows.
pub fn numbers(rows: impl std::fmt::Display) -> String {
    format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})")
}

/// One value as the file has it, as text.
pub fn here(db: &Database, sql: &str) -> String {
    let text = |row: &rusqlite::Row<'_>| {
        Ok(match row.get(0)? {
            rusqlite::types::Value::Null => "NULL".to_owned(),
            rusqlite::types::Value::Integer(i) => i.to_string(),
            rusqlite::types::Value::Real(r) => r.to_string(),
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Blob(blob) => format!("{} bytes", blob.len()),
        })
    };
    db.read(|conn| conn.query_row(sql, [], text)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// One value as the cloud has it, as text.
pub async fn there(client: &Client, sql: &str) -> String {
    let value = format!("SELECT coalesce(value::text, 'NULL') FROM ({sql}) AS one(value)");
    client.query_one(&value, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// Waits until the file says this.
pub async fn wait_until_here(db: &Database, sql: &str, expected: &str) {
    wait::until(&format!("{sql} here: {expected}"), PATIENCE, async || {
        let found = here(db, sql);
        if found == expected { Ok(()) } else { Err(format!("{found}; {:?}", db.status_summary().await.sync)) }
    })
    .await;
}

/// Waits until the cloud says this.
pub async fn wait_until_there(db: &Database, client: &Client, sql: &str, expected: &str) {
    wait::until(&format!("{sql} there: {expected}"), PATIENCE, async || {
        let found = there(client, sql).await;
        if found == expected { Ok(()) } else { Err(format!("{found}; {:?}", db.status_summary().await.sync)) }
    })
    .await;
}

/// A statement of the generator as the library takes it.
pub fn statement(stmt: Stmt) -> Statement {
    use rusqlite::types::Value as V;
    let params = stmt.params.into_iter().map(|value| match value {
        V::Null => Value::Null,
        V::Integer(i) => Value::Integer(i),
        V::Real(r) => Value::Real(r),
        V::Text(text) => Value::Text(text),
        V::Blob(bytes) => Value::Blob(bytes),
    });
    Statement { sql: stmt.sql, params: params.collect() }
}

/// Statements of a batch of SQL, one unit.
pub fn batch(sql: &str) -> Vec<Statement> {
    sql.split(";\n").map(str::trim).filter(|sql| !sql.is_empty()).map(Statement::new).collect()
}

/// The log as a list of messages.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn logger(&self) -> Logger {
        Logger::root(self.clone().fuse(), o!())
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.all().iter().filter(|line| line.contains(part)).count()
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Info) {
            self.0.lock().unwrap().push(format!("{} {}", record.level().as_short_str(), record.msg()));
        }
        Ok(())
    }
}
