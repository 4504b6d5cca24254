//! The one file that knows PostgreSQL: the pool, what its errors mean, and the statements of the protocol.
//!
//! ```text
//! Cloud          the pool; `check` is rungs 3 to 5 of the evidence ladder, on a pooled connection
//! CloudSession   one connection for one cycle of the syncer:
//!                settle ─▶ prepare ─▶ read (feed, pages, rows in one snapshot) ─▶ round
//! ```
//!
//! Invariants:
//! - C1 (P3): a round's transaction begins with the fence and ends with the COMMIT; an error anywhere in between leaves
//!   nothing of it, and an error of the COMMIT itself leaves the answer to the ledger.
//! - C2: every statement's answer is awaited before the COMMIT is sent, so that a COMMIT is never that of a failed
//!   transaction, which PostgreSQL would answer with `ROLLBACK` and no error.
//! - C3: a session that is dropped in the middle of anything never goes back to the pool.
//! - C5 (P4, P5): nothing is trimmed unseen beyond a cursor that somebody builds on (`trim.rs`).
//! - C4: every wait has a bound: the server's statement timeout, and one on this side for a server that is silent.

use std::cell::LazyCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

mod by_hand;
mod cells;
mod client;
mod dial;
mod ears;
mod examine;
mod feed;
mod from_cloud;
mod guard;
mod isolate;
mod link;
mod password;
mod pulse;
mod sending;
mod stamps;
mod tls;
mod trim;
mod whose;

pub use by_hand::{ByHand, Scripts};
use cells::{Cells as _, first, position};
use client::{Answer, Client, Param, Settings, Way, word};
use dial::{Dialer, Obstacle};
use ears::Ears;
pub use examine::Questions;
pub use feed::{FeedEntry, FeedPage};
use guard::{Bounds, Excess, Moved};
use isolate::Ring;
pub use link::LinkOptions;
use link::{Door, LastWords};
use password::Passwords;
pub use password::{PasswordCommand, PasswordSource, password_in};
use pulse::Pulse;
use sending::{
    CONFLICTS, DIVISION_BY_ZERO, ECHO, Echo, FENCE, Fence, Patience, as_prepared, begin, conflict_arrays,
    conflict_params, fenced_out, sets, time_for,
};
pub use sending::{Judged, OpenRound};
use stamps::{STAMPS, Stamps};
pub use tls::{TlsMode, TlsOptions, is_this_machine};
pub use trim::{FeedLimits, Trimmed};
pub use whose::{LastSeen, Whereabouts};

use crate::core::doctor::PROTOCOL;
use crate::core::failure::{
    CloudFailure, FailureClass, Phase, QUERY_CANCELED, classify_sqlstate, needs_others, one_line,
};
use crate::core::schema::{CloudColumn, CloudTable, Hiding, Table};
use crate::core::value::{
    CloudType, CloudValue, Element, Value, Wire, changed_by_type, from_cloud, from_text, json_array,
};
use crate::sql::cloud::{self, Rows};
use crate::sql::ident;
use crate::sqlite::{Cursor, ServerClock, Since, ledger_name};
use crate::timings::now_us;

type Result<T> = std::result::Result<T, CloudFailure>;

/// Where the cloud is, who we are there, and how long we wait.
#[derive(Clone)]
pub struct CloudOptions {
    /// Host name, address, or the absolute folder of a Unix socket.
    pub host: String,
    /// The port, which is also part of a Unix socket's name.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// Its password. Never printed.
    pub password: Option<String>,
    /// The schema of the synced tables.
    pub schema: String,
    /// Connect and start-up, and the answer to a check.
    pub timeout: Duration,
    /// The longest that a statement may take.
    pub statement_timeout: Duration,
    /// The most connections at once.
    pub pool_max: usize,
    /// What the server's activity view shows.
    pub application_name: String,
    /// Whether missing columns are added to cloud tables.
    pub add_columns: bool,
    /// What protects the connections, and where the password comes from if not from here.
    pub link: LinkOptions,
}

impl CloudOptions {
    /// The longest that a connection may take: the wait where all are in use, the silence of those that were idle, and
    /// dialling, each within the timeout, and whatever a password asks for.
    fn longest_connect(&self) -> Duration {
        self.timeout * 3 + self.link.password.patience(self.timeout)
    }
}

impl fmt::Debug for CloudOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .finish_non_exhaustive()
    }
}

/// The cloud as a pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Cloud {
    pool: Arc<Mutex<Pool>>,
    options: Arc<CloudOptions>,
    passwords: Arc<Passwords>,
    last_words: LastWords,
    moved: Moved,
    way: Arc<Way>,
    ears: Arc<Ears>,
    /// The identity that this file belongs to, once it has synced.
    expected: Arc<Mutex<Option<String>>>,
    /// Tables of rounds that once caused something else than they sent, by their oid: from then on rounds with them are looked at
    /// before their COMMIT is sent.
    looked_at_first: Arc<Mutex<HashSet<u32>>>,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Cloud {
    /// A pool that has not connected yet.
    ///
    /// # Errors
    /// When the options cannot make a pool, which no value of them that the settings let through does.
    pub fn new(options: CloudOptions) -> Result<Self> {
        let passwords = Arc::new(Passwords::new(options.link.password.clone(), options.password.as_deref()));
        let (way, ears, last_words) = (Arc::new(Way::new()), Arc::default(), LastWords::default());
        let moved = Moved::default();
        let pool = Arc::new(Mutex::new(pool_of(&options, &passwords, &way, &ears, &last_words, &moved)?));
        Ok(Self {
            pool,
            options: Arc::new(options),
            passwords,
            way,
            ears,
            last_words,
            moved,
            looked_at_first: Arc::default(),
            expected: Arc::default(),
        })
    }

    /// Goes on with connections of its own. Each is driven by the thread that opened it: when that is blocked, those that are
    /// out do not come back, and those that wait in the pool do not answer.
    pub fn leave_thread(&self) {
        // A pool with the same options has been made before.
        let pool =
            pool_of(&self.options, &self.passwords, &self.way, &self.ears, &self.last_words, &self.moved);
        if let Ok(pool) = pool {
            std::mem::replace(&mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner), pool).close();
        }
    }

    /// The longest message, and so about the largest row, that is taken from the server, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.options.link.message_bytes_max
    }

    /// From now on only the database with this identity is ours.
    pub fn expect_identity(&self, identity: Option<String>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Whether PostgreSQL answers and is ours, on a pooled connection: no dial of its own while one is open.
    /// Answers with who is there.
    ///
    /// # Errors
    /// With the class that says what to do. Bounded by the timeout of the options: for [`Cloud::connect`], and once more for
    /// the answers.
    pub async fn check(&self) -> Result<String> {
        let session = self.connect().await?;
        let found = bounded(self.options.timeout, self.identify(&session)).await;
        session.finish(found)
    }

    async fn identify(&self, session: &CloudSession) -> Result<String> {
        let identity = session.mark_in(Phase::Startup).await?;
        self.verify(identity.as_deref())?;
        Ok(format!("PostgreSQL answers as database \"{}\"", self.options.database))
    }

    /// A file that has synced goes on with that cloud only, and makes no marks in another (P10).
    fn verify(&self, found: Option<&str>) -> Result<()> {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let what = match (&expected, found) {
            (Some(expected), Some(found)) if expected != found => format!("it is {found}"),
            (Some(_), None) => "it has no mark of Tidewater's".to_owned(),
            _ => return Ok(()),
        };
        let expected = expected.unwrap_or_default();
        Err(CloudFailure::new(
            FailureClass::NotOurs,
            format!("another database answers: this file belongs to {expected}, {what}"),
        )
        .with_remedy(
            "point CLOUD_SQL_DATABASE and the proxy at the database that this file synced with; or, if this one shall take \
             its place: run_supervisor adopt",
        ))
    }

    /// A connection for one cycle.
    ///
    /// # Errors
    /// With the class that says what to do. Bounded by the timeout of the options, once for each: the wait where all are in
    /// use, the silence of those that were idle, and dialling; and by that of a command for the password.
    pub async fn connect(&self) -> Result<CloudSession> {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connected = async {
            loop {
                let object = pool.get().await.map_err(|error| self.no_connection(error))?;
                let was_idle = Object::metrics(&object).recycle_count > 0;
                let mut client = Client::new(object);
                let mut pid = None;
                if !was_idle && !self.way.is_shared() {
                    pid = bounded(self.options.timeout, async {
                        let examined = self.way.examine(&client).await;
                        examined.map_err(|error| self.explain(&error, Phase::Startup))
                    })
                    .await?;
                }
                client.share(self.shared_settings());
                if was_idle {
                    match self.answers(&client, &pool).await {
                        Some(its_pid) => pid = its_pid,
                        None => continue,
                    }
                }
                client.served_by(pid);
                return Ok(CloudSession { client, cloud: self.clone(), pulse: Pulse::default() });
            }
        };
        bounded(self.options.longest_connect(), connected).await
    }

    /// The settings that have to go with each transaction, where nothing else carries them.
    fn shared_settings(&self) -> Option<Settings> {
        self.way.is_shared().then(|| Settings::new(self.options.statement_timeout))
    }

    /// Whether somebody is still there behind a connection that was idle, and the number of the server's process.
    async fn answers(&self, client: &Client, pool: &Pool) -> Option<Option<i32>> {
        match tokio::time::timeout(self.options.timeout, client.simple_query("SELECT pg_backend_pid()")).await
        {
            Ok(Ok(answer)) => Some(word(&answer, 0).and_then(|pid| pid.parse().ok())),
            Ok(Err(_)) => None,
            Err(_) => {
                // Whatever silenced it, a suspended machine or a proxy that lost its instance, silenced those beside it:
                // a new connection tells, and to ask each of them would take the time of each.
                pool.retain(|_, _| false);
                None
            }
        }
    }

    /// Closes what nobody has used for a while; the one that was used just now stays.
    fn close_idle(&self) {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pool.retain(|_, metrics| metrics.last_used() < self.options.link.idle);
    }

    fn no_connection(&self, error: PoolError) -> CloudFailure {
        match error {
            PoolError::Backend(error) => self.explain(&error, Phase::Startup),
            PoolError::Timeout(_) => {
                CloudFailure::new(FailureClass::CheckFailed, "every connection of the pool is in use")
            }
            error => CloudFailure::new(FailureClass::CheckFailed, error.to_string()),
        }
    }

    /// What an error of the driver means.
    fn explain(&self, error: &tokio_postgres::Error, phase: Phase) -> CloudFailure {
        if error.is_closed()
            && let Some(why) = self.last_words.take()
        {
            return self.explain(&why, phase);
        }
        if let Some(server) = error.as_db_error() {
            let sqlstate = sqlstate_of(server);
            if matches!(sqlstate, "26000" | "42P05") {
                // Statements are prepared in one session and used in another. Not a word about the data.
                self.way.found_shared();
                return CloudFailure {
                    sqlstate: Some(sqlstate.to_owned()),
                    ..CloudFailure::new(
                        FailureClass::Transient,
                        format!(
                            "a connection pooler lends its sessions to several clients: {}",
                            self.said_by(server)
                        ),
                    )
                };
            }
            if sqlstate == "08P01" && server.message().contains("statement pooling") {
                return CloudFailure::new(FailureClass::Credentials, self.said_by(server))
                    .with_remedy("set the pooler's pool_mode to transaction or session");
            }
            let message = self.said_by(server);
            let class = classify_sqlstate(sqlstate, phase);
            let mut failure = CloudFailure::new(class, format!("{message} (SQLSTATE {sqlstate})"));
            failure.sqlstate = Some(sqlstate.to_owned());
            failure.remedy = self.remedy(sqlstate, &message);
            return failure;
        }
        if let Some(excess) = Excess::of(error) {
            return self.explain_excess(excess, phase);
        }
        let (host, port) = (&self.options.host, self.options.port);
        if let Some(fault) = tls::fault_of(error) {
            return match phase {
                Phase::Startup => tls::explain(fault, &self.options.link.tls),
                // Who it is was shown long ago: the line is disturbed.
                _ => CloudFailure::new(FailureClass::Transient, format!("TLS failed ({fault})")),
            };
        }
        if let Some(Obstacle::Ours(failure)) = Obstacle::of(error) {
            return (**failure).clone();
        }
        if let Some(obstacle) = Obstacle::of(error) {
            let mut failure = CloudFailure::new(obstacle.class(), obstacle.to_string());
            failure.remedy = obstacle.remedy(host, port);
            failure.accepted = obstacle.accepted();
            return failure;
        }
        let text = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        if is_nonsense(error) {
            return self.not_as_postgresql(&text);
        }
        let broken = match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            // The system gave up on a connection that was open.
            Some(error) if error.kind() == io::ErrorKind::TimedOut => {
                return CloudFailure::new(FailureClass::NotAnswering, text);
            }
            // The driver's words for an answer that ended before the length that it began with.
            Some(error) if error.kind() == io::ErrorKind::Other => {
                error.to_string().contains("bytes remaining")
            }
            // What was read does not make sense: the driver's own verdict, not the system's.
            Some(error) => !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput),
            None => error.is_closed(),
        };
        if broken {
            // It was accepted: whoever accepts for an instance that is not there has nothing else to say.
            return match phase {
                Phase::Startup => CloudFailure::new(
                    FailureClass::NotAnswering,
                    format!("the connection ended before PostgreSQL had answered ({text})"),
                ),
                _ => CloudFailure::new(FailureClass::Transient, text),
            };
        }
        match text.as_str() {
            text if text.ends_with("password missing") => CloudFailure::new(
                FailureClass::Credentials,
                "PostgreSQL asks for a password, and none is set",
            )
            .with_remedy(
                "set CLOUD_SQL_PASSWORD, CLOUD_SQL_PASSWORD_FILE or cloud.password_command, for this role",
            ),
            // The driver's words for a method that it does not know, or for a server that fails SCRAM's own check.
            text if text.starts_with("authentication") => CloudFailure::new(FailureClass::Credentials, text)
                .with_remedy("let this role log in by password (scram-sha-256 in pg_hba.conf)"),
            text if phase == Phase::Startup => self.not_as_postgresql(text),
            text => CloudFailure::new(FailureClass::Transient, text),
        }
    }

    fn not_as_postgresql(&self, why: impl fmt::Display) -> CloudFailure {
        CloudFailure::new(
            FailureClass::NotOurs,
            format!("what answers does not go on as PostgreSQL does ({why})"),
        )
        .with_remedy(dial::point_at_proxy(&self.options.host, self.options.port))
    }

    /// What it means that a server says more than it may.
    fn explain_excess(&self, excess: &Excess, phase: Phase) -> CloudFailure {
        match excess {
            Excess::ClearPassword => CloudFailure::new(
                FailureClass::Credentials,
                "PostgreSQL asks for the password in the clear, on a line without TLS",
            )
            .with_remedy(
                "let this role log in by scram-sha-256 (pg_hba.conf), or set cloud.tls = \"required\"; \
                 cloud.password_in_clear = true sends it to whoever listens there",
            ),
            excess if excess.is_size() && phase != Phase::Startup => {
                // Where rows are read, it is they that do not fit.
                let class = match phase {
                    Phase::Pull => FailureClass::DataRefused,
                    _ => FailureClass::Transient,
                };
                CloudFailure::new(class, format!("what the cloud sends does not fit ({excess})"))
                    .with_remedy("let the cloud's rows be smaller, or raise cloud.message_bytes_max")
            }
            excess => self.not_as_postgresql(excess),
        }
    }

    /// What a server says, without a password that it may have been told.
    fn said_by(&self, server: &tokio_postgres::error::DbError) -> String {
        one_line(&self.passwords.hide(server.message()))
    }

    /// With what it says besides: which parent is missing, who has the value already, what to do. The row itself is known.
    fn all_said_by(&self, server: &tokio_postgres::error::DbError) -> String {
        let detail = server.detail().filter(|detail| !detail.starts_with("Failing row contains"));
        let more = detail.into_iter().chain(server.hint()).map(|more| one_line(&self.passwords.hide(more)));
        more.fold(self.said_by(server), |said, more| format!("{}. {more}", said.trim_end_matches('.')))
    }

    fn remedy(&self, sqlstate: &str, message: &str) -> Option<String> {
        let (user, database) = (&self.options.user, &self.options.database);
        Some(match sqlstate {
            "28P01" => match self.passwords.source() {
                PasswordSource::Fixed => format!("check CLOUD_SQL_USER ({user}) and CLOUD_SQL_PASSWORD"),
                PasswordSource::File(path) => format!(
                    "check CLOUD_SQL_USER ({user}) and the password in CLOUD_SQL_PASSWORD_FILE ({})",
                    path.display()
                ),
                PasswordSource::Command(_) => {
                    format!("check CLOUD_SQL_USER ({user}) and what cloud.password_command prints")
                }
            },
            // By the name of the file, which no language translates.
            "28000" if message.contains("pg_hba.conf") => match self.options.link.tls.mode {
                TlsMode::Auto if !is_this_machine(&self.options.host) => {
                    "let pg_hba.conf take this role and host".into()
                }
                TlsMode::Required => "let pg_hba.conf take this role and host".into(),
                TlsMode::Auto | TlsMode::Off => {
                    "let pg_hba.conf take this role and host without encryption; or encrypt: cloud.tls = \"required\", or \
                     the Cloud SQL Auth Proxy at CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT"
                        .into()
                }
            },
            "28000" => {
                let mut remedy =
                    format!("let role {user} log in (ALTER ROLE {} LOGIN), or check CLOUD_SQL_USER", ident(user));
                let tls = &self.options.link.tls;
                if tls.cert_file.is_none() && tls.wanted(is_this_machine(&self.options.host)) {
                    remedy += "; where the server asks for a client certificate, set cloud.tls_cert_file and \
                               cloud.tls_key_file";
                }
                remedy
            }
            "3D000" => format!("create database {database}, or check CLOUD_SQL_DATABASE"),
            "42501" => self.missing_grant(message, ""),
            "3F000" => format!("create schema {}, or set cloud.schema", self.options.schema),
            "25006" => "this server or role only reads: point the proxy at the primary, or set \
                        default_transaction_read_only to off"
                .into(),
            _ => return None,
        })
    }

    /// The grant that a refusal of this statement asks for, told by the object that the message ends with (in whatever language):
    /// an app may have a table of the same name as one of ours, and as its database. At the log-in there is no statement.
    fn missing_grant(&self, message: &str, sql: &str) -> String {
        let role = ident(&self.options.user);
        let ours = ["identity", "devices", "changes", "conflicts", "feed", "cursors", "register", "trim"];
        let is_about = |name: &str| {
            message.strip_suffix(name).is_some_and(|before| before.ends_with(' '))
                || message.ends_with(&format!(" \"{name}\""))
        };
        let is_ours = ours.iter().any(|name| is_about(name) && sql.contains(&format!("tidewater.{name}")))
            || is_about("tidewater") && sql.contains("tidewater.");
        if is_ours {
            format!(
                "another role made schema tidewater; as that role, run what `run_supervisor cloud-sql` prints, or, which is more: \
                 GRANT USAGE, CREATE ON SCHEMA tidewater TO {role}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tidewater TO {role}; GRANT EXECUTE ON ALL \
                 FUNCTIONS IN SCHEMA tidewater TO {role}"
            )
        } else if is_about(&self.options.database) && (sql.is_empty() || sql.contains("CREATE SCHEMA")) {
            format!("GRANT CONNECT, CREATE ON DATABASE {} TO {role}", ident(&self.options.database))
        } else if is_about(&self.options.schema) {
            format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role}", ident(&self.options.schema))
        } else {
            format!(
                "let role {role} do this: GRANT SELECT, INSERT, UPDATE, DELETE on the table, or its row-level security"
            )
        }
    }
}

