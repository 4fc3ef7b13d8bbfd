//! The log of calls: `request stats` with etcd's fields, at warn for a unary call that took
//! longer than `--warning-unary-request-duration`, and for every one at debug where debug lines
//! are wanted; and `apply request took too long` for reads, which no log entry stands for.
//!
//! Nothing of a line is built before it is known that it will be written.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::ApiSettings;
use super::answers::{RangeAnswer, TxnAnswer};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RequestOp,
    TxnRequest, TxnResponse,
};
use crate::proto::text;
use crate::replica::shared::Shared;
use crate::replica::slow_log::{self, Slow};
use crate::service::handle::Handle;
use crate::service::rpcs::{self, Rpc};
use crate::types::{Remote, timestamp};

/// See the module.
#[derive(Clone)]
pub struct CallLog {
    shared: Arc<Shared>,
    unary_limit: Duration,
    read_limit: Duration,
    remote: Option<Remote>,
}

/// What a call held; -1 for what is not counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub request_count: i64,
    pub request_size: i64,
    pub response_count: i64,
    pub response_size: i64,
    pub request: String,
}

impl CallLog {
    pub fn new(handle: &Handle, settings: &ApiSettings) -> Self {
        Self {
            shared: handle.shared().clone(),
            unary_limit: settings.warning_unary_request_duration,
            read_limit: settings.warning_apply_duration,
            remote: None,
        }
    }

    /// The same for calls of one client.
    pub fn of_client(&self, remote: Remote) -> Self {
        Self {
            remote: Some(remote),
            ..self.clone()
        }
    }

    pub fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    /// A unary call has ended that took so long.
    pub fn ended(
        &self,
        service: &str,
        method: &str,
        took: Duration,
        content: impl FnOnce() -> Content,
    ) {
        let debug = tracing::enabled!(tracing::Level::DEBUG);
        if !debug && took <= self.unary_limit {
            return;
        }
        let content = content();
        let remote = match self.remote {
            Some(remote) => remote.to_string(),
            None => "No remote client info.".to_owned(),
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    "start time" = timestamp(self.shared.clock.wall().saturating_sub(took)),
                    "time spent" = ?took,
                    remote,
                    "response type" = format!("/{service}/{method}"),
                    "request count" = content.request_count,
                    "request size" = content.request_size,
                    "response count" = content.response_count,
                    "response size" = content.response_size,
                    "request content" = content.request,
                    "request stats"
                )
            };
        }
        match debug {
            true => line!(debug),
            false => line!(warn),
        }
    }

    /// A range was read, or was not, which took so long.
    pub fn range_read(
        &self,
        took: Duration,
        request: &RangeRequest,
        result: &Result<RangeAnswer, Error>,
    ) {
        self.read(took, result, "read-only range ", |answer| {
            let request = text::range(request);
            let response = answer.map(|answer| {
                let (count, size) = (answer.pairs(), answer.size_bytes());
                format!("range_response_count:{count} size:{size}")
            });
            (request, response)
        });
    }

    /// The same for a transaction that changes nothing.
    pub fn txn_read(
        &self,
        took: Duration,
        request: &TxnRequest,
        result: &Result<TxnAnswer, Error>,
    ) {
        self.read(took, result, "read-only txn ", |answer| {
            let response = answer.map(|answer| {
                let count = |pairs| format!("range_response_count:{pairs}");
                let counts: Vec<_> = answer.pairs().map(count).collect();
                let size = answer.size_bytes();
                format!("responses:<{}> size:{size}", counts.join(" "))
            });
            (text::txn(request), response)
        });
    }

    fn read<T>(
        &self,
        took: Duration,
        result: &Result<T, Error>,
        prefix: &'static str,
        texts: impl FnOnce(Option<&T>) -> (String, Option<String>),
    ) {
        if took <= self.read_limit {
            return;
        }
        let (request, response) = texts(result.as_ref().ok());
        let slow = Slow {
            took,
            limit: self.read_limit,
            prefix,
            request,
            response: response.unwrap_or_default(),
            error: result.as_ref().err().copied(),
        };
        slow_log::warn(&self.shared.metrics, &slow);
    }
}

/// True where the service says what a call held: etcd looks into these requests alone.
pub fn is_logged_by_its_service(rpc: &Rpc) -> bool {
    rpc.service == rpcs::KV && matches!(rpc.method, "Range" | "Put" | "DeleteRange" | "Txn")
}

fn size_of(message: &impl Message) -> i64 {
    message.encoded_len() as i64
}

impl Content {
    /// Of a call that etcd does not look into.
    pub fn unknown() -> Self {
        Self {
            request_count: -1,
            request_size: -1,
            response_count: -1,
            response_size: -1,
            request: String::new(),
        }
    }

    pub fn range(request: &RangeRequest, answer: Option<&RangeAnswer>) -> Self {
        Self {
            request_count: 0,
            request_size: size_of(request),
            response_count: answer.map_or(0, |answer| answer.response.count),
            response_size: answer.map_or(0, |answer| answer.size_bytes() as i64),
            request: text::range(request),
        }
    }

    pub fn put(request: &PutRequest, response: Option<&PutResponse>) -> Self {
        Self {
            request_count: 1,
            request_size: size_of(request),
            response_count: 0,
            response_size: response.map_or(0, size_of),
            request: text::put(request),
        }
    }

    pub fn delete_range(
        request: &DeleteRangeRequest,
        response: Option<&DeleteRangeResponse>,
    ) -> Self {
        Self {
            request_count: 0,
            request_size: size_of(request),
            response_count: response.map_or(0, |response| response.deleted),
            response_size: response.map_or(0, size_of),
            request: text::delete_range(request),
        }
    }

    pub fn txn(request: &TxnRequest, response: Option<&TxnResponse>) -> Self {
        let succeeded = response.map(|response| response.succeeded);
        Self::of_txn(request, succeeded, response.map_or(0, size_of))
    }

    pub fn read_txn(request: &TxnRequest, answer: Option<&TxnAnswer>) -> Self {
        let succeeded = answer.map(|answer| answer.response.succeeded);
        let size = answer.map_or(0, |answer| answer.size_bytes() as i64);
        Self::of_txn(request, succeeded, size)
    }

    /// Counts the branch that was taken; of a transaction that failed nothing is known.
    fn of_txn(request: &TxnRequest, succeeded: Option<bool>, response_size: i64) -> Self {
        let taken: &[RequestOp] = match succeeded {
            Some(true) => &request.success,
            Some(false) => &request.failure,
            None => &[],
        };
        Self {
            request_count: taken.len() as i64,
            request_size: taken.iter().map(size_of).sum(),
            response_count: 0,
            response_size,
            request: succeeded.map_or(String::new(), |_| text::txn(request)),
        }
    }
}
