//! Who calls: what of a call's metadata tells callers apart, and what is passed on with a stream that
//! several share.

use tonic::metadata::MetadataMap;

/// The names of a token.
const TOKEN: [&str; 2] = ["token", "authorization"];
/// And of the wish for a leader.
const LEADER: &str = "hasleader";
const PASSED: [&str; 3] = [TOKEN[0], TOKEN[1], LEADER];

pub const NO_LEADER: &str = "etcdserver: no leader";

/// Callers with the same share streams. In bytes: a value need not be a text, and one that is none is
/// not the same as none.
pub type CallerKey = [Option<Vec<u8>>; PASSED.len()];

pub fn identity(metadata: &MetadataMap) -> CallerKey {
    PASSED.map(|name| Some(metadata.get(name)?.as_bytes().to_vec()))
}

/// What of a call's metadata a member is to see.
pub fn passed(metadata: &MetadataMap) -> MetadataMap {
    only(&PASSED, metadata)
}

/// What of it says who calls.
pub fn token(metadata: &MetadataMap) -> MetadataMap {
    only(&TOKEN, metadata)
}

fn only(names: &[&'static str], metadata: &MetadataMap) -> MetadataMap {
    let mut passed = MetadataMap::new();
    for name in names.iter().copied() {
        if let Some(value) = metadata.get(name) {
            passed.insert(name, value.clone());
        }
    }
    passed
}

pub fn needs_leader(metadata: &MetadataMap) -> bool {
    metadata.get(LEADER).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn every_token_is_its_callers_own() {
        let identities = [
            None,
            Some(&b"a"[..]),
            Some(b"b"),
            Some(b"\xff"),
            Some(b"\xfe"),
        ];
        let identities = identities.map(|token| {
            let mut headers = HeaderMap::new();
            if let Some(token) = token {
                let token = HeaderValue::from_bytes(token).expect("a value");
                headers.insert("token", token);
            }
            identity(&MetadataMap::from_headers(headers))
        });
        for (at, one) in identities.iter().enumerate() {
            assert!(!identities[at + 1..].contains(one), "{one:?}");
        }
    }
}
