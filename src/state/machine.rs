//! Apply: takes committed entries in order, changes the state, and returns the responses and what
//! watches and the lessor need.
//!
//! A group of entries becomes one engine batch that ends with the applied index of its last entry.
//! If an entry needs to read what only the engine has (a scan of a lease's keys, a read at a past
//! revision), the group so far is written first. A deletion of many keys is written in several
//! batches (`sliced`), with a call of `stage` for each, and so is a transaction that changes much.
//!
//! Long because each kind of request is a line or two here, beside the state that all of them share
//! and what opens and writes it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::alarm::Alarms;
use super::answer::AnswerLimit;
use super::auth::store::Effects;
use super::auth::verdict::{Access, AuthIdentity};
use super::auth::{AuthEvent, AuthStore, AuthView};
use super::kv;
use super::lease::{self, Attached, LeaseEvent, Leases};
use super::membership::Membership;
use super::response::Response;
use super::sliced::{self, Previous, Slices};
use super::txn::{self, PartedTxn, Written};
use super::version::Versions;
use crate::error::Error;
use crate::mvcc::write::{SliceLimit, Sliced, Writer};
use crate::mvcc::{self, Change};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{
    AlarmResponse, AlarmType, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    InternalRaftRequest, LeaseCheckpointRequest, LeaseCheckpointResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeResponse, PutResponse, RequestHeader, TxnRequest,
};
use crate::proto::etchedpeer::MemberChange;
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::storage::schema::{self, Unfinished, UnfinishedDelete, meta};
use crate::storage::{self, Engine, Family, Read};
use crate::types::{ClusterId, KeyRange, LeaseId, MemberId};

/// An applied entry, and the result for its proposer.
#[derive(Debug)]
pub struct Applied {
    pub index: u64,
    pub result: Result<Response, Error>,
}

/// The effects of a group of applied entries.
#[derive(Debug, Default)]
pub struct Group {
    /// One for each entry, in order.
    pub applied: Vec<Applied>,
    /// But those of `sliced`.
    pub changes: Vec<Change>,
    /// Revisions of so many changes that these are only in the revision log.
    pub sliced: Vec<Sliced>,
    pub lease_events: Vec<LeaseEvent>,
    pub auth_events: Vec<AuthEvent>,
    /// Indexes of membership changes that were accepted.
    pub member_changes: Vec<u64>,
    /// True if alarms, members, the cluster version or its downgrade changed.
    pub status_changed: bool,
    /// True if a further compaction was requested.
    pub compacted: bool,
}

/// How far `stage` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    All,
    /// A batch of a deletion or a transaction is written, and more of it are to come: call it again
    /// with the same entries and group.
    Slice,
    /// What is to be written next needs a newer `format` than what was: call it again, like for a
    /// slice, once the directory has its mark.
    Format,
}

/// An entry to apply.
#[derive(Debug)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub payload: Payload,
}

#[derive(Debug)]
pub enum Payload {
    /// A leader's first entry.
    Empty,
    Request(Bytes),
    /// A request proposed by this process, which still has it decoded.
    Decoded(Arc<InternalRaftRequest>),
    /// A change of membership; refused at apply if it is not allowed.
    Membership(MemberChange),
}

impl Entry {
    /// Its size in memory, about.
    pub fn bytes(&self) -> usize {
        match &self.payload {
            Payload::Request(bytes) => bytes.len(),
            Payload::Decoded(request) => request.encoded_len(),
            Payload::Empty | Payload::Membership(_) => 64,
        }
    }
}

