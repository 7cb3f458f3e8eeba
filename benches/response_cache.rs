//! What the response cache costs around one axum route: hits of three sizes, many keys, misses, uncacheable answers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::Cell;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::response_cache::ResponseCacheLayer;

fn route(size: usize, cache: Option<ResponseCacheLayer>) -> Router {
    let body = Bytes::from(vec![b'x'; size]);
    let answer = get(move || {
        let body = body.clone();
        async move { ([("content-type", "text/plain")], body) }
    });
    let answer = match cache {
        Some(cache) => answer.layer(cache),
        None => answer,
    };
    Router::new().route("/{id}", answer)
}

fn cache() -> ResponseCacheLayer {
    let store = MemoryStore::builder().max_bytes(64 * 1_024 * 1_024).build();
    ResponseCacheLayer::new(store)
}

async fn send(app: &Router, path: &str) {
    let request = Request::get(path).header("host", "a.test");
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

fn one_key(c: &mut Criterion, name: &str, app: &Router) {
    c.bench_function(name, |b| {
        b.to_async(runtime()).iter(|| send(app, "/a"));
    });
}

fn many_keys(c: &mut Criterion, name: &str, app: &Router, keys: u64) {
    let next = Cell::new(0_u64);
    c.bench_function(name, |b| {
        b.to_async(runtime()).iter(|| {
            next.set(next.get() + 1);
            let path = format!("/{}", next.get() % keys);
            async move { send(app, &path).await }
        });
    });
}

fn response_cache(c: &mut Criterion) {
    one_key(c, "bare route, 1 KiB", &route(1_024, None));
    for size in [1_024, 64 * 1_024, 1_024 * 1_024] {
        let app = route(size, Some(cache().ttl(10 * MINUTE)));
        one_key(c, &format!("hit, {} KiB", size / 1_024), &app);
    }
    many_keys(c, "bare route, 10,000 paths", &route(1_024, None), 10_000);
    let app = route(1_024, Some(cache().ttl(10 * MINUTE)));
    many_keys(c, "hit, 10,000 keys", &app, 10_000);
    let app = route(1_024, Some(cache().ttl(10 * MINUTE)));
    many_keys(c, "miss, stored", &app, u64::MAX);
    one_key(c, "uncacheable", &route(1_024, Some(cache())));
}

criterion_group!(benches, response_cache);
criterion_main!(benches);
