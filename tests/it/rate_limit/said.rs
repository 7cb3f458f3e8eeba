//! What is said once, in the log and at build time; and refunds that fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;

use super::metered::Metered;
use super::telemetry::Logged;
use super::*;
use tower_keep::SECOND;
use tower_keep::core::{StoreError, StoreErrorKind, StoreFailure, StoreFuture};
use tower_keep::rate_limit::store::{Bucket, Charge, Receipt, Refunded, Verdict};
use tower_keep::rate_limit::{Attempt, Decision, RateLimiter};

/// A store that can be switched off, without a breaker.
#[derive(Clone, Debug)]
pub struct Switched {
    store: MemoryStore,
    off: Arc<AtomicBool>,
}

impl Switched {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            store,
            off: Arc::default(),
        }
    }

    pub fn switch(&self, off: bool) {
        self.off.store(off, Ordering::SeqCst);
    }

    fn call<T>(&self, call: impl FnOnce(&MemoryStore) -> StoreFuture<T>) -> StoreFuture<T> {
        if self.off.load(Ordering::SeqCst) {
            return StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Unavailable)));
        }
        call(&self.store)
    }
}

impl RateLimitStore for Switched {
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|store| store.check_and_record(charges))
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|store| RateLimitStore::check(store, charges))
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|store| store.record(charges))
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        self.call(|store| store.refund(receipt))
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        self.call(|store| RateLimitStore::reset(store, buckets))
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        self.call(|store| store.block(bucket, duration))
    }
}

#[tokio::test]
async fn each_outage_is_said_once_when_it_begins_and_once_when_it_ends() {
    let logged = Logged::start();
    let store = Switched::new(MemoryStore::new());
    let layer = RateLimitLayer::new(store.clone()).on_store_failure(StoreFailure::Open);
    let app = App::new(layer.limit(Quota::per_minute(99), Partition::global()));
    let said = || {
        let begun = logged.lines("store cannot answer");
        (begun, logged.lines("store answers again"))
    };
    let ask = async |many: usize| {
        for _ in 0..many {
            assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
        }
    };
    ask(3).await;
    store.switch(true);
    // A call that fails now and then is no outage: it is counted.
    ask(4).await;
    store.switch(false);
    ask(1).await;
    assert_eq!(said(), (0, 0));
    for outage in 1..=2 {
        store.switch(true);
        ask(9).await;
        assert_eq!(said(), (outage, outage - 1));
        store.switch(false);
        ask(9).await;
        assert_eq!(said(), (outage, outage));
    }
}

#[tokio::test]
async fn what_is_set_wrongly_is_said_once_and_counted_each_time() {
    let (logged, metered) = (Logged::start(), Metered::start());
    let three = async |app: &App, user: &str| {
        for _ in 0..3 {
            app.get(user, "192.0.2.1").await;
        }
    };
    let layer = || RateLimitLayer::new(MemoryStore::new());
    let empty = App::new(layer());
    three(&empty, "").await;
    assert_eq!(empty.calls(), 3);
    assert_eq!(logged.lines("lets everything pass"), 1);

    let quota = Quota::per_minute(99);
    let above = Policy::new("above", quota, Partition::global()).limit_by(|_| Some(100));
    three(&App::new(layer().policy(above)), "").await;
    assert_eq!(logged.lines("more than the declared limit"), 1);

    let anonymous = layer()
        .policy(Policy::new("one", quota, Partition::principal()))
        .policy(Policy::new("two", quota, Partition::principal()));
    let app = App::new(anonymous);
    three(&app, "u1").await;
    assert_eq!(logged.lines("limited by its address"), 0);
    three(&app, "").await;
    assert_eq!(logged.lines("limited by its address"), 2, "each policy");

    let unkeyed = layer()
        .policy(Policy::new("a", quota, Partition::client_ip()))
        .policy(Policy::new("b", quota, Partition::client_ip()))
        .limit(quota, Partition::global());
    let app = App::new(unkeyed);
    for _ in 0..3 {
        assert_eq!(app.send(Request::new(())).await.status, StatusCode::OK);
    }
    assert_eq!(logged.lines("no client address"), 2, "each policy");
    for policy in ["a", "b"] {
        let name = format!("keep_rate_limit_unkeyed_total{{group=default,policy={policy}}}");
        assert_eq!(metered.counter(&name), 3, "{policy}");
    }
}

