//! Peer RPCs: calls to a peer that wait for a response, over one connection that the first call
//! makes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Request, Status};

use super::Peer;
use super::context::Context;
use super::dial::{self, Channel, Dialler};
use super::identity::{self, RefusalKind, why};
use crate::error::Error;
use crate::net::KeepAlive;
use crate::proto::etchedpeer::peer_client::PeerClient;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::{Description, Nothing, PeerRequest, PeerResponse, peer_response};

/// Responses may take long on a healthy connection.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(2),
};

/// For a peer's answer that says which data it knows.
const FORMAT_LIMIT: Duration = Duration::from_millis(1_500);

/// See the module.
pub struct PeerRpcClient {
    context: Arc<Context>,
    peer: Peer,
    connection: Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    number: u64,
    channel: Channel,
}

impl PeerRpcClient {
    pub fn new(context: Arc<Context>, peer: Peer) -> Self {
        Self {
            context,
            peer,
            connection: Mutex::default(),
        }
    }

    /// `NoLeader` if the request certainly did not arrive, `Timeout` if it may have; otherwise the
    /// peer's response.
    pub async fn ask(&self, request: PeerRequest, limit: Duration) -> Result<PeerResponse, Error> {
        let mut asked = None;
        match timeout(limit, self.ask_for_long(request, limit, &mut asked)).await {
            Ok(answer) => answer,
            Err(_) => {
                let error = match &asked {
                    Some(_) => Error::Timeout,
                    None => Error::NoLeader,
                };
                // The connection may be dead without having been detected.
                self.forget(asked);
                Err(error)
            }
        }
    }

    /// `asked` is set before the request is sent.
    async fn ask_for_long(
        &self,
        request: PeerRequest,
        limit: Duration,
        asked: &mut Option<u64>,
    ) -> Result<PeerResponse, Error> {
        let connection = self.connection().await.map_err(|reason| {
            if self.context.is_news(&reason) {
                tracing::warn!(peer = %self.peer.member, reason, "cannot ask a peer");
            }
            Error::NoLeader
        })?;
        let mut client = client(&connection.channel, self.context.options.max_message_bytes);
        let mut request = Request::new(request);
        identity::stamp(
            request.metadata_mut(),
            &self.context.local,
            self.peer.member,
        );
        // The peer does not continue for longer, even where it does not see that this one has ended.
        request.set_timeout(limit);
        *asked = Some(connection.number);
        match client.ask(request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                if connection.channel.is_closed() {
                    self.forget(*asked);
                }
                Err(self.error(&status))
            }
        }
    }

    fn error(&self, status: &Status) -> Error {
        if let Some(error) = Error::from_text(status.message()) {
            return error;
        }
        match identity::recognise(status) {
            Some(seen) => {
                if seen == RefusalKind::Removed
                    && let Some(inbound) = self.context.inbound()
                {
                    inbound.removed(self.peer.member);
                }
                Error::NoLeader
            }
            None => {
                tracing::debug!(peer = %self.peer.member, reason = why(status), "a peer RPC failed");
                Error::Timeout
            }
        }
    }

    /// The connection, established if there is none.
    async fn connection(&self) -> Result<Connection, String> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|found| !found.channel.is_closed()) {
            return Ok(connection.clone());
        }
        let mut reason = "the peer has no URL".to_owned();
        for url in &self.peer.urls {
            match dial::dial(&self.context.options.dialler, url, Some(KEEP_ALIVE)).await {
                Ok(channel) => {
                    let connection = Connection {
                        number: self.context.outside.rng.next_u64(),
                        channel,
                    };
                    *slot = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    /// Makes the next call establish a new connection, unless one has been established already.
    fn forget(&self, number: Option<u64>) {
        // The holder of the lock is establishing a new one.
        let Ok(mut slot) = self.connection.try_lock() else {
            return;
        };
        if slot
            .as_ref()
            .is_some_and(|found| Some(found.number) == number)
        {
            *slot = None;
        }
    }
}

fn client(channel: &Channel, max_message_bytes: usize) -> PeerClient<Channel> {
    PeerClient::with_origin(channel.clone(), channel.origin())
        .max_decoding_message_size(max_message_bytes)
}

/// Requests the description of the member at any of these URLs: for a member that knows no ids yet.
/// The error names the failure at each URL.
pub async fn describe(
    dialler: &Dialler,
    urls: &[String],
    limit: Duration,
) -> Result<Description, String> {
    let mut asking = JoinSet::new();
    for url in urls {
        let (dialler, url) = (dialler.clone(), url.clone());
        asking.spawn(async move {
            timeout(limit, describe_one(&dialler, &url))
                .await
                .unwrap_or_else(|_| Err(format!("{url}: no answer in time")))
        });
    }
    let mut reasons = Vec::new();
    while let Some(described) = asking.join_next().await {
        match described {
            Ok(Ok(description)) => return Ok(description),
            Ok(Err(reason)) => reasons.push(reason),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if reasons.is_empty() {
        reasons.push("no URL to ask at".to_owned());
    }
    reasons.sort();
    Err(reasons.join("; "))
}

async fn describe_one(dialler: &Dialler, url: &str) -> Result<Description, String> {
    let channel = dial::dial(dialler, url, None).await?;
    let answer = description(&channel).await;
    answer.map_err(|reason| format!("{url}: {reason}"))
}

async fn description(channel: &Channel) -> Result<Description, String> {
    /// A description is a list of members.
    const MAX_BYTES: usize = 16 << 20;
    let request = PeerRequest {
        request: Some(Kind::Describe(Nothing {})),
    };
    let answer = client(channel, MAX_BYTES).ask(request).await;
    let answer = answer.map_err(|status| why(&status))?;
    match answer.into_inner().response {
        Some(peer_response::Response::Description(description)) => Ok(description),
        _ => Err("an answer to something else".to_owned()),
    }
}

/// Before a peer is sent what it may not know: an older program would take the log of a cluster
/// with users, and serve what is in it to everybody. (Calls of such a program are refused as well.)
///
/// # Errors
/// It does not know the format of the data here, or does not say.
pub async fn check_format(context: &Context, channel: &Channel) -> Result<(), String> {
    let needed = context
        .inbound()
        .map_or(0, |inbound| inbound.needed_format());
    if needed == 0 {
        return Ok(());
    }
    let described = timeout(FORMAT_LIMIT, description(channel)).await;
    let described = described.unwrap_or_else(|_| Err("it does not answer".to_owned()))?;
    match described.data_format >= needed {
        true => Ok(()),
        false => Err(format!(
            "its program does not know users and roles, of which there are some here: it knows data up to format {}, and {needed} is needed",
            described.data_format
        )),
    }
}
