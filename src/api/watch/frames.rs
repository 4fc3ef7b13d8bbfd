//! Watch responses as the data frames of a gRPC stream.
//!
//! The bytes are those of prost. What is small is copied together into one frame, so that many
//! responses cost one write; a large event is a frame of its own and shares its bytes with
//! all streams that send it. A frame holds the whole of a message's prefix or nothing of it.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost::encoding::{self, WireType};
use tonic::Status;

use crate::proto::EncodedEvent;
use crate::proto::etcdserverpb::WatchResponse;

/// The field of `WatchResponse` that holds an event. No field has a higher number, so that
/// events come last.
const EVENTS_TAG: u32 = 11;
/// Events above this are shared, where they may be.
const COPY_BYTES: usize = 4 << 10;
/// Compressed or not, and the length: what stands before each message.
const PREFIX_BYTES: usize = 5;
/// What stands before the first event of a response, but for a reason of its end: a frame
/// exceeds its size by no more.
const HEAD_BYTES: usize = 128;
/// What a client of gRPC can be sent in one message; as `api` sets it for other services.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// How a frame may be made.
#[derive(Clone, Copy, Debug)]
pub struct Make {
    /// It ends behind what reaches this.
    pub frame_bytes: usize,
    /// Large events are sent as the bytes that others hold too.
    pub shares: bool,
}

/// Responses to be sent, and what is left of the one that is begun.
#[derive(Default)]
pub struct Frames {
    /// With about what each takes on the wire.
    responses: VecDeque<(WatchResponse, usize)>,
    /// Of the response that is begun.
    events: std::vec::IntoIter<EncodedEvent>,
    /// Of the event that is begun.
    rest: Bytes,
    /// About what all of `responses` take.
    bytes: usize,
    /// In frames that were taken, since the begin.
    taken_bytes: u64,
}

impl Frames {
    pub fn push(&mut self, response: WatchResponse) {
        let bytes = size_bytes(&response);
        self.bytes += bytes;
        self.responses.push_back((response, bytes));
    }

    /// The oldest response, where none is begun; a copy, as a client has it.
    pub fn pop(&mut self) -> Option<WatchResponse> {
        let (mut response, bytes) = self.responses.pop_front()?;
        self.bytes -= bytes;
        for event in &mut response.events {
            *event = EncodedEvent::from_encoded(event.encoded().to_vec().into());
        }
        Some(response)
    }

    pub fn is_empty(&self) -> bool {
        self.responses.is_empty() && self.events.as_slice().is_empty() && self.rest.is_empty()
    }

    /// Responses of which nothing went out.
    pub fn len(&self) -> usize {
        self.responses.len()
    }

    /// About what the responses take of which nothing went out.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing is left but so many bytes, or fewer.
    pub fn is_within(&self, bytes: usize) -> bool {
        self.events.as_slice().is_empty() && self.bytes + self.rest.len() <= bytes
    }

    /// In frames that were taken, since the begin.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// A large event that comes next.
    pub fn next_shared(&mut self) -> Option<Bytes> {
        if self.rest.len() <= COPY_BYTES {
            return None;
        }
        self.taken_bytes += self.rest.len() as u64;
        Some(std::mem::take(&mut self.rest))
    }

    /// The next frame; `None` where nothing is left.
    pub fn next(&mut self, make: Make) -> Result<Option<Bytes>, Status> {
        let mut frame = Vec::new();
        while frame.len() < make.frame_bytes {
            if !self.rest.is_empty() {
                if make.shares && self.rest.len() > COPY_BYTES {
                    if frame.is_empty() {
                        return Ok(self.next_shared());
                    }
                    break;
                }
                let room = make.frame_bytes - frame.len();
                self.copy_rest(&mut frame, room);
            } else if let Some(event) = self.events.next() {
                let bytes = event.encoded();
                encoding::encode_key(EVENTS_TAG, WireType::LengthDelimited, &mut frame);
                encoding::encode_varint(bytes.len() as u64, &mut frame);
                let room = make.frame_bytes.saturating_sub(frame.len());
                match bytes.len() <= room.min(COPY_BYTES) {
                    true => frame.put_slice(bytes),
                    false => self.rest = bytes.clone(),
                }
            } else if let Some((response, bytes)) = self.responses.pop_front() {
                let room = make.frame_bytes - frame.len();
                frame.reserve(self.bytes.min(room) + HEAD_BYTES);
                self.bytes -= bytes;
                self.begin(response, &mut frame)?;
            } else {
                break;
            }
        }
        self.taken_bytes += frame.len() as u64;
        Ok((!frame.is_empty()).then(|| frame.into()))
    }

    fn begin(&mut self, mut response: WatchResponse, frame: &mut Vec<u8>) -> Result<(), Status> {
        let len = response.encoded_len();
        if len > MAX_MESSAGE_BYTES {
            return Err(Status::out_of_range(format!(
                "Error, encoded message length too large: found {len} bytes, \
                 the limit is: {MAX_MESSAGE_BYTES} bytes"
            )));
        }
        self.events = std::mem::take(&mut response.events).into_iter();
        frame.put_u8(0);
        frame.put_u32(len as u32);
        response.encode_raw(frame);
        Ok(())
    }

