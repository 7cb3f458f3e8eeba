//! What a layer does while its store cannot answer; and how many commands it sends while it can.

use super::*;
use tower_keep::backend::fallback::Fallback;
use tower_keep::core::{StoreError, StoreErrorKind, StoreFailure, StoreFuture};
use tower_keep::rate_limit::store::{Bucket, Charge, Receipt, Refunded, Verdict};
use tower_keep::rate_limit::{Attempt, Decision};

use crate::support::RedisServer;

/// A store that is never there.
#[derive(Clone, Copy, Debug)]
pub struct Broken;

fn away<T>() -> StoreFuture<T> {
    StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Unavailable)))
}

impl RateLimitStore for Broken {
    fn check_and_record(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        away()
    }

    fn check(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        away()
    }

    fn record(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        away()
    }

    fn refund(&self, _: &Receipt) -> StoreFuture<Refunded> {
        away()
    }

    fn reset(&self, _: &[Bucket<'_>]) -> StoreFuture<()> {
        away()
    }

    fn block(&self, _: &Bucket<'_>, _: Duration) -> StoreFuture<()> {
        away()
    }
}

fn five_a_minute(store: impl RateLimitStore) -> RateLimitLayer {
    RateLimitLayer::new(store).limit(Quota::per_minute(5), Partition::client_ip())
}

#[tokio::test]
async fn each_failure_mode_answers_as_it_should_when_redis_is_killed() {
    let mut server = RedisServer::start().await;
    let store = server.store_with("killed").await;
    let layer = five_a_minute(store.clone()).timeout(PATIENCE);
    let app = |mode| App::new(layer.clone().on_store_failure(mode));
    let (open, closed, local) = (
        app(StoreFailure::Open),
        app(StoreFailure::Closed),
        app(StoreFailure::Local),
    );
    assert_eq!(
        open.get("", "192.0.2.1").await.field("ratelimit"),
        Some("\"client-ip\";r=4;t=60")
    );
    server.kill();
    for _ in 0..5 {
        let answer = closed.get("", "192.0.2.1").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.problem()["code"], "STORE_UNAVAILABLE");
        assert!((1..=30).contains(&answer.retry_after().as_secs()));
        assert_eq!(answer.field("ratelimit"), None);
    }
    assert_eq!(closed.calls(), 0);
    assert!(store.is_open_circuit());
    let sent = store.commands();
    let answer = open.get("", "192.0.2.1").await;
    assert_eq!(
        (answer.status, answer.field("ratelimit")),
        (StatusCode::OK, None)
    );
    for left in (0..5).rev() {
        let answer = local.get("", "192.0.2.1").await;
        let line = format!("\"client-ip\";r={left};t=60");
        assert_eq!(answer.field("ratelimit"), Some(&*line));
    }
    local.get("", "192.0.2.1").await.refused_by("client-ip");
    assert_eq!(
        store.commands(),
        sent,
        "nobody waits for a store that is known to be away"
    );
}

#[tokio::test]
async fn a_frozen_redis_costs_a_few_timeouts_and_then_nothing() {
    let server = RedisServer::start().await;
    let store = server.store_with("frozen").await;
    let app = App::new(five_a_minute(store.clone()).timeout(Duration::from_millis(20)));
    app.get("", "192.0.2.1").await;
    server.pause();
    for _ in 0..5 {
        assert_eq!(app.get("", "192.0.2.2").await.status, StatusCode::OK);
    }
    assert!(store.is_open_circuit());
    let sent = store.commands();
    app.get("", "192.0.2.2").await.refused_by("client-ip");
    assert_eq!(store.commands(), sent);
    server.resume();
}

#[tokio::test]
async fn while_the_store_is_away_each_process_admits_its_share() {
    let layer = RateLimitLayer::new(Broken)
        .policy(Policy::new(
            "log",
            Quota::per_minute(10),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "few",
            Quota::per_minute(3),
            Partition::principal(),
        ))
        .processes(4);
    let app = App::new(layer);
    let answer = app.get("u1", "192.0.2.1").await;
    assert_eq!(
        answer.field("ratelimit-policy"),
        Some("\"log\";q=2;w=60, \"few\";q=1;w=60")
    );
    app.get("u1", "192.0.2.1").await.refused_by("few");
    app.get("u2", "192.0.2.1").await;
    app.get("u3", "192.0.2.1").await.refused_by("log");
}

