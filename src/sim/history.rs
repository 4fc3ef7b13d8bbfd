//! What happened in a world, as recorded by the clients (requests and responses) and by the
//! scheduler (the entries that members applied). The checkers read nothing else.
//!
//! Times are in nanoseconds of the world's clock, which differs slightly from every member's clock.

use bytes::Bytes;

use super::call::{Ask, LockAnswer};
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, DowngradeRequest, HashKvResponse, InternalRaftRequest, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use crate::proto::etchedpeer::MemberChange;
use crate::proto::v3electionpb::LeaderResponse;
use crate::state::Response;
use crate::state::model::auth::Who;
use crate::types::{MemberId, Revision};

/// A time, in nanoseconds since the world began.
pub type Moment = u64;

/// A client's request. Each value is put once in a world, so it identifies the request that wrote
/// it.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientRequest {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compaction(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke {
        id: i64,
    },
    LeaseKeepAlive {
        id: i64,
    },
    LeaseTimeToLive {
        id: i64,
        keys: bool,
    },
    /// A `Range` with an order and no filters, streamed in parts.
    RangeStream(RangeRequest),
    /// Lists the leases that this member knows.
    LeaseLeases,
    /// Raises, disarms or lists alarms.
    Alarm(AlarmRequest),
    HashKv {
        revision: i64,
    },
    MemberList {
        linearizable: bool,
    },
    MoveLeader {
        to: MemberId,
    },
    Downgrade(DowngradeRequest),
    Defragment,
    Status,
    /// Adds, removes, promotes or updates a member.
    Member(MemberChange),
    /// Changes or lists users, roles and permissions, or turns authentication on or off.
    Auth(Box<InternalRaftRequest>),
    /// About a lock or an election.
    Concurrency(Ask),
}

/// A successful response.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    /// The TTL after the renewal, in seconds; 0 if the lease does not exist.
    LeaseKeepAlive {
        ttl: i64,
    },
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    /// The ids.
    Leases(Vec<i64>),
    Alarm(AlarmResponse),
    HashKv(HashKvResponse),
    /// The ids of the members.
    MemberList(Vec<u64>),
    /// A response without content that could be checked.
    Done,
    /// The ids of the members after the change.
    Member(Vec<u64>),
    Auth(Box<Response>),
    Concurrency(LockAnswer),
}

/// The outcome of a request, as far as its client knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answered(Answer),
    /// The request was not executed and never will be; holds the error text.
    Refused(String),
    /// No response, or an ambiguous error: the request may have been executed, or may be later.
    Unknown,
}

/// A client's request with its outcome.
#[derive(Clone, Debug)]
pub struct Operation {
    /// A client has one request in flight at a time.
    pub client: u32,
    /// The member that was called.
    pub member: MemberId,
    /// Whose request it is, with the auth revision that the member knew when it was called.
    pub who: Who,
    /// The last entry that the member had applied when it was called.
    pub known_index: u64,
    pub request: ClientRequest,
    pub called_at: Moment,
    pub returned_at: Moment,
    pub outcome: Outcome,
}

/// One watch, from its creation to its end.
#[derive(Clone, Debug)]
pub struct Watched {
    pub client: u32,
    pub member: MemberId,
    /// Whose it is; its auth revision does not matter.
    pub who: Who,
    pub create: WatchCreateRequest,
    pub created_at: Moment,
    /// In the order of arrival; the first response confirms the creation.
    pub responses: Vec<(Moment, WatchResponse)>,
    /// The client and its stream were still there when the world had converged: every event has to
    /// have arrived.
    pub to_the_end: bool,
}

/// What one observer of an election saw.
#[derive(Clone, Debug)]
pub struct Observed {
    pub client: u32,
    pub member: MemberId,
    pub name: &'static str,
    /// In the order of arrival.
    pub seen: Vec<(Moment, LeaderResponse)>,
}

/// What an entry of the raft log holds.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordedPayload {
    Empty,
    /// An encoded `InternalRaftRequest`.
    Request(Bytes),
    Member(MemberChange),
}

/// An entry, as a member applied it.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedEntry {
    pub index: u64,
    pub term: u64,
    pub payload: RecordedPayload,
}

/// The whole history of a world.
#[derive(Clone, Default)]
pub struct History {
    /// The founding members, all of them voters.
    pub founders: Vec<MemberId>,
    /// Members compact automatically: not every compaction was requested by a client.
    pub auto_compaction: bool,
    /// In the order in which they returned.
    pub operations: Vec<Operation>,
    pub watches: Vec<Watched>,
    pub observed: Vec<Observed>,
    /// Every entry once, in log order, as the first member to apply it saw it, with the time of
    /// that. The world compares it with what the other members apply.
    pub entries: Vec<(Moment, AppliedEntry)>,
    /// The intervals without any fault that the scheduler knows of: no member down or paused, no
    /// link cut, no disk stalled. Ordered and disjoint.
    pub calm: Vec<(Moment, Moment)>,
    /// The intervals in which the only member was paused, until others were added. Ordered.
    pub stood_still: Vec<(Moment, Moment)>,
    /// What the members' histories hold at the end, after all compactions.
    pub kept: Vec<Kept>,
}

/// A member's history after compaction.
#[derive(Clone, Debug)]
pub struct Kept {
    pub member: MemberId,
    /// The compacted revision; -1 for none.
    pub compacted: i64,
    /// Every remaining change, in order.
    pub revisions: Vec<Revision>,
    /// Remaining versions that a later one superseded.
    pub superseded: usize,
}

/// A violation found by a checker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The property that was violated: "a read is stale".
    pub what: &'static str,
    /// Which operation, where and when, for the report.
    pub details: String,
}
