//! `etched grpc-proxy`: answers calls of clients by calls to a cluster's members, and asks once for
//! what many want.
//!
//! - `service` sends each call where it belongs, `passing` passes on what needs no understanding, and
//!   `pages` answers HTTP. `kv` reads what has keys in it: `namespace` puts a prefix before them (pure),
//!   `cache` answers ranges again (pure), and `ordering` lets none show less than one before it.
//!   `payloads` logs messages.
//! - `upstream` has the connections to members. `autosync` asks who they are now, and `cluster` says to
//!   clients who they are.
//! - `group` keeps one stream at the cluster for all clients who show the same token (`caller`). What
//!   they share is decided without I/O: `watches` for the service of `watch`, `renewals` for that of
//!   `lease`. `permission` asks whether a caller may see what it wants to share.
//!
//! The proxy is nobody: each call has its caller's token, and callers with different tokens share
//! nothing. As in etcd its own certificate must have no common name, which the members would take for
//! the user of all its clients.

mod autosync;
mod cache;
mod caller;
mod cluster;
mod group;
mod kv;
mod lease;
mod namespace;
mod ordering;
mod pages;
mod passing;
mod payloads;
mod permission;
mod renewals;
mod service;
mod upstream;
mod watch;
mod watches;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as latch;
use tokio::task::JoinHandle;

use super::endpoints::{self, Endpoint};
use super::error::Error;
use crate::budget::streams::OpenStreams;
use crate::budget::unread::Unread;
use crate::budget::unsent::Unsent;
use crate::config::{GrpcProxyStart, UpstreamTls};
use crate::env::{Clock as _, SystemClock};
use crate::metrics::Metrics;
use crate::net::listen::{self, SocketOptions};
use crate::net::tls::{self, Allowed, ClientSettings, Rejections, TlsClient, TlsServer};
use crate::net::{self, Allowance, BlockTurns, Guard, Http2, KeepAlive, Security, Versions};
use crate::server::security;
use crate::server::signals::StopSignals;
use crate::server::{descriptors, notify};
use crate::transport::{Dialler, Encryption};
use crate::types::{Address, MemberId};
use cluster::Proxies;
use kv::KvOptions;
use namespace::Namespace;
use service::{CallOptions, ProxyService};
use upstream::Upstream;

/// From a client's connection to its first byte, and from there to the first frame of HTTP/2.
const OPENING_LIMIT: Duration = Duration::from_secs(10);
/// To the end of the head of a client's request of HTTP/1.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Between two pings of a connection to a member, as in grpc-go: a member ends one that pings it more
/// often than it allows.
const MIN_PING_INTERVAL: Duration = Duration::from_secs(10);
/// Files that are open beside clients' connections.
const OWN_FILES: u64 = 64;

/// Runs the proxy until a signal comes.
pub async fn run(start: GrpcProxyStart, signals: StopSignals) -> Result<i32, Error> {
    if start.pprof {
        crate::profile::heap::start();
    }
    let tls = listener_tls(&start)?;
    let endpoints = endpoints::find(&start.cluster).await?;
    let (listener, address) = bind(&start.listen_addr).await?;
    match endpoints::refuse_itself("proxy", &start.listen_addr, address, &endpoints).await {
        // A name may be known when it is needed.
        Err(error @ Error::Resolve { .. }) => tracing::warn!(%error, "a member has no address"),
        checked => checked?,
    }
    tracing::info!(
        address = start.listen_addr,
        "listening for gRPC proxy client requests"
    );
    let pages = match &start.metrics_addr {
        None => None,
        Some(url) => Some(bind_pages(url, tls.as_ref()).await?),
    };
    let upstream = Arc::new(upstream(&start, endpoints)?);
    let namespace = Namespace::new(&start.namespace);
    let proxies = (!start.advertise_client_url.is_empty()).then(|| {
        Arc::new(Proxies {
            upstream: upstream.clone(),
            namespace: namespace.clone(),
            own_url: start.advertise_client_url.clone(),
            resolver: start.resolver.clone(),
        })
    });
    let calls = CallOptions {
        kv: KvOptions {
            request_bytes: start.max_send_bytes,
            answer_bytes: start.max_recv_bytes,
            orders_reads: start.orders_reads,
        },
        profiles: start.pprof,
        logs_messages: start.logs_messages,
    };
    let service = ProxyService::new(upstream.clone(), namespace, proxies.clone(), calls);
    service.recover().await;
    let (stop, stopping) = latch::channel(false);
    let options = options(&start, tls.map_or(Security::Plain, Security::Tls));
    let serving = serve((listener, pages), options, &service, &stopping);
    let mut endless = Vec::new();
    endless.extend(proxies.map(|proxies| tokio::spawn(async move { proxies.register().await })));
    endless.extend(start.endpoints_auto_sync.map(|interval| {
        tokio::spawn(async move { autosync::run(&upstream, interval, address).await })
    }));
    tracing::info!(address = start.listen_addr, "started gRPC proxy");
    notify::ready();
    let signal = signals.while_serving().await;
    stop.send_replace(true);
    for task in endless {
        task.abort();
    }
    for task in serving {
        // A task that panicked has ended as well.
        let _ = task.await;
    }
    tracing::info!(
        address = start.listen_addr,
        "stop listening gRPC proxy client requests"
    );
    Ok(signal)
}

