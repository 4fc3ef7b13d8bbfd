//! Requests: what clients send, as the services decode and check it, and what the log holds of
//! them, as every member applies it.

use std::fmt::Debug;
use std::sync::Arc;

use crate::api::validate;
use crate::proto::etcdserverpb::*;
use crate::proto::etchedpeer::{MemberChange, member_change};
use crate::proto::{self, health, membershippb};
use crate::state::Machine;
use crate::state::machine::{self, Entry, Payload};
use crate::storage::memory::MemoryEngine;
use crate::storage::{Engine, Family};
use bytes::Bytes;
use prost::Message;

use super::Seed;
use super::input::{Input, Script};
use super::memory;

/// What a decoder may hold for each byte that it reads: an operation of a transaction without
/// anything in it takes two bytes on the way, and about a hundred in memory, twice while the list
/// grows.
const BYTES_PER_BYTE: usize = 256;
const BYTES_FIXED: usize = 16 << 10;
/// As `--max-txn-ops` is by default.
const MAX_TXN_OPS: usize = 128;

/// Decodes; whatever is accepted is the same after a second passage.
fn decoded<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let bytes = Bytes::copy_from_slice(bytes);
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes.len();
    let message = memory::within(limit_bytes, || M::decode(bytes)).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let again = M::decode(encoded.as_slice()).expect("what was encoded decodes");
    assert_eq!(again, message);
    Some(message)
}

fn only_decoded<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    decoded::<M>(bytes);
}

/// What was checked is written to the log, and must be read there as it was.
fn logged(request: InternalRaftRequest) {
    let encoded = Bytes::from(request.encode_to_vec());
    let read = machine::decode_request(encoded).expect("what is in the log can be read");
    assert_eq!(read, request);
}

fn header() -> Option<RequestHeader> {
    Some(RequestHeader {
        id: 7,
        ..Default::default()
    })
}

/// Decodes, checks as the service does, and logs.
macro_rules! proposed {
    ($bytes:ident, $request:ty, $field:ident, $check:expr) => {
        if let Some(request) = decoded::<$request>($bytes) {
            let check: fn(&$request) -> bool = $check;
            if check(&request) {
                logged(InternalRaftRequest {
                    header: header(),
                    $field: Some(request),
                    ..Default::default()
                });
            }
        }
    };
}

fn range(bytes: &[u8]) {
    if let Some(request) = decoded::<RangeRequest>(bytes) {
        let checked = validate::range(&request);
        if validate::range_stream(&request).is_ok() {
            assert_eq!(checked, Ok(()));
        }
    }
}

fn put(bytes: &[u8]) {
    proposed!(bytes, PutRequest, put, |request| {
        let checked = validate::put(request).is_ok();
        assert!(!checked || !request.key.is_empty());
        checked
    });
}

fn delete_range(bytes: &[u8]) {
    proposed!(bytes, DeleteRangeRequest, delete_range, |request| {
        validate::delete_range(request).is_ok()
    });
}

fn txn(bytes: &[u8]) {
    proposed!(bytes, TxnRequest, txn, |request| {
        let checked = validate::txn(request, MAX_TXN_OPS).is_ok();
        assert!(!checked || request.success.len() <= MAX_TXN_OPS);
        checked
    });
}

fn compaction(bytes: &[u8]) {
    proposed!(bytes, CompactionRequest, compaction, |_| true);
}

fn lease_grant(bytes: &[u8]) {
    proposed!(bytes, LeaseGrantRequest, lease_grant, |_| true);
}

fn lease_revoke(bytes: &[u8]) {
    proposed!(bytes, LeaseRevokeRequest, lease_revoke, |_| true);
}

fn alarm(bytes: &[u8]) {
    proposed!(bytes, AlarmRequest, alarm, |request| {
        validate::alarm(request).is_ok()
    });
}

fn entry(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes.len();
    if let Ok(request) = memory::within(limit_bytes, || machine::decode_request(bytes)) {
        logged(request);
    }
}

