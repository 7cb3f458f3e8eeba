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

/// Sends mixed attempts from many tasks and holds what was admitted against what was counted.
async fn sums_are_exact(store: Arc<dyn RateLimitStore>, attempts: usize) {
    // A call that waited behind thousands would make an outage of a busy machine.
    const AT_ONCE: usize = 200;
    let limiter = RateLimiter::new(store)
        .timeout(5 * SECOND)
        .policy(Policy::new(
            "user",
            Quota::per_day(150),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "ip",
            Quota::per_day(1_500).gcra(200),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "all",
            Quota::per_day(1_200),
            Partition::global(),
        ));
    let mut done = Vec::new();
    for first in (0..attempts).step_by(AT_ONCE) {
        let mut tasks = tokio::task::JoinSet::new();
        for index in first..attempts.min(first + AT_ONCE) {
            let limiter = limiter.clone();
            tasks.spawn(async move {
                let (user, cost) = (index % 7, index as u32 % 3);
                let address = std::net::IpAddr::from([192, 0, 2, (index % 5) as u8]);
                let attempt = Attempt::new().on("ip", address).on("all", ()).cost(cost);
                let attempt = attempt.on("user", format!("u{user}"));
                let decision = limiter.check_and_record(attempt).await.unwrap();
                (if decision.is_allowed() { cost } else { 0 }, user, address)
            });
        }
        done.extend(tasks.join_all().await);
    }
    let admitted = |user: Option<usize>, address: Option<std::net::IpAddr>| -> u32 {
        let counted = done.iter().filter(|(_, by, from)| {
            user.is_none_or(|user| user == *by) && address.is_none_or(|address| address == *from)
        });
        counted.map(|(cost, ..)| cost).sum()
    };
    let all = limiter.peek("all", ()).await.unwrap().attempts;
    assert_eq!(all, admitted(None, None));
    assert!(all >= 900, "{all}: the limits were reached, not missed");
    for user in 0..7 {
        let counted = limiter
            .peek("user", format!("u{user}"))
            .await
            .unwrap()
            .attempts;
        assert_eq!(counted, admitted(Some(user), None));
        assert!(counted <= 150);
    }
    for last in 0..5 {
        let address = std::net::IpAddr::from([192, 0, 2, last]);
        let counted = limiter.peek("ip", address).await.unwrap().attempts;
        assert_eq!(counted, admitted(None, Some(address)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_mixed_attempts_in_parallel_every_policy_counted_exactly_what_was_admitted() {
    sums_are_exact(Arc::new(memory(&clock())), 10_000).await;
    let redis = crate::support::redis::shared().await.store(&clock()).await;
    sums_are_exact(Arc::new(redis), 3_000).await;
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

#[tokio::test]
async fn a_blocked_key_that_is_full_besides_is_told_to_wait_for_both() {
    let clock = clock();
    let redis = crate::support::redis::shared().await.store(&clock).await;
    let stores: [Arc<dyn RateLimitStore>; 2] = [Arc::new(memory(&clock)), Arc::new(redis)];
    for store in stores {
        let policy = Policy::new("user", Quota::new(1, 15 * MINUTE), Partition::principal());
        let limiter = RateLimiter::new(store).policy(policy).timeout(PATIENCE);
        let attempt = || Attempt::new().on("user", "u1");
        limiter.record(attempt()).await.unwrap();
        limiter.block("user", "u1", 10 * SECOND).await.unwrap();
        let Decision::Denied(denial) = limiter.check_and_record(attempt()).await.unwrap() else {
            panic!("allowed");
        };
        let rejection = denial.rejection();
        assert_eq!(rejection.cause(), RateLimitCause::Blocked);
        assert_eq!(rejection.retry_after(), Some(15 * MINUTE));
        limiter.block("user", "u1", 60 * MINUTE).await.unwrap();
        let status = limiter.peek("user", "u1").await.unwrap();
        assert_eq!(status.retry_after, Some(60 * MINUTE));
    }
}

#[tokio::test]
async fn an_attempt_to_which_no_policy_applies_is_recorded_as_nothing() {
    let server = crate::support::redis::shared().await;
    let redis = server.store(&clock()).await;
    let limiter = RateLimiter::new(redis.clone());
    let grant = limiter.record(Attempt::new()).await.unwrap();
    assert_eq!((grant.states().count(), redis.commands()), (0, 0));
    assert_eq!(limiter.refund(grant).await.unwrap(), Refunded::TooLate);
}

#[tokio::test]
async fn in_an_outage_limiters_on_one_redis_handle_share_what_they_count_here() {
    let mut server = crate::support::RedisServer::start().await;
    server.kill();
    let redis = server.store(&clock()).await;
    let limiter = || {
        let policy = Policy::new("user", Quota::new(1, 15 * MINUTE), Partition::principal());
        RateLimiter::new(redis.clone()).policy(policy)
    };
    for admits in [true, false] {
        let decision = limiter()
            .check_and_record(Attempt::new().on("user", "u1"))
            .await;
        assert_eq!(decision.unwrap().is_allowed(), admits);
    }
}

#[tokio::test]
async fn the_store_that_stands_in_for_a_full_one_goes_by_the_same_clock() {
    let clock = clock();
    // Room for one entry, but not for its stamps.
    let store = MemoryStore::builder()
        .clock(clock.clone())
        .max_bytes(200)
        .build();
    let limiter =
        RateLimiter::new(store).limit(Quota::new(999, 15 * MINUTE), Partition::principal());
    let attempt = Attempt::new().on("principal", "u1");
    limiter.check_and_record(attempt.clone()).await.unwrap();
    let decision = limiter.check_and_record(attempt.cost(500)).await.unwrap();
    let Decision::Allowed(grant) = decision else {
        panic!("refused");
    };
    assert_eq!(
        grant.source(),
        Some(tower_keep::rate_limit::store::Source::Local)
    );
    let reset = grant.states().next().unwrap().reset_time().unwrap();
    assert_eq!(reset.since(Timestamp::of(&clock)), 15 * MINUTE);
}
