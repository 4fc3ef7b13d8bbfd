//! TLS flags, as far as they can be checked without a certificate: etcd refuses unknown names even
//! if nothing is encrypted. Files are read at the start (`net::tls`).

use std::path::PathBuf;

use super::flags;
use super::go_syntax::quote;
use super::note::Note;
use super::refusal::Refusal;
use super::urls::{Scheme, Url};
use super::values::Values;

/// How listeners of one kind are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// `--client-cert-auth`: certificates are demanded, and the name in one is a user's.
    pub authenticates: bool,
    /// The authorities for clients' certificates. They alone demand one, too.
    pub authorities: Option<PathBuf>,
    /// Names of which a client's certificate must have one; empty for all.
    pub allowed_host_names: Vec<String>,
}

/// Versions and cipher suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsProtocol {
    pub least: TlsVersion,
    pub most: TlsVersion,
    /// Those of `--cipher-suites`, all of which etched has; empty for all that there are.
    pub cipher_suites: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

impl TlsVersion {
    pub fn name(self) -> &'static str {
        match self {
            TlsVersion::Tls12 => VERSIONS[0],
            TlsVersion::Tls13 => VERSIONS[1],
        }
    }
}

/// Oldest first.
const VERSIONS: [&str; 2] = ["TLS1.2", "TLS1.3"];

/// What Go's TLS calls its cipher suites, those that it thinks insecure included, and two older
/// names that etcd takes beside them.
const CIPHER_SUITES: [&str; 27] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// Those that etched has. In TLS 1.3 none can be chosen.
pub const AVAILABLE_SUITES: [&str; 11] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// What says how clients are encrypted, beside the certificate, and does nothing without it.
const CLIENT_FLAGS: [&str; 5] = [
    "trusted-ca-file",
    "client-cert-allowed-hostname",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
];
const NO_TLS_LISTENER: &str = "no URL to listen on has TLS; no certificate is in use";

/// Checks names of versions and cipher suites.
///
/// # Errors
/// etcd's texts.
pub fn check(values: &Values) -> Result<(), Refusal> {
    let (min, max) = (
        values.text("tls-min-version"),
        values.text("tls-max-version"),
    );
    let (least, most) = (version(min)?, version(max)?);
    if most.is_some() && least > most {
        let text = format!("min version ({min}) is greater than max version ({max})");
        return Err(Refusal::Verify(text));
    }
    let suites = values.words("cipher-suites");
    let mut suites = suites.iter().filter(|name| !name.is_empty()).peekable();
    if least == version("TLS1.3")? && suites.peek().is_some() {
        let text = "cipher suites cannot be configured when only TLS1.3 is enabled";
        return Err(Refusal::Verify(text.to_owned()));
    }
    for name in suites {
        if !CIPHER_SUITES.contains(&name.as_str()) {
            let text = format!("unexpected TLS cipher suite {}", quote(name));
            return Err(Refusal::Start(text));
        }
        if !AVAILABLE_SUITES.contains(&name.as_str()) {
            let text = format!(
                "etched has no TLS cipher suite {}; it has {}",
                quote(name),
                AVAILABLE_SUITES.join(", ")
            );
            return Err(Refusal::Start(text));
        }
    }
    Ok(())
}

/// Versions and suites, which `check` accepted.
pub fn protocol(values: &Values) -> TlsProtocol {
    let all = [TlsVersion::Tls12, TlsVersion::Tls13];
    let version = |name: &str, default| {
        let named = |version: &TlsVersion| version.name() == values.text(name);
        all.into_iter().find(named).unwrap_or(default)
    };
    let suites = values.words("cipher-suites").iter();
    TlsProtocol {
        least: version("tls-min-version", TlsVersion::Tls12),
        most: version("tls-max-version", TlsVersion::Tls13),
        cipher_suites: suites.filter(|name| !name.is_empty()).cloned().collect(),
    }
}

/// How clients are encrypted; none if no URL says that they are.
///
/// # Errors
/// etcd's texts for files that are not named.
pub fn of_clients(values: &Values, notes: &mut Vec<Note>) -> Result<Option<ListenerTls>, Refusal> {
    let (certificate, key) = (values.text("cert-file"), values.text("key-file"));
    let no_pair = certificate.is_empty() && key.is_empty();
    let is_encrypted = |url: &&Url| url.scheme == Scheme::Https;
    let clients = || {
        let http = values.urls("listen-client-http-urls");
        values.urls("listen-client-urls").iter().chain(http)
    };
    let metrics = values.urls("listen-metrics-urls");
    if let Some(url) = clients().find(is_encrypted).filter(|_| no_pair) {
        return Err(Refusal::Start(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {} with HTTPS scheme",
            url.host_port()
        )));
    }
    for url in clients().filter(|url| !is_encrypted(url)) {
        let warnings = [
            (
                !no_pair,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            ),
            (
                values.bool("client-cert-auth"),
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        for (_, text) in warnings.into_iter().filter(|(is_so, _)| *is_so) {
            notes.push(Note::warn(text).with("client-url", url.as_str()));
        }
    }
    if no_pair && metrics.iter().any(|url| is_encrypted(&url)) {
        let text =
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
        return Err(Refusal::Start(text.to_owned()));
    }
    if !clients().chain(metrics).any(|url| is_encrypted(&url)) {
        for name in CLIENT_FLAGS {
            let default = flags::find(name).map(|flag| flag.kind.default_value(flag.default));
            if default.as_ref() != Some(values.get(name)) && !is_empty_list(values, name) {
                notes.push(
                    Note::warn("the flag has no effect in etched")
                        .with("flag", name)
                        .with("reason", NO_TLS_LISTENER),
                );
            }
        }
        return Ok(None);
    }
    if certificate.is_empty() || key.is_empty() {
        return Err(Refusal::Start(format!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]"
        )));
    }
    let own = (
        values.text("client-cert-file"),
        values.text("client-key-file"),
    );
    if own.0.is_empty() != own.1.is_empty() {
        return Err(Refusal::Start(format!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
            own.1, own.0
        )));
    }
    let names = values.words("client-cert-allowed-hostname").iter();
    Ok(Some(ListenerTls {
        certificate: certificate.into(),
        key: key.into(),
        authenticates: values.bool("client-cert-auth"),
        authorities: Some(values.text("trusted-ca-file"))
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        allowed_host_names: names.filter(|name| !name.is_empty()).cloned().collect(),
    }))
}

/// An empty list has several spellings.
fn is_empty_list(values: &Values, name: &str) -> bool {
    matches!(name, "cipher-suites" | "client-cert-allowed-hostname")
        && values.words(name).iter().all(String::is_empty)
}

/// A version's place in the order; nothing leaves it open.
fn version(name: &str) -> Result<Option<usize>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    match VERSIONS.iter().position(|known| *known == name) {
        Some(place) => Ok(Some(place)),
        None => Err(Refusal::Verify(format!(
            "unexpected TLS version {} (must be one of: TLS1.2, TLS1.3)",
            quote(name)
        ))),
    }
}
