//! A client of another cluster's etcd v3 API, limited to what discovery needs.

use std::future::Future;

use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::config::DiscoveryService;
use crate::net::KeepAlive;
use crate::net::Windows;
use crate::proto::KeyValue;
use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::etcdserverpb::{
    AuthenticateRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use crate::server::security;
use crate::transport::{Channel, Dialler, dial_within};

const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

/// Pairs, and the store's revision at the read.
pub struct FoundPairs {
    pub pairs: Vec<KeyValue>,
    pub revision: i64,
}

/// Keeps a connection to one of the endpoints; the next one is tried when it fails.
pub struct Client<'a> {
    service: &'a DiscoveryService,
    dialler: Dialler,
    channel: Option<Channel>,
    token: Option<MetadataValue<Ascii>>,
    /// The endpoint to try next.
    next: usize,
}

impl<'a> Client<'a> {
    /// Authenticates if there are credentials.
    pub async fn new(service: &'a DiscoveryService) -> Result<Self, String> {
        let mut client = Self {
            service,
            dialler: security::of_discovery(service)?,
            channel: None,
            token: None,
            next: 0,
        };
        if service.credentials.is_some() {
            let limit = service.dial_timeout;
            tokio::time::timeout(limit, client.log_in())
                .await
                .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))?;
        }
        Ok(client)
    }

    pub async fn get(&mut self, key: &str) -> Result<FoundPairs, String> {
        self.range(key, Vec::new()).await
    }

    pub async fn get_prefix(&mut self, prefix: &str) -> Result<FoundPairs, String> {
        self.range(prefix, end_of(prefix)).await
    }

    async fn range(&mut self, key: &str, end: Vec<u8>) -> Result<FoundPairs, String> {
        let range = RangeRequest {
            key: key.to_owned().into(),
            range_end: end.into(),
            ..Default::default()
        };
        let answer = self
            .call(range, |channel, request| async move {
                let origin = channel.origin();
                let mut client = KvClient::with_origin(channel, origin);
                client.range(request).await
            })
            .await?;
        Ok(FoundPairs {
            pairs: answer.kvs.decoded().map_err(|error| error.to_string())?,
            revision: answer.header.map_or(0, |header| header.revision),
        })
    }

    pub async fn put(&mut self, key: &str, value: &str) -> Result<(), String> {
        let put = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        self.call(put, |channel, request| async move {
            let origin = channel.origin();
            KvClient::with_origin(channel, origin).put(request).await
        })
        .await
        .map(|_| ())
    }

    /// Watches a prefix from a revision on.
    pub async fn watch(&mut self, prefix: &str, revision: i64) -> Result<Watch, String> {
        let create = WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: end_of(prefix).into(),
            start_revision: revision,
            ..Default::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // A watch ends with its requests.
        let requests = tokio_stream::once(create).chain(tokio_stream::pending());
        let answers = self
            .call(requests, |channel, request| async move {
                let origin = channel.origin();
                let mut client = WatchClient::with_origin(channel, origin);
                client.watch(request).await
            })
            .await?;
        Ok(Watch {
            answers,
            _channel: self.channel.clone(),
        })
    }

    /// Makes one call with the request timeout.
    async fn call<Q, A, F>(
        &mut self,
        message: Q,
        call: impl FnOnce(Channel, Request<Q>) -> F,
    ) -> Result<A, String>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        if self.service.credentials.is_some() && self.token.is_none() {
            self.log_in().await?;
        }
        let channel = self.connect().await?;
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        let limit = self.service.request_timeout;
        let answer = tokio::time::timeout(limit, call(channel, request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                self.gave_up(&status);
                Err(text(&status))
            }
            Err(_) => {
                self.channel = None;
                Err("context deadline exceeded".to_owned())
            }
        }
    }

    /// After a failure: another endpoint, another token.
    fn gave_up(&mut self, status: &Status) {
        match status.code() {
            Code::Unauthenticated => self.token = None,
            Code::Unavailable | Code::Unknown | Code::Internal => self.channel = None,
            _ => {}
        }
    }

    /// The present connection, or one to the first endpoint that can be reached.
    async fn connect(&mut self) -> Result<Channel, String> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| !channel.is_closed()) {
            return Ok(channel.clone());
        }
        let urls: Vec<_> = self.service.urls().collect();
        let keepalive = self.service.keepalive.map(|keepalive| KeepAlive {
            interval: keepalive.interval,
            timeout: keepalive.timeout,
        });
        let mut reasons = Vec::new();
        for _ in 0..urls.len() {
            let (url, _) = &urls[self.next % urls.len()];
            self.next += 1;
            let limit = self.service.dial_timeout;
            let dialled =
                dial_within(limit, &self.dialler, url, keepalive, Windows::OWN_CALLS).await;
            match dialled {
                Ok(channel) => {
                    self.channel = Some(channel.clone());
                    return Ok(channel);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    async fn log_in(&mut self) -> Result<(), String> {
        let Some(credentials) = &self.service.credentials else {
            return Ok(());
        };
        let request = AuthenticateRequest {
            name: credentials.user.clone(),
            password: credentials.password.clone(),
        };
        let channel = self.connect().await?;
        let origin = channel.origin();
        let mut client = AuthClient::with_origin(channel, origin);
        let answer = tokio::time::timeout(
            self.service.request_timeout,
            client.authenticate(Request::new(request)),
        );
        match answer.await {
            Ok(Ok(answer)) => {
                let token = answer.into_inner().token;
                let token = token
                    .parse()
                    .map_err(|_| "the token is no metadata".to_owned())?;
                self.token = Some(token);
                Ok(())
            }
            Ok(Err(status)) if status.message() == NOT_ENABLED => {
                // Any value will do: it is not read.
                self.token = Some(MetadataValue::from_static(""));
                Ok(())
            }
            Ok(Err(status)) => {
                self.gave_up(&status);
                Err(text(&status))
            }
            Err(_) => Err("context deadline exceeded".to_owned()),
        }
    }
}

/// A watch that is under way.
pub struct Watch {
    answers: Streaming<WatchResponse>,
    /// The connection ends with its last user.
    _channel: Option<Channel>,
}

impl Watch {
    /// The next pairs that were put, and their revision. Waits until something happens; the
    /// connection's pings detect a dead peer.
    pub async fn next(&mut self) -> Result<(Vec<KeyValue>, i64), String> {
        let answer = match self.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err("the stream ended".to_owned()),
            Err(status) => return Err(text(&status)),
        };
        if answer.canceled {
            return Err(format!("the watch was canceled: {}", answer.cancel_reason));
        }
        let mut pairs = Vec::new();
        for event in &answer.events {
            let event = event.decoded().map_err(|error| error.to_string())?;
            pairs.extend(event.kv);
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((pairs, revision))
    }
}

/// The first key after all with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    crate::storage::schema::prefix_end(prefix.as_bytes()).unwrap_or_else(|| vec![0])
}

fn text(status: &Status) -> String {
    match status.message() {
        "" => format!("rpc error: code = {:?}", status.code()),
        text => text.to_owned(),
    }
}
