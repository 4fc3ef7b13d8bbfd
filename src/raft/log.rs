//! The raft log as read by raft-rs.
//!
//! Entries stay in memory until they are durable and applied, and a while longer for followers that
//! lag; older ones are read from the segment files. What a received state replaced is gone here at
//! once, even while the files still contain it.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use raft_proto::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};

use crate::probe::{self, CoveragePoint, Defect};
use crate::storage::raft_log::{EntryId, LogEntry, Reader};

/// Applied entries kept in memory for followers.
pub const RECENT_ENTRIES: usize = 1024;
const KEPT_BYTES: usize = 4 << 20;

/// raft-rs's view of the log.
pub struct LogView {
    reader: Reader,
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    kept_entries: usize,
    persisted_index: u64,
    hard_state: HardState,
    conf_state: ConfState,
    /// A received state replaced the log, and the files do not have that yet.
    reset: Option<EntryId>,
    /// The raft snapshot message for members that lag too far behind.
    offered: Option<Snapshot>,
    /// raft needed a raft snapshot message, and there was none recent enough.
    wanted: Cell<bool>,
}

impl LogView {
    /// The log as found on disk; `kept_entries` stay in memory once they are applied.
    pub fn new(
        reader: Reader,
        hard_state: HardState,
        conf_state: ConfState,
        kept_entries: usize,
    ) -> Self {
        Self {
            persisted_index: reader.last_index(),
            reader,
            recent: VecDeque::new(),
            recent_bytes: 0,
            kept_entries,
            hard_state,
            conf_state,
            reset: None,
            offered: None,
            wanted: Cell::new(false),
        }
    }

    /// Empties the log, which continues after `entry_id`.
    pub fn reset(&mut self, entry_id: EntryId) {
        self.recent.clear();
        self.recent_bytes = 0;
        self.persisted_index = entry_id.index;
        self.reset = Some(entry_id);
    }

    /// The files have been reset to this entry. A later state may have arrived in the meantime,
    /// to which they are not reset yet.
    pub fn reset_persisted(&mut self, entry_id: EntryId) {
        self.reset.take_if(|reset| *reset == entry_id);
    }

    /// Sets or removes the raft snapshot message for members that lag too far behind.
    pub fn offer(&mut self, snapshot: Option<Snapshot>) {
        self.offered = snapshot;
    }

    /// True once after raft needed a raft snapshot message that was not there.
    pub fn take_wanted(&mut self) -> bool {
        self.wanted.take()
    }

    /// Adds new entries; they replace conflicting ones.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        if self.last_index().is_ok_and(|last| last >= first.index) {
            probe::reached(CoveragePoint::ConflictTruncated);
            if probe::injected(Defect::ConflictKept) {
                return;
            }
        }
        while self
            .recent
            .back()
            .is_some_and(|last| last.index >= first.index)
        {
            if let Some(dropped) = self.recent.pop_back() {
                self.recent_bytes -= dropped.data.len();
            }
        }
        self.persisted_index = self.persisted_index.min(first.index - 1);
        self.recent_bytes += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.recent.extend(entries.iter().cloned());
    }

    /// Entries up to `index` are durable.
    pub fn persisted(&mut self, index: u64) {
        self.persisted_index = self.persisted_index.max(index);
    }

    /// Entries up to `index` are applied: those that are durable too may leave the memory.
    pub fn applied(&mut self, index: u64) {
        let until = index.min(self.persisted_index);
        while (self.recent.len() > self.kept_entries || self.recent_bytes > KEPT_BYTES)
            && self
                .recent
                .front()
                .is_some_and(|first| first.index <= until)
        {
            if let Some(dropped) = self.recent.pop_front() {
                self.recent_bytes -= dropped.data.len();
            }
        }
    }

    fn first(&self) -> u64 {
        match self.reset {
            Some(entry_id) => entry_id.index + 1,
            None => self.reader.first_index(),
        }
    }

    fn recent_first(&self) -> Option<u64> {
        self.recent.front().map(|entry| entry.index)
    }
}

/// A raft entry as the segment files keep it: its kind followed by its data.
pub fn to_disk(entry: &Entry) -> LogEntry {
    let mut data = Vec::with_capacity(1 + entry.data.len());
    data.push(entry.entry_type as u8);
    data.extend_from_slice(&entry.data);
    LogEntry {
        index: entry.index,
        term: entry.term,
        data: data.into(),
    }
}

/// Decodes such an entry; `None` if the bytes are invalid.
pub fn from_disk(entry: &LogEntry) -> Option<Entry> {
    let (kind, data) = entry.data.split_first()?;
    EntryType::from_i32(i32::from(*kind))?;
    Some(Entry {
        entry_type: i32::from(*kind),
        term: entry.term,
        index: entry.index,
        data: data.to_vec(),
        ..Default::default()
    })
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState {
            hard_state: self.hard_state.clone(),
            conf_state: self.conf_state.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if let Some(first) = self.recent_first().filter(|first| low >= *first) {
            let mut bytes = 0u64;
            let range = (low - first) as usize..(high - first) as usize;
            if range.end > self.recent.len() {
                return Err(raft::Error::Store(StorageError::Unavailable));
            }
            let fitting = self.recent.range(range).take_while(|entry| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(entry.data.len() as u64 + 24);
                first || bytes <= max_bytes
            });
            return Ok(fitting.cloned().collect());
        }
        if self.reset.is_some() {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let on_disk_end = self.recent_first().map_or(high, |first| first.min(high));
        let read = self
            .reader
            .read(low, on_disk_end, max_bytes)
            .map_err(other)?;
        read.iter()
            .map(|entry| {
                from_disk(entry).ok_or_else(|| {
                    other(std::io::Error::other(format!(
                        "entry {} of the raft log is of no known kind",
                        entry.index
                    )))
                })
            })
            .collect()
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if let Some(first) = self.recent_first().filter(|first| index >= *first) {
            return self
                .recent
                .get((index - first) as usize)
                .map(|entry| entry.term)
                .ok_or(raft::Error::Store(StorageError::Unavailable));
        }
        if index + 1 < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if let Some(entry_id) = self.reset {
            return match index == entry_id.index {
                true => Ok(entry_id.term),
                false => Err(raft::Error::Store(StorageError::Unavailable)),
            };
        }
        self.reader
            .term(index)
            .ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(match (self.recent.back(), self.reset) {
            (Some(entry), _) => entry.index,
            (None, Some(entry_id)) => entry_id.index,
            (None, None) => self.reader.last_index(),
        })
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let usable = self.offered.as_ref().filter(|snapshot| {
            let metadata = snapshot.get_metadata();
            let conf = metadata.get_conf_state();
            // It has to extend this log, and to contain the member that it is for.
            metadata.index >= request_index
                && metadata.index + 1 >= self.first()
                && (conf.voters.contains(&to) || conf.learners.contains(&to))
        });
        if let Some(snapshot) = usable {
            return Ok(snapshot.clone());
        }
        self.wanted.set(true);
        Err(raft::Error::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}
