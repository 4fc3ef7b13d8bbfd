//! Deletions and transactions in several batches: whatever a batch may hold, and wherever they are interrupted,
//! what is written and answered is the same as in one.

use std::sync::Arc;

use super::member::{Dump, Logged, Member, dump, entry};
use super::random::{Pair, seeds};
use super::show;
use crate::mvcc::compaction;
use crate::mvcc::write::SliceLimit;
use crate::profile::counting;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, LeaseRevokeRequest, PutRequest, RequestHeader,
    RequestOp, TxnRequest,
};
use crate::state::machine::Staged;
use crate::state::sliced;
use crate::state::{Group, Machine};
use crate::storage::memory::{MemoryEngine, Refuses};
use crate::storage::rocks::{EngineLimits, RocksEngine};
use crate::storage::schema::Unfinished;
use crate::storage::{Batch, Engine};

const LIMITS: EngineLimits = EngineLimits {
    open_files: 256,
    block_cache_bytes: 8 << 20,
    memtable_bytes: 32 << 20,
};

fn keys(keys: usize) -> SliceLimit {
    SliceLimit {
        keys,
        ..SliceLimit::NONE
    }
}

fn bytes(bytes: usize) -> SliceLimit {
    SliceLimit {
        bytes,
        ..SliceLimit::NONE
    }
}

/// Random entries with more deletions of much than usual.
fn random_log(seed: u64) -> Vec<Logged> {
    let mut pair = Pair::new(seed);
    let mut member = Member::new();
    for round in 0..24 {
        pair.grow(&mut member);
        // Of who may do it, where anybody may.
        let mut request = InternalRaftRequest {
            header: Some(RequestHeader {
                username: "root".into(),
                auth_revision: pair.model.auth.revision,
                ..Default::default()
            }),
            ..Default::default()
        };
        match round % 8 {
            3 => request.lease_revoke = Some(LeaseRevokeRequest { id: 1 + round % 4 }),
            7 => {
                request.delete_range = Some(DeleteRangeRequest {
                    key: if round == 7 {
                        "\0".into()
                    } else {
                        "a\0".into()
                    },
                    range_end: if round == 15 { "b".into() } else { "\0".into() },
                    prev_kv: round == 23,
                });
            }
            _ => continue,
        }
        let _ = pair.model.apply(&request);
        pair.log.push(Logged::Request(request));
        let index = pair.log.len() as u64;
        member.apply_group(&pair.log, &[index]);
    }
    pair.log
}

/// What each entry answers, and the state behind it.
fn uncut(log: &[Logged]) -> (Vec<String>, Vec<Dump>) {
    let (answers, states) = uncut_states(log);
    (answers, states.iter().map(|state| dump(state)).collect())
}

fn uncut_states(log: &[Logged]) -> (Vec<String>, Vec<MemoryEngine>) {
    let engine = Arc::new(MemoryEngine::new());
    let mut machine = Machine::open_with(engine.clone(), SliceLimit::NONE).expect("opens");
    let (mut answers, mut states) = (Vec::new(), vec![engine.copy()]);
    for index in 1..=log.len() as u64 {
        let entries = vec![entry(index, &log[index as usize - 1])];
        let group = machine.apply(entries).expect("applies");
        assert!(group.sliced.is_empty());
        answers.push(show::result(&group.applied[0].result));
        states.push(engine.copy());
    }
    (answers, states)
}

