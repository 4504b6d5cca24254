//! Running as a process: the database, the control socket, HTTP, what the service manager is told, and an orderly end.

use std::future::Future;
use std::rc::Rc;

use slog::{Logger, debug, info, warn};
use tidewater_actors::core::from_cloud::Wanted;

use crate::control::{Checked, ControlServer, Request, Response};
use crate::database::Database;
use crate::error::Error;
use crate::service::ServiceManager;
use crate::settings::Settings;

/// Runs until `shutdown` resolves or supervision gives up, and tells `manager` how it is. Must be awaited in a tokio or
/// actix runtime.
///
/// # Errors
/// When the file cannot be opened, and [`Error::Failed`] when supervision gave up.
pub async fn run(
    settings: Settings,
    log: Logger,
    manager: Option<ServiceManager>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let socket = settings.sqlite.control_socket();
    // Nobody has opened the file to make tables in it.
    let db = Database::open_with(settings, log.clone(), Wanted::WhenEmpty).await?;
    let control = match ControlServer::bind(socket, log.clone()) {
        Ok(control) => Some(control.serve(handler(db.clone()))),
        Err(error) => {
            warn!(log, "⚠️  Verbs such as `status` cannot reach this supervisor: {error}");
            None
        }
    };
    #[cfg(feature = "http")]
    let mut http = crate::http::Listener::start(&db, &log);
    let answer = async {
        #[cfg(feature = "http")]
        if let Some(http) = &mut http {
            http.serve(&log).await;
        }
        std::future::pending::<()>().await;
    };
    let serve = async {
        match control {
            Some(control) => {
                if let Err(error) = control.await {
                    warn!(log, "⚠️  The control socket failed: {error}");
                }
                std::future::pending::<()>().await;
            }
            None => std::future::pending().await,
        }
    };
    let accompany = async {
        match &manager {
            Some(manager) => manager.accompany(async || db.status_summary().await, &log).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        error = db.failed() => Err(error),
        () = serve => Ok(()),
        () = answer => Ok(()),
        () = accompany => Ok(()),
    };
    if let Some(manager) = &manager
        && let Err(error) = manager.stopping(db.shutdown_bound(), ended.as_ref().err().map(|it| it as _))
    {
        debug!(log, "The service manager cannot be told of the end: {error}");
    }
    #[cfg(feature = "http")]
    if let Some(http) = http {
        http.stop().await;
    }
    let stopped = db.shutdown().await;
    // Why it had to end says more than that somebody is still busy.
    ended.and(stopped)?;
    info!(log, "✅ Stopped");
    Ok(())
}

fn handler(db: Database) -> crate::control::Handler {
    Rc::new(move |request| {
        let db = db.clone();
        Box::pin(async move { obey(&db, request).await })
    })
}

/// Does what a verb asks for, whichever way it came.
pub(crate) async fn obey(db: &Database, request: Request) -> Response {
    match request {
        Request::Status => Response::of(&db.status_summary().await),
        Request::Config => Response::of(&db.settings().effective()),
        Request::Check => {
            let proxy_required = db.settings().proxy.require;
            answer(db.detect_proxy(true).await.map(|detection| Checked { detection, proxy_required }))
        }
        Request::Reset => done(db.reset().await),
        Request::Circuit { forced } => done(db.force_circuit(forced).await),
        Request::Flush { wait } | Request::Warm { wait } => answer(db.sync_counted(wait).await),
        Request::RetryParked { which } => answer(db.retry_parked(which).await),
        Request::DiscardParked { ids } => answer(db.discard_parked(ids).await),
        Request::RestoreConflicts { ids } => answer(db.restore_conflicts(&ids).await),
        Request::Adopt { how } => answer(db.adopt(how).await),
        Request::Backup { path, overwrite } => answer(db.copy_to(path, overwrite).await),
        Request::Doctor => answer(db.tell_doctor().await),
    }
}

/// What came of it, as it is told.
pub(crate) fn answer(outcome: Result<impl serde::Serialize, Error>) -> Response {
    outcome.map_or_else(|error| refused(&error), |value| Response::of(&value))
}

fn done(outcome: Result<(), Error>) -> Response {
    outcome.map_or_else(|error| refused(&error), |()| Response::Ok(serde_json::json!({ "done": true })))
}

fn refused(error: &Error) -> Response {
    Response::failure(error.to_string(), error.retry_helps())
}
