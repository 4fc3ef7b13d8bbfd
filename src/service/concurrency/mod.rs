//! Locks and elections: who made the oldest key below a name has its lock, or leads.
//!
//! Each call makes or finds the key of its lease below the name (`requests`), and waits until all
//! that were created before it are gone (`queues`, whose decisions are `queue`'s). There is no state
//! but those keys: clients that make them on their own, as clientv3 does, contend with these calls,
//! and a member that a call is lost with takes nothing along.
//!
//! Every step is done as its caller, whose permission is checked again after a wait. A call that
//! ends while it waits, or whose caller disconnects, deletes its key (`Candidate`); etcd leaves the key where
//! authentication is enabled, since it does that as nobody, and until the lease ends nobody gets
//! the lock.

mod queue;
mod queues;
mod requests;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::queue::Turn;
use self::queues::{WaitQueues, below};
use super::caller::Caller;
use super::handle::Handle;
use super::permission::{Asks, Needs};
use crate::budget::Held;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::KeyValue;
use crate::proto::etcdserverpb::{InternalRaftRequest, LeaseGrantRequest, TxnRequest, TxnResponse};
use crate::replica::view::ReadView;
use crate::state::Response;
use crate::types::KeyRange;

/// The TTL of a lease that a call makes for itself; etcd's.
const LEASE_TTL_S: i64 = 60;

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Concurrency {
    handle: Handle,
    queues: Arc<WaitQueues>,
    left: mpsc::UnboundedSender<AbandonedKey>,
}

/// A key below a name, which its call may still give up.
pub struct Candidate {
    concurrency: Concurrency,
    caller: Caller,
    prefix: Bytes,
    key: Bytes,
    pub lease: i64,
    /// The key's create revision.
    pub created: i64,
    /// The revision of the state in which the key was made or found.
    pub revision: i64,
    /// The key was not there before, or is behind another one: a call that ends deletes it.
    waits: bool,
    /// None once that is settled.
    held: Option<Held>,
}

/// A key that nobody waits with any more. There are as many at once as there is room for who waits.
struct AbandonedKey {
    caller: Caller,
    key: Bytes,
    created: i64,
    _held: Held,
}

impl Concurrency {
    pub fn new(handle: Handle) -> Self {
        let (left, leaving) = mpsc::unbounded_channel();
        handle.spawn(take_back(handle.clone(), leaving));
        Self {
            queues: WaitQueues::new(handle.clone()),
            handle,
            left,
        }
    }

    /// Makes the key of a lease below a name, or finds it there. Lease 0: one of its own.
    pub async fn enter_lock(
        &self,
        caller: &Caller,
        name: &[u8],
        lease: i64,
    ) -> Result<Candidate, Error> {
        let prefix = requests::prefix(name);
        let held = self.queues.room(prefix.len())?;
        let lease = self.lease(caller, lease).await?;
        let key = requests::key(&prefix, lease);
        // etcd's asks who is first, and so for the right to know; here that is asked where the
        // key is, and not for each call anew.
        let enter = requests::enter(&key, Bytes::new(), lease, Some(&prefix));
        let (revision, found) = self.enter(caller, enter).await?;
        Ok(Candidate {
            concurrency: self.clone(),
            caller: caller.clone(),
            prefix,
            key,
            lease,
            waits: found.is_none(),
            created: found.map_or(revision, |found| found.create_revision),
            revision,
            held: Some(held),
        })
    }

    /// The same with a value, which replaces another one that the key has.
    pub async fn enter_election(
        &self,
        caller: &Caller,
        name: &[u8],
        value: &Bytes,
        lease: i64,
    ) -> Result<Candidate, Error> {
        let prefix = requests::prefix(name);
        let held = self.queues.room(prefix.len())?;
        let lease = self.lease(caller, lease).await?;
        let key = requests::key(&prefix, lease);
        let enter = requests::enter(&key, value.clone(), lease, None);
        let (revision, found) = self.enter(caller, enter).await?;
        let waits = found.is_none();
        let created = match found {
            None => revision,
            Some(found) => {
                let created = found.create_revision;
                if found.value != *value {
                    let proclaimed = self.proclaim(caller, &key, created, value.clone(), lease);
                    if let Err(error) = proclaimed.await {
                        // As in etcd it does not matter whether that succeeds.
                        let _ = self.resign(caller, &key, created).await;
                        return Err(error);
                    }
                }
                created
            }
        };
        Ok(Candidate {
            concurrency: self.clone(),
            caller: caller.clone(),
            prefix,
            key,
            lease,
            created,
            revision,
            waits,
            held: Some(held),
        })
    }

    /// Puts the value of a leader; returns the revision.
    pub async fn proclaim(
        &self,
        caller: &Caller,
        key: &Bytes,
        created: i64,
        value: Bytes,
        lease: i64,
    ) -> Result<i64, Error> {
        check_key(key)?;
        let lease = self.lease(caller, lease).await?;
        let proclaim = requests::proclaim(key, created, value, lease);
        let response = self.txn(caller, proclaim).await?;
        match response.succeeded {
            true => Ok(revision_of(&response)),
            false => Err(Error::ElectionNotLeader),
        }
    }

