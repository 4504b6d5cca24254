//! One new connection: its password, whether it speaks TLS, and the log-in.
//!
//! ```text
//! password ─▶ dial ─▶ for each address: TLS wanted? ─▶ log in ─▶ refused, and there is a newer password? ─▶ once more
//!                                                                  └ refused for its settings: a pooler; once more, without
//!    └ by a command that has to be run: only when somebody has taken the connection, which waits for it
//! ```
//!
//! Where TLS is wanted, nothing of the log-in is sent before the server has shown who it is: the driver asks for TLS, and
//! ends where the answer is no, whoever gave it. What the server says is watched by a [`Guard`], within TLS if that is spoken.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Connect;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, Connection, Error, NoTls};

use super::client::Way;
use super::dial::{Dialer, Line, Obstacle};
use super::ears::{Ears, drive};
use super::guard::{Bounds, Excess, Guard, GuardedTls, Moved};
use super::password::{PasswordSource, Passwords};
use super::tls::{self, TlsOptions};
use crate::core::failure::{CloudFailure, FailureClass};

/// What protects a connection, what it logs in with, and what it is bounded by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkOptions {
    /// TLS.
    pub tls: TlsOptions,
    /// Where the password comes from.
    pub password: PasswordSource,
    /// Whether it may be sent as it is, where a server asks for that over TCP without TLS.
    pub password_in_clear: bool,
    /// The longest message, and so the largest row, that is taken from a server, in bytes.
    pub message_bytes_max: usize,
    /// How long a connection that nobody uses is kept beside another one.
    pub idle: Duration,
    /// After so long without an answer it is asked on another connection whether this one is still being worked for; where it is
    /// not, it is given up after the same time again.
    pub silence: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            tls: TlsOptions::default(),
            password: PasswordSource::default(),
            password_in_clear: false,
            message_bytes_max: 256 << 20,
            idle: Duration::from_secs(30),
            silence: Duration::from_secs(10),
        }
    }
}

type Connected = (tokio_postgres::Client, JoinHandle<()>);

/// Who makes the pool's connections.
pub(super) struct Door {
    pub(super) dialer: Dialer,
    pub(super) tls: Arc<TlsOptions>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) way: Arc<Way>,
    pub(super) ears: Arc<Ears>,
    /// What sessions are set to, as options of the log-in.
    pub(super) settings: String,
    pub(super) bounds: Bounds,
    pub(super) last_words: LastWords,
    pub(super) moved: Moved,
}

/// What ended a connection that was in use, of which its users learn no more than that it ended. Only what PostgreSQL would not
/// have said; of a pool's connections the last one's, until somebody asks or a new one is made.
#[derive(Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<Option<Error>>>);

impl LastWords {
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl Connect for Door {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<Connected, Error>> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move {
            // Where nobody is, no program is run: it may need the same network, and what it then says is not what matters.
            let waiting = match self.passwords.is_at_hand() {
                true => None,
                false => self.dialer.dial(|line| reach(&config, line), super::is_postgresqls).await?,
            };
            drop(self.last_words.take());
            let password = match self.passwords.get().await {
                Ok(password) => password,
                Err(failure) => return fail(&config, failure).await,
            };
            let mut entered = self.enter(&config, password.as_deref(), waiting).await;
            if entered.as_ref().is_err_and(refuses_settings) {
                self.way.found_shared();
                entered = self.enter(&config, password.as_deref(), None).await;
            }
            match entered {
                Err(error) if is_refusal(&error) => {
                    match self.passwords.other_than(password.as_deref()).await {
                        Ok(Some(other)) => self.enter(&config, Some(&other), None).await,
                        Ok(None) => Err(error),
                        Err(failure) => fail(&config, failure).await,
                    }
                }
                ended => ended,
            }
        })
    }
}

/// A connection on which nothing was said yet.
async fn reach(config: &Config, line: Line) -> Result<Option<Line>, Error> {
    if line.is_nowhere() {
        return plainly(config, line).await.map(|_| None);
    }
    Ok(Some(line))
}

