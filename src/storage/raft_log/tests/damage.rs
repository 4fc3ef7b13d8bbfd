//! Disks that were tampered with. What may have been acknowledged is never given up silently; what
//! cannot have been is cut off, and said.

use super::super::Files;
use super::super::frame::{Content, Owner, SegmentHeader};
use super::super::synced::FILE_NAME;
use super::*;

/// Entries in a log of three segments: as many as fill them almost.
const LAST: u64 = 32;

/// A log of three segments. Returns its disk and what it holds.
fn three_segments() -> (MemoryDisk, Model) {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    let mut model = Model::default();
    for index in 1..=LAST {
        let batch = [entry(index, index / 10 + 1, 250)];
        let state = [index as u8; 3];
        append(&mut log, &batch, Some(&state));
        model.append(&batch, Some(&state));
    }
    let names: Vec<_> = segments(&disk).into_keys().collect();
    assert_eq!(names, [segment(1), segment(2), segment(3)]);
    (disk, model)
}

fn assert_refused(disk: &MemoryDisk, what: &str) -> Error {
    let before = disk.contents();
    let Err(error) = open(disk) else {
        panic!("{what}: opened");
    };
    assert!(disk.contents() == before, "{what}: the disk was changed");
    error
}

fn assert_holds(disk: &MemoryDisk, model: &Model, what: &str) -> Recovered {
    let (mut log, recovered) = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        Model::of(&log, &recovered) == *model,
        "{what}: something else is there"
    );
    append(&mut log, &[entry(model.last + 1, 99, 600)], None);
    drop(log);
    let (_, again) = open(disk).unwrap_or_else(|error| panic!("{what}, opened again: {error}"));
    assert_eq!(
        (again.last_index, again.torn_tail),
        (model.last + 1, None),
        "{what}"
    );
    recovered
}

#[test]
fn a_flipped_bit_is_never_taken_for_anything_else() {
    let (disk, _) = three_segments();
    for (name, bytes) in segments(&disk) {
        for at in 0..used(&bytes) {
            let flipped = disk.copy();
            let bit = 1 << ((at * 7 + 3) % 8);
            flipped
                .tamper(&name, |bytes| bytes[at] ^= bit)
                .expect("the segment");
            let error = assert_refused(&flipped, &format!("{name} byte {at}"));
            assert!(
                matches!(error, Error::Damaged { .. }),
                "{name} byte {at}: {error}"
            );
        }
    }
}

#[test]
fn no_bit_of_the_last_frame_can_flip_unseen_even_among_zeros() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &[entry(1, 1, 10)], None);
    // One bit in every sector that it fills.
    let mut sparse = vec![0; 1300];
    sparse.iter_mut().step_by(512).for_each(|byte| *byte = 4);
    sparse[1250..].fill(7);
    let data = sparse.into();
    append(
        &mut log,
        &[LogEntry {
            index: 2,
            term: 1,
            data,
        }],
        None,
    );
    let bytes = &disk.contents()[&segment(1)];
    for bit in 0..used(bytes) * 8 {
        let flipped = disk.copy();
        flipped
            .tamper(&segment(1), |bytes| bytes[bit / 8] ^= 1 << (bit % 8))
            .expect("the segment");
        assert_refused(&flipped, &format!("bit {bit}"));
    }
}

#[test]
fn bytes_among_the_zeros_behind_the_end_lose_nothing() {
    let (disk, model) = three_segments();
    let end = used(&disk.contents()[&segment(3)]);
    for at in [end.next_multiple_of(8) + 40, end + 100, 4095] {
        let strewn = disk.copy();
        strewn
            .tamper(&segment(3), |bytes| bytes[at] = 1)
            .expect("the segment");
        let recovered = assert_holds(&strewn, &model, &format!("byte {at}"));
        assert!(recovered.torn_tail.is_some());
    }
    // Where the next frame's header would be, nobody can tell what it once was.
    let strewn = disk.copy();
    strewn
        .tamper(&segment(3), |bytes| bytes[end.next_multiple_of(8) + 8] = 1)
        .expect("the segment");
    assert!(matches!(
        assert_refused(&strewn, "a header's place"),
        Error::Damaged { .. }
    ));
    for (name, bytes) in segments(&disk).into_iter().take(2) {
        let strewn = disk.copy();
        let at = used(&bytes) + 100;
        strewn
            .tamper(&name, |bytes| bytes[at] = 1)
            .expect("the segment");
        assert!(matches!(
            assert_refused(&strewn, &name),
            Error::Damaged { .. }
        ));
    }
}

