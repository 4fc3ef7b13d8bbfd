//! Groups linearizable reads into rounds: one read index request to the quorum serves all reads
//! that waited when it was sent.
//!
//! raft-rs silently drops such a request if there is no leader or the leader has not committed in
//! its term, and confuses requests with equal contexts. So contexts are unique, and a round without
//! a response repeats its request; a response to any of them will do, since all its reads arrived
//! before the first.

use crate::probe::{self, CoveragePoint, Defect};
use crate::types::MemberId;

/// Reads that may wait at once.
const MAX_WAITING: usize = 100_000;
/// Ticks after which a round repeats its request.
const RETRY_TICKS: u64 = 2;

struct UnconfirmedRead<T> {
    read: T,
    expires_at_tick: u64,
}

/// The reads of one round, and the contexts of its requests.
struct Round<T> {
    requests: Vec<u64>,
    asked_at_tick: u64,
    /// The term of the last request.
    term: u64,
    reads: Vec<UnconfirmedRead<T>>,
}

/// See the module.
pub struct ReadIndex<T> {
    member: MemberId,
    next_request: u64,
    /// Ticks that a read may wait.
    limit_ticks: u64,
    waiting: Vec<UnconfirmedRead<T>>,
    round: Option<Round<T>>,
}

impl<T> ReadIndex<T> {
    /// `first_request` must be a context that this member has not used before a restart.
    pub fn new(member: MemberId, first_request: u64, limit_ticks: u64) -> Self {
        Self {
            member,
            next_request: first_request,
            limit_ticks,
            waiting: Vec::new(),
            round: None,
        }
    }

    /// Adds a read; returns it if too many wait.
    pub fn push(&mut self, read: T, tick: u64) -> Result<(), T> {
        if self.len() >= MAX_WAITING {
            return Err(read);
        }
        let waiting = UnconfirmedRead {
            read,
            expires_at_tick: tick + self.limit_ticks,
        };
        match &mut self.round {
            Some(round) if probe::injected(Defect::ReadJoinsRound) => round.reads.push(waiting),
            _ => self.waiting.push(waiting),
        }
        Ok(())
    }

    /// The number of waiting reads.
    pub fn len(&self) -> usize {
        let asked = self.round.as_ref().map_or(0, |round| round.reads.len());
        self.waiting.len() + asked
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.round.is_none()
    }

    /// Returns the context of a request that is to be sent now.
    pub fn ask(&mut self, tick: u64, term: u64) -> Option<Vec<u8>> {
        match &mut self.round {
            None if self.waiting.is_empty() => return None,
            None => {
                self.round = Some(Round {
                    requests: Vec::new(),
                    asked_at_tick: tick,
                    term,
                    reads: std::mem::take(&mut self.waiting),
                });
            }
            Some(round) if round.term == term && tick < round.asked_at_tick + RETRY_TICKS => {
                return None;
            }
            Some(_) => probe::reached(CoveragePoint::ReadAskedAgain),
        }
        let round = self.round.as_mut()?;
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        round.requests.push(request);
        round.asked_at_tick = tick;
        round.term = term;
        let mut context = self.member.0.to_be_bytes().to_vec();
        context.extend_from_slice(&request.to_be_bytes());
        Some(context)
    }

    /// The reads that a response serves; none if it is another member's or too late.
    pub fn answered(&mut self, context: &[u8]) -> Vec<T> {
        let Some((member, request)) = context.split_first_chunk::<8>() else {
            return Vec::new();
        };
        let ours = *member == self.member.0.to_be_bytes();
        let asked = |round: &mut Round<T>| {
            let mut requests = round.requests.iter();
            let any = probe::injected(Defect::AnswerOfEarlierRound);
            ours && (any || requests.any(|asked| asked.to_be_bytes() == request))
        };
        let round = self.round.take_if(asked);
        let reads = round.map(|round| round.reads).unwrap_or_default();
        reads.into_iter().map(|waiting| waiting.read).collect()
    }

    /// Takes the reads that have expired.
    pub fn expired(&mut self, tick: u64) -> Vec<T> {
        let mut expired = Vec::new();
        let is_expired = |waiting: &mut UnconfirmedRead<T>| waiting.expires_at_tick <= tick;
        expired.extend(self.waiting.extract_if(.., is_expired));
        if let Some(round) = &mut self.round {
            expired.extend(round.reads.extract_if(.., is_expired));
            if round.reads.is_empty() {
                self.round = None;
            }
        }
        expired.into_iter().map(|waiting| waiting.read).collect()
    }

    /// Takes out all reads.
    pub fn drain(&mut self) -> Vec<T> {
        self.expired(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> ReadIndex<&'static str> {
        ReadIndex::new(MemberId(7), 100, 50)
    }

    fn push(reads: &mut ReadIndex<&'static str>, read: &'static str, tick: u64) {
        assert_eq!(reads.push(read, tick), Ok(()));
    }

    #[test]
    fn one_round_serves_all_that_waited() {
        let mut reads = reads();
        push(&mut reads, "a", 0);
        push(&mut reads, "b", 0);
        let first = reads.ask(0, 1).expect("a request");
        push(&mut reads, "c", 0);
        assert_eq!(reads.ask(0, 1), None);
        assert_eq!(reads.answered(&first), ["a", "b"]);
        assert_eq!(reads.answered(&first), [""; 0]);
        let second = reads.ask(0, 1).expect("a request");
        assert_ne!(first, second);
        assert_eq!(reads.answered(&second), ["c"]);
        assert!(reads.is_empty());
    }

    #[test]
    fn a_round_asks_again_and_takes_any_answer() {
        let mut reads = reads();
        push(&mut reads, "a", 0);
        let first = reads.ask(0, 1).expect("a request");
        assert_eq!(reads.ask(1, 1), None);
        let second = reads.ask(2, 1).expect("asked again after a while");
        let third = reads.ask(2, 2).expect("asked again of another leader");
        assert!(first != second && second != third && first != third);
        assert_eq!(reads.answered(&first), ["a"]);
    }

    #[test]
    fn answers_for_others_serve_nobody() {
        let mut reads = reads();
        push(&mut reads, "a", 0);
        let context = reads.ask(0, 1).expect("a request");
        let mut other = context.clone();
        other[7] ^= 1;
        assert_eq!(reads.answered(&other), [""; 0]);
        assert_eq!(reads.answered(b"short"), [""; 0]);
        assert_eq!(reads.answered(&context), ["a"]);
    }

    #[test]
    fn reads_that_wait_too_long_are_given_up() {
        let mut reads = reads();
        push(&mut reads, "a", 0);
        assert!(reads.ask(0, 1).is_some());
        push(&mut reads, "b", 10);
        assert_eq!(reads.expired(49), [""; 0]);
        assert_eq!(reads.expired(50), ["a"]);
        assert_eq!(reads.drain(), ["b"]);
        assert!(reads.is_empty());
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut reads = ReadIndex::new(MemberId(7), 100, 50);
        for number in 0..MAX_WAITING {
            // Some of them are in a round.
            if number == 10 {
                assert!(reads.ask(0, 1).is_some());
            }
            assert_eq!(reads.push(number, 0), Ok(()));
        }
        assert_eq!(reads.push(MAX_WAITING, 0), Err(MAX_WAITING));
        assert_eq!(reads.expired(50).len(), MAX_WAITING);
        assert_eq!(reads.push(0, 50), Ok(()));
    }
}
