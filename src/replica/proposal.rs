//! Proposals, their encoding for raft, and where their results are sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tracing::Span;

use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, RequestHeader};
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::raft::{Committed, CommittedKind, ConfChange, ConfChangeType, Entry, EntryType};
use crate::state::{Response, machine};
use crate::types::MemberId;

/// Called once with the result of a proposal; dropped without a call if the outcome is unknown.
pub type Reply = Box<dyn FnOnce(Result<Response, Error>) + Send>;

/// A request or a change of membership to be replicated.
pub struct Proposal {
    pub what: Proposed,
    /// Only to be proposed while this member leads in this term.
    pub fence_term: Option<u64>,
    /// The deadline of the caller that waits for it, by the member's clock; until then the caller
    /// shares the request. None: it is proposed whether or not anyone waits.
    pub awaited_until: Option<Duration>,
    /// Records when it is proposed and committed.
    pub span: Span,
    pub reply: Reply,
}

impl Proposal {
    /// True if no caller waits for it any more, so that it need not be proposed.
    #[cfg(test)]
    pub fn is_abandoned(&self) -> bool {
        self.awaited_until.is_some() && self.what.is_left_alone()
    }

    /// True if the deadline of its caller has passed.
    pub fn is_late(&self, now: Duration) -> bool {
        self.awaited_until.is_some_and(|until| until <= now)
    }

    /// Its size in the log, about.
    pub fn encoded_bytes(&self) -> usize {
        self.what.encoded_bytes()
    }
}

/// Sent to a member: why its forwarded proposal was not proposed.
pub struct ProposalRefusal {
    pub to: MemberId,
    pub request_id: u64,
    /// That of the proposal.
    pub term: u64,
    pub error: Error,
}

pub enum Proposed {
    /// The request and its encoding, which is empty once it was passed to raft or to the leader.
    Request(Arc<InternalRaftRequest>, Vec<u8>),
    Member(Arc<MemberChange>),
}

impl Proposed {
    /// True if the caller that shared it is gone.
    pub fn is_left_alone(&self) -> bool {
        match self {
            Self::Request(request, _) => Arc::strong_count(request) == 1,
            Self::Member(change) => Arc::strong_count(change) == 1,
        }
    }

    /// Its size in the log, about.
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Proposed::Request(_, encoded) => encoded.len(),
            Proposed::Member(change) => change.encoded_len(),
        }
    }

    /// Unique in the cluster.
    pub fn request_id(&self) -> u64 {
        match self {
            Proposed::Request(request, _) => request.header.as_ref().map_or(0, |header| header.id),
            Proposed::Member(change) => change.request_id,
        }
    }
}

/// Takes the encoding of a request out of its proposal, or encodes it again.
pub fn take_encoded(request: &InternalRaftRequest, encoded: &mut Vec<u8>) -> Vec<u8> {
    match encoded.is_empty() {
        true => request.encode_to_vec(),
        false => std::mem::take(encoded),
    }
}

/// The id in an encoded `InternalRaftRequest`; nothing else is decoded.
pub fn request_id(encoded: &Bytes) -> Option<u64> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Header {
        #[prost(message, optional, tag = "100")]
        header: Option<RequestHeader>,
    }
    let decoded = Header::decode(encoded.clone()).ok()?;
    decoded.header.map(|header| header.id)
}

/// True for what members forward to their leader: any request that can be read, but for what a
/// leader alone proposes, in its own term. (An entry without a byte is a leader's first one.)
pub fn is_forwarded(encoded: &Bytes) -> bool {
    let request = machine::decode_request(encoded.clone());
    !encoded.is_empty() && request.is_ok_and(|request| request.lease_checkpoint.is_none())
}

/// True for what an entry of the log may hold. The state machine stops at anything else, now and at
/// every start.
pub fn is_applicable(entry: &Entry) -> bool {
    let readable = || machine::decode_request(Bytes::copy_from_slice(&entry.data)).is_ok();
    let is_change = entry.entry_type() != EntryType::EntryNormal;
    is_change || entry.data.is_empty() || readable()
}

/// The id of a committed entry's proposal, if it has one.
pub fn committed_id(committed: &Committed) -> Option<u64> {
    match &committed.kind {
        CommittedKind::Empty => None,
        CommittedKind::Request(bytes) => request_id(bytes),
        CommittedKind::ConfChange(change) => Some(member_change(change).request_id),
    }
}

/// The change as a raft ConfChange. Raft ignores new URLs, and such a change is never enacted.
pub fn conf_change(change: &MemberChange) -> ConfChange {
    let change_type = match &change.change {
        Some(Change::Add(raft)) if raft.is_learner => ConfChangeType::AddLearnerNode,
        Some(Change::Remove(_)) => ConfChangeType::RemoveNode,
        _ => ConfChangeType::AddNode,
    };
    ConfChange {
        change_type: change_type as i32,
        node_id: change.member_id,
        context: change.encode_to_vec(),
        ..Default::default()
    }
}

/// Decodes a change. One that cannot be decoded is refused by every member.
pub fn member_change(change: &ConfChange) -> MemberChange {
    MemberChange::decode(change.context.as_slice()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;

    #[test]
    fn the_id_is_found_behind_the_request() {
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: 77,
                ..Default::default()
            }),
            put: Some(PutRequest {
                key: "k".into(),
                value: vec![100; 1000].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(request_id(&request.encode_to_vec().into()), Some(77));
        assert_eq!(request_id(&Bytes::new()), None);
        assert_eq!(request_id(&Bytes::from_static(b"\xff")), None);
    }

    #[test]
    fn what_nobody_could_apply_is_no_entry() {
        let put = InternalRaftRequest {
            put: Some(PutRequest::default()),
            ..Default::default()
        };
        let checkpoint = InternalRaftRequest {
            lease_checkpoint: Some(Default::default()),
            ..Default::default()
        };
        for (data, applicable, forwarded) in [
            (Vec::new(), true, false),
            (put.encode_to_vec(), true, true),
            (checkpoint.encode_to_vec(), true, false),
            (b"\x22\x05junk".to_vec(), false, false),
        ] {
            let entry = Entry {
                data: data.clone(),
                ..Default::default()
            };
            assert_eq!(is_applicable(&entry), applicable, "{data:?}");
            assert_eq!(is_forwarded(&data.into()), forwarded);
        }
        let change = Entry {
            data: b"junk".to_vec(),
            entry_type: EntryType::EntryConfChange as i32,
            ..Default::default()
        };
        // raft reads it itself, before it takes it.
        assert!(is_applicable(&change));
    }
}
