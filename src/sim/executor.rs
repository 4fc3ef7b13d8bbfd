//! Tasks without threads: ready tasks wait until the scheduler polls them, in an order drawn from
//! the seed. Each process of a member has its own executor, and its tasks end with it.
//!
//! No lock is held while anything of a task runs or is dropped: a poll, a wake and a destructor
//! may all spawn, and wake others.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use super::random::Random;
use crate::env::{Boxed, Executor};

type Work = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Default)]
pub struct Tasks {
    queue: Arc<TaskQueue>,
}

#[derive(Default)]
struct TaskQueue {
    state: Mutex<TaskState>,
}

#[derive(Default)]
struct TaskState {
    next_task: u64,
    tasks: BTreeMap<u64, Task>,
    /// Tasks to be polled, each once.
    ready: Vec<u64>,
    blocking: Vec<Work>,
    /// The process has ended: nothing runs any more.
    dead: bool,
}

struct Task {
    /// None while it is being polled.
    future: Option<Boxed<()>>,
    is_ready: bool,
    waker: Waker,
}

/// Makes its task ready. It holds no reference to the queue, since tasks hold wakers themselves.
struct TaskWaker {
    queue: Weak<TaskQueue>,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(queue) = self.queue.upgrade() else {
            return;
        };
        let mut state = queue.state.lock();
        if let Some(task) = state.tasks.get_mut(&self.task)
            && !std::mem::replace(&mut task.is_ready, true)
        {
            state.ready.push(self.task);
        }
    }
}

impl Tasks {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many tasks are ready.
    pub fn ready(&self) -> usize {
        self.queue.state.lock().ready.len()
    }

    /// How many tasks exist.
    pub fn len(&self) -> usize {
        self.queue.state.lock().tasks.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many blocking jobs are queued.
    pub fn blocking(&self) -> usize {
        self.queue.state.lock().blocking.len()
    }

    /// Polls one of the ready tasks; false if there is none. A panic in the task propagates.
    pub fn poll_one(&self, random: &mut Random) -> bool {
        let (number, mut future, waker) = {
            let mut state = self.queue.state.lock();
            if state.ready.is_empty() {
                return false;
            }
            let at = random.below(state.ready.len() as u64) as usize;
            let number = state.ready.swap_remove(at);
            // A task that panicked has no future left.
            let taken = state.tasks.get_mut(&number).and_then(|task| {
                task.is_ready = false;
                Some((task.future.take()?, task.waker.clone()))
            });
            let Some((future, waker)) = taken else {
                state.tasks.remove(&number);
                return true;
            };
            (number, future, waker)
        };
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => {
                let mut state = self.queue.state.lock();
                let ended = state.tasks.remove(&number);
                if ended.as_ref().is_some_and(|task| task.is_ready) {
                    // It was woken during its last poll.
                    state.ready.retain(|ready| *ready != number);
                }
                drop(state);
                drop(ended);
            }
            Poll::Pending => {
                let mut state = self.queue.state.lock();
                // It is gone if the poll stopped the executor.
                if let Some(task) = state.tasks.get_mut(&number) {
                    task.future = Some(future);
                }
            }
        }
        true
    }

    /// Runs one blocking job; false if there is none.
    pub fn run_blocking_one(&self, random: &mut Random) -> bool {
        let work = {
            let mut state = self.queue.state.lock();
            if state.blocking.is_empty() {
                return false;
            }
            let at = random.below(state.blocking.len() as u64) as usize;
            state.blocking.swap_remove(at)
        };
        work();
        true
    }

