//! A disk in memory that forgets what was not synced, for the simulator and for tests. What a crash
//! leaves is drawn from a seed: of each file any subset of the sectors written since its last sync,
//! each as of any write; of the directory any subset of the names made and taken away since it was
//! synced. Of a write that a crash tore, a bit may be other than it was written.
//!
//! Long because files, what crashes leave of them and what damages them share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Files, OpenFile};
use super::frame::{FRAME_HEADER_BYTES, SECTOR_BYTES, SEGMENT_HEADER_BYTES};
#[cfg(any(test, feature = "simulation"))]
use super::{LogOptions, segment, synced};

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<DiskState>>,
}

#[derive(Default)]
struct DiskState {
    files: BTreeMap<u64, Stored>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next_file: u64,
    /// Changes asked for since the disk was made.
    operations: u64,
    stop_at: Option<u64>,
    stopped: bool,
    fail_sync: bool,
    /// What all files together may hold.
    capacity_bytes: Option<u64>,
    /// Bits that crashes have flipped.
    flips: u64,
    /// Counts the crashes; a handle of an earlier life is refused.
    life: u64,
    /// Counts the starts of the machine.
    boot: u32,
}

#[derive(Default, Clone)]
struct Stored {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

/// What somebody or a disk takes away that was synced.
#[cfg(any(test, feature = "simulation"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The last segment that was begun loses its end, of which nothing need have been used.
    CutShort,
    /// What lies behind a place that was synced when the log was marked reads as zeros.
    EndZeroed,
    /// A sector of what was synced when the log was marked reads as zeros.
    SectorZeroed,
    /// The last segment that was begun reads as zeros, is empty, or is gone.
    SegmentZeroed,
    SegmentEmptied,
    SegmentRemoved,
    /// Sectors that were written after the log was marked read as zeros, from one of them on.
    EndLost,
}

#[cfg(any(test, feature = "simulation"))]
impl Damage {
    /// With which no log opens.
    pub const REFUSED: [Damage; 6] = [
        Damage::CutShort,
        Damage::EndZeroed,
        Damage::SectorZeroed,
        Damage::SegmentZeroed,
        Damage::SegmentEmptied,
        Damage::SegmentRemoved,
    ];
}

/// What a crash does to writes that were not synced.
#[derive(Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// In order, up to some sector.
    Prefix,
    /// Each sector for itself.
    Scattered,
    /// The same; and of a write that lost a sector, another one has a bit flipped.
    Flipped,
}

impl MemoryDisk {
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes asked for so far: names made or taken away, writes, syncs.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power fails during the change of this number. Whether it takes effect is up to the
    /// crash; it and all that follow answer an error, until [`MemoryDisk::crash`].
    pub fn stop_at(&self, operation: u64) {
        self.state().stop_at = Some(operation);
    }

    /// Only so many bytes are free from now on: a file that is made or made longer beyond that
    /// fails. `None` for as many as anybody wants.
    pub fn fill(&self, free_bytes: Option<u64>) {
        let mut state = self.state();
        state.capacity_bytes = free_bytes.map(|free| state.used_bytes() + free);
    }

    /// Bits that crashes have flipped so far.
    #[cfg(test)]
    #[must_use]
    pub fn flips(&self) -> u64 {
        self.state().flips
    }

