//! How the founders of a cluster find each other without a list in the flags: by DNS or by a
//! discovery service. This module has only the flags; `server::discovery` does the rest.

use std::path::PathBuf;
use std::time::Duration;

use super::flags;
use super::keepalive::Keepalive;
use super::refusal::Refusal;
use super::values::{Source, Values};

/// Where a start without data gets the founders from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// From `--initial-cluster`.
    Static,
    Dns(DnsDiscovery),
    Service(DiscoveryService),
}

impl Discovery {
    /// The discovery service's token; empty for none.
    pub fn token(&self) -> &str {
        match self {
            Discovery::Service(service) => &service.token,
            _ => "",
        }
    }

    /// The discovery service's endpoints, with commas between them.
    pub fn endpoints(&self) -> String {
        match self {
            Discovery::Service(service) => service.endpoints.join(","),
            _ => String::new(),
        }
    }
}

/// SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsDiscovery {
    pub domain: String,
    /// A suffix of the services' names, after a dash; may be empty.
    pub suffix: String,
}

/// A cluster with the etcd v3 API, in which founders register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryService {
    /// As given, sorted; never empty, nor is one of them.
    pub endpoints: Vec<String>,
    /// Identifies the new cluster there, and replaces `--initial-cluster-token`.
    pub token: String,
    pub dial_timeout: Duration,
    pub request_timeout: Duration,
    pub keepalive: Option<Keepalive>,
    pub credentials: Option<Credentials>,
    pub tls: DiscoveryTls,
}

impl DiscoveryService {
    /// The URLs of the endpoints, and whether each is encrypted.
    pub fn urls(&self) -> impl Iterator<Item = (String, bool)> {
        self.endpoints.iter().map(|endpoint| {
            let endpoint = endpoint.trim();
            match endpoint.split_once(':') {
                Some((scheme, _)) if SCHEMES.contains(&scheme) => {
                    let is_encrypted = matches!(scheme, "https" | "unixs");
                    (endpoint.to_owned(), is_encrypted)
                }
                _ if self.tls.is_default => (format!("https://{endpoint}"), true),
                _ => (format!("http://{endpoint}"), false),
            }
        })
    }
}

/// How a discovery service is reached by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryTls {
    /// Whether endpoints without a scheme have it.
    pub is_default: bool,
    /// `--discovery-insecure-transport`.
    pub insecure_transport: bool,
    /// Whether the service's certificate is verified.
    pub verifies: bool,
    /// The certificate that is shown, and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The authorities for the service's certificate; none: the machine's.
    pub authorities: Option<PathBuf>,
}

impl DiscoveryTls {
    fn of(values: &Values) -> Result<Self, Refusal> {
        let (certificate, key) = (values.text("discovery-cert"), values.text("discovery-key"));
        if certificate.is_empty() != key.is_empty() {
            return Err(Refusal::Start(format!(
                "KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]"
            )));
        }
        let insecure_transport = values.bool("discovery-insecure-transport");
        let pair = Some((certificate.into(), key.into())).filter(|_| !key.is_empty());
        let authorities = values.text("discovery-cacert");
        let authorities = Some(authorities).filter(|path| !path.is_empty());
        Ok(Self {
            is_default: !insecure_transport || pair.is_some() || authorities.is_some(),
            insecure_transport,
            verifies: !values.bool("discovery-insecure-skip-tls-verify"),
            pair,
            authorities: authorities.map(PathBuf::from),
        })
    }
}

/// Those that an endpoint may have.
const SCHEMES: [&str; 4] = ["http", "https", "unix", "unixs"];

/// The credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A password must not be logged.
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// `--initial-cluster`, unless a discovery replaces its default.
pub fn initial_cluster(values: &Values, from: Source) -> &str {
    let text = values.text("initial-cluster");
    let dns = !values.text("discovery-srv").is_empty();
    let service = !values.words("discovery-endpoints").is_empty();
    let gives_way = match from {
        Source::CommandLine => {
            let named = !values.text("discovery-srv-name").is_empty();
            (dns || service || named) && !values.is_given("initial-cluster")
        }
        // The values of a file do not show which ones were left out.
        Source::File => {
            let default = flags::find("initial-cluster").map(|flag| flag.default);
            (dns || service) && default == Some(text)
        }
    };
    if gives_way { "" } else { text }
}

/// Checks the combination of flags.
///
/// # Errors
/// etcd's texts.
pub fn check(values: &Values, from: Source) -> Result<(), Refusal> {
    let endpoints = values.words("discovery-endpoints");
    let ways = [
        !initial_cluster(values, from).is_empty(),
        !values.text("discovery-srv").is_empty(),
        !endpoints.is_empty(),
    ];
    let refuse = |text: &str| Err(Refusal::Verify(text.to_owned()));
    if ways.iter().filter(|way| **way).count() > 1 {
        return refuse(
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
        );
    }
    if values.text("discovery-token").is_empty() != endpoints.is_empty() {
        return refuse("both --discovery-token and --discovery-endpoints must be set");
    }
    if endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
        return refuse("--discovery-endpoints must not contain empty endpoints");
    }
    Ok(())
}

/// The discovery that the flags, which `check` accepted, configure.
///
/// # Errors
/// An endpoint with another scheme.
pub fn settle(values: &Values) -> Result<Discovery, Refusal> {
    let endpoints = values.words("discovery-endpoints");
    if !endpoints.is_empty() {
        return service(values, endpoints).map(Discovery::Service);
    }
    let domain = values.text("discovery-srv");
    if domain.is_empty() {
        return Ok(Discovery::Static);
    }
    Ok(Discovery::Dns(DnsDiscovery {
        domain: domain.to_owned(),
        suffix: values.text("discovery-srv-name").to_owned(),
    }))
}

fn service(values: &Values, endpoints: &[String]) -> Result<DiscoveryService, Refusal> {
    for endpoint in endpoints {
        if let Some((scheme, _)) = endpoint.split_once("://")
            && !SCHEMES.contains(&scheme)
        {
            // etcd's client takes `dns:///HOST:PORT` itself for an address, and tries it for ever.
            return Err(Refusal::Verify(format!(
                "--discovery-endpoints with {scheme} reaches nothing; use http, https, unix or unixs"
            )));
        }
    }
    let (user, password) = (
        values.text("discovery-user"),
        values.text("discovery-password"),
    );
    // As in etcd, user or password alone are no credentials.
    let credentials = (!user.is_empty() && !password.is_empty()).then(|| Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    });
    let keepalive = Keepalive::of(
        values,
        "discovery-keepalive-time",
        "discovery-keepalive-timeout",
    );
    Ok(DiscoveryService {
        endpoints: endpoints.to_vec(),
        token: values.text("discovery-token").to_owned(),
        dial_timeout: or_default(values, "discovery-dial-timeout"),
        request_timeout: or_default(values, "discovery-request-timeout"),
        keepalive,
        credentials,
        tls: DiscoveryTls::of(values)?,
    })
}

/// A missing or invalid time stands for the default.
fn or_default(values: &Values, name: &str) -> Duration {
    let default = || {
        let flag = flags::find(name)?;
        super::duration::parse_ns(flag.default).ok()
    };
    values
        .positive(name)
        .or_else(|| u64::try_from(default()?).ok().map(Duration::from_nanos))
        .unwrap_or(Duration::from_secs(5))
}
