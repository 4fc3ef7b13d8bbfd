//! Batches of messages: their encoding and decoding.
//!
//! Raft messages are encoded directly into the connection's buffer: a batch has the wire format of
//! `etchedpeer.MessageBatch` without being built as one.

use bytes::BufMut;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::PeerMessage;
use crate::error::Error;
use crate::proto::etchedpeer::{self, LaneAnswer, MessageBatch, peer_message};
use crate::raft::{Malformed, Message, MessageType, admit};

/// Bytes that tonic encodes before it passes them to the connection.
const BUFFER_BYTES: usize = 64 << 10;

const MESSAGES_TAG: u32 = 1;
const PROBE_TAG: u32 = 2;
const RAFT_TAG: u32 = 1;
const FORWARDED_TAG: u32 = 2;
const REFUSED_TAG: u32 = 3;

/// An outgoing batch.
pub struct OutgoingBatch {
    messages: Vec<Outgoing>,
    probe: u64,
    /// Of the whole encoding.
    len: usize,
}

struct Outgoing {
    payload: OutgoingPayload,
    payload_len: usize,
}

enum OutgoingPayload {
    Raft(Message),
    Forwarded(etchedpeer::Forwarded),
    Refused(etchedpeer::Refused),
}

impl OutgoingBatch {
    pub fn new(messages: Vec<PeerMessage>, probe: Option<u64>) -> Self {
        let probe = probe.unwrap_or_default();
        let mut len = match probe {
            0 => 0,
            probe => key_len(PROBE_TAG) + encoded_len_varint(probe),
        };
        let mut outgoing = Vec::with_capacity(messages.len());
        for message in messages {
            let payload = OutgoingPayload::from(message);
            let payload_len = payload.encoded_len();
            len += framed_len(MESSAGES_TAG, framed_len(payload.tag(), payload_len));
            outgoing.push(Outgoing {
                payload,
                payload_len,
            });
        }
        Self {
            messages: outgoing,
            probe,
            len,
        }
    }

    /// Payload bytes, without framing.
    pub fn payload_bytes(&self) -> usize {
        self.messages
            .iter()
            .map(|message| message.payload_len)
            .sum()
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        for Outgoing {
            payload,
            payload_len,
        } in &self.messages
        {
            let message_len = framed_len(payload.tag(), *payload_len);
            encode_key(MESSAGES_TAG, WireType::LengthDelimited, buffer);
            encode_varint(message_len as u64, buffer);
            encode_key(payload.tag(), WireType::LengthDelimited, buffer);
            encode_varint(*payload_len as u64, buffer);
            payload.encode(buffer);
        }
        if self.probe != 0 {
            encode_key(PROBE_TAG, WireType::Varint, buffer);
            encode_varint(self.probe, buffer);
        }
    }
}

fn framed_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

impl OutgoingPayload {
    fn tag(&self) -> u32 {
        match self {
            Self::Raft(_) => RAFT_TAG,
            Self::Forwarded(_) => FORWARDED_TAG,
            Self::Refused(_) => REFUSED_TAG,
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Raft(message) => prost_11::Message::encoded_len(message),
            Self::Forwarded(message) => message.encoded_len(),
            Self::Refused(message) => message.encoded_len(),
        }
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        match self {
            Self::Raft(message) => prost_11::Message::encode_raw(message, buffer),
            Self::Forwarded(message) => message.encode_raw(buffer),
            Self::Refused(message) => message.encode_raw(buffer),
        }
    }
}

impl From<PeerMessage> for OutgoingPayload {
    fn from(message: PeerMessage) -> Self {
        match message {
            PeerMessage::Raft(message) => Self::Raft(message),
            PeerMessage::Forwarded(message) => Self::Forwarded(message),
            PeerMessage::Refused {
                request_id,
                term,
                error,
            } => Self::Refused(etchedpeer::Refused {
                request_id,
                term,
                error: error.text().to_owned(),
            }),
        }
    }
}

/// A batch in its wire format.
#[cfg(any(test, feature = "fuzzing"))]
pub fn encoded(messages: Vec<PeerMessage>, probe: Option<u64>) -> Vec<u8> {
    let batch = OutgoingBatch::new(messages, probe);
    let mut bytes = Vec::with_capacity(batch.len);
    batch.encode(&mut bytes);
    bytes
}

/// A newer member may send an error that this one does not know: the outcome is then unknown, which
/// a timeout expresses.
fn refused(message: &etchedpeer::Refused) -> PeerMessage {
    PeerMessage::Refused {
        request_id: message.request_id,
        term: message.term,
        error: Error::from_text(&message.error).unwrap_or(Error::Timeout),
    }
}

/// A batch that was received.
#[derive(Debug, Default)]
pub struct Incoming {
    pub messages: Vec<PeerMessage>,
    /// Of messages that are rejected before raft, the last one's fault.
    pub malformed: Option<Malformed>,
}

/// Decodes a received batch; the error names what is wrong with a message.
pub fn read(batch: MessageBatch) -> Result<Incoming, String> {
    // Not preallocated: an empty message takes two bytes on the wire.
    let mut incoming = Incoming::default();
    for message in batch.messages {
        // A field of a newer version.
        let Some(message) = message.message else {
            continue;
        };
        incoming.messages.push(match message {
            peer_message::Message::Raft(bytes) => {
                let message = read_raft(bytes)?;
                if let Err(fault) = admit::check_form(&message) {
                    incoming.malformed = Some(fault);
                    continue;
                }
                PeerMessage::Raft(message)
            }
            peer_message::Message::Forwarded(message) => PeerMessage::Forwarded(message),
            peer_message::Message::Refused(message) => refused(&message),
        });
    }
    Ok(incoming)
}

