//! Follows the keys below each prefix for which somebody waits here: one watch a prefix, however
//! many wait, and none where nobody does.
//!
//! The watch is this member's own and shows nobody anything but that its turn has come. What a
//! waiter may read is asked where it begins to wait and where it ends.
//!
//! What waiters and the keys before them take comes from a share of its own, which refuses those
//! who would be too many. It is not part of the memory budget: that is for what comes back soon.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch as channel};

use super::queue::{self, Turn, WaitQueue};
use super::requests;
use crate::budget::{Held, Share};
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::read::{RangeRead, SortOrder, SortTarget};
use crate::probe::{self, Defect};
use crate::proto::{EncodedKvs, Event, KeyValue};
use crate::replica::view::ReadView;
use crate::service::handle::Handle;
use crate::service::rpcs::{self, Costly};
use crate::types::KeyRange;
use crate::watch::{self, Output, Stream};

/// What all calls that wait take together.
const WAITING_BYTES: usize = 64 << 20;
/// Of each, beside its key; measured with all that a call holds, its stream in HTTP/2 included.
const WAITER_BYTES: usize = 8 << 10;
/// What the keys that a queue holds may take, as long as so much of `WAITING_BYTES` is not reached.
const QUEUE_BYTES: [(usize, usize); 2] = [
    (32 << 10, WAITING_BYTES / 2),
    (2 << 10, WAITING_BYTES / 4 * 3),
];
/// Reads of whole prefixes: each needs a thread.
const TURNS: Costly = rpcs::turns_of(rpcs::LOCK, "Lock");
/// A read that finds more than this in its first keys reads fewer of them.
const READ_BYTES: usize = 1 << 20;
/// And then at so many times fewer.
const FEWER: usize = 16;

/// The type of a deletion in an event.
const DELETE: i32 = 1;

/// See the module.
pub struct WaitQueues {
    handle: Handle,
    queues: Mutex<HashMap<Bytes, Arc<PrefixQueue>>>,
    room: Arc<Share>,
}

struct PrefixQueue {
    prefix: Bytes,
    queue: Mutex<WaitQueue<TurnSender>>,
    wake: Arc<Notify>,
}

/// A place in a queue; dropped it is given up.
pub struct QueuePlace {
    followed: Arc<PrefixQueue>,
    place: (i64, u64),
    turns: channel::Receiver<Option<Turn>>,
}

/// Tells a waiter of its turn.
type TurnSender = channel::Sender<Option<Turn>>;

impl QueuePlace {
    /// Returns when it is known whether the turn has come, and then when it comes.
    ///
    /// # Errors
    /// The member stops.
    pub async fn turn(&mut self) -> Result<Turn, Error> {
        self.turns.changed().await.map_err(|_| Error::Stopped)?;
        let turn = *self.turns.borrow_and_update();
        turn.ok_or(Error::Stopped)
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut queue = self.followed.queue.lock();
        queue.leave(self.place);
        if queue.is_empty() {
            self.followed.wake.notify_one();
        }
    }
}

impl WaitQueues {
    pub fn new(handle: Handle) -> Arc<Self> {
        Arc::new(Self {
            handle,
            queues: Mutex::default(),
            room: Share::new(WAITING_BYTES),
        })
    }

