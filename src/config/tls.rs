//! TLS flags, as far as they can be checked without a certificate: etcd refuses unknown names even
//! if nothing is encrypted. Files are read at the start (`net::tls`).

use std::path::{Path, PathBuf};

use super::flags;
use super::go_syntax::quote;
use super::note::Note;
use super::refusal::Refusal;
use super::urls::Url;
use super::value::Value;
use super::values::{Source, Values};

/// How listeners of one kind are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// What to make both files of, where they are not there.
    pub made: Option<SelfSigned>,
    /// `--client-cert-auth`: certificates are demanded, and the name in one is a user's.
    pub authenticates: bool,
    /// The authorities for clients' certificates. They alone demand one, too.
    pub authorities: Option<PathBuf>,
    /// The list of certificates that are not accepted any more.
    pub revoked: Option<PathBuf>,
    pub allowed: AllowedNames,
    /// Whether the names in a certificate must be those of the address that it is shown from.
    pub checks_source: bool,
}

/// A certificate that etched makes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfSigned {
    /// Where its files are.
    pub directory: PathBuf,
    /// The names and addresses that are listened on.
    pub hosts: Vec<String>,
    /// So long it is valid.
    pub years: u64,
}

/// Names of which a certificate must have one; empty for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedNames {
    pub common_names: Vec<String>,
    pub host_names: Vec<String>,
}

/// How connections between members are encrypted, as far as their URLs say that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTls {
    /// None if no URL to listen on says so.
    pub listener: Option<ListenerTls>,
    /// The certificate that is shown to others, and its key.
    pub shown: Option<(PathBuf, PathBuf)>,
    /// Whether others' certificates are verified, which those that members make cannot be.
    pub verifies: bool,
    /// The authorities for others' certificates; none: the machine's.
    pub authorities: Option<PathBuf>,
    /// The list of certificates that are not accepted any more.
    pub revoked: Option<PathBuf>,
    pub allowed: AllowedNames,
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

/// What does nothing without TLS: for clients, for members, for both.
const CLIENT_NAMES: [&str; 2] = ["client-cert-allowed-cn", "client-cert-allowed-hostname"];
const PEER_NAMES: [&str; 2] = ["peer-cert-allowed-cn", "peer-cert-allowed-hostname"];
const CLIENT_FLAGS: [&str; 5] = [
    "auto-tls",
    "trusted-ca-file",
    "client-crl-file",
    "client-cert-allowed-cn",
    "client-cert-allowed-hostname",
];
const PEER_FLAGS: [&str; 6] = [
    "peer-crl-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "peer-skip-client-san-verification",
];
/// What counts for certificates of authorities alone.
const CLIENT_VERIFICATION: [&str; 5] = [
    "client-cert-auth",
    "trusted-ca-file",
    "client-crl-file",
    "client-cert-allowed-cn",
    "client-cert-allowed-hostname",
];
const PEER_VERIFICATION: [&str; 8] = [
    "peer-client-cert-auth",
    "peer-trusted-ca-file",
    "peer-crl-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "peer-skip-client-san-verification",
];
const PROTOCOL_FLAGS: [&str; 3] = ["cipher-suites", "tls-min-version", "tls-max-version"];
const NO_PEER_TLS: &str = "members are not connected by TLS; no certificate is in use";
const VALIDITY: &str = "self-signed-cert-validity";
const NO_AUTHORITY: &str =
    "no authority vouches for certificates that members make for themselves, so none is verified";
const NO_CERTIFICATES: &str =
    "without --client-cert-auth or --trusted-ca-file no client has to have a certificate";
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
    let suites = values.words("cipher-suites");
    protocol_of(min, max, suites).map(drop)
}

