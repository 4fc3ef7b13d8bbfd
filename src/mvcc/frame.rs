//! How a pair stands in an answer: all of it, or its key and numbers alone.

use super::read::{RangeRead, parse_head};
use crate::proto::RANGE_KVS_TAG;
use crate::storage;
use crate::storage::schema::{self, Frame, Head, KeyFields};
use crate::types::LeaseId;

/// Whether what is read may take so many bytes in all.
pub type Room<'a> = &'a mut dyn FnMut(usize) -> bool;

/// A pair but its key.
pub enum Fields<'a> {
    All(&'a [u8]),
    Numbers(KeyFields),
}

impl<'a> Fields<'a> {
    pub fn of(request: &RangeRead, key: &[u8], record: &'a [u8]) -> storage::Result<Self> {
        Ok(match request.keys_only {
            true => Self::numbers(request, &parse_head(key, record)?),
            false => Self::All(schema::record_fields(record)),
        })
    }

    /// Of a request for keys only.
    pub fn numbers(request: &RangeRead, head: &Head) -> Self {
        let lease = match request.hides_lease() {
            true => LeaseId::NONE,
            false => head.lease,
        };
        Self::Numbers(KeyFields::new(head, lease))
    }

    /// The pair as an answer holds it.
    pub fn frame<'b>(&'b self, key: &'b [u8]) -> Frame<'b> {
        Frame {
            tag: RANGE_KVS_TAG,
            key,
            fields: match self {
                Self::All(fields) => fields,
                Self::Numbers(numbers) => numbers.bytes(),
            },
        }
    }
}
