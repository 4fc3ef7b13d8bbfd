//! OpenStreams that clients leave open.

use super::*;
use crate::budget::streams::STREAM_BYTES;

const LIMIT_STREAMS: usize = 20;

/// A call of gRPC that is not ended.
fn call(stream: u32, path: &str) -> Vec<u8> {
    let mut head = b"\x83\x86\x44".to_vec();
    head.push(path.len() as u8);
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(b"\x41\x01a\x5f\x10application/grpc");
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// Whether a call is served; else it was refused as a whole.
async fn is_served(client: &mut Raw, stream: u32) -> bool {
    client.send(&call(stream, "/stream")).await;
    // One that was refused is also reset, as its client has not ended it.
    let (frame, payload) = loop {
        let (frame, payload) = client.outcome().await;
        if frame.kind != RST_STREAM {
            break (frame, payload);
        }
    };
    assert_eq!(
        (frame.kind, frame.stream),
        (HEADERS, stream),
        "{payload:x?}"
    );
    assert_eq!(payload.first(), Some(&0x88), "status of {payload:x?}");
    !frame.has(ACK_OR_END_STREAM)
}

#[tokio::test]
async fn beyond_the_limit_who_has_many_streams_gets_no_more() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let streams = OpenStreams::new(LIMIT_STREAMS);
    let served = start_limited(&any, LIMIT, Security::Plain, streams.clone());
    let [mut many, mut few] = [Raw::connect(&served).await, Raw::connect(&served).await];
    // The first is not counted.
    let served_streams = 1 + LIMIT_STREAMS as u32;
    for at in 0..served_streams {
        assert!(is_served(&mut many, 2 * at + 1).await, "{at}");
    }
    assert_eq!(streams.bytes(), LIMIT_STREAMS * STREAM_BYTES);
    let next = 2 * served_streams + 1;
    assert!(!is_served(&mut many, next).await);
    assert!(is_served(&mut few, 1).await && is_served(&mut few, 3).await);
    // Two that are given up make room for one.
    for stream in [1, 3] {
        many.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))
            .await;
    }
    assert!(is_served(&mut many, next + 2).await);
    drop((many, few));
    let all_end = async {
        while streams.bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(LIMIT, all_end).await;
    ended.expect("nothing stays counted");
}

/// What refuses a call is held until it is sent.
#[tokio::test]
async fn who_does_not_take_refusals_is_not_read_from() {
    const CALLS: u32 = 40_000;
    let dir = tempfile::tempdir().expect("a directory");
    // Its buffers do not grow.
    let file = Address::File(dir.path().join("socket"));
    let streams = OpenStreams::new(LIMIT_STREAMS);
    let served = start_limited(&file, LIMIT, Security::Plain, streams.clone());
    let client = Raw::connect(&served).await;
    let calls: Vec<u8> = (0..CALLS)
        .flat_map(|at| call(2 * at + 1, "/stream"))
        .collect();
    let (mut from, mut to) = tokio::io::split(client.0);
    let sending = tokio::spawn(async move { to.write_all(&calls).await.map(|()| to) });
    let mut most = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        most = most.max(streams.bytes() / STREAM_BYTES);
    }
    assert!(!sending.is_finished());
    assert!(most > LIMIT_STREAMS && most < 2_000, "{most} streams");
    // Now it reads, and everything is answered.
    let mut answers = 0;
    while answers < CALLS {
        let next = async {
            let mut header = [0; HEADER_BYTES];
            from.read_exact(&mut header).await.expect("a frame");
            let frame = Frame::parse(header);
            let mut payload = vec![0; frame.len];
            from.read_exact(&mut payload).await.expect("its payload");
            frame
        };
        let frame = tokio::time::timeout(LIMIT, next).await.expect("in time");
        assert_ne!(frame.kind, GOAWAY);
        answers += u32::from(frame.kind == HEADERS);
    }
    let _to = sending.await.expect("no panic").expect("all was sent");
    let served_calls = served.echo.paths.lock().expect("no panic").len();
    assert!(served_calls <= 1 + LIMIT_STREAMS, "{served_calls}");
}
