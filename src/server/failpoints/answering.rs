//! Whether a request is being answered. A panic waits for that: who sets one is answered, and does not
//! find the process gone within the answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How many requests are being answered.
#[derive(Default)]
pub struct Answering {
    count: Mutex<usize>,
    changed: Condvar,
}

/// While it exists, a request is being answered.
pub struct InProgress(Arc<Answering>);

impl Answering {
    pub fn begin(self: &Arc<Self>) -> InProgress {
        *self.count.lock() += 1;
        InProgress(self.clone())
    }

    /// Returns when nobody is being answered, or after `limit`: a client may not read its answer.
    pub fn wait(&self, limit: Duration) {
        let mut count = self.count.lock();
        self.changed
            .wait_while_for(&mut count, |count| *count > 0, limit);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_progress_are_waited_for_and_not_for_ever() {
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(60));
        let answering = Arc::<Answering>::default();
        answering.wait(long);
        let one = answering.begin();
        answering.wait(short);
        let waiting = std::thread::spawn({
            let answering = answering.clone();
            move || answering.wait(long)
        });
        drop(one);
        waiting.join().expect("it ends");
    }
}
