//! The keys that a user may read and write: two sets of intervals, over all roles it holds.
//!
//! A set is sorted and joined when it is made, so that an answer is one binary search: intervals
//! that overlap or touch have become one, and a range that is allowed lies in a single interval.
//!
//! A range without keys, whose end is not above its start, is allowed where its start is. etcd's
//! verdict on such a range depends on the shape of its tree; no key is read or written either way.

use bytes::Bytes;

use crate::proto::authpb::Permission;
use crate::proto::authpb::permission::Type;

/// The end of a range that is open, as requests and permissions have it.
const OPEN: &[u8] = b"\0";

/// The keys from a start on, up to an end or, without one, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    start: Bytes,
    end: Option<Bytes>,
}

impl Interval {
    fn of(permission: &Permission) -> Self {
        let start = Bytes::copy_from_slice(&permission.key);
        let end = match permission.range_end.as_ref() {
            OPEN => None,
            b"" => Some([start.as_ref(), b"\0"].concat().into()),
            end => Some(Bytes::copy_from_slice(end)),
        };
        Self { start, end }
    }

    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end.as_ref() >= key)
    }
}

/// Keys, as sorted intervals with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    intervals: Vec<Interval>,
}

#[allow(dead_code, reason = "the verdict is about to ask")]
impl IntervalSet {
    fn join(mut parts: Vec<Interval>) -> Self {
        parts.sort_by(|one, other| one.start.cmp(&other.start));
        let mut intervals: Vec<Interval> = Vec::with_capacity(parts.len());
        for part in parts {
            match intervals.last_mut() {
                Some(last) if last.reaches(&part.start) => {
                    let further = match &part.end {
                        None => true,
                        Some(end) => !last.reaches(end),
                    };
                    if further {
                        last.end = part.end;
                    }
                }
                _ => intervals.push(part),
            }
        }
        Self { intervals }
    }

    /// The interval that a key lies in.
    fn around(&self, key: &[u8]) -> Option<&Interval> {
        let behind = self
            .intervals
            .partition_point(|interval| interval.start.as_ref() <= key);
        let interval = self.intervals.get(behind.checked_sub(1)?)?;
        let holds = interval.end.as_ref().is_none_or(|end| end.as_ref() > key);
        holds.then_some(interval)
    }

    /// True if all keys of a range are in the set; the range as a request has it.
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let Some(interval) = self.around(key) else {
            return false;
        };
        match range_end {
            b"" => true,
            OPEN => interval.end.is_none(),
            end => interval.reaches(end),
        }
    }
}

/// What a user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// True with the role `root`: everything.
    pub root: bool,
    pub read: IntervalSet,
    pub write: IntervalSet,
}

impl Rights {
    /// Those of all permissions together.
    pub fn of<'a>(root: bool, permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let interval = Interval::of(permission);
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(interval),
                Ok(Type::Write) => write.push(interval),
                Ok(Type::Readwrite) => {
                    read.push(interval.clone());
                    write.push(interval);
                }
                // None is granted (see `store`).
                Err(_) => {}
            }
        }
        Self {
            root,
            read: IntervalSet::join(read),
            write: IntervalSet::join(write),
        }
    }
}
