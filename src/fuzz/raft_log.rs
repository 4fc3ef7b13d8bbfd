//! Recovery of the raft log: from files of any bytes whose checksums are right, as a defect would
//! write them, and from a log that was written and then suffered.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::storage::raft_log::{
    Batch, EntryId, Error, Files, LogEntry, LogOptions, MemoryDisk, RaftLog, Recovered,
};
use bytes::Bytes;

use super::Seed;
use super::input::{Input, Script};
use super::memory;

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 4096,
    cluster_id: 0xc,
    member_id: 0xe,
    sync: true,
};
/// What recovery may hold beside a few times the bytes of the files: a window of 1 MiB over a
/// file, and the pieces in which a file is filled.
const BYTES_FIXED: usize = 4 << 20;
const BYTES_PER_BYTE: usize = 24;

fn files(disk: &MemoryDisk) -> Arc<dyn Files> {
    Arc::new(disk.clone())
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    entry_id: EntryId,
    last: u64,
    /// By index: term and data.
    entries: BTreeMap<u64, (u64, Bytes)>,
    hard_state: Option<Vec<u8>>,
}

/// Opens the log and reads all of it; `None` where it was refused, which must leave the disk as it
/// was. What was opened opens again, to the same.
fn recover(disk: &MemoryDisk) -> Option<(Content, RaftLog)> {
    let before = disk.contents();
    let bytes: usize = before.values().map(Vec::len).sum();
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes;
    let opened = memory::within(limit_bytes, || RaftLog::open(files(disk), OPTIONS));
    let (log, recovered) = match opened {
        Ok(opened) => opened,
        Err(Error::Io { source, .. }) => panic!("a disk that does not fail: {source}"),
        Err(_) => {
            assert_eq!(
                disk.contents(),
                before,
                "a log that was refused was written to"
            );
            return None;
        }
    };
    let content = read(&log, &recovered);
    drop(log);
    let (log, again) = RaftLog::open(files(disk), OPTIONS).expect("opens again");
    assert_eq!(again.torn_tail, None, "what was mended is whole");
    assert_eq!(read(&log, &again), content);
    Some((content, log))
}

fn read(log: &RaftLog, recovered: &Recovered) -> Content {
    let (first, last) = (log.first_index(), log.last_index());
    assert_eq!(first, recovered.compacted.index + 1);
    assert_eq!(last, recovered.last_index);
    assert!(last + 1 >= first, "entries {first} to {last}");
    let reader = log.reader();
    let entries = reader.read(first, last + 1, u64::MAX);
    let entries = entries.expect("the log that was recovered can be read");
    assert_eq!(entries.len() as u64, last + 1 - first);
    for (index, entry) in (first..).zip(&entries) {
        assert_eq!(entry.index, index);
        assert_eq!(reader.term(index), Some(entry.term));
    }
    assert_eq!(reader.term(last + 1), None);
    Content {
        entry_id: recovered.compacted,
        last,
        entries: entries
            .into_iter()
            .map(|entry| (entry.index, (entry.term, entry.data)))
            .collect(),
        hard_state: recovered.hard_state.clone(),
    }
}

/// The log can be appended to.
fn append_one(log: &mut RaftLog) {
    let index = log.last_index() + 1;
    let entry = LogEntry {
        index,
        term: 1,
        data: Bytes::from_static(b"next"),
    };
    log.append(Batch {
        entries: std::slice::from_ref(&entry),
        hard_state: None,
    })
    .expect("appends");
    assert_eq!(log.read(index, index + 1, 0).expect("reads"), [entry]);
}

/// The format as `storage/raft_log/frame.rs` describes it, with checksums that are right whatever
/// they are about.
mod sealed {
    use super::OPTIONS;

