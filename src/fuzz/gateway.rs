//! Requests of the JSON gateway: texts from any client.

use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};

use super::{Seed, memory};
use crate::gateway::descriptors::descriptors;
use crate::gateway::message;
use crate::gateway::values::Values;

/// What a parser holds beside what is counted: the text's strings, as such and decoded.
const BYTES_PER_BYTE: usize = 6;
const BYTES_FIXED: usize = 16 << 10;

/// A call's prefix, before its message.
const PREFIX_BYTES: usize = 5;

/// Messages of every shape: nested, lists of lists, enums, choices.
const MESSAGES: [&str; 6] = [
    "PutRequest",
    "TxnRequest",
    "WatchRequest",
    "AuthRoleGrantPermissionRequest",
    "MemberAddRequest",
    "AlarmRequest",
];

fn described(name: &str) -> MessageDescriptor {
    let found = descriptors().get_message_by_name(&format!("etcdserverpb.{name}"));
    found.expect("a message")
}

/// An input is the number of a message and a text. The text has the same values however it comes;
/// each is refused, or is a message that its own JSON gives again, in the room that was counted.
pub fn json(bytes: &[u8]) {
    let Some((number, text)) = bytes.split_first() else {
        return;
    };
    let message = described(MESSAGES[usize::from(*number) % MESSAGES.len()]);
    let values = split(text, text.len().max(1));
    assert_eq!(values, split(text, 1));
    for (value, parsed_bytes) in values {
        let limit_bytes = BYTES_FIXED + parsed_bytes + BYTES_PER_BYTE * value.len();
        let parsed = memory::within(limit_bytes, || message::framed(&message, &value));
        let Ok(framed) = parsed else {
            continue;
        };
        let decoded = DynamicMessage::decode(message.clone(), framed.slice(PREFIX_BYTES..));
        let decoded = decoded.expect("what was encoded decodes");
        let mut again = serde_json::Serializer::new(Vec::new());
        let options = SerializeOptions::new().use_proto_field_name(true);
        let written = decoded.serialize_with_options(&mut again, &options);
        written.expect("what was parsed can be written");
        let again = message::framed(&message, &again.into_inner());
        assert_eq!(again.expect("what was written can be parsed"), framed);
    }
}

/// The values of a text that comes in pieces, and what is counted for each.
fn split(text: &[u8], piece: usize) -> Vec<(Vec<u8>, usize)> {
    let (mut values, mut found, mut came) = (Values::default(), Vec::new(), Vec::new());
    for piece in text.chunks(piece) {
        came.extend_from_slice(piece);
        while let Some(end) = values.end(&came) {
            let parsed_bytes = std::mem::take(&mut values.parsed_bytes);
            found.push((came.drain(..end).collect(), parsed_bytes));
        }
    }
    found
}

pub fn json_seeds() -> Vec<Seed> {
    let seed = |name: &str, number: u8, text: &str| {
        let mut bytes = vec![number];
        bytes.extend_from_slice(text.as_bytes());
        Seed::new(name, bytes)
    };
    let many = |element: &str, count: usize| {
        let elements = vec![element; count].join(",");
        format!("{{\"compare\":[{elements}]}}")
    };
    vec![
        seed(
            "put",
            0,
            r#"{"key":"Zm9v","value":"_-8=","prevKv":true,"lease":"7"}"#,
        ),
        seed(
            "txn",
            1,
            r#"{"compare":[{"target":"VALUE","key":"YQ==","value":"Yg=="}],"success":[{"request_txn":{"success":[{"requestPut":{"key":"YQ=="}}]}},{"request_range":{"key":"YQ==","sort_order":2}}]}"#,
        ),
        seed("txn_of_nothing", 1, &many("{}", 2000)),
        seed("txn_of_keys", 1, &many(r#"{"key":""}"#, 1000)),
        seed("txn_of_words", 1, &many("null", 10)),
        seed(
            "watch",
            2,
            "{\"create_request\":{\"key\":\"YQ==\",\"filters\":[\"NOPUT\",1]}}\n{\"cancel_request\":{\"watch_id\":\"1\"}}",
        ),
        seed(
            "grant",
            3,
            r#"{"name":"r","perm":{"permType":"READWRITE","key":"AA==","range_end":"AA=="}}"#,
        ),
        seed(
            "add",
            4,
            r#"{"peerURLs":["http://a:1","\u00e9\"\\"],"isLearner":true}"#,
        ),
        seed(
            "alarm",
            5,
            r#"{"action":-1,"alarm":99,"memberID":18446744073709551615,"x":[[{}]]}"#,
        ),
        seed(
            "deep",
            1,
            &format!(
                "{}{}",
                r#"{"success":[{"request_txn":"#.repeat(60),
                "}]}".repeat(60)
            ),
        ),
        seed("broken", 0, r#"{"key":"a"#),
    ]
}
