//! Deliberate defects that reorder steps, built from what the simulator hands to a member's
//! threads, so that production code contains the correct order only.

use std::sync::Arc;

use crate::probe::{Defect, injected};
use crate::raft::Persist;
use crate::replica::apply_thread::{ApplyJob, ApplyThread, Applying, STAGES, Stages, Step};
use crate::replica::cluster_status::ClusterStatus;
use crate::replica::inbox::{Inbox, Input};
use crate::replica::log_thread::{LogJob, LogThread};
use crate::replica::shared::Shared;
use crate::replica::view::ReadView;
use crate::server::restore::Restored;
use crate::state::auth::AuthView;
use crate::transport::{Peer, PeerMessage};
use crate::types::MemberId;

/// The order in which the apply threads of this world take their steps.
pub fn stages() -> Stages {
    if injected(Defect::AnswerBeforeWrite) {
        &[
            &[Step::Execute],
            &[Step::Answer],
            &[Step::Commit, Step::Show, Step::Publish],
        ]
    } else if injected(Defect::ViewBeforeWrite) {
        &[
            &[Step::Execute, Step::Show, Step::Commit],
            &[Step::Answer],
            &[Step::Publish],
        ]
    } else {
        STAGES
    }
}

/// The members as of the state alone, which the log behind it may have changed.
pub fn peers_before_replay(restored: &Restored) -> Option<Vec<Peer>> {
    let status = ClusterStatus::of(&restored.machine);
    let is_used = injected(Defect::MembersBeforeReplay) && !status.members.is_empty();
    is_used.then(|| status.addresses())
}

/// Answers read index requests as soon as the raft thread has taken them; the round still runs.
pub fn before_turn(inputs: &mut [Input]) {
    if !injected(Defect::ViewTakenEarly) {
        return;
    }
    for input in inputs {
        if let Input::ReadIndex(reply) = input {
            let reply = std::mem::replace(reply, Box::new(|_| ()));
            reply(Ok(()));
        }
    }
}

/// Runs early, on the jobs that the log thread has just taken, what has to wait until they are
/// durable.
pub fn before_sync(jobs: &mut [LogJob], log: &LogThread, apply: &ApplyThread, inbox: &Inbox) {
    for job in jobs {
        let LogJob::Persist(persist, received, _) = job else {
            continue;
        };
        if injected(Defect::AdoptBeforeReset)
            && let Some(received) = received.take()
        {
            apply.jobs.push(ApplyJob::Restore(received), 0);
        }
        if injected(Defect::AnswerBeforeSync) && persist.reset.is_none() {
            // A closed inbox means that the member is stopping.
            let _ = inbox.push(Input::Persisted(persist.number));
        }
        if injected(Defect::AcknowledgeBeforeSync) {
            send(persist, log);
        }
    }
}

/// Publishes what readers must not see, after a step of applying entries. `shown` is the view from
/// before it, `rights` those of the newest group that is shown.
pub fn after_step(
    shared: &Shared,
    apply: &ApplyThread,
    applying: Option<&Applying>,
    shown: &Arc<ReadView>,
    rights: &mut Arc<AuthView>,
) {
    if injected(Defect::PartialDeleteVisible) && applying.is_some_and(Applying::is_sliced) {
        shared.publish_view(apply.view());
    }
    if injected(Defect::RightsShownLate) && !Arc::ptr_eq(shown, &shared.view()) {
        let mut view = apply.view();
        view.auth = std::mem::replace(rights, view.auth);
        shared.publish_view(view);
    }
}

fn send(persist: &mut Persist, log: &LogThread) {
    for message in persist.messages.drain(..) {
        let to = MemberId(message.to);
        log.network.send(to, vec![PeerMessage::Raft(message)]);
    }
}
