//! A server for the tests of idempotency: its handler says how far it is, and may be told to wait there for its end.
//!
//! `idempotency_runs MODE STORE SINK LEASE_MS`: `leased`, `undecided` or `transactional`; the store of claims;
//! a SQLite file where a leased run's effects are counted, each fenced.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use sqlx::AssertSqlSafe;
use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, Sqlite};
use tower_keep::idempotency::{IdempotencyLayer, IdempotentRun, LeaseEnd, Scope, Twins};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, url, sink, lease, twins] = &arguments[..] else {
        panic!("mode, store, sink, lease, twins");
    };
    let lease = Duration::from_millis(lease.parse().unwrap());
    let twins = match &twins[..] {
        "attach" => Twins::Attach(60 * SECOND),
        _ => Twins::Reject,
    };
    let sink = connect(sink, 30 * SECOND).await;
    let (layer, effects) = match &mode[..] {
        "transactional" => {
            let db = connect(url, lease).await;
            let layer = IdempotencyLayer::transactional(db.clone(), Scope::global());
            (layer, Effects::InTransaction(db))
        }
        _ if url.starts_with("redis") => {
            let store = RedisStore::connect(url).await.unwrap();
            let layer = IdempotencyLayer::new(store, Scope::global());
            (layer, Effects::Fenced(sink))
        }
        _ => {
            let store = connect(url, 30 * SECOND).await;
            let layer = IdempotencyLayer::new(store, Scope::global());
            (layer, Effects::Fenced(sink))
        }
    };
    let layer = match &mode[..] {
        "undecided" => layer.at_lease_end(LeaseEnd::Indeterminate),
        _ => layer,
    };
    let app = Router::new()
        .route(
            "/pay",
            post(move |request: Request| pay(request, effects.clone())),
        )
        .layer(layer.lease(lease).twins(twins));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

async fn connect(url: &str, transaction: Duration) -> SqlStore {
    let db = SqlStore::builder(url)
        .acquire_timeout(30 * SECOND)
        .lock_timeout(30 * SECOND)
        .transaction_timeout(transaction);
    db.open().await.unwrap()
}

#[derive(Clone)]
enum Effects {
    /// Written only by whoever has a higher fence than the last.
    Fenced(SqlStore),
    /// Written in the request's transaction.
    InTransaction(SqlStore),
}

/// Waits before and after its effect where the request says so, until a file is there.
async fn pay(request: Request, effects: Effects) -> Response {
    let (parts, _body) = request.into_parts();
    let field = |name: &str| {
        let value = parts.headers.get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let (stop, go) = (field("x-stop"), field("x-go"));
    let wait = async |here: &str| {
        if stop.as_deref() == Some(here) {
            let go = go.as_deref().unwrap_or("/nowhere");
            std::fs::write(format!("{go}.reached"), here).unwrap();
            while !std::fs::exists(go).unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let key = field("idempotency-key").unwrap();
    if let Some(pause) = field("x-sleep") {
        tokio::time::sleep(Duration::from_millis(pause.parse().unwrap())).await;
    }
    wait("before").await;
    let done = match &effects {
        Effects::Fenced(sink) => {
            let fence = parts.extensions.get::<IdempotentRun>().unwrap().fence();
            let sql = "insert into sink values ($1, 1, $2) on conflict (k) do update \
                       set n = n + 1, fence = excluded.fence where fence < excluded.fence";
            let pool = sink.pool::<Sqlite>().unwrap();
            let done = sqlx::query(sql).bind(&key).bind(fence as i64).execute(pool);
            done.await.unwrap().rows_affected() == 1
        }
        Effects::InTransaction(db) => {
            let own = RequestTransaction::find(&parts.extensions, db).unwrap();
            let sql = AssertSqlSafe(format!("insert into effects values ('{key}')"));
            if db.pool::<Postgres>().is_some() {
                let mut lease = own.lease::<Postgres>().await.unwrap();
                sqlx::query(sql).execute(&mut *lease).await.is_ok()
            } else {
                let mut lease = own.lease::<Sqlite>().await.unwrap();
                sqlx::query(sql).execute(&mut *lease).await.is_ok()
            }
        }
    };
    wait("after").await;
    let status = if done { 201 } else { 410 };
    let body = format!("{} {done}", std::process::id());
    let response = Response::builder().status(status).body(Body::from(body));
    response.unwrap()
}
