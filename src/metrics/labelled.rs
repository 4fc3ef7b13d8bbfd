//! Series with labels, in cells that are found without a lock and without building a text.
//!
//! A series that no event has brought about is not shown, as in etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;

use super::cell::{Counter, Gauge, Histogram};
use super::grpc::Grpc;
use super::operation::Operation;
use super::peer::Peers;
use super::table::{
    ALARMS, APPLIES, CERTIFICATE_EXPIRY, CLIENT_REQUESTS, CLUSTER_VERSION, FEATURE_ENABLED,
    GO_VERSION, HEALTH_CHECK, HEALTH_CHECKS_MADE, KNOWN_PEERS, LEARNER_PROMOTE_FAILURES, MEMORY,
    MEMORY_LIMIT, RANGES, REQUESTS, SCRAPES, SERVER_ID, SERVER_VERSION, STREAM_FAILURES, Scrape,
};
use super::text::{Exposition, Family};
use crate::types::{ETCD_VERSION, MemberId, RUST_VERSION};

/// API versions that get their own series. Clients choose the value freely, and each one costs
/// memory here and in Prometheus for good.
const MAX_CLIENT_VERSIONS: usize = 16;
const MAX_CLIENT_VERSION_BYTES: usize = 64;

/// The checks of /livez and /readyz, as (endpoint, check), in the order they are made.
pub const HEALTH_CHECKS: [(&str, &str); 5] = [
    ("livez", "serializable_read"),
    ("readyz", "data_corruption"),
    ("readyz", "serializable_read"),
    ("readyz", "linearizable_read"),
    ("readyz", "non_learner"),
];

/// A feature gate: its name, `ALPHA` or `BETA`, and whether it is on.
pub type Feature = (&'static str, &'static str, bool);

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    Unary,
    Stream,
}

/// Whose stream broke, by what could not be received. Sending does not fail here: what is sent is
/// handed to the connection, and a stream whose client has gone ends without a failure, as in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFailure {
    Watch,
    KeepAlive,
}

const STREAM_FAILURE_LABELS: [(&str, &str); 2] =
    [("receive", "watch"), ("receive", "lease-keepalive")];

/// Calls with one API version.
struct ClientVersion {
    name: Box<str>,
    unary: Counter,
    stream: Counter,
}

/// What a check said.
#[derive(Default)]
struct HealthCheck {
    passed: Gauge,
    successes: Counter,
    errors: Counter,
}

/// A histogram for successes and one for failures.
struct Outcomes {
    success: Histogram,
    failure: Histogram,
}

impl Outcomes {
    fn of(family: &Family) -> Option<Self> {
        let shape = family.shape?;
        Some(Self {
            success: Histogram::new(shape),
            failure: Histogram::new(shape),
        })
    }

    fn observe(&self, success: bool, took: Duration) {
        let histogram = if success {
            &self.success
        } else {
            &self.failure
        };
        histogram.observe(took);
    }

