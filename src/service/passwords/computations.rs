//! Computations that wait for a thread, and who does them.
//!
//! They are done by threads that take what nobody else wants of the processors, so that nobody else
//! waits for them. Beside others that never rest those threads stand still, maybe in the middle of
//! one. So a caller who has waited for a while looks whether they do; if so, a thread that gets a
//! small part in any case does what they should do, from the beginning, and first what they have
//! begun: the one that ends first answers. It does so one by one until they move again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::lines::{Requester, Room};
use crate::env::{self, Clock, Executor};
use crate::error::Error;
use crate::service::rpcs::MAX_PASSWORDS;

/// How long one waits in any case.
const WAIT_LIMIT: Duration = Duration::from_secs(120);
/// How long nothing may begin or end before that is a standstill: some times what one takes.
pub const STANDSTILL: Duration = Duration::from_millis(300);

/// A computation and its caller.
trait Job: Send + Sync {
    fn is_awaited(&self) -> bool;
    /// Does it, maybe beside another thread that does the same.
    fn compute(&self);
    fn refuse(&self);
}

struct Computation<W, T> {
    work: W,
    /// None once it is answered.
    reply: Mutex<Option<oneshot::Sender<Result<T, Error>>>>,
}

impl<W, T> Computation<W, T> {
    fn answer(&self, answer: Result<T, Error>) {
        if let Some(reply) = self.reply.lock().take() {
            // The caller may leave meanwhile.
            let _ = reply.send(answer);
        }
    }
}

impl<T: Send, W: Fn() -> T + Send + Sync> Job for Computation<W, T> {
    fn is_awaited(&self) -> bool {
        let reply = self.reply.lock();
        reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    fn compute(&self) {
        self.answer(Ok((self.work)()));
    }

    fn refuse(&self) {
        self.answer(Err(Error::TooManyRequests));
    }
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Computations {
    clock: Arc<dyn Clock>,
    executor: Arc<dyn Executor>,
    state: Arc<Mutex<ComputationsState>>,
}

struct ComputationsState {
    waiting: Room<Arc<dyn Job>>,
    /// Turns that no thread has taken yet; each does what is next then.
    turns: usize,
    /// What those threads do that may stand still, the oldest first.
    begun: Vec<Arc<dyn Job>>,
    /// When one of them began or ended something last, or had something to begin.
    moved_at: Duration,
    /// Turns of threads that do not stand still.
    steady_turns: usize,
}

impl ComputationsState {
    /// The next whose caller still waits.
    fn next(&mut self) -> Option<Arc<dyn Job>> {
        std::iter::from_fn(|| self.waiting.next()).find(|job| job.is_awaited())
    }

    fn stands_still(&self, now: Duration) -> bool {
        let has_work = !self.begun.is_empty() || self.waiting.len() > 0;
        has_work && now.saturating_sub(self.moved_at) >= STANDSTILL
    }

    /// What a thread does that does not stand still.
    fn next_steady(&mut self, now: Duration) -> Option<Arc<dyn Job>> {
        while self.stands_still(now) && !self.begun.is_empty() {
            let oldest = self.begun.remove(0);
            if oldest.is_awaited() {
                return Some(oldest);
            }
        }
        match self.stands_still(now) {
            true => self.next(),
            false => None,
        }
    }
}

impl Computations {
    pub fn new(clock: Arc<dyn Clock>, executor: Arc<dyn Executor>) -> Self {
        let state = ComputationsState {
            waiting: Room::for_most(MAX_PASSWORDS),
            turns: 0,
            begun: Vec::new(),
            moved_at: Duration::ZERO,
            steady_turns: 0,
        };
        Self {
            clock,
            executor,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Runs a computation, at worst more than once. One that has no room is refused.
    pub async fn run<T: Send + 'static>(
        &self,
        requester: Requester,
        work: impl Fn() -> T + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let (reply, computed) = oneshot::channel();
        let reply = Mutex::new(Some(reply));
        self.enter(requester, Arc::new(Computation { work, reply }));
        let mut computed = std::pin::pin!(computed);
        let until = self.clock.now() + WAIT_LIMIT;
        loop {
            let wait = env::timeout(self.clock.as_ref(), STANDSTILL, computed.as_mut());
            match wait.await {
                Some(computed) => return computed.map_err(|_| Error::Stopped)?,
                None if self.clock.now() >= until => return Err(Error::Timeout),
                None => self.watch(),
            }
        }
    }

    fn enter(&self, requester: Requester, job: Arc<dyn Job>) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.waiting.len() >= MAX_PASSWORDS {
            state.waiting.keep(|job| job.is_awaited());
        }
        if state.begun.is_empty() && state.waiting.len() == 0 {
            state.moved_at = now;
        }
        let left = state.waiting.enter(requester, job);
        let takes_a_turn = state.turns < state.waiting.len();
        state.turns += usize::from(takes_a_turn);
        drop(state);
        if let Some(left) = left {
            left.refuse();
        }
        if takes_a_turn {
            let turn = Turn(Some(self.clone()));
            let work = Box::new(move || turn.take());
            self.executor.spawn_computing(work);
        }
    }

    /// Has a steady thread help where the others stand still, for two of them one.
    fn watch(&self) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let is_helped = state.steady_turns >= state.begun.len().div_ceil(2).max(1);
        if is_helped || !state.stands_still(now) {
            return;
        }
        state.steady_turns += 1;
        drop(state);
        let turn = SteadyTurn(self.clone());
        let work = Box::new(move || turn.take());
        self.executor.spawn_computing_steadily(work);
    }

    /// Whether nothing waits, is done, or has a turn.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let turns = state.turns + state.steady_turns;
        turns == 0 && state.waiting.len() == 0 && state.begun.is_empty()
    }
}

