//! Hashes of the history, which compare members and whole clusters.

use super::caller::Caller;
use super::handle::Handle;
use super::rpcs::{self, Costly};
use crate::error::Error;
use crate::mvcc::hash::{HashError, HistoryHash};
use crate::proto::etcdserverpb::{HashKvResponse, ResponseHeader};

/// Each reads the whole history.
const TURNS: Costly = rpcs::turns_of(rpcs::MAINTENANCE, "HashKV");

impl Handle {
    /// Hashes the history up to a revision, 0 for the newest; also returns the newest revision.
    pub async fn hash_at(
        &self,
        caller: &Caller,
        revision: i64,
    ) -> Result<(HistoryHash, i64), Error> {
        let view = self.view();
        let head = view.head;
        let scratch_dir = self.settings().scratch_dir.clone();
        let turn = self.turns(TURNS).clone().acquire_owned();
        let Ok(permit) = self.within(caller, turn).await? else {
            return Err(Error::Stopped);
        };
        let hashed = self.blocking_within(caller, move || {
            let _permit = permit;
            view.pinned().hash(revision, &scratch_dir)
        });
        match hashed.await? {
            Ok(hash) => Ok((hash, head)),
            Err(HashError::Refused(error)) => Err(error),
            Err(HashError::Storage(error)) => Err(self.shared().fail_storage(error)),
            Err(error @ HashError::Sort(_)) => {
                tracing::warn!(%error, "cannot hash the history");
                Err(Error::HashFailed)
            }
        }
    }

    /// The hash as a response for other members and clients: that which a compaction to the revision
    /// kept, or one that is made now. A compaction to 0 keeps one of nothing, which etcd answers
    /// from then on who asks for the newest.
    pub async fn hash_history(
        &self,
        caller: &Caller,
        revision: i64,
    ) -> Result<HashKvResponse, Error> {
        let shared = self.shared();
        let started = shared.clock.now();
        let (hash, head) = match shared.kept_hash(revision) {
            Some(hash) => (hash, self.view().head),
            None => self.hash_at(caller, revision).await?,
        };
        let took = shared.clock.now() - started;
        shared.metrics.hash_history.observe(took);
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
