//! Compares watch responses with the changes: every event of the range from the start revision on,
//! once, in order, no revision split across responses; or a cancellation because of a compaction.
//!
//! Only the first violation of each watch is reported: the rest mostly follows from it.

use super::answers::revision;
use super::findings::{self, Findings, moment};
use super::permissions;
use super::reads::NO_RIGHT;
use super::replay::{Replay, StateIndex};
use crate::proto::Event;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::sim::history::{History, Moment, Watched};
use crate::state::model::Changed;

pub fn check(history: &History, replay: &Replay, findings: &mut Findings) {
    for watched in &history.watches {
        if let Err((what, details)) = Watch::new(watched, replay).run() {
            findings.add(what, || {
                format!(
                    "client {} watched member {} from {} on with {}: {details}",
                    watched.client,
                    watched.member,
                    moment(watched.created_at),
                    findings::shortened(&watched.create),
                )
            });
        }
    }
}

/// The violated property, and the details.
type Broken = (&'static str, String);

/// A watch, as far as its responses have been checked.
struct Watch<'a> {
    watched: &'a Watched,
    replay: &'a Replay,
    /// The events that it has to deliver, in order.
    expected: Vec<&'a Changed>,
    /// How many of them it has delivered.
    given: usize,
    /// The revision up to which it was reported to be complete.
    complete_to: i64,
    last_header: i64,
    cancelled: bool,
}

impl<'a> Watch<'a> {
    fn new(watched: &'a Watched, replay: &'a Replay) -> Self {
        let created = watched.responses.first();
        let head = created.map_or(0, |(_, created)| revision(created.header.as_ref()));
        let first = match watched.create.start_revision {
            ..=0 => head + 1,
            start => start,
        };
        let behind = replay
            .changes
            .partition_point(|change| change.revision.main < first);
        let changes = replay.changes[behind..].iter();
        Self {
            watched,
            replay,
            expected: changes
                .filter(|change| is_wanted(watched, &change.event))
                .collect(),
            given: 0,
            complete_to: first - 1,
            last_header: 0,
            cancelled: false,
        }
    }

    fn run(mut self) -> Result<(), Broken> {
        let Some((at, created)) = self.watched.responses.first() else {
            return match self.watched.to_the_end {
                true => Err(("a watch was never answered", String::new())),
                false => Ok(()),
            };
        };
        let create = &self.watched.create;
        if !created.created {
            return Err(("a watch was never answered", shown(*at, created)));
        }
        if created.canceled {
            // Its id may be a duplicate.
            let is_refused = match is_about_rights(created) {
                true => self.is_not_permitted(0, *at),
                false => is_senseless(create) || create.watch_id != 0,
            };
            return match is_refused {
                true => Ok(()),
                false => Err(("a watch was refused without reason", shown(*at, created))),
            };
        }
        if is_senseless(create) {
            return Err(("a watch was not refused", shown(*at, created)));
        }
        let place = self.replay.until(*at);
        if !permissions::may_watch(self.replay, self.watched, 0, place) {
            return Err((NO_RIGHT, shown(*at, created)));
        }
        self.check_header(*at, created)?;
        for number in 1..self.watched.responses.len() {
            self.take(number)?;
        }
        let last = self.replay.end();
        let is_open = self.watched.to_the_end && !self.cancelled;
        if is_open && !permissions::may_watch(self.replay, self.watched, last, last) {
            return Err(("a watch continued without the right to it", String::new()));
        }
        let end = self.replay.state(last).compacted;
        match self.next_certain(end) {
            Some(missing) if self.watched.to_the_end && !self.cancelled => Err((
                "a watch did not get its last events",
                format!("at revision {}, {:?}", missing.revision, missing.event),
            )),
            _ => Ok(()),
        }
    }

    /// Whether some state from a place on, up to a time, does not permit the watch.
    fn is_not_permitted(&self, from: StateIndex, at: Moment) -> bool {
        let to = self.replay.until(at);
        permissions::may_not_watch(self.replay, self.watched, from, to)
    }

