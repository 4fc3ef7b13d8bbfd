//! What the proxy says to plain HTTP, with etcd's paths: the metrics and the health of the cluster
//! behind it at `/metrics` and `/health`, its own at `/proxy/metrics` and `/proxy/health`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::{Code, Status};

use super::cache::CacheCounts;
use super::upstream::Upstream;
use super::watch::WatchProxy;
use super::watches::Counts;
use crate::http::page;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use crate::transport::Route;

/// For the key that etcd's check reads.
const READ_LIMIT: Duration = Duration::from_secs(1);
const WATCH_LIMIT: Duration = Duration::from_secs(3);
/// For a member's page of metrics, which may have so many bytes.
const SCRAPE_LIMIT: Duration = Duration::from_secs(10);
const MAX_PAGE_BYTES: usize = 64 << 20;
const KEY: &[u8] = b"a";

#[derive(Serialize)]
struct Health<'a> {
    health: &'a str,
    reason: &'a str,
}

/// Answers a request of HTTP.
pub async fn answer<B>(
    request: &Request<B>,
    upstream: &Arc<Upstream>,
    watch: &WatchServer<WatchProxy>,
    (watches, cache): (Counts, CacheCounts),
) -> Response<Body> {
    match request.uri().path() {
        "/metrics" => match scraped(upstream).await {
            Ok(page) => page::metrics(page, false),
            Err(_) => page::refusal(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error"),
        },
        "/proxy/metrics" => page::metrics(metrics(watches, cache), false),
        "/health" | "/proxy/health" if request.method() != Method::GET => page::only_get(),
        "/health" => health(read(upstream).await),
        "/proxy/health" => health(match read(upstream).await {
            Ok(()) => watched(watch).await,
            Err(reason) => Err(reason),
        }),
        _ => page::not_found(),
    }
}

fn health(state: Result<(), String>) -> Response<Body> {
    let encode = |health: Health<'_>| serde_json::to_string(&health).unwrap_or_default();
    match state {
        Ok(()) => page::plain(encode(Health {
            health: "true",
            reason: "",
        })),
        Err(reason) => {
            let body = encode(Health {
                health: "false",
                reason: &reason,
            });
            tracing::warn!(output = body, "status-code" = 503, "/health error");
            page::refusal(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// Reads a key; who may not read it has been answered.
async fn read(upstream: &Arc<Upstream>) -> Result<(), String> {
    let read = async {
        let channel = upstream.channel().await?;
        let origin = channel.origin();
        let range = RangeRequest {
            key: Bytes::from_static(KEY),
            ..Default::default()
        };
        KvClient::with_origin(channel, origin).range(range).await
    };
    let limit = || Status::deadline_exceeded("context deadline exceeded");
    let read = tokio::time::timeout(READ_LIMIT, read).await;
    match read.unwrap_or_else(|_| Err(limit())) {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        Err(status) => Err(format!("GET ERROR:{}", status.message())),
    }
}

/// Begins a watch through this very proxy.
async fn watched(watch: &WatchServer<WatchProxy>) -> Result<(), String> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(KEY),
        ..Default::default()
    };
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut client = WatchClient::new(watch.clone());
    let first = async { client.watch(requests).await?.into_inner().message().await };
    match tokio::time::timeout(WATCH_LIMIT, first).await {
        Ok(Ok(Some(_))) => Ok(()),
        _ => Err("WATCH TIMEOUT".to_owned()),
    }
}

/// The first member's page of metrics.
async fn scraped(upstream: &Arc<Upstream>) -> Result<Bytes, String> {
    let scrape = async {
        let route = Route::of(&upstream.first_url())?;
        match route.is_tls() {
            false => over_http1(&route).await,
            true => over_http2(upstream).await,
        }
    };
    let scraped = tokio::time::timeout(SCRAPE_LIMIT, scrape).await;
    scraped.unwrap_or_else(|_| Err("the member does not answer".to_owned()))
}

/// A port without TLS has HTTP/2 for gRPC alone.
async fn over_http1(route: &Route) -> Result<Bytes, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = route.connect().await;
    let stream = TokioIo::new(stream.map_err(|error| text(&error))?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| text(&error))?;
    let host = route.origin().authority();
    let request = Request::get("/metrics")
        .header(HOST, host.map_or("", |host| host.as_str()))
        .body(Empty::<Bytes>::new())
        .map_err(|error| text(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| text(&error))?;
        whole(response.into_body()).await
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        page = &mut exchange => page,
        // What it has read is the exchange's.
        _ = connection => exchange.await,
    }
}

async fn over_http2(upstream: &Arc<Upstream>) -> Result<Bytes, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let channel = upstream.first_channel().await;
    let mut channel = channel.map_err(|status| status.message().to_owned())?;
    let origin = channel.origin().to_string();
    let request = Request::get(format!("{}/metrics", origin.trim_end_matches('/')))
        .body(Body::empty())
        .map_err(|error| text(&error))?;
    let response = channel.call(request).await.map_err(|error| text(&error))?;
    whole(response.into_body()).await
}

async fn whole(body: hyper::body::Incoming) -> Result<Bytes, String> {
    let body = http_body_util::Limited::new(body, MAX_PAGE_BYTES);
    let collected = body.collect().await;
    let collected = collected.map_err(|error| error.to_string())?;
    Ok(collected.to_bytes())
}

/// By etcd's names.
fn metrics(watches: Counts, cache: CacheCounts) -> String {
    let joined = watches.watches.saturating_sub(watches.broadcasts) as u64;
    let mut page = String::new();
    for (name, kind, help, value) in [
        (
            "cache_hits_total",
            "gauge",
            "Total number of cache hits",
            cache.hits,
        ),
        (
            "cache_keys_total",
            "gauge",
            "Total number of keys/ranges cached",
            cache.keys as u64,
        ),
        (
            "cache_misses_total",
            "gauge",
            "Total number of cache misses",
            cache.misses,
        ),
        (
            "events_coalescing_total",
            "counter",
            "Total number of events coalescing",
            watches.saved,
        ),
        (
            "watchers_coalescing_total",
            "gauge",
            "Total number of current watchers coalescing",
            joined,
        ),
    ] {
        let name = format!("etcd_grpc_proxy_{name}");
        page.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        ));
    }
    page
}
