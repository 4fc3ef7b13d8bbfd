//! The disk format: every key and value of every family, and nothing else knows them.
//!
//! | family | key | value |
//! |---|---|---|
//! | current | key | version record |
//! | undo | escaped key, then the superseding revision | the version record it superseded |
//! | revisions | revision | kind, revision it superseded, key |
//! | lease_keys | lease, key | empty |
//! | meta | see `meta_key` | per key |
//! | counts | see `counts` | how many keys lie between two keys |
//!
//! A *version record* is the sub-revision as a varint and then the protobuf fields of
//! `mvccpb.KeyValue` but the key, with the value last: an answer is the key's field and a copy
//! of the rest. Integers in keys are big-endian, so that byte order is numeric order.
//! An escaped key ends in `00 00`, with `00` inside written as `00 ff`: no key is a prefix of
//! another one's, and order is kept.

mod applied;
pub mod counts;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::{Error, Family, Result};
use crate::proto::{EncodedKv, KeyValue, put_bytes_field, put_varint_field};
use crate::types::{LeaseId, Revision};

pub use applied::{Applied, Unfinished, UnfinishedDelete};

/// The newest format of a data directory, bumped when an older program could misread what a newer
/// one wrote. A directory has the oldest that fits what is in it, so that an older program can take
/// it over until it holds what that does not know.
pub const FORMAT_VERSION: u64 = FORMAT_WITH_USERS;
/// Of a directory that holds nothing of what came later.
pub const FIRST_FORMAT: u64 = 1;
/// The state may hold users, roles and permissions. Programs of before would serve it to anybody.
pub const FORMAT_WITH_USERS: u64 = 2;

const KEY_TAG: u32 = 1;
const CREATE_TAG: u32 = 2;
const MOD_TAG: u32 = 3;
const VERSION_TAG: u32 = 4;
const VALUE_TAG: u32 = 5;
const LEASE_TAG: u32 = 6;

/// One stored version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The revision that created the key.
    pub create_revision: i64,
    /// The revision that wrote this version.
    pub mod_revision: Revision,
    /// How many times the key was written since it was created, from 1.
    pub version: i64,
    pub lease: LeaseId,
    /// The whole record.
    record: Bytes,
    /// Where the value begins in `record`.
    value_offset: usize,
}

impl Version {
    /// Encodes a version.
    pub fn encode(
        create_revision: i64,
        mod_revision: Revision,
        version: i64,
        lease: LeaseId,
        value: &[u8],
    ) -> Self {
        let mut buf = BytesMut::with_capacity(48 + value.len());
        encode_varint(mod_revision.sub as u64, &mut buf);
        put_varint_field(&mut buf, CREATE_TAG, create_revision);
        put_varint_field(&mut buf, MOD_TAG, mod_revision.main);
        put_varint_field(&mut buf, VERSION_TAG, version);
        put_varint_field(&mut buf, LEASE_TAG, lease.0);
        if !value.is_empty() {
            put_bytes_field(&mut buf, VALUE_TAG, value);
        }
        let record = buf.freeze();
        let value_offset = record.len() - value.len();
        Self {
            create_revision,
            mod_revision,
            version,
            lease,
            record,
            value_offset,
        }
    }

    /// Reads a record; `family` and `key` name it in the error.
    pub fn decode(record: Bytes, family: Family, key: &[u8]) -> Result<Self> {
        let head = Head::parse(&record).ok_or_else(|| Error::Damaged {
            family,
            key: key.to_vec(),
            reason: "its version record cannot be read",
        })?;
        Ok(Self {
            create_revision: head.create_revision,
            mod_revision: head.mod_revision,
            version: head.version,
            lease: head.lease,
            value_offset: head.value_offset,
            record,
        })
    }

    pub fn record(&self) -> &Bytes {
        &self.record
    }

    pub fn value(&self) -> Bytes {
        self.record.slice(self.value_offset..)
    }

    /// The pair as clients see it.
    pub fn to_kv(&self, key: &[u8]) -> EncodedKv {
        let fields = record_fields(&self.record);
        let mut buf = BytesMut::with_capacity(key.len() + fields.len() + 8);
        put_bytes_field(&mut buf, KEY_TAG, key);
        buf.put_slice(fields);
        EncodedKv::from_encoded(buf.freeze())
    }

    /// The pair spelled out.
    pub fn to_key_value(&self, key: &[u8]) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision.main,
            version: self.version,
            value: self.value(),
            lease: self.lease.0,
        }
    }
}

/// The numbers at the front of a version record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub create_revision: i64,
    pub mod_revision: Revision,
    pub version: i64,
    pub lease: LeaseId,
    value_offset: usize,
}

