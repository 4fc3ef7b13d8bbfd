//! Passwords: hashed and compared with bcrypt, in etcd's form.
//!
//! A computation takes tens of milliseconds of a processor, and anyone can ask for one. So they run
//! on threads of their own that yield to all others (`env::Executor::spawn_computing`), a few at
//! once, and none where entries are applied. So many may wait; one more is refused, or the newest
//! of those who have more waiting. Addresses and names take turns (`lines`), so that a flood of wrong
//! passwords keeps nobody else from logging in. Those of callers who left are skipped.
//!
//! A log-in costs the same whether there is such a user or not: the answer, which is the same, does
//! not come sooner either.
//!
//! A `Password` never shows itself and is overwritten when it is dropped. What HTTP/2 and the codec
//! had in their buffers before is beyond that.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use self::lines::{Requester, Room};
use super::rpcs::MAX_PASSWORDS;
use crate::env::{self, Clock, Executor, Rng};
use crate::error::Error;
use crate::types::MAX_PASSWORD_COST;

pub mod lines;

/// How long one waits in any case.
const WAIT_LIMIT: Duration = Duration::from_secs(120);
/// bcrypt's; it would ignore what is beyond.
const MAX_PASSWORD_BYTES: usize = 72;

/// A password in plain text.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes it out of a message, which has none any more.
    pub fn take(field: &mut String) -> Self {
        Self(Zeroizing::new(std::mem::take(field)))
    }

    /// Without what bcrypt ignores: it may wait for long, and nobody counts it then.
    fn shortened(self) -> Self {
        let end = (MAX_PASSWORD_BYTES..self.0.len()).find(|end| self.0.is_char_boundary(*end));
        match end {
            Some(end) => Self(Zeroizing::new(self.0[..end].to_owned())),
            None => self,
        }
    }

    /// # Errors
    /// It is longer than what can be hashed.
    pub fn check_length(&self) -> Result<(), Error> {
        match self.0.len() > MAX_PASSWORD_BYTES {
            true => Err(Error::PasswordTooLong),
            false => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// See the module.
#[derive(Clone)]
pub struct Passwords {
    cost: u32,
    rng: Arc<dyn Rng>,
    clock: Arc<dyn Clock>,
    executor: Arc<dyn Executor>,
    queue: Arc<Queue>,
}

/// What waits for a thread.
struct Queue(Mutex<QueueState>);

struct QueueState {
    waiting: Room<Box<dyn Job>>,
    /// Turns that the executor has not taken yet; each does what is next then.
    turns: usize,
}

/// A computation and its caller.
trait Job: Send {
    fn is_awaited(&self) -> bool;
    fn compute(self: Box<Self>);
    fn refuse(self: Box<Self>);
}

struct Computation<W, T> {
    work: W,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<T: Send, W: FnOnce() -> T + Send> Job for Computation<W, T> {
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }

    fn compute(self: Box<Self>) {
        // The caller may leave meanwhile.
        let _ = self.reply.send(Ok((self.work)()));
    }

    fn refuse(self: Box<Self>) {
        let _ = self.reply.send(Err(Error::TooManyRequests));
    }
}

impl Queue {
    /// Has a computation wait; true if it takes a further turn. One that has no room is refused.
    fn enter(&self, requester: Requester, job: Box<dyn Job>) -> bool {
        let mut state = self.0.lock();
        if state.waiting.len() >= MAX_PASSWORDS {
            state.waiting.keep(|job| job.is_awaited());
        }
        let left = state.waiting.enter(requester, job);
        let takes_a_turn = state.turns < state.waiting.len();
        state.turns += usize::from(takes_a_turn);
        drop(state);
        if let Some(left) = left {
            left.refuse();
        }
        takes_a_turn
    }

    /// The next whose caller still waits; a turn is over.
    fn next(&self) -> Option<Box<dyn Job>> {
        let mut state = self.0.lock();
        state.turns -= 1;
        let waiting = &mut state.waiting;
        std::iter::from_fn(|| waiting.next()).find(|job| job.is_awaited())
    }
}

/// Where it is dropped without a turn, somebody's wait ends: the process is stopping.
struct Turn(Option<Arc<Queue>>);

impl Turn {
    fn take(mut self) {
        let next = self.0.take().and_then(|queue| queue.next());
        if let Some(job) = next {
            job.compute();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.0.take().and_then(|queue| queue.next()));
    }
}

impl Passwords {
    /// `cost` is that of new hashes: 4 to `MAX_PASSWORD_COST`, each the double of the one before.
    pub fn new(
        cost: u32,
        rng: Arc<dyn Rng>,
        clock: Arc<dyn Clock>,
        executor: Arc<dyn Executor>,
    ) -> Self {
        Self {
            cost: cost.min(MAX_PASSWORD_COST),
            rng,
            clock,
            executor,
            queue: Arc::new(Queue(Mutex::new(QueueState {
                waiting: Room::for_most(MAX_PASSWORDS),
                turns: 0,
            }))),
        }
    }

    /// The hash of a password, as text.
    pub async fn hash(&self, requester: Requester, password: Password) -> Result<String, Error> {
        password.check_length()?;
        let (cost, salt) = (self.cost, self.salt());
        let hash = self
            .compute(requester, move || {
                bcrypt::hash_with_salt(password.0.as_bytes(), cost, salt)
            })
            .await?;
        // Neither cost nor salt can be wrong, and the length has been checked.
        let hash = hash.map_err(|_| Error::PasswordTooLong)?;
        Ok(hash.format_for_version(bcrypt::Version::TwoA))
    }

    /// Whether this is the password that was hashed. Without a hash it is not, after as long.
    pub async fn matches(
        &self,
        requester: Requester,
        password: Password,
        hash: Option<Bytes>,
    ) -> Result<bool, Error> {
        let (cost, salt) = (self.cost, self.salt());
        let password = password.shortened();
        self.compute(requester, move || {
            let hash = hash
                .as_deref()
                .and_then(|hash| std::str::from_utf8(hash).ok());
            let hash = hash.filter(|hash| is_computable(hash));
            // A text that is no hash fits no password, as in etcd.
            let matched = hash.and_then(|hash| bcrypt::verify(password.0.as_bytes(), hash).ok());
            matched.unwrap_or_else(|| {
                let spent = bcrypt::hash_with_salt(password.0.as_bytes(), cost, salt);
                drop(std::hint::black_box(spent));
                false
            })
        })
        .await
    }

    /// Runs a computation where the others do; for signatures that take as long.
    pub async fn compute<T: Send + 'static>(
        &self,
        requester: Requester,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, computed) = oneshot::channel();
        if self
            .queue
            .enter(requester, Box::new(Computation { work, reply }))
        {
            let turn = Turn(Some(self.queue.clone()));
            self.executor.spawn_computing(Box::new(move || turn.take()));
        }
        match env::timeout(self.clock.as_ref(), WAIT_LIMIT, computed).await {
            Some(computed) => computed.map_err(|_| Error::Stopped)?,
            None => Err(Error::Timeout),
        }
    }

    fn salt(&self) -> [u8; 16] {
        let halves = [self.rng.next_u64(), self.rng.next_u64()];
        let mut salt = [0; 16];
        for (part, half) in salt.chunks_exact_mut(8).zip(halves) {
            part.copy_from_slice(&half.to_be_bytes());
        }
        salt
    }
}

