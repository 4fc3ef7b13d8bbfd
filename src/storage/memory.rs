//! An engine in memory for tests and the simulator. `crash` drops what was not flushed, like a loss
//! of power; `refuse` makes it fail writes, as `RocksDB` does from the first failed write on until
//! it is reopened.

mod sorted;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use self::sorted::{EntryPosition, Sorted};
use super::schema::meta;
use super::{Batch, Cursor, Engine, Error, Family, Op, Read, Result, Size};

thread_local! {
    static READS_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Limits the reads of this thread: one more panics, since an endless loop of reads would keep a
/// world from ending.
pub fn allow_reads(reads: u64) {
    READS_LEFT.set(reads);
}

fn count_read() {
    let left = READS_LEFT.get().checked_sub(1);
    READS_LEFT.set(left.expect("someone reads without end"));
}

/// All families at one moment; cheap to copy and to change.
#[derive(Clone, Default)]
struct MemoryState {
    families: BTreeMap<Family, Sorted>,
    /// Of all readable keys and values.
    live_bytes: u64,
    /// Of those that were replaced or deleted since `compact`.
    dead_bytes: u64,
    /// Of everything written.
    written_bytes: u64,
    content: Content,
}

/// A hash over what members must agree on: a sum over keys and values, independent of the order of
/// writes.
#[derive(Clone, Copy, Debug, Default)]
struct Content(u64);

impl Content {
    /// Excludes what depends on a member's progress of compaction, or names the member.
    fn covers(family: Family, key: &[u8]) -> bool {
        match family {
            Family::Current | Family::LeaseKeys => true,
            Family::Undo | Family::Revisions | Family::Counts => false,
            Family::Meta => key != meta::COMPACTION_FINISHED,
        }
    }

    fn of(family: Family, key: &[u8], value: &[u8]) -> u64 {
        // The same in every process: it has no key.
        let mut hasher = DefaultHasher::new();
        (family, key, value).hash(&mut hasher);
        hasher.finish()
    }

    fn add(&mut self, family: Family, key: &[u8], value: &[u8]) {
        if Self::covers(family, key) {
            self.0 = self.0.wrapping_add(Self::of(family, key, value));
        }
    }

    fn take(&mut self, family: Family, key: &[u8], value: &[u8]) {
        if Self::covers(family, key) {
            self.0 = self.0.wrapping_sub(Self::of(family, key, value));
        }
    }
}

impl MemoryState {
    fn apply(&mut self, batch: &Batch) {
        for op in batch.iter() {
            match op {
                Op::Put(family, key, value) => {
                    let map = self.families.entry(family).or_default();
                    let stored = Bytes::copy_from_slice(value);
                    let before = map.insert(Bytes::copy_from_slice(key), stored);
                    self.forget(family, key, before);
                    let bytes = (key.len() + value.len()) as u64;
                    self.live_bytes += bytes;
                    self.written_bytes += bytes;
                    self.content.add(family, key, value);
                }
                Op::Delete(family, key) => {
                    let map = self.families.entry(family).or_default();
                    let before = map.remove(key);
                    self.forget(family, key, before);
                    self.written_bytes += key.len() as u64;
                }
            }
        }
    }

    fn forget(&mut self, family: Family, key: &[u8], before: Option<Bytes>) {
        if let Some(value) = before {
            let bytes = (key.len() + value.len()) as u64;
            self.live_bytes -= bytes;
            self.dead_bytes += bytes;
            self.content.take(family, key, &value);
        }
    }

    fn family(&self, family: Family) -> Sorted {
        self.families.get(&family).cloned().unwrap_or_default()
    }
}

impl Read for MemoryState {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        count_read();
        let map = self.families.get(&family);
        Ok(map.and_then(|map| map.get(key).cloned()))
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        Ok(Box::new(MapCursor::new(self.family(family), lower, upper)))
    }
}

struct MapCursor {
    map: Sorted,
    /// The next entry.
    next: EntryPosition,
    upper: Option<Vec<u8>>,
    entry: (Bytes, Bytes),
}

impl MapCursor {
    fn new(map: Sorted, lower: &[u8], upper: Option<&[u8]>) -> Self {
        count_read();
        Self {
            next: map.lower_bound(lower),
            map,
            upper: upper.map(<[u8]>::to_vec),
            entry: (Bytes::new(), Bytes::new()),
        }
    }
}

impl Cursor for MapCursor {
    fn next(&mut self) -> Result<bool> {
        let upper = self.upper.as_deref();
        let next = self
            .map
            .at(self.next)
            .filter(|(_, key, _)| upper.is_none_or(|upper| key.as_ref() < upper));
        let Some((place, key, value)) = next else {
            return Ok(false);
        };
        self.entry = (key.clone(), value.clone());
        self.next = Sorted::after(place);
        Ok(true)
    }