/// A pool that has not connected yet.
fn pool_of(
    options: &CloudOptions,
    passwords: &Arc<Passwords>,
    way: &Arc<Way>,
    ears: &Arc<Ears>,
    last_words: &LastWords,
    moved: &Moved,
) -> Result<Pool> {
    let mut config = tokio_postgres::Config::new();
    config.dbname(&options.database).user(&options.user).application_name(&options.application_name);
    let dialer = Dialer {
        host: options.host.clone(),
        port: options.port,
        silence: options.link.silence,
        limit: options.timeout,
    };
    let manager = Manager::from_connect(
        config,
        Door {
            dialer,
            tls: Arc::new(options.link.tls.clone()),
            passwords: passwords.clone(),
            bounds: Bounds {
                message_bytes_max: options.link.message_bytes_max as u64,
                // What a command prints is made for one log-in, and Cloud SQL takes such a token in no other way.
                clear_password: options.link.password_in_clear
                    || matches!(options.link.password, PasswordSource::Command(_)),
            },
            last_words: last_words.clone(),
            moved: moved.clone(),
            way: way.clone(),
            settings: way.options(&Settings::new(options.statement_timeout)),
            ears: ears.clone(),
        },
        // `connect` verifies: it knows what the silence of one says about the others.
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    Pool::builder(manager)
        .max_size(options.pool_max)
        .runtime(Runtime::Tokio1)
        // One that is used all the time, and others that can be told to be idle.
        .queue_mode(QueueMode::Lifo)
        .timeouts(Timeouts {
            wait: Some(options.timeout),
            // The dialer ends by itself, and says what it waited for.
            create: None,
            recycle: None,
        })
        .build()
        .map_err(|error| CloudFailure::new(FailureClass::CheckFailed, error.to_string()))
}

/// The code of an error, if it has the form of one; else that of an internal error.
fn sqlstate_of(server: &tokio_postgres::error::DbError) -> &str {
    let code = server.code().code();
    let has_form = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if has_form { code } else { "XX000" }
}

/// Whether what was read is nothing that PostgreSQL says there: the driver's own verdict, in its words.
fn is_nonsense(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    let is_invalid = |source: &io::Error| {
        source.kind() == io::ErrorKind::InvalidData
            && source.to_string().starts_with("invalid message length")
    };
    text.starts_with("unexpected message from server")
        || text.starts_with("error parsing response from server")
        || error.source().and_then(|source| source.downcast_ref()).is_some_and(is_invalid)
}

/// Whether an error of the log-in is PostgreSQL's answer, or what the driver makes of one.
fn is_postgresqls(error: &tokio_postgres::Error) -> bool {
    !error.is_closed() && !error.source().is_some_and(|source| source.is::<io::Error>())
}

fn silent(after: Duration) -> CloudFailure {
    CloudFailure::new(FailureClass::NotAnswering, format!("no answer within {} s", after.as_secs_f64()))
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silent(limit)))
}

/// One connection for one cycle. Dropped in the middle of something, it closes its connection.
pub struct CloudSession {
    client: Client,
    cloud: Cloud,
    pulse: Pulse,
}

impl fmt::Debug for CloudSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudSession").finish_non_exhaustive()
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The marker: it travels with dumps and clones.
    pub id: String,
    /// The server's own number, which does not.
    pub system: String,
    /// The database's number on it.
    pub database: String,
    /// The server's timeline.
    pub timeline: i64,
    /// Of our side of it.
    version: i64,
}

/// What has to be as it was, or the session has to settle and prepare again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    identity: Option<String>,
    whereabouts: String,
    /// Another device may have upgraded the cloud, in which there is something to say then.
    version: Option<i64>,
    settled: bool,
    tables: i64,
    triggers: String,
}

/// What the ledger says about this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The last round that took effect.
    pub round: Option<String>,
    /// How many did.
    pub number: i64,
    /// The rows that left the last round, each under the name of its [`RoundItem`].
    pub left_out: Vec<String>,
}

/// What the cloud's side of one tracked table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// It can be synced.
    Ready(CloudTable),
    /// It cannot, and why. Its rows stay pending.
    NotYet(String),
}

/// One row of a round, in wire form.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundItem {
    /// The index into the round's tables.
    pub table: usize,
    /// The primary key.
    pub key: Vec<CloudValue>,
    /// By column: everything for an insert, the changed columns for an update, nothing for a delete.
    pub values: Vec<CloudValue>,
    /// What happens to the row.
    pub op: Op,
    /// The newest feed entry that this row has already taken into account.
    pub seen: i64,
    /// When it was changed last, in microseconds since 1970.
    pub stamp: i64,
}

impl RoundItem {
    /// The primary key as the file has it: keys come back as they were.
    pub fn local_key(&self, (table, cloud_table): &(Table, CloudTable)) -> Vec<Value> {
        let stored = |(c, value): (&usize, &CloudValue)| {
            from_cloud(value.clone(), table.columns[*c].affinity(), &cloud_table.columns[*c].kind)
        };
        table.key.iter().zip(&self.key).map(stored).collect()
    }

    /// The row's name in the ledger, if it has to leave the round.
    pub fn name(&self, table: &(Table, CloudTable)) -> String {
        ledger_name(&table.0, &self.local_key(table))
    }

    /// What is sent of the row, about, in bytes.
    fn bytes(&self) -> usize {
        self.values.iter().map(CloudValue::size).sum()
    }
}

/// The rows of a round, in the parts in which they are sent. They are put together only where somebody asks for one of them, which
/// a round that is taken as it is does not: there may be very many.
#[derive(Debug, Default)]
pub struct RoundItems {
    parts: Mutex<Vec<Arc<Vec<RoundItem>>>>,
    whole: OnceLock<Vec<RoundItem>>,
}

impl RoundItems {
    /// All of them. Nobody else should have the parts any more: what somebody has is copied.
    pub fn into_whole(self) -> Vec<RoundItem> {
        let Self { parts, whole } = self;
        let parts = || parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        whole.into_inner().unwrap_or_else(|| put_together(parts()))
    }

