//! Streams that end for a reason of the server's while their service would continue.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::body::trailers;

/// How a stream ends.
pub enum End {
    /// With a status that its client reads.
    Status(Status),
    /// Cancelled, as by grpc-go where the time is up that its client gave it.
    Cancel,
}

/// Ends the stream once `end` says how.
pub fn until(
    response: Response<Body>,
    end: impl Future<Output = End> + Send + 'static,
) -> Response<Body> {
    response.map(|body| {
        Body::new(EndingBody {
            body: Some(body),
            end: Box::pin(end),
        })
    })
}

struct EndingBody {
    /// None once it was ended.
    body: Option<Body>,
    end: Pin<Box<dyn Future<Output = End> + Send>>,
}

impl HttpBody for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(end) = this.end.as_mut().poll(context) else {
            return Pin::new(body).poll_frame(context);
        };
        this.body = None;
        Poll::Ready(Some(match end {
            End::Status(status) => trailers(&status),
            End::Cancel => {
                let reset = h2::Error::from(h2::Reason::CANCEL);
                Err(Status::from_error(Box::new(reset)))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
