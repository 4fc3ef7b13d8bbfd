//! The messages of an answer as JSON, while they come.
//!
//! A message is never held as a whole: what is small in it is decoded and written by
//! prost-reflect, what is large is opened, its own parts written as they come. So an answer
//! of any size takes the room of its largest value. The order of names in an object follows
//! from that: what is neither a list of messages nor a large message comes last.

use bytes::{Buf, Bytes, BytesMut};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use tonic::Status;

/// Of a message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const MAX_VARINT_BYTES: usize = 10;
/// Smaller messages are decoded as a whole.
const WHOLE_BYTES: usize = 32 << 10;

/// As etcd's gateway is configured.
const OPTIONS: SerializeOptions = SerializeOptions::new().use_proto_field_name(true);

/// How messages stand in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One object.
    Object,
    /// A line for each.
    Lines,
}

/// Writes the JSON of the messages of one answer.
pub struct Text {
    message: MessageDescriptor,
    shape: Shape,
    /// Came and is not written.
    bytes: BytesMut,
    /// The messages that are open, each within the one before; none between two messages.
    open: Vec<Open>,
    whole_bytes: usize,
}

/// A message of which a part is written.
struct Open {
    message: MessageDescriptor,
    /// So much of it is to come.
    left: usize,
    /// The list that is open.
    list: Option<u32>,
    /// Lists that were closed.
    closed: Vec<u32>,
    /// What is written in the end.
    rest: Vec<u8>,
    is_empty: bool,
}

/// A field that has come as a whole, or the beginning of one.
struct Field {
    descriptor: Option<FieldDescriptor>,
    /// Of the key and, where there is one, the length.
    head_bytes: usize,
    content_bytes: usize,
    is_delimited: bool,
}

impl Field {
    fn is_message(&self) -> bool {
        let descriptor = self.descriptor.as_ref();
        self.is_delimited
            && descriptor.is_some_and(|one| !one.is_map() && matches!(one.kind(), Kind::Message(_)))
    }
}

fn malformed(reason: impl std::fmt::Display) -> Status {
    Status::internal(format!("an answer that is no message: {reason}"))
}

impl Text {
    pub fn new(message: MessageDescriptor, shape: Shape) -> Self {
        Self {
            message,
            shape,
            bytes: BytesMut::new(),
            open: Vec::new(),
            whole_bytes: WHOLE_BYTES,
        }
    }

    /// Whether all that was begun is written.
    pub fn is_between(&self) -> bool {
        self.open.is_empty() && self.bytes.is_empty()
    }

    /// Takes what came next, and writes what can be written.
    ///
    /// # Errors
    /// What came is no message of gRPC.
    pub fn feed(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        self.bytes.extend_from_slice(data);
        loop {
            let Some(mut open) = self.open.pop() else {
                if !self.begin(out)? {
                    return Ok(());
                }
                continue;
            };
            if open.left == 0 {
                open.end(out)?;
                if self.open.is_empty() && self.shape == Shape::Lines {
                    out.extend_from_slice(b"}\n");
                }
                continue;
            }
            let Some(field) = open.field(&self.bytes)? else {
                self.open.push(open);
                return Ok(());
            };
            let descends = field.is_message() && field.content_bytes > self.whole_bytes;
            if !descends && self.bytes.len() < field.head_bytes + field.content_bytes {
                self.open.push(open);
                return Ok(());
            }
            let nested = open.take(&field, descends, &mut self.bytes, out)?;
            self.open.push(open);
            self.open.extend(nested);
        }
    }

    /// Begins a message, if its prefix has come.
    fn begin(&mut self, out: &mut Vec<u8>) -> Result<bool, Status> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(false);
        };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(malformed("it is compressed"));
        }
        self.bytes.advance(PREFIX_BYTES);
        if self.shape == Shape::Lines {
            out.extend_from_slice(b"{\"result\":");
        }
        let length = u32::from_be_bytes(length) as usize;
        self.open.push(Open::new(self.message.clone(), length, out));
        Ok(true)
    }
}

