//! The server's program; see `program.rs`.
//!
//! Its allocator reports to the heap's profile, which is off unless a flag asks for it.

use std::alloc::{GlobalAlloc, Layout};

use etched::program::heap::{self, Stack};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Sampled = Sampled;

struct Sampled;

/// The calls of this thread, for a sample.
fn walk_stack(stack: &mut Stack) {
    // SAFETY: unsynchronized is the naming of functions, which does not take place here; walking is
    // safe beside others on Linux.
    unsafe { backtrace::trace_unsynchronized(|frame| stack.push(frame.ip() as usize)) }
}

fn report(address: *mut u8, bytes: usize) -> *mut u8 {
    if !address.is_null() {
        heap::allocated(address as usize, bytes, walk_stack);
    }
    address
}

// SAFETY: every call is mimalloc's; reports neither unwind nor touch the memory.
unsafe impl GlobalAlloc for Sampled {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promises is passed on, here and below.
        report(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        report(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        heap::freed(address as usize);
        unsafe { MiMalloc.dealloc(address, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, address: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        heap::freed(address as usize);
        report(unsafe { MiMalloc.realloc(address, layout, bytes) }, bytes)
    }
}

unsafe extern "C" {
    /// Of the allocator's library: has the calling thread give up pages that hold nothing, and gives
    /// back to the system what was given up a while ago.
    safe fn mi_collect(force: bool);
}

fn main() -> std::process::ExitCode {
    etched::program::run(|| mi_collect(false))
}
