//! Time, chance and the threads of others, handed in: the only module that may ask the machine for
//! the first two, so that everything else runs the same in a simulator.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

/// A boxed future, for traits that are used as objects.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A monotonic clock and the wall clock.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn now(&self) -> Duration;
    /// Wall time since the Unix epoch; may jump.
    fn wall(&self) -> Duration;
    /// Resolves when `now` has grown by that much.
    fn sleep(&self, duration: Duration) -> Boxed<()>;
}

/// The result, or `None` where it takes longer than `limit`.
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

/// Moments that lie an interval apart. One that is seen late moves those after it.
pub struct Interval {
    clock: Arc<dyn Clock>,
    every: Duration,
    next: Boxed<()>,
}

impl Interval {
    /// The first moment is `every` from now.
    pub fn new(clock: &Arc<dyn Clock>, every: Duration) -> Self {
        Self {
            clock: clock.clone(),
            every,
            next: clock.sleep(every),
        }
    }

    /// Resolves at the next moment. It may be dropped and asked for again.
    pub async fn tick(&mut self) {
        self.next.as_mut().await;
        self.next = self.clock.sleep(self.every);
    }
}

/// Runs what its caller does not wait for.
pub trait Executor: Send + Sync + 'static {
    /// Runs a task that waits for others, never for the disk.
    fn spawn(&self, task: Boxed<()>);
    /// Runs work that may take long or wait for the disk.
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>);
    /// Runs such work within the calling task, whose thread is not there for others meanwhile.
    fn block_in_place(&self, work: &mut dyn FnMut());
}

/// What was to run is not run, or not to its end: the process stops.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

/// Runs work that may take long or wait for the disk, and waits for it.
pub async fn blocking<T: Send + 'static>(
    executor: &dyn Executor,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Abandoned> {
    let (sender, receiver) = oneshot::channel();
    executor.spawn_blocking(Box::new(move || {
        // Whoever asked may have gone.
        let _ = sender.send(work());
    }));
    receiver.await.map_err(|_| Abandoned)
}

/// tokio's threads. Must be used within its runtime.
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
        // A wall clock before 1970 reads as 1970: nothing that matters hangs on it.
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
