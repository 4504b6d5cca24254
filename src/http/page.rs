//! `/`: what a person sees. One document that brings everything along, and may load nothing else.

use std::path::Path;

use actix_web::HttpResponse;
use actix_web::http::header::{self, ContentType, HeaderValue};
use actix_web::web::{Bytes, Data};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{Shared, token};

const SOURCE: &str = include_str!("page.html");

/// The page as it is sent, and what browsers let it do.
pub(super) struct Page {
    text: Bytes,
    policy: HeaderValue,
}

/// What the page says about the token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hint<'a> {
    /// There are no actions.
    NoActions,
    /// It is in this file.
    File(&'a Path),
    /// Who may read files here knows which one it is, and others need not.
    TheFile,
    /// The app that embeds this has it.
    App,
}

impl Page {
    pub(super) fn new(hint: Hint<'_>) -> Self {
        let (actions, hint) = match hint {
            Hint::NoActions => ("none", String::new()),
            Hint::File(path) => ("token", format!("It is in the file {}.", token::shown(path))),
            Hint::TheFile => ("token", "It is in the file of the setting http.token_file.".to_owned()),
            Hint::App => ("token", "The application that embeds Tidewater has it.".to_owned()),
        };
        let text = SOURCE.replace("{{actions}}", actions).replace("{{hint}}", &escaped(&hint));
        Self { text: text.into(), policy: policy() }
    }
}

pub(super) async fn page(shared: Data<Shared>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .insert_header((header::CONTENT_SECURITY_POLICY, shared.page.policy.clone()))
        .insert_header((header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"))
        .body(shared.page.text.clone())
}

/// This script and this style, and nothing that came in any other way. A script cannot make HTML of a text either.
fn policy() -> HeaderValue {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        fingerprint("script"),
        fingerprint("style"),
    );
    // Without a policy the page would not do anything; it is made of letters.
    HeaderValue::try_from(policy)
        .unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
}

/// What a browser compares an element's content with.
fn fingerprint(element: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content(element).unwrap_or_default())))
}

/// What is between an element's tags, of which there is one.
fn content(element: &str) -> Option<&'static str> {
    let (_, rest) = SOURCE.split_once(&format!("<{element}>"))?;
    Some(rest.split_once(&format!("</{element}>"))?.0)
}

/// As text within an element or an attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy covers the page's one script and one style, which hold nothing that is filled in later.
    #[test]
    fn the_policy_covers_what_the_page_has() {
        for element in ["script", "style"] {
            assert_eq!(SOURCE.matches(&format!("<{element}")).count(), 1, "{element}");
            let content = content(element).unwrap();
            assert!(content.len() > 100 && !content.contains("{{"), "{element}");
        }
        let policy = policy();
        let policy = policy.to_str().unwrap();
        assert!(policy.contains(&fingerprint("script")) && !policy.contains("unsafe"), "{policy}");
    }

    /// The document asks the network for nothing, has no handlers and styles in its attributes, which the policy forbids, and
    /// makes no HTML of texts. The one address in it is the name of SVG.
    #[test]
    fn the_page_brings_everything_along() {
        assert_eq!(SOURCE.matches("://").count(), SOURCE.matches("http://www.w3.org/2000/svg").count());
        for banned in [
            " src=",
            "@import",
            "url(",
            " onclick=",
            " style=",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
        ] {
            assert!(!SOURCE.contains(banned), "{banned}");
        }
    }

    /// A file's name is a text, whatever it looks like.
    #[test]
    fn the_hint_is_text() {
        let page = Page::new(Hint::File(Path::new("/tmp/<script>alert(1)</script>&\".token")));
        let text = String::from_utf8(page.text.to_vec()).unwrap();
        assert!(text.contains("/tmp/&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;.token"), "{text}");
        assert!(!text.contains("{{") && !text.contains("<script>alert"));
    }
}
