//! The handshake of a listener.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::certificate::expiries;
use super::handshakes::Handshakes;
use super::hello::Offered;
use super::reread::Reread;
use super::verify::{Accepted, ClientVerifier};
use super::{Certificate, Error, Expiry, ServerSettings, files, hello, shown, source, suites};
use crate::net::Versions;

/// From the first byte to the end of a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes that have begun to calculate at once, of one kind of listener.
pub const MAX_HANDSHAKES: usize = 1024;

/// Why a handshake failed whose client went away.
pub const EOF: &str = "EOF";

/// Serves TLS; shared by the listeners of one kind.
pub struct TlsServer {
    configs: Reread<Configs>,
    checks_source: bool,
    handshakes: Handshakes,
}

/// The same for each protocol that a listener may speak.
struct Configs {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    both: Arc<ServerConfig>,
    expiry: Expiry,
}

/// What a handshake agreed on.
#[derive(Clone, Debug)]
pub struct Session {
    /// The client's, verified; none if none was asked for.
    pub certificate: Option<Certificate>,
}

/// A handshake that came to nothing.
#[derive(Debug)]
pub struct Refused {
    /// What the client called this server; empty if it did not.
    pub server_name: String,
    /// That of a client whose certificate was refused.
    pub certificate: Option<Certificate>,
    pub reason: String,
}

impl Refused {
    /// Of a client that called this server nothing.
    pub fn new(reason: &str) -> Self {
        Self {
            server_name: String::new(),
            certificate: None,
            reason: reason.to_owned(),
        }
    }
}

impl TlsServer {
    /// `who` connects, for the log.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn new(who: &'static str, settings: ServerSettings) -> Result<Arc<Self>, Error> {
        let paths = settings.paths();
        let clients = settings.clients.as_ref();
        let checks_source = clients.is_some_and(|clients| clients.checks_source);
        let configs = Reread::new(who, paths, move || configs(&settings))?;
        Ok(Arc::new(Self {
            configs,
            checks_source,
            handshakes: Handshakes::new(MAX_HANDSHAKES),
        }))
    }

    /// When what is in use expires.
    pub async fn expiry(&self) -> Expiry {
        self.configs.current().await.expiry
    }

    /// Makes the handshake of a connection, and tells what certificate the client has shown.
    ///
    /// # Errors
    /// Why there is no connection; the client has seen as much of it as TLS has words for.
    pub async fn accept<S>(
        &self,
        stream: S,
        source: Option<IpAddr>,
        versions: Versions,
    ) -> Result<(TlsStream<S>, Session), Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut server_name = String::new();
        let mut offered = Offered::default();
        // Those who come by a socket file share what one address may have.
        let counted_as = source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let handshake =
            self.handshake(stream, counted_as, versions, &mut server_name, &mut offered);
        let handshake = shown::during(tokio::time::timeout(HANDSHAKE_LIMIT, handshake));
        let (done, shown) = handshake.await;
        let done = done.unwrap_or_else(|_| {
            let reason = format!("tls: no handshake within {HANDSHAKE_LIMIT:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        });
        let stream = match done {
            Ok(stream) => stream,
            Err(error) => {
                return Err(Refused {
                    server_name,
                    certificate: shown.certificate,
                    reason: shown.reason.unwrap_or_else(|| reason(&error, &offered)),
                });
            }
        };
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain.and_then(|chain| Certificate::of(chain.first()?));
        // At a socket file there is no address that a certificate could name.
        if self.checks_source
            && let (Some(certificate), Some(source)) = (&certificate, source)
            && let Err(reason) = source::check(certificate, source).await
        {
            return Err(Refused {
                server_name,
                certificate: Some(certificate.clone()),
                reason,
            });
        }
        Ok((stream, Session { certificate }))
    }

    async fn handshake<S>(
        &self,
        mut stream: S,
        source: IpAddr,
        versions: Versions,
        server_name: &mut String,
        offered: &mut Offered,
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = hello::read(&mut stream, offered).await?;
        let start = StartHandshake::from_parts(accepted, stream);
        if let Some(name) = start.client_hello().server_name() {
            name.clone_into(server_name);
        }
        // Before it has a permit: a file system may let it wait.
        let configs = self.configs.current().await;
        let mut place = self.handshakes.enter(source).await;
        let config = match versions {
            Versions::Http1 => &configs.http1,
            Versions::Http2 => &configs.http2,
            Versions::Both => &configs.both,
        };
        tokio::select! {
            stream = start.into_stream(config.clone()) => stream,
            () = place.given_up() => {
                let reason = "tls: given up for handshakes of other addresses; too many are under way";
                Err(io::Error::other(reason))
            }
        }
    }
}

impl ServerSettings {
    fn paths(&self) -> Vec<PathBuf> {
        let pair = [self.certificate.clone(), self.key.clone()];
        let others = self.clients.iter().flat_map(|clients| {
            let authorities = files::of_authorities(clients.authorities.as_ref());
            authorities.into_iter().chain(clients.revoked.clone())
        });
        pair.into_iter().chain(others).collect()
    }
}

fn configs(settings: &ServerSettings) -> Result<Configs, Error> {
    let provider = suites::provider(&settings.protocol);
    let chain = files::chain(&settings.certificate)?;
    let key = files::key(&settings.key)?;
    let mut expiry = Expiry {
        shown: expiries(&chain).min(),
        authorities: None,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&suites::versions(&settings.protocol))?;
    let builder = match &settings.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let (authorities, revoked) = (&clients.authorities, &clients.revoked);
            let accepted =
                Accepted::read(authorities.as_deref(), revoked.as_deref(), &clients.allowed)?;
            expiry.authorities = accepted.authorities.expiry;
            builder.with_client_cert_verifier(ClientVerifier::new(accepted, provider)?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let with = |protocols: &[&[u8]]| {
        let mut config = config.clone();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    Ok(Configs {
        http1: with(&[b"http/1.1"]),
        http2: with(&[b"h2"]),
        both: with(&[b"h2", b"http/1.1"]),
        expiry,
    })
}

/// Why a handshake failed, in etcd's words where it has some.
fn reason(error: &io::Error, offered: &Offered) -> String {
    use rustls::{CertificateError as Certificate, Error as Tls};
    let inside = error
        .get_ref()
        .and_then(|inside| inside.downcast_ref::<Tls>());
    let words = match inside {
        Some(Tls::NoCertificatesPresented) => "tls: client didn't provide a certificate",
        Some(Tls::InvalidCertificate(Certificate::BadSignature)) => {
            "tls: invalid signature by the client certificate"
        }
        Some(Tls::InvalidMessage(_)) => "tls: first record does not look like a TLS handshake",
        Some(error) if hello::is_too_old(error) => {
            return format!("tls: client offered only unsupported versions: {offered}");
        }
        Some(Tls::AlertReceived(alert)) => return format!("remote error: tls: {alert:?}"),
        Some(other) => return format!("tls: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => EOF,
        None => return error.to_string(),
    };
    words.to_owned()
}
