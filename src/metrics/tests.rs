//! Reads pages back as Prometheus would, and holds the table against the families that etcd
//! v3.7.3 shows (`etcd_families.txt`: those of a fresh single member after one `/readyz`, without
//! the Go runtime's).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tonic::Code;

use super::table::FAMILIES;
use super::text::Kind;
use super::*;

/// Shown by etcd after events that a fresh member may not have seen.
const ONCE_SOMETHING_HAPPENED: [&str; 20] = [
    "etcd_server_learner_promote_failures",
    "etcd_server_client_requests_total",
    "etcd_network_server_stream_failures_total",
    "etcd_debugging_server_alarms",
    "grpc_server_handling_seconds",
    "etcd_network_active_peers",
    "etcd_network_disconnected_peers_total",
    "etcd_network_peer_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_peer_sent_failures_total",
    "etcd_network_peer_received_failures_total",
    "etcd_network_peer_round_trip_time_seconds",
    "etcd_network_snapshot_send_success",
    "etcd_network_snapshot_send_failures",
    "etcd_network_snapshot_send_inflights_total",
    "etcd_network_snapshot_send_total_duration_seconds",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_receive_failures",
    "etcd_network_snapshot_receive_inflights_total",
    "etcd_network_snapshot_receive_total_duration_seconds",
];

const METHODS: [Method; 3] = [
    ("etcdserverpb.KV", "Range", "unary"),
    ("etcdserverpb.Watch", "Watch", "bidi_stream"),
    ("v3lockpb.Lock", "Lock", "unary"),
];

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

/// A page read back: types by family, numbers by series.
#[derive(Default)]
struct Page {
    types: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
}

/// Reads a page strictly; panics where it breaks the format.
fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut family = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(name > family.as_str(), "{name} after {family}");
            assert!(!help.is_empty(), "{name}");
            family = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, family);
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            page.types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let suffix = name.strip_prefix(&family).expect("a series of its family");
            let histogram = page.types[&family] == "histogram";
            let known = ["_bucket", "_sum", "_count"].contains(&suffix);
            assert_eq!(known, histogram, "{line}");
            check_labels(series);
            let value = value.parse().expect("a number");
            let before = page.series.insert(series.to_owned(), value);
            assert_eq!(before, None, "{series} twice");
        }
    }
    page
}

fn check_labels(series: &str) {
    let Some((_, labels)) = series.split_once('{') else {
        return;
    };
    let labels = labels.strip_suffix("\"}").expect("closed labels");
    for label in labels.split("\",") {
        let (name, _) = label.split_once("=\"").expect("a label");
        let proper = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        assert!(name.bytes().all(proper), "{series}");
    }
}

fn used() -> Metrics {
    let metrics = Metrics::new(MemberId(0xb71f), true)
        .with_methods(&METHODS)
        .with_features(vec![("AllAlpha", "ALPHA", false)]);
    metrics.grpc_started(0);
    metrics.grpc_received(0);
    metrics.grpc_sent(0);
    metrics.grpc_handled(0, Code::NotFound);
    metrics.grpc_handling(0, Duration::from_millis(7));
    metrics.grpc_started(99);
    metrics.client_request(CallKind::Unary, None);
    metrics.client_request(CallKind::Stream, Some("3.7\"\\"));
    metrics.stream_failed(StreamFailure::KeepAlive);
    metrics.learner_promotion_failed("membership: ID not found");
    metrics.certificate_expires("client", 1);
    metrics.certificate_expires("client", 1_800_000_000);
    metrics.requested(Operation::Put, true, Duration::from_millis(3));
    metrics.applied(Operation::Txn, false, Duration::from_micros(150));
    metrics.ranged(true, Duration::from_micros(1));
    for check in 0..HEALTH_CHECKS.len() {
        metrics.health_checked(check, check != 1);
    }
    metrics.wal_fsync.observe(Duration::from_micros(1_500));
    use_peer(&metrics);
    metrics
}

fn use_peer(metrics: &Metrics) {
    metrics.list_peers([MemberId(0xa1)]);
    let peer = metrics.peer(MemberId(0xa1));
    peer.connections.made.add(2);
    peer.connections.lost.increment();
    peer.sent_bytes.add(30);
    // The cells are found again.
    metrics.peer(MemberId(0xa1)).received_bytes.add(7);
    peer.send_failures.increment();
    peer.receive_failures.increment();
    peer.round_trip_time.observe(Duration::from_micros(150));
    for transfers in [&peer.snapshots_sent, &peer.snapshots_received] {
        transfers.successes.increment();
        transfers.failures.increment();
        transfers.took.observe(Duration::from_secs(1));
    }
}

