//! The model's history in revision order, as watches have to show it.

use super::Model;
use crate::proto::{Event, KeyValue};
use crate::types::Revision;

/// One change of one key, with all that a watch may get of it.
#[derive(Clone, Debug)]
pub struct Changed {
    pub revision: Revision,
    /// With the pair before the transaction, unless this made the key.
    pub event: Event,
    /// The main revision of the next change of the same key.
    pub superseded_at: Option<i64>,
}

impl Changed {
    /// Whether the pair before it can still be shown after a compaction to that revision.
    pub fn shows_previous(&self, compacted: i64) -> bool {
        self.revision.main > compacted
    }
}

impl Model {
    /// Every change there ever was, in order.
    pub fn changes(&self) -> Vec<Changed> {
        let mut changes = Vec::new();
        for (key, versions) in &self.keys {
            for (at, change) in versions.iter().enumerate() {
                let main = change.revision.main;
                let kv = change.kv.as_ref();
                let created = kv.is_some_and(|kv| kv.create_revision == main);
                let previous = self.at(key, main - 1).filter(|_| !created);
                let gone = KeyValue {
                    key: key.clone(),
                    mod_revision: main,
                    ..Default::default()
                };
                changes.push(Changed {
                    revision: change.revision,
                    event: Event {
                        r#type: i32::from(kv.is_none()),
                        kv: Some(kv.cloned().unwrap_or(gone)),
                        prev_kv: previous.cloned(),
                    },
                    superseded_at: versions.get(at + 1).map(|next| next.revision.main),
                });
            }
        }
        changes.sort_by_key(|change| change.revision);
        changes
    }

    /// The events of every revision from `from` on that are still to be had, with the pairs
    /// before them that are.
    #[cfg(test)]
    pub fn events(&self, from: i64) -> std::collections::BTreeMap<Revision, Event> {
        let changes = self.changes().into_iter();
        let there = changes.filter(|change| {
            let undone = change.event.r#type == 0
                && change
                    .superseded_at
                    .is_some_and(|next| next <= self.compacted);
            change.revision.main >= from && !undone
        });
        there
            .map(|change| {
                let mut event = change.event.clone();
                event.prev_kv = event
                    .prev_kv
                    .filter(|_| change.shows_previous(self.compacted));
                (change.revision, event)
            })
            .collect()
    }
}
