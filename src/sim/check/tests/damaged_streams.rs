//! Ways to damage a correct watch stream, with the expected findings.

use super::cluster::{Made, header};
use super::damage::Damage;
use super::requests::Random;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::{EncodedEvent, Event, KeyValue};
use crate::sim::history::Watched;

pub const TABLE: &[(&str, Damage, &str)] = &[
    ("event dropped", drop_event, "a watch missed an event"),
    (
        "last events dropped",
        drop_end,
        "a watch did not get its last events",
    ),
    ("event duplicated", repeat_event, "an event came twice"),
    ("events reordered", reorder, "events are out of order"),
    ("revision torn", tear, "a revision is torn"),
    ("wrong pair", change_pair, "an event's pair is wrong"),
    (
        "wrong previous pair",
        change_previous,
        "an event's previous pair is wrong",
    ),
    (
        "no previous pair",
        drop_previous,
        "an event's previous pair is wrong",
    ),
    (
        "event beyond header",
        lower_header,
        "an event is ahead of its header",
    ),
    (
        "progress too soon",
        progress_early,
        "progress was reported ahead of an event",
    ),
    (
        "event of before",
        early_event,
        "an event is not for its watch",
    ),
    ("invented event", invent, "an event has no change"),
    ("garbled event", garble, "an event cannot be read"),
    (
        "never compacted",
        cancel,
        "a watch was cancelled without a compaction",
    ),
    (
        "compacted long ago",
        cancel_late,
        "a watch was cancelled though nothing of it was compacted",
    ),
    (
        "cancelled",
        cancel_silently,
        "a watch was cancelled without reason",
    ),
    ("refused", refuse, "a watch was refused without reason"),
    ("silence", silence, "a watch was never answered"),
    ("created again", create_again, "a watch was created twice"),
    (
        "header ahead",
        raise_header,
        "a watch's header is ahead of the log",
    ),
    ("header behind", header_back, "a watch's revisions go back"),
    ("split", split, "a response is split without being asked to"),
    ("continues", resume, "a cancelled watch continued"),
];

/// A response for which `fits` holds, by the indexes of watch and response.
fn pick(
    made: &Made,
    random: &mut Random,
    fits: impl Fn(&Watched, &WatchResponse) -> bool,
) -> Option<(usize, usize)> {
    let watches = made.history.watches.iter().enumerate();
    let responses = watches.flat_map(|(number, watched)| {
        let responses = watched.responses.iter().enumerate();
        responses.map(move |(at, (_, response))| (number, at, watched, response))
    });
    let fit: Vec<_> = responses
        .filter(|(_, _, watched, response)| fits(watched, response))
        .map(|(number, at, ..)| (number, at))
        .collect();
    fit.get(random.below(fit.len() as u64) as usize).copied()
}

/// The last response of a watch that is not cancelled.
fn pick_open(made: &Made, random: &mut Random, to_the_end: bool) -> Option<(usize, usize)> {
    let (number, _) = pick(made, random, |watched, response| {
        let cancelled = watched.responses.iter().any(|(_, other)| other.canceled);
        response.created && !cancelled && (watched.to_the_end || !to_the_end)
    })?;
    Some((number, made.history.watches[number].responses.len() - 1))
}

fn response(made: &mut Made, (number, at): (usize, usize)) -> &mut WatchResponse {
    &mut made.history.watches[number].responses[at].1
}

fn insert(made: &mut Made, (number, at): (usize, usize), response: WatchResponse) {
    let responses = &mut made.history.watches[number].responses;
    let moment = responses[at.min(responses.len() - 1)].0;
    responses.insert(at, (moment, response));
}

fn decoded(response: &WatchResponse) -> Vec<Event> {
    let events = response.events.iter();
    events
        .map(|event| event.decoded().expect("an event"))
        .collect()
}

