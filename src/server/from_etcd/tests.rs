//! What logs say, and which directories are refused. Directories of real etcds are tried in
//! compat-tests.

use std::path::Path;
use std::sync::Arc;

use super::survey::Survey;
use super::*;
use crate::backup::export::Export;
use crate::backup::wal::message::{
    ConfChange, ConfState, Entry, HardState, Metadata, SnapshotRecord, change_kind, entry_kind,
};
use crate::backup::wal::write::Encoder;
use crate::config::{self, Surroundings};
use crate::env::SystemClock;
use crate::proto::membershippb::RaftAttributes;
use crate::raft::replica::{decode_hard_state, decode_vote};
use crate::storage::memory::MemoryEngine;
use prost::Message;

/// Reads a log in words: `meta`, `state COMMIT`, `snap INDEX/TERM VOTERS`, `INDEX/TERM` for an
/// entry, `INDEX/TERM +ID`, `~ID` and `-ID` for one that adds a voter or a learner or removes one.
fn survey(text: &str) -> Result<Survey, wal::Error> {
    let mut survey = Survey::default();
    for line in text.split(", ") {
        let words: Vec<&str> = line.split(' ').collect();
        let id = |word: &str| {
            let (index, term) = word.split_once('/').expect("an index and a term");
            (index.parse::<u64>().ok(), term.parse::<u64>().ok())
        };
        survey.add(match words[..] {
            ["meta"] => Record::Metadata(Metadata {
                node_id: Some(1),
                cluster_id: Some(2),
            }),
            ["state", commit] => Record::State(HardState {
                term: Some(1),
                vote: None,
                commit: commit.parse().ok(),
            }),
            ["snap", at, ref voters @ ..] => {
                let (index, term) = id(at);
                let voters = voters.iter().map(|id| id.parse().expect("an id"));
                let voters: Vec<u64> = voters.collect();
                Record::Snapshot(SnapshotRecord {
                    index,
                    term,
                    conf_state: (!voters.is_empty()).then(|| ConfState {
                        voters,
                        ..Default::default()
                    }),
                })
            }
            [at, ref change @ ..] => {
                let (index, term) = id(at);
                let change = change.first().map(|change| {
                    let (sign, node) = change.split_at(1);
                    let kind = match sign {
                        "+" => change_kind::ADD_NODE,
                        "~" => change_kind::ADD_LEARNER_NODE,
                        _ => change_kind::REMOVE_NODE,
                    };
                    ConfChange {
                        kind: Some(kind),
                        node_id: node.parse().ok(),
                        ..Default::default()
                    }
                });
                Record::Entry(Entry {
                    kind: change.as_ref().map(|_| entry_kind::CONF_CHANGE),
                    index,
                    term,
                    data: change.map(|change| change.encode_to_vec().into()),
                })
            }
            [] => continue,
        })?;
    }
    Ok(survey)
}

fn applied(index: u64, term: Option<u64>) -> Applied {
    Applied {
        index,
        term,
        ..Default::default()
    }
}

fn checked(text: &str, applied: &Applied) -> Result<String, String> {
    let survey = survey(text).map_err(|error| error.to_string())?;
    let (begin, at) = survey.check(applied).map_err(|error| error.to_string())?;
    let last = survey.last(begin);
    let commit = survey.commit(applied.index);
    Ok(format!(
        "behind {}/{}, applied {}/{}, committed {commit} of {last}",
        begin.index, begin.term, at.index, at.term
    ))
}

