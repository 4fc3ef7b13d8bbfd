//! Which calls are in a trace, what their spans say, and what is said of a collector that takes
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SimpleSpanProcessor, SpanData, SpanExporter};
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::env::ManualClock;
use crate::service::rpcs::{self, RPCS};
use crate::trace;

/// Keeps the spans of traces.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl Kept {
    pub fn names(&self) -> Vec<String> {
        let kept = self.0.lock();
        kept.iter().map(|span| span.name.to_string()).collect()
    }
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

fn config(samples_per_million: u32) -> Tracing {
    Tracing {
        collector: "http://localhost:4317/".parse().expect("a URI"),
        service_name: "etcd".to_owned(),
        instance_id: None,
        samples_per_million,
    }
}

/// Traces of which every span is kept.
pub fn kept(samples_per_million: u32) -> (Traces, Kept) {
    let kept = Kept::default();
    let processor = SimpleSpanProcessor::new(kept.clone());
    (Traces::with(&config(samples_per_million), processor), kept)
}

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn headers(traceparent: Option<&'static str>) -> HeaderMap {
    let value = traceparent.map(HeaderValue::from_static);
    let header = value.map(|value| (http::HeaderName::from_static("traceparent"), value));
    header.into_iter().collect()
}

/// The span of a put with these headers.
pub fn put(traces: &Traces, traceparent: Option<&'static str>) -> Span {
    let number = rpcs::find(rpcs::KV, "Put").expect("it is one");
    traces.begin(&Begun {
        rpc: &RPCS[number],
        headers: &headers(traceparent),
        local: Some(([127, 0, 0, 1], 2379).into()),
    })
}

pub fn sampled_put(traces: &Traces) -> Span {
    put(traces, Some(SAMPLED))
}

fn listened<T>(traces: &Traces, talk: impl FnOnce() -> T) -> T {
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, talk)
}

