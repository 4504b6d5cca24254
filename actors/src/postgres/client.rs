//! One connection, and how statements are asked on it.
//!
//! ```text
//! PostgreSQL, or a proxy that passes everything on   settings at the log-in; statements are prepared once, under a name
//! a pooler that lends servers by the transaction     every transaction brings its settings along; statements have no name;
//!                                                    what stands alone is a transaction of its own
//! ```
//!
//! Which of both it is shows in a setting of the log-in: behind a pooler the next statement does not find it, or the
//! pooler refuses it in the first place. From then on nothing may depend on what is left behind in a session: two transactions
//! need not have the same one, and somebody else's settings may be on it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::TryStreamExt as _;
use futures_util::future::join3;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row, SimpleQueryMessage};
use uuid::Uuid;

/// What a session has to be set to: everything that shapes the text of a value; plans made for the arrays' real lengths; and the
/// server's own bounds on a statement, and on a transaction whose client was cut off (its locks stand in the way).
#[derive(Debug, Clone)]
pub(super) struct Settings(Vec<(&'static str, String)>);

impl Settings {
    pub(super) fn new(statement_timeout: Duration) -> Self {
        let limit = statement_timeout.as_millis();
        Self(vec![
            ("datestyle", "ISO,YMD".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("intervalstyle", "postgres".to_owned()),
            ("extra_float_digits", "1".to_owned()),
            ("bytea_output", "hex".to_owned()),
            ("plan_cache_mode", "force_custom_plan".to_owned()),
            // A plan is compiled because of a guess at how much it has to do; that takes longer than any of ours runs.
            ("jit", "off".to_owned()),
            ("client_min_messages", "error".to_owned()),
            ("statement_timeout", limit.to_string()),
            ("idle_in_transaction_session_timeout", (limit * 2).to_string()),
        ])
    }

    /// As options of a log-in, with what concerns the whole session: statements that see what committed before them, and a
    /// bound on a client that is gone without a word.
    pub(super) fn at_log_in(&self) -> String {
        let mut options = "-c default_transaction_isolation=read\\ committed -c tcp_keepalives_idle=30 \
                           -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
            .to_owned();
        for (name, value) in &self.0 {
            options += &format!(" -c {name}={value}");
        }
        options
    }

    /// As statements of the transaction that they are for. What somebody else may have left in the session is put back as well,
    /// as far as it decides what a statement means.
    fn in_transaction(&self) -> String {
        let own = self.0.iter().map(|(name, value)| format!("; SET LOCAL {name} TO '{value}'"));
        let default = ["search_path", "role", "row_security", "lock_timeout"];
        own.chain(default.iter().map(|name| format!("; SET LOCAL {name} TO DEFAULT"))).collect()
    }
}

/// The name of the setting that shows whose session answers.
const MARK: &str = "tidewater.link";

/// What is known of the way to PostgreSQL, for all connections.
#[derive(Debug)]
pub(super) struct Way {
    shared: AtomicBool,
    /// A setting of the log-in that nobody else makes.
    mark: String,
}

impl Way {
    pub(super) fn new() -> Self {
        Self { shared: AtomicBool::new(false), mark: Uuid::new_v4().to_string() }
    }

    /// What a log-in asks for.
    pub(super) fn options(&self, settings: &Settings) -> String {
        format!("{} -c {MARK}={}", settings.at_log_in(), self.mark)
    }

    /// Looks whether a new connection has what its log-in asked for. Where it has not, whoever answers has dropped it. Answers
    /// with the number of the server's process.
    pub(super) async fn examine(&self, object: &Object) -> Result<Option<i32>, Error> {
        let sql = format!("SELECT current_setting('{MARK}', true), pg_backend_pid()");
        let found = object.simple_query(&sql).await?;
        let is_there = found.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten() == Some(&self.mark),
            _ => false,
        });
        if !is_there {
            self.found_shared();
        }
        Ok(word(&found, 1).and_then(|pid| pid.parse().ok()))
    }

    /// Whether sessions are shared with others.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// They are, from now on: that nothing of it shows in one connection proves nothing.
    pub(super) fn found_shared(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }
}

/// What stands in one column of an answer's first row.
pub(super) fn word(answer: &[SimpleQueryMessage], column: usize) -> Option<&str> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(column).ok().flatten(),
        _ => None,
    })
}

/// A pooled connection that is closed, not returned, unless somebody says that nothing is left on it (C3).
pub(super) struct Client {
    object: Option<Object>,
    /// The settings that every transaction brings along, where sessions are shared.
    shared: Option<Settings>,
    /// Whether a transaction is open. What is sent then belongs to it.
    open: AtomicBool,
    /// The number of the server's process, where it is this connection's own.
    pid: Option<i32>,
}

/// A statement as this connection is asked it.
#[derive(Clone)]
pub(super) enum Statement {
    Named(tokio_postgres::Statement),
    Unnamed(String),
}

/// What a statement was answered with.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) rows: Vec<Row>,
    pub(super) changed: u64,
}

impl Client {
    pub(super) fn new(object: Object) -> Self {
        Self { object: Some(object), shared: None, open: AtomicBool::new(false), pid: None }
    }

    /// This process works for the connection.
    pub(super) fn served_by(&mut self, pid: Option<i32>) {
        self.pid = pid;
    }