impl Head {
    /// Reads the head of a record; `None` where it is not one.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        let sub = decode_varint(&mut rest).ok()? as i64;
        let mut head = Head {
            create_revision: 0,
            mod_revision: Revision::new(0, sub),
            version: 0,
            lease: LeaseId::NONE,
            value_offset: record.len(),
        };
        while rest.has_remaining() {
            let tag = rest.get_u8();
            let number = decode_varint(&mut rest).ok()?;
            match u32::from(tag >> 3) {
                CREATE_TAG => head.create_revision = number as i64,
                MOD_TAG => head.mod_revision.main = number as i64,
                VERSION_TAG => head.version = number as i64,
                LEASE_TAG => head.lease = LeaseId(number as i64),
                VALUE_TAG => {
                    if rest.len() as u64 != number {
                        return None;
                    }
                    head.value_offset = record.len() - rest.len();
                    return Some(head);
                }
                _ => return None,
            }
        }
        Some(head)
    }

    /// The value within `record`, the record that this head was read from.
    pub fn value<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[self.value_offset..]
    }
}

/// The part of a record that is protobuf: everything behind the sub-revision.
pub fn record_fields(record: &[u8]) -> &[u8] {
    let skip = record.iter().take_while(|byte| **byte >= 0x80).count() + 1;
    record.get(skip..).unwrap_or_default()
}

/// What `keys_only` answers of a record: no value, and a lease of the caller's choice.
pub struct KeyFields {
    bytes: [u8; 48],
    len: usize,
}

impl KeyFields {
    pub fn new(head: &Head, lease: LeaseId) -> Self {
        let mut bytes = [0u8; 48];
        let mut rest = &mut bytes[..];
        put_varint_field(&mut rest, CREATE_TAG, head.create_revision);
        put_varint_field(&mut rest, MOD_TAG, head.mod_revision.main);
        put_varint_field(&mut rest, VERSION_TAG, head.version);
        put_varint_field(&mut rest, LEASE_TAG, lease.0);
        let len = 48 - rest.len();
        Self { bytes, len }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A pair as one field of a repeated message field; `fields` is all of it but the key.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub tag: u32,
    pub key: &'a [u8],
    pub fields: &'a [u8],
}

impl Frame<'_> {
    /// What both lengths and both tags take.
    const MAX_PREFIX_BYTES: usize = 24;

    fn message_len(&self) -> usize {
        1 + encoded_len_varint(self.key.len() as u64) + self.key.len() + self.fields.len()
    }

    pub fn encoded_len(&self) -> usize {
        let len = self.message_len();
        encoded_len_varint(u64::from(self.tag << 3 | 2)) + encoded_len_varint(len as u64) + len
    }

    pub fn append(&self, frames: &mut Vec<u8>) {
        frames.reserve(self.encoded_len());
        self.append_prefix(self.message_len(), frames);
        frames.extend_from_slice(self.key);
        frames.extend_from_slice(self.fields);
    }

    fn append_prefix(&self, message_len: usize, out: &mut Vec<u8>) {
        encode_varint(u64::from(self.tag << 3 | 2), out);
        encode_varint(message_len as u64, out);
        encode_varint(u64::from(KEY_TAG << 3 | 2), out);
        encode_varint(self.key.len() as u64, out);
    }

    /// Appends up to `most` bytes of the frame from `offset` on.
    pub fn append_part(&self, offset: usize, most: usize, out: &mut Vec<u8>) {
        let mut prefix = Vec::with_capacity(Self::MAX_PREFIX_BYTES);
        self.append_prefix(self.message_len(), &mut prefix);
        let (mut skip, mut left) = (offset, most);
        for part in [prefix.as_slice(), self.key, self.fields] {
            let rest = &part[skip.min(part.len())..];
            skip -= part.len() - rest.len();
            let taken = &rest[..left.min(rest.len())];
            left -= taken.len();
            out.extend_from_slice(taken);
        }
    }
}

/// `revision` as sixteen bytes in numeric order.
pub fn revision_key(revision: Revision) -> [u8; 16] {
    let mut key = [0u8; 16];
    key[..8].copy_from_slice(&(revision.main as u64).to_be_bytes());
    key[8..].copy_from_slice(&(revision.sub as u64).to_be_bytes());
    key
}

pub fn decode_revision_key(key: &[u8]) -> Option<Revision> {
    let main = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
    let sub = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    (key.len() == 16).then_some(Revision::new(main as i64, sub as i64))
}

/// The first bytes of every undo key of `key`.
pub fn undo_prefix(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + 18);
    escape(key, &mut escaped);
    escaped.extend_from_slice(&[0, 0]);
    escaped
}

/// Where the undo entries of keys at or above `key` begin.
pub fn undo_lower_bound(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + 2);
    escape(key, &mut escaped);
    escaped
}

