//! What tonic says of a message that it cannot take, in the words that grpc-go has for it.

use http::{HeaderMap, HeaderValue, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use super::settings::GRPC_OVERHEAD_BYTES;

/// What a stream ends with when a message of its client cannot be taken.
pub fn broken_stream(status: &Status, max_request_bytes: usize) -> Status {
    let max = max_request_bytes + GRPC_OVERHEAD_BYTES;
    reword(status, max).unwrap_or_else(|| status.clone())
}

/// What tonic says of a message that it could not decode, as grpc-go says it.
fn reword(status: &Status, max: usize) -> Option<Status> {
    let text = status.message();
    if let Some(rest) = text.strip_prefix(TONIC_TOO_LARGE) {
        let found = rest.split(' ').next().unwrap_or_default();
        return Some(Status::new(
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({found} vs. {max})"),
        ));
    }
    let rest = text.strip_prefix(TONIC_MALFORMED)?;
    Some(Status::new(
        Code::Internal,
        format!("grpc: error unmarshalling request: {rest}"),
    ))
}

const TONIC_TOO_LARGE: &str = "Error, decoded message length too large: found ";
const TONIC_MALFORMED: &str = "failed to decode Protobuf message: ";

/// Says in grpc-go's words what tonic found wrong with a message before a service saw it.
pub fn in_grpc_go_words(mut response: Response<Body>, max: usize) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS) {
        return response;
    }
    let Some(reworded) = Status::from_header_map(headers).and_then(|status| reword(&status, max))
    else {
        return response;
    };
    let mut trailers = HeaderMap::new();
    if reworded.add_header(&mut trailers).is_err() {
        return response;
    }
    for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE] {
        let value = trailers.remove(&name);
        response
            .headers_mut()
            .insert(name, value.unwrap_or(HeaderValue::from_static("")));
    }
    response
}
