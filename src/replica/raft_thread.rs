//! What the raft thread does: takes what came, lets `router` decide, and carries it out, a turn at a
//! time. `run` has threads take the turns; a simulator takes them in any order it likes.
//!
//! It never waits for the disk. What is to be made durable is passed to the log thread, what is
//! committed to the apply thread, and both tell the inbox how far they are: heartbeats and
//! elections continue however slow the disk is, and a leader whose disk stalls hands over. Only a
//! single member, which has nobody to keep waiting, takes the turns of both itself: each hop to
//! another thread would cost its writes 10 to 30 µs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::Span;

use super::apply_thread::{Applier, ApplyJob, ApplyThread, Begun, STAGES};
use super::dependencies::{Dependencies, Timing};
use super::fatal::Fatal;
use super::inbox::{Inbox, Input};
use super::log_thread::{LogJob, LogThread, LogWriter};
use super::outbound::send_grouped;
use super::proposal::Proposed;
use super::router::Router;
use super::shared::Shared;
use super::state_store::{Checkpoint, Received, SnapshotStore};
use super::work::{AppliedGroup, Work};
use crate::error::Error;
use crate::failpoints::{self, Failpoint};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etchedpeer::forwarded::Proposal as ForwardedKind;
use crate::raft::{Message, MessageType, Persist, Replica};
use crate::state::Machine;
use crate::storage;
use crate::storage::raft_log::RaftLog;
use crate::transport::{Network, PeerMessage};
use crate::types::MemberId;

/// Proposals that go to the disk in one write, about. Each is there several times until then, as
/// a request, an entry and a part of a frame.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// What may be outstanding in a server: see `Timing`.
pub const MAX_OUTSTANDING_BYTES: usize = 32 << 20;
/// The first election is brought forward where a quorum is connected this soon after a start;
/// etcd's figure.
const ADVANCE_LIMIT: Duration = Duration::from_secs(5);
/// A checkpoint that nobody is being sent is removed after this.
const CHECKPOINT_LIFE: Duration = Duration::from_secs(30);

/// A checkpoint that is offered to members which are too far behind.
struct Offered {
    checkpoint: Checkpoint,
    used_at: Duration,
}

/// Where entries are applied.
#[derive(Clone, Copy)]
enum Place {
    ItsThread,
    Here,
    HereToTheEnd,
}

/// See the module.
pub struct RaftThread {
    router: Router,
    log: LogThread,
    apply: ApplyThread,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    network: Arc<dyn Network>,
    states: Arc<dyn SnapshotStore>,
    timing: Timing,
    offered: Option<Offered>,
    making_checkpoint: bool,
    /// The received state that raft takes over, until it has the log reset to its entry.
    received: Option<Received>,
    next_tick: Duration,
    /// Until when the first election may be brought forward; none: it was, or is not to be.
    advance_until: Option<Duration>,
}

impl RaftThread {
    /// Of a member with this part in raft, this log and this state.
    pub fn new(
        deps: &Dependencies,
        shared: Arc<Shared>,
        states: Arc<dyn SnapshotStore>,
        replica: Replica,
        log: RaftLog,
        machine: Machine,
    ) -> Self {
        let (network, timing) = (deps.network.clone(), deps.timing);
        let inbox = Arc::new(Inbox::new(deps.inbox_bytes));
        let now = shared.clock.now();
        let first_request = shared.rng.next_u64();
        let limit_ticks = timing.request_ticks();
        let applier = Applier::new(machine, shared.clone(), network.clone(), timing);
        let apply = ApplyThread {
            clock: shared.clock.clone(),
            applier: Arc::new(Mutex::new(applier)),
            jobs: Arc::default(),
            inbox: inbox.clone(),
            states: states.clone(),
            stages: STAGES,
        };
        let log = LogThread {
            writer: Arc::new(Mutex::new(LogWriter::new(log, shared.clone()))),
            jobs: Arc::default(),
            apply_jobs: apply.jobs.clone(),
            inbox: inbox.clone(),
            network: network.clone(),
        };
        Self {
            router: Router::new(shared.member, replica, first_request, limit_ticks),
            log,
            apply,
            inbox,
            network,
            states,
            next_tick: now + timing.tick,
            advance_until: timing
                .initial_election_tick_advance
                .then_some(now + ADVANCE_LIMIT),
            shared,
            timing,
            offered: None,
            making_checkpoint: false,
            received: None,
        }
    }

    /// Brings the machine up to what the log says is committed, and takes the lead where this
    /// member alone decides. Must be done before the first tick: raft looks for changes of
    /// membership that are not applied yet when it campaigns.
    pub fn recover(&mut self) -> Result<(), Fatal> {
        self.carry_out(true)?;
        if self.router.is_sole_voter() {
            probe::reached(CoveragePoint::SoleVoterElected);
            self.router.campaign()?;
            self.carry_out(true)?;
        }
        self.publish();
        Ok(())
    }

