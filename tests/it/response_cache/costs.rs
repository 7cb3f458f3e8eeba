//! What a request costs in this process: allocations and bytes that stay, counted, never timed.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::get;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, header};
use tower::ServiceExt as _;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::ttl::HOUR;

use crate::support::cost::cost;

const BODY: &[u8] = &[b'x'; 1_024];

fn bare() -> Router {
    let handler = || async {
        let fields = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "public, max-age=3600"),
            (header::ETAG, "\"abcdef0123456789\""),
        ];
        (fields, Bytes::from_static(BODY))
    };
    Router::new().route("/item/{id}", get(handler))
}

fn ask(app: &Router, id: u64) {
    let request = Request::get(format!("/item/{id}"))
        .header(header::HOST, "example.org")
        .body(Body::empty())
        .unwrap();
    let response = app.clone().oneshot(request).now_or_never();
    let body = response.expect("known at once").unwrap().into_body();
    let body = to_bytes(body, 2_000).now_or_never();
    assert_eq!(body.expect("known at once").unwrap(), BODY);
}

#[tokio::test]
async fn a_miss_and_a_hit_allocate_little_and_an_entry_stays_small() {
    let layer = ResponseCacheLayer::new(MemoryStore::new()).ttl(HOUR);
    let (bare, app) = (bare(), bare().layer(layer));
    let (allocations, _) = cost(|n| ask(&bare, n));
    let (miss, stays) = cost(|n| ask(&app, n));
    let (hit, nothing) = cost(|_| ask(&app, 1));
    let added = miss - allocations;
    assert!(added <= MOST_OF_A_MISS, "{added} for a miss");
    let added = hit - allocations;
    assert!(added <= MOST_OF_A_HIT, "{added} for a hit");
    let beside = stays - BODY.len() as f64;
    assert!(beside <= 800.0, "{beside} bytes beside the body");
    assert!(nothing < 1.0, "{nothing} bytes of a hit");
}

/// With the features for telemetry on, and the growth of tables included.
const MOST_OF_A_MISS: f64 = 24.0;
const MOST_OF_A_HIT: f64 = 6.0;
