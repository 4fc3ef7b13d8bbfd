//! Answers that are larger than one frame. What of them is in memory is counted in a share of
//! the budget until the network has taken it, and the network is handed a slice at a time, when
//! it has room for it.
//!
//! A service leaves such an answer beside its message, as an extension of the response, and
//! `body::take_over` makes it the body of the call before the message is encoded. So all that comes
//! before an answer, and every small one, stays with tonic.
//!
//! A range that may not be held is read again for its answer: a page at a time, from the view
//! that it was measured in, as its reader takes them. Of a stream that nobody reads two pages are
//! held at most, and a place in the view.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tonic::{Response, Status};
use tracing::Span;

use super::body::beside;
use super::range_stream::{ChunkReader, Chunks};
use super::sliced::{
    Messages, Piece, Reader, Reads, Rest, SMALL_BYTES, STREAMED_RANGE_TAG, Sliced, begin_message,
};
use crate::budget::{Held, Room, Share};
use crate::mvcc;
use crate::mvcc::pages::Pages;
use crate::mvcc::read::RangeRead;
use crate::proto::etcdserverpb::{RangeResponse, ResponseOp, TxnRequest, TxnResponse, response_op};
use crate::proto::{begin_nested, nested_len};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::state::{kv, txn};

/// Larger ranges are not held even where there is room for them.
const MAX_HELD_BYTES: usize = 4 << 20;
/// As tonic has it for every other answer.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// A small budget must not refuse what any request may read.
const LEAST_LIMIT_BYTES: usize = 4 << 20;

/// What the answer to a write may hold, of a share of this size. Other answers are as large as
/// they are: only what was written at the same time has to be kept for it.
pub fn answer_limit_bytes(share_bytes: usize) -> usize {
    share_bytes.max(LEAST_LIMIT_BYTES)
}

/// What answers need; cheap to clone.
#[derive(Clone)]
pub struct Answers {
    reads: Reads,
}

impl Answers {
    /// `share` counts what answers take.
    pub fn new(handle: Handle, share: Arc<Share>) -> Self {
        Self {
            reads: Reads { handle, share },
        }
    }

    pub fn handle(&self) -> &Handle {
        &self.reads.handle
    }

    /// What answers are counted in.
    pub fn share(&self) -> &Arc<Share> {
        &self.reads.share
    }

