//! The body of an answer on its way to the HTTP/2 library, which takes what it is given whole and
//! asks for more as soon as its stream's window lets a byte through: it is given what
//! `budget::unsent` has room for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::budget::unsent::{Connection, Stream};

/// A first piece up to this size is not counted: all there is of most answers, and no more than
/// their call costs.
const FREE_BYTES: usize = 1 << 10;

/// See the module.
pub struct Sending {
    body: Body,
    connection: Arc<Connection>,
    /// None while nothing was held for it, so that there is room: most answers never have one.
    stream: Option<Arc<Stream>>,
    /// Came from the body and had no room.
    rest: Bytes,
    begun: bool,
}

impl Sending {
    pub fn new(body: Body, connection: Arc<Connection>) -> Self {
        Self {
            body,
            connection,
            stream: None,
            rest: Bytes::new(),
            begun: false,
        }
    }
}

fn poll_room(stream: &Stream, context: &mut Context<'_>) -> Poll<usize> {
    let room_bytes = stream.room_bytes();
    if room_bytes > 0 {
        return Poll::Ready(room_bytes);
    }
    // What is taken between the check and this would else wake nobody.
    stream.wake_later(context.waker());
    match stream.room_bytes() {
        0 => Poll::Pending,
        room_bytes => Poll::Ready(room_bytes),
    }
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            if let Some(stream) = &this.stream {
                ready!(poll_room(stream, context));
            }
            let polled = ready!(Pin::new(&mut this.body).poll_frame(context));
            let Some(Ok(frame)) = polled else {
                return Poll::Ready(polled);
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            if !std::mem::replace(&mut this.begun, true) && data.len() <= FREE_BYTES {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.rest = data;
        }
        let connection = &this.connection;
        let stream = this.stream.get_or_insert_with(|| connection.stream());
        let room_bytes = ready!(poll_room(stream, context));
        let slice = this.rest.split_to(this.rest.len().min(room_bytes));
        Poll::Ready(Some(Ok(Frame::data(stream.hold(slice)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest.is_empty() {
            true => self.body.size_hint(),
            false => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::budget::unsent::Unsent;

    #[tokio::test]
    async fn what_has_no_room_waits_and_all_of_it_is_sent() {
        let unsent = Unsent::new(0);
        let connection = unsent.connection();
        let whole: Bytes = (0..20_000u32).map(|at| at as u8).collect();
        let body = Body::new(Full::new(whole.clone()));
        let mut sending = Box::pin(Sending::new(body, connection));
        let mut context = Context::from_waker(Waker::noop());
        let mut sent = Vec::new();
        while let Poll::Ready(frame) = sending.as_mut().poll_frame(&mut context) {
            let Some(frame) = frame else { break };
            let data = frame.expect("a frame").into_data().expect("data");
            assert!(data.len() <= 4 << 10, "{}", data.len());
            assert!(sending.as_mut().poll_frame(&mut context).is_pending() || sent.len() > 15_000);
            sent.extend_from_slice(&data);
        }
        assert!(sent == whole, "{} bytes", sent.len());
        assert_eq!(unsent.bytes(), 0);
    }

    #[tokio::test]
    async fn a_small_answer_is_not_counted() {
        let unsent = Unsent::new(0);
        let body = Body::new(Full::new(Bytes::from_static(&[1; FREE_BYTES])));
        let sending = Sending::new(body, unsent.connection());
        let collected = sending.collect().await.expect("a whole body");
        assert_eq!(unsent.bytes(), 0);
        assert_eq!(collected.to_bytes().len(), FREE_BYTES);
    }
}