#[test]
fn any_part_of_the_last_write_may_be_missing() {
    for (first_bytes, zeros) in [(10, false), (431, false), (10, true)] {
        let disk = MemoryDisk::new();
        let mut log = create(&disk);
        append(&mut log, &[entry(1, 1, first_bytes)], Some(b"one"));
        let mut model = Model::default();
        model.append(&[entry(1, 1, first_bytes)], Some(b"one"));
        let start = used(&disk.contents()[&segment(1)]).next_multiple_of(8);
        let mut last = entry(2, 1, 2500);
        if zeros {
            last.data = vec![0; 2500].into();
        }
        append(&mut log, &[last.clone()], Some(b"two"));
        let end = used(&disk.contents()[&segment(1)]);

        let mut cuts = vec![start];
        cuts.extend((start / 512 + 1..=end / 512).map(|sector| sector * 512));
        cuts.push(end);
        let sectors: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
        assert!(sectors.len() >= 6);
        for missing in 1_u32..1 << sectors.len() {
            let torn = disk.copy();
            let lost = sectors
                .iter()
                .enumerate()
                .filter(|(n, _)| missing & (1 << n) != 0);
            torn.tamper(&segment(1), |bytes| {
                for (_, sector) in lost {
                    bytes[sector.clone()].fill(0);
                }
            })
            .expect("the segment");
            let what = format!("{first_bytes}, {zeros}: sectors {missing:b}");
            let recovered = assert_holds(&torn, &model, &what);
            let nothing_left = missing == (1 << sectors.len()) - 1;
            assert_eq!(recovered.torn_tail.is_none(), nothing_left, "{what}");
            if let Some(tail) = recovered.torn_tail {
                assert_eq!(
                    (tail.segment, tail.offset),
                    (format!("memory/{}", segment(1)), start as u64)
                );
                assert!(tail.bytes_cut as usize <= end - start);
            }
        }
        model.append(&[last], Some(b"two"));
        assert_holds(&disk, &model, "nothing missing");
    }
}

#[test]
fn a_missing_sector_that_others_follow_is_damage() {
    let (disk, _) = three_segments();
    let contents = segments(&disk);
    for (name, bytes) in &contents {
        let sectors = used(bytes) / 512;
        // The last whole sector of the last segment holds only the last frames.
        let sectors = if *name == segment(3) {
            sectors - 2
        } else {
            sectors
        };
        for sector in 0..sectors {
            let torn = disk.copy();
            torn.tamper(name, |bytes| {
                bytes[sector * 512..(sector + 1) * 512].fill(0)
            })
            .expect("the segment");
            let error = assert_refused(&torn, &format!("{name} sector {sector}"));
            assert!(
                matches!(error, Error::Damaged { .. }),
                "{name} sector {sector}: {error}"
            );
        }
    }
}

/// Rewrites a segment's header as version 1 had it.
fn as_version_1(bytes: &mut [u8]) {
    bytes[8..16].copy_from_slice(&1_u64.to_le_bytes());
    bytes[56..60].fill(0);
    let checksum = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
}

fn three_segments_of_version_1() -> (MemoryDisk, Model) {
    let (disk, model) = three_segments();
    for sequence in 1..=3 {
        disk.tamper(&segment(sequence), |bytes| as_version_1(bytes))
            .expect("the segment");
    }
    disk.unlink(FILE_NAME).expect("it is there");
    (disk, model)
}

