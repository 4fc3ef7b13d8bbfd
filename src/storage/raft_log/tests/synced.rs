//! A log that lost its end, distinguished from one whose last write was torn by the mark of how far
//! it was synced.

use super::super::synced::FILE_NAME;
use super::super::{Damage, Files, Stats};
use super::*;
use crate::probe::{self, Defect};

/// A log of 30 entries in three segments, marked when it held `marked` of them, and where the frames
/// of the last segment end.
fn marked_at(marked: u64) -> (MemoryDisk, Vec<usize>) {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    let mut ends = vec![64];
    for index in 1..=30 {
        let bytes = if index < 30 { 250 } else { 700 };
        append(&mut log, &[entry(index, 1, bytes)], None);
        if index == marked {
            log.synced_mark().write().expect("a mark");
        }
        let position = log.writer.position();
        if position.sequence == 3 {
            ends.push(position.offset as usize);
        }
    }
    assert_eq!(ends.len(), 5);
    (disk, ends)
}

/// What is left of a log whose last segment reads as zeros from `from` on.
fn zeroed(disk: &MemoryDisk, sequence: u64, from: usize) -> Result<Recovered, Error> {
    let harmed = disk.copy();
    harmed
        .tamper(&segment(sequence), |bytes| bytes[from..].fill(0))
        .expect("the segment");
    let before = harmed.contents();
    let opened = open(&harmed).map(|(_, recovered)| recovered);
    assert!(opened.is_ok() || harmed.contents() == before, "written to");
    opened
}

fn assert_missing(outcome: Result<Recovered, Error>, what: &str) {
    let error = outcome.expect_err(what);
    assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
    let text = error.to_string();
    for part in ["are missing", "entry 30 of term 1", "remove this member"] {
        assert!(text.contains(part), "{what}: {text}");
    }
}

#[test]
fn what_was_synced_before_the_mark_cannot_vanish() {
    let (disk, ends) = marked_at(30);
    let end = ends[4];
    for from in (0..end - 8).step_by(8) {
        let opened = zeroed(&disk, 3, from);
        // What crashes leave: they take sectors, or whole frames.
        if from % 512 == 0 || ends.contains(&from) {
            assert_missing(opened, &format!("zeros from {from}"));
        } else {
            opened.expect_err("damage of some kind");
        }
    }
    zeroed(&disk, 3, end).expect("all that was synced is there");
}

#[test]
fn behind_the_mark_a_lost_end_looks_like_a_torn_write() {
    let (disk, ends) = marked_at(28);
    let recovered = zeroed(&disk, 3, ends[4] / 512 * 512).expect("a torn tail");
    assert_eq!(recovered.last_index, 29);
    assert!(recovered.torn_tail.is_some());
    let recovered = zeroed(&disk, 3, ends[2]).expect("nothing is left behind the mark");
    assert_eq!((recovered.last_index, recovered.torn_tail), (28, None));
    let error = zeroed(&disk, 3, ends[1]).expect_err("what was synced is missing");
    assert!(error.to_string().contains("entry 28 of term 1"), "{error}");
}

