//! Renewals of leases: of each lease one is under way, however many ask for it. Those who ask meanwhile
//! share the next: an answer says how long a lease lasts from a time after it was asked for, so one that
//! was sent before will not do. Pure.

use std::collections::BTreeMap;

use prost::DecodeError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::group::{Core, Sent, StreamId};
use crate::env::Boxed;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use crate::transport::Channel;

/// See the module.
#[derive(Default)]
pub struct Renewals {
    /// Leases with a renewal under way.
    leases: BTreeMap<i64, Waiting>,
    sent: Vec<Sent<Self>>,
}

/// Who has asked, once for each answer.
#[derive(Default)]
struct Waiting {
    /// For what is under way.
    now: Vec<StreamId>,
    /// Since it was sent.
    next: Vec<StreamId>,
}

impl Renewals {
    fn renew(&mut self, id: i64) {
        let request = LeaseKeepAliveRequest { id };
        self.sent.push(Sent::ToCluster(request));
    }
}

impl Core for Renewals {
    type Request = LeaseKeepAliveRequest;
    type Answer = LeaseKeepAliveResponse;
    type Counts = ();

    fn open(&mut self, _: StreamId) {}

    fn close(&mut self, stream: StreamId) {
        for asked in self.leases.values_mut() {
            asked.now.retain(|one| *one != stream);
            asked.next.retain(|one| *one != stream);
        }
    }

    fn take(&mut self, stream: StreamId, request: LeaseKeepAliveRequest) {
        let id = request.id;
        match self.leases.get_mut(&id) {
            Some(asked) => asked.next.push(stream),
            None => {
                let asked = self.leases.entry(id).or_default();
                asked.now.push(stream);
                self.renew(id);
            }
        }
    }

    fn heard(&mut self, answer: LeaseKeepAliveResponse) -> Result<(), DecodeError> {
        let Some(asked) = self.leases.remove(&answer.id) else {
            return Ok(());
        };
        for stream in asked.now {
            self.sent.push(Sent::ToClient(stream, answer));
        }
        if !asked.next.is_empty() {
            let asked = Waiting {
                now: asked.next,
                next: Vec::new(),
            };
            self.leases.insert(answer.id, asked);
            self.renew(answer.id);
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
}
