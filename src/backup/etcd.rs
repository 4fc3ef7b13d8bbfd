//! What etcd v3.7 keeps in its bbolt file: the names of buckets and keys, and how values are
//! written. Pairs of the keyspace are protobuf, members are JSON, numbers are big-endian.

use std::borrow::Cow;

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::mvcc::hash::RecordKey;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::membershippb::Member;
use crate::proto::{begin_nested, put_bytes_field, put_varint_field};
use crate::state::lease::Lease;
use crate::storage::schema::Head;
use crate::types::{LeaseId, Revision};

pub mod bucket {
    pub const ALARM: &[u8] = b"alarm";
    pub const AUTH: &[u8] = b"auth";
    pub const AUTH_ROLES: &[u8] = b"authRoles";
    pub const AUTH_USERS: &[u8] = b"authUsers";
    pub const CLUSTER: &[u8] = b"cluster";
    pub const KEY: &[u8] = b"key";
    pub const LEASE: &[u8] = b"lease";
    pub const MEMBERS: &[u8] = b"members";
    pub const MEMBERS_REMOVED: &[u8] = b"members_removed";
    pub const META: &[u8] = b"meta";
}

pub mod key {
    pub const AUTH_ENABLED: &[u8] = b"authEnabled";
    pub const AUTH_REVISION: &[u8] = b"authRevision";
    pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";
    pub const CONF_STATE: &[u8] = b"confState";
    pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
    pub const DOWNGRADE: &[u8] = b"downgrade";
    pub const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
    pub const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
    pub const STORAGE_VERSION: &[u8] = b"storageVersion";
    pub const TERM: &[u8] = b"term";
}

/// The value of a member that was removed.
pub const REMOVED: &[u8] = b"removed";

/// A pair of the keyspace in `mvccpb.KeyValue`'s encoding, in the parts around its value.
pub struct PairParts {
    pub before_value: Vec<u8>,
    pub behind_value: Vec<u8>,
}

impl PairParts {
    pub fn new(key: &[u8], head: &Head, value_len: usize) -> Self {
        let mut before_value = Vec::with_capacity(key.len() + 48);
        put_bytes_field(&mut before_value, 1, key);
        put_varint_field(&mut before_value, 2, head.create_revision);
        put_varint_field(&mut before_value, 3, head.mod_revision.main);
        put_varint_field(&mut before_value, 4, head.version);
        if value_len > 0 {
            begin_nested(5, value_len, &mut before_value);
        }
        let mut behind_value = Vec::new();
        put_varint_field(&mut behind_value, 6, head.lease.0);
        Self {
            before_value,
            behind_value,
        }
    }
}

/// What the key of a record says, or of how far a compaction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub revision: Revision,
    pub tombstone: bool,
}

impl Record {
    /// The reverse of `RecordKey`.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(i64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
        let revision = Revision::new(number(0)?, number(9)?);
        let tombstone = key.len() == 18;
        let same = RecordKey::new(revision, tombstone).bytes() == key;
        (same && revision.main >= 0 && revision.sub >= 0).then_some(Self {
            revision,
            tombstone,
        })
    }
}

/// The value of a tombstone.
pub fn tombstone(key: &[u8]) -> Vec<u8> {
    let mut pair = Vec::with_capacity(key.len() + 6);
    put_bytes_field(&mut pair, 1, key);
    pair
}

/// How far a compaction was asked to go, or has gone.
pub fn compaction(revision: i64) -> Vec<u8> {
    RecordKey::new(Revision::new(revision, 0), false)
        .bytes()
        .to_vec()
}

pub fn lease_key(id: LeaseId) -> [u8; 8] {
    id.0.to_be_bytes()
}

pub fn lease(id: LeaseId, lease: &Lease) -> Vec<u8> {
    StoredLease {
        id: id.0,
        ttl_s: lease.ttl_s,
        remaining_ttl_s: lease.remaining_ttl_s,
    }
    .encode_to_vec()
}

/// `leasepb.Lease`.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl_s: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl_s: i64,
}

pub fn parse_lease(value: &[u8]) -> Option<(LeaseId, Lease)> {
    let stored = StoredLease::decode(value).ok()?;
    let lease = Lease {
        ttl_s: stored.ttl_s,
        remaining_ttl_s: stored.remaining_ttl_s,
    };
    (stored.id != 0).then_some((LeaseId(stored.id), lease))
}

pub fn alarm(alarm: &AlarmMember) -> Vec<u8> {
    alarm.encode_to_vec()
}

pub fn member_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

pub fn member(member: &Member) -> Vec<u8> {
    let raft = member.raft_attributes.clone().unwrap_or_default();
    let attributes = member.member_attributes.clone().unwrap_or_default();
    json(&StoredMember {
        id: member.id,
        peer_urls: raft.peer_urls,
        is_learner: raft.is_learner,
        name: attributes.name,
        client_urls: attributes.client_urls,
    })
}

#[derive(Serialize)]
struct StoredMember {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    client_urls: Vec<String>,
}

pub fn downgrade(target: &str) -> Vec<u8> {
    json(&Downgrade {
        target_version: target.into(),
        enabled: true,
    })
}

/// The target of a downgrade; `Some(None)` where none is under way.
pub fn parse_downgrade(value: &[u8]) -> Option<Option<String>> {
    let stored: Downgrade = serde_json::from_slice(value).ok()?;
    Some(stored.enabled.then(|| stored.target_version.into_owned()))
}

#[derive(Serialize, Deserialize)]
struct Downgrade<'a> {
    #[serde(rename = "target-version", default)]
    target_version: Cow<'a, str>,
    enabled: bool,
}

/// Raft's configuration.
pub fn conf_state(voters: Vec<u64>, learners: Vec<u64>) -> Vec<u8> {
    json(&ConfState {
        voters,
        learners,
        auto_leave: false,
    })
}

#[derive(Serialize)]
struct ConfState {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    auto_leave: bool,
}

/// Of structures that cannot fail to be written.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_keeps_what_is_left_of_it() {
        for (id, ttl_s, remaining_ttl_s) in [(7, 60, 0), (-7, 60, 13), (i64::MIN, i64::MAX, 1)] {
            let (id, kept) = (
                LeaseId(id),
                Lease {
                    ttl_s,
                    remaining_ttl_s,
                },
            );
            assert_eq!(parse_lease(&lease(id, &kept)), Some((id, kept)));
        }
        // As etcd's own encoder writes it.
        let known = b"\x08\x07\x10\x3c\x18\x0d";
        let kept = Lease {
            ttl_s: 60,
            remaining_ttl_s: 13,
        };
        assert_eq!(lease(LeaseId(7), &kept), known);
    }
}