    /// Room for one who waits, with a key of this length.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn room(&self, key_bytes: usize) -> Result<Held, Error> {
        let bytes = WAITER_BYTES + 2 * key_bytes;
        self.room.try_take(bytes).ok_or(Error::TooManyRequests)
    }

    /// Waits for all keys below a prefix to go that were created before `created`, a revision that
    /// this member has applied, of a key below the prefix.
    pub fn join(self: &Arc<Self>, prefix: &Bytes, created: i64) -> QueuePlace {
        let (sender, turns) = channel::channel(None);
        let mut queues = self.queues.lock();
        let mut is_new = false;
        let followed = queues.entry(prefix.clone()).or_insert_with(|| {
            is_new = true;
            Arc::new(PrefixQueue {
                prefix: prefix.clone(),
                queue: Mutex::new(WaitQueue::new(0)),
                wake: Arc::default(),
            })
        });
        let followed = followed.clone();
        let place = followed.queue.lock().join(created, sender);
        drop(queues);
        match is_new {
            true => self.handle.spawn(follow(self.clone(), followed.clone())),
            false => followed.wake.notify_one(),
        }
        QueuePlace {
            followed,
            place,
            turns,
        }
    }

    /// Lets a queue go if nobody waits in it. It is not used again.
    fn is_over(&self, followed: &PrefixQueue) -> bool {
        let mut queues = self.queues.lock();
        let is_empty = followed.queue.lock().is_empty();
        if is_empty {
            queues.remove(&followed.prefix);
        }
        is_empty
    }

    /// Drops a queue and refuses all who wait in it.
    fn give_up(&self, followed: &PrefixQueue) {
        let mut queues = self.queues.lock();
        queues.remove(&followed.prefix);
        *followed.queue.lock() = WaitQueue::new(0);
    }

    /// The pair of a range that was created first.
    pub async fn first(
        &self,
        range: KeyRange,
        view: Arc<ReadView>,
    ) -> Result<Option<KeyValue>, Error> {
        let read = RangeRead {
            limit: 1,
            ..first_created(range)
        };
        let is_point = matches!(read.range, KeyRange::Point(_));
        let read = move |view: &ReadView| {
            let measured = view.pinned().measure(&read, &mut |_| true)?;
            Ok(measured.kvs.unwrap_or_default())
        };
        let kvs = match is_point {
            true => read(&view).map_err(|error| self.handle.refusal(error))?,
            false => self.read(view, read).await?,
        };
        Ok(decoded(&kvs)?.into_iter().next())
    }

    /// Reads off the network's threads, in turn.
    async fn read<T: Send + 'static>(
        &self,
        view: Arc<ReadView>,
        read: impl FnOnce(&ReadView) -> mvcc::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let turns = self.handle.turns(TURNS).clone();
        let turn = turns.acquire_owned();
        let turn = turn.await.map_err(|_| Error::Stopped)?;
        let read = self.handle.blocking(move || {
            // Also where the caller leaves: each occupies a thread.
            let _turn = turn;
            read(&view)
        });
        let read = read.await.map_err(|_| Error::Stopped)?;
        read.map_err(|error| self.handle.refusal(error))
    }

    /// Room for the keys of a queue; none where waiters need what is left.
    fn capacity(&self) -> Option<Held> {
        let used_bytes = self.room.used_bytes();
        let mut fitting = QUEUE_BYTES.iter().filter(|(_, most)| used_bytes < *most);
        let (bytes, _) = fitting.next()?;
        self.room.try_take(*bytes)
    }

    /// No prefix is followed, and nobody has room.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.queues.lock().is_empty() && self.room.used_bytes() == 0
    }
}

/// Follows a prefix as long as somebody waits.
async fn follow(queues: Arc<WaitQueues>, followed: Arc<PrefixQueue>) {
    let held = queues.capacity();
    let capacity_bytes = held.as_ref().map_or(0, Held::bytes);
    followed.queue.lock().set_capacity(capacity_bytes);
    loop {
        match follow_once(&queues, &followed).await {
            Ok(Ended::Lost) => {}
            Ok(Ended::Over) => return,
            Err(error) => {
                // The member stops.
                tracing::debug!(%error, "keys below a prefix are no longer followed");
                return queues.give_up(&followed);
            }
        }
    }
}

/// Why a queue is no longer followed by its watch.
enum Ended {
    /// It has to begin anew.
    Lost,
    /// Nobody waits.
    Over,
}

