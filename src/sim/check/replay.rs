//! Replays the log on the model.
//!
//! A *place* is a number of entries: state `n` is the one after the first `n` entries. The newest
//! state that a client can have seen at a time follows from when the entries were first applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::findings::{Findings, moment, shortened};
use crate::error::Error;
use crate::proto::etcdserverpb::{AlarmType, InternalRaftRequest};
use crate::proto::etchedpeer::MemberChange;
use crate::sim::history::{AppliedEntry, History, Moment, RecordedPayload};
use crate::sim::random::Random;
use crate::state::Response;
use crate::state::machine::decode_request;
use crate::state::model::auth::Auth;
use crate::state::model::{At, Changed, Members, Model};

/// A state, by the number of entries applied to reach it.
pub type StateIndex = usize;

/// The request in an entry.
#[derive(Clone, Debug)]
pub enum Content {
    Empty,
    Request(Box<InternalRaftRequest>),
    Member(MemberChange),
    Unreadable,
}

/// The effect of an entry according to the model.
#[derive(Clone, Debug)]
pub enum Meant {
    Response(Response),
    /// The ids of the members after a change.
    Members(Vec<u64>),
}

/// An entry and its effect on the model.
#[derive(Debug)]
pub struct Step {
    /// When it was first applied.
    pub at: Moment,
    pub index: u64,
    pub term: u64,
    pub content: Content,
    pub result: Result<Meant, Error>,
}

/// A lease from its grant to its revocation.
#[derive(Clone, Debug)]
pub struct LeaseSpan {
    pub id: i64,
    /// The granted TTL, in seconds.
    pub ttl_s: i64,
    /// The first place at which it exists.
    pub from: StateIndex,
    /// The first place at which it is gone; `None` if it was not revoked.
    pub until: Option<StateIndex>,
    /// Its remaining TTL was checkpointed, in whole seconds.
    pub checkpointed: bool,
}

/// See the module.
pub struct Replay {
    /// The model after the last entry; it can be queried at every earlier state.
    pub model: Model,
    pub steps: Vec<Step>,
    /// Every change of a key, in order.
    pub changes: Vec<Changed>,
    /// By id, each in order.
    pub lives: BTreeMap<i64, Vec<LeaseSpan>>,
    /// One more than the number of steps.
    states: Vec<At>,
    /// Whether the NOSPACE alarm is raised, by place.
    no_space: Vec<bool>,
    /// Whether the CORRUPT alarm is raised, by place.
    corrupt: Vec<bool>,
    /// See `set_of_leases`, by place.
    leases: Vec<u64>,
    /// The members' ids from a place on, in order.
    members: Vec<(StateIndex, Vec<u64>)>,
    /// Users and roles from a place on, in order.
    auths: Vec<(StateIndex, Arc<Auth>)>,
    /// The times of the steps, never decreasing.
    moments: Vec<Moment>,
}

/// Identifies a set of leases by a number, since sets are many and large.
pub fn set_of_leases(ids: &[i64]) -> u64 {
    let marks = ids.iter().map(|id| mark_of_lease(*id));
    marks.fold(0, u64::wrapping_add)
}

fn mark_of_lease(id: i64) -> u64 {
    Random::new(id as u64).next()
}

fn leases_after(leases: u64, request: &InternalRaftRequest) -> u64 {
    match (&request.lease_grant, &request.lease_revoke) {
        (Some(grant), _) => leases.wrapping_add(mark_of_lease(grant.id)),
        (_, Some(revoke)) => leases.wrapping_sub(mark_of_lease(revoke.id)),
        _ => leases,
    }
}

impl Replay {
    pub fn of(history: &History, findings: &mut Findings) -> Self {
        let model = Model::new();
        let mut replay = Self {
            states: vec![model.now()],
            no_space: vec![false],
            corrupt: vec![false],
            leases: vec![0],
            members: Vec::new(),
            auths: vec![(0, model.auth.clone())],
            model,
            steps: Vec::with_capacity(history.entries.len()),
            changes: Vec::new(),
            lives: BTreeMap::new(),
            moments: Vec::with_capacity(history.entries.len()),
        };
        let founders = history.founders.iter().map(|member| member.0);
        let mut members = Members::founders(founders);
        replay.members.push((0, members.ids()));
        for (at, entry) in &history.entries {
            let step = replay.take(*at, entry, &mut members);
            replay.compare_with_last(&step, findings);
            let last = replay.moments.last().copied().unwrap_or(0);
            replay.moments.push(last.max(step.at));
            replay.steps.push(step);
        }
        replay.changes = replay.model.changes();
        replay
    }

