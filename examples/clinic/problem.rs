//! One form for everything that goes wrong: handlers give a [`Fault`], layers leave a problem document, and the
//! outermost layer here gives both the practice's own codes and the id of the request.
//!
//! Try it: `curl localhost:8080/nowhere`

use axum::body::{Body, to_bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tower_keep::core::{Problem, StoreError};
use tower_keep::data::queue::QueueError;
use tower_keep::data::topic::TopicError;
use tower_keep::reservation::{ReservationError, ReservationRejection};
use tower_keep::session::{SessionError, SessionRejection};

use crate::{pages, webhooks};

/// A refusal of a handler: a status, a code, a sentence.
#[derive(Debug)]
pub enum Fault {
    Plain(StatusCode, &'static str, &'static str),
    Ready(Box<Response>),
}

impl Fault {
    pub const NOT_FOUND: Self = Self::Plain(
        StatusCode::NOT_FOUND,
        "NOT_FOUND",
        "there is nothing here for you",
    );
    pub const UNAUTHENTICATED: Self =
        Self::Plain(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "log in first");
    pub const FORBIDDEN: Self = Self::Plain(
        StatusCode::FORBIDDEN,
        "FORBIDDEN",
        "your role does not allow this",
    );
    pub const INVALID_VALUE: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "INVALID_VALUE",
        "one of the values cannot be taken",
    );
    pub const SLOT_NOT_OFFERED: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "SLOT_NOT_OFFERED",
        "this start is not offered",
    );
    pub const INTERNAL: Self = Self::Plain(
        StatusCode::INTERNAL_SERVER_ERROR,
        "INTERNAL",
        "something went wrong here",
    );
    pub const UNKNOWN_ROLE: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "UNKNOWN_ROLE",
        "roles are patient, expert, admin and superadmin",
    );

    pub const fn validation(why: &'static str) -> Self {
        Self::Plain(StatusCode::BAD_REQUEST, "VALIDATION", why)
    }

    pub const fn conflict(code: &'static str, why: &'static str) -> Self {
        Self::Plain(StatusCode::CONFLICT, code, why)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::Plain(status, code, why) => Problem::new(status, code)
                .detail(why)
                .response()
                .map(Body::from),
            Self::Ready(response) => *response,
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Ready(Box::new(
            Problem::store_unavailable(error.retry_after_secs())
                .response()
                .map(Body::from),
        ))
    }
}

impl From<SessionError> for Fault {
    fn from(error: SessionError) -> Self {
        SessionRejection::from(error).into()
    }
}

impl From<SessionRejection> for Fault {
    fn from(rejection: SessionRejection) -> Self {
        Self::Ready(Box::new(rejection.into_response()))
    }
}

impl From<ReservationRejection> for Fault {
    fn from(rejection: ReservationRejection) -> Self {
        Self::Ready(Box::new(rejection.into_response()))
    }
}

impl From<ReservationError> for Fault {
    fn from(error: ReservationError) -> Self {
        ReservationRejection::from(error).into()
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        ReservationRejection::from(error).into()
    }
}

impl From<TopicError> for Fault {
    fn from(error: TopicError) -> Self {
        Self::Ready(Box::new(error.into_response()))
    }
}

impl From<QueueError> for Fault {
    fn from(error: QueueError) -> Self {
        tracing::warn!(%error, "the queue cannot answer");
        Self::Ready(Box::new(
            Problem::store_unavailable(1).response().map(Body::from),
        ))
    }
}

/// A JSON body; whatever is wrong with it is 400 `VALIDATION`, or 413 when it is too large.
pub struct Input<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(rejection))
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Fault::Plain(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "BODY_TOO_LARGE",
                    "a body has 64 KiB at most",
                ))
            }
            Err(_) => Err(Fault::validation(
                "the body is not the JSON that this route takes",
            )),
        }
    }
}

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
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::try_from(id) {
        headers.insert("x-request-id", value);
    }
    response
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
        members.entry("error").or_insert(detail);
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
    let own = ["/api/", "/internal/", "/_test/", "/metrics", "/assets/"];
    if own.iter().any(|prefix| path.starts_with(prefix)) {
        return false;
    }
    !path.starts_with("/fakepay/") || webhooks::is_form(request.headers())
}

fn page_of(document: &Value) -> minijinja::Value {
    minijinja::context! {
        title => document["title"].as_str().unwrap_or("Problem"),
        code => document["code"].as_str(),
        error => document["error"].as_str(),
        request_id => document["request_id"].as_str(),
        retry_after => document["retry_after"].as_u64(),
        back => "/",
    }
}

fn plain(status: StatusCode) -> Value {
    let code = match status {
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::METHOD_NOT_ALLOWED => "METHOD_NOT_ALLOWED",
        StatusCode::PAYLOAD_TOO_LARGE => "BODY_TOO_LARGE",
        status if status.is_client_error() => "VALIDATION",
        _ => "INTERNAL",
    };
    json!({ "type": "about:blank", "title": status.canonical_reason().unwrap_or("Problem"), "status": status.as_u16(), "code": code })
}

/// The practice's name for a code of a layer.
fn own_code(code: &str) -> &str {
    match code {
        "SESSION_REQUIRED" => "UNAUTHENTICATED",
        "ROLE_REQUIRED" => "FORBIDDEN",
        "HOLD_NOT_FOUND" | "PAYMENT_NOT_FOUND" => "NOT_FOUND",
        "HOLD_EXPIRED" => "PAYMENT_SESSION_EXPIRED",
        "SLOT_IN_PAST" | "SLOT_INVALID" => "SLOT_NOT_OFFERED",
        "IDEMPOTENCY_KEY_REUSED" | "IDEMPOTENCY_IN_PROGRESS" => code,
        other => other,
    }
}

fn retry_after(headers: &axum::http::HeaderMap) -> Option<u64> {
    headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
