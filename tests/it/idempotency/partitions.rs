//! The store's reply is lost at each step of a request in turn: never two effects, and what was done is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::Full;
use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope};

use super::transactional::run;
use super::{Answer, App, layer, post};
use crate::support::postgres::shared;
use crate::support::sql::{execute, number};
use crate::support::{Proxy, RedisServer};

/// Sends the request again until it is answered with success: the store is back, its breaker may still be open.
async fn retried(app: &App, key: &str) -> Answer {
    let started = Instant::now();
    loop {
        let answer = app.post(key, "{}").await;
        let status = answer.status.as_u16();
        if status == 201 {
            return answer;
        }
        assert!(matches!(status, 409 | 503), "{status}: {:?}", answer.body);
        assert!(started.elapsed() < Duration::from_secs(60), "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Cuts at the first reply, then the second, and so on, until a request needs no more replies.
async fn leased(proxy: &Proxy, layer: IdempotencyLayer) -> usize {
    let effects = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&effects);
    let app = App::with(layer.clone(), move |_, n| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let answer = Response::builder().status(201);
            answer.body(Full::from(format!("run {n}"))).unwrap()
        }
    });
    retried(&app, "warm").await;
    for nth in 1.. {
        let (key, before) = (format!("k{nth}"), effects.load(Ordering::SeqCst));
        proxy.cut_at_reply(nth);
        let first = app.post(&key, "{}").await;
        let was_cut = !proxy.will_cut();
        proxy.cut_at_reply(0);
        assert!(
            matches!(first.status.as_u16(), 201 | 503),
            "{nth}: {:?}",
            first.body
        );
        layer.drain(60 * SECOND).await;
        let retry = retried(&app, &key).await;
        let done = effects.load(Ordering::SeqCst) - before;
        assert_eq!(done, 1, "{nth}: the effect happened {done} times");
        if first.status.as_u16() == 201 {
            assert_eq!((retry.is_replay(), &retry.body), (true, &first.body));
        }
        if !was_cut {
            return nth as usize;
        }
    }
    unreachable!("every request ends");
}

#[tokio::test]
async fn a_reply_of_redis_lost_at_any_step_repeats_no_effect() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let url = format!("redis://{}/", proxy.address());
    let store = RedisStore::builder(&url).timeout(2 * SECOND);
    let steps = leased(&proxy, layer(store.open().await.unwrap())).await;
    assert!(steps > 2, "{steps}");
}

async fn postgres() -> (Proxy, SqlStore, SqlStore) {
    let server = shared().await;
    let proxy = Proxy::before(server.address()).await;
    let url = server.database().await;
    let name = url.rsplit('/').next().unwrap();
    let far = format!("postgres://postgres@{}/{name}", proxy.address());
    let near = SqlStore::connect(&url).await.unwrap();
    let far = SqlStore::builder(&far)
        .acquire_timeout(20 * SECOND)
        .max_connections(2);
    (proxy, far.open().await.unwrap(), near)
}

#[tokio::test]
async fn a_reply_of_postgres_lost_at_any_step_repeats_no_effect() {
    let (proxy, far, _) = postgres().await;
    let steps = leased(&proxy, layer(far)).await;
    assert!(steps > 2, "{steps}");
}

#[tokio::test]
async fn a_reply_lost_at_any_step_of_a_transaction_leaves_exactly_what_is_told() {
    let (proxy, far, near) = postgres().await;
    execute(&near, "create table effects (n text)").await;
    let (layer, db) = (
        IdempotencyLayer::transactional(far.clone(), Scope::global()),
        far.clone(),
    );
    let app = App::with(layer.clone(), move |request, n| {
        let db = db.clone();
        async move {
            let done = run(&request, &db, "insert into effects values ('x')").await;
            let answer = Response::builder().status(if done { 201 } else { 500 });
            answer.body(Full::from(format!("run {n}"))).unwrap()
        }
    });
    retried(&app, "warm").await;
    let (mut kept, mut undone) = (0, 0);
    for nth in 1.. {
        let key = format!("k{nth}");
        execute(&near, "delete from effects").await;
        proxy.cut_at_reply(nth);
        let first = app.post(&key, "{}").await;
        let was_cut = !proxy.will_cut();
        proxy.cut_at_reply(0);
        layer.drain(60 * SECOND).await;
        let effects = number(&near, "select count(*) from effects").await;
        let told = first.status.as_u16() == 201;
        assert_eq!(
            effects,
            i64::from(told),
            "{nth}: {} {:?}",
            first.status,
            first.body
        );
        let retry = retried(&app, &key).await;
        assert_eq!(retry.is_replay(), told, "{nth}");
        assert_eq!(number(&near, "select count(*) from effects").await, 1);
        if !was_cut {
            break;
        }
        kept += usize::from(told);
        undone += usize::from(!told);
    }
    assert!(kept >= 1 && undone >= 3, "{kept} {undone}");
}

/// What a request costs on the wire.
#[tokio::test]
async fn a_transactional_first_run_is_six_round_trips_and_a_replay_one() {
    let (proxy, far, _) = postgres().await;
    let layer = IdempotencyLayer::transactional(far, Scope::global());
    let app = App::new(layer);
    // Twice, so that every connection knows the statements.
    for key in ["a", "b", "c", "d"] {
        app.post(key, "{}").await;
        app.post(key, "{}").await;
    }
    let mut counts = Vec::new();
    for key in ["k", "k"] {
        let before = proxy.round_trips();
        app.send(post("/pay", key, "{}")).await;
        counts.push(proxy.round_trips() - before);
    }
    assert_eq!(counts, [6, 1]);
}

#[tokio::test]
async fn a_leased_first_run_on_postgres_is_two_round_trips_a_replay_and_a_conflict_one() {
    let (proxy, far, _) = postgres().await;
    let app = App::new(layer(far));
    for key in ["a", "b", "c", "d"] {
        app.post(key, "{}").await;
        app.post(key, "{}").await;
    }
    let mut counts = Vec::new();
    for (key, body) in [("k", "{}"), ("k", "{}"), ("k", "other")] {
        let before = proxy.round_trips();
        app.post(key, body).await;
        counts.push(proxy.round_trips() - before);
    }
    assert_eq!(counts, [2, 1, 1]);
}
