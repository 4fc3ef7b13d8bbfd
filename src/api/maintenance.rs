//! Maintenance: how the member is, and what an operator does to it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::backup::Backup;
use super::body::beside;
use super::{caller, header, validate};
use crate::env;
use crate::error::Error;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, InternalRaftRequest, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest,
    SnapshotResponse, StatusRequest, StatusResponse, maintenance_server::Maintenance,
};
use crate::service::handle::Handle;
use crate::service::rpcs::{self, Costly};
use crate::state::Response as Applied;
use crate::types::{ETCD_VERSION, MemberId};

/// There is one.
const TURNS: Costly = rpcs::turns_of(rpcs::MAINTENANCE, "Defragment");
/// How long a defragmentation is waited for.
const DEFRAGMENT_WAIT: Duration = Duration::from_secs(3);

pub struct MaintenanceService {
    handle: Handle,
}

impl MaintenanceService {
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

/// An alarm in the words that etcd's status uses.
fn alarm_text(alarm: &AlarmMember) -> String {
    let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
    if alarm.member_id == 0 {
        return format!("alarm:{kind}");
    }
    format!("memberID:{} alarm:{kind}", alarm.member_id)
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        validate::alarm(&request)?;
        let request = InternalRaftRequest {
            alarm: Some(request),
            ..Default::default()
        };
        let Applied::Alarm(mut response) = self.handle.propose(&caller, request).await? else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let shared = self.handle.shared();
        shared.refresh_size();
        let raft = &shared.raft;
        let mut errors = Vec::new();
        if raft.leader() == 0 {
            errors.push(Error::NoLeader.text().to_owned());
        }
        let status = shared.status();
        errors.extend(status.alarms.iter().map(alarm_text));
        let quota = self.handle.settings().limits;
        let (committed, applied) = raft.indexes();
        Ok(Response::new(StatusResponse {
            header: Some(header::now(&self.handle)),
            version: ETCD_VERSION.to_owned(),
            db_size: shared.size_bytes.load(Ordering::Acquire).max(1),
            leader: raft.leader(),
            raft_index: committed,
            raft_term: raft.term(),
            raft_applied_index: applied,
            errors,
            db_size_in_use: shared.size_in_use_bytes.load(Ordering::Acquire).max(1),
            is_learner: status.is_learner(shared.member),
            storage_version: status.storage_version().to_owned(),
            db_size_quota: quota.quota_bytes.unwrap_or(-1),
            downgrade_info: Some(DowngradeInfo {
                enabled: status.downgrade_target.is_some(),
                target_version: status.downgrade_target.clone().unwrap_or_default(),
            }),
        }))
    }

    /// There is no standstill to have here: space is freed in the background. A compaction of
    /// the whole store is started, one at a time, and the answer waits for it a little: where it
    /// is done by then, the size that the quota is held against is the new one.
    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        let turns = self.handle.turns(TURNS).clone();
        let Ok(running) = turns.try_acquire_owned() else {
            return Ok(Response::new(DefragmentResponse::default()));
        };
        let shared = self.handle.shared().clone();
        let compaction = self.handle.blocking(move || {
            let _running = running;
            let (metrics, started) = (&shared.metrics, shared.clock.now());
            metrics.defrags_in_flight.set(1);
            let engine = shared.engine();
            let compacted = engine.flush().and_then(|()| engine.compact());
            if let Err(error) = compacted {
                shared.fail(error.to_string());
            }
            metrics.defrags_in_flight.set(0);
            let took = shared.clock.now() - started;
            metrics.backend_defrag.observe(took);
            shared.refresh_size();
        });
        // What takes longer continues in the background.
        let clock = self.handle.shared().clock.as_ref();
        let _ = env::timeout(clock, DEFRAGMENT_WAIT, compaction).await;
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let caller = caller::of(&request);
        let shared = self.handle.shared();
        let started = shared.clock.now();
        let (hash, head) = self.handle.hash_at(&caller, 0).await?;
        shared.metrics.hash.observe(shared.clock.now() - started);
        Ok(Response::new(HashResponse {
            header: Some(header::at(&self.handle, head)),
            hash: hash.hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let caller = caller::of(&request);
        let revision = request.into_inner().revision;
        let hash = self.handle.hash_history(&caller, revision).await?;
        Ok(Response::new(hash))
    }

    /// Its messages stand beside it.
    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let caller = caller::of(&request);
        let parts = self.handle.back_up(&caller).await?;
        Ok(beside(tokio_stream::empty(), Backup::new(parts)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let shared = self.handle.shared();
        if !shared.raft.is_leader() {
            return Err(Error::NotLeader.into());
        }
        let caller = caller::of(&request);
        let target = MemberId(request.into_inner().target_id);
        if !shared.status().voters().any(|voter| voter.id == target.0) {
            return Err(Error::BadLeaderTransferee.into());
        }
        let (own, started) = (shared.member, shared.clock.now());
        tracing::info!(
            "local-member-id" = %own,
            "current-leader-member-id" = %own,
            "transferee-member-id" = %target,
            "leadership transfer starting"
        );
        self.handle.move_leader(&caller, target).await?;
        tracing::info!(
            "local-member-id" = %own,
            "old-leader-member-id" = %own,
            "new-leader-member-id" = %target,
            took = ?(shared.clock.now() - started),
            "leadership transfer finished"
        );
        Ok(Response::new(MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let mut response = self.handle.downgrade(&caller, request).await?;
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }
}