/// Whether a hash says that its cost is one that somebody waits for.
fn is_computable(hash: &str) -> bool {
    let parts: Result<bcrypt::HashParts, _> = hash.parse();
    parts.is_ok_and(|parts| parts.get_cost() <= MAX_PASSWORD_COST)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::env::{Boxed, SystemClock, SystemRng, TokioExecutor};
    use parking_lot::Mutex;

    const COST: u32 = 4;

    fn with(cost: u32, executor: Arc<dyn Executor>) -> Passwords {
        let clock = Arc::new(SystemClock::new());
        Passwords::new(cost, Arc::new(SystemRng), clock, executor)
    }

    fn passwords(cost: u32) -> Passwords {
        with(cost, Arc::new(TokioExecutor::default()))
    }

    fn here() -> Requester {
        at(1, "alice")
    }

    fn at(address: u8, name: &str) -> Requester {
        Requester {
            source: crate::types::Remote::Tcp(([10, 0, 0, address], 1).into()).into(),
            name: name.to_owned(),
        }
    }

    fn password(text: &str) -> Password {
        Password::take(&mut text.to_owned())
    }

    #[test]
    fn a_password_leaves_its_message_and_does_not_show_itself() {
        let mut field = "secret".to_owned();
        let password = Password::take(&mut field);
        assert_eq!((field.as_str(), field.capacity()), ("", 0));
        assert!(!password.is_empty());
        assert_eq!(format!("{password:?}"), "Password(..)");
    }

    #[test]
    fn a_password_waits_without_what_is_ignored() {
        for (text, bytes) in [
            ("pw".to_owned(), 2),
            ("x".repeat(MAX_PASSWORD_BYTES), MAX_PASSWORD_BYTES),
            ("x".repeat(1 << 20), MAX_PASSWORD_BYTES),
            ("é".repeat(1 << 10), MAX_PASSWORD_BYTES),
            // No character is cut.
            (format!("x{}", "é".repeat(1 << 10)), MAX_PASSWORD_BYTES + 1),
        ] {
            let short = password(&text).shortened();
            assert!(text.starts_with(short.0.as_str()));
            assert_eq!(short.0.len(), bytes);
        }
    }

    #[tokio::test]
    async fn a_hash_fits_its_password_alone() {
        let passwords = passwords(COST);
        let longest = "x".repeat(MAX_PASSWORD_BYTES);
        for text in ["", "pw", "with \0 in it", "é", &longest] {
            let hash = passwords
                .hash(here(), password(text))
                .await
                .expect("hashed");
            assert!(hash.starts_with("$2a$04$"), "{hash}");
            assert_eq!(hash.len(), 60);
            let hash = Bytes::from(hash);
            for (given, expected) in [(text, true), ("other", false)] {
                let found = passwords
                    .matches(here(), password(given), Some(hash.clone()))
                    .await;
                assert_eq!(found, Ok(expected), "{text:?} {given:?}");
            }
        }
        let too_long = password(&"x".repeat(MAX_PASSWORD_BYTES + 1));
        assert_eq!(
            passwords.hash(here(), too_long).await,
            Err(Error::PasswordTooLong)
        );
    }

    #[tokio::test]
    async fn hashes_of_etcd_are_known() {
        // Made by etcd v3.7.3 of "pw" and of nothing.
        let passwords = passwords(COST);
        for (text, hash, expected) in [
            ("pw", ETCD_PW, true),
            ("", ETCD_PW, false),
            ("", ETCD_EMPTY, true),
            ("pw", "", false),
            ("pw", "plain", false),
            ("", "\u{fffd}", false),
        ] {
            let found = passwords
                .matches(here(), password(text), Some(hash.into()))
                .await;
            assert_eq!(found, Ok(expected), "{text:?} {hash}");
        }
    }

    /// At the highest cost a comparison would take a thread for a day.
    #[tokio::test]
    async fn a_hash_that_nobody_waits_for_fits_nothing() {
        let passwords = passwords(COST);
        for cost in [23, 31] {
            let hash = ETCD_PW.replacen("$04$", &format!("${cost}$"), 1);
            let matched = passwords.matches(here(), password("pw"), Some(hash.into()));
            let found = tokio::time::timeout(Duration::from_secs(20), matched).await;
            assert_eq!(found.expect("in time"), Ok(false), "{cost}");
        }
        for (hash, expected) in [
            (ETCD_PW.replacen("$04$", "$22$", 1), true),
            (ETCD_PW.replacen("$04$", "$23$", 1), false),
            ("plain".to_owned(), false),
        ] {
            assert_eq!(is_computable(&hash), expected, "{hash}");
        }
    }

    const ETCD_PW: &str = "$2a$04$/m0MJ9EtUUbj5fDdPu5oq.OGdwcga8ArAYLACAEeM/bqWAFciQmnW";
    const ETCD_EMPTY: &str = "$2a$04$bKI.9WKpSp/32HPY8EmypO.G49XmY4UCRTsFBrtKzNpUgYqFI1gvO";

    #[tokio::test]
    async fn a_user_who_is_not_there_takes_as_long() {
        let passwords = passwords(9);
        let hash = passwords
            .hash(here(), password("pw"))
            .await
            .expect("hashed");
        let mut times = [Duration::MAX; 2];
        for _ in 0..5 {
            for (time, hash) in times
                .iter_mut()
                .zip([Some(Bytes::from(hash.clone())), None])
            {
                let start = Instant::now();
                assert_eq!(
                    passwords.matches(here(), password("no"), hash).await,
                    Ok(false)
                );
                *time = start.elapsed().min(*time);
            }
        }
        let [known, unknown] = times.map(|time| time.as_secs_f64());
        // Without a hash of its own it would take a thousandth; a busy machine makes it uneven.
        assert!((0.2..5.0).contains(&(unknown / known)), "{times:?}");
    }

    /// Keeps what it is to run.
    #[derive(Default)]
    struct Stuck(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

    impl Executor for Stuck {
        fn spawn(&self, _: Boxed<()>) {}
        fn spawn_blocking(&self, _: Box<dyn FnOnce() + Send>) {}
        fn spawn_computing(&self, work: Box<dyn FnOnce() + Send>) {
            self.0.lock().push(work);
        }
        fn block_in_place(&self, work: &mut dyn FnMut()) {
            work();
        }
    }

    /// Has a future begin.
    async fn begun<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
        let mut future = Box::pin(future);
        let done = tokio::time::timeout(Duration::ZERO, future.as_mut()).await;
        assert!(done.is_err(), "it does not wait");
        future
    }

    #[tokio::test]
    async fn so_many_wait_and_those_who_leave_cost_nothing() {
        let executor = Arc::new(Stuck::default());
        let passwords = with(31, executor.clone());
        for _ in 0..3 {
            let mut waiting = Vec::new();
            for _ in 0..MAX_PASSWORDS {
                waiting.push(begun(passwords.hash(here(), password("pw"))).await);
            }
            let refused = passwords.hash(here(), password("pw")).await;
            assert_eq!(refused, Err(Error::TooManyRequests));
            assert_eq!(executor.0.lock().len(), MAX_PASSWORDS);
        }
        // At this cost one that ran would take a day.
        for work in executor.0.lock().drain(..) {
            work();
        }
        let state = passwords.queue.0.lock();
        assert_eq!((state.turns, state.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_flood_keeps_nobody_else_waiting() {
        let executor = Arc::new(Stuck::default());
        let passwords = with(COST, executor.clone());
        let mut flood = Vec::new();
        for number in 0..MAX_PASSWORDS {
            let requester = at(1, ["alice", "bob"][number % 2]);
            flood.push(begun(passwords.hash(requester, password("wrong"))).await);
        }
        // Somebody else has a place, for which the newest of the flood has to leave.
        let mut other = begun(passwords.hash(at(2, "alice"), password("pw"))).await;
        let displaced = flood.pop().expect("the last").await;
        assert_eq!(displaced, Err(Error::TooManyRequests));
        let turns: Vec<_> = executor.0.lock().drain(..2).collect();
        for turn in turns {
            turn();
        }
        assert!(other.as_mut().await.is_ok());
        assert!(flood.swap_remove(0).await.is_ok());
        // Who is left when the process stops learns of it.
        executor.0.lock().clear();
        assert_eq!(flood.pop().expect("one").await, Err(Error::Stopped));
        let state = passwords.queue.0.lock();
        assert_eq!((state.turns, state.waiting.len()), (0, 0));
    }
}
