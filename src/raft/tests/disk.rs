//! A member's raft log on a disk in memory, and what is still to be written to it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, HardState};

use crate::raft::replica::{self, InitialState, encode_hard_state};
use crate::raft::{Message, Persist, Replica};
use crate::storage::raft_log::{self, EntryId, Files, MemoryDisk, RaftLog, Reader};
use crate::types::MemberId;

/// Where the log of every founder begins.
pub const FOUNDING_ENTRY: EntryId = EntryId { index: 1, term: 1 };
pub const ELECTION_TICKS: usize = 10;

/// What a member's process leaves behind.
pub struct Disk {
    files: Arc<MemoryDisk>,
    member: MemberId,
}

impl Disk {
    /// That of a member which founds the cluster.
    pub fn founder(member: MemberId) -> Self {
        let disk = Self::joiner(member);
        let hard_state = encode_hard_state(FOUNDING_ENTRY.term, FOUNDING_ENTRY.index);
        let (mut log, _) = disk.open();
        log.reset(FOUNDING_ENTRY, Some(&hard_state))
            .expect("resets");
        disk
    }

    /// That of a member which joins: its log is empty.
    pub fn joiner(member: MemberId) -> Self {
        let disk = Self {
            files: Arc::new(MemoryDisk::new()),
            member,
        };
        RaftLog::create(disk.files(), options(member)).expect("a new log");
        disk
    }

    fn files(&self) -> Arc<dyn Files> {
        self.files.clone()
    }

    /// The log, and raft's hard state in it.
    pub fn open(&self) -> (RaftLog, Option<Bytes>) {
        let (log, recovered) =
            RaftLog::open(self.files(), options(self.member)).expect("a sound log");
        (log, recovered.hard_state.map(Into::into))
    }

    /// The process ends.
    pub fn kill(&self) {
        self.files.kill();
    }

    /// Somebody takes away the entries behind `index`.
    pub fn lose(&mut self, index: u64) {
        let (log, hard_state) = self.open();
        let reader = log.reader();
        let kept = read(&reader, reader.first_index(), index);
        let mut hard_state: HardState =
            prost_11::Message::decode(hard_state.unwrap_or_default()).expect("a hard state");
        hard_state.commit = hard_state.commit.min(index);
        *self = Self::founder(self.member);
        let (mut log, _) = self.open();
        let batch = raft_log::Batch {
            entries: &kept,
            hard_state: Some(&prost_11::Message::encode_to_vec(&hard_state)),
        };
        log.append(batch).expect("appends");
    }
}

fn options(member: MemberId) -> raft_log::LogOptions {
    raft_log::LogOptions {
        segment_bytes: 64 << 10,
        cluster_id: 1,
        member_id: member.0,
        sync: true,
    }
}

fn read(reader: &Reader, first: u64, last: u64) -> Vec<crate::storage::raft_log::LogEntry> {
    match first > last {
        true => Vec::new(),
        false => reader.read(first, last + 1, u64::MAX).expect("reads"),
    }
}

/// A replica that continues where the disk stopped. Its election timeouts follow from its id.
pub fn replica(
    member: MemberId,
    log: &RaftLog,
    hard_state: Option<Bytes>,
    conf_state: ConfState,
    applied_index: u64,
    pre_vote: bool,
) -> Replica {
    let options = replica::ReplicaOptions {
        member,
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 1,
        pre_vote,
        election_seed: member.0,
        recent_entries: crate::raft::log::RECENT_ENTRIES,
    };
    let restored = InitialState {
        reader: log.reader(),
        hard_state,
        conf_state,
        applied_index,
    };
    Replica::new(options, restored).expect("a replica")
}

/// The log of a member that runs, and what it was given to write and has not.
pub struct Writer {
    pub log: RaftLog,
    pub queue: VecDeque<Persist>,
}

/// A part that is on disk now.
pub struct Written {
    /// To be given back to raft.
    pub number: u64,
    /// The log begins behind the entry of a received state since.
    pub reset: Option<EntryId>,
    pub messages: Vec<Message>,
}

impl Writer {
    pub fn new(log: RaftLog) -> Self {
        Self {
            log,
            queue: VecDeque::new(),
        }
    }

    /// Makes the first part durable; `None` where there is none.
    pub fn write(&mut self) -> Option<Written> {
        let persist = self.queue.pop_front()?;
        let mut hard_state = persist.hard_state.as_deref();
        if let Some(entry_id) = persist.reset {
            let hard_state = hard_state.take();
            self.log.reset(entry_id, hard_state).expect("resets");
        }
        let batch = raft_log::Batch {
            entries: &persist.entries,
            hard_state,
        };
        self.log.append(batch).expect("appends");
        Some(Written {
            number: persist.number,
            reset: persist.reset,
            messages: persist.messages,
        })
    }
}
