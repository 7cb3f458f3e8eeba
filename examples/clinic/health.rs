//! Health: each part asked now, never remembered from the start.
//!
//! Try it: `curl localhost:8080/api/health`

use std::sync::OnceLock;
use std::time::Instant;

use axum::Json;
use axum::extract::{MatchedPath, Path, Request, State as Extract};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tower_keep::SECOND;
use tower_keep::backend::health::StoreMode;
use tower_keep::reservation::HoldRef;

use crate::problem::Fault;
use crate::state::App;

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to gather the measurements of all layers; they are shown by `/metrics`.
pub fn gather() {
    if let Ok(handle) = PrometheusBuilder::new().install_recorder() {
        let _ = RECORDER.set(handle);
    }
}

/// `GET /metrics`
pub async fn metrics() -> impl IntoResponse {
    let text = RECORDER.get().map(PrometheusHandle::render);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text.unwrap_or_default())
}

/// Counts requests by the pattern of their route: a raw path would be a name without end.
pub async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    let method = method_of(request.method());
    let response = next.run(request).await;
    if !route.starts_with("/_test/") {
        let status = response.status().as_u16().to_string();
        let labels = [
            ("route", route),
            ("method", method.to_owned()),
            ("status", status),
        ];
        ::metrics::counter!("clinic_requests_total", &labels).increment(1);
    }
    response
}

/// Clients may make up methods; these are all that count by name.
fn method_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

struct Check {
    up: bool,
    response_ms: u64,
}

impl Check {
    fn json(&self) -> Value {
        json!({ "status": if self.up { "healthy" } else { "down" }, "response_ms": self.response_ms })
    }
}

/// `GET /api/health`: 503 only without the database; without the store the practice works on, degraded.
pub async fn all(Extract(app): Extract<App>) -> (StatusCode, Json<Value>) {
    let started = Instant::now();
    let (store, db) = tokio::join!(store(&app), db(&app));
    let mode = app.store.mode();
    let (code, status) = match (db.up, store.up && mode != StoreMode::Fallback) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "down"),
        (true, false) => (StatusCode::OK, "degraded"),
        (true, true) => (StatusCode::OK, "healthy"),
    };
    let body = json!({
        "status": status,
        "mode": mode.to_string(),
        "response_ms": millis(started),
        "checks": { "store": store.json(), "db": db.json() },
    });
    (code, Json(body))
}

/// `GET /api/health/{part}`
pub async fn part(Extract(app): Extract<App>, Path(part): Path<String>) -> Result<Response, Fault> {
    let check = match part.as_str() {
        "store" => store(&app).await,
        "db" => db(&app).await,
        _ => return Err(Fault::NOT_FOUND),
    };
    let code = if check.up {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (code, Json(check.json())).into_response();
    let status = HeaderValue::from_static(if check.up { "healthy" } else { "down" });
    response.headers_mut().insert("x-service-status", status);
    Ok(response)
}

async fn store(app: &App) -> Check {
    check(async { app.store.ping().await.is_ok() }).await
}

async fn db(app: &App) -> Check {
    check(async {
        app.reservations
            .find(HoldRef::payment("health"))
            .await
            .is_ok()
    })
    .await
}

async fn check(asked: impl Future<Output = bool>) -> Check {
    let started = Instant::now();
    let up = tokio::time::timeout(SECOND, asked).await.unwrap_or(false);
    Check {
        up,
        response_ms: millis(started),
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
