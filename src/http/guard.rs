//! Who may ask, and how: everything else is refused before any route is.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Version};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpResponse};

use super::{Shared, plain};

/// What no answer goes without: nothing is kept, guessed, framed, or read by another origin.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin")),
];

/// Lets a request through, or answers it here.
pub(super) async fn guard<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let mut response = match refusal(&request) {
        Some(refusal) => {
            let (request, payload) = request.into_parts();
            let refusal = refusal.map_body(|_, body| BoxBody::new(Unread { body, _payload: payload }));
            ServiceResponse::new(request, refusal).map_into_right_body()
        }
        None => next.call(request).await?.map_into_left_body(),
    };
    for (name, value) in HEADERS {
        // A page may need a policy of its own.
        if !response.headers().contains_key(&name) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
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

fn refusal(request: &ServiceRequest) -> Option<HttpResponse> {
    let refused = |status, why: &str| {
        let mut response = plain(status, why);
        // What else the connection has to say is not listened to.
        response.head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
        Some(response)
    };
    let hosts = request.app_data::<Data<Shared>>().map(|shared| &*shared.db.settings().http.hosts);
    let (uri, headers) = (request.uri(), request.headers());
    let mut named = headers.get_all(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let (Some(host), None) = (named.next(), named.next()) else {
        return refused(StatusCode::BAD_REQUEST, "one Host header is needed");
    };
    // `GET http://name/` names it a second time, and that name counts as well.
    let given = [Some(host), uri.authority().map(|authority| authority.as_str())];
    if !given.into_iter().flatten().all(|host| is_served(host, hosts.unwrap_or_default())) {
        return refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this Host is not served here: loopback is, and what http.hosts names",
        );
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only");
        if let Some(response) = &mut response {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        return response;
    }
    let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    if !empty || headers.contains_key(header::TRANSFER_ENCODING) {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "no route takes a body");
    }
    if request.version() > Version::HTTP_11 {
        return refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 only");
    }
    None
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
}
