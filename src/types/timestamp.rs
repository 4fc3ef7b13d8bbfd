//! Moments as the log shows them.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

const FORM: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// A wall time since the Unix epoch, in UTC and to the microsecond.
pub fn timestamp(wall: Duration) -> String {
    let nanos = i128::try_from(wall.as_nanos()).unwrap_or(0);
    // A clock beyond the year 9999 reads as 1970: a line with a wrong time beats none.
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(FORM)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_to_the_microsecond() {
        for (wall, shown) in [
            (Duration::ZERO, "1970-01-01T00:00:00.000000Z"),
            (
                Duration::new(1_770_000_000, 12_345_999),
                "2026-02-02T02:40:00.012345Z",
            ),
            (Duration::MAX, "1970-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(wall), shown);
        }
    }
}
