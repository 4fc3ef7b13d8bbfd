//! The world's time, and the members' clocks derived from it.
//!
//! Time stands still while code runs and is advanced by the scheduler only. Each process of a
//! member has a clock that runs slightly fast or slow, as quartz does, and a wall clock that can
//! jump at any moment. Waits follow the member's own clock.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::{Boxed, Clock};

/// What a member's monotonic clock shows when it is made: nothing may rely on it being 0.
const FIRST_NOW_NS: u64 = 1_000_000_000_000;
/// What a wall clock shows when the world begins: 2026-01-01T00:00:00Z.
const FIRST_WALL_NS: i128 = 1_767_225_600_000_000_000;
/// A drift this large would stop the clock.
const MILLION: i128 = 1_000_000;
/// The largest drift of a member's clock.
pub const MAX_DRIFT_PPM: i64 = 10_000;

/// The time of the world, and its timers.
#[derive(Default)]
pub struct Time {
    state: Mutex<Timers>,
}

#[derive(Default)]
struct Timers {
    now_ns: u64,
    next_timer: u64,
    /// By deadline, then in the order in which they were set.
    timers: BTreeMap<(u64, u64), Waker>,
}

impl Time {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Nanoseconds since the world began.
    pub fn now_ns(&self) -> u64 {
        self.state.lock().now_ns
    }

    /// Advances the time and fires the timers that are due. Time never goes back.
    pub fn advance_to(&self, ns: u64) {
        let due = {
            let mut state = self.state.lock();
            state.now_ns = state.now_ns.max(ns);
            let first_later = (state.now_ns.saturating_add(1), 0);
            let later = state.timers.split_off(&first_later);
            std::mem::replace(&mut state.timers, later)
        };
        for waker in due.into_values() {
            waker.wake();
        }
    }

    /// When the next timer fires.
    pub fn next_timer(&self) -> Option<u64> {
        let state = self.state.lock();
        state.timers.first_key_value().map(|(key, _)| key.0)
    }

    /// How many timers are pending.
    #[cfg(test)]
    pub fn timers(&self) -> usize {
        self.state.lock().timers.len()
    }
}

/// The clocks of one process of a member, or of a client.
pub struct MemberClock {
    time: Arc<Time>,
    start_ns: u64,
    /// Nanoseconds gained in a million.
    drift_ppm: i64,
    wall_offset_ns: Arc<AtomicI64>,
}

impl MemberClock {
    /// A drift lies between plus and minus [`MAX_DRIFT_PPM`]. The offset of the wall clock may be
    /// changed at any time.
    pub fn new(time: Arc<Time>, drift_ppm: i64, wall_offset_ns: Arc<AtomicI64>) -> Self {
        Self {
            start_ns: time.now_ns(),
            time,
            drift_ppm: drift_ppm.clamp(-MAX_DRIFT_PPM, MAX_DRIFT_PPM),
            wall_offset_ns,
        }
    }

    /// The world's time at which the clock shows the given value.
    pub fn world_at(&self, now: Duration) -> u64 {
        let shown = now.saturating_sub(Duration::from_nanos(FIRST_NOW_NS));
        self.world_ns(shown.as_nanos() as u64)
    }

    fn rate(&self) -> i128 {
        MILLION + i128::from(self.drift_ppm)
    }

    /// What this clock has measured since it was made, at a time of the world.
    fn shown_ns(&self, world_ns: u64) -> u64 {
        let passed = i128::from(world_ns.saturating_sub(self.start_ns));
        clamp_ns(passed * self.rate() / MILLION)
    }

    /// The first time of the world at which this clock has measured the given duration.
    fn world_ns(&self, shown_ns: u64) -> u64 {
        let passed = (i128::from(shown_ns) * MILLION + self.rate() - 1) / self.rate();
        clamp_ns(passed + i128::from(self.start_ns))
    }
}

/// A time that is never reached.
const NEVER_NS: u64 = u64::MAX;

