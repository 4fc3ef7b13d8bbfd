//! The keys that a user may read and write: two sets of intervals, over all roles it holds.
//!
//! A set is sorted and joined when it is made, so that an answer is one binary search: intervals
//! that overlap or touch have become one, and a range that is allowed lies in a single interval.
//!
//! A range without keys, whose end is not above its start, is allowed where its start is. etcd's
//! verdict on such a range depends on the shape of its tree; no key is read or written either way.

use bytes::Bytes;

use crate::probe::{self, Defect};
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
        let reaches_too_far = probe::injected(Defect::RangeEndPermitted) && interval.reaches(key);
        let holds = interval.end.as_ref().is_none_or(|end| end.as_ref() > key) || reaches_too_far;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// All keys of up to three letters of a small alphabet, with a zero byte and the largest one:
    /// between any two that are next to each other nothing that a test names has its place.
    fn universe() -> BTreeSet<Vec<u8>> {
        let mut keys = BTreeSet::new();
        let mut longest = vec![Vec::new()];
        for _ in 0..3 {
            let letters = [0u8, b'a', b'b', 0xff];
            longest = longest
                .iter()
                .flat_map(|key: &Vec<u8>| {
                    letters.map(|letter| [key.as_slice(), &[letter]].concat())
                })
                .collect();
            keys.extend(longest.iter().cloned());
        }
        keys
    }

    /// The keys of a range, one by one.
    fn keys(universe: &BTreeSet<Vec<u8>>, key: &[u8], range_end: &[u8]) -> BTreeSet<Vec<u8>> {
        let is_in = |one: &&Vec<u8>| match range_end {
            b"" => one.as_slice() == key,
            b"\0" => one.as_slice() >= key,
            end => one.as_slice() >= key && one.as_slice() < end,
        };
        universe.iter().filter(is_in).cloned().collect()
    }

    fn permission(kind: Type, key: &[u8], range_end: &[u8]) -> Permission {
        Permission {
            perm_type: kind as i32,
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
        }
    }

    #[test]
    fn a_set_covers_what_each_of_its_keys_is_permitted() {
        let universe = universe();
        // What a range ends with lies between keys, so that every range has an inside.
        let names: Vec<&Vec<u8>> = universe.iter().filter(|key| key.len() < 3).collect();
        let mut random = StdRng::seed_from_u64(17);
        let (mut covered, mut refused) = (0, 0);
        for _ in 0..300 {
            let mut permissions = Vec::new();
            let (mut may_read, mut may_write) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..random.random_range(0..8) {
                let pick = |random: &mut StdRng| names[random.random_range(0..names.len())].clone();
                let key = pick(&mut random);
                let end = match random.random_range(0..10) {
                    0..3 => Vec::new(),
                    3 => b"\0".to_vec(),
                    _ => pick(&mut random),
                };
                if end.len() > 1 && end <= key {
                    continue;
                }
                let end = if end <= key { Vec::new() } else { end };
                let kind = [Type::Read, Type::Write, Type::Readwrite][random.random_range(0..3)];
                permissions.push(permission(kind, &key, &end));
                let allowed = keys(&universe, &key, &end);
                if kind != Type::Write {
                    may_read.extend(allowed.clone());
                }
                if kind != Type::Read {
                    may_write.extend(allowed);
                }
            }
            let rights = Rights::of(false, permissions.iter());
            for _ in 0..200 {
                let key = names[random.random_range(0..names.len())];
                let end: &[u8] = match random.random_range(0..10) {
                    0..3 => b"",
                    3 => b"\0",
                    _ => names[random.random_range(0..names.len())],
                };
                let asked = keys(&universe, key, end);
                for (set, allowed, other) in [
                    (&rights.read, &may_read, Type::Write),
                    (&rights.write, &may_write, Type::Read),
                ] {
                    // An open end is beyond every key.
                    let is_open = |one: &Permission| {
                        one.range_end.as_ref() == b"\0" && one.perm_type != other as i32
                    };
                    let expected = match end {
                        // Without a key it is judged by its start.
                        _ if asked.is_empty() => allowed.contains(key),
                        b"\0" => asked.is_subset(allowed) && permissions.iter().any(is_open),
                        _ => asked.is_subset(allowed),
                    };
                    assert_eq!(
                        set.covers(key, end),
                        expected,
                        "{key:?} {end:?} of {permissions:?}"
                    );
                    match expected {
                        true => covered += 1,
                        false => refused += 1,
                    }
                }
            }
        }
        assert!(covered > 5_000 && refused > 5_000, "{covered}, {refused}");
    }

    #[test]
    fn intervals_are_joined_where_they_touch() {
        let set = |ranges: &[(&str, &str)]| {
            let permissions: Vec<_> = ranges
                .iter()
                .map(|(key, end)| permission(Type::Read, key.as_bytes(), end.as_bytes()))
                .collect();
            Rights::of(false, permissions.iter()).read
        };
        let touching = set(&[("c", "e"), ("a", "c")]);
        assert_eq!(touching.intervals.len(), 1);
        assert!(touching.covers(b"a", b"e") && !touching.covers(b"a", b"e\0"));
        let apart = set(&[("c", "e"), ("a", "b\u{7f}")]);
        assert!(!apart.covers(b"a", b"e") && apart.covers(b"c", b"e"));
        // One key after the other.
        let keys = set(&[("a", ""), ("a\0", "")]);
        assert!(keys.covers(b"a", b"a\0\0") && !keys.covers(b"a", b"b"));
        let all = set(&[("\0", "\0")]);
        assert!(all.covers(b"\0", b"\0") && all.covers(b"x", b"\0") && all.covers(b"x", b"a"));
        // No request asks for it, and nobody has it.
        assert!(!all.covers(b"", b"") && !all.covers(b"", b"\0"));
        let from = set(&[("m", "\0")]);
        assert!(from.covers(b"m", b"\0") && !from.covers(b"l", b"\0") && !from.covers(b"l", b"m"));
        // Larger ones swallow smaller ones.
        let nested = set(&[("a", "z"), ("b", "c"), ("b", "")]);
        assert_eq!(nested.intervals.len(), 1);
        assert!(nested.covers(b"a", b"z"));
    }
}
