//! How long the client of a gRPC call waits, as `grpc-timeout` says it: up to eight digits and a
//! unit. One that cannot be read is refused in grpc-go's words.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits and the unit; gRPC's figure.
const MAX_TIMEOUT_BYTES: usize = 9;

/// None: the client does not say.
///
/// # Errors
/// What is wrong with the form.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get(&TIMEOUT) else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    let text = || String::from_utf8_lossy(bytes);
    let (unit, digits) = match bytes.split_last() {
        Some((unit, digits)) if !digits.is_empty() => (unit, digits),
        _ => {
            return Err(format!(
                "transport: timeout string is too short: {:?}",
                text()
            ));
        }
    };
    if bytes.len() > MAX_TIMEOUT_BYTES {
        return Err(format!(
            "transport: timeout string is too long: {:?}",
            text()
        ));
    }
    let unit: fn(u64) -> Duration = match unit {
        b'H' => |hours| Duration::from_secs(hours * 3600),
        b'M' => |minutes| Duration::from_secs(minutes * 60),
        b'S' => Duration::from_secs,
        b'm' => Duration::from_millis,
        b'u' => Duration::from_micros,
        b'n' => Duration::from_nanos,
        _ => {
            return Err(format!(
                "transport: timeout unit is not recognized: {:?}",
                text()
            ));
        }
    };
    // Eight digits always fit.
    let number = digits.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Some(10 * number + u64::from(digit - b'0')),
        _ => None,
    });
    match number {
        Some(number) => Ok(Some(unit(number))),
        None => Err(format!(
            "strconv.ParseUint: parsing {:?}: invalid syntax",
            String::from_utf8_lossy(digits)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |value: &str| {
            let value = http::HeaderValue::from_str(value).expect("a header");
            timeout(&HeaderMap::from_iter([(TIMEOUT.clone(), value)]))
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        for (value, expected_ns) in [
            ("1n", 1_u128),
            ("20u", 20_000),
            ("4999936u", 4_999_936_000),
            ("300m", 300_000_000),
            ("7S", 7_000_000_000),
            ("0S", 0),
            ("2M", 120_000_000_000),
            ("3H", 10_800_000_000_000),
            ("99999999H", 359_999_996_400_000_000_000),
        ] {
            let found = read(value).expect(value).expect(value);
            assert_eq!(found.as_nanos(), expected_ns, "{value}");
        }
        for bad in ["", "S", "5", "5s", "-5S", "+5S", "5.5S", "123456789S"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