    fn seek(&mut self, key: &[u8]) -> Result<bool> {
        self.next = self.map.lower_bound(key);
        self.next()
    }

    fn key(&self) -> &[u8] {
        &self.entry.0
    }

    fn value(&self) -> &[u8] {
        &self.entry.1
    }
}

/// The checkpoints of engines in memory.
pub trait Checkpoints: Send + Sync {
    /// Stores a copy of an engine's state in place of files in `dir`, which must not exist.
    fn keep(&self, dir: &Path, copy: MemoryEngine) -> Result<()>;
}

/// The engine; clones share their state.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    live: Mutex<MemoryState>,
    durable: Mutex<MemoryState>,
    /// Weak, since the store of checkpoints holds engines.
    checkpoints: Option<Weak<dyn Checkpoints>>,
    refuses: Mutex<Refuses>,
}

/// The writes that an engine fails.
#[derive(Clone, Copy, Debug, Default)]
pub enum Refuses {
    #[default]
    Nothing,
    /// Flushes and checkpoints; writes to memory succeed.
    Flushes,
    /// Everything, after this many more writes, flushes and checkpoints.
    AllAfter(u64),
}

impl Shared {
    /// Counts a write, flush or checkpoint before it is executed.
    fn take(&self, to_disk: bool) -> Result<()> {
        let mut refuses = self.refuses.lock();
        match &mut *refuses {
            Refuses::AllAfter(left) if *left > 0 => *left -= 1,
            Refuses::Flushes if !to_disk => {}
            Refuses::Nothing => {}
            Refuses::Flushes | Refuses::AllAfter(_) => {
                return Err(Error::Engine("the disk takes nothing".to_owned()));
            }
        }
        Ok(())
    }
}

impl MemoryEngine {
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty engine that can make checkpoints.
    pub fn on(checkpoints: Weak<dyn Checkpoints>) -> Self {
        Self::holding(MemoryState::default(), Some(checkpoints))
    }

    fn holding(state: MemoryState, checkpoints: Option<Weak<dyn Checkpoints>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                live: Mutex::new(state.clone()),
                durable: Mutex::new(state),
                checkpoints,
                refuses: Mutex::default(),
            }),
        }
    }

    /// Returns to the state of the last flush.
    #[cfg(test)]
    pub fn crash(&self) {
        *self.shared.live.lock() = self.shared.durable.lock().clone();
    }

    /// Fails these writes from now on; engines made by `survivor` and `copy` fail none.
    pub fn refuse(&self, refuses: Refuses) {
        *self.shared.refuses.lock() = refuses;
    }

    /// A separate engine with the present state, all of it durable.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.shared.live.lock().clone();
        Self::holding(state, self.shared.checkpoints.clone())
    }

    /// A separate engine with the state of the last flush, which holders of this one no longer
    /// reach.
    #[must_use]
    pub fn survivor(&self) -> Self {
        let state = self.shared.durable.lock().clone();
        Self::holding(state, self.shared.checkpoints.clone())
    }

    /// A hash of what members agree on when they have applied the same entries, excluding what
    /// depends on the progress of compaction.
    pub fn content_hash(&self) -> u64 {
        self.shared.live.lock().content.0
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
        let map = self.shared.live.lock().family(family);
        Ok(Box::new(MapCursor::new(map, lower, upper)))
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
        self.shared.take(false)?;
        self.shared.live.lock().apply(batch);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.shared.take(true)?;
        *self.shared.durable.lock() = self.shared.live.lock().clone();
        Ok(())
    }

    fn persisted(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.shared.durable.lock().get(Family::Meta, key)
    }

    fn size(&self) -> Size {
        let live = self.shared.live.lock();
        Size {
            total_bytes: live.live_bytes + live.dead_bytes,
            in_use_bytes: live.live_bytes,
            ..Default::default()
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        let written = self.shared.live.lock().written_bytes;
        written - self.shared.durable.lock().written_bytes
    }

    fn compact(&self) -> Result<()> {
        self.shared.live.lock().dead_bytes = 0;
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        self.shared.take(true)?;
        let kept = self.shared.checkpoints.as_ref().and_then(Weak::upgrade);
        match kept {
            Some(checkpoints) => checkpoints.keep(dir, self.copy()),
            None => Err(Error::Engine("a state in memory has no files".to_owned())),
        }
    }

    fn retire(&self) {}
}
