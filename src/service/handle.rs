//! A member as its services use it: their shared state, requests to the leader, and leadership.
//! `propose` and `read` hold the two ways to its data.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::caller::Caller;
use super::passwords::Passwords;
use super::permission::{self, Asks, Needs};
use super::rpcs::Costly;
use super::settings::ServiceSettings;
use super::tokens::Tokens;
use crate::env;
use crate::error::Error;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::replica::inbox::{Inbox, Input, PushError};
use crate::replica::shared::Shared;
use crate::state::auth::AuthView;
use crate::trace;
use crate::transport::Network;
use crate::types::MemberId;

/// A member, as its services see it; cheap to clone, and as small as a pointer: many of them stand
/// in what a connection or a call holds.
#[derive(Clone)]
pub struct Handle(Arc<HandleParts>);

/// What a [`Handle`] points to.
pub struct HandleParts {
    pub(super) shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    pub(super) network: Arc<dyn Network>,
    pub(super) settings: ServiceSettings,
    next_request_id: AtomicU64,
    /// Permits for proposals in flight, in KiB.
    pub(super) room_kib: Arc<Semaphore>,
    /// One flush at a time checks whether the quota is really exhausted.
    pub(super) quota_flush: Arc<tokio::sync::Mutex<()>>,
    /// One proposal at a time raises the NOSPACE alarm: it outlasts the client who met it.
    pub(super) raising: Arc<Semaphore>,
    turns: [Arc<Semaphore>; Costly::ALL.len()],
    passwords: Passwords,
}

impl Deref for Handle {
    type Target = HandleParts;

    fn deref(&self) -> &HandleParts {
        &self.0
    }
}

impl Handle {
    pub fn new(
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        network: Arc<dyn Network>,
        settings: ServiceSettings,
    ) -> Self {
        // As in etcd: two bytes of the member id, then a counter with a random start.
        let member = shared.member.0 << 48;
        let first_id = member | (shared.rng.next_u64() >> 17);
        let max_proposed_kib = settings.limits.max_proposed_kib();
        let passwords = Passwords::new(
            settings.auth.bcrypt_cost,
            shared.rng.clone(),
            shared.clock.clone(),
            shared.executor.clone(),
        );
        Self(Arc::new(HandleParts {
            shared,
            inbox,
            network,
            settings,
            next_request_id: AtomicU64::new(first_id),
            room_kib: Arc::new(Semaphore::new(max_proposed_kib as usize)),
            quota_flush: Arc::default(),
            raising: Arc::new(Semaphore::new(1)),
            turns: Costly::ALL.map(|costly| Arc::new(Semaphore::new(costly.at_once()))),
            passwords,
        }))
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Users, roles and permissions as of the newest view.
    pub fn auth(&self) -> Arc<AuthView> {
        self.shared.view().auth.clone()
    }

    /// Whether a caller may call what needs this of it, as far as this member knows.
    pub fn check_call(&self, caller: &Caller, needs: Needs) -> Result<(), Error> {
        match self.shared.is_auth_enabled() {
            true => permission::check(&self.auth(), caller, Asks::Call(needs)),
            false => Ok(()),
        }
    }

    pub fn tokens(&self) -> &Arc<Tokens> {
        &self.settings.auth.tokens
    }

    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// A unique id for a request or lease; positive as an i64.
    pub fn next_id(&self) -> u64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed) & (i64::MAX as u64)
    }

    pub(super) fn push(&self, input: Input) -> Result<(), Error> {
        self.inbox.push(input).map_err(|refused| match refused {
            PushError::Full => Error::TooManyRequests,
            PushError::Closed => Error::Stopped,
        })
    }

    /// Runs work that may block, off the network's threads.
    pub fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, env::Abandoned>> {
        env::blocking(self.shared.executor.as_ref(), work)
    }

    /// The same, waited for until the caller's deadline; what was begun continues.
    pub(super) async fn blocking_within<T: Send + 'static>(
        &self,
        caller: &Caller,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.within(caller, self.blocking(work)).await?;
        done.map_err(|env::Abandoned| Error::Stopped)
    }

    /// Runs a task that never blocks on the disk.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.executor.spawn(Box::pin(task));
    }

    /// The turns at what a member does a few of at once.
    pub fn turns(&self, costly: Costly) -> &Arc<Semaphore> {
        &self.turns[costly as usize]
    }

    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// The time at which a request that this caller starts now times out.
    pub(super) fn deadline(&self, caller: &Caller) -> Duration {
        caller.until(self.shared.clock.now() + self.settings.request_timeout())
    }

    /// Waits until the caller's deadline. For operations with a limit of their own, or without one.
    pub async fn within<T>(
        &self,
        caller: &Caller,
        wait: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let clock = self.shared.clock.as_ref();
        let Some(deadline) = caller.deadline() else {
            return Ok(wait.await);
        };
        let left = deadline.saturating_sub(clock.now());
        let done = env::timeout(clock, left, wait).await;
        done.ok_or(Error::DeadlineExceeded)
    }

    /// Sends a peer RPC to the leader. Waits for a leader if there is none.
    pub async fn ask_leader(
        &self,
        caller: &Caller,
        request: PeerRequest,
    ) -> Result<PeerResponse, Error> {
        let deadline = self.deadline(caller);
        let leader = self.leader_until(deadline).await?;
        let left = deadline.saturating_sub(self.shared.clock.now());
        let _asked = trace::below!(caller.span(), "ask_leader", member = %leader);
        self.network.ask(leader, request, left).await
    }

    async fn leader_until(&self, deadline: Duration) -> Result<MemberId, Error> {
        loop {
            match self.shared.raft.leader() {
                0 if self.shared.clock.now() >= deadline => return Err(Error::NoLeader),
                0 => self.shared.clock.sleep(Duration::from_millis(20)).await,
                leader => return Ok(MemberId(leader)),
            }
        }
    }

    /// Transfers leadership to a member and waits until it leads.
    pub async fn move_leader(&self, caller: &Caller, to: MemberId) -> Result<(), Error> {
        let start = self.shared.clock.now();
        if caller.is_late(start) {
            return Err(Error::DeadlineExceeded);
        }
        self.push(Input::TransferLeader(to))?;
        let limit = self.deadline(caller).saturating_sub(start);
        let moved = self.await_leader(|leader| leader == to.0, limit).await;
        match caller.is_late(self.shared.clock.now()) {
            true => moved.map_err(|_| Error::DeadlineExceeded),
            false => moved,
        }
    }

    /// Transfers leadership to the most up-to-date voter, if this member leads and there is one.
    pub async fn hand_over(&self, limit: Duration) -> Result<(), Error> {
        let own = self.shared.member.0;
        self.push(Input::HandOver)?;
        self.await_leader(|leader| leader != own && leader != 0, limit)
            .await
    }

    async fn await_leader(
        &self,
        is_it: impl Fn(u64) -> bool,
        limit: Duration,
    ) -> Result<(), Error> {
        let deadline = self.shared.clock.now() + limit;
        while !is_it(self.shared.raft.leader()) {
            if self.shared.clock.now() >= deadline {
                return Err(Error::TimeoutLeaderTransfer);
            }
            self.shared.clock.sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
