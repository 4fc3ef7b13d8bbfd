//! Bytes that many hold together, up to a limit.
//!
//! - What is held never exceeds the limit, but for what cannot be refused (`take_anyway`) and for
//!   a single holder: alone it may take any size, so that nothing waits for ever.
//! - Those that wait are served in their order. Small ones have a line of their own and the last
//!   quarter of the limit to themselves, so that they pass large ones that wait.
//! - The lines are bounded; who finds one full is refused at once.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// Up to this size what waits is small.
const SMALL_BYTES: usize = 16 << 10;
/// Of each line.
const MAX_WAITING: usize = 4096;

/// See the module.
pub struct Share {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used_bytes: usize,
    small: VecDeque<Waiter>,
    large: VecDeque<Waiter>,
    next_number: u64,
}

struct Waiter {
    number: u64,
    bytes: usize,
    waker: Waker,
    /// The bytes are taken; who waits finds that out when it is polled.
    granted: bool,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Share {
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            state: Mutex::default(),
        })
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub fn used_bytes(&self) -> usize {
        self.state.lock().used_bytes
    }

    /// Takes bytes where they are free and nobody waits for them.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut state = self.state.lock();
        let free = state.line(bytes).is_empty() && state.fits(bytes, self.limit_bytes);
        free.then(|| {
            state.used_bytes += bytes;
            self.held(bytes)
        })
    }

    /// Counts bytes that are there already, beyond the limit where need be.
    pub fn take_anyway(self: &Arc<Self>, bytes: usize) -> Held {
        self.state.lock().used_bytes += bytes;
        self.held(bytes)
    }

    /// Takes bytes as soon as they are free.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Waiting {
        Waiting {
            share: self.clone(),
            bytes,
            number: None,
        }
    }

    fn held(self: &Arc<Self>, bytes: usize) -> Held {
        Held {
            share: self.clone(),
            bytes,
        }
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.used_bytes -= bytes;
        state.grant(self.limit_bytes);
    }
}

impl State {
    fn fits(&self, bytes: usize, limit_bytes: usize) -> bool {
        let limit_bytes = match is_small(bytes) {
            true => limit_bytes,
            false => limit_bytes / 4 * 3,
        };
        self.used_bytes == 0 || self.used_bytes.saturating_add(bytes) <= limit_bytes
    }

    fn line(&mut self, bytes: usize) -> &mut VecDeque<Waiter> {
        match is_small(bytes) {
            true => &mut self.small,
            false => &mut self.large,
        }
    }

    /// Gives what is free to those that wait.
    fn grant(&mut self, limit_bytes: usize) {
        for small in [true, false] {
            let mut at = 0;
            loop {
                let line = if small { &self.small } else { &self.large };
                let Some(waiter) = line.get(at) else { break };
                if !waiter.granted {
                    if !self.fits(waiter.bytes, limit_bytes) {
                        break;
                    }
                    self.used_bytes += waiter.bytes;
                    let line = if small {
                        &mut self.small
                    } else {
                        &mut self.large
                    };
                    line[at].granted = true;
                    line[at].waker.wake_by_ref();
                }
                at += 1;
            }
        }
    }
}

fn is_small(bytes: usize) -> bool {
    bytes <= SMALL_BYTES
}

/// Bytes of a share; dropped they are free again.
pub struct Held {
    share: Arc<Share>,
    bytes: usize,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds to what is held, where that is free and nobody waits for it.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let Some(mut more) = self.share.try_take(bytes) else {
            return false;
        };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }

    /// The same bytes; they are held until the last of those that share them is dropped.
    pub fn over(self, bytes: Bytes) -> Bytes {
        struct Counted {
            bytes: Bytes,
            _held: Held,
        }
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Counted { bytes, _held: self })
    }

    /// Gives a part back.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.share.give_back(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.share.give_back(self.bytes);
        }
    }
}

/// A place in the line of a share.
#[must_use = "a place is taken when it is first polled"]
pub struct Waiting {
    share: Arc<Share>,
    bytes: usize,
    /// None before the first poll and after the last.
    number: Option<u64>,
}

