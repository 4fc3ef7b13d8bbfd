//! What holds the memory that Rust allocates: one allocation in half a megabyte, with its stack,
//! until it is freed.
//!
//! The program's allocator reports every allocation and every release, and hands over the function
//! that walks a stack, which takes unsafe code. Until [`start`] it only asks, which is a load and a
//! branch. After it, an allocation is counted down by the thread, and a release reads one byte,
//! which says that nothing sampled has such an address. What a sample stands for follows from its
//! size, as in Go's heap profiles, so that sums are those of all allocations.
//!
//! RocksDB allocates by itself and is not seen.
//!
//! Nothing here may allocate unguarded: each thread says when it is busy here, and what it allocates
//! meanwhile is not reported.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::format::{Builder, Quantity};
use super::symbols::Reading;

/// Bytes between two samples of a thread, on average: Go's.
const MEAN_BYTES: f64 = 524_288.0;
/// Calls of a stack that are kept, from the innermost.
pub const MAX_CALLS: usize = 128;
/// Different stacks; what comes after them is counted as one without calls.
const MAX_STACKS: usize = 16_384;
/// Sampled allocations that are not freed: of 128 GiB.
const MAX_LIVE: usize = 1 << 18;

const TYPES: [Quantity; 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];
/// The way from the allocating code to here.
const LEFT_OUT: &str = "backtrace::.*|etched::profile::heap::.*|<?etched::(Sampled|alloc|realloc|report|walk_stack).*|\
    __rustc?_.*|__rustc::.*|alloc::alloc::.*|<alloc::alloc::Global.*|alloc::raw_vec::.*";

/// The calls of a stack, from the innermost outwards.
pub struct Stack {
    calls: [usize; MAX_CALLS],
    count: usize,
}

impl Stack {
    /// Adds the next call outwards, by its address; false: no more are wanted.
    pub fn push(&mut self, address: usize) -> bool {
        if let Some(place) = self.calls.get_mut(self.count) {
            *place = address;
            self.count += 1;
        }
        self.count < MAX_CALLS
    }

    fn calls(&self) -> &[usize] {
        &self.calls[..self.count]
    }
}

/// Fills in the stack of the calling thread, without allocating.
pub type WalkStack = fn(&mut Stack);

static ON: AtomicBool = AtomicBool::new(false);
/// Neither the house's locks nor its maps: they keep variables of threads, which end before the last
/// memory of a thread is freed.
static SAMPLES: Mutex<Samples> = Mutex::new(Samples::new());
/// How many sampled allocations have an address that falls into each place; the highest number stays.
static HELD: [AtomicU8; PLACES] = [const { AtomicU8::new(0) }; PLACES];
const PLACES: usize = 1 << PLACES_BITS;
const PLACES_BITS: u32 = 16;

/// What a thread knows.
struct Local {
    countdown: Countdown,
    /// It is in here already.
    busy: Cell<bool>,
}

thread_local! {
    // Has no destructor, so it is there as long as its thread.
    static LOCAL: Local = const {
        Local { countdown: Countdown::new(), busy: Cell::new(false) }
    };
}

/// Begins to sample, for as long as the process runs.
pub fn start() {
    ON.store(true, Ordering::Relaxed);
}

/// Whether reports are wanted.
#[inline]
pub fn is_sampled() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Reports an allocation, after it was made.
pub fn allocated(address: usize, bytes: usize, walk: WalkStack) {
    let due = LOCAL.try_with(|local| local.countdown.passes(bytes) && !local.busy.get());
    if due == Ok(true) {
        sample(address, bytes, walk);
    }
}

#[cold]
fn sample(address: usize, bytes: usize, walk: WalkStack) {
    alone(|local| {
        if !local.countdown.begins_anew() {
            return;
        }
        let mut stack = Stack {
            calls: [0; MAX_CALLS],
            count: 0,
        };
        walk(&mut stack);
        if samples().add(address, bytes as u64, stack.calls()) {
            let held = &HELD[place(address)];
            // Under the lock, as where it falls.
            held.store(
                held.load(Ordering::Relaxed).saturating_add(1),
                Ordering::Relaxed,
            );
        }
    });
}

/// Reports a release, before it is made: afterwards the address may be another's.
pub fn freed(address: usize) {
    if HELD[place(address)].load(Ordering::Relaxed) != 0 {
        forget(address);
    }
}

