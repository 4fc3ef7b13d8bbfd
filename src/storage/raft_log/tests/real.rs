//! The log on a real disk, with its thread.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::super::{Files, RealFiles, Retained, ZeroFiller, history};
use super::*;

const REAL: LogOptions = LogOptions {
    segment_bytes: 1 << 20,
    ..OPTIONS
};

fn files(directory: &Path) -> Arc<dyn Files> {
    Arc::new(RealFiles::new(directory.join("log")).expect("the log's directory"))
}

fn with_filler(log: RaftLog, files: &Arc<dyn Files>) -> RaftLog {
    let filler = ZeroFiller::start(Arc::clone(files)).expect("a thread");
    log.with_prepare(Box::new(filler))
}

/// A closed log of `count` entries of 1000 bytes, and its last file.
fn closed_log(directory: &Path, count: u64) -> std::path::PathBuf {
    let files = files(directory);
    let log = RaftLog::create(Arc::clone(&files), REAL).expect("a new log");
    let mut log = with_filler(log, &files);
    for index in 1..=count {
        append(&mut log, &[entry(index, 1, 1000)], None);
    }
    let active = 1 + count * 1056 / (1 << 20);
    directory.join("log").join(segment(active))
}

fn reopen(directory: &Path) -> Result<(RaftLog, Recovered), Error> {
    RaftLog::open(files(directory), REAL)
}

/// Where the last frame of `bytes` begins and ends.
fn last_frame(bytes: &[u8]) -> (usize, usize) {
    let end = used(bytes).next_multiple_of(8);
    (end - 1056, end)
}

#[test]
fn segments_are_made_ahead_and_survive_being_reopened() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut model = Model::default();
    let files = files(directory.path());
    let mut log = with_filler(
        RaftLog::create(Arc::clone(&files), REAL).expect("a new log"),
        &files,
    );
    for round in 0..4 {
        for _ in 0..300 {
            let next = log.last_index() + 1;
            let batch = entries(next..next + 4, round + 1, 500);
            append(&mut log, &batch, Some(&next.to_le_bytes()));
            model.append(&batch, Some(&next.to_le_bytes()));
        }
        let to = model.last - 700;
        log.compact(to).expect("a compaction");
        model.compact(to);
        drop(log);
        let (again, recovered) = RaftLog::open(Arc::clone(&files), REAL).expect("the log again");
        assert_eq!(recovered.torn_tail, None);
        assert!(Model::of(&again, &recovered) == model, "round {round}");
        log = with_filler(again, &files);
    }
    assert!(files.list().expect("names").len() <= 4);
}

/// What `history` shows: each entry's index and term.
fn shown(files: &Arc<dyn Files>) -> Vec<(u64, u64)> {
    let mut entries = Vec::new();
    for stretch in history(files, &REAL).expect("a sound history") {
        let Range { start, end } = stretch.indexes;
        let read = stretch.reader.read(start, end, u64::MAX).expect("reads");
        entries.extend(read.iter().map(|entry| (entry.index, entry.term)));
    }
    entries
}

#[test]
fn segments_that_are_not_needed_stay_where_that_is_wanted() {
    for (retained, stay) in [
        (Retained::None, 0),
        (Retained::Newest(2), 2),
        (Retained::All, 7),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let real = RealFiles::new(&path).expect("the log's directory");
        let files: Arc<dyn Files> = Arc::new(real.retaining(retained));
        let mut log = RaftLog::create(Arc::clone(&files), REAL).expect("a new log");
        for round in 0..4 {
            // The last ten are replaced by the next round.
            let next = (log.last_index() + 1).saturating_sub(10).max(1);
            for index in next..next + 2000 {
                append(&mut log, &[entry(index, round + 1, 1000)], None);
            }
            log.compact(log.last_index() - 500).expect("a compaction");
        }
        let names = || files.list().expect("names");
        let kept = names()
            .iter()
            .filter(|name| name.ends_with(".kept"))
            .count();
        assert_eq!(kept, stay, "{retained:?}: {:?}", names());
        let entries = shown(&files);
        let (first, last) = (entries[0].0, log.last_index());
        let all: Vec<u64> = entries.iter().map(|(index, _)| *index).collect();
        assert_eq!(all, (first..=last).collect::<Vec<_>>(), "{retained:?}");
        assert!(entries.is_sorted_by_key(|(_, term)| *term), "{retained:?}");
        assert_eq!(first == 1, retained == Retained::All, "{retained:?}");
        // A start reads none of them.
        for name in names().iter().filter(|name| name.ends_with(".kept")) {
            fs::write(path.join(name), b"damage").expect("a write");
        }
        let compacted = log.compacted();
        drop(log);
        let (again, recovered) = RaftLog::open(Arc::clone(&files), REAL).expect("the log again");
        assert_eq!((recovered.compacted, again.last_index()), (compacted, last));
    }
}