/// Applies the log in groups; calls `at_slice` for each state with a part of a deletion.
fn cut(
    log: &[Logged],
    limit: SliceLimit,
    size: usize,
    mut at_slice: impl FnMut(&MemoryEngine, u64),
) -> (Vec<String>, Arc<MemoryEngine>, usize) {
    let engine = Arc::new(MemoryEngine::new());
    let mut machine = Machine::open_with(engine.clone(), limit).expect("opens");
    let indexes: Vec<u64> = (1..=log.len() as u64).collect();
    let (mut answers, mut sliced, mut marked) = (Vec::new(), 0, machine.format());
    for group_indexes in indexes.chunks(size) {
        let entries: Vec<_> = group_indexes
            .iter()
            .map(|index| entry(*index, &log[*index as usize - 1]))
            .collect();
        let mut group = Group::default();
        let stage = |machine: &mut Machine, group: &mut Group| {
            let staged = machine.stage(&entries, group, |_| usize::MAX, |_| ());
            staged.expect("stages")
        };
        loop {
            let written = Machine::format_of(engine.latest()).expect("reads");
            match stage(&mut machine, &mut group) {
                Staged::All => break,
                Staged::Slice => at_slice(&engine, machine.applied_index() + 1),
                Staged::Format => {
                    assert!(written == marked && machine.format() > marked);
                    marked = machine.format();
                }
            }
            let written = Machine::format_of(engine.latest()).expect("reads");
            assert!(written <= marked, "written before the directory says so");
        }
        machine.commit().expect("commits");
        assert_eq!(machine.format(), marked);
        let applied = sliced::applied(engine.as_ref()).expect("reads");
        assert_eq!(applied.unfinished, None);
        sliced += group.sliced.len();
        let shown = group.applied.iter();
        answers.extend(shown.map(|applied| show::result(&applied.result)));
    }
    (answers, engine, sliced)
}

#[test]
fn what_a_batch_may_hold_does_not_show() {
    let mut sliced = 0;
    for seed in seeds(12) {
        println!("seed {seed}");
        let log = random_log(seed);
        let (answers, dumps) = uncut(&log);
        let limits = [keys(1), keys(2), keys(3), bytes(1), bytes(60)];
        for (limit, size) in limits.into_iter().zip([1, 4, log.len(), 3, 2]) {
            let found = cut(&log, limit, size, |_, _| ());
            assert_eq!(found.0, answers, "{limit:?}");
            assert!(dump(found.1.as_ref()) == dumps[log.len()], "{limit:?}");
            sliced += found.2;
        }
    }
    assert!(sliced > 50, "{sliced}");
}

/// The entry that a state is that behind of which holds a part of what entry `index` does.
fn behind(engine: &MemoryEngine, index: u64) -> u64 {
    match sliced::applied(engine).expect("reads").unfinished {
        Some(Unfinished::Delete(_)) => index,
        Some(Unfinished::Txn { .. }) => index - 1,
        None => panic!("it holds no part"),
    }
}

#[test]
fn an_interrupted_entry_is_finished_or_taken_back_to_the_same_bytes() {
    let (mut deletions, mut txns) = (0, 0);
    for seed in seeds(16) {
        println!("seed {seed}");
        let log = random_log(seed);
        let (_, dumps) = uncut(&log);
        cut(&log, keys(2), 3, |engine, index| {
            let behind = behind(engine, index);
            deletions += u64::from(behind == index);
            txns += u64::from(behind < index);
            let copy = Arc::new(engine.copy());
            let applied = Machine::applied(copy.latest()).expect("reads");
            assert_eq!(applied.0, behind);
            let durable = Machine::durable_applied_index(copy.as_ref()).expect("reads");
            assert_eq!(durable, behind);
            for (limit, writes) in [(keys(1), 0), (keys(1), 1), (keys(3), 2), (keys(9), 99)] {
                let copy = Arc::new(engine.copy());
                // Is interrupted again, then left alone.
                copy.refuse(Refuses::AllAfter(writes));
                let _ = Machine::open_with(copy.clone(), limit);
                let copy = Arc::new(copy.copy());
                let mut machine = Machine::open_with(copy.clone(), limit).expect("opens");
                let at = (machine.applied_index(), machine.applied_term());
                assert_eq!(at, applied);
                assert!(
                    dump(copy.as_ref()) == dumps[behind as usize],
                    "entry {index}"
                );
                // It comes again, and the rest of the log.
                let rest = index..=log.len() as u64;
                let rest = rest.map(|index| entry(index, &log[index as usize - 1]));
                machine.apply(rest.collect()).expect("applies");
                assert!(dump(copy.as_ref()) == dumps[log.len()]);
            }
        });
    }
    assert!(deletions > 10 && txns > 10, "{deletions}, {txns}");
}

