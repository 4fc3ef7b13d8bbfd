//! What a replica hands out, where a world would need much luck to see it go wrong.

use std::sync::Arc;

use super::replica::{self, conf_state_of, encode_hard_state};
use super::{MessageType, Replica};
use crate::storage::raft_log::{EntryId, Files, MemoryDisk, Options, RaftLog};
use crate::types::MemberId;

const MARK: EntryId = EntryId { index: 1, term: 1 };

/// Member 1, the only voter, with a learner; and its log, which it reads.
fn sole_voter_with_learner() -> (Replica, RaftLog) {
    let files: Arc<dyn Files> = Arc::new(MemoryDisk::new());
    let options = Options {
        segment_bytes: 64 << 10,
        cluster_id: 1,
        member_id: 1,
        sync: true,
    };
    let mut log = RaftLog::create(files, options).expect("a new log");
    let hard_state = encode_hard_state(MARK.term, MARK.index);
    log.reset(MARK, Some(&hard_state)).expect("resets");
    let options = replica::Options {
        member: MemberId(1),
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        election_seed: 1,
        recent_entries: super::log::RECENT_ENTRIES,
    };
    let restored = replica::Restored {
        reader: log.reader(),
        hard_state: Some(hard_state.into()),
        conf_state: conf_state_of([MemberId(1)].into_iter(), [MemberId(2)].into_iter()),
        applied_index: MARK.index,
    };
    (Replica::new(options, restored).expect("a replica"), log)
}

/// It elects itself within a tick. Were the learner told before the term is on disk, a crash
/// could have it lead in that term again, with other entries in the same places.
#[test]
fn a_sole_voter_is_not_heard_before_its_term_is_on_disk() {
    let (mut replica, _log) = sole_voter_with_learner();
    while !replica.status().is_leader {
        replica.tick();
    }
    let term = replica.status().term;
    assert!(replica.status().durable_term < term);
    let elected = replica.output().expect("a term to write");
    assert!(elected.messages.is_empty());
    let persist = elected.persist.expect("a term to write");
    assert!(persist.hard_state.is_some());
    let appends = persist.messages.iter();
    let appends = appends.filter(|message| message.get_msg_type() == MessageType::MsgAppend);
    assert_eq!(appends.map(|message| message.to).collect::<Vec<_>>(), [2]);
    // What it proposes meanwhile waits behind that.
    replica.propose(b"early".to_vec()).expect("it leads");
    let proposed = replica.output().expect("an entry to write");
    assert!(proposed.messages.is_empty());
    let proposed = proposed.persist.expect("an entry to write");
    replica.persisted(persist.number);
    assert_eq!(replica.status().durable_term, term);
    replica.persisted(proposed.number);
    // From then on nothing waits for this member's disk.
    replica.tick();
    let beat = replica.output().expect("a heartbeat");
    let beats = |message: &super::Message| message.get_msg_type() == MessageType::MsgHeartbeat;
    assert!(beat.messages.iter().any(beats));
}