    fn key(sequence: u64) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for number in [OPTIONS.cluster_id, OPTIONS.member_id, sequence] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize()
    }

    fn checksum(sequence: u64, offset: u64, bytes: &[u8]) -> [u8; 4] {
        let mut hasher = crc32fast::Hasher::new_with_initial(key(sequence));
        hasher.update(&offset.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize().to_le_bytes()
    }

    pub const HEADER_BYTES: usize = 64;

    /// What a header of version 2 says of files.
    pub struct Link {
        /// The CRC in the header of the last frame of the segment before.
        pub previous_checksum: u32,
        pub made_bytes: u64,
    }

    pub fn header(
        sequence: u64,
        first_index: u64,
        previous_end: u64,
        link: Option<Link>,
    ) -> [u8; HEADER_BYTES] {
        let mut bytes = b"etchedRL".to_vec();
        let version = if link.is_some() { 2_u32 } else { 1 };
        let (previous_checksum, made) = match link {
            Some(link) => (link.previous_checksum, link.made_bytes.div_ceil(8) as u32),
            None => (0, 0),
        };
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&previous_checksum.to_le_bytes());
        for number in [
            OPTIONS.cluster_id,
            OPTIONS.member_id,
            sequence,
            first_index,
            previous_end,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&made.to_le_bytes());
        let checksum = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&checksum);
        bytes.try_into().expect("a header's bytes")
    }

    /// The file that says how far the log was synced, as `storage/raft_log/synced.rs` describes it.
    pub fn synced(number: u64, sequence: u64, offset: u64) -> Vec<u8> {
        let mut bytes = b"etchedSY\x01\0\0\0\0\0\0\0".to_vec();
        for number in [
            OPTIONS.cluster_id,
            OPTIONS.member_id,
            number,
            sequence,
            offset,
            0,
            0,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 4]);
        let checksum = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&checksum);
        let mut file = vec![0; 2 * 4096];
        let at = (number % 2 * 4096) as usize;
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        file
    }

    pub struct Frame<'a> {
        pub flags: u16,
        /// What the header says of it; the payload itself where it is none.
        pub payload_bytes: Option<u32>,
        pub mask: u32,
        pub first: u64,
        pub last: u64,
        pub payload: &'a [u8],
    }

    impl Frame<'_> {
        /// Appends the frame to a segment; returns the CRC of its header.
        pub fn append(&self, sequence: u64, segment: &mut Vec<u8>) -> u32 {
            let offset = segment.len() as u64;
            let mut stored = self.payload.to_vec();
            stored.resize(stored.len().next_multiple_of(8), 0);
            for (byte, mask) in stored
                .iter_mut()
                .zip(self.mask.to_le_bytes().iter().cycle())
            {
                *byte ^= mask;
            }
            let length = self.payload_bytes.unwrap_or(self.payload.len() as u32);
            let mut header = b"eRLf".to_vec();
            header.extend_from_slice(&self.flags.to_le_bytes());
            header.extend_from_slice(&[0; 2]);
            header.extend_from_slice(&length.to_le_bytes());
            header.extend_from_slice(&self.mask.to_le_bytes());
            header.extend_from_slice(&self.first.to_le_bytes());
            header.extend_from_slice(&self.last.to_le_bytes());
            header.extend_from_slice(&checksum(sequence, offset, &stored));
            let checksum = checksum(sequence, offset, &header);
            header.extend_from_slice(&checksum);
            segment.extend_from_slice(&header);
            segment.extend_from_slice(&stored);
            u32::from_le_bytes(checksum)
        }
    }
}

const HARD_STATE: u16 = 1;
const MARK: u16 = 2;
const RESET: u16 = 4;
const ENTRIES: u16 = 8;
/// The last bits of a frame's first byte: what follows is not a frame.
const RAW: u8 = 0x40;
const END: u8 = 0x80;
/// With the end of a segment: its header is of version 2, with what the input says of the files or
/// with what is so; and the log was synced up to here, or up to where the input says.
const LINKED: u8 = 1;
const LINKED_SO: u8 = 2;
const SYNCED: u8 = 4;
const SYNCED_SO: u8 = 8;

/// What the input makes of a segment, its header still missing.
struct Made {
    bytes: Vec<u8>,
    first_index: u64,
    previous_end: u64,
    /// Of the last frame's header.
    checksum: u32,
    /// The bits of its end.
    end: u8,
}

