//! Renewals of leases: of each lease one is under way, however many ask for it. Those who ask meanwhile
//! share the next: an answer says how long a lease lasts from a time after it was asked for, so one that
//! was sent before will not do. A client that has sent its last request gets its answers, and then the
//! end of its stream. Pure.

use std::collections::{BTreeMap, BTreeSet};

use prost::DecodeError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::group::{Core, MAX_QUEUED, Sent, StreamId};
use super::namespace::Namespace;
use crate::env::Boxed;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, RangeRequest};
use crate::transport::Channel;

/// See the module.
#[derive(Default)]
pub struct Renewals {
    /// Leases with a renewal under way.
    leases: BTreeMap<i64, RenewalWaiters>,
    /// Clients that have sent their last request and wait for answers.
    asked_all: BTreeSet<StreamId>,
    sent: Vec<Sent<Self>>,
}

/// Who has asked, and how often: each gets as many answers.
#[derive(Default)]
struct RenewalWaiters {
    /// For what is under way.
    now: BTreeMap<StreamId, usize>,
    /// Since it was sent.
    next: BTreeMap<StreamId, usize>,
}

/// Of one client for one lease. A stream that gets as many answers at once is ended.
const MAX_ASKED: usize = MAX_QUEUED + 1;

fn count(waiting: &mut BTreeMap<StreamId, usize>, stream: StreamId) {
    let asked = waiting.entry(stream).or_default();
    *asked = (*asked + 1).min(MAX_ASKED);
}

impl Renewals {
    fn waits(&self, stream: StreamId) -> bool {
        let mut all = self.leases.values();
        all.any(|asked| asked.now.contains_key(&stream) || asked.next.contains_key(&stream))
    }

    /// Ends a client's stream, if it asks no more and waits for nothing more.
    fn end(&mut self, stream: StreamId) {
        if self.asked_all.contains(&stream) && !self.waits(stream) {
            self.asked_all.remove(&stream);
            self.sent.push(Sent::End(stream));
        }
    }

    fn renew(&mut self, id: i64) {
        let request = LeaseKeepAliveRequest { id };
        self.sent.push(Sent::ToCluster(request));
    }
}

impl Core for Renewals {
    type Request = LeaseKeepAliveRequest;
    type Answer = LeaseKeepAliveResponse;
    type Counts = ();
    const ANSWERS_EACH: bool = true;

    fn open(&mut self, _: StreamId) {}

    fn close(&mut self, stream: StreamId) {
        for asked in self.leases.values_mut() {
            asked.now.remove(&stream);
            asked.next.remove(&stream);
        }
        self.asked_all.remove(&stream);
    }

    fn take(&mut self, stream: StreamId, request: LeaseKeepAliveRequest) {
        let id = request.id;
        match self.leases.get_mut(&id) {
            Some(asked) => count(&mut asked.next, stream),
            None => {
                let asked = self.leases.entry(id).or_default();
                count(&mut asked.now, stream);
                self.renew(id);
            }
        }
    }

    fn permission_check(_: &Namespace, _: &LeaseKeepAliveRequest) -> Option<RangeRequest> {
        None
    }

    fn refused(&mut self, _: StreamId, _: &Status) {}

    fn asked_all(&mut self, stream: StreamId) {
        self.asked_all.insert(stream);
        self.end(stream);
    }

    fn heard(&mut self, answer: LeaseKeepAliveResponse) -> Result<(), DecodeError> {
        let Some(asked) = self.leases.remove(&answer.id) else {
            return Ok(());
        };
        for (stream, times) in &asked.now {
            for _ in 0..*times {
                self.sent.push(Sent::ToClient(*stream, answer));
            }
        }
        if !asked.next.is_empty() {
            let asked = RenewalWaiters {
                now: asked.next,
                next: BTreeMap::new(),
            };
            self.leases.insert(answer.id, asked);
            self.renew(answer.id);
        }
        for stream in asked.now.into_keys() {
            self.end(stream);
        }
        Ok(())
    }

    fn lost(&mut self) {
        // Nobody waits for some of them any more.
        self.leases
            .retain(|_, asked| !asked.now.is_empty() || !asked.next.is_empty());
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        for id in ids {
            self.renew(id);
        }
    }

