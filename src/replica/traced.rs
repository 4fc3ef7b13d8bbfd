//! The proposals of other members that this one has made for them, as far as they are in a trace:
//! their spans wait for the entries, to have the log and the application below them.
//!
//! Nothing depends on them. Those of entries that are never committed are dropped with a later one.

use std::collections::VecDeque;

use tracing::Span;

use super::pending::pop_if;

/// Of more that wait at once the traces end here: a leader without a quorum proposes, and commits
/// nothing.
const MAX_WAITING: usize = 1024;

/// See the module; in the order of the log.
#[derive(Default)]
pub struct TracedForOthers(VecDeque<TracedEntry>);

struct TracedEntry {
    index: u64,
    term: u64,
    span: Span,
}

impl TracedForOthers {
    /// A proposal of another member was made at this index.
    pub fn proposed(&mut self, index: u64, term: u64, span: Span) {
        if !span.is_disabled() && self.0.len() < MAX_WAITING {
            self.0.push_back(TracedEntry { index, term, span });
        }
    }

    /// Of the entries from this index on.
    pub fn spans_from(&self, index: u64) -> impl Iterator<Item = Span> {
        let entries = self.0.iter().filter(move |one| one.index >= index);
        entries.map(|one| one.span.clone())
    }

    /// The span of the entry that was committed, if it is one of them.
    pub fn committed(&mut self, index: u64, term: u64) -> Option<Span> {
        let is_settled = |one: &TracedEntry| one.index <= index || one.term < term;
        while let Some(first) = pop_if(&mut self.0, is_settled) {
            if (first.index, first.term) == (index, term) {
                return Some(first.span);
            }
        }
        None
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::NoSubscriber;
    use tracing::{Level, Metadata, span};

    use super::*;

    /// Wants every span, and numbers them.
    struct Numbering(std::sync::atomic::AtomicU64);

    impl tracing::Subscriber for Numbering {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1 + self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    fn span() -> Span {
        tracing::span!(Level::TRACE, "forwarded")
    }

    #[test]
    fn a_span_is_that_of_the_entry_at_its_index_and_term() {
        let subscriber = Numbering(Default::default());
        tracing::subscriber::with_default(subscriber, || {
            let mut traced = TracedForOthers::default();
            traced.proposed(4, 2, Span::none());
            for index in [5, 7, 8, 9] {
                traced.proposed(index, 2, span());
            }
            let from = |traced: &TracedForOthers, index| traced.spans_from(index).count();
            assert_eq!((from(&traced, 4), from(&traced, 8)), (4, 2));
            assert!(traced.committed(4, 2).is_none());
            assert!(traced.committed(5, 2).is_some());
            assert!(traced.committed(6, 2).is_none());
            // Another leader's entry is in its place: none of a term before it will come.
            assert!(traced.committed(7, 3).is_none());
            assert_eq!(from(&traced, 0), 0);
            for index in 1..=2 * MAX_WAITING as u64 {
                traced.proposed(index, 3, span());
            }
            assert_eq!(from(&traced, 0), MAX_WAITING);
            traced.clear();
            assert_eq!(from(&traced, 0), 0);
        });
        let nobody = NoSubscriber::new();
        tracing::subscriber::with_default(nobody, || assert!(span().is_disabled()));
    }
}
