//! The pages of the peer port, as etcd writes them: the members and the versions.

use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde::Serialize;
use tonic::body::Body;

use super::context::Context;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::{Description, Nothing, PeerRequest, peer_response};
use crate::proto::membershippb;
use crate::types::{STORAGE_VERSION, version};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CLUSTER_ID: &str = "x-etcd-cluster-id";

/// A member as `/members` shows it.
#[derive(Serialize)]
struct ListedMember<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "is_false")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in references"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Responds to a request of HTTP/1; its body is not read.
pub async fn respond(context: &Context, method: &Method, uri: &Uri) -> Response<Body> {
    let path = uri.path();
    if !matches!(path, "/members" | "/version") {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    if method != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        let get = HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, get);
        return response;
    }
    match described(context).await {
        Some(description) if path == "/members" => members(context, &description),
        Some(description) => versions(&description),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the member is not ready\n"),
    }
}

async fn described(context: &Context) -> Option<Description> {
    let request = PeerRequest {
        request: Some(Kind::Describe(Nothing {})),
    };
    let asked = context.inbound()?.asked(None, request, Some(ANSWER_LIMIT));
    let answer = tokio::time::timeout(ANSWER_LIMIT, asked).await.ok()?.ok()?;
    match answer.response {
        Some(peer_response::Response::Description(description)) => Some(description),
        _ => None,
    }
}

fn members(context: &Context, description: &Description) -> Response<Body> {
    let mut members: Vec<_> = description.members.iter().map(ListedMember::of).collect();
    members.sort_by_key(|member| member.peer_urls.first());
    // Strings and numbers can always be serialised.
    let list = serde_json::to_string(&members).unwrap_or_default();
    let mut response = json(list + "\n");
    if let Ok(id) = HeaderValue::try_from(context.local.cluster.to_string()) {
        response.headers_mut().insert(CLUSTER_ID, id);
    }
    response
}

impl<'a> ListedMember<'a> {
    fn of(member: &'a membershippb::Member) -> Self {
        let raft = member.raft_attributes.as_ref();
        let attributes = member.member_attributes.as_ref();
        Self {
            id: member.id,
            peer_urls: raft.map_or(&[], |raft| &raft.peer_urls),
            is_learner: raft.is_some_and(|raft| raft.is_learner),
            name: attributes.map_or("", |attributes| &attributes.name),
            client_urls: attributes.map_or(&[], |attributes| &attributes.client_urls),
        }
    }
}

fn versions(description: &Description) -> Response<Body> {
    let cluster = Some(description.cluster_version.as_str()).filter(|text| !text.is_empty());
    let server = &description.server_version;
    json(version::page(server, cluster, STORAGE_VERSION))
}

fn json(body: String) -> Response<Body> {
    page(StatusCode::OK, "application/json", body)
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = page(status, "text/plain; charset=utf-8", body.to_owned());
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
