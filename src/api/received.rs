//! Counts the messages of streams from clients. `counted` counts all else of calls: what comes in a
//! stream has its bounds only here, where it is a message.

use std::sync::Arc;

use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, Streaming};

use crate::metrics::StreamFailure;
use crate::replica::shared::Shared;
use crate::service::rpcs;

/// The requests of a stream, each counted as it is taken; the method by its service and its name.
pub fn received<T>(
    shared: &Arc<Shared>,
    method: (&str, &str),
    requests: Streaming<T>,
) -> impl Stream<Item = Result<T, Status>> + Send + Unpin + use<T>
where
    T: Send + 'static,
{
    let (shared, number) = (shared.clone(), rpcs::find(method.0, method.1).ok());
    let failure = match method.0 {
        rpcs::WATCH => StreamFailure::Watch,
        _ => StreamFailure::KeepAlive,
    };
    requests.map(move |request| {
        match (&request, number) {
            (Ok(_), Some(number)) => shared.metrics.grpc_received(number),
            (Err(status), _) if !is_gone(status) => shared.metrics.stream_failed(failure),
            _ => {}
        }
        request
    })
}

/// Whether this is how a stream ends whose client cancelled it or is no longer connected.
fn is_gone(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Unknown
    )
}
