//! What gRPC calls count: per method, in cells found by the method's place in a list.

use std::time::Duration;

use tonic::Code;

use super::cell::{Counter, Histogram};
use super::table::{GRPC_HANDLED, GRPC_HANDLING, GRPC_RECEIVED, GRPC_SENT, GRPC_STARTED};
use super::text::Exposition;

/// A method: its service, its name, and `unary`, `client_stream`, `server_stream` or
/// `bidi_stream`.
pub type Method = (&'static str, &'static str, &'static str);

/// grpc-go's names of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The services whose series etcd shows only once they are used.
const SHOWN_ONCE_USED: [&str; 2] = ["v3lockpb.Lock", "v3electionpb.Election"];

/// One method's cells; apart from its neighbours', so that methods do not slow each other.
#[repr(align(64))]
struct Cells {
    method: Method,
    started: Counter,
    received: Counter,
    sent: Counter,
    handled: [Counter; CODES.len()],
    handling: Option<Histogram>,
}

/// See the module. A method that is not in the list counts nowhere.
#[derive(Default)]
pub struct Grpc {
    methods: Box<[Cells]>,
}

impl Grpc {
    pub fn new(methods: &[Method], extensive: bool) -> Self {
        let cells = |method: &Method| Cells {
            method: *method,
            started: Counter::default(),
            received: Counter::default(),
            sent: Counter::default(),
            handled: Default::default(),
            handling: GRPC_HANDLING
                .shape
                .filter(|_| extensive)
                .map(Histogram::new),
        };
        Self {
            methods: methods.iter().map(cells).collect(),
        }
    }

    pub fn started(&self, method: usize) {
        if let Some(cells) = self.methods.get(method) {
            cells.started.increment();
        }
    }

    pub fn received(&self, method: usize) {
        if let Some(cells) = self.methods.get(method) {
            cells.received.increment();
        }
    }

    pub fn sent(&self, method: usize) {
        if let Some(cells) = self.methods.get(method) {
            cells.sent.increment();
        }
    }

    pub fn handled(&self, method: usize, code: Code) {
        let cells = self.methods.get(method);
        if let Some(counter) = cells.and_then(|cells| cells.handled.get(code as usize)) {
            counter.increment();
        }
    }

    pub fn handling(&self, method: usize, took: Duration) {
        let cells = self.methods.get(method);
        if let Some(histogram) = cells.and_then(|cells| cells.handling.as_ref()) {
            histogram.observe(took);
        }
    }

    pub fn expose(&self, page: &mut Exposition) {
        for cells in &self.methods {
            cells.expose(page);
        }
    }
}

impl Cells {
    fn expose(&self, page: &mut Exposition) {
        let (service, method, kind) = self.method;
        let always = !SHOWN_ONCE_USED.contains(&service);
        let labels = [
            ("grpc_service", service),
            ("grpc_method", method),
            ("grpc_type", kind),
        ];
        for (family, counter) in [
            (&GRPC_STARTED, &self.started),
            (&GRPC_RECEIVED, &self.received),
            (&GRPC_SENT, &self.sent),
        ] {
            if always || counter.get() > 0 {
                page.number(family, &labels, counter.get() as f64);
            }
        }
        for (code, counter) in CODES.iter().zip(&self.handled) {
            if always || counter.get() > 0 {
                let [service, method, kind] = labels;
                let labels = [service, method, kind, ("grpc_code", *code)];
                page.number(&GRPC_HANDLED, &labels, counter.get() as f64);
            }
        }
        if let Some(histogram) = &self.handling {
            let reading = histogram.read();
            if always || reading.count > 0 {
                page.histogram(&GRPC_HANDLING, &labels, reading);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name() {
        for (number, name) in CODES.iter().enumerate() {
            let code = Code::from(number as i32);
            assert_eq!(code as usize, number);
            let ours = if code == Code::Ok { "OK" } else { name };
            assert_eq!(*name, ours);
            let debug = format!("{code:?}");
            assert!(
                debug == *name || code == Code::Ok || debug == "Cancelled",
                "{debug}"
            );
        }
    }
}