fn main_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// An event for which `fits` holds, and its response.
fn pick_event(
    made: &Made,
    random: &mut Random,
    fits: impl Fn(&Watched, &WatchResponse, &Event) -> bool,
) -> Option<((usize, usize), usize)> {
    let from = pick(made, random, |watched, response| {
        decoded(response)
            .iter()
            .any(|event| fits(watched, response, event))
    })?;
    let watched = &made.history.watches[from.0];
    let response = &watched.responses[from.1].1;
    let events = decoded(response);
    let at = events
        .iter()
        .position(|event| fits(watched, response, event))?;
    Some((from, at))
}

fn change(made: &mut Made, (from, at): ((usize, usize), usize), change: impl Fn(&mut Event)) {
    let encoded = &mut response(made, from).events[at];
    let mut event = encoded.decoded().expect("an event");
    change(&mut event);
    *encoded = EncodedEvent::from(&event);
}

fn drop_event(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let (from, at) = pick_event(made, random, |_, response, event| {
        response.events.len() > 1 && !response.fragment && main_of(event) > compacted
    })?;
    response(made, from).events.remove(at);
    Some(())
}

fn drop_end(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let (from, _) = pick_event(made, random, |watched, _, event| {
        watched.to_the_end && main_of(event) > compacted
    })?;
    made.history.watches[from.0].responses.truncate(from.1);
    Some(())
}

fn repeat_event(made: &mut Made, random: &mut Random) -> Option<()> {
    let (from, at) = pick_event(made, random, |_, _, _| true)?;
    let response = response(made, from);
    let again = response.events[at].clone();
    // Where the transaction changes the key twice, the repetition can be correct.
    let next = response.events.get(at + 1).map(|event| event.decoded());
    if next.is_some_and(|next| {
        main_of(&next.expect("an event")) == main_of(&again.decoded().expect("an event"))
    }) {
        return None;
    }
    response.events.insert(at + 1, again);
    Some(())
}

fn reorder(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let (number, at) = pick(made, random, |_, response| {
        let events = decoded(response);
        events
            .windows(2)
            .any(|two| main_of(&two[0]) != main_of(&two[1]) && main_of(&two[0]) > compacted)
    })?;
    let events = decoded(&made.history.watches[number].responses[at].1);
    let place = events
        .windows(2)
        .position(|two| main_of(&two[0]) != main_of(&two[1]) && main_of(&two[0]) > compacted)?;
    response(made, (number, at)).events.swap(place, place + 1);
    Some(())
}

fn tear(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let from = pick(made, random, |_, response| {
        let events = decoded(response);
        let last = events.last().map_or(0, main_of);
        let before = events.iter().rev().nth(1).map_or(0, main_of);
        !response.fragment && last == before && last > compacted
    })?;
    let first = response(made, from);
    let mut second = first.clone();
    second.events = first.events.split_off(first.events.len() - 1);
    insert(made, (from.0, from.1 + 1), second);
    Some(())
}

fn change_pair(made: &mut Made, random: &mut Random) -> Option<()> {
    let place = pick_event(made, random, |_, _, _| true)?;
    change(made, place, |event| {
        if let Some(kv) = &mut event.kv {
            kv.version += 1;
        }
    });
    Some(())
}

fn change_previous(made: &mut Made, random: &mut Random) -> Option<()> {
    let place = pick_event(made, random, |_, _, event| event.prev_kv.is_some())?;
    change(made, place, |event| {
        if let Some(kv) = &mut event.prev_kv {
            kv.value = "never put".into();
        }
    });
    Some(())
}

fn drop_previous(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let place = pick_event(made, random, |_, _, event| {
        event.prev_kv.is_some() && main_of(event) > compacted
    })?;
    change(made, place, |event| event.prev_kv = None);
    Some(())
}

fn lower_header(made: &mut Made, random: &mut Random) -> Option<()> {
    let from = pick(made, random, |watched, response| {
        !watched.create.fragment && !response.events.is_empty()
    })?;
    let response = response(made, from);
    let last = main_of(decoded(response).last()?);
    response.header = header(last - 1);
    Some(())
}

