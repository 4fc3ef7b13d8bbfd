//! Outgoing raft messages: those for one member are sent together.

use crate::raft::Message;
use crate::transport::{Network, PeerMessage};
use crate::types::MemberId;

/// Sends messages, those for one member together.
pub(super) fn send_grouped(network: &dyn Network, messages: Vec<Message>) {
    let mut groups: Vec<(u64, Vec<PeerMessage>)> = Vec::new();
    for message in messages {
        let to = message.to;
        let message = PeerMessage::Raft(message);
        match groups.iter_mut().find(|(member, _)| *member == to) {
            Some((_, group)) => group.push(message),
            None => groups.push((to, vec![message])),
        }
    }
    for (to, group) in groups {
        network.send(MemberId(to), group);
    }
}
