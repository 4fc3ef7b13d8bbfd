//! Splits a response that is too large for one message, as etcd does.

use prost::encoding::encoded_len_varint;

use crate::proto::EncodedEvent;

/// The `fragment` field of a response, where it is true.
const FRAGMENT_FIELD_BYTES: usize = 2;

/// Splits the events of one response where it reaches `limit_bytes`: each message then stays
/// below it or holds one event. `base_bytes` is the encoded size of the response without events
/// and without `fragment`, a field that is true on all messages but the last.
pub fn fragments(
    events: Vec<EncodedEvent>,
    base_bytes: usize,
    limit_bytes: usize,
) -> Vec<Vec<EncodedEvent>> {
    let whole = base_bytes + events.iter().map(field_bytes).sum::<usize>();
    if whole < limit_bytes || events.len() < 2 {
        return vec![events];
    }
    let mut messages = Vec::new();
    let mut message = Vec::new();
    let empty = base_bytes + FRAGMENT_FIELD_BYTES;
    let mut size = empty;
    for event in events {
        let field = field_bytes(&event);
        if !message.is_empty() && size + field >= limit_bytes {
            messages.push(std::mem::take(&mut message));
            size = empty;
        }
        size += field;
        message.push(event);
    }
    messages.push(message);
    messages
}

/// The size of an event as field 11 of a response: one byte of tag, the length, the event.
fn field_bytes(event: &EncodedEvent) -> usize {
    let len = event.encoded().len();
    1 + encoded_len_varint(len as u64) + len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::WatchResponse;
    use prost::Message;

    fn event(len: usize) -> EncodedEvent {
        EncodedEvent::from_encoded(vec![0; len].into())
    }

    /// Sizes of the events of each message, for a response of 10 bytes and a limit of 100.
    fn split(sizes: &[usize]) -> Vec<Vec<usize>> {
        fragments(sizes.iter().map(|len| event(*len)).collect(), 10, 100)
            .iter()
            .map(|message| message.iter().map(|event| event.encoded().len()).collect())
            .collect()
    }

    #[test]
    fn splits_where_the_limit_is_reached() {
        let cases: &[(&[usize], &[&[usize]])] = &[
            (&[200], &[&[200]]),
            (&[43, 42], &[&[43, 42]]),
            (&[43, 43], &[&[43], &[43]]),
            (&[300, 1, 1], &[&[300], &[1, 1]]),
            (&[40, 40, 40, 40, 40], &[&[40, 40], &[40, 40], &[40]]),
            (&[42, 41, 1], &[&[42, 41], &[1]]),
            (&[42, 42, 1], &[&[42], &[42, 1]]),
        ];
        for (sizes, expected) in cases {
            assert_eq!(split(sizes), *expected, "{sizes:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_wire() {
        let plain = WatchResponse {
            watch_id: 7,
            ..Default::default()
        };
        for len in [0, 1, 127, 128, 20_000] {
            let full = WatchResponse {
                events: vec![event(len)],
                ..plain.clone()
            };
            let base = plain.encoded_len();
            assert_eq!(full.encoded_len(), base + field_bytes(&event(len)));
            let flagged = WatchResponse {
                fragment: true,
                ..plain.clone()
            };
            assert_eq!(flagged.encoded_len(), base + FRAGMENT_FIELD_BYTES);
        }
    }
}
