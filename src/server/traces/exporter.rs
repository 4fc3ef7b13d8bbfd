//! Sends spans to the collector, and says in the log where that fails, once in a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::super::Error;
use crate::config::Tracing;
use crate::env::{Clock, SystemClock};
use crate::notices::Notices;

/// See the module. The library that it wraps says nothing itself.
#[derive(Debug)]
pub struct Exporter<E = Otlp> {
    to: E,
    collector: String,
    failures: Failures,
}

/// What failed since it was last said.
struct Failures {
    clock: Arc<dyn Clock>,
    notices: Notices,
    lost_spans: AtomicU64,
}

impl std::fmt::Debug for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Failures").field(&self.lost_spans).finish()
    }
}

impl Exporter {
    /// Connects when there is something to send.
    pub fn new(config: &Tracing, runtime: &tokio::runtime::Handle) -> Result<Self, Error> {
        let _runtime = runtime.enter();
        let collector = config.collector.to_string();
        let builder = Otlp::builder().with_tonic().with_endpoint(&collector);
        let to = builder
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
                lost_spans: AtomicU64::new(0),
            },
        }
    }
}

impl<E: SpanExporter> SpanExporter for Exporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.to.export(batch).await;
        if let Err(error) = &sent {
            let failures = &self.failures;
            failures.lost_spans.fetch_add(spans, Ordering::Relaxed);
            // Whatever the reason, it is one collector.
            if failures.notices.is_news("", failures.clock.now()) {
                tracing::warn!(
                    collector = self.collector,
                    %error,
                    "lost-spans" = failures.lost_spans.swap(0, Ordering::Relaxed),
                    "the collector of traces did not take spans; they are lost, and nothing else is affected"
                );
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.to.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}