/// A segment of frames, and what else the input wants there.
fn segment(input: &mut Input<'_>, sequence: u64, last: &mut u64, previous_end: u64) -> Made {
    let mut made = Made {
        bytes: vec![0; sealed::HEADER_BYTES],
        first_index: input.number(last.wrapping_add(1)),
        previous_end: input.number(previous_end),
        checksum: 0,
        end: 0,
    };
    while !input.is_empty() {
        let kind = input.u8();
        if kind & END != 0 {
            made.end = kind;
            break;
        }
        if kind & RAW != 0 {
            made.bytes.extend_from_slice(input.block());
            continue;
        }
        let mut flags = u16::from(kind & 0xf);
        if kind & 0x30 == 0x30 {
            flags |= input.u16();
        }
        made.checksum = frame(input, flags, sequence, last, &mut made.bytes);
    }
    made
}

fn frame(
    input: &mut Input<'_>,
    flags: u16,
    sequence: u64,
    last: &mut u64,
    bytes: &mut Vec<u8>,
) -> u32 {
    let mut payload = Vec::new();
    if flags & HARD_STATE != 0 {
        let state = input.block();
        payload.extend_from_slice(&(state.len() as u32).to_le_bytes());
        payload.extend_from_slice(state);
    }
    if flags & MARK != 0 {
        let index = input.number(*last);
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&input.number(1).to_le_bytes());
        if flags & RESET != 0 {
            *last = index;
        }
    }
    let (mut first, mut end) = (0, 0);
    if flags & ENTRIES != 0 {
        first = input.number(last.wrapping_add(1));
        let count = u64::from(input.u8() % 8);
        end = input.number(first.wrapping_add(count));
        for _ in first..=end.min(first.saturating_add(8)) {
            payload.extend_from_slice(&input.number(1).to_le_bytes());
            let data = input.block();
            payload.extend_from_slice(&(data.len() as u32).to_le_bytes());
            payload.extend_from_slice(data);
        }
        *last = end;
    }
    let how = input.u8();
    let payload_bytes = (how & 1 != 0).then(|| input.number(payload.len() as u64) as u32);
    let mask = if how & 2 != 0 { input.u64() as u32 } else { 0 };
    sealed::Frame {
        flags,
        payload_bytes,
        mask,
        first,
        last: end,
        payload: &payload,
    }
    .append(sequence, bytes)
}

/// Opens a log of whatever frames the input makes.
pub fn open(bytes: &[u8]) {
    open_made(bytes);
}

/// The same; false where the log was refused.
fn open_made(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let disk = MemoryDisk::new();
    let (mut last, mut previous_end, mut previous_checksum) = (0, 0, 0);
    let mut synced = None;
    let mut sequence = 1;
    for _ in 0..4 {
        if input.is_empty() {
            break;
        }
        let mut made = segment(&mut input, sequence, &mut last, previous_end);
        let used = made.bytes.len();
        // Mostly of the usual size; else just as long as what is in it, or cut short.
        let full = used.max(OPTIONS.segment_bytes as usize);
        let (made_bytes, bytes_kept) = match input.u8() {
            0..0xc0 => (full, full),
            0xc0..0xe0 => (used, used),
            _ => (full, used.saturating_sub(input.u8().into())),
        };
        let link = (made.end & LINKED != 0).then(|| {
            let (checksum, bytes) = (u64::from(previous_checksum), made_bytes as u64);
            let (checksum, bytes) = match made.end & LINKED_SO {
                0 => (checksum, bytes),
                _ => (input.number(checksum), input.number(bytes)),
            };
            sealed::Link {
                previous_checksum: checksum as u32,
                made_bytes: bytes,
            }
        });
        if made.end & SYNCED != 0 {
            let offset = match made.end & SYNCED_SO {
                0 => used as u64,
                _ => input.number(used as u64),
            };
            synced = Some(sealed::synced(sequence, sequence, offset));
        }
        let header = sealed::header(sequence, made.first_index, made.previous_end, link);
        made.bytes[..header.len()].copy_from_slice(&header);
        (previous_end, previous_checksum) = (used as u64, made.checksum);
        let mut bytes = made.bytes;
        bytes.resize(bytes_kept, 0);
        let name = format!("{sequence:016x}.raftlog");
        if disk.contents().contains_key(&name) {
            break;
        }
        write(&disk, &name, &bytes);
        sequence = match input.u8() {
            0xff => sequence.wrapping_add(2),
            0xfe => u64::MAX,
            _ => sequence.wrapping_add(1),
        };
    }
    if let Some(synced) = synced {
        write(&disk, "SYNCED", &synced);
    }
    let Some((content, mut log)) = recover(&disk) else {
        return false;
    };
    if content.last < u64::MAX >> 2 {
        append_one(&mut log);
    }
    true
}

