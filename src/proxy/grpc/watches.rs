//! Which watches of clients share a watch at the cluster, and what each of them gets of it. Pure:
//! requests and answers come in, [`Output`]s come out.
//!
//! A `Broadcast` is a watch at the cluster, of one range. It knows the first revision that it has not
//! delivered, `next_revision`; 0 as long as it is to begin "now" and has not begun. A client's watch
//! joins one that will deliver all that it has to see: one that has begun and delivered less, or one
//! that has not and begins at the same place. A watch that is to begin "now" never joins one that has
//! begun, whose "now" was in the past: long ago, perhaps. It gets a broadcast of its own, or joins one
//! that the cluster has not answered, whose "now" the answer names; as with a member that is behind,
//! that can be earlier than a write that the client knows of. When a broadcast has begun, its watches
//! move to another one of the range that is not ahead of it and reads no history, and it is closed. So
//! many watches of a range soon cost one.
//!
//! Every client's watch knows the first revision that it has not got, so whichever broadcast it is
//! in, nothing comes twice and nothing is left out.
//!
//! All of this is for callers with the same token, and each watch comes here once the cluster has said
//! that its caller may have it (`permission`): what was allowed another watch is not asked of it.

mod progress;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::DecodeError;

use super::group::StreamId;
use super::namespace::Namespace;
use crate::proto::EncodedEvent;
use crate::proto::etcdserverpb::{
    ResponseHeader, WatchCreateRequest, WatchResponse, watch_create_request::FilterType,
};

/// A watch at the cluster, by the id that it has there.
pub type BroadcastId = i64;

/// The id of a watch that did not come about.
const NO_WATCH: i64 = -1;
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const DELETE: i32 = 1;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Begin a watch at the cluster.
    Open {
        broadcast: BroadcastId,
        range: (Bytes, Bytes),
        start_revision: i64,
    },
    Close {
        broadcast: BroadcastId,
    },
    /// Ask the cluster how far its watches are.
    AskProgress,
    Answer {
        stream: StreamId,
        response: WatchResponse,
    },
}

/// See the module.
pub struct Watches {
    namespace: Namespace,
    streams: BTreeMap<StreamId, ClientStream>,
    broadcasts: BTreeMap<BroadcastId, Broadcast>,
    by_range: BTreeMap<(Bytes, Bytes), BTreeSet<BroadcastId>>,
    /// Those that the cluster has not answered, in the order in which it will.
    opening: VecDeque<BroadcastId>,
    next_broadcast: BroadcastId,
    progress: ProgressRequests,
    outputs: Vec<Output>,
    counts: Counts,
}

/// How often the cluster was asked for progress, and answered, over the present stream.
#[derive(Default)]
struct ProgressRequests {
    asked: u64,
    answered: u64,
}

/// What coalescing has won.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients' watches.
    pub watches: usize,
    /// Watches at the cluster.
    pub broadcasts: usize,
    /// Answers that came once and went to more than one.
    pub saved: u64,
}

#[derive(Default)]
struct ClientStream {
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    /// It asked how far its watches are, and takes an answer to this request or a later one.
    wants_progress: Option<u64>,
}

/// A client's watch.
struct Watch {
    broadcast: BroadcastId,
    /// The first revision that it has not got; 0: it begins with the broadcast.
    next_revision: i64,
    progress: bool,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    header: Option<ResponseHeader>,
}

struct Broadcast {
    range: (Bytes, Bytes),
    next_revision: i64,
    /// The cluster has answered.
    begun: bool,
    /// What was past when it last began: it reads history until it has delivered that. None as long as
    /// the cluster has not answered over the present stream.
    past_revision: Option<i64>,
    current: bool,
    /// How often progress had been asked for by then.
    asked_before: u64,
    header: Option<ResponseHeader>,
    members: BTreeSet<(StreamId, i64)>,
}

/// An event as watches need it.
struct Seen {
    revision: i64,
    is_delete: bool,
    with_prev: EncodedEvent,
    without_prev: EncodedEvent,
}

impl Seen {
    fn of(event: &EncodedEvent, namespace: &Namespace) -> Result<Self, DecodeError> {
        let mut plain = event.decoded()?;
        plain.kv = plain.kv.map(|pair| namespace.plain(pair));
        plain.prev_kv = plain.prev_kv.map(|pair| namespace.plain(pair));
        let with_prev = EncodedEvent::from(&plain);
        let without_prev = match plain.prev_kv.take() {
            None => with_prev.clone(),
            Some(_) => EncodedEvent::from(&plain),
        };
        Ok(Self {
            revision: plain.kv.map_or(0, |pair| pair.mod_revision),
            is_delete: plain.r#type == DELETE,
            with_prev,
            without_prev,
        })
    }
}

