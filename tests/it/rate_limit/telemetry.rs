//! What is measured, and that no secret is in it.

use tower_keep::core::StoreFailure;
use tower_keep::rate_limit::{Attempt, Decision, PartitionKey};
use tracing_subscriber::util::SubscriberInitExt;

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
    let layer = RateLimitLayer::new(store).limit(Quota::per_minute(3), Partition::client_ip());
    let app = App::new(layer);
    // One whose quota is used up keeps its entry. The others are admitted even where all three share one.
    for second in [1, 1, 1, 2, 3, 4] {
        app.get("", &format!("10.{second}.0.1")).await;
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

/// What is logged on this thread while it lives.
pub struct Logged {
    log: Log,
    _guard: Box<dyn std::any::Any>,
}

#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    pub fn start() -> Self {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = Box::new(subscriber.set_default());
        Self { log, _guard }
    }

    pub fn lines(&self, with: &str) -> usize {
        self.lines_with(&[with])
    }

    pub fn lines_with(&self, all: &[&str]) -> usize {
        let text = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.retain(|line| all.iter().all(|part| line.contains(part)));
        lines.len()
    }
}

#[tokio::test]
async fn one_group_under_both_tags_is_warned_of_once_and_on_the_same_handle_only() {
    const SPLIT: &str = "they share no state";
    let logged = Logged::start();
    let layer = |store: &MemoryStore, group: &str| RateLimitLayer::new(store.clone()).group(group);
    let store = MemoryStore::new();
    let together = layer(&store, "a").limit(Quota::default(), Partition::principal());
    let mixed = together
        .clone()
        .limit(Quota::default(), Partition::client_ip());
    let app = App::new(together.clone());
    app.get("u1", "192.0.2.1").await;
    App::new(layer(&store, "b").limit(Quota::default(), Partition::client_ip()))
        .get("", "192.0.2.1")
        .await;
    let elsewhere = layer(&MemoryStore::new(), "a").limit(Quota::default(), Partition::global());
    App::new(elsewhere.limit(Quota::per_minute(5), Partition::client_ip()))
        .get("", "192.0.2.1")
        .await;
    assert_eq!(logged.lines(SPLIT), 0);
    let app = App::new(mixed);
    for _ in 0..3 {
        app.get("u1", "192.0.2.1").await;
    }
    assert_eq!(logged.lines(SPLIT), 1);
}

