//! Counts what a thread allocates, so that a fuzz target or a test can say how much a call may hold.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting. Tests and the runner of a target have it as the global one:
/// nothing is counted otherwise.
pub struct Counting;

thread_local! {
    /// What this thread holds, as far as it was allocated here, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends allocates no more that anyone asks about.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now + bytes;
        held.set((now, most.max(now)));
    });
}

// SAFETY: everything is handed to the system's allocator as it is; counting touches a cell of this
// thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are held while one is copied to the other.
        count(size as isize);
        let moved = unsafe { System.realloc(pointer, layout, size) };
        count(-(layout.size() as isize));
        moved
    }
}

/// Runs `act` and panics where it held more than `limit_bytes` at any time.
pub fn within<T>(limit_bytes: usize, act: impl FnOnce() -> T) -> T {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let result = act();
    let most = HELD.with(Cell::get).1 - before;
    assert!(
        most <= limit_bytes as isize,
        "{most} bytes were held at a time, more than {limit_bytes}"
    );
    result
}
