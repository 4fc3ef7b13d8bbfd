//! Takes connections of a listener and serves HTTP on each, until its member stops.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::body::Body;

use super::allowance::{Allowance, ConnectionPermit};
use super::guard::{Guard, Guarded};
use super::http2::Http2;
use super::listen::Listener;
use super::sending::Sending;
use super::stream::Stream;
use super::takeover::Upcoming;
use super::tls::{Refused, Rejections, Session, TlsServer};
use super::versions::Versions;
use crate::budget::streams::StreamsOfConnection;
use crate::budget::unread::{self, Unread};
use crate::budget::unsent::{self, Unsent};
use crate::error::Error;
use crate::types::Remote;

/// So long a stop waits for a connection on which somebody waits for an answer.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// And so long for one on which nobody does: what is in the buffers gets out, and a stream, which
/// may never end, is cut. A single member serves again the sooner.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// What a connection of HTTP/1 may send ahead, and the largest head of a request. Its requests are
/// answered one by one: the next is read when the answer before it has been written.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;
/// Between two lines in the log that connections are refused, or cannot be taken.
const QUIET: Duration = Duration::from_secs(60);
/// Before the next try to take a connection, where one failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The first byte of a TLS connection, and of none in plain text.
const TLS_HANDSHAKE: u8 = 0x16;

/// How the connections of a listener are encrypted.
#[derive(Clone)]
pub enum Security {
    Plain,
    Tls(Arc<TlsServer>),
    /// As each client likes it.
    Either(Arc<TlsServer>),
}

/// How the connections of a listener are served.
#[derive(Clone)]
pub struct ServeOptions {
    /// Who connects, for the log.
    pub who: &'static str,
    pub versions: Versions,
    pub security: Security,
    /// Reports those whose connections were not secured.
    pub rejections: Arc<Rejections>,
    pub http2: Http2,
    /// What clients of any make are held to; none among members.
    pub guard: Option<Guard>,
    /// How many connections may be open, with other listeners that share it.
    pub allowance: Arc<Allowance>,
    /// Counts what guarded connections have unread.
    pub unread: Arc<Unread>,
    /// Counts what connections were answered and the network has not taken.
    pub unsent: Arc<Unsent>,
    /// From a connection to its first byte.
    pub first_byte_limit: Duration,
    /// To the end of the head of a request of HTTP/1.
    pub head_limit: Duration,
    /// The kernel gives up a connection whose other side acknowledges nothing for this long;
    /// none: when the system's time is over.
    pub unacknowledged_limit: Option<Duration>,
}

/// A connection, as the service that answers its requests sees it.
pub struct Client {
    pub remote: Remote,
    /// Its address here; none at a file.
    pub local: Option<SocketAddr>,
    /// None in plain text.
    pub session: Option<Session>,
    /// What it sent and nobody has read.
    pub unread: Arc<unread::Connection>,
}

/// What answers requests.
pub trait Service:
    hyper::service::Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future: Send + Unpin + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Service for S where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Body>,
            Error = Infallible,
            Future: Send + Unpin + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// A service that knows how many calls wait for the beginning of their answers, what the network
/// has not taken of those, and what an answer makes of its connection.
struct Counting<S> {
    service: S,
    waiting: Arc<AtomicUsize>,
    unsent: Arc<unsent::Connection>,
    /// None where they are not counted.
    streams: Option<Arc<StreamsOfConnection>>,
    upcoming: Upcoming,
}

/// An answer that is waited for.
struct Awaited<F> {
    answer: F,
    /// None for one that is there already.
    waiting: Option<Arc<AtomicUsize>>,
    unsent: Arc<unsent::Connection>,
    wish: Option<OnUpgrade>,
    upcoming: Upcoming,
}

impl<S: Service> hyper::service::Service<Request<Incoming>> for Counting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Awaited<Either<S::Future, Ready<Result<S::Response, S::Error>>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let is_over = self.is_over();
        if !is_over {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        Awaited {
            wish: Upcoming::wish(&mut request),
            answer: match is_over {
                false => Either::Left(self.service.call(request)),
                true => Either::Right(ready(Ok(too_many_streams(&request)))),
            },
            waiting: (!is_over).then(|| self.waiting.clone()),
            unsent: self.unsent.clone(),
            upcoming: self.upcoming.clone(),
        }
    }
}

impl<S> Counting<S> {
    fn is_over(&self) -> bool {
        self.streams.as_ref().is_some_and(|of| of.is_over())
    }
}

fn too_many_streams(request: &Request<Incoming>) -> Response<Body> {
    let content_type = request.headers().get(CONTENT_TYPE);
    if content_type.is_some_and(|of| of.as_bytes().starts_with(b"application/grpc")) {
        return Status::from(Error::TooManyStreams).into_http();
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

impl<F, E> Future for Awaited<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(answer.map(|mut answer| {
            let wish = self.wish.take();
            self.upcoming.answered(wish, &mut answer);
            if answer.body().is_end_stream() {
                return answer;
            }
            answer.map(|body| Body::new(Sending::new(body, self.unsent.clone())))
        }))
    }
}