#[test]
fn a_segment_that_was_begun_is_missed_without_another_behind_it() {
    let (disk, _) = marked_at(1);
    let harms: [fn(&MemoryDisk); 4] = [
        |disk| {
            let clear = |bytes: &mut Vec<u8>| bytes.clear();
            disk.tamper(&segment(3), clear).expect("the segment");
        },
        |disk| {
            let zero = |bytes: &mut Vec<u8>| bytes.fill(0);
            disk.tamper(&segment(3), zero).expect("the segment");
        },
        |disk| disk.unlink(&segment(3)).expect("the segment"),
        |disk| {
            for sequence in 1..=3 {
                disk.unlink(&segment(sequence)).expect("the segment");
            }
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let harmed = disk.copy();
        harm(&harmed);
        let error = open(&harmed).map(drop).expect_err("it was begun");
        let text = error.to_string();
        assert!(text.contains("are missing"), "{number}: {text}");
        let again = RaftLog::create(Arc::new(harmed), OPTIONS);
        assert!(matches!(again.err(), Some(Error::Exists { .. })));
    }
}

#[test]
fn the_mark_itself_is_missed() {
    let (disk, _) = marked_at(20);
    let harms: [fn(&MemoryDisk); 4] = [
        |disk| disk.unlink(FILE_NAME).expect("it is there"),
        |disk| disk.tamper(FILE_NAME, Vec::clear).expect("it is there"),
        |disk| {
            let zero = |bytes: &mut Vec<u8>| bytes.fill(0);
            disk.tamper(FILE_NAME, zero).expect("it is there");
        },
        |disk| {
            let flip = |bytes: &mut Vec<u8>| {
                bytes[50] ^= 1;
                bytes[4096 + 50] ^= 1;
            };
            disk.tamper(FILE_NAME, flip).expect("it is there");
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let harmed = disk.copy();
        harm(&harmed);
        let error = open(&harmed).map(drop).expect_err("no mark");
        assert!(
            matches!(&error, Error::Damaged { file, .. } if file.ends_with(FILE_NAME)),
            "{number}: {error}"
        );
    }
}

#[test]
fn one_record_is_enough() {
    let (disk, _) = marked_at(30);
    for at in 0..2 {
        for byte in [0, 8, 40, 48, 76] {
            let harmed = disk.copy();
            harmed
                .tamper(FILE_NAME, |bytes| bytes[at * 4096 + byte] ^= 1)
                .expect("it is there");
            let (mut log, recovered) = open(&harmed).expect("the other record");
            assert_eq!(recovered.last_index, 30);
            // The next one takes the place of the one that is harmed.
            append(&mut log, &[entry(31, 1, 10)], None);
            log.synced_mark().write().expect("a mark");
            drop(log);
            harmed
                .tamper(FILE_NAME, |bytes| bytes[(1 - at) * 4096 + byte] ^= 1)
                .expect("it is there");
            open(&harmed).expect("the new record");
        }
    }
}

#[test]
fn a_mark_of_somebody_else_is_refused() {
    let (disk, _) = marked_at(30);
    let other = MemoryDisk::new();
    let options = LogOptions {
        member_id: 1,
        ..OPTIONS
    };
    drop(RaftLog::create(Arc::new(other.clone()), options).expect("a new log"));
    let mark = other.contents().remove(FILE_NAME).expect("a mark");
    disk.tamper(FILE_NAME, |bytes| bytes.clone_from(&mark))
        .expect("it is there");
    let error = open(&disk).map(drop).expect_err("of another member");
    assert!(
        matches!(error, Error::Foreign { member_id: 1, .. }),
        "{error}"
    );
}

#[test]
fn an_append_costs_one_sync_whatever_is_marked() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    let mark = log.synced_mark();
    let mut begun = segments(&disk).len();
    let mut made = 0;
    for index in 1..=60 {
        let (operations, Stats { syncs, .. }) = (disk.operations(), log.stats());
        append(&mut log, &[entry(index, 1, 250)], None);
        assert_eq!(log.stats().syncs, syncs + 1);
        let files = segments(&disk).len();
        if files == begun {
            assert_eq!(disk.operations() - operations, 2, "a write and its sync");
        } else {
            // Made here, for want of a thread that does: a name, its zeros, and their syncs. Then
            // the frame and the mark, each with its sync.
            assert_eq!(disk.operations() - operations, 4 + 2 + 2);
            assert!(!mark.is_behind());
            made += 1;
        }
        begun = files;
        if index % 7 == 0 {
            let operations = disk.operations();
            let was_behind = mark.is_behind();
            mark.write().expect("a mark");
            mark.write().expect("nothing new");
            assert_eq!(disk.operations() - operations, 2 * u64::from(was_behind));
        }
    }
    assert!(made >= 3);
}

#[test]
fn a_log_that_is_not_synced_is_not_marked() {
    let disk = MemoryDisk::new();
    let options = LogOptions {
        sync: false,
        ..OPTIONS
    };
    let mut log = RaftLog::create(Arc::new(disk.clone()), options).expect("a new log");
    let before = disk.contents().remove(FILE_NAME);
    for index in 1..=30 {
        append(&mut log, &[entry(index, 1, 250)], None);
    }
    assert!(!log.synced_mark().is_behind());
    log.synced_mark().write().expect("nothing to write");
    drop(log);
    let (log, _) = RaftLog::open(Arc::new(disk.clone()), options).expect("the log");
    log.synced_mark().write().expect("nothing to write");
    assert_eq!(disk.contents().remove(FILE_NAME), before);
    drop(log);
    // From now on it is.
    let (log, _) = open(&disk).expect("the log");
    assert!(log.synced_mark().is_behind());
}

#[test]
fn a_mark_that_could_not_be_written_is_not_tried_again() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &[entry(1, 1, 250)], None);
    disk.fail_next_sync();
    let mark = log.synced_mark();
    assert!(matches!(mark.write(), Err(Error::Io { .. })));
    assert!(matches!(mark.write(), Err(Error::Failed)));
    assert!(!mark.is_behind());
    drop(log);
    disk.crash(3);
    let (_, recovered) = open(&disk).expect("the record before it");
    assert_eq!(recovered.last_index, 1);
}