    fn take(&mut self, at: Moment, entry: &AppliedEntry, members: &mut Members) -> Step {
        let content = match &entry.payload {
            RecordedPayload::Empty => Content::Empty,
            RecordedPayload::Member(change) => Content::Member(change.clone()),
            RecordedPayload::Request(bytes) => match decode_request(bytes.clone()) {
                Ok(request) => Content::Request(Box::new(request)),
                Err(_) => Content::Unreadable,
            },
        };
        let result = match &content {
            Content::Empty | Content::Unreadable => Ok(Meant::Response(Response::Done)),
            Content::Request(request) => self.model.apply(request).map(Meant::Response),
            Content::Member(change) => members
                .apply(change)
                .map(|()| Meant::Members(members.ids())),
        };
        self.states.push(self.model.now());
        self.no_space.push(self.model.has_alarm(AlarmType::Nospace));
        self.corrupt.push(self.model.has_alarm(AlarmType::Corrupt));
        if self
            .auths
            .last()
            .is_none_or(|(_, last)| **last != *self.model.auth)
        {
            let place = self.states.len() - 1;
            self.auths.push((place, self.model.auth.clone()));
        }
        if let (Content::Member(_), Ok(_)) = (&content, &result) {
            self.members.push((self.states.len() - 1, members.ids()));
        }
        let leases = self.leases.last().copied().unwrap_or(0);
        self.leases.push(match (&content, &result) {
            (Content::Request(request), Ok(_)) => leases_after(leases, request),
            _ => leases,
        });
        if let (Content::Request(request), Ok(_)) = (&content, &result) {
            self.note_lease(request);
        }
        Step {
            at,
            index: entry.index,
            term: entry.term,
            content,
            result,
        }
    }

    /// Records what an applied request did to leases.
    fn note_lease(&mut self, request: &InternalRaftRequest) {
        let place = self.states.len() - 1;
        if let Some(grant) = &request.lease_grant {
            self.lives.entry(grant.id).or_default().push(LeaseSpan {
                id: grant.id,
                ttl_s: grant.ttl,
                from: place,
                until: None,
                checkpointed: false,
            });
        }
        let revoked = request.lease_revoke.as_ref().map(|revoke| revoke.id);
        if let Some(life) = revoked.and_then(|id| self.lives.get_mut(&id)?.last_mut()) {
            life.until = Some(place);
        }
        for checkpoint in request
            .lease_checkpoint
            .iter()
            .flat_map(|all| &all.checkpoints)
        {
            if let Some(life) = self
                .lives
                .get_mut(&checkpoint.id)
                .and_then(|lives| lives.last_mut())
            {
                life.checkpointed = true;
            }
        }
    }

    fn compare_with_last(&self, step: &Step, findings: &mut Findings) {
        if matches!(step.content, Content::Unreadable) {
            findings.add("an entry cannot be read", || step_text(step));
        }
        let Some(last) = self.steps.last() else {
            return;
        };
        let both = || format!("{}; behind {}", step_text(step), step_text(last));
        if step.index != last.index + 1 {
            findings.add("the log has a gap", both);
        } else if step.term < last.term {
            findings.add("the terms of the log go back", both);
        } else if step.at < last.at {
            findings.add("an entry was applied before the one before it", both);
        }
    }

    /// The state after this many entries.
    pub fn state(&self, place: StateIndex) -> At {
        self.states[place]
    }

    /// The last state.
    pub fn end(&self) -> StateIndex {
        self.steps.len()
    }

    pub fn has_no_space(&self, place: StateIndex) -> bool {
        self.no_space[place]
    }