#[test]
fn a_log_and_a_state_match_or_not() {
    let log = "meta, snap 0/0, 1/1, 2/1, 3/2, 4/2, state 3";
    for (text, state, expected) in [
        (
            log,
            (2, Some(1)),
            Ok("behind 0/0, applied 2/1, committed 3 of 4"),
        ),
        // The state is further than the log knows, which etcd does not always write.
        (
            log,
            (4, Some(2)),
            Ok("behind 0/0, applied 4/2, committed 4 of 4"),
        ),
        // etcd 3.4 did not write the term.
        (
            log,
            (3, None),
            Ok("behind 0/0, applied 3/2, committed 3 of 4"),
        ),
        (
            log,
            (0, None),
            Ok("behind 0/0, applied 0/0, committed 3 of 4"),
        ),
        (
            log,
            (5, Some(2)),
            Err("ends at entry 4, but its state is that after entry 5"),
        ),
        (log, (3, Some(1)), Err("entry 3 is of term 1 in its state")),
        // Entries that were replaced.
        (
            "meta, snap 0/0, 1/1, 2/1, 3/1, 2/2, state 2",
            (2, Some(2)),
            Ok("behind 0/0, applied 2/2, committed 2 of 2"),
        ),
        // From the newest snapshot record that the state holds; the last one does not count.
        (
            "meta, snap 0/0, 1/1, 2/1, snap 2/1, 3/1, state 3, snap 4/1",
            (3, Some(1)),
            Ok("behind 2/1, applied 3/1, committed 3 of 3"),
        ),
        (
            "meta, snap 0/0, 1/1, 2/1, snap 2/1, 3/1, state 3",
            (1, Some(1)),
            Err("no snapshot that its state holds"),
        ),
        // A state came from another member, and entries behind it.
        (
            "meta, snap 0/0, 1/1, snap 7/2, 8/2, state 8",
            (7, Some(2)),
            Ok("behind 7/2, applied 7/2, committed 8 of 8"),
        ),
        (
            "meta, snap 0/0, 1/1, snap 7/2, state 7",
            (7, Some(2)),
            Ok("behind 7/2, applied 7/2, committed 7 of 7"),
        ),
        (
            "meta, snap 0/0, 1/1, 3/1, state 1",
            (1, Some(1)),
            Err("entry 3 follows entry 1"),
        ),
        (
            "meta, snap 0/0, 1/1, state 2",
            (1, Some(1)),
            Err("entry 2 is committed"),
        ),
        // Older segments were removed.
        (
            "meta, 5/1, 6/1, snap 6/1, 7/1, state 7",
            (6, Some(1)),
            Ok("behind 6/1, applied 6/1, committed 7 of 7"),
        ),
        (
            "meta, snap 2/1, 5/1, 6/1, state 6",
            (6, Some(1)),
            Err("begins behind entry 4, but its newest snapshot is that after entry 2"),
        ),
    ] {
        let found = checked(text, &applied(state.0, state.1));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{text}: {found:?} and not {expected:?}"),
        }
    }
}

#[test]
fn members_have_the_roles_that_raft_gave_them() {
    let member = |id: u64, is_learner| Member {
        id,
        raft_attributes: Some(RaftAttributes {
            peer_urls: Vec::new(),
            is_learner,
        }),
        member_attributes: None,
    };
    let log = "meta, snap 0/0, 1/1 +1, 2/1 +2, 3/1 ~3, 4/1 +3, 5/1 -2, state 5";
    let later = "meta, snap 4/1 1 2 3, 5/1 -2, state 5";
    let silent = "meta, snap 4/1, 5/1, state 5";
    // Voters and learners that are listed, the voters that the state names, the voters found.
    for (text, voters, learners, of_state, expected) in [
        (log, &[1, 3][..], &[][..], None, Ok(&[1, 3][..])),
        (later, &[1, 3], &[], Some(&[1, 3][..]), Ok(&[1, 3])),
        // A promotion that the list missed, and a removal.
        (log, &[1], &[3], Some(&[1, 3]), Ok(&[1, 3])),
        (log, &[1, 2, 3], &[], Some(&[1, 3]), Ok(&[1, 3])),
        (later, &[1, 2, 3], &[], None, Ok(&[1, 3])),
        // Nobody says other than the list.
        (silent, &[1, 9], &[], None, Ok(&[1, 9])),
        (silent, &[1, 2, 9], &[], Some(&[1, 9]), Ok(&[1, 9])),
        // What another cluster left in a state that was restored.
        (log, &[1, 3], &[], Some(&[7, 8]), Ok(&[1, 3])),
        (log, &[1, 4], &[], Some(&[7, 8]), Err(())),
    ] {
        let ids = |ids: &[u64]| ids.iter().copied().map(MemberId).collect();
        let listed = voters.iter().map(|id| member(*id, false));
        let applied = Applied {
            index: 5,
            term: Some(1),
            members: listed
                .chain(learners.iter().map(|id| member(*id, true)))
                .collect(),
            raft: of_state.map(|voters: &[u64]| (ids(voters), Vec::new())),
            ..Default::default()
        };
        let survey = survey(text).expect("is read");
        let (begin, _) = survey.check(&applied).expect("matches");
        let found = survey.members(&applied, begin, None);
        let expected = expected.map(|ids: &[u64]| {
            let members = ids.iter().map(|id| member(*id, false));
            members.collect::<Vec<_>>()
        });
        assert_eq!(found.map_err(|_| ()), expected, "{text} {voters:?}");
    }
}

