//! The numbers that etcd's world is made of, as types that cannot be mixed up.

mod address;
pub mod call_timeout;
mod timestamp;
pub mod version;

pub use address::{Address, Remote, socket_file};
pub use timestamp::timestamp;

use std::fmt;

/// This program's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this was built from, if the build said so.
pub const GIT_SHA: &str = match option_env!("ETCHED_GIT_SHA") {
    Some(sha) => sha,
    None => "unknown",
};

/// The compiler's release, where etcd names Go's.
pub const RUST_VERSION: &str = match option_env!("ETCHED_RUST_VERSION") {
    Some(version) => version,
    None => "unknown",
};

/// The highest cost of a password's hash that is computed. One that costs more fits no password:
/// nobody waits for the hours that it would take of a thread, which others wait for, and who may
/// change a user's password may store any hash.
pub const MAX_PASSWORD_COST: u32 = 22;

/// The etcd release whose behaviour this server has; clients read and parse it.
pub const ETCD_VERSION: &str = "3.7.3";

/// The format of etcd's storage that this server's state is equivalent to.
pub const STORAGE_VERSION: &str = version::NEWEST_TEXT;

/// A point in the history of the keyspace: `main` counts writing transactions, `sub` the changes
/// within one, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: i64,
}

impl Revision {
    pub const fn new(main: i64, sub: i64) -> Self {
        Self { main, sub }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// The revision of a store that nobody has written to.
pub const FIRST_REVISION: i64 = 1;

/// A lease's identity; 0 stands for "no lease" on the wire and never names one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    pub const NONE: LeaseId = LeaseId(0);

    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A member's identity, as etcd computes it (see `config`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A cluster's identity, as etcd computes it (see `config`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The keys `[start, end)`; `Point` is one key, `From` has no end.
///
/// On the wire: an empty `range_end` is a point, `"\0"` has no end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRange {
    Point(bytes::Bytes),
    Span(bytes::Bytes, bytes::Bytes),
    From(bytes::Bytes),
}

impl KeyRange {
    /// From the two fields of a request.
    pub fn from_wire(key: &bytes::Bytes, range_end: &bytes::Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Point(key.clone()),
            [0] => Self::From(key.clone()),
            _ => Self::Span(key.clone(), range_end.clone()),
        }
    }

    /// As a request has it.
    pub fn to_wire(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Point(key) => (key, b""),
            Self::Span(start, end) => (start, end),
            Self::From(start) => (start, b"\0"),
        }
    }

    pub fn start(&self) -> &bytes::Bytes {
        match self {
            Self::Point(start) | Self::Span(start, _) | Self::From(start) => start,
        }
    }

    /// The part behind `key`, which lies in it.
    pub fn behind(&self, key: &[u8]) -> Self {
        let mut start = key.to_vec();
        start.push(0);
        let start = bytes::Bytes::from(start);
        match self {
            Self::Span(_, end) => Self::Span(start, end.clone()),
            Self::Point(_) => Self::Span(start.clone(), start),
            Self::From(_) => Self::From(start),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Point(point) => point.as_ref() == key,
            Self::Span(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    /// True where a key can lie in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        // The later of the two beginnings lies in both then.
        let begins_in = |one: &Self, other: &Self| other.contains(one.start()) && !one.is_empty();
        begins_in(self, other) || begins_in(other, self)
    }

    /// True where no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Span(start, end) if start >= end)
    }
}
