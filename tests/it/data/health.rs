//! Health: what a report says of parts that are well, slow, down, away, or about to forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::health::StoreHealth;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::{ManualClock, StoreErrorKind};
use tower_keep::data::cache::Cache;
use tower_keep::data::health::{
    Health, HealthReason, HealthReport, HealthStatus, StoreMode, Thresholds,
};
use tower_keep::data::queue::Queue;
use tower_keep::{HOUR, MILLIS, MINUTE, SECOND, ttl};

use crate::support::redis::{RedisServer, fresh_prefix, shared};

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

async fn get(app: &Router, path: &str) -> (StatusCode, Value, http::HeaderMap) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (
        parts.status,
        serde_json::from_slice(&body).unwrap(),
        parts.headers,
    )
}

fn reasons(report: &HealthReport, part: &str) -> Vec<HealthReason> {
    report.part(part).unwrap().reasons.clone()
}

#[tokio::test]
async fn the_document_names_status_mode_and_each_part_and_no_error() {
    let store = MemoryStore::new();
    let db = SqlStore::connect("sqlite::memory:").await.unwrap();
    let notices: Queue<u8> = Queue::new(store.clone(), "notifications");
    let users: Cache<u8, u8> = Cache::new(store.clone(), "user", ttl::USER);
    let clock = clock();
    let health = Health::new()
        .required("db", db.clone())
        .check("store", tower_keep::store::open("memory:").await.unwrap())
        .check("queue", notices)
        .check("users", users)
        .check("provider", || async { Err::<(), _>("hunter2") })
        .clock(clock.clone());
    let app: Router = Router::new().nest("/api/health", health.routes());
    let (code, body, fields) = get(&app, "/api/health").await;
    assert_eq!(
        (code, &body["status"]),
        (StatusCode::OK, &json!("degraded"))
    );
    assert_eq!(body["mode"], "memory");
    assert!(body["response_ms"].is_u64());
    let names: Vec<_> = body["checks"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 5);
    for (name, status) in [
        ("db", "healthy"),
        ("store", "healthy"),
        ("queue", "healthy"),
        ("users", "healthy"),
        ("provider", "down"),
    ] {
        let part = &body["checks"][name];
        assert_eq!(part["status"], status, "{name}");
        assert!(part["response_ms"].is_u64());
        assert_eq!(part.as_object().unwrap().len(), 2);
    }
    assert_eq!(fields["cache-control"], "no-store");
    assert_eq!(fields["x-service-status"], "degraded");
    assert!(!body.to_string().contains("hunter2"));
    assert!(!format!("{health:?}").contains("hunter2"));
    let (code, body, fields) = get(&app, "/api/health/provider").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["status"], "down");
    assert_eq!(fields["x-service-status"], "down");
    assert_eq!(get(&app, "/api/health/db").await.0, StatusCode::OK);
    let (code, body, _) = get(&app, "/api/health/nobody").await;
    assert_eq!(
        (code, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("NOT_FOUND"))
    );
    // Something required goes away.
    db.close(SECOND).await;
    clock.advance(SECOND);
    let (code, body, _) = get(&app, "/api/health").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["status"], "down");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_hangs_or_panics_is_down_alone_and_all_are_asked_side_by_side() {
    let hangs = || std::future::pending::<Result<(), &str>>();
    let panics = || async { "no number".parse::<u8>().map(|_| Err::<(), _>("")).unwrap() };
    let slow = || async {
        tokio::time::sleep(400 * MILLIS).await;
        Ok::<_, &str>(())
    };
    let health = Health::new()
        .check("hangs", hangs)
        .check("panics", panics)
        .check("slow", slow)
        .required("memory", MemoryStore::new());
    let report = health.report().await;
    let status = |name: &str| report.part(name).unwrap().status;
    use HealthStatus::{Degraded, Down, Healthy};
    let all = ["hangs", "panics", "slow", "memory"].map(status);
    assert_eq!(all, [Down, Down, Healthy, Healthy]);
    assert_eq!(report.status, Degraded);
    assert!((500..600).contains(&report.response_time.as_millis()));
}

