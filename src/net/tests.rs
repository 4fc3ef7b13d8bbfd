//! Connections through real sockets: what clients send that the HTTP/2 library alone would refuse,
//! and how a listener stops.

mod files;
mod streams;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::body::Body;

use super::frames::{
    ACK_OR_END_STREAM, CONTINUATION, DATA, END_HEADERS, Frame, HEADER_BYTES, HEADERS, RST_STREAM,
};
use super::tls::{self, Rejections};
use super::{
    Allowance, BlockTurns, Client, Guard, Http2, Security, ServeOptions, Stream, Versions, Windows,
    listen, serve,
};
use crate::budget::streams::OpenStreams;
use crate::budget::unread::{self, Unread};
use crate::budget::unsent::Unsent;
use crate::metrics::Metrics;
use crate::types::{Address, MemberId};

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ALLOWED: usize = 10;
const UNREAD_BYTES: usize = 4 << 20;
const UNSENT_BYTES: usize = 1 << 20;
const LARGE_BYTES: usize = 256 << 10;
const LIMIT: Duration = Duration::from_secs(20);

/// Answers every request, `/stream` with a body that never ends, `/large` with `LARGE_BYTES`,
/// `/head` with as many in a header, and `/slow` once it may. It says how long its body and the headers in `k` are.
#[derive(Clone)]
struct Echo {
    /// Permits, of which `/slow` takes one before its body is read.
    may: Arc<Semaphore>,
    paths: Arc<Mutex<Vec<String>>>,
    unread: Arc<unread::Connection>,
    /// A clone for each call that is under way.
    under_way: Arc<()>,
    most_under_way: Arc<AtomicUsize>,
}

impl hyper::service::Service<Request<Incoming>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Self {
            may,
            paths,
            unread,
            under_way,
            most_under_way,
        } = self.clone();
        most_under_way.fetch_max(Arc::strong_count(&under_way), Ordering::Relaxed);
        let mut counted = unread.body();
        Box::pin(async move {
            let _under_way = under_way;
            let path = request.uri().path().to_owned();
            paths.lock().expect("no panic").push(path.clone());
            if path == "/stream" {
                let never = futures_util::stream::pending::<Result<_, tonic::Status>>();
                let never = http_body_util::StreamBody::new(never);
                return Ok(Response::new(Body::new(never)));
            }
            if path == "/large" {
                let large = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; LARGE_BYTES]));
                return Ok(Response::new(Body::new(large)));
            }
            if path == "/head" {
                let long = "x".repeat(LARGE_BYTES);
                let response = Response::builder().header("long", long);
                return Ok(response.body(Body::empty()).expect("a response"));
            }
            if path == "/slow" {
                may.acquire().await.expect("is open").forget();
            }
            let headers = request.headers().iter();
            let headers = headers.filter(|(name, _)| name.as_str().starts_with('k'));
            let headers: usize = headers.map(|(_, value)| value.len()).sum();
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                let came = frame.data_ref().map_or(0, bytes::Bytes::len);
                counted.took(came);
                bytes += came;
            }
            let response = Response::builder()
                .header("x-body", bytes)
                .header("x-headers", headers)
                .body(Body::empty());
            Ok(response.expect("is valid"))
        })
    }
}