/// The versions and cipher suites of these names.
///
/// # Errors
/// etcd's texts.
pub fn protocol_of(min: &str, max: &str, suites: &[String]) -> Result<TlsProtocol, Refusal> {
    const ALL: [TlsVersion; 2] = [TlsVersion::Tls12, TlsVersion::Tls13];
    let (least, most) = (version(min)?, version(max)?);
    if most.is_some() && least > most {
        let text = format!("min version ({min}) is greater than max version ({max})");
        return Err(Refusal::Verify(text));
    }
    let suites = suites.iter().filter(|name| !name.is_empty());
    if least == version("TLS1.3")? && suites.clone().next().is_some() {
        let text = "cipher suites cannot be configured when only TLS1.3 is enabled";
        return Err(Refusal::Verify(text.to_owned()));
    }
    for name in suites.clone() {
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
    Ok(TlsProtocol {
        least: ALL[least.unwrap_or(0)],
        most: ALL[most.unwrap_or(ALL.len() - 1)],
        cipher_suites: suites.cloned().collect(),
    })
}

/// How clients and members are encrypted, in that order, and with what.
type Settled = (Option<ListenerTls>, Option<PeerTls>, TlsProtocol);

/// Settles what `check` accepted.
///
/// # Errors
/// etcd's texts for files that are not named, and for names that exclude each other.
pub fn settle(
    values: &Values,
    data_dir: &Path,
    from: Source,
    notes: &mut Vec<Note>,
) -> Result<Settled, Refusal> {
    let clients = of_clients(values, data_dir, from, notes)?;
    let peers = of_peers(values, data_dir, from, notes)?;
    let protocol = protocol(values, clients.as_ref(), peers.as_ref(), notes);
    Ok((clients, peers, protocol))
}

/// Versions and suites, for the connections that have TLS.
fn protocol(
    values: &Values,
    clients: Option<&ListenerTls>,
    peers: Option<&PeerTls>,
    notes: &mut Vec<Note>,
) -> TlsProtocol {
    if clients.is_none() && peers.is_none() {
        note_without_effect(values, &PROTOCOL_FLAGS, NO_TLS_LISTENER, notes);
    }
    let peers = peers.and_then(|tls| tls.listener.as_ref());
    let mut listeners = clients.into_iter().chain(peers);
    if !listeners.any(|listener| listener.made.is_some()) {
        note_without_effect(values, &[VALIDITY], "no certificate is made", notes);
    }
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
fn of_clients(
    values: &Values,
    data_dir: &Path,
    from: Source,
    notes: &mut Vec<Note>,
) -> Result<Option<ListenerTls>, Refusal> {
    let (certificate, key) = (values.text("cert-file"), values.text("key-file"));
    let given = !certificate.is_empty() || !key.is_empty();
    let is_made = is_made(values, "auto-tls", given, notes);
    let no_pair = !given && !is_made;
    let is_encrypted = |url: &&Url| url.scheme.is_encrypted();
    let clients = || {
        let http = values.urls("listen-client-http-urls");
        values.urls("listen-client-urls").iter().chain(http)
    };
    let metrics = values.urls("listen-metrics-urls");
    if let Some(url) = clients().find(is_encrypted).filter(|_| no_pair) {
        return Err(Refusal::Start(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {} with HTTPS scheme",
            url.as_str()
        )));
    }
    for url in clients().filter(|url| !is_encrypted(url)) {
        let warnings = [
            (
                !no_pair,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            ),
            (
                values.bool("client-cert-auth") && !is_made,
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        warn_of(warnings, "client-url", url, notes);
    }
    if no_pair && metrics.iter().any(|url| is_encrypted(&url)) {
        let text =
            "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
        return Err(Refusal::Start(text.to_owned()));
    }
    if !clients().chain(metrics).any(|url| is_encrypted(&url)) {
        note_without_effect(values, &CLIENT_FLAGS, NO_TLS_LISTENER, notes);
        return Ok(None);
    }
    if is_made {
        note_without_effect(values, &CLIENT_VERIFICATION, NO_AUTHORITY, notes);
        let hosts = clients().chain(metrics).map(|url| &*url.host);
        let made = self_signed(values, data_dir.join("fixtures/client"), hosts, from)?;
        return Ok(Some(ListenerTls::made(made)));
    }
    if certificate.is_empty() || key.is_empty() {
        return Err(Refusal::Listen(format!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]"
        )));
    }
    pair_to_show(values, "client-cert-file", "client-key-file").map_err(Refusal::Listen)?;
    let authenticates = values.bool("client-cert-auth");
    let authorities = path(values, "trusted-ca-file");
    if !authenticates && authorities.is_none() {
        note_without_effect(values, &CLIENT_FLAGS, NO_CERTIFICATES, notes);
    }
    Ok(Some(ListenerTls {
        certificate: certificate.into(),
        key: key.into(),
        made: None,
        authenticates,
        authorities,
        revoked: path(values, "client-crl-file"),
        allowed: allowed_names(values, CLIENT_NAMES)?,
        checks_source: false,
    }))
}

/// How connections between members are encrypted; none if nothing says how.
fn of_peers(
    values: &Values,
    data_dir: &Path,
    from: Source,
    notes: &mut Vec<Note>,
) -> Result<Option<PeerTls>, Refusal> {
    let (certificate, key) = (values.text("peer-cert-file"), values.text("peer-key-file"));
    let given = !certificate.is_empty() || !key.is_empty();
    let is_made = is_made(values, "peer-auto-tls", given, notes);
    let no_pair = !given && !is_made;
    let authenticates = values.bool("peer-client-cert-auth") && !is_made;
    let mut is_encrypted = false;
    for url in values.urls("listen-peer-urls") {
        if url.scheme.is_encrypted() {
            is_encrypted = true;
            if no_pair {
                return Err(Refusal::Start(format!(
                    "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
                    url.place()
                )));
            }
            continue;
        }
        let warnings = [
            (
                !no_pair,
                "scheme is HTTP while key and cert files are present; ignoring key and cert files",
            ),
            (
                authenticates,
                "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        warn_of(warnings, "peer-url", url, notes);
    }
    if is_made {
        note_without_effect(values, &PEER_VERIFICATION, NO_AUTHORITY, notes);
        let hosts = values.urls("listen-peer-urls").iter().map(|url| &*url.host);
        let made = self_signed(values, data_dir.join("fixtures/peer"), hosts, from)?;
        return Ok(Some(PeerTls::made(is_encrypted.then_some(made))));
    }
    if certificate.is_empty() != key.is_empty() {
        return Err(Refusal::Start(format!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]"
        )));
    }
    let allowed = allowed_names(values, PEER_NAMES)?;
    let authorities = path(values, "peer-trusted-ca-file");
    let revoked = path(values, "peer-crl-file");
    if no_pair && authorities.is_none() {
        note_without_effect(values, &PEER_FLAGS, NO_PEER_TLS, notes);
        return Ok(None);
    }
    let own = pair_to_show(values, "peer-client-cert-file", "peer-client-key-file")
        .map_err(Refusal::Start)?;
    let pair = Some((certificate.into(), key.into())).filter(|_| !no_pair);
    Ok(Some(PeerTls {
        listener: is_encrypted.then(|| ListenerTls {
            certificate: certificate.into(),
            key: key.into(),
            made: None,
            authenticates,
            authorities: authorities.clone(),
            revoked: revoked.clone(),
            allowed: allowed.clone(),
            checks_source: !values.bool("peer-skip-client-san-verification"),
        }),
        shown: own.or(pair),
        verifies: true,
        authorities,
        revoked,
        allowed,
    }))
}

/// The names of two flags, of which one may be set.
fn allowed_names(
    values: &Values,
    [common_names, host_names]: [&str; 2],
) -> Result<AllowedNames, Refusal> {
    let allowed = AllowedNames {
        common_names: named(values, common_names),
        host_names: named(values, host_names),
    };
    if !allowed.common_names.is_empty() && !allowed.host_names.is_empty() {
        return Err(Refusal::Start(format!(
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns={}, hostnames={})",
            quoted(&allowed.common_names),
            quoted(&allowed.host_names)
        )));
    }
    Ok(allowed)
}

