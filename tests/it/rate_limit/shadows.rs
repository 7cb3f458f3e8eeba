//! Shadow policies: they never refuse, whatever happens, and count what they would have refused.

use tower_keep::core::StoreFailure;

use super::metered::Metered;
use super::*;

fn policy(name: &str, partition: Partition) -> Policy {
    Policy::new(name, Quota::per_minute(3), partition)
}

#[tokio::test]
async fn a_layer_that_only_counts_never_refuses_also_without_store_address_or_session() {
    let shadow = || {
        RateLimitLayer::new(super::faults::Broken)
            .policy(policy("ip", Partition::client_ip()).shadow())
            .on_store_failure(StoreFailure::Closed)
    };
    let app = App::new(shadow());
    for _ in 0..5 {
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!(
            (answer.status, answer.field("ratelimit")),
            (StatusCode::OK, None)
        );
    }
    assert_eq!(app.send(Request::new(())).await.status, StatusCode::OK);
    let enforced = shadow().policy(policy("global", Partition::global()));
    let answer = App::new(enforced).get("", "192.0.2.1").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn without_an_address_only_an_enforced_policy_closes() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .policy(policy("ip", Partition::client_ip()).shadow())
        .policy(policy("global", Partition::global()))
        .on_store_failure(StoreFailure::Closed);
    let answer = App::new(layer).send(Request::new(())).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.field("ratelimit"), Some("\"global\";r=2;t=60"));
}

#[tokio::test]
async fn a_blocked_key_of_a_shadow_policy_is_let_through() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .policy(policy("tried", Partition::global()).shadow());
    layer.limiter().block("tried", (), MINUTE).await.unwrap();
    assert_eq!(
        App::new(layer).get("", "192.0.2.1").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn what_a_shadow_would_have_refused_is_what_the_same_policy_refuses() {
    let refusals = async |shadow: bool| {
        let metered = Metered::start();
        let clock = clock();
        let mut tried = policy("tried", Partition::client_ip());
        if shadow {
            tried = tried.shadow();
        }
        let app = App::new(
            RateLimitLayer::new(memory(&clock))
                .group("trace")
                .policy(tried),
        );
        let mut seed = 5_u64;
        for _ in 0..500 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            clock.advance(Duration::from_millis((seed >> 33) % 12_000));
            app.get("", &format!("192.0.2.{}", (seed >> 60) % 4)).await;
        }
        let outcome = if shadow { "shadow_denied" } else { "denied" };
        let labels = |outcome| {
            metered.counter(&format!(
                "keep_rate_limit_decisions_total{{group=trace,outcome={outcome},policy=tried}}"
            ))
        };
        (labels("admitted"), labels(outcome))
    };
    let (shadow, enforced) = (refusals(true).await, refusals(false).await);
    assert_eq!(shadow, enforced);
    assert!(shadow.0 > 100 && shadow.1 > 50, "{shadow:?}");
}
