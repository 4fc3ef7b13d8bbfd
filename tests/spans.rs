//! What a request's span costs where nobody listens: no allocation at all. It follows every put,
//! from its call to its answer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use etched::service::caller::{Caller, Identity};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[allow(unsafe_code)] // Hands everything on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often memory is asked for by what goes with a put beside the put itself.
fn allocations_of_a_call() -> u64 {
    let before = ALLOCATIONS.get();
    let span = tracing::debug_span!("call", method = "Put");
    let caller = Caller::client(Identity::Nobody, None, span);
    let header = caller.header(7);
    let span = caller.span().clone();
    tracing::trace!(parent: &span, leader = 1, "proposed");
    tracing::trace!(parent: &span, index = 2, "committed");
    tracing::trace!(parent: &span, success = true, "answered");
    assert_eq!(header.id, 7);
    ALLOCATIONS.get() - before
}

#[test]
fn a_span_that_nobody_wants_allocates_nothing() {
    let quiet = tracing_subscriber::registry().with(LevelFilter::INFO);
    tracing::subscriber::with_default(quiet, || {
        // The first call makes the callsites known.
        allocations_of_a_call();
        assert_eq!(allocations_of_a_call(), 0);
    });
    // It is the level that makes the difference.
    let listening = tracing_subscriber::registry().with(LevelFilter::TRACE);
    tracing::subscriber::with_default(listening, || {
        allocations_of_a_call();
        let caller = Caller::client(Identity::Nobody, None, tracing::debug_span!("call"));
        assert!(!caller.span().is_disabled());
    });
}