impl ListenerTls {
    /// With a certificate of its own, and none asked of others.
    fn made(made: SelfSigned) -> Self {
        Self {
            certificate: made.directory.join("cert.pem"),
            key: made.directory.join("key.pem"),
            made: Some(made),
            authenticates: false,
            authorities: None,
            revoked: None,
            allowed: AllowedNames::default(),
            checks_source: false,
        }
    }
}

impl PeerTls {
    fn made(listened: Option<SelfSigned>) -> Self {
        let listener = listened.map(ListenerTls::made);
        let pair = listener.as_ref();
        Self {
            shown: pair.map(|pair| (pair.certificate.clone(), pair.key.clone())),
            listener,
            verifies: false,
            authorities: None,
            revoked: None,
            allowed: AllowedNames::default(),
        }
    }
}

/// Whether etched makes the certificate itself; one that is given counts before.
fn is_made(values: &Values, flag: &str, given: bool, notes: &mut Vec<Note>) -> bool {
    let wanted = values.bool(flag);
    if wanted && given {
        notes.push(Note::warn(match flag {
            "auto-tls" => "ignoring client auto TLS since certs given",
            _ => "ignoring peer auto TLS since certs given",
        }));
    }
    wanted && !given
}

fn self_signed<'a>(
    values: &Values,
    directory: PathBuf,
    hosts: impl Iterator<Item = &'a str>,
    from: Source,
) -> Result<SelfSigned, Refusal> {
    let years = match (values.uint(VALIDITY), from) {
        (0, Source::CommandLine) => {
            let text = "selfSignedCertValidity is invalid,it should be greater than 0";
            return Err(Refusal::Start(text.to_owned()));
        }
        // As in etcd.
        (0, Source::File) => 1,
        (years, _) => years,
    };
    let mut hosts: Vec<_> = hosts.map(str::to_owned).collect();
    hosts.sort();
    hosts.dedup();
    Ok(SelfSigned {
        directory,
        hosts,
        years,
    })
}