#[cold]
fn forget(address: usize) {
    alone(|_| {
        if samples().remove(address) {
            let held = &HELD[place(address)];
            let count = held.load(Ordering::Relaxed);
            if count < u8::MAX {
                held.store(count.saturating_sub(1), Ordering::Relaxed);
            }
        }
    });
}

/// Does what may allocate, unless this thread is at it.
fn alone(work: impl FnOnce(&Local)) {
    // Where a thread has no variables, nothing is sampled.
    let _ = LOCAL.try_with(|local| {
        if !local.busy.replace(true) {
            work(local);
            local.busy.set(false);
        }
    });
}

fn samples() -> MutexGuard<'static, Samples> {
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(address: usize) -> usize {
    // Fibonacci hashing; the lowest bits of addresses are alike.
    let mixed = (address as u64 >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (u64::BITS - PLACES_BITS)) as usize
}

/// The heap's profile at this time since the Unix epoch, with one of its numbers shown first: what
/// is in use, or what was ever allocated.
///
/// # Errors
/// None, where memory is what it is written to.
pub fn profile(at: Duration, shows: &str) -> io::Result<Vec<u8>> {
    let mut totals = Vec::new();
    alone(|_| totals = samples().totals());
    let mut builder = Builder::new(&TYPES, ("space", "bytes"), MEAN_BYTES as i64, at);
    builder.shows(shows);
    builder.leaves_out(LEFT_OUT);
    for (stack, total) in totals {
        builder.sample(&stack, total.values(), None);
    }
    let _reading = Reading;
    builder.finish()
}

/// When the next sample is due: the bytes between two are exponentially distributed, so that no
/// pattern of allocations escapes.
struct Countdown {
    left: Cell<i64>,
    /// The state of xorshift; 0: nothing was drawn yet.
    chance: Cell<u64>,
}

impl Countdown {
    const fn new() -> Self {
        Self {
            left: Cell::new(0),
            chance: Cell::new(0),
        }
    }

    /// Whether a sample is due by this allocation.
    fn passes(&self, bytes: usize) -> bool {
        let left = self.left.get().saturating_sub(bytes as i64);
        self.left.set(left);
        left < 0
    }

