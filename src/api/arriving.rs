//! Requests as they arrive, between a connection and the decoder of their messages.
//!
//! A message begins with its size, and the decoder makes room for all of it at once. Here it gets
//! a message only when there is room: a small one when it is whole, a large one when enough of it
//! has come to believe the rest; what it announces alone takes nothing. What is passed on is
//! counted until its call is answered, in a stream until the next message is asked for.
//!
//! - Up to `FREE_BYTES` nothing is counted: a call takes as much in any case.
//! - Small messages that come whole, the usual case, pass as they are.
//! - Without room a message waits, and its connection's windows stop its client. One that waits
//!   for longer than `WAIT_LIMIT` is refused.
//! - A message that has room, or holds a beginning, and does not continue is refused after
//!   `STALL_LIMIT`, if others wait: unfinished requests do not lock out the rest.
//! - What the decoder refuses by its first bytes passes at once, so that the refusal is its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::Status;
use tonic::codegen::StdError;

use crate::budget::requests::OfConnection;
use crate::budget::unread;
use crate::budget::{Held, TakeBytes};
use crate::env::{Boxed, Clock};
use crate::error::Error;

const PREFIX_BYTES: usize = 5;
const FREE_BYTES: usize = 1 << 10;
const SMALL_BYTES: usize = 16 << 10;
/// So much of a message has to come before it gets room for the rest.
const BEGINNING_BYTES: usize = 8 << 10;
/// What gzip makes of a byte at most.
const MAX_EXPANSION: usize = 1032;

const WAIT_LIMIT: Duration = Duration::from_secs(10);
const STALL_LIMIT: Duration = Duration::from_secs(2);
/// Less within `STALL_LIMIT` is no progress.
const PROGRESS_BYTES: usize = 16 << 10;

/// What is counted of a unary call.
pub type HeldByCall = Arc<Mutex<Vec<Held>>>;

/// What is counted of the call of a request, for one that waits long and needs its message no more.
pub fn kept<T>(request: &tonic::Request<T>) -> HeldByCall {
    let kept = request.extensions().get::<HeldByCall>();
    kept.cloned().unwrap_or_default()
}

/// Until when what was passed on is counted.
pub enum Until {
    Answered(HeldByCall),
    NextMessage(Vec<Held>),
}

/// Where the requests of a client come from.
pub struct Source {
    pub of_connection: OfConnection,
    pub clock: Arc<dyn Clock>,
    pub max_message_bytes: usize,
}

/// What a message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    /// With the prefix itself.
    total_bytes: usize,
    /// What it may take when it is decoded.
    cost_bytes: usize,
}

/// None where there is too little of it, an error where the decoder refuses it.
fn prefix(bytes: &[u8], max_message_bytes: usize) -> Option<Result<Prefix, ()>> {
    let [compressed, size @ ..] = bytes.first_chunk::<PREFIX_BYTES>()?;
    let size = u32::from_be_bytes(*size) as usize;
    if *compressed > 1 || size > max_message_bytes {
        return Some(Err(()));
    }
    let expanded = match compressed {
        0 => 0,
        _ => (size * MAX_EXPANSION).min(max_message_bytes),
    };
    Some(Ok(Prefix {
        total_bytes: PREFIX_BYTES + size,
        cost_bytes: size + expanded,
    }))
}

/// How many bytes of whole small messages stand at the beginning, and what they cost.
fn small_ones(bytes: &[u8], max_message_bytes: usize) -> (usize, usize) {
    let (mut end, mut cost) = (0, 0);
    while let Some(Ok(prefix)) = prefix(&bytes[end..], max_message_bytes) {
        let next = end + prefix.total_bytes;
        if next > bytes.len() || cost + prefix.cost_bytes > SMALL_BYTES {
            break;
        }
        (end, cost) = (next, cost + prefix.cost_bytes);
    }
    (end, cost)
}

/// A message of which too little has come.
#[derive(Default)]
struct Beginning {
    bytes: Vec<u8>,
    held: Option<Held>,
}

impl Beginning {
    /// What is known of the message, and so much is gathered.
    fn wanted(&self, max_message_bytes: usize) -> (Option<Result<Prefix, ()>>, usize) {
        let known = prefix(&self.bytes, max_message_bytes);
        let wanted_bytes = match known {
            Some(Ok(prefix)) => prefix.total_bytes.min(BEGINNING_BYTES),
            _ => PREFIX_BYTES,
        };
        (known, wanted_bytes)
    }

