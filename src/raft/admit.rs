//! Validates messages of other members before raft sees them.
//!
//! raft-rs trusts its peers: an unknown message type, a commit index beyond the end of the log,
//! entries with a gap and a dozen other things make it panic, and it silently accepts others (a
//! term of 0, an acknowledgement of an entry that was never sent). A correct member sends none of
//! them, but bytes arrive over a network and from programs of any version. So messages are checked
//! here, once when they are decoded and once against the log that they are for, and rejected with a
//! reason. To raft a rejected message is a lost one.
//!
//! One of them shows a fault of this member: a heartbeat's commit index is what its sender knows
//! this member to have. If the log ends before it, acknowledged entries are lost, and a vote of
//! this member could elect a leader without them.

use std::mem::{self, Discriminant};

use raft::{RaftLog, StateRole, Storage};
use raft_proto::eraftpb::{Entry, EntryType, Message, MessageType, SnapshotMetadata};

use crate::types::MemberId;

/// Terms and indexes stay below this, so that sums do not overflow. At a million entries a second
/// it would be reached in 100,000 years.
const MAX_NUMBER: u64 = 1 << 62;
/// How far beyond the term here one may be that a caller names who is no member here: more elections
/// than a cluster holds in its life, and far from where numbers end.
const MAX_UNLISTED_JUMP: u64 = 1 << 32;
/// The largest context of a read index message after the commit index; etched's are 16 bytes.
const MAX_CONTEXT_BYTES: usize = 64;

/// Why a message was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} is no kind of message that members send each other")]
    Kind(i32),
    #[error("it does not say who sends it")]
    Nameless,
    #[error("this member itself is its sender")]
    FromSelf,
    #[error("term {0} cannot be that of such a message")]
    Term(u64),
    #[error("{0} is no index or term that a log reaches")]
    Number(u64),
    #[error("it asks for a raft snapshot message, which is not for a follower to ask for")]
    AsksForSnapshotMessage,
    #[error("its entry {index} is not what the log can hold there")]
    Entry { index: u64 },
    #[error("it has {0} read index contexts instead of one")]
    ReadIndexContexts(usize),
    #[error("a context of {0} bytes is longer than any that is sent")]
    Context(usize),
    #[error("it continues behind entry {index} of term 0, which no log holds")]
    Base { index: u64 },
    #[error("it has no raft snapshot, or one that no state machine makes")]
    SnapshotMessage,
    #[error("it speaks of entry {index}, but the log ends with entry {last_index}")]
    BeyondLog { index: u64, last_index: u64 },
    #[error("only a leader hands over, and this member does not lead")]
    NotLeader,
    #[error("it answers or orders an election before this member's log and state are in place")]
    Early,
    #[error("no member of that id is known here, and this member has another leader")]
    Unlisted,
}

/// The log ends before what this member has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the raft log ends with entry {last_index}, but this member has acknowledged entries up to \
     {acknowledged_index} to the leader: the disk or somebody has taken entries away. Remove the \
     member from the cluster and add it again with an empty data directory"
)]
pub struct Lost {
    pub acknowledged_index: u64,
    pub last_index: u64,
}

/// What was rejected.
#[derive(Debug, Default)]
pub struct RejectedMessages {
    /// The reason of the last rejection.
    last: Option<Discriminant<Malformed>>,
    lost: Option<Lost>,
}

impl RejectedMessages {
    /// As `note`, where the sender is looked up among the members that `raft` knows.
    pub fn note_by<T: Storage>(
        &mut self,
        message: &Message,
        raft: &raft::Raft<T>,
        fault: Malformed,
    ) {
        self.note(message, is_listed(message, raft), fault);
    }

    /// Logs the first rejection of a kind only: a peer could fill the log otherwise. `is_listed`:
    /// the sender is a member of the configuration here; what another says of this member's log
    /// would end it.
    fn note(&mut self, message: &Message, is_listed: bool, fault: Malformed) {
        let (from, kind) = (MemberId(message.from), message.msg_type);
        let before = self.last.replace(mem::discriminant(&fault));
        if before == self.last {
            tracing::debug!(%from, kind, reason = %fault, "refused a message of a member");
        } else {
            tracing::warn!(%from, kind, reason = %fault, "refused a message of a member");
        }
        if let Malformed::BeyondLog { index, last_index } = fault
            && kind == MessageType::MsgHeartbeat as i32
            && is_listed
        {
            self.lost = Some(Lost {
                acknowledged_index: index,
                last_index,
            });
        }
    }

