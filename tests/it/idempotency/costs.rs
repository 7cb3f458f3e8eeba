//! What a request costs in this process: allocations and bytes that stay, counted, never timed.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::post;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, StatusCode, header};
use tower::ServiceExt as _;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Preset, Scope};

use crate::support::cost::cost;

fn bare() -> Router {
    let handler = || async {
        let fields = [(header::CONTENT_TYPE, "application/json")];
        (
            StatusCode::CREATED,
            fields,
            Bytes::from_static(b"{\"paid\":true}"),
        )
    };
    Router::new().route("/pay", post(handler))
}

fn guarded() -> Router {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    bare().layer(layer.preset(Preset::Api).secret([7; 32]))
}

fn pay(app: &Router, key: u64) {
    let request = Request::post("/pay")
        .header("idempotency-key", format!("a-key-{key:08}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from("{\"amount\":1}"))
        .unwrap();
    let response = app.clone().oneshot(request).now_or_never();
    let response = response.expect("known at once").unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let body = to_bytes(response.into_body(), 1_000).now_or_never();
    assert_eq!(
        body.expect("known at once").unwrap(),
        "{\"paid\":true}".as_bytes()
    );
}

#[tokio::test]
async fn a_first_run_and_a_replay_allocate_little_and_a_record_stays_small() {
    let (bare, app) = (bare(), guarded());
    let (allocations, _) = cost(|n| pay(&bare, n));
    let (first, stays) = cost(|n| pay(&app, n));
    let (replay, nothing) = cost(|_| pay(&app, 1));
    let added = first - allocations;
    assert!(added <= MOST_OF_A_RUN, "{added} for a first run");
    let added = replay - allocations;
    assert!(added <= MOST_OF_A_REPLAY, "{added} for a replay");
    assert!(stays <= 480.0, "{stays} bytes of a record");
    assert!(nothing < 1.0, "{nothing} bytes of a replay");
}

/// With the features for telemetry on, and the growth of tables included.
const MOST_OF_A_RUN: f64 = 36.0;
const MOST_OF_A_REPLAY: f64 = 16.0;
