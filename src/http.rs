//! What a browser, a probe and Prometheus are told over HTTP; and, for whoever has the token, what the verbs do.
//!
//! ```text
//! request ─▶ guard (Host, method, body; Origin, token) ─▶ /healthz, /readyz, /status ─▶ Looks ─▶ Database::status_summary
//!                                                         /metrics ─▶ Looks, Timings, the file's sizes
//!                                                         /events  ─▶ Database::availability, and a look each second
//!                                                         /flush, … ─▶ run::obey, as the control socket
//! ```
//!
//! Parts: [`configure`] and [`configure_with_actions`], the routes, for the own server and for an app's; `listener.rs`, the
//! own server, which only [`run`](crate::run()) starts; `guard.rs`, who may ask; `token.rs`, by which word; `looks.rs`, one
//! look for all who ask at once; `metrics.rs`, `events.rs`, `actions.rs`; `page.rs` with `page.html`.
//!
//! | route | answers |
//! | --- | --- |
//! | `/` | a page for people, which lives on the other routes |
//! | `/healthz` | 200 while every actor answers, otherwise 503 and which one does not; nothing that a cloud could change |
//! | `/readyz` | 200 or 503, with the reasons: [`Readiness`] |
//! | `/metrics` | OpenMetrics, or Prometheus' older text, as the `Accept` header prefers |
//! | `/status` | what `run_supervisor status --json` prints |
//! | `/history` | the availability and the rows since the process began, of a day at most; times in milliseconds since 1970 |
//! | `/events` | server-sent events, see below |
//! | `/proof` | to `?nonce=…`, what only somebody can say who knows the token: HMAC-SHA256 of `tidewater token …`; the page asks for it before it sends the token |
//! | `/parked`, `/conflicts` | with the token: what `parked --json` and `conflicts --json` print; `?table=`, `limit=`, `after=` and `before=` |
//! | `POST` `/check`, `/reset`, `/flush`, `/warm` | with the token: what the verbs do; the body is `{}`, or `{"wait":true}` for the last two |
//! | `POST` `/parked/retry` | with the token; `{"which":"all"}`, `{"which":{"table":"note"}}` or `{"which":{"ids":[3]}}` |
//! | `POST` `/parked/discard`, `/conflicts/restore` | with the token; `{"ids":[3]}` |
//!
//! What an action answers is what its verb prints with `--json`. Where it could not be done, that is
//! `{"error":{"message":…,"retry":…}}` with 503 when asking again can help, otherwise 422.
//!
//! `/events` begins with the whole state and goes on with what changes: `availability` (with its epoch) at once; `circuit`,
//! `sync` and `counts` at most once a second. Each has a JSON object; a comment comes when nothing else does.
//!
//! Closed by default: loopback only, and only a `Host` that is loopback's or in `http.hosts`, so that no web page can make a
//! browser ask on its behalf (DNS rebinding). What changes something or shows rows takes the [`Token`] in a header, which no
//! other page's script knows, comes from no page of another `Origin`, and is no form. Looking takes no longer than a look, some
//! two seconds, and nothing is buffered for a client that does not read.

mod actions;
mod events;
mod guard;
mod listener;
mod looks;
mod metrics;
mod page;
mod token;

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ReqData, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use tidewater_actors::messages::Readiness;
use tokio::sync::Semaphore;

use self::looks::Looks;
use self::page::{Hint, Page};
use crate::database::Database;
use crate::service;

pub(crate) use self::listener::Listener;
pub use self::token::{Token, TokenError};

/// What the routes share, across the threads of a server.
struct Shared {
    db: Database,
    looks: Looks,
    page: Page,
    /// Without one there are no actions, and nobody sees rows.
    token: Option<Token>,
    /// Whether the state takes the token as well.
    closed: bool,
    /// Places for those who follow the events.
    subscribers: Arc<Semaphore>,
}

impl Shared {
    /// The reasons, for whoever may see the state; a probe elsewhere is told whether, and not why.
    fn told(&self, request: &HttpRequest, reasons: &[String]) -> Vec<String> {
        match self.closed && !guard::has_token(request.headers(), self.token.as_ref()) {
            true => vec![],
            false => reasons.to_vec(),
        }
    }
}

