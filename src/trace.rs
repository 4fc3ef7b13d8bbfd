//! The stages of a request, timed: as spans for a collector of traces, and as the times that
//! histograms and warnings show.
//!
//! A stage has one begin and one end for both (`TimedSpan`). Its time is always taken; its span
//! is there for some.
//!
//! A span stands below another one, and exists only where that one does: the first is made by
//! `api`, for a call whose trace is wanted. So a request of which nobody wants a trace costs its
//! stages a comparison each, and allocates nothing.
//!
//! Spans, and events within them, are at `tracing`'s level TRACE, where nothing else is, and are no
//! lines of the log, which begins at DEBUG: neither depends on what level the other has.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// A span below another: `below!(parent, "name", field = value, …)`. None below none, and then the
/// values of its fields are not evaluated. It ends when it, its copies and all below it are dropped.
macro_rules! below {
    ($parent:expr, $($described:tt)+) => {{
        let parent: &::tracing::Span = $parent;
        match parent.is_disabled() {
            true => ::tracing::Span::none(),
            false => ::tracing::trace_span!(parent: parent, $($described)+),
        }
    }};
}

/// Something that happened within a span: `event!(span, field = value, …, "what")`.
macro_rules! event {
    ($span:expr, $($described:tt)+) => {{
        let span: &::tracing::Span = $span;
        if !span.is_disabled() {
            ::tracing::trace!(parent: span, $($described)+);
        }
    }};
}

pub(crate) use {below, event};

/// The bytes of a trace's id, behind which the span's are.
const TRACE_ID_BYTES: usize = 16;

/// A span as another member can continue it, with the ids of its trace and its own; nothing where
/// nobody wants the trace.
pub fn carried(span: &Span) -> Bytes {
    if span.is_disabled() {
        return Bytes::new();
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    match context.is_valid() && context.is_sampled() {
        true => {
            let (trace, span) = (context.trace_id(), context.span_id());
            [&trace.to_bytes()[..], &span.to_bytes()[..]]
                .concat()
                .into()
        }
        false => Bytes::new(),
    }
}

/// Begins a span below that of another member; none where that one is in no trace, or where this
/// member sends none away.
pub fn continued(carried: &[u8], begin: impl FnOnce() -> Span) -> Span {
    let Some(above) = above(carried) else {
        return Span::none();
    };
    let span = begin();
    // It fails for a span that nobody listens to.
    let _ = span.set_parent(Context::new().with_remote_span_context(above));
    span
}

/// What `carried` has written.
fn above(carried: &[u8]) -> Option<SpanContext> {
    let (trace, span) = carried.split_at_checked(TRACE_ID_BYTES)?;
    let context = SpanContext::new(
        TraceId::from_bytes(trace.try_into().ok()?),
        SpanId::from_bytes(span.try_into().ok()?),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// A stage of one request.
#[derive(Clone, Debug)]
pub struct TimedSpan {
    span: Span,
    began_at: Duration,
}

impl TimedSpan {
    /// Begins now; `span` may be none.
    pub fn begin(now: Duration, span: Span) -> Self {
        Self {
            span,
            began_at: now,
        }
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    pub fn began_at(&self) -> Duration {
        self.began_at
    }

    /// How long it has lasted.
    pub fn took(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began_at)
    }
}

/// A stage that requests go through together: they share its time, and those of them that are in a
/// trace have a span of it each.
#[derive(Clone, Debug, Default)]
pub struct TimedSpans {
    spans: Vec<Span>,
    began_at: Duration,
}

impl TimedSpans {
    /// Begins now, below the spans of the requests that are in a trace.
    pub fn begin<'a>(
        now: Duration,
        of: impl IntoIterator<Item = &'a Span>,
        below: impl Fn(&Span) -> Span,
    ) -> Self {
        Self {
            spans: of.into_iter().map(below).collect(),
            began_at: now,
        }
    }

    /// How long it has lasted.
    pub fn took(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began_at)
    }

    /// Ends the spans.
    pub fn end(&mut self) {
        self.spans.clear();
    }
}

/// What is for traces, by its level.
pub fn is_traced(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::TRACE && is_own(metadata)
}

/// Whether an event or a span is of this crate.
pub fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.module_path().map(root) == Some(root(module_path!()))
}

fn root(path: &str) -> &str {
    path.split("::").next().unwrap_or_default()
}

/// The bytes of a key that an attribute shows: spans wait in memory for a collector that may be
/// slow, and any client can ask for them.
const SHOWN_KEY_BYTES: usize = 1024;

/// A key as an attribute: its begin, as far as that is text.
pub fn key(key: &[u8]) -> Cow<'_, str> {
    let begin = &key[..key.len().min(SHOWN_KEY_BYTES)];
    match String::from_utf8_lossy(begin) {
        // What stands for a byte that is no text takes three.
        Cow::Owned(mut text) => {
            let most = text.len().min(SHOWN_KEY_BYTES);
            let cut = (0..=most).rev().find(|cut| text.is_char_boundary(*cut));
            text.truncate(cut.unwrap_or_default());
            Cow::Owned(text)
        }
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_nobody_traces_is_timed_all_the_same() {
        let at = Duration::from_millis;
        let stage = TimedSpan::begin(at(7), Span::none());
        assert_eq!(stage.took(at(9)), at(2));
        assert_eq!(stage.took(at(6)), Duration::ZERO);
        let below = |_: &Span| Span::none();
        let mut shared = TimedSpans::begin(at(7), &[Span::none(), Span::none()], below);
        assert_eq!((shared.took(at(8)), shared.spans.len()), (at(1), 2));
        shared.end();
        assert_eq!((shared.took(at(9)), shared.spans.len()), (at(2), 0));
    }

    #[test]
    fn ids_of_another_form_continue_no_trace() {
        let whole = [[1; 16].as_slice(), &[2; 8]].concat();
        assert!(above(&whole).is_some());
        for bad in [
            &[][..],
            &whole[..23],
            &[&whole[..], &[3]].concat(),
            &[0; 24],
        ] {
            assert!(above(bad).is_none(), "{bad:?}");
            let begin = || unreachable!("a span of no trace");
            assert!(continued(bad, begin).is_disabled());
        }
        assert!(carried(&Span::none()).is_empty());
    }

    #[test]
    fn of_a_long_key_the_begin_is_shown() {
        assert_eq!(key(b"a\"b"), "a\"b");
        assert_eq!(key(b"a\xffb"), "a\u{fffd}b");
        let long = [b'k'; SHOWN_KEY_BYTES + 1];
        assert_eq!(key(&long).as_bytes(), &long[1..]);
        let no_text = [0xff; SHOWN_KEY_BYTES];
        assert_eq!(key(&no_text), "\u{fffd}".repeat(SHOWN_KEY_BYTES / 3));
    }
}