    /// Deletes the key of a leader or of a candidate, if it is still that; returns the revision.
    pub async fn resign(&self, caller: &Caller, key: &Bytes, created: i64) -> Result<i64, Error> {
        check_key(key)?;
        let response = self.txn(caller, requests::resign(key, created)).await?;
        Ok(revision_of(&response))
    }

    /// Deletes a key, of any caller; returns the revision.
    pub async fn unlock(&self, caller: &Caller, key: Bytes) -> Result<i64, Error> {
        check_key(&key)?;
        let request = InternalRaftRequest {
            delete_range: Some(requests::delete(key)),
            ..Default::default()
        };
        match self.handle.propose(caller, request).await? {
            Response::DeleteRange(response) => Ok(response.header.map_or(0, |h| h.revision)),
            _ => Err(Error::UnknownMethod),
        }
    }

    /// The leader's key, if there is one, and the revision of the state that was read.
    pub async fn leader(
        &self,
        caller: &Caller,
        name: &[u8],
    ) -> Result<(Option<KeyValue>, i64), Error> {
        let range = Self::candidates(name);
        let view = self.read(caller, &range, false).await?;
        let revision = view.head;
        let first = self.queues.first(range, view);
        let first = self.handle.within(caller, first).await??;
        Ok((first, revision))
    }

    /// The keys of all candidates.
    pub fn candidates(name: &[u8]) -> KeyRange {
        below(&requests::prefix(name))
    }

    async fn lease(&self, caller: &Caller, lease: i64) -> Result<i64, Error> {
        if lease != 0 {
            return Ok(lease);
        }
        self.handle.check_call(caller, Needs::User)?;
        let request = LeaseGrantRequest {
            ttl: LEASE_TTL_S,
            id: 0,
        };
        Ok(self.handle.grant_lease(caller, request).await?.id)
    }

    /// The revision, and the key that was there.
    async fn enter(
        &self,
        caller: &Caller,
        enter: TxnRequest,
    ) -> Result<(i64, Option<KeyValue>), Error> {
        let response = self.txn(caller, enter).await?;
        let revision = revision_of(&response);
        Ok((revision, requests::found(response)?))
    }

    async fn txn(&self, caller: &Caller, txn: TxnRequest) -> Result<TxnResponse, Error> {
        let request = InternalRaftRequest {
            txn: Some(txn),
            ..Default::default()
        };
        match self.handle.propose(caller, request).await? {
            Response::Txn(response) => Ok(response),
            _ => Err(Error::UnknownMethod),
        }
    }

    /// A state in which the caller may read a range. A stale one is enough to those who wait: it
    /// shows their own key, and no key comes before one that is there.
    async fn read(
        &self,
        caller: &Caller,
        range: &KeyRange,
        stale: bool,
    ) -> Result<Arc<ReadView>, Error> {
        let (key, range_end) = range.to_wire();
        let asks = Asks::Read { key, range_end };
        self.handle.view_for(caller, asks, stale).await
    }
}

impl Candidate {
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// Waits for the lock; returns the key, and the revision of a state in which it had the lock.
    pub async fn lock(mut self) -> Result<(Bytes, i64), Error> {
        let locked = self.try_lock().await;
        match locked {
            Ok(_) | Err(Error::SessionExpired) => self.stays(),
            // Boxed, as what is seldom needed: a call that waits holds no room for it.
            Err(_) => Box::pin(self.take_back()).await,
        }
        Ok((self.key.clone(), locked?))
    }

    async fn try_lock(&mut self) -> Result<i64, Error> {
        if let Turn::First(known) = self.turn().await? {
            // Who is first stays first while its key is there.
            return Ok(self.revision.max(known));
        }
        // It may have gone meanwhile, with its lease or by somebody's hand, and come again behind
        // others, for another call with its lease.
        let own = KeyRange::Point(self.key.clone());
        let caller = self.caller.again()?;
        let view = self.concurrency.read(&caller, &own, false).await?;
        let revision = view.head;
        let found = self.concurrency.queues.first(own, view).await?;
        let is_own = |found: &KeyValue| {
            found.create_revision == self.created || probe::injected(Defect::OtherKeyTaken)
        };
        if found.as_ref().is_some_and(is_own) || probe::injected(Defect::OwnKeyUnchecked) {
            return Ok(revision);
        }
        probe::reached(CoveragePoint::LockKeyGone);
        Err(Error::SessionExpired)
    }