/// Decodes a request of the log.
///
/// The decoder limits the nesting of messages. The deepest transaction that a client may send is
/// nested one level deeper in its entry, so it is decoded separately: what was accepted as a
/// proposal must be decodable from the log.
///
/// # Errors
/// The bytes are not a request; no member can apply such an entry.
pub fn decode_request(bytes: Bytes) -> Result<InternalRaftRequest, prost::DecodeError> {
    /// `InternalRaftRequest` with the transaction left encoded.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Undecoded {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(bytes = "bytes", optional, tag = "6")]
        txn: Option<Bytes>,
        #[prost(message, optional, tag = "100")]
        header: Option<RequestHeader>,
    }
    let undecoded = Undecoded::decode(bytes.clone())?;
    let Some(txn) = undecoded.txn else {
        return InternalRaftRequest::decode(bytes);
    };
    Ok(InternalRaftRequest {
        id: undecoded.id,
        header: undecoded.header,
        txn: Some(TxnRequest::decode(txn)?),
        ..Default::default()
    })
}

/// The state machine of one member.
pub struct Machine {
    writer: Writer,
    leases: Leases,
    alarms: Alarms,
    members: Membership,
    versions: Versions,
    auth: AuthStore,
    applied_index: u64,
    applied_term: u64,
    slice_limit: SliceLimit,
    /// The deletion that is under way.
    slices: Option<Slices>,
    /// Or the transaction.
    parted: Option<PartedTxn>,
}

impl Machine {
    /// Loads the state from the engine.
    pub fn open(engine: Arc<dyn Engine>) -> storage::Result<Self> {
        Self::open_with(engine, SliceLimit::default())
    }

    /// The same, with deletions of more than `slice_limit` in several batches. It changes nothing
    /// of what is written in the end.
    pub fn open_with(engine: Arc<dyn Engine>, slice_limit: SliceLimit) -> storage::Result<Self> {
        let read = engine.latest();
        let applied = sliced::applied(read)?;
        let mut machine = Self {
            leases: Leases::load(read)?,
            alarms: Alarms::load(read)?,
            members: Membership::load(read)?,
            versions: Versions::load(read)?,
            auth: AuthStore::load(read)?,
            applied_index: applied.index,
            applied_term: applied.term,
            writer: Writer::open(engine.clone())?,
            slice_limit,
            slices: None,
            parted: None,
        };
        match applied.unfinished {
            Some(Unfinished::Delete(record)) => machine.finish_delete(record)?,
            Some(Unfinished::Txn { revision }) => machine.take_back(revision)?,
            None => {}
        }
        Ok(machine)
    }

    /// Makes a state that holds a part of a transaction the one before it; the log has its entry.
    fn take_back(&mut self, revision: i64) -> storage::Result<()> {
        let index = self.applied_index + 1;
        if revision != self.writer.head() + 1 {
            return Err(storage::Error::Damaged {
                family: Family::Meta,
                key: meta::APPLIED.to_vec(),
                reason: "its transaction does not have the revision it should",
            });
        }
        tracing::info!(
            index,
            revision,
            "taking back a transaction that was interrupted"
        );
        probe::reached(CoveragePoint::TxnTakenBack);
        let applied = (self.applied_index, self.applied_term);
        if !probe::injected(Defect::PartKept) {
            sliced::take_back(&mut self.writer, revision, applied, self.slice_limit)?;
        }
        self.commit()
    }

    /// Finishes a deletion that the state holds a part of.
    fn finish_delete(&mut self, record: UnfinishedDelete) -> storage::Result<()> {
        let revision = self.writer.head() + 1;
        if record.revision != revision {
            return Err(storage::Error::Damaged {
                family: Family::Meta,
                key: meta::APPLIED.to_vec(),
                reason: "its deletion is not of the next revision",
            });
        }
        let (index, term) = (self.applied_index + 1, record.term);
        tracing::info!(index, revision, "finishing a deletion that was interrupted");
        self.slices = Some(Slices::resume(record, &mut self.writer));
        let mut nobody = (Group::default(), AnswerLimit::up_to(0));
        while self.next_slice(&mut nobody.0, &mut nobody.1)?.is_none() {}
        self.applied_index = index;
        self.applied_term = term;
        self.commit()
    }

    pub fn slice_limit(&self) -> SliceLimit {
        self.slice_limit
    }

