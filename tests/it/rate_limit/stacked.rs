//! Limits inside other layers: what is answered without the handler costs no quota, and no stored answer has our fields.

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::Notify;
use tower::ServiceBuilder;
use tower_keep::core::fields::RATE_LIMIT_FIELDS;
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::rate_limit::RateLimiter;
use tower_keep::response_cache::ResponseCacheLayer;

use super::*;

struct Stacked {
    app: Router,
    users: RateLimiter,
    /// Lets a handler of `/pay` go on.
    go: Arc<Notify>,
    /// Says that one runs.
    runs: Arc<Notify>,
}

fn stacked() -> Stacked {
    let store = MemoryStore::new();
    let users = RateLimitLayer::new(store.clone())
        .group("users")
        .legacy_headers();
    let users = users.policy(Policy::new(
        "user",
        Quota::per_hour(5),
        Partition::principal(),
    ));
    let clients =
        RateLimitLayer::new(store.clone()).limit(Quota::per_hour(50), Partition::client_ip());
    let limiter = users.limiter();
    let once = IdempotencyLayer::new(store.clone(), Scope::principal()).require_key();
    let cached = ResponseCacheLayer::new(store).ttl(MINUTE);
    let (go, runs) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wait, tell) = (Arc::clone(&go), Arc::clone(&runs));
    let pay = post(async move || {
        tell.notify_one();
        wait.notified().await;
        "paid"
    });
    let app = Router::new()
        .route(
            "/pay",
            pay.layer(ServiceBuilder::new().layer(once).layer(users.clone())),
        )
        .route(
            "/slots",
            get(async || "10:00").layer(ServiceBuilder::new().layer(cached).layer(users)),
        )
        .layer(clients);
    Stacked {
        app,
        users: limiter,
        go,
        runs,
    }
}

impl Stacked {
    async fn send(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut request = request("u1", "192.0.2.1").map(|()| axum::body::Body::empty());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        read(self.app.clone().oneshot(request).await.unwrap()).await
    }

    async fn used(&self) -> u32 {
        self.users.peek("user", "u1").await.unwrap().attempts
    }
}

/// What the inner limit told; the outer one tells its own on every answer.
fn told_by_user(answer: &Answer) -> usize {
    let lines = answer
        .headers
        .iter()
        .filter(|(name, _)| RATE_LIMIT_FIELDS.contains(name));
    let inner = lines.filter(|(name, value)| {
        name.as_str().starts_with("x-") || value.to_str().unwrap().contains("\"user\"")
    });
    inner.count()
}

#[tokio::test]
async fn a_duplicate_in_flight_is_a_conflict_and_a_replay_costs_no_quota() {
    let stack = Arc::new(stacked());
    let key = [("idempotency-key", "k1")];
    let first = tokio::spawn({
        let stack = Arc::clone(&stack);
        async move { stack.send("POST", "/pay", &key).await }
    });
    stack.runs.notified().await;
    assert_eq!(
        stack.send("POST", "/pay", &key).await.status,
        StatusCode::CONFLICT
    );
    assert_eq!(stack.used().await, 1);
    stack.go.notify_one();
    let first = first.await.unwrap();
    assert_eq!((first.status, told_by_user(&first)), (StatusCode::OK, 5));
    for _ in 0..10 {
        let replay = stack.send("POST", "/pay", &key).await;
        assert_eq!(
            (replay.status, &replay.body[..]),
            (StatusCode::OK, &b"paid"[..])
        );
        assert_eq!(told_by_user(&replay), 0, "{:?}", replay.headers);
        assert!(
            replay
                .field("ratelimit")
                .unwrap()
                .starts_with("\"client-ip\"")
        );
    }
    assert_eq!(stack.used().await, 1);
}

#[tokio::test]
async fn a_cache_hit_and_a_preflight_cost_no_quota() {
    let stack = stacked();
    let miss = stack.send("GET", "/slots", &[]).await;
    assert_eq!((miss.status, told_by_user(&miss)), (StatusCode::OK, 5));
    for _ in 0..10 {
        let hit = stack.send("GET", "/slots", &[]).await;
        assert_eq!((&hit.body[..], told_by_user(&hit)), (&b"10:00"[..], 0));
    }
    assert_eq!(stack.used().await, 1);
    let preflight = [
        ("origin", "https://clinic.test"),
        ("access-control-request-method", "POST"),
    ];
    let answer = stack.send("OPTIONS", "/slots", &preflight).await;
    assert_eq!(answer.field("ratelimit"), None);
    let counted = stack.send("GET", "/slots", &[]).await;
    // The miss, ten hits, and this one; the preflight is none of them.
    assert!(
        counted
            .field("ratelimit")
            .unwrap()
            .starts_with("\"client-ip\";r=38;")
    );
}
