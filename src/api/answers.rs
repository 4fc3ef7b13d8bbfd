//! Answers that are larger than one frame. What of them is in memory is counted in a share of
//! the budget until the network has taken it, and the network is handed a slice at a time, when
//! it has room for it.
//!
//! A service leaves such an answer beside its message, as an extension of the response, and
//! `take_over` makes it the body of the call before the message is encoded. So all that comes
//! before an answer, and every small one, stays with tonic.
//!
//! A range that may not be held is read again for its answer: a page at a time, from the view
//! that it was measured in, as its reader takes them. Of a stream that nobody reads two pages are
//! held at most, and a place in the view.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::{Response, Status};

use crate::budget::{Held, Share};
use crate::mvcc;
use crate::mvcc::pages::{Pages, Rooms};
use crate::mvcc::range::Measured;
use crate::mvcc::read::RangeRead;
use crate::proto::etcdserverpb::RangeResponse;
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::state::kv;

/// Larger ones are counted and sliced.
const SMALL_BYTES: usize = 32 << 10;
/// What the network is handed at once, and a page of a range that is not held.
const SLICE_BYTES: usize = 32 << 10;
/// Larger ranges are not held even where there is room for them.
const MAX_HELD_BYTES: usize = 4 << 20;
/// A flag and the length in front of every message of gRPC.
const PREFIX_BYTES: usize = 5;
/// As for every other answer.
pub const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// What answers need; cheap to clone.
#[derive(Clone)]
pub struct Answers {
    handle: Handle,
    share: Arc<Share>,
    /// Reads off the network's threads at once.
    pub large_reads: Arc<Semaphore>,
}

impl Answers {
    pub fn new(handle: Handle, share: Arc<Share>, large_reads: usize) -> Self {
        Self {
            handle,
            share,
            large_reads: Arc::new(Semaphore::new(large_reads)),
        }
    }

    /// Answers a range request, or measures it.
    pub fn read(&self, view: &Arc<ReadView>, read: &RangeRead) -> mvcc::Result<RangeAnswer> {
        let mut room = Room::new(&self.share, MAX_HELD_BYTES);
        let snapshot = view.snapshot();
        let measured = snapshot.measure(read, &mut |bytes| room.holds(bytes))?;
        let rest = match &measured.kvs {
            Some(_) => None,
            None => Some(Rest {
                pages: Pages::new(&snapshot, read.clone(), measured.pairs)?,
                pairs: measured.pairs,
                size_bytes: measured.size_bytes as usize,
                view: view.clone(),
            }),
        };
        Ok(RangeAnswer {
            response: response(measured, view.head),
            held: room.held,
            rest,
        })
    }

    /// The response of a range.
    ///
    /// # Errors
    /// It is larger than any may be.
    pub fn respond_range(&self, answer: RangeAnswer) -> Result<Response<RangeResponse>, Status> {
        let size_bytes = answer.size_bytes();
        check_size(size_bytes)?;
        if size_bytes <= SMALL_BYTES {
            return Ok(Response::new(answer.response));
        }
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        put_prefix(&mut before, size_bytes);
        answer.response.encode_before_kvs(&mut before);
        answer.response.encode_behind_kvs(&mut behind);
        let pairs = match answer.rest {
            Some(rest) => Piece::Pages(Box::new(Reader {
                answers: self.clone(),
                left_bytes: rest.size_bytes,
                place: Some(Place { rest, rows: None }),
                reading: None,
            })),
            None => Piece::Bytes(counted(answer.response.kvs.frames().clone(), answer.held)),
        };
        let pieces = [
            Piece::Bytes(before.into()),
            pairs,
            Piece::Bytes(behind.into()),
        ];
        Ok(beside(answer.response, pieces))
    }

