//! Blocks of keys, by a walk over them.

use bytes::Bytes;

use super::{BLOCK_KEYS, KeyBlock, KeyCounts, MOST_BYTES};
use crate::mvcc::read::PinnedView;
use crate::storage::{self, Family};

/// Makes blocks of successive keys.
pub(super) struct BlockBuilder {
    blocks: Vec<KeyBlock>,
    bytes: usize,
    block_keys: u64,
    last: Vec<u8>,
}

impl BlockBuilder {
    /// The first block begins at `from`.
    pub fn new(from: Bytes, block_keys: u64) -> Self {
        let first = KeyBlock { from, keys: 0 };
        Self {
            bytes: first.size_bytes(),
            blocks: vec![first],
            block_keys,
            last: Vec::new(),
        }
    }

    pub fn push(&mut self, key: &[u8]) {
        if let Some(block) = self.blocks.last_mut()
            && block.keys < self.block_keys
        {
            block.keys += 1;
        } else {
            let block = KeyBlock {
                from: separator(&self.last, key),
                keys: 1,
            };
            self.bytes += block.size_bytes();
            self.blocks.push(block);
            if self.bytes > MOST_BYTES {
                self.double();
            }
        }
        self.last.clear();
        self.last.extend_from_slice(key);
    }

    fn double(&mut self) {
        self.block_keys *= 2;
        self.blocks = in_pairs(std::mem::take(&mut self.blocks));
        self.bytes = self.blocks.iter().map(KeyBlock::size_bytes).sum();
    }

    pub fn finish(self) -> (Vec<KeyBlock>, u64) {
        (self.blocks, self.block_keys)
    }
}

/// Every two blocks as one.
pub(super) fn in_pairs(blocks: Vec<KeyBlock>) -> Vec<KeyBlock> {
    let mut joined: Vec<KeyBlock> = Vec::with_capacity(blocks.len() / 2 + 1);
    for (at, block) in blocks.into_iter().enumerate() {
        match joined.last_mut() {
            Some(last) if at % 2 == 1 => last.keys += block.keys,
            _ => joined.push(block),
        }
    }
    joined
}

/// The shortest key behind `before` that is not behind `key`.
fn separator(before: &[u8], key: &[u8]) -> Bytes {
    let same = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    Bytes::copy_from_slice(key.get(..=same).unwrap_or(key))
}

/// A walk over all keys of a view, in steps.
pub struct Building {
    builder: BlockBuilder,
    keys: u64,
}

impl Building {
    pub fn new() -> Self {
        Self {
            builder: BlockBuilder::new(Bytes::new(), BLOCK_KEYS),
            keys: 0,
        }
    }

    /// How many keys there were so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Walks over so many keys, each time of the same view; false at the end.
    pub fn step(&mut self, pinned: &PinnedView<'_>, most: u64) -> storage::Result<bool> {
        let mut lower = std::mem::take(&mut self.builder.last);
        if self.keys > 0 {
            lower.push(0);
        }
        let mut cursor = pinned.read.scan(Family::Current, &lower, None)?;
        lower.pop();
        self.builder.last = lower;
        for _ in 0..most {
            if !cursor.next()? {
                return Ok(false);
            }
            self.builder.push(cursor.key());
            self.keys += 1;
        }
        Ok(true)
    }

    pub(super) fn finish(self, pinned: &PinnedView<'_>) -> KeyCounts {
        let (blocks, block_keys) = self.builder.finish();
        KeyCounts::of(pinned.head, block_keys, blocks)
    }
}