    fn copy_rest(&mut self, frame: &mut Vec<u8>, room: usize) {
        let len = self.rest.len().min(room);
        frame.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        if self.rest.is_empty() {
            // Lets go of the event.
            self.rest = Bytes::new();
        }
    }
}

/// About what a response takes on the wire.
fn size_bytes(response: &WatchResponse) -> usize {
    let event_bytes = |event: &EncodedEvent| event.encoded().len() + PREFIX_BYTES;
    let events: usize = response.events.iter().map(event_bytes).sum();
    PREFIX_BYTES + 32 + response.cancel_reason.len() + events
}

/// Counts the messages that begin in the frames of a stream.
#[derive(Default)]
pub struct MessageCount {
    /// Of the message that is begun: what is still to come.
    left_bytes: usize,
}

impl MessageCount {
    /// How many begin in the next frame.
    pub fn begun(&mut self, mut frame: &[u8]) -> usize {
        let mut begun = 0;
        loop {
            let skipped = self.left_bytes.min(frame.len());
            self.left_bytes -= skipped;
            frame = &frame[skipped..];
            let Some((prefix, rest)) = frame.split_at_checked(PREFIX_BYTES) else {
                return begun;
            };
            begun += 1;
            self.left_bytes = (&prefix[1..]).get_u32() as usize;
            frame = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::proto::etcdserverpb::ResponseHeader;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }

        fn event(&mut self) -> EncodedEvent {
            let bound = [1, 20, 200, 5_000, 40_000][self.below(5)];
            let bytes = vec![self.below(256) as u8; self.below(bound)];
            EncodedEvent::from_encoded(bytes.into())
        }

        fn response(&mut self) -> WatchResponse {
            WatchResponse {
                header: (self.below(8) > 0).then(|| ResponseHeader {
                    cluster_id: self.next(),
                    member_id: self.next(),
                    revision: self.below(1 << 40) as i64,
                    raft_term: self.below(9) as u64,
                }),
                watch_id: self.below(4) as i64 - 1,
                created: self.below(4) == 0,
                canceled: self.below(4) == 0,
                compact_revision: self.below(3) as i64,
                cancel_reason: "x".repeat(self.below(5)),
                fragment: self.below(4) == 0,
                events: (0..self.below(4)).map(|_| self.event()).collect(),
            }
        }
    }

    fn encoded(responses: &[WatchResponse]) -> Vec<u8> {
        let mut all = BytesMut::new();
        for response in responses {
            all.put_u8(0);
            all.put_u32(response.encoded_len() as u32);
            response.encode(&mut all).expect("room");
        }
        all.to_vec()
    }

    #[test]
    fn frames_are_what_prost_makes() {
        let mut random = Random(7);
        for _ in 0..500 {
            let responses: Vec<_> = (0..random.below(6)).map(|_| random.response()).collect();
            let mut frames = Frames::default();
            responses.iter().for_each(|it| frames.push(it.clone()));
            let (mut sent, mut count, mut begun) = (Vec::new(), MessageCount::default(), 0);
            loop {
                let make = Make {
                    frame_bytes: [1, 100, 1 << 10, 16 << 10][random.below(4)],
                    shares: random.below(2) == 0,
                };
                let Some(frame) = frames.next(make).expect("not too long") else {
                    break;
                };
                assert!(!frame.is_empty());
                assert!(
                    make.shares || frame.len() <= make.frame_bytes + 64 + 8,
                    "{make:?}: {}",
                    frame.len()
                );
                begun += count.begun(&frame);
                sent.extend_from_slice(&frame);
            }
            assert!(sent == encoded(&responses), "{responses:?}");
            assert_eq!(begun, responses.len());
            assert!(frames.is_empty());
            assert_eq!((frames.len(), frames.size_bytes()), (0, 0));
        }
    }

    #[test]
    fn small_ones_are_joined_and_large_ones_are_shared() {
        let event = |len: usize| EncodedEvent::from_encoded(vec![1; len].into());
        let response = |events: Vec<EncodedEvent>| WatchResponse {
            events,
            ..Default::default()
        };
        let make = Make {
            frame_bytes: 16 << 10,
            shares: true,
        };
        let mut frames = Frames::default();
        (0..10).for_each(|_| frames.push(response(vec![event(100)])));
        assert!(frames.next(make).expect("a frame").is_some());
        assert!(frames.is_empty());

        let large = event(100_000);
        frames.push(response(vec![event(1), large.clone()]));
        frames.push(response(vec![event(1)]));
        let mut sizes = Vec::new();
        while let Some(frame) = frames.next(make).expect("a frame") {
            if frame.len() == 100_000 {
                assert_eq!(frame.as_ptr(), large.encoded().as_ptr());
            }
            sizes.push(frame.len());
        }
        assert_eq!(sizes.len(), 3, "{sizes:?}");
        assert_eq!(sizes[1], 100_000);
    }
}
