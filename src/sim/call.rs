//! Calls as clients make them, and those of the Lock and the Election service as the history keeps
//! them.

use tonic::Request;

use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::service::caller::Caller;

/// A request as a caller sends it.
pub fn of<T>(caller: &Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller.clone());
    request
}

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
pub enum LockAnswer {
    Locked(LockResponse),
    Unlocked(UnlockResponse),
    Elected(CampaignResponse),
    Proclaimed(ProclaimResponse),
    Resigned(ResignResponse),
    Leader(LeaderResponse),
}
