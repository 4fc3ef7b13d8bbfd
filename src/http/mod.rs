//! What the client port says to plain HTTP: health probes, version, metrics, debug variables.
//!
//! Probes, scrapers and browsers were written against etcd, so every answer is its answer: status,
//! headers and bytes (but for the text for a host that is not on the whitelist). Bodies of requests
//! are not read but where a page takes one. What is below `/v3/` is passed to the JSON gateway
//! where there is one, past the same checks; without it those paths name nothing. `/v3beta/` is
//! another name of `/v3/`, as in etcd, for clients of its early versions.
//!
//! Auth never stands in the way of these paths, in etcd and here.

mod access;
pub mod body;
mod debug;
mod health;
mod log_level;
mod metrics_page;
pub mod page;
pub mod pprof;
mod process;
mod query;
mod scrape;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Buf;
use http::header::{ACCEPT_ENCODING, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use tonic::body::Body;

use crate::budget::Ledger;
use crate::service::handle::Handle;
use crate::types::{ETCD_VERSION, version};
pub use access::Access;
pub use log_level::LogLevel;
use metrics_page::MetricsPage;

/// Answers HTTP requests; cheap to clone.
#[derive(Clone)]
pub struct HttpService {
    handle: Handle,
    access: Arc<Access>,
    memory: Option<Arc<Ledger>>,
    surface: Surface,
    metrics: Arc<MetricsPage>,
    log_level: Option<LogLevel>,
    profiles: bool,
    encrypted: bool,
}

/// Answers what is below `/v3/`.
pub type Gateway<B> =
    Box<dyn FnOnce(Request<B>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send>;

/// What a listener shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surface {
    Client,
    /// Probes and metrics, without CORS and without a check of the Host.
    Metrics,
}

impl HttpService {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            access: Arc::default(),
            memory: None,
            surface: Surface::Client,
            metrics: MetricsPage::new(),
            log_level: None,
            profiles: false,
            encrypted: false,
        }
    }

    /// Limits who may ask.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = Arc::new(access);
        self
    }

    /// With a log whose level may be changed.
    pub fn with_log_level(mut self, level: LogLevel) -> Self {
        self.log_level = Some(level);
        self
    }

    /// With profiles of the process, if so.
    pub fn with_profiles(mut self, on: bool) -> Self {
        self.profiles = on;
        self
    }

    /// With what the memory budget's parts hold among its metrics.
    pub fn with_memory(mut self, memory: Ledger) -> Self {
        self.memory = Some(Arc::new(memory));
        self
    }

    /// The same for a listener of `--listen-metrics-urls`.
    pub fn metrics_only(mut self) -> Self {
        self.surface = Surface::Metrics;
        self
    }

    /// The same for a connection that has TLS, if so. No page reaches the server by a name of its
    /// own then, since the certificate is for other names: the Host header may be any.
    pub fn encrypted(mut self, so: bool) -> Self {
        self.encrypted = so;
        self
    }

    /// Answers a request that is none of gRPC's; its body is for the gateway and for pages.
    pub async fn respond<B>(
        &self,
        request: Request<B>,
        gateway: Option<Gateway<B>>,
    ) -> Response<Body>
    where
        B: http_body::Body<Data: Buf>,
    {
        let (head, body) = request.into_parts();
        let mut request = Request::from_parts(head, ());
        if let Some(refused) = access::refuse_malformed(&request) {
            return refused;
        }
        if request.method() == Method::OPTIONS && request.uri().path() == "*" {
            return page::nothing();
        }
        if self.surface == Surface::Metrics {
            return self.route(&request, body).await;
        }
        if let Some(refused) = self.refuse(&request) {
            return refused;
        }
        if let Some(uri) = query::by_the_name_of_today(request.uri()) {
            *request.uri_mut() = uri;
        }
        let (method, uri) = (request.method(), request.uri());
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = match gateway {
            _ if method == Method::OPTIONS => page::nothing(),
            Some(gateway) if is_gateways(uri) => gateway(request.map(|()| body)).await,
            _ => self.route(&request, body).await,
        };
        self.access
            .add_cors(origin.as_ref(), response.headers_mut());
        response
    }

    fn refuse(&self, request: &Request<()>) -> Option<Response<Body>> {
        let by_host = (!self.encrypted).then(|| self.access.refuse_host(request));
        let by_host = by_host.flatten();
        by_host.or_else(|| self.access.refuse_origin(request))
    }

    async fn route<B>(&self, request: &Request<()>, body: B) -> Response<Body>
    where
        B: http_body::Body<Data: Buf>,
    {
        let (method, uri) = (request.method(), request.uri());
        let parts = query::parts(uri);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["metrics"] => self.metrics_page(request.headers()).await,
            ["health"] => health::health(&self.handle, method, uri).await,
            [endpoint @ ("livez" | "readyz")] => {
                health::all_checks(&self.handle, endpoint, method, uri).await
            }
            [endpoint @ ("livez" | "readyz"), check] => {
                let answer = health::one_check(&self.handle, endpoint, check, method, uri).await;
                answer.unwrap_or_else(page::not_found)
            }
            _ if self.surface == Surface::Metrics => page::not_found(),
            ["debug", "log-level"] => match &self.log_level {
                Some(level) => log_level::respond(level, &self.handle, request, body).await,
                None => page::not_found(),
            },
            ["debug", "pprof", names @ ..] if self.profiles => {
                let clock = self.handle.shared().clock.as_ref();
                pprof::respond(names, request, body, clock).await
            }
            ["version"] | ["debug", "vars"] if method != Method::GET => page::only_get(),
            ["version"] => self.version(),
            ["debug", "vars"] => page::json_utf8(debug::vars(&self.handle)),
            _ => page::not_found(),
        }
    }

    fn version(&self) -> Response<Body> {
        let status = self.handle.shared().status();
        let cluster = status.cluster_version.as_deref();
        let storage = status.storage_version();
        page::json(version::page(ETCD_VERSION, cluster, storage))
    }

    async fn metrics_page(&self, headers: &HeaderMap) -> Response<Body> {
        let gzipped = accepts_gzip(headers);
        match self
            .metrics
            .get(&self.handle, self.memory.as_ref(), gzipped)
            .await
        {
            Some(body) => page::metrics(body, gzipped),
            None => page::refusal(StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed"),
        }
    }
}

/// Whether a path is below `/v3/`.
fn is_gateways(uri: &Uri) -> bool {
    matches!(query::parts(uri).as_slice(), [root, _, ..] if root == "v3")
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(ACCEPT_ENCODING).iter();
    offers
        .filter_map(|offer| offer.to_str().ok())
        .flat_map(|offer| offer.split(','))
        .any(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            let refused = weight.is_some_and(|weight| weight.parse() == Ok(0.0));
            named && !refused
        })
}
