//! What the log answers while nothing goes wrong, and to callers that ask for what it cannot do.

use std::io;
use std::sync::Mutex;

use super::super::{DEFAULT_SEGMENT_BYTES, Files, Stats};
use super::*;

fn indexes(entries: &[LogEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn an_append_is_one_write_and_one_sync() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..2, 1, 300), None);
    let (before, stats) = (disk.operations(), log.stats());
    append(&mut log, &entries(2..6, 1, 300), Some(b"state"));
    assert_eq!(disk.operations() - before, 2);
    let bytes_written = stats.bytes_written + (40 + 4 + 5 + 4 * 312_u64).next_multiple_of(8);
    let syncs = stats.syncs + 1;
    assert_eq!(
        log.stats(),
        Stats {
            syncs,
            bytes_written
        }
    );
    append(&mut log, &[], None);
    assert_eq!(log.stats().syncs, syncs, "an empty batch costs nothing");
}

#[test]
fn reads_are_bounded_by_index_and_bytes_but_give_one_entry() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    for first in (1..=40).step_by(4) {
        append(&mut log, &entries(first..first + 4, first, 100), Some(b"s"));
        append(&mut log, &[], Some(b"between"));
    }
    for (low, high, max_bytes, expected) in [
        (1, 41, u64::MAX, 1..41),
        (1, 41, 0, 1..2),
        (7, 41, 100, 7..8),
        (7, 41, 199, 7..8),
        (7, 41, 200, 7..9),
        (7, 41, 1000, 7..17),
        (40, 41, 5000, 40..41),
        (9, 12, 5000, 9..12),
        (5, 5, 5000, 5..5),
    ] {
        let read = log.read(low, high, max_bytes).expect("entries of the log");
        assert_eq!(
            indexes(&read),
            expected.collect::<Vec<_>>(),
            "[{low}, {high}) of {max_bytes} bytes"
        );
        for got in read {
            assert_eq!(got, entry(got.index, (got.index - 1) / 4 * 4 + 1, 100));
        }
    }
    assert!(matches!(
        log.read(1, 42, 1),
        Err(Error::Beyond {
            index: 41,
            last_index: 40
        })
    ));
    log.compact(10).expect("a compaction");
    assert!(matches!(
        log.read(10, 12, 1),
        Err(Error::Compacted {
            index: 10,
            first_index: 11
        })
    ));
    assert_eq!(
        indexes(&log.read(11, 13, 1000).expect("entries kept")),
        [11, 12]
    );
}

#[test]
fn a_conflicting_suffix_is_replaced() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..30, 1, 300), None);
    append(&mut log, &entries(30..40, 2, 300), None);
    let reader = log.reader();
    append(&mut log, &entries(25..27, 3, 10), None);
    for _ in 0..2 {
        assert_eq!((reader.first_index(), reader.last_index()), (1, 26));
        assert_eq!(
            [24, 25, 27].map(|index| reader.term(index)),
            [Some(1), Some(3), None]
        );
        let read = reader.read(23, 27, u64::MAX).expect("entries of the log");
        let terms: Vec<_> = read.iter().map(|entry| (entry.index, entry.term)).collect();
        assert_eq!(terms, [(23, 1), (24, 1), (25, 3), (26, 3)]);
        drop(log);
        log = open(&disk).expect("the log again").0;
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..11, 1, 10), None);
    log.compact(5).expect("a compaction");
    let before = disk.contents();
    let hole = [entry(11, 1, 1), entry(13, 1, 1)];
    let backwards = [entry(11, 1, 1), entry(10, 1, 1)];
    for (batch, expected, found) in [
        (&entries(12..13, 1, 1)[..], 11, 12),
        (&hole, 12, 13),
        (&backwards, 12, 10),
    ] {
        let hard_state = Some(&b"x"[..]);
        let refused = log.append(Batch {
            entries: batch,
            hard_state,
        });
        let Err(Error::NotConsecutive {
            expected: e,
            found: f,
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!((e, f), (expected, found));
    }
    let entries = &entries(5..6, 1, 1);
    let refused = log.append(Batch {
        entries,
        hard_state: None,
    });
    assert!(
        matches!(
            refused,
            Err(Error::Compacted {
                index: 5,
                first_index: 6
            })
        ),
        "{refused:?}"
    );
    assert!(matches!(
        log.compact(11),
        Err(Error::Beyond {
            index: 11,
            last_index: 10
        })
    ));
    let entry_id = EntryId { index: 4, term: 1 };
    assert!(matches!(
        log.reset(entry_id, None),
        Err(Error::Compacted { index: 4, .. })
    ));
    log.compact(3).expect("it was compacted that far before");
    assert_eq!(disk.contents(), before);
    append(&mut log, &[entry(11, 1, 1)], None);
}

#[test]
fn large_batches_and_entries_get_segments_of_their_size() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &[], Some(b"kept"));
    append(&mut log, &[entry(1, 1, 50_000)], None);
    append(&mut log, &entries(2..200, 1, 100), None);
    append(&mut log, &[entry(200, 1, 10)], None);
    let sizes: Vec<_> = segments(&disk).values().map(Vec::len).collect();
    assert_eq!(sizes, [4096, 53_248, 24_576]);
    for _ in 0..2 {
        assert_eq!(
            log.read(1, 2, 0).expect("the large one"),
            [entry(1, 1, 50_000)]
        );
        let small = log.read(150, 201, u64::MAX).expect("the rest");
        assert_eq!(small.len(), 51);
        assert_eq!(small[50], entry(200, 1, 10));
        drop(log);
        let (again, recovered) = open(&disk).expect("the log again");
        assert_eq!(recovered.hard_state.as_deref(), Some(&b"kept"[..]));
        log = again;
    }
}

