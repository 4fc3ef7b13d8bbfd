//! How far a client's watches are, where it asks: an answer says that it has got all up to a revision,
//! and kube-apiserver answers reads by it. So one that is not sure is not passed on.
//!
//! A member's answer is for all watches of the stream that clients share, and says not which request
//! it answers; some requests have no answer. But the n-th answer is to the n-th request or a later
//! one, and shows a revision that the member had by then. So it is true for a watch
//! - that had begun before the n-th request was sent,
//! - or that began at a lower revision: the answer was made later,
//! - or whose broadcast is known to have delivered as much.
//!
//! And it is the answer to a client that made the n-th request or an earlier one. Who waits is asked
//! for again after every answer that was not for it, and when its last watch has begun.

use super::{Broadcast, NO_WATCH, Output, ProgressRequests, StreamId, Watches, revision};
use crate::proto::etcdserverpb::WatchResponse;

impl Broadcast {
    /// Whether an answer that is the `answered`th, and shows a revision, speaks of this, too.
    fn has_delivered(&self, revision: i64, answered: u64) -> bool {
        self.past_revision.is_some_and(|past| {
            self.current
                || self.next_revision > revision
                || revision > past
                || answered > self.asked_before
        })
    }
}

impl Watches {
    /// A client asks how far its watches are. As a member, nobody answers one that has none.
    pub fn progress(&mut self, stream: StreamId) {
        let Some(client) = self.streams.get_mut(&stream) else {
            return;
        };
        if client.watches.is_empty() {
            return;
        }
        // Who asks a second time may have waited for an answer that never comes, and takes any.
        client.wants_progress = Some(match client.wants_progress {
            None => self.progress.asked + 1,
            Some(_) => 0,
        });
        self.ask_progress();
    }

    fn ask_progress(&mut self) {
        self.progress.asked += 1;
        self.outputs.push(Output::AskProgress);
    }

    /// The cluster's answer for all watches.
    pub(super) fn progressed_all(&mut self, response: &WatchResponse) {
        self.progress.answered += 1;
        let (revision, answered) = (revision(response), self.progress.answered);
        let mut answers = Vec::new();
        let mut waits = false;
        for (stream, client) in &self.streams {
            let Some(wanted) = client.wants_progress else {
                continue;
            };
            let mut all = client.watches.values();
            let is_true = all.all(|watch| {
                let broadcast = self.broadcasts.get(&watch.broadcast);
                broadcast.is_some_and(|one| one.has_delivered(revision, answered))
            });
            if is_true && wanted <= answered {
                answers.push(*stream);
            } else {
                waits |= self.has_begun(*stream);
            }
        }
        for stream in answers {
            let Some(client) = self.streams.get_mut(&stream) else {
                continue;
            };
            client.wants_progress = None;
            // A member leaves a stream with a watch of the future without an answer.
            let mut all = client.watches.values();
            if !client.watches.is_empty() && all.all(|watch| watch.is_at(revision)) {
                self.answer(stream, NO_WATCH, response.header, |_| {});
            }
        }
        if waits {
            self.ask_progress();
        }
    }

    /// A broadcast has begun: asks for those of its clients who wait for nothing else.
    pub(super) fn progress_since(&mut self, streams: impl Iterator<Item = StreamId>) {
        let mut streams = streams.filter(|stream| {
            let client = self.streams.get(stream);
            client.is_some_and(|one| one.wants_progress.is_some()) && self.has_begun(*stream)
        });
        if streams.next().is_some() {
            self.ask_progress();
        }
    }

    /// Nobody waits for what was asked over a stream that is gone.
    pub(super) fn progress_lost(&mut self) {
        self.progress = ProgressRequests::default();
        for client in self.streams.values_mut() {
            client.wants_progress = client.wants_progress.map(|_| 0);
        }
    }

    /// Whether the cluster has answered all watches of a client, over the present stream.
    fn has_begun(&self, stream: StreamId) -> bool {
        let Some(client) = self.streams.get(&stream) else {
            return false;
        };
        let mut all = client.watches.values();
        all.all(|watch| {
            let broadcast = self.broadcasts.get(&watch.broadcast);
            broadcast.is_some_and(|one| one.past_revision.is_some())
        })
    }
}
