//! Finds the state that every response shows, and checks real-time order.
//!
//! A linearizable read has to return a state at least as new as any that a response or a watch had
//! shown before the read was called. Operations are taken in the order of their calls, and each is
//! assigned the oldest state that fits: no early choice rules out a later response that another
//! choice would allow.

use std::collections::BTreeMap;

use super::answers::{self, revision};
use super::findings::{self, Findings};
use super::permissions;
use super::replay::{self, Replay, StateIndex};
use super::writes::Origins;
use crate::error::Error;
use crate::proto::etcdserverpb::{
    HashKvResponse, LeaseTimeToLiveResponse, RangeRequest, TxnRequest,
};
use crate::sim::history::{Answer, ClientRequest, History, Moment, Operation, Outcome};
use crate::state::model::At;
use crate::state::model::auth::Auth;
use crate::state::txn::{is_read_only, is_serializable};

/// How operations relate to the states.
pub struct Order {
    /// By operation: the newest state that any client had seen before it was called.
    pub lower: Vec<StateIndex>,
}

/// Of a user who was shown what it may not see.
pub const NO_RIGHT: &str = "a user was answered without the right to it";

/// What is wrong with a response.
type Judged<T> = Result<T, &'static str>;

pub fn check(
    history: &History,
    replay: &Replay,
    origins: &Origins,
    findings: &mut Findings,
) -> Order {
    let operations = &history.operations;
    let mut calls: Vec<usize> = (0..operations.len()).collect();
    calls.sort_by_key(|operation| operations[*operation].called_at);
    let mut shown = Shown::by_watches(history, replay);
    let mut order = Order {
        lower: vec![0; operations.len()],
    };
    for number in calls {
        let operation = &operations[number];
        let lower = shown.before(operation);
        order.lower[number] = lower;
        let upper = replay.until(operation.returned_at);
        let read = Read {
            operation,
            replay,
            lower,
            upper,
        };
        let place = match origins.place_of[number] {
            Some(place) => Some(place).filter(|place| *place <= upper),
            None => read.place().unwrap_or_else(|what| {
                findings.add(what, || {
                    let (from, to) = (replay.state(lower), replay.state(upper.max(lower)));
                    let operation = findings::operation(operation);
                    format!(
                        "{operation}; states {lower} to {upper} at revisions {} to {} could answer",
                        from.head, to.head
                    )
                });
                None
            }),
        };
        if let Some(place) = place.filter(|_| operation.outcome != Outcome::Unknown) {
            shown.note(operation, place);
        }
    }
    order
}

/// The states that clients saw, and when.
struct Shown {
    /// In descending order, so that the next one is at the end.
    by_watches: Vec<(Moment, StateIndex)>,
    /// By time of return; the newest of each.
    by_answers: BTreeMap<Moment, StateIndex>,
    of_client: BTreeMap<u32, StateIndex>,
    newest: StateIndex,
}

impl Shown {
    fn by_watches(history: &History, replay: &Replay) -> Self {
        let mut by_watches = Vec::new();
        for watched in &history.watches {
            for (at, response) in &watched.responses {
                let last = response.events.last();
                let event = last.and_then(|event| event.decoded().ok()?.kv);
                let revision = match event {
                    Some(kv) => kv.mod_revision,
                    None => revision(response.header.as_ref()),
                };
                let place = replay.first_with(revision);
                if place <= replay.until(*at) {
                    by_watches.push((*at, place));
                }
            }
        }
        by_watches.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            by_watches,
            by_answers: BTreeMap::new(),
            of_client: BTreeMap::new(),
            newest: 0,
        }
    }

    /// The newest state that any client had seen before the operation was called, or that its own
    /// client has seen; calls come in order.
    fn before(&mut self, operation: &Operation) -> StateIndex {
        while let Some((at, place)) = self.by_watches.last()
            && *at < operation.called_at
        {
            self.newest = self.newest.max(*place);
            self.by_watches.pop();
        }
        while let Some(first) = self.by_answers.first_entry()
            && *first.key() < operation.called_at
        {
            self.newest = self.newest.max(first.remove());
        }
        let own = self.of_client.get(&operation.client);
        self.newest.max(own.copied().unwrap_or(0))
    }

    fn note(&mut self, operation: &Operation, place: StateIndex) {
        let newest = self.by_answers.entry(operation.returned_at).or_default();
        *newest = place.max(*newest);
        let own = self.of_client.entry(operation.client).or_default();
        *own = place.max(*own);
    }
}

/// An operation without an entry.
struct Read<'a> {
    operation: &'a Operation,
    replay: &'a Replay,
    /// The oldest state that may answer it, if it is linearizable.
    lower: StateIndex,
    /// The newest state at the time of the response.
    upper: StateIndex,
}

