//! Downgrades requested by an operator. etched has one storage format, so what is replicated is
//! what etcd would show: the target version, to which the leader's version job then lowers the
//! cluster version.

use super::caller::Caller;
use super::handle::Handle;
use crate::error::Error;
use crate::proto::etcdserverpb::downgrade_request::DowngradeAction;
use crate::proto::etcdserverpb::{DowngradeRequest, DowngradeResponse, InternalRaftRequest};
use crate::proto::membershippb::DowngradeInfoSetRequest;
use crate::types::version::{Version, short};

impl Handle {
    /// Validates, starts or cancels a downgrade. The response has no header yet.
    pub async fn downgrade(
        &self,
        caller: &Caller,
        request: DowngradeRequest,
    ) -> Result<DowngradeResponse, Error> {
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => {
                self.check_downgrade(caller, &request.version).await?;
            }
            Ok(DowngradeAction::Enable) => self.begin_downgrade(caller, &request.version).await?,
            Ok(DowngradeAction::Cancel) => {
                // As in etcd, the client gets no error.
                if let Err(error) = self.end_downgrade(caller).await {
                    tracing::warn!(%error, "failed to cancel downgrade");
                }
            }
            Err(_) => return Err(Error::UnknownMethod),
        }
        let status = self.shared().status();
        let version = status.cluster_version.as_deref();
        Ok(DowngradeResponse {
            version: short(version.ok_or(Error::ClusterVersionUnavailable)?),
            ..Default::default()
        })
    }

    /// The requested version, if a downgrade to it may start.
    async fn check_downgrade(&self, caller: &Caller, target: &str) -> Result<Version, Error> {
        let target = Version::parse_target(target).ok_or(Error::WrongDowngradeFormat)?;
        if self.shared().status().cluster_version.is_none() {
            return Err(Error::ClusterVersionUnavailable);
        }
        // The decision must not use stale data.
        self.linearizable_view(caller).await?;
        let status = self.shared().status();
        let cluster = status.cluster_version.as_deref().and_then(Version::parse);
        let cluster = cluster.ok_or(Error::ClusterVersionUnavailable)?;
        if target != cluster.one_below() {
            return Err(Error::InvalidDowngradeTarget);
        }
        if status.downgrade_target.is_some() {
            return Err(Error::DowngradeInProgress);
        }
        Ok(target)
    }

    async fn begin_downgrade(&self, caller: &Caller, target: &str) -> Result<(), Error> {
        let checked = self.check_downgrade(caller, target).await;
        let target = checked
            .inspect_err(|error| tracing::warn!(%error, target, "reject downgrade request"))?;
        self.set_downgrade(caller, true, target.to_string()).await
    }

    async fn end_downgrade(&self, caller: &Caller) -> Result<(), Error> {
        self.linearizable_view(caller).await?;
        if self.shared().status().downgrade_target.is_none() {
            return Err(Error::NoDowngrade);
        }
        self.set_downgrade(caller, false, String::new()).await
    }

    async fn set_downgrade(
        &self,
        caller: &Caller,
        enabled: bool,
        target: String,
    ) -> Result<(), Error> {
        let set = DowngradeInfoSetRequest {
            enabled,
            ver: target,
        };
        let request = InternalRaftRequest {
            downgrade_info_set: Some(set),
            ..Default::default()
        };
        self.propose(caller, request).await.map(|_| ())
    }
}
