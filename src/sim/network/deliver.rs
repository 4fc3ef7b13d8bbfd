//! How what flies arrives, and what becomes of it there.

use std::sync::Weak;

use super::flight::{AnswerTo, Cargo, Flight, Life};
use super::{Air, Attached, SimNetwork};
use crate::env::Executor;
use crate::error::Error;
use crate::proto::etchedpeer::question::Question as Kind;
use crate::proto::etchedpeer::{Answer, Question};
use crate::raft::Message;
use crate::sim::random::Random;
use crate::sim::states::SimDisks;
use crate::transport::{PeerMessage, SnapshotDir};
use crate::types::MemberId;

/// Those that are due may overtake this many others.
const OVERTAKEN: u64 = 8;

impl SimNetwork {
    /// Delivers everything that is due.
    pub fn deliver_due(&self, now_ns: u64, random: &mut Random) {
        loop {
            let mut air = self.air.lock();
            let Some(flight) = air.take_due(now_ns, random) else {
                return;
            };
            let attached = air.attached(flight.to).cloned();
            drop(air);
            self.deliver(flight, attached, now_ns);
        }
    }

    fn deliver(&self, flight: Flight, attached: Option<Attached>, now_ns: u64) {
        let Flight { from, to, cargo } = flight;
        match cargo {
            Cargo::Messages(messages) => self.messages(from, to, messages, attached, now_ns),
            Cargo::Snapshot {
                message,
                files,
                number,
                breaks,
            } => {
                let transfer = Transfer {
                    network: self.itself.clone(),
                    from,
                    to,
                    number,
                    taken: false,
                };
                let attached = attached.filter(|_| !breaks && self.reaches(from, to));
                if let Some(attached) = attached {
                    self.snapshot(transfer, message, &files, attached, now_ns);
                }
            }
            Cargo::Question {
                question,
                answer_to,
            } => match attached.filter(|_| self.reaches(from, to)) {
                Some(attached) => self.question(from, to, question, answer_to, attached, now_ns),
                None => self.air.lock().counts.questions_lost += 1,
            },
            Cargo::Answer { answer, answer_to } => {
                if attached.is_some() && self.reaches(from, to) {
                    // Whoever asked may have given up.
                    let _ = answer_to.send(answer);
                } else {
                    self.air.lock().counts.questions_lost += 1;
                }
            }
            Cargo::Silence { member, number } => self.silence(member, number, now_ns),
            notice => {
                if let Some(attached) = attached {
                    self.notice(to, notice, &attached);
                }
            }
        }
    }

    /// What needs both ways of a connection.
    fn reaches(&self, from: Life, to: Life) -> bool {
        self.air.lock().is_whole(from.member, to.member)
    }

    fn messages(
        &self,
        from: Life,
        to: Life,
        mut messages: Vec<PeerMessage>,
        attached: Option<Attached>,
        now_ns: u64,
    ) {
        let attached = attached.filter(|_| !self.is_cut(from.member, to.member));
        let Some(Attached { inbound, .. }) = attached else {
            let mut air = self.air.lock();
            return air.lost(from, to.member, messages, now_ns);
        };
        if inbound.is_removed(from.member) {
            let mut air = self.air.lock();
            air.counts.lost += messages.len() as u64;
            return air.tell_removed(from, 300, now_ns);
        }
        messages.retain(|message| match message {
            PeerMessage::Raft(message) => message.to == to.member.0,
            _ => true,
        });
        {
            let mut air = self.air.lock();
            air.counts.delivered += messages.len() as u64;
            air.told(to.member, from.member);
        }
        inbound.received(from.member, messages);
    }

    fn snapshot(
        &self,
        mut transfer: Transfer,
        message: Message,
        files: &SnapshotDir,
        attached: Attached,
        now_ns: u64,
    ) {
        let Attached { inbound, tasks } = attached;
        let (from, to) = (transfer.from, transfer.to);
        if inbound.is_removed(from.member) {
            return self.air.lock().tell_removed(from, 1_000, now_ns);
        }
        let path = SimDisks::root(to.member).join(format!("receiving-{:x}", transfer.number));
        if message.to != to.member.0 || !self.disks.copy(files.path(), &path) {
            return;
        }
        {
            let index = message.get_snapshot().get_metadata().index;
            let mut air = self.air.lock();
            air.counts.snapshots_arrived += 1;
            *air.arrivals.entry((to.number, index)).or_default() += 1;
        }
        let received = self.disks.lend(path);
        let take = async move {
            let taken = inbound.snapshot_received(message, received).await;
            transfer.taken = taken.is_ok();
            drop(transfer);
        };
        tasks.spawn(Box::pin(take));
    }