    /// When the next turn is due, by the member's clock, if nothing comes before.
    pub fn next_tick(&self) -> Duration {
        self.next_tick
    }

    /// Does what the inputs ask for and, when it is time, ticks. False once it has to stop.
    pub fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<bool, Fatal> {
        let now = self.shared.clock.now();
        if now >= self.next_tick {
            // After a stall one tick, not all that were missed: a stalled leader must not
            // take its own silence for that of the others.
            self.note_lateness(now - self.next_tick);
            self.tick(now);
            self.next_tick = now + self.timing.tick;
        }
        let mut stopping = false;
        let mut batch_bytes = 0;
        for input in inputs.drain(..) {
            if let Input::Propose(proposal) = &input {
                batch_bytes += proposal.encoded_bytes();
            }
            stopping |= matches!(input, Input::Stop);
            self.take(input, now)?;
            if batch_bytes >= MAX_BATCH_BYTES {
                self.carry_out(false)?;
                batch_bytes = 0;
            }
        }
        self.router.check_log()?;
        if self.router.queues_a_change() {
            // One that has just been elected proposes it, or hands over.
            self.note_connected();
        }
        self.carry_out(false)?;
        self.publish();
        if stopping {
            self.router.stop();
        }
        Ok(!stopping)
    }

    /// The thread that writes the log for this one.
    pub fn log_thread(&self) -> LogThread {
        self.log.clone()
    }

    /// The thread that applies entries for this one.
    pub fn apply_thread(&self) -> ApplyThread {
        self.apply.clone()
    }

    /// Who waits for what in the router, and the bytes that wait for the log and the apply thread.
    #[cfg(any(test, feature = "simulation"))]
    pub fn waiting(&self) -> (super::work::PendingCounts, usize) {
        (self.router.waiting(), self.outstanding_bytes())
    }

    /// Bytes that wait for the log and the apply thread.
    fn outstanding_bytes(&self) -> usize {
        self.log.jobs.outstanding_bytes() + self.apply.jobs.outstanding_bytes()
    }

    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[cfg(any(test, feature = "simulation"))]
    pub fn status(&self) -> crate::raft::replica::Status {
        self.router.status()
    }

    /// The members as raft knows them.
    #[cfg(any(test, feature = "simulation"))]
    pub fn progress(&self) -> Vec<crate::raft::replica::MemberProgress> {
        self.router.progress()
    }

    fn take(&mut self, input: Input, now: Duration) -> Result<(), Fatal> {
        match input {
            Input::Propose(proposal) if proposal.is_late(now) => {
                (proposal.reply)(Err(Error::DeadlineExceeded));
            }
            Input::Propose(proposal) => {
                if matches!(proposal.what, Proposed::Member(_)) {
                    self.note_connected();
                }
                self.router.propose(proposal);
            }
            Input::ReadIndex(reply) => self.router.read_index(reply),
            Input::Received(from, messages) => self.receive(from, messages),
            Input::Unreachable(member) => self.router.report_unreachable(member),
            Input::SnapshotSent(member, taken) => self.router.report_snapshot(member, taken),
            Input::SnapshotReceived(message, received) => self.restore(message, received),
            Input::SnapshotDeclined(message) => self.router.decline(message),
            Input::CheckpointMade(made) => self.offer(made),
            Input::Persisted(number) => self.router.persisted(number),
            Input::Applied(group) => self.applied(&group)?,
            Input::Flushed(index) => self.cut_log(index)?,
            Input::TransferLeader(to) => self.router.transfer_leader(to),
            Input::HandOver => {
                self.note_connected();
                self.router.hand_over();
            }
            Input::Stop => {}
        }
        Ok(())
    }

    /// Has the router know who could take leadership over.
    fn note_connected(&mut self) {
        let peers = self.router.progress().into_iter();
        let connected = peers.filter_map(|peer| {
            let since = self.network.active_since(peer.member)?;
            Some((peer.member, since))
        });
        self.router.set_connected(connected.collect());
    }

    /// Counts a heartbeat that this leader sends more than an interval late.
    fn note_lateness(&self, late: Duration) {
        if late > self.timing.tick
            && self.router.status().is_leader
            && !self.router.is_single_member()
        {
            self.shared.metrics.heartbeat_send_failures.increment();
            tracing::warn!(
                "heartbeat-interval" = ?self.timing.tick,
                exceeded = ?late,
                "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"
            );
        }
    }