    /// The response of any other call.
    ///
    /// # Errors
    /// It is larger than any may be.
    pub fn respond<M: Message>(&self, message: M) -> Result<Response<M>, Status> {
        let size_bytes = message.encoded_len();
        check_size(size_bytes)?;
        if size_bytes <= SMALL_BYTES {
            return Ok(Response::new(message));
        }
        let held = self.share.take_anyway(size_bytes);
        let mut encoded = Vec::with_capacity(PREFIX_BYTES + size_bytes);
        put_prefix(&mut encoded, size_bytes);
        message.encode_raw(&mut encoded);
        let encoded = counted(encoded.into(), Some(held));
        Ok(beside(message, [Piece::Bytes(encoded)]))
    }
}

fn response(measured: Measured, revision: i64) -> RangeResponse {
    RangeResponse {
        header: kv::header(revision),
        kvs: measured.kvs.unwrap_or_default(),
        more: measured.more,
        count: measured.count,
    }
}

/// In tonic's words, which clients have seen so far.
fn check_size(size_bytes: usize) -> Result<(), Status> {
    if size_bytes <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    Err(Status::out_of_range(format!(
        "Error, encoded message length too large: found {size_bytes} bytes, the limit is: {MAX_MESSAGE_BYTES} bytes"
    )))
}

fn put_prefix(out: &mut Vec<u8>, size_bytes: usize) {
    out.put_u8(0);
    out.put_u32(size_bytes as u32);
}

/// The answer to a range, or what it takes to read it.
pub struct RangeAnswer {
    /// Without its pairs where they are not held.
    pub response: RangeResponse,
    held: Option<Held>,
    rest: Option<Rest>,
}

impl RangeAnswer {
    pub fn pairs(&self) -> usize {
        self.response.kvs.len() + self.rest.as_ref().map_or(0, |rest| rest.pairs)
    }

    /// Of the encoded message.
    pub fn size_bytes(&self) -> usize {
        self.response.encoded_len() + self.rest.as_ref().map_or(0, |rest| rest.size_bytes)
    }
}

/// Pairs that are not held.
struct Rest {
    view: Arc<ReadView>,
    pages: Pages,
    pairs: usize,
    size_bytes: usize,
}

/// Counts what a read holds; what is small is not counted.
struct Room<'a> {
    share: &'a Arc<Share>,
    most_bytes: usize,
    held: Option<Held>,
}

impl<'a> Room<'a> {
    fn new(share: &'a Arc<Share>, most_bytes: usize) -> Self {
        Self {
            share,
            // So that one of them alone does not keep out all others.
            most_bytes: most_bytes.min(share.limit_bytes() / 8),
            held: None,
        }
    }

    fn holds(&mut self, bytes: usize) -> bool {
        if bytes <= SMALL_BYTES {
            self.held = None;
            return true;
        }
        if bytes > self.most_bytes {
            return false;
        }
        let Some(held) = &mut self.held else {
            self.held = self.share.try_take(bytes);
            return self.held.is_some();
        };
        match bytes.checked_sub(held.bytes()) {
            None => held.shrink(held.bytes() - bytes),
            Some(0) => {}
            Some(more) => return held.try_grow(more),
        }
        true
    }
}

/// Bytes that are counted until the last slice of them is dropped.
fn counted(bytes: Bytes, held: Option<Held>) -> Bytes {
    struct Counted {
        bytes: Bytes,
        _held: Held,
    }
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    match held {
        Some(held) => Bytes::from_owner(Counted { bytes, _held: held }),
        None => bytes,
    }
}

/// An answer beside its message.
#[derive(Clone)]
struct Beside(Arc<Mutex<Option<Body>>>);

fn beside<M>(message: M, pieces: impl Into<VecDeque<Piece>>) -> Response<M> {
    let body = Body::new(Sliced {
        pieces: pieces.into(),
        ended: false,
    });
    let mut response = Response::new(message);
    let beside = Beside(Arc::new(Mutex::new(Some(body))));
    response.extensions_mut().insert(beside);
    response
}

