//! Connections to other members: from a URL to something that carries calls.
//!
//! `dial` is the one place where an outgoing socket is made, and the one where it is encrypted.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::net::tls::TlsClient;
use crate::net::{KeepAlive, Stream, Windows};
use crate::types::socket_file;

/// The timeout of resolving the name and connecting.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// The kernel gives up a connection whose peer acknowledges nothing for this long.
pub const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(5);
/// Bytes transferred over a connection.
#[derive(Debug, Default)]
pub struct Moved {
    read: AtomicU64,
    written: AtomicU64,
}

impl Moved {
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Both ways.
    pub fn bytes(&self) -> u64 {
        self.read_bytes() + self.written.load(Ordering::Relaxed)
    }
}

/// A connection for calls. It ends with its last clone.
#[derive(Clone)]
pub struct Channel {
    sender: http2::SendRequest<Body>,
    origin: Uri,
    moved: Arc<Moved>,
    _connection: Arc<Ending>,
}

/// The tasks with which hyper runs a connection. hyper keeps them while a call is open, even on a
/// dead link; here they end with the connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

struct Ending(Tasks);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.0.lock().abort_all();
    }
}

impl Channel {
    /// The URL that calls are made to.
    pub fn origin(&self) -> Uri {
        self.origin.clone()
    }

    pub fn moved(&self) -> &Moved {
        &self.moved
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

/// How other sides are reached.
#[derive(Clone, Default)]
pub struct Dialler {
    /// How URLs with TLS are; none: they are not.
    pub tls: Option<Encryption>,
    /// The address of this machine that connections come from; none: the system chooses.
    pub local: Option<IpAddr>,
    /// Where connections are pinged, those without calls are too.
    pub pings_idle: bool,
}

impl From<Encryption> for Dialler {
    fn from(tls: Encryption) -> Self {
        Self {
            tls: Some(tls),
            ..Self::default()
        }
    }
}

#[derive(Clone)]
pub struct Encryption {
    client: Arc<TlsClient>,
    /// What every other side's certificate has to name; none: what its URL does.
    server_name: Option<Arc<str>>,
}

impl Encryption {
    pub fn new(client: Arc<TlsClient>, server_name: Option<&str>) -> Self {
        Self {
            client,
            server_name: server_name.map(Into::into),
        }
    }
}

impl Deref for Encryption {
    type Target = TlsClient;

    fn deref(&self) -> &TlsClient {
        &self.client
    }
}

/// Connects to one URL; the error says why it failed.
pub async fn dial(
    dialler: &Dialler,
    url: &str,
    keep_alive: Option<KeepAlive>,
) -> Result<Channel, String> {
    dial_within(CONNECT_LIMIT, dialler, url, keep_alive, Windows::OWN_CALLS).await
}

/// As `dial`, with the caller's timeout and windows.
pub async fn dial_within(
    limit: Duration,
    dialler: &Dialler,
    url: &str,
    keep_alive: Option<KeepAlive>,
    windows: Windows,
) -> Result<Channel, String> {
    tokio::time::timeout(limit, connect(dialler, url, keep_alive, windows))
        .await
        .unwrap_or_else(|_| Err(format!("no connection within {limit:?}")))
        .map_err(|reason| format!("{url}: {reason}"))
}

/// How a URL is reached.
pub struct Route {
    end: End,
    is_tls: bool,
    /// The name that the other side's certificate must have.
    host: String,
    /// What calls are addressed to.
    origin: Uri,
}

enum End {
    Port(u16),
    File(PathBuf),
}

impl Route {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// Why it cannot be reached by anybody.
    pub fn of(url: &str) -> Result<Self, String> {
        let is_tls = url.starts_with("https:") || url.starts_with("unixs:");
        if let Some(path) = socket_file(url) {
            // What stands in a URL's place of the host is a name, as in etcd; else the file has one.
            let first = path.components().next();
            let named = if path.is_absolute() {
                path.file_name()
            } else {
                first.map(|one| one.as_os_str())
            };
            let host = named.unwrap_or_default().to_string_lossy();
            let host = host.split(':').next().unwrap_or_default().to_owned();
            return Ok(Self {
                end: End::File(path),
                is_tls,
                host,
                origin: Uri::from_static("http://localhost"),
            });
        }
        let origin: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let is_known = matches!(origin.scheme_str(), Some("http" | "https"));
        let Some(host) = origin.host().filter(|_| is_known) else {
            return Err("it is neither http://HOST:PORT nor https://HOST:PORT, nor does it name the file of a socket, as unix:///PATH and unixs:///PATH do".to_owned());
        };
        // An IPv6 address is in brackets.
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = origin.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            end: End::Port(port),
            is_tls,
            host,
            origin,
        })
    }

    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// What calls are addressed to.
    pub fn origin(&self) -> &Uri {
        &self.origin
    }

