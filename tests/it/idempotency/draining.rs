//! The end of a process: what draining waits for, and what becomes of the rest.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::IdempotencyOutcome;
use tower_keep::idempotency::{IdempotencyLayer, IdempotencyStore, IdempotentRun, Scope, Twins};
use tower_keep::{MINUTE, SECOND};

use super::hostile::{gated, id_of, timed, turns};
use super::{App, layer, post};
use crate::support::wayward::{Step, Wayward};

#[tokio::test(start_paused = true)]
async fn draining_gives_up_any_number_of_runs_together() {
    let slow = Wayward::new(timed()).before(|step| async move {
        if step == Step::Renew {
            tokio::time::sleep(SECOND).await;
        }
        Ok(())
    });
    let layer = layer(slow);
    let (app, _, _) = gated(layer.clone(), 200);
    let runs: Vec<_> = (0..100)
        .map(|key| tokio::spawn(app.future(post("/pay", &format!("k{key}"), "{}"))))
        .collect();
    turns().await;
    let asked = tokio::time::Instant::now();
    let drained = layer.drain(5 * SECOND).await;
    assert_eq!(drained.abandoned, 100);
    assert!(asked.elapsed() <= 8 * SECOND, "one after the other");
    for run in runs {
        run.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_draining_gave_up_is_not_renewed_by_its_own_run() {
    let store = timed();
    let layer = layer(store.clone());
    let lost = Arc::new(Notify::new());
    let told = Arc::clone(&lost);
    let app = App::with(layer.clone(), move |request, _| {
        let told = Arc::clone(&told);
        async move {
            let run = request.extensions().get::<IdempotentRun>().unwrap();
            run.lost().await;
            told.notify_one();
            pending().await
        }
    });
    let long = tokio::spawn(app.future(post("/pay", "k", "{}")));
    turns().await;
    let id = id_of(&layer, "k");
    // Just before its next renewal.
    let drained = layer.drain(9 * SECOND).await;
    assert_eq!((drained.finished, drained.abandoned), (0, 1));
    let told = tokio::time::timeout(MINUTE, lost.notified()).await;
    assert!(told.is_ok(), "its handler learns it");
    tokio::time::sleep(12 * SECOND).await;
    let head = store.peek(&id).await.unwrap().unwrap().head;
    assert!(!head.is_leased());
    let elsewhere = App::new(super::layer(store));
    let next = elsewhere.post("k", "{}").await;
    assert_eq!(next.outcome(), IdempotencyOutcome::First);
    long.abort();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_under_way_when_draining_gives_up_is_undone() {
    let (store, is_first) = (timed(), AtomicBool::new(true));
    // The run's own renewal, asked for at ten seconds, reaches the store after the drain's.
    let slow = Wayward::new(store.clone()).before(move |step| {
        let is_first = step == Step::Renew && is_first.swap(false, Ordering::SeqCst);
        async move {
            if is_first {
                tokio::time::sleep(5 * SECOND).await;
            }
            Ok(())
        }
    });
    let (app, entered, _) = gated(layer(slow), 201);
    let run = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let drained = app.layer.drain(12 * SECOND).await;
    assert_eq!((drained.finished, drained.abandoned), (0, 1));
    let is_leased = async || {
        let record = store.peek(&id_of(&app.layer, "k")).await.unwrap();
        record.unwrap().head.is_leased()
    };
    assert!(!is_leased().await);
    tokio::time::sleep(4 * SECOND).await;
    assert!(!is_leased().await, "its own renewal came last");
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_back_after_the_end_of_a_drain_does_not_run_and_is_released() {
    let store = timed();
    // The second time its lease is over by then, and would be renewed first.
    for (key, takes) in [("in-time", 20 * SECOND), ("late", 31 * SECOND)] {
        let late = Wayward::new(store.clone()).after(move |step| async move {
            if step == Step::Begin {
                tokio::time::sleep(takes).await;
            }
            Ok(())
        });
        let app = App::new(layer(late));
        let late = tokio::spawn(app.future(post("/pay", key, "{}")));
        turns().await;
        let drained = app.layer.drain(5 * SECOND).await;
        assert_eq!((drained.finished, drained.abandoned), (0, 0));
        let late = late.await.unwrap();
        late.check_refused(503, "IDEMPOTENCY_DRAINING");
        assert_eq!(late.headers["retry-after"], "1");
        assert_eq!(app.runs(), 0);
        let id = id_of(&app.layer, key);
        assert!(store.peek(&id).await.unwrap().is_none());
        // Who comes later is served.
        let next = app.post(key, "{}").await;
        assert_eq!(next.outcome(), IdempotencyOutcome::First);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_starts_while_draining_gives_up_is_given_up_too() {
    let store = timed();
    let layer = layer(store.clone());
    let (draining, lost) = (layer.clone(), Arc::new(Notify::new()));
    let told = Arc::clone(&lost);
    let app = App::with(layer.clone(), move |request, _| {
        let (draining, told) = (draining.clone(), Arc::clone(&told));
        async move {
            // In its first turn: nobody has listed it yet.
            let drained = draining.drain(Duration::ZERO).await;
            assert_eq!(drained.abandoned, 0);
            let run = request.extensions().get::<IdempotentRun>().unwrap();
            run.lost().await;
            told.notify_one();
            pending().await
        }
    });
    let run = tokio::spawn(app.future(post("/pay", "k", "{}")));
    let told = tokio::time::timeout(SECOND, lost.notified()).await;
    assert!(told.is_ok(), "its handler learns it");
    turns().await;
    let id = id_of(&layer, "k");
    let head = store.peek(&id).await.unwrap().unwrap().head;
    assert!(!head.is_leased());
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_run_that_draining_gave_up_starts_none() {
    let layer = layer(timed()).twins(Twins::Attach(MINUTE));
    let app = App::with(layer.clone(), |request, _| async move {
        let run = request.extensions().get::<IdempotentRun>().unwrap();
        run.lost().await;
        let answer = Response::builder().status(500);
        answer.body(Full::default()).unwrap()
    });
    let given_up = tokio::spawn(app.future(post("/pay", "k", "{}")));
    turns().await;
    let twin = tokio::spawn(app.future(post("/pay", "k", "{}")));
    turns().await;
    assert_eq!(layer.drain(5 * SECOND).await.abandoned, 1);
    assert_eq!(given_up.await.unwrap().status, 500);
    let twin = twin.await.unwrap();
    twin.check_refused(503, "IDEMPOTENCY_DRAINING");
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn who_waited_for_a_turn_in_a_transaction_starts_none_after_a_drain() {
    let db = SqlStore::connect("sqlite::memory:").await.unwrap();
    let layer = IdempotencyLayer::transactional(db, Scope::global()).twins(Twins::Attach(MINUTE));
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(layer.clone(), move |_, _| {
        let (entered, go) = gates.clone();
        async move {
            entered.notify_one();
            go.notified().await;
            let answer = Response::builder().status(500);
            answer.body(Full::default()).unwrap()
        }
    });
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let twin = tokio::spawn(app.future(post("/pay", "k", "{}")));
    turns().await;
    layer.drain(Duration::from_millis(10)).await;
    go.notify_one();
    assert_eq!(first.await.unwrap().status, 500);
    // Were it to run, it would wait for nothing.
    go.notify_one();
    let twin = twin.await.unwrap();
    twin.check_refused(503, "IDEMPOTENCY_DRAINING");
    assert_eq!(app.runs(), 1);
}
