//! The deny cache: who is known to be refused costs no command, and nobody is refused who need not be.

use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::rate_limit::{Attempt, Decision, RateLimiter};

use super::*;
use crate::support::RedisServer;
use crate::support::runtimes::on_a_runtime_that_ends;

/// Five a minute for each tier's requests, at the limit and cost that a request asks for.
fn tier(store: &RedisStore) -> RateLimitLayer {
    fn number(parts: &http::request::Parts, name: &str) -> Option<u32> {
        parts.headers.get(name)?.to_str().ok()?.parse().ok()
    }
    let policy = Policy::new("tier", Quota::per_minute(9), Partition::client_ip())
        .limit_by(|parts| number(parts, "x-limit"))
        .cost(|parts| number(parts, "x-cost").unwrap_or(1))
        .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    RateLimitLayer::new(store.clone())
        .policy(policy)
        .timeout(PATIENCE)
}

fn at(limit: u32, cost: u32) -> Request<()> {
    let mut request = request("", "192.0.2.1");
    let headers = request.headers_mut();
    headers.insert("x-limit", limit.into());
    headers.insert("x-cost", cost.into());
    request
}

/// Sends what must be refused until that costs no command: notices arrive by then. Returns the last answer.
pub(super) async fn refused_for_free(store: &RedisStore, send: impl AsyncFn() -> Answer) -> Answer {
    for _ in 0..5_000 {
        let before = store.commands();
        let answer = send().await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        if store.commands() == before {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("every refusal cost a command");
}

/// Waits until `send` is let through: a notice is on its way, and time stands still.
async fn let_through(send: impl AsyncFn() -> Answer) {
    for _ in 0..5_000 {
        if send().await.status == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("the notice never arrived");
}

#[tokio::test]
async fn a_flood_of_refused_requests_costs_one_command_in_five_seconds() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    let app = App::new(payments(store.clone()).timeout(PATIENCE));
    for _ in 0..5 {
        assert_eq!(app.get("u1", "192.0.2.1").await.status, StatusCode::OK);
    }
    let flood = async || app.get("u1", "192.0.2.1").await;
    refused_for_free(&store, flood).await;
    let before = store.commands();
    for turn in 0..5_000 {
        if turn % 1_000 == 999 {
            clock.advance(SECOND);
        }
        flood().await.refused_by("user");
    }
    let sent = store.commands() - before;
    assert!(sent <= 5, "{sent} commands for 5,000 refusals");
    assert_eq!(app.calls(), 5);
}

#[tokio::test]
async fn a_refusal_that_is_known_names_the_violated_policy_and_the_true_wait() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    let app = App::new(payments(store.clone()).timeout(PATIENCE));
    for _ in 0..5 {
        app.get("u1", "192.0.2.1").await;
        clock.advance(SECOND);
    }
    let flood = async || app.get("u1", "192.0.2.1").await;
    refused_for_free(&store, flood).await;
    clock.advance(2 * SECOND);
    let answer = refused_for_free(&store, flood).await;
    answer.refused_by("user");
    assert_eq!(answer.field("ratelimit"), Some("\"user\";r=0;t=893"));
    assert_eq!(answer.field("ratelimit-policy"), Some("\"user\";q=5;w=900"));
    assert_eq!(answer.retry_after(), 893 * SECOND);
    let reset = Timestamp::of(&clock).as_millis() + 893_000;
    assert_eq!(answer.problem()["reset_time"], reset);
    clock.advance(893 * SECOND);
    assert_eq!(flood().await.status, StatusCode::OK);
    flood().await.refused_by("user");
}

#[tokio::test]
async fn a_higher_limit_and_a_cost_of_nothing_are_never_refused_by_what_is_known() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    let app = App::new(tier(&store));
    for _ in 0..3 {
        app.send(at(3, 1)).await;
    }
    refused_for_free(&store, async || app.send(at(3, 1)).await).await;
    assert_eq!(app.send(at(3, 0)).await.status, StatusCode::OK);
    assert_eq!(app.send(at(4, 1)).await.status, StatusCode::OK);
    refused_for_free(&store, async || app.send(at(4, 1)).await).await;
    refused_for_free(&store, async || app.send(at(2, 1)).await).await;
    // Of the five that are used two have to go, the second of which came a microsecond later.
    clock.advance(SECOND);
    app.send(at(9, 1)).await;
    let answer = refused_for_free(&store, async || app.send(at(5, 2)).await).await;
    assert_eq!(answer.retry_after(), 60 * SECOND);
}