#[test]
fn entries_replaced_compacted_and_reset_leave_the_mark_true() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..20, 1, 250), None);
    log.synced_mark().write().expect("a mark");
    append(&mut log, &entries(5..7, 2, 10), None);
    log.compact(4).expect("a compaction");
    drop(log);
    assert_eq!(open(&disk).expect("shorter").1.last_index, 6);
    let (mut log, _) = open(&disk).expect("the log");
    log.synced_mark().write().expect("a mark");
    let index = 100;
    log.reset(EntryId { index, term: 3 }, None).expect("resets");
    drop(log);
    let (log, recovered) = open(&disk).expect("empty");
    assert_eq!(recovered.last_index, 100);
    log.synced_mark().write().expect("a mark");
    drop(log);
    let last = disk.list().expect("names").len() as u64;
    assert!(last >= 2);
    open(&disk).expect("marked behind the reset");
}

#[test]
fn what_simulators_damage_is_refused_but_for_the_defects_that_they_know() {
    let (disk, _) = marked_at(30);
    let opened = |damage, defect| {
        probe::inject(defect);
        let opens = |seed: &u64| {
            let harmed = disk.copy();
            harmed.damage(damage, OPTIONS, *seed).expect("a log");
            open(&harmed).is_ok()
        };
        let opened = (0..100).filter(opens).count();
        probe::inject(None);
        opened
    };
    for (damage, defect) in [
        (Damage::CutShort, Defect::ShortFileTaken),
        (Damage::EndZeroed, Defect::SyncedMarkIgnored),
        (Damage::SegmentZeroed, Defect::SyncedMarkIgnored),
    ] {
        assert!(opened(damage, Some(defect)) > 0, "{defect:?}");
    }
    let fresh = MemoryDisk::new();
    for damage in Damage::REFUSED {
        assert_eq!(opened(damage, None), 0, "{damage:?}");
        assert_eq!(fresh.damage(damage, OPTIONS, 1), None);
    }
    assert_eq!(disk.damage(Damage::EndLost, OPTIONS, 1), None);
}

#[test]
fn an_end_that_was_lost_behind_the_mark_leaves_it_in_doubt() {
    let (disk, _) = marked_at(20);
    for seed in 0..100 {
        let harmed = disk.copy();
        harmed
            .damage(Damage::EndLost, OPTIONS, seed)
            .expect("a log");
        let (_, recovered) = open(&harmed).expect("nothing that was marked is missing");
        assert!((20..30).contains(&recovered.last_index), "{recovered:?}");
        assert!(recovered.end_in_doubt, "{recovered:?}");
    }
}

/// A log of 30 entries that lost its end behind the mark: what is left.
fn lost_end(seed: u64) -> MemoryDisk {
    let (disk, _) = marked_at(20);
    disk.damage(Damage::EndLost, OPTIONS, seed).expect("a log");
    disk
}

fn is_in_doubt(disk: &MemoryDisk) -> bool {
    open(disk).expect("a log").1.end_in_doubt
}

#[test]
fn the_doubt_outlives_starts_until_it_is_settled() {
    for seed in 0..20 {
        let disk = lost_end(seed);
        for start in 0..3 {
            let (mut log, recovered) = open(&disk).expect("a log");
            assert!(recovered.end_in_doubt, "seed {seed}, start {start}");
            let next = recovered.last_index + 1;
            append(&mut log, &[entry(next, 1, 100)], None);
            log.synced_mark().write().expect("a mark");
            drop(log);
            disk.crash(seed);
        }
        let (log, _) = open(&disk).expect("a log");
        log.settle_doubt().expect("settles");
        drop(log);
        disk.kill();
        assert!(!is_in_doubt(&disk), "seed {seed}");
    }
}

/// Wherever the power fails while the log is opened: the tail is not cut off before it is written
/// down that something may be missing.
#[test]
fn the_doubt_is_written_before_its_reason_is_gone() {
    let mut failed = 0;
    for seed in 0..50 {
        for operation in 1..12 {
            let disk = lost_end(seed);
            disk.stop_at(disk.operations() + operation);
            failed += u64::from(open(&disk).is_err());
            disk.crash(seed ^ operation << 32);
            assert!(is_in_doubt(&disk), "seed {seed}, operation {operation}");
        }
    }
    assert!(failed > 100, "{failed} starts failed");
}

#[test]
fn a_frame_that_fills_its_sector_is_in_doubt_when_the_machine_was_started_anew() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    // A frame is 40 bytes, and 12 and the data for an entry.
    let bytes = 1024 - (log.writer.position().offset + 40 + 12);
    append(&mut log, &[entry(1, 1, bytes as usize)], None);
    assert_eq!(log.writer.position().offset, 1024);
    drop(log);
    disk.kill();
    assert!(!is_in_doubt(&disk), "a process was killed");
    disk.crash(1);
    assert!(is_in_doubt(&disk), "the power failed");
}
