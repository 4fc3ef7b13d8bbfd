//! Incoming transfers of a state, which are a checkpoint's files and the raft snapshot message: the
//! parts are written by `intake`, some at a time, and only a complete state is passed on. Incomplete
//! or invalid ones are removed and affect nothing else.
//!
//! Few come in at once, from members or the leader only, each at a pace; what they write takes turns
//! with all other work of the blocking pool. So a sender holds neither a thread nor the disk.
//!
//! What happens next is elsewhere: `raft` decides whether the state is newer than this member's,
//! and `server::states` opens it in place of the one in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::Inbound;
use super::context::Context;
use super::identity::{CallRefusal, why};
use super::intake::{Intake, Taken, Unfit, Whole};
use crate::env::{Executor, blocking};
use crate::error::Error;
use crate::metrics::PeerCells;
use crate::proto::etchedpeer::SnapshotPart;
use crate::types::MemberId;

/// So many come in at once. A member has one leader, and may get a new one while the last one's
/// state still comes.
const MAX_AT_ONCE: usize = 2;
/// So much is written at a time, where it is there.
const WRITE_BYTES: usize = 2 << 20;
/// A transfer of which less comes in the time that silence may last is given up, or who sends a byte
/// now and then would keep its place for ever.
const MIN_PROGRESS_BYTES: usize = 64 << 10;

/// Why this member takes a state from somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The state lists it, or this member joined by it.
    Member,
    /// This member follows it, and may have to get its state to know of it.
    Leader,
}

/// The members that are sending their state to this one.
pub struct Arrivals {
    context: Arc<Context>,
    senders: Mutex<BTreeMap<MemberId, Standing>>,
}

/// Held until all work on the transfer has ended.
struct Arrival {
    arrivals: Arc<Arrivals>,
    from: MemberId,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.senders.lock().remove(&self.from);
    }
}

impl Arrivals {
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            senders: Mutex::default(),
        }
    }

    /// Receives a state; completes when it is in use.
    pub async fn take(
        self: Arc<Self>,
        from: MemberId,
        standing: Standing,
        parts: Streaming<SnapshotPart>,
        inbound: Arc<dyn Inbound>,
    ) -> Result<(), Status> {
        let arrival = self.begin(from, standing)?;
        let counted = Counted::begin(self.context.clone(), from);
        let whole = match self.receive(from, arrival.clone(), parts).await {
            Ok(whole) => whole,
            Err(unfit) => {
                let reason = unfit.to_string();
                tracing::warn!(peer = %from, reason, "could not receive a state");
                return Err(status(&unfit));
            }
        };
        // Continues here if the connection breaks from now on.
        let installed = tokio::spawn(async move {
            let size_bytes = whole.size_bytes;
            tracing::info!(peer = %from, size_bytes, "received a state");
            let installed = inbound.snapshot_received(whole.message, whole.dir).await;
            match installed {
                Ok(()) => counted.succeed(),
                Err(error) => {
                    tracing::warn!(peer = %from, %error, "a received state was not put to use");
                }
            }
            drop(arrival);
            installed
        });
        match installed.await {
            Ok(installed) => installed.map_err(Status::from),
            Err(_) => Err(Status::from(Error::Stopped)),
        }
    }

    /// Takes a place for a transfer of this sender's.
    fn begin(self: &Arc<Self>, from: MemberId, standing: Standing) -> Result<Arc<Arrival>, Status> {
        let mut senders = self.senders.lock();
        if senders.contains_key(&from) {
            let text = "etched: a state of this member's is coming in already";
            return Err(Status::resource_exhausted(text));
        }
        // Anybody can say to lead, under one name after the other.
        let is_second = standing == Standing::Leader && senders.values().any(|of| *of == standing);
        if senders.len() >= MAX_AT_ONCE || is_second {
            return Err(Status::from(&CallRefusal::Busy));
        }
        senders.insert(from, standing);
        Ok(Arc::new(Arrival {
            arrivals: self.clone(),
            from,
        }))
    }

    async fn receive(
        &self,
        from: MemberId,
        arrival: Arc<Arrival>,
        parts: Streaming<SnapshotPart>,
    ) -> Result<Whole, Unfit> {
        let outside = &self.context.outside;
        let begun = outside.clock.now();
        let mut stream = Parts {
            parts,
            context: &self.context,
            patience: self.context.options.snapshot_silence,
            bytes: 0,
            end: None,
        };
        let mut writing = Writing {
            intake: None,
            executor: outside.executor.clone(),
            arrival,
        };
        let incoming = self.context.options.incoming_snapshots.clone();
        let number = outside.rng.next_u64();
        writing
            .work(move |_| Intake::begin(&incoming, number).map(Taken::Part))
            .await?;
        let whole = loop {
            let parts = stream.next().await?;
            let taken = writing.work(move |intake| match intake {
                Some(intake) => intake.take_all(parts),
                None => Err(Unfit::Order),
            });
            if let Some(whole) = taken.await? {
                break whole;
            }
        };
        let (sender, to) = (whole.message.from, whole.message.to);
        if to != self.context.local.member.0 || sender != from.0 {
            writing.discard(whole);
            let text = format!("its message is from {sender:x} to {to:x}");
            return Err(Unfit::Message(text));
        }
        let took = outside.clock.now().saturating_sub(begun);
        outside.metrics.snap_db_save.observe(took);
        Ok(whole)
    }
}

