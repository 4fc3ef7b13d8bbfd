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

/// Makes an allocation that is reported: apart, so that what is not reported saves no register.
#[cold]
#[inline(never)]
fn reported(bytes: usize, allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    let address = allocate();
    if !address.is_null() {
        heap::allocated(address as usize, bytes, walk_stack);
    }
    address
}

#[cold]
#[inline(never)]
fn report_release(address: *mut u8, release: impl FnOnce()) {
    heap::freed(address as usize);
    release();
}

// SAFETY: every call is mimalloc's; reports neither unwind nor touch the memory. What the callers
// promise is passed on.
unsafe impl GlobalAlloc for Sampled {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if heap::is_sampled() {
            return reported(layout.size(), || unsafe { MiMalloc.alloc(layout) });
        }
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if heap::is_sampled() {
            return reported(layout.size(), || unsafe { MiMalloc.alloc_zeroed(layout) });
        }
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if heap::is_sampled() {
            return report_release(address, || unsafe { MiMalloc.dealloc(address, layout) });
        }
        unsafe { MiMalloc.dealloc(address, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, address: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if heap::is_sampled() {
            return reported(bytes, || {
                heap::freed(address as usize);
                unsafe { MiMalloc.realloc(address, layout, bytes) }
            });
        }
        unsafe { MiMalloc.realloc(address, layout, bytes) }
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