    /// Drops everything for good: later spawns are dropped at once.
    pub fn clear(&self) {
        let (tasks, blocking) = {
            let mut state = self.queue.state.lock();
            state.dead = true;
            state.ready.clear();
            (
                std::mem::take(&mut state.tasks),
                std::mem::take(&mut state.blocking),
            )
        };
        drop(tasks);
        drop(blocking);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Executor for Tasks {
    fn spawn(&self, task: Boxed<()>) {
        let mut state = self.queue.state.lock();
        if state.dead {
            drop(state);
            drop(task);
            return;
        }
        let number = state.next_task;
        state.next_task += 1;
        let waker = Waker::from(Arc::new(TaskWaker {
            queue: Arc::downgrade(&self.queue),
            task: number,
        }));
        let task = Task {
            future: Some(task),
            is_ready: true,
            waker,
        };
        state.tasks.insert(number, task);
        state.ready.push(number);
    }

    fn spawn_blocking(&self, work: Work) {
        let mut state = self.queue.state.lock();
        if state.dead {
            drop(state);
            drop(work);
        } else {
            state.blocking.push(work);
        }
    }

    fn spawn_computing(&self, work: Work) {
        self.spawn_blocking(work);
    }

    fn block_in_place(&self, work: &mut dyn FnMut()) {
        work();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::env::{Abandoned, blocking};

    /// Polls until nothing is ready; how often that was.
    fn run(tasks: &Tasks, random: &mut Random) -> usize {
        let mut polls = 0;
        while tasks.poll_one(random) {
            polls += 1;
            assert!(polls < 10_000, "the tasks never finish");
        }
        polls
    }

    type Notes = Arc<Mutex<Vec<u64>>>;

    fn order(seed: u64) -> Vec<u64> {
        let (tasks, notes) = (Tasks::new(), Notes::default());
        for number in 0..10 {
            let notes = notes.clone();
            tasks.spawn(Box::pin(async move { notes.lock().push(number) }));
        }
        assert_eq!((tasks.ready(), tasks.len()), (10, 10));
        assert_eq!(run(&tasks, &mut Random::new(seed)), 10);
        assert!(tasks.is_empty());
        notes.lock().clone()
    }

    #[test]
    fn the_seed_says_which_task_runs_first() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let mut sorted = order(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_task_runs_when_it_is_woken_and_once_for_many_wakes() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        let (sender, mut receiver) = mpsc::unbounded_channel::<u64>();
        let notes = Notes::default();
        let noted = notes.clone();
        tasks.spawn(Box::pin(async move {
            while let Some(number) = receiver.recv().await {
                noted.lock().push(number);
            }
        }));
        assert_eq!(run(&tasks, &mut random), 1);
        assert_eq!((tasks.ready(), tasks.len()), (0, 1));
        for number in 0..3 {
            sender.send(number).expect("it listens");
        }
        assert_eq!(tasks.ready(), 1);
        run(&tasks, &mut random);
        assert_eq!(*notes.lock(), [0, 1, 2]);
        drop(sender);
        run(&tasks, &mut random);
        assert!(tasks.is_empty());
    }

    #[test]
    fn polls_may_wake_and_spawn() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        let (within, notes) = (tasks.clone(), Notes::default());
        let noted = notes.clone();
        let mut yielded = false;
        tasks.spawn(Box::pin(std::future::poll_fn(move |context| {
            if !std::mem::replace(&mut yielded, true) {
                context.waker().wake_by_ref();
                let noted = noted.clone();
                within.spawn(Box::pin(async move { noted.lock().push(1) }));
                return Poll::Pending;
            }
            noted.lock().push(2);
            Poll::Ready(())
        })));
        assert_eq!(run(&tasks, &mut random), 3);
        assert_eq!(notes.lock().iter().sum::<u64>(), 3);
    }

    #[test]
    fn a_task_that_ended_is_not_ready() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        tasks.spawn(Box::pin(std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::Ready(())
        })));
        assert!(tasks.poll_one(&mut random));
        assert_eq!((tasks.ready(), tasks.len()), (0, 0));
    }

    #[test]
    fn work_that_takes_long_waits_for_its_turn() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        let (within, notes) = (tasks.clone(), Notes::default());
        let noted = notes.clone();
        tasks.spawn(Box::pin(async move {
            let answer = blocking(within.as_ref(), || 7).await;
            noted.lock().push(answer.expect("it was done"));
            let mut done = 0;
            within.block_in_place(&mut || done += 1);
            noted.lock().push(done);
        }));
        run(&tasks, &mut random);
        assert_eq!((tasks.blocking(), tasks.ready()), (1, 0));
        assert!(tasks.run_blocking_one(&mut random));
        assert!(!tasks.run_blocking_one(&mut random));
        run(&tasks, &mut random);
        assert_eq!(*notes.lock(), [7, 1]);
    }

    /// Spawns and wakes when it is dropped.
    struct LastWord(Arc<Tasks>, Notes, Option<oneshot::Sender<()>>);

    impl Drop for LastWord {
        fn drop(&mut self) {
            let notes = self.1.clone();
            notes.lock().push(1);
            if let Some(sender) = self.2.take() {
                let _ = sender.send(());
            }
            let late = notes.clone();
            self.0.spawn(Box::pin(async move { late.lock().push(2) }));
            self.0
                .spawn_blocking(Box::new(move || notes.lock().push(3)));
        }
    }

    #[test]
    fn what_died_never_runs_again() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        let notes = Notes::default();
        let (sender, receiver) = oneshot::channel();
        let word = LastWord(tasks.clone(), notes.clone(), Some(sender));
        let noted = notes.clone();
        tasks.spawn(Box::pin(async move {
            let _ = receiver.await;
            noted.lock().push(4);
        }));
        tasks.spawn(Box::pin(async move {
            let _word = word;
            std::future::pending::<()>().await;
        }));
        run(&tasks, &mut random);
        let noted = notes.clone();
        tasks.spawn_blocking(Box::new(move || noted.lock().push(5)));
        tasks.clear();
        assert!(!tasks.poll_one(&mut random) && !tasks.run_blocking_one(&mut random));
        assert_eq!((tasks.len(), tasks.ready(), tasks.blocking()), (0, 0, 0));
        assert_eq!(*notes.lock(), [1]);
    }

    #[test]
    fn a_task_may_have_everything_cleared() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        let within = tasks.clone();
        let waiting = tasks.clone();
        tasks.spawn(Box::pin(async move {
            within.clear();
            assert_eq!(blocking(waiting.as_ref(), || 1).await, Err(Abandoned));
            std::future::pending::<()>().await;
        }));
        run(&tasks, &mut random);
        assert_eq!((tasks.len(), tasks.ready()), (0, 0));
        assert_eq!(Arc::strong_count(&tasks), 1, "the task is gone");
    }

    #[test]
    fn a_panic_comes_out_and_harms_no_other() {
        let (tasks, mut random) = (Tasks::new(), Random::new(1));
        tasks.spawn(Box::pin(async { panic!("as it should") }));
        let outcome = catch_unwind(AssertUnwindSafe(|| tasks.poll_one(&mut random)));
        assert!(outcome.is_err());
        let notes = Notes::default();
        let noted = notes.clone();
        tasks.spawn(Box::pin(async move { noted.lock().push(1) }));
        run(&tasks, &mut random);
        assert_eq!(*notes.lock(), [1]);
        let work = || -> () { panic!("as it should") };
        tasks.spawn_blocking(Box::new(work));
        assert!(catch_unwind(AssertUnwindSafe(|| tasks.run_blocking_one(&mut random))).is_err());
    }

    #[test]
    fn wakers_do_not_keep_tasks() {
        let tasks = Tasks::new();
        let kept = Arc::new(());
        let (sender, receiver) = oneshot::channel::<()>();
        let (within, held) = (kept.clone(), sender);
        tasks.spawn(Box::pin(async move {
            // A cycle: the task holds its own waker.
            let _held = (held, within);
            let _ = receiver.await;
        }));
        run(&tasks, &mut Random::new(1));
        drop(tasks);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
