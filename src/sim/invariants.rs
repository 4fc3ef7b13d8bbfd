//! Invariants of a world, checked at every step, and accessors to what they need: one leader per
//! term, equal entries and equal states at equal indexes, bounded queues.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::history::{AppliedEntry, RecordedPayload};
use super::member::Process;
use super::world::World;
use crate::mvcc::compaction;
use crate::mvcc::counts::ViewCounts;
use crate::probe;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etchedpeer::MemberChange;
use crate::proto::membershippb::Member;
use crate::replica::state_store::entry_id_of;
use crate::state::membership::is_learner;
use crate::state::sliced;
use crate::types::MemberId;

/// Where the log of a cluster begins: see `FOUNDING_ENTRY`.
const FIRST_INDEX: u64 = 2;

/// A busy world needs some ten thousand.
const MAX_STEPS_A_SECOND: u64 = 40_000;
/// A world has a few dozen clients, each with one request at a time.
const MAX_PENDING: usize = 400;
/// A queue at its limit still accepts a batch that has been started: the leader's own proposals, or
/// one append at a follower.
const MAX_OVERSHOOT_BYTES: usize = 1 << 20;
/// A state may be sent again if its response was lost, and twice a second while the receiver's disk
/// is stalled, which takes eight seconds at most.
const MAX_ARRIVALS: u64 = 24;

impl World {
    pub(super) fn note_leader(&mut self, id: MemberId, term: u64) {
        if !self.leaders.contains_key(&term) {
            self.faults.note_elected(id, self.time.now_ns());
        }
        let leader = *self.leaders.entry(term).or_insert(id);
        if leader != id {
            self.find(
                "two leaders in one term",
                format!("{leader} and {id} in term {term}"),
            );
        }
    }

    /// Records each member's term; the first member in a new term is a candidate.
    pub(super) fn note_term(&mut self, id: MemberId, term: u64) {
        if self.terms.insert(id, term) != Some(term) {
            self.trace.note(format_args!("{id} is in term {term}"));
        }
    }

    /// Takes what was applied since the last check, and compares it with what other members
    /// applied.
    pub(super) fn note_applied(&mut self) {
        let now = self.time.now_ns();
        for applied in probe::take_applied() {
            let member = MemberId(applied.member);
            let payload = match applied.payload {
                probe::AppliedPayload::Empty => RecordedPayload::Empty,
                probe::AppliedPayload::Request(bytes) => RecordedPayload::Request(bytes),
                probe::AppliedPayload::Member(bytes) => {
                    let change = prost::Message::decode(bytes);
                    RecordedPayload::Member(change.unwrap_or_else(|_| MemberChange::default()))
                }
            };
            let entry = AppliedEntry {
                index: applied.index,
                term: applied.term,
                payload,
            };
            let place = (entry.index - FIRST_INDEX) as usize;
            match self.entries.get(place) {
                Some((_, known)) if *known == entry => {}
                Some((_, known)) => {
                    let details = format!("{member} applied {entry:?}, before it was {known:?}");
                    self.find("two members applied different entries", details);
                }
                None if place == self.entries.len() => {
                    self.trace.note(format_args!(
                        "entry {} of term {} is applied first by {member}",
                        entry.index, entry.term
                    ));
                    self.entries.push((now, entry));
                }
                None => {
                    let details = format!("{member} applied entry {} out of order", entry.index);
                    self.find("an entry was left out", details);
                }
            }
        }
    }

