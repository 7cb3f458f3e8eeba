//! The handle: the same limits without a request.

use super::*;
use tower_keep::SECOND;
use tower_keep::core::StoreFailure;
use tower_keep::rate_limit::store::Refunded;
use tower_keep::rate_limit::{Attempt, Decision, RateLimitCause, RateLimitErrorKind, RateLimiter};

#[tokio::test]
async fn a_handle_counts_what_its_layer_counts() {
    let clock = clock();
    let layer = payments(memory(&clock));
    let (app, limiter) = (App::new(layer.clone()), layer.limiter());
    app.get("u1", "2001:db8::1").await;
    let other_half: std::net::IpAddr = "2001:db8::2".parse().unwrap();
    let status = limiter.peek("ip", other_half).await.unwrap();
    assert_eq!(
        (status.limit, status.attempts, status.remaining),
        (20, 1, 19)
    );
    assert_eq!(status.reset_time.since(Timestamp::of(&clock)), 15 * MINUTE);
    assert_eq!((status.retry_after, status.blocked), (None, false));
    limiter.reset("ip", other_half).await.unwrap();
    assert_eq!(limiter.peek("ip", other_half).await.unwrap().attempts, 0);
}

#[tokio::test]
async fn an_attempt_is_checked_charged_refunded_and_refused() {
    let limiter = RateLimiter::new(MemoryStore::new())
        .policy(Policy::new(
            "user",
            Quota::new(3, 15 * MINUTE),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "ip",
            Quota::new(9, 15 * MINUTE),
            Partition::client_ip(),
        ));
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    let attempt = |cost| Attempt::new().on("user", "u1").on("ip", address).cost(cost);
    assert!(limiter.check(attempt(3)).await.unwrap().is_allowed());
    let Decision::Allowed(grant) = limiter.check_and_record(attempt(3)).await.unwrap() else {
        panic!("refused");
    };
    assert_eq!(
        grant
            .states()
            .map(|state| state.state().remaining)
            .collect::<Vec<_>>(),
        [0, 6]
    );
    let Decision::Denied(denial) = limiter.check_and_record(attempt(1)).await.unwrap() else {
        panic!("allowed");
    };
    assert_eq!(denial.rejection().cause(), RateLimitCause::Limited);
    assert_eq!(denial.rejection().code(), "user");
    assert_eq!(limiter.refund(grant).await.unwrap(), Refunded::Applied);
    assert_eq!(limiter.peek("ip", address).await.unwrap().attempts, 0);
    limiter.record(attempt(7)).await.unwrap();
    assert_eq!(limiter.peek("user", "u1").await.unwrap().attempts, 3);
    assert_eq!(limiter.peek("ip", address).await.unwrap().attempts, 7);
}

#[tokio::test]
async fn a_blocked_key_is_refused_as_abnormal_until_the_block_ends() {
    let clock = clock();
    let layer = payments(memory(&clock));
    let (app, limiter) = (App::new(layer.clone()), layer.limiter());
    limiter.block("user", "u1", 90 * SECOND).await.unwrap();
    let status = limiter.peek("user", "u1").await.unwrap();
    assert_eq!(
        (status.blocked, status.retry_after),
        (true, Some(90 * SECOND))
    );
    let answer = app.get("u1", "192.0.2.1").await;
    answer.refused_by("user");
    assert_eq!(answer.problem()["title"], "Abnormal Usage Detected");
    assert_eq!(answer.retry_after(), 90 * SECOND);
    clock.advance(90 * SECOND);
    assert_eq!(app.get("u1", "192.0.2.1").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_unknown_policy_is_an_error_and_a_broken_store_one_under_closed() {
    let limiter = payments(MemoryStore::new()).limiter();
    let error = limiter.peek("usr", "u1").await.unwrap_err();
    assert_eq!(error.kind(), RateLimitErrorKind::UnknownPolicy);
    let limiter = |mode| {
        payments(super::faults::Broken)
            .on_store_failure(mode)
            .limiter()
    };
    let attempt = || Attempt::new().on("user", "u1");
    let closed = limiter(StoreFailure::Closed);
    let error = closed.check_and_record(attempt()).await.unwrap_err();
    assert_eq!(error.kind(), RateLimitErrorKind::Store);
    for mode in [StoreFailure::Open, StoreFailure::Local] {
        assert!(
            limiter(mode)
                .check_and_record(attempt())
                .await
                .unwrap()
                .is_allowed()
        );
        assert!(
            limiter(mode).record(attempt()).await.is_err(),
            "no mode for a record"
        );
    }
}

#[tokio::test]
async fn a_denial_becomes_an_axum_response() {
    use axum::response::IntoResponse;
    let limiter =
        RateLimiter::new(MemoryStore::new()).limit(Quota::per_minute(1), Partition::global());
    let attempt = || Attempt::new().on("global", ());
    limiter.check_and_record(attempt()).await.unwrap();
    let Decision::Denied(denial) = limiter.check_and_record(attempt()).await.unwrap() else {
        panic!("allowed");
    };
    let why: tower_keep::rate_limit::RateLimitRejection = denial.into();
    let answer = read(why.into_response()).await;
    answer.refused_by("global");
    assert_eq!(answer.retry_after(), MINUTE);
}