/// The name of a message, and what is done with its bytes.
type Decoder = (&'static str, fn(&[u8]));

/// Every message that a client or the log brings, by the first byte of the input; new ones go to
/// the end, so that the corpus keeps its meaning.
const DECODERS: &[Decoder] = &[
    ("range", range),
    ("put", put),
    ("delete_range", delete_range),
    ("txn", txn),
    ("compaction", compaction),
    ("lease_grant", lease_grant),
    ("lease_revoke", lease_revoke),
    ("alarm", alarm),
    ("entry", entry),
    ("WatchRequest", only_decoded::<WatchRequest>),
    (
        "LeaseKeepAliveRequest",
        only_decoded::<LeaseKeepAliveRequest>,
    ),
    (
        "LeaseTimeToLiveRequest",
        only_decoded::<LeaseTimeToLiveRequest>,
    ),
    ("LeaseLeasesRequest", only_decoded::<LeaseLeasesRequest>),
    ("MemberAddRequest", only_decoded::<MemberAddRequest>),
    ("MemberRemoveRequest", only_decoded::<MemberRemoveRequest>),
    ("MemberUpdateRequest", only_decoded::<MemberUpdateRequest>),
    ("MemberListRequest", only_decoded::<MemberListRequest>),
    ("MemberPromoteRequest", only_decoded::<MemberPromoteRequest>),
    ("StatusRequest", only_decoded::<StatusRequest>),
    ("DefragmentRequest", only_decoded::<DefragmentRequest>),
    ("HashRequest", only_decoded::<HashRequest>),
    ("HashKvRequest", only_decoded::<HashKvRequest>),
    ("SnapshotRequest", only_decoded::<SnapshotRequest>),
    ("MoveLeaderRequest", only_decoded::<MoveLeaderRequest>),
    ("DowngradeRequest", only_decoded::<DowngradeRequest>),
    ("AuthUserAddRequest", only_decoded::<AuthUserAddRequest>),
    (
        "AuthRoleGrantPermissionRequest",
        only_decoded::<AuthRoleGrantPermissionRequest>,
    ),
    ("LockRequest", only_decoded::<proto::v3lockpb::LockRequest>),
    (
        "ProclaimRequest",
        only_decoded::<proto::v3electionpb::ProclaimRequest>,
    ),
    (
        "HealthCheckRequest",
        only_decoded::<health::HealthCheckRequest>,
    ),
    // Of another etcd's, which a member that is to join asks.
    ("RangeResponse", only_decoded::<RangeResponse>),
    ("WatchResponse", only_decoded::<WatchResponse>),
];

/// The first byte says which message the rest is to be.
pub fn decode(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let which = usize::from(input.u8()) % DECODERS.len();
    let (_, decoder) = DECODERS[which];
    decoder(input.rest());
}

fn put_op(key: &'static str) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(put_request(key))),
    }
}

fn put_request(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: "value".into(),
        prev_kv: true,
        ..Default::default()
    }
}

fn delete_request() -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        prev_kv: true,
    }
}

fn txn_request() -> TxnRequest {
    let compare = Compare {
        result: compare::CompareResult::Greater as i32,
        target: compare::CompareTarget::Version as i32,
        key: "a".into(),
        range_end: "c".into(),
        target_union: Some(compare::TargetUnion::Version(0)),
    };
    let delete = RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(delete_request())),
    };
    let range = RequestOp {
        request: Some(request_op::Request::RequestRange(range_request())),
    };
    let nested = RequestOp {
        request: Some(request_op::Request::RequestTxn(TxnRequest {
            success: vec![put_op("n")],
            failure: vec![put_op("m"), range.clone()],
            ..Default::default()
        })),
    };
    TxnRequest {
        compare: vec![compare],
        success: vec![put_op("c"), range, nested],
        failure: vec![delete, put_op("x")],
    }
}

/// Transactions within each other, as many as asked for.
fn deep_txn(depth: usize) -> TxnRequest {
    let mut txn = TxnRequest {
        success: vec![put_op("deep")],
        ..Default::default()
    };
    for _ in 1..depth {
        txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestTxn(txn)),
            }],
            ..Default::default()
        };
    }
    txn
}

fn range_request() -> RangeRequest {
    RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        limit: 2,
        sort_order: 2,
        sort_target: 3,
        ..Default::default()
    }
}

fn watch_request() -> WatchRequest {
    WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(
            WatchCreateRequest {
                key: "k".into(),
                range_end: "l".into(),
                start_revision: 3,
                filters: vec![1],
                ..Default::default()
            },
        )),
    }
}

fn range_answer() -> RangeResponse {
    let pair = proto::KeyValue {
        key: "k".into(),
        mod_revision: 3,
        value: "v".into(),
        ..Default::default()
    };
    let mut frames = Vec::new();
    for _ in 0..2 {
        proto::put_bytes_field(&mut frames, proto::RANGE_KVS_TAG, &pair.encode_to_vec());
    }
    RangeResponse {
        header: Some(ResponseHeader::default()),
        kvs: proto::EncodedKvs::from_chunks(vec![frames.into()], 2),
        more: true,
        count: 9,
    }
}

