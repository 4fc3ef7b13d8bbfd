//! What clients learn of the cluster's members: the proxies before it, as far as they know each other,
//! or this one. With an empty `--advertise-client-url` they learn the members themselves.
//!
//! With `--resolver-prefix` a proxy keeps a key with its address below that prefix, as etcd's proxies
//! and resolvers do, by a lease that ends with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::{Request, Status};

use super::namespace::Namespace;
use super::upstream::Upstream;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, Member, MemberListResponse, PutRequest, RangeRequest,
};

/// Before the next try to make oneself known.
const RETRY: Duration = Duration::from_secs(1);
/// For listing the other proxies.
const LIST_LIMIT: Duration = Duration::from_secs(2);
/// For each call that makes this one known.
const REGISTER_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct Proxies {
    pub upstream: Arc<Upstream>,
    pub namespace: Namespace,
    /// Not empty.
    pub own_url: String,
    /// A prefix, and how long a proxy that is gone is known there, in seconds.
    pub resolver: Option<(String, i64)>,
}

/// What etcd's resolvers keep at a key.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    op: i64,
    addr: String,
    metadata: serde_json::Value,
}

/// And within it.
#[derive(Default, Serialize, Deserialize)]
struct Metadata {
    name: String,
}

impl Proxies {
    pub async fn list(&self) -> MemberListResponse {
        let found = tokio::time::timeout(LIST_LIMIT, self.known()).await;
        let mut members = found.ok().and_then(Result::ok).unwrap_or_default();
        if members.is_empty() {
            members.push(member(own_name(), &self.own_url));
        }
        MemberListResponse {
            members,
            ..Default::default()
        }
    }

    /// Keeps this proxy known, for ever.
    pub async fn register(&self) {
        let Some((prefix, ttl)) = &self.resolver else {
            return std::future::pending().await;
        };
        loop {
            if let Err(status) = self.session(prefix, *ttl).await {
                tracing::warn!(error = status.message(), "failed to create a session");
            } else {
                tracing::warn!("session expired; possible network partition or server restart");
                tracing::warn!("creating a new session to rejoin");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn known(&self) -> Result<Vec<Member>, Status> {
        let Some((prefix, _)) = &self.resolver else {
            return Ok(Vec::new());
        };
        let prefix = format!("{prefix}/");
        let end = crate::storage::schema::prefix_end(prefix.as_bytes()).unwrap_or_else(|| vec![0]);
        let (key, range_end) = self.namespace.range(prefix.as_bytes(), &end);
        let range = RangeRequest {
            key,
            range_end,
            ..Default::default()
        };
        let channel = self.upstream.channel().await?;
        let origin = channel.origin();
        let answer = KvClient::with_origin(channel, origin).range(range).await?;
        let pairs = answer.into_inner().kvs.decoded();
        let pairs = pairs.map_err(|error| Status::internal(error.to_string()))?;
        let updates = pairs.iter().filter_map(|pair| {
            let update: Update = serde_json::from_slice(&pair.value).ok()?;
            let metadata: Option<Metadata> = update
                .metadata
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok());
            Some(member(metadata.unwrap_or_default().name, &update.addr))
        });
        Ok(updates.collect())
    }

    /// Makes the proxy known until its lease is gone.
    async fn session(&self, prefix: &str, ttl: i64) -> Result<(), Status> {
        let channel = self.upstream.channel().await?;
        let origin = channel.origin();
        let mut leases = LeaseClient::with_origin(channel.clone(), origin.clone());
        let grant = LeaseGrantRequest { ttl, id: 0 };
        let granted = within(REGISTER_LIMIT, leases.lease_grant(grant)).await?;
        let granted = granted.into_inner();
        let metadata = serde_json::to_string(&Metadata { name: own_name() });
        let update = Update {
            op: 0,
            addr: self.own_url.clone(),
            // Texts can always be written.
            metadata: metadata.unwrap_or_default().into(),
        };
        let key = format!("{prefix}/{}", self.own_url);
        let (key, _) = self.namespace.range(key.as_bytes(), &[]);
        let put = PutRequest {
            key,
            value: Bytes::from(serde_json::to_vec(&update).unwrap_or_default()),
            lease: granted.id,
            ..Default::default()
        };
        let mut keys = KvClient::with_origin(channel, origin);
        within(REGISTER_LIMIT, keys.put(put)).await?;
        tracing::info!(
            addr = self.own_url,
            "lease-ttl" = ttl,
            "registered session with lease"
        );
        let id = granted.id;
        let interval = Duration::from_secs(ttl.unsigned_abs()) / 3;
        loop {
            tokio::time::sleep(interval).await;
            let request = tokio_stream::once(LeaseKeepAliveRequest { id });
            let renewed = async {
                let channel = self.upstream.channel().await?;
                let origin = channel.origin();
                let mut leases = LeaseClient::with_origin(channel, origin);
                let answers = leases.lease_keep_alive(Request::new(request)).await?;
                answers.into_inner().message().await
            };
            match tokio::time::timeout(interval, renewed).await {
                Ok(Ok(Some(answer))) if answer.ttl > 0 => {}
                // The lease may last until the cluster can be reached again.
                Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {}
                Err(_) => {}
                _ => return Ok(()),
            }
        }
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let answered = tokio::time::timeout(limit, call).await;
    answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("a member does not answer")))
}

fn member(name: String, url: &str) -> Member {
    Member {
        name,
        client_ur_ls: vec![url.to_owned()],
        ..Default::default()
    }
}

fn own_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
