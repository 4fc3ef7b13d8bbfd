//! Where the effects of applied entries on tokens are sent. Tokens are no part of the state: each
//! member keeps its own, in memory.

use crate::state::auth::{AuthEvent, AuthView};

/// See the module. Called by the apply thread, before the view shows the entries and before
/// their proposals are answered; it must not block.
pub trait AuthObserver: Send + Sync {
    fn applied(&self, events: &[AuthEvent]);

    /// The state was replaced by one received from the leader: what happened in between is not
    /// known.
    fn replaced(&self, auth: &AuthView);
}