impl<F> Drop for Awaited<F> {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Resolves when a connection that is to end has had its time.
async fn drained(waiting: &AtomicUsize) {
    let answered = async {
        let mut quiet = Duration::ZERO;
        while quiet < FLUSH_LIMIT {
            tokio::time::sleep(DRAIN_POLL).await;
            let is_quiet = waiting.load(Ordering::Relaxed) == 0;
            quiet = if is_quiet {
                quiet + DRAIN_POLL
            } else {
                Duration::ZERO
            };
        }
    };
    // Calls without an answer by then get none.
    let _ = tokio::time::timeout(DRAIN_LIMIT, answered).await;
}

/// Takes connections for ever. For each that has a place among its allowance there is a task, which
/// holds the place and ends with this.
pub async fn take<F>(
    listener: &Listener,
    who: &'static str,
    allowance: &Arc<Allowance>,
    serve: impl FnMut(Stream, Remote, ConnectionPermit) -> F,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    take_into(&mut connections, listener, who, allowance, serve).await
}

/// As `take`, with tasks that end with the caller's set.
async fn take_into<F>(
    connections: &mut JoinSet<()>,
    listener: &Listener,
    who: &'static str,
    allowance: &Arc<Allowance>,
    mut serve: impl FnMut(Stream, Remote, ConnectionPermit) -> F,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let (mut refusals, mut failures) = (Quiet::default(), Quiet::default());
    let mut failed = 0_u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = refusals.end() => continue,
            () = failures.end() => continue,
        };
        match accepted {
            Ok((stream, remote)) => {
                let Some(place) = allowance.enter() else {
                    drop(stream);
                    if refusals.begin() {
                        warn_of_refusals(who, allowance);
                    }
                    continue;
                };
                connections.spawn(serve(stream, remote, place));
            }
            Err(error) => {
                // Out of descriptors, most likely: others may become free.
                failed += 1;
                if failures.begin() {
                    tracing::warn!(from = who, failed, %error, "cannot accept a connection");
                    failed = 0;
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves until `stop` says so, and as long as what is under way then needs for its last answers,
/// a second at most. `service` makes what answers a client. There is one task for each
/// connection; their allowance bounds them.
pub async fn serve<S: Service>(
    listener: Listener,
    options: ServeOptions,
    service: impl Fn(Client) -> S + Send + Sync + 'static,
    mut stop: watch::Receiver<bool>,
) {
    let options = Arc::new(options);
    let service = Arc::new(service);
    let protocols = Arc::new(protocols(&options));
    let stopping = stop.clone();
    let each = |stream, remote, place| {
        let arrived = Arrived {
            stream,
            remote,
            unread: options.unread.connection(),
            place,
        };
        connection(
            arrived,
            options.clone(),
            protocols.clone(),
            service.clone(),
            stopping.clone(),
        )
    };
    let mut connections = JoinSet::new();
    tokio::select! {
        never = take_into(&mut connections, &listener, options.who, &options.allowance, each) => match never {},
        () = stopped(&mut stop) => {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The time in which the log does not repeat a line.
#[derive(Default)]
struct Quiet(Option<Pin<Box<Sleep>>>);

impl Quiet {
    /// True where a line may be logged now; then it is quiet for a while.
    fn begin(&mut self) -> bool {
        if self.0.is_some() {
            return false;
        }
        self.0 = Some(Box::pin(tokio::time::sleep(QUIET)));
        true
    }

    /// Completes when it is over.
    async fn end(&mut self) {
        match &mut self.0 {
            Some(sleep) => sleep.as_mut().await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

fn warn_of_refusals(who: &str, allowance: &Allowance) {
    tracing::warn!(
        from = who,
        refused = allowance.take_unreported(),
        limit = allowance.limit(),
        "connections are closed at once: as many are open as the limit of open files leaves for them; raise it (ulimit -n, LimitNOFILE=) or close some"
    );
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender means the end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A connection that nobody has read from.
struct Arrived {
    stream: Stream,
    remote: Remote,
    unread: Arc<unread::Connection>,
    place: ConnectionPermit,
}

/// What serves a connection once it is known what is spoken on it.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One connection, from its first byte to its last.
///
/// Thousands are idle at once, so what each holds counts. A future has space for its arguments
/// beside what is made of them, and for the largest of its steps: so each step is behind a pointer,
/// and gone when it is done.
fn connection<S: Service>(
    arrived: Arrived,
    options: Arc<ServeOptions>,
    protocols: Arc<Protocols>,
    service: Arc<impl Fn(Client) -> S + Send + Sync + 'static>,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + 'static {
    let Arrived {
        stream,
        remote,
        unread,
        place,
    } = arrived;
    let begun = Box::pin(begin(
        stream, remote, unread, options, protocols, service, stop,
    ));
    async move {
        let _place = place;
        let serving = begun.await;
        if let Some(serving) = serving {
            serving.await;
        }
    }
}

/// Waits for what a connection begins with; none where it is not to be served.
async fn begin<S: Service>(
    stream: Stream,
    remote: Remote,
    unread: Arc<unread::Connection>,
    options: Arc<ServeOptions>,
    protocols: Arc<Protocols>,
    service: Arc<impl Fn(Client) -> S>,
    mut stop: watch::Receiver<bool>,
) -> Option<Serving> {
    stream.tune(options.unacknowledged_limit);
    // Who says nothing at all is not waited for.
    let mut first = [0];
    let spoke = tokio::select! {
        spoke = tokio::time::timeout(options.first_byte_limit, stream.peek(&mut first)) => spoke,
        () = stopped(&mut stop) => return None,
    };
    if !matches!(spoke, Ok(Ok(1..))) {
        return None;
    }
    let client = |local, session| Client {
        remote,
        local,
        session,
        unread: unread.clone(),
    };
    let is_tls = first == [TLS_HANDSHAKE];
    let refused = match &options.security {
        Security::Plain | Security::Either(_) if !is_tls => {
            let service = service(client(stream.local(), None));
            return Some(guarded(stream, unread, &options, protocols, service, stop));
        }
        Security::Tls(tls) | Security::Either(tls) if is_tls => {
            let secured = tokio::select! {
                secured = secured(tls, stream, remote, &options) => secured,
                () = stopped(&mut stop) => return None,
            };
            match secured {
                Ok((stream, session)) => {
                    let local = stream.get_ref().0.local();
                    let service = service(client(local, Some(session)));
                    return Some(guarded(stream, unread, &options, protocols, service, stop));
                }
                Err(refused) => refused,
            }
        }
        Security::Plain => Refused::new("tls: a TLS handshake at a port that has no TLS"),
        Security::Tls(_) | Security::Either(_) => {
            Refused::new("tls: first record does not look like a TLS handshake")
        }
    };
    options.rejections.report(remote, &refused);
    None
}

/// Makes the handshake, and waits for the first byte that is sent after it.
async fn secured(
    tls: &TlsServer,
    stream: Stream,
    remote: Remote,
    options: &ServeOptions,
) -> Result<(Box<TlsStream<Stream>>, Session), Refused> {
    let (stream, session) = tls.accept(stream, remote.ip(), options.versions).await?;
    let mut stream = Box::new(stream);
    let first = std::future::poll_fn(|cx| {
        let read = Pin::new(&mut stream).poll_fill_buf(cx);
        read.map_ok(|bytes| !bytes.is_empty())
    });
    // What fails here fails again where it is read. Those that say nothing are many probes'.
    let spoke = tokio::time::timeout(options.first_byte_limit, first).await;
    match spoke {
        Ok(_) => Ok((stream, session)),
        Err(_) => Err(Refused::new("tls: nothing came after the handshake")),
    }
}

/// Serves what a listener's clients are held to.
fn guarded<I, S>(
    io: I,
    unread: Arc<unread::Connection>,
    options: &ServeOptions,
    protocols: Arc<Protocols>,
    service: S,
    stop: watch::Receiver<bool>,
) -> Serving
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service,
{
    let waiting = Arc::new(AtomicUsize::new(0));
    let streams = options.guard.as_ref().map(|of| of.streams.connection());
    let service = Box::new(Counting {
        service,
        waiting: waiting.clone(),
        unsent: options.unsent.connection(),
        streams: streams.clone(),
        upcoming: Upcoming::default(),
    });
    let who = options.who;
    match options.guard.clone().zip(streams) {
        Some((guard, streams)) => {
            let guarded = Box::new(Guarded::new(io, guard, unread, streams, waiting));
            Box::pin(http(guarded, who, protocols, service, stop))
        }
        None => Box::pin(http(Box::new(io), who, protocols, service, stop)),
    }
}

/// What makes a connection of HTTP, in every version that a listener has.
type Protocols = auto::Builder<TokioExecutor>;

fn protocols(options: &ServeOptions) -> Protocols {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder = match options.versions {
        Versions::Both => builder,
        Versions::Http1 => builder.http1_only(),
        Versions::Http2 => builder.http2_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .header_read_timeout(options.head_limit);
    options.http2.apply(builder.http2());
    builder
}

async fn http<I, S>(
    io: Box<I>,
    who: &'static str,
    protocols: Arc<Protocols>,
    service: Box<Counting<S>>,
    mut stop: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service,
{
    let (waiting, upcoming) = (service.waiting.clone(), service.upcoming.clone());
    let connection = protocols.serve_connection_with_upgrades(TokioIo::new(io), *service);
    let mut connection = Box::pin(connection);
    // In order: a number drawn for each turn would show in what a call costs, and one who sends
    // without end must not hold up a stop.
    let ended = tokio::select! {
        biased;
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = Box::pin(drained(&waiting)) => return,
            }
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(from = who, %error, "a connection ended");
        return;
    }
    drop(connection);
    tokio::select! {
        () = upcoming.run() => {}
        () = stopped(&mut stop) => {}
    }
}
