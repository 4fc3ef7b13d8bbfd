//! Sorts more pairs than memory holds: runs of what fits are sorted and written to a file, and
//! merged when they are read.
//!
//! Memory is `MEMORY_BYTES`: one half is filled while a thread sorts and writes the other. While runs
//! are merged it is a small buffer for each and one for the value of the pair that is handed out: a
//! run holds a key and no large value. The lengths of
//! values are in a file of their own too, so that they can be read alone. Both files have no name:
//! nothing of them is left after a crash.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;

/// Two halves, of which each is sorted as one run.
const MEMORY_BYTES: usize = 16 << 20;
/// What is read of a run at a time.
const READ_BYTES: usize = 64 << 10;
const WRITE_BYTES: usize = 256 << 10;
/// As many runs are merged at once; more are merged in several rounds.
const MAX_RUNS: usize = 512;

/// Pairs on their way into order.
pub struct Sorter {
    dir: PathBuf,
    half_bytes: usize,
    filling: Half,
    /// Once memory did not hold all.
    spilling: Option<Spilling>,
}

/// Pairs in memory.
#[derive(Default)]
struct Half {
    data: Vec<u8>,
    pairs: Vec<Pair>,
}

impl Half {
    fn held_bytes(&self) -> usize {
        self.data.len() + self.pairs.len() * size_of::<Pair>()
    }

    fn sort(&mut self) {
        let data = &self.data;
        self.pairs
            .sort_unstable_by(|a, b| a.key(data).cmp(b.key(data)));
    }
}

/// A pair in memory: where it begins, and the lengths of key and value.
#[derive(Clone, Copy)]
pub struct Pair {
    at: u32,
    key_len: u32,
    value_len: u32,
}

impl Pair {
    fn key<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        &data[self.at as usize..][..self.key_len as usize]
    }

    fn value<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        &data[(self.at + self.key_len) as usize..][..self.value_len as usize]
    }
}

struct Spilled {
    whole: Runs,
    /// Keys and lengths alone.
    lengths: Runs,
}

impl Spilled {
    fn create(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            whole: Runs::create(dir, true)?,
            lengths: Runs::create(dir, false)?,
        })
    }

    /// Writes what a half has as one run, and empties it.
    fn take(&mut self, half: &mut Half) -> io::Result<()> {
        half.sort();
        let (mut whole, mut lengths) = (self.whole.begin(), self.lengths.begin());
        for pair in &half.pairs {
            let (key, value) = (pair.key(&half.data), pair.value(&half.data));
            whole.push(key, value.len(), value)?;
            lengths.push(key, value.len(), &[])?;
        }
        self.whole.end(whole)?;
        self.lengths.end(lengths)?;
        half.pairs.clear();
        half.data.clear();
        Ok(())
    }
}

/// Who writes runs.
enum Spilling {
    /// A thread, which takes a half when it is done with the one before.
    Beside {
        full: SyncSender<Half>,
        empty: Receiver<Half>,
        thread: JoinHandle<io::Result<Spilled>>,
    },
    /// Where there can be no thread.
    Here(Spilled),
}

impl Spilling {
    fn begin(dir: &Path) -> io::Result<Self> {
        let (full, halves) = mpsc::sync_channel::<Half>(0);
        let (emptied, empty) = mpsc::channel();
        let mut spilled = Spilled::create(dir)?;
        let write = move || {
            for mut half in halves {
                spilled.take(&mut half)?;
                // Nobody takes the last ones.
                let _ = emptied.send(half);
            }
            Ok(spilled)
        };
        let thread = thread::Builder::new().name("sort".to_owned()).spawn(write);
        Ok(match thread {
            Ok(thread) => Self::Beside {
                full,
                empty,
                thread,
            },
            Err(_) => Self::Here(Spilled::create(dir)?),
        })
    }