fn write(disk: &MemoryDisk, name: &str, bytes: &[u8]) {
    let file = disk.create(name).expect("a new file");
    file.write_at(bytes, 0).expect("writes");
    file.sync_data().expect("syncs");
    disk.sync_directory().expect("syncs");
}

pub fn open_seeds() -> Vec<Seed> {
    let number = |script: Script, value| script.number(value);
    let begin = || number(number(Script::default(), 1), 0);
    let hard_state = |script: Script| script.block(b"state");
    let entries = |script: Script, first: u64, count: u8, data: &[u8]| {
        let mut script = number(script, first).u8(count - 1);
        script = number(script, first + u64::from(count - 1));
        for _ in 0..count {
            script = number(script, 1).block(data);
        }
        script.u8(0)
    };
    let entry_id = |script, index, term| number(number(script, index), term);
    let first = || entry_id(begin().u8(MARK as u8), 0, 0).u8(0);
    let written = |script: Script| script.u8(END).u8(0).u8(0);
    let some = |script: Script| {
        let script = hard_state(script.u8((HARD_STATE | ENTRIES) as u8));
        entries(script, 1, 3, b"data")
    };
    let mut seeds = vec![
        Seed::new("empty", []),
        Seed::new("header-only", written(begin()).0),
        Seed::new("new", written(first()).0),
        Seed::new("entries", written(some(first())).0),
    ];
    let replaced = entries(some(first()).u8(ENTRIES as u8), 2, 4, &[7; 600]);
    seeds.push(Seed::new("replaced", written(replaced).0));
    let compacted = entry_id(some(first()).u8(MARK as u8), 2, 1).u8(0);
    seeds.push(Seed::new("compacted", written(compacted).0));
    let reset = entry_id(some(first()).u8((MARK | RESET) as u8), 9, 4).u8(0);
    let reset = entries(reset.u8(ENTRIES as u8), 10, 2, b"after");
    seeds.push(Seed::new("reset", written(reset).0));
    let torn = some(first()).u8(RAW).block(b"eRLf and then nothing");
    seeds.push(Seed::new("torn", written(torn).0));
    // The end of each field: sums of them must not overflow.
    for (name, index) in [("far", u64::MAX), ("nearly-far", u64::MAX - 1)] {
        let marked = entry_id(some(first()).u8((MARK | RESET) as u8), index, 1).u8(0);
        seeds.push(Seed::new(format!("mark-{name}"), written(marked).0));
        let header = number(number(Script::default(), index), 0).u8(ENTRIES as u8);
        let begun = entries(header, u64::MAX, 1, b"x");
        seeds.push(Seed::new(format!("first-{name}"), written(begun).0));
    }
    // A header that promises a gigabyte.
    let large = number(some(first()).u8(ENTRIES as u8), 4).u8(0);
    let large = number(number(large, 4), 1).block(b"x").u8(1);
    seeds.push(Seed::new("large", written(number(large, 1 << 30)).0));
    let second = number(number(written(some(first())), 4), 64 + 56 + 104);
    let second = entries(second.u8(ENTRIES as u8), 4, 1, b"next");
    seeds.push(Seed::new("two-segments", written(second).0));
    let version_2 = |script: Script, synced: u8| script.u8(END | LINKED | synced).u8(0);
    let whole = || version_2(some(first()), SYNCED);
    seeds.push(Seed::new("version-2", whole().0));
    let unmarked = version_2(some(first()), 0).0;
    seeds.push(Seed::new("version-2-unmarked", unmarked));
    let beyond = number(version_2(some(first()), SYNCED | SYNCED_SO), 512).u8(0);
    seeds.push(Seed::new("version-2-lost-end", beyond.0));
    let short = some(first()).u8(END | LINKED | SYNCED).u8(0xff).u8(0);
    seeds.push(Seed::new("version-2-short", short.0));
    let linked = some(first()).u8(END | LINKED | LINKED_SO | SYNCED).u8(0);
    let linked = number(number(linked, 7), 4096).u8(0);
    seeds.push(Seed::new("version-2-linked", linked.0));
    let second = number(number(whole().u8(0), 4), 64 + 56 + 104);
    let second = entries(second.u8(ENTRIES as u8), 4, 1, b"next");
    let second = version_2(second, SYNCED).u8(0);
    seeds.push(Seed::new("version-2-two-segments", second.0));
    let last_name = |script: Script| number(number(script.u8(END).u8(0).u8(0xfe), 1), 0);
    seeds.push(Seed::new(
        "last-name",
        written(last_name(Script::default())).0,
    ));
    seeds.push(Seed::new(
        "last-names",
        written(last_name(last_name(first()))).0,
    ));
    seeds
}