    /// Goes through them, without putting them together.
    pub fn for_each(&self, mut each: impl FnMut(usize, &RoundItem)) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let items = parts.iter().flat_map(|part| part.iter()).chain(self.whole.get().into_iter().flatten());
        items.enumerate().for_each(|(at, item)| each(at, item));
    }
}

impl From<Vec<Arc<Vec<RoundItem>>>> for RoundItems {
    fn from(parts: Vec<Arc<Vec<RoundItem>>>) -> Self {
        Self { parts: Mutex::new(parts), whole: OnceLock::new() }
    }
}

impl From<Vec<RoundItem>> for RoundItems {
    fn from(items: Vec<RoundItem>) -> Self {
        vec![Arc::new(items)].into()
    }
}

impl std::ops::Deref for RoundItems {
    type Target = [RoundItem];

    fn deref(&self) -> &[RoundItem] {
        self.whole.get_or_init(|| {
            put_together(std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner)))
        })
    }
}

fn put_together(mut parts: Vec<Arc<Vec<RoundItem>>>) -> Vec<RoundItem> {
    if parts.len() == 1 {
        return parts.pop().map(Arc::unwrap_or_clone).unwrap_or_default();
    }
    let mut whole = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.into_iter().for_each(|part| whole.append(&mut Arc::unwrap_or_clone(part)));
    whole
}

/// What a round does to one row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// The cloud should not have it yet.
    Insert,
    /// These columns change.
    Update(Vec<usize>),
    /// It goes.
    Delete,
}

/// A conflict for the cloud's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConflictRow {
    /// Table, key (JSON), column, base, local and cloud value (JSON), and which was kept.
    pub fields: [Option<String>; 7],
}

/// What a round is and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct RoundFrame<'a> {
    /// This device.
    pub device: &'a str,
    /// The session that settled last.
    pub session: &'a str,
    /// The round's id.
    pub id: &'a str,
    /// The round before it.
    pub previous: Option<&'a str>,
    /// The feed's cursor of this file.
    pub cursor: &'a Cursor,
    /// The tables with their cloud sides, as the items name them.
    pub tables: &'a [(Table, CloudTable)],
    /// What waits in the file that it comes from.
    pub waiting: &'a dyn Waiting,
}

/// What a round asks the file that it comes from.
pub trait Waiting: fmt::Debug + Sync {
    /// Whether one of these rows, by table and key, waits to be sent.
    fn waits(&self, rows: Vec<(i64, Vec<Value>)>) -> BoxFuture<'_, Result<bool>>;
}

/// A row that left its round, by item, with the cloud's row.
#[derive(Debug, Clone, PartialEq)]
pub struct CloudHit {
    /// The index into the items.
    pub item: usize,
    /// The cloud's row, or none.
    pub row: Option<Vec<CloudValue>>,
    /// The newest feed entry that it contains.
    pub seen: i64,
    /// When others changed it last, as the feed knows it.
    pub stamp: Option<i64>,
}

/// A row that PostgreSQL refuses, by item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudRefusal {
    /// The index into the items.
    pub item: usize,
    /// The code.
    pub sqlstate: String,
    /// What PostgreSQL said.
    pub message: String,
    /// The constraint, if it was one.
    pub constraint: Option<String>,
    /// The shape of its cloud table, from before it was refused.
    pub shape: String,
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq)]
pub enum RoundOutcome {
    /// Committed, but for these rows, which left it.
    Committed {
        /// The rows.
        hits: Vec<CloudHit>,
        /// Deletions that stay behind, by item: they would take rows along that have not been seen, or that wait here.
        staying: Vec<usize>,
        /// What a search for the guilty did not come to in its time, by item: nobody was guilty so far.
        unasked: Vec<usize>,
        /// Whether the cloud did more, or other, than it was told: that has to be pulled before anything is built on it.
        caused_more: bool,
    },
    /// Nothing took effect: a foreign key or a unique value is in the way, for which rows outside of the round may be
    /// the reason.
    TooNarrow,
    /// Nothing took effect: a deletion would take rows along that have not been seen, or that wait here, and nothing could go
    /// without the deletions.
    TakesAlong,
    /// Nothing took effect: a statement that carries rows took longer than it may.
    TooSlow(CloudFailure),
    /// Nothing took effect.
    Refused {
        /// These rows are refused; all that could be asked about alone are so alone.
        rows: Vec<CloudRefusal>,
        /// These are refused together with others that are accepted, and not alone.
        crowded: Vec<CloudRefusal>,
        /// These deletions are refused on top of others that they need to be gone: what they are shows when they are.
        early: Vec<CloudRefusal>,
        /// How many were accepted before the round was rolled back.
        accepted: usize,
        /// Whether there may be more of them: not every row was looked at.
        unfinished: bool,
    },
}

/// What lies beyond a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Whether the entry that the cursor stands on is still there.
    pub there: bool,
    /// Whether nothing beyond the cursor was trimmed.
    pub whole: bool,
    /// Whether the entry that the cursor stands on was the last that was trimmed.
    pub ends_at_cursor: bool,
    /// Whether others changed something.
    pub news: bool,
    /// Whether no transaction is open that may still change something as of a moment before this look.
    pub settled: bool,
    /// The last entry, if any, that only our own rounds lead to.
    pub ours: Option<Cursor>,
    /// What the server's clock showed.
    pub clock: ServerClock,
}

impl Look {
    /// What is needed of a look that the cursor shall follow: beyond what was trimmed, our own last entry hides what lay before it.
    ///
    /// # Errors
    /// Where the feed was trimmed beyond the cursor.
    pub fn require_whole(&self) -> Result<()> {
        if self.whole { Ok(()) } else { Err(trim::passed_over()) }
    }
}

/// An error of a statement inside a round.
enum Trouble {
    /// The data: what PostgreSQL said.
    Refused { sqlstate: String, message: String, constraint: Option<String> },
    /// A statement that carries rows took longer than it may. They may be the reason, or somebody's lock on them.
    TooSlow(CloudFailure),
    /// Anything else.
    Failed(CloudFailure),
}

impl From<CloudFailure> for Trouble {
    fn from(failure: CloudFailure) -> Self {
        Self::Failed(failure)
    }
}

/// How many prepared statements a pooled connection keeps. Each set of changed columns makes one of its own.
const STATEMENTS_MAX: usize = 500;

/// A link that takes and brings fewer bytes than these in the time of an answer moves nothing: that is what other connections'
/// checks come to.
const MOVES_AT_LEAST: u64 = 64 << 10;

/// What is read as of one moment.
const READING: &str = "ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The versions of our side behind the first one, which `bootstrap.sql` makes, each with what brings it there from the one before.
const LATER_VERSIONS: [(i64, &str); 2] =
    [(2, include_str!("sql/postgres/feed.sql")), (PROTOCOL, include_str!("sql/postgres/versions.sql"))];

/// The version of our side without which there is no sync.
const NEEDED: i64 = 2;

/// What makes our side of the cloud, or brings it to this version.
fn our_side() -> String {
    LATER_VERSIONS
        .iter()
        .fold(include_str!("sql/postgres/bootstrap.sql").to_owned(), |all, (_, sql)| all + "\n" + sql)
}

/// Serialises the creation of our own tables and triggers: "tide" in ASCII.
const ADVISORY_LOCK: i64 = 0x7469_6465;

impl CloudSession {
    /// Gives the connection back if nothing is under way on it, and passes the result on.
    fn finish<T>(mut self, result: Result<T>) -> Result<T> {
        if result.is_ok() {
            self.client.give_back();
            self.cloud.close_idle();
        }
        result
    }

    /// Gives the connection back to the pool. Only after the last answer was read.
    pub fn release(mut self) {
        if self.client.statement_cache.size() > STATEMENTS_MAX {
            self.client.statement_cache.clear();
        }
        self.client.give_back();
        self.cloud.close_idle();
    }

    /// Whether a connection pooler lends its servers to this and to others, by the transaction.
    pub fn is_shared(&self) -> bool {
        self.client.is_shared()
    }

    fn failed(&self, phase: Phase, sql: &str) -> impl Fn(tokio_postgres::Error) -> CloudFailure {
        move |error| {
            let mut failure = self.cloud.explain(&error, phase);
            if let Some(server) = error.as_db_error()
                && failure.sqlstate.as_deref() == Some("42501")
            {
                failure.remedy = Some(self.cloud.missing_grant(&self.cloud.said_by(server), sql));
            }
            failure
        }
    }

