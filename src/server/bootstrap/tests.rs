//! Starts with and without data, in a network made up.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use prost::Message as _;

use super::network::BootstrapNetwork;
use super::*;
use crate::config::{self, Surroundings};
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest};
use crate::proto::etchedpeer::{Description, MemberChange, Nothing, member_change::Change};
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::raft::replica::{decode_hard_state, encode_hard_state};
use crate::raft::{ConfChange, ConfChangeType};
use crate::server::data_dir::DataDir;
use crate::state::machine;
use crate::storage::raft_log::{Batch, EntryId, LogEntry};
use crate::transport::Boxed;
use crate::types::{ClusterId, MemberId};

/// What each URL answers; one that is absent refuses the connection.
#[derive(Default)]
struct MadeUp(BTreeMap<String, Description>);

impl MadeUp {
    fn with(answers: &[(&str, &Description)]) -> Self {
        let answers = answers.iter();
        Self(
            answers
                .map(|(url, answer)| ((*url).to_owned(), (*answer).clone()))
                .collect(),
        )
    }
}

impl BootstrapNetwork for MadeUp {
    fn describe(&self, url: String, _limit: Duration) -> Boxed<Result<Description, String>> {
        let answer = self.0.get(&url).cloned();
        Box::pin(async move { answer.ok_or_else(|| format!("{url}: connection refused")) })
    }

    fn resolve(&self, host_port: &str) -> io::Result<String> {
        match host_port {
            "host.test:2" => Ok("10.0.0.2:2".to_owned()),
            address if address.starts_with("10.") => Ok(address.to_owned()),
            _ => Err(io::Error::other("no such host")),
        }
    }
}

const THREE: &str = "a=http://10.0.0.1:1,b=http://10.0.0.2:2,c=http://10.0.0.3:3";

/// Member b; `words` are more flags.
fn config(dir: &Path, words: &str) -> Config {
    let around = Surroundings {
        env: Vec::new(),
        read_file: &|_| Err(io::ErrorKind::NotFound.into()),
        default_host: &|| None,
        memory_bytes: &|| Some(64 << 20),
    };
    let own =
        "--name b --initial-advertise-peer-urls http://10.0.0.2:2 --unsafe-no-fsync --data-dir";
    let mut args = vec!["etched".to_owned()];
    args.extend(own.split(' ').map(str::to_owned));
    args.push(dir.to_string_lossy().into_owned());
    args.extend(words.split_whitespace().map(str::to_owned));
    let loaded = config::load(args.into_iter().map(Into::into), &around);
    loaded.expect("is accepted").config
}

fn start_in(dir: &Path, words: &str, network: &MadeUp) -> Result<Restored, Error> {
    let config = config(dir, words);
    let opened = DataDir::open(dir, None, store_limits(&config, 256))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(restore(&config, &opened, network))
}