#[test]
fn a_file_that_was_begun_is_never_shorter_than_it_was_made() {
    let (disk, _) = three_segments();
    for (name, bytes) in segments(&disk) {
        // All that is cut off may be zeros.
        for length in (1..64).chain((64..bytes.len()).step_by(7)).chain([4095]) {
            let short = disk.copy();
            short
                .tamper(&name, |bytes| bytes.truncate(length))
                .expect("the segment");
            let error = assert_refused(&short, &format!("{name} of {length} bytes"));
            assert!(
                matches!(&error, Error::Damaged { file, .. } if file.ends_with(&name)),
                "{length} bytes: {error}"
            );
            let says = error.to_string().contains("cut it short");
            assert!(says || length < 64, "{error}");
        }
    }
}

#[test]
fn a_segment_that_was_begun_is_missed_where_the_one_behind_it_is_there() {
    let (disk, _) = three_segments();
    let files: &dyn Files = &disk;
    files.create(&segment(4)).expect("a new file");
    for length in [0, SEGMENT_BYTES as usize] {
        disk.tamper(&segment(4), |bytes| bytes.resize(length, 0))
            .expect("the segment");
        open(&disk.copy()).expect("a segment made ahead, or half made");
        let emptied: [fn(&mut Vec<u8>); 3] = [
            Vec::clear,
            |bytes| bytes.fill(0),
            |bytes| {
                bytes.truncate(4000);
                bytes.fill(0);
            },
        ];
        for harm in emptied {
            for sequence in 1..=3 {
                let harmed = disk.copy();
                harmed.tamper(&segment(sequence), harm).expect("a segment");
                let error = assert_refused(&harmed, &format!("segment {sequence}, {length}"));
                let Error::Damaged { file, .. } = &error else {
                    panic!("segment {sequence}: {error}");
                };
                assert!(file.ends_with(&segment(sequence)), "{error}");
            }
            // Nothing that was begun is left.
            let harmed = disk.copy();
            for sequence in 1..=3 {
                harmed.tamper(&segment(sequence), harm).expect("a segment");
            }
            let error = assert_refused(&harmed, "nothing left");
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            let again = RaftLog::create(Arc::new(harmed), OPTIONS);
            assert!(matches!(again.err(), Some(Error::Exists { .. })));
        }
        let removed = disk.copy();
        removed.unlink(&segment(3)).expect("it is there");
        let error = assert_refused(&removed, "removed");
        assert!(
            matches!(&error, Error::MissingSegment { file } if file.ends_with(&segment(3))),
            "{error}"
        );
        for sequence in 1..=2 {
            removed.unlink(&segment(sequence)).expect("it is there");
        }
        let error = assert_refused(&removed, "all removed");
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        removed.unlink(FILE_NAME).expect("it is there");
        let error = assert_refused(&removed, "all removed, and how far they went");
        assert!(matches!(error, Error::MissingSegment { .. }), "{error}");
    }
}

#[test]
fn a_segment_names_the_last_frame_before_it() {
    let (disk, _) = three_segments();
    // The same log, but for one byte of the hard state in the last frame of a segment.
    let twin = MemoryDisk::new();
    let mut log = create(&twin);
    let before_seam = {
        let (log, _) = open(&disk).expect("the log");
        let index = log.writer.shared.index();
        let starts = (1..=LAST).find(|index_of| {
            let (extent, _) = index.extent(*index_of).expect("an entry");
            extent.place.sequence == 2
        });
        starts.expect("a second segment") - 1
    };
    for index in 1..=LAST {
        let batch = [entry(index, index / 10 + 1, 250)];
        let state = [index as u8 + u8::from(index == before_seam) * 100; 3];
        append(&mut log, &batch, Some(&state));
    }
    drop(log);
    open(&twin.copy()).expect("the log");
    let other = twin.contents().remove(&segment(1)).expect("the segment");
    disk.tamper(&segment(1), |bytes| bytes.clone_from(&other))
        .expect("the segment");
    let error = assert_refused(&disk, "another last frame");
    assert!(
        matches!(&error, Error::Damaged { file, .. } if file.ends_with(&segment(1))),
        "{error}"
    );
    assert!(error.to_string().contains("another frame"), "{error}");
}