    /// Whether it needs room to grow.
    fn is_to_be_counted(&self) -> bool {
        self.held.is_none() && self.bytes.len() >= FREE_BYTES
    }
}

enum BodyState {
    /// Before a message.
    Between,
    Beginning(Beginning),
    /// What waits for room passes on, or is inspected again, when it has that.
    Waiting {
        waiting: TakeBytes,
        limit: Boxed<()>,
        front: Front,
        then: Box<BodyState>,
    },
    /// In a message that has its room: so much is to come.
    Within(usize),
    /// The decoder will refuse it.
    Hopeless,
}

/// What is passed on together.
#[derive(Default)]
struct Front {
    bytes: Bytes,
    /// So much of it counts as unread as long as it is here.
    unread_bytes: usize,
}

struct Stall {
    until: Boxed<()>,
    came_bytes: usize,
}

/// The body of a request; see the module.
pub struct Arriving<B: Body<Data: Buf> + Unpin> {
    body: B,
    source: Arc<Source>,
    unread: unread::Body,
    until: Until,
    state: BodyState,
    /// Came and is not passed on.
    rest: Bytes,
    stall: Option<Stall>,
}

/// What the decoder gets next.
type Next = Poll<Option<Result<Frame<Bytes>, StdError>>>;

fn fail(status: Status) -> Next {
    Poll::Ready(Some(Err(Box::new(status))))
}

