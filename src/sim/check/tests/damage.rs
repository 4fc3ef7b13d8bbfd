//! Ways to damage a correct history of operations and entries, with the expected findings.
//!
//! Each returns whether the history had a place for it.

use bytes::Bytes;

use super::cluster::{Made, header};
use super::requests::Random;
use crate::error::Error;
use crate::proto::etcdserverpb::{LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest};
use crate::sim::history::{
    Answer, ClientRequest, History, Moment, Operation, Outcome, RecordedPayload,
};
use crate::state::machine::decode_request;
use crate::state::model::At;
use crate::state::model::auth::Who;
use crate::types::MemberId;

pub type Damage = fn(&mut Made, &mut Random) -> Option<()>;

pub const TABLE: &[(&str, Damage, &str)] = &[
    (
        "answers swapped",
        swap_answers,
        "an answer does not match its entry",
    ),
    (
        "revision off by one",
        shift_revision,
        "an answer does not match its entry",
    ),
    (
        "answered too soon",
        answer_soon,
        "a request was answered before it was applied",
    ),
    (
        "done too soon",
        ask_late,
        "a request was applied before it was sent",
    ),
    (
        "refused and done",
        refuse_done,
        "a refused request was applied",
    ),
    (
        "refused for nothing",
        refuse_put,
        "a request was refused without reason",
    ),
    (
        "no space for nothing",
        refuse_space,
        "a request was refused for lack of space without an alarm",
    ),
    ("wrong count", count_wrong, "a read's answer is wrong"),
    ("keys outlive a lease", outlive, "a read's answer is wrong"),
    ("stale read", read_stale, "a read is stale"),
    (
        "read of the future",
        read_future,
        "a read shows a later state",
    ),
    (
        "read of what is compacted",
        read_compacted,
        "a read shows what it may not",
    ),
    (
        "read refused",
        refuse_read,
        "a read was refused without reason",
    ),
    (
        "another kind",
        answer_otherwise,
        "an answer is of another kind",
    ),
    (
        "no such lease renewed",
        renew_nothing,
        "a lease was renewed that does not exist",
    ),
    (
        "no such lease shown",
        show_nothing,
        "a lease was shown that does not exist",
    ),
    (
        "wrong time to live",
        live_longer,
        "a lease's time to live is wrong",
    ),
    ("wrong keys of a lease", attach, "a lease's keys are wrong"),
    ("gap", skip_index, "the log has a gap"),
    ("term goes back", lower_term, "the terms of the log go back"),
    (
        "time goes back",
        lower_time,
        "an entry was applied before the one before it",
    ),
    ("garbage", garble, "an entry cannot be read"),
];

/// One of the operations for which there is `some`.
fn pick<T>(
    made: &Made,
    random: &mut Random,
    some: impl Fn(&Operation) -> Option<T>,
) -> Option<(usize, T)> {
    let all = made.history.operations.iter().enumerate();
    let mut fit: Vec<_> = all
        .filter_map(|(number, operation)| Some((number, some(operation)?)))
        .collect();
    if fit.is_empty() {
        return None;
    }
    let chosen = random.below(fit.len() as u64) as usize;
    Some(fit.swap_remove(chosen))
}

fn answered_put(operation: &Operation) -> Option<(PutRequest, PutResponse)> {
    match (&operation.request, &operation.outcome) {
        (ClientRequest::Put(put), Outcome::Answered(Answer::Put(answer))) => {
            Some((put.clone(), answer.clone()))
        }
        _ => None,
    }
}

fn revision_of_put(operation: &Operation) -> Option<i64> {
    Some(answered_put(operation)?.1.header?.revision)
}

/// The request and revision of a linearizable range of now that was answered.
fn answered_range(operation: &Operation) -> Option<(RangeRequest, i64)> {
    match (&operation.request, &operation.outcome) {
        (ClientRequest::Range(range), Outcome::Answered(Answer::Range(answer)))
            if range.revision == 0 && !range.serializable =>
        {
            Some((range.clone(), answer.header?.revision))
        }
        _ => None,
    }
}

fn swap_answers(made: &mut Made, random: &mut Random) -> Option<()> {
    let (one, (_, first)) = pick(made, random, answered_put)?;
    let other = |operation: &Operation| answered_put(operation).filter(|(_, put)| *put != first);
    let (other, (_, second)) = pick(made, random, other)?;
    made.history.operations[one].outcome = Outcome::Answered(Answer::Put(second));
    made.history.operations[other].outcome = Outcome::Answered(Answer::Put(first));
    Some(())
}

