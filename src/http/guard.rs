//! Who may ask, and how: everything else is refused before any route is.
//!
//! | door | who is let through |
//! | --- | --- |
//! | open | whoever names a host that is served; `GET` and `HEAD`, no body |
//! | state | the same, with the token where others than this machine's may ask |
//! | rows | with the token; no page of another origin |
//! | action | the same, by `POST` with a small JSON body |

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Version};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, BytesMut, Data};
use actix_web::{Error, HttpMessage as _, HttpResponse, mime};
use futures_util::StreamExt as _;

use super::{Shared, Token, plain};

/// What no answer goes without: nothing is kept, guessed, framed, or read by another origin.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin")),
];

/// An action names rows; a list of numbers that is longer than this is not made by hand.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What is behind a route, and so who may ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Whether the process is well, or a page without anything on it.
    Open,
    /// The state.
    State,
    /// Rows.
    Rows,
    /// Something changes.
    Action,
}

/// The body of an action, whole.
#[derive(Debug, Clone)]
pub(super) struct Body(pub(super) Bytes);

/// The guard of what anybody may ask who gets here.
pub(super) async fn open<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    guard(Door::Open, request, next).await
}

/// The guard of the state.
pub(super) async fn state<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    guard(Door::State, request, next).await
}

/// The guard of rows.
pub(super) async fn rows<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    guard(Door::Rows, request, next).await
}

/// The guard of what changes something. Whoever is let through has a [`Body`].
pub(super) async fn action<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    guard(Door::Action, request, next).await
}

/// Lets a request through, or answers it here.
async fn guard<B: MessageBody>(
    door: Door,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let refusal = match refusal(door, &request) {
        None if door == Door::Action => {
            read_body(&mut request).await.err().map(|(status, why)| refused(status, &why))
        }
        refusal => refusal,
    };
    let mut response = match refusal {
        Some(refusal) => {
            let (request, payload) = request.into_parts();
            let refusal = refusal.map_body(|_, body| BoxBody::new(Unread { body, _payload: payload }));
            ServiceResponse::new(request, refusal).map_into_right_body()
        }
        None => next.call(request).await?.map_into_left_body(),
    };
    for (name, value) in HEADERS {
        // The page has a policy of its own.
        if !response.headers().contains_key(&name) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Reads the body of an action, within a bound and a time; the error is what is answered.
async fn read_body(request: &mut ServiceRequest) -> Result<(), (StatusCode, String)> {
    let within = shared(request).map(|shared| shared.db.settings().http.request_timeout);
    let mut payload = request.take_payload();
    let reading = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err((StatusCode::PAYLOAD_TOO_LARGE, too_large()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    let read = tokio::time::timeout(within.unwrap_or_default(), reading).await;
    let late = |_| Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned()));
    let read = read.unwrap_or_else(late);
    // What is left of it is dropped with the answer, and not before.
    request.set_payload(payload);
    request.extensions_mut().insert(Body(read?));
    Ok(())
}

/// The answer to a request whose body nobody reads. actix-web would go on reading a chunked one without any bound once its
/// payload is dropped; while that lives, it closes the connection after the answer.
struct Unread {
    body: BoxBody,
    _payload: Payload,
}

impl MessageBody for Unread {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<actix_web::web::Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

fn shared(request: &ServiceRequest) -> Option<&Data<Shared>> {
    request.app_data::<Data<Shared>>()
}

fn refused(status: StatusCode, why: &str) -> HttpResponse {
    let mut response = plain(status, why);
    // What else the connection has to say is not listened to.
    response.head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
    response
}

fn too_large() -> String {
    format!("a body has {BODY_BYTES_MAX} bytes at most")
}

/// Why a request is not let through, as far as its head tells.
fn refusal(door: Door, request: &ServiceRequest) -> Option<HttpResponse> {
    let (uri, headers) = (request.uri(), request.headers());
    let hosts = shared(request).map(|shared| &*shared.db.settings().http.hosts);
    let Some(host) = only(headers, header::HOST) else {
        return Some(refused(StatusCode::BAD_REQUEST, "one Host header is needed"));
    };
    // `GET http://name/` names it a second time, and that name counts as well.
    let given = [Some(host), uri.authority().map(|authority| authority.as_str())];
    if !given.into_iter().flatten().all(|host| is_served(host, hosts.unwrap_or_default())) {
        return Some(refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this Host is not served here: loopback is, and what http.hosts names",
        ));
    }
    let (methods, allow): (&[Method], _) = match door {
        Door::Action => (&[Method::POST], "POST"),
        _ => (&[Method::GET, Method::HEAD], "GET, HEAD"),
    };
    if !methods.contains(request.method()) {
        let mut response =
            refused(StatusCode::METHOD_NOT_ALLOWED, &format!("{} only", allow.replace(", ", " and ")));
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        return Some(response);
    }
    // A browser names the page on whose behalf it asks.
    let of_ours = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| is_origin(origin, host));
    if [Door::Rows, Door::Action].contains(&door) && !headers.get_all(header::ORIGIN).all(of_ours) {
        return Some(refused(StatusCode::FORBIDDEN, "pages of another origin may not ask for this"));
    }
    let closed = match door {
        Door::Open => false,
        Door::State => shared(request).is_none_or(|shared| shared.closed),
        Door::Rows | Door::Action => true,
    };
    if closed && !has_token(headers, shared(request).and_then(|shared| shared.token.as_ref())) {
        let mut response = refused(
            StatusCode::UNAUTHORIZED,
            "this takes the token, as `Authorization: Bearer …`; it is in the file of http.token_file",
        );
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Some(response);
    }
    let announced = only(headers, header::CONTENT_LENGTH);
    if door == Door::Action {
        // No form of a web page is of this type, so that a browser asks before it sends it elsewhere.
        if !only(headers, header::CONTENT_TYPE).is_some_and(is_json) {
            return Some(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type is application/json"));
        }
        if announced
            .and_then(|length| length.parse::<usize>().ok())
            .is_some_and(|length| length > BODY_BYTES_MAX)
        {
            return Some(refused(StatusCode::PAYLOAD_TOO_LARGE, &too_large()));
        }
    } else {
        let empty = !headers.contains_key(header::CONTENT_LENGTH) || announced == Some("0");
        if !empty || headers.contains_key(header::TRANSFER_ENCODING) {
            return Some(refused(StatusCode::PAYLOAD_TOO_LARGE, "no route takes a body"));
        }
    }
    if request.version() > Version::HTTP_11 {
        return Some(refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 only"));
    }
    None
}

/// The value of a header that is there once, as text.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).map(|value| value.to_str().unwrap_or_default());
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value),
        _ => None,
    }
}