#[tokio::test]
async fn what_another_process_resets_or_refunds_is_let_through_at_once() {
    let server = crate::support::redis::shared().await;
    let clock = clock();
    let prefix = crate::support::redis::fresh_prefix();
    let handle = async || {
        let builder = server.builder(&prefix).clock(clock.clone());
        builder.open().await.unwrap()
    };
    let (here, there) = (handle().await, handle().await);
    let app = App::new(tier(&here));
    let full = async || app.send(at(3, 1)).await;
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    let other = tier(&there).limiter();
    let Decision::Allowed(grant) = other
        .check_and_record(Attempt::new().on("tier", address))
        .await
        .unwrap()
    else {
        panic!("refused");
    };
    for _ in 0..2 {
        assert_eq!(full().await.status, StatusCode::OK);
    }
    refused_for_free(&here, full).await;
    other.refund(grant).await.unwrap();
    let_through(full).await;
    refused_for_free(&here, full).await;
    other.reset("tier", address).await.unwrap();
    let_through(full).await;
    other.block("tier", address, 3 * SECOND).await.unwrap();
    let blocked = refused_for_free(&here, full).await;
    assert_eq!(blocked.problem()["title"], "Abnormal Usage Detected");
    assert_eq!(blocked.retry_after(), 3 * SECOND);
    other.reset("tier", address).await.unwrap();
    let_through(full).await;
}

#[tokio::test]
async fn what_this_process_resets_or_refunds_is_let_through_without_waiting_for_a_notice() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    let limiter = RateLimiter::new(store.clone())
        .timeout(PATIENCE)
        .policy(Policy::new(
            "one",
            Quota::per_minute(1),
            Partition::principal(),
        ));
    let attempt = || Attempt::new().on("one", "u1");
    for round in 0..20 {
        let decision = limiter.check_and_record(attempt()).await.unwrap();
        let Decision::Allowed(grant) = decision else {
            panic!("refused in round {round}");
        };
        let again = limiter.check_and_record(attempt()).await.unwrap();
        assert!(!again.is_allowed());
        if round % 2 == 0 {
            limiter.refund(grant).await.unwrap();
        } else {
            limiter.reset("one", "u1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn once_notices_may_be_lost_nothing_that_is_known_is_believed() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let app = App::new(tier(&store));
    let full = async || app.send(at(1, 1)).await;
    full().await;
    refused_for_free(&store, full).await;
    let mut raw = server.raw().await;
    let forget = redis::cmd("FLUSHALL");
    let _: () = forget.query_async(&mut raw).await.unwrap();
    full().await.refused_by("tier");
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("pubsub");
    let killed: u32 = kill.query_async(&mut raw).await.unwrap();
    assert_eq!(killed, 1);
    // Time stands still, so that only the cut ends what was known.
    let_through(full).await;
    // And when the notices are back, so is the cache.
    refused_for_free(&store, full).await;
    let _: () = forget.query_async(&mut raw).await.unwrap();
    full().await.refused_by("tier");
    clock.advance(5 * SECOND);
    assert_eq!(full().await.status, StatusCode::OK, "after five seconds");
}

#[tokio::test]
async fn a_refund_to_a_key_full_at_its_limit_is_heard_by_every_process() {
    let server = crate::support::redis::shared().await;
    let clock = clock();
    let prefix = crate::support::redis::fresh_prefix();
    let handle = async || {
        let builder = server.builder(&prefix).clock(clock.clone());
        builder.open().await.unwrap()
    };
    let (here, there) = (handle().await, handle().await);
    for quota in [
        Quota::per_hour(3),
        Quota::per_hour(1_500),
        Quota::per_hour(3).gcra(3),
        Quota::per_hour(3).fixed(),
    ] {
        // No limit of its own for each request: only what is full at this one is told.
        let layer = |store: &RedisStore| {
            RateLimitLayer::new(store.clone())
                .policy(Policy::new("all", quota, Partition::client_ip()))
                .timeout(PATIENCE)
        };
        let app = App::new(layer(&here));
        let full = async || app.get("", "192.0.2.1").await;
        let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
        let other = layer(&there).limiter();
        let attempt = |cost| Attempt::new().on("all", address).cost(cost);
        let charged = async |cost| match other.check_and_record(attempt(cost)).await.unwrap() {
            Decision::Allowed(grant) => grant,
            Decision::Denied(denial) => panic!("{denial:?}"),
        };
        let grant = charged(1).await;
        drop(charged(other.peek("all", address).await.unwrap().remaining).await);
        refused_for_free(&here, full).await;
        other.refund(grant).await.unwrap();
        let_through(full).await;
    }
}

#[tokio::test]
async fn who_began_to_listen_on_a_runtime_that_ended_listens_on_the_next() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    let app = App::new(payments(store.clone()).timeout(PATIENCE));
    let first = app.clone();
    on_a_runtime_that_ends(async move { first.get("u1", "192.0.2.1").await });
    for _ in 0..6 {
        app.get("u1", "192.0.2.1").await;
    }
    // Refusals are known only to whoever would be told that they are over.
    refused_for_free(&store, async || app.get("u1", "192.0.2.1").await).await;
}
