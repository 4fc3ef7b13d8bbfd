//! Keeps the log from saying the same over and over.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

/// Texts that were logged recently: repeated attempts are logged once in a while.
#[derive(Default)]
pub struct Notices(Mutex<BTreeMap<String, Duration>>);

impl Notices {
    const PAUSE: Duration = Duration::from_secs(60);
    /// Beyond this many texts all are forgotten.
    const MAX: usize = 256;

    /// False if this was logged a short while ago.
    pub fn is_news(&self, text: &str, now: Duration) -> bool {
        let mut said = self.0.lock();
        if said
            .get(text)
            .is_some_and(|at| now.saturating_sub(*at) < Self::PAUSE)
        {
            return false;
        }
        if said.len() >= Self::MAX {
            said.clear();
        }
        said.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_in_a_while() {
        let notices = Notices::default();
        let at = Duration::from_secs;
        assert!(notices.is_news("a", at(0)));
        assert!(!notices.is_news("a", at(59)));
        assert!(notices.is_news("b", at(59)));
        assert!(notices.is_news("a", at(60)));
        for number in 0..2 * Notices::MAX {
            assert!(notices.is_news(&number.to_string(), at(61)));
        }
        assert!(notices.0.lock().len() <= Notices::MAX);
    }
}