    /// Takes a full half and returns an empty one; none where the thread has ended.
    fn exchange(&mut self, mut half: Half) -> io::Result<Option<Half>> {
        match self {
            Self::Here(spilled) => spilled.take(&mut half).map(|()| Some(half)),
            Self::Beside { full, empty, .. } => {
                let taken = full.send(half).is_ok();
                Ok(taken.then(|| empty.try_recv().unwrap_or_default()))
            }
        }
    }

    /// Waits until all runs are written.
    fn end(self) -> io::Result<Spilled> {
        match self {
            Self::Here(spilled) => Ok(spilled),
            Self::Beside { full, thread, .. } => {
                drop(full);
                thread.join().unwrap_or_else(|_panicked| Err(ended()))
            }
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that writes sorted runs ended")
}

impl Sorter {
    /// Runs go to files in `dir` where memory does not hold all pairs.
    pub fn new(dir: &Path) -> Self {
        Self::with_memory(dir, MEMORY_BYTES)
    }

    fn with_memory(dir: &Path, memory_bytes: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            half_bytes: memory_bytes / 2,
            filling: Half::default(),
            spilling: None,
        }
    }

    /// Adds a pair, whose value is the parts one behind the other. No key comes twice.
    pub fn push(&mut self, key: &[u8], value: &[&[u8]]) -> io::Result<()> {
        let value_len: usize = value.iter().map(|part| part.len()).sum();
        let more = key.len() + value_len + size_of::<Pair>();
        let is_full = self.filling.held_bytes() + more > self.half_bytes;
        if is_full && !self.filling.pairs.is_empty() {
            self.spill()?;
        }
        let Half { data, pairs } = &mut self.filling;
        pairs.push(Pair {
            at: data.len() as u32,
            key_len: key.len() as u32,
            value_len: value_len as u32,
        });
        data.extend_from_slice(key);
        for part in value {
            data.extend_from_slice(part);
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let mut spilling = match self.spilling.take() {
            Some(spilling) => spilling,
            None => Spilling::begin(&self.dir)?,
        };
        let Some(empty) = spilling.exchange(std::mem::take(&mut self.filling))? else {
            // It ended before its time, so it failed.
            return Err(spilling.end().err().unwrap_or_else(ended));
        };
        (self.spilling, self.filling) = (Some(spilling), empty);
        Ok(())
    }

    /// Ends the input.
    pub fn done(mut self) -> io::Result<Sorted> {
        if self.spilling.is_some() && !self.filling.pairs.is_empty() {
            self.spill()?;
        }
        let Some(spilling) = self.spilling.take() else {
            self.filling.sort();
            let Half { data, pairs } = self.filling;
            return Ok(Sorted(Where::InMemory(data, pairs)));
        };
        let mut spilled = spilling.end()?;
        for runs in [&mut spilled.whole, &mut spilled.lengths] {
            while runs.spans.len() > MAX_RUNS {
                runs.merge_first()?;
            }
        }
        Ok(Sorted(Where::Spilled(spilled)))
    }
}

/// Pairs in order, to be read as often as wanted.
pub struct Sorted(Where);

enum Where {
    InMemory(Vec<u8>, Vec<Pair>),
    Spilled(Spilled),
}

/// What is done with a pair: its key, the length of its value, and the value.
pub type Visit<'a, E> = dyn FnMut(&[u8], usize, &[u8]) -> Result<(), E> + 'a;

impl Sorted {
    /// Visits all pairs in order.
    pub fn each<E: From<io::Error>>(&self, visit: &mut Visit<'_, E>) -> Result<(), E> {
        match &self.0 {
            Where::InMemory(data, pairs) => pairs.iter().try_for_each(|pair| {
                let value = pair.value(data);
                visit(pair.key(data), value.len(), value)
            }),
            Where::Spilled(spilled) => spilled.whole.each(visit),
        }
    }

    /// Yields all pairs in order, at the caller's pace.
    pub fn walk(self) -> io::Result<SortedWalk> {
        Ok(match self.0 {
            Where::InMemory(data, pairs) => SortedWalk::InMemory {
                data,
                pairs: pairs.into_iter(),
            },
            Where::Spilled(spilled) => {
                SortedWalk::Spilled(spilled.whole.walk(&spilled.whole.spans)?)
            }
        })
    }

    /// Visits all pairs in order, with empty values if that is less work.
    pub fn each_length<E: From<io::Error>>(&self, visit: &mut Visit<'_, E>) -> Result<(), E> {
        match &self.0 {
            Where::InMemory(..) => self.each(visit),
            Where::Spilled(spilled) => spilled.lengths.each(visit),
        }
    }
}

/// Where a caller is among sorted pairs.
pub enum SortedWalk {
    InMemory {
        data: Vec<u8>,
        pairs: std::vec::IntoIter<Pair>,
    },
    Spilled(RunsWalk),
}

impl SortedWalk {
    /// Moves to the next pair: its key and its value.
    pub fn advance(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        match self {
            Self::InMemory { data, pairs } => {
                let pair = pairs.next();
                Ok(pair.map(|pair| (pair.key(data), pair.value(data))))
            }
            Self::Spilled(walk) => {
                let pair = walk.advance()?;
                Ok(pair.map(|(key, _, value)| (key, value)))
            }
        }
    }
}

/// A key, the length of its value, and the value.
type HandedOut<'a> = (&'a [u8], usize, &'a [u8]);

/// Runs that are merged.
pub struct RunsWalk {
    /// Each at its next pair, but for the first after it was handed out.
    runs: BinaryHeap<RunReader>,
    handed_out: bool,
    /// The last value, where it was not in the buffer of its run.
    value: Vec<u8>,
}

impl RunsWalk {
    /// The next pair: its key, the length of its value, and that, if the runs have values.
    fn advance(&mut self) -> io::Result<Option<HandedOut<'_>>> {
        if std::mem::replace(&mut self.handed_out, true)
            && let Some(mut run) = self.runs.peek_mut()
            && !run.advance()?
        {
            PeekMut::pop(run);
        }
        let Some(run) = self.runs.peek() else {
            return Ok(None);
        };
        let value = run.value(&mut self.value)?;
        Ok(Some((run.key(), run.value_len, value)))
    }
}

/// Sorted runs in one file.
struct Runs {
    file: Arc<File>,
    has_values: bool,
    len: u64,
    /// Where each begins and ends.
    spans: Vec<(u64, u64)>,
}

impl Runs {
    fn create(dir: &Path, has_values: bool) -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(tempfile::tempfile_in(dir)?),
            has_values,
            len: 0,
            spans: Vec::new(),
        })
    }

    fn begin(&self) -> RunWriter {
        RunWriter {
            file: self.file.clone(),
            has_values: self.has_values,
            begin: self.len,
            written: self.len,
            buffer: Vec::with_capacity(WRITE_BYTES),
        }
    }

    fn end(&mut self, mut run: RunWriter) -> io::Result<()> {
        run.flush()?;
        self.len = run.written;
        self.spans.push((run.begin, run.written));
        Ok(())
    }

    /// Makes one run of the first ones, behind the last.
    fn merge_first(&mut self) -> io::Result<()> {
        let first: Vec<_> = self.spans.drain(..MAX_RUNS).collect();
        let mut run = self.begin();
        self.merge::<io::Error>(&first, &mut |key, value_len, value| {
            run.push(key, value_len, value)
        })?;
        self.end(run)
    }

    fn each<E: From<io::Error>>(&self, visit: &mut Visit<'_, E>) -> Result<(), E> {
        self.merge(&self.spans, visit)
    }

    fn merge<E: From<io::Error>>(
        &self,
        spans: &[(u64, u64)],
        visit: &mut Visit<'_, E>,
    ) -> Result<(), E> {
        let mut walk = self.walk(spans)?;
        while let Some((key, value_len, value)) = walk.advance()? {
            visit(key, value_len, value)?;
        }
        Ok(())
    }

    fn walk(&self, spans: &[(u64, u64)]) -> io::Result<RunsWalk> {
        let mut runs = BinaryHeap::with_capacity(spans.len());
        for (begin, end) in spans {
            let mut run = RunReader {
                file: self.file.clone(),
                has_values: self.has_values,
                at: *begin,
                end: *end,
                buffer: Vec::new(),
                begin: 0,
                key_len: 0,
                value_len: 0,
            };
            if run.advance()? {
                runs.push(run);
            }
        }
        Ok(RunsWalk {
            runs,
            handed_out: false,
            value: Vec::new(),
        })
    }
}

