//! Counts in the engine, for the next start.

use bytes::Bytes;

use super::{KeyBlock, KeyCounts};
use crate::storage::schema::counts::{self, CountsHead};
use crate::storage::{self, Batch, Engine, Family, Op, Read};

impl KeyCounts {
    fn head(&self) -> CountsHead {
        CountsHead {
            revision: self.revision,
            block_keys: self.block_keys,
            blocks: self.blocks().count() as u64,
            keys: self.keys,
        }
    }

    /// What the engine has; `None` where that is nothing, or not all that there was.
    pub(super) fn load(read: &dyn Read) -> storage::Result<Option<Self>> {
        let head = read.get(Family::Counts, counts::HEAD)?;
        let Some(head) = head.and_then(|value| CountsHead::decode(&value)) else {
            return Ok(None);
        };
        let mut blocks = Vec::new();
        let upper = Some(counts::BEHIND_BLOCKS);
        let mut cursor = read.cursor(Family::Counts, counts::BLOCKS, upper)?;
        while cursor.next()? {
            let Some(keys) = counts::decode_keys(cursor.value()) else {
                return Ok(None);
            };
            let from = Bytes::copy_from_slice(counts::decode_block_key(cursor.key()));
            blocks.push(KeyBlock { from, keys });
        }
        let begins = blocks.first().is_some_and(|first| first.from.is_empty());
        let loaded = Self::of(head.revision, head.block_keys, blocks);
        let is_whole = begins && head.block_keys > 0 && loaded.head() == head;
        Ok(is_whole.then_some(loaded))
    }

    /// Makes the records in the engine these, which nobody else writes meanwhile.
    pub(super) fn store(&self, engine: &dyn Engine) -> storage::Result<()> {
        let mut batch = Batch::default();
        let view = engine.view();
        let upper = Some(counts::BEHIND_BLOCKS);
        let mut cursor = view.cursor(Family::Counts, counts::BLOCKS, upper)?;
        let mut there = cursor.next()?;
        for block in self.blocks() {
            let (key, value) = (
                counts::block_key(&block.from),
                counts::encode_keys(block.keys),
            );
            while there && cursor.key() < key.as_slice() {
                batch.delete(Family::Counts, cursor.key());
                there = cursor.next()?;
            }
            let is_same = there && cursor.key() == key.as_slice();
            if !is_same || cursor.value() != value.as_slice() {
                batch.put(Family::Counts, &key, &value);
            }
            if is_same {
                there = cursor.next()?;
            }
        }
        while there {
            batch.delete(Family::Counts, cursor.key());
            there = cursor.next()?;
        }
        batch.put(Family::Counts, counts::HEAD, &self.head().encode());
        debug_assert!(batch.iter().all(|op| matches!(
            op,
            Op::Put(Family::Counts, ..) | Op::Delete(Family::Counts, _)
        )));
        engine.write(&batch)
    }
}
