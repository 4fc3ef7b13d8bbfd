//! The level from which lines are logged, which may change while the process runs.
//!
//! A call site remembers whether anybody wants its events, so that a disabled one costs a load and
//! a branch. Who changes the level has all sites ask again.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::level_filters::LevelFilter;

use crate::config::Level;

/// Least first.
const LEVELS: [Level; 7] = [
    Level::Debug,
    Level::Info,
    Level::Warn,
    Level::Error,
    Level::Dpanic,
    Level::Panic,
    Level::Fatal,
];

/// A level that any thread may change.
pub struct CurrentLevel(AtomicUsize);

impl CurrentLevel {
    pub fn new(level: Level) -> Self {
        Self(AtomicUsize::new(place(level)))
    }

    pub fn get(&self) -> Level {
        LEVELS[self.0.load(Ordering::Relaxed)]
    }

    /// Sets another level, and answers the one before.
    pub fn set(&self, level: Level) -> Level {
        let before = self.0.swap(place(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
        LEVELS[before]
    }

    /// Which events of etched's own are logged.
    pub fn own(&self) -> LevelFilter {
        match self.get() {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
            Level::Dpanic | Level::Panic | Level::Fatal => LevelFilter::OFF,
        }
    }

    /// Which events of dependencies: their debug lines are about themselves.
    pub fn foreign(&self) -> LevelFilter {
        self.own().min(LevelFilter::INFO)
    }
}

fn place(level: Level) -> usize {
    level as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_at_its_place() {
        for level in LEVELS {
            assert_eq!(CurrentLevel::new(level).get(), level);
        }
    }
}