/// Puts keys with values of 1 KiB; returns the index of the last entry.
fn much(engine: &Arc<RocksEngine>, keys: usize) -> u64 {
    let mut machine = Machine::open(engine.clone()).expect("opens");
    let value = bytes::Bytes::from(vec![b'v'; 1 << 10]);
    let mut index = 0;
    for first in (0..keys).step_by(500) {
        let put = |number: usize| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: format!("k{number:08}").into(),
                value: value.clone(),
                ..Default::default()
            })),
        };
        let txn = TxnRequest {
            success: (first..keys.min(first + 500)).map(put).collect(),
            ..Default::default()
        };
        index += 1;
        apply_txn(&mut machine, index, txn);
    }
    index
}

fn apply_txn(machine: &mut Machine, index: u64, txn: TxnRequest) -> Group {
    let request = InternalRaftRequest {
        txn: Some(txn),
        ..Default::default()
    };
    let logged = Logged::Request(request);
    machine.apply(vec![entry(index, &logged)]).expect("applies")
}

/// 40 MB of values, of which memory never holds a third.
#[test]
fn a_transaction_holds_a_part_of_what_it_deletes() {
    const KEYS: usize = 40_000;
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(RocksEngine::open(dir.path(), LIMITS).expect("opens"));
    let index = much(&engine, KEYS);
    let mut machine = Machine::open(engine).expect("opens");
    let all = DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        prev_kv: false,
    };
    let delete = TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestDeleteRange(all)),
        }],
        ..Default::default()
    };
    let head = machine.head();
    let group = counting::within(24 << 20, || apply_txn(&mut machine, index + 1, delete));
    assert_eq!((machine.head(), machine.keys()), (head + 1, 0));
    let [sliced] = group.sliced.as_slice() else {
        panic!("{:?}", group.sliced);
    };
    assert_eq!((sliced.revision, sliced.puts), (head + 1, 0));
    assert!(group.changes.is_empty());
}

/// Removes compacted history; like a job that is stopped after so many batches.
fn compact(engine: &dyn Engine, batches: usize) -> bool {
    let mut at = compaction::unfinished(engine.latest()).expect("reads");
    let mut batch = Batch::default();
    let begun = at.is_some();
    for _ in 0..batches {
        let Some(progress) = at else {
            break;
        };
        at = compaction::step(engine.view().as_ref(), progress, 3, &mut batch).expect("steps");
        engine.write(&batch).expect("writes");
        batch.clear();
    }
    begun
}

/// What a state holds once every compaction has come to its end.
fn settled(state: &MemoryEngine) -> Dump {
    Member::on(Arc::new(state.copy())).settled_dump()
}

#[test]
fn history_is_removed_between_two_batches() {
    let (mut within, mut slices) = (0, 0);
    for seed in seeds(48) {
        println!("seed {seed}");
        let log = random_log(seed);
        let (_, states) = uncut_states(&log);
        let (_, last, _) = cut(&log, keys(1), 2, |engine, index| {
            slices += 1;
            let batches = [usize::MAX, 1, 0, 2][slices % 4];
            within += usize::from(batches > 0 && compact(engine, batches));
            // A member that begins with this copy, or a start behind a crash.
            let copy = settled(engine);
            let behind = behind(engine, index) as usize;
            assert!(copy == settled(&states[behind]), "entry {index}");
        });
        assert!(settled(&last) == settled(&states[log.len()]));
    }
    assert!(within > 5, "{within} of {slices}");
}
