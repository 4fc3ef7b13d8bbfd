//! The spans of calls, for traces: a call whose trace is wanted has one, from before the gate to
//! the last of its answer, and all that it does stands below it (`crate::trace`).
//!
//! Which calls those are, and how a span names what it is of, is known to who sends traces away; the
//! server hands that in. Without it no call has a span, and none looks for one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, Request};
use tonic::{Code, Status};
use tracing::Span;

use crate::service::rpcs::{RPCS, Rpc};
use crate::trace::TimedSpan;

/// A call that begins.
pub struct Begun<'a> {
    pub rpc: &'static Rpc,
    pub headers: &'a HeaderMap,
    /// Where its connection arrived, unless at a file.
    pub local: Option<SocketAddr>,
}

/// Makes the spans of calls.
pub trait Traces: Send + Sync {
    /// Disabled where nobody wants the trace of this call.
    fn begin(&self, call: &Begun<'_>) -> Span;

    /// A call has ended, whatever continues below its span.
    fn end(&self, span: &Span, code: Code, message: &str);
}

/// The same for the calls of one connection.
#[derive(Clone)]
pub struct OfConnection {
    pub traces: Arc<dyn Traces>,
    pub local: Option<SocketAddr>,
}

/// The span beside a call, for its caller.
#[derive(Clone)]
struct Beside(Span);

/// A call that is under way, as a stage: its time, and its span if its trace is wanted.
pub struct Traced {
    call: TimedSpan,
    traces: Option<Arc<dyn Traces>>,
}

impl Traced {
    /// Begins a call that arrived now, and puts its span beside it.
    pub fn begin<B>(
        of: Option<&OfConnection>,
        method: usize,
        request: &mut Request<B>,
        now: Duration,
    ) -> Self {
        let span = of.map_or_else(Span::none, |of| {
            of.traces.begin(&Begun {
                rpc: &RPCS[method],
                headers: request.headers(),
                local: of.local,
            })
        });
        let traces = of.filter(|_| !span.is_disabled());
        if traces.is_some() {
            request.extensions_mut().insert(Beside(span.clone()));
        }
        Self {
            call: TimedSpan::begin(now, span),
            traces: traces.map(|of| of.traces.clone()),
        }
    }

    /// How long it has lasted.
    pub fn took(&self, now: Duration) -> Duration {
        self.call.took(now)
    }

    /// The call has ended with this code; what it says stands in `answer`, if there is one.
    pub fn end(&mut self, code: Code, answer: Option<&HeaderMap>) {
        if let Some(traces) = self.traces.take() {
            let status = answer.and_then(Status::from_header_map);
            let message = status.as_ref().map_or("", Status::message);
            traces.end(self.call.span(), code, message);
        }
    }
}

/// The span that was put beside a call.
pub fn span_of(extensions: &Extensions) -> Span {
    let beside = extensions.get::<Beside>();
    beside.map_or_else(Span::none, |beside| beside.0.clone())
}