fn refusal(dir: &Path, words: &str, network: &MadeUp) -> String {
    match start_in(dir, words, network) {
        Ok(_) => "starts".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A member; one with client URLs was up before.
fn member(id: u64, name: &str, url: &str, learner: bool, client_url: &str) -> Member {
    Member {
        id,
        raft_attributes: Some(RaftAttributes {
            peer_urls: vec![url.to_owned()],
            is_learner: learner,
        }),
        member_attributes: Some(Attributes {
            name: name.to_owned(),
            client_urls: match client_url {
                "" => Vec::new(),
                url => vec![url.to_owned()],
            },
        }),
    }
}

/// A cluster of a and c that b was added to, under the id 0xb.
fn cluster() -> Description {
    Description {
        cluster_id: 0xcafe,
        member_id: 0xa,
        members: vec![
            member(0xc, "c", "http://10.0.0.3:3", false, "http://10.0.0.3:9"),
            member(0xa, "a", "http://10.0.0.1:1", false, "http://10.0.0.1:9"),
            member(0xb, "", "http://10.0.0.2:2", false, ""),
        ],
        removed_member_ids: vec![],
        server_version: "3.7.3".to_owned(),
        cluster_version: "3.7.0".to_owned(),
        data_format: 1,
    }
}

fn ids(members: &machine::Machine) -> Vec<u64> {
    members.members().iter().map(|member| member.id).collect()
}

fn existing(cluster: &str) -> String {
    format!("--initial-cluster-state existing --initial-cluster {cluster}")
}

#[test]
fn who_joins_has_nothing_but_its_ids_and_whom_to_dial() {
    let dir = tempfile::tempdir().expect("a directory");
    let answer = cluster();
    let network = MadeUp::with(&[("http://10.0.0.3:3", &answer)]);
    let peers = |restored: &Restored| -> Vec<String> {
        let peers = restored.peers.iter();
        peers
            .map(|peer| format!("{} {}", peer.member, peer.urls.join(" ")))
            .collect()
    };
    let expected = ["a http://10.0.0.1:1", "c http://10.0.0.3:3"];
    {
        let joined = start_in(dir.path(), &existing(THREE), &network).expect("joins");
        let identity = MemberIdentity {
            cluster: ClusterId(0xcafe),
            member: MemberId(0xb),
        };
        assert_eq!(joined.identity, identity);
        assert!(!joined.existed);
        assert_eq!(peers(&joined), expected);
        assert_eq!(ids(&joined.machine), [0_u64; 0]);
        assert_eq!(joined.log.last_index(), 0);
        assert!(!joined.replica.is_sole_voter());
    }
    // Killed before anything came: it neither asks again nor forgets whom to dial.
    let again = start_in(dir.path(), "", &MadeUp::default()).expect("starts again");
    assert!(again.existed);
    assert_eq!(peers(&again), expected);
    assert_eq!(again.machine.applied_index(), 0);
}

#[test]
fn a_name_and_its_address_are_the_same_member() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut answer = cluster();
    answer.members[2] = member(0xb, "", "http://host.test:2", true, "");
    let network = MadeUp::with(&[("http://10.0.0.3:3", &answer)]);
    let joined = start_in(dir.path(), &existing(THREE), &network).expect("joins");
    assert_eq!(joined.identity.member, MemberId(0xb));
}

#[test]
fn a_member_that_lags_decides_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let answer = cluster();
    let mut stale = cluster();
    stale.members.truncate(2);
    let network = MadeUp::with(&[
        ("http://10.0.0.1:1", &stale),
        ("http://10.0.0.3:3", &answer),
    ]);
    let joined = start_in(dir.path(), &existing(THREE), &network).expect("joins");
    assert_eq!(joined.identity.member, MemberId(0xb));
    // It still lists an earlier member with this one's URL, which the other knows was removed.
    let dir = tempfile::tempdir().expect("a directory");
    let mut stale = cluster();
    stale.members[2].id = 0xbb;
    let mut answer = cluster();
    answer.removed_member_ids = vec![0xbb];
    let network = MadeUp::with(&[
        ("http://10.0.0.1:1", &stale),
        ("http://10.0.0.3:3", &answer),
    ]);
    let joined = start_in(dir.path(), &existing(THREE), &network).expect("joins");
    assert_eq!(joined.identity.member, MemberId(0xb));
}

