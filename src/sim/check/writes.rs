//! Matches entries with requests, and responses with entries.
//!
//! Entries carry no id that clients know, so they are matched by content. Most requests are unique,
//! since each value is put once in a world. Among equal ones, an entry is assigned to the one that
//! fits it (by response and by time) and returned first; operations with unknown outcome come last,
//! as they fit everything. No other assignment leaves fewer entries unmatched.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::answers;
use super::findings::{self, Findings};
use super::replay::{Content, Replay, StateIndex, step_text};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest,
    RequestHeader, alarm_request::AlarmAction,
};
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::sim::call::{OWN_LEASE_TTL_S, is_below_a_name};
use crate::sim::history::{ClientRequest, History, Moment, Operation, Outcome};
use crate::state::auth::verdict::MEMBER_REVISION;
use crate::state::model::auth::Who;
use crate::state::txn::is_read_only;

/// How far a member that refuses for lack of space may lag, in nanoseconds.
const ALARM_LAG: Moment = 10_000_000_000;

/// The matching of entries and operations.
pub struct Origins {
    /// By operation: the state that its entry produced.
    pub place_of: Vec<Option<StateIndex>>,
    /// By entry.
    pub asked_by: Vec<Option<usize>>,
}

/// The request in an entry, without what the member added.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Request(Vec<u8>),
    Member(Vec<u8>),
}

/// Equal requests, and the entries that hold them, both by number.
#[derive(Default)]
struct Group {
    /// In the order in which they returned.
    operations: Vec<usize>,
    /// In order.
    places: Vec<StateIndex>,
}

pub fn check(history: &History, replay: &Replay, findings: &mut Findings) -> Origins {
    let mut groups = BTreeMap::<Key, Group>::new();
    let mut by_return: Vec<usize> = (0..history.operations.len()).collect();
    by_return.sort_by_key(|operation| history.operations[*operation].returned_at);
    for operation in by_return {
        if let Some(key) = key_of_asked(&history.operations[operation]) {
            groups.entry(key).or_default().operations.push(operation);
        }
    }
    let mut request_ids = BTreeSet::new();
    for (before, step) in replay.steps.iter().enumerate() {
        let Some((key, request_id)) = key_of_entry(&step.content) else {
            continue;
        };
        if request_id != 0 && !request_ids.insert(request_id) {
            findings.add("a request was applied twice", || {
                format!("{}, and before under the same id", step_text(step))
            });
            continue;
        }
        groups.entry(key).or_default().places.push(before + 1);
    }
    let mut matching = Matching {
        history,
        replay,
        findings,
        origins: Origins {
            place_of: vec![None; history.operations.len()],
            asked_by: vec![None; replay.steps.len()],
        },
    };
    for group in groups.values() {
        matching.run(group);
    }
    matching.origins
}

fn key_of_asked(asked: &Operation) -> Option<Key> {
    let mut request = InternalRaftRequest {
        header: Some(header_of(&asked.who)),
        ..Default::default()
    };
    match &asked.request {
        ClientRequest::Put(put) => request.put = Some(put.clone()),
        ClientRequest::DeleteRange(delete) => request.delete_range = Some(delete.clone()),
        ClientRequest::Txn(txn) if !is_read_only(txn) => request.txn = Some(txn.clone()),
        ClientRequest::Compaction(compaction) => request.compaction = Some(*compaction),
        ClientRequest::LeaseGrant(grant) => request.lease_grant = Some(*grant),
        ClientRequest::LeaseRevoke { id } => request.lease_revoke = Some(LeaseRevokeRequest { id: *id }),
        ClientRequest::Alarm(alarm) => request.alarm = Some(*alarm),
        ClientRequest::Auth(change) => {
            request = InternalRaftRequest {
                header: request.header,
                ..change.as_ref().clone()
            };
        }
        ClientRequest::Member(change) => return Some(key_of_member(change)),
        ClientRequest::Txn(_)
        | ClientRequest::Range(_)
        | ClientRequest::LeaseKeepAlive { .. }
        | ClientRequest::LeaseTimeToLive { .. }
        | ClientRequest::RangeStream(_)
        | ClientRequest::LeaseLeases
        | ClientRequest::HashKv { .. }
        | ClientRequest::MemberList { .. }
        | ClientRequest::MoveLeader { .. }
        | ClientRequest::Defragment
        | ClientRequest::Status
        // It makes what transactions it needs; `locks` checks what came of them.
        | ClientRequest::Concurrency(_)
        // Whether it needs a write is decided by the server, and the response does not show it.
        | ClientRequest::Downgrade(_) => return None,
    }
    Some(key_of_request(request))
}

/// The key, and the id of the proposal; 0 for none.
fn key_of_entry(content: &Content) -> Option<(Key, u64)> {
    match content {
        Content::Empty | Content::Unreadable => None,
        Content::Request(request) => {
            let id = request.header.as_ref().map_or(0, |header| header.id);
            Some((key_of_request(request.as_ref().clone()), id))
        }
        Content::Member(change) => Some((key_of_member(change), change.request_id)),
    }
}

