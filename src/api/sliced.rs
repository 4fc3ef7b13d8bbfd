//! A message that is sent in slices: what of it is in memory as the network takes it, what is
//! not is read page by page, each when the network asks for more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use tonic::Status;

use super::body::trailers;
use crate::budget::{Held, Room, Share};
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::pages::{Pages, Rooms};
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::{begin_nested, nested_len};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::service::rpcs::{self, Costly};

/// Of reads of a page.
const TURNS: Costly = rpcs::turns_of(rpcs::KV, "Range");
/// Larger answers are counted and sliced: no call costs less in any case.
pub const SMALL_BYTES: usize = 4 << 10;
/// What the network is handed at once of what is in memory, and a page where memory is free. Every
/// time the network asks for more costs two tasks a wake-up, and a page a walk of its own.
const SLICE_BYTES: usize = 256 << 10;
/// A page where less is free.
const SMALL_PAGE_BYTES: usize = 32 << 10;
/// A page where nothing is: no more than its call costs.
const LEAST_PAGE_BYTES: usize = 4 << 10;

/// Larger pairs are not held as a whole, even where there is room.
const MAX_PAIR_BYTES: usize = 2 << 20;
/// Of a sorted range, from page to page.
const MAX_ROWS_BYTES: usize = 4 << 20;

/// Where pages are read and counted; cheap to clone.
#[derive(Clone)]
pub struct Reads {
    pub handle: Handle,
    pub share: Arc<Share>,
}

/// A part of a message.
pub enum Piece {
    Bytes(Bytes),
    Pages(Box<Reader>),
    /// These are of many messages.
    Messages(Box<Messages>),
    Chunks(Box<dyn Chunks>),
}

/// A message of a stream.
pub enum Chunk {
    Whole(Bytes),
    /// A pair for which there is no room.
    Paged(Box<Messages>),
}

/// Messages, each made when the network asks for it.
pub trait Chunks: Send {
    /// The next one; none behind the last.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Status>>>;
}

/// `RangeStreamResponse.range_response`
pub const STREAMED_RANGE_TAG: u32 = 1;

/// A flag and the length stand in front of every message of gRPC.
pub fn begin_message(size_bytes: usize, out: &mut Vec<u8>) {
    out.put_u8(0);
    out.put_u32(size_bytes as u32);
}

/// One message in slices, then the trailers, which say why where a piece could not be read: an
/// error of the body would be a reset, which tells a client nothing.
pub struct Sliced {
    pieces: VecDeque<Piece>,
    ended: bool,
}

impl Sliced {
    pub fn new(pieces: impl Into<VecDeque<Piece>>) -> Self {
        Self {
            pieces: pieces.into(),
            ended: false,
        }
    }
}