    /// Brings the first election forward once a quorum is connected. A single member needs none of
    /// this: it has elected itself in `recover`.
    fn advance_election(&mut self, now: Duration) {
        let Some(until) = self.advance_until else {
            return;
        };
        let over = now > until || self.router.status().leader != 0;
        let advanced = !over && self.router.advance_election();
        if advanced {
            tracing::info!(
                "local-member-id" = %self.shared.member,
                "initialized peer connections; fast-forwarding election ticks"
            );
        }
        if over || advanced {
            self.advance_until = None;
        }
    }

    fn tick(&mut self, now: Duration) {
        // What a tick does, and what it elects, may hand leadership over.
        self.note_connected();
        self.advance_election(now);
        self.router.tick();
        if self.router.status().is_leader {
            self.shared.raft.publish_progress(self.router.progress());
            let busy = self.log.jobs.working_for(now);
            let busy = busy.max(self.apply.jobs.working_for(now));
            let stalled = busy > self.timing.election_timeout;
            if stalled && let Some(to) = self.router.hand_over() {
                probe::reached(CoveragePoint::LeaderHandedOverForDisk);
                tracing::warn!(
                    stalled_for = ?busy,
                    transferee = %to,
                    "the disk does not take what this leader writes; handing leadership over"
                );
            }
        }
        let unused = |offered: &mut Offered| {
            Arc::strong_count(&offered.checkpoint.files) == 1
                && now > offered.used_at + CHECKPOINT_LIFE
        };
        if self.offered.take_if(unused).is_some() {
            self.router.offer_snapshot(None);
        }
    }

    fn receive(&mut self, from: MemberId, messages: Vec<PeerMessage>) {
        let full = self.outstanding_bytes() > self.timing.max_outstanding_bytes;
        for message in messages {
            match message {
                // The leader sends it again.
                PeerMessage::Raft(message) if full && is_append(&message) => {
                    probe::reached(CoveragePoint::AppendDropped);
                }
                PeerMessage::Raft(message) => self.router.step(message),
                PeerMessage::Forwarded(message) => {
                    if matches!(message.proposal, Some(ForwardedKind::MemberChange(_))) {
                        self.note_connected();
                    }
                    self.router.propose_for(from, message);
                }
                PeerMessage::Refused {
                    request_id,
                    term,
                    error,
                } => self.router.refused(request_id, term, error),
            }
        }
    }

    fn restore(&mut self, message: Message, received: Received) {
        let entry_id = received.entry_id;
        if self.router.restore(message) {
            tracing::info!(index = entry_id.index, "taking over a state of the leader");
            self.received = Some(received);
        } else {
            probe::reached(CoveragePoint::SnapshotUnwanted);
            tracing::info!(index = entry_id.index, "a state came that is not needed");
        }
    }

