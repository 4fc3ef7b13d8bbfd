//! Answers of members in states that a healthy single member is hardly ever seen in. The usual
//! ones are compared with a running etcd's by compat-tests/httpcases.

use std::time::Duration;

use http::HeaderValue;
use http_body_util::BodyExt;

use super::*;
use crate::proto::etcdserverpb::{AlarmMember, AlarmType};
use crate::replica::cluster_status::ClusterStatus;
use crate::service::fixture::{self, ME};

/// A member over an empty store, without a leader.
fn service() -> HttpService {
    HttpService::new(fixture::single_member())
}

fn lead(service: &HttpService) {
    fixture::set_leader(&service.handle, ME);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn ask(service: &HttpService, target: &str) -> (u16, String) {
    let request = Request::builder()
        .uri(target)
        .header("host", "probe")
        .body(String::new())
        .expect("a request");
    let response = service.respond(request, None).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body");
    (
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    )
}

fn check(service: &HttpService, cases: &[(&str, u16, &str)]) {
    for (target, status, body) in cases {
        let answer = runtime().block_on(ask(service, target));
        assert_eq!(answer, (*status, (*body).to_owned()), "{target}");
    }
}

const HEALTHY: &str = "{\"health\":\"true\",\"reason\":\"\"}";

#[test]
fn without_a_leader_the_member_lives_and_is_not_healthy() {
    let service = service();
    check(
        &service,
        &[
            (
                "/health",
                503,
                "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n",
            ),
            ("/health?serializable=true", 200, HEALTHY),
            ("/livez", 200, "ok\n"),
            ("/readyz?exclude=linearizable_read", 200, "ok\n"),
            (
                "/version",
                200,
                "{\"etcdserver\":\"3.7.3\",\"etcdcluster\":\"not_decided\",\"storage\":\"3.7.0\"}",
            ),
        ],
    );
}

#[test]
fn readiness_waits_for_a_leader_for_a_while() {
    let service = service();
    let asked = service.clone();
    let answer = runtime().block_on(async move {
        let waiting = tokio::spawn(async move { ask(&asked, "/readyz").await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished(), "it did not wait");
        lead(&service);
        waiting.await
    });
    assert_eq!(answer.expect("an answer"), (200, "ok\n".to_owned()));
}

#[test]
fn a_learner_is_healthy_and_not_ready() {
    let service = service();
    lead(&service);
    fixture::set_members(&service.handle, &[(ME, true)]);
    check(
        &service,
        &[
            ("/health", 200, HEALTHY),
            ("/livez", 200, "ok\n"),
            (
                "/readyz/non_learner",
                503,
                "[-]non_learner failed: not supported for learner\n\n",
            ),
        ],
    );
}

#[test]
fn of_several_alarms_the_lack_of_space_is_named() {
    let service = service();
    lead(&service);
    let alarm = |member_id, kind: AlarmType| AlarmMember {
        member_id,
        alarm: kind as i32,
    };
    service.handle.shared().publish_status(ClusterStatus {
        alarms: vec![
            alarm(7, AlarmType::Corrupt),
            alarm(ME.0, AlarmType::Nospace),
        ],
        ..Default::default()
    });
    check(
        &service,
        &[
            (
                "/health?serializable=true",
                503,
                "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n",
            ),
            (
                "/health?exclude=NOSPACE",
                503,
                "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n",
            ),
            ("/health?exclude=NOSPACE&exclude=CORRUPT", 200, HEALTHY),
            ("/livez", 200, "ok\n"),
            (
                "/readyz",
                503,
                "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n\
                 [+]linearizable_read ok\n[+]non_learner ok\n\n",
            ),
        ],
    );
    let (status, page) = runtime().block_on(ask(&service, "/metrics"));
    assert_eq!(status, 200);
    for line in [
        "etcd_server_health_failures 2\n",
        "etcd_server_health_success 1\n",
        "etcd_server_healthcheck{name=\"data_corruption\",type=\"readyz\"} 0\n",
        "etcd_debugging_server_alarms{alarm_type=\"CORRUPT\",server_id=\"7\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}");
    }
}

#[test]
fn a_metrics_listener_shows_neither_versions_nor_cors() {
    let service = service().metrics_only();
    check(&service, &[("/version", 404, "404 page not found\n")]);
    let request = Request::builder()
        .method(Method::OPTIONS)
        .uri("/health")
        .header("host", "probe")
        .body(String::new())
        .expect("a request");
    let response = runtime().block_on(service.respond(request, None));
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    let origin = response.headers().get("access-control-allow-origin");
    assert_eq!(origin, None);
}

#[test]
fn gzip_is_sent_to_whom_it_is_welcome() {
    for (offer, welcome) in [
        ("gzip", true),
        ("deflate, GZIP;q=0.5", true),
        ("gzip;q=0", false),
        ("gzip; q=0.0", false),
        ("identity", false),
        ("", false),
    ] {
        let value = HeaderValue::from_static(offer);
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
        assert_eq!(accepts_gzip(&headers), welcome, "{offer}");
    }
    assert!(!accepts_gzip(&HeaderMap::new()));
}

#[test]
fn a_log_level_is_changed_by_who_says_which() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    static DEBUG: AtomicBool = AtomicBool::new(false);
    let with_level = service().with_log_level(LogLevel {
        current: || if DEBUG.load(SeqCst) { "debug" } else { "info" },
        set: |name| match name {
            "debug" | "info" => {
                DEBUG.store(name == "debug", SeqCst);
                Some(())
            }
            _ => None,
        },
    });
    let long = format!("{{\"level\":\"{}\"}}", "x".repeat(5000));
    for (method, body, status, answer) in [
        ("GET", "", 200, "{\"level\":\"info\"}\n"),
        (
            "PUT",
            "{\"level\":\"debug\"}",
            200,
            "{\"level\":\"debug\"}\n",
        ),
        (
            "PUT",
            long.as_str(),
            400,
            "{\"error\":\"malformed request body: length limit exceeded\"}\n",
        ),
        (
            "POST",
            "{\"level\":\"info\"}",
            405,
            "{\"error\":\"Only GET and PUT are supported.\"}\n",
        ),
        ("GET", "", 200, "{\"level\":\"debug\"}\n"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri("/debug/log-level")
            .header("host", "operator")
            .body(body.to_owned())
            .expect("a request");
        let answered = runtime().block_on(async {
            let response = with_level.respond(request, None).await;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a body");
            (status, body.to_bytes())
        });
        assert_eq!(answered, (status, answer.into()), "{method} {body:.30}");
    }
    // Not among probes and metrics.
    let metrics = with_level.metrics_only();
    check(
        &metrics,
        &[("/debug/log-level", 404, "404 page not found\n")],
    );
}
