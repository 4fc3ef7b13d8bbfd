//! Locks and elections: who has the oldest key below a name, has it.
//!
//! Every answer is that of a state, which its revision names, between the call and the answer; so
//! two cannot hold a lock at a time: a state has one oldest key, and a key ends with its lease. Only
//! a campaign names the revision of its candidate's entry instead: of it there has to be a state,
//! before it was answered, that had nobody before it. Observers see leaders in the order in which
//! they led. And whose turn has come hears of it: where nothing is broken, and the member answers others.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::findings::{self, Findings, moment};
use super::replay::{Content, Replay, StateIndex};
use crate::error::Error;
use crate::proto::KeyValue;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderResponse};
use crate::proto::v3lockpb::LockRequest;
use crate::sim::call::{Ask, LockAnswer, is_below_a_name, key_of};
use crate::sim::history::{Answer, ClientRequest, History, Moment, Observed, Operation, Outcome};

const SECOND: Moment = 1_000_000_000;
/// How long after its turn has come somebody may still wait, where the member has answered others
/// since.
const ANSWERED_WITHIN: Moment = 5 * SECOND;

/// A key below a name, from its creation to its deletion.
struct Life {
    key: Bytes,
    created: i64,
    /// What was put, by mod revision.
    puts: BTreeMap<i64, Bytes>,
    /// The revision that deleted it.
    until: Option<i64>,
}

impl Life {
    fn is_there(&self, revision: i64) -> bool {
        self.created <= revision && self.until.is_none_or(|until| until > revision)
    }
}

/// All keys that there ever were below a name, in the order of their creation.
#[derive(Default)]
struct LockQueue(Vec<Life>);

impl LockQueue {
    fn first(&self, revision: i64) -> Option<&Life> {
        self.0.iter().find(|life| life.is_there(revision))
    }

    /// The first revision at which nothing is left that was created before `created`.
    fn turn_of(&self, created: i64) -> Option<i64> {
        let before = self.0.iter().take_while(|life| life.created < created);
        let gone: Option<Vec<i64>> = before.map(|life| life.until).collect();
        let last = gone?.into_iter().max();
        Some(last.map_or(created, |last| last.max(created)))
    }

    /// Whether that is the leader's pair at that revision.
    fn leads(&self, shown: &KeyValue, revision: i64) -> bool {
        self.first(revision).is_some_and(|life| {
            let last = life.puts.range(..=revision).next_back();
            life.key == shown.key
                && life.created == shown.create_revision
                && last == Some((&shown.mod_revision, &shown.value))
        })
    }
}

/// By name.
type Queues = BTreeMap<Bytes, LockQueue>;

/// The name that a key lies below.
fn name_of(key: &Bytes) -> Bytes {
    let end = key.iter().rposition(|byte| *byte == b'/');
    key.slice(..end.unwrap_or(0))
}

fn queues_of(replay: &Replay) -> Queues {
    let mut queues = Queues::new();
    for change in &replay.changes {
        let Some(kv) = change.event.kv.as_ref() else {
            continue;
        };
        let key = Bytes::copy_from_slice(&kv.key);
        if !is_below_a_name(&key) {
            continue;
        }
        let lives = &mut queues.entry(name_of(&key)).or_default().0;
        let is_put = change.event.r#type == 0;
        if is_put && kv.create_revision == kv.mod_revision {
            lives.push(Life {
                key: key.clone(),
                created: kv.create_revision,
                puts: BTreeMap::new(),
                until: None,
            });
        }
        if let Some(life) = lives.iter_mut().rev().find(|life| life.key == key) {
            match is_put {
                true => {
                    let value = Bytes::copy_from_slice(&kv.value);
                    life.puts.insert(kv.mod_revision, value);
                }
                false => life.until = Some(kv.mod_revision),
            }
        }
    }
    queues
}

