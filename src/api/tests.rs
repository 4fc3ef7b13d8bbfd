//! What the table of RPCs says of limits is so.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;

use super::*;
use crate::proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op};
use crate::service::fixture;
use crate::service::rpcs::{CallLimits, Costly};

const MAX: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

fn api(handle: &Handle) -> Api {
    let settings = ApiSettings {
        max_txn_ops: 128,
        max_request_bytes: MAX,
        fragment_bytes: MAX,
        progress_interval: Duration::from_secs(600),
        recheck_watches: true,
        warning_unary_request_duration: Duration::MAX,
        warning_apply_duration: Duration::MAX,
    };
    let requests = Arc::new(Requests::new(0, settings.max_message_bytes()));
    Api::new(handle.clone(), settings, requests, Share::new(MAX))
}

/// One that is answered without a leader.
fn message(rpc: &rpcs::Rpc) -> Option<Vec<u8>> {
    let range = RangeRequest {
        key: b"a".to_vec().into(),
        range_end: b"b".to_vec().into(),
        serializable: true,
        ..Default::default()
    };
    match (rpc.service, rpc.method) {
        (rpcs::KV, "Range" | "RangeStream") => Some(range.encode_to_vec()),
        (rpcs::KV, "Txn") => {
            let op = RequestOp {
                request: Some(request_op::Request::RequestRange(range)),
            };
            let txn = TxnRequest {
                success: vec![op],
                ..Default::default()
            };
            Some(txn.encode_to_vec())
        }
        (rpcs::MAINTENANCE, "Status" | "Hash" | "HashKV" | "Snapshot") => Some(Vec::new()),
        _ => None,
    }
}

/// Calls, and takes the first frame of the answer.
async fn answer(api: &Api, rpc: &rpcs::Rpc, message: Vec<u8>) {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let request = Request::post(format!("/{}/{}", rpc.service, rpc.method))
        .header("content-type", "application/grpc")
        .body(Full::new(bytes::Bytes::from(frame)))
        .expect("a request");
    let Ok(response) = api.call(request).await;
    assert_eq!(response.headers().get(Status::GRPC_STATUS), None, "{rpc:?}");
    let first = response.into_body().frame().await.expect("a frame");
    assert!(first.expect("no error").is_data(), "{rpc:?}");
}

/// All turns at something, once those before have ended.
async fn take_all(handle: &Handle, costly: Costly) -> OwnedSemaphorePermit {
    let turns = handle.turns(costly).clone();
    let all = turns.acquire_many_owned(costly.at_once() as u32);
    let all = tokio::time::timeout(LONG, all).await;
    all.expect("they end").expect("open")
}

async fn is_answered(api: &Api, rpc: &rpcs::Rpc, message: Vec<u8>, wait: Duration) -> bool {
    let answered = tokio::time::timeout(wait, answer(api, rpc, message));
    answered.await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_the_turns_that_its_row_names_and_for_no_other() {
    let handle = fixture::single_member();
    let api = api(&handle);
    let mut rows = Vec::new();
    for (rpc, message) in RPCS.iter().filter_map(|rpc| Some((rpc, message(rpc)?))) {
        for costly in Costly::ALL {
            let taken = take_all(&handle, costly).await;
            let is_its = rpc.limits == CallLimits::Turns(costly);
            let wait = if is_its { LONG / 200 } else { LONG };
            let answered = is_answered(&api, rpc, message.clone(), wait).await;
            assert_eq!(answered, !is_its, "{rpc:?} beside {costly:?}");
            drop(taken);
        }
        assert!(is_answered(&api, rpc, message, LONG).await, "{rpc:?}");
        rows.push(rpc.limits);
    }
    for costly in [Costly::LargeReads, Costly::Hashes, Costly::Backups] {
        assert!(rows.contains(&CallLimits::Turns(costly)), "{costly:?}");
    }
}
