//! Stores that are away before, during and after the effect.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{IdempotencyOutcome, StoreFailure};
use tower_keep::idempotency::{DerivedKey, Health};

use super::{App, layer, post};
use crate::rate_limit::telemetry::Logged;
use crate::support::redis::{fresh_prefix, shared};
use crate::support::{Proxy, RedisServer};

async fn quick(url: &str, prefix: &str) -> RedisStore {
    let builder = RedisStore::builder(url)
        .prefix(prefix)
        .timeout(Duration::from_millis(200));
    builder.open().await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_away_before_is_503_and_the_handler_is_not_called() {
    let mut server = RedisServer::start().await;
    let store = quick(&server.url(), "t").await;
    let app = App::new(layer(store));
    server.kill();
    let refused = app.post("k", "{}").await;
    refused.check_refused(503, "STORE_UNAVAILABLE");
    let after: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&after));
    assert_eq!(
        (app.runs(), refused.outcome()),
        (0, IdempotencyOutcome::Refused)
    );
    let open = App::new(app.layer.clone().on_store_failure(StoreFailure::Open));
    let answer = open.post("k", "{}").await;
    assert_eq!(
        (open.runs(), answer.outcome()),
        (1, IdempotencyOutcome::Unprotected)
    );
    assert_eq!(answer.headers["idempotency-status"], "unprotected");
}

#[tokio::test]
async fn a_store_that_is_away_after_the_effect_gets_the_answer_when_it_is_back() {
    let mut server = RedisServer::start().await;
    let store = quick(&server.url(), "t").await;
    let layer = layer(store.clone());
    // The handler takes the store away: the effect happens, its answer cannot be written.
    let server_inside = Arc::new(tokio::sync::Mutex::new(None::<RedisServer>));
    let taken = Arc::clone(&server_inside);
    App::new(layer.clone()).post("warm", "{}").await;
    let app = App::with(layer.clone(), move |_, run| {
        let taken = Arc::clone(&taken);
        async move {
            if let Some(server) = taken.lock().await.as_mut() {
                server.kill();
            }
            Response::new(Full::from(format!("run {run}")))
        }
    });
    server_inside
        .lock()
        .await
        .replace(std::mem::replace(&mut server, RedisServer::start().await));
    let first = app.post("k", "{}").await;
    assert_eq!(
        (&first.body[..], first.outcome()),
        (&b"run 1"[..], IdempotencyOutcome::Unrecorded)
    );
    assert_eq!(first.headers["idempotency-status"], "unrecorded");
    let again = app.post("k", "{}").await;
    assert_eq!(
        (again.is_replay(), &again.body),
        (true, &first.body),
        "from the backlog"
    );
    app.post("k", "other")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    let mut back = server_inside.lock().await.take().unwrap();
    back.restart();
    let drained = layer.drain(60 * SECOND).await;
    assert_eq!(drained.abandoned, 0);
    let other = App::new(super::layer(quick(&back.url(), "t").await));
    let replay = other.post("k", "{}").await;
    assert_eq!(
        (replay.is_replay(), &replay.body),
        (true, &first.body),
        "stored, though the claim was lost"
    );
    assert_eq!((app.runs(), other.runs()), (1, 0));
}

#[tokio::test]
async fn a_lost_reply_to_begin_is_503_and_frees_the_key_long_before_its_lease() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let url = format!("redis://{}/", proxy.address());
    let store = quick(&url, "t").await;
    let layer = layer(store);
    let app = App::new(layer.clone());
    app.post("warm", "{}").await;
    proxy.swallow_replies(true);
    app.post("k", "{}")
        .await
        .check_refused(503, "STORE_UNAVAILABLE");
    proxy.swallow_replies(false);
    proxy.cut();
    assert_eq!(layer.drain(20 * SECOND).await.abandoned, 0);
    let retry = app.post("k", "{}").await;
    assert_eq!(
        (retry.outcome(), app.runs()),
        (IdempotencyOutcome::First, 2)
    );
}

#[tokio::test]
async fn a_redis_that_may_evict_is_told_by_its_health_and_one_that_is_away_by_an_error() {
    let logged = Logged::start();
    let said = || logged.lines_with(&["WARN", "the store may evict records"]);
    let mut server = RedisServer::start().await;
    let guarded = layer(quick(&server.url(), "t").await);
    assert_eq!(guarded.health().await.unwrap(), Health::Good);
    assert_eq!(said(), 0);
    let mut raw = server.raw().await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory-policy").arg("allkeys-lru");
    let _: () = set.query_async(&mut raw).await.unwrap();
    for _ in 0..3 {
        assert_eq!(guarded.health().await.unwrap(), Health::MayEvict);
        assert_eq!(said(), 1, "said once");
    }
    server.kill();
    assert!(guarded.health().await.is_err());
}

#[tokio::test]
async fn neither_keys_nor_scopes_nor_fields_can_be_found_in_the_store() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let key = DerivedKey::fields("book").email("mail");
    let derived = App::new(
        layer(server.store_with(&prefix).await)
            .derive(key)
            .secret([1; 32]),
    );
    derived
        .post("-", "{\"mail\":\"Hidden.Person@example.test\"}")
        .await;
    let scope = tower_keep::idempotency::Scope::principal();
    let store = server.store_with(&prefix).await;
    let named = App::new(tower_keep::idempotency::IdempotencyLayer::new(store, scope));
    let mut request = post("/secret-path", "a-very-secret-key", "{\"card\":\"4242\"}");
    request
        .extensions_mut()
        .insert(tower_keep::core::Principal::new("user-hidden"));
    named.send(request).await;
    let mut raw = server.raw().await;
    let names: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(names.len(), 2);
    let mut dump = Vec::new();
    for name in names {
        let value: Vec<u8> = redis::cmd("GET")
            .arg(&name)
            .query_async(&mut raw)
            .await
            .unwrap();
        dump.extend(name);
        dump.extend(value);
    }
    let dump = String::from_utf8_lossy(&dump).to_lowercase();
    assert!(dump.contains("run 1"), "the answers are there");
    for secret in ["hidden", "example.test", "secret", "4242"] {
        assert!(!dump.contains(secret), "{secret} is in the store");
    }
}