/// Where it is dropped without being taken, somebody's wait ends: the process is stopping.
struct Turn(Option<Computations>);

impl Turn {
    fn take(mut self) {
        let Some(all) = self.0.take() else {
            return;
        };
        let job = {
            let now = all.clock.now();
            let mut state = all.state.lock();
            state.turns -= 1;
            let job = state.next();
            state.moved_at = now;
            state.begun.extend(job.clone());
            job
        };
        if let Some(job) = job {
            let _begun = BegunJob { all, job: &job };
            job.compute();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(all) = self.0.take() {
            let mut state = all.state.lock();
            state.turns -= 1;
            let job = state.next();
            drop(state);
            drop(job);
        }
    }
}

/// Ends what a thread began that may stand still, also where it panics.
struct BegunJob<'a> {
    all: Computations,
    job: &'a Arc<dyn Job>,
}

impl Drop for BegunJob<'_> {
    fn drop(&mut self) {
        let now = self.all.clock.now();
        let mut state = self.all.state.lock();
        state.begun.retain(|job| !Arc::ptr_eq(job, self.job));
        state.moved_at = now;
    }
}

struct SteadyTurn(Computations);

impl SteadyTurn {
    fn take(self) {
        let Computations { clock, state, .. } = &self.0;
        let next = || state.lock().next_steady(clock.now());
        while let Some(job) = next() {
            job.compute();
        }
    }
}

