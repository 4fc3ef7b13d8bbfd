//! What requests mean, said a second time and as simply as can be: every version of every key
//! is kept, and every answer is computed from all of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use crate::error::Error;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionResponse, Compare,
    DeleteRangeRequest, DeleteRangeResponse, InternalRaftRequest, LeaseCheckpointResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
    request_op::Request, response_op::Response as OpResponse,
};
use crate::proto::{EncodedKv, EncodedKvs, Event, KeyValue, put_bytes_field};
use crate::state::Response;
use crate::types::Revision;

/// A change of a key; no pair for a delete.
#[derive(Clone, Debug)]
struct Change {
    revision: Revision,
    kv: Option<KeyValue>,
}

#[derive(Debug)]
pub struct Model {
    keys: BTreeMap<Bytes, Vec<Change>>,
    pub head: i64,
    pub compacted: i64,
    /// Granted and checkpointed time to live.
    pub leases: BTreeMap<i64, (i64, i64)>,
    alarms: BTreeSet<(i32, u64)>,
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

fn encoded(kv: &KeyValue) -> EncodedKv {
    EncodedKv::from(kv)
}

impl Model {
    pub fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            head: 1,
            compacted: -1,
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
        }
    }

    /// The pair of a key after all of revision `main`.
    fn at(&self, key: &[u8], main: i64) -> Option<&KeyValue> {
        let versions = self.keys.get(key)?;
        let until = versions
            .iter()
            .rev()
            .find(|change| change.revision.main <= main)?;
        until.kv.as_ref()
    }

    fn pairs(&self, key: &[u8], range_end: &[u8], main: i64) -> Vec<KeyValue> {
        let keys = self.keys.keys();
        let keys = keys.filter(|other| contains(key, range_end, other));
        keys.filter_map(|key| self.at(key, main).cloned()).collect()
    }

    pub fn range(&self, request: &RangeRequest, head: i64) -> Result<RangeResponse, Error> {
        let revision = request.revision;
        if revision > head {
            return Err(Error::FutureRevision);
        }
        let revision = if revision <= 0 { head } else { revision };
        if revision < self.compacted {
            return Err(Error::Compacted);
        }
        let mut pairs = self.pairs(&request.key, &request.range_end, revision);
        let count = pairs.len() as i64;
        let limit = request.limit.max(0) as usize;
        if request.count_only {
            pairs.clear();
        }
        let order = SortOrder::try_from(request.sort_order).expect("an order");
        let target = SortTarget::try_from(request.sort_target).expect("a target");
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
        for kv in &mut pairs {
            if request.keys_only {
                kv.value = Bytes::new();
                if target != SortTarget::Value {
                    kv.lease = 0;
                }
            }
            put_bytes_field(&mut frames, 2, &kv.encode_to_vec());
        }
        Ok(RangeResponse {
            header: header(head),
            kvs: EncodedKvs::from_frames(frames.into(), pairs.len()),
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

    fn holds(&self, compare: &Compare) -> bool {
        let target = CompareTarget::try_from(compare.target).expect("a target");
        let union = compare.target_union.as_ref().expect("something to compare");
        let holds = |kv: &KeyValue| {
            let ordering = match (target, union) {
                (CompareTarget::Version, TargetUnion::Version(n)) => kv.version.cmp(n),
                (CompareTarget::Create, TargetUnion::CreateRevision(n)) => {
                    kv.create_revision.cmp(n)
                }
                (CompareTarget::Mod, TargetUnion::ModRevision(n)) => kv.mod_revision.cmp(n),
                (CompareTarget::Lease, TargetUnion::Lease(n)) => kv.lease.cmp(n),
                (CompareTarget::Value, TargetUnion::Value(value)) => kv.value.cmp(value),
                _ => panic!("target and value do not fit"),
            };
            match CompareResult::try_from(compare.result).expect("a comparison") {
                CompareResult::Equal => ordering.is_eq(),
                CompareResult::NotEqual => ordering.is_ne(),
                CompareResult::Greater => ordering.is_gt(),
                CompareResult::Less => ordering.is_lt(),
            }
        };
        let pairs = self.pairs(&compare.key, &compare.range_end, self.head);
        match pairs.is_empty() {
            true => target != CompareTarget::Value && holds(&KeyValue::default()),
            false => pairs.iter().all(holds),
        }
    }

    /// The branches taken, this transaction's first and then those of nested ones, in order.
    fn decide(&self, request: &TxnRequest, taken: &mut Vec<bool>) {
        let succeeds = request.compare.iter().all(|compare| self.holds(compare));
        taken.push(succeeds);
        for op in branch(request, succeeds) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, taken);
            }
        }
    }

    fn check(
        &self,
        request: &TxnRequest,
        taken: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Error> {
        let succeeds = taken.next().expect("a branch");
        for op in branch(request, succeeds) {
            match &op.request {
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestRange(range)) if range.revision > self.head => {
                    return Err(Error::FutureRevision);
                }
                Some(Request::RequestRange(range))
                    if range.revision != 0 && range.revision < self.compacted =>
                {
                    return Err(Error::Compacted);
                }
                Some(Request::RequestTxn(nested)) => self.check(nested, taken)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        txn: &mut Txn,
        request: &TxnRequest,
        taken: &mut impl Iterator<Item = bool>,
    ) -> TxnResponse {
        let succeeded = taken.next().expect("a branch");
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let response = match op.request.as_ref().expect("an operation") {
                Request::RequestPut(put) => OpResponse::ResponsePut(self.put(txn, put)),
                Request::RequestDeleteRange(delete) => {
                    OpResponse::ResponseDeleteRange(self.delete(txn, delete))
                }
                Request::RequestRange(range) => OpResponse::ResponseRange(
                    self.range(range, self.txn_head(txn)).expect("was checked"),
                ),
                Request::RequestTxn(nested) => {
                    let mut response = self.execute(txn, nested, taken);
                    response.header = header(0);
                    OpResponse::ResponseTxn(response)
                }
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        TxnResponse {
            header: header(self.txn_head(txn)),
            succeeded,
            responses,
        }
    }

    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        let mut taken = Vec::new();
        self.decide(request, &mut taken);
        self.check(request, &mut taken.iter().copied())?;
        let mut txn = self.begin();
        let response = self.execute(&mut txn, request, &mut taken.into_iter());
        self.finish(&txn);
        Ok(response)
    }

    fn grant(&mut self, grant: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Error> {
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

    /// The keys whose newest version names the lease.
    pub fn attached(&self, lease: i64) -> Vec<Bytes> {
        let pairs = self.pairs(b"\0", b"\0", self.head);
        let attached = pairs.into_iter().filter(|kv| kv.lease == lease);
        attached.map(|kv| kv.key).collect()
    }

    fn revoke(&mut self, lease: i64) -> Result<LeaseRevokeResponse, Error> {
        self.leases.remove(&lease).ok_or(Error::LeaseNotFound)?;
        let mut txn = self.begin();
        for key in self.attached(lease) {
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
        match AlarmAction::try_from(request.action).expect("an action") {
            AlarmAction::Get => {
                let listed = self.alarms.iter().copied();
                alarms = listed
                    .filter(|(kind, _)| request.alarm == 0 || *kind == request.alarm)
                    .collect();
            }
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

    fn refuse(&self, request: &InternalRaftRequest) -> Result<(), Error> {
        let active = |kind| self.alarms.iter().any(|(active, _)| *active == kind as i32);
        let harmless = request.alarm.is_some() || request.lease_checkpoint.is_some();
        if active(AlarmType::Corrupt) && !harmless {
            return Err(Error::Corrupt);
        }
        let grows = request.put.is_some()
            || request.lease_grant.is_some()
            || request.txn.as_ref().is_some_and(puts);
        if active(AlarmType::Nospace) && grows {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    pub fn apply(&mut self, request: &InternalRaftRequest) -> Result<Response, Error> {
        self.refuse(request)?;
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
        } else {
            panic!("the model does not know {request:?}")
        }
    }

    /// The events of every revision from `from` on that are still to be had, with the pairs
    /// before them that are.
    pub fn events(&self, from: i64) -> BTreeMap<Revision, Event> {
        let mut events = BTreeMap::new();
        for (key, versions) in &self.keys {
            for (at, change) in versions.iter().enumerate() {
                let main = change.revision.main;
                let next = versions.get(at + 1);
                let undone = change.kv.is_some()
                    && next.is_some_and(|next| next.revision.main <= self.compacted);
                if main < from || undone {
                    continue;
                }
                let created = change
                    .kv
                    .as_ref()
                    .is_some_and(|kv| kv.create_revision == main);
                let previous = self
                    .at(key, main - 1)
                    .filter(|_| !created && main > self.compacted);
                let gone = KeyValue {
                    key: key.clone(),
                    mod_revision: main,
                    ..Default::default()
                };
                let event = Event {
                    r#type: i32::from(change.kv.is_none()),
                    kv: Some(change.kv.clone().unwrap_or(gone)),
                    prev_kv: previous.cloned(),
                };
                events.insert(change.revision, event);
            }
        }
        events
    }

    /// etcd's hash, computed from its index of generations; `None` where etcd loses a key (one
    /// made again in the very transaction that deleted it, at the compacted revision).
    pub fn hash(&self, revision: i64) -> Option<u32> {
        let mut kept = BTreeSet::new();
        for versions in self.keys.values() {
            let generations = generations(versions);
            let (generation, at) = compacted_at(&generations, revision);
            let found = &generations[generation];
            let last = generation + 1 == generations.len();
            kept.extend(
                at.filter(|at| last || at + 1 < found.len())
                    .map(|at| found[at].revision),
            );
        }
        self.hash_of(self.compacted, revision, &kept)
    }

    /// As `hash`, of the history that a compaction to the compacted revision finds where the one
    /// before it went to `previous`.
    pub fn compaction_hash(&self, previous: i64) -> Option<u32> {
        let front = |versions| Some(front(versions, self.compacted)?.revision);
        let kept = self.keys.values().filter_map(|versions| front(versions));
        self.hash_of(previous, self.compacted, &kept.collect())
    }

    fn hash_of(&self, compacted: i64, revision: i64, kept: &BTreeSet<Revision>) -> Option<u32> {
        let mut bucket = BTreeMap::new();
        for (key, versions) in &self.keys {
            let front = front(versions, compacted).map(|change| change.revision);
            for change in versions {
                let at = change.revision;
                if at.main == compacted && front.is_some_and(|front| front < at) {
                    return None;
                }
                if at.main > compacted || front == Some(at) {
                    bucket.insert(at, (key, change));
                }
            }
        }
        let mut bytes = b"key".to_vec();
        for (at, (key, change)) in bucket {
            let dead = at.main <= compacted && !kept.is_empty() && !kept.contains(&at);
            let tombstone = change.kv.is_none();
            if at.main > revision || dead || (at.main == compacted && tombstone) {
                continue;
            }
            bytes.extend(at.main.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(at.sub.to_be_bytes());
            if tombstone {
                bytes.push(b't');
            }
            let gone = KeyValue {
                key: key.clone(),
                ..Default::default()
            };
            bytes.extend(change.kv.as_ref().unwrap_or(&gone).encode_to_vec());
        }
        Some(crc32c::crc32c(&bytes))
    }

    pub fn keys(&self) -> i64 {
        self.pairs(b"\0", b"\0", self.head).len() as i64
    }
}

fn branch(request: &TxnRequest, succeeds: bool) -> &[RequestOp] {
    match succeeds {
        true => &request.success,
        false => &request.failure,
    }
}

fn puts(request: &TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => puts(nested),
        _ => false,
    })
}

/// The lives of a key, each but the last ending in a tombstone.
fn generations(versions: &[Change]) -> Vec<Vec<&Change>> {
    let mut generations = vec![Vec::new()];
    for change in versions {
        if let Some(last) = generations.last_mut() {
            last.push(change);
        }
        if change.kv.is_none() {
            generations.push(Vec::new());
        }
    }
    generations
}

/// The generation and the change in it that a compaction to `revision` would leave at its front.
fn compacted_at(generations: &[Vec<&Change>], revision: i64) -> (usize, Option<usize>) {
    let ends = |generation: &Vec<&Change>| {
        generation
            .last()
            .is_some_and(|tombstone| tombstone.revision.main >= revision)
    };
    let last = generations.len() - 1;
    let found = generations[..last].iter().position(ends).unwrap_or(last);
    let at = generations[found]
        .iter()
        .rposition(|change| change.revision.main <= revision);
    (found, at)
}

/// The change that a compaction to `revision` leaves at the front of a key's history.
fn front(versions: &[Change], revision: i64) -> Option<&Change> {
    let generations = generations(versions);
    let (generation, at) = compacted_at(&generations, revision);
    Some(generations[generation][at?])
}
