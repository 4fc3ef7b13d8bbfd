//! How the founders of a cluster find each other where no flag lists them: `srv` asks the DNS,
//! `service` a discovery service.

mod client;
mod dns;
mod registry;
pub mod service;
pub mod srv;
#[cfg(test)]
mod tests;

use crate::config::Note;

/// The last lines of a member that a discovery service turned away.
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
