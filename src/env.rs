//! Clocks, random numbers and background execution, passed in: the only module that reads the
//! machine's clocks and random source, so that everything else runs the same in the simulator.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::sync::oneshot;

/// A boxed future, for object-safe traits.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A monotonic clock and the wall clock.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn now(&self) -> Duration;
    /// Wall time since the Unix epoch; may jump.
    fn wall(&self) -> Duration;
    /// Completes after this duration.
    fn sleep(&self, duration: Duration) -> Boxed<()>;
}

/// The result, or `None` if it takes longer than `limit`.
pub fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Timeout<F> {
    Timeout {
        future,
        limit: clock.sleep(limit),
    }
}

pin_project_lite::pin_project! {
    /// What [`timeout`] returns. An async function would keep the future twice, as its argument
    /// and pinned, and each call that waits holds one of these.
    pub struct Timeout<F> {
        #[pin]
        future: F,
        limit: Boxed<()>,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.future.poll(context) {
            return Poll::Ready(Some(result));
        }
        this.limit.as_mut().poll(context).map(|()| None)
    }
}

/// Ticks of an interval. A late tick delays the following ones.
pub struct Interval {
    clock: Arc<dyn Clock>,
    every: Duration,
    next: Boxed<()>,
}

impl Interval {
    /// The first tick is one interval from now.
    pub fn new(clock: &Arc<dyn Clock>, every: Duration) -> Self {
        Self {
            clock: clock.clone(),
            every,
            next: clock.sleep(every),
        }
    }

    /// Completes at the next tick. It may be dropped and called again.
    pub async fn tick(&mut self) {
        self.next.as_mut().await;
        self.next = self.clock.sleep(self.every);
    }
}

/// Runs work in the background.
pub trait Executor: Send + Sync + 'static {
    /// Runs a task that never blocks on the disk.
    fn spawn(&self, task: Boxed<()>);
    /// Runs work that may block.
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>);
    /// Runs work that takes a processor for long and waits for nothing, on few threads of its own
    /// that leave the processors to others first.
    fn spawn_computing(&self, work: Box<dyn FnOnce() + Send>);
    /// Runs blocking work within the calling task, whose thread serves no other task meanwhile.
    fn block_in_place(&self, work: &mut dyn FnMut());
}

/// The work did not run, or not to its end: the process is stopping.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

/// Runs work that may block, and waits for it.
pub async fn blocking<T: Send + 'static>(
    executor: &dyn Executor,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Abandoned> {
    let (sender, receiver) = oneshot::channel();
    executor.spawn_blocking(Box::new(move || {
        // The caller may be gone.
        let _ = sender.send(work());
    }));
    receiver.await.map_err(|_| Abandoned)
}

/// tokio's threads, and a few beside them. To be used within its runtime.
///
/// **Computations** take what nobody else wants of the processors, and a tenth of half of them in
/// any case. So half as many threads as there are processors have a low priority, with which they
/// get their part also beside others that never rest. With as many others they use what is idle:
/// those give way at once, and may stand still for long, so that they take only what would wait for
/// the first a while.
pub struct TokioExecutor {
    blocking: Arc<Pool>,
    computing: Arc<Pool>,
    /// Of the threads for computations: so many first ones get a part in any case.
    steady: usize,
}

impl Default for TokioExecutor {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let steady = (processors / 2).max(1);
        Self {
            blocking: Pool::of(MAX_BLOCKING, MAX_BLOCKING),
            computing: Pool::of(processors, steady),
            steady,
        }
    }
}

/// Work of `spawn_blocking` at once, and so many threads. The runtime has more of them, which
/// `block_in_place` needs: work that stands still must not stop the network.
const MAX_BLOCKING: usize = 32;

/// Of a steady thread for computations: with this a thread of the usual priority that wants a
/// processor gets it for nine parts of ten.
const COMPUTING_NICENESS: i32 = 10;

/// For each steady thread so many computations wait before the other threads take any.
const MIN_BACKLOG: usize = 4;

/// Has the calling thread run where a processor would be idle, alone.
fn run_when_idle() -> Result<(), thread_priority::Error> {
    thread_priority::set_thread_priority_and_policy(
        thread_priority::thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle),
    )
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads, each at a place: those at the first places take what there is, the others what would
/// have to wait behind others.
struct Pool {
    first_places: usize,
    state: Mutex<PoolState>,
}

struct PoolState {
    /// Which places have a thread.
    taken: Vec<bool>,
    waiting: VecDeque<Work>,
}

impl Pool {
    fn of(places: usize, first_places: usize) -> Arc<Self> {
        let state = PoolState {
            taken: vec![false; places],
            waiting: VecDeque::new(),
        };
        Arc::new(Self {
            first_places,
            state: Mutex::new(state),
        })
    }

    /// What a thread at this place would do now.
    fn take(&self, state: &mut PoolState, place: usize) -> Option<Work> {
        let backlog = match place < self.first_places {
            true => 0,
            false => MIN_BACKLOG * self.first_places,
        };
        match state.waiting.len() > backlog {
            true => state.waiting.pop_front(),
            false => None,
        }
    }

