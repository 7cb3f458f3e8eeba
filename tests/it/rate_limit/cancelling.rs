//! What a dropped request leaves behind, at each place where it waits.

use std::pin::pin;
use std::task::Poll;

use super::*;
use tower_keep::rate_limit::RateLimiter;

use crate::support::RedisServer;

/// Polls `future` until `reached` says so, then drops it.
async fn drop_when(future: impl Future, mut reached: impl FnMut() -> bool) {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        assert!(
            future.as_mut().poll(cx).is_pending(),
            "it ended before it was dropped"
        );
        if reached() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn used(limiter: &RateLimiter) -> u32 {
    limiter.peek("reads", ()).await.unwrap().attempts
}

fn reads(store: impl RateLimitStore) -> RateLimitLayer {
    let policy = Policy::new("reads", Quota::per_minute(5), Partition::global())
        .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    RateLimitLayer::new(store)
        .policy(policy)
        .timeout(Duration::from_secs(5))
}

#[tokio::test]
async fn dropped_while_the_store_is_asked_the_inner_service_was_not_called() {
    let server = RedisServer::start().await;
    let store = server.store_with("asked").await;
    let (layer, limiter) = (reads(store.clone()), reads(store.clone()).limiter());
    assert_eq!(used(&limiter).await, 0);
    let app = App::new(layer);
    server.pause();
    let before = store.commands();
    drop_when(app.get("", "192.0.2.1"), || store.commands() > before).await;
    server.resume();
    assert_eq!(app.calls(), 0);
    assert!(used(&limiter).await <= 1, "charged once at most");
}

#[tokio::test]
async fn dropped_while_the_inner_service_runs_the_charge_stands() {
    let layer = reads(MemoryStore::new());
    let service = layer.layer(service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    }));
    drop_when(service.oneshot(request("", "192.0.2.1")), || true).await;
    assert_eq!(used(&layer.limiter()).await, 1);
}

#[tokio::test]
async fn dropped_during_a_refund_it_is_refunded_or_not() {
    let server = RedisServer::start().await;
    let store = server.store_with("refund").await;
    let (layer, limiter) = (reads(store.clone()), reads(store.clone()).limiter());
    let mut app = App::new(layer.clone());
    app.get("", "192.0.2.1").await;
    app.status = StatusCode::NOT_MODIFIED;
    app.get("", "192.0.2.1").await;
    let before = store.commands();
    // The server freezes once the request is admitted: the refund then waits.
    let inner = service_fn(|_: Request<()>| {
        server.pause();
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        async move { Ok::<_, Infallible>(response) }
    });
    let future = layer.layer(inner).oneshot(request("", "192.0.2.1"));
    drop_when(future, || store.commands() == before + 2).await;
    server.resume();
    assert!((1..=2).contains(&used(&limiter).await));
}