struct Served {
    address: Address,
    echo: Echo,
    unread: Arc<Unread>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

fn start(first_byte_limit: Duration) -> Served {
    start_secured(first_byte_limit, Security::Plain)
}

fn start_secured(first_byte_limit: Duration, security: Security) -> Served {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    start_at(&any.into(), first_byte_limit, security)
}

fn start_at(address: &Address, first_byte_limit: Duration, security: Security) -> Served {
    start_limited(
        address,
        first_byte_limit,
        security,
        OpenStreams::unlimited(),
    )
}

fn start_limited(
    address: &Address,
    first_byte_limit: Duration,
    security: Security,
    streams: Arc<OpenStreams>,
) -> Served {
    let listener = listen::bind(address, listen::SocketOptions::default()).expect("binds");
    let address = listener.address();
    let unread = Unread::new(UNREAD_BYTES);
    let metrics = Arc::new(Metrics::new(MemberId(1), false));
    let echo = Echo {
        may: Arc::new(Semaphore::new(0)),
        paths: Arc::default(),
        unread: unread.connection(),
        under_way: Arc::default(),
        most_under_way: Arc::default(),
    };
    let options = ServeOptions {
        who: "test",
        versions: Versions::Both,
        security,
        rejections: Arc::new(Rejections::new("test")),
        http2: Http2::of_clients(u32::MAX, None),
        guard: Some(Guard {
            min_ping_time: Duration::from_secs(5),
            first_frame_limit: first_byte_limit,
            metrics: metrics.clone(),
            closed: Arc::default(),
            block_turns: BlockTurns::default(),
            streams,
        }),
        first_byte_limit,
        head_limit: LIMIT,
        unacknowledged_limit: None,
        unread: unread.clone(),
        unsent: Unsent::new(UNSENT_BYTES),
        allowance: Allowance::new(ALLOWED, metrics.clone()),
    };
    let (stop, stopping) = watch::channel(false);
    let served = echo.clone();
    let each = move |client: Client| Echo {
        unread: client.unread,
        ..served.clone()
    };
    let serving = tokio::spawn(serve(listener, options, each, stopping));
    Served {
        address,
        echo,
        unread,
        metrics,
        stop,
        serving,
    }
}

async fn connect(address: &Address) -> std::io::Result<Stream> {
    Ok(match address {
        Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await?),
        Address::File(path) => Stream::Unix(UnixStream::connect(path).await?),
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let frame = Frame {
        len: payload.len(),
        kind,
        flags,
        stream,
    };
    [&frame.header()[..], payload].concat()
}

/// A client that sends exactly the bytes it is given.
struct Raw(Stream);

impl Raw {
    async fn connect(served: &Served) -> Self {
        let mut stream = connect(&served.address).await.expect("connects");
        let hello = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &frame(SETTINGS, 0, 0, &[])[..],
        ]
        .concat();
        stream.write_all(&hello).await.expect("writes");
        let mut client = Self(stream);
        // The windows that the server offers count from here.
        while client.next().await.0.kind != SETTINGS {}
        client.send(&frame(SETTINGS, 1, 0, &[])).await;
        client
    }

    async fn next(&mut self) -> (Frame, Vec<u8>) {
        let next = async {
            let mut header = [0; HEADER_BYTES];
            self.0.read_exact(&mut header).await.expect("a frame");
            let frame = Frame::parse(header);
            let mut payload = vec![0; frame.len];
            self.0.read_exact(&mut payload).await.expect("its payload");
            (frame, payload)
        };
        tokio::time::timeout(LIMIT, next).await.expect("in time")
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("writes");
    }

    /// The next frame that says what became of a call or of the connection.
    async fn outcome(&mut self) -> (Frame, Vec<u8>) {
        loop {
            let (frame, payload) = self.next().await;
            if matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY) {
                return (frame, payload);
            }
        }
    }

    /// Fails where this stream is not answered with 200.
    async fn answered(&mut self, stream: u32) -> Vec<u8> {
        let (frame, payload) = self.outcome().await;
        assert_eq!(
            (frame.kind, frame.stream),
            (HEADERS, stream),
            "{payload:x?}"
        );
        assert_eq!(payload.first(), Some(&0x88), "status of {payload:x?}");
        payload
    }
}