    /// Has work wait; what to do at which place, where a thread has to be begun.
    fn begin(&self, work: Work) -> Option<(usize, Work)> {
        let mut state = self.state.lock();
        state.waiting.push_back(work);
        let place = state.taken.iter().position(|taken| !taken)?;
        let work = self.take(&mut state, place)?;
        state.taken[place] = true;
        Some((place, work))
    }

    /// What a thread does next; its place is free if that is nothing.
    fn next(&self, place: usize) -> Option<Work> {
        let mut state = self.state.lock();
        let work = self.take(&mut state, place);
        if work.is_none() {
            state.taken[place] = false;
        }
        work
    }

    /// Does the work, and then what waits.
    fn run(&self, place: usize, work: Work) {
        let mut next = Some(work);
        while let Some(work) = next {
            // Its waiter sees that it ended; the panic has been reported.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(work));
            next = self.next(place);
        }
    }
}

impl Executor for TokioExecutor {
    fn spawn(&self, task: Boxed<()>) {
        tokio::spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let Some((place, work)) = self.blocking.begin(work) else {
            return;
        };
        let pool = self.blocking.clone();
        tokio::task::spawn_blocking(move || pool.run(place, work));
    }

    fn spawn_computing(&self, work: Work) {
        let Some((place, work)) = self.computing.begin(work) else {
            return;
        };
        let (pool, is_steady) = (self.computing.clone(), place < self.steady);
        let thread = std::thread::Builder::new().name("compute".to_owned());
        let spawned = thread.spawn(move || {
            let lowered = match is_steady {
                true => rustix::process::setpriority_process(None, COMPUTING_NICENESS)
                    .map_err(|error| error.to_string()),
                false => run_when_idle().map_err(|error| error.to_string()),
            };
            if let Err(error) = lowered {
                tracing::debug!(error, "a computing thread keeps its priority");
            }
            pool.run(place, work);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a computation");
            // The waiter for the work sees that it was dropped; what waits behind it is begun
            // with the next.
            self.computing.state.lock().taken[place] = false;
        }
    }

    fn block_in_place(&self, work: &mut dyn FnMut()) {
        tokio::task::block_in_place(work);
    }
}

/// The machine's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Duration {
        // A wall clock before 1970 reads as 1970: nothing important depends on it.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    fn sleep(&self, duration: Duration) -> Boxed<()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that a test moves by hand; its sleeps take real time.
#[cfg(test)]
#[derive(Default)]
pub struct ManualClock {
    now_ns: std::sync::atomic::AtomicU64,
}

#[cfg(test)]
impl ManualClock {
    pub fn advance(&self, by: Duration) {
        self.now_ns
            .fetch_add(by.as_nanos() as u64, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.now()
    }

    fn sleep(&self, duration: Duration) -> Boxed<()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A source of random numbers.
pub trait Rng: Send + Sync + 'static {
    fn next_u64(&self) -> u64;
}

/// The operating system's randomness behind a fast generator.
pub struct SystemRng;

impl Rng for SystemRng {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WORKS: usize = 3 * MAX_BLOCKING;

    /// Of two threads the second helps while much waits, and leaves the rest to the first.
    #[test]
    fn further_threads_take_what_would_wait_long() {
        let pool = Pool::of(2, 1);
        let work = || -> Work { Box::new(|| {}) };
        let mut begun: Vec<_> = (0..MIN_BACKLOG + 3).map(|_| pool.begin(work())).collect();
        let places = begun
            .iter()
            .map(|begun| begun.as_ref().map(|(place, _)| *place));
        let mut expected = vec![None; MIN_BACKLOG + 3];
        expected[0] = Some(0);
        expected[MIN_BACKLOG + 1] = Some(1);
        assert_eq!(places.collect::<Vec<_>>(), expected);
        begun.clear();
        assert!(pool.next(1).is_some());
        assert!(pool.next(1).is_none(), "the first does that soon");
        for _ in 0..MIN_BACKLOG {
            assert!(pool.next(0).is_some());
        }
        assert!(pool.next(0).is_none());
        assert_eq!(pool.state.lock().taken, [false, false]);
    }

    #[tokio::test]
    async fn work_waits_for_a_thread_and_one_that_panics_takes_none_away() {
        let executor = TokioExecutor::default();
        for panics in [true, false] {
            let (begun, begins) = mpsc::channel();
            let (ends, gate) = mpsc::channel::<()>();
            let gate = Arc::new(Mutex::new(gate));
            for _ in 0..WORKS {
                let (begun, gate) = (begun.clone(), gate.clone());
                executor.spawn_blocking(Box::new(move || {
                    begun.send(()).expect("somebody counts");
                    // Once for each that is to end.
                    gate.lock().recv().expect("a word");
                    assert!(!panics, "as the test wants it");
                }));
            }
            let limit = Duration::from_secs(20);
            for _ in 0..MAX_BLOCKING {
                begins.recv_timeout(limit).expect("begins");
            }
            let more = begins.recv_timeout(Duration::from_millis(50));
            assert!(more.is_err(), "more at once than there may be");
            for _ in 0..WORKS {
                ends.send(()).expect("somebody waits");
            }
            for _ in MAX_BLOCKING..WORKS {
                begins.recv_timeout(limit).expect("begins");
            }
            while executor.blocking.state.lock().taken.contains(&true) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
