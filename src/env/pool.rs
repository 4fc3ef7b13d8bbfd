//! Threads for work that waits in a queue. A few are begun with the process and stay; further ones
//! are begun when they are wanted, and where the system has none to give the work waits for those
//! that there are.
//!
//! Each thread has a place: those at the first places take what there is, the others what would have
//! to wait behind others.

use std::collections::VecDeque;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use parking_lot::Mutex;

pub type Work = Box<dyn FnOnce() + Send>;

/// For each first place so much waits before a thread at another place takes any.
pub const MIN_BACKLOG: usize = 4;
/// A thread that stays, and had nothing to do for so long, rests; and again and again, because what
/// it allocated may have been freed by others since.
const REST_AFTER: Duration = Duration::from_secs(1);
const REST_INTERVAL: Duration = Duration::from_secs(10);

/// Begins a thread.
pub type Spawn = fn(Builder, Work) -> io::Result<()>;

/// The system's.
pub fn spawn(builder: Builder, body: Work) -> io::Result<()> {
    builder.spawn(body).map(drop)
}

/// What the threads of a pool are like.
pub struct Shape {
    pub name: &'static str,
    pub places: usize,
    /// At least one.
    pub first_places: usize,
    /// How long a thread that does not stay waits for more work.
    pub lingers: Duration,
    /// What a thread does before anything else; true for one at a first place.
    pub prepare: fn(bool),
    /// What a thread that stays does when it has nothing to do.
    pub rest: fn(),
    pub spawn: Spawn,
}

/// See the module.
pub struct Pool {
    shape: Shape,
    state: Mutex<State>,
    /// The last thread that was wanted could not be begun.
    lacks_threads: AtomicBool,
}

struct State {
    places: Vec<ThreadSlot>,
    waiting: VecDeque<Work>,
}

/// Without a thread and not busy it is vacant; without a thread and busy one is being begun.
#[derive(Default)]
struct ThreadSlot {
    thread: Option<Sender<Work>>,
    busy: bool,
}

impl Pool {
    /// A pool that has no threads yet.
    pub fn of(shape: Shape) -> Arc<Self> {
        let mut places = Vec::new();
        places.resize_with(shape.places, ThreadSlot::default);
        Arc::new(Self {
            shape,
            state: Mutex::new(State {
                places,
                waiting: VecDeque::new(),
            }),
            lacks_threads: AtomicBool::new(false),
        })
    }