#[tokio::test]
async fn calls_that_leave_the_process_have_a_span_and_decisions_in_it_have_none() {
    let logged = Logged::start();
    let span = |op: &str| format!("rate_limit_store{{group=\"spans\" op=\"{op}\"}}");
    let here = RateLimitLayer::new(MemoryStore::new())
        .group("spans")
        .limit(Quota::default(), Partition::global());
    App::new(here).get("", "192.0.2.1").await;
    assert_eq!(logged.lines("rate_limit_store"), 0);
    let store = crate::support::redis::shared()
        .await
        .store_with("spans")
        .await;
    let layer = RateLimitLayer::new(store).group("spans").timeout(PATIENCE);
    let layer = layer.limit(Quota::per_hour(5), Partition::principal());
    let app = App::new(layer.clone());
    for _ in 0..3 {
        app.get("secret-user", "192.0.2.77").await;
    }
    layer
        .limiter()
        .reset("principal", "secret-user")
        .await
        .unwrap();
    let closed = |op: &str| logged.lines_with(&[&span(op), "close"]);
    assert_eq!((closed("check_and_record"), closed("reset")), (3, 1));
    assert_eq!(logged.lines("secret") + logged.lines("192.0.2.77"), 0);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_policy_its_wait_and_a_digest_of_its_key() {
    let logged = Logged::start();
    let layer = RateLimitLayer::new(memory(&clock()))
        .group("told")
        .limit(Quota::per_minute(1), Partition::client_ip());
    let app = App::new(layer);
    for _ in 0..2 {
        app.get("", "192.0.2.77").await;
    }
    let key = PartitionKey::from("192.0.2.77".parse::<std::net::IpAddr>().unwrap());
    let digest = key.digest();
    let parts = [
        "DEBUG",
        "refused",
        "group=\"told\"",
        "policy=\"client-ip\"",
        "retry_after=Some(60s)",
        &digest,
    ];
    assert_eq!(logged.lines_with(&parts), 1);
    assert_eq!(logged.lines("192.0.2.77"), 0);
}

#[tokio::test]
async fn each_way_through_the_layer_is_counted_as_what_it_is() {
    let metered = Metered::start();
    let clock = clock();
    let store = super::said::Switched::new(memory(&clock));
    let layer = RateLimitLayer::new(store.clone())
        .group("ways")
        .on_store_failure(StoreFailure::Open)
        .exempt(|parts| parts.uri.path() == "/health")
        .deny_ips(["203.0.113.7/32".parse().unwrap()])
        .policy(
            Policy::new("p", Quota::per_minute(2), Partition::client_ip())
                .cost(|parts| parts.uri.path().len() as u32)
                .refund_when(|response| response.status == StatusCode::NOT_MODIFIED),
        );
    let open = App::new(layer.clone());
    let closed = App::new(layer.clone().on_store_failure(StoreFailure::Closed));
    let mut unchanged = App::new(layer.clone());
    unchanged.status = StatusCode::NOT_MODIFIED;
    let at = |path: &str, address: &str| {
        let mut request = request("", address);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let limiter = layer.limiter();
    let blocked: std::net::IpAddr = "192.0.2.2".parse().unwrap();
    limiter.block("p", blocked, MINUTE).await.unwrap();

    open.send(at("/health", "192.0.2.1")).await;
    open.get("", "203.0.113.7").await;
    open.get("", "192.0.2.1").await;
    open.send(at("/large", "192.0.2.1")).await;
    open.get("", "192.0.2.2").await;
    unchanged.get("", "192.0.2.3").await;
    // Closed, and nobody knows from where.
    closed.send(Request::new(())).await;
    store.switch(true);
    open.get("", "192.0.2.1").await;
    closed.get("", "192.0.2.1").await;
    store.switch(false);
    let attempt = Attempt::new().on("p", "192.0.2.4".parse::<std::net::IpAddr>().unwrap());
    let Decision::Allowed(grant) = limiter.check_and_record(attempt).await.unwrap() else {
        panic!("refused");
    };
    clock.advance(2 * MINUTE);
    limiter.refund(grant).await.unwrap();

    let requests = [
        ("admitted", 2),
        ("limited", 2),
        ("listed", 1),
        ("passed", 1),
        ("unavailable", 2),
        ("unguarded", 1),
    ];
    let decisions = [("admitted", 3), ("blocked", 1), ("never", 1)];
    let refunds = [("applied", 1), ("too_late", 1)];
    let mut expected = Vec::new();
    for (name, policy, outcomes) in [
        ("decisions", ",policy=p", &decisions[..]),
        ("refunds", "", &refunds),
        ("requests", "", &requests),
    ] {
        for (outcome, times) in outcomes {
            let labels = format!("group=ways,outcome={outcome}{policy}");
            let name = format!("keep_rate_limit_{name}_total{{{labels}}}");
            expected.push((name, *times));
        }
    }
    let counted = metered.counters(|name| name.contains("outcome=") && name.contains("group=ways"));
    assert_eq!(counted, expected);
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_counted() {
    let metered = Metered::start();
    let server = RedisServer::start().await;
    let layer = RateLimitLayer::new(server.store_with("spoilt").await).timeout(PATIENCE);
    let app = App::new(layer.limit(Quota::per_minute(5), Partition::client_ip()));
    app.get("", "192.0.2.1").await;
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:s")
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut spoil = redis::cmd("SET");
    spoil.arg(&keys[0]).arg("garbage");
    spoil.exec_async(&mut raw).await.unwrap();
    let spoilt = || metered.counter("keep_rate_limit_undecodable_total");
    assert_eq!((keys.len(), spoilt()), (1, 0));
    for _ in 0..2 {
        assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
        assert_eq!(spoilt(), 1);
    }
}