/// Refuses to join, for each kind of mistake, and leaves the directory free for another try.
#[test]
fn refusals_to_join() {
    let asked = "http://10.0.0.3:3";
    let shown = "{ClusterID:cafe Members:[\
        &{ID:a RaftAttributes:{PeerURLs:[http://10.0.0.1:1] IsLearner:false} Attributes:{Name:a ClientURLs:[http://10.0.0.1:9]}} \
        &{ID:b RaftAttributes:{PeerURLs:[http://10.0.0.2:2] IsLearner:false} Attributes:{Name: ClientURLs:[]}} \
        &{ID:c RaftAttributes:{PeerURLs:[http://10.0.0.3:3] IsLearner:false} Attributes:{Name:c ClientURLs:[http://10.0.0.3:9]}}] RemovedMemberIDs:[]}";
    let change = |change: &dyn Fn(&mut Description)| {
        let mut answer = cluster();
        change(&mut answer);
        answer
    };
    let with_two = format!("error validating peerURLs {shown}: member count is unequal");
    let other_url = format!(
        "error validating peerURLs {shown}: PeerURLs: no match found for existing member (a, [http://10.0.0.1:1]), \
         last resolver error (resolved urls: \"http://10.0.0.1:1\" != \"http://10.0.0.1:7\")"
    );
    let cases: Vec<(&str, Description, &str)> = vec![
        (
            "b=http://10.0.0.2:2,c=http://10.0.0.3:3",
            cluster(),
            &with_two,
        ),
        (
            "a=http://10.0.0.1:7,b=http://10.0.0.2:2,c=http://10.0.0.3:3",
            cluster(),
            &other_url,
        ),
        (
            THREE,
            change(&|answer| answer.members.clear()),
            "cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs",
        ),
        (
            THREE,
            change(&|answer| answer.cluster_version.clear()),
            "incompatible with current running cluster",
        ),
        (
            THREE,
            change(&|answer| answer.cluster_version = "3.8.0".to_owned()),
            "incompatible with current running cluster",
        ),
        (
            THREE,
            change(&|answer| {
                for member in &mut answer.members[1..] {
                    let raft = member.raft_attributes.as_mut().expect("has some");
                    raft.is_learner = true;
                }
            }),
            "membership: too many learner members in cluster",
        ),
        (
            THREE,
            change(&|answer| {
                answer.members[2] = member(0xb, "b", "http://10.0.0.2:2", false, "http://x:1");
            }),
            "member b has already been bootstrapped; its data is gone, so remove it from the cluster and add it again",
        ),
        (
            THREE,
            change(&|answer| answer.removed_member_ids.push(0xb)),
            "member b was removed from the cluster; add it again before it joins",
        ),
        (
            "a=http://10.0.0.1:1",
            cluster(),
            "couldn't find local name \"b\" in the initial cluster configuration",
        ),
    ];
    let dir = tempfile::tempdir().expect("a directory");
    for (named, answer, text) in &cases {
        let network = MadeUp::with(&[(asked, answer)]);
        assert_eq!(refusal(dir.path(), &existing(named), &network), *text);
    }
    assert_eq!(
        refusal(dir.path(), &existing(THREE), &MadeUp::default()),
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
    );
    let other = change(&|answer| answer.cluster_id = 0xbeef);
    let network = MadeUp::with(&[("http://10.0.0.1:1", &other), (asked, &cluster())]);
    assert_eq!(
        refusal(dir.path(), &existing(THREE), &network),
        "cannot fetch cluster info from peer urls: the given URLs belong to different clusters, beef and cafe"
    );
    let discovered =
        "--initial-cluster-state existing --discovery-token t --discovery-endpoints 127.0.0.1:1";
    assert_eq!(
        refusal(dir.path(), discovered, &MadeUp::default()),
        "discovery URL should not be set when joining existing initial cluster"
    );
    let network = MadeUp::with(&[(asked, &cluster())]);
    assert_eq!(refusal(dir.path(), &existing(THREE), &network), "starts");
}

fn new(words: &str) -> String {
    format!("--initial-cluster {THREE} {words}")
}