/// What a watch is of, at the cluster.
///
/// # Errors
/// What a refusal of it says.
pub fn range(
    namespace: &Namespace,
    request: &WatchCreateRequest,
) -> Result<(Bytes, Bytes), &'static str> {
    let (key, end) = (&request.key, &request.range_end);
    let is_range = end.is_empty() || end > key || end.as_ref() == [0];
    if request.start_revision < 0 || !is_range {
        return Err(if is_range { COMPACTED } else { "" });
    }
    // As a member reads an empty key: the first there can be.
    let key: &[u8] = match key.is_empty() && namespace.is_empty() {
        true => &[0],
        false => key,
    };
    Ok(namespace.range(key, end))
}

impl Watches {
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            streams: BTreeMap::new(),
            broadcasts: BTreeMap::new(),
            by_range: BTreeMap::new(),
            opening: VecDeque::new(),
            next_broadcast: 1,
            progress: ProgressRequests::default(),
            outputs: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    pub fn counted(&self) -> Counts {
        Counts {
            broadcasts: self.broadcasts.len(),
            ..self.counts
        }
    }

    pub fn open_stream(&mut self, stream: StreamId) {
        self.streams.insert(stream, ClientStream::default());
    }

    pub fn close_stream(&mut self, stream: StreamId) {
        let closed = self.streams.remove(&stream);
        for (id, watch) in closed.into_iter().flat_map(|one| one.watches) {
            self.counts.watches -= 1;
            self.leave(watch.broadcast, (stream, id));
        }
    }

    /// A client begins a watch.
    pub fn create(&mut self, stream: StreamId, request: &WatchCreateRequest) {
        let range = match range(&self.namespace, request) {
            Ok(range) => range,
            Err(reason) => return self.refuse(stream, None, reason),
        };
        let Some(client) = self.streams.get_mut(&stream) else {
            return;
        };
        let id = match request.watch_id {
            0 => {
                while client.watches.contains_key(&client.next_id) {
                    client.next_id += 1;
                }
                client.next_id
            }
            id if client.watches.contains_key(&id) => {
                self.refuse(stream, None, DUPLICATE_ID);
                return;
            }
            id => id,
        };
        if request.watch_id == 0 {
            client.next_id += 1;
        }
        let broadcast = self.fitting(&range, request.start_revision);
        let broadcast = broadcast.unwrap_or_else(|| self.begin(range, request.start_revision));
        let filters = |filter| request.filters.contains(&(filter as i32));
        let watch = Watch {
            broadcast,
            next_revision: request.start_revision,
            progress: request.progress_notify,
            prev_kv: request.prev_kv,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
            header: None,
        };
        let Some(joined) = self.broadcasts.get_mut(&broadcast) else {
            return;
        };
        joined.members.insert((stream, id));
        let header = joined.begun.then_some(joined.header).flatten();
        if let Some(client) = self.streams.get_mut(&stream) {
            client.watches.insert(id, watch);
            self.counts.watches += 1;
        }
        if joined.begun {
            // The cluster has said so long ago.
            self.answer(stream, id, header, |response| response.created = true);
        }
    }

    /// A client ends a watch.
    pub fn cancel(&mut self, stream: StreamId, id: i64) {
        let Some(client) = self.streams.get_mut(&stream) else {
            return;
        };
        let Some(watch) = client.watches.remove(&id) else {
            return;
        };
        self.counts.watches -= 1;
        let header = watch.header;
        self.leave(watch.broadcast, (stream, id));
        self.answer(stream, id, header, |response| response.canceled = true);
    }