/// A log as it should be.
impl Content {
    fn new() -> Self {
        Self {
            entry_id: EntryId::default(),
            last: 0,
            entries: BTreeMap::new(),
            hard_state: None,
        }
    }

    fn append(&mut self, entries: &[LogEntry], hard_state: Option<&[u8]>) {
        for entry in entries {
            self.entries.split_off(&entry.index);
            let content = (entry.term, entry.data.clone());
            self.entries.insert(entry.index, content);
            self.last = entry.index;
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = Some(hard_state.to_vec());
        }
    }

    fn compact(&mut self, entry_id: EntryId) {
        self.entry_id = entry_id;
        self.entries = self.entries.split_off(&(entry_id.index + 1));
        self.last = self.last.max(entry_id.index);
    }

    fn reset(&mut self, entry_id: EntryId, hard_state: &[u8]) {
        self.entries.clear();
        self.entry_id = entry_id;
        self.last = entry_id.index;
        self.hard_state = Some(hard_state.to_vec());
    }
}

/// The script of what is written.
const APPEND: u8 = 0;
const COMPACT: u8 = 1;
const RESET_LOG: u8 = 2;
const DAMAGE: u8 = 3;

/// Writes a log, then changes its bytes, then opens it: it is refused, or as it was after one of
/// the writes. It cannot have anything that nobody wrote, and keeps all where nothing was changed.
pub fn damage(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = MemoryDisk::new();
    let mut log = RaftLog::create(files(&disk), OPTIONS).expect("a new log");
    let mut states = vec![Content::new()];
    while !input.is_empty() {
        let action = input.u8() % 8;
        if action == DAMAGE {
            break;
        }
        let state = write_some(&mut input, action, &mut log, &states[states.len() - 1]);
        states.push(state);
    }
    drop(log);
    let harmed = harm(&mut input, &disk);
    let recovered = recover(&disk);
    assert!(
        harmed || recovered.is_some(),
        "a log that is whole was refused"
    );
    let Some((content, mut log)) = recovered else {
        return;
    };
    if harmed {
        assert!(states.contains(&content), "nobody wrote {content:?}");
    } else {
        assert_eq!(Some(&content), states.last());
    }
    append_one(&mut log);
}

fn write_some(input: &mut Input<'_>, action: u8, log: &mut RaftLog, before: &Content) -> Content {
    let mut state = before.clone();
    match action {
        COMPACT => {
            let index = before.entry_id.index + u64::from(input.u8() % 16);
            let index = index.min(before.last);
            if index > before.entry_id.index {
                let term = before.entries[&index].0;
                log.compact(index).expect("compacts");
                state.compact(EntryId { index, term });
            }
        }
        RESET_LOG => {
            let index = before.last + u64::from(input.u8());
            let entry_id = EntryId {
                index,
                term: input.u8().into(),
            };
            let hard_state = input.block();
            log.reset(entry_id, Some(hard_state)).expect("resets");
            state.reset(entry_id, hard_state);
        }
        _ => {
            let back = u64::from(input.u8() % 4);
            let first = (before.last + 1)
                .saturating_sub(back)
                .max(before.entry_id.index + 1);
            let term = u64::from(input.u8());
            let count = u64::from(input.u8() % 5);
            let entries: Vec<LogEntry> = (first..first + count)
                .map(|index| LogEntry {
                    index,
                    term,
                    data: vec![input.u8(); usize::from(input.u16() % 2048)].into(),
                })
                .collect();
            let hard_state = (input.u8() & 1 != 0).then(|| input.block());
            let batch = Batch {
                entries: &entries,
                hard_state,
            };
            log.append(batch).expect("appends");
            state.append(&entries, hard_state);
        }
    }
    state
}

