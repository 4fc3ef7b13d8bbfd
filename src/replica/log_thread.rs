//! The log thread: appends what raft hands out, many parts in one write, and truncates or resets
//! the log.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Span;

use super::apply_thread::ApplyJob;
use super::fatal::Fatal;
use super::inbox::{Inbox, Input};
use super::outbound::send_grouped;
use super::pipe::Pipe;
use super::shared::Shared;
use super::state_store::Received;
use crate::failpoints::{self, Failpoint};
use crate::probe::{self, CoveragePoint, Defect};
use crate::raft::{Message, Persist};
use crate::storage::raft_log::{self, EntryId, LogEntry, RaftLog};
use crate::trace::{self, TimedSpans};
use crate::transport::Network;

/// The bytes of parts in one write, about.
const MAX_WRITE_BYTES: usize = 4 << 20;

pub enum LogJob {
    /// For a reset: the received state that replaces the current one, which is switched to after
    /// the reset. And the spans of those proposals among the entries that are in a trace.
    Persist(Persist, Option<Received>, Vec<Span>),
    /// Removes the entries up to an index.
    Cut(u64),
}

impl LogJob {
    /// Of the entries in it.
    pub fn bytes(&self) -> usize {
        match self {
            LogJob::Persist(persist, ..) => entry_bytes(persist),
            LogJob::Cut(_) => 0,
        }
    }
}

fn entry_bytes(persist: &Persist) -> usize {
    persist.entries.iter().map(|entry| entry.data.len()).sum()
}

/// Parts that are on disk.
#[derive(Default)]
struct Done {
    /// That of the last part.
    number: u64,
    messages: Vec<Message>,
    received: Option<Received>,
}

/// The parts of a log thread.
#[derive(Clone)]
pub struct LogThread {
    pub(super) writer: Arc<Mutex<LogWriter>>,
    pub jobs: Arc<Pipe<LogJob>>,
    pub(super) apply_jobs: Arc<Pipe<ApplyJob>>,
    pub(super) inbox: Arc<Inbox>,
    pub network: Arc<dyn Network>,
}

impl LogThread {
    /// A turn of the thread: does the jobs and reports its progress to the raft thread.
    pub fn turn(&self, jobs: Vec<LogJob>) -> Result<(), Fatal> {
        self.carry_out(jobs, |number| {
            // A closed inbox means that the member is stopping.
            let _ = self.inbox.push(Input::Persisted(number));
        })
    }

    /// Does jobs in order, many parts in one write, then what had to wait for that; `persisted` is
    /// called with the number of the last durable part.
    pub fn carry_out(
        &self,
        jobs: impl IntoIterator<Item = LogJob>,
        mut persisted: impl FnMut(u64),
    ) -> Result<(), Fatal> {
        let mut gathered = Gathered::default();
        for job in jobs {
            match job {
                LogJob::Persist(persist, received, spans) => {
                    // A reset is a write of its own, together with the parts after it.
                    let resets = persist.reset.is_some();
                    if resets || gathered.bytes >= MAX_WRITE_BYTES {
                        self.write(&mut gathered, &mut persisted)?;
                    }
                    gathered.add(persist, received, spans);
                    if resets {
                        self.write(&mut gathered, &mut persisted)?;
                    }
                }
                LogJob::Cut(index) => {
                    self.write(&mut gathered, &mut persisted)?;
                    self.writer.lock().cut(index)?;
                }
            }
        }
        self.write(&mut gathered, &mut persisted)
    }

    /// The log is left in order: nothing more comes.
    pub fn close(&self) -> Result<(), Fatal> {
        Ok(self.writer.lock().log.synced_mark().write()?)
    }