    /// Bounds one exchange with the server (C4); the server's own limit should fire first.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.patiently(0, work).await?
    }

    /// Waits for an answer. What is still on its way there, or back, is waited for as long as that takes; so is what the system,
    /// or a proxy, has taken already and may be sending on: this, and `heavy` bytes that were sent before. What nobody is at work on
    /// any more, no longer than it takes to be sure.
    async fn patiently<T>(&self, heavy: usize, work: impl Future<Output = T>) -> Result<T> {
        let limit = self.cloud.options.statement_timeout + self.cloud.options.timeout;
        let (began, at_first) = (tokio::time::Instant::now(), self.cloud.moved.bytes());
        let mut before = at_first;
        let (mut work, mut silence) = (std::pin::pin!(work), std::pin::pin!(self.silence(heavy)));
        loop {
            let ended = async {
                tokio::select! {
                    biased;
                    done = &mut work => Ok(done),
                    failure = &mut silence => Err(failure),
                }
            };
            if let Ok(ended) = tokio::time::timeout(limit, ended).await {
                return ended;
            }
            let now = self.cloud.moved.bytes();
            let on_its_way = time_for(usize::try_from(now - at_first).unwrap_or(0).max(heavy));
            if now - before < MOVES_AT_LEAST && began.elapsed() >= limit + on_its_way {
                return Err(silent(limit));
            }
            before = now;
        }
    }

    async fn batch(&self, sql: &str, phase: Phase) -> Result<()> {
        self.bounded(Box::pin(async {
            self.client.batch_execute(sql).await.map_err(self.failed(phase, sql))
        }))
        .await
    }

    async fn ask(&self, sql: &str, params: &[&dyn Param], phase: Phase) -> Result<Answer> {
        // In a box: many wait for it, and without optimisation each has its own copy of it on the stack.
        let asked = async { self.client.carry_out(sql, params).await.map_err(self.failed(phase, sql)) };
        self.bounded(Box::pin(asked)).await
    }

    async fn query(&self, sql: &str, params: &[&dyn Param], phase: Phase) -> Result<Vec<Row>> {
        Ok(self.ask(sql, params, phase).await?.rows)
    }

    /// A question that a server is asked of which nobody knows yet whether it can be written to: a replica refuses to begin what
    /// may write, in other words than it refuses to write.
    async fn look_at(&self, sql: &str, params: &[&dyn Param], phase: Phase) -> Result<Vec<Row>> {
        let asked =
            async { self.client.carry_out_as(READING, sql, params).await.map_err(self.failed(phase, sql)) };
        Ok(self.bounded(asked).await?.rows)
    }

    async fn execute(&self, sql: &str, params: &[&dyn Param], phase: Phase) -> Result<u64> {
        Ok(self.ask(sql, params, phase).await?.changed)
    }

    /// Begins a transaction, of a kind other than the usual one if that is given.
    async fn begin(&self, kind: &str, phase: Phase) -> Result<()> {
        self.client.set_open(true);
        self.batch(&self.client.opening(kind), phase).await
    }

    async fn commit(&self, phase: Phase) -> Result<()> {
        self.batch("COMMIT", phase).await?;
        self.client.set_open(false);
        Ok(())
    }

    async fn rollback(&self, phase: Phase) -> Result<()> {
        self.batch("ROLLBACK", phase).await?;
        self.client.set_open(false);
        Ok(())
    }

    // -----------------------------------------------------------------------------------------------------
    // Settling and preparing
    // -----------------------------------------------------------------------------------------------------

    /// Creates our side of the cloud where it is missing and answers with its identity. One that an older version made is left as
    /// it is, until [`upgrade`](Self::upgrade).
    ///
    /// # Errors
    /// [`FailureClass::Credentials`] with the grant that is missing, [`FailureClass::NotOurs`] for another cloud.
    pub async fn bootstrap(&self) -> Result<Identity> {
        let (found, timeline) = self.writable_whereabouts().await?;
        let there =
            self.query("SELECT to_regclass('tidewater.conflicts') IS NOT NULL", &[], Phase::Setup).await?;
        let mut identity = None;
        if first(&there)? == Some(true) {
            identity = self.read_identity(Phase::Setup).await?;
        }
        if identity.is_none() {
            self.cloud.verify(None)?;
            self.batch(
                &format!(
                    "{}; SELECT pg_advisory_xact_lock({ADVISORY_LOCK});\n{}\nCOMMIT;",
                    self.client.opening(""),
                    our_side()
                ),
                Phase::Setup,
            )
            .await?;
            identity = self.read_identity(Phase::Setup).await?;
        }
        let (id, version) = identity.ok_or_else(|| unexpected("the cloud has no identity"))?;
        self.cloud.verify(Some(&id))?;
        Ok(Identity { id, system: found.system, database: found.database, timeline, version })
    }

    /// Brings our side of the cloud to this version, where an older one made it. Whoever did so a moment ago was first. Beyond what
    /// a sync needs (`NEEDED`) it is left as it is where this role may not, or where somebody is in the way: the next
    /// settlement asks again.
    ///
    /// # Errors
    /// [`FailureClass::Credentials`] with the grant that is missing.
    pub async fn upgrade(&self, found: &Identity) -> Result<()> {
        for (version, sql) in LATER_VERSIONS.into_iter().filter(|(version, _)| *version > found.version) {
            let is_needed = version <= NEEDED;
            if !is_needed {
                let may = self.query(include_str!("sql/postgres/may_upgrade.sql"), &[], Phase::Setup).await?;
                if first::<bool>(&may)? != Some(true) {
                    break;
                }
            }
            match self.upgrade_to(version, sql, is_needed).await {
                // Somebody holds the ledger, or a rule of the server's is against it: the sync does without.
                Err(failure) if !is_needed && failure.sqlstate.is_some() => {
                    self.rollback(Phase::Setup).await?;
                    break;
                }
                upgraded => upgraded?,
            }
        }
        Ok(())
    }

    async fn upgrade_to(&self, version: i64, sql: &str, is_needed: bool) -> Result<()> {
        let mut locked = self.client.opening("");
        if !is_needed {
            // Everybody's rounds wait behind whoever waits for the ledger's table, and a round may hang.
            locked +=
                &format!("; SET LOCAL lock_timeout = {}", self.cloud.options.timeout.as_millis().max(1));
        }
        locked += &format!("; SELECT pg_advisory_xact_lock({ADVISORY_LOCK})");
        self.client.set_open(true);
        self.batch(&locked, Phase::Setup).await?;
        if self.read_identity(Phase::Setup).await?.is_some_and(|(_, found)| found < version) {
            self.batch(sql, Phase::Setup).await?;
        }
        self.commit(Phase::Setup).await
    }

    /// Where this connection stands; `None` when our side of the cloud is not there.
    pub async fn standing(
        &self,
        device: &str,
        session: &str,
        tables: impl Iterator<Item = &CloudTable> + Clone,
    ) -> Result<Option<Standing>> {
        let names: Vec<String> =
            tables.clone().map(|table| cloud::qualified(&table.schema, &table.name)).collect();
        let oids: Vec<u32> = tables.map(|table| table.oid).collect();
        let asked = self
            .look_at(
                include_str!("sql/postgres/standing.sql"),
                &[&parse_uuid(device)?, &parse_uuid(session)?, &names, &oids],
                Phase::Setup,
            )
            .await;
        match asked {
            Ok(rows) => rows
                .first()
                .map(|row| {
                    Ok(Standing {
                        identity: row.cell(0)?,
                        version: row.cell(1)?,
                        settled: row.cell(2)?,
                        tables: row.cell(3)?,
                        triggers: row.cell(4)?,
                        whereabouts: row.cell(5)?,
                    })
                })
                .transpose(),
            Err(failure) if matches!(failure.sqlstate.as_deref(), Some("42P01" | "3F000")) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The mark, and the version of our side.
    async fn read_identity(&self, phase: Phase) -> Result<Option<(String, i64)>> {
        let sql = "SELECT id::text, schema_version::int8 FROM tidewater.identity";
        let rows = self.look_at(sql, &[], phase).await?;
        let read = rows.first().map(|row| Ok((row.cell(0)?, row.cell(1)?))).transpose();
        read.map_err(|failure| self.nonsense_in(phase, failure))
    }

    /// Puts in a new session, which shuts out whatever older ones still have on its way, and reads the ledger.
    /// An older session that had begun a round holds the ledger's row until its transaction ends. It does not where the link
    /// was lost in the middle of a message: PostgreSQL waits for the rest of one without any of its timeouts. So it is
    /// waited for a little, and then ended.
    ///
    /// The device reads on from the cursor: nothing beyond it is trimmed from here on without shutting this session out. It says
    /// there which version it runs, where it may.
    pub async fn settle(&self, device: &str, session: &str, cursor: Option<&Cursor>) -> Result<Ledger> {
        let (device, session) = (parse_uuid(device)?, parse_uuid(session)?);
        let patience = self.cloud.options.timeout.as_millis().max(1).to_string();
        let (xid, id) = (cursor.map(|cursor| cursor.xid.as_str()), cursor.map(|cursor| cursor.id));
        let params: [&dyn Param; 5] = [&device, &session, &patience, &xid, &id];
        let mut settled = self.query(include_str!("sql/postgres/settle.sql"), &params, Phase::Setup).await;
        if let Err(failure) = &settled
            && matches!(failure.sqlstate.as_deref(), Some("55P03" | QUERY_CANCELED))
        {
            let ended =
                self.query(include_str!("sql/postgres/end_older.sql"), &[&device], Phase::Setup).await;
            // Refused where the older one had another role: then there is only the wait.
            if ended.is_ok_and(|rows| !rows.is_empty()) {
                settled = self.query(include_str!("sql/postgres/settle.sql"), &params, Phase::Setup).await;
            }
        }
        let rows = settled?;
        let row = rows.first().ok_or_else(|| unexpected("the ledger did not answer"))?;
        let ledger = Ledger {
            round: row.cell::<Option<Uuid>>(0)?.map(|id| id.to_string()),
            number: row.cell(1)?,
            left_out: row.cell(2)?,
        };
        if row.cell(3)? {
            let sql = include_str!("sql/postgres/say_version.sql");
            match self.execute(sql, &[&device, &session, &env!("CARGO_PKG_VERSION")], Phase::Setup).await {
                // Nothing depends on it.
                Err(failure) if failure.sqlstate.is_none() => return Err(failure),
                _ => {}
            }
        }
        Ok(ledger)
    }

    /// Whether the feed still has the entry that a cursor stands on, or, where it stands on none, whether this server
    /// has come as far.
    pub async fn cursor_is_there(&self, cursor: &Cursor) -> Result<bool> {
        Ok(self.look(cursor, "").await?.there)
    }

    /// What the feed has beyond the cursor.
    pub async fn look(&self, cursor: &Cursor, device: &str) -> Result<Look> {
        let sql = include_str!("sql/postgres/look.sql");
        let asked = now_us();
        let rows = self.query(sql, &[&cursor.xid, &cursor.id, &cursor.tag, &device], Phase::Pull).await?;
        let answered = now_us();
        let row = rows.first().ok_or_else(|| unexpected("the feed did not answer"))?;
        let ours = match row.cell("at")? {
            Some(xid) => Some(Cursor { xid, id: row.cell("id")?, tag: Some(row.cell("tag")?) }),
            None => None,
        };
        let clock = ServerClock::read(row.cell("clock")?, asked, answered);
        Ok(Look {
            there: row.cell("there")?,
            whole: row.cell("whole")?,
            ends_at_cursor: row.cell("trimmed")?,
            news: row.cell("news")?,
            settled: row.cell("settled")?,
            ours,
            clock,
        })
    }

    /// Creates the cloud's tables where they are missing, extends and checks them where they are not, and covers
    /// them by the feed. Answers one per table, and with what a person should know.
    pub async fn prepare(&self, tables: &[Table]) -> Result<(Vec<Prepared>, Vec<String>)> {
        let mut notes = vec![];
        let mut refusals = self.create(tables, &mut notes).await?;
        // Before the columns are looked at: what changes after this is another shape.
        let names = tables.iter().map(|table| cloud::qualified(&self.cloud.options.schema, &table.name));
        let shapes = self.shapes(names.collect()).await?;
        let mut prepared = Vec::with_capacity(tables.len());
        for (at, table) in tables.iter().enumerate() {
            prepared.push(match refusals.remove(&at) {
                Some(refusal) => Prepared::NotYet(format!("its cloud table cannot be created: {refusal}")),
                None => self.prepare_table(table, &mut notes).await?,
            });
            if let Some(Prepared::Ready(cloud_table)) = prepared.last_mut() {
                let name = cloud::qualified(&cloud_table.schema, &cloud_table.name);
                cloud_table.shape = shapes.get(&name).cloned().unwrap_or_default();
            }
        }
        Ok((prepared, notes))
    }

    /// Creates the tables that are missing, with their foreign keys: all in one transaction, so that nobody, a
    /// crash included, leaves half of it; one by one where PostgreSQL refuses something of it.
    async fn create(&self, tables: &[Table], notes: &mut Vec<String>) -> Result<HashMap<usize, String>> {
        let schema = &self.cloud.options.schema;
        let mut missing = vec![];
        for (at, table) in tables.iter().enumerate() {
            // Who sends nothing there makes nothing there.
            if table.rule.direction.sends() && self.columns(table).await?.is_empty() {
                missing.push(at);
            }
        }
        let mut refusals = HashMap::new();
        if missing.is_empty() {
            return Ok(refusals);
        }
        let definition =
            |at: &usize| cloud::create_table(&tables[*at], schema, &tables[*at].referred_to(tables));
        let foreign_keys = |at: &usize| cloud::foreign_keys(&tables[*at], tables, schema);
        let everything: Vec<String> =
            missing.iter().map(definition).chain(missing.iter().flat_map(foreign_keys)).collect();
        if self.ddl(&everything.join(";\n")).await?.is_ok() {
            return Ok(refusals);
        }
        let mut created = vec![];
        for at in missing {
            match self.ddl(&definition(&at)).await? {
                Ok(()) => created.push(at),
                // Another device came first, and sees to the foreign keys; or it is something else by that name.
                Err(refusal) if refusal.sqlstate.as_deref() == Some("42P07") => {
                    if self.columns(&tables[at]).await?.is_empty() {
                        refusals.insert(at, said(&refusal));
                    }
                }
                Err(refusal) => drop(refusals.insert(at, said(&refusal))),
            }
        }
        for at in created {
            for sql in foreign_keys(&at) {
                if let Err(refusal) = self.ddl(&sql).await? {
                    notes.push(format!(
                        "table {}: a foreign key is not kept in the cloud: {}",
                        tables[at].name,
                        said(&refusal)
                    ));
                }
            }
        }
        Ok(refusals)
    }

    async fn prepare_table(&self, table: &Table, notes: &mut Vec<String>) -> Result<Prepared> {
        let mut found = self.columns(table).await?;
        let direction = table.rule.direction;
        let Some(oid) = found.values().next().map(|column| column.table_oid) else {
            return Ok(Prepared::NotYet(match direction.sends() {
                true => "its cloud table disappeared".into(),
                false => "the cloud has no such table, and its direction is pull, so that none is made there"
                    .into(),
            }));
        };
        let key = self.query(include_str!("sql/postgres/key_columns.sql"), &[&oid], Phase::Setup).await?;
        let key = key.iter().map(|row| row.cell(0)).collect::<Result<Vec<String>>>()?;
        if key != table.key_names() {
            return Ok(Prepared::NotYet(format!(
                "its cloud table has another primary key ({}) than it has here ({})",
                key.join(", "),
                table.key_names().join(", ")
            )));
        }
        let missing: Vec<usize> =
            (0..table.columns.len()).filter(|c| !found.contains_key(&table.columns[*c].name)).collect();
        if !missing.is_empty() {
            let names =
                missing.iter().map(|c| table.columns[*c].name.as_str()).collect::<Vec<_>>().join(", ");
            if !direction.sends() {
                return Ok(Prepared::NotYet(format!(
                    "its cloud table lacks the column {names}, and its direction is pull, so that nothing is changed there"
                )));
            }
            if !self.cloud.options.add_columns {
                return Ok(Prepared::NotYet(format!(
                    "its cloud table lacks the column {names}; add it, or set cloud.add_columns to auto"
                )));
            }
            for c in missing {
                // Rows that are there have no value for it, so the cloud cannot demand one.
                let definition = cloud::column_definition(table, c, false);
                let target = cloud::qualified(&self.cloud.options.schema, &table.name);
                if let Err(refusal) =
                    self.ddl(&format!("ALTER TABLE {target} ADD COLUMN {definition}")).await?
                {
                    let refusal = said(&refusal);
                    return Ok(Prepared::NotYet(format!("the column {names} cannot be added: {refusal}")));
                }
            }
            found = self.columns(table).await?;
        }
        let demanded: Vec<&str> = found
            .iter()
            .filter(|(name, found)| {
                found.demanded && !table.columns.iter().any(|column| column.name == **name)
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if !demanded.is_empty() && direction.sends() {
            return Ok(Prepared::NotYet(format!(
                "its cloud table demands a value for {}, which it does not have here: give it a default there",
                demanded.join(", ")
            )));
        }
        let mut columns = Vec::with_capacity(table.columns.len());
        for (c, column) in table.columns.iter().enumerate() {
            match found.get(&column.name) {
                Some(found) if !(found.column.generated && table.is_key(c)) => {
                    columns.push(found.column.clone());
                }
                Some(_) => {
                    return Ok(Prepared::NotYet(format!(
                        "the column {} of its cloud table is generated there, and belongs to the key",
                        column.name
                    )));
                }
                None => {
                    return Ok(Prepared::NotYet(format!(
                        "the column {} of its cloud table is gone",
                        column.name
                    )));
                }
            }
        }
        let mut cloud_table = self.as_found(table, oid, columns);
        if let Some(refusal) = self.misread_filter(table, &cloud_table).await? {
            return Ok(Prepared::NotYet(refusal));
        }
        let mut definitions: Vec<(i16, String)> =
            found.into_values().map(|found| (found.column.number, found.definition)).collect();
        definitions.sort_unstable();
        let definitions: Vec<String> = definitions.into_iter().map(|(_, definition)| definition).collect();
        cloud_table.definition = definitions.join(",");
        cloud_table.hiding = self.hiding(table, &cloud_table).await?;
        if cloud_table.hiding != Hiding::None {
            let deletions = match cloud_table.hiding {
                Hiding::Untold => {
                    "; whether others deleted a row cannot be told, and so nothing is deleted here"
                }
                _ => "",
            };
            notes.push(format!(
                "table {}: row-level security is in force for role {}: rows that it no longer shows stay here as they \
                 were{deletions}",
                table.name, self.cloud.options.user
            ));
        }
        let is_plain = self.query(include_str!("sql/postgres/is_plain.sql"), &[&oid], Phase::Setup).await?;
        cloud_table.plain = cloud_table.hiding == Hiding::None
            && cloud::stores_as_sent(&cloud_table.columns)
            && first(&is_plain)? == Some(true);
        if !direction.receives() {
            // Nobody here asks what others change.
            cloud_table.feed = false;
        } else if let Err(mut refusal) = self.cover(table, &cloud_table, notes).await? {
            cloud_table.feed = false;
            if refusal.sqlstate.as_deref() == Some("42501") {
                let on = cloud::qualified(&cloud_table.schema, &table.name);
                let role = ident(&self.cloud.options.user);
                // The right to create triggers is not enough for `ENABLE ALWAYS`, without which a replicated change
                // would be missed.
                refusal.remedy = Some(format!(
                    "ALTER TABLE {on} OWNER TO {role}, or make it a member of the owner; or let an administrator run what \
                     run_supervisor cloud-sql prints"
                ));
            }
            notes.push(format!(
                "table {}: changes made by others are not seen, because its feed cannot be installed: {}",
                table.name,
                said(&refusal)
            ));
        }
        if cloud_table.feed {
            let rows = self.query(include_str!("sql/postgres/trace.sql"), &[&oid], Phase::Setup).await?;
            // What a change of a column's type makes of the rows, no trigger tells.
            let types =
                cloud_table.columns.iter().map(|column| format!("{}={}", column.number, column.exact));
            let types = types.collect::<Vec<_>>().join(";");
            let trace: String = first(&rows)?.unwrap_or_default();
            cloud_table.trace = format!("{trace}|{types}");
        }
        Ok(Prepared::Ready(cloud_table))
    }

    /// Whether row-level security may hide rows of a table from this role. Whoever owns the table lets the others know which
    /// rows are there.
    async fn hiding(&self, table: &Table, cloud_table: &CloudTable) -> Result<Hiding> {
        let function = format!("{}(jsonb)", cloud::there_function(cloud_table));
        let mut tried = false;
        loop {
            let sql = "SELECT relrowsecurity, row_security_active(oid), to_regprocedure($2) IS NOT NULL \
                       FROM pg_class WHERE oid = $1";
            let rows = self.query(sql, &[&cloud_table.oid, &function], Phase::Setup).await?;
            let Some(row) = rows.first() else { return Ok(Hiding::None) };
            let (enabled, active, is_told): (bool, bool, bool) = (row.cell(0)?, row.cell(1)?, row.cell(2)?);
            if !enabled || is_told || tried {
                return Ok(match (active, is_told) {
                    (false, _) => Hiding::None,
                    (true, true) if self.tells(cloud_table).await? => Hiding::Told,
                    (true, _) => Hiding::Untold,
                });
            }
            tried = true;
            if !self.owns(cloud_table).await? {
                continue;
            }
            // A refusal leaves it untold, which is said.
            let _ = self.ddl(&cloud::there(table, cloud_table)).await?;
        }
    }

    /// Whether that function sees more than this role: it says of every key that it may be there where it does not.
    async fn tells(&self, cloud_table: &CloudTable) -> Result<bool> {
        let sql = format!("SELECT count(*) FROM {}('[[]]')", cloud::there_function(cloud_table));
        let rows = self.query(&sql, &[], Phase::Setup).await?;
        Ok(first::<i64>(&rows)? == Some(0))
    }

    async fn owns(&self, cloud_table: &CloudTable) -> Result<bool> {
        let sql = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = $1";
        let rows = self.query(sql, &[&cloud_table.oid], Phase::Setup).await?;
        Ok(first(&rows)? == Some(true))
    }

    /// Which of the given keys, that no row was shown for, may belong to a row that row-level security hides, by position.
    pub async fn hidden(&self, cloud_table: &CloudTable, keys: &[Vec<String>]) -> Result<HashSet<usize>> {
        match cloud_table.hiding {
            _ if keys.is_empty() => Ok(HashSet::new()),
            Hiding::None => Ok(HashSet::new()),
            Hiding::Untold => Ok((0..keys.len()).collect()),
            Hiding::Told => {
                let sql = format!("SELECT * FROM {}($1::text::jsonb)", cloud::there_function(cloud_table));
                let asked = keys.len();
                let keys = serde_json::Value::from(keys.to_vec()).to_string();
                let rows = self.query(&sql, &[&keys], Phase::Pull).await?;
                rows.iter().map(|row| position(row, asked)).collect()
            }
        }
    }

    /// A table's cloud side, of which no more than its columns is known yet.
    fn as_found(&self, table: &Table, oid: u32, columns: Vec<CloudColumn>) -> CloudTable {
        CloudTable {
            schema: self.cloud.options.schema.clone(),
            name: table.name.clone(),
            oid,
            feed: true,
            trace: String::new(),
            hiding: Hiding::None,
            shape: String::new(),
            plain: false,
            definition: String::new(),
            columns,
        }
    }

    /// Installs the feed's triggers of a table and its partitions where they are not all there as they should be.
    async fn cover(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        notes: &mut Vec<String>,
    ) -> Result<std::result::Result<(), CloudFailure>> {
        let (targets, is_older) = self.uncovered(table, cloud_table).await?;
        if !targets.is_empty() {
            return self.ddl(&cloud::feed(table, cloud_table, &targets)).await;
        }
        if is_older {
            // The triggers stay, and with them what this file knows of the table.
            let (oid, body) = (cloud_table.oid.to_string(), cloud::feed_body(table, cloud_table));
            if let Err(refusal) = self.ddl(&cloud::feed_function(&oid, &body)).await? {
                notes.push(format!(
                    "table {}: of two changes of the same the one that arrives later counts as the newer, because its feed is of \
                     an earlier version, and cannot be renewed: {}",
                    table.name,
                    said(&refusal)
                ));
            }
        }
        Ok(Ok(()))
    }

    /// The table and its partitions, as far as the feed's triggers are not all on them as they should be; and whether they are,
    /// of an earlier version.
    async fn uncovered(&self, table: &Table, cloud_table: &CloudTable) -> Result<(Vec<String>, bool)> {
        let events = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"];
        let names: Vec<String> = events.iter().map(|event| cloud::feed_trigger(event)).collect();
        let rows = self
            .query(
                include_str!("sql/postgres/feed_targets.sql"),
                &[&cloud_table.oid, &names, &cloud::feed_body(table, cloud_table)],
                Phase::Setup,
            )
            .await?;
        let (mut uncovered, mut is_older) = (vec![], false);
        for row in &rows {
            let older: i64 = row.cell("older")?;
            is_older |= older > 0;
            if row.cell::<i64>("covered")? + older != 4 {
                uncovered.push(cloud::qualified(row.cell("schema")?, row.cell("name")?));
            }
        }
        Ok((uncovered, is_older))
    }

    async fn columns(&self, table: &Table) -> Result<HashMap<String, FoundColumn>> {
        self.columns_of(&table.name).await
    }

    async fn columns_of(&self, table: &str) -> Result<HashMap<String, FoundColumn>> {
        let rows = self
            .query(
                include_str!("sql/postgres/columns.sql"),
                &[&self.cloud.options.schema, &table],
                Phase::Setup,
            )
            .await?;
        rows.iter().map(|row| Ok((row.cell("name")?, FoundColumn::read(row)?))).collect()
    }

    /// Runs DDL in a transaction of its own, under the lock that keeps devices from tripping over each other. The
    /// inner error is PostgreSQL's refusal.
    async fn ddl(&self, sql: &str) -> Result<std::result::Result<(), CloudFailure>> {
        let sql = format!(
            "{}; SET LOCAL lock_timeout = '10s'; SELECT pg_advisory_xact_lock({ADVISORY_LOCK});\n{sql};\nCOMMIT;",
            self.client.opening("")
        );
        match self.batch(&sql, Phase::Round).await {
            Ok(()) => Ok(Ok(())),
            // A table that somebody holds locked is one table that has to wait, not all of them.
            Err(failure)
                if failure.class == FailureClass::DataRefused
                    || failure.sqlstate.as_deref() == Some("55P03") =>
            {
                self.rollback(Phase::Setup).await?;
                Ok(Err(failure))
            }
            Err(failure) => Err(failure),
        }
    }

    // -----------------------------------------------------------------------------------------------------
    // Reading
    // -----------------------------------------------------------------------------------------------------

    /// Begins to read: until [`CloudSession::end_read`] everything is seen as of one moment.
    pub async fn begin_read(&self) -> Result<()> {
        self.begin(READING, Phase::Pull).await
    }

    /// Ends the reading.
    pub async fn end_read(&self) -> Result<()> {
        self.commit(Phase::Pull).await
    }

    /// The rows that come home and whose given columns have the given values (in PostgreSQL's text), each with its position.
    pub async fn fetch(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        by: &[usize],
        values: &[Vec<String>],
    ) -> Result<Vec<(usize, Vec<CloudValue>)>> {
        self.fetch_rows(table, cloud_table, by, values, Rows::Wanted).await
    }

    /// The same, whether they come home or not.
    pub async fn fetch_any(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        by: &[usize],
        values: &[Vec<String>],
    ) -> Result<Vec<(usize, Vec<CloudValue>)>> {
        self.fetch_rows(table, cloud_table, by, values, Rows::Any).await
    }

    async fn fetch_rows(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        by: &[usize],
        values: &[Vec<String>],
        which: Rows,
    ) -> Result<Vec<(usize, Vec<CloudValue>)>> {
        let arrays: Vec<Vec<&str>> =
            (0..by.len()).map(|at| values.iter().map(|row| row[at].as_str()).collect()).collect();
        let params: Vec<&dyn Param> = arrays.iter().map(|array| array as _).collect();
        let rows = self.query(&cloud::fetch(table, cloud_table, by, which), &params, Phase::Pull).await?;
        rows.iter().map(|row| Ok((position(row, values.len())?, decode(row, cloud_table)?))).collect()
    }

    /// Begins to read a table in key order, after the given key (in PostgreSQL's text), as of one moment: what
    /// [`CloudSession::next_page`] is asked for until [`CloudSession::end_read`].
    pub async fn begin_pages(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
        after: Option<&[String]>,
    ) -> Result<()> {
        // Not by sorting, which a table's first rows would wait for; a condition may hold for so few that its index is better.
        let kind = match table.rule.filter {
            None => format!("{READING}; SET LOCAL cursor_tuple_fraction = 0"),
            Some(_) => READING.to_owned(),
        };
        self.begin(&kind, Phase::Pull).await?;
        let params: Vec<&dyn Param> = after.into_iter().flatten().map(|text| text as &dyn Param).collect();
        self.execute(&cloud::open_pages(table, cloud_table, after.is_none()), &params, Phase::Pull).await?;
        Ok(())
    }

    /// The next rows. It may be asked for before the answer to the last one is here: nobody has to know where a page ends to
    /// ask for the next, and so the time does not depend on the round trip.
    pub async fn next_page(&self, cloud_table: &CloudTable, limit: usize) -> Result<Vec<Vec<CloudValue>>> {
        // Not kept: what the columns are is the cursor's to say.
        let sql = cloud::next_page(limit);
        let statement = client::Statement::Unnamed(sql.clone());
        let answer = self.bounded(async {
            self.client.ask(&statement, &[]).await.map_err(self.failed(Phase::Pull, &sql))
        });
        answer.await?.rows.iter().map(|row| decode(row, cloud_table)).collect()
    }

    /// How many rows a table has, about; none where nobody knows without counting.
    pub async fn rows_about(&self, oid: u32) -> Result<Option<u64>> {
        let rows = self.query(include_str!("sql/postgres/rows_about.sql"), &[&oid], Phase::Pull).await?;
        let found = rows.first().map(|row| row.cell::<i64>("rows")).transpose()?;
        Ok(found.and_then(|rows| u64::try_from(rows).ok()))
    }

    // -----------------------------------------------------------------------------------------------------
    // Rounds
    // -----------------------------------------------------------------------------------------------------

    /// Takes a round to the cloud, in one transaction (C1), all of it at once. With `may_widen`, the caller can take more
    /// rows along, and would rather do so than look for the guilty among too few.
    ///
    /// # Errors
    /// Nothing took effect, unless the COMMIT's own answer is missing: the ledger tells.
    pub async fn round(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        conflicts: &[ConflictRow],
        may_widen: bool,
    ) -> Result<RoundOutcome> {
        let mut open = self.open_round(frame).await?;
        open.send(Arc::new(items.to_vec())).await;
        let judged = open.judge(conflicts).await;
        self.conclude(frame, &items.to_vec().into(), conflicts, may_widen, judged).await
    }

    /// Takes a round to its end that was sent, and whose answers were read: nothing of it is committed yet, unless it decided about
    /// itself. The items are those that were sent, in that order.
    ///
    /// # Errors
    /// As those of [`round`](Self::round).
    pub async fn conclude(
        &self,
        frame: RoundFrame<'_>,
        items: &RoundItems,
        conflicts: &[ConflictRow],
        may_widen: bool,
        judged: Judged,
    ) -> Result<RoundOutcome> {
        if judged.committed {
            fail::fail_point!("cloud.committed");
            let (hits, staying, unasked) = (vec![], vec![], vec![]);
            return Ok(RoundOutcome::Committed { hits, staying, unasked, caused_more: false });
        }
        let (mut at_once, mut searched) = (None, false);
        let first = match judged.found {
            Ok(Some((taken, caused_more))) => {
                at_once = Some(caused_more);
                Ok(taken)
            }
            // Somebody else's changes are in the way, or it did not go as sent: what leaves the round is found step by step.
            Ok(None) => {
                self.rollback(Phase::Pull).await?;
                self.begin_round(frame, items).await?;
                Box::pin(self.take(frame, items, &in_order(items, |_| true), &[], Ahead::default())).await
            }
            Err(trouble) => Err(trouble),
        };
        fail::fail_point!("cloud.begun");
        let mut taken = match first {
            Ok(taken) => taken,
            // The file as a whole fits its own constraints: what part of it a row needs may only be outside of this round.
            Err(Trouble::Refused { sqlstate, .. }) if may_widen && needs_others(&sqlstate) => {
                self.rollback(Phase::Pull).await?;
                return Ok(RoundOutcome::TooNarrow);
            }
            Err(Trouble::Refused { .. }) => {
                searched = true;
                // What is refused as a whole and accepted in parts (a value freed by one row and taken by another)
                // goes as it was accepted.
                match Box::pin(self.anew_in_parts(frame, items)).await? {
                    Ok(taken) => taken,
                    Err(outcome) => return Ok(outcome),
                }
            }
            Err(Trouble::TooSlow(failure)) => {
                self.rollback(Phase::Pull).await?;
                return Ok(RoundOutcome::TooSlow(failure));
            }
            Err(Trouble::Failed(failure)) => return Err(failure),
        };
        let mut caused_more = match at_once {
            Some(caused_more) => caused_more,
            None => self.mark_echo(frame, items.iter(), &taken).await?.caused_more,
        };
        let mut takes_along = caused_more && self.took_along(frame, items, taken.left()).await?;
        if takes_along && !searched {
            // Which of the deletions do, shows in parts.
            taken = match Box::pin(self.anew_in_parts(frame, items)).await? {
                Ok(taken) => taken,
                Err(outcome) => return Ok(outcome),
            };
            at_once = None;
            caused_more = self.mark_echo(frame, items.iter(), &taken).await?.caused_more;
            // Of rows that left it later than what takes them along.
            takes_along = caused_more && self.took_along(frame, items, taken.left()).await?;
        }
        let nothing_goes =
            !taken.staying.is_empty() && taken.staying.len() + taken.unasked.len() == items.len();
        if takes_along || nothing_goes {
            self.rollback(Phase::Pull).await?;
            return Ok(RoundOutcome::TakesAlong);
        }
        if at_once.is_none() {
            self.record_conflicts(frame, conflicts).await?;
        }
        // Whoever settles this round after a crash has to know what it did not carry.
        let name = |item: usize| items[item].name(&frame.tables[items[item].table]);
        let names: Vec<String> = taken.left().into_iter().map(name).collect();
        if !names.is_empty() {
            let sql = "UPDATE tidewater.devices SET left_out = $2 WHERE id = $1";
            self.execute(sql, &[&parse_uuid(frame.device)?, &names], Phase::Pull).await?;
        }
        fail::fail_point!("cloud.commit");
        self.commit(Phase::Pull).await?;
        fail::fail_point!("cloud.committed");
        let Taken { hits, staying, unasked, .. } = taken;
        Ok(RoundOutcome::Committed { hits, staying, unasked, caused_more })
    }

    /// What the round caused: where that is more than it sent, its feed entries are not told from somebody else's.
    ///
    /// # Errors
    /// When one of its tables is not the one that was prepared.
    async fn mark_echo<'a>(
        &self,
        frame: RoundFrame<'a>,
        items: impl IntoIterator<Item = &'a RoundItem>,
        taken: &Taken,
    ) -> Result<Echo> {
        let (oids, definitions) = as_prepared(frame, items);
        let params: [&dyn Param; 6] =
            [&taken.stored_otherwise, &taken.feed_entries, &taken.for_granted, &oids, &definitions, &false];
        Echo::of(&self.query(ECHO, &params, Phase::Pull).await?)
    }

    /// Whether a deletion cascaded to rows that it must not take along: which this file has not seen as they are, or which wait here, some
    /// of them because they have `left` the round. Those would come back with the next pull, perhaps, but not whatever hangs on them.
    async fn took_along(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        left: HashSet<usize>,
    ) -> Result<bool> {
        if items.iter().all(|item| item.op != Op::Delete) {
            return Ok(false);
        }
        let rows = self
            .query(
                include_str!("sql/postgres/took_along.sql"),
                &[&frame.cursor.xid, &frame.cursor.id, &frame.device],
                Phase::Pull,
            )
            .await?;
        let oid = |item: &RoundItem| frame.tables[item.table].1.oid;
        let named: HashMap<(u32, Vec<String>), usize> =
            items.iter().enumerate().map(|(at, item)| ((oid(item), key_text(&item.key)), at)).collect();
        // By value as well: PostgreSQL writes a numeric key with its scale.
        let by_value = LazyCell::new(|| {
            let name = |item: &RoundItem| {
                (oid(item), json_array(&local_key_of(&frame.tables[item.table], &item.key)))
            };
            items.iter().enumerate().map(|(at, item)| (name(item), at)).collect::<HashMap<_, usize>>()
        });
        let mut others = vec![];
        for row in &rows {
            let name: (u32, Vec<String>) = (row.cell("tbl")?, row.cell("key")?);
            let table = frame.tables.iter().find(|(_, cloud)| cloud.oid == name.0);
            let key = table.and_then(|(table, cloud)| local_key(table, cloud, &name.1));
            let sent = named.get(&name).copied();
            let sent = sent.or_else(|| by_value.get(&(name.0, json_array(key.as_ref()?))).copied());
            match (sent, table, key) {
                (Some(at), ..) if left.contains(&at) => return Ok(true),
                (Some(_), ..) => {}
                _ if row.cell("theirs")? => return Ok(true),
                (None, Some((table, _)), Some(key)) => others.push((table.id, key)),
                // Nothing here is called that.
                (None, ..) => {}
            }
        }
        if others.is_empty() { Ok(false) } else { frame.waiting.waits(others).await }
    }

    /// Locks and examines the given items and carries out those that nobody else touched, rows of the rings aside first.
    async fn take(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        members: &[usize],
        rings: &[Ring],
        mut ahead: Ahead<'_>,
    ) -> std::result::Result<Taken, Trouble> {
        if members.iter().any(|at| items[*at].op != Op::Insert) {
            self.send_ahead(&mut ahead).await?;
        }
        let hits = self.examine(frame, items, members).await?;
        let left: HashSet<usize> = hits.iter().map(|hit| hit.item).collect();
        let order: Vec<usize> = members.iter().copied().filter(|item| !left.contains(item)).collect();
        let mut taken = self.run(frame, items, &order, rings, ahead).await?;
        taken.hits.splice(0..0, hits);
        Ok(taken)
    }

    async fn begin_round(&self, frame: RoundFrame<'_>, items: &[RoundItem]) -> Result<()> {
        self.client.set_open(true);
        self.batch(&begin(&self.client, frame)?, Phase::Pull).await?;
        if let Some(patience) = Patience::with(items, self.cloud.options.statement_timeout) {
            self.batch(&patience.begin, Phase::Pull).await?;
        }
        let fence = Fence::of(frame)?;
        let fenced = self.query(FENCE, &fence.params(), Phase::Setup).await;
        fenced.map(drop).map_err(|failure| match failure.sqlstate.as_deref() {
            Some(DIVISION_BY_ZERO) => fenced_out(),
            _ => failure,
        })
    }

    /// Locks what the round changes and finds the rows that somebody else changed, or deleted, since our cursor.
    async fn examine(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        members: &[usize],
    ) -> std::result::Result<Vec<CloudHit>, Trouble> {
        let by_table = by_table(items, members.iter().copied().filter(|at| items[*at].op != Op::Insert));
        let mut touched: BTreeMap<usize, Touched> = BTreeMap::new();
        for (table_at, members) in &by_table {
            let (table, cloud_table) = &frame.tables[*table_at];
            let keys =
                arrays(cloud_table, &table.key, |at, part| &items[members[at]].key[part], members.len());
            let params = as_params(&keys);
            // A key that the cloud's type does not know, or a missing right on the table, is the rows' trouble.
            let sql = cloud::lock(table, cloud_table);
            let locked = self.attempt(self.client.carry_out(&sql, &params)).await?.rows;
            let mut present = HashSet::new();
            for row in &locked {
                present.insert(members[position(row, members.len())?]);
            }
            let absent = || members.iter().filter(|at| !present.contains(at));
            let keys: Vec<Vec<String>> = absent().map(|at| key_text(&items[*at].key)).collect();
            if !self.hidden(cloud_table, &keys).await?.is_empty() {
                return Err(hidden(&table.name));
            }
            for member in absent() {
                if matches!(items[*member].op, Op::Update(_)) {
                    touched.insert(*member, Touched::default());
                }
            }
        }
        touched.extend(self.touched_since(frame, items, &by_table).await?);
        Ok(self.read_hits(frame, items, &touched).await?)
    }

    /// Inserts that found a row: somebody else's, which is read under its lock.
    async fn already_there(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        members: &[usize],
    ) -> Result<Vec<CloudHit>> {
        if members.is_empty() {
            return Ok(vec![]);
        }
        // Read before the feed is asked: the row contains what the feed had then, and perhaps more.
        let untold = members.iter().map(|at| (*at, Touched::default())).collect();
        let hits = self.read_hits(frame, items, &untold).await?;
        let by_table = by_table(items, members.iter().copied());
        let touched = self.touched_since(frame, items, &by_table).await?;
        let told = |hit: CloudHit| {
            let Touched { newest, stamp } = touched.get(&hit.item).copied().unwrap_or_default();
            CloudHit { seen: newest, stamp, ..hit }
        };
        Ok(hits.into_iter().map(told).collect())
    }

    /// The newest feed entry of each row that somebody else changed beyond our cursor and beyond what the row has taken
    /// into account, by item. A statement of its own, after all the locks: what committed before them is seen.
    async fn touched_since(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        by_table: &BTreeMap<usize, Vec<usize>>,
    ) -> Result<BTreeMap<usize, Touched>> {
        let mut touched = BTreeMap::new();
        for (table_at, members) in by_table {
            let (table, cloud_table) = &frame.tables[*table_at];
            let keys =
                arrays(cloud_table, &table.key, |at, part| &items[members[at]].key[part], members.len());
            let seen: Vec<i64> = members.iter().map(|at| items[*at].seen).collect();
            let mut params = as_params(&keys);
            params.extend([&seen as &dyn Param, &frame.cursor.xid, &frame.cursor.id, &frame.device]);
            for row in self.query(&cloud::touched(table, cloud_table), &params, Phase::Pull).await? {
                let by_others = Touched { newest: row.cell("newest")?, stamp: row.cell("stamp")? };
                touched.insert(members[position(&row, members.len())?], by_others);
            }
        }
        Ok(touched)
    }

    async fn read_hits(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        touched: &BTreeMap<usize, Touched>,
    ) -> Result<Vec<CloudHit>> {
        let hit = |(item, touched): (&usize, &Touched)| CloudHit {
            item: *item,
            row: None,
            seen: touched.newest,
            stamp: touched.stamp,
        };
        let mut hits: Vec<CloudHit> = touched.iter().map(hit).collect();
        for (table_at, (table, cloud_table)) in frame.tables.iter().enumerate() {
            let members: Vec<usize> =
                (0..hits.len()).filter(|at| items[hits[*at].item].table == table_at).collect();
            if members.is_empty() {
                continue;
            }
            let keys: Vec<Vec<String>> =
                members.iter().map(|at| key_text(&items[hits[*at].item].key)).collect();
            for (at, row) in self.fetch_rows(table, cloud_table, &table.key, &keys, Rows::Locked).await? {
                hits[members[at]].row = Some(row);
            }
        }
        Ok(hits)
    }

    async fn record_conflicts(&self, frame: RoundFrame<'_>, conflicts: &[ConflictRow]) -> Result<()> {
        if conflicts.is_empty() {
            return Ok(());
        }
        let (device, arrays) = (parse_uuid(frame.device)?, conflict_arrays(conflicts));
        self.execute(CONFLICTS, &conflict_params(&device, &arrays), Phase::Pull).await.map(|_| ())
    }

    /// Runs the given items, in order, set by set, and brings out the errors of deferred constraints.
    async fn run(
        &self,
        frame: RoundFrame<'_>,
        items: &[RoundItem],
        order: &[usize],
        rings: &[Ring],
        mut ahead: Ahead<'_>,
    ) -> std::result::Result<Taken, Trouble> {
        let mut taken = Taken::default();
        let mut already_there = vec![];
        let mut make_room = asides(frame, items, order);
        if !rings.is_empty() {
            let present = order.iter().copied().collect();
            make_room.extend(rings.iter().flat_map(|ring| ring.asides(frame, items, &present)));
        }
        let sets: Vec<_> = sets(frame, items, order).collect();
        let prepared = ahead.prepared;
        let is_prepared = |sql: &str| prepared.is_some_and(|prepared| prepared.contains_key(sql));
        // A transaction that has failed prepares nothing, and what makes room is sent by itself.
        if !make_room.is_empty() || !is_prepared(STAMPS) || !sets.iter().all(|set| is_prepared(&set.sql)) {
            self.send_ahead(&mut ahead).await?;
        }
        let known = self.prepared(STAMPS, &ahead).await?;
        // Ahead of the statement whose rows they are, and in the same breath.
        let stamped = async |members: &[usize], sql: &str, params: &[&dyn Param]| {
            let statement = self.attempt(self.client.statement(sql)).await?;
            let stamps = Stamps::of(members.iter().map(|at| &items[*at]));
            let params_of_stamps = stamps.params();
            let both = futures_util::future::join(
                self.client.ask(&known, &params_of_stamps),
                self.client.ask(&statement, params),
            );
            self.attempt(async { both.await.1 }).await
        };
        for aside in make_room {
            let (table, cloud_table) = aside.table;
            let keys = arrays(
                cloud_table,
                &table.key,
                |at, part| &items[aside.members[at]].key[part],
                aside.members.len(),
            );
            let params = as_params(&keys);
            let changed = stamped(&aside.members, &aside.sql, &params).await?.changed;
            // What a trigger made of them now is no change any more when their values come.
            taken.stored_otherwise |= aside.in_ring && changed > 0;
            if cloud_table.feed {
                taken.feed_entries += i64::try_from(changed).unwrap_or(i64::MAX);
            }
        }
        let mut statements = vec![];
        for set in &sets {
            statements.push(self.prepared(&set.sql, &ahead).await?);
        }
        let arrays: Vec<_> = sets.iter().map(|set| set.arrays()).collect();
        let params: Vec<_> = arrays.iter().map(|arrays| as_params(arrays)).collect();
        let stamps: Vec<_> =
            sets.iter().map(|set| Stamps::of(set.members.iter().map(|at| &items[*at]))).collect();
        let stamps: Vec<_> = stamps.iter().map(|stamps| stamps.params()).collect();
        // All on their way at once: after the first that fails the others do nothing.
        let mut flight: FuturesOrdered<Exchange<'_>> = FuturesOrdered::new();
        let client = &self.client;
        let batch =
            |sql: &'static str| async move { client.batch_execute(sql).await.map(|()| Answer::default()) };
        let is_ahead = !ahead.sql.is_empty();
        if is_ahead {
            flight.push_back(Box::pin(batch(ahead.sql)));
        }
        for ((statement, params), stamps) in statements.iter().zip(&params).zip(&stamps) {
            flight.push_back(Box::pin(self.client.ask(&known, stamps)));
            flight.push_back(Box::pin(self.client.ask(statement, params)));
        }
        flight.push_back(Box::pin(batch("SET CONSTRAINTS ALL IMMEDIATE")));
        let mut next = async || {
            let landed = async { flight.next().await.unwrap_or_else(|| Ok(Answer::default())) };
            self.attempt(landed).await
        };
        if is_ahead {
            next().await?;
        }
        for set in &sets {
            match next().await {
                // The rows' own statement says what is the matter.
                Ok(_) | Err(Trouble::Refused { .. }) => {}
                Err(failed) => return Err(failed),
            }
            set.judge(&next().await?, &mut taken, &mut already_there)?;
        }
        next().await?;
        drop(flight);
        taken.hits = self.already_there(frame, items, &already_there).await?;
        for hit in &taken.hits {
            let item = &items[hit.item];
            let (table, cloud_table) = &frame.tables[item.table];
            let Some(row) = &hit.row else {
                return Err(match cloud_table.hiding {
                    Hiding::None => discarded(&table.name),
                    _ => hidden(&table.name),
                });
            };
            let is_same = |(part, c): (usize, &usize)| {
                let (affinity, kind) = (table.columns[*c].affinity(), &cloud_table.columns[*c].kind);
                let stored = |value: &CloudValue| from_cloud(value.clone(), affinity, kind);
                stored(&row[*c]).identical(&stored(&item.key[part]))
            };
            if !table.key.iter().enumerate().all(is_same) {
                return Err(Trouble::Refused {
                    sqlstate: SAME_ROW.into(),
                    message: format!("in the cloud table {} another key counts as the same", table.name),
                    constraint: None,
                });
            }
        }
        Ok(taken)
    }

    /// What has to be there before anything else is asked.
    async fn send_ahead(&self, ahead: &mut Ahead<'_>) -> Result<()> {
        match std::mem::take(&mut ahead.sql) {
            "" => Ok(()),
            sql => self.batch(sql, Phase::Pull).await,
        }
    }

    async fn prepared(
        &self,
        sql: &str,
        ahead: &Ahead<'_>,
    ) -> std::result::Result<client::Statement, Trouble> {
        match ahead.prepared.and_then(|prepared| prepared.get(sql)) {
            Some(statement) => Ok(statement.clone()),
            None => self.attempt(self.client.statement(sql)).await,
        }
    }

    /// One exchange within a round, whose error is either the data's or the link's.
    async fn attempt<T>(
        &self,
        work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> std::result::Result<T, Trouble> {
        match self.patiently(0, Box::pin(work)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.trouble(&error)),
            Err(silent) => Err(Trouble::Failed(silent)),
        }
    }

    /// What an error of a statement that carries rows means.
    fn trouble(&self, error: &tokio_postgres::Error) -> Trouble {
        let failure = self.cloud.explain(error, Phase::Round);
        match error.as_db_error() {
            // Said of our own statement, not of somebody's trigger: the table is not what it was prepared as.
            // No row is to blame; the next settlement prepares it anew.
            Some(server)
                if matches!(server.code().code(), "42P01" | "42703" | "3F000")
                    && server.where_().is_none() =>
            {
                Trouble::Failed(CloudFailure { class: FailureClass::Transient, ..failure })
            }
            Some(server) if failure.class == FailureClass::DataRefused => Trouble::Refused {
                sqlstate: sqlstate_of(server).to_owned(),
                message: self.cloud.all_said_by(server),
                constraint: server.constraint().map(one_line),
            },
            Some(_) if failure.sqlstate.as_deref() == Some(QUERY_CANCELED) => Trouble::TooSlow(failure),
            _ => Trouble::Failed(failure),
        }
    }
}

fn by_table(items: &[RoundItem], members: impl Iterator<Item = usize>) -> BTreeMap<usize, Vec<usize>> {
    let mut by_table: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in members {
        by_table.entry(items[at].table).or_default().push(at);
    }
    by_table
}

/// Two rows of this file are one in the cloud.
const SAME_ROW: &str = "21000";

/// What the feed says of a row that others changed.
#[derive(Debug, Clone, Copy, Default)]
struct Touched {
    newest: i64,
    stamp: Option<i64>,
}

/// What goes ahead of a part of a round, in the same breath with it where nothing has to be asked before: a question over a
/// slow link costs one round trip then.
#[derive(Default, Clone, Copy)]
struct Ahead<'a> {
    /// What ends the part before, or nothing.
    sql: &'static str,
    /// What this connection was told of before any part could fail.
    prepared: Option<&'a HashMap<String, client::Statement>>,
}

/// A statement on its way.
type Exchange<'a> =
    std::pin::Pin<Box<dyn Future<Output = std::result::Result<Answer, tokio_postgres::Error>> + 'a>>;

/// What taking a set of items came to.
#[derive(Default)]
struct Taken {
    /// The rows that were left out.
    hits: Vec<CloudHit>,
    /// Deletions that stay behind.
    staying: Vec<usize>,
    /// Others that do.
    unasked: Vec<usize>,
    /// Whether the cloud holds something other than what was sent.
    stored_otherwise: bool,
    /// How many entries the feed has if nothing else was caused.
    feed_entries: i64,
    /// The tables of which it is taken for granted that they store what they are sent.
    for_granted: Vec<u32>,
}

impl Taken {
    /// The rows that are not in the cloud as they were sent, by item.
    fn left(&self) -> HashSet<usize> {
        let stay = self.staying.iter().chain(&self.unasked).copied();
        self.hits.iter().map(|hit| hit.item).chain(stay).collect()
    }

    fn add(&mut self, part: Taken) {
        self.hits.extend(part.hits);
        self.staying.extend(part.staying);
        self.stored_otherwise |= part.stored_otherwise;
        self.feed_entries += part.feed_entries;
        self.for_granted.extend(part.for_granted);
    }
}

/// Rows that have to make room before the round's statements run.
struct Aside<'a> {
    table: &'a (Table, CloudTable),
    sql: String,
    members: Vec<usize>,
    /// Whether it is one of a [`Ring`].
    in_ring: bool,
}