#[tokio::test]
async fn what_costs_more_than_a_process_s_share_is_not_refused_for_good() {
    let cost = |parts: &http::request::Parts| {
        let cost = parts.headers.get("x-cost").unwrap();
        cost.to_str().unwrap().parse().unwrap()
    };
    let policy = Policy::new("dear", Quota::per_minute(100), Partition::client_ip()).cost(cost);
    let layer = RateLimitLayer::new(Broken).policy(policy).processes(10);
    let app = App::new(layer.clone());
    let send = |cost: &str| {
        let mut request = request("", "192.0.2.1");
        let value = cost.parse().unwrap();
        request.headers_mut().insert("x-cost", value);
        app.send(request)
    };
    // More than the whole share takes all of it.
    let answer = send("25").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.field("ratelimit"), Some("\"dear\";r=0;t=60"));
    for cost in ["100", "25", "1"] {
        let answer = send(cost).await;
        answer.refused_by("dear");
        assert!(answer.retry_after() > Duration::from_secs(50), "{cost}");
    }
    // What is too much for all of them stays so.
    let answer = send("101").await;
    answer.refused_by("dear");
    assert_eq!(answer.field("retry-after"), None);
    let address: std::net::IpAddr = "192.0.2.2".parse().unwrap();
    let attempt = Attempt::new().on("dear", address).cost(25);
    let limiter = layer.limiter();
    let Decision::Allowed(grant) = limiter.check_and_record(attempt).await.unwrap() else {
        panic!("refused");
    };
    assert_eq!(limiter.refund(grant).await.unwrap(), Refunded::Applied);
}

#[tokio::test]
async fn what_was_charged_in_this_process_is_given_back_there() {
    let policy = Policy::new("page", Quota::per_minute(1), Partition::global());
    let policy = policy.refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    let layer = RateLimitLayer::new(Broken).policy(policy);
    let mut app = App::new(layer.clone());
    app.status = StatusCode::NOT_MODIFIED;
    for _ in 0..3 {
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!(answer.status, StatusCode::NOT_MODIFIED);
    }
    let limiter = layer.limiter();
    for _ in 0..2 {
        let attempt = Attempt::new().on("page", ());
        let Decision::Allowed(grant) = limiter.check_and_record(attempt).await.unwrap() else {
            panic!("the unit was given back");
        };
        assert_eq!(limiter.refund(grant).await.unwrap(), Refunded::Applied);
    }
}

