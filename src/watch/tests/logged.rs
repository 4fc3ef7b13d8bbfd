//! Revisions that are delivered in parts, and what happens between two of these.

use std::sync::Arc;

use bytes::Bytes;

use super::world::{Op, WatchWorld};
use crate::mvcc::write::Sliced;
use crate::types::KeyRange;
use crate::watch::{Hub, Limits, Output, Request, Stream};

const QUEUE_EVENTS: usize = 3;

fn watch(hub: &Arc<Hub>, world: &WatchWorld, range: KeyRange, start_revision: i64) -> Stream {
    let mut stream = hub.open(Arc::new(|| {}));
    let request = Request {
        watch_id: 0,
        range,
        start_revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    stream.create(request, world.head()).expect("created");
    assert_eq!(events(&mut stream, world), []);
    stream
}

/// What a stream has to say: the revision and number of events of each message.
fn events(stream: &mut Stream, world: &WatchWorld) -> Vec<(i64, usize)> {
    let (view, mut found) = (world.view(), Vec::new());
    while let Some(output) = stream.next(&view.pinned()).expect("read") {
        if let Output::Events { events, .. } = output {
            let first = events[0].decoded().expect("an event");
            found.push((first.kv.expect("a pair").mod_revision, events.len()));
        }
    }
    found
}

#[test]
fn one_that_comes_between_two_parts_takes_nothing_from_the_others() {
    let mut world = WatchWorld::new();
    let many = KeyRange::Span("many/".into(), "many0".into());
    let keys = (0..20).map(|number| Bytes::from(format!("many/{number:02}")));
    let mut puts: Vec<_> = keys.map(|key| Op::Put(key, "value".into())).collect();
    puts.push(Op::Put("one".into(), "value".into()));
    world.txn(&puts);
    let limits = Limits {
        queue_events: QUEUE_EVENTS,
        ..Limits::default()
    };
    let hub = Hub::new(world.head(), limits);
    let mut all = watch(&hub, &world, many.clone(), 0);
    let mut one = watch(&hub, &world, KeyRange::Point("one".into()), 0);
    let before = world.view();

    let span = KeyRange::Span("many/".into(), "p".into());
    world.txn(&[Op::Delete(span.clone())]);
    let revision = world.head();
    let mut logged = hub.begin_logged(&Sliced {
        revision,
        span,
        puts: 0,
        put_bytes: 0,
        bytes: 0,
    });
    let view = world.view();
    assert!(logged.step(&view.pinned()).expect("read"));
    let mut late = hub.open(Arc::new(|| {}));
    let request = Request {
        watch_id: 0,
        range: many,
        start_revision: revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    late.create(request, before.head).expect("created");
    assert_eq!(late.next(&before.pinned()).expect("read"), None);
    while logged.step(&view.pinned()).expect("read") {}
    logged.finish();

    assert_eq!(events(&mut one, &world), [(revision, 1)]);
    assert_eq!(events(&mut all, &world), [(revision, 20)]);
    assert_eq!(events(&mut late, &world), [(revision, 20)]);
}