impl<B> Arriving<B>
where
    B: Body<Error: Into<StdError>> + Unpin,
{
    pub fn new(body: B, source: Arc<Source>, until: Until) -> Self {
        Self {
            unread: source.of_connection.unread.body(),
            body,
            source,
            until,
            state: BodyState::Between,
            rest: Bytes::new(),
            stall: None,
        }
    }

    /// Takes what came next from the connection; errors end in the decoder.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Result<(), Next> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                self.unread.drained();
                Err(self.stalled(context))
            }
            Poll::Ready(None) => {
                self.unread.drained();
                Err(match &self.state {
                    BodyState::Beginning(_) => {
                        fail(Status::internal("Unexpected EOF decoding stream."))
                    }
                    _ => Poll::Ready(None),
                })
            }
            Poll::Ready(Some(Err(error))) => Err(Poll::Ready(Some(Err(error.into())))),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(mut data) => {
                    self.rest = data.copy_to_bytes(data.remaining());
                    Ok(())
                }
                // Trailers mean nothing in a request; a stream would hold them until its end.
                Err(_trailers) => self.poll_body(context),
            },
        }
    }

    /// Nothing came. What holds room for more, and for too long, is refused where others wait.
    fn stalled(&mut self, context: &mut Context<'_>) -> Next {
        if matches!(self.state, BodyState::Between | BodyState::Hopeless) {
            self.stall = None;
            return Poll::Pending;
        }
        if matches!(self.state, BodyState::Within(_)) {
            self.unread.starves();
        }
        loop {
            let stall = self.stall.get_or_insert_with(|| Stall {
                until: self.source.clock.sleep(STALL_LIMIT),
                came_bytes: 0,
            });
            ready!(stall.until.as_mut().poll(context));
            if stall.came_bytes < PROGRESS_BYTES && self.source.of_connection.is_awaited() {
                return self.refuse();
            }
            self.stall = None;
        }
    }

    fn refuse(&mut self) -> Next {
        self.discard();
        fail(Error::Overloaded.into())
    }

    /// Takes so much of what came.
    fn take(&mut self, bytes: usize) -> Front {
        if let Some(stall) = &mut self.stall {
            stall.came_bytes += bytes;
        }
        Front {
            bytes: self.rest.split_to(bytes),
            unread_bytes: bytes,
        }
    }

    fn pass(&mut self, front: Front) -> Next {
        if front.unread_bytes > 0 {
            self.unread.took(front.unread_bytes);
        }
        Poll::Ready(Some(Ok(Frame::data(front.bytes))))
    }

    fn keep(&mut self, held: Held) {
        match &mut self.until {
            Until::Answered(kept) => kept.lock().push(held),
            Until::NextMessage(kept) => kept.push(held),
        }
    }

    fn wait(&mut self, waiting: TakeBytes, front: Front, then: BodyState) {
        self.state = BodyState::Waiting {
            waiting,
            limit: self.source.clock.sleep(WAIT_LIMIT),
            front,
            then: Box::new(then),
        };
    }

    /// Inspects what came; none where something has to come or to be waited for first.
    fn advance(&mut self) -> Option<Next> {
        let max = self.source.max_message_bytes;
        match &mut self.state {
            BodyState::Hopeless => {
                let front = self.take(self.rest.len());
                Some(self.pass(front))
            }
            BodyState::Within(left) => {
                let bytes = (*left).min(self.rest.len());
                *left -= bytes;
                if *left == 0 {
                    self.state = BodyState::Between;
                }
                let front = self.take(bytes);
                if matches!(self.state, BodyState::Between) {
                    self.stall = None;
                }
                Some(self.pass(front))
            }
            BodyState::Between => {
                let (end, cost) = small_ones(&self.rest, max);
                if end > 0 {
                    return self.pass_small(end, cost);
                }
                match prefix(&self.rest, max) {
                    Some(Err(())) => self.state = BodyState::Hopeless,
                    Some(Ok(prefix))
                        if self.rest.len() >= BEGINNING_BYTES.min(prefix.total_bytes) =>
                    {
                        let front = self.take(prefix.total_bytes.min(self.rest.len()));
                        return self.pass_large(prefix, front, None);
                    }
                    _ => self.state = BodyState::Beginning(Beginning::default()),
                }
                None
            }
            BodyState::Beginning(_) => self.begin(),
            BodyState::Waiting { .. } => None,
        }
    }

    fn pass_small(&mut self, end: usize, cost: usize) -> Option<Next> {
        let front = self.take(end);
        if cost > FREE_BYTES {
            match self.source.of_connection.try_take_small(cost) {
                Some(held) => self.keep(held),
                None => {
                    let waiting = self.source.of_connection.take_small(cost);
                    self.wait(waiting, front, BodyState::Between);
                    return None;
                }
            }
        }
        Some(self.pass(front))
    }

    /// `front` is the beginning of a message, or all of it; `held` counts a part of it.
    fn pass_large(&mut self, prefix: Prefix, front: Front, held: Option<Held>) -> Option<Next> {
        let then = match prefix.total_bytes - front.bytes.len() {
            0 => BodyState::Between,
            left => BodyState::Within(left),
        };
        let counted_bytes = held.as_ref().map_or(0, Held::bytes);
        if let Some(held) = held {
            self.keep(held);
        }
        let needed_bytes = prefix.cost_bytes.saturating_sub(counted_bytes);
        if needed_bytes == 0 || (counted_bytes == 0 && needed_bytes <= FREE_BYTES) {
            self.state = then;
            return Some(self.pass(front));
        }
        match self.source.of_connection.try_take(needed_bytes) {
            Some(held) => {
                self.keep(held);
                self.state = then;
                Some(self.pass(front))
            }
            None => {
                let waiting = self.source.of_connection.take(needed_bytes);
                self.wait(waiting, front, then);
                None
            }
        }
    }

    /// Gathers what came of a message's beginning.
    fn begin(&mut self) -> Option<Next> {
        let BodyState::Beginning(beginning) = &mut self.state else {
            return None;
        };
        let (known, wanted_bytes) = beginning.wanted(self.source.max_message_bytes);
        let len = beginning.bytes.len();
        if known == Some(Err(())) || len == wanted_bytes {
            let Beginning { bytes, held } = std::mem::take(beginning);
            let front = Front {
                bytes: bytes.into(),
                unread_bytes: 0,
            };
            self.stall = None;
            self.state = BodyState::Hopeless;
            return match known {
                Some(Ok(prefix)) => self.pass_large(prefix, front, held),
                _ => Some(self.pass(front)),
            };
        }
        if beginning.is_to_be_counted() {
            let mut beginning = std::mem::take(beginning);
            beginning.held = self.source.of_connection.try_take(wanted_bytes);
            match beginning.held {
                Some(_) => self.state = BodyState::Beginning(beginning),
                None => {
                    let waiting = self.source.of_connection.take(wanted_bytes);
                    self.wait(waiting, Front::default(), BodyState::Beginning(beginning));
                }
            }
            return None;
        }
        let until = match beginning.held {
            Some(_) => wanted_bytes,
            None => wanted_bytes.min(FREE_BYTES),
        };
        let bytes = (until - len).min(self.rest.len());
        beginning
            .bytes
            .extend_from_slice(&self.rest.split_to(bytes));
        self.unread.took(bytes);
        None
    }

    /// None where what waited has room and nothing of its own to pass on.
    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Option<Next> {
        let BodyState::Waiting {
            waiting,
            limit,
            front,
            then,
        } = &mut self.state
        else {
            return None;
        };
        match Pin::new(waiting).poll(context) {
            Poll::Ready(Ok(held)) => {
                let front = std::mem::take(front);
                self.state = std::mem::replace(then, BodyState::Between);
                self.stall = None;
                if let BodyState::Beginning(beginning) = &mut self.state {
                    beginning.held = Some(held);
                    return None;
                }
                self.keep(held);
                Some(self.pass(front))
            }
            Poll::Ready(Err(_exhausted)) => Some(self.refuse()),
            Poll::Pending => match limit.as_mut().poll(context) {
                Poll::Ready(()) => Some(self.refuse()),
                Poll::Pending => Some(Poll::Pending),
            },
        }
    }

    /// Whether nothing can be done without more of what comes.
    fn needs_more(&self) -> bool {
        match &self.state {
            BodyState::Beginning(beginning) => {
                let (known, wanted_bytes) = beginning.wanted(self.source.max_message_bytes);
                let whole = known == Some(Err(())) || beginning.bytes.len() == wanted_bytes;
                !whole && !beginning.is_to_be_counted()
            }
            BodyState::Waiting { .. } => false,
            BodyState::Between | BodyState::Within(_) | BodyState::Hopeless => true,
        }
    }
}

