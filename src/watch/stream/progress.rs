//! Progress: tells a client up to which revision it has seen everything.
//!
//! It travels in the queue behind the events that it speaks of. A request that came before the
//! hub had published what its client knows of is held until then; etcd, which writes and notifies
//! at once, never needs to.

use super::{HeldProgress, Stream, Watch, WatchState, find};
use crate::probe::{self, Defect};
use crate::watch::queue::ProgressOf;
use crate::watch::{ALL_WATCHES, Output};

/// Progress requests that are kept until they can be answered.
const HELD_REQUESTS: usize = 16;

impl Stream {
    /// The client asks how far the stream is. The answer, with watch id `ALL_WATCHES`, comes from
    /// `next` and shows at least `current`, the revision of a view taken just before. There is
    /// none, as in etcd, where a watch of the stream is catching up, starts in the future, or
    /// was compacted and not cancelled, or where the stream has no watch.
    pub fn request_progress(&mut self, current: i64) {
        self.hold_progress(current);
        self.answer_progress();
    }

    fn hold_progress(&mut self, current: i64) {
        let held = self.held_progress.get_or_insert(HeldProgress {
            current,
            requests: 0,
        });
        held.current = held.current.max(current);
        held.requests = (held.requests + 1).min(HELD_REQUESTS);
    }

    /// The progress interval passed: watches that asked for it and got no event since the last
    /// tick say how far they are, if they are live.
    pub fn progress_tick(&mut self) {
        let hub = self.hub.clone();
        let index = hub.lock();
        self.note_spilled();
        for (id, watch) in &mut self.watches {
            if !watch.progress_notify {
                continue;
            }
            let is_live = matches!(watch.state, WatchState::Live(_)) && index.head >= self.reported
                || probe::injected(Defect::ProgressTooEarly);
            if watch.quiet && is_live && watch.start_revision <= index.head {
                let of = ProgressOf::Watch(watch.name(*id));
                // A full queue has better news; etcd drops it as well.
                let _ = self.queue.push_progress(of, index.head);
            }
            watch.quiet = true;
        }
    }

    /// Progress that came to the front of the queue; nothing where it no longer holds.
    pub(super) fn take_progress(&mut self, of: ProgressOf, revision: i64) -> Option<Output> {
        let watch_id = match of {
            ProgressOf::Watch(name) => find(&mut self.watches, name).map(|_| name.id)?,
            // A watch that came since may not be as far.
            ProgressOf::Stream { past_starts } if past_starts != self.past_starts => return None,
            ProgressOf::Stream { .. } if revision < self.reported => {
                self.hold_progress(self.reported);
                return None;
            }
            ProgressOf::Stream { .. } => ALL_WATCHES,
        };
        Some(Output::Progress {
            watch_id,
            header_revision: revision,
        })
    }

    /// Answers the progress requests, drops them, or leaves them for when more is published.
    pub(super) fn answer_progress(&mut self) {
        let Some(held) = &self.held_progress else {
            return;
        };
        let (current, requests) = (held.current, held.requests);
        let hub = self.hub.clone();
        let mut index = hub.lock();
        self.note_spilled();
        let rev = index.head.max(current);
        let early = probe::injected(Defect::ProgressTooEarly);
        let in_step = |watch: &Watch| watch.in_step(rev) || early;
        let answerable = !self.watches.is_empty() && self.watches.values().all(in_step);
        let is_due = index.head >= current
            && self
                .watches
                .values()
                .all(|watch| matches!(watch.state, WatchState::Live(_)) || early);
        if answerable && !is_due {
            index.wait(&self.queue);
            return;
        }
        self.held_progress = None;
        if !answerable {
            return;
        }
        let past_starts = self.past_starts;
        for answered in 0..requests {
            let of = ProgressOf::Stream { past_starts };
            if !self.queue.push_progress(of, index.head) {
                // Each step tries again, and so does each publish.
                let requests = requests - answered;
                self.held_progress = Some(HeldProgress { current, requests });
                index.wait(&self.queue);
                return;
            }
        }
    }
}

impl Watch {
    /// Whether etcd would take it for synced at revision `rev`.
    fn in_step(&self, rev: i64) -> bool {
        let synced = match self.state {
            WatchState::Live(_) => true,
            WatchState::CatchingUp => self.fresh,
            WatchState::Leaving | WatchState::Compacted => false,
        };
        synced && self.start_revision <= rev
    }
}