    #[cfg(any(test, feature = "simulation"))]
    pub fn set_slice_limit(&mut self, limit: SliceLimit) {
        self.slice_limit = limit;
    }

    pub fn engine(&self) -> &Arc<dyn Engine> {
        self.writer.engine()
    }

    /// The cluster that the state is of, where it says so.
    pub fn cluster(&self) -> storage::Result<Option<ClusterId>> {
        let Some(value) = self
            .writer
            .engine()
            .latest()
            .get(Family::Meta, meta::CLUSTER)?
        else {
            return Ok(None);
        };
        let [cluster] = schema::decode_numbers(&value, meta::CLUSTER)?;
        Ok(Some(ClusterId(cluster)))
    }

    /// Writes the initial state of a founder: the members and their cluster. It is the state
    /// after the entry `index`, which no log contains: later members get a checkpoint of it.
    pub fn bootstrap(
        &mut self,
        cluster: ClusterId,
        members: Vec<Member>,
        index: u64,
        term: u64,
    ) -> storage::Result<()> {
        let named = schema::encode_numbers(&[cluster.0]);
        self.writer.batch().put(Family::Meta, meta::CLUSTER, &named);
        for member in members {
            let (id, batch) = (MemberId(member.id), self.writer.batch());
            let attributes = member.member_attributes.unwrap_or_default();
            self.members
                .set(id, member.raft_attributes.unwrap_or_default(), batch);
            self.members.set_attributes(id, attributes, batch);
        }
        self.applied_index = index;
        self.applied_term = term;
        self.writer.commit(index, term)
    }

    /// Remembers ids of members that were removed before this state began; written with what
    /// `bootstrap` writes.
    pub fn exclude_removed(&mut self, removed: &[MemberId]) {
        for id in removed {
            self.members.remove(*id, self.writer.batch());
        }
    }

    /// Removes all members but one: for a survivor of a lost quorum.
    pub fn force_sole_member(
        &mut self,
        member: MemberId,
        raft: RaftAttributes,
    ) -> storage::Result<()> {
        let others: Vec<MemberId> = self
            .members
            .iter()
            .map(|other| MemberId(other.id))
            .collect();
        for other in others.into_iter().filter(|other| *other != member) {
            self.members.remove(other, self.writer.batch());
        }
        self.members.readmit(member, self.writer.batch());
        self.members.set(member, raft, self.writer.batch());
        self.commit()
    }

    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// The newest revision.
    pub fn head(&self) -> i64 {
        self.writer.head()
    }

    /// How many keys there are.
    pub fn keys(&self) -> i64 {
        self.writer.keys()
    }

    /// The revision that the history is compacted to; -1 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.writer.compacted()
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    pub fn members(&self) -> &Membership {
        &self.members
    }

    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Users, roles and permissions.
    pub fn auth(&self) -> &Arc<AuthView> {
        self.auth.view()
    }

    /// Applies entries in order and writes them. An error is fatal: the state on disk is then that
    /// before the group, or after some complete entries of it.
    pub fn apply(&mut self, entries: Vec<Entry>) -> storage::Result<Group> {
        let mut group = Group::default();
        while self.stage(&entries, &mut group, |_| usize::MAX, |_| ())? != Staged::All {}
        self.commit()?;
        Ok(group)
    }

    /// Applies entries in order and adds what they do to `group`. Nothing may be published before
    /// `commit` has written them; some are written here. For each, by its position among them,
    /// `answer_bytes` says how large its response may be, 0 where nobody waits for it; `applied` is
    /// called after it.
    pub fn stage(
        &mut self,
        entries: &[Entry],
        group: &mut Group,
        answer_bytes: impl Fn(usize) -> usize,
        mut applied: impl FnMut(usize),
    ) -> storage::Result<Staged> {
        for (place, entry) in entries.iter().enumerate() {
            // After a restart, entries that the state contains already are skipped.
            if entry.index <= self.applied_index {
                continue;
            }
            let (mut kept, format) = (AnswerLimit::up_to(answer_bytes(place)), self.format());
            let Some(result) = self.apply_entry(entry, group, &mut kept)? else {
                return Ok(Staged::Slice);
            };
            group.applied.push(Applied {
                index: entry.index,
                result,
            });
            self.applied_index = entry.index;
            self.applied_term = entry.term;
            applied(place);
            if self.format() != format {
                return Ok(Staged::Format);
            }
            if self.writer.batch().size_bytes() >= self.slice_limit.bytes {
                self.commit()?;
            }
        }
        Ok(Staged::All)
    }