#[test]
fn founders_that_ran_before_or_were_removed_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let founded = config(dir.path(), &new(""))
        .listed_cluster()
        .expect("is read")
        .founded_by("b")
        .expect("has b");
    let describe = |client_url: &str| {
        let member_of = |founder: &config::Founder| {
            let url = &founder.peer_urls[0];
            member(founder.id.0, &founder.name, url, false, client_url)
        };
        Description {
            cluster_id: founded.cluster_id.0,
            members: founded.founders.iter().map(member_of).collect(),
            ..cluster()
        }
    };
    let own = founded.member_id;
    let ran = MadeUp::with(&[("http://10.0.0.3:3", &describe("http://x:1"))]);
    assert_eq!(
        refusal(dir.path(), &new(""), &ran),
        format!("member {own} has already been bootstrapped")
    );
    let mut removed = describe("");
    removed.members.clear();
    removed.removed_member_ids = vec![own.0];
    let network = MadeUp::with(&[("http://10.0.0.1:1", &removed)]);
    let text = refusal(dir.path(), &new(""), &network);
    let expected = format!(
        "member {own} was removed from cluster {}",
        founded.cluster_id
    );
    assert!(text.starts_with(&expected), "{text}");
    // One peer of another cluster does not keep the others from founding theirs.
    let first_up = describe("");
    let network = MadeUp::with(&[
        ("http://10.0.0.1:1", &cluster()),
        ("http://10.0.0.3:3", &first_up),
    ]);
    let made = start_in(dir.path(), &new(""), &network).expect("founds");
    assert_eq!(made.identity.member, own);
    assert_eq!(ids(&made.machine).len(), 3);
    let peers: Vec<_> = made.peers.iter().map(|peer| peer.urls.join(" ")).collect();
    assert_eq!(peers.len(), 2);
    assert!(
        !peers.contains(&"http://10.0.0.2:2".to_owned()),
        "{peers:?}"
    );
}

/// Recovery in place: the others still run the old cluster, or one of them already the new one,
/// with this member's URLs under another id.
#[test]
fn a_founder_with_another_token_is_another_member() {
    let other_token = |dir: &Path| {
        let config = config(dir, &new("--initial-cluster-token other"));
        let listed = config.listed_cluster().expect("is read");
        listed.founded_by("b").expect("has b")
    };
    let mut old = cluster();
    old.members[2] = member(0xb, "b", "http://10.0.0.2:2", false, "http://10.0.0.2:9");
    let mut removed = old.clone();
    removed.members.pop();
    removed.removed_member_ids = vec![0xb];
    let worlds: [&[(&str, &Description)]; 3] = [
        &[("http://10.0.0.1:1", &old), ("http://10.0.0.3:3", &old)],
        &[("http://10.0.0.3:3", &old)],
        &[("http://10.0.0.3:3", &removed)],
    ];
    for answers in worlds {
        let dir = tempfile::tempdir().expect("a directory");
        let founded = other_token(dir.path());
        let words = new("--initial-cluster-token other");
        let made = start_in(dir.path(), &words, &MadeUp::with(answers)).expect("founds");
        assert_eq!(made.identity.cluster, founded.cluster_id);
        assert_eq!(made.identity.member, founded.member_id);
    }
    // Its own id is what it is refused for, whatever cluster knows it.
    let dir = tempfile::tempdir().expect("a directory");
    let own = other_token(dir.path()).member_id;
    old.members[2].id = own.0;
    let network = MadeUp::with(&[("http://10.0.0.1:1", &old)]);
    assert_eq!(
        refusal(dir.path(), &new("--initial-cluster-token other"), &network),
        format!("member {own} has already been bootstrapped")
    );
}

#[test]
fn a_founder_whose_peers_are_down_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(refusal(dir.path(), &new(""), &MadeUp::default()), "starts");
}

#[test]
fn data_without_an_identity_is_not_founded_upon() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = start_in(dir.path(), &new(""), &MadeUp::default()).expect("founds");
    let mut log = made.log;
    log.append(Batch {
        entries: &[put(2, "k")],
        hard_state: None,
    })
    .expect("appends");
    drop((log, made.machine, made.replica));
    std::fs::remove_file(dir.path().join("member/IDENTITY")).expect("removes");
    let text = refusal(dir.path(), &new(""), &MadeUp::default());
    assert!(text.contains("IDENTITY file is missing"), "{text}");
    // Nor does the state alone pass for nothing.
    std::fs::remove_dir_all(dir.path().join("member/wal")).expect("removes");
    let joining = MadeUp::with(&[("http://10.0.0.3:3", &cluster())]);
    let text = refusal(dir.path(), &existing(THREE), &joining);
    assert!(text.contains("IDENTITY file is missing"), "{text}");
}

