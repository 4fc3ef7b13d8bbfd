//! From the counts of a revision to those of a later one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::build::{BlockBuilder, in_pairs};
use super::{BlockChunk, CHUNK_BLOCKS, KeyBlock, KeyCounts, MOST_BYTES, added_keys};
use crate::mvcc::read::PinnedView;
use crate::storage::schema::{self, RevisionRecord};
use crate::storage::{self, Cursor, Family, Read};
use crate::types::Revision;

/// The changes behind the revision `from`, up to `to`.
pub(super) fn history<'a>(
    read: &'a dyn Read,
    from: i64,
    to: i64,
) -> storage::Result<Box<dyn Cursor + 'a>> {
    let lower = schema::revision_key(Revision::new(from + 1, 0));
    let upper = schema::revision_key(Revision::new(to + 1, 0));
    read.cursor(Family::Revisions, &lower, Some(&upper))
}

impl KeyCounts {
    /// The counts at the newest revision of a view, which has all changes since these; there are
    /// `keys` then. `None` where the counts contradict that.
    pub(super) fn caught_up(
        &self,
        pinned: &PinnedView<'_>,
        keys: i64,
    ) -> storage::Result<Option<Self>> {
        let mut counts = self.clone();
        let mut touched = BTreeSet::new();
        let mut log = history(pinned.read, self.revision, pinned.head)?;
        while log.next()? {
            let record = RevisionRecord::decode(log.key(), log.value())?;
            let change = added_keys(&record);
            if change == 0 {
                continue;
            }
            let Some(chunk) = counts.change(record.key, change) else {
                return Ok(None);
            };
            touched.insert(chunk);
        }
        counts.revision = pinned.head;
        if counts.keys as i64 != keys || !counts.even_out(pinned, &touched)? {
            return Ok(None);
        }
        Ok(Some(counts))
    }

    /// Splits what became large of these chunks, and joins what became small; false where the counts
    /// are not those of the view.
    fn even_out(
        &mut self,
        pinned: &PinnedView<'_>,
        touched: &BTreeSet<usize>,
    ) -> storage::Result<bool> {
        if touched.is_empty() {
            return Ok(true);
        }
        let mut chunks: Vec<Arc<BlockChunk>> = Vec::with_capacity(self.chunks.len());
        for (at, chunk) in self.chunks.iter().enumerate() {
            if !touched.contains(&at) {
                chunks.push(chunk.clone());
                continue;
            }
            let behind = self.beginning((at + 1, 0));
            let end = behind.map(AsRef::as_ref);
            let Some(blocks) = self.split(pinned, &chunk.blocks, end)? else {
                return Ok(false);
            };
            let few_keys = self.block_keys / 2;
            let mut blocks = join(blocks, few_keys);
            if 2 * blocks.len() < CHUNK_BLOCKS
                && let Some(last) = chunks.pop()
            {
                let both = [last.blocks.as_slice(), blocks.as_slice()];
                blocks = join(both.concat(), few_keys);
            }
            let pieces = match blocks.len() > 2 * CHUNK_BLOCKS {
                true => CHUNK_BLOCKS,
                false => blocks.len(),
            };
            chunks.extend(
                blocks
                    .chunks(pieces)
                    .map(|blocks| BlockChunk::of(blocks.to_vec())),
            );
        }
        self.chunks = chunks;
        self.sum_up();
        while self.bytes > MOST_BYTES && self.blocks().nth(1).is_some() {
            let blocks = in_pairs(self.blocks().cloned().collect());
            *self = Self::of(self.revision, 2 * self.block_keys, blocks);
        }
        Ok(true)
    }

    /// The blocks with the large ones among them in pieces; none where one has other keys in the view.
    fn split(
        &self,
        pinned: &PinnedView<'_>,
        blocks: &[KeyBlock],
        end: Option<&[u8]>,
    ) -> storage::Result<Option<Vec<KeyBlock>>> {
        let mut pieces = Vec::with_capacity(blocks.len());
        for (at, block) in blocks.iter().enumerate() {
            if block.keys <= 2 * self.block_keys {
                pieces.push(block.clone());
                continue;
            }
            let next = blocks.get(at + 1).map(|next| next.from.as_ref());
            let mut builder = BlockBuilder::new(block.from.clone(), self.block_keys);
            let upper = next.or(end);
            let mut cursor = pinned.read.scan(Family::Current, &block.from, upper)?;
            while cursor.next()? {
                builder.push(cursor.key());
            }
            let (split, _) = builder.finish();
            if split.iter().map(|piece| piece.keys).sum::<u64>() != block.keys {
                return Ok(None);
            }
            pieces.extend(split);
        }
        Ok(Some(pieces))
    }
}

/// Joins successive blocks that have no more than so many keys together.
fn join(blocks: Vec<KeyBlock>, most_keys: u64) -> Vec<KeyBlock> {
    let mut joined: Vec<KeyBlock> = Vec::with_capacity(blocks.len());
    for block in blocks {
        match joined.last_mut() {
            Some(last) if last.keys + block.keys <= most_keys => last.keys += block.keys,
            _ => joined.push(block),
        }
    }
    joined
}