    /// A connection without encryption.
    ///
    /// # Errors
    /// The system's.
    pub async fn connect(&self) -> io::Result<Stream> {
        self.connect_from(None).await
    }

    /// The same from an address of this machine, where it is one of the network.
    ///
    /// # Errors
    /// The system's.
    async fn connect_from(&self, local: Option<IpAddr>) -> io::Result<Stream> {
        Ok(match (&self.end, local) {
            (End::Port(port), None) => {
                Stream::Tcp(TcpStream::connect((self.host.as_str(), *port)).await?)
            }
            (End::Port(port), Some(local)) => {
                let remotes = lookup_host((self.host.as_str(), *port)).await?;
                Stream::Tcp(connect_any(local, remotes).await?)
            }
            (End::File(path), _) => Stream::Unix(UnixStream::connect(path).await?),
        })
    }
}

/// Connects to the first of these addresses that answers, of those that `local` can reach.
async fn connect_any(
    local: IpAddr,
    remotes: impl Iterator<Item = SocketAddr>,
) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("the host has no address that can be reached from {local}"),
    );
    for remote in remotes.filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
        let socket = match local {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.bind(SocketAddr::new(local, 0))?;
        match socket.connect(remote).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn connect(
    dialler: &Dialler,
    url: &str,
    keep_alive: Option<KeepAlive>,
    windows: Windows,
) -> Result<Channel, String> {
    let route = Route::of(url)?;
    let moved = Arc::new(Moved::default());
    let pings = keep_alive.map(|keep_alive| (keep_alive, dialler.pings_idle));
    let tls = match (route.is_tls, &dialler.tls) {
        (false, _) => None,
        (true, Some(tls)) => Some(tls),
        (true, None) => {
            let missing = "it has TLS, and neither --peer-trusted-ca-file nor --peer-cert-file says how to connect by it";
            return Err(missing.to_owned());
        }
    };
    let stream = route.connect_from(dialler.local).await;
    let stream = stream.map_err(|error| error.to_string())?;
    stream.tune(Some(UNACKNOWLEDGED_LIMIT));
    // Counted below TLS: what does not come there is the network's fault.
    let metered = Metered {
        stream,
        moved: moved.clone(),
    };
    match tls {
        None => channel(metered, route.origin, moved, pings, windows).await,
        Some(tls) => {
            let name = tls.server_name.as_deref().unwrap_or(&route.host);
            let secured = tls.connect(name, metered).await;
            let secured = secured.map_err(|error| format!("tls: {error}"))?;
            channel(secured, route.origin, moved, pings, windows).await
        }
    }
}

/// Speaks HTTP/2 over a connection.
async fn channel(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    origin: Uri,
    moved: Arc<Moved>,
    pings: Option<(KeepAlive, bool)>,
    windows: Windows,
) -> Result<Channel, String> {
    let tasks = Tasks::default();
    let ending = Ending(tasks.clone());
    let mut builder = http2::Builder::new(tasks.clone());
    windows.apply(&mut builder);
    if let Some((keep_alive, without_calls)) = pings {
        builder
            .keep_alive_interval(keep_alive.interval)
            .keep_alive_timeout(keep_alive.timeout)
            .keep_alive_while_idle(without_calls);
    }
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tasks.execute(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a peer ended");
        }
    });
    Ok(Channel {
        sender,
        origin,
        moved,
        _connection: Arc::new(ending),
    })
}

/// Counts transferred bytes.
struct Metered<S> {
    stream: S,
    moved: Arc<Moved>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.moved.read.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> Metered<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.moved
                .written
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