#[test]
fn compaction_deletes_whole_segments_and_keeps_the_hard_state() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &[], Some(b"old but last"));
    for index in 1..=100 {
        append(&mut log, &[entry(index, 7, 300)], None);
    }
    let all = segments(&disk).len();
    assert!(all > 8, "{all} segments");
    let reader = log.reader();
    log.compact(99).expect("a compaction");
    log.compact(100).expect("a compaction");
    assert_eq!(
        segments(&disk).len(),
        1,
        "two compactions delete up to sixteen"
    );
    assert_eq!((reader.first_index(), reader.last_index()), (101, 100));
    drop(log);
    let (mut log, recovered) = open(&disk).expect("the log again");
    assert_eq!(
        recovered,
        Recovered {
            hard_state: Some(b"old but last".to_vec()),
            compacted: EntryId {
                index: 100,
                term: 7
            },
            last_index: 100,
            torn_tail: None,
            end_in_doubt: false,
        }
    );
    append(&mut log, &[entry(101, 8, 300)], None);
    assert_eq!(
        indexes(&log.read(101, 102, 0).expect("the entry after")),
        [101]
    );
}

#[test]
fn a_compaction_deletes_a_bounded_number_of_segments() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    for index in 1..=200 {
        append(&mut log, &[entry(index, 1, 1000)], None);
    }
    let all = segments(&disk).len();
    log.compact(199).expect("a compaction");
    assert_eq!(segments(&disk).len(), all - 8);
}

#[test]
fn a_log_continues_after_the_snapshot_of_a_reset() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..50, 1, 300), Some(b"before"));
    let entry_id = EntryId {
        index: 1000,
        term: 9,
    };
    log.reset(entry_id, Some(b"with the state"))
        .expect("a reset");
    for _ in 0..2 {
        assert_eq!((log.first_index(), log.last_index()), (1001, 1000));
        assert_eq!(
            [49, 999, 1000, 1001].map(|index| log.term(index)),
            [None, None, Some(9), None]
        );
        drop(log);
        let (again, recovered) = open(&disk).expect("the log again");
        assert_eq!(recovered.compacted, entry_id);
        assert_eq!(
            recovered.hard_state.as_deref(),
            Some(&b"with the state"[..])
        );
        log = again;
    }
    append(&mut log, &entries(1001..1003, 9, 300), None);
    assert_eq!(
        indexes(&log.read(1001, 1003, u64::MAX).expect("entries after")),
        [1001, 1002]
    );
}

#[test]
fn a_log_is_created_once_and_opened_only_if_created() {
    let disk = MemoryDisk::new();
    let absent = open(&disk).err();
    assert!(matches!(absent, Some(Error::Absent { .. })), "{absent:?}");
    drop(create(&disk));
    let exists = RaftLog::create(Arc::new(disk.clone()), OPTIONS).err();
    assert!(matches!(exists, Some(Error::Exists { .. })), "{exists:?}");
    assert!(open(&disk).is_ok());
}

#[test]
fn a_failed_write_ends_the_log_until_it_is_opened_again() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..3, 1, 100), None);
    disk.stop_at(disk.operations() + 2);
    let one = [entry(3, 1, 100)];
    let batch = Batch {
        entries: &one,
        hard_state: None,
    };
    assert!(matches!(
        log.append(batch),
        Err(Error::Io { action: "sync", .. })
    ));
    assert_eq!(log.last_index(), 2, "not durable, not there");
    disk.crash(1);
    assert!(matches!(log.append(batch), Err(Error::Failed)));
    assert!(matches!(log.compact(1), Err(Error::Failed)));
    assert!(matches!(log.append(Batch::default()), Err(Error::Failed)));
    let (mut log, _) = open(&disk).expect("the log again");
    let next = log.last_index() + 1;
    append(&mut log, &[entry(next, 1, 100)], None);
}