#[test]
fn a_log_of_version_1_opens_and_continues() {
    let (disk, mut model) = three_segments_of_version_1();
    let recovered = assert_holds(&disk.copy(), &model, "version 1");
    assert_eq!(recovered.torn_tail, None);
    let (mut log, _) = open(&disk).expect("the log");
    for index in LAST + 1..LAST + 40 {
        let batch = [entry(index, 9, 250)];
        append(&mut log, &batch, None);
        model.append(&batch, None);
    }
    drop(log);
    let versions: Vec<u8> = segments(&disk).values().map(|bytes| bytes[8]).collect();
    assert_eq!(versions[..4], [1, 1, 1, 2]);
    assert!(disk.contents().contains_key(FILE_NAME));
    assert_holds(&disk, &model, "continued");
}

#[test]
fn the_last_file_of_version_1_may_be_cut_short_behind_its_header() {
    let (disk, model) = three_segments_of_version_1();
    let end = used(&disk.contents()[&segment(3)]);
    let mut seen = Vec::new();
    for length in 64..=end {
        let short = disk.copy();
        short
            .tamper(&segment(3), |bytes| bytes.truncate(length))
            .expect("the segment");
        let (mut log, recovered) =
            open(&short).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
        let last = recovered.last_index;
        for index in 1..=last {
            let (term, data) = model.entries[&index].clone();
            assert_eq!(
                log.read(index, index + 1, 0).expect("an entry kept"),
                [LogEntry { index, term, data }]
            );
        }
        assert_eq!(recovered.hard_state, Some(vec![last as u8; 3]));
        let state = [last as u8 + 1; 3];
        append(&mut log, &[entry(last + 1, 50, 250)], Some(&state));
        drop(log);
        let (_, again) =
            open(&short).unwrap_or_else(|error| panic!("{length} bytes, again: {error}"));
        assert_eq!((again.last_index, again.torn_tail), (last + 1, None));
        seen.push((last, recovered.torn_tail.is_some()));
    }
    assert!(seen.is_sorted_by_key(|(last, _)| last));
    assert!(seen.len() > 1000 && seen.last() == Some(&(LAST, false)));
}

#[test]
fn segments_must_be_this_members_and_all_there() {
    let (disk, _) = three_segments();
    let contents = segments(&disk);
    let with = |kept: &[(u64, u64)]| {
        let changed = MemoryDisk::new();
        for (name, content) in kept {
            let files: &dyn Files = &changed;
            files.create(&segment(*name)).expect("a new file");
            changed
                .tamper(&segment(*name), |bytes| {
                    bytes.clone_from(&contents[&segment(*content)])
                })
                .expect("the file");
        }
        changed
    };
    let refused = |kept: &[(u64, u64)]| assert_refused(&with(kept), &format!("{kept:?}"));

    let middle = refused(&[(1, 1), (3, 3)]);
    assert!(
        matches!(&middle, Error::MissingSegment { file } if file.ends_with(&segment(2))),
        "{middle}"
    );
    let first = refused(&[(2, 2), (3, 3)]);
    assert!(matches!(first, Error::Gap { expected: 1, .. }), "{first}");
    for renamed in [[(1, 1), (2, 3)], [(5, 2), (6, 3)]] {
        assert!(matches!(refused(&renamed), Error::Damaged { .. }));
    }
    for options in [
        LogOptions {
            cluster_id: 1,
            ..OPTIONS
        },
        LogOptions {
            member_id: 1,
            ..OPTIONS
        },
    ] {
        let foreign = RaftLog::open(Arc::new(disk.copy()), options).err();
        assert!(
            matches!(
                foreign,
                Some(Error::Foreign {
                    member_id: 0x3e,
                    cluster_id: 0xc1,
                    ..
                })
            ),
            "{foreign:?}"
        );
    }
}

