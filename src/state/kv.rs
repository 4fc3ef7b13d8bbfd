//! Put, DeleteRange and Range as steps of one transaction; a plain request is a transaction of
//! one step.

use bytes::Bytes;

use super::answer::AnswerLimit;
use super::lease::{self, Leases};
use super::sliced::Previous;
use crate::error::Error;
use crate::mvcc::Result;
use crate::mvcc::range::Measured;
use crate::mvcc::read::{PinnedView, RangeRead, SortOrder, SortTarget};
use crate::mvcc::write::{SliceLimit, Txn};
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, range_request,
};
use crate::storage::schema::Version;
use crate::types::{KeyRange, LeaseId};

/// A header with the revision only; the API adds the member.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// What a range request asks of the keyspace.
pub fn range_read(request: &RangeRequest) -> std::result::Result<RangeRead, Error> {
    use range_request::{SortOrder as WireOrder, SortTarget as WireTarget};
    let sort_order = match WireOrder::try_from(request.sort_order) {
        Ok(WireOrder::None) => SortOrder::None,
        Ok(WireOrder::Ascend) => SortOrder::Ascend,
        Ok(WireOrder::Descend) => SortOrder::Descend,
        Err(_) => return Err(Error::InvalidSortOption),
    };
    let sort_target = match WireTarget::try_from(request.sort_target) {
        Ok(WireTarget::Key) => SortTarget::Key,
        Ok(WireTarget::Version) => SortTarget::Version,
        Ok(WireTarget::Create) => SortTarget::Create,
        Ok(WireTarget::Mod) => SortTarget::Mod,
        Ok(WireTarget::Value) => SortTarget::Value,
        Err(_) => return Err(Error::InvalidSortOption),
    };
    Ok(RangeRead {
        range: KeyRange::from_wire(&request.key, &request.range_end),
        revision: request.revision,
        limit: request.limit,
        sort_target,
        sort_order,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

/// The response message, without pairs that are not held; `revision` is the newest one of the state
/// that was read.
pub fn range_response(measured: Measured, revision: i64) -> RangeResponse {
    RangeResponse {
        header: header(revision),
        kvs: measured.kvs.unwrap_or_default(),
        more: measured.more,
        count: measured.count,
    }
}

/// Reads within a writing transaction, including its own changes, what `kept` has room for.
pub fn range(
    txn: &Txn<'_>,
    request: &RangeRequest,
    kept: &mut AnswerLimit,
) -> Result<RangeResponse> {
    if !kept.keeps_more() {
        return Ok(RangeResponse::default());
    }
    let most_bytes = kept.left_bytes();
    let read = range_read(request)?;
    let (head, compacted) = (txn.revision(), txn.compacted());
    let pending = txn.pending();
    let past = read.revision > 0 && read.revision < head;
    let pinned = PinnedView {
        read: if past { txn.base() } else { &pending },
        head,
        compacted,
        counts: None,
    };
    let measured = pinned.measure(&read, &mut |bytes| bytes <= most_bytes)?;
    kept.takes(measured.size_bytes as usize);
    if measured.kvs.is_none() {
        // What holds them takes a little more than they do.
        kept.end();
    }
    Ok(range_response(measured, head))
}

/// Checks a put before anything is written.
pub fn check_put(
    request: &PutRequest,
    leases: &Leases,
    get: &dyn Fn(&[u8]) -> Result<Option<Version>>,
) -> Result<()> {
    let lease = LeaseId(request.lease);
    if lease.is_some() && !leases.contains(lease) {
        return Err(Error::LeaseNotFound.into());
    }
    if (request.ignore_value || request.ignore_lease) && get(&request.key)?.is_none() {
        return Err(Error::KeyNotFound.into());
    }
    Ok(())
}

/// Writes after the checks. Never fails, so that no transaction is left half done.
pub fn put(txn: &mut Txn<'_>, request: &PutRequest, kept: &mut AnswerLimit) -> Result<PutResponse> {
    let stays = if request.ignore_value || request.ignore_lease {
        txn.get(&request.key)?
    } else {
        None
    };
    let value = match &stays {
        Some(old) if request.ignore_value => old.value(),
        _ => request.value.clone(),
    };
    let lease = match &stays {
        Some(old) if request.ignore_lease => old.lease,
        _ => LeaseId(request.lease),
    };
    let previous = txn.put(&request.key, &value, lease)?;
    let before = previous.as_ref().map_or(LeaseId::NONE, |old| old.lease);
    lease::move_key(before, lease, &request.key, txn.writer());
    Ok(PutResponse {
        header: header(txn.revision()),
        prev_kv: previous
            .filter(|old| request.prev_kv && kept.takes(old.record().len()))
            .map(|old| old.to_kv(&request.key)),
    })
}

/// A deletion within a transaction, piece by piece.
pub struct DeleteSteps {
    rest: KeyRange,
    deleted: i64,
    previous: Previous,
}

impl DeleteSteps {
    pub fn begin(request: &DeleteRangeRequest, kept: &AnswerLimit) -> Self {
        Self {
            rest: KeyRange::from_wire(&request.key, &request.range_end),
            deleted: 0,
            previous: Previous::new(request.prev_kv, kept),
        }
    }

    /// Deletes the next piece; false once nothing is left.
    pub fn step(&mut self, txn: &mut Txn<'_>) -> Result<bool> {
        let (deleted, previous) = (&mut self.deleted, &mut self.previous);
        txn.delete_piece(&mut self.rest, &mut |writer, found| {
            *deleted += found.len() as i64;
            for (key, old) in found {
                lease::move_key(old.lease, LeaseId::NONE, key, writer);
                previous.add(key, old.record())?;
            }
            Ok(())
        })
    }

    pub fn finish(mut self, txn: &Txn<'_>, kept: &mut AnswerLimit) -> DeleteRangeResponse {
        DeleteRangeResponse {
            header: header(txn.revision()),
            deleted: self.deleted,
            prev_kvs: self.previous.take(kept),
        }
    }
}

/// Deletes what was found of the request's range.
pub fn delete_found(
    txn: &mut Txn<'_>,
    request: &DeleteRangeRequest,
    found: &[(Bytes, Version)],
    kept: &mut AnswerLimit,
) -> DeleteRangeResponse {
    delete_attached(txn, found);
    let size = |(key, old): &(Bytes, Version)| key.len() + old.record().len();
    let prev_kvs = if request.prev_kv && kept.takes(found.iter().map(size).sum()) {
        found.iter().map(|(key, old)| old.to_kv(key)).collect()
    } else {
        Vec::new()
    };
    DeleteRangeResponse {
        header: header(txn.revision()),
        deleted: found.len() as i64,
        prev_kvs,
    }
}

/// The keys of a lease, all written before this transaction; `None` where they are more than
/// `limit`.
pub fn find_attached(
    txn: &Txn<'_>,
    id: LeaseId,
    limit: SliceLimit,
) -> Result<Option<Vec<(Bytes, Version)>>> {
    let Some(keys) = lease::attached_up_to(txn.base(), id, limit.keys)? else {
        return Ok(None);
    };
    let (mut found, mut bytes) = (Vec::with_capacity(keys.len()), 0);
    for key in keys {
        if let Some(version) = txn.get(&key)? {
            bytes += key.len() + version.record().len();
            found.push((key, version));
        }
        if limit.is_exceeded_by(found.len(), bytes) {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// Deletes what was found, all in the transaction's one revision.
pub fn delete_attached(txn: &mut Txn<'_>, found: &[(Bytes, Version)]) {
    txn.delete(found);
    for (key, old) in found {
        lease::move_key(old.lease, LeaseId::NONE, key, txn.writer());
    }
}
