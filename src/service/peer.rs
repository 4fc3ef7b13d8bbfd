//! Requests of other members: messages go to the raft thread, received states to the state store,
//! peer RPCs to the handle.

use std::sync::Arc;
use std::time::Duration;

use super::caller::Caller;
use super::handle::Handle;
use crate::env;
use crate::error::Error;
use crate::failpoints::{self, Failpoint};
use crate::probe;
use crate::proto::etcdserverpb::{
    LeaseKeepAliveResponse, LeaseTimeToLiveResponse, MemberPromoteResponse,
};
use crate::proto::etchedpeer::{
    Description, PeerRequest, PeerResponse, peer_request, peer_response,
};
use crate::raft::{Message, MessageType};
use crate::replica::inbox::{Inbox, Input};
use crate::replica::proposal::is_applicable;
use crate::replica::shared::Shared;
use crate::replica::state_store::SnapshotStore;
use crate::storage::raft_log::EntryId;
use crate::storage::schema::{FORMAT_VERSION, FORMAT_WITH_USERS};
use crate::transport::{Boxed, Inbound, PeerMessage, SnapshotDir};
use crate::types::{ETCD_VERSION, LeaseId, MemberId};

/// See the module.
pub struct PeerService {
    handle: Handle,
    inbox: Arc<Inbox>,
    states: Arc<dyn SnapshotStore>,
}

impl PeerService {
    pub fn new(handle: Handle, inbox: Arc<Inbox>, states: Arc<dyn SnapshotStore>) -> Self {
        Self {
            handle,
            inbox,
            states,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.handle.shared()
    }
}

/// The description of this member, for one that wants to join or to know its version.
fn describe(shared: &Shared) -> Description {
    let status = shared.status();
    Description {
        cluster_id: shared.cluster.0,
        member_id: shared.member.0,
        members: status.members.clone(),
        removed_member_ids: status.removed.iter().map(|id| id.0).collect(),
        server_version: ETCD_VERSION.to_owned(),
        cluster_version: status.cluster_version.clone().unwrap_or_default(),
        data_format: FORMAT_VERSION,
    }
}

async fn answer(
    handle: Handle,
    caller: &Caller,
    request: PeerRequest,
) -> Result<PeerResponse, Error> {
    use peer_request::Request as Kind;
    let answer = match request.request.ok_or(Error::UnknownMethod)? {
        Kind::Describe(_) => peer_response::Response::Description(describe(handle.shared())),
        Kind::RenewLease(request) => {
            let executor = handle.shared().executor.as_ref();
            failpoints::hit_in_task(executor, Failpoint::BeforeServeHttpLeaseRenew);
            let ttl = handle.renew_lease_here(caller, LeaseId(request.id)).await?;
            peer_response::Response::LeaseRenewed(LeaseKeepAliveResponse {
                id: request.id,
                ttl,
                ..Default::default()
            })
        }
        Kind::LeaseTimeToLive(request) => {
            let id = LeaseId(request.id);
            let lookup = Failpoint::BeforeLookupWhenForwardLeaseTimeToLive;
            let left = handle.lease_left_here(caller, id, request.keys, lookup);
            let left = left.await?.unwrap_or_else(|| LeaseTimeToLiveResponse {
                id: id.0,
                ttl: -1,
                ..Default::default()
            });
            peer_response::Response::LeaseTimeToLive(left)
        }
        Kind::Promote(request) => {
            let members = handle.promote_here(caller, MemberId(request.id)).await?;
            peer_response::Response::Promoted(MemberPromoteResponse {
                members: members.iter().map(super::membership::shown).collect(),
                ..Default::default()
            })
        }
        Kind::HashKv(request) => {
            peer_response::Response::HashKv(handle.hash_history(caller, request.revision).await?)
        }
        Kind::Downgrade(request) => {
            peer_response::Response::Downgrade(handle.downgrade(caller, request).await?)
        }
    };
    Ok(PeerResponse {
        response: Some(answer),
    })
}

/// The index of an entry in the message that no member could apply.
fn unreadable_entry(message: &PeerMessage) -> Option<u64> {
    let PeerMessage::Raft(message) = message else {
        return None;
    };
    let append = message.msg_type() == MessageType::MsgAppend;
    let mut entries = message.entries.iter().filter(|_| append);
    entries
        .find(|entry| !is_applicable(entry))
        .map(|entry| entry.index)
}

impl Inbound for PeerService {
    fn received(&self, from: MemberId, messages: Vec<PeerMessage>) {
        if let Some(index) = messages.iter().find_map(unreadable_entry) {
            if !self.shared().status().is_member(from) {
                tracing::warn!(%from, index, "dropped an unreadable entry of a caller that is no member");
                return;
            }
            // Once it is in the log, this member could never start again.
            self.shared().fail(format!(
                "{from} sent entry {index}, which this etched cannot read; nothing of it was written: start the version of etched that {from} runs"
            ));
            return;
        }
        // The sender repeats or drops what a full or closed inbox refuses.
        let _ = self.inbox.push(Input::Received(from, messages));
    }