#[test]
fn nobody_else_may_read_it() {
    let directory = tempfile::tempdir().expect("a directory");
    closed_log(directory.path(), 3);
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o7777
    };
    let log = directory.path().join("log");
    assert_eq!(mode(&log), 0o700);
    for file in fs::read_dir(&log).expect("the directory") {
        assert_eq!(mode(&file.expect("a file").path()), 0o600);
    }
}

#[test]
fn a_torn_tail_is_cut_on_a_real_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let last = closed_log(directory.path(), 1500);
    let bytes = fs::read(&last).expect("the last segment");
    let (start, end) = last_frame(&bytes);
    let file = OpenOptions::new()
        .write(true)
        .open(&last)
        .expect("the last segment");
    let sector = (start / 512 + 1) * 512;
    file.write_all_at(&[0; 512], sector as u64)
        .expect("a write");
    let (mut log, recovered) = reopen(directory.path()).expect("the log again");
    assert_eq!(recovered.last_index, 1499);
    let tail = recovered.torn_tail.expect("a torn tail");
    assert_eq!(
        (tail.segment.as_str(), tail.offset),
        (last.to_str().expect("a path"), start as u64)
    );
    assert!(tail.bytes_cut as usize > end - start - 8);
    append(&mut log, &[entry(1500, 2, 10)], None);
    drop(log);

    file.set_len(start as u64 + 30).expect("a shorter file");
    let damaged = reopen(directory.path()).err();
    assert!(
        matches!(&damaged, Some(Error::Damaged { file, .. }) if last.to_str() == Some(file)),
        "{damaged:?}"
    );
}

#[test]
fn a_flipped_bit_refuses_on_a_real_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let last = closed_log(directory.path(), 1500);
    let bytes = fs::read(&last).expect("the last segment");
    let (start, end) = last_frame(&bytes);
    let file = OpenOptions::new()
        .write(true)
        .open(&last)
        .expect("the last segment");
    for at in [start + 2, start + 100, end - 100, 5000, 64] {
        file.write_all_at(&[bytes[at] ^ 0x10], at as u64)
            .expect("a write");
        let damaged = reopen(directory.path()).err();
        let Some(Error::Damaged {
            file: name, offset, ..
        }) = &damaged
        else {
            panic!("byte {at}: {damaged:?}");
        };
        assert!(
            last.to_str() == Some(name) && *offset <= at as u64,
            "{damaged:?}"
        );
        file.write_all_at(&bytes[at..=at], at as u64)
            .expect("a write");
    }
    let (_, recovered) = reopen(directory.path()).expect("the log again");
    assert_eq!(recovered.last_index, 1500);
}

#[test]
fn readers_see_whole_batches_while_the_log_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = files(directory.path());
    let options = LogOptions {
        sync: false,
        ..REAL
    };
    let mut log = RaftLog::create(Arc::clone(&files), options).expect("a new log");
    let reader = log.reader();
    let checks = std::thread::spawn(move || {
        let mut checked = 0;
        loop {
            let (first, last) = (reader.first_index(), reader.last_index());
            match reader.read(last.saturating_sub(40).max(first), last + 1, 4000) {
                Ok(read) => {
                    for got in &read {
                        assert_eq!(*got, entry(got.index, got.term, 333));
                        checked += 1;
                    }
                }
                // The log may have lost its end, or its beginning, since it was asked what it
                // holds.
                Err(Error::Beyond { .. } | Error::Compacted { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if reader.term(reader.last_index()) == Some(u64::MAX) {
                return checked;
            }
        }
    });
    let mut random = Random(5);
    for round in 0..3000 {
        let first = (log.last_index() + 1)
            .saturating_sub(random.below(3))
            .max(log.first_index());
        append(&mut log, &entries(first..first + 3, round + 1, 333), None);
        if round % 100 == 99 {
            log.compact(log.last_index() - 20).expect("a compaction");
        }
    }
    let next = log.last_index() + 1;
    append(&mut log, &[entry(next, u64::MAX, 333)], None);
    assert!(checks.join().expect("the reader") > 0);
}
