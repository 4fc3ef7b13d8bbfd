//! How far a state came in the log, and what it holds a part of.

use bytes::Bytes;

use super::{decode_numbers, encode_numbers, meta};
use crate::storage::{Error, Family, Result};
use crate::types::{KeyRange, LeaseId};

/// How far a state came in the log: the value of `meta::APPLIED`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index and term of the last entry that was applied in full.
    pub index: u64,
    pub term: u64,
    /// The entry behind it, of which the state holds a part.
    pub unfinished: Option<Unfinished>,
}

/// What a state holds a part of. When it is opened it is made one between entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Its rest is deleted then.
    Delete(UnfinishedDelete),
    /// All that it wrote is taken back: what its rest was only the log knows.
    Txn { revision: i64 },
}

/// Stands before the revision of an unfinished transaction.
const TXN_MARK: &[u8] = b"txn";

/// What is left of a deletion of many keys that is written in several batches.
///
/// It has no format version of its own: its place behind the applied index makes programs that do
/// not know of it take the state for damaged and not start, whichever batch they find, and the
/// last batch makes the state one that they can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedDelete {
    /// Of its entry; the index is the one behind the last applied.
    pub term: u64,
    /// The revision of all that it deletes.
    pub revision: i64,
    /// How many keys it has deleted so far.
    pub deleted: u64,
    /// It deletes the keys of this lease and the lease; of a range if none.
    pub lease: LeaseId,
    /// Where its keys are that are left.
    pub rest: KeyRange,
}

impl Applied {
    pub fn encode(index: u64, term: u64, unfinished: Option<&Unfinished>) -> Vec<u8> {
        let mut bytes = encode_numbers(&[index, term]);
        let delete = match unfinished {
            None => return bytes,
            Some(Unfinished::Delete(delete)) => delete,
            Some(Unfinished::Txn { revision }) => {
                bytes.extend_from_slice(TXN_MARK);
                bytes.extend(encode_numbers(&[*revision as u64]));
                return bytes;
            }
        };
        let (start, end): (_, &[u8]) = match &delete.rest {
            KeyRange::Span(start, end) => (start, end),
            KeyRange::From(start) | KeyRange::Point(start) => (start, &[]),
        };
        bytes.extend(encode_numbers(&[
            delete.term,
            delete.revision as u64,
            delete.deleted,
            delete.lease.0 as u64,
            start.len() as u64,
        ]));
        bytes.extend_from_slice(start);
        bytes.extend_from_slice(end);
        bytes
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let key = meta::APPLIED;
        let (numbers, rest) = value.split_at(value.len().min(16));
        let [index, term] = decode_numbers(numbers, key)?;
        if rest.is_empty() {
            return Ok(Self {
                index,
                term,
                unfinished: None,
            });
        }
        if let Some(revision) = rest.strip_prefix(TXN_MARK) {
            let [revision] = decode_numbers(revision, key)?;
            return Ok(Self {
                index,
                term,
                unfinished: Some(Unfinished::Txn {
                    revision: revision as i64,
                }),
            });
        }
        let (numbers, keys) = rest.split_at(rest.len().min(40));
        let [entry_term, revision, deleted, lease, start] = decode_numbers(numbers, key)?;
        let start = usize::try_from(start).ok();
        let (start, end) = start
            .and_then(|start| keys.split_at_checked(start))
            .ok_or_else(|| Error::Damaged {
                family: Family::Meta,
                key: key.to_vec(),
                reason: "it does not hold the keys it should",
            })?;
        let copy = Bytes::copy_from_slice;
        let unfinished = UnfinishedDelete {
            term: entry_term,
            revision: revision as i64,
            deleted,
            lease: LeaseId(lease as i64),
            rest: match end {
                // No span ends before every key.
                [] => KeyRange::From(copy(start)),
                end => KeyRange::Span(copy(start), copy(end)),
            },
        };
        Ok(Self {
            index,
            term,
            unfinished: Some(Unfinished::Delete(unfinished)),
        })
    }

    /// Index and term of the entry that the state is that behind of when it is opened.
    pub fn entry(&self) -> (u64, u64) {
        match &self.unfinished {
            Some(Unfinished::Delete(delete)) => (self.index + 1, delete.term),
            Some(Unfinished::Txn { .. }) | None => (self.index, self.term),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_delete_is_what_was_written() {
        let bytes = Bytes::from_static;
        for rest in [
            KeyRange::From(bytes(b"k\0")),
            KeyRange::Span(bytes(b""), bytes(b"\xff")),
        ] {
            let delete = UnfinishedDelete {
                term: 3,
                revision: i64::MAX,
                deleted: 9,
                lease: LeaseId(-5),
                rest,
            };
            let delete = Unfinished::Delete(delete);
            let encoded = Applied::encode(6, 2, Some(&delete));
            let applied = Applied::decode(&encoded).expect("decodes");
            assert_eq!(applied.entry(), (7, 3));
            assert_eq!(applied.unfinished, Some(delete));
            for len in (0..56).filter(|len| *len != 16) {
                assert!(Applied::decode(&encoded[..len]).is_err(), "{len}");
            }
            // What a program that does not know of it makes of it.
            assert!(decode_numbers::<2>(&encoded, meta::APPLIED).is_err());
        }
        let done = Applied::decode(&Applied::encode(6, 2, None)).expect("decodes");
        assert_eq!((done.entry(), done.unfinished), ((6, 2), None));
    }

    #[test]
    fn a_state_within_a_transaction_is_that_before_it() {
        let txn = Unfinished::Txn { revision: 8 };
        let encoded = Applied::encode(6, 2, Some(&txn));
        let applied = Applied::decode(&encoded).expect("decodes");
        assert_eq!(applied.entry(), (6, 2));
        assert_eq!(applied.unfinished, Some(txn));
        for len in (0..encoded.len()).filter(|len| *len != 16) {
            assert!(Applied::decode(&encoded[..len]).is_err(), "{len}");
        }
        assert!(decode_numbers::<2>(&encoded, meta::APPLIED).is_err());
    }
}
