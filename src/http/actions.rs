//! What the verbs do, for whoever has the token: the same functions behind another door.
//!
//! An action's body is what its verb is asked on the control socket ([`Request`]), without the verb's name; the answer is
//! what the verb prints with `--json`.

use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::{Data, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::guard::Body;
use super::{Shared, plain};
use crate::control::{Request, Response};
use crate::run::{answer, obey};

/// The routes, each with the verb that it does.
pub(super) const ROUTES: [(&str, &str); 7] = [
    ("/check", "check"),
    ("/reset", "reset"),
    ("/flush", "flush"),
    ("/warm", "warm"),
    ("/parked/retry", "retry_parked"),
    ("/parked/discard", "discard_parked"),
    ("/conflicts/restore", "restore_conflicts"),
];

/// A page of a list is read by people, or by scripts page by page; it is held in memory.
const LIMIT_MAX: usize = 1000;
const LIMIT: usize = 50;

/// Does what a verb does.
pub(super) async fn act(verb: &'static str, shared: Data<Shared>, body: ReqData<Body>) -> HttpResponse {
    match request(verb, &body.into_inner().0) {
        Ok(request) => answered(obey(&shared.db, request).await),
        Err(why) => plain(StatusCode::BAD_REQUEST, &format!("the body cannot be understood: {why}")),
    }
}

fn request(verb: &str, body: &[u8]) -> Result<Request, serde_json::Error> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body)?;
    // Whatever the body says: the guard let it through for this verb.
    fields.insert("verb".to_owned(), verb.into());
    serde_json::from_value(fields.into())
}

fn answered(response: Response) -> HttpResponse {
    match response {
        Response::Ok(value) => pretty(StatusCode::OK, &value),
        Response::Error(failure) => {
            // What helps is another request, or only time.
            let status = if failure.retry {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            };
            pretty(status, &json!({ "error": failure }))
        }
    }
}

/// As the command prints it.
fn pretty(status: StatusCode, value: &Value) -> HttpResponse {
    HttpResponse::build(status).content_type(ContentType::json()).body(format!("{value:#}\n"))
}

/// `?table=…&after=…&limit=…`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ParkedQuery {
    table: Option<String>,
    #[serde(default)]
    after: i64,
    limit: Option<usize>,
}

/// What `parked list --json` prints.
pub(super) async fn parked(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    match asked(&request, |query: &ParkedQuery| query.limit) {
        Ok((ParkedQuery { table, after, .. }, limit)) => {
            let list =
                shared.db.in_background(move |readers, _| readers.parked(table.as_deref(), after, limit));
            answered(answer(list.await))
        }
        Err(why) => plain(StatusCode::BAD_REQUEST, &why),
    }
}

/// `?table=…&before=…&limit=…`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ConflictsQuery {
    table: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

/// What `conflicts list --json` prints.
pub(super) async fn conflicts(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    match asked(&request, |query: &ConflictsQuery| query.limit) {
        Ok((ConflictsQuery { table, before, .. }, limit)) => {
            let list =
                shared.db.in_background(move |readers, _| readers.conflicts(table.as_deref(), before, limit));
            answered(answer(list.await))
        }
        Err(why) => plain(StatusCode::BAD_REQUEST, &why),
    }
}

/// `?nonce=…`
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofQuery {
    nonce: String,
}

/// A nonce that nobody else has thought of, and that is no book.
const NONCE_CHARS: std::ops::RangeInclusive<usize> = 32..=128;

/// Shows whoever is about to send the token that it is known here already: somebody else may have taken the port.
pub(super) async fn proof(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let nonce = Query::<ProofQuery>::from_query(request.query_string()).map(|query| query.into_inner().nonce);
    let nonce = nonce
        .ok()
        .filter(|it| NONCE_CHARS.contains(&it.len()) && it.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let Some(nonce) = nonce else {
        let (least, most) = (NONCE_CHARS.start(), NONCE_CHARS.end());
        return plain(
            StatusCode::BAD_REQUEST,
            &format!("a nonce of {least} to {most} hexadecimal digits is needed"),
        );
    };
    match shared.token.as_ref().and_then(|token| token.proof(&nonce)) {
        Some(proof) => pretty(StatusCode::OK, &json!({ "proof": proof })),
        None => plain(StatusCode::NOT_FOUND, "there is no token here"),
    }
}

/// A list's query with its limit; the error is for who asks.
fn asked<Q: DeserializeOwned>(
    request: &HttpRequest,
    limit: impl Fn(&Q) -> Option<usize>,
) -> Result<(Q, usize), String> {
    let query = Query::<Q>::from_query(request.query_string());
    let query = query.map_err(|error| crate::cli::on_one_line(&error.to_string()))?;
    match limit(&query).unwrap_or(LIMIT) {
        limit @ 1..=LIMIT_MAX => Ok((query.into_inner(), limit)),
        _ => Err(format!("a limit from 1 to {LIMIT_MAX} is allowed")),
    }
}

#[cfg(test)]
mod tests {
    use tidewater_actors::sqlite::Which;

    use super::*;

    /// A body is what the control socket is asked, and says nothing about which verb that is.
    #[test]
    fn a_body_is_the_request_without_its_verb() {
        let understood = |verb, body: &str| request(verb, body.as_bytes()).ok();
        assert_eq!(understood("check", "{}"), Some(Request::Check));
        assert_eq!(understood("flush", "{}"), Some(Request::Flush { wait: false }));
        assert_eq!(understood("warm", "{\"wait\":true}"), Some(Request::Warm { wait: true }));
        let retry = |which| Some(Request::RetryParked { which });
        assert_eq!(understood("retry_parked", "{\"which\":\"all\"}"), retry(Which::All));
        assert_eq!(understood("retry_parked", "{\"which\":{\"ids\":[3]}}"), retry(Which::Ids(vec![3])));
        let table = "{\"which\":{\"table\":\"note\"}}";
        assert_eq!(understood("retry_parked", table), retry(Which::Table("note".to_owned())));
        assert_eq!(understood("check", "{\"verb\":\"reset\"}"), Some(Request::Check));
        for (verb, body) in [
            ("check", ""),
            ("check", "[]"),
            ("check", "{} {}"),
            ("flush", "{\"wait\":1}"),
            ("retry_parked", "{}"),
            ("retry_parked", "{\"which\":{\"ids\":[\"3\"]}}"),
            ("discard_parked", "{\"ids\":3}"),
            ("restore_conflicts", "{}"),
        ] {
            assert_eq!(understood(verb, body), None, "{verb} {body}");
        }
    }

    /// Every route's verb is one of the control socket's.
    #[test]
    fn every_route_leads_to_a_verb() {
        for (path, verb) in ROUTES {
            let body = br#"{"ids":[1],"which":"all"}"#;
            assert!(request(verb, body).is_ok(), "{path}");
        }
    }
}
