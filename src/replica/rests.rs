//! When a thread that has nothing to do gives back to the system what it has freed: an allocator keeps
//! for each thread the memory that was its own, and looks what of it is free when the thread asks
//! for more.
//!
//! A thread that has worked rests a second later, and once more after ten, because others free what it
//! allocated. Then it needs no rest before it works again: one that is idle is not woken.

use std::time::Duration;

const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// See the module.
pub struct Rests {
    rest: fn(),
    /// How many there were since it worked.
    done: usize,
    due: Option<Duration>,
}

impl Rests {
    /// Of a thread that has not worked yet; `rest` is what it does.
    pub fn new(rest: fn()) -> Self {
        Self {
            rest,
            done: 0,
            due: None,
        }
    }

    /// It has worked. A rest that is due soon stays so, however much it works.
    pub fn worked(&mut self, now: Duration) {
        self.done = 0;
        let next = now + PAUSES[0];
        self.due = Some(self.due.map_or(next, |due| due.min(next)));
    }

    /// When it rests next, if it has nothing to do then.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// It has nothing to do: it rests where that is due.
    pub fn rest(&mut self, now: Duration) {
        if self.due.is_some_and(|due| due <= now) {
            (self.rest)();
            self.done += 1;
            self.due = PAUSES.get(self.done).map(|pause| now + *pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static RESTS: Cell<usize> = const { Cell::new(0) };
    }

    fn note() {
        RESTS.set(RESTS.get() + 1);
    }

    #[test]
    fn a_thread_rests_twice_after_its_work_and_is_then_left_alone() {
        let at = Duration::from_millis;
        let mut rests = Rests::new(note);
        assert_eq!(rests.due(), None);
        rests.worked(at(100));
        rests.worked(at(900));
        // When it has nothing to do, how often it has rested then, and when it is to be woken.
        for (now, rested, due) in [
            (1_099, 0, Some(1_100)),
            (1_100, 1, Some(11_100)),
            (2_000, 1, Some(11_100)),
            (11_200, 2, None),
            (90_000, 2, None),
        ] {
            rests.rest(at(now));
            assert_eq!((RESTS.get(), rests.due()), (rested, due.map(at)), "{now}");
        }
        // One that works all the time rests every second, in between.
        rests.worked(at(100_000));
        for now in (100_000..103_500).step_by(100) {
            rests.rest(at(now));
            rests.worked(at(now));
        }
        assert_eq!(RESTS.get(), 5);
    }
}