fn clamp_ns(ns: i128) -> u64 {
    ns.clamp(0, i128::from(NEVER_NS)) as u64
}

impl Clock for MemberClock {
    fn now(&self) -> Duration {
        let shown = self.shown_ns(self.time.now_ns());
        Duration::from_nanos(shown) + Duration::from_nanos(FIRST_NOW_NS)
    }

    fn wall(&self) -> Duration {
        let now = self.time.now_ns();
        let gained = i128::from(self.shown_ns(now)) - i128::from(now - self.start_ns);
        let offset = i128::from(self.wall_offset_ns.load(Ordering::SeqCst));
        let wall = FIRST_WALL_NS + i128::from(now) + gained + offset;
        Duration::from_nanos(clamp_ns(wall))
    }

    fn sleep(&self, duration: Duration) -> Boxed<()> {
        let shown = i128::from(self.shown_ns(self.time.now_ns()));
        let wait = i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 2);
        Box::pin(Sleep {
            time: self.time.clone(),
            deadline_ns: self.world_ns(clamp_ns(shown + wait)),
            timer: None,
        })
    }
}

/// A wait; dropping it cancels its timer.
struct Sleep {
    time: Arc<Time>,
    deadline_ns: u64,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut state = time.state.lock();
        if state.now_ns >= self.deadline_ns {
            return Poll::Ready(());
        }
        if self.deadline_ns == NEVER_NS {
            return Poll::Pending;
        }
        let number = *self.timer.get_or_insert_with(|| {
            state.next_timer += 1;
            state.next_timer
        });
        let key = (self.deadline_ns, number);
        let before = match state.timers.get_mut(&key) {
            Some(waker) if waker.will_wake(context.waker()) => None,
            _ => state.timers.insert(key, context.waker().clone()),
        };
        drop(state);
        // The waker may hold the last reference to a task.
        drop(before);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            let key = (self.deadline_ns, number);
            let waker = self.time.state.lock().timers.remove(&key);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::task::Wake;

    use super::*;
    use crate::env::{Interval, timeout};

    const SECOND: u64 = 1_000_000_000;

    fn clock(time: &Arc<Time>, drift_ppm: i64) -> MemberClock {
        MemberClock::new(time.clone(), drift_ppm, Arc::default())
    }

    /// Notes in which order its kind was woken.
    struct Noted {
        counter: Arc<AtomicU64>,
        woken: AtomicU64,
    }

    impl Wake for Noted {
        fn wake(self: Arc<Self>) {
            let at = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
            self.woken.store(at, Ordering::SeqCst);
        }
    }

    fn poll(future: &mut Boxed<()>, waker: &Waker) -> bool {
        future
            .as_mut()
            .poll(&mut Context::from_waker(waker))
            .is_ready()
    }

    #[test]
    fn waits_end_in_order_of_their_deadlines_and_not_before() {
        let time = Time::new();
        let clock = clock(&time, 0);
        let counter = Arc::new(AtomicU64::new(0));
        let mut waits = Vec::new();
        for wait_ns in [30, 10, 20, 10] {
            let noted = Arc::new(Noted {
                counter: counter.clone(),
                woken: AtomicU64::new(0),
            });
            let mut sleep = clock.sleep(Duration::from_nanos(wait_ns));
            assert!(!poll(&mut sleep, &Waker::from(noted.clone())));
            waits.push((sleep, noted));
        }
        assert_eq!(time.next_timer(), Some(10));
        time.advance_to(9);
        assert_eq!(counter.load(Ordering::SeqCst), 0);
        time.advance_to(25);
        let woken = |at: usize| waits[at].1.woken.load(Ordering::SeqCst);
        assert_eq!([woken(0), woken(1), woken(2), woken(3)], [0, 1, 3, 2]);
        assert_eq!((time.next_timer(), time.timers()), (Some(30), 1));
        time.advance_to(3);
        assert_eq!(time.now_ns(), 25, "time never goes back");
        assert!(poll(&mut waits[1].0, Waker::noop()));
        assert!(!poll(&mut waits[0].0, Waker::noop()));
    }

