//! Which leases exist, their TTLs, and the keys attached to them.
//!
//! Expiry is not decided here: the leader checks the clock and proposes a revocation.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::auth::verdict::AttachedKeys;
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::write::Writer;
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::{InternalRaftRequest, TxnRequest, request_op::Request};
use crate::proto::nested_len;
use crate::storage::schema::{self, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::LeaseId;

/// The longest TTL that can be granted, in seconds; etcd's limit.
pub const MAX_TTL_S: i64 = 9_000_000_000;

/// A lease that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The granted TTL, in seconds.
    pub ttl_s: i64,
    /// The remaining TTL at the last checkpoint, in seconds; 0 if there is none.
    pub remaining_ttl_s: i64,
}

impl Lease {
    /// The TTL with which a new leader restarts it, in seconds.
    pub fn restart_ttl_s(&self) -> i64 {
        if self.remaining_ttl_s > 0 {
            self.remaining_ttl_s
        } else {
            self.ttl_s
        }
    }
}

/// A change of a lease, for the lessor's deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    Granted(LeaseId, Lease),
    Revoked(LeaseId),
    Checkpointed(LeaseId, Lease),
}

/// All leases.
#[derive(Default)]
pub struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
}

impl Leases {
    pub fn load(read: &dyn Read) -> storage::Result<Self> {
        let mut leases = BTreeMap::new();
        let upper = schema::prefix_end(meta::LEASES);
        let mut cursor = read.cursor(Family::Meta, meta::LEASES, upper.as_deref())?;
        while cursor.next()? {
            let key = cursor.key();
            let id = key.strip_prefix(meta::LEASES).unwrap_or_default();
            let (id, lease) = Self::decode(id, cursor.value())?;
            leases.insert(id, lease);
        }
        Ok(Self { leases })
    }

    /// A lease as it is written: the rest of its key, and the value.
    pub fn decode(id: &[u8], value: &[u8]) -> storage::Result<(LeaseId, Lease)> {
        let [id] = schema::decode_numbers(id, meta::LEASES)?;
        let [ttl, remaining] = schema::decode_numbers(value, meta::LEASES)?;
        let lease = Lease {
            ttl_s: ttl as i64,
            remaining_ttl_s: remaining as i64,
        };
        Ok((LeaseId(id as i64), lease))
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, Lease)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, *lease))
    }

    pub fn grant(&mut self, id: LeaseId, ttl_s: i64, batch: &mut Batch) -> Result<Lease, Error> {
        if !id.is_some() {
            return Err(Error::LeaseNotFound);
        }
        if ttl_s > MAX_TTL_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.contains(id) {
            return Err(Error::LeaseExists);
        }
        let lease = Lease {
            ttl_s,
            remaining_ttl_s: 0,
        };
        self.store(id, lease, batch);
        Ok(lease)
    }

    pub fn checkpoint(
        &mut self,
        id: LeaseId,
        remaining_ttl_s: i64,
        batch: &mut Batch,
    ) -> Result<Lease, Error> {
        let lease = self.leases.get(&id).ok_or(Error::LeaseNotFound)?;
        let lease = Lease {
            remaining_ttl_s,
            ..*lease
        };
        self.store(id, lease, batch);
        Ok(lease)
    }

    /// Removes the lease; the caller deletes its keys.
    pub fn remove(&mut self, id: LeaseId, batch: &mut Batch) {
        self.leases.remove(&id);
        batch.delete(Family::Meta, &lease_meta_key(id));
    }

    fn store(&mut self, id: LeaseId, lease: Lease, batch: &mut Batch) {
        self.leases.insert(id, lease);
        let value = schema::encode_numbers(&[lease.ttl_s as u64, lease.remaining_ttl_s as u64]);
        batch.put(Family::Meta, &lease_meta_key(id), &value);
    }
}

fn lease_meta_key(id: LeaseId) -> Vec<u8> {
    schema::meta_key(meta::LEASES, &[id.0 as u64])
}

/// The keys attached to a lease, in order.
pub fn attached_keys(read: &dyn Read, id: LeaseId) -> storage::Result<Vec<Bytes>> {
    Ok(attached_up_to(read, id, usize::MAX)?.unwrap_or_default())
}

/// The same; `None` where they are more than `most`.
pub fn attached_up_to(
    read: &dyn Read,
    id: LeaseId,
    most: usize,
) -> storage::Result<Option<Vec<Bytes>>> {
    let (mut keys, mut too_many) = (Vec::new(), false);
    each_key(read, Some(id), &mut |key| {
        too_many = keys.len() == most;
        if !too_many {
            keys.push(Bytes::copy_from_slice(key));
        }
        !too_many
    })?;
    Ok((!too_many).then_some(keys))
}

/// What their names take in an answer.
pub fn attached_keys_bytes(read: &dyn Read, id: LeaseId) -> storage::Result<usize> {
    let mut bytes = 0;
    each_key(read, Some(id), &mut |key| {
        bytes += nested_len(key.len());
        true
    })?;
    Ok(bytes)
}

/// Calls `visit` for the keys attached to a lease, or to any, in order, until it says no.
fn each_key(
    read: &dyn Read,
    id: Option<LeaseId>,
    visit: &mut dyn FnMut(&[u8]) -> bool,
) -> storage::Result<()> {
    let (lower, upper) = id.map_or_else(Default::default, schema::lease_bounds);
    let mut cursor = read.cursor(Family::LeaseKeys, &lower, upper.as_deref())?;
    while cursor.next()? && visit(schema::decode_lease_key(cursor.key())) {}
    Ok(())
}

/// The attached keys in a state, for verdicts.
pub struct Attached<'a>(pub &'a dyn Read);

impl Attached<'_> {
    fn check(
        &self,
        lease: Option<LeaseId>,
        check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()> {
        let mut verdict = Ok(());
        each_key(self.0, lease, &mut |key| {
            verdict = check(key);
            verdict.is_ok()
        })?;
        Ok(verdict?)
    }
}

impl AttachedKeys for Attached<'_> {
    fn check_all(
        &self,
        lease: LeaseId,
        check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()> {
        self.check(Some(lease), check)
    }

    fn check_every_lease(
        &self,
        check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()> {
        self.check(None, check)
    }
}

/// Moves a key from one lease to another; either may be none.
pub fn move_key(from: LeaseId, to: LeaseId, key: &[u8], writer: &mut Writer) {
    if from == to {
        return;
    }
    for lease in [from, to].into_iter().filter(|lease| lease.is_some()) {
        writer.note_attachment(lease);
    }
    let batch = writer.batch();
    let stays = to.is_some() && probe::injected(Defect::KeyStaysAttached);
    if from.is_some() && !stays {
        batch.delete(Family::LeaseKeys, &schema::lease_key(from, key));
    }
    if to.is_some() {
        batch.put(Family::LeaseKeys, &schema::lease_key(to, key), &[]);
    }
}

/// Calls `named` for each lease whose keys decide whether a request is permitted.
pub fn each_named(request: &InternalRaftRequest, named: &mut dyn FnMut(LeaseId)) {
    if let Some(put) = &request.put {
        named(LeaseId(put.lease));
    }
    if let Some(revoke) = &request.lease_revoke {
        named(LeaseId(revoke.id));
    }
    if let Some(txn) = &request.txn {
        each_put_to(txn, named);
    }
}

fn each_put_to(txn: &TxnRequest, named: &mut dyn FnMut(LeaseId)) {
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Request::RequestPut(put)) => named(LeaseId(put.lease)),
            Some(Request::RequestTxn(nested)) => each_put_to(nested, named),
            _ => {}
        }
    }
}
