//! A range in pieces: each is read from one view when the network has room for it.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use super::header;
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::read::{RangeRead, Ranged};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::state::kv;

/// Pairs in the first chunk of a stream; etcd's figure.
const FIRST_CHUNK_KEYS: i64 = 10;
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
        if !read.count_only {
            read.total_count = false;
            read.limit = FIRST_CHUNK_KEYS.min(total);
        }
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
        let snapshot = view.snapshot();
        let ranged = snapshot.range(&self.read)?;
        if self.read.count_only {
            let count = ranged.count;
            return Ok(Some(self.last(Ranged::default(), count, false)));
        }
        self.sent += ranged.kvs.len() as i64;
        let more = ranged.more;
        let rest = ranged
            .last_key
            .as_ref()
            .filter(|_| more)
            .map(|key| self.read.range.behind(key));
        if !more || self.sent == self.total {
            let mut count = self.sent;
            if let Some(rest) = rest {
                let remaining = RangeRead {
                    count_only: true,
                    revision: self.read.revision,
                    ..RangeRead::all(rest)
                };
                count += snapshot.range(&remaining)?.count;
            }
            return Ok(Some(self.last(ranged, count, more)));
        }
        let bytes = ranged.kvs.size_bytes();
        if let Some(rest) = rest {
            self.read.range = rest;
        }
        self.read.limit =
            adapted(self.read.limit, bytes, self.target_bytes).min(self.total - self.sent);
        Ok(Some(RangeResponse {
            kvs: ranged.kvs,
            ..Default::default()
        }))
    }

    fn last(&mut self, ranged: Ranged, count: i64, more: bool) -> RangeResponse {
        self.done = true;
        RangeResponse {
            header: Some(header::at(&self.handle, self.view.head)),
            kvs: ranged.kvs,
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