/// Makes what stands beside a message the body of its response.
pub fn take_over(mut response: http::Response<Body>) -> http::Response<Body> {
    let beside: Option<Beside> = response.extensions_mut().remove();
    match beside.and_then(|beside| beside.0.lock().take()) {
        Some(body) => response.map(|_never_encoded| body),
        None => response,
    }
}

enum Piece {
    Bytes(Bytes),
    Pages(Box<Reader>),
}

/// One message in slices, then the trailers.
struct Sliced {
    pieces: VecDeque<Piece>,
    ended: bool,
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
            let data = match piece {
                Piece::Bytes(bytes) => Some(bytes.split_to(bytes.len().min(SLICE_BYTES))),
                Piece::Pages(reader) => match ready!(reader.poll_page(context)) {
                    // A large pair is a large page.
                    Some(Ok(page)) => {
                        this.pieces.push_front(Piece::Bytes(page));
                        continue;
                    }
                    Some(Err(status)) => {
                        this.pieces.clear();
                        this.ended = true;
                        return Poll::Ready(Some(Err(status)));
                    }
                    None => None,
                },
            };
            match data {
                Some(data) if !data.is_empty() => return Poll::Ready(Some(Ok(Frame::data(data)))),
                _ => {
                    this.pieces.pop_front();
                }
            }
        }
        if std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        let added = Status::ok("").add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads the pages of a range.
struct Reader {
    answers: Answers,
    left_bytes: usize,
    /// None while a page is read, and after a failure.
    place: Option<Place>,
    reading: Option<Reading>,
}

type Page = Result<(Place, Option<Bytes>), Status>;
type Reading = Pin<Box<dyn Future<Output = Page> + Send>>;

struct Place {
    rest: Rest,
    /// What the rows of a sorted range take that are kept from page to page.
    rows: Option<Held>,
}

impl Reader {
    /// The next page; none behind the last.
    fn poll_page(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self.reading.is_none() {
            let Some(place) = self.place.take() else {
                return Poll::Ready(None);
            };
            self.reading = Some(Box::pin(read_page(self.answers.clone(), place)));
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(context));
        self.reading = None;
        Poll::Ready(match read {
            Ok((place, Some(page))) if page.len() <= self.left_bytes => {
                self.left_bytes -= page.len();
                self.place = Some(place);
                Some(Ok(page))
            }
            Ok((_, None)) if self.left_bytes == 0 => None,
            Ok(_) => Some(Err(Status::internal(
                "a range gave another answer than it was measured to give",
            ))),
            Err(status) => Some(Err(status)),
        })
    }
}

async fn read_page(answers: Answers, mut place: Place) -> Page {
    let turn = answers.large_reads.clone().acquire_owned().await;
    let handle = answers.handle.clone();
    let read = handle.blocking(move || {
        let _turn = turn;
        let page = place.next(&answers.share);
        page.map(|page| (place, page))
    });
    let page = read
        .await
        .map_err(|_| Status::from(crate::error::Error::Stopped))?;
    page.map_err(|error| Status::from(handle.refusal(error)))
}

impl Place {
    fn next(&mut self, share: &Arc<Share>) -> mvcc::Result<Option<Bytes>> {
        let mut large_pair = Room::new(share, MAX_HELD_BYTES);
        let mut rows = Room::new(share, MAX_HELD_BYTES);
        rows.held = self.rows.take();
        let snapshot = self.rest.view.snapshot();
        let page = self.rest.pages.next(
            &snapshot,
            &mut Rooms {
                page_bytes: SLICE_BYTES,
                large_pair: &mut |bytes| large_pair.holds(bytes),
                rows: &mut |bytes| rows.holds(bytes),
            },
        )?;
        self.rows = rows.held;
        let held = large_pair.held;
        Ok(page.map(|page| {
            let held = held.unwrap_or_else(|| share.take_anyway(page.len()));
            counted(page, Some(held))
        }))
    }
}