/// Decodes a raft message, which may be malformed.
fn read_raft(bytes: bytes::Bytes) -> Result<Message, String> {
    prost_11::Message::decode(bytes).map_err(|error| format!("a message of raft's: {error}"))
}

/// Decodes a raft snapshot message.
pub fn read_snapshot(bytes: bytes::Bytes) -> Result<Message, String> {
    let message = read_raft(bytes)?;
    admit::check_form(&message).map_err(|fault| format!("a message of raft's: {fault}"))?;
    if message.msg_type != MessageType::MsgSnapshot as i32 {
        return Err("a message of raft's that is no raft snapshot message".to_owned());
    }
    Ok(message)
}

/// The codec of a lane's caller.
pub struct LaneCodec;

impl Codec for LaneCodec {
    type Encode = OutgoingBatch;
    type Decode = LaneAnswer;
    type Encoder = BatchEncoder;
    type Decoder = <ProstCodec<LaneAnswer, LaneAnswer> as Codec>::Decoder;

    fn encoder(&mut self) -> BatchEncoder {
        BatchEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<LaneAnswer, LaneAnswer>::default().decoder()
    }
}

pub struct BatchEncoder;

impl Encoder for BatchEncoder {
    type Item = OutgoingBatch;
    type Error = Status;

    fn encode(&mut self, batch: OutgoingBatch, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(batch.len);
        batch.encode(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etchedpeer::forwarded::Proposal;
    use raft_proto::eraftpb::Entry;

    fn append(bytes: usize) -> Message {
        Message {
            msg_type: MessageType::MsgAppend as i32,
            from: 1,
            to: 2,
            term: 9,
            index: 6,
            log_term: 9,
            entries: (7..=8)
                .map(|index| Entry {
                    index,
                    term: 9,
                    data: vec![3; bytes],
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_batch_is_the_message_it_stands_for() {
        let forwarded = etchedpeer::Forwarded {
            request_id: 5,
            term: 3,
            proposal: Some(Proposal::Request("x".into())),
            trace: Bytes::from_static(&[7; 24]),
        };
        let messages = vec![
            PeerMessage::Raft(append(1_000)),
            PeerMessage::Raft(Message::default()),
            PeerMessage::Raft(append(0)),
            PeerMessage::Forwarded(forwarded.clone()),
            PeerMessage::Refused {
                request_id: 8,
                term: 5,
                error: Error::NotLeader,
            },
        ];
        let batch = OutgoingBatch::new(messages.clone(), Some(300));
        let bytes = encoded(messages, Some(300));
        assert_eq!(bytes.len(), batch.len);
        let plain = MessageBatch::decode(bytes.as_slice()).expect("decodes");
        assert_eq!(plain.probe, 300);
        assert_eq!(plain.encode_to_vec(), bytes);
        let Incoming {
            messages,
            malformed,
        } = read(plain).expect("reads");
        assert_eq!(malformed, Some(Malformed::Kind(0)));
        assert!(matches!(&messages[0], PeerMessage::Raft(found) if *found == append(1_000)));
        assert!(matches!(&messages[1], PeerMessage::Raft(found) if *found == append(0)));
        assert!(matches!(&messages[2], PeerMessage::Forwarded(found) if *found == forwarded));
        assert!(matches!(
            messages[3],
            PeerMessage::Refused {
                request_id: 8,
                term: 5,
                error: Error::NotLeader
            }
        ));
        assert_eq!(messages.len(), 4);
    }

    use bytes::Bytes;

    /// `Forwarded` of members from before it could name a trace.
    #[derive(Clone, PartialEq, prost::Message)]
    struct WithoutTrace {
        #[prost(uint64, tag = "1")]
        request_id: u64,
        #[prost(uint64, tag = "2")]
        term: u64,
        #[prost(bytes = "bytes", optional, tag = "3")]
        request: Option<Bytes>,
    }

    #[test]
    fn members_that_know_no_traces_are_understood_and_understand() {
        let older = WithoutTrace {
            request_id: 5,
            term: 3,
            request: Some("x".into()),
        };
        let mut forwarded = etchedpeer::Forwarded {
            request_id: 5,
            term: 3,
            proposal: Some(Proposal::Request("x".into())),
            trace: Bytes::new(),
        };
        // What is in no trace is not a byte longer.
        assert_eq!(forwarded.encode_to_vec(), older.encode_to_vec());
        let decoded = etchedpeer::Forwarded::decode(older.encode_to_vec().as_slice());
        assert_eq!(decoded.as_ref(), Ok(&forwarded));
        forwarded.trace = Bytes::from_static(&[7; 24]);
        let read = WithoutTrace::decode(forwarded.encode_to_vec().as_slice());
        assert_eq!(read, Ok(older));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let broken = etchedpeer::PeerMessage {
            message: Some(peer_message::Message::Raft(vec![0xff; 3].into())),
        };
        let batch = MessageBatch {
            messages: vec![broken],
            probe: 0,
        };
        let error = read(batch).expect_err("no message");
        assert!(error.starts_with("a message of raft's: "), "{error}");
        let unknown = etchedpeer::Refused {
            request_id: 1,
            term: 2,
            error: "of tomorrow".to_owned(),
        };
        assert!(matches!(
            refused(&unknown),
            PeerMessage::Refused {
                request_id: 1,
                term: 2,
                error: Error::Timeout
            }
        ));
    }
}