    fn write(&self, gathered: &mut Gathered, persisted: &mut impl FnMut(u64)) -> Result<(), Fatal> {
        if gathered.parts == 0 {
            return Ok(());
        }
        if let Some(received) = &mut gathered.done.received {
            // A reset that failed may still be on disk, and then the received state must be as
            // well.
            received.files.stay();
        }
        let done = self.writer.lock().write(std::mem::take(gathered))?;
        if let Some(received) = done.received {
            self.apply_jobs.push(ApplyJob::Restore(received), 0);
        }
        // Before the messages: raft must know of it when their responses arrive.
        persisted(done.number);
        send_grouped(self.network.as_ref(), done.messages);
        Ok(())
    }
}

/// The log, and the metrics of its writes.
pub struct LogWriter {
    log: RaftLog,
    shared: Arc<Shared>,
}

/// Parts that are written together.
#[derive(Default)]
struct Gathered {
    entries: Vec<LogEntry>,
    bytes: usize,
    hard_state: Option<Vec<u8>>,
    /// See `Persist`.
    binds: bool,
    settles: bool,
    reset: Option<EntryId>,
    done: Done,
    spans: Vec<Span>,
    parts: usize,
}

impl Gathered {
    fn add(&mut self, persist: Persist, received: Option<Received>, spans: Vec<Span>) {
        if let Some(first) = persist.entries.first() {
            // Later entries replace conflicting earlier ones.
            let kept = self
                .entries
                .partition_point(|entry| entry.index < first.index);
            self.entries.truncate(kept);
        }
        self.bytes += entry_bytes(&persist);
        self.entries.extend(persist.entries);
        if persist.hard_state.is_some() || probe::injected(Defect::HardStateDropped) {
            self.hard_state = persist.hard_state;
        }
        self.binds |= persist.binds;
        self.settles |= persist.settles;
        self.reset = persist.reset;
        self.done.number = persist.number;
        self.done.messages.extend(persist.messages);
        self.done.received = received;
        self.spans.extend(spans);
        self.parts += 1;
    }
}

impl LogWriter {
    pub fn new(log: RaftLog, shared: Arc<Shared>) -> Self {
        Self { log, shared }
    }

    fn write(&mut self, gathered: Gathered) -> Result<Done, raft_log::Error> {
        let clock = &self.shared.clock;
        let entries = gathered.entries.len() as i64;
        // Ends with this write.
        let logging = TimedSpans::begin(clock.now(), &gathered.spans, |of| {
            trace::below!(of, "log", entries)
        });
        let bytes_before = self.log.stats().bytes_written;
        let mut hard_state = gathered.hard_state.as_deref();
        if let Some(entry_id) = gathered.reset {
            failpoints::hit(Failpoint::RaftBeforeSaveSnap);
            self.log.reset(entry_id, hard_state.take())?;
            failpoints::hit(Failpoint::RaftAfterSaveSnap);
        }
        failpoints::hit(Failpoint::RaftBeforeSave);
        if !gathered.entries.is_empty() || hard_state.is_some() {
            self.log.append(raft_log::Batch {
                entries: &gathered.entries,
                hard_state,
            })?;
        }
        if gathered.settles {
            self.log.settle_doubt()?;
        } else if gathered.binds && !probe::injected(Defect::VoteUnmarked) {
            self.log.synced_mark().write()?;
        }
        let bytes = self.log.stats().bytes_written - bytes_before;
        if bytes > 0 {
            let metrics = &self.shared.metrics;
            metrics.wal_fsync.observe(logging.took(clock.now()));
            metrics.wal_write_bytes.add(bytes as i64);
        }
        failpoints::hit(Failpoint::RaftAfterSave);
        Ok(gathered.done)
    }

    /// Removes the entries up to `index`.
    fn cut(&mut self, index: u64) -> Result<(), raft_log::Error> {
        let index = index.min(self.log.last_index());
        if index + 1 > self.log.first_index() {
            self.log.compact(index)?;
            probe::reached(CoveragePoint::LogCut);
            tracing::info!(compact_index = index, "compacted raft log");
        }
        Ok(())
    }
}
