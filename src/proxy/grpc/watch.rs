//! The service Watch: `watches` decides, `group` carries.

use prost::DecodeError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::group::{Answers, Core, Groups, Sent, StreamId};
use super::namespace::Namespace;
use super::permission;
use super::watches::{self, Counts, Output, Watches};
use crate::env::Boxed;
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::etcdserverpb::watch_server::Watch;
use crate::proto::etcdserverpb::{
    RangeRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, watch_request::RequestUnion,
};
use crate::transport::Channel;

impl Core for Watches {
    type Request = WatchRequest;
    type Answer = WatchResponse;
    type Counts = Counts;
    const ANSWERS_EACH: bool = false;

    fn open(&mut self, stream: StreamId) {
        self.open_stream(stream);
    }

    fn close(&mut self, stream: StreamId) {
        self.close_stream(stream);
    }

    fn take(&mut self, stream: StreamId, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(stream, &create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(stream, cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.progress(stream),
            None => {}
        }
    }

    fn permission_check(namespace: &Namespace, request: &WatchRequest) -> Option<RangeRequest> {
        match &request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                // What is wrong with a request is said without a check.
                let range = watches::range(namespace, create).ok()?;
                Some(permission::check_of(range))
            }
            _ => None,
        }
    }

    fn refused(&mut self, stream: StreamId, status: &Status) {
        // In the words of a member, by which clients see that a token is old.
        let (code, text) = (status.code(), status.message());
        let reason = format!("rpc error: code = {code:?} desc = {text}");
        self.refuse(stream, None, &reason);
    }

    fn asked_all(&mut self, _: StreamId) {
        // Its watches continue until it is gone, as a member's do.
    }

    fn heard(&mut self, answer: WatchResponse) -> Result<(), DecodeError> {
        self.answered(&answer)
    }

    fn lost(&mut self) {
        self.disconnected();
    }

    fn sent(&mut self) -> Vec<Sent<Self>> {
        let outputs = self.take_outputs().into_iter();
        outputs.map(sent).collect()
    }

    fn counts(&self) -> Counts {
        self.counted()
    }

    fn add(total: &mut Counts, counts: &Counts) {
        total.watches += counts.watches;
        total.broadcasts += counts.broadcasts;
        total.saved += counts.saved;
    }

    fn call(
        channel: Channel,
        request: Request<ReceiverStream<WatchRequest>>,
    ) -> Boxed<Result<Response<Streaming<WatchResponse>>, Status>> {
        let origin = channel.origin();
        let client = WatchClient::with_origin(channel, origin);
        let mut client = client.max_decoding_message_size(i32::MAX as usize);
        Box::pin(async move { client.watch(request).await })
    }
}

fn sent(output: Output) -> Sent<Watches> {
    let request = match output {
        Output::Answer { stream, response } => return Sent::ToClient(stream, response),
        Output::AskProgress => RequestUnion::ProgressRequest(WatchProgressRequest {}),
        Output::Close { broadcast } => RequestUnion::CancelRequest(WatchCancelRequest {
            watch_id: broadcast,
        }),
        Output::Open {
            broadcast,
            range: (key, range_end),
            start_revision,
        } => RequestUnion::CreateRequest(WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: true,
            prev_kv: true,
            watch_id: broadcast,
            ..Default::default()
        }),
    };
    Sent::ToCluster(WatchRequest {
        request_union: Some(request),
    })
}

/// See the module.
#[derive(Clone)]
pub struct WatchProxy(pub Groups<Watches>);

#[tonic::async_trait]
impl Watch for WatchProxy {
    type WatchStream = Answers<Watches>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.0.join(request).await
    }
}