/// `seen` is the newest state that any client had seen before each operation was called.
pub fn check(history: &History, replay: &Replay, seen: &[StateIndex], findings: &mut Findings) {
    let queues = queues_of(replay);
    let check = Check {
        history,
        replay,
        queues: &queues,
    };
    for (operation, seen) in history.operations.iter().zip(seen) {
        let ClientRequest::Concurrency(ask) = &operation.request else {
            continue;
        };
        let lower = to_be_seen(replay, operation.called_at, *seen);
        let upper = replay.until(operation.returned_at);
        let judged = match &operation.outcome {
            Outcome::Answered(Answer::Concurrency(answer)) => {
                check.answered(ask, answer, (lower, upper))
            }
            Outcome::Answered(_) => Err("an answer is of another kind"),
            Outcome::Refused(text) => check.refused(ask, text, (lower, upper)),
            Outcome::Unknown => check.waited(ask, operation),
        };
        if let Err(what) = judged {
            findings.add(what, || findings::operation(operation));
        }
    }
    for observed in &history.observed {
        check.observed(observed, findings);
    }
}

/// What any member had applied before a call is committed, and has to be seen; but a single member
/// reads what is before a long deletion, and the entries that are applied with it, until that is
/// shown.
fn to_be_seen(replay: &Replay, called_at: Moment, seen: StateIndex) -> StateIndex {
    let newest = replay.until(called_at);
    let begun = replay.step(newest).map(|step| step.at);
    let (mut before, mut deletes) = (newest, false);
    while before > seen
        && let Some(step) = replay.step(before).filter(|step| Some(step.at) == begun)
    {
        deletes |= is_deletion(&step.content);
        before -= 1;
    }
    if deletes { before } else { newest }
}

fn is_deletion(content: &Content) -> bool {
    match content {
        Content::Request(request) => {
            request.delete_range.is_some() || request.lease_revoke.is_some()
        }
        _ => false,
    }
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

type Judged = Result<(), &'static str>;

struct Check<'a> {
    history: &'a History,
    replay: &'a Replay,
    queues: &'a Queues,
}

