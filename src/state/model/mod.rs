//! What requests mean, said a second time and as simply as can be: every version of every key
//! is kept, and every answer is computed from all of them. So it can be asked for the answer that
//! any state of the past would have given.
//!
//! Tests hold the state machine against it, and the simulator's checkers whole clusters.

pub mod auth;
mod hashes;
mod history;
mod members;
mod txn;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Response;
use super::lease::MAX_TTL_S;
use crate::error::Error;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, InternalRaftRequest, LeaseCheckpointResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, request_op,
};
use crate::proto::{EncodedKv, EncodedKvs, KeyValue, put_bytes_field, put_varint_field};
use crate::types::Revision;
use auth::Auth;

pub use history::Changed;
pub use members::Members;

/// A state that the model was in, as far as it matters to those who read keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The newest revision.
    pub head: i64,
    /// The revision that the history is compacted to; -1 before the first compaction.
    pub compacted: i64,
}

/// A change of a key; no pair for a delete.
#[derive(Clone, Debug)]
struct Change {
    revision: Revision,
    kv: Option<KeyValue>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Model {
    keys: BTreeMap<Bytes, Vec<Change>>,
    pub head: i64,
    pub compacted: i64,
    /// Granted and checkpointed time to live.
    pub leases: BTreeMap<i64, (i64, i64)>,
    /// Kind and member.
    pub alarms: BTreeSet<(i32, u64)>,
    /// Shared with those who ask what it was.
    pub auth: Arc<Auth>,
}

/// The changes that a transaction has made so far.
struct Txn {
    main: i64,
    changes: i64,
}

fn contains(key: &[u8], range_end: &[u8], other: &[u8]) -> bool {
    match range_end {
        [] => key == other,
        [0] => key <= other,
        end => key <= other && other < end,
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// The fields in the order in which the server sends them: the value, which is long, comes last.
fn encode(kv: &KeyValue) -> Bytes {
    let mut bytes = BytesMut::new();
    put_bytes_field(&mut bytes, 1, &kv.key);
    put_varint_field(&mut bytes, 2, kv.create_revision);
    put_varint_field(&mut bytes, 3, kv.mod_revision);
    put_varint_field(&mut bytes, 4, kv.version);
    put_varint_field(&mut bytes, 6, kv.lease);
    if !kv.value.is_empty() {
        put_bytes_field(&mut bytes, 5, &kv.value);
    }
    bytes.freeze()
}

fn encoded(kv: &KeyValue) -> EncodedKv {
    EncodedKv::from_encoded(encode(kv))
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    pub fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            head: 1,
            compacted: -1,
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            auth: Arc::default(),
        }
    }

    /// The state of now.
    pub fn now(&self) -> At {
        At {
            head: self.head,
            compacted: self.compacted,
        }
    }

    /// The pair of a key after all of revision `main`.
    fn at(&self, key: &[u8], main: i64) -> Option<&KeyValue> {
        last_until(self.keys.get(key)?, main)
    }

    fn pairs(&self, key: &[u8], range_end: &[u8], main: i64) -> Vec<&KeyValue> {
        let from = Bound::Included(key);
        let keys = self.keys.range::<[u8], _>((from, Bound::Unbounded));
        let keys = keys.take_while(|(other, _)| contains(key, range_end, other));
        keys.filter_map(|(_, versions)| last_until(versions, main))
            .collect()
    }

    /// What a range answers in that state.
    pub fn range(&self, request: &RangeRequest, at: At) -> Result<RangeResponse, Error> {
        let revision = request.revision;
        if revision > at.head {
            return Err(Error::FutureRevision);
        }
        let revision = if revision <= 0 { at.head } else { revision };
        if revision < at.compacted {
            return Err(Error::Compacted);
        }
        let mut pairs = self.pairs(&request.key, &request.range_end, revision);
        let count = pairs.len() as i64;
        let limit = request.limit.max(0) as usize;
        if request.count_only {
            pairs.clear();
        }
        let order = SortOrder::try_from(request.sort_order).unwrap_or_default();
        let target = SortTarget::try_from(request.sort_target).unwrap_or_default();
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let plain =
            order == SortOrder::None || (order == SortOrder::Ascend && target == SortTarget::Key);
        if plain && filters == [0; 4] && limit > 0 {
            pairs.truncate(limit + 1);
        }
        let [min_mod, max_mod, min_create, max_create] = filters;
        pairs.retain(|kv| min_mod == 0 || kv.mod_revision >= min_mod);
        pairs.retain(|kv| max_mod == 0 || kv.mod_revision <= max_mod);
        pairs.retain(|kv| min_create == 0 || kv.create_revision >= min_create);
        pairs.retain(|kv| max_create == 0 || kv.create_revision <= max_create);
        pairs.sort_by(|a, b| {
            let ordering = match target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            match order {
                SortOrder::Descend => ordering.reverse(),
                SortOrder::None | SortOrder::Ascend => ordering,
            }
        });
        let more = limit > 0 && pairs.len() > limit;
        if more {
            pairs.truncate(limit);
        }
        let mut frames = Vec::new();
        for kv in &pairs {
            if request.keys_only {
                let mut kv = KeyValue::clone(kv);
                kv.value = Bytes::new();
                if target != SortTarget::Value {
                    kv.lease = 0;
                }
                put_bytes_field(&mut frames, 2, &encode(&kv));
            } else {
                put_bytes_field(&mut frames, 2, &encode(kv));
            }
        }
        Ok(RangeResponse {
            header: header(at.head),
            kvs: EncodedKvs::from_chunks(vec![frames.into()], pairs.len()),
            more,
            count,
        })
    }

    fn txn_head(&self, txn: &Txn) -> i64 {
        if txn.changes == 0 {
            self.head
        } else {
            txn.main
        }
    }

    fn begin(&self) -> Txn {
        Txn {
            main: self.head + 1,
            changes: 0,
        }
    }

    fn finish(&mut self, txn: &Txn) {
        self.head = self.txn_head(txn);
    }

    fn push(&mut self, txn: &mut Txn, key: &Bytes, kv: Option<KeyValue>) {
        let revision = Revision::new(txn.main, txn.changes);
        txn.changes += 1;
        let versions = self.keys.entry(key.clone()).or_default();
        versions.push(Change { revision, kv });
    }

    fn check_put(&self, put: &PutRequest) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        let found = self.at(&put.key, self.head).is_some();
        if (put.ignore_value || put.ignore_lease) && !found {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, txn: &mut Txn, put: &PutRequest) -> PutResponse {
        let old = self.at(&put.key, txn.main).cloned();
        let mut kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(txn.main, |old| old.create_revision),
            mod_revision: txn.main,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(old) = &old {
            if put.ignore_value {
                kv.value = old.value.clone();
            }
            if put.ignore_lease {
                kv.lease = old.lease;
            }
        }
        self.push(txn, &put.key, Some(kv));
        PutResponse {
            header: header(txn.main),
            prev_kv: old.filter(|_| put.prev_kv).as_ref().map(encoded),
        }
    }

    fn delete(&mut self, txn: &mut Txn, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let old = self.pairs(&delete.key, &delete.range_end, txn.main);
        let old: Vec<KeyValue> = old.into_iter().cloned().collect();
        for kv in &old {
            self.push(txn, &kv.key, None);
        }
        DeleteRangeResponse {
            header: header(self.txn_head(txn)),
            deleted: old.len() as i64,
            prev_kvs: match delete.prev_kv {
                true => old.iter().map(encoded).collect(),
                false => Vec::new(),
            },
        }
    }

    fn grant(&mut self, grant: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Error> {
        if grant.id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if grant.ttl > MAX_TTL_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&grant.id) {
            return Err(Error::LeaseExists);
        }
        self.leases.insert(grant.id, (grant.ttl, 0));
        Ok(LeaseGrantResponse {
            header: header(self.head),
            id: grant.id,
            ttl: grant.ttl,
            error: String::new(),
        })
    }

    /// The keys whose version at revision `head` names the lease.
    pub fn attached(&self, lease: i64, head: i64) -> Vec<Bytes> {
        let pairs = self.pairs(b"\0", b"\0", head);
        let attached = pairs.into_iter().filter(|kv| kv.lease == lease);
        attached.map(|kv| kv.key.clone()).collect()
    }

    /// The keys of all leases.
    pub fn attached_to_any(&self, head: i64) -> Vec<Bytes> {
        let pairs = self.pairs(b"\0", b"\0", head);
        let attached = pairs.into_iter().filter(|kv| kv.lease != 0);
        attached.map(|kv| kv.key.clone()).collect()
    }

    fn revoke(&mut self, lease: i64) -> Result<LeaseRevokeResponse, Error> {
        self.leases.remove(&lease).ok_or(Error::LeaseNotFound)?;
        let mut txn = self.begin();
        for key in self.attached(lease, self.head) {
            self.push(&mut txn, &key, None);
        }
        self.finish(&txn);
        Ok(LeaseRevokeResponse {
            header: header(self.head),
        })
    }

    fn compact(&mut self, revision: i64) -> Result<CompactionResponse, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.head {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        Ok(CompactionResponse {
            header: header(self.head),
        })
    }

    fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let alarm = (request.alarm, request.member_id);
        let mut alarms = vec![alarm];
        match AlarmAction::try_from(request.action).unwrap_or_default() {
            AlarmAction::Get => {
                let listed = self.alarms.iter().copied();
                alarms = listed
                    .filter(|(kind, _)| request.alarm == 0 || *kind == request.alarm)
                    .collect();
            }
            AlarmAction::Activate if request.alarm == AlarmType::None as i32 => alarms.clear(),
            AlarmAction::Activate => {
                self.alarms.insert(alarm);
            }
            AlarmAction::Deactivate if self.alarms.remove(&alarm) => {}
            AlarmAction::Deactivate => alarms.clear(),
        }
        AlarmResponse {
            header: header(self.head),
            alarms: alarms
                .into_iter()
                .map(|(alarm, member_id)| AlarmMember { member_id, alarm })
                .collect(),
        }
    }