fn full_scrape() -> Scrape {
    Scrape {
        cluster_version: Some("3.7.0".to_owned()),
        members: vec![MemberId(0xb71f)],
        alarms: vec![(MemberId(5), "NOSPACE")],
        memory: vec![("answers", 3, 24)],
        ..Scrape::filled(2.0)
    }
}

#[test]
fn a_page_reads_back() {
    let page = parse(&used().render(&full_scrape()));
    for (series, value) in [
        ("etcd_server_has_leader", 2.0),
        ("etcd_server_id{server_id=\"b71f\"}", 1.0),
        ("etcd_cluster_version{cluster_version=\"3.7\"}", 1.0),
        (
            "etcd_network_known_peers{Local=\"b71f\",Remote=\"b71f\"}",
            1.0,
        ),
        ("etched_memory_bytes{part=\"answers\"}", 3.0),
        ("etched_memory_limit_bytes{part=\"answers\"}", 24.0),
        (
            "etched_certificate_expiry_timestamp_seconds{role=\"client\"}",
            1.8e9,
        ),
        (
            "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"5\"}",
            1.0,
        ),
        (
            "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"}",
            1.0,
        ),
        (
            "etcd_server_client_requests_total{client_api_version=\"3.7\\\"\\\\\",type=\"stream\"}",
            1.0,
        ),
        (
            "etcd_network_server_stream_failures_total{API=\"lease-keepalive\",Type=\"receive\"}",
            1.0,
        ),
        (
            "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"}",
            1.0,
        ),
        (
            "etcd_server_apply_duration_seconds_bucket{op=\"Txn\",success=\"false\",version=\"v3\",le=\"0.0002\"}",
            1.0,
        ),
        (
            "etcd_server_healthcheck{name=\"data_corruption\",type=\"readyz\"}",
            0.0,
        ),
        (
            "etcd_server_healthchecks_total{name=\"data_corruption\",status=\"error\",type=\"readyz\"}",
            1.0,
        ),
        (
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"}",
            1.0,
        ),
        ("etcd_disk_wal_fsync_duration_seconds_sum", 0.0015),
        (
            "etcd_network_active_peers{Local=\"b71f\",Remote=\"a1\"}",
            1.0,
        ),
        (
            "etcd_network_disconnected_peers_total{Local=\"b71f\",Remote=\"a1\"}",
            1.0,
        ),
        ("etcd_network_peer_sent_bytes_total{To=\"a1\"}", 30.0),
        ("etcd_network_peer_received_bytes_total{From=\"a1\"}", 7.0),
        (
            "etcd_network_peer_round_trip_time_seconds_bucket{To=\"a1\",le=\"0.0002\"}",
            1.0,
        ),
        (
            "etcd_network_snapshot_receive_total_duration_seconds_sum{From=\"a1\"}",
            1.0,
        ),
        ("etcd_network_snapshot_send_inflights_total{To=\"a1\"}", 0.0),
        (
            "grpc_server_handled_total{grpc_code=\"NotFound\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            1.0,
        ),
        (
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}",
            0.0,
        ),
        (
            "grpc_server_handling_seconds_bucket{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\",le=\"0.01\"}",
            1.0,
        ),
    ] {
        assert_eq!(page.series.get(series), Some(&value), "{series}");
    }
    let locks = page.series.keys().any(|series| series.contains("v3lockpb"));
    assert!(!locks, "a service is shown before it was used");
    let failed_puts = page
        .series
        .contains_key("etcd_server_request_duration_seconds_count{success=\"false\",type=\"Put\"}");
    assert!(!failed_puts, "a series is shown before its event");
}