/// What has to make room in a round, in the order in which it does.
fn asides<'a>(frame: RoundFrame<'a>, items: &[RoundItem], order: &[usize]) -> Vec<Aside<'a>> {
    let mut asides = vec![];
    step_aside(frame, items, order, &mut asides);
    let_go(frame, items, order, &mut asides);
    asides
}

/// Rows that give up values by which others refer to them let go of them first, when somebody may take them over:
/// PostgreSQL checks such values row by row, not at the end.
fn step_aside<'a>(frame: RoundFrame<'a>, items: &[RoundItem], order: &[usize], asides: &mut Vec<Aside<'a>>) {
    for (table_at, of) in frame.tables.iter().enumerate() {
        let (table, cloud_table) = of;
        let mut columns = referred_to(frame, table).concat();
        columns.sort_unstable();
        columns.dedup();
        for column in columns.into_iter().filter(|c| !table.is_key(*c)) {
            let Some(sql) = cloud::step_aside(table, cloud_table, column) else { continue };
            let ours = || order.iter().copied().filter(|at| items[*at].table == table_at);
            let changes =
                |at: &usize| matches!(&items[*at].op, Op::Update(columns) if columns.contains(&column));
            let members: Vec<usize> =
                ours().filter(|at| changes(at) || items[*at].op == Op::Delete).collect();
            let takers: Vec<usize> = ours().filter(|at| changes(at) || items[*at].op == Op::Insert).collect();
            if !(members.is_empty() || takers.is_empty() || members == takers && members.len() == 1) {
                asides.push(Aside { table: of, sql, members, in_ring: false });
            }
        }
    }
}

