//! A stream of a range whose order is only implied by its target, as etcd gives it: each chunk is
//! sorted on its own, and the next begins behind the key that is its last. All others are pages of
//! one answer (`answers`).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tracing::Span;

use super::header;
use super::sliced::{
    self, Chunk, Messages, Reader, Reads, Rest, SMALL_BYTES, STREAMED_RANGE_TAG, begin_message,
};
use crate::budget::{Room, Share};
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::pages::Pages;
use crate::mvcc::read::{PinnedView, RangeRead, SortOrder, SortTarget};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proto::{EncodedKvs, begin_nested, nested_len};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::service::rpcs::{self, Costly};
use crate::state::kv;
use crate::types::KeyRange;

/// Of reads of a chunk.
const TURNS: Costly = rpcs::turns_of(rpcs::KV, "RangeStream");
/// Pairs in the first chunk of a stream; etcd's figure.
const FIRST_CHUNK_KEYS: i64 = 10;
/// A chunk that would be larger has fewer pairs.
const MAX_CHUNK_BYTES: usize = 4 << 20;

type Read = (Chunks, mvcc::Result<Option<NextChunk>>);
type Reading = Pin<Box<dyn Future<Output = Result<Read, Status>> + Send>>;

/// What was read of the next chunk.
enum NextChunk {
    /// Its message.
    Whole(Bytes),
    /// What it says beside its one pair, and how that is read.
    Paged(RangeResponse, Box<Rest>),
}

/// The pairs of a chunk.
enum Pairs {
    Held(EncodedKvs),
    /// The one for which there is no room.
    Rest(Box<Rest>),
}

/// Reads a chunk when the network asks for one, so that a client that does not read holds neither
/// a thread nor more than one chunk, and not even that where there is no room for it.
pub struct ChunkReader {
    reads: Reads,
    /// None while a chunk is read, and after a failure.
    chunks: Option<Chunks>,
    reading: Option<Reading>,
    /// Of the call in its trace; it ends with the stream.
    _span: Span,
}

impl ChunkReader {
    pub fn new(reads: Reads, chunks: Chunks, span: Span) -> Self {
        Self {
            reads,
            chunks: Some(chunks),
            reading: None,
            _span: span,
        }
    }
}

impl sliced::Chunks for ChunkReader {
    /// The next message; none behind the last.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Status>>> {
        if self.reading.is_none() {
            let Some(chunks) = self.chunks.take() else {
                return Poll::Ready(None);
            };
            self.reading = Some(Box::pin(read_chunk(self.reads.clone(), chunks)));
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(context));
        self.reading = None;
        Poll::Ready(match read {
            Ok((chunks, Ok(chunk))) => {
                self.chunks = chunk.is_some().then_some(chunks);
                let reads = &self.reads;
                chunk.map(|chunk| {
                    Ok(match chunk {
                        NextChunk::Whole(message) => Chunk::Whole(message),
                        NextChunk::Paged(around, rest) => {
                            let reader = Reader::new(reads.clone(), *rest);
                            Chunk::Paged(Box::new(Messages::new(reader, around)))
                        }
                    })
                })
            }
            Ok((_, Err(error))) => Some(Err(self.reads.handle.refusal(error).into())),
            Err(status) => Some(Err(status)),
        })
    }
}

