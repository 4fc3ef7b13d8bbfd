//! What is said of a certificate that is refused, to the other side by an alert and in the log: what
//! etcd says, where the library says something else.

use rustls::CertificateError as Wrong;
use rustls::Error as Tls;
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Shows as "bad certificate", which is Go's alert for most of what is wrong.
const BAD: Tls = Tls::InvalidCertificate(Wrong::BadEncoding);
const UNKNOWN: Tls = Tls::InvalidCertificate(Wrong::UnknownIssuer);

/// Of a certificate that nobody vouches for, by the library's error: which alert it gets, and the
/// reason for the log.
pub fn unverified(error: Tls, leaf: &CertificateDer<'_>) -> (Tls, Option<String>) {
    let parsed = X509Certificate::from_der(leaf).ok();
    let parsed = parsed.map(|(_, parsed)| parsed);
    let (error, reason) = match (&error, &parsed) {
        (Tls::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature), _) => (
            UNKNOWN,
            "certificate signed by unknown authority".to_owned(),
        ),
        (
            Tls::InvalidCertificate(Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. }),
            _,
        ) => (
            BAD,
            "certificate specifies an incompatible key usage".to_owned(),
        ),
        (Tls::InvalidCertificate(Wrong::ExpiredContext { time, not_after }), _) => {
            let reason = out_of_time(*time, "after", *not_after);
            (error, reason)
        }
        (Tls::InvalidCertificate(Wrong::NotValidYetContext { time, not_before }), _) => {
            let reason = out_of_time(*time, "before", *not_before);
            (error, reason)
        }
        // The library checks the certificate alone, before it searches for an authority.
        (Tls::InvalidCertificate(Wrong::Other(_)), Some(parsed)) if parsed.is_ca() => {
            match parsed.issuer() == parsed.subject() {
                true => (
                    UNKNOWN,
                    "certificate signed by unknown authority".to_owned(),
                ),
                false => (
                    BAD,
                    "certificate is an authority's (CA:TRUE), and not one that is trusted"
                        .to_owned(),
                ),
            }
        }
        (Tls::InvalidCertificate(Wrong::Other(_)), Some(parsed)) if has_unknown(parsed) => {
            (BAD, "unhandled critical extension".to_owned())
        }
        _ => return (error, None),
    };
    let reason = format!("tls: failed to verify certificate: x509: {reason}");
    (error, Some(reason))
}

fn out_of_time(now: UnixTime, relation: &str, limit: UnixTime) -> String {
    format!(
        "certificate has expired or is not yet valid: current time {} is {relation} {}",
        date(now),
        date(limit)
    )
}

/// Empty for a time that no calendar has.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let time = time.and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_default()
}

fn has_unknown(parsed: &X509Certificate<'_>) -> bool {
    let mut extensions = parsed.extensions().iter();
    extensions.any(|one| {
        let known = !matches!(
            one.parsed_extension(),
            ParsedExtension::UnsupportedExtension { .. }
        );
        one.critical && !known
    })
}