/// The routes for an actix-web server of the app's own, without those that change something or show rows. What they are
/// guarded by is guarded there as well: the app's own names belong into `http.hosts`. `http.listen` means nothing here.
///
/// ```no_run
/// # async fn example(db: tidewater::Database) -> std::io::Result<()> {
/// use actix_web::{App, HttpServer, web};
///
/// let routes = tidewater::http::configure(&db);
/// let app = move || App::new().service(web::scope("/tidewater").configure(routes.clone()));
/// HttpServer::new(app).bind("127.0.0.1:8080")?.run().await
/// # }
/// ```
pub fn configure(db: &Database) -> impl Fn(&mut ServiceConfig) + Clone + Send + 'static {
    routes(db, None, false, Hint::NoActions)
}

/// All of the routes, as [`configure`]; those that change something or show rows for whoever has the token.
///
/// ```no_run
/// # fn example(db: tidewater::Database) -> Result<(), tidewater::http::TokenError> {
/// use tidewater::http::{Token, configure_with_actions};
///
/// let routes = configure_with_actions(&db, Token::in_file("app.token".as_ref())?);
/// # Ok(()) }
/// ```
pub fn configure_with_actions(
    db: &Database,
    token: Token,
) -> impl Fn(&mut ServiceConfig) + Clone + Send + 'static {
    routes(db, Some(token), false, Hint::App)
}

fn routes(
    db: &Database,
    token: Option<Token>,
    closed: bool,
    hint: Hint<'_>,
) -> impl Fn(&mut ServiceConfig) + Clone + Send + use<> + 'static {
    let acts = token.is_some();
    let shared = Data::new(Shared {
        db: db.clone(),
        looks: Looks::new(db.clone()),
        page: Page::new(hint),
        token,
        closed,
        subscribers: Arc::new(Semaphore::new(db.settings().http.subscribers_max)),
    });
    move |config| {
        config
            .app_data(shared.clone())
            .service(web::resource("/").wrap(from_fn(guard::open)).to(page::page))
            .service(web::resource("/healthz").wrap(from_fn(guard::open)).to(healthz))
            .service(web::resource("/readyz").wrap(from_fn(guard::open)).to(readyz))
            .service(web::resource("/metrics").wrap(from_fn(guard::state)).to(metrics::metrics))
            .service(web::resource("/status").wrap(from_fn(guard::state)).to(status))
            .service(web::resource("/history").wrap(from_fn(guard::state)).to(history))
            .service(web::resource("/events").wrap(from_fn(guard::state)).to(events::events));
        if !acts {
            return;
        }
        config
            .service(web::resource("/proof").wrap(from_fn(guard::open)).to(actions::proof))
            .service(web::resource("/parked").wrap(from_fn(guard::rows)).to(actions::parked))
            .service(web::resource("/conflicts").wrap(from_fn(guard::rows)).to(actions::conflicts));
        for (path, verb) in actions::ROUTES {
            let act =
                move |shared: Data<Shared>, body: ReqData<guard::Body>| actions::act(verb, shared, body);
            config.service(web::resource(path).wrap(from_fn(guard::action)).to(act));
        }
    }
}

/// The answer of `/healthz`.
#[derive(Debug, Serialize)]
struct Health {
    healthy: bool,
    reasons: Vec<String>,
}

async fn healthz(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let summary = shared.looks.fresh().await;
    let healthy = service::healthy(&summary);
    let reasons = shared.told(&request, &summary.missing_actors());
    json(healthy, &Health { healthy, reasons })
}

async fn readyz(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let Readiness { ready, reasons } = &shared.looks.fresh().await.readiness;
    json(*ready, &Readiness { ready: *ready, reasons: shared.told(&request, reasons) })
}

async fn status(shared: Data<Shared>) -> HttpResponse {
    let summary = shared.looks.fresh().await;
    match serde_json::to_value(&*summary) {
        // To the byte what the command prints.
        Ok(summary) => HttpResponse::Ok().content_type(ContentType::json()).body(format!("{summary:#}\n")),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// What has passed, for whoever looks only now.
async fn history(shared: Data<Shared>) -> HttpResponse {
    let (now, availability, rows) = shared.db.past().told();
    json(true, &serde_json::json!({ "now": now, "availability": availability, "rows": rows }))
}

/// Whatever has no route of its own.
async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let path = crate::cli::on_one_line(request.path());
    plain(StatusCode::NOT_FOUND, &format!("there is nothing at {path}"))
}

/// Green or red, and why, on a line.
fn json(good: bool, body: &impl Serialize) -> HttpResponse {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(body) {
        Ok(text) => HttpResponse::build(status).content_type(ContentType::json()).body(text + "\n"),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn plain(status: StatusCode, why: &str) -> HttpResponse {
    HttpResponse::build(status).content_type(ContentType::plaintext()).body(format!("{why}\n"))
}
