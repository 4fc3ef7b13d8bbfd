//! Sends spans to the collector, and says in the log where that fails, once in a while.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::{SpanExporter as Otlp, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use tonic::transport::Endpoint;

use super::super::Error;
use crate::config::Tracing;
use crate::env::{Clock, SystemClock};
use crate::notices::Notices;

/// To connect to the collector, and for it to answer.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);

/// See the module. The library that it wraps says nothing itself.
#[derive(Debug)]
pub struct Exporter<E = Otlp> {
    to: E,
    collector: String,
    failures: Failures,
}

struct Failures {
    clock: Arc<dyn Clock>,
    notices: Notices,
    lost: Mutex<Lost>,
}

/// What failed since the last warning.
#[derive(Debug, Default)]
struct Lost {
    spans: u64,
    /// The last reason.
    error: String,
}

impl std::fmt::Debug for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Failures").field(&self.lost).finish()
    }
}

impl Exporter {
    /// Connects when there is something to send.
    pub fn new(config: &Tracing, runtime: &tokio::runtime::Handle) -> Result<Self, Error> {
        Self::limited(config, runtime, EXPORT_LIMIT)
    }

    pub fn limited(
        config: &Tracing,
        runtime: &tokio::runtime::Handle,
        limit: Duration,
    ) -> Result<Self, Error> {
        let _runtime = runtime.enter();
        let collector = config.collector.to_string();
        // Of its own limit the library counts no time until it is connected.
        let channel = Endpoint::from(config.collector.clone())
            .connect_timeout(limit)
            .timeout(limit)
            .connect_lazy();
        let to = Otlp::builder()
            .with_tonic()
            .with_channel(channel)
            .build()
            .map_err(|error| Error::Refused(format!("cannot send traces: {error}")))?;
        Ok(Self::over(to, collector, Arc::new(SystemClock::new())))
    }
}

impl<E> Exporter<E> {
    pub fn over(to: E, collector: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            to,
            collector,
            failures: Failures {
                clock,
                notices: Notices::default(),
                lost: Mutex::default(),
            },
        }
    }
}

impl Failures {
    /// Warns, unless it did so a short while ago.
    fn note(&self, collector: &str, spans: u64, error: &OTelSdkError) {
        let mut lost = self.lost.lock();
        lost.spans += spans;
        lost.error = error.to_string();
        // Whatever the reason, it is one collector.
        if self.notices.is_news("", self.clock.now()) {
            lost.report(collector);
        }
    }
}

impl Lost {
    fn report(&mut self, collector: &str) {
        let Self { spans, error } = std::mem::take(self);
        tracing::warn!(
            collector,
            error,
            "lost-spans" = spans,
            "the collector of traces did not take spans; they are lost, and nothing else is affected"
        );
    }
}

impl<E: SpanExporter> SpanExporter for Exporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.to.export(batch).await;
        if let Err(error) = &sent {
            self.failures.note(&self.collector, spans, error);
        }
        sent
    }

    /// Behind the last export: of what failed since the last warning there will be no other.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let mut lost = self.failures.lost.lock();
        if lost.spans > 0 {
            lost.report(&self.collector);
        }
        drop(lost);
        self.to.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}