    fn expose(&self, family: &Family, labels: &[(&'static str, &str)], page: &mut Exposition) {
        for (success, histogram) in [("true", &self.success), ("false", &self.failure)] {
            let reading = histogram.read();
            if reading.count > 0 {
                let mut labels = labels.to_vec();
                labels.push(("success", success));
                page.histogram(family, &labels, reading);
            }
        }
    }
}

/// Outcomes of each operation.
struct ByOperation(Vec<Outcomes>);

impl ByOperation {
    fn of(family: &Family) -> Self {
        Self(
            Operation::ALL
                .iter()
                .filter_map(|_| Outcomes::of(family))
                .collect(),
        )
    }

    fn observe(&self, operation: Operation, success: bool, took: Duration) {
        if let Some(outcomes) = self.0.get(operation as usize) {
            outcomes.observe(success, took);
        }
    }

    /// `more` are labels that all series have.
    fn expose(
        &self,
        family: &Family,
        label: &'static str,
        more: &[(&'static str, &str)],
        page: &mut Exposition,
    ) {
        for (operation, outcomes) in Operation::ALL.iter().zip(&self.0) {
            let mut labels = more.to_vec();
            labels.push((label, operation.name()));
            outcomes.expose(family, &labels, page);
        }
    }
}

/// See the module.
pub struct Labelled {
    server_id: MemberId,
    pub extensive: bool,
    pub features: Vec<Feature>,
    pub grpc: Grpc,
    pub peers: Peers,
    client_versions: [OnceLock<ClientVersion>; MAX_CLIENT_VERSIONS],
    other_client_versions: ClientVersion,
    stream_failures: [Counter; STREAM_FAILURE_LABELS.len()],
    requests: ByOperation,
    applies: ByOperation,
    ranges: Option<Outcomes>,
    health_checks: [HealthCheck; HEALTH_CHECKS.len()],
    /// Touched by scrapes alone.
    alarms_seen: Mutex<BTreeSet<(MemberId, &'static str)>>,
    /// The cluster's versions so far; touched by scrapes alone.
    versions_seen: Mutex<BTreeSet<String>>,
    /// By reason; touched by an operator's requests alone.
    promote_failures: Mutex<BTreeMap<&'static str, u64>>,
    /// By what the certificates are for, in seconds since 1970.
    certificates: Mutex<BTreeMap<&'static str, i64>>,
    scrapes: Counter,
}

impl Labelled {
    pub fn new(server_id: MemberId, extensive: bool) -> Self {
        Self {
            server_id,
            extensive,
            features: Vec::new(),
            grpc: Grpc::default(),
            peers: Peers::default(),
            client_versions: Default::default(),
            other_client_versions: ClientVersion::new("other"),
            stream_failures: Default::default(),
            requests: ByOperation::of(&REQUESTS),
            applies: ByOperation::of(&APPLIES),
            ranges: Outcomes::of(&RANGES),
            health_checks: Default::default(),
            alarms_seen: Mutex::default(),
            versions_seen: Mutex::default(),
            promote_failures: Mutex::default(),
            certificates: Mutex::default(),
            scrapes: Counter::default(),
        }
    }

    pub fn client_request(&self, kind: CallKind, version: &str) {
        let counted = self.client_version(version);
        match kind {
            CallKind::Unary => counted.unary.increment(),
            CallKind::Stream => counted.stream.increment(),
        }
    }

    /// A version not seen before takes the first free place; a thread that loses the race for it
    /// finds another version there and continues its search.
    fn client_version(&self, version: &str) -> &ClientVersion {
        if version.len() > MAX_CLIENT_VERSION_BYTES {
            return &self.other_client_versions;
        }
        self.client_versions
            .iter()
            .map(|slot| slot.get_or_init(|| ClientVersion::new(version)))
            .find(|known| *known.name == *version)
            .unwrap_or(&self.other_client_versions)
    }

    pub fn stream_failed(&self, failure: StreamFailure) {
        self.stream_failures[failure as usize].increment();
    }

    pub fn learner_promotion_failed(&self, reason: &'static str) {
        *self.promote_failures.lock().entry(reason).or_default() += 1;
    }

    pub fn certificate_expires(&self, role: &'static str, at: i64) {
        self.certificates.lock().insert(role, at);
    }

    pub fn requested(&self, operation: Operation, success: bool, took: Duration) {
        self.requests.observe(operation, success, took);
    }

    pub fn applied(&self, operation: Operation, success: bool, took: Duration) {
        self.applies.observe(operation, success, took);
    }

    pub fn ranged(&self, success: bool, took: Duration) {
        if let Some(ranges) = &self.ranges {
            ranges.observe(success, took);
        }
    }

    pub fn health_checked(&self, check: usize, passed: bool) {
        let Some(cells) = self.health_checks.get(check) else {
            return;
        };
        cells.passed.set(i64::from(passed));
        if passed {
            cells.successes.increment();
        } else {
            cells.errors.increment();
        }
    }

    pub fn expose(&self, scrape: &Scrape, page: &mut Exposition) {
        self.grpc.expose(page);
        self.peers.expose(&self.server_id.to_string(), page);
        self.expose_identity(scrape, page);
        self.expose_alarms(scrape, page);
        self.expose_health_checks(page);
        let known = self.client_versions.iter().filter_map(OnceLock::get);
        for version in known.chain([&self.other_client_versions]) {
            version.expose(page);
        }
        for ((way, api), counter) in STREAM_FAILURE_LABELS.iter().zip(&self.stream_failures) {
            if counter.get() > 0 {
                let labels = [("Type", *way), ("API", *api)];
                page.number(&STREAM_FAILURES, &labels, counter.get() as f64);
            }
        }
        self.requests.expose(&REQUESTS, "type", &[], page);
        self.applies
            .expose(&APPLIES, "op", &[("version", "v3")], page);
        if let Some(ranges) = &self.ranges {
            ranges.expose(&RANGES, &[], page);
        }
        for (part, bytes, limit_bytes) in &scrape.memory {
            let labels = [("part", *part)];
            page.number(&MEMORY, &labels, *bytes as f64);
            page.number(&MEMORY_LIMIT, &labels, *limit_bytes as f64);
        }
        let scrapes = self.scrapes.get() as f64;
        for (code, count) in [("200", scrapes), ("500", 0.0), ("503", 0.0)] {
            page.number(&SCRAPES, &[("code", code)], count);
        }
        self.scrapes.increment();
    }

    fn expose_identity(&self, scrape: &Scrape, page: &mut Exposition) {
        let me = self.server_id.to_string();
        page.number(&SERVER_ID, &[("server_id", &me)], 1.0);
        page.number(&SERVER_VERSION, &[("server_version", ETCD_VERSION)], 1.0);
        page.number(&GO_VERSION, &[("server_go_version", RUST_VERSION)], 1.0);
        for (name, stage, on) in &self.features {
            let labels = [("name", *name), ("stage", *stage)];
            page.number(&FEATURE_ENABLED, &labels, f64::from(u8::from(*on)));
        }
        self.expose_cluster_version(scrape, page);
        let known = scrape.members.iter().map(|member| (member, 1.0));
        let removed = scrape.removed.iter().map(|member| (member, 0.0));
        for (member, value) in known.chain(removed) {
            let labels = [("Local", me.as_str()), ("Remote", &member.to_string())];
            page.number(&KNOWN_PEERS, &labels, value);
        }
        for (reason, count) in self.promote_failures.lock().iter() {
            let labels = [("Reason", *reason)];
            page.number(&LEARNER_PROMOTE_FAILURES, &labels, *count as f64);
        }
        for (role, at) in self.certificates.lock().iter() {
            page.number(&CERTIFICATE_EXPIRY, &[("role", *role)], *at as f64);
        }
    }

    fn expose_cluster_version(&self, scrape: &Scrape, page: &mut Exposition) {
        let Some(version) = &scrape.cluster_version else {
            return;
        };
        // The label has no patch level.
        let parts: Vec<_> = version.splitn(3, '.').take(2).collect();
        let current = parts.join(".");
        let mut seen = self.versions_seen.lock();
        seen.insert(current.clone());
        for version in seen.iter() {
            let value = f64::from(u8::from(*version == current));
            page.number(&CLUSTER_VERSION, &[("cluster_version", version)], value);
        }
    }

    fn expose_alarms(&self, scrape: &Scrape, page: &mut Exposition) {
        let mut seen = self.alarms_seen.lock();
        seen.extend(&scrape.alarms);
        for alarm in seen.iter() {
            let active = scrape.alarms.contains(alarm);
            let (member, kind) = alarm;
            let labels = [("server_id", &*member.to_string()), ("alarm_type", *kind)];
            page.number(&ALARMS, &labels, f64::from(u8::from(active)));
        }
    }

    fn expose_health_checks(&self, page: &mut Exposition) {
        for ((kind, name), cells) in HEALTH_CHECKS.iter().zip(&self.health_checks) {
            let labels = [("type", *kind), ("name", *name)];
            let counts = [("success", &cells.successes), ("error", &cells.errors)];
            for (status, counter) in counts {
                if counter.get() > 0 {
                    let [kind, name] = labels;
                    let labels = [kind, name, ("status", status)];
                    page.number(&HEALTH_CHECKS_MADE, &labels, counter.get() as f64);
                }
            }
            if counts.iter().any(|(_, counter)| counter.get() > 0) {
                page.number(&HEALTH_CHECK, &labels, cells.passed.get() as f64);
            }
        }
    }
}

impl ClientVersion {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            unary: Counter::default(),
            stream: Counter::default(),
        }
    }

    fn expose(&self, page: &mut Exposition) {
        for (kind, counter) in [("unary", &self.unary), ("stream", &self.stream)] {
            if counter.get() > 0 {
                let labels = [("type", kind), ("client_api_version", &*self.name)];
                page.number(&CLIENT_REQUESTS, &labels, counter.get() as f64);
            }
        }
    }
}
