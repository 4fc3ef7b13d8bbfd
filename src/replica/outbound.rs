//! Outgoing raft messages: those for one member are sent together.

use crate::failpoints::{self, Failpoint};
use crate::raft::{Message, MessageType};
use crate::transport::{Network, PeerMessage};
use crate::types::MemberId;

/// Sends messages, those for one member together.
pub(super) fn send_grouped(network: &dyn Network, messages: Vec<Message>) {
    failpoints::hit_each(|| {
        let is_followers = messages.iter().any(is_followers);
        is_followers.then_some(Failpoint::RaftBeforeFollowerSend)
    });
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

/// True for what only a follower or a candidate sends, about.
fn is_followers(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgReadIndex
    )
}