#[test]
fn what_is_read_after_a_failed_sync_is_made_durable_by_recovery() {
    for bytes in [100, 3900] {
        let disk = MemoryDisk::new();
        let mut log = create(&disk);
        append(&mut log, &entries(1..3, 1, 600), None);
        let one = [entry(3, 1, bytes)];
        // The second case begins a segment: its fill is synced first.
        if bytes > 1000 {
            log = log.with_prepare(Box::new(Eager::new(&disk)));
        }
        disk.fail_next_sync();
        let batch = Batch {
            entries: &one,
            hard_state: None,
        };
        assert!(matches!(
            log.append(batch),
            Err(Error::Io { action: "sync", .. })
        ));
        disk.kill();
        assert_eq!(open(&disk).expect("the log again").1.last_index, 3);
        for seed in 0..20 {
            disk.crash(seed);
            assert_eq!(open(&disk).expect("the log again").1.last_index, 3);
        }
    }
}

#[test]
fn unsynced_logs_write_without_syncing() {
    let disk = MemoryDisk::new();
    let options = LogOptions {
        sync: false,
        ..OPTIONS
    };
    let mut log = RaftLog::create(Arc::new(disk.clone()), options).expect("a new log");
    let before = disk.operations();
    append(&mut log, &entries(1..3, 1, 100), None);
    assert_eq!((disk.operations() - before, log.stats().syncs), (1, 0));
    drop(log);
    let (_, recovered) = RaftLog::open(Arc::new(disk.clone()), options).expect("the log again");
    assert_eq!(recovered.last_index, 2);
}

#[test]
fn segments_are_as_large_as_those_of_etcd() {
    assert_eq!(DEFAULT_SEGMENT_BYTES, 64 * 1000 * 1000);
}

#[test]
fn a_segment_is_durable_before_its_first_use() {
    for pace in [Pace::Gentle, Pace::Hurried] {
        for seed in 0..10 {
            let disk = MemoryDisk::new();
            make_zeroed(&disk, &segment(1), 600_000, &|| pace).expect("a segment");
            disk.crash(seed);
            assert_eq!(disk.contents()[&segment(1)], vec![0; 600_000]);
        }
    }
    let disk = MemoryDisk::new();
    assert!(make_zeroed(&disk, &segment(1), 600_000, &|| Pace::Stopped).is_err());
}

/// A disk on which something happens during the next read of a file.
struct Interrupted {
    disk: MemoryDisk,
    meanwhile: Meanwhile,
}

type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

struct InterruptedFile {
    file: Arc<dyn OpenFile>,
    meanwhile: Meanwhile,
}

impl Interrupted {
    fn file(&self, file: Arc<dyn OpenFile>) -> Arc<dyn OpenFile> {
        let meanwhile = Arc::clone(&self.meanwhile);
        Arc::new(InterruptedFile { file, meanwhile })
    }
}

impl Files for Interrupted {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        Ok(self.file(self.disk.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        Ok(self.file(self.disk.open(name)?))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.disk.unlink(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }

    fn describe(&self, name: &str) -> String {
        self.disk.describe(name)
    }
}

impl OpenFile for InterruptedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let meanwhile = self.meanwhile.lock().expect("a lock").take();
        if let Some(act) = meanwhile {
            act();
        }
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[test]
fn a_read_never_mixes_two_histories() {
    for compacts in [false, true] {
        let disk = MemoryDisk::new();
        let meanwhile = Meanwhile::default();
        let files = Arc::new(Interrupted {
            disk,
            meanwhile: Arc::clone(&meanwhile),
        });
        let mut log = RaftLog::create(files, OPTIONS).expect("a new log");
        for index in 1..=100 {
            append(&mut log, &[entry(index, 1, 300)], None);
        }
        let reader = log.reader();
        *meanwhile.lock().expect("a lock") = Some(Box::new(move || {
            if compacts {
                log.compact(90).expect("a compaction");
            } else {
                append(&mut log, &entries(5..120, 2, 300), None);
            }
        }));
        let read = reader.read(1, 101, u64::MAX).expect("entries of the log");
        assert!(
            !read.is_empty() && read.len() < 100,
            "{} entries",
            read.len()
        );
        assert!(
            read.iter().all(|entry| entry.term == 1),
            "two histories in one answer"
        );
    }
}