/// Rows that go let go first of those that go before them: `RESTRICT` is not put off to the end, and in a circle of tables
/// there is no order that pleases everybody.
fn let_go<'a>(frame: RoundFrame<'a>, items: &[RoundItem], order: &[usize], asides: &mut Vec<Aside<'a>>) {
    let goes = |table_at: usize| {
        let is_there = move |at: &usize| items[*at].table == table_at && items[*at].op == Op::Delete;
        order.iter().copied().filter(is_there).collect::<Vec<usize>>()
    };
    for (table_at, of) in frame.tables.iter().enumerate() {
        let (table, cloud_table) = of;
        for foreign in table.foreign_keys.iter().filter(|key| key.on_delete == "RESTRICT") {
            let before =
                |(parent, _): &(Table, CloudTable)| parent.name.eq_ignore_ascii_case(&foreign.parent);
            let goes_before =
                frame.tables.iter().position(before).filter(|parent| *parent > table_at).map(goes);
            let free = |c: &usize| !table.columns[*c].not_null && !table.is_key(*c);
            let (Some(parents), Some(column)) = (goes_before, foreign.columns.iter().copied().find(free))
            else {
                continue;
            };
            let members = goes(table_at);
            if !(parents.is_empty() || members.is_empty()) {
                asides.push(Aside {
                    table: of,
                    sql: cloud::let_go(table, cloud_table, column),
                    members,
                    in_ring: false,
                });
            }
        }
    }
}