    fn room(&self) -> Room<'_> {
        Room::new(&self.reads.share, SMALL_BYTES, MAX_HELD_BYTES)
    }

    /// Answers a range request, or measures it.
    pub fn range(&self, view: &Arc<ReadView>, read: &RangeRead) -> mvcc::Result<RangeAnswer> {
        let mut room = self.room();
        let (response, rest) = measure(view, read, &mut |bytes| room.holds(bytes))?;
        Ok(RangeAnswer {
            response,
            held: room.into_held(),
            rest,
        })
    }

    /// The same for a transaction of ranges.
    pub fn txn(&self, view: &Arc<ReadView>, request: &TxnRequest) -> mvcc::Result<TxnAnswer> {
        let mut room = self.room();
        let (mut rests, mut held_bytes) = (Vec::new(), 0);
        let response = txn::read(&view.pinned(), request, |read| {
            let mut room = |bytes| room.holds(held_bytes + bytes);
            let (response, rest) = measure(view, read, &mut room)?;
            held_bytes += response.kvs.size_bytes();
            rests.push(rest);
            Ok(response)
        })?;
        Ok(TxnAnswer {
            response,
            held: room.into_held(),
            rests,
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
        let mut pieces = Pieces::new(&self.reads, size_bytes);
        pieces.range(&answer.response, answer.rest, answer.held);
        Ok(beside(answer.response, pieces.finish()))
    }

    /// Answers a range in as many messages as it needs.
    ///
    /// # Errors
    /// The view cannot be read as asked.
    pub fn range_stream(
        &self,
        view: &Arc<ReadView>,
        read: &RangeRead,
    ) -> mvcc::Result<RangeAnswer> {
        let (response, rest) = measure(view, read, &mut |bytes| bytes <= SMALL_BYTES)?;
        Ok(RangeAnswer {
            response,
            held: None,
            rest,
        })
    }

    /// The response of such a range, `nothing` as far as tonic knows.
    pub fn respond_stream<M>(&self, answer: RangeAnswer, nothing: M) -> Response<M> {
        let Some(rest) = answer.rest else {
            let size_bytes = answer.response.encoded_len();
            let mut pieces = Pieces::new(&self.reads, nested_len(size_bytes));
            begin_nested(STREAMED_RANGE_TAG, size_bytes, &mut pieces.bytes);
            answer.response.encode_raw(&mut pieces.bytes);
            return beside(nothing, pieces.finish());
        };
        let reader = Reader::new(self.reads.clone(), *rest);
        let messages = Messages::new(reader, answer.response);
        beside(nothing, Sliced::new([Piece::Messages(Box::new(messages))]))
    }

    /// The response of a range that is sorted chunk by chunk, `nothing` as far as tonic knows.
    pub fn respond_chunks<M>(&self, chunks: Chunks, span: Span, nothing: M) -> Response<M> {
        let reader = ChunkReader::new(self.reads.clone(), chunks, span);
        beside(nothing, Sliced::new([Piece::Chunks(Box::new(reader))]))
    }

    /// The response of a transaction of ranges.
    ///
    /// # Errors
    /// It is larger than any may be.
    pub fn respond_txn(&self, answer: TxnAnswer) -> Result<Response<TxnResponse>, Status> {
        if answer.rests.iter().all(Option::is_none) {
            return self.respond(answer.response, answer.held);
        }
        let size_bytes = answer.size_bytes();
        check_size(size_bytes)?;
        let mut pieces = Pieces::new(&self.reads, size_bytes);
        let front = TxnResponse {
            header: answer.response.header,
            succeeded: answer.response.succeeded,
            responses: Vec::new(),
        };
        front.encode_raw(&mut pieces.bytes);
        let mut held = answer.held;
        for (op, rest) in answer.response.responses.iter().zip(answer.rests) {
            let Some(range) = range_of(op) else {
                continue;
            };
            let range_bytes = range.encoded_len() + rest.as_ref().map_or(0, |rest| rest.size_bytes);
            let op_bytes = nested_len(range_bytes);
            begin_nested(TXN_RESPONSES_TAG, op_bytes, &mut pieces.bytes);
            begin_nested(OP_RANGE_TAG, range_bytes, &mut pieces.bytes);
            let held = match rest {
                Some(_) => None,
                None => held
                    .as_mut()
                    .and_then(|held| held.split(range.kvs.size_bytes())),
            };
            pieces.range(range, rest, held);
        }
        Ok(beside(answer.response, pieces.finish()))
    }

    /// The response of any other call; `held` is room for a large one that was taken before it was
    /// made.
    ///
    /// # Errors
    /// It is larger than any may be.
    pub fn respond<M: Message>(
        &self,
        message: M,
        held: Option<Held>,
    ) -> Result<Response<M>, Status> {
        let size_bytes = message.encoded_len();
        check_size(size_bytes)?;
        if size_bytes <= SMALL_BYTES {
            return Ok(Response::new(message));
        }
        let mut pieces = Pieces::new(&self.reads, size_bytes);
        pieces.bytes.reserve_exact(size_bytes);
        message.encode_raw(&mut pieces.bytes);
        pieces.end_bytes(held.map(|mut held| {
            held.shrink(held.bytes().saturating_sub(size_bytes));
            held
        }));
        Ok(beside(message, Sliced::new(pieces.done)))
    }
}

/// Answers a range where `room` lets it be held.
fn measure(
    view: &Arc<ReadView>,
    read: &RangeRead,
    room: &mut dyn FnMut(usize) -> bool,
) -> mvcc::Result<(RangeResponse, Option<Box<Rest>>)> {
    let pinned = view.pinned();
    let measured = pinned.measure(read, room)?;
    let rest = match &measured.kvs {
        Some(_) => None,
        None => Some(Box::new(Rest {
            pages: Pages::new(&pinned, read.clone(), measured.pairs)?,
            pairs: measured.pairs,
            size_bytes: measured.size_bytes as usize,
            view: view.clone(),
        })),
    };
    Ok((kv::range_response(measured, view.head), rest))
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

/// `TxnResponse.responses`
const TXN_RESPONSES_TAG: u32 = 3;
/// `ResponseOp.response_range`
const OP_RANGE_TAG: u32 = 1;

/// The pieces of one message of gRPC.
struct Pieces<'a> {
    reads: &'a Reads,
    done: Vec<Piece>,
    /// The end so far.
    bytes: Vec<u8>,
}

impl<'a> Pieces<'a> {
    fn new(reads: &'a Reads, size_bytes: usize) -> Self {
        let mut bytes = Vec::new();
        begin_message(size_bytes, &mut bytes);
        Self {
            reads,
            done: Vec::new(),
            bytes,
        }
    }

    fn range(&mut self, response: &RangeResponse, rest: Option<Box<Rest>>, held: Option<Held>) {
        response.encode_before_kvs(&mut self.bytes);
        self.end_bytes(None);
        match rest {
            Some(rest) => {
                let reader = Reader::new(self.reads.clone(), *rest);
                self.done.push(Piece::Pages(Box::new(reader)));
            }
            None => self.chunks(response.kvs.chunks(), held),
        }
        response.encode_behind_kvs(&mut self.bytes);
    }

    /// Each is counted until it is taken.
    fn chunks(&mut self, chunks: &[Bytes], mut held: Option<Held>) {
        for chunk in chunks {
            let held = held.as_mut().and_then(|held| held.split(chunk.len()));
            self.push(chunk.clone(), held);
        }
    }

    fn end_bytes(&mut self, held: Option<Held>) {
        let bytes = std::mem::take(&mut self.bytes);
        let share = &self.reads.share;
        let large = bytes.len() > SMALL_BYTES;
        let held = held.or_else(|| large.then(|| share.take_anyway(bytes.len())));
        self.push(bytes.into(), held);
    }

    fn push(&mut self, bytes: Bytes, held: Option<Held>) {
        self.done.push(Piece::Bytes(match held {
            Some(held) => held.over(bytes),
            None => bytes,
        }));
    }

    fn finish(mut self) -> Sliced {
        self.end_bytes(None);
        Sliced::new(self.done)
    }
}

/// The answer to a range, or what it takes to read it.
pub struct RangeAnswer {
    /// Without its pairs where they are not held.
    pub response: RangeResponse,
    held: Option<Held>,
    /// Large, and seldom there.
    rest: Option<Box<Rest>>,
}

impl RangeAnswer {
    pub fn pairs(&self) -> usize {
        pairs(&self.response, &self.rest)
    }

    /// Of the encoded message.
    pub fn size_bytes(&self) -> usize {
        self.response.encoded_len() + self.rest.as_ref().map_or(0, |rest| rest.size_bytes)
    }
}

fn pairs(response: &RangeResponse, rest: &Option<Box<Rest>>) -> usize {
    response.kvs.len() + rest.as_ref().map_or(0, |rest| rest.pairs)
}

/// The answer to a transaction of ranges.
pub struct TxnAnswer {
    /// Without the pairs that are not held.
    pub response: TxnResponse,
    held: Option<Held>,
    /// Of each range.
    rests: Vec<Option<Box<Rest>>>,
}

impl TxnAnswer {
    /// Of each range.
    pub fn pairs(&self) -> impl Iterator<Item = usize> {
        let ops = self.response.responses.iter().zip(&self.rests);
        ops.filter_map(|(op, rest)| Some(pairs(range_of(op)?, rest)))
    }

    /// Of the encoded message.
    pub fn size_bytes(&self) -> usize {
        let mut bytes = self.response.encoded_len();
        for (op, rest) in self.response.responses.iter().zip(&self.rests) {
            let (Some(rest), Some(range)) = (rest, range_of(op)) else {
                continue;
            };
            let len = |range_bytes| nested_len(nested_len(range_bytes));
            let without = range.encoded_len();
            bytes += len(without + rest.size_bytes) - len(without);
        }
        bytes
    }
}

fn range_of(op: &ResponseOp) -> Option<&RangeResponse> {
    match &op.response {
        Some(response_op::Response::ResponseRange(range)) => Some(range),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use http_body_util::BodyExt;
    use tonic::body::Body;

    use super::*;
    use crate::api::body;
    use crate::proto::etcdserverpb::InternalRaftRequest;
    use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
    use crate::proto::etcdserverpb::{
        PutRequest, RangeRequest, RangeStreamResponse, RequestOp, request_op,
    };
    use crate::service::fixture;
    use crate::state::Machine;
    use crate::state::machine::{Entry, Payload};
    use crate::storage::memory::MemoryEngine;

    /// Of the values of the keys k0, k1, ...
    const VALUES: [usize; 7] = [10, 40_000, 100, 0, 1_500_000, 33_000, 32_000];

    fn view() -> Arc<ReadView> {
        let engine = Arc::new(MemoryEngine::new());
        let mut machine = Machine::open(engine.clone()).expect("opens");
        let put = |(place, size): (usize, &usize)| Entry {
            index: place as u64 + 1,
            term: 1,
            payload: Payload::Decoded(Arc::new(InternalRaftRequest {
                put: Some(PutRequest {
                    key: format!("k{place}").into(),
                    value: vec![b'a' + place as u8; *size].into(),
                    ..Default::default()
                }),
                ..Default::default()
            })),
        };
        let entries = VALUES.iter().enumerate().map(put).collect();
        machine.apply(entries).expect("applies");
        Arc::new(ReadView::new(engine.as_ref(), &machine))
    }

    fn all() -> RangeRequest {
        RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..Default::default()
        }
    }

    fn requests() -> Vec<RangeRequest> {
        let sorted = |target, order| RangeRequest {
            sort_target: target as i32,
            sort_order: order as i32,
            limit: 5,
            ..all()
        };
        let point = |key: &str| RangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        vec![
            all(),
            RangeRequest { limit: 2, ..all() },
            RangeRequest {
                keys_only: true,
                ..all()
            },
            RangeRequest {
                min_mod_revision: 4,
                ..all()
            },
            sorted(SortTarget::Key, SortOrder::Descend),
            sorted(SortTarget::Value, SortOrder::Ascend),
            sorted(SortTarget::Mod, SortOrder::Descend),
            point("k0"),
            point("k4"),
            point("k5"),
            point("none"),
        ]
    }

    /// The data of a response, which is one message of gRPC; and that the call ended well.
    async fn sent<M: Message>(response: Response<M>) -> Vec<u8> {
        let (_, message, extensions) = response.into_parts();
        let mut taken = http::Response::new(Body::empty());
        *taken.extensions_mut() = extensions;
        let taken = body::take_over(taken);
        if http_body::Body::is_end_stream(taken.body()) {
            return whole(&message);
        }
        let collected = taken.into_body().collect().await.expect("a whole body");
        let trailers = collected.trailers().expect("trailers");
        assert_eq!(trailers.get("grpc-status").expect("a status"), "0");
        collected.to_bytes().to_vec()
    }

    fn whole(message: &impl Message) -> Vec<u8> {
        let mut whole = vec![0];
        whole.put_u32(message.encoded_len() as u32);
        message.encode_raw(&mut whole);
        whole
    }

    #[tokio::test]
    async fn what_is_sent_is_the_message() {
        let view = view();
        let pinned = view.pinned();
        let answer = |read: &RangeRead| {
            let ranged = pinned.range(read)?;
            Ok(kv::range_response(ranged, view.head))
        };
        // Nothing has room, something has, everything has.
        for limit_bytes in [0, 400 << 10, 16 << 20, usize::MAX] {
            let share = Share::new(limit_bytes);
            let answers = Answers::new(fixture::single_member(), share.clone());
            for request in requests() {
                let read = kv::range_read(&request).expect("a read");
                let expected = answer(&read).expect("reads");
                let found = answers.range(&view, &read).expect("reads");
                assert_eq!(found.size_bytes(), expected.encoded_len(), "{request:?}");
                assert_eq!(found.pairs(), expected.kvs.len(), "{request:?}");
                let response = answers.respond_range(found).expect("may be sent");
                let sent = sent(response).await;
                assert!(sent == whole(&expected), "{limit_bytes}: {request:?}");
            }
            let op = |range| RequestOp {
                request: Some(request_op::Request::RequestRange(range)),
            };
            let request = TxnRequest {
                success: requests().into_iter().map(op).collect(),
                ..Default::default()
            };
            let expected = txn::read(&pinned, &request, answer).expect("reads");
            let found = answers.txn(&view, &request).expect("reads");
            assert_eq!(found.size_bytes(), expected.encoded_len());
            let response = answers.respond_txn(found).expect("may be sent");
            assert!(sent(response).await == whole(&expected), "{limit_bytes}");
            assert_eq!(share.used_bytes(), 0);
        }
    }

    /// The messages of a stream.
    async fn streamed(response: Response<RangeResponse>) -> Vec<RangeResponse> {
        let sent = sent(response).await;
        let mut rest = &sent[..];
        let mut messages = Vec::new();
        while let Some((head, behind)) = rest.split_first_chunk::<5>() {
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let (message, behind) = behind.split_at(len);
            let message = RangeStreamResponse::decode(message).expect("a message");
            messages.push(message.range_response.expect("a part"));
            rest = behind;
        }
        messages
    }

    /// With chunks of one pair each, of which some have no room.
    #[tokio::test]
    async fn a_pair_without_room_is_read_as_it_is_sent() {
        // k3 has no value, which comes before that of k2: as in etcd the stream continues behind it.
        const KEYS: [&str; 6] = ["k0", "k1", "k3", "k4", "k5", "k6"];
        let view = view();
        let pinned = view.pinned();
        for limit in [0, 3] {
            let request = RangeRequest {
                sort_target: SortTarget::Value as i32,
                limit,
                ..all()
            };
            let share = Share::new(0);
            let answers = Answers::new(fixture::single_member(), share.clone());
            let handle = answers.reads.handle.clone();
            let chunks = Chunks::new(handle, view.clone(), &request, 1).expect("chunks");
            let response = answers.respond_chunks(chunks, Span::none(), RangeResponse::default());
            let sent = streamed(response).await;
            let cut = limit as usize;
            let expected = if cut == 0 { &KEYS[..] } else { &KEYS[..cut] };
            assert_eq!(sent.len(), expected.len());
            for (message, key) in sent.iter().zip(expected) {
                let read = RangeRequest {
                    key: key.to_string().into(),
                    ..Default::default()
                };
                let read = kv::range_read(&read).expect("a read");
                let pair = pinned.range(&read).expect("reads").kvs;
                assert_eq!(Some(&message.kvs), pair.as_ref(), "{key}");
                let is_last = Some(key) == expected.last();
                assert_eq!(message.header.is_some(), is_last);
                assert_eq!(message.count, if is_last { KEYS.len() as i64 } else { 0 });
                assert_eq!(message.more, is_last && cut > 0);
            }
            assert_eq!(share.used_bytes(), 0);
        }
    }

    #[tokio::test]
    async fn a_stream_that_cannot_be_read_says_why() {
        let answers = Answers::new(fixture::single_member(), Share::new(1 << 20));
        let request = RangeRequest {
            sort_target: SortTarget::Value as i32,
            revision: 1_000,
            ..all()
        };
        let handle = answers.reads.handle.clone();
        let chunks = Chunks::new(handle, view(), &request, 1 << 20).expect("chunks");
        let nothing = RangeResponse::default();
        let response = answers.respond_chunks(chunks, Span::none(), nothing);
        let (_, _, mut extensions) = response.into_parts();
        let body = body::body_of(&mut extensions).expect("a body");
        let collected = body.collect().await.expect("ends in order");
        let trailers = collected.trailers().expect("trailers");
        assert_eq!(trailers.get("grpc-status").expect("a status"), "11");
        assert!(collected.to_bytes().is_empty());
    }
}