    /// Begins the threads of so many places, which stay. To be called before there is work.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(self: &Arc<Self>, threads: usize) -> io::Result<()> {
        for place in 0..threads.min(self.shape.places) {
            let thread = self.begin(place, true)?;
            self.state.lock().places[place].thread = Some(thread);
        }
        Ok(())
    }

    /// Has the work done, in its turn.
    pub fn push(self: &Arc<Self>, work: Work) {
        let mut state = self.state.lock();
        state.waiting.push_back(work);
        if self.hand_to_idle(&mut state) {
            return;
        }
        let is_vacant = |place: &ThreadSlot| place.thread.is_none() && !place.busy;
        let Some(place) = state.places.iter().position(is_vacant) else {
            return;
        };
        let Some(work) = self.take(&mut state, place) else {
            return;
        };
        state.places[place].busy = true;
        drop(state);
        let begun = self.begin(place, false);
        let mut state = self.state.lock();
        match begun {
            Ok(thread) => {
                self.lacks_threads.store(false, Ordering::Relaxed);
                // It waits for this at least.
                let _ = thread.send(work);
                state.places[place].thread = Some(thread);
            }
            Err(error) => {
                state.places[place].busy = false;
                state.waiting.push_front(work);
                self.hand_to_idle(&mut state);
                drop(state);
                if !self.lacks_threads.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        pool = self.shape.name, %error,
                        "cannot begin a thread; the work waits for those that there are: raise the limit of threads (ulimit -u, LimitNPROC=, TasksMax=, pids.max)"
                    );
                }
            }
        }
    }

    /// Ends the threads when they have done what they do; what waits is dropped.
    pub fn close(&self) {
        let mut state = self.state.lock();
        for place in &mut state.places {
            place.thread = None;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }

    /// What a thread at this place would do now.
    fn take(&self, state: &mut State, place: usize) -> Option<Work> {
        let backlog = match place < self.shape.first_places {
            true => 0,
            false => MIN_BACKLOG * self.shape.first_places,
        };
        match state.waiting.len() > backlog {
            true => state.waiting.pop_front(),
            false => None,
        }
    }

    /// Hands work to a thread that waits for some. False where none does, or none would take it.
    fn hand_to_idle(&self, state: &mut State) -> bool {
        let is_idle = |place: &ThreadSlot| place.thread.is_some() && !place.busy;
        let Some(place) = state.places.iter().position(is_idle) else {
            return false;
        };
        let Some(work) = self.take(state, place) else {
            return false;
        };
        let chosen = &mut state.places[place];
        chosen.busy = true;
        if let Some(thread) = &chosen.thread {
            // It receives, or sees that it is busy before it ends.
            let _ = thread.send(work);
        }
        true
    }

    fn begin(self: &Arc<Self>, place: usize, stays: bool) -> io::Result<Sender<Work>> {
        let (sender, receiver) = channel();
        let pool = self.clone();
        let body = Box::new(move || pool.serve(place, stays, &receiver));
        let builder = Builder::new().name(self.shape.name.to_owned());
        (self.shape.spawn)(builder, body)?;
        Ok(sender)
    }

    fn serve(&self, place: usize, stays: bool, receiver: &Receiver<Work>) {
        (self.shape.prepare)(place < self.shape.first_places);
        while let Some(work) = self.wait(place, stays, receiver) {
            let mut next = Some(work);
            while let Some(work) = next {
                // Its waiter sees that it ended; the panic has been reported.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(work));
                next = self.next(place);
            }
        }
    }

    /// Waits for the first work after a while without any; none where the thread is to end.
    fn wait(&self, place: usize, stays: bool, receiver: &Receiver<Work>) -> Option<Work> {
        let mut limit = match stays {
            true => REST_AFTER,
            false => self.shape.lingers,
        };
        loop {
            match receiver.recv_timeout(limit) {
                Ok(work) => return Some(work),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if stays => {
                    (self.shape.rest)();
                    limit = REST_INTERVAL;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let mut state = self.state.lock();
                    let own = &mut state.places[place];
                    if !own.busy {
                        own.thread = None;
                        return None;
                    }
                    // Work was handed over in the meantime.
                    drop(state);
                    return receiver.recv().ok();
                }
            }
        }
    }

    /// What a thread does next; it waits if that is nothing.
    fn next(&self, place: usize) -> Option<Work> {
        let mut state = self.state.lock();
        let work = self.take(&mut state, place);
        if work.is_none() {
            state.places[place].busy = false;
        }
        work
    }

    /// How many threads there are, and how many of them are at work.
    #[cfg(test)]
    pub fn threads(&self) -> (usize, usize) {
        let state = self.state.lock();
        let threads = state.places.iter().filter(|place| place.thread.is_some());
        (
            threads.count(),
            state.places.iter().filter(|place| place.busy).count(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shape(places: usize, first_places: usize) -> Shape {
        Shape {
            name: "test",
            places,
            first_places,
            lingers: Duration::ZERO,
            prepare: |_| {},
            rest: || {},
            spawn,
        }
    }

    /// Of two threads the second helps while much waits, and leaves the rest to the first.
    #[test]
    fn further_threads_take_what_would_wait_long() {
        let pool = Pool::of(shape(2, 1));
        let mut state = pool.state.lock();
        for _ in 0..MIN_BACKLOG + 1 {
            state.waiting.push_back(Box::new(|| {}));
        }
        assert!(pool.take(&mut state, 1).is_some());
        assert!(
            pool.take(&mut state, 1).is_none(),
            "the first does that soon"
        );
        for _ in 0..MIN_BACKLOG {
            assert!(pool.take(&mut state, 0).is_some());
        }
        assert!(pool.take(&mut state, 0).is_none());
    }

    fn eventually(holds: impl Fn() -> bool) {
        for _ in 0..4000 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("not in time");
    }

    /// Pushes so much work, each of which says that it began and waits for a word.
    fn held(pool: &Arc<Pool>, count: usize) -> (Receiver<()>, Sender<()>) {
        let (begun, begins) = mpsc::channel();
        let (ends, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..count {
            let (begun, gate) = (begun.clone(), gate.clone());
            pool.push(Box::new(move || {
                let _ = begun.send(());
                let _ = gate.lock().recv_timeout(LIMIT);
            }));
        }
        (begins, ends)
    }

    #[test]
    fn threads_that_stay_do_the_work_and_others_go() {
        let pool = Pool::of(shape(4, 4));
        pool.start(2).expect("threads");
        assert_eq!(pool.threads(), (2, 0));
        for round in 0..3 {
            let (begins, ends) = held(&pool, 6);
            for _ in 0..4 {
                begins.recv_timeout(LIMIT).expect("begins");
            }
            assert_eq!(pool.threads(), (4, 4), "round {round}");
            for _ in 0..6 {
                ends.send(()).expect("somebody waits");
            }
            for _ in 0..2 {
                begins.recv_timeout(LIMIT).expect("begins");
            }
            eventually(|| pool.threads() == (2, 0));
        }
        pool.close();
        eventually(|| Arc::strong_count(&pool) == 1);
    }

    static LACKING: AtomicBool = AtomicBool::new(false);

    fn spawn_unless_lacking(builder: Builder, body: Work) -> io::Result<()> {
        match LACKING.load(Ordering::SeqCst) {
            true => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            false => spawn(builder, body),
        }
    }

    /// With no more threads to be had, all work is done by those that there are.
    #[test]
    fn work_waits_where_no_thread_can_be_begun() {
        let pool = Pool::of(Shape {
            spawn: spawn_unless_lacking,
            ..shape(4, 4)
        });
        pool.start(1).expect("a thread");
        LACKING.store(true, Ordering::SeqCst);
        assert!(pool.start(2).is_err());
        let (begins, ends) = held(&pool, 3);
        begins.recv_timeout(LIMIT).expect("begins");
        assert_eq!(pool.threads(), (1, 1));
        for _ in 0..3 {
            ends.send(()).expect("somebody waits");
        }
        for _ in 0..2 {
            begins.recv_timeout(LIMIT).expect("begins");
        }
        eventually(|| pool.threads() == (1, 0));
        LACKING.store(false, Ordering::SeqCst);
        let (begins, _ends) = held(&pool, 2);
        for _ in 0..2 {
            begins.recv_timeout(LIMIT).expect("begins");
        }
        pool.close();
    }
}