fn listener_tls(start: &GrpcProxyStart) -> Result<Option<Arc<TlsServer>>, Error> {
    let Some(listener) = &start.listener else {
        return Ok(None);
    };
    if let Some(made) = &listener.made {
        security::make(made, SystemClock::new().wall())?;
    }
    let settings = security::settings(&start.protocol, listener);
    let server = TlsServer::new("client", settings).map_err(crate::server::Error::from)?;
    tracing::info!(
        cert = %listener.certificate.display(),
        key = %listener.key.display(),
        "gRPC proxy server TLS"
    );
    Ok(Some(server))
}

async fn bind(listen_addr: &str) -> Result<(listen::Listener, SocketAddr), Error> {
    let refused = || {
        Error::Refused(format!(
            "listen tcp: address {listen_addr}: missing port in address"
        ))
    };
    let address = endpoints::listen_address(listen_addr).await?;
    let address = address.ok_or_else(refused)?;
    let listener = listen::bind(&Address::Tcp(address), SocketOptions::default())?;
    Ok((listener, address))
}

type Pages = Option<(listen::Listener, Security)>;

/// Begins to answer at both listeners, until it is to stop.
fn serve(
    (listener, pages): (listen::Listener, Pages),
    options: net::ServeOptions,
    service: &ProxyService,
    stopping: &latch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let mut serving = Vec::new();
    if let Some((listener, security)) = pages {
        let options = net::ServeOptions {
            who: "probe",
            versions: Versions::Http1,
            security,
            ..options.clone()
        };
        let service = service.pages_only();
        let serve = net::serve(
            listener,
            options,
            move |_| service.clone(),
            stopping.clone(),
        );
        serving.push(tokio::spawn(serve));
    }
    let service = service.clone();
    let serve = net::serve(
        listener,
        options,
        move |client| service.of_client(&client.remote),
        stopping.clone(),
    );
    serving.push(tokio::spawn(serve));
    serving
}

/// The listener of `--metrics-addr`.
async fn bind_pages(
    url: &str,
    tls: Option<&Arc<TlsServer>>,
) -> Result<(listen::Listener, Security), Error> {
    let (scheme, address) = url
        .split_once("://")
        .ok_or_else(|| Error::Refused(format!("cannot parse {url:?}")))?;
    let security = match (scheme, tls) {
        ("http", _) => Security::Plain,
        ("https", Some(tls)) => Security::Tls(tls.clone()),
        _ => {
            return Err(Error::Refused(format!(
                "cannot listen on TLS for {address}: KeyFile and CertFile are not presented"
            )));
        }
    };
    let (listener, _) = bind(address).await?;
    tracing::info!(address = url, "gRPC proxy listening for metrics");
    Ok((listener, security))
}

fn upstream(start: &GrpcProxyStart, found: Vec<Endpoint>) -> Result<Upstream, Error> {
    let with_scheme = |url: String| match (url.contains("://"), start.upstream.wanted) {
        (true, _) => url,
        (false, true) => format!("https://{url}"),
        (false, false) => format!("http://{url}"),
    };
    let urls: Vec<String> = found.into_iter().map(|one| with_scheme(one.url)).collect();
    let keep_alive = start.dial_keepalive.map(|(interval, timeout)| KeepAlive {
        interval: interval.max(MIN_PING_INTERVAL),
        timeout,
    });
    let dialler = Dialler {
        pings_idle: start.permit_without_stream,
        ..dialler(&start.upstream)?
    };
    Ok(Upstream::new(urls, dialler, keep_alive))
}

fn dialler(tls: &UpstreamTls) -> Result<Dialler, Error> {
    if let Some((certificate, _)) = &tls.pair {
        let name = tls::common_name(certificate).map_err(crate::server::Error::from)?;
        if !name.is_empty() {
            let path = certificate.display();
            return Err(Error::Refused(format!(
                "cert has non empty Common Name ({name}): {path}"
            )));
        }
    }
    if !tls.verifies {
        tracing::warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS certificates. This option should be enabled only for testing purposes."
        );
    }
    let settings = ClientSettings {
        pair: tls.pair.clone(),
        verifies: tls.verifies,
        authorities: tls.authorities.clone(),
        revoked: None,
        allowed: Allowed::default(),
        protocol: endpoints::any_protocol(),
    };
    let client = TlsClient::new("connections to members", settings);
    let client = client.map_err(crate::server::Error::from)?;
    Ok(Encryption::new(client, None).into())
}

fn options(start: &GrpcProxyStart, security: Security) -> net::ServeOptions {
    // For the counters of `net`: the proxy's own page has others.
    let metrics = Arc::new(Metrics::new(MemberId::default(), false));
    let keep_alive = start
        .keepalive
        .map(|(interval, timeout)| KeepAlive { interval, timeout });
    let files = descriptors::raise_limit().saturating_sub(OWN_FILES).max(1);
    let connections = usize::try_from(files).unwrap_or(usize::MAX);
    net::ServeOptions {
        who: "client",
        versions: Versions::Both,
        security,
        rejections: Arc::new(Rejections::new("client")),
        http2: Http2::of_clients(start.max_concurrent_streams, keep_alive),
        guard: Some(Guard {
            min_ping_time: start.keepalive_min_time,
            first_frame_limit: OPENING_LIMIT,
            metrics: metrics.clone(),
            closed: Arc::default(),
            block_turns: BlockTurns::default(),
            streams: OpenStreams::unlimited(),
        }),
        // What is passed on unread is read as it is sent, and the windows bound the rest. A message with
        // keys is held as a whole, for a minute at most, as etcd's proxy holds every message.
        unread: Unread::new(usize::MAX),
        unsent: Unsent::new(usize::MAX),
        allowance: Allowance::new(connections, metrics),
        first_byte_limit: OPENING_LIMIT,
        head_limit: HEAD_LIMIT,
        unacknowledged_limit: None,
    }
}