impl<B> Body for Arriving<B>
where
    B: Body<Error: Into<StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Next {
        let this = self.get_mut();
        if let (BodyState::Between, Until::NextMessage(kept)) = (&this.state, &mut this.until) {
            // A reader that asks for more has taken what was passed on.
            kept.clear();
        }
        loop {
            if matches!(this.state, BodyState::Waiting { .. }) {
                match this.poll_waiting(context) {
                    Some(next) => return next,
                    None => continue,
                }
            }
            if this.rest.is_empty()
                && this.needs_more()
                && let Err(next) = this.poll_body(context)
            {
                return next;
            }
            if this.rest.is_empty() && this.needs_more() {
                // An empty frame.
                continue;
            }
            if let Some(next) = this.advance() {
                return next;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let settled = match self.state {
            BodyState::Between | BodyState::Hopeless => true,
            BodyState::Within(left) => left == 0,
            BodyState::Beginning(_) | BodyState::Waiting { .. } => false,
        };
        settled && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl<B: Body<Data: Buf> + Unpin> Arriving<B> {
    /// Drops what came; it does not count as unread any more.
    fn discard(&mut self) {
        let mut unread_bytes = self.rest.len();
        if let BodyState::Waiting { front, .. } = &self.state {
            unread_bytes += front.unread_bytes;
        }
        if unread_bytes > 0 {
            self.unread.took(unread_bytes);
        }
        self.rest = Bytes::new();
        self.state = BodyState::Hopeless;
    }
}

/// What the library holds for it is read no more either.
impl<B: Body<Data: Buf> + Unpin> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.discard();
        let mut context = Context::from_waker(Waker::noop());
        while !self.body.is_end_stream() {
            match Pin::new(&mut self.body).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => {
                    let bytes = frame.data_ref().map_or(0, Buf::remaining);
                    self.unread.took(bytes);
                }
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::budget::Requests;

    const MAX: usize = 64 << 10;
    /// Of the share, with `Requests`' least.
    const SHARE: usize = 4 * MAX;

    /// Whose sleepers see the time when they are polled.
    #[derive(Default)]
    struct StepClock(Arc<Mutex<Duration>>);

    impl StepClock {
        fn advance(&self, by: Duration) {
            *self.0.lock() += by;
        }
    }

    impl Clock for StepClock {
        fn now(&self) -> Duration {
            *self.0.lock()
        }

        fn wall(&self) -> Duration {
            self.now()
        }

        fn sleep(&self, duration: Duration) -> Boxed<()> {
            let (now, until) = (self.0.clone(), self.now() + duration);
            Box::pin(std::future::poll_fn(move |_| match *now.lock() < until {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }))
        }
    }

    type Chunk = Result<Frame<Bytes>, Infallible>;
    type Channel = StreamBody<UnboundedReceiverStream<Chunk>>;

    /// A connection whose chunks are handed in.
    struct Member {
        requests: Requests,
        clock: Arc<StepClock>,
    }

    struct Call {
        chunks: mpsc::UnboundedSender<Chunk>,
        body: Arriving<Channel>,
        kept: HeldByCall,
    }

    impl Member {
        fn new() -> Self {
            Self {
                requests: Requests::new(0, MAX),
                clock: Arc::default(),
            }
        }

        fn connection(&self) -> Arc<Source> {
            let unread = self.requests.unread().connection();
            Arc::new(Source {
                of_connection: self.requests.of_connection(unread),
                clock: self.clock.clone(),
                max_message_bytes: MAX,
            })
        }

        fn call(&self, source: &Arc<Source>, chunks: &[&[u8]]) -> Call {
            let (sender, receiver) = mpsc::unbounded_channel();
            let kept = HeldByCall::default();
            let until = Until::Answered(kept.clone());
            let body = StreamBody::new(UnboundedReceiverStream::new(receiver));
            let call = Call {
                chunks: sender,
                body: Arriving::new(body, source.clone(), until),
                kept,
            };
            chunks.iter().for_each(|chunk| call.send(chunk));
            call
        }
    }

    impl Call {
        fn send(&self, chunk: &[u8]) {
            let chunk = Frame::data(Bytes::copy_from_slice(chunk));
            self.chunks.send(Ok(chunk)).expect("the body is there");
        }

        fn poll(&mut self) -> Poll<Option<Result<Vec<u8>, Status>>> {
            let mut context = Context::from_waker(Waker::noop());
            let polled = Pin::new(&mut self.body).poll_frame(&mut context);
            polled.map(|next| {
                next.map(|next| match next {
                    Ok(frame) => Ok(frame.into_data().expect("data").to_vec()),
                    Err(error) => Err(Status::from_error(error)),
                })
            })
        }

        /// All that passes now, and how it ended, if it did.
        fn passed(&mut self) -> (Vec<u8>, Option<Result<(), Status>>) {
            let mut all = Vec::new();
            loop {
                match self.poll() {
                    Poll::Ready(Some(Ok(bytes))) => all.extend(bytes),
                    Poll::Ready(Some(Err(status))) => return (all, Some(Err(status))),
                    Poll::Ready(None) => return (all, Some(Ok(()))),
                    Poll::Pending => return (all, None),
                }
            }
        }

        fn counted(&self) -> usize {
            self.kept.lock().iter().map(Held::bytes).sum()
        }

        fn is_refused(&mut self) -> bool {
            match self.passed() {
                (_, Some(Err(status))) => status.code() == Error::Overloaded.code(),
                _ => false,
            }
        }
    }

    fn message(bytes: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend((bytes as u32).to_be_bytes());
        message.extend((0..bytes).map(|at| at as u8));
        message
    }

    #[test]
    fn messages_pass_however_they_are_cut_and_count_what_they_are() {
        // Sizes of messages, and what is counted of them.
        let cases: [(&[usize], usize); 6] = [
            (&[0], 0),
            (&[0, 7, 1000], 0),
            (&[1019], 0),
            (&[5000], 5000),
            (&[30_000], 30_000),
            (&[100, 40_000, 0, 3, 20_000, 9000], 69_000),
        ];
        for (sizes, expected) in cases {
            let all: Vec<u8> = sizes.iter().flat_map(|size| message(*size)).collect();
            for piece in [1, 3, 5, 1000, 8191, 8192, 16_384, 1 << 20] {
                let member = Member::new();
                let source = member.connection();
                let chunks: Vec<&[u8]> = all.chunks(piece).collect();
                let mut call = member.call(&source, &chunks);
                let (mut passed, ended) = call.passed();
                assert!(ended.is_none());
                let (chunks, _) = mpsc::unbounded_channel();
                drop(std::mem::replace(&mut call.chunks, chunks));
                let (rest, ended) = call.passed();
                assert!(matches!(ended, Some(Ok(()))), "{ended:?}");
                passed.extend(rest);
                assert!(passed == all, "{sizes:?} in pieces of {piece}");
                let counted = call.counted();
                // A beginning is counted with its prefix, and several small ones together.
                let near = expected.saturating_sub(1100)..=expected + 5 * sizes.len() + 1100;
                assert!(near.contains(&counted), "{counted} for {sizes:?}, {piece}");
                let share = member.requests.share();
                assert_eq!(share.used_bytes(), counted);
                drop(call);
                assert_eq!(share.used_bytes(), 0);
            }
        }
    }

    #[test]
    fn what_is_announced_takes_nothing() {
        let member = Member::new();
        let source = member.connection();
        let share = member.requests.share();
        let mut calls: Vec<Call> = (0..1000)
            .map(|_| member.call(&source, &[&message(MAX)[..6]]))
            .collect();
        for call in &mut calls {
            assert_eq!(call.passed().0, b"");
        }
        assert_eq!(share.used_bytes(), 0);
        // With nobody in their way they may take their time.
        member.clock.advance(10 * STALL_LIMIT);
        assert!(calls.iter_mut().all(|call| call.passed().1.is_none()));
        let mut honest = member.call(&member.connection(), &[&message(MAX)]);
        assert_eq!(honest.passed().0.len(), MAX + PREFIX_BYTES);
    }

    #[test]
    fn what_the_decoder_refuses_passes_at_once() {
        let long = message(MAX + 1);
        let odd = [&[2], &message(3)[1..]].concat();
        for (bytes, first) in [(&long[..5], 3), (&long[..9000], 9000), (&odd, 1)] {
            let member = Member::new();
            let cut = [
                &bytes[..first.min(bytes.len())],
                &bytes[first.min(bytes.len())..],
            ];
            let mut call = member.call(&member.connection(), &cut);
            assert_eq!(call.passed().0, bytes);
            assert_eq!(call.counted(), 0);
        }
    }

    #[test]
    fn what_breaks_off_is_an_error_of_the_decoders() {
        let member = Member::new();
        let mut call = member.call(&member.connection(), &[&message(MAX)[..100]]);
        assert!(call.passed().1.is_none());
        let (chunks, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut call.chunks, chunks));
        let (_, Some(Err(status))) = call.passed() else {
            panic!("no end");
        };
        assert_eq!(status.code(), tonic::Code::Internal);
    }

    #[test]
    fn unfinished_messages_give_way_to_those_that_wait() {
        let member = Member::new();
        let whole = message(MAX);
        let unfinished = &whole[..MAX - 10];
        let mut held: Vec<Call> = (0..SHARE / 4 * 3 / MAX)
            .map(|_| member.call(&member.connection(), &[unfinished]))
            .collect();
        for call in &mut held {
            assert_eq!(call.passed().0.len(), unfinished.len());
        }
        let source = member.connection();
        let mut waits = member.call(&source, &[&whole]);
        let (passed, ended) = waits.passed();
        assert!(passed.is_empty() && ended.is_none());
        // A small one passes meanwhile.
        let mut small = member.call(&source, &[&message(10_000)]);
        assert_eq!(small.passed().0.len(), 10_000 + PREFIX_BYTES);
        // One that ends in time is none of them.
        held[0].send(&whole[MAX - 10..]);
        assert_eq!(held[0].passed().0.len(), 10 + PREFIX_BYTES);
        member.clock.advance(STALL_LIMIT);
        assert!(!held[0].is_refused());
        assert!(held[1..].iter_mut().all(Call::is_refused));
        drop(held);
        assert_eq!(waits.passed().0.len(), whole.len());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let member = Member::new();
        let _all = member.connection().of_connection.try_take(SHARE);
        let mut waits = member.call(&member.connection(), &[&message(MAX)]);
        assert!(waits.passed().1.is_none());
        member.clock.advance(WAIT_LIMIT);
        assert!(waits.is_refused());
    }

    #[test]
    fn what_a_compressed_message_may_become_is_counted() {
        let mut bomb = message(1000);
        bomb[0] = 1;
        let member = Member::new();
        let mut call = member.call(&member.connection(), &[&bomb]);
        assert_eq!(call.passed().0, bomb);
        assert_eq!(call.counted(), 1000 + MAX);
    }

    #[tokio::test]
    async fn in_a_stream_a_message_counts_until_the_next_is_asked_for() {
        let member = Member::new();
        let source = member.connection();
        let all = [message(30_000), message(2000)].map(|bytes| Ok(Frame::data(bytes.into())));
        let body = StreamBody::new(tokio_stream::iter::<[Chunk; 2]>(all));
        let mut body = Arriving::new(body, source.clone(), Until::NextMessage(Vec::new()));
        let used = || member.requests.share().used_bytes();
        for counted in [30_000, 2000] {
            assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
            assert_eq!(used(), counted);
        }
        assert!(body.frame().await.is_none());
        assert_eq!(used(), 0);
    }
}