/// Parts as they come.
struct Parts<'a> {
    parts: Streaming<SnapshotPart>,
    context: &'a Context,
    /// How much longer they are waited for, and what came since it was last reset.
    patience: Duration,
    bytes: usize,
    /// Behind what was taken last.
    end: Option<Unfit>,
}

impl Parts<'_> {
    /// The next part, and those that are there already; none only with an error.
    async fn next(&mut self) -> Result<Vec<SnapshotPart>, Unfit> {
        if let Some(end) = self.end.take() {
            return Err(end);
        }
        let clock = &self.context.outside.clock;
        let begun = clock.now();
        let first = match timeout(self.patience, self.parts.message()).await {
            Ok(next) => of_stream(next)?,
            Err(_) => {
                let text = "nothing came for a while, or next to nothing";
                return Err(Unfit::Message(text.to_owned()));
            }
        };
        let waited = clock.now().saturating_sub(begun);
        self.patience = self.patience.saturating_sub(waited);
        let mut bytes = size_bytes(&first);
        let mut parts = vec![first];
        while bytes < WRITE_BYTES
            && let Some(next) = self.parts.message().now_or_never()
        {
            match of_stream(next) {
                Ok(part) => {
                    bytes += size_bytes(&part);
                    parts.push(part);
                }
                Err(end) => {
                    self.end = Some(end);
                    break;
                }
            }
        }
        self.bytes += bytes;
        if self.bytes >= MIN_PROGRESS_BYTES {
            self.bytes = 0;
            self.patience = self.context.options.snapshot_silence;
        }
        Ok(parts)
    }
}

fn of_stream(next: Result<Option<SnapshotPart>, Status>) -> Result<SnapshotPart, Unfit> {
    match next {
        Ok(Some(part)) => Ok(part),
        Ok(None) => Err(Unfit::Cut),
        Err(status) => Err(Unfit::Message(why(&status))),
    }
}

fn size_bytes(part: &SnapshotPart) -> usize {
    prost::Message::encoded_len(part)
}

/// The intake between its turns in the blocking pool, where it is also dropped.
struct Writing {
    intake: Option<Intake>,
    executor: Arc<dyn Executor>,
    arrival: Arc<Arrival>,
}

impl Writing {
    /// Has the intake do some work; returns the received state where it is whole then.
    async fn work(
        &mut self,
        work: impl FnOnce(Option<Intake>) -> Result<Taken, Unfit> + Send + 'static,
    ) -> Result<Option<Whole>, Unfit> {
        let (intake, arrival) = (self.intake.take(), self.arrival.clone());
        let done = blocking(self.executor.as_ref(), move || {
            let taken = work(intake);
            drop(arrival);
            taken
        });
        match done.await {
            Ok(Ok(Taken::Part(intake))) => {
                self.intake = Some(intake);
                Ok(None)
            }
            Ok(Ok(Taken::Whole(whole))) => Ok(Some(whole)),
            Ok(Err(unfit)) => Err(unfit),
            Err(_) => Err(Unfit::Message("the member is stopping".to_owned())),
        }
    }

    /// Drops what removes files where that may take its time.
    fn discard(&self, what: impl Send + 'static) {
        let arrival = self.arrival.clone();
        self.executor.spawn_blocking(Box::new(move || {
            drop(what);
            drop(arrival);
        }));
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(intake) = self.intake.take() {
            self.discard(intake);
        }
    }
}

fn status(unfit: &Unfit) -> Status {
    let text = format!("etched: the state was not taken: {unfit}");
    let code = match unfit {
        Unfit::Disk { .. } | Unfit::Room { .. } => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    };
    Status::new(code, text)
}

/// Counts a transfer as failed unless it is marked as successful.
struct Counted {
    context: Arc<Context>,
    cells: Arc<PeerCells>,
    begun: Duration,
    succeeded: bool,
}

impl Counted {
    fn begin(context: Arc<Context>, from: MemberId) -> Self {
        let cells = context.outside.metrics.peer(from);
        cells.snapshots_received.in_flight.add(1);
        Self {
            begun: context.outside.clock.now(),
            context,
            cells,
            succeeded: false,
        }
    }

    fn succeed(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let transfers = &self.cells.snapshots_received;
        transfers.in_flight.add(-1);
        if self.succeeded {
            let now = self.context.outside.clock.now();
            transfers.successes.increment();
            transfers.took.observe(now.saturating_sub(self.begun));
        } else {
            transfers.failures.increment();
        }
    }
}