#[tokio::test]
async fn a_report_is_shared_by_parallel_callers_and_reused_for_a_second() {
    let (clock, asked) = (clock(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    let health = Health::new()
        .check("part", move || {
            let counted = Arc::clone(&counted);
            async move {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, &str>(())
            }
        })
        .clock(clock.clone());
    let (one, two) = (health.clone(), health.clone());
    let (a, b) = tokio::join!(one.report(), two.report());
    assert!(Arc::ptr_eq(&a, &b));
    clock.advance(SECOND - MILLIS);
    health.report().await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.advance(MILLIS);
    health.report().await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_change_is_told_at_most_once_an_hour_and_reason() {
    let (clock, told) = (clock(), Arc::new(Mutex::new(Vec::new())));
    let is_down = Arc::new(AtomicUsize::new(0));
    let (asked, teller) = (Arc::clone(&is_down), Arc::clone(&told));
    let health = Health::new()
        .check("part", move || {
            let down = asked.load(Ordering::SeqCst) > 0;
            async move { if down { Err("down") } else { Ok(()) } }
        })
        .clock(clock.clone())
        .on_change(move |change| {
            assert_eq!(change.part, "part");
            teller.lock().push((change.reason, change.is_wrong));
        });
    // Down and up again every five seconds, for three hours.
    for step in 0..3 * 720 {
        is_down.store(usize::from(step % 2 == 1), Ordering::SeqCst);
        health.report().await;
        clock.advance(5 * SECOND);
    }
    let told = told.lock();
    assert_eq!(told[0], (HealthReason::Down, true));
    assert_eq!(told.len(), 3, "{told:?}");
}

#[tokio::test]
async fn a_hook_that_panics_costs_nobody_the_report() {
    let health = Health::new()
        .check("part", || async { Err::<(), _>("down") })
        .check("other", || async { Err::<(), _>("down") })
        .on_change(|_| panic!("on purpose"));
    let report = health.report().await;
    assert_eq!(reasons(&report, "part"), [HealthReason::Down]);
    assert_eq!(reasons(&report, "other"), [HealthReason::Down]);
}

#[tokio::test]
async fn a_cache_that_misses_is_degraded_until_its_last_thousand_reads_are_hits() {
    let (clock, store) = (clock(), MemoryStore::new());
    let users: Cache<u32, u32> = Cache::new(store, "user", ttl::USER);
    let health = Health::new()
        .check("users", users.clone())
        .clock(clock.clone());
    for key in 0..999 {
        users.get(&key).await.unwrap();
    }
    let report = health.report().await;
    assert_eq!(reasons(&report, "users"), [], "fewer than a thousand reads");
    users.get(&999).await.unwrap();
    clock.advance(SECOND);
    let report = health.report().await;
    assert_eq!(reasons(&report, "users"), [HealthReason::HitRate]);
    assert_eq!(report.status, HealthStatus::Degraded);
    users.put(&1, 1).await.unwrap();
    for _ in 0..1_000 {
        users.get(&1).await.unwrap();
    }
    clock.advance(SECOND);
    assert_eq!(health.report().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn a_mode_that_was_not_expected_is_degraded() {
    let health = Health::new().check("store", MemoryStore::new());
    assert_eq!(health.report().await.status, HealthStatus::Healthy);
    let report = health.expect(StoreMode::Redis).report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::Mode]);
}

#[tokio::test]
async fn memory_that_refuses_soon_is_told_and_memory_that_evicts_is_not() {
    use tower_keep::data::once::Once;
    let store = MemoryStore::builder().max_entries(10).build();
    let health = || Health::new().check("store", store.clone());
    let users: Cache<u32, u32> = Cache::new(store.clone(), "user", ttl::USER);
    for key in 0..20 {
        users.put(&key, 1).await.unwrap();
    }
    assert_eq!(health().report().await.status, HealthStatus::Healthy);
    let stats = store.stats();
    assert_eq!((stats.entries, stats.evicted), (Some(10), Some(10)));
    let states: Once<u8> = Once::new(store.clone(), "oauth", ttl::OAUTH_STATE);
    for _ in 0..9 {
        states.issue(&1).await.unwrap();
    }
    let report = health().report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::Memory]);
}

#[tokio::test]
async fn a_probe_of_redis_is_one_command_and_leaves_nothing() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    store.probe().await.unwrap();
    let before = store.commands();
    let probed = store.probe().await.unwrap();
    assert_eq!(store.commands() - before, 1);
    assert!(!probed.may_evict);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_redis_that_may_evict_or_is_nearly_full_is_degraded() {
    let options = ["--maxmemory", "100mb", "--maxmemory-policy"];
    let evicting = RedisServer::start_with(&[&options[..], &["allkeys-lru"]].concat()).await;
    let store = RedisStore::connect(&evicting.url()).await.unwrap();
    let report = Health::new().check("store", store).report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::MayEvict]);
    assert_eq!(report.mode, Some(StoreMode::Redis));
    let keeping = RedisServer::start_with(&[&options[..], &["noeviction"]].concat()).await;
    let store = RedisStore::connect(&keeping.url()).await.unwrap();
    let health = Health::new().check("store", store);
    assert_eq!(health.report().await.status, HealthStatus::Healthy);
    // An empty server is nearly full by this measure.
    let health = health.thresholds(Thresholds::default().memory(0.001));
    let report = health.report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::Memory]);
}