#[tokio::test]
async fn authorities_that_are_none_are_answered() {
    let list = b"\x41\x1fipv4:///127.0.0.1:1,127.0.0.1:2";
    let spelled = b"\x40\x0a:authority\x05#a=[]";
    let never = b"\x11\x01/";
    // Each case is a connection: the authority of a first call, and of the second and third, by
    // the entry of the first where it entered the table. A path entered before, and one after.
    let cases: [(&[u8], &[u8]); 7] = [
        (b"\x41\x09localhost", &[0xbf]),
        (list, &[0xbf]),
        (spelled, &[0xbf]),
        (never, never),
        (&[0x81], &[0x81]),
        (b"\x41\x00", &[0xbf]),
        (b"\x40\x0a:authority\x00", &[0xbf]),
    ];
    for (first, later) in cases {
        let served = start(LIMIT);
        let mut client = Raw::connect(&served).await;
        let first = [b"\x83\x86\x44\x02/1", first, b"\x40\x01k\x01v"].concat();
        client.send(&frame(HEADERS, 5, 1, &first)).await;
        client.answered(1).await;
        // "/1" is the oldest entry of three, or of two.
        let path = if later == [0xbf] { 0xc0 } else { 0xbf };
        let second = [&[0x83, 0x86, path], later, &[0xbe]].concat();
        client.send(&frame(HEADERS, 5, 3, &second)).await;
        client.answered(3).await;
        // The same in two frames, cut within it.
        let cut = second.len() - 2;
        client.send(&frame(HEADERS, 1, 5, &second[..cut])).await;
        let rest = frame(CONTINUATION, END_HEADERS, 5, &second[cut..]);
        client.send(&rest).await;
        client.answered(5).await;
        assert_eq!(*served.echo.paths.lock().expect("no panic"), ["/1"; 3]);
    }
}

#[tokio::test]
async fn small_messages_may_come_as_many_as_the_window_takes() {
    for (count, message) in [(4_681, vec![7; 14]), (13_107, vec![7; 5])] {
        let served = start(LIMIT);
        let mut client = Raw::connect(&served).await;
        let slow = b"\x83\x86\x44\x05/slow\x41\x01a";
        client.send(&frame(HEADERS, END_HEADERS, 1, slow)).await;
        let bytes = count * message.len();
        client
            .send(&frame(DATA, 0, 1, &message).repeat(count))
            .await;
        client.send(&frame(DATA, ACK_OR_END_STREAM, 1, &[])).await;
        // An answer on another stream shows that all was taken, and nothing of it read yet.
        let other = b"\x83\x86\x44\x02/a\x41\x01a";
        client.send(&frame(HEADERS, 5, 3, other)).await;
        client.answered(3).await;
        served.echo.may.add_permits(1);
        let answer = client.answered(1).await;
        let digits = bytes.to_string();
        let coded = super::huffman::encode(digits.as_bytes());
        let found = answer.windows(coded.len()).any(|part| part == coded);
        assert!(found, "{digits} in {answer:x?}");
    }
}

/// A client whose calls wait may not fill the memory of all; when they continue, so does it.
#[tokio::test]
async fn who_has_much_unread_is_not_read_from_while_all_have_too_much() {
    const CALLS: usize = 600;
    const BODY_BYTES: usize = 64 << 10;
    let served = start(LIMIT);
    let client = Raw::connect(&served).await;
    let mut sent = Vec::new();
    for call in 0..CALLS {
        let stream = 2 * call as u32 + 1;
        let head = b"\x83\x86\x44\x05/slow\x41\x01a";
        sent.extend(frame(HEADERS, END_HEADERS, stream, head));
        for _ in 0..4 {
            sent.extend(frame(DATA, 0, stream, &vec![7; BODY_BYTES / 4]));
        }
        sent.extend(frame(DATA, ACK_OR_END_STREAM, stream, &[]));
    }
    let (mut from, mut to) = tokio::io::split(client.0);
    let sending = tokio::spawn(async move { to.write_all(&sent).await.map(|()| to) });
    let full = async {
        while !served.unread.is_over() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, full).await.expect("fills up");
    // It is read from for a little longer: what it says of its windows may be what they wait for.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let unread = served.unread.bytes();
    assert!(
        unread < 4 * UNREAD_BYTES + (1 << 20),
        "{unread} bytes unread"
    );
    assert!(!sending.is_finished());
    // Others are served meanwhile.
    let mut other = Raw::connect(&served).await;
    let head = b"\x83\x86\x44\x02/a\x41\x01a";
    other.send(&frame(HEADERS, 5, 1, head)).await;
    other.answered(1).await;
    served.echo.may.add_permits(CALLS);
    let mut answers = 0;
    while answers < CALLS {
        let mut header = [0; HEADER_BYTES];
        let next = async {
            from.read_exact(&mut header).await.expect("a frame");
            let mut payload = vec![0; Frame::parse(header).len];
            from.read_exact(&mut payload).await.expect("its payload");
        };
        tokio::time::timeout(LIMIT, next).await.expect("in time");
        assert_ne!(Frame::parse(header).kind, GOAWAY);
        answers += usize::from(Frame::parse(header).kind == HEADERS);
    }
    let _to = sending.await.expect("no panic").expect("all was sent");
    assert_eq!(served.unread.bytes(), 0);
}

