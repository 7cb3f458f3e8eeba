//! What the idempotency layer adds to a bare axum route: first run, replay, pass, and the three hashes it cannot do without.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use sha2::Sha256;
use tokio::runtime::Runtime;
use tower::{Service, ServiceExt};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope};

fn app() -> Router {
    let answer = Bytes::from(vec![b'y'; 200]);
    let pay = move |body: Bytes| {
        let answer = answer.clone();
        async move {
            black_box(body.len());
            (
                StatusCode::CREATED,
                [(header::CONTENT_TYPE, "application/json")],
                answer,
            )
        }
    };
    Router::new().route("/pay", post(pay))
}

fn request(key: Option<u64>) -> Request<Body> {
    static BODY: Bytes = Bytes::from_static(&[b'z'; 200]);
    let mut request = Request::post("/pay").header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        request = request.header(
            "idempotency-key",
            format!("8e03978e-40d5-43dd-bc93-{key:012x}"),
        );
    }
    request.body(Body::from(BODY.clone())).unwrap()
}

async fn call(app: &mut Router, request: Request<Body>) {
    let response = app
        .as_service::<Body>()
        .ready()
        .await
        .unwrap()
        .call(request)
        .await
        .unwrap();
    black_box(response.into_body().collect().await.unwrap());
}

fn bench(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let guarded = || {
        app().layer(IdempotencyLayer::new(
            MemoryStore::builder()
                .max_bytes(usize::MAX >> 1)
                .max_entries(1 << 30)
                .build(),
            Scope::global(),
        ))
    };
    let next = AtomicU64::new(0);
    let mut group = c.benchmark_group("idempotency");
    let mut run = |name: &str, mut app: Router, key: &dyn Fn() -> Option<u64>| {
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let requests: Vec<_> = (0..times).map(|_| request(key())).collect();
                let started = std::time::Instant::now();
                runtime.block_on(async {
                    for request in requests {
                        call(&mut app, request).await;
                    }
                });
                started.elapsed()
            });
        });
    };
    run("bare route", app(), &|| Some(1));
    run("no key", guarded(), &|| None);
    run("replay", guarded(), &|| Some(1));
    run("first run", guarded(), &|| {
        Some(next.fetch_add(1, Ordering::Relaxed))
    });
    let mut full = guarded();
    runtime.block_on(async {
        for key in 0..100_000 {
            call(&mut full, request(Some(key))).await;
        }
    });
    run("replay among 100,000 keys", full, &|| {
        Some(next.fetch_add(1, Ordering::Relaxed) % 100_000)
    });
    group.bench_function("three hashes", |b| {
        let keyed = Hmac::<Sha256>::new_from_slice(&[1; 32]).unwrap();
        b.iter(|| {
            for length in [9, 80, 300] {
                let mut mac = keyed.clone();
                mac.update(black_box(&[7; 300][..length]));
                black_box(mac.finalize().into_bytes());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