/// Requests as the log holds them.
fn entries() -> Vec<(&'static str, InternalRaftRequest)> {
    let mut entries = entries_of_keys();
    entries.extend(other_entries());
    entries
}

fn request(set: fn(&mut InternalRaftRequest)) -> InternalRaftRequest {
    let mut request = InternalRaftRequest {
        header: header(),
        ..Default::default()
    };
    set(&mut request);
    request
}

/// Of keys, and of the lease of one.
fn entries_of_keys() -> Vec<(&'static str, InternalRaftRequest)> {
    vec![
        ("put", request(|r| r.put = Some(put_request("a")))),
        ("txn", request(|r| r.txn = Some(txn_request()))),
        (
            "delete",
            request(|r| r.delete_range = Some(delete_request())),
        ),
        (
            "grant",
            request(|r| r.lease_grant = Some(LeaseGrantRequest { ttl: 60, id: 5 })),
        ),
        (
            "attached",
            request(|r| {
                r.put = Some(PutRequest {
                    lease: 5,
                    ..put_request("l")
                });
            }),
        ),
    ]
}

fn other_entries() -> Vec<(&'static str, InternalRaftRequest)> {
    vec![
        (
            "checkpoint",
            request(|r| {
                r.lease_checkpoint = Some(LeaseCheckpointRequest {
                    checkpoints: vec![LeaseCheckpoint {
                        id: 5,
                        remaining_ttl: 9,
                    }],
                });
            }),
        ),
        (
            "revoke",
            request(|r| r.lease_revoke = Some(LeaseRevokeRequest { id: 5 })),
        ),
        (
            "compact",
            request(|r| {
                r.compaction = Some(CompactionRequest {
                    revision: 3,
                    physical: true,
                });
            }),
        ),
        (
            "alarm",
            request(|r| {
                r.alarm = Some(AlarmRequest {
                    action: 1,
                    member_id: 2,
                    alarm: 1,
                });
            }),
        ),
        (
            "version",
            request(|r| {
                r.cluster_version_set = Some(membershippb::ClusterVersionSetRequest {
                    ver: "3.7.0".to_owned(),
                });
            }),
        ),
        (
            "attributes",
            request(|r| {
                r.cluster_member_attr_set = Some(membershippb::ClusterMemberAttrSetRequest {
                    member_id: 1,
                    member_attributes: Some(membershippb::Attributes {
                        name: "one".to_owned(),
                        client_urls: vec!["http://one:2379".to_owned()],
                    }),
                });
            }),
        ),
    ]
}

pub fn decode_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, decoder: &str, bytes: Vec<u8>| {
        let which = DECODERS.iter().position(|(known, _)| *known == decoder);
        let which = u8::try_from(which.expect("is in the table")).expect("a small table");
        seeds.push(Seed::new(name, Script::default().u8(which).all(&bytes).0));
    };
    add("range", "range", range_request().encode_to_vec());
    add("put", "put", put_request("k").encode_to_vec());
    add("delete", "delete_range", delete_request().encode_to_vec());
    add("txn", "txn", txn_request().encode_to_vec());
    for depth in [10, 24, 25, 26, 33, 34, 49, 50, 60] {
        let name = format!("txn-{depth}-deep");
        add(&name, "txn", deep_txn(depth).encode_to_vec());
    }
    let many = TxnRequest {
        compare: vec![Compare::default(); 2_000],
        success: vec![RequestOp::default(); 2_000],
        ..Default::default()
    };
    add("txn-of-nothing", "txn", many.encode_to_vec());
    let twice = TxnRequest {
        success: vec![put_op("a"), put_op("a")],
        ..Default::default()
    };
    add("txn-duplicate", "txn", twice.encode_to_vec());
    add(
        "alarm",
        "alarm",
        entries()[8].1.alarm.unwrap_or_default().encode_to_vec(),
    );
    for (name, request) in entries() {
        add(&format!("entry-{name}"), "entry", request.encode_to_vec());
    }
    let both = InternalRaftRequest {
        put: Some(put_request("a")),
        txn: Some(txn_request()),
        ..Default::default()
    };
    add("entry-of-two", "entry", both.encode_to_vec());
    add("watch", "WatchRequest", watch_request().encode_to_vec());
    add(
        "range-answer",
        "RangeResponse",
        range_answer().encode_to_vec(),
    );
    seeds
}

