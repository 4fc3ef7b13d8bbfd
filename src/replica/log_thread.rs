//! What the log thread does: appends what raft hands out, many parts in one write, and cuts or
//! resets the log.

use std::sync::Arc;

use parking_lot::Mutex;

use super::apply_thread::ApplyJob;
use super::fatal::Fatal;
use super::inbox::{Inbox, Input};
use super::outbound::send_grouped;
use super::pipe::Pipe;
use super::shared::Shared;
use super::state_store::Received;
use crate::probe::{self, CoveragePoint, Defect};
use crate::raft::{Message, Persist};
use crate::storage::raft_log::{self, EntryId, LogEntry, RaftLog};
use crate::transport::Network;

/// Parts that go to the disk in one write, about.
const MAX_WRITE_BYTES: usize = 8 << 20;

pub enum LogJob {
    /// The received state is the one that the reset of the log makes room for.
    Persist(Persist, Option<Received>),
    /// Lets go of the entries up to an index.
    Cut(u64),
}

/// Parts that are on disk.
#[derive(Default)]
pub struct Done {
    /// That of the last part.
    pub number: u64,
    pub messages: Vec<Message>,
    pub received: Option<Received>,
}

/// What the log thread works with.
pub struct LogThread {
    pub(super) writer: Arc<Mutex<LogWriter>>,
    pub jobs: Arc<Pipe<LogJob>>,
    pub(super) apply_jobs: Arc<Pipe<ApplyJob>>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) network: Arc<dyn Network>,
}

impl LogThread {
    /// Does the jobs and tells who has to know.
    pub fn carry_out(&self, jobs: Vec<LogJob>) -> Result<(), Fatal> {
        LogWriter::carry_out(&self.writer, jobs, |done| {
            if let Some(received) = done.received {
                self.apply_jobs.push(ApplyJob::Restore(received), 0);
            }
            // Before the messages: raft must know of it when their answers come.
            // A closed inbox means that the member is stopping.
            let _ = self.inbox.push(Input::Persisted(done.number));
            send_grouped(self.network.as_ref(), done.messages);
        })
    }
}

/// The log, and where its times are counted.
pub struct LogWriter {
    log: RaftLog,
    shared: Arc<Shared>,
}

/// Parts that go to the disk together.
#[derive(Default)]
struct Gathered {
    entries: Vec<LogEntry>,
    bytes: usize,
    hard_state: Option<Vec<u8>>,
    reset: Option<EntryId>,
    done: Done,
    parts: usize,
}

impl Gathered {
    fn add(&mut self, persist: Persist, received: Option<Received>) {
        if let Some(first) = persist.entries.first() {
            // Later entries replace earlier ones, as they would one after the other.
            let kept = self
                .entries
                .partition_point(|entry| entry.index < first.index);
            self.entries.truncate(kept);
        }
        self.bytes += persist.entries.iter().map(|e| e.data.len()).sum::<usize>();
        self.entries.extend(persist.entries);
        if persist.hard_state.is_some() || probe::injected(Defect::HardStateDropped) {
            self.hard_state = persist.hard_state;
        }
        self.reset = persist.reset;
        self.done.number = persist.number;
        self.done.messages.extend(persist.messages);
        self.done.received = received;
        self.parts += 1;
    }
}

impl LogWriter {
    pub fn new(log: RaftLog, shared: Arc<Shared>) -> Self {
        Self { log, shared }
    }

    /// Does jobs in order; `done` is called with what is on disk, without the lock.
    pub fn carry_out(
        writer: &Mutex<Self>,
        jobs: Vec<LogJob>,
        mut done: impl FnMut(Done),
    ) -> Result<(), Fatal> {
        let mut gathered = Gathered::default();
        let mut write = |gathered: &mut Gathered| -> Result<(), Fatal> {
            if gathered.parts > 0 {
                let gathered = std::mem::take(gathered);
                done(writer.lock().write(gathered)?);
            }
            Ok(())
        };
        for job in jobs {
            match job {
                LogJob::Persist(persist, received) => {
                    // A reset is a write of its own, with what comes after it.
                    if persist.reset.is_some() || gathered.bytes >= MAX_WRITE_BYTES {
                        write(&mut gathered)?;
                    }
                    let resets = persist.reset.is_some();
                    gathered.add(persist, received);
                    if resets {
                        write(&mut gathered)?;
                    }
                }
                LogJob::Cut(index) => {
                    write(&mut gathered)?;
                    writer.lock().cut(index)?;
                }
            }
        }
        write(&mut gathered)
    }

    /// Makes parts durable; returns the messages that waited for it.
    pub fn persist(&mut self, parts: Vec<Persist>) -> Result<Vec<Message>, Fatal> {
        let mut gathered = Gathered::default();
        for part in parts {
            gathered.add(part, None);
        }
        Ok(self.write(gathered)?.messages)
    }

    fn write(&mut self, gathered: Gathered) -> Result<Done, raft_log::Error> {
        let clock = &self.shared.clock;
        let start = clock.now();
        let bytes_before = self.log.stats().bytes_written;
        let mut hard_state = gathered.hard_state.as_deref();
        if let Some(entry_id) = gathered.reset {
            self.log.reset(entry_id, hard_state.take())?;
        }
        if !gathered.entries.is_empty() || hard_state.is_some() {
            self.log.append(raft_log::Batch {
                entries: &gathered.entries,
                hard_state,
            })?;
        }
        let bytes = self.log.stats().bytes_written - bytes_before;
        if bytes > 0 {
            let metrics = &self.shared.metrics;
            metrics.wal_fsync.observe(clock.now() - start);
            metrics.wal_write_bytes.add(bytes as i64);
        }
        Ok(gathered.done)
    }

    /// Lets go of the entries up to `index`.
    pub fn cut(&mut self, index: u64) -> Result<(), raft_log::Error> {
        let index = index.min(self.log.last_index());
        if index + 1 > self.log.first_index() {
            self.log.compact(index)?;
            probe::reached(CoveragePoint::LogCut);
            tracing::info!(compact_index = index, "compacted raft log");
        }
        Ok(())
    }
}