fn config_of(dir: &Path) -> Config {
    let around = Surroundings {
        env: Vec::new(),
        read_file: &|_| Err(io::ErrorKind::NotFound.into()),
        default_host: &|| None,
        memory_bytes: &|| Some(64 << 20),
    };
    let args = ["etched".into(), "--data-dir".into(), dir.as_os_str().into()];
    config::load(args, &around).expect("is accepted").config
}

/// Why a directory is not taken over, if it is not.
fn refusal(dir: &Path) -> String {
    let config = config_of(dir);
    let limits = bootstrap::store_limits(&config, 64);
    match take_over(&config, limits, &SystemClock::new()) {
        Ok(()) => "nothing to do".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_directory_that_is_no_etcds_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(refusal(dir.path()), "nothing to do");
    let snap = dir.path().join("member/snap");
    fs::create_dir_all(&snap).expect("makes");
    assert_eq!(refusal(dir.path()), "nothing to do");
    fs::write(snap.join("db"), "x").expect("writes");
    let text = refusal(dir.path());
    assert!(text.contains("its raft log is missing"), "{text}");
    assert!(
        text.ends_with("(docs/MIGRATE.md, \"By a snapshot\")"),
        "{text}"
    );
    let held = File::open(snap.join("db")).expect("opens");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    let text = refusal(dir.path());
    assert!(text.contains("an etcd runs on it"), "{text}");
    // Neither is it used beside an etcd once it was taken over.
    fs::create_dir(dir.path().join("etched")).expect("makes");
    let text = refusal(dir.path());
    assert!(text.contains("an etcd runs on it"), "{text}");
    fs::remove_dir(dir.path().join("etched")).expect("removes");
    drop(held);
    fs::write(dir.path().join("member/IDENTITY"), "x").expect("writes");
    let text = refusal(dir.path());
    assert!(text.contains("move member/snap away"), "{text}");
    fs::create_dir(dir.path().join("etched")).expect("makes");
    assert_eq!(refusal(dir.path()), "nothing to do");
}

/// Makes an etcd's directory: a voter of three, which applied entry 5 of term 2 and then said this.
fn make_etcds(dir: &Path, said: HardState) {
    let voters = [1, 2, 3];
    let member = |id| Member {
        id,
        ..Default::default()
    };
    let mut machine = Machine::open(Arc::new(MemoryEngine::new())).expect("opens");
    let members = voters.into_iter().map(member).collect();
    machine
        .bootstrap(ClusterId(9), members, 5, 2)
        .expect("bootstraps");
    let (snap_dir, wal_dir) = (dir.join("member/snap"), dir.join("member/wal"));
    for made in [&snap_dir, &wal_dir] {
        fs::create_dir_all(made).expect("makes");
    }
    let export = Export::new(machine.engine().latest(), &snap_dir, &|| true).expect("exports");
    let mut db = Vec::new();
    let mut keep = |part: Vec<u8>| {
        db.extend(part);
        Ok(())
    };
    export.write(&mut keep).expect("exports");
    fs::write(snap_dir.join("db"), db).expect("writes");
    let mut log = Encoder::new(&Metadata {
        node_id: Some(2),
        cluster_id: Some(9),
    });
    log.snapshot(&SnapshotRecord {
        index: Some(5),
        term: Some(2),
        conf_state: Some(ConfState {
            voters: voters.into(),
            ..Default::default()
        }),
    });
    log.state(&said);
    fs::write(wal_dir.join(wal::segment_name(0, 0)), log.take()).expect("writes");
}

#[test]
fn term_and_vote_are_taken_along() {
    for (term, vote) in [(2, 0), (2, 3), (7, 2), (7, 3), (8, 0)] {
        let dir = tempfile::tempdir().expect("a directory");
        let said = HardState {
            term: Some(term),
            vote: Some(vote),
            commit: Some(5),
        };
        make_etcds(dir.path(), said);
        assert_eq!(refusal(dir.path()), "nothing to do");
        let config = config_of(dir.path());
        let limits = bootstrap::store_limits(&config, 64);
        let opened = DataDir::open_read_only(dir.path(), None, limits).expect("opens");
        let opened: &dyn MemberDir = &opened;
        let identity = opened.identity().expect("reads").expect("is there");
        assert_eq!(
            (identity.cluster, identity.member),
            (ClusterId(9), MemberId(2))
        );
        let options = bootstrap::options(&config).log(identity);
        let files = opened.log_files().expect("opens");
        let (_, recovered) = RaftLog::inspect(files, &options).expect("reads");
        let kept = recovered.hard_state.expect("is there");
        assert_eq!(decode_hard_state(&kept), Some((term, 5)));
        assert_eq!(decode_vote(&kept), Some(vote));
    }
}