    pub fn has_alarm(&self, kind: AlarmType) -> bool {
        self.alarms.iter().any(|(active, _)| *active == kind as i32)
    }

    /// What the active alarms forbid.
    fn refuse(&self, request: &InternalRaftRequest) -> Result<(), Error> {
        let grows = request.put.is_some()
            || request.lease_grant.is_some()
            || request.txn.as_ref().is_some_and(puts);
        let writes = grows
            || request.txn.is_some()
            || request.delete_range.is_some()
            || request.compaction.is_some()
            || request.lease_revoke.is_some();
        if self.has_alarm(AlarmType::Corrupt) && writes {
            return Err(Error::Corrupt);
        }
        if self.has_alarm(AlarmType::Nospace) && grows {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Does what an entry of the log asks for, and answers it.
    pub fn apply(&mut self, request: &InternalRaftRequest) -> Result<Response, Error> {
        self.refuse(request)?;
        self.auth
            .permits(request, &|lease| self.attached(lease, self.head))?;
        if let Some(put) = &request.put {
            self.check_put(put)?;
            let mut txn = self.begin();
            let response = self.put(&mut txn, put);
            self.finish(&txn);
            Ok(Response::Put(response))
        } else if let Some(delete) = &request.delete_range {
            let mut txn = self.begin();
            let response = self.delete(&mut txn, delete);
            self.finish(&txn);
            Ok(Response::DeleteRange(response))
        } else if let Some(txn) = &request.txn {
            self.txn(txn).map(Response::Txn)
        } else if let Some(compaction) = &request.compaction {
            self.compact(compaction.revision).map(Response::Compaction)
        } else if let Some(grant) = &request.lease_grant {
            self.grant(grant).map(Response::LeaseGrant)
        } else if let Some(revoke) = &request.lease_revoke {
            self.revoke(revoke.id).map(Response::LeaseRevoke)
        } else if let Some(checkpoint) = &request.lease_checkpoint {
            for checkpoint in &checkpoint.checkpoints {
                if let Some((_, remaining)) = self.leases.get_mut(&checkpoint.id) {
                    *remaining = checkpoint.remaining_ttl;
                }
            }
            Ok(Response::LeaseCheckpoint(LeaseCheckpointResponse {
                header: header(self.head),
            }))
        } else if let Some(alarm) = &request.alarm {
            Ok(Response::Alarm(self.alarm(alarm)))
        } else if request.cluster_version_set.is_some()
            || request.downgrade_info_set.is_some()
            || request.downgrade_version_test.is_some()
            || request.cluster_member_attr_set.is_some()
        {
            Ok(Response::Done)
        } else {
            let header = header(self.head);
            let auth = Arc::make_mut(&mut self.auth).apply(request, header);
            auth.unwrap_or(Err(Error::UnknownMethod))
        }
    }

    /// How many keys there are.
    #[cfg(test)]
    pub fn keys(&self) -> i64 {
        self.pairs(b"\0", b"\0", self.head).len() as i64
    }
}

/// The pair of a key with these versions after all of revision `main`.
fn last_until(versions: &[Change], main: i64) -> Option<&KeyValue> {
    let behind = versions.partition_point(|change| change.revision.main <= main);
    versions[..behind].last()?.kv.as_ref()
}

fn puts(request: &TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(request_op::Request::RequestPut(_)) => true,
        Some(request_op::Request::RequestTxn(nested)) => puts(nested),
        _ => false,
    })
}
