//! Founds a cluster by a discovery service: this member registers and waits until the configured
//! number of members has done so.
//!
//! As in etcd, failed requests are retried indefinitely: the service may be started last. Only a
//! response ends it.

use std::time::Duration;

use super::client::Client;
use super::registry::{self, Gathered, Keys};
use crate::config::DiscoveryService;
use crate::proto::KeyValue;
use crate::server::Error;
use crate::types::MemberId;

/// The wait before a repetition doubles up to 2 to this power, in seconds.
const MAX_DOUBLINGS: u32 = 8;
/// The wait before a watch that ended is restarted.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

const SIZE_NOT_FOUND: &str = "discovery: size key not found";
const BAD_SIZE: &str = "discovery: size key is bad";
const FULL: &str = "discovery: cluster is full";

/// Registers this member as `own`, which is `NAME=URL,…`, and waits for the others; returns all of
/// them in the form of `--initial-cluster`.
pub async fn join(
    service: &DiscoveryService,
    member: MemberId,
    own: &str,
) -> Result<String, Error> {
    tracing::info!("Bootstrapping cluster using v3 discovery.");
    let result = match Joining::begin(service, member).await {
        Ok(mut joining) => joining.join(own).await,
        Err(reason) => Err(reason),
    };
    let endpoints = service.endpoints.join(",");
    match result {
        Ok(cluster) => {
            tracing::info!(
                "discovery-token" = service.token,
                "discovery-endpoints" = endpoints,
                cluster,
                "discovery joined cluster successfully"
            );
            Ok(cluster)
        }
        Err(reason) => {
            tracing::error!(
                "discovery-token" = service.token,
                "discovery-endpoints" = endpoints,
                error = reason,
                "discovery failed to join cluster"
            );
            Err(Error::Discovery {
                token: service.token.clone(),
                endpoints: service.endpoints.clone(),
                reason,
            })
        }
    }
}

struct Joining<'a> {
    client: Client<'a>,
    keys: Keys,
    own_key: String,
    /// Failures since something last succeeded.
    retries: u32,
}

/// The registered members, and the revision of that.
struct Checked {
    gathered: Gathered,
    size: usize,
    revision: i64,
}

impl<'a> Joining<'a> {
    async fn begin(service: &'a DiscoveryService, member: MemberId) -> Result<Self, String> {
        let keys = Keys::of(&service.token);
        Ok(Self {
            client: Client::new(service).await?,
            own_key: keys.member(member),
            keys,
            retries: 0,
        })
    }

    async fn join(&mut self, own: &str) -> Result<String, String> {
        self.check().await?;
        self.register(own).await;
        let mut checked = self.check().await?;
        while checked.gathered.len() < checked.size {
            if let Err(reason) = self.wait(&mut checked).await {
                tracing::warn!(error = reason, "the watch for peers ended; it is restarted");
                tokio::time::sleep(WATCH_PAUSE).await;
                checked = self.check().await?;
            }
        }
        let found = checked.gathered.len();
        tracing::info!(
            "clusterSize" = checked.size,
            "found-peers" = found,
            "found all needed peers from discovery service"
        );
        Ok(checked.gathered.founders(checked.size)?)
    }

    /// The registered members, if there is room for this one.
    async fn check(&mut self) -> Result<Checked, String> {
        loop {
            match self.read().await {
                Ok(Ok(checked)) => {
                    self.retries = 0;
                    if !checked.gathered.has_room_for(&self.own_key, checked.size) {
                        return Err(FULL.to_owned());
                    }
                    return Ok(checked);
                }
                Ok(Err(answer)) => return Err(answer.to_owned()),
                Err(reason) => self.pause("cluster status check", &reason).await,
            }
        }
    }

    /// The outer error is retried, the inner one is a final response.
    async fn read(&mut self) -> Result<Result<Checked, &'static str>, String> {
        let found = self.client.get(&self.keys.size()).await?;
        let Some(pair) = found.pairs.first() else {
            return Ok(Err(SIZE_NOT_FOUND));
        };
        let Some(size) = registry::size(&pair.value) else {
            return Ok(Err(BAD_SIZE));
        };
        let found = self.client.get_prefix(&self.keys.members()).await?;
        let mut gathered = Gathered::default();
        for pair in &found.pairs {
            add(&mut gathered, pair);
        }
        Ok(Ok(Checked {
            gathered,
            size,
            revision: found.revision,
        }))
    }

    async fn register(&mut self, own: &str) {
        loop {
            match self.client.put(&self.own_key, own).await {
                Ok(()) => break,
                Err(reason) => self.pause("register member itself", &reason).await,
            }
        }
        self.retries = 0;
        tracing::info!(
            "memberKey" = self.own_key,
            "memberInfo" = own,
            "register member itself successfully"
        );
    }

    /// Waits for registrations after revision `checked` until there are enough.
    async fn wait(&mut self, checked: &mut Checked) -> Result<(), String> {
        let prefix = self.keys.members();
        let mut watch = self.client.watch(&prefix, checked.revision + 1).await?;
        tracing::info!(
            "clusterSize" = checked.size,
            "found-peers" = checked.gathered.len(),
            "waiting for peers from discovery service"
        );
        while checked.gathered.len() < checked.size {
            let (pairs, revision) = watch.next().await?;
            for pair in &pairs {
                add(&mut checked.gathered, pair);
            }
            checked.revision = checked.revision.max(revision);
        }
        Ok(())
    }

    async fn pause(&mut self, step: &str, reason: &str) {
        self.retries += 1;
        let backoff = Duration::from_secs(1 << self.retries.min(MAX_DOUBLINGS));
        tracing::warn!(
            reason = step,
            error = reason,
            backoff = ?backoff,
            "retry connecting to discovery service"
        );
        tokio::time::sleep(backoff).await;
    }
}

fn add(gathered: &mut Gathered, pair: &KeyValue) {
    let added = gathered.add(pair);
    let (key, info) = (
        String::from_utf8_lossy(&pair.key),
        String::from_utf8_lossy(&pair.value),
    );
    match added {
        Ok(()) => {
            tracing::info!("memberKey" = %key, "memberInfo" = %info, "found peer from discovery service");
        }
        Err(reason) => tracing::warn!("memberKey" = %key, "memberInfo" = %info, "{reason}"),
    }
}
