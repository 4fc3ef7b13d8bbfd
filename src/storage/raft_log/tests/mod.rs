//! The log against a model, on a disk that crashes, on one that is tampered with, and on a real
//! one.

mod crash;
mod damage;
mod real;
mod rules;
mod synced;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::memory::Random;
use super::segment::{Pace, make_zeroed};
use super::{
    Batch, EntryId, Error, LogEntry, LogOptions, MemoryDisk, OpenFile, Prepare, RaftLog, Reader,
    Recovered,
};

pub const SEGMENT_BYTES: u64 = 4096;

pub const OPTIONS: LogOptions = LogOptions {
    segment_bytes: SEGMENT_BYTES,
    cluster_id: 0xc1,
    member_id: 0x3e,
    sync: true,
};

/// What a log is to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    pub entries: BTreeMap<u64, (u64, Bytes)>,
    pub entry_id: EntryId,
    pub last: u64,
    pub hard_state: Option<Vec<u8>>,
}

impl Model {
    /// What the log answers, each way of asking checked against the others.
    pub fn of(log: &RaftLog, recovered: &Recovered) -> Self {
        assert_eq!(
            (recovered.compacted, recovered.last_index),
            (log.compacted(), log.last_index())
        );
        let mut model = Self::seen_by(&log.reader());
        model.entry_id = recovered.compacted;
        model.hard_state.clone_from(&recovered.hard_state);
        assert_eq!(log.term(model.entry_id.index), Some(model.entry_id.term));
        model
    }

    pub fn seen_by(reader: &Reader) -> Self {
        let (first, last) = (reader.first_index(), reader.last_index());
        let all = reader.read(first, last + 1, u64::MAX).expect("all entries");
        let mut entries = BTreeMap::new();
        for (index, entry) in (first..).zip(all) {
            assert_eq!(entry.index, index);
            assert_eq!(reader.term(index), Some(entry.term));
            entries.insert(index, (entry.term, entry.data));
        }
        assert_eq!(entries.len() as u64, last + 1 - first);
        assert_eq!(reader.term(last + 1), None);
        Self {
            entries,
            last,
            ..Self::default()
        }
    }

    pub fn append(&mut self, entries: &[LogEntry], hard_state: Option<&[u8]>) {
        if let Some(first) = entries.first() {
            self.entries.split_off(&first.index);
        }
        for entry in entries {
            self.entries
                .insert(entry.index, (entry.term, entry.data.clone()));
            self.last = entry.index;
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = Some(hard_state.to_vec());
        }
    }

    pub fn compact(&mut self, to_index: u64) {
        if to_index > self.entry_id.index {
            let (term, _) = self.entries[&to_index];
            let index = to_index;
            self.entry_id = EntryId { index, term };
            self.entries = self.entries.split_off(&(to_index + 1));
        }
    }

    pub fn reset(&mut self, entry_id: EntryId, hard_state: Option<&[u8]>) {
        self.entries.clear();
        self.entry_id = entry_id;
        self.last = entry_id.index;
        self.append(&[], hard_state);
    }
}

/// An entry whose data tells its index and term.
pub fn entry(index: u64, term: u64, bytes: usize) -> LogEntry {
    let pattern = format!("entry {index} of term {term};").into_bytes();
    let data = pattern.into_iter().cycle().take(bytes).collect();
    LogEntry { index, term, data }
}

pub fn entries(range: std::ops::Range<u64>, term: u64, bytes: usize) -> Vec<LogEntry> {
    range.map(|index| entry(index, term, bytes)).collect()
}

pub fn append(log: &mut RaftLog, entries: &[LogEntry], hard_state: Option<&[u8]>) {
    let batch = Batch {
        entries,
        hard_state,
    };
    log.append(batch).expect("an append on a good disk");
}

pub fn create(disk: &MemoryDisk) -> RaftLog {
    RaftLog::create(Arc::new(disk.clone()), OPTIONS).expect("a new log")
}

pub fn open(disk: &MemoryDisk) -> Result<(RaftLog, Recovered), Error> {
    RaftLog::open(Arc::new(disk.clone()), OPTIONS)
}

/// Makes each segment at once, as the thread would have done by the time it is needed.
pub struct Eager {
    disk: MemoryDisk,
    made: Option<(String, Arc<dyn OpenFile>)>,
}

impl Eager {
    pub fn new(disk: &MemoryDisk) -> Self {
        let disk = disk.clone();
        Self { disk, made: None }
    }
}

impl Prepare for Eager {
    fn begin(&mut self, name: &str, bytes: u64) {
        let file = make_zeroed(&self.disk, name, bytes, &|| Pace::Gentle);
        self.made = file.ok().map(|file| (name.to_owned(), file));
    }

    fn take(&mut self, name: &str) -> Option<Arc<dyn OpenFile>> {
        let (made, file) = self.made.take()?;
        (made == name).then_some(file)
    }
}

/// The name of segment `sequence`.
pub fn segment(sequence: u64) -> String {
    super::segment::name(sequence)
}

/// The segments of a disk and their bytes, in order.
pub fn segments(disk: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    let mut files = disk.contents();
    files.retain(|name, _| super::segment::sequence(name).is_some());
    files
}

/// Where the bytes that are not zero end.
pub fn used(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1)
}