async fn follow_once(queues: &WaitQueues, followed: &PrefixQueue) -> Result<Ended, Error> {
    let handle = &queues.handle;
    let hub = &handle.shared().hub;
    let waker = followed.wake.clone();
    let mut stream = hub.open(Arc::new(move || waker.notify_one()));
    let view = handle.view();
    let head = view.head;
    let request = watch::Request {
        watch_id: 0,
        range: below(&followed.prefix),
        start_revision: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    if let Err(error) = stream.create(request, head) {
        tracing::error!(%error, "a prefix cannot be followed");
        return Err(Error::Stopped);
    }
    let (keys, complete) = first_keys(queues, &followed.prefix, view).await?;
    let keys = keys.into_iter();
    let keys = keys.map(|pair| (pair.create_revision, Bytes::copy_from_slice(&pair.key)));
    let known = match probe::injected(Defect::KnownTooNew) {
        true => handle.view().head,
        false => head,
    };
    followed.queue.lock().begin(keys, complete, known);
    loop {
        let is_lost = {
            let mut queue = followed.queue.lock();
            queue.turns(|waiter, turn| {
                waiter.send_replace(Some(turn));
            });
            queue.is_lost()
        };
        if queues.is_over(followed) {
            return Ok(Ended::Over);
        }
        if is_lost {
            return Ok(Ended::Lost);
        }
        match next(queues, &mut stream).await? {
            Some(output) => followed.take(output),
            None => followed.wake.notified().await,
        }
        // Where events never end, others have their turn.
        tokio::task::yield_now().await;
    }
}

/// What the watch says next.
async fn next(queues: &WaitQueues, stream: &mut Stream) -> Result<Option<Output>, Error> {
    let handle = &queues.handle;
    let output = if stream.reads_storage() {
        let turns = handle.turns(TURNS);
        let _turn = turns.acquire().await.map_err(|_| Error::Stopped)?;
        let view = handle.view();
        let mut output = Ok(None);
        let executor = handle.shared().executor.as_ref();
        executor.block_in_place(&mut || output = stream.next(&view.pinned()));
        output
    } else {
        stream.next(&handle.view().pinned())
    };
    output.map_err(|error| handle.shared().fail_storage(error))
}

impl PrefixQueue {
    fn take(&self, output: Output) {
        let mut queue = self.queue.lock();
        match output {
            Output::Events {
                header_revision,
                events,
                ..
            } => {
                for event in events {
                    match event.decoded() {
                        Ok(Event {
                            r#type,
                            kv: Some(kv),
                            ..
                        }) if r#type == DELETE => queue.deleted(&kv.key),
                        Ok(Event { kv: Some(kv), .. }) => {
                            queue.put(&kv.key, kv.create_revision, kv.mod_revision);
                        }
                        // This member made it; whatever it was, all keys are read again.
                        Ok(_) | Err(_) => queue.lost(),
                    }
                }
                queue.reached(header_revision);
            }
            Output::Compacted { .. } => queue.lost(),
            Output::Progress { .. } | Output::Again => {}
        }
    }
}

/// The first keys below a prefix in the order of their creation, and whether these are all.
async fn first_keys(
    queues: &WaitQueues,
    prefix: &Bytes,
    view: Arc<ReadView>,
) -> Result<(Vec<KeyValue>, bool), Error> {
    let range = below(prefix);
    let read = move |view: &ReadView| {
        let mut limit = queue::MAX_KEYS;
        loop {
            let read = RangeRead {
                limit: limit as i64,
                keys_only: true,
                ..first_created(range.clone())
            };
            let mut fits = |bytes| limit == 1 || bytes <= READ_BYTES;
            let measured = view.pinned().measure(&read, &mut fits)?;
            if let Some(kvs) = measured.kvs {
                return Ok((kvs, !measured.more));
            }
            limit = (limit / FEWER).max(1);
        }
    };
    let (kvs, complete) = queues.read(view, read).await?;
    Ok((decoded(&kvs)?, complete))
}

fn decoded(kvs: &EncodedKvs) -> Result<Vec<KeyValue>, Error> {
    kvs.decoded().map_err(|error| {
        tracing::error!(%error, "keys that were read cannot be decoded");
        Error::Corrupt
    })
}

/// All that begins with `prefix`.
pub fn below(prefix: &Bytes) -> KeyRange {
    KeyRange::Span(prefix.clone(), requests::end(prefix))
}

/// A range in the order of creation.
fn first_created(range: KeyRange) -> RangeRead {
    RangeRead {
        sort_target: SortTarget::Create,
        sort_order: SortOrder::Ascend,
        ..RangeRead::all(range)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Duration;

    use super::*;
    use crate::proto::etcdserverpb::{DeleteRangeRequest, InternalRaftRequest, PutRequest};
    use crate::service::fixture;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Puts a key and returns its create revision.
    fn put(handle: &Handle, key: &str) -> i64 {
        let put = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        };
        let request = InternalRaftRequest {
            put: Some(put),
            ..Default::default()
        };
        fixture::apply(handle, vec![request]);
        handle.view().head
    }

    fn delete(handle: &Handle, key: &str) {
        let request = InternalRaftRequest {
            delete_range: Some(DeleteRangeRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                ..Default::default()
            }),
            ..Default::default()
        };
        fixture::apply(handle, vec![request]);
    }

    async fn turn(waiting: &mut QueuePlace) -> Turn {
        let turn = tokio::time::timeout(LIMIT, waiting.turn()).await;
        turn.expect("in time").expect("the member runs")
    }

    async fn idle(queues: &WaitQueues) {
        let idle = async {
            while !queues.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, idle).await.expect("in time");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_who_wait_share_a_watch_and_go_one_by_one() {
        // More than a queue holds.
        const MANY: usize = 2 * queue::MAX_KEYS + 7;
        let handle = fixture::single_member();
        let queues = WaitQueues::new(handle.clone());
        let prefix = Bytes::from_static(b"many/");
        let keys: Vec<_> = (0..MANY).map(|n| format!("many/{n:x}")).collect();
        let created: Vec<_> = keys.iter().map(|key| put(&handle, key)).collect();
        let joined = created.iter().map(|created| queues.join(&prefix, *created));
        let mut waiting: Vec<_> = joined.collect();
        let head = handle.view().head;
        assert_eq!(turn(&mut waiting[0]).await, Turn::First(head));
        for waiting in &mut waiting[1..] {
            assert_eq!(turn(waiting).await, Turn::Behind);
        }
        let counters = handle.shared().hub.counters().clone();
        assert_eq!(counters.watches.load(Relaxed), 1);
        for n in 1..MANY {
            assert!(!waiting[n].turns.has_changed().expect("the member runs"));
            delete(&handle, &keys[n - 1]);
            assert_eq!(turn(&mut waiting[n]).await, Turn::Reached);
        }
        drop(waiting);
        idle(&queues).await;
        assert_eq!(counters.watches.load(Relaxed), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_leaves_takes_nothing_along_and_names_have_queues_of_their_own() {
        let handle = fixture::single_member();
        let queues = WaitQueues::new(handle.clone());
        let (a, b) = (Bytes::from_static(b"a/"), Bytes::from_static(b"b/"));
        put(&handle, "a/x");
        let mut last = queues.join(&a, put(&handle, "a/1"));
        drop(queues.join(&a, put(&handle, "a/2")));
        let mut other = queues.join(&b, put(&handle, "b/1"));
        assert!(matches!(turn(&mut other).await, Turn::First(_)));
        assert_eq!(turn(&mut last).await, Turn::Behind);
        delete(&handle, "a/x");
        assert_eq!(turn(&mut last).await, Turn::Reached);
        drop((last, other));
        idle(&queues).await;
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let queues = WaitQueues::new(fixture::single_member());
        let mut held = Vec::new();
        let mut capacities = Vec::new();
        let refused = loop {
            capacities.extend(queues.capacity().as_ref().map(Held::bytes));
            match queues.room(10) {
                Ok(room) => held.push(room),
                Err(error) => break error,
            }
        };
        assert_eq!(refused, Error::TooManyRequests);
        assert!(held.len() > 4096, "{}", held.len());
        capacities.dedup();
        assert_eq!(capacities, QUEUE_BYTES.map(|(bytes, _)| bytes));
        // Few long names take as much.
        drop(held.split_off(held.len() / 2));
        assert_eq!(queues.room(WAITING_BYTES).map(drop), Err(refused));
        drop(held);
        assert!(queues.is_idle());
        assert!(queues.room(1 << 20).is_ok());
    }
}