#[tokio::test]
async fn an_outage_is_told_per_operation_and_ends_by_itself() {
    let (mut server, clock) = (RedisServer::start().await, clock());
    let redis = RedisStore::connect(&server.url()).await.unwrap();
    let store = Fallback::new(redis.clone(), MemoryStore::new());
    let health = Health::new()
        .check("store", store.clone())
        .clock(clock.clone());
    let report = health.report().await;
    assert_eq!(
        (report.status, report.mode),
        (HealthStatus::Healthy, Some(StoreMode::Redis))
    );
    server.kill();
    // One failure is told at once, before the breaker opens.
    clock.advance(SECOND);
    let report = health.report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::Down]);
    assert_eq!(report.status, HealthStatus::Degraded);
    while !redis.is_open_circuit() {
        assert!(redis.ping().await.is_err());
    }
    let before = store.stats();
    assert_eq!(
        (before.mode, before.reachable),
        (StoreMode::Fallback, false)
    );
    assert_eq!(before.last_error, Some(StoreErrorKind::Unavailable));
    assert!(before.errors >= 5 && before.breaker_open);
    assert!(redis.ping().await.is_err());
    let after = store.stats();
    assert_eq!(after.fallbacks - before.fallbacks, 1);
    assert_eq!(after.commands, before.commands);
    clock.advance(SECOND);
    let report = health.report().await;
    let both = [HealthReason::Down, HealthReason::BreakerOpen];
    assert_eq!(reasons(&report, "store"), both);
    assert_eq!(report.mode, Some(StoreMode::Fallback));
    server.restart();
    let back = async {
        loop {
            clock.advance(SECOND);
            let report = health.report().await;
            if report.status == HealthStatus::Healthy {
                return report;
            }
            tokio::time::sleep(20 * MILLIS).await;
        }
    };
    let report = tokio::time::timeout(MINUTE, back).await.unwrap();
    assert_eq!(report.mode, Some(StoreMode::Redis));
    let stats = store.stats();
    assert!(stats.reachable && stats.last_error.is_none());
}

#[tokio::test]
async fn calls_that_fail_or_take_long_break_a_threshold_once_there_are_a_thousand() {
    let clock = clock();
    let store = shared().await.store_with(&fresh_prefix()).await;
    let slow = Thresholds::default().p99(Duration::ZERO);
    let health = Health::new()
        .check("store", store.clone())
        .thresholds(slow)
        .clock(clock.clone());
    let report = health.report().await;
    assert_eq!(reasons(&report, "store"), []);
    for _ in 0..1_000 {
        store.ping().await.unwrap();
    }
    clock.advance(HOUR);
    let report = health.report().await;
    assert_eq!(reasons(&report, "store"), [HealthReason::Slow]);
}

#[tokio::test]
async fn an_outage_is_told_for_a_minute_and_no_longer_where_nobody_asks_for_anything_afterwards() {
    let (mut server, clock) = (RedisServer::start().await, clock());
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let health = Health::new()
        .check("store", store.clone())
        .clock(clock.clone());
    assert_eq!(health.report().await.status, HealthStatus::Healthy);
    for _ in 0..1_000 {
        store.ping().await.unwrap();
    }
    server.kill();
    while !store.is_open_circuit() {
        assert!(store.ping().await.is_err());
    }
    server.restart();
    let back = async {
        while store.ping().await.is_err() {
            tokio::time::sleep(20 * MILLIS).await;
        }
    };
    tokio::time::timeout(MINUTE, back).await.unwrap();
    clock.advance(SECOND);
    let report = health.report().await;
    assert!(reasons(&report, "store").contains(&HealthReason::Errors));
    for _ in 0..59 {
        clock.advance(SECOND);
        assert_eq!(health.report().await.status, HealthStatus::Degraded);
    }
    clock.advance(2 * SECOND);
    let report = health.report().await;
    assert_eq!(reasons(&report, "store"), []);
    assert_eq!(report.status, HealthStatus::Healthy);
}
