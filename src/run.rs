//! Running as a process: the database, the control socket, HTTP, what the service manager is told, settings that are read
//! again, and an orderly end.

use std::future::Future;
use std::rc::Rc;

use slog::{Logger, debug, error, info, warn};
use tidewater_actors::core::from_cloud::Wanted;

use crate::control::{Checked, ControlServer, Request, Response};
use crate::database::Database;
use crate::error::Error;
use crate::service::ServiceManager;
use crate::settings::{Change, Settings, SettingsError, Sources};
use crate::signals::Hangups;
use crate::telemetry::Levels;

/// What it takes to read the settings again while it runs.
#[derive(Debug)]
pub struct Reloading {
    /// Where they come from.
    pub sources: Sources,
    /// When that is asked for.
    pub asked: Hangups,
    /// What the log lets through.
    pub levels: Levels,
}

/// Runs until `shutdown` resolves or supervision gives up, tells `manager` how it is, and reads the settings again when
/// `reloading` is asked to. Must be awaited in a tokio or
/// actix runtime.
///
/// # Errors
/// When the file cannot be opened, and [`Error::Failed`] when supervision gave up.
pub async fn run(
    settings: Settings,
    log: Logger,
    manager: Option<ServiceManager>,
    reloading: Option<Reloading>,
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
    let reload = async {
        match &reloading {
            Some(reloading) => reloading.go_on(&db, &log).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        error = db.failed() => Err(error),
        () = serve => Ok(()),
        () = answer => Ok(()),
        () = accompany => Ok(()),
        () = reload => Ok(()),
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

impl Reloading {
    /// Each time that it is asked, for ever.
    async fn go_on(&self, db: &Database, log: &Logger) {
        loop {
            self.asked.next().await;
            match self.sources.build() {
                Ok(read) => self.take(db, &read, log).await,
                Err(error) => complain(&error, log),
            }
        }
    }

    /// One line per key, and one where nothing changed.
    async fn take(&self, db: &Database, read: &Settings, log: &Logger) {
        let reload = match db.reload(read).await {
            Ok(reload) => reload,
            Err(error) => return error!(log, "❌ The settings cannot be read again: {error}"),
        };
        self.levels.set(&reload.settings.log);
        for Change { key, before, after, origin } in &reload.taken {
            info!(log, "🔄 {key} = {after:?} from now on, not {before:?} ({origin})");
        }
        if reload.password_changed {
            info!(log, "🔄 The password file has another password: the cloud is checked with it");
        }
        for Change { key, origin, .. } in &reload.waiting {
            warn!(log, "⚠️  {key} was changed ({origin}): restart to use it");
        }
        if reload.taken.is_empty() && reload.waiting.is_empty() && !reload.password_changed {
            info!(log, "🔄 The settings were read again: nothing has changed");
        }
    }
}

fn complain(error: &SettingsError, log: &Logger) {
    error!(log, "❌ The settings are as they were, because those that were read now cannot be used: {error}");
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
        Request::Config => Response::of(&db.settings_now().effective()),
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
