//! How many keys a range has, without a walk over them.
//!
//! Keys are counted in *blocks*: all from one separator to the next. What lies between two keys is the
//! sum of the blocks between them (`KeyCounts`), and a walk over a part of the two at the ends. Counts
//! are those of one revision; the history says what another revision has more or less (`answer`), as
//! it is complete above the revision that is compacted.
//!
//! Nothing is counted while entries are applied. A job catches up with the history (`catch_up`), keeps
//! what it has in the engine now and then (`records`), and walks over all keys where that is missing
//! (`build`). Who finds no counts, or none that are near enough, walks.

mod answer;
mod build;
mod catch_up;
mod keeper;
mod known;
mod records;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use bytes::Bytes;

pub use self::build::Building;
pub use self::keeper::CountKeeper;
pub use self::known::ViewCounts;
pub use self::verify::{Miscounted, verify};
use crate::storage::schema::{ChangeKind, RevisionRecord};

const IS_SMALL: bool = cfg!(any(test, feature = "simulation"));

/// Keys of a new block. A block of twice as many is split; half of two blocks is walked for an answer,
/// in a quarter of a millisecond.
const BLOCK_KEYS: u64 = if IS_SMALL { 4 } else { 256 };
/// Blocks of a new chunk.
const CHUNK_BLOCKS: usize = if IS_SMALL { 3 } else { 64 };
/// What blocks may take; with more they become larger ones.
const MOST_BYTES: usize = 4 << 20;

/// The keys from `from` on that are before the next block's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyBlock {
    from: Bytes,
    keys: u64,
}

impl KeyBlock {
    fn size_bytes(&self) -> usize {
        self.from.len() + size_of::<Self>()
    }
}

/// Some successive blocks, one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BlockChunk {
    blocks: Vec<KeyBlock>,
    keys: u64,
}

impl BlockChunk {
    fn of(blocks: Vec<KeyBlock>) -> Arc<Self> {
        let keys = blocks.iter().map(|block| block.keys).sum();
        Arc::new(Self { blocks, keys })
    }
}

/// A chunk, and a block of it.
type Place = (usize, usize);

/// How many keys there are between two keys at a revision. A copy shares what does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCounts {
    revision: i64,
    block_keys: u64,
    keys: u64,
    bytes: usize,
    /// The first block begins before every key.
    chunks: Vec<Arc<BlockChunk>>,
}

/// The blocks that lie in a range as a whole.
#[derive(Debug, PartialEq, Eq)]
struct WholeBlocks {
    from: Bytes,
    /// None where they go to the end.
    to: Option<Bytes>,
    keys: u64,
}

impl WholeBlocks {
    fn contains(&self, key: &[u8]) -> bool {
        self.from.as_ref() <= key && self.to.as_ref().is_none_or(|to| key < to.as_ref())
    }
}

impl KeyCounts {
    /// Of all blocks in order, the first of which begins with no key.
    fn of(revision: i64, block_keys: u64, blocks: Vec<KeyBlock>) -> Self {
        let mut chunks = Vec::with_capacity(blocks.len() / CHUNK_BLOCKS + 1);
        let mut blocks = blocks.into_iter().peekable();
        while blocks.peek().is_some() {
            chunks.push(BlockChunk::of(blocks.by_ref().take(CHUNK_BLOCKS).collect()));
        }
        let mut counts = Self {
            revision,
            block_keys,
            keys: 0,
            bytes: 0,
            chunks,
        };
        counts.sum_up();
        counts
    }

    fn sum_up(&mut self) {
        self.keys = self.chunks.iter().map(|chunk| chunk.keys).sum();
        self.bytes = self.blocks().map(KeyBlock::size_bytes).sum();
    }

    fn blocks(&self) -> impl Iterator<Item = &KeyBlock> {
        self.chunks.iter().flat_map(|chunk| &chunk.blocks)
    }

    /// The block that holds `key`.
    fn place_of(&self, key: &[u8]) -> Place {
        let begins = |block: &KeyBlock| block.from.as_ref() <= key;
        let chunk = self
            .chunks
            .partition_point(|chunk| chunk.blocks.first().is_some_and(begins));
        let chunk = chunk.saturating_sub(1);
        let block =
            (self.chunks.get(chunk)).map_or(0, |chunk| chunk.blocks.partition_point(begins));
        (chunk, block.saturating_sub(1))
    }

    /// The place of the first block that begins at `key` or behind it.
    fn place_from(&self, key: &[u8]) -> Place {
        let (chunk, block) = self.place_of(key);
        match self.beginning((chunk, block)) {
            Some(from) if from.as_ref() < key => {}
            _ => return (chunk, block),
        }
        let blocks = self.chunks.get(chunk).map_or(0, |chunk| chunk.blocks.len());
        match block + 1 < blocks {
            true => (chunk, block + 1),
            false => (chunk + 1, 0),
        }
    }

    /// None behind the last block.
    fn beginning(&self, (chunk, block): Place) -> Option<&Bytes> {
        let block = self.chunks.get(chunk)?.blocks.get(block);
        block.map(|block| &block.from)
    }

    /// How many keys there are before a block.
    fn keys_before(&self, (chunk, block): Place) -> u64 {
        let before: u64 = self.chunks.iter().take(chunk).map(|chunk| chunk.keys).sum();
        let here = self.chunks.get(chunk);
        let here = here.map(|chunk| chunk.blocks.iter().take(block));
        before
            + here
                .into_iter()
                .flatten()
                .map(|block| block.keys)
                .sum::<u64>()
    }

    /// What lies in `[lower, upper)` as a whole; None where that is nothing.
    fn whole_blocks(&self, lower: &[u8], upper: Option<&[u8]>) -> Option<WholeBlocks> {
        let first = self.place_from(lower);
        let end = match upper {
            Some(upper) => self.place_of(upper),
            None => (self.chunks.len(), 0),
        };
        if first >= end {
            return None;
        }
        Some(WholeBlocks {
            from: self.beginning(first)?.clone(),
            to: self.beginning(end).cloned(),
            keys: self.keys_before(end) - self.keys_before(first),
        })
    }

    /// Counts a key that came or went; returns its chunk, or `None` where the count cannot be right.
    fn change(&mut self, key: &[u8], change: i64) -> Option<usize> {
        let (chunk, block) = self.place_of(key);
        let changed = Arc::make_mut(self.chunks.get_mut(chunk)?);
        let block = changed.blocks.get_mut(block)?;
        block.keys = block.keys.checked_add_signed(change)?;
        changed.keys = changed.keys.checked_add_signed(change)?;
        self.keys = self.keys.checked_add_signed(change)?;
        Some(chunk)
    }
}

/// What a change of the history adds to the number of keys.
fn added_keys(record: &RevisionRecord<'_>) -> i64 {
    match (record.kind, record.superseded) {
        (ChangeKind::Put, None) => 1,
        (ChangeKind::Delete, Some(_)) => -1,
        _ => 0,
    }
}
