//! Turns at the decoding of large header blocks.
//!
//! A header of one byte is a name and a value, so that a block of 24 KB is milliseconds of a
//! processor, and the library decodes as much of a connection as has come in one go. Connections that
//! send such blocks hand them to the library in pieces, one connection at a time: the other threads
//! serve everybody else. A turn ends as soon as the library wants anything of the connection again,
//! which it does when it has decoded the piece. A connection whose client does not read gives its
//! place in the line away, as the library may take nothing of it before it can write.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Who waits for so long, while nobody's turn ends, continues without one: the connection that has it
/// is stuck.
const TURN_LIMIT: Duration = Duration::from_secs(1);
/// The same for who had to give its place away for so long.
const PLACELESS_LIMIT: Duration = Duration::from_secs(5);

/// What the connections of a process share.
#[derive(Clone, Debug)]
pub struct BlockTurns(Arc<TurnLine>);

#[derive(Debug)]
struct TurnLine {
    turn: Arc<Semaphore>,
    /// How many turns have ended.
    ended: AtomicU64,
    placeless_limit: Duration,
}

impl Default for BlockTurns {
    fn default() -> Self {
        Self::with_limit(PLACELESS_LIMIT)
    }
}

impl BlockTurns {
    fn with_limit(placeless_limit: Duration) -> Self {
        Self(Arc::new(TurnLine {
            turn: Arc::new(Semaphore::new(1)),
            ended: AtomicU64::new(0),
            placeless_limit,
        }))
    }

    /// One more connection.
    pub fn connection(&self) -> BlockTurn {
        BlockTurn {
            all: self.clone(),
            state: TurnState::None,
            placeless_since: None,
        }
    }
}

impl TurnLine {
    /// Waits for a turn; none where it has to be done without.
    async fn take(self: Arc<Self>) -> Option<OwnedSemaphorePermit> {
        let mut turn = std::pin::pin!(self.turn.clone().acquire_owned());
        loop {
            let ended = self.ended.load(Ordering::Relaxed);
            match tokio::time::timeout(TURN_LIMIT, turn.as_mut()).await {
                Ok(permit) => return permit.ok(),
                Err(_) if self.ended.load(Ordering::Relaxed) == ended => return None,
                // The line is long.
                Err(_) => {}
            }
        }
    }
}

type Taking = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

enum TurnState {
    None,
    Waits(Taking),
    /// Without a permit where the wait was over.
    Has {
        _permit: Option<OwnedSemaphorePermit>,
    },
}

/// That of one connection.
pub struct BlockTurn {
    all: BlockTurns,
    state: TurnState,
    /// When it gave its place away first, since it had a turn.
    placeless_since: Option<Instant>,
}

impl BlockTurn {
    /// Resolves when the connection has its turn.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let since = self.placeless_since;
            self.state = match &mut self.state {
                TurnState::Has { .. } => return Poll::Ready(()),
                _ if since.is_some_and(|since| since.elapsed() > self.all.0.placeless_limit) => {
                    TurnState::Has { _permit: None }
                }
                TurnState::None => TurnState::Waits(Box::pin(self.all.0.clone().take())),
                TurnState::Waits(taking) => match taking.as_mut().poll(cx) {
                    Poll::Ready(_permit) => TurnState::Has { _permit },
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Takes the connection out of the line, and its turn from it.
    pub fn give_up(&mut self) {
        if matches!(self.state, TurnState::Waits(_)) {
            self.placeless_since.get_or_insert_with(Instant::now);
        }
        self.end();
        self.state = TurnState::None;
    }

    /// Ends the turn; false where the connection had none.
    pub fn end(&mut self) -> bool {
        let had = matches!(self.state, TurnState::Has { .. });
        if had {
            (self.state, self.placeless_since) = (TurnState::None, None);
            self.all.0.ended.fetch_add(1, Ordering::Relaxed);
        }
        had
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn poll_once(mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(poll(cx))).await
    }

    /// A connection that cannot write gives its place away again and again, and is not kept for ever.
    #[tokio::test]
    async fn who_never_keeps_its_place_continues_without_a_turn() {
        let limit = Duration::from_millis(200);
        let all = BlockTurns::with_limit(limit);
        let [mut busy, mut stuck] = [all.connection(), all.connection()];
        let begun = Instant::now();
        poll_fn(|cx| busy.poll_take(cx)).await;
        // Others have their turns all the while: the line moves.
        while poll_once(|cx| stuck.poll_take(cx)).await.is_pending() {
            assert!(begun.elapsed() < 50 * limit, "it waits");
            stuck.give_up();
            tokio::time::sleep(limit / 20).await;
            assert!(busy.end());
            poll_fn(|cx| busy.poll_take(cx)).await;
        }
        assert!(begun.elapsed() > limit, "{:?}", begun.elapsed());
        // Only once: behind a turn the time begins anew.
        assert!(stuck.end());
        assert!(poll_once(|cx| stuck.poll_take(cx)).await.is_pending());
        // And it is that of giving up alone: who keeps its place waits for its turn.
        tokio::time::sleep(2 * limit).await;
        assert!(poll_once(|cx| stuck.poll_take(cx)).await.is_pending());
        assert!(busy.end());
        poll_fn(|cx| stuck.poll_take(cx)).await;
    }

    #[tokio::test]
    async fn one_has_the_turn_and_nobody_waits_for_ever() {
        let all = BlockTurns::default();
        let [mut first, mut second] = [all.connection(), all.connection()];
        assert!(!first.end());
        poll_fn(|cx| first.poll_take(cx)).await;
        let wait = tokio::time::timeout(TURN_LIMIT / 20, poll_fn(|cx| second.poll_take(cx)));
        assert!(wait.await.is_err());
        assert!(!second.end(), "it has none yet");
        // A place in the line that is given up is nobody's.
        let mut third = all.connection();
        assert!(poll_once(|cx| third.poll_take(cx)).await.is_pending());
        second.give_up();
        assert!(first.end());
        poll_fn(|cx| third.poll_take(cx)).await;
        third.give_up();
        poll_fn(|cx| first.poll_take(cx)).await;
        assert!(poll_once(|cx| second.poll_take(cx)).await.is_pending());
        assert!(first.end());
        poll_fn(|cx| second.poll_take(cx)).await;
        // The one who has it is stuck.
        poll_fn(|cx| first.poll_take(cx)).await;
        assert!(first.end() && second.end());
        // One that goes away gives it back.
        poll_fn(|cx| first.poll_take(cx)).await;
        drop(first);
        let at_once = tokio::time::timeout(TURN_LIMIT / 2, poll_fn(|cx| second.poll_take(cx)));
        assert!(at_once.await.is_ok());
    }
}
