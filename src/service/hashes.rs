//! Hashes of the history, which compare members and whole clusters.

use super::caller::Caller;
use super::handle::Handle;
use crate::error::Error;
use crate::mvcc::hash::HistoryHash;
use crate::proto::etcdserverpb::{HashKvResponse, ResponseHeader};

impl Handle {
    /// Hashes the history up to a revision, 0 for the newest; also returns the newest revision.
    pub async fn hash_at(
        &self,
        caller: &Caller,
        revision: i64,
    ) -> Result<(HistoryHash, i64), Error> {
        let view = self.view();
        let head = view.head;
        if let Some(hash) = self.shared().kept_hash(revision) {
            return Ok((hash, head));
        }
        let turn = self.hashing().acquire_owned();
        let Ok(permit) = self.within(caller, turn).await? else {
            return Err(Error::Stopped);
        };
        let hashed = self.blocking(move || {
            let _permit = permit;
            view.snapshot().hash(revision)
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok((hash, head)),
            Ok(Err(error)) => Err(self.refusal(error)),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// The hash as a response for other members and clients.
    pub async fn hash_history(
        &self,
        caller: &Caller,
        revision: i64,
    ) -> Result<HashKvResponse, Error> {
        let (hash, head) = self.hash_at(caller, revision).await?;
        let shared = self.shared();
        Ok(HashKvResponse {
            header: Some(ResponseHeader {
                cluster_id: shared.cluster.0,
                member_id: shared.member.0,
                revision: head,
                raft_term: shared.raft.term(),
            }),
            hash: hash.hash,
            compact_revision: hash.compacted,
            hash_revision: hash.revision,
        })
    }
}