    #[test]
    fn a_wait_that_is_dropped_leaves_nothing() {
        let time = Time::new();
        let clock = clock(&time, 0);
        let mut sleep = clock.sleep(Duration::from_secs(1));
        assert_eq!(time.timers(), 0, "nobody waits yet");
        for _ in 0..3 {
            assert!(!poll(&mut sleep, Waker::noop()));
            assert_eq!(time.timers(), 1);
        }
        drop(sleep);
        assert_eq!((time.timers(), time.next_timer()), (0, None));
        let mut never = clock.sleep(Duration::MAX);
        assert!(!poll(&mut never, Waker::noop()));
        assert_eq!(time.next_timer(), None, "nobody has to wake it");
    }

    #[test]
    fn clocks_drift_and_waits_with_them() {
        for drift_ppm in [-10_000, -333, 0, 1, 7, 10_000] {
            let time = Time::new();
            time.advance_to(5 * SECOND + 1);
            let clock = clock(&time, drift_ppm);
            let begun = clock.now();
            assert!(begun > Duration::ZERO);
            for wait_ns in [1, 3, 999_983, 17 * SECOND + 1] {
                let wait = Duration::from_nanos(wait_ns);
                let before = clock.now();
                let mut sleep = clock.sleep(wait);
                assert!(!poll(&mut sleep, Waker::noop()));
                let deadline = time.next_timer().expect("a timer");
                time.advance_to(deadline - 1);
                assert!(!poll(&mut sleep, Waker::noop()));
                assert!(clock.now() - before < wait, "{drift_ppm} {wait_ns}");
                time.advance_to(deadline);
                assert!(poll(&mut sleep, Waker::noop()));
                assert!(clock.now() - before >= wait, "{drift_ppm} {wait_ns}");
            }
            let world = i128::from(time.now_ns() - 5 * SECOND - 1);
            let shown = (clock.now() - begun).as_nanos() as i128;
            let gained = (shown - world) * 1_000_000 / world;
            assert!((gained - i128::from(drift_ppm)).abs() <= 1, "{gained}");
        }
    }

    #[test]
    fn a_wall_clock_continues_over_lives_and_may_jump() {
        let time = Time::new();
        let offset = Arc::new(AtomicI64::new(0));
        let first = MemberClock::new(time.clone(), 0, offset.clone());
        let begun = first.wall();
        assert_eq!(begun.as_secs(), 1_767_225_600);
        time.advance_to(100 * SECOND);
        let second = MemberClock::new(time.clone(), 10_000, offset.clone());
        assert_eq!(first.wall(), second.wall());
        time.advance_to(200 * SECOND);
        assert_eq!(first.wall() - begun, Duration::from_secs(200));
        assert_eq!(second.wall() - begun, Duration::from_secs(201));
        let now = second.now();
        offset.store(-(3_600 * SECOND as i64), Ordering::SeqCst);
        assert!(second.wall() < begun);
        assert_eq!(second.now(), now, "the monotonic clock does not jump");
        offset.store(i64::MIN, Ordering::SeqCst);
        assert_eq!(second.wall(), Duration::ZERO);
    }

    #[test]
    fn what_is_built_on_waits_works() {
        let time = Time::new();
        let clock: Arc<dyn Clock> = Arc::new(clock(&time, 0));
        let mut late: Boxed<()> = Box::pin(async move {
            let never = std::future::pending::<()>();
            let limit = Duration::from_secs(1);
            assert_eq!(timeout(clock.as_ref(), limit, never).await, None);
            let mut ticks = Interval::new(&clock, limit);
            ticks.tick().await;
            ticks.tick().await;
        });
        let mut fired = Vec::new();
        while !poll(&mut late, Waker::noop()) {
            let next = time.next_timer().expect("it waits for something");
            fired.push(next / SECOND);
            time.advance_to(next);
        }
        assert_eq!(fired, [1, 2, 3]);
        assert_eq!(time.timers(), 0);
    }
}