fn shift_revision(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, (_, mut answer)) = pick(made, random, answered_put)?;
    answer.header.as_mut()?.revision += 1;
    made.history.operations[number].outcome = Outcome::Answered(Answer::Put(answer));
    Some(())
}

/// When the entry of a put was applied.
fn done_at(history: &History, put: &PutRequest) -> Option<Moment> {
    let of_put = |payload: &RecordedPayload| match payload {
        RecordedPayload::Request(bytes) => {
            let request = decode_request(bytes.clone()).expect("a request");
            request.put.as_ref() == Some(put)
        }
        _ => false,
    };
    let mut entries = history.entries.iter();
    entries
        .find(|(_, entry)| of_put(&entry.payload))
        .map(|(at, _)| *at)
}

fn answer_soon(made: &mut Made, random: &mut Random) -> Option<()> {
    let soon = |operation: &Operation| {
        let (put, _) = answered_put(operation)?;
        (done_at(&made.history, &put)? > operation.called_at).then_some(operation.called_at)
    };
    let (number, at) = pick(made, random, soon)?;
    made.history.operations[number].returned_at = at;
    Some(())
}

fn ask_late(made: &mut Made, random: &mut Random) -> Option<()> {
    let late = |operation: &Operation| {
        let (put, _) = answered_put(operation)?;
        (done_at(&made.history, &put)? < operation.returned_at).then_some(operation.returned_at)
    };
    let (number, at) = pick(made, random, late)?;
    made.history.operations[number].called_at = at;
    Some(())
}

fn refused(error: Error) -> Outcome {
    Outcome::Refused(error.text().to_owned())
}

fn refuse_done(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, _) = pick(made, random, answered_put)?;
    made.history.operations[number].outcome = refused(Error::LeaseNotFound);
    Some(())
}

/// An operation after the end of the history.
fn add(made: &mut Made, asked: ClientRequest, outcome: Outcome) {
    let last = made
        .history
        .operations
        .last()
        .map_or(0, |last| last.returned_at);
    let at = made
        .history
        .entries
        .last()
        .map_or(0, |(at, _)| *at)
        .max(last)
        + 1;
    made.history.operations.push(Operation {
        client: 50,
        member: MemberId(1),
        who: Who::Nobody,
        known_index: 0,
        request: asked,
        called_at: at,
        returned_at: at,
        outcome,
    });
}

fn new_put() -> ClientRequest {
    ClientRequest::Put(PutRequest {
        key: "a".into(),
        value: "never put".into(),
        ..Default::default()
    })
}

fn refuse_put(made: &mut Made, _: &mut Random) -> Option<()> {
    add(made, new_put(), refused(Error::LeaseNotFound));
    Some(())
}

fn refuse_space(made: &mut Made, _: &mut Random) -> Option<()> {
    let raises = |payload: &RecordedPayload| match payload {
        RecordedPayload::Request(bytes) => {
            let request = decode_request(bytes.clone()).expect("a request");
            request.alarm.is_some_and(|alarm| alarm.action == 1)
        }
        _ => false,
    };
    let mut entries = made.history.entries.iter();
    if entries.any(|(_, entry)| raises(&entry.payload)) {
        return None;
    }
    add(made, new_put(), refused(Error::NoSpace));
    Some(())
}

fn count_wrong(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, _) = pick(made, random, answered_range)?;
    if let Outcome::Answered(Answer::Range(range)) = &mut made.history.operations[number].outcome {
        range.count += 1;
    }
    Some(())
}

/// The response to a range in some state, with the header of another.
fn range_at(made: &Made, request: &RangeRequest, head: i64, shown: i64) -> Option<Outcome> {
    let at = At {
        head,
        compacted: -1,
    };
    let mut range = made.model.range(request, at).ok()?;
    range.header = header(shown);
    Some(Outcome::Answered(Answer::Range(range)))
}

fn outlive(made: &mut Made, _: &mut Random) -> Option<()> {
    let changes = made.model.changes();
    let of_lease = changes.iter().rev().find(|change| {
        let previous = change.event.prev_kv.as_ref();
        let attached = previous.is_some_and(|kv| kv.lease != 0);
        change.event.r#type == 1 && change.superseded_at.is_none() && attached
    })?;
    let request = RangeRequest {
        key: of_lease.event.kv.as_ref()?.key.clone(),
        ..Default::default()
    };
    let before = of_lease.revision.main - 1;
    let outcome = range_at(made, &request, before, made.model.head)?;
    add(made, ClientRequest::Range(request), outcome);
    Some(())
}