/// Changes files as the input says; false where nothing was changed.
fn harm(input: &mut Input<'_>, disk: &MemoryDisk) -> bool {
    let before = disk.contents();
    while !input.is_empty() {
        let names: Vec<String> = disk.contents().into_keys().collect();
        let (how, which) = (input.u8(), usize::from(input.u8()));
        // From the newest backwards: a torn write is there.
        // Behind them, by its name, stands the file of how far the log was synced.
        let which = if which < 0xf0 { which + 1 } else { which };
        let Some(name) = names.iter().rev().cycle().nth(which) else {
            break;
        };
        if how % 8 == 7 {
            disk.unlink(name).expect("unlinks");
            continue;
        }
        let (at, count) = (usize::from(input.u16()), usize::from(input.u8()));
        let change = |bytes: &mut Vec<u8>| {
            let at = at % bytes.len().max(1);
            let end = (at + 8 * count).min(bytes.len());
            match how % 8 {
                0 | 1 => bytes[at..end]
                    .iter_mut()
                    .take(1)
                    .for_each(|b| *b ^= 1 << (count % 8)),
                2 => bytes[at..end].fill(0),
                // Whole sectors, as a crash loses them.
                3 => {
                    let start = at / 512 * 512;
                    let end = (start + 512 * (1 + count % 4)).min(bytes.len());
                    bytes[start..end].fill(0);
                }
                4 => bytes[at..].fill(0),
                5 => bytes.truncate(at),
                _ => {
                    let copied = bytes[at..end].to_vec();
                    let to = count * 37 % (bytes.len() - copied.len() + 1);
                    bytes[to..to + copied.len()].copy_from_slice(&copied);
                }
            }
        };
        disk.tamper(name, change).expect("is there");
    }
    disk.contents() != before
}

pub fn damage_seeds() -> Vec<Seed> {
    let append = |script: Script, back: u8, term: u8, sizes: &[u16]| {
        let mut script = script.u8(APPEND).u8(back).u8(term).u8(sizes.len() as u8);
        for size in sizes {
            script = script.u8(0x55).all(&size.to_le_bytes());
        }
        script.u8(1).block(&[term; 5])
    };
    let some = || {
        let script = append(Script::default(), 0, 1, &[10, 700, 0]);
        let script = append(script, 0, 2, &[2000, 30]);
        append(script, 2, 3, &[100, 100, 1500])
    };
    let long = || {
        let mut script = some();
        for _ in 0..4 {
            script = append(script, 0, 4, &[1900, 5]);
        }
        script.u8(COMPACT).u8(9)
    };
    let harmed = |script: Script, how: u8, which: u8, at: u16, count: u8| {
        let script = script.u8(DAMAGE).u8(how).u8(which);
        script.all(&at.to_le_bytes()).u8(count).0
    };
    let mut seeds = vec![
        Seed::new("whole", some().0),
        Seed::new("whole-long", long().0),
        Seed::new(
            "whole-reset",
            append(long().u8(RESET_LOG).u8(5).u8(7).block(b"hs"), 0, 8, &[9]).0,
        ),
    ];
    for how in 0..8 {
        seeds.push(Seed::new(
            format!("harm-{how}"),
            harmed(some(), how, 0, 900, 40),
        ));
        let long = harmed(long(), how, how % 3, 70 + u16::from(how) * 300, how);
        seeds.push(Seed::new(format!("harm-long-{how}"), long));
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds that are refused at once would lead mutations nowhere.
    #[test]
    fn logs_of_both_versions_are_made() {
        for (name, opens) in [
            ("entries", true),
            ("two-segments", true),
            ("version-2", true),
            ("version-2-two-segments", true),
            ("version-2-unmarked", false),
            ("version-2-lost-end", false),
            ("version-2-short", false),
            // What was before the first segment that is left is not known.
            ("version-2-linked", true),
        ] {
            let seeds = open_seeds();
            let seed = seeds.iter().find(|seed| seed.name == name).expect(name);
            assert_eq!(open_made(&seed.bytes), opens, "{name}");
        }
    }
}