/// A value that the column's type, or the cloud's own computation, makes something else of.
fn not_as_sent(table: &Table, cloud_table: &CloudTable, column: usize, sent: &CloudValue) -> Trouble {
    let CloudColumn { exact, generated, .. } = &cloud_table.columns[column];
    let name = &table.columns[column].name;
    let message = if *generated {
        format!("column {name}: the cloud computes it, and has come to another value: it can only be read")
    } else {
        format!("column {name}: {}", changed_by_type(sent, exact))
    };
    // "Data exception".
    Trouble::Refused { sqlstate: "22000".into(), message, constraint: None }
}

fn hidden(table: &str) -> Trouble {
    Trouble::Refused {
        sqlstate: "02000".into(),
        message: format!("row-level security of the cloud table {table} hides the row"),
        constraint: None,
    }
}

fn discarded(table: &str) -> Trouble {
    Trouble::Refused {
        sqlstate: "02000".into(),
        message: format!("a trigger of the cloud table {table} discarded the row"),
        constraint: None,
    }
}

/// The order in which a round runs its rows: what comes or changes, parents first, then what goes, children first.
/// Within a table by kind, so that equal ones make one statement.
fn in_order(items: &[RoundItem], chosen: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).filter(|at| chosen(*at)).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&items[*a], &items[*b]);
        match (a.op == Op::Delete, b.op == Op::Delete) {
            (true, true) => b.table.cmp(&a.table),
            (false, false) => a.table.cmp(&b.table).then_with(|| a.op.cmp(&b.op)),
            (a, b) => a.cmp(&b),
        }
    });
    order
}