    fn offer(&mut self, made: storage::Result<Checkpoint>) {
        self.making_checkpoint = false;
        let checkpoint = match made {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                // No harm to this member; it is tried again when raft next wants one.
                tracing::warn!(%error, "cannot make a checkpoint for another member");
                return;
            }
        };
        self.router
            .offer_snapshot(Some(checkpoint.snapshot.clone()));
        self.offered = Some(Offered {
            checkpoint,
            used_at: self.shared.clock.now(),
        });
    }

    /// Does everything that there is to do. `all_here`: on this thread, whatever other threads
    /// exist.
    fn carry_out(&mut self, all_here: bool) -> Result<(), Fatal> {
        while let Some(mut work) = self.router.work() {
            self.send(&mut work);
            let here = all_here
                || (self.router.is_single_member()
                    && self.received.is_none()
                    && self.log.jobs.is_idle()
                    && self.apply.jobs.is_idle());
            if let Some(persist) = work.persist {
                let job = self.log_job(persist, work.logged_in)?;
                self.write(job, here)?;
            }
            if !work.entries.is_empty() {
                let job = ApplyJob::Entries {
                    entries: work.entries,
                    replies: work.replies,
                    spans: work.applied_in,
                    promoted_in_term: work.promoted_in_term,
                };
                let place = match (all_here, here) {
                    (true, _) => Place::HereToTheEnd,
                    (false, true) => Place::Here,
                    (false, false) => Place::ItsThread,
                };
                self.apply(job, place)?;
            }
            self.reply_reads(work.reads);
        }
        Ok(())
    }

    /// A reset comes with the received state that it makes room for.
    fn log_job(&mut self, persist: Persist, spans: Vec<Span>) -> Result<LogJob, Fatal> {
        let Some(entry_id) = persist.reset else {
            return Ok(LogJob::Persist(persist, None, spans));
        };
        let is_its = |received: &mut Received| received.entry_id == entry_id;
        let received = self.received.take_if(is_its);
        let received = received.ok_or(Fatal::NoFiles(entry_id.index))?;
        Ok(LogJob::Persist(persist, Some(received), spans))
    }

    /// Has the log thread do a job, or does it `here`.
    fn write(&mut self, job: LogJob, here: bool) -> Result<(), Fatal> {
        if here {
            let persisted = |number| self.router.persisted(number);
            return self.log.carry_out([job], persisted);
        }
        let bytes = job.bytes();
        self.log.jobs.push(job, bytes);
        Ok(())
    }

    /// Has the apply thread do a job, or does it here; then the apply thread gets what is left of
    /// a long deletion, unless nobody is served yet.
    fn apply(&mut self, job: ApplyJob, place: Place) -> Result<(), Fatal> {
        let job = match place {
            Place::HereToTheEnd => {
                let group = self.apply.apply(job)?;
                return self.applied(&group);
            }
            Place::Here => match self.apply.begin(job)? {
                Begun::Done(group) => return self.applied(&group),
                Begun::Rest(rest) => rest,
            },
            Place::ItsThread => job,
        };
        let bytes = job.bytes();
        self.apply.jobs.push(job, bytes);
        Ok(())
    }

    fn applied(&mut self, group: &AppliedGroup) -> Result<(), Fatal> {
        self.router.applied(group.index, &group.member_changes)?;
        if !group.member_changes.is_empty() {
            // Before anything is sent to a new member: see `Handle::linearizable_view`.
            self.shared
                .raft
                .set_single_member(self.reads_as_single_member());
        }
        Ok(())
    }

    fn reply_reads(&self, reads: Vec<(u64, Vec<super::reads::ReadReply>)>) {
        for (index, replies) in reads {
            let shared = &self.shared;
            shared.waiting_reads.wait(index, replies, &shared.raft);
        }
    }

    /// Sends what need not wait for the disk.
    fn send(&mut self, work: &mut Work) {
        failpoints::hit_each(|| {
            let leads = self.router.status().is_leader;
            leads.then_some(Failpoint::RaftBeforeLeaderSend)
        });
        self.send_raft(std::mem::take(&mut work.messages));
        for (to, message) in work.forwards.drain(..) {
            self.network.send(to, vec![PeerMessage::Forwarded(message)]);
        }
        for refusal in work.refusals.drain(..) {
            let refused = PeerMessage::Refused {
                request_id: refusal.request_id,
                term: refusal.term,
                error: refusal.error,
            };
            self.network.send(refusal.to, vec![refused]);
        }
        if work.snapshot_wanted && !self.making_checkpoint {
            self.make_checkpoint();
        }
    }

    fn send_raft(&mut self, messages: Vec<Message>) {
        let (snapshots, messages) = messages
            .into_iter()
            .partition::<Vec<_>, _>(|m| m.get_msg_type() == MessageType::MsgSnapshot);
        send_grouped(self.network.as_ref(), messages);
        for message in snapshots {
            match &mut self.offered {
                Some(offered) => {
                    offered.used_at = self.shared.clock.now();
                    let files = offered.checkpoint.files.clone();
                    self.network.send_snapshot(message, files);
                }
                None => self.router.report_snapshot(MemberId(message.to), false),
            }
        }
    }

    fn make_checkpoint(&mut self) {
        let (states, shared) = (self.states.clone(), self.shared.clone());
        let inbox = self.inbox.clone();
        self.making_checkpoint = true;
        self.shared.executor.spawn_blocking(Box::new(move || {
            let made = states.checkpoint(shared.engine().as_ref());
            // A closed inbox means that the member is stopping.
            let _ = inbox.push(Input::CheckpointMade(made));
        }));
    }

    /// Lets go of entries that a durable state holds, but for those kept for members that lag.
    fn cut_log(&mut self, durable_index: u64) -> Result<(), Fatal> {
        let applied = self.shared.raft.applied_index();
        let kept = applied.saturating_sub(self.timing.catch_up_entries);
        let offered = self.offered.as_ref();
        let offered = offered.map_or(u64::MAX, |offered| {
            offered.checkpoint.snapshot.get_metadata().index
        });
        let cut = durable_index.min(kept).min(offered);
        let here = self.router.is_single_member() && self.log.jobs.is_idle();
        self.write(LogJob::Cut(cut), here)
    }

    /// True where nobody else can know of a write before this member does.
    fn reads_as_single_member(&self) -> bool {
        let overlooks = probe::injected(Defect::LearnerOverlooked);
        self.router.is_single_member() || overlooks && self.router.is_sole_voter()
    }

    fn publish(&self) {
        let status = self.router.status();
        if status.leader != 0 && status.leader != self.shared.raft.leader() {
            self.shared.metrics.leader_changes.increment();
        }
        let single_member = self.reads_as_single_member();
        let now = self.shared.clock.now();
        self.shared.raft.publish(&status, single_member, now);
    }
}

/// Kept small: an append that has entries is one.
fn is_append(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgAppend && !message.entries.is_empty()
}
