//! Requests of a client: HTTP/2 carries gRPC, HTTP/1 carries everything else, on one port. With TLS
//! HTTP/2 carries both, as browsers and others choose it where they can. What HTTP asks of the JSON
//! gateway becomes a call of gRPC here, by the same client.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use tonic::body::Body;

use crate::api::{Api, CallFuture};
use crate::budget::unread;
use crate::gateway::Gateway;
use crate::http::{self, HttpService};
use crate::net::Client;
use crate::service::identity::CertificateName;

/// What a listener's clients may ask.
#[derive(Clone)]
pub struct ProtocolSwitch {
    pub api: Api,
    pub http: HttpService,
    /// None with `--enable-grpc-gateway=false`.
    pub gateway: Option<Gateway>,
    /// HTTP has URLs of its own.
    pub grpc_only: bool,
    /// Whether the name in a client's certificate is a user's.
    pub authenticates_by_certificate: bool,
}

/// Dispatches the gRPC and HTTP/1 requests of one client; cheap to clone.
#[derive(Clone)]
pub struct ClientSwitch(Arc<Dispatch>);

/// What a [`ClientSwitch`] points to: small, as thousands of clients are idle at once.
struct Dispatch {
    listener: Arc<ProtocolSwitch>,
    api: Api,
    is_tls: bool,
    /// Whom its certificate names, where that matters.
    name: Option<CertificateName>,
    unread: Arc<unread::Connection>,
    /// Made for the first request of HTTP; most clients make none.
    gateway: OnceLock<Gateway>,
}

impl ProtocolSwitch {
    /// The same for the requests of one client.
    pub fn of_client(self: &Arc<Self>, client: Client) -> ClientSwitch {
        let session = client.session;
        let certificate = session.as_ref().and_then(|tls| tls.certificate.as_ref());
        let name = certificate.filter(|_| self.authenticates_by_certificate);
        ClientSwitch(Arc::new(Dispatch {
            listener: self.clone(),
            is_tls: session.is_some(),
            name: name.map(|one| CertificateName(one.common_name.as_str().into())),
            api: self
                .api
                .of_client(client.remote, client.local, client.unread.clone()),
            unread: client.unread,
            gateway: OnceLock::new(),
        }))
    }
}

impl Dispatch {
    /// Puts the name in the client's certificate beside a call.
    fn name_caller<B>(&self, call: &mut Request<B>) {
        if let Some(name) = &self.name {
            call.extensions_mut().insert(name.clone());
        }
    }
}

impl ClientSwitch {
    /// The gateway, for a request of this client.
    fn gateway(&self) -> Option<http::Gateway<Incoming>> {
        let Dispatch {
            listener,
            unread,
            gateway,
            ..
        } = &*self.0;
        let of_all = listener.gateway.as_ref()?;
        let gateway = gateway.get_or_init(|| of_all.of_client(unread.clone()));
        let (gateway, client) = (gateway.clone(), self.0.clone());
        let call = move |mut call: Request<Body>| {
            client.name_caller(&mut call);
            client.api.call(call).map(|answer| match answer {
                Ok(answer) => answer,
                Err(never) => match never {},
            })
        };
        Some(Box::new(move |request| {
            Box::pin(gateway.respond(request, call))
        }))
    }
}

impl hyper::service::Service<Request<Incoming>> for ClientSwitch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn call(&self, mut request: Request<Incoming>) -> CallFuture {
        let client = &*self.0;
        let content_type = request.headers().get(CONTENT_TYPE);
        let is_grpc = content_type.is_some_and(is_grpc);
        let carries_both = client.is_tls && !client.listener.grpc_only;
        if request.version() != Version::HTTP_2 || carries_both && !is_grpc {
            client.name_caller(&mut request);
            let http = client.listener.http.clone().encrypted(client.is_tls);
            let gateway = self.gateway();
            return Box::pin(async move { Ok(http.respond(request, gateway).await) });
        }
        if !is_grpc {
            let response = not_grpc(content_type);
            return Box::pin(std::future::ready(Ok(response)));
        }
        if request.method() != Method::POST {
            let response = not_post(request.method());
            return Box::pin(std::future::ready(Ok(response)));
        }
        client.name_caller(&mut request);
        client.api.call(request)
    }
}

/// `application/grpc`, alone or with a subtype or parameters.
fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// grpc-go's response to another method than POST.
fn not_post(method: &Method) -> Response<Body> {
    let method = method.as_str();
    let message = format!("Received a HEADERS frame with :method {method:?} which should be POST");
    let mut response = tonic::Status::internal(message).into_http();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// grpc-go's response to HTTP/2 that is not gRPC.
fn not_grpc(content_type: Option<&HeaderValue>) -> Response<Body> {
    let found = content_type
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let message = format!("invalid gRPC request content-type {found:?}");
    let mut response = tonic::Status::invalid_argument(message).into_http();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