    /// The intervals in which leases cannot be revoked because of the CORRUPT alarm.
    pub fn corrupt_times(&self) -> Vec<(Moment, Moment)> {
        let mut times = Vec::new();
        let mut since = None;
        for (place, corrupt) in self.corrupt.iter().enumerate() {
            match (*corrupt, since) {
                (true, None) => since = Some(self.moment(place)),
                (false, Some(from)) => {
                    times.push((from, self.moment(place)));
                    since = None;
                }
                _ => {}
            }
        }
        times.extend(since.map(|from| (from, Moment::MAX)));
        times
    }

    /// The leases at a place, as a `set_of_leases`.
    pub fn leases_at(&self, place: StateIndex) -> u64 {
        self.leases[place]
    }

    /// Users and roles at a place.
    pub fn auth(&self, place: StateIndex) -> &Auth {
        let behind = self.auths.partition_point(|(since, _)| *since <= place);
        &self.auths[behind - 1].1
    }

    /// All that there were at the places from `from` to `to`.
    pub fn auths(&self, from: StateIndex, to: StateIndex) -> impl Iterator<Item = &Auth> {
        let first = self.auths.partition_point(|(since, _)| *since <= from) - 1;
        let there = self.auths[first..].iter();
        let there = there.take_while(move |(since, _)| *since <= to.max(from));
        there.map(|(_, auth)| auth.as_ref())
    }

    /// The state after the entry of this index.
    pub fn place_of(&self, index: u64) -> StateIndex {
        self.steps.partition_point(|step| step.index <= index)
    }

    /// Whether these were the members at some place from `from` to `to`.
    pub fn had_members(&self, ids: &[u64], from: StateIndex, to: StateIndex) -> bool {
        self.members
            .iter()
            .enumerate()
            .any(|(number, (since, of))| {
                let until = self.members.get(number + 1).map(|(since, _)| *since);
                of == ids && *since <= to && until.is_none_or(|until| until > from)
            })
    }

    /// The entry that produced that state; `None` for the first one.
    pub fn step(&self, place: StateIndex) -> Option<&Step> {
        self.steps.get(place.checked_sub(1)?)
    }

    /// The newest state at a time.
    pub fn until(&self, moment: Moment) -> StateIndex {
        self.moments.partition_point(|at| *at <= moment)
    }

    /// The first state with a head revision of `revision` or more; one past the last if there is
    /// none.
    pub fn first_with(&self, revision: i64) -> StateIndex {
        self.states.partition_point(|state| state.head < revision)
    }

    /// Whether the history had been compacted to exactly that revision by a time.
    pub fn was_compacted_to(&self, revision: i64, by: Moment) -> bool {
        let first = self
            .states
            .partition_point(|state| state.compacted < revision);
        first <= self.until(by) && self.states[first].compacted == revision
    }

    /// When a state first existed.
    pub fn moment(&self, place: StateIndex) -> Moment {
        match place {
            0 => 0,
            place => self.moments[place - 1],
        }
    }

    /// The spans of the lease that overlap `from` to `to`, each with its first place there.
    pub fn lives_in(
        &self,
        id: i64,
        from: StateIndex,
        to: StateIndex,
    ) -> impl Iterator<Item = (StateIndex, &LeaseSpan)> + Clone {
        let lives = self.lives.get(&id).into_iter().flatten();
        lives.filter_map(move |life| {
            let first = life.from.max(from);
            let there = first <= to && life.until.is_none_or(|until| first < until);
            there.then_some((first, life))
        })
    }

    /// The first place from `from` to `to` without this lease.
    pub fn no_lease_in(&self, id: i64, from: StateIndex, to: StateIndex) -> Option<StateIndex> {
        let mut place = from;
        for life in self.lives.get(&id).into_iter().flatten() {
            if place < life.from {
                break;
            }
            if life.until.is_none_or(|until| place < until) {
                place = life.until?;
            }
        }
        (place <= to).then_some(place)
    }
}

/// An entry with the time at which it was applied and its effect on the model.
pub fn step_text(step: &Step) -> String {
    format!(
        "entry {} of term {}, first applied at {}: {}, which the model answers with {}",
        step.index,
        step.term,
        moment(step.at),
        shortened(&step.content),
        shortened(&step.result),
    )
}