impl Read<'_> {
    /// The oldest state that can have given the response; `None` if it shows no state.
    fn place(&self) -> Judged<Option<StateIndex>> {
        let model = &self.replay.model;
        match (&self.operation.request, &self.operation.outcome) {
            (_, Outcome::Unknown) => Ok(None),
            (
                ClientRequest::Range(request) | ClientRequest::RangeStream(request),
                Outcome::Answered(Answer::Range(ours)),
            ) => {
                let at = revision(ours.header.as_ref());
                let is_same = |state| {
                    let theirs = model.range(request, state)?;
                    Ok(answers::same_range(ours, &theirs))
                };
                let may = |auth: &Auth| permissions::range(auth, self.operation, request);
                self.answered(at, request.serializable, is_same, may)
            }
            (ClientRequest::Txn(request), Outcome::Answered(Answer::Txn(ours)))
                if is_read_only(request) =>
            {
                let at = revision(ours.header.as_ref());
                let is_same = |state| {
                    let theirs = model.read_txn(request, state)?;
                    Ok(answers::same_txn(ours, &theirs))
                };
                let may = |auth: &Auth| permissions::txn(auth, self.operation, request);
                self.answered(at, is_serializable(request), is_same, may)
            }
            (
                ClientRequest::Range(request) | ClientRequest::RangeStream(request),
                Outcome::Refused(text),
            ) => self.range_refused(request, text),
            (ClientRequest::LeaseLeases, Outcome::Answered(Answer::Leases(ours))) => {
                self.listed_leases(ours)
            }
            (
                ClientRequest::MemberList { linearizable },
                Outcome::Answered(Answer::MemberList(ours)),
            ) => self.listed_members(ours, *linearizable),
            (ClientRequest::HashKv { revision }, Outcome::Answered(Answer::HashKv(ours))) => {
                self.hash(*revision, ours)
            }
            (ClientRequest::Txn(request), Outcome::Refused(text)) if is_read_only(request) => {
                self.txn_refused(request, text)
            }
            (
                ClientRequest::LeaseTimeToLive { id, keys },
                Outcome::Answered(Answer::LeaseTimeToLive(ours)),
            ) => match ours.ttl {
                // Whether it may have expired without a revocation is checked by `leases`.
                ..0 => Ok(self.replay.no_lease_in(*id, self.lower, self.upper)),
                _ => self.lease(*id, *keys, ours).map(Some),
            },
            (
                ClientRequest::LeaseKeepAlive { id },
                Outcome::Answered(Answer::LeaseKeepAlive { ttl }),
            ) => match ttl {
                ..=0 => Ok(self.replay.no_lease_in(*id, self.lower, self.upper)),
                ttl => self.renewed(*id, *ttl).map(Some),
            },
            // Writes without an entry are checked by `writes`.
            (_, Outcome::Refused(_)) => Ok(None),
            (ClientRequest::Range(_) | ClientRequest::Txn(_), Outcome::Answered(_))
            | (ClientRequest::LeaseTimeToLive { .. }, Outcome::Answered(_))
            | (ClientRequest::LeaseKeepAlive { .. }, Outcome::Answered(_)) => {
                Err("an answer is of another kind")
            }
            (_, Outcome::Answered(_)) => Ok(None),
        }
    }

    /// Finds the state with head revision `at` that gives this response.
    fn answered(
        &self,
        at: i64,
        serializable: bool,
        is_same: impl Fn(At) -> Result<bool, Error>,
        may: impl Fn(&Auth) -> Result<(), Error>,
    ) -> Judged<Option<StateIndex>> {
        let first = self.replay.first_with(at);
        if first > self.upper {
            return Err("a read shows a later state");
        }
        let lower = if serializable { 0 } else { self.lower };
        if self.replay.state(lower).head > at {
            return Err("a read is stale");
        }
        let mut seen = None;
        let (mut shows, mut was_shown) = (false, false);
        for place in first.max(lower)..=self.upper {
            let state = self.replay.state(place);
            if state.head != at {
                break;
            }
            if seen.replace(state) != Some(state) {
                shows = match is_same(state) {
                    Ok(true) => true,
                    // All states of one revision give the same result.
                    Ok(false) => return Err("a read's answer is wrong"),
                    Err(_) => false,
                };
                was_shown |= shows;
            }
            if shows && may(self.replay.auth(place)).is_ok() {
                return Ok(Some(place));
            }
        }
        match was_shown {
            true => Err(NO_RIGHT),
            false => Err("a read shows what it may not"),
        }
    }

    fn range_refused(&self, request: &RangeRequest, text: &str) -> Judged<Option<StateIndex>> {
        let wanted = request.revision;
        match Error::from_text(text) {
            Some(Error::Compacted) => self.refused(request.serializable, |state| {
                wanted > 0 && wanted < state.compacted
            }),
            Some(Error::FutureRevision) => {
                self.refused(request.serializable, |state| wanted > state.head)
            }
            Some(error) if permissions::is_about_rights(error) => {
                let may = |auth: &Auth| permissions::range(auth, self.operation, request);
                self.rights_refused(request.serializable, error, may)
            }
            _ => Ok(None),
        }
    }

    /// A refusal that is about rights has to be that of a state that may answer.
    fn rights_refused(
        &self,
        serializable: bool,
        error: Error,
        may: impl Fn(&Auth) -> Result<(), Error>,
    ) -> Judged<Option<StateIndex>> {
        let lower = if serializable { 0 } else { self.lower };
        match permissions::was_refused(self.replay, (lower, self.upper), error, may) {
            true => Ok(None),
            false => Err("a user was refused without reason"),
        }
    }

    fn txn_refused(&self, request: &TxnRequest, text: &str) -> Judged<Option<StateIndex>> {
        if let Some(error) = Error::from_text(text).filter(|e| permissions::is_about_rights(*e)) {
            let may = |auth: &Auth| permissions::txn(auth, self.operation, request);
            return self.rights_refused(is_serializable(request), error, may);
        }
        let Some(error @ (Error::Compacted | Error::FutureRevision)) = Error::from_text(text)
        else {
            return Ok(None);
        };
        let model = &self.replay.model;
        self.refused(is_serializable(request), |state| {
            model.read_txn(request, state) == Err(error)
        })
    }

    /// Finds the first state in which the reason for a refusal holds. For serializable requests the
    /// newest states are tried first, and the match constrains nothing.
    fn refused(
        &self,
        serializable: bool,
        holds: impl Fn(At) -> bool,
    ) -> Judged<Option<StateIndex>> {
        let mut seen = None;
        let mut is_it = |place: &StateIndex| {
            let state = self.replay.state(*place);
            seen.replace(state) != Some(state) && holds(state)
        };
        let (found, place) = match serializable {
            true => ((0..=self.upper).rev().any(|place| is_it(&place)), None),
            false => {
                let place = (self.lower..=self.upper).find(is_it);
                (place.is_some(), place)
            }
        };
        match found {
            true => Ok(place),
            false => Err("a read was refused without reason"),
        }
    }

    /// A lease listing is one member's own state, which may lag.
    fn listed_leases(&self, ours: &[i64]) -> Judged<Option<StateIndex>> {
        if !permissions::may_list_leases(self.replay, self.operation, self.upper) {
            return Err(NO_RIGHT);
        }
        let shown = replay::set_of_leases(ours);
        match (0..=self.upper).any(|place| self.replay.leases_at(place) == shown) {
            true => Ok(None),
            false => Err("leases are listed that never were together"),
        }
    }

    fn listed_members(&self, ours: &[u64], linearizable: bool) -> Judged<Option<StateIndex>> {
        let mut shown = ours.to_vec();
        shown.sort_unstable();
        let lower = if linearizable { self.lower } else { 0 };
        // A joining member does not know any member yet.
        let joins = shown.is_empty() && !linearizable;
        match joins || self.replay.had_members(&shown, lower, self.upper) {
            true => Ok(None),
            false => Err("members are listed that never were together"),
        }
    }

    /// Compares a hash of the history with the model's. After a compaction a member may return a
    /// hash that it kept, which can differ.
    fn hash(&self, asked: i64, ours: &HashKvResponse) -> Judged<Option<StateIndex>> {
        let (compacted, revision) = (ours.compact_revision, ours.hash_revision);
        if revision > self.replay.state(self.upper).head || (asked != 0 && asked != revision) {
            return Err("a hash is of another revision");
        }
        let model = &self.replay.model;
        let is_kept = || model.compaction_hash(compacted, revision) == Some(ours.hash);
        match model.hash(compacted, revision) {
            Some(hash) if hash != ours.hash && !is_kept() => Err("a hash of the history is wrong"),
            _ => Ok(None),
        }
    }

    fn renewed(&self, id: i64, ttl: i64) -> Judged<StateIndex> {
        if !permissions::may_renew(self.replay, self.operation, id, self.upper) {
            return Err(NO_RIGHT);
        }
        self.granted_for(id, ttl)?
            .ok_or("a lease was renewed that does not exist")
    }

    /// The first state that has the lease with that granted TTL; `None` if no state has it.
    fn granted_for(&self, id: i64, ttl: i64) -> Judged<Option<StateIndex>> {
        let mut lives = self.replay.lives_in(id, self.lower, self.upper);
        let is_there = lives.clone().next().is_some();
        match lives.find(|(_, life)| life.ttl_s == ttl) {
            None if is_there => Err("a lease's time to live is wrong"),
            found => Ok(found.map(|(place, _)| place)),
        }
    }

    fn lease(&self, id: i64, keys: bool, ours: &LeaseTimeToLiveResponse) -> Judged<StateIndex> {
        let found = self.granted_for(id, ours.granted_ttl)?;
        let place = found.ok_or("a lease was shown that does not exist")?;
        if ours.id != id {
            return Err("a lease's time to live is wrong");
        }
        let places = (self.lower, self.upper);
        if !permissions::lease_keys(self.replay, self.operation, ours, places) {
            return Err(NO_RIGHT);
        }
        let mut shown = ours.keys.clone();
        shown.sort_unstable();
        if !keys {
            return match shown.is_empty() {
                true => Ok(place),
                false => Err("a lease's keys are wrong"),
            };
        }
        let mut seen = None;
        for place in place..=self.upper {
            let head = self.replay.state(place).head;
            if seen.replace(head) != Some(head) && self.replay.model.attached(id, head) == shown {
                return Ok(place);
            }
        }
        Err("a lease's keys are wrong")
    }
}
