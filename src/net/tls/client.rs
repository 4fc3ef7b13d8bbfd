//! The handshake of an outgoing connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{Certificate, expiries};
use super::reread::Reread;
use super::verify::{Accepted, AnyServer, ServerVerifier};
use super::{Allowed, Error, Expiry, Protocol, files, shown, suites};

/// How outgoing connections are encrypted.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// The certificate that is shown where one is demanded, and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// Whether servers' certificates are verified. If not, what follows does not count.
    pub verifies: bool,
    /// The authorities that vouch for servers; none: those that the machine trusts.
    pub authorities: Option<PathBuf>,
    /// The list of those that are not accepted any more.
    pub revoked: Option<PathBuf>,
    pub allowed: Allowed,
    pub protocol: Protocol,
}

/// Connects by TLS, for HTTP/2.
pub struct TlsClient(Reread<Configured>);

struct Configured {
    config: Arc<ClientConfig>,
    expiry: Expiry,
}

impl TlsClient {
    /// `whom` is connected to, for the log.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn new(whom: &'static str, settings: ClientSettings) -> Result<Arc<Self>, Error> {
        let pair = settings
            .pair
            .clone()
            .map(|(certificate, key)| [certificate, key]);
        let mut paths: Vec<_> = pair.into_iter().flatten().collect();
        if settings.verifies {
            paths.extend(files::of_authorities(settings.authorities.as_ref()));
            paths.extend(settings.revoked.clone());
        }
        let config = Reread::new(whom, paths, move || configured(&settings))?;
        Ok(Arc::new(Self(config)))
    }

    /// When what is in use expires.
    pub async fn expiry(&self) -> Expiry {
        self.0.current().await.expiry
    }

    /// Makes the handshake with a server that has to be known by the name `host`, for as long as
    /// the caller waits.
    ///
    /// # Errors
    /// The library's, or a host that is neither a name nor an address.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.0.current().await.config.clone());
        let (connected, shown) = shown::during(connector.connect(name, stream)).await;
        connected.map_err(|error| shown.reason.map_or(error, io::Error::other))
    }
}

/// Whom the certificate in a file names as its holder; empty if nobody.
///
/// # Errors
/// The file cannot be read or has no certificate.
pub fn common_name(path: &Path) -> Result<String, Error> {
    let chain = files::chain(path)?;
    let first = chain.first().and_then(Certificate::of);
    Ok(first.unwrap_or_default().common_name)
}

fn configured(settings: &ClientSettings) -> Result<Configured, Error> {
    let provider = suites::provider(&settings.protocol);
    let mut expiry = Expiry::default();
    let verifier: Arc<dyn ServerCertVerifier> = if settings.verifies {
        let (authorities, revoked) = (&settings.authorities, &settings.revoked);
        let accepted = Accepted::read(
            authorities.as_deref(),
            revoked.as_deref(),
            &settings.allowed,
        )?;
        expiry.authorities = accepted.authorities.expiry;
        ServerVerifier::new(accepted, provider.clone())?
    } else {
        Arc::new(AnyServer(provider.clone()))
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&suites::versions(&settings.protocol))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.pair {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = files::chain(certificate)?;
            expiry.shown = expiries(&chain).min();
            builder.with_client_auth_cert(chain, files::key(key)?)?
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Configured {
        config: Arc::new(config),
        expiry,
    })
}
