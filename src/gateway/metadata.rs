//! What of a request's headers becomes metadata of the call, by grpc-gateway's rules.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use super::binary;

const METADATA_PREFIX: &str = "grpc-metadata-";
const BINARY_SUFFIX: &str = "-bin";
const TIMEOUT: &str = "grpc-timeout";
/// gRPC's figure.
const MAX_DIGITS: u64 = 99_999_999;

/// The metadata of a call.
///
/// `Authorization` keeps its name, `Grpc-Metadata-X` becomes `x`. What gRPC reserves is not the
/// client's to set. A value in base64, as of every name in `-bin`, is gRPC's form of it already.
///
/// # Errors
/// A value is no base64, or none that a call can have and a client would miss.
pub fn metadata(headers: &HeaderMap, timeout: Option<Duration>) -> Result<HeaderMap, Status> {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let own = name.as_str().strip_prefix(METADATA_PREFIX);
        if own.is_none() && name != AUTHORIZATION {
            continue;
        }
        let own = own.unwrap_or(AUTHORIZATION.as_str());
        let Some(value) = passed(name, own, value)? else {
            continue;
        };
        if let (Ok(own), false) = (HeaderName::from_bytes(own.as_bytes()), is_reserved(own)) {
            metadata.append(own, value);
        }
    }
    if let Some(value) = timeout.and_then(grpc_timeout) {
        metadata.insert(TIMEOUT, value);
    }
    Ok(metadata)
}

/// The value that becomes `own`; none where the header is left out.
fn passed(
    name: &HeaderName,
    own: &str,
    value: &HeaderValue,
) -> Result<Option<HeaderValue>, Status> {
    if own.is_empty() {
        return Err(Status::internal("there is an empty key in the header"));
    }
    if !own.bytes().all(is_of_a_key) {
        return Ok(None);
    }
    if name.as_str().ends_with(BINARY_SUFFIX) {
        let decoded = binary::decode(value.as_bytes());
        let decoded = decoded.map_err(|at| invalid_binary(name.as_str(), at))?;
        if own.ends_with(BINARY_SUFFIX) {
            return Ok(Some(value.clone()));
        }
        let text = is_text(&decoded).then(|| HeaderValue::from_bytes(&decoded).ok());
        return text.map_or_else(|| Err(unprintable(own)), Ok);
    }
    match is_text(value.as_bytes()) {
        true => Ok(Some(value.clone())),
        // One that says who calls is not left out silently.
        false if name == AUTHORIZATION => Err(unprintable(own)),
        false => Ok(None),
    }
}

fn unprintable(own: &str) -> Status {
    Status::internal(format!(
        "header key \"{own}\" contains value with non-printable ASCII characters"
    ))
}

/// Of what names of metadata are.
fn is_of_a_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

fn is_text(value: &[u8]) -> bool {
    value.iter().all(|byte| matches!(byte, 0x20..=0x7e))
}

fn invalid_binary(name: &str, at: usize) -> Status {
    let mut begins = true;
    let as_written = name.chars().map(|letter| {
        let letter = match begins {
            true => letter.to_ascii_uppercase(),
            false => letter,
        };
        begins = letter == '-';
        letter
    });
    let name: String = as_written.collect();
    Status::invalid_argument(format!(
        "invalid binary header {name}: illegal base64 data at input byte {at}"
    ))
}

fn is_reserved(name: &str) -> bool {
    let names = [
        "content-type",
        "te",
        "user-agent",
        "content-encoding",
        "host",
    ];
    name.starts_with("grpc-") || names.contains(&name)
}

/// How long the client waits.
///
/// # Errors
/// It says so in no form of `Grpc-Timeout`.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let value = headers.get(TIMEOUT).map(HeaderValue::as_bytes);
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value);
    let parsed = parse(&text);
    let refusal = || Status::invalid_argument(format!("invalid grpc-timeout: {text}"));
    parsed.ok_or_else(refusal).map(|limit| match limit {
        // grpc-gateway takes none as no limit at all.
        Limit::After(Duration::ZERO) => None,
        Limit::After(limit) => Some(limit),
        Limit::Past => Some(Duration::ZERO),
    })
}

enum Limit {
    After(Duration),
    Past,
}

