//! Clocks, random numbers and background execution, passed in: the only module that reads the
//! machine's clocks and random source, so that everything else runs the same in the simulator.

mod pool;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use pool::{Pool, Shape, Work};

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

/// tokio's threads for what waits for events, and our own for the rest. To be used within its
/// runtime.
///
/// **What may block** has a few threads from the start on, so that a flush needs no thread that the
/// system may not have when it is wanted, and more while there is work for them. Beside them the
/// runtime has threads of its own, which `block_in_place` needs: work that stands still must not stop
/// the network.
///
/// **Computations** take what nobody else wants of the processors, and a tenth of half of them in
/// any case. So half as many threads as there are processors have a low priority, with which they
/// get their part also beside others that never rest. With as many others they use what is idle:
/// those give way at once, and may stand still for long, so that they take only what would wait for
/// the first a while.
pub struct TokioExecutor {
    runtime: Option<Handle>,
    blocking: Arc<Pool>,
    computing: Arc<Pool>,
}

/// Work of `spawn_blocking` at once, and so many threads.
const MAX_BLOCKING: usize = 32;
/// Threads of those that stay.
const STEADY_BLOCKING: usize = 8;
/// How long the others wait for more work.
const BLOCKING_LINGERS: Duration = Duration::from_secs(10);

/// Of a steady thread for computations: with this a thread of the usual priority that wants a
/// processor gets it for nine parts of ten.
const COMPUTING_NICENESS: i32 = 10;

/// The processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads for computations that get a part of the processors in any case.
fn steady_computing() -> usize {
    (processors() / 2).max(1)
}

/// How many threads `TokioExecutor::start` begins.
pub fn steady_threads() -> usize {
    STEADY_BLOCKING + steady_computing()
}

impl TokioExecutor {
    /// Begins the threads that stay. `rest` is what one of them does that has nothing to do.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(rest: fn()) -> std::io::Result<Self> {
        let executor = Self::resting(rest);
        executor.blocking.start(STEADY_BLOCKING)?;
        executor.computing.start(steady_computing())?;
        Ok(executor)
    }

    /// With no thread yet.
    fn resting(rest: fn()) -> Self {
        Self {
            runtime: Handle::try_current().ok(),
            blocking: Pool::of(Shape {
                name: "blocking",
                places: MAX_BLOCKING,
                first_places: MAX_BLOCKING,
                lingers: BLOCKING_LINGERS,
                prepare: |_| {},
                rest,
                spawn: pool::spawn,
            }),
            computing: Pool::of(Shape {
                name: "compute",
                places: processors(),
                first_places: steady_computing(),
                lingers: Duration::ZERO,
                prepare: lower_priority,
                rest,
                spawn: pool::spawn,
            }),
        }
    }
}

/// All threads are begun when they are wanted.
#[cfg(test)]
impl Default for TokioExecutor {
    fn default() -> Self {
        Self::resting(|| {})
    }
}

impl Drop for TokioExecutor {
    fn drop(&mut self) {
        self.blocking.close();
        self.computing.close();
    }
}

/// Has the calling thread leave the processors to others first.
fn lower_priority(is_steady: bool) {
    let lowered = match is_steady {
        true => rustix::process::setpriority_process(None, COMPUTING_NICENESS)
            .map_err(|error| error.to_string()),
        false => run_when_idle().map_err(|error| error.to_string()),
    };
    if let Err(error) = lowered {
        tracing::debug!(error, "a computing thread keeps its priority");
    }
}

/// Has the calling thread run where a processor would be idle, alone.
fn run_when_idle() -> Result<(), thread_priority::Error> {
    thread_priority::set_thread_priority_and_policy(
        thread_priority::thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle),
    )
}

impl Executor for TokioExecutor {
    fn spawn(&self, task: Boxed<()>) {
        tokio::spawn(task);
    }

    fn spawn_blocking(&self, work: Work) {
        let Some(runtime) = self.runtime.clone() else {
            return self.blocking.push(work);
        };
        self.blocking.push(Box::new(move || {
            let _runtime = runtime.enter();
            work();
        }));
    }

    fn spawn_computing(&self, work: Work) {
        self.computing.push(work);
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

    use parking_lot::Mutex;

    use super::*;

    const WORKS: usize = 3 * MAX_BLOCKING;

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
            while executor.blocking.threads().1 > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
