//! The threads of a member: raft, log and apply. Each takes what is queued for it and processes it;
//! nothing is decided here.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::fatal::Fatal;
use super::raft_thread::RaftThread;
use super::rests::Rests;
use super::shared::Shared;

/// Runs until stopped, then flushes the state and records how far the log is synced. `rest` is what a
/// thread does that has nothing to do for a while.
pub fn run(mut raft: RaftThread, rest: fn()) -> Result<(), Fatal> {
    let shared = raft.shared().clone();
    let (log, apply) = (raft.log_thread(), raft.apply_thread());
    let (log_jobs, apply_jobs) = (log.jobs.clone(), apply.jobs.clone());
    let clock = shared.clock.clone();
    let log = start(&shared, "log", move || {
        let mut rests = Rests::new(rest);
        while let Some(jobs) = log.jobs.take(clock.as_ref(), &mut rests) {
            log.turn(jobs)?;
        }
        Ok(())
    })?;
    let clock = shared.clock.clone();
    let apply = start(&shared, "apply", move || {
        let mut rests = Rests::new(rest);
        while let Some(jobs) = apply.jobs.take(clock.as_ref(), &mut rests) {
            apply.turn(jobs)?;
        }
        Ok(())
    })?;
    let result = take_turns(&mut raft, Rests::new(rest));
    log_jobs.close();
    apply_jobs.close();
    for thread in [log, apply] {
        // A thread that panicked has ended the process, or has reported its failure.
        let _ = thread.join();
    }
    result?;
    raft.log_thread().close()?;
    Ok(shared.engine().flush()?)
}

fn take_turns(raft: &mut RaftThread, mut rests: Rests) -> Result<(), Fatal> {
    let (inbox, clock) = (raft.inbox().clone(), raft.shared().clock.clone());
    let mut inputs = Vec::new();
    loop {
        let wait = raft.next_tick().saturating_sub(clock.now());
        inbox.take(wait, &mut inputs);
        let now = clock.now();
        // Ticks alone wake it, and are no work: it rests at one of them.
        match inputs.is_empty() {
            true => rests.rest(now),
            false => rests.worked(now),
        }
        if !raft.turn(&mut inputs)? {
            return Ok(());
        }
    }
}

fn start(
    shared: &Arc<Shared>,
    name: &'static str,
    body: impl FnOnce() -> Result<(), Fatal> + Send + 'static,
) -> Result<JoinHandle<()>, Fatal> {
    let shared = shared.clone();
    let run = move || {
        if let Err(error) = body() {
            shared.fail(error.to_string());
        }
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Fatal::Thread(name, error))
}
