//! The failpoints of this process: set up from its environment, served, and carried out.
//!
//! Requests are served by a thread and a runtime of their own: whatever sleeps in the member, they
//! are answered, from before there is a member. Each connection is for one request, so that its end
//! says that the answer has been sent.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::body::Body;

use super::answering::{Answering, InProgress};
use super::page;
use super::registry::{ListError, Registry};
use super::terms::Effect;
use crate::budget::unread::Unread;
use crate::budget::unsent::Unsent;
use crate::env::SystemRng;
use crate::failpoints::{self, Failpoint};
use crate::metrics::Metrics;
use crate::net::listen::{self, SocketOptions};
use crate::net::tls::Rejections;
use crate::net::{self, Allowance, Http2, Versions};
use crate::server::logging;
use crate::types::{Address, MemberId};

const LIST: &str = "GOFAIL_FAILPOINTS";
const ADDRESS: &str = "GOFAIL_HTTP";

/// How long a panic waits for answers that are being sent.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const MAX_CONNECTIONS: usize = 64;
/// To a connection's first byte, and to the end of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

static ANSWERING: LazyLock<Arc<Answering>> = LazyLock::new(Arc::default);
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(Box::new(SystemRng)));

/// Why there are no failpoints.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is no text")]
    NoText(&'static str),
    #[error("{LIST}: {0}")]
    List(#[from] ListError),
    #[error("{ADDRESS} is no HOST:PORT: {text:?}: {error}")]
    Address { text: String, error: std::io::Error },
    #[error("{ADDRESS}: {0}")]
    Listen(#[from] listen::Error),
    #[error("cannot start the thread of {ADDRESS}: {0}")]
    Thread(std::io::Error),
}

/// Has this process's failpoints do what its environment says.
///
/// # Errors
/// What the environment says cannot be done, or not all of it.
pub fn start() -> Result<(), StartError> {
    if let Some(list) = variable(LIST)? {
        REGISTRY.set_all(&list)?;
    }
    let http = variable(ADDRESS)?;
    if let Some(address) = &http {
        serve(&resolve(address)?)?;
    }
    failpoints::act_by(act);
    tracing::warn!(
        http = http.as_deref().unwrap_or("none"),
        "this is a build for tests: failpoints can end this member or hold it up; never give it data that matters"
    );
    Ok(())
}

/// None where it is not set, or is set to nothing.
fn variable(name: &'static str) -> Result<Option<String>, StartError> {
    match std::env::var_os(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.into_string() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(StartError::NoText(name)),
        },
    }
}

/// An address without a host is every IPv4 address of this machine.
fn resolve(text: &str) -> Result<SocketAddr, StartError> {
    let failed = |error| StartError::Address {
        text: text.to_owned(),
        error,
    };
    let resolved = match text.strip_prefix(':') {
        Some(_) => format!("0.0.0.0{text}").to_socket_addrs(),
        None => text.to_socket_addrs(),
    };
    let found: Vec<SocketAddr> = resolved.map_err(failed)?.collect();
    let ipv4 = found.iter().find(|one| one.is_ipv4());
    let none = || failed(std::io::ErrorKind::NotFound.into());
    ipv4.or(found.first()).copied().ok_or_else(none)
}

fn serve(address: &SocketAddr) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let listener = {
        let _runtime = runtime.enter();
        listen::bind(&Address::Tcp(*address), SocketOptions::default())?
    };
    let (sender, never) = watch::channel(false);
    let serving = move || {
        // For as long as the process lives.
        let _sender = sender;
        runtime.block_on(net::serve(
            listener,
            options(),
            |_| OneRequest::default(),
            never,
        ));
    };
    std::thread::Builder::new()
        .name("failpoints".to_owned())
        .spawn(serving)
        .map_err(StartError::Thread)?;
    Ok(())
}

fn options() -> net::ServeOptions {
    // For the counters of `net`: nobody is shown them.
    let metrics = Arc::new(Metrics::new(MemberId::default(), false));
    net::ServeOptions {
        who: "test",
        versions: Versions::Http1,
        security: net::Security::Plain,
        rejections: Arc::new(Rejections::new("test")),
        http2: Http2::of_clients(1, None),
        guard: None,
        unread: Unread::new(usize::MAX),
        unsent: Unsent::new(usize::MAX),
        allowance: Allowance::new(MAX_CONNECTIONS, metrics),
        first_byte_limit: HEAD_LIMIT,
        head_limit: HEAD_LIMIT,
        unacknowledged_limit: None,
    }
}

/// Answers the request of a connection, and lives until that ends.
#[derive(Clone, Default)]
struct OneRequest(Arc<Mutex<Option<InProgress>>>);

impl hyper::service::Service<Request<Incoming>> for OneRequest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        *self.0.lock() = Some(ANSWERING.begin());
        Box::pin(async move {
            let mut response = page::respond(&REGISTRY, request).await;
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
            Ok(response)
        })
    }
}

/// What the thread that calls it, which is at a place, has to do there.
fn act(failpoint: Failpoint) {
    match REGISTRY.visit(failpoint) {
        None | Some(Effect::Nothing) => {}
        Some(Effect::Print) => tracing::info!("failpoint print: {}", failpoint.name()),
        Some(Effect::Sleep(time)) => std::thread::sleep(time),
        Some(Effect::Panic(text)) => end(failpoint.name(), &text),
    }
}

/// Ends the process as a crash would: nothing is unwound, so nothing is flushed or closed.
fn end(name: &str, text: &str) -> ! {
    ANSWERING.wait(ANSWER_LIMIT);
    let text = if text.is_empty() { name } else { text };
    logging::fatal(&format!("failpoint panic: {text}"), name);
    std::process::abort();
}
