//! The process's own server: bounded in everything, on a thread of its own.
//!
//! actix-web has one thread that accepts and one that answers; neither is the actors'. One connection is one request:
//! actix-web bounds how long the head of the first may take, but not that of the next one.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::http::KeepAlive;
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpServer, web};
use slog::{Logger, debug, info, warn};
use socket2::SockRef;

use super::{Hint, Token, guard, nothing_here, routes};
use crate::database::Database;

/// Connections that wait for a place.
const BACKLOG: u32 = 128;

/// What of an answer may wait in the system for a client to read it.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// How long a connection may take to end.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The end of the server; what is under way is cut off.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Those that count the journal, at once.
const BLOCKING_THREADS_MAX: usize = 4;

/// The server, while it runs.
pub(crate) struct Listener {
    /// Nothing once it has ended.
    server: Option<Server>,
    handle: ServerHandle,
}

impl Listener {
    /// Listens where the settings say; nowhere, after a line in the log, where that cannot be done.
    pub(crate) fn start(db: &Database, log: &Logger) -> Option<Self> {
        let http = &db.settings().http;
        let address = http.listen?;
        let token = match http.token_file.as_deref().map(Token::in_file).transpose() {
            Ok(token) => token,
            Err(error) if http.is_remote() => {
                warn!(
                    log,
                    "⚠️  No HTTP on {address} (http.listen), which takes a token (http.token_file): {error}"
                );
                return None;
            }
            Err(error) => {
                warn!(
                    log,
                    "⚠️  HTTP without actions and rows, which take a token (http.token_file): {error}"
                );
                None
            }
        };
        match Self::listen(db, address, token) {
            Ok((listener, listens)) => {
                db.answers_on(listens);
                if address.port() == 0 {
                    // Nobody else knows it.
                    info!(log, "HTTP on {}", listens);
                } else {
                    debug!(log, "HTTP on {}", listens);
                }
                Some(listener)
            }
            Err(error) => {
                warn!(
                    log,
                    "⚠️  No HTTP on {address} (http.listen): {error}; everything else works all the same"
                );
                None
            }
        }
    }

    fn listen(db: &Database, address: SocketAddr, token: Option<Token>) -> io::Result<(Self, SocketAddr)> {
        let http = &db.settings().http;
        let unread = http.request_timeout;
        let hint = match http.token_file.as_deref() {
            _ if token.is_none() => Hint::NoActions,
            // Everybody sees the page, and nobody from elsewhere needs to know how the files here are called.
            _ if http.is_remote() => Hint::TheFile,
            Some(file) => Hint::File(file),
            None => Hint::NoActions,
        };
        let routes = routes(db, token, http.is_remote(), hint);
        let app = move || {
            let otherwise = web::route().to(nothing_here).wrap(from_fn(guard::open));
            App::new().configure(routes.clone()).default_service(otherwise)
        };
        let server = HttpServer::new(app)
            .workers(1)
            .worker_max_blocking_threads(BLOCKING_THREADS_MAX)
            .max_connections(http.connections_max)
            .backlog(BACKLOG)
            .keep_alive(KeepAlive::Disabled)
            .client_request_timeout(http.request_timeout)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            // Whoever follows the events and goes is noticed at once.
            .h1_allow_half_closed(false)
            .disable_signals()
            .on_connect(move |stream, _| bound(stream, unread))
            .bind(address)?;
        let listens = server.addrs().first().copied().unwrap_or(address);
        let server = server.run();
        Ok((Self { handle: server.handle(), server: Some(server) }, listens))
    }

    /// Answers until it is stopped.
    pub(crate) async fn serve(&mut self, log: &Logger) {
        let Some(server) = &mut self.server else { return };
        if let Err(error) = server.await {
            warn!(log, "⚠️  HTTP failed: {error}");
        }
        self.server = None;
    }

    /// Ends it, and whatever it has under way.
    pub(crate) async fn stop(self) {
        let Self { server: Some(server), handle } = self else { return };
        let stopping = async { tokio::join!(handle.stop(false), server) };
        // Dropping it does the same, and does not wait.
        let _ = tokio::time::timeout(STOP_TIMEOUT, stopping).await;
    }
}

/// A client that does not read holds little, and not for ever.
fn bound(stream: &dyn Any, unread: Duration) {
    let Some(stream) = stream.downcast_ref::<TcpStream>() else { return };
    let socket = SockRef::from(stream);
    // Best effort: a system that refuses has bounds of its own.
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(unread));
    #[cfg(not(target_os = "linux"))]
    let _ = unread;
}
