//! What the session layer adds to a bare axum route: untouched, read, written blind, role check, login.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceExt};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::Principal;
use tower_keep::session::{Session, SessionLayer};

fn routes() -> Router {
    Router::new()
        .route("/none", get(async || "ok"))
        .route(
            "/read",
            get(async |session: Session| {
                black_box(session.get::<u64>("n").await.unwrap());
                "ok"
            }),
        )
        .route(
            "/write",
            get(async |session: Session| {
                session.insert("n", &2_u64).unwrap();
                "ok"
            }),
        )
        .route(
            "/role",
            get(async |session: Session| {
                session.require_role("admin").await.unwrap();
                "ok"
            }),
        )
        .route(
            "/login",
            get(async |session: Session| {
                session.insert("n", &1_u64).unwrap();
                session
                    .login(Principal::new("u1").roles(["admin"]))
                    .await
                    .unwrap();
                "ok"
            }),
        )
}

async fn send(app: &mut Router, path: &str, cookie: &str) -> http::HeaderMap {
    let mut request = Request::get(path);
    if !cookie.is_empty() {
        request = request.header("cookie", cookie);
    }
    let request = request.body(Body::empty()).unwrap();
    let ready = ServiceExt::<Request<Body>>::ready(app).await.unwrap();
    let (parts, body) = ready.call(request).await.unwrap().into_parts();
    body.collect().await.unwrap();
    parts.headers
}

fn bench(c: &mut Criterion) {
    let runtime: Runtime = Builder::new_current_thread().build().unwrap();
    let mut bare = routes();
    let mut app = routes().layer(SessionLayer::new(MemoryStore::new()));
    let fields = runtime.block_on(send(&mut app, "/login", ""));
    let set_cookie = fields["set-cookie"].to_str().unwrap().to_owned();
    let cookie = set_cookie.split(';').next().unwrap();
    c.bench_function("session/bare route", |b| {
        b.iter(|| runtime.block_on(send(&mut bare, "/none", cookie)));
    });
    for (name, path, cookie) in [
        ("no cookie, untouched", "/none", ""),
        ("cookie, untouched", "/none", cookie),
        ("value read", "/read", cookie),
        ("value written blind", "/write", cookie),
        ("role check", "/role", cookie),
        ("login", "/login", ""),
    ] {
        c.bench_function(&format!("session/{name}"), |b| {
            b.iter(|| runtime.block_on(send(&mut app, path, cookie)));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
