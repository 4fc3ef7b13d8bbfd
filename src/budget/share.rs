//! Bytes that many hold together, up to a limit.
//!
//! - What is held never exceeds the limit, but for what cannot be refused (`take_anyway`) and for
//!   a single holder: alone it may take any size, so that nothing waits for ever.
//! - Those that wait are served in their order. Small ones have a line of their own and the last
//!   quarter of the limit to themselves, so that they pass large ones that wait.
//! - Of what large ones may have, one that is named (`Holder`) holds half at most, unless it begins
//!   with more, and of those that wait the one that holds least is served first. Of all there is
//!   its small ones may take half as well, and they pass those of one that has so much.
//! - The lines are bounded, and a named one has half of each; who finds no place is refused at once.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    state: Mutex<ShareState>,
}

#[derive(Default)]
struct ShareState {
    used_bytes: usize,
    small: VecDeque<Waiter>,
    large: VecDeque<Waiter>,
    next_number: u64,
}

struct Waiter {
    number: u64,
    wish: Wish,
    waker: Waker,
    /// The bytes are taken; who waits finds that out when it is polled.
    granted: bool,
}

/// One of those who share; what it holds changes under the share's lock alone.
#[derive(Default)]
pub struct Holder {
    bytes: AtomicUsize,
    /// Of it, small and large.
    waiting: [AtomicUsize; 2],
}

impl Holder {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What is to be taken, and by whom.
#[derive(Clone)]
struct Wish {
    bytes: usize,
    holder: Option<Arc<Holder>>,
    is_small: bool,
}

impl Wish {
    fn of_nobody(bytes: usize) -> Self {
        Self {
            bytes,
            holder: None,
            is_small: bytes <= SMALL_BYTES,
        }
    }

    /// A part of a large one is no small one.
    fn of(holder: &Arc<Holder>, bytes: usize, is_small: bool) -> Self {
        Self {
            bytes,
            holder: Some(holder.clone()),
            is_small,
        }
    }

    /// The same for another number of bytes.
    fn with(&self, bytes: usize) -> Self {
        match &self.holder {
            Some(holder) => Self::of(holder, bytes, self.is_small),
            None => Self::of_nobody(bytes),
        }
    }

    fn waiting(&self) -> Option<&AtomicUsize> {
        let holder = self.holder.as_ref()?;
        Some(&holder.waiting[usize::from(self.is_small)])
    }

    fn held_bytes(&self) -> usize {
        self.holder.as_ref().map_or(0, |holder| holder.bytes())
    }
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

    /// Whether somebody waits.
    pub fn is_awaited(&self) -> bool {
        let state = self.state.lock();
        !state.small.is_empty() || !state.large.is_empty()
    }

    /// Takes bytes where they are free and nobody waits for them.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.try_take_wish(&Wish::of_nobody(bytes))
    }

    /// The same for a large one in the name of a holder, whatever this part of it has.
    pub fn try_take_as(self: &Arc<Self>, holder: &Arc<Holder>, bytes: usize) -> Option<Held> {
        self.try_take_wish(&Wish::of(holder, bytes, false))
    }

    /// The same for small ones.
    pub fn try_take_small_as(self: &Arc<Self>, holder: &Arc<Holder>, bytes: usize) -> Option<Held> {
        self.try_take_wish(&Wish::of(holder, bytes, true))
    }

    fn try_take_wish(self: &Arc<Self>, wish: &Wish) -> Option<Held> {
        let mut state = self.state.lock();
        let free = state.line(wish).is_empty()
            && state.fits(wish, self.limit_bytes)
            && state.may(wish, self.limit_bytes);
        free.then(|| {
            state.take(wish);
            self.held(wish.clone())
        })
    }

    /// Counts bytes that are there already, beyond the limit where need be.
    pub fn take_anyway(self: &Arc<Self>, bytes: usize) -> Held {
        let wish = Wish::of_nobody(bytes);
        self.state.lock().take(&wish);
        self.held(wish)
    }

    /// Takes bytes as soon as they are free.
    pub fn take(self: &Arc<Self>, bytes: usize) -> TakeBytes {
        self.waiting(Wish::of_nobody(bytes))
    }

    /// The same for a large one in the name of a holder.
    pub fn take_as(self: &Arc<Self>, holder: &Arc<Holder>, bytes: usize) -> TakeBytes {
        self.waiting(Wish::of(holder, bytes, false))
    }

    /// The same for small ones.
    pub fn take_small_as(self: &Arc<Self>, holder: &Arc<Holder>, bytes: usize) -> TakeBytes {
        self.waiting(Wish::of(holder, bytes, true))
    }

    fn waiting(self: &Arc<Self>, wish: Wish) -> TakeBytes {
        TakeBytes {
            share: self.clone(),
            wish,
            number: None,
        }
    }

    fn held(self: &Arc<Self>, wish: Wish) -> Held {
        Held {
            share: self.clone(),
            wish,
        }
    }

