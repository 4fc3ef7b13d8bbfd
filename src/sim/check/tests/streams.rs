//! Watches that lag, and miss nothing.

use super::cluster::header;
use super::requests::Random;
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::proto::{EncodedEvent, Event};
use crate::sim::history::{Moment, Watched};
use crate::state::model::Model;
use crate::state::model::auth::Who;
use crate::types::MemberId;

pub struct Stream {
    pub watched: Watched,
    /// Every change below it has been delivered.
    next: i64,
    ended: bool,
}

impl Stream {
    /// Creates a watch on a member that lags by `behind` revisions.
    pub fn open(
        random: &mut Random,
        model: &Model,
        member: MemberId,
        now: Moment,
        behind: i64,
    ) -> Self {
        let (key, range_end) = match random.below(3) {
            0 => (random.key(), bytes::Bytes::new()),
            _ => (bytes::Bytes::new(), bytes::Bytes::from_static(b"\0")),
        };
        let head = (model.head - behind).max(1);
        let start_revision = match random.below(3) {
            0 => 1 + random.below(model.head as u64 + 4) as i64,
            _ => 0,
        };
        let filter = |random: &mut Random| match random.below(6) {
            filter @ 0..2 => vec![filter as i32],
            _ => vec![],
        };
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: true,
            filters: filter(random),
            prev_kv: random.once_in(2),
            watch_id: 0,
            fragment: random.once_in(2),
        };
        let created = WatchResponse {
            header: header(head),
            created: true,
            ..Default::default()
        };
        Self {
            next: match start_revision {
                0 => head + 1,
                start => start,
            },
            ended: false,
            watched: Watched {
                who: Who::Nobody,
                client: 100,
                member,
                create,
                created_at: now,
                responses: vec![(now, created)],
                to_the_end: false,
            },
        }
    }

    fn wants(&self, event: &Event) -> bool {
        let create = &self.watched.create;
        let key = event
            .kv
            .as_ref()
            .map(|kv| kv.key.clone())
            .unwrap_or_default();
        let inside = !create.range_end.is_empty() || key == create.key;
        inside && !create.filters.contains(&event.r#type)
    }

    fn push(&mut self, now: Moment, response: WatchResponse) {
        self.watched.responses.push((now, response));
    }

    /// Delivers the changes up to a revision.
    pub fn deliver(&mut self, random: &mut Random, model: &Model, now: Moment) {
        if self.ended || self.next > model.head {
            return;
        }
        if self.next < model.compacted {
            self.ended = true;
            let cancelled = WatchResponse {
                header: header(0),
                canceled: true,
                compact_revision: model.compacted,
                ..Default::default()
            };
            return self.push(now, cancelled);
        }
        let until = self.next + random.below((model.head - self.next) as u64 + 1) as i64;
        let events = model.events(self.next).into_iter();
        let events = events.filter(|(revision, event)| revision.main <= until && self.wants(event));
        let mut events: Vec<EncodedEvent> = events
            .map(|(_, mut event)| {
                event.prev_kv = event.prev_kv.filter(|_| self.watched.create.prev_kv);
                EncodedEvent::from(&event)
            })
            .collect();
        self.next = until + 1;
        let whole = WatchResponse {
            header: header(until),
            ..Default::default()
        };
        if events.is_empty() {
            let watch_id = if random.once_in(2) { -1 } else { 0 };
            return self.push(now, WatchResponse { watch_id, ..whole });
        }
        while self.watched.create.fragment && events.len() > 1 && random.once_in(2) {
            let rest = events.split_off(1);
            let part = WatchResponse {
                events,
                fragment: true,
                ..whole.clone()
            };
            self.push(now, part);
            events = rest;
        }
        self.push(now, WatchResponse { events, ..whole });
    }

    /// Delivers all changes.
    pub fn finish(&mut self, random: &mut Random, model: &Model, now: Moment) {
        while !self.ended && self.next <= model.head {
            self.deliver(random, model, now);
        }
        self.watched.to_the_end = true;
    }
}
