//! Wakes the streams of watches when users, roles or permissions change: a watch whose user lost
//! the right to it is to end even if no event comes to it. (Before an event is sent its stream
//! checks too.)

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::service::handle::Handle;

/// The streams that are open.
#[derive(Default)]
pub struct Rechecks {
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    wakes: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// Held by a stream as long as it is to be woken.
pub struct Woken {
    rechecks: Weak<Rechecks>,
    number: u64,
}

impl Rechecks {
    /// Begins to wake streams, if `enabled`, until the member stops.
    pub fn begin(handle: &Handle, enabled: bool) -> Arc<Self> {
        let rechecks = Arc::<Self>::default();
        if enabled {
            let (streams, mut changes) =
                (Arc::downgrade(&rechecks), handle.shared().auth_changes());
            handle.spawn(async move {
                while changes.changed().await.is_ok() {
                    let Some(rechecks) = streams.upgrade() else {
                        return;
                    };
                    let streams = rechecks.streams.lock();
                    streams.wakes.values().for_each(|wake| wake.notify_one());
                }
            });
        }
        rechecks
    }

    pub fn join(self: &Arc<Self>, wake: Arc<Notify>) -> Woken {
        let mut streams = self.streams.lock();
        let number = streams.next;
        streams.next += 1;
        streams.wakes.insert(number, wake);
        Woken {
            rechecks: Arc::downgrade(self),
            number,
        }
    }
}

impl Drop for Woken {
    fn drop(&mut self) {
        if let Some(rechecks) = self.rechecks.upgrade() {
            rechecks.streams.lock().wakes.remove(&self.number);
        }
    }
}
