//! A message of gRPC from its JSON, by prost-reflect.
//!
//! protobuf's mapping, as etcd's gateway is configured: names as in `proto/` or in lowerCamel,
//! what is unknown is passed over. prost-reflect takes the last of what is there twice; that is
//! looked for first.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, Bytes};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use tonic::Status;

const OPTIONS: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);

/// The message with its prefix, uncompressed.
///
/// # Errors
/// The text is no JSON of such a message; in the words that etcd's gateway has for it where they
/// are few.
pub fn framed(message: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    let message = parse(message, json).map_err(|error| {
        Status::invalid_argument(match error.classify() {
            Category::Eof => "unexpected EOF".to_owned(),
            _ => format!("proto: {error}"),
        })
    })?;
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| Status::resource_exhausted("too large"))?;
    let mut framed = Vec::with_capacity(length + 5);
    framed.put_u8(0);
    framed.put_u32(prefix);
    message.encode_raw(&mut framed);
    Ok(framed.into())
}

fn parse(message: &MessageDescriptor, json: &[u8]) -> serde_json::Result<DynamicMessage> {
    let parser = || serde_json::Deserializer::from_slice(json);
    Once(message).deserialize(&mut parser())?;
    DynamicMessage::deserialize_with_options(message.clone(), &mut parser(), &OPTIONS)
}

/// Walks through the JSON of a message, or of a list of them, and refuses a field that comes twice.
struct Once<'a>(&'a MessageDescriptor);

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            let by_json = self.0.get_field_by_json_name(&name);
            let Some(field) = by_json.or_else(|| self.0.get_field_by_name(&name)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&field.number()) {
                return Err(A::Error::custom(format_args!("duplicate field {name:?}")));
            }
            seen.push(field.number());
            match field.kind() {
                Kind::Message(message) => map.next_value_seed(Once(&message))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Once(self.0))?.is_some() {}
        Ok(())
    }

    // What else there is has another kind than a message, which the parser says.

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::descriptors::descriptors;

    fn parsed(name: &str, json: &str) -> Result<String, String> {
        let message = descriptors().get_message_by_name(&format!("etcdserverpb.{name}"));
        let message = message.expect("a message");
        let framed = framed(&message, json.as_bytes());
        let framed = framed.map_err(|status| status.message().to_owned())?;
        let decoded = DynamicMessage::decode(message, framed.slice(5..)).expect("a message");
        let options = prost_reflect::SerializeOptions::new().use_proto_field_name(true);
        let mut text = serde_json::Serializer::new(Vec::new());
        let written = decoded.serialize_with_options(&mut text, &options);
        written.expect("written");
        Ok(String::from_utf8(text.into_inner()).expect("a text"))
    }

    #[test]
    fn json_is_read_as_etcd_reads_it() {
        for (name, json, expected) in [
            ("PutRequest", "{}", "{}"),
            (
                "PutRequest",
                r#"{"key":"YQ","prevKv":true}"#,
                r#"{"key":"YQ==","prev_kv":true}"#,
            ),
            (
                "PutRequest",
                r#"{"key":"_-8=","lease":5}"#,
                r#"{"key":"/+8=","lease":"5"}"#,
            ),
            ("PutRequest", r#"{"nothing":{"a":[1]},"key":null}"#, "{}"),
            (
                "LeaseGrantRequest",
                r#"{"TTL":"60","ID":"7"}"#,
                r#"{"TTL":"60","ID":"7"}"#,
            ),
            ("LeaseGrantRequest", r#"{"ttl":60}"#, "{}"),
            (
                "RangeRequest",
                r#"{"sort_order":2,"sortTarget":"MOD"}"#,
                r#"{"sort_order":"DESCEND","sort_target":"MOD"}"#,
            ),
            ("RangeRequest", r#"{"sort_order":"SIDEWAYS"}"#, "{}"),
            (
                "Compare",
                r#"{"target":"VERSION","key":"YQ==","version":"0"}"#,
                r#"{"key":"YQ==","version":"0"}"#,
            ),
            ("Compare", r#"{"target_union":{"version":"0"}}"#, "{}"),
            (
                "PutRequest",
                r#"{"key":"YQ=="} behind"#,
                r#"{"key":"YQ=="}"#,
            ),
        ] {
            assert_eq!(parsed(name, json).as_deref(), Ok(expected), "{json}");
        }
        for (json, expected) in [
            ("", "unexpected EOF"),
            (r#"{"key":"#, "unexpected EOF"),
            (r#"{"key":5}"#, "proto: invalid type"),
            (r#"{"key":"!!"}"#, "proto: invalid base64"),
            (r#"{"lease":"x"}"#, "proto: invalid digit"),
            (r#"{"prev_kv":"true"}"#, "proto: invalid type"),
            ("[]", "proto: invalid type"),
            ("null", "proto: invalid type"),
            ("[", "unexpected EOF"),
            (
                r#"{"key":"YQ==","key":"YQ=="}"#,
                "proto: duplicate field \"key\"",
            ),
            (
                r#"{"prev_kv":true,"prevKv":true}"#,
                "proto: duplicate field \"prevKv\"",
            ),
            ("{,}", "proto: key must be a string"),
        ] {
            let refused = parsed("PutRequest", json).expect_err(json);
            assert!(refused.starts_with(expected), "{json}: {refused}");
        }
    }
}