struct RunWriter {
    file: Arc<File>,
    has_values: bool,
    begin: u64,
    written: u64,
    buffer: Vec<u8>,
}

impl RunWriter {
    fn push(&mut self, key: &[u8], value_len: usize, value: &[u8]) -> io::Result<()> {
        self.buffer
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.buffer
            .extend_from_slice(&(value_len as u32).to_le_bytes());
        self.buffer.extend_from_slice(key);
        if self.has_values {
            self.buffer.extend_from_slice(value);
        }
        match self.buffer.len() >= WRITE_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

const LENGTHS_BYTES: usize = 8;

/// A run, at one of its pairs.
struct RunReader {
    file: Arc<File>,
    has_values: bool,
    /// What of the file is not in the buffer.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Where the pair's key is in the buffer.
    begin: usize,
    key_len: usize,
    value_len: usize,
}

impl RunReader {
    fn stored_value_len(&self) -> usize {
        match self.has_values {
            true => self.value_len,
            false => 0,
        }
    }

    fn key(&self) -> &[u8] {
        &self.buffer[self.begin..][..self.key_len]
    }

    /// From the buffer, or read to `apart` as far as it is not there.
    fn value<'a>(&'a self, apart: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let len = self.stored_value_len();
        let held = &self.buffer[self.begin + self.key_len..];
        if let Some(whole) = held.get(..len) {
            return Ok(whole);
        }
        apart.resize(len, 0);
        let (front, back) = apart.split_at_mut(held.len());
        front.copy_from_slice(held);
        self.file.read_exact_at(back, self.at)?;
        Ok(apart)
    }

    /// Moves to the next pair; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        self.pass(self.key_len + self.stored_value_len())?;
        if self.begin == self.buffer.len() && self.at == self.end {
            return Ok(false);
        }
        self.fill(LENGTHS_BYTES)?;
        let length = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let lengths = &self.buffer[self.begin..][..LENGTHS_BYTES];
        self.key_len = length(lengths) as usize;
        self.value_len = length(&lengths[4..]) as usize;
        self.begin += LENGTHS_BYTES;
        self.fill(self.key_len)?;
        Ok(true)
    }

