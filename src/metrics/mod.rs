//! A member's metrics, and their page for Prometheus.
//!
//! Events are counted at once in a cell of `Metrics`: an atomic addition without locks or text.
//! What the member knows anyway (leader, progress, sizes) is read once per scrape and passed in as
//! a `Scrape`. `table` names every metric and holds the cells of those without labels; `cell` holds
//! numbers; `grpc`, `labelled`, `operation` and `peer` find the cell for labels; `text` writes the
//! page. `Metrics` combines them.
//!
//! Nothing here reads a clock or the machine: times and figures are passed in.

mod cell;
mod grpc;
mod labelled;
mod operation;
mod peer;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::types::MemberId;

pub use grpc::Method;
pub use labelled::{CallKind, Feature, HEALTH_CHECKS, StreamFailure};
pub use operation::Operation;
pub use peer::PeerCells;
pub use table::{Scrape, Unlabelled};
pub use text::CONTENT_TYPE;

use labelled::Labelled;

/// A member's metrics: cells that are incremented where events happen, read by `render`.
pub struct Metrics {
    unlabelled: Unlabelled,
    labelled: Labelled,
}

/// Series without labels are counted in by name: `metrics.puts.increment()`.
impl Deref for Metrics {
    type Target = Unlabelled;

    fn deref(&self) -> &Unlabelled {
        &self.unlabelled
    }
}

impl Metrics {
    /// `extensive` adds the times of gRPC calls.
    pub fn new(server_id: MemberId, extensive: bool) -> Self {
        Self {
            unlabelled: Unlabelled::default(),
            labelled: Labelled::new(server_id, extensive),
        }
    }

    /// Sets the methods that the calls `grpc_*` name by their place in the list.
    pub fn with_methods(mut self, methods: &[Method]) -> Self {
        self.labelled.grpc = grpc::Grpc::new(methods, self.labelled.extensive);
        self
    }

    /// Sets the feature gates to show.
    pub fn with_features(mut self, features: Vec<Feature>) -> Self {
        self.labelled.features = features;
        self
    }

    /// Whether the times of gRPC calls are wanted.
    pub fn is_extensive(&self) -> bool {
        self.labelled.extensive
    }

    pub fn grpc_started(&self, method: usize) {
        self.labelled.grpc.started(method);
    }

    /// A message of a call was received.
    pub fn grpc_received(&self, method: usize) {
        self.labelled.grpc.received(method);
    }

    /// A message of a call was sent.
    pub fn grpc_sent(&self, method: usize) {
        self.labelled.grpc.sent(method);
    }

    /// A call ended.
    pub fn grpc_handled(&self, method: usize, code: Code) {
        self.labelled.grpc.handled(method, code);
    }

    /// How long a call took; counted where `is_extensive`.
    pub fn grpc_handling(&self, method: usize, took: Duration) {
        self.labelled.grpc.handling(method, took);
    }

    /// A call came in with this `client-api-version` metadata.
    pub fn client_request(&self, kind: CallKind, version: Option<&str>) {
        self.labelled
            .client_request(kind, version.unwrap_or("unknown"));
    }

    /// A request of a stream could not be received, though its client is still there.
    pub fn stream_failed(&self, failure: StreamFailure) {
        self.labelled.stream_failed(failure);
    }

    /// This member leads and did not promote a learner.
    pub fn learner_promotion_failed(&self, reason: &'static str) {
        self.labelled.learner_promotion_failed(reason);
    }

    /// The certificate for this role that is in use expires then, in seconds since 1970.
    pub fn certificate_expires(&self, role: &'static str, at: i64) {
        self.labelled.certificate_expires(role, at);
    }

    /// A proposal or a read was answered; an error of the state machine is a success here, as in
    /// etcd.
    pub fn requested(&self, operation: Operation, success: bool, took: Duration) {
        self.labelled.requested(operation, success, took);
    }

    /// The state machine applied a request.
    pub fn applied(&self, operation: Operation, success: bool, took: Duration) {
        self.labelled.applied(operation, success, took);
    }

    /// A range was read.
    pub fn ranged(&self, success: bool, took: Duration) {
        self.labelled.ranged(success, took);
    }

    /// The check with this index in `HEALTH_CHECKS` was made.
    pub fn health_checked(&self, check: usize, passed: bool) {
        self.labelled.health_checked(check, passed);
    }

    /// Sets which peers are members: the page shows no others.
    pub fn list_peers(&self, members: impl IntoIterator<Item = MemberId>) {
        self.labelled.peers.list(members);
    }

    /// The cells for traffic with a peer.
    pub fn peer(&self, peer: MemberId) -> Arc<PeerCells> {
        self.labelled.peers.cells(peer)
    }

    /// The page for Prometheus, of media type `CONTENT_TYPE`.
    pub fn render(&self, scrape: &Scrape) -> String {
        let mut page = text::Exposition::default();
        self.unlabelled.expose(scrape, &mut page);
        self.labelled.expose(scrape, &mut page);
        page.render()
    }
}