    fn unreachable(&self, peer: MemberId) {
        let _ = self.inbox.push(Input::Unreachable(peer));
    }

    fn snapshot_sent(&self, to: MemberId, taken: bool) {
        let _ = self.inbox.push(Input::SnapshotSent(to, taken));
    }

    fn snapshot_received(&self, message: Message, files: SnapshotDir) -> Boxed<Result<(), Error>> {
        let metadata = message.get_snapshot().get_metadata();
        let entry_id = EntryId {
            index: metadata.index,
            term: metadata.term,
        };
        let (states, inbox) = (self.states.clone(), self.inbox.clone());
        let shared = self.shared().clone();
        Box::pin(async move {
            if entry_id.index <= shared.raft.applied_index() {
                // The leader missed the acknowledgement of the first transfer. It needs this
                // member's progress, or it would send the same state for ever.
                probe::reached(probe::CoveragePoint::SnapshotUnwanted);
                return inbox
                    .push(Input::SnapshotDeclined(message))
                    .map_err(|_| Error::Stopped);
            }
            let executor = shared.executor.clone();
            let receiving =
                env::blocking(executor.as_ref(), move || states.receive(files, entry_id));
            let received = match receiving.await {
                Ok(Ok(received)) => received,
                Ok(Err(reason)) => {
                    tracing::warn!(index = entry_id.index, error = %reason, "a received state cannot be used");
                    return Err(Error::Corrupt);
                }
                Err(_) => return Err(Error::Stopped),
            };
            inbox
                .push(Input::SnapshotReceived(message, received))
                .map_err(|_| Error::Stopped)
        })
    }

    fn asked(
        &self,
        from: Option<MemberId>,
        request: PeerRequest,
        limit: Option<Duration>,
    ) -> Boxed<Result<PeerResponse, Error>> {
        let is_open = matches!(
            request.request,
            Some(peer_request::Request::Describe(_)) | None
        );
        let is_member = |from| self.shared().status().is_member(from);
        if !is_open && !from.is_some_and(is_member) {
            // It may be one that this member has not heard of yet.
            return Box::pin(std::future::ready(Err(Error::Unhealthy)));
        }
        let handle = self.handle.clone();
        let now = handle.shared().clock.now();
        // The member that the client called has checked its permission.
        let caller = Caller::of_peer(limit.map(|limit| now.saturating_add(limit)));
        Box::pin(async move {
            match answer(handle, &caller, request).await {
                // That of the member that asked, not of its client.
                Err(Error::DeadlineExceeded) => Err(Error::Timeout),
                answered => answered,
            }
        })
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.shared().status().is_removed(member)
    }

    fn needed_format(&self) -> u64 {
        match self.handle.auth().was_changed() {
            true => FORMAT_WITH_USERS,
            false => 0,
        }
    }

    /// A member that has received no state yet believes those that it joins by.
    fn removed(&self, by: MemberId) {
        let status = self.shared().status();
        match status.is_member(by) || status.members.is_empty() {
            true => self.shared().note_removed(),
            false => {
                tracing::warn!(%by, "a caller that is no member said that this member was removed; ignored");
            }
        }
    }

    fn is_listed(&self, member: MemberId) -> bool {
        self.shared().status().is_member(member)
    }

