//! Compacts the history automatically, by age or by count, according to etcd's flags.
//!
//! By count: every five minutes, to the newest revision less the retention. By age: the newest
//! revision is sampled ten times per period (an hour at most), and once the first retention has
//! passed the history is compacted once per period to the revision that was newest one retention
//! ago.

use std::collections::VecDeque;
use std::time::Duration;

use crate::env::Interval;
use crate::error::Error;
use crate::service::caller::Caller;
use crate::service::handle::Handle;

const REVISION_INTERVAL: Duration = Duration::from_secs(300);
const MAX_PERIOD: Duration = Duration::from_secs(3600);
const SAMPLES_PER_PERIOD: u32 = 10;

/// The retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    Off,
    /// History of this age is kept.
    Age(Duration),
    /// This many revisions are kept.
    Revisions(i64),
}

/// The revisions sampled over the last retention. Pure: the time is passed in.
pub struct AgeSamples {
    retention: Duration,
    period: Duration,
    samples: VecDeque<i64>,
    max_samples: usize,
    last_success: Option<Duration>,
    started: Option<Duration>,
}

impl AgeSamples {
    pub fn new(retention: Duration) -> Self {
        let period = retention.min(MAX_PERIOD);
        let interval = period / SAMPLES_PER_PERIOD;
        // A retention below ten clock ticks keeps one sample.
        let max_samples = retention
            .as_nanos()
            .checked_div(interval.as_nanos())
            .unwrap_or(1)
            .max(1) as usize;
        Self {
            retention,
            period,
            samples: VecDeque::new(),
            max_samples,
            last_success: None,
            started: None,
        }
    }

    /// The interval between calls of `sample`.
    pub fn interval(&self) -> Duration {
        (self.period / SAMPLES_PER_PERIOD).max(Duration::from_millis(1))
    }

    /// Records the newest revision; returns the one to compact to when a compaction is due.
    pub fn sample(&mut self, revision: i64, now: Duration) -> Option<i64> {
        let started = *self.started.get_or_insert(now);
        let due = match self.last_success {
            None => now.saturating_sub(started) >= self.retention,
            Some(last) => now.saturating_sub(last) >= self.period,
        };
        // Read before the newest sample is added: the oldest is exactly one retention old now.
        let oldest = self.samples.front().copied();
        self.samples.push_back(revision);
        while self.samples.len() > self.max_samples {
            self.samples.pop_front();
        }
        oldest.filter(|_| due)
    }

    pub fn compacted(&mut self, now: Duration) {
        self.last_success = Some(now);
    }
}

/// Runs until the runtime stops.
pub async fn run(handle: Handle, retention: Retention) {
    match retention {
        Retention::Off => {}
        Retention::Age(age) => by_age(handle, age).await,
        Retention::Revisions(count) => by_count(handle, count).await,
    }
}

async fn by_age(handle: Handle, retention: Duration) {
    let mut samples = AgeSamples::new(retention);
    let mut interval = Interval::new(&handle.shared().clock, samples.interval());
    loop {
        let now = handle.shared().clock.now();
        let head = handle.shared().view().head;
        if let Some(revision) = samples.sample(head, now)
            && compact(&handle, revision).await
        {
            samples.compacted(now);
        }
        interval.tick().await;
    }
}

async fn by_count(handle: Handle, retention: i64) {
    let mut interval = Interval::new(&handle.shared().clock, REVISION_INTERVAL);
    let mut last = 0;
    loop {
        interval.tick().await;
        let revision = handle.shared().view().head - retention;
        if revision > 0 && revision != last && compact(&handle, revision).await {
            last = revision;
        }
    }
}

/// True if the history is now compacted to that revision.
async fn compact(handle: &Handle, revision: i64) -> bool {
    if !handle.shared().raft.is_leader() {
        return false;
    }
    match handle.compact(&Caller::member(), revision, false).await {
        Ok(_) | Err(Error::Compacted) => {
            tracing::info!(revision, "completed auto compaction");
            true
        }
        Err(error) => {
            tracing::warn!(revision, %error, "failed auto compaction");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    /// The times, in minutes, and revisions at which a store with one revision per minute is
    /// compacted.
    fn compactions(retention: Duration, until_min: u64) -> Vec<(u64, i64)> {
        let mut samples = AgeSamples::new(retention);
        let step = samples.interval().as_secs() / 60;
        let mut seen = Vec::new();
        for minute in (0..=until_min).step_by(step.max(1) as usize) {
            if let Some(revision) = samples.sample(minute as i64 + 1, minutes(minute)) {
                samples.compacted(minutes(minute));
                seen.push((minute, revision));
            }
        }
        seen
    }

    #[test]
    fn age_keeps_the_retention() {
        assert_eq!(
            compactions(minutes(60), 200),
            vec![(60, 1), (120, 61), (180, 121)]
        );
        assert_eq!(
            compactions(minutes(180), 320),
            vec![(180, 1), (240, 61), (300, 121)]
        );
        assert_eq!(
            compactions(minutes(10), 31),
            vec![(10, 1), (20, 11), (30, 21)]
        );
    }
}