impl Door {
    /// Logs in, on the connection that has waited if there is one.
    async fn enter(
        &self,
        config: &Config,
        password: Option<&str>,
        waiting: Option<Line>,
    ) -> Result<Connected, Error> {
        let mut config = config.clone();
        if let Some(password) = password {
            config.password(password);
        }
        let config = &config;
        if let Some(line) = waiting {
            match timeout(self.dialer.limit, self.log_in(config, line)).await {
                Ok(Err(error)) if !super::is_postgresqls(&error) => {}
                Ok(ended) => return ended,
                Err(_) => {}
            }
            // Given up by the other side meanwhile, or at the wrong one of several addresses.
        }
        self.dialer.dial(|line| self.log_in(config, line), super::is_postgresqls).await
    }

    /// Logs in, with settings of the session as long as it is not known that sessions are shared.
    async fn log_in(&self, config: &Config, line: Line) -> Result<Connected, Error> {
        if self.way.is_shared() {
            return self.log_in_as(config, line).await;
        }
        let mut config = config.clone();
        config.options(&self.settings);
        self.log_in_as(&config, line).await
    }

    async fn log_in_as(&self, config: &Config, line: Line) -> Result<Connected, Error> {
        if line.is_nowhere() || !self.tls.wanted(line.is_local()) {
            let bounds =
                Bounds { clear_password: self.bounds.clear_password || line.is_unix(), ..self.bounds };
            let config = with_mode(config, SslMode::Disable);
            let (client, connection) =
                config.connect_raw(Guard::new(line, bounds, self.moved.clone()), NoTls).await?;
            return Ok((client, self.drive(connection)));
        }
        // Files, which may be on a disk that does not answer.
        let (options, host) = (self.tls.clone(), self.dialer.host.clone());
        let client = tokio::task::spawn_blocking(move || tls::client(&options, &host)).await;
        let (mut client, name) = match client {
            Ok(Ok(client)) => client,
            Ok(Err(failure)) => return fail(config, *failure).await,
            Err(error) => {
                return fail(config, CloudFailure::new(FailureClass::CheckFailed, error.to_string())).await;
            }
        };
        let Ok(connector) = MakeTlsConnect::<Line>::make_tls_connect(&mut client, &name);
        let config = with_mode(config, SslMode::Require);
        let bounds = Bounds { clear_password: true, ..self.bounds };
        let connector = GuardedTls { connector, bounds, moved: self.moved.clone() };
        let (client, connection) = config.connect_raw(line.asking_for_tls(), connector).await?;
        Ok((client, self.drive(connection)))
    }

    /// The pool aborts this task when it drops the client, and the client learns of its end by itself: after the reason is
    /// known.
    fn drive<S, T>(&self, connection: Connection<S, T>) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (ears, last_words) = (self.ears.clone(), self.last_words.clone());
        tokio::spawn(async move {
            let mut connection = connection;
            if let Err(error) = drive(&mut connection, ears).await
                && (Excess::of(&error).is_some() || super::is_nonsense(&error))
            {
                last_words.keep(error);
            }
        })
    }
}

async fn plainly(config: &Config, line: Line) -> Result<Connected, Error> {
    let (client, connection) = with_mode(config, SslMode::Disable).connect_raw(line, NoTls).await?;
    Ok((client, tokio::spawn(async move { drop(connection.await) })))
}

/// Whether it is the settings of a session that a pooler does not take: those that share sessions cannot.
fn refuses_settings(error: &Error) -> bool {
    let code = error.code().map(SqlState::code);
    error.as_db_error().is_some_and(|server| server.message().contains("options"))
        && matches!(code, Some("08P01" | "0A000"))
}

fn with_mode(config: &Config, mode: SslMode) -> Config {
    let mut config = config.clone();
    config.ssl_mode(mode);
    config
}

/// The driver alone makes its errors: it gets a stream that fails with this one.
async fn fail(config: &Config, failure: CloudFailure) -> Result<Connected, Error> {
    plainly(config, Line::nowhere(Obstacle::Ours(Box::new(failure)))).await
}

/// A password that does not do, or what stands for it: PostgreSQL's own word for a wrong one is the first, and that of the
/// modules that it may leave the question to (PAM, as with tokens) the second.
fn is_refusal(error: &Error) -> bool {
    matches!(error.code(), Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION))
}