async fn read_chunk(reads: Reads, mut chunks: Chunks) -> Result<Read, Status> {
    let turns = reads.handle.turns(TURNS).clone();
    let turn = turns.acquire_owned().await;
    let read = reads.handle.blocking(move || {
        let _turn = turn;
        let chunk = chunks.next_chunk(&reads.share);
        (chunks, chunk)
    });
    read.await.map_err(|_| Status::from(Error::Stopped))
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

    /// The next chunk, whose message is counted in `share`; `None` behind the last. Where there is
    /// no room for a chunk, it is a smaller one.
    fn next_chunk(&mut self, share: &Arc<Share>) -> mvcc::Result<Option<NextChunk>> {
        let mut room = Room::new(share, SMALL_BYTES, MAX_CHUNK_BYTES);
        let Some((response, rest)) = self.next_response(&mut room)? else {
            return Ok(None);
        };
        if let Some(rest) = rest {
            return Ok(Some(NextChunk::Paged(response, rest)));
        }
        let range_bytes = response.encoded_len();
        let mut message = Vec::with_capacity(range_bytes + 32);
        begin_message(nested_len(range_bytes), &mut message);
        begin_nested(STREAMED_RANGE_TAG, range_bytes, &mut message);
        response.encode_raw(&mut message);
        let message = Bytes::from(message);
        Ok(Some(NextChunk::Whole(match room.into_held() {
            Some(held) => held.over(message),
            None => message,
        })))
    }

    /// The pairs of the next chunk, how many they are, and what is behind them if anything is.
    fn next_pairs(
        &mut self,
        pinned: &PinnedView<'_>,
        room: &mut Room<'_>,
    ) -> mvcc::Result<(Pairs, usize, Option<KeyRange>)> {
        loop {
            let measured = pinned.measure(&self.read, &mut |bytes| room.holds(bytes))?;
            let behind = |keys: &EncodedKvs| {
                let last = keys.decoded().unwrap_or_default().pop();
                let last = last.filter(|_| measured.more);
                last.map(|last| self.read.range.behind(&last.key))
            };
            if let Some(kvs) = measured.kvs {
                let (pairs, rest) = (kvs.len(), behind(&kvs));
                return Ok((Pairs::Held(kvs), pairs, rest));
            }
            if self.read.limit > 1 {
                self.read.limit /= 2;
                continue;
            }
            let key = RangeRead {
                keys_only: true,
                ..self.read.clone()
            };
            let key = pinned.measure(&key, &mut |_| true)?.kvs;
            let rest = Rest {
                view: self.view.clone(),
                pages: Pages::new(pinned, self.read.clone(), measured.pairs)?,
                pairs: measured.pairs,
                size_bytes: measured.size_bytes as usize,
            };
            let behind = behind(&key.unwrap_or_default());
            return Ok((Pairs::Rest(Box::new(rest)), measured.pairs, behind));
        }
    }

    fn next_response(
        &mut self,
        room: &mut Room<'_>,
    ) -> mvcc::Result<Option<(RangeResponse, Option<Box<Rest>>)>> {
        if self.done {
            return Ok(None);
        }
        let view = self.view.clone();
        let pinned = view.pinned();
        let (pairs, count, behind) = match self.sent {
            0 => self.next_pairs(&pinned, room)?,
            // The walk for a chunk may be short, and all of them are the whole range.
            _ => pinned.once(|pinned| self.next_pairs(pinned, room))?,
        };
        let (kvs, bytes, rest) = match pairs {
            Pairs::Held(kvs) => {
                let bytes = kvs.size_bytes();
                (kvs, bytes, None)
            }
            Pairs::Rest(rest) => (EncodedKvs::default(), rest.size_bytes, Some(rest)),
        };
        self.sent += count as i64;
        let more = behind.is_some();
        if !more || self.sent == self.total {
            let mut count = self.sent;
            if let Some(behind) = behind {
                let remaining = RangeRead {
                    count_only: true,
                    revision: self.read.revision,
                    ..RangeRead::all(behind)
                };
                count += pinned.measure(&remaining, &mut |_| true)?.count;
            }
            return Ok(Some((self.last(kvs, count, more), rest)));
        }
        if let Some(behind) = behind {
            self.read.range = behind;
        }
        self.read.limit =
            adapted(self.read.limit, bytes, self.target_bytes).min(self.total - self.sent);
        let response = RangeResponse {
            kvs,
            ..Default::default()
        };
        Ok(Some((response, rest)))
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
