//! The Lock and the Election service of a member, in worlds that have them.

use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::call::{Ask, LockAnswer, of};
use crate::api::election::ElectionService;
use crate::api::lock::LockService;
use crate::api::watch::WatchService;
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3electionpb::{LeaderRequest, LeaderResponse};
use crate::proto::v3lockpb::lock_server::Lock;
use crate::service::caller::Caller;
use crate::service::concurrency::Concurrency;
use crate::service::handle::Handle;

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
    pub async fn serve(&self, ask: Ask, caller: &Caller) -> Result<LockAnswer, Status> {
        let (lock, election) = (&self.lock, &self.election);
        Ok(match ask {
            Ask::Lock(ask) => LockAnswer::Locked(lock.lock(of(caller, ask)).await?.into_inner()),
            Ask::Unlock(ask) => {
                LockAnswer::Unlocked(lock.unlock(of(caller, ask)).await?.into_inner())
            }
            Ask::Campaign(ask) => {
                LockAnswer::Elected(election.campaign(of(caller, ask)).await?.into_inner())
            }
            Ask::Proclaim(ask) => {
                LockAnswer::Proclaimed(election.proclaim(of(caller, ask)).await?.into_inner())
            }
            Ask::Resign(ask) => {
                LockAnswer::Resigned(election.resign(of(caller, ask)).await?.into_inner())
            }
            Ask::Leader(ask) => {
                LockAnswer::Leader(election.leader(of(caller, ask)).await?.into_inner())
            }
        })
    }

    /// Who leads, from now on.
    pub async fn observe(&self, name: &'static str, caller: &Caller) -> Result<News, Status> {
        let ask = LeaderRequest { name: name.into() };
        Ok(self.election.observe(of(caller, ask)).await?.into_inner())
    }
}

pub type News = ReceiverStream<Result<LeaderResponse, Status>>;
