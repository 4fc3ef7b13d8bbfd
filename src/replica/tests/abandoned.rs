//! Proposals whose callers have given up, in a member without a leader; and the events that a
//! proposal's span receives.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, RequestHeader};
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::raft::Replica;
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::replica::proposal::{Proposal, Proposed};
use crate::replica::router::Router;
use crate::storage::raft_log::{self, EntryId, Files, MemoryDisk, RaftLog};
use crate::types::MemberId;

const FIRST: EntryId = EntryId { index: 1, term: 1 };

/// The only voter of a cluster, which does not lead yet; and its log, which it reads.
fn sole_voter() -> (Router, RaftLog) {
    let files: Arc<dyn Files> = Arc::new(MemoryDisk::new());
    let options = raft_log::LogOptions {
        segment_bytes: 64 << 10,
        cluster_id: 1,
        member_id: 1,
        sync: true,
    };
    let mut log = RaftLog::create(files, options).expect("a new log");
    let hard_state = encode_hard_state(FIRST.term, FIRST.index);
    log.reset(FIRST, Some(&hard_state)).expect("resets");
    let options = replica::ReplicaOptions {
        member: MemberId(1),
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        election_seed: 1,
        recent_entries: crate::raft::log::RECENT_ENTRIES,
    };
    let restored = replica::InitialState {
        reader: log.reader(),
        hard_state: Some(hard_state.into()),
        conf_state: conf_state_of([MemberId(1)].into_iter(), std::iter::empty()),
        applied_index: FIRST.index,
    };
    let replica = Replica::new(options, restored).expect("a replica");
    (Router::new(MemberId(1), replica, 1, 70), log)
}

fn request(id: u64) -> Arc<InternalRaftRequest> {
    Arc::new(InternalRaftRequest {
        header: Some(RequestHeader {
            id,
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn propose(router: &mut Router, request: Arc<InternalRaftRequest>, until: Option<Duration>) {
    let encoded = request.encode_to_vec();
    router.propose(Proposal {
        what: Proposed::Request(request, encoded),
        fence_term: None,
        awaited_until: until,
        span: tracing::Span::none(),
        reply: Box::new(|_: Result<_, Error>| {}),
    });
}

#[test]
fn what_nobody_waits_for_is_not_proposed_to_a_leader_that_comes_later() {
    let (mut router, _log) = sole_voter();
    let until = Some(Duration::from_secs(7));
    let (left, stays) = (request(1), request(2));
    propose(&mut router, left.clone(), until);
    propose(&mut router, stays.clone(), until);
    // Proposed without a caller that waits.
    propose(&mut router, request(3), None);
    assert_eq!(router.waiting().without_leader, 3);
    drop(left);
    router.campaign().expect("it may lead");
    assert!(router.work().is_some());
    let waiting = router.waiting();
    assert_eq!((waiting.without_leader, waiting.proposed), (0, 2));
    // Nor if there is a leader already.
    propose(&mut router, request(4), until);
    assert_eq!(router.waiting().proposed, 2);
    propose(&mut router, stays.clone(), until);
    assert_eq!(router.waiting().proposed, 3);
}

#[test]
fn a_change_of_membership_that_nobody_waits_for_is_not_proposed_later() {
    let (mut router, _log) = sole_voter();
    let [left, stays] = [7, 8].map(|member_id| {
        Arc::new(MemberChange {
            member_id,
            change: Some(Change::Add(RaftAttributes::default())),
            ..Default::default()
        })
    });
    for change in [&left, &stays] {
        router.propose(Proposal {
            what: Proposed::Member(change.clone()),
            fence_term: None,
            awaited_until: Some(Duration::from_secs(7)),
            span: tracing::Span::none(),
            reply: Box::new(|_: Result<_, Error>| {}),
        });
    }
    assert_eq!(router.waiting().without_leader, 2);
    drop(left);
    router.campaign().expect("it may lead");
    assert!(router.work().is_some());
    let waiting = router.waiting();
    assert_eq!((waiting.without_leader, waiting.proposed), (0, 1));
}

/// Records the texts of all events in a span.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Heard {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        struct Text<'a>(&'a mut Vec<String>);
        impl Visit for Text<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.push(format!("{value:?}"));
                }
            }
        }
        if context.event_span(event).is_some() {
            event.record(&mut Text(&mut self.0.lock()));
        }
    }
}

#[test]
fn a_span_follows_a_proposal_until_it_is_committed() {
    let heard = Heard::default();
    let listening = tracing_subscriber::registry().with(heard.clone());
    tracing::subscriber::with_default(listening, || {
        let (mut router, mut log) = sole_voter();
        router.campaign().expect("it may lead");
        let request = request(1);
        let encoded = request.encode_to_vec();
        router.propose(Proposal {
            what: Proposed::Request(request, encoded),
            fence_term: None,
            awaited_until: None,
            span: tracing::debug_span!("call"),
            reply: Box::new(|_: Result<_, Error>| {}),
        });
        while let Some(work) = router.work() {
            if let Some(persist) = work.persist {
                let batch = raft_log::Batch {
                    hard_state: persist.hard_state.as_deref(),
                    entries: &persist.entries,
                };
                log.append(batch).expect("appends");
                router.persisted(persist.number);
            }
        }
    });
    assert_eq!(*heard.0.lock(), ["proposed", "committed"]);
}
