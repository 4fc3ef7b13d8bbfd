//! Durations in Go's spelling (`1h30m`, `250ms`), read and printed as etcd does.
//!
//! The command line, the environment and every log line that etcd's users grep use this spelling;
//! no crate prints it exactly (`1m0s`, `1.5s`, `10µs`), so it lives here.

use super::go_syntax::quote;

const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3_600 * SECOND),
];
const SECOND: u64 = 1_000_000_000;

/// Reads a Go duration; the result is in nanoseconds and may be negative.
///
/// # Errors
/// Go's own text, e.g. `time: missing unit in duration "5"`.
pub fn parse_ns(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = take_number(rest).ok_or_else(invalid)?;
        rest = &rest[number.len()..];
        let end = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = &rest[..end];
        rest = &rest[end..];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!(
                "time: unknown unit {} in duration {}",
                quote(unit),
                quote(text)
            ));
        };
        total = total
            .checked_add(scaled(number, *scale).ok_or_else(invalid)?)
            .ok_or_else(invalid)?;
    }
    // Go admits one more nanosecond below zero than above.
    let limit = i64::MAX as u128 + u128::from(negative);
    if total > limit {
        return Err(invalid());
    }
    let signed = if negative {
        -(total as i128)
    } else {
        total as i128
    };
    Ok(signed as i64)
}

/// The digits at the head of `text`, with at most one point; at least one digit.
fn take_number(text: &str) -> Option<&str> {
    let whole = text.bytes().take_while(u8::is_ascii_digit).count();
    let mut end = whole;
    if text.as_bytes().get(whole) == Some(&b'.') {
        end += 1 + text[whole + 1..]
            .bytes()
            .take_while(u8::is_ascii_digit)
            .count();
    }
    let digits = end - usize::from(end > whole);
    (digits > 0).then(|| &text[..end])
}

fn scaled(number: &str, scale: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // Go's own arithmetic, its rounding included: at most 63 bits of fraction, in floating point.
    let (mut digits, mut ten) = (0u64, 1f64);
    for digit in fraction.bytes() {
        let next = digits
            .checked_mul(10)
            .and_then(|d| d.checked_add(u64::from(digit - b'0')));
        let Some(next) = next.filter(|next| *next <= 1 << 63) else {
            break;
        };
        digits = next;
        ten *= 10.0;
    }
    let part = (digits as f64 * (scale as f64 / ten)) as u128;
    whole.checked_mul(u128::from(scale))?.checked_add(part)
}

/// Prints nanoseconds as Go prints a duration: `0s`, `1.5ms`, `1h0m0s`.
pub fn format_ns(ns: i64) -> String {
    let size = ns.unsigned_abs();
    let sign = if ns < 0 { "-" } else { "" };
    let text = match size {
        0 => return "0s".to_owned(),
        1..=999 => format!("{size}ns"),
        1_000..=999_999 => decimal(size, 1_000, "µs"),
        1_000_000..=999_999_999 => decimal(size, 1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (size / (60 * SECOND), size % (60 * SECOND));
            let seconds = decimal(rest, SECOND, "s");
            match minutes {
                0 => seconds,
                1..=59 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    };
    format!("{sign}{text}")
}

/// Prints a duration as Go does; see [`format_ns`].
pub fn format(duration: std::time::Duration) -> String {
    format_ns(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

fn decimal(value: u64, unit: u64, name: &str) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return format!("{whole}{name}");
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}{name}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("-0", Ok(0)),
            ("5s", Ok(5_000_000_000)),
            ("1h30m", Ok(5_400_000_000_000)),
            ("1.5ms", Ok(1_500_000)),
            (".5s", Ok(500_000_000)),
            ("5.s", Ok(5_000_000_000)),
            ("-2h", Ok(-7_200_000_000_000)),
            ("+1us", Ok(1_000)),
            ("3µs", Ok(3_000)),
            ("-9223372036854775808ns", Ok(i64::MIN)),
            ("2562047h47m16.854775807s", Ok(i64::MAX)),
            ("", Err("time: invalid duration \"\"")),
            ("foo", Err("time: invalid duration \"foo\"")),
            (".s", Err("time: invalid duration \".s\"")),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("5d", Err("time: unknown unit \"d\" in duration \"5d\"")),
            (
                "9223372036854775808ns",
                Err("time: invalid duration \"9223372036854775808ns\""),
            ),
            ("3000000h", Err("time: invalid duration \"3000000h\"")),
        ] {
            assert_eq!(parse_ns(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn prints_what_go_prints() {
        for (ns, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (10_000, "10µs"),
            (2_200_000, "2.2ms"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_500_000_000, "1h30m0.5s"),
            (-1_000_000_000, "-1s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(format_ns(ns), expected);
        }
    }
}