    /// Waits to be the leader. As in etcd it is not checked whether the key is still there; and
    /// where the wait fails, but for a caller who has gone, the key stays.
    pub async fn lead(&mut self) -> Result<(), Error> {
        let led = async {
            self.check_reads().await?;
            self.turn().await
        };
        let led = led.await;
        match led {
            Err(Error::DeadlineExceeded) => Box::pin(self.take_back()).await,
            _ => self.stays(),
        }
        led.map(drop)
    }

    async fn turn(&mut self) -> Result<Turn, Error> {
        let Concurrency { handle, queues, .. } = &self.concurrency;
        let mut waiting = queues.join(&self.prefix, self.created);
        let turn = handle.within(&self.caller, waiting.turn()).await??;
        if let Turn::First(_) = turn {
            return Ok(turn);
        }
        self.waits = true;
        let turn = match turn {
            Turn::Behind => handle.within(&self.caller, waiting.turn()).await??,
            _ => turn,
        };
        drop(waiting);
        self.check_reads().await?;
        Ok(turn)
    }

    /// Whether the caller may know who is before it.
    async fn check_reads(&self) -> Result<(), Error> {
        let range = below(&self.prefix);
        let caller = self.caller.again()?;
        self.concurrency.read(&caller, &range, true).await.map(drop)
    }

    fn stays(&mut self) {
        self.held = None;
    }

    /// Deletes the key, for a caller who may be late by now.
    async fn take_back(&mut self) {
        if !self.waits {
            return self.stays();
        }
        let caller = as_of_now(&self.caller);
        let resigned = self.concurrency.resign(&caller, &self.key, self.created);
        if let Err(error) = resigned.await {
            tracing::debug!(%error, "the key of a call that waited stays until its lease ends");
        }
        self.stays();
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let held = self.held.take();
        if let Some(held) = held.filter(|_| self.waits) {
            probe::reached(CoveragePoint::WaitingKeyTakenBack);
            // Nobody takes it where the member stops; then it ends with its lease.
            let _ = self.concurrency.left.send(AbandonedKey {
                caller: as_of_now(&self.caller),
                key: self.key.clone(),
                created: self.created,
                _held: held,
            });
        }
    }
}

/// A caller who has perhaps gone, as long as it takes to clean up.
fn as_of_now(caller: &Caller) -> Caller {
    // Whose token has expired is refused.
    caller
        .again()
        .unwrap_or_else(|_| caller.clone())
        .without_deadline()
}

/// Deletes the keys of those who went away.
async fn take_back(handle: Handle, mut leaving: mpsc::UnboundedReceiver<AbandonedKey>) {
    while let Some(left) = leaving.recv().await {
        let handle = handle.clone();
        handle.clone().spawn(async move {
            let request = InternalRaftRequest {
                txn: Some(requests::resign(&left.key, left.created)),
                ..Default::default()
            };
            if let Err(error) = handle.propose(&left.caller, request).await {
                tracing::debug!(%error, "the key of a call that waited stays until its lease ends");
            }
        });
    }
}

fn revision_of(response: &TxnResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

fn check_key(key: &Bytes) -> Result<(), Error> {
    match key.is_empty() {
        true => Err(Error::EmptyKey),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::env::SystemClock;
    use crate::proto::etcdserverpb::request_op::Request;
    use crate::replica::inbox::{Inbox, Input};
    use crate::replica::proposal::Proposed;
    use crate::service::fixture;
    use crate::transport::NoNetwork;

    fn candidate(concurrency: &Concurrency, waits: bool) -> Candidate {
        Candidate {
            concurrency: concurrency.clone(),
            caller: Caller::nobody(),
            prefix: "n/".into(),
            key: "n/7".into(),
            lease: 7,
            created: 5,
            revision: 5,
            waits,
            held: Some(concurrency.queues.room(4).expect("room")),
        }
    }

    /// The key that the next proposal deletes.
    fn deleted(inbox: &Inbox, wait: Duration) -> Option<Bytes> {
        let mut inputs = Vec::new();
        inbox.take(wait, &mut inputs);
        inputs.into_iter().find_map(|input| match input {
            Input::Propose(proposal) => match proposal.what {
                Proposed::Request(request, _) => {
                    match &request.txn.as_ref()?.success.first()?.request {
                        Some(Request::RequestDeleteRange(delete)) => Some(delete.key.clone()),
                        _ => None,
                    }
                }
                Proposed::Member(_) => None,
            },
            _ => None,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_goes_away_takes_its_key_along_if_it_is_not_held_already() {
        let clock = Arc::new(SystemClock::new());
        let (handle, inbox) = fixture::with_clock(Arc::new(NoNetwork), clock);
        let concurrency = Concurrency::new(handle);
        drop(candidate(&concurrency, false));
        let mut settled = candidate(&concurrency, true);
        settled.stays();
        drop(settled);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(deleted(&inbox, Duration::from_millis(20)), None);
        drop(candidate(&concurrency, true));
        let found = deleted(&inbox, Duration::from_secs(20));
        assert_eq!(found.as_deref(), Some(&b"n/7"[..]));
    }
}
