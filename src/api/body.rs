//! Bodies that a service makes itself. They stand beside the message of a response, as an
//! extension of it, and become its body before tonic encodes the message; what tonic would
//! encode is copied at least once, and held as a whole.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::{Response, Status};

/// Extensions are cloned; a body is not.
#[derive(Clone)]
struct Beside(Arc<Mutex<Option<Body>>>);

/// A response with this body, `message` as far as tonic knows.
pub fn beside<M, B>(message: M, body: B) -> Response<M>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
{
    let beside = Beside(Arc::new(Mutex::new(Some(Body::new(body)))));
    let mut response = Response::new(message);
    response.extensions_mut().insert(beside);
    response
}

/// What stands beside a message.
pub fn body_of(extensions: &mut http::Extensions) -> Option<Body> {
    let beside: Option<Beside> = extensions.remove();
    beside.and_then(|beside| beside.0.lock().take())
}

/// Makes what stands beside a message the body of its response.
pub fn take_over(mut response: http::Response<Body>) -> http::Response<Body> {
    match body_of(response.extensions_mut()) {
        Some(body) => response.map(|_never_encoded| body),
        None => response,
    }
}

/// The last frame of a body.
pub fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status
        .add_header(&mut trailers)
        .map(|()| Frame::trailers(trailers))
}