/// Whose an entry is, as its header says.
fn header_of(who: &Who) -> RequestHeader {
    let (username, auth_revision) = match who {
        Who::Nobody => (String::new(), 0),
        Who::Member => (String::new(), MEMBER_REVISION),
        Who::User {
            name,
            auth_revision,
        } => (name.clone(), *auth_revision),
    };
    RequestHeader {
        id: 0,
        username,
        auth_revision,
    }
}

fn key_of_request(mut request: InternalRaftRequest) -> Key {
    let who = Who::of(request.header.as_ref());
    request.header = Some(header_of(&who));
    request.id = 0;
    // The member may raise a short TTL, and clients choose the ids.
    if let Some(grant) = &mut request.lease_grant {
        *grant = LeaseGrantRequest {
            id: grant.id,
            ttl: 0,
        };
    }
    Key::Request(request.encode_to_vec())
}

fn key_of_member(change: &MemberChange) -> Key {
    let mut change = change.clone();
    change.request_id = 0;
    change.max_learners = 0;
    if let Some(Change::Add(raft) | Change::Update(raft)) = &mut change.change {
        raft.peer_urls.sort();
    }
    // The member that is called chooses the id of a new member; peer URLs are unique.
    if matches!(change.change, Some(Change::Add(_))) {
        change.member_id = 0;
    }
    Key::Member(change.encode_to_vec())
}

/// The possible origin of an entry.
enum Suspect {
    Operation(usize),
    /// A member's background job.
    Job,
    /// A request that already has its entry.
    MatchedRequest,
    NoRequest,
}

struct Matching<'a> {
    history: &'a History,
    replay: &'a Replay,
    findings: &'a mut Findings,
    origins: Origins,
}

