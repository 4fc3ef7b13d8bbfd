//! Puts a member together from what a start found, for threads or for a simulator to run.

use std::sync::Arc;

use super::member_dir::{MemberDir, MemberIdentity};
use super::restore::Restored;
use super::states::StateDirs;
use crate::jobs;
use crate::replica::dependencies::Dependencies;
use crate::replica::fatal::Fatal;
use crate::replica::inbox::Inbox;
use crate::replica::raft_thread::RaftThread;
use crate::replica::shared::Shared;
use crate::service::handle::Handle;
use crate::service::peer::PeerService;
use crate::service::settings::ServiceSettings;

/// A member whose state is that of its log, which others can reach and which reaches them. What
/// is left to its starter is to give the raft thread its turns, and to have it introduced.
pub struct Member {
    pub handle: Handle,
    pub inbox: Arc<Inbox>,
    pub raft: RaftThread,
    /// False for a member that was made just now.
    pub existed: bool,
}

impl Member {
    /// Applies what the log says is committed, meets the other members and begins the jobs.
    pub fn start(
        restored: Restored,
        dir: Arc<dyn MemberDir>,
        deps: &Dependencies,
        settings: ServiceSettings,
        jobs: jobs::JobSettings,
    ) -> Result<Self, Fatal> {
        let Restored {
            identity: MemberIdentity { member, cluster },
            machine,
            log,
            replica,
            peers,
            existed,
            incarnation: _,
        } = restored;
        let states = Arc::new(StateDirs::new(dir));
        let mark = log.synced_mark();
        // What was logged before is applied again, but tokens end with their process.
        settings.auth.tokens.issue_behind(log.last_index());
        let shared = Shared::new(member, cluster, deps, &machine);
        let mut raft = RaftThread::new(deps, shared.clone(), states.clone(), replica, log, machine);
        let network = deps.network.clone();
        let inbox = raft.inbox().clone();
        let handle = Handle::new(shared.clone(), inbox.clone(), network.clone(), settings);
        raft.recover()?;
        let status = shared.status();
        let peers = match status.members.is_empty() {
            true => peers,
            false => status.addresses(),
        };
        let service = PeerService::new(handle.clone(), inbox.clone(), states);
        network.attach(Arc::new(service));
        network.set_peers(peers);
        jobs::spawn(&handle, &inbox, mark, jobs);
        Ok(Self {
            handle,
            inbox,
            raft,
            existed,
        })
    }
}
