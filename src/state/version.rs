//! The cluster version, and the target of a downgrade.

use prost::Message;

use crate::proto::membershippb::{ClusterVersionSetRequest, DowngradeInfoSetRequest};
use crate::storage::schema::meta;
use crate::storage::{self, Batch, Family, Read};

/// Both versions as text, such as `3.7.0`.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Versions {
    cluster: Option<String>,
    downgrade_target: Option<String>,
}

impl Versions {
    pub fn load(read: &dyn Read) -> storage::Result<Self> {
        let cluster = read
            .get(Family::Meta, meta::CLUSTER_VERSION)?
            .map(|value| String::from_utf8_lossy(&value).into_owned());
        let downgrade_target = match read.get(Family::Meta, meta::DOWNGRADE)? {
            Some(value) => {
                let stored = DowngradeInfoSetRequest::decode(value.as_ref()).map_err(|_| {
                    storage::Error::Damaged {
                        family: Family::Meta,
                        key: meta::DOWNGRADE.to_vec(),
                        reason: "it is no downgrade",
                    }
                })?;
                Some(stored.ver)
            }
            None => None,
        };
        Ok(Self {
            cluster,
            downgrade_target,
        })
    }

    /// The cluster version; none before it is set.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The target version of a downgrade that was begun.
    pub fn downgrade_target(&self) -> Option<&str> {
        self.downgrade_target.as_deref()
    }

    pub fn set_cluster(&mut self, request: ClusterVersionSetRequest, batch: &mut Batch) {
        batch.put(Family::Meta, meta::CLUSTER_VERSION, request.ver.as_bytes());
        self.cluster = Some(request.ver);
    }

    /// Begins or cancels a downgrade.
    pub fn set_downgrade(&mut self, request: DowngradeInfoSetRequest, batch: &mut Batch) {
        if request.enabled {
            batch.put(Family::Meta, meta::DOWNGRADE, &request.encode_to_vec());
            self.downgrade_target = Some(request.ver);
        } else {
            batch.delete(Family::Meta, meta::DOWNGRADE);
            self.downgrade_target = None;
        }
    }
}