    fn question(
        &self,
        from: Life,
        to: Life,
        question: Question,
        answer_to: AnswerTo,
        attached: Attached,
        now_ns: u64,
    ) {
        let Attached { inbound, tasks } = attached;
        let is_removed = inbound.is_removed(from.member);
        // Anyone may ask who is here.
        let describes = matches!(question.question, Some(Kind::Describe(_)));
        if is_removed && !describes {
            self.air.lock().tell_removed(from, 1_000, now_ns);
            return self.answer(to, from, Err(Error::NoLeader), answer_to);
        }
        let asker = (!is_removed).then_some(from.member);
        let network = self.itself.clone();
        let answering = async move {
            let answer = inbound.asked(asker, question).await;
            if let Some(network) = network.upgrade() {
                network.answer(to, from, answer, answer_to);
            }
        };
        tasks.spawn(Box::pin(answering));
    }

    fn answer(&self, from: Life, to: Life, answer: Result<Answer, Error>, answer_to: AnswerTo) {
        let now_ns = self.time.now_ns();
        let mut air = self.air.lock();
        let link = (from.member, to.member);
        if !air.lives(from) || air.is_full(link) || air.loses(link) {
            air.counts.questions_lost += 1;
            drop(air);
            // Whoever waits finds the connection broken.
            drop(answer_to);
            return;
        }
        let due_ns = now_ns + air.message_delay();
        let cargo = Cargo::Answer { answer, answer_to };
        air.launch(due_ns, Flight { from, to, cargo });
    }

    /// What its own network tells a member.
    fn notice(&self, to: Life, notice: Cargo, attached: &Attached) {
        let inbound = &attached.inbound;
        match notice {
            Cargo::Refused { peer, messages } => inbound.received(peer, messages),
            Cargo::Unreachable(peer) => {
                self.air.lock().counts.told_unreachable += 1;
                inbound.unreachable(peer);
            }
            Cargo::Removed => {
                self.air.lock().counts.told_removed += 1;
                inbound.removed();
            }
            Cargo::SnapshotSent {
                to: peer,
                number,
                taken,
            } => {
                let link = (to.member, peer);
                let mut air = self.air.lock();
                // One that could not be begun has no number.
                let news = number == 0 || air.transfers.get(&link) == Some(&number);
                if number != 0 && news {
                    air.transfers.remove(&link);
                }
                drop(air);
                if news {
                    inbound.snapshot_sent(peer, taken);
                }
            }
            Cargo::Messages(_)
            | Cargo::Snapshot { .. }
            | Cargo::Question { .. }
            | Cargo::Answer { .. }
            | Cargo::Silence { .. } => {}
        }
    }

    /// The peers of a member that stood still for a while give it up.
    fn silence(&self, member: MemberId, number: u64, now_ns: u64) {
        let mut air = self.air.lock();
        if air.held.get(&member) == Some(&number) {
            air.silent.insert(member);
            air.spread_unreachable(member, now_ns, 900);
            air.reconnect();
        }
    }
}

/// A snapshot on its way; its sender hears how that went, once, whatever happens.
struct Transfer {
    network: Weak<SimNetwork>,
    from: Life,
    to: Life,
    number: u64,
    taken: bool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(network) = self.network.upgrade() else {
            return;
        };
        let now_ns = network.time.now_ns();
        let mut air = network.air.lock();
        if !air.lives(self.from) {
            return;
        }
        let back = (self.to.member, self.from.member);
        // The peer may have it and not be able to say so.
        let taken = self.taken && air.is_whole(back.0, back.1) && !air.loses(back);
        air.counts.snapshots_cut += u64::from(!taken);
        let cargo = Cargo::SnapshotSent {
            to: self.to.member,
            number: self.number,
            taken,
        };
        air.tell(self.from.member, cargo, now_ns);
    }
}

impl Air {
    /// One of those that are due. What comes to a member that stands still is put aside.
    fn take_due(&mut self, now_ns: u64, random: &mut Random) -> Option<Flight> {
        loop {
            let due = self.flying.range(..=(now_ns, u64::MAX));
            let count = due.take(OVERTAKEN as usize).count() as u64;
            if count == 0 {
                return None;
            }
            let skipped = random.below(count) as usize;
            let key = *self.flying.keys().nth(skipped)?;
            let flight = self.flying.remove(&key)?;
            let held = self.held.contains_key(&flight.to.member) && self.lives(flight.to);
            let station = self.stations.get_mut(&flight.to.member);
            match station.filter(|_| held) {
                Some(station) => station.waiting.push_back(flight),
                None => {
                    self.landed(&flight);
                    return Some(flight);
                }
            }
        }
    }

    fn tell_removed(&mut self, member: Life, per_mille: u32, now_ns: u64) {
        if self.lives(member) && self.random.chance(per_mille) {
            self.tell(member.member, Cargo::Removed, now_ns);
        }
    }
}
