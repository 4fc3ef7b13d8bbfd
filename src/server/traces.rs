//! Traces for an OpenTelemetry collector: which calls are in one, how their spans are named, and
//! that finished ones are sent away, by OTLP over gRPC.
//!
//! A call is in its client's trace if that says so in `traceparent` (W3C's), and else begins one, as
//! often as the rate says; all that happens below its span is in the same trace. The decision is
//! made once, before the call does anything: one that is in no trace has no span.
//!
//! Spans that have ended wait in a queue of the library's, from which a thread of its own sends
//! them. Where the queue is full they are lost: neither a request nor the end of the process waits
//! for a collector.

mod exporter;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracerProvider, SpanProcessor};
use tonic::Code;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{self, Filter};
use tracing_subscriber::registry::LookupSpan;

use super::Error;
use crate::api::traces::Begun;
use crate::api::traces::Traces as CallTraces;
use crate::config::{MILLION, Tracing};
use crate::trace::is_traced;
use crate::types::VERSION;
use exporter::Exporter;

/// How long a stop waits for the collector to take what is left.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Traces(Arc<Parts>);

struct Parts {
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
    /// Whether a call may begin a trace.
    begins: bool,
}

impl Traces {
    /// Begins to send spans away, from a thread of its own; the connection is the runtime's.
    pub fn start(config: &Tracing, runtime: &tokio::runtime::Handle) -> Result<Self, Error> {
        let exporter = Exporter::new(config, runtime)?;
        let queue = BatchSpanProcessor::builder(exporter).build();
        Ok(Self::with(config, queue))
    }

    fn with(config: &Tracing, processor: impl SpanProcessor + 'static) -> Self {
        let begins = config.samples_per_million > 0;
        let root = match begins {
            true => {
                let rate = f64::from(config.samples_per_million) / f64::from(MILLION);
                Sampler::TraceIdRatioBased(rate)
            }
            false => Sampler::AlwaysOff,
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .with_resource(resource(config))
            .build();
        Self(Arc::new(Parts {
            provider,
            propagator: TraceContextPropagator::new(),
            begins,
        }))
    }

    /// Receives the spans of `trace`, and nothing else.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let scope = InstrumentationScope::builder("etched").with_version(VERSION);
        let tracer = self.0.provider.tracer_with_scope(scope.build());
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Spans name those above them, and none is entered.
            .with_context_activation(false)
            .with_filter(OfTraces)
    }

    /// Sends what is left, for a while.
    pub async fn stop(self) {
        let sending = tokio::task::spawn_blocking(move || {
            if let Err(error) = self.0.provider.shutdown_with_timeout(STOP_LIMIT) {
                tracing::warn!(%error, "the last spans of traces may not have reached the collector");
            }
        });
        // One that panicked has said so.
        let _ = sending.await;
    }
}

/// As etcd's: what the flags say, and before that the environment.
fn resource(config: &Tracing) -> Resource {
    let id = config.instance_id.clone();
    Resource::builder_empty()
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_service_name(config.service_name.clone())
        .with_attributes(id.map(|id| KeyValue::new("service.instance.id", id)))
        .build()
}

/// As much as W3C wants everybody to pass on.
const TRACE_STATE_BYTES: usize = 512;

/// Whether a `traceparent` has W3C's form, as far as etcd's library insists on it and ours does not:
/// all digits of each number and no sign, and in version 0 no flag that it does not know.
fn is_whole(traceparent: &str) -> bool {
    let mut parts = traceparent.split('-');
    let mut is_next = |length| {
        let part = parts.next().unwrap_or_default();
        part.len() == length && part.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let are_whole = is_next(2) && is_next(32) && is_next(16) && is_next(2);
    let flags = traceparent.get(FLAGS_AT..FLAGS_AT + 2);
    let are_known = matches!(flags, Some("00" | "01" | "02" | "03"));
    are_whole && (are_known || !traceparent.starts_with("00-"))
}

/// Where a `traceparent` has its flags: behind version, trace and span.
const FLAGS_AT: usize = 2 + 1 + 32 + 1 + 16 + 1;

/// The headers of a call, as the library reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        let is_taken = match key {
            "traceparent" => is_whole(value),
            // It is kept with the span, and no part of a client's headers is short by itself.
            _ => value.len() <= TRACE_STATE_BYTES,
        };
        is_taken.then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

impl CallTraces for Traces {
    fn begin(&self, call: &Begun<'_>) -> Span {
        let Parts {
            propagator, begins, ..
        } = &*self.0;
        if !begins && !call.headers.contains_key("traceparent") {
            return Span::none();
        }
        let client = propagator.extract_with_context(&Context::new(), &Headers(call.headers));
        let (is_in_trace, is_sampled) = {
            let span = client.span();
            let context = span.span_context();
            (context.is_valid(), context.is_sampled())
        };
        if is_in_trace && !is_sampled || !is_in_trace && !begins {
            return Span::none();
        }
        let span = begin(call);
        // It fails for a span that nobody listens to, which has none below it either.
        let _ = span.set_parent(client);
        match span.context().span().span_context().is_sampled() {
            true => span,
            false => Span::none(),
        }
    }

    fn end(&self, span: &Span, code: Code, message: &str) {
        span.set_attribute("rpc.response.status_code", name_of(code));
        if is_failure(code) {
            span.set_status(Status::error(message.to_owned()));
        }
        // Now, not when all below it have ended: a proposal may outlive its call.
        span.context().span().end();
    }
}

/// A span named as by the instrumentation of grpc-go that etcd has.
fn begin(call: &Begun<'_>) -> Span {
    let method = format!("{}/{}", call.rpc.service, call.rpc.method);
    let span = tracing::trace_span!(
        parent: None,
        "call",
        otel.name = method,
        otel.kind = "server",
        rpc.method = method,
        rpc.system.name = "grpc",
    );
    if let Some(local) = call.local {
        span.set_attribute("server.address", local.ip().to_string());
        span.set_attribute("server.port", i64::from(local.port()));
    }
    span
}

/// Codes for which a server may be to blame; the others leave the status of a span open.
fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// gRPC's names of its codes.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// See `trace`.
struct OfTraces;

impl<S> Filter<S> for OfTraces {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        is_traced(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match is_traced(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}
