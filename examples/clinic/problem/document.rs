//! The document of a problem: the practice's own codes, a type by status, the id of the request. What has them is done.
//!
//! Try it: `curl localhost:8080/api/nowhere`
//!
//! Proof: `whatever_is_503_is_of_the_type_of_all_503`

use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

const REDUCED_CAPACITY: &str =
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

/// Completes what a layer or handler said; nothing where it is complete, as what was kept and is given again.
pub fn complete(parts: &mut Parts, body: &[u8], id: &str) -> Option<Value> {
    let is_problem = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/problem+json");
    let mut document: Value = if is_problem {
        serde_json::from_slice(body).unwrap_or_default()
    } else {
        plain(parts.status)
    };
    if document.get("request_id").is_some() {
        return None;
    }
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
        if parts.status == StatusCode::SERVICE_UNAVAILABLE {
            members.insert("type".to_owned(), REDUCED_CAPACITY.into());
        }
        if let Some(seconds) = retry_after(&parts.headers) {
            members.insert("retry_after".to_owned(), seconds.into());
        }
    }
    Some(document)
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
