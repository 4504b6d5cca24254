//! TLS: whether it is spoken, whom it believes, and what it means when that fails.
//!
//! ```text
//! TlsOptions ─▶ is it wanted for this address? ─▶ client (files read anew for each connection, so that they may be renewed)
//!                                                    └─▶ Verifier: a chain to a CA that we trust, then the name
//! ```
//!
//! A certificate is taken as libpq's `verify-full` takes it, with one name more: that of a Cloud SQL instance. Cloud SQL
//! signs with a CA per instance, and its certificates have `project:instance` as their common name, which is no host name;
//! those of its newer CAs have host names as alternative names as well. Google's own connectors look at both.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::core::failure::{CloudFailure, FailureClass};

/// `cloud.tls`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Required for every address that is not this machine's own loopback, and not spoken there, where the Auth Proxy is.
    #[default]
    Auto,
    /// Required everywhere.
    Required,
    /// Never: the password and every row can be read on the way.
    Off,
}

/// How the line to the cloud is protected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// When.
    pub mode: TlsMode,
    /// The CAs that a server's certificate may come from, in PEM; none: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// The name that the certificate must have, instead of the host's: another host name, or `project:instance`.
    pub server_name: Option<String>,
    /// What we show the server, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
}

impl TlsOptions {
    /// Whether it is spoken with an address of this kind.
    pub(super) fn wanted(&self, local: bool) -> bool {
        match self.mode {
            TlsMode::Auto => !local,
            TlsMode::Required => true,
            TlsMode::Off => false,
        }
    }
}

/// Whether a host, by its name alone, is this machine: a Unix socket, a loopback address, or `localhost`.
#[must_use]
pub fn is_this_machine(host: &str) -> bool {
    host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Who makes connections, and the name that they begin with. Reads files.
pub(super) fn client(
    options: &TlsOptions,
    host: &str,
) -> Result<(MakeRustlsConnect, String), Box<CloudFailure>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let expected = options.server_name.as_deref().unwrap_or(host);
    // What the server is told (SNI). An instance's name is none that could be told.
    let told = if ServerName::try_from(expected).is_ok() { expected } else { host };
    let (roots, listed) = roots(options)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { roots, listed, expected: expected.to_owned(), provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ours(format!("TLS cannot be set up: {error}"), None))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates("cloud.tls_cert_file", cert)?;
            builder.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                ours(
                    format!(
                        "the client certificate {} cannot be used with the key {}: {error}",
                        cert.display(),
                        key.display()
                    ),
                    Some("let cloud.tls_cert_file and cloud.tls_key_file name two that belong together"),
                )
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok((MakeRustlsConnect::new(config), told.to_owned()))
}

/// Something that only this side can put right.
fn ours(detail: String, remedy: Option<&str>) -> Box<CloudFailure> {
    let mut failure = CloudFailure::new(FailureClass::Credentials, detail);
    failure.remedy = remedy.map(str::to_owned);
    Box::new(failure)
}

/// Whom we trust, and which of them were named one by one.
fn roots(options: &TlsOptions) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Box<CloudFailure>> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &options.ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok((roots, vec![]));
    };
    let listed = certificates("cloud.tls_ca_file", path)?;
    for certificate in &listed {
        roots.add(certificate.clone()).map_err(|error| {
            unusable(
                "cloud.tls_ca_file",
                path,
                &format!("one of its certificates is not understood ({error})"),
            )
        })?;
    }
    Ok((roots, listed))
}

fn unusable(key: &str, path: &Path, reason: &str) -> Box<CloudFailure> {
    let detail = format!("{key} = {} cannot be used: {reason}", path.display());
    let remedy = format!("let {key} name a readable file in PEM");
    ours(detail, Some(&remedy))
}

/// At least one.
fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Box<CloudFailure>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| unusable(key, path, &of_pem(&error, "a certificate")))?;
    if found.is_empty() {
        return Err(unusable(key, path, &of_pem(&PemError::NoItemsFound, "a certificate")));
    }
    Ok(found)
}

/// Without a word of what the file holds.
fn of_pem(error: &PemError, what: &str) -> String {
    match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => format!("it does not hold {what} in PEM"),
        _ => "it is not PEM".to_owned(),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Box<CloudFailure>> {
    let key = "cloud.tls_key_file";
    #[cfg(unix)]
    if let Some(mode) = open_to_others(path) {
        return Err(ours(
            format!(
                "{key} = {} has mode {mode:04o}: others on this machine can read the key",
                path.display()
            ),
            Some(&format!("chmod 600 {}", path.display())),
        ));
    }
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| unusable(key, path, &of_pem(&error, "a private key without a passphrase")))
}

