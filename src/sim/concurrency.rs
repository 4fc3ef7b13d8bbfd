//! Calls of the Lock and the Election service, in worlds that have them, as clients make them and
//! as the history keeps them.

use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::of;
use crate::api::election::ElectionService;
use crate::api::lock::LockService;
use crate::api::watch::WatchService;
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::proto::v3lockpb::lock_server::Lock;
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::service::caller::Caller;
use crate::service::concurrency::Concurrency;
use crate::service::handle::Handle;

/// Every name of a lock or an election begins with one of these; nothing else puts keys there.
pub const NAMES: [&str; 2] = ["lock/", "elect/"];
/// The TTL of a lease that a call makes for itself; no client grants one of it.
pub const OWN_LEASE_TTL_S: i64 = 60;

/// Whether a key lies below the name of a lock or an election.
pub fn is_below_a_name(key: &[u8]) -> bool {
    NAMES.iter().any(|name| key.starts_with(name.as_bytes()))
}

/// The key of a lease below a name.
pub fn key_of(name: &[u8], lease: i64) -> bytes::Bytes {
    [name, format!("/{lease:x}").as_bytes()].concat().into()
}

#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Lock(LockRequest),
    Unlock(UnlockRequest),
    Campaign(CampaignRequest),
    Proclaim(ProclaimRequest),
    Resign(ResignRequest),
    Leader(LeaderRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Locked(LockResponse),
    Unlocked(UnlockResponse),
    Elected(CampaignResponse),
    Proclaimed(ProclaimResponse),
    Resigned(ResignResponse),
    Leader(LeaderResponse),
}

/// The services of a member.
pub struct Services {
    lock: LockService,
    election: ElectionService,
}

impl Services {
    pub fn new(handle: &Handle, watch: &WatchService) -> Self {
        let concurrency = Concurrency::new(handle.clone());
        Self {
            lock: LockService::new(handle.clone(), concurrency.clone()),
            election: ElectionService::new(handle.clone(), concurrency, watch.clone()),
        }
    }

    /// Has a member execute a call.
    pub async fn serve(&self, ask: Ask, caller: &Caller) -> Result<Told, Status> {
        let (lock, election) = (&self.lock, &self.election);
        Ok(match ask {
            Ask::Lock(ask) => Told::Locked(lock.lock(of(caller, ask)).await?.into_inner()),
            Ask::Unlock(ask) => Told::Unlocked(lock.unlock(of(caller, ask)).await?.into_inner()),
            Ask::Campaign(ask) => {
                Told::Elected(election.campaign(of(caller, ask)).await?.into_inner())
            }
            Ask::Proclaim(ask) => {
                Told::Proclaimed(election.proclaim(of(caller, ask)).await?.into_inner())
            }
            Ask::Resign(ask) => {
                Told::Resigned(election.resign(of(caller, ask)).await?.into_inner())
            }
            Ask::Leader(ask) => Told::Leader(election.leader(of(caller, ask)).await?.into_inner()),
        })
    }

    /// Who leads, from now on.
    pub async fn observe(&self, name: &'static str, caller: &Caller) -> Result<News, Status> {
        let ask = LeaderRequest { name: name.into() };
        Ok(self.election.observe(of(caller, ask)).await?.into_inner())
    }
}

pub type News = ReceiverStream<Result<LeaderResponse, Status>>;
