//! Keeps the counts of keys near the newest revision: they are taken up or made in the background
//! after a start, catch up with the history now and then, and are stored so that the next start finds
//! them. None of that is needed for an answer, so that no failure of it ends the member: what cannot
//! be read or written ends it where it is.

use std::sync::Arc;
use std::time::Duration;

use crate::env::{Abandoned, blocking};
use crate::mvcc::counts::Building;
use crate::replica::shared::Shared;
use crate::storage::{self, Engine};

const IS_SIMULATED: bool = cfg!(any(test, feature = "simulation"));

const INTERVAL: Duration = Duration::from_millis(100);
/// Counts catch up once so many revisions are behind, which an answer would have to read otherwise.
const CATCH_UP_AT: i64 = if IS_SIMULATED { 8 } else { 256 };
/// Or after this time.
const CATCH_UP_AFTER: Duration = Duration::from_secs(1);
/// They are stored after so many revisions, or after this time: what a start has to read then.
const STORE_AT: i64 = if IS_SIMULATED { 64 } else { 64 << 10 };
const STORE_AFTER: Duration = Duration::from_secs(if IS_SIMULATED { 3 } else { 30 });
/// After a failure.
const PAUSE: Duration = Duration::from_secs(10);
/// Keys of a step of the walk over all of them: a tenth of a second.
const STEP_KEYS: u64 = 250_000;
/// Progress is logged for so many keys.
const KEYS_A_LINE: u64 = 4 * STEP_KEYS;

/// The time between two walks is so many times that of a walk: one may be in vain again and again.
const WALKS_APART: u32 = 20;

/// So much changes in an interval where much is written. Counts follow that only while somebody asks
/// for them, and else when it is over: to read a change takes longer than to walk over a key.
const BUSY_CHANGES: u64 = if IS_SIMULATED { 16 } else { 100 };
/// How long they follow after that.
const ASKED_FOR: Duration = Duration::from_secs(10);

/// When something was done last, or may be done again.
struct Times {
    caught_up: Duration,
    stored: Duration,
    may_build: Duration,
    asked: Option<Duration>,
    /// Revision and number of keys of the interval before.
    seen: (i64, i64),
}

impl Times {
    /// Whether so much is written that nobody follows who is not asked.
    fn waits(&mut self, shared: &Shared, now: Duration) -> bool {
        if shared.counts.was_asked() {
            self.asked = Some(now);
        }
        let view = shared.view();
        let (head, keys) = std::mem::replace(&mut self.seen, (view.head, view.keys));
        let changes = view.head.abs_diff(head).max(view.keys.abs_diff(keys));
        let is_asked = self.asked.is_some_and(|asked| now < asked + ASKED_FOR);
        changes >= BUSY_CHANGES && !is_asked
    }
}

/// What to do next.
enum CountsWanted {
    Nothing,
    Counts,
    Newer,
    Stored,
}

/// Runs until the runtime stops.
pub async fn run(shared: Arc<Shared>) {
    let now = shared.clock.now();
    let mut times = Times {
        caught_up: now,
        stored: now,
        may_build: now,
        asked: None,
        seen: (0, 0),
    };
    loop {
        let done = match wanted(&shared, &mut times) {
            CountsWanted::Nothing => Ok(Ok(())),
            CountsWanted::Counts => take_up(&shared, &mut times).await,
            CountsWanted::Newer => on_thread(&shared, catch_up).await,
            CountsWanted::Stored => on_thread(&shared, store).await,
        };
        let pause = match done {
            Ok(Ok(())) => INTERVAL,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the counts of keys are not brought forward");
                PAUSE
            }
            // The runtime is going down.
            Err(Abandoned) => return,
        };
        shared.clock.sleep(pause).await;
    }
}

type Done<T> = Result<storage::Result<T>, Abandoned>;

async fn on_thread(shared: &Arc<Shared>, work: fn(&Shared) -> storage::Result<()>) -> Done<()> {
    let working = shared.clone();
    blocking(shared.executor.as_ref(), move || work(&working)).await
}

