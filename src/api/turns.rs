//! What a call waits for before its answer is made: its turn to read much, and room for what it
//! reads. How large an answer will be is known before, from the state; who waits for room
//! holds its request and nothing else.

use std::time::Duration;

use super::answers::{Answers, answer_limit_bytes};
use crate::budget::{Held, TakeBytes};
use crate::env;
use crate::error::Error;
use crate::mvcc;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::service::caller::Caller;
use crate::service::rpcs::{self, Costly};
use crate::state::answer_size;

/// Of reads that may take long.
const TURNS: Costly = rpcs::turns_of(rpcs::KV, "Txn");
/// Answers up to this size wait for nobody: few would be as many as that takes. They are counted,
/// and where far too much is they are refused before anything is done.
const PROMPT_BYTES: usize = 32 << 10;
const MOST_SHARES: usize = 2;
/// How long a call waits for others whose large answers have not been read.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

impl Answers {
    /// Runs a read that may take long, off the network's threads.
    pub async fn read<T, F>(&self, caller: &Caller, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> mvcc::Result<T> + Send + 'static,
    {
        let handle = self.handle();
        let turn = handle.turns(TURNS).clone().acquire_owned();
        let permit = handle.within(caller, turn).await?;
        let work = move || {
            let _permit = permit;
            read()
        };
        let done = handle.blocking(work).await;
        let result = done.map_err(|_| Error::Stopped)?;
        result.map_err(|error| handle.refusal(error))
    }

    /// Room for the answer to what is proposed, where that may be large.
    pub async fn room_for_proposal(
        &self,
        caller: &Caller,
        request: &InternalRaftRequest,
    ) -> Result<Option<Held>, Error> {
        if !answer_size::may_be_large(request) || !self.handle().seems_permitted(caller, request) {
            return self.check_room().map(|()| None);
        }
        // Boxed, since all who write would otherwise hold the space for it.
        Box::pin(self.room_for_what_it_answers(caller, request)).await
    }

    async fn room_for_what_it_answers(
        &self,
        caller: &Caller,
        request: &InternalRaftRequest,
    ) -> Result<Option<Held>, Error> {
        if let Some(bytes) = self.handle().auth().answer_bytes(request) {
            return self.room_for(caller, bytes).await;
        }
        let (answers, request) = (self.clone(), request.clone());
        let room = self.read(caller, move || answers.measure_proposal(&request));
        let room = room.await?;
        self.wait(caller, room).await.map(Some)
    }

    /// Room for an answer of about this size; none is needed for a small one.
    pub async fn room_for(&self, caller: &Caller, bytes: usize) -> Result<Option<Held>, Error> {
        if bytes <= PROMPT_BYTES {
            return self.check_room().map(|()| None);
        }
        self.wait(caller, self.share().take(bytes)).await.map(Some)
    }

    /// Whether there is room for an answer that does not wait for it.
    fn check_room(&self) -> Result<(), Error> {
        let share = self.share();
        match share.used_bytes() > share.limit_bytes().saturating_mul(MOST_SHARES) {
            true => Err(Error::TooManyRequests),
            false => Ok(()),
        }
    }

    async fn wait(&self, caller: &Caller, room: TakeBytes) -> Result<Held, Error> {
        let clock = &self.handle().shared().clock;
        let room = env::timeout(clock.as_ref(), ROOM_LIMIT, room);
        let room = self.handle().within(caller, room).await?;
        room.and_then(Result::ok).ok_or(Error::TooManyRequests)
    }

    /// What a write would answer now, or that it would be too large.
    fn measure_proposal(&self, request: &InternalRaftRequest) -> mvcc::Result<TakeBytes> {
        let share = self.share();
        let limit_bytes = answer_limit_bytes(share.limit_bytes());
        let view = self.handle().view();
        let size = answer_size::of_now(&view.pinned(), request, limit_bytes);
        match size {
            Ok(bytes) if bytes > limit_bytes => Err(Error::AnswerTooLarge.into()),
            Ok(bytes) => Ok(share.take(bytes)),
            // Apply refuses it as well, if it is still so then.
            Err(mvcc::Error::Refused(_)) => Ok(share.take(0)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Response;

    use super::*;
    use crate::api::body;
    use crate::budget::Share;
    use crate::proto::etcdserverpb::MemberListResponse;
    use crate::service::fixture;

    #[tokio::test]
    async fn a_large_answer_takes_its_room_before_it_is_made_and_until_it_is_taken() {
        let share = Share::new(400 << 10);
        let answers = Answers::new(fixture::single_member(), share.clone());
        let caller = Caller::nobody();
        let small = answers.room_for(&caller, PROMPT_BYTES).await;
        assert!(small.expect("needs none").is_none());
        let held = answers.room_for(&caller, 100 << 10).await.expect("room");
        assert_eq!(share.used_bytes(), 100 << 10);
        // Less came of it.
        let message = MemberListResponse {
            members: vec![Default::default(); 20_000],
            ..Default::default()
        };
        let mut response: Response<_> = answers.respond(message, held).expect("may be sent");
        assert_eq!(share.used_bytes(), 40_000);
        let body = body::body_of(response.extensions_mut());
        assert!(body.is_some());
        // The next one waits for it.
        let mut next = std::pin::pin!(answers.room_for(&caller, 290 << 10));
        let waits = tokio::time::timeout(Duration::from_millis(20), next.as_mut());
        assert!(waits.await.is_err());
        drop(body);
        let next = next.await.expect("room");
        assert_eq!(next.map(|held| held.bytes()), Some(290 << 10));
        assert_eq!(share.used_bytes(), 0);
    }
}
