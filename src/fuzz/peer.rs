//! Other members: batches of messages and parts of states as they come over the wire, and raft
//! messages of any content stepped into a member at work.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use crate::proto::etchedpeer::forwarded;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{
    Forwarded, MemberChange, MessageBatch, Nothing, PeerRequest, PeerResponse, SnapshotFile,
    SnapshotPart, member_change, peer_request,
};
use crate::proto::membershippb;
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::raft::{Message, MessageType, Persist, Replica, Snapshot, SnapshotMetadata, admit};
use crate::replica::proposal::{Proposal, Proposed};
use crate::replica::router::Router;
use crate::replica::work::Work;
use crate::state::Machine;
use crate::state::machine::{Entry as ToApply, Payload};
use crate::storage::memory::MemoryEngine;
use crate::storage::raft_log::{self, EntryId, Files, MemoryDisk, RaftLog};
use crate::transport::{PeerMessage, edges};
use crate::types::MemberId;
use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::Entry;

use super::Seed;
use super::input::{Input, Script};
use super::memory;

/// As for requests; a message of raft's takes four bytes on the way where it is empty.
const BYTES_PER_BYTE: usize = 256;
const BYTES_FIXED: usize = 16 << 10;

/// Reads a batch as a lane does; what was read is the same after it was sent on. A request and
/// an answer are read from the same bytes.
pub fn batch(bytes: &[u8]) {
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes.len();
    let bytes = Bytes::copy_from_slice(bytes);
    let read = memory::within(limit_bytes, || {
        let batch = MessageBatch::decode(bytes.clone()).ok()?;
        Some((batch.probe, edges::read(batch)))
    });
    if let Some((probe, Ok(incoming))) = read {
        for message in &incoming.messages {
            if let PeerMessage::Raft(message) = message {
                assert_eq!(admit::check_form(message), Ok(()));
            }
        }
        let shown = format!("{:?}", incoming.messages);
        let probe = Some(probe).filter(|probe| *probe != 0);
        let sent_on = edges::encoded(incoming.messages, probe);
        let batch = MessageBatch::decode(sent_on.as_slice()).expect("what was encoded decodes");
        assert_eq!(batch.probe, probe.unwrap_or_default());
        let again = edges::read(batch).expect("what was read is read again");
        assert_eq!(again.malformed, None);
        assert_eq!(format!("{:?}", again.messages), shown);
    }
    if let Ok(request) = PeerRequest::decode(bytes.clone()) {
        let again = PeerRequest::decode(request.encode_to_vec().as_slice());
        assert_eq!(again, Ok(request));
    }
    if let Ok(answer) = PeerResponse::decode(bytes) {
        let again = PeerResponse::decode(answer.encode_to_vec().as_slice());
        assert_eq!(again, Ok(answer));
    }
}