impl<'a> Check<'a> {
    fn queue(&self, name: &[u8]) -> &'a [Life] {
        self.queues.get(name).map_or(&[], |queue| &queue.0)
    }

    /// An answer shows a state between the newest at the call and the newest at the answer.
    fn is_in_time(&self, at: i64, (lower, upper): (StateIndex, StateIndex)) -> Judged {
        let (lower, upper) = (self.replay.state(lower), self.replay.state(upper));
        match (lower.head..=upper.head).contains(&at) {
            true => Ok(()),
            false => Err("a lock or an election is answered as of another time"),
        }
    }

    /// The key was there at that revision, and none before it.
    fn is_first(&self, name: &[u8], key: &[u8], at: i64) -> Judged {
        let mut there = self.queue(name).iter().filter(|life| life.is_there(at));
        match there.next() {
            Some(first) if first.key == key => Ok(()),
            _ if there.any(|life| life.key == key) => Err("a lock was given before its turn"),
            _ => Err("a lock was given whose key had gone"),
        }
    }

    fn has(&self, leader: Option<&LeaderKey>, at: i64) -> bool {
        leader.is_some_and(|leader| {
            let mut lives = self.queue(&name_of(&leader.key)).iter();
            lives.any(|life| {
                life.key == leader.key && life.created == leader.rev && life.is_there(at)
            })
        })
    }

    fn answered(&self, ask: &Ask, answer: &LockAnswer, places: (StateIndex, StateIndex)) -> Judged {
        let header = match answer {
            LockAnswer::Locked(answer) => answer.header.as_ref(),
            LockAnswer::Unlocked(answer) => answer.header.as_ref(),
            LockAnswer::Elected(answer) => answer.header.as_ref(),
            LockAnswer::Proclaimed(answer) => answer.header.as_ref(),
            LockAnswer::Resigned(answer) => answer.header.as_ref(),
            LockAnswer::Leader(answer) => answer.header.as_ref(),
        };
        let at = revision(header);
        self.is_in_time(at, places)?;
        match (ask, answer) {
            (Ask::Lock(ask), LockAnswer::Locked(answer)) => {
                self.is_first(&ask.name, &answer.key, at)
            }
            (Ask::Unlock(ask), LockAnswer::Unlocked(_)) => {
                let mut lives = self.queue(&name_of(&ask.key)).iter();
                match lives.any(|life| life.key == ask.key && life.is_there(at)) {
                    true => Err("an unlocked key is still there"),
                    false => Ok(()),
                }
            }
            (Ask::Campaign(ask), LockAnswer::Elected(answer)) => {
                let created = answer.leader.as_ref().map_or(0, |leader| leader.rev);
                let turn = self.queues.get(&ask.name);
                let turn = turn.and_then(|queue| queue.turn_of(created));
                let head = self.replay.state(places.1).head;
                match turn.is_some_and(|turn| turn <= head) {
                    true => Ok(()),
                    false => Err("an election was won before its turn"),
                }
            }
            (Ask::Proclaim(ask), LockAnswer::Proclaimed(_)) => {
                let key = ask.leader.as_ref().map(|leader| leader.key.clone());
                let key = key.unwrap_or_default();
                let mut lives = self.queue(&name_of(&key)).iter();
                let is_put =
                    |life: &Life| life.key == key && life.puts.get(&at) == Some(&ask.value);
                match lives.any(is_put) && self.has(ask.leader.as_ref(), at) {
                    true => Ok(()),
                    false => Err("a leader's value was not put"),
                }
            }
            (Ask::Resign(ask), LockAnswer::Resigned(_)) => {
                match self.has(ask.leader.as_ref(), at) {
                    true => Err("a key that was resigned is still there"),
                    false => Ok(()),
                }
            }
            (Ask::Leader(ask), LockAnswer::Leader(answer)) => {
                let shown = shown(answer)?;
                let queue = self.queues.get(&ask.name);
                match queue.is_some_and(|queue| queue.leads(&shown, at)) {
                    true => Ok(()),
                    false => Err("a leader was shown that did not lead"),
                }
            }
            _ => Err("an answer is of another kind"),
        }
    }

    fn refused(&self, ask: &Ask, text: &str, places: (StateIndex, StateIndex)) -> Judged {
        let (lower, upper) = places;
        let mut heads = (lower..=upper).map(|place| self.replay.state(place).head);
        match (ask, Error::from_text(text)) {
            (Ask::Leader(ask), Some(Error::ElectionNoLeader)) => {
                let queue = self.queues.get(&ask.name);
                let is_empty = |at| queue.is_none_or(|queue| queue.first(at).is_none());
                match heads.any(is_empty) {
                    true => Ok(()),
                    false => Err("no leader was shown where one led"),
                }
            }
            (Ask::Proclaim(ask), Some(Error::ElectionNotLeader)) => {
                match heads.any(|at| !self.has(ask.leader.as_ref(), at)) {
                    true => Ok(()),
                    false => Err("a leader was refused that led"),
                }
            }
            (Ask::Lock(ask), Some(Error::SessionExpired)) => {
                let key = key_of(&ask.name, ask.lease);
                // For one whose key went and came again, the creation tells.
                let lives = self.queue(&ask.name).iter();
                let mut own = lives.filter(|life| life.key == key);
                let went = own.any(|life| life.until.is_some());
                match went || ask.lease == 0 {
                    true => Ok(()),
                    false => Err("a lock was refused whose key was there"),
                }
            }
            _ => Ok(()),
        }
    }

    /// A call that waited until its client or its member went away.
    fn waited(&self, ask: &Ask, operation: &Operation) -> Judged {
        let (name, lease) = match ask {
            Ask::Lock(LockRequest { name, lease }) => (name, *lease),
            Ask::Campaign(CampaignRequest { name, lease, .. }) => (name, *lease),
            _ => return Ok(()),
        };
        let Some(queue) = self.queues.get(name) else {
            return Ok(());
        };
        let key = key_of(name, lease);
        let (from, to) = (operation.called_at, operation.returned_at);
        if self.shares(ask, operation) {
            return Ok(());
        }
        for life in queue.0.iter().filter(|life| life.key == key) {
            // It was made in this call, not found.
            if self.moment(life.created) < from {
                continue;
            }
            let Some(turn) = queue.turn_of(life.created) else {
                continue;
            };
            let gone = life.until.map_or(to, |until| self.moment(until).min(to));
            if self.is_unanswered(operation, self.moment(turn).max(from), gone) {
                return Err("a turn came and who waited was not answered");
            }
        }
        Ok(())
    }

    /// Whether another call for the same key was under way.
    fn shares(&self, ask: &Ask, operation: &Operation) -> bool {
        let mut others = self.history.operations.iter();
        others.any(|other| {
            let is_same = match (&other.request, ask) {
                (ClientRequest::Concurrency(Ask::Lock(other)), Ask::Lock(ask)) => {
                    (&other.name, other.lease) == (&ask.name, ask.lease)
                }
                _ => false,
            };
            is_same
                && !std::ptr::eq(other, operation)
                && other.called_at < operation.returned_at
                && operation.called_at < other.returned_at
        })
    }

    /// Whether the member answered others between those times, long before the second, while
    /// nothing was broken.
    fn is_unanswered(&self, waiting: &Operation, from: Moment, to: Moment) -> bool {
        self.history.calm.iter().any(|(calm_from, calm_to)| {
            let (from, to) = (from.max(*calm_from) + SECOND, to.min(*calm_to));
            self.history.operations.iter().any(|other| {
                other.member == waiting.member
                    && other.called_at >= from
                    && other.returned_at + ANSWERED_WITHIN <= to
                    && matches!(
                        other.outcome,
                        Outcome::Answered(Answer::Put(_) | Answer::DeleteRange(_))
                    )
            })
        })
    }

    /// When a revision first existed.
    fn moment(&self, revision: i64) -> Moment {
        self.replay.moment(self.replay.first_with(revision))
    }

    /// Leaders come in the order of their creation, and each that is shown leads at the revision of
    /// the answer, or did at that of its pair.
    fn observed(&self, observed: &Observed, findings: &mut Findings) {
        let queue = self.queues.get(observed.name.as_bytes());
        let mut last = (0, 0, 0);
        for (arrived, answer) in &observed.seen {
            let at = revision(answer.header.as_ref());
            let mut wrong = |what| {
                findings.add(what, || {
                    format!(
                        "client {} was answered by member {} at {}: {answer:?}",
                        observed.client,
                        observed.member,
                        moment(*arrived)
                    )
                });
            };
            let Ok(kv) = shown(answer) else {
                wrong("a leader was shown that did not lead");
                continue;
            };
            let next = (kv.create_revision, kv.mod_revision, at);
            if (next.0, next.1) <= (last.0, last.1) || next.2 < last.2 {
                wrong("an observer of an election was led back");
            }
            last = next;
            let leads = |at| queue.is_some_and(|queue| queue.leads(&kv, at));
            let is_later = at > self.replay.state(self.replay.until(*arrived)).head;
            if is_later || !leads(at) && !leads(kv.mod_revision) {
                wrong("a leader was shown that did not lead");
            }
        }
    }
}

fn shown(answer: &LeaderResponse) -> Result<KeyValue, &'static str> {
    let decoded = answer.kv.as_ref().map(|kv| kv.decoded());
    match decoded {
        Some(Ok(kv)) => Ok(kv),
        _ => Err("a leader was shown that did not lead"),
    }
}
