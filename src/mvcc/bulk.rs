//! A history that is known already, written key by key: what a restored backup brings.
//!
//! The order is that of keys, and of revisions within a key; every version meets the one that it
//! superseded, and a key's last one is its current one.

use crate::storage::schema::{self, ChangeKind, RevisionRecord, Version};
use crate::storage::{Batch, Family};
use crate::types::{LeaseId, Revision};

/// The key whose versions are being written.
#[derive(Default)]
pub struct Bulk {
    key: Vec<u8>,
    live: Option<Version>,
    keys: u64,
}

impl Bulk {
    /// Adds a change of a key to `batch`: a version, or `None` for its deletion. `has_lease` says
    /// whether a lease exists that a key can be attached to.
    pub fn change(
        &mut self,
        key: &[u8],
        revision: Revision,
        version: Option<Version>,
        has_lease: &dyn Fn(LeaseId) -> bool,
        batch: &mut Batch,
    ) {
        if key != self.key {
            self.end_key(has_lease, batch);
            self.key = key.to_vec();
        }
        let kind = match version {
            Some(_) => ChangeKind::Put,
            None => ChangeKind::Delete,
        };
        let superseded = std::mem::replace(&mut self.live, version);
        if let Some(old) = &superseded {
            let undo = schema::undo_key(key, revision);
            batch.put(Family::Undo, &undo, old.record());
        }
        let head = RevisionRecord::encode_head(kind, superseded.map(|old| old.mod_revision));
        let at = schema::revision_key(revision);
        batch.put_parts(Family::Revisions, &[&at], &[&head, key]);
    }

    /// Ends the last key; returns how many keys there are.
    pub fn finish(mut self, has_lease: &dyn Fn(LeaseId) -> bool, batch: &mut Batch) -> u64 {
        self.end_key(has_lease, batch);
        self.keys
    }

    fn end_key(&mut self, has_lease: &dyn Fn(LeaseId) -> bool, batch: &mut Batch) {
        let Some(version) = self.live.take() else {
            return;
        };
        self.keys += 1;
        batch.put(Family::Current, &self.key, version.record());
        if version.lease != LeaseId::NONE && has_lease(version.lease) {
            let attached = schema::lease_key(version.lease, &self.key);
            batch.put(Family::LeaseKeys, &attached, &[]);
        }
    }
}
