//! What streams hold that nobody reads.

use std::sync::Arc;

use bytes::Bytes;

use super::world::{Op, WatchWorld};
use crate::profile::counting;
use crate::types::KeyRange;
use crate::watch::{Hub, Limits, Output, Request, Stream};

const TOTAL_BYTES: usize = 1 << 20;
const VALUE_BYTES: usize = 50_000;
const PUTS: i64 = 60;

fn watch(hub: &Arc<Hub>, start_revision: i64) -> Stream {
    let mut stream = hub.open(Arc::new(|| {}));
    let request = Request {
        watch_id: 0,
        range: KeyRange::Point("key".into()),
        start_revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    stream.create(request, hub.head()).expect("created");
    stream
}

fn put(world: &mut WatchWorld, hub: &Hub) {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let changes = world.txn(&[Op::Put("key".into(), value)]);
    hub.publish(world.head(), &changes);
}

/// The revisions of what a stream has to say, one event after the other.
fn read(world: &WatchWorld, stream: &mut Stream, until: impl Fn(usize) -> bool) -> Vec<i64> {
    let view = world.view();
    let mut revisions = Vec::new();
    while !until(revisions.len())
        && let Some(output) = stream.next(&view.pinned()).expect("read")
    {
        if let Output::Events { events, .. } = output {
            revisions.extend(events.iter().map(|event| {
                let event = event.decoded().expect("an event");
                event.kv.map_or(0, |kv| kv.mod_revision)
            }));
        }
    }
    revisions
}

fn limits() -> Limits {
    Limits {
        total_bytes: TOTAL_BYTES,
        ..Limits::default()
    }
}

#[test]
fn unread_streams_hold_no_more_the_more_they_are() {
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), limits());
    let mut unread: Vec<_> = (0..500).map(|_| watch(&hub, 0)).collect();
    let mut quick = watch(&hub, 0);
    let first = world.head() + 1;
    for revision in first..first + PUTS {
        put(&mut world, &hub);
        assert!(hub.held_bytes() < TOTAL_BYTES);
        // Who keeps up is not thrown back by those who do not.
        assert!(!quick.reads_storage());
        assert_eq!(read(&world, &mut quick, |_| false), [revision]);
    }
    let all: Vec<i64> = (first..first + PUTS).collect();
    for stream in &mut unread {
        assert_eq!(read(&world, stream, |_| false), all);
    }
    drop((unread, quick));
    assert_eq!(hub.held_bytes(), 0);
}

#[test]
fn a_page_that_is_not_taken_is_put_back_and_read_again() {
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), limits());
    let first = world.head() + 1;
    (0..PUTS).for_each(|_| put(&mut world, &hub));
    // Two watches share a page; what is left of it is for the second.
    let mut stream = watch(&hub, first);
    let request = Request {
        watch_id: 7,
        range: KeyRange::Span("key".into(), "kez".into()),
        start_revision: first,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    stream.create(request, hub.head()).expect("created");
    let mut seen = read(&world, &mut stream, |seen| seen > 0);
    assert!(stream.holds_page() && hub.held_bytes() > 0);
    stream.put_back_page();
    assert!(!stream.holds_page());
    assert_eq!(hub.held_bytes(), 0);
    seen.extend(read(&world, &mut stream, |_| false));
    seen.sort_unstable();
    let twice: Vec<i64> = (first..first + PUTS).flat_map(|it| [it, it]).collect();
    assert_eq!(seen, twice);
}

#[test]
fn streams_that_catch_up_over_the_same_events_hold_one_copy() {
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), limits());
    let first = world.head() + 1;
    (0..PUTS).for_each(|_| put(&mut world, &hub));
    let view = world.view();
    let held: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = watch(&hub, first);
            let output = stream.next(&view.pinned()).expect("read");
            assert!(matches!(output, Some(Output::Events { .. })), "{output:?}");
            (output, stream)
        })
        .collect();
    assert!(hub.share().used_bytes() < TOTAL_BYTES / 2);
    drop(held);
    assert_eq!(hub.held_bytes(), 0);
}

const MANY: usize = 30_000;

/// Revisions of so many changes that their events are more than a page.
fn delete_many(world: &mut WatchWorld, hub: &Hub) -> i64 {
    let keys = (0..MANY).map(|number| Bytes::from(format!("many/{number:08}")));
    let puts: Vec<_> = keys.map(|key| Op::Put(key, "value".into())).collect();
    for ops in [puts, vec![Op::Delete(KeyRange::From("many/".into()))]] {
        let changes = world.txn(&ops);
        hub.publish(world.head(), &changes);
    }
    world.head()
}

fn watch_many(hub: &Arc<Hub>, start_revision: i64) -> Stream {
    let mut stream = hub.open(Arc::new(|| {}));
    let request = Request {
        watch_id: 0,
        range: KeyRange::Span("many/".into(), "many0".into()),
        start_revision,
        prev_kv: true,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    stream.create(request, hub.head()).expect("created");
    stream
}

#[test]
fn of_a_large_revision_the_bytes_are_held_once_and_for_one_at_a_time() {
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), limits());
    let revision = delete_many(&mut world, &hub);
    let view = world.view();
    let next = |stream: &mut Stream| stream.next(&view.pinned()).expect("read");
    let (mut first, mut second) = (watch_many(&hub, revision), watch_many(&hub, revision));
    let Some(Output::Events { events, .. }) = counting::within(8 << 20, || next(&mut first)) else {
        panic!("no events");
    };
    assert_eq!(events.len(), MANY);
    let bytes = events.iter().map(|it| it.encoded().len()).sum::<usize>();
    assert!(bytes > TOTAL_BYTES && hub.held_bytes() > bytes);
    let of_first = hub.held_bytes();
    for _ in 0..5 {
        assert_eq!(next(&mut second), Some(Output::Again));
    }
    assert_eq!(hub.held_bytes(), of_first);
    drop(events);
    let Some(Output::Events { events, .. }) = next(&mut second) else {
        panic!("no events");
    };
    assert_eq!(events.len(), MANY);
    drop((events, first, second));
    assert_eq!(hub.held_bytes(), 0);
}