fn parse(text: &str) -> Option<Limit> {
    let unit: fn(u64) -> Duration = match text.as_bytes().last()? {
        b'H' => |hours| Duration::from_secs(hours.saturating_mul(3600)),
        b'M' => |minutes| Duration::from_secs(minutes.saturating_mul(60)),
        b'S' => Duration::from_secs,
        b'm' => Duration::from_millis,
        b'u' => Duration::from_micros,
        b'n' => Duration::from_nanos,
        _ => return None,
    };
    let count: i64 = text[..text.len() - 1].parse().ok()?;
    Some(match u64::try_from(count) {
        Ok(count) => Limit::After(unit(count)),
        Err(_) => Limit::Past,
    })
}

/// In gRPC's form, in the least unit that it fits.
fn grpc_timeout(limit: Duration) -> Option<HeaderValue> {
    let (count, unit) = match u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX) {
        nanos @ 0..=MAX_DIGITS => (nanos, 'n'),
        nanos if nanos / 1_000_000 <= MAX_DIGITS => (nanos.div_ceil(1_000_000), 'm'),
        nanos => ((nanos / 1_000_000_000).min(MAX_DIGITS), 'S'),
    };
    HeaderValue::from_str(&format!("{count}{unit}")).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn headers_become_metadata() {
        let given = headers(&[
            ("Authorization", "Bearer abc"),
            ("Token", "not passed"),
            ("Grpc-Metadata-Token", "abc.1"),
            ("Grpc-Metadata-hasleader", "true"),
            ("Grpc-Metadata-Grpc-Timeout", "1n"),
            ("Grpc-Metadata-Content-Type", "text/plain"),
            ("Grpc-Encoding", "gzip"),
            ("Content-Type", "application/json"),
        ]);
        let expected = headers(&[
            ("authorization", "Bearer abc"),
            ("token", "abc.1"),
            ("hasleader", "true"),
            ("grpc-timeout", "5000m"),
        ]);
        let found = metadata(&given, Some(Duration::from_secs(5)));
        assert_eq!(found.expect("metadata"), expected);
    }

    #[test]
    fn values_that_no_call_can_have_are_refused() {
        for (name, value, expected) in [
            ("Grpc-Metadata-X-Bin", "AAEC/w", Ok(1)),
            ("Grpc-Metadata-X", "a\tb", Ok(0)),
            ("Grpc-Metadata-a!b", "c", Ok(0)),
            ("X-Bin", "!", Ok(0)),
            ("Grpc-Metadata-Bin", "YWJj", Ok(1)),
            (
                "Grpc-Metadata-Own-name-Bin",
                "AAA!",
                Err(
                    "invalid binary header Grpc-Metadata-Own-Name-Bin: illegal base64 data at input byte 3",
                ),
            ),
            (
                "Grpc-Metadata-Bin",
                "/w==",
                Err("header key \"bin\" contains value with non-printable ASCII characters"),
            ),
            (
                "Authorization",
                "a\tb",
                Err(
                    "header key \"authorization\" contains value with non-printable ASCII characters",
                ),
            ),
            (
                "Grpc-Metadata-",
                "x",
                Err("there is an empty key in the header"),
            ),
        ] {
            let found = metadata(&headers(&[(name, value)]), None);
            let found = found.map_err(|status| status.message().to_owned());
            let found = found.map(|found| found.len());
            assert_eq!(found, expected.map_err(str::to_owned), "{name}: {value}");
        }
    }

    #[test]
    fn timeouts_are_read_as_grpc_gateway_reads_them() {
        for (text, expected) in [
            ("", Ok(None)),
            ("0S", Ok(None)),
            ("20u", Ok(Some(Duration::from_micros(20)))),
            ("300m", Ok(Some(Duration::from_millis(300)))),
            ("-5S", Ok(Some(Duration::ZERO))),
            ("7S", Ok(Some(Duration::from_secs(7)))),
            ("2M", Ok(Some(Duration::from_secs(120)))),
            ("123456789H", Ok(Some(Duration::from_secs(444_444_440_400)))),
            ("S", Err("invalid grpc-timeout: S")),
            ("x", Err("invalid grpc-timeout: x")),
            ("5", Err("invalid grpc-timeout: 5")),
            ("1.5S", Err("invalid grpc-timeout: 1.5S")),
        ] {
            let found = timeout(&headers(&[("Grpc-Timeout", text)]));
            let found = found.map_err(|status| status.message().to_owned());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()).expect("none"), None);
    }

    #[test]
    fn a_timeout_is_written_in_eight_digits() {
        for (limit, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_millis(500), "500m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(grpc_timeout(limit).expect("a value"), expected);
        }
    }
}
