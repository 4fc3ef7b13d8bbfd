//! Whether counts are those of the keys that there are.

use super::KeyCounts;
use crate::mvcc::read::PinnedView;
use crate::storage;
use crate::types::KeyRange;

/// A block of which the counts are wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Miscounted {
    pub from: Vec<u8>,
    pub counted: u64,
    pub there: u64,
}

impl KeyCounts {
    #[cfg(any(test, feature = "simulation"))]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Compares each block with a walk at the revision of the counts, which must not be compacted.
    pub fn miscounted(&self, pinned: &PinnedView<'_>) -> storage::Result<Vec<Miscounted>> {
        let mut found = Vec::new();
        let mut walk = pinned.walk(&KeyRange::From(bytes::Bytes::new()), self.revision)?;
        let mut more = walk.advance()?;
        let mut blocks = self.blocks().peekable();
        while let Some(block) = blocks.next() {
            let mut there = 0;
            let end = blocks.peek().map(|next| &next.from);
            while more && end.is_none_or(|end| walk.key() < end.as_ref()) {
                there += 1;
                more = walk.advance()?;
            }
            if there != block.keys {
                found.push(Miscounted {
                    from: block.from.to_vec(),
                    counted: block.keys,
                    there,
                });
            }
        }
        Ok(found)
    }
}

/// The wrong blocks of the counts that a state brought, as far as its history goes back; none where
/// there are none.
pub fn verify(pinned: &PinnedView<'_>) -> storage::Result<Vec<Miscounted>> {
    match KeyCounts::load(pinned.read)? {
        Some(counts) if counts.revision > pinned.head => Ok(Vec::new()),
        Some(counts) if counts.revision >= pinned.compacted => counts.miscounted(pinned),
        _ => Ok(Vec::new()),
    }
}