impl Open {
    fn new(message: MessageDescriptor, left: usize, out: &mut Vec<u8>) -> Self {
        out.push(b'{');
        Self {
            message,
            left,
            list: None,
            closed: Vec::new(),
            rest: Vec::new(),
            is_empty: true,
        }
    }

    /// The field that `bytes` begin with; none where too little of it has come.
    fn field(&self, bytes: &[u8]) -> Result<Option<Field>, Status> {
        let bytes = &bytes[..bytes.len().min(self.left)];
        let is_all = bytes.len() == self.left;
        let Some((key, key_bytes)) = varint(bytes, is_all)? else {
            return Ok(None);
        };
        let (head_bytes, content_bytes) = match key & 7 {
            0 => match varint(&bytes[key_bytes..], is_all)? {
                Some((_, content_bytes)) => (key_bytes, content_bytes),
                None => return Ok(None),
            },
            1 => (key_bytes, 8),
            2 => match varint(&bytes[key_bytes..], is_all)? {
                Some((length, bytes)) => (key_bytes + bytes, length as usize),
                None => return Ok(None),
            },
            5 => (key_bytes, 4),
            _ => return Err(malformed("a field of an unknown kind")),
        };
        if content_bytes > self.left - head_bytes.min(self.left) {
            return Err(malformed("a field is longer than its message"));
        }
        let number = u32::try_from(key >> 3).unwrap_or_default();
        Ok(Some(Field {
            descriptor: self.message.get_field(number),
            head_bytes,
            content_bytes,
            is_delimited: key & 7 == 2,
        }))
    }

    /// Takes a field that has come, or opens the message that it begins.
    fn take(
        &mut self,
        field: &Field,
        descends: bool,
        bytes: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<Option<Self>, Status> {
        self.left -= field.head_bytes + field.content_bytes;
        let (Some(descriptor), true) = (&field.descriptor, field.is_message()) else {
            let whole = bytes.split_to(field.head_bytes + field.content_bytes);
            self.rest.extend_from_slice(&whole);
            return Ok(None);
        };
        let Kind::Message(message) = descriptor.kind() else {
            return Err(malformed("a field of another kind"));
        };
        if !descends && !descriptor.is_list() {
            let whole = bytes.split_to(field.head_bytes + field.content_bytes);
            self.rest.extend_from_slice(&whole);
            return Ok(None);
        }
        self.name(descriptor, out)?;
        bytes.advance(field.head_bytes);
        if descends {
            return Ok(Some(Self::new(message, field.content_bytes, out)));
        }
        let content = bytes.split_to(field.content_bytes).freeze();
        write(message, content, out)?;
        Ok(None)
    }

    /// Writes what stands before a message: its name, or a comma where its list is open.
    fn name(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>) -> Result<(), Status> {
        if self.list == Some(field.number()) {
            out.push(b',');
            return Ok(());
        }
        self.close_list(out);
        if self.closed.contains(&field.number()) {
            return Err(malformed("a field in two parts"));
        }
        self.separate(out);
        out.push(b'"');
        out.extend_from_slice(field.name().as_bytes());
        out.extend_from_slice(b"\":");
        if field.is_list() {
            out.push(b'[');
            self.list = Some(field.number());
        } else {
            self.closed.push(field.number());
        }
        Ok(())
    }

    fn close_list(&mut self, out: &mut Vec<u8>) {
        if let Some(number) = self.list.take() {
            self.closed.push(number);
            out.push(b']');
        }
    }

    fn separate(&mut self, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.is_empty) {
            out.push(b',');
        }
    }

    fn end(mut self, out: &mut Vec<u8>) -> Result<(), Status> {
        self.close_list(out);
        let mut rest = Vec::new();
        let bytes = std::mem::take(&mut self.rest);
        write(self.message.clone(), bytes.into(), &mut rest)?;
        // Without its brackets.
        if let [b'{', names @ .., b'}'] = &rest[..]
            && !names.is_empty()
        {
            self.separate(out);
            out.extend_from_slice(names);
        }
        out.push(b'}');
        Ok(())
    }
}

