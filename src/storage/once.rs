//! Reads that leave the engine's memory to others: what is read once takes no place of what is read
//! all the time.

use bytes::Bytes;

use super::{Cursor, Family, Read, Result};

/// A walk that has read so much reads what follows past the memory of the engine. A short one finds
/// there what the one before it read.
const LONG_BYTES: usize = 2 << 20;

/// A state of which much is read once.
pub struct ReadOnce<'a>(pub &'a dyn Read);

impl Read for ReadOnce<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get_once(family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        self.0.scan(family, lower, upper)
    }
}

/// A cursor for a walk that may be long: see `LONG_BYTES`.
pub fn walk<'a>(
    read: &'a dyn Read,
    family: Family,
    lower: &[u8],
    upper: Option<&[u8]>,
) -> Result<Box<dyn Cursor + 'a>> {
    Ok(Box::new(LongWalk {
        cursor: read.cursor(family, lower, upper)?,
        read,
        family,
        upper: upper.map(<[u8]>::to_vec),
        left_bytes: Some(LONG_BYTES),
    }))
}

struct LongWalk<'a> {
    read: &'a dyn Read,
    family: Family,
    upper: Option<Vec<u8>>,
    cursor: Box<dyn Cursor + 'a>,
    /// Until it is long; none where it is.
    left_bytes: Option<usize>,
}

impl LongWalk<'_> {
    /// Continues at or above `from` where it has just become long; true where it does.
    fn lengthen(&mut self, from: impl FnOnce(&dyn Cursor) -> Vec<u8>) -> Result<bool> {
        if self.left_bytes != Some(0) {
            return Ok(false);
        }
        let from = from(self.cursor.as_ref());
        self.cursor = self.read.scan(self.family, &from, self.upper.as_deref())?;
        self.left_bytes = None;
        Ok(true)
    }

    fn count(&mut self, found: bool) -> bool {
        if found && let Some(left) = &mut self.left_bytes {
            let bytes = self.cursor.key().len() + self.cursor.value().len();
            *left = left.saturating_sub(bytes);
        }
        found
    }
}

impl Cursor for LongWalk<'_> {
    fn next(&mut self) -> Result<bool> {
        self.lengthen(|cursor| [cursor.key(), &[0]].concat())?;
        let found = self.cursor.next()?;
        Ok(self.count(found))
    }

    fn seek(&mut self, key: &[u8]) -> Result<bool> {
        let found = match self.lengthen(|_| key.to_vec())? {
            true => self.cursor.next()?,
            false => self.cursor.seek(key)?,
        };
        Ok(self.count(found))
    }

    fn key(&self) -> &[u8] {
        self.cursor.key()
    }

    fn value(&self) -> &[u8] {
        self.cursor.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::rocks::{EngineLimits, RocksEngine};
    use crate::storage::{Batch, Engine};

    const VALUE_BYTES: usize = 4 << 10;
    const KEYS: u32 = 4 * (LONG_BYTES / VALUE_BYTES) as u32;

    fn engine(dir: &std::path::Path) -> RocksEngine {
        let limits = EngineLimits {
            open_files: 64,
            block_cache_bytes: 32 << 20,
            memtable_bytes: 1 << 20,
        };
        let engine = RocksEngine::open(dir, limits).expect("opens");
        for keys in (0..KEYS).collect::<Vec<_>>().chunks(100) {
            let mut batch = Batch::default();
            for key in keys {
                // Nothing that could be compressed.
                let value: Vec<u8> = (0..VALUE_BYTES as u32 / 4)
                    .flat_map(|at| {
                        (at ^ key.wrapping_mul(0x9e37_79b9))
                            .wrapping_mul(0x85eb_ca6b)
                            .to_le_bytes()
                    })
                    .collect();
                batch.put(Family::Current, &key.to_be_bytes(), &value);
            }
            engine.write(&batch).expect("writes");
        }
        engine.flush().expect("flushes");
        engine
    }

    fn cached_bytes(engine: &RocksEngine) -> usize {
        engine.size().block_cache_bytes as usize
    }

    #[test]
    fn a_long_walk_takes_little_of_the_cache_and_sees_everything() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine(dir.path());
        let before = cached_bytes(&engine);
        let mut walked = walk(engine.latest(), Family::Current, &[], None).expect("a cursor");
        for key in 0..KEYS {
            assert!(walked.next().expect("reads"), "{key}");
            assert_eq!(walked.key(), key.to_be_bytes());
            assert_eq!(walked.value().len(), VALUE_BYTES);
        }
        assert!(!walked.next().expect("reads") && !walked.next().expect("reads"));
        drop(walked);
        let after = cached_bytes(&engine) - before;
        // What came before it was long.
        let expected = LONG_BYTES / 2..2 * LONG_BYTES;
        assert!(expected.contains(&after), "{after}");
        let once = ReadOnce(engine.latest());
        for key in 0..KEYS {
            let found = once.get(Family::Current, &key.to_be_bytes());
            assert!(found.expect("reads").is_some(), "{key}");
        }
        let after = cached_bytes(&engine) - before;
        assert!(after < 2 * LONG_BYTES, "{after}");
        // As every other read does.
        for key in 0..KEYS {
            let found = engine.get(Family::Current, &key.to_be_bytes());
            assert!(found.expect("reads").is_some(), "{key}");
        }
        let after = cached_bytes(&engine) - before;
        assert!(after > 3 * LONG_BYTES, "{after}");
    }

    #[test]
    fn a_walk_becomes_long_between_any_two_moves() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine(dir.path());
        let end = (KEYS - 10).to_be_bytes();
        let mut walked = walk(engine.latest(), Family::Current, &[], Some(&end)).expect("a cursor");
        // By turns to the next, and to the next but one.
        let mut at = None;
        loop {
            let expected = at.map_or(0, |at: u32| at + 1 + at % 2);
            let found = match at {
                Some(at) if at % 2 == 1 => walked.seek(&(at + 2).to_be_bytes()),
                _ => walked.next(),
            };
            if !found.expect("reads") {
                break;
            }
            assert_eq!(walked.key(), expected.to_be_bytes());
            at = Some(expected);
        }
        assert!(at.is_some_and(|at| at >= KEYS - 12), "{at:?}");
        let mut empty = walk(engine.latest(), Family::Current, &end, Some(&end)).expect("a cursor");
        assert!(!empty.next().expect("reads") && !empty.seek(&end).expect("reads"));
    }
}