    /// Skips so many bytes, of which the last may not be in the buffer.
    fn pass(&mut self, count: usize) -> io::Result<()> {
        let held = self.buffer.len() - self.begin;
        if count <= held {
            self.begin += count;
            return Ok(());
        }
        self.buffer.clear();
        self.begin = 0;
        self.at += (count - held) as u64;
        match self.at <= self.end {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Adds the next bytes of the file to the buffer.
    fn read_more(&mut self, more: usize) -> io::Result<()> {
        let end = self.buffer.len() + more;
        self.buffer.reserve_exact(more);
        while self.buffer.len() < end {
            let had = self.buffer.len();
            rustix::io::pread(&self.file, spare_capacity(&mut self.buffer), self.at)?;
            if self.buffer.len() == had {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // There may be room for more than was asked for.
            self.buffer.truncate(end);
            self.at += (self.buffer.len() - had) as u64;
        }
        Ok(())
    }

    /// Has at least `count` bytes from `begin` on in the buffer.
    fn fill(&mut self, count: usize) -> io::Result<()> {
        let held = self.buffer.len() - self.begin;
        if held >= count {
            return Ok(());
        }
        self.buffer.drain(..self.begin);
        self.begin = 0;
        let wanted = count.max(READ_BYTES) - held;
        let more = wanted.min((self.end - self.at) as usize);
        self.read_more(more)?;
        match held + more >= count {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The smallest key is on top of a heap.
impl Ord for RunReader {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(self.key())
    }
}

impl PartialOrd for RunReader {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RunReader {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for RunReader {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn read(sorted: &Sorted) -> (Pairs, Vec<(Vec<u8>, usize)>) {
        let (mut pairs, mut lengths) = (Vec::new(), Vec::new());
        let whole = sorted.each::<io::Error>(&mut |key, len, value| {
            assert_eq!(len, value.len());
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        });
        whole.expect("reads");
        let alone = sorted.each_length::<io::Error>(&mut |key, len, _| {
            lengths.push((key.to_vec(), len));
            Ok(())
        });
        alone.expect("reads");
        (pairs, lengths)
    }

    #[test]
    fn pairs_come_in_order_whether_they_fit_memory_or_not() {
        let dir = tempfile::tempdir().expect("a directory");
        // The third makes more runs than are merged at once.
        for (memory_bytes, count) in [(1 << 20, 1_000), (2_000, 5_000), (30, 2_000), (1, 0)] {
            let mut expected = BTreeMap::new();
            let mut sorter = Sorter::with_memory(dir.path(), memory_bytes);
            for number in 0..count as u32 {
                let key = number.wrapping_mul(2_654_435_761).to_be_bytes();
                let key = &key[..1 + (number % 4) as usize];
                let value = vec![number as u8; (number % 97) as usize];
                if expected.contains_key(key) {
                    continue;
                }
                let (front, back) = value.split_at(value.len() / 2);
                sorter.push(key, &[front, back]).expect("writes");
                expected.insert(key.to_vec(), value);
            }
            let sorted = sorter.done().expect("merges");
            let (pairs, lengths) = read(&sorted);
            assert_eq!(pairs, expected.into_iter().collect::<Pairs>());
            assert_eq!(read(&sorted).0, pairs, "a second time");
            let mut walk = sorted.walk().expect("reads");
            for (key, value) in &pairs {
                let pair = walk.advance().expect("reads");
                assert_eq!(pair, Some((key.as_slice(), value.as_slice())));
            }
            assert_eq!(walk.advance().expect("reads"), None);
            let of_pairs: Vec<_> = pairs
                .into_iter()
                .map(|(key, value)| (key, value.len()))
                .collect();
            assert_eq!(lengths, of_pairs);
            let left = std::fs::read_dir(dir.path()).expect("reads").count();
            assert_eq!(left, 0, "files with names");
        }
    }

    #[test]
    fn values_larger_than_memory_have_runs_to_themselves() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sorter = Sorter::with_memory(dir.path(), 100);
        for key in [b"c", b"a", b"b"] {
            sorter.push(key, &[&[key[0]; 70_000]]).expect("writes");
        }
        let (pairs, _) = read(&sorter.done().expect("merges"));
        assert_eq!(
            pairs,
            [b'a', b'b', b'c'].map(|key| (vec![key], vec![key; 70_000]))
        );
    }

    #[test]
    fn a_run_holds_no_large_value_in_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sorter = Sorter::with_memory(dir.path(), 100);
        for number in 0..50_u8 {
            let value = vec![number; 300_000];
            sorter.push(&[number], &[&value]).expect("writes");
        }
        let sorted = sorter.done().expect("merges");
        let SortedWalk::Spilled(mut walk) = sorted.walk().expect("reads") else {
            panic!("all fits");
        };
        for number in 0..50_u8 {
            let (key, len, value) = walk.advance().expect("reads").expect("a pair");
            assert_eq!((key, len), (&[number][..], 300_000));
            assert!(value.iter().all(|byte| *byte == number));
            let held: usize = walk.runs.iter().map(|run| run.buffer.capacity()).sum();
            assert!(held <= 50 * READ_BYTES, "{held} bytes");
        }
        assert_eq!(walk.advance().expect("reads"), None);
    }
}
