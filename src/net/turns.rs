//! Turns at the decoding of large header blocks.
//!
//! A header of one byte is a name and a value, so that a block of 24 KB is milliseconds of a
//! processor, and the library decodes as much of a connection as has come in one go. Connections that
//! send such blocks hand them to the library in pieces, one connection at a time: the other threads
//! serve everybody else. A turn ends as soon as the library wants anything of the connection again,
//! which it does when it has decoded the piece. A connection whose client does not read gives its
//! place in the line away: the library takes nothing of it before it can write.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who waits for so long continues without a turn: the one who has it is stuck.
const TURN_LIMIT: Duration = Duration::from_secs(1);

/// What the connections of a process share.
#[derive(Clone, Debug)]
pub struct BlockTurns(Arc<Semaphore>);

impl Default for BlockTurns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl BlockTurns {
    /// One more connection.
    pub fn connection(&self) -> BlockTurn {
        BlockTurn {
            all: self.clone(),
            state: TurnState::None,
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
}

impl BlockTurn {
    /// Resolves when the connection has its turn.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match &mut self.state {
                TurnState::Has { .. } => return Poll::Ready(()),
                TurnState::None => {
                    let permit = self.all.0.clone().acquire_owned();
                    TurnState::Waits(Box::pin(async {
                        tokio::time::timeout(TURN_LIMIT, permit).await.ok()?.ok()
                    }))
                }
                TurnState::Waits(taking) => match taking.as_mut().poll(cx) {
                    Poll::Ready(_permit) => TurnState::Has { _permit },
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Takes the connection out of the line, and its turn from it.
    pub fn give_up(&mut self) {
        self.state = TurnState::None;
    }

    /// Ends the turn; false where the connection had none.
    pub fn end(&mut self) -> bool {
        let had = matches!(self.state, TurnState::Has { .. });
        if had {
            self.give_up();
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
