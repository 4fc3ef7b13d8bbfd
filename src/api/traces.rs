//! The spans of calls, for traces: a call whose trace is wanted has one, from before the gate to
//! the last of its answer, and all that it does stands below it (`crate::trace`).
//!
//! Which calls those are, and how a span names what it is of, is known to who sends traces away; the
//! server hands that in. Without it no call has a span, and none looks for one.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Extensions, HeaderMap, Request};
use tonic::{Code, Status};
use tracing::Span;

use crate::service::rpcs::{RPCS, Rpc};

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

/// The span of a call that is under way, if its trace is wanted.
#[derive(Default)]
pub struct Traced(Option<(Arc<dyn Traces>, Span)>);

impl Traced {
    /// Begins the span of a call, and puts it beside it.
    pub fn begin<B>(of: Option<&OfConnection>, method: usize, request: &mut Request<B>) -> Self {
        let Some(of) = of else {
            return Self(None);
        };
        let span = of.traces.begin(&Begun {
            rpc: &RPCS[method],
            headers: request.headers(),
            local: of.local,
        });
        if span.is_disabled() {
            return Self(None);
        }
        request.extensions_mut().insert(Beside(span.clone()));
        Self(Some((of.traces.clone(), span)))
    }

    /// The call has ended with this code; what it says stands in `answer`, if there is one.
    pub fn end(&mut self, code: Code, answer: Option<&HeaderMap>) {
        if let Some((traces, span)) = self.0.take() {
            let status = answer.and_then(Status::from_header_map);
            let message = status.as_ref().map_or("", Status::message);
            traces.end(&span, code, message);
        }
    }
}

/// The span that was put beside a call.
pub fn span_of(extensions: &Extensions) -> Span {
    let beside = extensions.get::<Beside>();
    beside.map_or_else(Span::none, |beside| beside.0.clone())
}