    /// Takes the power away and gives it back. Handles opened before are of no use any more.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state();
        let mut random = Random(seed);
        let names = state.surviving_names(&mut random);
        let mut files = BTreeMap::new();
        let mut flips = state.flips;
        for id in names.values() {
            if let Some(stored) = state.files.get(id) {
                let (survivor, flipped) = stored.after_crash(&mut random);
                files.insert(*id, survivor);
                flips += u64::from(flipped);
            }
        }
        *state = DiskState {
            files,
            durable_names: names.clone(),
            names,
            next_file: state.next_file,
            operations: state.operations,
            stop_at: None,
            stopped: false,
            fail_sync: false,
            capacity_bytes: state.capacity_bytes,
            flips,
            life: state.life + 1,
            boot: state.boot + 1,
        };
    }

    /// The process ends, the machine runs on: what was written can be read, and is as little
    /// durable as before. Handles opened before are of no use any more.
    pub fn kill(&self) {
        let mut state = self.state();
        state.stop_at = None;
        state.stopped = false;
        state.life += 1;
    }

    /// The next sync of a file fails, and nothing remembers that there was something to
    /// write: what the file holds can be read, but later syncs will not make it durable.
    pub fn fail_next_sync(&self) {
        self.state().fail_sync = true;
    }

    /// Changes bytes behind the log's back, durably.
    ///
    /// # Errors
    /// There is no such file.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state();
        let id = state.id(name)?;
        let stored = state.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        change(&mut stored.current);
        stored.durable = stored.current.clone();
        stored.unsynced.clear();
        Ok(())
    }

    /// All files and their bytes, as they read now.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let content = |id| {
            state
                .files
                .get(id)
                .map(|stored| stored.current.clone())
                .unwrap_or_default()
        };
        state
            .names
            .iter()
            .map(|(name, id)| (name.clone(), content(id)))
            .collect()
    }

    /// A disk that holds what this one reads now, all of it durable.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.state();
        let settle = |stored: &Stored| Stored {
            current: stored.current.clone(),
            durable: stored.current.clone(),
            unsynced: Vec::new(),
        };
        let copy = DiskState {
            files: state
                .files
                .iter()
                .map(|(id, stored)| (*id, settle(stored)))
                .collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            next_file: state.next_file,
            boot: state.boot,
            ..DiskState::default()
        };
        let state = Arc::new(Mutex::new(copy));
        Self { state }
    }

    /// Damages the log on the disk as no crash does; says what was done, or `None` where there is
    /// nothing to damage.
    #[cfg(any(test, feature = "simulation"))]
    pub fn damage(&self, damage: Damage, options: LogOptions, seed: u64) -> Option<String> {
        let mut random = Random(seed);
        let marked = synced::read(self, options.owner()).ok()??.position;
        if marked.sequence == 0 {
            return None;
        }
        let mut state = self.state();
        // It is marked when a segment is begun.
        let name = segment::name(marked.sequence);
        let id = state.id(&name).ok()?;
        let bytes = &mut state.files.get_mut(&id)?.current;
        let end = bytes.iter().rposition(|byte| *byte != 0)? as u64 + 1;
        // Something of a frame lies in each sector before the mark, and in each up to the end.
        let marked_sectors = marked.offset.div_ceil(SECTOR_BYTES);
        let sectors = end.div_ceil(SECTOR_BYTES);
        let at = match damage {
            Damage::CutShort => 1 + random.below(bytes.len() as u64 - 1),
            Damage::EndZeroed | Damage::SectorZeroed => random.below(marked_sectors) * SECTOR_BYTES,
            Damage::EndLost if sectors <= marked_sectors => return None,
            Damage::EndLost => {
                let lost = 1 + random.below(sectors - marked_sectors);
                (sectors - lost) * SECTOR_BYTES
            }
            Damage::SegmentZeroed | Damage::SegmentEmptied | Damage::SegmentRemoved => 0,
        };
        let from = at as usize;
        match damage {
            Damage::CutShort | Damage::SegmentEmptied => bytes.truncate(from),
            Damage::EndZeroed | Damage::EndLost | Damage::SegmentZeroed => {
                bytes.get_mut(from..)?.fill(0);
            }
            Damage::SectorZeroed => bytes.get_mut(from..from + SECTOR_BYTES as usize)?.fill(0),
            Damage::SegmentRemoved => {
                state.names.remove(&name);
                state.durable_names.remove(&name);
            }
        }
        // While the machine runs, what was written is in its memory.
        state.boot += 1;
        if let Some(stored) = state.files.get_mut(&id) {
            stored.durable.clone_from(&stored.current);
            stored.unsynced.clear();
        }
        Some(format!("{damage:?} {name} from byte {at} of {end} on"))
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, id: u64, life: u64) -> Arc<dyn OpenFile> {
        Arc::new(MemoryFile {
            disk: self.clone(),
            id,
            life,
        })
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is gone")
}

impl DiskState {
    /// Counts a change; answers whether the power fails during it.
    fn begin(&mut self) -> io::Result<bool> {
        self.check_power()?;
        self.operations += 1;
        self.stopped = self.stop_at == Some(self.operations);
        Ok(self.stopped)
    }