fn escape(key: &[u8], out: &mut Vec<u8>) {
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
}

pub fn undo_key(key: &[u8], superseding: Revision) -> Vec<u8> {
    let mut undo = undo_prefix(key);
    undo.extend_from_slice(&revision_key(superseding));
    undo
}

/// The key and the superseding revision of an undo entry.
pub fn decode_undo_key(undo: &[u8]) -> Result<(Vec<u8>, Revision)> {
    let damaged = || Error::Damaged {
        family: Family::Undo,
        key: undo.to_vec(),
        reason: "it is not an undo key",
    };
    let split = undo.len().checked_sub(18).ok_or_else(damaged)?;
    let (escaped, tail) = undo.split_at(split);
    if tail[..2] != [0, 0] {
        return Err(damaged());
    }
    let revision = decode_revision_key(&tail[2..]).ok_or_else(damaged)?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0 && bytes.next() != Some(&0xff) {
            return Err(damaged());
        }
    }
    Ok((key, revision))
}

/// What a revision did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Put,
    Delete,
}

/// A record of the revision log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionRecord<'a> {
    pub kind: ChangeKind,
    /// The revision of the version that this change superseded, if the key was there.
    pub superseded: Option<Revision>,
    pub key: &'a [u8],
}

impl<'a> RevisionRecord<'a> {
    /// The value's bytes in front of the key.
    pub fn encode_head(kind: ChangeKind, superseded: Option<Revision>) -> Vec<u8> {
        let mut head = Vec::with_capacity(24);
        head.push(match kind {
            ChangeKind::Put => 0,
            ChangeKind::Delete => 1,
        });
        let revision = superseded.unwrap_or_default();
        encode_varint(revision.main as u64, &mut head);
        encode_varint(revision.sub as u64, &mut head);
        head
    }

    pub fn decode(revision: &[u8], value: &'a [u8]) -> Result<Self> {
        Self::parse(value).ok_or_else(|| Error::Damaged {
            family: Family::Revisions,
            key: revision.to_vec(),
            reason: "its record cannot be read",
        })
    }

    fn parse(value: &'a [u8]) -> Option<Self> {
        let (kind, mut rest) = value.split_first()?;
        let kind = match kind {
            0 => ChangeKind::Put,
            1 => ChangeKind::Delete,
            _ => return None,
        };
        let main = decode_varint(&mut rest).ok()? as i64;
        let sub = decode_varint(&mut rest).ok()? as i64;
        Some(Self {
            kind,
            superseded: (main != 0).then_some(Revision::new(main, sub)),
            key: rest,
        })
    }
}

pub fn lease_key(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut lease_key = Vec::with_capacity(8 + key.len());
    lease_key.extend_from_slice(&lease.0.to_be_bytes());
    lease_key.extend_from_slice(key);
    lease_key
}

/// The bounds of all the keys attached to `lease`.
pub fn lease_bounds(lease: LeaseId) -> (Vec<u8>, Option<Vec<u8>>) {
    let lower = lease.0.to_be_bytes().to_vec();
    let upper = prefix_end(&lower);
    (lower, upper)
}

/// The attached key of a `lease_keys` entry.
pub fn decode_lease_key(lease_key: &[u8]) -> &[u8] {
    lease_key.get(8..).unwrap_or_default()
}

/// The first key behind all keys that begin with `prefix`; `None` where there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The keys of `Meta`.
pub mod meta {
    /// u64, u64: index and term of the last entry applied. Behind them, while the next one is
    /// written in several batches, what is left of it: see `Unfinished`.
    pub const APPLIED: &[u8] = b"applied";
    /// u64: the cluster that the state is of; states of before 2026-12 do not say it.
    pub const CLUSTER: &[u8] = b"cluster";
    /// i64, i64: the newest revision and how many keys it has.
    pub const HEAD: &[u8] = b"head";
    /// i64: the revision that the history was asked to be compacted to.
    pub const COMPACTED: &[u8] = b"compacted";
    /// i64: the revision up to which dead versions were removed.
    pub const COMPACTION_FINISHED: &[u8] = b"compaction_finished";
    /// Text: the cluster's version.
    pub const CLUSTER_VERSION: &[u8] = b"cluster_version";
    /// An encoded `DowngradeInfoSetRequest`: the downgrade that was begun; absent without one.
    pub const DOWNGRADE: &[u8] = b"downgrade";
    /// Leases: `l/` and the id.
    pub const LEASES: &[u8] = b"l/";
    /// Alarms: `a/`, the type and the member.
    pub const ALARMS: &[u8] = b"a/";
    /// Members: `m/` and the id.
    pub const MEMBERS: &[u8] = b"m/";
    /// Members that were removed: `r/` and the id; empty.
    pub const REMOVED_MEMBERS: &[u8] = b"r/";
    /// Empty: authentication is enabled; absent while it is not.
    pub const AUTH_ENABLED: &[u8] = b"auth_enabled";
    /// u64: how often users, roles and permissions were changed, from 1; absent at 1.
    pub const AUTH_REVISION: &[u8] = b"auth_revision";
    /// Users: `user/` and the name; an encoded `authpb.User`.
    pub const USERS: &[u8] = b"user/";
    /// Roles: `role/` and the name; an encoded `authpb.Role`.
    pub const ROLES: &[u8] = b"role/";
}