#[tokio::test]
async fn a_refund_that_fails_is_counted_and_changes_no_response() {
    let metered = Metered::start();
    let store = Switched::new(MemoryStore::new());
    let off = Arc::clone(&store.off);
    // The store goes away between the charge and the refund.
    let policy = Policy::new("reads", Quota::per_minute(3), Partition::global())
        .refund_when(move |_| !off.swap(true, Ordering::SeqCst));
    let layer = RateLimitLayer::new(store.clone()).policy(policy);
    let answer = App::new(layer).get("", "192.0.2.1").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.field("ratelimit"), Some("\"reads\";r=2;t=60"));
    let failed = "keep_rate_limit_refunds_total{group=default,outcome=failed}";
    assert_eq!(metered.counter(failed), 1, "{}", metered.scrape());
}

#[tokio::test]
async fn a_quota_that_changes_begins_afresh_and_a_block_outlasts_it() {
    let store = MemoryStore::new();
    let limiter = |limit: u32, group: &str| {
        let policy = Policy::new(
            "user",
            Quota::new(limit, 15 * MINUTE),
            Partition::principal(),
        );
        RateLimiter::new(store.clone()).group(group).policy(policy)
    };
    let used = async |limiter: &RateLimiter, key: &str| {
        let status = limiter.peek("user", key).await.unwrap();
        (status.attempts, status.blocked)
    };
    let (before, same) = (limiter(5, "logins"), limiter(5, "logins"));
    for _ in 0..5 {
        let attempt = Attempt::new().on("user", "u1");
        let decision = before.check_and_record(attempt).await.unwrap();
        assert!(matches!(decision, Decision::Allowed(_)));
    }
    before.block("user", "u2", 60 * SECOND).await.unwrap();
    assert_eq!(used(&same, "u1").await, (5, false), "one state for both");
    let after = limiter(6, "logins");
    assert_eq!(used(&after, "u1").await, (0, false), "afresh");
    assert_eq!(used(&after, "u2").await, (0, true), "still blocked");
    let elsewhere = limiter(5, "payments");
    assert_eq!(used(&elsewhere, "u1").await, (0, false));
    assert_eq!(used(&elsewhere, "u2").await, (0, false));
    assert_eq!(used(&before, "u1").await, (5, false));
}

#[test]
fn what_is_out_of_its_bounds_is_refused_where_it_is_written() {
    let most = 2_u32.pow(31) - 1;
    let day = 86_400 * SECOND;
    for (limit, window, is_good) in [
        (1, SECOND, true),
        (most, 366 * day, true),
        (0, SECOND, false),
        (most + 1, SECOND, false),
        (1, Duration::ZERO, false),
        (1, Duration::from_millis(999), false),
        (1, Duration::from_millis(1_500), false),
        (1, 366 * day + SECOND, false),
    ] {
        let made = Quota::try_new(limit, window).is_ok();
        assert_eq!(made, is_good, "{limit} in {window:?}");
    }
    // The arithmetic of GCRA stays below 2^52.
    let slow = Quota::new(1, 366 * day);
    for (burst, is_good) in [(0, false), (1, true), (142, true), (143, false)] {
        assert_eq!(slow.try_gcra(burst).is_ok(), is_good, "{burst}");
    }
    let refused = |make: &dyn Fn() -> RateLimitLayer| {
        assert!(catch_unwind(AssertUnwindSafe(|| drop(make()))).is_err());
    };
    let layer = || RateLimitLayer::new(MemoryStore::new());
    refused(&|| layer().processes(0));
    refused(&|| layer().timeout(Duration::from_micros(999)));
    refused(&|| layer().timeout(Duration::from_millis(5_001)));
    refused(&|| layer().group("Two Words"));
    let many = |many: usize| {
        (0..many).fold(layer(), |layer, n| {
            layer.policy(Policy::new(
                format!("p{n}"),
                Quota::default(),
                Partition::global(),
            ))
        })
    };
    drop(many(16));
    refused(&|| many(17));
}

#[tokio::test]
async fn that_two_layers_hold_the_same_policy_is_said_once_for_each() {
    let logged = Logged::start();
    let layer = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(9), Partition::client_ip())
        .limit(Quota::per_minute(9), Partition::global());
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let twice = layer.layer(layer.layer(inner));
    for _ in 0..3 {
        let answer = twice.clone().oneshot(request("", "192.0.2.1")).await;
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
    }
    let charged = layer.limiter().peek("global", ()).await.unwrap();
    assert_eq!(charged.attempts, 3);
    let said = |policy| logged.lines_with(&["two layers hold", policy]);
    assert_eq!((said("client-ip"), said("global")), (1, 1));
}