/// The files of a pair that is shown to others, if it has its own.
fn pair_to_show(
    values: &Values,
    certificate: &str,
    key: &str,
) -> Result<Option<(PathBuf, PathBuf)>, String> {
    let pair = (path(values, certificate), path(values, key));
    match pair {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(format!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
            values.text(key),
            values.text(certificate)
        )),
    }
}

fn warn_of(
    warnings: [(bool, &'static str); 2],
    key: &'static str,
    url: &Url,
    notes: &mut Vec<Note>,
) {
    for (_, text) in warnings.into_iter().filter(|(is_so, _)| *is_so) {
        notes.push(Note::warn(text).with(key, url.as_str()));
    }
}

fn path(values: &Values, name: &str) -> Option<PathBuf> {
    let path = Some(values.text(name)).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}

fn named(values: &Values, name: &str) -> Vec<String> {
    let names = values.words(name).iter();
    names.filter(|name| !name.is_empty()).cloned().collect()
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| quote(name)).collect();
    format!("[{}]", names.join(" "))
}

/// Says so of those flags that are set.
fn note_without_effect(
    values: &Values,
    names: &'static [&'static str],
    reason: &'static str,
    notes: &mut Vec<Note>,
) {
    for name in names {
        let default = flags::find(name).map(|flag| flag.kind.default_value(flag.default));
        let value = values.get(name);
        // An empty list has several spellings.
        let is_empty = matches!(value, Value::Words(words) if words.iter().all(String::is_empty));
        if default.as_ref() != Some(value) && !is_empty {
            notes.push(
                Note::warn("the flag has no effect in etched")
                    .with("flag", *name)
                    .with("reason", reason),
            );
        }
    }
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
