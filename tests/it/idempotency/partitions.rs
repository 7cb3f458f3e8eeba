//! The store's reply is lost at each step of a request in turn: never two effects, and what was done is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::Full;
use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::IdempotencyOutcome;
use tower_keep::idempotency::{IdempotencyLayer, Scope};

use super::transactional::{Place, leave_after, run};
use super::{Answer, App, layer, post};
use crate::support::postgres::shared;
use crate::support::sql::{execute, number};
use crate::support::{PostgresServer, Proxy, RedisServer};

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

async fn postgres(connections: u32) -> (Proxy, SqlStore, SqlStore) {
    let server = shared().await;
    let proxy = Proxy::before(server.address()).await;
    let url = server.database().await;
    let name = url.rsplit('/').next().unwrap();
    let far = format!("postgres://postgres@{}/{name}", proxy.address());
    let near = SqlStore::connect(&url).await.unwrap();
    let far = SqlStore::builder(&far)
        .acquire_timeout(20 * SECOND)
        .max_connections(connections);
    (proxy, far.open().await.unwrap(), near)
}

#[tokio::test]
async fn a_reply_of_postgres_lost_at_any_step_repeats_no_effect() {
    let (proxy, far, _) = postgres(2).await;
    let steps = leased(&proxy, layer(far)).await;
    assert!(steps > 2, "{steps}");
}

#[tokio::test]
async fn a_reply_lost_at_any_step_of_a_transaction_leaves_exactly_what_is_told() {
    let (proxy, far, near) = postgres(2).await;
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

/// The handler takes the database away: after the effect where it is leased, before the commit where it is not.
#[tokio::test]
async fn a_postgres_killed_in_the_handler_keeps_a_leased_answer_for_later_and_undoes_a_transaction()
{
    for transactional in [false, true] {
        let server = PostgresServer::start_durable().await;
        let url = server.database().await;
        let db = SqlStore::builder(&url).acquire_timeout(5 * SECOND);
        let db = db.open().await.unwrap();
        execute(&db, "create table effects (n text)").await;
        let layer = if transactional {
            IdempotencyLayer::transactional(db.clone(), Scope::global())
        } else {
            layer(db.clone())
        };
        let server = Arc::new(tokio::sync::Mutex::new(server));
        let (taken, own) = (Arc::clone(&server), db.clone());
        let app = App::with(layer.clone(), move |request, n| {
            let (taken, own) = (Arc::clone(&taken), own.clone());
            async move {
                let is_first = request.headers()["idempotency-key"] == "k" && n == 2;
                if transactional {
                    run(&request, &own, "insert into effects values ('x')").await;
                }
                if is_first {
                    taken.lock().await.kill();
                }
                let answer = Response::builder().status(201);
                answer.body(Full::from(format!("run {n}"))).unwrap()
            }
        });
        app.post("warm", "{}").await;
        let first = app.post("k", "{}").await;
        let status = first.status.as_u16();
        if transactional {
            assert!(matches!(status, 500 | 503), "{status}");
        } else {
            assert_eq!(
                (status, first.outcome()),
                (201, IdempotencyOutcome::Unrecorded)
            );
        }
        server.lock().await.restart();
        assert_eq!(layer.drain(60 * SECOND).await.abandoned, 0);
        let retry = retried(&app, "k").await;
        assert_eq!(retry.is_replay(), !transactional);
        if transactional {
            let effects = number(&db, "select count(*) from effects").await;
            assert_eq!(effects, 2, "the warm one, and the retry's");
        } else {
            assert_eq!((&retry.body, app.runs()), (&first.body, 2));
        }
    }
}

/// On every engine, a drop after each wake of a leased request in turn.
#[tokio::test]
async fn a_client_that_leaves_at_any_await_of_a_leased_run_gets_its_answer_later() {
    let sqlite = Place::sqlite().await;
    let postgres = Place::postgres().await;
    let redis = crate::support::redis::shared().await;
    let redis = redis
        .store_with(&crate::support::redis::fresh_prefix())
        .await;
    let layers = [
        layer(tower_keep::backend::memory::MemoryStore::new()),
        layer(redis),
        layer(sqlite.db.clone()),
        layer(postgres.db.clone()),
    ];
    for (engine, layer) in layers.into_iter().enumerate() {
        for polls in 0.. {
            let app = App::with(layer.clone(), |_, n| async move {
                tokio::task::yield_now().await;
                let answer = Response::builder().status(201);
                answer.body(Full::from(format!("run {n}"))).unwrap()
            });
            let key = format!("{polls}");
            let ended = leave_after(app.future(post("/pay", &key, "{}")), polls, || true).await;
            assert_eq!(layer.drain(60 * SECOND).await.abandoned, 0);
            let ran = app.runs();
            let retry = app.post(&key, "{}").await;
            assert_eq!(
                (retry.status.as_u16(), retry.is_replay(), app.runs()),
                (201, ran == 1, 1),
                "engine {engine}, left after {polls}"
            );
            if ended {
                assert!(polls > 1, "engine {engine}");
                break;
            }
        }
    }
}

/// Round trips of one `work`. The first runs prepare its statements; the pool pings a connection that comes
/// back, `uses` times in each run, which no request waits for and which is left out here.
async fn trips<F: Future<Output = ()>>(
    proxy: &Proxy,
    uses: u64,
    mut work: impl FnMut(u32) -> F,
) -> u64 {
    for n in 0..3 {
        work(n).await;
    }
    let before = proxy.round_trips();
    for n in 3..13 {
        work(n).await;
    }
    (proxy.round_trips() - before + 5) / 10 - uses
}

#[tokio::test]
async fn a_transactional_first_run_is_six_round_trips_and_a_replay_one() {
    let (proxy, far, _) = postgres(1).await;
    let app = App::new(IdempotencyLayer::transactional(far, Scope::global()));
    let send = async |key: String, body| assert!(app.post(&key, body).await.status.as_u16() < 500);
    let first = trips(&proxy, 2, |n| send(format!("k{n}"), "{}")).await;
    let replay = trips(&proxy, 1, |_| send("k0".into(), "{}")).await;
    let other = trips(&proxy, 1, |_| send("k0".into(), "other")).await;
    assert_eq!((first, replay, other), (6, 1, 1));
}

#[tokio::test]
async fn a_leased_first_run_on_postgres_is_two_round_trips_a_replay_and_a_conflict_one() {
    let (proxy, far, _) = postgres(1).await;
    let app = App::new(layer(far));
    let send = async |key: String, body| assert!(app.post(&key, body).await.status.as_u16() < 500);
    let first = trips(&proxy, 2, |n| send(format!("k{n}"), "{}")).await;
    let replay = trips(&proxy, 1, |_| send("k0".into(), "{}")).await;
    let other = trips(&proxy, 1, |_| send("k0".into(), "other")).await;
    assert_eq!((first, replay, other), (2, 1, 1));
}
