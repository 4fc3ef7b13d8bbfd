//! Clocks, random numbers and background execution, passed in: the only module that reads the
//! machine's clocks and random source, so that everything else runs the same in the simulator.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
pub async fn timeout<T>(
    clock: &dyn Clock,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut limit = clock.sleep(limit);
    std::future::poll_fn(move |context| {
        if let Poll::Ready(result) = future.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        limit.as_mut().poll(context).map(|()| None)
    })
    .await
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

/// tokio's threads. To be used within its runtime.
pub struct TokioExecutor;

impl Executor for TokioExecutor {
    fn spawn(&self, task: Boxed<()>) {
        tokio::spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
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