    /// What a rejected message reveals about this member's log.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }
}

/// Checks a message on its own.
///
/// # Errors
/// A message that no correct member sends, whatever the logs hold.
pub fn check_form(message: &Message) -> Result<(), Malformed> {
    use MessageType::*;
    let kind = MessageType::from_i32(message.msg_type);
    let kind = kind.ok_or(Malformed::Kind(message.msg_type))?;
    match kind {
        // Local messages of raft; and proposals, which etched forwards in its own way.
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum | MsgPropose => {
            return Err(Malformed::Kind(message.msg_type));
        }
        // A follower forwards it; raft panics if it has a term.
        MsgReadIndex if message.term != 0 => return Err(Malformed::Term(message.term)),
        MsgReadIndex => {}
        // A message without a term would be taken for a local one.
        _ if message.term == 0 => return Err(Malformed::Term(0)),
        _ => {}
    }
    if message.from == 0 {
        return Err(Malformed::Nameless);
    }
    check_numbers(message)?;
    if message.request_snapshot != 0 {
        return Err(Malformed::AsksForSnapshotMessage);
    }
    if message.context.len() > MAX_CONTEXT_BYTES {
        return Err(Malformed::Context(message.context.len()));
    }
    match kind {
        MsgAppend => check_append(message),
        MsgReadIndex | MsgReadIndexResp => match message.entries.as_slice() {
            [entry] if entry.data.len() > MAX_CONTEXT_BYTES => {
                Err(Malformed::Context(entry.data.len()))
            }
            [_] => Ok(()),
            entries => Err(Malformed::ReadIndexContexts(entries.len())),
        },
        MsgSnapshot => {
            let metadata = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
            let sound = |metadata: &&SnapshotMetadata| is_sound(metadata, message.term);
            metadata
                .filter(sound)
                .map_or(Err(Malformed::SnapshotMessage), |_| Ok(()))
        }
        _ => Ok(()),
    }
}

fn check_numbers(message: &Message) -> Result<(), Malformed> {
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    match numbers.into_iter().find(|number| *number >= MAX_NUMBER) {
        Some(number) => Err(Malformed::Number(number)),
        None => Ok(()),
    }
}

