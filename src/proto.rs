//! Generated code of `proto/`, and the messages that stay in their encoded form.
//!
//! A stored key-value pair is kept as the protobuf fields of `mvccpb.KeyValue` (see
//! `storage::schema`); answering a read or a watch copies those bytes behind a tag. The types
//! here carry such bytes through prost: on the wire they are exactly the messages they stand for.

use std::hash::{Hash, Hasher};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

mod redacted;
pub mod text;

pub mod etcdserverpb {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("etcdserverpb");
    pub use crate::proto::RangeResponse;
}
pub mod authpb {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("authpb");
}
pub mod membershippb {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("membershippb");
}
pub mod etchedpeer {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("etchedpeer");
}
pub mod v3lockpb {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("v3lockpb");
}
pub mod v3electionpb {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("v3electionpb");
}
pub mod health {
    #![allow(clippy::all, dead_code, missing_docs)]
    tonic::include_proto!("grpc.health.v1");
}

/// `mvccpb.KeyValue`, spelled out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// `mvccpb.Event`, spelled out; `r#type` is 0 for PUT, 1 for DELETE.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(int32, tag = "1")]
    pub r#type: i32,
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
    #[prost(message, optional, tag = "3")]
    pub prev_kv: Option<KeyValue>,
}

/// A message held as its own encoding; equal on the wire to the message `M` it stands for.
macro_rules! encoded_message {
    ($(#[$doc:meta])* $name:ident, $plain:ty) => {
        $(#[$doc])*
        #[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
        pub struct $name(Bytes);

        impl $name {
            /// Takes bytes that already are the encoding of the message.
            pub fn from_encoded(bytes: Bytes) -> Self {
                Self(bytes)
            }

            pub fn encoded(&self) -> &Bytes {
                &self.0
            }

            pub fn decoded(&self) -> Result<$plain, DecodeError> {
                prost::Message::decode(self.0.clone())
            }
        }

        impl From<&$plain> for $name {
            fn from(plain: &$plain) -> Self {
                Self(prost::Message::encode_to_vec(plain).into())
            }
        }

        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.0);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                let mut plain = self.decoded()?;
                plain.merge_field(tag, wire_type, buf, ctx)?;
                *self = Self::from(&plain);
                Ok(())
            }

            fn encoded_len(&self) -> usize {
                self.0.len()
            }

            fn clear(&mut self) {
                self.0 = Bytes::new();
            }
        }
    };
}

encoded_message!(
    /// `mvccpb.KeyValue` in its encoded form.
    EncodedKv,
    KeyValue
);
encoded_message!(
    /// `mvccpb.Event` in its encoded form.
    EncodedEvent,
    Event
);

/// Appends a length-delimited field to `buf`.
pub fn put_bytes_field(buf: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    begin_nested(tag, bytes.len(), buf);
    buf.put_slice(bytes);
}

/// Appends a varint field to `buf`; as in proto3, zero is left out.
pub fn put_varint_field(buf: &mut impl BufMut, tag: u32, value: i64) {
    if value != 0 {
        encoding::encode_key(tag, WireType::Varint, buf);
        encoding::encode_varint(value as u64, buf);
    }
}

/// What a field takes that holds a message, or bytes, of this length; its tag is below 16.
pub fn nested_len(message_bytes: usize) -> usize {
    1 + encoding::encoded_len_varint(message_bytes as u64) + message_bytes
}

/// Begins a field that holds a message, or bytes, of this length.
pub fn begin_nested(tag: u32, message_bytes: usize, buf: &mut impl BufMut) {
    encoding::encode_key(tag, WireType::LengthDelimited, buf);
    encoding::encode_varint(message_bytes as u64, buf);
}

/// The field of `RangeResponse` that holds a pair.
pub const RANGE_KVS_TAG: u32 = 2;

/// Pairs in answer order, each already framed as field 2 of a `RangeResponse`. They are kept in
/// chunks, so that nothing is copied to make room for more; where one ends means nothing.
#[derive(Clone, Default, Debug)]
pub struct EncodedKvs {
    chunks: Vec<Bytes>,
    len: usize,
}

