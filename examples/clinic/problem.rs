//! One form for everything that goes wrong: handlers give a `Fault`, layers leave a problem document, and the
//! outermost layer here gives both the practice's own codes and the id of the request.
//!
//! Try it: `curl localhost:8080/nowhere`
//!
//! Proof: `what_is_nowhere_is_a_problem_too`

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Value, json};

use crate::{fakepay, pages};

/// The outermost layer: names the request, forbids keeping what nobody declared keepable, finishes problems.
pub async fn finish(request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let head = request.method() == Method::HEAD;
    let is_page = is_page(&request);
    let mut response = next.run(request).await;
    let status = response.status();
    // What is JSON already says what it has to say: the health of a part that is down.
    let said = response.headers().get(header::CONTENT_TYPE);
    let said =
        said.is_some_and(|kind| kind == "application/json" || kind == "text/html; charset=utf-8");
    if (status.is_client_error() || status.is_server_error()) && !head && !said {
        response = complete(response, &id, is_page).await;
    }
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
    let is_problem = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/problem+json");
    let mut document: Value = if is_problem {
        serde_json::from_slice(&body).unwrap_or_default()
    } else {
        plain(parts.status)
    };
    let code = own_code(document["code"].as_str().unwrap_or("INTERNAL")).to_owned();
    if code == "UNAUTHENTICATED" {
        parts.headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Session"),
        );
    }
    if let Some(members) = document.as_object_mut() {
        let detail = members
            .get("detail")
            .cloned()
            .unwrap_or_else(|| members["title"].clone());
        members.entry("error").or_insert(detail.clone());
        members.entry("detail").or_insert(detail);
        members.insert("code".to_owned(), code.into());
        members.insert("request_id".to_owned(), id.into());
        if let Some(seconds) = retry_after(&parts.headers) {
            members.insert("retry_after".to_owned(), seconds.into());
        }
    }
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

fn plain(status: StatusCode) -> Value {
    let (code, why) = match status {
        StatusCode::NOT_FOUND => ("NOT_FOUND", "there is nothing at this address"),
        StatusCode::METHOD_NOT_ALLOWED => ("METHOD_NOT_ALLOWED", "this address does not take that"),
        StatusCode::PAYLOAD_TOO_LARGE => ("BODY_TOO_LARGE", "a body has 64 KiB at most"),
        status if status.is_client_error() => ("VALIDATION", "the request is incomplete or wrong"),
        _ => ("INTERNAL", "something went wrong here"),
    };
    let title = status.canonical_reason().unwrap_or("Problem");
    json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "code": code, "detail": why })
}

/// The practice's name for a code of a layer.
fn own_code(code: &str) -> &str {
    match code {
        "SESSION_REQUIRED" => "UNAUTHENTICATED",
        "ROLE_REQUIRED" => "FORBIDDEN",
        "HOLD_NOT_FOUND" | "PAYMENT_NOT_FOUND" => "NOT_FOUND",
        "HOLD_EXPIRED" => "PAYMENT_SESSION_EXPIRED",
        "SLOT_IN_PAST" | "SLOT_INVALID" => "SLOT_NOT_OFFERED",
        "IDEMPOTENCY_FIELDS_INVALID" | "IDEMPOTENCY_BODY_UNREADABLE" => "VALIDATION",
        other => other,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok()
}