#[test]
fn a_client_decides_for_its_trace_and_the_rate_for_the_others() {
    let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    for (rate, traceparent, expected) in [
        (0, None, 0),
        (0, Some(SAMPLED), 1),
        (0, Some(unsampled), 0),
        (0, Some("00-4bf92f35-00f067aa0ba902b7-01"), 0),
        (
            0,
            Some("0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            0,
        ),
        (
            0,
            Some("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            0,
        ),
        (
            0,
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1"),
            0,
        ),
        (
            0,
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09"),
            0,
        ),
        (MILLION, None, 1),
        (MILLION, Some(SAMPLED), 1),
        (MILLION, Some(unsampled), 0),
        (MILLION, Some("junk"), 1),
    ] {
        let (traces, kept) = kept(rate);
        let is_disabled = listened(&traces, || {
            let span = put(&traces, traceparent);
            drop(trace::below!(&span, "stage"));
            span.is_disabled()
        });
        let spans = kept.0.lock();
        assert_eq!(spans.len(), 2 * expected, "{rate} {traceparent:?}");
        assert_eq!(is_disabled, expected == 0, "{rate} {traceparent:?}");
        for span in spans.iter() {
            let joins =
                span.span_context.trace_id() == TraceId::from(0x4bf92f3577b34da6a3ce929d0e0e4736);
            assert_eq!(joins, traceparent == Some(SAMPLED));
        }
        if let Some(call) = spans.iter().find(|span| span.name != "stage") {
            let joins = call.parent_span_id == SpanId::from(0x00f067aa0ba902b7);
            assert_eq!(joins, traceparent == Some(SAMPLED));
        }
    }
}

#[test]
fn some_calls_of_many_begin_a_trace() {
    let (traces, kept) = kept(MILLION / 4);
    listened(&traces, || {
        for _ in 0..4000 {
            put(&traces, None);
        }
    });
    // Five times the deviation of the number.
    assert!((863..1137).contains(&kept.0.lock().len()));
}

#[test]
fn a_call_says_how_it_ended() {
    for (code, message, name, status) in [
        (Code::Ok, "", "OK", Status::Unset),
        (Code::NotFound, "no", "NOT_FOUND", Status::Unset),
        (
            Code::Unavailable,
            "away",
            "UNAVAILABLE",
            Status::error("away"),
        ),
    ] {
        let (traces, kept) = kept(0);
        let spans = listened(&traces, || {
            let span = sampled_put(&traces);
            let below = trace::below!(&span, "lasts longer");
            traces.end(&span, code, message);
            // It has ended, whatever is below it.
            let spans = kept.0.lock().clone();
            drop(below);
            spans
        });
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].name, "etcdserverpb.KV/Put");
        assert_eq!(spans[0].status, status);
        let text = |key: &str| {
            let mut found = spans[0].attributes.iter();
            found
                .find(|one| one.key.as_str() == key)
                .map(|one| one.value.to_string())
        };
        for (key, value) in [
            ("rpc.method", "etcdserverpb.KV/Put"),
            ("rpc.system.name", "grpc"),
            ("rpc.response.status_code", name),
            ("server.address", "127.0.0.1"),
            ("server.port", "2379"),
        ] {
            assert_eq!(text(key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(spans[0].attributes.len(), 5, "{:?}", spans[0].attributes);
    }
}

#[test]
fn a_trace_is_continued_by_another_member() {
    let ((follower, of_follower), (leader, of_leader)) = (kept(0), kept(0));
    let carried = listened(&follower, || {
        assert!(trace::carried(&put(&follower, None)).is_empty());
        let stage = trace::below!(&sampled_put(&follower), "propose");
        trace::carried(&stage)
    });
    listened(&leader, || {
        let begin = || tracing::trace_span!(parent: None, "forwarded");
        let span = trace::continued(&carried, begin);
        drop(trace::below!(&span, "log"));
        assert!(trace::continued(&carried[1..], begin).is_disabled());
    });
    let (above, below) = (of_follower.0.lock(), of_leader.0.lock());
    let named = |spans: &[SpanData], name| {
        let found = spans.iter().find(|span| span.name == name);
        found.expect(name).clone()
    };
    let (propose, forwarded) = (named(&above, "propose"), named(&below, "forwarded"));
    let log = named(&below, "log");
    assert_eq!(forwarded.parent_span_id, propose.span_context.span_id());
    assert_eq!(log.parent_span_id, forwarded.span_context.span_id());
    for span in [forwarded, log] {
        assert_eq!(
            span.span_context.trace_id(),
            propose.span_context.trace_id()
        );
    }
    assert_eq!(below.len(), 2);
}

/// Takes nothing.
#[derive(Debug)]
struct Refusing;

impl SpanExporter for Refusing {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure("refused".to_owned()))
    }
}

/// Keeps what warnings say that spans were lost.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<u64>>>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        struct Lost<'a>(&'a mut Vec<u64>);
        impl Visit for Lost<'_> {
            fn record_u64(&mut self, field: &Field, value: u64) {
                if field.name() == "lost-spans" {
                    self.0.push(value);
                }
            }

            fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
        }
        event.record(&mut Lost(&mut self.0.lock()));
    }
}

#[test]
fn lost_spans_are_reported_once_a_minute() {
    let clock = Arc::new(ManualClock::default());
    let exporter = Exporter::over(Refusing, String::new(), clock.clone());
    let traces = Traces::with(&config(0), SimpleSpanProcessor::new(exporter));
    let warnings = Warnings::default();
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber.with(warnings.clone()), || {
        for _ in 0..10 {
            sampled_put(&traces);
        }
        clock.advance(Duration::from_secs(61));
        sampled_put(&traces);
        sampled_put(&traces);
        traces
            .0
            .provider
            .shutdown()
            .expect("it refuses spans alone");
    });
    assert_eq!(*warnings.0.lock(), [1, 10, 1]);
}

#[tokio::test]
async fn a_collector_whose_host_is_silent_is_given_up() {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("it is bound");
    // With its queue full it answers no other.
    let first = std::net::TcpStream::connect(address).expect("it has a place");
    let config = Tracing {
        collector: format!("http://{address}/").parse().expect("a URI"),
        ..config(0)
    };
    let limit = Duration::from_millis(200);
    let runtime = tokio::runtime::Handle::current();
    let exporter = Exporter::limited(&config, &runtime, limit).expect("it connects later");
    let began = std::time::Instant::now();
    let sent = exporter.export(Vec::new()).await;
    assert!(sent.is_err());
    assert!(
        (limit..10 * limit).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    drop(first);
}
