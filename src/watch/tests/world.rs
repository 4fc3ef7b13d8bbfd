//! A keyspace in memory, its history written down a second time, and checks against that.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::mvcc::read::PinnedView;
use crate::mvcc::write::Writer;
use crate::mvcc::{Change, compaction};
use crate::proto::{EncodedEvent, Event, KeyValue};
use crate::storage::memory::MemoryEngine;
use crate::storage::{self, Cursor, Engine, Family, Read};
use crate::types::{KeyRange, LeaseId};
use crate::watch::{Output, Request};
use bytes::Bytes;

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    Put(Bytes, Bytes),
    Delete(KeyRange),
}

/// The keyspace at one moment, held.
pub struct View {
    read: Box<dyn Read>,
    pub head: i64,
    pub compacted: i64,
}

impl View {
    pub fn pinned(&self) -> PinnedView<'_> {
        PinnedView {
            read: self.read.as_ref(),
            head: self.head,
            compacted: self.compacted,
            counts: None,
        }
    }

    /// As `pinned`, for a step that has said that it reads nothing.
    pub fn unreadable(&self) -> PinnedView<'_> {
        PinnedView {
            read: &Unreadable,
            ..self.pinned()
        }
    }
}

struct Unreadable;

impl Read for Unreadable {
    fn get(&self, _: Family, _: &[u8]) -> storage::Result<Option<Bytes>> {
        Err(storage::Error::Engine("read by surprise".to_owned()))
    }

    fn cursor<'a>(
        &'a self,
        _: Family,
        _: &[u8],
        _: Option<&[u8]>,
    ) -> storage::Result<Box<dyn Cursor + 'a>> {
        Err(storage::Error::Engine("read by surprise".to_owned()))
    }
}

/// What every watch should see, kept apart from the code under test.
#[derive(Default)]
pub struct History {
    keys: BTreeMap<Bytes, KeyValue>,
    /// The events of each revision, all with `prev_kv`.
    revisions: BTreeMap<i64, Vec<Event>>,
}

impl History {
    fn apply(&mut self, revision: i64, ops: &[Op]) {
        let before = self.keys.clone();
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put(key, value) => {
                    let kv = match self.keys.get(key) {
                        Some(old) => KeyValue {
                            mod_revision: revision,
                            version: old.version + 1,
                            value: value.clone(),
                            ..old.clone()
                        },
                        None => KeyValue {
                            key: key.clone(),
                            create_revision: revision,
                            mod_revision: revision,
                            version: 1,
                            value: value.clone(),
                            lease: 0,
                        },
                    };
                    self.keys.insert(key.clone(), kv.clone());
                    let is_create = kv.create_revision == revision;
                    let prev_kv = before.get(key).filter(|_| !is_create).cloned();
                    events.push(Event {
                        r#type: 0,
                        kv: Some(kv),
                        prev_kv,
                    });
                }
                Op::Delete(range) => {
                    let gone: Vec<_> = self
                        .keys
                        .keys()
                        .filter(|key| range.contains(key))
                        .cloned()
                        .collect();
                    for key in gone {
                        self.keys.remove(&key);
                        events.push(Event {
                            r#type: 1,
                            prev_kv: before.get(&key).cloned(),
                            kv: Some(KeyValue {
                                key,
                                mod_revision: revision,
                                ..Default::default()
                            }),
                        });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.revisions.insert(revision, events);
        }
    }

    /// Fails where there was something to tell a watch up to `head`.
    fn check_nothing(&self, id: i64, watch: &Expectation, head: i64, compacted: i64) {
        let mut missed = self.expected(watch, watch.next, head);
        missed.retain(|event| {
            let kv = event.kv.as_ref().unwrap();
            kv.mod_revision > compacted || !self.is_undone(kv)
        });
        assert!(missed.is_empty(), "watch {id} did not get {missed:?}");
    }

    /// Whether the revision that made `kv` changes its key again.
    fn is_undone(&self, kv: &KeyValue) -> bool {
        let events = self.revisions[&kv.mod_revision].iter();
        let of_key = |event: &&Event| event.kv.as_ref().is_some_and(|other| other.key == kv.key);
        events
            .rev()
            .find(of_key)
            .is_some_and(|last| last.kv.as_ref() != Some(kv))
    }

    /// The events of `from..=to` that `watch` should see.
    fn expected(&self, watch: &Expectation, from: i64, to: i64) -> Vec<&Event> {
        if from > to {
            return Vec::new();
        }
        let request = &watch.request;
        self.revisions
            .range(from..=to)
            .flat_map(|(_, events)| events)
            .filter(|event| request.range.contains(&event.kv.as_ref().unwrap().key))
            .filter(|event| {
                if event.r#type == 0 {
                    !request.no_put
                } else {
                    !request.no_delete
                }
            })
            .collect()
    }
}

/// A writer with everything that it wrote.
pub struct WatchWorld {
    engine: Arc<dyn Engine>,
    writer: Writer,
    pub history: History,
    applied: u64,
}

