//! A store that refuses one kind of step, or answers late: nothing runs twice, and nobody is refused wrongly.

use std::future::{Ready, ready};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{IdempotencyOutcome, StoreError, StoreErrorKind};
use tower_keep::idempotency::{Directive, Twins};

use super::{App, clock, layer, memory, post};
use crate::support::wayward::{Step, Wayward, away};

/// A store that is away for these steps while it is told so.
fn away_while(
    flag: &Arc<AtomicBool>,
    steps: fn(Step) -> bool,
) -> impl Fn(Step) -> Ready<Result<(), StoreError>> + Send + Sync + use<> {
    let flag = Arc::clone(flag);
    move |step| {
        let is_away = flag.load(Ordering::SeqCst) && steps(step);
        ready(if is_away { away() } else { Ok(()) })
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_calls_unknown_never_runs_again_though_the_store_was_away_just_then() {
    let clock = clock();
    let no_renewal = Arc::new(AtomicBool::new(true));
    let store = Wayward::new(memory(&clock));
    let store = store.before(away_while(&no_renewal, |step| step == Step::Renew));
    let layer = layer(store.clone());
    let app = App::with(layer.clone(), |_, _| async {
        let mut response = Response::new(Full::from("perhaps"));
        response.extensions_mut().insert(Directive::Unknown);
        response
    });
    let first = app.post("k", "{}").await;
    assert_eq!(first.outcome(), IdempotencyOutcome::Unrecorded);
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    app.post("k", "other")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    no_renewal.store(false, Ordering::SeqCst);
    assert_eq!(layer.drain(20 * SECOND).await.abandoned, 0);
    clock.advance(60 * SECOND);
    let elsewhere = App::new(super::layer(store));
    let again = elsewhere.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    assert_eq!((app.runs(), elsewhere.runs()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_keeps_that_it_ran_even_where_the_location_has_no_room() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).max_bytes(1_000);
    let layer = layer(store.build());
    let app = App::with(layer.clone(), |_, run| async move {
        let place = format!("/{}", "x".repeat(4_000));
        let answer = Response::builder().status(201).header("location", place);
        answer.body(Full::from(format!("run {run}"))).unwrap()
    });
    let first = app.post("k", "{}").await;
    assert_eq!(
        (first.status.as_u16(), first.outcome()),
        (201, IdempotencyOutcome::First)
    );
    clock.advance(60 * SECOND);
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    assert_eq!(app.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_store_never_takes_does_not_hold_up_the_others() {
    let clock = clock();
    let (is_away, cursed) = (Arc::new(AtomicBool::new(false)), OnceLock::new());
    let completes = |step| matches!(step, Step::Complete(_));
    let away = away_while(&is_away, completes);
    let store = Wayward::new(memory(&clock)).before(move |step| {
        // The first record of all is one that no step can complete.
        let is_cursed = matches!(step, Step::Complete(id) if *cursed.get_or_init(|| id) == id);
        let away = away(step);
        async move {
            away.await?;
            match is_cursed {
                true => Err(StoreErrorKind::Failed.into()),
                false => Ok(()),
            }
        }
    });
    let layer = layer(store.clone());
    let app = App::new(layer.clone());
    app.post("cursed", "{}").await;
    is_away.store(true, Ordering::SeqCst);
    app.post("k", "{}").await;
    is_away.store(false, Ordering::SeqCst);
    layer.drain(20 * SECOND).await;
    let elsewhere = App::new(super::layer(store));
    let replay = elsewhere.post("k", "{}").await;
    assert_eq!((replay.is_replay(), elsewhere.runs()), (true, 0));
}

#[tokio::test]
async fn a_right_retry_is_not_refused_for_a_wrong_one_that_only_asks() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow_claims = Arc::new(AtomicBool::new(false));
    let (told, wait, slow) = (entered.clone(), go.clone(), slow_claims.clone());
    let store = Wayward::new(memory(&clock())).before(move |step| {
        let waits = step == Step::Begin && slow.load(Ordering::SeqCst);
        let (told, wait) = (told.clone(), wait.clone());
        async move {
            if waits {
                told.notify_one();
                wait.notified().await;
            }
            Ok(())
        }
    });
    let layer = layer(store).twins(Twins::Attach(10 * SECOND));
    let app = App::new(layer);
    let first = app.post("k", "right").await;
    slow_claims.store(true, Ordering::SeqCst);
    let wrong = tokio::spawn(app.future(post("/pay", "k", "wrong")));
    entered.notified().await;
    let right = tokio::spawn(app.future(post("/pay", "k", "right")));
    tokio::task::yield_now().await;
    slow_claims.store(false, Ordering::SeqCst);
    go.notify_one();
    wrong
        .await
        .unwrap()
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    let right = right.await.unwrap();
    assert_eq!((right.is_replay(), right.body), (true, first.body));
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn an_operator_finds_a_uuid_as_the_client_spelled_it() {
    let layer = layer(memory(&clock())).key_format(tower_keep::idempotency::KeyFormat::uuid());
    let key = "0A1B2C3D-0000-4000-8000-ABCDEFABCDEF";
    App::new(layer.clone()).post(key, "{}").await;
    let admin = layer.admin();
    let id = admin.id(&tower_keep::idempotency::ScopeId::global(), key);
    assert!(admin.get(&id).await.unwrap().is_some());
}

#[tokio::test]
async fn an_answer_that_is_kept_for_no_time_at_all_is_no_fault() {
    let server = crate::support::redis::shared().await;
    let prefix = crate::support::redis::fresh_prefix();
    let store = server.store_with(&prefix);
    let app = App::with(layer(store.await), |_, run| async move {
        let mut response = Response::new(Full::<Bytes>::from(format!("run {run}")));
        let directive = Directive::StoreFor(Duration::ZERO);
        response.extensions_mut().insert(directive);
        response
    });
    for run in ["run 1", "run 2"] {
        let answer = app.post("k", "{}").await;
        assert_eq!(
            (&answer.body[..], answer.outcome()),
            (run.as_bytes(), IdempotencyOutcome::First)
        );
    }
}