    fn check_header(&self, at: Moment, response: &WatchResponse) -> Result<(), Broken> {
        let newest = self.replay.state(self.replay.until(at)).head;
        match revision(response.header.as_ref()) > newest {
            true => Err((
                "a watch's header is ahead of the log",
                format!(
                    "{}, and revision {newest} is the newest",
                    shown(at, response)
                ),
            )),
            false => Ok(()),
        }
    }

    fn take(&mut self, number: usize) -> Result<(), Broken> {
        let (at, response) = &self.watched.responses[number];
        let broken = |what| Err((what, shown(*at, response)));
        if response.created {
            return broken("a watch was created twice");
        }
        if self.cancelled && !response.events.is_empty() {
            return broken("a cancelled watch continued");
        }
        if response.canceled {
            self.cancelled = true;
            return self.check_cancelled(*at, response);
        }
        self.check_header(*at, response)?;
        let header = revision(response.header.as_ref());
        if header < self.last_header {
            return broken("a watch's revisions go back");
        }
        self.last_header = header;
        for (place, event) in response.events.iter().enumerate() {
            let Ok(event) = event.decoded() else {
                return broken("an event cannot be read");
            };
            self.take_event(&event, header, (number, place))
                .map_err(|what| (what, format!("{event:?} in {}", shown(*at, response))))?;
        }
        if response.fragment {
            return match self.watched.create.fragment {
                true => Ok(()),
                false => broken("a response is split without being asked to"),
            };
        }
        self.check_complete(number, header)?;
        self.complete_to = self.complete_to.max(header);
        Ok(())
    }

    /// The compacted revision at the time of a response.
    fn compacted(&self, at: Moment) -> i64 {
        self.replay.state(self.replay.until(at)).compacted
    }

    /// The next event that must be delivered. A change that the same transaction superseded
    /// disappears in a compaction to exactly that revision.
    fn next_certain(&self, compacted: i64) -> Option<&'a Changed> {
        let mut left = self.expected[self.given..].iter();
        left.find(|change| !is_lost(change, compacted)).copied()
    }

    fn take_event(
        &mut self,
        event: &Event,
        header: i64,
        (number, place): (usize, usize),
    ) -> Result<(), &'static str> {
        let at = self.watched.responses[number].0;
        // It was sent while its state, or a later one, was the newest.
        let from = self
            .replay
            .first_with(event.kv.as_ref().map_or(0, |kv| kv.mod_revision));
        let to = self.replay.until(at).max(from);
        if from <= self.replay.end() && !permissions::may_watch(self.replay, self.watched, from, to)
        {
            return Err(NO_RIGHT);
        }
        let compacted = self.compacted(at);
        let left = &self.expected[self.given..];
        let skipped = left
            .iter()
            .take_while(|change| is_lost(change, compacted) && !is_of(event, change));
        let next = self.given + skipped.count();
        let change = self.expected.get(next);
        let Some(change) = change.filter(|change| is_of(event, change)) else {
            return Err(self.judge_unexpected(event, (number, place)));
        };
        if change.revision.main > header {
            return Err("an event is ahead of its header");
        }
        if event.kv != change.event.kv {
            return Err("an event's pair is wrong");
        }
        let previous = change.event.prev_kv.as_ref();
        let may_lack = !change.shows_previous(compacted);
        let is_right = match &event.prev_kv {
            _ if !self.watched.create.prev_kv => event.prev_kv.is_none(),
            None => previous.is_none() || may_lack,
            some => some.as_ref() == previous,
        };
        if !is_right {
            return Err("an event's previous pair is wrong");
        }
        self.given = next + 1;
        Ok(())
    }

    /// What is wrong with an event that is not the next one.
    fn judge_unexpected(&self, event: &Event, from: (usize, usize)) -> &'static str {
        let (given, left) = self.expected.split_at(self.given);
        if given.iter().any(|change| is_of(event, change)) {
            return "an event came twice";
        }
        if left.iter().any(|change| is_of(event, change)) {
            return match left
                .first()
                .is_some_and(|next| self.comes_later(next, from))
            {
                true => "events are out of order",
                false => "a watch missed an event",
            };
        }
        match self
            .replay
            .changes
            .iter()
            .any(|change| is_of(event, change))
        {
            true => "an event is not for its watch",
            false => "an event has no change",
        }
    }

    /// Whether a change is delivered after event `place` of response `number`.
    fn comes_later(&self, change: &Changed, (number, place): (usize, usize)) -> bool {
        let responses = self.watched.responses.iter().enumerate().skip(number);
        let mut events = responses.flat_map(|(other, (_, response))| {
            let first = if other == number { place + 1 } else { 0 };
            response.events.iter().skip(first)
        });
        events.any(|event| event.decoded().is_ok_and(|event| is_of(&event, change)))
    }

    /// Checks the header of a complete response against the events delivered so far.
    fn check_complete(&self, number: usize, header: i64) -> Result<(), Broken> {
        let (at, response) = &self.watched.responses[number];
        let missing = self.next_certain(self.compacted(*at));
        let Some(missing) = missing.filter(|missing| missing.revision.main <= header) else {
            return Ok(());
        };
        let last = response.events.last();
        let last = last.and_then(|event| event.decoded().ok()?.kv);
        let main = missing.revision.main;
        let is_torn = last.is_some_and(|kv| kv.mod_revision == main)
            && self.comes_later(missing, (number, response.events.len()));
        let what = match response.events.is_empty() {
            _ if is_torn => "a revision is torn",
            true => "progress was reported ahead of an event",
            false => "a watch missed an event",
        };
        Err((
            what,
            format!(
                "{:?} is not there with {}",
                missing.event,
                shown(*at, response)
            ),
        ))
    }

    fn check_cancelled(&self, at: Moment, response: &WatchResponse) -> Result<(), Broken> {
        let compacted = response.compact_revision;
        let what = if is_about_rights(response) {
            match self.is_not_permitted(0, at) {
                true => return Ok(()),
                false => "a user's watch was ended without reason",
            }
        } else if compacted == 0 {
            // A client that cancels its watch does not receive the rest.
            match self.watched.to_the_end {
                true => "a watch was cancelled without reason",
                false => return Ok(()),
            }
        } else if !self.replay.was_compacted_to(compacted, at) {
            "a watch was cancelled without a compaction"
        } else if self.complete_to + 1 >= compacted {
            "a watch was cancelled though nothing of it was compacted"
        } else {
            return Ok(());
        };
        Err((what, shown(at, response)))
    }
}

