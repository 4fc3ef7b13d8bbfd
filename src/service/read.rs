//! Reads: the state that a caller may see. What a client asks for is read in the state that
//! `view_for` returns, which it does only to who may read it; `view` and `linearizable_view` are for
//! those who judge by themselves what of it they show, and for the member's own work.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::caller::Caller;
use super::handle::Handle;
use super::permission::{self, Asks};
use crate::env;
use crate::error::Error;
use crate::mvcc;
use crate::probe::{self, Defect};
use crate::replica::inbox::Input;
use crate::replica::view::ReadView;
use crate::trace;

impl Handle {
    /// The newest state that is applied here.
    pub fn view(&self) -> Arc<ReadView> {
        self.shared.view()
    }

    /// The state in which a caller reads what it asks for, if it may. `serializable`: one that may
    /// be stale, at once.
    pub async fn view_for(
        &self,
        caller: &Caller,
        asks: Asks<'_>,
        serializable: bool,
    ) -> Result<Arc<ReadView>, Error> {
        let view = match serializable {
            true => self.view(),
            false => self.linearizable_view(caller).await?,
        };
        // Behind the wait: permissions are part of what is read.
        match permission::check(&view.auth, caller, asks) {
            // While it waited users or roles changed, which takes nothing from a simple token.
            Err(Error::AuthOldRevision) => permission::check(&view.auth, &caller.again()?, asks)?,
            checked => checked?,
        }
        Ok(view)
    }

    /// A state that shows every write answered before this call.
    ///
    /// A member that has no other beside it answers a write only after its view shows it, so the
    /// newest view is such a state. A learner would be enough to make that wrong: it answers what
    /// it was asked when it has applied it, which may be before its leader has. Any other asks the
    /// leader, who asks a quorum whether it still leads, and waits until what was committed then is
    /// applied here.
    pub async fn linearizable_view(&self, caller: &Caller) -> Result<Arc<ReadView>, Error> {
        let raft = &self.shared.raft;
        let single_member = raft.is_single_member() || probe::injected(Defect::ReadWithoutQuorum);
        if single_member && raft.is_leader() {
            return Ok(self.shared.view());
        }
        let (sender, receiver) = oneshot::channel();
        let start = self.shared.clock.now();
        if caller.is_late(start) {
            return Err(Error::DeadlineExceeded);
        }
        let reply = Box::new(move |result| {
            // The caller may have gone.
            let _ = sender.send(result);
        });
        let agreement = trace::below!(caller.span(), "read_index");
        self.push(Input::ReadIndex(reply))?;
        let limit = self.deadline(caller).saturating_sub(start);
        let clock = self.shared.clock.as_ref();
        let answer = env::timeout(clock, limit, receiver).await;
        drop(agreement);
        let metrics = &self.shared.metrics;
        let (failures, error) = match answer {
            Some(Ok(Ok(()))) => return Ok(self.shared.view()),
            None if caller.is_late(clock.now()) => return Err(Error::DeadlineExceeded),
            Some(Ok(Err(Error::Timeout))) | None => {
                (&metrics.slow_read_indexes, self.timed_out(start))
            }
            Some(Ok(Err(error))) => (&metrics.read_indexes_failed, error),
            Some(Err(_)) => (&metrics.read_indexes_failed, Error::Stopped),
        };
        failures.increment();
        Err(error)
    }

    /// Why a read failed: a refusal is returned to the caller, a broken store ends the process.
    pub fn refusal(&self, error: mvcc::Error) -> Error {
        match error {
            mvcc::Error::Refused(error) => error,
            mvcc::Error::Storage(error) => self.shared.fail_storage(error),
        }
    }

    /// True where this member leads now, which a quorum has confirmed.
    pub async fn ensure_leadership(&self, caller: &Caller) -> Result<bool, Error> {
        self.linearizable_view(caller).await?;
        Ok(self.shared.raft.is_leader())
    }
}

#[cfg(test)]
mod tests {
    use crate::replica::view::ReadView;
    use crate::service::fixture;
    use crate::state::Machine;

    /// A reader that sees the index applied reads at once, in the middle of a publication too.
    #[test]
    fn the_view_of_an_applied_index_is_there() {
        const LAST: u64 = 20_000;
        let handle = fixture::single_member();
        let shared = handle.shared().clone();
        let machine = Machine::open(shared.engine()).expect("opens");
        let first = shared.view().applied_index;
        let publish = || {
            for applied_index in first..=first + LAST {
                let mut view = ReadView::new(shared.engine().as_ref(), &machine);
                view.applied_index = applied_index;
                shared.publish_view(view);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(publish);
            loop {
                let applied = shared.raft.applied_index();
                let view = shared.view();
                assert!(view.applied_index >= applied, "{}", view.applied_index);
                if applied == first + LAST {
                    return;
                }
            }
        });
    }
}