fn read_stale(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, (request, _)) = pick(made, random, answered_range)?;
    let called_at = made.history.operations[number].called_at;
    let before = |operation: &Operation| {
        revision_of_put(operation).filter(|_| operation.returned_at < called_at)
    };
    let (_, revision) = pick(made, random, before)?;
    let old = range_at(made, &request, revision - 1, revision - 1)?;
    made.history.operations[number].outcome = old;
    Some(())
}

fn read_future(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, (request, _)) = pick(made, random, answered_range)?;
    let returned_at = made.history.operations[number].returned_at;
    let behind = |operation: &Operation| {
        revision_of_put(operation).filter(|_| operation.called_at > returned_at)
    };
    let (_, revision) = pick(made, random, behind)?;
    made.history.operations[number].outcome = range_at(made, &request, revision, revision)?;
    Some(())
}

fn read_compacted(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = |operation: &Operation| match (&operation.request, &operation.outcome) {
        (ClientRequest::Compaction(asked), Outcome::Answered(_)) if asked.revision > 1 => {
            Some((asked.revision, operation.returned_at))
        }
        _ => None,
    };
    let (_, (revision, at)) = pick(made, random, compacted)?;
    let behind =
        |operation: &Operation| answered_range(operation).filter(|_| operation.called_at > at);
    let (number, (mut request, shown)) = pick(made, random, behind)?;
    request.revision = revision - 1;
    let outcome = range_at(made, &request, shown, shown)?;
    made.history.operations[number].request = ClientRequest::Range(request);
    made.history.operations[number].outcome = outcome;
    Some(())
}

fn refuse_read(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, _) = pick(made, random, answered_range)?;
    made.history.operations[number].outcome = refused(Error::Compacted);
    Some(())
}

fn answer_otherwise(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, _) = pick(made, random, answered_range)?;
    made.history.operations[number].outcome = Outcome::Answered(Answer::LeaseKeepAlive { ttl: 5 });
    Some(())
}

fn renew_nothing(made: &mut Made, _: &mut Random) -> Option<()> {
    let asked = ClientRequest::LeaseKeepAlive { id: 9999 };
    let answer = Answer::LeaseKeepAlive { ttl: 5 };
    add(made, asked, Outcome::Answered(answer));
    Some(())
}

fn show_nothing(made: &mut Made, _: &mut Random) -> Option<()> {
    let asked = ClientRequest::LeaseTimeToLive {
        id: 9999,
        keys: false,
    };
    let left = LeaseTimeToLiveResponse {
        id: 9999,
        ttl: 1,
        granted_ttl: 5,
        ..Default::default()
    };
    let answer = Answer::LeaseTimeToLive(left);
    add(made, asked, Outcome::Answered(answer));
    Some(())
}

fn left(operation: &Operation) -> Option<(bool, LeaseTimeToLiveResponse)> {
    match (&operation.request, &operation.outcome) {
        (
            ClientRequest::LeaseTimeToLive { keys, .. },
            Outcome::Answered(Answer::LeaseTimeToLive(left)),
        ) if left.ttl >= 0 => Some((*keys, left.clone())),
        _ => None,
    }
}

fn live_longer(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, (_, mut left)) = pick(made, random, left)?;
    left.granted_ttl += 1;
    made.history.operations[number].outcome = Outcome::Answered(Answer::LeaseTimeToLive(left));
    Some(())
}

fn attach(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, (_, mut left)) = pick(made, random, left)?;
    left.keys.push("nobody attached this".into());
    made.history.operations[number].outcome = Outcome::Answered(Answer::LeaseTimeToLive(left));
    Some(())
}

fn skip_index(made: &mut Made, _: &mut Random) -> Option<()> {
    made.history.entries.last_mut()?.1.index += 1;
    Some(())
}

fn lower_term(made: &mut Made, _: &mut Random) -> Option<()> {
    made.history.entries.last_mut()?.1.term = 1;
    Some(())
}

fn lower_time(made: &mut Made, _: &mut Random) -> Option<()> {
    let entries = &mut made.history.entries;
    // Nothing else depends on the time at which a leader's first entry was applied.
    let at = entries
        .iter()
        .position(|(_, entry)| entry.payload == RecordedPayload::Empty)?;
    entries[at].0 = entries[at.checked_sub(1)?].0 - 1;
    Some(())
}

fn garble(made: &mut Made, _: &mut Random) -> Option<()> {
    let (at, mut entry) = made.history.entries.last()?.clone();
    entry.index += 1;
    entry.payload = RecordedPayload::Request(Bytes::from_static(b"\xff"));
    made.history.entries.push((at, entry));
    Some(())
}
