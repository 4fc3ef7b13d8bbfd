//! Whether a caller may see what it wants to watch. No member judges a watch that joins one at the
//! cluster, so each is asked for before: a count of its range, with its caller's token, as in etcd's
//! proxy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use super::caller;
use super::upstream::Upstream;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::kv_client::KvClient;

/// For a member's answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Before the next try to have one.
const RETRY: Duration = Duration::from_millis(200);

/// What asks for the right to see a range: any member answers, and sends no keys.
pub fn check_of((key, range_end): (Bytes, Bytes)) -> RangeRequest {
    RangeRequest {
        key,
        range_end,
        serializable: true,
        count_only: true,
        limit: 1,
        ..Default::default()
    }
}

/// The cluster's refusal, or none. As a watch does, it waits for a cluster that can be reached.
pub async fn refusal(
    upstream: &Arc<Upstream>,
    metadata: &MetadataMap,
    check: &RangeRequest,
) -> Option<Status> {
    loop {
        let asked = async {
            let channel = upstream.channel().await?;
            let origin = channel.origin();
            let mut request = Request::new(check.clone());
            *request.metadata_mut() = caller::token(metadata);
            KvClient::with_origin(channel, origin).range(request).await
        };
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(Ok(_)) => return None,
            Ok(Err(status)) if !may_pass(status.code()) => return Some(status),
            Ok(Err(status)) => tracing::debug!(%status, "a permission cannot be asked for"),
            Err(_) => tracing::debug!("a permission is not answered"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether another try may have another end.
pub fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled
    )
}
