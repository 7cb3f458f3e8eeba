//! What the reservation layer adds to a bare axum route: a guard not touched, a hold with its commit, a lost race; on memory and SQLite.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceExt};
use tower_keep::HOUR;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{ReservationGuard, ReservationLayer, ReservationRejection, Slot};

/// A slot of its own for each call: one resource per call, the same hour.
fn slot(resource: u64) -> Slot {
    let start = Timestamp::from_millis(4_000_000_000_000);
    Slot::new(format!("r{resource}"), start..start + HOUR)
}

async fn hold(mut guard: ReservationGuard) -> Result<StatusCode, ReservationRejection> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    guard
        .hold(slot(NEXT.fetch_add(1, Ordering::Relaxed)), "u1")
        .await?;
    Ok(StatusCode::CREATED)
}

async fn lose(mut guard: ReservationGuard) -> Result<StatusCode, ReservationRejection> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let holder = format!("u{}", NEXT.fetch_add(1, Ordering::Relaxed));
    guard.hold(slot(0), &holder).await?;
    Ok(StatusCode::CREATED)
}

fn routes() -> Router {
    Router::new()
        .route("/none", post(async || StatusCode::CREATED))
        .route(
            "/untouched",
            post(async |_guard: ReservationGuard| StatusCode::CREATED),
        )
        .route("/hold", post(hold))
        .route("/lose", post(lose))
}

async fn send(app: &mut Router, path: &str) {
    let request = Request::post(path).body(Body::empty()).unwrap();
    let response = ServiceExt::<Request<Body>>::ready(app)
        .await
        .unwrap()
        .call(request)
        .await
        .unwrap();
    black_box(response.into_body().collect().await.unwrap());
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn reservation(criterion: &mut Criterion) {
    let runtime = runtime();
    let memory = MemoryStore::builder().max_entries(10_000_000).build();
    let sqlite = runtime
        .block_on(SqlStore::connect("sqlite::memory:"))
        .unwrap();
    let engines = [
        ("memory", routes().layer(ReservationLayer::new(memory))),
        ("sqlite", routes().layer(ReservationLayer::new(sqlite))),
    ];
    let mut group = criterion.benchmark_group("reservation");
    let mut bare = Router::new().route("/none", post(async || StatusCode::CREATED));
    group.bench_function("bare route", |bencher| {
        bencher.iter(|| runtime.block_on(send(&mut bare, "/none")));
    });
    for (engine, app) in engines {
        for path in ["/untouched", "/hold", "/lose"] {
            let mut app = app.clone();
            group.bench_function(format!("{engine}{path}"), |bencher| {
                bencher.iter(|| runtime.block_on(send(&mut app, path)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, reservation);
criterion_main!(benches);