/// Whether these are the headers of somebody who has the token. Where there is none, nobody has it.
pub(super) fn has_token(headers: &HeaderMap, token: Option<&Token>) -> bool {
    let given = only(headers, header::AUTHORIZATION).and_then(|given| given.split_once(' '));
    let (Some(token), Some((scheme, given))) = (token, given) else { return false };
    scheme.eq_ignore_ascii_case("Bearer") && token.is(given.trim_matches(' ').as_bytes())
}

fn is_json(content_type: &str) -> bool {
    content_type.parse::<mime::Mime>().is_ok_and(|kind| kind.essence_str() == "application/json")
}

/// Whether an `Origin` is the host that was asked, as a page of this server has it.
fn is_origin(origin: &str, host: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|name| name.eq_ignore_ascii_case(host))
}

/// Whether a `Host` header, with whatever port, names loopback or one of these.
fn is_served(host: &str, hosts: &[String]) -> bool {
    let Some(name) = without_port(host) else { return false };
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback() || hosts.contains(&address.to_string()),
        Err(_) => name.eq_ignore_ascii_case("localhost") || hosts.contains(&name.to_ascii_lowercase()),
    }
}

/// The name of `name:port`, `name` or `[address]:port`; nothing where it is none of these.
fn without_port(host: &str) -> Option<&str> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = rest.strip_prefix(':');
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let good = if rest.is_empty() { true } else { port.is_some_and(is_port) };
    (good && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loopback in all its notations and what is configured, with any port, and nothing that only looks like it.
    #[test]
    fn only_loopback_and_configured_names_are_served() {
        let hosts = ["db.example".to_owned(), "10.0.0.7".to_owned(), "fd00::7".to_owned()];
        for served in [
            "localhost",
            "LocalHost:8432",
            "127.0.0.1",
            "127.0.0.1:8432",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:8432",
            "[::ffff:127.0.0.1]:80",
            "db.example",
            "DB.Example:443",
            "10.0.0.7:8432",
            "[fd00::7]:8432",
            "localhost:",
        ] {
            assert!(is_served(served, &hosts), "{served}");
        }
        for refused in [
            "",
            ":8432",
            "evil.example",
            "localhost.evil.example",
            "evil.example:8432",
            "db.example.evil",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example#localhost",
            "localhost:80:80",
            "localhost:x",
            "localhost:123456",
            "[::1",
            "[::1]evil.example",
            "[]",
            "::1:80",
            "0.0.0.0",
            "0.0.0.0:8432",
            "10.0.0.8",
            "192.168.1.1",
            "localhost evil.example",
            "2130706433",
            "127.1",
        ] {
            assert!(!is_served(refused, &hosts), "{refused}");
        }
        assert!(!is_served("db.example", &[]));
    }

    /// A page of this server is of the origin under which it was asked for, and of no other.
    #[test]
    fn only_the_hosts_own_origin_is_one() {
        for (origin, host) in [
            ("http://127.0.0.1:8432", "127.0.0.1:8432"),
            ("http://LOCALHOST:8432", "localhost:8432"),
            ("https://db.example", "db.example"),
            ("http://[::1]:8432", "[::1]:8432"),
        ] {
            assert!(is_origin(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "null"),
            ("", ""),
            ("localhost:8432", "localhost:8432"),
            ("http://localhost:8433", "localhost:8432"),
            ("http://localhost", "localhost:8432"),
            ("http://127.0.0.1:8432", "localhost:8432"),
            ("http://evil.example", "localhost:8432"),
            ("http://localhost:8432.evil.example", "localhost:8432"),
            ("http://localhost:8432/", "localhost:8432"),
            ("file://localhost:8432", "localhost:8432"),
            ("http://evil.example#http://localhost:8432", "localhost:8432"),
        ] {
            assert!(!is_origin(origin, host), "{origin} {host}");
        }
    }

    /// JSON is JSON in any spelling, and nothing that a form can send is.
    #[test]
    fn only_json_is_json() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=UTF-8"]
        {
            assert!(is_json(json), "{json}");
        }
        for other in [
            "",
            "text/plain",
            "text/plain; application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonp",
            "application/json, text/plain",
            "json",
        ] {
            assert!(!is_json(other), "{other}");
        }
    }
}
