//! The methods of all services as gRPC's paths and the metrics name them; what they are stands in
//! the table of `service::rpcs`.

use tonic::Status;

use crate::metrics::Method;
use crate::service::rpcs::{self, RPCS, Unknown};

/// Every method as metrics name it, in the order of its number.
pub fn methods() -> impl Iterator<Item = Method> {
    RPCS.iter()
        .map(|rpc| (rpc.service, rpc.method, rpc.flow.name()))
}

/// The number of the method that a path names.
pub fn find(path: &str) -> Result<usize, Status> {
    let Some((service, method)) = path
        .strip_prefix('/')
        .and_then(|path| path.rsplit_once('/'))
    else {
        return Err(Status::unimplemented(format!(
            "malformed method name: {path:?}"
        )));
    };
    rpcs::find(service, method).map_err(|unknown| {
        Status::unimplemented(match unknown {
            Unknown::Method => format!("unknown method {method} for service {service}"),
            Unknown::Service => format!("unknown service {service}"),
        })
    })
}