impl Matching<'_> {
    fn run(&mut self, group: &Group) {
        let mut left = Vec::new();
        for place in &group.places {
            match self.choose(group, *place) {
                Some(operation) => self.join(operation, *place),
                None => left.push(*place),
            }
        }
        for place in left {
            self.explain(group, place);
        }
        for operation in &group.operations {
            if self.is_free(*operation) {
                self.miss(*operation);
            }
        }
    }

    fn is_free(&self, operation: usize) -> bool {
        self.origins.place_of[operation].is_none()
    }

    fn join(&mut self, operation: usize, place: StateIndex) {
        self.origins.place_of[operation] = Some(place);
        self.origins.asked_by[place - 1] = Some(operation);
    }

    fn free<'a>(
        &'a self,
        group: &'a Group,
        wanted: impl Fn(&Outcome) -> bool + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let all = group.operations.iter().copied();
        all.filter(move |operation| {
            self.is_free(*operation) && wanted(&self.history.operations[*operation].outcome)
        })
    }

    /// Whether the entry was first applied while the operation was in flight.
    fn is_in_time(&self, operation: usize, place: StateIndex) -> bool {
        let operation = &self.history.operations[operation];
        let at = self.replay.moment(place);
        let late = operation.outcome != Outcome::Unknown && at > operation.returned_at;
        operation.called_at <= at && !late
    }

    fn fits(&self, operation: usize, place: StateIndex) -> bool {
        let operation = &self.history.operations[operation];
        let step = self.replay.step(place);
        step.is_some_and(|step| answers::fits(operation, step, place, self.replay))
    }

    fn choose(&self, group: &Group, place: StateIndex) -> Option<usize> {
        let good =
            |operation: &usize| self.is_in_time(*operation, place) && self.fits(*operation, place);
        let known = self.free(group, |outcome| *outcome != Outcome::Unknown);
        let mut unknown = self.free(group, |outcome| *outcome == Outcome::Unknown);
        known.into_iter().find(good).or_else(|| unknown.find(good))
    }

    /// Finds the least severe explanation of an entry that no operation fits.
    fn explain(&mut self, group: &Group, place: StateIndex) {
        let Some(step) = self.replay.step(place) else {
            return;
        };
        let (what, operation) = match self.suspect(group, place) {
            Suspect::Job if self.raises_corruption(place) => {
                ("sound data was reported as corrupt", None)
            }
            Suspect::Job => return,
            Suspect::Operation(operation) => (self.accuse(operation, place), Some(operation)),
            Suspect::MatchedRequest => ("a request was applied twice", None),
            Suspect::NoRequest => ("an entry has no request", None),
        };
        let asked = operation.map(|operation| &self.history.operations[operation]);
        if let Some(operation) = operation {
            self.join(operation, place);
        }
        if !what.is_empty() {
            self.findings.add(what, || match asked {
                Some(asked) => format!("{}; {}", findings::operation(asked), step_text(step)),
                None => step_text(step),
            });
        }
    }

    /// The possible origin of an entry that no operation fits.
    fn suspect(&self, group: &Group, place: StateIndex) -> Suspect {
        let in_time = |operation: &usize| self.is_in_time(*operation, place);
        let answered = |outcome: &Outcome| matches!(outcome, Outcome::Answered(_));
        if let Some(operation) = self.free(group, answered).find(in_time) {
            return Suspect::Operation(operation);
        }
        if self.is_a_jobs(place) {
            return Suspect::Job;
        }
        let answered = self.free(group, answered).next();
        let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_));
        let free = answered
            .or_else(|| self.free(group, refused).find(in_time))
            .or_else(|| self.free(group, |_| true).next());
        match free {
            Some(operation) => Suspect::Operation(operation),
            None if group.operations.is_empty() => Suspect::NoRequest,
            None => Suspect::MatchedRequest,
        }
    }

    /// The violation where an operation's request equals an entry that does not fit it; none if it
    /// is harmless.
    fn accuse(&self, operation: usize, place: StateIndex) -> &'static str {
        let at = self.replay.moment(place);
        let asked = &self.history.operations[operation];
        match &asked.outcome {
            _ if at < asked.called_at => "a request was applied before it was sent",
            Outcome::Answered(_) if at > asked.returned_at => {
                "a request was answered before it was applied"
            }
            Outcome::Answered(_) => "an answer does not match its entry",
            Outcome::Refused(text) => self.accuse_refused(text, place),
            Outcome::Unknown => "",
        }
    }

    /// As `accuse`, for a request that was refused.
    fn accuse_refused(&self, text: &str, place: StateIndex) -> &'static str {
        let step = self.replay.step(place);
        if step.is_some_and(|step| step.result.is_ok()) {
            "a refused request was applied"
        } else if Error::from_text(text).is_some_and(answers::is_decided_by_the_log) {
            "a refusal contradicts the log"
        } else {
            ""
        }
    }

    /// Whether members propose this entry in background jobs.
    fn is_a_jobs(&self, place: StateIndex) -> bool {
        let step = self.replay.step(place);
        let request = match step.map(|step| (&step.content, &step.result)) {
            Some((Content::Request(request), _)) => request,
            // A promotion with an unknown outcome is proposed again.
            Some((Content::Member(_), Err(_))) => return true,
            _ => return false,
        };
        let raised = |alarm: &AlarmRequest| alarm.action == AlarmAction::Activate as i32;
        is_of_a_lock(request)
            || request.lease_revoke.is_some()
            || request.lease_checkpoint.is_some()
            || request.alarm.as_ref().is_some_and(raised)
            || request.cluster_version_set.is_some()
            || request.cluster_member_attr_set.is_some()
            || request.downgrade_info_set.is_some()
            || (request.compaction.is_some() && self.history.auto_compaction)
    }

    /// Whether the entry reports a member's data as corrupt: real corruption would have been found
    /// by the invariants before.
    fn raises_corruption(&self, place: StateIndex) -> bool {
        let step = self.replay.step(place);
        let Some(Content::Request(request)) = step.map(|step| &step.content) else {
            return false;
        };
        let alarm = request.alarm.as_ref();
        alarm.is_some_and(|alarm| {
            alarm.action == AlarmAction::Activate as i32 && alarm.alarm == AlarmType::Corrupt as i32
        })
    }

    /// Checks an operation that may write and has no entry.
    fn miss(&mut self, operation: usize) {
        let operation = &self.history.operations[operation];
        let what = match &operation.outcome {
            Outcome::Unknown => return,
            Outcome::Answered(_) => "an acknowledged request is not in the log",
            Outcome::Refused(text) => match Error::from_text(text) {
                Some(Error::NoSpace) if !self.had_no_space(operation.called_at) => {
                    "a request was refused for lack of space without an alarm"
                }
                Some(Error::DuplicateKey) if !may_be_duplicate(&operation.request) => {
                    "a request was refused without reason"
                }
                Some(error) if answers::is_decided_by_the_log(error) => {
                    "a request was refused without reason"
                }
                Some(Error::UserEmpty) if !self.was_enabled(operation) => {
                    "nobody was refused without reason"
                }
                _ => return,
            },
        };
        self.findings.add(what, || findings::operation(operation));
    }

    /// Whether authentication was enabled at some time of an operation.
    fn was_enabled(&self, operation: &Operation) -> bool {
        let from = self.replay.until(operation.called_at);
        let to = self.replay.until(operation.returned_at);
        self.replay.auths(from, to).any(|auth| auth.enabled)
    }

    /// Whether the alarm is raised, was raised shortly before, or is raised later.
    fn had_no_space(&self, called_at: Moment) -> bool {
        let from = self.replay.until(called_at.saturating_sub(ALARM_LAG));
        (from..=self.replay.end()).any(|place| self.replay.has_no_space(place))
    }
}

/// Whether the calls of the Lock and the Election service make such entries.
fn is_of_a_lock(request: &InternalRaftRequest) -> bool {
    let txn = request.txn.as_ref();
    let compared = txn.and_then(|txn| txn.compare.first());
    let deleted = request.delete_range.as_ref();
    let key = compared.map(|compare| &compare.key);
    let key = key.or(deleted.map(|delete| &delete.key));
    let granted = request.lease_grant.as_ref();
    key.is_some_and(|key| is_below_a_name(key))
        || granted.is_some_and(|grant| grant.ttl == OWN_LEASE_TTL_S)
}

fn may_be_duplicate(asked: &ClientRequest) -> bool {
    matches!(asked, ClientRequest::Txn(txn) if answers::has_duplicates(txn))
}
