//! How scripts write keys, values and ranges.
//!
//! Bytes are written as text, with `\xNN` for what cannot be seen and `""` for none. A range is
//! `k` for a key, `a..c` for `[a, c)`, `a..` for everything from `a`.

use std::fmt::Write;

use bytes::Bytes;

use crate::proto::{Event, KeyValue};
use crate::types::KeyRange;

pub fn bytes(text: &str) -> Bytes {
    if text == "\"\"" {
        return Bytes::new();
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        if let [b'\\', b'x', high, low, ..] = rest {
            let digits = [*high, *low];
            let digits = std::str::from_utf8(&digits).expect("hex digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("hex digits"));
            rest = &rest[4..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    bytes.into()
}

pub fn show_bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "\"\"".to_owned();
    }
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writes"),
        }
    }
    text
}

pub fn range(text: &str) -> KeyRange {
    match text.split_once("..") {
        None => KeyRange::Point(bytes(text)),
        Some((start, "")) => KeyRange::From(bytes(start)),
        Some((start, end)) => KeyRange::Span(bytes(start), bytes(end)),
    }
}

/// The number of `name=N` among `words`.
pub fn number(words: &[&str], name: &str) -> Option<i64> {
    let value = words
        .iter()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.parse().expect("a number"))
}

pub fn show_kv(kv: &KeyValue) -> String {
    let mut text = format!(
        "{}={} c{} m{} v{}",
        show_bytes(&kv.key),
        show_bytes(&kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    );
    if kv.lease != 0 {
        write!(text, " l{}", kv.lease).expect("writes");
    }
    text
}

pub fn show_event(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let mut text = match event.r#type {
        0 => format!("put {}", show_kv(&kv)),
        _ => format!("del {} m{}", show_bytes(&kv.key), kv.mod_revision),
    };
    if let Some(prev_kv) = &event.prev_kv {
        write!(text, " was {}", show_kv(prev_kv)).expect("writes");
    }
    text
}
