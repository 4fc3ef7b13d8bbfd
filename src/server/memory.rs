//! The parts of the memory budget that clients fill, and what all of them hold.

use std::sync::Arc;

use crate::api::ApiSettings;
use crate::budget::streams::OpenStreams;
use crate::budget::unsent::Unsent;
use crate::budget::{Budget, Ledger, Part, Requests, Share};
use crate::service::handle::Handle;

/// See the module.
pub struct OfClients {
    pub requests: Arc<Requests>,
    pub answers: Arc<Share>,
    pub unsent: Arc<Unsent>,
    pub streams: Arc<OpenStreams>,
}

impl OfClients {
    pub fn new(budget: Budget, settings: &ApiSettings) -> Self {
        let requests = Requests::new(budget.bytes(Part::Requests), settings.max_message_bytes());
        Self {
            requests: Arc::new(requests),
            answers: Share::new(budget.bytes(Part::Answers)),
            unsent: Unsent::new(budget.bytes(Part::Unsent)),
            streams: OpenStreams::beside(budget.total_bytes),
        }
    }

    /// What these parts and those of a member hold.
    pub fn ledger(&self, budget: Budget, handle: &Handle) -> Ledger {
        let mut ledger = Ledger::default();
        let shared = handle.shared();
        for (name, part) in [
            ("memtables", Part::Memtables),
            ("block_cache", Part::BlockCache),
        ] {
            let (shared, limit) = (shared.clone(), budget.bytes(part) as u64);
            let figures = move || {
                let size = shared.engine().size();
                match part {
                    Part::Memtables => [size.memtable_bytes, limit],
                    _ => [size.block_cache_bytes, limit],
                }
            };
            ledger.add(name, Box::new(figures));
        }
        ledger.add_share("requests", self.requests.share());
        let unread = self.requests.unread().clone();
        let figures = move || [unread.bytes(), unread.limit_bytes()].map(|bytes| bytes as u64);
        ledger.add("requests_unread", Box::new(figures));
        let proposing = handle.clone();
        ledger.add(
            "requests_proposed",
            Box::new(move || proposing.proposed_bytes()),
        );
        ledger.add_share("answers", &self.answers);
        let unsent = self.unsent.clone();
        let figures = move || [unsent.bytes(), unsent.limit_bytes()].map(|bytes| bytes as u64);
        ledger.add("answers_unsent", Box::new(figures));
        let streams = self.streams.clone();
        let figures = move || [streams.bytes(), streams.limit_bytes()].map(|bytes| bytes as u64);
        ledger.add("streams", Box::new(figures));
        ledger.add_share("watches", shared.hub.share());
        ledger.add_share("watches_queued", shared.hub.names());
        ledger
    }
}
