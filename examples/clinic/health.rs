//! Health: each part asked now, never remembered from the start.
//!
//! Try it: `curl localhost:8080/api/health`

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tower_keep::SECOND;
use tower_keep::backend::health::StoreMode;
use tower_keep::reservation::HoldRef;

use crate::problem::Fault;
use crate::state::App;

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