impl Future for Waiting {
    type Output = Result<Held, Exhausted>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(number) = this.number else {
            if let Some(held) = this.share.try_take(this.bytes) {
                return Poll::Ready(Ok(held));
            }
            let mut state = this.share.state.lock();
            if state.line(this.bytes).len() >= MAX_WAITING {
                return Poll::Ready(Err(Exhausted));
            }
            let number = state.next_number;
            state.next_number += 1;
            state.line(this.bytes).push_back(Waiter {
                number,
                bytes: this.bytes,
                waker: context.waker().clone(),
                granted: false,
            });
            // What became free since the try would else wait for the next to give back.
            state.grant(this.share.limit_bytes);
            this.number = Some(number);
            return Poll::Pending;
        };
        let mut state = this.share.state.lock();
        let line = state.line(this.bytes);
        let Ok(at) = line.binary_search_by_key(&number, |waiter| waiter.number) else {
            return Poll::Ready(Err(Exhausted));
        };
        if !line[at].granted {
            line[at].waker.clone_from(context.waker());
            return Poll::Pending;
        }
        line.remove(at);
        drop(state);
        this.number = None;
        Poll::Ready(Ok(this.share.held(this.bytes)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(number) = self.number else {
            return;
        };
        let mut state = self.share.state.lock();
        let line = state.line(self.bytes);
        let at = line.binary_search_by_key(&number, |waiter| waiter.number);
        let granted = at
            .ok()
            .and_then(|at| line.remove(at))
            .is_some_and(|waiter| waiter.granted);
        if granted {
            state.used_bytes -= self.bytes;
        }
        // It may have stood before others that fit.
        state.grant(self.share.limit_bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    const LARGE: usize = 100 << 10;
    const SMALL: usize = 10 << 10;
    const LIMIT: usize = 400 << 10;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn poll(waiting: &mut Waiting) -> Option<Result<Held, Exhausted>> {
        let waker = Waker::from(Arc::new(Nobody));
        match Pin::new(waiting).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_held_ends_at_the_limit_and_comes_back() {
        let share = Share::new(LIMIT);
        let mut held: Vec<Held> = std::iter::from_fn(|| share.try_take(LARGE)).collect();
        assert_eq!((held.len(), share.used_bytes()), (3, 3 * LARGE));
        // The last quarter is for small ones.
        let small: Vec<Held> = std::iter::from_fn(|| share.try_take(SMALL)).collect();
        assert_eq!((small.len(), share.used_bytes()), (10, LIMIT));
        assert!(!held[0].try_grow(1));
        drop(small);
        assert!(held[0].try_grow(SMALL));
        held[0].shrink(LARGE);
        assert_eq!(
            (held[0].bytes(), share.used_bytes()),
            (SMALL, 2 * LARGE + SMALL)
        );
        drop(held);
        assert_eq!(share.used_bytes(), 0);
    }

    #[test]
    fn bytes_are_held_until_nobody_shares_them() {
        let share = Share::new(LIMIT);
        let held = share.try_take(SMALL).expect("room");
        let bytes = held.over(vec![7; SMALL].into());
        let part = bytes.slice(1..2);
        drop(bytes);
        assert_eq!((part[0], share.used_bytes()), (7, SMALL));
        drop(part);
        assert_eq!(share.used_bytes(), 0);
    }

    #[test]
    fn one_alone_may_be_of_any_size() {
        let share = Share::new(LIMIT);
        let all = share.try_take(10 * LIMIT).expect("nobody else is there");
        assert!(share.try_take(1).is_none());
        let more = share.take_anyway(LARGE);
        assert_eq!(share.used_bytes(), 10 * LIMIT + LARGE);
        drop((all, more));
        assert!(share.try_take(1).is_some());
    }

    #[test]
    fn who_waits_is_served_in_order_and_small_ones_pass() {
        let share = Share::new(LIMIT);
        let held = share.try_take(3 * LARGE).expect("room");
        let mut waiting = [share.take(2 * LARGE), share.take(LARGE), share.take(SMALL)];
        let [first, second, small] = &mut waiting;
        assert!(poll(first).is_none() && poll(second).is_none());
        let small = poll(small).expect("served").expect("room");
        // A later one does not pass, though it would fit.
        assert!(share.try_take(LARGE).is_none());
        drop((held, small));
        let first = poll(first).expect("served").expect("room");
        let second = poll(second).expect("served").expect("room");
        assert_eq!((first.bytes(), second.bytes()), (2 * LARGE, LARGE));
    }

    #[test]
    fn who_gives_up_its_place_holds_up_nobody() {
        let share = Share::new(LIMIT);
        let mut held = share.try_take(3 * LARGE).expect("room");
        let mut first = share.take(3 * LARGE);
        let mut second = share.take(LARGE);
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none());
        held.shrink(LARGE);
        assert!(poll(&mut second).is_none());
        drop(first);
        let second = poll(&mut second).expect("served").expect("room");
        // One whose turn has come gives it back as well.
        let mut third = share.take(LARGE);
        assert!(poll(&mut third).is_none());
        drop(second);
        assert_eq!(share.used_bytes(), 3 * LARGE);
        drop(third);
        assert_eq!(share.used_bytes(), 2 * LARGE);
    }

    #[test]
    fn a_line_is_bounded() {
        let share = Share::new(LIMIT);
        let _all = share.try_take(LIMIT).expect("room");
        let mut waiting: Vec<Waiting> = (0..MAX_WAITING).map(|_| share.take(1)).collect();
        assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_none()));
        let refused = poll(&mut share.take(1)).expect("an answer");
        assert_eq!(refused.err(), Some(Exhausted));
        waiting.pop();
        assert!(poll(&mut share.take(1)).is_none());
    }
}
