//! How long it takes to make responses and to hand them to the network, as etcd's histograms have
//! it.
//!
//! Responses from memory take less than the clock's call and the four counters that all threads
//! share, so those of one turn are counted together, each with the time that they took on average.
//! One that reads history is measured alone.

use std::time::Duration;

use tracing::Span;

use crate::metrics::Metrics;
use crate::proto::etcdserverpb::WatchResponse;
use crate::trace::TimedSpan;

/// What was made since a moment.
pub struct Sent {
    making: TimedSpan,
    /// Responses with events, and all their events.
    with_events: u64,
    events: u64,
    progress: u64,
    /// Answers to requests.
    control: u64,
}

impl Sent {
    pub fn begin(now: Duration) -> Self {
        Self {
            making: TimedSpan::begin(now, Span::none()),
            with_events: 0,
            events: 0,
            progress: 0,
            control: 0,
        }
    }

    pub fn count(&mut self, response: &WatchResponse) {
        match response.events.len() {
            0 if response.created || response.canceled => self.control += 1,
            0 => self.progress += 1,
            events => {
                self.with_events += 1;
                self.events += events as u64;
            }
        }
    }

    /// Observes what was counted, and begins anew.
    pub fn end(&mut self, now: Duration, metrics: &Metrics) {
        let took = self.making.took(now);
        let each = |took: Duration, count: u64| match u32::try_from(count) {
            Ok(count @ 1..) => took / count,
            _ => Duration::ZERO,
        };
        let a_response = each(took, self.with_events + self.progress + self.control);
        if self.with_events > 0 {
            let responses = u32::try_from(self.with_events).unwrap_or(u32::MAX);
            let an_event = each(a_response.saturating_mul(responses), self.events);
            metrics
                .watch_send
                .observe_each(a_response, self.with_events);
            metrics
                .watch_send_per_event
                .observe_each(an_event, self.with_events);
        }
        if self.progress > 0 {
            metrics
                .watch_progress
                .observe_each(a_response, self.progress);
        }
        if self.control > 0 {
            metrics.watch_control.observe_each(a_response, self.control);
        }
        *self = Self::begin(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::EncodedEvent;
    use crate::types::MemberId;

    #[test]
    fn those_of_a_turn_share_its_time() {
        let metrics = Metrics::new(MemberId(1), false);
        let response = |events: usize, created| WatchResponse {
            events: vec![EncodedEvent::from_encoded(Vec::new().into()); events],
            created,
            ..Default::default()
        };
        let ms = Duration::from_millis;
        let mut sent = Sent::begin(ms(100));
        for (events, created) in [(0, true), (3, false), (1, false), (0, false)] {
            sent.count(&response(events, created));
        }
        sent.end(ms(108), &metrics);
        sent.end(ms(500), &metrics);
        sent.count(&response(2, false));
        sent.end(ms(510), &metrics);
        let histograms = [
            &metrics.watch_send,
            &metrics.watch_send_per_event,
            &metrics.watch_progress,
            &metrics.watch_control,
        ];
        let found = histograms.map(|histogram| {
            let reading = histogram.read();
            (reading.count, (reading.sum * 1e3).round())
        });
        assert_eq!(found, [(3, 14.0), (3, 7.0), (1, 2.0), (1, 2.0)]);
    }
}
