//! Who calls: what of a call's metadata tells callers apart, and what is passed on with a stream that
//! several share.

use tonic::metadata::MetadataMap;

/// The names of a token, and of the wish for a leader.
const PASSED: [&str; 3] = ["token", "authorization", "hasleader"];

pub const NO_LEADER: &str = "etcdserver: no leader";

/// Callers with the same share streams.
pub type Identity = [Option<String>; PASSED.len()];

pub fn identity(metadata: &MetadataMap) -> Identity {
    PASSED.map(|name| {
        let value = metadata.get(name)?;
        value.to_str().ok().map(str::to_owned)
    })
}

/// What of a call's metadata a member is to see.
pub fn passed(metadata: &MetadataMap) -> MetadataMap {
    let mut passed = MetadataMap::new();
    for name in PASSED {
        if let Some(value) = metadata.get(name) {
            passed.insert(name, value.clone());
        }
    }
    passed
}

pub fn needs_leader(metadata: &MetadataMap) -> bool {
    metadata
        .get("hasleader")
        .is_some_and(|value| value == "true")
}