    /// The process that works for the connection, where that is always the same.
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid.filter(|_| !self.is_shared())
    }

    /// From now on every transaction brings these settings along.
    pub(super) fn share(&mut self, settings: Option<Settings>) {
        self.shared = settings;
    }

    /// Whether others have the same sessions.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Nothing is under way: the connection goes back to the pool.
    pub(super) fn give_back(&mut self) {
        drop(self.object.take());
    }

    /// What begins a transaction, of a kind other than the usual one if that is given.
    pub(super) fn opening(&self, kind: &str) -> String {
        match &self.shared {
            None => format!("BEGIN {kind}"),
            Some(settings) => {
                // Somebody may have left a session behind that only reads.
                let kind = if kind.is_empty() { "ISOLATION LEVEL READ COMMITTED READ WRITE" } else { kind };
                format!("BEGIN {kind}{}", settings.in_transaction())
            }
        }
    }

    /// A transaction is begun, or ended, by what is sent next.
    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Makes a statement known to the session, where it is ours.
    pub(super) async fn statement(&self, sql: &str) -> Result<Statement, Error> {
        match self.is_shared() {
            true => Ok(Statement::Unnamed(sql.to_owned())),
            false => self.prepare_cached(sql).await.map(Statement::Named),
        }
    }

    /// Asks a statement and reads its whole answer. It is sent with the first poll.
    pub(super) async fn ask(&self, statement: &Statement, params: &[&dyn Param]) -> Result<Answer, Error> {
        let rows = match statement {
            Statement::Named(statement) => {
                self.query_raw(statement, params.iter().map(|param| param.sql())).await?
            }
            Statement::Unnamed(sql) => {
                self.query_typed_raw(sql, params.iter().map(|param| (param.sql(), param.kind()))).await?
            }
        };
        let mut rows = pin!(rows);
        let mut answer = Answer::default();
        while let Some(row) = rows.try_next().await? {
            answer.rows.push(row);
        }
        answer.changed = rows.rows_affected().unwrap_or_default();
        Ok(answer)
    }

    /// One statement, in the transaction that is open; in one of its own where there is none and the next server may be
    /// another one.
    pub(super) async fn carry_out(&self, sql: &str, params: &[&dyn Param]) -> Result<Answer, Error> {
        self.carry_out_as("", sql, params).await
    }

    /// The same, where the transaction of its own is of this kind.
    pub(super) async fn carry_out_as(
        &self,
        kind: &str,
        sql: &str,
        params: &[&dyn Param],
    ) -> Result<Answer, Error> {
        let statement = self.statement(sql).await?;
        if !self.is_shared() || self.open.load(Ordering::Relaxed) {
            return self.ask(&statement, params).await;
        }
        // All three on their way at once. The COMMIT of a transaction that failed ends it as well.
        let opening = self.opening(kind);
        let (begun, answer, ended) =
            join3(self.batch_execute(&opening), self.ask(&statement, params), self.batch_execute("COMMIT"))
                .await;
        begun?;
        let answer = answer?;
        ended.map(|()| answer)
    }
}

impl std::ops::Deref for Client {
    type Target = Object;
    #[expect(
        clippy::expect_used,
        reason = "emptied only by `give_back`, after which the session is consumed, and by drop"
    )]
    fn deref(&self) -> &Object {
        self.object.as_ref().expect("a session has its connection until it ends")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// A parameter that knows its type: nobody is asked for it where a statement has no name.
pub(super) trait Param: Sync {
    /// For the driver.
    fn sql(&self) -> &(dyn ToSql + Sync);
    /// PostgreSQL's type of it.
    fn kind(&self) -> Type;
}

/// What parameters are made of.
pub(super) trait Scalar: ToSql + Sync {
    const ONE: Type;
    const MANY: Type;
}

macro_rules! scalars {
    ($($of:ty: $one:ident, $many:ident;)*) => {
        $(impl Scalar for $of {
            const ONE: Type = Type::$one;
            const MANY: Type = Type::$many;
        })*
    };
}

scalars! {
    bool: BOOL, BOOL_ARRAY;
    i32: INT4, INT4_ARRAY;
    i64: INT8, INT8_ARRAY;
    u32: OID, OID_ARRAY;
    f64: FLOAT8, FLOAT8_ARRAY;
    &str: TEXT, TEXT_ARRAY;
    String: TEXT, TEXT_ARRAY;
    &[u8]: BYTEA, BYTEA_ARRAY;
    Uuid: UUID, UUID_ARRAY;
}

impl<T: Scalar> Param for T {
    fn sql(&self) -> &(dyn ToSql + Sync) {
        self
    }
    fn kind(&self) -> Type {
        T::ONE
    }
}

impl<T: Scalar> Param for Option<T> {
    fn sql(&self) -> &(dyn ToSql + Sync) {
        self
    }
    fn kind(&self) -> Type {
        T::ONE
    }
}

impl<T: Scalar> Param for Vec<T> {
    fn sql(&self) -> &(dyn ToSql + Sync) {
        self
    }
    fn kind(&self) -> Type {
        T::MANY
    }
}

impl<T: Scalar> Param for Vec<Option<T>> {
    fn sql(&self) -> &(dyn ToSql + Sync) {
        self
    }
    fn kind(&self) -> Type {
        T::MANY
    }
}