    fn give_back(&self, wish: &Wish) {
        let mut state = self.state.lock();
        state.give_back(wish);
        state.grant(self.limit_bytes);
    }
}

/// What small or large ones may have together.
fn all_bytes(wish: &Wish, limit_bytes: usize) -> usize {
    match wish.is_small {
        true => limit_bytes,
        false => limit_bytes / 4 * 3,
    }
}

impl ShareState {
    fn fits(&self, wish: &Wish, limit_bytes: usize) -> bool {
        let limit_bytes = all_bytes(wish, limit_bytes);
        self.used_bytes == 0 || self.used_bytes.saturating_add(wish.bytes) <= limit_bytes
    }

    /// Whether its holder may have more.
    fn may(&self, wish: &Wish, limit_bytes: usize) -> bool {
        let held = wish.held_bytes();
        held == 0 || held.saturating_add(wish.bytes) <= all_bytes(wish, limit_bytes) / 2
    }

    fn take(&mut self, wish: &Wish) {
        self.used_bytes += wish.bytes;
        if let Some(holder) = &wish.holder {
            holder.bytes.fetch_add(wish.bytes, Ordering::Relaxed);
        }
    }

    fn give_back(&mut self, wish: &Wish) {
        self.used_bytes -= wish.bytes;
        if let Some(holder) = &wish.holder {
            holder.bytes.fetch_sub(wish.bytes, Ordering::Relaxed);
        }
    }

    fn line(&mut self, wish: &Wish) -> &mut VecDeque<Waiter> {
        match wish.is_small {
            true => &mut self.small,
            false => &mut self.large,
        }
    }

    /// Gives what is free to those that wait.
    fn grant(&mut self, limit_bytes: usize) {
        for small in [true, false] {
            while let Some(at) = self.next(small, limit_bytes) {
                let line = if small { &self.small } else { &self.large };
                let wish = line[at].wish.clone();
                if !self.fits(&wish, limit_bytes) {
                    break;
                }
                self.take(&wish);
                let line = self.line(&wish);
                line[at].granted = true;
                line[at].waker.wake_by_ref();
            }
        }
    }

    /// Whose turn it is in a line.
    fn next(&self, small: bool, limit_bytes: usize) -> Option<usize> {
        let line = if small { &self.small } else { &self.large };
        let waiting = line.iter().enumerate();
        let waiting =
            waiting.filter(|(_, waiter)| !waiter.granted && self.may(&waiter.wish, limit_bytes));
        let mut waiting = waiting.map(|(at, waiter)| (waiter.wish.held_bytes(), at));
        let turn = if small { waiting.next() } else { waiting.min() };
        turn.map(|(_, at)| at)
    }
}

/// Bytes of a share; dropped they are free again.
pub struct Held {
    share: Arc<Share>,
    wish: Wish,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.wish.bytes
    }

    /// Adds to what is held, where that is free and nobody waits for it.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let more = self.share.try_take_wish(&self.wish.with(bytes));
        match more {
            Some(more) => {
                self.join(more);
                true
            }
            None => false,
        }
    }

    /// Adds what the same holder, or nobody, took of the same share.
    pub fn join(&mut self, mut more: Held) {
        self.wish.bytes += std::mem::take(&mut more.wish.bytes);
    }

    /// Makes a part of it one of its own; none where nothing is held any more.
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        let bytes = bytes.min(self.wish.bytes);
        self.wish.bytes -= bytes;
        (bytes > 0).then(|| self.share.held(self.wish.with(bytes)))
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
        let bytes = bytes.min(self.wish.bytes);
        self.wish.bytes -= bytes;
        self.share.give_back(&self.wish.with(bytes));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.wish.bytes > 0 {
            self.share.give_back(&self.wish);
        }
    }
}

/// A place in the line of a share.
#[must_use = "a place is taken when it is first polled"]
pub struct TakeBytes {
    share: Arc<Share>,
    wish: Wish,
    /// None before the first poll and after the last.
    number: Option<u64>,
}

impl Future for TakeBytes {
    type Output = Result<Held, Exhausted>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(number) = this.number else {
            if let Some(held) = this.share.try_take_wish(&this.wish) {
                return Poll::Ready(Ok(held));
            }
            let mut state = this.share.state.lock();
            let places = this.wish.waiting();
            let is_full = state.line(&this.wish).len() >= MAX_WAITING
                || places.is_some_and(|of| of.load(Ordering::Relaxed) >= MAX_WAITING / 2);
            if is_full {
                return Poll::Ready(Err(Exhausted));
            }
            if let Some(places) = places {
                places.fetch_add(1, Ordering::Relaxed);
            }
            let number = state.next_number;
            state.next_number += 1;
            state.line(&this.wish).push_back(Waiter {
                number,
                wish: this.wish.clone(),
                waker: context.waker().clone(),
                granted: false,
            });
            // What became free since the try would else wait for the next to give back.
            state.grant(this.share.limit_bytes);
            this.number = Some(number);
            return Poll::Pending;
        };
        let mut state = this.share.state.lock();
        let line = state.line(&this.wish);
        let Ok(at) = line.binary_search_by_key(&number, |waiter| waiter.number) else {
            return Poll::Ready(Err(Exhausted));
        };
        if !line[at].granted {
            line[at].waker.clone_from(context.waker());
            return Poll::Pending;
        }
        line.remove(at);
        drop(state);
        this.left_line();
        this.number = None;
        Poll::Ready(Ok(this.share.held(this.wish.clone())))
    }
}