/// A meta key of a numbered thing below `prefix`.
pub fn meta_key(prefix: &[u8], numbers: &[u64]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

/// A meta key of a named thing below `prefix`.
pub fn meta_name(prefix: &[u8], name: &str) -> Vec<u8> {
    [prefix, name.as_bytes()].concat()
}

/// The numbers behind `prefix` in a meta key.
pub fn meta_numbers<const N: usize>(key: &[u8], prefix: &[u8]) -> Result<[u64; N]> {
    let rest = key.strip_prefix(prefix).unwrap_or_default();
    decode_numbers(rest, key)
}

pub fn encode_numbers(numbers: &[u64]) -> Vec<u8> {
    meta_key(&[], numbers)
}

/// Fixed-width numbers; `key` names the record in the error.
pub fn decode_numbers<const N: usize>(value: &[u8], key: &[u8]) -> Result<[u64; N]> {
    let mut numbers = [0u64; N];
    if value.len() != N * 8 {
        return Err(Error::Damaged {
            family: Family::Meta,
            key: key.to_vec(),
            reason: "it does not hold the numbers it should",
        });
    }
    let mut rest = value;
    for number in &mut numbers {
        *number = rest.get_u64();
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn version_record_is_a_key_value() {
        for (value, lease) in [(&b"v"[..], 0), (&b""[..], 7), (&[0u8; 300][..], i64::MAX)] {
            let version = Version::encode(5, Revision::new(9, 300), 3, LeaseId(lease), value);
            let back =
                Version::decode(version.record().clone(), Family::Current, b"k").expect("decodes");
            assert_eq!(back, version);
            assert_eq!(back.value().as_ref(), value);
            let kv = KeyValue::decode(version.to_kv(b"k").encoded().clone()).expect("decodes");
            assert_eq!(kv, version.to_key_value(b"k"));
            let mut frames = Vec::new();
            let frame = Frame {
                tag: 2,
                key: b"k",
                fields: record_fields(version.record()),
            };
            frame.append(&mut frames);
            assert_eq!(frames.len(), frame.encoded_len());
            for part in 1..frames.len() {
                let mut parts = Vec::new();
                while parts.len() < frames.len() {
                    frame.append_part(parts.len(), part, &mut parts);
                }
                assert_eq!(parts, frames, "in parts of {part}");
            }
            let kvs = crate::proto::EncodedKvs::from_chunks(vec![frames.into()], 1);
            assert_eq!(kvs.decoded().expect("decodes"), vec![kv]);
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        let version = Version::encode(5, Revision::new(9, 0), 3, LeaseId(1), b"value");
        let record = version.record();
        for cut in 1..record.len() - 1 {
            let whole = Head::parse(&record[..cut]);
            let complete_prefix = whole.is_some_and(|head| head.value_offset == cut);
            assert!(whole.is_none() || complete_prefix, "cut at {cut}");
        }
        assert!(Head::parse(&[]).is_none());
    }

    #[test]
    fn undo_keys_keep_the_order_of_keys() {
        let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0\xff", b"\x01", b"a", b"a\0b"];
        let mut last = Vec::new();
        for key in keys {
            for main in [1, 256] {
                let undo = undo_key(key, Revision::new(main, 2));
                assert!(last < undo, "{key:?}");
                assert!(undo_lower_bound(key) <= undo);
                let (back, revision) = decode_undo_key(&undo).expect("decodes");
                assert_eq!((back.as_slice(), revision.main), (key, main));
                last = undo;
            }
        }
    }

    #[test]
    fn revision_records_round_trip() {
        for superseded in [None, Some(Revision::new(1 << 40, 3))] {
            let mut value = RevisionRecord::encode_head(ChangeKind::Delete, superseded);
            value.extend_from_slice(b"key");
            let record = RevisionRecord::decode(b"", &value).expect("decodes");
            assert_eq!(record.superseded, superseded);
            assert_eq!((record.kind, record.key), (ChangeKind::Delete, &b"key"[..]));
        }
    }

    #[test]
    fn prefix_end_skips_the_prefix() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
    }
}
