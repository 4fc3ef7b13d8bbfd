//! The limits and guarantees of a member's services.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::admission::AdmissionLimits;
use super::tokens::Tokens;
use crate::replica::dependencies::request_timeout;

/// See the module.
#[derive(Clone)]
pub struct ServiceSettings {
    pub limits: AdmissionLimits,
    pub rules: Rules,
    pub election_timeout: Duration,
    pub auth: AuthSettings,
    /// Where files without a name may be made, on the disk of the state.
    pub scratch_dir: PathBuf,
}

/// How clients log in.
#[derive(Clone)]
pub struct AuthSettings {
    pub tokens: Arc<Tokens>,
    /// Of new hashes of passwords.
    pub bcrypt_cost: u32,
}

impl ServiceSettings {
    /// The timeout of a request; etcd's rule.
    pub fn request_timeout(&self) -> Duration {
        request_timeout(self.election_timeout)
    }

    /// The shortest TTL of a lease, in seconds; etcd's rule.
    pub fn min_lease_ttl_s(&self) -> i64 {
        let half_more = self.election_timeout * 3 / 2;
        half_more.as_millis().div_ceil(1000) as i64
    }
}

/// How changes of membership are checked.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Changes that could cost the quorum are refused.
    pub strict: bool,
    pub max_learners: u32,
}
