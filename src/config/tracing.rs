//! Whether traces of calls go to a collector, and which.

use http::Uri;
use http::uri::Authority;

use super::go_syntax::quote;
use super::refusal::Refusal;
use super::values::Values;

/// etcd's figure: the flag counts traces per so many.
pub const MILLION: u32 = 1_000_000;

/// Traces of calls for an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// The collector's, in plain text.
    pub collector: Uri,
    pub service_name: String,
    /// None: traces do not say which member they are of.
    pub instance_id: Option<String>,
    /// Of the calls that belong to no trace; at most `MILLION`.
    pub samples_per_million: u32,
}

/// The rate alone, which etcd checks where the others are checked too.
///
/// # Errors
/// It is none, in etcd's words.
pub fn check(values: &Values) -> Result<(), Refusal> {
    let wrong = match values.int("distributed-tracing-sampling-rate") {
        _ if !values.bool("enable-distributed-tracing") => return Ok(()),
        ..0 => "tracing sampling rate must be positive".to_owned(),
        rate if rate > i64::from(MILLION) => {
            format!("tracing sampling rate must be less than {MILLION}")
        }
        _ => return Ok(()),
    };
    Err(Refusal::Verify(format!(
        "distributed tracing configurition is not valid: ({wrong})"
    )))
}

/// Of checked values; none where traces are off.
///
/// # Errors
/// An address that is no host and port, which etcd does not check.
pub fn settle(values: &Values) -> Result<Option<Tracing>, Refusal> {
    if !values.bool("enable-distributed-tracing") {
        return Ok(None);
    }
    let rate = values.int("distributed-tracing-sampling-rate");
    let instance_id = values.text("distributed-tracing-instance-id");
    Ok(Some(Tracing {
        collector: collector(values.text("distributed-tracing-address"))?,
        service_name: values.text("distributed-tracing-service-name").to_owned(),
        instance_id: (!instance_id.is_empty()).then(|| instance_id.to_owned()),
        samples_per_million: u32::try_from(rate).unwrap_or(0),
    }))
}

fn collector(address: &str) -> Result<Uri, Refusal> {
    let authority = address.parse::<Authority>().ok();
    let authority =
        authority.filter(|found| found.port_u16().is_some() && !found.host().is_empty());
    let uri = authority.and_then(|authority| {
        let parts = Uri::builder().scheme("http").authority(authority);
        parts.path_and_query("/").build().ok()
    });
    uri.ok_or_else(|| {
        Refusal::Verify(format!(
            "--distributed-tracing-address must be \"host:port\" (set to {})",
            quote(address)
        ))
    })
}
