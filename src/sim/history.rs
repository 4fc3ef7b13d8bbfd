//! What happened in a world, as those saw it who can judge it: the clients their requests and
//! answers, the scheduler the entries that members applied. The checkers read nothing else.
//!
//! Moments are nanoseconds of the world's own time, which no member's clock shows exactly.

use bytes::Bytes;

use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, DowngradeRequest, HashKvResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use crate::proto::etchedpeer::MemberChange;
use crate::types::{MemberId, Revision};

/// A moment, in nanoseconds since the world began.
pub type Moment = u64;

/// Something that a client asked of a member. A value that is put is put once in a world: it
/// tells which request wrote it.
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
    /// As `Range`, of an order and without filters, in pieces.
    RangeStream(RangeRequest),
    /// What leases there are, as far as that member knows.
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
}

/// An answer that is no error.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    /// What it was renewed for, in seconds; 0 where there is no such lease.
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
    /// Nothing that could be held against anything.
    Done,
    /// The ids of the members after the change.
    Member(Vec<u64>),
}

/// What became of a request, as far as its client knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answered(Answer),
    /// The member said that it was not done, and never will be: the text of the error.
    Refused(String),
    /// The member did not answer, or could not say: it may have been done, or be done yet.
    Unknown,
}

/// One request of a client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// A client has one request under way at a time.
    pub client: u32,
    /// Whom it asked.
    pub member: MemberId,
    pub request: ClientRequest,
    pub called_at: Moment,
    pub returned_at: Moment,
    pub outcome: Outcome,
}

/// One watch on one stream, from its creation to its end.
#[derive(Clone, Debug)]
pub struct Watched {
    pub client: u32,
    pub member: MemberId,
    pub create: WatchCreateRequest,
    pub created_at: Moment,
    /// In the order in which they came, each with its moment; the first one is the creation's.
    pub responses: Vec<(Moment, WatchResponse)>,
    /// The client was still there, and the stream whole, when the world came to rest: nothing may
    /// be missing at its end.
    pub to_the_end: bool,
}

/// What an entry of the raft log holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
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
    pub payload: Payload,
}

/// All that a world did.
#[derive(Clone, Default)]
pub struct History {
    /// The members that founded the cluster, all of them voters.
    pub founders: Vec<MemberId>,
    /// Members compact by themselves: a compaction need not come from a client.
    pub auto_compaction: bool,
    /// In the order of their returns.
    pub operations: Vec<Operation>,
    pub watches: Vec<Watched>,
    /// Every entry once, in order, as the member that was first to apply it had it, and when that
    /// was. The world itself compares them with what the other members apply.
    pub entries: Vec<(Moment, AppliedEntry)>,
    /// When there was no fault at all, as far as the scheduler knows: no member down or paused,
    /// no link cut, no disk stalled. In order, not overlapping.
    pub calm: Vec<(Moment, Moment)>,
    /// When the only member stood still, from when to when, until there were others. In order.
    pub stood_still: Vec<(Moment, Moment)>,
    /// What the members' histories hold at the end, when all compactions are done.
    pub kept: Vec<Kept>,
}

/// What is left of a member's history.
#[derive(Clone, Debug)]
pub struct Kept {
    pub member: MemberId,
    /// The revision that it is compacted to; -1 for none.
    pub compacted: i64,
    /// Every change that is there, in order.
    pub revisions: Vec<Revision>,
    /// Versions that a later one superseded.
    pub superseded: usize,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which promise is broken: "a read is stale".
    pub what: &'static str,
    /// Who, when and what exactly, for people.
    pub details: String,
}
