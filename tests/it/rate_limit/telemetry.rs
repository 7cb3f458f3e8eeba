//! What is measured, and that no secret is in it.

use tower_keep::core::StoreFailure;

use super::metered::Metered;
use super::*;
use crate::support::RedisServer;

#[tokio::test]
async fn decisions_requests_and_the_store_s_time_are_measured_and_name_nobody() {
    let metered = Metered::start();
    let server = crate::support::redis::shared().await;
    let layer = payments(server.store_with("measured").await).timeout(PATIENCE);
    let app = App::new(layer.clone());
    for _ in 0..7 {
        app.get("secret-user", "192.0.2.77").await;
    }
    layer.limiter().reset("user", "secret-user").await.unwrap();
    let decisions = |policy: &str, outcome: &str| {
        metered.counter(&format!(
            "keep_rate_limit_decisions_total{{group=payments,outcome={outcome},policy={policy}}}"
        ))
    };
    assert_eq!(
        (decisions("user", "admitted"), decisions("user", "denied")),
        (5, 2)
    );
    let requests = |outcome: &str| {
        metered.counter(&format!(
            "keep_rate_limit_requests_total{{group=payments,outcome={outcome}}}"
        ))
    };
    assert_eq!((requests("admitted"), requests("limited")), (5, 2));
    let near = "keep_rate_limit_near_total{group=payments,policy=user}";
    assert_eq!(metered.counter(near), 2, "the fourth and the fifth of five");
    let calls = |op: &str| {
        metered.counter(&format!(
            "keep_rate_limit_store_seconds{{group=payments,op={op}}}"
        ))
    };
    let known = metered.counter("keep_rate_limit_deny_cache_hits_total{group=payments}");
    assert_eq!(calls("check_and_record") + known, 7);
    assert_eq!(calls("reset"), 1);
    let source = metered.value("keep_rate_limit_source{group=payments}");
    assert_eq!(source, Some(0.0));
    let scrape = metered.scrape();
    assert!(
        !scrape.contains("secret") && !scrape.contains("192.0.2"),
        "{scrape}"
    );
}

#[tokio::test]
async fn the_gauge_shows_who_decides() {
    let metered = Metered::start();
    let mut server = RedisServer::start().await;
    let store = server.store_with("gauge").await;
    let layer = |group: &str, mode| {
        let layer = RateLimitLayer::new(store.clone()).group(group);
        let layer = layer.timeout(PATIENCE).on_store_failure(mode);
        App::new(layer.limit(Quota::per_minute(50), Partition::global()))
    };
    let apps = [
        ("local", StoreFailure::Local, 1.0),
        ("open", StoreFailure::Open, 2.0),
        ("closed", StoreFailure::Closed, 3.0),
    ]
    .map(|(group, mode, away)| (group, layer(group, mode), away));
    let shown = |group: &str| metered.value(&format!("keep_rate_limit_source{{group={group}}}"));
    for (group, app, _) in &apps {
        app.get("", "192.0.2.1").await;
        assert_eq!(shown(group), Some(0.0), "{group}");
    }
    server.kill();
    for (group, app, away) in &apps {
        app.get("", "192.0.2.1").await;
        assert_eq!(shown(group), Some(*away), "{group}");
    }
    server.restart();
    for (group, app, _) in &apps {
        for _ in 0..2_000 {
            app.get("", "192.0.2.1").await;
            if shown(group) == Some(0.0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(shown(group), Some(0.0), "{group}");
    }
}

#[tokio::test]
async fn keys_without_room_and_requests_without_a_key_are_counted() {
    let metered = Metered::start();
    let store = MemoryStore::builder().max_entries(1).build();
    let layer = RateLimitLayer::new(store).limit(Quota::per_minute(1), Partition::client_ip());
    let app = App::new(layer);
    for last in 1..=4 {
        app.get("", &format!("10.{last}.0.1")).await;
    }
    app.send(Request::new(())).await;
    let counter = |name: &str| {
        metered.counter(&format!(
            "keep_rate_limit_{name}_total{{group=default,policy=client-ip}}"
        ))
    };
    assert_eq!((counter("overflow"), counter("unkeyed")), (3, 1));
}

#[tokio::test]
async fn debug_shows_no_key_and_says_where_a_group_lies() {
    let apart = payments(MemoryStore::new());
    assert!(format!("{apart:?}").contains("tag: Group"));
    let together =
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::default(), Partition::principal());
    assert!(format!("{together:?}").contains("tag: Key"));
    let app = App::new(together.limit(Quota::per_minute(1), Partition::client_ip()));
    app.get("secret-user", "192.0.2.77").await;
    let answer = app.get("secret-user", "192.0.2.77").await;
    let why = answer
        .extensions
        .get::<tower_keep::rate_limit::RateLimitRejection>()
        .unwrap();
    let told = format!("{why:?} {why} {:?}", why.binding());
    assert!(
        !told.contains("secret") && !told.contains("192.0.2.77"),
        "{told}"
    );
}
