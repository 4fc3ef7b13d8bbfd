//! An engine in memory for tests and the simulator. `crash` forgets what was not flushed, as a
//! machine that loses its power does.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Batch, Cursor, Engine, Error, Family, Op, Read, Result, Size};

type Map = BTreeMap<Vec<u8>, Bytes>;

/// All families at one moment; cheap to share, copied when it is written to while shared.
#[derive(Clone, Default)]
struct State {
    families: BTreeMap<Family, Arc<Map>>,
    bytes: u64,
}

impl State {
    fn apply(&mut self, batch: &Batch) {
        for op in batch.iter() {
            match op {
                Op::Put(family, key, value) => {
                    self.bytes += (key.len() + value.len()) as u64;
                    Arc::make_mut(self.families.entry(family).or_default())
                        .insert(key.to_vec(), Bytes::copy_from_slice(value));
                }
                Op::Delete(family, key) => {
                    Arc::make_mut(self.families.entry(family).or_default()).remove(key);
                }
            }
        }
    }
}

impl Read for State {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self
            .families
            .get(&family)
            .and_then(|map| map.get(key).cloned()))
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        let map = self.families.get(&family).cloned().unwrap_or_default();
        Ok(Box::new(MapCursor {
            map,
            from: Bound::Included(lower.to_vec()),
            upper: upper.map(<[u8]>::to_vec),
            entry: (Vec::new(), Bytes::new()),
        }))
    }
}

struct MapCursor {
    map: Arc<Map>,
    from: Bound<Vec<u8>>,
    upper: Option<Vec<u8>>,
    entry: (Vec<u8>, Bytes),
}

impl Cursor for MapCursor {
    fn next(&mut self) -> Result<bool> {
        let next = self
            .map
            .range((self.from.clone(), Bound::Unbounded))
            .next()
            .filter(|(key, _)| self.upper.as_ref().is_none_or(|upper| *key < upper));
        let Some((key, value)) = next else {
            return Ok(false);
        };
        self.entry = (key.clone(), value.clone());
        self.from = Bound::Excluded(key.clone());
        Ok(true)
    }

    fn seek(&mut self, key: &[u8]) -> Result<bool> {
        self.from = Bound::Included(key.to_vec());
        self.next()
    }

    fn key(&self) -> &[u8] {
        &self.entry.0
    }

    fn value(&self) -> &[u8] {
        &self.entry.1
    }
}

/// The engine; clones share their state.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    live: Mutex<State>,
    durable: Mutex<State>,
}

impl MemoryEngine {
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes back to the state of the last flush.
    pub fn crash(&self) {
        *self.shared.live.lock() = self.shared.durable.lock().clone();
    }
}

/// `latest` reads through the lock each time.
impl Read for MemoryEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.shared.live.lock().get(family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        let map = self
            .shared
            .live
            .lock()
            .families
            .get(&family)
            .cloned()
            .unwrap_or_default();
        Ok(Box::new(MapCursor {
            map,
            from: Bound::Included(lower.to_vec()),
            upper: upper.map(<[u8]>::to_vec),
            entry: (Vec::new(), Bytes::new()),
        }))
    }
}

impl Engine for MemoryEngine {
    fn latest(&self) -> &dyn Read {
        self
    }

    fn view(&self) -> Box<dyn Read> {
        Box::new(self.shared.live.lock().clone())
    }

    fn write(&self, batch: &Batch) -> Result<()> {
        self.shared.live.lock().apply(batch);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        *self.shared.durable.lock() = self.shared.live.lock().clone();
        Ok(())
    }

    fn persisted(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.shared.durable.lock().get(Family::Meta, key)
    }

    fn size(&self) -> Size {
        let bytes = self.shared.live.lock().bytes;
        Size {
            total_bytes: bytes,
            in_use_bytes: bytes,
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        let live = self.shared.live.lock().bytes;
        live - self.shared.durable.lock().bytes
    }

    fn compact(&self) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&self, _dir: &Path) -> Result<()> {
        Err(Error::Engine("a state in memory has no files".to_owned()))
    }

    fn retire(&self) {}
}
