//! What a metric is kept in: atomics that many threads touch without a lock.
//!
//! Relaxed order suffices everywhere: a figure says how often something happened, never that
//! something else may be read now.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// A count of events since the start.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    pub fn add(&self, events: u64) {
        self.0.fetch_add(events, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A figure that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The buckets of a histogram. Observations are whole ticks: nanoseconds for a time.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    bounds: Bounds,
    ticks_per_unit: u64,
}

#[derive(Clone, Copy, Debug)]
enum Bounds {
    /// Each bound is twice the one before it.
    Doubling {
        first_ticks: u64,
        count: u32,
    },
    Listed(&'static [u64]),
}

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

impl Shape {
    /// `count` bounds in seconds, doubling from `first`.
    pub const fn seconds(first: Duration, count: u32) -> Self {
        Self::doubling(first.as_nanos() as u64, count, NS_PER_S)
    }

    /// `count` bounds in milliseconds, doubling from `first`.
    pub const fn milliseconds(first: Duration, count: u32) -> Self {
        Self::doubling(first.as_nanos() as u64, count, NS_PER_MS)
    }

    /// `count` bounds in whole numbers, doubling from `first`.
    pub const fn whole(first: u64, count: u32) -> Self {
        Self::doubling(first, count, 1)
    }

    /// Bounds in seconds, given in nanoseconds.
    pub const fn listed_seconds(bounds_ns: &'static [u64]) -> Self {
        Self {
            bounds: Bounds::Listed(bounds_ns),
            ticks_per_unit: NS_PER_S,
        }
    }

    const fn doubling(first_ticks: u64, count: u32, ticks_per_unit: u64) -> Self {
        Self {
            bounds: Bounds::Doubling { first_ticks, count },
            ticks_per_unit,
        }
    }

    fn bounds_ticks(self) -> Box<[u64]> {
        match self.bounds {
            Bounds::Doubling { first_ticks, count } => {
                (0..count).map(|power| first_ticks << power).collect()
            }
            Bounds::Listed(bounds) => bounds.into(),
        }
    }
}

/// How observations are spread over buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds_ticks: Box<[u64]>,
    /// One more than bounds: the last is for what exceeds them all.
    counts: Box<[AtomicU64]>,
    sum_ticks: AtomicU64,
    ticks_per_unit: u64,
}

impl Histogram {
    pub fn new(shape: Shape) -> Self {
        let bounds_ticks = shape.bounds_ticks();
        Self {
            counts: (0..=bounds_ticks.len())
                .map(|_| AtomicU64::new(0))
                .collect(),
            bounds_ticks,
            sum_ticks: AtomicU64::new(0),
            ticks_per_unit: shape.ticks_per_unit,
        }
    }

    /// Counts a time.
    pub fn observe(&self, took: Duration) {
        self.observe_ticks(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts so many that took as long each, in one step.
    pub fn observe_each(&self, took: Duration, count: u64) {
        self.observe_ticks_each(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), count);
    }

    /// Counts a whole number; for shapes of whole numbers.
    pub fn observe_ticks(&self, ticks: u64) {
        self.observe_ticks_each(ticks, 1);
    }

    fn observe_ticks_each(&self, ticks: u64, count: u64) {
        let bucket = self.bounds_ticks.partition_point(|bound| *bound < ticks);
        self.counts[bucket].fetch_add(count, Ordering::Relaxed);
        self.sum_ticks
            .fetch_add(ticks.saturating_mul(count), Ordering::Relaxed);
    }

    /// What was counted so far. An observation made meanwhile may be in the sum alone.
    pub fn read(&self) -> Reading {
        let unit = self.ticks_per_unit as f64;
        let mut count = 0;
        let mut cumulative = self.counts.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let buckets = self
            .bounds_ticks
            .iter()
            .map(|bound| *bound as f64 / unit)
            .zip(&mut cumulative)
            .collect();
        let count = cumulative.next().unwrap_or_default();
        Reading {
            buckets,
            count,
            sum: self.sum_ticks.load(Ordering::Relaxed) as f64 / unit,
        }
    }
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Upper bound, and the observations up to and with it.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_their_bucket() {
        let histogram = Histogram::new(Shape::seconds(Duration::from_millis(1), 3));
        for us in [0, 999, 1_000, 1_001, 2_000, 4_000] {
            histogram.observe(Duration::from_micros(us));
        }
        histogram.observe_each(Duration::from_micros(4_001), 1);
        histogram.observe_each(Duration::from_micros(4_001), 0);
        let reading = histogram.read();
        assert_eq!(reading.buckets, [(0.001, 3), (0.002, 5), (0.004, 6)]);
        assert_eq!(reading.count, 7);
        assert!((reading.sum - 0.013_001).abs() < 1e-9, "{}", reading.sum);
    }

    #[test]
    fn whole_numbers_and_milliseconds_keep_their_unit() {
        let ttls = Histogram::new(Shape::whole(1, 24));
        ttls.observe_ticks(9_000_000_000);
        let reading = ttls.read();
        assert_eq!(reading.buckets.last(), Some(&(8_388_608.0, 0)));
        assert_eq!((reading.count, reading.sum), (1, 9e9));
        let pauses = Histogram::new(Shape::milliseconds(Duration::from_micros(500), 2));
        pauses.observe(Duration::from_micros(750));
        assert_eq!(pauses.read().buckets, [(0.5, 0), (1.0, 1)]);
        assert_eq!(pauses.read().sum, 0.75);
    }
}