/// A machine over an empty store, of a cluster of three.
fn founded() -> (Arc<MemoryEngine>, Machine) {
    let engine = Arc::new(MemoryEngine::new());
    let mut machine = Machine::open(engine.clone()).expect("an empty store opens");
    let members = (1..=3).map(|id| membershippb::Member {
        id,
        raft_attributes: Some(membershippb::RaftAttributes {
            peer_urls: vec![format!("http://{id}:2380")],
            is_learner: false,
        }),
        ..Default::default()
    });
    machine
        .bootstrap(crate::types::ClusterId(1), members.collect(), 1, 1)
        .expect("writes");
    (engine, machine)
}

/// All that an engine holds.
fn contents(engine: &MemoryEngine) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let mut cursor = engine.latest().cursor(family, &[], None).expect("a cursor");
        while cursor.next().expect("reads") {
            found.push((family, cursor.key().to_vec(), cursor.value().to_vec()));
        }
    }
    found
}

const REQUEST: u8 = 0;
const MEMBERSHIP: u8 = 1;
const EMPTY: u8 = 2;

/// The entries of a script; what cannot be read is none, as for every member.
fn read_entries(bytes: &[u8]) -> Vec<Entry> {
    let mut input = Input::new(bytes);
    let mut entries = Vec::new();
    while !input.is_empty() {
        let kind = input.u8();
        let bytes = Bytes::copy_from_slice(input.block());
        let payload = match kind % 3 {
            REQUEST if machine::decode_request(bytes.clone()).is_ok() => Payload::Request(bytes),
            MEMBERSHIP => Payload::Membership(MemberChange::decode(bytes).unwrap_or_default()),
            _ => Payload::Empty,
        };
        let index = 2 + entries.len() as u64;
        entries.push(Entry {
            index,
            term: 1,
            payload,
        });
    }
    entries
}

/// Applies a script of entries: by groups of one and all at once, which is to come to the same,
/// also after a restart.
pub fn apply(bytes: &[u8]) {
    let (engine, mut machine) = founded();
    let mut one_by_one = Vec::new();
    for entry in read_entries(bytes) {
        let index = entry.index;
        let group = machine.apply(vec![entry]).expect("applies");
        assert_eq!(machine.applied_index(), index);
        one_by_one.extend(group.applied.into_iter().map(|applied| applied.result));
        let head = machine.head();
        assert!(machine.compacted() <= head, "compacted beyond {head}");
        assert!(machine.members().voters().count() > 0, "no voter is left");
    }
    let (other_engine, mut other) = founded();
    let group = other.apply(read_entries(bytes)).expect("applies");
    let at_once: Vec<_> = group.applied.into_iter().map(|a| a.result).collect();
    assert_eq!(one_by_one, at_once, "the answers");
    assert_eq!(contents(&engine), contents(&other_engine), "the states");
    let again = Machine::open(engine).expect("opens again");
    assert_eq!(again.head(), machine.head());
    assert_eq!(again.keys(), machine.keys());
    assert_eq!(again.compacted(), machine.compacted());
    assert_eq!(again.applied_index(), machine.applied_index());
}

fn changes() -> Vec<MemberChange> {
    let raft = |url: &str, is_learner| membershippb::RaftAttributes {
        peer_urls: vec![url.to_owned()],
        is_learner,
    };
    use crate::proto::etchedpeer::Nothing;
    use member_change::Change;
    [
        (4, Change::Add(raft("http://4:2380", true))),
        (4, Change::Promote(Nothing {})),
        (4, Change::Update(raft("http://four:2380", false))),
        (1, Change::Remove(Nothing {})),
        (0, Change::Add(raft("http://0:2380", false))),
    ]
    .map(|(member_id, change)| MemberChange {
        member_id,
        change: Some(change),
        max_learners: 1,
        request_id: 3,
    })
    .into()
}

pub fn apply_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut all = Script::default();
    for (name, request) in entries() {
        let bytes = request.encode_to_vec();
        all = all.u8(REQUEST).block(&bytes);
        seeds.push(Seed::new(
            name,
            Script::default().u8(REQUEST).block(&bytes).0,
        ));
    }
    seeds.push(Seed::new("all", all.u8(EMPTY).block(&[]).0));
    let mut members = Script::default();
    for change in changes() {
        members = members.u8(MEMBERSHIP).block(&change.encode_to_vec());
    }
    seeds.push(Seed::new("members", members.0));
    // The history of one key, and a transaction that reads it.
    let mut history = Script::default();
    for which in [0, 0, 1, 2, 7, 1] {
        history = history
            .u8(REQUEST)
            .block(&entries()[which].1.encode_to_vec());
    }
    seeds.push(Seed::new("history", history.0));
    seeds
}
