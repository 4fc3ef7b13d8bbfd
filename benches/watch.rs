//! Time of one publish to 1,000 watches of one key, and to one of 10,000 watches of single keys.

use std::sync::Arc;
use std::time::Instant;

use etched::bench::{
    Change, ChangeKind, Hub, KeyRange, LeaseId, Limits, Request, Revision, Stream, Version,
};

const ROUNDS: i64 = 1_000;

fn main() {
    run("1,000 watches of one key", 1_000, |_| "key".to_owned());
    run("10,000 watches of single keys, one matches", 10_000, |n| {
        if n == 0 {
            "key".to_owned()
        } else {
            format!("key{n}")
        }
    });
}

fn run(what: &str, watches: usize, key: impl Fn(usize) -> String) {
    let limits = Limits {
        queue_events: usize::MAX >> 1,
        queue_bytes: usize::MAX >> 1,
        total_bytes: usize::MAX >> 1,
        ..Limits::default()
    };
    let hub = Hub::new(1, limits);
    let mut streams: Vec<Stream> = (0..100).map(|_| hub.open(Arc::new(|| {}))).collect();
    for n in 0..watches {
        let request = Request {
            watch_id: 0,
            range: KeyRange::Point(key(n).into()),
            start_revision: 0,
            prev_kv: false,
            no_put: false,
            no_delete: false,
            fragment: false,
            progress_notify: false,
        };
        if let Err(error) = streams[n % 100].create(request, 1) {
            println!("{what}: {error}");
            return;
        }
    }
    let start = Instant::now();
    for main in 2..2 + ROUNDS {
        hub.publish(main, &[change(main)]);
    }
    println!("{what}: {:?} a publish", start.elapsed() / ROUNDS as u32);
}

fn change(main: i64) -> Change {
    let revision = Revision::new(main, 0);
    Change {
        key: "key".into(),
        revision,
        kind: ChangeKind::Put,
        version: Some(Version::encode(
            2,
            revision,
            main,
            LeaseId::NONE,
            &[b'v'; 256],
        )),
        previous: None,
    }
}
