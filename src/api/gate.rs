//! What every call has to pass before its service sees it, in etcd's order: the cluster's version
//! is one that this server knows, this member is no learner, the client's version is a text, and
//! there is a leader where the client wants one. Then its caller is asked for what the
//! RPC needs at all; what its content needs is asked behind.
//!
//! A stream whose client wants a leader is cut once there has been none for three election
//! timeouts: to connect anew costs much more than to wait a little.

use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderName, Response};
use tokio::sync::watch;
use tonic::body::Body;

use super::caller;
use super::ending::{self, End};
use crate::error::Error;
use crate::metrics::CallKind;
use crate::replica::shared::Shared;
use crate::service::handle::Handle;
use crate::service::permission::{self, Asks, Needs};
use crate::service::rpcs::{self, Learner, RPCS, Rpc};
use crate::types::version::{LEAST, NEWEST, NEWEST_TEXT, Version};

// A name that is made once is not parsed anew at each call.
static CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");
static HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// Streams that need a leader are cut after so many election timeouts without one; etcd's figure.
const TIMEOUTS_WITHOUT_LEADER: u32 = 3;
/// One check per timeout, as in etcd, would cut up to a timeout later than another member does.
const CHECKS_PER_TIMEOUT: u32 = 10;

/// A range asked of a learner: it is allowed where it is serializable, and then has the rest of
/// the gate to pass. Only its service sees what it is.
#[derive(Clone, Copy, Debug)]
pub struct AskedOfLearner(Result<(), Error>);

impl AskedOfLearner {
    pub fn allows(self, serializable: bool) -> Result<(), Error> {
        match serializable {
            true => self.0,
            false => Err(Error::NotSupportedForLearner),
        }
    }
}

/// What the gate lets pass.
pub enum Passed {
    Call,
    /// See `AskedOfLearner`.
    Range(AskedOfLearner),
    /// A stream that needs a leader; see `RpcGate::cut`.
    NeedsLeader,
}

/// See the module.
#[derive(Clone)]
pub struct RpcGate {
    shared: Arc<Shared>,
    /// How often all streams that need a leader were cut.
    cuts: watch::Receiver<u64>,
}

impl RpcGate {
    /// Begins to check for a leader, until the runtime stops.
    pub fn new(handle: &Handle) -> Self {
        let (sender, cuts) = watch::channel(0);
        handle.spawn(check_for_leader(handle.clone(), sender));
        Self {
            shared: handle.shared().clone(),
            cuts,
        }
    }