    fn is_leader(&self, member: MemberId) -> bool {
        self.shared().raft.leader() == member.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::raft::{Snapshot, SnapshotMetadata};
    use crate::replica::state_store::{Checkpoint, Received};
    use crate::service::fixture;
    use crate::storage::{self, Engine};

    /// Ignores what it receives.
    struct NoSnapshotStore;

    impl SnapshotStore for NoSnapshotStore {
        fn checkpoint(&self, _: &dyn Engine) -> storage::Result<Checkpoint> {
            Err(storage::Error::Engine("no states".to_owned()))
        }

        fn receive(&self, _: SnapshotDir, _: EntryId) -> Result<Received, String> {
            Err("this state is already in use".to_owned())
        }

        fn adopt(&self, _: Received) -> storage::Result<Arc<dyn Engine>> {
            Err(storage::Error::Engine("no states".to_owned()))
        }

        fn require_format(&self, _: u64) -> storage::Result<()> {
            Err(storage::Error::Engine("no states".to_owned()))
        }
    }

    /// A leader whose state arrived and whose response was lost sends it again; it needs this
    /// member's progress, or it would do so for ever.
    #[tokio::test]
    async fn a_state_that_is_here_is_declined_and_not_refused() {
        let (handle, inbox) = fixture::with_network(Arc::new(crate::transport::NoNetwork));
        handle.shared().raft.set_applied_index(9);
        let service = PeerService::new(handle, inbox.clone(), Arc::new(NoSnapshotStore));
        let snapshot = |index| Message {
            snapshot: Some(Snapshot {
                metadata: Some(SnapshotMetadata {
                    index,
                    term: 2,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let files = || SnapshotDir::of("nowhere".into(), Box::new(|_| {}));
        assert_eq!(
            service.snapshot_received(snapshot(9), files()).await,
            Ok(())
        );
        let mut inputs = Vec::new();
        inbox.take(Duration::ZERO, &mut inputs);
        assert!(matches!(inputs[..], [Input::SnapshotDeclined(_)]));
        let refused = service.snapshot_received(snapshot(10), files()).await;
        assert_eq!(refused, Err(Error::Corrupt));
    }

    /// Written, it would end every start of this member.
    #[tokio::test]
    async fn an_entry_that_cannot_be_read_stops_the_member_before_it_is_written() {
        let (handle, inbox) = fixture::with_network(Arc::new(crate::transport::NoNetwork));
        let shared = handle.shared().clone();
        fixture::set_members(&handle, &[(MemberId(2), false)]);
        let service = PeerService::new(handle, inbox.clone(), Arc::new(NoSnapshotStore));
        let append = |data: &[u8]| {
            let entry = crate::raft::Entry {
                index: 5,
                data: data.to_vec(),
                ..Default::default()
            };
            let mut message = Message {
                entries: vec![entry],
                ..Default::default()
            };
            message.set_msg_type(MessageType::MsgAppend);
            vec![PeerMessage::Raft(message)]
        };
        let mut inputs = Vec::new();
        service.received(MemberId(2), append(b""));
        inbox.take(Duration::ZERO, &mut inputs);
        assert!(matches!(inputs[..], [Input::Received(..)]));
        inputs.clear();
        service.received(MemberId(3), append(b"\x22\x05junk"));
        let ended = tokio::time::timeout(Duration::from_millis(10), shared.failed());
        assert!(ended.await.is_err(), "a caller that is no member ended it");
        service.received(MemberId(2), append(b"\x22\x05junk"));
        let reason = shared.failed().await;
        assert!(reason.contains("sent entry 5"), "{reason}");
        inputs.clear();
        inbox.take(Duration::ZERO, &mut inputs);
        assert!(inputs.is_empty());
    }

    /// The leader of it is another, which never confirms that this one may read.
    #[tokio::test]
    async fn a_member_is_worked_for_as_long_as_it_waits() {
        let other = MemberId(9);
        let clock = Arc::new(env::SystemClock::new());
        let (handle, inbox) = fixture::with_clock(Arc::new(crate::transport::NoNetwork), clock);
        fixture::set_members(&handle, &[(fixture::ME, false), (other, false)]);
        fixture::set_leader(&handle, other);
        let service = PeerService::new(handle, inbox, Arc::new(NoSnapshotStore));
        let renew = peer_request::Request::RenewLease(Default::default());
        let request = PeerRequest {
            request: Some(renew),
        };
        let limit = Duration::from_millis(5);
        let asked = service.asked(Some(other), request, Some(limit));
        let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
        assert_eq!(answered.expect("in time").err(), Some(Error::Timeout));
    }

    /// A caller that is no member gets the list of members, and nothing else.
    #[tokio::test]
    async fn unlisted_peers_learn_the_members_and_nothing_else() {
        let (handle, inbox) = fixture::with_network(Arc::new(crate::transport::NoNetwork));
        let service = PeerService::new(handle, inbox, Arc::new(NoSnapshotStore));
        let hash = peer_request::Request::HashKv(Default::default());
        let describe = peer_request::Request::Describe(Default::default());
        for from in [None, Some(MemberId(9))] {
            let ask = |request: &peer_request::Request| {
                let request = Some(request.clone());
                service.asked(from, PeerRequest { request }, None)
            };
            assert_eq!(ask(&hash).await.err(), Some(Error::Unhealthy));
            assert!(ask(&describe).await.is_ok());
        }
    }
}