fn progress_early(made: &mut Made, random: &mut Random) -> Option<()> {
    let compacted = made.model.compacted;
    let (from, _) = pick_event(made, random, |watched, _, event| {
        !watched.create.fragment && main_of(event) > compacted
    })?;
    let progress = WatchResponse {
        header: response(made, from).header,
        watch_id: -1,
        ..Default::default()
    };
    insert(made, from, progress);
    Some(())
}

fn early_event(made: &mut Made, random: &mut Random) -> Option<()> {
    let from = pick(made, random, |watched, response| {
        watched.create.start_revision > 3 && !response.events.is_empty()
    })?;
    let first = made.model.changes().into_iter().next()?;
    let first_main = first.revision.main;
    if made.history.watches[from.0].create.start_revision <= first_main {
        return None;
    }
    response(made, from).events.insert(0, (&first.event).into());
    Some(())
}

fn invent(made: &mut Made, random: &mut Random) -> Option<()> {
    let (from, at) = pick_event(made, random, |_, _, _| true)?;
    let main = main_of(&decoded(response(made, from))[at]);
    let event = Event {
        kv: Some(KeyValue {
            key: "nobody put this".into(),
            mod_revision: main,
            ..Default::default()
        }),
        ..Default::default()
    };
    response(made, from).events.insert(at, (&event).into());
    Some(())
}

fn garble(made: &mut Made, random: &mut Random) -> Option<()> {
    let (from, at) = pick_event(made, random, |_, _, _| true)?;
    response(made, from).events[at] = EncodedEvent::from_encoded(vec![0xff].into());
    Some(())
}

fn push(made: &mut Made, (number, last): (usize, usize), response: WatchResponse) {
    insert(made, (number, last + 1), response);
}

fn cancelled(compact_revision: i64) -> WatchResponse {
    WatchResponse {
        header: header(0),
        canceled: true,
        compact_revision,
        ..Default::default()
    }
}

fn cancel(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, false)?;
    let never = made.model.head + 5;
    push(made, last, cancelled(never));
    Some(())
}

fn cancel_late(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, true)?;
    let compacted = made.model.compacted;
    let complete_to = response(made, last).header?.revision;
    if compacted < 2 || complete_to + 1 < compacted {
        return None;
    }
    push(made, last, cancelled(compacted));
    made.history.watches[last.0].responses[last.1 + 1].0 = made.history.calm[0].1;
    Some(())
}

fn cancel_silently(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, true)?;
    push(made, last, cancelled(0));
    Some(())
}

fn refuse(made: &mut Made, random: &mut Random) -> Option<()> {
    let from = pick(made, random, |_, response| response.created)?;
    response(made, from).canceled = true;
    Some(())
}

fn silence(made: &mut Made, random: &mut Random) -> Option<()> {
    let (number, _) = pick_open(made, random, true)?;
    made.history.watches[number].responses.clear();
    Some(())
}

fn create_again(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, false)?;
    let again = made.history.watches[last.0].responses[0].1.clone();
    push(made, last, again);
    Some(())
}

fn raise_header(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, false)?;
    let ahead = WatchResponse {
        header: header(made.model.head + 1),
        ..Default::default()
    };
    push(made, last, ahead);
    Some(())
}

fn header_back(made: &mut Made, random: &mut Random) -> Option<()> {
    let last = pick_open(made, random, false)?;
    if last.1 == 0 {
        return None;
    }
    let behind = WatchResponse {
        header: header(response(made, last).header?.revision - 1),
        ..Default::default()
    };
    push(made, last, behind);
    Some(())
}

fn split(made: &mut Made, random: &mut Random) -> Option<()> {
    let from = pick(made, random, |watched, response| {
        !watched.create.fragment && !response.events.is_empty()
    })?;
    response(made, from).fragment = true;
    Some(())
}

fn resume(made: &mut Made, random: &mut Random) -> Option<()> {
    let (from, _) = pick_event(made, random, |watched, _, _| {
        !watched.to_the_end && !watched.create.fragment
    })?;
    insert(made, from, cancelled(0));
    Some(())
}