/// The mode of a key file that more than its owner can read. As for libpq, a group may read one that belongs to root, which
/// is how a system hands out keys. A file that cannot be looked at is told of when it is read.
#[cfg(unix)]
fn open_to_others(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    let roots = found.uid() == 0 && rustix::process::geteuid().as_raw() != 0;
    let forbidden = if roots { 0o037 } else { 0o077 };
    (found.mode() & forbidden != 0).then_some(found.mode() & 0o7777)
}

// ---------------------------------------------------------------------------------------------------------
// Whom we believe
// ---------------------------------------------------------------------------------------------------------

/// Why a server's certificate does not show that it is the one we want.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Distrust {
    #[error("its certificate is signed by itself")]
    SelfSigned,
    #[error("its certificate is signed by {0}, an unknown CA")]
    UnknownIssuer(String),
    #[error("its certificate ended on {0}")]
    Expired(String),
    #[error("its certificate begins on {0} only")]
    NotYet(String),
    #[error("its certificate is for {names}, not for {expected}")]
    Name { names: String, expected: String },
    #[error("its certificate cannot be used: {0}")]
    Unusable(String),
}

impl From<Distrust> for rustls::Error {
    fn from(distrust: Distrust) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(distrust))))
    }
}

struct Verifier {
    roots: RootCertStore,
    /// The certificates of the CA file, each of which may be the server's own.
    listed: Vec<CertificateDer<'static>>,
    expected: String,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _told: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let facts = Facts::of(end_entity)?;
        self.verify_chain(end_entity, intermediates, now, &facts)?;
        self.verify_name(end_entity, &facts)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Verifier {
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        facts: &Facts,
    ) -> Result<(), rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified =
            verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms);
        let Err(error) = verified else { return Ok(()) };
        let rustls::Error::InvalidCertificate(reason) = error else { return Err(error) };
        Err(match reason {
            CertificateError::ExpiredContext { not_after, .. } => Distrust::Expired(day(not_after)),
            CertificateError::NotValidYetContext { not_before, .. } => Distrust::NotYet(day(not_before)),
            // `openssl req -x509`, with which most certificates of PostgreSQL servers are made, calls every one a CA's,
            // which a server's must not be. Listed by its owner, it is trusted as what it is; its dates were looked at.
            CertificateError::Other(_) if facts.signed_by_itself && self.listed.contains(end_entity) => {
                return Ok(());
            }
            _ if facts.signed_by_itself => Distrust::SelfSigned,
            // A CA of the same name and another key, as one has that was made anew.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Distrust::UnknownIssuer(facts.issuer.clone())
            }
            reason => Distrust::Unusable(rustls::Error::InvalidCertificate(reason).to_string()),
        }
        .into())
    }

    fn verify_name(&self, end_entity: &CertificateDer<'_>, facts: &Facts) -> Result<(), Distrust> {
        let expected = self.expected.as_str();
        let good = match ServerName::try_from(expected) {
            Ok(name) => {
                let by_alternative = ParsedCertificate::try_from(end_entity)
                    .and_then(|cert| verify_server_name(&cert, &name))
                    .is_ok();
                // The rule of libpq: the common name counts where there is no alternative one.
                let by_common = facts.alternative.is_empty()
                    && facts.common.as_deref().is_some_and(|common| common.eq_ignore_ascii_case(expected));
                by_alternative || by_common
            }
            Err(_) => facts.common.iter().chain(&facts.alternative).any(|name| name == expected),
        };
        if good {
            return Ok(());
        }
        Err(Distrust::Name { names: facts.names(), expected: expected.to_owned() })
    }
}

fn day(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .map_or_else(|| "a day beyond all calendars".to_owned(), |time| time.date().to_string())
}

/// What stands in a certificate, for comparing and for telling.
struct Facts {
    common: Option<String>,
    /// Host names and addresses.
    alternative: Vec<String>,
    issuer: String,
    signed_by_itself: bool,
}

impl Facts {
    fn of(end_entity: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let bad = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let certificate = Certificate::from_der(end_entity).map_err(bad)?.tbs_certificate;
        let alternative = match certificate.get::<SubjectAltName>().map_err(bad)? {
            Some((_, SubjectAltName(names))) => names.iter().filter_map(alternative).collect(),
            None => vec![],
        };
        Ok(Self {
            common: common_name(&certificate.subject),
            alternative,
            issuer: common_name(&certificate.issuer)
                .map_or_else(|| "an unnamed CA".to_owned(), |name| shown(&name)),
            signed_by_itself: certificate.issuer == certificate.subject,
        })
    }