/// Where files may be written fast.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => memory,
        false => std::env::temp_dir(),
    }
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Takes the parts of a transferred state: it is whole and as announced, or nothing is left of it.
pub fn snapshot(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut parts = Vec::new();
    while !input.is_empty() {
        let bytes = Bytes::copy_from_slice(input.block());
        match SnapshotPart::decode(bytes) {
            Ok(part) => parts.push(part),
            // The stream breaks.
            Err(_) => break,
        }
    }
    let dir = tempfile::tempdir_in(scratch()).expect("a directory");
    let incoming = dir.path().join("incoming");
    let limit_bytes = BYTES_FIXED + 16 * bytes.len();
    let announced = parts.clone();
    let written = memory::within(limit_bytes, || {
        edges::write(&incoming, 7, parts.into_iter())
    });
    assert_eq!(count(dir.path()), 1, "nothing is written elsewhere");
    match written {
        Ok(whole) => {
            let is_snapshot = whole.message.msg_type == MessageType::MsgSnapshot as i32;
            assert!(is_snapshot && admit::check_form(&whole.message).is_ok());
            assert_eq!(count(&incoming), 1);
            check_files(whole.dir.path(), &announced, whole.size_bytes);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(count(&incoming), 0, "nothing is left");
}

/// The files are those that were sent, byte for byte.
fn check_files(dir: &Path, parts: &[SnapshotPart], size_bytes: u64) {
    let mut sent: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut name = String::new();
    for part in parts {
        match &part.part {
            Some(Part::File(file)) => {
                name.clone_from(&file.name);
                sent.entry(name.clone()).or_default();
            }
            Some(Part::Data(bytes)) => sent.entry(name.clone()).or_default().extend(bytes),
            Some(Part::Message(_)) => break,
            _ => {}
        }
    }
    assert_eq!(count(dir), sent.len());
    assert_eq!(
        sent.values().map(|file| file.len() as u64).sum::<u64>(),
        size_bytes
    );
    for (name, bytes) in sent {
        assert_eq!(std::fs::read(dir.join(name)).expect("a file"), bytes);
    }
}

const ME: u64 = 1;
const BEGINNING: EntryId = EntryId { index: 5, term: 2 };
const LIMIT_TICKS: u64 = 50;
/// raft draws the rest of an election timeout: a follower that ticks less often does the same in
/// every run.
const MAX_TICKS: u64 = 9;
const MAX_STEPS: usize = 400;

const TICK: u8 = 0;
const CAMPAIGN: u8 = 1;
const PERSIST: u8 = 2;
const APPLY: u8 = 3;
const PROPOSE: u8 = 4;
const READ: u8 = 5;
const RAW: u8 = 6;
const FORWARDED: u8 = 7;
const REFUSED: u8 = 8;
const UNREACHABLE: u8 = 9;
const OFFER: u8 = 10;
const RESTORE: u8 = 11;
const TRANSFER: u8 = 12;
/// And everything above.
const MESSAGE: u8 = 16;

/// A member at work.
struct Member {
    router: Router,
    log: RaftLog,
    machine: Machine,
    persists: VecDeque<Persist>,
    entries: VecDeque<ToApply>,
    /// What was handed out to be applied: it never changes.
    committed: BTreeMap<u64, u64>,
    commit_index: u64,
    ticks: u64,
    proposed: u64,
}

/// The member stopped in good order: it says why and does no more.
struct Stopped;

fn members(count: u64, learner: bool) -> Vec<membershippb::Member> {
    let member = |id, is_learner| membershippb::Member {
        id,
        raft_attributes: Some(membershippb::RaftAttributes {
            peer_urls: vec![format!("http://{id}:2380")],
            is_learner,
        }),
        ..Default::default()
    };
    let mut members: Vec<_> = (1..=count).map(|id| member(id, false)).collect();
    if learner {
        members.push(member(4, true));
    }
    members
}

fn machine(members: Vec<membershippb::Member>, entry_id: EntryId) -> Machine {
    let mut machine = Machine::open(Arc::new(MemoryEngine::new())).expect("an empty store opens");
    machine
        .bootstrap(
            crate::types::ClusterId(1),
            members,
            entry_id.index,
            entry_id.term,
        )
        .expect("writes");
    machine
}

impl Member {
    /// One of as many voters, beside whom there may be a learner.
    fn start(voters: u64, learner: bool) -> Self {
        let options = raft_log::LogOptions {
            segment_bytes: 16 << 10,
            cluster_id: 1,
            member_id: ME,
            sync: true,
        };
        let files: Arc<dyn Files> = Arc::new(MemoryDisk::new());
        let mut log = RaftLog::create(files, options).expect("a new log");
        let hard_state = encode_hard_state(BEGINNING.term, BEGINNING.index);
        log.reset(BEGINNING, Some(&hard_state)).expect("resets");
        let machine = machine(members(voters, learner), BEGINNING);
        let restored = replica::InitialState {
            reader: log.reader(),
            hard_state: Some(hard_state.into()),
            conf_state: conf_state_of(machine.members().voters(), machine.members().learners()),
            applied_index: BEGINNING.index,
        };
        let options = replica::ReplicaOptions {
            member: MemberId(ME),
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            election_seed: 7,
            recent_entries: crate::raft::log::RECENT_ENTRIES,
        };
        let replica = Replica::new(options, restored).expect("a replica");
        Self {
            router: Router::new(MemberId(ME), replica, 0, LIMIT_TICKS),
            log,
            machine,
            persists: VecDeque::new(),
            entries: VecDeque::new(),
            committed: BTreeMap::new(),
            commit_index: BEGINNING.index,
            ticks: 0,
            proposed: 0,
        }
    }

    fn act(&mut self, action: u8, input: &mut Input<'_>) -> Result<(), Stopped> {
        match action {
            TICK if self.router.status().is_leader || self.ticks < MAX_TICKS => {
                self.ticks += u64::from(!self.router.status().is_leader);
                self.router.tick();
            }
            TICK => {}
            // As at the start of a member alone; others only as their ticks have it.
            CAMPAIGN if self.persists.is_empty() => drop(self.router.campaign()),
            CAMPAIGN => {}
            PERSIST => self.persist()?,
            APPLY => self.apply()?,
            PROPOSE => self.propose(),
            READ => self.router.read_index(Box::new(|_| ())),
            RAW => {
                let bytes = Bytes::copy_from_slice(input.block());
                let message: Result<Message, _> = prost_11::Message::decode(bytes);
                if let Ok(message) = message {
                    self.router.step(message);
                }
            }
            FORWARDED => {
                let from = MemberId(input.number(2));
                if let Ok(message) = Forwarded::decode(input.block()) {
                    self.router.propose_for(from, message);
                }
            }
            REFUSED => {
                let id = input.number(self.proposed);
                let term = input.number(self.router.status().term);
                let error = Error::ALL[usize::from(input.u8()) % Error::ALL.len()];
                self.router.refused(id, term, error);
            }
            UNREACHABLE => {
                let member = MemberId(u64::from(input.u8() % 6));
                match input.u8() % 3 {
                    0 => self.router.report_unreachable(member),
                    taken => self.router.report_snapshot(member, taken == 1),
                }
            }
            OFFER => self.offer(),
            RESTORE => {
                let mut message = self.message(MessageType::MsgSnapshot as u8, input);
                message.snapshot = Some(self.snapshot(input));
                self.router.restore(message);
            }
            TRANSFER => drop(self.router.hand_over()),
            kind => {
                let message = self.message(kind.wrapping_sub(MESSAGE), input);
                self.router.step(message);
            }
        }
        self.work()
    }

    /// A message of the kind, its numbers mostly near to where this member stands.
    fn message(&self, kind: u8, input: &mut Input<'_>) -> Message {
        let status = self.router.status();
        let from = match input.u8() {
            from @ 0..=4 => u64::from(from),
            from if from < 0xf0 => 2 + u64::from(from % 2),
            _ => input.u64(),
        };
        let mut message = Message {
            msg_type: (kind % 32).into(),
            to: ME,
            from,
            term: input.number(status.term),
            index: input.number(status.last_index),
            log_term: input.number(status.term),
            commit: input.number(status.commit_index),
            ..Default::default()
        };
        let more = input.u8();
        if more & 1 != 0 {
            message.reject = input.u8() & 1 != 0;
            message.reject_hint = input.number(status.last_index);
            message.commit_term = input.number(status.term);
        }
        if more & 2 != 0 {
            message.context = input.block().to_vec();
            message.request_snapshot = input.number(0);
            message.priority = input.u64() as i64;
        }
        if more & 4 != 0 {
            let mut before = (message.index, message.log_term);
            for _ in 0..input.u8() % 6 {
                let entry = Entry {
                    entry_type: (input.u8() / 0x60).into(),
                    index: input.number(before.0.wrapping_add(1)),
                    term: input.number(before.1),
                    data: input.block().to_vec(),
                    ..Default::default()
                };
                before = (entry.index, entry.term);
                message.entries.push(entry);
            }
        }
        if more & 8 != 0 {
            message.snapshot = Some(self.snapshot(input));
        }
        message
    }

    fn snapshot(&self, input: &mut Input<'_>) -> Snapshot {
        let status = self.router.status();
        let mut metadata = SnapshotMetadata {
            index: input.number(status.last_index),
            term: input.number(status.term),
            conf_state: Some(conf_state_of(
                (1..=3).map(MemberId),
                [4].into_iter().map(MemberId),
            )),
        };
        let how = input.u8();
        if let Some(conf) = metadata.conf_state.as_mut().filter(|_| how & 1 != 0) {
            let mut ids = || input.block().iter().map(|id| u64::from(id % 8)).collect();
            (conf.voters, conf.learners) = (ids(), ids());
            if how & 2 != 0 {
                (conf.voters_outgoing, conf.learners_next) = (ids(), ids());
                conf.auto_leave = how & 4 != 0;
            }
        }
        if how & 8 != 0 {
            metadata.conf_state = None;
        }
        Snapshot {
            metadata: (how & 16 == 0).then_some(metadata),
            ..Default::default()
        }
    }

    fn offer(&mut self) {
        let members = self.machine.members();
        let metadata = SnapshotMetadata {
            conf_state: Some(conf_state_of(members.voters(), members.learners())),
            index: self.machine.applied_index(),
            term: self.machine.applied_term(),
        };
        self.router.offer_snapshot(Some(Snapshot {
            metadata: Some(metadata),
            ..Default::default()
        }));
    }

    fn propose(&mut self) {
        self.proposed += 1;
        let request = put(self.proposed);
        let encoded = request.encode_to_vec();
        self.router.propose(Proposal {
            what: Proposed::Request(Arc::new(request), encoded),
            fence_term: None,
            awaited_until: None,
            span: tracing::Span::none(),
            reply: Box::new(|_| ()),
        });
    }

    fn work(&mut self) -> Result<(), Stopped> {
        while let Some(work) = self.router.work() {
            self.take(work);
        }
        let status = self.router.status();
        assert!(
            status.commit_index >= self.commit_index,
            "what is committed stays so"
        );
        assert!(status.commit_index <= status.last_index);
        self.commit_index = status.commit_index;
        Ok(())
    }

    fn take(&mut self, work: Work) {
        for message in &work.messages {
            assert_ne!(message.to, 0, "a message to nobody");
        }
        for entry in work.entries {
            if let Some((last, term)) = self.committed.last_key_value() {
                assert!(
                    entry.index > *last && entry.term >= *term,
                    "entries out of order"
                );
            }
            self.committed.insert(entry.index, entry.term);
            self.entries.push_back(entry);
        }
        self.persists.extend(work.persist);
    }

    /// Makes the first part durable.
    fn persist(&mut self) -> Result<(), Stopped> {
        let Some(persist) = self.persists.pop_front() else {
            return Ok(());
        };
        let hard_state = persist.hard_state.as_deref();
        if let Some(entry_id) = persist.reset {
            self.log.reset(entry_id, hard_state).map_err(|_| Stopped)?;
            // The received state takes the place of what was to be applied.
            self.machine = machine(members(3, true), entry_id);
            self.entries.clear();
        }
        let batch = raft_log::Batch {
            entries: &persist.entries,
            hard_state,
        };
        self.log.append(batch).expect("raft's entries fit the log");
        self.router.persisted(persist.number);
        if let Some(entry_id) = persist.reset {
            self.router
                .applied(entry_id.index, &[])
                .map_err(|_| Stopped)?;
        }
        Ok(())
    }

    /// Applies the first entry.
    fn apply(&mut self) -> Result<(), Stopped> {
        let Some(entry) = self.entries.pop_front() else {
            return Ok(());
        };
        if entry.index <= self.machine.applied_index() {
            return Ok(());
        }
        assert!(matches!(
            entry.payload,
            Payload::Empty | Payload::Request(_) | Payload::Decoded(_) | Payload::Membership(_)
        ));
        // An entry of the leader's that cannot be read stops the member.
        let group = self.machine.apply(vec![entry]).map_err(|_| Stopped)?;
        let index = self.machine.applied_index();
        let applied = self.router.applied(index, &group.member_changes);
        applied.map_err(|_| Stopped)
    }

    /// What was handed out is what the log holds.
    fn check(mut self) -> Result<(), Stopped> {
        while !self.persists.is_empty() {
            self.persist()?;
            self.work()?;
        }
        for (index, term) in self.committed.range(self.log.first_index()..) {
            if *index <= self.log.last_index() {
                assert_eq!(self.log.term(*index), Some(*term), "entry {index}");
            }
        }
        Ok(())
    }
}

/// Steps what the input says into a member, whose log and machine work beside it.
pub fn step(bytes: &[u8]) {
    // How a run ends that ended in good order is not checked.
    drop(run_member(bytes));
}

fn run_member(bytes: &[u8]) -> Result<(), Stopped> {
    let mut input = Input::new(bytes);
    let who = input.u8();
    let mut member = Member::start([3, 1, 2, 3][usize::from(who % 4)], who & 4 != 0);
    member.work()?;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let action = input.u8();
        member.act(action, &mut input)?;
    }
    member.check()
}

fn put(id: u64) -> InternalRaftRequest {
    InternalRaftRequest {
        header: Some(RequestHeader {
            id,
            ..Default::default()
        }),
        put: Some(PutRequest {
            key: "k".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn raft(kind: MessageType) -> Message {
    let mut message = Message {
        msg_type: kind as i32,
        to: ME,
        from: 2,
        term: 3,
        index: BEGINNING.index,
        log_term: BEGINNING.term,
        commit: BEGINNING.index,
        ..Default::default()
    };
    match kind {
        MessageType::MsgAppend => message.entries.push(Entry {
            index: BEGINNING.index + 1,
            term: 3,
            data: put(9).encode_to_vec(),
            ..Default::default()
        }),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            message.entries.push(Entry {
                data: vec![1; 16],
                ..Default::default()
            });
        }
        MessageType::MsgSnapshot => {
            message.snapshot = Some(Snapshot {
                metadata: Some(SnapshotMetadata {
                    conf_state: Some(conf_state_of((1..=3).map(MemberId), [].into_iter())),
                    index: 40,
                    term: 3,
                }),
                ..Default::default()
            });
        }
        _ => {}
    }
    if kind == MessageType::MsgReadIndex {
        message.term = 0;
    }
    message
}

const KINDS: [MessageType; 15] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgSnapshot,
    MessageType::MsgTimeoutNow,
    MessageType::MsgTransferLeader,
    MessageType::MsgPropose,
    MessageType::MsgHup,
];

fn raft_bytes(message: &Message) -> Vec<u8> {
    prost_11::Message::encode_to_vec(message)
}

fn requested(bytes: impl Into<Bytes>) -> Forwarded {
    Forwarded {
        request_id: 9,
        term: 3,
        proposal: Some(forwarded::Proposal::Request(bytes.into())),
        trace: Bytes::new(),
    }
}

fn change() -> Forwarded {
    Forwarded {
        proposal: Some(forwarded::Proposal::MemberChange(MemberChange {
            member_id: 2,
            change: Some(member_change::Change::Remove(Nothing {})),
            max_learners: 1,
            request_id: 9,
        })),
        ..requested("")
    }
}

pub fn batch_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for kind in KINDS {
        let messages = vec![PeerMessage::Raft(raft(kind))];
        seeds.push(Seed::new(
            kind.as_str_name(),
            edges::encoded(messages, None),
        ));
    }
    let unknown = Message {
        msg_type: 77,
        ..raft(MessageType::MsgAppend)
    };
    let mut strange = raft(MessageType::MsgAppend);
    strange.entries[0].entry_type = 77;
    for (name, message) in [("unknown-kind", unknown), ("unknown-entry", strange)] {
        let messages = vec![PeerMessage::Raft(message)];
        seeds.push(Seed::new(name, edges::encoded(messages, None)));
    }
    let mixed = vec![
        PeerMessage::Raft(raft(MessageType::MsgHeartbeat)),
        PeerMessage::Forwarded(requested(put(9).encode_to_vec())),
        PeerMessage::Forwarded(change()),
        PeerMessage::Refused {
            request_id: 9,
            term: 3,
            error: Error::NotLeader,
        },
    ];
    seeds.push(Seed::new("mixed", edges::encoded(mixed, Some(300))));
    // Messages without anything in them, and lists of such.
    let nothing = MessageBatch {
        messages: vec![Default::default(); 2_000],
        probe: 1,
    };
    seeds.push(Seed::new("of-nothing", nothing.encode_to_vec()));
    let mut many = raft(MessageType::MsgAppend);
    many.entries = vec![Entry::default(); 2_000];
    let many = edges::encoded(vec![PeerMessage::Raft(many)], None);
    seeds.push(Seed::new("entries-of-nothing", many));
    let request = PeerRequest {
        request: Some(peer_request::Request::Describe(Nothing {})),
    };
    seeds.push(Seed::new("request", request.encode_to_vec()));
    seeds
}

pub fn snapshot_seeds() -> Vec<Seed> {
    let file = |name: &str, size_bytes| {
        Part::File(SnapshotFile {
            name: name.to_owned(),
            size_bytes,
        })
    };
    let data = |text: &'static str| Part::Data(text.into());
    let end = |text: &str| Part::FileEnd(crc32c::crc32c(text.as_bytes()));
    let message = || Part::Message(raft_bytes(&raft(MessageType::MsgSnapshot)).into());
    let heartbeat = Part::Message(raft_bytes(&raft(MessageType::MsgHeartbeat)).into());
    let script = |parts: Vec<Part>| {
        parts.into_iter().fold(Script::default(), |script, part| {
            script.block(&SnapshotPart { part: Some(part) }.encode_to_vec())
        })
    };
    let whole = || vec![file("a", 3), data("x"), data("yz"), end("xyz")];
    let with = |mut parts: Vec<Part>, more: Vec<Part>| {
        parts.extend(more);
        script(parts).0
    };
    vec![
        Seed::new("whole", with(whole(), vec![message()])),
        Seed::new(
            "two-files",
            with(whole(), vec![file("b", 0), end(""), message()]),
        ),
        Seed::new("no-file", with(vec![], vec![message()])),
        Seed::new("cut", with(whole(), vec![])),
        Seed::new("heartbeat", with(whole(), vec![heartbeat])),
        Seed::new(
            "too-long",
            with(vec![file("a", 1), data("xy")], vec![message()]),
        ),
        Seed::new(
            "elsewhere",
            with(vec![file("../a", 1), data("x"), end("x")], vec![message()]),
        ),
        Seed::new(
            "twice",
            with(whole(), vec![file("a", 0), end(""), message()]),
        ),
    ]
}

fn raw(script: Script, message: &Message) -> Script {
    script.u8(RAW).block(&raft_bytes(message))
}

/// What raft itself would stop the process at, given a log and a role for it.
fn impossible_seeds() -> Vec<Seed> {
    let follower = || Script::default().u8(0);
    let beyond = Message {
        commit: BEGINNING.index + 9,
        ..raft(MessageType::MsgHeartbeat)
    };
    // A leader's entries are here, but not on disk.
    let append = raft(MessageType::MsgAppend);
    let vote = Message {
        term: 4,
        ..raft(MessageType::MsgRequestVoteResponse)
    };
    let timeout = raft(MessageType::MsgTimeoutNow);
    let elected = raw(raw(raw(follower(), &append), &timeout), &vote);
    let alone = raw(raw(Script::default().u8(5), &append), &timeout);
    let behind_nothing = Message {
        index: BEGINNING.index + 20,
        log_term: 0,
        ..raft(MessageType::MsgAppend)
    };
    let mut hole = raft(MessageType::MsgAppend);
    hole.entries[0].index += 1;
    let mut unknown = raft(MessageType::MsgAppend);
    unknown.entries[0].entry_type = 77;
    let no_context = Message {
        entries: Vec::new(),
        ..raft(MessageType::MsgReadIndex)
    };
    let of_no_term = Message {
        term: 0,
        ..raft(MessageType::MsgHeartbeat)
    };
    let passed_on = raw(follower(), &raft(MessageType::MsgHeartbeat));
    let mut snapshot = raft(MessageType::MsgSnapshot);
    if let Some(conf) = &mut snapshot.mut_snapshot().mut_metadata().conf_state {
        conf.voters = vec![1, 1];
    }
    [
        ("beyond-the-log", raw(follower(), &beyond)),
        ("elected-before-disk", elected),
        ("alone-before-disk", alone),
        ("behind-nothing", raw(follower(), &behind_nothing)),
        ("hole", raw(follower(), &hole)),
        ("unknown-entry", raw(follower(), &unknown)),
        ("no-context", raw(passed_on, &no_context)),
        ("of-no-term", raw(follower().u8(CAMPAIGN), &of_no_term)),
        (
            "passed-on",
            raw(
                raw(follower(), &raft(MessageType::MsgHeartbeat)),
                &raft(MessageType::MsgTransferLeader),
            ),
        ),
        ("members-twice", raw(follower(), &snapshot)),
    ]
    .map(|(name, script)| Seed::new(format!("impossible-{name}"), script.0))
    .into()
}

/// Persists and applies what a script made.
fn settled(mut script: Script) -> Script {
    for _ in 0..3 {
        script = script.u8(PERSIST).u8(APPLY);
    }
    script
}

/// The leader of three: it stands for election, and two others vote for it.
fn leader() -> Script {
    let script = settled(Script::default().u8(4).u8(CAMPAIGN));
    let vote = |kind| Message {
        term: 3,
        ..raft(kind)
    };
    let script = raw(script, &vote(MessageType::MsgRequestPreVoteResponse));
    let script = settled(script);
    let script = raw(script, &vote(MessageType::MsgRequestVoteResponse));
    acknowledged(script, 1)
}

/// So many entries behind the beginning are acknowledged.
fn acknowledged(script: Script, entries: u64) -> Script {
    let acknowledged = Message {
        index: BEGINNING.index + entries,
        ..raft(MessageType::MsgAppendResponse)
    };
    settled(raw(settled(script), &acknowledged))
}

pub fn step_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for kind in KINDS {
        let script = raw(Script::default().u8(0), &raft(kind));
        let name = format!("follower-{}", kind.as_str_name());
        seeds.push(Seed::new(name, settled(script).0));
    }
    seeds.extend(leader_seeds());
    seeds.extend(impossible_seeds());
    let alone = settled(Script::default().u8(5).u8(CAMPAIGN)).u8(PROPOSE);
    seeds.push(Seed::new("alone", settled(alone).u8(READ).u8(TICK).0));
    let restored = Script::default().u8(0).u8(RESTORE).u8(2);
    let restored = restored
        .u8(0)
        .u8(0)
        .u8(0)
        .u8(0)
        .u8(0)
        .u8(0xb0)
        .u8(9)
        .u8(0)
        .u8(0);
    seeds.push(Seed::new("restored", settled(restored).u8(TICK).0));
    let refused = raw(Script::default().u8(0), &raft(MessageType::MsgHeartbeat));
    let refused = refused.u8(PROPOSE).u8(REFUSED).number(1).number(3).u8(36);
    seeds.push(Seed::new("refused", settled(refused).0));
    seeds
}

fn leader_seeds() -> Vec<Seed> {
    let message = |script: Script, kind: MessageType, from: u8| {
        let script = script.u8(MESSAGE + kind as u8).u8(from);
        // As far as this member is itself.
        script.u8(0).u8(0).u8(0).u8(0).u8(0)
    };
    let mut seeds = Vec::new();
    for kind in KINDS {
        let script = settled(raw(leader().u8(PROPOSE), &raft(kind)));
        let name = format!("leader-{}", kind.as_str_name());
        seeds.push(Seed::new(name, settled(script.u8(TICK)).0));
    }
    let served = |script: Script| {
        let script = script.u8(PROPOSE).u8(READ).u8(TICK).u8(PERSIST);
        let script = message(script, MessageType::MsgAppendResponse, 2);
        settled(message(script, MessageType::MsgHeartbeatResponse, 3)).u8(TICK)
    };
    seeds.push(Seed::new("leader-serves", served(leader()).0));
    let forward = |name: &str, forwarded: &Forwarded| {
        let script = leader().u8(FORWARDED).number(2);
        let script = script.block(&forwarded.encode_to_vec());
        Seed::new(name, acknowledged(script, 2).0)
    };
    let request = requested(put(9).encode_to_vec());
    seeds.push(forward("leader-forwarded", &request));
    let garbage = requested(&b"\xff\xff"[..]);
    seeds.push(forward("leader-forwarded-garbage", &garbage));
    seeds.push(forward("leader-forwarded-nothing", &requested("")));
    seeds.push(forward("leader-forwarded-change", &change()));
    let offered = settled(leader().u8(OFFER))
        .u8(UNREACHABLE)
        .u8(2)
        .u8(0)
        .u8(TICK);
    seeds.push(Seed::new("leader-offers", settled(offered).u8(TRANSFER).0));
    seeds
}
