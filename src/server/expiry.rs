//! Warns of certificates that are about to expire, and shows in the metrics when they do: once a
//! minute those are read that are in use then.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::security::MemberSecurity;
use crate::env::Clock;
use crate::metrics::Metrics;

const INTERVAL: Duration = Duration::from_secs(60);
const DAY: i64 = 24 * 60 * 60;
/// A warning each; the last is that it has expired.
const DAYS: [i64; 4] = [30, 7, 1, 0];

/// Checks for as long as it is polled.
pub async fn watch(security: &MemberSecurity, clock: &dyn Clock, metrics: &Metrics) -> Infallible {
    let mut warnings = Warnings::default();
    loop {
        let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
        for (role, at) in security.expiries().await {
            metrics.certificate_expires(role, at);
            if warnings.is_due(role, at, now) {
                warn(role, at, now);
            }
        }
        clock.sleep(INTERVAL).await;
    }
}

fn warn(role: &'static str, at: i64, now: i64) {
    let time = OffsetDateTime::from_unix_timestamp(at).ok();
    let time = time.and_then(|time| time.format(&Rfc3339).ok());
    let not_after = time.unwrap_or_default();
    match at - now {
        left @ 1.. => tracing::warn!(
            role,
            "not-after" = not_after,
            "days-left" = left / DAY,
            "a certificate is about to expire"
        ),
        _ => tracing::warn!(role, "not-after" = not_after, "a certificate has expired"),
    }
}

/// What was warned of: for each role the expiry, and how many of the warnings have been due.
#[derive(Default)]
struct Warnings(BTreeMap<&'static str, (i64, usize)>);

impl Warnings {
    /// Whether a warning is due that has not been given about this certificate.
    fn is_due(&mut self, role: &'static str, at: i64, now: i64) -> bool {
        let left = at.saturating_sub(now);
        let due = DAYS.iter().filter(|days| left <= **days * DAY).count();
        let (known, given) = self.0.entry(role).or_default();
        if *known != at {
            (*known, *given) = (at, 0);
        }
        let is_due = due > *given;
        *given = due.max(*given);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_warning_is_given_once() {
        let mut warnings = Warnings::default();
        let at = 1000 * DAY;
        // Days that are left, and whether a warning is due.
        let steps = [
            (31, false),
            (30, true),
            (30, false),
            (8, false),
            (7, true),
            (2, false),
            (1, true),
            (1, false),
            (0, true),
            (-1, false),
            // A clock that was set back.
            (5, false),
            (-2, false),
        ];
        for (left, expected) in steps {
            let found = warnings.is_due("client", at, at - left * DAY);
            assert_eq!(found, expected, "{left}");
        }
        // Another certificate, and one for something else.
        assert!(!warnings.is_due("client", at + 40 * DAY, at));
        assert!(warnings.is_due("client", at + 40 * DAY, at + 39 * DAY));
        assert!(warnings.is_due("peer", at, at));
        // One that is first seen late is warned of once.
        let mut warnings = Warnings::default();
        assert!(warnings.is_due("peer", at, at - 2 * DAY));
        assert!(!warnings.is_due("peer", at, at - 2 * DAY));
        // Its last second is not over yet.
        assert!(!warnings.is_due("ca", i64::MAX, i64::MIN));
    }
}