#[test]
fn buckets_grow_up_to_the_count() {
    let page = parse(&used().render(&full_scrape()));
    let mut seen = 0;
    for (name, kind) in &page.types {
        let prefix = format!("{name}_count");
        let counts = page.series.iter().filter(|(series, _)| {
            kind == "histogram" && series.split('{').next() == Some(prefix.as_str())
        });
        for (series, count) in counts {
            let labels = series.strip_prefix(&prefix).unwrap_or_default();
            let labels = labels.trim_end_matches('}').trim_start_matches('{');
            let lead = if labels.is_empty() { "" } else { "," };
            let infinite = format!("{name}_bucket{{{labels}{lead}le=\"+Inf\"}}");
            assert_eq!(page.series.get(&infinite), Some(count), "{infinite}");
            seen += 1;
        }
    }
    assert!(seen > 25, "{seen}");
}

#[test]
fn a_used_member_shows_the_families_of_etcd() {
    let expected: BTreeMap<_, _> = include_str!("etcd_families.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let page = parse(&used().render(&full_scrape()));
    for (name, kind) in &page.types {
        // What etcd has no name for has one of ours.
        let is_ours = name.starts_with("etched_");
        if !is_ours && !ONCE_SOMETHING_HAPPENED.contains(&name.as_str()) {
            assert_eq!(expected.get(name.as_str()), Some(&kind.as_str()), "{name}");
        }
    }
    for (name, kind) in &expected {
        assert_eq!(
            page.types.get(*name).map(String::as_str),
            Some(*kind),
            "{name}"
        );
    }
}

#[test]
fn the_table_names_every_family_once() {
    let names: BTreeSet<_> = FAMILIES.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), FAMILIES.len());
    let page = parse(&used().render(&full_scrape()));
    for (name, kind) in FAMILIES {
        let shown = page.types.get(*name).map(String::as_str);
        assert_eq!(shown, Some(kind_name(*kind)), "{name}");
    }
    assert_eq!(page.types.len(), FAMILIES.len());
}

#[test]
fn what_is_not_known_is_not_shown() {
    let metrics = Metrics::new(MemberId(1), false).with_methods(&METHODS);
    let page = parse(&metrics.render(&Scrape::default()));
    for absent in [
        "etcd_server_has_leader",
        "etcd_debugging_mvcc_keys_total",
        "etcd_cluster_version",
        "etcd_debugging_server_alarms",
        "etcd_server_healthcheck",
        "grpc_server_handling_seconds",
    ] {
        assert!(!page.types.contains_key(absent), "{absent}");
    }
}

#[test]
fn an_alarm_stays_in_sight_once_cleared() {
    let metrics = Metrics::new(MemberId(1), false);
    metrics.render(&full_scrape());
    let page = parse(&metrics.render(&Scrape::default()));
    let series = "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"5\"}";
    assert_eq!(page.series.get(series), Some(&0.0));
    let scrapes = "promhttp_metric_handler_requests_total{code=\"200\"}";
    assert_eq!(page.series.get(scrapes), Some(&1.0));
}

#[test]
fn what_is_past_shows_zero() {
    let metrics = Metrics::new(MemberId(1), false);
    metrics.render(&full_scrape());
    let scrape = Scrape {
        cluster_version: Some("3.6.0".to_owned()),
        members: vec![MemberId(1)],
        removed: vec![MemberId(2)],
        ..Default::default()
    };
    let page = parse(&metrics.render(&scrape));
    for (series, value) in [
        ("etcd_cluster_version{cluster_version=\"3.7\"}", 0.0),
        ("etcd_cluster_version{cluster_version=\"3.6\"}", 1.0),
        ("etcd_network_known_peers{Local=\"1\",Remote=\"1\"}", 1.0),
        ("etcd_network_known_peers{Local=\"1\",Remote=\"2\"}", 0.0),
    ] {
        assert_eq!(page.series.get(series), Some(&value), "{series}");
    }
}

/// A client can send any version: those beyond a number share one series.
#[test]
fn client_versions_are_bounded() {
    let metrics = Metrics::new(MemberId(1), false);
    for version in 0..100 {
        metrics.client_request(CallKind::Unary, Some(&version.to_string()));
        metrics.client_request(CallKind::Unary, Some("0"));
    }
    metrics.client_request(CallKind::Unary, Some(&"x".repeat(1_000)));
    let page = parse(&metrics.render(&Scrape::default()));
    let counted: Vec<_> = page
        .series
        .iter()
        .filter(|(series, _)| series.starts_with("etcd_server_client_requests_total"))
        .collect();
    assert_eq!(counted.len(), 17);
    let total: f64 = counted.iter().map(|(_, count)| **count).sum();
    assert_eq!(total, 201.0);
}