    /// Writes the changes that `stage` has not written yet, in one batch.
    pub fn commit(&mut self) -> storage::Result<()> {
        self.writer.commit(self.applied_index, self.applied_term)
    }

    /// Returns nothing while a deletion or a transaction is under way.
    fn apply_entry(
        &mut self,
        entry: &Entry,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> storage::Result<Option<Result<Response, Error>>> {
        let index = entry.index;
        let request = match &entry.payload {
            _ if self.slices.is_some() => {
                let response = self.next_slice(group, kept)?;
                return Ok(response.map(|response| Self::answer(response, kept)));
            }
            _ if self.parted.is_some() => {
                return match self.next_part(group, kept) {
                    Ok(response) => Ok(response.map(|response| Self::answer(response, kept))),
                    Err(mvcc::Error::Refused(error)) => Ok(Some(Err(error))),
                    Err(mvcc::Error::Storage(error)) => Err(error),
                };
            }
            Payload::Empty => return Ok(Some(Ok(Response::Done))),
            Payload::Decoded(request) => request,
            Payload::Request(bytes) => {
                let decoded = decode_request(bytes.clone()).map_err(|error| {
                    storage::Error::Engine(format!(
                        "entry {index} of the raft log is not a request: {error}"
                    ))
                })?;
                return self.answer_request(entry, &decoded, group, kept);
            }
            Payload::Membership(change) => {
                if let Err(error) = self.members.check(change) {
                    probe::reached(CoveragePoint::ChangeRefused);
                    return Ok(Some(Err(error)));
                }
                self.members.apply(change.clone(), self.writer.batch());
                group.status_changed = true;
                group.member_changes.push(index);
                let members = self.members.iter().cloned().collect();
                return Ok(Some(Ok(Response::Members(members))));
            }
        };
        self.answer_request(entry, request, group, kept)
    }

    fn answer_request(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> storage::Result<Option<Result<Response, Error>>> {
        match self.apply_request(entry, request, group, kept) {
            Ok(response) => Ok(response.map(|response| Self::answer(response, kept))),
            Err(mvcc::Error::Refused(error)) => Ok(Some(Err(error))),
            Err(mvcc::Error::Storage(error)) => Err(error),
        }
    }

    fn answer(response: Response, kept: &AnswerLimit) -> Result<Response, Error> {
        match kept.is_too_large() {
            true => Err(Error::AnswerNotKept),
            false => Ok(response),
        }
    }

    fn apply_request(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Option<Response>> {
        self.check_alarms(request)?;
        self.check_permission(request)?;
        let InternalRaftRequest { put, txn, .. } = request;
        match (put, txn, &request.delete_range, &request.lease_revoke) {
            (None, None, Some(delete), _) => self.delete_range(entry, delete, group, kept),
            (None, Some(txn), _, _) => self.txn(txn, group, kept),
            (None, None, None, Some(revoke)) if request.lease_grant.is_none() => {
                self.lease_revoke(entry, LeaseId(revoke.id), group, kept)
            }
            _ => self
                .apply_at_once(entry.index, request, group, kept)
                .map(Some),
        }
    }

    /// A request of those that need one batch.
    fn apply_at_once(
        &mut self,
        index: u64,
        request: &InternalRaftRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Response> {
        if let Some(put) = &request.put {
            return self.put(put, group, kept).map(Response::Put);
        }
        if let Some(grant) = &request.lease_grant {
            return self.lease_grant(grant, group).map(Response::LeaseGrant);
        }
        if let Some(checkpoint) = &request.lease_checkpoint {
            return self
                .lease_checkpoint(checkpoint, group)
                .map(Response::LeaseCheckpoint);
        }
        if let Some(compaction) = &request.compaction {
            return self.compact(compaction.revision, group);
        }
        if let Some(alarm) = &request.alarm {
            group.status_changed = true;
            return Ok(Response::Alarm(AlarmResponse {
                header: kv::header(self.writer.head()),
                alarms: self.alarms.execute(alarm, self.writer.batch()),
            }));
        }
        if let Some(version) = &request.cluster_version_set {
            group.status_changed = true;
            self.versions
                .set_cluster(version.clone(), self.writer.batch());
            return Ok(Response::Done);
        }
        if let Some(downgrade) = &request.downgrade_info_set {
            group.status_changed = true;
            self.versions
                .set_downgrade(downgrade.clone(), self.writer.batch());
            return Ok(Response::Done);
        }
        if request.downgrade_version_test.is_some() {
            // etcd's tests put it into the log; it has no effect there either.
            return Ok(Response::Done);
        }
        if let Some(set) = &request.cluster_member_attr_set {
            group.status_changed = true;
            let attributes = set.member_attributes.clone().unwrap_or_default();
            self.members
                .set_attributes(MemberId(set.member_id), attributes, self.writer.batch());
            return Ok(Response::Done);
        }
        let mut effects = Effects {
            index,
            header: kv::header(self.writer.head()),
            batch: self.writer.batch(),
            events: &mut group.auth_events,
        };
        if let Some(result) = self.auth.apply(request, &mut effects) {
            return result.map_err(mvcc::Error::from);
        }
        // A newer leader's request: every member of this version refuses it equally.
        Err(Error::UnknownMethod.into())
    }

    /// Whether the user who proposed the request may do what it asks, by the users and roles of
    /// now: they may have changed since it was proposed. Once for a deletion in several batches.
    fn check_permission(&mut self, request: &InternalRaftRequest) -> mvcc::Result<()> {
        if !self.auth.view().is_enabled() || probe::injected(Defect::ApplyUnchecked) {
            return Ok(());
        }
        let auth = self.auth.view().clone();
        let access = Access::of(&auth, AuthIdentity::of(request.header.as_ref()));
        let mut pending = false;
        lease::each_named(request, &mut |lease| {
            pending |= self.writer.has_pending_attachments(lease);
        });
        if pending {
            self.commit()?;
        }
        access.request(request, &Attached(self.writer.engine().latest()))
    }

    /// The restrictions of the active alarms. etcd refuses more under CORRUPT than under NOSPACE,
    /// and under NOSPACE only transactions with a put in a branch.
    fn check_alarms(&self, request: &InternalRaftRequest) -> Result<(), Error> {
        let writes = request.put.is_some()
            || request.txn.is_some()
            || request.delete_range.is_some()
            || request.compaction.is_some()
            || request.lease_grant.is_some()
            || request.lease_revoke.is_some();
        if writes && self.alarms.has(AlarmType::Corrupt) {
            return Err(Error::Corrupt);
        }
        let grows = request.put.is_some()
            || request.lease_grant.is_some()
            || request.txn.as_ref().is_some_and(txn::has_put);
        if grows && self.alarms.has(AlarmType::Nospace) {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    fn put(
        &mut self,
        request: &crate::proto::etcdserverpb::PutRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<PutResponse> {
        let mut txn = self.writer.begin();
        kv::check_put(request, &self.leases, &|key| txn.get(key))?;
        let response = kv::put(&mut txn, request, kept)?;
        group.changes.extend(txn.finish().0);
        Ok(response)
    }

    fn txn(
        &mut self,
        request: &crate::proto::etcdserverpb::TxnRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Option<Response>> {
        let misses = probe::injected(Defect::PastReadMissesBatch);
        if self.writer.has_pending_keys() && txn::reads_past(request) && !misses {
            self.commit()?;
        }
        let txn = match txn::may_write_much(request) {
            true => {
                let applied = (self.applied_index, self.applied_term);
                self.writer.begin_in_parts(applied, self.slice_limit)
            }
            false => self.writer.begin(),
        };
        let written = txn::write(txn, request, &self.leases, kept)?;
        Ok(Self::txn_written(written, group, &mut self.parted))
    }

    /// Writes the next part of the transaction that is under way; its response behind the last.
    fn next_part(
        &mut self,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Option<Response>> {
        let Some(parted) = self.parted.take() else {
            return Ok(None);
        };
        let written = parted.proceed(&mut self.writer, kept)?;
        Ok(Self::txn_written(written, group, &mut self.parted))
    }

    fn txn_written(
        written: Written<'_>,
        group: &mut Group,
        parted: &mut Option<PartedTxn>,
    ) -> Option<Response> {
        match written {
            Written::All(response, txn) => {
                let (changes, sliced) = txn.finish();
                group.changes.extend(changes);
                group.sliced.extend(sliced);
                Some(Response::Txn(response))
            }
            Written::Part(part) => {
                *parted = Some(part);
                None
            }
        }
    }

    fn lease_grant(
        &mut self,
        request: &LeaseGrantRequest,
        group: &mut Group,
    ) -> mvcc::Result<LeaseGrantResponse> {
        let id = LeaseId(request.id);
        let lease = self.leases.grant(id, request.ttl, self.writer.batch())?;
        group.lease_events.push(LeaseEvent::Granted(id, lease));
        Ok(LeaseGrantResponse {
            header: kv::header(self.writer.head()),
            id: request.id,
            ttl: lease.ttl_s,
            error: String::new(),
        })
    }

    fn delete_range(
        &mut self,
        entry: &Entry,
        request: &DeleteRangeRequest,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Option<Response>> {
        let range = KeyRange::from_wire(&request.key, &request.range_end);
        let mut txn = self.writer.begin();
        let Some(found) = txn.find(&range, self.slice_limit)? else {
            let previous = Previous::new(request.prev_kv, kept);
            return Ok(self.begin_slices(entry, LeaseId::NONE, range, previous, (group, kept))?);
        };
        let response = kv::delete_found(&mut txn, request, &found, kept);
        group.changes.extend(txn.finish().0);
        Ok(Some(Response::DeleteRange(response)))
    }

    fn lease_revoke(
        &mut self,
        entry: &Entry,
        id: LeaseId,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> mvcc::Result<Option<Response>> {
        if !self.leases.contains(id) {
            return Err(Error::LeaseNotFound.into());
        }
        // Attachments of this group are not in the engine yet.
        if !probe::injected(Defect::RevokeMissesBatch) {
            self.commit()?;
        }
        let mut txn = self.writer.begin();
        let Some(found) = kv::find_attached(&txn, id, self.slice_limit)? else {
            let all = KeyRange::From(Bytes::new());
            let previous = Previous::new(false, kept);
            return Ok(self.begin_slices(entry, id, all, previous, (group, kept))?);
        };
        kv::delete_attached(&mut txn, &found);
        group.changes.extend(txn.finish().0);
        Ok(Some(self.lease_revoked(id, group)))
    }

    fn lease_revoked(&mut self, id: LeaseId, group: &mut Group) -> Response {
        self.leases.remove(id, self.writer.batch());
        group.lease_events.push(LeaseEvent::Revoked(id));
        Response::LeaseRevoke(LeaseRevokeResponse {
            header: kv::header(self.writer.head()),
        })
    }

    /// Begins to delete in several batches; see `sliced`.
    fn begin_slices(
        &mut self,
        entry: &Entry,
        lease: LeaseId,
        rest: KeyRange,
        previous: Previous,
        (group, kept): (&mut Group, &mut AnswerLimit),
    ) -> storage::Result<Option<Response>> {
        // What the group holds so far belongs to the entries before this one.
        self.commit()?;
        debug_assert_eq!(
            entry.index,
            self.applied_index + 1,
            "the record names no index"
        );
        let record = UnfinishedDelete {
            term: entry.term,
            revision: self.writer.head() + 1,
            deleted: 0,
            lease,
            rest,
        };
        self.slices = Some(Slices::begin(record, previous));
        self.next_slice(group, kept)
    }

    /// Writes the next batch of the deletion that is under way; its response behind the last.
    fn next_slice(
        &mut self,
        group: &mut Group,
        kept: &mut AnswerLimit,
    ) -> storage::Result<Option<Response>> {
        let Some(mut slices) = self.slices.take() else {
            return Ok(None);
        };
        let applied = (self.applied_index, self.applied_term);
        if slices.step(&mut self.writer, applied, self.slice_limit)? {
            self.slices = Some(slices);
            return Ok(None);
        }
        let (lease, deleted) = (slices.record().lease, slices.deleted());
        let (sliced, prev_kvs) = slices.finish(&mut self.writer, kept);
        group.sliced.extend(sliced);
        Ok(Some(match lease.is_some() {
            true => self.lease_revoked(lease, group),
            false => Response::DeleteRange(DeleteRangeResponse {
                header: kv::header(self.writer.head()),
                deleted,
                prev_kvs,
            }),
        }))
    }

    fn lease_checkpoint(
        &mut self,
        request: &LeaseCheckpointRequest,
        group: &mut Group,
    ) -> mvcc::Result<LeaseCheckpointResponse> {
        for checkpoint in &request.checkpoints {
            let id = LeaseId(checkpoint.id);
            // A lease that was revoked in the meantime needs no checkpoint.
            let stored = self
                .leases
                .checkpoint(id, checkpoint.remaining_ttl, self.writer.batch());
            if let Ok(lease) = stored {
                group.lease_events.push(LeaseEvent::Checkpointed(id, lease));
            }
        }
        Ok(LeaseCheckpointResponse {
            header: kv::header(self.writer.head()),
        })
    }

    fn compact(&mut self, revision: i64, group: &mut Group) -> mvcc::Result<Response> {
        let unordered = probe::injected(Defect::CompactionUnordered);
        if revision <= self.writer.compacted() && !unordered {
            return Err(Error::Compacted.into());
        }
        if revision > self.writer.head() {
            return Err(Error::FutureRevision.into());
        }
        self.writer.set_compacted(revision);
        group.compacted = true;
        Ok(Response::Compaction(CompactionResponse {
            header: kv::header(self.writer.head()),
        }))
    }

    /// The format that programs have to know to read the state rightly.
    pub fn format(&self) -> u64 {
        match self.auth.view().was_changed() {
            true => schema::FORMAT_WITH_USERS,
            false => schema::FIRST_FORMAT,
        }
    }

    /// The same of a state that is not loaded.
    pub fn format_of(read: &dyn Read) -> storage::Result<u64> {
        // Moved by the first change, and never back.
        let revision = read.get(Family::Meta, meta::AUTH_REVISION)?;
        Ok(match revision {
            Some(_) => schema::FORMAT_WITH_USERS,
            None => schema::FIRST_FORMAT,
        })
    }

    /// False where a state holds a part of an entry, which opening it changes.
    pub fn is_between_entries(read: &dyn Read) -> storage::Result<bool> {
        Ok(sliced::applied(read)?.unfinished.is_none())
    }

    /// Index and term of the last entry in a state, or of the entry that it is finished to when it
    /// is opened.
    pub fn applied(read: &dyn Read) -> storage::Result<(u64, u64)> {
        Ok(sliced::applied(read)?.entry())
    }

    /// The applied index after a crash and the next start.
    pub fn durable_applied_index(engine: &dyn Engine) -> storage::Result<u64> {
        let value = engine.persisted(meta::APPLIED)?;
        let applied = value
            .map(|value| schema::Applied::decode(&value))
            .transpose()?;
        Ok(applied.unwrap_or_default().entry().0)
    }
}