/// An entry of the log, its kind in front.
fn logged(index: u64, kind: u8, data: Vec<u8>) -> LogEntry {
    let data = [vec![kind], data].concat();
    LogEntry {
        index,
        term: 3,
        data: data.into(),
    }
}

fn put(index: u64, key: &str) -> LogEntry {
    let request = InternalRaftRequest {
        put: Some(PutRequest {
            key: key.to_owned().into(),
            value: "v".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    logged(index, 0, request.encode_to_vec())
}

fn change(index: u64, member: MemberId, change: Change) -> LogEntry {
    let change = MemberChange {
        member_id: member.0,
        change: Some(change),
        max_learners: 1,
        request_id: 0,
    };
    let conf_change = ConfChange {
        change_type: ConfChangeType::RemoveNode as i32,
        node_id: member.0,
        context: change.encode_to_vec(),
        ..Default::default()
    };
    logged(index, 1, prost_11::Message::encode_to_vec(&conf_change))
}

/// A founder of three with a log: puts at 2 and 3, `changed` at 4, a put at 5, and this member's
/// own removal at 6; committed up to 4.
fn survivor(dir: &Path, changed: impl FnOnce(MemberId) -> LogEntry) -> MemberId {
    let made = start_in(dir, &new(""), &MadeUp::default()).expect("founds");
    let own = made.identity.member;
    let mut log = made.log;
    let removal = change(6, own, Change::Remove(Nothing {}));
    let entries = [put(2, "a"), put(3, "b"), changed(own), put(5, "c"), removal];
    log.append(Batch {
        entries: &entries,
        hard_state: Some(&encode_hard_state(4, 4)),
    })
    .expect("appends");
    own
}

fn check_forced(restored: &Restored, own: MemberId) {
    assert_eq!(ids(&restored.machine), [own.0]);
    assert!(restored.replica.is_sole_voter());
    assert!(restored.peers.is_empty());
    let members = restored.machine.members();
    assert!(!members.removed().any(|removed| removed == own));
    // Every put is there, the one that was not known to be committed too.
    assert_eq!(restored.machine.keys(), 3);
    assert_eq!(restored.machine.applied_index(), 7);
    assert_eq!(restored.machine.applied_term(), 4);
    assert_eq!(restored.log.compacted(), EntryId { index: 7, term: 4 });
    assert_eq!(restored.log.last_index(), 7);
    let status = restored.replica.status();
    assert_eq!((status.term, status.commit_index), (4, 7));
}

#[test]
fn a_survivor_becomes_a_single_member_with_all_it_has() {
    let learner = RaftAttributes {
        peer_urls: vec!["http://10.0.0.2:2".to_owned()],
        is_learner: true,
    };
    type Changed = fn(MemberId, &RaftAttributes) -> LogEntry;
    let cases: [Changed; 3] = [
        |_, _| put(4, "b"),
        // It was removed, and that was committed.
        |own, _| change(4, own, Change::Remove(Nothing {})),
        |_, learner| change(4, MemberId(0xd), Change::Add(learner.clone())),
    ];
    for changed in cases {
        let dir = tempfile::tempdir().expect("a directory");
        let own = survivor(dir.path(), |own| changed(own, &learner));
        let identity = |dir: &Path| std::fs::read(dir.join("member/IDENTITY")).expect("reads");
        let before = identity(dir.path());
        {
            let forced = start_in(dir.path(), "--force-new-cluster", &MadeUp::default());
            check_forced(&forced.expect("starts"), own);
        }
        assert_eq!(identity(dir.path()), before);
        // And it stays so, with or without the flag.
        let again = start_in(dir.path(), "", &MadeUp::default());
        check_forced(&again.expect("starts"), own);
    }
}

#[test]
fn forcing_can_be_cut_anywhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = survivor(dir.path(), |_| put(4, "b"));
    let flags = config(dir.path(), "--force-new-cluster");
    let cut = |reset: bool| {
        let opened = DataDir::open(dir.path(), None, store_limits(&flags, 256)).expect("opens");
        let opened: &dyn MemberDir = &opened;
        let identity = opened.identity().expect("reads").expect("is there");
        let (mut log, recovered) =
            restore::open_log(opened, identity, &options(&flags)).expect("opens");
        let entry_id =
            force::prepare(&flags, opened, identity, &log, &recovered).expect("prepares");
        if reset {
            let hard_state = encode_hard_state(entry_id.term, entry_id.index);
            log.reset(entry_id, Some(&hard_state)).expect("resets");
        }
    };
    // Before the log was reset everything is as it was, twice over.
    for _ in 0..2 {
        cut(false);
        let plain = start_in(dir.path(), "", &MadeUp::default()).expect("starts");
        assert_eq!(ids(&plain.machine).len(), 3);
        assert_eq!(plain.log.last_index(), 6);
        assert_eq!(plain.machine.applied_index(), 1);
        assert!(!plain.replica.is_sole_voter());
    }
    // After it the forced state is the member's, whatever flags the next start has.
    cut(true);
    let forced = start_in(dir.path(), "", &MadeUp::default()).expect("starts");
    check_forced(&forced, own);
}

#[test]
fn forced_again_it_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = survivor(dir.path(), |_| put(4, "b"));
    let force = "--force-new-cluster";
    let forced = start_in(dir.path(), force, &MadeUp::default()).expect("starts");
    let mut log = forced.log;
    // Written and acknowledged; the commit index reaches the disk with the next write only.
    let mut acknowledged = put(8, "d");
    acknowledged.term = 5;
    log.append(Batch {
        entries: &[acknowledged],
        hard_state: Some(&encode_hard_state(5, 7)),
    })
    .expect("appends");
    drop((log, forced.machine, forced.replica));
    let again = start_in(dir.path(), force, &MadeUp::default()).expect("starts");
    assert_eq!(again.machine.keys(), 4);
    assert_eq!(ids(&again.machine), [own.0]);
    assert_eq!(again.log.compacted(), EntryId { index: 9, term: 5 });
}

#[test]
fn a_learner_that_is_forced_votes() {
    let dir = tempfile::tempdir().expect("a directory");
    let network = MadeUp::with(&[("http://10.0.0.3:3", &cluster())]);
    let mut joined = start_in(dir.path(), &existing(THREE), &network).expect("joins");
    let own = joined.identity.member;
    // As a received state would leave it.
    let members = vec![
        member(0xa, "a", "http://10.0.0.1:1", false, ""),
        member(own.0, "b", "http://10.0.0.2:2", true, ""),
    ];
    joined
        .machine
        .bootstrap(joined.identity.cluster, members, 5, 2)
        .expect("writes");
    joined.machine.engine().flush().expect("flushes");
    let hard_state = encode_hard_state(2, 5);
    let entry_id = EntryId { index: 5, term: 2 };
    joined
        .log
        .reset(entry_id, Some(&hard_state))
        .expect("resets");
    drop(joined);
    {
        let plain = start_in(dir.path(), "", &MadeUp::default()).expect("starts");
        assert!(!plain.replica.is_sole_voter());
    }
    let forced = start_in(dir.path(), "--force-new-cluster", &MadeUp::default());
    let forced = forced.expect("starts");
    assert!(forced.replica.is_sole_voter());
    assert_eq!(ids(&forced.machine), [own.0]);
    assert!(decode_hard_state(&encode_hard_state(2, 6)).is_some());
    let member = forced.machine.members().get(own).expect("is there");
    assert!(!crate::state::membership::is_learner(member));
}
