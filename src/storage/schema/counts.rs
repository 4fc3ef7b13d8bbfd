//! The records of how many keys lie between two keys (`mvcc::counts`): `h` is their head, and `b` with
//! the first key of a block, shortened, is how many keys there are from it to that of the next block.
//!
//! They have no format version of their own. They lie in RocksDB's column family `default`, which
//! every directory has: programs that do not know them leave it alone, and the revision in the head
//! says what the records have missed meanwhile.

use prost::encoding::{decode_varint, encode_varint};

use super::{decode_numbers, encode_numbers};

pub const HEAD: &[u8] = b"h";
/// The first byte of a block's key, and that behind all of them.
const BLOCK: u8 = b'b';
pub const BLOCKS: &[u8] = b"b";
pub const BEHIND_BLOCKS: &[u8] = b"c";

/// What all records together are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountsHead {
    /// They count the keys that there were at this revision.
    pub revision: i64,
    /// How many keys a block is to have.
    pub block_keys: u64,
    pub blocks: u64,
    pub keys: u64,
}

impl CountsHead {
    pub fn encode(&self) -> Vec<u8> {
        let revision = self.revision as u64;
        encode_numbers(&[revision, self.block_keys, self.blocks, self.keys])
    }

    /// `None` where it is not one.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let [revision, block_keys, blocks, keys] = decode_numbers(value, HEAD).ok()?;
        Some(Self {
            revision: revision as i64,
            block_keys,
            blocks,
            keys,
        })
    }
}

pub fn block_key(from: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + from.len());
    key.push(BLOCK);
    key.extend_from_slice(from);
    key
}

/// Where the block of this record begins.
pub fn decode_block_key(key: &[u8]) -> &[u8] {
    key.get(1..).unwrap_or_default()
}

pub fn encode_keys(keys: u64) -> Vec<u8> {
    let mut value = Vec::with_capacity(4);
    encode_varint(keys, &mut value);
    value
}

pub fn decode_keys(mut value: &[u8]) -> Option<u64> {
    let keys = decode_varint(&mut value).ok()?;
    value.is_empty().then_some(keys)
}