impl WatchWorld {
    pub fn new() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        Self {
            writer: Writer::open(engine.clone()).unwrap(),
            engine,
            history: History::default(),
            applied: 0,
        }
    }

    pub fn head(&self) -> i64 {
        self.writer.head()
    }

    pub fn compacted(&self) -> i64 {
        self.writer.compacted()
    }

    /// Runs a transaction and writes it; nothing is published.
    pub fn txn(&mut self, ops: &[Op]) -> Vec<Change> {
        let mut txn = self.writer.begin();
        for op in ops {
            match op {
                Op::Put(key, value) => drop(txn.put(key, value, LeaseId::NONE).unwrap()),
                Op::Delete(range) => {
                    txn.delete_piece(&mut range.clone(), &mut |_, _| Ok(()))
                        .unwrap();
                }
            }
        }
        let (changes, _) = txn.finish();
        self.commit();
        if !changes.is_empty() {
            self.history.apply(self.writer.head(), ops);
        }
        changes
    }

    fn commit(&mut self) {
        self.applied += 1;
        self.writer.commit(self.applied, 1).unwrap();
    }

    /// Compacts and at once removes what nobody can read any more.
    pub fn compact(&mut self, revision: i64) {
        self.writer.set_compacted(revision);
        self.commit();
        let mut progress = compaction::unfinished(self.engine.latest()).unwrap();
        while let Some(from) = progress {
            let view = self.engine.view();
            progress = compaction::step(view.as_ref(), from, 10, self.writer.batch()).unwrap();
            self.commit();
        }
    }

    pub fn view(&self) -> View {
        View {
            read: self.engine.view(),
            head: self.writer.head(),
            compacted: self.writer.compacted(),
        }
    }
}

/// What is known of one watch of a stream.
pub struct Expectation {
    pub request: Request,
    /// The first revision that it has not got.
    pub next: i64,
    pub compacted: bool,
}

impl Expectation {
    pub fn new(request: Request, current: i64) -> Self {
        let start = request.start_revision;
        let next = if start <= 0 || start > current {
            start.max(current + 1)
        } else {
            start
        };
        Self {
            request,
            next,
            compacted: false,
        }
    }
}

/// The watches of a stream and how far each has got; fails where an output is not right.
#[derive(Default)]
pub struct Checker {
    pub watches: HashMap<i64, Expectation>,
    pub events: usize,
    pub compactions: usize,
    pub progresses: usize,
}

impl Checker {
    /// `compacted` is what the keyspace is compacted to now, at least.
    pub fn check(&mut self, history: &History, compacted: i64, output: &Output) {
        match output {
            Output::Events {
                watch_id,
                header_revision,
                events,
                fragment,
            } => {
                self.events += events.len();
                let watch = self
                    .watches
                    .get_mut(watch_id)
                    .expect("a watch that is there");
                assert!(!watch.compacted, "events after the end");
                assert_eq!(*fragment, watch.request.fragment);
                let expected = history.expected(watch, watch.next, *header_revision);
                check_events(history, watch, compacted, &expected, events);
                watch.next = header_revision + 1;
            }
            Output::Compacted {
                watch_id,
                compact_revision,
            } => {
                self.compactions += 1;
                let watch = self
                    .watches
                    .get_mut(watch_id)
                    .expect("a watch that is there");
                assert!(watch.next < *compact_revision, "it was not behind");
                assert!(*compact_revision <= compacted);
                watch.compacted = true;
            }
            Output::Progress {
                watch_id,
                header_revision,
            } => {
                self.progresses += 1;
                for (id, watch) in &mut self.watches {
                    if *watch_id == crate::watch::ALL_WATCHES || watch_id == id {
                        assert!(!watch.compacted);
                        // A watch that starts in the future may have come since.
                        let starts_later = watch.request.start_revision > *header_revision;
                        let goes_back = watch.next > header_revision + 1 && !starts_later;
                        assert!(!goes_back, "progress goes back");
                        history.check_nothing(*id, watch, *header_revision, compacted);
                        watch.next = watch.next.max(header_revision + 1);
                    }
                }
            }
            Output::Again => {}
        }
    }

    /// All that happened up to `head` must be out.
    pub fn check_complete(&self, history: &History, head: i64, compacted: i64) {
        for (id, watch) in &self.watches {
            if !watch.compacted {
                history.check_nothing(*id, watch, head, compacted);
            }
        }
    }
}

fn check_events(
    history: &History,
    watch: &Expectation,
    compacted: i64,
    expected: &[&Event],
    events: &[EncodedEvent],
) {
    assert!(!events.is_empty(), "a response without events");
    let mut events = events
        .iter()
        .map(|event| event.decoded().unwrap())
        .peekable();
    for expected in expected {
        let kv = expected.kv.as_ref().unwrap();
        let same = |event: &Event| event.r#type == expected.r#type && event.kv == expected.kv;
        let Some(event) = events.next_if(same) else {
            // A put that its own transaction undid is not kept where that was compacted to.
            let undone = history.is_undone(kv);
            assert!(
                undone && kv.mod_revision <= compacted,
                "an event is missing: {expected:?}, there is {:?}",
                events.peek()
            );
            continue;
        };
        let hidden = event.prev_kv.is_none() && kv.mod_revision - 1 < compacted;
        if watch.request.prev_kv && !hidden {
            assert_eq!(event.prev_kv, expected.prev_kv, "prev_kv of {event:?}");
        } else {
            assert_eq!(event.prev_kv, None, "not asked for");
        }
    }
    assert_eq!(events.next(), None, "one too many");
}