/// A refusal as one line.
fn said(failure: &CloudFailure) -> String {
    match &failure.remedy {
        Some(remedy) => format!("{}; {remedy}", failure.detail),
        None => failure.detail.clone(),
    }
}

struct FoundColumn {
    column: CloudColumn,
    demanded: bool,
    table_oid: u32,
    definition: String,
}

impl FoundColumn {
    fn read(row: &Row) -> Result<Self> {
        let cast: String = row.cell("cast_name")?;
        let kind: String = row.cell("kind")?;
        let modifier: i32 = row.cell("modifier")?;
        let kind = match kind.as_str() {
            "int2" => CloudType::Int2,
            "int4" => CloudType::Int4,
            "int8" => CloudType::Int8,
            "float4" => CloudType::Float4,
            "float8" => CloudType::Float8,
            "bool" => CloudType::Bool,
            "text" | "varchar" => CloudType::Text,
            "bytea" => CloudType::Bytea,
            "numeric" => CloudType::Numeric(numeric_modifier(modifier)),
            "date" => CloudType::Date,
            "timestamp" => CloudType::Timestamp,
            "timestamptz" => CloudType::TimestampTz,
            "json" => CloudType::Json,
            "jsonb" => CloudType::Jsonb,
            "uuid" => CloudType::Uuid,
            "array" => {
                let element = match row.cell("element")? {
                    "number" => Element::Number,
                    "bool" => Element::Bool,
                    _ => Element::Text,
                };
                CloudType::Array(element, row.cell("exact")?)
            }
            _ => CloudType::Other(cast.clone()),
        };
        Ok(Self {
            column: CloudColumn {
                kind,
                cast,
                exact: row.cell("exact")?,
                generated: row.cell("generated")?,
                nullable: row.cell("nullable")?,
                number: row.cell("number")?,
            },
            demanded: row.cell("demanded")?,
            table_oid: row.cell("table_oid")?,
            definition: row.cell("definition")?,
        })
    }
}

/// PostgreSQL packs precision and scale into one number (`src/backend/utils/adt/numeric.c`, `numerictypmodin`).
fn numeric_modifier(modifier: i32) -> Option<(u16, u16)> {
    let packed = u32::try_from(modifier).ok()?.checked_sub(4)?;
    let (precision, scale) = (u16::try_from(packed >> 16).ok()?, u16::try_from(packed & 0x7ff).ok()?);
    // Newer versions allow scales below zero and above the precision; those are PostgreSQL's to check.
    (scale <= precision).then_some((precision, scale))
}

/// What other rows refer to a table's rows by, apart from the primary key.
fn referred_to(frame: RoundFrame<'_>, table: &Table) -> Vec<Vec<usize>> {
    let mut found = table.referred_to(frame.tables.iter().map(|(child, _)| child));
    found.retain(|columns| !columns.iter().all(|c| table.is_key(*c)));
    found.sort();
    found.dedup();
    found
}

/// One array per column.
enum Array<'a> {
    Int(Vec<Option<i64>>),
    Float(Vec<Option<f64>>),
    Bool(Vec<Option<bool>>),
    Text(Vec<Option<&'a str>>),
    Bytes(Vec<Option<&'a [u8]>>),
}

fn arrays<'a>(
    cloud_table: &CloudTable,
    columns: &[usize],
    value_at: impl Fn(usize, usize) -> &'a CloudValue,
    rows: usize,
) -> Vec<Array<'a>> {
    columns
        .iter()
        .enumerate()
        .map(|(place, c)| {
            let values = (0..rows).map(|at| value_at(at, place));
            match cloud_table.columns[*c].kind.wire() {
                Wire::Int8 => Array::Int(
                    values.map(|v| if let CloudValue::Int(i) = v { Some(*i) } else { None }).collect(),
                ),
                Wire::Float8 => Array::Float(
                    values.map(|v| if let CloudValue::Float(r) = v { Some(*r) } else { None }).collect(),
                ),
                Wire::Bool => Array::Bool(
                    values.map(|v| if let CloudValue::Bool(b) = v { Some(*b) } else { None }).collect(),
                ),
                Wire::Text => Array::Text(
                    values
                        .map(|v| if let CloudValue::Text(t) = v { Some(t.as_str()) } else { None })
                        .collect(),
                ),
                Wire::Bytea => Array::Bytes(
                    values
                        .map(|v| if let CloudValue::Bytes(b) = v { Some(b.as_slice()) } else { None })
                        .collect(),
                ),
            }
        })
        .collect()
}

fn as_params<'a>(arrays: &'a [Array<'a>]) -> Vec<&'a dyn Param> {
    arrays
        .iter()
        .map(|array| -> &dyn Param {
            match array {
                Array::Int(array) => array,
                Array::Float(array) => array,
                Array::Bool(array) => array,
                Array::Text(array) => array,
                Array::Bytes(array) => array,
            }
        })
        .collect()
}

/// A key in PostgreSQL's text, as the feed has it.
pub fn key_text(key: &[CloudValue]) -> Vec<String> {
    key.iter().map(|part| crate::core::value::to_text(part).unwrap_or_default()).collect()
}

/// The key by which this file knows a row, from PostgreSQL's text of it.
fn local_key(table: &Table, cloud_table: &CloudTable, key: &[String]) -> Option<Vec<Value>> {
    let part = |(c, text): (&usize, &String)| {
        let kind = &cloud_table.columns[*c].kind;
        from_text(text, kind).map(|value| from_cloud(value, table.columns[*c].affinity(), kind))
    };
    (table.key.len() == key.len()).then(|| table.key.iter().zip(key).map(part).collect()).flatten()
}

fn local_key_of((table, cloud_table): &(Table, CloudTable), key: &[CloudValue]) -> Vec<Value> {
    let part = |(c, value): (&usize, &CloudValue)| {
        from_cloud(value.clone(), table.columns[*c].affinity(), &cloud_table.columns[*c].kind)
    };
    table.key.iter().zip(key).map(part).collect()
}

fn decode(row: &Row, cloud_table: &CloudTable) -> Result<Vec<CloudValue>> {
    (0..cloud_table.columns.len())
        .map(|c| {
            let at = c + 1;
            let kind = row.columns().get(at).map(|column| column.type_().clone());
            let value = match (cloud_table.columns[c].kind.wire(), kind) {
                (Wire::Int8, Some(Type::INT8)) => {
                    row.try_get::<_, Option<i64>>(at).map(|v| v.map(CloudValue::Int))
                }
                (Wire::Float8, Some(Type::FLOAT8)) => {
                    row.try_get::<_, Option<f64>>(at).map(|v| v.map(CloudValue::Float))
                }
                (Wire::Bool, Some(Type::BOOL)) => {
                    row.try_get::<_, Option<bool>>(at).map(|v| v.map(CloudValue::Bool))
                }
                (Wire::Text, Some(Type::TEXT)) => {
                    row.try_get::<_, Option<String>>(at).map(|v| v.map(CloudValue::Text))
                }
                (Wire::Bytea, Some(Type::BYTEA)) => {
                    row.try_get::<_, Option<Vec<u8>>>(at).map(|v| v.map(CloudValue::Bytes))
                }
                (wire, kind) => return Err(unexpected(&format!("asked for {wire:?}, got {kind:?}"))),
            };
            value.map(|v| v.unwrap_or(CloudValue::Null)).map_err(|error| unexpected(&error.to_string()))
        })
        .collect()
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|error| unexpected(&format!("'{text}' is no UUID: {error}")))
}

fn unexpected(what: &str) -> CloudFailure {
    CloudFailure::new(FailureClass::Transient, format!("the server's answer makes no sense: {what}"))
}

#[cfg(test)]
mod tests {
    use tokio_postgres::NoTls;

    use super::dial::{Line, Socket};
    use super::*;

    /// The grant that is asked for is the one for what is missing, also where an app's table is called as one of ours, or as its
    /// database.
    #[test]
    fn a_missing_grant_is_told_by_what_it_is_missing_for() {
        let cloud = Cloud::new(CloudOptions {
            host: "127.0.0.1".into(),
            port: 5432,
            database: "shop".into(),
            user: "app".into(),
            password: None,
            schema: "public".into(),
            timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(1),
            pool_max: 2,
            application_name: "tidewater".into(),
            add_columns: true,
            link: LinkOptions::default(),
        })
        .unwrap();
        let (ours, database, schema, row) = (
            "another role made schema tidewater",
            "GRANT CONNECT",
            "GRANT USAGE, CREATE ON SCHEMA \"public\"",
            "let role \"app\"",
        );
        for (message, sql, remedy) in [
            ("permission denied for table devices", include_str!("sql/postgres/settle.sql"), ours),
            ("permission denied for function register", "SELECT tidewater.register($1, $2)", ours),
            ("permission denied for schema tidewater", include_str!("sql/postgres/look.sql"), ours),
            ("permission denied for table devices", "SELECT 0 FROM \"public\".\"devices\"", row),
            ("permission denied for table changes", "SELECT 0 FROM \"public\".\"changes\"", row),
            (
                "permission denied for database shop",
                "CREATE SCHEMA IF NOT EXISTS tidewater; tidewater.identity",
                database,
            ),
            ("permission denied for database \"shop\"", "", database),
            ("permission denied for table shopping", "SELECT 0 FROM \"public\".\"shopping\"", row),
            ("permission denied for table shop", "SELECT 0 FROM \"public\".\"shop\"", row),
            ("permission denied for schema public", "CREATE TABLE \"public\".\"shop\" ()", schema),
            ("keine Berechtigung für Schema public", "CREATE TABLE \"public\".\"shop\" ()", schema),
        ] {
            let told = cloud.missing_grant(message, sql);
            assert!(told.starts_with(remedy), "{message}: {told}");
        }
    }

    /// Of what a log-in can end with, PostgreSQL's refusals and its demand of a password are its own: they are not asked
    /// for again at another address of the host. A stranger, silence and an end are not.
    #[tokio::test]
    async fn what_postgresql_says_is_told_from_what_it_does_not() {
        let refusal = b"E\0\0\0\x23SFATAL\0VFATAL\0C57P03\0Mnot now\0\0";
        let asks_password = b"R\0\0\0\x08\0\0\0\x03";
        for (answer, says) in [
            (&refusal[..], true),
            (asks_password, true),
            (b"SSH-2.0-OpenSSH_9.2\r\n", false),
            (b"R", false),
            (b"", false),
        ] {
            let mut config = tokio_postgres::Config::new();
            config.user("till");
            let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut theirs, answer).await.unwrap();
            drop(theirs);
            let error = config.connect_raw(Line::new(Socket::Unix(ours)), NoTls).await.err().unwrap();
            assert_eq!(is_postgresqls(&error), says, "{error:?}");
        }
    }
}