impl Drop for SteadyTurn {
    fn drop(&mut self) {
        self.0.state.lock().steady_turns -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::env::{Boxed, ManualClock};
    use crate::service::passwords::lines::Source;

    type Work = Box<dyn FnOnce() + Send>;

    /// Keeps what it is to run, by the kind of its threads.
    #[derive(Default)]
    struct Threads {
        idle: Mutex<Vec<Work>>,
        steady: Mutex<Vec<Work>>,
    }

    impl Threads {
        /// Runs the next turn of a kind; false where none is wanted.
        fn run(of: &Mutex<Vec<Work>>) -> bool {
            let next = match &mut *of.lock() {
                turns if turns.is_empty() => return false,
                turns => turns.remove(0),
            };
            next();
            true
        }
    }

    impl Executor for Threads {
        fn spawn(&self, _: Boxed<()>) {}
        fn spawn_blocking(&self, _: Work) {}
        fn spawn_computing(&self, work: Work) {
            self.idle.lock().push(work);
        }
        fn spawn_computing_steadily(&self, work: Work) {
            self.steady.lock().push(work);
        }
        fn block_in_place(&self, work: &mut dyn FnMut()) {
            work();
        }
    }

    struct Fixture {
        clock: Arc<ManualClock>,
        threads: Arc<Threads>,
        computations: Computations,
        done: Arc<AtomicUsize>,
    }

    impl Fixture {
        fn new() -> Self {
            let (clock, threads) = (Arc::<ManualClock>::default(), Arc::<Threads>::default());
            Self {
                computations: Computations::new(clock.clone(), threads.clone()),
                clock,
                threads,
                done: Arc::default(),
            }
        }

        /// One that counts how often it is done.
        fn enter(&self) -> oneshot::Receiver<Result<usize, Error>> {
            let done = self.done.clone();
            let work = move || done.fetch_add(1, Ordering::SeqCst);
            self.enter_work(work)
        }

        fn enter_work(
            &self,
            work: impl Fn() -> usize + Send + Sync + 'static,
        ) -> oneshot::Receiver<Result<usize, Error>> {
            let (reply, computed) = oneshot::channel();
            let requester = Requester {
                source: Source::default(),
                name: "alice".to_owned(),
            };
            let reply = Mutex::new(Some(reply));
            let job = Arc::new(Computation { work, reply });
            self.computations.enter(requester, job);
            computed
        }

        /// After a time; whether a steady thread is wanted then.
        fn is_helped_after(&self, time: Duration) -> bool {
            self.clock.advance(time);
            self.computations.watch();
            !self.threads.steady.lock().is_empty()
        }
    }

    #[test]
    fn nobody_helps_threads_that_move() {
        let all = Fixture::new();
        let mut computed: Vec<_> = (0..4).map(|_| all.enter()).collect();
        for _ in 0..4 {
            assert!(!all.is_helped_after(STANDSTILL - Duration::from_millis(1)));
            assert!(Threads::run(&all.threads.idle));
        }
        assert!(
            computed
                .iter_mut()
                .all(|computed| computed.try_recv().is_ok())
        );
        assert!(all.computations.is_idle());
        // Nothing to do is no standstill.
        assert!(!all.is_helped_after(STANDSTILL * 9));
        let _one = all.enter();
        assert!(!all.is_helped_after(STANDSTILL / 2));
    }

    #[test]
    fn what_no_thread_begins_is_done_by_a_steady_one() {
        let all = Fixture::new();
        let mut computed: Vec<_> = (0..3).map(|_| all.enter()).collect();
        drop(computed.remove(1));
        assert!(all.is_helped_after(STANDSTILL));
        all.computations.watch();
        assert_eq!(all.threads.steady.lock().len(), 1, "one helps them");
        assert!(Threads::run(&all.threads.steady));
        assert!(
            computed
                .iter_mut()
                .all(|computed| computed.try_recv().is_ok())
        );
        assert_eq!(all.done.load(Ordering::SeqCst), 2, "one has left");
        // Their threads find nothing left.
        while Threads::run(&all.threads.idle) {}
        assert!(all.computations.is_idle());
    }

    #[test]
    fn what_a_thread_has_begun_and_does_not_end_is_done_by_a_steady_one() {
        let all = Fixture::new();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let (begins, begun) = std::sync::mpsc::channel();
        let (end, is_first) = (Mutex::new(end), AtomicUsize::new(0));
        let mut stuck = all.enter_work(move || {
            let number = is_first.fetch_add(1, Ordering::SeqCst);
            if number == 0 {
                begins.send(()).expect("somebody waits");
                let _ = end.lock().recv();
            }
            number
        });
        let turn = all.threads.idle.lock().remove(0);
        let idle = std::thread::spawn(turn);
        begun.recv().expect("it begins");
        let mut later = all.enter();
        assert!(all.is_helped_after(STANDSTILL));
        assert!(Threads::run(&all.threads.steady));
        assert_eq!(stuck.try_recv().expect("answered"), Ok(1), "by the second");
        assert_eq!(later.try_recv().expect("answered"), Ok(0));
        ends.send(()).expect("it waits");
        idle.join().expect("it ends");
        while Threads::run(&all.threads.idle) {}
        assert!(all.computations.is_idle());
    }

    /// A thread that moves again is not helped any more.
    #[test]
    fn a_steady_thread_stops_where_the_others_move() {
        let all = Fixture::new();
        let _computed: Vec<_> = (0..3).map(|_| all.enter()).collect();
        assert!(all.is_helped_after(STANDSTILL));
        assert!(Threads::run(&all.threads.idle));
        assert!(Threads::run(&all.threads.steady));
        assert_eq!(all.done.load(Ordering::SeqCst), 1);
    }
}
