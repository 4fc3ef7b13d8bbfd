//! A stream of a range whose order is only implied by its target, as etcd gives it: each chunk is
//! sorted on its own, and the next begins behind the key that is its last. All others are pages of
//! one answer (`answers`).

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use super::header;
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::read::{RangeRead, SortOrder, SortTarget};
use crate::proto::EncodedKvs;
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::state::kv;

/// Pairs in the first chunk of a stream; etcd's figure.
const FIRST_CHUNK_KEYS: i64 = 10;
/// A chunk that would be larger has fewer pairs.
const MAX_CHUNK_BYTES: usize = 4 << 20;
/// Chunks of a stream that wait for the network.
pub const WAITING_CHUNKS: usize = 1;

/// Reads a chunk when the network has room for it, so that a client that does not read holds
/// neither a thread nor more than one chunk.
pub async fn send_chunks(
    mut chunks: Chunks,
    sender: mpsc::Sender<Result<RangeStreamResponse, Status>>,
    large_reads: Arc<Semaphore>,
) {
    loop {
        let Ok(place) = sender.reserve().await else {
            return;
        };
        let permit = large_reads.clone().acquire_owned().await;
        let handle = chunks.handle.clone();
        let read = handle.blocking(move || {
            let _permit = permit;
            let chunk = chunks.next_chunk();
            (chunks, chunk)
        });
        let Ok((rest, chunk)) = read.await else {
            return;
        };
        chunks = rest;
        match chunk {
            Ok(Some(range_response)) => place.send(Ok(RangeStreamResponse {
                range_response: Some(range_response),
            })),
            Ok(None) => return,
            Err(error) => {
                place.send(Err(chunks.handle.refusal(error).into()));
                return;
            }
        }
    }
}

/// True for those that this is for.
pub fn is_sorted_in_chunks(read: &RangeRead) -> bool {
    read.sort_order == SortOrder::None && read.sort_target != SortTarget::Key && !read.count_only
}

/// A range read in chunks from one view; their size adapts to what the pairs take.
pub struct Chunks {
    handle: Handle,
    view: Arc<ReadView>,
    read: RangeRead,
    target_bytes: usize,
    /// How many pairs at most.
    total: i64,
    sent: i64,
    done: bool,
}

impl Chunks {
    pub fn new(
        handle: Handle,
        view: Arc<ReadView>,
        request: &RangeRequest,
        target_bytes: usize,
    ) -> Result<Self, Error> {
        let total = match request.limit {
            limit if limit > 0 => limit,
            _ => i64::MAX,
        };
        let mut read = kv::range_read(request)?;
        read.limit = FIRST_CHUNK_KEYS.min(total);
        Ok(Self {
            handle,
            view,
            read,
            target_bytes,
            total,
            sent: 0,
            done: false,
        })
    }

    /// The next chunk; `None` behind the last.
    fn next_chunk(&mut self) -> mvcc::Result<Option<RangeResponse>> {
        if self.done {
            return Ok(None);
        }
        let view = self.view.clone();
        let pinned = view.pinned();
        let (kvs, more) = loop {
            let limit = self.read.limit;
            let mut room = |bytes| limit == 1 || bytes <= MAX_CHUNK_BYTES;
            let measured = pinned.measure(&self.read, &mut room)?;
            match measured.kvs {
                Some(kvs) => break (kvs, measured.more),
                None => self.read.limit = (limit / 2).max(1),
            }
        };
        self.sent += kvs.len() as i64;
        let last = kvs.decoded().unwrap_or_default().pop();
        let rest = last
            .filter(|_| more)
            .map(|last| self.read.range.behind(&last.key));
        if !more || self.sent == self.total {
            let mut count = self.sent;
            if let Some(rest) = rest {
                let remaining = RangeRead {
                    count_only: true,
                    revision: self.read.revision,
                    ..RangeRead::all(rest)
                };
                count += pinned.measure(&remaining, &mut |_| true)?.count;
            }
            return Ok(Some(self.last(kvs, count, more)));
        }
        let bytes = kvs.size_bytes();
        if let Some(rest) = rest {
            self.read.range = rest;
        }
        self.read.limit =
            adapted(self.read.limit, bytes, self.target_bytes).min(self.total - self.sent);
        Ok(Some(RangeResponse {
            kvs,
            ..Default::default()
        }))
    }

    fn last(&mut self, kvs: EncodedKvs, count: i64, more: bool) -> RangeResponse {
        self.done = true;
        RangeResponse {
            header: Some(header::at(&self.handle, self.view.head)),
            kvs,
            more,
            count,
        }
    }
}

/// Doubles or halves a chunk that was less than half or more than twice as large as it should.
fn adapted(keys: i64, bytes: usize, target_bytes: usize) -> i64 {
    let keys = if bytes < target_bytes / 2 {
        keys.saturating_mul(2)
    } else if bytes > target_bytes * 2 {
        keys / 2
    } else {
        keys
    };
    keys.max(1)
}