/// Calls that are given up end before many more are begun, and all that come are taken.
#[tokio::test]
async fn calls_that_are_given_up_are_not_taken_faster_than_they_end() {
    const CALLS: u32 = 20_000;
    let served = start(LIMIT);
    let mut client = Raw::connect(&served).await;
    let mut sent = Vec::new();
    for call in 0..CALLS {
        let stream = 2 * call + 1;
        let head = b"\x83\x86\x44\x05/slow\x41\x01a";
        sent.extend(frame(HEADERS, END_HEADERS, stream, head));
        sent.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    client.send(&sent).await;
    let last = b"\x83\x86\x44\x02/a\x41\x01a";
    client.send(&frame(HEADERS, 5, 2 * CALLS + 1, last)).await;
    client.answered(2 * CALLS + 1).await;
    let most = served.echo.most_under_way.load(Ordering::Relaxed);
    // The first piece that is read has some hundreds of them.
    assert!(most < 1_000, "{most} at once");
    let taken = served.echo.paths.lock().expect("no panic").len();
    assert_eq!(taken, CALLS as usize + 1);
}

/// What comes of one connection in one go is hundreds of milliseconds of work.
#[tokio::test]
async fn large_heads_let_others_in_between() {
    const CALLS: u32 = 100;
    let served = start(LIMIT);
    let [mut flood, mut other] = [Raw::connect(&served).await, Raw::connect(&served).await];
    // A header of the table that each connection has, a byte each.
    let mut head = b"\x83\x86\x44\x02/a\x41\x01a".to_vec();
    head.resize(6_000, 0x90);
    let calls = (0..CALLS).flat_map(|call| frame(HEADERS, 5, 2 * call + 1, &head));
    flood.send(&calls.collect::<Vec<_>>()).await;
    let small = b"\x83\x86\x44\x02/b\x41\x01a";
    other.send(&frame(HEADERS, 5, 1, small)).await;
    other.answered(1).await;
    let taken = served.echo.paths.lock().expect("no panic").len();
    assert!(taken < CALLS as usize / 2, "{taken} before it");
    let all = async {
        while served.echo.paths.lock().expect("no panic").len() <= CALLS as usize {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, all)
        .await
        .expect("all are taken");
}

/// An error's text may name what a client sent, of any length. With the library's own limits such
/// an answer does not come.
#[tokio::test]
async fn who_dials_takes_answers_with_large_heads() {
    let served = start(LIMIT);
    for (is_ours, expected) in [(true, Some(LARGE_BYTES)), (false, None)] {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        if is_ours {
            Windows::OWN_CALLS.apply(&mut builder);
        }
        let mut sender = client_of(&served, builder).await;
        let request = Request::get("http://member/head").body(Body::empty());
        let answer = sender.send_request(request.expect("a request")).await;
        let long = answer.ok().map(|answer| answer.headers()["long"].len());
        assert_eq!(long, expected, "ours: {is_ours}");
    }
}

async fn client(served: &Served) -> http2::SendRequest<Body> {
    client_of(served, http2::Builder::new(TokioExecutor::new())).await
}

async fn client_of(
    served: &Served,
    builder: http2::Builder<TokioExecutor>,
) -> http2::SendRequest<Body> {
    let stream = connect(&served.address).await.expect("connects");
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.expect("shakes hands");
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn metadata_may_be_as_large_as_etcd_takes_it() {
    let served = start(LIMIT);
    let mut client = client(&served).await;
    for bytes in [17_000, 200_000, 1_000_000] {
        // In values of a size that HTTP/2 peers bear, and one that is large alone.
        for values in [1, 16] {
            let mut request = Request::post("http://a/x");
            for at in 0..values {
                let value = "v".repeat(bytes / values);
                request = request.header(format!("k{at}"), value);
            }
            let request = request.body(Body::empty()).expect("is valid");
            let answer = client.send_request(request).await.expect("is answered");
            assert_eq!(answer.status(), StatusCode::OK, "{bytes} bytes");
            let seen = answer.headers()["x-headers"].to_str().expect("a number");
            assert_eq!(seen, (bytes / values * values).to_string());
        }
    }
}

#[tokio::test]
async fn a_date_is_sent_over_http_1_alone() {
    let served = start(LIMIT);
    let request = || {
        let request = Request::get("http://a/x").header("host", "a");
        request.body(Body::empty()).expect("is valid")
    };
    let mut http2 = client(&served).await;
    let answer = http2.send_request(request()).await.expect("is answered");
    assert_eq!(answer.version(), Version::HTTP_2);
    assert!(!answer.headers().contains_key("date"));
    let stream = connect(&served.address).await.expect("connects");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut http1, connection) = handshake.expect("shakes hands");
    tokio::spawn(connection);
    let answer = http1.send_request(request()).await.expect("is answered");
    assert_eq!(answer.version(), Version::HTTP_11);
    assert!(answer.headers().contains_key("date"));
}

/// The kernel's buffers take a few answers; what would follow is not even asked for.
#[tokio::test]
async fn a_request_of_http_1_waits_until_the_answer_before_it_is_written() {
    const ASKED: usize = 200;
    let served = start(LIMIT);
    let mut client = connect(&served.address).await.expect("connects");
    let requests = "GET /large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(ASKED);
    client.write_all(requests.as_bytes()).await.expect("writes");
    let begun = || served.echo.paths.lock().expect("no panic").len();
    let mut before = 0;
    while begun() > before || before == 0 {
        before = begun();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < ASKED / 2, "{before} answers were made for nobody");
    let mut read = 0;
    let mut buffer = vec![0; LARGE_BYTES];
    while read < ASKED * LARGE_BYTES {
        let more = tokio::time::timeout(LIMIT, client.read(&mut buffer)).await;
        read += more.expect("in time").expect("reads");
    }
    assert_eq!(begun(), ASKED);
}

#[tokio::test]
async fn connections_beyond_the_allowance_are_closed_at_once() {
    let served = start(LIMIT);
    let mut open = Vec::new();
    for _ in 0..ALLOWED {
        open.push(Raw::connect(&served).await);
    }
    for refused in 1..=3 {
        let mut stream = connect(&served.address).await.expect("connects");
        let ended = tokio::time::timeout(LIMIT, stream.read_u8()).await;
        assert!(ended.expect("in time").is_err());
        assert_eq!(served.metrics.connections_refused.get(), refused);
    }
    drop(open.pop());
    let call = async {
        loop {
            let stream = connect(&served.address).await.expect("connects");
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut http1, connection) = handshake.expect("shakes hands");
            tokio::spawn(connection);
            let request = Request::get("/x").header("host", "a").body(Body::empty());
            if http1.send_request(request.expect("is valid")).await.is_ok() {
                return;
            }
        }
    };
    let answered = tokio::time::timeout(LIMIT, call).await;
    answered.expect("a place becomes free");
}

/// A place is for those who speak: a client of HTTP/2 that has begun may be idle for ever after.
#[tokio::test]
async fn who_does_not_begin_is_not_waited_for() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let limit = Duration::from_millis(100);
    let served = start(limit);
    let settings = frame(SETTINGS, 0, 0, &[]);
    let begun = [PREFACE, &settings].concat();
    for (said, is_kept) in [
        (&b""[..], false),
        (b"P", false),
        (&PREFACE[..23], false),
        (PREFACE, false),
        (&begun[..PREFACE.len() + HEADER_BYTES - 1], false),
        (&begun, true),
    ] {
        let mut client = connect(&served.address).await.expect("connects");
        client.write_all(said).await.expect("writes");
        let mut answered = Vec::new();
        let wait = if is_kept { 5 * limit } else { LIMIT };
        let ended = tokio::time::timeout(wait, client.read_to_end(&mut answered)).await;
        assert_eq!(ended.is_err(), is_kept, "{said:?}: {ended:?}");
    }
}

