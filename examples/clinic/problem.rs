//! One form for everything that goes wrong: handlers give a `Fault`, layers leave a problem document, and the
//! outermost layer here gives both the practice's own codes and the id of the request.
//!
//! Try it: `curl localhost:8080/nowhere`
//!
//! Proof: `what_is_nowhere_is_a_problem_too`

mod document;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;

use crate::{fakepay, pages};

/// The id of the request, for whatever is told about it.
#[derive(Clone)]
struct RequestId(String);

/// The outermost layer: names the request, forbids keeping what nobody declared keepable, finishes problems.
pub async fn finish(mut request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = keepable(request, next).await;
    let is_keepable = may_be_kept(response.headers());
    let headers = response.headers_mut();
    if !is_keepable {
        let nobody = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, nobody);
    }
    if let Ok(value) = HeaderValue::try_from(id) {
        headers.insert("x-request-id", value);
    }
    response
}

/// Finishes problems. Also beneath a layer that keeps answers: what it gives again is what it gave first, byte for byte, and
/// names the request that was refused first.
pub async fn keepable(request: Request, next: Next) -> Response {
    let head = request.method() == Method::HEAD;
    let is_page = is_page(&request);
    let id = request.extensions().get::<RequestId>().cloned();
    let response = next.run(request).await;
    let status = response.status();
    // What is JSON already says what it has to say: the health of a part that is down.
    let said = response.headers().get(header::CONTENT_TYPE);
    let said =
        said.is_some_and(|kind| kind == "application/json" || kind == "text/html; charset=utf-8");
    let is_problem = (status.is_client_error() || status.is_server_error()) && !head && !said;
    match id {
        Some(RequestId(id)) if is_problem => complete(response, &id, is_page).await,
        _ => response,
    }
}

/// A request as a layer of tower-keep hands it on, as functions of ours take it.
pub fn as_ours(request: axum::http::Request<tower_keep::core::Body<Body>>) -> Request {
    request.map(Body::new)
}

/// What our cache has answered says itself how long it may be kept, and assets do. What a session adds to all that it
/// answers would let a browser keep it.
fn may_be_kept(headers: &HeaderMap) -> bool {
    headers.get(header::CACHE_CONTROL).is_some_and(|said| {
        headers.contains_key("cache-status") || said.as_bytes().starts_with(b"public")
    })
}

/// Gives a refusal our codes and members. What is no problem document yet (axum's own 404 and 405) becomes one.
async fn complete(response: Response, id: &str, is_page: bool) -> Response {
    let (mut parts, body) = response.into_parts();
    let body = to_bytes(body, 64 * 1_024).await.unwrap_or_default();
    let Some(document) = document::complete(&mut parts, &body, id) else {
        return Response::from_parts(parts, Body::from(body));
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    if is_page && let Ok(text) = pages::text("problem.html", page_of(&document)) {
        let (name, policy) = pages::CONTENT_SECURITY;
        parts.headers.insert(name, policy);
        let kind = HeaderValue::from_static("text/html; charset=utf-8");
        parts.headers.insert(header::CONTENT_TYPE, kind);
        return Response::from_parts(parts, Body::from(text));
    }
    let body = document.to_string();
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    Response::from_parts(parts, Body::from(body))
}

/// Whether a person looks at the answer: everything but the API's own paths, and its JSON.
fn is_page(request: &Request) -> bool {
    let path = request.uri().path();
    let own = [
        "/api/",
        "/internal/",
        "/_test/",
        "/oauth/",
        "/metrics",
        "/assets/",
    ];
    if own.iter().any(|prefix| path.starts_with(prefix)) {
        return false;
    }
    !path.starts_with("/fakepay/") || fakepay::is_form(request.headers())
}

fn page_of(document: &Value) -> minijinja::Value {
    minijinja::context! {
        title => document["title"].as_str().unwrap_or("Problem"),
        code => document["code"].as_str(),
        error => document["error"].as_str(),
        request_id => document["request_id"].as_str(),
        wait => document["retry_after"].as_u64().map(waiting),
        back => "/",
    }
}

/// As people say it: never shorter than it is.
fn waiting(seconds: u64) -> String {
    match seconds {
        1 => "a second".to_owned(),
        2..=120 => format!("{seconds} seconds"),
        121..=7_200 => format!("{} minutes", seconds.div_ceil(60)),
        _ => format!("{} hours", seconds.div_ceil(3_600)),
    }
}