#[tokio::test]
async fn while_the_store_is_away_the_limit_of_a_request_is_shared_out_too() {
    let limit =
        |parts: &http::request::Parts| parts.headers.get("x-limit")?.to_str().ok()?.parse().ok();
    let policy = Policy::new("tier", Quota::per_minute(40), Partition::client_ip()).limit_by(limit);
    let layer = RateLimitLayer::new(Broken).policy(policy).processes(4);
    let app = App::new(layer);
    for (last, (limit, share)) in [
        ("40", 10),
        ("39", 9),
        ("8", 2),
        ("3", 1),
        ("1", 1),
        ("0", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = request("", &format!("192.0.2.{last}"));
        request
            .headers_mut()
            .insert("x-limit", limit.parse().unwrap());
        let answer = app.send(request).await;
        let told = format!("\"tier\";q={share};w=60");
        assert_eq!(answer.field("ratelimit-policy"), Some(&*told), "{limit}");
        assert_eq!(answer.status.is_success(), share > 0, "{limit}");
    }
}

#[tokio::test]
async fn a_fallback_decides_by_its_secondary_under_local_and_not_under_closed() {
    let secondary = MemoryStore::new();
    let store = Fallback::new(Broken, secondary.clone());
    let app = App::new(five_a_minute(store.clone()));
    app.get("", "192.0.2.1").await;
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    let local = five_a_minute(secondary).limiter();
    assert_eq!(local.peek("client-ip", address).await.unwrap().attempts, 1);
    let closed = App::new(five_a_minute(store).on_store_failure(StoreFailure::Closed));
    assert_eq!(
        closed.get("", "192.0.2.1").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn clones_and_services_of_a_layer_share_the_store_that_stands_in() {
    let layer = five_a_minute(Broken);
    let (one, other) = (App::new(layer.clone()), App::new(layer));
    for app in [&one, &other, &one, &other, &one] {
        assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
    }
    other.get("", "192.0.2.1").await.refused_by("client-ip");
}

#[tokio::test]
async fn a_decision_is_one_command_and_a_refund_one_more() {
    let store = crate::support::redis::shared()
        .await
        .store_with("commands")
        .await;
    let layer = payments(store.clone()).timeout(PATIENCE);
    let mut app = App::new(layer.clone());
    app.get("u1", "192.0.2.1").await;
    let before = store.commands();
    for sent in 1..=4 {
        app.get("u1", "192.0.2.1").await;
        assert_eq!(store.commands() - before, sent);
    }
    app.get("u1", "192.0.2.1").await.refused_by("user");
    // The deny cache may know already that the user's limit is used up.
    assert!((4..=5).contains(&(store.commands() - before)));

    let free = Policy::new("reads", Quota::per_minute(5), Partition::global())
        .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    app = App::new(
        RateLimitLayer::new(store.clone())
            .timeout(PATIENCE)
            .group("reads")
            .policy(free),
    );
    app.status = StatusCode::NOT_MODIFIED;
    app.get("", "192.0.2.1").await;
    let before = store.commands();
    let answer = app.get("", "192.0.2.1").await;
    assert_eq!(answer.field("ratelimit"), Some("\"reads\";r=4;t=60"));
    assert_eq!(store.commands() - before, 2);
}

#[tokio::test]
async fn state_that_cannot_be_read_counts_as_empty_and_is_overwritten() {
    let server = RedisServer::start().await;
    let store = server.store(&clock()).await;
    let layer = RateLimitLayer::new(store)
        .timeout(PATIENCE)
        .policy(Policy::new(
            "log",
            Quota::per_minute(5),
            Partition::global(),
        ))
        .policy(Policy::new(
            "buckets",
            Quota::per_minute(5_000),
            Partition::global(),
        ))
        .policy(Policy::new(
            "gcra",
            Quota::per_minute(5).gcra(5),
            Partition::global(),
        ))
        .policy(Policy::new(
            "fixed",
            Quota::per_minute(5).fixed(),
            Partition::global(),
        ));
    let app = App::new(layer);
    let mut raw = server.raw().await;
    app.get("", "192.0.2.1").await;
    let fresh = app.get("", "192.0.2.1").await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:s")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(keys.len(), 4);
    // As long as five stamps, as three numbers, and as sub-buckets of which more is used than is counted.
    let sum = format!("{}\0\0\x1f\x7f{}", "\0".repeat(16), "\0".repeat(260));
    let spoilers: [(&str, &[&str]); 7] = [
        ("SET", &["forty bytes that are no stamps of a log."]),
        ("SET", &["as long as three numbers"]),
        ("SET", &[&sum]),
        ("SET", &["garbage"]),
        ("HSET", &["a", "b"]),
        ("RPUSH", &["x", "y"]),
        ("SET", &["-1 x 2"]),
    ];
    for (command, arguments) in spoilers {
        for key in &keys {
            let _: () = redis::cmd("DEL")
                .arg(key)
                .query_async(&mut raw)
                .await
                .unwrap();
            let mut spoil = redis::cmd(command);
            spoil.arg(key).arg(arguments);
            let _: () = spoil.query_async(&mut raw).await.unwrap();
        }
        let answer = app.get("", "192.0.2.1").await;
        let line = answer.field("ratelimit").unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{command}");
        assert!(line.contains("\"log\";r=4"), "{command}: {line}");
        assert_eq!(
            app.get("", "192.0.2.1").await.field("ratelimit"),
            fresh.field("ratelimit")
        );
    }
}

#[tokio::test]
async fn every_key_in_redis_expires_shortly_after_its_window_and_names_nobody() {
    let server = RedisServer::start().await;
    let layer = payments(server.store_with("expiry").await).timeout(PATIENCE);
    App::new(layer.clone())
        .get("secret-user", "192.0.2.1")
        .await;
    layer
        .limiter()
        .block("user", "secret-user", MINUTE)
        .await
        .unwrap();
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(keys.len(), 5);
    for key in keys {
        assert!(key.starts_with("expiry:rl:{payments}:"), "{key}");
        assert!(!key.contains("secret"), "{key}");
        let ttl: u64 = redis::cmd("TTL")
            .arg(&key)
            .query_async(&mut raw)
            .await
            .unwrap();
        let window = match key.split(':').nth(3).unwrap() {
            "user-daily" => 86_400,
            "global" => 60,
            _ if key.ends_with(":b") => 60,
            _ => 900,
        };
        assert!((window + 50..=window + 61).contains(&ttl), "{key}: {ttl}");
    }
}

/// A store that never answers; where it is given a time, it gives up after it.
#[derive(Clone, Copy, Debug)]
struct Silent(Duration);

impl Silent {
    fn answer<T: Send + 'static>(self) -> StoreFuture<T> {
        StoreFuture::boxed(async move {
            tokio::time::sleep(self.0).await;
            Err(StoreError::new(StoreErrorKind::TimedOut))
        })
    }
}

impl RateLimitStore for Silent {
    fn check_and_record(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.answer()
    }

    fn check(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.answer()
    }

    fn record(&self, _: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.answer()
    }

    fn refund(&self, _: &Receipt) -> StoreFuture<Refunded> {
        self.answer()
    }

    fn reset(&self, _: &[Bucket<'_>]) -> StoreFuture<()> {
        self.answer()
    }

    fn block(&self, _: &Bucket<'_>, _: Duration) -> StoreFuture<()> {
        self.answer()
    }

    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        Some(Arc::new(Self(timeout)))
    }
}

#[tokio::test(start_paused = true)]
async fn unless_told_otherwise_a_store_has_50_ms() {
    let layer = five_a_minute(Silent(tower_keep::HOUR)).on_store_failure(StoreFailure::Closed);
    let app = App::new(layer);
    let began = tokio::time::Instant::now();
    let answer = app.get("", "192.0.2.1").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    // The timer counts whole milliseconds.
    let waited = began.elapsed().as_millis();
    assert!((50..=51).contains(&waited), "{waited} ms");
}