impl HttpBody for Sliced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        while let Some(piece) = this.pieces.front_mut() {
            let polled = match piece {
                Piece::Bytes(bytes) if bytes.is_empty() => None,
                Piece::Bytes(bytes) => {
                    let slice = bytes.split_to(bytes.len().min(SLICE_BYTES));
                    return Poll::Ready(Some(Ok(Frame::data(slice))));
                }
                Piece::Pages(reader) => {
                    let page = ready!(reader.poll_page(context));
                    page.map(|page| page.map(|page| [Bytes::new(), page.bytes, Bytes::new()]))
                }
                Piece::Messages(messages) => ready!(messages.poll_part(context)),
                Piece::Chunks(chunks) => match ready!(chunks.poll_chunk(context)) {
                    None => None,
                    Some(Ok(Chunk::Whole(chunk))) => Some(Ok([Bytes::new(), chunk, Bytes::new()])),
                    Some(Ok(Chunk::Paged(messages))) => {
                        this.pieces.push_front(Piece::Messages(messages));
                        continue;
                    }
                    Some(Err(status)) => Some(Err(status)),
                },
            };
            match polled {
                None => {
                    this.pieces.pop_front();
                }
                Some(Ok(parts)) => {
                    for part in parts.into_iter().rev() {
                        this.pieces.push_front(Piece::Bytes(part));
                    }
                }
                Some(Err(status)) => {
                    this.pieces.clear();
                    this.ended = true;
                    return Poll::Ready(Some(trailers(&status)));
                }
            }
        }
        if std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(trailers(&Status::ok(""))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Pairs that are not held: how large they are, and what it takes to read them.
pub struct Rest {
    pub view: Arc<ReadView>,
    pub pages: Pages,
    pub pairs: usize,
    pub size_bytes: usize,
}

/// Reads the pages of a range.
pub struct Reader {
    reads: Reads,
    left_bytes: usize,
    /// None while a page is read, and after a failure.
    place: Option<ReadPosition>,
    reading: Option<Reading>,
}

type Read = Result<(ReadPosition, Option<Page>), Status>;
type Reading = Pin<Box<dyn Future<Output = Read> + Send>>;

/// A page whose bytes are counted.
struct Page {
    bytes: Bytes,
    continues: bool,
    rest_bytes: usize,
}

struct ReadPosition {
    rest: Rest,
    /// What the rows of a sorted range take that are kept from page to page.
    rows: Option<Held>,
}

impl Reader {
    pub fn new(reads: Reads, rest: Rest) -> Self {
        Self {
            reads,
            left_bytes: rest.size_bytes,
            place: Some(ReadPosition { rest, rows: None }),
            reading: None,
        }
    }

    /// The next page; none behind the last.
    fn poll_page(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Page, Status>>> {
        if self.reading.is_none() {
            let Some(place) = self.place.take() else {
                return Poll::Ready(None);
            };
            let read = read_page(self.reads.clone(), place, self.left_bytes);
            self.reading = Some(Box::pin(read));
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(context));
        self.reading = None;
        Poll::Ready(match read {
            Ok((place, Some(page))) if page.bytes.len() <= self.left_bytes => {
                self.left_bytes -= page.bytes.len();
                self.place = (self.left_bytes > 0).then_some(place);
                Some(Ok(page))
            }
            Ok(_) => Some(Err(Status::internal(
                "a range gave another answer than it was measured to give",
            ))),
            Err(status) => Some(Err(status)),
        })
    }
}

/// A range as messages of a stream, each a page, or a pair that is larger.
pub struct Messages {
    reader: Reader,
    /// What the last of them says of all.
    last: RangeResponse,
}

impl Messages {
    pub fn new(reader: Reader, last: RangeResponse) -> Self {
        Self { reader, last }
    }

    /// The next page, what stands before it and what behind it.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<[Bytes; 3], Status>>> {
        let page = match ready!(self.reader.poll_page(context)) {
            Some(Ok(page)) => page,
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
            None => return Poll::Ready(None),
        };
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        let is_last = self.reader.left_bytes == page.rest_bytes;
        if !page.continues {
            let around = if is_last { self.last.encoded_len() } else { 0 };
            let range_bytes = page.bytes.len() + page.rest_bytes + around;
            begin_message(nested_len(range_bytes), &mut before);
            begin_nested(STREAMED_RANGE_TAG, range_bytes, &mut before);
            if is_last {
                self.last.encode_before_kvs(&mut before);
            }
        }
        if is_last && page.rest_bytes == 0 {
            self.last.encode_behind_kvs(&mut behind);
        }
        Poll::Ready(Some(Ok([before.into(), page.bytes, behind.into()])))
    }
}

async fn read_page(reads: Reads, mut place: ReadPosition, left_bytes: usize) -> Read {
    let turns = reads.handle.turns(TURNS).clone();
    let turn = turns.acquire_owned().await;
    let handle = reads.handle.clone();
    let read = handle.blocking(move || {
        let _turn = turn;
        let page = place.next(&reads.share, left_bytes);
        page.map(|page| (place, page))
    });
    let page = read.await.map_err(|_| Status::from(Error::Stopped))?;
    page.map_err(|error| Status::from(handle.refusal(error)))
}

impl ReadPosition {
    fn next(&mut self, share: &Arc<Share>, left_bytes: usize) -> mvcc::Result<Option<Page>> {
        let room = page_room(share, left_bytes);
        let page_bytes = room.as_ref().map_or(LEAST_PAGE_BYTES, Held::bytes);
        let mut large_pair = Room::new(share, page_bytes, MAX_PAIR_BYTES);
        let rows = Room::new(share, LEAST_PAGE_BYTES, MAX_ROWS_BYTES);
        let mut rows = rows.with_held(self.rows.take());
        let pinned = self.rest.view.pinned();
        let page = self.rest.pages.next(
            &pinned,
            &mut Rooms {
                page_bytes,
                large_pair: &mut |bytes| large_pair.holds(bytes),
                rows: &mut |bytes| rows.holds(bytes),
            },
        )?;
        self.rows = rows.into_held();
        let held = large_pair.into_held().or(room);
        Ok(page.map(|page| {
            let held = held.unwrap_or_else(|| share.take_anyway(page.bytes.len()));
            Page {
                bytes: held.over(page.bytes.into()),
                continues: page.continues,
                rest_bytes: page.rest_bytes,
            }
        }))
    }
}

/// What a page takes; none where nothing is free. A large one only where half of the share is,
/// which streams that nobody reads must not take from others.
fn page_room(share: &Arc<Share>, left_bytes: usize) -> Option<Held> {
    let large_bytes = left_bytes.min(SLICE_BYTES);
    let is_free = share.used_bytes() + large_bytes <= share.limit_bytes() / 2;
    let large = is_free.then(|| share.try_take(large_bytes)).flatten();
    large.or_else(|| share.try_take(left_bytes.min(SMALL_PAGE_BYTES)))
}