    fn check_power(&self) -> io::Result<()> {
        if self.stopped {
            Err(no_power())
        } else {
            Ok(())
        }
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used_bytes(&self) -> u64 {
        let named = self.names.values().filter_map(|id| self.files.get(id));
        named.map(|stored| stored.current.len() as u64).sum()
    }

    /// Refuses so many bytes more where they are not free.
    fn check_space(&self, more_bytes: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if more_bytes > 0 && self.used_bytes() + more_bytes > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn surviving_names(&self, random: &mut Random) -> BTreeMap<String, u64> {
        let all: BTreeSet<&String> = self.names.keys().chain(self.durable_names.keys()).collect();
        let mut surviving = BTreeMap::new();
        for name in all {
            let from = if random.below(2) == 0 {
                &self.names
            } else {
                &self.durable_names
            };
            if let Some(id) = from.get(name) {
                surviving.insert(name.clone(), *id);
            }
        }
        surviving
    }
}

impl Stored {
    /// What is left, and whether a bit of it was flipped.
    fn after_crash(&self, random: &mut Random) -> (Self, bool) {
        let fate = match random.below(8) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 => Fate::Prefix,
            3 | 4 => Fate::Flipped,
            _ => Fate::Scattered,
        };
        let mut image = self.durable.clone();
        image.resize(self.current.len(), 0);
        let sectors = (self.current.len() as u64).div_ceil(SECTOR_BYTES);
        let prefix = random.below(sectors + 1);
        for sector in 0..sectors {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(image.len() as u64);
            let writes: Vec<_> = self
                .unsynced
                .iter()
                .filter(|(at, bytes)| *at < end && at + bytes.len() as u64 > start)
                .collect();
            let kept = match fate {
                Fate::Lost => 0,
                Fate::Kept => writes.len(),
                Fate::Prefix if sector < prefix => writes.len(),
                Fate::Prefix => 0,
                Fate::Scattered | Fate::Flipped => random.below(writes.len() as u64 + 1) as usize,
            };
            for (at, bytes) in &writes[..kept] {
                let (from, to) = (start.max(*at), end.min(at + bytes.len() as u64));
                image[from as usize..to as usize]
                    .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
        }
        let flipped = matches!(fate, Fate::Flipped) && self.flip(&mut image, random);
        let (shortest, longest) = (self.durable.len() as u64, self.current.len() as u64);
        let length = match fate {
            Fate::Lost => shortest,
            Fate::Kept => longest,
            Fate::Prefix | Fate::Scattered | Fate::Flipped => {
                shortest + random.below(longest - shortest + 1)
            }
        };
        image.truncate(length as usize);
        let survivor = Self {
            current: image.clone(),
            durable: image,
            unsynced: Vec::new(),
        };
        (survivor, flipped)
    }

    /// Flips a bit of a write that is not synced, and takes another sector of it away where none
    /// is missing; false where no write can be treated so.
    ///
    /// A log cannot tell a frame that was harmed before it was synced from one that was harmed
    /// after, unless a sector of it is missing; nor how long a frame is whose head was harmed. It
    /// refuses both, as it must, so neither is done here: only what leaves a torn tail.
    fn flip(&self, image: &mut [u8], random: &mut Random) -> bool {
        const HEADS_BYTES: u64 = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES;
        let Some((at, bytes)) = self.unsynced.last() else {
            return false;
        };
        let (start, end) = (*at, at + bytes.len() as u64);
        let first_sector = start / SECTOR_BYTES;
        let sectors = (end.div_ceil(SECTOR_BYTES)).saturating_sub(first_sector);
        let old = self.durable.get(start as usize..).unwrap_or_default();
        let old = &old[..old.len().min(bytes.len())];
        // Nothing may have been here before: what was durable is never harmed.
        let is_new = old.iter().all(|byte| *byte == 0) && bytes.iter().any(|byte| *byte != 0);
        if !is_new || sectors < 2 {
            return false;
        }
        let missing = random.below(sectors);
        let harmed = (missing + 1 + random.below(sectors - 1)) % sectors;
        let span = |sector: u64| {
            let from = (first_sector + sector) * SECTOR_BYTES;
            (start.max(from), end.min(from + SECTOR_BYTES))
        };
        let (from, to) = span(missing);
        image[from as usize..to as usize].fill(0);
        let (from, to) = span(harmed);
        let from = from.max(start + HEADS_BYTES);
        let is_there = from < to
            && image[from as usize..to as usize]
                .iter()
                .any(|byte| *byte != 0);
        if is_there {
            let byte = from + random.below(to - from);
            image[byte as usize] ^= 1 << random.below(8);
        }
        is_there
    }
}

impl Files for MemoryDisk {
    fn boot(&self) -> u32 {
        1 + self.state().boot
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.check_power()?;
        state.check_space(1)?;
        let fails = state.begin()?;
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, Stored::default());
        state.names.insert(name.to_owned(), id);
        if fails {
            Err(no_power())
        } else {
            Ok(self.handle(id, state.life))
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        let state = self.state();
        state.check_power()?;
        Ok(self.handle(state.id(name)?, state.life))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.id(name)?;
        let fails = state.begin()?;
        state.names.remove(name);
        if fails { Err(no_power()) } else { Ok(()) }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.begin()? {
            return Err(no_power());
        }
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("memory/{name}")
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    id: u64,
    life: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut DiskState) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.check_power()?;
        if state.life != self.life {
            return Err(io::Error::other("the file was opened before a crash"));
        }
        act(&mut state)
    }

    fn stored<'a>(&self, state: &'a mut DiskState) -> io::Result<&'a mut Stored> {
        state
            .files
            .get_mut(&self.id)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl OpenFile for MemoryFile {
    fn bytes(&self) -> io::Result<u64> {
        self.with(|state| Ok(self.stored(state)?.current.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let current = &self.stored(state)?.current;
            let start = current
                .len()
                .min(usize::try_from(offset).unwrap_or(usize::MAX));
            let bytes = &current[start..current.len().min(start + buffer.len())];
            buffer[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state| {
            let start = offset as usize;
            let end = start + bytes.len();
            let longer = end.saturating_sub(self.stored(state)?.current.len());
            state.check_space(longer as u64)?;
            let fails = state.begin()?;
            let stored = self.stored(state)?;
            if stored.current.len() < end {
                stored.current.resize(end, 0);
            }
            stored.current[start..end].copy_from_slice(bytes);
            stored.unsynced.push((offset, bytes.to_vec()));
            if fails { Err(no_power()) } else { Ok(()) }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            if state.begin()? {
                return Err(no_power());
            }
            let fails = std::mem::take(&mut state.fail_sync);
            let stored = self.stored(state)?;
            if fails {
                stored.unsynced.clear();
                return Err(io::Error::other("the disk refused a write"));
            }
            stored.durable.resize(stored.current.len(), 0);
            for (offset, bytes) in std::mem::take(&mut stored.unsynced) {
                let start = offset as usize;
                stored.durable[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            Ok(())
        })
    }
}

/// `SplitMix64`: enough to draw what a crash leaves, and the same on every machine.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: u64 = SECTOR_BYTES;

    #[test]
    fn a_crash_harms_only_what_was_not_synced() {
        let mut flips = 0;
        for seed in 0..200 {
            let disk = MemoryDisk::new();
            let file = disk.create("a").expect("a file");
            file.write_at(&vec![0; 8 * SECTOR as usize], 0)
                .expect("zeros");
            file.write_at(&[1; 700], 0).expect("a write");
            file.sync_data().expect("a sync");
            disk.sync_directory().expect("a sync");
            file.write_at(&[7; 1_500], 700).expect("a write");
            disk.crash(seed);
            let read = disk.contents().remove("a").expect("the file");
            assert_eq!(read[..700], [1; 700]);
            assert_eq!(read[2_200..], vec![0; 8 * SECTOR as usize - 2_200]);
            let strange = read[700..2_200]
                .iter()
                .filter(|byte| ![0, 7].contains(*byte));
            assert_eq!(strange.count() as u64, disk.flips(), "seed {seed}");
            flips += disk.flips();
            if disk.flips() > 0 {
                let mut ends = vec![700];
                ends.extend((2..5).map(|sector| sector * SECTOR as usize));
                ends.push(2_200);
                let missing = ends.windows(2);
                let missing = missing.filter(|ends| read[ends[0]..ends[1]].iter().all(|b| *b == 0));
                assert!(
                    missing.count() > 0,
                    "seed {seed}: not to be distinguished from damage"
                );
            }
        }
        assert!(flips > 10, "{flips}");
    }

    #[test]
    fn what_was_synced_before_is_never_harmed() {
        for seed in 0..100 {
            let disk = MemoryDisk::new();
            let file = disk.create("a").expect("a file");
            file.write_at(&[1; 2_000], 0).expect("a write");
            file.sync_data().expect("a sync");
            disk.sync_directory().expect("a sync");
            // Recovery writes the last frame again.
            file.write_at(&[1; 2_000], 0).expect("a write");
            disk.crash(seed);
            assert_eq!(disk.contents()["a"], [1; 2_000]);
            assert_eq!(disk.flips(), 0);
        }
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_room() {
        let disk = MemoryDisk::new();
        let file = disk.create("a").expect("a file");
        file.write_at(&[1; 100], 0).expect("a write");
        disk.fill(Some(10));
        let full = |outcome: io::Result<()>| {
            outcome.expect_err("no room").kind() == io::ErrorKind::StorageFull
        };
        assert!(full(file.write_at(&[2; 11], 100)));
        assert_eq!(file.bytes().expect("a length"), 100);
        file.write_at(&[2; 10], 100).expect("it fits");
        assert!(full(file.write_at(&[2; 1], 110)));
        assert!(full(disk.create("b").map(drop)));
        let operations = disk.operations();
        file.write_at(&[3; 110], 0).expect("no room is needed");
        file.sync_data().expect("a sync");
        assert_eq!(disk.operations(), operations + 2);
        disk.sync_directory().expect("a sync");
        disk.crash(1);
        assert!(full(disk.create("b").map(drop)), "a crash frees nothing");
        disk.unlink("a").expect("it is there");
        disk.create("b").expect("room again");
        disk.fill(None);
        let file = disk.open("b").expect("a file");
        file.write_at(&[1; 1_000], 0).expect("room for all");
    }
}
