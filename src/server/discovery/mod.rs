//! How the founders of a cluster find each other without a list in the flags: `srv` uses the DNS,
//! `service` a discovery service.

mod client;
pub mod dns;
mod registry;
pub mod service;
pub mod srv;
#[cfg(test)]
mod tests;

use crate::config::Note;

/// The last log lines of a member that a discovery service refused.
pub fn refusal(token: &str, endpoints: &[String], reason: &str) -> Vec<Note> {
    let error = format!("failed to join discovery cluster ({reason})");
    vec![
        Note::warn("failed to bootstrap; discovery token was already used")
            .with("discovery-token", token)
            .with("discovery-endpoints", endpoints)
            .with("error", error),
        Note::warn("do not reuse discovery token; generate a new one to bootstrap a cluster"),
    ]
}