/// Whether a watch was refused or ended for want of a right.
fn is_about_rights(response: &WatchResponse) -> bool {
    response.cancel_reason.starts_with("rpc error: code = ")
}

fn shown(at: Moment, response: &WatchResponse) -> String {
    format!("at {} {}", moment(at), findings::shortened(response))
}

/// Whether an event is about a change; its content is checked elsewhere.
fn is_of(event: &Event, change: &Changed) -> bool {
    let (Some(ours), Some(theirs)) = (&event.kv, &change.event.kv) else {
        return false;
    };
    event.r#type == change.event.r#type
        && ours.mod_revision == change.revision.main
        && ours.key == theirs.key
}

/// Whether a compaction may have removed the change before a watch that starts at exactly that
/// revision delivered it: the same transaction superseded it.
fn is_lost(change: &Changed, compacted: i64) -> bool {
    let main = change.revision.main;
    change.event.r#type == 0 && change.superseded_at == Some(main) && main <= compacted
}

fn is_wanted(watched: &Watched, event: &Event) -> bool {
    let create = &watched.create;
    let filter = match event.r#type {
        0 => FilterType::Noput,
        _ => FilterType::Nodelete,
    };
    let key = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
    let from: &[u8] = match create.key.is_empty() {
        true => &[0],
        false => &create.key,
    };
    let is_inside = match create.range_end.as_ref() {
        [] => key == from,
        [0] => from <= key,
        end => from <= key && key < end,
    };
    is_inside && !create.filters.contains(&(filter as i32))
}

/// Whether a watch has to be refused: an invalid start revision, or an empty range.
fn is_senseless(create: &WatchCreateRequest) -> bool {
    let from: &[u8] = match create.key.is_empty() {
        true => &[0],
        false => &create.key,
    };
    let end = create.range_end.as_ref();
    let is_empty = !matches!(end, [] | [0]) && end <= from;
    create.start_revision < 0 || is_empty
}
