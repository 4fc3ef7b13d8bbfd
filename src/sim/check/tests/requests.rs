//! Random requests of clients, and their entries in the log.

use bytes::Bytes;

use super::cluster::unique;
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader,
    TxnRequest, request_op::Request,
};
use crate::sim::history::{Answer, ClientRequest};
use crate::state::Response;
use crate::state::model::Model;
use crate::state::txn::is_read_only;

pub struct Random {
    state: u64,
    number: u64,
    lease: i64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            number: 0,
            lease: 0,
        }
    }

    /// Up to `end`, exclusive.
    pub fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number that was not used before.
    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A recently granted lease.
    fn lease(&mut self) -> i64 {
        (self.lease - self.below(4) as i64).max(1)
    }

    pub fn key(&mut self) -> Bytes {
        Bytes::from_static([&b"a"[..], b"ab", b"b", b"c", b"d"][self.below(5) as usize])
    }

    /// Key and end of a range.
    pub fn range(&mut self) -> (Bytes, Bytes) {
        match self.below(4) {
            0 => (self.key(), Bytes::from_static(b"\0")),
            1 => (self.key(), self.key()),
            _ => (self.key(), Bytes::new()),
        }
    }
}

fn put(random: &mut Random) -> PutRequest {
    let lease = match random.once_in(3) {
        true => random.lease(),
        false => 0,
    };
    PutRequest {
        key: random.key(),
        value: unique(random),
        lease,
        prev_kv: random.once_in(2),
        ..Default::default()
    }
}

fn delete(random: &mut Random) -> DeleteRangeRequest {
    let (key, range_end) = random.range();
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: random.once_in(2),
    }
}

fn range(random: &mut Random, model: &Model) -> RangeRequest {
    let (key, range_end) = random.range();
    let revision = match random.once_in(4) {
        true => model.head + 1 - random.below(15) as i64,
        false => 0,
    };
    RangeRequest {
        key,
        range_end,
        revision,
        limit: random.below(4) as i64,
        serializable: random.once_in(4),
        keys_only: random.once_in(8),
        ..Default::default()
    }
}

fn txn(random: &mut Random, model: &Model, depth: u64) -> TxnRequest {
    let compare = |random: &mut Random| Compare {
        result: random.below(4) as i32,
        target: 2,
        key: random.key(),
        target_union: Some(TargetUnion::ModRevision(
            model.head - random.below(9) as i64,
        )),
        ..Default::default()
    };
    let read_only = depth == 0 && random.once_in(3);
    let ops = |random: &mut Random| {
        let count = random.below(4);
        let op = |random: &mut Random| match random.below(if read_only { 2 } else { 8 }) {
            0..2 => Request::RequestRange(range(random, model)),
            2..5 => Request::RequestPut(put(random)),
            5..7 => Request::RequestDeleteRange(delete(random)),
            _ if depth < 2 => Request::RequestTxn(txn(random, model, depth + 1)),
            _ => Request::RequestPut(put(random)),
        };
        let ops = (0..count).map(|_| RequestOp {
            request: Some(op(random)),
        });
        ops.collect()
    };
    TxnRequest {
        compare: (0..random.below(2)).map(|_| compare(random)).collect(),
        success: ops(random),
        failure: ops(random),
    }
}

/// A random request.
pub fn asked(random: &mut Random, model: &Model) -> ClientRequest {
    match random.below(100) {
        0..30 => ClientRequest::Put(put(random)),
        30..38 => ClientRequest::DeleteRange(delete(random)),
        38..55 => ClientRequest::Txn(txn(random, model, 0)),
        55..58 => ClientRequest::Compaction(CompactionRequest {
            revision: model.head + 1 - random.below(12) as i64,
            physical: false,
        }),
        58..63 => {
            random.lease += 1;
            ClientRequest::LeaseGrant(LeaseGrantRequest {
                id: random.lease,
                ttl: 2 + random.below(4) as i64,
            })
        }
        63..65 => ClientRequest::LeaseRevoke { id: random.lease() },
        65..70 => ClientRequest::LeaseKeepAlive { id: random.lease() },
        70..74 => ClientRequest::LeaseTimeToLive {
            id: random.lease(),
            keys: random.once_in(2),
        },
        74..77 => ClientRequest::Alarm(AlarmRequest {
            action: 2,
            member_id: 1,
            alarm: 1,
        }),
        _ => ClientRequest::Range(range(random, model)),
    }
}

/// The proposal of a request; `None` if it needs none.
pub fn proposal(asked: &ClientRequest) -> Option<InternalRaftRequest> {
    let mut request = InternalRaftRequest::default();
    match asked.clone() {
        ClientRequest::Put(put) => request.put = Some(put),
        ClientRequest::DeleteRange(delete) => request.delete_range = Some(delete),
        ClientRequest::Txn(txn) if !is_read_only(&txn) => request.txn = Some(txn),
        ClientRequest::Compaction(compaction) => request.compaction = Some(compaction),
        ClientRequest::LeaseGrant(mut grant) => {
            // The TTL as members raise it.
            grant.ttl = grant.ttl.max(3);
            request.lease_grant = Some(grant);
        }
        ClientRequest::LeaseRevoke { id } => request.lease_revoke = Some(LeaseRevokeRequest { id }),
        ClientRequest::Alarm(alarm) => request.alarm = Some(alarm),
        _ => return None,
    }
    Some(request)
}

/// The response to a client, with a header as members send it; `newest` for responses without a
/// revision of their own.
pub fn answer(response: Response, newest: Option<ResponseHeader>) -> Answer {
    let full = |header: Option<ResponseHeader>| {
        let revision = header.map_or(0, |header| header.revision);
        super::cluster::header(revision)
    };
    match response {
        Response::Put(mut put) => {
            put.header = full(put.header);
            Answer::Put(put)
        }
        Response::DeleteRange(mut delete) => {
            delete.header = full(delete.header);
            Answer::DeleteRange(delete)
        }
        Response::Txn(mut txn) => {
            txn.header = full(txn.header);
            Answer::Txn(txn)
        }
        Response::Compaction(mut compaction) => {
            compaction.header = newest;
            Answer::Compaction(compaction)
        }
        Response::LeaseGrant(mut grant) => {
            grant.header = full(grant.header);
            Answer::LeaseGrant(grant)
        }
        Response::LeaseRevoke(mut revoke) => {
            revoke.header = full(revoke.header);
            Answer::LeaseRevoke(revoke)
        }
        Response::Alarm(mut alarm) => {
            alarm.header = full(alarm.header);
            Answer::Alarm(alarm)
        }
        other => panic!("nobody asks for {other:?}"),
    }
}
