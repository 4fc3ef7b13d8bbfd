//! `--memory-mlock`: what the process has touched of its memory stays in it, so that no request
//! waits for a page that was moved to swap.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Locks what is touched from now on, and all that was.
///
/// # Errors
/// The system does not let this process lock as much as it may come to need: an allocation that
/// fails later would end it.
pub fn lock() -> Result<(), String> {
    let may_all =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if let Some(limit) = getrlimit(Resource::Memlock).current
        && !may_all
    {
        return Err(format!(
            "--memory-mlock: this process may lock {limit} bytes only; lift the limit (ulimit -l unlimited, LimitMEMLOCK=infinity) or grant it CAP_IPC_LOCK"
        ));
    }
    // On fault: the allocator's region is larger than what is ever used of it.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|error| format!("--memory-mlock: cannot lock the memory: {error}"))
}