fn wanted(shared: &Shared, times: &mut Times) -> CountsWanted {
    let now = shared.clock.now();
    if times.waits(shared, now) {
        return CountsWanted::Nothing;
    }
    let Some(revision) = shared.counts.revision() else {
        return match now >= times.may_build {
            true => CountsWanted::Counts,
            false => CountsWanted::Nothing,
        };
    };
    // Before all else, which may be wanted all the time.
    let unstored = shared.counts.unstored();
    if unstored >= STORE_AT || unstored > 0 && now >= times.stored + STORE_AFTER {
        times.stored = now;
        return CountsWanted::Stored;
    }
    let behind = shared.view().head - revision;
    if behind >= CATCH_UP_AT || behind > 0 && now >= times.caught_up + CATCH_UP_AFTER {
        times.caught_up = now;
        return CountsWanted::Newer;
    }
    CountsWanted::Nothing
}

/// Brings the counts to the newest view.
fn catch_up(shared: &Shared) -> storage::Result<()> {
    let view = shared.view();
    shared.counts.catch_up(&view.pinned(), view.keys)?;
    Ok(())
}

fn store(shared: &Shared) -> storage::Result<()> {
    shared.counts.store(shared.engine().as_ref())
}

/// Takes up the counts that the state brought, or makes them.
async fn take_up(shared: &Arc<Shared>, times: &mut Times) -> Done<()> {
    let began = shared.clock.now();
    let view = shared.view();
    let (keys, mut building) = (view.keys, Building::new());
    let (loading, read) = (shared.clone(), view.clone());
    let loaded = blocking(shared.executor.as_ref(), move || {
        let counts = &loading.counts;
        counts.take_up(read.read(), &read.pinned(), read.keys)
    });
    match loaded.await? {
        Ok(false) => {}
        done => return Ok(done.map(|_| ())),
    }
    loop {
        let (read, started) = (view.clone(), shared.clock.now());
        let stepped = blocking(shared.executor.as_ref(), move || {
            let more = building.step(&read.pinned(), STEP_KEYS)?;
            Ok((building, more))
        });
        let more;
        (building, more) = match stepped.await? {
            Ok(stepped) => stepped,
            Err(error) => {
                let now = shared.clock.now();
                times.may_build = now + (now - began) * WALKS_APART;
                return Ok(Err(error));
            }
        };
        let counted = building.keys();
        if !more {
            break;
        }
        if counted % KEYS_A_LINE == 0 {
            tracing::info!(counted, keys, "counts the keys between keys");
        }
        // Half of the disk's time is for others.
        let took = shared.clock.now() - started;
        shared.clock.sleep(took).await;
    }
    let now = shared.clock.now();
    let took = now - began;
    times.may_build = now + took * WALKS_APART;
    if shared.counts.finish(building, &view.pinned(), keys) && keys.unsigned_abs() >= STEP_KEYS {
        tracing::info!(keys, ?took, "counted the keys between keys");
    }
    Ok(Ok(()))
}

/// Brings the counts beyond what a compaction to `target` is about to remove of the history.
pub async fn before_removal(
    shared: &Arc<Shared>,
    engine: &Arc<dyn Engine>,
    target: i64,
) -> Result<(), Abandoned> {
    let (counting, engine) = (shared.clone(), engine.clone());
    let prepared = blocking(shared.executor.as_ref(), move || {
        let prepared = match counting.counts.revision() {
            // Behind a start what it brought may still be able to catch up.
            None => {
                let view = counting.view();
                let taken = counting
                    .counts
                    .take_up(view.read(), &view.pinned(), view.keys);
                taken.map(|_| ())
            }
            Some(_) => catch_up(&counting),
        };
        let prepared = prepared.and_then(|()| counting.counts.store(engine.as_ref()));
        counting.counts.note_removal(target);
        prepared
    });
    if let Err(error) = prepared.await? {
        tracing::warn!(%error, "the counts of keys were not stored before a compaction");
    }
    Ok(())
}