    /// Members that applied the same entries have the same state.
    pub(super) fn compare_state(&mut self, id: MemberId) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        if member.process.is_none() {
            return;
        }
        let state = member.disk.state();
        // Members that are within a deletion may have come to different parts of it.
        if self.is_within_deletion(id) {
            return;
        }
        // An unreadable state ends the member, which is reported separately.
        let Ok(entry_id) = entry_id_of(&state) else {
            return;
        };
        let (index, hash) = (entry_id.index, state.content_hash());
        let (known, by) = *self.hashes.entry(index).or_insert((hash, id));
        if known != hash {
            self.find(
                "two members differ at one index",
                format!("{by} and {id} after entry {index}"),
            );
        }
    }

    /// Checks that idle members do not run.
    pub(super) fn check_for_spin(&mut self, now: u64) {
        let second = now / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, self.steps);
        } else if self.steps - self.second.1 > MAX_STEPS_A_SECOND {
            let details = format!("{MAX_STEPS_A_SECOND} steps in second {second}");
            self.find("a member never becomes idle", details);
        }
    }

    /// Checks the bound of every queue.
    pub(super) fn check_queues(&mut self) {
        use crate::replica::inbox::MAX_WAITING;
        let mut over = Vec::new();
        for (id, member) in &self.members {
            let Some(process) = &member.process else {
                continue;
            };
            let inbox = process.raft.inbox();
            let (inputs, bytes) = inbox.waiting();
            // Messages to itself are not counted.
            if inputs > MAX_WAITING + 4_096 || bytes > inbox.max_waiting_bytes() {
                over.push(format!("inbox of {id}: {inputs} inputs, {bytes} bytes"));
            }
            let bytes = process.handle.shared().hub.held_bytes();
            let limit = self.config.watch_limits.total_bytes + (4 << 20);
            if bytes > limit {
                over.push(format!("watch events of {id}: {bytes} bytes"));
            }
            let (waiting, bytes) = process.raft.waiting();
            if waiting.sum() > MAX_PENDING {
                over.push(format!("those who wait for {id}: {waiting:?}"));
            }
            if bytes > self.config.max_outstanding_bytes + MAX_OVERSHOOT_BYTES {
                over.push(format!("the threads of {id}: {bytes} bytes"));
            }
        }
        for details in over {
            self.find("a queue is over its bound", details);
        }
        let arrivals = self.network.most_arrivals();
        if arrivals > MAX_ARRIVALS {
            let details = format!("{arrivals} times");
            self.find("a member is sent a state that it has", details);
        }
    }

    /// A member votes once per term.
    pub(super) fn check_votes(&mut self) {
        let broken = self.network.promises().take_broken();
        if let Some(details) = broken {
            self.find("a member voted twice in one term", details);
        }
    }

    /// No fault corrupts a member's data, so no CORRUPT alarm may be raised: it would refuse all
    /// writes.
    pub(super) fn check_for_false_alarms(&mut self) {
        let accused = self.members.values().find_map(|member| {
            let status = member.process.as_ref()?.handle.shared().status();
            let mut alarms = status.alarms.iter();
            let corrupt = alarms.find(|alarm| {
                // Operators also use ids that no member has.
                let is_member = self.members.contains_key(&MemberId(alarm.member_id));
                alarm.alarm == AlarmType::Corrupt as i32 && is_member
            })?;
            Some(MemberId(corrupt.member_id))
        });
        if let Some(accused) = accused {
            self.find(
                "a sound member is reported as corrupt",
                format!("{accused}"),
            );
        }
    }

    /// What a member shows is what it has.
    pub(super) fn check_shown(&mut self, id: MemberId) {
        self.check_applied(id);
        self.check_counts(id);
    }

    /// Between two groups a member reports the applied index of its state.
    fn check_applied(&mut self, id: MemberId) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let Some(process) = member
            .process
            .as_ref()
            .filter(|process| !process.is_applying())
        else {
            return;
        };
        let said = process.handle.shared().raft.applied_index();
        // A single member's raft thread may have left the rest of a deletion to the apply thread,
        // which has not taken it yet.
        if self.is_within_deletion(id) {
            return;
        }
        if let Ok(entry_id) = entry_id_of(&member.disk.state())
            && entry_id.index != said
        {
            let details = format!("{id} says {said}, its state {}", entry_id.index);
            self.find("a member does not know what it has applied", details);
        }
    }

    /// What a member has counted between keys is what a walk finds.
    fn check_counts(&mut self, id: MemberId) {
        let member = self.members.get_mut(&id);
        let Some(process) = member.and_then(|member| member.process.as_mut()) else {
            return;
        };
        let view = process.handle.shared().view();
        let newest = view.counts.as_ref().and_then(ViewCounts::newest);
        let Some(counts) = newest else {
            return;
        };
        let revision = counts.revision();
        let before = std::mem::replace(&mut process.counted, revision);
        if before == revision || revision < view.compacted || revision > view.head {
            return;
        }
        // An unreadable state ends the member, which is reported separately.
        let wrong = counts.miscounted(&view.pinned()).unwrap_or_default();
        if let Some(wrong) = wrong.first() {
            let details = format!("{id} at revision {revision}: {wrong:?}");
            self.find("keys are counted wrongly", details);
        }
    }

    /// A leader's term is on its disk before it sends messages as leader: otherwise it could lead
    /// in that term again, with different entries.
    pub(super) fn check_terms(&mut self, id: MemberId) {
        let led = self.network.promises().led_in(id);
        let durable = self
            .process(id)
            .map(|process| process.raft.status().durable_term);
        if let (Some(led), Some(durable)) = (led, durable)
            && led > durable
        {
            let details = format!("{id} in term {led}, with term {durable} on disk");
            self.find("a leader speaks in a term that is not on its disk", details);
        }
    }

    /// After all streams have ended, no watch is left.
    pub fn watches_are_gone(&self) -> bool {
        let mut processes = self
            .members
            .values()
            .filter_map(|member| member.process.as_ref());
        processes.all(|process| {
            let hub = &process.handle.shared().hub;
            let counters = hub.counters();
            let counts = [
                &counters.streams,
                &counters.watches,
                &counters.slow_watches,
                &counters.pending_events,
            ];
            hub.is_idle()
                && hub.held_bytes() == 0
                && counts.iter().all(|count| count.load(Relaxed) == 0)
        })
    }

    /// After convergence raft's configuration equals the members in the state.
    pub fn compare_members(&mut self) {
        let mut differing = Vec::new();
        for member in self.members.values() {
            let Some(process) = &member.process else {
                continue;
            };
            let status = process.handle.shared().status();
            let roles = |member: &Member| (MemberId(member.id), !is_learner(member));
            let stored: BTreeMap<MemberId, bool> = status.members.iter().map(roles).collect();
            let progress = process.raft.progress().into_iter();
            let counted: BTreeMap<_, _> = progress.map(|p| (p.member, p.voter)).collect();
            if stored != counted {
                differing.push(format!("{}: {stored:?} and {counted:?}", member.id));
            }
        }
        for details in differing {
            self.find("raft's members are not those of the state", details);
        }
    }

    /// No request is in progress at any member, whether or not its client still waits, and no work
    /// is queued for a thread.
    pub fn nothing_waits(&self) -> bool {
        let mut processes = self
            .members
            .values()
            .filter_map(|member| member.process.as_ref());
        let nothing = |process: &Process| {
            let (waiting, bytes) = process.raft.waiting();
            let reads = process.handle.shared().waiting_reads.count();
            waiting.sum() == 0 && bytes == 0 && reads == 0 && process.handle.is_idle()
        };
        self.clients.served() == 0 && processes.all(nothing)
    }

    /// All running members have applied everything that is committed.
    pub fn is_even(&self) -> bool {
        let mut indexes = self.members.values().filter_map(|member| {
            let process = member.process.as_ref()?;
            let raft = &process.handle.shared().raft;
            Some(raft.indexes())
        });
        let Some((commit, applied)) = indexes.next() else {
            return true;
        };
        applied == commit && indexes.all(|(c, a)| a == applied && c == commit)
    }

    /// The voters of the cluster that run.
    pub fn serving_members(&self) -> Vec<MemberId> {
        let processes = self
            .members
            .values()
            .filter_map(|member| member.process.as_ref());
        let newest = processes.max_by_key(|process| process.handle.shared().raft.applied_index());
        let Some(newest) = newest else {
            return Vec::new();
        };
        let status = newest.handle.shared().status();
        let voters = status.voters().map(|member| MemberId(member.id));
        voters.filter(|id| self.is_alive(*id)).collect()
    }

    /// Members that were removed from the cluster have exited.
    pub fn removed_are_gone(&self) -> bool {
        let removed = self.faults.removed.iter();
        removed.copied().all(|id| !self.is_alive(id))
    }

    /// No member has history left to remove.
    pub fn compactions_are_done(&self) -> bool {
        let processes = self
            .members
            .values()
            .filter_map(|member| member.process.as_ref());
        let mut engines = processes.map(|process| process.handle.shared().engine());
        engines
            .all(|engine| compaction::unfinished(engine.latest()).is_ok_and(|left| left.is_none()))
    }

    /// The state of each member, for reports.
    pub fn describe(&self) -> String {
        let (clients, served) = (self.busy_clients(), self.clients.served());
        let mut text = format!("{clients} client tasks, {served} requests;");
        for member in self.members.values() {
            let Some(process) = &member.process else {
                text.push_str(&format!(" {}: down;", member.id));
                continue;
            };
            let (status, shared) = (process.raft.status(), process.handle.shared());
            text.push_str(&format!(
                " {}: term {}, leader {:x}, last {}, committed {}, applied {};",
                member.id,
                status.term,
                status.leader,
                status.last_index,
                status.commit_index,
                shared.raft.applied_index()
            ));
            if status.is_leader {
                text.push_str(&format!(" {:?};", shared.raft.progress()));
            }
            text.push_str(&format!(" {:?};", process.raft.waiting()));
            if process.log_jobs.is_some() || process.is_applying() {
                text.push_str(" at work;");
            }
        }
        text
    }

    /// The number of clients' tasks that are not finished.
    pub fn busy_clients(&self) -> usize {
        self.clients.tasks.len()
    }

    /// True where a member's state holds a part of a deletion that is written in several batches.
    pub(super) fn is_within_deletion(&self, id: MemberId) -> bool {
        let state = self.members.get(&id).map(|member| member.disk.state());
        let applied = state.and_then(|state| sliced::applied(&state).ok());
        applied.is_some_and(|applied| applied.unfinished.is_some())
    }
}