#[test]
fn a_log_of_a_later_format_names_the_version_it_needs() {
    let (disk, _) = three_segments();
    disk.tamper(&segment(3), |bytes| {
        bytes[8] = 7;
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    })
    .expect("the segment");
    let newer = assert_refused(&disk, "version 7");
    assert!(
        matches!(
            newer,
            Error::NewerVersion {
                needed: 7,
                supported: 2,
                ..
            }
        ),
        "{newer}"
    );
    assert!(newer.to_string().contains("version 7"), "{newer}");
}

/// A log of one segment with these frames, whatever they say.
fn made_of(frames: &[Content<'_>]) -> MemoryDisk {
    let owner = Owner {
        cluster_id: OPTIONS.cluster_id,
        member_id: OPTIONS.member_id,
    };
    let disk = MemoryDisk::new();
    drop(create(&disk));
    disk.tamper(&segment(1), |bytes| {
        let mut made = Vec::new();
        SegmentHeader {
            owner,
            sequence: 1,
            first_index: 1,
            previous_end: 0,
            link: None,
        }
        .encode(&mut made);
        for frame in frames {
            let offset = made.len() as u64;
            frame.encode(owner.segment_key(1), offset, &mut made);
        }
        bytes.fill(0);
        bytes[..made.len()].copy_from_slice(&made);
    })
    .expect("the segment");
    disk
}

#[test]
fn whole_frames_that_make_no_sense_are_refused() {
    let (one, three, late) = (
        entries(1..2, 1, 9),
        entries(3..4, 1, 9),
        entries(1..2, 1, 9),
    );
    let of = |entries| Content {
        entries,
        ..Content::default()
    };
    let entry_id = |index| Content {
        entry_id: Some(EntryId { index, term: 1 }),
        ..Content::default()
    };
    let gap = assert_refused(&made_of(&[of(&one), of(&three)]), "a gap");
    assert!(
        matches!(
            gap,
            Error::Gap {
                expected: 2,
                found: 3,
                ..
            }
        ),
        "{gap}"
    );
    for (what, frames) in [
        (
            "an entry after its compaction",
            [of(&one), entry_id(1), of(&late)],
        ),
        (
            "a entry_id beyond the end",
            [of(&one), entry_id(0), entry_id(5)],
        ),
        (
            "a reset without a entry_id",
            [
                of(&one),
                entry_id(0),
                Content {
                    reset: true,
                    ..Content::default()
                },
            ],
        ),
    ] {
        let error = assert_refused(&made_of(&frames), what);
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
    }
}

/// Appends the bytes of a segment as a value, at eight different shifts so that its frames are
/// aligned in one of them, tears that write, and expects it to be cut off.
fn assert_values_are_no_frames(disk: &MemoryDisk, copied: u64, torn_segment: u64, torn_at: usize) {
    let copied = &disk.contents()[&segment(copied)];
    let copied = &copied[..used(copied)];
    for shift in 0..8 {
        let torn = disk.copy();
        let mut log = open(&torn).expect("the log").0;
        let before = log.last_index();
        let mut data = vec![7; shift];
        data.extend_from_slice(copied);
        let value = LogEntry {
            index: before + 1,
            term: 9,
            data: data.into(),
        };
        let mark = torn.contents().remove(FILE_NAME).expect("a mark");
        append(&mut log, &[value], None);
        drop(log);
        // It was not synced.
        torn.tamper(FILE_NAME, |bytes| bytes.clone_from(&mark))
            .expect("it is there");
        torn.tamper(&segment(torn_segment), |bytes| {
            bytes[torn_at..torn_at + 512].fill(0);
        })
        .expect("the segment");
        let (_, recovered) = open(&torn).unwrap_or_else(|error| panic!("shift {shift}: {error}"));
        assert_eq!(recovered.last_index, before);
        assert!(recovered.torn_tail.is_some());
    }
}

#[test]
fn frames_stored_as_values_are_not_taken_for_frames() {
    let (disk, _) = three_segments();
    assert_values_are_no_frames(&disk, 3, 4, 512);
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..4, 1, 300), None);
    append(&mut log, &entries(4..5, 1, 300), None);
    drop(log);
    assert_values_are_no_frames(&disk, 1, 1, 2048);
}

