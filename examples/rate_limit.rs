//! Every kind of limit on one small API: atomic policies, tiers, costs, refunds, a shadow, a handle, blocks.
//!
//! Run it: `cargo run --example rate_limit` (or `… rate_limit 127.0.0.1:8082 redis://localhost` for several processes), then
//!
//! ```text
//! for i in 1 2 3 4 5 6; do curl -i -X POST localhost:8082/payments -H 'x-user: u1'; done    # the sixth is a 429
//! curl -i localhost:8082/export -H 'x-api-key: k1'                                          # costs 25 of 100 units
//! curl -i localhost:8082/report -H 'if-none-match: "1"'                                     # a 304 is free of charge
//! curl -i -X POST 'localhost:8082/block?ip=127.0.0.1'                                       # no login from there for ten seconds
//! curl -i -X POST localhost:8082/login -d secret                                            # a 429, and then a welcome
//! for i in 1 2 3 4; do curl -i -X POST localhost:8082/login -d wrong; done                  # only failures count: the fourth is a 429
//! ```

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tower_keep::core::{Principal, StoreFailure};
use tower_keep::rate_limit::{
    Attempt, Partition, Policy, Quota, RateLimitLayer, RateLimitRejection, RateLimitStatus,
    RateLimiter,
};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:8082".into());
    let store = tower_keep::store::open(&arguments.next().unwrap_or("memory:".into())).await?;
    let app = app(store).into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

fn app(store: Arc<dyn Store>) -> Router {
    let logins = failed_logins(Arc::clone(&store));
    Router::new()
        .route("/payments", post(pay).layer(payments(Arc::clone(&store))))
        .route(
            "/export",
            get(async || "a large file\n").layer(tiers(Arc::clone(&store))),
        )
        .route("/report", get(report).layer(reports(Arc::clone(&store))))
        .route("/login", post(login).with_state(logins.clone()))
        .route("/block", post(block).with_state(logins))
        // Outermost: whoever comes, before anything is known of them.
        .layer(everybody(store))
        // Stands for an authenticating layer; a real one does not believe a header.
        .layer(middleware::from_fn(name_the_user))
}

/// One decision by three policies: either all admit and all are charged, or nothing is charged.
fn payments(store: Arc<dyn Store>) -> RateLimitLayer {
    RateLimitLayer::new(store)
        .group("payments")
        .policy(Policy::new(
            "user",
            Quota::new(5, 15 * MINUTE),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "user-daily",
            Quota::per_day(20),
            Partition::principal(),
        ))
        .limit(Quota::per_minute(1_000), Partition::global())
        // Rather no payment than one too many, and rather a slow one than none.
        .on_store_failure(StoreFailure::Closed)
        .timeout(Duration::from_secs(5))
}

/// Customers differ in their limits, requests in what they cost.
fn tiers(store: Arc<dyn Store>) -> RateLimitLayer {
    let policy = Policy::new(
        "tier",
        Quota::per_hour(1_000),
        Partition::api_key("x-api-key"),
    )
    .limit_by(|parts| match parts.headers.get("x-api-key") {
        Some(key) if key == "gold" => None,
        _ => Some(100),
    })
    .cost(|parts| {
        if parts.uri.path().starts_with("/export") {
            25
        } else {
            1
        }
    });
    RateLimitLayer::new(store).group("tiers").policy(policy)
}

/// What the client has already is free of charge.
fn reports(store: Arc<dyn Store>) -> RateLimitLayer {
    let policy = Policy::new("reports", Quota::per_minute(10), Partition::client_ip())
        .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    RateLimitLayer::new(store).group("reports").policy(policy)
}

/// A token bucket for every address; and a stricter limit that is only tried out: it counts and refuses nobody.
fn everybody(store: Arc<dyn Store>) -> RateLimitLayer {
    RateLimitLayer::new(store)
        .group("everybody")
        .policy(Policy::new(
            "ip",
            Quota::per_second(1_000).gcra(2_000),
            Partition::client_ip(),
        ))
        .policy(Policy::new("ip-tried", Quota::per_minute(60), Partition::client_ip()).shadow())
        .deny_ips(["198.51.100.0/24".parse().expect("a network")])
        .exempt(|parts| parts.uri.path() == "/health")
        .legacy_headers()
}

/// The same limits without tower: only failed attempts are charged.
fn failed_logins(store: Arc<dyn Store>) -> RateLimiter {
    RateLimiter::new(store).group("logins").policy(Policy::new(
        "failed",
        Quota::new(3, 15 * MINUTE),
        Partition::client_ip(),
    ))
}

async fn name_the_user(mut request: Request, next: Next) -> Response {
    let user = request
        .headers()
        .get("x-user")
        .and_then(|user| user.to_str().ok());
    if let Some(user) = user.map(Principal::new) {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

/// A handler may read what all limits said.
async fn pay(limits: RateLimitStatus) -> String {
    let left = limits
        .policy("user")
        .map_or(0, |user| user.state().remaining);
    format!("paid, {left} more within 15 minutes\n")
}

async fn report(headers: HeaderMap) -> Response {
    let current = "\"1\"";
    match headers.get(header::IF_NONE_MATCH) {
        Some(known) if known == current => StatusCode::NOT_MODIFIED.into_response(),
        _ => ([(header::ETAG, current)], "the report\n").into_response(),
    }
}

async fn login(
    State(logins): State<RateLimiter>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    password: String,
) -> Result<&'static str, Response> {
    let attempt = || Attempt::new().on("failed", peer.ip());
    let fault = |_| StatusCode::SERVICE_UNAVAILABLE.into_response();
    let refused = |why: RateLimitRejection| why.into_response();
    if let tower_keep::rate_limit::Decision::Denied(denial) =
        logins.check(attempt()).await.map_err(fault)?
    {
        return Err(refused(denial.into()));
    }
    if password == "secret" {
        logins.reset("failed", peer.ip()).await.map_err(fault)?;
        return Ok("welcome\n");
    }
    logins.record(attempt()).await.map_err(fault)?;
    Err(StatusCode::UNAUTHORIZED.into_response())
}

#[derive(serde::Deserialize)]
struct Whom {
    ip: IpAddr,
}

/// An operator's tool; it would stand behind a login of its own.
async fn block(State(logins): State<RateLimiter>, Query(whom): Query<Whom>) -> StatusCode {
    match logins.block("failed", whom.ip, 10 * SECOND).await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