/// Entries have consecutive indexes, after the entry that they follow.
fn check_append(message: &Message) -> Result<(), Malformed> {
    if message.log_term == 0 && message.index != 0 {
        let index = message.index;
        return Err(Malformed::Base { index });
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        let follows = entry.index == before.0 + 1
            && (before.1.max(1)..=message.term).contains(&entry.term)
            && can_be_logged(entry);
        if !follows {
            let index = entry.index;
            return Err(Malformed::Entry { index });
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}

/// The log keeps an entry's kind and data; etched changes its members one by one.
fn can_be_logged(entry: &Entry) -> bool {
    let kind = EntryType::from_i32(entry.entry_type);
    matches!(
        kind,
        Some(EntryType::EntryNormal | EntryType::EntryConfChange)
    ) && entry.context.is_empty()
}

/// At least one voter, no duplicates, and no joint configuration: raft panics if it cannot restore
/// this.
fn is_sound(metadata: &SnapshotMetadata, term: u64) -> bool {
    let Some(conf) = &metadata.conf_state else {
        return false;
    };
    let mut members = [conf.voters.as_slice(), &conf.learners].concat();
    let count = members.len();
    members.sort_unstable();
    members.dedup();
    (1..MAX_NUMBER).contains(&metadata.index)
        && (1..=term).contains(&metadata.term)
        && !conf.voters.is_empty()
        && members.len() == count
        && members.first() != Some(&0)
        && conf.voters_outgoing.is_empty()
        && conf.learners_next.is_empty()
        && !conf.auto_leave
}

/// Checks a message as the member `raft` would take it.
///
/// # Errors
/// What no member sends to one whose log and role are such.
pub fn check<T: Storage>(message: &Message, raft: &raft::Raft<T>) -> Result<(), Malformed> {
    use MessageType::*;
    check_form(message)?;
    let kind = MessageType::from_i32(message.msg_type);
    // A read index response may return to a former leader.
    if message.from == raft.id && kind != Some(MsgReadIndex) {
        return Err(Malformed::FromSelf);
    }
    // raft ignores messages of earlier terms.
    if message.term < raft.term {
        return Ok(());
    }
    // A leader or a candidate may be new, and this member not know of it yet.
    if message.term - raft.term > MAX_UNLISTED_JUMP && !is_listed(message, raft) {
        return Err(Malformed::Term(message.term));
    }
    let leads = matches!(
        kind,
        Some(MsgAppend | MsgHeartbeat | MsgSnapshot | MsgTimeoutNow)
    );
    if leads && !is_listed(message, raft) && has_leader_beside(message.from, raft) {
        return Err(Malformed::Unlisted);
    }
    let log = &raft.raft_log;
    let on_disk = log.persisted == log.last_index();
    match kind {
        Some(MsgHeartbeat) => reaches(log, message.commit),
        Some(MsgAppendResponse) if raft.state == StateRole::Leader && !message.reject => {
            reaches(log, message.index)
        }
        Some(MsgTransferLeader) if raft.state != StateRole::Leader => Err(Malformed::NotLeader),
        // raft expects a candidate's own log to be durable: it requests votes and acknowledges
        // entries only after that.
        Some(MsgRequestVoteResponse) if raft.state == StateRole::Candidate && !on_disk => {
            Err(Malformed::Early)
        }
        // A sole voter would become the leader at once.
        Some(MsgTimeoutNow) if !on_disk && raft.prs().is_singleton() => Err(Malformed::Early),
        Some(MsgTimeoutNow) if lacks_state(raft) => Err(Malformed::Early),
        _ => Ok(()),
    }
}

/// Whether the sender is a member of the configuration here.
fn is_listed<T: Storage>(message: &Message, raft: &raft::Raft<T>) -> bool {
    raft.prs().get(message.from).is_some()
}

/// True where this member leads, or heard within an election timeout of a leader that it lists. A
/// leader that joined while this member was away finds it without one, at the latest then; raft asks
/// nobody who claims to lead for votes.
fn has_leader_beside<T: Storage>(from: u64, raft: &raft::Raft<T>) -> bool {
    let leader = raft.leader_id;
    raft.state == StateRole::Leader
        || leader != from
            && raft.prs().get(leader).is_some()
            && raft.election_elapsed < raft.election_timeout()
}

/// True while raft has accepted a raft snapshot message whose state is not installed yet. A
/// candidate reads the entries that are not applied, and raft panics if the log does not have them.
pub fn lacks_state<T: Storage>(raft: &raft::Raft<T>) -> bool {
    raft.raft_log.applied() + 1 < raft.raft_log.first_index()
}

fn reaches<T: Storage>(log: &RaftLog<T>, index: u64) -> Result<(), Malformed> {
    let last_index = log.last_index();
    match index <= last_index {
        true => Ok(()),
        false => Err(Malformed::BeyondLog { index, last_index }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_proto::eraftpb::{ConfState, Snapshot};

    /// A message of each kind that members send, from member 2 of term 5.
    fn sound(kind: MessageType) -> Message {
        let entry = |index| Entry {
            index,
            term: 5,
            ..Default::default()
        };
        let mut message = Message {
            msg_type: kind as i32,
            from: 2,
            term: 5,
            index: 8,
            log_term: 4,
            commit: 7,
            ..Default::default()
        };
        match kind {
            MessageType::MsgAppend => message.entries = vec![entry(9), entry(10)],
            MessageType::MsgReadIndex => {
                message.term = 0;
                message.entries = vec![Entry::default()];
            }
            MessageType::MsgReadIndexResp => message.entries = vec![Entry::default()],
            MessageType::MsgSnapshot => message.snapshot = Some(snapshot(&[1, 2], &[3])),
            _ => {}
        }
        message
    }

    fn snapshot(voters: &[u64], learners: &[u64]) -> Snapshot {
        let conf_state = ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..Default::default()
        };
        Snapshot {
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index: 30,
                term: 5,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn what_members_send_is_taken() {
        use MessageType::*;
        for kind in MessageType::values() {
            let of_members = !matches!(
                kind,
                MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum | MsgPropose
            );
            assert_eq!(check_form(&sound(*kind)).is_ok(), of_members, "{kind:?}");
        }
    }

    /// The result for a valid message with one modification.
    fn changed(kind: MessageType, change: impl FnOnce(&mut Message)) -> Malformed {
        let mut message = sound(kind);
        change(&mut message);
        check_form(&message).expect_err("refused")
    }

    #[test]
    fn what_no_member_sends_is_refused() {
        use MessageType::*;
        assert_eq!(changed(MsgAppend, |m| m.msg_type = 99), Malformed::Kind(99));
        assert_eq!(changed(MsgHeartbeat, |m| m.from = 0), Malformed::Nameless);
        assert_eq!(changed(MsgHeartbeat, |m| m.term = 0), Malformed::Term(0));
        assert_eq!(changed(MsgReadIndex, |m| m.term = 5), Malformed::Term(5));
        let far = Malformed::Number(MAX_NUMBER);
        assert_eq!(changed(MsgRequestVote, |m| m.term = MAX_NUMBER), far);
        assert_eq!(changed(MsgAppendResponse, |m| m.index = MAX_NUMBER), far);
        assert_eq!(
            changed(MsgAppendResponse, |m| m.request_snapshot = 1),
            Malformed::AsksForSnapshotMessage
        );
        assert_eq!(
            changed(MsgHeartbeat, |m| m.context = vec![0; 65]),
            Malformed::Context(65)
        );
        assert_eq!(
            changed(MsgReadIndex, |m| m.entries.clear()),
            Malformed::ReadIndexContexts(0)
        );
        assert_eq!(
            changed(MsgAppend, |m| m.log_term = 0),
            Malformed::Base { index: 8 }
        );
    }

    #[test]
    fn entries_follow_each_other() {
        let entry =
            |change: fn(&mut Entry)| changed(MessageType::MsgAppend, |m| change(&mut m.entries[1]));
        let wrong = |index| Malformed::Entry { index };
        assert_eq!(entry(|e| e.index = 11), wrong(11));
        assert_eq!(entry(|e| e.index = 9), wrong(9));
        assert_eq!(entry(|e| e.term = 4), wrong(10));
        assert_eq!(entry(|e| e.term = 6), wrong(10));
        assert_eq!(entry(|e| e.entry_type = 2), wrong(10));
        assert_eq!(entry(|e| e.entry_type = 256), wrong(10));
        assert_eq!(entry(|e| e.context = vec![1]), wrong(10));
    }

    #[test]
    fn a_heartbeat_beyond_the_log_tells_of_a_loss() {
        let fault = Malformed::BeyondLog {
            index: 9,
            last_index: 7,
        };
        let mut refused = RejectedMessages::default();
        refused.note(&sound(MessageType::MsgAppendResponse), true, fault);
        refused.note(&sound(MessageType::MsgHeartbeat), true, Malformed::FromSelf);
        refused.note(&sound(MessageType::MsgHeartbeat), false, fault);
        assert_eq!(refused.lost(), None);
        refused.note(&sound(MessageType::MsgHeartbeat), true, fault);
        let lost = Lost {
            acknowledged_index: 9,
            last_index: 7,
        };
        assert_eq!(refused.lost(), Some(lost));
    }

    #[test]
    fn raft_snapshot_messages_are_of_a_whole_cluster() {
        let with = |snapshot| {
            let mut message = sound(MessageType::MsgSnapshot);
            message.snapshot = snapshot;
            check_form(&message)
        };
        assert_eq!(with(Some(snapshot(&[1], &[]))), Ok(()));
        let refused = Err(Malformed::SnapshotMessage);
        for found in [
            snapshot(&[], &[1]),
            snapshot(&[1, 1], &[]),
            snapshot(&[1, 2], &[2]),
            snapshot(&[0, 1], &[]),
            Snapshot::default(),
        ] {
            assert_eq!(with(Some(found)), refused);
        }
        assert_eq!(with(None), refused);
        let mut joint = snapshot(&[1], &[]);
        if let Some(conf) = &mut joint.mut_metadata().conf_state {
            conf.voters_outgoing = vec![1];
        }
        assert_eq!(with(Some(joint)), refused);
    }
}
