//! The bodies of the few requests that have one to be read.

use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Limited};

/// A client that sends the head of a request has its body at hand.
const LIMIT: Duration = Duration::from_secs(10);

/// Reads a body; the error says why not.
pub async fn read<B>(body: B, max_bytes: usize) -> Result<Bytes, String>
where
    B: http_body::Body<Data: Buf>,
{
    // What became of the connection is not the client's to hear.
    let body = Limited::new(body.map_err(|_| "it could not be read"), max_bytes);
    match tokio::time::timeout(LIMIT, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(reason)) => Err(reason.to_string()),
        Err(_) => Err("it did not come".to_owned()),
    }
}
