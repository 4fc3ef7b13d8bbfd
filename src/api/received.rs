//! Counts the messages of streams from clients. `counted` counts all else of calls: what comes in a
//! stream has its bounds only here, where it is a message.

use std::sync::Arc;

use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

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
    requests.map(move |request| {
        if let (Ok(_), Some(number)) = (&request, number) {
            shared.metrics.grpc_received(number);
        }
        request
    })
}
