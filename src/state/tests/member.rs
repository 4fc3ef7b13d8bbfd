//! One member's state machine on an engine, and what an engine holds byte by byte.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::mvcc::compaction;
use crate::mvcc::read::PinnedView;
use crate::mvcc::write::SliceLimit;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::etchedpeer::MemberChange;
use crate::state::machine::{Entry, Payload};
use crate::state::{Group, Machine};
use crate::storage::memory::MemoryEngine;
use crate::storage::{Batch, Engine, Family, Read};

/// An entry of the log; entries are made anew from it each time they are applied.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // A test's log is short.
pub enum Logged {
    Empty,
    Request(InternalRaftRequest),
    Member(MemberChange),
}

/// Every record of every family.
pub type Dump = Vec<(Family, Bytes, Bytes)>;

pub fn dump(read: &dyn Read) -> Dump {
    let mut records = Vec::new();
    for family in Family::ALL {
        let mut cursor = read.cursor(family, &[], None).expect("reads");
        while cursor.next().expect("reads") {
            let key = Bytes::copy_from_slice(cursor.key());
            records.push((family, key, Bytes::copy_from_slice(cursor.value())));
        }
    }
    records
}

/// The entry at `index`; every other request as bytes, as after a restart.
pub fn entry(index: u64, logged: &Logged) -> Entry {
    let payload = match logged {
        Logged::Empty => Payload::Empty,
        Logged::Request(request) if index.is_multiple_of(2) => {
            Payload::Request(request.encode_to_vec().into())
        }
        Logged::Request(request) => Payload::Decoded(Arc::new(request.clone())),
        Logged::Member(change) => Payload::Membership(change.clone()),
    };
    Entry {
        index,
        term: 1 + index / 10,
        payload,
    }
}

pub struct Member {
    pub engine: Arc<dyn Engine>,
    pub machine: Machine,
}

impl Member {
    pub fn on(engine: Arc<dyn Engine>) -> Self {
        Self::with(engine, SliceLimit::default())
    }

    pub fn with(engine: Arc<dyn Engine>, limit: SliceLimit) -> Self {
        let machine = Machine::open_with(engine.clone(), limit).expect("opens");
        Self { engine, machine }
    }

    pub fn new() -> Self {
        Self::on(Arc::new(MemoryEngine::new()))
    }

    /// Applies entries of `log`, which begins at index 1, up to index `to`, in groups of `size`.
    pub fn apply_log(&mut self, log: &[Logged], to: u64, size: usize) -> Vec<Group> {
        let from = self.machine.applied_index();
        let indexes: Vec<u64> = (from + 1..=to).collect();
        let groups = indexes.chunks(size);
        groups.map(|group| self.apply_group(log, group)).collect()
    }

    pub fn apply_group(&mut self, log: &[Logged], indexes: &[u64]) -> Group {
        let entries = indexes
            .iter()
            .map(|index| entry(*index, &log[*index as usize - 1]))
            .collect();
        let group = self.machine.apply(entries).expect("applies");
        if let Some(last) = indexes.last() {
            let last = entry(*last, &log[*last as usize - 1]);
            let applied = (self.machine.applied_index(), self.machine.applied_term());
            assert_eq!(applied, (last.index, last.term));
            let again = Machine::open(self.engine.clone()).expect("opens");
            assert_eq!((again.applied_index(), again.applied_term()), applied);
            assert_eq!(again.head(), self.machine.head());
            assert_eq!(again.auth(), self.machine.auth());
        }
        group
    }

    pub fn pinned(&self) -> PinnedView<'_> {
        PinnedView {
            read: self.engine.latest(),
            head: self.machine.head(),
            compacted: self.machine.compacted(),
            counts: None,
        }
    }

    /// Removes compacted history: at most `batches` batches of `limit` records each.
    pub fn compact(&self, limit: usize, batches: usize) {
        let mut at = compaction::unfinished(self.engine.latest()).expect("reads");
        let mut batch = Batch::default();
        for _ in 0..batches {
            let Some(progress) = at else {
                return;
            };
            let read = self.engine.view();
            at = compaction::step(read.as_ref(), progress, limit, &mut batch).expect("steps");
            self.engine.write(&batch).expect("writes");
            batch.clear();
        }
    }

    pub fn dump(&self) -> Dump {
        dump(self.engine.latest())
    }

    /// What is there once every compaction has come to its end.
    pub fn settled_dump(&self) -> Dump {
        self.compact(7, usize::MAX);
        self.dump()
    }
}