    /// What it is for, fit to be printed.
    fn names(&self) -> String {
        const SHOWN_MAX: usize = 4;
        let mut names: Vec<String> = vec![];
        for name in self.alternative.iter().chain(&self.common) {
            let name = shown(name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match names.len() {
            0 => "nobody".to_owned(),
            count if count > SHOWN_MAX => {
                format!("{} and {} more", names[..SHOWN_MAX].join(", "), count - SHOWN_MAX)
            }
            _ => names.join(", "),
        }
    }
}

fn alternative(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(|it| std::net::IpAddr::from(it).to_string());
            let sixteen = <[u8; 16]>::try_from(bytes).map(|it| std::net::IpAddr::from(it).to_string());
            four.or(sixteen).ok()
        }
        _ => None,
    }
}

/// The last one, which is the most special.
fn common_name(name: &x509_cert::name::Name) -> Option<String> {
    let mut parts = name.0.iter().flat_map(|set| set.0.iter());
    let value = &parts.rfind(|part| part.oid == COMMON_NAME)?.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|it| it.as_str().to_owned());
    utf8.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|it| it.as_str().to_owned()))
        .or_else(|_| value.decode_as::<TeletexStringRef<'_>>().map(|it| it.as_str().to_owned()))
        .or_else(|_| value.decode_as::<Ia5StringRef<'_>>().map(|it| it.as_str().to_owned()))
        .ok()
}

/// What a stranger wrote, short and printable.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 100;
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

// ---------------------------------------------------------------------------------------------------------
// What a failure means
// ---------------------------------------------------------------------------------------------------------

/// What TLS found wrong, if it did, in an error of who logs in.
pub(super) fn fault_of(error: &dyn std::error::Error) -> Option<&rustls::Error> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// What it means of a connection that is being made, and what somebody can do about it.
pub(super) fn explain(fault: &rustls::Error, options: &TlsOptions) -> CloudFailure {
    use AlertDescription as Alert;
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = fault
        && let Some(distrust) = inner.downcast_ref::<Distrust>()
    {
        return explain_distrust(distrust, options);
    }
    match fault {
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => {
            let what = match options.cert_file {
                Some(_) => "the server refuses our client certificate",
                None => "the server asks for a client certificate",
            };
            CloudFailure::new(FailureClass::Credentials, format!("{what} ({alert:?})")).with_remedy(
                "set cloud.tls_cert_file and cloud.tls_key_file to a client certificate that this server's CA has signed \
                 and that has not ended",
            )
        }
        rustls::Error::InvalidMessage(_) => CloudFailure::new(
            FailureClass::NotOurs,
            format!("what answers agrees to TLS and does not speak it ({fault})"),
        )
        .with_remedy("check CLOUD_SQL_PROXY_HOST and CLOUD_SQL_PROXY_PORT: PostgreSQL does not answer there"),
        rustls::Error::AlertReceived(Alert::HandshakeFailure | Alert::ProtocolVersion)
        | rustls::Error::PeerIncompatible(_) => {
            CloudFailure::new(FailureClass::NotOurs, format!("TLS cannot be agreed on ({fault})"))
                .with_remedy("let the server speak TLS 1.2 or 1.3 (ssl_min_protocol_version, ssl_ciphers)")
        }
        // Not understood, or the key that goes with it was not shown.
        rustls::Error::InvalidCertificate(_) => {
            explain_distrust(&Distrust::Unusable(fault.to_string()), options)
        }
        _ => CloudFailure::new(FailureClass::NotAnswering, format!("TLS failed ({fault})")),
    }
}

fn explain_distrust(distrust: &Distrust, options: &TlsOptions) -> CloudFailure {
    let cas = match &options.ca_file {
        Some(path) => format!("cloud.tls_ca_file ({})", path.display()),
        None => "cloud.tls_ca_file (not set: the CAs of this machine count)".to_owned(),
    };
    let remedy = match distrust {
        Distrust::SelfSigned => {
            format!("if it is the right server, put its certificate into {cas}; compare it on the server first")
        }
        Distrust::UnknownIssuer(_) => format!(
            "put the CA of the right server into {cas}; for Cloud SQL: gcloud sql ssl server-ca-certs list --instance=INSTANCE \
             --format='value(cert)'"
        ),
        Distrust::Expired(_) | Distrust::NotYet(_) => {
            "renew the server's certificate, or set this machine's clock".to_owned()
        }
        Distrust::Name { .. } => {
            "if it is the right server, set cloud.tls_server_name to the name that its certificate has (for Cloud SQL \
             project:instance)"
                .to_owned()
        }
        Distrust::Unusable(_) => "give the server another certificate".to_owned(),
    };
    CloudFailure::new(FailureClass::NotOurs, format!("what answers is not trusted: {distrust}"))
        .with_remedy(remedy)
}