impl TakeBytes {
    fn left_line(&self) {
        if let Some(places) = self.wish.waiting() {
            places.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for TakeBytes {
    fn drop(&mut self) {
        let Some(number) = self.number else {
            return;
        };
        self.left_line();
        let mut state = self.share.state.lock();
        let line = state.line(&self.wish);
        let at = line.binary_search_by_key(&number, |waiter| waiter.number);
        let granted = at
            .ok()
            .and_then(|at| line.remove(at))
            .is_some_and(|waiter| waiter.granted);
        if granted {
            state.give_back(&self.wish);
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

    fn poll(waiting: &mut TakeBytes) -> Option<Result<Held, Exhausted>> {
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
        let part = held[0].split(SMALL / 2).map(|part| part.bytes());
        assert_eq!((part, held[0].bytes()), (Some(SMALL / 2), SMALL / 2));
        assert_eq!(share.used_bytes(), 2 * LARGE + SMALL / 2);
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
    fn one_holder_has_half_and_who_holds_least_comes_first() {
        let share = Share::new(LIMIT);
        let [one, other, third] = [(); 3].map(|()| Arc::new(Holder::default()));
        let mut held: Vec<Held> =
            std::iter::from_fn(|| share.try_take_as(&one, LARGE / 2)).collect();
        assert_eq!((held.len(), one.bytes()), (3, LARGE / 2 * 3));
        // Nor does a named one take what is kept for small ones.
        held.extend(share.try_take_as(&other, SMALL));
        held.extend(share.try_take_as(&third, 14 * SMALL));
        assert_eq!(share.used_bytes(), 3 * LARGE);
        assert!(share.try_take_as(&third, SMALL).is_none());
        let mut first = share.take_as(&one, LARGE);
        let mut second = share.take_as(&other, LARGE);
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none());
        assert!(share.is_awaited());
        // There is room for the first, which holds more than the second as long as it waits.
        held.drain(..2);
        assert!(poll(&mut first).is_none());
        let second = poll(&mut second).expect("served").expect("room");
        drop((held, second));
        let first = poll(&mut first).expect("served").expect("room");
        assert_eq!((one.bytes(), other.bytes(), third.bytes()), (LARGE, 0, 0));
        drop(first);
        // Alone it may take any size.
        assert!(share.try_take_as(&one, 10 * LIMIT).is_some());
        assert_eq!((one.bytes(), share.is_awaited()), (0, false));
    }

    #[test]
    fn small_ones_of_one_holder_leave_half_and_others_pass_them() {
        let share = Share::new(LIMIT);
        let [one, other] = [(); 2].map(|()| Arc::new(Holder::default()));
        let held: Vec<Held> = std::iter::from_fn(|| share.try_take_small_as(&one, SMALL)).collect();
        assert_eq!((held.len(), one.bytes()), (20, LIMIT / 2));
        let mut waiting = share.take_small_as(&one, SMALL);
        assert!(poll(&mut waiting).is_none());
        let mut passing = share.take_small_as(&other, SMALL);
        let _ = poll(&mut passing);
        let passed = poll(&mut passing).expect("served").expect("room");
        assert_eq!((other.bytes(), poll(&mut waiting).is_none()), (SMALL, true));
        drop((held, passed));
        assert!(poll(&mut waiting).expect("served").is_ok());
        // Nor does it take all places of the line.
        let _all = share.try_take_small_as(&one, LIMIT).expect("room");
        let mut line: Vec<TakeBytes> = (0..MAX_WAITING / 2)
            .map(|_| share.take_small_as(&one, SMALL))
            .collect();
        assert!(line.iter_mut().all(|waiting| poll(waiting).is_none()));
        let refused = poll(&mut share.take_small_as(&one, SMALL)).expect("an answer");
        assert_eq!(refused.err(), Some(Exhausted));
        assert!(poll(&mut share.take_small_as(&other, SMALL)).is_none());
        line.pop();
        assert!(poll(&mut share.take_small_as(&one, SMALL)).is_none());
    }

    #[test]
    fn a_line_is_bounded() {
        let share = Share::new(LIMIT);
        let _all = share.try_take(LIMIT).expect("room");
        let mut waiting: Vec<TakeBytes> = (0..MAX_WAITING).map(|_| share.take(1)).collect();
        assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_none()));
        let refused = poll(&mut share.take(1)).expect("an answer");
        assert_eq!(refused.err(), Some(Exhausted));
        waiting.pop();
        assert!(poll(&mut share.take(1)).is_none());
    }
}