    /// Draws the distance to the next sample; false where the first is not due after all, because
    /// it had not been drawn.
    fn begins_anew(&self) -> bool {
        if self.chance.get() == 0 {
            static SEED: AtomicU64 = AtomicU64::new(1);
            let seed = SEED.fetch_add(1, Ordering::Relaxed);
            self.chance
                .set(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            self.left.set(self.left.get().saturating_add(self.draw()));
            if self.left.get() >= 0 {
                return false;
            }
        }
        self.left.set(self.draw());
        true
    }

    fn draw(&self) -> i64 {
        let mut state = self.chance.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.chance.set(state);
        // 53 bits: above 0, at most 1.
        let uniform = ((state >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (-uniform.ln() * MEAN_BYTES) as i64
    }
}

/// What was sampled.
struct Samples {
    stacks: BTreeMap<Box<[usize]>, usize>,
    totals: Vec<Total>,
    /// By address.
    live: BTreeMap<usize, Live>,
}

#[derive(Clone, Copy)]
struct Live {
    stack: usize,
    bytes: u64,
}

/// What the samples of a stack stand for.
#[derive(Clone, Copy, Default)]
struct Total {
    allocated: Amount,
    freed: Amount,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    objects: f64,
    bytes: f64,
}

impl Amount {
    /// Adds an allocation of this size, and those like it that were not sampled.
    fn add(&mut self, bytes: u64) {
        let sampled = 1.0 - (-(bytes as f64) / MEAN_BYTES).exp();
        self.objects += 1.0 / sampled;
        self.bytes += bytes as f64 / sampled;
    }
}

impl Total {
    fn values(&self) -> Vec<i64> {
        let (allocated, freed) = (self.allocated, self.freed);
        let values = [
            allocated.objects,
            allocated.bytes,
            allocated.objects - freed.objects,
            allocated.bytes - freed.bytes,
        ];
        values.iter().map(|value| value.round() as i64).collect()
    }
}

impl Samples {
    const fn new() -> Self {
        Self {
            stacks: BTreeMap::new(),
            totals: Vec::new(),
            live: BTreeMap::new(),
        }
    }

    /// False: there is no room, and it is not counted.
    fn add(&mut self, address: usize, bytes: u64, calls: &[usize]) -> bool {
        if self.live.len() == MAX_LIVE || bytes == 0 {
            return false;
        }
        let stack = self.stack(calls);
        self.totals[stack].allocated.add(bytes);
        self.live.insert(address, Live { stack, bytes });
        true
    }

    fn remove(&mut self, address: usize) -> bool {
        let Some(live) = self.live.remove(&address) else {
            return false;
        };
        self.totals[live.stack].freed.add(live.bytes);
        true
    }

    fn stack(&mut self, calls: &[usize]) -> usize {
        let calls = if self.stacks.len() >= MAX_STACKS {
            &[]
        } else {
            calls
        };
        if let Some(at) = self.stacks.get(calls) {
            return *at;
        }
        let at = self.totals.len();
        self.totals.push(Total::default());
        self.stacks.insert(calls.into(), at);
        at
    }

    fn totals(&self) -> Vec<(Box<[usize]>, Total)> {
        let stacks = self.stacks.iter();
        stacks
            .map(|(calls, at)| (calls.clone(), self.totals[*at]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What samples stand for is what was allocated, whatever the sizes.
    #[test]
    fn sums_are_those_of_all_allocations() {
        for bytes in [64, 1000, 100_000, 5_000_000] {
            let countdown = Countdown::new();
            let mut sum = Amount::default();
            let allocations = 1_000_000_000 / bytes;
            for _ in 0..allocations {
                if countdown.passes(bytes) && countdown.begins_anew() {
                    sum.add(bytes as u64);
                }
            }
            let off = sum.objects / allocations as f64 - 1.0;
            assert!(off.abs() < 0.12, "{bytes}: off by {off}");
        }
    }

    #[test]
    fn what_is_freed_is_in_use_no_more() {
        let mut samples = Samples::new();
        assert!(samples.add(64, 5_000_000, &[1, 2]));
        assert!(samples.add(128, 5_000_000, &[1, 2]));
        assert!(samples.add(192, 6_000_000, &[3]));
        assert!(!samples.add(256, 0, &[4]));
        assert!(samples.remove(128) && !samples.remove(128) && !samples.remove(1));
        let totals = samples.totals();
        let values: Vec<_> = totals
            .iter()
            .map(|(calls, total)| {
                (
                    calls.to_vec(),
                    total.values()[0],
                    total.values()[2..].to_vec(),
                )
            })
            .collect();
        assert_eq!(
            values,
            [
                (vec![1, 2], 2, vec![1, 5_000_361]),
                (vec![3], 1, vec![1, 6_000_064])
            ]
        );
    }

    #[test]
    fn stacks_are_not_without_end() {
        let mut samples = Samples::new();
        for call in 1..=MAX_STACKS + 10 {
            assert!(samples.add(call * 16, 512, &[call]));
        }
        assert_eq!(samples.stacks.len(), MAX_STACKS + 1);
        let (calls, rest) = &samples.totals()[0];
        assert!(calls.is_empty() && rest.values()[3] > 0);
        let mut stack = Stack {
            calls: [0; MAX_CALLS],
            count: 0,
        };
        let wanted = (1..1000).take_while(|call| stack.push(*call)).count();
        assert_eq!((wanted + 1, stack.calls().len()), (MAX_CALLS, MAX_CALLS));
    }

    #[test]
    fn reports_of_a_process_become_a_profile() {
        fn walk(stack: &mut Stack) {
            let here = walk as fn(&mut Stack) as usize + 1;
            let _ = stack.push(here) && stack.push(7);
        }
        // Nobody else in this process reports anything.
        assert!(!is_sampled());
        start();
        assert!(is_sampled());
        for at in 1..=3 {
            allocated(at << 50, 1 << 40, walk);
        }
        // Both are in one place, and only one was sampled.
        freed(2 << 50);
        freed((2 << 50) + 1);
        let file = profile(Duration::ZERO, "inuse_space").expect("a file");
        let profile = super::super::format::read(&file);
        let [sample] = profile.sample.as_slice() else {
            panic!("{:?}", profile.sample);
        };
        assert_eq!(sample.value, [3, 3 << 40, 2, 2 << 40]);
        assert_eq!(sample.location_id.len(), 2);
        assert_eq!(HELD[place(2 << 50)].load(Ordering::Relaxed), 0);
    }
}
