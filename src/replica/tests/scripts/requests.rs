//! Requests of a scenario, and what becomes of them.

use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;

use super::Player;
use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use crate::proto::etchedpeer::{
    Forwarded, MemberChange, Nothing, forwarded, member_change::Change,
};
use crate::proto::membershippb::RaftAttributes;
use crate::replica::proposal::{Proposal, Proposed, Reply};
use crate::state::Response;
use crate::types::MemberId;

/// A caller that waits for a reply.
struct WaitingCaller {
    name: String,
    outcomes: Arc<Mutex<String>>,
}

impl WaitingCaller {
    fn record(&self, outcome: &str) {
        let outcome = format!("{} {outcome}\n", self.name);
        self.outcomes.lock().push_str(&outcome);
    }

    fn refused(self, error: &Error) {
        self.record(&format!("is refused: {error}"));
        std::mem::forget(self);
    }

    fn answered(self, how: &str) {
        self.record(&format!("is answered{how}"));
        std::mem::forget(self);
    }
}

impl Drop for WaitingCaller {
    fn drop(&mut self) {
        self.record("is never answered");
    }
}

impl Player {
    /// The waiting caller, and the id of its request.
    fn asked(&mut self, name: &str) -> (WaitingCaller, u64) {
        self.requests += 1;
        self.names.insert(self.requests, name.to_owned());
        let asked = WaitingCaller {
            name: name.to_owned(),
            outcomes: self.outcomes.clone(),
        };
        (asked, self.requests)
    }

    fn propose(&mut self, id: u64, what: Proposed, fence_term: Option<u64>, asked: WaitingCaller) {
        let reply: Reply = Box::new(move |result| match result {
            Ok(Response::Put(put)) => {
                let revision = put.header.expect("a header").revision;
                asked.answered(&format!(": revision {revision}"));
            }
            Ok(_) => asked.answered(""),
            Err(error) => asked.refused(&error),
        });
        self.router(id).propose(Proposal {
            what,
            fence_term,
            awaited_until: None,
            span: tracing::Span::none(),
            reply,
        });
    }

    /// A put as a member would forward it, in the term of the one who gets it.
    pub(super) fn unlisted_peer(&mut self, from: u64, to: u64, key: &str) {
        let (_, request_id) = self.asked(&format!("put {key}"));
        let request = InternalRaftRequest {
            put: Some(PutRequest {
                key: key.to_owned().into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let message = Forwarded {
            request_id,
            term: self.router(to).status().term,
            proposal: Some(forwarded::Proposal::Request(request.encode_to_vec().into())),
            ..Default::default()
        };
        self.router(to).propose_for(MemberId(from), message);
        self.work(to);
    }

    pub(super) fn put(&mut self, id: u64, key: &str, fence_term: Option<u64>) {
        let (asked, request) = self.asked(&format!("put {key}"));
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: request,
                ..Default::default()
            }),
            put: Some(PutRequest {
                key: key.to_owned().into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let encoded = request.encode_to_vec();
        let what = Proposed::Request(Arc::new(request), encoded);
        self.propose(id, what, fence_term, asked);
    }

    pub(super) fn change(&mut self, id: u64, kind: &str, member: u64) {
        let (asked, request_id) = self.asked(&format!("{kind} {member}"));
        let add = |is_learner| {
            Change::Add(RaftAttributes {
                peer_urls: vec![format!("http://{member}:2380")],
                is_learner,
            })
        };
        let change = match kind {
            "add" => add(false),
            "add-learner" => add(true),
            "promote" => Change::Promote(Nothing {}),
            "remove" => Change::Remove(Nothing {}),
            other => panic!("no change of membership is called {other}"),
        };
        let change = MemberChange {
            member_id: member,
            change: Some(change),
            max_learners: 1,
            request_id,
        };
        self.propose(id, Proposed::Member(Arc::new(change)), None, asked);
    }

    pub(super) fn read(&mut self, id: u64, name: &str) {
        let (asked, _) = self.asked(name);
        self.router(id)
            .read_index(Box::new(move |result| match result {
                Ok(()) => asked.answered(""),
                Err(error) => asked.refused(&error),
            }));
    }
}