#[test]
fn a_segment_that_lost_its_last_frame_is_damaged() {
    let disk = MemoryDisk::new();
    let mut log = create(&disk);
    append(&mut log, &entries(1..2, 1, 3000), None);
    let start = used(&disk.contents()[&segment(1)]).next_multiple_of(8);
    append(&mut log, &[], Some(&[7; 500]));
    append(&mut log, &entries(2..3, 1, 1000), None);
    drop(log);
    disk.tamper(&segment(1), |bytes| bytes[start..].fill(0))
        .expect("the segment");
    let error = assert_refused(&disk, "a lost hard state");
    assert!(
        matches!(error, Error::Damaged { offset, .. } if offset == start as u64),
        "{error}"
    );
}

#[test]
fn a_segment_must_begin_where_the_one_before_ended() {
    let (disk, _) = three_segments();
    disk.tamper(&segment(2), |bytes| {
        bytes[40] += 1;
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    })
    .expect("the segment");
    let error = assert_refused(&disk, "another first index");
    assert!(
        matches!(&error, Error::Gap { file, .. } if file.ends_with(&segment(2))),
        "{error}"
    );
}

#[test]
fn only_one_write_can_have_been_torn() {
    let (disk, _) = three_segments();
    // The segment after the last, begun without its header: torn, if nothing else is wrong.
    let files: &dyn Files = &disk;
    files.create(&segment(4)).expect("a new file");
    disk.tamper(&segment(4), |bytes| {
        bytes.resize(SEGMENT_BYTES as usize, 0);
        bytes[512..900].fill(9);
    })
    .expect("the segment");
    let tail = open(&disk.copy())
        .expect("the log")
        .1
        .torn_tail
        .expect("a torn tail");
    assert!(
        tail.segment.ends_with(&segment(4)) && tail.bytes_cut == 900,
        "{tail:?}"
    );

    let both = disk.copy();
    let end = used(&both.contents()[&segment(3)]);
    both.tamper(&segment(3), |bytes| bytes[end / 512 * 512..].fill(0))
        .expect("the segment");
    assert!(matches!(
        assert_refused(&both, "two torn"),
        Error::Damaged { .. }
    ));

    // A header lies in one sector: it is there as it was written, or not at all.
    disk.tamper(&segment(4), |bytes| bytes[9] = 1)
        .expect("the segment");
    assert!(matches!(
        assert_refused(&disk, "a bad header"),
        Error::Damaged { .. }
    ));
}

#[test]
fn a_segment_half_made_is_cleared_away() {
    let (disk, model) = three_segments();
    let files: &dyn Files = &disk;
    files.create(&segment(4)).expect("a new file");
    for length in [0, 512, SEGMENT_BYTES as usize - 8] {
        for stop_at in 1..=6 {
            for seed in 0..8 {
                let stopped = disk.copy();
                stopped
                    .tamper(&segment(4), |bytes| bytes.resize(length, 0))
                    .expect("the segment");
                stopped.stop_at(stop_at);
                let outcome = open(&stopped);
                assert_eq!(
                    outcome.is_err(),
                    stop_at < 6,
                    "two changes to clear, three to make all durable"
                );
                stopped.crash(seed);
                assert_holds(&stopped, &model, &format!("change {stop_at}, seed {seed}"));
            }
        }
    }
}

#[test]
fn what_a_reader_gets_was_written() {
    let (disk, _) = three_segments();
    let (log, _) = open(&disk).expect("the log");
    disk.tamper(&segment(2), |bytes| bytes[900] ^= 1)
        .expect("the segment");
    let error = log.read(1, LAST + 1, u64::MAX).expect_err("a flipped bit");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(&segment(2)), "{error}");
}