/// What `bytes` begin with, and how many of them it takes; none where too few have come.
fn varint(bytes: &[u8], is_all: bool) -> Result<Option<(u64, usize)>, Status> {
    let mut cursor = bytes;
    match prost::encoding::decode_varint(&mut cursor) {
        Ok(value) => Ok(Some((value, bytes.len() - cursor.len()))),
        Err(_) if !is_all && bytes.len() < MAX_VARINT_BYTES => Ok(None),
        Err(error) => Err(malformed(error)),
    }
}

fn write(message: MessageDescriptor, content: Bytes, out: &mut Vec<u8>) -> Result<(), Status> {
    let message = DynamicMessage::decode(message, content).map_err(malformed)?;
    let mut serializer = serde_json::Serializer::new(out);
    let written = message.serialize_with_options(&mut serializer, &OPTIONS);
    written.map_err(malformed)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::*;
    use crate::gateway::descriptors::descriptors;

    fn message(name: &str) -> MessageDescriptor {
        let found = descriptors().get_message_by_name(&format!("etcdserverpb.{name}"));
        found.expect("a message")
    }

    fn framed(name: &str, json: &serde_json::Value) -> Vec<u8> {
        let text = json.to_string();
        let message = DynamicMessage::deserialize(
            message(name),
            &mut serde_json::Deserializer::from_str(&text),
        );
        let message = message.expect("a message").encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.extend_from_slice(&message);
        framed
    }

    fn text(name: &str, shape: Shape, data: &[u8], piece: usize, whole_bytes: usize) -> String {
        let mut text = Text {
            whole_bytes,
            ..Text::new(message(name), shape)
        };
        let mut out = Vec::new();
        for piece in data.chunks(piece) {
            text.feed(piece, &mut out).expect("a message");
        }
        assert!(text.is_between());
        String::from_utf8(out).expect("a text")
    }

    #[test]
    fn a_message_is_the_same_however_it_comes() {
        let kv = json!({"key": "YQ==", "create_revision": "5", "value": "dmFsdWU="});
        let range = json!({
            "header": {"cluster_id": "18446744073709551615", "revision": "-1"},
            "kvs": [kv, {"key": "Yg=="}, {}],
            "more": true,
            "count": "3",
        });
        let txn = json!({
            "header": {"revision": "7"},
            "succeeded": true,
            "responses": [
                {"response_range": range},
                {"response_put": {"header": {"revision": "7"}, "prev_kv": kv}},
                {"response_txn": {"responses": [{"response_range": {}}]}},
                {},
            ],
        });
        let status = json!({"dbSize": "1", "errors": ["a", "b"], "downgradeInfo": {}});
        let user = json!({"roles": ["x", "y"]});
        for (name, value) in [
            ("RangeResponse", &range),
            ("RangeResponse", &json!({})),
            ("TxnResponse", &txn),
            ("StatusResponse", &status),
            ("AuthUserGetResponse", &user),
        ] {
            let data = framed(name, value);
            for piece in [1, 2, 7, 1000] {
                for whole_bytes in [0, 3, 20, 1000] {
                    let found = text(name, Shape::Object, &data, piece, whole_bytes);
                    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
                    assert_eq!(&found, value, "{name} by {piece}, {whole_bytes}");
                }
            }
        }
    }

    #[test]
    fn each_message_of_a_stream_is_a_line() {
        let mut data = framed("WatchResponse", &json!({"created": true}));
        let event = json!({"type": "DELETE", "kv": {"key": "YQ=="}});
        data.extend(framed("WatchResponse", &json!({"events": [event]})));
        let found = text("WatchResponse", Shape::Lines, &data, 3, WHOLE_BYTES);
        assert_eq!(
            found,
            "{\"result\":{\"created\":true}}\n\
             {\"result\":{\"events\":[{\"type\":\"DELETE\",\"kv\":{\"key\":\"YQ==\"}}]}}\n"
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            &b"\x01\0\0\0\0"[..],
            b"\0\0\0\0\x02\x12\x05",
            b"\0\0\0\0\x01\x80",
            b"\0\0\0\0\x02\x13\x00",
        ] {
            let mut text = Text::new(message("RangeResponse"), Shape::Object);
            let refused = text.feed(bad, &mut Vec::new());
            assert!(refused.is_err(), "{bad:?}");
        }
    }
}