    /// The cluster says something.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn answered(&mut self, response: &WatchResponse) -> Result<(), DecodeError> {
        if response.created {
            if let Some(broadcast) = self.opening.pop_front() {
                match response.canceled {
                    true => self.ended(broadcast, response),
                    false => self.begun(broadcast, response),
                }
            }
        } else if response.canceled {
            self.ended(response.watch_id, response);
        } else if response.events.is_empty() && response.watch_id == NO_WATCH {
            self.progressed_all(response);
        } else if response.events.is_empty() {
            self.progressed(response);
        } else {
            self.happened(response)?;
        }
        Ok(())
    }

    /// The stream to the cluster is gone: all that was there is begun again on the next, where it
    /// stopped.
    pub fn disconnected(&mut self) {
        self.opening.clear();
        // They are begun below.
        self.outputs
            .retain(|output| matches!(output, Output::Answer { .. }));
        let ids: Vec<_> = self.broadcasts.keys().copied().collect();
        for id in ids {
            self.open(id);
        }
        self.progress_lost();
    }

    /// A broadcast that will deliver all from a revision on.
    fn fitting(&self, range: &(Bytes, Bytes), start: i64) -> Option<BroadcastId> {
        let candidates = self.by_range.get(range)?;
        let fits = |id: &&BroadcastId| {
            self.broadcasts.get(id).is_some_and(|one| match one.begun {
                false => one.next_revision == start,
                true => {
                    let is_there = one.next_revision == start;
                    start > 0 && (is_there || one.current && one.next_revision < start)
                }
            })
        };
        candidates.iter().find(fits).copied()
    }

    fn begin(&mut self, range: (Bytes, Bytes), start: i64) -> BroadcastId {
        let id = self.next_broadcast;
        self.next_broadcast += 1;
        self.by_range.entry(range.clone()).or_default().insert(id);
        let broadcast = Broadcast {
            range,
            next_revision: start,
            begun: false,
            past_revision: None,
            current: false,
            asked_before: 0,
            header: None,
            members: BTreeSet::new(),
        };
        self.broadcasts.insert(id, broadcast);
        self.open(id);
        id
    }

    fn open(&mut self, id: BroadcastId) {
        if let Some(broadcast) = self.broadcasts.get_mut(&id) {
            broadcast.current = false;
            broadcast.past_revision = None;
            self.opening.push_back(id);
            self.outputs.push(Output::Open {
                broadcast: id,
                range: broadcast.range.clone(),
                start_revision: broadcast.next_revision,
            });
        }
    }

    fn begun(&mut self, id: BroadcastId, response: &WatchResponse) {
        let Some(broadcast) = self.broadcasts.get_mut(&id) else {
            return;
        };
        let revision = revision(response);
        broadcast.header = response.header;
        broadcast.past_revision = Some(revision);
        broadcast.asked_before = self.progress.asked;
        let members = broadcast.members.clone();
        if broadcast.next_revision == 0 {
            broadcast.next_revision = revision + 1;
        }
        broadcast.current = broadcast.next_revision > revision;
        if !std::mem::replace(&mut broadcast.begun, true) {
            let next = broadcast.next_revision;
            for (stream, watch) in members.iter().copied() {
                if let Some(watch) = self.watch(stream, watch)
                    && watch.next_revision == 0
                {
                    watch.next_revision = next;
                }
                self.answer(stream, watch, response.header, |answer| {
                    answer.created = true
                });
            }
        }
        self.merge(id);
        self.progress_since(members.into_iter().map(|(stream, _)| stream));
    }

    /// The cluster ended a watch, or did not begin it.
    fn ended(&mut self, id: BroadcastId, response: &WatchResponse) {
        let Some(broadcast) = self.broadcasts.remove(&id) else {
            return;
        };
        self.forget(id, &broadcast.range);
        for (stream, watch) in broadcast.members {
            let client = self.streams.get_mut(&stream);
            if client.is_some_and(|client| client.watches.remove(&watch).is_some()) {
                self.counts.watches -= 1;
            }
            if !broadcast.begun {
                self.refuse(stream, response.header, &response.cancel_reason);
                continue;
            }
            self.answer(stream, watch, response.header, |answer| {
                answer.canceled = true;
                answer.compact_revision = response.compact_revision;
                answer.cancel_reason.clone_from(&response.cancel_reason);
            });
        }
    }

    fn progressed(&mut self, response: &WatchResponse) {
        let Some(broadcast) = self.broadcasts.get_mut(&response.watch_id) else {
            return;
        };
        broadcast.current = true;
        broadcast.header = response.header;
        let revision = revision(response);
        broadcast.next_revision = broadcast.next_revision.max(revision + 1);
        for (stream, id) in broadcast.members.clone() {
            let watch = self.watch(stream, id);
            if watch.is_some_and(|watch| watch.progress && watch.is_at(revision)) {
                self.answer(stream, id, response.header, |_| {});
            }
        }
        self.merge(response.watch_id);
    }

    fn happened(&mut self, response: &WatchResponse) -> Result<(), DecodeError> {
        let id = response.watch_id;
        let namespace = self.namespace.clone();
        let Some(broadcast) = self.broadcasts.get_mut(&id) else {
            return Ok(());
        };
        let seen = response
            .events
            .iter()
            .map(|event| Seen::of(event, &namespace));
        let seen = seen.collect::<Result<Vec<_>, _>>()?;
        let last = seen.last().map_or(0, |event| event.revision);
        broadcast.next_revision = broadcast.next_revision.max(last + 1);
        broadcast.current |= broadcast.past_revision.is_some_and(|past| last >= past);
        broadcast.header = response.header;
        self.counts.saved += broadcast.members.len().saturating_sub(1) as u64;
        for (stream, id) in broadcast.members.clone() {
            let Some(watch) = self.watch(stream, id) else {
                continue;
            };
            let events: Vec<_> = seen.iter().filter_map(|event| watch.takes(event)).collect();
            watch.next_revision = watch.next_revision.max(last + 1);
            if !events.is_empty() {
                self.answer(stream, id, response.header, |answer| answer.events = events);
            }
        }
        self.merge(id);
        Ok(())
    }

    /// Moves the watches of a broadcast to another of its range, where there is one for them.
    fn merge(&mut self, id: BroadcastId) {
        let Some(broadcast) = self.broadcasts.get(&id) else {
            return;
        };
        let Some(others) = self.by_range.get(&broadcast.range) else {
            return;
        };
        let takes = |other: &&BroadcastId| {
            **other != id
                && self.broadcasts.get(other).is_some_and(|one| {
                    one.begun && one.current && one.next_revision <= broadcast.next_revision
                })
        };
        let Some(to) = others.iter().find(takes).copied() else {
            return;
        };
        let Some(left) = self.broadcasts.remove(&id) else {
            return;
        };
        self.forget(id, &left.range);
        self.outputs.push(Output::Close { broadcast: id });
        for (stream, watch) in &left.members {
            if let Some(watch) = self.watch(*stream, *watch) {
                watch.broadcast = to;
            }
        }
        if let Some(joined) = self.broadcasts.get_mut(&to) {
            joined.members.extend(left.members);
        }
    }

    fn watch(&mut self, stream: StreamId, id: i64) -> Option<&mut Watch> {
        self.streams.get_mut(&stream)?.watches.get_mut(&id)
    }

    /// A watch is gone; with the last one its broadcast is.
    fn leave(&mut self, id: BroadcastId, member: (StreamId, i64)) {
        let Some(broadcast) = self.broadcasts.get_mut(&id) else {
            return;
        };
        broadcast.members.remove(&member);
        if broadcast.members.is_empty() {
            let range = broadcast.range.clone();
            self.broadcasts.remove(&id);
            self.forget(id, &range);
            self.outputs.push(Output::Close { broadcast: id });
        }
    }

    fn forget(&mut self, id: BroadcastId, range: &(Bytes, Bytes)) {
        if let Some(ids) = self.by_range.get_mut(range) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_range.remove(range);
            }
        }
    }

    pub fn refuse(&mut self, stream: StreamId, header: Option<ResponseHeader>, reason: &str) {
        self.answer(stream, NO_WATCH, header, |answer| {
            answer.created = true;
            answer.canceled = true;
            reason.clone_into(&mut answer.cancel_reason);
        });
    }

    fn answer(
        &mut self,
        stream: StreamId,
        id: i64,
        header: Option<ResponseHeader>,
        fill: impl FnOnce(&mut WatchResponse),
    ) {
        if let Some(watch) = self.watch(stream, id) {
            watch.header = header;
        }
        let mut response = WatchResponse {
            header: Some(header.unwrap_or_default()),
            watch_id: id,
            ..Default::default()
        };
        fill(&mut response);
        self.outputs.push(Output::Answer { stream, response });
    }
}

impl Watch {
    /// Whether it is to have got all up to a revision; one that begins later never has.
    fn is_at(&self, revision: i64) -> bool {
        self.next_revision <= revision + 1
    }

    /// What this watch gets of an event.
    fn takes(&self, event: &Seen) -> Option<EncodedEvent> {
        let filtered = if event.is_delete {
            self.no_delete
        } else {
            self.no_put
        };
        let wanted = event.revision >= self.next_revision && !filtered;
        wanted.then(|| match self.prev_kv {
            true => event.with_prev.clone(),
            false => event.without_prev.clone(),
        })
    }
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.map_or(0, |header| header.revision)
}

#[cfg(test)]
mod tests;
