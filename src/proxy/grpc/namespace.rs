//! A prefix before every key of the proxy's clients: requests get it, answers lose it. Pure.
//!
//! As in etcd, Lock and Election are not among what is changed: their names are the cluster's.

use bytes::{Bytes, BytesMut};
use prost::{DecodeError, Message};
use tonic::Status;

use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use crate::proto::{
    EncodedKv, EncodedKvs, KeyValue, RANGE_KVS_TAG, RangeResponse, put_bytes_field,
};

const NO_KEY: &str = "etcdserver: key is not provided";

/// See the module.
#[derive(Clone, Debug)]
pub struct Namespace(Bytes);

/// Calls that have keys in them, or say which revisions are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compact,
    TimeToLive,
}

impl Keyed {
    pub fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/etcdserverpb.KV/Range" => Self::Range,
            "/etcdserverpb.KV/Put" => Self::Put,
            "/etcdserverpb.KV/DeleteRange" => Self::DeleteRange,
            "/etcdserverpb.KV/Txn" => Self::Txn,
            "/etcdserverpb.KV/Compact" => Self::Compact,
            "/etcdserverpb.Lease/LeaseTimeToLive" => Self::TimeToLive,
            _ => return None,
        })
    }
}

impl Namespace {
    pub fn new(prefix: &str) -> Self {
        Self(Bytes::copy_from_slice(prefix.as_bytes()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A range within the namespace. An end of a zero byte, which is every key from the first on,
    /// is the namespace's.
    pub fn range(&self, key: &[u8], end: &[u8]) -> (Bytes, Bytes) {
        let joined = |rest: &[u8]| Bytes::from([&self.0, rest].concat());
        let end = match end {
            [] => Bytes::new(),
            [0] => {
                let end = crate::storage::schema::prefix_end(&self.0);
                end.unwrap_or_else(|| vec![0]).into()
            }
            end => joined(end),
        };
        (joined(key), end)
    }

    /// A key without the prefix; one that lacks it stays as it is.
    pub fn stripped(&self, key: &Bytes) -> Bytes {
        match key.starts_with(&self.0) {
            true => key.slice(self.0.len()..),
            false => key.clone(),
        }
    }

    fn extend(&self, key: &mut Bytes, end: &mut Bytes) -> Result<(), Status> {
        if key.is_empty() {
            return Err(Status::invalid_argument(NO_KEY));
        }
        (*key, *end) = self.range(key, end);
        Ok(())
    }

    /// A request as a member gets it.
    ///
    /// # Errors
    /// It cannot be read, or names no key.
    pub fn request(&self, keyed: Keyed, message: &Bytes) -> Result<Vec<u8>, Status> {
        Ok(match keyed {
            Keyed::Range => self.changed(message, Self::range_request)?,
            Keyed::Put => self.changed(message, Self::put_request)?,
            Keyed::DeleteRange => self.changed(message, Self::delete_request)?,
            Keyed::Txn => self.changed(message, Self::txn_request)?,
            Keyed::Compact | Keyed::TimeToLive => message.to_vec(),
        })
    }

    fn changed<M: Message + Default>(
        &self,
        message: &Bytes,
        change: impl FnOnce(&Self, &mut M) -> Result<(), Status>,
    ) -> Result<Vec<u8>, Status> {
        let decoded = M::decode(message.clone());
        let mut decoded = decoded.map_err(|error| {
            Status::internal(format!("grpc: error unmarshalling request: {error}"))
        })?;
        change(self, &mut decoded)?;
        Ok(decoded.encode_to_vec())
    }

    fn range_request(&self, request: &mut RangeRequest) -> Result<(), Status> {
        self.extend(&mut request.key, &mut request.range_end)
    }

    fn put_request(&self, request: &mut PutRequest) -> Result<(), Status> {
        self.extend(&mut request.key, &mut Bytes::new())
    }

    fn delete_request(&self, request: &mut DeleteRangeRequest) -> Result<(), Status> {
        self.extend(&mut request.key, &mut request.range_end)
    }

    fn txn_request(&self, request: &mut TxnRequest) -> Result<(), Status> {
        for compare in &mut request.compare {
            (compare.key, compare.range_end) = self.range(&compare.key, &compare.range_end);
        }
        let operations = request.success.iter_mut().chain(&mut request.failure);
        for RequestOp { request } in operations {
            match request {
                Some(request_op::Request::RequestRange(range)) => self.range_request(range)?,
                Some(request_op::Request::RequestPut(put)) => self.put_request(put)?,
                Some(request_op::Request::RequestDeleteRange(delete)) => {
                    self.delete_request(delete)?
                }
                Some(request_op::Request::RequestTxn(txn)) => self.txn_request(txn)?,
                None => {}
            }
        }
        Ok(())
    }

    /// An answer as a client gets it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn answer(&self, keyed: Keyed, message: &Bytes) -> Result<Vec<u8>, DecodeError> {
        Ok(match keyed {
            Keyed::Range => {
                let mut answer = RangeResponse::decode(message.clone())?;
                self.range_answer(&mut answer)?;
                answer.encode_to_vec()
            }
            Keyed::Put => {
                let mut answer = PutResponse::decode(message.clone())?;
                self.pair(answer.prev_kv.as_mut())?;
                answer.encode_to_vec()
            }
            Keyed::DeleteRange => {
                let mut answer = DeleteRangeResponse::decode(message.clone())?;
                self.delete_answer(&mut answer)?;
                answer.encode_to_vec()
            }
            Keyed::Txn => {
                let mut answer = TxnResponse::decode(message.clone())?;
                self.txn_answer(&mut answer)?;
                answer.encode_to_vec()
            }
            Keyed::Compact => message.to_vec(),
            Keyed::TimeToLive => {
                let mut answer = LeaseTimeToLiveResponse::decode(message.clone())?;
                answer.keys.retain(|key| key.starts_with(&self.0));
                for key in &mut answer.keys {
                    *key = self.stripped(key);
                }
                answer.encode_to_vec()
            }
        })
    }

    fn pair(&self, pair: Option<&mut EncodedKv>) -> Result<(), DecodeError> {
        if let Some(pair) = pair {
            *pair = EncodedKv::from(&self.plain(pair.decoded()?));
        }
        Ok(())
    }

    /// A pair without the prefix.
    pub fn plain(&self, mut pair: KeyValue) -> KeyValue {
        pair.key = self.stripped(&pair.key);
        pair
    }

    fn range_answer(&self, answer: &mut RangeResponse) -> Result<(), DecodeError> {
        let pairs = answer.kvs.decoded()?;
        let mut frames = BytesMut::with_capacity(answer.kvs.size_bytes());
        let len = pairs.len();
        for pair in pairs {
            let pair = self.plain(pair).encode_to_vec();
            put_bytes_field(&mut frames, RANGE_KVS_TAG, &pair);
        }
        answer.kvs = EncodedKvs::from_chunks(vec![frames.freeze()], len);
        Ok(())
    }

    fn delete_answer(&self, answer: &mut DeleteRangeResponse) -> Result<(), DecodeError> {
        for pair in &mut answer.prev_kvs {
            self.pair(Some(pair))?;
        }
        Ok(())
    }

    fn txn_answer(&self, answer: &mut TxnResponse) -> Result<(), DecodeError> {
        use response_op::Response;
        for ResponseOp { response } in &mut answer.responses {
            match response {
                Some(Response::ResponseRange(range)) => self.range_answer(range)?,
                Some(Response::ResponsePut(put)) => self.pair(put.prev_kv.as_mut())?,
                Some(Response::ResponseDeleteRange(delete)) => self.delete_answer(delete)?,
                Some(Response::ResponseTxn(txn)) => self.txn_answer(txn)?,
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_namespace() {
        let namespace = Namespace::new("a/");
        for (key, end, expected) in [
            ("k", "", ("a/k", "")),
            ("k", "l", ("a/k", "a/l")),
            ("k", "\0", ("a/k", "a0")),
            ("\0", "\0", ("a/\0", "a0")),
        ] {
            let found = namespace.range(key.as_bytes(), end.as_bytes());
            let expected = (Bytes::from(expected.0), Bytes::from(expected.1));
            assert_eq!(found, expected, "{key:?} {end:?}");
        }
        let highest = Namespace(Bytes::from_static(&[0xff, 0xff]));
        assert_eq!(highest.range(b"k", b"\0").1, Bytes::from_static(b"\0"));
    }

    #[test]
    fn a_transaction_is_changed_to_its_innermost_operation() {
        let namespace = Namespace::new("a/");
        let put = |key: &'static str| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            })),
        };
        let nested = |put: RequestOp| RequestOp {
            request: Some(request_op::Request::RequestTxn(TxnRequest {
                failure: vec![put],
                ..Default::default()
            })),
        };
        let txn = |key| TxnRequest {
            success: vec![nested(put(key))],
            ..Default::default()
        };
        let encoded = Bytes::from(txn("k").encode_to_vec());
        let changed = namespace.request(Keyed::Txn, &encoded).expect("changes");
        assert_eq!(changed, txn("a/k").encode_to_vec());
        let without = Bytes::from(txn("").encode_to_vec());
        let refused = namespace.request(Keyed::Txn, &without);
        assert_eq!(refused.expect_err("no key").message(), NO_KEY);
    }

    #[test]
    fn answers_lose_the_prefix() {
        let namespace = Namespace::new("a/");
        let pair = |key: &'static str| KeyValue {
            key: key.into(),
            value: "v".into(),
            ..Default::default()
        };
        let answer = |key| {
            let mut frames = BytesMut::new();
            put_bytes_field(&mut frames, RANGE_KVS_TAG, &pair(key).encode_to_vec());
            RangeResponse {
                kvs: EncodedKvs::from_chunks(vec![frames.freeze()], 1),
                count: 1,
                ..Default::default()
            }
        };
        let encoded = Bytes::from(answer("a/k").encode_to_vec());
        let changed = namespace.answer(Keyed::Range, &encoded).expect("changes");
        assert_eq!(changed, answer("k").encode_to_vec());
        let ttl = |keys: &[&'static str]| LeaseTimeToLiveResponse {
            keys: keys.iter().map(|key| Bytes::from(*key)).collect(),
            ..Default::default()
        };
        let encoded = Bytes::from(ttl(&["a/k", "b/k", "a"]).encode_to_vec());
        let changed = namespace
            .answer(Keyed::TimeToLive, &encoded)
            .expect("changes");
        assert_eq!(changed, ttl(&["k"]).encode_to_vec());
    }
}