    fn sent(&mut self) -> Vec<Sent<Self>> {
        std::mem::take(&mut self.sent)
    }

    fn counts(&self) {}

    fn add(_: &mut (), _: &()) {}

    fn call(
        channel: Channel,
        request: Request<ReceiverStream<LeaseKeepAliveRequest>>,
    ) -> Boxed<Result<Response<Streaming<LeaseKeepAliveResponse>>, Status>> {
        let origin = channel.origin();
        let mut client = LeaseClient::with_origin(channel, origin);
        Box::pin(async move { client.lease_keep_alive(request).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent: `renew LEASE`, or `CLIENT LEASE TTL`.
    fn sent(renewals: &mut Renewals) -> String {
        let all = renewals.sent().into_iter().map(|sent| match sent {
            Sent::ToCluster(request) => format!("renew {}", request.id),
            Sent::ToClient(stream, answer) => format!("{stream}: {} {}", answer.id, answer.ttl),
            Sent::End(stream) => format!("{stream}: end"),
        });
        all.collect::<Vec<_>>().join(", ")
    }

    fn ask(renewals: &mut Renewals, stream: StreamId, id: i64) -> String {
        renewals.take(stream, LeaseKeepAliveRequest { id });
        sent(renewals)
    }

    fn hear(renewals: &mut Renewals, id: i64, ttl: i64) -> String {
        let answer = LeaseKeepAliveResponse {
            id,
            ttl,
            ..Default::default()
        };
        renewals.heard(answer).expect("is read");
        sent(renewals)
    }

    #[test]
    fn who_asks_meanwhile_shares_the_next() {
        let mut all = Renewals::default();
        assert_eq!(ask(&mut all, 1, 7), "renew 7");
        assert_eq!(ask(&mut all, 2, 7), "");
        assert_eq!(ask(&mut all, 3, 7), "");
        assert_eq!(ask(&mut all, 3, 8), "renew 8");
        assert_eq!(hear(&mut all, 7, 60), "1: 7 60, renew 7");
        assert_eq!(hear(&mut all, 7, 59), "2: 7 59, 3: 7 59");
        assert_eq!(hear(&mut all, 7, 58), "");
        assert_eq!(hear(&mut all, 8, 0), "3: 8 0");
        assert_eq!(ask(&mut all, 1, 7), "renew 7");
    }

    #[test]
    fn a_lost_stream_costs_nobody_an_answer() {
        let mut all = Renewals::default();
        ask(&mut all, 1, 7);
        ask(&mut all, 2, 7);
        ask(&mut all, 3, 8);
        all.close(3);
        all.lost();
        assert_eq!(sent(&mut all), "renew 7");
        assert_eq!(hear(&mut all, 7, 60), "1: 7 60, renew 7");
        all.close(2);
        assert_eq!(hear(&mut all, 7, 60), "");
        assert_eq!(ask(&mut all, 1, 7), "renew 7");
    }

    #[test]
    fn who_asks_no_more_gets_its_answers_and_the_end() {
        let mut all = Renewals::default();
        ask(&mut all, 1, 7);
        ask(&mut all, 2, 7);
        all.asked_all(1);
        all.asked_all(2);
        assert_eq!(sent(&mut all), "");
        assert_eq!(hear(&mut all, 7, 60), "1: 7 60, renew 7, 1: end");
        all.lost();
        assert_eq!(sent(&mut all), "renew 7");
        assert_eq!(hear(&mut all, 7, 60), "2: 7 60, 2: end");
        all.asked_all(3);
        assert_eq!(sent(&mut all), "3: end");
    }

    #[test]
    fn what_a_client_asks_while_nothing_is_answered_is_bounded() {
        let mut all = Renewals::default();
        for _ in 0..MAX_ASKED {
            ask(&mut all, 1, 7);
        }
        assert_eq!(hear(&mut all, 7, 60), "1: 7 60, renew 7");
        for _ in 0..2 * MAX_ASKED {
            ask(&mut all, 1, 7);
        }
        assert_eq!(hear(&mut all, 7, 60).matches("1: 7 60").count(), MAX_QUEUED);
        assert_eq!(hear(&mut all, 7, 60).matches("1: 7 60").count(), MAX_ASKED);
    }
}