    /// Whether a call may go to its service.
    pub fn pass(
        &self,
        method: usize,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Passed, Error> {
        let rpc = &RPCS[method];
        let status = self.shared.status();
        check_capability(status.cluster_version.as_deref())?;
        let learner = status.is_learner(self.shared.member);
        match rpc.learner {
            _ if !learner => {}
            Learner::Answers => {}
            Learner::Stale => {
                let rest = self.check_metadata(rpc, headers, extensions);
                return Ok(Passed::Range(AskedOfLearner(rest)));
            }
            Learner::Refuses => return Err(Error::NotSupportedForLearner),
        }
        self.check_metadata(rpc, headers, extensions)?;
        match rpc.is_unary() {
            false if wants_leader(headers) => Ok(Passed::NeedsLeader),
            _ => Ok(Passed::Call),
        }
    }

    fn check_metadata(
        &self,
        rpc: &Rpc,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<(), Error> {
        let version = headers.get(&CLIENT_API_VERSION);
        let version = version.map(|version| std::str::from_utf8(version.as_bytes()).ok());
        if version == Some(None) {
            return Err(Error::InvalidClientApiVersion);
        }
        let kind = match rpc.is_unary() {
            true => CallKind::Unary,
            false => CallKind::Stream,
        };
        self.shared.metrics.client_request(kind, version.flatten());
        if wants_leader(headers) && self.shared.raft.leader() == 0 {
            return Err(Error::NoLeader);
        }
        match rpc.needs {
            // The operation itself asks.
            Needs::Nothing | Needs::Content => Ok(()),
            // So does the state machine, which alone knows who has the role by then.
            Needs::Root if rpc.service == rpcs::AUTH => Ok(()),
            _ if !self.shared.is_auth_enabled() => Ok(()),
            needs => {
                let caller = caller::beside(extensions);
                let auth = &self.shared.view().auth;
                permission::check(auth, &caller, Asks::Call(needs))
            }
        }
    }

    /// Has a stream end once there has been no leader for too long.
    pub fn cut(&self, response: Response<Body>) -> Response<Body> {
        let mut cuts = self.cuts.clone();
        cuts.mark_unchanged();
        let cut = async move {
            if cuts.changed().await.is_err() {
                // The runtime is going down, and with it the stream.
                std::future::pending::<()>().await;
            }
            End::Status(Error::NoLeader.into())
        };
        ending::until(response, cut)
    }
}

fn wants_leader(headers: &HeaderMap) -> bool {
    headers
        .get(&HAS_LEADER)
        .is_some_and(|value| value == "true")
}

/// A cluster may have been taken to a version that this server does not know.
fn check_capability(cluster: Option<&str>) -> Result<(), Error> {
    let Some(version) = cluster else {
        return Ok(());
    };
    // Every call comes by here, so the usual text is not read anew.
    let known = version == NEWEST_TEXT
        || Version::parse(version).is_some_and(|v| (LEAST..=NEWEST).contains(&v));
    match known {
        true => Ok(()),
        false => Err(Error::NotCapable),
    }
}

async fn check_for_leader(handle: Handle, cuts: watch::Sender<u64>) {
    let election_timeout = handle.settings().election_timeout;
    let shared = handle.shared();
    loop {
        shared
            .clock
            .sleep(election_timeout / CHECKS_PER_TIMEOUT)
            .await;
        let since = shared
            .clock
            .now()
            .saturating_sub(shared.raft.leader_since());
        if shared.raft.leader() == 0 && since >= election_timeout * TIMEOUTS_WITHOUT_LEADER {
            cuts.send_modify(|count| *count += 1);
        }
        if cuts.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::BodyExt;
    use tonic::Status;

    use super::*;
    use crate::replica::cluster_status::ClusterStatus;
    use crate::service::fixture::{self, ME};
    use crate::types::MemberId;

    fn gate(handle: &Handle) -> (RpcGate, watch::Sender<u64>) {
        let (sender, cuts) = watch::channel(0);
        let shared = handle.shared().clone();
        (RpcGate { shared, cuts }, sender)
    }

    fn headers(text: &str) -> HeaderMap {
        let pairs = text
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        let parsed = pairs.map(|(name, value)| {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            let value = match value {
                "no-text" => b"\xff",
                value => value.as_bytes(),
            };
            (name, http::HeaderValue::from_bytes(value).expect("a value"))
        });
        parsed.collect()
    }

    /// What becomes of a call `service/method header=value ...`.
    fn pass(gate: &RpcGate, call: &str) -> Result<&'static str, Error> {
        let (method, rest) = call.split_once(' ').unwrap_or((call, ""));
        let number = crate::api::methods::find(&format!("/{method}")).expect("a method");
        Ok(
            match gate.pass(number, &headers(rest), &Extensions::new())? {
                Passed::Call => "call",
                Passed::NeedsLeader => "needs a leader",
                Passed::Range(asked) => match (asked.allows(true), asked.allows(false)) {
                    (Ok(()), Err(Error::NotSupportedForLearner)) => "serializable",
                    (Err(error), Err(Error::NotSupportedForLearner)) => return Err(error),
                    other => panic!("{other:?}"),
                },
            },
        )
    }

    #[test]
    fn learners_serve_little_and_nobody_serves_whom_only_a_leader_can() {
        let handle = fixture::single_member();
        let (gate, _cuts) = gate(&handle);
        let no_leader = Err(Error::NoLeader);
        let learner = Err(Error::NotSupportedForLearner);
        // The call, and what becomes of it: of a voter and a learner with a leader, and of both
        // without one.
        for (call, expected) in [
            (
                "etcdserverpb.KV/Range",
                [
                    Ok("call"),
                    Ok("serializable"),
                    Ok("call"),
                    Ok("serializable"),
                ],
            ),
            (
                "etcdserverpb.KV/Range hasleader=true",
                [Ok("call"), Ok("serializable"), no_leader, no_leader],
            ),
            (
                "etcdserverpb.KV/Range hasleader=True",
                [
                    Ok("call"),
                    Ok("serializable"),
                    Ok("call"),
                    Ok("serializable"),
                ],
            ),
            (
                "etcdserverpb.KV/Put",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            (
                "etcdserverpb.KV/RangeStream",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            (
                "etcdserverpb.Watch/Watch",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            (
                "etcdserverpb.Watch/Watch hasleader=true",
                [Ok("needs a leader"), learner, no_leader, learner],
            ),
            (
                "etcdserverpb.Lease/LeaseKeepAlive hasleader=true",
                [Ok("needs a leader"), learner, no_leader, learner],
            ),
            (
                "etcdserverpb.Cluster/MemberList",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            ("etcdserverpb.Maintenance/Status", [Ok("call"); 4]),
            (
                "etcdserverpb.Maintenance/Status hasleader=true",
                [Ok("call"), Ok("call"), no_leader, no_leader],
            ),
            ("etcdserverpb.Maintenance/Snapshot", [Ok("call"); 4]),
            (
                "etcdserverpb.Maintenance/HashKV",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            (
                "grpc.health.v1.Health/Check",
                [Ok("call"), learner, Ok("call"), learner],
            ),
            (
                "v3lockpb.Lock/Lock hasleader=true",
                [Ok("call"), learner, no_leader, learner],
            ),
            (
                "v3electionpb.Election/Observe hasleader=true",
                [Ok("needs a leader"), learner, no_leader, learner],
            ),
            (
                "etcdserverpb.KV/Put client-api-version=no-text",
                [
                    Err(Error::InvalidClientApiVersion),
                    learner,
                    Err(Error::InvalidClientApiVersion),
                    learner,
                ],
            ),
        ] {
            let states = [
                (ME, false),
                (ME, true),
                (MemberId(0), false),
                (MemberId(0), true),
            ];
            for ((leader, is_learner), expected) in states.into_iter().zip(expected) {
                fixture::set_leader(&handle, leader);
                fixture::set_members(&handle, &[(ME, is_learner)]);
                let passed = pass(&gate, call);
                assert_eq!(
                    passed, expected,
                    "{call}, leader {leader}, learner {is_learner}"
                );
            }
        }
    }

    #[test]
    fn a_cluster_of_an_unknown_version_is_not_served() {
        let handle = fixture::single_member();
        let (gate, _cuts) = gate(&handle);
        for (version, expected) in [
            (None, Ok("call")),
            (Some("3.0.0"), Ok("call")),
            (Some("3.7.0"), Ok("call")),
            (Some("3.8.0"), Err(Error::NotCapable)),
        ] {
            handle.shared().publish_status(ClusterStatus {
                cluster_version: version.map(str::to_owned),
                ..Default::default()
            });
            assert_eq!(pass(&gate, "etcdserverpb.KV/Put"), expected, "{version:?}");
        }
    }

    #[test]
    fn a_stream_is_cut_with_the_status_of_no_leader() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let handle = fixture::single_member();
            let (gate, cuts) = gate(&handle);
            let silent = http_body_util::StreamBody::new(tokio_stream::pending::<
                Result<Frame<Bytes>, Status>,
            >());
            // What was cut before this stream began is no matter of it.
            cuts.send_modify(|count| *count += 1);
            let mut body = gate.cut(Response::new(Body::new(silent))).into_body();
            let waits = tokio::time::timeout(Duration::from_millis(20), body.frame()).await;
            assert!(waits.is_err());
            cuts.send_modify(|count| *count += 1);
            let frame = body.frame().await.expect("a frame").expect("no error");
            let trailers = frame.into_trailers().expect("trailers");
            let status = Status::from_header_map(&trailers).expect("a status");
            assert_eq!(
                (status.code(), status.message()),
                (Error::NoLeader.code(), Error::NoLeader.text())
            );
            assert!(body.frame().await.is_none());
        });
    }
}