impl EncodedKvs {
    /// `len` pairs; one may continue in the next chunk.
    pub fn from_chunks(chunks: Vec<Bytes>, len: usize) -> Self {
        Self { chunks, len }
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pairs as `from_chunks` takes them.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// All chunks as one; several are copied.
    pub fn frames(&self) -> Bytes {
        match self.chunks.as_slice() {
            [only] => only.clone(),
            chunks => chunks.concat().into(),
        }
    }

    pub fn size_bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    pub fn decoded(&self) -> Result<Vec<KeyValue>, DecodeError> {
        let mut frames = self.frames();
        let mut pairs = Vec::with_capacity(self.len);
        while frames.has_remaining() {
            encoding::decode_key(&mut frames)?;
            let mut pair = KeyValue::default();
            encoding::message::merge(
                WireType::LengthDelimited,
                &mut pair,
                &mut frames,
                DecodeContext::default(),
            )?;
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

impl PartialEq for EncodedKvs {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.frames() == other.frames()
    }
}

impl Eq for EncodedKvs {}

impl Hash for EncodedKvs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.frames().hash(state);
    }
}

/// `etcdserverpb.RangeResponse` with its pairs in encoded form.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct RangeResponse {
    pub header: Option<etcdserverpb::ResponseHeader>,
    pub kvs: EncodedKvs,
    pub more: bool,
    pub count: i64,
}

impl RangeResponse {
    /// What the message holds before its pairs.
    pub fn encode_before_kvs(&self, buf: &mut impl BufMut) {
        if let Some(header) = &self.header {
            encoding::message::encode(1, header, buf);
        }
    }

    /// And behind them.
    pub fn encode_behind_kvs(&self, buf: &mut impl BufMut) {
        put_varint_field(buf, 3, i64::from(self.more));
        put_varint_field(buf, 4, self.count);
    }
}

impl prost::Message for RangeResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.encode_before_kvs(buf);
        for chunk in &self.kvs.chunks {
            buf.put_slice(chunk);
        }
        self.encode_behind_kvs(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => encoding::message::merge(
                wire_type,
                self.header.get_or_insert_with(Default::default),
                buf,
                ctx,
            ),
            RANGE_KVS_TAG => {
                let mut pair = Bytes::new();
                encoding::bytes::merge(wire_type, &mut pair, buf, ctx)?;
                // Not copied: nobody else holds them.
                let chunk = self.kvs.chunks.pop().unwrap_or_default();
                let mut frames = BytesMut::from(chunk);
                put_bytes_field(&mut frames, RANGE_KVS_TAG, &pair);
                self.kvs.chunks.push(frames.freeze());
                self.kvs.len += 1;
                Ok(())
            }
            3 => encoding::bool::merge(wire_type, &mut self.more, buf, ctx),
            4 => encoding::int64::merge(wire_type, &mut self.count, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let header = self
            .header
            .as_ref()
            .map_or(0, |header| encoding::message::encoded_len(1, header));
        let more = if self.more { 2 } else { 0 };
        let count = if self.count == 0 {
            0
        } else {
            1 + encoding::encoded_len_varint(self.count as u64)
        };
        header + self.kvs.size_bytes() + more + count
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn range_response_is_the_message_it_stands_for() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct Plain {
            #[prost(message, optional, tag = "1")]
            header: Option<etcdserverpb::ResponseHeader>,
            #[prost(message, repeated, tag = "2")]
            kvs: Vec<KeyValue>,
            #[prost(bool, tag = "3")]
            more: bool,
            #[prost(int64, tag = "4")]
            count: i64,
        }
        let plain = Plain {
            header: Some(etcdserverpb::ResponseHeader {
                revision: 7,
                ..Default::default()
            }),
            kvs: (0..3u8)
                .map(|n| KeyValue {
                    key: vec![n].into(),
                    value: vec![n; 300].into(),
                    lease: i64::from(n),
                    ..Default::default()
                })
                .collect(),
            more: true,
            count: 1 << 40,
        };
        let ours = RangeResponse::decode(plain.encode_to_vec().as_slice()).expect("decodes");
        assert_eq!(ours.kvs.len(), 3);
        assert_eq!(ours.kvs.decoded().expect("decodes"), plain.kvs);
        assert_eq!(ours.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(ours.encoded_len(), plain.encoded_len());
    }

    #[test]
    fn encoded_event_round_trips() {
        let event = Event {
            r#type: 1,
            kv: Some(KeyValue {
                key: "a".into(),
                mod_revision: 9,
                ..Default::default()
            }),
            prev_kv: None,
        };
        let encoded = EncodedEvent::from(&event);
        let wire = encoded.encode_to_vec();
        assert_eq!(wire, event.encode_to_vec());
        let back = EncodedEvent::decode(wire.as_slice()).expect("decodes");
        assert_eq!(back.decoded().expect("decodes"), event);
    }
}