/// Calls in flight at a stop are answered; those that never end are cut.
#[tokio::test]
async fn a_stop_waits_for_last_answers_and_not_for_ever() {
    for may_end in [true, false] {
        let served = start(LIMIT);
        let mut client = client(&served).await;
        let request = Request::post("http://a/slow").body(Body::empty());
        let call = tokio::spawn(client.send_request(request.expect("is valid")));
        let silent = connect(&served.address).await.expect("connects");
        let asked = Instant::now();
        while served.echo.paths.lock().expect("no panic").is_empty() {
            assert!(asked.elapsed() < LIMIT);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        served.stop.send_replace(true);
        let refused = async {
            while connect(&served.address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, refused).await.expect("refuses");
        assert!(!served.serving.is_finished());
        if may_end {
            served.echo.may.add_permits(1);
        }
        let ended = tokio::time::timeout(LIMIT, served.serving).await;
        ended.expect("in time").expect("no panic");
        assert_eq!(call.await.expect("no panic").is_ok(), may_end);
        drop(silent);
    }
}

/// Watches are not waited for: their responses are complete as far as they go.
#[tokio::test]
async fn a_stop_does_not_wait_for_streams() {
    let served = start(LIMIT);
    let mut client = client(&served).await;
    let request = Request::post("http://a/stream").body(Body::empty());
    let call = client.send_request(request.expect("is valid"));
    let mut answer = call.await.expect("is answered").into_body();
    let stopped = Instant::now();
    served.stop.send_replace(true);
    served.serving.await.expect("no panic");
    assert!(stopped.elapsed() < Duration::from_millis(900));
    let rest = tokio::time::timeout(LIMIT, answer.frame()).await;
    assert!(!matches!(rest.expect("in time"), Some(Ok(_))));
}

/// What comes back for a request of HTTP/1.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    // Who is refused may be closed before it has said all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(LIMIT, reading).await.expect("in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A listener with each kind of security, at a port or a file that the caller names.
async fn each_security(address: impl Fn() -> Address) {
    let (tls, client) = tls::tests::open_server();
    for (security, plain, encrypted) in [
        (Security::Plain, true, false),
        (Security::Tls(tls.clone()), false, true),
        (Security::Either(tls), true, true),
    ] {
        let served = start_at(&address(), LIMIT, security);
        let connect = || connect(&served.address);
        let answer = get(connect().await.expect("connects")).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), plain, "{answer}");
        assert!(plain || answer.is_empty(), "{answer}");
        let name = "server.test".try_into().expect("a name");
        let stream = connect().await.expect("connects");
        let connector = tokio_rustls::TlsConnector::from(client.clone());
        match connector.connect(name, stream).await {
            Ok(stream) => {
                let answer = get(stream).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                assert!(encrypted);
            }
            Err(error) => assert!(!encrypted, "{error}"),
        }
        served.stop.send_replace(true);
        served.serving.await.expect("no panic");
    }
}

#[tokio::test]
async fn a_port_serves_plain_text_or_tls_or_both() {
    each_security(|| SocketAddr::from(([127, 0, 0, 1], 0)).into()).await;
}

#[tokio::test]
async fn who_says_nothing_after_the_handshake_is_not_waited_for() {
    let (tls, client) = tls::tests::open_server();
    let served = start_secured(Duration::from_millis(300), Security::Tls(tls));
    let stream = connect(&served.address).await.expect("connects");
    let name = "server.test".try_into().expect("a name");
    let connector = tokio_rustls::TlsConnector::from(client);
    let mut stream = connector.connect(name, stream).await.expect("connects");
    let mut rest = Vec::new();
    let reading = stream.read_to_end(&mut rest);
    let ended = tokio::time::timeout(LIMIT, reading)
        .await
        .expect("is closed");
    // There is no goodbye of TLS for a client that said nothing.
    assert!(rest.is_empty(), "{ended:?}");
}
